"""Operators as functions and as sparse matrices, against their dense matrices."""

from __future__ import annotations

import pickle

import pytest
import torch
from scipy import sparse
from torch.nn.functional import avg_pool2d, conv2d, interpolate

from invbayes import LinearProblem, ideal_forward_map, linear_estimate, posterior
from tests.conftest import random_mixture, random_operator

SHAPE = (1, 6, 6)
KERNEL = torch.tensor([[[[1.0, 2.0, 0.5], [0.0, -1.0, 3.0], [0.25, 0.0, 1.0]]]])


def blur(x):
    """A convolution, then means over squares: (n, 1, 6, 6) to (n, 1, 2, 2)."""
    return avg_pool2d(conv2d(x, KERNEL.to(x)), 2)


def pooled(x):
    return avg_pool2d(x, 3)


def spread(y):
    """The adjoint of the means over 3 × 3 squares."""
    return interpolate(y, scale_factor=3) / 9


@pytest.fixture(params=["by differentiation", "given", "to a number", "from a number"])
def problem(request):
    function, shape, adjoint = {
        "by differentiation": (blur, SHAPE, None),
        "given": (pooled, SHAPE, spread),
        "to a number": (lambda x: x.sum((1, 2)) / 2, (3, 2), None),
        "from a number": (lambda x: torch.stack([x, -2 * x], 1), (), None),
    }[request.param]
    return LinearProblem(function, 0.3, shape=shape, adjoint=adjoint, dtype=torch.float64)


def by_matrix(matrix, points, shape, image_shape):
    """The points flattened, mapped by the matrix, and shaped again."""
    lead = points.shape[: points.ndim - len(shape)]
    flat = points.reshape(*lead, shape.numel()) @ matrix.mT
    return flat.reshape((*lead, *image_shape))


@pytest.mark.parametrize("lead", [(), (0,), (1,), (5,), (2, 3)])
def test_a_function_is_its_matrix_on_points_of_any_leading_axes(problem, lead, generator):
    x = torch.randn((*lead, *problem.shape), generator=generator, dtype=torch.float64)
    y = torch.randn((*lead, *problem.data_shape), generator=generator, dtype=torch.float64)
    matrix, shape, data_shape = problem.matrix, problem.shape, problem.data_shape
    assert matrix.shape == (problem.data_dim, problem.dim)
    for found, expected in [
        (problem.apply(x), by_matrix(matrix, x, shape, data_shape)),
        (problem.adjoint(y), by_matrix(matrix.mT, y, data_shape, shape)),
        (problem.normal_data(y), by_matrix(matrix.mT, y, data_shape, shape)),
        (problem.mean_normal_data(x), by_matrix(problem.normal_operator, x, shape, shape)),
    ]:
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(problem.normal_operator, matrix.mT @ matrix)
    assert problem.observe(x, generator=generator).shape == y.shape


def test_a_function_has_the_posterior_of_its_matrix(problem, generator):
    dense = LinearProblem(problem.matrix, 0.3)
    prior = random_mixture(problem.dim, 2, generator)
    y = torch.randn(4, *problem.data_shape, generator=generator, dtype=torch.float64)
    found, expected = posterior(prior, problem, y), posterior(prior, dense, y.reshape(4, -1))
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.covariance, expected.covariance)
    x = prior.sample(3, generator=generator)
    for points in (x, x[0]):
        torch.testing.assert_close(
            ideal_forward_map(prior, problem, points), ideal_forward_map(prior, dense, points)
        )
    samples = x.reshape(3, *problem.shape)
    torch.testing.assert_close(
        linear_estimate(samples, problem, y[0]).flatten(), linear_estimate(x, dense, y[0].flatten())
    )


