"""Fits to one observation: the loss and its derivatives, the iterates, when they stop."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from invbayes import (
    DataMisfit,
    DeepPrior,
    LinearProblem,
    NotConverged,
    TrainingDiverged,
    fit_observation,
    gradient_flow,
    iterates,
)
from tests.conftest import random_operator
from tests.deep_prior.test_network import EVERY_KIND, decoder, seeded


@pytest.fixture
def problem(generator):
    return LinearProblem(random_operator(4, 6, 4, generator), noise_std=0.1)


@pytest.fixture
def y(problem, generator):
    return problem.observe(torch.ones(6).double(), generator=generator)


@EVERY_KIND
def test_the_gradient_of_the_misfit(options, problem, y):
    net = DeepPrior(6, 8, generator=seeded(0), **options)
    misfit = DataMisfit(net, problem, y)
    weights = torch.randn(3, *net.weight.shape, generator=seeded(1), dtype=torch.float64)
    losses = misfit(weights.requires_grad_())
    (expected,) = torch.autograd.grad(losses.sum(), weights)
    torch.testing.assert_close(misfit.gradient(weights.detach()), expected)
    one = net.output(weights[1])
    torch.testing.assert_close(losses[1], (problem.apply(one) - y).square().sum() / 2)
    torch.testing.assert_close(misfit.residual(weights[1]), problem.apply(one) - y)


def data_jacobian(net, problem, weight):
    """J = A ∂g at W, shape (m, k p)."""
    return problem.operator @ torch.autograd.functional.jacobian(net.output, weight).flatten(1)


def lipschitz_constant(net, problem):
    """ℓ, and the unit with the longest A D v."""
    decoded = net.output_weight if net.decoder is None else net.decoder @ net.output_weight
    longest = (problem.operator @ decoded).norm(dim=0).max(0)
    return 4 / (3 * 3**0.5) * longest.values, longest.indices


def test_gradient_flow_fits_at_the_guaranteed_rate_and_stays_close(problem):
    """At 99 % of the width condition, with the data along the mode that is slowest at the start."""
    net = DeepPrior(6, 300, zero_start=True, generator=seeded(0))
    start, (lipschitz, _) = net.weight.detach(), lipschitz_constant(net, problem)
    modes, values, _ = torch.linalg.svd(data_jacobian(net, problem, start), full_matrices=False)
    sigma, size = values[-1], 0.99 * values[-1] ** 2 / (4 * lipschitz)
    misfit = DataMisfit(net, problem, size * modes[:, -1])
    times = torch.linspace(0, 30, 16, dtype=torch.float64) / sigma**2
    path = gradient_flow(misfit.gradient, start, times).position
    bound = torch.exp(-(sigma**2) * times / 4) * size
    assert (misfit.residual(path).norm(dim=1) <= bound * (1 + 1e-12)).all()
    assert ((path - start).flatten(1).norm(dim=1) <= 2 / sigma * size).all()


@pytest.mark.parametrize("options", [{}, {"input_dim": 2, "decoder": decoder()}])
def test_the_derivative_of_a_deep_prior_has_the_stated_lipschitz_constant(options, problem):
    """Attained by one unit, where tanh bends most: at artanh(1/√3)."""
    net = DeepPrior(6, 5, generator=seeded(0), **options)
    lipschitz, unit = lipschitz_constant(net, problem)

    def ratio(one, other):
        change = data_jacobian(net, problem, one) - data_jacobian(net, problem, other)
        return torch.linalg.matrix_norm(change, 2) / (one - other).norm()

    pairs = torch.randn(50, 2, *net.weight.shape, generator=seeded(1), dtype=torch.float64)
    assert max(ratio(one, other) for one, other in pairs) <= lipschitz
    one, other = pairs[0, 0].clone(), pairs[0, 0].clone()
    one[unit], other[unit] = (net.input * (np.arctanh(3**-0.5) + s) for s in (1e-4, -1e-4))
    assert ratio(one, other) == pytest.approx(lipschitz.item(), rel=1e-6)


def test_only_the_product_with_the_input_matters(problem, y):
    """Gradient descent on a matrix W is gradient descent on the vector W u."""
    wide = DeepPrior(6, 30, input_dim=7, generator=seeded(0))
    narrow = DeepPrior(6, 30, generator=seeded(0))
    narrow.output_weight.copy_(wide.output_weight)
    sign = narrow.input.item()
    narrow.weight.data = (wide.weight.detach() @ wide.input)[:, None] * sign
    runs = [
        islice(iterates(net, problem, y, torch.optim.SGD(net.parameters(), lr=0.3)), 40)
        for net in (wide, narrow)
    ]
    for one, other in zip(*runs, strict=True):
        torch.testing.assert_close(one.reconstruction, other.reconstruction)


def test_iterates_follow_the_optimiser(problem, y):
    net, twin = (DeepPrior(6, 20, generator=seeded(0)) for _ in range(2))
    run = iterates(net, problem, y, torch.optim.SGD(net.parameters(), lr=0.3))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.3)
    for found in islice(run, 5):
        residual = problem.apply(twin()) - y
        torch.testing.assert_close(found.reconstruction, twin().detach())
        assert found.residual == pytest.approx(residual.norm().item())
        optimizer.zero_grad()
        (residual.square().sum() / 2).backward()
        optimizer.step()


def test_the_fit_stops_at_the_first_iterate_below_the_threshold(problem, y):
    def path(**options):
        net = DeepPrior(6, 50, generator=seeded(0))
        descent = torch.optim.SGD(net.parameters(), lr=0.3)
        return net, fit_observation(net, problem, y, descent, **options)

    for options, goal in ({}, 0.1 * 4**0.5), ({"until": 1e-6}, 1e-6):
        net, found = path(**options)
        assert found[-1].residual <= goal < found[-2].residual
        torch.testing.assert_close(net().detach(), found[-1].reconstruction)
    with pytest.raises(NotConverged, match="after 3 steps") as raised:
        path(until=1e-6, max_steps=3)
    assert raised.value.steps == 3
    fourth = path()[1][3]
    assert raised.value.bound == pytest.approx(fourth.residual)
    torch.testing.assert_close(raised.value.point, fourth.reconstruction)


def test_a_start_below_the_threshold_takes_no_step(problem, y):
    net = DeepPrior(6, 50, generator=seeded(0))
    before = net.weight.detach().clone()
    descent = torch.optim.SGD(net.parameters(), lr=0.3)
    assert len(fit_observation(net, problem, y, descent, until=1e3, max_steps=1)) == 1
    assert torch.equal(net.weight, before)


def test_a_fit_that_diverges_raises(problem, y):
    net = DeepPrior(6, 50, generator=seeded(0))
    with torch.no_grad():
        net.weight[0] = float("inf")
        net.output_weight[0, 0] = float("inf")
    descent = torch.optim.SGD(net.parameters(), lr=0.3)
    with pytest.raises(TrainingDiverged) as raised:
        fit_observation(net, problem, y, descent)
    assert raised.value.step == 0


def test_single_precision_stays_single(problem, y):
    single = LinearProblem(problem.operator.float(), 0.1)
    net = DeepPrior(6, 20, decoder=decoder(), dtype=torch.float32, generator=seeded(0))
    descent = torch.optim.SGD(net.parameters(), lr=0.1)
    last = list(islice(iterates(net, single, y.float(), descent), 3))[-1]
    assert last.reconstruction.dtype == net.kernel().dtype == torch.float32


def test_the_gradient_of_the_misfit_is_differentiable(problem, y):
    net = DeepPrior(6, 8, generator=seeded(0))
    misfit, weight = DataMisfit(net, problem, y), net.weight.detach()
    direction = torch.randn(8, 1, generator=seeded(1), dtype=torch.float64)
    _, expected = torch.autograd.functional.hvp(misfit, weight, direction)
    _, got = torch.autograd.functional.jvp(misfit.gradient, weight, direction)
    torch.testing.assert_close(got, expected)


def test_a_residual_at_the_threshold_is_enough(problem, y):
    net = DeepPrior(6, 50, generator=seeded(0))
    descent = torch.optim.SGD(net.parameters(), lr=0.3)
    first = next(iterates(net, problem, y, descent))
    assert len(fit_observation(net, problem, y, descent, until=first.residual)) == 1


def test_the_optimiser_is_given_the_loss(problem, y):
    net, losses = DeepPrior(6, 50, generator=seeded(0)), []

    class Recorder(torch.optim.SGD):
        def step(self, closure):
            losses.append(super().step(closure).item())

    path = list(islice(iterates(net, problem, y, Recorder(net.parameters(), lr=0.3)), 4))
    assert losses == pytest.approx([found.residual**2 / 2 for found in path[:3]])


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"y": torch.ones(5).double()}, "y"),
        ({"y": torch.ones(1, 4).double()}, "y"),
        ({"y": torch.ones(4)}, "y"),
        ({"y": torch.full((4,), torch.nan).double()}, "y"),
        ({"net": DeepPrior(5, 8, generator=seeded(0))}, "net"),
        ({"net": DeepPrior(6, 8, dtype=torch.float32, generator=seeded(0))}, "net"),
        ({"until": 0.0}, "until"),
        ({"max_steps": 0}, "max_steps"),
        ({"max_steps": 10**30}, "max_steps"),
        ({"progress": "no"}, "progress"),
        ({"net": None}, "net"),
        ({"problem": None}, "problem"),
        ({"descent": None}, "optimizer"),
    ],
)
def test_bad_observations_name_the_argument(change, name, problem, y):
    net = DeepPrior(6, 8, generator=seeded(0))
    descent = torch.optim.SGD(net.parameters(), lr=0.1)
    arguments = {"net": net, "problem": problem, "y": y, "descent": descent, **change}
    required = [arguments.pop(key) for key in ("net", "problem", "y", "descent")]
    with pytest.raises(ValueError, match=f"^{name} must"):
        fit_observation(*required, **arguments)


def test_as_many_steps_as_one_can_count_may_be_allowed(problem, y):
    net = DeepPrior(6, 50, generator=seeded(0))
    descent = torch.optim.SGD(net.parameters(), lr=0.3)
    path = fit_observation(net, problem, y, descent, max_steps=2**63 - 1)
    assert len(fit_observation(net, problem, y, descent)) == 1 < len(path)
