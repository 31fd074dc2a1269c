"""The student directory: contract, weights and tokenizer, no pickle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from distill_rt.core import codec
from distill_rt.core.artifacts import StudentBody
from distill_rt.core.directory import publish, write_file
from distill_rt.core.errors import ArtifactError
from distill_rt.core.manifest import decode_body, read_manifest, read_whole, verify_files, write_manifest
from distill_rt.core.spec import DECODER, TEXT_ENCODER, StudentSpec
from distill_rt.core.tokenizer import TOKENIZER_FILE, Tokenizer
from distill_rt.models.conditioned import ConditionedNetwork
from distill_rt.models.decoder import LatentDecoder
from distill_rt.models.networks import build_decoder, build_network, build_text_encoder
from distill_rt.models.text_conditioned import TextConditionedUNet
from distill_rt.models.text_encoder import ClipTextEncoder

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, kw_only=True, slots=True)
class Student:
    """A loaded student, in evaluation mode.

    Args:
        networks: `networks[i]` is what rows name by ``net_id = i``.
        text_encoder, decoder: None where the contract has none.
        tokenizer: file of a text condition.
        digest: names the content.
    """

    spec: StudentSpec
    networks: tuple[nn.Module, ...]
    text_encoder: ClipTextEncoder | None = None
    decoder: LatentDecoder | None = None
    tokenizer: Path | None = None
    digest: str
    path: Path

    def components(self) -> dict[str, nn.Module]:
        """The modules by the names of `StudentSpec.components`, in its order."""
        parts: dict[str, nn.Module] = {} if self.text_encoder is None else {TEXT_ENCODER: self.text_encoder}
        parts |= {f"network{i}": network for i, network in enumerate(self.networks)}
        return parts if self.decoder is None else parts | {DECODER: self.decoder}


def save_student(
    path: Path,
    spec: StudentSpec,
    networks: Sequence[nn.Module],
    *,
    text_encoder: nn.Module | None = None,
    decoder: nn.Module | None = None,
    tokenizer: Path | None = None,
    force: bool = False,
) -> str:
    """Write a student directory, whole or not at all; returns its digest.

    Args:
        networks: one for each of `spec.networks`.
        text_encoder, decoder: exactly those that the contract has.
        tokenizer: of a text condition: ``tokenizer.json`` of a fast tokenizer, or the directory that holds it.

    Raises:
        UsageError: `path` exists and `force` is false, or it is a directory of something else.
        ArtifactError: the tokenizer is missing, or is not that of the contract.
        ResourceError: the disk is full or not writable.
    """
    if len(networks) != len(spec.networks):
        raise ValueError(f"the contract names {len(spec.networks)} networks, got {len(networks)}")
    given = {TEXT_ENCODER: text_encoder, DECODER: decoder}
    wanted = {TEXT_ENCODER: spec.text_encoder, DECODER: spec.decoder}
    for name, module in given.items():
        if (module is None) != (wanted[name] is None):
            raise ValueError(f"the contract has {'no' if wanted[name] is None else 'a'} {name}, the student differs")
    vocabulary = _read_tokenizer(spec, tokenizer)
    with publish(path, force=force, ours="student.json") as directory:
        weights = tuple(f"network{i}.safetensors" for i in range(len(networks)))
        extra = {name: f"{name}.safetensors" for name, module in given.items() if module is not None}
        modules = [*networks, *(module for module in given.values() if module is not None)]
        for name, network in zip([*weights, *extra.values()], modules, strict=True):
            tensors = {key: value.detach().contiguous() for key, value in network.state_dict().items()}
            write_file(directory / name, save(tensors))  # safetensors' own writer hides a full disk in its own error
        if vocabulary is not None:
            write_file(directory / TOKENIZER_FILE, vocabulary)
        body = StudentBody(
            spec=spec,
            weights=weights,
            text_encoder=extra.get(TEXT_ENCODER),
            decoder=extra.get(DECODER),
            tokenizer=None if vocabulary is None else TOKENIZER_FILE,
        )
        return write_manifest(directory, "student", codec.to_json(body)).digest


def _read_tokenizer(spec: StudentSpec, tokenizer: Path | None) -> bytes | None:
    """The content of the tokenizer file, after its check against the contract; None for students without text."""
    if spec.condition.kind != "text":
        if tokenizer is not None:
            raise ValueError(f"a student with a {spec.condition.kind} condition has no tokenizer")
        return None
    file = None if tokenizer is None else tokenizer / TOKENIZER_FILE if tokenizer.is_dir() else tokenizer
    if file is None or not file.is_file():
        raise ArtifactError(
            f"{'no tokenizer was given' if file is None else f'{file} is missing'}: a student with prompts carries one",
            code="tokenizer-missing",
            hint="save a fast tokenizer: transformers.AutoTokenizer.from_pretrained(...).save_pretrained(DIRECTORY)",
        )
    Tokenizer(file, spec.condition)
    return file.read_bytes()


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
    _check_files(body, {entry.path for entry in manifest.files}, path)
    spec = body.spec
    networks = []
    for network_spec, name in zip(spec.networks, body.weights, strict=True):
        network = build_network(network_spec)
        _check_inputs(spec, network, path)
        networks.append(_filled(network, path / name))
    text_encoder = decoder = None
    if spec.text_encoder is not None and body.text_encoder is not None:
        text_encoder = build_text_encoder(spec.text_encoder)
        _refuse_misfit(text_encoder.misfit(spec.condition), "the text encoder", path)
        text_encoder = _filled(text_encoder, path / body.text_encoder)
    if spec.decoder is not None and body.decoder is not None:
        decoder = _filled(build_decoder(spec.decoder.network), path / body.decoder)
    tokenizer = None if body.tokenizer is None else path / body.tokenizer
    if tokenizer is not None:
        Tokenizer(tokenizer, spec.condition)
    return Student(
        spec=spec,
        networks=tuple(networks),
        text_encoder=text_encoder,
        decoder=decoder,
        tokenizer=tokenizer,
        digest=manifest.digest,
        path=path,
    )


def _check_files(body: StudentBody, listed: set[str], path: Path) -> None:
    """The manifest names exactly the files that its contract needs; only an edited one fails here."""
    spec = body.spec
    extra = (body.text_encoder, body.decoder, body.tokenizer)
    wanted = (spec.text_encoder is not None, spec.decoder is not None, spec.condition.kind == "text")
    named = {*body.weights, *(file for file in extra if file is not None)}
    problem = ""
    if len(body.weights) != len(spec.networks) or not named <= listed:
        problem = "does not list one weight file per network"
    elif tuple(file is not None for file in extra) != wanted:
        problem = "does not name the text encoder, decoder and tokenizer of its contract"
    if problem:
        raise ArtifactError(f"{path}/student.json {problem}", code="artifact-damaged", hint="train or import it again")


def _filled(network: M, file: Path) -> M:
    _load_weights(network, file)
    return network.eval().requires_grad_(False)


def _refuse_misfit(problem: str | None, what: str, path: Path) -> None:
    if problem is not None:
        raise ArtifactError(
            f"{path}: {what} does not fit the contract: {problem}",
            code="network-inputs",
            hint="train or import it again",
        )


def _check_inputs(spec: StudentSpec, network: ConditionedNetwork | TextConditionedUNet, path: Path) -> None:
    """A network that ignored an input of the contract would give images, just not those that were asked for."""
    wanted = tuple(tensor.name for tensor in spec.network_inputs()[2:])
    if isinstance(network, TextConditionedUNet):
        problem = None
        if network.condition_names != wanted:
            problem = f"it takes {_names(network.condition_names)}, the contract feeds it {_names(wanted)}"
        elif network.text_width != spec.condition.width:
            problem = (
                f"it reads embeddings of {network.text_width} elements, the contract's have {spec.condition.width}"
            )
        return _refuse_misfit(problem, "the network", path)
    top = max(spec.condition.num_classes - 1, spec.condition.null_label or 0)
    if network.condition_names != wanted or (network.label is not None and network.label.num_embeddings <= top):
        raise ArtifactError(
            f"{path}: the contract feeds the network {_names(wanted)} with labels up to {top}, "
            f"the network takes {_names(network.condition_names)}"
            + ("" if network.label is None else f" with labels up to {network.label.num_embeddings - 1}"),
            code="network-inputs",
            hint="train or import it again",
        )
    return None


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
