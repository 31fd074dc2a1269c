"""Every name of cuda.bindings and cuda.core that our sources use exists in the installed packages."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from distill_rt.core.optional import installed

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(not installed("cuda.bindings"), reason="needs cuda-bindings (pip install cuda-bindings)")
def test_every_driver_call_exists() -> None:
    api = importlib.import_module("cuda.bindings.driver")
    source = (ROOT / "distill_rt" / "backends" / "cuda" / "driver.py").read_text()
    names = set(re.findall(r"\bapi\.([A-Za-z]\w+)", source))
    assert len(names) >= 20
    assert [name for name in sorted(names) if not hasattr(api, name)] == []
    assert int(api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) == 1
    assert api.CUresult(2).name == "CUDA_ERROR_OUT_OF_MEMORY"


@pytest.mark.skipif(not installed("cuda.core"), reason="needs cuda-core (pip install cuda-core)")
def test_every_class_of_cuda_core_exists() -> None:
    core = importlib.import_module("cuda.core")
    sources = [ROOT / "distill_rt" / "backends" / "cuda" / "kernels.py", ROOT / "kernels" / "loaded_pack.py"]
    names = set(re.findall(r"core\.([A-Z]\w+|launch)", "".join(path.read_text() for path in sources)))
    assert {"Device", "Stream", "ObjectCode", "LaunchConfig", "launch"} <= names
    assert [name for name in sorted(names) if not hasattr(core, name)] == []
    assert hasattr(core.Stream, "from_handle")
    assert hasattr(core.Device, "set_current")
