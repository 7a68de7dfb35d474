"""Proximal maps of the prior that a denoising network has learned, for every step size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invbayes._checks import check_instance, check_points, check_positive, number
from invbayes.networks.contraction import fixed_point
from invbayes.networks.inversion import newton_pays
from invbayes.networks.iresnet import InvertibleResNet


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
    contraction = 1 - (1 - gamma * defect) / whole.item()
    return resolve(net, v / whole, gamma / whole, lipschitz=contraction, tol=tol)


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


def check_one_block(net: InvertibleResNet) -> None:
    """Raise unless the network is one block, for which alone κ bounds the slopes."""
    check_instance("net", net, InvertibleResNet)
    if len(net.blocks) > 1:
        raise ValueError(f"net must have one block, got {len(net.blocks)}")
