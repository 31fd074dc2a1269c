"""Students with prompts: captions to embeddings, and methods that read them. `test_text_runs` has whole runs."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from distill_rt.core.errors import UsageError
from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.spec import NetworkSpec
from distill_rt.core.tokenizer import Tokenizer, word_tokenizer
from distill_rt.models import build_network
from distill_rt.training.config import TrainConfig
from distill_rt.training.data import Batch, Shapes
from distill_rt.training.data.shapes import WORDS, Scene
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.methods import METHODS, Denoising
from distill_rt.training.pairs import PairCache
from distill_rt.training.plans import uniform_times
from distill_rt.training.predictor import Conditions, Predictor, Teacher
from distill_rt.training.recipes import RECIPES
from distill_rt.training.student import draw_conditions, student_network
from distill_rt.training.text import EmbeddedCaptions, fresh_text
from distill_rt.training.trainer import Trainer

SMALL = {"sample_size": 8, "block_out_channels": [8, 8, 8], "norm_num_groups": 4, "attention_head_dim": 2}
NO_TEXT = {
    "no-second-time": {"ctm", "shortcut", "imm", "meanflow", "tdm"},
    "no-label-table": {"dice"},
    "cannot-be-smaller": {"feature_kd", "bk_sdm"},
    "no-classifier": {"rcfd"},
}
"""Refusals of methods that need what prompts have not, yet."""
READ_TEXT = sorted(set(METHODS) - set().union(*NO_TEXT.values()))
JUDGE_AT_ONCE: dict[str, dict[str, Any]] = {"ladd": {"judge_warmup": 0}}
"""Settings without which a first step moves a discriminator alone."""


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    """The recipe's contract with a small network, every weight drawn; its null embedding is one of its own."""
    spec = RECIPES["shapes-text-teacher"]().spec
    network = NetworkSpec(kind="unet2d_condition", config={**spec.networks[0].config, **SMALL})
    spec = dataclasses.replace(spec, sample_shape=(3, 8, 8), networks=(network,))
    torch.manual_seed(0)
    built = build_network(network)
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.2)
    return Teacher(spec, built, torch.randn(24, 64))


def batch_of(num: int) -> Batch:
    generator = torch.Generator().manual_seed(num)
    images = torch.randn(num, 3, 8, 8, generator=generator)
    return Batch(x0_BCHW=images, label_B=None, text_BLD=torch.randn(num, 24, 64, generator=generator))


# -- captions -------------------------------------------------------------------------------------------------------------


def test_every_caption_of_shapes_is_known_and_fits(tmp_path: Path) -> None:
    condition = RECIPES["shapes-text-teacher"]().spec.condition
    (tmp_path / "tokenizer.json").write_text(word_tokenizer(WORDS))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", condition)
    quarters = [q for number in (1, 2, 3, 4) for q in itertools.combinations(range(4), number)]
    captions = [
        Scene(kind=kind, colour=colour, quarters=q).caption
        for kind in range(4)
        for colour in range(6)
        for q in quarters
    ]
    assert len(set(captions)) == 4 * 6 * 15
    tokens = tokenizer(captions)
    assert not any(tokens.cut)
    assert not (tokens.ids == 0).any()
    assert len({tuple(row) for row in tokens.ids.tolist()}) == len(captions)
    assert (tokens.ids[:, -1] == 2).all()  # the longest ends with its end
    words = ["", "A RED  circle in the top left", "a red dragon in the top left"]
    empty, same, unknown = tokenizer(words).ids
    assert tuple(empty) == condition.null_tokens
    np.testing.assert_array_equal(same, tokenizer(["a red circle in the top left"]).ids[0])
    assert (unknown == 0).sum() == 1


def test_embeddings_are_frozen_different_and_those_of_the_seed() -> None:
    spec = RECIPES["shapes-text-teacher"]().spec
    captions = ["a red circle in the top left", "a red circle in the top right", "two blue crosses in the top left"]
    embedded = []
    for seed in (0, 0, 1):
        with fresh_text(spec, WORDS, seed=seed) as text:
            assert text is not None
            assert not any(parameter.requires_grad for parameter in text.encoder.parameters())
            together = text.embed(captions)
            assert torch.equal(together[1], text.embed(captions[1:])[0])
            embedded.append(together)
            assert torch.equal(text.null_LD, text.embed([""])[0])
            with pytest.raises(UsageError, match="'a red dragon'"):
                text.embed(["a red dragon"])
    assert embedded[0].shape == (3, 24, 64)
    assert torch.equal(embedded[0], embedded[1])
    assert not torch.equal(embedded[0], embedded[2])
    distance = torch.cdist(embedded[0].flatten(1), embedded[0].flatten(1)) / embedded[0][0].norm()
    assert distance[0, 1] > 0.05
    assert distance[0, 2] > distance[0, 1]
    with fresh_text(RECIPES["shapes-teacher"]().spec, (), seed=0) as nothing:
        assert nothing is None