def test_the_adjoint_by_differentiation_can_itself_be_differentiated():
    problem = LinearProblem(blur, 1.0, shape=SHAPE, dtype=torch.float64)
    y = torch.zeros(2, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(problem.adjoint(y).sum(), y)
    ones = torch.ones(2, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(gradient, problem.apply(ones))


def test_an_adjoint_of_a_function_without_a_derivative_is_given():
    """Through NumPy there is no automatic differentiation."""

    def doubled(x):
        return torch.from_numpy(2 * x.numpy())

    problem = LinearProblem(doubled, 1.0, shape=(3,), adjoint=doubled)
    assert torch.equal(problem.normal_data(torch.ones(1, 3)), torch.full((1, 3), 2.0))
    with pytest.raises(ValueError, match="adjoint by automatic differentiation, unless it is giv"):
        LinearProblem(doubled, 1.0, shape=(3,))


def test_a_module_can_be_an_operator():
    layer = torch.nn.Conv2d(1, 2, 3, bias=False).requires_grad_(False)
    problem = LinearProblem(layer, 0.1, shape=(1, 5, 5))
    assert problem.operator is layer
    assert problem.data_shape == (2, 3, 3)
    torch.testing.assert_close(problem.apply(torch.ones(1, 5, 5)), layer(torch.ones(1, 5, 5)))


@pytest.mark.parametrize(
    "form",
    [
        torch.Tensor.to_sparse,
        torch.Tensor.to_sparse_csr,
        lambda a: torch.sparse_coo_tensor([[0, 0, 2], [1, 1, 0]], [0.5, 1.0, -2.0], (3, 4)).to(a),
        lambda a: sparse.csr_array(a.numpy()),
        lambda a: sparse.coo_matrix(a.numpy()),
        lambda a: sparse.csc_matrix(a.numpy()),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_a_sparse_matrix_is_its_dense_matrix(form, generator):
    dense = torch.zeros(3, 4, dtype=torch.float64)
    dense[0, 1], dense[2, 0] = 1.5, -2.0
    problem, expected = LinearProblem(form(dense), 0.4), LinearProblem(dense, 0.4)
    assert problem.operator.is_sparse
    assert torch.equal(problem.matrix, dense)
    x = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    for name, points in [("apply", x), ("mean_normal_data", x), ("adjoint", y), ("normal_data", y)]:
        found, other = getattr(problem, name)(points), getattr(expected, name)(points)
        torch.testing.assert_close(found, other)
    torch.testing.assert_close(problem.normal_operator, expected.normal_operator)
    prior = random_mixture(4, 2, generator)
    torch.testing.assert_close(
        posterior(prior, problem, y).mean, posterior(prior, expected, y).mean
    )
    assert problem.to(dtype=torch.float32).apply(x.float()).dtype == torch.float32


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_a_sparse_matrix_of_zeros_tells_nothing():
    problem = LinearProblem(torch.zeros(2, 3).to_sparse(), 1.0)
    assert torch.equal(problem.apply(torch.ones(3)), torch.zeros(2))


def test_a_matrix_is_copied():
    given = torch.eye(2)
    problem = LinearProblem(given, 1.0)
    given.mul_(7)
    assert torch.equal(problem.operator, torch.eye(2))


def test_a_matrix_problem_can_be_pickled(generator):
    problem = LinearProblem(random_operator(3, 2, 2, generator), 0.25)
    again = pickle.loads(pickle.dumps(problem))
    assert torch.equal(again.operator, problem.operator)
    assert again.noise_std == 0.25
    assert repr(again) == "LinearProblem((2,) -> (3,), noise_std=0.25)"


def test_a_function_follows_to_another_dtype():
    problem = LinearProblem(blur, 0.3, shape=SHAPE).to(dtype=torch.float64)
    assert problem.dtype == problem.matrix.dtype == torch.float64
    assert problem.noise_std == 0.3
    assert problem.data_shape == (1, 2, 2)
    stuck = LinearProblem(lambda x: x @ torch.eye(2), 0.3, shape=(2,))
    with pytest.raises(ValueError, match="operator failed on a batch"):
        stuck.to(dtype=torch.float64)


@pytest.mark.parametrize("make", [torch.Tensor.to_sparse, torch.clone])
def test_a_matrix_takes_points_of_any_shape_with_its_columns(make, generator):
    matrix = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    flat = LinearProblem(matrix, 0.1)
    shaped = LinearProblem(make(matrix), 0.1, shape=(1, 2, 3)).to(dtype=torch.float64)
    x = torch.randn(2, 5, 1, 2, 3, generator=generator, dtype=torch.float64)
    y = shaped.apply(x)
    torch.testing.assert_close(y, flat.apply(x.flatten(2)))
    assert shaped.adjoint(y).shape == x.shape
    torch.testing.assert_close(shaped.adjoint(y).flatten(2), flat.adjoint(y))
    torch.testing.assert_close(shaped.matrix, matrix)
    assert shaped.shape == (1, 2, 3)
