"""The divergence that forgives the fold: its identity, and its weight."""

from dataclasses import replace
from types import SimpleNamespace

import torch
from scipy.linalg import eigh

import invbayes as ib
from invbayes.examples import two_blobs
from tests.benchmarks.error_bars import power
from tests.benchmarks.forgiving import FLOOR, ForgivingDivergence
from tests.conftest import assert_mean_close


def forgiving(generator: torch.Generator) -> tuple[ib.GaussianMixture, ForgivingDivergence]:
    """A weight that goes from a tenth to one, from a network that nobody trained."""
    prior = two_blobs()
    problem = ib.LinearProblem(torch.diag(torch.tensor([1.0, 0.8]).double()), noise_std=0.5)
    block = ib.Ridge((2,), filters=4, share=0.99, sharpness=2.0, generator=generator)
    first = ib.InvertibleResNet(block, lipschitz=0.98, scale=0.4).double().requires_grad_(False)
    root = power(ib.posterior_metric(problem, prior.covariance), 0.5)
    return prior, ForgivingDivergence(problem, first, root)


def test_losses_differ_as_the_weighted_distances_to_the_ideal_map(generator):
    """By half the difference of the weighted mean squares, for two maps."""
    prior, objective = forgiving(generator)
    other = ib.InvertibleResNet.dense(2, (8,), scale=2.0, generator=generator).double()
    x = prior.sample(20_000, generator=generator)
    weight = objective.weight(x)[0]
    assert FLOOR <= weight.min() < 0.2
    assert 0.9 < weight.max() <= 1
    target = ib.ideal_forward_map(prior, objective.problem, x)
    parts = [*zip(x.split(100), weight.split(100), target.split(100), strict=True)]

    def above(net, points, shares, aims):
        """The loss of a batch, less half its weighted mean square."""
        squares = (net(points) - aims).square().sum(1)
        return objective(net, points, points) - (shares * squares).mean() / 2

    with torch.no_grad():
        one, two = (torch.stack([above(n, *p) for p in parts]) for n in (objective.first, other))
    assert_mean_close(one - two, torch.zeros(()))


def test_the_weight_falls_where_a_variance_is_five_to_twenty_times_that_of_a_gaussian(generator):
    """The largest over all directions, from the symmetric part of the Jacobian."""
    prior, objective = forgiving(generator)
    jacobians = torch.eye(2).double() * torch.tensor([0.3, 3.0])
    jacobians = torch.linspace(0.05, 1.5, 200).double()[:, None, None] * jacobians
    jacobians[:, 0, 1] += 0.8 * jacobians[:, 0, 0]
    first = SimpleNamespace(with_jacobian=lambda x: (x, jacobians + 0 * x.sum()))
    found = replace(objective, first=first).weight(torch.zeros(200, 2).double())[0]
    gaussian = torch.linalg.inv(ib.posterior_metric(objective.problem, prior.covariance))
    ratio = torch.tensor(
        [
            1 / eigh((each + each.T).numpy() / 2, gaussian.numpy(), eigvals_only=True)[0]
            for each in jacobians
        ]
    )
    assert ratio.min() < 4
    assert ratio.max() > 30
    torch.testing.assert_close(found == FLOOR, ratio >= 20)
    torch.testing.assert_close(found == 1, ratio <= 5)
    halfway = (found - (1 + FLOOR) / 2).abs().argmin()
    assert 7.6 < ratio[halfway] < 8.4


def test_the_slope_of_the_weight_agrees_with_differences(generator):
    prior, objective = forgiving(generator)
    x = prior.sample(200, generator=generator)
    steps = 1e-6 * torch.eye(2).double()
    apart = [objective.weight(x + h)[0] - objective.weight(x - h)[0] for h in steps]
    slope = objective.weight(x)[1]
    torch.testing.assert_close(slope, torch.stack(apart, 1) / 2e-6, rtol=1e-5, atol=1e-6)
    assert slope.abs().max() > 0.1
