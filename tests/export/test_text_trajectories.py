"""Token ids to pixels in one graph: text encoder, all steps, guidance, decoder; exported and compiled for real."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tiny_text import make_tokenizer, text_spec, write_text_student

import distill_rt
from distill_rt.export import compile_bundle, export_student
from distill_rt.export.bundle import open_bundle
from distill_rt.export.model_file import load_model

PROMPTS = ("the red cat", "the dog on the cat", "")


@pytest.fixture(scope="module", params=["none", "embedded", "cfg"])
def bundles(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One student as a step bundle and as a trajectory of two steps."""
    torch.set_num_threads(1)
    guidance: Literal["none", "embedded", "cfg"] = request.param
    tokenizer = make_tokenizer()
    root = tmp_path_factory.mktemp(guidance)
    student = write_text_student(root / "student", text_spec(tokenizer, guidance=guidance), tokenizer)
    return (
        export_student(student, root / "step.bundle"),
        export_student(student, root / "trajectory.bundle", "trajectory", steps=2),
    )


@pytest.mark.parametrize("target", ["onnxruntime:cpu", "openvino:cpu"])
def test_the_images_of_step_mode(bundles: tuple[Path, Path], target: str, tmp_path: Path) -> None:
    images = []
    for bundle in bundles:
        engine = compile_bundle(bundle, target, tmp_path / bundle.stem, batches=(1, 3), num_threads=1, use_cache=False)
        with distill_rt.load(engine) as pipeline:
            w = None if pipeline.spec.guidance.mode == "none" else 5.0
            images.append(pipeline.generate(prompts=PROMPTS, seed=3, steps=2, guidance=w).images)
    step, trajectory = images
    assert step.shape == trajectory.shape == (3, 16, 16, 3)
    assert step.std() > 5
    difference = np.abs(step.astype(int) - trajectory)
    assert difference.max() <= 1  # a value on the edge between two bytes
    assert (difference == 0).mean() > 0.99


def test_what_the_steps_have_in_common_is_computed_once(bundles: tuple[Path, Path]) -> None:
    step, trajectory = (open_bundle(bundle) for bundle in bundles)
    graph = load_model(trajectory.directory / trajectory.body.components["trajectory"].file).graph
    encoder, network, decoder = (
        load_model(step.directory / step.body.components[name].file).graph
        for name in ("text_encoder", "network0", "decoder")
    )

    def count(source: ir.Graph, operator: str) -> int:
        return sum(node.op_type == operator for node in source)

    # The empty prompt's encoding is a constant, so the encoder is there once, under cfg too.
    assert count(graph, "LayerNormalization") == count(encoder, "LayerNormalization") + 2 * count(
        network, "LayerNormalization"
    )
    assert count(graph, "Conv") == 2 * count(network, "Conv") + count(decoder, "Conv")
    if step.body.spec.guidance.mode != "embedded":  # where the guidance scale meets the time, sines of it are left
        assert count(graph, "Sin") == 0
    projections = [_name_of_weight(node) for node in graph if node.op_type == "MatMul"]
    text = [name for name in projections if name.startswith("network0.") and _reads_text(name)]
    assert text
    assert len(text) == len(set(text)), "keys and values of the text are projected once for all steps"
    states = [name for name in projections if name.startswith("network0.") and not _reads_text(name)]
    assert len(states) == 2 * len(set(states))


def _reads_text(weight: str) -> bool:
    return ".attn2.to_k" in weight or ".attn2.to_v" in weight


def _name_of_weight(node: Any) -> str:
    value = node.inputs[1]
    while value.producer() is not None and len(value.producer().inputs) == 1:
        value = value.producer().inputs[0]
    return str(value.name) if value.is_initializer() else ""


def test_the_manifest_says_what_made_it(bundles: tuple[Path, Path]) -> None:
    step, trajectory = (open_bundle(bundle).body for bundle in bundles)
    assert (step.mode, step.steps, "passes" in step.versions) == ("step", None, False)
    assert (trajectory.mode, trajectory.steps) == ("trajectory", 2)
    assert trajectory.versions["passes"].startswith("unroll/1 ")
    weights = set(trajectory.components["trajectory"].initializers)
    assert any(name.startswith("decoder.") for name in weights)
    assert not any("network0.backbone.time_embedding" in name for name in weights) or (
        trajectory.spec.guidance.mode == "embedded"
    )
