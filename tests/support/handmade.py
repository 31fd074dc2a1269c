"""A bundle made by hand: a real, tiny ONNX network with every kind of input, golden outputs by ONNX's reference evaluator.

It takes no torch and some milliseconds, so every test of compiling can afford its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from distill_rt.core import codec
from distill_rt.core.artifacts import BundleBody, Component
from distill_rt.core.manifest import write_manifest
from distill_rt.core.prediction import Parameterization, Prediction
from distill_rt.core.process import VPCosine
from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.spec import Condition, Guidance, NetworkSpec, StudentSpec, TensorSpec
from distill_rt.core.table import StepTable
from distill_rt.export.golden import Golden, make_golden, save_golden

Array = NDArray[Any]

GuidanceMode = Literal["none", "embedded", "cfg"]
CHANNELS = 16
WIDTH = 16
SIZE = 4


def make_spec(guidance: GuidanceMode = "embedded", num_networks: int = 1) -> StudentSpec:
    process, parameterization = VPCosine(), Parameterization(prediction=Prediction.V)
    return StudentSpec(
        name="handmade",
        sample_shape=(1, SIZE, SIZE),
        process=process,
        parameterization=parameterization,
        condition=Condition(kind="label", num_classes=3, null_label=3),
        guidance=Guidance() if guidance == "none" else Guidance(mode=guidance, min=1.0, max=4.0, default=2.0),
        plans={
            n: _spread(ddim(process, parameterization, [1.0 - i / n for i in range(n)]), num_networks) for n in (1, 4)
        },
        default_steps=4,
        networks=tuple(NetworkSpec(kind="handmade") for _ in range(num_networks)),
    )


def _spread(table: StepTable, num_networks: int) -> StepTable:
    rows = (dataclasses.replace(row, net_id=i % num_networks) for i, row in enumerate(table.rows))
    return dataclasses.replace(table, rows=tuple(rows)).as_float32()  # as it is read from a file


def make_model(spec: StudentSpec, seed: int = 0) -> onnx.ModelProto:
    """Convolution, group norm, SiLU, an embedding of time, label and guidance, convolution."""
    rng = np.random.default_rng(seed)
    weights: dict[str, Array] = {
        "conv_in.weight": rng.standard_normal((CHANNELS, 1, 3, 3)) / 3,
        "conv_in.bias": rng.standard_normal(CHANNELS) / 10,
        "norm.weight": 1 + rng.standard_normal(CHANNELS) / 10,
        "norm.bias": rng.standard_normal(CHANNELS) / 10,
        "time.weight": rng.standard_normal((2 * WIDTH, CHANNELS)) / 6,
        "label.weight": rng.standard_normal((4, CHANNELS)) / 3,
        "guidance.weight": rng.standard_normal((1, CHANNELS)) / 10,
        "conv_out.weight": rng.standard_normal((1, CHANNELS, 3, 3)) / 12,
        "conv_out.bias": np.zeros(1),
    }
    frequencies = np.exp(-np.linspace(0, np.log(1000), WIDTH))[None]
    constants = {"frequencies": frequencies.astype(np.float32), "one": np.array([1]), "two": np.array([2, 3])}
    nodes = [
        helper.make_node("Unsqueeze", ["time", "one"], ["time_B1"]),
        helper.make_node("Mul", ["time_B1", "frequencies"], ["angle"]),
        helper.make_node("Sin", ["angle"], ["sin"]),
        helper.make_node("Cos", ["angle"], ["cos"]),
        helper.make_node("Concat", ["sin", "cos"], ["features"], axis=1),
        helper.make_node("MatMul", ["features", "time.weight"], ["vector"]),
    ]
    vector = "vector"
    names = [tensor.name for tensor in spec.network_inputs()]
    if "second_time" in names:
        weights["second_time.weight"] = rng.standard_normal((1, CHANNELS)) / 1000
        nodes += [
            helper.make_node("Unsqueeze", ["second_time", "one"], ["second_time_B1"]),
            helper.make_node("MatMul", ["second_time_B1", "second_time.weight"], ["second_time_vector"]),
            helper.make_node("Add", [vector, "second_time_vector"], ["vector_with_second_time"]),
        ]
        vector = "vector_with_second_time"
    if "label" in names:
        nodes += [
            helper.make_node("Gather", ["label.weight", "label"], ["label_vector"]),
            helper.make_node("Add", [vector, "label_vector"], ["vector_with_label"]),
        ]
        vector = "vector_with_label"
    if "guidance" in names:
        nodes += [
            helper.make_node("Unsqueeze", ["guidance", "one"], ["guidance_B1"]),
            helper.make_node("MatMul", ["guidance_B1", "guidance.weight"], ["guidance_vector"]),
            helper.make_node("Add", [vector, "guidance_vector"], ["vector_with_guidance"]),
        ]
        vector = "vector_with_guidance"
    nodes += [
        helper.make_node("Conv", ["sample", "conv_in.weight", "conv_in.bias"], ["h0"], pads=[1, 1, 1, 1]),
        helper.make_node("GroupNormalization", ["h0", "norm.weight", "norm.bias"], ["h1"], num_groups=4),
        helper.make_node("Unsqueeze", [vector, "two"], ["vector_BC11"]),
        helper.make_node("Add", ["h1", "vector_BC11"], ["h2"]),
        helper.make_node("Sigmoid", ["h2"], ["gate"]),
        helper.make_node("Mul", ["h2", "gate"], ["h3"]),
        helper.make_node("Conv", ["h3", "conv_out.weight", "conv_out.bias"], ["prediction"], pads=[1, 1, 1, 1]),
    ]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "handmade",
        [_value(tensor) for tensor in spec.network_inputs()],
        [_value(tensor) for tensor in spec.network_outputs()],
        [
            numpy_helper.from_array(array if name in constants else array.astype(np.float32), name)
            for name, array in (weights | constants).items()
            if name in used
        ],
        # Inference does not know GroupNormalization; torch's exporter writes shapes itself.
        value_info=[helper.make_tensor_value_info("h1", TensorProto.FLOAT, ["B", CHANNELS, SIZE, SIZE])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def make_ir(model: onnx.ModelProto) -> ir.Model:
    """The model for passes. A copy: onnx_ir writes names into the tensors of the proto that it was made from."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return ir.from_proto(copy)


