"""An engine for this GPU through the public API: compiled from a bundle, gated, loaded, and asked.

``run(recorder, "inductor:cuda")``, or ``tensorrt`` and ``tensorrt-rtx``, to which the GPU's capability is added. Whatever stops
it (no package, a GPU that the library does not serve, a refusal) is the section's result.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from acceptance.device import Device, need, open_device
from acceptance.graph import REQUESTS
from acceptance.report import Recorder, Skip

FIRST_REQUEST_BAR = 2.0
NUM_THREADS = 8


def run(recorder: Recorder, argument: str) -> None:
    device = open_device(recorder)
    for package in ("onnx", "safetensors"):
        need(package)
    target = target_name(argument, device)
    recorder.figure("target", target)
    check_target(target)
    from acceptance.bundle import make_network, write_bundle
    from distill_rt.export import compile_bundle

    scratch = Path(os.environ.get("TMPDIR", "."))
    network = make_network(recorder.dry)
    recorder.figure("parameters", sum(p.numel() for p in network.parameters()))
    started = time.monotonic()
    bundle = write_bundle(scratch / "unet.bundle", network, device.name)
    recorder.figure("bundle_seconds", time.monotonic() - started)
    del network
    started = time.monotonic()
    engine = compile_bundle(bundle, target, scratch / "unet.engine", use_cache=False, progress=said)
    recorder.figure("compile_seconds", time.monotonic() - started)
    recorder.figure("engine_bytes", sum(path.stat().st_size for path in engine.rglob("*") if path.is_file()))
    gate = gate_report(engine)
    recorder.figure("gate", gate)
    first_request(recorder, engine)
    requests(recorder, engine, device)


def target_name(argument: str, device: Device) -> str:
    if device.name == "cpu":
        if argument != "inductor:cuda":
            raise Skip("needs a GPU; the dry run of engine-inductor has run this section's code")
        return "onnxruntime:cpu"
    return argument if ":" in argument else f"{argument}:sm{device.capability}"


def check_target(target: str) -> None:
    """Skip, with the reason in the project's own words, where this machine cannot have such an engine."""
    from distill_rt.backends.registry import resolve_target
    from distill_rt.core.errors import DistillError

    try:
        _, backend = resolve_target(target)
    except DistillError as error:
        raise Skip(f"{error.code}: {error}") from error
    for reason in (backend.cannot_build(), backend.cannot_run()):
        if reason is not None:
            raise Skip(f"{target}: {reason}")


def said(stage: str, *done: Any) -> None:
    """Compiling says where it is; a section that is cut off then shows it in its log."""
    print(f"{time.strftime('%H:%M:%S')} {stage} {'/'.join(map(str, done))}".rstrip(), flush=True)


def gate_report(engine: Path) -> dict[str, Any]:
    """Figures of the gate, run now if the build could not."""
    from distill_rt.backends.engine import open_engine
    from distill_rt.core import codec
    from distill_rt.export.late_gate import run_late_gate

    body = open_engine(engine, ungated=True).body
    gate = body.gate if body.gate is not None else run_late_gate(engine)
    return {"precision": body.precision, "target": body.target, **codec.to_json(gate)}


def first_request(recorder: Recorder, engine: Path) -> None:
    """Load and first image in a new process, where nothing is compiled, loaded or cached by what ran here."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "acceptance.first_request", str(engine)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"loading in a new process failed: {done.stderr[-1500:]}")
    figures = json.loads(done.stdout.splitlines()[-1])
    recorder.figure("new_process", figures)
    recorder.at_most("first_request_ratio", figures["first_over_later"], FIRST_REQUEST_BAR, speed=True)


def requests(recorder: Recorder, engine: Path, device: Device) -> None:
    """Latency, bits, changed values, previews, no graph, and two workers in threads."""
    import distill_rt

    before = free_bytes(device)
    with distill_rt.load(engine) as pipe:
        recorder.figure("load_ms", pipe.load_ms)
        recorder.figure("device_memory_after_load", before - free_bytes(device))
        images = functools.partial(ask, pipe)
        answers = [images(*request) for request in REQUESTS]
        changed = [not same(answers[0], other) for other in answers[1:]]
        recorder.holds("seed_label_guidance_change", all(changed), note=f"seed, label, guidance: {changed}")
        again = [images(*request) for request in REQUESTS]
        recorder.holds("same_request_same_bits", all(map(same, answers, again)))
        shown = images(*REQUESTS[0], on_step=lambda update: None)
        recorder.holds("previews_same_bits", same(answers[0], shown), note="rows one by one")
        figures = {
            f"steps {steps}": latency_ms(functools.partial(images, *REQUESTS[0], steps=steps))
            for steps in pipe.spec.steps
        }
        recorder.figure("latency_ms", figures)
        recorder.figure("timings_ms", dict(pipe.generate(seed=1, labels=[3]).timings_ms))
        one_by_one = [images(seed, 3, 2.0) for seed in range(NUM_THREADS)]
        queued = in_threads([functools.partial(images, seed, 3, 2.0) for seed in range(NUM_THREADS)])
        recorder.figure("device_memory_in_use", before - free_bytes(device))
    with distill_rt.load(engine, capture=False) as pipe:
        plain = [ask(pipe, *request) for request in REQUESTS]
        recorder.holds("graph_equals_eager", all(map(same, answers, plain)), note="load(engine, capture=False)")
        no_graph = latency_ms(lambda: ask(pipe, *REQUESTS[0]))
        recorder.figure("latency_no_graph_ms", no_graph)
        recorder.figure("no_graph_over_graph", no_graph["p50"] / figures[f"steps {pipe.spec.default_steps}"]["p50"])
    with distill_rt.load(engine, workers=2) as pipe:
        recorder.figure("device_memory_two_workers", before - free_bytes(device))
        started = time.perf_counter()
        parallel = in_threads([functools.partial(ask, pipe, seed, 3, 2.0) for seed in range(NUM_THREADS)])
        recorder.figure("two_workers_ms_per_image", 1e3 * (time.perf_counter() - started) / NUM_THREADS)
    wrong = [
        what for what, got in (("one worker", queued), ("two workers", parallel)) if not all(map(same, got, one_by_one))
    ]
    errors = [f"{type(got).__name__}: {got}" for got in (*queued, *parallel) if isinstance(got, BaseException)]
    recorder.holds("threads_same_bits", wrong == [], note="; ".join([*wrong, *errors])[:500])


def ask(pipe: Any, seed: int, label: int, guidance: float, **options: Any) -> Any:
    """uint8 (1, H, W, C)."""
    return pipe.generate(seed=seed, labels=[label], guidance=guidance, **options).images


def latency_ms(call: Callable[[], Any]) -> dict[str, float]:
    for _ in range(3):
        call()
    times = []
    for _ in range(20):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return {"p50": statistics.median(times), "max": max(times)}


def in_threads(calls: list[Callable[[], Any]]) -> list[Any]:
    """Results in order; a thread's exception in place of its result."""
    results: list[Any] = [RuntimeError("did not run")] * len(calls)

    def work(i: int) -> None:
        try:
            results[i] = calls[i]()
        except BaseException as error:  # it is compared, and found different
            results[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def same(a: Any, b: Any) -> bool:
    import numpy as np

    return not isinstance(a, BaseException) and not isinstance(b, BaseException) and bool(np.array_equal(a, b))


def free_bytes(device: Device) -> int:
    if device.name == "cpu":
        return 0
    import torch

    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info()[0])
