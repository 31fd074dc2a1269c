"""How the constants of `distill_rt.core.noise` were made: run this file to print them again.

Three weighted minimax polynomials in float64, then rounded to float32:

* ``LOG``: (log(1+f) - f) / f^2 for f in [sqrt(1/2) - 1, sqrt(2) - 1], error of the logarithm in absolute terms;
* ``CENTRE``: z / x in powers of w - 2.5 for w in [0, 5], relative error;
* ``TAIL``: z / x in powers of sqrt(w) - 3 for w in [5, 22], relative error,

with x = 1 - 2p, w = -log(4p(1-p)) = -log(1 - x^2) and z = -Phi^-1(p): Giles (2010), "Approximating the erfinv
function", with sqrt(2) folded in and our own fits (his single precision tail is made for w <= 16).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.polynomial import chebyshev, polynomial
from numpy.typing import NDArray
from scipy.special import erfinv, ndtri

Float64 = NDArray[np.float64]

LOG_DEGREE, CENTRE_DEGREE, TAIL_DEGREE = 6, 7, 7
SPLIT_W, MAX_W = 5.0, 22.0


def z_over_x(w: Float64) -> Float64:
    """z / x as a function of w > 0, in float64 without cancellation."""
    x = np.sqrt(-np.expm1(-w))
    p = np.exp(-w) / (2 * (1 + x))  # the root of 4p(1-p) = exp(-w) below 1/2
    z: Float64 = np.where(w < SPLIT_W, np.sqrt(2) * erfinv(x), -ndtri(p))
    return z / x


def log_rest(f: Float64) -> Float64:
    """(log(1+f) - f) / f^2, by its series near zero."""
    near_zero = np.abs(f) < 1e-3
    safe = np.where(near_zero, 1.0, f)
    series = -1 / 2 + f / 3 - f**2 / 4 + f**3 / 5 - f**4 / 6
    return np.where(near_zero, series, (np.log1p(safe) - safe) / safe**2)


def minimax(
    function: Callable[[Float64], Float64],
    weight: Callable[[Float64], Float64],
    *,
    low: float,
    high: float,
    centre: float,
    degree: int,
) -> tuple[float, NDArray[np.float32]]:
    """Polynomial in powers of (s - centre), lowest first, that minimises max |weight * error| on [low, high].

    Lawson's algorithm (1961): least squares, reweighted by its own error until the errors level out.
    Returns the maximal weighted error before rounding, and the float32 coefficients.
    """
    num_nodes = 2000
    u = np.cos(np.pi * (np.arange(num_nodes) + 0.5) / num_nodes)
    middle, half = (low + high) / 2, (high - low) / 2
    s = middle + half * u
    target, scale = function(s), weight(s)
    basis = chebyshev.chebvander(u, degree)
    lawson: NDArray[Any] = np.ones(num_nodes)
    best_error, best = np.inf, np.zeros(degree + 1)
    for _ in range(200):
        root = np.sqrt(lawson) * scale
        coefficients = np.linalg.lstsq(basis * root[:, None], target * root, rcond=None)[0]
        error = np.abs((basis @ coefficients - target) * scale)
        if error.max() < best_error:
            best_error, best = float(error.max()), coefficients
        lawson = lawson * error / np.mean(lawson * error)
    # Chebyshev in u = ((s - centre) + (centre - middle)) / half, rewritten in powers of (s - centre).
    linear: Any = np.array([(centre - middle) / half, 1 / half])
    powers: Any = np.zeros(1)
    for coefficient in chebyshev.cheb2poly(best)[::-1]:
        powers = polynomial.polyadd(polynomial.polymul(powers, linear), [coefficient])
    return best_error, powers[: degree + 1].astype(np.float32)


def fit() -> dict[str, tuple[float, NDArray[np.float32]]]:
    """{name: (maximal error of the float64 polynomial, float32 coefficients, lowest power first)}."""
    root_half, root_two = np.sqrt(0.5), np.sqrt(2.0)
    return {
        "LOG": minimax(log_rest, lambda f: f**2, low=root_half - 1, high=root_two - 1, centre=0.0, degree=LOG_DEGREE),
        "CENTRE": minimax(
            z_over_x, lambda w: 1 / z_over_x(w), low=1e-12, high=SPLIT_W, centre=2.5, degree=CENTRE_DEGREE
        ),
        "TAIL": minimax(
            lambda r: z_over_x(r * r),
            lambda r: 1 / z_over_x(r * r),
            low=np.sqrt(SPLIT_W),
            high=np.sqrt(MAX_W),
            centre=3.0,
            degree=TAIL_DEGREE,
        ),
    }


if __name__ == "__main__":
    for name, (error, coefficients) in fit().items():
        print(f"{name}  # maximal error {error:.1e}")
        for coefficient in coefficients:
            print(f"    {float(coefficient):.9g},")
