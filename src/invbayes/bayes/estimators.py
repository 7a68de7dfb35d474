"""The oracles: the estimators and forward maps that the trained networks are compared with."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from invbayes._checks import (
    check_float_tensor,
    check_instance,
    check_points,
    check_positive,
    number,
    reads_finite,
)
from invbayes.bayes.inverse_problem import InverseProblem, matched_weight
from invbayes.bayes.mixtures import GaussianMixture
from invbayes.bayes.modes import global_mode
from invbayes.bayes.posteriors import check_fit, filter_factors, posterior, rounding_of
from invbayes.bayes.problems import LinearProblem


def posterior_mean(prior: GaussianMixture, problem: LinearProblem, y: Tensor) -> Tensor:
    r"""The posterior mean, the estimator with the least mean squared error,

    .. math:: x_{\mathrm{PM}}(y) = \mathbb{E}[x \mid y], \qquad A\, x_{\mathrm{PM}}(y) = y + \delta^2 \nabla \log p_Y(y).

    Args:
        prior: a single mixture on :math:`\mathbb{R}^d`.
        problem: the measurement.
        y: observations, shape ``(*B, *data_shape)``.

    Returns:
        Estimates, shape ``(*B, d)``.

    Raises:
        ValueError: as `posterior` does.

    Source: Tweedie's formula, the second half of Lemma 1 of arXiv 2510.26704.

    Example:
        >>> import torch
        >>> prior = GaussianMixture.gaussian(torch.zeros(1), torch.ones(1, 1))
        >>> posterior_mean(prior, LinearProblem(torch.ones(1, 1), 1.0), torch.tensor([[2.0]]))
        tensor([[1.]])
    """
    return posterior(prior, problem, y).mean


def linear_estimate(samples: Tensor, problem: LinearProblem, y: Tensor) -> Tensor:
    r"""The best affine estimate, from samples of the prior,

    .. math:: \hat x(y) = m + \Sigma A^* (A \Sigma A^* + \delta^2 I)^{-1} (y - A m),

    with the samples' mean m and covariance :math:`\Sigma = F F^*`, where F has the columns
    :math:`(x_i - m) / \sqrt n`. Of all affine maps of y it has the least mean squared error over
    the samples. Σ may be singular: neither Σ nor A is formed, only the singular value
    decomposition of :math:`R^{-1} A F`.

    Args:
        samples: n points :math:`x_i`, shape ``(n, *shape)``.
        problem: the measurement.
        y: observations, shape ``(*B, *data_shape)``.

    Returns:
        Estimates, shape ``(*B, *shape)``.

    Raises:
        ValueError: for shapes or dtypes that do not fit, NaN, or no samples.

    Source: the linear minimum mean square error estimator, or Wiener filter, of the textbooks.

    Example:
        >>> import torch
        >>> samples = torch.tensor([[-1.0], [1.0]])
        >>> linear_estimate(samples, LinearProblem(torch.ones(1, 1), 1.0), torch.tensor([[2.0]]))
        tensor([[1.]])
    """
    check_instance("problem", problem, LinearProblem)
    check_points("samples", samples, problem.shape, like=problem.like)
    check_points("y", y, problem.data_shape, like=problem.like)
    if samples.ndim != 1 + len(problem.shape) or not len(samples):
        wanted = ", ".join(["n", *map(str, problem.shape)])
        raise ValueError(f"samples must have shape ({wanted}), got {tuple(samples.shape)}")
    mean = samples.mean(0)
    centred = (samples - mean) / len(samples) ** 0.5
    images = problem.whiten(problem.apply(centred)).reshape(len(samples), -1)
    right, gains, left = torch.linalg.svd(images, full_matrices=False)
    gains = torch.where(gains > rounding_of(gains, problem), gains, 0)
    lead = y.shape[: y.ndim - len(problem.data_shape)]
    residual = problem.whiten(y - problem.apply(mean)).reshape(*lead, problem.data_dim)
    shares = residual @ left.mT * filter_factors(gains, problem.noise_std)
    directions = right.mT @ centred.reshape(len(samples), -1)  # never of size data × samples
    return mean + (shares @ directions).reshape((*lead, *problem.shape))


def map_estimate(
    prior: GaussianMixture,
    problem: LinearProblem,
    y: Tensor,
    *,
    tol: float | None = None,
    max_steps: int = 1000,
    on_tie: Literal["raise", "first"] = "raise",
) -> Tensor:
    r"""The maximum a posteriori (MAP) estimate, the highest point of the posterior,

    .. math::
        x_{\mathrm{MAP}}(y) = \operatorname{arg\,max}_x \log p(x \mid y), \qquad
        A^*\!A\, x_{\mathrm{MAP}} = A^* y + \delta^2 \nabla \log p_X(x_{\mathrm{MAP}}).

    Args:
        prior: a single mixture on :math:`\mathbb{R}^d`.
        problem: the measurement.
        y: observations, shape ``(*B, *data_shape)``.
        tol, max_steps, on_tie: as in `global_mode`.

    Returns:
        Estimates, shape ``(*B, d)``.

    Raises:
        ValueError: as `posterior` does.
        NotConverged: if the search misses its tolerance or ends at a saddle point.
        TiedModes: if two modes of a posterior are equally high and ``on_tie`` is ``"raise"``.

    Example:
        >>> import torch
        >>> prior = GaussianMixture.gaussian(torch.zeros(1), torch.ones(1, 1))
        >>> map_estimate(prior, LinearProblem(torch.ones(1, 1), 1.0), torch.tensor([[2.0]]))
        tensor([[1.]])
    """
    belief = posterior(prior, problem, y)
    return global_mode(belief, tol=tol, max_steps=max_steps, on_tie=on_tie)


def ideal_forward_map(
    prior: GaussianMixture, problem: InverseProblem, x: Tensor, *, weight: float | None = None
) -> Tensor:
    r"""The map whose inverse is the MAP estimator, wherever it can be inverted,

    .. math:: \varphi_*(x) = A^*\!A\, x - \hat\delta^2 \nabla \log p_X(x), \qquad\text{or in general}\qquad
        \varphi_*(x) = \mathbb{E}[z \mid x] - \hat\delta^2 B(x)^* \nabla \log p_X(x).

    Args:
        prior: a single mixture on :math:`\mathbb{R}^d`.
        problem: the measurement, linear or not.
        x: points, shape ``(*, d)``.
        weight: :math:`\hat\delta^2 > 0`, by default δ².

    Returns:
        Normal data z, shape ``(*, d)``.

    Raises:
        ValueError: for shapes or dtypes that do not fit, NaN in x, or a weight not above zero.

    Source: the first-order condition of MAP.

    Example:
        >>> import torch
        >>> prior = GaussianMixture.gaussian(torch.zeros(1), torch.ones(1, 1))
        >>> ideal_forward_map(prior, LinearProblem(torch.ones(1, 1), 1.0), torch.tensor([[1.0]]))
        tensor([[2.]])
    """
    check_fit(prior, problem)
    check_points("x", x, prior.dim, like=prior.means)
    lifted = x.reshape((*x.shape[:-1], *problem.shape))
    clean = problem.mean_normal_data(lifted).reshape(x.shape)
    pulled = torch.einsum("...ij,...i->...j", problem.pullback(lifted).matrix, prior.score(x))
    return clean - matched_weight(problem, weight) * pulled


class ForwardEigenvalues(NamedTuple):
    """Eigenvalues of the optimal linear forward maps, one field for each training.

    Attributes:
        approximation: of the approximation training.
        posterior: of the reconstruction and divergence trainings: the posterior mean and MAP.
        log_det: of the log-determinant training.
        log_det_metric: of the same with its data term in the metric :math:`(A^*A)^{-1}`.
    """

    approximation: Tensor
    posterior: Tensor
    log_det: Tensor
    log_det_metric: Tensor


def gaussian_forward_eigenvalues(
    singular_values: Tensor, prior_std: float, noise_std: float
) -> ForwardEigenvalues:
    r"""Eigenvalues of the four optimal forward maps for the prior :math:`\mathcal{N}(0, \sigma^2 I)`,

    .. math::
        a^2, \qquad a^2 + \frac{\delta^2}{\sigma^2}, \qquad
        \frac{a^2 + \sqrt{a^4 + 4 \delta^2 / \sigma^2}}{2}, \qquad
        \frac{a^2 + \sqrt{a^4 + 4 a^2 \delta^2 / \sigma^2}}{2},

    one for each singular value a of A, in the order of the fields of `ForwardEigenvalues`.

    Args:
        singular_values: a ≥ 0, any shape.
        prior_std: σ > 0.
        noise_std: δ > 0.

    Raises:
        ValueError: for a negative or non-finite singular value, σ or δ not above zero, or squares
            that overflow.

    Source: minimising each loss of arXiv 2510.26704 over linear maps, as in arXiv 2306.01335.

    Example:
        >>> import torch
        >>> gaussian_forward_eigenvalues(torch.tensor(1.0), prior_std=1.0, noise_std=1.0).posterior
        tensor(2.)
    """
    check_float_tensor("singular_values", singular_values)
    if (singular_values < 0).any():
        least = singular_values.min().item()
        raise ValueError(f"singular_values must not be negative, got {least:.3g}")
    check_positive("prior_std", prior_std)
    check_positive("noise_std", noise_std)
    root = number("noise_std", noise_std) / number("prior_std", prior_std)
    square, ratio = singular_values**2, root * root
    if not (0 < ratio <= torch.finfo(square.dtype).max and reads_finite(square)):
        raise ValueError(
            "singular_values and noise_std / prior_std must have finite squares, the latter > 0, "
            f"got {noise_std} / {prior_std}"
        )
    return ForwardEigenvalues(
        approximation=square,
        posterior=square + ratio,
        log_det=(square + torch.hypot(square, torch.full_like(square, 2 * root))) / 2,
        log_det_metric=(square + torch.hypot(square, 2 * root * singular_values)) / 2,
    )
