"""The student contract: the steps, noise levels, guidance and inputs a student was distilled for.

It travels with the weights and is checked at every stage; a request that breaks it is an error that lists what is allowed
(design section 1). A teacher is a student whose contract allows many steps and guidance by two evaluations.
"""

from __future__ import annotations

import math
import numbers
import operator
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from distill_rt.core.errors import UsageError
from distill_rt.core.prediction import Parameterization
from distill_rt.core.process import NoiseProcess
from distill_rt.core.table import StepTable

Dtype = Literal["float32", "float16", "bfloat16", "int64", "uint8"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """Name, dtype and dimensions of one tensor; the symbol ``"B"`` is the number of images."""

    name: str
    dtype: Dtype
    shape: tuple[int | str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TensorSpec:
        if set(data) != {"name", "dtype", "shape"}:
            raise ValueError(f"a tensor has name, dtype and shape, got {sorted(data)}")
        name, dtype, shape = data["name"], data["dtype"], data["shape"]
        if not isinstance(name, str) or dtype not in typing.get_args(Dtype):
            raise ValueError(
                f"a tensor has a name and one of the types {', '.join(typing.get_args(Dtype))}, got {data}"
            )
        if not isinstance(shape, list) or not all(type(dim) is int or isinstance(dim, str) for dim in shape):
            raise ValueError(f"the shape of tensor {name!r} must be integers and symbols, got {shape!r}")
        return cls(name=name, dtype=dtype, shape=tuple(shape))

    def concrete(self, num_images: int) -> tuple[int, ...]:
        """The shape for a number of images."""
        return tuple(num_images if dim == "B" else int(dim) for dim in self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """What a request may ask for: nothing or a class label.

    Args:
        kind: ``none`` or ``label``.
        num_classes: labels are 0 ... num_classes - 1 (label only).
        null_label: the label that means "no condition", used by the unconditional evaluation of guidance.
    """

    kind: Literal["none", "label"] = "none"
    num_classes: int = 0
    null_label: int | None = None

    def __post_init__(self) -> None:
        if (self.kind == "label") != (self.num_classes > 0) or self.num_classes < 0:
            raise ValueError(f"a {self.kind} condition cannot have {self.num_classes} classes")
        if self.null_label is not None and (self.kind == "none" or self.null_label < 0):
            raise ValueError(f"a {self.kind} condition cannot have the null label {self.null_label}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Guidance:
    """How guidance enters, in the convention F_u + w (F_c - F_u): w = 1 is none.

    Args:
        mode: ``none`` (no choice: baked in or absent), ``embedded`` (w is an input of the network, one evaluation) or
            ``cfg`` (two evaluations per step, combined outside of the network).
        min, max: allowed w, inclusive.
        default: w when the request says nothing.
        rescale: phi of Lin et al. 2023 (cfg only), 0 is off.
    """

    mode: Literal["none", "embedded", "cfg"] = "none"
    min: float = 1.0
    max: float = 1.0
    default: float = 1.0
    rescale: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.min) and math.isfinite(self.max) and self.min <= self.default <= self.max):
            raise ValueError(f"guidance needs min <= default <= max, got {self.min}, {self.default}, {self.max}")
        if not 0.0 <= self.rescale <= 1.0 or (self.rescale and self.mode != "cfg"):
            raise ValueError(f"guidance rescale is in [0, 1] and for cfg only, got {self.rescale} for {self.mode}")


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkSpec:
    """Which network class with which arguments: a key of `distill_rt.models.NETWORKS` and its JSON configuration."""

    kind: str
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentSpec:
    """The contract of one student.

    Args:
        name: short name, for people.
        sample_shape: (C, H, W) of the state that the table moves.
        process: noise process x_t = alpha_t x0 + sigma_t eps.
        parameterization: what the network's raw output means (prediction type and preconditioning).
        condition, guidance: what a request may choose.
        plans: number of steps -> step table; the only allowed numbers of steps.
        default_steps: the plan when the request says nothing.
        networks: the networks that rows name by `net_id`, in order.
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
        if self.guidance.mode == "cfg" and self.condition.null_label is None:
            raise ValueError("cfg guidance needs a condition with a null_label")
        top = max(row.net_id for table in self.plans.values() for row in table.rows)
        if top >= len(self.networks):
            raise ValueError(f"a table names network {top}, but there are {len(self.networks)}")

    @property
    def steps(self) -> tuple[int, ...]:
        """The allowed numbers of steps, ascending."""
        return tuple(sorted(self.plans))

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
        if self.guidance.mode == "embedded":
            inputs.append(TensorSpec(name="guidance", dtype="float32", shape=("B",)))
        return tuple(inputs)

    def network_outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="prediction", dtype="float32", shape=("B", *self.sample_shape)),)

    # -- what a request may ask for ---------------------------------------------------------------------------------

    def check_steps(self, steps: int | None) -> int:
        """The number of steps to run; None is the contract's default."""
        if steps is None:
            return self.default_steps
        whole = _whole(steps)
        if whole not in self.plans:
            raise UsageError(
                f"steps={steps!r:.80} is outside of the contract of {self.name!r}: it was distilled for "
                f"{_either(self.steps)} steps",
                code="steps-not-in-contract",
                hint=f"use steps={self.default_steps}, or distil a student for the steps you need",
                details={"allowed": list(self.steps)},
            )
        assert whole is not None
        return whole

    def check_guidance(self, guidance: float | None) -> float:
        """The guidance scale w to run with; None is the contract's default."""
        allowed = self.guidance
        if guidance is None:
            return allowed.default
        if allowed.mode == "none":
            raise UsageError(
                f"guidance={guidance!r:.80} was given, but {self.name!r} takes none",
                code="guidance-not-in-contract",
                hint="leave guidance out",
            )
        w = _number(guidance)
        if not allowed.min <= w <= allowed.max:  # NaN fails too
            raise UsageError(
                f"guidance={guidance!r:.80} is outside of the contract of {self.name!r}: {allowed.min:g} to {allowed.max:g}",
                code="guidance-not-in-contract",
                hint=f"choose a value in that range; {allowed.default:g} is the default",
                details={"min": allowed.min, "max": allowed.max},
            )
        return w

    def check_prompts(self, prompts: Sequence[str] | None) -> None:
        """No student of this version takes text; a prompt is refused, not dropped."""
        if prompts:
            takes = "no condition" if self.condition.kind == "none" else f"a {self.condition.kind} and no text"
            raise UsageError(
                f"a prompt was given, but {self.name!r} takes {takes}",
                code="condition-not-in-contract",
                hint="leave the prompt out"
                + ("" if self.condition.kind == "none" else "; pass labels (command line: --label)"),
            )

    def check_labels(self, labels: Sequence[int] | None, num_images: int) -> list[int] | None:
        """One label per image, or None for a model that takes none. One label stands for all images."""
        given = [] if labels is None else _items(labels)
        if self.condition.kind == "none":
            if given:
                raise UsageError(
                    f"labels were given, but {self.name!r} takes no condition",
                    code="condition-not-in-contract",
                    hint="leave the labels out",
                )
            return None
        top = self.condition.num_classes - 1
        if not given:
            raise UsageError(
                f"{self.name!r} needs a label, 0 to {top}",
                code="label-missing",
                hint="pass labels=[...] (command line: --label)",
                details={"min": 0, "max": top},
            )
        wholes: list[int] = []
        for label in given:
            whole = _whole(label)
            if whole is None or not 0 <= whole <= top:
                raise UsageError(
                    f"label {label!r:.80} is outside of the contract of {self.name!r}: 0 to {top}",
                    code="label-not-in-contract",
                    hint="choose one of these",
                    details={"min": 0, "max": top},
                )
            wholes.append(whole)
        if len(wholes) not in (1, num_images):
            raise UsageError(
                f"{len(wholes)} labels for {num_images} images",
                code="label-count",
                hint="give one label for all images, or one per image",
            )
        return wholes * num_images if len(wholes) == 1 else wholes


def _whole(value: Any) -> int | None:
    """`value` as an int if it is an integer of any library; True, 4.0 and "4" are not."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _number(value: Any) -> float:
    """`value` as a float if it is a number of any library, else NaN."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _items(labels: Any) -> list[Any]:
    """The items of a sequence or array; anything else is one item, to be refused by its own check."""
    if isinstance(labels, str | bytes) or not hasattr(labels, "__iter__"):
        return [labels]
    return list(labels)


def _either(values: tuple[int, ...]) -> str:
    words = [str(value) for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
