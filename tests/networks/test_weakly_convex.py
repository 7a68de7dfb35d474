"""The weakly convex ridge block: what it has beyond what it shares with the ridge block.

Value, Jacobian, divergence, bound and potential are tested with those of the ridge block.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invbayes import InvertibleResNet, LearnedPosterior, LinearProblem, WeaklyConvexRidge

DOUBLE = torch.float64


def one_answer(share):
    """A weakly convex block on the line with w = 1, b = 0 and s = 2."""
    block = WeaklyConvexRidge((1,), 1, share=share, sharpness=2.0).double()
    with torch.no_grad():
        block.raw.fill_(1.0)
    return block


def test_the_range_of_the_weakly_convex_slopes_is_used():
    """For a share near one σ' is 31/32 at zero, and near −1/32 where the rise is over."""
    x = torch.tensor([[0.0], [6.0]], dtype=DOUBLE)
    slopes = one_answer(1 - 1e-6).with_jacobian(x)[1].flatten()
    assert slopes[0].item() == pytest.approx((31 - 64 * 31 / 32) / 33, abs=1e-5)
    assert 0.97 < slopes[1].item() < 1


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_the_weakly_convex_penalty_keeps_its_digits_and_ends_at_its_limit(share):
    """S(b) is (1 − ρ) b²/2 for small b, and (1 − ρ) / (ρ s²) for large ones."""
    x = torch.tensor([[1e-7], [1e7]], dtype=DOUBLE)
    pace = share / 32
    small, large = (31 / 66 * x.square().sum(1) - one_answer(share).potential(x)) * 33 / 64
    assert small.item() == pytest.approx((1 - pace) * 0.5e-14, rel=1e-6)
    assert large.item() == pytest.approx((1 / pace - 1) / 4, rel=0.02)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_weakly_convex_profile_is_highest_near_the_cube_root_and_falls_to_three_tenths(share):
    """σ' = 0 at (s b)² = (ρ^{-2/3} − 1) / (1 − ρ^{4/3}), about ρ^{-2/3}."""
    pace = share / 32
    top = ((pace ** (-2 / 3) - 1) / (1 - pace ** (4 / 3))) ** 0.5
    x = torch.tensor([[top / 2], [1 / (2 * pace)]], dtype=DOUBLE)
    value, jacobian = one_answer(share).with_jacobian(x)
    assert jacobian[0].item() == pytest.approx(31 / 33, abs=1e-6)
    assert top == pytest.approx(pace ** (-1 / 3), rel=0.05)
    height, left = ((31 * x - 33 * value) / 64).flatten()
    assert 0.28 < left / height < 0.35


@given(seed=st.integers(0, 10_000), size=st.floats(0.1, 30))
@settings(max_examples=40, deadline=None)
def test_with_its_scale_the_weakly_convex_energy_is_bounded_below_for_every_operator(seed, size):
    """φ(x) = x + ∇R(x) with R ≥ 0, and R is all that is left where the operator sees nothing."""
    generator = torch.Generator().manual_seed(seed)
    block = WeaklyConvexRidge((1, None, None), 4, 3, generator=generator)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    net = InvertibleResNet(block, lipschitz=0.98, scale=1 / (1 - 0.98 * 31 / 33)).double()
    x = size * torch.randn(3, 1, 6, 5, generator=generator, dtype=DOUBLE)
    penalty = net.potential(x) - x.square().flatten(1).sum(1) / 2
    assert (penalty >= 0).all()
    blind = LinearProblem(torch.zeros_like, 1.0, shape=(1, 6, 5), dtype=DOUBLE)
    learned = LearnedPosterior(net, blind, trained_at=1.0)
    z = torch.zeros_like(x)
    found = learned.energy(x, z, origin=torch.zeros_like(x[0]))
    start = net.potential(torch.zeros_like(x[:1]))
    torch.testing.assert_close(found, penalty - start)