def test_a_batch_carries_the_embeddings_of_its_own_captions() -> None:
    with fresh_text(RECIPES["shapes-text-teacher"]().spec, WORDS, seed=0) as text:
        assert text is not None
        dataset = EmbeddedCaptions(Shapes(), text)
        batch, plain = dataset.batch(Draws(0, 0, 4)), Shapes().batch(Draws(0, 0, 4))
        assert batch.captions_B == plain.captions_B
        assert torch.equal(batch.x0_BCHW, plain.x0_BCHW)
        assert plain.captions_B is not None
        assert batch.text_BLD is not None
        assert torch.equal(batch.text_BLD, text.embed(plain.captions_B))
        assert (dataset.sample_shape, dataset.has_captions) == ((3, 32, 32), True)


# -- identities -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READ_TEXT)
def test_a_new_student_is_exactly_its_conditional_teacher(teacher: Teacher, name: str) -> None:
    spec = METHODS[name]().contract(teacher.spec)
    student, batch = student_network(teacher, spec), batch_of(3)
    x, t = batch.x0_BCHW, torch.tensor([0.1, 0.5, 0.9])
    want = teacher.predictor.x0(x, t, Conditions(text_BLD=batch.text_BLD))
    for w in (1.0, 2.5):
        w_B = torch.full((3,), w) if spec.guidance.mode == "embedded" else None
        got = Predictor.of(spec, student).x0(x, t, Conditions(text_BLD=batch.text_BLD, w_B=w_B))
        plain = spec.parameterization == teacher.spec.parameterization
        assert torch.equal(got, want) if plain else got.shape == want.shape
    config = spec.networks[0].config
    assert ("time_cond_proj_dim" in config) == config.get("guidance", False) == (spec.guidance.mode == "embedded")


def test_guidance_of_one_is_the_conditional_and_of_zero_the_empty_prompt(teacher: Teacher) -> None:
    batch, t = batch_of(4), torch.rand(4)
    null = teacher.null_text_LD
    assert null is not None
    for w, text in ((1.0, batch.text_BLD), (0.0, null.expand(4, -1, -1))):
        guided = teacher.x0(batch.x0_BCHW, t, Conditions(text_BLD=batch.text_BLD, w_B=torch.full((4,), w)))
        plain = teacher.predictor.x0(batch.x0_BCHW, t, Conditions(text_BLD=text))
        torch.testing.assert_close(guided, plain, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="labels or prompts"):
        teacher.x0(batch.x0_BCHW, t, Conditions(w_B=torch.ones(4)))


@pytest.mark.parametrize(("drop", "text"), [(1.0, "null"), (0.0, "own")])
def test_captions_are_dropped_for_the_empty_prompt(teacher: Teacher, drop: float, text: str) -> None:
    batch, draws, seen = batch_of(6), Draws(0, 0, 6), []
    handle = teacher.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[2]))
    Denoising(drop=drop).losses(
        Denoising().phases(teacher.spec)[0], 0, {"student": teacher.network}, teacher, batch, draws
    )
    handle.remove()
    assert teacher.null_text_LD is not None
    want = batch.text_BLD if text == "own" else teacher.null_text_LD.expand(6, -1, -1)
    assert torch.equal(seen[0], want)


def test_conditions_of_a_batch(teacher: Teacher) -> None:
    batch, draws = batch_of(5), Draws(0, 0, 5)
    drawn = draw_conditions(teacher.spec, batch, draws)
    assert drawn.label_B is None
    assert drawn.text_BLD is batch.text_BLD
    assert drawn.w_B is not None
    assert 1.0 <= drawn.w_B.min() < drawn.w_B.max() <= 8.0


