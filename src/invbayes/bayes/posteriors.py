"""What an observation teaches: the posterior and the densities of the data, exactly."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from invbayes._checks import check_instance, check_points, check_same_dtype, reads_finite
from invbayes.bayes.mixtures import GaussianMixture
from invbayes.bayes.problems import LinearProblem


def posterior(prior: GaussianMixture, problem: LinearProblem, y: Tensor) -> GaussianMixture:
    r"""The posterior of a Gaussian-mixture prior is again a Gaussian mixture,

    .. math::
        p(x \mid y) = \sum_k w_k'(y)\, \mathcal{N}(x;\, m_k + G_k (y - A m_k),\; C_k), \qquad
        G_k = \Sigma_k A^* S_k^{-1}, \quad S_k = A \Sigma_k A^* + \delta^2 I,

    with :math:`C_k = (I - G_k A) \Sigma_k` and weights :math:`w_k' \propto w_k\,
    \mathcal{N}(y; A m_k, S_k)`.

    Args:
        prior: a single mixture on :math:`\mathbb{R}^d`.
        problem: the measurement, of any rank.
        y: observations, shape ``(*B, m)``.

    Returns:
        A batch ``(*B,)`` of mixtures that share their covariances ``(K, d, d)``.

    Raises:
        ValueError: for a batch of priors, dimensions or dtypes that do not fit, NaN in y.

    Source: conjugacy of the Gaussian, component by component; proved in chapter 1 of the book.

    Example:
        >>> import torch
        >>> prior = GaussianMixture.gaussian(torch.zeros(1), torch.ones(1, 1))
        >>> problem = LinearProblem(torch.ones(1, 1), noise_std=1.0)
        >>> posterior(prior, problem, torch.tensor([[2.0]])).mean
        tensor([[1.]])
    """
    check_fit(prior, problem)
    check_points("y", y, problem.data_shape, like=problem.like)
    split = _Split.of(prior, problem)
    residuals = _flat_white(problem, y)[..., None, :] - split.centres
    found = torch.einsum("kmr,...km->...kr", split.left, residuals)
    steps = torch.einsum("kr,...kr,krd->...kd", split.filters, found, split.right)
    log_weights = prior.weights.log() + split.log_evidence(residuals, found)
    if not reads_finite(log_weights.amax(-1)):
        raise ValueError("y must not lie so far away that its density underflows")
    return GaussianMixture._from_factors(
        weights=log_weights.softmax(-1),
        means=prior.means + torch.einsum("kij,...kj->...ki", split.factors, steps),
        factors=split.posterior_factors(),
    )


class _Split(NamedTuple):
    r"""The measurement of each component in its own singular directions, for any rank and any δ.

    With Σ = F F* and :math:`R^{-1} A F = U \,\mathrm{diag}(s)\, V^*`, a point x = m + F u has
    independent coordinates V* u, each seen with the gain s. Nothing is squared and subtracted, so
    small noise and operators with a kernel lose no digits (chapter 1: filter factors).
    """

    factors: Tensor
    centres: Tensor
    left: Tensor
    gains: Tensor
    right: Tensor
    kernel: Tensor
    noise_std: float

    @classmethod
    def of(cls, prior: GaussianMixture, problem: LinearProblem) -> _Split:
        factors, white = prior._factors, problem.white_matrix
        rank = min(white.shape)
        left, gains, right = torch.linalg.svd(white @ factors, full_matrices=len(white) < prior.dim)
        floor = torch.finfo(gains.dtype).eps * max(white.shape) * gains.amax(-1, keepdim=True)
        gains = torch.where(gains > floor, gains, 0)  # rounding must not look like information
        centres = prior.means @ white.mT
        seen, unseen = right[:, :rank], right[:, rank:]
        return cls(factors, centres, left[..., :rank], gains, seen, unseen, problem.noise_std)

    @property
    def spreads(self) -> Tensor:
        """The standard deviations of the data in each direction, without squares that overflow."""
        return torch.hypot(self.gains, torch.full_like(self.gains, self.noise_std))

    @property
    def filters(self) -> Tensor:
        """s / (s² + δ²), shape ``(K, r)``."""
        return self.gains / self.spreads / self.spreads

    def log_evidence(self, residuals: Tensor, found: Tensor) -> Tensor:
        """log N(y; A m_k, S_k) up to a constant that all components share, shape ``(*B, K)``."""
        across = residuals - torch.einsum("kmr,...kr->...km", self.left, found)
        if self.left.shape[-2] == self.left.shape[-1]:
            across = torch.zeros_like(across)  # nothing lies across a full basis but rounding
        square = (found / self.spreads).square().sum(-1)
        return (
            -self.spreads.log().sum(-1) - (square + (across / self.noise_std).square().sum(-1)) / 2
        )

    def posterior_factors(self) -> Tensor:
        """Lower Cholesky factors of the posterior covariances, from their square roots."""
        scaled = (self.noise_std / self.spreads)[..., None] * self.right
        root = torch.cat([scaled, self.kernel], -2) @ self.factors.mT
        triangle = torch.linalg.qr(root, mode="r").R.mT
        return triangle * triangle.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]


def _flat_white(problem: LinearProblem, y: Tensor) -> Tensor:
    """R⁻¹ y, flattened to ``(*B, m)``."""
    white = problem.whiten(y)
    return white.reshape(*white.shape[: white.ndim - len(problem.data_shape)], -1)


def data_density(prior: GaussianMixture, problem: LinearProblem) -> GaussianMixture:
    r"""The density of the data, also called the evidence,

    .. math:: p_Y(y) = \sum_k w_k\, \mathcal{N}(y;\, A m_k,\; A \Sigma_k A^* + \delta^2 I).

    Raises:
        ValueError: for a batch of priors, dimensions or dtypes that do not fit.

    Example:
        >>> import torch
        >>> prior = GaussianMixture.gaussian(torch.zeros(1), torch.ones(1, 1))
        >>> data_density(prior, LinearProblem(2 * torch.ones(1, 1), noise_std=1.0)).covariance
        tensor([[5.]])
    """
    check_fit(prior, problem)
    operator = problem.matrix
    noise = problem.colour(
        torch.eye(problem.data_dim).to(operator).reshape(-1, *problem.data_shape)
    )
    root = noise.flatten(1)
    covariances = _symmetric(operator @ prior.covariances @ operator.mT + root.mT @ root)
    return _mixture(prior.weights, prior.means @ operator.mT, covariances)


def normal_data_density(prior: GaussianMixture, problem: LinearProblem) -> GaussianMixture:
    r"""The density of the normal data :math:`z = A^* y`, for an injective operator,

    .. math:: p_Z(z) = \sum_k w_k\, \mathcal{N}(z;\, A^*\!A m_k,\; A^*\!A \Sigma_k A^*\!A + \delta^2 A^*\!A).

    Raises:
        ValueError: if A is not injective, since z then fills a subspace only and has no density;
            also for a batch of priors, dimensions or dtypes that do not fit.

    Example:
        >>> import torch
        >>> prior = GaussianMixture.gaussian(torch.zeros(1), torch.ones(1, 1))
        >>> normal_data_density(prior, LinearProblem(2 * torch.ones(1, 1), 1.0)).covariance
        tensor([[20.]])
    """
    check_fit(prior, problem)
    rank = int(torch.linalg.matrix_rank(problem.white_matrix))
    if rank < problem.dim:
        raise ValueError(
            f"problem must have an injective operator for z to have a density, "
            f"got rank {rank} for {problem.dim} unknowns"
        )
    normal = problem.normal_operator
    covariances = normal @ prior.covariances @ normal + problem.noise_std**2 * normal
    return _mixture(prior.weights, prior.means @ normal, _symmetric(covariances))


def _mixture(weights: Tensor, means: Tensor, covariances: Tensor) -> GaussianMixture:
    """A mixture of data, or the reason why its dtype cannot hold it."""
    try:
        return GaussianMixture(weights, means, covariances)
    except ValueError as error:
        raise ValueError(
            f"problem must have noise that {means.dtype} can tell from rounding for its data to "
            f"have a density: {error}"
        ) from error


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


def check_fit(prior: GaussianMixture, problem: LinearProblem) -> None:
    """Raise unless the prior is a single mixture of the problem's dimension and dtype."""
    check_instance("problem", problem, LinearProblem)
    check_single(prior)
    if prior.dim != problem.dim:
        raise ValueError(f"prior must have dimension {problem.dim}, got {prior.dim}")
    check_same_dtype(prior=prior.means, operator=problem.like)


def check_single(prior: GaussianMixture) -> None:
    """Raise unless the prior is one mixture, not a batch."""
    check_instance("prior", prior, GaussianMixture)
    if prior.batch_shape:
        shape = tuple(prior.batch_shape)
        raise ValueError(f"prior must be a single mixture, got a batch of shape {shape}")
