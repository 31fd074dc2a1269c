"""Checking the files of an artifact before it is loaded: digests of blocks on all cores beside one digest for each file.

    pytest benchmarks/bench_verify.py --benchmark-only --benchmark-group-by=group

The files have the sizes of C10's engine in float32 and of SD-Turbo's in bfloat16; they lie in memory (page cache). `one-digest`
is a manifest without blocks: a core for each file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from distill_rt.core.manifest import Manifest, verify_files, write_manifest

MEGABYTES: Mapping[str, tuple[int, ...]] = {"c10": (141,), "sd-turbo": (1735, 681, 5)}


@pytest.fixture(scope="module", params=MEGABYTES)
def artifact(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path, Manifest]]:
    """Random bytes in files of these sizes; removed at once, because they are gigabytes."""
    directory = tmp_path_factory.mktemp("verify")
    rng = np.random.default_rng(0)
    for number, megabytes in enumerate(MEGABYTES[request.param]):
        with open(directory / f"{number}.bin", "wb") as file:
            for _ in range(megabytes):
                file.write(rng.bytes(10**6))
    yield request.param, directory, write_manifest(directory, "engine", {})
    for path in directory.iterdir():
        path.unlink()


def with_blocks(manifest: Manifest) -> Manifest:
    assert any(entry.blocks for entry in manifest.files)
    return manifest


def without_blocks(manifest: Manifest) -> Manifest:
    return replace(manifest, files=tuple(replace(entry, blocks=()) for entry in manifest.files))


@pytest.mark.parametrize("listing", [with_blocks, without_blocks], ids=["blocks", "one-digest"])
def test_verify(
    benchmark: BenchmarkFixture, artifact: tuple[str, Path, Manifest], listing: Callable[[Manifest], Manifest]
) -> None:
    name, directory, manifest = artifact
    benchmark.group = f"verify {name}"
    benchmark.pedantic(verify_files, (directory, listing(manifest)), rounds=7, warmup_rounds=1)
