"""Manifests: a versioned JSON file that names every file of its directory with size and sha256.

The manifest is the directory's identity: what is not listed is not read, what is listed must match, and its own digest
covers the rest of it. Paths are relative, regular files beneath the directory; links and ``..`` are refused. Large files have
digests of their blocks too (`distill_rt.core.digest`), so that every core helps to check them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

from distill_rt.core import codec
from distill_rt.core.digest import block_digests, hash_threads, sha256_of
from distill_rt.core.directory import write_file
from distill_rt.core.errors import ArtifactError
from distill_rt.core.listing import FileEntry, list_files

T = TypeVar("T")
Kind = Literal["student", "bundle", "engine"]

FORMAT_VERSION = 1
KINDS: tuple[Kind, ...] = ("student", "bundle", "engine")
REMAKE: Mapping[str, str] = {
    "student": "train or import it again",
    "bundle": "export it again: distill-rt export STUDENT --out BUNDLE --force",
    "engine": "compile it again: distill-rt compile BUNDLE --target TARGET --out ENGINE --force",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What `<kind>.json` holds: the files and the artifact's own `body`."""

    kind: Kind
    files: tuple[FileEntry, ...]
    body: dict[str, Any]

    def __post_init__(self) -> None:
        paths = [entry.path for entry in self.files]
        if len(set(paths)) < len(paths):
            twice = next(path for path in paths if paths.count(path) > 1)
            raise ValueError(f"file {twice!r} is listed twice")

    @property
    def digest(self) -> str:
        """sha256 over body and files: one name for the whole content."""
        content = {"kind": self.kind, "files": codec.to_json(self.files), "body": self.body}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_manifest(directory: Path, kind: Kind, body: dict[str, Any]) -> Manifest:
    """List every file beneath `directory` and write `<kind>.json`, last."""
    manifest = Manifest(kind=kind, files=list_files(directory), body=body)
    content = {
        "format": f"distill-rt/{kind}",
        "format_version": FORMAT_VERSION,
        "files": codec.to_json(manifest.files),
        "body": body,
        "digest": manifest.digest,
    }
    write_file(directory / f"{kind}.json", (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    return manifest


def kind_of(directory: Path) -> Kind:
    """Which artifact a directory is, by its manifest file.

    Raises:
        ArtifactError: it does not exist or is none of the three.
    """
    hint = "give the directory of a student, a bundle or an engine"
    try:
        if not directory.is_dir():
            what = "is not a directory" if directory.exists() else "does not exist"
            raise ArtifactError(f"{directory} {what}", code="artifact-missing", hint=hint)
        for kind in KINDS:
            if (directory / f"{kind}.json").is_file():
                return kind
    except OSError as error:  # a directory that may not be searched, a name that is too long
        raise ArtifactError(
            f"{directory} cannot be read: {error.strerror}", code="artifact-missing", hint=hint
        ) from error
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
    data = _read_json(path, kind)
    if not isinstance(data, dict) or data.get("format") != f"distill-rt/{kind}":
        written = data.get("format") if isinstance(data, dict) else data
        raise ArtifactError(
            f"{path} was not written by distill-rt (format {written!r:.40})",
            code="artifact-foreign",
            hint=f"give the directory of a {kind}",
        )
    version = data.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        newer = type(version) is int and version > FORMAT_VERSION
        raise ArtifactError(
            f"{path} has format version {version!r:.40}; this distill-rt reads version {FORMAT_VERSION}",
            code="artifact-version",
            hint="upgrade distill-rt" if newer else REMAKE[kind],
        )
    try:
        unknown = set(data) - {"format", "format_version", "files", "body", "digest"}
        if unknown:
            raise ValueError(f"unknown keys: {', '.join(map(repr, sorted(unknown)))}")
        content = {"kind": kind, "files": data.get("files"), "body": data.get("body")}
        manifest = codec.from_json(Manifest, content, "the manifest")
        intact = data.get("digest") == manifest.digest
    except (ValueError, RecursionError) as error:
        raise _damaged(path, kind, f"is damaged: {error}") from error
    if not intact:
        raise _damaged(path, kind, "has changed since it was written (its digest differs)")
    return manifest


def read_whole(directory: Path, kind: Kind, load: Callable[[], T]) -> T:
    """`load()`, once more if the directory was replaced meanwhile: what it read belongs to one and the same artifact.

    Args:
        load: reads the manifest and the files of `directory`; may be called several times.
    """
    while True:
        before = _identity(directory, kind)
        try:
            result = load()
        except ArtifactError:
            if _identity(directory, kind) == before:
                raise
        else:
            if _identity(directory, kind) == before:
                return result


def _identity(directory: Path, kind: Kind) -> tuple[int, ...] | None:
    """Changes whenever another directory takes the name."""
    try:
        status = (directory / f"{kind}.json").stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _read_json(path: Path, kind: Kind) -> Any:
    if path.is_symlink():
        raise _damaged(path, kind, "is a link; artifacts hold regular files only")
    with _readable(path, kind):
        data = path.read_bytes()
    try:
        return json.loads(data, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, kind, f"is not valid JSON: {error}") from error


def decode_body(manifest: Manifest, kind: type[codec.T], directory: Path) -> codec.T:
    """The manifest's body as its dataclass, or one `ArtifactError`."""
    try:
        return codec.from_json(kind, manifest.body, "body")
    except codec.CodecError as error:
        path = directory / f"{manifest.kind}.json"
        raise _damaged(path, manifest.kind, f"was edited or written by another version: {error}") from error


def verify_files(directory: Path, manifest: Manifest) -> None:
    """Check that every listed file is there, regular, beneath the directory, and has its size and sha256.

    Raises:
        ArtifactError: the first file that does not match, and how; digests come after everything else.
    """
    root = directory.resolve()
    for entry in manifest.files:
        path = directory / entry.path
        with _readable(path, manifest.kind):
            if any((root / part).is_symlink() for part in _prefixes(entry.path)):
                raise _damaged(path, manifest.kind, "is a link; artifacts hold regular files only")
            if not path.is_file():
                raise _damaged(path, manifest.kind, "is no regular file" if path.exists() else "is missing")
            size = path.stat().st_size
            if size != entry.size:
                raise _damaged(path, manifest.kind, f"has {size} bytes, the manifest says {entry.size}")
    with hash_threads() as pool:
        digests = [_digests(pool, directory, entry) for entry in manifest.files]
        for entry, found in zip(manifest.files, digests, strict=True):
            path = directory / entry.path
            with _readable(path, manifest.kind):
                intact = [digest.result() for digest in found] == list(entry.blocks or [entry.sha256])
            if not intact:
                raise _damaged(path, manifest.kind, "has changed since it was written (sha256 differs)")


def _digests(pool: ThreadPoolExecutor, directory: Path, entry: FileEntry) -> list[Future[str]]:
    path = directory / entry.path
    return block_digests(pool, path, entry.size) if entry.blocks else [pool.submit(sha256_of, path)]


def _prefixes(path: str) -> list[str]:
    parts = PurePosixPath(path).parts
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]


@contextlib.contextmanager
def _readable(path: Path, kind: Kind) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read: {error.strerror}",
            code="artifact-unreadable",
            hint=f"check its permissions and its disk; if it is lost, {REMAKE[kind]}",
        ) from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text:.40} is out of range")
    return value


def _damaged(path: Path, kind: Kind, what: str) -> ArtifactError:
    return ArtifactError(f"{path} {what}", code="artifact-damaged", hint=REMAKE[kind])
