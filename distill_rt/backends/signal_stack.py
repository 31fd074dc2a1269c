"""Keep the main thread's alternate signal stack as it was.

OpenVINO's processor plug-in gives the calling thread an alternate signal stack while a model exists, and puts back what it
found before when the model goes. With two models that go in the order in which they came, what is put back is memory that was
freed with the first: Python handles every signal on that stack, so the next Ctrl-C is a segmentation fault (docs/log.md).
Whoever creates a model here undoes that at once, so there is nothing wrong to put back.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator


class _Stack(ctypes.Structure):
    """``stack_t`` of Linux."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextlib.contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Restore the calling thread's alternate signal stack when the block ends (Linux; elsewhere nothing is done)."""
    if not sys.platform.startswith("linux"):
        yield
        return
    before = _Stack()
    libc = ctypes.CDLL(None)
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)
