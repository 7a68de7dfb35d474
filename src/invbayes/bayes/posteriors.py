"""What an observation teaches: the posterior and the densities of the data, exactly."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from invbayes._checks import check_instance, check_points, check_same_dtype, reads_finite
from invbayes.bayes.inverse_problem import InverseProblem
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
        prior: a single mixture on :math:`\mathbb{R}^d`; a point of several axes counts flattened.
        problem: the measurement, of any rank; with a covariance Γ of the noise, Γ for δ² I.
        y: observations, shape ``(*B, *data_shape)``.

    Returns:
        A batch ``(*B,)`` of mixtures that share their covariances ``(K, d, d)``.

    Raises:
        ValueError: for a batch of priors, dimensions or dtypes that do not fit, NaN in y, a y so
            far away that its density underflows, or noise so small that precisions overflow.

    Source: conjugacy of the Gaussian, component by component; proved in chapter 1 of the book.

    Example:
        >>> import torch
        >>> prior = GaussianMixture.gaussian(torch.zeros(1), torch.ones(1, 1))
        >>> problem = LinearProblem(torch.ones(1, 1), noise_std=1.0)
        >>> posterior(prior, problem, torch.tensor([[2.0]])).mean
        tensor([[1.]])
    """
    check_linear_fit(prior, problem)
    check_points("y", y, problem.data_shape, like=problem.like)
    split = _Split.of(prior, problem)
    residuals = split.coordinates(problem, y)[..., None, :] - split.centres
    found = torch.einsum("krs,...kr->...ks", split.left, residuals)
    filters = filter_factors(split.gains, problem.noise_std)
    steps = torch.einsum("ks,...ks,ksd->...kd", filters, found, split.right)
    log_weights = prior.weights.log() + split.log_evidence(found)
    if not reads_finite(log_weights.amax(-1)):
        raise ValueError("y must not lie so far away that its density underflows")
    belief = GaussianMixture._from_factors(
        weights=log_weights.softmax(-1),
        means=prior.means + torch.einsum("kij,...kj->...ki", prior._factors, steps),
        factors=split.posterior_factors(),
    )
    if not reads_finite(belief._precisions):
        raise ValueError(f"problem must leave precisions that {y.dtype} can hold, got {problem}")
    return belief


class _Split(NamedTuple):
    r"""The measurement in singular directions, first its own, then those of each component.

    Of :math:`R^{-1} A = U \,\mathrm{diag}(a)\, V^*` only the range counts: across it there is
    noise alone; values below the rounding of the largest count as zero, each unknown measured in
    its prior deviation. There, with Σ = F F* and :math:`\mathrm{diag}(a) V^* F = P \,\mathrm{diag}(s)\,
    Q^*`, a point x = m + F u has independent coordinates Q* u, each seen with the gain s. Nothing
    is squared and subtracted, so small noise and operators with a kernel lose no digits
    (chapter 1: filter factors).
    """

    factors: Tensor
    basis: Tensor
    centres: Tensor
    left: Tensor
    gains: Tensor
    right: Tensor
    kernel: Tensor
    noise_std: float

    @classmethod
    def of(cls, prior: GaussianMixture, problem: LinearProblem) -> _Split:
        unit = prior.covariance.diagonal().sqrt()  # what is rounding does not depend on units
        matrix = problem.white_matrix * unit
        basis, values, directions = torch.linalg.svd(matrix, full_matrices=False)
        rank = int((values > rounding_of(values, problem)).sum())
        reduced = values[:rank, None] * directions[:rank]
        left, gains, right = torch.linalg.svd(reduced @ (prior._factors / unit[:, None]))
        centres = (prior.means / unit) @ reduced.mT
        seen, unseen = right[:, :rank], right[:, rank:]
        return cls(
            prior._factors, basis[:, :rank], centres, left, gains, seen, unseen, problem.noise_std
        )

    def coordinates(self, problem: LinearProblem, y: Tensor) -> Tensor:
        """U* R⁻¹ y, shape ``(*B, r)``."""
        white = problem.whiten(y)
        lead = white.shape[: white.ndim - len(problem.data_shape)]
        return white.reshape(*lead, problem.data_dim) @ self.basis

    @property
    def spreads(self) -> Tensor:
        """The standard deviations of the data in each direction, shape ``(K, r)``."""
        return _spreads(self.gains, self.noise_std)

    def log_evidence(self, found: Tensor) -> Tensor:
        """log N(y; A m_k, S_k) up to a constant that all components share, shape ``(*B, K)``."""
        return -self.spreads.log().sum(-1) - (found / self.spreads).square().sum(-1) / 2

    def posterior_factors(self) -> Tensor:
        """Lower Cholesky factors of the posterior covariances, from their square roots."""
        scaled = (self.noise_std / self.spreads)[..., None] * self.right
        return _lower(torch.cat([self.kernel, scaled], -2) @ self.factors.mT)


