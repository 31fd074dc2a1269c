"""Sample sets that outlive a process: a teacher's references cost minutes and are the same for every student."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill_rt.core.atomic_file import atomic_file


class KeptSamples:
    """Tensors in files of one directory, named by what decides them and by torch's version, whose other versions have other
    last bits. Code is not among it: another sampler needs another directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def get(self, what: Mapping[str, Any], make: Callable[[], Tensor]) -> Tensor:
        """The tensor that `what` (JSON values) names, made and kept at the first call; a file that cannot be read is made anew.

        Raises:
            ResourceError: the directory cannot be written.
        """
        content = json.dumps({**what, "torch": torch.__version__}, sort_keys=True)
        path = self._directory / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.safetensors"
        try:
            kept: Tensor = load_file(path)["samples"]
            return kept
        except (FileNotFoundError, SafetensorError, KeyError):
            samples = make()
            with atomic_file(path) as partial:
                save_file({"samples": samples.contiguous()}, partial)
            return samples
