"""The graphs of a step bundle joined to one trajectory graph, checked against the student before it is published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill_rt.core.artifacts import Component
from distill_rt.core.errors import GateError
from distill_rt.core.optional import require
from distill_rt.core.spec import TRAJECTORY, StudentSpec
from distill_rt.export.gate import TRAJECTORY_BARS
from distill_rt.export.golden import TrajectoryGolden
from distill_rt.export.model_file import SINGLE_FILE_LIMIT_BYTES, load_model, save_model
from distill_rt.export.trajectory_gate import check_images, trajectory_feeds, trajectory_norm
from distill_rt.export.trajectory_graph import trajectory_model

if TYPE_CHECKING:
    import onnx_ir as ir

FILE = "onnx/trajectory.onnx"


def join_components(
    directory: Path,
    components: Mapping[str, Component],
    spec: StudentSpec,
    trajectories: Sequence[TrajectoryGolden],
    *,
    single_file_limit_bytes: int = SINGLE_FILE_LIMIT_BYTES,
) -> dict[str, Component]:
    """Replace the graphs in `directory` by the trajectory of one plan.

    Args:
        components: exported graphs of `spec.components()`.
        trajectories: what the student makes of that plan.

    Returns:
        The one component; its weights are named ``<component>.<name>``. Those that only serve the time embedding are folded
        away, and no longer there.

    Raises:
        GateError: ONNX Runtime does not get the student's images from it.
    """
    (steps,) = {run.steps for run in trajectories}
    graphs = {name: load_model(directory / component.file) for name, component in components.items()}
    model = trajectory_model(graphs, spec, steps)
    save_model(model, directory / FILE, single_file_limit_bytes=single_file_limit_bytes)
    for component in components.values():
        for file in (directory / "onnx").glob(f"{Path(component.file).name}*"):
            file.unlink()
    _check(directory / FILE, spec, trajectories)
    return {TRAJECTORY: trajectory_component(components, spec, steps, model)}


def trajectory_component(
    components: Mapping[str, Component], spec: StudentSpec, steps: int, model: ir.Model
) -> Component:
    """What a manifest says of a trajectory graph that was made of `components`."""
    ((inputs, outputs),) = spec.trajectory(steps).values()
    weights = {
        f"{name}.{weight}": f"{name}.{initializer}"
        for name, component in components.items()
        for weight, initializer in component.initializers.items()
    }
    return Component(
        file=FILE,
        inputs=inputs,
        outputs=outputs,
        opset=model.opset_imports[""],
        initializers={weight: name for weight, name in weights.items() if name in model.graph.initializers},
    )


def _check(path: Path, spec: StudentSpec, trajectories: Sequence[TrajectoryGolden]) -> None:
    """The file is valid ONNX, and ONNX Runtime gets the student's images from it."""
    onnx = require("onnx", extra="export")
    ort = require("onnxruntime", extra="export")
    onnx.checker.check_model(str(path), full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    norm = trajectory_norm(trajectories)
    for run in trajectories:
        (images,) = session.run(None, trajectory_feeds(spec, run))
        try:
            check_images(images, run, norm, TRAJECTORY_BARS["fp32"], f"the trajectory graph at {run.name}")
        except GateError as error:
            raise GateError(
                error.message,
                code="export-mismatch",
                hint="this is a fault of the trajectory compiler; please report it, and export with --mode step",
                details=error.details,
            ) from error
