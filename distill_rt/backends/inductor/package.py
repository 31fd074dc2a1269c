"""A graph for one batch -> AOTInductor package (.pt2), and back to something that runs."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from distill_rt.backends.inductor.graph.from_onnx import from_onnx
from distill_rt.core.artifacts import Component
from distill_rt.core.errors import TargetError


def build_package(
    onnx_path: Path,
    component: Component,
    batch: int,
    destination: Path,
    *,
    device: str,
    settings: Mapping[str, Any],
) -> None:
    """Compile a graph for one batch.

    Args:
        onnx_path: the graph in the types that it shall compute in.
        destination: a name ending in ``.pt2``.
        device: ``cpu`` or ``cuda``.
        settings: inductor's, by their dotted names.

    Raises:
        TargetError: an operator is not supported, or torch refuses the graph.
    """
    from torch._inductor.package.package import package_aoti

    with quiet(), plain_float32(), torch.no_grad():
        module, example = from_onnx(onnx_path, component, batch, torch.device(device))
        try:
            exported = torch.export.export(module, example).module(check_guards=False)
            # Not `aoti_compile_and_package`: it leaves a second copy of all weights in torch's cache directory.
            with tempfile.TemporaryDirectory(prefix=".inductor-", dir=destination.parent) as scratch:
                options = {**settings, "aot_inductor.package": True, "aot_inductor.output_path": scratch}
                assert isinstance(exported, torch.fx.GraphModule)
                files: Any = torch._inductor.aot_compile(exported, example, options=options)
                package_aoti(str(destination), files)
        except OSError:  # a full disk has its own message
            raise
        except Exception as error:  # torch's compilers share no base class
            raise refused("cannot compile", onnx_path, error) from error


def load_package(path: Path, *, device: str) -> Any:
    """The loaded package: ``boxed_run(list of tensors)`` returns a list of tensors. Not for use by two threads at once.

    Raises:
        TargetError: torch refuses the file.
    """
    with quiet():
        try:
            # Without the locks of many threads, whose events a captured graph must not wait for.
            loaded = torch._inductor.aoti_load_package(
                str(path), run_single_threaded=True, device_index=0 if device == "cuda" else -1
            )
        except Exception as error:  # pybind raises RuntimeError for nearly everything, zip files their own
            raise refused("cannot load", path, error) from error
    return loaded.loader


def refused(what: str, path: Path, error: Exception) -> TargetError:
    """torch's error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return TargetError(
        f"torch {what} {path.name}: {type(error).__name__}: {lines[0] if lines else 'no reason given'}"[:400],
        code="compiler-refused",
        hint="compile again with --force, or choose another target",
    )


@contextlib.contextmanager
def plain_float32() -> Iterator[None]:
    """float32 is float32: cuDNN would take TF32 for its convolutions. The switches are the process's, so they are put back."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """torch warns about its own internals, and logs what `TargetError` will say."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
