"""Dense networks with Lipschitz constant at most one: by construction, at every moment."""

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
from invbayes.networks.blocks import Block, trace


def unit_spectral_norm(weight: Tensor) -> Tensor:
    r"""The weight divided by its largest singular value, :math:`W \mapsto W / \sigma_1(W)`.

    The norm comes from a singular value decomposition, not from power iteration, which
    under-reports: the result has norm at most one at every training step. A margin of 16 + n
    roundings, n the larger side, allows for the rounding of the decomposition and of the division.

    Args:
        weight: W, shape ``(n, m)``; the zero matrix stays zero.

    Raises:
        ValueError: in half precision, where no certificate can be had.

    Example:
        >>> import torch
        >>> unit_spectral_norm(torch.diag(torch.tensor([3.0, 1.0])))[0, 0] <= 1
        tensor(True)
    """
    if weight.dtype.itemsize < 4:
        raise ValueError(f"weight must be in single or double precision, got {weight.dtype}")
    norm = torch.linalg.matrix_norm(weight, 2)
    margin = (16 + max(weight.shape)) * torch.finfo(weight.dtype).eps
    return weight / (norm * (1 + margin)).clamp(min=torch.finfo(weight.dtype).tiny)


class UnitLinear(nn.Module):
    """x ↦ W x + b with ‖W‖ ≤ 1: the parameter ``raw`` is normalised whenever ``weight`` is read."""

    def __init__(self, before: int, after: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(after))
        self.raw = nn.Parameter(torch.empty(after, before))
        with torch.no_grad():
            self.raw.normal_(generator=generator)
            self.bias.uniform_(-1, 1, generator=generator)

    @property
    def weight(self) -> Tensor:
        """W, the normalised weight."""
        return unit_spectral_norm(self.raw)


