"""The covariance that a network holds in its Jacobian: dense, or by random probes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from invbayes._checks import check_count, check_instance, check_points
from invbayes._random import random_signs
from invbayes.bayes.inverse_problem import InverseProblem
from invbayes.bayes.posteriors import rounding_of
from invbayes.bayes.problems import LinearProblem
from invbayes.networks.iresnet import InvertibleResNet

LARGEST = 1024  # unknowns, up to which an operator is asked whether it is injective


class ErrorBars(NamedTuple):
    """A network's answer and its covariance.

    Attributes:
        mean: the answer :math:`\\varphi^{-1}(z)`, shape ``(*, *shape)``.
        covariance: symmetric, shape ``(*, d, d)``.
        asymmetry: the Frobenius norm of what symmetrising took away, shape ``(*,)``.
    """

    mean: Tensor
    covariance: Tensor
    asymmetry: Tensor


class EstimatedVariance(NamedTuple):
    """A network's answer and its variances by random probes, each with its standard error.

    Attributes:
        mean: the answer :math:`\\varphi^{-1}(z)`, shape ``(*, *shape)``.
        variance: the diagonal of the covariance, shape ``(*, *shape)``.
        variance_error: its standard error.
        total: the trace of the covariance, shape ``(*,)``.
        total_error: its standard error.
    """

    mean: Tensor
    variance: Tensor
    variance_error: Tensor
    total: Tensor
    total_error: Tensor


@torch.no_grad()
def posterior_covariance(
    net: InvertibleResNet, problem: InverseProblem, z: Tensor, *, tol: float | None = None
) -> ErrorBars:
    r"""The covariance that a network holds in its Jacobian,

    .. math:: C(z) = \tfrac12 (F + F^*), \qquad F = \delta^2\, D\varphi(\hat x)^{-1} B(\hat x)^*, \quad \hat x = \varphi^{-1}(z),

    where B is the identity for a matrix and for counts. It is :math:`\mathrm{Cov}(x \mid z)` if
    :math:`\varphi^{-1}` is the posterior mean, as after `Reconstruction`; after `Divergence` it is the covariance of Laplace's approximation. For a
    `NonlinearProblem` it is the latter after `WeightedDivergence`, and nothing else.

    Args:
        net: φ.
        problem: the measurement; its operator must be injective.
        z: normal data, shape ``(*, *shape)``; for a covariance of the noise those of
            `LinearProblem.normal_data`, and δ is 1.
        tol: of the inverse, as in `InvertibleResNet.inverse`.

    Returns:
        `ErrorBars`. The Jacobians have d² entries a point; see `posterior_variance` for large d.

    Raises:
        ValueError: for points that do not fit, an operator with a kernel (looked for up to 1024
            unknowns), or several blocks that give a variance that is not positive.
        NotConverged: as `InvertibleResNet.inverse` does.

    Source: the posterior is an exponential family in z / δ²; chapter 8 of the book.

    Example:
        >>> import torch
        >>> net, problem = InvertibleResNet.dense(2), LinearProblem(torch.eye(2), noise_std=0.1)
        >>> bars = posterior_covariance(net, problem, torch.ones(5, 2))
        >>> bars.covariance.shape, bars.asymmetry.shape
        (torch.Size([5, 2, 2]), torch.Size([5]))
    """
    check_bars(net, problem, z, InverseProblem)
    mean = net.inverse(z, tol)
    pulled = torch.linalg.solve(net.jacobian(mean), problem.pullback(mean).matrix.mT)
    matrix = problem.noise_std**2 * pulled
    covariance = (matrix + matrix.mT) / 2
    if len(net.blocks) > 1 and (torch.linalg.eigvalsh(covariance)[..., 0] <= 0).any():
        raise ValueError(
            f"net has {len(net.blocks)} blocks with lipschitz={net.lipschitz:g}, which do not "
            "guarantee positive variances, and here one is not; use one block"
        )
    return ErrorBars(mean, covariance, torch.linalg.matrix_norm((matrix - matrix.mT) / 2))


def posterior_variance(
    net: InvertibleResNet,
    problem: LinearProblem,
    z: Tensor,
    *,
    probes: int = 16,
    tol: float | None = None,
    generator: torch.Generator | None = None,
) -> EstimatedVariance:
    r"""The diagonal and the trace of `posterior_covariance` without any Jacobian,

    .. math:: \mathrm{diag}(C) = \delta^2\, \mathbb{E}[v \circ D\varphi(\hat x)^{-*} v],

    with independent signs ±1 in the entries of v. The product with :math:`D\varphi^{-*}` is the
    derivative of the inverse, backwards: a linear system solved with the block's own products.
    A single estimate is noisy and may be negative; see its standard error.

    Args:
        net, problem, z, tol: as in `posterior_covariance`.
        probes: the number of vectors v, at least 2.
        generator: the source of the signs; without one, PyTorch's global generator.

    Raises:
        ValueError: as `posterior_covariance` does, but for every network whose blocks do not
            guarantee positive variances: see `variance_bounds`.

    Source: Hutchinson 1990, entry by entry.

    Example:
        >>> import torch
        >>> net, problem = InvertibleResNet.dense(2), LinearProblem(torch.eye(2), noise_std=0.1)
        >>> found = posterior_variance(net, problem, torch.ones(5, 2), probes=4)
        >>> found.variance.shape, found.total_error.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """
    check_bars(net, problem, z)
    check_count("probes", probes, 2)
    variance_bounds(net, problem)
    with torch.inference_mode(False), torch.enable_grad():
        points = z.detach().clone().requires_grad_()
        mean = net.inverse(points, tol)
        signs = [random_signs(z, generator) for _ in range(probes)]
        pulled = [torch.autograd.grad(mean, points, v, retain_graph=True)[0] for v in signs]
    products = problem.noise_std**2 * torch.stack(
        [v * w for v, w in zip(signs, pulled, strict=True)]
    )
    totals = products.flatten(1 + z.ndim - len(problem.shape)).sum(-1)
    return EstimatedVariance(mean.detach(), *_averaged(products), *_averaged(totals))


def _averaged(samples: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over the first axis and its standard error."""
    mean, count = samples.mean(0), len(samples)
    # Not `std`, which warns where there are no data.
    return mean, ((samples - mean).square().sum(0) / (count * (count - 1))).sqrt()


