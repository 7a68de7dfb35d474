"""What an observation teaches: the posterior and the densities of the data, exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from invbayes._checks import check_points, check_same_dtype
from invbayes.mixtures import GaussianMixture
from invbayes.problems import LinearProblem


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
    check_points("y", y, problem.data_dim, like=problem.operator)
    gains = _gains(prior, problem)
    residuals = y[..., None, :] - problem.apply(prior.means)
    return GaussianMixture(
        weights=data_density(prior, problem).responsibilities(y),
        means=prior.means + torch.einsum("kij,...kj->...ki", gains, residuals),
        covariances=_posterior_covariances(prior, problem, gains),
    )


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
    operator = problem.operator
    noise = problem.noise_std**2 * torch.eye(problem.data_dim).to(operator)
    covariances = _symmetric(operator @ prior.covariances @ operator.mT) + noise
    return GaussianMixture(prior.weights, problem.apply(prior.means), covariances)


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
    rank = int(torch.linalg.matrix_rank(problem.operator))
    if rank < problem.dim:
        raise ValueError(
            f"problem.operator must be injective for z to have a density, "
            f"got rank {rank} for {problem.dim} unknowns"
        )
    normal = problem.normal_operator
    covariances = normal @ prior.covariances @ normal + problem.noise_std**2 * normal
    return GaussianMixture(prior.weights, prior.means @ normal, _symmetric(covariances))


def _gains(prior: GaussianMixture, problem: LinearProblem) -> Tensor:
    """G_k = Σ_k A* S_k⁻¹, shape ``(K, d, m)``."""
    cross = problem.operator @ prior.covariances
    return torch.linalg.solve(data_density(prior, problem).covariances, cross).mT


def _posterior_covariances(prior: GaussianMixture, problem: LinearProblem, gains: Tensor) -> Tensor:
    """C_k in Joseph's form (I − GA) Σ (I − GA)* + δ² GG*, which rounding keeps positive."""
    left = torch.eye(prior.dim).to(gains) - gains @ problem.operator
    return _symmetric(left @ prior.covariances @ left.mT + problem.noise_std**2 * gains @ gains.mT)


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


def check_fit(prior: GaussianMixture, problem: LinearProblem) -> None:
    """Raise unless the prior is a single mixture of the problem's dimension and dtype."""
    check_single(prior)
    if prior.dim != problem.dim:
        raise ValueError(f"prior must have dimension {problem.dim}, got {prior.dim}")
    check_same_dtype(prior=prior.means, operator=problem.operator)


def check_single(prior: GaussianMixture) -> None:
    """Raise unless the prior is one mixture, not a batch."""
    if prior.batch_shape:
        shape = tuple(prior.batch_shape)
        raise ValueError(f"prior must be a single mixture, got a batch of shape {shape}")
