"""Methods that follow the teacher's trajectories, on Gaussian data where trajectories are affine maps.

TRACT must reach the map of its teacher's DDIM steps, bias included; those that regress on the teacher's images must reach the
exact flow.
"""

import pytest
import torch
from closed_forms import PROCESS, AffinePerTime, V, plain_spec
from gaussian_fit import AffineOfTime, GaussianData, denoiser, exact_teacher, fit, relative, run, start_at, unit

from distill_rt.core.errors import UsageError
from distill_rt.core.prediction import Parameterization, Prediction
from distill_rt.core.samplers.ddim import ddim
from distill_rt.training.copies import frozen_copy
from distill_rt.training.draws import Draws
from distill_rt.training.flow_map import flow_time, t_from_flow_time, velocity
from distill_rt.training.methods import (
    Boot,
    KnowledgeDistillation,
    LatentConsistency,
    PhasedConsistency,
    RectifiedFlow,
    SimpleFastDistillation,
    Tract,
    TrajectoryConsistency,
)
from distill_rt.training.methods.base import Phase
from distill_rt.training.methods.boot import signal_step
from distill_rt.training.methods.lcm import with_boundary
from distill_rt.training.methods.tract import tract_loss
from distill_rt.training.pairs import PairCache
from distill_rt.training.plans import powers_of_two, uniform_times
from distill_rt.training.predictor import Teacher


@pytest.fixture
def teacher():
    return Teacher(plain_spec(3), exact_teacher())


def test_tract_reaches_the_biased_ddim_map(teacher):
    method = Tract(steps=2, start_steps=8, middle_ratio=1)
    student = AffinePerTime(8, 3)
    networks = {"student": student, "stage_teacher": exact_teacher(), "self_teacher": frozen_copy(student)}
    (phase,) = method.phases(teacher.spec)
    fit(method, phase, networks, teacher, iterations=1500, learning_rate=3e-2)
    z = unit()
    made = run(student, method.contract(teacher.spec).plans[2], z)
    ddim8 = run(exact_teacher(), ddim(PROCESS, V, uniform_times(8)), z)
    flow = exact_teacher().flow(z)
    assert relative(ddim8, flow) > 0.04, "the problem must tell the biased map from the exact one"
    assert relative(made, ddim8) < 0.02
    assert relative(made, flow) > 0.5 * relative(ddim8, flow)


def test_tract_loss_is_zero_where_the_student_is_the_closed_map(teacher):
    """At the ends of segments of one step, the student's target is the teacher itself."""
    draws = Draws(0, 0, 64)
    batch = GaussianData().batch(draws)
    assert tract_loss(exact_teacher(), teacher, teacher, 8, 8, batch, draws) < 1e-8
    assert tract_loss(exact_teacher(), teacher, teacher, 2, 8, batch, draws) > 1e-3


def test_stages_of_tract():
    labelled = [phase.name for phase in Tract(steps=2).phases(plain_spec(2))]
    assert labelled == ["32 to 4 steps", "4 to 2 steps"]
    assert [p.name for p in Tract(steps=4, middle_ratio=1).phases(plain_spec(2))] == ["32 to 4 steps"]
    for wrong in ({"steps": 3}, {"start_steps": 8}, {"middle_ratio": 0}, {"self_teacher_decay": 1.0}):
        with pytest.raises(UsageError):
            Tract(**wrong)


def test_knowledge_distillation_reaches_the_flow(teacher):
    method = KnowledgeDistillation(num_pairs=2048)
    networks = {"student": AffinePerTime(1, 3), "pairs": PairCache(teacher.spec, 2048)}
    fit(method, method.phases(teacher.spec)[0], networks, teacher, iterations=400, learning_rate=5e-2)
    z = unit()
    made = run(networks["student"], method.contract(teacher.spec).plans[1], z)
    assert relative(made, exact_teacher().flow(z)) < 0.01


def test_reflow_makes_every_plan_the_flow(teacher):
    """Pairs of an affine map lie on straight lines that do not cross: one step is as good as four."""
    method = RectifiedFlow(steps=4, num_pairs=1024)
    student = AffineOfTime(3)
    networks = {"student": student, "straightened": student, "pairs": PairCache(teacher.spec, 1024)}
    (phase,) = method.phases(teacher.spec)
    fit(method, phase, networks, teacher, iterations=800, learning_rate=0.2)
    z = unit()
    flow = exact_teacher().flow(z)
    plans = method.contract(teacher.spec).plans
    assert sorted(plans) == [1, 2, 4]
    for table in plans.values():
        assert relative(run(student, table, z), flow) < 0.05
        assert relative(run(exact_teacher(), table, z), flow) > 0.1


