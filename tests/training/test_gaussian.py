"""Tier 1: on Gaussian data the answers are affine maps.

Progressive distillation must reach the map of its teacher's DDIM steps, bias included; consistency distillation must reach the
exact flow. A wrong target (for example the second prediction converted at the student's own noise level) fails here.
"""

from closed_forms import PROCESS, AffinePerTime, V, plain_spec
from gaussian_fit import exact_teacher, fit, relative, run, unit

from distill_rt.core.samplers.ddim import ddim
from distill_rt.training.copies import frozen_copy
from distill_rt.training.methods import Consistency, Progressive
from distill_rt.training.methods.base import Phase
from distill_rt.training.predictor import Teacher


def test_progressive_distillation_reaches_the_biased_ddim_map():
    exact = exact_teacher()
    teacher = Teacher(plain_spec(3), exact)
    method = Progressive(steps=4, start_steps=8)
    networks = {"student": AffinePerTime(4, 3), "stage_teacher": exact}
    phase = Phase(name="4 steps", start=0, iterations=1500, target=4)
    fit(method, phase, networks, teacher, iterations=1500, learning_rate=3e-2)

    z = unit()
    student = run(networks["student"], method.contract(teacher.spec).plans[4], z)
    ddim8 = run(exact, ddim(PROCESS, V, [1 - i / 8 for i in range(8)]), z)
    flow = exact.flow(z)
    bias = relative(ddim8, flow)
    assert bias > 0.04, "the problem must tell the biased map from the exact one"
    assert relative(student, ddim8) < 0.02
    assert relative(student, flow) > 0.5 * bias


def test_consistency_distillation_reaches_the_exact_flow():
    exact = exact_teacher()
    teacher = Teacher(plain_spec(3), exact)
    method = Consistency(steps=1, num_levels=32, solver_order=2, target_decay=0.5)
    student = AffinePerTime(32, 3)
    networks = {"student": student, "target": frozen_copy(student)}
    phase = Phase(name="consistency", start=0, iterations=4000)
    fit(method, phase, networks, teacher, iterations=4000, learning_rate=3e-2)

    z = unit()
    one_step = run(student, method.contract(teacher.spec).plans[1], z)
    flow = exact.flow(z)
    ddim8 = run(exact, ddim(PROCESS, V, [1 - i / 8 for i in range(8)]), z)
    assert relative(one_step, flow) < 0.02
    assert relative(one_step, flow) < 0.4 * relative(ddim8, flow)
