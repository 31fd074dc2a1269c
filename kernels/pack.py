"""A kernel pack: compiled kernels for several GPUs in one directory, readable without Triton, torch or a GPU.

``kernels.json`` lists every variant (`distill_rt.kernels.triton.variants`) with its parameters, and per target an image:
cubins named after compute capabilities (``sm_90``), and PTX (``ptx_80``) that the driver compiles for any capability
from there on. `distill_rt.kernels.aot` writes packs, `distill_rt.kernels.loaded_pack` launches them.

An image is machine code that the driver runs. `read_pack` checks every file against the manifest, which finds damage, not
malice: load packs only from engines that you trust.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distill_rt.core import codec
from distill_rt.core.errors import ArtifactError, TargetError
from distill_rt.core.listing import FileEntry

MANIFEST = "kernels.json"
FORMAT = "distill-rt/kernels"
FORMAT_VERSION = 1
_REMAKE = "compile the engine again"


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """One parameter of an entry: its size, and what a launch passes for it.

    A pointer or an integer comes from the caller. Hidden ones are addresses of scratch memory that Triton appends; our
    kernels need none, so a launch passes 0.
    """

    name: str
    kind: Literal["pointer", "integer", "hidden"]
    size_bytes: int

    def __post_init__(self) -> None:
        if self.size_bytes not in (4, 8) or (self.kind != "integer" and self.size_bytes != 8):
            raise ValueError(f"parameter {self.name}: a {self.kind} has no {self.size_bytes} bytes")


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """One compiled variant for one target.

    Args:
        arch: what it was assembled for, such as "sm_90a" ("a": runs on exactly that capability).
        entry: symbol to look up.
        shared_bytes: dynamic shared memory of a launch.
        registers, stack_bytes: per thread; None for PTX, where the driver decides. Stack is spilled registers.
    """

    file: FileEntry
    arch: str
    entry: str
    shared_bytes: int
    registers: int | None
    stack_bytes: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedKernel:
    """One variant: what it is, how it is launched, and its image for every target.

    Args:
        block: elements per program; grid x is ceil(N / block), or the number of images if `per_image`.
        features: compile-time switches.
        aligned: see `distill_rt.kernels.triton.variants`.
    """

    kernel: str
    state: str
    network: str
    features: dict[str, bool]
    aligned: bool
    block: int
    num_warps: int
    per_image: bool
    parameters: tuple[Parameter, ...]
    images: dict[str, Image]

    def grid(self, num_images: int, num: int) -> tuple[int, int, int]:
        """Programs for `num_images` images of `num` elements."""
        return (num_images, 1, 1) if self.per_image else (-(-num // self.block), num_images, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class PackBody:
    """``kernels.json`` beside format and version.

    Args:
        source_sha256: of the kernels' sources (`distill_rt.kernels.aot.source_digest`).
        targets: what every kernel has an image for.
        kernels: by the variant's name.
    """

    triton_version: str
    source_sha256: str
    targets: tuple[str, ...]
    kernels: dict[str, PackedKernel]

    def __post_init__(self) -> None:
        for name, kernel in self.kernels.items():
            if set(kernel.images) != set(self.targets):
                raise ValueError(
                    f"kernel {name} has images for {sorted(kernel.images)}, not for {sorted(self.targets)}"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A target of the pack that runs on a device. `note` says so if it is not a cubin for exactly that device."""

    target: str
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelPack:
    """A verified pack: its manifest, and the images of all targets in memory by file."""

    directory: Path
    body: PackBody
    images: Mapping[str, bytes]

    def choices(self, capability: int) -> tuple[Choice, ...]:
        """Targets that run on a device of compute capability `capability` (90 for 9.0), best first.

        A cubin for that very capability; below 9.0 a cubin for an earlier one of the same major version (Triton's cubins from
        9.0 on run on exactly one); PTX of an earlier capability, which the driver compiles when it is loaded.

        Raises:
            TargetError: none does.
        """
        have = self.body.targets
        cubins = sorted((int(name[3:]) for name in have if name.startswith("sm_")), reverse=True)
        texts = sorted((int(name[4:]) for name in have if name.startswith("ptx_")), reverse=True)
        shown = f"{capability // 10}.{capability % 10}"
        found = [Choice(target=f"sm_{capability}")] if capability in cubins else []
        if capability < 90:
            found += [
                Choice(target=f"sm_{c}", note=f"kernels compiled for {c // 10}.{c % 10} run on this {shown} device")
                for c in cubins
                if c // 10 == capability // 10 and c < capability
            ]
        found += [
            Choice(
                target=f"ptx_{c}",
                note=f"the kernel pack has no kernels for compute capability {shown}: the driver compiles its PTX",
            )
            for c in texts
            if c <= capability
        ]
        if not found:
            raise TargetError(
                f"the kernel pack in {self.directory} has nothing for compute capability {shown}",
                code="kernel-pack-capability",
                hint=f"compile the engine again with --target for that device (the pack has {', '.join(have)})",
                details={"capability": capability, "targets": list(have)},
            )
        return tuple(found)

    def image(self, name: str, target: str) -> bytes:
        return self.images[self.body.kernels[name].images[target].file.path]

    def find(
        self, kernel: str, *, state: str, network: str, features: Mapping[str, bool] | None = None, aligned: bool = True
    ) -> str:
        """Name of the variant for these dtypes and features; an unaligned one serves where no aligned one exists.

        Raises:
            TargetError: the pack was built without it.
        """
        wanted = dict(features or {})
        for name, packed in self.body.kernels.items():
            same = (packed.kernel, packed.state, packed.network, packed.features) == (kernel, state, network, wanted)
            if same and (packed.aligned == aligned or (aligned and not self._has_aligned(packed))):
                return name
        raise TargetError(
            f"the kernel pack in {self.directory} has no {kernel} for {state} states, {network} networks, {wanted}",
            code="kernel-pack-variant",
            hint=_REMAKE,
        )

    def _has_aligned(self, packed: PackedKernel) -> bool:
        key = (packed.kernel, packed.state, packed.network, packed.features)
        return any(p.aligned and (p.kernel, p.state, p.network, p.features) == key for p in self.body.kernels.values())


