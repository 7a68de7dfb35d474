"""The chapter on a heavy ball: its identities at random states, its bounds at equality."""

from __future__ import annotations

import math
from itertools import islice

import numpy as np
import pytest
import torch

from invbayes import (
    AdaptiveInertia,
    DataMisfit,
    DeepPrior,
    Inertia,
    LinearProblem,
    inertial_flow,
    iterates,
)
from tests.conftest import assert_mean_close, random_operator
from tests.deep_prior.test_network import seeded
from tests.deep_prior.test_observation_fit import data_jacobian, lipschitz_constant

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)
SLOPES, WEIGHTS = 1 / np.cosh(NODES) ** 2, WEIGHTS / WEIGHTS.sum()
C, FOURTH = WEIGHTS @ SLOPES**2, WEIGHTS @ SLOPES**4


@pytest.mark.parametrize(("rank", "zero_start"), [(1, False), (4, True)])
def test_the_mean_square_error_of_the_kernel_is_below_its_bound(rank, zero_start, generator):
    """By its exact value, E tanh'⁴ (tr² S + 2 tr S²) / c² − tr S² over the number of units."""
    decoder = torch.randn(4, rank, generator=generator, dtype=torch.float64)
    covariance, units = decoder @ decoder.mT, 5 if zero_start else 10
    options = {"decoder": decoder, "zero_start": zero_start}
    errors = torch.stack(
        [
            (DeepPrior(4, 10, generator=seeded(n), **options).kernel() - covariance).norm() ** 2
            for n in range(3000)
        ]
    )
    traces = covariance.trace() ** 2 + 2 * (covariance @ covariance).trace()
    exact = (FOURTH * traces / C**2 - (covariance @ covariance).trace()) / units
    assert_mean_close(errors, exact)
    assert exact < 3 * decoder.norm() ** 4 / (C * units)


def guaranteed(width, m, risk, size, least):
    """The χ₀ for which the second condition on the width is an equality; the first one holds."""
    assert width >= 35 * m * (m + 2) / risk
    return (14 * math.log(2 * width / risk) / width) ** 0.5 * size / least


def test_a_network_as_wide_as_the_proposition_asks_is_nearly_linear(generator):
    """Much more often than promised, since Markov's inequality is crude."""
    width, risk, y = 1200, 0.5, torch.tensor([0.3, -0.1, 0.2]).double()
    problem = LinearProblem(random_operator(3, 5, 3, generator), noise_std=0.1)
    limit = problem.operator @ problem.operator.mT
    least, root = torch.linalg.eigvalsh(limit)[0], torch.linalg.cholesky(limit)
    bound = guaranteed(width, 3, risk, problem.operator.norm() * y.norm(), least)
    for seed in range(50):
        net = DeepPrior(5, width, zero_start=True, generator=seeded(seed))
        kernel = DataMisfit(net, problem, y).kernel()
        white = torch.linalg.solve(root, torch.linalg.solve(root, kernel).mT)
        spread = torch.linalg.eigvalsh(white)
        assert 0.5 <= spread[0] <= spread[-1] <= 1.5
        sigma = torch.linalg.eigvalsh(kernel)[0].sqrt()
        assert lipschitz_constant(net, problem)[0] * y.norm() / sigma**2 <= bound


def test_the_constants_of_the_width_are_those_of_its_proof():
    """The moments of one unit; the exponential moment is attained by a matrix of rank one."""
    assert 16 / C < 35
    assert 4 * 16 / 27 * 8 / 3 / C < 14
    rank_one = WEIGHTS @ np.exp(0.1 * NODES**2)  # the formula of the moment, where it converges
    assert rank_one == pytest.approx((1 - 0.2) ** -0.5, rel=1e-6)
    shares = torch.rand(1000, 4, generator=seeded(0), dtype=torch.float64)
    shares = shares / shares.sum(1, keepdim=True)
    assert ((1 - 0.75 * shares).prod(1) ** -0.5 <= 2).all()
    assert (1 - 0.75) ** -0.5 == 2


def bent(seed):
    """A smooth residual r: ℝ⁵ → ℝ³, as a function."""
    a, b = (torch.randn(6, n, generator=seeded(seed + n)).double() for n in (5, 3))
    return lambda theta: (torch.tanh(a @ theta) @ b + 0.3 * theta[:3] ** 2 - 1) / 2


def at_random(seed):
    """A residual, a start, and another state: place and velocity."""
    start, place, velocity = torch.randn(3, 5, generator=seeded(seed)).double()
    return bent(seed), start, start + 0.3 * place, velocity


