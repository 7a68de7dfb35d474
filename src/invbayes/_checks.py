"""Checks of arguments: each names the argument, what was expected and what came.

Checks of type, shape and dtype cost nothing and stand in every function. Those that look at the
values stand where data enter, and not in a network's forward pass; inside ``torch.func.vmap`` and
``torch.compile``, which hide the values, they are skipped.
"""

from __future__ import annotations

import math
from numbers import Real

import numpy as np
import torch
from torch import Tensor

Shape = tuple[int | None, ...]


def check_tensor(name: str, value: Tensor) -> None:
    """Raise unless ``value`` is a real floating-point tensor."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        came = value.dtype if isinstance(value, Tensor) else type(value).__name__
        came = f"{came}; see torch.from_numpy" if isinstance(value, np.ndarray) else came
        raise ValueError(f"{name} must be a floating-point tensor, got {came}")
    if value.layout != torch.strided or value.is_meta:
        came = "meta" if value.is_meta else value.layout
        raise ValueError(f"{name} must be a dense tensor with values, got a {came} tensor")


def check_float_tensor(name: str, value: Tensor) -> None:
    """Raise unless ``value`` is a real floating-point tensor without NaN or infinity."""
    check_tensor(name, value)
    if not reads_finite(value):
        raise ValueError(f"{name} must be finite, got NaN or infinite entries")


def reads_finite(value: Tensor) -> bool:
    """Whether all entries are finite; True where they cannot be read, inside a transformation."""
    if torch.compiler.is_compiling():
        return True
    try:
        return bool(torch.isfinite(value).all())
    except RuntimeError:  # torch.func.vmap hides the values
        return True


def check_fits(name: str, value: Tensor, shape: Shape, like: Tensor) -> None:
    """Raise unless ``value`` holds points ``(*, *shape)`` of the dtype and device of ``like``.

    None in ``shape`` stands for any length. The values are not looked at.
    """
    check_tensor(name, value)
    came = value.shape[value.ndim - len(shape) :] if value.ndim >= len(shape) else ()
    if len(came) != len(shape) or any(
        s is not None and s != c for s, c in zip(shape, came, strict=True)
    ):
        raise ValueError(f"{name} must have shape (*, {listed(shape)}), got {tuple(value.shape)}")
    if value.dtype != like.dtype:
        raise ValueError(f"{name} must have dtype {like.dtype}, got {value.dtype}")
    if value.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, got {value.device}")


def listed(shape: Shape) -> str:
    """A shape as errors name it."""
    return ", ".join("any" if size is None else str(size) for size in shape)


def check_points(name: str, value: Tensor, dim: int | Shape, like: Tensor) -> None:
    """Raise unless ``value`` holds finite points ``(*, dim)`` of the same dtype as ``like``."""
    check_fits(name, value, (dim,) if isinstance(dim, int) else dim, like)
    check_float_tensor(name, value)


def check_pictures(name: str, shape: Shape) -> None:
    """Raise unless points of this shape are pictures, (channels, height, width)."""
    if len(shape) != 3:
        raise ValueError(f"{name} must be one of pictures, got points {tuple(shape)}")


def check_vector(name: str, value: Tensor, dim: int, like: Tensor) -> None:
    """Raise unless ``value`` is one finite point ``(dim,)`` of the same dtype as ``like``."""
    check_points(name, value, dim, like)
    if value.ndim != 1:
        raise ValueError(f"{name} must have shape ({dim},), got {tuple(value.shape)}")


def check_matrix(name: str, value: Tensor, rows: int | None, columns: int | None = None) -> None:
    """Raise unless ``value`` is a finite matrix, not empty, of the given size where one is given."""
    check_float_tensor(name, value)
    wanted = ("m" if rows is None else rows, "d" if columns is None else columns)
    fits = value.ndim == 2 and value.numel()
    if (
        not fits
        or len(value) != (rows or len(value))
        or value.shape[1] != (columns or value.shape[1])
    ):
        raise ValueError(
            f"{name} must be a matrix of shape ({wanted[0]}, {wanted[1]}), got {tuple(value.shape)}"
        )


def check_definite(name: str, matrix: Tensor, dim: int) -> None:
    """Raise unless ``matrix`` is a symmetric positive definite ``(dim, dim)`` matrix."""
    check_matrix(name, matrix, dim, dim)
    size = matrix.abs().max().item()
    asymmetry = (matrix - matrix.mT).abs().max().item() / size if size else 0.0
    if asymmetry > 1e-6 or lower_factors(matrix) is None:
        least = torch.linalg.eigvalsh((matrix + matrix.mT) / 2).min().item()
        raise ValueError(
            f"{name} must be symmetric positive definite, got relative asymmetry {asymmetry:.1g} "
            f"and least eigenvalue {least:.3g}; a covariance of samples with constant entries is "
            "singular: add a small multiple of the identity"
        )


def lower_factors(matrices: Tensor) -> Tensor | None:
    """M = C Cᵀ: the lower factors, or None if a matrix is not positive definite beyond rounding."""
    factors, failed = torch.linalg.cholesky_ex(matrices)
    # What rounding leaves of a zero on the diagonal may be positive, on one processor or another.
    slack = 4 * matrices.shape[-1] * torch.finfo(matrices.dtype).eps
    least = slack * matrices.diagonal(dim1=-2, dim2=-1)
    fine = (factors.diagonal(dim1=-2, dim2=-1).square() > least).all() and not failed.any()
    return factors if fine and reads_finite(torch.cholesky_inverse(factors)) else None


def check_same_dtype(**tensors: Tensor) -> None:
    """Raise unless all the named tensors share the dtype and device of the first."""
    (first, reference), *others = tensors.items()
    for name, value in others:
        if value.dtype != reference.dtype:
            raise ValueError(
                f"{name} must have the dtype of {first}, {reference.dtype}, got {value.dtype}"
            )
        if value.device != reference.device:
            raise ValueError(
                f"{name} must be on the device of {first}, {reference.device}, got {value.device}"
            )


def check_dtype(name: str, value: torch.dtype) -> None:
    """Raise unless ``value`` is a dtype of real floating-point numbers."""
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise ValueError(f"{name} must be a floating-point dtype, got {value!r}")


def check_instance(name: str, value: object, *kinds: type) -> None:
    """Raise unless ``value`` is an instance of one of the classes."""
    if not isinstance(value, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        article = "an" if wanted[0] in "AEIO" else "a"
        raise ValueError(f"{name} must be {article} {wanted}, got {type(value).__name__}")


def check_callable(name: str, value: object) -> None:
    """Raise unless ``value`` can be called, or for a class, which would be called in its place."""
    if isinstance(value, type):
        raise ValueError(f"{name} must be an instance, got the class {value.__name__}")
    if not callable(value):
        raise ValueError(f"{name} must be callable, got {type(value).__name__}")


def check_flag(name: str, value: bool) -> None:
    """Raise unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def number(name: str, value: float) -> float:
    """The value as a float, or a ValueError: a bool, a string, a complex number is none."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        raise ValueError(f"{name} must be a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be finite, got an int beyond any float") from None


def check_positive(name: str, value: float) -> None:
    """Raise unless ``value`` is a finite number above zero."""
    if not (math.isfinite(number(name, value)) and value > 0):
        raise ValueError(f"{name} must be finite and > 0, got {value}")


def check_not_negative(name: str, value: float) -> None:
    """Raise unless ``value`` is a finite number, zero or above."""
    if not (math.isfinite(number(name, value)) and value >= 0):
        raise ValueError(f"{name} must be finite and >= 0, got {value}")


def check_share(name: str, value: float) -> None:
    """Raise unless ``value`` is a number in [0, 1)."""
    if not 0 <= number(name, value) < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value}")


def check_count(name: str, value: int, least: int = 1) -> None:
    """Raise unless ``value`` is a whole number, at least ``least`` and of a size that can be counted."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        wanted = "a positive int" if least == 1 else f"an int of at least {least}"
        raise ValueError(f"{name} must be {wanted}, got {value!r}")


def check_contraction(lipschitz: float) -> None:
    """Raise unless the bound lies strictly between zero and one."""
    if not 0 < number("lipschitz", lipschitz) < 1:
        raise ValueError(f"lipschitz must lie in (0, 1), got {lipschitz}")
