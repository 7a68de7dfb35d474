"""The four trainings, each a loss that reads like its equation.

The minimisers that the docstrings name are those among all maps, as far as a network can hold them.
They are written for a matrix; for every other problem read :math:`\\mathbb{E}[z \\mid x]` for
:math:`A^*\\!A x`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from invbayes._checks import (
    check_definite,
    check_fits,
    check_flag,
    check_instance,
    check_matrix,
    check_positive,
)
from invbayes.bayes.inverse_problem import InverseProblem, matched_weight
from invbayes.networks.iresnet import InvertibleResNet
from invbayes.training.metrics import check_metric
from invbayes.training.runaway import runaway

Objective = Callable[[InvertibleResNet, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class Reconstruction:
    r"""The mean squared error of the inverse,

    .. math:: \min_\varphi\; \tfrac12\, \mathbb{E}\, \|\varphi^{-1}(z) - x\|_M^2
        \qquad\Rightarrow\qquad \varphi^{-1} = x_{\mathrm{PM}},

    whatever the metric M. It decides how the errors are shared out that finite steps and networks
    leave: the inverse of `posterior_metric` measures them in posterior deviations (for a Gaussian
    prior, but for a factor), so that a direction that the data hardly see does not dominate. The
    gradient goes through the inverse implicitly (`fixed_point`), which starts from the true x.

    Args:
        tol: the largest error of the inverse, in the units of x, not in M; well below the expected error
            of the reconstruction, since the search starts from the truth. Several blocks in single
            precision cannot reach 1e-3; the error says what they can.
        metric: M, symmetric positive definite ``(d, d)``, d the number of a point's entries; the identity
            by default.

    Call:
        ``objective(net, x, z)`` for samples x and *noisy* normal data z, both ``(n, *shape)``,
        gives the loss, a number.

    Raises:
        ValueError: if the tolerance is not above zero, or the metric does not fit the samples or
            is not symmetric positive definite.
        NotConverged: as `InvertibleResNet.inverse` does.

    Source: arXiv 2307.10431; Figure 1 b of arXiv 2510.26704; the metric: chapter 8 of the book.

    Example:
        >>> import torch
        >>> net, x = InvertibleResNet.dense(2), torch.ones(5, 2)
        >>> bool(Reconstruction()(net, x, net(x)) < 1e-6)
        True
    """

    tol: float = 1e-3
    metric: Tensor | None = None

    def __post_init__(self) -> None:
        check_positive("tol", self.tol)
        if self.metric is not None:
            check_matrix("metric", self.metric, None)
            check_definite("metric", self.metric, len(self.metric))

    def __call__(self, net: InvertibleResNet, x: Tensor, z: Tensor) -> Tensor:
        """The loss of a batch, a number."""
        check_samples(x, z)
        if self.metric is not None:
            check_fits("x", x.flatten(1), (len(self.metric),), like=self.metric)
        return half_square(net.inverse(z, self.tol, start=x) - x, self.metric)


def half_square(misfits: Tensor, metric: Tensor | None) -> Tensor:
    r""":math:`\tfrac12 \mathbb{E} \|v\|_M^2` for misfits v ``(n, *shape)``, a number."""
    rows = misfits.flatten(1)
    weighted = rows if metric is None else rows @ metric
    return (rows * weighted).sum(-1).mean() / 2


def check_samples(x: Tensor, z: Tensor) -> None:
    """Raise unless x and z are batches of one shape, dtype and device, and not empty."""
    if not isinstance(x, Tensor) or not len(x):
        raise ValueError(f"x must hold at least one sample, got {getattr(x, 'shape', x)}")
    check_fits("z", z, (), like=x)
    if z.shape != x.shape:
        raise ValueError(f"z must have the shape of x, {tuple(x.shape)}, got {tuple(z.shape)}")


def plain_loss(objective: Objective, net: InvertibleResNet, x: Tensor, z: Tensor) -> Tensor:
    """The loss without its graph, also of an objective that needs one, as it differentiates."""
    try:
        with torch.no_grad():
            return objective(net, x, z)
    except RuntimeError as error:
        if "not require grad" not in str(error):
            raise
    with torch.enable_grad():
        return objective(net, x, z).detach()


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
        ``objective(net, x, z)`` for samples x and z, both ``(n, *shape)``, gives the loss.

    Raises:
        ValueError: for a metric that does not fit or is not symmetric positive definite; when
            called, for samples that do not fit.

    Source: arXiv 2306.01335; Figure 1 a of arXiv 2510.26704.

    Example:
        >>> import torch
        >>> from invbayes import LinearProblem
        >>> net = InvertibleResNet.dense(1, scale=2.0)
        >>> x = torch.ones(1, 1)
        >>> loss = Approximation(LinearProblem(torch.eye(1), 0.1))(net, x, x)
        >>> torch.allclose(loss, (net(x) - x).square().sum() / 2)
        True
    """

    problem: InverseProblem
    metric: Tensor | None = field(default=None, kw_only=True)
    conditional_mean: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        check_instance("problem", self.problem, InverseProblem)
        check_flag("conditional_mean", self.conditional_mean)
        if self.metric is not None:
            check_metric("metric", self.metric, self.problem)

    def __call__(self, net: InvertibleResNet, x: Tensor, z: Tensor) -> Tensor:
        """The loss of a batch, a number."""
        return self._data_term(net(x), x, z)

    def _data_term(self, value: Tensor, x: Tensor, z: Tensor) -> Tensor:
        r""":math:`\tfrac12 \mathbb{E} \|\varphi(x) - z\|_M^2` for values φ(x), a number."""
        check_samples(x, z)
        target = self.problem.mean_normal_data(x) if self.conditional_mean else z
        return half_square(value - target, self.metric)


