"""A trajectory bundle: one graph that any ONNX runtime runs, compiled, gated and served like any other."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from handmade import GuidanceMode, write_bundle
from handmade_trajectory import STEPS, trajectory_bundle

from distill_rt.core import codec
from distill_rt.core.artifacts import BundleBody
from distill_rt.core.errors import ArtifactError, GateError, UsageError
from distill_rt.core.noise import image_seeds, unit_noise
from distill_rt.export import compile_bundle
from distill_rt.export.bundle import open_bundle
from distill_rt.export.golden import Golden, load_golden
from distill_rt.export.trajectory_bundle import join_components
from distill_rt.runtime.pipeline import Pipeline


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("trajectory")
    modes: tuple[GuidanceMode, ...] = ("none", "embedded", "cfg")
    return {mode: trajectory_bundle(root / f"{mode}.bundle", mode) for mode in modes}


def engines(tmp_path: Path, guidance: GuidanceMode, bundle: Path, target: str) -> tuple[Pipeline, Pipeline]:
    """The same student in step mode and in trajectory mode."""
    step = write_bundle(tmp_path / "step.bundle", guidance)
    return tuple(  # type: ignore[return-value]
        Pipeline.load(compile_bundle(source, target, tmp_path / name, batches=(1, 3), num_threads=1, use_cache=False))
        for name, source in (("step", step), ("trajectory", bundle))
    )


@pytest.mark.parametrize("target", ["onnxruntime:cpu", "openvino:cpu"])
@pytest.mark.parametrize("guidance", ["none", "embedded", "cfg"])
def test_the_images_of_step_mode(guidance: GuidanceMode, target: str, bundles: dict[str, Path], tmp_path: Path) -> None:
    step, trajectory = engines(tmp_path, guidance, bundles[guidance], target)
    w = None if guidance == "none" else 3.0
    latents = np.random.default_rng(3).standard_normal((5, 1, 4, 4)).astype(np.float32)
    for values in ({"seed": 11}, {"latents": latents}):
        want, got = (
            pipeline.generate(labels=[0, 1, 2, 0, 1], guidance=w, steps=STEPS, **values)  # type: ignore[arg-type]
            for pipeline in (step, trajectory)
        )
        assert want.images.std() > 10
        assert np.abs(want.images.astype(int) - got.images).max() <= 1  # a value on the edge between two bytes
        assert (want.images == got.images).mean() > 0.95
    assert trajectory.generate(labels=[0]).steps == STEPS
    assert trajectory.manifest.mode == "trajectory"
    assert trajectory.manifest.gate is not None
    assert not trajectory.manifest.gate.components
    assert len(trajectory.manifest.gate.trajectories) == (1 if guidance == "none" else 3)


def test_what_a_trajectory_engine_refuses(bundles: dict[str, Path], tmp_path: Path) -> None:
    engine = compile_bundle(bundles["embedded"], "onnxruntime:cpu", tmp_path / "engine", use_cache=False)
    with Pipeline.load(engine) as pipeline:
        with pytest.raises(UsageError, match="whole trajectory of 4 steps") as caught:
            pipeline.generate(labels=[0], steps=1)
        assert (caught.value.code, caught.value.details) == ("steps-not-in-engine", {"allowed": [4]})
        with pytest.raises(UsageError, match="distilled for") as caught:
            pipeline.generate(labels=[0], steps=7)
        assert caught.value.code == "steps-not-in-contract"
        with pytest.raises(UsageError, match="on_step") as caught:
            pipeline.generate(labels=[0], on_step=lambda update: None)
        assert caught.value.code == "previews-not-in-engine"


PLAIN = """
import json, sys
sys.modules["distill_rt"] = None  # importing it is an error from here on
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
print(json.dumps([[item.name, item.type, item.shape] for item in session.get_inputs()]))
with np.load(sys.argv[2]) as feeds:
    np.save(sys.argv[3], session.run(["images"], dict(feeds))[0])
try:
    import distill_rt
except ImportError:
    sys.exit(0)
