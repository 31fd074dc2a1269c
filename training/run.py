"""The two walks of training: a recipe to a teacher directory, a teacher to a student directory."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import torch
from torch import nn

from distill_rt.core import codec
from distill_rt.core.directory import check_writable, refuse_existing, resource_errors
from distill_rt.core.errors import ArtifactError, UsageError
from distill_rt.core.spec import StudentSpec
from distill_rt.models import Student, load_student, save_student
from distill_rt.models.autoencoder import load_autoencoder
from distill_rt.training.config import TrainConfig, check_method, check_seed
from distill_rt.training.data.source import Source, check_classes, open_source, recorded_source
from distill_rt.training.device import DeviceChoice, choose_device
from distill_rt.training.draws import Draws
from distill_rt.training.journal import NUM_SAMPLES, Journal, JournalOptions
from distill_rt.training.kept import MARK, KeptWeights, run_digest
from distill_rt.training.latents import LatentSide
from distill_rt.training.methods import METHODS
from distill_rt.training.methods.base import Method, Searches
from distill_rt.training.parallel import Parallel, Processes, joined_processes
from distill_rt.training.predictor import Teacher
from distill_rt.training.recipes import RECIPES
from distill_rt.training.settings import apply_settings
from distill_rt.training.sides import Sides
from distill_rt.training.smaller import network_cost
from distill_rt.training.text import Prompts, fresh_text
from distill_rt.training.trainer import Progress, Trainer

CHECKPOINT_EVERY = 250
MAX_STEPS = 1024
"""More than any teacher has: a larger number of steps is a typing error, and its table would fill the memory."""


class RunOptions(TypedDict, total=False):
    """What `train` and `distill` have in common; every key may be left out."""

    seed: int
    """Of initial weights, data order and training noise, 0 to 2**64 - 1 (0)."""
    resume: bool
    """Go on from the checkpoint if there is one."""
    force: bool
    """Replace the student that stands at `out`, and start anew unless `resume`."""
    checkpoint_every: int
    """Training steps between two checkpoints."""
    keep_every: int
    """Training steps of the last phase between two weights that are kept in ``<out>.weights`` for `combine`, 0 for none (0)."""
    accumulate: int
    """Parts that each process takes its share of a batch in (1): less memory, more time."""
    precision: Literal["fp32", "bf16"]
    """Of the networks' evaluations; weights stay float32 (``fp32``)."""
    compile: bool
    """Run the networks through torch.compile (False)."""
    checkpoint_activations: bool
    """Compute the inside of every block again in the backward pass (False): less memory, more time."""
    ema_power: float | None
    """gamma of a power-function average, instead of the method's own average (None)."""
    parallel: Parallel
    """Of several processes (``ddp``): all weights in each, ``fsdp`` a part of them in each; ``none`` is for one."""
    device: DeviceChoice
    """Where to compute; ``auto``, the default, is a GPU where torch sees one."""
    dry_run: bool
    """Check everything, hand back the frozen configuration, write nothing."""
    autoencoder: Path | None
    """Of a teacher that works on latents: the directory of the diffusers autoencoder that makes them of images."""
    latents: Path | None
    """Where the latents of images of one's own are kept for later runs (beside `out`, as long as the run lasts)."""
    journal: JournalOptions | None
    """Where to leave figures and samples (`distill_rt.training.journal`)."""
    progress: Progress | None
    """Called after every training step."""


