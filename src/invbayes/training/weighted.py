"""The divergence training of every problem: weighted by the problem's own field of matrices."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from invbayes._checks import check_flag
from invbayes.networks.iresnet import InvertibleResNet
from invbayes.training.objectives import Regularized


@dataclass(frozen=True, eq=False)
class WeightedDivergence(Regularized):
    r"""The forward error, regularized by the divergence of a field of matrices times the map,

    .. math:: \min_\varphi\; \mathbb{E}\big[\tfrac12 \|\varphi(x) - z\|_M^2 - \hat\delta^2\, \mathrm{div}(B M \varphi)(x)\big]
        \qquad\Rightarrow\qquad \varphi(x) = \mathbb{E}[z \mid x] - \hat\delta^2\, B(x)^* \nabla \log p_X(x),

    for :math:`\hat\delta = \delta` the equation of MAP, for every metric M and every problem; B is
    `InverseProblem.pullback`. The divergence has two parts,

    .. math:: \mathrm{div}(B M \varphi) = \mathrm{tr}(B M\, D\varphi) + \langle \mathrm{div} B, M \varphi \rangle.

    Without the second the inverse network is another MAP: that of F(x), mapped back.

    Args:
        problem, metric, conditional_mean: as in `Approximation`; see `posterior_metric` for M,
            which changes no minimiser here, but how fast a network finds it.
        weight: :math:`\hat\delta^2 > 0`, by default δ².
        volume: whether the second part is there.

    Call:
        ``objective(net, x, z)`` for samples x and z, both ``(n, *shape)``, gives the loss. It
        takes the network's Jacobians, with d² entries a sample.

    Raises:
        ValueError: as `Approximation` does, and for a weight that is not above zero; when called,
            where `InverseProblem.pullback` has no value.

    Source: chapter 11 of the book; for a matrix and M = I it is Theorem 2 of arXiv 2510.26704.

    Example:
        >>> import torch
        >>> from invbayes import Divergence, LinearProblem
        >>> net, x = InvertibleResNet.dense(2), torch.ones(1, 2)
        >>> problem = LinearProblem(torch.eye(2), 0.1)
        >>> torch.allclose(WeightedDivergence(problem)(net, x, x), Divergence(problem)(net, x, x))
        True
    """

    volume: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("volume", self.volume)

    def __call__(self, net: InvertibleResNet, x: Tensor, z: Tensor) -> Tensor:
        """The loss of a batch, a number."""
        value, slopes = net.with_jacobian(x)
        return (
            self._data_term(value, x, z) - self.strength * self._divergence(value, slopes, x).mean()
        )

    def _divergence(self, value: Tensor, slopes: Tensor, x: Tensor) -> Tensor:
        """div(B M φ) at each sample, from φ and Dφ there."""
        matrix, drift = self.problem.pullback(x)
        if self.metric is not None:
            matrix, drift = matrix @ self.metric, drift @ self.metric
        found = (matrix * slopes.mT).sum((-2, -1))
        return found + (drift * value.flatten(1)).sum(-1) if self.volume else found
