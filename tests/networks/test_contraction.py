"""The fixed point against closed forms; its error guarantee; its implicit derivative."""

from __future__ import annotations

import pytest
import torch

from invbayes import NotConverged
from invbayes.networks.contraction import fixed_point
from invbayes.networks.dense import LipschitzDense

BOUNDS = pytest.mark.parametrize("lipschitz", [0.5, 0.9, 0.97])
METHODS = pytest.mark.parametrize("method", ["newton", "anderson", "plain"])


def solve(with_jacobian, z, **options):
    """`fixed_point` of a map that knows its Jacobian."""
    return fixed_point(lambda x: with_jacobian(x)[0], z, with_jacobian=with_jacobian, **options)


def linear(matrix):
    """X ↦ M x with its Jacobian."""
    return lambda x: (x @ matrix.mT, matrix.expand(*x.shape, x.shape[-1]))


def rotation(lipschitz, angle=1.2):
    c, s = torch.tensor(angle).double().cos(), torch.tensor(angle).double().sin()
    return lipschitz * torch.stack([torch.stack([c, -s]), torch.stack([s, c])])


def nonlinear(lipschitz, dim=2):
    net = LipschitzDense(dim, (16, 16), generator=torch.Generator().manual_seed(5)).double()

    def with_jacobian(x):
        value, jacobian = net.with_jacobian(x)
        return lipschitz * value, lipschitz * jacobian

    return net, with_jacobian


@METHODS
@pytest.mark.parametrize("lipschitz", [0.5, 0.9, 0.97, 0.999])
@pytest.mark.parametrize("tol", [1e-3, 1e-6, 1e-9])
def test_the_error_is_within_the_tolerance(method, lipschitz, tol, generator):
    matrix = rotation(lipschitz)
    z = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    exact = torch.linalg.solve(torch.eye(2).double() - matrix, z.mT).mT
    found = solve(linear(matrix), z, lipschitz=lipschitz, tol=tol, method=method)
    assert (found - exact).norm(dim=1).max() <= tol


@METHODS
def test_the_peers_counterexample(method):
    """For f(x) = 0.97 x a short step hides an error 32 times as long."""
    z = torch.ones(1, 1, dtype=torch.float64)
    found = solve(
        linear(0.97 * torch.ones(1, 1).double()), z, lipschitz=0.97, tol=1e-5, method=method
    )
    assert abs(found.item() - 1 / 0.03) <= 1e-5


@METHODS
@pytest.mark.parametrize("lipschitz", [0.5, 0.9, 0.99])
def test_a_network_is_inverted_point_by_point(method, lipschitz, generator):
    _, with_jacobian = nonlinear(lipschitz)
    x = 3 * torch.randn(200, 2, generator=generator, dtype=torch.float64)
    z = x - with_jacobian(x)[0]
    found = solve(with_jacobian, z, lipschitz=lipschitz, tol=1e-7, method=method)
    assert (found - x).norm(dim=1).max() <= 1e-7


def test_finished_points_cost_nothing():
    """Each call sees only the points that still move."""
    sizes = []

    def counted(x):
        sizes.append(len(x))
        return 0.9 * x, torch.full((*x.shape, 1), 0.9, dtype=x.dtype)

    z = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)
    with torch.no_grad():
        solve(counted, z, lipschitz=0.9, tol=1e-6, method="plain")
    assert sizes[0] == 3
    assert set(sizes[1:]) == {1}


def test_newton_is_safeguarded_where_it_would_fly_off(generator):
    """A wave whose Newton steps overshoot: every point still arrives."""

    def wave(x):
        return 0.99 * (5 * x).sin() / 5, torch.diag_embed(0.99 * (5 * x).cos())

    x = 3 * torch.randn(2000, 1, generator=generator, dtype=torch.float64)
    found = solve(wave, x - wave(x)[0], lipschitz=0.99, tol=1e-8)
    assert (found - x).abs().max() <= 1e-8


