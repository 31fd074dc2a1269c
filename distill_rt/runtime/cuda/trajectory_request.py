"""One request of a trajectory engine as work on a stream: draw the noise into the network's inputs, one call, pixels.

Legend: B images, N elements of one image.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from distill_rt.backends.cuda.arena import Arena, Shapes
from distill_rt.backends.cuda.driver import Driver
from distill_rt.backends.cuda.programs import DeviceProgram, DeviceTensor
from distill_rt.core.noise import INITIAL_STREAM
from distill_rt.core.spec import StudentSpec
from distill_rt.kernels.triton.row_layout import ROW_BYTES, pack_noise
from distill_rt.runtime.cuda.kernel_calls import KernelCalls, Launcher, PerImage
from distill_rt.runtime.cuda.staging import Staging

NOISE = "noise"


def trajectory_buffers(batch: int) -> Shapes:
    """Every buffer of a trajectory request beside those of its program."""
    return {"seeds": ((batch,), np.int64)}


class TrajectoryRequest:
    """The interface of `StepRequest`, for an engine whose one component does everything after the noise.

    Args:
        spec: the contract.
        programs: ``trajectory`` alone.
        batch: B.
        driver, launcher: the GPU and its kernels.
    """

    def __init__(
        self, spec: StudentSpec, programs: Mapping[str, DeviceProgram], batch: int, driver: Driver, launcher: Launcher
    ) -> None:
        self._program = programs["trajectory"]
        inputs = self._program.inputs
        self._buffers = Arena(driver, trajectory_buffers(batch), "the buffers of a request")
        seeds = self._buffers["seeds"].address
        per_image = PerImage(seeds=seeds, w=seeds, phi=seeds, factor=seeds, bound=seeds)  # only the seeds are read
        self._kernels = KernelCalls(launcher, batch, int(np.prod(spec.sample_shape)), per_image)
        self._streams = {name: noise_stream(name) for name in inputs if name.startswith(NOISE)}
        self._rows = driver.upload(np.stack([pack_noise(number) for number in self._streams.values()]), "noise streams")
        self.staging = Staging(driver)
        self.staging.add("seeds", (batch,), np.int64, [seeds])
        self.staging.add("latents", (batch, *spec.sample_shape), np.float32, [inputs[NOISE].address])
        for name in ("label", "tokens", "guidance"):
            if name in inputs:
                tensor = inputs[name]
                self.staging.add(name, tensor.shape, tensor.dtype, [tensor.address])

    @property
    def pixels(self) -> DeviceTensor:
        """uint8 (B, H, W, C)."""
        return self._program.outputs["images"]

    def enqueue(self, stream: int, steps: int, *, own_latents: bool = False) -> None:
        """Put a whole request on a stream; `steps` are the engine's."""
        self.staging.enqueue(stream, leave_out=() if own_latents else ("latents",))
        for i, name in enumerate(self._streams):
            if not (own_latents and name == NOISE):
                address = self._rows.address + i * ROW_BYTES
                self._kernels.philox_normal(stream, address, self._program.inputs[name].address)
        self._program.enqueue(stream)


def noise_stream(name: str) -> int:
    """Noise stream of an input of a trajectory: ``noise`` is the initial one, ``noise_3`` is stream 3."""
    return INITIAL_STREAM if name == NOISE else int(name.removeprefix(f"{NOISE}_"))
