"""Photographs, blur, tomograph and total variation, against other ways to the same numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage import data
from skimage.restoration import denoise_tv_chambolle

from invbayes import LinearProblem, NotConverged
from invbayes._variation import _Constants, _lower_bound
from invbayes.bayes.problems import gain_of_any
from invbayes.imaging import gaussian_blur, photograph, tomograph, total_variation, wiener

DOUBLE = torch.float64


def test_a_photograph_is_grey_halved_and_between_zero_and_one():
    raw = torch.from_numpy(data.camera()).double() / 255
    torch.testing.assert_close(photograph("camera", dtype=DOUBLE), raw[None])
    halved = photograph("camera", 1, DOUBLE)[0]
    assert halved[3, 5].item() == pytest.approx(raw[6:8, 10:12].mean().item())
    cat = photograph("chelsea", dtype=DOUBLE)
    red, green, blue = data.chelsea()[20, 30] / 255
    assert cat[0, 20, 30].item() == pytest.approx(0.2125 * red + 0.7154 * green + 0.0721 * blue)
    assert photograph("chelsea", 1).shape == (1, 150, 225)  # an odd column is left out
    assert photograph("stereo_motorcycle").shape == (1, 500, 741)
    with pytest.raises(ValueError, match=r"name must be a picture of skimage.data, got 'nobody'"):
        photograph("nobody")
    for name in ("logo", "lfw_subset"):  # four channels, and a stack of grey pictures
        with pytest.raises(ValueError, match=rf"name must be a grey or RGB picture, got '{name}'"):
            photograph(name)
    with pytest.raises(ValueError, match="halvings must be an int of at least 0"):
        photograph("camera", -1)


@pytest.mark.parametrize("size", [(24, 31), (15, 16)])
def test_the_blur_is_a_sum_of_periodic_gaussians(size):
    """Sampled, the Gaussian's spectrum is aliased; at a width of 1.5 that is below 1e-9."""
    spot = torch.zeros(1, 1, *size, dtype=DOUBLE)
    spot[0, 0, 2, 3] = 1.0
    away = [torch.arange(n) - c for n, c in zip(size, (2, 3), strict=True)]
    bells = [
        sum(torch.exp(-((a + k * n).double() ** 2) / (2 * 1.5**2)) for k in range(-3, 4))
        for a, n in zip(away, size, strict=True)
    ]
    expected = bells[0][:, None] * bells[1] / (2 * math.pi * 1.5**2)
    torch.testing.assert_close(gaussian_blur(1.5)(spot)[0, 0], expected, rtol=0, atol=1e-5)
    LinearProblem(gaussian_blur(1.5), 0.1, shape=(1, *size), adjoint=gaussian_blur(1.5))
    assert gaussian_blur(1.5)(spot[:0]).shape == spot[:0].shape
    with pytest.raises(ValueError, match="width must be finite and > 0"):
        gaussian_blur(0.0)


def test_the_tomograph_sees_sums_of_columns_rows_and_diagonals():
    size = 6
    picture = np.arange(36.0).reshape(size, size) ** 1.5
    views = (tomograph(size, 2) @ picture.ravel()).reshape(2, -1)
    # Pixels sit halfway between the cells: each cell gets half of two neighbouring lines.
    for view, lines in zip(views, (picture.sum(0), picture.sum(1)[::-1]), strict=True):
        padded = np.pad(lines, (1, 1))
        found = np.trim_zeros(view)
        np.testing.assert_allclose(found, (padded[1:] + padded[:-1]) / 2)
    oblique = tomograph(size, 4)
    np.testing.assert_allclose(oblique.sum(0), 4)  # each pixel is seen once in each view
    corner = np.zeros(36)
    corner[size - 1] = 1.0  # up and to the right: at 45° it is the farthest one
    seen = (oblique @ corner).reshape(4, -1)[1]
    middle = (len(seen) - 1) / 2
    assert (seen * (np.arange(len(seen)) - middle)).sum() == pytest.approx(2.5 * math.sqrt(2))


def test_total_variation_is_that_of_scikit_image(generator):
    x = photograph("camera", 3, DOUBLE)
    problem = LinearProblem(torch.clone, 0.1, shape=x.shape, dtype=DOUBLE)
    y = problem.observe(x, generator=generator)
    found = total_variation(problem, y, weight=0.1, tol=1e-4)
    expected = denoise_tv_chambolle(y[0].numpy(), weight=0.1, eps=1e-10, max_num_iter=4000)
    torch.testing.assert_close(found[0], torch.from_numpy(expected), rtol=0, atol=2e-3)


