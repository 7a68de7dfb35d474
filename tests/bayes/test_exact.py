"""The posterior against rational arithmetic: tall and rank-deficient operators, tiny noise."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from invbayes import GaussianMixture, LinearProblem, map_estimate, posterior, posterior_mean
from tests.conftest import random_mixture, random_operator

TALL = [[1.0, 0.5], [0.3, 0.7], [0.2, 0.9]]
FLAT = [[1.0, 2.0], [2.0, 4.0], [-1.0, -2.0]]
WIDE = [[1.0, 0.5, -0.25], [0.3, 0.7, 2.0]]
ONES = [[1.0, 1.0], [1.0, 1.0]]
NOISE = pytest.mark.parametrize(
    ("dtype", "noise_std"),
    [(torch.float32, d) for d in (3e-3, 1e-3, 5e-4)]
    + [(torch.float64, d) for d in (1e-3, 1e-5, 1e-6, 1e-7)],
)
OPERATORS = pytest.mark.parametrize("rows", [TALL, FLAT, WIDE, ONES])


def exact(matrix):
    """The entries of a tensor, without rounding."""
    return [[Fraction(value) for value in row] for row in matrix.tolist()]


def product(a, b):
    return [
        [sum(x * y for x, y in zip(row, c, strict=True)) for c in zip(*b, strict=True)] for row in a
    ]


def transposed(a):
    return [list(column) for column in zip(*a, strict=True)]


def solved(a, b):
    """A⁻¹ B by Gauss and Jordan."""
    rows = [[*left, *right] for left, right in zip(a, b, strict=True)]
    for i in range(len(rows)):
        pivot = next(k for k in range(i, len(rows)) if rows[k][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for k in range(len(rows)):
            if k != i:
                rows[k] = [v - rows[k][i] * w for v, w in zip(rows[k], rows[i], strict=True)]
    return [row[len(a) :] for row in rows]


def exact_posterior(prior, problem, y):
    """The mean and the precision of the posterior of one Gaussian, as fractions."""
    covariance, mean = exact(prior.covariances[0]), transposed(exact(prior.means))
    operator, variance = exact(problem.operator), Fraction(problem.noise_std) ** 2
    unit = [[Fraction(i == j) for j in range(prior.dim)] for i in range(prior.dim)]
    inverse = solved(covariance, unit)
    pulled = product(transposed(operator), operator)
    precision = [
        [a + b / variance for a, b in zip(*rows, strict=True)]
        for rows in zip(inverse, pulled, strict=True)
    ]
    data = product(transposed(operator), transposed(exact(y[None])))
    right = [[a[0] + b[0] / variance] for a, b in zip(product(inverse, mean), data, strict=True)]
    return solved(precision, right), precision


def length(step, precision):
    """The length of a step in standard deviations."""
    return float(product(transposed(step), product(precision, step))[0][0]) ** 0.5


def difference(found, expected):
    return [
        [Fraction(value) - other[0]] for value, other in zip(found.tolist(), expected, strict=True)
    ]


def gaussian_case(rows, dtype, noise_std):
    """A prior, a problem, and an observation far from the operator's range."""
    dim = len(rows[0])
    covariance = torch.eye(dim, dtype=dtype) + 0.25 * torch.ones(dim, dim, dtype=dtype)
    prior = GaussianMixture.gaussian(torch.linspace(-0.5, 1, dim, dtype=dtype), covariance)
    y = torch.tensor([1.0, 2.0, -1.0], dtype=dtype)[: len(rows)]
    return prior, LinearProblem(torch.tensor(rows, dtype=dtype), noise_std), y


@OPERATORS
@NOISE
def test_the_mean_and_map_are_right_to_a_hundredth_of_a_standard_deviation(rows, dtype, noise_std):
    case = gaussian_case(rows, dtype, noise_std)
    mean, precision = exact_posterior(*case)
    for estimate in (posterior_mean, map_estimate):
        assert length(difference(estimate(*case), mean), precision) < 0.01


@OPERATORS
@NOISE
def test_the_spread_is_right_in_every_direction(rows, dtype, noise_std):
    """By the fall of log p one exact standard deviation off, wide directions and narrow ones."""
    case = gaussian_case(rows, dtype, noise_std)
    _, precision = exact_posterior(*case)
    belief = posterior(*case)
    _, axes = torch.linalg.eigh(torch.tensor([[float(v) for v in row] for row in precision]))
    for axis in axes.mT:
        size = length([[Fraction(v)] for v in axis.tolist()], precision)
        point = belief.mean + (axis / size).to(dtype)
        step = [
            [Fraction(a) - Fraction(b)]
            for a, b in zip(point.tolist(), belief.mean.tolist(), strict=True)
        ]
        fall = (belief.log_prob(belief.mean) - belief.log_prob(point)).item()
        assert fall == pytest.approx(length(step, precision) ** 2 / 2, rel=0.02)


