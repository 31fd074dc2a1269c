"""Tables and pictures in docs/ are made of the committed results, and of nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import quality
import quality_report
import render_performance

ROOT = Path(__file__).resolve().parent.parent.parent
QUALITY = json.loads((ROOT / "benchmarks/results/quality.json").read_text())["rows"]


def test_the_quality_table_is_that_of_the_results(tmp_path: Path) -> None:
    copy = tmp_path / "methods.md"
    shutil.copyfile(ROOT / "docs/methods.md", copy)
    quality_report.write_table(copy, QUALITY)
    assert copy.read_text() == (ROOT / "docs/methods.md").read_text()


def test_every_control_of_the_results_fails() -> None:
    controls = [row for row in QUALITY if row["control"]]
    assert not [row["method"] for row in controls if row["passed"]]
    # These train nothing, so "the teacher as the student" would be their student.
    expected = sum(4 if row["method"].startswith(("gits", "bespoke")) else 5 for row in QUALITY if not row["control"])
    assert len(controls) == expected


def test_a_student_is_missing_until_every_plan_of_it_has_a_row() -> None:
    run = next(run for run in quality.RUNS if run.key == "lcm-digits-4")
    rows = [{"method": "lcm", "dataset": "digits", "nfe": n, "seed": 1} for n in (1, 2)]
    assert quality.missing([(run, 1)], rows) == [(run, 1)]
    rows.append({"method": "lcm", "dataset": "digits", "nfe": 4, "seed": 1})
    assert quality.missing([(run, 0), (run, 1)], rows) == [(run, 0)]


def test_the_plot_has_a_panel_for_every_method(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    quality_report.plot(tmp_path / "quality.svg", QUALITY)
    picture = (tmp_path / "quality.svg").read_text()
    for method in {row["method"] for row in QUALITY if not row["control"]}:
        assert f"<!-- {method} -->" in picture


def test_the_performance_page_is_that_of_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "benchmarks").mkdir()
    shutil.copytree(ROOT / "benchmarks/results", tmp_path / "benchmarks/results")
    monkeypatch.setattr(render_performance, "ROOT", tmp_path)
    render_performance.main()
    assert (tmp_path / "docs/performance.md").read_text() == (ROOT / "docs/performance.md").read_text()
