"""The linear model at the ends: overflow, shapes and precisions, kernels that are no kernels."""

from __future__ import annotations

import math

import pytest
import torch

from invbayes import (
    amplification,
    decay_rate,
    largest_step,
    linearised_gradient_flow,
    linearised_inertia,
    mode_roots,
    optimal_damping,
)

ONE = torch.ones(1)
ONE_ONE = torch.ones(2).double()


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_roots_and_rates_do_not_overflow():
    """For a strong damping the slow root is −μ/α; without one the roots are ±i√μ."""
    roots = mode_roots(double(1.0, 1e308), damping=1e200)
    expected = double(-1e-200, -1e200, -1e108, -1e200).reshape(2, 2)
    torch.testing.assert_close(roots, expected + 0j, atol=0, rtol=1e-12)
    assert decay_rate(double(1.0, 4.0), damping=1e200) == pytest.approx(1e-200)
    swing = mode_roots(double(1e300), damping=0.0)[0]
    torch.testing.assert_close(swing, double(1e150, -1e150) * 1j)
    bent = mode_roots(double(1.0), damping=0.0, hessian_damping=1e200)[0]
    torch.testing.assert_close(bent, double(-1e-200, -1e200) + 0j, atol=0, rtol=1e-12)


def test_roots_have_the_shape_and_the_precision_of_the_eigenvalues():
    roots = mode_roots(torch.rand(2, 3) + 0.1, damping=0.5)
    assert roots.shape == (2, 3, 2)
    assert roots.dtype == torch.complex64
    factors = amplification(torch.rand(2, 3) + 0.1, step=0.1, damping=0.5)
    assert factors.shape == (2, 3)
    assert factors.dtype == torch.float32


def test_the_amplification_of_an_extreme_step():
    """A long step multiplies by h μ / α, a short one by one; nothing is NaN."""
    long = amplification(double(1.0, 1e-3), step=1e200, damping=2.0)
    torch.testing.assert_close(long, double(5e199, 5e196))
    assert amplification(double(1.0), step=1e-300, damping=1.0).item() == 1
    extremes = [1e-300, 1e-30, 1.0, 1e30, 1e300]
    mu = double(*extremes)
    for h in extremes:
        for alpha in [0.0, *extremes]:
            for beta in [0.0, *extremes]:
                for spectrum in mu, mu[1:4].float():
                    options = {"step": h, "damping": alpha, "hessian_damping": beta}
                    assert not amplification(spectrum, **options).isnan().any()


def test_scalars_may_be_tensors_and_give_floats():
    assert type(optimal_damping(torch.tensor(0.25))) is float
    assert type(largest_step(torch.tensor(0.25), damping=1.0)) is float
    assert largest_step(5e-324, damping=0.0) == pytest.approx(2 / math.sqrt(5e-324))


def test_a_strong_damping_keeps_the_residual_where_it_is():
    place, energy = linearised_inertia(double(1.0)[None], double(2.0), double(1.0), damping=1e200)
    assert (place.item(), energy.item()) == (2, 2)


@pytest.mark.parametrize("size", [1e6, 1e7, 1e8])
def test_a_slow_mode_keeps_its_digits_beside_a_fast_one(size):
    """Place exp(−t/α) and speed −exp(−t/α)/α, to 1/α²."""
    place, energy = linearised_inertia(double(1.0)[None], double(1.0), double(size), damping=size)
    assert place.item() == pytest.approx(math.exp(-1), rel=1e-9)
    assert energy.item() == pytest.approx(math.exp(-2) / 2, rel=1e-9)


