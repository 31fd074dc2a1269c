"""A machine with an imaginary GPU: the driver, TensorRT and kernels of `fake_cuda` and `fake_tensorrt`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_cuda import GPU, FakeCuda, FakeLauncher
from fake_machine import Machine
from fake_tensorrt import make_library

from distill_rt.backends.cuda import driver as driver_module
from distill_rt.backends.tensorrt import backend as tensorrt_module
from distill_rt.runtime.cuda import graph_worker


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Everything that asks for a GPU in this test gets `Machine.cuda`."""
    machine = Machine(cuda=FakeCuda())
    library, build_plan = make_library(machine.cuda)

    def launcher(directory: Path, driver: Any) -> FakeLauncher:
        assert (directory / "kernels" / "kernels.json").is_file()
        machine.launchers.append(FakeLauncher(machine.cuda))
        return machine.launchers[-1]

    def put_kernels(directory: Path, capabilities: Any) -> None:
        assert tuple(capabilities) == (GPU.capability,)
        (directory / "kernels").mkdir()
        (directory / "kernels" / "kernels.json").write_text("{}\n")

    for module in (driver_module, tensorrt_module):
        monkeypatch.setattr(module, "cuda_devices", lambda: ((GPU,), ""))
    monkeypatch.setattr(driver_module, "require", lambda name, extra: machine.cuda)
    monkeypatch.setattr(tensorrt_module, "installed", lambda name: True)
    monkeypatch.setattr(tensorrt_module, "load_library", lambda flavour: library)
    monkeypatch.setattr(tensorrt_module, "build_plan", build_plan)
    monkeypatch.setattr(tensorrt_module, "put_kernels", put_kernels)
    monkeypatch.setattr(
        tensorrt_module, "refittable_weights", lambda library, path, component: tuple(component.initializers.values())
    )
    monkeypatch.setattr(graph_worker, "PackLauncher", launcher)
    return machine
