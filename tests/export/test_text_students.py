"""Prompts to pixels: a student with text and latents, exported, compiled, gated and run, against a loop in diffusers."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnxruntime
import pytest
import torch
from handmade import edit_manifest
from numpy.typing import NDArray
from tiny_text import LATENT, SCHEDULER, hf_tokens, make_tokenizer, text_modules, text_spec, write_text_student

import distill_rt
from distill_rt.backends.engine import open_engine
from distill_rt.cli.main import main
from distill_rt.core.errors import ArtifactError, UsageError
from distill_rt.core.noise import unit_noise
from distill_rt.core.spec import StudentSpec
from distill_rt.core.tokenizer import Tokenizer
from distill_rt.export import compile_bundle, export_student
from distill_rt.export.bundle import open_bundle
from distill_rt.export.golden import load_golden
from distill_rt.export.onnx_graph import export_component
from distill_rt.export.quantize.calibration import FIRST_SEED as CALIBRATION_SEED
from distill_rt.export.quantize.calibration import PROMPTS as CALIBRATION_PROMPTS
from distill_rt.export.quantize.calibration import calibration_inputs
from distill_rt.export.quantize.networks import OpenVINOQuantizer
from distill_rt.export.trajectory import run_components
from distill_rt.models import load_student
from distill_rt.runtime import Pipeline, StepUpdate
from distill_rt.runtime.images import read_text

TARGETS = ("onnxruntime:cpu", "openvino:cpu")
PROMPTS = ("the red cat", "the dog on the cat")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="module")
def spec(tokenizer: Any) -> StudentSpec:
    return text_spec(tokenizer)


@pytest.fixture(scope="module")
def bundle(tokenizer: Any, spec: StudentSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("text")
    return export_student(write_text_student(root / "student", spec, tokenizer), root / "bundle")


@pytest.fixture(scope="module", params=TARGETS)
def pipeline(request: pytest.FixtureRequest, bundle: Path) -> Any:
    engine = bundle.with_suffix(f".{request.param.partition(':')[0]}")
    compile_bundle(bundle, request.param, engine, batches=(1, 2), num_threads=1, use_cache=False)
    with distill_rt.load(engine) as loaded:
        yield loaded


def in_diffusers(
    spec: StudentSpec, tokenizer: Any, prompts: Sequence[str], latents: NDArray[np.float32], steps: int, w: float
) -> NDArray[np.uint8]:
    """What StableDiffusionPipeline does, step by step, with the student's own modules."""
    modules = {name: module.eval() for name, module in text_modules(spec).items()}
    encoder, unet, vae = (modules[name].backbone for name in ("text_encoder", "network0", "decoder"))
    scheduler = diffusers.DDIMScheduler.from_config(SCHEDULER)
    scheduler.set_timesteps(steps)
    with torch.inference_mode():
        ids = torch.from_numpy(hf_tokens(tokenizer, [*[""] * len(prompts), *prompts]))
        text = encoder(ids).last_hidden_state
        x = torch.from_numpy(latents) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            eps_u, eps_c = unet(torch.cat([x, x]), t, encoder_hidden_states=text).sample.chunk(2)
            x = scheduler.step(eps_u + w * (eps_c - eps_u), t, x).prev_sample
        image = vae.decode(x / vae.config.scaling_factor).sample
    pixels: NDArray[np.uint8] = (image / 2 + 0.5).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    return pixels


@pytest.mark.parametrize(("steps", "w"), [(1, 3.0), (2, 1.0), (2, 7.5)])
def test_equals_a_loop_in_diffusers(pipeline: Pipeline, tokenizer: Any, steps: int, w: float) -> None:
    latents = unit_noise([5, 6], LATENT)
    want = in_diffusers(pipeline.spec, tokenizer, PROMPTS, latents, steps, w)
    for more in ({"seed": 5}, {"latents": latents}):
        result = pipeline.generate(prompts=PROMPTS, steps=steps, guidance=w, **more)  # type: ignore[arg-type]
        difference = np.abs(result.images.astype(int) - want.astype(int))
        assert difference.max() <= 1, "the last bit of a float may round a pixel the other way"
        assert (difference == 0).mean() > 0.99
    assert want.std() > 5
    assert not np.array_equal(want[0], want[1])
    assert result.prompts == PROMPTS
    assert result.cut_prompts == ("", "")
    assert {"text", "decode"} < set(result.timings_ms)


