"""Checks of arguments: each names the argument, what was expected and what came."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def check_float_tensor(name: str, value: Tensor) -> None:
    """Raise unless ``value`` is a real floating-point tensor without NaN or infinity."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        came = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} must be a floating-point tensor, got {came}")
    if not torch.isfinite(value).all():
        raise ValueError(f"{name} must be finite, got NaN or infinite entries")


def check_points(name: str, value: Tensor, dim: int, like: Tensor) -> None:
    """Raise unless ``value`` holds finite points ``(*, dim)`` of the same dtype as ``like``."""
    check_float_tensor(name, value)
    if value.ndim == 0 or value.shape[-1] != dim:
        raise ValueError(f"{name} must have shape (*, {dim}), got {tuple(value.shape)}")
    if value.dtype != like.dtype:
        raise ValueError(f"{name} must have dtype {like.dtype}, got {value.dtype}")


def check_vector(name: str, value: Tensor, dim: int, like: Tensor) -> None:
    """Raise unless ``value`` is one finite point ``(dim,)`` of the same dtype as ``like``."""
    check_points(name, value, dim, like)
    if value.ndim != 1:
        raise ValueError(f"{name} must have shape ({dim},), got {tuple(value.shape)}")


def check_same_dtype(**tensors: Tensor) -> None:
    """Raise unless all the named tensors share the dtype of the first."""
    (first, reference), *others = tensors.items()
    for name, value in others:
        if value.dtype != reference.dtype:
            raise ValueError(
                f"{name} must have the dtype of {first}, {reference.dtype}, got {value.dtype}"
            )


def check_positive(name: str, value: float) -> None:
    """Raise unless ``value`` is a finite number above zero."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be finite and > 0, got {value}")


def check_count(name: str, value: int) -> None:
    """Raise unless ``value`` is a whole number above zero."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive int, got {value!r}")


def check_not_negative(name: str, value: float) -> None:
    """Raise unless ``value`` is a finite number, zero or above."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and >= 0, got {value}")
