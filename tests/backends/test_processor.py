"""What is read about the processor, on made-up machines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distill_rt.backends import processor


def test_instruction_sets_of_the_first_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: Test 1\nflags\t\t: fpu avx2 avx512f clzero\n\nflags\t\t: amx_bf16\n")
    monkeypatch.setattr(processor, "CPUINFO", cpuinfo)
    assert processor.instruction_sets() == {"avx2", "avx512f"}
    assert processor.name() == "Test 1"
    assert processor.identity()["instruction_sets"] == ["avx2", "avx512f"]


def test_arm_lists_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd evtstrm sve i8mm bf16\n")
    monkeypatch.setattr(processor, "CPUINFO", cpuinfo)
    assert processor.instruction_sets() == {"asimd", "sve", "i8mm", "bf16"}


def test_a_system_without_cpuinfo_has_no_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "missing")
    assert processor.instruction_sets() == frozenset()
    assert processor.name()


@pytest.mark.parametrize(
    ("features", "saturates"),
    [
        ("flags : avx avx2", True),
        ("flags : avx avx2 avx512f avx512bw", True),
        ("flags : avx avx2 avx512f avx512_vnni", False),
        ("flags : avx avx2 avx_vnni", False),
        ("Features : asimd asimddp", False),
        ("", False),
    ],
)
def test_int8_products_saturate_on_x86_without_vnni(
    features: str, saturates: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(features + "\n")
    monkeypatch.setattr(processor, "CPUINFO", cpuinfo)
    assert processor.adds_products_in_16_bits() == saturates


@pytest.mark.parametrize(
    ("siblings", "cpu_max", "expected"),
    [
        (["0,2", "1,3", "0,2", "1,3"], "max 100000", 2),  # four hyper-threads are two cores
        (["0", "1", "2", "3"], "max 100000", 4),
        (["0", "1", "2", "3"], "250000 100000", 2),  # a container that may use 2.5 processors
        (["0", "1", "2", "3"], "50000 100000", 1),
        (["0", "1", "2", "3"], None, 4),
        ([None, None, None, None], None, 4),  # no topology: every processor counts
    ],
)
def test_available_cores(
    siblings: list[str | None],
    cpu_max: str | None,
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cpu, text in enumerate(siblings):
        if text is not None:
            topology = tmp_path / f"cpu{cpu}/topology"
            topology.mkdir(parents=True)
            (topology / "thread_siblings_list").write_text(text + "\n")
    if cpu_max is not None:
        (tmp_path / "cpu.max").write_text(cpu_max + "\n")
    monkeypatch.setattr(processor, "TOPOLOGY", tmp_path)
    monkeypatch.setattr(processor, "CGROUP_CPU_MAX", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    assert processor.available_cores() == expected


def test_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "TOPOLOGY", tmp_path)
    monkeypatch.setattr(processor, "CGROUP_CPU_MAX", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2}, raising=False)
    assert processor.available_cores() == 1
