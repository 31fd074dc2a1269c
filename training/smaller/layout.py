"""Which channels a network's tensors share: every axis of every tensor named by the group of channels that runs along it.

Removing channel c of a group means to remove it from every axis that names the group (the coupled parameters of Fang et al.
2023, DepGraph, arXiv 2301.12900). Residual streams of one width are one group, because identity shortcuts tie them together;
the channels inside of a residual block, an attention or a two-layer branch are groups of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from distill_rt.core.spec import NetworkSpec
from distill_rt.training.smaller.spec import unet_setting

Axis = tuple[str, ...]
"""Groups along an axis, one after the other (concatenated inputs have two); () is an axis that never shrinks."""

TIME_FEATURES = "time features"
"""The sinusoidal features of the time: not learned, so not selected but resampled."""


@dataclass(kw_only=True)
class Layout:
    """Args: axes: by tensor; blocks: by group, the number of equal runs (norm groups, heads) that it consists of."""

    axes: dict[str, tuple[Axis, ...]] = field(default_factory=dict)
    blocks: dict[str, int] = field(default_factory=dict)

    def matrix(self, name: str, out: Axis, into: Axis) -> None:
        """A linear layer or a convolution with its bias, if it has one."""
        self.axes[f"{name}.weight"], self.axes[f"{name}.bias"] = (out, into), (out,)

    def vector(self, name: str, along: Axis) -> None:
        """A norm's scale and shift."""
        self.axes[f"{name}.weight"] = self.axes[f"{name}.bias"] = (along,)


def layout_of(spec: NetworkSpec, network: nn.Module) -> Layout:
    """The layout of a network of this spec; a transformer's is empty (nothing in it shrinks)."""
    layout = Layout()
    if spec.kind == "unet2d":
        _unet(layout, spec, network.get_submodule("backbone"))
    elif spec.kind == "mlp":
        _mlp(layout, network.get_submodule("backbone"))
    if spec.kind != "dit":
        layout.axes["label.weight"] = ((), ("embedding",))
        for branch in ("guidance", "second_time"):
            layout.matrix(f"{branch}.hidden", (f"{branch} hidden",), ())
            layout.matrix(f"{branch}.out", ("embedding",), (f"{branch} hidden",))
    return layout


def _time_embedding(layout: Layout, features: Axis) -> None:
    layout.matrix("backbone.time_embedding.linear_1", ("time hidden",), features)
    layout.matrix("backbone.time_embedding.linear_2", ("embedding",), ("time hidden",))


def _mlp(layout: Layout, backbone: nn.Module) -> None:
    _time_embedding(layout, ())
    layout.matrix("backbone.point", ("stream",), ())
    for name, _ in backbone.get_submodule("blocks").named_children():
        block = inner = f"backbone.blocks.{name}"
        layout.matrix(f"{block}.first", (inner,), ("stream",))
        layout.matrix(f"{block}.condition", (inner, inner), ("embedding",))  # shift and scale
        layout.matrix(f"{block}.second", ("stream",), (inner,))
    layout.matrix("backbone.out", (), ("stream",))


def stream(width: int) -> str:
    """The group of a UNet's residual streams of one width."""
    return f"stream {width}"


def _unet(layout: Layout, spec: NetworkSpec, backbone: nn.Module) -> None:
    channels, groups = unet_setting(spec, "block_out_channels"), unet_setting(spec, "norm_num_groups")
    layout.blocks |= {stream(width): groups for width in channels}
    streams: list[Axis] = [(stream(width),) for width in channels]
    _time_embedding(layout, (TIME_FEATURES,))
    layout.matrix("backbone.conv_in", streams[0], ())
    layout.vector("backbone.conv_norm_out", streams[0])
    layout.matrix("backbone.conv_out", (), streams[0])
    for i, here in enumerate(streams):
        name = f"down_blocks.{i}"
        inputs = [streams[max(i - 1, 0)] if j == 0 else here for j in range(_count(backbone, name, "resnets"))]
        _stage(layout, backbone, name, groups, inputs, here)
        layout.matrix(f"backbone.{name}.downsamplers.0.conv", here, here)
    if backbone.mid_block is not None:
        _stage(
            layout, backbone, "mid_block", groups, [streams[-1]] * _count(backbone, "mid_block", "resnets"), streams[-1]
        )
    for i, inputs in enumerate(_up_inputs(channels, _count(backbone, "up_blocks.0", "resnets"))):
        here = streams[-1 - i]
        _stage(layout, backbone, f"up_blocks.{i}", groups, inputs, here)
        layout.matrix(f"backbone.up_blocks.{i}.upsamplers.0.conv", here, here)


def _up_inputs(channels: list[int], num_resnets: int) -> Iterator[list[Axis]]:
    """For every up stage, what its residual blocks read: the state, then the skip connection."""
    up = [*reversed(channels), channels[0]]
    for i in range(len(channels)):
        hidden = [up[max(i - 1, 0)]] + [up[i]] * (num_resnets - 1)
        skip = [up[i]] * (num_resnets - 1) + [up[i + 1]]
        yield [(stream(h), stream(s)) for h, s in zip(hidden, skip, strict=True)]


def _stage(layout: Layout, backbone: nn.Module, name: str, groups: int, inputs: list[Axis], here: Axis) -> None:
    for j, into in enumerate(inputs):
        resnet = inner = f"backbone.{name}.resnets.{j}"  # the group within a block has the block's name
        layout.blocks[inner] = groups
        layout.vector(f"{resnet}.norm1", into)
        layout.matrix(f"{resnet}.conv1", (inner,), into)
        module: Any = backbone.get_submodule(f"{name}.resnets.{j}")
        scale_and_shift = module.time_emb_proj.out_features == 2 * module.conv1.out_channels
        layout.matrix(f"{resnet}.time_emb_proj", (inner, inner) if scale_and_shift else (inner,), ("embedding",))
        layout.vector(f"{resnet}.norm2", (inner,))
        layout.matrix(f"{resnet}.conv2", here, (inner,))
        layout.matrix(f"{resnet}.conv_shortcut", here, into)
    for j in range(_count(backbone, name, "attentions")):
        attention = inner = f"backbone.{name}.attentions.{j}"
        module = backbone.get_submodule(f"{name}.attentions.{j}")
        layout.blocks[inner] = module.heads
        layout.vector(f"{attention}.group_norm", here)
        for projection in ("to_q", "to_k", "to_v"):
            layout.matrix(f"{attention}.{projection}", (inner,), here)
        layout.matrix(f"{attention}.to_out.0", here, (inner,))


def _count(backbone: nn.Module, stage: str, kind: str) -> int:
    children = dict(backbone.get_submodule(stage).named_children())
    return len(list(children[kind].children())) if kind in children else 0
