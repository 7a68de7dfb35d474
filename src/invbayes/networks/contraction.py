"""Fixed points of contractions, to a guaranteed error: with a Jacobian, or without any."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, NoReturn, get_args

import torch
from torch import Tensor

from invbayes._checks import (
    Shape,
    check_callable,
    check_contraction,
    check_float_tensor,
    check_points,
    check_positive,
)
from invbayes.errors import NotConverged
from invbayes.networks.conjugate import polar, symmetric_solver
from invbayes.networks.implicit import attach_direct, attach_iterative
from invbayes.networks.steps import Linearised, LinearSteps, Method, Points, Steps, make_steps

Map = Callable[[Tensor], Tensor]
MapWithJacobian = Callable[[Tensor], tuple[Tensor, Tensor]]


def fixed_point(
    f: Map,
    z: Tensor,
    *,
    lipschitz: float,
    tol: float | None = None,
    method: Method | None = None,
    start: Tensor | None = None,
    with_jacobian: MapWithJacobian | None = None,
) -> Tensor:
    r"""Solve :math:`x = z + f(x)` for a contraction f, to a guaranteed error,

    .. math:: \|x - x_*\| \le \frac{\|z + f(x) - x\|}{1 - L} \le \mathrm{tol}, \qquad \mathrm{Lip}(f) \le L < 1.

    The middle term bounds the error of *any* point x, whatever led to it: from
    :math:`x_* - x = (z + f(x) - x) + (f(x_*) - f(x))` and the Lipschitz bound. We stop on it, and
    not on the length of a step, which can be short while the error is still large.

    A plain step :math:`x \leftarrow z + f(x)` multiplies the residual by L at most. The other
    methods try a better step, keep it where it multiplies the residual by max(L, 0.9) at most,
    and take a plain step elsewhere, so the number of steps is bounded in advance. Newton's method
    tries its step, then a quarter of it. Anderson's method combines the last six steps; it needs
    neither a Jacobian nor memory for one. Points that are done cost nothing more. Rounding in
    :math:`z + f(x) - x`, up to ε(\|z\| + \|f(x)\| + \|x\|), counts as residual; rounding inside f
    does not, and is the caller's to judge.

    The derivative in z and in the parameters of f is the implicit one: by one linear solve with
    :math:`(I - Df(x))^\top` for Newton's method, else by solving :math:`w = v + Df(x)^\top w` with
    Anderson's method to a relative error of √ε. A second derivative raises.

    Args:
        f: the contraction, ``(n, d)`` to ``(n, d)``, each row by itself.
        z: right-hand sides, shape ``(*, d)``.
        lipschitz: L, in (0, 1), in the Euclidean norm.
        tol: the largest error of each point, in the units of x. By default 1e-6, or eight times
            what rounding leaves at the answer where the dtype cannot reach that.
        method: ``"newton"``, which needs ``with_jacobian`` and is the default with it;
            ``"anderson"``, the default without; or ``"plain"``.
        start: where to begin, shape ``(*, d)``; by default z. The answer depends on it within ``tol`` only.
        with_jacobian: f together with its Jacobian: ``(n, d)`` to ``(n, d)`` and ``(n, d, d)``.

    Raises:
        ValueError: for L outside (0, 1), a tolerance that is not positive or that the dtype cannot
            reach, NaN in z, a start of another shape, or f of wrong shape.
        NotConverged: if a point misses the tolerance: L is no bound, or rounding stops the descent.
            It carries the point reached.

    Source: Banach's fixed-point theorem; Behrmann et al. 2019 invert residual blocks this way;
    Anderson 1965 and Walker and Ni 2011 for the combined steps.

    Example:
        >>> import torch
        >>> fixed_point(lambda x: x / 2, torch.tensor([[1.0]]), lipschitz=0.5)
        tensor([[2.0000]])
        >>> half = lambda x: (x / 2, torch.full((*x.shape, 1), 0.5))
        >>> fixed_point(lambda x: x / 2, torch.tensor([[1.0]]), lipschitz=0.5, with_jacobian=half)
        tensor([[2.]])
    """
    check_callable("f", f)
    check_float_tensor("z", z)
    check_contraction(lipschitz)
    if z.ndim == 0 or not z.shape[-1]:
        raise ValueError(f"z must have shape (*, d) with d > 0, got {tuple(z.shape)}")
    if start is not None:
        check_start(start, z, z.shape[-1:])
    flat, first = (p.reshape(-1, z.shape[-1]) for p in (z, z if start is None else start))
    goal = Goal.of(lipschitz, tol)
    try:
        found = solve(f, flat, first, goal, method=method, with_jacobian=with_jacobian)
    except NotConverged as failure:
        failure.point = failure.point.reshape(z.shape)
        raise
    return found.reshape(z.shape)


class Goal(NamedTuple):
    """What a solver must reach: an error, of which a part is the caller's tolerance.

    Attributes:
        lipschitz: L.
        tol: the caller's tolerance.
        share: the part of it that is left to this solver.
        strict: whether rounding may not raise it.
        growth: how much more rounding there is inside of f than around it.
    """

    lipschitz: float
    tol: float
    share: float = 1.0
    strict: bool = True
    growth: float = 1.0

    @classmethod
    def of(cls, lipschitz: float, tol: float | None) -> Goal:
        """The caller's tolerance, or the default, which rounding may raise."""
        if tol is None:
            return cls(lipschitz, 1e-6, strict=False)
        check_positive("tol", tol)
        return cls(lipschitz, float(tol))

    @property
    def least(self) -> float:
        """The residual to be reached, without regard to rounding."""
        return self.tol * self.share * (1 - self.lipschitz)

    def residual(self, rounding: Tensor, *, last: bool = False) -> Tensor:
        """The residual to be reached at each point; at the last step plain iterations get more.

        Their rounding errors add up, like a random walk that forgets at the rate 1 − L.
        """
        least = torch.full_like(rounding, self.least)
        factor = 8 / (1 - self.lipschitz) ** 0.5 if last else 8
        return least if self.strict else torch.maximum(least, factor * rounding)

    def check_reachable(self, z: Tensor) -> None:
        """The residual cannot be computed better than to a few roundings of z."""
        size = z.norm(dim=-1).max().item() if len(z) else 0.0
        info = torch.finfo(z.dtype)
        reachable = max(2 * info.eps * size, info.tiny) / (1 - self.lipschitz) / self.share
        if self.strict and self.tol < reachable:
            raise ValueError(
                f"tol must be at least {reachable:.1e}, which {z.dtype} can reach for z of size "
                f"{size:.1e} and lipschitz {self.lipschitz:g}, got {self.tol:.1e}"
            )


