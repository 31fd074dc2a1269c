"""The handmade network with the modules that torch's exporter writes into its nodes: two up-blocks."""

from __future__ import annotations

import onnx
from handmade import make_model

from distill_rt.core.spec import StudentSpec
from distill_rt.export.passes.scopes import SCOPES

MODULES = {
    **dict.fromkeys(("h0", "h1", "h2", "gate", "h3"), "net.up_blocks.0"),
    "prediction": "net.up_blocks.1",
}
"""Value -> the module that computes it."""


def add_scopes(model: onnx.ModelProto) -> None:
    """Write the modules into the nodes, as the exporter does."""
    for node in model.graph.node:
        module = MODULES.get(node.output[0], "net")
        chain = ["", "net", *([f"net.__dict__['_modules']['up_blocks'].{module[-1]}"] if module != "net" else [])]
        node.metadata_props.add(key=SCOPES, value=repr([*chain, node.name or node.output[0]]))


def scoped_model(spec: StudentSpec) -> onnx.ModelProto:
    model = make_model(spec)
    add_scopes(model)
    return model
