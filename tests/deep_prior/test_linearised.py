"""Predictions of the linearised dynamics, against matrices, simulations and a solver of ODEs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from invbayes import (
    amplification,
    decay_rate,
    largest_step,
    linearised_gradient_flow,
    linearised_inertia,
    mode_roots,
    optimal_damping,
)

dampings = st.floats(0, 5)
eigenvalues = st.floats(1e-3, 10)


def step_matrix(mu, h, alpha, beta):
    """One step of the algorithm on L = μθ²/2, as a matrix acting on (θ, w)."""
    friction = 1 / (1 + alpha * h)
    w_row = [friction * h * (alpha * beta - 1) * mu, friction]
    return torch.tensor(
        [[1 + h * (w_row[0] - beta * mu), h * w_row[1]], w_row], dtype=torch.float64
    )


def random_kernel(size, generator):
    factor = torch.randn(size, 2 * size, generator=generator, dtype=torch.float64)
    return factor @ factor.mT / (2 * size)


@given(mu=eigenvalues, alpha=dampings, beta=dampings)
def test_the_roots_solve_their_equation_and_multiply_to_the_eigenvalue(mu, alpha, beta):
    slow, fast = mode_roots(
        torch.tensor(mu, dtype=torch.float64), damping=alpha, hessian_damping=beta
    )
    friction = alpha + beta * mu
    for root in (slow, fast):
        assert abs(root**2 + friction * root + mu) <= 1e-12 * (1 + friction) ** 2
    assert abs(slow * fast - mu) <= 1e-12 * mu
    assert -slow.real <= -fast.real + 1e-12
    assert -slow.real <= math.sqrt(mu) * (1 + 1e-12)


@given(smallest=st.floats(1e-3, 1), share=st.floats(0, 1))
def test_the_optimal_damping_reaches_the_best_rate_for_all_larger_eigenvalues(smallest, share):
    beta = share / math.sqrt(smallest)
    alpha = optimal_damping(smallest, hessian_damping=beta)
    spectrum = torch.logspace(0, 4, 50, dtype=torch.float64) * smallest
    rate = decay_rate(spectrum, damping=alpha, hessian_damping=beta)
    # At a double root a rounding of 1e-16 moves the rate by its square root.
    assert rate == pytest.approx(math.sqrt(smallest), rel=1e-6)


def test_no_other_damping_is_better():
    spectrum = torch.tensor([0.01, 0.2, 1.0]).double()
    rates = [
        decay_rate(spectrum, damping=alpha, hessian_damping=beta)
        for alpha in torch.linspace(0, 2, 41).tolist()
        for beta in torch.linspace(0, 15, 31).tolist()
    ]
    assert max(rates) <= 0.1 + 1e-9
    beyond = 1.5 / 0.1
    at_double_root = decay_rate(spectrum, damping=0.2 - beyond * 0.01 + 0.2, hessian_damping=beyond)
    assert at_double_root < 0.1


def test_gradient_flow_with_a_frozen_kernel(generator):
    kernel, residual = (
        random_kernel(5, generator),
        torch.randn(5, generator=generator, dtype=torch.float64),
    )
    times = torch.linspace(0, 20, 7).double()
    expected = torch.linalg.matrix_exp(-times[:, None, None] * kernel) @ residual
    torch.testing.assert_close(
        linearised_gradient_flow(kernel, residual, times), expected, atol=1e-12, rtol=0
    )


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (0.4, 0.0), (0.3, 1.7), (3.0, 0.2)])
def test_inertia_with_a_frozen_kernel_solves_its_equation(generator, alpha, beta):
    kernel, residual = (
        random_kernel(4, generator),
        torch.randn(4, generator=generator, dtype=torch.float64),
    )
    times = torch.linspace(0, 15, 9).double()
    k = kernel.numpy()

    def field(_, state):
        place, speed = state[:4], state[4:]
        return [*speed, *(-alpha * speed - beta * k @ speed - k @ place)]

    start = [*residual.tolist(), 0, 0, 0, 0]
    solver = solve_ivp(field, (0, 15), start, "DOP853", times.numpy(), rtol=1e-12, atol=1e-13)
    place, speed = torch.from_numpy(solver.y).T.split(4, dim=1)
    energy = (place**2 + speed * torch.linalg.solve(kernel, speed.T).T).sum(1) / 2
    got = linearised_inertia(kernel, residual, times, damping=alpha, hessian_damping=beta)
    torch.testing.assert_close(got[0], place, atol=1e-9, rtol=0)
    torch.testing.assert_close(got[1], energy, atol=1e-9, rtol=0)


def test_a_kernel_that_is_symmetric_up_to_rounding_is_taken(generator):
    factor = torch.randn(30, 20, generator=generator)
    weights = torch.randn(20, 20, generator=generator)
    kernel = factor @ (weights @ weights.mT) @ factor.mT
    assert not torch.allclose(kernel, kernel.mT)
    linearised_gradient_flow(kernel, torch.ones(30), ONE)


@pytest.mark.parametrize("size", [1e3, 1e4])
def test_single_precision_is_as_good_as_its_dtype(size):
    """A long time and a strong damping: exp(−t/α), far from where the exponential starts."""
    place, _ = linearised_inertia(torch.eye(1), ONE, size * ONE, damping=size)
    assert place.item() == pytest.approx(math.exp(-1), rel=1e-5)


@given(mu=eigenvalues, h=st.floats(0.01, 4), alpha=dampings, beta=dampings)
def test_the_amplification_is_the_spectral_radius_of_a_step(mu, h, alpha, beta):
    radius = torch.linalg.eigvals(step_matrix(mu, h, alpha, beta)).abs().max()
    got = amplification(
        torch.tensor(mu, dtype=torch.float64), step=h, damping=alpha, hessian_damping=beta
    )
    assert got == pytest.approx(radius.item(), rel=1e-6, abs=1e-9)


@given(mu=eigenvalues, alpha=st.floats(1e-3, 5), beta=dampings)
def test_the_largest_step_is_where_stability_ends(mu, alpha, beta):
    bound = largest_step(mu, damping=alpha, hessian_damping=beta)
    slack = bound**2 * mu + 2 * beta * bound * mu - 4 - 2 * alpha * bound
    assert abs(slack) <= 1e-10 * (4 + 2 * alpha * bound)
    spectrum = torch.tensor([1e-3, 0.3, 1.0]).double() * mu
    options = {"damping": alpha, "hessian_damping": beta}
    assert (amplification(spectrum, step=0.999 * bound, **options) < 1).all()
    assert amplification(spectrum, step=1.001 * bound, **options)[-1] > 1


ONE = torch.ones(1)
SKEWED = torch.tensor([[1.0, 2.0], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: mode_roots(torch.tensor([0.0]), damping=1.0), "eigenvalues"),
        (lambda: mode_roots(torch.tensor([float("nan")]), damping=1.0), "eigenvalues"),
        (lambda: mode_roots(ONE, damping=-1.0), "damping"),
        (lambda: mode_roots(ONE, damping=1.0, hessian_damping=-1.0), "hessian_damping"),
        (lambda: decay_rate(ONE, damping=float("inf")), "damping"),
        (lambda: optimal_damping(0.0), "smallest"),
        (lambda: optimal_damping(1.0, hessian_damping=1.1), "hessian_damping"),
        (lambda: optimal_damping(1.0, hessian_damping=-0.1), "hessian_damping"),
        (lambda: amplification(ONE, step=0.0, damping=1.0), "step"),
        (lambda: amplification(-ONE, step=1.0, damping=1.0), "eigenvalues"),
        (lambda: largest_step(-1.0, damping=1.0), "largest"),
        (lambda: largest_step(1.0, damping=-1.0), "damping"),
        (lambda: linearised_gradient_flow(torch.ones(2, 3), ONE, ONE), "kernel"),
        (lambda: linearised_gradient_flow(torch.eye(2), ONE, ONE), "residual"),
        (lambda: linearised_gradient_flow(torch.eye(1), ONE * float("nan"), ONE), "residual"),
        (lambda: linearised_gradient_flow(SKEWED, torch.ones(2), ONE), "kernel"),
        (lambda: linearised_inertia(-torch.eye(1), ONE, ONE, damping=1.0), "kernel"),
        (lambda: decay_rate(torch.ones(0), damping=1.0), "eigenvalues"),
        (lambda: linearised_gradient_flow(torch.eye(2), torch.eye(2), ONE), "residual"),
        (lambda: linearised_gradient_flow(torch.eye(1), ONE, ONE * float("nan")), "times"),
        (lambda: linearised_gradient_flow(torch.eye(1), ONE, torch.ones(1, 1)), "times"),
        (lambda: linearised_inertia(torch.eye(1), ONE, ONE.double(), damping=1.0), "times"),
        (lambda: linearised_gradient_flow(SKEWED * 1e-9, torch.ones(2), ONE), "kernel"),
        (lambda: linearised_inertia(torch.eye(1), ONE, ONE, damping=-1.0), "damping"),
    ],
)
def test_bad_input_names_the_argument(call, name):
    with pytest.raises(ValueError, match=rf"\b{name}\b must"):
        call()
