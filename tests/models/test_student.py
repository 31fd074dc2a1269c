"""The student directory: what is saved is loaded, and everything else is refused in one line."""

from __future__ import annotations

import dataclasses
import itertools
import json
import resource
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts import EMBEDDED, LABELLED, table
from safetensors.torch import load_file, save, save_file
from tiny_networks import CONFIGS, make_contract, make_inputs, make_network

from distill_rt.core import codec
from distill_rt.core.artifacts import StudentBody
from distill_rt.core.errors import ArtifactError, ResourceError, UsageError
from distill_rt.core.manifest import write_manifest
from distill_rt.core.spec import Condition, NetworkSpec, StudentSpec
from distill_rt.core.table import Row, StepTable
from distill_rt.models import Student, build_network, load_student, save_student


@pytest.fixture
def spec() -> StudentSpec:
    return make_contract("mlp", guidance=True)


@pytest.fixture
def path(tmp_path: Path, spec: StudentSpec) -> Path:
    save_student(tmp_path / "student", spec, [make_network(spec)])
    return tmp_path / "student"


def refusal(path: Path, code: str) -> str:
    with pytest.raises(ArtifactError) as caught:
        load_student(path)
    error = caught.value
    assert error.code == code, str(error)
    assert error.exit_code == 3
    assert error.hint
    assert "\n" not in str(error)
    return error.message


def remake(path: Path, body: Any) -> None:
    """Write the manifest anew, so that it fits whatever files stand there now."""
    (path / "student.json").unlink(missing_ok=True)
    write_manifest(path, "student", codec.to_json(body))


# -- the good way ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "guidance", "second_time"), [(False, False, False), (True, False, False), (True, True, True)]
)
def test_round_trip(tmp_path, kind, label, guidance, second_time):
    spec = make_contract(kind, label=label, guidance=guidance, second_time=second_time)
    network = make_network(spec).requires_grad_(False)  # torch rounds differently where gradients may follow
    digest = save_student(tmp_path / "student", spec, [network])
    loaded = load_student(tmp_path / "student")
    assert loaded.spec == spec
    assert loaded.digest == digest
    assert loaded.path == tmp_path / "student"
    (again,) = loaded.networks
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert network.state_dict().keys() == again.state_dict().keys()
    inputs = make_inputs(spec)
    with torch.no_grad():
        assert torch.equal(again(*inputs), network(*inputs))


def test_the_path_may_be_text(path):
    assert load_student(str(path)).digest == load_student(path).digest


def test_equal_content_has_an_equal_digest(tmp_path, spec):
    digests = [
        save_student(tmp_path / f"{i}", spec, [make_network(spec, seed=seed)]) for i, seed in enumerate((0, 0, 1))
    ]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]
    renamed = dataclasses.replace(spec, name="other")
    assert save_student(tmp_path / "renamed", renamed, [make_network(spec)]) != digests[0]


def test_a_student_that_was_loaded_and_saved_is_the_same(path, tmp_path):
    loaded = load_student(path)
    assert save_student(tmp_path / "copy", loaded.spec, loaded.networks) == loaded.digest


def test_several_networks_keep_their_places(tmp_path):
    base = make_contract("mlp")
    spec = dataclasses.replace(
        base,
        networks=base.networks * 2,
        plans={2: StepTable(rows=(Row(net_id=1), Row(net_id=0)))},
        default_steps=2,
    )
    networks = [make_network(base, seed=seed) for seed in (0, 1)]
    save_student(tmp_path / "student", spec, networks)
    inputs = make_inputs(spec)
    with torch.no_grad():
        for loaded, network in zip(load_student(tmp_path / "student").networks, networks, strict=True):
            assert torch.equal(loaded(*inputs), network(*inputs))
    with pytest.raises(ValueError, match="names 2 networks, got 1"):
        save_student(tmp_path / "other", spec, networks[:1])


def test_loading_does_not_depend_on_the_random_state(path, spec):
    """Networks are built with random weights before the real ones come."""
    outputs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        outputs.append(load_student(path).networks[0](*make_inputs(spec)))
    assert torch.equal(*outputs)


# -- writing --------------------------------------------------------------------------------------------------------------


def test_an_existing_student_is_replaced_only_with_force(path, spec):
    with pytest.raises(UsageError, match="exists already"):
        save_student(path, spec, [make_network(spec, seed=1)])
    before = load_student(path).digest
    assert save_student(path, spec, [make_network(spec, seed=1)], force=True) != before
    assert load_student(path).digest != before


def test_force_spares_other_directories(tmp_path, spec):
    (tmp_path / "photo.jpg").write_text("mine")
    with pytest.raises(UsageError, match="not ours"):
        save_student(tmp_path, spec, [make_network(spec)], force=True)
    assert (tmp_path / "photo.jpg").exists()


