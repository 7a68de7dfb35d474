"""Fixed points of contractions, to a guaranteed error, and their implicit derivative."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from invbayes._checks import check_float_tensor, check_positive
from invbayes.errors import NotConverged

Map = Callable[[Tensor], Tensor]
MapWithJacobian = Callable[[Tensor], tuple[Tensor, Tensor]]


def fixed_point(
    with_jacobian: MapWithJacobian,
    z: Tensor,
    *,
    lipschitz: float,
    tol: float = 1e-6,
    method: Literal["newton", "plain"] = "newton",
) -> Tensor:
    r"""Solve :math:`x = z + f(x)` for a contraction f, to a guaranteed error,

    .. math:: \|x - x_*\| \le \frac{\|z + f(x) - x\|}{1 - L} \le \mathrm{tol}, \qquad \mathrm{Lip}(f) \le L < 1.

    The middle term bounds the error of *any* point x, whatever led to it: from
    :math:`x_* - x = (z + f(x) - x) + (f(x_*) - f(x))` and the Lipschitz bound. We stop on it, and
    not on the length of a step, which can be short while the error is still large.

    A plain step :math:`x \leftarrow z + f(x)` multiplies the residual by L at most. A Newton step
    is taken, whole or damped, where it does so too or better, and a plain step elsewhere, so the
    number of steps is bounded in advance. Points that are done cost nothing more.

    The derivative in z and in the parameters of f is the implicit one, by one linear solve
    with :math:`(I - Df(x))^\top`; a second derivative raises.

    Args:
        with_jacobian: f together with its Jacobian: ``(n, d)`` to ``(n, d)`` and ``(n, d, d)``.
        z: right-hand sides, shape ``(*, d)``.
        lipschitz: L, in (0, 1), in the Euclidean norm.
        tol: the largest error of each point, in the units of x.
        method: ``"newton"`` (safeguarded) or ``"plain"``.

    Raises:
        ValueError: for L outside (0, 1), a tolerance that is not positive or that the dtype cannot
            reach, or NaN in z.
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
    flat = z.reshape(-1, z.shape[-1])
    _check_reachable(flat, lipschitz, tol)
    with torch.no_grad():
        solution = _solve(with_jacobian, flat, lipschitz, tol, newton=method == "newton")
    if torch.is_grad_enabled():
        solution = _attach(with_jacobian, flat, solution)
    return solution.reshape(z.shape)


def check_contraction(lipschitz: float) -> None:
    """Raise unless the bound lies strictly between zero and one."""
    if not 0 < lipschitz < 1:
        raise ValueError(f"lipschitz must lie in (0, 1), got {lipschitz}")


def _check_reachable(z: Tensor, lipschitz: float, tol: float) -> None:
    """The residual cannot be computed better than to a few roundings of z."""
    size = z.norm(dim=-1).max().item() if len(z) else 0.0
    reachable = 2 * torch.finfo(z.dtype).eps * size / (1 - lipschitz)
    if tol < reachable:
        raise ValueError(
            f"tol must be at least {reachable:.1e}, which {z.dtype} can reach for z of size "
            f"{size:.1e} and lipschitz {lipschitz:g}, got {tol:.1e}"
        )


def _solve(
    with_jacobian: MapWithJacobian, z: Tensor, lipschitz: float, tol: float, *, newton: bool
) -> Tensor:
    """Iterate on the points that are not done, from x = z."""
    x, active, goal = z.clone(), torch.arange(len(z), device=z.device), tol * (1 - lipschitz)
    target, (value, jacobian) = z, with_jacobian(z)
    residual = target + value - x
    for _ in range(_most_steps(residual, lipschitz, goal)):
        moving = residual.norm(dim=-1) > goal
        if not moving.any():
            return x
        active, target, residual = active[moving], target[moving], residual[moving]
        step = _newton_step(residual, jacobian[moving]) if newton else residual
        x[active], residual, jacobian = _advance(
            with_jacobian, x[active], target, residual, step, lipschitz
        )
    return _accept(x, residual, goal, tol, lipschitz)


def _newton_step(residual: Tensor, jacobian: Tensor) -> Tensor:
    identity = torch.eye(residual.shape[-1]).to(residual)
    return torch.linalg.solve(identity - jacobian, residual)


def _advance(
    with_jacobian: MapWithJacobian,
    x: Tensor,
    target: Tensor,
    residual: Tensor,
    step: Tensor,
    lipschitz: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Try the step, then a quarter of it; where neither shrinks the residual, a plain step."""
    size, point = residual.norm(dim=-1), x + step
    value, jacobian = (part.clone() for part in with_jacobian(point))
    fresh = target + value - point
    for trial in (x + step / 4, x + residual):
        poor = (fresh.norm(dim=-1) > max(lipschitz, 0.9) * size).nonzero().flatten()
        if not len(poor):
            break
        point[poor] = trial[poor]
        value[poor], jacobian[poor] = with_jacobian(point[poor])
        fresh[poor] = target[poor] + value[poor] - point[poor]
    return point, fresh, jacobian


def _most_steps(residual: Tensor, lipschitz: float, goal: float) -> int:
    """How many contractions by max(L, 0.9) bring the largest residual to the goal."""
    largest = residual.norm(dim=-1).max().item() if len(residual) else 0.0
    ratio = max(largest / goal, 1.0)
    return 2 + math.ceil(math.log(ratio) / -math.log(max(lipschitz, 0.9)))


def _accept(x: Tensor, residual: Tensor, goal: float, tol: float, lipschitz: float) -> Tensor:
    """The points, or NotConverged with the bound that was reached."""
    worst = residual.norm(dim=-1).max().item() if len(residual) else 0.0
    if worst <= goal:
        return x
    bound, count = worst / (1 - lipschitz), int((residual.norm(dim=-1) > goal).sum())
    raise NotConverged(
        f"{count} of {len(x)} points missed the tolerance {tol:.1e}; their error is bounded by "
        f"{bound:.1e} only. Either {lipschitz:g} is no Lipschitz bound, or {x.dtype} is too coarse",
        steps=_most_steps(residual, lipschitz, goal),
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
