"""Counts: the law of the data, its likelihood, and what their normal data know."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse, stats

from invbayes import PoissonProblem, fresh_samples, quasi_samples
from invbayes.examples import two_blobs
from tests.conftest import assert_mean_close

MATRIX = torch.tensor([[1.0, 0.4], [-0.3, 0.8], [0.2, 0.5]], dtype=torch.float64)


def test_counts_have_their_law(generator):
    problem = PoissonProblem(MATRIX, exposure=3.0)
    x = torch.tensor([0.5, -0.4], dtype=torch.float64)
    counts = 3 * problem.observe(x.expand(20_000, 2), generator=generator)
    assert torch.equal(counts, counts.round())
    means = 3 * (MATRIX @ x).exp()
    torch.testing.assert_close(3 * problem.apply(x), means)
    for column, mean in zip(counts.unbind(1), means.tolist(), strict=True):
        bins = np.arange(9)
        seen = np.bincount(column.int().clamp(max=8).numpy(), minlength=9)
        law = stats.poisson(mean)
        wanted = len(column) * np.append(law.pmf(bins[:-1]), law.sf(7))
        assert stats.chisquare(seen, wanted).pvalue > 1e-4
    torch.testing.assert_close(torch.corrcoef(counts.T), torch.eye(3).double(), rtol=0, atol=0.03)


@pytest.mark.parametrize("draw", [fresh_samples, quasi_samples])
def test_samplers_give_normal_data_with_the_right_mean(draw, generator):
    problem = PoissonProblem(MATRIX, exposure=2.0)
    sampler = (
        draw(two_blobs(), problem, generator=generator)
        if draw is quasi_samples
        else draw(two_blobs(), problem)
    )
    x, z = sampler(2**14, generator)
    assert_mean_close(z - problem.mean_normal_data(x), torch.zeros(2).double())
    torch.testing.assert_close(problem.mean_normal_data(x), (x @ MATRIX.mT).exp() @ MATRIX)


def test_the_likelihood_is_poissons(generator):
    problem = PoissonProblem(MATRIX, exposure=5.0)
    x = torch.randn(6, 2, generator=generator).double()
    y = problem.observe(x[:1], generator=generator)
    law = torch.distributions.Poisson(5 * problem.apply(x)).log_prob(5 * y).sum(1)
    gap = law - problem.log_likelihood(x, y)
    torch.testing.assert_close(gap, gap[:1].expand_as(gap))
    assert problem.log_likelihood(x, y[:, None]).shape == (1, 6)


def test_the_score_of_the_likelihood_is_what_the_trainings_assume(generator):
    """∇ log p(y | x) = τ (z − E[z | x])."""
    problem = PoissonProblem(MATRIX, exposure=5.0)
    x = torch.randn(6, 2, generator=generator).double()
    y = problem.observe(x, generator=generator)
    slope = torch.func.grad(lambda p: problem.log_likelihood(p, y).sum())(x)
    wanted = (problem.normal_data(y) - problem.mean_normal_data(x)) / problem.noise_std**2
    torch.testing.assert_close(slope, wanted)


def test_a_sparse_matrix_is_the_same_problem(generator):
    problem = PoissonProblem(MATRIX, exposure=5.0)
    thin = PoissonProblem(sparse.csr_array(MATRIX.numpy()), exposure=5.0)
    x, y = torch.randn(2, 4, 2, generator=generator).double(), torch.rand(2, 4, 3).double()
    torch.testing.assert_close(thin.apply(x), problem.apply(x))
    torch.testing.assert_close(thin.normal_data(y), problem.normal_data(y))
    torch.testing.assert_close(thin.normal_operator, MATRIX.mT @ MATRIX)
    assert repr(thin) == "PoissonProblem((2,) -> (3,), exposure=5)"
    assert thin.dtype == torch.float64
    single = thin.to(dtype=torch.float32)
    torch.testing.assert_close(single.apply(x.float()), problem.apply(x).float())
    assert (single.exposure, single.dtype) == (5.0, torch.float32)


def test_what_cannot_be_is_refused():
    problem = PoissonProblem(MATRIX, exposure=5.0)
    x, y = torch.zeros(1, 2).double(), torch.tensor([[1.0, -0.2, 0.0]]).double()
    for call in (problem.normal_data, lambda data: problem.log_likelihood(x, data)):
        with pytest.raises(ValueError, match="y must hold counts over τ, not below zero"):
            call(y)
    with pytest.raises(ValueError, match="x must keep the intensities within"):
        problem.apply(x + 1000)
    with pytest.raises(ValueError, match="exposure must be finite and > 0"):
        PoissonProblem(MATRIX, exposure=0.0)
    with pytest.raises(ValueError, match="operator must be a matrix"):
        PoissonProblem(MATRIX[0], exposure=1.0)
    with pytest.raises(ValueError, match="x must have shape"):
        problem.apply(y)
    with pytest.raises(ValueError, match="white must have shape"):
        problem.respond(x, x)
    with pytest.raises(ValueError, match="dtype must be a floating-point dtype"):
        problem.to(dtype=torch.int64)
    far = problem.respond(x, torch.full((1, 3), 40.0).double())
    assert torch.isfinite(far).all()


def test_points_may_carry_a_gradient_or_be_mapped(generator):
    problem = PoissonProblem(MATRIX, exposure=5.0)
    x = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    y = problem.observe(x.requires_grad_(), generator=torch.Generator().manual_seed(1))
    assert not y.requires_grad
    x = x.detach()
    again = problem.observe(x, generator=torch.Generator().manual_seed(1))
    assert torch.equal(y, again)
    for name, points in (("apply", (x,)), ("log_likelihood", (x, y)), ("normal_data", (y,))):
        method = getattr(problem, name)
        torch.testing.assert_close(torch.func.vmap(method)(*points), method(*points))