def test_every_component_passed_the_gate(pipeline: Pipeline) -> None:
    report = pipeline.manifest.gate
    assert report is not None
    assert set(report.components) == {"text_encoder", "network0", "decoder"}
    assert all(figure.relative_l2 < 1e-4 for figure in report.components.values())
    assert [item.batch for item in pipeline.manifest.components["text_encoder"]] == [1], (
        "prompts are encoded one by one"
    )
    assert [item.batch for item in pipeline.manifest.components["decoder"]] == [1, 2]


def test_an_image_does_not_depend_on_which_prompts_came_before(pipeline: Pipeline) -> None:
    with distill_rt.load(pipeline.path) as fresh:
        want = fresh.generate(prompts=["the dog"], seed=1).images
    for prompts in (["the cat", "the dog"], ["the dog", "red"], ["the dog"]):
        got = pipeline.generate(prompts=prompts, seed=1 - prompts.index("the dog")).images
        if len(prompts) == 1 or pipeline.manifest.target == "onnxruntime:cpu":
            np.testing.assert_array_equal(got[prompts.index("the dog")], want[0])
    np.testing.assert_array_equal(pipeline.generate(prompts=["the dog"], seed=1).images, want)


def test_previews_are_decoded(pipeline: Pipeline) -> None:
    seen: list[StepUpdate] = []
    plain = pipeline.generate(prompts=["cat"], seed=2, num_images=3, steps=2).images
    result = pipeline.generate(prompts=["cat"], seed=2, num_images=3, steps=2, on_step=seen.append)
    np.testing.assert_array_equal(result.images, plain)
    assert [(update.row, update.start, update.preview.shape) for update in seen] == [
        (1, 0, (2, 16, 16, 3)),
        (2, 0, (2, 16, 16, 3)),
        (1, 2, (1, 16, 16, 3)),
        (2, 2, (1, 16, 16, 3)),
    ]


def test_prompts_decide_and_the_empty_one_is_a_prompt(pipeline: Pipeline) -> None:
    images = [pipeline.generate(prompts=[prompt], seed=0).images for prompt in ("", "cat", "dog")]
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(images[1], images[2])
    np.testing.assert_array_equal(pipeline.generate(prompts=[" CAT "], seed=0).images, images[1])


def test_the_end_of_a_long_prompt_is_reported(pipeline: Pipeline) -> None:
    long = "the red cat on the dog on the cat on the red dog"
    result = pipeline.generate(prompts=["cat", long], seed=0)
    assert result.cut_prompts is not None
    assert result.cut_prompts[0] == ""
    assert result.cut_prompts[1]
    kept = long.removesuffix(result.cut_prompts[1])
    np.testing.assert_array_equal(pipeline.generate(prompts=["cat", kept], seed=0).images, result.images)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({}, "prompt-missing"),
        ({"prompts": []}, "prompt-missing"),
        ({"labels": [1]}, "prompt-missing"),
        ({"labels": [1], "prompts": ["cat"]}, "condition-not-in-contract"),
        ({"prompts": ["a", "b", "c"], "num_images": 2}, "prompt-count"),
        ({"prompts": "cat"}, "prompts-type"),
        ({"prompts": ["\ud800"]}, "prompts-type"),
        ({"prompts": ["cat"], "guidance": 9.0}, "guidance-not-in-contract"),
        ({"prompts": ["cat"], "latents": np.zeros((1, 3, 16, 16), np.float32)}, "latents-shape"),
    ],
)
def test_bad_requests(pipeline: Pipeline, request_: dict[str, Any], code: str) -> None:
    with pytest.raises(UsageError) as caught:
        pipeline.generate(**request_)
    assert caught.value.code == code
    assert caught.value.hint


def test_as_many_images_as_prompts(pipeline: Pipeline) -> None:
    assert len(pipeline.generate(prompts=["a", "b", "c"], seed=1).images) == 3


