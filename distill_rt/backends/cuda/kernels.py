"""The kernel pack of an engine: put there when it is compiled, opened on the GPU when it is loaded."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from distill_rt.backends.cache import engines_directory
from distill_rt.backends.cuda.driver import Driver
from distill_rt.core.errors import ArtifactError
from distill_rt.core.optional import require
from distill_rt.kernels.aot import build_pack, source_digest
from distill_rt.kernels.loaded_pack import LoadedPack
from distill_rt.kernels.pack import KernelPack, read_pack
from distill_rt.kernels.triton.variants import default_variants

KERNELS = "kernels"
"""Folder of an engine."""
VARIANTS = default_variants([("fp32", "fp32")])
"""States and the networks' inputs and outputs are float32."""


def put_kernels(directory: Path, capabilities: Sequence[int]) -> None:
    """Write the kernels for these compute capabilities, and PTX for others, to `directory` / `KERNELS`.

    Compiling takes seconds per capability and depends on nothing of the engine, so packs are kept in the cache.

    Raises:
        TargetError: triton is missing, or cannot compile a kernel.
    """
    name = hashlib.sha256(f"{source_digest()} {sorted(capabilities)} {_triton_version()}".encode()).hexdigest()
    cached = engines_directory().parent / KERNELS / name
    try:
        read_pack(cached)
    except ArtifactError:  # not there, or damaged
        cached.parent.mkdir(parents=True, exist_ok=True)
        build_pack(cached, VARIANTS, capabilities=sorted(capabilities), force=True)
    shutil.copytree(cached, directory / KERNELS)


def _triton_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("triton")
    except PackageNotFoundError:
        return ""  # `build_pack` says what is missing


class PackLauncher:
    """The kernels of an engine on its GPU. Not run on a GPU yet.

    Args:
        directory: the engine.
        driver: its GPU, current in this thread.

    Attributes:
        note: what a user should know about the choice of machine code; empty if it was compiled for this very GPU.

    Raises:
        ArtifactError: the pack is missing or damaged.
        TargetError: nothing in it runs on this GPU.
    """

    def __init__(self, directory: Path, driver: Driver) -> None:
        core = require("cuda.core", extra="cuda")
        device = core.Device(driver.device.index)
        device.set_current()  # the same primary context that the driver uses
        pack = read_pack(directory / KERNELS)
        self._from_handle = core.Stream.from_handle
        self._loaded = LoadedPack(pack, device)
        self.pack: KernelPack = pack
        self.note = self._loaded.note

    def launch(self, stream: int, name: str, grid: tuple[int, int, int], args: list[int]) -> None:
        """Put one kernel on a stream; for recording, not for the hot path."""
        self._loaded.launch(self._from_handle(stream), name, grid, args)
