"""Total variation beside a data term: relaxed primal-dual steps, and a bound that tells when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch
from scipy.fft import dctn, idctn
from torch import Tensor

from invbayes.bayes.problems import LinearProblem, largest_gain
from invbayes.errors import NotConverged

RELAXED = 1.9  # how far each step goes; below two it converges
CHECK = 25  # steps between two looks at the bound


def least_variation(
    problem: LinearProblem, y: Tensor, weight: float, tol: float, max_steps: int
) -> Tensor:
    """The picture of `invbayes.imaging.total_variation`, whose arguments have been checked."""
    gain, size = _gain_of_any(problem), problem.adjoint(y).double().square().mean().sqrt().item()
    if not size:
        return torch.zeros(problem.shape).to(y)  # the data term falls in no direction
    # The steps' products are bounded; their ratio, found by trials, is the same in all units.
    pace = math.sqrt(size / weight) / gain
    steps = islice(_iterates(problem, y, weight, pace, gain), max_steps)
    lower = _lower_bound(problem, y, weight)
    rounding = torch.finfo(y.dtype).eps * y.double().square().sum().item() / 2
    for count, (x, *dual) in enumerate(steps, 1):
        if count % CHECK and count < max_steps:
            continue
        energy = _energy(problem, y, weight, x)
        gap = energy - lower(*dual)
        if gap <= max(tol * energy, rounding):
            return x
    raise NotConverged(
        f"total_variation missed the tolerance {tol:.1e} after {max_steps} steps; its energy may "
        f"be {gap / energy:.1e} of itself above the least",
        steps=max_steps,
        bound=gap / energy,
        point=x,
    )


def _iterates(
    problem: LinearProblem, y: Tensor, weight: float, pace: float, gain: float
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The picture, and the dual variables p and q of its edges and of its misfit, step by step."""
    first, second = 0.5 / (8 * pace), 0.5 / (gain * pace)
    x = torch.zeros(problem.shape).to(y)
    edges, rest = torch.zeros(2, *x.shape).to(x), torch.zeros_like(y)
    while True:
        step = -pace * (_gradient_adjoint(edges) + problem.adjoint(rest))
        ahead = x + 2 * step
        bent = edges + first * _gradient(ahead)
        bent = bent / (bent.norm(dim=0) / weight).clamp(min=1)
        left = (rest + second * (problem.apply(ahead) - y)) / (1 + second)
        x, edges, rest = x + RELAXED * step, edges.lerp(bent, RELAXED), rest.lerp(left, RELAXED)
        yield x, edges, rest


def _energy(problem: LinearProblem, y: Tensor, weight: float, x: Tensor) -> float:
    """What is to be minimised."""
    misfit = (problem.apply(x) - y).double().square().sum() / 2
    return (misfit + weight * _gradient(x.double()).norm(dim=0).sum()).item()


def _lower_bound(
    problem: LinearProblem, y: Tensor, weight: float
) -> Callable[[Tensor, Tensor], float]:
    r"""A bound of the energy from below, by any p and q.

    By duality it is :math:`-\|q\|^2/2 - \langle q, y \rangle` if :math:`\nabla^* p + A^* q = 0` and
    :math:`|p| \le w` at each pixel. So q is made orthogonal to what A makes of constants, p takes
    up the rest by Poisson's equation, and both are multiplied by the best factor that is allowed.
    """
    channels = torch.eye(problem.shape[0]).to(y)[:, :, None, None]
    flats = problem.apply(channels.expand(-1, *problem.shape).contiguous()).flatten(1).double()
    inverse = torch.linalg.pinv(flats @ flats.mT, hermitian=True)
    data = y.double().flatten()

    def bound(edges: Tensor, rest: Tensor) -> float:
        q = rest.double().flatten()
        q = q - flats.mT @ (inverse @ (flats @ q))
        left = problem.adjoint(q.reshape(y.shape).to(y)).double()
        p = edges.double()
        p = p - _gradient(_poisson(_gradient_adjoint(p) + left))
        square, product = (q @ q).item(), (q @ data).item()
        most = weight / max(weight, p.norm(dim=0).max().item())
        share = min(max(-product / square, 0.0), most) if square else 0.0
        return -(share**2) * square / 2 - share * product

    return bound


def _poisson(right: Tensor) -> Tensor:
    """u of mean zero with ∇*∇ u equal to the right-hand side, less its mean, in each channel."""
    down, along = (2 - 2 * np.cos(np.pi * np.arange(side) / side) for side in right.shape[-2:])
    rates = down[:, None] + along
    rates[0, 0] = np.inf
    waves = dctn(right.cpu().numpy(), axes=(-2, -1), norm="ortho") / rates
    return torch.from_numpy(idctn(waves, axes=(-2, -1), norm="ortho")).to(right)


def _gain_of_any(problem: LinearProblem) -> float:
    """About the most that A*A does: often to constants, but not where A sharpens edges."""
    noise = torch.randn(problem.shape, generator=torch.Generator().manual_seed(0))
    starts = torch.ones(problem.shape).to(problem.like), noise.to(problem.like)
    gain = max(largest_gain(problem, v, steps=30).item() for v in starts)
    if not gain:
        raise ValueError("problem must have an operator that is not zero")
    return 1.1 * gain  # it may be a little too small


def _gradient(x: Tensor) -> Tensor:
    """Forward differences down and to the right, zero at the last row and column."""
    down = torch.nn.functional.pad(x.diff(dim=-2), (0, 0, 0, 1))
    return torch.stack([down, torch.nn.functional.pad(x.diff(dim=-1), (0, 1))])


def _gradient_adjoint(edges: Tensor) -> Tensor:
    """The adjoint of `_gradient`, minus a divergence."""
    down, right = edges[0, ..., :-1, :], edges[1, ..., :-1]
    down, right = (
        torch.nn.functional.pad(down, (0, 0, 1, 1)),
        torch.nn.functional.pad(right, (1, 1)),
    )
    return -down.diff(dim=-2) - right.diff(dim=-1)
