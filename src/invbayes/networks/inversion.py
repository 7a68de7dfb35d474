"""The inverse of residual blocks, one after the other, with one tolerance for all."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from invbayes.errors import NotConverged
from invbayes.networks.blocks import BlockMap, has_own_jacobian
from invbayes.networks.contraction import Goal, MapWithJacobian, solve
from invbayes.networks.steps import Linearised, Method

# Up to this many unknowns a Jacobian and its factorisation cost less than the steps they save.
NEWTON_DIM = 128


def newton_pays(block: BlockMap, dim: int) -> bool:
    """Whether a Jacobian of this many unknowns costs less than the steps that it saves."""
    return dim <= NEWTON_DIM and has_own_jacobian(block)


def best_method(block: BlockMap, dim: int) -> Method:
    """Newton's method where it pays, with conjugate gradients for gradients; Anderson's elsewhere."""
    if newton_pays(block, dim):
        return "newton"
    return "newton-cg" if getattr(block, "is_gradient", False) else "anderson"


def undo_blocks(
    maps: list[BlockMap], z: Tensor, start: Tensor | None, goal: Goal, method: Method | None
) -> Tensor:
    r"""The x with :math:`(\mathrm{Id} - L g_B) \circ \dots \circ (\mathrm{Id} - L g_1)(x) = z`.

    From the last block to the first. An error of a block grows by 1/(1 − L) at most in each that
    is undone after it, and the tolerance is shared out accordingly. When a block misses its
    share, the others are undone all the same, so that the error carries an x.
    """
    failure, starts = None, _images(maps, start, goal.lipschitz)
    for later, g in reversed([*enumerate(maps)]):
        share = (1 - goal.lipschitz) ** later / len(maps)
        try:
            z = _undo(g, z, starts[later], goal._replace(share=share), method)
        except NotConverged as error:
            failure, z = error, error.point.reshape(z.shape)
    if failure is not None:
        failure.point = z
        raise failure
    return z


def _undo(
    g: BlockMap, z: Tensor, start: Tensor | None, goal: Goal, method: Method | None
) -> Tensor:
    """The x with x − L g(x) = z, for rows of points of any shape."""
    shape = z.shape[1:]
    if method is None:
        method = best_method(g, shape.numel())

    def f(rows: Tensor) -> Tensor:
        return goal.lipschitz * g(rows.reshape(-1, *shape)).flatten(1)

    flat, first = z.flatten(1), (z if start is None else start).flatten(1)
    with_jacobian = _scaled(g, shape, goal.lipschitz) if method == "newton" else None
    linearised = _linear(g, shape, goal.lipschitz) if getattr(g, "is_gradient", False) else None
    derivatives = {"with_jacobian": with_jacobian, "linearised": linearised}
    return solve(f, flat, first, goal, method=method, **derivatives).reshape(z.shape)


def _linear(g: BlockMap, shape: torch.Size, lipschitz: float) -> Linearised:
    def linearised(rows: Tensor) -> Callable[[Tensor], Tensor]:
        product = g.linearised(rows.reshape(-1, *shape))
        return lambda v: lipschitz * product(v.reshape(-1, *shape)).flatten(1)

    return linearised


def _scaled(g: BlockMap, shape: torch.Size, lipschitz: float) -> MapWithJacobian:
    def with_jacobian(rows: Tensor) -> tuple[Tensor, Tensor]:
        value, jacobian = g.with_jacobian(rows.reshape(-1, *shape))
        return lipschitz * value.flatten(1), lipschitz * jacobian

    return with_jacobian


@torch.no_grad()
def _images(maps: list[BlockMap], start: Tensor | None, lipschitz: float) -> list[Tensor | None]:
    """What each block receives when the network is applied to the start."""
    images = [start]
    for g in maps[:-1]:
        images.append(None if start is None else images[-1] - lipschitz * g(images[-1]))
    return images