def _spreads(gains: Tensor, noise_std: float) -> Tensor:
    """(s² + δ²)^½, without squares that overflow."""
    return torch.hypot(gains, torch.full_like(gains, noise_std))


def filter_factors(gains: Tensor, noise_std: float) -> Tensor:
    """s / (s² + δ²), what a direction of gain s makes of its datum."""
    spreads = _spreads(gains, noise_std)
    return gains / spreads / spreads


def rounding_of(gains: Tensor, problem: LinearProblem) -> Tensor:
    """The largest singular value that can be rounding: it must not look like information."""
    return torch.finfo(gains.dtype).eps * max(problem.data_dim, problem.dim) * gains.amax(-1)


def _lower(root: Tensor) -> Tensor:
    """L of L L* = B* B, lower triangular with a positive diagonal, without squaring B."""
    triangle = torch.linalg.qr(root, mode="r").R.mT
    return triangle * triangle.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]


def data_density(prior: GaussianMixture, problem: LinearProblem) -> GaussianMixture:
    r"""The density of the data, also called the evidence,

    .. math:: p_Y(y) = \sum_k w_k\, \mathcal{N}(y;\, A m_k,\; A \Sigma_k A^* + \delta^2 I).

    Raises:
        ValueError: for a batch of priors, dimensions or dtypes that do not fit, or noise so small
            beside the signal that the covariance is singular to rounding.

    Example:
        >>> import torch
        >>> prior = GaussianMixture.gaussian(torch.zeros(1), torch.ones(1, 1))
        >>> data_density(prior, LinearProblem(2 * torch.ones(1, 1), noise_std=1.0)).covariance
        tensor([[5.]])
    """
    check_linear_fit(prior, problem)
    operator, dim = problem.matrix, problem.data_dim
    units = torch.eye(dim).to(operator).reshape(dim, *problem.data_shape)
    noise = problem.colour(units).reshape(dim, dim)
    return _data_mixture(prior, problem, operator, (operator @ prior._factors).mT, noise)


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
    check_linear_fit(prior, problem)
    rank = int(torch.linalg.matrix_rank(problem.white_matrix))
    if rank < problem.dim:
        raise ValueError(
            f"the operator of problem must be injective for z to have a density, "
            f"got rank {rank} for {problem.dim} unknowns"
        )
    white = problem.white_matrix
    normal = white.mT @ white
    signal = (white.mT @ (white @ prior._factors)).mT
    return _data_mixture(prior, problem, normal, signal, problem.noise_std * white)


def _data_mixture(
    prior: GaussianMixture,
    problem: LinearProblem,
    operator: Tensor,
    signal: Tensor,
    noise: Tensor,
) -> GaussianMixture:
    """The mixture with the means A m_k and, from rows B_k and N, the covariances B_k* B_k + N* N."""
    factors = _lower(torch.cat([signal, noise.expand(len(signal), -1, -1)], -2))
    reach = factors.norm(dim=-1)
    if not (factors.diagonal(dim1=-2, dim2=-1) > 100 * torch.finfo(reach.dtype).eps * reach).all():
        raise ValueError(
            f"problem must have noise that {reach.dtype} can hold and tell from rounding for its "
            f"data to have a density, got {problem}"
        )
    return GaussianMixture._from_factors(prior.weights, prior.means @ operator.mT, factors)


def check_linear_fit(prior: GaussianMixture, problem: LinearProblem) -> None:
    """Raise unless the problem is linear, and the prior fits it."""
    check_instance("problem", problem, LinearProblem)
    check_fit(prior, problem)


def check_fit(prior: GaussianMixture, problem: InverseProblem) -> None:
    """Raise unless the prior is a single mixture of the problem's dimension and dtype."""
    check_instance("problem", problem, InverseProblem)
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