@pytest.mark.parametrize("near", [-1e-3, -1e-9, -1e-15, 0.0, 1e-15, 1e-9, 1e-3])
def test_near_a_double_root_the_motion_is_smooth(near):
    """Against the exponential of the matrix, which is exact enough for short times."""
    times, friction = double(0.0, 0.5, 1.0, 3.0), 2 + near
    place, energy = linearised_inertia(double(1.0)[None], double(1.0), times, damping=friction)
    motion = double(0.0, 1.0, -1.0, -friction).reshape(2, 2)
    state = torch.linalg.matrix_exp(times[:, None, None] * motion)[..., 0]
    torch.testing.assert_close(place[:, 0], state[:, 0], rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(energy, state.square().sum(1) / 2, rtol=1e-13, atol=1e-14)


def test_what_a_kernel_of_low_rank_does_not_see_stays(generator):
    """Its zero eigenvalues come out as rounding, of either sign; here surely below zero."""
    factor = 30 * torch.randn(6, 3, generator=generator)
    kernel, residual = 100 * factor @ factor.mT, torch.ones(6)
    rounding = torch.finfo(kernel.dtype).eps * torch.linalg.matrix_norm(kernel, 2)
    kernel = kernel - 2 * rounding * torch.eye(6)
    unseen = residual - factor @ torch.linalg.lstsq(factor, residual[:, None]).solution[:, 0]
    for time in (1e3, 1e5, 1e7):
        left = linearised_gradient_flow(kernel, residual, torch.tensor([time]))[0]
        torch.testing.assert_close(left, unseen, rtol=0, atol=1e-4)


def test_times_may_be_none_or_less_precise():
    kernel, residual = torch.eye(2).double(), torch.ones(2).double()
    assert linearised_gradient_flow(kernel, residual, torch.zeros(0)).shape == (0, 2)
    assert linearised_gradient_flow(kernel, residual, ONE.bfloat16())[0, 1] == math.exp(-1)


@pytest.mark.parametrize(("skew", "refused"), [(1e-7, True), (1e-9, False)])
def test_a_kernel_may_be_skewed_by_rounding_only(skew, refused):
    kernel = double(1.0, skew, 0.0, 1.0).reshape(2, 2) * 1e3
    if refused:
        with pytest.raises(ValueError, match=r"^kernel must be symmetric"):
            linearised_gradient_flow(kernel, torch.ones(2).double(), ONE)
    else:
        linearised_gradient_flow(kernel, torch.ones(2).double(), ONE)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: linearised_inertia(torch.diag(double(1, 0)), ONE_ONE, ONE, damping=1), "kernel"),
        (
            lambda: linearised_inertia(torch.diag(double(1, -1e-12)), ONE_ONE, ONE, damping=1),
            "kernel",
        ),
        (lambda: linearised_inertia(torch.eye(1), ONE, ONE, damping=1e200), "damping"),
        (
            lambda: linearised_inertia(
                torch.eye(1).double(), ONE.double(), double(1e200), damping=1e200
            ),
            "damping",
        ),
        (lambda: mode_roots(ONE, damping=1e200), "damping"),
        (lambda: mode_roots(double(1e200), damping=0.0, hessian_damping=1e200), "damping"),
        (lambda: mode_roots(ONE.half(), damping=1.0), "eigenvalues"),
        (lambda: amplification(ONE.bfloat16(), step=1.0, damping=1.0), "eigenvalues"),
        (lambda: linearised_gradient_flow(torch.eye(1).half(), ONE.half(), ONE.half()), "kernel"),
        (lambda: linearised_gradient_flow(torch.ones(0, 0), torch.ones(0), ONE), "kernel"),
        (lambda: linearised_gradient_flow(torch.eye(1)[None], ONE, ONE), "kernel"),
        (lambda: amplification(ONE, step=1.0, damping=-1.0), "damping"),
        (
            lambda: amplification(ONE, step=1.0, damping=1.0, hessian_damping=-1.0),
            "hessian_damping",
        ),
        (lambda: largest_step(1.0, damping=1.0, hessian_damping=-1.0), "hessian_damping"),
        (lambda: largest_step(5e-324, damping=1.0), "largest"),
        (lambda: largest_step(1e200, damping=1.0, hessian_damping=1e200), "largest"),
    ],
)
def test_bad_input_names_the_argument(call, name):
    with pytest.raises(ValueError, match=rf"\b{name}\b must"):
        call()
