"""Prompts to tokens with the `tokenizers` package: the student's own ``tokenizer.json``, no transformers and no torch.

The file is what a fast tokenizer of Hugging Face saves. Every prompt becomes exactly `Condition.num_tokens` tokens: shorter
ones are padded, longer ones are cut, and what was cut is returned, because an image without the end of its prompt looks as
if the student had ignored it.

Legend: B prompts, L tokens of a prompt.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.condition import Condition
from distill_rt.core.errors import ArtifactError
from distill_rt.core.optional import require

TOKENIZER_FILE = "tokenizer.json"
UNKNOWN, START, END = "<|unknown|>", "<|startoftext|>", "<|endoftext|>"
"""Tokens 0, 1 and 2 of `word_tokenizer`; the last one is also what shorter prompts are padded with."""
KEPT_PROMPTS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """What prompts became.

    Args:
        ids: int64 (B, L).
        cut: the end of each prompt that did not fit; empty where all of it did.
    """

    ids: NDArray[np.int64] = field(compare=False)
    cut: tuple[str, ...]


class Tokenizer:
    """The tokenizer of one text condition. Safe to share between threads.

    Args:
        file: ``tokenizer.json``.
        condition: of kind text; its null tokens must be what the file makes of the empty prompt.

    Raises:
        ArtifactError: missing or damaged, or not the tokenizer of this condition.
        TargetError: the package is not installed.
    """

    def __init__(self, file: Path, condition: Condition) -> None:
        tokenizers = require("tokenizers", extra="text")
        self._condition, self._file = condition, file
        self._encode = functools.lru_cache(KEPT_PROMPTS)(self._encode_anew)
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the package raises plain Exception
            raise _refused(file, f"cannot be read: {error}") from error
        padding = self._tokenizer.padding or {}
        if not padding and condition.null_tokens is None:
            raise _refused(
                file, "does not say what shorter prompts are padded with, nor does the contract (null_tokens)"
            )
        pad = padding.get("pad_id", (condition.null_tokens or (0,))[-1])
        direction = padding.get("direction", "right")
        self._tokenizer.enable_truncation(condition.num_tokens)
        self._tokenizer.enable_padding(
            pad_id=pad,
            pad_token=self._tokenizer.id_to_token(pad) or "",
            length=condition.num_tokens,
            direction=direction,
        )
        null = tuple(self(("",)).ids[0].tolist())
        if condition.null_tokens not in (None, null):
            raise _refused(file, "does not belong to the contract: it makes other tokens of the empty prompt")

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        """Tokens of prompts; those of the last `KEPT_PROMPTS` are remembered."""
        encoded = [self._encode(prompt) for prompt in prompts]
        return Tokens(ids=np.array([ids for ids, _ in encoded], np.int64), cut=tuple(cut for _, cut in encoded))

    def _encode_anew(self, prompt: str) -> tuple[tuple[int, ...], str]:
        """Tokens of one prompt, and what was cut."""
        encoding = self._tokenizer.encode(prompt)
        ids: tuple[int, ...] = tuple(encoding.ids)
        if len(ids) != self._condition.num_tokens or max(ids) >= self._condition.vocab_size:
            raise _refused(
                self._file,
                f"makes {len(ids)} tokens up to {max(ids)}, the contract has {self._condition.num_tokens} tokens below "
                f"{self._condition.vocab_size}",
            )
        return ids, _cut(prompt, encoding)


def word_tokenizer(words: Sequence[str]) -> str:
    """A ``tokenizer.json`` that knows these words and signs, in lower case, and nothing else.

    Raises:
        TargetError: the package is not installed.
    """
    tokenizers = require("tokenizers", extra="text")
    vocabulary = {word: index for index, word in enumerate((UNKNOWN, START, END, *words))}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=UNKNOWN))
    made.normalizer = tokenizers.normalizers.Lowercase()
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, 1), (END, 2)]
    )
    made.enable_padding(pad_id=2, pad_token=END)
    text: str = made.to_str()
    return text


def word_condition(words: Sequence[str], *, num_tokens: int, width: int) -> Condition:
    """The condition that `word_tokenizer` makes tokens for."""
    null = (1, *[2] * (num_tokens - 1))
    return Condition(kind="text", num_tokens=num_tokens, vocab_size=3 + len(words), width=width, null_tokens=null)


def _cut(prompt: str, encoding: Any) -> str:
    """The part of a prompt behind its last token."""
    if not encoding.overflowing:
        return ""
    ends = (
        end for (_, end), special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True) if not special
    )
    return prompt[max(ends, default=0) :].strip()


def _refused(file: Path, what: str) -> ArtifactError:
    return ArtifactError(
        f"{file} {what}",
        code="tokenizer-mismatch",
        hint="import or train the student again with its own tokenizer.json",
    )
