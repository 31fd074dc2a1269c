"""Tiny contracts, and real bundles and engines for them that build in tens of milliseconds.

The network is tanh of a weighted sum of everything that the contract feeds it, so that a wrong time, label, guidance scale or
scale of the state changes the picture. `network` is the same function in NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill_rt.core import codec
from distill_rt.core.artifacts import BundleBody, Component, Precision, StudentBody
from distill_rt.core.directory import publish
from distill_rt.core.manifest import write_manifest
from distill_rt.core.prediction import Parameterization, Prediction
from distill_rt.core.process import VPCosine
from distill_rt.core.spec import Condition, Guidance, NetworkSpec, StudentSpec
from distill_rt.core.table import Row, StepTable
from distill_rt.export import compile_bundle
from distill_rt.export.golden import make_golden, save_golden

Array = NDArray[Any]

WEIGHTS = {"sample": 0.5, "time": 1e-4, "second_time": -2e-4, "label": 0.03, "guidance": 0.02}
LABELS = Condition(kind="label", num_classes=10, null_label=10)


def plan(steps: int, *, stochastic: bool = False) -> StepTable:
    """A made-up deterministic or stochastic sampler of affine rows."""
    rows = [
        Row(
            time=900.0 - 100.0 * i,
            c_in=1.0 - 0.1 * i,
            p=0.8,
            q=-0.6,
            r=0.3,
            g=0.6,
            n=0.1 if stochastic and i + 1 < steps else 0.0,
            stream=i + 1,
        )
        for i in range(steps)
    ]
    return StepTable(rows=tuple(rows)).as_float32()


def tiny_spec(**changes: Any) -> StudentSpec:
    """A contract with labels, embedded guidance, and plans of 1, 2 and 4 steps (4 draws noise); `changes` replace fields."""
    fields: dict[str, Any] = {
        "name": "tiny",
        "sample_shape": (1, 4, 4),
        "process": VPCosine(),
        "parameterization": Parameterization(prediction=Prediction.V),
        "condition": LABELS,
        "guidance": Guidance(mode="embedded", min=1.0, max=4.0, default=2.0),
        "plans": {1: plan(1), 2: plan(2), 4: plan(4, stochastic=True)},
        "default_steps": 2,
        "networks": (NetworkSpec(kind="unet2d"),),
    }
    return StudentSpec(**(fields | changes))


def network(net_id: int, inputs: Mapping[str, Array]) -> Array:
    """What the tiny network computes: float32 (N, C, H, W)."""
    total = np.zeros_like(inputs["sample"])
    for name, values in inputs.items():
        total = total + np.float32(WEIGHTS[name]) * values.astype(np.float32).reshape(-1, *_trailing(values))
    return np.tanh(np.float32(1 + net_id) * total)


def _trailing(values: Array) -> tuple[int, ...]:
    return values.shape[1:] if values.ndim == 4 else (1, 1, 1)


def make_bundle(path: Path, spec: StudentSpec) -> Path:
    """A bundle of tiny networks for a contract."""
    with publish(path, force=False) as directory:
        (directory / "onnx").mkdir()
        components = {}
        for i in range(len(spec.networks)):
            file = f"onnx/network{i}.onnx"
            _write_graph(directory / file, spec, i)
            components[f"network{i}"] = Component(
                file=file,
                inputs=spec.network_inputs(),
                outputs=spec.network_outputs(),
                opset=21,
                initializers={name: name for name in WEIGHTS},
            )
        save_golden(
            directory / "golden.safetensors", make_golden(spec, lambda name, inputs: network(int(name[7:]), inputs))
        )
        body = BundleBody(
            spec=spec,
            student_digest="0" * 64,
            mode="step",
            components=components,
            golden="golden.safetensors",
            versions={},
        )
        write_manifest(directory, "bundle", codec.to_json(body))
    return path


def make_engine(
    path: Path,
    spec: StudentSpec,
    *,
    target: str = "onnxruntime:cpu",
    batches: tuple[int, ...] = (1, 4, 16),
    precision: Precision | None = None,
) -> Path:
    """A real engine for a contract."""
    bundle = make_bundle(path.with_suffix(".bundle"), spec)
    return compile_bundle(bundle, target, path, precision=precision, batches=batches, num_threads=1, use_cache=False)


def make_student(path: Path, spec: StudentSpec) -> Path:
    """A student directory as far as the manifest goes; its weights are not weights."""
    with publish(path, force=False) as directory:
        (directory / "network0.safetensors").write_bytes(bytes(64))
        write_manifest(directory, "student", codec.to_json(StudentBody(spec=spec, weights=("network0.safetensors",))))
    return path


def _write_graph(path: Path, spec: StudentSpec, net_id: int) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    nodes, initializers, terms = [], [], []
    for tensor in spec.network_inputs():
        name = tensor.name
        initializers.append(numpy_helper.from_array(np.array(WEIGHTS[name], np.float32), f"weight.{name}"))
        nodes.append(helper.make_node("Cast", [name], [f"{name}.float"], to=TensorProto.FLOAT))
        value = f"{name}.float"
        if name != "sample":
            nodes.append(helper.make_node("Reshape", [value, "per_image"], [f"{name}.column"]))
            value = f"{name}.column"
        nodes.append(helper.make_node("Mul", [value, f"weight.{name}"], [f"{name}.term"]))
        terms.append(f"{name}.term")
    initializers.append(numpy_helper.from_array(np.array([-1, 1, 1, 1], np.int64), "per_image"))
    initializers.append(numpy_helper.from_array(np.array(1 + net_id, np.float32), "gain"))
    total = terms[0]
    for i, term in enumerate(terms[1:]):
        nodes.append(helper.make_node("Add", [total, term], [f"total.{i}"]))
        total = f"total.{i}"
    nodes.append(helper.make_node("Mul", [total, "gain"], ["scaled"]))
    nodes.append(helper.make_node("Tanh", ["scaled"], ["prediction"]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(t.name, kinds[t.dtype], list(t.shape)) for t in spec.network_inputs()],
        [helper.make_tensor_value_info(t.name, kinds[t.dtype], list(t.shape)) for t in spec.network_outputs()],
        initializers,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
