"""Noise: the integers are Philox, the normals are normal, and the same seed is the same bits whatever the batch."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.special import erfinv, ndtri
from scipy.stats import kstest

from distill_rt.core import noise
from distill_rt.core.errors import UsageError


# Random123's known answers (kat_vectors, philox4x32 10): counter, key, result.
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    words = noise.philox4x32(counter[0], counter[1], *key, counter2=counter[2], counter3=counter[3])
    assert tuple(int(word) for word in words) == expected


def test_layout_of_key_counter_and_blocks() -> None:
    """The contract in words: element e is word e % 4 of block e // 4, key = (low, high), counter = (block, stream)."""
    seed, stream = 0x0123456789ABCDEF, 7
    bits = noise.uniform_bits([seed], 11, stream)[0]
    for e in range(11):
        assert bits[e] == noise.philox4x32(e // 4, stream, seed & 0xFFFFFFFF, seed >> 32)[e % 4]


# sha256 of the little-endian bytes. They are the contract with every image ever made: never update them.
GOLDEN = {
    "latent": "9e521173e3224bfd88fd4c1577b17fa957b076e9f6a13dc30af30d4d43f5099c",
    "odd": "6b8de190ee82d9ed0ff66c2da1653f762cb7346a5459e6240f9a9493eb887df2",
    "extreme-seeds": "0c6e95baeee2388dcd140cb0be9dd6c7174d2a8e49677c06f8314d4402e1a81d",
    "extra-stream": "2d0790152869adfb2abcee9aa2bddd934c61aece3b62aa6ce2dc4ce6497dab8f",
}
DRAWS: dict[str, tuple[list[int], tuple[int, ...], int]] = {
    "latent": ([0, 1], (4, 64, 64), noise.INITIAL_STREAM),
    "odd": ([42], (3, 7, 5), noise.step_stream(0)),
    "extreme-seeds": ([2**64 - 1, 2**63, 2**32], (1, 9, 9), noise.step_stream(3)),
    "extra-stream": ([123456789], (1000,), noise.EXTRA_STREAM_BASE),
}


@pytest.mark.parametrize("name", DRAWS)
def test_golden_hashes(name: str) -> None:
    seeds, shape, stream = DRAWS[name]
    z = noise.unit_noise(seeds, shape, stream)
    assert z.shape == (len(seeds), *shape)
    assert z.dtype == np.float32
    assert hashlib.sha256(z.astype("<f4").tobytes()).hexdigest() == GOLDEN[name]


def test_draws_are_standard_normal() -> None:
    z = noise.unit_noise([2026], (2_000_000,)).reshape(-1).astype(np.float64)
    assert kstest(z, "norm").pvalue > 0.01
    # Moments 1..4 within four standard errors: Var(z^k) = E z^2k - (E z^k)^2 = 1, 2, 15, 96.
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(z**power) - mean) < 4 * np.sqrt(variance / z.size)


def test_neighbours_streams_and_seeds_are_uncorrelated() -> None:
    num = 400_000
    base = noise.unit_noise([5], (num,))[0].astype(np.float64)
    others = {
        "next element": np.roll(base, 1),
        "next block": np.roll(base, 4),
        "next stream": noise.unit_noise([5], (num,), noise.step_stream(0))[0],
        "next seed": noise.unit_noise([6], (num,))[0],
        "high word": noise.unit_noise([5 + 2**32], (num,))[0],
    }
    for name, other in others.items():
        assert abs(np.mean(base * other)) < 4 / np.sqrt(num), name


def test_normals_are_accurate_everywhere() -> None:
    """Relative error against scipy's Phi^-1 of the same p, over the whole tail, the centre and in between."""
    rng = np.random.default_rng(0)
    edge = np.arange(200_000, dtype=np.uint32)
    scattered = np.exp2(rng.uniform(0, 31, 200_000)).astype(np.uint32)
    k = np.concatenate([edge, np.uint32(2**31 - 1) - edge, scattered])
    z = noise.normal_from_bits(k).astype(np.float64)
    p = ((k.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)).astype(np.float64)
    expected = np.where(
        p < 0.1, -ndtri(p), np.sqrt(2) * erfinv(1 - 2 * p)
    )  # ndtri cancels near 1/2, erfinv in the tail
    at_zero = expected == 0
    assert not z[at_zero].any()
    assert np.max(np.abs(z[~at_zero] / expected[~at_zero] - 1)) < 1e-6


