"""Low-rank adapters: nothing at the start, low rank at the end, and a student that is as plain as any."""

import pytest
import torch
from tiny_networks import SHAPES, make_contract, make_inputs, make_network

from distill_rt.core import optional
from distill_rt.core.errors import TargetError, UsageError
from distill_rt.core.optional import installed
from distill_rt.models import load_student
from distill_rt.training.copies import frozen_copy
from distill_rt.training.lora import NEW_INPUTS, adapted, merge_into
from distill_rt.training.methods import LatentConsistency
from distill_rt.training.run import distill, train

needs_peft = pytest.mark.skipif(not installed("peft"), reason="needs peft")


@needs_peft
@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_what_adapters_learn_is_in_the_merged_weights(kind):
    spec = make_contract(kind, guidance=True)
    plain, inputs = make_network(spec), make_inputs(spec)
    start = {name: value.clone() for name, value in plain.state_dict().items()}
    network = adapted(frozen_copy(plain), 2)
    torch.testing.assert_close(network(*inputs), plain(*inputs), rtol=1e-5, atol=1e-6)
    trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
    assert all(".lora_" in name or name.startswith(NEW_INPUTS) for name in trained)
    assert any(name.startswith("guidance.") for name in trained)
    network(*inputs).square().mean().backward()
    assert all(value.grad is None for value in network.parameters() if not value.requires_grad)
    torch.manual_seed(1)
    with torch.no_grad():
        for value in trained.values():
            value += 0.1 * torch.randn_like(value)
    merge_into(plain, network)
    assert plain.state_dict().keys() == start.keys()
    assert (network(*inputs) - make_network(spec)(*inputs)).abs().max() > 1e-2
    torch.testing.assert_close(plain(*inputs), network(*inputs), rtol=1e-4, atol=1e-4)
    for name, value in plain.state_dict().items():
        change = value - start[name]
        if value.ndim == 2 and not name.startswith((*NEW_INPUTS, "label.")):
            assert torch.linalg.matrix_rank(change.double(), rtol=1e-4) <= 2
        elif not name.startswith(NEW_INPUTS) and value.ndim < 2:
            assert not change.any(), f"{name} has no adapter"


@needs_peft
def test_a_student_of_adapters_is_a_plain_student(tmp_path):
    train("grid25-labelled-teacher", tmp_path / "teacher", settings={"steps": "40", "batch_size": "32"})
    settings = {"iterations": "6", "batch_size": "16", "lora_rank": "2", "ema_decay": "0"}
    made = distill("lcm", tmp_path / "teacher", tmp_path / "student", steps=2, settings=settings)
    teacher, student = load_student(tmp_path / "teacher"), load_student(tmp_path / "student")
    theirs, ours = teacher.networks[0].state_dict(), student.networks[0].state_dict()
    assert {name for name in ours if not name.startswith(NEW_INPUTS)} == set(theirs)
    changed = {name for name in theirs if not torch.equal(ours[name], theirs[name])}
    assert "backbone.blocks.0.first.weight" in changed
    assert not any(name.endswith(".bias") or name == "label.weight" for name in changed)
    for name in changed:
        assert torch.linalg.matrix_rank((ours[name] - theirs[name]).double(), rtol=1e-4) <= 2
    assert ours["guidance.out.weight"].any(), "an input that the teacher lacks trains whole"

    class Stop(BaseException):
        pass

    def stop(name, done, total, loss):
        if done == 4:
            raise Stop

    with pytest.raises(Stop):
        distill(
            "lcm",
            tmp_path / "teacher",
            tmp_path / "again",
            steps=2,
            settings=settings,
            checkpoint_every=3,
            progress=stop,
        )
    again = distill("lcm", tmp_path / "teacher", tmp_path / "again", steps=2, settings=settings, resume=True)
    assert again["digest"] == made["digest"]


def test_without_peft_one_line_names_the_extra(tmp_path, monkeypatch):
    train("grid25-teacher", tmp_path / "teacher", settings={"steps": "2", "batch_size": "8"})

    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(optional.importlib, "import_module", absent)
    monkeypatch.setattr(optional.importlib.util, "find_spec", lambda name: None)
    for dry_run in (True, False):
        with pytest.raises(TargetError, match="peft") as caught:
            distill("lcm", tmp_path / "teacher", tmp_path / "s", settings={"lora_rank": "4"}, dry_run=dry_run)
        assert caught.value.hint == "pip install 'distill-rt[lora]'"
        assert not (tmp_path / "s").exists()
    monkeypatch.undo()
    with pytest.raises(UsageError, match="lora_rank"):
        LatentConsistency(lora_rank=-1)
