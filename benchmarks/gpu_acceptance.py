"""Everything that only a GPU can confirm, in one resumable run of under eight minutes: `make gpu-acceptance`.

    python benchmarks/gpu_acceptance.py                          # benchmarks/results/gpu-<name>.json
    python benchmarks/gpu_acceptance.py --cpu --out /tmp/dry.json    # no GPU: the same sections at tiny sizes

Sections (`benchmarks/acceptance/sections.py`) run one after the other, each in a process of its own with a time box, so that a
crash or a hang of one costs that one. The report is replaced after every section; the same command again runs what is missing,
skipped, cut short or made by other sources. Needs torch and triton; what else is absent is said in the report. distill_rt need
not be installed. Ends with one line of JSON. Exit status: 0 all bars passed, 1 a bar is broken or a section did not end well,
2 no run was possible.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCHMARKS))

from acceptance import checkout  # noqa: E402 - the sections are found beside this file
from acceptance.report import DONE, write_json  # noqa: E402
from acceptance.sections import SECTIONS, TOTAL_SECONDS, Section  # noqa: E402

FORMAT = "distill-rt/gpu-acceptance"
FORMAT_VERSION = 1
LOG_CHARACTERS = 3000


class CannotRun(Exception):
    """Why nothing was run, in one line."""


def main(arguments: list[str] | None = None) -> int:
    args = _parse(arguments)
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="gpu-acceptance-") as folder:
            path = checkout.link_package(Path(folder) / "path")
            device = "cpu (dry run)" if args.cpu else _gpu_name(path)
            out = args.out or BENCHMARKS / "results" / f"gpu-{_slug(device)}.json"
            report = _open_report(out, device, dry=args.cpu, again=args.again)
            write_json(out, report)
            for name in args.only or SECTIONS:
                if report["sections"].get(name, {}).get("status") in DONE and not args.again:
                    print(f"{name}: kept, {report['sections'][name]['status']}", flush=True)
                    continue
                left = args.budget - (time.monotonic() - started)
                report["sections"][name] = _run(name, SECTIONS[name], path, Path(folder), left, dry=args.cpu)
                _summarise(report)
                write_json(out, report)
    except CannotRun as error:
        print(f"gpu_acceptance: {error}", file=sys.stderr)
        print(json.dumps({"format": FORMAT, "error": str(error)}))
        return 2
    except KeyboardInterrupt:
        print("gpu_acceptance: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    _summarise(report)
    write_json(out, report)
    print(json.dumps(_one_line(report, out, time.monotonic() - started)))
    return 0 if report["ok"] else 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the report (default: benchmarks/results/gpu-<name of the GPU>.json)")
    parser.add_argument("--cpu", action="store_true", help="without a GPU: tiny sizes in Triton's interpreter")
    parser.add_argument("--again", action="store_true", help="run sections that the report already holds, too")
    parser.add_argument("--only", type=lambda text: text.split(","), help="sections, separated by commas")
    parser.add_argument("--budget", type=float, default=TOTAL_SECONDS, help="seconds for the whole run (%(default)g)")
    args = parser.parse_args(arguments)
    unknown = sorted(set(args.only or ()) - set(SECTIONS))
    if unknown:
        parser.error(f"there is no section {', '.join(unknown)}; sections are {', '.join(SECTIONS)}")
    if args.cpu and args.out is None:
        parser.error("--cpu needs --out: a dry run is no result to keep")
    return args


def _gpu_name(path: Path) -> str:
    """Asked in another process: a driver in a bad state may hang, and this one must not."""
    code = "from distill_rt.backends.cuda_device import cuda_devices as c; d, why = c(); print(d[0].name if d else '?' + why)"
    try:
        asked = subprocess.run(
            [sys.executable, "-P", "-c", code], env=_environment(path, dry=False), capture_output=True, text=True, timeout=60
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise CannotRun("the NVIDIA driver does not answer") from None
    name = asked.stdout.strip()
    if asked.returncode or not name:
        raise CannotRun(f"the GPU cannot be asked for: {asked.stderr.strip()[-300:]}")
    if name.startswith("?"):
        raise CannotRun(f"{name[1:]} (--cpu --out FILE makes a dry run)")
    return name


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _open_report(out: Path, device: str, *, dry: bool, again: bool) -> dict[str, Any]:
    """The report to go on with: its sections that ran on this device from these sources, or an empty one."""
    source = checkout.source_digest()
    fresh = {
        "format": FORMAT, "format_version": FORMAT_VERSION, "device": device, "dry": dry,
        "source": source, "commit": checkout.commit(), "sections": {},
    }  # fmt: skip
    if again or not out.exists():
        return fresh
    try:
        old = json.loads(out.read_text())
        known = (old["format"], old["format_version"]) == (FORMAT, FORMAT_VERSION)
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise CannotRun(f"{out} is not a report of this script: choose another --out, or --again to replace it")
    if old["device"] != device:
        raise CannotRun(f"{out} is of {old['device']}, this is {device}: choose another --out, or --again")
    if old["source"] == source:
        fresh["sections"] = old["sections"]
    elif old["sections"]:
        print("the sources have changed since that report: every section runs again", flush=True)
    return fresh


def _environment(path: Path, *, dry: bool) -> dict[str, str]:
    environment = os.environ | {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH", "")]))
    environment["TRITON_INTERPRET"] = "1" if dry else "0"
    environment["DISTILL_RT_CACHE"] = str(path.parent / "cache")  # engines are built, not found
    if dry:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment


def _run(name: str, section: Section, path: Path, folder: Path, left: float, *, dry: bool) -> dict[str, Any]:
    """One section in its own process group, killed as a whole when its time is up."""
    seconds = min(section.seconds, left)
    if seconds < 3:
        return {
            "status": "skipped",
            "reason": "no time left of the whole run",
            "seconds": 0.0,
            "figures": {},
            "bars": [],
        }
    result, log = folder / f"{name}.json", folder / f"{name}.log"
    command = [
        sys.executable,
        "-P",
        "-m",
        "acceptance.section",
        name,
        "--out",
        str(result),
        "--seconds",
        f"{seconds:.1f}",
    ]
    started, timed_out = time.monotonic(), False
    print(f"{name}: at most {seconds:.0f} s", flush=True)
    scratch = folder / f"{name}.tmp"
    scratch.mkdir()
    with open(log, "w") as output:
        process = subprocess.Popen(
            command + (["--cpu"] if dry else []), env=_environment(path, dry=dry) | {"TMPDIR": str(scratch)},
            cwd=scratch, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            _kill_group(process)
    content: dict[str, Any] = {"status": "crashed", "reason": "it wrote nothing", "figures": {}, "bars": []}
    if result.exists():
        content = json.loads(result.read_text())
    if content["status"] == "running":
        content["status"] = "timed-out" if timed_out else "crashed"
        content["reason"] = f"cut off after {seconds:.0f} s" if timed_out else _exit_reason(process.returncode)
    content["seconds"] = round(time.monotonic() - started, 1)
    if content["status"] in ("crashed", "timed-out"):
        content["log_tail"] = log.read_text(errors="replace")[-LOG_CHARACTERS:]
    print(f"{name}: {content['status']}, {content['seconds']:.0f} s {content['reason']}".rstrip(), flush=True)
    return content


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """The section and whatever it started (compilers, tests); nothing of it may disturb the next one's clock."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:  # stuck in the driver, where no signal reaches it
        print("a section cannot be killed: it hangs in the driver", file=sys.stderr, flush=True)


