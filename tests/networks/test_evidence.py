"""The posterior mean contains the posterior; a network's line integral, the evidence."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given

from invbayes import (
    InvertibleResNet,
    LinearProblem,
    Ridge,
    WeaklyConvexRidge,
    data_density,
    line_integral,
    log_evidence,
    posterior,
    posterior_mean,
)
from invbayes.examples import two_blobs, two_peaks
from tests.conftest import cases, random_mixture, random_operator
from tests.own_blocks import Convolutions, exact_network


@cache
def gauss(nodes=300):
    """Nodes and weights on [0, 1]."""
    places, weights = np.polynomial.legendre.leggauss(nodes)
    return torch.from_numpy(places) / 2 + 0.5, torch.from_numpy(weights) / 2


@given(cases(injective=True))
def test_the_mean_at_tilted_data_gives_every_exponential_moment(case):
    """log E[e^⟨u,x⟩ | z] = ∫⟨u, x_PM(z + sδ²u)⟩ds, from the posterior's own components."""
    prior, problem, y = case
    belief = posterior(prior, problem, y)
    u = 0.8 * torch.randn(prior.dim, generator=torch.Generator().manual_seed(1)).double()
    spread = (belief.covariances @ u @ u) / 2
    exact = (belief.weights.log() + belief.means @ u + spread).logsumexp(-1)
    back = torch.linalg.pinv(problem.matrix.mT)  # z + sδ²u is A* of y + sδ²A⁺*u
    places, weights = gauss()
    moved = y[:, None] + problem.noise_std**2 * places[:, None] * (back @ u)
    by_mean = posterior_mean(prior, problem, moved) @ u @ weights
    torch.testing.assert_close(by_mean, exact, rtol=1e-6, atol=1e-6)


def test_the_third_cumulant_is_a_second_derivative():
    """δ⁴x_PM'' on the line, by differences, against the moments of the mixture."""
    prior, problem = two_peaks(), LinearProblem(torch.ones(1, 1).double(), 0.7)
    z = torch.linspace(-2, 2, 21).double()[:, None]
    belief, step = posterior(prior, problem, z), 1e-3
    centred = belief.means[..., 0] - belief.mean
    variances = belief.covariances[:, 0, 0]
    exact = (belief.weights * (centred**3 + 3 * centred * variances)).sum(-1)
    ends = [posterior_mean(prior, problem, z + k * step)[:, 0] for k in (-1, 0, 1)]
    found = 0.7**4 * (ends[0] - 2 * ends[1] + ends[2]) / step**2
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)


