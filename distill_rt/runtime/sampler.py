"""The hot path: one batch of images through a step table, on buffers allocated once.

The same arithmetic as `distill_rt.core.table.run_table` in float32, with the networks of an engine and the kernels of
`distill_rt.kernels`. Python only moves references: the kernel that makes the next state also writes the scaled input
of the next network call.

Legend: B images of this batch, N evaluations per network call (2B under cfg: [uncond, cond]), C channels, H x W pixels,
L tokens of D elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from distill_rt import kernels
from distill_rt.backends.base import Program
from distill_rt.core.noise import INITIAL_STREAM
from distill_rt.core.spec import StudentSpec
from distill_rt.core.table import Row, StepTable
from distill_rt.runtime.timing import Stopwatch

Float32 = NDArray[np.float32]
OnRow = Callable[[int, Float32], None]
"""``on_row(i, x0_BCHW)`` after row i: the prediction, or the state after a row without a network."""


class Sampler:
    """Runs the plans of a contract for one batch size. Not for two threads at once.

    Args:
        spec: the contract.
        programs: one per network of the contract, each for `network_batch(spec, batch)` evaluations.
        batch: B.
        null_text: embedding (L, D) of the empty prompt, for guidance by two evaluations.
    """

    def __init__(
        self, spec: StudentSpec, programs: Sequence[Program], batch: int, null_text: Float32 | None = None
    ) -> None:
        self.batch = batch
        self._shape = spec.sample_shape
        self._programs = tuple(programs)
        self._inputs = tuple(program.inputs for program in self._programs)
        (output,) = (tensor.name for tensor in spec.network_outputs())
        self._outputs: tuple[Float32, ...] = tuple(program.outputs[output] for program in self._programs)
        self._cfg = spec.guidance.mode == "cfg"
        self._rescale = spec.guidance.rescale
        self._null_label = spec.condition.null_label
        self._seeds_B = np.zeros(batch, np.uint64)
        self._x, self._spare, self._anchor, self._z, self._F, self._x0 = (
            np.zeros((batch, *spec.sample_shape), np.float32) for _ in range(6)
        )
        num_history = max(table.num_history for table in spec.plans.values())
        self._history = [np.zeros_like(self._x) for _ in range(num_history)]
        if self._cfg and null_text is not None:
            for inputs in self._inputs:
                inputs["text"][:batch] = null_text  # stays: nothing else writes there

    def run(
        self,
        table: StepTable,
        *,
        seeds: NDArray[np.uint64],
        labels: Sequence[int] | None,
        text: Sequence[Float32] | None = None,
        guidance: float | None,
        latents: Float32 | None,
        watch: Stopwatch,
        on_row: OnRow | None = None,
    ) -> Float32:
        """Samples of up to B images, shape (B, C, H, W); a buffer that the next run overwrites.

        Args:
            seeds: of the images; fewer than B are padded by repeating the last image, which changes no other image.
            labels, latents: one per image, or None.
            text: embedding (L, D) of each image's prompt, or None for a student that takes no text.
        """
        num = len(seeds)
        self._seeds_B[:num] = seeds
        self._seeds_B[num:] = seeds[-1]
        self._set_conditions(labels, text, guidance)
        watch.lap("request")
        self._draw_initial(latents)
        watch.lap("noise")
        x = np.multiply(self._z, np.float32(table.init_scale), out=self._x)
        for past in (*self._history, self._anchor):  # nothing of the last request may reach this one
            past.fill(0)
        rows = table.rows
        if rows[0].calls_network:
            np.multiply(x, np.float32(rows[0].c_in), out=self._scaled_input(rows[0]))
        for i, row in enumerate(rows):
            following = rows[i + 1] if i + 1 < len(rows) and rows[i + 1].calls_network else None
            x = self._run_row(row, x, following, guidance, watch, keep_x0=on_row is not None)
            if on_row is not None:
                on_row(i, self._newest_x0() if row.calls_network else x)
                watch.lap("callback")
        return x

    def _run_row(
        self, row: Row, x: Float32, following: Row | None, guidance: float | None, watch: Stopwatch, *, keep_x0: bool
    ) -> Float32:
        """One row; `following` is the next row if it calls a network, whose input is written on the way."""
        F = z = x0 = None
        if row.calls_network:
            F = self._call_network(row, guidance, watch)
            x0 = self._history[-1] if self._history else self._x0 if keep_x0 else None
        if row.n:
            z = kernels.unit_noise(self._seeds_B, self._shape, row.stream, out=self._z)
            watch.lap("noise")
        out = self._spare if row.set_anchor else x
        kernels.apply_row(
            row,
            x,
            F,
            z,
            history=self._history,
            anchor=self._anchor,
            next_c_in=following.c_in if following else None,
            scaled_out=self._scaled_input(following) if following else None,
            out=out,
            x0_out=x0,
        )
        if (
            row.set_anchor
        ):  # the state before the row becomes the anchor; the three buffers change places, nothing moves
            self._anchor, self._x, self._spare = x, out, self._anchor
        if self._history and row.calls_network:
            self._history.insert(0, self._history.pop())
        watch.lap("table")
        return out

    def _call_network(self, row: Row, guidance: float | None, watch: Stopwatch) -> Float32:
        inputs = self._inputs[row.net_id]
        inputs["time"].fill(row.time)
        if "second_time" in inputs:
            inputs["second_time"].fill(row.time if row.second_time is None else row.second_time)
        if self._cfg:
            sample = inputs["sample"]
            sample[self.batch :] = sample[: self.batch]
        watch.lap("table")
        self._programs[row.net_id].run()
        watch.lap("network")
        F_N = self._outputs[row.net_id]
        if not self._cfg:
            return F_N
        assert guidance is not None
        F_u, F_c = F_N[: self.batch], F_N[self.batch :]
        return kernels.combine_guidance(F_u, F_c, guidance, rescale=self._rescale, out=self._F)

    def _scaled_input(self, row: Row) -> Float32:
        """Where the first B evaluations of a row's network read their state."""
        sample: Float32 = self._inputs[row.net_id]["sample"][: self.batch]
        return sample

    def _newest_x0(self) -> Float32:
        return self._history[0] if self._history else self._x0

    def _set_conditions(
        self, labels: Sequence[int] | None, text: Sequence[Float32] | None, guidance: float | None
    ) -> None:
        for inputs in self._inputs:
            if text is not None:
                text_BLD = inputs["text"][-self.batch :]
                for k in range(self.batch):
                    text_BLD[k] = text[min(k, len(text) - 1)]
            if labels is not None:
                label_N = inputs["label"]
                if self._cfg:
                    label_N[: self.batch] = self._null_label
                label_B = label_N[-self.batch :]
                label_B[: len(labels)] = labels
                label_B[len(labels) :] = labels[-1]
            if "guidance" in inputs:
                inputs["guidance"].fill(guidance)

    def _draw_initial(self, latents: Float32 | None) -> None:
        if latents is None:
            kernels.unit_noise(self._seeds_B, self._shape, INITIAL_STREAM, out=self._z)
        else:
            self._z[: len(latents)] = latents
            self._z[len(latents) :] = latents[-1]
