"""Comparing engines: the distances are those of the images, and only engines of one student are compared."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_engine import make_engine, tiny_spec

from distill_rt.bench import compare
from distill_rt.core.errors import UsageError
from distill_rt.core.spec import Guidance
from distill_rt.runtime.pipeline import Pipeline
from distill_rt.runtime.request import Request


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_engine(tmp_path_factory.mktemp("compare") / "engine", tiny_spec(), batches=(1,))


def test_distance_and_order(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second engine is made to answer one byte brighter in a quarter of its bytes."""
    generate, order = Pipeline.generate_request, []
    wrong: list[Pipeline] = []
    load = Pipeline.load.__func__  # type: ignore[attr-defined]

    def loading(cls: type[Pipeline], path: Path, **kwargs: Any) -> Pipeline:
        pipeline: Pipeline = load(cls, path, **kwargs)
        wrong.append(pipeline)
        return pipeline

    def answering(self: Pipeline, request: Request, **kwargs: Any) -> Any:
        result = generate(self, request, **kwargs)
        order.append((wrong.index(self), request.seed))
        if self is wrong[1]:
            images = result.images.copy()
            images[:, 0] += np.uint8(1)
            result = dataclasses.replace(result, images=images)
        return result

    monkeypatch.setattr(Pipeline, "load", classmethod(loading))
    monkeypatch.setattr(Pipeline, "generate_request", answering)
    report = compare.compare_engines([engine, engine], labels=(3,), seed=7, num_rounds=4, num_warmup=1, steps=2)
    same, other = report.variants
    assert (same.equal, same.relative_l2, same.psnr_db, same.speedup) == (1.0, 0.0, compare.PSNR_CAP_DB, 1.0)
    assert other.equal == 0.75
    assert other.psnr_db == pytest.approx(10 * np.log10(4 / (0.25 / 127.5**2)))
    assert order == [(0, 6), (1, 6), (1, 7), (0, 7), (0, 8), (1, 8), (1, 9), (0, 9), (0, 10), (1, 10)]
    assert (report.num_rounds, same.latency_ms.min > 0, same.steps, same.mode) == (4, True, 2, "step")


def test_other_students_are_refused(engine: Path, tmp_path: Path) -> None:
    stranger = make_engine(tmp_path / "stranger", tiny_spec(guidance=Guidance()), batches=(1,))
    with pytest.raises(UsageError, match="differ in guidance") as caught:
        compare.compare_engines([engine, stranger])
    assert caught.value.code == "engines-not-comparable"