def test_a_second_reflow_learns_from_the_first_student(teacher):
    method = RectifiedFlow(steps=1, times=2, num_pairs=64, distill_iterations=5)
    phases = method.phases(teacher.spec)
    assert [p.name for p in phases] == ["reflow 1", "reflow 2", "distillation"]
    networks = {"student": AffineOfTime(3), "straightened": AffineOfTime(3), "pairs": PairCache(teacher.spec, 64)}
    torch.nn.init.ones_(networks["student"].weight)
    networks["pairs"].count.fill_(64)
    method.begin(phases[1], networks)
    assert torch.equal(networks["straightened"].weight, networks["student"].weight)
    assert int(networks["pairs"].count) == 0
    draws = Draws(0, 0, 64)
    batch = GaussianData().batch(draws)
    images = []
    for phase in phases[:2]:
        networks["pairs"].clear()
        method.losses(phase, phase.start, networks, teacher, batch, draws)
        images.append(networks["pairs"].x0_NCHW.clone())
    assert not torch.allclose(images[0], images[1])
    assert method.contract(teacher.spec).steps == (1,)


def test_pairs_are_made_once_and_come_back_from_a_state(teacher):
    cache = PairCache(teacher.spec, 100)
    table = ddim(PROCESS, V, uniform_times(4))
    batch = GaussianData().batch(Draws(0, 0, 64))
    made = [cache.next(teacher, table, batch, Draws(0, step, 64)) for step in range(2)]
    assert int(cache.count) >= 100
    assert len(made[1].x0_BCHW) == 64, "the batch is whole, the cache keeps what fits"
    kept = PairCache(teacher.spec, 100)
    kept.load_state_dict(cache.state_dict())
    again = kept.next(Teacher(teacher.spec, torch.nn.Identity()), table, batch, Draws(0, 2, 64))
    x0 = run(exact_teacher(), table, again.z_BCHW)
    torch.testing.assert_close(again.x0_BCHW.double(), x0, rtol=1e-4, atol=1e-5)


def test_pairs_do_not_depend_on_the_parts_of_a_batch(teacher):
    """Also where the cache is full before the last part, and of parts that do not come in the order of the batch."""
    table, whole, parted = (
        ddim(PROCESS, V, uniform_times(2)),
        PairCache(teacher.spec, 24, 16),
        PairCache(teacher.spec, 24, 16),
    )
    drawn = []
    for step in range(3):
        pairs = whole.next(teacher, table, GaussianData().batch(Draws(0, step, 16)), Draws(0, step, 16))
        parts = [Draws(0, step, 8, first_sample=first) for first in (8, 0)]
        made = [parted.next(teacher, table, GaussianData().batch(draws), draws) for draws in parts]
        drawn.append((pairs.x0_BCHW, torch.cat([made[1].x0_BCHW, made[0].x0_BCHW])))
    assert torch.equal(whole.seed_N, parted.seed_N)
    torch.testing.assert_close(whole.x0_NCHW, parted.x0_NCHW)
    for one, other in drawn:
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("method", "knots", "bound"),
    [
        (SimpleFastDistillation(steps=2, teacher_steps=12, huber=0.3), 3, 0.03),
        (PhasedConsistency(steps=2, levels_per_phase=8, huber=0.3), 17, 0.04),
        (LatentConsistency(steps=1, num_levels=24, solver_order=2, huber=0.3), 25, 0.05),
    ],
    ids=["sfd", "pcm", "lcm"],
)
def test_few_steps_are_the_exact_flow(teacher, method, knots, bound):
    student = start_at(AffineOfTime(3, num_knots=knots), denoiser)
    (phase,) = method.phases(teacher.spec)
    z, flow, table = unit(), exact_teacher().flow(unit()), method.contract(teacher.spec).plans[method.steps]
    assert relative(run(student, table, z), flow) > 0.2
    networks = {"student": student, "target": frozen_copy(student)}
    fit(method, phase, networks, teacher, iterations=600, learning_rate=2e-2)
    assert relative(run(student, table, z), flow) < bound


