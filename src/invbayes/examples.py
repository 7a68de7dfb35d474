"""The priors and operators that several chapters share."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.linalg import toeplitz
from torch import Tensor

from invbayes._checks import check_count, check_dtype, check_flag, check_positive, number
from invbayes.bayes.mixtures import GaussianMixture
from invbayes.bayes.nonlinear import NonlinearProblem


def two_blobs(dtype: torch.dtype = torch.float64) -> GaussianMixture:
    r"""The book's prior on the plane: two unequal, tilted Gaussians,

    .. math:: p_X = 0.55\, \mathcal{N}(-m, \Sigma_1) + 0.45\, \mathcal{N}(m, \Sigma_2), \qquad m = (1, 0.25),

    with standard deviations (0.4, 0.7) turned by 20°, and (0.4, 0.6) turned by −15°.

    Source: our own choice; arXiv 2510.26704 does not fix one.

    Example:
        >>> two_blobs()
        GaussianMixture(batch_shape=(), components=2, dim=2)
    """
    check_dtype("dtype", dtype)
    means = torch.tensor([[-1.0, -0.25], [1.0, 0.25]], dtype=dtype)
    covariances = torch.stack(
        [_tilted(0.4, 0.7, degrees=20, dtype=dtype), _tilted(0.4, 0.6, degrees=-15, dtype=dtype)]
    )
    return GaussianMixture(torch.tensor([0.55, 0.45], dtype=dtype), means, covariances)


def three_blobs(dtype: torch.dtype = torch.float64) -> GaussianMixture:
    r"""A second prior on the plane, on which nothing in the book was tuned,

    .. math:: p_X = 0.4\, \mathcal{N}((-1.2, -0.6), \Sigma_1) + 0.35\, \mathcal{N}((0.3, 1.1), \Sigma_2)
        + 0.25\, \mathcal{N}((1.2, -0.7), \Sigma_3),

    with standard deviations (0.6, 0.35) turned by 30°, (0.7, 0.4) by −10° and (0.35, 0.5) by 0°.

    Example:
        >>> three_blobs()
        GaussianMixture(batch_shape=(), components=3, dim=2)
    """
    check_dtype("dtype", dtype)
    means = torch.tensor([[-1.2, -0.6], [0.3, 1.1], [1.2, -0.7]], dtype=dtype)
    covariances = torch.stack(
        [
            _tilted(0.6, 0.35, degrees=30, dtype=dtype),
            _tilted(0.7, 0.4, degrees=-10, dtype=dtype),
            _tilted(0.35, 0.5, degrees=0, dtype=dtype),
        ]
    )
    return GaussianMixture(torch.tensor([0.4, 0.35, 0.25], dtype=dtype), means, covariances)


def two_peaks(
    separation: float = 1.0, width: float = 0.5, dtype: torch.dtype = torch.float64
) -> GaussianMixture:
    r"""The book's prior on the line: two equal peaks at ±m,

    .. math:: p_X = \tfrac12 \mathcal{N}(-m, s^2) + \tfrac12 \mathcal{N}(m, s^2).

    Args:
        separation: m > 0, half the distance of the peaks.
        width: s > 0, the standard deviation of each.
        dtype: of the mixture.

    Raises:
        ValueError: if m or s is not above zero, or the dtype cannot hold m or s².

    Example:
        >>> two_peaks().mean
        tensor([0.], dtype=torch.float64)
    """
    check_positive("separation", separation)
    check_positive("width", width)
    check_dtype("dtype", dtype)
    means = number("separation", separation) * torch.tensor([[-1.0], [1.0]], dtype=dtype)
    covariances = torch.tensor(number("width", width), dtype=dtype).square().expand(2, 1, 1)
    least, most = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    if not (means[1] <= most and least <= covariances[0] <= most):
        raise ValueError(
            f"separation and the square of width must be numbers that {dtype} can hold, "
            f"got {separation} and {width}"
        )
    return GaussianMixture(torch.full((2,), 0.5, dtype=dtype), means, covariances)


def smooth_signals(
    size: int, length: float, nugget: float = 1e-3, dtype: torch.dtype = torch.float64
) -> GaussianMixture:
    r"""A Gaussian prior on smooth signals, of variance one at each of its points,

    .. math:: x \sim \mathcal{N}(0, \Sigma), \qquad \Sigma_{ij} = (1 - \nu)\, e^{-(i - j)^2 / (2 \ell^2)} + \nu\, [i = j].

    Args:
        size: the number of points, at least 1.
        length: the correlation length ℓ > 0, in points.
        nugget: the share ν of white noise, in (0, 1], which keeps Σ invertible.
        dtype: of the mixture.

    Raises:
        ValueError: if an argument is out of its range, or ν too small for an invertible Σ.

    Example:
        >>> smooth_signals(size=32, length=4.0)
        GaussianMixture(batch_shape=(), components=1, dim=32)
    """
    check_count("size", size)
    check_positive("length", length)
    check_positive("nugget", nugget)
    check_dtype("dtype", dtype)
    kernel = torch.from_numpy(toeplitz(_bell(size, number("length", length)))).to(dtype)
    covariance = (1 - nugget) * kernel + nugget * torch.eye(size, dtype=dtype)
    if nugget > 1 or torch.linalg.cholesky_ex(covariance).info:
        raise ValueError(f"nugget must lie in (0, 1] and keep Σ invertible, got {nugget}")
    return GaussianMixture.gaussian(torch.zeros(size, dtype=dtype), covariance)


def two_layers(noise_std: float = 0.3, *, logarithmic: bool = False) -> NonlinearProblem:
    r"""Two log-conductivities from two temperatures: a rod of two halves, heated evenly,

    .. math:: -(e^{x} p')' = \tfrac{32}{3} \text{ on } (0, 1), \quad p(0) = p(1) = 0, \qquad
        y = (p(\tfrac14), p(\tfrac34)) + \eta,

    where x is :math:`x_1` on the left half and :math:`x_2` on the right one. All is in units of
    the rod's length, a reference conductivity and a temperature, so that F(0) = (1, 1). With
    :math:`a = e^{-x_1}`, :math:`b = e^{-x_2}`,

    .. math:: F(x) = \frac{1}{3 (a + b)} \big(a (a + 5b),\; b (5a + b)\big).

    Args:
        noise_std: δ > 0, in the units of the data.
        logarithmic: whether log p is measured in place of p: noise in proportion to p.

    Example:
        >>> two_layers().apply(torch.zeros(1, 2, dtype=torch.float64))
        tensor([[1., 1.]], dtype=torch.float64)
        >>> two_layers(logarithmic=True).apply(torch.zeros(1, 2, dtype=torch.float64))
        tensor([[0., 0.]], dtype=torch.float64)
    """
    check_flag("logarithmic", logarithmic)
    forward = _log_temperatures if logarithmic else _temperatures
    return NonlinearProblem(forward, noise_std, reference=torch.zeros(2, dtype=torch.float64))


def _temperatures(x: Tensor) -> Tensor:
    a, b = (-x).exp().unbind(-1)
    return torch.stack([a * (a + 5 * b), b * (5 * a + b)], -1) / (3 * (a + b)).unsqueeze(-1)


def _log_temperatures(x: Tensor) -> Tensor:
    return _temperatures(x).log()


def blur_operator(size: int, width: float, dtype: torch.dtype = torch.float64) -> Tensor:
    r"""A Gaussian blur of a signal, with zeros beyond its ends, shape ``(size, size)``,

    .. math:: A_{ij} = \frac{1}{\sqrt{2\pi}\, w}\, e^{-(i - j)^2 / (2 w^2)}.

    Args:
        size: the number of points, at least 1.
        width: w > 0, the standard deviation of the blur, in points.
        dtype: of the matrix.

    Raises:
        ValueError: if an argument is not above zero, or the dtype cannot hold 1 / w.

    Example:
        >>> blur_operator(size=5, width=1.0).diagonal()
        tensor([0.3989, 0.3989, 0.3989, 0.3989, 0.3989], dtype=torch.float64)
    """
    check_count("size", size)
    check_positive("width", width)
    check_dtype("dtype", dtype)
    width = number("width", width)
    if 1 / width > torch.finfo(dtype).max:
        raise ValueError(f"width must have an inverse that {dtype} can hold, got {width}")
    row = _bell(size, width) / (math.sqrt(2 * math.pi) * width)
    return torch.from_numpy(toeplitz(row)).to(dtype)


def _bell(size: int, width: float) -> np.ndarray:
    with np.errstate(over="ignore"):  # far out on a narrow bell it is zero
        return np.exp(-0.5 * (np.arange(size) / width) ** 2)


def _tilted(first_std: float, second_std: float, degrees: float, dtype: torch.dtype) -> Tensor:
    """The covariance with the given standard deviations along axes turned by ``degrees``."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[cos, -sin], [sin, cos]], dtype=dtype)
    return turn @ torch.diag(torch.tensor([first_std**2, second_std**2], dtype=dtype)) @ turn.mT
