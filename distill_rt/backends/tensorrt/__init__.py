"""TensorRT and TensorRT-RTX in one code path: ONNX -> strongly typed network -> plan.

`capability.py` targets by compute capability, `library.py` which package and what it has, `log.py` what it says, `network.py`
parsing, `profiles.py` shapes, `builder.py` the build, `attention.py` what was fused, `plan.py` a plan and its description,
`refit.py` other weights in the same plan, `backend.py` the two backends.

A plan is executable code: it is deserialised only from an engine directory whose files match its manifest. Never load an engine
from a stranger.
"""
