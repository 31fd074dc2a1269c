"""Two student directories to one: a small network for the first evaluations, a big one for the rest (T-Stitch)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from distill_rt.core.errors import UsageError
from distill_rt.core.stitch import stitch_contracts
from distill_rt.models.student import load_student, save_student


def stitch_students(big: str | Path, small: str | Path, out: str | Path, *, first: int, force: bool = False) -> str:
    """Write the stitched student; it is exported, evaluated and compiled like any other.

    Args:
        big, small: student directories whose contracts agree (`distill_rt.core.stitch.stitch_contracts`).
        first: evaluations of the small network.
        force: replace what stands at `out`.

    Returns:
        Its digest.

    Raises:
        UsageError: the contracts, text encoders or decoders differ, or `out` exists.
        ArtifactError: a student is missing or damaged.
    """
    one, two = load_student(big), load_student(small)
    spec = stitch_contracts(one.spec, two.spec, first=first)
    for name, module, other in (
        ("text encoder", one.text_encoder, two.text_encoder),
        ("decoder", one.decoder, two.decoder),
    ):
        if module is not None and other is not None and not _same_weights(module, other):
            raise UsageError(
                f"the students cannot be stitched: their {name}s have other weights",
                code="stitch-contract",
                hint="both must have been distilled from one teacher",
                details={"field": name},
            )
    return save_student(
        Path(out),
        spec,
        [*one.networks, *two.networks],
        text_encoder=one.text_encoder,
        decoder=one.decoder,
        tokenizer=one.tokenizer,
        force=force,
    )


def _same_weights(one: nn.Module, two: nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
