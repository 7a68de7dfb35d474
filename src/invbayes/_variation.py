"""Total variation beside a data term: relaxed primal-dual steps, and a bound that tells when to stop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from scipy.fft import dctn, idctn
from torch import Tensor

from invbayes.bayes.problems import LinearProblem, gain_of_any
from invbayes.errors import NotConverged
from invbayes.networks.precision import in_full_precision

RELAXED = 1.9  # how far each step goes; below two it converges
CHECK = 25  # steps between two looks at the bound


@torch.no_grad()
@in_full_precision
def least_variation(
    problem: LinearProblem, y: Tensor, weight: float, tol: float, max_steps: int
) -> Tensor:
    """The picture of `invbayes.imaging.total_variation`, whose arguments have been checked."""
    gain = gain_of_any(problem)
    if not gain:
        raise ValueError("problem must have an operator that is not zero")
    constants = _Constants.of(problem, gain)
    flat = constants.fitted(y, problem.shape)  # what is left has the same edges, and more digits
    y = y - problem.apply(flat)
    unit = y.abs().max().item() or 1.0
    y, weight = y / unit, weight / unit
    steps = islice(_iterates(problem, y, weight, gain), max_steps + 1)
    for count, (x, *dual) in enumerate(steps):
        if count % CHECK and count < max_steps:
            continue
        energy = _energy(problem, y, weight, x)
        gap = energy - _lower_bound(problem, y, weight, constants, *dual)
        if gap <= tol * energy:
            return flat + unit * x
    raise NotConverged(
        f"total_variation missed the tolerance {tol:.1e} after {max_steps} steps; its energy may "
        f"be {gap / energy:.1e} of itself above the least",
        steps=max_steps,
        bound=gap / energy,
        point=flat + unit * x,
    )


class _Constants(NamedTuple):
    """What A makes of constant channels, each of length one or zero, ``(channels, data)``.

    Attributes:
        rows: these images.
        inverse: their pseudoinverse, ``(data, channels)``.
        sizes: their lengths before; infinite for those of length zero.
    """

    rows: Tensor
    inverse: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, problem: LinearProblem, gain: float) -> _Constants:
        ones = torch.eye(problem.shape[0]).to(problem.like)[:, :, None, None]
        images = problem.apply(ones.expand(-1, *problem.shape).contiguous())
        rows = images.double().reshape(len(ones), -1)
        sizes, eps = rows.norm(dim=1), torch.finfo(images.dtype).eps
        lost = sizes <= 16 * eps * math.sqrt(gain * problem.dim)
        sizes = sizes.masked_fill(lost, math.inf)  # of rounding alone
        rows = rows / sizes[:, None]
        return cls(rows, torch.linalg.pinv(rows, rtol=100 * eps), sizes)

    def fitted(self, y: Tensor, shape: torch.Size) -> Tensor:
        """The picture without any edge that fits the data best."""
        levels = y.double().flatten() @ self.inverse / self.sizes
        return levels[:, None, None].to(y).expand(shape).clone()

    def without(self, q: Tensor) -> Tensor:
        """q less its part in the span of the rows."""
        return q - self.rows.mT @ (self.inverse.mT @ q)


def _iterates(
    problem: LinearProblem, y: Tensor, weight: float, gain: float
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The picture, and the dual variables p and q of its edges and of its misfit, step by step."""
    x = torch.zeros(problem.shape).to(y)
    edges, rest = torch.zeros(2, *x.shape).to(x), -y
    yield x, edges, rest  # the flat picture, which may be the answer
    size = problem.adjoint(y).double().square().mean().sqrt().item()
    # The steps' products are bounded; their ratio, found by trials, is the same in all units.
    pace = math.sqrt(size / max(weight, torch.finfo(y.dtype).eps ** 2 * size)) / gain
    first, second = 0.5 / (8 * pace), 0.5 / (gain * pace)
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
    problem: LinearProblem,
    y: Tensor,
    weight: float,
    constants: _Constants,
    edges: Tensor,
    rest: Tensor,
) -> float:
    r"""A bound of the energy from below, by any p and q.

    By duality it is :math:`-\|q\|^2/2 - \langle q, y \rangle` if :math:`\nabla^* p + A^* q = 0` and
    :math:`|p| \le w` at each pixel. So q is made orthogonal to what A makes of constants, p takes
    up the rest by Poisson's equation, and both are multiplied by the best factor up to one that is
    allowed.
    """
    q, p = constants.without(rest.double().flatten()), edges.double()
    left = problem.adjoint(q.reshape(y.shape).to(y)).double()
    p = p - _gradient(_poisson(_gradient_adjoint(p) + left))
    square, product = (q @ q).item(), (q @ y.double().flatten()).item()
    most = weight / max(weight, p.norm(dim=0).max().item())
    share = min(max(-product / square, 0.0), most) if square else 0.0
    return -(share**2) * square / 2 - share * product


def _poisson(right: Tensor) -> Tensor:
    """u of mean zero with ∇*∇ u equal to the right-hand side, less its mean, in each channel."""
    down, along = (2 - 2 * np.cos(np.pi * np.arange(side) / side) for side in right.shape[-2:])
    rates = down[:, None] + along
    rates[0, 0] = np.inf
    waves = dctn(right.cpu().numpy(), axes=(-2, -1), norm="ortho") / rates
    return torch.from_numpy(idctn(waves, axes=(-2, -1), norm="ortho")).to(right)


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
