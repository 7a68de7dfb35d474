"""Fitting a deep prior to one observation, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count, islice
from typing import NamedTuple

import torch
from torch import Tensor

from invbayes._checks import check_count, check_positive, check_vector
from invbayes.bayes.problems import LinearProblem
from invbayes.deep_prior.network import DeepPrior
from invbayes.errors import NotConverged, TrainingDiverged
from invbayes.progress import progress_bar


class DataMisfit:
    r"""The loss of one observation, as a function of the network's parameter, and its gradient,

    .. math:: L(W) = \tfrac12 \| A\, g(W) - y \|^2, \qquad
        \nabla L(W) = (\partial_W g)^* A^* \big(A\, g(W) - y\big) .

    Args:
        net: the deep prior; its own W is not used.
        problem: the operator.
        y: one observation, shape ``(m,)``.

    Raises:
        ValueError: if y is not one finite observation of this problem, or the network does not
            have the problem's unknowns and dtype.

    Example:
        >>> import torch
        >>> problem = LinearProblem(torch.eye(3).double(), noise_std=0.1)
        >>> net = DeepPrior(dim=3, width=10, zero_start=True, generator=torch.Generator().manual_seed(0))
        >>> loss = DataMisfit(net, problem, torch.ones(3).double())
        >>> loss(net.weight.detach())
        tensor(1.5000, dtype=torch.float64)
        >>> loss.residual(net.weight.detach())
        tensor([-1., -1., -1.], dtype=torch.float64)
        >>> value, gradient = loss.with_gradient(net.weight.detach())
        >>> torch.equal(gradient, loss.gradient(net.weight.detach()))
        True
    """

    def __init__(self, net: DeepPrior, problem: LinearProblem, y: Tensor) -> None:
        check_vector("y", y, problem.data_dim, like=problem.operator)
        if net.dim != problem.dim or net.weight.dtype != problem.operator.dtype:
            raise ValueError(
                f"net must have dim {problem.dim} and dtype {problem.operator.dtype}, "
                f"got {net.dim} and {net.weight.dtype}"
            )
        self.net, self.problem, self.y = net, problem, y

    def __call__(self, weight: Tensor) -> Tensor:
        """L(W) for W of shape ``(*, k, p)``, shape ``(*,)``."""
        return self.residual(weight).square().sum(-1) / 2

    def residual(self, weight: Tensor) -> Tensor:
        """A g(W) − y, shape ``(*, m)``."""
        return self.net.output(weight) @ self.problem.operator.mT - self.y

    def gradient(self, weight: Tensor) -> Tensor:
        """∇L(W), of the shape of W; itself differentiable."""
        return self.with_gradient(weight)[1]

    def with_gradient(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """L(W) and ∇L(W), for little more than the price of the gradient."""
        residual = self.residual(weight)
        pulled = self.net.pull_back(weight, residual @ self.problem.operator)
        return residual.square().sum(-1) / 2, pulled


class Iterate(NamedTuple):
    """Where a fit stands.

    Attributes:
        reconstruction: g(W), shape ``(d,)``.
        residual: the norm of A g(W) − y, in the units of y.
    """

    reconstruction: Tensor
    residual: float


def iterates(
    net: DeepPrior, problem: LinearProblem, y: Tensor, optimizer: torch.optim.Optimizer
) -> Iterator[Iterate]:
    r"""The fits :math:`g(W_0), g(W_1), \dots` to one observation, without an end.

    The network is trained in place, one step of the optimiser for each iterate after the first.

    Args:
        net: the deep prior.
        problem: the operator.
        y: one observation, shape ``(m,)``.
        optimizer: any PyTorch optimiser of the network's parameters.

    Raises:
        ValueError: as `DataMisfit`, at the first iterate.
        TrainingDiverged: if a residual is NaN or infinite.

    Example:
        >>> import torch
        >>> problem = LinearProblem(torch.eye(3).double(), noise_std=0.1)
        >>> net = DeepPrior(dim=3, width=100, generator=torch.Generator().manual_seed(0))
        >>> descent = torch.optim.SGD(net.parameters(), lr=0.5)
        >>> run = iterates(net, problem, torch.ones(3).double(), descent)
        >>> first, second = next(run), next(run)
        >>> second.residual < first.residual
        True
    """
    misfit = DataMisfit(net, problem, y)

    def closure() -> Tensor:
        loss, net.weight.grad = misfit.with_gradient(net.weight.detach())
        return loss

    for step in count():
        x = net().detach()
        residual = (problem.operator @ x - y).norm().item()
        if not math.isfinite(residual):
            raise TrainingDiverged(f"the residual is {residual} at step {step}", step=step)
        yield Iterate(x, residual)
        optimizer.step(closure)


def fit_observation(
    net: DeepPrior,
    problem: LinearProblem,
    y: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    until: float | None = None,
    max_steps: int = 10_000,
    progress: bool = True,
) -> list[Iterate]:
    r"""Fit one observation, and stop as soon as the residual is small enough,

    .. math:: \| A\, g(W_n) - y \| \le \tau .

    Args:
        net: the deep prior; trained in place.
        problem: the operator and the noise.
        y: one observation, shape ``(m,)``.
        optimizer: any PyTorch optimiser of the network's parameters.
        until: τ > 0, in the units of y. By default the discrepancy principle,
            :math:`\tau = \delta\sqrt{m}`, the expected size of the noise: to fit more is to fit noise.
        max_steps: the most steps.
        progress: whether to show a progress bar.

    Returns:
        All iterates, the first one included; the last one is the answer.

    Raises:
        ValueError: as `DataMisfit`, and for a threshold or number of steps that is not positive.
        NotConverged: if the steps are used up, or as `AdaptiveInertia` does when ``until`` lies
            below what the dtype can reach; the network keeps its last parameters.
        TrainingDiverged: as `iterates`.

    Source: the discrepancy principle is due to Morozov (1966).

    Example:
        >>> import torch
        >>> problem = LinearProblem(torch.eye(3).double(), noise_std=0.1)
        >>> net = DeepPrior(dim=3, width=100, generator=torch.Generator().manual_seed(0))
        >>> descent = torch.optim.SGD(net.parameters(), lr=0.5)
        >>> path = fit_observation(net, problem, torch.ones(3).double(), descent)
        >>> path[-1].residual <= 0.1 * 3**0.5 < path[-2].residual
        True
    """
    until = problem.noise_std * problem.data_dim**0.5 if until is None else until
    check_positive("until", until)
    check_count("max_steps", max_steps)
    path, run = [], islice(iterates(net, problem, y, optimizer), max_steps + 1)
    for current in progress_bar(run, show=progress):
        path.append(current)
        if current.residual <= until:
            return path
    raise NotConverged(
        f"the residual is {path[-1].residual:.3g} after {max_steps} steps, and not below {until:.3g}",
        steps=max_steps,
        bound=path[-1].residual,
    )
