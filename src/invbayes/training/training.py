"""Training: a schedule, an average of the weights, early stopping, a file to go on from, a record."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from invbayes._checks import check_callable, check_count, check_fits, check_instance, check_share
from invbayes.networks.iresnet import InvertibleResNet
from invbayes.progress import progress_bar
from invbayes.training.checkpoint import check_place
from invbayes.training.objectives import Objective, check_samples
from invbayes.training.run import Callback, MakeOptimizer, Run
from invbayes.training.samplers import Sampler

SAVE_EVERY = 60.0  # seconds between two files


# The import takes as long as that of the rest of the package, and only a training needs it.
def soap(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """SOAP as all trainings use it.

    No weight decay: it would only fight the normalisation of the weights. Biases and sharpnesses
    get their own eigenbasis, and every basis is renewed often: the networks are small, so this is
    cheap. SOAP's first step only gathers statistics and changes no parameter.
    """
    from pytorch_optimizer import SOAP  # noqa: PLC0415

    return SOAP(
        parameters,
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
        held_out: steps made and the loss on the held-out samples then, shape ``(checks, 2)``.
    """

    losses: Tensor
    seconds: float
    lipschitz_bound: float
    held_out: Tensor


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
    held_out: tuple[Tensor, Tensor] | None = None,
    patience: int | None = None,
    callback: Callback | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> TrainingRecord:
    r"""Minimise :math:`\mathbb{E}\, \ell(\varphi_\theta; x, z)` over the parameters θ, in place.

    The step size rises linearly during the warm-up and then falls to zero along a cosine. At the
    end the network holds the moving average :math:`\bar\theta \leftarrow a \bar\theta + (1 - a)
    \theta` of its parameters; also after an error or an interruption, so that no work is lost.
    The average starts at the first step, so it should be short against the whole training.

    Where `torch.distributed` is initialised, as in a script under ``torchrun``, all processes make
    one training. Each must make the same call, with equal seeds: it draws the whole batch, and the
    objective, which must be a mean over its samples and use every free parameter, gets its share
    of the rows. PyTorch averages the gradients, so that all hold the same parameters. They are
    those that one process finds, to rounding, which SOAP amplifies, as its first eigenbases are
    not unique. An objective that draws numbers, as `UnbiasedRisk` with probes, draws the same ones
    in each process; it stays unbiased. A callback must stop all processes or none. The first
    process alone shows a bar and writes the checkpoint, which all must be able to read.

    Args:
        net: the network.
        objective: one of the book's objectives, or any ``(net, x, z)`` to a number.
        sampler: ``(n, generator)`` to samples x and z; see `quasi_samples`, `fresh_samples`,
            `fresh_noise`, `fixed_samples`.
        steps: the number of optimiser steps.
        batch: the number of samples of each; a multiple of the number of processes.
        warmup: the share of the steps with a rising step size, in [0, 1).
        average: a, in [0, 1); 0 keeps the last parameters.
        optimizer: makes a PyTorch optimiser from the parameters; by default SOAP at 0.05. It must
            have a step size ``lr`` and step without a closure.
        generator: the source of the samples.
        held_out: samples x and z on which the loss of the average is computed twenty times (after
            each step, if there are fewer); the last time at the end.
        patience: how many held-out losses may pass without a new lowest one; then the training
            stops. With it the network ends with the average that had the lowest.
        callback: called after each step with its number, its loss and the averaged network; what
            it returns stops the training if it is true.
        checkpoint: a file. The state is written to it every minute, and when the training is
            interrupted (but not amid an optimiser's step). A training that finds it goes on from
            there, to the bit as if it had never stopped, if its numbers come from the generator and
            the sampler; in the end it is removed. Of the objective and the sampler only the kind is
            compared: give another problem another file.
        progress: whether to show a progress bar; TQDM_DISABLE=1 in the environment hides it, too.

    Returns:
        The losses, the time, the final Lipschitz bound and the held-out losses.

    Raises:
        ValueError: for arguments outside these ranges, a network without a free parameter, an
            optimiser or objective that does not fit, held-out samples whose loss is not finite, a
            checkpoint of another training or where none can be written, or a number of samples that
            the processes cannot share evenly.
        NotConverged: as the objective does.
        TrainingDiverged: if the loss or its gradient becomes NaN or infinite.

    Warns:
        RunawayWarning: once, if the objective finds that the samples have no density.

    Source: SOAP is due to Vyas et al., arXiv 2409.11321.

    Example:
        >>> import torch
        >>> from invbayes import Approximation, GaussianMixture, LinearProblem, fresh_samples
        >>> generator = torch.Generator().manual_seed(0)
        >>> prior = GaussianMixture.gaussian(torch.zeros(2), torch.eye(2))
        >>> problem = LinearProblem(torch.eye(2), noise_std=0.1)
        >>> net, sampler = InvertibleResNet.dense(2, generator=generator), fresh_samples(prior, problem)
        >>> record = train(net, Approximation(problem), sampler, steps=50, generator=generator)
        >>> bool(record.losses[-1] < record.losses[0]), record.lipschitz_bound <= 0.99
        (True, True)
    """
    _check_options(net, objective, sampler, steps, batch, warmup, average)
    _check_extras(net, held_out, patience, callback)
    if checkpoint is not None:
        check_place(checkpoint)
    options = (steps, batch, float(warmup), float(average))
    run = Run(net, objective, sampler, generator, optimizer, options)
    if checkpoint is not None and os.path.exists(checkpoint):
        run.load(checkpoint)
    try:
        stop = run.check(held_out, patience)  # one that an interruption came before
        for _ in progress_bar(range(len(run.losses), steps), show=progress and not run.rank):
            if stop:
                break
            run.step()
            stop = run.check(held_out, patience)
            if callback is not None:
                stop = run.tell(callback) or stop
            if checkpoint is not None and time.perf_counter() - run.saved > SAVE_EVERY:
                run.save(checkpoint)
    except BaseException as error:
        if checkpoint is not None:
            run.save_after(error, checkpoint)
        raise
    finally:
        run.finish(keep_best=patience is not None)
    if checkpoint is not None and not run.rank and os.path.exists(checkpoint):
        os.remove(checkpoint)
    return _record(run)


