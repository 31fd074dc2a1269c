"""`Pipeline.generate` against the bare loop of its engine calls, and against the reference interpreter on the same engine.

    pytest benchmarks/bench_pipeline.py --benchmark-json pipeline.json

The network is the demo's UNet for 8x8 digits with fresh weights (speed does not depend on their values), 4 steps, guidance
scale as an input. Per target and number of images one group of three:

- `engine-calls`: 4 calls of the compiled network, nothing else: the floor.
- `pipeline`: a whole request, checked, seeded, finished to uint8. The difference to the floor is our overhead.
- `reference`: the same request through the table interpreter in NumPy on the same engine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distill_rt import kernels
from distill_rt.backends.engine import open_engine
from distill_rt.core.artifacts import EngineBody
from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.spec import Guidance, StudentSpec
from distill_rt.export.trajectory import run_plan
from distill_rt.runtime import Pipeline

Array = NDArray[Any]

TARGETS = ("onnxruntime:cpu", "openvino:cpu")
NUM_IMAGES = (1, 4, 16)
STEPS = 4
SEED = 7


def student_spec() -> StudentSpec:
    """The demo's teacher as a student of 4 steps."""
    from distill_rt.training.recipes import RECIPES

    teacher = RECIPES["digits-teacher"]().spec
    (network,) = teacher.networks
    times = [1.0 - i / STEPS for i in range(STEPS)]
    return dataclasses.replace(
        teacher,
        guidance=Guidance(mode="embedded", min=1.0, max=4.0, default=2.0),
        plans={STEPS: ddim(teacher.process, teacher.parameterization, times).as_float32()},
        default_steps=STEPS,
        networks=(dataclasses.replace(network, config={**network.config, "guidance": True}),),
    )


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    from distill_rt.export import export_student
    from distill_rt.models import build_network, save_student

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("bench")
    spec = student_spec()
    save_student(root / "student", spec, [build_network(spec.networks[0])])
    return export_student(root / "student", root / "digits.bundle")


@pytest.fixture(scope="session", params=TARGETS)
def pipeline(request: pytest.FixtureRequest, bundle: Path) -> Iterator[Pipeline]:
    from distill_rt.export import compile_bundle

    out = bundle.with_name(f"{request.param.partition(':')[0]}.engine")
    compile_bundle(bundle, request.param, out, batches=NUM_IMAGES, use_cache=False)
    with Pipeline.load(out) as loaded:
        yield loaded


class Calls:
    """The engine's program for one batch, loaded a second time."""

    def __init__(self, pipeline: Pipeline, batch: int) -> None:
        self.body: EngineBody = pipeline.manifest
        self.program = open_engine(pipeline.path).load("network0", batch)

    def floor(self) -> None:
        for _ in range(STEPS):
            self.program.run()

    def evaluate(self, net_id: int, inputs: Any) -> Array:
        for name, values in inputs.items():
            self.program.inputs[name][:] = values
        self.program.run()
        return self.program.outputs["prediction"].copy()

    def reference(self) -> Array:
        num = len(self.program.inputs["sample"])
        seeds = [SEED + k for k in range(num)]
        x = run_plan(self.body.spec, self.evaluate, steps=STEPS, guidance=2.0, seeds=seeds, labels=[3] * num)
        return kernels.to_uint8(x)


@pytest.mark.parametrize("num_images", NUM_IMAGES)
@pytest.mark.parametrize("what", ["engine-calls", "pipeline", "reference"])
def test_pipeline(benchmark: Any, pipeline: Pipeline, what: str, num_images: int) -> None:
    if num_images not in pipeline.batches:
        pytest.skip(f"batch {num_images} is left out of this engine")
    benchmark.group = f"{pipeline.manifest.target} {num_images} images"
    calls = Calls(pipeline, num_images)
    expected = calls.reference()

    def generate() -> Array:
        return pipeline.generate(labels=[3], seed=SEED, num_images=num_images, guidance=2.0).images

    np.testing.assert_array_equal(generate(), expected)
    timed = {"engine-calls": calls.floor, "pipeline": generate, "reference": calls.reference}[what]
    benchmark.pedantic(timed, rounds=max(25, 200 // num_images), warmup_rounds=5)
    if what == "pipeline":
        stages = [pipeline.generate(labels=[3], seed=SEED, num_images=num_images).timings_ms for _ in range(50)]
        benchmark.extra_info["overhead_ms"] = float(np.median([t["total"] - t["network"] for t in stages]))