def _exit_reason(code: int | None) -> str:
    return f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with status {code}"


def _summarise(report: dict[str, Any]) -> None:
    """All bars in one list, those that a section should have listed and did not included."""
    bars = []
    for name, content in report["sections"].items():
        bars += [{"section": name, **bar} for bar in content["bars"]]
        have = {bar["name"] for bar in content["bars"]}
        # A missing package is no failure, and a dry run cannot know; everything else is.
        excused = content["status"] == "skipped" or (report["dry"] and content["status"] == "passed")
        note = "needs a GPU" if report["dry"] else content["status"]
        bars += [
            {"section": name, "name": bar, "value": None, "passed": None if excused else False, "note": note}
            for bar in SECTIONS[name].bars
            if bar not in have
        ]
    report["bars"] = bars
    ended = all(content["status"] in ("passed", "skipped") for content in report["sections"].values())
    report["ok"] = ended and all(bar["passed"] is not False for bar in bars)


def _one_line(report: dict[str, Any], out: Path, seconds: float) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "device": report["device"],
        "commit": report["commit"],
        "ok": report["ok"],
        "seconds": round(seconds, 1),
        "out": str(out),
        "sections": {name: content["status"] for name, content in report["sections"].items()},
        "bars": report["bars"],
    }


if __name__ == "__main__":
    sys.exit(main())
