"""What the chapter on stopping proves, by the package's own flows, at or near equality."""

from __future__ import annotations

import math
from functools import partial
from itertools import islice

import pytest
import torch

from invbayes import (
    DataMisfit,
    DeepPrior,
    Inertia,
    LinearProblem,
    gradient_flow,
    inertial_flow,
    iterates,
    mode_roots,
)
from tests.conftest import random_operator

SIGNAL, NOISE = 0.7, 0.3  # s and δ


def price(left, nu):
    """f(ν) for a filter that leaves the part `left` of a mode."""
    return 1 + ((1 + nu) * left - 1) ** 2 / nu


def left_by_ball(nu, damping=8.0, time=3.6):
    slow, fast = mode_roots(nu * (1 - 1e-12), damping=damping).unbind(-1)
    return ((fast * (time * slow).exp() - slow * (time * fast).exp()) / (fast - slow)).real


def relative_error(forward, decoder, inverse):
    """E|D a' − D a|² over that of the posterior mean, for a ~ N(0, s² I), a' = inverse y: exact."""
    bias = decoder @ (inverse @ forward - torch.eye(forward.shape[1]).double())
    error = SIGNAL**2 * bias.square().sum() + NOISE**2 * (decoder @ inverse).square().sum()
    precision = forward.mT @ forward / NOISE**2 + torch.eye(forward.shape[1]).double() / SIGNAL**2
    return (error / (decoder @ torch.linalg.inv(precision) @ decoder.mT).trace()).item()


def stopped(flow, forward, time):
    """From data to codes, a matrix: the flow of ½|B a − y|² from zero, for each unit vector y."""
    data = torch.eye(len(forward)).double()
    start = torch.zeros(forward.shape[1], len(forward)).double()
    path = flow(lambda codes: forward.mT @ (forward @ codes - data), start, torch.tensor([0, time]))
    return path.position[-1]


def descent(forward, c=0.5):
    return stopped(gradient_flow, forward, c * (SIGNAL / NOISE) ** 2)


def ball(forward):
    flow = partial(inertial_flow, damping=8 * NOISE / SIGNAL)
    return stopped(flow, forward, 3.6 * SIGNAL / NOISE)


def one_mode_each(nu, generator):
    """An operator all of whose modes have the signal-to-noise ratio √ν."""
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator).double()).Q
    return turn * nu**0.5 * NOISE / SIGNAL


def certified(left, first, last=16.0):
    edges = torch.linspace(first, last, round(100 * (last - first)) + 1).double()
    low, high = edges[:-1], edges[1:]
    above, below = (1 + high) * left(low) - 1, (1 + low) * left(high) - 1
    return (1 + torch.maximum(above.abs(), below.abs()) ** 2 / low).max().item()


def test_a_filter_costs_at_most_what_it_costs_in_its_worst_mode(generator):
    """Any filter, any decoder, modes that the data do not see; equality if all modes are alike."""
    for _ in range(20):
        decoder = torch.randn(6, 5, generator=generator).double()
        forward = random_operator(4, 5, 3, generator)
        u, roots, v = torch.linalg.svd(forward, full_matrices=False)
        u, roots, v = u[:, :3], roots[:3], v[:3]
        filters = 1.5 * torch.rand(3, generator=generator).double()
        costs = price(1 - filters, (SIGNAL * roots / NOISE) ** 2)
        inverse = (v.mT * filters / roots) @ u.mT
        assert 1 <= relative_error(forward, decoder, inverse) <= max(1, costs.max())
    nu, share = 2.0, 0.4
    forward = one_mode_each(nu, generator)
    inverse = share * torch.linalg.inv(forward)
    expected = price(1 - share, nu)
    decoder = torch.randn(6, 3, generator=generator).double()
    assert relative_error(forward, decoder, inverse) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("c", "bound"), [(0.5, 1.09), (1.0, 1.22)])
def test_gradient_flow_that_stops_is_nearly_the_posterior_mean(c, bound, generator):
    """At c s²/δ²: on random problems, at the worst mode, and for every mode by the cells."""
    grid = torch.logspace(-3, 4, 100_001).double()
    left = lambda nu: torch.exp(-c * nu)  # noqa: E731
    costs = price(left(grid), grid)
    assert certified(left, 0.08) < bound
    assert bound - 0.01 < costs.max() <= bound
    for _ in range(10):
        decoder = torch.randn(6, 5, generator=generator).double()
        forward = random_operator(4, 5, 3, generator)
        assert 1 < relative_error(forward, decoder, descent(forward, c)) < bound
    worst = one_mode_each(grid[costs.argmax()].item(), generator)
    ratio = relative_error(worst, torch.eye(3).double(), descent(worst, c))
    assert ratio == pytest.approx(costs.max().item(), rel=1e-7)