def test_a_full_disk_leaves_nothing(tmp_path, spec):
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        with pytest.raises(ResourceError) as caught:
            save_student(tmp_path / "student", spec, [make_network(spec)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.code == "disk-full"
    assert list(tmp_path.iterdir()) == []


def test_a_reader_beside_a_writer_never_gets_a_mixture(tmp_path):
    """It always loads one of the students that were written, never the contract of one and the weights of another."""
    spec = make_contract("mlp")
    networks = [make_network(spec, seed=seed) for seed in range(4)]
    digests = [save_student(tmp_path / f"{i}", spec, [network]) for i, network in enumerate(networks)]
    shared, loaded, stop = tmp_path / "shared", [], threading.Event()
    save_student(shared, spec, [networks[0]])

    def read() -> None:
        while not stop.is_set():
            loaded.append(load_student(shared))

    reader = threading.Thread(target=read)
    reader.start()
    for i in itertools.count(1):
        save_student(shared, spec, [networks[i % 4]], force=True)
        if (i >= 20 and len({student.digest for student in loaded}) > 1) or not reader.is_alive():
            break
    assert reader.is_alive(), "it was refused a student that was whole all the time"
    stop.set()
    reader.join()
    inputs = make_inputs(spec)
    for student in loaded:
        assert torch.equal(student.networks[0](*inputs), networks[digests.index(student.digest)](*inputs))


# -- refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["student.json", "network0.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "longer"])
def test_damaged_files(path, name, damage):
    file = path / name
    data = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
        refusal(path, "artifact-foreign" if name == "student.json" else "artifact-damaged")
        return
    if damage == "truncated":
        data = data[: len(data) // 2]
    elif damage == "longer":
        data += b"x"
    else:
        data[-20] ^= 4
    file.write_bytes(data)
    assert name in refusal(path, "artifact-damaged")


@pytest.mark.parametrize("weights", [(), ("network0.safetensors", "network0.safetensors"), ("other.safetensors",)])
def test_weights_that_the_manifest_does_not_list(path, spec, weights):
    remake(path, StudentBody(spec=spec, weights=weights))
    if weights:
        (path / "other.safetensors").write_bytes((path / "network0.safetensors").read_bytes())  # there, but not listed
    assert "one weight file per network" in refusal(path, "artifact-damaged")


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 7, b"not safetensors at all", b"\xff" * 64, (10**6).to_bytes(8, "little") + b"{}", save({})[:-1]],
    ids=range(6),
)
def test_weights_that_are_no_safetensors(path, spec, data):
    (path / "network0.safetensors").write_bytes(data)
    remake(path, StudentBody(spec=spec, weights=("network0.safetensors",)))
    assert "does not fit the network" in refusal(path, "weights-mismatch")


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "empty"])
def test_weights_of_another_network(path, spec, change):
    file = path / "network0.safetensors"
    state = load_file(file)
    first = sorted(state)[0]
    if change == "missing":
        del state[first]
    elif change == "unknown":
        state["backbone.extra"] = torch.zeros(1)
    elif change == "shape":
        state[first] = torch.zeros(3, 3, 3)
    else:
        state = {}
    save_file(state, file)
    remake(path, StudentBody(spec=spec, weights=("network0.safetensors",)))
    message = refusal(path, "weights-mismatch")
    assert {"missing": first, "unknown": "backbone.extra", "shape": "size mismatch", "empty": "lacks"}[
        change
    ] in message


def test_an_unknown_network(path, spec):
    changed = dataclasses.replace(spec, networks=(NetworkSpec(kind="from-the-future"),))
    remake(path, StudentBody(spec=changed, weights=("network0.safetensors",)))
    assert "'from-the-future' is unknown" in refusal(path, "network-unknown")


@pytest.mark.parametrize(
    "changes",
    [
        {"guidance": EMBEDDED, "network": {"guidance": False}},
        {"network": {"guidance": True}},
        {"network": {"second_time": True}},
        {"plans": {4: table(4, second_time=True)}},
        {"condition": Condition(), "guidance": None},
        {"network": {"num_labels": 0}},
        {"network": {"num_labels": 10}},
        {"condition": dataclasses.replace(LABELLED, num_classes=20)},
        {"condition": dataclasses.replace(LABELLED, null_label=11)},
    ],
)
def test_a_contract_that_the_network_does_not_take(tmp_path, changes):
    """A guidance scale that goes nowhere, or a label beyond the embedding, must not wait for a request to show."""
    changes = dict(changes)
    config = {**CONFIGS["mlp"], "num_labels": 11, **changes.pop("network", {})}
    if changes.get("guidance", EMBEDDED) is None:
        changes["guidance"] = dataclasses.replace(EMBEDDED, mode="none")
    spec = make_contract(
        "mlp", **{"networks": (NetworkSpec(kind="mlp", config=config),), "default_steps": 4, **changes}
    )
    save_student(tmp_path / "student", spec, [build_network(spec.networks[0])])
    assert "the contract feeds the network" in refusal(tmp_path / "student", "network-inputs")


def test_an_edited_contract(path):
    """A wider range of guidance than it was distilled for, by hand."""
    manifest = path / "student.json"
    data = json.loads(manifest.read_text())
    data["body"]["spec"]["guidance"]["max"] = 40.0
    manifest.write_text(json.dumps(data))
    assert "has changed since it was written" in refusal(path, "artifact-damaged")


def test_a_student_is_frozen(path):
    student: Student = load_student(path)
    with pytest.raises(dataclasses.FrozenInstanceError):
        student.digest = "other"  # type: ignore[misc]