def train(
    recipe: str,
    out: Path,
    *,
    data: str | None = None,
    settings: Mapping[str, str] | None = None,
    **options: Unpack[RunOptions],
) -> dict[str, Any]:
    """Train a teacher by a recipe and write it as a student directory.

    Args:
        recipe: key of `RECIPES`.
        out: the directory to write; the checkpoint lives beside it in ``<out>.checkpoint`` until training ends.
        data: what to train on instead of the recipe's data set (`open_source`); the contract gets its number of classes.
        settings: fields of the recipe's method as text.
        options: see `RunOptions`; with an autoencoder the recipe's network learns its latents (`Recipe.for_latents`).

    Returns:
        A JSON object: path, digest, method, training_steps, final_loss (null where nothing is trained), seconds, steps,
        num_parameters, flops_per_evaluation (of one image), notes (on the data); of a dry run the configuration. Of
        several processes (torchrun), those that are not the first hand back an empty one.

    Raises:
        UsageError: unknown recipe, setting or data, a setting out of range, `out` taken, or an unfinished run beside it.
        ArtifactError: the checkpoint or the data is damaged, or the checkpoint belongs to another configuration.
        ResourceError: training diverges (nothing is left), or the disk is full or not writable.
        KeyboardInterrupt: interrupted; the checkpoint holds the last complete step.
    """
    if recipe not in RECIPES:
        raise UsageError(
            f"there is no recipe {recipe!r}", code="recipe-unknown", hint=f"recipes: {', '.join(sorted(RECIPES))}"
        )
    chosen, latents = RECIPES[recipe](), None
    method = apply_settings(chosen.method, settings or {})
    if (path := options.get("autoencoder")) is not None:
        autoencoder = load_autoencoder(path)
        chosen, latents = chosen.for_latents(autoencoder), LatentSide(autoencoder, autoencoder.decoder)
    source = open_source(chosen.dataset if data is None else data, chosen.spec)
    # A teacher is trained from data: there is a contract, but no network to learn from.
    spec = chosen.for_classes(source.dataset.num_classes).spec
    with fresh_text(spec, chosen.words, seed=options.get("seed", 0)) as text:
        sides = Sides(text=text, latents=latents)
        untaught = Teacher(spec, nn.Identity(), sides.null_text_LD)
        return _run(method, untaught, source, out, sides=sides, teacher_digest=None, options=options)


def distill(
    method: str,
    teacher: Path,
    out: Path,
    *,
    steps: int | None = None,
    data: str | None = None,
    settings: Mapping[str, str] | None = None,
    **options: Unpack[RunOptions],
) -> dict[str, Any]:
    """Distil a teacher directory into a student of `steps` steps; other arguments, result and errors as in `train`.

    Args:
        steps: None is the method's own default (4, or the plans of a teacher that only becomes smaller).
        data: None is the data set that the teacher was trained on.

    Raises:
        UsageError: unknown method or setting, a teacher that the method cannot use, or data that do not fit it.
        ArtifactError: the teacher is damaged, or its data set is not known.
    """
    if method not in METHODS:
        raise UsageError(
            f"there is no method {method!r}", code="method-unknown", hint=f"methods: {', '.join(sorted(METHODS))}"
        )
    if steps is not None and not 1 <= steps <= MAX_STEPS:
        raise UsageError(f"steps must be 1 to {MAX_STEPS}, got {steps}", code="steps-out-of-range")
    if settings is not None and "steps" in settings:
        raise UsageError(
            "steps is not a setting of distillation", code="setting-unknown", hint="use the argument steps (--steps)"
        )
    # steps decides what other settings mean (the halvings of progressive distillation), so all are applied at once.
    chosen = {} if steps is None else {"steps": str(steps), **_defaults_for(method, steps)}
    config = apply_settings(METHODS[method](), {**chosen, **(settings or {})})
    loaded = load_student(teacher)
    _check_teacher(loaded)
    sides = Sides.of(loaded, options.get("autoencoder"))
    source = open_source(_data_of(loaded) if data is None else data, loaded.spec)
    check_classes(source, loaded.spec, loaded.spec.provenance.get("classes"))
    taught = Teacher(loaded.spec, loaded.networks[0], sides.null_text_LD)
    return _run(config, taught, source, out, sides=sides, teacher_digest=loaded.digest, options=options)


def _check_teacher(teacher: Student) -> None:
    """Refuse what no method here distils."""
    spec = teacher.spec
    if spec.guidance.rescale:
        raise UsageError(
            f"{teacher.path} rescales its guidance, which no method here distils",
            code="teacher-rescales",
            hint="set it to 0",
        )