@dataclass(frozen=True, eq=False)
class Regularized(Approximation):
    r"""A data term and a regularizer with the weight δ̂²."""

    weight: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        matched_weight(self.problem, self.weight)

    @property
    def strength(self) -> float:
        """δ̂²."""
        return matched_weight(self.problem, self.weight)

    def watch(self, net: InvertibleResNet, x: Tensor) -> str | None:
        """What speaks against the samples' having a density: see `runaway`."""
        return None if self.metric is not None else runaway(net, self.problem, self.strength, x)


@dataclass(frozen=True, eq=False)
class LogDeterminant(Regularized):
    r"""The forward error, regularized by the logarithm of the determinant,

    .. math:: \min_\varphi\; \mathbb{E}\big[\tfrac12 \|\varphi(x) - z\|_M^2 - \hat\delta^2 \log |\det D\varphi(x)|\big]
        \qquad\Rightarrow\qquad A^*\!A\, \varphi^{-1}(z) = z + \hat\delta^2 M^{-1} \nabla \log q(z),

    where q is the density of φ(x): Tweedie's formula with q in place of :math:`p_Z`.

    Args:
        problem, metric, conditional_mean: as in `Approximation`; see `posterior_metric` for M.
        weight: :math:`\hat\delta^2 > 0`, by default δ².

    Call:
        ``objective(net, x, z)`` for samples x and z, both ``(n, *shape)``, gives the loss.

    Raises:
        ValueError: as `Approximation` does, and for a weight that is not above zero.

    Source: our reconstruction of Theorem 1 of arXiv 2510.26704; the metric is ours.

    Example:
        >>> import torch
        >>> from invbayes import LinearProblem
        >>> net = InvertibleResNet.dense(2)
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
class Divergence(Regularized):
    r"""The forward error, regularized by the divergence,

    .. math:: \min_\varphi\; \mathbb{E}\big[\tfrac12 \|\varphi(x) - z\|_M^2 - \hat\delta^2\, \mathrm{div}\, \varphi(x)\big]
        \qquad\Rightarrow\qquad \varphi(x) = A^*\!A\, x - \hat\delta^2 M^{-1} \nabla \log p_X(x),

    the normal equation of MAP when M is the identity and :math:`\hat\delta = \delta`, for a matrix
    and for counts; for a `NonlinearProblem` it is not: see `WeightedDivergence`.

    Args:
        problem, metric, conditional_mean: as in `Approximation`.
        weight: :math:`\hat\delta^2 > 0`, by default δ².

    Call:
        ``objective(net, x, z)`` for samples x and z, both ``(n, *shape)``, gives the loss.

    Raises:
        ValueError: as `Approximation` does, and for a weight that is not above zero.

    Source: our reconstruction of Theorem 2 of arXiv 2510.26704.

    Example:
        >>> import torch
        >>> from invbayes import LinearProblem
        >>> net = InvertibleResNet.dense(2)
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
