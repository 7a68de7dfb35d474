"""The minimum of a strongly convex energy of many unknowns, to a guaranteed error, without a matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from invbayes._checks import check_positive
from invbayes.bayes.problems import LinearProblem, gain_of_any
from invbayes.errors import NotConverged
from invbayes.networks.conjugate import Product, symmetric_solver
from invbayes.networks.descent import descend, linearised, truncated_newton
from invbayes.networks.implicit import attach_iterative
from invbayes.networks.iresnet import InvertibleResNet

STEPS = 300  # of Newton's method
DEFAULT = 1e-6  # the tolerance, where rounding allows it


class Convex(Protocol):
    r"""A `LearnedPosterior` whose :math:`F(x) = A^*\!A\, x + t\,(\varphi(x) - x)` is a gradient.

    Attributes:
        net, problem, ratio: φ of one block, A, and t.
    """

    net: InvertibleResNet
    problem: LinearProblem
    ratio: float

    def forward_map(self, x: Tensor) -> Tensor:
        """F(x)."""


def minimum(of: Convex, least: float, z: Tensor, tol: float | None) -> Tensor:
    r"""The x with F(x) = z for points ``(*, *shape)``, each to an error of ``tol``,

    .. math:: \|x - x_*\| \le \frac{\|F(x) - z\|}{\mu} \le \mathrm{tol},

    with the least slope μ > 0 of F. Rounding in F(x) − z, ε times the lengths of its terms, counts
    as residual; eight times as much raises the default tolerance. The derivative is the implicit
    one, to a relative residual of √ε.
    """
    if tol is not None:
        check_positive("tol", tol)
    if not z.numel():
        return z.clone()
    rows = z.reshape(-1, *of.problem.shape)
    products = linearised(of.net, of.problem, of.ratio)
    with torch.no_grad():
        x = _searched(of, products, least, rows.detach(), tol)
        _judge(of, least, rows.detach(), x, tol, z.shape)
    if torch.is_grad_enabled():
        solver = symmetric_solver(products, x, (_largest(of) / least) ** 0.5)
        x = attach_iterative(lambda x: x - of.forward_map(x), rows, x, solver)
    return x.reshape(z.shape)


def _searched(
    of: Convex, products: Callable[[Tensor], Product], least: float, z: Tensor, tol: float | None
) -> Tensor:
    """Downhill from zero, each point until its residual is small enough, or as far as it goes."""
    start, newton = torch.zeros_like(z), truncated_newton(products)
    rounding = _rounding(of, start, z)
    if tol is None:
        goal = (DEFAULT * least / 2) + 4 * rounding
    elif tol * least < 4 * rounding.max():
        reachable = 4 * rounding.max().item() / least
        raise ValueError(
            f"tol must be at least {reachable:.1e}, which {z.dtype} can reach here, got {tol:.1e}"
        )
    else:
        goal = tol * least - 2 * rounding
    goal = goal.to(z).reshape(-1, *[1] * (z.ndim - 1))
    try:
        return descend(
            lambda x, chosen: (of.forward_map(x) - z[chosen]) / goal[chosen],
            lambda x, chosen, value: newton(x, chosen, value * goal[chosen]),
            start,
            longest=math.inf,
            tol=1.0,
            max_steps=STEPS,
        )
    except NotConverged as failure:
        return failure.point


def _judge(
    of: Convex, least: float, z: Tensor, x: Tensor, tol: float | None, shape: torch.Size
) -> None:
    """Raise unless each point is near enough, with what rounding may hide."""
    rounding = _rounding(of, x, z)
    left = _sizes(of.forward_map(x) - z) + rounding
    enough = (8 * rounding).clamp(min=DEFAULT * least) if tol is None else tol * least
    if not (left <= enough).all():
        bound = left.max().item() / least
        raise NotConverged(
            f"the search missed the tolerance {tol or DEFAULT:.1e}; its error is bounded by "
            f"{bound:.1e} only",
            steps=STEPS,
            bound=bound,
            point=x.reshape(shape),
        )


def _rounding(of: Convex, x: Tensor, z: Tensor) -> Tensor:
    """What rounding may make of F(x) − z, for each point, in double precision."""
    terms = z, of.problem.mean_normal_data(x), of.ratio * of.net(x), of.ratio * x
    return torch.finfo(z.dtype).eps * sum(_sizes(term) for term in terms)


def _sizes(points: Tensor) -> Tensor:
    return points.double().flatten(1).norm(dim=1)


def _largest(of: Convex) -> float:
    """About the largest slope."""
    return gain_of_any(of.problem) + of.ratio * of.net.scale.item() * (1 + of.net.lipschitz)