@pytest.mark.parametrize("name", sorted(set(READ_TEXT) - {"bespoke", "gits"}))  # which take no step
def test_a_step_of_every_method_reaches_what_reads_prompt_and_guidance(teacher: Teacher, name: str) -> None:
    """For methods in stages, the last."""
    method = METHODS[name](**JUDGE_AT_ONCE.get(name, {}))
    phase = method.phases(teacher.spec)[-1]
    networks = method.networks(teacher)
    method.begin(phase, networks)
    for part, parameter in networks.get("both", nn.Identity()).named_parameters():
        if "discriminator" in part:  # its last layers start at zero, and so would the gradient that it gives
            nn.init.normal_(parameter, std=0.2)
    draws = Draws(0, phase.start, 4)
    losses = method.losses(phase, phase.start, networks, teacher, batch_of(4), draws)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(torch.isfinite(value) for value in losses.values())
    student = networks["student"]
    read = [
        name for name, p in student.named_parameters() if "attn2.to_v" in name and p.grad is not None and p.grad.any()
    ]
    assert read
    if method.contract(teacher.spec).guidance.mode == "embedded":
        gradient = student.get_parameter("backbone.time_embedding.cond_proj.weight").grad
        assert gradient is not None
        assert gradient.any()


def test_pairs_keep_their_prompts(teacher: Teacher) -> None:
    """Of guidance by two evaluations too: a kept image is the one that its kept noise, prompt and scale give."""
    table, cache = ddim(teacher.process, teacher.spec.parameterization, uniform_times(2)), PairCache(teacher.spec, 6)
    fresh = cache.next(teacher, table, batch_of(6), Draws(0, 0, 6))
    assert fresh.conditions.text_BLD is not None
    kept = PairCache(teacher.spec, 6)
    kept.load_state_dict(cache.state_dict())
    drawn = kept.next(Teacher(teacher.spec, nn.Identity()), table, batch_of(3), Draws(0, 1, 6))
    x = float(teacher.process.init_scale()) * drawn.z_BCHW
    for t, s in ((1.0, 0.5), (0.5, 0.0)):
        x = teacher.step(x, torch.full((6,), t), torch.full((6,), s), drawn.conditions)
    torch.testing.assert_close(x, drawn.x0_BCHW, rtol=1e-3, atol=1e-3)
    assert {row.sum().item() for row in drawn.conditions.text_BLD} <= {
        row.sum().item() for row in fresh.conditions.text_BLD
    }


@pytest.mark.parametrize(("code", "name"), [(code, name) for code, names in NO_TEXT.items() for name in sorted(names)])
def test_methods_that_cannot_feed_prompts_say_so(teacher: Teacher, code: str, name: str) -> None:
    method = METHODS[name]()

    def begin() -> None:
        method.phases(teacher.spec)
        method.contract(teacher.spec)
        method.networks(teacher)

    with pytest.raises(UsageError) as caught:
        begin()
    assert caught.value.code == code
    assert caught.value.hint


class Tinted:
    """Grey images whose caption says how bright they are."""

    sample_shape, num_classes, has_captions = (3, 8, 8), 0, True
    captions: ClassVar = {"a white square in the top left": 0.5, "a blue square in the top left": -0.5}

    def batch(self, draws: Draws) -> Batch:
        names = [list(self.captions)[i] for i in draws.integers(0, 2, Purpose.INDEX).tolist()]
        x0 = torch.tensor([self.captions[name] for name in names])[:, None, None, None].expand(-1, 3, 8, 8)
        return Batch(x0_BCHW=x0.contiguous(), label_B=None, captions_B=tuple(names))


def test_one_word_decides_the_image(teacher: Teacher) -> None:
    """From noise alone the denoiser must answer what the caption says, and the mean of both to the empty prompt; all
    other words are the same."""
    with fresh_text(teacher.spec, WORDS, seed=0) as text:
        assert text is not None
        untaught = Teacher(teacher.spec, nn.Identity(), text.null_LD)
        method = Denoising(steps=150, batch_size=16, drop=0.2, peak_learning_rate=4e-3, warmup=20, ema_decay=0.95)
        trainer = Trainer(TrainConfig(method=method, identity={}), EmbeddedCaptions(Tinted(), text), untaught)
        network, _ = trainer.run()
        noise, t_B = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((16,), 0.98)
        predictor = Predictor.of(teacher.spec, network)
        for caption, value in {**Tinted.captions, "": 0.0}.items():
            text_BLD = text.embed([caption]).expand(16, -1, -1)
            with torch.no_grad():
                x0 = predictor.x0(noise, t_B, Conditions(text_BLD=text_BLD))
            assert abs(x0.mean().item() - value) < 0.2, caption


# -- the walk -------------------------------------------------------------------------------------------------------------
