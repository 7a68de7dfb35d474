"""The density of a network's output, by quadrature and by finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_bvp
from torch.distributions import Normal

from invbayes import (
    GaussianMixture,
    InvertibleResNet,
    LinearProblem,
    data_density,
    map_estimate,
    posterior_mean,
    pushforward_log_prob,
    pushforward_score,
)
from invbayes.examples import two_blobs, two_peaks
from invbayes.figures import lattice


@pytest.fixture
def net(generator):
    return InvertibleResNet.dense(2, (8, 8), 2, 0.5, scale=1.4, generator=generator).double()


def test_the_density_integrates_to_one(net):
    """And its mean is that of φ(x): both by the trapezium rule over z."""
    prior = two_blobs()
    net.requires_grad_(False)
    z = lattice((-16, 16, -16, 16), rows=321, columns=321).reshape(-1, 2)
    x = net.inverse(z, 1e-10)
    mass = pushforward_log_prob(net, prior, x).exp() * 0.1**2
    assert mass.sum().item() == pytest.approx(1, abs=1e-5)
    at_x = prior.log_prob(z).exp() * 0.1**2  # the same lattice, now as points x
    torch.testing.assert_close(mass @ z, at_x @ net(z), rtol=0, atol=1e-5)


def test_on_the_line_the_density_is_the_slope_of_the_distribution_function(generator):
    """φ rises, so P(φ(x) ≤ z) = P(x ≤ φ⁻¹(z)): density and entropy without any derivative of φ."""
    prior = two_peaks()
    net = InvertibleResNet.dense(1, (8, 8), 2, 0.5, scale=1.4, generator=generator).double()
    net.requires_grad_(False)
    z = torch.linspace(-12, 12, 16_001, dtype=torch.float64)[:, None]  # edges and centres of cells
    x = net.inverse(z, 1e-12)
    below = Normal(prior.means[:, 0], 0.5).cdf(x[::2]).mean(1)
    density = below.diff() / 0.003
    expected = pushforward_log_prob(net, prior, x[1::2]).exp()
    torch.testing.assert_close(density, expected, rtol=0, atol=1e-5)
    entropy = torch.special.entr(density).sum().item() * 0.003
    at_x = prior.log_prob(z).exp()  # the same points, now as x
    before = torch.special.entr(at_x).sum().item() * 0.0015
    gain = (at_x @ net.log_abs_det(z)).item() * 0.0015
    assert gain == pytest.approx(entropy - before, abs=1e-5)


def test_the_mean_log_determinant_is_the_gain_of_entropy(net):
    """By the trapezium rule, over x for the prior and over z for the density of z."""
    prior = two_blobs()
    net.requires_grad_(False)
    points, cell = lattice((-16, 16, -16, 16), rows=161, columns=161).reshape(-1, 2), 0.2**2
    density = prior.log_prob(points).exp()
    pushed = pushforward_log_prob(net, prior, net.inverse(points, 1e-10)).exp()
    before, after = (torch.special.entr(p).sum().item() * cell for p in (density, pushed))
    gain = (density @ net.log_abs_det(points)).item() * cell
    assert gain == pytest.approx(after - before, abs=1e-6)
    assert gain > 0.5


def log_det_solution(prior, square, x):
    """φ and φ' with φ'' = φ'² (φ − x) / δ² + φ' (log p)': the log-determinant equation, A = I."""
    grid = np.linspace(-4, 4, 401)

    def score(x):
        return prior.score(torch.from_numpy(x)[:, None])[:, 0].numpy()

    first = grid - square * score(grid)
    found = solve_bvp(
        lambda x, y: [y[1], y[1] ** 2 * (y[0] - x) / square + y[1] * score(x)],
        lambda left, right: [left[0] - first[0], right[0] - first[-1]],
        grid,
        [first, np.gradient(first, grid)],
        tol=1e-9,
        max_nodes=50_000,
    )
    return torch.from_numpy(found.sol(x)).unbind()


def test_the_log_determinant_solution_is_a_posterior_mean_up_to_order_four():
    """And so is MAP; the two densities have their expansions; with A = I on the line."""
    prior, x = two_peaks(width=0.7), np.linspace(-1.5, 1.5, 31)
    for noise_std in (0.1, 0.03):
        square, problem = noise_std**2, LinearProblem(torch.eye(1).double(), noise_std)
        value, slope = log_det_solution(prior, square, x)
        z = value[:, None].requires_grad_()
        log_prob, score, hessian, _ = prior.expand(z)
        bend = hessian[:, 0, 0] + score[:, 0] ** 2  # p'' / p
        (leading,) = torch.autograd.grad(bend.sum(), z, retain_graph=True)

        density, points = log_prob.exp(), torch.from_numpy(x)[:, None]
        blurred = data_density(prior, problem).log_prob(z).exp()
        pushed = prior.log_prob(points).exp() / slope
        assert (blurred - density * (1 + square / 2 * bend)).abs().max() < 0.6 * square**2
        assert (pushed - density * (1 + square * bend)).abs().max() < 6 * square**2
        difference = points - posterior_mean(prior, problem, z)
        assert (difference - square**2 / 2 * leading).abs().max() < 75 * square**3
        assert leading.abs().max() > 5

        (of_map,) = torch.autograd.grad(-hessian.sum(), z)  # −∇Δ log p
        data = z.detach()
        difference = map_estimate(prior, problem, data) - posterior_mean(prior, problem, data)
        assert (difference - square**2 / 2 * of_map).abs().max() < 75 * square**3
        assert of_map.abs().max() > 5


def test_the_score_is_the_gradient_of_the_log_density(net, generator):
    prior = two_blobs()
    x = prior.sample(10, generator=generator)
    z = net(x).detach()
    step = 1e-5

    def log_q(points):
        with torch.no_grad():
            return pushforward_log_prob(net, prior, net.inverse(points, 1e-12))

    differences = [(log_q(z + v) - log_q(z - v)) / (2 * step) for v in step * torch.eye(2).double()]
    found = pushforward_score(net, prior, x)
    torch.testing.assert_close(found, torch.stack(differences, 1), rtol=1e-6, atol=1e-6)
    assert not found.requires_grad
    with torch.no_grad():
        assert torch.equal(pushforward_score(net, prior, x), found)


def test_bad_input_is_named(net):
    prior = two_blobs()
    batch = GaussianMixture(
        prior.weights.expand(3, 2), prior.means.expand(3, 2, 2), prior.covariances
    )
    with pytest.raises(ValueError, match="prior must be a single mixture, got a batch"):
        pushforward_log_prob(net, batch, torch.zeros(3, 2).double())
    with pytest.raises(ValueError, match=r"x must have shape \(\*, 2\), got \(5, 3\)"):
        pushforward_score(net, two_blobs(), torch.zeros(5, 3).double())
    with pytest.raises(ValueError, match=r"x must have dtype torch\.float64"):
        pushforward_log_prob(net, two_blobs(), torch.zeros(5, 2))
