"""Divergence and log-determinant by random probes, for maps without a closed formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from invbayes._checks import check_count, check_positive
from invbayes.networks.contraction import check_contraction

Map = Callable[[Tensor], Tensor]


class Estimate(NamedTuple):
    """A random estimate, one for each point, and a bound on its bias.

    Attributes:
        value: shape ``(n,)``.
        bias_bound: the largest possible distance of its expectation from the truth.
    """

    value: Tensor
    bias_bound: float


def hutchinson_divergence(
    f: Map, x: Tensor, *, probes: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    r"""Hutchinson's unbiased estimate of the divergence,

    .. math:: \mathrm{div} f(x) = \mathbb{E}[v^\top Df(x)\, v] \approx \frac{1}{p} \sum_{j=1}^{p} v_j^\top Df(x)\, v_j,

    with independent signs ±1 in the entries of v. Can be differentiated, so that a loss may
    weight each point as it likes.

    Args:
        f: a map ``(n, d)`` to ``(n, d)`` that treats each row by itself.
        x: points, shape ``(n, d)``.
        probes: p, at least 1.
        generator: the source of the signs; without one, PyTorch's global generator.

    Returns:
        Estimates, shape ``(n,)``.

    Raises:
        ValueError: if ``probes`` is not a positive int.

    Source: Hutchinson 1990; in normalizing flows Chen et al. 2019.

    Example:
        >>> import torch
        >>> hutchinson_divergence(lambda x: 3 * x, torch.zeros(2, 4)).tolist()
        [12.0, 12.0]
    """
    check_count("probes", probes)
    x, value = _prepare(f, x)
    signs = [_signs(x, generator) for _ in range(probes)]
    return torch.stack([(_pull_back(value, x, v) * v).sum(-1) for v in signs]).mean(0)


def log_det_series(
    f: Map,
    x: Tensor,
    *,
    lipschitz: float,
    terms: int,
    probes: int = 1,
    roulette: float | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""The log-determinant of a residual block by its power series,

    .. math:: \log\det(I - Df) = -\sum_{k=1}^{\infty} \frac{\mathrm{tr}\, (Df)^k}{k}, \qquad
        \Big|\sum_{k > K} \frac{\mathrm{tr}\, (Df)^k}{k}\Big| \le \frac{d\, L^{K+1}}{(K+1)(1-L)},

    with the traces by Hutchinson's probes. Cut after K terms, it is biased by at most the second
    formula. With ``roulette`` = q it goes on after term K with probability q at each term, and
    divides term K + j by :math:`q^j`: then it is unbiased, at the price of variance.

    Args:
        f: a contraction ``(n, d)`` to ``(n, d)`` that treats each row by itself.
        x: points, shape ``(n, d)``.
        lipschitz: L, in (0, 1), a bound of f's Lipschitz constant.
        terms: K, at least 1, the terms that are always summed.
        probes: the number of random vectors.
        roulette: q in (0, 1), above L² for a finite variance; or None.
        generator: the source of randomness; without one, PyTorch's global generator.

    Raises:
        ValueError: for arguments outside these ranges.

    Source: Behrmann et al. 2019 (series), Chen et al. 2019 (roulette).

    Example:
        >>> import torch
        >>> half = lambda x: 0.5 * x
        >>> round(log_det_series(half, torch.zeros(1, 1), lipschitz=0.5, terms=30).value.item(), 6)
        -0.693147
    """
    check_contraction(lipschitz)
    check_count("terms", terms)
    check_count("probes", probes)
    extra = 0 if roulette is None else _extra_terms(roulette, lipschitz, generator)
    x, value = _prepare(f, x)
    total = []
    for _ in range(probes):
        probe = power = _signs(x, generator)
        summed = torch.zeros_like(x[:, 0])
        for k in range(1, terms + extra + 1):
            power = _pull_back(value, x, power)
            survival = 1.0 if k <= terms else roulette ** (k - terms)
            summed = summed - (power * probe).sum(-1) / (k * survival)
        total.append(summed)
    return Estimate(
        torch.stack(total).mean(0),
        0.0 if roulette is not None else truncation_bound(x.shape[-1], lipschitz, terms),
    )


def truncation_bound(dim: int, lipschitz: float, terms: int) -> float:
    r"""What the series can miss after K terms: :math:`d\, L^{K+1} / ((K + 1)(1 - L))`.

    Each eigenvalue of Df has size at most L, so term k has size at most :math:`d L^k / k`; bound
    every 1/k by 1/(K + 1) and sum the geometric series.

    Example:
        >>> truncation_bound(dim=2, lipschitz=0.5, terms=1)
        0.5
    """
    return dim * lipschitz ** (terms + 1) / ((terms + 1) * (1 - lipschitz))


def _extra_terms(roulette: float, lipschitz: float, generator: torch.Generator | None) -> int:
    """How many terms beyond K survive: geometric, P(at least j) = q^j."""
    check_positive("roulette", roulette)
    if not lipschitz**2 < roulette < 1:
        raise ValueError(
            f"roulette must lie between lipschitz squared, {lipschitz**2:.3g}, and 1, got {roulette}"
        )
    extra = 0
    while torch.rand((), generator=generator).item() < roulette:
        extra += 1
    return extra


def _prepare(f: Map, x: Tensor) -> tuple[Tensor, Tensor]:
    """Points that carry a graph, and f's values there, even inside `torch.no_grad`."""
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        return x, f(x)


def _pull_back(value: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """Df(x)ᵀ v, kept differentiable."""
    (product,) = torch.autograd.grad(value, x, v, create_graph=True)
    return product


def _signs(x: Tensor, generator: torch.Generator | None) -> Tensor:
    bits = torch.randint(0, 2, x.shape, generator=generator, device=x.device)
    return (2 * bits - 1).to(x.dtype)
