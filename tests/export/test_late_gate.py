"""An engine built where it cannot run: published without a gate, refused until the gate has run on its target.

ONNX Runtime plays the part: `elsewhere` makes this machine one that cannot run it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from handmade import edit_manifest, write_bundle

from distill_rt.backends.engine import open_engine
from distill_rt.backends.onnxruntime import OnnxRuntime
from distill_rt.cli.main import main
from distill_rt.core.errors import ArtifactError, GateError, TargetError, UsageError
from distill_rt.export.compile import compile_bundle
from distill_rt.export.golden import ComponentGolden, Golden
from distill_rt.export.late_gate import run_late_gate
from distill_rt.runtime.pipeline import Pipeline

Capture = pytest.CaptureFixture[str]
ORT = "onnxruntime:cpu"


def compile_elsewhere(bundle: Path, out: Path, **options: object) -> Path:
    """Compile on a machine that cannot run the target."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnnxRuntime, "cannot_run", lambda self: "this machine has no abacus")
        return compile_bundle(bundle, ORT, out, batches=(1, 3), num_threads=1, **options)  # type: ignore[arg-type]


@pytest.fixture
def ungated(bundle: Path, tmp_path: Path) -> Path:
    return compile_elsewhere(bundle, tmp_path / "ungated.engine", use_cache=False)


def content_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_it_is_published_with_its_golden_outputs_and_says_so(bundle: Path, ungated: Path) -> None:
    body = open_engine(ungated, ungated=True).body
    assert body.gate is None
    assert body.golden == "golden.safetensors"
    assert (ungated / "golden.safetensors").read_bytes() == (bundle / "golden.safetensors").read_bytes()


def test_nothing_generates_with_it(ungated: Path) -> None:
    with pytest.raises(GateError) as caught:
        Pipeline.load(ungated)
    assert caught.value.code == "gate-not-run"
    assert f"distill-rt verify {ungated} --gate" in caught.value.hint


def test_where_it_cannot_run_the_gate_cannot_either(ungated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntime, "cannot_run", lambda self: "this machine has no abacus")
    before = content_of(ungated)
    for open_it in (open_engine, run_late_gate):
        with pytest.raises(TargetError) as caught:
            open_it(ungated)  # type: ignore[operator]
        assert "this machine has no abacus" in caught.value.message
    assert content_of(ungated) == before


def test_the_gate_on_the_target_makes_it_an_engine_like_any_other(bundle: Path, ungated: Path, tmp_path: Path) -> None:
    before = content_of(ungated)
    report = run_late_gate(ungated)
    here = open_engine(compile_bundle(bundle, ORT, tmp_path / "here", batches=(1, 3), num_threads=1, use_cache=False))
    opened = open_engine(ungated)
    assert opened.body.gate == report == here.body.gate
    assert opened.body.fingerprint == here.body.fingerprint
    after = content_of(ungated)
    assert {name for name in after if after[name] != before.get(name)} == {"engine.json"}
    with Pipeline.load(ungated) as one, Pipeline.load(tmp_path / "here") as other:
        images = [pipe.generate(labels=[1], seed=5, num_images=2).images for pipe in (one, other)]
    assert np.array_equal(*images)


def test_the_bundle_is_not_needed(tmp_path: Path) -> None:
    own = write_bundle(tmp_path / "own.bundle")
    engine = compile_elsewhere(own, tmp_path / "engine", use_cache=False)
    shutil.rmtree(own)
    moved = Path(shutil.move(engine, tmp_path / "on the target"))
    run_late_gate(moved)
    assert open_engine(moved).body.gate is not None


def spoil(golden: Golden) -> Golden:
    components = {
        name: ComponentGolden(inputs=part.inputs, outputs={key: -value for key, value in part.outputs.items()})
        for name, part in golden.components.items()
    }
    return Golden(components=components, trajectories=golden.trajectories)


def test_an_engine_that_is_not_the_student_stays_refused(tmp_path: Path) -> None:
    wrong = write_bundle(tmp_path / "wrong.bundle", edit_golden=spoil)
    engine = compile_elsewhere(wrong, tmp_path / "engine", use_cache=False)
    before = content_of(engine)
    with pytest.raises(GateError) as caught:
        run_late_gate(engine)
    assert caught.value.code == "gate-failed"
    assert content_of(engine) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    with pytest.raises(GateError, match="nobody has compared"):
        open_engine(engine)


def test_it_can_run_again(ungated: Path) -> None:
    assert run_late_gate(ungated) == run_late_gate(ungated)


def test_an_engine_gated_at_build_carries_nothing_to_run_it_again(bundle: Path, tmp_path: Path) -> None:
    engine = compile_bundle(bundle, ORT, tmp_path / "engine", num_threads=1, use_cache=False)
    assert not (engine / "golden.safetensors").exists()
    with pytest.raises(UsageError) as caught:
        run_late_gate(engine)
    assert caught.value.code == "gate-ran-already"


def test_golden_outputs_must_be_listed(ungated: Path) -> None:
    edit_manifest(ungated / "engine.json", lambda content: content["body"].update(golden="../golden.safetensors"))
    with pytest.raises(ArtifactError, match=r"golden outputs \.\./golden\.safetensors are not listed"):
        open_engine(ungated, ungated=True)


def test_the_cache_keeps_it_ungated(bundle: Path, tmp_path: Path) -> None:
    first = compile_elsewhere(bundle, tmp_path / "first")
    run_late_gate(first)
    second = compile_elsewhere(bundle, tmp_path / "second")
    assert open_engine(second, ungated=True).body.gate is None


# -- the command line -----------------------------------------------------------------------------------------------------


def test_verify_says_it_and_runs_it(ungated: Path, capsys: Capture) -> None:
    assert main(["inspect", str(ungated)]) == 0
    assert f"NOT RUN YET; on the target: distill-rt verify {ungated} --gate" in capsys.readouterr().out
    assert main(["verify", str(ungated)]) == 6
    assert "nobody has compared it with the student yet" in capsys.readouterr().err
    assert main(["verify", str(ungated), "--gate"]) == 0
    assert "gate verified" in capsys.readouterr().out
    assert main(["verify", str(ungated)]) == 0
    assert main(["inspect", str(ungated)]) == 0
    assert "NOT RUN YET" not in capsys.readouterr().out


@pytest.mark.parametrize("make", [lambda bundle, ungated: bundle, lambda bundle, ungated: ungated / "engine.json"])
def test_only_engines_have_a_gate(
    make: Callable[[Path, Path], Path], bundle: Path, ungated: Path, capsys: Capture
) -> None:
    assert main(["verify", str(make(bundle, ungated)), "--gate"]) in (2, 3)
    assert len(capsys.readouterr().err.splitlines()) == 1
