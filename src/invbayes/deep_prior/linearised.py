"""What the linearised dynamics predict: modes, rates, the optimal damping, the residual."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invbayes._checks import (
    check_float_tensor,
    check_not_negative,
    check_positive,
    check_vector,
    number,
)


def mode_roots(eigenvalues: Tensor, *, damping: float, hessian_damping: float = 0.0) -> Tensor:
    r"""The exponents of a mode under inertia: the two roots of

    .. math:: r^2 + (\alpha + \beta\mu)\, r + \mu = 0 .

    They multiply to μ, so the slower one decays at most like :math:`e^{-\sqrt{\mu}\,t}`.

    Args:
        eigenvalues: μ > 0 of the kernel, shape ``(*,)``.
        damping: α ≥ 0, viscous.
        hessian_damping: β ≥ 0, Hessian-driven.

    Returns:
        Complex roots, shape ``(*, 2)``, the slower one first.

    Raises:
        ValueError: for eigenvalues that are not above zero, in half precision, or for a damping
            that is negative or overflows.

    Source: the linearisation of the inertial system of arXiv 2506.02986.

    Example:
        >>> import torch
        >>> mode_roots(torch.tensor([0.09]), damping=1.0).real
        tensor([[-0.1000, -0.9000]])
    """
    check_spectrum(eigenvalues)
    check_damping(damping, hessian_damping)
    half, root = _friction(eigenvalues, damping, hessian_damping) / 2, eigenvalues.sqrt()
    # Factors, and not half² − μ: squares overflow.
    gap = (half - root).abs().sqrt() * (half + root).sqrt()
    swing = torch.where(half < root, gap, 0)
    fast = torch.where(half < root, -half, -half - gap)
    # The product is known: no difference of nearly equal numbers.
    slow = torch.where(half < root, -half, eigenvalues / fast)
    return torch.complex(torch.stack([slow, fast], -1), torch.stack([swing, -swing], -1))


def decay_rate(eigenvalues: Tensor, *, damping: float, hessian_damping: float = 0.0) -> float:
    r"""The rate ρ at which the linearised residual decays under inertia, like :math:`e^{-\rho t}`,

    .. math:: \rho = \min_i \min_{\pm}\, (-\mathrm{Re}\, r_\pm(\mu_i)) \le \sqrt{\mu_{\min}} .

    The loss decays at twice this rate. Gradient flow's rate is :math:`\mu_{\min}`.

    Arguments and errors are those of `mode_roots`, with eigenvalues of shape ``(m,)``.

    Example:
        >>> import torch
        >>> round(decay_rate(torch.tensor([0.09, 1.0]), damping=0.6), 6)
        0.3
    """
    roots = mode_roots(eigenvalues, damping=damping, hessian_damping=hessian_damping)
    return -roots.real.max().item()


def optimal_damping(smallest: float, *, hessian_damping: float = 0.0) -> float:
    r"""The viscous damping that reaches the best rate, :math:`\sqrt{\mu_{\min}}`,

    .. math:: \alpha = 2\sqrt{\mu_{\min}} - \beta\mu_{\min}, \qquad 0 \le \beta \le 1/\sqrt{\mu_{\min}} .

    Args:
        smallest: μ_min > 0, the smallest eigenvalue of the kernel.
        hessian_damping: β; beyond :math:`1/\sqrt{\mu_{\min}}` large eigenvalues decay more slowly
            than the smallest, and no α helps.

    Raises:
        ValueError: for arguments outside these ranges.

    Example:
        >>> optimal_damping(0.25), optimal_damping(0.25, hessian_damping=2.0)
        (1.0, 0.5)
    """
    check_positive("smallest", smallest)
    check_not_negative("hessian_damping", hessian_damping)
    smallest = number("smallest", smallest)
    root = math.sqrt(smallest)
    if hessian_damping > 1 / root:
        raise ValueError(
            f"hessian_damping must be at most 1/sqrt(smallest) = {1 / root:.4g}, got {hessian_damping}"
        )
    return 2 * root - hessian_damping * smallest


def linearised_gradient_flow(kernel: Tensor, residual: Tensor, times: Tensor) -> Tensor:
    r"""The residual under gradient flow with a frozen kernel,

    .. math:: \dot r = -K r, \qquad r(t) = e^{-tK}\, r(0) .

    Args:
        kernel: K, symmetric, shape ``(m, m)``.
        residual: r(0), shape ``(m,)``.
        times: t, shape ``(T,)``.

    Returns:
        r(t), shape ``(T, m)``.

    Raises:
        ValueError: for wrong shapes, NaN, or a kernel that is not symmetric.

    Example:
        >>> import torch
        >>> linearised_gradient_flow(torch.eye(1), torch.ones(1), torch.tensor([1.0]))
        tensor([[0.3679]])
    """
    eigenvalues, modes, amplitudes = _modes(kernel, residual)
    check_times(times, kernel)
    # Of an eigenvalue below this not even the sign is known, and exp(-tμ) may grow.
    least = len(kernel) * torch.finfo(kernel.dtype).eps * eigenvalues.abs().max()
    eigenvalues = torch.where(eigenvalues.abs() > least, eigenvalues, 0)
    return (torch.exp(-times[:, None] * eigenvalues) * amplitudes) @ modes.mT


def linearised_inertia(
    kernel: Tensor,
    residual: Tensor,
    times: Tensor,
    *,
    damping: float,
    hessian_damping: float = 0.0,
) -> tuple[Tensor, Tensor]:
    r"""The residual under inertia with a frozen kernel, from rest, and its energy,

    .. math:: \ddot r + (\alpha + \beta K)\, \dot r + K r = 0, \qquad \dot r(0) = 0, \qquad
        E = \tfrac12 \|r\|^2 + \tfrac12 \langle \dot r, K^{-1} \dot r\rangle .

    The second part of E is the kinetic energy :math:`\tfrac12\|\dot\theta\|^2` of the parameters.

    Args:
        kernel: K, symmetric and positive definite, shape ``(m, m)``.
        residual: r(0), shape ``(m,)``.
        times: t, shape ``(T,)``.
        damping: α ≥ 0.
        hessian_damping: β ≥ 0.

    Returns:
        r(t), shape ``(T, m)``, and E(t), shape ``(T,)``.

    Raises:
        ValueError: for wrong shapes, NaN, a kernel that is not symmetric and positive definite, or
            a damping that is negative or overflows.

    Example:
        >>> import torch
        >>> r, energy = linearised_inertia(torch.eye(1), torch.ones(1), torch.tensor([1.0]), damping=2.0)
        >>> r  # critically damped: (1 + t) exp(-t)
        tensor([[0.7358]])
    """
    check_damping(damping, hessian_damping)
    eigenvalues, modes, amplitudes = _modes(kernel, residual)
    check_times(times, kernel)
    if not eigenvalues[0] > 0:
        came = f"{eigenvalues[0].item():.3g}"
        raise ValueError(f"kernel must be positive definite, got the eigenvalue {came}")
    friction = _friction(eigenvalues, damping, hessian_damping)
    check_float_tensor("times * damping", times.double()[:, None] * friction.double())
    place, speed = _motion(eigenvalues.double(), times.double()[:, None], damping, hessian_damping)
    place, speed = place.to(kernel) * amplitudes, speed.to(kernel) * amplitudes
    energy = (place.square() + speed.square() / eigenvalues).sum(-1) / 2
    return place @ modes.mT, energy


def check_damping(damping: float, hessian_damping: float) -> None:
    """Raise unless both dampings are finite and not negative."""
    check_not_negative("damping", damping)
    check_not_negative("hessian_damping", hessian_damping)


def check_spectrum(eigenvalues: Tensor) -> None:
    """Raise unless there are eigenvalues, all finite and above zero."""
    _check_precise("eigenvalues", eigenvalues)
    if not eigenvalues.numel():
        raise ValueError("eigenvalues must not be empty")
    if not (eigenvalues > 0).all():
        raise ValueError(f"eigenvalues must be > 0, got {eigenvalues.min().item():.3g}")


def check_times(times: Tensor, like: Tensor) -> None:
    """Raise unless ``times`` is a vector of finite times that ``like``'s dtype can hold."""
    check_float_tensor("times", times)
    if times.ndim != 1 or times.dtype.itemsize > like.dtype.itemsize:
        raise ValueError(
            f"times must have shape (T,) and no more precision than {like.dtype}, "
            f"got {tuple(times.shape)} and {times.dtype}"
        )


