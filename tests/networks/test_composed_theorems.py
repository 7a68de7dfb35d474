"""Statements of chapter 9 beyond the package's functions, on random networks."""

import pytest
import torch
from torch import Tensor

from invbayes import (
    InvertibleResNet,
    LearnedPosterior,
    LinearProblem,
    LipschitzDense,
    concavity_defect,
    proximal,
)
from invbayes.examples import two_blobs

DOUBLE = torch.float64
SKEWED = torch.tensor([[1.2, 0.3], [-0.2, 0.9]], dtype=DOUBLE)


def random_network(seed: int, **options: float) -> InvertibleResNet:
    block = LipschitzDense(2, (16, 16), generator=torch.Generator().manual_seed(seed)).double()
    for layer in block.activations:
        torch.nn.init.constant_(layer.log_sharpness, 1.0 + 0.3 * seed)
    return InvertibleResNet(block, **options).requires_grad_(False)


def points(count: int, seed: int) -> Tensor:
    return torch.randn(count, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def certified(seed: int) -> LearnedPosterior:
    """A random network, a problem for which μ > 0."""
    net = random_network(seed, lipschitz=0.9, scale=0.8 + 0.1 * seed)
    problem = LinearProblem(SKEWED, noise_std=0.2)
    learned = LearnedPosterior(net, problem, trained_at=0.25)
    assert learned.monotonicity > 0.05
    return learned


@pytest.mark.parametrize("noise_std", [0.1, 0.7])
def test_the_excess_of_the_composed_map_is_the_squared_ratio_times_that_of_the_network(noise_std):
    """For linear maps M and a Gaussian, the loss is ½ tr((M − N) Σ (M − N)ᵀ) − δ² tr M."""
    covariance = torch.tensor([[0.6, 0.2], [0.2, 0.3]], dtype=DOUBLE)
    identity, normal, level = torch.eye(2, dtype=DOUBLE), SKEWED.mT @ SKEWED, 0.4

    def loss(matrix: Tensor, data: Tensor, noise: float) -> Tensor:
        miss = matrix - data
        return (miss @ covariance @ miss.mT).trace() / 2 - noise**2 * matrix.trace()

    def excess(matrix: Tensor, data: Tensor, noise: float) -> Tensor:
        ideal = data + noise**2 * torch.linalg.inv(covariance)
        return loss(matrix, data, noise) - loss(ideal, data, noise)

    ratio = noise_std**2 / level**2
    trained = identity + level**2 * torch.linalg.inv(covariance) + 0.1 * SKEWED
    composed = normal + ratio * (trained - identity)
    own = excess(trained, identity, level)
    assert own > 1e-3
    assert torch.allclose(excess(composed, normal, noise_std), ratio**2 * own)


@pytest.mark.parametrize("seed", range(4))
def test_the_bars_of_the_composed_map_err_by_the_networks_curvature_between_both_bars(seed):
    net, prior, level = random_network(seed, lipschitz=0.9, scale=1.1), two_blobs(), 0.5
    problem, x = LinearProblem(SKEWED, noise_std=0.3), points(200, seed)
    found = LearnedPosterior(net, problem, trained_at=level).with_jacobian(x)[1]
    bars = 0.3**2 * torch.linalg.inv(found)
    exact = torch.linalg.inv(SKEWED.mT @ SKEWED / 0.3**2 - prior.hessian(x))
    wanted = torch.eye(2, dtype=DOUBLE) - level**2 * prior.hessian(x)
    wrong = (net.jacobian(x) - wanted) / level**2
    torch.testing.assert_close(bars - exact, -bars @ wrong @ exact)
    size, error, curvature = (torch.linalg.matrix_norm(m, 2) for m in (exact, bars - exact, wrong))
    small = size * curvature
    chosen = small < 1
    assert chosen.sum() > 50
    assert (error <= size * small / (1 - small))[chosen].all()


@pytest.mark.parametrize("seed", range(4))
def test_the_sharpness_bounds_how_fast_the_jacobian_turns_and_certifies_a_solution(seed):
    net = random_network(seed, lipschitz=0.9, scale=1.1)
    learned = LearnedPosterior(net, LinearProblem(SKEWED, noise_std=0.2), trained_at=0.25)
    sharpest = sum(a.log_sharpness.exp().max().item() for a in net.blocks[0].activations)
    bend = learned.ratio * net.scale.item() * net.lipschitz_bound() * sharpest
    x, step = points(500, seed), 0.01 * points(500, seed + 9)
    turn = learned.with_jacobian(x + step)[1] - learned.with_jacobian(x)[1]
    assert (torch.linalg.matrix_norm(turn, 2) <= bend * step.norm(dim=1)).all()
    z = learned.forward_map(x)
    near = x + 0.02 * step
    residual = (learned.forward_map(near) - z).norm(dim=1)
    beta = 1 / torch.linalg.svdvals(learned.with_jacobian(near)[1])[:, -1]
    holds = beta**2 * bend * residual < 0.5
    assert holds.double().mean() > 0.9
    assert ((near - x).norm(dim=1) <= 2 * beta * residual)[holds].all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.2, 0.7, 0.99])
