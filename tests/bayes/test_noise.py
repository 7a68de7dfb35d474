"""Noise with a covariance: its moments, whitening, and the posterior that follows."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.distributions import MultivariateNormal

from invbayes import (
    GaussianMixture,
    LinearProblem,
    data_density,
    ideal_forward_map,
    map_estimate,
    normal_data_density,
    posterior,
    posterior_mean,
)
from invbayes.bayes.inverse_problem import matched_weight
from tests.conftest import assert_mean_close, random_mixture, random_operator

FULL = torch.tensor([[0.5, 0.2, -0.1], [0.2, 0.3, 0.1], [-0.1, 0.1, 0.4]], dtype=torch.float64)
DIAGONAL = torch.tensor([0.5, 0.02, 0.3], dtype=torch.float64)


@pytest.fixture(params=[FULL, DIAGONAL], ids=["full", "diagonal"])
def covariance(request):
    return request.param


def dense(covariance):
    return covariance if covariance.ndim == 2 else torch.diag(covariance)


@pytest.fixture
def problem(covariance, generator):
    return LinearProblem(random_operator(3, 2, 2, generator), noise_covariance=covariance)


def test_observations_have_the_covariance(problem, covariance, generator):
    x = torch.ones(200_000, 2, dtype=torch.float64)
    noise = problem.observe(x, generator=generator) - problem.apply(x)
    assert_mean_close(noise, torch.zeros(3).double())
    assert_mean_close(noise[:, :, None] * noise[:, None, :], dense(covariance))


def test_the_covariance_is_that_of_flattened_data(generator):
    """Data of shape (2, 2): the covariance counts their four entries row by row."""
    root = torch.eye(4) + torch.tensor([[0.0] * 4, [0.5, 0, 0, 0], [0.0] * 4, [0, 0, -0.7, 0]])
    covariance = (root @ root.mT).double()
    problem = LinearProblem(
        lambda x: x.reshape(-1, 2, 2), noise_covariance=covariance, shape=(4,), dtype=torch.float64
    )
    noise = problem.observe(torch.zeros(100_000, 4).double(), generator=generator)
    flat = noise.flatten(1)
    assert_mean_close(flat[:, :, None] * flat[:, None, :], covariance)
    torch.testing.assert_close(problem.whiten(noise[:3]).flatten(1) @ root.double().mT, flat[:3])


@pytest.mark.parametrize("lead", [(), (0,), (4,), (2, 5)])
def test_whitening_undoes_colouring(problem, lead, generator):
    white = torch.randn(*lead, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(problem.whiten(problem.colour(white)), white)
    torch.testing.assert_close(
        problem.white_matrix, problem.whiten(problem.operator.mT).mT, rtol=1e-12, atol=1e-12
    )
    assert problem.noise_std == 1.0


def test_normal_data_weigh_by_the_precision(problem, covariance, generator):
    precision = torch.linalg.inv(dense(covariance))
    y = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    x = torch.randn(2, 4, 2, generator=generator, dtype=torch.float64)
    operator = problem.operator
    normal = operator.mT @ precision @ operator
    torch.testing.assert_close(problem.normal_data(y), y @ precision @ operator)
    torch.testing.assert_close(problem.normal_operator, normal)
    torch.testing.assert_close(problem.mean_normal_data(x), x @ normal)


def test_equal_variances_are_white_noise(generator):
    operator, prior = random_operator(3, 2, 2, generator), random_mixture(2, 3, generator)
    y = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    white = LinearProblem(operator, 0.3)
    coloured = LinearProblem(operator, noise_covariance=0.09 * torch.ones(3).double())
    first, second = posterior(prior, white, y), posterior(prior, coloured, y)
    torch.testing.assert_close(first.weights, second.weights)
    torch.testing.assert_close(first.means, second.means)
    torch.testing.assert_close(first.covariances, second.covariances)


def test_one_gaussian_gives_the_information_form(problem, covariance, generator):
    mixture = random_mixture(2, 1, generator)
    prior = GaussianMixture.gaussian(mixture.means[0], mixture.covariances[0])
    y = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    inverse, noise = torch.linalg.inv(prior.covariances[0]), torch.linalg.inv(dense(covariance))
    precision = inverse + problem.operator.mT @ noise @ problem.operator
    pull = prior.means[0] @ inverse + y @ noise @ problem.operator
    belief = posterior(prior, problem, y)
    torch.testing.assert_close(belief.mean, torch.linalg.solve(precision, pull.mT).mT)
    torch.testing.assert_close(belief.covariance[0], torch.linalg.inv(precision))


def test_bayes_rule_holds_at_every_point(problem, covariance, generator):
    prior = random_mixture(2, 3, generator)
    y = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    x = torch.cat([prior.means, prior.means + 0.7])[:, None]
    likelihood = MultivariateNormal(problem.apply(x), dense(covariance)).log_prob(y)
    evidence = data_density(prior, problem).log_prob(y)
    found = posterior(prior, problem, y).log_prob(x.expand(-1, 5, -1)) + evidence
    torch.testing.assert_close(found, prior.log_prob(x) + likelihood, rtol=1e-9, atol=1e-9)


def test_the_posterior_sees_only_the_normal_data(problem, covariance, generator):
    """What A* Γ⁻¹ does not see says nothing about x."""
    prior = random_mixture(2, 3, generator)
    y = torch.randn(1, 3, generator=generator, dtype=torch.float64)
    null = torch.linalg.svd(problem.operator.mT @ torch.linalg.inv(dense(covariance)))[2][-1]
    torch.testing.assert_close(problem.normal_data(y + 5 * null), problem.normal_data(y))
    first, second = posterior(prior, problem, y), posterior(prior, problem, y + 5 * null)
    torch.testing.assert_close(first.weights, second.weights)
    torch.testing.assert_close(first.means, second.means)


def test_the_density_of_the_normal_data_has_their_moments(problem, generator):
    prior = random_mixture(2, 2, generator)
    y = problem.observe(prior.sample(200_000, generator=generator), generator=generator)
    for density, data in [
        (data_density(prior, problem), y),
        (normal_data_density(prior, problem), problem.normal_data(y)),
    ]:
        assert_mean_close(data, density.mean)
        centred = data - density.mean
        assert_mean_close(centred[:, :, None] * centred[:, None, :], density.covariance)


def test_tweedie_in_the_normal_data(problem, generator):
    """A*Γ⁻¹A x_PM(z) = z + A*Γ⁻¹A ∇ log p_Z(z)."""
    prior = random_mixture(2, 3, generator)
    y = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    z, normal = problem.normal_data(y), problem.normal_operator
    left = posterior_mean(prior, problem, y) @ normal
    score = normal_data_density(prior, problem).score(z)
    torch.testing.assert_close(left, z + score @ normal, rtol=1e-9, atol=1e-9)


def test_the_map_estimate_satisfies_its_normal_equation(problem, generator):
    prior = random_mixture(2, 3, generator)
    y = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    residual = ideal_forward_map(prior, problem, map_estimate(prior, problem, y))
    assert (residual - problem.normal_data(y)).abs().max() < 1e-8


def test_the_covariance_follows_and_is_kept(problem, generator):
    y = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    low, again = problem.to(dtype=torch.float32), pickle.loads(pickle.dumps(problem))
    torch.testing.assert_close(low.normal_data(y.float()), problem.normal_data(y).float())
    assert torch.equal(again.normal_data(y), problem.normal_data(y))
    assert low.noise_std == 1.0
    assert repr(low) == "LinearProblem((2,) -> (3,), noise_covariance)"


def test_the_covariance_is_copied(covariance, generator):
    given = covariance.clone()
    problem = LinearProblem(torch.ones(3, 2).double(), noise_covariance=given)
    y = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    before = problem.whiten(y)
    given.mul_(4)
    assert torch.equal(problem.whiten(y), before)


@pytest.mark.parametrize("empty", [(0,), (3, 0)])
def test_no_data_have_no_posterior(problem, empty, generator):
    y = torch.zeros(*empty, 3, dtype=torch.float64)
    assert posterior_mean(random_mixture(2, 2, generator), problem, y).shape == (*empty, 2)


@pytest.mark.parametrize(
    ("covariance", "message"),
    [
        (torch.ones(2), r"noise_covariance must have shape \(\*, 3\), got \(2,\)"),
        (torch.tensor([1.0, 0.0, 1.0]), "noise_covariance must be > 0, got 0"),
        (torch.tensor([1.0, torch.nan, 1.0]), "noise_covariance must be finite"),
        (torch.ones(3).double(), "noise_covariance must have dtype torch.float32"),
        (torch.eye(2), r"noise_covariance must be a matrix of shape \(3, 3\), got \(2, 2\)"),
        (torch.zeros(3, 3), "noise_covariance must be symmetric positive definite"),
        (torch.eye(3) + torch.ones(3, 3).triu(1), "noise_covariance must be symmetric positive"),
        (torch.eye(3).double(), "noise_covariance must have the dtype of operator"),
        (0.5, "noise_covariance must be a floating-point tensor, got float"),
    ],
)
def test_bad_covariances_are_named(covariance, message):
    with pytest.raises(ValueError, match=message):
        LinearProblem(torch.ones(3, 2), noise_covariance=covariance)


@pytest.mark.parametrize(
    ("options", "came"),
    [({}, "neither"), ({"noise_std": 1.0, "noise_covariance": torch.eye(3)}, "both")],
)
def test_noise_is_given_once(options, came):
    message = f"one of noise_std and noise_covariance must be given, got {came}"
    with pytest.raises(ValueError, match=message):
        LinearProblem(torch.ones(3, 2), **options)


@pytest.mark.parametrize("noise_std", ["0.1", [0.5], 1j, True, torch.ones(2)])
def test_noise_is_a_number(noise_std):
    with pytest.raises(ValueError, match="noise_std must be a number, got"):
        LinearProblem(torch.eye(2), noise_std)


@pytest.mark.parametrize("noise_std", [1e-39, 1e39, 1e200, 1e-170])
def test_noise_fits_the_dtype(noise_std):
    with pytest.raises(ValueError, match=r"noise_std must have deviations that torch\.float32"):
        LinearProblem(torch.eye(2), noise_std)
    double = LinearProblem(torch.eye(2).double(), noise_std)
    with pytest.raises(ValueError, match=r"noise_std must have deviations that torch\.float32"):
        double.to(dtype=torch.float32)
    variances = torch.tensor([1e-80, 1.0], dtype=torch.float64)
    coloured = LinearProblem(torch.eye(2).double(), noise_covariance=variances)
    with pytest.raises(ValueError, match=r"noise_covariance must have deviations that torch\."):
        coloured.to(dtype=torch.float32)


def test_the_ends_of_the_dtypes_range_are_noise():
    range_ = torch.finfo(torch.float32)
    for noise_std in (range_.tiny, range_.max):
        assert LinearProblem(torch.eye(2), noise_std).noise_std == noise_std


@pytest.mark.parametrize("noise_std", [1e200, 1e-170])
def test_a_weight_without_a_square_names_the_noise(noise_std):
    problem = LinearProblem(torch.eye(2).double(), noise_std)
    with pytest.raises(ValueError, match="noise_std must have a square that is finite and > 0"):
        matched_weight(problem, None)
    assert matched_weight(problem, torch.tensor(0.5)) == 0.5


def test_only_data_are_coloured(problem):
    with pytest.raises(ValueError, match=r"white must have shape \(\*, 3\), got \(2,\)"):
        problem.colour(torch.ones(2).double())
