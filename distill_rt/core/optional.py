"""Optional packages: import one, or say which extra brings it."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from distill_rt.core.errors import TargetError


def require(module: str, *, extra: str) -> ModuleType:
    """Import `module`, or raise `TargetError` naming the pip extra that installs it.

    Args:
        module: dotted module name, for example ``"openvino"``.
        extra: the extra of this project that brings it, for example ``"openvino"``.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        root = module.partition(".")[0]
        if importlib.util.find_spec(root) is not None:
            raise TargetError(
                f"package {root!r} is installed but cannot be imported: {error}",
                code="package-broken",
                hint=f"reinstall it: pip install --force-reinstall 'distill-rt[{extra}]'",
            ) from error
        raise TargetError(
            f"this needs the package {root!r}, which is not installed",
            code="package-missing",
            hint=f"pip install 'distill-rt[{extra}]'",
            details={"package": root, "extra": extra},
        ) from error


def installed(module: str) -> bool:
    """Whether `module` can be found; packages around it are imported, it is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package around it is not there
        return False
