"""Training on an imaginary GPU, which refuses what a real one does: every method ends with the processor's bits."""

import dataclasses

import pytest
import torch
from imaginary_device import CUDA, Far, imaginary_cuda
from torch import nn

from distill_rt.core.errors import UsageError
from distill_rt.models import build_network
from distill_rt.training.config import TrainConfig
from distill_rt.training.data import load_dataset
from distill_rt.training.device import choose_device
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.methods import METHODS, Denoising
from distill_rt.training.predictor import Teacher
from distill_rt.training.recipes import RECIPES
from distill_rt.training.run import train
from distill_rt.training.trainer import Trainer

QUICK = {
    "iterations": 3,
    "batch_size": 8,
    "num_pairs": 12,
    "teacher_steps": 2,
    "ode_steps": 2,
    "guidance_iterations": 2,
    "stage_iterations": 2,
    "last_iterations": 2,
    "first_iterations": 2,
    "distill_iterations": 2,
}


def quick(name):
    if name == "denoising":
        return Denoising(steps=3, batch_size=8)
    known = {field.name for field in dataclasses.fields(METHODS[name])}
    return METHODS[name](**{key: value for key, value in QUICK.items() if key in known})


def trained(method, device, **options):
    recipe = RECIPES["grid25-labelled-teacher"]().for_classes(5)
    torch.manual_seed(0)
    network = build_network(recipe.spec.networks[0])
    nn.init.normal_(network.backbone.out.weight, std=0.1)  # zero at the start, which would hide differences
    config = TrainConfig(method=method, identity={}, device=device, **options)
    trainer = Trainer(config, load_dataset("grid25-labelled"), Teacher(recipe.spec, network))
    for network in [*trainer.state.networks.values(), trainer.teacher.network]:
        assert all(weight.device == device for weight in [*network.parameters(), *network.buffers()])
    return trainer.run()[0]


@pytest.mark.parametrize("name", ["denoising", *METHODS])
def test_every_method_goes_where_its_networks_are(name):
    method = quick(name)
    near = trained(method, torch.device("cpu"))
    with imaginary_cuda() as device:
        far = trained(method, device)
    assert not any(isinstance(value, Far) for value in far.state_dict().values())
    for key, value in near.state_dict().items():
        assert torch.equal(far.state_dict()[key], value), key


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if hasattr(method, "searched")])
def test_searches_go_where_the_teacher_is(name):
    recipe = RECIPES["grid25-labelled-teacher"]().for_classes(5)
    torch.manual_seed(0)
    network = build_network(recipe.spec.networks[0])
    nn.init.normal_(network.backbone.out.weight, std=0.1)
    method, dataset = METHODS[name](steps=2, intervals=6, batch_size=8), load_dataset("grid25-labelled")
    near = method.searched(Teacher(recipe.spec, network), dataset, seed=0)
    with imaginary_cuda() as device:
        teacher = Teacher(recipe.spec, network)
        teacher.to(device)
        far = method.searched(teacher, dataset, seed=0)
    assert far == near != method


def test_a_run_there_goes_on_from_its_checkpoint(tmp_path):
    class Stop(BaseException):
        pass

    def stop(phase, done, total, loss):
        if done == 2:
            raise Stop

    def run(**options):
        config = TrainConfig(
            method=quick("denoising"), identity={}, device=CUDA, checkpoint=tmp_path / "c", checkpoint_every=1
        )
        recipe = RECIPES["grid25-labelled-teacher"]().for_classes(5)
        trainer = Trainer(config, load_dataset("grid25-labelled"), Teacher(recipe.spec, nn.Identity()))
        return trainer.run(**options)[0].state_dict()

    with imaginary_cuda():
        whole = run()
        with pytest.raises(Stop):
            run(progress=stop)
        resumed = run(resume=True)
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())


def test_draws_are_the_same_everywhere():
    here = Draws(1, 2, 4)
    with imaginary_cuda() as device:
        there = here.on(device)
        for a, b in (
            (here.normal((2,)), there.normal((2,))),
            (here.uniform(Purpose.TIME), there.uniform(Purpose.TIME)),
            (here.integers(0, 9, Purpose.INDEX), there.integers(0, 9, Purpose.INDEX)),
            (here.following().table_noise((2,), 3), there.following().table_noise((2,), 3)),
        ):
            assert b.device == CUDA
            assert torch.equal(a, b.cpu())


def test_the_imaginary_device_refuses_what_a_real_one_does():
    with imaginary_cuda() as device:
        near = torch.ones(2)
        far = near.to(device)
        assert (far + far * 2.0).device == CUDA
        with pytest.raises(RuntimeError, match="on one device"):
            far + near
        with pytest.raises(TypeError, match="numpy"):
            far.numpy()
        with pytest.raises(RuntimeError, match="on one device"):
            nn.Linear(2, 2).to(device)(near[None])


def test_the_choice(tmp_path, monkeypatch):
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(UsageError, match="no CUDA device") as caught:
        train("grid25-teacher", tmp_path / "t", device="cuda")
    assert caught.value.code == "no-device"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert choose_device("auto") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("cuda") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match="there are 2"):
        choose_device("auto")
