"""Profiles: which shapes a plan is compiled for, and which one serves a request."""

from __future__ import annotations

import itertools

import pytest

from distill_rt.backends.tensorrt.profiles import Profile, concrete_shape, make_profiles, profile_for
from distill_rt.core.spec import TensorSpec


def test_one_bucket_is_one_point() -> None:
    assert make_profiles([{"B": 4}]) == (Profile.point({"B": 4}),)


def test_buckets_of_batch_and_size_and_one_range_over_them() -> None:
    buckets = [{"B": batch, "H": size, "W": size} for batch, size in itertools.product((1, 4), (64, 96))]
    profiles = make_profiles(buckets)
    assert profiles[:-1] == tuple(Profile.point(bucket) for bucket in buckets)
    assert profiles[-1] == Profile(
        low={"B": 1, "H": 64, "W": 64}, best={"B": 1, "H": 64, "W": 64}, high={"B": 4, "H": 96, "W": 96}
    )


def test_points_win_over_the_range_and_the_range_serves_the_rest() -> None:
    profiles = make_profiles([{"B": 1}, {"B": 4}, {"B": 16}])
    assert [profile_for(profiles, {"B": batch}) for batch in (1, 4, 16)] == [0, 1, 2]
    assert {profile_for(profiles, {"B": batch}) for batch in (2, 3, 5, 15)} == {3}
    assert profile_for(profiles, {"B": 17}) is None
    assert profile_for(profiles, {"B": 1, "H": 64}) is None


def test_shapes() -> None:
    tensor = TensorSpec(name="sample", dtype="float32", shape=("B", 4, "H", "W"))
    assert concrete_shape(tensor, {"B": 2, "H": 64, "W": 96}) == (2, 4, 64, 96)


@pytest.mark.parametrize(
    ("low", "best", "high"),
    [
        ({"B": 2}, {"B": 1}, {"B": 4}),
        ({"B": 1}, {"B": 8}, {"B": 4}),
        ({"B": 0}, {"B": 1}, {"B": 4}),
        ({"B": 1}, {"H": 1}, {"B": 4}),
    ],
)
def test_sizes_that_are_none(low: dict[str, int], best: dict[str, int], high: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="profile"):
        Profile(low=low, best=best, high=high)
