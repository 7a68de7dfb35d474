"""The ridge block whose profiles fall back: a weakly convex penalty that is never negative."""

from __future__ import annotations

import torch
from torch import Tensor

from invbayes.networks.ridge import Ridge, RidgeMap

FALL = 1 / 32  # the steepest fall of a profile; its steepest rise is one


class WeaklyConvexMap(RidgeMap):
    """A weakly convex ridge block with given weights."""

    gamma = (1 - FALL) / (1 + FALL)

    @property
    def pace(self) -> Tensor:
        """ρ, how fast each profile falls."""
        return FALL * self.share

    def _roots(self, b: Tensor) -> tuple[Tensor, Tensor]:
        """√(1 + (s b)²) and √(1 + (ρ s b)²)."""
        steep = (self.sharpness * b) ** 2
        return torch.sqrt(1 + steep), torch.sqrt(1 + self.pace**2 * steep)

    def _secant(self, rise: Tensor, fall: Tensor) -> Tensor:
        """σ(b) / b."""
        return 1 / rise - self.pace / fall

    def _slope(self, rise: Tensor, fall: Tensor) -> Tensor:
        """σ'(b), in [−1/32, 1]."""
        return rise**-3 - self.pace * fall**-3


class WeaklyConvexRidge(Ridge):
    r"""A `Ridge` block whose profiles rise and fall back,

    .. math:: g(x) = \tfrac{31}{33}\, x - \tfrac{64}{33}\, W^\top \sigma(W x + b), \quad \|W\| \le 1, \quad
        \sigma_j(b) = \frac{b}{\sqrt{1 + (s_j b)^2}} - \frac{\rho_j\, b}{\sqrt{1 + (\rho_j s_j b)^2}}, \quad
        \rho_j = \tfrac{a_j}{32},

    with a learned share a in (0, 1) and sharpness s > 0 for each filter. A profile rises steeply
    over responses up to 1/s, is highest near :math:`\rho^{-1/3}/s` and falls back slowly: at 1/(ρs)
    about 0.3 of its height are left. Its slopes lie in [−1/32, 1], so that Dg is symmetric with
    eigenvalues in [−1, 1]. A network of one such block with the scale
    :math:`c = 1 / (1 - \tfrac{31}{33} L)` is

    .. math:: \varphi(x) = x + \nu\, W^\top \sigma(W x + b) = x + \nabla R(x), \qquad
        \nu = \frac{64 L}{33 - 31 L} < 32, \quad R(x) = \nu \sum_j S_j\big((W x + b)_j\big) \ge 0,

    with the antiderivatives S, which are bounded by :math:`(1/\rho - 1)/s^2`. R is not convex, but
    lacks at most ν/32 < 1 for it, so that φ has an inverse; and the energy
    :math:`\tfrac12 \|A x - y\|^2 + t R(x)` of every operator is never negative.

    Args:
        shape, filters, kernel, offsets, share, sharpness, generator: as in `Ridge`.

    Raises:
        ValueError: as `Ridge` does.

    Source: weakly convex ridge regularizers, Goujon, Neumayer and Unser 2024, whose profiles are
    splines; the profile is ours. Chapter 10 of the book.

    Example:
        >>> import torch
        >>> from invbayes import InvertibleResNet
        >>> block = WeaklyConvexRidge((1, None, None), filters=8, kernel=3, share=0.5)
        >>> net = InvertibleResNet(block, lipschitz=0.9, scale=1 / (1 - 0.9 * 31 / 33))
        >>> x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> penalty = net.potential(x) - x.square().flatten(1).sum(1) / 2
        >>> bool((penalty >= 0).all()), block.lipschitz_bound()
        (True, 1.0)
    """

    def prepared(self) -> WeaklyConvexMap:
        """The block with its weight normalised once, with its graph."""
        return WeaklyConvexMap(*self._parts())
