"""A real bundle around `acceptance.unet`, written without an exporter: contract, graph, golden outputs by the torch network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from acceptance.unet import SmallUNet, emit

NUM_LABELS = 10


def make_spec(sample_shape: tuple[int, int, int]) -> Any:
    """Guidance by two evaluations; plans of 1 step, of 2 with clipped x0 (the general row), of 4 with fresh noise."""
    from distill_rt.core.prediction import Parameterization, Prediction
    from distill_rt.core.process import VPCosine
    from distill_rt.core.samplers.consistency import multistep_consistency
    from distill_rt.core.samplers.ddim import ddim
    from distill_rt.core.spec import Condition, Guidance, NetworkSpec, StudentSpec

    process, parameterization = VPCosine(), Parameterization(prediction=Prediction.V)
    return StudentSpec(
        name="acceptance",
        sample_shape=sample_shape,
        process=process,
        parameterization=parameterization,
        condition=Condition(kind="label", num_classes=NUM_LABELS, null_label=NUM_LABELS),
        guidance=Guidance(mode="cfg", min=1.0, max=3.0, default=2.0),
        plans={
            1: ddim(process, parameterization, [1.0]).as_float32(),
            2: ddim(process, parameterization, [1.0, 0.5], clip=1.0).as_float32(),
            4: multistep_consistency(process, parameterization, [1.0, 0.75, 0.5, 0.25]).as_float32(),
        },
        default_steps=4,
        networks=(NetworkSpec(kind="acceptance"),),
    )


def make_network(dry: bool) -> SmallUNet:
    """About 15 million parameters on latents 4x64x64; in a dry run 50 thousand on 4x8x8. Always the same weights."""
    torch.manual_seed(2026)
    shape, channels = ((4, 8, 8), (16, 32)) if dry else ((4, 64, 64), (96, 192, 320))
    network = SmallUNet(shape, channels, NUM_LABELS + 1).eval().requires_grad_(False)
    with torch.no_grad():
        network.conv_out.weight.mul_(0.5)  # beside SKIP a correction, as in a trained network
    return network


def write_bundle(directory: Path, network: SmallUNet, device: str) -> Path:
    """A bundle that `distill_rt.compile` takes; `network` runs in float32 on `device`."""
    import onnx

    from distill_rt.core import codec
    from distill_rt.core.artifacts import BundleBody, Component
    from distill_rt.core.manifest import write_manifest
    from distill_rt.export.golden import GOLDEN_FILE, make_golden, save_golden

    spec = make_spec(network.sample_shape)
    network = network.float().to(device)

    def evaluate(component: str, inputs: Mapping[str, Any]) -> Any:
        tensors = {name: torch.from_numpy(values).to(device) for name, values in inputs.items()}
        return network(tensors["sample"], tensors["time"], tensors["label"]).cpu().numpy()

    (directory / "onnx").mkdir(parents=True)
    model, parameters = make_model(spec, network)
    onnx.save(model, str(directory / "onnx/network0.onnx"))
    component = Component(
        file="onnx/network0.onnx",
        inputs=spec.network_inputs(),
        outputs=spec.network_outputs(),
        opset=21,
        initializers={name: name for name in parameters},
    )
    save_golden(directory / GOLDEN_FILE, make_golden(spec, evaluate))
    body = BundleBody(
        spec=spec,
        student_digest="0" * 64,
        mode="step",
        components={"network0": component},
        golden=GOLDEN_FILE,
        versions={"torch": torch.__version__, "onnx": onnx.__version__},
    )
    write_manifest(directory, "bundle", codec.to_json(body))
    return directory


def make_model(spec: Any, network: SmallUNet) -> tuple[Any, list[str]]:
    """(ONNX model with shapes, names of its weights)."""
    import onnx
    from onnx import TensorProto, helper

    def value(tensor: Any) -> Any:
        kind = TensorProto.INT64 if tensor.dtype == "int64" else TensorProto.FLOAT
        return helper.make_tensor_value_info(tensor.name, kind, tensor.shape)

    g = emit(network)
    graph = helper.make_graph(
        g.nodes,
        "acceptance",
        [value(tensor) for tensor in spec.network_inputs()],
        [value(tensor) for tensor in spec.network_outputs()],
        list(g.initializers.values()),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    # ONNX's inference does not know GroupNormalization, which keeps the shape: inferred on a twin without it.
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    for node in twin.graph.node:
        if node.op_type == "GroupNormalization":
            node.CopyFrom(helper.make_node("Identity", node.input[:1], node.output))
    inferred = onnx.shape_inference.infer_shapes(twin, strict_mode=True, data_prop=True)
    model.graph.value_info.extend(inferred.graph.value_info)
    return model, g.parameters
