"""Student -> bundle -> engine: ONNX graphs, golden outputs, graph rewrites, the gate.

`export_student` needs torch; `compile_bundle` and the gate never import it. Calling the package is `export_student`, so that
``distill_rt.export(...)`` works although a package has that name.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill_rt.export.compile import compile_bundle
    from distill_rt.export.onnx_export import export_student

__all__ = ["export_student", "compile_bundle"]


def __getattr__(name: str) -> Any:
    if name == "export_student":
        from distill_rt.export.onnx_export import export_student

        return export_student
    if name == "compile_bundle":
        from distill_rt.export.compile import compile_bundle

        return compile_bundle
    raise AttributeError(f"module 'distill_rt.export' has no attribute {name!r}")


class _CallablePackage(types.ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from distill_rt.export.onnx_export import export_student

        return export_student(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
