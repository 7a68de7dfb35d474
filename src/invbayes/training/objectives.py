"""The four trainings, each a loss that reads like its equation.

The minimisers that the docstrings name are those among all maps, as far as a network can hold them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from invbayes._checks import check_float_tensor, check_positive, check_same_dtype
from invbayes.bayes.problems import LinearProblem, matched_weight
from invbayes.networks.iresnet import InvertibleResNet

Objective = Callable[[InvertibleResNet, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class Reconstruction:
    r"""The mean squared error of the inverse,

    .. math:: \min_\varphi\; \tfrac12\, \mathbb{E}\, \|\varphi^{-1}(z) - x\|^2
        \qquad\Rightarrow\qquad \varphi^{-1} = x_{\mathrm{PM}}.

    The gradient goes through the inverse implicitly (`fixed_point`), which starts from the true x.

    Args:
        tol: the largest error of the inverse, in the units of x; well below the expected error
            of the reconstruction, since the search starts from the truth.

    Call:
        ``objective(net, x, z)`` for samples x and *noisy* normal data z, both ``(n, d)``, gives
        the loss, a number.

    Raises:
        ValueError: if the tolerance is not above zero.
        NotConverged: as `InvertibleResNet.inverse` does.

    Source: arXiv 2307.10431; Figure 1 b of arXiv 2510.26704.

    Example:
        >>> import torch
        >>> net, x = InvertibleResNet(2), torch.ones(5, 2)
        >>> bool(Reconstruction()(net, x, net(x)) < 1e-6)
        True
    """

    tol: float = 1e-3

    def __post_init__(self) -> None:
        check_positive("tol", self.tol)

    def __call__(self, net: InvertibleResNet, x: Tensor, z: Tensor) -> Tensor:
        """The loss of a batch, a number."""
        return (net.inverse(z, self.tol, start=x) - x).square().sum(-1).mean() / 2


@dataclass(frozen=True, eq=False)
class Approximation:
    r"""The mean squared error of the forward map,

    .. math:: \min_\varphi\; \tfrac12\, \mathbb{E}\, \|\varphi(x) - z\|_M^2
        \qquad\Rightarrow\qquad \varphi = A^*\!A,

    with :math:`\|v\|_M^2 = v^\top M v`. By default the conditional mean :math:`A^*\!A x` stands for
    z: the same minimiser, less variance.

    Args:
        problem: the measurement.
        metric: M, symmetric positive definite ``(d, d)``; the identity by default.
        conditional_mean: whether :math:`A^*\!A x` stands for the samples z.

    Call:
        ``objective(net, x, z)`` for samples x and z, both ``(n, d)``, gives the loss, a number.

    Raises:
        ValueError: for a metric that does not fit or is not symmetric positive definite.

    Source: arXiv 2306.01335; Figure 1 a of arXiv 2510.26704.

    Example:
        >>> import torch
        >>> net = InvertibleResNet(1, scale=2.0)
        >>> x = torch.ones(1, 1)
        >>> loss = Approximation(LinearProblem(torch.eye(1), 0.1))(net, x, x)
        >>> torch.allclose(loss, (net(x) - x).square().sum() / 2)
        True
    """

    problem: LinearProblem
    metric: Tensor | None = field(default=None, kw_only=True)
    conditional_mean: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        if self.metric is not None:
            _check_metric(self.metric, self.problem)

    def __call__(self, net: InvertibleResNet, x: Tensor, z: Tensor) -> Tensor:
        """The loss of a batch, a number."""
        return self._data_term(net(x), x, z)

    def _data_term(self, value: Tensor, x: Tensor, z: Tensor) -> Tensor:
        r""":math:`\tfrac12 \mathbb{E} \|\varphi(x) - z\|_M^2` for values φ(x), a number."""
        if not value.shape == x.shape == z.shape:
            raise ValueError(f"z must have the shape of x, {tuple(x.shape)}, got {tuple(z.shape)}")
        misfit = value - (x @ self.problem.normal_operator if self.conditional_mean else z)
        weighted = misfit if self.metric is None else misfit @ self.metric
        return (misfit * weighted).sum(-1).mean() / 2


@dataclass(frozen=True, eq=False)
class _Regularized(Approximation):
    r"""A data term and a regularizer with the weight δ̂²."""

    weight: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        matched_weight(self.problem, self.weight)

    @property
    def strength(self) -> float:
        """δ̂²."""
        return matched_weight(self.problem, self.weight)


@dataclass(frozen=True, eq=False)
class LogDeterminant(_Regularized):
    r"""The forward error, regularized by the logarithm of the determinant,

    .. math:: \min_\varphi\; \mathbb{E}\big[\tfrac12 \|\varphi(x) - z\|_M^2 - \hat\delta^2 \log |\det D\varphi(x)|\big]
        \qquad\Rightarrow\qquad A^*\!A\, \varphi^{-1}(z) = z + \hat\delta^2 M^{-1} \nabla \log q(z),

    where q is the density of φ(x): Tweedie's formula with q in place of :math:`p_Z`.

    Args:
        problem, metric, conditional_mean: as in `Approximation`; see `posterior_metric` for M.
        weight: :math:`\hat\delta^2 > 0`, by default δ².

    Call:
        ``objective(net, x, z)`` for samples x and z, both ``(n, d)``, gives the loss, a number.

    Raises:
        ValueError: as `Approximation` does, and for a weight that is not above zero.

    Source: Theorem 1 of arXiv 2510.26704; with a metric, chapter 5 of the book.

    Example:
        >>> import torch
        >>> net = InvertibleResNet(2)
        >>> x = torch.ones(1, 2)
        >>> problem = LinearProblem(torch.eye(2), 0.1)
        >>> plain, loss = Approximation(problem)(net, x, x), LogDeterminant(problem)(net, x, x)
        >>> torch.allclose(loss, plain - 0.01 * net.log_abs_det(x).mean())
        True
    """

    def __call__(self, net: InvertibleResNet, x: Tensor, z: Tensor) -> Tensor:
        """The loss of a batch, a number."""
        value, log_det = net.with_log_abs_det(x)
        return self._data_term(value, x, z) - self.strength * log_det.mean()


@dataclass(frozen=True, eq=False)
class Divergence(_Regularized):
    r"""The forward error, regularized by the divergence,

    .. math:: \min_\varphi\; \mathbb{E}\big[\tfrac12 \|\varphi(x) - z\|_M^2 - \hat\delta^2\, \mathrm{div}\, \varphi(x)\big]
        \qquad\Rightarrow\qquad \varphi(x) = A^*\!A\, x - \hat\delta^2 M^{-1} \nabla \log p_X(x),

    the normal equation of MAP when M is the identity and :math:`\hat\delta = \delta`.

    Args:
        problem, metric, conditional_mean: as in `Approximation`.
        weight: :math:`\hat\delta^2 > 0`, by default δ².

    Call:
        ``objective(net, x, z)`` for samples x and z, both ``(n, d)``, gives the loss, a number.

    Raises:
        ValueError: as `Approximation` does, and for a weight that is not above zero.

    Source: Theorem 2 of arXiv 2510.26704.

    Example:
        >>> import torch
        >>> net = InvertibleResNet(2)
        >>> x = torch.ones(1, 2)
        >>> problem = LinearProblem(torch.eye(2), 0.1)
        >>> plain, loss = Approximation(problem)(net, x, x), Divergence(problem)(net, x, x)
        >>> torch.allclose(loss, plain - 0.01 * net.divergence(x).mean())
        True
    """

    def __call__(self, net: InvertibleResNet, x: Tensor, z: Tensor) -> Tensor:
        """The loss of a batch, a number."""
        value, divergence = net.with_divergence(x)
        return self._data_term(value, x, z) - self.strength * divergence.mean()


def posterior_metric(
    problem: LinearProblem, covariance: Tensor, *, weight: float | None = None
) -> Tensor:
    r"""The metric in which the log-determinant training is unbiased for Gaussian priors,

    .. math:: W = (A^*\!A + \hat\delta^2\, \Sigma_X^{-1})^{-1},

    the posterior covariance, divided by :math:`\hat\delta^2`, that a Gaussian prior would give.

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
        >>> posterior_metric(LinearProblem(torch.eye(1), 1.0), torch.ones(1, 1))
        tensor([[0.5000]])
    """
    weight = matched_weight(problem, weight)
    _check_metric(covariance, problem, name="covariance")
    inverse = problem.normal_operator + weight * torch.linalg.inv(covariance)
    metric = torch.linalg.inv(inverse)
    return (metric + metric.mT) / 2


def _check_metric(matrix: Tensor, problem: LinearProblem, name: str = "metric") -> None:
    check_float_tensor(name, matrix)
    check_same_dtype(operator=problem.operator, **{name: matrix})
    if matrix.shape != (problem.dim, problem.dim):
        shape = (problem.dim, problem.dim)
        raise ValueError(f"{name} must have shape {shape}, got {tuple(matrix.shape)}")
    asymmetry = (matrix - matrix.mT).abs().max().item() / matrix.abs().max().item()
    if asymmetry > 1e-6 or torch.linalg.cholesky_ex(matrix).info.item():
        raise ValueError(
            f"{name} must be symmetric positive definite, got relative asymmetry {asymmetry:.1g} "
            f"and least eigenvalue {torch.linalg.eigvalsh(matrix).min().item():.3g}"
        )
