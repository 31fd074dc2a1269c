"""From an engine and a request to pixels; no torch.

Importing this costs numpy; the package of the engine's target is imported by `load`.
"""

from distill_rt.runtime.pipeline import Pipeline, load
from distill_rt.runtime.request import Request, Result, StepUpdate

__all__ = ["load", "Pipeline", "Request", "Result", "StepUpdate"]
