"""The driver: sections that hang, crash, raise or are missing cost themselves alone; a report is gone on with or refused.

The sections here are made up: a stand-in for `acceptance.section` behaves as its name says.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import gpu_acceptance
import pytest
from acceptance.sections import SECTIONS, TOTAL_SECONDS, Section

STAND_IN = """
import json, os, pathlib, signal, subprocess, sys, time
name, out = sys.argv[1], pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
runs = pathlib.Path(os.environ["STAND_IN_FOLDER"]) / name
runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
def write(status, bars=()):
    out.write_text(json.dumps({"status": status, "reason": "", "figures": {"a": 1}, "bars": list(bars)}))
good = {"name": "fast", "value": 1.0, "rule": "at most", "threshold": 2.0, "passed": True}
write("running", [good] if name == "hangs" else [])
if name == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (runs.parent / "child").write_text(str(child.pid))
    time.sleep(60)
elif name == "killed":
    os.kill(os.getpid(), signal.SIGSEGV)
elif name == "raises":
    print("Traceback: the reason")
    write("crashed")
    sys.exit(1)
elif name == "silent":
    out.unlink()
    sys.exit(3)
elif name == "absent":
    write("skipped")
elif name == "broken":
    write("failed", [good | {"passed": False, "value": 3.0}])
else:
    write("passed", [good])
"""
BARS = ("fast",)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stand-ins leave how often they ran."""

    def link_package(path: Path) -> Path:
        (path / "acceptance").mkdir(parents=True)
        (path / "acceptance" / "section.py").write_text(STAND_IN)
        return path

    monkeypatch.setattr(gpu_acceptance.checkout, "link_package", link_package)
    monkeypatch.setattr(gpu_acceptance, "_gpu_name", lambda path: "Test GPU 1")
    monkeypatch.setenv("STAND_IN_FOLDER", str(tmp_path))
    return tmp_path


def use(monkeypatch: pytest.MonkeyPatch, *names: str, seconds: float = 20) -> None:
    table = {name: Section(module=name, seconds=seconds, bars=BARS) for name in names}
    monkeypatch.setattr(gpu_acceptance, "SECTIONS", table)


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "r.json").read_text())


def run(folder: Path, *options: str) -> int:
    return gpu_acceptance.main(["--out", str(folder / "r.json"), *options])


def times(folder: Path, name: str) -> int:
    return len((folder / name).read_text()) if (folder / name).exists() else 0


def last_line(text: str) -> dict[str, Any]:
    return json.loads(text.splitlines()[-1])


def test_a_hanging_section_is_cut_off_with_all_it_started(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, "hangs", "good", seconds=3)
    assert run(folder) == 1
    section = report(folder)["sections"]["hangs"]
    assert section["status"] == "timed-out"
    assert section["figures"] == {"a": 1}  # what it had is kept
    assert [bar["name"] for bar in section["bars"]] == ["fast"]
    assert report(folder)["sections"]["good"]["status"] == "passed"
    child = Path(f"/proc/{(folder / 'child').read_text()}/stat")
    deadline = time.monotonic() + 10
    while child.exists() and child.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.exists() or child.read_text().split()[2] == "Z"
    line = last_line(capsys.readouterr().out)
    assert line["ok"] is False
    assert line["sections"] == {"hangs": "timed-out", "good": "passed"}


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("killed", "crashed", "killed by SIGSEGV"),
        ("raises", "crashed", ""),
        ("silent", "crashed", "it wrote nothing"),
        ("broken", "failed", ""),
    ],
)
def test_a_failure_is_a_result_and_the_others_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, status: str, reason: str
) -> None:
    use(monkeypatch, name, "good")
    assert run(folder) == 1
    written = report(folder)
    assert written["ok"] is False
    assert written["sections"]["good"]["status"] == "passed"
    section = written["sections"][name]
    assert (section["status"], section["reason"]) == (status, reason)
    if name == "raises":
        assert "Traceback: the reason" in section["log_tail"]
    # A bar that a section should have listed and did not is broken, not forgotten.
    (bar,) = [bar for bar in written["bars"] if bar["section"] == name]
    assert (bar["name"], bar["passed"]) == ("fast", False)


