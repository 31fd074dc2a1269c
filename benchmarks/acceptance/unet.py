"""A small UNet twice over: as torch modules, and written node by node as an ONNX graph with the same weights (opset 21).

What latent diffusion networks have: residual blocks with group norm, SiLU and a time vector, attention, skips, down- and
upsampling, a label. Inputs ``sample`` (B, C, H, W), ``time`` (B,), ``label`` (B,) int64; output ``prediction``. No exporter is
needed, and the gate of every engine that is built from the graph compares the two.

Legend: B evaluations, C channels, D width of the vector of time and label.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

GROUPS = 8
HEAD_WIDTH = 32
SKIP = -0.5
"""Part of the sample in the prediction. A trained network says mostly what the sample says; fresh weights say anything, and
guidance multiplies their rounding errors until no half precision passes the gate."""


class Graph:
    """An ONNX graph under construction; values are names."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self.parameters: list[str] = []

    def add(self, op: str, inputs: list[str], **attributes: Any) -> str:
        from onnx import helper

        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"{op}_{len(self.nodes)}", **attributes))
        return name

    def constant(self, name: str, values: Any) -> str:
        from onnx import numpy_helper

        self.initializers.setdefault(name, numpy_helper.from_array(values, name))
        return name

    def weight(self, name: str, parameter: torch.Tensor) -> str:
        self.parameters.append(name)
        return self.constant(name, parameter.detach().float().cpu().numpy())

    def integers(self, *values: int) -> str:
        import numpy as np

        return self.constant(f"int64_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def silu(self, x: str) -> str:
        return self.add("Mul", [x, self.add("Sigmoid", [x])])

    def conv(self, x: str, name: str, module: Any) -> str:
        pad, stride = module.padding[0], module.stride
        assert module.bias is not None
        weights = [self.weight(f"{name}.weight", module.weight), self.weight(f"{name}.bias", module.bias)]
        return self.add("Conv", [x, *weights], pads=[int(pad)] * 4, strides=list(stride))

    def linear(self, x: str, name: str, module: nn.Linear) -> str:
        weights = [self.weight(f"{name}.weight", module.weight), self.weight(f"{name}.bias", module.bias)]
        return self.add("Gemm", [x, *weights], transB=1)

    def norm(self, x: str, name: str, module: nn.GroupNorm) -> str:
        weights = [self.weight(f"{name}.weight", module.weight), self.weight(f"{name}.bias", module.bias)]
        return self.add("GroupNormalization", [x, *weights], num_groups=GROUPS, epsilon=module.eps)


class Residual(nn.Module):
    def __init__(self, channels_in: int, channels: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.vector = nn.Linear(width, channels)
        self.norm2 = nn.GroupNorm(GROUPS, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else None

    def forward(self, x: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        h = h + self.vector(vector)[:, :, None, None]
        h = self.conv2(functional.silu(self.norm2(h)))
        return (x if self.skip is None else self.skip(x)) + h  # type: ignore[no-any-return]

    def emit(self, g: Graph, name: str, x: str, vector: str) -> str:
        h = g.conv(g.silu(g.norm(x, f"{name}.norm1", self.norm1)), f"{name}.conv1", self.conv1)
        v = g.add("Unsqueeze", [g.linear(vector, f"{name}.vector", self.vector), g.integers(2, 3)])
        h = g.silu(g.norm(g.add("Add", [h, v]), f"{name}.norm2", self.norm2))
        h = g.conv(h, f"{name}.conv2", self.conv2)
        return g.add("Add", [x if self.skip is None else g.conv(x, f"{name}.skip", self.skip), h])


class Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // HEAD_WIDTH)
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.q, self.k, self.v, self.out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        q, k, v = (
            layer(h).unflatten(1, (self.heads, -1)).flatten(3).transpose(2, 3) for layer in (self.q, self.k, self.v)
        )
        h = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.transpose(2, 3).reshape(x.shape))  # type: ignore[no-any-return]

    def emit(self, g: Graph, name: str, x: str, size: int) -> str:
        import numpy as np

        channels = self.norm.num_channels
        width = channels // self.heads
        h = g.norm(x, f"{name}.norm", self.norm)
        split = g.integers(0, self.heads, width, size * size)
        q, k, v = (g.add("Reshape", [g.conv(h, f"{name}.{key}", getattr(self, key)), split]) for key in ("q", "k", "v"))
        # Both factors are scaled, as torch's exporter writes it, so that half precision does not overflow.
        root = g.constant(f"{name}.scale", np.array(width**-0.25, np.float32))
        q = g.add("Mul", [g.add("Transpose", [q], perm=[0, 1, 3, 2]), root])
        weights = g.add("Softmax", [g.add("MatMul", [q, g.add("Mul", [k, root])])], axis=-1)
        h = g.add("MatMul", [weights, g.add("Transpose", [v], perm=[0, 1, 3, 2])])
        h = g.add("Reshape", [g.add("Transpose", [h], perm=[0, 1, 3, 2]), g.integers(0, channels, size, size)])
        return g.add("Add", [x, g.conv(h, f"{name}.out", self.out)])


class SmallUNet(nn.Module):
    """Fresh weights from torch's generator.

    Args:
        channels: per level, each half the size of the one before; attention on the last.
        num_labels: the null label included.
    """

    def __init__(self, sample_shape: tuple[int, int, int], channels: tuple[int, ...], num_labels: int) -> None:
        super().__init__()
        self.sample_shape, first, width = sample_shape, channels[0], 4 * channels[0]
        # As words, because `module.half()` would round numbers; `forward` sees float32 again.
        self.frequency_bits: torch.Tensor
        self.register_buffer("frequency_bits", torch.from_numpy(frequencies(first)).view(torch.int32), persistent=False)
        self.time1, self.time2 = nn.Linear(first, width), nn.Linear(width, width)
        self.label = nn.Embedding(num_labels, width)
        self.conv_in = nn.Conv2d(sample_shape[0], first, 3, padding=1)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        before = first
        for i, now in enumerate(channels):
            self.down.append(Residual(before, now, width))
            if i + 1 < len(channels):
                self.shrink.append(nn.Conv2d(now, now, 3, stride=2, padding=1))
            before = now
        self.down_attention = Attention(before)
        self.middle1, self.attention = Residual(before, before, width), Attention(before)
        self.middle2 = Residual(before, before, width)
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for i, now in reversed(list(enumerate(channels))):
            self.up.append(Residual(before + now, now, width))
            if i:
                self.grow.append(nn.Conv2d(now, now, 3, padding=1))
            before = now
        self.norm_out = nn.GroupNorm(GROUPS, first)
        self.conv_out = nn.Conv2d(first, sample_shape[0], 3, padding=1)

    def forward(self, sample: torch.Tensor, time: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        angle = time[:, None].float() * self.frequency_bits.view(torch.float32)
        features = torch.cat([angle.sin(), angle.cos()], 1).to(sample.dtype)
        vector = functional.silu(self.time2(functional.silu(self.time1(features))) + self.label(label))
        h, kept = self.conv_in(sample), []
        for i, block in enumerate(self.down):
            h = block(h, vector)
            if i + 1 < len(self.down):
                kept.append(h)
                h = self.shrink[i](h)
        h = self.down_attention(h)
        kept.append(h)
        h = self.middle2(self.attention(self.middle1(h, vector)), vector)
        for i, block in enumerate(self.up):
            h = block(torch.cat([h, kept.pop()], 1), vector)
            if i + 1 < len(self.up):
                h = self.grow[i](functional.interpolate(h, scale_factor=2.0, mode="nearest"))
        return SKIP * sample + self.conv_out(functional.silu(self.norm_out(h)))  # type: ignore[no-any-return]


def frequencies(width: int) -> Any:
    """Of the sinusoidal embedding (Vaswani et al. 2017, section 3.5), float32 (width / 2,)."""
    import numpy as np

    return np.exp(-math.log(10000) * np.arange(width // 2) / (width // 2)).astype(np.float32)


def emit(network: SmallUNet) -> Graph:
    """The whole network as nodes; the last one makes ``prediction``."""
    import numpy as np

    g = Graph()
    size = network.sample_shape[1]
    column = g.add("Unsqueeze", ["time", g.integers(1)])
    angle = g.add("Mul", [column, g.constant("frequencies", frequencies(network.conv_in.out_channels)[None])])
    features = g.add("Concat", [g.add("Sin", [angle]), g.add("Cos", [angle])], axis=1)
    vector = g.linear(g.silu(g.linear(features, "time1", network.time1)), "time2", network.time2)
    label = g.add("Gather", [g.weight("label.weight", network.label.weight), "label"])
    vector = g.silu(g.add("Add", [vector, label]))
    h, kept = g.conv("sample", "conv_in", network.conv_in), []
    for i, block in enumerate(network.down):
        h = block.emit(g, f"down.{i}", h, vector)
        if i + 1 < len(network.down):
            kept.append(h)
            h = g.conv(h, f"shrink.{i}", network.shrink[i])
            size //= 2
    h = network.down_attention.emit(g, "down_attention", h, size)
    kept.append(h)
    h = network.middle1.emit(g, "middle1", h, vector)
    h = network.middle2.emit(g, "middle2", network.attention.emit(g, "attention", h, size), vector)
    for i, block in enumerate(network.up):
        h = block.emit(g, f"up.{i}", g.add("Concat", [h, kept.pop()], axis=1), vector)
        if i + 1 < len(network.up):
            scales = g.constant("scales", np.array([1, 1, 2, 2], np.float32))
            h = g.add("Resize", [h, "", scales], mode="nearest", coordinate_transformation_mode="asymmetric",
                      nearest_mode="floor")  # fmt: skip
            h = g.conv(h, f"grow.{i}", network.grow[i])
    h = g.conv(g.silu(g.norm(h, "norm_out", network.norm_out)), "conv_out", network.conv_out)
    skip = g.add("Mul", ["sample", g.constant("skip", np.array(SKIP, np.float32))])
    g.add("Add", [skip, h])
    g.nodes[-1].output[0] = "prediction"
    return g
