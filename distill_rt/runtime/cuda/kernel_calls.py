"""The kernels of a pack, called by the names of their parameters.

Legend: B images, N elements of one image, K = NUM_WORDS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distill_rt.kernels.pack import KernelPack
from distill_rt.kernels.triton.row_layout import WORD, is_fast
from distill_rt.kernels.triton.variants import is_aligned

Float32 = NDArray[np.float32]

DTYPE = "fp32"
"""States and networks' inputs and outputs are float32; a network computes in its own precision inside."""


class Launcher(Protocol):
    """Launches kernels of a pack; `distill_rt.backends.cuda.kernels.PackLauncher` on a GPU."""

    @property
    def pack(self) -> KernelPack: ...

    def launch(self, stream: int, name: str, grid: tuple[int, int, int], args: list[int]) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaled:
    """Where a kernel writes the scaled state beside its result: a network's input, `copies` times one behind the other."""

    address: int
    copies: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """A network's output: float32 (B, N) at `F`, and without the condition at `F_u` under guidance by two evaluations."""

    F: int
    F_u: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PerImage:
    """Addresses of numbers per image, (B,): seeds int64, the rest float32."""

    seeds: int
    w: int
    phi: int
    factor: int
    bound: int


class KernelCalls:
    """Kernels on images of one size.

    Args:
        launcher: of the engine's pack.
        num_images: B.
        num: N.
        per_image: what all kernels read.
    """

    def __init__(self, launcher: Launcher, num_images: int, num: int, per_image: PerImage) -> None:
        self._launcher = launcher
        self._num_images, self._num = num_images, num
        self._per_image = {f"{name}_ptr": getattr(per_image, name) for name in PerImage.__dataclass_fields__}

    def philox_normal(self, stream: int, row: int, out: int, scaled: Scaled | None = None) -> None:
        """out = n * z, scaled = next_c_in * out, by the packed row at `row`."""
        self._launch(stream, "philox_normal", {}, {"out_ptr": out, "row_ptr": row}, scaled)

    def guidance_factor(self, stream: int, prediction: Prediction) -> None:
        """The factor of rescaled guidance, per image."""
        addresses = {"F_ptr": prediction.F, "F_u_ptr": prediction.F_u or 0}
        self._launch(stream, "guidance_factor", {}, addresses)

    def dynamic_threshold(self, stream: int, row: int, x: int, prediction: Prediction) -> None:
        """The bound of x0, per image."""
        addresses = {"x_ptr": x, "row_ptr": row, "F_ptr": prediction.F, "F_u_ptr": prediction.F_u or prediction.F}
        self._launch(stream, "dynamic_threshold", {"GUIDED": prediction.F_u is not None}, addresses)

    def table_row(
        self,
        stream: int,
        packed: Float32,
        row: int,
        *,
        x: int,
        out: int,
        prediction: Prediction | None = None,
        history: tuple[int, ...] = (),
        anchor: int | None = None,
        x0_out: int | None = None,
        scaled: Scaled | None = None,
    ) -> None:
        """One row of a step table; all addresses are those of buffers, None where the row needs none.

        Args:
            packed: the row on the host, (K,): decides which form of the kernel runs.
            row: the same words on the GPU.
        """
        F = prediction.F if prediction is not None else x
        F_u = prediction.F_u if prediction is not None else None
        draws = bool(packed[WORD["n"]])
        fast = is_fast(packed) and x0_out is None
        addresses = {"x_ptr": x, "out_ptr": out, "row_ptr": row, "F_ptr": F, "F_u_ptr": F_u or F}
        # A pointer that a row does not use is neither read nor written, but it must be some address.
        past = (*history, x, x, x)[:3]
        addresses |= {f"x0_{i + 1}_ptr": address for i, address in enumerate(past)}
        addresses |= {"anchor_ptr": anchor or x, "x0_out_ptr": x0_out or out}
        features = {"GUIDED": F_u is not None, "GENERAL": not fast, "NOISE": draws or not fast}
        self._launch(stream, "table_row", features, addresses, scaled)

    def to_uint8(self, stream: int, x: int, out: int, image_shape: tuple[int, int, int]) -> None:
        """Images in [-1, 1], (B, C, H, W), to bytes (B, H, W, C)."""
        channels, height, width = image_shape
        num = channels * height * width
        sizes = {"num": num, "num_pixels": height * width, "num_channels": channels, "x_stride": num}
        pack = self._launcher.pack
        aligned = is_aligned((x, out), (num,))
        name = pack.find("to_uint8", state=DTYPE, network=DTYPE, aligned=aligned)
        self._run(
            stream, name, pack.body.kernels[name].grid(self._num_images, num), {"x_ptr": x, "out_ptr": out} | sizes
        )

    def _launch(
        self,
        stream: int,
        kernel: str,
        features: Mapping[str, bool],
        addresses: Mapping[str, int],
        scaled: Scaled | None = None,
    ) -> None:
        num = self._num
        sizes = {"num": num, "state_stride": num, "F_stride": num, "scaled_stride": num}
        sizes |= {"copy_stride": self._num_images * num, "num_copies": scaled.copies if scaled else 0}
        some = next(iter(addresses.values()))
        everything = {"scaled_ptr": scaled.address if scaled else some, **self._per_image, **addresses}
        # Numbers per image are read one at a time, so their addresses do not count.
        pointers = [everything["scaled_ptr"], *(value for key, value in addresses.items() if key != "row_ptr")]
        aligned = is_aligned(pointers, (num,))
        pack = self._launcher.pack
        if not aligned and kernel == "table_row":
            features = {**features, "GENERAL": True, "NOISE": True}  # the one form that runs from any address
        name = pack.find(kernel, state=DTYPE, network=DTYPE, features=features, aligned=aligned)
        self._run(stream, name, pack.body.kernels[name].grid(self._num_images, num), everything | sizes)

    def _run(self, stream: int, name: str, grid: tuple[int, int, int], values: Mapping[str, int]) -> None:
        parameters = self._launcher.pack.body.kernels[name].parameters
        self._launcher.launch(stream, name, grid, [values[p.name] for p in parameters if p.kind != "hidden"])
