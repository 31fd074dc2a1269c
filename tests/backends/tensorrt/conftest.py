"""Fixtures of the TensorRT tests: the library where it is installed, and graphs for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill_rt.backends.tensorrt.library import Library, load_library
from distill_rt.core.artifacts import Component
from distill_rt.core.optional import installed


@pytest.fixture(scope="session")
def rtx() -> Library:
    """TensorRT-RTX, which builds without a GPU."""
    if not installed("tensorrt_rtx"):
        pytest.skip(
            "package 'tensorrt_rtx' is not installed: real builds are not tested (pip install 'distill-rt[tensorrt-rtx]')"
        )
    return load_library("tensorrt_rtx")


@pytest.fixture(scope="session")
def digits(rtx: Library, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the digits network."""
    from tensorrt_networks import digits_bundle

    return digits_bundle(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def text_unet(rtx: Library, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Component]:
    """A text-conditioned UNet, batch and size free."""
    from tensorrt_networks import text_unet

    return text_unet(tmp_path_factory.mktemp("text"))
