"""Kernels of the hot path on NVIDIA GPUs, in Triton; the bits of `distill_rt.kernels.reference`.

One file per kernel; `row_layout.py` is the row of coefficients that they read, `variants.py` what gets compiled,
`on_tensors.py` runs them on torch tensors (tests, benchmarks). A runtime does not import Triton: it launches the compiled
kernels of a pack (`distill_rt.kernels.aot` writes one, `distill_rt.kernels.pack` reads it).

Three rules hold for every kernel here.

* Whatever a user may change between two requests (coefficients, guidance, seeds, noise streams) is read from device
  memory, so a captured CUDA graph never freezes it. Sizes and strides are arguments: another shape is another graph.
* Arithmetic is float32, whatever the state and the network use, in the order of the reference and without fused
  multiply-add: results have the reference's bits (`guidance_factor`, a long sum, is the exception).
* Offsets of images are 64-bit, offsets inside of one image 32-bit: an image has at most 2**31 - 4096 elements.

Importing this package needs numpy only; the kernel files need triton.
"""
