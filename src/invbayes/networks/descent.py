"""Descent along a field that is, or nearly is, a gradient: Newton's steps with a safeguard."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from invbayes._checks import check_count, check_positive
from invbayes.bayes.problems import LinearProblem
from invbayes.errors import NotConverged
from invbayes.networks.conjugate import PRODUCTS, REDUCTION, Product, conjugate_gradients
from invbayes.networks.evidence import mean_along
from invbayes.networks.inversion import best_method
from invbayes.networks.iresnet import InvertibleResNet

Field = Callable[[Tensor, Tensor], Tensor]
FieldWithJacobian = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Direction = Callable[[Tensor, Tensor, Tensor], Tensor]
HALVINGS = 40
# The least curvature that a step outside of a valley trusts, relative to the largest.
FLOOR = 1e-3


class StationaryPoints(NamedTuple):
    """Where a search ended.

    Attributes:
        x: the points, shape ``(*, *shape)``.
        residual: the length of :math:`\\varphi_{A,\\delta}(x) - z`, shape ``(*,)``.
        is_mode: whether the symmetric part of the Jacobian is positive definite there, ``(*,)``.
    """

    x: Tensor
    residual: Tensor
    is_mode: Tensor


def descend(
    field: Field,
    direction: Direction,
    starts: Tensor,
    *,
    longest: float,
    tol: float | None,
    max_steps: int,
) -> Tensor:
    r"""Points ``(n, *shape)`` where the field vanishes, downhill from the starts.

    The field F may depend on the row of a point: ``field(x, rows)`` for some of the points, and
    ``direction(x, rows, value)`` tells where to go, as `newton` and `truncated_newton` do. No step
    is longer than ``longest``, the length over which F may change, and a step v is halved until
    the work :math:`\int_0^1 \langle F(x + \tau v), v \rangle\, \mathrm{d}\tau` is negative
    enough: for a gradient that is the change of its potential.
    """
    check_count("max_steps", max_steps)
    tol = torch.finfo(starts.dtype).eps ** 0.6 if tol is None else tol
    check_positive("tol", tol)
    x, rows = starts.clone(), torch.arange(len(starts), device=starts.device)
    for count in range(max_steps + 1):
        value = field(x[rows], rows)
        size = value.flatten(1).norm(dim=1)
        moving = ~(size <= tol)
        rows, value, size = rows[moving], value[moving], size[moving]
        if not len(rows) or count == max_steps:
            break
        step = direction(x[rows], rows, value).flatten(1)
        step = step * (longest / step.norm(dim=1, keepdim=True)).clamp(max=1)
        x[rows] += _shortened(field, x[rows], rows, value, step.reshape(value.shape))
    if len(rows):
        worst = size.max().item()
        raise NotConverged(
            f"{len(rows)} of {len(x)} searches missed the residual {tol:.1e} after {max_steps} "
            f"steps; the largest is {worst:.1e}",
            steps=max_steps,
            bound=worst,
            point=x,
        )
    return x


def newton(with_jacobian: FieldWithJacobian) -> Direction:
    """Newton's steps in valleys, with the whole Jacobian; elsewhere steps that turn downhill."""

    def direction(x: Tensor, rows: Tensor, value: Tensor) -> Tensor:
        return _downhill(value.flatten(1), with_jacobian(x, rows)[1])

    return direction


def truncated_newton(linearised: Callable[[Tensor], Product]) -> Direction:
    """Newton's steps by conjugate gradients for a field that is a gradient.

    Each is solved to a twentieth, or until a direction curves down, and leads downhill.
    """

    def direction(x: Tensor, _rows: Tensor, value: Tensor) -> Tensor:
        product = linearised(x)

        def flat(v: Tensor) -> Tensor:
            return product(v.reshape(x.shape)).flatten(1)

        return -conjugate_gradients(flat, value.flatten(1), reduction=REDUCTION, most=PRODUCTS)

    return direction


def best_direction(
    net: InvertibleResNet,
    problem: LinearProblem,
    ratio: float,
    with_jacobian: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> Direction:
    """Newton's for A*A x + t (φ(x) − x), by conjugate gradients where no Jacobian is at hand or needed."""
    if best_method(net.blocks[0], problem.dim) != "newton-cg":
        return newton(lambda x, _: with_jacobian(x))
    return truncated_newton(linearised(net, problem, ratio))


def linearised(
    net: InvertibleResNet, problem: LinearProblem, ratio: float
) -> Callable[[Tensor], Product]:
    """x to the product with the derivative of A*A x + t (φ(x) − x), for a block that is a gradient."""
    block, scale, lipschitz = net.blocks[0].prepared(), net.scale, net.lipschitz

    def curvature(product: Product, v: Tensor) -> Tensor:
        inner = scale * (v - lipschitz * product(v)) - v
        return problem.mean_normal_data(v) + ratio * inner

    return lambda x: partial(curvature, block.linearised(x))


def _downhill(value: Tensor, jacobian: Tensor) -> Tensor:
    """Newton's step in a valley; elsewhere along the curvatures' sizes, so that it leads down."""
    curvatures, axes = torch.linalg.eigh((jacobian + jacobian.mT) / 2)
    size = curvatures.abs()
    size = size.maximum(FLOOR * size.amax(-1, keepdim=True)).clamp(min=torch.finfo(size.dtype).tiny)
    along = (axes.mT @ value[..., None]).squeeze(-1) / size
    turned = -(axes @ along[..., None]).squeeze(-1)
    newton = -torch.linalg.solve_ex(jacobian, value)[0]
    valley = (curvatures[:, :1] > 0) & torch.isfinite(newton).all(-1, keepdim=True)
    return torch.where(valley, newton, turned)


def _shortened(field: Field, x: Tensor, rows: Tensor, value: Tensor, step: Tensor) -> Tensor:
    """The step, halved where the work along it is not negative enough."""
    slope = (value * step).flatten(1).sum(1)
    share = torch.ones_like(slope)
    for _ in range(HALVINGS):
        shorter = share.reshape(-1, *[1] * (step.ndim - 1)) * step
        poor = ~(_work(field, x, rows, shorter) <= 1e-4 * share * slope)
        if not poor.any():
            break
        share = torch.where(poor, share / 2, share)
    return shorter


def _work(field: Field, x: Tensor, rows: Tensor, step: Tensor) -> Tensor:
    """The work along each step, by Gauss's rule with five nodes: no difference of large numbers."""
    total = mean_along(lambda points: field(points, rows), x, step, nodes=5)
    return (total * step).flatten(1).sum(1)
