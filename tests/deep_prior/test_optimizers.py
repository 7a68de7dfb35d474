"""The two optimisers against their recursions, their stability bound and torch's habits."""

from __future__ import annotations

import math
import warnings
from functools import partial

import pytest
import torch
from torch import nn

from invbayes import (
    AdaptiveInertia,
    Approximation,
    Inertia,
    InvertibleResNet,
    LinearProblem,
    fresh_samples,
    largest_step,
    train,
)
from invbayes.examples import two_blobs

SPECTRUM = torch.tensor([0.01, 0.1, 0.5, 1.0]).double()


def closure_of(loss, optimizer):
    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


def quadratic(parameters, optimizer, spectrum=SPECTRUM):
    """A closure for L = ½ Σ μ θ², with θ spread over the parameters."""

    def loss():
        theta = torch.cat([p.flatten() for p in parameters])
        return (spectrum * theta**2).sum() / 2

    return closure_of(loss, optimizer)


def two_parameters():
    return [nn.Parameter(torch.ones(1).double()), nn.Parameter(torch.ones(3, 1).double())]


def bumpy(theta):
    return (theta**2).sum() / 2 + torch.cos(2 * theta).sum()


def test_the_three_term_recursion_of_the_paper(generator):
    """θ⁺ = θ + a(θ − θ₋) − aβh(g − g₋) − ah²g, from θ₋ = θ and g₋ = g, to 1e-12."""
    alpha, beta, h = 0.7, 0.4, 0.3
    theta = nn.Parameter(torch.randn(4, generator=generator, dtype=torch.float64))
    optimizer = Inertia([theta], lr=h, damping=alpha, hessian_damping=beta)
    a, old = 1 / (1 + alpha * h), theta.detach().clone()
    now, old_slope = old.clone(), torch.func.grad(bumpy)(old)
    for _ in range(50):
        optimizer.zero_grad()
        bumpy(theta).backward()
        optimizer.step()
        slope = torch.func.grad(bumpy)(now)
        step = a * (now - old) - a * beta * h * (slope - old_slope) - a * h**2 * slope
        old, old_slope, now = now, slope, now + step
        torch.testing.assert_close(theta.detach(), now, atol=1e-12, rtol=0)


def test_the_step_size_may_change_on_the_way():
    """Small steps follow the flow, whatever their sizes: θ = (1 + t) exp(−t) for α = 2."""
    theta = nn.Parameter(torch.ones(1).double())
    optimizer, time = Inertia([theta], lr=1.0, damping=2.0), 0.0
    for n in range(4000):
        optimizer.param_groups[0]["lr"] = h = 1e-4 * (5 + 3 * math.sin(n))
        time += h
        optimizer.step(quadratic([theta], optimizer, torch.ones(1).double()))
    assert theta.item() == pytest.approx((1 + time) * math.exp(-time), abs=1e-3)


def run(optimizer, parameters, steps, spectrum=SPECTRUM):
    closure = quadratic(parameters, optimizer, spectrum)
    for _ in range(steps):
        optimizer.step(closure)
    return torch.cat([p.detach().flatten() for p in parameters])


@pytest.mark.parametrize(("alpha", "beta"), [(0.2, 0.0), (0.1, 0.5), (1.0, 2.0)])
def test_the_stability_bound_is_exact_on_the_linear_model(alpha, beta):
    """One part in 10¹⁰ below the bound the stiff mode decays, above it grows: by the recursion."""
    bound = largest_step(1.0, damping=alpha, hessian_damping=beta)
    factors = []
    for side in (1 - 1e-10, 1 + 1e-10):
        h = bound * side
        a = 1 / (1 + alpha * h)
        product, total = a * (1 - beta * h), 1 + a * (1 - beta * h) - a * h**2
        factors.append(torch.tensor([[total, -product], [1.0, 0.0]], dtype=torch.float64))
    inside, outside = (torch.linalg.eigvals(m).abs().max().item() for m in factors)
    assert inside < 1 < outside
    for share, stable in ((0.99, True), (1.01, False)):
        parameters = two_parameters()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer = Inertia(parameters, share * bound, damping=alpha, hessian_damping=beta)
        size = run(optimizer, parameters, 1500).abs().max()
        assert (size < 1e-2) if stable else (size > 1e2)


