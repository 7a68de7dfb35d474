"""The ridge block: a residual block that is a gradient, for vectors and for pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor, nn

from invbayes._checks import Shape, check_count, check_fits, check_positive, check_share, listed
from invbayes.networks.blocks import Block
from invbayes.networks.convolutions import circular, circular_adjoint, unit_convolution
from invbayes.networks.dense import unit_spectral_norm


@dataclass(frozen=True)
class RidgeMap:
    r"""A ridge block with given weights, :math:`g(x) = \gamma x - (1 + \gamma)\, W^\top \sigma(W x + b)`.

    The slopes of σ lie in :math:`[-(1 - \gamma) / (1 + \gamma),\, 1]`; a subclass brings another σ,
    with σ(b) / b a sum of constants, some of them over a root :math:`\sqrt{1 + (s b)^2}`: then the
    mean of σ between two responses is its formula at the means of b and of the roots.
    """

    weight: Tensor
    bias: Tensor
    share: Tensor
    sharpness: Tensor
    is_gradient = True
    gamma = 1.0

    def analyse(self, x: Tensor) -> Tensor:
        """W x: ``(n, filters)``, or ``(n, filters, height, width)``."""
        return x @ self.weight.mT if self.weight.ndim == 2 else circular(x, self.weight)

    def synthesise(self, b: Tensor) -> Tensor:
        """Wᵀ b, of the shape of x."""
        return b @ self.weight if self.weight.ndim == 2 else circular_adjoint(b, self.weight)

    def __call__(self, x: Tensor) -> Tensor:
        """g(x) for points ``(n, *shape)``."""
        b, roots = self._bent(x)
        return self._value(x, b, roots)

    def linearised(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The product v ↦ Dg(x) v, whose matrix is symmetric."""
        return self._along(self._bent(x)[1])

    def with_divergence(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """g(x) and its divergence, shape ``(n,)``."""
        b, roots = self._bent(x)
        value = self._value(x, b, roots)
        rows = self.weight.square().flatten(1).sum(1)
        slopes = self._slope(*roots)
        slopes = slopes.flatten(2).sum(2) if b.ndim > 2 else slopes
        return value, self.gamma * x.shape[1:].numel() - (1 + self.gamma) * slopes @ rows

    def with_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """g(x) and its Jacobian ``(n, d, d)``."""
        b, roots = self._bent(x)
        product = self._along(roots)
        units = torch.eye(x.shape[1:].numel()).to(x).reshape(-1, 1, *x.shape[1:])
        rows = torch.func.vmap(lambda unit: product(unit.expand(x.shape)))(units)
        return self._value(x, b, roots), rows.flatten(2).transpose(0, 1)

    def potential(self, x: Tensor) -> Tensor:
        """G(x) with ∇G = g, shape ``(n,)``: S(b) is b times the mean of σ from zero to b."""
        b, roots = self._bent(x)
        bent = (self._secant(*((1 + root) / 2 for root in roots)) * b**2).flatten(1).sum(1)
        return (self.gamma * (x**2).flatten(1).sum(1) - (1 + self.gamma) * bent) / 2

    def mean_between(self, start: Tensor, end: Tensor) -> Tensor:
        """The mean of g on segments: g's formula at mean b and roots, as (r₁ − r₀)(r₁ + r₀) = s²(b₁² − b₀²)."""
        (b, roots), (last, others) = self._bent(start), self._bent(end)
        halfway = tuple((root + other) / 2 for root, other in zip(roots, others, strict=True))
        return self._value((start + end) / 2, (b + last) / 2, halfway)

    def _bent(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """b = W x + bias, and the roots of which the profile is made."""
        b = self.analyse(x) + self.bias
        return b, self._roots(b)

    def _value(self, x: Tensor, b: Tensor, roots: tuple[Tensor, ...]) -> Tensor:
        """g(x), with σ(b) = (`_secant`) b."""
        pulled = self.synthesise(self._secant(*roots) * b)
        return self.gamma * x - (1 + self.gamma) * pulled

    def _along(self, roots: tuple[Tensor, ...]) -> Callable[[Tensor], Tensor]:
        """v ↦ Dg(x) v."""
        slope = (1 + self.gamma) * self._slope(*roots)
        return lambda v: self.gamma * v - self.synthesise(slope * self.analyse(v))

    def _roots(self, b: Tensor) -> tuple[Tensor, ...]:
        """√(1 + (s b)²)."""
        return (torch.sqrt(1 + (self.sharpness * b) ** 2),)

    def _secant(self, root: Tensor) -> Tensor:
        """σ(b) / b."""
        return 1 - self.share + self.share / root

    def _slope(self, root: Tensor) -> Tensor:
        """σ'(b), in (0, 1]."""
        return 1 - self.share + self.share / root**3


class Ridge(Block):
    r"""A block that is the gradient of a function and never stretches a distance,

    .. math:: g(x) = x - 2\, W^\top \sigma(W x + b), \qquad \|W\| \le 1, \quad
        \sigma_j(b) = (1 - a_j)\, b + \frac{a_j\, b}{\sqrt{1 + (s_j b)^2}},

    since σ has slopes in [0, 1], so that :math:`Dg = I - 2 W^\top \mathrm{diag}(\sigma') W` is
    symmetric with eigenvalues in [−1, 1]. Learned are W, b and, for each filter, the share a in
    (0, 1) that saturates and the sharpness s > 0. With it a network of one block is

    .. math:: \varphi(x) = c\,\big[(1 - L)\, x + 2 L\, W^\top \sigma(W x + b)\big] = \nabla \Psi^*(x),

    the gradient of a strongly convex function, and its inverse is a proximal map.

    Args:
        shape: of one point: ``(d,)``, or ``(channels, None, None)`` for pictures of any size.
        filters: the number of rows of W, or of convolution kernels, at least 1.
        kernel: the side of the kernels, for pictures: W is then a convolution with circular
            boundary.
        offsets: how many of the filters, the first ones, have a b. The others keep b = 0; with
            none G is even. By default all have one.
        share, sharpness: the initial a and s.
        generator: the source of the initial weights; without one, PyTorch's global generator.
            Kernels start as the discrete cosine basis, the slowest first, with a sharpness that
            falls from ``kernel`` times s with the frequency; only those beyond it are random.

    Raises:
        ValueError: for a shape or number that does not fit, or a picture smaller than the kernel.

    Source: weakly convex ridge regularizers, Goujon, Neumayer and Unser 2024; convex potential
    layers, Meunier et al. 2022. Chapter 10 of the book.

    Example:
        >>> import torch
        >>> block = Ridge((1, None, None), filters=8, kernel=3)
        >>> x = torch.ones(2, 1, 16, 16)
        >>> block(x).shape, block.lipschitz_bound(), block.with_divergence(x)[1].shape
        (torch.Size([2, 1, 16, 16]), 1.0, torch.Size([2]))
        >>> block.linearised(x)(x).shape, block.potential(x).shape
        (torch.Size([2, 1, 16, 16]), torch.Size([2]))
        >>> Ridge((3,), filters=5).options
        {'shape': (3,), 'filters': 5, 'kernel': None}
    """

    is_gradient = True

    def __init__(
        self,
        shape: Shape,
        filters: int,
        kernel: int | None = None,
        *,
        offsets: int | None = None,
        share: float = 0.88,
        sharpness: float = 2.7,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_count("filters", filters)
        offsets = filters if offsets is None else offsets
        _check_offsets(offsets, filters)
        check_share("share", share)
        check_positive("share", share)
        check_positive("sharpness", sharpness)
        self.shape, self._filters, self._kernel = _shape(shape, kernel), filters, kernel
        self._offsets = offsets
        sides = () if kernel is None else (kernel, kernel)
        each = (filters, *[1] * len(sides))
        self.raw = nn.Parameter(torch.empty(filters, self.shape[0], *sides))
        self.bias = nn.Parameter(torch.zeros(offsets, *each[1:]))
        self.share_logit = nn.Parameter(torch.full(each, share).logit())
        self.log_sharpness = nn.Parameter(torch.full(each, sharpness).log())
        with torch.no_grad():
            self.raw.normal_(generator=generator)
            if kernel is not None:
                waves, pace = _cosines(kernel, self.shape[0])
                self.raw[: len(waves)] = waves[:filters]
                # Pictures answer to slow waves more strongly, about as 1 / frequency.
                self.log_sharpness[: len(pace)] += (kernel / (1 + pace[:filters])).log()

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments, without the initial values."""
        # Not named where all have one, so that networks that were saved before this option load.
        fewer = {} if self._offsets == self._filters else {"offsets": self._offsets}
        return {"shape": self.shape, "filters": self._filters, "kernel": self._kernel, **fewer}

    @property
    def weight(self) -> Tensor:
        """The normalised weight W, ``(filters, d)`` or ``(filters, channels, kernel, kernel)``."""
        return unit_spectral_norm(self.raw) if self.raw.ndim == 2 else unit_convolution(self.raw)

    def lipschitz_bound(self) -> float:
        """One: the slopes of σ stay in their range, and ‖W‖ ≤ 1."""
        return 1.0

    def prepared(self) -> RidgeMap:
        """The block with its weight normalised once, with its graph."""
        return RidgeMap(*self._parts())

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """W, b, the shares and the sharpnesses."""
        shares, sharpnesses = self.share_logit.sigmoid(), self.log_sharpness.exp()
        offsets = torch.cat([self.bias, torch.zeros_like(shares[self._offsets :])])
        return self.weight, offsets, shares, sharpnesses

    def forward(self, x: Tensor) -> Tensor:
        """g(x) for points ``(n, *shape)``."""
        return self._ready(x)(x)

    def linearised(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The product v ↦ Dg(x) v, whose matrix is symmetric."""
        return self._ready(x).linearised(x)

    def with_divergence(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """g(x) and its divergence, shape ``(n,)``, in closed form."""
        return self._ready(x).with_divergence(x)

    def with_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """g(x) and its Jacobian ``(n, d, d)``."""
        return self._ready(x).with_jacobian(x)

    def potential(self, x: Tensor) -> Tensor:
        """G(x) with ∇G = g, shape ``(n,)``, in closed form."""
        return self._ready(x).potential(x)

    def _ready(self, x: Tensor) -> RidgeMap:
        check_fits("x", x, self.shape, like=self.bias)
        if x.ndim != 1 + len(self.shape):
            raise ValueError(f"x must have shape (n, {listed(self.shape)}), got {tuple(x.shape)}")
        return self.prepared()


def _cosines(kernel: int, channels: int) -> tuple[Tensor, Tensor]:
    """The discrete cosine basis for each channel, the slowest waves first, and their frequencies."""
    basis = torch.from_numpy(dct(np.eye(kernel), axis=0, norm="ortho")).float()
    waves = torch.einsum("if,jg->fgij", basis.mT, basis.mT).flatten(0, 1)
    pace = torch.arange(kernel).square()
    pace, order = (pace[:, None] + pace).flatten().sort(stable=True)
    found = torch.einsum("fij,cd->fcdij", waves[order], torch.eye(channels))
    paces = pace.sqrt().repeat_interleave(channels).reshape(-1, 1, 1)
    return found.flatten(0, 1), paces


def _check_offsets(offsets: int, filters: int) -> None:
    """Raise unless that many filters may have an offset."""
    check_count("offsets", offsets, least=0)
    if offsets > filters:
        raise ValueError(f"offsets must be at most filters={filters}, got {offsets}")


def _shape(shape: Shape, kernel: int | None) -> Shape:
    """The shape of a point, if it is that of a vector, or of a picture with a kernel."""
    wanted = "(d,)" if kernel is None else "(channels, None, None)"
    if not isinstance(shape, (tuple, list)) or len(shape) != (1 if kernel is None else 3):
        raise ValueError(f"shape must be {wanted} with kernel={kernel}, got {shape!r}")
    for side in (shape[0], *(side for side in shape[1:] if side is not None)):
        check_count("shape", side)
    if kernel is not None:
        check_count("kernel", kernel)
    return tuple(shape)
