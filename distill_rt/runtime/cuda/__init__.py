"""Requests on an NVIDIA GPU: one captured graph from seeds and labels (or tokens) to pixels. No torch, no Triton.

Not run on a GPU yet; tests/runtime/cuda runs all of it on a driver whose device memory is the host's.
"""
