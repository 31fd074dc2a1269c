"""What the three manifests say: the bodies of student.json, bundle.json and engine.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from distill_rt.core.lossy_report import LossyReport
from distill_rt.core.spec import StudentSpec, TensorSpec

Precision = Literal["fp32", "bf16", "fp16", "fp8", "int8"]
EIGHT_BIT: tuple[Precision, ...] = ("fp8", "int8")
"""Precisions of products and convolutions of the networks only; what lies between is computed in a float type."""
Mode = Literal["step", "trajectory"]
Tensors = tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentBody:
    """student.json: the contract and its files.

    Args:
        weights: `weights[i]` is the safetensors file of `spec.networks[i]`.
        text_encoder, decoder: safetensors files of these; None where the contract has none.
        tokenizer: ``tokenizer.json`` of a text condition (`distill_rt.core.tokenizer`).
    """

    spec: StudentSpec
    weights: tuple[str, ...]
    text_encoder: str | None = None
    decoder: str | None = None
    tokenizer: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Component:
    """One ONNX graph of a bundle.

    Args:
        file: path of the .onnx file (external data beside it).
        inputs, outputs: in graph order; "B" is dynamic.
        opset: of the default domain.
        initializers: weight manifest, parameter name of the student -> initializer of the graph (for refitting).
    """

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    initializers: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleBody:
    """bundle.json: a student as graphs, with golden inputs and outputs computed by the student in float32.

    Components are those of `parts`; `tokenizer` is the file of a text condition.

    Args:
        mode: ``step``: the components of the contract, every plan; ``trajectory``: one plan as one graph.
        steps: that plan; None in step mode.
        lossy: what `distill_rt.export.lossy.tune` tried on it; None if nothing was tried.
    """

    spec: StudentSpec
    student_digest: str
    mode: Mode
    steps: int | None = None
    components: dict[str, Component]
    golden: str
    tokenizer: str | None = None
    versions: dict[str, str]
    lossy: LossyReport | None = None

    def __post_init__(self) -> None:
        _check_mode(self.mode, self.steps, self.spec)

    @property
    def parts(self) -> dict[str, tuple[Tensors, Tensors]]:
        """Inputs and outputs of every component."""
        return mode_parts(self.spec, self.steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class Distance:
    """How far an engine's output is from the student's: relative L2, PSNR in dB over the range [-1, 1], cosine."""

    relative_l2: float
    psnr_db: float
    cosine: float


@dataclass(frozen=True, kw_only=True, slots=True)
class GateReport:
    """The gate's figures; `components` by name, `trajectories` by "steps=N,guidance=W". Largest `Distance` over goldens.

    `device` is what it ran on, for people.
    """

    component_bar: Distance
    trajectory_bar: Distance
    components: dict[str, Distance]
    trajectories: dict[str, Distance]
    device: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """One component compiled for one number of images: `files` that its backend wrote, relative to the engine."""

    batch: int
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineBody:
    """engine.json.

    Args:
        spec: the contract, unchanged.
        bundle_digest: the bundle it was compiled from.
        target: for example ``openvino:cpu``.
        precision: of the arithmetic inside of the networks.
        fingerprint: sha256 over everything that decides what the engine computes (`distill_rt.backends.fingerprint`).
        fingerprint_parts: what went into it, so that a refusal can name the part that differs.
        mode, steps: those of the bundle.
        batches: numbers of images with a compiled component, ascending.
        components: name -> one compiled component per batch size (the text encoder: `compiled_batches`).
        gate: the report of the gate that let it pass; None if it was built on a machine that cannot run it. The runtime
            refuses such an engine until the gate has run on the target (``distill-rt verify ENGINE --gate``).
        golden: golden inputs and outputs carried for that, relative to the engine; None if the gate ran at build.
        tokenizer: file of a text condition, relative to the engine.
        build_seconds: wall time of the build, without the gate.
        options: backend options that were pinned (JSON values).
    """

    spec: StudentSpec
    bundle_digest: str
    target: str
    precision: Precision
    fingerprint: str
    fingerprint_parts: dict[str, Any]
    mode: Mode = "step"
    steps: int | None = None
    batches: tuple[int, ...]
    components: dict[str, tuple[Compiled, ...]]
    gate: GateReport | None
    golden: str | None = None
    tokenizer: str | None = None
    build_seconds: float
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_mode(self.mode, self.steps, self.spec)

    @property
    def parts(self) -> dict[str, tuple[Tensors, Tensors]]:
        """Inputs and outputs of every component."""
        return mode_parts(self.spec, self.steps)


def mode_parts(spec: StudentSpec, steps: int | None) -> dict[str, tuple[Tensors, Tensors]]:
    """Inputs and outputs of the components of a bundle or engine: of the contract, or of the trajectory of one plan."""
    return spec.components() if steps is None else spec.trajectory(steps)


def _check_mode(mode: Mode, steps: int | None, spec: StudentSpec) -> None:
    if (mode == "trajectory") != (steps is not None):
        raise ValueError(f"mode {mode} cannot have steps {steps}: a trajectory is of one plan, step mode of all")
    if steps is not None and steps not in spec.plans:
        raise ValueError(f"steps {steps} is not among the plans {sorted(spec.plans)}")
