"""A solver made for its teacher: the best weights, times that no move betters, a table that runs what was fitted."""

import dataclasses
import itertools

import pytest
import torch
from closed_forms import PROCESS, V, plain_spec
from gaussian_fit import GaussianData, denoiser, exact_teacher, relative, run, unit

from distill_rt.core.errors import ResourceError, UsageError
from distill_rt.core.process import EDM, RectifiedFlow
from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.samplers.dpmpp_2m import dpmpp_2m
from distill_rt.models import load_student
from distill_rt.training.methods.bespoke import BespokeSolver
from distill_rt.training.plans import uniform_times
from distill_rt.training.predictor import Conditions, Teacher
from distill_rt.training.run import distill, train
from distill_rt.training.solver_fit import fit_solver, search_solver
from distill_rt.training.trajectories import Trajectories, record

GRID = [*uniform_times(20), 0.0]


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher(plain_spec(3), exact_teacher())


@pytest.fixture(scope="module")
def trajectories(teacher: Teacher) -> Trajectories:
    return record(teacher, unit(512), GRID, Conditions())


def test_trajectories_follow_the_exact_flow(trajectories: Trajectories) -> None:
    exact, z = exact_teacher(), trajectories.states[0]
    for t, state, x0 in zip(GRID, trajectories.states, (*trajectories.predictions, None), strict=True):
        assert relative(state, exact.flow(z, 1.0, t)) < 0.02
        if x0 is not None:
            assert relative(x0, denoiser(state, t)) < 1e-5


@pytest.mark.parametrize("indices", [(0,), (0, 10), (2, 9, 15), (0, 4, 8, 12, 16), (1, 3, 5, 8, 11, 17)])
def test_no_other_weights_of_a_step_come_nearer(trajectories: Trajectories, indices: tuple[int, ...]) -> None:
    solver = fit_solver(trajectories, indices)
    for i, weights in enumerate(solver.weights):
        features = [solver.states[i], *reversed(solver.predictions[max(0, i - 3) : i + 1])]
        assert len(weights) == len(features) == 2 + min(i, 3)
        target = trajectories.states[indices[i + 1] if i + 1 < len(indices) else -1]
        best = (solver.states[i + 1] - target).square().sum()
        for j, step in itertools.product(range(len(features)), (0.05, -0.05)):
            assert (solver.states[i + 1] + step * features[j] - target).square().sum() > best
    assert solver.error == pytest.approx(float((solver.states[-1] - trajectories.states[-1]).square().mean().sqrt()))


def test_evaluations_of_a_like_solver_are_not_repeated(trajectories: Trajectories, monkeypatch) -> None:
    like = fit_solver(trajectories, (0, 5, 10, 15))
    calls: list[float] = []
    x0 = Teacher.x0

    def counted(self: Teacher, x: torch.Tensor, t: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        calls.append(float(t[0]))
        return x0(self, x, t, conditions)

    monkeypatch.setattr(Teacher, "x0", counted)
    quick = fit_solver(trajectories, (0, 5, 11, 15), like=like)
    assert calls == pytest.approx([GRID[11], GRID[15]])
    slow = fit_solver(trajectories, (0, 5, 11, 15))
    assert (quick.weights, quick.error) == (slow.weights, slow.error)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5])
