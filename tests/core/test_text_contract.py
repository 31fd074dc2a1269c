"""Contracts of students that take text or move latents: what they refuse, and what they are made of."""

from __future__ import annotations

import json
from typing import Any

import pytest
from contracts import CFG, contract, unconditional

from distill_rt.core import codec
from distill_rt.core.errors import UsageError
from distill_rt.core.spec import Condition, Decoder, NetworkSpec, StudentSpec

TEXT = Condition(kind="text", num_tokens=4, vocab_size=9, width=6, null_tokens=(7, 8, 8, 8))
ENCODER = NetworkSpec(kind="clip_text")
DECODER = Decoder(network=NetworkSpec(kind="autoencoder_tiny"), image_shape=(3, 16, 24))


def text_contract(**changes: Any) -> StudentSpec:
    return contract(**{"condition": TEXT, "text_encoder": ENCODER, "guidance": CFG, **changes})


def test_components_in_the_order_in_which_they_run() -> None:
    parts = text_contract(decoder=DECODER, sample_shape=(4, 2, 3)).components()
    assert {name: [(t.name, t.dtype, t.shape) for t in (*ins, *outs)] for name, (ins, outs) in parts.items()} == {
        "text_encoder": [("tokens", "int64", ("B", 4)), ("text", "float32", ("B", 4, 6))],
        "network0": [
            ("sample", "float32", ("B", 4, 2, 3)),
            ("time", "float32", ("B",)),
            ("text", "float32", ("B", 4, 6)),
            ("prediction", "float32", ("B", 4, 2, 3)),
        ],
        "decoder": [("latent", "float32", ("B", 4, 2, 3)), ("image", "float32", ("B", 3, 16, 24))],
    }
    assert list(parts) == ["text_encoder", "network0", "decoder"]


def test_a_label_student_is_its_networks() -> None:
    spec = contract()
    assert spec.components() == {"network0": (spec.network_inputs(), spec.network_outputs())}
    assert spec.image_shape == spec.sample_shape
    assert text_contract(decoder=DECODER).image_shape == (3, 16, 24)


def test_json_keeps_everything() -> None:
    spec = text_contract(decoder=DECODER)
    assert codec.from_json(StudentSpec, json.loads(json.dumps(codec.to_json(spec)))) == spec


@pytest.mark.parametrize(
    ("changes", "mentions"),
    [
        ({"condition": TEXT, "text_encoder": None}, "no text_encoder"),
        ({"condition": Condition(), "text_encoder": ENCODER, "guidance": contract().guidance}, "a text_encoder"),
        (
            {"condition": Condition(kind="text", num_tokens=4, vocab_size=9, width=6), "text_encoder": ENCODER},
            "null_tokens",
        ),
    ],
)
def test_parts_that_do_not_fit(changes: dict[str, Any], mentions: str) -> None:
    with pytest.raises(ValueError, match=mentions):
        text_contract(**changes)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "text"},
        {"kind": "text", "num_tokens": 4, "vocab_size": 9},
        {"kind": "text", "num_tokens": 4, "vocab_size": 9, "width": -1},
        {"kind": "none", "num_tokens": 4},
        {"kind": "label", "num_classes": 2, "width": 6},
        {"kind": "text", "num_tokens": 4, "vocab_size": 9, "width": 6, "null_label": 0},
        {"kind": "text", "num_tokens": 4, "vocab_size": 9, "width": 6, "null_tokens": (1, 2, 3)},
        {"kind": "text", "num_tokens": 4, "vocab_size": 9, "width": 6, "null_tokens": (1, 2, 3, 9)},
        {"kind": "label", "num_classes": 2, "null_tokens": (1,)},
    ],
)
def test_conditions_that_contradict_themselves(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"a {fields['kind']} condition|null_tokens"):
        Condition(**fields)


def test_an_image_has_a_shape() -> None:
    with pytest.raises(ValueError, match="positive"):
        Decoder(network=ENCODER, image_shape=(3, 0, 8))


def test_one_prompt_stands_for_all_images() -> None:
    spec = text_contract()
    assert spec.check_prompts(["a cat"], 3) == ["a cat"] * 3
    assert spec.check_prompts(["a", ""], 2) == ["a", ""]


@pytest.mark.parametrize(
    ("prompts", "num_images", "code"),
    [(None, 1, "prompt-missing"), ([], 2, "prompt-missing"), (["a", "b", "c"], 2, "prompt-count")],
)
def test_prompts_out_of_contract(prompts: list[str] | None, num_images: int, code: str) -> None:
    with pytest.raises(UsageError) as caught:
        text_contract().check_prompts(prompts, num_images)
    assert caught.value.code == code


def test_text_students_take_no_labels_and_label_students_no_text() -> None:
    with pytest.raises(UsageError, match="takes text and no labels") as caught:
        text_contract().check_labels([1], 1)
    assert "--prompt" in caught.value.hint
    assert text_contract().check_labels(None, 1) is None
    for spec in (contract(), unconditional()):
        with pytest.raises(UsageError) as caught:
            spec.check_prompts(["a cat"], 1)
        assert caught.value.code == "condition-not-in-contract"
        assert spec.check_prompts(None, 1) is None
