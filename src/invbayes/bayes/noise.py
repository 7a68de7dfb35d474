"""Gaussian noise of flattened data: white, or with a covariance and a root of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invbayes._checks import check_definite, check_points, check_positive, check_same_dtype, number


@dataclass(frozen=True)
class Noise:
    """N(0, δ² I), or N(0, R R*) with R lower triangular, or the diagonal of one, and δ = 1."""

    std: float
    root: Tensor | None = None

    def colour(self, white: Tensor) -> Tensor:
        """R w for rows w of independent standard normal numbers."""
        if self.root is None:
            return self.std * white
        return white * self.root if self.root.ndim == 1 else white @ self.root.mT

    def whiten(self, rows: Tensor) -> Tensor:
        """R⁻¹ y for rows y; y itself where the noise is white."""
        return self._solved(rows, adjoint=False)

    def whiten_adjoint(self, rows: Tensor) -> Tensor:
        """R⁻* y for rows y."""
        return self._solved(rows, adjoint=True)

    def log_density(self, noise: Tensor) -> Tensor:
        """The log-density of noise ``(n, *)``, up to a constant: ``(n,)``."""
        rows = noise.reshape(len(noise), noise.shape[1:].numel())
        return -(self.whiten(rows) / self.std).square().sum(1) / 2

    def _solved(self, rows: Tensor, *, adjoint: bool) -> Tensor:
        if self.root is None:
            return rows
        if self.root.ndim == 1:
            return rows / self.root
        root = self.root if adjoint else self.root.mT
        return torch.linalg.solve_triangular(root, rows, upper=not adjoint, left=False)

    def to(self, like: Tensor) -> Noise:
        """The same noise for data of another device or dtype."""
        if self.root is None:
            return white_noise(self.std, like)
        root = self.root.to(like)
        _check_range("noise_covariance", root if root.ndim == 1 else root.diagonal())
        return Noise(1.0, root)


def white_noise(std: float, like: Tensor) -> Noise:
    """The noise of a checked standard deviation that the data's dtype can hold."""
    check_positive("noise_std", std)
    std = number("noise_std", std)
    _check_range("noise_std", torch.tensor([std], dtype=torch.float64).to(like))
    return Noise(std)


def coloured_noise(covariance: Tensor, dim: int, like: Tensor) -> Noise:
    """The noise of a checked covariance ``(dim, dim)``, or of its diagonal ``(dim,)``."""
    if isinstance(covariance, Tensor) and covariance.ndim == 1:
        check_points("noise_covariance", covariance, dim, like=like)
        if not (covariance > 0).all():
            raise ValueError(f"noise_covariance must be > 0, got {covariance.min().item():.3g}")
        return Noise(1.0, covariance.sqrt())
    check_definite("noise_covariance", covariance, dim)
    check_same_dtype(operator=like, noise_covariance=covariance)
    return Noise(1.0, torch.linalg.cholesky(covariance))


def _check_range(name: str, deviations: Tensor) -> None:
    """Raise where a dtype rounds a deviation to zero or infinity."""
    range_ = torch.finfo(deviations.dtype)
    if not ((deviations >= range_.tiny) & (deviations <= range_.max)).all():
        raise ValueError(
            f"{name} must have deviations that {deviations.dtype} can hold, from "
            f"{range_.tiny:.2g} to {range_.max:.2g}"
        )
