"""Which worker serves an engine: by its mode, and by where its programs run."""

from __future__ import annotations

from distill_rt.backends.engine import Engine
from distill_rt.runtime.worker import Worker


def open_worker(engine: Engine, batch: int, *, capture: bool = True) -> Worker:
    """Load one compiled batch of an engine.

    Args:
        capture: on a GPU, capture every plan as one graph; False launches every kernel of every request.

    Raises:
        TargetError: the backend's runtime refuses the files, or a request cannot be captured.
        ResourceError: not enough GPU memory.
    """
    if engine.backend.runs_on == "cuda":
        from distill_rt.runtime.cuda.graph_worker import GraphWorker

        return GraphWorker.load(engine, batch, capture=capture)
    if engine.body.mode == "trajectory":
        from distill_rt.runtime.host_trajectory import HostTrajectoryWorker

        return HostTrajectoryWorker.load(engine, batch)
    from distill_rt.runtime.host_step import HostStepWorker

    return HostStepWorker.load(engine, batch)
