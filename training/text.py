"""What turns the captions of a batch into the embeddings that a network reads: a tokenizer and a frozen text encoder.

Legend: B images, L tokens, D elements of one token's embedding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from distill_rt.core.condition import Condition
from distill_rt.core.errors import UsageError
from distill_rt.core.spec import StudentSpec
from distill_rt.core.tokenizer import TOKENIZER_FILE, Tokenizer, word_tokenizer
from distill_rt.models import Student, build_text_encoder
from distill_rt.training.data import Batch, Dataset
from distill_rt.training.draws import Draws

KEPT_CAPTIONS = 4096


class TextSide:
    """Captions to embeddings; the encoder does not train.

    Every caption is encoded alone, so that its embedding does not depend on the batch, and remembered.

    Args:
        encoder: takes tokens int64 (B, L).
        tokenizer: file, copied into the student.
        unknown_token: what words that the tokenizer does not know become, None where it knows all of them.
    """

    def __init__(
        self, condition: Condition, encoder: nn.Module, tokenizer: Path, *, unknown_token: int | None = None
    ) -> None:
        self.encoder = encoder.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self._tokens = Tokenizer(tokenizer, condition)
        self._unknown = unknown_token
        self._kept: dict[str, Tensor] = {}

    @classmethod
    def of(cls, student: Student) -> TextSide | None:
        """That of a loaded student or teacher; None where it reads no prompts."""
        if student.text_encoder is None or student.tokenizer is None:
            return None
        return cls(student.spec.condition, student.text_encoder, student.tokenizer)

    @property
    def null_LD(self) -> Tensor:
        """Embedding of the empty prompt."""
        return self._embedding("")

    def embed(self, captions: Sequence[str]) -> Tensor:
        """(B, L, D).

        Raises:
            UsageError: a word that the tokenizer does not know.
        """
        return torch.stack([self._embedding(caption) for caption in captions])

    def check(self, captions: Iterable[str]) -> None:
        """Refuse captions before any work is done for them.

        Raises:
            UsageError: a word that the tokenizer does not know.
        """
        for caption in captions if self._unknown is not None else ():
            self._ids(caption)

    def _ids(self, caption: str) -> Tensor:
        ids = torch.from_numpy(self._tokens([caption]).ids)
        if self._unknown is not None and bool((ids == self._unknown).any()):
            raise UsageError(
                f"the caption {caption!r:.80} has words that the recipe does not know",
                code="caption-words",
                hint="train on data whose captions the recipe was made for",
            )
        return ids

    def _embedding(self, caption: str) -> Tensor:
        if caption not in self._kept:
            if len(self._kept) >= KEPT_CAPTIONS:
                self._kept.pop(next(iter(self._kept)))
            ids = self._ids(caption)
            with torch.no_grad():
                self._kept[caption] = self.encoder(ids)[0]
        return self._kept[caption]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
    """What each of N images shall show, and who tells it a network.

    Args:
        texts: N of them.
        side: of the network that is asked.
    """

    texts: tuple[str, ...]
    side: TextSide

    def embedded(self, part: slice) -> Tensor:
        """Those of a part of the images, (B, L, D)."""
        return self.side.embed(self.texts[part])


@contextlib.contextmanager
def fresh_text(spec: StudentSpec, words: Sequence[str], *, seed: int) -> Iterator[TextSide | None]:
    """The text side of a new teacher: a tokenizer of these words and an encoder of random weights; None for other conditions.

    Token embeddings have unit variance: a table that never trains must not be drowned by what is added to it.
    """
    if spec.text_encoder is None:
        yield None
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed % 2**63)
        encoder = build_text_encoder(spec.text_encoder)
        nn.init.normal_(encoder.backbone.embeddings.token_embedding.weight, std=1.0)  # type: ignore[union-attr, arg-type]
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / TOKENIZER_FILE
        file.write_text(word_tokenizer(words))
        yield TextSide(spec.condition, encoder, file, unknown_token=0)


class EmbeddedCaptions:
    """A data set with the embeddings of its captions."""

    def __init__(self, dataset: Dataset, text: TextSide) -> None:
        self._dataset, self._text = dataset, text
        self.sample_shape, self.num_classes = dataset.sample_shape, dataset.num_classes
        self.has_captions = dataset.has_captions

    def batch(self, draws: Draws) -> Batch:
        batch = self._dataset.batch(draws)
        assert batch.captions_B is not None
        return dataclasses.replace(batch, text_BLD=self._text.embed(batch.captions_B))
