"""optimum-intel's pipeline on SD-Turbo's shape, in an environment of its own: its pins exclude ours.

    python -m venv E && E/bin/pip install torch==2.13.0 && echo torch==2.13.0 > pins
    E/bin/pip install -c pins 'optimum-intel[openvino]' diffusers
    python benchmarks/bench_text_to_image.py --work DIRECTORY --optimum-python E/bin/python

`prepare` writes the student's networks as a diffusers pipeline and has optimum-intel export it. It cannot export a tiny
autoencoder, so the pipeline stops at the latent, and the decoder is the model that the other OpenVINO rows use. `run` prints
the line of JSON that the benchmark reads.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

NUM_THREADS = len(os.sched_getaffinity(0))
SETTINGS = {
    "INFERENCE_PRECISION_HINT": "bf16",
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": "1",
    "INFERENCE_NUM_THREADS": str(NUM_THREADS),
}


def weights(student: Path, name: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    prefix = "backbone."
    return {
        key.removeprefix(prefix): value
        for key, value in load_file(student / f"{name}.safetensors").items()
        if key.startswith(prefix)
    }


def prepare(student: Path, out: Path) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from optimum.intel import OVStableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    spec = json.loads((student / "student.json").read_text())["body"]["spec"]
    scheduler: dict[str, Any] = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
    }
    unet = UNet2DConditionModel(**spec["networks"][0]["config"])
    unet.load_state_dict(weights(student, "network0"))
    text = CLIPTextModel(CLIPTextConfig(**spec["text_encoder"]["config"]))
    missing, unexpected = text.load_state_dict(
        {f"text_model.{key}": value for key, value in weights(student, "text_encoder").items()}, strict=False
    )
    if missing or unexpected:
        text.load_state_dict(weights(student, "text_encoder"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(student / "tokenizer.json"),
        model_max_length=spec["condition"]["num_tokens"],
        pad_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        bos_token="<|startoftext|>",
    )
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4,
                          up_block_types=("UpDecoderBlock2D",) * 4),
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    source = out.with_suffix(".diffusers")
    pipeline.save_pretrained(source)
    del pipeline, unet, text
    exported = OVStableDiffusionPipeline.from_pretrained(source, export=True, compile=False, load_in_8bit=False)
    exported.save_pretrained(out)


def run(out: Path, decoder: Path, prompts: list[str], noise: Path, image: Path) -> None:
    import openvino as ov
    from optimum.intel import OVStableDiffusionPipeline

    start = time.perf_counter()
    pipeline = OVStableDiffusionPipeline.from_pretrained(out, compile=False, ov_config=SETTINGS)
    pipeline.reshape(batch_size=1, height=512, width=512, num_images_per_prompt=1)
    # That makes room for two evaluations under guidance, which a distilled student does not need.
    unet = pipeline.unet.model
    shapes = {port: list(port.get_partial_shape().to_shape()) for port in unet.inputs}
    unet.reshape({port: [1, *shape[1:]] if shape[:1] == [2] else shape for port, shape in shapes.items()})
    pipeline.compile()
    pipeline.set_progress_bar_config(disable=True)
    decode = ov.Core().compile_model(str(decoder), "CPU", SETTINGS).create_infer_request()
    latents = torch.from_numpy(np.load(noise))

    def call(prompt: str) -> np.ndarray[Any, Any]:
        latent = pipeline(
            prompt, num_inference_steps=1, guidance_scale=0.0, latents=latents, output_type="latent"
        ).images
        (decoded,) = decode.infer([np.asarray(latent, np.float32)]).values()
        pixels: np.ndarray[Any, Any] = (
            np.rint(np.clip(decoded / 2 + 0.5, 0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
        )
        return pixels

    load_s = time.perf_counter() - start
    np.save(image, call(prompts[0]))
    first_s = time.perf_counter() - start
    wall, busy = [], []
    for prompt in prompts[1:]:
        processor, begin = time.process_time(), time.perf_counter()
        call(prompt)
        wall.append(time.perf_counter() - begin)
        busy.append((time.process_time() - processor) / NUM_THREADS)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"wall": wall, "busy": busy, "peak_mb": peak_mb, "load_s": load_s, "first_image_s": first_s}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("prepare")
    one.add_argument("student", type=Path)
    one.add_argument("out", type=Path)
    two = commands.add_parser("run")
    two.add_argument("out", type=Path)
    two.add_argument("--decoder", type=Path, required=True)
    two.add_argument("--prompts", nargs="+", required=True)
    two.add_argument("--noise", type=Path, required=True)
    two.add_argument("--image", type=Path, required=True)
    args = parser.parse_args()
    if args.command == "prepare":
        prepare(args.student, args.out)
    else:
        run(args.out, args.decoder, args.prompts, args.noise, args.image)


if __name__ == "__main__":
    main()
