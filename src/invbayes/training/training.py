"""Training: a schedule, an average of the weights, a record."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from pytorch_optimizer import SOAP
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from invbayes._checks import check_count
from invbayes.bayes.mixtures import GaussianMixture
from invbayes.bayes.problems import LinearProblem
from invbayes.errors import TrainingDiverged
from invbayes.networks.iresnet import InvertibleResNet
from invbayes.progress import progress_bar
from invbayes.training.objectives import Objective
from invbayes.training.samplers import Sampler, quasi_samples

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

# No weight decay: it would only fight the normalisation of the weights. Biases and sharpnesses get
# their own eigenbasis, and every basis is renewed often: the networks are small, so this is cheap.
# SOAP's first step only gathers statistics and changes no parameter.
soap: MakeOptimizer = partial(
    SOAP,
    lr=0.05,
    betas=(0.9, 0.95),
    weight_decay=0.0,
    precondition_1d=True,
    precondition_frequency=2,
)


class TrainingRecord(NamedTuple):
    """What a training did.

    Attributes:
        losses: the loss of each step's batch, shape ``(steps,)``.
        seconds: the time it took.
        lipschitz_bound: the certificate of the trained network.
    """

    losses: Tensor
    seconds: float
    lipschitz_bound: float


def train(
    net: InvertibleResNet,
    objective: Objective,
    sampler: Sampler,
    *,
    steps: int = 1000,
    batch: int = 512,
    warmup: float = 0.05,
    average: float = 0.95,
    optimizer: MakeOptimizer = soap,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> TrainingRecord:
    r"""Minimise :math:`\mathbb{E}\, \ell(\varphi_\theta; x, z)` over the parameters θ, in place.

    The step size rises linearly during the warm-up and then falls to zero along a cosine. At the
    end the network holds the moving average :math:`\bar\theta \leftarrow a \bar\theta + (1 - a)
    \theta` of its parameters; also after an error or an interruption, so that no work is lost.
    The average starts at the first step, so it should be short against the whole training.

    Args:
        net: the network.
        objective: one of the book's objectives, or any ``(net, x, z)`` to a number.
        sampler: ``(n, generator)`` to samples x and z; see `quasi_samples`, `fresh_samples`,
            `fixed_samples`.
        steps: the number of optimiser steps.
        batch: the number of samples of each.
        warmup: the share of the steps with a rising step size, in [0, 1).
        average: a, in [0, 1); 0 keeps the last parameters.
        optimizer: makes a PyTorch optimiser from the parameters; by default SOAP at 0.05.
        generator: the source of the samples.
        progress: whether to show a progress bar; TQDM_DISABLE=1 in the environment hides it, too.

    Returns:
        The losses, the time and the final Lipschitz bound.

    Raises:
        ValueError: for arguments outside these ranges, or a network without a free parameter.
        NotConverged: as the objective does.
        TrainingDiverged: if the loss or its gradient becomes NaN or infinite.

    Source: SOAP is due to Vyas et al., arXiv 2409.11321.

    Example:
        >>> import torch
        >>> from invbayes import Approximation, GaussianMixture, LinearProblem, fresh_samples
        >>> generator = torch.Generator().manual_seed(0)
        >>> prior = GaussianMixture.gaussian(torch.zeros(2), torch.eye(2))
        >>> problem = LinearProblem(torch.eye(2), noise_std=0.1)
        >>> net, sampler = InvertibleResNet(2, generator=generator), fresh_samples(prior, problem)
        >>> record = train(net, Approximation(problem), sampler, steps=50, generator=generator)
        >>> bool(record.losses[-1] < record.losses[0]), record.lipschitz_bound <= 0.99
        (True, True)
    """
    _check_options(steps, batch, warmup, average)
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("net must have a parameter that requires a gradient, got none")
    stepper = optimizer(parameters)
    schedule = LambdaLR(stepper, partial(_step_size, steps=steps, warm=int(warmup * steps)))
    averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(average))
    losses, started = [], time.perf_counter()
    try:
        for step in progress_bar(range(steps), show=progress):
            stepper.zero_grad()
            loss = objective(net, *sampler(batch, generator))
            loss.backward()
            _check_finite(loss, parameters, step)
            stepper.step()
            schedule.step()
            averaged.update_parameters(net)
            losses.append(loss.detach())
    finally:
        net.load_state_dict(averaged.module.state_dict())
    seconds = time.perf_counter() - started
    return TrainingRecord(torch.stack(losses), seconds, net.lipschitz_bound())


def fit(
    objective: Objective,
    prior: GaussianMixture,
    problem: LinearProblem,
    *,
    generator: torch.Generator,
    steps: int = 1000,
    sampler: Sampler | None = None,
    progress: bool = True,
    **options: Any,
) -> tuple[InvertibleResNet, TrainingRecord]:
    """A new network, trained with an objective, and its record.

    The three lines that every chapter needs. The network takes the prior's dtype, and its
    parameters are frozen at the end. For another batch, average or optimiser, use `train`.

    Args:
        objective, steps, progress: as in `train`.
        prior, problem: as in `quasi_samples`.
        generator: the source of the initial weights and of the samples.
        sampler: as in `train`; by default evenly spread samples of the prior, `quasi_samples`.
        **options: passed to `InvertibleResNet`, such as ``lipschitz``.

    Raises:
        ValueError: if the objective belongs to another problem, and as `InvertibleResNet`,
            `quasi_samples` and `train` do.
        TrainingDiverged: as `train` does.

    Example:
        >>> import torch
        >>> from invbayes import Divergence
        >>> prior = GaussianMixture.gaussian(torch.zeros(2), torch.eye(2))
        >>> problem = LinearProblem(torch.eye(2), noise_std=0.1)
        >>> generator = torch.Generator().manual_seed(0)
        >>> net, _ = fit(Divergence(problem), prior, problem, generator=generator, steps=50)
        >>> net.lipschitz_bound() <= 0.99
        True
    """
    if getattr(objective, "problem", problem) is not problem:
        raise ValueError("problem must be the objective's own problem, got another one")
    net = InvertibleResNet(prior.dim, generator=generator, **options).to(prior.means)
    if sampler is None:
        sampler = quasi_samples(prior, problem, generator=generator)
    record = train(net, objective, sampler, steps=steps, generator=generator, progress=progress)
    return net.requires_grad_(False), record


def _step_size(step: int, steps: int, warm: int) -> float:
    """The factor of the step size: up to one in ``warm`` steps, then down to zero."""
    if step < warm:
        return (step + 1) / (warm + 1)
    return (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2


def _check_finite(loss: Tensor, parameters: list[nn.Parameter], step: int) -> None:
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not torch.isfinite(loss + nn.utils.get_total_norm(grads)):
        raise TrainingDiverged(
            f"the loss or its gradient is not finite at step {step} (loss {loss.item():.3g}); try a "
            f"smaller step size, a longer warm-up, or look for NaN in the samples",
            step=step,
        )


def _check_options(steps: int, batch: int, warmup: float, average: float) -> None:
    check_count("steps", steps)
    check_count("batch", batch)
    for name, value in {"warmup": warmup, "average": average}.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {value}")
