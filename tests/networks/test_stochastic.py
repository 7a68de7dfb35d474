"""Random divergence and log-determinant against the exact ones, by z-score."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from invbayes.networks.iresnet import InvertibleResNet
from invbayes.networks.stochastic import hutchinson_divergence, log_det_series, truncation_bound
from tests.conftest import assert_mean_close

L = 0.8


@pytest.fixture
def block():
    net = InvertibleResNet.dense(
        4, (8, 8), lipschitz=L, learn_scale=False, generator=torch.Generator().manual_seed(2)
    )
    return net.double()


@pytest.fixture
def x(generator):
    return torch.randn(5, 4, generator=generator, dtype=torch.float64)


def contraction(net):
    return lambda x: L * net.blocks[0](x)


def test_hutchinson_is_unbiased(block, x, generator):
    many = x.repeat(4000, 1)
    samples = hutchinson_divergence(block, many, probes=3, generator=generator)
    assert_mean_close(samples.reshape(4000, 5), block.divergence(x))


def test_more_probes_have_less_variance(block, x, generator):
    many = x[:1].repeat(20_000, 1)
    one, four = (
        hutchinson_divergence(block, many, probes=p, generator=generator).var() for p in (1, 4)
    )
    assert (one / four).item() == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("terms", [1, 2, 5])
def test_the_series_is_within_its_truncation_bound(terms, block, x, generator):
    many = x.repeat(4000, 1)
    estimate = log_det_series(
        contraction(block), many, lipschitz=L, terms=terms, generator=generator
    )
    samples = estimate.value.detach().reshape(4000, 5)
    jacobian = torch.eye(4).double() - block.jacobian(x)
    powers = [torch.linalg.matrix_power(jacobian, k) for k in range(1, terms + 1)]
    cut = -sum(p.diagonal(dim1=1, dim2=2).sum(1) / k for k, p in enumerate(powers, 1))
    assert_mean_close(samples, cut.detach())
    assert estimate.bias_bound == truncation_bound(4, L, terms)
    assert ((cut - block.log_abs_det(x)).abs() <= estimate.bias_bound).all()


def test_the_truncation_bound_is_attained_by_the_identity():
    """For f = L·Id the series misses close to the bound, so the bound is not idle."""
    terms = 30
    missed = sum(L**k / k for k in range(terms + 1, 500))
    assert 0.8 < missed / truncation_bound(1, L, terms) <= 1


def test_roulette_is_unbiased(generator):
    """For f = L·Id on the line every probe is exact, and only the roulette is random."""
    x = torch.zeros(1, 1, dtype=torch.float64)
    draws = [
        log_det_series(
            lambda x: L * x, x, lipschitz=L, terms=1, roulette=0.75, generator=generator
        ).value.detach()
        for _ in range(3000)
    ]
    assert_mean_close(torch.stack(draws), torch.tensor([1 - L], dtype=torch.float64).log())


@pytest.mark.parametrize("which", ["divergence", "log_det"])
def test_weights_of_the_points_reach_the_gradient(which, block, x, generator):
    """A weighted loss: the expected gradient is the weighted exact one."""
    weights = torch.tensor([3.0, 0.0, -1.0, 0.5, 2.0], dtype=torch.float64)
    parameter = block.blocks[0].layers[0].bias

    def gradient(loss):
        return torch.autograd.grad(loss, parameter)[0]

    def estimate(x):
        if which == "divergence":
            return hutchinson_divergence(block, x, generator=generator)
        return log_det_series(
            contraction(block), x, lipschitz=L, terms=25, generator=generator
        ).value

    exact = block.divergence(x) if which == "divergence" else block.log_abs_det(x)
    many, shares = x.repeat(20, 1), weights.repeat(20) / 20
    samples = torch.stack([gradient((shares * estimate(many)).sum()) for _ in range(40)])
    assert_mean_close(samples, gradient((weights * exact).sum()))


def test_a_network_of_blocks_sums_them(x, generator):
    net = InvertibleResNet.dense(
        4, (8, 8), blocks=3, lipschitz=0.5, scale=1.4, generator=torch.Generator().manual_seed(4)
    ).double()
    many = x.repeat(3000, 1)
    estimate = net.estimate_log_abs_det(many, terms=40, generator=generator)
    assert estimate.bias_bound == pytest.approx(3 * truncation_bound(4, 0.5, 40))
    assert_mean_close(estimate.value.detach().reshape(3000, 5), net.log_abs_det(x).detach())


def test_the_generator_fixes_the_probes(block, x):
    first, again = (
        hutchinson_divergence(block, x, generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lipschitz": 1.0}, r"lipschitz must lie in \(0, 1\)"),
        ({"terms": 0}, "terms must be a positive int"),
        ({"probes": 0}, "probes must be a positive int"),
        ({"roulette": 1.0}, "roulette must lie between lipschitz squared, 0.64, and 1, got 1"),
        ({"roulette": 0.5}, "roulette must lie between lipschitz squared, 0.64, and 1, got 0.5"),
    ],
)
def test_bad_input_is_named(options, message, block, x):
    with pytest.raises(ValueError, match=message):
        log_det_series(contraction(block), x, **{"lipschitz": L, "terms": 3, **options})


def test_a_batch_of_two_axes_is_named(block):
    with pytest.raises(ValueError, match=r"x must have shape \(n, 4\), got \(2, 3, 4\)"):
        block.estimate_log_abs_det(torch.zeros(2, 3, 4, dtype=torch.float64), terms=3)


def test_a_bound_that_f_breaks_is_refused(generator):
    x = torch.zeros(3, 2, dtype=torch.float64)
    for stretch, bound, told in ((0.9, 0.5, True), (5.0, 0.9, True), (0.5, 0.5, False)):
        call = partial(log_det_series, lambda p: stretch * p, x, lipschitz=bound, terms=3)  # noqa: B023
        if told:
            with pytest.raises(
                ValueError, match=f"lipschitz must bound .*stretched by {stretch:g}"
            ):
                call(generator=generator)
        else:
            assert call(generator=generator).bias_bound == truncation_bound(2, 0.5, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0.5, 3), "dim must be a positive int, got -1"),
        ((2, 1.0, 3), r"lipschitz must lie in \(0, 1\), got 1.0"),
        ((2, 2.0, 3), r"lipschitz must lie in \(0, 1\), got 2.0"),
        ((2, 0.5, -2), "terms must be a positive int, got -2"),
        ((2, float("nan"), 2), r"lipschitz must lie in \(0, 1\), got nan"),
    ],
)
def test_a_bad_bound_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        truncation_bound(*arguments)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([1.0], "x must be a floating-point tensor, got list"),
        (torch.zeros(2, 2) * 1j, "x must be a floating-point tensor, got torch.complex64"),
        (torch.zeros(2, 2, dtype=torch.int64), "x must be a floating-point tensor"),
        (torch.full((2, 2), torch.inf), "x must be finite"),
        (torch.zeros(2), r"x must have shape \(n, d\) with d > 0, got \(2,\)"),
        (torch.zeros(2, 0), r"x must have shape \(n, d\) with d > 0"),
    ],
)
def test_bad_points_of_an_estimate_are_named(x, message):
    with pytest.raises(ValueError, match=message):
        hutchinson_divergence(lambda p: p, x)
    with pytest.raises(ValueError, match=message):
        log_det_series(lambda p: p / 2, x, lipschitz=0.5, terms=1)


@pytest.mark.parametrize("f", [lambda p: p[:, :1], lambda p: p.detach(), lambda _: 1.0])
def test_a_map_that_does_not_fit_is_named(f):
    with pytest.raises(ValueError, match=r"f must map \(3, 2\) to the same shape, differentiably"):
        hutchinson_divergence(f, torch.zeros(3, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("slope", [0.3, 0.5, 0.47])
def test_powers_too_small_for_the_dtype_accuse_no_bound(slope, dtype):
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=dtype)
    x, wanted = torch.zeros(1, 2, dtype=dtype), 1 - 2 * slope * 0.6 + slope**2
    for terms in (50, 100, 150, 1000):
        found = log_det_series(lambda x: slope * x @ turn, x, lipschitz=slope, terms=terms)
        assert found.value.exp().item() == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(ValueError, match="lipschitz must bound"):
        log_det_series(lambda x: slope * x @ turn, x, lipschitz=slope - 1e-3, terms=100)
    with pytest.raises(ValueError, match="lipschitz must bound"):  # NaN is not small
        log_det_series(lambda x: x * torch.nan, x, lipschitz=slope, terms=3)


def test_the_roulette_draws_where_its_generator_lives(monkeypatch, generator):
    asked, rand = [], torch.rand

    def recorded(*size, device="elsewhere", **options):
        asked.append(device)
        return rand(*size, device=device, **options)

    monkeypatch.setattr(torch, "rand", recorded)
    options = {"lipschitz": 0.5, "terms": 2, "roulette": 0.6, "generator": generator}
    log_det_series(lambda x: 0.5 * x, torch.zeros(1, 1), **options)
    assert set(asked) == {generator.device}
