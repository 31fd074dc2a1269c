"""distill-rt: distil a diffusion teacher into a few-step student and run it with low latency."""

from __future__ import annotations

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("distill-rt")
    raise AttributeError(f"module 'distill_rt' has no attribute {name!r}")
