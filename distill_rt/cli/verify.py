"""Check a student, bundle or engine: files (regular, size, sha256), contract, and whether an engine fits this machine.

Exit code 0 if everything holds, else that of the first fault (3 artifact, 4 target).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from distill_rt.cli.outcome import Outcome
from distill_rt.core.artifacts import StudentBody
from distill_rt.core.errors import ArtifactError
from distill_rt.core.manifest import Kind, decode_body, kind_of, read_manifest, verify_files

EXTRA = "cpu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help="directory of a student, a bundle or an engine")


def run(args: argparse.Namespace) -> Outcome:
    kind = kind_of(args.path)
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
    return ["components", "fingerprint", "this machine"]


_CHECK: dict[Kind, Callable[[Path], list[str]]] = {"student": _student, "bundle": _bundle, "engine": _engine}
