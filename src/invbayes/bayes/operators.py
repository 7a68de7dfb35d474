"""Linear operators: a matrix, dense or sparse, or a function with its adjoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy import sparse
from torch import Tensor

from invbayes._checks import check_callable, check_count, check_matrix

Map = Callable[[Tensor], Tensor]


class Operator(ABC):
    """A linear map of points ``(n, *shape)`` to data ``(n, *data_shape)``, and its adjoint."""

    shape: tuple[int, ...]
    data_shape: tuple[int, ...]
    like: Tensor

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """A x for rows x."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A* y for rows y."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """The dense matrix of the flattened operator."""

    @abstractmethod
    def to(self, device: torch.device | None, dtype: torch.dtype | None) -> Operator:
        """The same operator for points of another device or dtype."""


@dataclass(frozen=True)
class Matrix(Operator):
    """A dense or sparse matrix ``(m, d)``."""

    like: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(d,)."""
        return (self.like.shape[1],)

    @property
    def data_shape(self) -> tuple[int, ...]:
        """(m,)."""
        return (self.like.shape[0],)

    def apply(self, x: Tensor) -> Tensor:
        """A x for rows x."""
        return (self.like @ x.mT).mT if self.like.is_sparse else x @ self.like.mT

    def adjoint(self, y: Tensor) -> Tensor:
        """A* y for rows y."""
        return (self.like.t() @ y.mT).mT if self.like.is_sparse else y @ self.like

    def matrix(self) -> Tensor:
        """The dense matrix."""
        return self.like.to_dense() if self.like.is_sparse else self.like

    def to(self, device: torch.device | None, dtype: torch.dtype | None) -> Operator:
        """The matrix on another device or in another dtype."""
        return Matrix(self.like.to(device=device, dtype=dtype))


@dataclass(frozen=True)
class Function(Operator):
    """A function of batches; its adjoint by automatic differentiation, unless it is given."""

    function: Map
    transpose: Map | None
    shape: tuple[int, ...]
    data_shape: tuple[int, ...]
    like: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """A x for rows x."""
        return self.function(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """A* y for rows y."""
        if self.transpose is not None:
            return self.transpose(y)
        # Of a linear map any point has the same derivative.
        _, pull = torch.func.vjp(self.function, y.new_zeros(len(y), *self.shape))
        return pull(y)[0]

    def matrix(self) -> Tensor:
        """The image of every unit vector: d evaluations in one batch."""
        units = torch.eye(self.shape.numel()).to(self.like)
        return self.apply(units.reshape(-1, *self.shape)).flatten(1).mT.contiguous()

    def to(self, device: torch.device | None, dtype: torch.dtype | None) -> Operator:
        """The same function, which must follow its input's device and dtype."""
        like = self.like.to(device=device, dtype=dtype)
        return function_operator(self.function, self.transpose, self.shape, like)


def matrix_operator(operator: Tensor) -> Matrix:
    """A checked copy of a dense or sparse matrix, also one of `scipy.sparse`."""
    if sparse.issparse(operator):
        found = operator.tocoo()
        place = torch.stack([torch.from_numpy(part.copy()).long() for part in found.coords])
        operator = torch.sparse_coo_tensor(place, torch.from_numpy(found.data.copy()), found.shape)
    if isinstance(operator, Tensor) and operator.layout != torch.strided:
        operator = (operator if operator.is_sparse else operator.to_sparse()).coalesce()
        check_matrix("operator", operator.values()[None], None)
        return Matrix(operator.clone())
    check_matrix("operator", operator, None)
    return Matrix(operator.clone())


def function_operator(
    function: Map, adjoint: Map | None, shape: tuple[int, ...], like: Tensor
) -> Function:
    """A function as an operator; tried on random points, its adjoint compared with it."""
    for name, value in {"operator": function, **({"adjoint": adjoint} if adjoint else {})}.items():
        check_callable(name, value)
    for size in shape:
        check_count("shape", size)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *shape, generator=generator, dtype=like.dtype).to(like.device)
    image = _tried("operator", function, x)
    found = Function(function, adjoint, torch.Size(shape), image.shape[1:], like)
    y = torch.randn(image.shape, generator=generator, dtype=like.dtype).to(like.device)
    back = _tried("adjoint", found.adjoint, y, hint="; or give the adjoint as a function")
    if back.shape != x.shape:
        raise ValueError(
            f"adjoint must map (n, *{tuple(y.shape[1:])}) to (n, *{shape}), got {tuple(back.shape)}"
        )
    left, right = (image * y).sum(), (x * back).sum()
    size = image.norm() * y.norm() + x.norm() * back.norm()
    if not (left - right).abs() <= 1e3 * torch.finfo(like.dtype).eps * size:
        raise ValueError(
            f"operator must be linear, and adjoint its adjoint: <A x, y> = {left.item():.6g}, "
            f"<x, A* y> = {right.item():.6g} for random x and y"
        )
    return found


def _tried(name: str, function: Map, points: Tensor, hint: str = "") -> Tensor:
    """The image of two points, or a ValueError that says why there is none."""
    try:
        with torch.no_grad():
            image = function(points)
    except Exception as error:
        raise ValueError(
            f"{name} failed on a batch of shape {tuple(points.shape)}{hint}: {error}"
        ) from error
    fits = isinstance(image, Tensor) and image.ndim >= 1 and len(image) == len(points)
    if not fits or image.dtype != points.dtype or not torch.isfinite(image).all():
        came = f"{tuple(image.shape)}, {image.dtype}" if isinstance(image, Tensor) else type(image)
        raise ValueError(
            f"{name} must map a batch to a finite batch of the same dtype {points.dtype}, "
            f"got {came} for {tuple(points.shape)}"
        )
    return image
