"""The oracle on the plane, against the exact mixtures of the linear case."""

from __future__ import annotations

import math

import pytest
import torch

from invbayes import (
    GaussianMixture,
    LinearProblem,
    NotConverged,
    PoissonProblem,
    global_mode,
    plane_posterior,
    posterior,
)
from invbayes.examples import two_blobs, two_layers

BOX = (-6.0, 5.5, -5.5, 6.0)
MATRIX = torch.tensor([[1.0, 0.4], [-0.3, 0.8]], dtype=torch.float64)


def test_moments_and_modes_of_mixtures(generator):
    prior, problem = two_blobs(), LinearProblem(MATRIX, 0.4)
    y = problem.observe(prior.sample(70, generator=generator), generator=generator)
    found = plane_posterior(prior.log_prob, problem, y, box=BOX)
    belief = posterior(prior, problem, y)
    torch.testing.assert_close(found.mean, belief.mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.covariance, belief.covariance, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.mode, global_mode(belief), rtol=0, atol=1e-8)


@pytest.mark.parametrize(("unit", "origin"), [(1e6, 0.0), (1e-6, 0.0), (1.0, 1e5)])
def test_units_and_origin_change_nothing(unit, origin, generator):
    prior, problem = two_blobs(), LinearProblem(torch.eye(2).double(), 0.4)
    y = problem.observe(prior.sample(20, generator=generator), generator=generator)
    found = plane_posterior(prior.log_prob, problem, y, box=BOX)
    moved = plane_posterior(
        lambda x: prior.log_prob((x - origin) / unit),
        LinearProblem(torch.eye(2).double(), 0.4 * unit),
        origin + unit * y,
        box=tuple(origin + unit * end for end in BOX),
    )
    torch.testing.assert_close((moved.mean - origin) / unit, found.mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(moved.covariance / unit**2, found.covariance, rtol=0, atol=1e-8)
    torch.testing.assert_close((moved.mode - origin) / unit, found.mode, rtol=0, atol=1e-8)


def test_a_nonlinear_posterior_against_importance_sampling(generator):
    prior = GaussianMixture.gaussian(torch.zeros(2).double(), 0.36 * torch.eye(2).double())
    problem = two_layers(0.3)
    y = problem.observe(prior.sample(1, generator=generator), generator=generator)
    found = plane_posterior(prior.log_prob, problem, y, box=(-4.5, 4.5, -4.5, 4.5))
    x = prior.sample(200_000, generator=generator)
    weights = problem.log_likelihood(x, y).softmax(0)
    for wanted, parts in (
        (found.mean[0], x),
        (found.covariance[0], torch.einsum("ni,nj->nij", x - found.mean, x - found.mean)),
    ):
        mean = (weights[(...,) + (None,) * (parts.ndim - 1)] * parts).sum(0)
        spread = (parts - mean).square() * weights[(...,) + (None,) * (parts.ndim - 1)] ** 2
        assert ((mean - wanted) / spread.sum(0).sqrt()).abs().max() < 5
    slope = torch.func.grad(lambda p: (prior.log_prob(p) + problem.log_likelihood(p, y)).sum())(
        found.mode
    )
    assert slope.norm() < 1e-9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box": (-6.0, 0.0, -5.5, 6.0)}, "box must hold the posteriors"),
        ({"box": (0.0, 6.0, -5.5, 6.0)}, "box must hold the posteriors"),
        ({"box": (-6.0, 5.5, -5.5, 0.0)}, "box must hold the posteriors"),
        ({"box": (-6.0, 5.5, 0.0, 5.5)}, "box must hold the posteriors"),
        ({"box": (-6.0, 5.5, -5.5)}, "box must be"),
        ({"box": (-6.0, 5.5, 5.5, -5.5)}, "box must be"),
        ({"box": (-6.0, 5.5, -5.5, math.inf)}, "box must be"),
        ({"log_prior": lambda x: x[:, 0].log()}, "log_prior must be a number or −∞"),
        ({"nodes": 25}, "nodes must be more than 25: a node holds"),
        ({"nodes": 2}, "nodes must be an int of at least 3"),
        ({"log_prior": None}, "log_prior must be callable"),
        ({"problem": MATRIX}, "problem must be an InverseProblem"),
        ({"problem": LinearProblem(MATRIX[:, :1], 0.3)}, "problem must have two unknowns"),
        ({"y": torch.zeros(2).double()}, "y must have shape"),
        ({"y": torch.full((1, 2), math.nan).double()}, "y must be finite"),
        ({"y": torch.zeros(0, 2).double()}, "y must have shape"),
        ({"y": torch.zeros(1, 3).double()}, "y must have shape"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    given = {
        "log_prior": two_blobs().log_prob,
        "problem": LinearProblem(MATRIX, 0.2),
        "y": torch.zeros(1, 2).double(),
        "box": BOX,
    } | options
    with pytest.raises(ValueError, match=message):
        plane_posterior(given.pop("log_prior"), given.pop("problem"), given.pop("y"), **given)


@pytest.mark.parametrize(
    "log_prior",
    [
        lambda x: -5 * (x.square().sum(-1) - 1) ** 2,  # a ring: no point is the highest
        lambda x: -(x.norm(dim=-1) ** 1.5),  # a top without a second derivative
    ],
)
def test_a_top_that_is_no_mode_is_refused(log_prior):
    blind, y = LinearProblem(1e-9 * MATRIX, 1.0), torch.zeros(1, 2).double()
    with pytest.raises(NotConverged, match="did not end at a mode") as caught:
        plane_posterior(log_prior, blind, y, box=(-14.03, 14.0, -14.0, 14.02))
    assert caught.value.point.shape == (1, 2)


def test_the_mean_of_counts_moves_by_their_covariance():
    """D_z x_PM = τ Cov(x | z): it never folds."""
    prior, problem = two_blobs(), PoissonProblem(MATRIX, exposure=6.0)
    y = torch.tensor([[0.5, 1.2], [2.0, 0.7]], dtype=torch.float64)
    box, h = (-6.5, 7.0, -6.0, 6.5), 1e-4
    moved = []
    for step in h * torch.eye(2, dtype=torch.float64):
        move = torch.linalg.solve(MATRIX.mT, step)  # of y, for this step of z = A* y
        ends = [plane_posterior(prior.log_prob, problem, y + s * move, box=box) for s in (1, -1)]
        moved.append((ends[0].mean - ends[1].mean) / (2 * h))
    found = plane_posterior(prior.log_prob, problem, y, box=box)
    torch.testing.assert_close(torch.stack(moved, -1), 6 * found.covariance, rtol=1e-5, atol=1e-6)
