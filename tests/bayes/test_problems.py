"""The measurement: adjoint, noise and normal data."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given

from invbayes import LinearProblem
from tests.conftest import assert_mean_close, cases, random_operator


@given(cases())
def test_adjoint_moves_the_operator_across_the_inner_product(case):
    prior, problem, y = case
    x = prior.means[:1]
    left = (problem.apply(x) * y).sum(-1)
    right = (x * problem.adjoint(y)).sum(-1)
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@given(cases())
def test_normal_operator_is_adjoint_after_operator(case):
    prior, problem, _ = case
    both = problem.normal_data(problem.apply(prior.means))
    torch.testing.assert_close(prior.means @ problem.normal_operator, both, rtol=1e-12, atol=1e-12)


def test_noise_has_mean_zero_and_the_given_covariance(generator):
    problem = LinearProblem(torch.randn(3, 2, generator=generator), noise_std=0.7)
    x = torch.ones(200_000, 2)
    noise = problem.observe(x, generator=generator) - problem.apply(x)
    assert_mean_close(noise, torch.zeros(3))
    assert_mean_close(noise[:, :, None] * noise[:, None, :], 0.49 * torch.eye(3))


@pytest.mark.parametrize("size", [0, 1e3])
def test_the_naive_inverse_divides_the_noise_by_the_singular_values(size, generator):
    """E ‖A⁺ y − x‖² = δ² Σ 1/a², whatever x is."""
    operator = random_operator(5, 3, 3, generator)
    problem = LinearProblem(operator, noise_std=0.7)
    x = size * torch.ones(100_000, 3).double()
    found = problem.observe(x, generator=generator) @ torch.linalg.pinv(operator).mT
    expected = 0.49 * (torch.linalg.svdvals(operator) ** -2).sum()
    assert_mean_close((found - x).square().sum(1), expected)


def test_the_generator_fixes_the_noise():
    problem = LinearProblem(torch.eye(2), noise_std=1.0)
    first, again = (
        problem.observe(torch.zeros(4, 2), generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert torch.equal(first, again)


def test_a_problem_cannot_be_changed_behind_its_checks():
    with pytest.raises(AttributeError):
        LinearProblem(torch.eye(2), 0.5).noise_std = -1.0
    problem = LinearProblem(torch.eye(2), 0.5)
    problem.operator.mul_(5.0)
    assert torch.equal(problem.operator, torch.eye(2))


def test_a_single_number_needs_no_axis():
    """One datum of two unknowns, and one unknown."""
    total = LinearProblem(lambda x: x.sum(-1), 0.1, shape=(2,), dtype=torch.float64)
    row = LinearProblem(torch.ones(1, 2).double(), 0.1)
    x, y = torch.randn(3, 2, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    torch.testing.assert_close(total.log_likelihood(x, y), row.log_likelihood(x, y[:, None]))
    double = LinearProblem(lambda x: 2 * x, 0.1, shape=(), dtype=torch.float64)
    torch.testing.assert_close(double.log_likelihood(y, 0 * y), -(y.square() * 2 / 0.01))
    assert total.log_likelihood(x[:0], y[:0]).shape == (0,)


@pytest.mark.parametrize("noise_std", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_noise_is_named(noise_std):
    with pytest.raises(ValueError, match="noise_std must be finite and > 0, got"):
        LinearProblem(torch.eye(2), noise_std)


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (torch.ones(2), r"operator must be a matrix of shape \(m, d\), got \(2,\)"),
        (torch.ones(0, 2), r"operator must be a matrix of shape \(m, d\), got \(0, 2\)"),
        (torch.ones(2, 2, dtype=torch.int), "operator must be a floating-point tensor"),
        (torch.full((2, 2), torch.nan), "operator must be finite"),
    ],
)
def test_bad_operators_are_named(operator, message):
    with pytest.raises(ValueError, match=message):
        LinearProblem(operator, 1.0)


@pytest.mark.parametrize(
    ("method", "name", "size"),
    [("apply", "x", 2), ("observe", "x", 2), ("adjoint", "y", 3), ("normal_data", "y", 3)],
)
def test_bad_points_are_named(method, name, size):
    call = getattr(LinearProblem(torch.ones(3, 2), 1.0), method)
    with pytest.raises(ValueError, match=rf"{name} must have shape \(\*, {size}\), got \(4, 7\)"):
        call(torch.zeros(4, 7))
    with pytest.raises(ValueError, match=f"{name} must be finite"):
        call(torch.full((4, size), torch.nan))
    with pytest.raises(ValueError, match=f"{name} must have dtype torch.float32"):
        call(torch.zeros(4, size).double())
