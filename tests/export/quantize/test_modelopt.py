"""The job that the worker gets, and every way in which it can end: a worker that plays its part stands in for modelopt."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from distill_rt.core.artifacts import Component
from distill_rt.core.errors import TargetError
from distill_rt.export.quantize.calibration import calibration_digest
from distill_rt.export.quantize.environment import PYTHON_VARIABLE
from distill_rt.export.quantize.modelopt import quantize_graph

Network = tuple[Path, Component]


def run(network: Network, rows: Any, out: Path, **options: Any) -> Any:
    path, component = network
    return quantize_graph(path, component, "int8", rows, out / "q.onnx", **options)


def refused(network: Network, rows: Any, out: Path, **options: Any) -> TargetError:
    with pytest.raises(TargetError) as caught:
        run(network, rows, out, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert not list(out.glob(".quantize-*")), "scratch files go in any case"
    return caught.value


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie that nobody has waited for has."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state in "ZX":
            return True
        time.sleep(0.05)
    return False


def test_the_job_and_the_report(network: Network, rows: Any, worker: Any, tmp_path: Path) -> None:
    directory = worker("works")
    before = network[0].read_bytes()
    quantized = run(network, rows, tmp_path)
    job = json.loads((directory / "called").read_text())
    assert job["exclude"] == ["conv_in", "conv_out", "mix", "scores", "time", "to_k"]
    assert (job["mode"], job["method"], job["modelopt"]) == ("int8", "max", "0.47.0")
    assert job["output"] == str(tmp_path / "q.onnx")
    assert Path(job["graph"]).parent != network[0].parent, "modelopt writes into the file that it is given"
    assert network[0].read_bytes() == before
    assert quantized.path == tmp_path / "q.onnx"
    onnx.checker.check_model(str(quantized.path))
    assert quantized.report["quantize"] == 1
    assert quantized.report["rows"] == 8
    assert quantized.report["kept"] == {"attention": 2, "first": 2, "last": 1, "time": 1}
    assert quantized.report["calibration"] == calibration_digest(rows)
    assert not list(tmp_path.glob(".quantize-*"))


def test_the_copy_keeps_types_and_names_every_node(
    network: Network, rows: Any, worker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker("works")
    model = onnx.load(str(network[0]))
    model.graph.node[1].name = "conv_in"  # twice
    onnx.save(model, str(network[0]))
    run(network, rows, tmp_path)
    written = onnx.load(str(tmp_path / "q.onnx"))
    names = [node.name for node in written.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    typed = {value.name for value in written.graph.value_info}
    assert "h3" in typed, "behind a GroupNormalization modelopt infers nothing"


@pytest.mark.parametrize(
    ("behaviour", "code", "says"),
    [
        ("crashes", "quantization-failed", "crashed (signal SIGABRT)"),
        ("exits", "quantization-failed", "crashed (exit code 3)"),
        ("says nothing", "quantization-failed", "crashed (exit code 0)"),
        ("modelopt:KeyError: 'x'", "quantization-failed", "refused the graph: KeyError: 'x'"),
        ("calibration:input time is any", "quantization-failed", "refused the graph: input time is any"),
        ("versions:nvidia-modelopt 0.47.0 is needed, this environment has 0.33", "modelopt-version", "has 0.33"),
    ],
)
def test_how_it_can_end(
    network: Network, rows: Any, worker: Any, tmp_path: Path, behaviour: str, code: str, says: str
) -> None:
    worker(behaviour)
    error = refused(network, rows, tmp_path)
    assert error.code == code
    assert says in error.message
    if behaviour == "crashes":
        assert "std::bad_alloc" in error.details["log"]
    if code == "modelopt-version":
        assert "doctor --setup-modelopt" in error.hint


def test_one_that_hangs_is_killed_with_its_children(network: Network, rows: Any, worker: Any, tmp_path: Path) -> None:
    directory = worker("hangs")
    error = refused(network, rows, tmp_path, time_limit_seconds=2)
    assert error.code == "quantization-timeout"
    assert all(gone(int(pid)) for pid in (directory / "child").read_text().split())


def test_an_interrupt_kills_it(network: Network, rows: Any, worker: Any, tmp_path: Path) -> None:
    directory = worker("hangs")

    def interrupt() -> None:
        for _ in range(400):
            if (directory / "child").is_file() and (directory / "child").read_text():
                break
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run(network, rows, tmp_path)
    assert all(gone(int(pid)) for pid in (directory / "child").read_text().split())
    assert not list(tmp_path.glob(".quantize-*"))


def test_a_network_with_nothing_to_quantise(network: Network, rows: Any, worker: Any, tmp_path: Path) -> None:
    directory = worker("works")
    path, component = network
    model = onnx.load(str(path))
    for node in model.graph.node:
        if node.name in ("middle", "to_q", "to_out"):
            node.op_type = "ConvTranspose" if node.op_type == "Conv" else "Mul"
    onnx.save(model, str(path))
    error = refused((path, component), rows, tmp_path)
    assert error.code == "quantization-empty"
    assert not (directory / "called").exists(), "said before the worker is started"


def test_a_worker_that_is_no_program(
    network: Network, rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PYTHON_VARIABLE, str(tmp_path / "nothing"))
    error = refused(network, rows, tmp_path)
    assert error.code == "modelopt-missing"


def test_weights_beside_the_graph(network: Network, rows: Any, worker: Any, tmp_path: Path) -> None:
    worker("works")
    quantized = run(network, rows, tmp_path, single_file_limit_bytes=1000)
    got = {item.name for item in onnx.load(str(quantized.path)).graph.initializer}
    assert "middle.weight" in got
    assert np.isfinite(rows["sample"]).all()
