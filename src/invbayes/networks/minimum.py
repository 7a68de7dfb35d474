"""The minimum of a strongly convex energy of many unknowns, to a guaranteed error, without a matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from invbayes._checks import check_positive
from invbayes.bayes.problems import LinearProblem, largest_gain
from invbayes.errors import NotConverged
from invbayes.networks.conjugate import conjugate_gradients, polar
from invbayes.networks.descent import Product, descend, linearised, truncated_newton
from invbayes.networks.implicit import attach_iterative
from invbayes.networks.iresnet import InvertibleResNet

Map = Callable[[Tensor], Tensor]
STEPS = 300  # of Newton's method
ROUNDING = 4  # the terms of F(x) − z, each about as large as z


class Convex(Protocol):
    r"""A `LearnedPosterior` whose :math:`F(x) = A^*\!A\, x + t\,(\varphi(x) - x)` is a gradient.

    Attributes:
        net, problem, ratio: φ of one block, A, and t.
        longest: the longest step of a search.
    """

    net: InvertibleResNet
    problem: LinearProblem
    ratio: float
    longest: float

    def forward_map(self, x: Tensor) -> Tensor:
        """F(x)."""


def minimum(of: Convex, least: float, z: Tensor, tol: float | None) -> Tensor:
    r"""The x with F(x) = z for points ``(*, *shape)``, each to an error of ``tol``,

    .. math:: \|x - x_*\| \le \frac{\|F(x) - z\|}{\mu} \le \mathrm{tol},

    with the least slope μ > 0 of F. Rounding in F(x) − z, a few ε‖z‖, counts as residual. The
    derivative is the implicit one.
    """
    if not z.numel():
        return z.clone()
    rows = z.reshape(-1, *of.problem.shape)
    size = rows.detach().flatten(1).norm(dim=1).max().item()
    rounding = ROUNDING * torch.finfo(z.dtype).eps * size
    tol = _reachable(tol, rounding / least)
    products = linearised(of.net, of.problem, of.ratio)
    with torch.no_grad():
        x = _searched(of, products, rows.detach(), least, rounding, tol, z.shape)
    if torch.is_grad_enabled():
        solver = _solver(products, x, (_largest(of) / least) ** 0.5)
        x = attach_iterative(lambda x: x - of.forward_map(x), rows, x, solver)
    return x.reshape(z.shape)


def _largest(of: Convex) -> float:
    """About the largest slope."""
    ones = torch.ones(of.problem.shape).to(of.problem.like)
    gain = largest_gain(of.problem, ones, steps=30).item()
    return gain + of.ratio * of.net.scale.item() * (1 + of.net.lipschitz)


def _reachable(tol: float | None, rounding: float) -> float:
    """The tolerance, or the default, which rounding may raise."""
    if tol is None:
        return max(1e-6, 8 * rounding)
    check_positive("tol", tol)
    if tol < 2 * rounding:
        raise ValueError(f"tol must be at least {2 * rounding:.1e}, by rounding, got {tol:.1e}")
    return float(tol)


def _searched(
    of: Convex,
    products: Callable[[Tensor], Product],
    z: Tensor,
    least: float,
    rounding: float,
    tol: float,
    shape: torch.Size,
) -> Tensor:
    """Downhill from zero, until the residual and what rounding may hide of it are small enough."""
    options = {"longest": of.longest, "tol": least * tol - rounding, "max_steps": STEPS}
    direction, start = truncated_newton(products), torch.zeros_like(z)
    try:
        return descend(lambda x, rows: of.forward_map(x) - z[rows], direction, start, **options)
    except NotConverged as failure:
        bound = (failure.bound + rounding) / least
        raise NotConverged(
            f"the search missed the tolerance {tol:.1e} after {failure.steps} steps; its error is "
            f"bounded by {bound:.1e} only",
            steps=failure.steps,
            bound=bound,
            point=failure.point.reshape(shape),
        ) from failure


def _solver(
    products: Callable[[Tensor], Product], x: Tensor, spread: float
) -> Callable[[Map, Tensor], Tensor]:
    """Solves DF(x) w = v by conjugate gradients; ``spread`` is the root of the condition number."""

    def resolve(_: Map, v: Tensor) -> Tensor:
        product, (size, unit) = products(x), polar(v.flatten(1))
        reduction = torch.finfo(v.dtype).eps ** 0.5
        found = conjugate_gradients(
            lambda w: product(w.reshape(x.shape)).flatten(1),
            unit,
            reduction=reduction,
            most=math.ceil(math.log(2 / reduction) * spread),
        )
        return (size * found).reshape(x.shape)

    return resolve
