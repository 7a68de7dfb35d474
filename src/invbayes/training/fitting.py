"""A new network, trained, in one call: for a prior or for samples."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor

from invbayes._checks import check_instance, check_not_negative, check_points
from invbayes.bayes.inverse_problem import InverseProblem
from invbayes.bayes.mixtures import GaussianMixture
from invbayes.bayes.posteriors import check_fit
from invbayes.errors import RangeWarning
from invbayes.networks.dense import LipschitzDense
from invbayes.networks.iresnet import InvertibleResNet
from invbayes.training.objectives import Approximation, Objective
from invbayes.training.samplers import Sampler, fresh_noise, quasi_samples
from invbayes.training.training import TrainingRecord, train

TRAINING_OPTIONS = {*inspect.signature(train).parameters} - {"net", "objective", "sampler"}
NETWORK_OPTIONS = {*inspect.signature(InvertibleResNet.dense).parameters}
NETWORK_OPTIONS |= {*inspect.signature(LipschitzDense).parameters}
NETWORK_OPTIONS -= {"dim", "generator", "options"}
LARGEST = 1024  # unknowns, up to which eigenvalues are computed for a warning


def fit(
    objective: Objective,
    source: GaussianMixture | Tensor,
    problem: InverseProblem,
    *,
    generator: torch.Generator,
    net: InvertibleResNet | None = None,
    sampler: Sampler | None = None,
    jitter: float = 0.0,
    **options: Any,
) -> tuple[InvertibleResNet, TrainingRecord]:
    r"""A new network, trained with an objective, and its record.

    The network takes the problem's dtype and device, and its parameters are frozen at the end.

    Args:
        objective: as in `train`.
        source: a prior, or your own samples x of shape ``(n, *shape)``.
        problem: the measurement.
        generator: the source of the initial weights and of the samples.
        net: a network of your own; by default a dense one for points that are vectors.
        sampler: as in `train`; by default evenly spread samples of a prior, `quasi_samples`, or
            your samples with fresh noise, `fresh_noise`.
        jitter: as in `fresh_noise`, which it is for.
        **options: passed to `train`, such as ``steps`` and ``batch``, or to
            `InvertibleResNet.dense`, such as ``lipschitz``.

    Raises:
        ValueError: if the objective belongs to another problem, the generator is not PyTorch's, an
            option is unknown, those of a dense network come with ``net``, points that are no
            vectors come without, jitter comes with a sampler or a prior, and as
            `InvertibleResNet`, the samplers and `train` do.
        TrainingDiverged: as `train` does.

    Warns:
        RangeWarning: where the slopes that the objective asks for, in the Gaussian approximation
            :math:`A^*\!A + \hat\delta^2 \Sigma_X^{-1}` (:math:`A^*\!A` for `Approximation`), vary by
            more than the network's :math:`((1 + L)/(1 - L))^B`; up to 1024 unknowns. A nonlinear
            problem is linearised for that.

    Example:
        >>> import torch
        >>> from invbayes import Divergence, LinearProblem
        >>> prior = GaussianMixture.gaussian(torch.zeros(2), torch.eye(2))
        >>> problem = LinearProblem(torch.eye(2), noise_std=0.1)
        >>> generator = torch.Generator().manual_seed(0)
        >>> net, _ = fit(Divergence(problem), prior, problem, generator=generator, steps=50)
        >>> net.lipschitz_bound() <= 0.99
        True
    """
    if getattr(objective, "problem", problem) is not problem:
        raise ValueError("problem must be the objective's own problem, got another one")
    _check_source(source, problem)
    check_instance("generator", generator, torch.Generator)
    _check_jitter(jitter, source, sampler)
    _check_names(options)
    training = {name: options.pop(name) for name in TRAINING_OPTIONS & options.keys()}
    net = _network(net, problem, generator, options)
    if sampler is None and isinstance(source, GaussianMixture):
        sampler = quasi_samples(source, problem, generator=generator)
    elif sampler is None:
        sampler = fresh_noise(source, problem, jitter=jitter)
    _warn_of_range(net, objective, source, problem, jitter)
    record = train(net, objective, sampler, generator=generator, **training)
    return net.requires_grad_(False), record


def _check_source(source: GaussianMixture | Tensor, problem: InverseProblem) -> None:
    check_instance("problem", problem, InverseProblem)
    check_instance("source", source, GaussianMixture, Tensor)
    if isinstance(source, GaussianMixture):
        check_fit(source, problem)
    else:
        check_points("source", source, problem.shape, like=problem.like)


def _check_jitter(jitter: float, source: GaussianMixture | Tensor, sampler: Sampler | None) -> None:
    check_not_negative("jitter", jitter)
    if jitter and (sampler is not None or isinstance(source, GaussianMixture)):
        came = "a prior" if sampler is None else "a sampler of its own"
        raise ValueError(f"jitter is for your own samples with fresh noise, but came with {came}")


def _check_names(options: dict[str, Any]) -> None:
    unknown = sorted(options.keys() - TRAINING_OPTIONS - NETWORK_OPTIONS)
    if unknown:
        known = ", ".join(sorted(TRAINING_OPTIONS)), ", ".join(sorted(NETWORK_OPTIONS))
        raise ValueError(
            f"options {unknown} are unknown; those of a training are {known[0]}, those of a new "
            f"network {known[1]}"
        )


def _network(
    net: InvertibleResNet | None,
    problem: InverseProblem,
    generator: torch.Generator,
    options: dict[str, Any],
) -> InvertibleResNet:
    if net is not None:
        check_instance("net", net, InvertibleResNet)
        if options:
            raise ValueError(f"options {sorted(options)} are of a new network, but net is given")
        return net.to(problem.like)
    if len(problem.shape) != 1:
        raise ValueError(
            f"net must be given for points of shape {tuple(problem.shape)}: the dense network takes "
            "vectors; or flatten them in the operator"
        )
    return InvertibleResNet.dense(problem.dim, generator=generator, **options).to(problem.like)


@torch.no_grad()
def _warn_of_range(
    net: InvertibleResNet,
    objective: Objective,
    source: GaussianMixture | Tensor,
    problem: InverseProblem,
    jitter: float,
) -> None:
    if problem.dim > LARGEST:
        return
    target = problem.normal_operator
    if type(objective) is not Approximation:
        covariance = _covariance(source) + jitter**2 * torch.eye(problem.dim).to(target)
        spread = torch.linalg.eigvalsh(covariance)
        if spread[0] <= 1e-10 * spread[-1]:
            return  # no density: the training's own watch tells
        strength = getattr(objective, "strength", problem.noise_std**2)
        target = target + strength * torch.linalg.inv(covariance)
    slopes = torch.linalg.eigvalsh(target)
    most = ((1 + net.lipschitz) / (1 - net.lipschitz)) ** len(net.blocks)
    if slopes[-1] > most * slopes[0].clamp(min=0):
        warnings.warn(
            f"the problem asks for slopes from {slopes[0].item():.3g} to {slopes[-1].item():.3g}, but "
            f"a network with lipschitz={net.lipschitz:g} and {len(net.blocks)} block(s) holds a ratio "
            f"of {most:.4g} at most; raise lipschitz or blocks, or drop directions that the operator "
            "or the samples hardly have",
            RangeWarning,
            stacklevel=4,  # the caller of fit; no_grad is a level, too
        )


def _covariance(source: GaussianMixture | Tensor) -> Tensor:
    if isinstance(source, GaussianMixture):
        return source.covariance
    centred = source.flatten(1) - source.flatten(1).mean(0)
    return centred.mT @ centred / len(centred)
