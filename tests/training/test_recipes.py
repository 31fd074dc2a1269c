"""Recipes: what they promise is what was measured, and they follow the classes of the data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill_rt.models import build_network
from distill_rt.training.data import open_source
from distill_rt.training.recipes import RECIPES

QUALITY = Path(__file__).parent.parent.parent / "benchmarks" / "results" / "quality.json"


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_figures_are_those_that_were_measured(name):
    recipe = RECIPES[name]()
    rows = [row for row in json.loads(QUALITY.read_text())["rows"] if not row["control"]]
    for figure in recipe.figures:
        measured = [
            row
            for row in rows
            if (row["dataset"], row["method"], row["nfe"]) == (recipe.dataset, figure.method, figure.nfe)
        ]
        assert measured, figure
        assert figure.c2st == pytest.approx(sum(row["c2st"] for row in measured) / len(measured), abs=0.005), figure
        assert figure.passed == all(row["passed"] for row in measured), figure


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_fits_its_data(name):
    recipe = RECIPES[name]()
    assert recipe.spec.name == name
    dataset = open_source(recipe.dataset, recipe.spec).dataset
    assert dataset.num_classes == recipe.spec.condition.num_classes
    assert recipe.for_classes(dataset.num_classes) is recipe


def test_a_recipe_follows_the_classes_of_the_data():
    spec = RECIPES["digits-teacher"]().for_classes(3).spec
    assert (spec.condition.num_classes, spec.condition.null_label) == (3, 3)
    assert build_network(spec.networks[0]).label.num_embeddings == 4
    plain = RECIPES["grid25-teacher"]()
    assert plain.for_classes(3) is plain, "nothing to ask for"