def variance_bounds(net: InvertibleResNet, problem: LinearProblem) -> tuple[float, float]:
    r"""Between which numbers all eigenvalues of `posterior_covariance` lie, whatever the data are,

    .. math:: \Big[\frac{\delta^2}{c\,(1 + L)},\; \frac{\delta^2}{c\,(1 - L)}\Big] \text{ for one block}, \qquad
        \Big[\frac{\delta^2 \cos(B \arcsin L)}{c\,(1 + L)^B},\; \frac{\delta^2}{c\,(1 - L)^B}\Big] \text{ for } B.

    Args:
        net: φ; L is its certified bound.
        problem: the measurement.

    Raises:
        ValueError: if :math:`B \arcsin L \ge \pi/2` for more than one block.

    Source: chapter 8 of the book.

    Example:
        >>> import torch
        >>> net = InvertibleResNet.dense(2, lipschitz=0.5, scale=2.0)
        >>> low, high = variance_bounds(net, LinearProblem(torch.eye(2), noise_std=1.0))
        >>> round(low, 3), round(high, 3)
        (0.333, 1.0)
    """
    check_instance("net", net, InvertibleResNet)
    check_instance("problem", problem, LinearProblem)
    blocks, lipschitz = len(net.blocks), net.lipschitz_bound()
    turn = blocks * math.asin(lipschitz)
    if blocks > 1 and turn >= math.pi / 2:
        raise ValueError(
            f"net must guarantee positive variances: {blocks} blocks need a Lipschitz bound below "
            f"{math.sin(math.pi / 2 / blocks):.3g}, got {lipschitz:.3g}"
        )
    unit = problem.noise_std**2 / net.scale.item()
    least = 1.0 if blocks == 1 else math.cos(turn)
    return unit * least / (1 + lipschitz) ** blocks, unit / (1 - lipschitz) ** blocks


def check_bars(
    net: InvertibleResNet,
    problem: InverseProblem,
    z: Tensor,
    kind: type[InverseProblem] = LinearProblem,
) -> None:
    """Raise unless z are normal data of a problem of the kind, with an injective operator."""
    check_instance("net", net, InvertibleResNet)
    check_instance("problem", problem, kind)
    check_points("z", z, problem.shape, like=problem.like)
    if problem.dim <= LARGEST:
        check_injective(problem)


def spectrum(problem: LinearProblem) -> tuple[Tensor, Tensor]:
    """A's singular values, one for each unknown, and its right singular vectors as rows.

    In double precision and never squared; zero where rounding of A could have made the value.
    Usable by autograd, even if made where it is off.
    """
    with torch.inference_mode(False), torch.no_grad():
        return _spectrum(problem)


def _spectrum(problem: LinearProblem) -> tuple[Tensor, Tensor]:
    white = problem.white_matrix
    values, axes = torch.linalg.svd(torch.linalg.qr(white.double(), mode="r").R)[1:]
    values = nn.functional.pad(values, (0, problem.dim - len(values)))
    return values * (values > rounding_of(values.to(white), problem)), axes


def check_injective(problem: InverseProblem) -> None:
    """Raise if the operator has a kernel: no data lead where the network would have to know it."""
    rank = int(torch.linalg.matrix_rank(problem.white_matrix))
    if rank < problem.dim:
        raise ValueError(
            f"problem must have an injective operator, got rank {rank} for {problem.dim} unknowns: "
            "no data teach the network a covariance in the kernel"
        )