def blurred(x):
    return 3 * gaussian_blur(1.0)(x)


def energy(problem, y, weight, x):
    """What total variation minimises."""
    edges = [x.diff(dim=axis, append=x.narrow(axis, -1, 1)) for axis in (1, 2)]
    length = torch.stack(edges).norm(dim=0).sum()
    return (0.5 * (problem.apply(x) - y).square().sum() + weight * length).item()


def mixed(x):
    """Each channel a blur, and a part of the others."""
    return gaussian_blur(1.0)(x) + 0.3 * x.roll(1, -3)


OPERATORS = {
    "blur": (blurred, 1),
    "edges": (lambda x: 3 * x - blurred(x), 1),  # loses the mean
    "sharper": (lambda x: 4 * x - blurred(x), 1),
    "channels": (mixed, 3),
    "grey": (lambda x: x.mean(-3, keepdim=True), 3),  # which constant it is, data do not say
    "one channel": (lambda x: x * torch.tensor([1.0, 0, 0]).double()[:, None, None], 3),
}


def of_channels(name, generator):
    """A problem, a noisy picture of one or three channels, and the picture."""
    operator, channels = OPERATORS[name]
    x = 10 * photograph("camera", 4, DOUBLE)
    x = torch.cat([x, x.flip(-1), x.mT])[:channels]
    problem = LinearProblem(operator, 0.3, shape=x.shape, dtype=DOUBLE)
    return problem, problem.observe(x, generator=generator), x


@pytest.mark.parametrize("name", OPERATORS)
def test_total_variation_with_an_operator_is_a_minimum(name, generator):
    """No small change lowers the energy; a looser tolerance is kept."""
    problem, y, x = of_channels(name, generator)
    found = total_variation(problem, y, weight=0.2, tol=1e-4)
    least = energy(problem, y, 0.2, found)
    assert least < energy(problem, y, 0.2, x) - 1
    for _ in range(20):
        step = torch.randn(x.shape, generator=generator, dtype=DOUBLE)
        for size in (1e-2, 1e-1):
            assert energy(problem, y, 0.2, found + size * step) > least * (1 - 1e-4)
    loose = energy(problem, y, 0.2, total_variation(problem, y, weight=0.2, tol=0.05))
    assert least * (1 - 1e-4) < loose < least / (1 - 0.05)


def lower_bound(problem, y, weight):
    """The bound as a function of the two dual variables."""
    constants = _Constants.of(problem, gain_of_any(problem))
    return lambda edges, rest: _lower_bound(problem, y, weight, constants, edges, rest)


@pytest.mark.parametrize("name", OPERATORS)
def test_every_pair_bounds_total_variation_from_below(name, generator):
    """Dual variables that solve nothing, of any size, against the energy of any picture."""
    problem, y, x = of_channels(name, generator)
    bound = lower_bound(problem, y, 0.2)
    pictures = [x, total_variation(problem, y, weight=0.2, tol=1e-4), torch.zeros_like(x)]
    least = min(energy(problem, y, 0.2, picture) for picture in pictures)
    for size in (1e-3, 0.1, 1.0, 10.0):
        for sign in (1, -1):  # -y is nearest to a misfit
            edges = size * torch.randn(2, *x.shape, generator=generator, dtype=DOUBLE)
            rest = size * (sign * y + torch.randn(y.shape, generator=generator, dtype=DOUBLE))
            assert bound(edges, rest) <= least * (1 + 1e-12)
    assert bound(torch.zeros(2, *x.shape).double(), torch.zeros_like(y)) == 0


def test_the_bound_for_two_pixels_is_that_of_the_dual_problem():
    """Two pixels: p is one number, and q = -A⁻ᵀ ∇*p, so the dual is a parabola in it."""
    operator = torch.tensor([[2.0, 0.5], [-0.25, 1.0]]).double()
    problem = LinearProblem(
        lambda x: (x.flatten(-2) @ operator.mT).reshape(x.shape), 0.1, shape=(1, 1, 2), dtype=DOUBLE
    )
    y = torch.tensor([[[3.0, -1.0]]]).double()
    slopes = torch.linalg.solve(operator.mT, torch.tensor([1.0, -1.0]).double())  # q = p * slopes
    p = torch.linspace(-0.5, 0.5, 100_001).double()
    best = (-0.5 * p**2 * (slopes @ slopes) - p * (slopes @ y.flatten())).max().item()
    found = total_variation(problem, y, weight=0.5, tol=1e-9)
    assert energy(problem, y, 0.5, found) == pytest.approx(best, rel=1e-7)
    # Of a pair that is too large the bound takes the best part, whatever the weight allows.
    edges, rest = torch.zeros(2, 1, 1, 2).double(), (-40 * slopes).reshape(1, 1, 2)
    top = (slopes @ y.flatten()).item() ** 2 / 2 / (slopes @ slopes).item()
    assert lower_bound(problem, y, 100.0)(edges, rest) == pytest.approx(top)


