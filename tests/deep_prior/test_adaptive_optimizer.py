"""The adaptive step: its rules, what rounding does to it, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from invbayes import AdaptiveInertia, NotConverged
from tests.deep_prior.test_optimizers import SPECTRUM, closure_of, quadratic, two_parameters


def test_the_adaptive_step_obeys_its_rules():
    """Λ(h² + 2βh) = 2 + αh; refusals double Λ; Λ never passes twice the true curvature."""
    parameters, alpha, beta = two_parameters(), 0.4, 0.3
    optimizer = AdaptiveInertia(parameters, damping=alpha, hessian_damping=beta, curvature=1e-3)
    closure = quadratic(parameters, optimizer)
    group = optimizer.param_groups[0]
    for _ in range(200):
        before, calls = group["curvature"], max(optimizer.evaluations, 1)
        theta = torch.cat([p.detach().flatten() for p in parameters])
        w = optimizer.state[parameters[0]].get("w", beta * SPECTRUM * theta)
        optimizer.step(closure)
        used = group["curvature"] / 0.98
        refusals = optimizer.evaluations - calls - 1
        assert used == pytest.approx(before * 2**refusals)
        assert used <= 2
        roots = torch.tensor([used, 2 * beta * used - alpha, -2.0], dtype=torch.float64)
        h = ((-roots[1] + (roots[1] ** 2 - 4 * roots[0] * roots[2]).sqrt()) / (2 * used)).item()
        slope = SPECTRUM * theta
        w = (w + h * (alpha * beta - 1) * slope) / (1 + alpha * h)
        moved = torch.cat([p.detach().flatten() for p in parameters])
        torch.testing.assert_close(moved, theta + h * (w - beta * slope), atol=1e-12, rtol=0)
    assert moved.abs().max() < 1e-4


def test_the_adaptive_step_evaluates_anew_when_the_parameters_were_changed():
    parameters = two_parameters()
    optimizer = AdaptiveInertia(parameters, damping=1.0)
    closure = quadratic(parameters, optimizer)
    optimizer.step(closure)
    with torch.no_grad():
        parameters[0].fill_(3.0)
    expected = closure().item()
    assert optimizer.step(closure).item() == pytest.approx(expected)


@pytest.mark.parametrize("shift", [0.0, -1000.0])
def test_rounding_of_the_loss_does_not_shrink_the_step(generator, shift):
    """Least squares with a minimum that is not zero: there the losses differ by rounding only."""
    matrix = torch.randn(30, 20, generator=generator, dtype=torch.float64) / 5
    theta, data = nn.Parameter(torch.zeros(20).double()), torch.ones(30).double()
    optimizer = AdaptiveInertia([theta], damping=1.0)
    closure = closure_of(lambda: (matrix @ theta - data).square().sum() / 2 + shift, optimizer)
    for _ in range(1000):
        optimizer.step(closure)
    best = torch.linalg.lstsq(matrix, data[:, None]).solution[:, 0]
    torch.testing.assert_close(theta.detach(), best, atol=1e-7, rtol=0)
    largest = torch.linalg.matrix_norm(matrix, 2).item() ** 2
    assert optimizer.param_groups[0]["curvature"] <= 2 * largest


def test_underflow_of_the_loss_does_not_shrink_the_step():
    theta = nn.Parameter(torch.full((2,), 1e-18))
    optimizer = AdaptiveInertia([theta], damping=1.0)
    for _ in range(100):
        optimizer.step(closure_of(lambda: theta.square().sum(), optimizer))
    assert optimizer.param_groups[0]["curvature"] <= 4


def test_a_small_step_is_refused_as_often_as_it_takes():
    theta = nn.Parameter(torch.tensor([1 + 1e-12], dtype=torch.float64))
    optimizer = AdaptiveInertia([theta], damping=1.0)
    optimizer.step(closure_of(lambda: 1e3 * (theta - 1).square().sum(), optimizer))
    assert optimizer.evaluations > 3
    assert optimizer.param_groups[0]["curvature"] > 500


def test_the_adaptive_step_leaves_parameters_without_a_gradient():
    """Also when they are much larger than those that still move."""
    moved, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = AdaptiveInertia([unused, moved], damping=1.0)
    for _ in range(200):
        optimizer.step(closure_of(lambda: moved.square().sum(), optimizer))
    assert unused.detach().eq(1).all()
    assert moved.abs().max() < 1e-10


def test_the_adaptive_step_moves_parameters_in_place():
    """Their storage, dtype and memory layout stay."""
    single = nn.Parameter(torch.ones(2))
    turned = nn.Parameter(torch.ones(3, 2).double().T)
    places = [p.data_ptr() for p in (single, turned)]
    optimizer = AdaptiveInertia([single, turned], damping=1.0)
    for _ in range(20):
        optimizer.step(closure_of(lambda: single.square().sum() + turned.square().sum(), optimizer))
    assert single.dtype == torch.float32
    assert turned.stride() == (1, 2)
    assert [p.data_ptr() for p in (single, turned)] == places
    assert max(single.abs().max(), turned.abs().max()) < 0.5


def test_a_refused_step_does_not_freeze_what_follows():
    theta, broken = nn.Parameter(torch.ones(2).double()), False
    optimizer = AdaptiveInertia([theta], damping=1.0)
    closure = closure_of(lambda: theta.square().sum() / (0 if broken else 2), optimizer)
    for _ in range(3):
        optimizer.step(closure)
    curvature, broken = optimizer.param_groups[0]["curvature"], True
    with pytest.raises(NotConverged):
        optimizer.step(closure)
    assert optimizer.param_groups[0]["curvature"] == curvature
    broken = False
    before = theta.norm().item()
    for _ in range(10):
        optimizer.step(closure)
    assert theta.norm() < before / 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_in_the_closure_leaves_parameters_and_curvature(error):
    """The first trials are far too long, and each doubles Λ; then the kernel is interrupted."""
    theta, calls = nn.Parameter(torch.ones(2).double()), []
    optimizer = AdaptiveInertia([theta], damping=1.0, curvature=1e-6)
    squares = closure_of(lambda: theta.square().sum() / 2, optimizer)

    def closure():
        calls.append(theta.detach().abs().max().item())
        if len(calls) == 4:
            raise error
        return squares()

    with pytest.raises(error):
        optimizer.step(closure)
    assert calls[3] > 100
    assert theta.detach().eq(1).all()
    assert optimizer.param_groups[0]["curvature"] == 1e-6


def test_sparse_gradients_are_refused():
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = AdaptiveInertia(table.parameters(), damping=1.0)
    with pytest.raises(ValueError, match=r"^params must have dense gradients"):
        optimizer.step(closure_of(lambda: table(torch.tensor([1])).square().sum(), optimizer))


def test_evaluations_are_counted_from_zero_and_the_first_curvature_is_the_callers():
    theta, first = nn.Parameter(torch.ones(2).double()), torch.tensor(0.01)
    optimizer = AdaptiveInertia([theta], damping=1.0, curvature=first)
    assert optimizer.evaluations == 0
    optimizer.step(quadratic([theta], optimizer, torch.ones(2).double()))
    assert first == 0.01
    # 0.01, 0.02, … 1.28 are tried, after the one evaluation at the start.
    assert optimizer.param_groups[0]["curvature"] == pytest.approx(0.98 * 1.28)
    assert optimizer.evaluations == 9


def test_the_adaptive_step_takes_a_single_group():
    optimizer = AdaptiveInertia(two_parameters()[:1], damping=1.0)
    with pytest.raises(ValueError, match=r"^params must be a single group"):
        optimizer.add_param_group({"params": two_parameters()[1:]})


@pytest.mark.parametrize("factor", [-1.0, float("nan")])
def test_a_wrong_gradient_raises_and_leaves_the_parameters(factor):
    theta = nn.Parameter(torch.ones(2).double())
    optimizer = AdaptiveInertia([theta], damping=1.0)

    def closure():
        theta.grad = factor * theta.detach()
        return theta.square().sum() / 2

    with pytest.raises(NotConverged, match="adaptive step was refused"):
        optimizer.step(closure)
    assert theta.detach().eq(1).all()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"damping": -1.0}, "damping"),
        ({"hessian_damping": -1.0}, "hessian_damping"),
        ({"curvature": 0.0}, "curvature"),
    ],
)
def test_bad_input_names_the_argument(options, name):
    with pytest.raises(ValueError, match=f"^{name} must"):
        AdaptiveInertia(two_parameters(), **{"damping": 1.0, **options})