@BOUNDS
def test_gradcheck_in_z_and_in_the_parameters(lipschitz, generator):
    net, with_jacobian = nonlinear(lipschitz)
    z = torch.randn(3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = net.layers[0].bias

    def solved(z, _):
        return solve(with_jacobian, z, lipschitz=lipschitz, tol=1e-11)

    assert torch.autograd.gradcheck(solved, (z, bias), atol=1e-5)


@BOUNDS
def test_the_gradient_agrees_with_unrolling_and_with_a_solve(lipschitz, generator):
    net, with_jacobian = nonlinear(lipschitz)
    z = torch.randn(5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = net.layers[1].raw
    cotangent = torch.randn(5, 2, generator=generator, dtype=torch.float64)

    solution = solve(with_jacobian, z, lipschitz=lipschitz, tol=1e-12)
    implicit = torch.autograd.grad((solution * cotangent).sum(), [z, weight])

    unrolled = z
    for _ in range(int(30 / (1 - lipschitz))):
        unrolled = z + with_jacobian(unrolled)[0]
    by_unrolling = torch.autograd.grad((unrolled * cotangent).sum(), [z, weight])
    for ours, theirs in zip(implicit, by_unrolling, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)

    jacobian = with_jacobian(solution)[1]
    solved = torch.linalg.solve((torch.eye(2).double() - jacobian).mT, cotangent)
    torch.testing.assert_close(implicit[0], solved, rtol=1e-8, atol=1e-8)


@METHODS
def test_a_second_derivative_raises(method):
    """The first may carry a graph, as `torch.func` asks; only to use it is refused."""
    _, with_jacobian = nonlinear(0.9)
    z = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    solution = solve(with_jacobian, z, lipschitz=0.9, method=method)
    (once,) = torch.autograd.grad(solution.sum(), z, retain_graph=True)
    (first,) = torch.autograd.grad(solution.sum(), z, create_graph=True)
    assert torch.equal(first, once)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(first.sum(), z)


def test_a_false_bound_raises_with_the_bound_reached():
    """An expansion passed off as a contraction."""
    expansion = linear(2 * rotation(1.0, angle=0.3))
    z = torch.ones(3, 2, dtype=torch.float64)
    with pytest.raises(NotConverged, match=r"3 points missed the tolerance 1\.0e-06") as caught:
        solve(expansion, z, lipschitz=0.9, method="plain")
    assert caught.value.bound > 1e-6
    assert caught.value.steps > 1


@METHODS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lipschitz", [0.97, 0.99])
def test_close_to_rounding_it_is_right_or_raises(method, dtype, lipschitz, generator):
    """Just above the least tolerance the residual can round to zero far from the solution."""
    z = 1 + torch.rand(200, 1, generator=generator, dtype=dtype)
    exact = z.double() / (1 - torch.tensor(lipschitz, dtype=dtype).double())
    f = linear(torch.full((1, 1), lipschitz, dtype=dtype))
    kept = 0
    for factor in (2.5, 20, 100, 400):
        tol = factor * torch.finfo(dtype).eps * 2 / (1 - lipschitz)
        try:
            found = solve(f, z, lipschitz=lipschitz, tol=tol, method=method)
        except NotConverged:
            continue
        kept += 1
        assert (found.double() - exact).abs().max() <= tol
    assert kept


@METHODS
def test_nan_is_never_a_solution(method):
    z = torch.ones(2, 1, dtype=torch.float64)

    def bad_jacobian(x):
        return 0.5 * x, torch.full((*x.shape, 1), torch.nan, dtype=x.dtype)

    def bad_later(x):
        value = 0.5 * x if torch.equal(x, z) else torch.full_like(x, torch.nan)
        return value, torch.full((*x.shape, 1), 0.5, dtype=x.dtype)

    with torch.no_grad():  # a wrong Jacobian costs speed, not correctness
        found = solve(bad_jacobian, z, lipschitz=0.5, method=method)
        torch.testing.assert_close(found, 2 * z, rtol=0, atol=1e-6)
        with pytest.raises(NotConverged, match="missed the tolerance"):
            solve(bad_later, z, lipschitz=0.5, method=method)
        with pytest.raises(NotConverged, match="f is not finite at the start"):
            solve(lambda x: (x * torch.nan, x[..., None]), z, lipschitz=0.5, method=method)


@METHODS
def test_any_leading_shape_and_an_empty_batch(method):
    matrix = 0.5 * torch.eye(2).double()
    z = torch.ones(2, 3, 2, dtype=torch.float64)
    found = solve(linear(matrix), z, lipschitz=0.5, method=method)
    torch.testing.assert_close(found, 2 * z, rtol=0, atol=1e-6)
    assert solve(linear(matrix), z[:0, 0], lipschitz=0.5, method=method).shape == (0, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lipschitz": 1.0}, r"lipschitz must lie in \(0, 1\), got 1.0"),
        ({"lipschitz": 0.0}, r"lipschitz must lie in \(0, 1\), got 0.0"),
        ({"lipschitz": float("nan")}, r"lipschitz must lie in \(0, 1\), got nan"),
        ({"tol": 1e-44, "z": torch.zeros(1, 1)}, "tol must be at least .* can reach"),
        ({"tol": 0.0}, "tol must be finite and > 0, got 0"),
        (
            {"tol": 1e-9},
            r"tol must be at least .*e-06, which torch.float32 can reach .* got 1.0e-09",
        ),
        ({"method": "broyden"}, "method must be 'newton', 'anderson' or 'plain', got 'broyden'"),
        ({"z": torch.tensor([[torch.nan]])}, "z must be finite"),
        ({"start": torch.ones(2, 1)}, r"start must have the shape of z, \(1, 1\), got \(2, 1\)"),
        ({"start": torch.ones(1, 2)}, r"start must have shape \(\*, 1\), got \(1, 2\)"),
        ({"start": torch.ones(1, 1).double()}, "start must have dtype torch.float32"),
        ({"start": torch.full((1, 1), torch.inf)}, "start must be finite"),
    ],
)
def test_bad_input_is_named(options, message):
    arguments = {"z": torch.ones(1, 1), "lipschitz": 0.9, **options}
    with pytest.raises(ValueError, match=message):
        solve(linear(torch.full((1, 1), 0.9)), arguments.pop("z"), **arguments)
