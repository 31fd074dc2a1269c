"""Networks as predictors: raw output to x0, with guidance, in one convention (design section 3).

Legend: B images, C channels, H rows, W columns, L tokens, D elements of one token's embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill_rt.core.prediction import Parameterization, ddim_jump
from distill_rt.core.process import NoiseProcess
from distill_rt.core.spec import StudentSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """Conditions of a batch: label (B,) int64, embedded prompt (B, L, D), guidance scale w (B,), second time in [0, 1] (B,).

    None where not taken.
    """

    label_B: Tensor | None = None
    text_BLD: Tensor | None = None
    w_B: Tensor | None = None
    second_time_B: Tensor | None = None

    def to(self, device: torch.device) -> Conditions:
        def moved(value_B: Tensor | None) -> Tensor | None:
            return None if value_B is None else value_B.to(device)

        return Conditions(
            label_B=moved(self.label_B),
            text_BLD=moved(self.text_BLD),
            w_B=moved(self.w_B),
            second_time_B=moved(self.second_time_B),
        )

    def at(self, index_N: Tensor) -> Conditions:
        """Those of some of the images, index int64 (N,)."""

        def taken(value_B: Tensor | None) -> Tensor | None:
            return None if value_B is None else value_B[index_N]

        return Conditions(
            label_B=taken(self.label_B),
            text_BLD=taken(self.text_BLD),
            w_B=taken(self.w_B),
            second_time_B=taken(self.second_time_B),
        )

    def without_and_with(self, null_label: int | None, null_text_LD: Tensor | None) -> Conditions:
        """The null condition for every image, then what each asks for: one batch of both, for guidance by two evaluations.

        Raises:
            ValueError: nothing is asked for, or there is no null condition of its kind.
        """
        if self.label_B is not None and null_label is not None:
            return Conditions(label_B=torch.cat([torch.full_like(self.label_B, null_label), self.label_B]))
        if self.text_BLD is not None and null_text_LD is not None:
            return Conditions(text_BLD=torch.cat([null_text_LD.expand_as(self.text_BLD), self.text_BLD]))
        raise ValueError("guidance by two evaluations needs labels or prompts, and the null one")


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictor:
    """A network with what its output means. `process` and `parameterization` are the contract's."""

    network: nn.Module
    process: NoiseProcess
    parameterization: Parameterization

    @classmethod
    def of(cls, spec: StudentSpec, network: nn.Module) -> Predictor:
        return cls(network=network, process=spec.process, parameterization=spec.parameterization)

    def x0(self, x_BCHW: Tensor, t_B: Tensor, conditions: Conditions) -> Tensor:
        """Predicted clean image, shape of x."""
        level = self.process.at(t_B).like(x_BCHW)
        p, q, c_in = self.parameterization.coefficients(level)
        inputs = [c_in * x_BCHW, self.process.model_time(t_B)]
        if conditions.second_time_B is not None:
            inputs.append(self.process.model_time(conditions.second_time_B))
        if conditions.label_B is not None:
            inputs.append(conditions.label_B)
        if conditions.text_BLD is not None:
            inputs.append(conditions.text_BLD)
        if conditions.w_B is not None:
            inputs.append(conditions.w_B)
        x0: Tensor = p * x_BCHW + q * self.network(*inputs)
        return x0


class Teacher:
    """A frozen predictor with its contract: guided predictions and solver steps, without gradients.

    Args:
        null_text_LD: embedding of the empty prompt, for contracts with prompts.
    """

    def __init__(self, spec: StudentSpec, network: nn.Module, null_text_LD: Tensor | None = None) -> None:
        self.spec = spec
        self.null_text_LD = null_text_LD
        self.network = network.eval().requires_grad_(False)
        self.predictor = Predictor.of(spec, network)

    def to(self, device: torch.device) -> None:
        """Move network and embedding, in place."""
        self.network.to(device)
        self.null_text_LD = None if self.null_text_LD is None else self.null_text_LD.to(device)

    @property
    def process(self) -> NoiseProcess:
        return self.spec.process

    @torch.no_grad()
    def x0(self, x_BCHW: Tensor, t_B: Tensor, conditions: Conditions) -> Tensor:
        """x0 under the contract's guidance: two evaluations in one batch for ``cfg``, one otherwise."""
        return self.x0_with_gradient(x_BCHW, t_B, conditions)

    def x0_with_gradient(self, x_BCHW: Tensor, t_B: Tensor, conditions: Conditions) -> Tensor:
        """The same, differentiable in the state."""
        w_B = conditions.w_B
        if self.spec.guidance.mode != "cfg":
            return self.predictor.x0(x_BCHW, t_B, conditions)
        if w_B is None:
            raise ValueError("a teacher guided by two evaluations needs guidance scales")
        twice = conditions.without_and_with(self.spec.condition.null_label, self.null_text_LD)
        both = self.predictor.x0(torch.cat([x_BCHW, x_BCHW]), torch.cat([t_B, t_B]), twice)
        x0_u, x0_c = both.chunk(2)
        return x0_u + w_B[:, None, None, None] * (x0_c - x0_u)

    def step_with(self, x_BCHW: Tensor, x0_BCHW: Tensor, t_B: Tensor, s_B: Tensor) -> Tensor:
        """The DDIM jump from t to s with a prediction that is known already."""
        x_s: Tensor = ddim_jump(x_BCHW, x0_BCHW, self.process.at(t_B), self.process.at(s_B))
        return x_s

    @torch.no_grad()
    def step(self, x_BCHW: Tensor, t_B: Tensor, s_B: Tensor, conditions: Conditions, *, order: int = 1) -> Tensor:
        """One step of the probability flow ODE from t to s < t.

        Order 1 is DDIM. Order 2 evaluates again at s and jumps with the mean of the two x0: the trapezoidal rule for the
        exact integral of x0 over log SNR (the two-stage member of the family of Lu et al. 2022, arXiv 2211.01095).
        """
        level_t, level_s = self.process.at(t_B), self.process.at(s_B)
        x0_t = self.x0(x_BCHW, t_B, conditions)
        x_s: Tensor = ddim_jump(x_BCHW, x0_t, level_t, level_s)
        if order == 1:
            return x_s
        x0_s = self.x0(x_s, s_B, conditions)
        corrected: Tensor = ddim_jump(x_BCHW, 0.5 * (x0_t + x0_s), level_t, level_s)
        return corrected
