"""One plan of a contract on any network: what golden outputs and the gate have in common.

`run_plan` is the sampler alone, `run_components` the whole way from labels or tokens to images.

The table runs in float32 in its reference interpreter, guidance is combined as `distill_rt.core.guidance` defines, noise is
the contract's; only the network differs between the student and an engine.

Legend: B images, N evaluations per network call (2B under cfg: [uncond, cond]), L tokens, D elements of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.guidance import combine_guidance
from distill_rt.core.noise import INITIAL_STREAM, unit_noise
from distill_rt.core.spec import DECODER, TEXT_ENCODER, StudentSpec
from distill_rt.core.table import run_table

Array = NDArray[Any]
Evaluate = Callable[[int, Mapping[str, Array]], Array]
"""``evaluate(net_id, inputs)``: inputs by name with N rows each (`StudentSpec.network_inputs`) -> raw output (N, C, H, W)."""
EvaluateComponent = Callable[[str, Mapping[str, Array]], Array]
"""``evaluate(name, inputs)``: any number of rows through a component of `StudentSpec.components` -> its output."""


def run_components(
    spec: StudentSpec,
    evaluate: EvaluateComponent,
    *,
    steps: int,
    guidance: float | Array,
    seeds: Sequence[int],
    labels: Sequence[int] | None = None,
    tokens: Array | None = None,
) -> Array:
    """Finished images of one plan.

    Args:
        tokens: int64 (B, L) for a student that takes text, else None. The rest as in `run_plan`.

    Returns:
        float32 (B, *image_shape), about [-1, 1].
    """
    text = null_text = None
    if tokens is not None:
        text = evaluate(TEXT_ENCODER, {"tokens": tokens})
        if spec.guidance.mode == "cfg":
            null_text = evaluate(TEXT_ENCODER, {"tokens": np.array([spec.condition.null_tokens], np.int64)})
    x_BCHW = run_plan(
        spec,
        lambda net_id, inputs: evaluate(f"network{net_id}", inputs),
        steps=steps,
        guidance=guidance,
        seeds=seeds,
        labels=labels,
        text=text,
        null_text=null_text,
    )
    return x_BCHW if spec.decoder is None else evaluate(DECODER, {"latent": x_BCHW})


def run_plan(
    spec: StudentSpec,
    evaluate: Evaluate,
    *,
    steps: int,
    guidance: float | Array,
    seeds: Sequence[int],
    labels: Sequence[int] | None,
    text: Array | None = None,
    null_text: Array | None = None,
) -> Array:
    """Images, or latents of a student with a decoder, of one plan.

    Args:
        steps: a key of `spec.plans`.
        guidance: w, for all images or one per image.
        seeds, labels: one per image; labels are None for a student that takes none.
        text: embeddings (B, L, D) of the prompts, None for a student that takes no text.
        null_text: that of the empty prompt, (1, L, D), under cfg.

    Returns:
        float32 (B, C, H, W), about [-1, 1].
    """
    table = spec.plans[steps]

    def network(net_id: int, x_BCHW: Array, time: float, second_time: float | None) -> Array:
        inputs = network_inputs(
            spec,
            x_BCHW,
            time=time,
            second_time=second_time,
            labels=labels,
            guidance=guidance,
            text=text,
            null_text=null_text,
        )
        F_NCHW = evaluate(net_id, inputs)
        if spec.guidance.mode != "cfg":
            return F_NCHW
        F_u, F_c = np.split(F_NCHW, 2)
        return combine_guidance(F_u, F_c, guidance, rescale=spec.guidance.rescale)

    return run_table(
        table,
        unit_noise(seeds, spec.sample_shape, INITIAL_STREAM),
        network,
        lambda stream: unit_noise(seeds, spec.sample_shape, stream),
        dtype=np.float32,
    )


def network_inputs(
    spec: StudentSpec,
    x_BCHW: Array,
    *,
    time: float,
    second_time: float | None,
    labels: Sequence[int] | None,
    guidance: float | Array,
    text: Array | None = None,
    null_text: Array | None = None,
) -> dict[str, Array]:
    """The inputs of one network call, N rows each.

    A row without a second time in a table where others have one gets ``second_time = time``.
    """
    cfg = spec.guidance.mode == "cfg"
    sample = np.concatenate([x_BCHW, x_BCHW]) if cfg else x_BCHW
    num = len(sample)
    values: dict[str, Array] = {
        "sample": sample.astype(np.float32),
        "time": np.full(num, time, np.float32),
        "second_time": np.full(num, time if second_time is None else second_time, np.float32),
        "guidance": np.zeros(len(x_BCHW), np.float32) + np.asarray(guidance, np.float32),
    }
    if labels is not None:
        uncond = [spec.condition.null_label] * len(labels) if cfg else []
        values["label"] = np.array([*uncond, *labels], np.int64)
    if text is not None:
        values["text"] = text if null_text is None else np.concatenate([np.broadcast_to(null_text, text.shape), text])
    return {tensor.name: values[tensor.name] for tensor in spec.network_inputs()}
