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
    problem = ""
    if set(body.components) != {f"network{i}" for i in range(len(body.spec.networks))}:
        problem = f"components must be the {len(body.spec.networks)} networks of the contract"
    elif any(
        component.inputs != body.spec.network_inputs() or component.outputs != body.spec.network_outputs()
        for component in body.components.values()
    ):
        problem = "inputs and outputs of the components must be those of the contract"
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
