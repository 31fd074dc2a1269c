"""Checkpoints: everything comes back bit for bit, and nothing else is taken for one."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from distill_rt.core.errors import ArtifactError, ResourceError, UsageError
from distill_rt.training.checkpoint import TrainState, read_head, restore_tensors, save_checkpoint
from distill_rt.training.copies import frozen_copy

CONFIG = {"method": "m", "settings": {"steps": 4, "rate": 0.1}, "data": "d", "teacher": None}


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    return net.to(memory_format=torch.channels_last)


def make_state(seed: int, *, average: bool = True, steps: int = 3) -> TrainState:
    student = network(seed)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.01, fused=True)
    state = TrainState(
        step=steps,
        networks={"student": student, "target": network(seed + 1)},
        average=frozen_copy(student) if average else None,
        optimizer=optimizer,
        running=0.1 + 0.2,
        losses=[(0, 1.0), (2, 0.1 + 0.2)],
    )
    for i in range(steps):
        step(state, i)
    return state


def step(state: TrainState, i: int) -> None:
    x = torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(i))
    state.optimizer.zero_grad()
    state.networks["student"](x).square().sum().backward()
    state.optimizer.step()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "checkpoint", make_state(0), CONFIG)
    return tmp_path / "checkpoint"


def refusal(path: Path, config: dict[str, Any] = CONFIG, code: str = "checkpoint-damaged") -> str:
    with pytest.raises(ArtifactError) as caught:
        read_head(path, config)
    assert caught.value.code == code
    assert "--force" in caught.value.hint
    assert "\n" not in str(caught.value)
    return caught.value.message


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("steps", [0, 3])
def test_everything_comes_back(tmp_path, average, steps):
    saved = make_state(0, average=average, steps=steps)
    save_checkpoint(tmp_path / "checkpoint", saved, CONFIG)
    head = read_head(tmp_path / "checkpoint", CONFIG)
    assert (head.step, head.running, head.losses) == (steps, saved.running, saved.losses)
    restored = make_state(5, average=average, steps=0)
    restore_tensors(tmp_path / "checkpoint", restored)
    a, b = saved.tensors(), restored.tensors()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_training_goes_on_as_if_it_had_not_stopped(path):
    """The optimiser is fused and the weights are channels-last: moments in another memory format would hit other weights."""
    whole, resumed = make_state(0), make_state(5, steps=0)
    restore_tensors(path, resumed)
    for parameter, slots in resumed.optimizer.state.items():
        assert slots["exp_avg"].stride() == parameter.stride()
    for i in range(3, 6):
        step(whole, i)
        step(resumed, i)
    expected, got = whole.tensors(), resumed.tensors()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_a_checkpoint_is_replaced(path):
    later = make_state(0, steps=4)
    save_checkpoint(path, later, CONFIG)
    assert read_head(path, CONFIG).step == 4
    assert list(path.parent.iterdir()) == [path]
    assert sorted(file.name for file in path.iterdir()) == ["checkpoint.json", "state.safetensors"]


def test_a_full_disk_leaves_the_old_one(path):
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(ResourceError) as caught:
            save_checkpoint(path, make_state(0, steps=4), CONFIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.code == "disk-full"
    assert read_head(path, CONFIG).step == 3
    assert list(path.parent.iterdir()) == [path]


def test_a_directory_of_something_else_is_spared(tmp_path):
    (tmp_path / "photo.jpg").write_text("mine")
    with pytest.raises(UsageError, match="not ours"):
        save_checkpoint(tmp_path, make_state(0), CONFIG)
    assert (tmp_path / "photo.jpg").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": "e"}, "data is 'd' there and 'e' now"),
        ({"method": "n", "settings": {}}, "method is 'm' there and 'n' now"),
        ({"settings": {"steps": 5, "rate": 0.1}}, "settings.steps is 4 there and 5 now"),
        ({"settings": {"steps": 4}}, "settings.rate is 0.1 there and 'absent' now"),
        ({"settings": {"steps": 4, "rate": 0.1, "a": 1}}, "settings.a is 'absent' there and 1 now"),
        ({"teacher": "abc"}, "teacher is None there and 'abc' now"),
        ({"data": "e", "method": "n", "teacher": "t"}, "data is"),
    ],
)
def test_another_configuration_is_named_by_its_first_difference(path, change, said):
    assert said in refusal(path, {**CONFIG, **change}, "checkpoint-config")


@pytest.mark.parametrize("name", ["checkpoint.json", "state.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "flipped", "directory"])
def test_damaged_files(path, name, damage):
    file = path / name
    data = bytearray(file.read_bytes())
    file.unlink()
    if damage == "directory":
        file.mkdir()
    elif damage != "missing":
        data[len(data) // 2] ^= 1
        file.write_bytes({"empty": b"", "truncated": data[: len(data) // 2], "flipped": data}[damage])
    assert "cannot be used" in refusal(path)


def test_every_number_of_the_head_is_guarded(path):
    """A wrong step would resume silently at another place of the schedule."""
    file = path / "checkpoint.json"
    head = json.loads(file.read_text())
    for changed in (
        {"step": 2},
        {"running": 0.5},
        {"losses": []},
        {"config": {**CONFIG, "data": "e"}},
        {"sha256": "0" * 64},
        {"extra": 1},
        {"digest": None},
    ):
        file.write_text(json.dumps({**head, **changed}))
        assert "has changed since it was written" in refusal(path)


@pytest.mark.parametrize(
    "text",
    ["[]", "null", "3", "{}", '{"format": "x"}', "\x80", "[" * 100_000, '{"format": "distill-rt/checkpoint"}'],
    ids=range(8),
)
def test_foreign_heads(path, text):
    (path / "checkpoint.json").write_bytes(text.encode("latin-1"))
    refusal(path)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_other_versions(path, version):
    file = path / "checkpoint.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": version}))
    assert f"has format version {version}" in refusal(path)


@pytest.mark.parametrize("change", ["missing", "shape", "unknown network", "no safetensors"])
def test_tensors_of_other_networks(path, change):
    """The same settings under a version of the code that builds another network."""
    file = path / "state.safetensors"
    state = load_file(file)
    if change == "missing":
        del state["network/student/0.weight"]
    elif change == "shape":
        state["average/0.weight"] = torch.zeros(1)
    elif change == "unknown network":
        state = {key.replace("network/target", "network/other"): value for key, value in state.items()}
    save_file(state, file)
    if change == "no safetensors":
        file.write_bytes(b"x" * 100)
    with pytest.raises(ArtifactError, match="cannot be used") as caught:
        restore_tensors(path, make_state(5, steps=0))
    assert caught.value.code == "checkpoint-damaged"
    assert "\n" not in str(caught.value)
