"""The posterior on the plane by quadrature: the oracle where no closed form is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from invbayes._checks import check_callable, check_count, check_instance, check_points
from invbayes.bayes.inverse_problem import InverseProblem
from invbayes.errors import NotConverged

Density = Callable[[Tensor], Tensor]
AT_ONCE = 32  # posteriors on the lattice at a time: memory
RIM, NODE = 1e-8, 0.16  # the largest share of a rim node beside the top, and of one node in all


class PlanePosterior(NamedTuple):
    """Posteriors on the plane.

    Attributes:
        mean: E[x | y], shape ``(n, 2)``.
        covariance: Cov(x | y), shape ``(n, 2, 2)``.
        mode: where the density is largest, shape ``(n, 2)``.
    """

    mean: Tensor
    covariance: Tensor
    mode: Tensor


def plane_posterior(
    log_prior: Density,
    problem: InverseProblem,
    y: Tensor,
    *,
    box: tuple[float, float, float, float],
    nodes: int = 241,
) -> PlanePosterior:
    r"""Mean, covariance and mode of each posterior on the plane,

    .. math:: p(x \mid y) \propto p_X(x)\, p(y \mid x),

    the moments by sums over a lattice, which converge faster than any power of its width for
    smooth densities, the mode by Newton's method from the best node.

    Args:
        log_prior: :math:`\log p_X` up to a constant, points ``(n, 2)`` to ``(n,)``, smooth.
        problem: the measurement, linear or not, of two unknowns.
        y: observations, shape ``(n, *data_shape)``.
        box: ``(left, right, bottom, top)``, which must hold the posteriors.
        nodes: of the lattice along each axis.

    Raises:
        ValueError: for parts that do not fit, a posterior that reaches the rim of the box, or one
            too narrow for the lattice.
        NotConverged: if Newton's method does not end at a mode.

    Example:
        >>> import torch
        >>> from invbayes import GaussianMixture, LinearProblem
        >>> eye, y = torch.eye(2).double(), torch.tensor([[2.0, 0.0]]).double()
        >>> prior, problem = GaussianMixture.gaussian(0 * eye[0], eye), LinearProblem(eye, 1.0)
        >>> found = plane_posterior(prior.log_prob, problem, y, box=(-7, 7, -7, 7))
        >>> torch.allclose(found.mean, y / 2), torch.allclose(found.mode, y / 2)
        (True, True)
    """
    check_callable("log_prior", log_prior)
    check_instance("problem", problem, InverseProblem)
    check_count("nodes", nodes, 3)
    if tuple(problem.shape) != (2,):
        raise ValueError(f"problem must have two unknowns, got shape {tuple(problem.shape)}")
    check_points("y", y, problem.data_shape, like=problem.like)
    if y.ndim != 1 + len(problem.data_shape) or not len(y):
        raise ValueError(f"y must have shape (n, *data_shape) with n > 0, got {tuple(y.shape)}")
    lattice, spacing = _lattice(box, nodes, y)
    with torch.no_grad():
        prior = log_prior(lattice)
        if prior.isnan().any():
            raise ValueError("log_prior must be a number or −∞ in the whole box, got NaN")
        parts = [_on_lattice(lattice, prior, problem, part) for part in y.split(AT_ONCE)]
    mean, covariance, best = (torch.cat(part) for part in zip(*parts, strict=True))
    tol = 1e3 * torch.finfo(y.dtype).eps * lattice.abs().max().item()
    mode = _newton(lambda x: log_prior(x) + problem.log_likelihood(x, y), best, 4 * spacing, tol)
    return PlanePosterior(mean, covariance, mode)


def _lattice(
    box: tuple[float, float, float, float], nodes: int, like: Tensor
) -> tuple[Tensor, float]:
    """Its nodes ``(nodes², 2)``, and the larger of their distances along the axes."""
    ends = torch.as_tensor(box, dtype=torch.float64)
    if ends.shape != (4,) or not (ends.diff()[::2] > 0).all() or not torch.isfinite(ends).all():
        raise ValueError(f"box must be (left, right, bottom, top), finite and rising, got {box}")
    ticks = [torch.linspace(*pair, nodes, dtype=like.dtype) for pair in (box[:2], box[2:])]
    return torch.cartesian_prod(*ticks).to(like.device), ends.diff()[::2].max().item() / (nodes - 1)


def _on_lattice(
    lattice: Tensor, prior: Tensor, problem: InverseProblem, y: Tensor
) -> PlanePosterior:
    """Moments, and the best node in place of the mode."""
    heights = prior + problem.log_likelihood(lattice, y[:, None])
    weights = heights.softmax(1)
    _check_lattice(weights)
    mean = weights @ lattice
    centred = lattice - mean[:, None]  # a difference of second moments would cancel far out
    covariance = torch.einsum("nk,nki,nkj->nij", weights, centred, centred)
    return PlanePosterior(mean, covariance, lattice[weights.argmax(1)])


def _check_lattice(weights: Tensor) -> None:
    """Raise where a posterior leaves the box, or falls between the nodes."""
    side, top = round(weights.shape[1] ** 0.5), weights.amax(1)
    inner = torch.zeros(side, side, dtype=torch.bool, device=weights.device)
    inner[1:-1, 1:-1] = True
    if (weights[:, ~inner.flatten()].amax(1) > RIM * top).any():
        raise ValueError("box must hold the posteriors, but one of them reaches its rim")
    if (top > NODE).any():
        raise ValueError(
            f"nodes must be more than {side}: a node holds {top.max().item():.0%} of a posterior"
        )


def _newton(
    log_density: Density, x: Tensor, longest: float, tol: float, max_steps: int = 50
) -> Tensor:
    """The mode next to x, by Newton's steps."""
    for _ in range(max_steps):
        gradient, hessian = _bends(log_density, x)
        move, singular = torch.linalg.solve_ex(hessian, gradient)
        if singular.any():
            break
        x = x - move * (longest / move.norm(dim=1, keepdim=True)).clamp(max=1)
        if not (move.norm(dim=1) > tol).any():
            if (torch.linalg.eigvalsh(hessian)[:, -1] < 0).all():
                return x
            break
    raise NotConverged("Newton's method did not end at a mode", steps=max_steps, point=x)


def _bends(log_density: Density, x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients and Hessians, row by row; backwards only, as in `NonlinearProblem`."""
    slope = torch.func.grad(lambda points: log_density(points).sum())
    hessian = torch.func.jacrev(lambda points: slope(points).sum(0))(x)
    return slope(x), hessian.movedim(0, 1)
