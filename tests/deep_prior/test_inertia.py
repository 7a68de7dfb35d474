"""The flows against closed forms, and against two other forms of the same equation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import minimize_scalar

from invbayes import (
    GaussianMixture,
    LinearProblem,
    NotConverged,
    gradient_flow,
    inertial_flow,
    linearised_gradient_flow,
    linearised_inertia,
    posterior,
)
from tests.conftest import random_operator

TIMES = torch.linspace(0, 6, 13).double()


def loss(theta):
    """Not quadratic, and with a Hessian that is not diagonal."""
    x, y = theta
    return (x**2 + 0.5 * x * y + y**2) / 2 + torch.cos(x - y) + 0.1 * x**4


def gradient(theta):
    return torch.func.grad(loss)(theta)


START = torch.tensor([1.2, -0.7]).double()


def solved(field, start):
    options = {"t_eval": TIMES.numpy(), "rtol": 1e-12, "atol": 1e-13}
    return torch.from_numpy(solve_ivp(field, (0, 6), start, "DOP853", **options).y.T)


def second_order(alpha, beta):
    """θ'' = −αθ' − β∇²L θ' − ∇L, with the Hessian."""

    def field(_, state):
        theta, velocity = torch.from_numpy(state).split(2)
        _, bend = torch.autograd.functional.hvp(loss, theta, velocity)
        force = -alpha * velocity - beta * bend - gradient(theta)
        return np.concatenate([velocity.numpy(), force.numpy()])

    return solved(field, [*START.tolist(), 0, 0])


def inna(alpha, beta):
    """Castera et al.'s form in (θ, ψ), started so that θ' = 0."""

    def field(_, state):
        theta, psi = torch.from_numpy(state).split(2)
        drift = (1 / beta - alpha) * theta - psi / beta
        return np.concatenate([(drift - beta * gradient(theta)).numpy(), drift.numpy()])

    psi = (1 - alpha * beta) * START - beta**2 * gradient(START)
    return solved(field, [*START.tolist(), *psi.tolist()])


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.3), (2.0, 1.0), (0.0, 0.2)])
def test_three_forms_of_the_equation_agree(alpha, beta):
    path = inertial_flow(
        gradient, START, TIMES, damping=alpha, hessian_damping=beta, rtol=1e-12, atol=1e-13
    )
    reference = second_order(alpha, beta)
    torch.testing.assert_close(path.position, reference[:, :2], atol=1e-9, rtol=0)
    torch.testing.assert_close(path.velocity, reference[:, 2:], atol=1e-9, rtol=0)
    torch.testing.assert_close(path.position, inna(alpha, beta)[:, :2], atol=1e-9, rtol=0)


def test_without_hessian_damping_the_form_is_regular():
    path = inertial_flow(gradient, START, TIMES, damping=0.5, rtol=1e-12, atol=1e-13)
    reference = second_order(0.5, 0.0)
    torch.testing.assert_close(path.position, reference[:, :2], atol=1e-9, rtol=0)


def test_flows_of_a_quadratic_loss_have_closed_forms(generator):
    jacobian = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    theta, data = torch.randn(5, generator=generator, dtype=torch.float64), torch.ones(3).double()

    def slope(theta):
        return jacobian.mT @ (jacobian @ theta - data)

    kernel, residual = jacobian @ jacobian.mT, jacobian @ theta - data
    flow = gradient_flow(slope, theta, TIMES)
    expected = linearised_gradient_flow(kernel, residual, TIMES)
    got = flow.position @ jacobian.mT - data
    torch.testing.assert_close(got, expected, atol=1e-8, rtol=0)
    torch.testing.assert_close(flow.velocity[4], -slope(flow.position[4]))

    path = inertial_flow(slope, theta, TIMES, damping=0.7, hessian_damping=0.3)
    expected, energy = linearised_inertia(kernel, residual, TIMES, damping=0.7, hessian_damping=0.3)
    got = path.position @ jacobian.mT - data
    torch.testing.assert_close(got, expected, atol=1e-8, rtol=0)
    total = (got.square().sum(1) + path.velocity.square().sum(1)) / 2
    torch.testing.assert_close(total, energy, atol=1e-8, rtol=0)


def stopping_ratio(problem, decoder, signal_std):
    """The squared error of the codes' flow, stopped at s²/δ², over that of the posterior mean.

    The flow is linear in the data, so those of unit data are the columns of a matrix.
    """
    noise_std, both = problem.noise_std, problem.operator @ decoder
    times = torch.tensor([0, (signal_std / noise_std) ** 2], dtype=torch.float64)
    start, data = both.new_zeros(both.shape[::-1]), torch.eye(len(both)).double()
    flow = gradient_flow(lambda codes: both.mT @ (both @ codes - data), start, times)
    answer = decoder @ flow.position[-1]
    bias, spread = answer @ both - decoder, noise_std * answer
    prior = GaussianMixture.gaussian(
        decoder.new_zeros(len(decoder)), signal_std**2 * decoder @ decoder.mT
    )
    best = posterior(prior, problem, data[0]).covariance.trace()
    return ((signal_std**2 * bias.square().sum() + spread.square().sum()) / best).item()


def test_a_stopping_time_is_as_good_as_a_prior_up_to_a_factor(generator):
    """The factor is the largest ratio in one mode, and attained if all modes are like that."""

    def loss(nu):
        return -(1 + nu) * (math.exp(-2 * nu) + (1 - math.exp(-nu)) ** 2 / nu)

    worst = minimize_scalar(loss, bounds=(0.1, 10), method="bounded")
    assert 1.2 < -worst.fun < 1.22
    decoder = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    operator = random_operator(3, 4, 3, generator)
    for noise_std in (0.05, 0.3, 1.0):
        ratio = stopping_ratio(LinearProblem(operator, noise_std), decoder, 0.7)
        assert 1 < ratio < -worst.fun
    like_that = (
        torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q.double()
        * worst.x**0.5
        * 0.3
        / 0.7
    )
    ratio = stopping_ratio(LinearProblem(like_that, 0.3), torch.eye(3).double(), 0.7)
    assert ratio == pytest.approx(-worst.fun)


def test_without_damping_energy_is_kept():
    path = inertial_flow(gradient, START, TIMES, damping=0.0, rtol=1e-12)
    energy = torch.stack([loss(theta) for theta in path.position])
    energy = energy + path.velocity.square().sum(1) / 2
    torch.testing.assert_close(energy, energy[:1].expand(13), atol=1e-9, rtol=0)


def test_parameters_may_have_any_shape():
    start = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).double()
    path = inertial_flow(lambda theta: theta, start, TIMES, damping=2.0)
    factor = ((1 + TIMES) * torch.exp(-TIMES))[:, None, None]
    torch.testing.assert_close(path.position, factor * start, atol=1e-9, rtol=0)
    torch.testing.assert_close(gradient_flow(lambda t: t, start, TIMES).position.shape, (13, 2, 3))


def test_a_flow_that_blows_up_raises():
    with pytest.raises(NotConverged, match="stopped after t"):
        gradient_flow(lambda theta: -(theta**2), torch.ones(1).double(), TIMES)


def test_a_gradient_that_becomes_nan_raises():
    def broken(theta):
        return torch.where(theta > 0.5, theta, torch.nan)

    with pytest.raises(NotConverged, match="stopped after t"):
        gradient_flow(broken, torch.ones(1).double(), TIMES)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"damping": 1e200}, "evaluations are used up"),
        ({"damping": 1e200, "hessian_damping": 1e200}, "after t = 0: the first step overflows"),
    ],
)
def test_a_stiff_equation_raises(options, why):
    with pytest.raises(NotConverged, match=why) as raised:
        inertial_flow(gradient, START, TIMES, max_evaluations=200, **options)
    assert raised.value.steps == (1 if "overflows" in why else 200)


def test_a_flow_that_cannot_start_raises():
    with pytest.raises(NotConverged, match="stopped after t = 0: "):
        gradient_flow(lambda theta: 1e300 * theta, START, TIMES)


def test_the_evaluations_of_a_flow_are_counted():
    calls = []

    def counted(theta):
        calls.append(theta)
        return gradient(theta)

    gradient_flow(counted, START, TIMES)
    used = len(calls) - len(TIMES) - 1  # the velocities, and the check of the start
    gradient_flow(gradient, START, TIMES, max_evaluations=used)
    with pytest.raises(NotConverged, match="used up") as raised:
        gradient_flow(gradient, START, TIMES, max_evaluations=used - 1)
    assert raised.value.steps == used - 1


def test_times_may_be_less_precise_than_the_start():
    times = torch.tensor([0, 0.5, 6])
    expected = gradient_flow(gradient, START, times.double())
    for dtype in (torch.bfloat16, torch.float32):
        got = gradient_flow(gradient, START, times.to(dtype))
        assert torch.equal(got.position, expected.position)
    assert torch.equal(expected.velocity, -torch.stack([gradient(t) for t in expected.position]))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"damping": -0.1}, "damping"),
        ({"hessian_damping": -0.1}, "hessian_damping"),
        ({"damping": float("nan")}, "damping"),
        ({"start": START.float()}, "start"),
        ({"start": START * float("nan")}, "start"),
        ({"times": torch.tensor([1.0, 2.0])}, "times"),
        ({"times": torch.tensor([0.0, 2.0, 1.0])}, "times"),
        ({"times": torch.tensor([0.0])}, "times"),
        ({"times": torch.tensor([0.0, 1.0, 1.0])}, "times"),
        ({"times": torch.tensor([[0.0, 1.0], [2.0, 3.0]])}, "times"),
        ({"max_evaluations": 0}, "max_evaluations"),
        ({"gradient": None}, "gradient"),
        ({"rtol": 0.0}, "rtol"),
        ({"atol": -1.0}, "atol"),
        ({"gradient": lambda theta: theta[:1]}, r"gradient\(start\)"),
        ({"gradient": lambda theta: theta.float()}, r"gradient\(start\)"),
        ({"gradient": lambda theta: theta * torch.nan}, r"gradient\(start\)"),
    ],
)
def test_bad_input_names_the_argument(change, name):
    arguments = {"gradient": gradient, "start": START, "times": TIMES, "damping": 1.0, **change}
    with pytest.raises(ValueError, match=f"^{name} must"):
        inertial_flow(**arguments)
    if "damping" not in name:
        arguments = {k: v for k, v in arguments.items() if "damping" not in k}
        with pytest.raises(ValueError, match=f"^{name} must"):
            gradient_flow(**arguments)