def _value(tensor: TensorSpec) -> onnx.ValueInfoProto:
    kind = TensorProto.INT64 if tensor.dtype == "int64" else TensorProto.FLOAT
    return helper.make_tensor_value_info(tensor.name, kind, tensor.shape)


def write_bundle(
    directory: Path,
    guidance: GuidanceMode = "embedded",
    *,
    num_networks: int = 1,
    seed: int = 0,
    edit_model: Callable[[onnx.ModelProto], None] = lambda model: None,
    edit_golden: Callable[[Golden], Golden] = lambda golden: golden,
) -> Path:
    """A bundle that `distill_rt.export.compile` accepts.

    Args:
        seed: of the weights.
        edit_model: changes the written graphs, but not what the golden outputs are made with.
        edit_golden: changes the golden outputs.
    """
    spec = make_spec(guidance, num_networks)
    models = [make_model(spec, seed + i) for i in range(num_networks)]
    evaluators = [ReferenceEvaluator(model) for model in models]

    def evaluate(name: str, inputs: Mapping[str, Array]) -> Array:
        output: Array = evaluators[int(name.removeprefix("network"))].run(None, dict(inputs))[0]
        return output

    (directory / "onnx").mkdir(parents=True)
    components = {}
    for i, model in enumerate(models):
        edit_model(model)
        onnx.save(model, str(directory / f"onnx/network{i}.onnx"))
        components[f"network{i}"] = Component(
            file=f"onnx/network{i}.onnx",
            inputs=spec.network_inputs(),
            outputs=spec.network_outputs(),
            opset=21,
            initializers={item.name: item.name for item in model.graph.initializer if "." in item.name},
        )
    save_golden(directory / "golden.safetensors", edit_golden(make_golden(spec, evaluate)))
    body = BundleBody(
        spec=spec,
        student_digest="0" * 64,
        mode="step",
        components=components,
        golden="golden.safetensors",
        versions={"onnx": onnx.__version__},
    )
    write_manifest(directory, "bundle", codec.to_json(body))
    return directory


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Apply `change` to a parsed manifest and write it back as its author would: with the digest of what it says now.

    An edit without that is refused for its digest alone; behind a true digest every other check must hold on its own.
    """
    content = json.loads(path.read_text())
    change(content)
    signed = {"kind": path.stem, "files": content.get("files"), "body": content.get("body")}
    canonical = json.dumps(signed, sort_keys=True, separators=(",", ":"))
    content["digest"] = hashlib.sha256(canonical.encode()).hexdigest()
    path.write_text(json.dumps(content))