@NOISE
def test_the_covariance_of_a_tall_operator_is_right(dtype, noise_std):
    case = gaussian_case(TALL, dtype, noise_std)
    _, precision = exact_posterior(*case)
    unit = [[Fraction(i == j) for j in range(2)] for i in range(2)]
    expected = torch.tensor([[float(v) for v in row] for row in solved(precision, unit)])
    scale = expected.abs().max().item()
    found = posterior(*case).covariance.double()
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=1e-3 * scale)


@NOISE
def test_far_off_the_range_the_weights_are_those_of_the_projection(dtype, noise_std, generator):
    """What lies across the range is the same noise for all components, however large."""
    prior = random_mixture(2, 3, generator, dtype=dtype)
    prior = GaussianMixture(prior.weights, noise_std * prior.means, prior.covariances)
    operator = torch.tensor([[1.0, 0.0], [0.0, 0.5], [0.0, 0.0]], dtype=dtype)
    problem = LinearProblem(operator, noise_std)
    near, far = (torch.tensor([0.5, 0.25, size], dtype=dtype) for size in (0.0, 1e3))
    first, second = posterior(prior, problem, near), posterior(prior, problem, far)
    torch.testing.assert_close(first.weights, second.weights)
    torch.testing.assert_close(first.means, second.means)


@pytest.mark.parametrize(("dtype", "noise_std"), [(torch.float32, 3e-4), (torch.float64, 1e-8)])
def test_an_operator_of_ones_loses_nothing(dtype, noise_std):
    prior = GaussianMixture.gaussian(torch.zeros(2, dtype=dtype), torch.eye(2, dtype=dtype))
    problem = LinearProblem(torch.ones(2, 2, dtype=dtype), noise_std)
    found = posterior_mean(prior, problem, torch.tensor([1.0, 3.0], dtype=dtype))
    torch.testing.assert_close(found, torch.ones(2, dtype=dtype))


def test_rounding_in_the_kernel_is_no_information(generator):
    """For N(0, I) and noise far below rounding: A⁺ y, and the projection on the kernel."""
    prior = GaussianMixture.gaussian(torch.zeros(4).double(), torch.eye(4).double())
    problem = LinearProblem(random_operator(5, 4, 2, generator), 1e-25)
    y = torch.randn(5, generator=generator, dtype=torch.float64)
    inverse = torch.linalg.pinv(problem.operator, rtol=1e-12)
    belief = posterior(prior, problem, y)
    torch.testing.assert_close(belief.mean, inverse @ y, rtol=0, atol=1e-12)
    kernel = torch.eye(4).double() - inverse @ problem.operator
    torch.testing.assert_close(belief.covariance, kernel, rtol=0, atol=1e-12)


@pytest.mark.parametrize("unit", [1e-170, 1e170])
def test_the_unit_of_the_data_does_not_matter(unit, generator):
    prior, operator = random_mixture(2, 3, generator), random_operator(3, 2, 2, generator)
    y = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    found = posterior(prior, LinearProblem(unit * operator, unit * 0.3), unit * y)
    expected = posterior(prior, LinearProblem(operator, 0.3), y)
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.covariance, expected.covariance)


@pytest.mark.parametrize("noise_std", [1e-150, 1e200])
def test_extreme_noise_leaves_the_prior_or_the_data(noise_std):
    prior = GaussianMixture.gaussian(torch.zeros(2).double(), torch.eye(2).double())
    problem = LinearProblem(torch.diag(torch.tensor([2.0, 0.5])).double(), noise_std)
    y = torch.ones(2).double()
    expected = 1 / problem.operator.diagonal() if noise_std < 1 else 0 * y
    torch.testing.assert_close(posterior_mean(prior, problem, y), expected)


def test_noise_beyond_the_dtype_is_named():
    prior = GaussianMixture.gaussian(torch.zeros(2).double(), torch.eye(2).double())
    problem = LinearProblem(torch.eye(2).double(), 1e-170)
    with pytest.raises(ValueError, match=r"problem must leave precisions .* noise_std=1e-170"):
        posterior(prior, problem, torch.ones(2).double())