@dataclass(frozen=True)
class DenseMap:
    """A dense network with given weights: the formulas, apart from the parameters."""

    weights: list[Tensor]
    biases: list[Tensor]
    activations: Sequence[Activation]

    def __call__(self, x: Tensor) -> Tensor:
        """g(x) for points ``(*, d)``."""
        return self._unroll(x)[0]

    def with_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """g(x) and its Jacobian ``(*, d, d)``, carried forward layer by layer."""
        value, slopes = self._unroll(x)
        transposed = self.weights[0].mT  # each layer is one matrix product for the whole batch
        for slope, weight in zip(slopes, self.weights[1:], strict=True):
            transposed = nn.functional.linear(transposed * slope[..., None, :], weight)
        return value, transposed.mT

    def with_divergence(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""g(x) and its divergence ``(*,)``.

        Up to two hidden layers without any Jacobian: :math:`\mathrm{tr}\, W_2 D_1 W_1 = d_1^\top
        \mathrm{diag}(W_1 W_2)` and :math:`\mathrm{tr}\, W_3 D_2 W_2 D_1 W_1 = d_2^\top [W_2 \circ
        (W_1 W_3)^\top]\, d_1`, where :math:`d_i` are the activations' slopes and :math:`D_i` their
        diagonal matrices.
        """
        if len(self.activations) > 2:
            value, jacobian = self.with_jacobian(x)
            return value, trace(jacobian)
        value, slopes = self._unroll(x)
        closed = self.weights[0] @ self.weights[-1]
        if len(slopes) == 1:
            return value, slopes[0] @ closed.diagonal()
        return value, ((slopes[1] @ (self.weights[1] * closed.mT)) * slopes[0]).sum(-1)

    def _unroll(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The value, and each activation's slopes."""
        slopes = []
        for weight, bias, activation in zip(
            self.weights, self.biases, self.activations, strict=False
        ):
            x, slope = activation.with_slope(nn.functional.linear(x, weight, bias))
            slopes.append(slope)
        return nn.functional.linear(x, self.weights[-1], self.biases[-1]), slopes


class LipschitzDense(Block):
    r"""A dense network on :math:`\mathbb{R}^d` that never stretches a distance,

    .. math:: g(x) = W_{H+1}\, a_H(W_H \cdots a_1(W_1 x + b_1) \cdots + b_H) + b_{H+1}, \qquad
        \mathrm{Lip}(g) \le \prod_i \|W_i\|_2 \le 1,

    since every weight is normalised by its spectral norm and every activation :math:`a_i` has
    slopes of size at most one.

    Args:
        dim: d, at least 1.
        hidden: the widths of the H ≥ 1 hidden layers; by default two of max(32, 2d). A layer
            narrower than d leaves directions that the network cannot see.
        activation: ``"half_linear"``, ``"half_abs"``, ``"elu"`` or ``"tanh"``.
        generator: the source of the initial weights; without one, PyTorch's global generator.

    Raises:
        ValueError: for a dimension or width that is not positive, no hidden layer, or an unknown
            activation; and in half precision, when a weight is used.

    Source: normalised weights as in invertible residual networks (Behrmann et al. 2019), with the
    exact norm in place of power iteration.

    Example:
        >>> import torch
        >>> net = LipschitzDense(2, hidden=(8, 8), generator=torch.Generator().manual_seed(0))
        >>> net.lipschitz_bound() <= 1, len(net.weights()), net.options["activation"]
        (True, 3, 'half_linear')
        >>> value, jacobian = net.with_jacobian(torch.ones(1, 2))
        >>> torch.allclose(net.with_divergence(torch.ones(1, 2))[1], jacobian[0].trace())
        True
        >>> torch.equal(net.prepared()(torch.ones(1, 2)), value)
        True
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] | None = None,
        activation: str = "half_linear",
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_count("dim", dim)
        hidden = (max(32, 2 * dim),) * 2 if hidden is None else _widths(hidden)
        if not isinstance(activation, str) or activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {[*ACTIVATIONS]}, got {activation!r}")
        self.dim, self.shape = dim, (dim,)
        self._hidden, self._activation = hidden, activation
        self.layers = nn.ModuleList(
            UnitLinear(before, after, generator) for before, after in pairwise([dim, *hidden, dim])
        )
        self.activations = nn.ModuleList(ACTIVATIONS[activation](width) for width in hidden)

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments, without the generator."""
        return {"dim": self.dim, "hidden": self._hidden, "activation": self._activation}

    def weights(self) -> list[Tensor]:
        """The normalised weights, from the first layer to the last."""
        return [layer.weight for layer in self.layers]

    def lipschitz_bound(self) -> float:
        """The product of the weights' largest singular values: a certificate, not an estimate."""
        return math.prod(torch.linalg.matrix_norm(w, 2).item() for w in self.weights())

    def prepared(self) -> DenseMap:
        """The network with each weight normalised once, with its graph."""
        return DenseMap(self.weights(), [layer.bias for layer in self.layers], [*self.activations])

    def forward(self, x: Tensor) -> Tensor:
        """g(x) for points ``(*, d)``."""
        return self._ready(x)(x)

    def with_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """g(x) and its Jacobian ``(*, d, d)``, carried forward layer by layer."""
        return self._ready(x).with_jacobian(x)

    def with_divergence(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """g(x) and its divergence ``(*,)``; up to two hidden layers without any Jacobian."""
        return self._ready(x).with_divergence(x)

    def _ready(self, x: Tensor) -> DenseMap:
        check_fits("x", x, self.shape, like=self.layers[0].bias)
        return self.prepared()


def _widths(hidden: Sequence[int]) -> tuple[int, ...]:
    """The widths of the hidden layers, read once."""
    try:
        widths = tuple(hidden)
    except TypeError:
        raise ValueError(f"hidden must be a sequence of widths, got {hidden!r}") from None
    if not widths:
        raise ValueError("hidden must name at least one width, got none")
    for width in widths:
        check_count("hidden", width)
    return widths