def test_a_ball_that_stops_at_the_root_of_the_time_is_nearly_the_posterior_mean(generator):
    """On random problems, at the worst mode, and in every line of the proof."""
    grid = torch.logspace(-3, 9, 200_001).double()
    left = left_by_ball(grid)
    costs = price(left, grid)
    assert certified(left_by_ball, 0.09) < 1.095
    assert 1.09 < costs.max() < 1.0949
    creeping, swinging = grid <= 16, grid > 16
    assert (left[creeping].diff() <= 0).all()
    assert (left[creeping] > 0).all()
    assert (1 - left[creeping] <= 0.45 * grid[creeping] + 1e-13).all()
    assert left[swinging].abs().max() <= 15.4 * math.exp(-14.4) < 9e-6
    for _ in range(10):
        decoder = torch.randn(6, 5, generator=generator).double()
        forward = random_operator(4, 5, 3, generator)
        assert 1 < relative_error(forward, decoder, ball(forward)) < 1.10
    worst = one_mode_each(grid[costs.argmax()].item(), generator)
    ratio = relative_error(worst, torch.eye(3).double(), ball(worst))
    assert ratio == pytest.approx(costs.max().item(), rel=1e-7)


def test_beyond_its_theorem_the_ball_fails():
    far = torch.logspace(9, 12, 100_001).double()
    costs = price(left_by_ball(far), far)
    assert costs[far < 3e11].max() < 1.10 < costs.max()


def test_the_ball_follows_gradient_flow_at_the_root_of_its_time():
    """Creeping modes are where the flow is at t/α; of swinging ones e^(−αt/2) is left."""
    damping, time = 40.0, 18.0
    creeping, swinging = torch.tensor([0.5, 1, 2]).double(), torch.tensor([1e5]).double()
    left, expected = left_by_ball(creeping, damping, time), torch.exp(-creeping * time / damping)
    torch.testing.assert_close(left, expected, rtol=0.01, atol=0)
    assert left_by_ball(swinging, damping, time).abs() < 2 * math.exp(-damping * time / 2)


@pytest.mark.parametrize(
    ("method", "chi"), [("flow", 1 / 4), ("ball", 3**0.5 / 32), ("steps", 1 / 140)]
)
def test_recovery_in_a_subspace_with_an_early_stop(method, chi, generator):
    """Fewer columns than data; the nonlinearity on AT at 99 % of what each theorem allows."""
    operator = torch.randn(6, 9, generator=generator).double()
    operator = operator / torch.linalg.matrix_norm(operator, 2)
    basis = torch.linalg.qr(torch.randn(9, 2, generator=generator).double()).Q
    net = DeepPrior(9, 2000, decoder=basis, zero_start=True, generator=generator)
    inside = torch.linalg.qr(operator @ basis).Q.mT
    truth = basis.sum(1) + 0.05 * torch.randn(9, generator=generator).double()
    noise = 0.05 * torch.randn(6, generator=generator).double()
    y = operator @ truth + noise
    mu = torch.linalg.eigvalsh(DataMisfit(net, LinearProblem(operator, 1.0), y).kernel())[-2:]
    sigma, step = mu[0].sqrt().item(), 0.9 / mu[-1].sqrt().item()
    lipschitz = 4 / 3**1.5 * (operator @ basis @ net.output_weight).norm(dim=0).max()
    scale = 0.99 * chi * sigma**2 / (lipschitz * (inside @ y).norm())
    y, truth, noise = scale * y, scale * truth, scale * noise
    gain = ((inside @ y).norm() / noise.norm()).item()
    misfit, start = DataMisfit(net, LinearProblem(operator, 1.0), y), net.weight.detach().clone()
    if method == "steps":
        count = math.ceil(8 / (sigma * step) * math.log(3**0.5 * gain))
        optimizer = Inertia(net.parameters(), step, damping=sigma)
        run = iterates(net, misfit.problem, y, optimizer)
        x = next(islice(run, count, None)).reconstruction
    elif method == "flow":
        time = 4 / sigma**2 * math.log(gain)
        path = gradient_flow(misfit.gradient, start, torch.tensor([0, time]), rtol=1e-6, atol=1e-9)
        x = net.output(path.position[-1])
    else:
        time = torch.tensor([0, 4 / sigma * math.log(2 / 3**0.5 * gain)])
        options = {"damping": sigma, "rtol": 1e-6, "atol": 1e-9}
        x = net.output(inertial_flow(misfit.gradient, start, time, **options).position[-1])
    distance = (truth - basis @ (basis.mT @ truth)).norm()
    weakest = torch.linalg.svdvals(operator @ basis)[-1]
    bound = distance + (distance + 2 * noise.norm()) / weakest  # the operator has norm one
    assert (inside @ (operator @ x - y)).norm() <= noise.norm() < (inside @ y).norm()
    assert (x - truth).norm() <= bound


def test_the_training_sees_only_the_data_in_the_range(generator):
    """J = P J: what the data have outside of AT changes the loss by a constant, and no gradient."""
    operator = torch.randn(6, 9, generator=generator).double()
    basis = torch.linalg.qr(torch.randn(9, 2, generator=generator).double()).Q
    net = DeepPrior(9, 40, decoder=basis, zero_start=True, generator=generator)
    inside = torch.linalg.qr(operator @ basis).Q.mT
    y = torch.randn(6, generator=generator).double()
    problem = LinearProblem(operator, 1.0)
    weight = net.weight.detach() + torch.randn(40, 1, generator=generator).double()
    whole, part = (DataMisfit(net, problem, data) for data in (y, inside.mT @ (inside @ y)))
    torch.testing.assert_close(whole.gradient(weight), part.gradient(weight), rtol=0, atol=1e-12)
    outside = (y - inside.mT @ (inside @ y)).square().sum() / 2
    assert (whole(weight) - part(weight)).item() == pytest.approx(outside.item())
