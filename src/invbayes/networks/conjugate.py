"""Conjugate gradients for many systems at a time, each with its own symmetric matrix."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
# A step of Newton's method: how far it is solved, and by how many products at most.
REDUCTION, PRODUCTS = 0.05, 50


def conjugate_gradients(product: Product, right: Tensor, *, reduction: float, most: int) -> Tensor:
    """Solve M v = r for rows r ``(n, d)``, until each residual has fallen by the factor ``reduction``.

    The product M v must treat each row by itself, with a symmetric matrix. A row stops, too, where
    a direction curves down, ⟨M v, v⟩ ≤ 0: with what was found before, at first with r itself. After
    ``most`` products the point reached is returned: the caller judges it.
    """
    found, rest = torch.zeros_like(right), right
    direction, size = rest, _dot(rest, rest)
    enough, tiny = reduction**2 * size, torch.finfo(right.dtype).tiny
    moving = size > enough
    for count in range(most):
        if not moving.any():
            break
        image = product(direction)
        curvature = _dot(direction, image)
        if count == 0:
            found = torch.where(curvature > 0, found, right)
        moving = moving & (curvature > 0)
        length = torch.where(moving, size / curvature.clamp(min=tiny), 0)
        found, rest = found + length * direction, rest - length * image
        before, size = size, _dot(rest, rest)
        direction = rest + size / before.clamp(min=tiny) * direction
        moving = moving & (size > enough)
    return found


def symmetric_solver(
    linearised: Callable[[Tensor], Product], x: Tensor, spread: float
) -> Callable[[Product, Tensor], Tensor]:
    """Solves M w = v for the symmetric M of a point x, to a relative residual of √ε.

    ``spread`` is about the root of the condition number. The first argument of the solver, another
    way to the product, is not used.
    """

    def resolve(_: Product, v: Tensor) -> Tensor:
        product, (size, unit) = linearised(x), polar(v.flatten(1))
        reduction = torch.finfo(v.dtype).eps ** 0.5
        found = conjugate_gradients(
            lambda w: product(w.reshape(x.shape)).flatten(1),
            unit,
            reduction=reduction,
            most=math.ceil(math.log(2 / reduction) * spread),
        )
        return (size * found).reshape(x.shape)

    return resolve


def polar(v: Tensor) -> tuple[Tensor, Tensor]:
    """The length of each row and its direction, without squares of tiny numbers."""
    largest = v.abs().amax(-1, keepdim=True)
    unit = v / torch.where(largest > 0, largest, 1)
    size = unit.norm(dim=-1, keepdim=True)
    return largest * size, unit / torch.where(size > 0, size, 1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ for each row, ``(n, 1)``."""
    return (a * b).sum(-1, keepdim=True)
