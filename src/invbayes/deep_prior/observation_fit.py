"""Fitting a deep prior to one observation, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from invbayes._checks import (
    check_count,
    check_flag,
    check_instance,
    check_points,
    check_positive,
    check_same_dtype,
)
from invbayes.bayes.problems import LinearProblem
from invbayes.deep_prior.network import DeepPrior
from invbayes.errors import NotConverged, TrainingDiverged
from invbayes.progress import progress_bar


class DataMisfit:
    r"""The loss of one observation, as a function of the network's parameter, and its gradient,

    .. math:: L(W) = \tfrac12 \| r(W) \|^2, \quad r(W) = R^{-1} \big(A\, g(W) - y\big), \quad
        \nabla L(W) = (\partial_W g)^* A^* R^{-*}\, r(W) .

    R is the root of the noise's covariance, and the identity where the noise is white.

    Args:
        net: the deep prior; its own W is used by `kernel` only.
        problem: the operator and the noise.
        y: one observation, of the problem's ``data_shape``.

    Raises:
        ValueError: if y is not one finite observation of this problem, or the network does not
            have the problem's unknowns and dtype; in a call, for a W of another shape or dtype.
            NaN in W gives NaN.

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
        >>> loss.kernel().shape
        torch.Size([3, 3])
    """

    def __init__(self, net: DeepPrior, problem: LinearProblem, y: Tensor) -> None:
        check_instance("net", net, DeepPrior)
        check_instance("problem", problem, LinearProblem)
        check_points("y", y, problem.data_shape, like=problem.like)
        if y.shape != problem.data_shape:
            came, wanted = tuple(y.shape), tuple(problem.data_shape)
            raise ValueError(f"y must be one observation, of shape {wanted}, got {came}")
        if net.dim != problem.dim:
            raise ValueError(f"net must have dim {problem.dim}, got {net.dim}")
        check_same_dtype(problem=problem.like, net=net.weight)
        self.net, self.problem, self.y = net, problem, y

    def __call__(self, weight: Tensor) -> Tensor:
        """L(W) for W of shape ``(*, k, p)``, shape ``(*,)``."""
        return self._residual(self.net.output(weight)).square().sum(-1) / 2

    def residual(self, weight: Tensor) -> Tensor:
        """r(W), shape ``(*, *data_shape)``."""
        flat = self._residual(self.net.output(weight))
        return flat.reshape((*flat.shape[:-1], *self.problem.data_shape))

    def gradient(self, weight: Tensor) -> Tensor:
        """∇L(W), of the shape of W; itself differentiable."""
        return self.with_gradient(weight)[1]

    def with_gradient(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """L(W) and ∇L(W), for little more than the price of the gradient."""
        problem, x = self.problem, self.net.output(weight)
        residual = self._residual(x)
        white = problem._noise.whiten_adjoint(residual.reshape(-1, problem.data_dim))
        direction = problem._operator.adjoint(white.reshape(-1, *problem.data_shape))
        return residual.square().sum(-1) / 2, self.net.pull_back(weight, direction.reshape(x.shape))

    def kernel(self) -> Tensor:
        r"""The kernel of the data at the network's own W, shape ``(m, m)``,

        .. math:: K = \partial_W r\, (\partial_W r)^* = R^{-1} A M A^* R^{-*},

        where M is `DeepPrior.kernel`. It says how the residual moves: by :math:`\dot r = -K r` in
        gradient flow.
        """
        half = self.problem._noise.whiten(self._image(self.net.kernel()))
        return self.problem._noise.whiten(self._image(half.mT))

    def _residual(self, x: Tensor) -> Tensor:
        """R⁻¹ (A x − y), flattened."""
        white = self.problem._noise.whiten(self._image(x) - self.y.flatten())
        return white.reshape(*x.shape[:-1], self.problem.data_dim)

    def _image(self, x: Tensor) -> Tensor:
        """A x, a row each. `LinearProblem.apply` refuses NaN, which a loss passes on."""
        image = self.problem._operator.apply(x.reshape(-1, *self.problem.shape))
        return image.reshape(-1, self.problem.data_dim)


class Iterate(NamedTuple):
    """Where a fit stands.

    Attributes:
        reconstruction: g(W), of the problem's ``shape``.
        residual: the norm of A g(W) − y, in the units of y; of r(W) where the noise has a covariance.
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
        problem: the operator and the noise.
        y: one observation, of the problem's ``data_shape``.
        optimizer: any PyTorch optimiser of the network's parameters.

    Raises:
        ValueError: as `DataMisfit`, and for another optimiser, at the first iterate.
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
    check_instance("optimizer", optimizer, torch.optim.Optimizer)

    def closure() -> Tensor:
        loss, net.weight.grad = misfit.with_gradient(net.weight.detach())
        return loss

    for step in count():
        x = net().detach()
        residual = misfit._residual(x).norm().item()
        if not math.isfinite(residual):
            raise TrainingDiverged(f"the residual is {residual} at step {step}", step=step)
        yield Iterate(x.reshape(problem.shape), residual)
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

    .. math:: \| R^{-1} \big(A\, g(W_n) - y\big) \| \le \tau .

    Args:
        net: the deep prior; trained in place.
        problem: the operator and the noise.
        y: one observation, of the problem's ``data_shape``.
        optimizer: any PyTorch optimiser of the network's parameters.
        until: τ > 0, in the units of the residual. By default the discrepancy principle,
            :math:`\tau = \delta\sqrt{m}`, the expected size of the noise: to fit more is to fit noise.
        max_steps: the most steps.
        progress: whether to show a progress bar.

    Returns:
        All iterates, the first one included; the last one is the answer.

    Raises:
        ValueError: as `DataMisfit`, and for a threshold or number of steps that is not positive.
        NotConverged: if the steps are used up, with the last reconstruction as its ``point``, or as `AdaptiveInertia` does when ``until`` lies
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
    check_instance("problem", problem, LinearProblem)
    until = problem.noise_std * problem.data_dim**0.5 if until is None else until
    check_positive("until", until)
    check_count("max_steps", max_steps)
    check_flag("progress", progress)
    path = []
    for current in progress_bar(iterates(net, problem, y, optimizer), show=progress):
        path.append(current)
        if current.residual <= until:
            return path
        if len(path) > max_steps:
            break
    raise NotConverged(
        f"the residual is {current.residual:.3g} after {max_steps} steps, and not below {until:.3g}",
        steps=max_steps,
        bound=current.residual,
        point=current.reconstruction,
    )