sys.exit("distill_rt could be imported")
"""


@pytest.mark.parametrize("limit_bytes", [1 << 30, 0])  # one file, and weights beside the graph
def test_plain_onnx_runtime_without_our_code(limit_bytes: int, tmp_path: Path) -> None:
    bundle = trajectory_bundle(tmp_path / "source.bundle", "cfg", limit_bytes=limit_bytes)
    engine = compile_bundle(bundle, "onnxruntime:cpu", tmp_path / "engine", num_threads=1, use_cache=False)
    with Pipeline.load(engine) as pipeline:
        want = pipeline.generate(labels=[2, 0], seed=5, guidance=2.5).images
    alone = tmp_path / "elsewhere" / "graph"
    shutil.copytree(bundle / "onnx", alone)
    shutil.rmtree(bundle)
    assert {path.name for path in alone.iterdir()} == (
        {"trajectory.onnx"} if limit_bytes else {"trajectory.onnx", "trajectory.onnx.data"}
    )
    noise = unit_noise(image_seeds(5, 2), (1, 4, 4), 0)
    feeds, images = tmp_path / "feeds.npz", tmp_path / "images.npy"
    np.savez(feeds, noise=noise, label=np.array([2, 0]), guidance=np.array([2.5, 2.5], np.float32))
    done = subprocess.run(
        [sys.executable, "-P", "-c", PLAIN, str(alone / "trajectory.onnx"), str(feeds), str(images)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        ["noise", "tensor(float)", ["B", 1, 4, 4]],
        ["label", "tensor(int64)", ["B"]],
        ["guidance", "tensor(float)", ["B"]],
    ]
    np.testing.assert_array_equal(np.load(images), want)


def test_a_wrong_trajectory_passes_no_gate(tmp_path: Path) -> None:
    def brighten(golden: Golden) -> Golden:
        runs = tuple(dataclasses.replace(run, images=run.images + 0.02) for run in golden.trajectories)
        return dataclasses.replace(golden, trajectories=runs)

    bundle = trajectory_bundle(tmp_path / "wrong.bundle", edit_golden=brighten)
    with pytest.raises(GateError, match="steps=4,guidance=1 at batch 1 is too far"):
        compile_bundle(bundle, "onnxruntime:cpu", tmp_path / "engine", use_cache=False)
    assert not (tmp_path / "engine").exists()


def test_a_graph_that_is_not_the_student_is_not_exported(tmp_path: Path) -> None:
    path = tmp_path / "wrong.bundle"

    def damage(model: onnx.ModelProto) -> None:
        for item in model.graph.initializer:
            if item.name == "conv_out.weight":
                item.CopyFrom(onnx.numpy_helper.from_array(1.1 * onnx.numpy_helper.to_array(item), item.name))

    step = open_bundle(write_bundle(path, edit_model=damage))
    runs = tuple(run for run in load_golden(path / step.body.golden).trajectories if run.steps == STEPS)
    with pytest.raises(GateError, match="the trajectory graph at steps=4") as caught:
        join_components(path, step.body.components, step.body.spec, runs)
    assert caught.value.code == "export-mismatch"


@pytest.mark.parametrize(("mode", "steps"), [("step", 4), ("trajectory", None), ("trajectory", 3)])
def test_manifests_whose_mode_and_plan_do_not_fit(mode: str, steps: int | None, bundles: dict[str, Path]) -> None:
    body = codec.to_json(open_bundle(bundles["none"]).body) | {"mode": mode, "steps": steps}
    with pytest.raises(codec.CodecError, match="steps"):
        codec.from_json(BundleBody, body)


def test_a_step_bundle_that_says_it_is_a_trajectory(tmp_path: Path) -> None:
    from handmade import edit_manifest

    path = write_bundle(tmp_path / "step.bundle")
    edit_manifest(path / "bundle.json", lambda content: content["body"].update(mode="trajectory", steps=4))
    with pytest.raises(ArtifactError, match="components must be trajectory"):
        open_bundle(path)
