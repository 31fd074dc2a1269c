"""The pipeline on real engines: seeds, batches, previews, threads, and the processes that must not be imported."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from handmade import write_bundle
from handmade_trajectory import STEPS, trajectory_bundle
from tiny_engine import make_engine, network, plan, tiny_spec

import distill_rt as drt
from distill_rt import kernels
from distill_rt.backends.onnxruntime import OnnxRuntimeProgram
from distill_rt.core.errors import ArtifactError, TargetError, UsageError
from distill_rt.core.noise import unit_noise
from distill_rt.core.spec import Condition, Guidance, NetworkSpec, StudentSpec
from distill_rt.core.table import Row, StepTable
from distill_rt.export import compile_bundle
from distill_rt.export.trajectory import run_plan
from distill_rt.runtime import Pipeline, StepUpdate


@pytest.fixture(scope="module")
def pipeline(engine: Path) -> Iterator[Pipeline]:
    with drt.load(engine) as loaded:
        yield loaded


def reference(spec: StudentSpec, result: Any) -> Any:
    """The same request through the reference interpreter and the network in NumPy."""
    labels = None if result.labels is None else list(result.labels)
    w = 1.0 if result.guidance is None else result.guidance
    x = run_plan(spec, network, steps=result.steps, guidance=w, seeds=list(result.seeds), labels=labels)
    return kernels.to_uint8(x)


def test_images_are_those_of_the_contract(pipeline: Pipeline) -> None:
    result = pipeline.generate(labels=[3, 1, 4, 1, 5], seed=7, steps=4, guidance=3.0)
    assert result.images.shape == (5, 4, 4, 1)
    assert result.images.dtype == np.uint8
    assert result.seeds == (7, 8, 9, 10, 11)
    assert result.labels == (3, 1, 4, 1, 5)
    assert (result.steps, result.guidance) == (4, 3.0)
    assert result.engine == pipeline.fingerprint
    # Pixels may round differently by one where the engine's tanh differs from NumPy's in the last bit.
    difference = np.abs(result.images.astype(int) - reference(pipeline.spec, result).astype(int))
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.9


@pytest.mark.parametrize("steps", [1, 4])
def test_image_k_of_a_request_is_the_same_image_requested_alone(pipeline: Pipeline, steps: int) -> None:
    labels = [k % 10 for k in range(16)]
    together = pipeline.generate(labels=labels, seed=100, steps=steps).images
    alone = [pipeline.generate(labels=[labels[k]], seed=100 + k, steps=steps).images[0] for k in range(16)]
    np.testing.assert_array_equal(together, np.stack(alone))
    # Other splits too: 3 is padded to 4, 21 is 16 + 4 + 1.
    np.testing.assert_array_equal(pipeline.generate(labels=labels[:3], seed=100, steps=steps).images, together[:3])
    more = pipeline.generate(labels=[*labels, 0, 1, 2, 3, 4], seed=100, steps=steps).images
    np.testing.assert_array_equal(more[:16], together)


def test_the_reported_request_makes_the_same_images_again(pipeline: Pipeline) -> None:
    first = pipeline.generate(labels=[2], num_images=3)
    again = pipeline.generate_request(first.request)
    np.testing.assert_array_equal(again.images, first.images)
    assert again.seeds == first.seeds


def test_seeds_wrap_around(pipeline: Pipeline) -> None:
    assert pipeline.generate(labels=[1], seed=2**64 - 1, num_images=2).seeds == (2**64 - 1, 0)


def test_own_latents(pipeline: Pipeline) -> None:
    drawn = pipeline.generate(labels=[1, 2], seed=5, steps=2)
    z = unit_noise([5, 6], pipeline.spec.sample_shape)
    given = pipeline.generate(labels=[1, 2], latents=z, steps=2)
    np.testing.assert_array_equal(given.images, drawn.images)
    assert given.request.to_json()["own_latents"] is True


def test_stages_add_up_to_the_total(pipeline: Pipeline) -> None:
    timings = pipeline.generate(labels=[1], seed=1).timings_ms
    assert {"request", "wait", "noise", "network", "table", "pixels", "total"} == set(timings)
    assert sum(value for name, value in timings.items() if name != "total") == pytest.approx(timings["total"])


def test_previews_end_with_the_prediction_of_every_batch(pipeline: Pipeline) -> None:
    seen: list[StepUpdate] = []
    result = pipeline.generate(labels=[1], seed=3, num_images=5, steps=2, on_step=seen.append)
    assert [(u.row, u.num_rows, u.start, len(u.preview)) for u in seen] == [
        (1, 2, 0, 4),
        (2, 2, 0, 4),
        (1, 2, 4, 1),
        (2, 2, 4, 1),
    ]
    assert seen[0].preview.shape[1:] == result.images.shape[1:]
    assert not np.array_equal(seen[0].preview, seen[1].preview), "each preview is a copy of its own"
    np.testing.assert_array_equal(pipeline.generate(labels=[1], seed=3, num_images=5, steps=2).images, result.images)


def test_an_exception_from_on_step_ends_the_request_and_nothing_else(pipeline: Pipeline) -> None:
    expected = pipeline.generate(labels=[1], seed=3, steps=4).images

    def stop(update: StepUpdate) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        pipeline.generate(labels=[1], seed=3, steps=4, on_step=stop)
    np.testing.assert_array_equal(pipeline.generate(labels=[1], seed=3, steps=4).images, expected)


def test_using_a_pipeline_from_its_own_callback_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(UsageError) as caught:
        pipeline.generate(labels=[1], on_step=lambda update: pipeline.generate(labels=[1]) and None)
    assert caught.value.code == "pipeline-reentered"


def test_threads_share_a_pipeline(pipeline: Pipeline) -> None:
    expected = [pipeline.generate(labels=[k], seed=k, steps=4, num_images=3).images for k in range(6)]
    got: dict[int, Any] = {}

    def ask(k: int) -> None:
        for _ in range(20):
            got[k] = pipeline.generate(labels=[k], seed=k, steps=4, num_images=3).images
            if not np.array_equal(got[k], expected[k]):
                return

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(6):
        np.testing.assert_array_equal(got[k], expected[k])


def test_loading_on_demand_gives_the_same_images(engine: Path, pipeline: Pipeline) -> None:
    with drt.load(engine, preload=False) as lazy:
        result = lazy.generate(labels=[1], seed=9, num_images=5)
        assert result.timings_ms["load"] > 0
        assert "load" not in lazy.generate(labels=[1], seed=9, num_images=5).timings_ms
    np.testing.assert_array_equal(result.images, pipeline.generate(labels=[1], seed=9, num_images=5).images)


@pytest.mark.parametrize(("mode", "calls_per_request"), [("step", STEPS), ("trajectory", 1)])
def test_only_what_is_loaded_ahead_is_warmed_up(
    mode: Literal["step", "trajectory"], calls_per_request: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that waits for its engine would wait for the networks twice."""
    bundle = (trajectory_bundle if mode == "trajectory" else write_bundle)(tmp_path / "bundle", "none")
    made = compile_bundle(bundle, "onnxruntime:cpu", tmp_path / "engine", num_threads=1, use_cache=False)
    calls = []
    run = OnnxRuntimeProgram.run

    def counted(program: OnnxRuntimeProgram) -> None:
        calls.append(program)
        run(program)

    monkeypatch.setattr(OnnxRuntimeProgram, "run", counted)
    with drt.load(made, preload=False) as lazy:
        first = lazy.generate(labels=[1], seed=0, steps=STEPS).images
    assert len(calls) == calls_per_request
    with drt.load(made) as loaded:
        assert len(calls) == calls_per_request + 1
        np.testing.assert_array_equal(loaded.generate(labels=[1], seed=0, steps=STEPS).images, first)
    assert len(calls) == 2 * calls_per_request + 1