def test_forward_backward_contracts_by_its_factor(seed, share):
    learned = certified(seed)
    kappa, t = concavity_defect(learned.net), learned.ratio
    low, high = (torch.linalg.eigvalsh(learned.normal_operator) / t).tolist()
    gamma = share * 2 / (high + kappa)
    factor = max(1 - gamma * low, gamma * high - 1) / (1 - gamma * kappa)
    z = points(1, 5)

    def step(x: Tensor) -> Tensor:
        slope = (x @ learned.normal_operator - z) / t
        return proximal(learned.net, x - gamma * slope, gamma, tol=1e-10)

    x, other = points(300, seed), points(300, seed + 50)
    ratio = (step(x) - step(other)).norm(dim=1) / (x - other).norm(dim=1)
    assert factor < 1
    assert ratio.max() <= factor + 1e-8
    solution = learned.inverse(z, 1e-10)
    assert torch.allclose(step(solution), solution, atol=1e-8)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("gamma", [0.05, 0.5, 2.0, 20.0])
def test_shifted_douglas_rachford_contracts_by_its_factor_for_every_step(seed, gamma):
    learned = certified(seed)
    kappa, t = concavity_defect(learned.net), learned.ratio
    data = learned.normal_operator / t - kappa * torch.eye(2, dtype=DOUBLE)
    slopes = gamma * torch.linalg.eigvalsh(data)
    factor = (1 + ((1 - slopes) / (1 + slopes)).abs().max().item()) / 2
    inverse, stretch = (
        torch.linalg.inv(torch.eye(2, dtype=DOUBLE) + gamma * data),
        1 + gamma * kappa,
    )
    z = points(1, 5)

    def resolved(u: Tensor) -> Tensor:
        return (u + gamma * z / t) @ inverse

    def step(u: Tensor) -> Tensor:
        aim = (2 * resolved(u) - u) / stretch
        return u + proximal(learned.net, aim, gamma / stretch, tol=1e-10) - resolved(u)

    u, other = points(300, seed), points(300, seed + 50)
    ratio = (step(u) - step(other)).norm(dim=1) / (u - other).norm(dim=1)
    assert factor < 1
    assert ratio.max() <= factor + 1e-8
    solution = learned.inverse(z, 1e-11)
    at_rest = solution + gamma * (solution @ data - z / t)  # u with J(u) = the solution
    assert torch.allclose(resolved(at_rest), solution, atol=1e-8)
    assert torch.allclose(step(at_rest), at_rest, atol=1e-6)


def test_every_stationary_point_of_the_true_posterior_is_within_the_bound():
    """Two networks: one plays the truth, the other is trained to it with an error e."""
    learned, z = certified(1), points(20, 3)
    truth = LearnedPosterior(
        random_network(2, lipschitz=0.9, scale=1.0), learned.problem, trained_at=0.25
    )
    stationary = truth.inverse(z, 1e-10)
    error = (learned.net(stationary) - truth.net(stationary)).norm(dim=1)
    found = learned.inverse(z, 1e-10)
    bound = learned.ratio * error / learned.monotonicity
    away = (found - stationary).norm(dim=1)
    assert (away <= bound).all()
    assert away.min() > 1e-3
