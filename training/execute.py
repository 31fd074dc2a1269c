"""A run from its checked parts to a student directory: what all processes do alike, and what the main one writes."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from distill_rt.core.directory import check_writable, refuse_existing, resource_errors
from distill_rt.core.errors import UsageError
from distill_rt.core.spec import StudentSpec
from distill_rt.models import save_student
from distill_rt.training.config import TrainConfig, check_method, check_seed
from distill_rt.training.data.source import Source
from distill_rt.training.device import choose_device
from distill_rt.training.draws import Draws
from distill_rt.training.identity import identity_of, with_provenance
from distill_rt.training.journal import NUM_SAMPLES, Journal
from distill_rt.training.kept import MARK, KeptWeights, run_digest
from distill_rt.training.methods.base import Method, Phase, Searches
from distill_rt.training.options import RunOptions
from distill_rt.training.parallel import Processes, joined_processes
from distill_rt.training.predictor import Teacher
from distill_rt.training.sides import Sides
from distill_rt.training.smaller import network_cost
from distill_rt.training.text import Prompts
from distill_rt.training.trainer import Trainer

CHECKPOINT_EVERY = 250


def execute(
    method: Method,
    teacher: Teacher,
    source: Source,
    out: Path,
    *,
    sides: Sides,
    teacher_digest: str | None,
    options: RunOptions,
) -> dict[str, Any]:
    """The run of this process: all of them refuse, draw and compute the same; the main one alone writes."""
    device = choose_device(options.get("device", "auto"))
    with joined_processes(device) as processes:
        return _run_as(
            processes, device, method, teacher, source, out, sides=sides, teacher_digest=teacher_digest, options=options
        )


def _run_as(
    processes: Processes,
    device: torch.device,
    method: Method,
    teacher: Teacher,
    source: Source,
    out: Path,
    *,
    sides: Sides,
    teacher_digest: str | None,
    options: RunOptions,
) -> dict[str, Any]:
    force, resume = options.get("force", False), options.get("resume", False)
    checkpoint = _free_places(out, force=force, resume=resume)
    started, seed = time.monotonic(), options.get("seed", 0)
    check_seed(seed)
    latents = options.get("latents")
    if latents is not None and sides.latents is None:
        raise UsageError(
            "--latents is for networks that work on latents", code="latents-not-needed", hint="leave --latents out"
        )
    latents_directory = out.with_name(f"{out.name}.latents") if latents is None else latents
    sides.to(device)
    dataset = sides.dataset(source, teacher.spec.sample_shape, latents_directory)
    if isinstance(method, Searches):  # the contract follows from what it finds
        teacher.to(device)
        method = method.searched(teacher, dataset, seed, options.get("progress") if processes.is_main else None)
    contract = method.contract(teacher.spec)
    identity = identity_of(
        method, contract, source, sides, teacher_digest=teacher_digest, device=device, options=options
    )
    keep_every, kept = options.get("keep_every", 0), None
    if keep_every:
        kept = KeptWeights(directory=out.with_name(f"{out.name}.weights"), run=run_digest(identity), every=keep_every)
        refuse_existing(kept.directory, force=True, ours=MARK)
    config = TrainConfig(
        method=method,
        seed=seed,
        checkpoint=checkpoint,
        checkpoint_every=options.get("checkpoint_every", CHECKPOINT_EVERY),
        identity=identity,
        accumulate=options.get("accumulate", 1),
        precision=options.get("precision", "fp32"),
        kept=kept,
        compile=options.get("compile", False),
        checkpoint_activations=options.get("checkpoint_activations", False),
        ema_power=options.get("ema_power"),
        parallel=options.get("parallel", "ddp"),
        device=device,
    )
    configuration = _configuration(config, teacher, out) | {"processes": processes.count, "device": device.type}
    _check_samples(options)
    journal = _open_journal(options, contract, configuration, sides, source)
    if options.get("dry_run", False):
        return configuration if processes.is_main else {}
    check_writable(out)
    sides.prepare(processes, options.get("progress"))
    trainer = Trainer(config, dataset, teacher, processes)
    processes.wait()  # everybody has looked at what stands there
    if processes.is_main and checkpoint.exists() and not resume:  # with force, and now that nothing is left to refuse
        with resource_errors(checkpoint):
            shutil.rmtree(checkpoint)
    if processes.is_main and kept is not None and not resume:  # of a run before
        with resource_errors(kept.directory):
            shutil.rmtree(kept.directory, ignore_errors=True)
    processes.wait()
    if not processes.is_main:
        trainer.run(resume=resume)
        return {}
    network, losses = trainer.run(resume=resume, progress=options.get("progress"), observer=journal)
    spec = with_provenance(contract, identity, losses)
    digest = save_student(out, spec, [network], **sides.parts(), force=force)
    shutil.rmtree(checkpoint, ignore_errors=True)
    if latents is None:
        shutil.rmtree(latents_directory, ignore_errors=True)
    cost = network_cost(spec, network)
    return {
        "path": str(out),
        "digest": digest,
        "method": method.name,
        "training_steps": trainer.num_steps,
        "final_loss": losses[-1][1] if losses else None,
        "seconds": round(time.monotonic() - started, 1),
        "steps": list(spec.steps),
        "num_parameters": cost.parameters,
        "flops_per_evaluation": cost.flops,
        "notes": [*source.notes, *([] if teacher_digest is not None else sides.notes(source))],
    }


def _free_places(out: Path, *, force: bool, resume: bool) -> Path:
    """Refuse what would be overwritten; the directory of the checkpoint."""
    refuse_existing(out, force=force, ours="student.json")
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    refuse_existing(checkpoint, force=True, ours="checkpoint.json")
    if checkpoint.exists() and not resume and not force:
        raise UsageError(
            f"there is an unfinished run at {checkpoint}",
            code="checkpoint-exists",
            hint="go on with --resume, or start anew with --force",
        )
    return checkpoint


def _configuration(config: TrainConfig, teacher: Teacher, out: Path) -> dict[str, Any]:
    """What a dry run hands back: everything that decides the run, and what it would write."""
    phases = check_method(config.method, teacher.spec)
    return {
        **config.identity,
        "phases": [_described(phase) for phase in phases],
        "training_steps": sum(phase.iterations for phase in phases),
        "path": str(out),
        "checkpoint": str(config.checkpoint),
        "checkpoint_every": config.checkpoint_every,
        "max_gradient_norm": config.max_gradient_norm,
    }


def _described(phase: Phase) -> dict[str, Any]:
    """Rates are named where a part has its own."""
    return {name: value for name, value in dataclasses.asdict(phase).items() if name != "rates" or value}


def _check_samples(options: RunOptions) -> None:
    journal = options.get("journal")
    if journal is not None and journal.sample_every and options.get("parallel") == "fsdp":
        raise UsageError(
            "no process of a sharded run has the whole student, so there are no sheets of samples",
            code="samples-of-shards",
            hint="leave --sample-every out, or use --parallel ddp",
        )


def _open_journal(
    options: RunOptions, spec: StudentSpec, configuration: Mapping[str, Any], sides: Sides, source: Source
) -> Journal | None:
    wanted = options.get("journal")
    if wanted is None:
        return None
    may_replace = options.get("resume", False) or options.get("force", False)
    decode = None if sides.latents is None else sides.latents.decode
    prompts = None
    if sides.text is not None and wanted.sample_every:  # those of the first images that are trained on
        captions = source.dataset.batch(Draws(options.get("seed", 0), 0, NUM_SAMPLES)).captions_B
        assert captions is not None
        prompts = Prompts(texts=captions, side=sides.text)
    return Journal(wanted, spec, configuration, may_replace=may_replace, decode=decode, prompts=prompts)
