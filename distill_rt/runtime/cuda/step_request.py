"""One request of a step engine as work on a stream: the same rows as `distill_rt.runtime.sampler`, on the GPU.

What is enqueued depends on the plan alone; everything that a request may choose (seeds, labels, guidance, latents) is read from
memory. So the work can be captured once per plan and launched for every request.

Legend: B images, N evaluations per network call (2B under cfg: [uncond, cond]), C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from distill_rt.backends.base import network_batch
from distill_rt.backends.cuda.arena import Arena, Shapes
from distill_rt.backends.cuda.driver import Driver
from distill_rt.backends.cuda.programs import DeviceProgram, DeviceTensor
from distill_rt.core.spec import StudentSpec
from distill_rt.runtime.cuda.device_table import DeviceRow, DeviceTable
from distill_rt.runtime.cuda.kernel_calls import KernelCalls, Launcher, PerImage, Prediction, Scaled
from distill_rt.runtime.cuda.staging import Staging

OnDeviceRow = Callable[[int], None]
"""``on_row(i)`` after row i is on the stream and its preview is in `StepRequest.pixels`."""


def request_buffers(spec: StudentSpec, batch: int) -> Shapes:
    """Every buffer of a step request beside those of the networks: name -> (shape, dtype)."""
    state = ((batch, *spec.sample_shape), np.float32)
    num_history = max(table.num_history for table in spec.plans.values())
    channels, height, width = spec.image_shape
    tokens = {"tokens": ((batch, spec.condition.num_tokens), np.int64)} if spec.condition.kind == "text" else {}
    return {
        **tokens,
        **dict.fromkeys(("x", "spare", "anchor", "x0", "latents"), state),
        **{f"history{i}": state for i in range(num_history)},
        "seeds": ((batch,), np.int64),
        **dict.fromkeys(("w", "phi", "factor", "bound"), ((batch,), np.float32)),
        "pixels": ((batch, height, width, channels), np.uint8),
    }


class StepRequest:
    """Buffers and programs of one worker, and how a request runs on them.

    Args:
        spec: the contract.
        programs: by component; `spec.components()`.
        batch: B.
        driver, launcher: the GPU and its kernels.
    """

    def __init__(
        self, spec: StudentSpec, programs: Mapping[str, DeviceProgram], batch: int, driver: Driver, launcher: Launcher
    ) -> None:
        self._spec, self._driver, self._batch = spec, driver, batch
        self._networks = [programs[f"network{i}"] for i in range(len(spec.networks))]
        self._encoder, self._decoder = programs.get("text_encoder"), programs.get("decoder")
        (self._prediction,) = (tensor.name for tensor in spec.network_outputs())
        self._cfg = spec.guidance.mode == "cfg"
        self._buffers = buffers = Arena(driver, request_buffers(spec, batch), "the buffers of a request")
        num = int(np.prod(spec.sample_shape))
        per_image = PerImage(**{name: buffers[name].address for name in ("seeds", "w", "phi", "factor", "bound")})
        self._kernels = KernelCalls(launcher, batch, num, per_image)
        self._tables = {
            steps: DeviceTable(driver, table, network_batch(spec, batch)) for steps, table in spec.plans.items()
        }
        self._half_bytes = 4 * batch * num
        self.staging = self._make_staging()
        self._fill("factor", 1.0)
        self._fill("phi", spec.guidance.rescale)

    @property
    def pixels(self) -> DeviceTensor:
        """uint8 (B, H, W, C): the finished images, or the last preview."""
        return self._buffers["pixels"]

    def enqueue(self, stream: int, steps: int, *, own_latents: bool = False, on_row: OnDeviceRow | None = None) -> None:
        """Put a whole request on a stream.

        Args:
            steps: the plan.
            own_latents: start from the caller's latents in the staging instead of the seeds' noise.
            on_row: see `OnDeviceRow`; such a request cannot be captured.
        """
        table = self._tables[steps]
        rows = table.rows if on_row is None else table.shown_rows
        self.staging.enqueue(stream, leave_out=() if own_latents else ("latents",))
        self._encode(stream)
        names = [f"history{i}" for i in range(len(self._buffers.tensors)) if f"history{i}" in self._buffers.tensors]
        history = [self._buffers[name].address for name in names]
        x, spare, anchor = (self._buffers[name].address for name in ("x", "spare", "anchor"))
        first = self._target(rows[0])
        if own_latents:
            latents = self._buffers["latents"].address
            self._kernels.table_row(stream, table.own_start_packed, table.own_start, x=latents, out=x, scaled=first)
        else:
            self._kernels.philox_normal(stream, table.start, x, first)
        for i, row in enumerate(rows):
            following = self._target(rows[i + 1]) if i + 1 < len(rows) else self._decoder_input()
            keeps = row.row.calls_network and (bool(history) or on_row is not None)
            x0 = history[-1] if history else self._buffers["x0"].address
            out = spare if row.row.set_anchor else x
            self._run_row(stream, row, x, out, history, anchor, x0 if keeps else None, following)
            if (
                row.row.set_anchor
            ):  # the state before the row becomes the anchor; the three change places, nothing moves
                anchor, spare = x, anchor
            x = out
            if history and row.row.calls_network:
                history.insert(0, history.pop())
            if on_row is not None:
                self._to_pixels(stream, x0 if row.row.calls_network else x, show=True)
                on_row(i)
        self._to_pixels(stream, x, show=on_row is not None)

    def _run_row(
        self,
        stream: int,
        row: DeviceRow,
        x: int,
        out: int,
        history: list[int],
        anchor: int,
        x0_out: int | None,
        scaled: Scaled | None,
    ) -> None:
        prediction = None
        if row.row.calls_network:
            prediction = self._call_network(stream, row)
            if self._spec.guidance.rescale:
                self._kernels.guidance_factor(stream, prediction)
            if row.row.threshold_ratio is not None:
                self._kernels.dynamic_threshold(stream, row.address, x, prediction)
        self._kernels.table_row(
            stream,
            row.packed,
            row.address,
            x=x,
            out=out,
            prediction=prediction,
            history=tuple(history),
            anchor=anchor,
            x0_out=x0_out,
            scaled=scaled,
        )

    def _call_network(self, stream: int, row: DeviceRow) -> Prediction:
        program = self._networks[row.row.net_id]
        for name, source in (("time", row.time), ("second_time", row.second_time)):
            if name in program.inputs:
                tensor = program.inputs[name]
                self._driver.copy(tensor.address, source, tensor.num_bytes, stream)
        program.enqueue(stream)
        F = program.outputs[self._prediction].address
        return Prediction(F=F + self._half_bytes, F_u=F) if self._cfg else Prediction(F=F)

    def _target(self, row: DeviceRow) -> Scaled | None:
        """The input of a row's network: both halves of it under cfg."""
        if not row.row.calls_network:
            return None
        sample = self._networks[row.row.net_id].inputs["sample"]
        return Scaled(address=sample.address, copies=2 if self._cfg else 1)

    # -- text and latents --------------------------------------------------------------------------------------------------

    def _decoder_input(self) -> Scaled | None:
        """The last row's second output, whose scale is 1, is the decoder's input."""
        return None if self._decoder is None else Scaled(address=self._decoder.inputs["latent"].address)

    def _encode(self, stream: int) -> None:
        """The prompts' embeddings into every network's input, its second half under cfg."""
        if self._encoder is None:
            return
        encoder, text = self._encoder, self._encoder.outputs["text"]
        tokens, source = encoder.inputs["tokens"], self._buffers["tokens"]
        at_once = tokens.shape[0]  # the encoder may be compiled for the smallest batch only
        bytes_each = text.num_bytes // at_once
        for first in range(0, self._batch, at_once):
            num = min(at_once, self._batch - first)
            row_bytes = tokens.num_bytes // at_once
            self._driver.copy(tokens.address, source.address + first * row_bytes, num * row_bytes, stream)
            encoder.enqueue(stream)
            text = encoder.outputs["text"]
            for network in self._networks:
                start = network.inputs["text"].address + (self._batch * bytes_each if self._cfg else 0)
                self._driver.copy(start + first * bytes_each, text.address, num * bytes_each, stream)

    def write_null_text(self, stream: int) -> None:
        """Encode the empty prompt into the unconditional half of every network's input; once, before the first request."""
        null_tokens = self._spec.condition.null_tokens
        if self._encoder is None or not self._cfg or null_tokens is None:
            return
        self.staging["tokens"][:] = np.asarray(null_tokens, np.int64)
        self.staging.enqueue(stream)
        self._encode(stream)
        for network in self._networks:  # what `_encode` wrote into the second half belongs into the first
            text = network.inputs["text"]
            self._driver.copy(text.address, text.address + text.num_bytes // 2, text.num_bytes // 2, stream)
        self._driver.synchronize(stream)

    def _to_pixels(self, stream: int, x: int, *, show: bool) -> None:
        """Finished images or a preview. Where previews are shown, the decoder's input holds those of the last one."""
        if self._decoder is not None:
            latent = self._decoder.inputs["latent"]
            if show:
                self._driver.copy(latent.address, x, latent.num_bytes, stream)
            self._decoder.enqueue(stream)
            x = self._decoder.outputs["image"].address
        self._kernels.to_uint8(stream, x, self.pixels.address, self._spec.image_shape)

    # -- what a request brings ---------------------------------------------------------------------------------------------

    def _make_staging(self) -> Staging:
        spec, batch, buffers = self._spec, self._batch, self._buffers
        staging = Staging(self._driver)
        staging.add("seeds", (batch,), np.int64, [buffers["seeds"].address])
        staging.add("latents", (batch, *spec.sample_shape), np.float32, [buffers["latents"].address])
        if self._cfg:
            staging.add("w", (batch,), np.float32, [buffers["w"].address])
        for name in ("label", "guidance"):
            tensors = [program.inputs[name] for program in self._networks if name in program.inputs]
            if tensors:
                staging.add(name, tensors[0].shape, tensors[0].dtype, [tensor.address for tensor in tensors])
        if self._encoder is not None:
            staging.add("tokens", buffers["tokens"].shape, np.int64, [buffers["tokens"].address])
        return staging

    def _fill(self, name: str, value: float) -> None:
        tensor = self._buffers[name]
        self._driver.write(tensor.address, np.full(tensor.shape, value, tensor.dtype))