@pytest.mark.parametrize("steps", [10, 30])
def test_total_variation_that_misses_its_tolerance_says_so(generator, steps):
    problem, y, _ = of_channels("blur", generator)
    with pytest.raises(NotConverged, match=rf"the tolerance 1.0e-06 after {steps} step") as caught:
        total_variation(problem, y, weight=0.2, tol=1e-6, max_steps=steps)
    assert caught.value.steps == steps
    best = total_variation(problem, y, weight=0.2, tol=1e-5)
    least, reached = (energy(problem, y, 0.2, x) for x in (best, caught.value.point))
    assert 1e-5 < (reached - least) / reached < caught.value.bound <= 1
    assert caught.value.point.mean().item() == pytest.approx(best.mean().item(), abs=0.05)
    for name, wrong in (("tol", 0.0), ("max_steps", 0)):
        with pytest.raises(ValueError, match=f"^{name} must be"):
            total_variation(problem, y, weight=0.2, **{name: wrong})


@pytest.mark.parametrize("offset", [0.0, 100.0, 1000.0])
@pytest.mark.parametrize("operator", [torch.clone, gaussian_blur(1.0)], ids=["noise", "blur"])
def test_total_variation_in_single_precision_says_no_more_than_it_knows(
    operator, offset, generator
):
    """A picture far from zero has few digits left for its edges, but none is lost on the way."""
    x = photograph("camera", 4, DOUBLE)
    exact, single = (
        LinearProblem(operator, 0.1, shape=x.shape, dtype=kind) for kind in (DOUBLE, torch.float32)
    )
    y = exact.observe(x, generator=generator)
    least = energy(exact, y, 0.1, total_variation(exact, y, weight=0.1, tol=1e-4))
    y = (y + offset).float()
    found = total_variation(single, y, weight=0.1).double()
    excess = energy(exact, y.double(), 0.1, found) / least - 1
    assert -1e-3 < excess < 2e-3


def test_constants_that_rounding_alone_sees_stay_at_zero(generator):
    x = photograph("camera", 4, DOUBLE)
    problem = LinearProblem(
        lambda x: x - gaussian_blur(1.0)(x) + 3e-16 * x, 0.1, shape=x.shape, dtype=DOUBLE
    )
    y = 1 + problem.observe(x, generator=generator)
    assert total_variation(problem, y, weight=0.1).mean().abs() < 1


@pytest.mark.parametrize("gain", [1e-9, 1e-3])
def test_a_faint_channel_does_not_spoil_the_bound(gain, generator):
    """What A makes of its constants is small beside the rest, and no rounding."""
    gains = torch.tensor([1.0, gain]).double()[:, None, None]
    problem = LinearProblem(lambda x: gains * x, 0.1, shape=(2, 8, 8), dtype=DOUBLE)
    y = 3 + torch.randn(2, 8, 8, generator=generator, dtype=DOUBLE)
    first = LinearProblem(torch.clone, 0.1, shape=(1, 8, 8), dtype=DOUBLE)
    found = total_variation(problem, y, weight=0.2)
    least = energy(first, y[:1], 0.2, total_variation(first, y[:1], weight=0.2, tol=1e-5))
    least += (y[1] - y[1].mean()).square().sum().item() / 2  # so faint that its edges cost too much
    assert energy(problem, y, 0.2, found) == pytest.approx(least, rel=1e-3)
    torch.testing.assert_close(found[1], (y[1].mean() / gain).expand(8, 8), rtol=1e-4, atol=0)


def test_total_variation_needs_no_steps_where_little_but_the_mean_is_left(generator):
    x = photograph("camera", 4)
    problem = LinearProblem(gaussian_blur(1.0), 0.1, shape=x.shape)
    y = problem.observe(x, generator=generator)
    found = total_variation(problem, y, weight=1e4, max_steps=1)
    torch.testing.assert_close(found, y.mean().expand_as(y), rtol=0, atol=1e-5)


