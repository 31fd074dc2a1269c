"""What --data may say, and what of it a contract gets."""

from __future__ import annotations

import dataclasses

import pytest

from distill_rt.core.condition import Condition
from distill_rt.core.errors import UsageError
from distill_rt.core.spec import StudentSpec
from distill_rt.training.data import Grid25, Shapes, TensorDataset, open_source
from distill_rt.training.data.source import check_classes, recorded_source
from distill_rt.training.draws import Draws
from distill_rt.training.recipes import RECIPES


def contract(recipe: str, **changes: object) -> StudentSpec:
    return dataclasses.replace(RECIPES[recipe]().spec, **changes)


def test_data_sets_of_ours_by_name():
    assert isinstance(open_source("digits", contract("digits-teacher")).dataset, TensorDataset)
    assert isinstance(open_source("grid25", contract("grid25-teacher")).dataset, Grid25)
    source = open_source("shapes", contract("shapes-teacher"))
    assert source.identity == "shapes"
    assert source.class_names == ()
    assert source.notes == []


def test_a_contract_gets_what_it_takes_and_nothing_else():
    draws = Draws(0, 0, 8)
    whole = Shapes().batch(draws)
    plain = open_source("shapes", contract("shapes-unlabelled-teacher")).dataset
    assert (plain.num_classes, plain.has_captions, plain.sample_shape) == (0, False, (3, 32, 32))
    batch = plain.batch(draws)
    assert (batch.label_B, batch.captions_B) == (None, None)
    assert batch.x0_BCHW.equal(whole.x0_BCHW)
    labelled = open_source("shapes", contract("shapes-teacher")).dataset
    assert (labelled.num_classes, labelled.has_captions) == (24, False)
    batch = labelled.batch(draws)
    assert batch.captions_B is None
    assert batch.label_B is not None
    assert whole.label_B is not None
    assert batch.label_B.equal(whole.label_B)
    text = Condition(kind="text", num_tokens=8, vocab_size=40, width=4)
    spec = contract("shapes-unlabelled-teacher", condition=text, text_encoder=contract("digits-teacher").networks[0])
    batch = open_source("shapes", spec).dataset.batch(draws)
    assert batch.label_B is None
    assert batch.captions_B == whole.captions_B


@pytest.mark.parametrize(
    ("what", "recipe", "code", "said"),
    [
        ("mnist", "digits-teacher", "dataset-unknown", "hf:NAME"),
        ("", "digits-teacher", "dataset-unknown", "hf:NAME"),
        (
            "digits",
            "shapes-teacher",
            "data-shape",
            "samples of 1x8x8 (channels x height x width), the student's are 3x32x32",
        ),
        ("grid25", "grid25-labelled-teacher", "data-labels", "has no labels, which the student takes"),
    ],
)
def test_what_does_not_fit(what, recipe, code, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        open_source(what, contract(recipe))
    assert caught.value.code == code
    assert said in str(caught.value)


def test_names_of_ours_come_before_directories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert open_source("digits", contract("digits-teacher")).identity == "digits"
    with pytest.raises(UsageError, match="there are no images in digits"):
        open_source("./digits", contract("digits-teacher"))


def test_classes_must_be_those_of_the_teacher(greys):
    two = contract("digits-teacher", condition=Condition(kind="label", num_classes=2, null_label=2))
    source = open_source(str(greys), two)
    check_classes(source, two, None)
    check_classes(source, two, ["dark", "light"])
    with pytest.raises(UsageError, match="the data have 2 classes, the student takes 10"):
        check_classes(source, contract("digits-teacher"), None)
    with pytest.raises(UsageError, match="'light' stands where it learned 'pale'"):
        check_classes(source, two, ["dark", "pale"])


def test_only_data_of_ours_can_be_found_again(greys):
    identity = open_source(str(greys), contract("digits-teacher")).identity
    assert str(greys) not in identity
    assert recorded_source(identity) is None
    assert recorded_source("hf:cifar10:0123") is None
    assert recorded_source("digits") == "digits"