def test_a_closed_pipeline_says_so(engine: Path) -> None:
    loaded = drt.load(engine)
    loaded.close()
    loaded.close()
    with pytest.raises(UsageError) as caught:
        loaded.generate(labels=[1])
    assert caught.value.code == "pipeline-closed"


CFG = Guidance(mode="cfg", min=1.0, max=4.0, default=2.0)
TWO_TIMES = StepTable(rows=(Row(time=900.0, second_time=300.0, r=0.4), Row(time=300.0, g=0.9))).as_float32()
OTHERS = {
    "cfg": tiny_spec(guidance=CFG, sample_shape=(3, 4, 6)),
    "plain": tiny_spec(condition=Condition(), guidance=Guidance()),
    "second time": tiny_spec(plans={2: TWO_TIMES}),
    "two networks": tiny_spec(
        plans={2: StepTable(rows=(plan(2).rows[0], dataclasses.replace(plan(2).rows[1], net_id=1))).as_float32()},
        networks=(NetworkSpec(kind="unet2d"), NetworkSpec(kind="unet2d")),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("target", ["onnxruntime:cpu", "openvino:cpu"])
def test_other_contracts_and_targets(name: str, target: str, tmp_path: Path) -> None:
    spec = OTHERS[name]
    labels = [4] if spec.condition.kind == "label" else None
    with drt.load(make_engine(tmp_path / "e.engine", spec, target=target, batches=(1, 4))) as pipe:
        result = pipe.generate(labels=labels, seed=21, num_images=5)
        difference = np.abs(result.images.astype(int) - reference(spec, result).astype(int))
        assert difference.max() <= 1
        if target == "onnxruntime:cpu":
            np.testing.assert_array_equal(pipe.generate(labels=labels, seed=23).images[0], result.images[2])


def test_a_damaged_engine_is_refused(engine: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.engine"
    shutil.copytree(engine, copy)
    victim = next(copy.glob("*.onnx"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"\0")
    with pytest.raises(ArtifactError) as caught:
        drt.load(copy)
    assert victim.name in caught.value.message


def test_an_engine_of_another_compiler_is_refused(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "__version__", "9.9.9")
    with pytest.raises(TargetError) as caught:
        drt.load(engine)
    assert "9.9.9" in caught.value.message
    assert "distill-rt compile" in caught.value.hint


HEAVY = [
    "torch", "diffusers", "transformers", "onnx", "onnxscript", "triton", "scipy", "sklearn", "matplotlib", "rich",
    "safetensors", "openvino_telemetry",
]  # fmt: skip


@pytest.mark.parametrize("target", ["onnxruntime:cpu", "openvino:cpu"])
def test_generating_imports_none_of_the_heavy_packages(target: str, tmp_path: Path) -> None:
    made = make_engine(tmp_path / "e.engine", tiny_spec(), target=target, batches=(1,))
    program = f"""
import sys
import distill_rt as drt
loaded = {{name.partition(".")[0] for name in sys.modules}}
assert not loaded & {{"numpy", "torch", "onnxruntime", "openvino"}}, loaded
with drt.load({str(made)!r}) as pipe:
    result = pipe.generate(labels=[3], seed=7, num_images=3, steps=4)
assert result.images.shape == (3, 4, 4, 1)
loaded = {{name.partition(".")[0] for name in sys.modules}}
print(sorted(loaded & set({HEAVY!r})), "distill_rt.training" in sys.modules, "distill_rt.export" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False False"
