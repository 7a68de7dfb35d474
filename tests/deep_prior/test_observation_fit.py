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


def colour(size):
    factor = torch.randn(size, size, generator=seeded(7), dtype=torch.float64)
    return factor @ factor.mT / size + 0.1 * torch.eye(size).double()


def by_numpy(function):
    """A function that automatic differentiation cannot follow."""
    return lambda x: torch.from_numpy(function(x.detach().numpy()))


MATRIX = torch.randn(4, 6, generator=seeded(6), dtype=torch.float64)
LAST = 2 * torch.randn(4, 3, generator=seeded(8), dtype=torch.float64)
DOUBLE = {"dtype": torch.float64}
EVERY_PROBLEM = pytest.mark.parametrize(
    "problem",
    [
        LinearProblem(MATRIX.to_sparse(), 0.1),
        LinearProblem(MATRIX, noise_covariance=torch.arange(1.0, 5.0).double()),
        LinearProblem(MATRIX.to_sparse(), noise_covariance=colour(4)),
        LinearProblem(lambda x: x @ LAST.mT, 0.1, shape=(2, 3), **DOUBLE),
        LinearProblem(lambda x: x @ LAST.mT, noise_covariance=colour(8), shape=(2, 3), **DOUBLE),
        LinearProblem(lambda x: x.sum((1, 2)), 0.1, shape=(2, 3), **DOUBLE),
        LinearProblem(
            by_numpy(lambda x: x * 2), 0.1, shape=(6,), adjoint=by_numpy(lambda y: 2 * y), **DOUBLE
        ),
    ],
    ids=["sparse", "diagonal", "covariance", "function", "both", "number", "numpy"],
)


@EVERY_PROBLEM
def test_every_problem_is_fitted_as_its_whitened_matrix(problem):
    """r = R⁻¹(A g − y), flattened, for a batch; the gradient; the iterates; when to stop."""
    y = problem.observe(torch.ones(problem.shape).double(), generator=seeded(3))
    dense = LinearProblem(problem.white_matrix, noise_std=problem.noise_std)
    nets = [DeepPrior(6, 50, generator=seeded(0)) for _ in range(2)]
    pairs = [(nets[0], problem, y), (nets[1], dense, problem.whiten(y).flatten())]
    misfit, expected = (DataMisfit(*pair) for pair in pairs)
    weights = torch.randn(2, 3, 50, 1, generator=seeded(1), dtype=torch.float64)
    residual = misfit.residual(weights)
    assert residual.shape == (2, 3, *problem.data_shape)
    torch.testing.assert_close(residual.reshape(2, 3, -1), expected.residual(weights))
    torch.testing.assert_close(misfit(weights), expected(weights))
    torch.testing.assert_close(misfit.with_gradient(weights), expected.with_gradient(weights))
    largest = torch.linalg.matrix_norm(dense.operator, 2).item() ** 2
    one, other = (
        fit_observation(*pair, torch.optim.SGD(pair[0].parameters(), lr=0.5 / largest))
        for pair in pairs
    )
    assert len(one) == len(other)
    assert one[-1].residual <= problem.noise_std * problem.data_dim**0.5 < one[-2].residual
    assert one[-1].reconstruction.shape == problem.shape
    torch.testing.assert_close(one[-1].reconstruction.flatten(), other[-1].reconstruction)
    assert one[0].residual == pytest.approx(other[0].residual)


@EVERY_KIND
def test_the_misfit_is_mapped_and_compiled(options, problem, y):
    net = DeepPrior(6, 8, generator=seeded(0), **options)
    misfit = DataMisfit(net, problem, y)
    weights = torch.randn(3, *net.weight.shape, generator=seeded(1), dtype=torch.float64)
    expected = misfit.with_gradient(weights)
    torch.testing.assert_close(torch.func.vmap(misfit.with_gradient)(weights), expected)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(misfit))(weights), expected[1])
    compiled = torch.compile(misfit.with_gradient, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(weights), expected)


def test_nan_is_passed_on_by_the_misfit_and_ends_a_fit(problem, y):
    net = DeepPrior(6, 8, generator=seeded(0))
    misfit, broken = DataMisfit(net, problem, y), torch.full((8, 1), torch.nan).double()
    for value in (misfit(broken), misfit.residual(broken), misfit.gradient(broken)):
        assert value.isnan().all()
    run = iterates(net, problem, y, torch.optim.SGD(net.parameters(), lr=0.1))
    for _ in range(3):
        next(run)
    net.weight.data = broken
    with pytest.raises(TrainingDiverged, match="nan at step 3") as raised:
        next(run)
    assert raised.value.step == 3
    for wrong in (broken.float(), broken[:-1], None):
        with pytest.raises(ValueError, match=r"^weight must"):
            misfit(wrong)


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


def test_an_image_is_one_observation():
    problem = LinearProblem(lambda x: 2 * x, 0.1, shape=(2, 3), dtype=torch.float64)
    net = DeepPrior(6, 8, generator=seeded(0))
    DataMisfit(net, problem, torch.ones(2, 3).double())
    for y in (torch.ones(6).double(), torch.ones(1, 2, 3).double()):
        with pytest.raises(ValueError, match=r"^y must"):
            DataMisfit(net, problem, y)
    with pytest.raises(ValueError, match=r"^problem must"):
        DataMisfit(net, None, torch.ones(6).double())


def test_as_many_steps_as_one_can_count_may_be_allowed(problem, y):
    net = DeepPrior(6, 50, generator=seeded(0))
    descent = torch.optim.SGD(net.parameters(), lr=0.3)
    path = fit_observation(net, problem, y, descent, max_steps=2**63 - 1)
    assert len(fit_observation(net, problem, y, descent)) == 1 < len(path)