def test_no_move_of_one_time_betters_what_was_found(trajectories: Trajectories, num_steps: int) -> None:
    found = search_solver(trajectories, num_steps)
    assert found.error <= fit_solver(trajectories, [i * 20 // num_steps for i in range(num_steps)]).error
    for i, step in itertools.product(range(num_steps), (1, -1)):
        moved = [*found.indices]
        moved[i] += step
        if moved[0] >= 0 and all(a < b for a, b in itertools.pairwise([*moved, 20])):
            assert fit_solver(trajectories, moved).error >= found.error


def test_as_many_steps_as_intervals(teacher: Teacher) -> None:
    few = record(teacher, unit(16), [*uniform_times(5), 0.0], Conditions())
    assert search_solver(few, 5).indices == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("steps", [2, 3, 4, 8])
def test_nearer_to_the_exact_flow_than_any_general_solver(teacher: Teacher, steps: int) -> None:
    found = BespokeSolver(steps=steps).searched(teacher, GaussianData(), seed=0)
    z = unit()  # not what it was fitted to
    mine, *others = (
        relative(run(exact_teacher(), table, z), exact_teacher().flow(z))
        for table in (
            found.contract(teacher.spec).plans[steps],
            ddim(PROCESS, V, uniform_times(steps)),
            dpmpp_2m(PROCESS, V, uniform_times(steps)),
        )
    )
    assert mine < 0.5 * min(others)
    assert found.searched(teacher, GaussianData(), seed=1) == found, "what was found is not searched again"


@pytest.mark.parametrize("process", [PROCESS, EDM(sigma_max=20.0), RectifiedFlow()], ids=["vp", "edm", "flow"])
@pytest.mark.parametrize("steps", [1, 3, 6])
def test_the_table_runs_what_was_fitted(process, steps: int) -> None:
    """On processes of every kind; a solver that starts below time 1 has the noise of its own time."""
    spec = dataclasses.replace(plain_spec(3), process=process)

    class Denoiser(torch.nn.Module):
        def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            level = process.at(process.t_from_model_time(time.double())).like(x.double())
            x0 = level.alpha * x.double() / (level.alpha**2 + level.sigma**2)
            return V.target(x.double(), x0, level).nan_to_num().to(x.dtype)  # a flow has no noise at 0

    teacher = Teacher(spec, Denoiser())
    z = unit(64)
    fitted = fit_solver(record(teacher, z, GRID, Conditions()), range(2, 2 + steps))
    settings = {
        "times": ",".join(f"{GRID[i]:.9g}" for i in fitted.indices),
        "weights": ";".join(",".join(f"{w:.9g}" for w in step) for step in fitted.weights),
    }
    table = BespokeSolver(steps=steps, **settings).contract(spec).plans[steps]
    torch.testing.assert_close(run(Denoiser(), table, z).float(), fitted.states[-1], rtol=2e-4, atol=2e-4)


def test_a_teacher_that_is_not_finite_is_named() -> None:
    class Broken(torch.nn.Module):
        def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            return torch.where(PROCESS.t_from_model_time(time)[:, None, None, None] < 0.5, torch.nan, x)

    with pytest.raises(ResourceError, match=r"not finite below time 0\.5") as caught:
        record(Teacher(plain_spec(3), Broken()), unit(4), GRID, Conditions())
    assert "\n" not in str(caught.value)


def test_equal_predictions_share_their_weight() -> None:
    class Constant(torch.nn.Module):
        def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            t = PROCESS.t_from_model_time(time)
            return V.target(x, torch.full_like(x, 0.3), PROCESS.at(t).like(x))

    solver = fit_solver(record(Teacher(plain_spec(3), Constant()), unit(64), GRID, Conditions()), (0, 5, 10, 15))
    assert solver.error < 1e-3
    assert max(abs(w) for step in solver.weights for w in step) <= 1.0 + 1e-3
    of_predictions = torch.tensor(solver.weights[2][1:])
    torch.testing.assert_close(of_predictions, of_predictions[:1].expand(3), rtol=0.05, atol=1e-3)


def test_a_student_is_its_teacher_with_the_solver_of_its_settings(tmp_path) -> None:
    train("grid25-labelled-teacher", tmp_path / "teacher", settings={"steps": "60", "batch_size": "32"})
    settings = {"intervals": "12", "batch_size": "32"}
    planned = distill("bespoke", tmp_path / "teacher", tmp_path / "s", steps=3, settings=settings, dry_run=True)
    assert not (tmp_path / "s").exists()
    seen = []
    made = distill(
        "bespoke",
        tmp_path / "teacher",
        tmp_path / "s",
        steps=3,
        settings=settings,
        progress=lambda *told: seen.append(told),
    )
    assert made["training_steps"] == 0
    assert [told[1:3] for told in seen if "trajectories" in told[0]] == [(i + 1, 12) for i in range(12)]
    assert [told for told in seen if "solver" in told[0] and told[3] > 0]
    student, teacher = load_student(tmp_path / "s"), load_student(tmp_path / "teacher")
    for name, weights in teacher.networks[0].state_dict().items():
        assert torch.equal(student.networks[0].state_dict()[name], weights)
    assert (student.spec.guidance, student.spec.condition) == (teacher.spec.guidance, teacher.spec.condition)
    found = student.spec.provenance["settings"]
    assert {name: found[name] for name in ("times", "weights")} == {
        name: planned["settings"][name] for name in ("times", "weights")
    }
    assert [len(step.split(",")) for step in found["weights"].split(";")] == [2, 3, 4]
    both = {**settings, "times": found["times"], "weights": found["weights"]}
    again = distill("bespoke", tmp_path / "teacher", tmp_path / "given", steps=3, settings=both)
    assert again["digest"] == made["digest"], "a solver that is given is the solver that was found"
    times = {**settings, "times": found["times"]}
    distill("bespoke", tmp_path / "teacher", tmp_path / "times", steps=3, settings=times)
    assert load_student(tmp_path / "times").spec.plans == student.spec.plans, "times alone get the same weights"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "1 <= steps <= intervals"),
        ({"steps": 61}, "1 <= steps <= intervals"),
        ({"batch_size": 0}, "at least 1"),
        ({"times": "1,0.5"}, "4 steps need as many times"),
        ({"steps": 2, "times": "1,half"}, "times are numbers with commas"),
        ({"steps": 2, "weights": "1,1;1,1,1"}, "weights belong to times"),
        ({"steps": 2, "times": "1,0.5", "weights": "1,1;1,1"}, r"\[2, 3\] in number, got \[2, 2\]"),
        ({"steps": 2, "times": "1,0.5", "weights": "1,1"}, r"\[2, 3\] in number, got \[2\]"),
        ({"steps": 2, "times": "1,0.5", "weights": "1,x;1,1,1"}, "weights are numbers with commas"),
    ],
)
def test_settings_out_of_range(wrong, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        BespokeSolver(**wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("times", ["0.5,1", "1,1", "1,nan", "2,1"])
def test_times_that_do_not_fall_are_refused(teacher: Teacher, times: str) -> None:
    with pytest.raises(UsageError, match="fall"):
        BespokeSolver(steps=2, times=times).searched(teacher, GaussianData(), seed=0)


def test_weights_that_are_no_numbers_are_refused(teacher: Teacher) -> None:
    with pytest.raises((UsageError, ValueError), match="finite"):
        BespokeSolver(steps=1, times="1", weights="1,nan").contract(teacher.spec)
