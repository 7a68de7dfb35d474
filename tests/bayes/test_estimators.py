"""Posterior mean and MAP: their identities, their optimality and their Gaussian closed forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from invbayes import (
    GaussianMixture,
    LinearProblem,
    TiedModes,
    data_density,
    gaussian_forward_eigenvalues,
    ideal_forward_map,
    map_estimate,
    normal_data_density,
    posterior,
    posterior_mean,
)
from invbayes.examples import two_blobs, two_peaks
from tests.conftest import cases, jacobian_of, random_mixture, random_operator


@given(cases())
def test_tweedie_in_the_data(case):
    prior, problem, y = case
    left = problem.apply(posterior_mean(prior, problem, y))
    right = y + problem.noise_std**2 * data_density(prior, problem).score(y)
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


@given(cases(injective=True))
def test_tweedie_in_the_normal_data(case):
    prior, problem, y = case
    z = problem.normal_data(y)
    score = normal_data_density(prior, problem).score(z) @ problem.normal_operator
    left = posterior_mean(prior, problem, y) @ problem.normal_operator
    torch.testing.assert_close(left, z + problem.noise_std**2 * score, rtol=1e-10, atol=1e-10)


@given(cases())
def test_the_jacobian_of_the_posterior_mean_is_the_covariance(case):
    """D x_PM(y) = Cov(x | y) A* / δ²."""
    prior, problem, y = case
    jacobian = jacobian_of(lambda data: posterior_mean(prior, problem, data), y)
    covariance = posterior(prior, problem, y).covariance
    expected = covariance @ problem.operator.mT / problem.noise_std**2
    torch.testing.assert_close(jacobian, expected, rtol=1e-9, atol=1e-9)


@given(cases(injective=True))
def test_in_the_normal_data_the_jacobian_is_symmetric_and_positive_definite(case):
    """D x_PM(z) = Cov(x | z) / δ²; y = A (A*A)⁻¹ z is data with the normal data z."""
    prior, problem, y = case

    def mean(z):
        data = torch.linalg.solve(problem.normal_operator, z.mT).mT @ problem.operator.mT
        return posterior_mean(prior, problem, data)

    jacobian = jacobian_of(mean, problem.normal_data(y))
    covariance = posterior(prior, problem, y).covariance
    torch.testing.assert_close(jacobian, covariance / problem.noise_std**2, rtol=1e-7, atol=1e-7)
    assert (torch.linalg.eigvalsh((jacobian + jacobian.mT) / 2) > 0).all()


@given(cases(), st.booleans())
def test_the_posterior_mean_is_the_gradient_of_the_log_partition_function(case, off_the_range):
    """Ψ in closed form, for every A. A z off the range of A* tilts the prior's own means."""
    prior, problem, y = case
    variance = problem.noise_std**2
    tilt = torch.zeros(prior.dim, dtype=y.dtype)
    if off_the_range:
        kernel = torch.eye(prior.dim).to(y) - torch.linalg.pinv(problem.matrix) @ problem.matrix
        tilt = kernel @ torch.linspace(-1, 1, prior.dim, dtype=y.dtype) * variance
    precisions = torch.linalg.inv(prior.covariances)
    sums = precisions + problem.normal_operator / variance

    def log_partition(z):
        pull = (precisions @ prior.means[..., None]).squeeze(-1) + z / variance
        found = torch.linalg.solve(sums, pull)
        own = torch.einsum("ki,kij,kj->k", prior.means, precisions, prior.means)
        squares = (pull * found).sum(-1) - own - torch.logdet(prior.covariances @ sums)
        return variance * torch.logsumexp(prior.weights.log() + squares / 2, 0)

    shift = tilt / variance
    moved = torch.einsum("kij,j->ki", prior.covariances, shift)
    weights = (prior.weights.log() + (prior.means + moved / 2) @ shift).softmax(0)
    belief = posterior(GaussianMixture(weights, prior.means + moved, prior.covariances), problem, y)
    for i, z in enumerate(problem.normal_data(y) + tilt):
        gradient = torch.autograd.functional.jacobian(log_partition, z)
        hessian = torch.autograd.functional.hessian(log_partition, z)
        torch.testing.assert_close(gradient, belief.mean[i], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(hessian * variance, belief.covariance[i], rtol=1e-6, atol=1e-6)
        assert (torch.linalg.eigvalsh(hessian) > 0).all()


@given(cases())
def test_the_map_estimate_satisfies_its_normal_equation(case):
    prior, problem, y = case
    x = map_estimate(prior, problem, y)
    residual = ideal_forward_map(prior, problem, x) - problem.normal_data(y)
    assert residual.abs().max() < 1e-8


def test_no_grid_point_has_a_higher_posterior(generator):
    prior = two_blobs()
    axis = torch.linspace(-4, 4, 161, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    for operator, noise_std in [(torch.eye(2), 0.5), (torch.diag(torch.tensor([1.0, 0.125])), 0.3)]:
        problem = LinearProblem(operator.double(), noise_std)
        y = problem.observe(prior.sample(40, generator=generator), generator=generator)
        belief = posterior(prior, problem, y)
        best = belief.log_prob(points[:, None, :]).amax(0)
        assert (belief.log_prob(map_estimate(prior, problem, y)) >= best - 1e-12).all()


def test_the_posterior_mean_has_the_least_error(generator):
    """The errors obey Pythagoras, so that every other estimator is worse by a known amount."""
    prior, problem = two_blobs(), LinearProblem(torch.eye(2, dtype=torch.float64), 0.5)
    x = prior.sample(100_000, generator=generator)
    y = problem.observe(x, generator=generator)
    mean, other = posterior_mean(prior, problem, y), map_estimate(prior, problem, y)
    excess = (other - x).square().sum(-1) - (mean - x).square().sum(-1)
    known = (other - mean).square().sum(-1)
    difference = excess - known
    assert difference.mean().abs() < 5 * difference.std() / len(x) ** 0.5
    assert known.mean() > 0.005


@pytest.mark.parametrize(("rows", "dim", "rank"), [(3, 3, 3), (4, 2, 2), (2, 4, 2), (3, 3, 1)])
def test_for_a_gaussian_prior_both_are_tikhonov(rows, dim, rank, generator):
    problem = LinearProblem(random_operator(rows, dim, rank, generator), 0.3)
    prior = GaussianMixture.gaussian(
        torch.zeros(dim, dtype=torch.float64), 0.49 * torch.eye(dim, dtype=torch.float64)
    )
    y = torch.randn(6, rows, generator=generator, dtype=torch.float64)
    damped = problem.normal_operator + 0.09 / 0.49 * torch.eye(dim, dtype=torch.float64)
    tikhonov = torch.linalg.solve(damped, problem.normal_data(y).mT).mT
    torch.testing.assert_close(posterior_mean(prior, problem, y), tikhonov, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(map_estimate(prior, problem, y), tikhonov, rtol=1e-9, atol=1e-10)


def test_ties_of_the_posterior_reach_the_caller():
    prior, problem = two_peaks(), LinearProblem(torch.ones(1, 1, dtype=torch.float64), 1.0)
    y = torch.tensor([[0.3], [0.0], [-0.3]], dtype=torch.float64)
    with pytest.raises(TiedModes) as caught:
        map_estimate(prior, problem, y)
    assert caught.value.index.tolist() == [1]
    x = map_estimate(prior, problem, y, on_tie="first").flatten()
    assert x[0] > 0 > x[1] > x[2]


@pytest.mark.parametrize("option", ["tol", "max_steps"])
def test_options_reach_the_search(option):
    problem = LinearProblem(torch.eye(2, dtype=torch.float64), 0.5)
    with pytest.raises(ValueError, match=option):
        map_estimate(two_blobs(), problem, torch.zeros(2, dtype=torch.float64), **{option: 0})


def test_one_observation_without_a_batch():
    prior, problem = two_blobs(), LinearProblem(torch.eye(2, dtype=torch.float64), 0.2)
    y = torch.tensor([0.4, -0.1], dtype=torch.float64)
    for estimate in (posterior_mean, map_estimate):
        single, batch = estimate(prior, problem, y), estimate(prior, problem, y[None])
        assert single.shape == (2,)
        torch.testing.assert_close(single, batch[0])


def test_dtype_follows_the_input(generator):
    prior = random_mixture(2, 2, generator, dtype=torch.float32)
    problem = LinearProblem(torch.eye(2), 0.5)
    y = torch.zeros(3, 2)
    for value in (
        posterior_mean(prior, problem, y),
        map_estimate(prior, problem, y),
        ideal_forward_map(prior, problem, y),
    ):
        assert value.dtype == torch.float32


@pytest.mark.parametrize("a", [0.0, 0.125, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(("prior_std", "noise_std"), [(1.0, 0.1), (0.7, 0.5), (2.0, 1.0)])
def test_eigenvalues_minimise_the_four_losses(a, prior_std, noise_std):
    """Each expected loss for a linear map φ on the line, minimised numerically."""
    found = gaussian_forward_eigenvalues(
        torch.tensor(a, dtype=torch.float64), prior_std=prior_std, noise_std=noise_std
    )
    prior, noise = prior_std**2, noise_std**2

    def least(loss):
        result = minimize_scalar(
            loss, bounds=(1e-9, 20), method="bounded", options={"xatol": 1e-12}
        )
        return result.x

    def misfit(phi):
        return (phi - a**2) ** 2 * prior / 2

    def reconstruction(phi):
        return ((a**2 / phi - 1) ** 2 * prior + a**2 * noise / phi**2) / 2

    log = torch.math.log
    assert found.approximation.item() == pytest.approx(least(misfit), abs=1e-6)
    assert found.posterior.item() == pytest.approx(least(lambda p: misfit(p) - noise * p), abs=1e-6)
    assert found.log_det.item() == pytest.approx(
        least(lambda p: misfit(p) - noise * log(p)), abs=1e-6
    )
    if a > 0:
        assert found.posterior.item() == pytest.approx(least(reconstruction), abs=1e-6)
        assert found.log_det_metric.item() == pytest.approx(
            least(lambda p: misfit(p) / a**2 - noise * log(p)), abs=1e-6
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.tensor([-1.0]), 1.0, 1.0), "singular_values must not be negative, got -1"),
        ((torch.tensor([torch.nan]), 1.0, 1.0), "singular_values must be finite"),
        ((torch.tensor([1.0]), 0.0, 1.0), "prior_std must be finite and > 0, got 0"),
        ((torch.tensor([1.0]), 1.0, -2.0), "noise_std must be finite and > 0, got -2"),
        ((torch.tensor([1.0]), 1.0, True), "noise_std must be a number, got True"),
        ((torch.tensor([1.0]), "1", 1.0), "prior_std must be a number, got '1'"),
        ((torch.tensor([1e30]), 1.0, 1.0), "singular_values and noise_std / prior_std must have f"),
        ((torch.tensor([1.0]), 1.0, 1e25), r"must have finite squares, .* got 1e\+25 / 1\.0"),
        ((torch.tensor([1.0]), 1e-200, 1e200), "must have finite squares"),
        ((torch.tensor([1.0]), 1e200, 1e-200), "must have finite squares, the latter > 0"),
        ((None, 1.0, 1.0), "singular_values must be a floating-point tensor, got NoneType"),
    ],
)
def test_bad_eigenvalue_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        gaussian_forward_eigenvalues(*arguments)


def test_large_singular_values_need_no_fourth_power():
    found = gaussian_forward_eigenvalues(torch.tensor([1e15, 1e-15]), 1.0, 1e-3)
    expected = torch.tensor([1e30, 1e-3])
    torch.testing.assert_close(found.log_det, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.log_det_metric, torch.tensor([1e30, 1e-18]), rtol=1e-5, atol=0)


def test_another_weight_is_another_noise_level(generator):
    prior, operator = random_mixture(2, 3, generator), random_operator(3, 2, 2, generator)
    x = prior.sample(5, generator=generator)
    found = ideal_forward_map(prior, LinearProblem(operator, 0.3), x, weight=0.7**2)
    torch.testing.assert_close(found, ideal_forward_map(prior, LinearProblem(operator, 0.7), x))
    with pytest.raises(ValueError, match="weight must be finite and > 0"):
        ideal_forward_map(prior, LinearProblem(operator, 0.3), x, weight=0.0)


def test_a_batch_of_priors_is_refused():
    """Four priors with four points would pair up without a word."""
    problem = LinearProblem(torch.eye(2, dtype=torch.float64), 0.5)
    y = torch.zeros(4, 2, dtype=torch.float64)
    batch = posterior(two_blobs(), problem, y)
    for estimate in (posterior_mean, map_estimate, ideal_forward_map):
        with pytest.raises(ValueError, match=r"prior must be a single mixture, .* shape \(4,\)"):
            estimate(batch, problem, y)


@pytest.mark.parametrize("estimate", [posterior_mean, map_estimate, ideal_forward_map])
def test_bad_points_are_named(estimate):
    problem = LinearProblem(torch.eye(2, dtype=torch.float64), 0.5)
    with pytest.raises(ValueError, match=r"[xy] must have shape \(\*, 2\), got \(4, 3\)"):
        estimate(two_blobs(), problem, torch.zeros(4, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"[xy] must be finite"):
        estimate(two_blobs(), problem, torch.full((4, 2), torch.nan, dtype=torch.float64))
