"""How good is a student? Distances to its teacher, baselines that it must beat, and controls that must fail."""
