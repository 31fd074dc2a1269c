"""Distances between two sets of samples, chosen because together they catch every stub (notes in docs/methods.md).

Every function takes samples (N, ...) and is deterministic: seeds are arguments. Raw-pixel Frechet distance is not here on
purpose: on small data a Gaussian fit reaches the floor of it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sliced_wasserstein(a: Tensor, b: Tensor, *, num_projections: int = 256, seed: int = 0) -> float:
    """Root mean square 2-Wasserstein distance over random one-dimensional projections (Rabin et al. 2011)."""
    generator = torch.Generator().manual_seed(seed)
    a, b = a.flatten(1), b.flatten(1)
    size = min(len(a), len(b))
    directions = F.normalize(torch.randn(a.shape[1], num_projections, generator=generator), dim=0)
    gap = (a[:size] @ directions).sort(dim=0).values - (b[:size] @ directions).sort(dim=0).values
    return float(gap.square().mean().sqrt())


def c2st(samples: Tensor, reference: Tensor, *, seed: int = 0, iterations: int = 600) -> float:
    """Classifier two-sample test: held-out accuracy of a small network telling the sets apart; 0.5 is indistinguishable.

    Lopez-Paz & Oquab 2017 (arXiv 1610.06545). Train on half of each set, test on the other; a 2x64 MLP.
    """
    size = min(len(samples), len(reference))
    half = size // 2
    a, b = samples.flatten(1)[:size], reference.flatten(1)[:size]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(a.shape[1], 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
        for _ in range(iterations):
            i, j = torch.randint(half, (2, 256))
            loss = F.softplus(-model(a[:half][i])).mean() + F.softplus(model(b[:half][j])).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        right = (model(a[half:]) > 0).float().mean() + (model(b[half:]) < 0).float().mean()
    return float(right / 2)


def precision_recall(samples: Tensor, reference: Tensor, *, k: int = 5, limit: int = 2000) -> tuple[float, float]:
    """k-nearest-neighbour precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991)."""
    a, b = samples.flatten(1)[:limit], reference.flatten(1)[:limit]
    distances = torch.cdist(b, a)
    radius_a, radius_b = (torch.cdist(s, s).topk(k + 1, largest=False).values[:, -1] for s in (a, b))
    precision = (distances <= radius_b[:, None]).any(dim=0).float().mean()
    recall = (distances <= radius_a[None, :]).any(dim=1).float().mean()
    return float(precision), float(recall)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance between Gaussians fitted to two sets of FEATURES (Heusel et al. 2017, equation 6), shape (N, D)."""
    x, y = a.double().numpy(), b.double().numpy()
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    # trace of (cov_x cov_y)^(1/2) through the symmetric square root of cov_x: stays real for singular covariances
    values, vectors = np.linalg.eigh(cov_x)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ cov_y @ root), 0, None)).sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x) + np.trace(cov_y) - 2 * cross)


def duplicate_fraction(samples: Tensor, *, tolerance: float = 1e-5, limit: int = 8000) -> float:
    """Share of samples with another sample within `tolerance` (root mean square per element)."""
    a = samples.flatten(1)[:limit]
    exact = "donot_use_mm_for_euclid_dist"  # the faster way by matrix products is off by 1e-3 between near points
    nearest = [torch.cdist(part, a, compute_mode=exact).topk(2, largest=False).values[:, 1] for part in a.split(1000)]
    return float((torch.cat(nearest) / a.shape[1] ** 0.5 < tolerance).float().mean())


def pairing_rmse(samples: Tensor, reference: Tensor) -> float:
    """Root mean square difference to the reference made from the same noise."""
    return float((samples - reference).square().mean().sqrt())


def grid_modes(samples: Tensor, *, spacing: float, mode_std: float) -> tuple[float, int]:
    """(share of points within 3 standard deviations of a mode of the 5x5 grid, number of modes hit).

    A mode counts as hit with at least a fifth of its fair share of the good points.
    """
    points = samples.flatten(1)
    nearest = (points / spacing).round().clamp(-2, 2)
    good = (points - nearest * spacing).norm(dim=1) <= 3 * mode_std
    index = ((nearest[:, 0] + 2) * 5 + nearest[:, 1] + 2).long()[good]
    counts = torch.bincount(index, minlength=25)
    return float(good.float().mean()), int((counts >= len(points) / 25 / 5).sum())
