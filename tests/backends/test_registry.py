"""Targets by name, and what `auto` chooses."""

from __future__ import annotations

import pytest

from distill_rt.backends.onnxruntime import OnnxRuntime
from distill_rt.backends.openvino import OpenVINO
from distill_rt.backends.registry import BACKENDS, ON_REQUEST, Target, backend_for, resolve_target
from distill_rt.core.errors import TargetError, UsageError


@pytest.mark.parametrize("text", [*BACKENDS, *ON_REQUEST])
def test_every_registered_target_has_its_backend(text: str) -> None:
    target = Target.parse(text)
    backend = backend_for(target)
    assert str(target) == text
    assert f"{backend.name}:{backend.device}" == text


@pytest.mark.parametrize("text", ["", "openvino", "openvino:", "openvino:gpu", "rtx:sm89", "cpu", "OpenVINO:cpu"])
def test_an_unknown_target_lists_those_that_exist(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Target.parse(text)
    assert caught.value.code == "target-unknown"
    assert all(name in caught.value.message for name in [*BACKENDS, *ON_REQUEST, "auto"])


def test_auto_prefers_openvino_and_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(resolve_target("auto")[0]) == "openvino:cpu"
    monkeypatch.setattr(OpenVINO, "unavailable", lambda self: "package 'openvino' is not installed")
    target, backend = resolve_target("auto")
    assert str(target) == "onnxruntime:cpu"
    assert isinstance(backend, OnnxRuntime)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill_rt.backends.openvino.installed", lambda module: False)
    with pytest.raises(TargetError) as caught:
        resolve_target("openvino:cpu")
    assert caught.value.code == "target-unavailable"
    assert "package 'openvino' is not installed" in caught.value.message
    assert caught.value.hint == "pip install 'distill-rt[openvino]'"


def test_auto_without_any_backend_gives_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("openvino", "onnxruntime"):
        monkeypatch.setattr(f"distill_rt.backends.{module}.installed", lambda module: False)
    with pytest.raises(TargetError) as caught:
        resolve_target("auto")
    assert caught.value.code == "no-target"
    assert set(caught.value.details) == set(BACKENDS)