def test_extreme_words_are_finite_and_symmetric() -> None:
    words = np.array([0, 1, 2**31 - 2, 2**31 - 1], np.uint32)
    positive, negative = noise.normal_from_bits(words), noise.normal_from_bits(words | np.uint32(2**31))
    assert np.isfinite(positive).all()
    np.testing.assert_array_equal(positive, -negative)
    assert 6.3 < positive[0] < 6.4
    assert positive[-1] == 0


@pytest.fixture(scope="module")
def fit_normal() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fit_normal", Path(__file__).with_name("fit_normal.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_constants_come_from_the_fit(fit_normal: ModuleType) -> None:
    for name, (error, coefficients) in fit_normal.fit().items():
        assert error < 5e-7
        np.testing.assert_allclose(getattr(noise, name), coefficients, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("num", [1, 2, 3, 4, 5, 63])
def test_noise_ignores_batch_size_and_position(num: int) -> None:
    seeds = [11, 2**64 - 1, 0, 11]
    together = noise.unit_noise(seeds, (num,), 3)
    for i, seed in enumerate(seeds):
        np.testing.assert_array_equal(together[i], noise.unit_noise([seed], (num,), 3)[0])
    np.testing.assert_array_equal(together[0], together[3])


def test_a_smaller_image_is_a_prefix() -> None:
    np.testing.assert_array_equal(noise.unit_noise([1], (30,))[0], noise.unit_noise([1], (3, 7, 5))[0].reshape(-1)[:30])


def test_streams_differ() -> None:
    streams = [noise.INITIAL_STREAM, noise.step_stream(0), noise.step_stream(1), noise.EXTRA_STREAM_BASE]
    assert len(set(streams)) == 4
    assert len({noise.unit_noise([1], (8,), stream).tobytes() for stream in streams}) == 4


def test_image_seeds_wrap() -> None:
    assert noise.image_seeds(2**64 - 2, 4).tolist() == [2**64 - 2, 2**64 - 1, 0, 1]
    assert noise.image_seeds(7, 0).shape == (0,)
    assert noise.unit_noise(noise.image_seeds(7, 0), (3, 2, 2)).shape == (0, 3, 2, 2)


@pytest.mark.parametrize("seeds", [[-1], [2**64], [0, 2**64], np.array([-1])])
def test_seed_out_of_range(seeds: list[int]) -> None:
    with pytest.raises(UsageError) as caught:
        noise.unit_noise(seeds, (4,))
    assert caught.value.code == "seed-out-of-range"


@pytest.mark.parametrize("seeds", [[1.5], ["1"], 3, [None], [[1]]])
def test_seed_of_wrong_type(seeds: object) -> None:
    with pytest.raises(UsageError) as caught:
        noise.unit_noise(seeds, (4,))  # type: ignore[arg-type]
    assert caught.value.code == "seed-type"


def test_large_seeds_keep_every_bit() -> None:
    """A list that mixes small and large integers must not pass through float64."""
    assert noise.seed_array([0, 2**63 + 1, 2**64 - 1]).tolist() == [0, 2**63 + 1, 2**64 - 1]


@pytest.mark.parametrize("stream", [-1, 2**32])
def test_stream_out_of_range(stream: int) -> None:
    with pytest.raises(UsageError, match="noise stream"):
        noise.unit_noise([0], (4,), stream)


@pytest.mark.parametrize("i", [-1, noise.EXTRA_STREAM_BASE - 1])
def test_step_out_of_range(i: int) -> None:
    with pytest.raises(UsageError, match="step index"):
        noise.step_stream(i)
