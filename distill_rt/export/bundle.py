"""Read a bundle directory: manifest, files, and whether they fit each other. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distill_rt.core.artifacts import BundleBody
from distill_rt.core.errors import ArtifactError
from distill_rt.core.manifest import decode_body, read_manifest, read_whole, verify_files


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A verified bundle directory; `digest` names its content."""

    directory: Path
    body: BundleBody
    digest: str


def open_bundle(directory: str | Path) -> Bundle:
    """Read and verify a bundle.

    Raises:
        ArtifactError: missing, damaged, foreign or from another version.
    """
    path = Path(directory)
    return read_whole(path, "bundle", lambda: _open(path))


def _open(directory: Path) -> Bundle:
    manifest = read_manifest(directory, "bundle")
    body = decode_body(manifest, BundleBody, directory)
    listed = {entry.path for entry in manifest.files}
    named = {component.file for component in body.components.values()} | {body.golden}
    if body.tokenizer is not None:
        named.add(body.tokenizer)
    problem = ""
    parts = body.parts
    if set(body.components) != set(parts):
        problem = f"components must be {', '.join(parts)}, as the contract says for mode {body.mode}"
    elif any((component.inputs, component.outputs) != parts[name] for name, component in body.components.items()):
        problem = "inputs and outputs of the components must be those of the contract"
    elif (body.tokenizer is None) != (body.spec.condition.kind != "text"):
        problem = f"a {body.spec.condition.kind} condition cannot have the tokenizer {body.tokenizer}"
    elif not named <= listed:
        problem = f"{', '.join(sorted(named - listed))} is not among the listed files"
    if problem:
        raise ArtifactError(
            f"{directory}/bundle.json is inconsistent: {problem}",
            code="artifact-damaged",
            hint="export it again: distill-rt export STUDENT --out BUNDLE --force",
        )
    verify_files(directory, manifest)
    return Bundle(directory=directory, body=body, digest=manifest.digest)
