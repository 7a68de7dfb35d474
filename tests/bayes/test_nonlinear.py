"""Nonlinear problems, against finite differences, an ODE solver and the linear case."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_bvp
from torch import Tensor

from invbayes import (
    GaussianMixture,
    InverseProblem,
    InvertibleResNet,
    LinearProblem,
    NonlinearProblem,
    ideal_forward_map,
    map_estimate,
    posterior,
    posterior_variance,
)
from invbayes.examples import two_blobs, two_layers

MATRIX = torch.tensor([[1.0, 0.4], [-0.3, 1.2]], dtype=torch.float64)
ORIGIN = torch.zeros(2, dtype=torch.float64)


def bent(x: Tensor) -> Tensor:
    """Smooth, invertible near the origin, with an asymmetric Jacobian."""
    turned = x @ MATRIX.mT
    return turned + 0.2 * torch.stack([turned[..., 1].sin(), turned[..., 0] ** 2], -1)


def implicit(x: Tensor) -> Tensor:
    """The solution u of M(x) u = x: a linear solver inside F."""
    first, second = x.unbind(-1)
    rows = torch.stack([2 + first.sin(), second / 4, first * second / 4, 3 + second.cos()], -1)
    return torch.linalg.solve(rows.unflatten(-1, (2, 2)), x.unsqueeze(-1)).squeeze(-1)


def cloud(n: int = 9, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.5 * torch.randn(n, 2, generator=generator, dtype=torch.float64)


def differences(function, x: Tensor, h: float = 1e-6) -> Tensor:
    """The derivative along each axis, last: central differences."""
    steps = h * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.stack([(function(x + s) - function(x - s)) / (2 * h) for s in steps], -1)


@pytest.mark.parametrize("forward", [bent, implicit, torch.sinh])
def test_derivatives_are_those_of_finite_differences(forward):
    problem, x = NonlinearProblem(forward, 0.1, reference=ORIGIN + 0.3), cloud()
    slopes = differences(forward, x)
    torch.testing.assert_close(problem.jacobian(x), slopes, rtol=1e-6, atol=1e-7)
    found = problem.pullback(x)
    at_reference = differences(forward, problem.reference[None])[0]
    wanted = torch.linalg.inv(slopes) @ at_reference
    torch.testing.assert_close(found.matrix, wanted, rtol=1e-5, atol=1e-6)
    bends = differences(lambda p: problem.pullback(p).matrix, x)  # ∂_k B_ij at [n, i, j, k]
    wanted = torch.einsum("niji->nj", bends)
    torch.testing.assert_close(found.divergence, wanted, rtol=1e-5, atol=1e-6)


def test_a_closed_jacobian_is_used_and_changes_nothing():
    calls = []

    def closed(x: Tensor) -> Tensor:
        calls.append(len(x))
        return torch.diag_embed(x.cosh())

    x = cloud()
    own = NonlinearProblem(torch.sinh, 0.1, reference=ORIGIN)
    given_one = NonlinearProblem(torch.sinh, 0.1, reference=ORIGIN, jacobian=closed)
    calls.clear()
    torch.testing.assert_close(given_one.jacobian(x), own.jacobian(x))
    assert calls == [9]
    single = given_one.to(dtype=torch.float32)
    torch.testing.assert_close(single.jacobian(x.float()), own.jacobian(x).float())
    assert (single.noise_std, single.dtype) == (0.1, torch.float32)
    assert len(calls) > 1  # the closed form moves along
    for a, b in zip(given_one.pullback(x), own.pullback(x), strict=True):
        torch.testing.assert_close(a, b)
    rounded = {"jacobian": lambda x: closed(x) + 1e-9}  # as a solver of its own might be off
    assert NonlinearProblem(torch.sinh, 0.1, reference=ORIGIN, **rounded).jacobian(x).shape[0] == 9


@given(st.integers(0, 10**6), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_a_linear_map_is_the_linear_problem(seed, dim):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(dim, dim, generator=generator).double() + 3 * torch.eye(dim).double()
    linear = LinearProblem(matrix, 0.3)
    problem = NonlinearProblem(lambda x: x @ matrix.mT, 0.3, reference=0 * matrix[0])
    x = torch.randn(2, 5, dim, generator=generator).double()
    y = linear.observe(x, generator=generator)
    for name in ("apply", "mean_normal_data"):
        torch.testing.assert_close(getattr(problem, name)(x), getattr(linear, name)(x))
    torch.testing.assert_close(problem.normal_data(y), linear.normal_data(y))
    torch.testing.assert_close(problem.log_likelihood(x, y), linear.log_likelihood(x, y))
    torch.testing.assert_close(problem.normal_operator, linear.normal_operator)
    for a, b in zip(problem.pullback(x), linear.pullback(x), strict=True):
        torch.testing.assert_close(a, b)


def test_the_likelihood_is_that_of_the_normal_distribution():
    coloured = torch.tensor([[0.5, 0.1], [0.1, 0.2]], dtype=torch.float64)
    x, y = cloud(seed=1), cloud(seed=2)
    for problem, covariance in (
        (NonlinearProblem(bent, 0.3, reference=ORIGIN), 0.09 * torch.eye(2).double()),
        (LinearProblem(MATRIX, noise_covariance=coloured), coloured),
    ):
        law = torch.distributions.MultivariateNormal(problem.apply(x), covariance)
        gap = law.log_prob(y) - problem.log_likelihood(x, y)
        torch.testing.assert_close(gap, gap[:1].expand_as(gap))
        many = problem.log_likelihood(x, y[:, None])
        torch.testing.assert_close(many.diagonal(), problem.log_likelihood(x, y))


def test_observations_have_the_noise():
    problem = NonlinearProblem(bent, 0.3, reference=ORIGIN)
    x = cloud(1).expand(40_000, 2)
    noise = problem.observe(x, generator=torch.Generator().manual_seed(5)) - problem.apply(x)
    z = noise.mean(0) / (0.3 / len(x) ** 0.5)
    assert z.abs().max() < 4
    z = (noise.square().mean(0) / 0.09 - 1) / (2 / len(x)) ** 0.5
    assert z.abs().max() < 4
    assert (noise.prod(1).mean() / 0.09 * len(x) ** 0.5).abs() < 4


def test_points_of_several_axes():
    problem = NonlinearProblem(lambda x: x.exp().flatten(1), 0.1, reference=torch.zeros(2, 3))
    x = torch.linspace(-1, 1, 12).reshape(2, 2, 3)
    assert problem.apply(x).shape == (2, 6)
    assert problem.data_shape == (6,)
    assert problem.mean_normal_data(x).shape == (2, 2, 3)
    found = problem.pullback(x)
    torch.testing.assert_close(found.matrix, torch.diag_embed((-x).exp().flatten(1)))
    torch.testing.assert_close(found.divergence, -(-x).exp().flatten(1))
    assert problem.log_likelihood(x, torch.ones(2, 6)).shape == (2,)


@pytest.mark.parametrize(
    ("forward", "at"),
    [
        (lambda x: torch.exp(x / 1e-3), 0.0),
        (lambda x: torch.atanh(x / 1e-3), 0.0),
        (torch.asin, 0.9),
        (lambda x: torch.asin(1e7 * x), 0.0),
    ],
)
def test_the_map_may_be_defined_near_the_reference_only(forward, at):
    reference = torch.full((2,), at, dtype=torch.float64)
    problem = NonlinearProblem(forward, 0.1, reference=reference)
    torch.testing.assert_close(
        problem.jacobian(reference), torch.func.jacrev(forward)(reference), rtol=1e-12, atol=0
    )


def test_the_response_to_a_noise_and_a_reference_of_its_own():
    reference = ORIGIN.clone().requires_grad_()
    problem = NonlinearProblem(torch.sinh, 0.1, reference=reference)
    assert not problem.like.requires_grad
    x, white = cloud(), cloud(seed=1)
    torch.testing.assert_close(problem.respond(x, white), x.sinh() + 0.1 * white)


def test_one_unknown_without_an_axis():
    single = NonlinearProblem(lambda x: x[:, 0] ** 3, 0.1, reference=torch.ones(1))
    assert single.jacobian(torch.full((4, 1), 2.0)).flatten().tolist() == [12.0] * 4
    assert single.log_likelihood(torch.ones(2, 1), torch.tensor([1.0, 1.1])).tolist() == (
        pytest.approx([0.0, -0.5], abs=1e-5)
    )
    assert single.normal_data(torch.tensor([2.0])).tolist() == [[6.0]]


@pytest.mark.parametrize("logarithmic", [False, True])
def test_two_layers_solve_their_equation(logarithmic):
    left, right = -0.7, 0.4

    def slope(t: np.ndarray, state: np.ndarray) -> np.ndarray:
        flux = state[1]  # -k p'
        return np.stack([-flux / np.exp(np.where(t < 0.5, left, right)), np.full_like(t, 32 / 3)])

    mesh = np.linspace(0, 1, 401)
    found = solve_bvp(
        slope, lambda a, b: np.array([a[0], b[0]]), mesh, np.zeros((2, 401)), tol=1e-8
    )
    wanted = torch.tensor(found.sol([0.25, 0.75])[0])
    x = torch.tensor([[left, right]], dtype=torch.float64)
    image = two_layers(logarithmic=logarithmic).apply(x)[0]
    torch.testing.assert_close(image.exp() if logarithmic else image, wanted, rtol=1e-4, atol=0)


@given(st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_map_gradients_and_hessians_come_from_the_ideal_map(seed):
    """∇E = B^{-*}(φ_* − z), and where φ_*(x) = z the Hessian is B^{-*} Dφ_*."""
    prior, problem, x = two_blobs(), two_layers(0.3), cloud(4, seed)
    y = problem.observe(x, generator=torch.Generator().manual_seed(seed))

    def energy(points: Tensor, data: Tensor) -> Tensor:
        return -0.09 * (problem.log_likelihood(points, data) + prior.log_prob(points)).sum()

    image = ideal_forward_map(prior, problem, x)
    pulled = problem.pullback(x).matrix.mT
    slope = torch.func.grad(energy)(x, y)
    wanted = torch.linalg.solve(pulled, (image - problem.normal_data(y))[..., None])[..., 0]
    torch.testing.assert_close(slope, wanted)
    reached = torch.linalg.solve(problem.white_matrix.mT, image.mT).mT
    hessian = torch.func.hessian(energy)(x, reached)
    hessian = torch.stack([hessian[i, :, i] for i in range(len(x))])
    bends = differences(lambda p: ideal_forward_map(prior, problem, p), x)
    torch.testing.assert_close(hessian, torch.linalg.solve(pulled, bends), rtol=1e-5, atol=1e-6)


def test_one_block_holds_a_map_without_symmetry_up_to_its_bound():
    """|I − J/c|² ≤ 1 − μ²/ν² for c = ν²/μ, attained by μ I + a quarter turn; no c is better."""
    generator = torch.Generator().manual_seed(3)
    matrices = torch.randn(200, 3, 3, generator=generator).double() + 2.5 * torch.eye(3).double()
    quarter = torch.tensor([[0.3, -1.0], [1.0, 0.3]], dtype=torch.float64)
    for matrix, attained in [(quarter, True), *((m, False) for m in matrices)]:
        least = torch.linalg.eigvalsh((matrix + matrix.mT) / 2)[0]
        most, eye = torch.linalg.matrix_norm(matrix, 2), torch.eye(len(matrix)).double()
        if least <= 0:
            continue
        bound = (1 - (least / most) ** 2).sqrt()
        own = torch.linalg.matrix_norm(eye - matrix * least / most**2, 2)
        assert own <= bound * (1 + 1e-12)
        scales = torch.linspace(0.05, 20, 2000).double()[:, None, None]
        best = torch.linalg.matrix_norm(eye - matrix / scales, 2).min()
        assert not attained or (best >= bound - 1e-9 and own >= bound - 1e-9)


def test_the_laplacian_of_the_inverse_is_that_of_the_formula():
    """Δ F⁻¹(F(x)) = −DF⁻¹ κ with κ_k = tr(∇²F_k (DF* DF)⁻¹), by differences of F⁻¹."""
    problem, x = NonlinearProblem(bent, 0.1, reference=ORIGIN), cloud(5)

    def undone(y: Tensor) -> Tensor:
        point = x.clone()
        for _ in range(40):
            miss = (problem.apply(point) - y)[..., None]
            point = point - torch.linalg.solve(problem.jacobian(point), miss)[..., 0]
        return point

    h, y = 1e-3, problem.apply(x)
    steps = h * torch.eye(2, dtype=torch.float64)
    second = sum(undone(y + s) - 2 * undone(y) + undone(y - s) for s in steps) / h**2
    slopes = problem.jacobian(x)
    bends = differences(problem.jacobian, x)  # ∂_l ∂_j F_k at [n, k, j, l]
    weight = torch.linalg.inv(slopes.mT @ slopes)
    kappa = torch.einsum("nkjl,njl->nk", bends, weight)
    wanted = -torch.linalg.solve(slopes, kappa[..., None])[..., 0]
    torch.testing.assert_close(second, wanted, rtol=1e-4, atol=1e-5)
    assert wanted.abs().max() > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forward": 3}, "forward must be callable"),
        ({"forward": lambda x: x[:, :1]}, "as many data as unknowns, 2, got 1"),
        ({"forward": lambda x: x - x.mean(0) + 1}, "forward must map each point of a batch by"),
        (
            {"forward": lambda x: (500 * (x - x.mean(0))).asin() + x},  # defined near x₀ only
            "forward must map each point of a batch by",
        ),
        ({"forward": lambda x: x.log()}, "forward must map a batch to a finite batch"),
        ({"forward": lambda x: x**3}, "reference must hold points where DF is invertible"),
        ({"noise_std": 0.0}, "noise_std must be finite and > 0"),
        ({"reference": [0.0, 0.0]}, "reference must be a floating-point tensor"),
        (
            {"jacobian": lambda x: torch.diag_embed(x.exp() + 1)},
            "jacobian must be that of forward",
        ),
        (
            {"jacobian": lambda x: torch.diag_embed(x.exp() / 2)},
            "jacobian must be that of forward",
        ),
        ({"jacobian": lambda x: x.cosh()}, r"jacobian must have shape \(1, 2, 2\)"),
        ({"jacobian": 3}, "jacobian must be callable"),
    ],
)
def test_what_is_no_problem_is_refused(options, message):
    given_ones = {"forward": torch.sinh, "noise_std": 0.1, "reference": ORIGIN} | options
    with pytest.raises(ValueError, match=message):
        NonlinearProblem(given_ones.pop("forward"), given_ones.pop("noise_std"), **given_ones)


def test_points_without_a_derivative_are_refused():
    kinked = NonlinearProblem(lambda x: x.sign() * x.abs().sqrt(), 0.1, reference=ORIGIN + 1)
    with pytest.raises(ValueError, match="x must hold points where forward is differentiable"):
        kinked.jacobian(torch.zeros(1, 2).double())
    folded = NonlinearProblem(torch.sin, 0.1, reference=ORIGIN)
    fold = torch.tensor([[torch.pi / 2, 0.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="x must hold points where DF is invertible"):
        folded.pullback(fold)
    rough = NonlinearProblem(lambda x: x + x.abs() ** 1.5, 0.1, reference=ORIGIN + 1)
    with pytest.raises(ValueError, match="x must hold points where forward is twice"):
        rough.pullback(0 * fold)
    for call in (folded.apply, folded.jacobian, folded.pullback, folded.mean_normal_data):
        with pytest.raises(ValueError, match="x must have shape"):
            call(torch.zeros(3).double())
    with pytest.raises(ValueError, match="y must have shape"):
        folded.normal_data(torch.zeros(3).double())
    with pytest.raises(ValueError, match="white must have dtype"):
        folded.respond(fold, torch.zeros(1, 2))


def test_what_is_linear_only_says_so():
    prior = GaussianMixture.gaussian(ORIGIN, torch.eye(2).double())
    problem, y = two_layers(), torch.ones(1, 2).double()
    assert isinstance(problem, InverseProblem)
    for call in (posterior, map_estimate):
        with pytest.raises(ValueError, match="problem must be a LinearProblem"):
            call(prior, problem, y)
    with pytest.raises(ValueError, match="problem must be a LinearProblem"):
        posterior_variance(InvertibleResNet.dense(2).double(), problem, y)
