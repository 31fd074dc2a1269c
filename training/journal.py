"""What a run leaves for people: figures as JSON lines and for TensorBoard, sheets of samples, the configuration.

    DIR/config.json            the frozen configuration, as of a dry run
    DIR/metrics.jsonl          one object per logged step, in order, each step once however often the run was killed
    DIR/samples/step-*.png     images from the same seeds and labels or prompts
    DIR/samples/prompts.txt    one for each image of a sheet, row by row
    DIR/events.out.tfevents.*  the same figures for TensorBoard

Nothing here changes the run: a run with a journal ends with the bits of one without.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor, nn

from distill_rt.core.directory import resource_errors
from distill_rt.core.errors import UsageError
from distill_rt.core.optional import require
from distill_rt.core.spec import StudentSpec
from distill_rt.training.sampling import sample
from distill_rt.training.text import Prompts

METRICS, CONFIGURATION, SAMPLES, PROMPTS = "metrics.jsonl", "config.json", "samples", "prompts.txt"
NUM_SAMPLES = 16
MIN_SHOWN_PX = 64
_COLOUR_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """One training step.

    Args:
        done: steps done, this one included.
        loss, running: of this step, and its running average.
        losses: by name, before they are summed.
        gradient_norm: before clipping.
        student: what would be exported now; None in a sharded run, where no process has all of it.
    """

    done: int
    phase: str
    loss: float
    running: float
    losses: Mapping[str, Tensor]
    learning_rate: float
    gradient_norm: Tensor
    student: nn.Module | None


class Observer(Protocol):
    """Who watches a run."""

    def begin(self, done: int) -> None:
        """The run starts, or goes on, with `done` steps behind it."""
        ...

    def step(self, record: StepRecord) -> None: ...

    def end(self) -> None:
        """The run is over, or was ended; nothing follows."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class JournalOptions:
    """Args: directory: where to write; every: steps between two lines; sample_every: between two sheets, 0 for none."""

    directory: Path
    every: int = 10
    sample_every: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.every < 1 or self.sample_every < 0:
            raise UsageError(
                f"a journal needs every >= 1 and sample_every >= 0, got {self.every} and {self.sample_every}",
                code="setting-invalid",
            )


