"""Manifests: a versioned JSON file that names every file of its directory with size and sha256.

The manifest is the directory's identity: what is not listed is not read, what is listed must match. Paths are relative,
regular files beneath the directory; links and ``..`` are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from distill_rt.core import codec
from distill_rt.core.directory import write_file
from distill_rt.core.errors import ArtifactError

Kind = Literal["student", "bundle", "engine"]

FORMAT_VERSION = 1
KINDS: tuple[Kind, ...] = ("student", "bundle", "engine")
REMAKE: Mapping[str, str] = {
    "student": "train or import it again",
    "bundle": "export it again: distill-rt export STUDENT --out BUNDLE --force",
    "engine": "compile it again: distill-rt compile BUNDLE --target TARGET --out ENGINE --force",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One file of an artifact: posix path relative to the directory, size in bytes, sha256 as hex."""

    path: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        path = PurePosixPath(self.path)
        if not self.path or path.is_absolute() or ".." in path.parts or "\\" in self.path or str(path) != self.path:
            raise ValueError(f"path {self.path!r} is not a plain relative path beneath the directory")
        if self.size < 0 or len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef"):
            raise ValueError(f"file {self.path!r} has a size or sha256 that is none")


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What `<kind>.json` holds: the files and the artifact's own `body`."""

    kind: Kind
    files: tuple[FileEntry, ...]
    body: dict[str, Any]

    @property
    def digest(self) -> str:
        """sha256 over body and files: one name for the whole content."""
        content = {"kind": self.kind, "files": codec.to_json(self.files), "body": self.body}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(directory: Path, kind: Kind, body: dict[str, Any]) -> Manifest:
    """List every file beneath `directory` and write `<kind>.json`, last."""
    entries = []
    for path in sorted(directory.rglob("*")):
        if path.is_symlink():
            raise AssertionError(f"artifact writer left a link: {path}")
        if path.is_file():
            relative = path.relative_to(directory).as_posix()
            entries.append(FileEntry(path=relative, size=path.stat().st_size, sha256=sha256_of(path)))
    manifest = Manifest(kind=kind, files=tuple(entries), body=body)
    content = {
        "format": f"distill-rt/{kind}",
        "format_version": FORMAT_VERSION,
        "files": codec.to_json(manifest.files),
        "body": body,
    }
    write_file(directory / f"{kind}.json", (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    return manifest


def kind_of(directory: Path) -> Kind:
    """Which artifact a directory is, by its manifest file.

    Raises:
        ArtifactError: it does not exist or is none of the three.
    """
    if not directory.is_dir():
        raise ArtifactError(
            f"{directory} is not a directory" if directory.exists() else f"{directory} does not exist",
            code="artifact-missing",
            hint="give the directory of a student, a bundle or an engine",
        )
    for kind in KINDS:
        if (directory / f"{kind}.json").is_file():
            return kind
    raise ArtifactError(
        f"{directory} is neither a student nor a bundle nor an engine (no {', '.join(k + '.json' for k in KINDS)})",
        code="artifact-foreign",
        hint="give the directory that train, distill, export or compile wrote",
    )


def read_manifest(directory: Path, kind: Kind) -> Manifest:
    """Read and check `<kind>.json`; the listed files are checked by `verify_files`.

    Raises:
        ArtifactError: missing, of another kind, unreadable, from another version, or with unknown keys.
    """
    found = kind_of(directory)
    if found != kind:
        raise ArtifactError(
            f"expected a directory of kind {kind}, but {directory} is of kind {found}",
            code="artifact-kind",
            hint=f"give the {kind}",
        )
    path = directory / f"{kind}.json"
    try:
        data = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, kind, f"is not valid JSON: {error}") from error
    except OSError as error:
        raise _damaged(path, kind, f"cannot be read: {error.strerror}") from error
    if not isinstance(data, dict) or data.get("format") != f"distill-rt/{kind}":
        raise ArtifactError(
            f"{path} was not written by distill-rt (format {data.get('format') if isinstance(data, dict) else data!r:.40})",
            code="artifact-foreign",
            hint=f"give the directory of a {kind}",
        )
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        raise ArtifactError(
            f"{path} has format version {version}; this distill-rt reads version {FORMAT_VERSION}",
            code="artifact-version",
            hint="upgrade distill-rt" if newer else REMAKE[kind],
        )
    try:
        unknown = set(data) - {"format", "format_version", "files", "body"}
        if unknown:
            raise ValueError(f"unknown keys: {', '.join(sorted(unknown))}")
        return codec.from_json(
            Manifest, {"kind": kind, "files": data.get("files"), "body": data.get("body")}, f"{kind}.json"
        )
    except ValueError as error:
        raise _damaged(path, kind, str(error)) from error


def decode_body(manifest: Manifest, kind: type[codec.T], directory: Path) -> codec.T:
    """The manifest's body as its dataclass, or one `ArtifactError`."""
    try:
        return codec.from_json(kind, manifest.body, f"{manifest.kind}.json")
    except ArtifactError:
        raise
    except ValueError as error:
        raise _damaged(directory / f"{manifest.kind}.json", manifest.kind, str(error)) from error


def verify_files(directory: Path, manifest: Manifest) -> None:
    """Check that every listed file is there, regular, beneath the directory, and has its size and sha256.

    Raises:
        ArtifactError: the first file that does not match, and how.
    """
    root = directory.resolve()
    for entry in manifest.files:
        path = directory / entry.path
        if any((root / part).is_symlink() for part in _prefixes(entry.path)):
            raise _damaged(path, manifest.kind, "is a link; artifacts hold regular files only")
        if not path.is_file():
            raise _damaged(path, manifest.kind, "is missing")
        size = path.stat().st_size
        if size != entry.size:
            raise _damaged(path, manifest.kind, f"has {size} bytes, the manifest says {entry.size}")
        if sha256_of(path) != entry.sha256:
            raise _damaged(path, manifest.kind, "has changed since it was written (sha256 differs)")


def _prefixes(path: str) -> list[str]:
    parts = PurePosixPath(path).parts
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _damaged(path: Path, kind: Kind, what: str) -> ArtifactError:
    return ArtifactError(f"{path} {what}", code="artifact-damaged", hint=REMAKE[kind])
