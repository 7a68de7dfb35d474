"""Fixed points of contractions, to a guaranteed error, and their implicit derivative."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, NoReturn

import torch
from torch import Tensor

from invbayes._checks import check_float_tensor, check_points, check_positive
from invbayes.errors import NotConverged

MapWithJacobian = Callable[[Tensor], tuple[Tensor, Tensor]]


def fixed_point(
    with_jacobian: MapWithJacobian,
    z: Tensor,
    *,
    lipschitz: float,
    tol: float = 1e-6,
    method: Literal["newton", "plain"] = "newton",
    start: Tensor | None = None,
) -> Tensor:
    r"""Solve :math:`x = z + f(x)` for a contraction f, to a guaranteed error,

    .. math:: \|x - x_*\| \le \frac{\|z + f(x) - x\|}{1 - L} \le \mathrm{tol}, \qquad \mathrm{Lip}(f) \le L < 1.

    The middle term bounds the error of *any* point x, whatever led to it: from
    :math:`x_* - x = (z + f(x) - x) + (f(x_*) - f(x))` and the Lipschitz bound. We stop on it, and
    not on the length of a step, which can be short while the error is still large.

    A plain step :math:`x \leftarrow z + f(x)` multiplies the residual by L at most. A Newton step,
    or a quarter of it, is taken where it multiplies the residual by max(L, 0.9) at most, and a
    plain step elsewhere, so the number of steps is bounded in advance. Points that are done cost
    nothing more. Rounding in :math:`z + f(x) - x`, up to ε(\|z\| + \|f(x)\| + \|x\|), counts as
    residual; rounding inside f does not, and is the caller's to judge.

    The derivative in z and in the parameters of f is the implicit one, by one linear solve
    with :math:`(I - Df(x))^\top`; a second derivative raises.

    Args:
        with_jacobian: f together with its Jacobian: ``(n, d)`` to ``(n, d)`` and ``(n, d, d)``.
        z: right-hand sides, shape ``(*, d)``.
        lipschitz: L, in (0, 1), in the Euclidean norm.
        tol: the largest error of each point, in the units of x.
        method: ``"newton"`` (safeguarded) or ``"plain"``.
        start: where to begin, shape ``(*, d)``; by default z. The answer depends on it within ``tol`` only.

    Raises:
        ValueError: for L outside (0, 1), a tolerance that is not positive or that the dtype cannot
            reach, NaN in z, or a start of another shape.
        NotConverged: if a point misses the tolerance: L is no bound, or rounding stops the descent.

    Source: Banach's fixed-point theorem; Behrmann et al. 2019 invert residual blocks this way.

    Example:
        >>> import torch
        >>> half = lambda x: (x / 2, torch.full((*x.shape, 1), 0.5))
        >>> fixed_point(half, torch.tensor([[1.0]]), lipschitz=0.5)
        tensor([[2.]])
    """
    check_float_tensor("z", z)
    check_contraction(lipschitz)
    check_positive("tol", tol)
    if method not in ("newton", "plain"):
        raise ValueError(f"method must be 'newton' or 'plain', got {method!r}")
    flat, first = (points.reshape(-1, z.shape[-1]) for points in (z, _first(z, start)))
    _check_reachable(flat, lipschitz, tol)
    with torch.no_grad():
        solution = _solve(with_jacobian, flat, first, lipschitz, tol, newton=method == "newton")
    if torch.is_grad_enabled():
        solution = _attach(with_jacobian, flat, solution)
    return solution.reshape(z.shape)


def check_contraction(lipschitz: float) -> None:
    """Raise unless the bound lies strictly between zero and one."""
    if not 0 < lipschitz < 1:
        raise ValueError(f"lipschitz must lie in (0, 1), got {lipschitz}")


def _first(z: Tensor, start: Tensor | None) -> Tensor:
    if start is None:
        return z
    check_points("start", start, z.shape[-1], like=z)
    if start.shape != z.shape:
        raise ValueError(
            f"start must have the shape of z, {tuple(z.shape)}, got {tuple(start.shape)}"
        )
    return start


def _check_reachable(z: Tensor, lipschitz: float, tol: float) -> None:
    """The residual cannot be computed better than to a few roundings of z."""
    size = z.norm(dim=-1).max().item() if len(z) else 0.0
    info = torch.finfo(z.dtype)
    reachable = max(2 * info.eps * size, info.tiny) / (1 - lipschitz)
    if tol < reachable:
        raise ValueError(
            f"tol must be at least {reachable:.1e}, which {z.dtype} can reach for z of size "
            f"{size:.1e} and lipschitz {lipschitz:g}, got {tol:.1e}"
        )


class _Points(NamedTuple):
    """Points on their way, with f and its Jacobian there."""

    target: Tensor
    x: Tensor
    value: Tensor
    jacobian: Tensor

    @classmethod
    def at(cls, with_jacobian: MapWithJacobian, target: Tensor, x: Tensor) -> _Points:
        return cls(target, x, *(part.clone() for part in with_jacobian(x)))

    def take(self, chosen: Tensor) -> _Points:
        return _Points(*(part[chosen] for part in self))

    @property
    def residual(self) -> Tensor:
        return self.target + self.value - self.x

    def size(self) -> Tensor:
        return self.residual.norm(dim=-1)

    def rounding(self) -> Tensor:
        """How far the residual's size may be off, since it is a difference of larger numbers."""
        terms = self.target.norm(dim=-1) + self.value.norm(dim=-1) + self.x.norm(dim=-1)
        return torch.finfo(terms.dtype).eps * terms