def test_a_section_without_its_package_is_no_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "absent", "good")
    assert run(folder) == 0
    bars = {bar["section"]: bar["passed"] for bar in report(folder)["bars"]}
    assert bars == {"absent": None, "good": True}


def test_resuming_runs_what_is_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, "good", "killed", "absent", "broken")
    assert run(folder, "--only", "good") == 0
    assert list(report(folder)["sections"]) == ["good"]
    assert run(folder) == 1
    assert run(folder) == 1
    assert [times(folder, name) for name in ("good", "killed", "absent", "broken")] == [1, 2, 2, 1]
    assert "good: kept, passed" in capsys.readouterr().out
    assert run(folder, "--only", "good", "--again") == 0
    assert times(folder, "good") == 2

    monkeypatch.setattr(gpu_acceptance.checkout, "source_digest", lambda: "other sources")
    assert run(folder, "--only", "broken") == 1
    assert "every section runs again" in capsys.readouterr().out
    assert list(report(folder)["sections"]) == ["broken"]


def test_reports_of_others_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, "good")
    out = folder / "r.json"
    assert run(folder) == 0
    before = out.read_bytes()
    monkeypatch.setattr(gpu_acceptance, "_gpu_name", lambda path: "Other GPU")
    assert run(folder) == 2
    said = capsys.readouterr()
    assert said.err.strip() == (
        f"gpu_acceptance: {out} is of Test GPU 1, this is Other GPU: choose another --out, or --again"
    )
    assert "Other GPU" in last_line(said.out)["error"]
    assert out.read_bytes() == before
    for content in ("{", "[1]", '{"format": "something else"}'):
        out.write_text(content)
        assert run(folder) == 2
        assert "is not a report of this script" in capsys.readouterr().err
        assert out.read_text() == content
    assert run(folder, "--again") == 0
    assert report(folder)["device"] == "Other GPU"


def test_the_whole_run_has_a_budget(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "good")
    assert run(folder, "--budget", "2") == 0
    section = report(folder)["sections"]["good"]
    assert (section["status"], section["reason"]) == ("skipped", "no time left of the whole run")
    assert times(folder, "good") == 0


def test_interrupts_leave_a_report_to_go_on_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "good", "never")
    real = gpu_acceptance._run

    def interrupted(name: str, *rest: Any, **options: Any) -> dict[str, Any]:
        if name == "never":
            raise KeyboardInterrupt
        return real(name, *rest, **options)

    monkeypatch.setattr(gpu_acceptance, "_run", interrupted)
    assert run(folder) == 130
    assert report(folder)["sections"]["good"]["status"] == "passed"
    assert not [name for name in os.listdir(folder) if name.endswith(".partial")]


def test_no_gpu_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from distill_rt.backends.cuda_device import cuda_devices

    if cuda_devices()[0]:
        pytest.skip("this machine has a GPU")
    assert gpu_acceptance.main(["--out", str(tmp_path / "r.json")]) == 2
    said = capsys.readouterr()
    assert "no NVIDIA driver" in said.err
    assert "--cpu" in said.err
    assert len(said.err.splitlines()) == 1
    assert not (tmp_path / "r.json").exists()


def test_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_acceptance.main(["--only", "sped"])
    assert "there is no section sped; sections are environment, ceilings" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu_acceptance.main(["--cpu"])
    assert "--cpu needs --out" in capsys.readouterr().err


def test_the_real_sections() -> None:
    folder = Path(gpu_acceptance.__file__).parent / "acceptance"
    for section in SECTIONS.values():
        assert (folder / f"{section.module}.py").is_file()
    assert TOTAL_SECONDS < 480
    assert gpu_acceptance._slug("NVIDIA H200") == "nvidia-h200"
