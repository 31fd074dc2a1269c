"""Recipes: functions that return a full, frozen training configuration."""
