"""The inertial algorithm as PyTorch optimisers: with a fixed step, and with an adaptive one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.optimizer import Optimizer, ParamsT

from invbayes._checks import check_positive
from invbayes.errors import NotConverged
from invbayes.linearised import check_damping, largest_step

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
            `largest_step` then warns and names the bound.

    Raises:
        ValueError: for arguments outside these ranges.

    Source: (ISEHD-Disc), arXiv 2506.02986.

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
        check_positive("lr", lr)
        check_damping(damping, hessian_damping)
        if largest_eigenvalue is not None:
            _warn_if_unstable(lr, largest_eigenvalue, damping, hessian_damping)
        super().__init__(params, {"lr": lr, "damping": damping, "hessian_damping": hessian_damping})

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
        state["w"], change = _inertial_step(w, slope, group["lr"], group["damping"], beta)
        parameter.add_(change)


class AdaptiveInertia(Optimizer):
    r"""`Inertia` with a step h that follows an estimate Λ of the largest curvature: h > 0 solves

    .. math:: \Lambda\,(h^2 + 2\beta h) = 2 + \alpha h,

    which is half of what stability allows (`largest_step`). The step d is accepted when

    .. math:: L(\theta + d) \le L(\theta) + \langle \nabla L(\theta), d\rangle + \tfrac{\Lambda}{2}\|d\|^2 .

    Otherwise Λ is doubled and the step is tried again from the same place. After each accepted
    step Λ shrinks by two per cent, so that h can grow again.

    The loss must be the same function at each call; the loss and gradient at an accepted point
    are kept for the next step, so that a step without a refusal costs one evaluation. A little
    Hessian-driven damping, β about :math:`0.1/\sqrt{\Lambda}`, calms the stiff modes and saves refusals.

    Args:
        params: parameters, in a single group.
        damping: α ≥ 0.
        hessian_damping: β ≥ 0.
        curvature: the first Λ > 0; a rough guess is enough.

    Raises:
        ValueError: for arguments outside these ranges, or more than one parameter group.

    Source: the rule is ours; arXiv 2506.02986 has another one.

    Example:
        >>> import torch
        >>> theta = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = AdaptiveInertia([theta], damping=1.0, curvature=100.0)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = theta.square().sum()
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(300):
        ...     _ = optimizer.step(closure)
        >>> bool(theta.norm() < 1e-4)
        True
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        damping: float,
        hessian_damping: float = 0.0,
        curvature: float = 1.0,
    ) -> None:
        check_damping(damping, hessian_damping)
        check_positive("curvature", curvature)
        options = {"damping": damping, "hessian_damping": hessian_damping, "curvature": curvature}
        super().__init__(params, options)
        if len(self.param_groups) != 1:
            raise ValueError(f"params must be a single group, got {len(self.param_groups)}")

    @property
    def evaluations(self) -> int:
        """How often the closure has been called."""
        return self.state[self.param_groups[0]["params"][0]].get("evaluations", 0)

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:
        """Move once.

        Args:
            closure: clears the gradients, computes the loss and its gradients, returns the loss.

        Returns:
            The loss before the step.

        Raises:
            NotConverged: if every step down to the dtype's resolution is refused, as happens
                when the loss or its gradient is wrong or NaN. The parameters stay where they were.
        """
        group, parameters = self.param_groups[0], self.param_groups[0]["params"]
        state, beta = self.state[parameters[0]], group["hessian_damping"]
        theta = parameters_to_vector(parameters)
        if "theta" not in state or not torch.equal(state["theta"], theta):
            state["loss"], state["slope"] = _evaluate(closure, parameters)
            state["evaluations"] = state.get("evaluations", 0) + 1
        loss, slope = state["loss"], state["slope"]
        w = state["w"] if "w" in state else beta * slope
        while True:
            h = _step_size(group["curvature"], group["damping"], beta)
            moved_w, change = _inertial_step(w, slope, h, group["damping"], beta)
            vector_to_parameters(theta + change, parameters)
            new_loss, new_slope = _evaluate(closure, parameters)
            state["evaluations"] += 1
            model = loss + slope @ change + group["curvature"] / 2 * change.square().sum()
            if new_loss <= model + _rounding(loss):
                break
            vector_to_parameters(theta, parameters)
            _check_resolution(change, theta, h)
            group["curvature"] *= 2
        group["curvature"] *= 0.98
        state.update(theta=theta + change, w=moved_w, loss=new_loss, slope=new_slope)
        return loss


def _inertial_step(
    w: Tensor, slope: Tensor, h: float, alpha: float, beta: float
) -> tuple[Tensor, Tensor]:
    """The new w, and the change of θ."""
    w = (w + h * (alpha * beta - 1) * slope) / (1 + alpha * h)
    return w, h * (w - beta * slope)


def _step_size(curvature: float, alpha: float, beta: float) -> float:
    """h > 0 with Λ(h² + 2βh) = 2 + αh, from the form without a difference of near equals."""
    half = alpha / 2 - curvature * beta
    root = math.sqrt(half**2 + 2 * curvature)
    return (half + root) / curvature if half >= 0 else 2 / (root - half)


def _evaluate(closure: Closure, parameters: list[nn.Parameter]) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        loss = closure()
    slopes = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return loss.detach(), parameters_to_vector(slopes)


def _rounding(loss: Tensor) -> Tensor:
    """How much two values of the loss may differ by rounding, or by underflow."""
    info = torch.finfo(loss.dtype)
    return 4 * info.eps * loss.abs() + info.tiny


def _check_resolution(change: Tensor, theta: Tensor, h: float) -> None:
    smallest = 16 * torch.finfo(theta.dtype).eps * theta.abs().max()
    if not change.abs().max() > smallest:
        raise NotConverged(
            f"the adaptive step was refused down to h = {h:.1e}, below the resolution of "
            f"{theta.dtype}: the loss or its gradient is wrong or NaN, or the loss is at its floor",
            steps=0,
            bound=float("inf"),
        )


def _warn_if_unstable(lr: float, largest: float, alpha: float, beta: float) -> None:
    bound = largest_step(largest, damping=alpha, hessian_damping=beta)
    if lr >= bound:
        warnings.warn(
            f"lr = {lr:.4g} is not below the stability bound {bound:.4g} of this damping and "
            "largest_eigenvalue: the stiffest mode will not decay",
            UserWarning,
            stacklevel=3,
        )
