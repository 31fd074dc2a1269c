"""Check a student, bundle or engine: files (regular, size, sha256), contract, and whether an engine fits this machine.

With --gate, run the gate of an engine that was compiled elsewhere, and record the result in it.
Exit code 0 if everything holds, else that of the first fault (3 artifact, 4 target, 6 gate).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from distill_rt.cli.outcome import Outcome
from distill_rt.cli.progress import progress_bar
from distill_rt.core.artifacts import StudentBody
from distill_rt.core.errors import ArtifactError, UsageError
from distill_rt.core.manifest import Kind, decode_body, kind_of, read_manifest, verify_files

EXTRA = "cpu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help="directory of a student, a bundle or an engine")
    parser.add_argument("--gate", action="store_true", help="compare an engine with its student on this machine")


def run(args: argparse.Namespace) -> Outcome:
    kind = kind_of(args.path)
    if args.gate:
        _run_gate(args.path, kind)
    checks = ["manifest", "contract", "files", *_CHECK[kind](args.path)]
    manifest = read_manifest(args.path, kind)
    listed = {entry.path for entry in manifest.files} | {f"{kind}.json"}
    found = {path.relative_to(args.path).as_posix() for path in args.path.rglob("*") if not path.is_dir()}
    unlisted = sorted(found - listed)
    data = {
        "path": str(args.path),
        "kind": kind,
        "digest": manifest.digest,
        "verified": checks,
        "num_files": len(manifest.files),
        "unlisted_files": unlisted,
    }
    ignored = f"\nnot part of it, and never read: {', '.join(unlisted)}" if unlisted else ""
    text = f"{args.path}: {kind}, {len(manifest.files)} files; {', '.join(checks)} verified{ignored}"
    return Outcome(data=data, text=text)


def _run_gate(path: Path, kind: Kind) -> None:
    if kind != "engine":
        raise UsageError(f"--gate needs an engine, {path} is a {kind}", code="bad-arguments", hint="leave --gate out")
    from distill_rt.export.late_gate import run_late_gate

    with progress_bar() as progress:
        run_late_gate(path, progress=progress)


def _student(directory: Path) -> list[str]:
    manifest = read_manifest(directory, "student")
    body = decode_body(manifest, StudentBody, directory)
    listed = {entry.path for entry in manifest.files}
    if len(body.weights) != len(body.spec.networks) or not set(body.weights) <= listed:
        raise ArtifactError(
            f"{directory}/student.json does not list one weight file per network",
            code="artifact-damaged",
            hint="train or import it again",
        )
    verify_files(directory, manifest)
    return []


def _bundle(directory: Path) -> list[str]:
    from distill_rt.export.bundle import open_bundle

    open_bundle(directory)
    return ["components"]


def _engine(directory: Path) -> list[str]:
    from distill_rt.backends.engine import open_engine

    open_engine(directory)
    return ["components", "fingerprint", "this machine", "gate"]


_CHECK: dict[Kind, Callable[[Path], list[str]]] = {"student": _student, "bundle": _bundle, "engine": _engine}
