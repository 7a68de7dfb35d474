"""The posterior and the data densities against Bayes' rule, quadrature and other formulas."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from scipy.integrate import quad
from torch.distributions import Normal

from invbayes import (
    GaussianMixture,
    LinearProblem,
    data_density,
    normal_data_density,
    posterior,
    posterior_mean,
)
from invbayes.examples import two_blobs
from tests.conftest import assert_mean_close, cases, random_mixture, random_operator


def log_likelihood(problem, x, y):
    """log p(y | x) for white noise, from the one-dimensional normal density."""
    return Normal(problem.apply(x), problem.noise_std).log_prob(y).sum(-1)


@given(cases())
def test_bayes_rule_holds_at_every_point(case):
    prior, problem, y = case
    x = torch.cat([prior.means, prior.means + 0.7])[:, None, :]
    joint = prior.log_prob(x) + log_likelihood(problem, x, y)
    belief, evidence = posterior(prior, problem, y), data_density(prior, problem)
    by_parts = belief.log_prob(x.expand(-1, len(y), -1)) + evidence.log_prob(y)
    torch.testing.assert_close(by_parts, joint, rtol=1e-9, atol=1e-9)


@given(cases())
def test_one_gaussian_gives_the_information_form(case):
    mixture, problem, y = case
    prior = GaussianMixture.gaussian(mixture.means[0], mixture.covariances[0])
    belief = posterior(prior, problem, y)
    prior_precision = torch.linalg.inv(prior.covariances[0])
    precision = prior_precision + problem.normal_operator / problem.noise_std**2
    pull = prior_precision @ prior.means[0] + problem.normal_data(y) / problem.noise_std**2
    expected = torch.linalg.solve(precision, pull.mT).mT
    torch.testing.assert_close(belief.mean, expected, rtol=1e-9, atol=1e-9)
    covariance = torch.linalg.inv(precision).expand_as(belief.covariance)
    torch.testing.assert_close(belief.covariance, covariance, rtol=1e-8, atol=1e-9)


def test_quadrature_on_the_line(generator):
    prior = random_mixture(1, 3, generator)
    problem = LinearProblem(torch.tensor([[0.8], [-0.3]], dtype=torch.float64), 0.4)
    y = problem.observe(prior.means[:1], generator=generator)

    def integral(power):
        def integrand(x):
            point = torch.tensor([[x]], dtype=torch.float64)
            joint = prior.log_prob(point) + log_likelihood(problem, point, y)
            return x**power * joint.exp().item()

        return quad(integrand, -12, 12, limit=300, epsabs=1e-13)[0]

    evidence = integral(0)
    assert data_density(prior, problem).log_prob(y).exp().item() == pytest.approx(
        evidence, rel=1e-9
    )
    mean = posterior_mean(prior, problem, y).item()
    assert mean == pytest.approx(integral(1) / evidence, rel=1e-9)
    assert posterior(prior, problem, y).covariance.item() == pytest.approx(
        integral(2) / evidence - mean**2, rel=1e-8
    )


def test_quadrature_on_the_plane(generator):
    prior = random_mixture(2, 3, generator)
    problem = LinearProblem(torch.tensor([[1.0, 0.5]], dtype=torch.float64), 0.5)
    y = torch.tensor([[0.3]], dtype=torch.float64)

    # The trapezoidal rule converges faster than any power of the step for such integrands.
    axis = torch.linspace(-16, 16, 1001, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    cell = (axis[1] - axis[0]) ** 2
    joint = (prior.log_prob(points) + log_likelihood(problem, points, y)).exp() * cell
    evidence = joint.sum()
    torch.testing.assert_close(
        data_density(prior, problem).log_prob(y).exp()[0], evidence, rtol=1e-10, atol=0
    )
    mean = posterior_mean(prior, problem, y)
    torch.testing.assert_close(mean[0], joint @ points / evidence, rtol=1e-9, atol=1e-10)
    centred = points - mean
    covariance = centred.mT @ (joint[:, None] * centred) / evidence
    torch.testing.assert_close(
        posterior(prior, problem, y).covariance[0], covariance, rtol=1e-9, atol=1e-10
    )


@given(cases())
def test_the_posterior_sees_only_the_normal_data(case):
    """Lemma 1: adding to y what A* does not see leaves the posterior as it was."""
    prior, problem, y = case
    range_projection = problem.operator @ torch.linalg.pinv(problem.operator)
    unseen = torch.ones_like(y) @ (torch.eye(problem.data_dim).double() - range_projection)
    first, second = posterior(prior, problem, y), posterior(prior, problem, y + unseen)
    torch.testing.assert_close(first.weights, second.weights, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(first.means, second.means, rtol=1e-8, atol=1e-9)


def test_the_prior_is_a_filter_on_the_singular_vectors(generator):
    operator = random_operator(5, 3, 3, generator)
    left, values, right = torch.linalg.svd(operator, full_matrices=False)
    variances = torch.tensor([4.0, 0.5, 0.01], dtype=torch.float64)
    prior = GaussianMixture.gaussian(torch.zeros(3).double(), right.mT * variances @ right)
    problem = LinearProblem(operator, 0.3)
    y = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    belief = posterior(prior, problem, y)
    kept = values**2 * variances / (values**2 * variances + 0.09)
    torch.testing.assert_close(belief.mean @ right.mT, kept * (y @ left) / values)
    covariance = (right @ belief.covariance @ right.mT).diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(covariance, ((1 - kept) * variances).expand(6, 3))
    torch.testing.assert_close((1 - kept) * variances, kept * 0.09 / values**2)
    assert (kept * 0.3 / values <= variances.sqrt() / 2).all()


def test_the_posterior_depends_continuously_on_the_data(generator):
    prior = random_mixture(1, 3, generator)
    problem = LinearProblem(torch.tensor([[0.8], [-0.3]], dtype=torch.float64), 0.4)
    x = torch.linspace(-12, 12, 20_001, dtype=torch.float64)[:, None]
    step = torch.tensor([0.6, 0.8], dtype=torch.float64)
    largest = 1 / (2 * torch.pi * 0.16)  # the likelihood's greatest value
    distances = []
    for y in problem.observe(prior.means, generator=generator):
        slope = largest / (0.4 * torch.e**0.5) / data_density(prior, problem).log_prob(y).exp()
        for size in (1.0, 0.1, 0.01):
            before, after = (posterior(prior, problem, each) for each in (y, y + size * step))
            difference = before.log_prob(x).exp() - after.log_prob(x).exp()
            distances.append(torch.trapezoid(difference.abs(), x[:, 0]) / 2)
            assert distances[-1] <= slope * size
        centred = (x - before.mean) @ problem.operator.mT @ step / 0.16
        rate = torch.trapezoid(centred.abs() * before.log_prob(x).exp(), x[:, 0]) / 2
        assert distances[-1].item() == pytest.approx(0.01 * rate.item(), rel=0.02)


def test_without_information_the_posterior_is_the_prior(generator):
    prior = random_mixture(3, 2, generator)
    problem = LinearProblem(torch.zeros(2, 3, dtype=torch.float64), 0.1)
    belief = posterior(prior, problem, torch.ones(1, 2, dtype=torch.float64))
    torch.testing.assert_close(belief.weights[0], prior.weights)
    torch.testing.assert_close(belief.means[0], prior.means)
    torch.testing.assert_close(belief.covariances, prior.covariances)


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_normal_data_density_is_the_change_of_variables(dim, generator):
    prior = random_mixture(dim, 3, generator)
    problem = LinearProblem(random_operator(dim, dim, dim, generator), 0.3)
    y = problem.observe(prior.sample(20, generator=generator), generator=generator)
    by_y = data_density(prior, problem).log_prob(y) - torch.linalg.slogdet(problem.operator)[1]
    by_z = normal_data_density(prior, problem).log_prob(problem.normal_data(y))
    torch.testing.assert_close(by_z, by_y, rtol=1e-9, atol=1e-9)


def test_densities_have_the_moments_of_simulated_data(generator):
    prior = random_mixture(2, 3, generator)
    problem = LinearProblem(random_operator(4, 2, 2, generator), 0.5)
    y = problem.observe(prior.sample(200_000, generator=generator), generator=generator)
    for density, data in [
        (data_density(prior, problem), y),
        (normal_data_density(prior, problem), problem.normal_data(y)),
    ]:
        assert_mean_close(data, density.mean)
        centred = data - density.mean
        assert_mean_close(centred[:, :, None] * centred[:, None, :], density.covariance)


@pytest.mark.parametrize(
    ("dtype", "units"), [(torch.float32, [3e3, 3e-4]), (torch.float64, [1e11, 1e-9])]
)
def test_unknowns_may_have_different_units(dtype, units):
    """A modulus in pascals and a thickness in metres, each measured to a tenth."""
    units = torch.tensor(units, dtype=dtype)
    prior = GaussianMixture.gaussian(0 * units, torch.diag(units**2))
    problem, y = LinearProblem(torch.diag(1 / units), 0.1), torch.ones(1, 2, dtype=dtype)
    belief = posterior(prior, problem, y)
    close = {"rtol": 1e-5, "atol": 0.0}
    torch.testing.assert_close(belief.mean[0] / units, torch.full_like(units, 1 / 1.01), **close)
    variances = belief.covariance[0].diagonal() / units / units
    torch.testing.assert_close(variances, torch.full_like(units, 0.01 / 1.01), **close)


def test_nearly_noiseless_data_leave_a_positive_covariance():
    problem = LinearProblem(torch.eye(2, dtype=torch.float64), 1e-8)
    belief = posterior(two_blobs(), problem, torch.zeros(2, dtype=torch.float64))
    expected = 1e-16 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    torch.testing.assert_close(belief.covariances, expected, rtol=1e-6, atol=1e-22)


@pytest.mark.parametrize("density", [data_density, normal_data_density])
@pytest.mark.parametrize("noise_std", [1e-3, 1e-4])
def test_in_single_precision_small_noise_leaves_a_density(density, noise_std, generator):
    """Its square is lost beside the signal's, and the determinant of the covariance with it."""
    low = random_mixture(2, 2, generator, dtype=torch.float32)
    operator = random_operator(3, 2, 2, generator).float()
    problem = LinearProblem(operator, noise_std)
    y = problem.observe(low.sample(5, generator=generator), generator=generator)
    points = y if density is data_density else problem.normal_data(y)
    exact = density(low.to(dtype=torch.float64), problem.to(dtype=torch.float64))
    found = density(low, problem).log_prob(points)
    torch.testing.assert_close(found.double(), exact.log_prob(points.double()), rtol=0, atol=0.05)


