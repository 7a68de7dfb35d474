"""Proximal maps of the prior that a denoising network has learned, for every step size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from invbayes._checks import check_instance, check_points, check_positive, number
from invbayes.errors import NotConverged
from invbayes.networks.contraction import fixed_point
from invbayes.networks.inversion import newton_pays
from invbayes.networks.iresnet import InvertibleResNet
from invbayes.networks.precision import in_full_precision

# How often the true residual is looked at before an inverse is given up.
MENDING = 3


def concavity_defect(net: InvertibleResNet) -> float:
    r"""How far the learned prior may be from log-concave: :math:`\kappa = 1 - c\,(1 - L)`.

    For one block :math:`\langle T x - T x', x - x' \rangle \ge -\kappa \|x - x'\|^2` with
    :math:`T = \varphi - \mathrm{Id}`, the learned :math:`-\delta_0^2 \nabla \log p_X`.

    Args:
        net: φ, of one block.

    Raises:
        ValueError: for several blocks.

    Example:
        >>> round(concavity_defect(InvertibleResNet.dense(2, lipschitz=0.75, scale=2.0)), 3)
        0.5
    """
    check_one_block(net)
    return 1 - net.scale.item() * (1 - net.lipschitz_bound())


@in_full_precision
def proximal(net: InvertibleResNet, v: Tensor, step: float, *, tol: float | None = None) -> Tensor:
    r"""The resolvent of the learned prior, to a guaranteed error,

    .. math:: J_{\gamma T}(v) = \big((1 - \gamma)\, \mathrm{Id} + \gamma \varphi\big)^{-1}(v), \qquad T = \varphi - \mathrm{Id},

    the proximal map of :math:`-\gamma\, \delta_0^2 \log p_X`: the MAP denoiser at the noise level
    :math:`\delta_0 \sqrt\gamma`, from one network trained at δ₀. It exists for :math:`\gamma \kappa < 1`,
    with the Lipschitz constant :math:`1 / (1 - \gamma \kappa)`; γ = 1 is the inverse of φ.

    Args:
        net: φ, of one block, trained by `Divergence` with A = I.
        v: points, shape ``(*, *shape)``.
        step: γ > 0.
        tol: as in `fixed_point`.

    Raises:
        ValueError: for a step beyond 1 / κ, several blocks, and as `fixed_point` does.
        NotConverged: as `fixed_point` does.

    Source: chapter 9 of the book.

    Example:
        >>> import torch
        >>> net, v = InvertibleResNet.dense(2), torch.ones(5, 2)
        >>> torch.allclose(proximal(net, v, 1.0), net.inverse(v), atol=1e-4)
        True
    """
    check_positive("step", step)
    defect, gamma = concavity_defect(net), number("step", step)
    if gamma * defect >= 1:
        raise ValueError(f"step must be below 1 / κ = {1 / defect:.4g}, got {gamma:g}")
    check_points("v", v, net.shape, like=net.log_scale)
    whole = 1 - gamma + gamma * net.scale
    shrinks = contraction(net, gamma, 1 - gamma * defect)
    return resolve(net, v / whole, gamma / whole, lipschitz=shrinks, tol=tol)


def contraction(net: InvertibleResNet, step: float, slope: float) -> float:
    r"""The Lipschitz constant of :math:`H^{-1} \gamma c f`, above zero, for the least slope of H − γ c f.

    It is :math:`\gamma c L / \lambda_{\min}(H)`, without a difference that would cancel.
    """
    turned = step * net.scale.item() * net.lipschitz_bound()
    return max(turned / (turned + slope), torch.finfo(torch.float64).eps)


def resolve(
    net: InvertibleResNet, z: Tensor, gain: Tensor, *, lipschitz: float, tol: float | None
) -> Tensor:
    """The x with x = z + G (c x − φ(x)), for points ``(*, *shape)``; G is a number or symmetric."""
    shape = z.shape[z.ndim - len(net.shape) :]
    scale, dim = net.scale, math.prod(shape)

    def pull(x: Tensor) -> Tensor:
        rest = scale * x - net(x.reshape(-1, *shape)).flatten(1)
        return rest @ gain if gain.ndim else rest * gain

    def with_jacobian(x: Tensor) -> tuple[Tensor, Tensor]:
        value, jacobian = net.with_jacobian(x.reshape(-1, *shape))
        rest = scale * x - value.flatten(1), scale * torch.eye(dim).to(x) - jacobian
        return (rest[0] @ gain, gain @ rest[1]) if gain.ndim else (rest[0] * gain, rest[1] * gain)

    options = {"with_jacobian": with_jacobian} if newton_pays(net.blocks[0], dim) else {}
    found = fixed_point(pull, z.reshape(-1, dim), lipschitz=lipschitz, tol=tol, **options)
    return found.reshape(z.shape)


class Equation(NamedTuple):
    r"""The equation :math:`\varphi_{A,\delta}(x) = z`, as :math:`x = H^{-1} (z + t c f(x))`.

    Attributes:
        net: φ.
        step: t.
        slope: μ > 0.
        inverse: H⁻¹, symmetric.
        spread: the largest slope of :math:`\varphi_{A,\delta}` divided by μ.
    """

    net: InvertibleResNet
    step: float
    slope: float
    inverse: Tensor
    spread: float

    @classmethod
    def of(
        cls,
        net: InvertibleResNet,
        step: float,
        slope: float,
        normal: Tensor,
        spectrum: tuple[Tensor, Tensor],
    ) -> Equation:
        """With the value of H⁻¹ from A's singular values, and its derivative from A*A."""
        (values, axes), scale = spectrum, net.scale
        slopes = values.square() + step * (scale.item() - 1)
        inverse = (axes.mT / slopes @ axes).to(normal)
        moved = normal + step * (scale - 1) * torch.eye(len(normal)).to(normal)
        inverse = inverse - inverse @ (moved - moved.detach()) @ inverse
        largest = values[0].item() ** 2 + step * (1 + 2 * scale.item())
        return cls(net, step, slope, inverse, largest / slope)

    def solve(self, z: Tensor, forward: Callable[[Tensor], Tensor], tol: float | None) -> Tensor:
        """The solution, judged by the true residual, since H⁻¹ is rounded; plain steps mend a little."""
        lipschitz, target = contraction(self.net, self.step, self.slope), self._pulled(z)
        x = resolve(self.net, target, self.step * self.inverse, lipschitz=lipschitz, tol=tol)
        for _ in range(MENDING):
            with torch.no_grad():
                missed = self._pulled(forward(x) - z)
                error = self._length(missed) / (1 - lipschitz)
                late = ~(error <= self._allowed(x, target, tol))
            if not late.any():
                return x
            mend = late.reshape(late.shape + (1,) * len(self.net.shape)) * missed
            x, last = x - mend, x
        raise self._failure(last, error[late].max().item(), tol)

    def _allowed(self, x: Tensor, target: Tensor, tol: float | None) -> Tensor:
        """The error that each point may have: tol, or 1e-6 or what rounding may leave."""
        size = self._length(x) + self._length(target)
        rounding = 32 * torch.finfo(x.dtype).eps * self.spread * size
        return rounding.clamp(min=1e-6) if tol is None else torch.full_like(rounding, float(tol))

    def _failure(self, x: Tensor, bound: float, tol: float | None) -> NotConverged:
        return NotConverged(
            f"the inverse missed the tolerance {tol or 1e-6:.1e}: its error is bounded by {bound:.1e} "
            f"only. {x.dtype} is too coarse for a problem whose largest slope is {self.spread:.1e} "
            "times the least",
            steps=MENDING,
            bound=bound,
            point=x.detach(),
        )

    def _pulled(self, z: Tensor) -> Tensor:
        """H⁻¹ z."""
        return (z.reshape(-1, len(self.inverse)) @ self.inverse).reshape(z.shape)

    def _length(self, x: Tensor) -> Tensor:
        return x.flatten(x.ndim - len(self.net.shape)).norm(dim=-1)


def check_one_block(net: InvertibleResNet) -> None:
    """Raise unless the network is one block, for which alone κ bounds the slopes."""
    check_instance("net", net, InvertibleResNet)
    if len(net.blocks) > 1:
        raise ValueError(f"net must have one block, got {len(net.blocks)}")