def test_the_command_line(pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine, out = str(pipeline.path), tmp_path / "cats.png"
    long = "cat " * 20
    assert (
        main(["generate", engine, "--out", str(out), "--prompt", "cat", "--prompt", long, "--seed", "4", "--json"]) == 0
    )
    said = json.loads(capsys.readouterr().out)
    assert said["prompts"] == ["cat", long]
    assert said["cut_prompts"][0] == ""
    assert said["cut_prompts"][1]
    text = read_text(out)
    assert text["prompts"] == ["cat", long]
    assert main(["generate", engine, "--out", str(out), "--prompt", long]) == 0
    assert "was cut: 'cat cat" in capsys.readouterr().out
    assert main(["inspect", engine]) == 0
    shown = capsys.readouterr().out
    for line in ("text_encoder", "decoder", "16 x 16 pixels, 3 channels", "up to 12 tokens"):
        assert line in shown
    assert main(["bench", engine, "--num-images", "1", "--requests", "3", "--warmup", "1", "--json"]) == 0
    assert {"text", "decode"} < set(json.loads(capsys.readouterr().out)["runs"][0]["stages_ms"])


def test_generating_imports_neither_torch_nor_transformers(pipeline: Pipeline) -> None:
    program = (
        "import sys, distill_rt\n"
        f"with distill_rt.load({str(pipeline.path)!r}) as pipe: pipe.generate(prompts=['cat'], seed=1)\n"
        "print(sorted({'torch', 'transformers', 'diffusers', 'onnx', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_bundle_holds_real_prompts(bundle: Path, spec: StudentSpec) -> None:
    body = open_bundle(bundle).body
    assert body.tokenizer == "tokenizer.json"
    golden = load_golden(bundle / body.golden)
    assert spec.condition.null_tokens in {
        tuple(row) for row in golden.components["text_encoder"].inputs["tokens"].tolist()
    }
    assert all(run.tokens is not None and run.images.shape == (2, 3, 16, 16) for run in golden.trajectories)
    assert len({tuple(run.tokens.ravel()) for run in golden.trajectories if run.tokens is not None}) > 1


def test_int8_calibrates_the_decoder_on_the_students_own_latents(
    bundle: Path, spec: StudentSpec, tmp_path: Path
) -> None:
    pytest.importorskip("nncf")
    opened = open_bundle(bundle)
    rows = calibration_inputs(opened)
    assert set(rows) == {"network0", "decoder"}
    latents = rows["decoder"]["latent"]
    assert latents.shape[1:] == LATENT
    assert len(latents) >= 16
    # Latents of real trajectories: the first plan's, made again without a decoder.
    sessions = {
        name: onnxruntime.InferenceSession(str(bundle / component.file))
        for name, component in opened.body.components.items()
    }
    per_scale = len(latents) // len(spec.steps) // 3
    scales = [spec.guidance.min, spec.guidance.default, spec.guidance.max]
    tokens = Tokenizer(bundle / "tokenizer.json", spec.condition)(CALIBRATION_PROMPTS).ids
    indices = np.arange(per_scale * 3)
    want = run_components(
        dataclasses.replace(spec, decoder=None),
        lambda name, inputs: sessions[name].run(None, dict(inputs))[0],
        steps=spec.steps[0],
        guidance=np.repeat(np.asarray(scales, np.float32), per_scale),
        seeds=[CALIBRATION_SEED + int(i) for i in indices],
        tokens=tokens[indices % len(tokens)],
    )
    np.testing.assert_allclose(latents[: len(want)], want, rtol=1e-3, atol=1e-4)
    quantizer = OpenVINOQuantizer(opened, lambda *_: None)
    source = bundle / opened.body.components["decoder"].file
    assert quantizer.graph("text_encoder", source, tmp_path / "text.onnx") == source
    assert quantizer.graph("decoder", source, tmp_path / "decoder.onnx") == tmp_path / "decoder.xml"
    assert quantizer.reports["decoder"]["rows"] == len(latents)


@pytest.mark.parametrize(
    ("change", "mentions"),
    [
        (lambda body: body.update(tokenizer=None), "tokenizer"),
        (lambda body: body.update(tokenizer="other.json"), "other.json"),
        (lambda body: body["components"].pop("text_encoder"), "components must be text_encoder, network0, decoder"),
        (lambda body: body["components"]["decoder"].pop(), "every component must be compiled for every one of batches"),
    ],
)
def test_engines_that_lack_a_part(change: Any, mentions: str, pipeline: Pipeline, tmp_path: Path) -> None:
    import shutil

    engine = shutil.copytree(pipeline.path, tmp_path / "engine")
    edit_manifest(engine / "engine.json", lambda content: change(content["body"]))
    with pytest.raises(ArtifactError, match=mentions):
        open_engine(engine)


def test_the_kl_decoder_and_embedded_guidance_export(tokenizer: Any, tmp_path: Path) -> None:
    """As components: `export_component` itself compares ONNX Runtime with torch at two batches."""
    torch.set_num_threads(1)
    spec = text_spec(tokenizer, guidance="embedded", decoder="autoencoder_kl")
    student = load_student(write_text_student(tmp_path / "student", spec, tokenizer))
    for name in ("network0", "decoder"):
        part = export_component(student.components()[name], *spec.components()[name], tmp_path, f"{name}.onnx")
        assert [tensor.name for tensor in part.inputs] == [
            value.name for value in onnxruntime.InferenceSession(tmp_path / f"{name}.onnx").get_inputs()
        ]
