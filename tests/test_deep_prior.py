"""The network of a deep prior, by automatic differentiation and in the mean."""

from __future__ import annotations

import pytest
import torch

from invbayes import DeepPrior
from tests.conftest import assert_mean_close


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def decoder(seed=5):
    return torch.randn(6, 3, generator=seeded(seed), dtype=torch.float64)


EVERY_KIND = pytest.mark.parametrize(
    "options",
    [{}, {"input_dim": 5}, {"decoder": decoder()}, {"zero_start": True, "input_dim": 2}],
    ids=["plain", "input", "decoder", "zero start"],
)


def jacobian(net):
    """∂_W g by reverse mode, shape (d, k p)."""
    full = torch.autograd.functional.jacobian(net.output, net.weight.detach())
    return full.reshape(net.dim, -1)


@EVERY_KIND
def test_the_formula_and_the_kernel(options):
    net = DeepPrior(6, 8, generator=seeded(0), **options)
    hidden = torch.tanh(net.weight @ net.input)
    value = net.output_weight @ hidden
    if "decoder" in options:
        value = decoder() @ value
    torch.testing.assert_close(net(), value)
    assert net.input.norm().item() == pytest.approx(1)
    torch.testing.assert_close(net.kernel(), jacobian(net) @ jacobian(net).mT)
    assert not net.kernel().requires_grad


@EVERY_KIND
def test_the_kernel_has_its_limit_as_mean(options):
    kernels = torch.stack(
        [DeepPrior(6, 8, generator=seeded(n), **options).kernel() for n in range(2000)]
    )
    limit = DeepPrior(6, 8, generator=seeded(0), **options).limit_kernel()
    root = options.get("decoder", torch.eye(6).double())
    torch.testing.assert_close(limit, root @ root.mT)
    assert_mean_close(kernels, limit)


def test_a_wide_kernel_is_close_to_its_limit():
    """Independent terms: the mean square of an entry's error is at most 3 E tanh'⁴ / (k c²)."""
    net = DeepPrior(6, 40_000, generator=seeded(0))
    error = (net.kernel() - torch.eye(6).double()).square().mean().sqrt()
    assert 0.3 / 200 < error < 3 / 200


def test_the_zero_start_vanishes_and_keeps_its_kernel():
    net = DeepPrior(6, 8, zero_start=True, input_dim=2, generator=seeded(0))
    assert net().abs().max() <= 1e-15
    assert net.kernel().trace() > 0.1


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"dim": 0}, "dim"),
        ({"width": 2.5}, "width"),
        ({"width": 7, "zero_start": True}, "width"),
        ({"input_dim": -1}, "input_dim"),
        ({"decoder": torch.ones(5, 3)}, "decoder"),
        ({"decoder": torch.ones(6)}, "decoder"),
        ({"decoder": torch.ones(6, 0)}, "decoder"),
        ({"decoder": torch.ones(6, 3) * torch.nan}, "decoder"),
    ],
)
def test_bad_sizes_name_the_argument(options, name):
    with pytest.raises(ValueError, match=f"^{name} must"):
        DeepPrior(**{"dim": 6, "width": 8, **options})


def test_the_decoder_is_a_copy():
    own = decoder()
    net = DeepPrior(6, 8, decoder=own.requires_grad_(), generator=seeded(0))
    before = net.kernel()
    own.detach().zero_()
    assert torch.equal(net.kernel(), before)
    assert not before.requires_grad
