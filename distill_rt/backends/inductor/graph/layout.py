"""ONNX operators that move elements: name -> torch."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from distill_rt.backends.inductor.graph.node import Call, Operator


def _concat(call: Call) -> Tensor:
    return torch.cat([call[index] for index in range(len(call))], dim=call.node.attribute("axis"))


def _expand(call: Call) -> Tensor:
    shape = call.node.integers(call.value(1), "shape")
    return call[0].expand(torch.broadcast_shapes(call[0].shape, shape))


def _flatten(call: Call) -> Tensor:
    axis = call.node.attribute("axis", 1) % (call[0].ndim + 1)
    return call[0].reshape(math.prod(call[0].shape[:axis]), -1)


def _gather(call: Call) -> Tensor:
    """Indexing, not `embedding`: it takes negative indices and any axis, and compiles to the same kernel."""
    data, axis, indices = call[0], call.node.attribute("axis", 0), call.value(1)
    axis %= data.ndim
    if not isinstance(indices, Tensor) and indices is not None and indices.ndim == 0:
        return data.select(axis, int(indices))
    return data[(slice(None),) * axis + (call[1],)]


def _gather_elements(call: Call) -> Tensor:
    axis = call.node.attribute("axis", 0)
    size = call[0].shape[axis]
    return torch.gather(call[0], axis, torch.where(call[1] < 0, call[1] + size, call[1]))


def _pad(call: Call) -> Tensor:
    x, mode = call[0], call.node.attribute("mode", "constant")
    pads = call.node.integers(call.value(1), "padding")
    axes = list(range(x.ndim)) if call.value(3) is None else call.node.integers(call.value(3), "axes")
    before_after = {axis % x.ndim: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    backwards = [before_after.get(axis, (0, 0)) for axis in reversed(range(x.ndim))]  # torch begins with the last axis
    while backwards and backwards[-1] == (0, 0):
        backwards.pop()
    amounts = [amount for pair in backwards for amount in pair]
    if mode == "constant":
        value = 0.0 if call.value(2) is None else call.node.known(call.value(2), "value").item()
        return functional.pad(x, amounts, value=value)
    if mode not in ("reflect", "edge") or len(backwards) > x.ndim - 2:
        raise call.node.unsupported(f"mode {mode} over {len(backwards)} axes")
    amounts += [0, 0] * (x.ndim - 2 - len(backwards))
    return functional.pad(x, amounts, mode="replicate" if mode == "edge" else mode)


def _reshape(call: Call) -> Tensor:
    shape = call.node.integers(call.value(1), "shape")
    if not call.node.attribute("allowzero", 0):  # then 0 copies a size
        shape = [call[0].shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    return call[0].reshape(shape)


def _slice(call: Call) -> Tensor:
    x, node = call[0], call.node
    starts, ends = node.integers(call.value(1), "starts"), node.integers(call.value(2), "ends")
    axes = list(range(len(starts))) if call.value(3) is None else node.integers(call.value(3), "axes")
    steps = [1] * len(starts) if call.value(4) is None else node.integers(call.value(4), "steps")
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = x.shape[axis]
        taken = range(*slice(start, end, step).indices(size))
        if step > 0:
            if len(taken) != size:
                x = x[(slice(None),) * (axis % x.ndim) + (slice(taken.start, taken.stop, step),)]
        else:  # torch takes no negative steps
            ascending = taken[::-1]
            stop = ascending[-1] + 1 if ascending else 0
            first = ascending[0] if ascending else 0
            x = x[(slice(None),) * (axis % x.ndim) + (slice(first, stop, -step),)].flip(axis)
    return x


def _split(call: Call) -> tuple[Tensor, ...]:
    x, axis, num_outputs = call[0], call.node.attribute("axis", 0), len(call.node.outputs)
    if call.value(1) is not None:
        return torch.split(x, call.node.integers(call.value(1), "sizes"), dim=axis)
    size = x.shape[axis]
    chunk = math.ceil(size / num_outputs)
    return torch.split(x, [*[chunk] * (num_outputs - 1), size - chunk * (num_outputs - 1)], dim=axis)


def _squeeze(call: Call) -> Tensor:
    if call.value(1) is None:
        return call[0].squeeze()
    return call[0].squeeze(tuple(call.node.integers(call.value(1), "axes")))


def _tile(call: Call) -> Tensor:
    return call[0].repeat(call.node.integers(call.value(1), "repeats"))


def _transpose(call: Call) -> Tensor:
    return call[0].permute(call.node.attribute("perm") or list(reversed(range(call[0].ndim))))


def _trilu(call: Call) -> Tensor:
    diagonal = 0 if call.value(1) is None else call.node.integers(call.value(1), "diagonal")[0]
    return (torch.triu if call.node.attribute("upper", 1) else torch.tril)(call[0], diagonal)


def _unsqueeze(call: Call) -> Tensor:
    x, axes = call[0], call.node.integers(call.value(1), "axes")
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _depth_to_space(call: Call) -> Tensor:
    x, block = call[0], call.node.attribute("blocksize")
    if call.node.attribute("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, block)
    num, depth, height, width = x.shape
    x = x.reshape(num, block, block, depth // block**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(num, depth // block**2, height * block, width * block)


LAYOUT: Mapping[str, Operator] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
