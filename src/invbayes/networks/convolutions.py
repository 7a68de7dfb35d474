"""The norm of a convolution: certified, for images of every size."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from invbayes._checks import check_count, check_float_tensor


def convolution_norm(weight: Tensor, grid: int | None = None) -> Tensor:
    r"""A bound of the norm of a convolution on images of every size, circular or padded with zeros,

    .. math:: \sup_\theta \|T(\theta)\|_2 \le \frac{\max_{\theta \in \Theta_N} \|T(\theta)\|_2}{\cos(\pi r_1 / N) \cos(\pi r_2 / N)},
        \qquad T(\theta) = \sum_k w_k\, e^{-i \langle k, \theta \rangle},

    with :math:`r_i = (s_i - 1) / 2` for a kernel of :math:`s_1 \times s_2` and the grid
    :math:`\Theta_N` of N × N frequencies. T is the convolution's symbol: on the whole lattice the
    left side is the norm, on a finite image it bounds the norm. Differentiable, by the largest
    frequency.

    Args:
        weight: w, shape ``(out, in, s_1, s_2)``, as of `torch.nn.functional.conv2d`.
        grid: N, above twice the kernel's radius; by default 64, or four times the side of a kernel
            of more than 16. The bound is too large by 1 % at most for a 5 × 5 kernel on a grid of
            64, by .24 % on one of 128.

    Returns:
        A number.

    Raises:
        ValueError: for a weight that is no finite tensor of four axes in single or double
            precision, or a grid that is too coarse.

    Source: symbols on one image size, Sedghi, Gupta and Long 2019; for every size chapter 10 of
    the book, by M. Riesz's lemma.

    Example:
        >>> import torch
        >>> average = torch.full((1, 1, 3, 3), 1 / 9)
        >>> round(convolution_norm(average, grid=128).item(), 3)
        1.001
    """
    check_float_tensor("weight", weight)
    if weight.ndim != 4 or not weight.numel():
        raise ValueError(f"weight must have shape (out, in, s_1, s_2), got {tuple(weight.shape)}")
    if weight.dtype.itemsize < 4:
        raise ValueError(f"weight must be in single or double precision, got {weight.dtype}")
    radii = [(size - 1) / 2 for size in weight.shape[2:]]
    grid = max(64, 4 * max(weight.shape[2:])) if grid is None else grid
    check_count("grid", grid, math.floor(2 * max(radii)) + 1)
    first, second = _loudest(weight.detach(), grid)
    size = torch.linalg.matrix_norm(_symbol(weight, grid, first, second), 2)
    return size / math.prod(math.cos(math.pi * radius / grid) for radius in radii)


def unit_convolution(weight: Tensor, grid: int | None = None) -> Tensor:
    """The weight divided by its `convolution_norm`, with a margin for rounding; zero stays zero."""
    eps = torch.finfo(weight.dtype).eps
    margin = 1 + (64 + 4 * math.prod(weight.shape[1:])) * eps
    return weight / (convolution_norm(weight, grid) * margin).clamp(
        min=torch.finfo(weight.dtype).tiny
    )


def _loudest(weight: Tensor, grid: int) -> tuple[int, int]:
    """The frequency of the grid with the largest norm; half the grid tells, as w is real."""
    weight = weight / weight.abs().max().clamp(
        min=torch.finfo(weight.dtype).tiny
    )  # squares to come
    symbols = torch.fft.rfft2(weight, s=(grid, grid)).movedim((2, 3), (0, 1))
    if 1 in weight.shape[:2]:
        sizes = symbols.flatten(2).abs().square().sum(-1)  # one row or column: no decomposition
    else:
        sizes = torch.linalg.matrix_norm(symbols, 2)
    return divmod(int(sizes.argmax()), sizes.shape[1])


def _symbol(weight: Tensor, grid: int, first: int, second: int) -> Tensor:
    """T at one frequency, a complex matrix ``(out, in)``, differentiable."""
    turns = [
        torch.arange(size, device=weight.device) * index % grid
        for size, index in zip(weight.shape[2:], (first, second), strict=True)
    ]
    angle = (turns[0][:, None] + turns[1]).to(weight) * (2 * math.pi / grid)
    return torch.complex((weight * angle.cos()).sum((2, 3)), -(weight * angle.sin()).sum((2, 3)))


def circular(x: Tensor, weight: Tensor) -> Tensor:
    """A convolution as `torch.nn.functional.conv2d` writes it, the picture going on periodically."""
    if max(weight.shape[2:]) > min(x.shape[2:]):
        raise ValueError(f"x must not be smaller than the kernel, got {tuple(x.shape)}")
    pads = [p for size in reversed(weight.shape[2:]) for p in ((size - 1) // 2, size // 2)]
    return nn.functional.conv2d(nn.functional.pad(x, pads, mode="circular"), weight)


def circular_adjoint(b: Tensor, weight: Tensor) -> Tensor:
    """The adjoint of `circular`: one matrix product, and what it spreads is added up.

    Several times faster than a convolution where it leads to few channels.
    """
    sizes, kernel = b.shape[2:], weight.shape[2:]
    spread = weight.flatten(1).mT @ b.flatten(2)
    padded = [n + k - 1 for n, k in zip(sizes, kernel, strict=True)]
    canvas = nn.functional.fold(spread, padded, tuple(kernel))
    for axis, (n, k) in enumerate(zip(sizes, kernel, strict=True), 2):
        canvas = _wrapped(canvas, axis, n, (k - 1) // 2)
    return canvas


def _wrapped(canvas: Tensor, axis: int, size: int, before: int) -> Tensor:
    """The middle of one axis, with what lies beyond its ends added at the other end."""
    head, middle, tail = canvas.split((before, size, canvas.shape[axis] - size - before), axis)
    rest = size - head.shape[axis]
    middle = torch.cat(
        [middle.narrow(axis, 0, rest), middle.narrow(axis, rest, before) + head], axis
    )
    after = tail.shape[axis]
    return torch.cat(
        [middle.narrow(axis, 0, after) + tail, middle.narrow(axis, after, size - after)], axis
    )
