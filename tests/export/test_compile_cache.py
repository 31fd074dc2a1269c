"""The cache of engines: the same request is compiled once, by whichever process comes first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from compiling import ORT, OV, Stages, cached, entries, needs_bf16

from distill_rt.backends.engine import open_engine
from distill_rt.export import compile_bundle

# -- the cache ------------------------------------------------------------------------------------------------------------


def test_the_second_compile_comes_from_the_cache(bundle: Path, tmp_path: Path, cache_dir: Path) -> None:
    first, second = Stages(), Stages()
    a = compile_bundle(bundle, ORT, tmp_path / "a", progress=first)
    b = compile_bundle(bundle, ORT, tmp_path / "b", progress=second)
    assert first.compiled(ORT)
    assert not second.compiled(ORT)
    assert {path.name: path.read_bytes() for path in a.iterdir()} == {
        path.name: path.read_bytes() for path in b.iterdir()
    }
    (entry,) = cached(cache_dir)
    assert entry.name == open_engine(b).body.fingerprint
    assert all(path.stat().st_nlink == 1 for path in b.iterdir())  # nothing done to the one can harm the other


@pytest.mark.parametrize(
    "change",
    [pytest.param({"precision": "bf16"}, marks=needs_bf16), {"batches": (1, 2)}, {"num_threads": 3}],
    ids=["precision", "batches", "threads"],
)
def test_another_request_is_another_engine(change: dict[str, Any], bundle: Path, tmp_path: Path) -> None:
    compile_bundle(bundle, OV, tmp_path / "a", num_threads=2)
    stages = Stages()
    compile_bundle(bundle, OV, tmp_path / "b", progress=stages, **({"num_threads": 2} | change))
    assert stages.compiled(OV)


def test_force_builds_again(bundle: Path, tmp_path: Path) -> None:
    compile_bundle(bundle, ORT, tmp_path / "engine")
    stages = Stages()
    compile_bundle(bundle, ORT, tmp_path / "engine", force=True, progress=stages)
    assert stages.compiled(ORT)


def test_without_the_cache(bundle: Path, tmp_path: Path, cache_dir: Path) -> None:
    for name in "ab":
        stages = Stages()
        compile_bundle(bundle, ORT, tmp_path / name, use_cache=False, progress=stages)
        assert stages.compiled(ORT)
    assert not cache_dir.exists()


def test_a_damaged_cache_entry_is_built_again(bundle: Path, tmp_path: Path, cache_dir: Path) -> None:
    compile_bundle(bundle, ORT, tmp_path / "a")
    (entry,) = cached(cache_dir)
    (entry / "network0.b1.onnx").write_bytes(b"?")
    stages = Stages()
    out = compile_bundle(bundle, ORT, tmp_path / "b", progress=stages)
    assert any("the cached engine is damaged" in stage for stage in stages.names)
    assert stages.compiled(ORT)
    open_engine(out).load("network0", 1).run()


# -- other processes --------------------------------------------------------------------------------------------------------

CHILD = """
import json, sys, time
from distill_rt.export import compile_bundle
bundle, out, delay = sys.argv[1], sys.argv[2], float(sys.argv[3])
stages = []
def progress(stage, done=0, total=0, /):
    stages.append(stage)
    print(stage, flush=True)
    if stage.startswith("compiling"):
        time.sleep(delay)
compile_bundle(bundle, "onnxruntime:cpu", out, progress=progress)
torch_free = not {"torch", "diffusers", "transformers"} & set(sys.modules)
print(json.dumps({"compiled": any(s.startswith("compiling") for s in stages), "torch_free": torch_free}))
"""


def child(bundle: Path, out: Path, delay: float = 0.0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(bundle), str(out), str(delay)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("same_place", [True, False])
def test_two_at_once_one_builds_and_both_succeed(same_place: bool, bundle: Path, tmp_path: Path) -> None:
    outs = [tmp_path / "a", tmp_path / ("a" if same_place else "b")]
    children = [child(bundle, out, delay=0.5) for out in outs]
    results = [process.communicate(timeout=60) for process in children]
    assert [process.returncode for process in children] == [0, 0], results
    reports = [json.loads(stdout.splitlines()[-1]) for stdout, _ in results]
    assert sorted(report["compiled"] for report in reports) == [False, True]
    for out in outs:
        open_engine(out).load("network0", 1).run()
    assert entries(tmp_path) == {"cache"} | {out.name for out in outs}


def test_compiling_never_imports_torch(bundle: Path, tmp_path: Path) -> None:
    process = child(bundle, tmp_path / "engine")
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert json.loads(stdout.splitlines()[-1]) == {"compiled": True, "torch_free": True}


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_an_interrupt_leaves_nothing(bundle: Path, tmp_path: Path, cache_dir: Path) -> None:
    process = child(bundle, tmp_path / "engine", delay=30)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("compiling"):
            break
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert entries(tmp_path) == {"cache"}
    assert all(path.suffix == ".lock" for path in (cache_dir / "engines").iterdir())
    compile_bundle(bundle, ORT, tmp_path / "engine")  # and the lock is free
