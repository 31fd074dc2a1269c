"""What a request may ask of one student: every refusal says what is allowed.

`StudentSpec.check_*` are these functions.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from distill_rt.core.errors import UsageError

if TYPE_CHECKING:
    from distill_rt.core.spec import StudentSpec


def check_steps(spec: StudentSpec, steps: int | None) -> int:
    """The number of steps to run; None is the contract's default."""
    if steps is None:
        return spec.default_steps
    whole = _whole(steps)
    if whole not in spec.plans:
        raise UsageError(
            f"steps={steps!r:.80} is outside of the contract of {spec.name!r}: it was distilled for "
            f"{_either(spec.steps)} steps",
            code="steps-not-in-contract",
            hint=f"use steps={spec.default_steps}, or distil a student for the steps you need",
            details={"allowed": list(spec.steps)},
        )
    assert whole is not None
    return whole


def check_guidance(spec: StudentSpec, guidance: float | None) -> float:
    """The guidance scale w to run with; None is the contract's default."""
    allowed = spec.guidance
    if guidance is None:
        return allowed.default
    if allowed.mode == "none":
        raise UsageError(
            f"guidance={guidance!r:.80} was given, but {spec.name!r} takes none",
            code="guidance-not-in-contract",
            hint="leave guidance out",
        )
    w = _number(guidance)
    if not allowed.min <= w <= allowed.max:  # NaN fails too
        raise UsageError(
            f"guidance={guidance!r:.80} is outside of the contract of {spec.name!r}: {allowed.min:g} to {allowed.max:g}",
            code="guidance-not-in-contract",
            hint=f"choose a value in that range; {allowed.default:g} is the default",
            details={"min": allowed.min, "max": allowed.max},
        )
    return w


def check_prompts(spec: StudentSpec, prompts: Sequence[str] | None, num_images: int) -> list[str] | None:
    """One prompt per image, or None for a student that takes no text. One prompt stands for all images; it may be empty."""
    if spec.condition.kind != "text":
        if prompts:
            takes = "no condition" if spec.condition.kind == "none" else f"a {spec.condition.kind} and no text"
            raise UsageError(
                f"a prompt was given, but {spec.name!r} takes {takes}",
                code="condition-not-in-contract",
                hint="leave the prompt out"
                + ("" if spec.condition.kind == "none" else "; pass labels (command line: --label)"),
            )
        return None
    if not prompts:
        raise UsageError(
            f"{spec.name!r} needs a prompt",
            code="prompt-missing",
            hint="pass prompts=['...'] (command line: --prompt); the empty text asks for anything",
        )
    if len(prompts) not in (1, num_images):
        raise UsageError(
            f"{len(prompts)} prompts for {num_images} images",
            code="prompt-count",
            hint="give one prompt for all images, or one per image",
        )
    return list(prompts) * num_images if len(prompts) == 1 else list(prompts)


def check_labels(spec: StudentSpec, labels: Sequence[int] | None, num_images: int) -> list[int] | None:
    """One label per image, or None for a student that takes none. One label stands for all images."""
    given = [] if labels is None else _items(labels)
    if spec.condition.kind != "label":
        if given:
            takes = "no condition" if spec.condition.kind == "none" else "text and no labels"
            raise UsageError(
                f"labels were given, but {spec.name!r} takes {takes}",
                code="condition-not-in-contract",
                hint="leave the labels out"
                + ("" if spec.condition.kind == "none" else "; pass prompts (command line: --prompt)"),
            )
        return None
    top = spec.condition.num_classes - 1
    if not given:
        raise UsageError(
            f"{spec.name!r} needs a label, 0 to {top}",
            code="label-missing",
            hint="pass labels=[...] (command line: --label)",
            details={"min": 0, "max": top},
        )
    wholes: list[int] = []
    for label in given:
        whole = _whole(label)
        if whole is None or not 0 <= whole <= top:
            raise UsageError(
                f"label {label!r:.80} is outside of the contract of {spec.name!r}: 0 to {top}",
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
