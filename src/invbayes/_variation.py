"""Total variation beside a data term: forward differences, and the relaxed primal-dual steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invbayes.bayes.problems import LinearProblem, largest_gain

RELAXED = 1.9  # how far each step goes; below two it converges


def least_variation(problem: LinearProblem, y: Tensor, weight: float, steps: int) -> Tensor:
    """The picture of `invbayes.imaging.total_variation`, whose arguments have been checked."""
    gain, size = _gain_of_any(problem), problem.adjoint(y).double().square().mean().sqrt().item()
    x = torch.zeros(problem.shape).to(y)
    if not size:
        return x  # the data term falls in no direction
    # The steps' products are bounded; their ratio, found by trials, is the same in all units.
    pace = 0.5 * math.sqrt(size / weight) / gain
    first, second = 0.5 / (8 * pace), 0.5 / (gain * pace)
    edges, rest = torch.zeros(2, *x.shape).to(x), torch.zeros_like(y)
    for _ in range(steps):
        step = -pace * (_gradient_adjoint(edges) + problem.adjoint(rest))
        ahead = x + 2 * step
        bent = edges + first * _gradient(ahead)
        bent = bent / (bent.norm(dim=0) / weight).clamp(min=1)
        left = (rest + second * (problem.apply(ahead) - y)) / (1 + second)
        x, edges, rest = x + RELAXED * step, edges.lerp(bent, RELAXED), rest.lerp(left, RELAXED)
    return x


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
