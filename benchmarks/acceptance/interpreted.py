"""A kernel pack's launches in Triton's interpreter: what a dry run of `acceptance.bits` checks of its arguments.

The real pack holds machine code. Here the variants alone are listed, and a launch runs the kernel's source on the addresses and
integers that the code would have got, so that a wrong order, size or stride shows without a GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from distill_rt.kernels.pack import KernelPack
from distill_rt.kernels.triton.variants import PARAMETERS, Variant


class ListedPack:
    """What `acceptance.bits` uses of a `KernelPack`, without images."""

    def __init__(self, variants: Sequence[Variant]) -> None:
        self._variants = {variant.name: variant for variant in variants}
        kernels = {
            name: SimpleNamespace(
                kernel=v.kernel, state=v.state, network=v.network, features=dict(v.features), aligned=v.aligned,
                grid=lambda num_images, num, v=v: (num_images, 1, 1) if v.per_image else (-(-num // v.block), num_images, 1),
            )
            for name, v in self._variants.items()
        }  # fmt: skip
        self.body = SimpleNamespace(kernels=kernels)
        self.directory = "the list of variants"

    def find(
        self, kernel: str, *, state: str, network: str, features: Mapping[str, bool] | None = None, aligned: bool = True
    ) -> str:
        pack: Any = self
        return KernelPack.find(pack, kernel, state=state, network=network, features=features, aligned=aligned)

    def _has_aligned(self, packed: Any) -> bool:
        pack: Any = self
        return KernelPack._has_aligned(pack, packed)

    def launch(self, name: str, grid: tuple[int, int, int], args: list[int]) -> None:
        """Run the kernel's source; the interpreter computes with raw addresses, so one element stands for a buffer."""
        from distill_rt.kernels.triton.compile import KERNELS

        variant = self._variants[name]
        types = variant.signature()
        declared = list(PARAMETERS[variant.kernel])
        assert len(args) == len(declared), (name, args)
        values = [
            _at(value, types[parameter]) if types[parameter].startswith("*") else value
            for parameter, value in zip(declared, args, strict=True)
        ]
        KERNELS[variant.kernel][grid](*values, **variant.constants, num_warps=variant.num_warps)


def _at(address: int, kind: str) -> Any:
    """A tensor of one element at an address, of Triton's type "*fp16"."""
    import torch

    dtypes = {
        "*fp32": torch.float32, "*fp16": torch.float16, "*bf16": torch.bfloat16, "*i64": torch.int64, "*u8": torch.uint8,
    }  # fmt: skip
    dtype = dtypes[kind]
    return torch.frombuffer((ctypes.c_uint8 * dtype.itemsize).from_address(address), dtype=dtype)
