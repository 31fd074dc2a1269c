"""Recipes: functions that return everything a teacher's training needs, as one frozen configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from distill_rt.training.recipes.base import Figure, Recipe
from distill_rt.training.recipes.digits import digits_teacher
from distill_rt.training.recipes.grid25 import grid25_labelled_teacher, grid25_teacher
from distill_rt.training.recipes.shapes import shapes_teacher, shapes_text_teacher, shapes_unlabelled_teacher

RECIPES: Mapping[str, Callable[[], Recipe]] = {
    "digits-teacher": digits_teacher,
    "grid25-teacher": grid25_teacher,
    "grid25-labelled-teacher": grid25_labelled_teacher,
    "shapes-teacher": shapes_teacher,
    "shapes-text-teacher": shapes_text_teacher,
    "shapes-unlabelled-teacher": shapes_unlabelled_teacher,
}

__all__ = ["RECIPES", "Figure", "Recipe"]
