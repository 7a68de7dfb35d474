"""The divergence training once more, with a weight that forgives the fold: for `error_bars.py`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import invbayes as ib

FLOOR = 0.1  # what the fold still counts
EDGES = 0.05, 0.2  # it falls where a variance of the first network is 5 to 20 times a Gaussian's


@dataclass(frozen=True, eq=False)
class ForgivingDivergence:
    r"""The forward error, regularized by the divergence, with a weight w for each point,

    .. math:: \min_\varphi\; \mathbb{E}\big[\tfrac{w}2 \|\varphi(x) - A^*\!A x\|^2
        - \delta^2 (w\, \mathrm{div}\, \varphi(x) + \langle \nabla w, \varphi(x) \rangle)\big],

    whose minimiser over all maps is that of `Divergence`, for every bounded Lipschitz w > 0; a
    monotone network has to miss that one somewhere, and pays less where w is small. Here w goes
    from one to a tenth where the least eigenvalue of the symmetric part of
    :math:`W^{1/2} D\varphi_1 W^{1/2}` goes from 0.2 to 0.05, for a first network :math:`\varphi_1`.

    Args:
        problem: the measurement.
        first: a network of one block, trained by `Divergence`.
        root: the symmetric root of `posterior_metric`, ``(d, d)``.

    Source: an exercise of chapter 6 of the book.
    """

    problem: ib.LinearProblem
    first: ib.InvertibleResNet
    root: Tensor

    def __call__(self, net: ib.InvertibleResNet, x: Tensor, _: Tensor) -> Tensor:
        """The loss of a batch, a number."""
        weight, slope = self.weight(x)
        value, divergence = net.with_divergence(x)
        misfit = (value - self.problem.mean_normal_data(x)).square().sum(1)
        spread = weight * divergence + (slope * value).sum(1)
        return (weight * misfit / 2 - self.problem.noise_std**2 * spread).mean()

    @torch.enable_grad()
    def weight(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The weight ``(n,)`` and its gradient ``(n, d)`` at points."""
        x = x.detach().requires_grad_()
        jacobian = self.first.with_jacobian(x)[1]
        least = torch.linalg.eigvalsh(self.root @ (jacobian + jacobian.mT) / 2 @ self.root)[:, 0]
        low, high = EDGES
        rise = ((least - low) / (high - low)).clamp(0, 1)
        weight = FLOOR + (1 - FLOOR) * rise**2 * (3 - 2 * rise)
        return weight.detach(), torch.autograd.grad(weight.sum(), x)[0]
