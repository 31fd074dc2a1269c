"""The contract: what a request may ask for, and the answer to everything else."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from contracts import CFG, contract, table, unconditional

from distill_rt.core.errors import UsageError
from distill_rt.core.spec import Condition, Guidance, NetworkSpec, StudentSpec
from distill_rt.core.table import Row, StepTable

SPEC = contract()


def refused(error: UsageError, code: str) -> str:
    """The message of a refusal, which is one line and says the way out."""
    assert error.code == code
    assert error.exit_code == 2
    assert error.hint
    assert "\n" not in str(error)
    return str(error)


# -- steps ----------------------------------------------------------------------------------------------------------------


def test_steps_of_the_contract():
    assert SPEC.steps == (1, 2, 4)
    assert [SPEC.check_steps(n) for n in (1, 2, 4, np.int64(2), None)] == [1, 2, 4, 2, 4]
    assert type(SPEC.check_steps(np.int64(2))) is int


@pytest.mark.parametrize(
    "steps", [7, 0, -4, 3, 5, 10**30, True, 4.0, "4", math.nan, math.inf, [4], (1, 2), {}, b"4", "4\n"]
)
def test_steps_outside_of_the_contract(steps):
    with pytest.raises(UsageError) as caught:
        SPEC.check_steps(steps)
    message = refused(caught.value, "steps-not-in-contract")
    assert f"steps={steps!r}" in message
    assert "1, 2 or 4 steps" in message
    assert "use steps=4" in message
    assert caught.value.details == {"allowed": [1, 2, 4]}


def test_a_single_plan_reads_well():
    with pytest.raises(UsageError, match="distilled for 4 steps"):
        contract(plans={4: table(4)}).check_steps(7)


# -- guidance -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [SPEC, contract(guidance=CFG)])
@pytest.mark.parametrize("w", [1, 1.0, 2.5, 4.0, np.float32(2.5), np.int64(3), Fraction(5, 2)])
def test_guidance_of_the_contract(spec, w):
    assert spec.check_guidance(w) == float(w)
    assert type(spec.check_guidance(w)) is float
    assert spec.check_guidance(None) == 2.0


@pytest.mark.parametrize(
    "w",
    [
        "2\n",
        0.99,
        4.01,
        0,
        -1,
        math.nan,
        math.inf,
        -math.inf,
        True,
        "2",
        "x",
        [2.0],
        1j,
        pytest.param(10**400, id="huge"),
        np.float64("nan"),
        b"",
    ],
)
def test_guidance_outside_of_the_contract(w):
    with pytest.raises(UsageError) as caught:
        SPEC.check_guidance(w)
    message = refused(caught.value, "guidance-not-in-contract")
    assert "1 to 4" in message
    assert "2 is the default" in message
    assert caught.value.details == {"min": 1.0, "max": 4.0}


@pytest.mark.parametrize("w", [1.0, 2.0, 0, math.nan, "x"])
def test_guidance_for_a_student_without(w):
    assert unconditional().check_guidance(None) == 1.0
    with pytest.raises(UsageError) as caught:
        unconditional().check_guidance(w)
    assert "takes none" in refused(caught.value, "guidance-not-in-contract")


# -- labels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "num_images", "expected"),
    [
        ([3], 1, [3]),
        ([3], 4, [3, 3, 3, 3]),
        ([0, 9], 2, [0, 9]),
        ((0, 9, 5), 3, [0, 9, 5]),
        (np.array([1, 2]), 2, [1, 2]),
        (np.array([0]), 3, [0, 0, 0]),
        ([np.int64(7)], 1, [7]),
        (range(10), 10, list(range(10))),
        (3, 2, [3, 3]),
    ],
)
def test_labels_of_the_contract(labels, num_images, expected):
    checked = SPEC.check_labels(labels, num_images)
    assert checked == expected
    assert all(type(label) is int for label in checked)


@pytest.mark.parametrize(
    "label", [-1, 10, 10**30, True, np.True_, 3.5, 3.0, "3", "x", "", None, math.nan, math.inf, [3], b"3", "a\nb"]
)
@pytest.mark.parametrize("others", [[], [1, 2]])
def test_labels_outside_of_the_contract(label, others):
    with pytest.raises(UsageError) as caught:
        SPEC.check_labels([*others, label], len(others) + 1)
    message = refused(caught.value, "label-not-in-contract")
    assert "0 to 9" in message
    assert caught.value.details == {"min": 0, "max": 9}


def test_the_null_label_cannot_be_asked_for():
    with pytest.raises(UsageError, match="label 10 is outside"):
        SPEC.check_labels([10], 1)


@pytest.mark.parametrize("labels", ["33", b"33", 3.5])
def test_a_word_is_not_a_list_of_labels(labels):
    with pytest.raises(UsageError) as caught:
        SPEC.check_labels(labels, 2)
    refused(caught.value, "label-not-in-contract")


@pytest.mark.parametrize("labels", [None, [], (), np.array([], np.int64)])
def test_a_missing_label(labels):
    with pytest.raises(UsageError) as caught:
        SPEC.check_labels(labels, 1)
    assert "needs a label, 0 to 9" in refused(caught.value, "label-missing")


@pytest.mark.parametrize(("labels", "num_images"), [([1, 2], 1), ([1, 2], 3), ([1, 2, 3], 2), ([1, 2], 16)])
def test_a_wrong_count_of_labels(labels, num_images):
    with pytest.raises(UsageError) as caught:
        SPEC.check_labels(labels, num_images)
    assert f"{len(labels)} labels for {num_images} images" in refused(caught.value, "label-count")


@pytest.mark.parametrize("labels", [[3], [0], np.array([0]), ["x"], 0])
def test_labels_for_a_model_that_takes_none(labels):
    with pytest.raises(UsageError) as caught:
        unconditional().check_labels(labels, 1)
    assert "takes no condition" in refused(caught.value, "condition-not-in-contract")


@pytest.mark.parametrize("labels", [None, [], ()])
def test_no_labels_for_a_model_that_takes_none(labels):
    assert unconditional().check_labels(labels, 4) is None


# -- the contract itself --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"plans": {}}, "at least one plan"),
        ({"plans": {0: table(1)}, "default_steps": 0}, "1 step or more"),
        ({"plans": {-1: table(1), 4: table(4)}}, "1 step or more"),
        ({"default_steps": 3}, "not among the plans"),
        ({"sample_shape": (0, 8, 8)}, "positive"),
        ({"networks": ()}, "names network 0"),
        ({"plans": {4: StepTable(rows=(Row(net_id=1),))}}, "names network 1, but there are 1"),
        ({"guidance": CFG, "condition": Condition(kind="label", num_classes=3)}, "null_label"),
        ({"guidance": CFG, "condition": Condition()}, "null_label"),
    ],
)
def test_contracts_that_contradict_themselves(changes, what):
    with pytest.raises(ValueError, match=what):
        contract(**changes)


@pytest.mark.parametrize(
    "arguments",
    [
        {"kind": "label"},
        {"kind": "label", "num_classes": -3},
        {"kind": "none", "num_classes": 3},
        {"kind": "none", "num_classes": -1},
        {"kind": "none", "null_label": 0},
        {"kind": "label", "num_classes": 3, "null_label": -1},
    ],
)
def test_impossible_conditions(arguments):
    with pytest.raises(ValueError, match="condition cannot have"):
        Condition(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"mode": "cfg", "min": 2.0, "max": 1.0},
        {"mode": "cfg", "min": 1.0, "max": 4.0, "default": 5.0},
        {"mode": "cfg", "default": math.nan},
        {"mode": "cfg", "max": math.inf},
        {"mode": "cfg", "min": -math.inf},
        {"mode": "cfg", "rescale": 1.5},
        {"mode": "cfg", "rescale": math.nan},
        {"mode": "embedded", "rescale": 0.5},
    ],
)
def test_impossible_guidance(arguments):
    with pytest.raises(ValueError, match="guidance"):
        Guidance(**arguments)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["sample", "time", "label", "guidance"]),
        ({"guidance": CFG}, ["sample", "time", "label"]),
        ({"guidance": Guidance()}, ["sample", "time", "label"]),
        ({"guidance": Guidance(), "condition": Condition()}, ["sample", "time"]),
        ({"plans": {4: table(4, second_time=True)}}, ["sample", "time", "second_time", "label", "guidance"]),
    ],
)
def test_network_inputs(changes, names):
    spec: StudentSpec = contract(**changes)
    assert [tensor.name for tensor in spec.network_inputs()] == names
    assert all(tensor.shape[0] == "B" for tensor in (*spec.network_inputs(), *spec.network_outputs()))
    assert spec.network_outputs()[0].shape == ("B", *spec.sample_shape)
    assert spec.uses_second_time == ("second_time" in names)


def test_networks_are_data():
    assert NetworkSpec(kind="unet2d") == NetworkSpec(kind="unet2d", config={})