def test_total_variation_has_no_derivative_and_ignores_autocast(generator):
    matrix = torch.eye(16) + 0.1 * torch.randn(16, 16, generator=generator)
    problem = LinearProblem(matrix_of_pictures(matrix), 0.1, shape=(1, 4, 4))
    y = torch.randn(1, 4, 4, generator=generator)
    expected = total_variation(problem, y, weight=0.1)
    assert not total_variation(problem, y.clone().requires_grad_(), weight=0.1).requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(total_variation(problem, y, weight=0.1), expected)
    number = LinearProblem(lambda x: x.mean((1, 2, 3)), 0.1, shape=(1, 4, 4))
    found = total_variation(number, torch.tensor(2.0), weight=0.1)  # data without any axis
    torch.testing.assert_close(found, torch.full((1, 4, 4), 2.0))


def matrix_of_pictures(matrix):
    """A matrix as an operator on pictures."""
    return lambda x: (x.flatten(-3) @ matrix.mT).reshape(x.shape)


def test_total_variation_of_a_flat_picture_is_the_picture():
    """The least energy is zero, of which no share is a tolerance: rounding is."""
    problem = LinearProblem(gaussian_blur(1.0), 0.1, shape=(1, 8, 8))
    flat = torch.full((1, 8, 8), 3.3)
    found = total_variation(problem, flat, weight=1.0, max_steps=500)
    torch.testing.assert_close(found, flat, rtol=1e-3, atol=0)


@pytest.mark.parametrize("change", ["units of x", "units of y", "units of A"])
@pytest.mark.parametrize("unit", [1e-4, 1e4])
def test_units_change_nothing_in_total_variation(change, unit, generator):
    """‖(A/u) (u x) − y‖²/2 + (w/u) TV(u x), and so on: as near to the minimum after equal steps."""
    x = photograph("camera", 4, DOUBLE)
    problem = LinearProblem(gaussian_blur(1.0), 0.05, shape=x.shape, dtype=DOUBLE)
    y = problem.observe(x, generator=generator)
    found = total_variation(problem, y, weight=0.01)
    by, times, weight = {
        "units of x": (1 / unit, 1.0, 0.01 / unit),
        "units of y": (1.0, unit, 0.01 * unit),
        "units of A": (unit, unit, 0.01 * unit**2),
    }[change]
    scaled = LinearProblem(
        lambda x: by * gaussian_blur(1.0)(x), 0.05 * times, shape=x.shape, dtype=DOUBLE
    )
    moved = total_variation(scaled, times * y, weight=weight)
    torch.testing.assert_close(moved * by / times, found, rtol=0, atol=1e-9)


def test_total_variation_of_nothing_and_what_it_refuses():
    problem, y = LinearProblem(torch.clone, 0.1, shape=(1, 4, 4)), torch.zeros(1, 4, 4)
    assert not total_variation(problem, y, weight=1.0).any()
    faint = total_variation(problem, torch.full_like(y, 1e-30), weight=1e-33)
    torch.testing.assert_close(faint, torch.full_like(y, 1e-30), rtol=1e-4, atol=0)
    rough = torch.linspace(-1, 1, 16).reshape(1, 4, 4)
    tiny = total_variation(problem, 1e-24 * rough, weight=1e-25)  # its squares are zero
    expected = 1e-24 * total_variation(problem, rough, weight=0.1)
    torch.testing.assert_close(tiny, expected, rtol=1e-4, atol=0)
    with pytest.raises(NotConverged):
        total_variation(problem, rough, weight=1e-300, max_steps=50)
    with pytest.raises(ValueError, match="weight must be finite and > 0"):
        total_variation(problem, y, weight=0.0)
    for method in (lambda p, y: total_variation(p, y, 1.0), lambda p, y: wiener(p, y, y)):
        with pytest.raises(ValueError, match=r"^problem must be one of pictures, got"):
            method(LinearProblem(torch.clone, 0.1, shape=(16,)), torch.ones(16))
        with pytest.raises(ValueError, match="y must have shape"):
            method(problem, y[0])
        with pytest.raises(ValueError, match="problem must be a LinearProblem"):
            method(torch.clone, y)
        coloured = LinearProblem(
            torch.clone, noise_covariance=torch.arange(1.0, 17), shape=(1, 4, 4)
        )
        with pytest.raises(ValueError, match="problem must have white noise"):
            method(coloured, y)
    with pytest.raises(ValueError, match="y must be one observation"):
        total_variation(problem, y[None], weight=1.0)
    blind = LinearProblem(torch.zeros_like, 0.1, shape=(1, 4, 4))
    with pytest.raises(ValueError, match="problem must have an operator that is not zero"):
        total_variation(blind, y, weight=1.0)


