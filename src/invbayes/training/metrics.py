"""The metric of a data term: where the log-determinant training loses its bias."""

from __future__ import annotations

import torch
from torch import Tensor

from invbayes._checks import check_definite, check_instance, check_same_dtype
from invbayes.bayes.inverse_problem import InverseProblem, matched_weight


def posterior_metric(
    problem: InverseProblem, covariance: Tensor, *, weight: float | None = None
) -> Tensor:
    r"""The metric in which the log-determinant training is unbiased for Gaussian priors,

    .. math:: W = (A^*\!A + \hat\delta^2\, \Sigma_X^{-1})^{-1},

    the posterior covariance, divided by :math:`\hat\delta^2`, that a Gaussian prior would give; of a
    nonlinear problem, that of its linearisation at the reference.

    Args:
        problem: the measurement.
        covariance: :math:`\Sigma_X`, of the prior or of samples, shape ``(d, d)``.
        weight: :math:`\hat\delta^2 > 0`, by default δ².

    Raises:
        ValueError: if the covariance is not symmetric positive definite of shape ``(d, d)``, or
            the weight is not above zero.

    Source: chapter 5 of the book.

    Example:
        >>> import torch
        >>> from invbayes import LinearProblem
        >>> posterior_metric(LinearProblem(torch.eye(1), 1.0), torch.ones(1, 1))
        tensor([[0.5000]])
    """
    check_instance("problem", problem, InverseProblem)
    weight = matched_weight(problem, weight)
    check_metric("covariance", covariance, problem)
    inverse = problem.normal_operator + weight * torch.linalg.inv(covariance)
    metric, failed = torch.linalg.inv_ex(inverse)
    if failed or not torch.isfinite(metric).all():
        raise ValueError(
            f"weight must not vanish beside an operator that is not injective, got {weight:.3g}"
        )
    return (metric + metric.mT) / 2


def check_metric(name: str, matrix: Tensor, problem: InverseProblem) -> None:
    """Raise unless the matrix is symmetric positive definite and fits the problem."""
    check_definite(name, matrix, problem.dim)
    check_same_dtype(operator=problem.like, **{name: matrix})
