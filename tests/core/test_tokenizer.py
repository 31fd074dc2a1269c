"""The tokenizer against transformers' own, and files that do not belong to a contract."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_text import NUM_TOKENS, hf_tokens, make_tokenizer, text_spec

from distill_rt.core.condition import Condition
from distill_rt.core.errors import ArtifactError
from distill_rt.core.tokenizer import Tokenizer

PROMPTS = ["the red cat on the dog", "", "  The   RED\tcat ", "dog" * 20, "café, 3 × 4!", "cat 猫"]


@pytest.fixture(scope="module")
def original() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="module")
def condition(original: Any) -> Condition:
    return text_spec(original).condition


@pytest.fixture
def file(original: Any, tmp_path: Path) -> Path:
    original.save_pretrained(tmp_path)
    return tmp_path / "tokenizer.json"


def test_equals_transformers(original: Any, condition: Condition, file: Path) -> None:
    tokens = Tokenizer(file, condition)(PROMPTS)
    assert tokens.ids.dtype == np.int64
    np.testing.assert_array_equal(tokens.ids, hf_tokens(original, PROMPTS))


def test_what_does_not_fit_is_returned(condition: Condition, file: Path) -> None:
    tokenizer = Tokenizer(file, condition)
    words = ["the", "red", "cat", "on", "the", "dog", "the", "cat", "on", "the", "red", "dog"]
    fits = NUM_TOKENS - 2  # start and end
    assert tokenizer([" ".join(words[:fits])]).cut == ("",)
    assert tokenizer([" ".join(words), "cat"]).cut == (" ".join(words[fits:]), "")


def test_the_same_prompt_again_gives_the_same_tokens(condition: Condition, file: Path) -> None:
    tokenizer = Tokenizer(file, condition)
    np.testing.assert_array_equal(tokenizer(PROMPTS).ids, tokenizer(PROMPTS[::-1]).ids[::-1])


def test_padding_of_the_file_comes_before_that_of_the_contract(condition: Condition, file: Path) -> None:
    content = json.loads(file.read_text())
    content["padding"] = {
        "strategy": "BatchLongest",
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 3,
        "pad_type_id": 0,
        "pad_token": "x",
    }
    file.write_text(json.dumps(content))
    ids = Tokenizer(file, dataclasses.replace(condition, null_tokens=None))(["cat"]).ids
    assert ids[0, 3:].tolist() == [3] * (NUM_TOKENS - 3)


@pytest.mark.parametrize(
    ("changes", "mentions"),
    [
        ({"null_tokens": None}, "what shorter prompts are padded with"),
        ({"null_tokens": (1,) * NUM_TOKENS}, "other tokens of the empty prompt"),
        ({"num_tokens": NUM_TOKENS - 1, "null_tokens": (0,) * (NUM_TOKENS - 1)}, "other tokens of the empty prompt"),
    ],
)
def test_not_the_tokenizer_of_this_contract(
    changes: dict[str, Any], mentions: str, condition: Condition, file: Path
) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"padding": None}))  # transformers saves what it was last called with
    with pytest.raises(ArtifactError, match=mentions) as caught:
        Tokenizer(file, dataclasses.replace(condition, **changes))
    assert caught.value.code == "tokenizer-mismatch"


def test_tokens_beyond_the_vocabulary(condition: Condition, file: Path) -> None:
    content = json.loads(file.read_text())
    content["added_tokens"].append(content["added_tokens"][0] | {"id": condition.vocab_size + 5, "content": "<extra>"})
    content["model"]["vocab"]["<extra>"] = condition.vocab_size + 5
    file.write_text(json.dumps(content))
    tokenizer = Tokenizer(file, condition)
    with pytest.raises(ArtifactError, match=f"tokens up to {condition.vocab_size + 5}"):
        tokenizer(["cat <extra>"])


@pytest.mark.parametrize("content", ["", "{}", "not json"])
def test_a_file_that_is_none(content: str, condition: Condition, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ArtifactError, match="cannot be read"):
        Tokenizer(tmp_path / "tokenizer.json", condition)
