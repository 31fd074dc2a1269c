"""What gets compiled: every kernel, its parameters in order, and the variants that a runtime needs. Pure data.

A variant is a kernel with its dtypes and features fixed. *Aligned* variants move up to 16 bytes at a time; they need
pointers that are multiples of 16 bytes and sizes and strides that are multiples of 16 elements (`is_aligned`), which
latents and images of networks have. Everything else runs an unaligned variant, the same bits more slowly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Dtype = Literal["fp32", "fp16", "bf16"]
DTYPES: tuple[Dtype, ...] = ("fp32", "fp16", "bf16")

# Four elements per thread, so that a thread's part of a 32-bit buffer is one 16-byte access, and one Philox block.
ROW_BLOCK = 512
ROW_WARPS = 4
# One program per image: as many threads as pay off.
IMAGE_BLOCK = 2048
IMAGE_WARPS = 16
# All registers of a multiprocessor: one such program runs on it anyhow, and without the limit the assembler spills a few
# bytes to make room for a second one.
IMAGE_MAX_REGISTERS = 65536 // (32 * IMAGE_WARPS)
THRESHOLD_BLOCK = 512  # one element per thread: sixteen counters for it fill the registers
PIXEL_BLOCK = 1024

ALIGNMENT = 16

_STATE = "state"
_NETWORK = "network"

# Parameter -> type: "state" and "network" stand for pointers to the variant's dtypes. Order is the kernel's.
PARAMETERS: dict[str, dict[str, str]] = {
    "table_row": {
        **dict.fromkeys(["x_ptr"], _STATE),
        **dict.fromkeys(["F_ptr", "F_u_ptr"], _NETWORK),
        **dict.fromkeys(["x0_1_ptr", "x0_2_ptr", "x0_3_ptr", "anchor_ptr", "out_ptr", "x0_out_ptr"], _STATE),
        **dict.fromkeys(["scaled_ptr"], _NETWORK),
        **dict.fromkeys(["row_ptr", "w_ptr", "factor_ptr", "bound_ptr"], "*fp32"),
        **dict.fromkeys(["seeds_ptr"], "*i64"),
        **dict.fromkeys(["num"], "i32"),
        **dict.fromkeys(["state_stride", "F_stride", "scaled_stride", "copy_stride"], "i64"),
        **dict.fromkeys(["num_copies"], "i32"),
    },
    "philox_normal": {
        "out_ptr": _STATE, "scaled_ptr": _NETWORK, "row_ptr": "*fp32", "seeds_ptr": "*i64",
        "num": "i32", "state_stride": "i64", "scaled_stride": "i64", "copy_stride": "i64", "num_copies": "i32",
    },
    "guidance_factor": {
        "F_ptr": _NETWORK, "F_u_ptr": _NETWORK, "w_ptr": "*fp32", "phi_ptr": "*fp32", "factor_ptr": "*fp32",
        "num": "i32", "F_stride": "i64",
    },
    "dynamic_threshold": {
        "x_ptr": _STATE, "F_ptr": _NETWORK, "F_u_ptr": _NETWORK,
        "row_ptr": "*fp32", "w_ptr": "*fp32", "factor_ptr": "*fp32", "bound_ptr": "*fp32",
        "num": "i32", "state_stride": "i64", "F_stride": "i64",
    },
    "to_uint8": {
        "x_ptr": _STATE, "out_ptr": "*u8", "num": "i32", "num_pixels": "i32", "num_channels": "i32", "x_stride": "i64",
    },
}  # fmt: skip

# Parameters that an aligned variant may take for multiples of ALIGNMENT. The per-image buffers are read one number at a
# time, and num_copies, num_pixels and num_channels may be anything.
_ALIGNED_SIZES = ("num", "state_stride", "F_stride", "scaled_stride", "copy_stride", "x_stride")


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One compiled form of a kernel.

    Args:
        kernel: name of the kernel.
        state: dtype of the state (of the decoder's output for to_uint8).
        network: dtype of the network's input and output; equal to state where the kernel has none.
        features: compile-time switches of the kernel beside BLOCK, by name.
        aligned: compiled for aligned addresses and sizes.
    """

    kernel: str
    state: Dtype
    network: Dtype
    features: tuple[tuple[str, bool], ...] = ()
    aligned: bool

    @property
    def name(self) -> str:
        """Unique, and fit for a file name."""
        dtypes = self.state if self.kernel == "to_uint8" else f"{self.state}-{self.network}"
        on = [feature.lower() for feature, value in self.features if value]
        return "-".join([self.kernel, dtypes, *on, *([] if self.aligned else ["unaligned"])])

    @property
    def block(self) -> int:
        """Elements per program (per iteration where one program runs a whole image)."""
        return {"guidance_factor": IMAGE_BLOCK, "dynamic_threshold": THRESHOLD_BLOCK, "to_uint8": PIXEL_BLOCK}.get(
            self.kernel, ROW_BLOCK
        )

    @property
    def num_warps(self) -> int:
        return IMAGE_WARPS if self.per_image else ROW_WARPS

    @property
    def max_registers(self) -> int | None:
        """Registers per thread that the assembler may use; None: as it sees fit."""
        return IMAGE_MAX_REGISTERS if self.per_image else None

    @property
    def per_image(self) -> bool:
        """True: grid (B,). False: grid (ceil(N / block), B)."""
        return self.kernel in ("guidance_factor", "dynamic_threshold")

    @property
    def constants(self) -> dict[str, int | bool]:
        """Compile-time arguments."""
        return {**dict(self.features), "BLOCK": self.block}

    def signature(self) -> dict[str, str]:
        """Parameter -> type in Triton's spelling, in the kernel's order, compile-time arguments last."""
        pointers = {_STATE: f"*{self.state}", _NETWORK: f"*{self.network}"}
        runtime = {name: pointers.get(kind, kind) for name, kind in PARAMETERS[self.kernel].items()}
        return {**runtime, **dict.fromkeys(self.constants, "constexpr")}

    def aligned_parameters(self) -> tuple[int, ...]:
        """Indices of the parameters that are taken for multiples of 16 (bytes or elements)."""
        if not self.aligned:
            return ()
        return tuple(
            i
            for i, (name, kind) in enumerate(PARAMETERS[self.kernel].items())
            if kind in (_STATE, _NETWORK, "*u8") or name in _ALIGNED_SIZES
        )


