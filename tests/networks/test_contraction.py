"""The fixed point against closed forms; its error guarantee; its implicit derivative."""

from __future__ import annotations

import math

import pytest
import torch

from invbayes import NotConverged
from invbayes.networks.contraction import fixed_point
from invbayes.networks.dense import LipschitzDense
from invbayes.networks.iresnet import InvertibleResNet

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
    if method == "plain":
        lipschitz = min(lipschitz, 0.99)  # 0.999 takes it 30 000 steps
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
    with pytest.raises(NotImplementedError, match="no second derivative"):  # two backward passes
        torch.autograd.functional.jvp(
            lambda z: solve(with_jacobian, z, lipschitz=0.9, method=method), z, torch.ones_like(z)
        )


def test_the_derivative_along_a_direction_has_none_in_the_direction():
    """It is linear in it, which the iterations that solve for it hide: no zero in silence."""
    _, with_jacobian = nonlinear(0.9)
    z = torch.ones(1, 2, dtype=torch.float64)

    def along(v):
        def answer(z):
            return solve(with_jacobian, z, lipschitz=0.9, method="anderson")

        return torch.func.jvp(answer, (z,), (v,))[1]

    for differentiate in (
        lambda: torch.func.grad(lambda v: along(v).sum())(z),
        lambda: torch.func.jvp(along, (z,), (z,)),
    ):
        with pytest.raises(NotImplementedError, match="no second derivative"):
            differentiate()


def test_a_false_bound_raises_with_the_bound_reached():
    """An expansion passed off as a contraction."""
    expansion = linear(2 * rotation(1.0, angle=0.3))
    z = torch.ones(3, 2, dtype=torch.float64)
    with pytest.raises(NotConverged, match=r"3 points missed the tolerance 1\.0e-06") as caught:
        solve(expansion, z, lipschitz=0.9, method="plain")
    x = caught.value.point
    residual = (z + expansion(x)[0] - x).norm(dim=1).max().item()
    assert caught.value.bound == pytest.approx(residual / (1 - 0.9), rel=1e-4)
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
    empty = solve(linear(matrix), z[:0, 0], lipschitz=0.5, tol=1e-17, method=method)
    assert empty.shape == (0, 2)


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
        (
            {"method": "broyden"},
            "method must be one of .'newton', 'newton-cg', 'anderson', 'plain'., got 'broyden'",
        ),
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


@METHODS
@pytest.mark.parametrize("shape", [(2,), (5, 2), (2, 3, 2)])
def test_a_start_may_have_any_leading_shape(method, shape):
    matrix, z = rotation(0.5), torch.ones(shape).double()
    options = {"lipschitz": 0.5, "method": method}
    found = solve(linear(matrix), z, start=2 * z, **options)
    assert (found - solve(linear(matrix), z, **options)).abs().max() < 1e-5
    with pytest.raises(ValueError, match=r"start must have shape \(\*, 2\), got \(.*3,?\)"):
        solve(linear(matrix), z, start=torch.ones(*shape[:-1], 3).double(), **options)


@METHODS
@pytest.mark.parametrize(
    ("size", "lipschitz"), [(1e-3, 0.5), (1.0, 0.5), (1e4, 0.9), (1e4, 0.99), (1.0, 0.99)]
)
def test_the_default_tolerance_is_one_that_the_dtype_reaches(method, size, lipschitz, generator):
    """1e-6 in double precision; in single at most what rounding leaves, and never an error."""
    matrix = rotation(lipschitz)
    z = size * torch.randn(20, 2, generator=generator, dtype=torch.float64)
    exact = torch.linalg.solve(torch.eye(2).double() - matrix, z.mT).mT
    found = solve(linear(matrix), z, lipschitz=lipschitz, method=method)
    assert (found - exact).norm(dim=1).max() <= 1e-6
    rough = solve(linear(matrix.float()), z.float(), lipschitz=lipschitz, method=method)
    rounding = torch.finfo(torch.float32).eps * (z.norm(dim=1) + 2.1 * exact.norm(dim=1))
    power = 1.5 if method == "plain" else 1.0
    bound = torch.clamp(8 * rounding / (1 - lipschitz) ** power, min=1e-6)
    assert ((rough - exact).norm(dim=1) <= bound).all()


def test_only_the_last_plain_step_is_allowed_more_rounding():
    """Far from the last step the default in single precision is eight roundings, as elsewhere."""
    z = torch.ones(1, 1)
    found = fixed_point(lambda x: 0.97 * x, z, lipschitz=0.97, method="plain").double()
    residual = (z + (0.97 * found.float()).double() - found).abs()
    assert residual <= 8.5 * torch.finfo(torch.float32).eps * (1 + 1.97 * found)


@pytest.mark.parametrize("lipschitz", [0.5, 0.9, 0.99])
def test_plain_steps_are_as_many_as_theory_says(lipschitz):
    """One evaluation each and no trial: log(ρ / (τ (1 − L))) / log(1/L), and one at the start."""
    calls = []

    def f(x):
        calls.append(len(x))
        return lipschitz * x

    with torch.no_grad():
        fixed_point(f, torch.ones(1, 1).double(), lipschitz=lipschitz, tol=1e-6, method="plain")
    steps = math.log(lipschitz / (1e-6 * (1 - lipschitz))) / math.log(1 / lipschitz)
    assert len(calls) == 1 + math.ceil(steps)