def test_trajectory_consistency_is_nearer_to_the_flow_than_its_teacher(teacher):
    """One x0 for every target time cannot be exact, but it must beat the denoiser's by far."""
    method = TrajectoryConsistency(steps=2, segments=2, gamma=0.0, huber=0.3)
    student = start_at(AffineOfTime(3, num_knots=17), denoiser)
    z, flow, table = unit(), exact_teacher().flow(unit()), method.contract(teacher.spec).plans[2]
    before = relative(run(student, table, z), flow)
    networks = {"student": student, "target": frozen_copy(student)}
    fit(method, method.phases(teacher.spec)[0], networks, teacher, iterations=1000, learning_rate=1e-2)
    assert relative(run(student, table, z), flow) < 0.5 * before
    assert TrajectoryConsistency().contract(teacher.spec).plans[4].is_stochastic


def test_boot_learns_the_flow_from_noise_alone(teacher):
    method = Boot()
    student = AffineOfTime(3)
    fit(method, method.phases(teacher.spec)[0], {"student": student}, teacher, iterations=2000, learning_rate=2e-2)
    z = unit()
    made = run(student, method.contract(teacher.spec).plans[1], z)
    assert relative(made, exact_teacher().flow(z)) < 0.06


def test_a_signal_step_is_a_ddim_step(teacher):
    z, x0, y = unit(8).float(), unit(16)[8:].float(), unit(24)[16:].float()
    t, s = torch.full((8,), 0.7), torch.full((8,), 0.6)
    x_s = teacher.step_with(PROCESS.add_noise(y, z, t), x0, t, s)
    level = PROCESS.at(s).like(x_s)
    torch.testing.assert_close(signal_step(PROCESS, y, x0, t, s), (x_s - level.sigma * z) / level.alpha)


def test_a_boundary_is_added_where_there_is_none():
    for prediction, kind in (("eps", "lcm"), ("x0", "lcm"), ("v", "none"), ("flow", "none")):
        assert with_boundary(Parameterization(prediction=Prediction(prediction))).preconditioning.kind == kind


def test_a_jump_is_a_straight_line_of_the_flow(teacher):
    """``y_s = y_t - (tau_t - tau_s) u`` in the rectified flow's coordinates, for any x0."""
    x, x0 = unit(8), unit(16)[8:]
    t, s = torch.full((8,), 0.8, dtype=torch.float64), torch.full((8,), 0.3, dtype=torch.float64)
    x_s = teacher.step_with(x, x0, t, s)
    y_t, y_s = (
        state / (level.alpha + level.sigma)
        for state, level in ((x, PROCESS.at(t).like(x)), (x_s, PROCESS.at(s).like(x)))
    )
    interval = (flow_time(PROCESS, t) - flow_time(PROCESS, s))[:, None, None, None]
    torch.testing.assert_close(y_s, y_t - interval * velocity(PROCESS, x, x0, t))


@pytest.mark.parametrize(
    ("method", "wrong"),
    [
        (SimpleFastDistillation, {"teacher_steps": 1}),
        (SimpleFastDistillation, {"huber": 0.0}),
        (PhasedConsistency, {"levels_per_phase": 1}),
        (PhasedConsistency, {"solver_order": 3}),
        (PhasedConsistency, {"target_decay": 1.0}),
        (TrajectoryConsistency, {"segments": -1}),
        (TrajectoryConsistency, {"segments": 5}),
        (TrajectoryConsistency, {"gamma": 1.5}),
        (LatentConsistency, {"pairs": "ect"}),
        (Boot, {"steps": 4}),
        (Boot, {"step_size": 0.0}),
        (Boot, {"boundary_weight": 0.0}),
    ],
)
def test_settings_out_of_range(method, wrong):
    with pytest.raises(UsageError):
        method(**wrong)


def test_flow_time_and_back():
    t = torch.linspace(0.0, 1.0, 11)
    torch.testing.assert_close(t_from_flow_time(PROCESS, flow_time(PROCESS, t)), t, atol=1e-5, rtol=1e-5)
    assert t_from_flow_time(PROCESS, 1.0) == 1.0
    assert t_from_flow_time(PROCESS, 0.0) == 0.0


def test_counts_of_steps():
    assert powers_of_two(1) == [1]
    assert powers_of_two(6) == [1, 2, 4, 6]
    assert uniform_times(4) == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("wrong", [{"steps": 2}, {"num_pairs": 0}, {"teacher_steps": 0}])
def test_knowledge_distillation_refuses(wrong):
    with pytest.raises(UsageError):
        KnowledgeDistillation(**wrong)


def test_rectified_flow_refuses():
    with pytest.raises(UsageError):
        RectifiedFlow(times=0)


def test_phase_of_kd_is_one(teacher):
    assert KnowledgeDistillation(iterations=7).phases(teacher.spec) == (Phase(name="kd", start=0, iterations=7),)