def write_manifest(directory: Path, body: PackBody) -> None:
    """Write ``kernels.json``, after every image."""
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, "body": codec.to_json(body)}
    (directory / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")


def read_pack(directory: str | Path, targets: Iterable[str] | None = None) -> KernelPack:
    """Read a pack and verify its images.

    Args:
        targets: read and verify the images of these alone; None: of all.

    Raises:
        ArtifactError: missing, damaged, foreign or from another version.
    """
    directory = Path(directory)
    path = directory / MANIFEST
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read: {error.strerror}", code="kernel-pack-missing", hint=_REMAKE
        ) from error
    except ValueError as error:
        raise _damaged(directory, f"{MANIFEST} is not valid JSON: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} is not a kernel pack of version {FORMAT_VERSION}", code="kernel-pack-version", hint=_REMAKE
        )
    try:
        body = codec.from_json(PackBody, data.get("body"), "body")
    except ValueError as error:
        raise _damaged(directory, f"{MANIFEST}: {error}") from error
    wanted = set(body.targets if targets is None else targets)
    entries = {
        image.file.path: image.file
        for kernel in body.kernels.values()
        for target, image in kernel.images.items()
        if target in wanted
    }
    return KernelPack(
        directory=directory, body=body, images={name: _read(directory, entry) for name, entry in entries.items()}
    )


def _read(directory: Path, entry: FileEntry) -> bytes:
    path = directory / entry.path
    if path.is_symlink() or not path.is_file():
        raise _damaged(directory, f"{entry.path} is {'a link' if path.is_symlink() else 'missing'}")
    data = path.read_bytes()
    if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise _damaged(directory, f"{entry.path} is not the file that was written (size or sha256 differ)")
    return data


def _damaged(directory: Path, what: str) -> ArtifactError:
    return ArtifactError(f"the kernel pack in {directory}: {what}", code="kernel-pack-damaged", hint=_REMAKE)
