"""Tier 1: on Gaussian data the answers are affine maps.

Progressive distillation must reach the map of its teacher's DDIM steps, bias included; consistency distillation must reach the
exact flow. A wrong target (for example the second prediction converted at the student's own noise level) fails here.
"""

import torch
from closed_forms import PROCESS, AffinePerTime, GaussianTeacher, V, plain_spec

from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.table import run_table
from distill_rt.training.copies import frozen_copy
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.methods import Consistency, Progressive
from distill_rt.training.methods.base import Phase
from distill_rt.training.predictor import Teacher

MEAN, STD = [0.5, -0.3, 0.1], [1.0, 0.5, 0.2]


class GaussianData:
    sample_shape = (3, 1, 1)
    num_classes = 0

    def batch(self, draws: Draws) -> Batch:
        x0 = torch.tensor(MEAN) + torch.tensor(STD) * draws.normal((3,), Purpose.DATA)
        return Batch(x0_BCHW=x0[:, :, None, None], label_B=None)


def run(network, table, z):
    def call(net_id, x, time, second_time):
        with torch.no_grad():
            return network(torch.from_numpy(x).float(), torch.full((len(x),), time)).numpy()

    return torch.from_numpy(run_table(table, z.numpy(), call))


def fit(method, phase, networks, teacher, *, iterations, learning_rate):
    optimizer = torch.optim.Adam(networks["student"].parameters(), lr=learning_rate)
    for step in range(iterations):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / iterations)
        draws = Draws(0, step, 256)
        losses = method.losses(phase, step, networks, teacher, GaussianData().batch(draws), draws)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        method.after_step(phase, step, networks)


def relative(a, b, scale):
    return float((a - b).norm() / scale.norm())


def test_progressive_distillation_reaches_the_biased_ddim_map():
    exact = GaussianTeacher(MEAN, STD)
    teacher = Teacher(plain_spec(3), exact)
    method = Progressive(steps=4, start_steps=8)
    networks = {"student": AffinePerTime(4, 3), "stage_teacher": exact}
    phase = Phase(name="4 steps", start=0, iterations=1500, target=4)
    fit(method, phase, networks, teacher, iterations=1500, learning_rate=3e-2)

    z = torch.randn(256, 3, 1, 1, generator=torch.Generator().manual_seed(1))
    student = run(networks["student"], method.contract(teacher.spec).plans[4], z)
    ddim8 = run(exact, ddim(PROCESS, V, [1 - i / 8 for i in range(8)]), z)
    flow = exact.flow(z)
    bias = relative(ddim8, flow, flow)
    assert bias > 0.04, "the problem must tell the biased map from the exact one"
    assert relative(student, ddim8, ddim8) < 0.02
    assert relative(student, flow, flow) > 0.5 * bias


def test_consistency_distillation_reaches_the_exact_flow():
    exact = GaussianTeacher(MEAN, STD)
    teacher = Teacher(plain_spec(3), exact)
    method = Consistency(steps=1, num_levels=32, solver_order=2, target_decay=0.5)
    student = AffinePerTime(32, 3)
    networks = {"student": student, "target": frozen_copy(student)}
    phase = Phase(name="consistency", start=0, iterations=4000)
    fit(method, phase, networks, teacher, iterations=4000, learning_rate=3e-2)

    z = torch.randn(256, 3, 1, 1, generator=torch.Generator().manual_seed(1))
    one_step = run(student, method.contract(teacher.spec).plans[1], z)
    flow = exact.flow(z)
    ddim8 = run(exact, ddim(PROCESS, V, [1 - i / 8 for i in range(8)]), z)
    assert relative(one_step, flow, flow) < 0.02
    assert relative(one_step, flow, flow) < 0.4 * relative(ddim8, flow, flow)