def _check_precise(name: str, value: Tensor) -> None:
    """Raise unless ``value`` is a finite tensor in single or double precision."""
    check_float_tensor(name, value)
    if value.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} must be in single or double precision, got {value.dtype}")


def _friction(eigenvalues: Tensor, damping: float, hessian_damping: float) -> Tensor:
    """α + βμ, which must not overflow."""
    friction = damping + hessian_damping * eigenvalues
    if not torch.isfinite(friction).all():
        raise ValueError(
            f"damping must keep damping + hessian_damping * eigenvalue finite in {friction.dtype}, "
            f"got {damping} and hessian_damping {hessian_damping}"
        )
    return friction


def _motion(
    eigenvalues: Tensor, t: Tensor, damping: float, hessian_damping: float
) -> tuple[Tensor, Tensor]:
    """Place and speed of modes that start at one, from rest; near roots, too, lose no digits."""
    roots = mode_roots(eigenvalues, damping=damping, hessian_damping=hessian_damping)
    slow, fast = roots.unbind(-1)
    gap, swing = (slow.real - fast.real).clamp(min=1e-200), slow.imag
    moved = -torch.expm1(-gap * t) / gap * torch.sinc(swing * t / math.pi)  # one factor is t or 1
    decay = torch.exp(slow.real * t)
    return decay * (torch.cos(swing * t) - slow.real * moved), -eigenvalues * decay * moved


def _modes(kernel: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues and eigenvectors of the kernel, and the residual in their basis."""
    _check_precise("kernel", kernel)
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or not len(kernel):
        raise ValueError(f"kernel must have shape (m, m), got {tuple(kernel.shape)}")
    # Relative to the largest entry: a product like A M Aᵀ is symmetric up to its rounding only.
    skew, size = (kernel - kernel.mT).abs().max(), kernel.abs().max()
    if skew > torch.finfo(kernel.dtype).eps ** 0.5 * size:
        raise ValueError(f"kernel must be symmetric, got entries that differ by {skew.item():.3g}")
    check_vector("residual", residual, len(kernel), like=kernel)
    eigenvalues, modes = torch.linalg.eigh(kernel)
    return eigenvalues, modes, residual @ modes
