"""The search of a teacher's times: the cheapest of all paths, and nearer to the exact flow than uniform times."""

import itertools

import pytest
import torch
from closed_forms import PROCESS, V, plain_spec
from gaussian_fit import GaussianData, denoiser, exact_teacher, relative, run, unit

from distill_rt.core.errors import UsageError
from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.samplers.dpmpp_2m import dpmpp_2m
from distill_rt.models import load_student
from distill_rt.training.methods.gits import ScheduleSearch
from distill_rt.training.plans import uniform_times
from distill_rt.training.predictor import Conditions, Teacher
from distill_rt.training.run import distill, train
from distill_rt.training.schedule_search import cheapest_path, jump_costs
from distill_rt.training.trajectories import record


@pytest.fixture
def teacher():
    return Teacher(plain_spec(3), exact_teacher())


@pytest.mark.parametrize("step_weight", [0.8, 1.0, 1.15])
@pytest.mark.parametrize("seed", range(5))
def test_the_path_found_is_the_cheapest_of_all(step_weight, seed):
    size = 9
    costs = torch.rand(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    costs = torch.where(torch.ones(size, size).triu(1) > 0, costs, torch.inf)

    def total(path):
        return sum(step_weight**i * float(costs[j, k]) for i, (j, k) in enumerate(itertools.pairwise(path)))

    for num_steps in range(1, size):
        between = itertools.combinations(range(1, size - 1), num_steps - 1)
        best = min(((0, *chosen, size - 1) for chosen in between), key=total)
        assert cheapest_path(costs, num_steps, step_weight=step_weight) == list(best)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_costs_are_distances_from_the_exact_flow(teacher, power):
    x, times = unit().double(), [*uniform_times(80), 0.0]
    costs = jump_costs(record(teacher, x, times, Conditions()), power=power)
    exact = exact_teacher()
    for j, k in ((0, 80), (0, 40), (20, 30), (60, 80)):
        t, s = times[j], times[k]
        x_t, x_s = exact.flow(x, 1.0, t), exact.flow(x, 1.0, s)
        jumped = teacher.step_with(x_t, denoiser(x_t, t), torch.full((len(x),), t), torch.full((len(x),), s))
        expected = ((jumped - x_s).square().flatten(1).mean(1) ** (power / 2)).mean()
        assert float(costs[j, k]) == pytest.approx(float(expected), rel=0.04)
    assert torch.isinf(costs.tril()[torch.ones_like(costs).tril() > 0]).all()


def test_where_every_jump_is_exact_all_cost_nothing():
    class Constant(torch.nn.Module):
        def forward(self, x, time):
            t = PROCESS.t_from_model_time(time)
            return V.target(x, torch.full_like(x, 0.3), PROCESS.at(t).like(x))

    costs = jump_costs(record(Teacher(plain_spec(3), Constant()), unit(16), [*uniform_times(6), 0.0], Conditions()))
    assert costs[torch.ones_like(costs).triu(1) > 0].max() < 1e-3


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m"])
@pytest.mark.parametrize("steps", [2, 3, 4, 8])
def test_found_times_are_nearer_to_the_exact_flow_than_uniform_ones(teacher, steps, solver, power):
    method = ScheduleSearch(steps=steps, solver=solver, power=power)
    found = method.searched(teacher, GaussianData(), seed=0)
    z = unit()
    errors = [
        relative(run(exact_teacher(), table, z), exact_teacher().flow(z))
        for table in (
            found.contract(teacher.spec).plans[steps],
            {"ddim": ddim, "dpmpp_2m": dpmpp_2m}[solver](PROCESS, V, uniform_times(steps)),
        )
    ]
    assert errors[0] < errors[1]
    assert found.searched(teacher, GaussianData(), seed=1) == found, "what was found is not searched again"


def test_a_student_is_its_teacher_with_the_times_of_its_settings(tmp_path):
    train("grid25-labelled-teacher", tmp_path / "teacher", settings={"steps": "60", "batch_size": "32"})
    settings = {"intervals": "12", "batch_size": "32"}
    planned = distill("gits", tmp_path / "teacher", tmp_path / "s", steps=3, settings=settings, dry_run=True)
    assert not (tmp_path / "s").exists()
    assert planned["phases"] == []
    made = distill("gits", tmp_path / "teacher", tmp_path / "s", steps=3, settings=settings, resume=True)
    assert made["training_steps"] == 0
    student, teacher = load_student(tmp_path / "s"), load_student(tmp_path / "teacher")
    for name, weights in teacher.networks[0].state_dict().items():
        assert torch.equal(student.networks[0].state_dict()[name], weights)
    assert (student.spec.guidance, student.spec.condition) == (teacher.spec.guidance, teacher.spec.condition)
    times = student.spec.provenance["settings"]["times"]
    assert times == planned["settings"]["times"]
    assert len(times.split(",")) == 3
    given = {**settings, "times": times}
    again = distill("gits", tmp_path / "teacher", tmp_path / "given", steps=3, settings=given)
    assert again["digest"] == made["digest"], "times that are given are the times that were found"


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"steps": 61},
        {"batch_size": 0},
        {"step_weight": 0.0},
        {"power": -1.0},
        {"times": "1,0.5"},
        {"steps": 2, "times": "1,half"},
    ],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(UsageError) as caught:
        ScheduleSearch(**wrong)
    assert "\n" not in str(caught.value)


def test_times_that_do_not_fall_are_refused(teacher):
    for times in ("0.5,1", "1,1", "1,nan", "2,1"):
        with pytest.raises(UsageError, match="fall"):
            ScheduleSearch(steps=2, times=times).contract(teacher.spec)