def _record(run: Run) -> TrainingRecord:
    bound = run.net.lipschitz_bound()
    if not bound < 1:
        raise ValueError(f"net must keep a Lipschitz bound below 1 in training, got {bound:.6g}")
    held_out = torch.tensor(run.held_out, dtype=torch.float64).reshape(-1, 2)
    return TrainingRecord(run.history(), run.elapsed(), bound, held_out)


def _check_options(
    net: InvertibleResNet,
    objective: Objective,
    sampler: Sampler,
    steps: int,
    batch: int,
    warmup: float,
    average: float,
) -> None:
    check_instance("net", net, nn.Module)
    check_callable("objective", objective)
    check_callable("sampler", sampler)
    check_count("steps", steps)
    check_count("batch", batch)
    check_share("warmup", warmup)
    check_share("average", average)


def _check_extras(
    net: InvertibleResNet,
    held_out: tuple[Tensor, Tensor] | None,
    patience: int | None,
    callback: Callback | None,
) -> None:
    if held_out is not None:
        if not isinstance(held_out, (tuple, list)) or len(held_out) != 2:
            raise ValueError("held_out must be a pair of samples x and z")
        check_samples(*held_out)
    if patience is not None:
        check_count("patience", patience)
        if held_out is None:
            raise ValueError("patience needs held_out samples, got none")
    if callback is not None:
        check_callable("callback", callback)
    if held_out is not None and isinstance(net, InvertibleResNet):
        check_fits("held_out", held_out[0], net.shape, like=net.log_scale)
