"""The inertial algorithm with a step that adapts to the curvature."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, ParamsT

from invbayes._checks import check_positive, number
from invbayes.deep_prior.linearised import check_damping
from invbayes.deep_prior.optimizers import Closure, inertial_step
from invbayes.deep_prior.stability import bounding_step
from invbayes.errors import NotConverged


class AdaptiveInertia(Optimizer):
    r"""`Inertia` with a step h that follows an estimate Λ of the largest curvature: h > 0 solves

    .. math:: \Lambda\,(h^2 + 2\beta h) = 2 + \alpha h,

    the bound of `largest_step` for the curvature 2Λ. The step d is accepted when

    .. math:: L(\theta + d) \le L(\theta) + \langle \nabla L(\theta), d\rangle + \tfrac{\Lambda}{2}\|d\|^2 .

    Otherwise Λ is doubled and the step is tried again from the same place. After each accepted
    step Λ shrinks by two per cent, so that h can grow again.

    The loss must be the same function at each call; the loss and gradient at an accepted point
    are kept for the next step, so that a step without a refusal costs one evaluation. A little
    Hessian-driven damping, β about :math:`0.1/\sqrt{\Lambda}`, calms the stiff modes and saves refusals.

    Args:
        params: parameters, in a single group. There is no ``lr``, so no schedule of it either.
        damping: α ≥ 0.
        hessian_damping: β ≥ 0.
        curvature: the first Λ > 0; a rough guess from below is enough. One that is too large costs
            about 114 steps for each factor of ten.

    Raises:
        ValueError: for arguments outside these ranges, or more than one parameter group.

    Source: the rule is ours; that of arXiv 2506.02986 we do not know.

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
        options = {"damping": damping, "hessian_damping": hessian_damping, "curvature": curvature}
        super().__init__(params, options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Only the constructor may call this: there is a single group."""
        if self.param_groups:
            raise ValueError("params must be a single group, got a second one")
        super().add_param_group(param_group)
        group = self.param_groups[0]
        check_damping(group["damping"], group["hessian_damping"])
        check_positive("curvature", group["curvature"])
        group["curvature"] = number("curvature", group["curvature"])

    @property
    def evaluations(self) -> int:
        """How often the closure has been called."""
        return self.state.get(self.param_groups[0]["params"][0], {}).get("evaluations", 0)

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:
        """Move once.

        Args:
            closure: clears the gradients, computes the loss and its gradients, returns the loss.

        Returns:
            The loss before the step.

        Raises:
            ValueError: for a parameter with a sparse gradient.
            NotConverged: if every step down to the dtype's resolution is refused: because the loss
                or its gradient is wrong or NaN, or because the loss is at its floor, where rounding
                decides. The parameters and Λ stay as they were, as with an error of the closure.
        """
        (group,) = self.param_groups
        parameters, alpha, beta = group["params"], group["damping"], group["hessian_damping"]
        state = self.state[parameters[0]]
        theta, first = _flatten(parameters), group["curvature"]
        if "theta" not in state or not torch.equal(state["theta"], theta):
            state["loss"], state["slope"] = self._evaluate(closure)
        loss, slope = state["loss"], state["slope"]
        w = state["w"] if "w" in state else beta * slope
        try:
            while True:
                h = bounding_step(2 * group["curvature"], alpha, beta)
                moved_w, change = inertial_step(w, slope, h, alpha, beta)
                _assign(parameters, theta + change)
                new_loss, new_slope = self._evaluate(closure)
                model = loss + slope @ change + group["curvature"] / 2 * change.square().sum()
                if new_loss <= model + _rounding(loss):
                    break
                if not _is_resolved(change, theta):
                    _give_up(h, theta)
                group["curvature"] *= 2
        except BaseException:
            _assign(parameters, theta)
            group["curvature"] = first
            raise
        group["curvature"] *= 0.98
        state.update(theta=_flatten(parameters), w=moved_w, loss=new_loss, slope=new_slope)
        return loss

    def _evaluate(self, closure: Closure) -> tuple[Tensor, Tensor]:
        """The loss and its gradient, as one vector."""
        with torch.enable_grad():
            loss = closure()
        parameters = self.param_groups[0]["params"]
        self.state[parameters[0]]["evaluations"] = self.evaluations + 1
        if any(p.grad is not None and p.grad.layout != torch.strided for p in parameters):
            raise ValueError("params must have dense gradients, got a sparse one")
        slopes = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        return loss.detach().clone(), _flatten(slopes)


def _rounding(loss: Tensor) -> Tensor:
    """How much two values of the loss may differ by rounding, or by underflow."""
    info = torch.finfo(loss.dtype)
    return 4 * info.eps * loss.abs() + info.tiny


def _is_resolved(change: Tensor, theta: Tensor) -> bool:
    """Whether adding the change to θ is more than rounding. False for NaN."""
    return bool((change.abs() > 16 * torch.finfo(theta.dtype).eps * theta.abs()).any())


def _give_up(h: float, theta: Tensor) -> NoReturn:
    raise NotConverged(
        f"the adaptive step was refused down to h = {h:.1e}, below the resolution of "
        f"{theta.dtype}: the loss or its gradient is wrong or NaN, or the loss is at its floor"
    )


def _flatten(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def _assign(parameters: list[nn.Parameter], theta: Tensor) -> None:
    """Write θ in place: storage, dtype and memory format of the parameters stay."""
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, part in zip(parameters, theta.split(sizes), strict=True):
        parameter.copy_(part.view_as(parameter))
