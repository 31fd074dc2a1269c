"""ONNX graph -> torch module -> `torch.export` -> AOTInductor package: GPUs without TensorRT, and processors by the same code.

`backend.py` the targets, `settings.py` what is pinned, `toolchain.py` what a machine lacks to build, `graph/` the graph as a
torch module, `package.py` export and compilation, `programs.py` and `device_programs.py` running a package. torch is imported
in the last four only, once the target is chosen.

A package is executable code (a shared library): it is loaded only from an engine directory whose files match its manifest.
Never load an engine from a stranger.
"""
