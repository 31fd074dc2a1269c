"""The demo's picture: one row of digits per sampler, the same noise in every column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = list[tuple[str, NDArray[np.uint8]]]
"""Caption and images (N, H, W)."""

NUM_COLUMNS = 20


def sample_rows(teacher: Path, engine: Path, *, seed: int) -> Rows:
    """Teacher at 64 and at 4 evaluations (torch), then every plan of the engine; column k has label k // 2, seed + k."""
    from distill_rt.core.noise import image_seeds
    from distill_rt.core.samplers.ddim import ddim
    from distill_rt.kernels import to_uint8
    from distill_rt.models import load_student
    from distill_rt.runtime import load
    from distill_rt.training.sampling import sample

    loaded = load_student(teacher)
    spec, labels = loaded.spec, [k // 2 for k in range(NUM_COLUMNS)]
    seeds = image_seeds(seed, NUM_COLUMNS)
    rows: Rows = []
    for evaluations in (64, 4):
        num_steps = evaluations // 2  # classifier-free guidance evaluates the network twice per step
        table = ddim(spec.process, spec.parameterization, [1.0 - i / num_steps for i in range(num_steps)])
        images = sample(spec, loaded.networks, seeds, table=table, labels=labels)
        caption = f"teacher, {evaluations} evaluations\n({num_steps} guided steps)"
        rows.append((caption, to_uint8(images.numpy())[..., 0]))
    with load(engine) as pipe:
        for num_steps in sorted(pipe.spec.steps, reverse=True):
            result = pipe.generate(labels=labels, seed=seed, num_images=NUM_COLUMNS, steps=num_steps)
            plural = "s" if num_steps > 1 else ""
            rows.append((f"student, {num_steps} evaluation{plural}\n(compiled engine)", result.images[..., 0]))
    return rows


def draw_grid(path: Path, rows: Rows) -> None:
    """Write the rows with their captions as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 0.8 * len(rows) + 0.5), dpi=120)
    axes: Any = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axis, (caption, images) in zip(axes, rows, strict=True):
        padded = np.pad(images, ((0, 0), (1, 1), (1, 1)), constant_values=64)
        axis.imshow(np.concatenate(list(padded), axis=1), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_yticks([])
        axis.set_xticks([])
        axis.set_ylabel(caption, rotation=0, ha="right", va="center", fontsize=9)
    figure.suptitle("The same noise and label in every column", fontsize=10)
    figure.subplots_adjust(left=0.16, right=0.995, top=1 - 0.35 / (0.8 * len(rows) + 0.5), bottom=0.01, hspace=0.08)
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png")
    partial.replace(path)
