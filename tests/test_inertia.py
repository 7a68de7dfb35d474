"""The flows against closed forms, and against two other forms of the same equation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from invbayes import (
    NotConverged,
    gradient_flow,
    inertial_flow,
    linearised_gradient_flow,
    linearised_inertia,
)

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
