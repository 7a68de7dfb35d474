"""The best affine estimate from samples: its closed form, its optimality, singular covariances."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import avg_pool2d

from invbayes import GaussianMixture, LinearProblem, linear_estimate, posterior_mean
from tests.conftest import random_mixture, random_operator

FULL = torch.tensor([[0.5, 0.2, -0.1], [0.2, 0.3, 0.1], [-0.1, 0.1, 0.4]], dtype=torch.float64)


@pytest.fixture(params=[{"noise_std": 0.3}, {"noise_covariance": FULL}], ids=["white", "coloured"])
def noise(request):
    return request.param


def moments(samples):
    centred = samples - samples.mean(0)
    return samples.mean(0), centred.mT @ centred / len(samples)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_it_is_the_posterior_mean_of_the_gaussian_with_the_same_moments(rank, noise, generator):
    problem = LinearProblem(random_operator(3, 2, rank, generator), **noise)
    samples = random_mixture(2, 3, generator).sample(50, generator=generator)
    y = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    expected = posterior_mean(GaussianMixture.gaussian(*moments(samples)), problem, y)
    torch.testing.assert_close(linear_estimate(samples, problem, y), expected)


@pytest.mark.parametrize("n", [1, 2, 3, 40])
def test_a_singular_covariance_is_the_stated_formula(n, noise, generator):
    """Samples in a plane of five dimensions, and fewer samples than data."""
    problem = LinearProblem(random_operator(3, 5, 3, generator), **noise)
    plane = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    samples = 1 + torch.randn(n, 2, generator=generator, dtype=torch.float64) @ plane
    y = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    mean, covariance = moments(samples)
    operator = problem.operator
    gamma = noise.get("noise_covariance", 0.09 * torch.eye(3).double())
    gain = covariance @ operator.mT @ torch.linalg.inv(operator @ covariance @ operator.mT + gamma)
    expected = mean + (y - operator @ mean) @ gain.mT
    torch.testing.assert_close(linear_estimate(samples, problem, y), expected)


def test_no_affine_map_has_a_smaller_error_over_the_samples(noise, generator):
    """The gradient of ½ Σ ‖W A x_i + b − x_i‖² / n + ½ tr(W Γ Wᵀ) is zero at the estimate."""
    problem = LinearProblem(random_operator(3, 2, 2, generator), **noise)
    x = random_mixture(2, 3, generator).sample(30, generator=generator)
    offset = linear_estimate(x, problem, torch.zeros(3).double())
    weight = (linear_estimate(x, problem, torch.eye(3).double()) - offset).mT
    weight, offset = weight.requires_grad_(), offset.requires_grad_()
    gamma = noise.get("noise_covariance", 0.09 * torch.eye(3).double())
    error = problem.apply(x) @ weight.mT + offset - x
    risk = error.square().sum(1).mean() / 2 + torch.trace(weight @ gamma @ weight.mT) / 2
    for gradient in torch.autograd.grad(risk, (weight, offset)):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


def test_rounding_in_directions_that_no_sample_has_is_no_information(generator):
    """For noise far below rounding: the projection on the plane that holds the samples."""
    plane = torch.linalg.qr(torch.randn(5, 2, generator=generator, dtype=torch.float64)).Q
    samples = 1 + torch.randn(40, 2, generator=generator, dtype=torch.float64) @ plane.mT
    y = torch.randn(5, generator=generator, dtype=torch.float64)
    found = linear_estimate(samples, LinearProblem(torch.eye(5).double(), 1e-25), y)
    mean = samples.mean(0)
    torch.testing.assert_close(found, mean + (y - mean) @ plane @ plane.mT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lead", [(), (0,), (2, 3)])
def test_images_and_operators_as_functions(lead, generator):
    def pooled(x):
        return avg_pool2d(x, 2)

    problem = LinearProblem(pooled, 0.2, shape=(1, 4, 4), dtype=torch.float64)
    flat = LinearProblem(problem.matrix, 0.2)
    samples = torch.randn(6, 1, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(*lead, 1, 2, 2, generator=generator, dtype=torch.float64)
    found = linear_estimate(samples, problem, y)
    expected = linear_estimate(samples.flatten(1), flat, y.reshape(*lead, 4))
    assert found.shape == (*lead, 1, 4, 4)
    torch.testing.assert_close(found.reshape(expected.shape), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": torch.zeros(4, 3)}, r"samples must have shape \(\*, 2\), got \(4, 3\)"),
        ({"samples": torch.zeros(2)}, r"samples must have shape \(n, 2\), got \(2,\)"),
        ({"samples": torch.zeros(3, 4, 2)}, r"samples must have shape \(n, 2\), got \(3, 4, 2\)"),
        ({"samples": torch.zeros(0, 2)}, r"samples must have shape \(n, 2\), got \(0, 2\)"),
        ({"samples": torch.full((4, 2), torch.nan)}, "samples must be finite"),
        ({"samples": torch.zeros(4, 2).double()}, "samples must have dtype torch.float32"),
        ({"samples": None}, "samples must be a floating-point tensor, got NoneType"),
        ({"y": torch.zeros(4, 2)}, r"y must have shape \(\*, 3\), got \(4, 2\)"),
        ({"y": torch.full((3,), torch.inf)}, "y must be finite"),
        ({"problem": torch.ones(3, 2)}, "problem must be a LinearProblem, got Tensor"),
    ],
)
def test_bad_input_is_named(change, message):
    valid = {
        "samples": torch.zeros(4, 2),
        "problem": LinearProblem(torch.ones(3, 2), 1.0),
        "y": torch.zeros(3),
    }
    with pytest.raises(ValueError, match=message):
        linear_estimate(**{**valid, **change})
