"""What a student, bundle or engine is, read from its manifest: for `inspect`, and for the commands that have just made one.

Reads manifests only; `verify` reads the files.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distill_rt.backends.cuda.kernels import KERNELS
from distill_rt.backends.tensorrt.plan import PLAN_SUFFIX, PlanInfo, read_info
from distill_rt.cli.outcome import Outcome, pairs, size, table
from distill_rt.core import codec
from distill_rt.core.artifacts import BundleBody, Distance, EngineBody, GateReport, StudentBody
from distill_rt.core.manifest import Kind, Manifest, decode_body, kind_of, read_manifest
from distill_rt.core.spec import StudentSpec, TensorSpec
from distill_rt.runtime.cuda.memory import MemoryPlan, plan_memory


def describe(directory: Path) -> Outcome:
    """Describe whatever artifact `directory` is."""
    return _DESCRIBE[kind_of(directory)](directory)


def describe_student(directory: Path) -> Outcome:
    manifest = read_manifest(directory, "student")
    body = decode_body(manifest, StudentBody, directory)
    made = {key: value for key, value in body.spec.provenance.items() if not isinstance(value, dict | list)}
    about = {
        "networks": ", ".join(network.kind for network in body.spec.networks),
        "text encoder": body.spec.text_encoder and body.spec.text_encoder.kind,
        "decoder": body.spec.decoder and body.spec.decoder.network.kind,
        "made by": ", ".join(f"{key} {value}" for key, value in made.items()) or None,
    }
    data = {
        "weights": list(body.weights),
        "text_encoder": body.text_encoder,
        "decoder": body.decoder,
        "tokenizer": body.tokenizer,
        "provenance": body.spec.provenance,
    }
    return _outcome(directory, manifest, body.spec, data, [pairs(about)])


def describe_bundle(directory: Path) -> Outcome:
    manifest = read_manifest(directory, "bundle")
    body = decode_body(manifest, BundleBody, directory)
    about = {
        "student": body.student_digest,
        "mode": _mode(body),
        "made with": ", ".join(f"{name} {version}" for name, version in body.versions.items()),
        "lossy pass": None if body.lossy is None else body.lossy.chosen or f"none of {len(body.lossy.trials)} tried",
    }
    rows = [
        [name, part.file, part.opset, len(part.initializers), _tensors(part.inputs), _tensors(part.outputs)]
        for name, part in body.components.items()
    ]
    components = table(["component", "graph", "opset", "weights", "inputs", "outputs"], rows)
    data = {
        "student_digest": body.student_digest,
        "mode": body.mode,
        "steps": body.steps,
        "versions": body.versions,
    } | {
        "lossy": codec.to_json(body.lossy),
        "components": {
            name: {
                "file": part.file,
                "opset": part.opset,
                "num_weights": len(part.initializers),
                "inputs": codec.to_json(part.inputs),
                "outputs": codec.to_json(part.outputs),
            }
            for name, part in body.components.items()
        },
    }
    return _outcome(directory, manifest, body.spec, data, [pairs(about), components])


def describe_engine(directory: Path) -> Outcome:
    manifest = read_manifest(directory, "engine")
    body = decode_body(manifest, EngineBody, directory)
    left_out = body.options.get("left_out_batches")
    about = {
        "target": body.target,
        "precision": body.precision,
        "mode": _mode(body),
        "images per call": ", ".join(map(str, body.batches)),
        "components": ", ".join(body.components),
        "left out": f"{', '.join(map(str, left_out))} (not the bits of a single image)" if left_out else None,
        "fingerprint": body.fingerprint,
        "bundle": body.bundle_digest,
        "built in": f"{body.build_seconds:.1f} s",
    }
    plans = _plan_infos(directory, body)
    data = {
        "target": body.target,
        "precision": body.precision,
        "mode": body.mode,
        "steps": body.steps,
        "batches": list(body.batches),
        "components": list(body.components),
        "tokenizer": body.tokenizer,
        "fingerprint": body.fingerprint,
        "fingerprint_parts": body.fingerprint_parts,
        "bundle_digest": body.bundle_digest,
        "build_seconds": body.build_seconds,
        "options": body.options,
        "gate": codec.to_json(body.gate),
        **({"plans": codec.to_json(plans)} if plans else {}),
    }
    memory = plan_memory(directory, body) if "activation_bytes" in body.options else None
    if memory is not None:
        data["gpu_memory_bytes"] = codec.to_json(memory) | {"total": memory.total()}
    blocks = [
        pairs(about),
        *([_memory(memory)] if memory is not None else []),
        *([_plan_table(plans)] if plans else []),
        _gate(directory, body.gate),
    ]
    return _outcome(directory, manifest, body.spec, data, blocks)


def _mode(body: BundleBody | EngineBody) -> str:
    return body.mode if body.steps is None else f"{body.mode} of {body.steps} steps"


_DESCRIBE: dict[Kind, Callable[[Path], Outcome]] = {
    "student": describe_student,
    "bundle": describe_bundle,
    "engine": describe_engine,
}


def _outcome(
    directory: Path, manifest: Manifest, spec: StudentSpec, data: dict[str, Any], blocks: list[str]
) -> Outcome:
    files = table(["file", "size", "sha256"], _file_rows(manifest))
    num_bytes = sum(file.size for file in manifest.files)
    head = pairs({"path": directory, "kind": manifest.kind, "digest": manifest.digest, "size": size(num_bytes)})
    return Outcome(
        data={
            "path": str(directory),
            "kind": manifest.kind,
            "digest": manifest.digest,
            "size_bytes": num_bytes,
            "contract": _contract(spec),
            **data,
            "files": codec.to_json(manifest.files),
        },
        text="\n\n".join([head, pairs(_contract_lines(spec)), _plans(spec), *blocks, files]),
    )


def _file_rows(manifest: Manifest) -> list[list[Any]]:
    """A row per file; the kernels, of which there are dozens, in one."""
    kernels = [file for file in manifest.files if file.path.startswith(f"{KERNELS}/")]
    rows: list[list[Any]] = [[f.path, size(f.size), f.sha256[:16]] for f in manifest.files if f not in kernels]
    if kernels:
        rows.append([f"{KERNELS}/ ({len(kernels)} files)", size(sum(file.size for file in kernels)), ""])
    return rows


def _contract(spec: StudentSpec) -> dict[str, Any]:
    contract: dict[str, Any] = codec.to_json(spec)
    contract.pop("provenance")  # for a student it stands beside the contract; engines repeat their student's
    return contract


def _contract_lines(spec: StudentSpec) -> dict[str, Any]:
    condition, guidance = spec.condition, spec.guidance
    channels, height, width = spec.image_shape
    scale = f"{guidance.min:g} to {guidance.max:g}, default {guidance.default:g} ({guidance.mode})"
    return {
        "name": spec.name,
        "images": f"{height} x {width} pixels, {channels} channels",
        "latents": None if spec.decoder is None else " x ".join(map(str, spec.sample_shape)),
        "steps": f"{', '.join(map(str, spec.steps))}; default {spec.default_steps}",
        "label": f"0 to {condition.num_classes - 1}" if condition.kind == "label" else "none",
        "prompt": None if condition.kind != "text" else f"up to {condition.num_tokens} tokens, start and end included",
        "guidance": "none" if guidance.mode == "none" else scale,
        "process": spec.process.kind,
    }


def _plans(spec: StudentSpec) -> str:
    rows = []
    for steps, plan in sorted(spec.plans.items()):
        times = ", ".join(f"{row.time:g}" for row in plan.rows if row.calls_network)
        shown = times if len(times) <= 60 else f"{times[:40]} ... {times.rsplit(', ', 1)[1]}"
        rows.append([steps, plan.num_evaluations, "yes" if plan.is_stochastic else "no", shown])
    return table(["plan", "evaluations", "noise in steps", "network times"], rows)


def _tensors(tensors: tuple[TensorSpec, ...]) -> str:
    return " ".join(f"{tensor.name}[{','.join(map(str, tensor.shape))}]" for tensor in tensors)


def _gate(directory: Path, report: GateReport | None) -> str:
    if report is None:
        return f"gate  NOT RUN YET; on the target: distill-rt verify {shlex.quote(str(directory))} --gate"
    distances = {
        **report.components,
        "  bar of components": report.component_bar,
        **report.trajectories,
        "  bar of trajectories": report.trajectory_bar,
    }
    rows = [[name, *_distance(distance)] for name, distance in distances.items()]
    where = f"on {report.device}\n" if report.device else ""
    return where + table(["gate", "relative L2", "PSNR dB", "cosine"], rows)


def _memory(plan: MemoryPlan) -> str:
    each = f"at most {size(plan.activations)} of activations and {size(plan.buffers)} of buffers"
    return pairs({
        "GPU memory": f"{size(plan.total())} planned for one worker",
        "weights": f"{size(plan.weights)}, shared by all workers",
        "each worker": each,
    })  # fmt: skip


def _plan_infos(directory: Path, body: EngineBody) -> dict[str, PlanInfo]:
    """What stands beside the plans of TensorRT engines; nothing for other targets."""
    files = {name: items[0].files for name, items in body.components.items() if items}
    return {name: read_info(directory, names) for name, names in files.items() if names[0].endswith(PLAN_SUFFIX)}


def _plan_table(plans: Mapping[str, PlanInfo]) -> str:
    rows = [
        [
            name,
            plan.library,
            " ".join(f"sm{number}" for number in plan.capabilities),
            len(plan.profiles),
            f"{'?' if plan.num_fused_attentions is None else plan.num_fused_attentions} of {plan.num_attentions}",
        ]
        for name, plan in plans.items()
    ]
    return table(["plan", "built by", "for", "profiles", "fused attentions"], rows)


def _distance(distance: Distance) -> list[str]:
    return [f"{distance.relative_l2:.2e}", f"{distance.psnr_db:.1f}", f"{distance.cosine:.7f}"]
