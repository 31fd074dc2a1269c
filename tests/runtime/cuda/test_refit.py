"""Other weights in a plan, on the imaginary GPU: the engine that compiling the other bundle would give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_machine import Machine
from handmade import write_bundle
from handmade_trajectory import trajectory_bundle

import distill_rt as drt
from distill_rt.cli.main import main
from distill_rt.core.errors import TargetError, UsageError
from distill_rt.export import compile_bundle
from distill_rt.export.refit import refit_engine

REQUEST = {"labels": [0, 1, 2], "seed": 4, "guidance": 2.5}


def compiled(bundle: Path, out: Path, **options: bool) -> Path:
    return compile_bundle(
        bundle, "tensorrt:sm90", out, batches=(1, 3), precision="fp32", num_threads=1, use_cache=False, **options
    )


def test_it_is_the_engine_of_the_other_bundle(gpu: Machine, tmp_path: Path) -> None:
    first, second = (write_bundle(tmp_path / f"{seed}.bundle", "cfg", seed=seed) for seed in (0, 1))
    engine = compiled(first, tmp_path / "first", refittable=True)
    want = drt.load(compiled(second, tmp_path / "second", refittable=True))
    before = drt.load(engine).generate(**REQUEST).images
    assert main(["refit", str(engine), str(second), "--out", str(tmp_path / "new")]) == 0
    got = drt.load(tmp_path / "new")
    assert got.fingerprint == want.fingerprint
    assert got.manifest.gate is not None
    assert np.array_equal(got.generate(**REQUEST).images, want.generate(**REQUEST).images)
    assert not np.array_equal(got.generate(**REQUEST).images, before)
    assert np.array_equal(drt.load(engine).generate(**REQUEST).images, before)  # it stays as it was


def test_what_takes_no_weights_is_refused(gpu: Machine, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", "cfg")
    plain = compiled(bundle, tmp_path / "plain")
    with pytest.raises(UsageError, match="was not compiled to take other weights") as caught:
        refit_engine(plain, bundle, tmp_path / "new")
    assert "--refittable" in caught.value.hint
    with pytest.raises(TargetError, match="engines for onnxruntime:cpu take no other weights"):
        compile_bundle(bundle, "onnxruntime:cpu", tmp_path / "cpu", refittable=True)
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "cpu").exists()


def test_another_network_is_refused(gpu: Machine, tmp_path: Path) -> None:
    engine = compiled(write_bundle(tmp_path / "a", "cfg"), tmp_path / "engine", refittable=True)
    with pytest.raises(UsageError, match="holds another network"):
        refit_engine(engine, write_bundle(tmp_path / "b", "embedded"), tmp_path / "new")
    with pytest.raises(UsageError, match="computed from its weights"):
        refit_engine(engine, trajectory_bundle(tmp_path / "c", "cfg"), tmp_path / "new")
    assert not (tmp_path / "new").exists()
