"""Passes that change images, and what lets one into an engine: it must beat the same student with fewer steps."""
