"""A device that is not there: tensors in host memory that know that they are on a GPU, and refuse to meet others.

Under `imaginary_cuda()` whatever is moved to ``cuda`` becomes a `Far` tensor. As on a GPU, an operation that takes a far tensor
and a near one of any dimension fails, and so does NumPy's view of a far one. The arithmetic is the processor's own, so a
run there must end with the bits of a run here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

CUDA = torch.device("cuda", 0)


class Far(torch.Tensor):
    """A tensor on the imaginary device."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        return torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied


def far(value: torch.Tensor) -> torch.Tensor:
    return value if isinstance(value, Far) else value.as_subclass(Far)


class _Imagined(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return CUDA if isinstance(args[0], Far) else func(*args)
        if func == torch.Tensor.grad.__get__:
            grad = func(*args)
            return far(grad) if grad is not None and isinstance(args[0], Far) else grad
        if func == torch.Tensor.is_cuda.__get__:
            return isinstance(args[0], Far)
        if func == torch.Tensor.is_cpu.__get__:
            return not isinstance(args[0], Far)
        if func is torch.Tensor.numpy and isinstance(args[0], Far):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        if func is torch.Tensor.to:
            return _moved(args, kwargs)
        if func is torch._has_compatible_shallow_copy_type:  # no: a module that is moved gets new parameters
            return isinstance(args[0], Far) == isinstance(args[1], Far)
        wanted = kwargs.get("device")
        if wanted is not None and torch.device(wanted).type == "cuda":
            return pytree.tree_map_only(torch.Tensor, far, func(*args, **kwargs | {"device": "cpu"}))
        if func not in _MAY_MIX:
            _refuse_mixture(func, (args, kwargs))
        return func(*args, **kwargs)


_MAY_MIX = {torch.Tensor.copy_, torch.Tensor.data.__set__, torch.Tensor.grad.__set__, torch.Tensor.as_subclass}


def _moved(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    value, *rest = args
    given = [*rest, *kwargs.values()]
    targets = [
        a.device if isinstance(a, torch.Tensor) else a
        for a in given
        if isinstance(a, torch.device | str | torch.Tensor)
    ]
    dtypes = [a for a in given if isinstance(a, torch.dtype)]
    moved = torch.Tensor.type(value, dtypes[0]) if dtypes else value
    if not targets:
        return moved
    return far(moved) if torch.device(targets[0]).type == "cuda" else moved.as_subclass(torch.Tensor)


def _refuse_mixture(func: Any, arguments: Any) -> None:
    tensors = [t for t in pytree.tree_leaves(arguments) if isinstance(t, torch.Tensor) and t.dim() > 0]
    if len({isinstance(t, Far) for t in tensors}) > 1:
        raise RuntimeError(f"{getattr(func, '__name__', func)}: expected all tensors on one device, got cuda:0 and cpu")


@contextlib.contextmanager
def imaginary_cuda() -> Iterator[torch.device]:
    with _Imagined():
        yield CUDA
