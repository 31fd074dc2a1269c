"""Signals after OpenVINO models came and went: without care the next Ctrl-C is a segmentation fault."""

from __future__ import annotations

import subprocess
import sys

import pytest

from distill_rt.core.optional import installed

PROGRAM = """
import ctypes, signal, sys
import numpy as np
from distill_rt.backends.openvino import import_openvino
from distill_rt.backends.signal_stack import kept_signal_stack
ov = import_openvino()
from openvino import opset13 as ops

class Stack(ctypes.Structure):
    _fields_ = [("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

def pointer():
    stack = Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    return stack.pointer

def compiled():
    x = ops.parameter([1, 3, 32, 32], np.float32)
    w = ops.constant(np.ones((8, 3, 3, 3), np.float32))
    model = ov.Model([ops.convolution(x, w, [1, 1], [0, 0], [0, 0], [1, 1])], [x])
    return ov.Core().compile_model(model, "CPU", {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 2})

before = pointer()
models = []
for _ in range(3):
    with kept_signal_stack():
        models.append(compiled())
    assert pointer() == before
while models:
    models.pop(0)  # in the order in which they came
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("caught")
"""


@pytest.mark.skipif(not installed("openvino") or not sys.platform.startswith("linux"), reason="needs OpenVINO on Linux")
def test_ctrl_c_after_models_came_and_went() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "caught\n"