def smooth_fields(n, size, generator):
    """Periodic Gaussian fields of a known power, about a grey value of their own."""
    frequencies = torch.meshgrid(*(torch.fft.fftfreq(m) for m in size), indexing="ij")
    power = 50 / (1 + sum((40 * f) ** 2 for f in frequencies)).double() ** 2
    power[0, 0] = 0
    white = torch.randn(n, 1, *size, generator=generator, dtype=DOUBLE)
    fields = torch.fft.ifft2(torch.fft.fft2(white) * power.sqrt()).real
    return power, fields + 3 * torch.randn(n, 1, 1, 1, generator=generator, dtype=DOUBLE)


@pytest.mark.parametrize("blurs", [False, True])
def test_the_linear_filter_errs_as_theory_says(generator, blurs):
    """By the mean of S δ² / (h² S + δ²), the least of all linear filters, from cut-outs alone.

    The cut-outs are not periodic: without the window the error is 8 % larger.
    """
    size, std = (32, 48), 0.3
    power, x = smooth_fields(400, size, generator)
    cut_outs = smooth_fields(400, (128, 128), generator)[1][..., :32, :48]
    operator = gaussian_blur(1.0) if blurs else torch.clone
    problem = LinearProblem(operator, std, shape=(1, *size), dtype=DOUBLE)
    spot = torch.zeros(1, *size, dtype=DOUBLE)
    spot[0, 0, 0] = 1
    symbol = torch.fft.fft2(problem.apply(spot)).real[0]
    error = power * std**2 / (symbol**2 * power + std**2)
    error[0, 0] = std**2  # of the mean, which is taken from the data
    y = problem.observe(x, generator=generator)
    missed = (wiener(problem, y, cut_outs) - x).square().mean((1, 2, 3))
    deviation = missed.std().item() / len(missed) ** 0.5
    excess = missed.mean().item() - error.mean().item()
    assert -4 * deviation < excess < 4 * deviation + 0.01 * error.mean().item()
    for factor in (0.7, 1.4):  # pictures of another contrast: a filter that is not the best
        other = wiener(problem, y, factor * cut_outs)
        assert (other - x).square().mean() > missed.mean()


def test_the_linear_filter_undoes_a_shift_and_keeps_the_mean(generator):
    """An operator with complex symbol and a mean of two; next to no noise."""
    _, x = smooth_fields(20, (16, 24), generator)

    def operator(x):
        return 2 * x.roll((3, -2), (-2, -1))

    problem = LinearProblem(operator, 1e-6, shape=x.shape[1:], dtype=DOUBLE)
    y = problem.observe(x[0], generator=generator)
    torch.testing.assert_close(wiener(problem, y, x[1:]), x[0], rtol=0, atol=1e-4)
    loud = LinearProblem(operator, 1e6, shape=x.shape[1:], dtype=DOUBLE)
    flat = wiener(loud, y, x[1:])
    torch.testing.assert_close(flat, (y.mean() / 2).expand_as(flat), rtol=0, atol=1e-6)


def test_the_linear_filter_refuses_what_is_no_convolution(generator):
    x = torch.randn(5, 1, 8, 8, generator=generator, dtype=DOUBLE)
    mask = torch.ones(8, 8, dtype=DOUBLE)
    mask[5, 6] = 0  # one pixel is not seen

    def filtered(operator, pictures=x, y=None):
        problem = LinearProblem(operator, 0.1, shape=(1, 8, 8), dtype=DOUBLE)
        return wiener(problem, problem.apply(x[0]) if y is None else y, pictures)

    with pytest.raises(
        ValueError, match="problem must be a periodic convolution, but its operator"
    ):
        filtered(lambda x: mask * x)
    with pytest.raises(ValueError, match="but its data have another shape"):
        filtered(lambda x: x[..., ::2])
    with pytest.raises(ValueError, match="problem must keep a picture's mean"):
        filtered(lambda x: x - x.roll(1, -1))
    with pytest.raises(ValueError, match="pictures must have shape"):
        filtered(torch.clone, x[..., :6])
    with pytest.raises(ValueError, match="y must have shape"):
        filtered(torch.clone, y=x[0, :, :6])
