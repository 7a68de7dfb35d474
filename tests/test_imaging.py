"""Photographs, blur, tomograph and total variation, against other ways to the same numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage import data
from skimage.restoration import denoise_tv_chambolle

from invbayes import LinearProblem
from invbayes.imaging import gaussian_blur, photograph, tomograph, total_variation

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
    found = total_variation(problem, y, weight=0.1, steps=1000)
    expected = denoise_tv_chambolle(y[0].numpy(), weight=0.1, eps=1e-10, max_num_iter=4000)
    torch.testing.assert_close(found[0], torch.from_numpy(expected), rtol=0, atol=2e-3)


def test_total_variation_with_an_operator_is_a_minimum(generator):
    """No small change lowers the energy, for an operator of norm three."""
    x = 10 * photograph("camera", 4, DOUBLE)
    blur = gaussian_blur(1.0)
    problem = LinearProblem(lambda x: 3 * blur(x), 0.3, shape=x.shape, dtype=DOUBLE)
    y = problem.observe(x, generator=generator)

    def energy(x):
        edges = [x.diff(dim=axis, append=x.narrow(axis, -1, 1)) for axis in (1, 2)]
        length = torch.stack(edges).norm(dim=0).sum()
        return (0.5 * (problem.apply(x) - y).square().sum() + 0.2 * length).item()

    found = total_variation(problem, y, weight=0.2, steps=4000)
    least = energy(found)
    assert least < min(energy(x), energy(y / 3)) - 1
    for _ in range(20):
        step = torch.randn(x.shape, generator=generator, dtype=DOUBLE)
        for size in (1e-2, 1e-1):
            assert energy(found + size * step) > least - 1e-3
    with pytest.raises(ValueError, match="weight must be finite and > 0"):
        total_variation(problem, y, weight=0.0)
    with pytest.raises(ValueError, match="y must have shape"):
        total_variation(problem, y[0], weight=1.0)