@given(cases(injective=True))
def test_the_evidence_is_the_log_partition_function_less_a_square(case):
    """Differences of log p_Y by an integral of the exact mean: every mixture, m > d included."""
    prior, problem, y = case
    z = problem.normal_data(y)
    places, weights = gauss()
    segment = y[:1, None] + places[:, None] * (y - y[:1])[:, None]
    means = posterior_mean(prior, problem, segment)
    psi = ((means * (z - z[:1])[:, None]).sum(-1) @ weights) / problem.noise_std**2
    square = y.square().sum(-1) / (2 * problem.noise_std**2)
    exact = data_density(prior, problem).log_prob(y)
    torch.testing.assert_close(psi - square + square[0], exact - exact[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("coloured", [False, True])
def test_one_gaussian_gives_the_evidence_up_to_a_constant(generator, coloured):
    prior = random_mixture(2, 1, generator)
    noise = torch.tensor([0.2, 0.5, 0.3]).double()
    options = {"noise_covariance": noise} if coloured else {"noise_std": 0.3}
    problem = LinearProblem(random_operator(3, 2, 2, generator), **options)
    y = problem.observe(prior.sample(50, generator=generator), generator=generator)
    net = exact_network(prior, problem)
    origin = torch.tensor([0.4, -0.7]).double()
    found = log_evidence(net, problem, y, origin=origin, tol=1e-10)
    difference = found - data_density(prior, problem).log_prob(y)
    torch.testing.assert_close(difference, difference[0].expand(50), rtol=0, atol=1e-7)
    batched = log_evidence(net, problem, y.reshape(5, 10, 3), origin=origin, tol=1e-10)
    torch.testing.assert_close(batched.flatten(), found)


def test_the_integral_along_a_segment(generator):
    """Against the trapezium rule; both ends may be batches; nothing along no way."""
    net = InvertibleResNet.dense(2, (8, 8), lipschitz=0.9, generator=generator).double()
    start = torch.randn(7, 1, 2, generator=generator, dtype=torch.float64)
    end = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    found = line_integral(net, start, end)
    t = torch.linspace(0, 1, 2001).double()[:, None, None, None]
    along = (net(start + t * (end - start)) * (end - start)).sum(-1)
    torch.testing.assert_close(found, torch.trapezoid(along, dx=1 / 2000, dim=0), rtol=0, atol=1e-5)
    assert found.shape == (7, 3)
    torch.testing.assert_close(line_integral(net, end, end), torch.zeros(3).double())


def test_the_integral_takes_points_of_any_shape(generator):
    net = InvertibleResNet(Convolutions(generator=generator), lipschitz=0.5).double()
    x = torch.randn(2, 1, 4, 4, generator=generator, dtype=torch.float64)
    assert line_integral(net, torch.zeros(1, 4, 4).double(), x).shape == (2,)


@pytest.mark.parametrize("kind", [Ridge, WeaklyConvexRidge])
@pytest.mark.parametrize("length", [1.0, 1e-5])
def test_a_short_way_through_pictures_keeps_its_digits(kind, length, generator):
    """In single precision, against |φ| |x₁ − x₀|; of two potentials the difference loses them."""
    net = InvertibleResNet(kind((1, None, None), 8, 5, generator=generator), lipschitz=0.9)
    start = torch.rand(1, 64, 64, generator=generator).requires_grad_()
    end = start.detach() + length * torch.randn(6, 1, 64, 64, generator=generator)
    found = line_integral(net, start, end.requires_grad_())
    slopes = torch.autograd.grad(found.sum(), [start, end])
    torch.testing.assert_close(slopes[1], net(end), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(slopes[0], -6 * net(start), rtol=1e-3, atol=1e-3)
    size = net(start).norm() * (end - start).flatten(1).norm(dim=1)
    start, end = start.double(), end.double()
    exact = line_integral(net.double(), start, end)
    assert ((found - exact).abs() < 1e-4 * size).all()  # the norm of W itself is rounded up
    rise = net.potential(end) - net.potential(start)
    torch.testing.assert_close(exact, rise, rtol=0, atol=1e-10)


def test_wrong_arguments_are_named(generator):
    prior = two_blobs()
    problem = LinearProblem(random_operator(3, 2, 2, generator), 0.3)
    net = InvertibleResNet.dense(2, generator=generator).double()
    y, origin = torch.zeros(4, 3).double(), prior.mean
    with pytest.raises(ValueError, match="problem must be a LinearProblem"):
        log_evidence(net, problem.matrix, y, origin=origin)
    with pytest.raises(ValueError, match="y must have shape"):
        log_evidence(net, problem, problem.normal_data(y), origin=origin)
    with pytest.raises(ValueError, match="start must have shape"):
        log_evidence(net, problem, y, origin=origin[:1])
    flat = LinearProblem(torch.ones(1, 2).double(), 0.3)
    with pytest.raises(ValueError, match="problem must have an injective operator"):
        log_evidence(net, flat, y[:, :1], origin=origin)
    with pytest.raises(ValueError, match="nodes must be a positive int"):
        line_integral(net, origin, origin, nodes=0)
    with pytest.raises(ValueError, match="end must be finite"):
        line_integral(net, origin, origin * torch.nan)
