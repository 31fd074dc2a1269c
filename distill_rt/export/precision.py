"""float32 graph -> float16 or bfloat16 graph, at compile time, by the types that ONNX gives every operator.

TensorRT networks are strongly typed: the precision of a plan is the types of its graph. The bundle keeps one float32 graph, so
that one export serves every target and precision, the golden outputs stay the student's own, and the weight manifest
stays true (an initializer keeps its name and changes only its type). Exporting from a half-precision network instead would
bind the bundle to one precision, and cast times and guidance scales too early:

What is computed from scalars (times, guidance) stays float32 up to the first matrix product or convolution. In bfloat16 the
time 999 is 1000, and the sine of 999 * frequency becomes noise. So does the step table in a trajectory. Inputs and outputs
stay float32 as in the contract.

Types are propagated with the type variables of ONNX's operator schemas: an operator computes in the low type if every
float32 input may have it. Inputs that must be float32 (scales of Resize) stay so. Casts are inserted where types meet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distill_rt.core.artifacts import Component, Precision
from distill_rt.core.errors import TargetError
from distill_rt.core.optional import require
from distill_rt.export.passes.writer import EXACT

HEAVY = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Attention"})
"""Operators that end the float32 part behind scalars: what follows them is features, which half precision holds."""
TYPED_BY_ATTRIBUTE: Mapping[str, str] = {"Cast": "to", "ConstantOfShape": "value", "Constant": "value"}
SCHEMA_OPSET = 22
"""The first that allows bfloat16 wherever float16 is allowed (Conv, InstanceNormalization); TensorRT takes it in all."""
SINGLE_FILE_LIMIT_BYTES = 1 << 30


def typed_graph(source: Path, component: Component, precision: Precision, destination: Path) -> Path:
    """The graph in a precision.

    Args:
        source: the float32 graph.
        component: names its scalar inputs and its weights.
        destination: where to write it.

    Returns:
        `destination`, or `source` for fp32.

    Raises:
        TargetError: a weight does not fit the type, or the graph has branches or loops.
    """
    if precision == "fp32":
        return source
    onnx = require("onnx", extra="cpu")
    model = onnx.load(str(source))
    _Lowering(onnx, model, component, precision).run()
    # Not ByteSize(), which serialises: protobuf cannot hold 2 GiB.
    num_bytes = sum(len(item.raw_data) for item in model.graph.initializer)
    onnx.save(
        model,
        str(destination),
        save_as_external_data=num_bytes > SINGLE_FILE_LIMIT_BYTES,
        location=f"{destination.name}.data",
    )
    return destination


@dataclass(slots=True)
class _Lowering:
    """One pass over a graph, in its topological order."""

    onnx: Any
    model: Any
    component: Component
    precision: Precision
    nodes: list[Any] = field(default_factory=list)
    types: dict[str, int] = field(default_factory=dict)
    """Element type of every value, as it is after the pass."""
    casts: dict[tuple[str, int], str] = field(default_factory=dict)

    def run(self) -> None:
        graph, proto = self.model.graph, self.onnx.TensorProto
        low, full = self._low, proto.FLOAT
        exact = self._exact_nodes()
        self.types |= {value.name: value.type.tensor_type.elem_type for value in graph.input}
        self.types |= {item.name: item.data_type for item in graph.initializer}
        outputs = {value.name for value in graph.output}
        self._lower_initializers(exact)
        for index, node in enumerate(graph.node):
            self._refuse_subgraphs(node)
            schema = self._schema(node)
            computes = full if index in exact or schema is None else low
            variables = self._cast_inputs(node, schema, computes)
            self._type_outputs(node, schema, computes, variables)
            self.nodes.append(node)
            for position, name in enumerate(node.output):
                if name in outputs and self.types.get(name) == low:
                    node.output[position] = f"{name}/{self.precision}"
                    self.nodes.append(self.onnx.helper.make_node("Cast", [node.output[position]], [name], to=full))
        del graph.node[:]
        graph.node.extend(self.nodes)
        del graph.value_info[:]  # shapes would still hold, types would not

    @property
    def _low(self) -> int:
        proto = self.onnx.TensorProto
        return int(proto.FLOAT16 if self.precision == "fp16" else proto.BFLOAT16)

    def _refuse_subgraphs(self, node: Any) -> None:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise TargetError(
                f"the graph has a {node.op_type} ({node.name or 'unnamed'}): branches and loops are not lowered to "
                f"{self.precision}",
                code="precision-unsupported",
                hint="use --precision fp32",
                details={"node": node.name, "operator": node.op_type},
            )

    # -- what stays float32 ----------------------------------------------------------------------------------------------

    def _exact_nodes(self) -> set[int]:
        """Indices of the nodes between the scalar inputs and the first heavy operator, and of a trajectory's own arithmetic."""
        scalars = {
            tensor.name for tensor in self.component.inputs if tensor.dtype == "float32" and len(tensor.shape) == 1
        }
        exact = set()
        for index, node in enumerate(self.model.graph.node):
            if any(item.key == EXACT for item in node.metadata_props):
                exact.add(index)
            if node.op_type not in HEAVY and node.op_type != "Shape" and scalars & set(node.input):
                exact.add(index)
                scalars |= set(node.output)
        return exact

    def _lower_initializers(self, exact: set[int]) -> None:
        """Weights and constants in the low type, unless a node of the exact part, or an input that must be float32, reads
        them: those stay, and whoever else reads them casts."""
        full = self.onnx.TensorProto.FLOAT
        needed_full: set[str] = set()
        for index, node in enumerate(self.model.graph.node):
            schema = self._schema(node)
            if index in exact or schema is None:
                needed_full |= set(node.input)
            else:
                allowed = self._allows_low(schema)
                needed_full |= {
                    name
                    for position, name in enumerate(node.input)
                    if not allowed.get(_formal(schema, position).type_str)
                }
        weights = set(self.component.initializers.values())
        for item in self.model.graph.initializer:
            if item.data_type == full and item.name not in needed_full:
                self._convert(item, item.name in weights)
                self.types[item.name] = self._low

    def _convert(self, item: Any, is_weight: bool) -> None:
        array = self.onnx.numpy_helper.to_array(item)
        item.CopyFrom(self.onnx.numpy_helper.from_array(self._cast_array(array, item.name, is_weight), item.name))

    def _cast_array(self, array: Any, name: str, is_weight: bool) -> Any:
        dtype = self.onnx.helper.tensor_dtype_to_np_dtype(self._low)
        with np.errstate(over="ignore"):
            lowered = array.astype(dtype)
        overflown = np.isfinite(array) & ~np.isfinite(lowered.astype(np.float32))
        if not overflown.any():
            return lowered
        if is_weight:
            raise TargetError(
                f"weight {name} does not fit {self.precision}: it reaches {float(np.abs(array).max()):.3g}",
                code="precision-unsupported",
                hint="use --precision bf16 or fp32",
                details={"weight": name},
            )
        # "Minus infinity" of an attention mask, written as the lowest float32: the lowest of this type means the same.
        largest = np.float32(np.finfo(np.float16).max) if self.precision == "fp16" else np.float32(3.3895314e38)
        return np.clip(array, -largest, largest).astype(dtype)

    # -- types of one node -----------------------------------------------------------------------------------------------

    def _schema(self, node: Any) -> Any:
        """The operator's schema, None for operators that ONNX does not define."""
        if node.domain not in ("", "ai.onnx"):
            return None
        opset = max(SCHEMA_OPSET, *(item.version for item in self.model.opset_import if item.domain in ("", "ai.onnx")))
        try:
            return self.onnx.defs.get_schema(node.op_type, opset, "")
        except self.onnx.defs.SchemaError:
            return None

    def _allows_low(self, schema: Any) -> dict[str, bool]:
        name = "tensor(float16)" if self.precision == "fp16" else "tensor(bfloat16)"
        return {item.type_param_str: name in item.allowed_type_strs for item in schema.type_constraints}

    def _cast_inputs(self, node: Any, schema: Any, computes: int) -> dict[str, int]:
        """Cast float inputs to what the node computes in; returns the type that each type variable has got."""
        floats = (self.onnx.TensorProto.FLOAT, self._low)
        allowed = {} if schema is None else self._allows_low(schema)
        variables: dict[str, int] = {}
        for position, name in enumerate(node.input):
            have = self.types.get(name)
            variable = "" if schema is None else _formal(schema, position).type_str
            if have in floats and node.op_type not in ("Cast", "Shape", "Size"):
                wanted = computes if allowed.get(variable) else floats[0]
                if have != wanted:
                    node.input[position] = self._cast(name, wanted)
                have = wanted
            if have is not None and name:
                variables.setdefault(variable, have)
        return variables

    def _cast(self, name: str, wanted: int) -> str:
        if (name, wanted) not in self.casts:
            result = f"{name}/as_{self.onnx.TensorProto.DataType.Name(wanted).lower()}"
            self.nodes.append(self.onnx.helper.make_node("Cast", [name], [result], name=result, to=wanted))
            self.casts[(name, wanted)] = result
            self.types[result] = wanted
        return self.casts[(name, wanted)]

    def _type_outputs(self, node: Any, schema: Any, computes: int, variables: Mapping[str, int]) -> None:
        full = self.onnx.TensorProto.FLOAT
        if schema is not None and node.op_type in TYPED_BY_ATTRIBUTE:
            self.types[node.output[0]] = self._retype(node, computes)
            return
        for position, name in enumerate(node.output):
            variable = "" if schema is None else _formal(schema, position, of_outputs=True).type_str
            self.types[name] = variables.get(variable) or _only_type(self.onnx, schema, variable, full)

    def _retype(self, node: Any, computes: int) -> int:
        """Cast, ConstantOfShape and Constant name a type: float32 there becomes what the node computes in."""
        full = self.onnx.TensorProto.FLOAT
        for attribute in node.attribute:
            if attribute.name != TYPED_BY_ATTRIBUTE[node.op_type]:
                continue
            if node.op_type == "Cast":
                attribute.i = computes if attribute.i == full else attribute.i
                return int(attribute.i)
            if attribute.t.data_type == full and computes != full:
                self._convert(attribute.t, is_weight=False)
            return int(attribute.t.data_type)
        return int(full)  # ConstantOfShape without a value gives float32 zeros


def _formal(schema: Any, position: int, *, of_outputs: bool = False) -> Any:
    """The formal parameter at a position; the last one repeats in variadic operators."""
    formals = schema.outputs if of_outputs else schema.inputs
    return formals[min(position, len(formals) - 1)]


def _only_type(onnx: Any, schema: Any, variable: str, otherwise: int) -> int:
    """The one type that a type variable allows (INT64 for the output of Shape); `otherwise` where there is a choice."""
    constraints = [] if schema is None else schema.type_constraints
    allowed = {item.type_param_str: item.allowed_type_strs for item in constraints}.get(variable, [variable])
    return _type_numbers(onnx).get(allowed[0], otherwise) if len(allowed) == 1 else otherwise


def _type_numbers(onnx: Any) -> dict[str, int]:
    """``tensor(int64)`` -> TensorProto.INT64."""
    return {f"tensor({name.lower()})": number for name, number in onnx.TensorProto.DataType.items()}