def _data_of(teacher: Student) -> str:
    """The data that a teacher was trained on, as `open_source` takes it."""
    identity = teacher.spec.provenance.get("data")
    recorded = recorded_source(identity) if isinstance(identity, str) else None
    if recorded is not None:
        return recorded
    if identity is None or not isinstance(identity, str):
        raise ArtifactError(
            f"{teacher.path} does not say which data it was trained on",
            code="teacher-without-data",
            hint="say which: --data DIR, hf:NAME or a data set by name",
        )
    raise UsageError(
        f"{teacher.path} was trained on images of your own ({identity:.40}), and where they are is not recorded",
        code="data-not-given",
        hint="say it again: --data DIR or --data hf:NAME",
    )


def _defaults_for(method: str, steps: int) -> dict[str, str]:
    defaults = METHODS[method]()
    return {"start_steps": str(8 * steps)} if hasattr(defaults, "start_steps") else {}


def _run(
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
    refuse_existing(out, force=force, ours="student.json")
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    refuse_existing(checkpoint, force=True, ours="checkpoint.json")
    if checkpoint.exists() and not resume and not force:
        raise UsageError(
            f"there is an unfinished run at {checkpoint}",
            code="checkpoint-exists",
            hint="go on with --resume, or start anew with --force",
        )
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
        method = method.searched(teacher, dataset, seed)
    identity = {
        "method": method.name,
        "settings": _settings_of(method),
        "data": sides.identity(source),
        "seed": seed,
        "teacher": teacher_digest,
        "contract": codec.to_json(method.contract(teacher.spec)),
    } | ({"classes": list(source.class_names)} if source.class_names else {})
    accumulate, precision = options.get("accumulate", 1), options.get("precision", "fp32")
    loop: dict[str, Any] = {}  # what does not change the bits is not named, so that digests stay
    if (accumulate, precision) != (1, "fp32"):
        loop |= {"accumulate": accumulate, "precision": precision}
    if options.get("compile", False):
        loop["compile"] = True
    if options.get("ema_power") is not None:
        loop["ema_power"] = options["ema_power"]
    parallel = options.get("parallel", "ddp")
    if parallel == "fsdp":
        loop["parallel"] = parallel
    if device.type != "cpu":
        loop["device"] = device.type
    if loop:
        identity["loop"] = loop
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
        accumulate=accumulate,
        precision=precision,
        kept=kept,
        compile=options.get("compile", False),
        checkpoint_activations=options.get("checkpoint_activations", False),
        ema_power=options.get("ema_power"),
        parallel=parallel,
        device=device,
    )
    configuration = _configuration(config, teacher, out) | {"processes": processes.count, "device": device.type}
    _check_samples(options)
    journal = _open_journal(options, method.contract(teacher.spec), configuration, sides, source)
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
    spec = _with_provenance(method.contract(teacher.spec), identity, losses)
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


def _configuration(config: TrainConfig, teacher: Teacher, out: Path) -> dict[str, Any]:
    """What a dry run hands back: everything that decides the run, and what it would write."""
    phases = check_method(config.method, teacher.spec)
    return {
        **config.identity,
        "phases": [dataclasses.asdict(phase) for phase in phases],
        "training_steps": sum(phase.iterations for phase in phases),
        "path": str(out),
        "checkpoint": str(config.checkpoint),
        "checkpoint_every": config.checkpoint_every,
        "max_gradient_norm": config.max_gradient_norm,
    }


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


def _settings_of(method: Any) -> dict[str, Any]:
    return dataclasses.asdict(method)


def _with_provenance(spec: StudentSpec, identity: Mapping[str, Any], losses: list[tuple[int, float]]) -> StudentSpec:
    """The contract with how it was made; nothing in it depends on when or where, so equal runs give equal digests."""
    versions = {name: importlib.metadata.version(name) for name in ("distill-rt", "torch", "diffusers")}
    made = {key: value for key, value in identity.items() if key != "contract"}
    curve = [[step, float(f"{loss:.6g}")] for step, loss in losses]
    return dataclasses.replace(spec, provenance={**made, "versions": versions, "losses": curve})
