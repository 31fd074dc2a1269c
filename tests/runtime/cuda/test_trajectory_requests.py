"""Trajectory engines on the imaginary GPU: noise drawn into the network's inputs, one call, pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_machine import Machine
from handmade import GuidanceMode
from handmade_trajectory import STEPS, trajectory_bundle

import distill_rt as drt
from distill_rt.core.errors import UsageError
from distill_rt.export import compile_bundle


@pytest.mark.parametrize("guidance", ["none", "embedded", "cfg"])
def test_the_pixels_are_those_of_the_processor(gpu: Machine, tmp_path: Path, guidance: GuidanceMode) -> None:
    bundle = trajectory_bundle(tmp_path / "t.bundle", guidance)
    here = compile_bundle(bundle, "onnxruntime:cpu", tmp_path / "cpu", batches=(1, 3), num_threads=1)
    there = compile_bundle(bundle, "tensorrt:sm90", tmp_path / "gpu", batches=(1, 3), precision="fp32", num_threads=1)
    latents = np.random.default_rng(3).standard_normal((4, 1, 4, 4)).astype(np.float32)
    with drt.load(here) as cpu, drt.load(there) as pipeline:
        for own in ({}, {"latents": latents}):
            request: dict[str, Any] = {"labels": [0, 1, 2, 1], "seed": 2**63 + 5, **own}
            request |= {} if guidance == "none" else {"guidance": 3.0}
            want, launched = cpu.generate(**request).images, gpu.cuda.num_launches
            got = pipeline.generate(**request).images
            assert gpu.cuda.num_launches == launched + 2  # a batch of three and one of one
            assert want.std() > 10
            difference = np.abs(got.astype(int) - want.astype(int))
            assert difference.max() <= 1
            assert (difference == 0).mean() > 0.95
        with pytest.raises(UsageError, match="step"):
            pipeline.generate(labels=[1], steps=STEPS, on_step=lambda update: None)
