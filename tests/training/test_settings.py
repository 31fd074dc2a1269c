"""``--set name=value`` for every type of field, and one clear line for everything else."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import pytest

from distill_rt.core.errors import UsageError
from distill_rt.training.methods import METHODS, Consistency, Denoising
from distill_rt.training.settings import apply_settings


@dataclass(frozen=True, kw_only=True)
class Config:
    count: int = 1
    rate: float = 0.5
    flag: bool = False
    word: str = "a"
    choice: Literal["red", "blue"] = "red"

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count must not be negative, got {self.count}")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("count", "3", 3),
        ("count", "-0", 0),
        ("count", " 7 ", 7),
        ("rate", "0.25", 0.25),
        ("rate", "1e-3", 1e-3),
        ("rate", "2", 2.0),
        ("flag", "true", True),
        ("flag", "false", False),
        ("word", "", ""),
        ("word", "3=4", "3=4"),
        ("choice", "blue", "blue"),
    ],
)
def test_every_type_is_parsed(name, text, value):
    changed = apply_settings(Config(), {name: text})
    assert getattr(changed, name) == value
    assert type(getattr(changed, name)) is type(getattr(Config(), name))
    assert Config() == Config()


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("count", "3.0", "an integer"),
        ("count", "many", "an integer"),
        ("count", "", "an integer"),
        ("count", "9" * 5000, "an integer"),
        ("count", "-1", "must not be negative"),
        ("rate", "fast", "a finite number"),
        ("rate", "", "a finite number"),
        ("rate", "nan", "a finite number"),
        ("rate", "inf", "a finite number"),
        ("rate", "-1e999", "a finite number"),
        ("flag", "yes", "true or false"),
        ("flag", "True", "true or false"),
        ("flag", "1", "true or false"),
        ("choice", "green", "one of red, blue"),
        ("choice", "", "one of red, blue"),
        ("choice", "green\n" * 100, "one of red, blue"),
    ],
)
def test_other_text_is_refused_in_one_line(name, text, what):
    with pytest.raises(UsageError) as caught:
        apply_settings(Config(), {name: text})
    assert caught.value.code == "setting-invalid"
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["", "Count", "name", "count ", "__class__"])
def test_an_unknown_setting_lists_those_that_exist(name):
    with pytest.raises(UsageError) as caught:
        apply_settings(Config(), {"count": "3", name: "1"})
    assert caught.value.code == "setting-unknown"
    assert "count, rate, flag, word, choice" in caught.value.hint


@pytest.mark.parametrize("method", [Denoising, *METHODS.values()])
def test_every_field_of_every_method_can_be_set(method):
    config = method()
    for field in dataclasses.fields(config):
        assert apply_settings(config, {field.name: str(getattr(config, field.name))}) == config


def test_settings_that_belong_together_are_applied_at_once():
    changed = apply_settings(METHODS["progressive"](), {"steps": "3", "start_steps": "12"})
    assert (changed.steps, changed.start_steps) == (3, 12)
    with pytest.raises(UsageError, match="times 2, 4, 8") as caught:
        apply_settings(METHODS["progressive"](), {"steps": "3"})
    assert caught.value.code == "steps-not-halving"


def test_choices_of_a_method():
    assert apply_settings(Consistency(), {"pairs": "ect"}).pairs == "ect"
    with pytest.raises(UsageError, match="pairs must be one of fixed, ect, got 'karras'"):
        apply_settings(Consistency(), {"pairs": "karras"})
    assert math.isclose(apply_settings(Denoising(), {"drop": "0.25"}).drop, 0.25)