def guide(residual, start):
    """J₀⁺ and the projection Π."""
    first = torch.func.jacrev(residual)(start)
    inverse = torch.linalg.pinv(first)
    return first, inverse, inverse @ first


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_the_change_of_the_guided_energy_is_the_stated_one(seed, beta):
    """The identities of both proofs, at a random state, by automatic differentiation."""
    residual, start, theta, velocity = at_random(seed)
    gamma, (first, inverse, projection) = 0.4, guide(residual, start)

    def energy(theta, velocity):
        r = residual(theta)
        phi = (r @ r + velocity @ velocity) / 2 + gamma * velocity @ inverse @ r
        return phi + beta * gamma * r @ r / 2

    r, jacobian = residual(theta), torch.func.jacrev(residual)(theta)
    hessian = torch.func.hessian(lambda t: residual(t).square().sum() / 2)(theta)
    force = -2 * gamma * velocity - beta * hessian @ velocity - jacobian.mT @ r
    _, change = torch.func.jvp(energy, (theta, velocity), (velocity, force))

    drift, rest = jacobian - first, hessian - jacobian.mT @ jacobian
    phi = energy(theta, velocity) - beta * gamma * r @ r / 2
    back, outside = inverse @ r, velocity - projection @ velocity
    expected = -2 * gamma * phi - gamma * outside @ outside
    expected += gamma * (velocity @ inverse @ drift @ velocity - r @ drift @ back)
    expected -= beta * (jacobian @ velocity).square().sum() + beta * velocity @ rest @ velocity
    expected -= beta * gamma * (back @ rest @ velocity + (jacobian @ velocity) @ drift @ back)
    torch.testing.assert_close(change, expected)


@pytest.mark.parametrize("seed", range(5))
def test_the_guided_energy_of_the_steps_obeys_its_identity(seed):
    residual, start, theta, velocity = at_random(seed)
    gamma, h, (first, inverse, projection) = 0.4, 0.3, guide(residual, start)
    a = 1 / (1 + 2 * gamma * h)
    jacobian, before = torch.func.jacrev(residual)(theta), residual(theta - h * velocity)
    now = residual(theta)
    moved = a * (velocity - h * jacobian.mT @ now)
    after = residual(theta + h * moved)

    def energy(w, r, r_before):
        return w @ w / (2 * a) + gamma * w @ inverse @ r_before + r @ r_before / 2

    ahead, behind = after - now - h * jacobian @ moved, before - now + h * jacobian @ velocity
    along = velocity @ projection @ velocity
    drift = velocity @ inverse @ (now - before) / h - along  # ⟨w, J₀⁺ (mean of J − J₀) w⟩
    expected = a * energy(velocity, now, before) - a * gamma * h * (velocity @ velocity - along)
    expected += (ahead - a * behind) @ now / 2
    expected += a * gamma * h * (drift - now @ (jacobian - first) @ inverse @ now)
    torch.testing.assert_close(energy(moved, after, now), expected)


def test_the_guided_energy_of_the_steps_bounds_what_it_should():
    """The largest values of four quadratic forms on Q = ¾b² − bb' + ½b'²; two more constants."""
    form = np.array([[0.75, -0.5], [-0.5, 0.5]])
    forms = [np.diag([1.0, 0]), np.diag([0, 1.0]), np.eye(2), np.ones((2, 2))]
    largest = [np.linalg.eigvals(np.linalg.solve(form, f)).real.max() for f in forms]
    assert largest[0] == pytest.approx(4)
    assert largest[1] == pytest.approx(6)
    assert 9 < largest[2] <= 10
    assert largest[3] == pytest.approx(18)
    assert 22 * 3**0.5 / 4 * 2 + 10 * 8 * 2**0.5 <= 140
    reach = 8 * 2**0.5 + 18**0.5 / 2**0.5 * 0.9
    assert reach <= 14.1
    assert 0.9 * (1 + 14.1 / 140) < 1


def test_a_condition_of_53_is_the_smallest_whole_number():
    def excess(chi):
        return 9.43 * chi + (9.43 * chi) ** 2 / 8 + 2.5 * 2**0.5 * chi

    assert 2**0.5 / 0.15 <= 9.43
    assert excess(1 / 53) < 0.25 < excess(1 / 52)


def fit_at(chi, width=400, along=None, seed=0):
    """A misfit of the given χ, its σ and |J₀|; the data are along the slowest mode, or random."""
    problem = LinearProblem(random_operator(4, 6, 4, seeded(seed)), noise_std=0.1)
    net = DeepPrior(6, width, zero_start=True, generator=seeded(seed))
    jacobian = data_jacobian(net, problem, net.weight.detach())
    modes, values, _ = torch.linalg.svd(jacobian, full_matrices=False)
    mixed = torch.randn(4, generator=seeded(seed), dtype=torch.float64)
    direction = modes[:, -1] if along == "slowest" else mixed / mixed.norm()
    size = chi * values[-1] ** 2 / lipschitz_constant(net, problem)[0]
    return DataMisfit(net, problem, size * direction), values[-1].item(), values[0].item()


