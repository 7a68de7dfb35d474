"""Pictures: photographs that ship with scikit-image, a blur, a tomograph, and what one tries first."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from invbayes._checks import (
    check_count,
    check_dtype,
    check_instance,
    check_pictures,
    check_points,
    check_positive,
)
from invbayes._variation import least_variation
from invbayes.bayes.problems import LinearProblem


def photograph(name: str, halvings: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    r"""A grey photograph from ``skimage.data``, with values in [0, 1].

    Args:
        name: such as ``"camera"`` or ``"chelsea"``: one that ships with scikit-image.
        halvings: how often the picture is halved, by means of 2 × 2 pixels; an odd last row or
            column is left out.
        dtype: single or double precision.

    Returns:
        Shape ``(1, height, width)``.

    Raises:
        ValueError: for a name that scikit-image has no picture for without a network.

    Example:
        >>> photograph("camera", halvings=1).shape
        torch.Size([1, 256, 256])
    """
    from skimage import color, data, util  # noqa: PLC0415  only chapters need it

    check_dtype("dtype", dtype)
    check_count("halvings", halvings, 0)
    try:
        found = getattr(data, name)()
    except Exception as error:
        raise ValueError(f"name must be a picture of skimage.data, got {name!r}") from error
    found = found[0] if isinstance(found, tuple) else found  # a stereo pair
    if found.ndim != 2 and found.shape[2:] != (3,):
        raise ValueError(f"name must be a grey or RGB picture, got {name!r} of {found.shape}")
    grey = color.rgb2gray(found) if found.ndim == 3 else util.img_as_float(found)
    picture = torch.from_numpy(np.ascontiguousarray(grey)).to(dtype)[None]
    for _ in range(halvings):
        picture = torch.nn.functional.avg_pool2d(picture, 2)
    return picture


def gaussian_blur(width: float) -> Callable[[Tensor], Tensor]:
    r"""The convolution with a Gaussian, periodic, by the discrete Fourier transform,

    .. math:: \widehat{A x}(\omega) = e^{-w^2 |\omega|^2 / 2}\; \hat x(\omega), \qquad \omega \in (-\pi, \pi]^2 .

    It is its own adjoint.

    Args:
        width: w > 0, the standard deviation in pixels.

    Returns:
        A function of pictures ``(*, height, width)``, an operator for `~invbayes.LinearProblem`.

    Raises:
        ValueError: for a width that is not above zero.

    Example:
        >>> import torch
        >>> from invbayes import LinearProblem
        >>> LinearProblem(gaussian_blur(1.5), 0.1, shape=(1, 8, 6))
        LinearProblem((1, 8, 6) -> (1, 8, 6), noise_std=0.1)
    """
    check_positive("width", width)

    def blur(x: Tensor) -> Tensor:
        if not x.numel():
            return x.clone()  # of no picture there is no transform
        kind = {"dtype": x.dtype, "device": x.device}
        axes = torch.fft.fftfreq(x.shape[-2], **kind), torch.fft.rfftfreq(x.shape[-1], **kind)
        first, second = (torch.exp(-2 * (math.pi * width * axis) ** 2) for axis in axes)
        spectrum = torch.fft.rfft2(x) * (first[:, None] * second)
        return torch.fft.irfft2(spectrum, s=x.shape[-2:])

    return blur


def tomograph(size: int, angles: int) -> sparse.csr_array:
    r"""Parallel-beam tomography as a sparse matrix: each pixel is shared by two detector cells,

    .. math:: (A x)_{\theta, s} = \sum_p \max(0,\; 1 - |\langle p, e_\theta \rangle - s|)\, x_p,
        \qquad e_\theta = (\cos\theta, \sin\theta), \quad \theta = \tfrac{\pi k}{K}.

    Args:
        size: n: the picture has n × n pixels, positions p measured from its middle.
        angles: K, the number of views.

    Returns:
        Shape ``(K * m, n * n)``, with m detector cells that see the whole diagonal.

    Raises:
        ValueError: for numbers that are not positive.

    Example:
        >>> tomograph(8, angles=3).shape
        (39, 64)
    """
    check_count("size", size)
    check_count("angles", angles)
    middle = np.arange(size) - (size - 1) / 2
    down, right = (axis.ravel() for axis in np.meshgrid(-middle, middle, indexing="ij"))
    reach = math.ceil(size / math.sqrt(2))
    cells, pixels = 2 * reach + 1, np.arange(size * size)
    rows, columns, values = [], [], []
    for view in range(angles):
        place = (
            reach
            + right * math.cos(math.pi * view / angles)
            + down * math.sin(math.pi * view / angles)
        )
        left = np.floor(place).astype(int)
        for cell, share in ((left, 1 + left - place), (left + 1, place - left)):
            rows.append(view * cells + cell)
            columns.append(pixels)
            values.append(share)
    entries = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
    return sparse.csr_array(entries, shape=(angles * cells, size * size))


def total_variation(
    problem: LinearProblem,
    y: Tensor,
    weight: float,
    *,
    tol: float = 1e-3,
    max_steps: int = 10_000,
) -> Tensor:
    r"""The picture that minimises the total variation beside the data term,

    .. math:: \min_x\; \tfrac12 \|A x - y\|^2 + w \sum_i |(\nabla x)_i|,

    with forward differences; a convex problem, solved by the relaxed primal-dual method. By duality
    this energy is at least :math:`-\tfrac12 \|q\|^2 - \langle q, y \rangle` for all p and q with
    :math:`\nabla^* p + A^* q = 0` and :math:`|p| \le w` at each pixel i. From its steps such a
    pair is made, which proves how near the minimum is.

    Args:
        problem: the measurement, with white noise, of pictures ``(channels, height, width)``;
            the variation is that of each channel.
        y: data, shape ``(*data_shape)``.
        weight: w > 0.
        tol: the share of itself by which the energy may exceed its minimum; rounding may add to
            it where the picture is far from zero, or A nearly loses a constant.
        max_steps: of the method. A weight far below the noise takes many.

    Returns:
        The picture, without a derivative.

    Raises:
        ValueError: for points that are no pictures, data that do not fit, coloured noise, a weight,
            tolerance or number of steps that is not positive, or an operator that is zero.
        NotConverged: if it misses the tolerance; it carries the picture reached.

    Source: Rudin, Osher and Fatemi 1992; Chambolle and Pock 2011; Condat 2013.

    Example:
        >>> import torch
        >>> from invbayes import LinearProblem
        >>> problem = LinearProblem(lambda x: x, 0.1, shape=(1, 8, 8))
        >>> y = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> flat = total_variation(problem, y, weight=100.0)
        >>> bool(flat.std() < 0.01)
        True
    """
    check_positive("weight", weight)
    check_positive("tol", tol)
    check_count("max_steps", max_steps)
    _check_pictures(problem)
    check_points("y", y, problem.data_shape, like=problem.like)
    if y.shape != problem.data_shape:
        raise ValueError(f"y must be one observation, got the shape {tuple(y.shape)}")
    return least_variation(problem, y, weight, tol, max_steps)


def wiener(problem: LinearProblem, y: Tensor, pictures: Tensor) -> Tensor:
    r"""The best linear filter for pictures of this mean power, Wiener's, for a periodic convolution,

    .. math:: \hat x(\omega) = \frac{\overline{h(\omega)}\, S(\omega)}
        {|h(\omega)|^2\, S(\omega) + \delta^2}\; \hat y(\omega), \quad \omega \ne 0, \qquad
        \hat x(0) = \frac{\hat y(0)}{h(0)},

    with h the operator's symbol and S(ω) the mean of :math:`|\hat p(\omega)|^2` a pixel over the
    pictures p, less their means and under a Hann window, as they are not periodic.

    Args:
        problem: the measurement of pictures ``(channels, height, width)``, a convolution with
            periodic boundary, with white noise.
        y: data, shape ``(*, *data_shape)``.
        pictures: cut-outs of the data's size that are like the unknown one, shape ``(n, *shape)``.

    Raises:
        ValueError: for data or pictures that do not fit, coloured noise, or an operator that is no
            such convolution or loses the mean.

    Source: Wiener 1949.

    Example:
        >>> import torch
        >>> from invbayes import LinearProblem
        >>> problem = LinearProblem(torch.clone, 1.0, shape=(1, 8, 8))
        >>> generator = torch.Generator().manual_seed(0)
        >>> flat = torch.randn(50, 1, 1, 1, generator=generator).expand(50, 1, 8, 8)
        >>> y = problem.observe(flat[0], generator=generator)
        >>> torch.allclose(wiener(problem, y, flat), y.mean().expand(1, 8, 8), atol=1e-6)
        True
    """
    _check_pictures(problem)
    check_points("y", y, problem.data_shape, like=problem.like)
    check_points("pictures", pictures, problem.shape, like=problem.like)
    centred = pictures - pictures.mean((-2, -1), keepdim=True)
    power = torch.fft.fft2(centred * _hann(problem)).abs().square().mean(0)
    symbol, noise = _symbol(problem), problem.noise_std**2 * y.shape[-2:].numel()
    gain = symbol.conj() * power / (symbol.abs().square() * power + noise)
    gain[..., 0, 0] = 1 / symbol[..., 0, 0]
    return torch.fft.ifft2(torch.fft.fft2(y) * gain).real


def _check_pictures(problem: LinearProblem) -> None:
    check_instance("problem", problem, LinearProblem)
    check_pictures("problem", problem.shape)
    if problem._noise.root is not None:
        raise ValueError("problem must have white noise, got a noise_covariance")


def _symbol(problem: LinearProblem) -> Tensor:
    """What the operator multiplies each frequency by."""
    rough = torch.randn(problem.shape, generator=torch.Generator().manual_seed(0)).to(problem.like)
    spot = torch.zeros_like(rough)
    spot[..., 0, 0] = 1
    if problem.data_shape != problem.shape:
        raise ValueError("problem must be a periodic convolution, but its data have another shape")
    symbol, answer = torch.fft.fft2(problem.apply(spot)), problem.apply(rough)
    least = 1e3 * torch.finfo(rough.dtype).eps * symbol.abs().max()
    if (torch.fft.ifft2(torch.fft.fft2(rough) * symbol).real - answer).abs().max() > least:
        raise ValueError("problem must be a periodic convolution, but its operator is none")
    if symbol[..., 0, 0].abs().min() <= least:
        raise ValueError("problem must keep a picture's mean, but its operator loses it")
    return symbol


def _hann(problem: LinearProblem) -> Tensor:
    """A window with the mean square one."""
    kind = {"dtype": problem.like.dtype, "device": problem.like.device}
    down, right = (torch.hann_window(side, **kind) for side in problem.shape[-2:])
    window = down[:, None] * right
    return window / window.square().mean().sqrt()