class Journal:
    """An `Observer` that writes.

    Args:
        spec: contract of what is trained.
        configuration: JSON, for ``config.json``.
        may_replace: go on with, or replace, the journal that stands there.
        decode: samples to images, for a contract with a decoder.
        prompts: of the samples, for a contract with prompts.

    Raises:
        UsageError: a journal of another run stands there, or samples are wanted that are no images.
        TargetError: TensorBoard is not installed.
    """

    def __init__(
        self,
        options: JournalOptions,
        spec: StudentSpec,
        configuration: Mapping[str, Any],
        *,
        may_replace: bool,
        decode: Callable[[Tensor], Tensor] | None = None,
        prompts: Prompts | None = None,
    ) -> None:
        self._options, self._spec, self._configuration = options, spec, configuration
        self._decode, self._prompts = decode, prompts
        if (options.directory / METRICS).exists() and not may_replace:
            raise UsageError(
                f"{options.directory} holds the journal of another run",
                code="journal-exists",
                hint="choose another directory, go on with --resume, or replace it with --force",
            )
        if options.sample_every and spec.image_shape[0] not in _COLOUR_MODES:
            raise UsageError(
                f"samples of shape {spec.image_shape} are no images, so there are no sheets of them",
                code="samples-not-images",
                hint="leave --sample-every out",
            )
        if options.tensorboard:
            require("tensorboard", extra="tensorboard")
        self._board: Any = None
        self._last: tuple[float, int] = (0.0, 0)

    def begin(self, done: int) -> None:
        directory = self._options.directory
        with resource_errors(directory):
            (directory / SAMPLES if self._options.sample_every else directory).mkdir(parents=True, exist_ok=True)
            kept = _lines_up_to(directory / METRICS, done)
            _replace(directory / METRICS, "".join(kept))
            for sheet in (directory / SAMPLES).glob(
                "step-*.png"
            ):  # of a run that was replaced, or beyond the checkpoint
                if int(sheet.stem.removeprefix("step-")) > done:
                    sheet.unlink()
            _replace(directory / CONFIGURATION, json.dumps(self._configuration, indent=1) + "\n")
            if self._options.sample_every and self._prompts is not None:
                lines = (" ".join(text.split()) for text in self._prompts.texts)
                _replace(directory / SAMPLES / PROMPTS, "".join(f"{line}\n" for line in lines))
            if self._options.tensorboard:
                board = require("torch.utils.tensorboard", extra="tensorboard")
                self._board = board.SummaryWriter(str(directory), purge_step=done + 1)
        self._last = (time.monotonic(), done)

    def step(self, record: StepRecord) -> None:
        if record.done % self._options.every == 0:
            self._write_figures(record)
        if self._options.sample_every and record.done % self._options.sample_every == 0:
            assert record.student is not None, "sheets of sharded runs are refused"
            self._write_sheet(record.done, record.student)

    def end(self) -> None:
        if self._board is not None:
            self._board.close()
            self._board = None

    def _write_figures(self, record: StepRecord) -> None:
        (before, done_before), now = self._last, time.monotonic()
        self._last = (now, record.done)
        figures = {
            "loss": record.loss,
            "running_loss": record.running,
            **{f"loss/{name}": float(value) for name, value in record.losses.items()},
            "learning_rate": record.learning_rate,
            "gradient_norm": float(record.gradient_norm),
            "seconds_per_step": (now - before) / (record.done - done_before),
        }
        # JSON has no infinity; a gradient that is not finite says so by null, and ends the run at the next step.
        clean = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        with resource_errors(self._options.directory), open(self._options.directory / METRICS, "a") as file:
            file.write(json.dumps({"step": record.done, "phase": record.phase, **clean}, allow_nan=False) + "\n")
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, record.done)

    def _write_sheet(self, done: int, student: nn.Module) -> None:
        spec = self._spec
        classes = spec.condition.num_classes
        was_training = student.training
        images = sample(
            spec,
            [student.eval()],
            range(NUM_SAMPLES),
            table=spec.plans[spec.default_steps],
            labels=[i % classes for i in range(NUM_SAMPLES)] if classes else None,
            prompts=self._prompts,
        )
        student.train(was_training)
        images = images if self._decode is None else self._decode(images)
        path = self._options.directory / SAMPLES / f"step-{done:07d}.png"
        sheet_HWC = _sheet(images)
        with resource_errors(path):
            Image.fromarray(sheet_HWC[..., 0] if sheet_HWC.shape[2] == 1 else sheet_HWC).save(path)
        if self._board is not None:
            self._board.add_image("samples", sheet_HWC, done, dataformats="HWC")


def _sheet(images_BCHW: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """All images in a square, (H, W, C), enlarged to be seen."""
    num, c, h, w = images_BCHW.shape
    side = math.isqrt(num)
    pixels = ((images_BCHW.clamp(-1.0, 1.0) + 1.0) * 127.5).round().byte()
    sheet = pixels.reshape(side, side, c, h, w).permute(0, 3, 1, 4, 2).reshape(side * h, side * w, c).numpy()
    scale = max(1, -(-MIN_SHOWN_PX // min(h, w)))
    return sheet.repeat(scale, axis=0).repeat(scale, axis=1)


def _lines_up_to(path: Path, done: int) -> list[str]:
    """The lines of the steps that a checkpoint knows; later ones, of which one may be torn, will be run and written again."""
    kept = []
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if line.endswith("\n") and isinstance(row, dict) and row.get("step", math.inf) <= done:
            kept.append(line)
    return kept


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)
