"""Activations with slopes of size at most one, each with its derivative."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from invbayes._checks import check_count


class Activation(nn.Module, ABC):
    """An activation of ``width`` units whose slopes lie in [−1, 1]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        check_count("width", width)

    def forward(self, b: Tensor) -> Tensor:
        """The activation, shape ``(*, width)``."""
        return self.with_slope(b)[0]

    @abstractmethod
    def with_slope(self, b: Tensor) -> tuple[Tensor, Tensor]:
        """The activation and its derivative, each ``(*, width)``."""


class _Half(Activation):
    """Half of the units pass unchanged, the other half are bent."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.linear = width - width // 2

    def with_slope(self, b: Tensor) -> tuple[Tensor, Tensor]:
        """The activation and its derivative, each ``(*, width)``."""
        passed, bent = b[..., : self.linear], b[..., self.linear :]
        value, slope = self.bend(bent)
        return torch.cat([passed, value], -1), torch.cat([torch.ones_like(passed), slope], -1)

    @abstractmethod
    def bend(self, bent: Tensor) -> tuple[Tensor, Tensor]:
        """The bent units and their slopes."""


class HalfLinear(_Half):
    r"""Half of the units pass unchanged, the other half are bent,

    .. math:: b \mapsto b, \qquad b \mapsto \frac{\sqrt{(s b)^2 + 1} - 1}{s},

    with a learned sharpness s > 0 for each bent unit. Both have slopes of size at most one. With
    s large this is MaxMin between two rotations, but smooth.

    Args:
        width: the number of units, at least 1; a single one passes unchanged.

    Raises:
        ValueError: for a width that is no positive int.

    Example:
        >>> import torch
        >>> HalfLinear(2).with_slope(torch.tensor([[3.0, 0.0]]))[0].tolist()
        [[3.0, 0.0]]
        >>> value, slope = HalfLinear(2).bend(torch.tensor([-1e30]))  # |b|, far away
        >>> bool(value > 0.99e30), slope.item()
        (True, -1.0)
    """

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.log_sharpness = nn.Parameter(torch.zeros(width // 2))

    def bend(self, bent: Tensor) -> tuple[Tensor, Tensor]:
        """The bent units and their slopes."""
        sharpness = self.log_sharpness.clamp(max=40.0).exp()
        # Beyond this limit the unit is |b| to rounding, and the square would overflow.
        far = torch.finfo(bent.dtype).max ** 0.5 / 2
        scaled = (sharpness * bent).clamp(-far, far)
        root = torch.sqrt(scaled * scaled + 1)
        return scaled * (bent / (root + 1)), scaled / root


class HalfAbs(_Half):
    r"""The limit of `HalfLinear` for infinite sharpness: :math:`b \mapsto b` and :math:`b \mapsto |b|`.

    Piecewise linear, so that automatic differentiation misses the kinks' share of the gradient of
    the mean divergence in the parameters: kept to show what goes wrong.

    Example:
        >>> HalfAbs(2)(torch.tensor([[-3.0, -3.0]])).tolist()
        [[-3.0, 3.0]]
        >>> HalfAbs(2).bend(torch.tensor([-3.0]))
        (tensor([3.]), tensor([-1.]))
    """

    def bend(self, bent: Tensor) -> tuple[Tensor, Tensor]:
        """The bent units and their slopes."""
        return bent.abs(), bent.sign()


class Elu(Activation):
    r"""The exponential linear unit, :math:`b` for b ≥ 0 and :math:`e^b - 1` below; slope in (0, 1].

    Example:
        >>> Elu(2).with_slope(torch.tensor([[3.0, 0.0]]))[1].tolist()
        [[1.0, 1.0]]
    """

    def with_slope(self, b: Tensor) -> tuple[Tensor, Tensor]:
        """The activation and its derivative, each ``(*, width)``."""
        return nn.functional.elu(b), b.clamp(max=0).exp()


class Tanh(Activation):
    r"""The hyperbolic tangent, slope in (0, 1].

    Example:
        >>> value, slope = Tanh(2).with_slope(torch.zeros(1, 2))
        >>> value.tolist(), slope.tolist()
        ([[0.0, 0.0]], [[1.0, 1.0]])
    """

    def with_slope(self, b: Tensor) -> tuple[Tensor, Tensor]:
        """The activation and its derivative, each ``(*, width)``."""
        value = b.tanh()
        return value, 1 - value**2


ACTIVATIONS = {"half_linear": HalfLinear, "half_abs": HalfAbs, "elu": Elu, "tanh": Tanh}
