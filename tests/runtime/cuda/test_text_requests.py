"""Prompts to pixels in one captured graph, on the imaginary GPU: text encoder, guidance by two evaluations, decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_machine import Machine
from tiny_text import make_tokenizer, text_spec, write_text_student

import distill_rt as drt
from distill_rt.export import compile_bundle, export_student

PROMPTS = ["the red cat", "a dog on the cat", ""]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("text")
    tokenizer = make_tokenizer()
    student = write_text_student(root / "student", text_spec(tokenizer, guidance="cfg"), tokenizer)
    return export_student(student, root / "text.bundle")


def test_the_pixels_are_those_of_the_processor(gpu: Machine, bundle: Path, tmp_path: Path) -> None:
    here = compile_bundle(bundle, "onnxruntime:cpu", tmp_path / "cpu", batches=(1, 2), num_threads=1)
    there = compile_bundle(bundle, "tensorrt:sm90", tmp_path / "gpu", batches=(1, 2), precision="fp32", num_threads=1)
    with drt.load(here) as cpu, drt.load(there) as pipeline:
        for guidance in (1.0, 7.5):
            for steps in (1, 2):
                request = {"prompts": PROMPTS, "seed": 9, "steps": steps, "guidance": guidance}
                want, launched = cpu.generate(**request), gpu.cuda.num_launches
                got = pipeline.generate(**request)
                assert gpu.cuda.num_launches == launched + 2  # three prompts are a batch of two and one of one
                difference = np.abs(got.images.astype(int) - want.images.astype(int))
                assert difference.max() <= 1
                assert (difference == 0).mean() > 0.95
        shown: list[np.ndarray] = []
        images = pipeline.generate(**request, on_step=lambda update: shown.append(update.preview)).images
        assert np.array_equal(images, got.images)
        assert [preview.shape for preview in shown] == [(2, 16, 16, 3)] * 2 + [(1, 16, 16, 3)] * 2