def _solve(
    with_jacobian: MapWithJacobian,
    z: Tensor,
    start: Tensor,
    lipschitz: float,
    tol: float,
    *,
    newton: bool,
) -> Tensor:
    """Iterate on the points that are not done. NaN never counts as done."""
    solution, active = start.clone(), torch.arange(len(z), device=z.device)
    points, goal = _Points.at(with_jacobian, z, start), tol * (1 - lipschitz)
    most = _most_steps(points, lipschitz, goal)
    for count in range(most + 1):
        size, rounding = points.size(), points.rounding()
        moving = ~(size + rounding <= goal)
        if not moving.any():
            break
        active, points = active[moving], points.take(moving)
        if count == most or ((size <= goal) & (rounding > goal)).any():
            _give_up(points, count, tol, lipschitz)
        step = _newton_step(points) if newton else points.residual
        points = _advance(with_jacobian, points, step, lipschitz)
        solution[active] = points.x
    return solution


def _newton_step(points: _Points) -> Tensor:
    identity = torch.eye(points.x.shape[-1]).to(points.x)
    return torch.linalg.solve_ex(identity - points.jacobian, points.residual)[0]


def _advance(
    with_jacobian: MapWithJacobian, points: _Points, step: Tensor, lipschitz: float
) -> _Points:
    """Try the step, then a quarter of it; where neither shrinks the residual, a plain step."""
    enough = max(lipschitz, 0.9) * points.size()
    moved = _Points.at(with_jacobian, points.target, points.x + step)
    for trial in (points.x + step / 4, points.x + points.residual):
        poor = (~(moved.size() <= enough)).nonzero().flatten()
        if not len(poor):
            break
        again = _Points.at(with_jacobian, points.target[poor], trial[poor])
        for part, fresh in zip(moved, again, strict=True):
            part[poor] = fresh
    return moved


def _most_steps(points: _Points, lipschitz: float, goal: float) -> int:
    """How many contractions by max(L, 0.9) bring the largest residual to a quarter of the goal."""
    largest = points.size().max().item() if len(points.x) else 0.0
    if not math.isfinite(largest):
        raise NotConverged("f is not finite at the start", steps=0, bound=float("inf"))
    return 2 + math.ceil(math.log(max(4 * largest / goal, 1.0)) / -math.log(max(lipschitz, 0.9)))


def _give_up(points: _Points, steps: int, tol: float, lipschitz: float) -> NoReturn:
    bound = ((points.size() + points.rounding()).max() / (1 - lipschitz)).item()
    raise NotConverged(
        f"{len(points.x)} points missed the tolerance {tol:.1e} after {steps} steps; their error is "
        f"bounded by {bound:.1e} only. Either {lipschitz:g} is no Lipschitz bound, or "
        f"{points.x.dtype} is too coarse",
        steps=steps,
        bound=bound,
    )


def _attach(with_jacobian: MapWithJacobian, z: Tensor, solution: Tensor) -> Tensor:
    """The solution, with the implicit derivative in z and in the parameters of f."""
    value, jacobian = with_jacobian(solution)
    residual = z + value - solution
    return solution + _Implicit.apply(residual - residual.detach(), jacobian.detach())


class _Implicit(torch.autograd.Function):
    """Forward the identity; backward v ↦ (I − Df)⁻ᵀ v, since dx = (I − Df)⁻¹ d(z + f)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, r: Tensor, jacobian: Tensor) -> Tensor:
        ctx.save_for_backward(jacobian)
        return r.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():  # create_graph=True: this formula would lose terms
            raise NotImplementedError("fixed_point has no second derivative")
        (jacobian,) = ctx.saved_tensors
        identity = torch.eye(grad.shape[-1]).to(grad)
        return torch.linalg.solve((identity - jacobian).mT, grad), None
