"""Whole graphs of our exporter as torch modules: the same answers as ONNX Runtime, attention and linear layers recognised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper
from tensorrt_networks import _without_zeros
from tiny_networks import make_contract, make_network
from torch import nn

from distill_rt.backends.inductor.graph.from_onnx import from_onnx
from distill_rt.backends.inductor.graph.patterns import ATTENTION, LINEAR, recognise
from distill_rt.backends.inductor.graph.read import read_graph
from distill_rt.core.artifacts import Component, Precision
from distill_rt.core.spec import TensorSpec
from distill_rt.export import onnx_graph
from distill_rt.export.precision import typed_graph

Array = NDArray[Any]

FLOAT, INT = "float32", "int64"


class Call(nn.Module):
    """A network of diffusers or transformers, as a function of tensors alone."""

    def __init__(self, net: nn.Module, call: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.net = net
        self._call = call

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self._call(self.net, *inputs)


def unet_with_attention() -> tuple[nn.Module, list[tuple[str, tuple[int, ...]]]]:
    from diffusers import UNet2DModel

    net = UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        resnet_time_scale_shift="scale_shift",
    )
    return Call(net, lambda net, x, t: net(x, t).sample), [(FLOAT, (2, 8, 8)), (FLOAT, ())]


def text_unet() -> tuple[nn.Module, list[tuple[str, tuple[int, ...]]]]:
    from diffusers import UNet2DConditionModel

    net = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=2,
        norm_num_groups=4,
        time_cond_proj_dim=8,
    )

    def call(net: nn.Module, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = net(x, t, encoder_hidden_states=text, timestep_cond=w, return_dict=False)[0]
        return out

    return Call(net, call), [(FLOAT, (4, 8, 8)), (FLOAT, ()), (FLOAT, (7, 24)), (FLOAT, (8,))]


def clip_text() -> tuple[nn.Module, list[tuple[str, tuple[int, ...]]]]:
    transformers = pytest.importorskip("transformers")

    config = transformers.CLIPTextConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=98,
        eos_token_id=99,
    )
    return Call(transformers.CLIPTextModel(config), lambda net, tokens: net(tokens).last_hidden_state), [(INT, (12,))]


def tiny_decoder() -> tuple[nn.Module, list[tuple[str, tuple[int, ...]]]]:
    from diffusers import AutoencoderTiny

    net = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    return Call(net, lambda net, z: net.decode(z / 0.18 + 0.1).sample), [(FLOAT, (4, 4, 4))]


def kl_decoder() -> tuple[nn.Module, list[tuple[str, tuple[int, ...]]]]:
    from diffusers import AutoencoderKL

    net = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
    )
    return Call(net, lambda net, z: net.decode(z / 0.18).sample), [(FLOAT, (4, 4, 4))]


# (network, attentions)
NETWORKS = {"unet": 4, "text-unet": 8, "clip": 2, "tiny-decoder": 0, "kl-decoder": 1, "unet2d": 1, "dit": 1, "mlp": 0}
BUILDERS = {
    "unet": unet_with_attention,
    "text-unet": text_unet,
    "clip": clip_text,
    "tiny-decoder": tiny_decoder,
    "kl-decoder": kl_decoder,
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Component]]:
    done: dict[str, tuple[Path, Component]] = {}

    def export(name: str) -> tuple[Path, Component]:
        if name not in done:
            done[name] = _export(name, tmp_path_factory.mktemp(name))
        return done[name]

    return export


def _export(name: str, directory: Path) -> tuple[Path, Component]:
    if name not in BUILDERS:  # the kinds of a contract, with every input that they can have
        spec = make_contract(name, guidance=True, second_time=True)
        component = onnx_graph.export_component(
            make_network(spec), *spec.components()["network0"], directory, "network.onnx"
        )
        return directory / "network.onnx", component
    torch.manual_seed(0)
    network, shapes = BUILDERS[name]()
    network = _without_zeros(network).eval()
    inputs = tuple(
        TensorSpec(name=f"x{i}", dtype=dtype, shape=("B", *shape))  # type: ignore[arg-type]
        for i, (dtype, shape) in enumerate(shapes)
    )
    example = onnx_graph.example_inputs(inputs, 3)
    y = onnx_graph.evaluate(network, inputs, example)
    outputs = (TensorSpec(name="y", dtype="float32", shape=("B", *y.shape[1:])),)
    return directory / "network.onnx", onnx_graph.export_component(network, inputs, outputs, directory, "network.onnx")


def inputs_for(component: Component, batch: int) -> dict[str, Array]:
    rng = np.random.default_rng(batch)
    return {
        tensor.name: rng.integers(0, 10, tensor.concrete(batch))
        if tensor.dtype == "int64"
        else rng.standard_normal(tensor.concrete(batch)).astype(np.float32)
        for tensor in component.inputs
    }


def reference(path: Path, inputs: dict[str, Array]) -> Array:
    (want,) = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, inputs)
    answer: Array = want
    return answer


def answer(path: Path, component: Component, inputs: dict[str, Array], batch: int) -> Array:
    module, _ = from_onnx(path, component, batch, torch.device("cpu"))
    with torch.no_grad():
        (got,) = module(*(torch.from_numpy(inputs[tensor.name]) for tensor in component.inputs))
    result: Array = got.numpy()
    return result


def relative(got: Array, want: Array) -> float:
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_what_onnxruntime_computes(name: str, exported: Callable[[str], tuple[Path, Component]]) -> None:
    path, component = exported(name)
    for batch in (1, 2):
        inputs = inputs_for(component, batch)
        assert relative(answer(path, component, inputs, batch), reference(path, inputs)) < 5e-6


@pytest.mark.parametrize("name", ["unet", "text-unet", "clip", "dit"])
@pytest.mark.parametrize(("precision", "bar"), [("bf16", 5e-2), ("fp16", 8e-3)])
def test_typed_graphs(
    name: str, precision: Precision, bar: float, exported: Callable[[str], tuple[Path, Component]], tmp_path: Path
) -> None:
    path, component = exported(name)
    inputs = inputs_for(component, 2)
    typed = typed_graph(path, component, precision, tmp_path / "typed.onnx")
    assert 0 < relative(answer(typed, component, inputs, 2), reference(path, inputs)) < bar


@pytest.mark.parametrize(("name", "attentions"), NETWORKS.items())
def test_attention_is_one_call(name: str, attentions: int, exported: Callable[[str], tuple[Path, Component]]) -> None:
    path, component = exported(name)
    counts = Counter(node.operator for node in recognise(read_graph(path)).nodes)
    assert (counts[ATTENTION], counts["Softmax"]) == (attentions, 0)
    module, example = from_onnx(path, component, 2, torch.device("cpu"))
    calls = Counter(
        node.target for node in torch.export.export(module, example).graph.nodes if node.op == "call_function"
    )
    assert calls[torch.ops.aten.scaled_dot_product_attention.default] == attentions
    assert calls[torch.ops.aten.softmax.int] == 0


def test_k_is_not_transposed_twice(exported: Callable[[str], tuple[Path, Component]]) -> None:
    """The exporter transposes K for its product; attention takes it as it was, so no kernel copies it."""
    path, component = exported("text-unet")
    module, example = from_onnx(path, component, 2, torch.device("cpu"))
    graph = torch.export.export(module, example).graph
    graph.eliminate_dead_code()
    attentions = [n for n in graph.nodes if n.target is torch.ops.aten.scaled_dot_product_attention.default]
    for node in attentions:
        _, k, _, *_ = node.args
        # (B, S, H, D) -> (B, H, S, D), straight from the projection
        assert k.target is torch.ops.aten.permute.default
        assert list(k.args[1]) == [0, 2, 1, 3]


def test_biases_join_their_products(exported: Callable[[str], tuple[Path, Component]]) -> None:
    counts = Counter(node.operator for node in recognise(read_graph(exported("clip")[0])).nodes)
    assert counts[LINEAR] == 12
    assert counts["MatMul"] == 0


def test_weights_keep_their_names(exported: Callable[[str], tuple[Path, Component]]) -> None:
    path, component = exported("unet2d")
    module, _ = from_onnx(path, component, 1, torch.device("cpu"))
    state = {name.removeprefix("weights."): value for name, value in module.state_dict().items()}
    graph = onnx.load(str(path)).graph
    weights = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    for name in component.initializers.values():
        assert np.array_equal(state[name].numpy(), weights[name]), name


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("axis", [-1, -2])
def test_handwritten_attention(rank: int, mask: bool, axis: int, tmp_path: Path) -> None:
    """Scaled after the product, three or four dimensions, a mask; softmax over queries is not attention, and computed so."""
    lead = (2, 3)[: rank - 2]
    shapes = {"q": (*lead, 5, 4), "k": (*lead, 6, 4), "v": (*lead, 6, 8), "mask": (5, 6)}
    perm = [*range(rank - 2), rank - 1, rank - 2]
    scores = "masked" if mask else "scaled"
    nodes = [
        helper.make_node("Transpose", ["k"], ["kt"], perm=perm),
        helper.make_node("MatMul", ["q", "kt"], ["product"]),
        helper.make_node("Div", ["product", "two"], ["scaled"]),
        *([helper.make_node("Add", ["mask", "scaled"], ["masked"])] if mask else []),
        helper.make_node("Softmax", [scores], ["weights"], axis=axis),
        helper.make_node("MatMul", ["weights", "v"], ["y"]),
    ]
    names = ["q", "k", "v", *(["mask"] if mask else [])]
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info(name, 1, shapes[name]) for name in names],
        [helper.make_tensor_value_info("y", 1, None)],
        [onnx.numpy_helper.from_array(np.array(2.0, np.float32), "two")],
    )
    path = tmp_path / "attention.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), str(path))
    inputs = tuple(TensorSpec(name=name, dtype="float32", shape=shapes[name]) for name in names)
    outputs = (TensorSpec(name="y", dtype="float32", shape=()),)
    component = Component(file="", inputs=inputs, outputs=outputs, opset=21, initializers={})
    values = inputs_for(component, 1)
    assert ATTENTION in {node.operator for node in recognise(read_graph(path)).nodes}
    assert relative(answer(path, component, values, 1), reference(path, values)) < 1e-6
