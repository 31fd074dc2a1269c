"""What `inspect` plans is what a worker allocates, on the imaginary GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_machine import Machine
from fake_tensorrt import SCRATCH_BYTES
from tiny_engine import make_engine, tiny_spec

import distill_rt as drt
from distill_rt.cli.main import main
from distill_rt.kernels.triton.row_layout import ROW_BYTES
from distill_rt.runtime.cuda.memory import plan_memory

BATCHES = (2, 8)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_plan_is_what_is_allocated(gpu: Machine, tmp_path: Path, workers: int) -> None:
    spec = tiny_spec(sample_shape=(4, 32, 32))
    engine = make_engine(tmp_path / "engine", spec, target="tensorrt:sm90", batches=BATCHES, precision="fp32")
    assert gpu.cuda.used_bytes == 0  # the gate's programs are gone
    with drt.load(engine, workers=workers) as pipeline:
        plan = plan_memory(engine, pipeline.manifest)
        assert plan.weights == (engine / "network0.plan").stat().st_size
        allocated = gpu.cuda.used_bytes  # the imaginary plans keep their weights elsewhere
        # Beside the buffers: scratch memory of the networks, and the step tables, two forms of a row and its times.
        rows = sum(2 + 2 * len(table.rows) for table in spec.plans.values())
        tables = rows * (ROW_BYTES + 2 * 256) + 2 * len(spec.plans) * 256
        rest = allocated - workers * plan.buffers
        assert 0 <= rest <= workers * len(BATCHES) * (SCRATCH_BYTES + tables)
        # Tanh of a sum of five terms, float32: at least the sum and one term live at once.
        assert plan.activations >= 2 * sum(BATCHES) * 4 * 32 * 32 * 4
        assert plan.total(workers) == plan.weights + workers * (plan.buffers + plan.activations)


def test_inspect_says_it(gpu: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = make_engine(tmp_path / "engine", tiny_spec(), target="tensorrt:sm90", batches=(1,), precision="fp32")
    assert main(["inspect", str(engine)]) == 0
    text = capsys.readouterr().out
    assert "GPU memory" in text
    assert "shared by all workers" in text
    assert "on Imaginary H100 (sm90)" in text  # where the gate ran
