"""What a request may choose beside the steps: the condition (a label, a prompt) and the guidance scale."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """What a request may ask for: nothing, a class label or a prompt.

    Args:
        kind: ``none``, ``label`` or ``text``.
        num_classes: labels are 0 ... num_classes - 1 (label only).
        null_label: the label that means "no condition", used by the unconditional evaluation of guidance.
        num_tokens: L, tokens of every prompt, after padding or cutting (text only).
        vocab_size: tokens are 0 ... vocab_size - 1 (text only).
        width: D, elements of one token's embedding (text only).
        null_tokens: the tokens of the empty prompt (text only), used by the unconditional evaluation of guidance; the last of
            them is what shorter prompts are padded with unless the tokenizer says otherwise.
    """

    kind: Literal["none", "label", "text"] = "none"
    num_classes: int = 0
    null_label: int | None = None
    num_tokens: int = 0
    vocab_size: int = 0
    width: int = 0
    null_tokens: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if (self.kind == "label") != (self.num_classes > 0) or self.num_classes < 0:
            raise ValueError(f"a {self.kind} condition cannot have {self.num_classes} classes")
        if self.null_label is not None and (self.kind != "label" or self.null_label < 0):
            raise ValueError(f"a {self.kind} condition cannot have the null label {self.null_label}")
        sizes = (self.num_tokens, self.vocab_size, self.width)
        if min(sizes) < 0 or any((self.kind == "text") != (value > 0) for value in sizes):
            raise ValueError(
                f"a {self.kind} condition cannot have num_tokens={self.num_tokens}, vocab_size={self.vocab_size}, "
                f"width={self.width}"
            )
        if self.null_tokens is not None and (
            self.kind != "text"
            or len(self.null_tokens) != self.num_tokens
            or not all(0 <= token < self.vocab_size for token in self.null_tokens)
        ):
            raise ValueError(
                f"null_tokens are the {self.num_tokens} tokens of the empty prompt, 0 to {self.vocab_size - 1}, of a text "
                f"condition; got {len(self.null_tokens)} for a {self.kind} condition"
            )

    @property
    def has_null(self) -> bool:
        """Whether "no condition" can be said, which the unconditional evaluation of guidance needs."""
        return self.null_label is not None or self.null_tokens is not None


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
