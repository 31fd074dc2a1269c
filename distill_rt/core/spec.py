"""The student contract: the steps, noise levels, guidance and inputs a student was distilled for.

It travels with the weights and is checked at every stage; a request that breaks it is an error that lists what is allowed
(design section 1). A teacher is a student whose contract allows many steps and guidance by two evaluations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from distill_rt.core import request_checks
from distill_rt.core.condition import Condition, Guidance
from distill_rt.core.prediction import Parameterization
from distill_rt.core.process import NoiseProcess
from distill_rt.core.table import StepTable
from distill_rt.core.tensor_spec import Dtype, TensorSpec

__all__ = ["Condition", "Decoder", "Dtype", "Guidance", "NetworkSpec", "StudentSpec", "TensorSpec"]

TEXT_ENCODER = "text_encoder"
DECODER = "decoder"
TRAJECTORY = "trajectory"
Tensors = tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkSpec:
    """Which network class with which arguments: a key of `distill_rt.models.NETWORKS` and its JSON configuration."""

    kind: str
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoder:
    """What turns the latents that the table moves into images.

    Args:
        network: takes latents (B, C, H, W) and returns images in about [-1, 1]; the scaling and the shift of the latent space
            are inside of it.
        image_shape: (C', H', W') of an image.
    """

    network: NetworkSpec
    image_shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        if any(dim < 1 for dim in self.image_shape):
            raise ValueError(f"image_shape must be positive (C, H, W), got {self.image_shape}")


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentSpec:
    """The contract of one student.

    Args:
        name: short name, for people.
        sample_shape: (C, H, W) of the state that the table moves: pixels, or latents for a student with a decoder.
        process: noise process x_t = alpha_t x0 + sigma_t eps.
        parameterization: what the network's raw output means (prediction type and preconditioning).
        condition, guidance: what a request may choose.
        plans: number of steps -> step table; the only allowed numbers of steps.
        default_steps: the plan when the request says nothing.
        networks: the networks that rows name by `net_id`, in order.
        text_encoder: tokens of a prompt to the `text` input of the networks; exactly for a text condition.
        decoder: latents to images; None if the table moves pixels.
        provenance: how it was made (method, data, teacher digest, seed, versions): JSON values, for people.
    """

    name: str
    sample_shape: tuple[int, int, int]
    process: NoiseProcess
    parameterization: Parameterization
    condition: Condition = field(default_factory=Condition)
    guidance: Guidance = field(default_factory=Guidance)
    plans: dict[int, StepTable]
    default_steps: int
    networks: tuple[NetworkSpec, ...]
    text_encoder: NetworkSpec | None = None
    decoder: Decoder | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.plans:
            raise ValueError("a student needs at least one plan")
        if any(steps < 1 for steps in self.plans):
            raise ValueError(f"plans are for 1 step or more, got {sorted(self.plans)}")
        if self.default_steps not in self.plans:
            raise ValueError(f"default_steps {self.default_steps} is not among the plans {sorted(self.plans)}")
        if any(dim < 1 for dim in self.sample_shape):
            raise ValueError(f"sample_shape must be positive (C, H, W), got {self.sample_shape}")
        if self.guidance.mode == "cfg" and not self.condition.has_null:
            raise ValueError("cfg guidance needs a condition with a null_label or null_tokens")
        if (self.condition.kind == "text") != (self.text_encoder is not None):
            has = "no text_encoder" if self.text_encoder is None else "a text_encoder"
            raise ValueError(f"a student with a {self.condition.kind} condition cannot have {has}")
        top = max(row.net_id for table in self.plans.values() for row in table.rows)
        if top >= len(self.networks):
            raise ValueError(f"a table names network {top}, but there are {len(self.networks)}")

    @property
    def steps(self) -> tuple[int, ...]:
        """The allowed numbers of steps, ascending."""
        return tuple(sorted(self.plans))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a finished image: the decoder's, else `sample_shape`."""
        return self.sample_shape if self.decoder is None else self.decoder.image_shape

    @property
    def uses_second_time(self) -> bool:
        return any(table.uses_second_time for table in self.plans.values())

    def network_inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs of every exported network, in order."""
        inputs = [
            TensorSpec(name="sample", dtype="float32", shape=("B", *self.sample_shape)),
            TensorSpec(name="time", dtype="float32", shape=("B",)),
        ]
        if self.uses_second_time:
            inputs.append(TensorSpec(name="second_time", dtype="float32", shape=("B",)))
        if self.condition.kind == "label":
            inputs.append(TensorSpec(name="label", dtype="int64", shape=("B",)))
        if self.condition.kind == "text":
            inputs.append(self._text)
        if self.guidance.mode == "embedded":
            inputs.append(TensorSpec(name="guidance", dtype="float32", shape=("B",)))
        return tuple(inputs)

    def network_outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="prediction", dtype="float32", shape=("B", *self.sample_shape)),)

    def components(self) -> dict[str, tuple[Tensors, Tensors]]:
        """Inputs and outputs of every graph that the student consists of, by name, in the order in which they run.

        ``text_encoder``: tokens int64 (B, L) -> text float32 (B, L, D); ``network0``, ``network1``, ...: `network_inputs` ->
        `network_outputs`; ``decoder``: latent float32 (B, C, H, W) -> image float32 (B, C', H', W').
        """
        parts: dict[str, tuple[Tensors, Tensors]] = {}
        if self.text_encoder is not None:
            tokens = TensorSpec(name="tokens", dtype="int64", shape=("B", self.condition.num_tokens))
            parts[TEXT_ENCODER] = ((tokens,), (self._text,))
        for i in range(len(self.networks)):
            parts[f"network{i}"] = (self.network_inputs(), self.network_outputs())
        if self.decoder is not None:
            latent = TensorSpec(name="latent", dtype="float32", shape=("B", *self.sample_shape))
            image = TensorSpec(name="image", dtype="float32", shape=("B", *self.image_shape))
            parts[DECODER] = ((latent,), (image,))
        return parts

    def trajectory(self, steps: int) -> dict[str, tuple[Tensors, Tensors]]:
        """Like `components`, of a student whose graphs are one: a whole plan from unit noise to pixels.

        Inputs: ``noise`` and, for every stream that rows draw from, ``noise_<stream>``: unit noise float32 (B, *sample_shape);
        then ``label`` int64 (B,) or ``tokens`` int64 (B, L); then ``guidance`` float32 (B,) unless there is none. Output:
        ``images`` uint8 (B, H, W, C).
        """
        noise = ["noise", *(f"noise_{stream}" for stream in self.plans[steps].streams)]
        inputs = [TensorSpec(name=name, dtype="float32", shape=("B", *self.sample_shape)) for name in noise]
        if self.condition.kind == "label":
            inputs.append(TensorSpec(name="label", dtype="int64", shape=("B",)))
        if self.condition.kind == "text":
            inputs.append(TensorSpec(name="tokens", dtype="int64", shape=("B", self.condition.num_tokens)))
        if self.guidance.mode != "none":
            inputs.append(TensorSpec(name="guidance", dtype="float32", shape=("B",)))
        channels, height, width = self.image_shape
        images = TensorSpec(name="images", dtype="uint8", shape=("B", height, width, channels))
        return {TRAJECTORY: (tuple(inputs), (images,))}

    @property
    def _text(self) -> TensorSpec:
        return TensorSpec(name="text", dtype="float32", shape=("B", self.condition.num_tokens, self.condition.width))

    # -- what a request may ask for (`distill_rt.core.request_checks`) ----------------------------------------------

    def check_steps(self, steps: int | None) -> int:
        """The number of steps to run; None is the contract's default."""
        return request_checks.check_steps(self, steps)

    def check_guidance(self, guidance: float | None) -> float:
        """The guidance scale w to run with; None is the contract's default."""
        return request_checks.check_guidance(self, guidance)

    def check_prompts(self, prompts: Sequence[str] | None, num_images: int) -> list[str] | None:
        """One prompt per image, or None for a student that takes no text."""
        return request_checks.check_prompts(self, prompts, num_images)

    def check_labels(self, labels: Sequence[int] | None, num_images: int) -> list[int] | None:
        """One label per image, or None for a student that takes none."""
        return request_checks.check_labels(self, labels, num_images)
