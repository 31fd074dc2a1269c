"""Requests on a GPU that is imaginary: compile, gate, captured graphs and pixels, against the reference interpreter."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeLauncher, Result
from fake_machine import Machine
from tiny_engine import make_engine, network, plan, tiny_spec

import distill_rt as drt
from distill_rt import kernels
from distill_rt.core.errors import ResourceError, TargetError
from distill_rt.core.spec import Condition, Guidance, NetworkSpec, StudentSpec
from distill_rt.core.table import Row, StepTable
from distill_rt.export.trajectory import run_plan
from distill_rt.runtime import Pipeline

TARGET = "tensorrt:sm90"


def rows(*changes: dict[str, Any]) -> StepTable:
    """A table of general rows."""
    given = [
        {"time": 900.0 - 100 * i, "c_in": 1.0 - 0.1 * i, "p": 0.8, "q": -0.6, "r": 0.3, "g": 0.6} | change
        for i, change in enumerate(changes)
    ]
    return StepTable(init_scale=0.9, rows=tuple(Row(**fields) for fields in given)).as_float32()


CFG: dict[str, Any] = {
    "condition": Condition(kind="label", num_classes=10, null_label=10),
    "guidance": Guidance(mode="cfg", min=1.0, max=4.0, default=2.0),
}
SPECS: dict[str, dict[str, Any]] = {
    "embedded guidance, noise": {},
    "no condition": {"condition": Condition(), "guidance": Guidance()},
    "two evaluations": CFG,
    "rescaled": CFG | {"guidance": Guidance(mode="cfg", min=1.0, max=4.0, default=2.0, rescale=0.7)},
    "second time": {"plans": {2: rows({"second_time": 500.0}, {"second_time": 0.0})}},
    "clip": {"plans": {2: rows({"clip": 0.5}, {"clip": 1.0, "f": 0.2})}},
    "threshold": CFG | {"plans": {2: rows({"threshold_ratio": 0.9, "threshold_max": 1.5}, {"clip": 1.0})}},
    "history": {"plans": {2: plan(2), 4: rows({}, {"h1": -0.3}, {"h1": 0.4, "h2": 0.1}, {"h1": 0.2, "h3": -0.1})}},
    "anchor": {"plans": {2: rows({}, {}), 4: rows({"set_anchor": True}, {"k": 0.5}, {"set_anchor": True}, {"k": 0.3})}},
    "row without network": {
        "plans": {2: rows({"net_id": -1, "p": 1.0, "q": 0.0, "g": 0.0, "n": 0.3, "stream": 1}, {}, {})}
    },
    "two networks": {
        "networks": (NetworkSpec(kind="unet2d"), NetworkSpec(kind="unet2d")),
        "plans": {2: rows({"net_id": 1}, {"net_id": 0}), 4: rows({}, {"net_id": 1}, {}, {"net_id": 1})},
    },
    "odd size": {"sample_shape": (3, 5, 7), "plans": {2: plan(2), 4: plan(4, stochastic=True)}},
}


def expected(spec: StudentSpec, result: Any) -> Any:
    x = run_plan(
        spec,
        network,
        steps=result.steps,
        guidance=1.0 if result.guidance is None else result.guidance,
        seeds=list(result.seeds),
        labels=None if result.labels is None else list(result.labels),
    )
    return kernels.to_uint8(x)


def assert_same_images(got: Any, want: Any) -> None:
    """Pixels may round differently by one where ONNX Runtime's tanh differs from NumPy's in the last bit."""
    difference = np.abs(got.astype(int) - want.astype(int))
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.9


def compiled(path: Path, spec: StudentSpec, batches: tuple[int, ...] = (1, 4)) -> Path:
    return make_engine(path, spec, target=TARGET, batches=batches, precision="fp32")


@pytest.fixture
def pipeline(gpu: Machine, tmp_path: Path) -> Pipeline:
    return drt.load(compiled(tmp_path / "engine", tiny_spec()))


@pytest.mark.parametrize("name", SPECS)
def test_images_are_those_of_the_contract(gpu: Machine, tmp_path: Path, name: str) -> None:
    changes = SPECS[name]
    plans = changes.get("plans", {2: plan(2), 4: plan(4, stochastic=True)})
    spec = tiny_spec(**(changes | {"plans": plans}))
    pipeline = drt.load(compiled(tmp_path / "engine", spec))
    labelled = spec.condition.kind == "label"
    guided = spec.guidance.mode != "none"
    for steps in spec.steps:
        for seed, w in ((7, 2.0), (2**64 - 2, 3.5)):
            result = pipeline.generate(
                labels=[3, 1, 4, 1, 5] if labelled else None,
                num_images=5,
                seed=seed,
                steps=steps,
                guidance=w if guided else None,
            )
            assert_same_images(result.images, expected(spec, result))


def test_one_graph_per_plan_is_captured_at_load_and_none_later(pipeline: Pipeline, gpu: Machine) -> None:
    captured = gpu.cuda.num_graphs
    assert captured == len(pipeline.spec.plans) * len(pipeline.batches)
    launched = gpu.cuda.num_launches
    for seed, w, label in ((1, 2.0, 3), (2, 2.5, 4), (3, 1.0, 0)):
        pipeline.generate(labels=[label], seed=seed, guidance=w)
    assert gpu.cuda.num_graphs == captured
    assert gpu.cuda.num_launches == launched + 3  # one launch per request


def test_without_capture_the_images_are_the_same(pipeline: Pipeline, gpu: Machine) -> None:
    plain = drt.load(pipeline.path, capture=False)
    launched = gpu.cuda.num_launches
    for steps in pipeline.spec.steps:
        request: dict[str, Any] = {"labels": [1, 2, 3], "seed": 5, "steps": steps}
        want = pipeline.generate(**request).images
        launched = gpu.cuda.num_launches
        assert np.array_equal(plain.generate(**request).images, want)
    assert gpu.cuda.num_launches == launched


def test_own_latents_replace_the_initial_noise(pipeline: Pipeline) -> None:
    from distill_rt.core.noise import INITIAL_STREAM, unit_noise

    request: dict[str, Any] = {"labels": [1, 2, 3], "seed": 11, "steps": 4}
    own = unit_noise([11, 12, 13], pipeline.spec.sample_shape, INITIAL_STREAM)
    want = pipeline.generate(**request).images
    assert np.array_equal(pipeline.generate(**request, latents=own).images, want)
    assert not np.array_equal(pipeline.generate(**request, latents=-own).images, want)
    assert np.array_equal(pipeline.generate(**request).images, want)  # the seeds' noise is back


def test_previews_end_in_the_images(pipeline: Pipeline) -> None:
    updates: list[Any] = []
    request: dict[str, Any] = {"labels": [1, 2, 3], "seed": 3, "steps": 4}
    shown = pipeline.generate(**request, on_step=updates.append).images
    assert np.array_equal(shown, pipeline.generate(**request).images)
    assert [update.row for update in updates] == [1, 2, 3, 4]
    assert all(update.preview.shape == (3, 4, 4, 1) for update in updates)
    assert len({update.preview.tobytes() for update in updates}) == 4


def test_an_error_in_a_preview_leaves_the_pipeline_whole(pipeline: Pipeline) -> None:
    def fail(update: Any) -> None:
        raise KeyboardInterrupt

    request: dict[str, Any] = {"labels": [1], "seed": 3, "steps": 4}
    want = pipeline.generate(**request).images
    with pytest.raises(KeyboardInterrupt):
        pipeline.generate(**request, on_step=fail)
    assert np.array_equal(pipeline.generate(**request).images, want)


def test_workers_share_the_weights_and_answer_alike(gpu: Machine, tmp_path: Path) -> None:
    engine = compiled(tmp_path / "engine", tiny_spec(), batches=(2,))
    pipeline = drt.load(engine, workers=3)
    got: dict[int, Any] = {}

    def ask(start: int) -> None:
        for i in range(start, 12, 4):
            got[i] = pipeline.generate(labels=[i % 10, i % 10], seed=i).images

    want = [pipeline.generate(labels=[i % 10, i % 10], seed=i).images for i in range(12)]
    threads = [threading.Thread(target=ask, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(got[i], want[i]) for i in range(12))


def test_closing_frees_the_memory(pipeline: Pipeline, gpu: Machine) -> None:
    assert gpu.cuda.used_bytes
    pipeline.close()
    gc.collect()
    assert gpu.cuda.used_bytes == 0
    assert not gpu.cuda.pinned
    assert gpu.cuda.num_graphs == 0
    assert len(gpu.cuda.queues) == 1  # the one that the driver loads with


def test_too_little_memory_names_the_need(gpu: Machine, tmp_path: Path) -> None:
    engine = compiled(tmp_path / "engine", tiny_spec())
    gpu.cuda.total_bytes = gpu.cuda.used_bytes + 6000
    with pytest.raises(
        ResourceError, match=r"not enough GPU memory for .*: .* MiB are needed, .* are free on Imaginary"
    ):
        drt.load(engine)


def test_a_request_that_cannot_be_captured_says_what_to_do(gpu: Machine, tmp_path: Path) -> None:
    engine = compiled(tmp_path / "engine", tiny_spec())
    gpu.cuda.fails["cuGraphInstantiate"] = Result.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
    with pytest.raises(TargetError) as caught:
        drt.load(engine)
    assert caught.value.code == "capture-failed"
    assert "capture=False" in caught.value.hint
    assert drt.load(engine, capture=False).generate(labels=[1], seed=1).images.shape == (1, 4, 4, 1)


def test_kernels_that_were_not_compiled_for_this_gpu_are_told(
    pipeline: Pipeline, gpu: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pipeline.notes == ()
    note = "the kernel pack has no kernels for compute capability 9.0: the driver compiles its PTX"
    monkeypatch.setattr(FakeLauncher, "note", note)
    assert drt.load(pipeline.path).notes == (note,)


def test_a_truncated_plan_is_refused(gpu: Machine, tmp_path: Path) -> None:
    """The manifest's hash finds it first; a plan that was cut before it was hashed is TensorRT's to refuse."""
    from distill_rt.backends.tensorrt.backend import TensorRT

    engine = drt.load(compiled(tmp_path / "engine", tiny_spec())).path
    backend = TensorRT("sm90")
    spec = tiny_spec()
    (engine / "network0.plan").write_bytes((engine / "network0.plan").read_bytes()[:-10])
    inputs, outputs = spec.network_inputs(), spec.network_outputs()
    with pytest.raises(TargetError) as caught:
        backend.open_plan(engine, ["network0.plan"], inputs, outputs)
    assert "cannot load network0.plan" in caught.value.message
    assert "plan_size == header.size" in caught.value.message
