"""The parts of a Gaussian mixture: checks that they fit together, and Cholesky factors."""

from __future__ import annotations

import torch
from torch import Tensor

from invbayes._checks import (
    check_float_tensor,
    check_matrix,
    check_same_dtype,
    lower_factors,
)


def check_mixture(weights: Tensor, means: Tensor, covariances: Tensor) -> None:
    """Raise for parts that do not fit together or are not a mixture's."""
    parts = {"weights": weights, "means": means, "covariances": covariances}
    for name, value in parts.items():
        check_float_tensor(name, value)
    check_same_dtype(**parts)
    _check_shapes(weights, means, covariances)
    total = weights.sum(-1)
    slack = 10 * weights.shape[-1] * torch.finfo(weights.dtype).eps
    if (weights < 0).any():
        raise ValueError(f"weights must not be negative, got {weights.min().item():.3g}")
    if ((total - 1).abs() > slack).any():
        worst = total.flatten()[(total - 1).abs().argmax()].item()
        raise ValueError(f"weights must sum to one, got a sum of {worst:.6g}")


def _check_shapes(weights: Tensor, means: Tensor, covariances: Tensor) -> None:
    if means.ndim < 2 or 0 in means.shape[-2:]:
        raise ValueError(f"means must have shape (*B, K, d), got {tuple(means.shape)}")
    if weights.shape != means.shape[:-1]:
        expected = tuple(means.shape[:-1])
        raise ValueError(f"weights must have shape {expected}, got {tuple(weights.shape)}")
    full = (*means.shape, means.shape[-1])
    if covariances.shape not in (full, full[-3:]):
        raise ValueError(f"covariances must have shape {full}, got {tuple(covariances.shape)}")


def check_gaussian(mean: Tensor, covariance: Tensor) -> None:
    """Raise unless they are the mean and the covariance of one Gaussian."""
    check_float_tensor("mean", mean)
    if mean.ndim != 1 or not len(mean):
        raise ValueError(f"mean must have shape (d,), got {tuple(mean.shape)}")
    check_matrix("covariance", covariance, len(mean), len(mean))
    check_same_dtype(mean=mean, covariance=covariance)
    cholesky_factors("covariance", covariance)


def cholesky_factors(name: str, covariances: Tensor) -> Tensor:
    """The lower Cholesky factors, or a ValueError that names the argument."""
    eps = torch.finfo(covariances.dtype).eps
    slack = 100 * eps * covariances.abs().amax((-2, -1), keepdim=True)
    if ((covariances - covariances.mT).abs() > slack).any():
        raise ValueError(f"{name} must be symmetric")
    factors = lower_factors(covariances)
    if factors is None:
        least = torch.linalg.eigvalsh(covariances).min().item()
        raise ValueError(
            f"{name} must be positive definite, got an eigenvalue of {least:.3g}; to a singular "
            "one, as of samples with constant entries, add a small multiple of the identity"
        )
    return factors