def test_methods_without_a_jacobian_ask_for_none(generator):
    net, with_jacobian = nonlinear(0.9, dim=5)
    z = torch.randn(30, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    expected = solve(with_jacobian, z, lipschitz=0.9, tol=1e-10)
    (gradient,) = torch.autograd.grad(expected.square().sum(), z)

    def refused(_):
        pytest.fail("a Jacobian was asked for")

    for method in ("anderson", "plain"):
        found = fixed_point(
            lambda x: 0.9 * net(x),
            z,
            lipschitz=0.9,
            tol=1e-10,
            method=method,
            with_jacobian=refused,
        )
        assert (found - expected).norm(dim=1).max() <= 2e-10
        (other,) = torch.autograd.grad(found.square().sum(), z)
        torch.testing.assert_close(other, gradient, rtol=1e-6, atol=1e-7)


def test_anderson_solves_a_linear_map_in_as_many_steps_as_dimensions(generator):
    """With a memory of six: six unknowns, six differences, then Newton's step on all of them."""
    raw = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix = 0.95 * raw / torch.linalg.matrix_norm(raw, 2)
    z = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    calls = []

    def f(x):
        calls.append(len(x))
        return x @ matrix.mT

    with torch.no_grad():
        found = fixed_point(f, z, lipschitz=0.95, tol=1e-6)
    exact = torch.linalg.solve(torch.eye(6).double() - matrix, z.mT).mT
    assert (found - exact).norm() <= 1e-6
    assert len(calls) <= 10


@METHODS
def test_a_failure_carries_the_points_reached(method):
    """Those that were done, and those that were not, in the shape of z."""

    def f(x):
        return torch.where(x > 1, x * torch.nan, 0.5 * x)

    z = torch.tensor([[[0.2], [0.9]]], dtype=torch.float64)
    with torch.no_grad(), pytest.raises(NotConverged, match="1 points missed") as caught:
        solve(
            lambda x: (f(x), torch.full((*x.shape, 1), 0.5).double()),
            z,
            lipschitz=0.5,
            method=method,
        )
    assert caught.value.point.shape == z.shape
    assert caught.value.point[0, 0].item() == pytest.approx(0.4, abs=1e-6)


def test_a_far_start_is_no_failure():
    found = fixed_point(
        lambda x: x / 2,
        torch.ones(1, 1).double(),
        lipschitz=0.5,
        tol=1e-7,
        start=torch.full((1, 1), 1e9).double(),
    )
    assert abs(found.item() - 2) <= 1e-7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "newton"}, "method 'newton' needs with_jacobian, got none"),
        ({"f": None}, "f must be callable, got NoneType"),
        ({"f": lambda x: x[:, :1]}, r"f must map \(3, 2\) to the same shape, got \(3, 1\)"),
        ({"z": torch.zeros(3, 0)}, r"z must have shape \(\*, d\) with d > 0, got \(3, 0\)"),
        ({"z": torch.zeros(())}, r"z must have shape \(\*, d\)"),
        ({"lipschitz": None}, "lipschitz must be a number, got None"),
        ({"with_jacobian": lambda x: x}, r"with_jacobian must map \(n, d\) to \(n, d\) and"),
    ],
)
def test_what_does_not_fit_is_named(options, message):
    given = {"f": lambda x: x / 2, "z": torch.ones(3, 2), "lipschitz": 0.5, **options}
    with pytest.raises(ValueError, match=message):
        fixed_point(given.pop("f"), given.pop("z"), **given)


@METHODS
def test_points_without_a_cotangent_have_no_gradient(method, generator):
    _, with_jacobian = nonlinear(0.9)
    z = torch.randn(3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    found = solve(with_jacobian, z, lipschitz=0.9, method=method)
    (gradient,) = torch.autograd.grad(found[0].sum(), z)
    assert (gradient[0] != 0).all()
    assert torch.equal(gradient[1:], torch.zeros(2, 2).double())


def test_a_lipschitz_and_strongly_monotone_map_is_one_block(generator):
    """With c = M²/μ the residual has the constant √(1 − μ²/M²); a turn by 90° has none."""
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    least, largest = 0.5, 1.5 + 2.0

    def phi(x):  # between 0.5 and 1.5 times x in each entry, and a turn that adds nothing to <., x>
        return x + 0.5 * torch.sin(x) + 2.0 * x @ turn.mT

    scale, lipschitz = largest**2 / least, (1 - least**2 / largest**2) ** 0.5
    x, y = 3 * torch.randn(2, 2000, 2, generator=generator, dtype=torch.float64)
    step, moved = x - y, phi(x) - phi(y)
    assert ((moved * step).sum(1) >= least * step.square().sum(1)).all()
    assert ((step - moved / scale).norm(dim=1) <= lipschitz * step.norm(dim=1)).all()
    found = fixed_point(lambda p: p - phi(p) / scale, phi(x) / scale, lipschitz=lipschitz)
    assert (found - x).norm(dim=1).max() <= 1e-6
    for c in torch.logspace(-2, 2, 50, dtype=torch.float64):
        assert torch.linalg.matrix_norm(torch.eye(2) - turn / c, 2) >= 1


def test_a_network_is_monotone_and_never_mirrors(generator):
    """One block moves points in the direction of their difference; determinants are positive."""
    for blocks in (1, 3):
        net = InvertibleResNet.dense(2, (8, 8), blocks, 0.97, scale=1.7, generator=generator)
        net = net.double().requires_grad_(False)
        x, y = torch.randn(2, 2000, 2, generator=generator, dtype=torch.float64)
        assert (torch.linalg.det(net.jacobian(x)) > 0).all()
        inner = ((net(x) - net(y)) * (x - y)).sum(1)
        if blocks == 1:
            assert (inner >= 1.7 * 0.03 * (x - y).square().sum(1) * (1 - 1e-6)).all()
