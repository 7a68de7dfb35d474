"""When the steps of the inertial algorithm are stable, for a frozen kernel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invbayes._checks import check_positive, number
from invbayes.deep_prior.linearised import check_damping, check_spectrum


def amplification(
    eigenvalues: Tensor, *, step: float, damping: float, hessian_damping: float = 0.0
) -> Tensor:
    r"""The factor by which `Inertia` multiplies a mode in one step: the larger \|z\| with

    .. math:: z^2 - \big(1 + a(1 - \beta h\mu) - a h^2\mu\big)\, z + a(1 - \beta h\mu) = 0, \qquad
        a = \frac{1}{1 + \alpha h} .

    Args:
        eigenvalues: μ > 0, shape ``(*,)``.
        step: h > 0.
        damping: α ≥ 0.
        hessian_damping: β ≥ 0.

    Returns:
        Factors, shape ``(*,)``; the mode is stable when its factor is below one.

    Raises:
        ValueError: for arguments outside these ranges.

    Example:
        >>> import torch
        >>> amplification(torch.tensor([1.0, 5.0]), step=1.0, damping=0.0) > 1
        tensor([False,  True])
    """
    check_spectrum(eigenvalues)
    check_positive("step", step)
    check_damping(damping, hessian_damping)
    # In double and without squares: a large step gives a large factor, or infinity, but no NaN.
    mu, pull = eigenvalues.double(), 1 / (1 / step + damping)  # pull = a h
    product = pull / step - (hessian_damping * pull) * mu
    half_sum = ((1 + product - pull * (step * mu)) / 2).abs()
    root = product.abs().sqrt()
    real_gap = (half_sum - root).clamp(min=0).sqrt() * (half_sum + root).sqrt()
    gap = torch.where(product < 0, torch.hypot(half_sum, root), real_gap)
    return torch.maximum(half_sum + gap, root).to(eigenvalues)


def largest_step(largest: float, *, damping: float, hessian_damping: float = 0.0) -> float:
    r"""The stability bound of `Inertia`: the h at which the stiffest mode stops to decay,

    .. math:: h^2\mu + 2\beta h\mu < 4 + 2\alpha h .

    Args:
        largest: μ = μ_max > 0, the largest eigenvalue of the kernel.
        damping: α ≥ 0.
        hessian_damping: β ≥ 0.

    Returns:
        The h with equality. For every smaller h > 0 and every eigenvalue up to μ, a positive
        damping makes the mode decay.

    Raises:
        ValueError: for arguments outside these ranges, or so extreme that no float holds h.

    Example:
        >>> largest_step(1.0, damping=0.0)
        2.0
    """
    check_positive("largest", largest)
    check_damping(damping, hessian_damping)
    step = bounding_step(number("largest", largest), damping, hessian_damping)
    if not 0 < step < math.inf:
        raise ValueError(f"largest must have a step that a float can hold, got {largest}")
    return step


def bounding_step(largest: float, damping: float, hessian_damping: float) -> float:
    """`largest_step` without its checks."""
    half = damping - hessian_damping * largest
    root = math.hypot(half, 2 * math.sqrt(largest))
    # Of the two forms of the root, the one without a difference of nearly equal numbers.
    return (half + root) / largest if half >= 0 else 4 / (root - half)
