"""The network of a deep prior, by automatic differentiation and in the mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad

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
def test_the_adjoint_of_the_derivative(options):
    net = DeepPrior(6, 8, generator=seeded(0), **options)
    weights = torch.randn(3, *net.weight.shape, generator=seeded(1), dtype=torch.float64)
    directions = torch.randn(3, 6, generator=seeded(2), dtype=torch.float64)
    _, pull = torch.func.vjp(net.output, weights)
    torch.testing.assert_close(net.pull_back(weights, directions), pull(directions)[0])
    one = net.pull_back(weights[0], directions)
    assert one.shape == weights.shape
    torch.testing.assert_close(one[0], net.pull_back(weights[0], directions[0]))
    each = torch.func.vmap(net.pull_back)(weights, directions)
    torch.testing.assert_close(each, net.pull_back(weights, directions))
    torch.testing.assert_close(torch.func.vmap(net.output)(weights), net.output(weights))


@pytest.mark.parametrize("zero_start", [True, False])
def test_the_start_is_drawn_in_order(zero_start):
    """u, V, W, of any dtype; V with the variance 1 / E tanh'², by another quadrature."""
    source, units = seeded(3), 4 if zero_start else 8
    u, v, w = (torch.randn(s, generator=source) for s in [(2,), (6, units), (units, 2)])
    density = lambda t: np.exp(-(t**2) / 2) / np.sqrt(2 * np.pi) / np.cosh(t) ** 4  # noqa: E731
    v = v / quad(density, -30, 30)[0] ** 0.5 / 8**0.5
    if zero_start:
        v, w = torch.cat([v, -v], 1), torch.cat([w, w])
    options = {"input_dim": 2, "zero_start": zero_start, "dtype": torch.float32}
    net = DeepPrior(6, 8, **options, generator=seeded(3))
    torch.testing.assert_close(net.input, u / u.norm())
    torch.testing.assert_close(net.output_weight, v)
    torch.testing.assert_close(net.weight.detach(), w)
    assert (net.dim, net.width) == (6, 8)


def test_the_decoder_takes_the_dtype_of_the_network():
    net = DeepPrior(6, 8, decoder=decoder().float(), generator=seeded(0))
    assert net.decoder.dtype == net().dtype == net.limit_kernel().dtype == torch.float64


def test_nan_is_passed_on():
    net = DeepPrior(6, 8, generator=seeded(0))
    broken = torch.full_like(net.weight, torch.nan)
    assert net.output(broken).isnan().all()
    assert net.pull_back(broken, torch.ones(6).double()).isnan().all()


@pytest.mark.parametrize(
    "weight",
    [None, np.ones((8, 1)), torch.ones(8, 1), torch.ones(8).double(), torch.ones(1, 8).double()],
)
def test_another_weight_is_refused(weight):
    net = DeepPrior(6, 8, generator=seeded(0))
    for call in net.output, lambda w: net.pull_back(w, torch.ones(6).double()):
        with pytest.raises(ValueError, match=r"^weight must"):
            call(weight)
    for direction in weight, torch.ones(3, 5).double():
        with pytest.raises(ValueError, match=r"^direction must"):
            net.pull_back(net.weight, direction)


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


def test_a_paired_network_has_the_kernel_of_its_half():
    """To the unit, when drawn from the same source; so in mean, variance and law."""
    for seed in range(20):
        paired = DeepPrior(6, 8, zero_start=True, input_dim=2, generator=seeded(seed))
        half = DeepPrior(6, 4, input_dim=2, generator=seeded(seed))
        torch.testing.assert_close(paired.kernel(), half.kernel(), rtol=1e-13, atol=1e-14)
        assert half().norm() > 0.01 > paired().norm()


@pytest.mark.parametrize(("zero_start", "units"), [(False, 8), (True, 4)])
def test_the_variance_of_the_kernel_is_that_of_one_unit_over_their_number(zero_start, units):
    """For D = I one unit's is 3 E t⁴ / c² − 1 on the diagonal, and E t⁴ / c² off it."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    slopes, weights = 1 / np.cosh(nodes) ** 2, weights / weights.sum()
    fourth = weights @ slopes**4 / (weights @ slopes**2) ** 2
    options = {"dim": 10, "width": 8, "zero_start": zero_start}
    kernels = torch.stack([DeepPrior(**options, generator=seeded(n)).kernel() for n in range(2000)])
    squares = (kernels - torch.eye(10)) ** 2
    on = squares.diagonal(dim1=1, dim2=2).mean(1)
    off = (squares.sum((1, 2)) - 10 * on) / 90
    expected = torch.tensor([3 * fourth - 1, fourth]) / units
    assert_mean_close(torch.stack([on, off], 1), expected)


def test_the_error_in_a_subspace_is_bounded_and_the_bound_is_attained(generator):
    """With the truth in T, by a residual or by noise along the weakest direction of AT."""
    operator = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(decoder()).Q
    u, values, v = torch.linalg.svd(operator @ basis, full_matrices=False)
    net = DeepPrior(6, 40, decoder=basis, generator=generator)
    weights = torch.randn(1000, 40, 1, generator=generator, dtype=torch.float64)
    inside = basis @ torch.randn(3, generator=generator, dtype=torch.float64)
    outside = torch.randn(6, generator=generator, dtype=torch.float64)
    noise = torch.randn(5, generator=generator, dtype=torch.float64)

    def slack(x, truth, noise):
        y = operator @ truth + noise
        distance = (truth - basis @ (basis.mT @ truth)).norm()
        residual = ((x @ operator.mT - y) @ u).norm(dim=-1)
        norm = torch.linalg.matrix_norm(operator, 2)
        seen = (noise @ u).norm()  # what the noise has in AT
        bound = distance + (norm * distance + seen + residual) / values[-1]
        return bound - (x - truth).norm(dim=-1)

    x = net.output(weights).detach()
    for truth, size in [(inside, 0.0), (inside, 0.1), (outside, 0.1)]:
        assert (slack(x, truth, size * noise) >= 0).all()
    weakest = basis @ v[-1]
    assert slack(inside + weakest, inside, 0 * noise).abs() < 1e-12
    assert slack(inside + weakest, inside, values[-1] * u[:, -1]).abs() < 1e-12


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"dim": 0}, "dim"),
        ({"width": 2.5}, "width"),
        ({"width": 7, "zero_start": True}, "width"),
        ({"input_dim": -1}, "input_dim"),
        ({"width": 10**30}, "width"),
        ({"zero_start": "no"}, "zero_start"),
        ({"dtype": torch.complex128}, "dtype"),
        ({"dtype": "float64"}, "dtype"),
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
