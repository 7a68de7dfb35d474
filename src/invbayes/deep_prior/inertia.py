"""Gradient flow, and the inertial system with viscous and Hessian-driven damping."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from invbayes._checks import check_callable, check_count, check_float_tensor, check_positive
from invbayes.deep_prior.linearised import check_damping, check_times
from invbayes.errors import NotConverged

Gradient = Callable[[Tensor], Tensor]


class Trajectory(NamedTuple):
    """A path in the space of parameters.

    Attributes:
        position: θ at the given times, shape ``(T, *S)`` for a θ of shape ``(*S,)``.
        velocity: its derivative in time, shape ``(T, *S)``.
    """

    position: Tensor
    velocity: Tensor


def gradient_flow(
    gradient: Gradient,
    start: Tensor,
    times: Tensor,
    *,
    rtol: float = 1e-10,
    atol: float = 1e-12,
    max_evaluations: int = 200_000,
) -> Trajectory:
    r"""Gradient descent in continuous time,

    .. math:: \dot\theta = -\nabla L(\theta), \qquad \theta(0) = \theta_0 .

    Args:
        gradient: ∇L, from θ of any shape to a tensor of the same shape.
        start: θ₀, in double precision, on the CPU.
        times: increasing, from 0 on, shape ``(T,)``.
        rtol: the relative tolerance of the solver, DOP853 of `scipy.integrate.solve_ivp`.
        atol: its absolute tolerance.
        max_evaluations: of the gradient. The solver is explicit: a stiff equation, or a long time,
            takes many.

    Raises:
        ValueError: for a start that is not double or has NaN, times that do not increase from 0,
            a tolerance ≤ 0.
        NotConverged: if the solver gives up, which a gradient with NaN leads to, or the
            evaluations are used up.

    Example:
        >>> import torch
        >>> start, times = torch.ones(1).double(), torch.tensor([0.0, 1.0])
        >>> round(gradient_flow(lambda theta: theta, start, times).position[-1].item(), 6)
        0.367879
    """
    _check_start(gradient, start)
    path = _integrate(lambda theta: -gradient(theta), start, times, rtol, atol, max_evaluations)
    return Trajectory(path, torch.stack([-gradient(theta).detach() for theta in path]))


def inertial_flow(
    gradient: Gradient,
    start: Tensor,
    times: Tensor,
    *,
    damping: float,
    hessian_damping: float = 0.0,
    rtol: float = 1e-10,
    atol: float = 1e-12,
    max_evaluations: int = 200_000,
) -> Trajectory:
    r"""A heavy ball with viscous and Hessian-driven damping, from rest,

    .. math:: \ddot\theta + \alpha\,\dot\theta + \beta\,\nabla^2 L(\theta)\,\dot\theta + \nabla L(\theta) = 0,
        \qquad \theta(0) = \theta_0, \quad \dot\theta(0) = 0 .

    Since :math:`\nabla^2 L(\theta)\,\dot\theta` is the derivative of :math:`\nabla L(\theta(t))`,
    no Hessian is needed: with :math:`w = \dot\theta + \beta\nabla L(\theta)`,

    .. math:: \dot\theta = w - \beta\,\nabla L(\theta), \qquad
        \dot w = -\alpha\, w + (\alpha\beta - 1)\,\nabla L(\theta) .

    Args:
        gradient: ∇L, from θ of any shape to a tensor of the same shape.
        start: θ₀, in double precision, on the CPU.
        times: increasing, from 0 on, shape ``(T,)``.
        damping: α ≥ 0, viscous.
        hessian_damping: β ≥ 0, Hessian-driven.
        rtol: as in `gradient_flow`.
        atol: as in `gradient_flow`.
        max_evaluations: as in `gradient_flow`.

    Raises:
        ValueError: as `gradient_flow`, and for a negative damping.
        NotConverged: as `gradient_flow`.

    Source: arXiv 2506.02986 (the system); the first-order form is ours, close to that of INNA
    (Castera et al., arXiv 1905.12278), which divides by β.

    Example:
        >>> import torch
        >>> start, times = torch.ones(1).double(), torch.tensor([0.0, 1.0])
        >>> path = inertial_flow(lambda theta: theta, start, times, damping=2.0)
        >>> round(path.position[-1].item(), 6)  # 2/e
        0.735759
    """
    check_damping(damping, hessian_damping)
    first_slope = _check_start(gradient, start)

    def field(state: Tensor) -> Tensor:
        theta, w = state
        slope = gradient(theta)
        return torch.stack(
            [w - hessian_damping * slope, (damping * hessian_damping - 1) * slope - damping * w]
        )

    first = torch.stack([start, hessian_damping * first_slope])
    path = _integrate(field, first, times, rtol, atol, max_evaluations)
    slopes = torch.stack([gradient(theta).detach() for theta in path[:, 0]])
    return Trajectory(path[:, 0], path[:, 1] - hessian_damping * slopes)


def _integrate(
    field: Gradient, start: Tensor, times: Tensor, rtol: float, atol: float, max_evaluations: int
) -> Tensor:
    """The solution of θ' = field(θ) at the given times, shape ``(T, *S)``."""
    _check_increasing(times, start)
    check_positive("rtol", rtol)
    check_positive("atol", atol)
    check_count("max_evaluations", max_evaluations)
    calls = count()

    def flat_field(time: float, state: np.ndarray) -> np.ndarray:
        if math.isnan(time):
            raise _stopped(0.0, next(calls), "the first step overflows")
        if next(calls) >= max_evaluations:
            raise _stopped(time, max_evaluations, "the evaluations are used up")
        return field(torch.from_numpy(state).reshape(start.shape)).detach().numpy().ravel()

    # Where the numbers overflow the solver gives up: no warning besides.
    with np.errstate(all="ignore"):
        found = solve_ivp(
            flat_field,
            (0.0, times[-1].item()),
            start.detach().numpy().ravel(),
            method="DOP853",
            t_eval=times.detach().double().numpy(),
            rtol=rtol,
            atol=atol,
        )
    if not found.success:
        # Where not even the first step succeeds, there is no time.
        raise _stopped(max(found.t, default=0.0), found.nfev, found.message)
    return torch.from_numpy(found.y.T.copy()).reshape(len(times), *start.shape)


def _stopped(time: float, evaluations: int, why: str) -> NotConverged:
    return NotConverged(f"the flow stopped after t = {time:.3g}: {why}", steps=evaluations)


def _check_start(gradient: Gradient, start: Tensor) -> Tensor:
    """The gradient at the start, which must be a finite tensor like it."""
    check_callable("gradient", gradient)
    check_float_tensor("start", start)
    if start.dtype != torch.float64 or start.device.type != "cpu":
        raise ValueError(
            f"start must be in double precision on the CPU, got {start.dtype} on {start.device}"
        )
    slope = gradient(start)
    check_float_tensor("gradient(start)", slope)
    if slope.shape != start.shape or slope.dtype != start.dtype:
        raise ValueError(
            f"gradient(start) must have the shape and dtype of start, {tuple(start.shape)} and "
            f"{start.dtype}, got {tuple(slope.shape)} and {slope.dtype}"
        )
    return slope


def _check_increasing(times: Tensor, like: Tensor) -> None:
    check_times(times, like)
    if len(times) < 2 or times[0] != 0 or not (times.diff() > 0).all():
        raise ValueError(
            f"times must be at least two, start at 0 and increase, got {times.tolist()[:5]} …"
        )
