"""Sections of `benchmarks/gpu_acceptance.py`: what a GPU is asked, one file each, run in a process of its own.

They need torch, triton and numpy; cuda-core, onnx, safetensors, pytest and the TensorRT packages are used where present, and a
section without its package says so instead of failing.
"""
