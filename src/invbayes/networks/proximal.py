"""Proximal maps of the prior that a denoising network has learned, for every step size."""

from __future__ import annotations

import torch
from torch import Tensor

from invbayes._checks import check_instance, check_points, check_positive, number
from invbayes.errors import NotConverged
from invbayes.networks.contraction import Goal, Map, MapWithJacobian, solve
from invbayes.networks.inversion import newton_pays
from invbayes.networks.iresnet import InvertibleResNet
from invbayes.networks.precision import in_full_precision


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
    goal = Goal.of(contraction(net, gamma, 1 - gamma * defect), tol)

    def field(x: Tensor) -> Tensor:
        return (1 - gamma) * x + gamma * net(x)

    def with_jacobian(x: Tensor) -> tuple[Tensor, Tensor]:
        value, jacobian = net.with_jacobian(x)
        rest = (1 - gamma) * torch.eye(jacobian.shape[-1]).to(x)
        return (1 - gamma) * x + gamma * value, rest + gamma * jacobian

    return resolve(net, field, with_jacobian, lambda rows: rows / whole, v, goal)


def contraction(net: InvertibleResNet, step: float, slope: float) -> float:
    r"""The Lipschitz constant of :math:`H^{-1} \gamma c f`, above zero, for the least slope of H − γ c f.

    It is :math:`\gamma c L / \lambda_{\min}(H)`, without a difference that would cancel.
    """
    turned = step * net.scale.item() * net.lipschitz_bound()
    return max(turned / (turned + slope), torch.finfo(torch.float64).eps)


def resolve(
    net: InvertibleResNet,
    field: Map,
    with_jacobian: MapWithJacobian,
    near: Map,
    z: Tensor,
    goal: Goal,
) -> Tensor:
    r"""The x with F(x) = z for points ``(*, *shape)``, as :math:`x = M z + (x - M F(x))`.

    M is symmetric and near the inverse of DF: where F(x) is z, its rounding and its derivative cancel.
    """
    shape = z.shape[z.ndim - len(net.shape) :]

    def pull(rows: Tensor) -> Tensor:
        return rows - near(field(rows.reshape(-1, *shape)).flatten(1))

    def pull_with_jacobian(rows: Tensor) -> tuple[Tensor, Tensor]:
        value, jacobian = with_jacobian(rows.reshape(-1, *shape))
        identity = torch.eye(rows.shape[1]).to(rows)
        return rows - near(value.flatten(1)), identity - near(jacobian.mT).mT

    known = pull_with_jacobian if newton_pays(net.blocks[0], shape.numel()) else None
    start = near(z.reshape(-1, shape.numel()))
    try:
        return solve(pull, start, start, goal, method=None, with_jacobian=known).reshape(z.shape)
    except NotConverged as failure:
        failure.point = failure.point.reshape(z.shape)
        if goal.growth > 1:
            spread = goal.growth / (1 - goal.lipschitz)
            failure.add_note(f"The largest slope is {spread:.1e} times the least.")
        raise


def check_one_block(net: InvertibleResNet) -> None:
    """Raise unless the network is one block, for which alone κ bounds the slopes."""
    check_instance("net", net, InvertibleResNet)
    if len(net.blocks) > 1:
        raise ValueError(f"net must have one block, got {len(net.blocks)}")