def test_a_step_past_the_bound_warns_and_names_it():
    theta = [nn.Parameter(torch.ones(1))]
    bound = largest_step(4.0, damping=0.5, hessian_damping=0.2)
    options = {"damping": 0.5, "hessian_damping": 0.2, "largest_eigenvalue": 4.0}
    with pytest.warns(UserWarning, match=f"stability bound {bound:.4g}") as warned:
        Inertia(theta, bound, **options)
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Inertia(theta, 0.999 * bound, **options)
        Inertia(theta, 2 * bound, damping=0.5)


def test_it_trains_any_network():
    prior, problem = two_blobs(), LinearProblem(torch.eye(2).double(), noise_std=0.1)
    generator = torch.Generator().manual_seed(0)
    record = train(
        InvertibleResNet.dense(2, generator=generator).double(),
        Approximation(problem),
        fresh_samples(prior, problem),
        generator=generator,
        steps=150,
        batch=128,
        optimizer=partial(Inertia, lr=0.3, damping=1.0),
        progress=False,
    )
    assert record.losses[-10:].mean() < 0.2 * record.losses[0]


def test_parameters_without_a_gradient_stay():
    moved, unused = two_parameters()
    optimizer = Inertia([moved, unused], lr=0.1, damping=1.0)
    moved.square().sum().backward()
    assert optimizer.step() is None
    assert unused.detach().eq(1).all()
    assert moved.item() < 1


def test_a_refused_group_is_not_added():
    one, other = two_parameters()
    optimizer = Inertia([one], lr=0.1, damping=1.0)
    for name in ("lr", "damping", "hessian_damping"):
        with pytest.raises(ValueError, match=f"^{name} must"):
            optimizer.add_param_group({"params": [other], name: -1.0})
    assert len(optimizer.param_groups) == 1


def test_sparse_gradients_move_as_dense_ones_do():
    tables = [nn.Embedding(4, 2, sparse=sparse) for sparse in (True, False)]
    tables[1].load_state_dict(tables[0].state_dict())
    for table in tables:
        optimizer = Inertia(table.parameters(), 0.3, damping=1.0, hessian_damping=0.2)
        for n in range(5):
            loss = closure_of(lambda t=table, n=n: t(torch.tensor([1, n % 2])).sum(), optimizer)
            optimizer.step(loss)
    torch.testing.assert_close(tables[0].weight, tables[1].weight)


def test_parameter_groups_have_their_own_options():
    slow, fast = two_parameters()[:1], two_parameters()[:1]
    optimizer = Inertia([{"params": slow, "lr": 0.1}, {"params": fast}], lr=0.5, damping=1.0)
    for group in (slow, fast):
        group[0].square().sum().backward()
    optimizer.step()
    assert 1 - slow[0].item() == pytest.approx(0.1**2 * 2 / 1.1)
    assert 1 - fast[0].item() == pytest.approx(0.5**2 * 2 / 1.5)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: Inertia(p, lr=0.7, damping=0.3, hessian_damping=0.2),
        lambda p: AdaptiveInertia(p, damping=0.3, hessian_damping=0.2, curvature=0.1),
    ],
)
def test_a_saved_state_goes_on_where_it_was(make):
    parameters = two_parameters()
    optimizer = make(parameters)
    run(optimizer, parameters, 7)
    copies = [nn.Parameter(p.detach().clone()) for p in parameters]
    other = make(copies)
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(run(optimizer, parameters, 5), run(other, copies, 5))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda p: Inertia(p, lr=0.0, damping=1.0), "lr"),
        (lambda p: Inertia(p, lr=1.0, damping=-1.0), "damping"),
        (lambda p: Inertia(p, lr=1.0, damping=1.0, hessian_damping=-1.0), "hessian_damping"),
        (lambda p: Inertia(p, lr=1.0, damping=1.0, largest_eigenvalue=0.0), "largest_eigenvalue"),
        (lambda p: Inertia([{"params": p, "lr": -1.0}], lr=1.0, damping=1.0), "lr"),
    ],
)
def test_bad_input_names_the_argument(make, name):
    with pytest.raises(ValueError, match=f"^{name} must"):
        make(two_parameters())
