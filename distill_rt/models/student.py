"""The student directory: contract and weights, no pickle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from distill_rt.core import codec
from distill_rt.core.artifacts import StudentBody
from distill_rt.core.directory import publish, write_file
from distill_rt.core.errors import ArtifactError
from distill_rt.core.manifest import decode_body, read_manifest, read_whole, verify_files, write_manifest
from distill_rt.core.spec import StudentSpec
from distill_rt.models.conditioned import ConditionedNetwork
from distill_rt.models.networks import build_network


@dataclass(frozen=True, kw_only=True, slots=True)
class Student:
    """A loaded student: `networks[i]` is what rows name by ``net_id = i``, in evaluation mode; `digest` names the content."""

    spec: StudentSpec
    networks: tuple[nn.Module, ...]
    digest: str
    path: Path


def save_student(path: Path, spec: StudentSpec, networks: Sequence[nn.Module], *, force: bool = False) -> str:
    """Write a student directory, whole or not at all; returns its digest.

    Raises:
        UsageError: `path` exists and `force` is false, or it is a directory of something else.
        ResourceError: the disk is full or not writable.
    """
    if len(networks) != len(spec.networks):
        raise ValueError(f"the contract names {len(spec.networks)} networks, got {len(networks)}")
    with publish(path, force=force, ours="student.json") as directory:
        weights = tuple(f"network{i}.safetensors" for i in range(len(networks)))
        for name, network in zip(weights, networks, strict=True):
            tensors = {key: value.detach().contiguous() for key, value in network.state_dict().items()}
            write_file(directory / name, save(tensors))  # safetensors' own writer hides a full disk in its own error
        body = StudentBody(spec=spec, weights=weights)
        return write_manifest(directory, "student", codec.to_json(body)).digest


def load_student(path: str | Path) -> Student:
    """Read and verify a student directory and build its networks.

    Raises:
        ArtifactError: missing, damaged, foreign, of another version, or weights or inputs that do not fit the network.
    """
    directory = Path(path)
    return read_whole(directory, "student", lambda: _load(directory))


def _load(path: Path) -> Student:
    manifest = read_manifest(path, "student")
    verify_files(path, manifest)
    body = decode_body(manifest, StudentBody, path)
    listed = {entry.path for entry in manifest.files}
    if len(body.weights) != len(body.spec.networks) or not set(body.weights) <= listed:
        raise ArtifactError(
            f"{path}/student.json does not list one weight file per network",
            code="artifact-damaged",
            hint="train or import it again",
        )
    networks = []
    for network_spec, name in zip(body.spec.networks, body.weights, strict=True):
        network = build_network(network_spec)
        _check_inputs(body.spec, network, path)
        _load_weights(network, path / name)
        networks.append(network.eval().requires_grad_(False))
    return Student(spec=body.spec, networks=tuple(networks), digest=manifest.digest, path=path)


def _check_inputs(spec: StudentSpec, network: ConditionedNetwork, path: Path) -> None:
    """A network that ignored an input of the contract would give images, just not those that were asked for."""
    wanted = tuple(tensor.name for tensor in spec.network_inputs()[2:])
    top = max(spec.condition.num_classes - 1, spec.condition.null_label or 0)
    if network.condition_names != wanted or (network.label is not None and network.label.num_embeddings <= top):
        raise ArtifactError(
            f"{path}: the contract feeds the network {_names(wanted)} with labels up to {top}, "
            f"the network takes {_names(network.condition_names)}"
            + ("" if network.label is None else f" with labels up to {network.label.num_embeddings - 1}"),
            code="network-inputs",
            hint="train or import it again",
        )


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) or "no condition"


def _load_weights(network: nn.Module, file: Path) -> None:
    try:
        state: dict[str, Tensor] = load_file(file)
        missing, unexpected = network.load_state_dict(state, strict=False)
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise _misfit(file, reason) from error
    if missing or unexpected:
        raise _misfit(file, f"it lacks {missing[0]}" if missing else f"it has the unknown {unexpected[0]}")


def _misfit(file: Path, reason: str) -> ArtifactError:
    return ArtifactError(
        f"{file} does not fit the network: {reason}", code="weights-mismatch", hint="train or import it again"
    )
