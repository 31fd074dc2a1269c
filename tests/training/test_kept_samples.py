"""Sample sets that are kept: made once, the same bits, and never another's."""

from __future__ import annotations

import pytest
import torch

from distill_rt.core.samplers.ddim import ddim
from distill_rt.training.data import Grid25
from distill_rt.training.quality.bench import QualityBench
from distill_rt.training.quality.kept_samples import KeptSamples


class Maker:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> torch.Tensor:
        self.calls += 1
        return torch.full((2, 1, 3, 3), float(self.calls)).transpose(2, 3)


def test_what_was_made_is_kept(tmp_path):
    make, kept = Maker(), KeptSamples(tmp_path / "new" / "samples")
    first = kept.get({"seed": 1}, make)
    assert torch.equal(KeptSamples(tmp_path / "new" / "samples").get({"seed": 1}, make), first)
    assert make.calls == 1
    assert not torch.equal(kept.get({"seed": 2}, make), first)
    assert len(list((tmp_path / "new" / "samples").iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"x" * 100])
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    make, kept = Maker(), KeptSamples(tmp_path)
    kept.get({}, make)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage)
    assert float(kept.get({}, make).mean()) == 2.0
    assert float(kept.get({}, make).mean()) == 2.0


def test_another_version_of_torch_makes_its_own(tmp_path, monkeypatch):
    make, kept = Maker(), KeptSamples(tmp_path)
    kept.get({}, make)
    monkeypatch.setattr(torch, "__version__", "0")
    kept.get({}, make)
    assert make.calls == 2


def test_a_bench_finds_its_references_again(tmp_path, mixture_student):
    """All that the teacher samples, bit for bit; another seed, table or scale is another set."""
    kept = KeptSamples(tmp_path)

    def bench(**changes: float) -> QualityBench:
        return QualityBench(mixture_student, Grid25(), num_samples=200, kept=kept, **changes)

    first = bench()
    table = ddim(first.teacher.process, first.teacher.spec.parameterization, [1.0, 0.5])
    sampled, floor = first.teacher_samples(table), first.floor
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) == 4, "paired, fresh, the floor's and the table's"
    again = bench()
    assert torch.equal(again.paired, first.paired)
    assert torch.equal(again.fresh, first.fresh)
    assert torch.equal(again.teacher_samples(table), sampled)
    assert again.floor == floor
    assert {path.name for path in tmp_path.iterdir()} == names
    plain = QualityBench(mixture_student, Grid25(), num_samples=200)
    assert torch.equal(plain.fresh, first.fresh)
    assert not torch.equal(bench(seed=1).fresh, first.fresh)
    bench(guidance=1.5)
    assert len(list(tmp_path.iterdir())) == 8
