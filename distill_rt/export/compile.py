"""Bundle + target -> engine: cached? verify and copy : build in a temporary directory -> gate -> rename. No torch."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from distill_rt.backends import processor
from distill_rt.backends.base import CompileOptions
from distill_rt.backends.cache import cached_engine, is_engine
from distill_rt.backends.registry import AUTO, resolve_target
from distill_rt.core.artifacts import Precision
from distill_rt.core.directory import publish, refuse_existing
from distill_rt.core.errors import ArtifactError, TargetError, UsageError
from distill_rt.export.bundle import open_bundle
from distill_rt.export.engine_builder import EngineBuilder
from distill_rt.export.progress import Progress, silent

MAX_BATCH = 1024


def compile_bundle(
    bundle: str | Path,
    target: str = AUTO,
    out: str | Path = "",
    *,
    precision: Precision | None = None,
    batches: Sequence[int] = (1,),
    num_threads: int | None = None,
    refittable: bool = False,
    force: bool = False,
    use_cache: bool = True,
    progress: Progress = silent,
) -> Path:
    """Compile a bundle for one target, prove that the engine still is the student, and publish it.

    Args:
        bundle: directory that `export_student` wrote.
        target: such as ``openvino:cpu``; ``auto`` takes the best of this machine.
        out: the engine; must not exist unless `force`. Empty: the bundle's name with the suffix ``.engine``.
        precision: of the arithmetic inside of the networks; None takes the backend's default (fp32 on processors).
        batches: numbers of images to compile for. A backend with `bit_exact_batches` adds 1, and leaves out batches whose
            bits differ from it on this machine.
        num_threads: of one call; None takes every physical core that this process may use.
        refittable: let `refit_engine` put other weights into the engine (TensorRT). It may cost speed.
        force: replace what stands at `out`, and build even if the cache holds this engine.
        use_cache: False builds without looking into the cache or adding to it.
        progress: told the stages.

    Returns:
        Path of the engine.

    Raises:
        UsageError: `out` exists, no such target, or batches out of range.
        ArtifactError: the bundle is missing, damaged or foreign.
        TargetError: this machine cannot build for that target or precision.
        GateError: the engine is too far from the student; nothing was published.
        ResourceError: the disk or the cache is full or not writable.
    """
    out = Path(out) if str(out) else Path(bundle).with_suffix(".engine")
    refuse_existing(out, force=force, ours="engine.json")
    check_batches(batches)
    progress("verifying the bundle")
    opened = open_bundle(bundle)
    resolved, backend = resolve_target(target)
    options = CompileOptions(
        precision=backend.precisions[0] if precision is None else precision,
        num_threads=processor.available_cores() if num_threads is None else num_threads,
        refittable=refittable,
    )
    if refittable and not backend.can_refit:
        raise TargetError(
            f"engines for {resolved} take no other weights",
            code="refit-unsupported",
            hint="leave --refittable out: compiling again takes seconds here",
        )
    backend.check(options)
    reason = backend.cannot_build()
    if reason is not None:
        raise TargetError(
            f"{resolved} cannot be compiled on this machine: {reason}",
            code="build-needs-target",
            hint="compile it on the machine that shall run it",
        )
    wanted = set(batches) | ({1} if backend.bit_exact_batches else set())
    builder = EngineBuilder(opened, resolved, backend, options, tuple(sorted(wanted)), progress)
    if not use_cache:
        with publish(out, force=force, ours="engine.json") as directory:
            builder.build(directory)
        return out
    with cached_engine(builder.key, builder.build, rebuild=force, notify=progress) as cached:
        try:
            with publish(out, force=force, ours="engine.json") as directory:
                _copy(cached, directory)
        except UsageError:
            # It did not stand there when we began: another process has compiled the same engine to the same place.
            if not _finished_meanwhile(out, builder.key):
                raise
    return out


def _copy(source: Path, directory: Path) -> None:
    """Copy every file; not `shutil.copytree`, which hides a full disk in an error without a number."""
    for path in sorted(source.rglob("*")):
        target = directory / path.relative_to(source)
        if path.is_dir():
            target.mkdir()
        else:
            shutil.copyfile(path, target)


def check_batches(batches: Sequence[int]) -> None:
    """Refuse batches out of range, and what is no list of them."""
    if not isinstance(batches, Sequence):
        raise UsageError(
            f"batches must be a list, got {batches!r:.40}", code="batch-type", hint="one batch is batches=(4,)"
        )
    for batch in batches:
        if isinstance(batch, bool) or not isinstance(batch, int) or not 1 <= batch <= MAX_BATCH:
            raise UsageError(
                f"a batch must be an integer of 1..{MAX_BATCH}, got {batch!r}",
                code="batch-out-of-range",
                hint="give numbers of images, for example 1,4,16",
            )
    if not batches:
        raise UsageError("no batch was given", code="batch-missing", hint="give numbers of images, for example 1,4,16")


def _finished_meanwhile(out: Path, key: str) -> bool:
    try:
        return is_engine(out, key)
    except ArtifactError:
        return False