def of_bounds(misfit, sigma, rate, size, **dampings):
    """The largest share of the bound of residual and speed, and the longest way, over |r(0)|/σ."""
    times, start = torch.linspace(0, 5, 201).double() / rate, misfit.net.weight.detach()
    path = inertial_flow(misfit.gradient, start, times, **dampings)
    first = misfit.y.norm()
    ends = misfit.residual(path.position).norm(dim=1), path.velocity.flatten(1).norm(dim=1)
    bound = size * torch.exp(-rate * times) * first
    way = (path.position - start).flatten(1).norm(dim=1).max()
    return (torch.maximum(*ends) / bound).max().item(), (way * sigma / first).item()


@pytest.mark.parametrize(("s", "zeta"), [(0.5, 0.5), (0.3, 0.7), (0.8, 0.2)])
@pytest.mark.parametrize("along", ["slowest", "random"])
def test_inertia_fits_at_the_guaranteed_rate_and_stays_close(s, zeta, along):
    """At equality of the condition on χ."""
    shape = (1 - s**2) ** 0.5
    misfit, sigma, _ = fit_at(zeta * (1 - zeta) * s * (1 - s) * shape, along=along)
    rate = (1 - zeta) * s * sigma
    share, way = of_bounds(misfit, sigma, rate, 1 / shape, damping=2 * s * sigma)
    assert share <= 1
    assert way <= 1 / ((1 - zeta) * s * shape)


def test_the_guaranteed_rate_and_size_of_inertia_are_nearly_attained():
    """For ζ → 0, by the slowest mode: a rate or a size one per cent better would be wrong."""
    s, zeta = 0.6, 0.002
    shape = (1 - s**2) ** 0.5
    misfit, sigma, _ = fit_at(zeta * (1 - zeta) * s * (1 - s) * shape, along="slowest")
    rate = (1 - zeta) * s * sigma
    share, _ = of_bounds(misfit, sigma, rate, 1 / shape, damping=2 * s * sigma)
    assert 0.99 < share <= 1
    better, _ = of_bounds(misfit, sigma, 1.01 * s * sigma, 1 / shape, damping=2 * s * sigma)
    assert better > 1


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("along", ["slowest", "random"])
def test_with_hessian_damping_inertia_fits_at_the_guaranteed_rate(beta, along):
    misfit, sigma, _ = fit_at(1 / 53, along=along)
    dampings = {"damping": sigma, "hessian_damping": beta / sigma}
    share, way = of_bounds(misfit, sigma, 0.15 * sigma, 2**0.5, **dampings)
    assert share <= 1
    assert way <= 9.43


@pytest.mark.parametrize("along", ["slowest", "random"])
@pytest.mark.parametrize("seed", range(3))
def test_the_steps_fit_at_the_guaranteed_rate_and_stay_close(along, seed):
    """At equality of the condition, with the largest step; the factor is √a, as if frozen."""
    misfit, sigma, largest = fit_at(1 / 140, along=along, seed=seed)
    net, h, first = misfit.net, 0.9 / largest, misfit.y.norm().item()
    ball, start = Inertia(net.parameters(), lr=h, damping=sigma), net.weight.detach().clone()
    path = iterates(net, misfit.problem, misfit.y, ball)
    sizes = []
    for n, one in enumerate(islice(path, 150)):
        assert one.residual <= 3**0.5 * (1 - sigma * h / 8) ** n * first
        assert (net.weight - start).norm() <= 8 * 2**0.5 * first / sigma
        sizes.append(one.residual / first * (1 + sigma * h) ** (n / 2))
    assert 0.3 < max(sizes[-30:]) < 3


@pytest.mark.parametrize("first", [1e-4, 0.5, 300.0])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_adaptive_step_costs_few_refusals_and_keeps_its_curvature(first, beta):
    """L = Σ μθ²/2 + cos θ has G = 1 + largest μ; the refusals are at most four off their bound."""
    spectrum = torch.tensor([0.1, 0.7, 3.0]).double()
    theta, steps, lipschitz = torch.nn.Parameter(torch.ones(3).double()), 400, 4.0
    options = {"damping": 0.3, "hessian_damping": beta, "curvature": first}
    ball = AdaptiveInertia([theta], **options)

    def closure():
        ball.zero_grad()
        loss = ((spectrum * theta**2) / 2 + torch.cos(theta)).sum()
        loss.backward()
        return loss

    for _ in range(steps):
        ball.step(closure)
        assert ball.param_groups[0]["curvature"] / 0.98 <= max(first, 2 * lipschitz)
    refusals = ball.evaluations - 1 - steps
    allowed = 1 + math.log2(lipschitz / first) + (steps - 1) * math.log2(1 / 0.98)
    assert 0 < refusals < allowed < refusals + 4
    assert math.log2(1 / 0.98) < 0.03