def table_row_features(*, guided: bool, general: bool, noise: bool) -> tuple[tuple[str, bool], ...]:
    return (("GUIDED", guided), ("GENERAL", general), ("NOISE", noise))


def default_variants(pairs: Iterable[tuple[Dtype, Dtype]], pixels: Sequence[Dtype] = ("fp32",)) -> tuple[Variant, ...]:
    """What a runtime needs for some (state, network) pairs of dtypes, and for decoders with output in `pixels`.

    Per pair: initial noise; the fast row without and with noise, the general row, and the general row for unaligned
    sizes; the two per-image reductions; all of it without and with guidance.
    """
    variants = []
    for state, network in pairs:
        plain = Variant(kernel="philox_normal", state=state, network=network, aligned=True)
        variants += [plain, dataclasses.replace(plain, aligned=False)]
        # One program per image reads from anywhere, so these two are not compiled twice.
        variants.append(Variant(kernel="guidance_factor", state=state, network=network, aligned=False))
        for guided in (False, True):
            threshold = Variant(kernel="dynamic_threshold", state=state, network=network, aligned=False)
            variants.append(dataclasses.replace(threshold, features=(("GUIDED", guided),)))
            for general, noise, aligned in (
                (False, False, True),
                (False, True, True),
                (True, True, True),
                (True, True, False),
            ):
                features = table_row_features(guided=guided, general=general, noise=noise)
                variants.append(
                    Variant(kernel="table_row", state=state, network=network, features=features, aligned=aligned)
                )
    for dtype in pixels:
        variants += [Variant(kernel="to_uint8", state=dtype, network=dtype, aligned=a) for a in (True, False)]
    return tuple(dict.fromkeys(variants))


def is_aligned(addresses: Iterable[int], sizes: Iterable[int]) -> bool:
    """Whether an aligned variant may run: addresses in bytes, sizes and strides in elements."""
    return all(value % ALIGNMENT == 0 for value in (*addresses, *sizes))
