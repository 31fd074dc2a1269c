"""The kernels package is light, and refuses to exist twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill_rt import kernels
from distill_rt.core.errors import TargetError
from distill_rt.kernels import dispatch


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def test_needs_numpy_alone() -> None:
    heavy = "torch diffusers scipy onnx onnxruntime openvino PIL"
    done = run(f"import sys, distill_rt.kernels; print([m for m in '{heavy}'.split() if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("name", ["kernels", "training"])
def test_bare_name_is_refused(name: str) -> None:
    """`import kernels` from the source tree would be a second copy of every class."""
    root = Path(__file__).parents[2]
    assert (root / name / "__init__.py").is_file()
    done = run(f"import sys; sys.path.insert(0, {str(root)!r}); import {name}")
    assert done.returncode != 0
    assert f"distill_rt.{name}" in done.stderr.splitlines()[-1]


@pytest.mark.skipif(
    bool(os.environ.get("DISTILL_RT_PURE_PYTHON")), reason="a build without native kernels was asked for"
)
def test_native_kernels_are_built() -> None:
    """Else the comparisons of native and reference would all be skipped without a word."""
    assert kernels.available_implementations() == ("native", "reference")


def test_importing_without_the_native_module() -> None:
    """As in a wheel built with DISTILL_RT_PURE_PYTHON=1: the module cannot be found, and the reference takes over."""
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'distill_rt.kernels._native':\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from distill_rt import kernels\n"
        "print(kernels.available_implementations())\n"
    )
    done = run(code)
    assert done.stdout.strip() == "('reference',)", done.stderr


def test_without_the_native_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_native", None)
    assert kernels.available_implementations() == ("reference",)
    assert kernels.unit_noise([1], (4,)).shape == (1, 4)
    with pytest.raises(TargetError) as caught:
        kernels.unit_noise([1], (4,), implementation="native")
    assert caught.value.code == "native-missing"


def test_automatic_threads_stay_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert dispatch._threads(None, 1 << 30, 1 << 16) == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert [dispatch._threads(None, n << 16, 1 << 16) for n in (0, 1, 2, 5, 100)] == [1, 1, 2, 5, 8]
    assert dispatch._threads(3, 10, 1 << 16) == 3
