"""Divergence and log-determinant by random probes, for maps without a closed formula."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from invbayes._checks import check_contraction, check_count, check_float_tensor, number
from invbayes._random import random_signs

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
        ValueError: if ``probes`` is not a positive int, x is no finite ``(n, d)`` tensor, or f does
            not map it to its own shape.

    Source: Hutchinson 1990; in normalizing flows Chen et al. 2019.

    Example:
        >>> import torch
        >>> hutchinson_divergence(lambda x: 3 * x, torch.zeros(2, 4)).tolist()
        [12.0, 12.0]
    """
    check_count("probes", probes)
    x, value = _prepare(f, x)
    signs = [random_signs(x, generator) for _ in range(probes)]
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
        ValueError: for arguments outside these ranges, points that are not finite, or an f that
            stretches one of the probes by more than L.

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
        probe = power = random_signs(x, generator)
        summed = torch.zeros_like(x[:, 0])
        for k in range(1, terms + extra + 1):
            before, power = power, _pull_back(value, x, power)
            _check_bound(before, power, lipschitz)
            survival = 1.0 if k <= terms else roulette ** (k - terms)
            summed = summed - (power * probe).sum(-1) / (k * survival)
        total.append(summed)
    return Estimate(
        torch.stack(total).mean(0),
        0.0 if roulette is not None else truncation_bound(x.shape[-1], lipschitz, terms),
    )


def residual_log_det(
    blocks: Iterable[Map], lipschitz: float, x: Tensor, **options: Any
) -> Estimate:
    """The log-determinant of the blocks Id − L g at points ``(n, *shape)``: see `log_det_series`."""
    value, bias, shape = torch.zeros(()).to(x), 0.0, x.shape
    for g in blocks:

        def f(rows: Tensor, g: Map = g) -> Tensor:
            return lipschitz * g(rows.reshape(shape)).flatten(1)

        part = log_det_series(f, x.flatten(1), lipschitz=lipschitz, **options)
        value, bias = value + part.value, bias + part.bias_bound
        x = x - lipschitz * g(x)
    return Estimate(value, bias)


def truncation_bound(dim: int, lipschitz: float, terms: int) -> float:
    r"""What the series can miss after K terms: :math:`d\, L^{K+1} / ((K + 1)(1 - L))`.

    Each eigenvalue of Df has size at most L, so term k has size at most :math:`d L^k / k`; bound
    every 1/k by 1/(K + 1) and sum the geometric series.

    Raises:
        ValueError: for a dimension or number of terms that is not positive, or L outside (0, 1).

    Example:
        >>> truncation_bound(dim=2, lipschitz=0.5, terms=1)
        0.5
    """
    check_count("dim", dim)
    check_contraction(lipschitz)
    check_count("terms", terms)
    return dim * lipschitz ** (terms + 1) / ((terms + 1) * (1 - lipschitz))


def _extra_terms(roulette: float, lipschitz: float, generator: torch.Generator | None) -> int:
    """How many terms beyond K survive: geometric, P(at least j) = q^j."""
    if not lipschitz**2 < number("roulette", roulette) < 1:
        raise ValueError(
            f"roulette must lie between lipschitz squared, {lipschitz**2:.3g}, and 1, got {roulette}"
        )
    extra, device = 0, None if generator is None else generator.device
    while torch.rand((), generator=generator, device=device).item() < roulette:
        extra += 1
    return extra


def _prepare(f: Map, x: Tensor) -> tuple[Tensor, Tensor]:
    """Points that carry a graph, and f's values there, even inside `torch.no_grad`."""
    check_float_tensor("x", x)
    if x.ndim != 2 or not x.shape[1]:
        raise ValueError(f"x must have shape (n, d) with d > 0, got {tuple(x.shape)}")
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone() if x.is_inference() else x
        x = x if x.requires_grad else x.detach().requires_grad_()
        value = f(x)
    if not isinstance(value, Tensor) or value.shape != x.shape or not value.requires_grad:
        raise ValueError(
            f"f must map {tuple(x.shape)} to the same shape, differentiably, got "
            f"{tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__}"
        )
    return x, value


@torch.no_grad()
def _check_bound(before: Tensor, after: Tensor, lipschitz: float) -> None:
    """‖Df(x)ᵀ v‖ ≤ L ‖v‖ at every probe, or the stated bound is false."""
    info, size = torch.finfo(before.dtype), before.norm(dim=-1)
    slack = 1 + 1e3 * info.eps
    # Below, squares lose digits, and the terms no longer count.
    tiny = size < info.tiny**0.5 / info.eps
    stretch = torch.where(tiny, 0, after.norm(dim=-1) / size)
    if not (stretch <= lipschitz * slack).all():
        raise ValueError(
            f"lipschitz must bound f's Lipschitz constant: {lipschitz:g} does not, a vector was "
            f"stretched by {stretch.max().item():.4g}"
        )


def _pull_back(value: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """Df(x)ᵀ v, kept differentiable."""
    with torch.inference_mode(False):
        return torch.autograd.grad(value, x, v, create_graph=True)[0]
