"""Linear operators: a matrix, dense or sparse, or a function with its adjoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from scipy import sparse
from torch import Tensor

from invbayes._checks import check_callable, check_count, check_float_tensor, check_matrix

Map = Callable[[Tensor], Tensor]
FAR = 1024  # how much further a function is tried; a power of two, so that it adds no rounding


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
    """A dense or sparse matrix ``(m, d)``, for points of any shape with d entries."""

    like: Tensor
    shape: tuple[int, ...]

    @property
    def data_shape(self) -> tuple[int, ...]:
        """(m,)."""
        return (self.like.shape[0],)

    def apply(self, x: Tensor) -> Tensor:
        """A x for points ``(n, *shape)``."""
        rows = x.flatten(1)
        return (self.like @ rows.mT).mT if self.like.is_sparse else rows @ self.like.mT

    def adjoint(self, y: Tensor) -> Tensor:
        """A* y for rows y."""
        rows = (self._transposed @ y.mT).mT if self.like.is_sparse else y @ self.like
        return rows.reshape(len(y), *self.shape)

    @cached_property
    def _transposed(self) -> Tensor:
        """The transpose of a sparse matrix, its entries put in order once."""
        return self.like.t().coalesce()

    def matrix(self) -> Tensor:
        """The dense matrix."""
        return self.like.to_dense() if self.like.is_sparse else self.like

    def to(self, device: torch.device | None, dtype: torch.dtype | None) -> Operator:
        """The matrix on another device or in another dtype."""
        return Matrix(self.like.to(device=device, dtype=dtype), self.shape)


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
        image = self.apply(units.reshape(-1, *self.shape))
        return image.reshape(len(units), -1).mT.contiguous()

    def to(self, device: torch.device | None, dtype: torch.dtype | None) -> Operator:
        """The same function, which must follow its input's device and dtype."""
        like = self.like.to(device=device, dtype=dtype)
        return function_operator(self.function, self.transpose, self.shape, like)


def matrix_operator(operator: Tensor, shape: tuple[int, ...] | None) -> Matrix:
    """A checked copy of a dense or sparse matrix, also one of `scipy.sparse`."""
    matrix = _checked_matrix(operator)
    points = torch.Size(matrix.shape[1:]) if shape is None else _point_shape(shape)
    if points.numel() != matrix.shape[1]:
        raise ValueError(
            f"shape must have as many entries as operator has columns, {matrix.shape[1]}, "
            f"got {tuple(points)}"
        )
    return Matrix(matrix, tuple(points))


def _checked_matrix(operator: Tensor) -> Tensor:
    if sparse.issparse(operator):
        operator = _from_scipy(operator)
    if not isinstance(operator, Tensor) or operator.layout == torch.strided:
        check_matrix("operator", operator, None)
        return operator.clone()
    if operator.ndim != 2 or 0 in operator.shape:
        raise ValueError(f"operator must be a matrix of shape (m, d), got {tuple(operator.shape)}")
    found = (operator if operator.is_sparse else operator.to_sparse()).coalesce()
    check_float_tensor("operator", found.values())
    return found.clone()


def _from_scipy(operator: sparse.sparray) -> Tensor:
    found = operator.tocoo()
    places = torch.stack([torch.from_numpy(axis.astype("int64")) for axis in found.coords])
    values = torch.from_numpy(found.data.copy())
    return torch.sparse_coo_tensor(places, values, found.shape, check_invariants=True)


def function_operator(
    function: Map, adjoint: Map | None, shape: tuple[int, ...] | None, like: Tensor
) -> Function:
    """A function as an operator; tried on random points, its adjoint compared with it."""
    shape = _point_shape(shape)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *shape, generator=generator, dtype=like.dtype).to(like.device)
    image = tried("operator", function, x)
    found = Function(function, adjoint, shape, image.shape[1:], like)
    y = torch.randn(image.shape, generator=generator, dtype=like.dtype).to(like.device)
    if adjoint is None:
        back = tried("adjoint by automatic differentiation, unless it is given,", found.adjoint, y)
    else:
        check_callable("adjoint", adjoint)
        back = tried("adjoint", adjoint, y)
    check_one_by_one("operator", image, tried("operator", function, x[:1]))
    _check_homogeneous(image, tried("operator", function, FAR * x))
    _check_adjoint(x, image, y, back)
    return found


def _point_shape(shape: tuple[int, ...] | None) -> torch.Size:
    if not isinstance(shape, (tuple, list)):
        raise ValueError(
            "shape, that of one point, must be a tuple of ints for a function as operator, "
            f"got {shape!r}"
        )
    for size in shape:
        check_count("shape", size)
    return torch.Size(shape)


def tried(name: str, function: Map, points: Tensor) -> Tensor:
    """The image of a batch of points, or a ValueError that says why there is none."""
    try:
        with torch.no_grad():
            image = function(points)
    except Exception as error:
        raise ValueError(
            f"{name} failed on a batch of shape {tuple(points.shape)}: {error}"
        ) from error
    fits = isinstance(image, Tensor) and image.ndim >= 1 and len(image) == len(points)
    if not fits or image.dtype != points.dtype or not torch.isfinite(image).all():
        came = f"{tuple(image.shape)}, {image.dtype}" if isinstance(image, Tensor) else type(image)
        raise ValueError(
            f"{name} must map a batch to a finite batch of the same dtype {points.dtype}, "
            f"got {came} for {tuple(points.shape)}"
        )
    return image


def check_one_by_one(name: str, image: Tensor, single: Tensor) -> None:
    """Raise where the image of a point depends on the others in its batch."""
    slack = 1e3 * torch.finfo(image.dtype).eps * image[:1].norm()
    if single.shape != image[:1].shape or (single - image[:1]).norm() > slack:
        raise ValueError(f"{name} must map each point of a batch by itself, whatever the others")


def _check_homogeneous(image: Tensor, far: Tensor) -> None:
    """Raise unless A(c x) = c A x: a clamp, say, is linear for small points only."""
    slack = 1e3 * torch.finfo(image.dtype).eps * image.norm()
    if (far / FAR - image).norm() > slack:
        raise ValueError(f"operator must be linear: A({FAR} x) is not {FAR} A x for a random x")


def _check_adjoint(x: Tensor, image: Tensor, y: Tensor, back: Tensor) -> None:
    """Raise unless ⟨A x, y⟩ = ⟨x, A* y⟩ for each of the random points, up to rounding."""
    if back.shape != x.shape:
        raise ValueError(
            f"adjoint must map (n, *{tuple(y.shape[1:])}) to (n, *{tuple(x.shape[1:])}), "
            f"got {tuple(back.shape)}"
        )
    left, right = ((a * b).reshape(len(x), -1).sum(1) for a, b in ((image, y), (x, back)))
    size = image.norm() * y.norm() + x.norm() * back.norm()
    if ((left - right).abs() > 1e3 * torch.finfo(x.dtype).eps * size).any():
        raise ValueError(
            f"operator must be linear, and adjoint its adjoint: <A x, y> = {left[0].item():.6g}, "
            f"<x, A* y> = {right[0].item():.6g} for random x and y"
        )
