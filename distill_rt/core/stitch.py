"""T-Stitch: another network for the first rows of a plan.

Pan et al. 2024 (arXiv 2402.14167), section 3: early steps shape the layout, which a small network of the same latent space
draws as well as a large one. Both must have been distilled to the same plan, so that the second one goes on from states
that it knows.
"""

from __future__ import annotations

import dataclasses

from distill_rt.core.errors import UsageError
from distill_rt.core.spec import StudentSpec
from distill_rt.core.table import StepTable

SAME = ("process", "parameterization", "sample_shape", "condition", "guidance", "text_encoder", "decoder")
"""Fields of the contract that both students must share: what a state means, and what a request may choose."""


def stitch_contracts(big: StudentSpec, small: StudentSpec, *, first: int) -> StudentSpec:
    """The contract of a student whose first `first` evaluations are the small one's and the rest the big one's.

    Args:
        big, small: contracts with the fields `SAME` in common and one network each.
        first: evaluations of the small network, at least 1; plans without an evaluation for the big one are left out.

    Returns:
        `big` with the networks (big, small) and those plans that both have.

    Raises:
        UsageError: the contracts differ, or no common plan is longer than `first`; names the field.
    """
    if len(big.networks) != 1 or len(small.networks) != 1:
        counts = f"{len(big.networks)} and {len(small.networks)}"
        raise UsageError(f"two students with one network each are stitched, got {counts}", code="stitch-networks")
    for name in SAME:
        if getattr(big, name) != getattr(small, name):
            raise UsageError(
                f"the students cannot be stitched, their contracts differ in {name}: "
                f"{getattr(big, name)} and {getattr(small, name)}",
                code="stitch-contract",
                hint="distil both from one teacher (a smaller network: distill-rt distill feature_kd)",
                details={"field": name},
            )
    if big.uses_second_time != small.uses_second_time:
        raise UsageError(
            "the students cannot be stitched: only one of them takes a second time",
            code="stitch-contract",
            hint="distil both by one method",
            details={"field": "plans"},
        )
    if first < 1:
        raise UsageError(f"the small network takes at least 1 evaluation, got {first}", code="stitch-steps")
    common = [steps for steps in big.steps if big.plans[steps] == small.plans.get(steps)]
    plans = {steps: _switched(big.plans[steps], first) for steps in common if big.plans[steps].num_evaluations > first}
    if not plans:
        raise UsageError(
            f"no plan that both students have leaves an evaluation to the big network after {first}: "
            f"they have {', '.join(map(str, big.steps))} and {', '.join(map(str, small.steps))}, "
            f"the same are {', '.join(map(str, common)) or 'none'}",
            code="stitch-plans",
            hint="distil both to the same steps",
        )
    return dataclasses.replace(
        big,
        name=f"{big.name}-stitched",
        networks=(*big.networks, *small.networks),
        plans=plans,
        default_steps=big.default_steps if big.default_steps in plans else max(plans),
        provenance={"method": "t-stitch", "first": first, "big": big.provenance, "small": small.provenance},
    )


def _switched(table: StepTable, first: int) -> StepTable:
    """The table with the second network in its first `first` evaluations."""
    rows, calls = [], 0
    for row in table.rows:
        rows.append(dataclasses.replace(row, net_id=1) if row.calls_network and calls < first else row)
        calls += row.calls_network
    return dataclasses.replace(table, rows=tuple(rows))
