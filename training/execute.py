"""A run from its checked parts to a student directory: what all processes do alike, and what the main one writes."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping
from typing import Any

import torch

from distill_rt.core.directory import check_writable, resource_errors
from distill_rt.core.errors import UsageError
from distill_rt.core.spec import StudentSpec
from distill_rt.models import save_student
from distill_rt.training.config import TrainConfig, check_method, check_seed
from distill_rt.training.device import choose_device
from distill_rt.training.draws import Draws
from distill_rt.training.identity import identity_of, with_provenance
from distill_rt.training.job import Job, config_of, free_places
from distill_rt.training.journal import NUM_SAMPLES, Journal
from distill_rt.training.methods.base import Phase, Searches
from distill_rt.training.options import RunOptions
from distill_rt.training.parallel import Processes, joined_processes
from distill_rt.training.smaller import network_cost
from distill_rt.training.text import Prompts
from distill_rt.training.trainer import Trainer


def execute(job: Job) -> dict[str, Any]:
    """The run of this process: all of them refuse, draw and compute the same; the main one alone writes."""
    device = choose_device(job.options.get("device", "auto"))
    with joined_processes(device) as processes:
        return _run_as(processes, device, job)


def _run_as(processes: Processes, device: torch.device, job: Job) -> dict[str, Any]:
    out, sides, options = job.out, job.sides, job.options
    force, resume = options.get("force", False), options.get("resume", False)
    checkpoint = free_places(job, force=force, resume=resume)
    started, seed = time.monotonic(), options.get("seed", 0)
    check_seed(seed)
    if options.get("latents") is not None and sides.latents is None:
        raise UsageError(
            "--latents is for networks that work on latents", code="latents-not-needed", hint="leave --latents out"
        )
    sides.to(device)
    dataset = sides.dataset(job.source, job.teacher.spec.sample_shape, job.latents_directory)
    method = job.method
    if isinstance(method, Searches):  # the contract follows from what it finds
        job.teacher.to(device)
        method = method.searched(job.teacher, dataset, seed, options.get("progress") if processes.is_main else None)
    contract = method.contract(job.teacher.spec)
    identity = identity_of(
        method, contract, job.source, sides, teacher_digest=job.teacher_digest, device=device, options=options
    )
    config = config_of(job, method, identity, checkpoint, device)
    configuration = _configuration(config, job) | {"processes": processes.count, "device": device.type}
    _check_samples(options)
    journal = _open_journal(job, contract, configuration)
    trainer = Trainer(config, dataset, job.teacher, processes)
    if options.get("dry_run", False):
        return configuration if processes.is_main else {}
    check_writable(out)
    sides.prepare(processes, options.get("progress"))
    processes.wait()  # everybody has looked at what stands there
    if processes.is_main and not (resume and checkpoint.exists()):
        _clear(config)
    processes.wait()
    if not processes.is_main:
        trainer.run(resume=resume)
        return {}
    network, losses = trainer.run(resume=resume, progress=options.get("progress"), observer=journal)
    spec = with_provenance(contract, identity, losses)
    digest = save_student(out, spec, [network], **sides.parts(), force=force)
    shutil.rmtree(checkpoint, ignore_errors=True)
    if options.get("latents") is None:
        shutil.rmtree(job.latents_directory, ignore_errors=True)
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
        "notes": [*job.source.notes, *([] if job.teacher_digest is not None else sides.notes(job.source))],
    }


def _clear(config: TrainConfig) -> None:
    """Remove what an earlier run left, now that nothing is left to refuse."""
    assert config.checkpoint is not None
    if config.checkpoint.exists():
        with resource_errors(config.checkpoint):
            shutil.rmtree(config.checkpoint)
    if config.kept is not None:
        with resource_errors(config.kept.directory):
            shutil.rmtree(config.kept.directory, ignore_errors=True)


def _configuration(config: TrainConfig, job: Job) -> dict[str, Any]:
    """What a dry run hands back: everything that decides the run, and what it would write."""
    phases = check_method(config.method, job.teacher.spec)
    return {
        **config.identity,
        "phases": [_described(phase) for phase in phases],
        "training_steps": sum(phase.iterations for phase in phases),
        "path": str(job.out),
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


def _open_journal(job: Job, spec: StudentSpec, configuration: Mapping[str, Any]) -> Journal | None:
    options, sides = job.options, job.sides
    wanted = options.get("journal")
    if wanted is None:
        return None
    may_replace = options.get("resume", False) or options.get("force", False)
    decode = None if sides.latents is None else sides.latents.decode
    prompts = None
    if sides.text is not None and wanted.sample_every:  # those of the first images that are trained on
        captions = job.source.dataset.batch(Draws(options.get("seed", 0), 0, NUM_SAMPLES)).captions_B
        assert captions is not None
        prompts = Prompts(texts=captions, side=sides.text)
    return Journal(wanted, spec, configuration, may_replace=may_replace, decode=decode, prompts=prompts)
