"""The misfit of every kind of problem; mapped, compiled, and with NaN."""

from __future__ import annotations

import pytest
import torch

from invbayes import (
    DataMisfit,
    DeepPrior,
    LinearProblem,
    TrainingDiverged,
    fit_observation,
    iterates,
)
from tests.deep_prior.test_network import EVERY_KIND, seeded


def colour(size):
    factor = torch.randn(size, size, generator=seeded(7), dtype=torch.float64)
    return factor @ factor.mT / size + 0.1 * torch.eye(size).double()


def by_numpy(function):
    """A function that automatic differentiation cannot follow."""
    return lambda x: torch.from_numpy(function(x.detach().numpy()))


MATRIX = torch.randn(4, 6, generator=seeded(6), dtype=torch.float64)
PROBLEM, Y = LinearProblem(MATRIX, 0.1), torch.ones(4).double()
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


@EVERY_PROBLEM
def test_the_kernel_of_the_data_is_the_derivative_times_its_transpose(problem):
    """By automatic differentiation; and it is how gradient flow moves the residual."""
    net = DeepPrior(6, 8, input_dim=2, generator=seeded(0))
    misfit = DataMisfit(net, problem, torch.ones(problem.data_shape).double())
    weight, root = net.weight.detach(), problem.white_matrix
    slope = root @ torch.autograd.functional.jacobian(net.output, weight).flatten(1)
    torch.testing.assert_close(misfit.kernel(), slope @ slope.mT)
    residual = misfit.residual(weight).flatten()
    moved = slope @ -misfit.gradient(weight).flatten()
    torch.testing.assert_close(moved, -misfit.kernel() @ residual)


@EVERY_KIND
def test_the_misfit_is_mapped_and_compiled(options):
    net = DeepPrior(6, 8, generator=seeded(0), **options)
    misfit = DataMisfit(net, PROBLEM, Y)
    weights = torch.randn(3, *net.weight.shape, generator=seeded(1), dtype=torch.float64)
    expected = misfit.with_gradient(weights)
    torch.testing.assert_close(torch.func.vmap(misfit.with_gradient)(weights), expected)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(misfit))(weights), expected[1])
    compiled = torch.compile(misfit.with_gradient, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(weights), expected)


def test_nan_is_passed_on_by_the_misfit_and_ends_a_fit():
    net = DeepPrior(6, 8, generator=seeded(0))
    misfit, broken = DataMisfit(net, PROBLEM, Y), torch.full((8, 1), torch.nan).double()
    for value in (misfit(broken), misfit.residual(broken), misfit.gradient(broken)):
        assert value.isnan().all()
    run = iterates(net, PROBLEM, Y, torch.optim.SGD(net.parameters(), lr=0.1))
    for _ in range(3):
        next(run)
    net.weight.data = broken
    with pytest.raises(TrainingDiverged, match="nan at step 3") as raised:
        next(run)
    assert raised.value.step == 3
    for wrong in (broken.float(), broken[:-1], None):
        with pytest.raises(ValueError, match=r"^weight must"):
            misfit(wrong)


def test_an_image_is_one_observation():
    problem = LinearProblem(lambda x: 2 * x, 0.1, shape=(2, 3), dtype=torch.float64)
    net = DeepPrior(6, 8, generator=seeded(0))
    DataMisfit(net, problem, torch.ones(2, 3).double())
    for y in (torch.ones(6).double(), torch.ones(1, 2, 3).double()):
        with pytest.raises(ValueError, match=r"^y must"):
            DataMisfit(net, problem, y)
    with pytest.raises(ValueError, match=r"^problem must"):
        DataMisfit(net, None, torch.ones(6).double())
