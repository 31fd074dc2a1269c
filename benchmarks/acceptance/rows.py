"""What `table_row` is measured on: four forms, their buffers, exact byte counts, and the torch operations that they replace.

Legend: B images of shape (C, H, W), N = C * H * W elements; S sets of buffers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distill_rt.core.table import Row, StepTable

PAIRS = (("fp32", "fp32"), ("fp16", "fp16"), ("bf16", "bf16"), ("fp32", "fp16"))
"""(state, network) dtypes."""
ITEM_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
NEXT_C_IN = 0.37
GUIDANCE = 3.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """One use of the kernel.

    Args:
        row: its coefficients.
        guided: two network outputs are combined, and the next input is written twice.
        multistep: reads one earlier prediction and keeps its own: the general form, else the fast one.
    """

    row: Row
    guided: bool = False
    multistep: bool = False

    @property
    def copies(self) -> int:
        return 2 if self.guided else 1

    @property
    def noise(self) -> bool:
        return self.row.n != 0.0

    def row_bytes(self, state: str, network: str, num_images: int, num: int) -> int:
        """Bytes that one launch must move: every element once, and the numbers per image and per row."""
        states = 2 + 2 * self.multistep  # x and the next state; the earlier prediction and the new one
        outputs = 1 + self.guided
        per_image = 8 * self.noise + 8 * self.guided  # seed; w and factor
        large = states * ITEM_BYTES[state] + (outputs + self.copies) * ITEM_BYTES[network]
        return num_images * (num * large + per_image) + 64


def _float32(row: Row) -> Row:
    return StepTable(rows=(row,)).as_float32().rows[0]


# DDIM from t with (alpha, sigma) = (0.8, 0.6) to (0.95, sqrt(1 - 0.95^2)), epsilon prediction: x0 = (x - 0.6 F) / 0.8.
_NEXT_SIGMA = math.sqrt(1 - 0.95**2)
_STD = 0.2
FORMS: dict[str, Form] = {
    "affine": Form(row=_float32(Row(p=1 / 0.8, q=-0.6 / 0.8, g=0.95, f=_NEXT_SIGMA))),
    "guided": Form(row=_float32(Row(p=1 / 0.8, q=-0.6 / 0.8, g=0.95, f=_NEXT_SIGMA)), guided=True),
    "guided-noise": Form(
        row=_float32(Row(p=1 / 0.8, q=-0.6 / 0.8, g=0.95, f=math.sqrt(_NEXT_SIGMA**2 - _STD**2), n=_STD, stream=3)),
        guided=True,
    ),
    # DPM-Solver++(2M) with clipped x0: x_next = r x + (1 + 1/(2 ratio)) d x0 - d/(2 ratio) x0_1.
    "multistep": Form(row=_float32(Row(p=1 / 0.8, q=-0.6 / 0.8, clip=1.0, r=0.52, g=0.8, h1=-0.27)), multistep=True),
}


class RowBuffers:
    """S sets of tensors for one form, and what runs on each of them.

    Inputs are standard normal, outputs start as NaN, so that an element which is not written is found.
    """

    def __init__(
        self,
        form: Form,
        pair: tuple[str, str],
        shape: tuple[int, ...],
        *,
        num_sets: int,
        device: str,
        seed: int = 0,
    ) -> None:
        import torch

        from distill_rt.kernels.triton.row_layout import is_fast, pack_row

        self.form, self.num_sets = form, num_sets
        dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
        state, network = dtypes[pair[0]], dtypes[pair[1]]
        generator = torch.Generator(device).manual_seed(seed)

        def draw(dtype: Any, copies: int = 1) -> Any:
            values = torch.empty((num_sets, copies * shape[0], *shape[1:]), dtype=dtype, device=device)
            for part in values:  # set by set: normal_ of 16-bit types needs scratch memory on some devices
                part.normal_(generator=generator)
            return values

        def poison(dtype: Any, copies: int = 1) -> Any:
            return torch.full((num_sets, copies * shape[0], *shape[1:]), math.nan, dtype=dtype, device=device)

        self.x, self.F = draw(state), draw(network, form.copies)
        self.past = draw(state) if form.multistep else None
        self.out, self.scaled = poison(state), poison(network, form.copies)
        self.x0 = poison(state) if form.multistep else None
        packed = pack_row(form.row, NEXT_C_IN, keeps_x0=form.multistep)
        assert is_fast(packed) == (not form.multistep)
        self.row = torch.from_numpy(packed).to(device)
        self.w = torch.full((shape[0],), GUIDANCE, device=device)
        self.factor = torch.ones(shape[0], device=device)
        self.seeds = torch.arange(shape[0], dtype=torch.int64, device=device) + 2**40

    def outputs(self, i: int) -> tuple[Any, Any | None]:
        """F and F_u of one set; the unconditional half comes first in a batch."""
        F = self.F[i]
        if not self.form.guided:
            return F, None
        half = F.shape[0] // 2
        return F[half:], F[:half]

    def results(self) -> list[Any]:
        """What the kernel writes on set 0."""
        return [self.out[0], self.scaled[0], *([] if self.x0 is None else [self.x0[0]])]

    def kernel(self, i: int) -> Callable[[], None]:
        """Launches the Triton kernel on set i."""
        from distill_rt.kernels.triton import on_tensors

        form, (F, F_u) = self.form, self.outputs(i)
        x, out, scaled = self.x[i], self.out[i], self.scaled[i]
        history = () if self.past is None else (self.past[i],)
        options: dict[str, Any] = {"history": history, "general": form.multistep, "num_copies": form.copies}
        if F_u is not None:
            options |= {"F_u": F_u, "w": self.w, "factor": self.factor}
        if form.noise:
            options["seeds"] = self.seeds
        if self.x0 is not None:
            options["x0_out"] = self.x0[i]
        return lambda: on_tensors.table_row(x, F, self.row, out, scaled=scaled, **options)

    def unfused(self, i: int, step: Callable[..., Any] | None = None) -> Callable[[], Any]:
        """The same step as a scheduler and its pipeline write it in torch, on set i; allocates its results as they do.

        Args:
            step: `unfused_step` of this form, compiled.
        """
        F, F_u = self.outputs(i)
        past, x, network = None if self.past is None else self.past[i], self.x[i], self.F.dtype
        call = step or unfused_step(self.form)
        return lambda: call(x, F, F_u, past, network)


def unfused_step(form: Form) -> Callable[..., Any]:
    """(x, F, F_u, past, network dtype) -> results, in torch operations."""
    std = form.row.n
    return multistep_step if form.multistep else lambda x, F, F_u, past, network: ddim_step(x, F, F_u, std, network)


def ddim_step(x: Any, F: Any, F_u: Any | None, std: float, network: Any) -> tuple[Any, Any]:
    """Guidance, `DDIMScheduler.step` (epsilon prediction), `scale_model_input`, and the doubled batch of the pipeline."""
    import torch

    if F_u is not None:
        F = F_u + GUIDANCE * (F - F_u)
    x0 = (x - 0.6 * F) / 0.8
    direction = math.sqrt(_NEXT_SIGMA**2 - std**2) * F
    x = 0.95 * x0 + direction
    if std:
        x = x + std * torch.randn_like(x)
    scaled = (x * NEXT_C_IN).to(network)
    return x, torch.cat([scaled, scaled]) if F_u is not None else scaled


def multistep_step(x: Any, F: Any, F_u: None, past: Any, network: Any) -> tuple[Any, Any, Any]:
    """`DPMSolverMultistepScheduler.step` of second order: convert_model_output with clipped x0, then the update."""
    x0 = ((x - 0.6 * F) / 0.8).clamp(-1.0, 1.0)
    d1 = x0 - past
    x = 0.52 * x + 0.53 * x0 + 0.27 * d1
    return x, x0, (x * NEXT_C_IN).to(network)