def solve(
    f: Map,
    z: Tensor,
    start: Tensor,
    goal: Goal,
    *,
    method: Method | None,
    with_jacobian: MapWithJacobian | None = None,
    linearised: Linearised | None = None,
) -> Tensor:
    """`fixed_point` for rows ``(n, d)``, with a goal of its own; f may be linearised if a gradient."""
    if method not in (None, *get_args(Method)):
        raise ValueError(f"method must be one of {[*get_args(Method)]}, got {method!r}")
    method = method or ("newton" if with_jacobian else "anderson")
    if method == "newton" and with_jacobian is None:
        raise ValueError("method 'newton' needs with_jacobian, got none")
    if method == "newton-cg" and linearised is None:
        raise ValueError("method 'newton-cg' is for blocks that are gradients, got another map")
    goal.check_reachable(z)
    steps = make_steps(method, f, with_jacobian, linearised)
    with torch.no_grad():
        solution = _iterate(steps, z.detach(), start.detach(), goal)
    if not torch.is_grad_enabled():
        return solution
    if method == "newton":
        return attach_direct(with_jacobian, z, solution)
    if method == "newton-cg":
        spread = (1 - goal.lipschitz) ** -0.5
        solver = symmetric_solver(_complement(linearised), solution, spread)
        return attach_iterative(f, z, solution, solver)
    return attach_iterative(f, z, solution, _adjoint_solver(goal.lipschitz))


def _complement(linearised: Linearised) -> Linearised:
    """x to the product v ↦ v − Df(x) v."""

    def at(x: Tensor) -> Map:
        product = linearised(x)
        return lambda v: v - product(v)

    return at


def _adjoint_solver(lipschitz: float) -> Callable[[Map, Tensor], Tensor]:
    """Solves w = v + B w for a linear B with ‖B‖ ≤ L, to a relative error of about √ε."""

    def resolve(product: Map, v: Tensor) -> Tensor:
        size, unit = polar(v)
        eps = torch.finfo(v.dtype).eps
        goal = Goal(lipschitz, max(eps**0.5, 8 * eps / (1 - lipschitz)), strict=False)
        return size * _iterate(LinearSteps(product, len(v)), unit, unit, goal)

    return resolve


def check_start(start: Tensor, z: Tensor, shape: Shape) -> None:
    """Raise unless the start is of the kind and shape of z."""
    check_points("start", start, shape, like=z)
    if start.shape != z.shape:
        raise ValueError(
            f"start must have the shape of z, {tuple(z.shape)}, got {tuple(start.shape)}"
        )


def _iterate(steps: Steps, z: Tensor, start: Tensor, goal: Goal) -> Tensor:
    """Iterate on the points that are not done. NaN never counts as done."""
    solution, active = start.clone(), torch.arange(len(z), device=z.device)
    points = steps.at(active, z, start)
    most = _most_steps(points, goal)
    for count in range(most + 1):
        size, rounding = points.size(), goal.growth * points.rounding()
        enough = goal.residual(rounding, last=count == most)
        moving = ~(size + rounding <= enough)
        if not moving.any():
            break
        active, points = active[moving], points.take(moving)
        steps.keep(moving)
        if count == most or ((size <= enough) & (rounding > enough)).any():
            _give_up(points, count, goal, solution)
        points = steps.advance(points, goal.lipschitz)
        solution[active] = points.x
    return solution


def _most_steps(points: Points, goal: Goal) -> int:
    """How many contractions by max(L, 0.9) bring the largest residual to a quarter of the goal."""
    largest = points.size().max().item() if len(points.x) else 0.0
    if not math.isfinite(largest):
        raise NotConverged("f is not finite at the start", point=points.x)
    ratio = max(4 * largest / max(goal.least, torch.finfo(points.x.dtype).tiny), 1.0)
    return 2 + math.ceil(math.log(ratio) / -math.log(max(goal.lipschitz, 0.9)))


def _give_up(points: Points, steps: int, goal: Goal, solution: Tensor) -> NoReturn:
    left = points.size() + goal.growth * points.rounding()
    bound = (left.max() / (1 - goal.lipschitz)).item()
    raise NotConverged(
        f"{len(points.x)} points missed the tolerance {goal.tol:.1e} after {steps} steps; their error "
        f"is bounded by {bound:.1e} only. Either {goal.lipschitz:g} is no Lipschitz bound, or "
        f"{points.x.dtype} is too coarse",
        steps=steps,
        bound=bound,
        point=solution.clone(),
    )
