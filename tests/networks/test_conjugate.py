"""Conjugate gradients for a batch, each row with its own matrix."""

from __future__ import annotations

import pytest
import torch

from invbayes.networks.conjugate import conjugate_gradients

DOUBLE = torch.float64


def systems(generator, low=0.5):
    """Three symmetric matrices with eigenvalues from ``low`` to four, and right-hand sides."""
    axes = torch.linalg.qr(torch.randn(3, 8, 8, generator=generator, dtype=DOUBLE))[0]
    matrices = axes @ torch.diag(torch.linspace(low, 4, 8).double()) @ axes.mT
    return matrices, torch.randn(3, 8, generator=generator, dtype=DOUBLE)


def counted(matrices):
    calls = []

    def product(v):
        calls.append(v)
        return (matrices @ v[..., None])[..., 0]

    return product, calls


def test_every_row_is_solved_in_as_many_steps_as_there_are_unknowns(generator):
    matrices, right = systems(generator)
    product, calls = counted(matrices)
    found = conjugate_gradients(product, right, reduction=1e-12, most=100)
    torch.testing.assert_close(found, torch.linalg.solve(matrices, right))
    assert len(calls) <= 9


@pytest.mark.parametrize("reduction", [0.3, 1e-3])
def test_each_residual_falls_by_the_factor_and_not_much_further(reduction, generator):
    matrices, right = systems(generator)
    right = right * torch.tensor([[1.0], [1e-6], [1e6]]).double()
    product, calls = counted(matrices)
    found = conjugate_gradients(product, right, reduction=reduction, most=100)
    left = (right - product(found)).norm(dim=1) / right.norm(dim=1)
    assert (left <= reduction * (1 + 1e-9)).all()
    assert len(calls) <= 1 + 8  # one is the test's own


def test_the_best_point_of_few_products_is_returned(generator):
    """With one product it is the best multiple of the right-hand side in the energy."""
    matrices, right = systems(generator)
    product, _ = counted(matrices)
    found = conjugate_gradients(product, right, reduction=1e-9, most=1)
    length = right.square().sum(1) / (right * product(right)).sum(1)
    torch.testing.assert_close(found, length[:, None] * right)


def test_where_a_direction_curves_down_the_step_still_leads_down(generator):
    matrices, right = systems(generator, low=-2.0)
    matrices[1] = -torch.eye(8)
    matrices[2] = torch.eye(8)
    product, _ = counted(matrices)
    found = conjugate_gradients(product, right, reduction=1e-9, most=50)
    assert (found * right).sum(1).min() > 0
    assert torch.equal(found[1], right[1])
    torch.testing.assert_close(found[2], right[2])
    assert torch.isfinite(found).all()


def test_nothing_to_solve_gives_zero():
    right = torch.zeros(2, 3, dtype=DOUBLE)
    found = conjugate_gradients(lambda v: v, right, reduction=0.1, most=5)
    assert torch.equal(found, right)
