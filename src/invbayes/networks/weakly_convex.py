"""The ridge block whose profiles fall back: a weakly convex penalty that is never negative."""

from __future__ import annotations

import torch
from torch import Tensor

from invbayes.networks.ridge import Ridge, RidgeMap

# Of the steepest rise: the profile a b / (1 + (s b)²) falls most steeply at s b = √3.
FALL = 1 / 8


class WeaklyConvexMap(RidgeMap):
    """A weakly convex ridge block with given weights."""

    gamma = (1 - FALL) / (1 + FALL)

    def _secant(self, root: Tensor) -> Tensor:
        """σ(b) / b."""
        return self.share / root**2 + (1 - self.share) / root

    def _slope(self, root: Tensor) -> Tensor:
        """σ'(b), in [−1/8, 1]."""
        return self.share * (2 - root**2) / root**4 + (1 - self.share) / root**3

    def _antiderivative(self, b: Tensor, root: Tensor) -> Tensor:
        """S(b), never negative, without cancellation."""
        logarithm = torch.log1p((self.sharpness * b) ** 2) / (2 * self.sharpness**2)
        return self.share * logarithm + (1 - self.share) * b**2 / (root + 1)


class WeaklyConvexRidge(Ridge):
    r"""A `Ridge` block whose profiles rise, and may fall back,

    .. math:: g(x) = \tfrac79\, x - \tfrac{16}9\, W^\top \sigma(W x + b), \qquad \|W\| \le 1, \quad
        \sigma_j(b) = \frac{a_j\, b}{1 + (s_j b)^2} + \frac{(1 - a_j)\, b}{\sqrt{1 + (s_j b)^2}},

    with a learned share a in (0, 1) and sharpness s > 0 for each filter. The slopes of σ lie in
    [−1/8, 1], so that Dg is symmetric with eigenvalues in [−1, 1]. A network of one such block with
    the scale :math:`c = 1 / (1 - \tfrac79 L)` is

    .. math:: \varphi(x) = x + \mu\, W^\top \sigma(W x + b) = x + \nabla R(x), \qquad
        \mu = \frac{16 L}{9 - 7 L} < 8, \quad R(x) = \mu \sum_j S_j\big((W x + b)_j\big) \ge 0,

    with the antiderivatives S. R is not convex, but lacks at most μ/8 < 1 for it, so that φ has an
    inverse; and the energy :math:`\tfrac12 \|A x - y\|^2 + t R(x)` of every operator is bounded below.

    Args:
        shape, filters, kernel, share, sharpness, generator: as in `Ridge`.

    Raises:
        ValueError: as `Ridge` does.

    Source: fields of experts, Roth and Black 2009, whose experts are the logarithms (a = 1); weakly
    convex ridge regularizers, Goujon, Neumayer and Unser 2024. Chapter 10 of the book.

    Example:
        >>> import torch
        >>> from invbayes import InvertibleResNet
        >>> block = WeaklyConvexRidge((1, None, None), filters=8, kernel=3, share=0.5)
        >>> net = InvertibleResNet(block, lipschitz=0.9, scale=1 / (1 - 0.7), learn_scale=False)
        >>> x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> penalty = net.potential(x) - x.square().flatten(1).sum(1) / 2
        >>> bool((penalty >= 0).all()), block.lipschitz_bound()
        (True, 1.0)
    """

    def prepared(self) -> WeaklyConvexMap:
        """The block with its weight normalised once, with its graph."""
        return WeaklyConvexMap(*self._parts())
