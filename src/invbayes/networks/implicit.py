"""The derivative of a fixed point, from the equation that it solves: dx = (I − Df)⁻¹ d(z + f)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from invbayes.networks.precision import in_full_precision

Map = Callable[[Tensor], Tensor]
Resolve = Callable[[Map, Tensor], Tensor]


def attach_direct(
    with_jacobian: Callable[[Tensor], tuple[Tensor, Tensor]], z: Tensor, solution: Tensor
) -> Tensor:
    """The solution with its derivative in z and in the parameters of f, by one linear solve."""
    value, jacobian = with_jacobian(solution)
    residual = z + value - solution
    matrix = torch.eye(z.shape[-1]).to(z) - jacobian.detach()
    return solution + _Solve.apply(residual - residual.detach(), matrix)


def attach_iterative(f: Map, z: Tensor, solution: Tensor, resolve: Resolve) -> Tensor:
    """The same without a Jacobian: every product with (I − Df)⁻¹ is itself a fixed point."""
    residual = z + f(solution) - solution
    return solution + _Resolvent.apply(residual - residual.detach(), f, solution, resolve)


class _Stop(torch.autograd.Function):
    """The identity, which cannot be differentiated, in the value or in all that it came from."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, *_origins: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(_ctx: Any, _grad: Tensor) -> tuple[None, ...]:
        raise NotImplementedError("fixed_point has no second derivative")

    @staticmethod
    def jvp(_ctx: Any, *_tangents: Tensor) -> Tensor:
        raise NotImplementedError("fixed_point has no second derivative")


class _Solve(torch.autograd.Function):
    """The identity, with the derivative (I − Df)⁻¹, by a linear solve."""

    generate_vmap_rule = True

    @staticmethod
    def forward(r: Tensor, _matrix: Tensor) -> Tensor:
        return r.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        r, matrix = ctx.saved_tensors
        return _Stop.apply(torch.linalg.solve(matrix.mT, grad), r), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _none: None) -> Tensor:
        r, matrix = ctx.saved_tensors
        return _Stop.apply(torch.linalg.solve(matrix, tangent), r)


class _Resolvent(torch.autograd.Function):
    """The identity, with the derivative (I − Df(x))⁻¹, by iterations with Df or its transpose."""

    @staticmethod
    def forward(r: Tensor, _f: Map, _x: Tensor, _resolve: Resolve) -> Tensor:
        return r.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        r, ctx.f, x, ctx.resolve = inputs
        ctx.save_for_backward(r, x)
        ctx.save_for_forward(r, x)

    @staticmethod
    @in_full_precision
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        r, x = ctx.saved_tensors
        _, pull = torch.func.vjp(ctx.f, x)
        with torch.no_grad():
            found = ctx.resolve(lambda w: pull(w)[0], grad)
        return _Stop.apply(found, r, grad), None, None, None

    @staticmethod
    @in_full_precision
    def jvp(ctx: Any, tangent: Tensor, *_others: Any) -> Tensor:
        r, x = ctx.saved_tensors
        with torch.no_grad():
            found = ctx.resolve(lambda w: torch.func.jvp(ctx.f, (x,), (w,))[1], tangent)
        return _Stop.apply(found, r, tangent)
