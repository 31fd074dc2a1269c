"""Real networks from student directory to bundle: UNet with attention, cfg teacher, DiT."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import distill_rt
from distill_rt.backends.base import CompileOptions
from distill_rt.backends.engine import open_engine
from distill_rt.backends.onnxruntime import OnnxRuntime
from distill_rt.core.errors import ArtifactError, DistillError, GateError, ResourceError, UsageError
from distill_rt.core.manifest import read_manifest
from distill_rt.core.prediction import Parameterization, Prediction
from distill_rt.core.process import VPCosine
from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.spec import Condition, Guidance, NetworkSpec, StudentSpec
from distill_rt.export import compile_bundle, export_student, onnx_graph
from distill_rt.export.bundle import open_bundle
from distill_rt.export.golden import load_golden
from distill_rt.export.model_file import load_model, save_model
from distill_rt.export.rewrites import rewrite_graph
from distill_rt.models import build_network, load_student, save_student

UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [16, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
    "num_labels": 4,
}
UNETS: dict[str, dict[str, Any]] = {
    "embedded": UNET
    | {
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "guidance": True,
    },
    "cfg": UNET | {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2},
}
UNCONDITIONAL = UNETS["cfg"] | {"num_labels": 0}
DIT = NetworkSpec(
    kind="dit",
    config={
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 1,
        "patch_size": 2,
        "num_labels": 4,
    },
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def write_student(
    path: Path, mode: Literal["none", "embedded", "cfg"] = "embedded", network: NetworkSpec | None = None, seed: int = 0
) -> Path:
    """A student with random weights; none is left at zero, as training would leave none."""
    network = network or NetworkSpec(kind="unet2d", config=UNETS[mode])
    process, parameterization = VPCosine(), Parameterization(prediction=Prediction.V)
    spec = StudentSpec(
        name="small",
        sample_shape=(1, 8, 8),
        process=process,
        parameterization=parameterization,
        condition=Condition() if mode == "none" else Condition(kind="label", num_classes=3, null_label=3),
        guidance=Guidance() if mode == "none" else Guidance(mode=mode, min=1.0, max=3.0, default=2.0),
        plans={n: ddim(process, parameterization, [1.0 - i / n for i in range(n)]) for n in (1, 2)},
        default_steps=2,
        networks=(network,),
    )
    torch.manual_seed(seed)
    net = build_network(network)
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    save_student(path, spec, [net])
    return path


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("student") / "small.student")


@pytest.fixture(scope="module")
def real_bundle(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_student(student, tmp_path_factory.mktemp("bundle") / "small.bundle")


def refused(family: type[DistillError], *args: Any, **kwargs: Any) -> DistillError:
    with pytest.raises(family) as caught:
        export_student(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return caught.value


# -- what a bundle holds ----------------------------------------------------------------------------------------------------


def test_the_graph_is_the_contract(student: Path, real_bundle: Path) -> None:
    body = open_bundle(real_bundle).body
    spec = load_student(student).spec
    assert body.spec == spec
    assert body.student_digest == read_manifest(student, "student").digest
    assert body.mode == "step"
    component = body.components["network0"]
    assert component.opset == 21
    model = onnx.load(str(real_bundle / component.file))
    assert [item.version for item in model.opset_import if not item.domain] == [21]

    def described(values: Any) -> list[tuple[str, list[int | str]]]:
        return [
            (value.name, [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim])
            for value in values
        ]

    assert described(model.graph.input) == [(tensor.name, list(tensor.shape)) for tensor in spec.network_inputs()]
    assert described(model.graph.output) == [(tensor.name, list(tensor.shape)) for tensor in spec.network_outputs()]


def test_the_weight_manifest_is_true(student: Path, real_bundle: Path) -> None:
    """Every weight of the student is an initializer of its own, bit for bit, even where two are equal."""
    component = open_bundle(real_bundle).body.components["network0"]
    model = onnx.load(str(real_bundle / component.file))
    initializers = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    (network,) = load_student(student).networks
    weights = dict(network.named_parameters())
    assert set(weights) <= set(component.initializers)
    assert len(set(component.initializers.values())) == len(component.initializers)
    for name, weight in weights.items():
        np.testing.assert_array_equal(initializers[component.initializers[name]], weight.numpy())
    norms = [name for name in weights if name.endswith("norm1.bias")]
    assert len(norms) > 1  # equal at the start, and merged by the exporter's own optimiser


def test_a_changed_weight_takes_effect(student: Path, real_bundle: Path, tmp_path: Path) -> None:
    """What refitting does: the same change in the student and, by name, in the graph."""
    import onnxruntime as ort

    component = open_bundle(real_bundle).body.components["network0"]
    model = onnx.load(str(real_bundle / component.file))
    (network,) = load_student(student).networks
    rng = np.random.default_rng(0)
    for name, weight in network.named_parameters():
        change = torch.from_numpy(rng.standard_normal(weight.shape).astype(np.float32)) * 0.01
        weight.data += change
        (initializer,) = (item for item in model.graph.initializer if item.name == component.initializers[name])
        initializer.CopyFrom(numpy_helper.from_array(weight.numpy(), initializer.name))
    inputs = onnx_graph.example_inputs(component.inputs, 2)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(
        session.run(None, inputs)[0], onnx_graph.evaluate(network, component.inputs, inputs), rtol=1e-4, atol=1e-5
    )


def test_nothing_names_this_machine(real_bundle: Path) -> None:
    content = (real_bundle / "onnx/network0.onnx").read_bytes()
    for path in (onnx.__file__, __file__, torch.__file__):
        assert str(Path(path).parent).encode() not in content
    assert b"stack_trace" not in content
    assert b"name_scopes" in content  # which module a node came from


def test_goldens_are_the_students(student: Path, real_bundle: Path) -> None:
    golden = load_golden(real_bundle / "golden.safetensors")
    loaded = load_student(student)
    (network,), spec = loaded.networks, loaded.spec
    component = golden.components["network0"]
    np.testing.assert_allclose(
        onnx_graph.evaluate(network, spec.network_inputs(), component.inputs),
        component.outputs["prediction"],
        rtol=1e-4,
        atol=1e-5,
    )
    assert [(run.steps, run.guidance) for run in golden.trajectories] == [
        (steps, w) for steps in (1, 2) for w in (1.0, 2.0, 3.0)
    ]


def test_exporting_again_is_silent_and_gives_the_same(
    student: Path, real_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same bundle, so that its engines are in the cache; and stdout is left to the one object of ``--json``."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "old").write_text("")
    (tmp_path / "bundle" / "bundle.json").write_text("{}")  # a damaged bundle is ours to replace
    stages: list[str] = []
    again = export_student(
        student, tmp_path / "bundle", force=True, progress=lambda stage, done=0, total=0, /: stages.append(stage)
    )
    assert capfd.readouterr() == ("", "")
    assert read_manifest(again, "bundle").digest == read_manifest(real_bundle, "bundle").digest
    assert not (again / "old").exists()
    assert stages[0] == "loading the student"
    assert {"exporting graphs", "golden outputs"} <= set(stages)


def test_force_spares_what_is_not_a_bundle(student: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_text("")
    with pytest.raises(UsageError, match="not ours"):
        export_student(student, tmp_path / "photos", force=True)
    assert (tmp_path / "photos" / "1.jpg").exists()


def test_the_package_can_be_called(student: Path, tmp_path: Path) -> None:
    """``distill_rt.export`` is a package and, in the public API, a function."""
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        distill_rt.export(student, tmp_path / "out")


# -- all the way to engines -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["onnxruntime:cpu", "openvino:cpu"])
def test_a_unet_becomes_an_engine(target: str, real_bundle: Path, tmp_path: Path) -> None:
    body = open_engine(compile_bundle(real_bundle, target, tmp_path / "engine", batches=(1, 4), num_threads=2)).body
    assert 1 in body.batches
    figures = [*body.gate.components.values(), *body.gate.trajectories.values()]
    assert max(figure.relative_l2 for figure in figures) < 1e-5


@pytest.mark.parametrize(
    ("mode", "network"),
    [("none", NetworkSpec(kind="unet2d", config=UNCONDITIONAL)), ("cfg", DIT)],
    ids=["unconditional-unet", "cfg-dit"],
)
def test_other_networks_become_engines(mode: Any, network: NetworkSpec, tmp_path: Path) -> None:
    bundle = export_student(write_student(tmp_path / "student", mode, network), tmp_path / "bundle")
    for target in ("onnxruntime:cpu", "openvino:cpu"):
        out = compile_bundle(bundle, target, tmp_path / target.partition(":")[0], batches=(1, 2), num_threads=1)
        assert open_engine(out).body.gate.components["network0"].relative_l2 < 1e-5


def test_large_weights_go_beside_the_graph(real_bundle: Path, tmp_path: Path) -> None:
    """Above one gigabyte in earnest; with the limit at nothing here. Rewriting and compiling read them from there."""
    component = open_bundle(real_bundle).body.components["network0"]
    path = tmp_path / "large.onnx"
    save_model(load_model(real_bundle / component.file), path, single_file_limit_bytes=0)
    assert {file.name for file in tmp_path.iterdir()} == {"large.onnx", "large.onnx.data"}
    assert path.stat().st_size < (tmp_path / "large.onnx.data").stat().st_size
    inputs = onnx_graph.example_inputs(component.inputs, 2)
    answers = []
    for graph in (real_bundle / component.file, path):
        backend, options = OnnxRuntime(), CompileOptions(precision="fp32", num_threads=1)
        rewritten = rewrite_graph(graph, backend.rewrites, tmp_path / "rewritten.onnx")
        files = backend.compile(rewritten, component, [2], tmp_path, "compiled", options)
        program = backend.load(tmp_path, files, component.inputs, component.outputs, 2, options)
        for name, value in inputs.items():
            program.inputs[name][:] = value
        program.run()
        answers.append(program.outputs["prediction"].copy())
    assert np.array_equal(*answers)


# -- refusals ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float, student: Path, tmp_path: Path) -> None:
    loaded = load_student(student)
    weights = dict(loaded.networks[0].named_parameters())
    name = next(name for name in weights if name.endswith("conv_out.weight"))
    weights[name].data[0, 0, 0, 0] = value
    save_student(tmp_path / "student", loaded.spec, loaded.networks)
    error = refused(ArtifactError, tmp_path / "student", tmp_path / "bundle")
    assert error.code == "weights-not-finite"
    assert f"weight {name} of network0 is not finite" in error.message
    assert not (tmp_path / "bundle").exists()


def test_existing_output_is_refused_before_any_work(student: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    stages: list[str] = []
    error = refused(UsageError, student, tmp_path / "bundle", progress=lambda stage, *_: stages.append(stage))
    assert error.code == "output-exists"
    assert not stages


def test_a_place_that_cannot_be_written(student: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refused(ResourceError, student, tmp_path / "file" / "bundle").code == "not-writable"


def test_not_a_student(real_bundle: Path, tmp_path: Path) -> None:
    assert refused(ArtifactError, real_bundle, tmp_path / "x").code == "artifact-kind"
    assert refused(ArtifactError, tmp_path / "nothing", tmp_path / "x").code == "artifact-missing"


def test_no_such_mode(student: Path, tmp_path: Path) -> None:
    assert refused(UsageError, student, tmp_path / "x", mode="movie").code == "mode-unknown"


def test_a_network_that_no_plan_uses(student: Path, tmp_path: Path) -> None:
    loaded = load_student(student)
    spec = dataclasses.replace(loaded.spec, networks=loaded.spec.networks * 2)
    save_student(tmp_path / "student", spec, loaded.networks * 2)
    assert refused(ArtifactError, tmp_path / "student", tmp_path / "x").code == "network-unused"


class BatchTied(nn.Module):
    """Its answer has two images whatever it is asked."""

    def forward(self, sample: Tensor, time: Tensor, label: Tensor) -> Tensor:
        return sample[:2] * time[:2, None, None, None] + label.sum()


class WrongInOnnx(nn.Module):
    """Answers differently when traced."""

    def forward(self, sample: Tensor, time: Tensor, label: Tensor) -> Tensor:
        factor = 2.0 if torch.compiler.is_exporting() else 1.0
        return factor * sample + 0 * time[:, None, None, None] + 0 * label[:, None, None, None]


class Untraceable(nn.Module):
    """Decides by a value that tracing does not know."""

    def forward(self, sample: Tensor, time: Tensor, label: Tensor) -> Tensor:
        return sample if float(time.sum()) > 0 else -sample


def test_a_network_that_cannot_be_traced(tmp_path: Path) -> None:
    spec = load_student(write_student(tmp_path / "student", "cfg")).spec
    with pytest.raises(ArtifactError, match="cannot be exported to ONNX") as caught:
        onnx_graph.export_component(Untraceable().eval(), *spec.components()["network0"], tmp_path, "network0.onnx")
    assert caught.value.code == "export-unsupported"
    assert "\n" not in str(caught.value)


def test_a_network_tied_to_a_batch(tmp_path: Path) -> None:
    spec = load_student(write_student(tmp_path / "student", "cfg")).spec
    with pytest.raises(ArtifactError) as caught:
        onnx_graph.export_component(BatchTied().eval(), *spec.components()["network0"], tmp_path, "network0.onnx")
    assert caught.value.code == "export-batch-fixed"


def test_a_graph_that_is_not_the_student(tmp_path: Path) -> None:
    spec = load_student(write_student(tmp_path / "student", "cfg")).spec
    with pytest.raises(GateError, match="is not the student: relative L2 distance 1") as caught:
        onnx_graph.export_component(WrongInOnnx().eval(), *spec.components()["network0"], tmp_path, "network0.onnx")
    assert caught.value.code == "export-mismatch"
