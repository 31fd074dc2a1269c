"""Adapters from diffusers pipelines and modules to a student contract and weights."""
