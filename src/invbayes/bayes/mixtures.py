"""Gaussian mixtures: density, score, Hessian, moments and samples, all in closed form."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from invbayes._checks import check_count, check_dtype, check_fits, check_points, reads_finite
from invbayes._random import standard_normal
from invbayes.bayes.mixture_parts import check_gaussian, check_mixture, cholesky_factors


class Expansion(NamedTuple):
    r"""log p, its first two derivatives, and the metric :math:`\sum_k r_k \Sigma_k^{-1}`, at points."""

    log_prob: Tensor
    score: Tensor
    hessian: Tensor
    metric: Tensor


class GaussianMixture:
    r"""A Gaussian mixture, or a batch of them,

    .. math:: p(x) = \sum_{k=1}^{K} w_k \, \mathcal{N}(x;\, m_k, \Sigma_k), \qquad x \in \mathbb{R}^d.

    A batch of mixtures has leading axes ``(*B,)``, as a posterior for each of ``n``
    observations has ``(n,)``. Points broadcast against the batch, as in `torch.distributions`:
    ``(*S, *B, d)`` gives densities ``(*S, *B)``.

    The parts are copied. Points so far away that their squared distance overflows have the
    log-density −∞ and no score.

    Args:
        weights: ``(*B, K)``, not negative, each row summing to one.
        means: ``(*B, K, d)``.
        covariances: ``(*B, K, d, d)``, or ``(K, d, d)`` when the batch shares them,
            symmetric and positive definite.

    Raises:
        ValueError: for wrong shapes or dtypes, NaN or infinite entries, weights that are negative
            or do not sum to one, covariances that are not symmetric positive definite.

    Example:
        >>> import torch
        >>> p = GaussianMixture(
        ...     weights=torch.tensor([0.5, 0.5]),
        ...     means=torch.tensor([[-2.0], [2.0]]),
        ...     covariances=torch.ones(2, 1, 1),
        ... )
        >>> p.mean, p.covariance
        (tensor([0.]), tensor([[5.]]))
        >>> x = p.sample(100, generator=torch.Generator().manual_seed(0))
        >>> x.shape, p.log_prob(x).shape, p.hessian(x).shape
        (torch.Size([100, 1]), torch.Size([100]), torch.Size([100, 1, 1]))
        >>> r = p.responsibilities(torch.zeros(1, 1))
        >>> r, p.mean_precision(r), p.pulls(torch.zeros(1, 1))[0, :, 0]
        (tensor([[0.5000, 0.5000]]), tensor([[[1.]]]), tensor([-2.,  2.]))
        >>> p.score(torch.zeros(1, 1)), p.expand(torch.zeros(1, 1)).hessian
        (tensor([[0.]]), tensor([[[3.]]]))
        >>> p.to(dtype=torch.float64).mean, p.flattened().batch_shape
        (tensor([0.], dtype=torch.float64), torch.Size([1]))
        >>> GaussianMixture.gaussian(torch.zeros(2), torch.eye(2))
        GaussianMixture(batch_shape=(), components=1, dim=2)
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        check_mixture(weights, means, covariances)
        factors = cholesky_factors("covariances", covariances)
        self._hold(weights.clone(), means.clone(), factors, covariances.clone())

    def _hold(self, weights: Tensor, means: Tensor, factors: Tensor, covariances: Tensor) -> None:
        self.weights, self.means, self.covariances = weights, means, covariances
        self.components = MultivariateNormal(means, scale_tril=factors, validate_args=False)
        self._factors, self._precisions = factors, torch.cholesky_inverse(factors)

    @classmethod
    def _from_factors(cls, weights: Tensor, means: Tensor, factors: Tensor) -> GaussianMixture:
        """From lower Cholesky factors of the covariances, which may be too ill-conditioned to factor."""
        made = object.__new__(cls)
        made._hold(weights, means, factors, factors @ factors.mT)
        return made

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> GaussianMixture:
        """The same mixture on another device or in another dtype."""
        if dtype is not None:
            check_dtype("dtype", dtype)
        parts = (self.weights, self.means, self._factors)
        weights, means, factors = (part.to(device=device, dtype=dtype) for part in parts)
        total = weights.sum(-1, keepdim=True)  # one, up to the new dtype's rounding
        moved = GaussianMixture._from_factors(weights / total, means, factors)
        if not (reads_finite(means) and reads_finite(moved._precisions)):
            raise ValueError(f"dtype must hold the means and precisions, which overflow in {dtype}")
        return moved

    @classmethod
    def gaussian(cls, mean: Tensor, covariance: Tensor) -> GaussianMixture:
        r"""The mixture of one component, :math:`\mathcal{N}(m, \Sigma)`.

        Args:
            mean: m, shape ``(d,)``.
            covariance: Σ, shape ``(d, d)``.
        """
        check_gaussian(mean, covariance)
        return cls(mean.new_ones(1), mean[None], covariance[None])

    def __repr__(self) -> str:
        return (
            f"GaussianMixture(batch_shape={tuple(self.batch_shape)}, "
            f"components={self.num_components}, dim={self.dim})"
        )

    @property
    def dim(self) -> int:
        """The dimension d."""
        return self.means.shape[-1]

    @property
    def num_components(self) -> int:
        """The number of components K."""
        return self.means.shape[-2]

    @property
    def batch_shape(self) -> torch.Size:
        """The leading axes ``(*B,)``; empty for a single mixture."""
        return self.means.shape[:-2]

    def __getitem__(self, index: int | slice | Tensor) -> GaussianMixture:
        """Select mixtures along the first batch axis; shared covariances stay shared."""
        if not self.batch_shape:
            raise ValueError("index needs a batch of mixtures, this is a single one")
        factors = self._factors if self._factors.ndim == 3 else self._factors[index]
        return GaussianMixture._from_factors(self.weights[index], self.means[index], factors)

    def flattened(self) -> GaussianMixture:
        """The same mixtures with exactly one batch axis; a single one becomes a batch of one."""
        count, dim = self.num_components, self.dim
        factors = self._factors if self._factors.ndim == 3 else self._factors.flatten(0, -4)
        weights, means = self.weights.reshape(-1, count), self.means.reshape(-1, count, dim)
        return GaussianMixture._from_factors(weights, means, factors)

    @property
    def mean(self) -> Tensor:
        r""":math:`m = \sum_k w_k m_k`, shape ``(*B, d)``."""
        return torch.einsum("...k,...ki->...i", self.weights, self.means)

    @property
    def covariance(self) -> Tensor:
        r""":math:`\sum_k w_k (\Sigma_k + (m_k - m)(m_k - m)^\top)`, shape ``(*B, d, d)``."""
        centred = self.means - self.mean[..., None, :]
        spread = self.covariances + _outer(centred)
        return torch.einsum("...k,...kij->...ij", self.weights, spread)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` points of each mixture, shape ``(n, *B, d)``.

        Pick a component by its weight, then add a standard normal times its Cholesky factor.

        Args:
            n: the number of points, at least 1.
            generator: the source of randomness; without one, PyTorch's global generator.
        """
        check_count("n", n)
        flat = self.weights.reshape(-1, self.num_components)
        flat = flat if generator is None else flat.to(generator.device)
        chosen = torch.multinomial(flat, n, replacement=True, generator=generator)
        chosen = chosen.to(self.means.device).T.reshape(n, *self.batch_shape, 1, 1)
        means = self.means.expand(n, *self.means.shape)
        mean = torch.take_along_dim(means, chosen, dim=-2).squeeze(-2)
        scale_tril = self._factors.expand(*means.shape, self.dim)
        scale = torch.take_along_dim(scale_tril, chosen[..., None], dim=-3).squeeze(-3)
        noise = standard_normal(mean.shape, mean, generator)
        return mean + torch.einsum("...ij,...j->...i", scale, noise)

    def log_prob(self, x: Tensor) -> Tensor:
        r""":math:`\log p(x)` at points ``(*S, *B, d)``, shape ``(*S, *B)``."""
        return self._log_joint(x).logsumexp(-1)

    def responsibilities(self, x: Tensor) -> Tensor:
        r""":math:`r_k(x) = w_k \mathcal{N}(x; m_k, \Sigma_k) / p(x)`, shape ``(*S, *B, K)``.

        The probability that x came from component k.
        """
        return self._log_joint(x).softmax(-1)

    def score(self, x: Tensor) -> Tensor:
        r""":math:`\nabla \log p(x) = \sum_k r_k(x)\, g_k`, with :math:`g_k = \Sigma_k^{-1}(m_k - x)`.

        Points ``(*S, *B, d)`` give ``(*S, *B, d)``.
        """
        return torch.einsum("...k,...ki->...i", self.responsibilities(x), self.pulls(x))

    def hessian(self, x: Tensor) -> Tensor:
        r""":math:`\nabla^2 \log p(x) = \sum_k r_k (g_k g_k^\top - \Sigma_k^{-1}) - s s^\top`.

        Here s is the score; points ``(*S, *B, d)`` give ``(*S, *B, d, d)``. The two outer products
        are taken together, as the covariance of the :math:`g_k`, so that nothing cancels.
        """
        return self.expand(x).hessian

    def expand(self, x: Tensor) -> Expansion:
        r"""The local expansion of log p at points ``(*S, *B, d)``, all in one pass."""
        log_joint, pulls = self._log_joint(x), self.pulls(x)
        r = log_joint.softmax(-1)
        score = torch.einsum("...k,...ki->...i", r, pulls)
        spread = torch.einsum("...k,...kij->...ij", r, _outer(pulls - score[..., None, :]))
        metric = self.mean_precision(r)
        return Expansion(log_joint.logsumexp(-1), score, spread - metric, metric)

    def mean_precision(self, responsibilities: Tensor) -> Tensor:
        r""":math:`\sum_k r_k \Sigma_k^{-1}`, shape ``(*S, *B, d, d)``: the metric of an EM step."""
        check_fits("responsibilities", responsibilities, (self.num_components,), like=self.means)
        return torch.einsum("...k,...kij->...ij", responsibilities, self._precisions)

    def pulls(self, x: Tensor) -> Tensor:
        r""":math:`g_k = \Sigma_k^{-1}(m_k - x)`, each component's own score, ``(*S, *B, K, d)``."""
        check_points("x", x, self.dim, like=self.means)
        offsets = self.means - x[..., None, :]
        return torch.einsum("...kij,...kj->...ki", self._precisions, offsets)

    def _log_joint(self, x: Tensor) -> Tensor:
        """log w_k + log N(x; m_k, Σ_k), with log 0 = −∞ for a component without weight."""
        check_points("x", x, self.dim, like=self.means)
        return self.weights.log() + self.components.log_prob(x[..., None, :])


def _outer(v: Tensor) -> Tensor:
    return v[..., :, None] * v[..., None, :]
