"""A diffusers UNet in a step loop with a diffusers scheduler on different engines: what pipelines do, from noise to pixels.

Every function returns a call that maps the fixed noise to uint8 images (B, H, W, C). `torch_compile` uses freezing and
max-autotune; `openvino` is what optimum-intel does: the module converted with static shapes, bfloat16, latency hint.

Legend: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
Call = Callable[[], Array]
Evaluate = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``evaluate(x, time)``: float32 on both sides."""


def step_loop(evaluate: Evaluate, scheduler_config: Mapping[str, Any], steps: int, noise_BCHW: Array) -> Call:
    """The loop that all of them share."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(dict(scheduler_config))
    noise = torch.from_numpy(noise_BCHW)

    def call() -> Array:
        with torch.inference_mode():
            scheduler.set_timesteps(steps)
            x = noise * scheduler.init_noise_sigma
            for time in scheduler.timesteps:
                x = scheduler.step(evaluate(x, time), time, x).prev_sample
            pixels: Array = ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return pixels

    return call


def eager(unet: torch.nn.Module, dtype: torch.dtype, *, channels_last: bool) -> Evaluate:
    unet = unet.to(dtype)
    if channels_last:
        unet = unet.to(memory_format=torch.channels_last)

    def evaluate(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = unet(x.to(dtype), time).sample
        return output.float()

    return evaluate


def torch_compile(unet: torch.nn.Module, dtype: torch.dtype) -> Evaluate:
    import torch._inductor.config as inductor

    inductor.freezing = True
    unet = unet.to(dtype).to(memory_format=torch.channels_last)
    compiled = torch.compile(unet, mode="max-autotune", dynamic=False)

    def evaluate(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():  # freezing refuses inference mode
            output: torch.Tensor = compiled(x.to(dtype), time).sample
        return output.float()

    return evaluate


def onnxruntime(graph: Path, num_threads: int) -> Evaluate:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])

    def evaluate(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        inputs = {"sample": x.numpy(), "time": np.full(len(x), float(time), np.float32)}
        return torch.from_numpy(session.run(None, inputs)[0])

    return evaluate


def openvino(unet: torch.nn.Module, shape: tuple[int, ...], num_threads: int, *, precision: str = "bf16") -> Evaluate:
    import openvino as ov

    class Tensors(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet = unet

        def forward(self, sample: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.unet(sample, time).sample
            return output

    example = (torch.zeros(shape), torch.zeros(shape[0]))
    model = ov.convert_model(Tensors(), example_input=example, input=[shape, (shape[0],)])
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": num_threads,
        "NUM_STREAMS": 1,
    }
    return _openvino_call(ov.Core().compile_model(model, "CPU", settings))


def openvino_naive(graph: Path) -> Evaluate:
    """The exported graph, shapes left free, no settings: the first page of the tutorial."""
    import openvino as ov

    return _openvino_call(ov.Core().compile_model(str(graph), "CPU"))


def _openvino_call(compiled: Any) -> Evaluate:
    request = compiled.create_infer_request()

    def evaluate(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        inputs = [x.numpy(), np.full(len(x), float(time), np.float32)]
        (output,) = request.infer(inputs, share_inputs=True).values()
        return torch.from_numpy(np.array(output))

    return evaluate
