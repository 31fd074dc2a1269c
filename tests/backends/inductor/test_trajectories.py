"""Whole plans as one graph, from noise to pixels, as torch modules: every kind of row and of guidance."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from handmade import GuidanceMode, make_ir, make_model, make_spec
from plans import TABLES

from distill_rt.backends.inductor.graph.from_onnx import from_onnx
from distill_rt.core.artifacts import Component
from distill_rt.export.trajectory_graph import trajectory_model

STEPS = 4


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("guidance", ["none", "embedded", "cfg"])
def test_pixels_are_those_of_onnxruntime(name: str, guidance: GuidanceMode, tmp_path: Path) -> None:
    import onnx_ir as ir

    spec = dataclasses.replace(make_spec(guidance), plans={STEPS: TABLES[name]}, default_steps=STEPS)
    path = tmp_path / "trajectory.onnx"
    ir.save(trajectory_model({"network0": make_ir(make_model(spec))}, spec, STEPS), path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    weights = [
        item.name for item in ir.load(path).graph.initializers.values() if item.name and item.name.count(".") > 1
    ]
    ((inputs, outputs),) = spec.trajectory(STEPS).values()
    component = Component(
        file=path.name,
        inputs=inputs,
        outputs=outputs,
        opset=21,
        initializers={item: item for item in weights},
    )
    assert weights
    for batch in (1, 3):
        rng = np.random.default_rng(batch)
        feeds = {
            tensor.name: rng.integers(0, 3, tensor.concrete(batch))
            if tensor.dtype == "int64"
            else rng.standard_normal(tensor.concrete(batch)).astype(np.float32)
            for tensor in component.inputs
        }
        (want,) = session.run(None, feeds)
        module, _ = from_onnx(path, component, batch, torch.device("cpu"))
        with torch.no_grad():
            (got,) = module(*(torch.from_numpy(feeds[tensor.name]) for tensor in component.inputs))
        assert (got.numpy().shape, got.numpy().dtype) == (want.shape, np.uint8)
        assert np.ptp(want) > 20
        assert np.abs(got.numpy().astype(int) - want.astype(int)).max() <= 1  # on the edge between two values
