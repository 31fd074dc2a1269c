"""What goes into and comes out of a graph: name, dtype and shape of a tensor, as JSON."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Any, Literal

Dtype = Literal["float32", "float16", "bfloat16", "int64", "uint8"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """Name, dtype and dimensions of one tensor; the symbol ``"B"`` is the number of images."""

    name: str
    dtype: Dtype
    shape: tuple[int | str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TensorSpec:
        if set(data) != {"name", "dtype", "shape"}:
            raise ValueError(f"a tensor has name, dtype and shape, got {sorted(data)}")
        name, dtype, shape = data["name"], data["dtype"], data["shape"]
        if not isinstance(name, str) or dtype not in typing.get_args(Dtype):
            raise ValueError(
                f"a tensor has a name and one of the types {', '.join(typing.get_args(Dtype))}, got {data}"
            )
        if not isinstance(shape, list) or not all(type(dim) is int or isinstance(dim, str) for dim in shape):
            raise ValueError(f"the shape of tensor {name!r} must be integers and symbols, got {shape!r}")
        return cls(name=name, dtype=dtype, shape=tuple(shape))

    def concrete(self, num_images: int) -> tuple[int, ...]:
        """The shape for a number of images."""
        return tuple(num_images if dim == "B" else int(dim) for dim in self.shape)
