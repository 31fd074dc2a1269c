"""A graph for one batch -> AOTInductor package (.pt2), and back to something that runs."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill_rt.backends.inductor.graph.from_onnx import from_onnx
from distill_rt.core.artifacts import Component
from distill_rt.core.errors import ResourceError, TargetError


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


class Package:
    """A loaded package: its code and its weights, which all programs of one file share.

    Args:
        loader: torch's, whose ``boxed_run`` takes and returns lists of tensors. It holds nothing between two calls.
    """

    def __init__(self, loader: Any, path: Path) -> None:
        self._loader = loader
        self._lock = threading.Lock()
        self.path = path

    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        """One call, on torch's current stream where it runs on a GPU.

        Raises:
            ResourceError: not enough GPU memory.
            TargetError: the package refuses.
        """
        try:
            with self._lock:
                results: list[Tensor] = self._loader.boxed_run(list(inputs))
        except torch.OutOfMemoryError as error:
            raise out_of_gpu_memory(error) from error
        except RuntimeError as error:
            raise refused("cannot run", self.path, error) from error
        return results


def load_package(path: Path, *, device: str) -> Package:
    """Load a package.

    Raises:
        TargetError: torch refuses the file.
        ResourceError: not enough GPU memory.
    """
    with quiet():
        try:
            # Single-threaded: the locks for many threads are events, which a captured graph must not wait for. Ours serve.
            loaded = torch._inductor.aoti_load_package(
                str(path), run_single_threaded=True, device_index=0 if device == "cuda" else -1
            )
        except torch.OutOfMemoryError as error:
            raise out_of_gpu_memory(error) from error
        except Exception as error:  # pybind raises RuntimeError for nearly everything, zip files their own
            raise refused("cannot load", path, error) from error
    return Package(loaded.loader, path)


def out_of_gpu_memory(error: Exception) -> ResourceError:
    """torch's message names the need and what is free; its advice on its allocator goes."""
    return ResourceError(
        f"not enough GPU memory: {_first_line(error).partition(' If reserved')[0]}",
        code="gpu-memory",
        hint="close other programs on the GPU, load fewer workers, or compile for smaller batches",
    )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")


def refused(what: str, path: Path, error: Exception) -> TargetError:
    """torch's error in one line."""
    return TargetError(
        f"torch {what} {path.name}: {type(error).__name__}: {_first_line(error)}"[:400],
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
