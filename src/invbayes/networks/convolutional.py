"""Convolutional networks with Lipschitz constant at most one, for pictures of every size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from invbayes._checks import check_count, check_fits
from invbayes.networks.activations import ACTIVATIONS, Activation
from invbayes.networks.blocks import Block
from invbayes.networks.convolutions import circular, convolution_norm, unit_convolution


class UnitConvolution(nn.Module):
    """x ↦ C x + b with ‖C‖ ≤ 1: the kernel ``raw`` is normalised whenever ``weight`` is read."""

    def __init__(
        self, before: int, after: int, side: int, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(after, 1, 1))
        self.raw = nn.Parameter(torch.empty(after, before, side, side))
        with torch.no_grad():
            self.raw.normal_(generator=generator)
            self.bias.uniform_(-1, 1, generator=generator)

    @property
    def weight(self) -> Tensor:
        """The normalised kernel."""
        return unit_convolution(self.raw)


@dataclass(frozen=True)
class ConvolutionalMap:
    """A convolutional network with given kernels: the formulas, apart from the parameters."""

    weights: list[Tensor]
    biases: list[Tensor]
    activations: Sequence[Activation]

    # As of any block: nothing is shorter for a whole Jacobian, so that Newton's method is no choice.
    with_jacobian = Block.with_jacobian
    linearised = Block.linearised

    def __call__(self, x: Tensor) -> Tensor:
        """g(x) for pictures ``(n, channels, height, width)``."""
        return self._unroll(x)[0]

    def with_divergence(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""g(x) and its divergence ``(n,)``.

        For pictures larger than `reach` and up to two hidden layers without any Jacobian:
        :math:`\mathrm{tr}\, C_2 D_1 C_1 = \sum_a K_{aa,0} \sum_i d_{1,a,i}` and
        :math:`\mathrm{tr}\, C_3 D_2 C_2 D_1 C_1 = \langle d_2, \kappa * d_1 \rangle` with
        :math:`\kappa_{ba,t} = c_{2,ba,t}\, K_{ab,-t}`, where :math:`d_i` are the activations'
        slopes, :math:`D_i` their diagonal matrices, and K is the kernel of the first convolution
        after the last.
        """
        if len(self.activations) > 2 or min(x.shape[2:]) <= self.reach:
            return Block.with_divergence(self, x)
        value, slopes = self._unroll(x)
        first, *middle, last = self.weights
        if len(slopes) == 1:
            diagonal = _closing(first, last, side=1).flatten(1).diagonal()
            return value, slopes[0].sum((2, 3)) @ diagonal
        kappa = middle[0] * _closing(first, last, side=middle[0].shape[-1])
        return value, (slopes[1] * circular(slopes[0], kappa)).sum((1, 2, 3))

    @property
    def reach(self) -> int:
        """How far a pixel sees. In a picture of this size or less it sees itself around the torus."""
        return sum(weight.shape[-1] // 2 for weight in self.weights)

    def _unroll(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The value, and each activation's slopes."""
        slopes = []
        for weight, bias, activation in zip(
            self.weights, self.biases, self.activations, strict=False
        ):
            bent = activation.with_slope((circular(x, weight) + bias).movedim(1, -1))
            x, slope = (part.movedim(-1, 1) for part in bent)
            slopes.append(slope)
        return circular(x, self.weights[-1]) + self.biases[-1], slopes


def _closing(first: Tensor, last: Tensor, side: int) -> Tensor:
    r"""What closes the loop of a trace: :math:`K_{ab,-t}` at ``[b, a, t]`` for t in a kernel of this side.

    :math:`K_{ab,s} = \sum_c \sum_{u + v = s} w_{1,ac,u}\, w_{3,cb,v}`, the kernel of the first
    convolution after the last. Entry k of a kernel of side s stands at k − ⌊(s − 1)/2⌋.
    """
    before = (first.shape[-1] - 1) // 2 + (side - 1) // 2 - last.shape[-1] // 2
    after = first.shape[-1] // 2 + side // 2 - (last.shape[-1] - 1) // 2
    # A negative padding crops what no t can reach.
    mirrored = nn.functional.pad(last.transpose(0, 1).flip(2, 3), [before, after] * 2)
    return nn.functional.conv2d(mirrored, first)


class LipschitzConvolutional(Block):
    r"""A network of convolutions that never stretches a distance, for pictures of every size,

    .. math:: g(x) = C_{H+1}\, a_H(C_H \cdots a_1(C_1 x + b_1) \cdots + b_H) + b_{H+1}, \qquad
        \mathrm{Lip}(g) \le \prod_i \sup_n \|C_i\|_{n \times n} \le 1,

    since every kernel is divided by a bound of its convolution's norm on pictures of all sizes
    (`convolution_norm`), and every activation :math:`a_i` has slopes of size at most one. The
    boundary is circular. Up to two hidden layers the divergence is exact for the cost of one more
    convolution between the hidden layers, in pictures with more pixels on each side than
    :math:`\sum_i \lfloor k_i / 2 \rfloor`; elsewhere it takes one pass for each pixel.

    Args:
        channels: of a picture, at least 1; points have the shape ``(channels, height, width)``.
        hidden: the numbers of channels of the H ≥ 1 hidden layers.
        kernels: the sides :math:`k_i` of the H + 1 square kernels; by default 5 for the first and
            the last and 3 between them. No side of a picture may be less.
        activation: ``"half_linear"``, ``"half_abs"``, ``"elu"`` or ``"tanh"``, for each channel.
        generator: the source of the initial weights; without one, PyTorch's global generator.

    Raises:
        ValueError: for a number that is not positive, no hidden layer, a number of kernels other
            than H + 1 or an unknown activation; when called, for a picture smaller than a kernel.

    Source: normalised weights as in invertible residual networks (Behrmann et al. 2019), with a
    certified norm in place of power iteration; the divergence is ours, chapter 10 of the book.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> net = LipschitzConvolutional(1, hidden=(4, 4), generator=generator).double()
        >>> net.lipschitz_bound() <= 1, net.options["kernels"], net.weights()[1].shape
        (True, (5, 3, 5), torch.Size([4, 4, 3, 3]))
        >>> x = torch.randn(2, 1, 9, 12, generator=generator).double()
        >>> value, divergence = net.with_divergence(x)
        >>> jacobian = net.with_jacobian(x)[1]
        >>> torch.allclose(divergence, jacobian.diagonal(dim1=1, dim2=2).sum(1))
        True
        >>> torch.allclose(net.prepared()(x), value), value.shape
        (True, torch.Size([2, 1, 9, 12]))
    """

    def __init__(
        self,
        channels: int,
        hidden: Sequence[int] = (16, 16),
        kernels: Sequence[int] | None = None,
        activation: str = "half_linear",
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_count("channels", channels)
        hidden = _counts("hidden", hidden)
        kernels = (
            (5, *[3] * (len(hidden) - 1), 5) if kernels is None else _counts("kernels", kernels)
        )
        if len(kernels) != len(hidden) + 1:
            raise ValueError(f"kernels must be one more than the layers of hidden, got {kernels}")
        if not isinstance(activation, str) or activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {[*ACTIVATIONS]}, got {activation!r}")
        self.shape = (channels, None, None)
        self._hidden, self._kernels, self._activation = hidden, kernels, activation
        self.layers = nn.ModuleList(
            UnitConvolution(before, after, side, generator)
            for (before, after), side in zip(
                pairwise([channels, *hidden, channels]), kernels, strict=True
            )
        )
        self.activations = nn.ModuleList(ACTIVATIONS[activation](width) for width in hidden)

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments, without the generator."""
        return {
            "channels": self.shape[0],
            "hidden": self._hidden,
            "kernels": self._kernels,
            "activation": self._activation,
        }

    def weights(self) -> list[Tensor]:
        """The normalised kernels, from the first layer to the last."""
        return [layer.weight for layer in self.layers]

    def lipschitz_bound(self) -> float:
        """The product of the convolutions' bounds: a certificate for every size, not an estimate."""
        return math.prod(convolution_norm(weight).item() for weight in self.weights())

    def prepared(self) -> ConvolutionalMap:
        """The network with each kernel normalised once, with its graph."""
        biases = [layer.bias for layer in self.layers]
        return ConvolutionalMap(self.weights(), biases, [*self.activations])

    def forward(self, x: Tensor) -> Tensor:
        """g(x) for pictures ``(n, channels, height, width)``."""
        return self._ready(x)(x)

    def with_divergence(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """g(x) and its divergence ``(n,)``; up to two hidden layers without any Jacobian."""
        return self._ready(x).with_divergence(x)

    def _ready(self, x: Tensor) -> ConvolutionalMap:
        check_fits("x", x, self.shape, like=self.layers[0].bias)
        if x.ndim != 4:
            raise ValueError(f"x must have shape (n, channels, any, any), got {tuple(x.shape)}")
        return self.prepared()


def _counts(name: str, values: Sequence[int]) -> tuple[int, ...]:
    """Positive ints, at least one, read once."""
    try:
        counts = tuple(values)
    except TypeError:
        raise ValueError(f"{name} must be a sequence of ints, got {values!r}") from None
    if not counts:
        raise ValueError(f"{name} must hold at least one int, got none")
    for count in counts:
        check_count(name, count)
    return counts
