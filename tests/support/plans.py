"""One step table per kind of row that a sampler may compile to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from distill_rt.core.prediction import Prediction
from distill_rt.core.process import RectifiedFlow, VPCosine
from distill_rt.core.samplers.consistency import multistep_consistency
from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.samplers.dpmpp_2m import dpmpp_2m
from distill_rt.core.samplers.euler import euler_ancestral
from distill_rt.core.samplers.flow_map import flow_map
from distill_rt.core.samplers.heun import heun
from distill_rt.core.samplers.tcd import tcd
from distill_rt.core.table import NO_NETWORK, Row, StepTable

PROCESS, V = VPCosine(), Prediction.V
TIMES = (0.9, 0.6, 0.4, 0.2)

TABLES: Mapping[str, StepTable] = {
    name: table.as_float32()  # as it is read from a file
    for name, table in {
        "ddim": ddim(PROCESS, V, TIMES),
        "ddim that clips": ddim(PROCESS, V, TIMES, clip=1.0),
        "lcm": multistep_consistency(PROCESS, V, TIMES),
        "tcd": tcd(PROCESS, V, TIMES),
        "euler ancestral": euler_ancestral(PROCESS, V, TIMES),
        "dpmpp-2m": dpmpp_2m(PROCESS, V, TIMES),
        "heun": heun(PROCESS, V, TIMES),
        "two times": flow_map(RectifiedFlow(), TIMES),
        "dynamic threshold": StepTable(
            init_scale=2.0,
            rows=tuple(
                dataclasses.replace(row, threshold_ratio=ratio, threshold_max=1.5)
                for row, ratio in zip(ddim(PROCESS, V, TIMES).rows, (0.995, 0.5, 1.0, 0.03), strict=True)
            ),
        ),
        "every column": StepTable(
            init_scale=0.5,
            rows=(
                Row(time=900.0, c_in=0.7, p=0.5, q=-0.3, r=0.8, g=0.2, set_anchor=True),
                Row(time=800.0, p=0.5, q=-0.4, clip=0.4, r=0.3, g=0.2, f=0.1, h1=0.2, n=0.3, stream=1),
                Row(net_id=NO_NETWORK, r=0.9, k=0.2, n=0.1, stream=7),
                Row(time=200.0, p=0.1, q=0.9, r=0.2, g=0.3, h1=-0.1, h2=0.2, h3=0.7, k=-0.3),
                Row(net_id=NO_NETWORK, r=0.9),
                Row(time=100.0, c_in=1.1, p=0.1, q=0.9, r=0.2, g=0.6, h3=-0.2, n=0.1, stream=8),
            ),
        ),
    }.items()
}
