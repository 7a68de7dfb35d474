"""Stein's unbiased risk: the error without the truth, for any network and any operator."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invbayes import (
    GaussianMixture,
    InvertibleResNet,
    LinearProblem,
    posterior,
    posterior_covariance,
    unbiased_risk,
)
from invbayes.examples import two_blobs
from tests.conftest import assert_mean_close, random_mixture, random_operator
from tests.own_blocks import Convolutions, exact_network


def network(dim, generator, blocks=1):
    return InvertibleResNet.dense(dim, (8, 8), blocks, 0.6, scale=1.3, generator=generator).double()


def truth(net, problem, x, z):
    """‖P(φ⁻¹(z) − x)‖²."""
    seen = torch.linalg.pinv(problem.white_matrix) @ problem.white_matrix
    return ((net.inverse(z, 1e-9) - x) @ seen).square().sum(-1)


@settings(max_examples=12)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_its_mean_is_the_mean_squared_error_in_the_range(dim, rows, rank, coloured, seed):
    """For untrained networks of one and two blocks, all shapes and ranks, both kinds of noise."""
    generator = torch.Generator().manual_seed(seed)
    operator = random_operator(rows, dim, min(rank, rows, dim), generator)
    variances = 0.05 + torch.rand(rows, generator=generator, dtype=torch.float64)
    noise = {"noise_covariance": variances} if coloured else {"noise_std": 0.4}
    problem = LinearProblem(operator, **noise)
    x = random_mixture(dim, 2, generator).sample(4000, generator=generator)
    z = problem.normal_data(problem.observe(x, generator=generator))
    net = network(dim, generator, 1 + seed % 2)
    risk = unbiased_risk(net, problem, z)
    assert_mean_close(risk - truth(net, problem, x, z), torch.zeros(()).double())


def test_it_holds_for_a_single_unknown(generator):
    """No prior: one x, many noises."""
    problem, net = LinearProblem(random_operator(3, 2, 2, generator), 0.3), network(2, generator)
    x = torch.tensor([[0.7, -1.2]]).double().expand(20_000, 2)
    z = problem.normal_data(problem.observe(x, generator=generator))
    risk = unbiased_risk(net, problem, z)
    assert_mean_close(risk - truth(net, problem, x, z), torch.zeros(()).double())


def test_the_mean_bar_is_the_mean_of_a_product_of_errors(generator):
    """E F = E[(x̂ − x)(A⁺y − x)*], for a network that knows nothing."""
    problem, net = LinearProblem(random_operator(3, 2, 2, generator), 0.3), network(2, generator)
    x = two_blobs().sample(20_000, generator=generator)
    y = problem.observe(x, generator=generator)
    z = problem.normal_data(y)
    found, naive = net.inverse(z), y @ torch.linalg.pinv(problem.matrix).mT
    bars = 0.09 * torch.linalg.inv(net.jacobian(found))
    products = (found - x)[:, :, None] * (naive - x)[:, None, :]
    assert_mean_close(products - bars, torch.zeros(2, 2).double())


def test_the_bar_of_the_best_linear_estimate_is_its_error(generator):
    """F = E[(x̂ − x)(x̂ − x)*] for two blobs, though it is the posterior covariance of no datum."""
    prior, problem = two_blobs(), LinearProblem(random_operator(3, 2, 2, generator), 0.3)
    net = exact_network(GaussianMixture.gaussian(prior.mean, prior.covariance), problem)
    x = prior.sample(20_000, generator=generator)
    y = problem.observe(x, generator=generator)
    bars = posterior_covariance(net, problem, problem.normal_data(y))
    error = bars.mean - x
    assert_mean_close(error[:, :, None] * error[:, None, :], bars.covariance[0])
    for seen in (y @ torch.linalg.pinv(problem.matrix).mT, bars.mean):
        assert_mean_close(error[:, :, None] * seen[:, None, :], torch.zeros(2, 2).double())
    exact = posterior(prior, problem, y[:100]).covariance
    assert (exact - bars.covariance[0]).flatten(1).norm(dim=1).min() > 0.01


@pytest.mark.parametrize("rank", [1, 2])
def test_probes_estimate_the_trace(generator, rank):
    problem, net = LinearProblem(random_operator(3, 2, rank, generator), 0.5), network(2, generator)
    z = problem.normal_data(torch.randn(5, 3, generator=generator, dtype=torch.float64))
    exact = unbiased_risk(net, problem, z, tol=1e-10)
    options = {"tol": 1e-10, "probes": 2, "generator": generator}
    many = unbiased_risk(net, problem, z.expand(300, 5, 2), **options)
    assert_mean_close(many, exact)
    assert not many.requires_grad


def test_points_of_any_shape(generator):
    net = InvertibleResNet(Convolutions(generator=generator), lipschitz=0.5).double()
    problem = LinearProblem(lambda x: 2 * x, 0.5, shape=(1, 3, 3), dtype=torch.float64)
    z = torch.randn(2, 4, 1, 3, 3, generator=generator, dtype=torch.float64)
    exact = unbiased_risk(net, problem, z)
    assert exact.shape == (2, 4)
    many = z.expand(100, *z.shape)
    assert_mean_close(unbiased_risk(net, problem, many, probes=1, generator=generator), exact)


@pytest.mark.parametrize("probes", [None, 2])
def test_no_graph_is_kept_and_none_is_needed(generator, probes):
    problem, net = LinearProblem(random_operator(3, 2, 2, generator), 0.5), network(2, generator)
    z = problem.normal_data(torch.randn(5, 3, generator=generator, dtype=torch.float64))

    def risk(at):
        return unbiased_risk(net, problem, at, probes=probes, generator=generator.manual_seed(1))

    with torch.inference_mode():
        found = risk(z + 0)
    torch.testing.assert_close(found, risk(z))
    assert not risk(z).requires_grad


def test_wrong_arguments_are_named(generator):
    net, z = network(2, generator), torch.zeros(4, 2).double()
    problem = LinearProblem(random_operator(3, 2, 2, generator), 0.3)
    flat = LinearProblem(torch.tensor([[1.0, 0.0]]).double(), 0.3)
    with pytest.raises(ValueError, match="z must have shape"):
        unbiased_risk(net, problem, torch.zeros(4, 3).double())
    with pytest.raises(ValueError, match="z must lie in the range of the adjoint"):
        unbiased_risk(net, flat, z + 1)
    with pytest.raises(ValueError, match="net must be an InvertibleResNet"):
        unbiased_risk(problem, problem, z)
    with pytest.raises(ValueError, match="problem must be a LinearProblem"):
        unbiased_risk(net, net, z)
    with pytest.raises(ValueError, match="probes must be a positive int"):
        unbiased_risk(net, problem, z, probes=0)


def test_a_datum_out_of_range_is_not_hidden_by_a_long_one(generator):
    problem = LinearProblem(torch.tensor([[1.0, 0.0]]).double(), 0.3)
    z = torch.tensor([[1e8, 0.0], [0.1, 0.1]]).double()
    with pytest.raises(ValueError, match="z must lie in the range"):
        unbiased_risk(network(2, generator), problem, z)
