"""List the recipes of `distill-rt train`: data, size, how long training takes, and what students of these teachers measured."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from distill_rt.cli.outcome import Outcome, table

if TYPE_CHECKING:
    from distill_rt.training.recipes import Recipe

EXTRA = "train"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> Outcome:
    from distill_rt.training.recipes import RECIPES

    recipes = {name: _describe(make()) for name, make in RECIPES.items()}
    return Outcome(data={"recipes": recipes}, text=_text(recipes))


def _describe(recipe: Recipe) -> dict[str, Any]:
    spec = recipe.spec
    return {
        "data": recipe.dataset,
        "sample_shape": list(spec.sample_shape),
        "condition": spec.condition.kind,
        "guidance": spec.guidance.mode,
        "method": recipe.method.name,
        "training_steps": sum(phase.iterations for phase in recipe.method.phases(spec)),
        "batch_size": recipe.method.batch_size,
        "minutes": recipe.minutes,
        "students": [{"method": f.method, "nfe": f.nfe, "c2st": f.c2st, "passed": f.passed} for f in recipe.figures],
    }


def _text(recipes: dict[str, dict[str, Any]]) -> str:
    head = ("recipe", "data", "shape", "condition", "steps x batch", "minutes")
    rows = [
        (
            name,
            r["data"],
            "x".join(map(str, r["sample_shape"])),
            r["condition"] + (", guided" if r["guidance"] != "none" else ""),
            f"{r['training_steps']} x {r['batch_size']}",
            "not measured" if r["minutes"] is None else f"{r['minutes']:g}",
        )
        for name, r in recipes.items()
    ]
    students = [
        (name, s["method"], s["nfe"], f"{s['c2st']:.3f}", "yes" if s["passed"] else "no")
        for name, r in recipes.items()
        for s in r["students"]
    ]
    measured = table(("teacher", "student by", "evaluations", "told apart (0.5: never)", "clears the bar"), students)
    return (
        f"{table(head, rows)}\n\n{measured}\n\n"
        "minutes: on two shared cores of an AMD EPYC. The bar: docs/methods.md. Other images: train RECIPE --data DIR"
    )
