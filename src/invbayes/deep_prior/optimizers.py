"""The inertial algorithm as a PyTorch optimiser."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from invbayes._checks import check_positive
from invbayes.deep_prior.linearised import check_damping
from invbayes.deep_prior.stability import largest_step

Closure = Callable[[], Tensor]


class Inertia(Optimizer):
    r"""A heavy ball with viscous and Hessian-driven damping, in steps of h,

    .. math:: w_{n+1} = \frac{w_n + h(\alpha\beta - 1)\, g_n}{1 + \alpha h}, \qquad
        \theta_{n+1} = \theta_n + h\,(w_{n+1} - \beta g_n), \qquad g_n = \nabla L(\theta_n),

    from rest, :math:`w_0 = \beta g_0`. Without w: with :math:`a = 1/(1 + \alpha h)`,

    .. math:: \theta_{n+1} = \theta_n + a(\theta_n - \theta_{n-1}) - a\beta h(g_n - g_{n-1}) - a h^2 g_n .

    Any PyTorch learning-rate schedule changes h; the first form allows that.

    Args:
        params: as for every PyTorch optimiser; parameter groups may have their own options.
        lr: h > 0, the step in time. (Gradient descent's step size corresponds to h².)
        damping: α ≥ 0.
        hessian_damping: β ≥ 0.
        largest_eigenvalue: of the Hessian of L, where it is known; a step at or past the bound of
            `largest_step` then warns, at construction, and names the bound.

    Raises:
        ValueError: for arguments outside these ranges.

    Source: the system is that of arXiv 2506.02986; steps of this kind: arXiv 1907.10536, 2407.12518.

    Example:
        >>> import torch
        >>> theta = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = Inertia([theta], lr=0.5, damping=1.0)
        >>> for _ in range(60):
        ...     optimizer.zero_grad()
        ...     theta.square().sum().backward()
        ...     _ = optimizer.step()
        >>> bool(theta.norm() < 1e-4)
        True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        damping: float,
        hessian_damping: float = 0.0,
        largest_eigenvalue: float | None = None,
    ) -> None:
        options = {"lr": lr, "damping": damping, "hessian_damping": hessian_damping}
        super().__init__(params, options)
        if largest_eigenvalue is not None:
            check_positive("largest_eigenvalue", largest_eigenvalue)
            for group in self.param_groups:
                _warn_if_unstable(group, largest_eigenvalue)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As for every PyTorch optimiser; the group's options are checked."""
        options = {**self.defaults, **param_group}
        check_positive("lr", options["lr"])
        check_damping(options["damping"], options["hessian_damping"])
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:
        """Move once. The closure, if there is one, computes the loss and the gradients.

        Returns:
            What the closure returned, the loss before the step.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return loss

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        slope, state, beta = parameter.grad, self.state[parameter], group["hessian_damping"]
        w = state["w"] if "w" in state else beta * slope
        state["w"], change = inertial_step(w, slope, group["lr"], group["damping"], beta)
        parameter.add_(change)


def inertial_step(
    w: Tensor, slope: Tensor, h: float, alpha: float, beta: float
) -> tuple[Tensor, Tensor]:
    """One step of `Inertia`: the new w, and the change of θ."""
    w = (w + h * (alpha * beta - 1) * slope) / (1 + alpha * h)
    return w, h * (w - beta * slope)


def _warn_if_unstable(group: dict[str, Any], largest: float) -> None:
    lr, dampings = group["lr"], {key: group[key] for key in ("damping", "hessian_damping")}
    bound = largest_step(largest, **dampings)
    if lr >= bound:
        warnings.warn(
            f"lr = {lr:.4g} is not below the stability bound {bound:.4g} of this damping and "
            "largest_eigenvalue: the stiffest mode will not decay",
            UserWarning,
            stacklevel=3,
        )
