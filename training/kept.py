"""Weights of a student that were kept along its training: what `combine` combines.

OUT.weights/weights.json               the run that they belong to
OUT.weights/step-0000400.safetensors   the student after 400 steps, as it trained (no average)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from distill_rt.core.directory import resource_errors, write_file
from distill_rt.core.errors import ArtifactError, UsageError

MARK = "weights.json"
_NOT_IDENTITY = ("contract", "versions", "losses")


def run_digest(record: Mapping[str, Any]) -> str:
    """Names a run by what decides it; `record` is its identity or the provenance of the student that it made."""
    deciding = {key: value for key, value in record.items() if key not in _NOT_IDENTITY}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptWeights:
    """Where and how often a run keeps its student.

    Args:
        run: `run_digest` of the run.
        every: training steps between two.
    """

    directory: Path
    run: str
    every: int

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UsageError(f"keep_every must be at least 1, got {self.every}", code="setting-invalid")

    def drop_after(self, step: int) -> None:
        """Remove what a run kept beyond a step that it goes on from: it will come again."""
        for file in self.directory.glob("step-*.safetensors"):
            if int(file.stem.removeprefix("step-")) > step:
                with resource_errors(file):
                    file.unlink()

    def keep(self, step: int, student: nn.Module) -> None:
        """Write the student after `step` steps, whole or not at all."""
        file = self.directory / f"step-{step:07d}.safetensors"
        with resource_errors(file):
            self.directory.mkdir(parents=True, exist_ok=True)
            write_file(self.directory / MARK, json.dumps({"run": self.run}).encode())
            partial = file.with_suffix(".partial")
            write_file(partial, save({key: value.contiguous() for key, value in student.state_dict().items()}))
            partial.replace(file)


def read_kept(directory: Path, provenance: Mapping[str, Any]) -> dict[int, dict[str, Tensor]]:
    """The kept weights by training step, ascending.

    Args:
        provenance: of the student that the run made.

    Raises:
        ArtifactError: none, damaged, or of another run.
    """
    files = sorted(directory.glob("step-*.safetensors"))
    hint = "train or distil again with --keep-every STEPS"
    if not files:
        raise ArtifactError(f"there are no kept weights in {directory}", code="weights-missing", hint=hint)
    try:
        mark = json.loads((directory / MARK).read_bytes())
        if mark.get("run") != run_digest(provenance):
            raise ArtifactError(f"{directory} holds weights of another run", code="weights-of-another-run", hint=hint)
        return {int(file.stem.removeprefix("step-")): load_file(file) for file in files}
    except (OSError, ValueError, AttributeError, SafetensorError) as error:
        raise ArtifactError(
            f"the weights in {directory} cannot be read: {' '.join(str(error).split()):.200}",
            code="weights-damaged",
            hint=hint,
        ) from error