@pytest.mark.parametrize(("dtype", "noise_std"), [(torch.float32, 1e-7), (torch.float64, 1e-16)])
def test_noise_lost_in_rounding_leaves_no_density(dtype, noise_std, generator):
    prior = random_mixture(2, 2, generator, dtype=dtype)
    operator = random_operator(3, 2, 2, generator).to(dtype)
    with pytest.raises(ValueError, match=r"problem must have noise .* noise_std=1e-"):
        data_density(prior, LinearProblem(operator, noise_std))
    square = LinearProblem(operator[:2], noise_std)
    assert data_density(prior, square).log_prob(prior.means @ operator[:2].mT).isfinite().all()


@pytest.mark.parametrize("density", [data_density, normal_data_density])
def test_noise_whose_square_overflows_leaves_no_density(density):
    problem = LinearProblem(torch.eye(2, dtype=torch.float64), 1e200)
    with pytest.raises(ValueError, match=r"problem must have noise .* noise_std=1e\+200"):
        density(two_blobs(), problem)


def test_vmap_over_observations(generator):
    prior, problem = two_blobs(), LinearProblem(torch.eye(2, dtype=torch.float64), 0.3)
    y = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    each = torch.func.vmap(lambda one: posterior_mean(prior, problem, one))(y)
    torch.testing.assert_close(each, posterior_mean(prior, problem, y))


