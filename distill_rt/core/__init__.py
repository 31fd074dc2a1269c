"""Layer 0: what a few-step student *is*, in numpy alone. Imports nothing else of the project."""
