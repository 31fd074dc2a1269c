"""Which sections there are: their order, time boxes and the bars that each must have listed in the end. Pure data."""

from __future__ import annotations

from dataclasses import dataclass

TOTAL_SECONDS = 470.0
"""Of a whole run: under eight minutes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One process.

    Args:
        module: file of this folder; its ``run(recorder, argument)`` does the work.
        argument: what tells apart sections of one file.
        seconds: time box; what is left of TOTAL_SECONDS if that is less.
        bars: names that the report must hold. One that the section did not get to is listed as not passed.
    """

    module: str
    argument: str = ""
    seconds: float
    bars: tuple[str, ...] = ()


ENGINE_BARS = (
    "seed_label_guidance_change", "same_request_same_bits", "previews_same_bits", "graph_equals_eager", "threads_same_bits",
    "first_request_ratio",
)  # fmt: skip

SECTIONS: dict[str, Section] = {
    "environment": Section(module="environment", seconds=30),
    "ceilings": Section(module="ceilings", seconds=30),
    "accuracy": Section(module="accuracy", seconds=80, bars=("error_over_bound",)),
    "speed": Section(
        module="speed",
        seconds=110,
        bars=("table_row_1gib_over_copy", "table_row_batch1_over_null"),
    ),
    "bits": Section(module="bits", seconds=70, bars=("triton_noise_golden", "pack_noise_golden", "pack_equals_triton")),
    "graph": Section(
        module="graph",
        seconds=70,
        bars=("graph_equals_eager", "inputs_change_without_capture", "graph_over_parts", "threads_same_bits"),
    ),
    "engine-inductor": Section(module="engine", argument="inductor:cuda", seconds=120, bars=ENGINE_BARS),
    "tests": Section(module="gpu_tests", seconds=90, bars=("gpu_tests_failed",)),
    "engine-tensorrt": Section(module="engine", argument="tensorrt", seconds=90, bars=ENGINE_BARS),
    "engine-tensorrt-rtx": Section(module="engine", argument="tensorrt-rtx", seconds=60, bars=ENGINE_BARS),
}