def test_covariances_are_exactly_symmetric(generator):
    prior = random_mixture(4, 3, generator)
    problem = LinearProblem(random_operator(5, 4, 4, generator), 0.3)
    belief = posterior(prior, problem, torch.zeros(1, 5, dtype=torch.float64))
    for p in (belief, data_density(prior, problem), normal_data_density(prior, problem)):
        assert torch.equal(p.covariances, p.covariances.mT)


def test_a_batch_of_any_shape(generator):
    prior, operator = random_mixture(2, 3, generator), random_operator(3, 2, 2, generator)
    problem = LinearProblem(operator, 0.3)
    y = torch.randn(4, 5, 3, generator=generator, dtype=torch.float64)
    belief = posterior(prior, problem, y)
    assert belief.batch_shape == (4, 5)
    torch.testing.assert_close(belief.mean[2, 3], posterior_mean(prior, problem, y[2, 3]))


def test_bad_input_is_named(generator):
    prior = random_mixture(2, 3, generator)
    problem = LinearProblem(torch.eye(2, dtype=torch.float64), 0.5)
    y = torch.zeros(5, 2, dtype=torch.float64)
    batch = posterior(prior, problem, y)
    wide = LinearProblem(torch.ones(1, 2, dtype=torch.float64), 0.5)
    for call, message in [
        (lambda: posterior(batch, problem, y), r"prior must be a single mixture, got .* \(5,\)"),
        (
            lambda: posterior(random_mixture(3, 1, generator), problem, y),
            "prior must have dimension 2, got 3",
        ),
        (
            lambda: posterior(prior, LinearProblem(torch.eye(2), 0.5), y),
            "operator must have the dtype of prior",
        ),
        (lambda: posterior(prior, problem, y[:, :1]), r"y must have shape \(\*, 2\), got \(5, 1\)"),
        (lambda: posterior(prior, problem, y.float()), "y must have dtype torch.float64"),
        (lambda: posterior(prior, problem, y * torch.nan), "y must be finite"),
        (lambda: posterior(prior, problem, 1e160 + y), "y must not lie so far away that its"),
        (lambda: posterior(None, problem, y), "prior must be a GaussianMixture, got NoneType"),
        (
            lambda: posterior(Normal(y, 1.0), problem, y),
            "prior must be a GaussianMixture, got Normal",
        ),
        (
            lambda: posterior(prior, problem.operator, y),
            "problem must be a LinearProblem, got Tensor",
        ),
        (lambda: data_density(batch, problem), "prior must be a single mixture"),
        (
            lambda: normal_data_density(batch, problem),
            "prior must be a single mixture",
        ),
        (
            lambda: normal_data_density(prior, wide),
            "must be injective .* got rank 1 for 2 unknowns",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
