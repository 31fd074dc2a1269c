"""Networks for real TensorRT-RTX builds: the digits student with fresh weights, and a small UNet that reads text."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill_rt.core.artifacts import Component
from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.spec import TensorSpec
from distill_rt.export import export_student, onnx_graph
from distill_rt.export.model_file import save_model
from distill_rt.models import build_network, save_student
from distill_rt.training.recipes.digits import digits_teacher

TEXT_INPUTS = (
    TensorSpec(name="sample", dtype="float32", shape=("B", 4, "H", "W")),
    TensorSpec(name="time", dtype="float32", shape=("B",)),
    TensorSpec(name="text", dtype="float32", shape=("B", 7, 24)),
)
TEXT_OUTPUTS = (TensorSpec(name="prediction", dtype="float32", shape=("B", 4, "H", "W")),)


def digits_bundle(directory: Path) -> Path:
    """`digits_student` as a bundle."""
    return export_student(digits_student(directory), directory / "digits.bundle")


def digits_student(directory: Path) -> Path:
    """The network of the digits recipe with fresh weights; guidance by two evaluations."""
    torch.manual_seed(0)
    recipe = digits_teacher().spec
    plans = {n: ddim(recipe.process, recipe.parameterization, [1.0 - i / n for i in range(n)]) for n in (2, 4)}
    spec = dataclasses.replace(recipe, plans=plans, default_steps=4)
    network = _without_zeros(build_network(spec.networks[0]))
    save_student(directory / "digits", spec, [network])
    return directory / "digits"


class TextUNet(nn.Module):
    """diffusers' `UNet2DConditionModel`: self and cross attention, head size 16, sizes free."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel

        self.net = UNet2DConditionModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=24,
            attention_head_dim=2,
            norm_num_groups=4,
        )

    def forward(self, sample: Tensor, time: Tensor, text: Tensor) -> Tensor:
        prediction: Tensor = self.net(sample, time, encoder_hidden_states=text, return_dict=False)[0]
        return prediction


def text_unet(directory: Path) -> tuple[Path, Component]:
    """The graph of `TextUNet` with free batch and size, cleaned as every export is."""
    torch.manual_seed(0)
    network = _without_zeros(TextUNet()).eval()
    free: Any = torch.export.Dim.DYNAMIC
    with onnx_graph._quiet():
        program = torch.onnx.export(
            network,
            (torch.randn(3, 4, 16, 24), torch.randn(3), torch.randn(3, 7, 24)),
            dynamo=True,
            opset_version=onnx_graph.OPSET,
            input_names=[tensor.name for tensor in TEXT_INPUTS],
            output_names=["prediction"],
            dynamic_shapes=({0: free, 2: free, 3: free}, {0: free}, {0: free}),
            optimize=False,
            verbose=False,
        )
    assert program is not None
    weights = [name for name, _ in [*network.named_parameters(), *network.named_buffers()]]
    onnx_graph._clean(program.model, set(weights))
    path = directory / "text_unet.onnx"
    save_model(program.model, path)
    component = Component(
        file=path.name,
        inputs=TEXT_INPUTS,
        outputs=TEXT_OUTPUTS,
        opset=onnx_graph.OPSET,
        initializers={name: name for name in weights if name in program.model.graph.initializers},
    )
    return path, component


def _without_zeros(network: nn.Module) -> nn.Module:
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return network
