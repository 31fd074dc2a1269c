"""The project's own tests that are marked ``gpu``, on this GPU: how many ran, and which failed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from acceptance.checkout import ROOT
from acceptance.device import need, open_device
from acceptance.report import Recorder, Skip

MARK = "mark.gpu"


def run(recorder: Recorder, argument: str) -> None:
    open_device(recorder)
    need("pytest")
    files = marked_files(ROOT / "tests")
    if not files:
        raise Skip("no test is marked gpu")
    recorder.figure("files", [path.relative_to(ROOT).as_posix() for path in files])
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        done = run_pytest(files, report, timeout=max(5.0, recorder.time_left() - 3))
        if done is None:
            raise TimeoutError("the tests did not end in their time box")
        if not report.exists():
            raise RuntimeError(f"pytest ended with status {done}")
        counts, failed = summary(ElementTree.parse(report))
    recorder.figure("counts", counts)
    recorder.figure("failed", failed)
    recorder.at_most("gpu_tests_failed", len(failed), 0)
    if not recorder.dry:
        recorder.at_least("gpu_tests_ran", counts["tests"] - counts["skipped"], 1)


def marked_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("test_*.py") if MARK in path.read_text())


def run_pytest(files: list[Path], report: Path, timeout: float) -> int | None:
    """Exit status; None if it was cut off."""
    from distill_rt.core.optional import installed

    command = [
        sys.executable, "-P", "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--rootdir", str(ROOT),
        "-c", str(ROOT / "pyproject.toml"), "--junitxml", str(report), *(["-n", "6"] if installed("xdist") else []),
    ]  # fmt: skip
    try:
        return subprocess.run([*command, *map(str, files)], check=False, timeout=timeout).returncode
    except subprocess.TimeoutExpired:
        return None


def summary(tree: Any) -> tuple[dict[str, int], list[str]]:
    """Counts, and the names of tests that failed or could not start."""
    cases = list(tree.getroot().iter("testcase"))
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {"tests": len(cases), "skipped": skipped, "failed": len(failed)}, failed
