"""Dense networks with Lipschitz constant at most one: by construction, at every moment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from invbayes._checks import check_count, check_points


class UnitSpectralNorm(nn.Module):
    r"""The weight divided by its largest singular value, :math:`W \mapsto W / \sigma_1(W)`.

    A parametrization for `torch.nn.utils.parametrize`. The norm comes from a singular value
    decomposition, not from power iteration, which under-reports: the result has norm at most one
    at every training step. A margin of 16 + n roundings, n the larger side, allows for the
    rounding of the decomposition and of the division.

    Example:
        >>> import torch
        >>> UnitSpectralNorm()(torch.diag(torch.tensor([3.0, 1.0])))[0, 0] <= 1
        tensor(True)
    """

    def forward(self, weight: Tensor) -> Tensor:
        """Normalise a matrix; the zero matrix stays zero."""
        norm = torch.linalg.matrix_norm(weight, 2)
        margin = (16 + max(weight.shape)) * torch.finfo(weight.dtype).eps
        return weight / (norm * (1 + margin)).clamp(min=torch.finfo(weight.dtype).tiny)


class HalfLinear(nn.Module):
    r"""Half of the units pass unchanged, the other half are bent,

    .. math:: b \mapsto b, \qquad b \mapsto \frac{\sqrt{(s b)^2 + 1} - 1}{s},

    with a learned sharpness s > 0 for each bent unit. Both have slopes of size at most one. With
    s large this is MaxMin between two rotations, but smooth.

    Args:
        width: the number of units, at least 2.

    Example:
        >>> import torch
        >>> HalfLinear(2).with_slope(torch.tensor([[3.0, 0.0]]))[0].tolist()
        [[3.0, 0.0]]
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = width - width // 2
        self.log_sharpness = nn.Parameter(torch.zeros(width // 2))

    def forward(self, b: Tensor) -> Tensor:
        """The activation, shape ``(*, width)``."""
        return self.with_slope(b)[0]

    def with_slope(self, b: Tensor) -> tuple[Tensor, Tensor]:
        """The activation and its derivative, each ``(*, width)``."""
        passed, bent = b[..., : self.linear], b[..., self.linear :]
        sharpness = self.log_sharpness.exp()
        root = torch.sqrt((sharpness * bent) ** 2 + 1)
        value = sharpness * bent**2 / (root + 1)
        slope = sharpness * bent / root
        return torch.cat([passed, value], -1), torch.cat([torch.ones_like(passed), slope], -1)


class HalfAbs(HalfLinear):
    r"""The limit of `HalfLinear` for infinite sharpness: :math:`b \mapsto b` and :math:`b \mapsto |b|`.

    Piecewise linear, so that automatic differentiation misses the kinks' share of the gradient of
    the mean divergence in the parameters: kept to show what goes wrong.

    Example:
        >>> HalfAbs(2)(torch.tensor([[-3.0, -3.0]])).tolist()
        [[-3.0, 3.0]]
    """

    def __init__(self, width: int) -> None:
        nn.Module.__init__(self)
        self.linear = width - width // 2

    def with_slope(self, b: Tensor) -> tuple[Tensor, Tensor]:
        """The activation and its derivative, each ``(*, width)``."""
        passed, bent = b[..., : self.linear], b[..., self.linear :]
        slope = torch.cat([torch.ones_like(passed), bent.sign()], -1)
        return torch.cat([passed, bent.abs()], -1), slope


class Elu(nn.Module):
    r"""The exponential linear unit, :math:`b` for b ≥ 0 and :math:`e^b - 1` below; slope in (0, 1].

    Example:
        >>> Elu(2).with_slope(torch.tensor([[3.0, 0.0]]))[1].tolist()
        [[1.0, 1.0]]
    """

    def __init__(self, width: int) -> None:  # noqa: ARG002  every activation is made from a width
        super().__init__()

    def forward(self, b: Tensor) -> Tensor:
        """The activation, shape ``(*, width)``."""
        return nn.functional.elu(b)

    def with_slope(self, b: Tensor) -> tuple[Tensor, Tensor]:
        """The activation and its derivative, each ``(*, width)``."""
        return nn.functional.elu(b), b.clamp(max=0).exp()


class Tanh(Elu):
    r"""The hyperbolic tangent, slope in (0, 1].

    Example:
        >>> value, slope = Tanh(2).with_slope(torch.zeros(1, 2))
        >>> value.tolist(), slope.tolist()
        ([[0.0, 0.0]], [[1.0, 1.0]])
    """

    def forward(self, b: Tensor) -> Tensor:
        """The activation, shape ``(*, width)``."""
        return b.tanh()

    def with_slope(self, b: Tensor) -> tuple[Tensor, Tensor]:
        """The activation and its derivative, each ``(*, width)``."""
        value = b.tanh()
        return value, 1 - value**2


ACTIVATIONS = {"half_linear": HalfLinear, "half_abs": HalfAbs, "elu": Elu, "tanh": Tanh}


class LipschitzDense(nn.Module):
    r"""A dense network on :math:`\mathbb{R}^d` that never stretches a distance,

    .. math:: g(x) = W_{H+1}\, a_H(W_H \cdots a_1(W_1 x + b_1) \cdots + b_H) + b_{H+1}, \qquad
        \mathrm{Lip}(g) \le \prod_i \|W_i\|_2 \le 1,

    since every weight is normalised by its spectral norm and every activation :math:`a_i` has
    slopes of size at most one.

    Args:
        dim: d, at least 1.
        hidden: the widths of the H ≥ 1 hidden layers.
        activation: ``"half_linear"``, ``"half_abs"``, ``"elu"`` or ``"tanh"``.
        generator: the source of the initial weights; without one, PyTorch's global generator.

    Raises:
        ValueError: for a dimension or width that is not positive, no hidden layer, or an unknown
            activation.

    Source: normalised weights as in invertible residual networks (Behrmann et al. 2019), with the
    exact norm in place of power iteration.

    Example:
        >>> import torch
        >>> net = LipschitzDense(2, hidden=(8, 8), generator=torch.Generator().manual_seed(0))
        >>> net.lipschitz_bound() <= 1, len(net.weights())
        (True, 3)
        >>> value, jacobian = net.with_jacobian(torch.ones(1, 2))
        >>> torch.allclose(net.with_divergence(torch.ones(1, 2))[1], jacobian[0].trace())
        True
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (32, 32),
        activation: str = "half_linear",
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_count("dim", dim)
        if not hidden:
            raise ValueError("hidden must name at least one width, got none")
        for width in hidden:
            check_count("hidden", width)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {[*ACTIVATIONS]}, got {activation!r}")
        self.dim = dim
        self.layers = nn.ModuleList(
            _normalised(before, after, generator) for before, after in pairwise([dim, *hidden, dim])
        )
        self.activations = nn.ModuleList(ACTIVATIONS[activation](width) for width in hidden)

    def weights(self) -> list[Tensor]:
        """The normalised weights, from the first layer to the last."""
        return [layer.weight for layer in self.layers]

    def lipschitz_bound(self) -> float:
        """The product of the weights' largest singular values: a certificate, not an estimate."""
        return math.prod(torch.linalg.matrix_norm(w, 2).item() for w in self.weights())

    def forward(self, x: Tensor) -> Tensor:
        """g(x) for points ``(*, d)``."""
        check_points("x", x, self.dim, like=self.layers[0].bias)
        for layer, activation in zip(self.layers, self.activations, strict=False):
            x = activation(layer(x))
        return self.layers[-1](x)

    def with_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """g(x) and its Jacobian ``(*, d, d)``, carried forward layer by layer."""
        value, slopes, weights = self._unroll(x)
        transposed = weights[0].mT  # so that each layer is one matrix product for the whole batch
        for slope, weight in zip(slopes, weights[1:], strict=True):
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
            return value, jacobian.diagonal(dim1=-2, dim2=-1).sum(-1)
        value, slopes, weights = self._unroll(x)
        closed = weights[0] @ weights[-1]
        if len(slopes) == 1:
            return value, slopes[0] @ closed.diagonal()
        return value, ((slopes[1] @ (weights[1] * closed.mT)) * slopes[0]).sum(-1)

    def _unroll(self, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The value, each activation's slopes, and the weights, each normalised once."""
        check_points("x", x, self.dim, like=self.layers[0].bias)
        weights = self.weights()
        slopes = []
        for layer, weight, activation in zip(self.layers, weights, self.activations, strict=False):
            x, slope = activation.with_slope(nn.functional.linear(x, weight, layer.bias))
            slopes.append(slope)
        return nn.functional.linear(x, weights[-1], self.layers[-1].bias), slopes, weights


def _normalised(before: int, after: int, generator: torch.Generator | None) -> nn.Linear:
    """A linear layer with a random weight of spectral norm one and a small random bias."""
    layer = nn.Linear(before, after)
    with torch.no_grad():
        layer.weight.normal_(generator=generator)
        layer.bias.uniform_(-1, 1, generator=generator)
    parametrize.register_parametrization(layer, "weight", UnitSpectralNorm())
    return layer
