"""The highest point of a Gaussian mixture."""

from __future__ import annotations

from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from invbayes._checks import check_count, check_instance, check_positive
from invbayes.bayes.mixtures import GaussianMixture
from invbayes.errors import NotConverged, TiedModes


def global_mode(
    mixture: GaussianMixture,
    *,
    tol: float | None = None,
    max_steps: int = 1000,
    on_tie: Literal["raise", "first"] = "raise",
) -> Tensor:
    r"""The global maximiser of a mixture's density,

    .. math:: \hat x = \operatorname{arg\,max}_x \log p(x), \qquad \nabla \log p(\hat x) = 0.

    Every stationary point lies on the mixture's ridge :math:`x(\alpha) = (\sum_k \alpha_k
    \Sigma_k^{-1})^{-1} \sum_k \alpha_k \Sigma_k^{-1} m_k` with α in the simplex (Ray and Lindsay,
    Ann. Statist. 33, 2005, Theorem 1). We climb from the ridge's corners, which are the component
    means, and from the midpoints of its edges, and keep the highest mode. A step is Newton's or
    an EM step, whichever gains more; an EM step never loses, so the climb never does.

    The problem is not concave. The starts find every mode of the mixtures that we have tested
    against a dense grid, but no finite set of starts is proved to do so for every mixture.

    Args:
        mixture: one mixture or a batch ``(*B,)`` of them.
        tol: stop when the step is below ``tol * (1 + |x|)``, both lengths in the metric
            :math:`\sum_k r_k \Sigma_k^{-1}`, that is in standard deviations of the mixture, and
            x counted from a component's mean; by default 1e-10 in double and 1e-5 in single
            precision.
        max_steps: the most steps from each start.
        on_tie: ``"raise"`` if two modes are equally high, or ``"first"`` to take the one reached
            from the component listed first.

    Returns:
        The maximisers, shape ``(*B, d)``.

    Raises:
        ValueError: for a tolerance or number of steps that is not positive.
        NotConverged: if a climb misses its tolerance, or the best stationary point is no maximum.
        TiedModes: if two modes are equally high to rounding and ``on_tie`` is ``"raise"``.

    Example:
        >>> import torch
        >>> p = GaussianMixture(
        ...     weights=torch.tensor([0.4, 0.6]),
        ...     means=torch.tensor([[-9.0], [9.0]]),
        ...     covariances=torch.ones(2, 1, 1),
        ... )
        >>> global_mode(p)
        tensor([9.])
    """
    check_instance("mixture", mixture, GaussianMixture)
    tol = _default_tolerance(mixture) if tol is None else tol
    check_positive("tol", tol)
    check_count("max_steps", max_steps)
    if on_tie not in ("raise", "first"):
        raise ValueError(f"on_tie must be 'raise' or 'first', got {on_tie!r}")
    flat, centre, root = _standardised(mixture.flattened())
    modes, heights = _all_modes(flat, tol, max_steps)
    best = heights.argmax(-1)
    found = modes[torch.arange(len(best)), best]
    if on_tie == "raise":
        _check_unique(modes, heights, found, flat)
    _check_maximum(flat, found, max_steps)
    found = centre + (root @ found[..., None])[..., 0]
    return found.reshape(*mixture.batch_shape, mixture.dim)


def has_single_mode(mixture: GaussianMixture) -> Tensor:
    r"""Whether all climbs of `global_mode` that end at a maximum end at the same one, shape ``(*B,)``.

    As far as those starts tell, the density then has one mode, and no jump of MAP is near.

    Args:
        mixture: one mixture or a batch ``(*B,)`` of them.

    Raises:
        NotConverged: as `global_mode` does.

    Example:
        >>> import torch
        >>> far = GaussianMixture(
        ...     torch.tensor([0.4, 0.6]), torch.tensor([[-9.0], [9.0]]), torch.ones(2, 1, 1)
        ... )
        >>> has_single_mode(far), has_single_mode(GaussianMixture.gaussian(far.mean, far.covariance))
        (tensor(False), tensor(True))
    """
    check_instance("mixture", mixture, GaussianMixture)
    flat, _, _ = _standardised(mixture.flattened())
    modes, heights = _all_modes(flat, _default_tolerance(mixture), max_steps=1000)
    found = modes[torch.arange(len(modes)), heights.argmax(-1)]
    _check_maximum(flat, found, max_steps=1000)
    apart = _elsewhere(modes, found, flat) & (heights > -torch.inf)
    hessian = flat.expand(modes.transpose(0, 1)).hessian.transpose(0, 1)
    maximum = torch.linalg.cholesky_ex(-hessian).info == 0
    return ~(apart & maximum).any(-1).reshape(mixture.batch_shape)


def _default_tolerance(mixture: GaussianMixture) -> float:
    return 1e-10 if mixture.means.dtype == torch.float64 else 1e-5


def _standardised(flat: GaussianMixture) -> tuple[GaussianMixture, Tensor, Tensor]:
    """The mixture of u, if x = m + F u and the likeliest component is N(m, F F*), with m and F.

    The components of a posterior are thin in the same directions, and thin ones have precisions
    that a sum rounds away. Here they are all of the order of one, whatever the units and origin.
    """
    chosen = flat.weights.sum(0).argmax()
    centre, root = flat.means[:, chosen], flat._factors[..., chosen, :, :]
    shift, by = (flat.means - centre[:, None])[..., None], root.unsqueeze(-3)
    means = torch.linalg.solve_triangular(by, shift, upper=False)[..., 0]
    factors = torch.linalg.solve_triangular(by, flat._factors, upper=False)
    return GaussianMixture._from_factors(flat.weights, means, factors), centre, root


def _all_modes(flat: GaussianMixture, tol: float, max_steps: int) -> tuple[Tensor, Tensor]:
    """The modes reached from every start ``(n, S, d)``, and their heights, −∞ where not tried."""
    corners = _start_weights(flat)
    starts = _ridge(flat, corners)
    row, start = _worth_climbing(flat, corners).nonzero(as_tuple=True)
    climbers = flat[row]
    reached = _climb(climbers, starts[row, start], tol, max_steps)
    starts[row, start] = reached
    heights = starts.new_full(starts.shape[:-1], -torch.inf)
    heights[row, start] = climbers.log_prob(reached)
    return starts, heights


def _start_weights(flat: GaussianMixture) -> Tensor:
    """α at the simplex's corners and at the midpoints of its edges, shape ``(S, K)``."""
    corners = torch.eye(flat.num_components).to(flat.means)
    pairs = [(corners[i] + corners[j]) / 2 for i, j in combinations(range(len(corners)), 2)]
    return torch.stack([*corners, *pairs])


def _ridge(flat: GaussianMixture, alpha: Tensor) -> Tensor:
    """x(α) for every mixture and every row of ``alpha``, shape ``(n, S, d)``."""
    alpha = alpha[:, None].expand(-1, len(flat.means), -1)
    origin = torch.zeros_like(flat.means[:, 0])
    pull = torch.einsum("snk,nkd->snd", alpha, flat.pulls(origin))
    return torch.linalg.solve(flat.mean_precision(alpha), pull).transpose(0, 1).contiguous()


def _worth_climbing(flat: GaussianMixture, alpha: Tensor) -> Tensor:
    """Which starts can matter, shape ``(n, S)``.

    A component whose peak lies below the rounding error of a height already reached cannot
    move the highest mode, so no climb need begin there.
    """
    own_peak = flat.components.log_prob(flat.means) + flat.weights.log()
    at_means = flat.log_prob(flat.means.transpose(0, 1))
    floor = at_means.amax(0) + torch.log(torch.tensor(torch.finfo(own_peak.dtype).eps))
    matters = own_peak > floor[:, None]
    return (matters[:, None, :] | (alpha == 0)).all(-1)


def _climb(mixture: GaussianMixture, x: Tensor, tol: float, max_steps: int) -> Tensor:
    """Follow each point ``(N, d)`` to a stationary point of its own mixture."""
    x, active = x.clone(), torch.arange(len(x), device=x.device)
    for _ in range(max_steps):
        x[active], length = _step(mixture, x[active])
        moving = length > tol
        if not moving.any():
            return x
        if not moving.all():
            active, mixture, length = active[moving], mixture[moving], length[moving]
    worst = length.max().item()
    raise NotConverged(
        f"{len(active)} of {len(x)} climbs missed the tolerance {tol:.3g} after {max_steps} steps; "
        f"the longest last step is {worst:.3g}",
        steps=max_steps,
        bound=worst,
    )


def _step(mixture: GaussianMixture, x: Tensor) -> tuple[Tensor, Tensor]:
    """The better of a Newton and an EM step, and its length in standard deviations."""
    height, score, hessian, metric = mixture.expand(x)
    em = torch.linalg.solve(metric, score)
    newton = _uphill(torch.linalg.solve_ex(hessian, -score)[0], score, otherwise=em)
    gain = mixture.log_prob(x + newton) - mixture.log_prob(x + em)
    # Close to a mode the two heights agree to rounding; Newton must win there.
    slack = 16 * torch.finfo(x.dtype).eps * (1 + height.abs())
    step = torch.where((gain >= -slack)[:, None], newton, em)
    return x + step, _length(step, metric) / (1 + _length(x, metric))


def _uphill(step: Tensor, score: Tensor, otherwise: Tensor) -> Tensor:
    """The step, turned round where it leads downhill, and replaced where it is not finite.

    Where the density is not concave Newton's step leads to a saddle; its opposite leads away.
    """
    uphill = step * torch.einsum("ni,ni->n", step, score).sign()[:, None]
    return torch.where(torch.isfinite(uphill).all(-1, keepdim=True), uphill, otherwise)


def _length(v: Tensor, metric: Tensor) -> Tensor:
    return torch.einsum("...i,...ij,...j->...", v, metric, v).clamp(min=0).sqrt()


def _check_unique(modes: Tensor, heights: Tensor, found: Tensor, flat: GaussianMixture) -> None:
    """Raise where another mode, clearly elsewhere, is as high to rounding."""
    best = heights.amax(-1, keepdim=True)
    as_high = heights >= best - 16 * torch.finfo(best.dtype).eps * (1 + best.abs())
    tied = (as_high & _elsewhere(modes, found, flat)).any(-1)
    if tied.any():
        index = tied.nonzero().flatten()
        raise TiedModes(
            f"{len(index)} of {len(found)} mixtures have two equally high modes, the first at "
            f"index {index[0].item()}; pass on_tie='first' to take one of them",
            index=index,
        )


def _elsewhere(modes: Tensor, found: Tensor, flat: GaussianMixture) -> Tensor:
    """Which modes ``(n, S, d)`` are clearly not the one that was found ``(n, d)``.

    Points closer than ε^¼ standard deviations count as one: at a flat, quartic top their heights
    agree to rounding, so nothing can tell them apart.
    """
    metric = flat.mean_precision(flat.responsibilities(found))
    apart = _length(modes - found[:, None], metric[:, None])
    return apart > torch.finfo(apart.dtype).eps ** 0.25 * (1 + _length(found, metric))[:, None]


def _check_maximum(flat: GaussianMixture, x: Tensor, max_steps: int) -> None:
    """Raise unless the Hessian is negative semidefinite, to rounding, at each point."""
    _, _, hessian, metric = flat.expand(x)
    slack = torch.finfo(x.dtype).eps ** 0.5
    _, failed = torch.linalg.cholesky_ex(slack * metric - hessian)
    if failed.any():
        count = int((failed > 0).sum())
        raise NotConverged(
            f"{count} of {len(x)} climbs ended at a saddle point, not at a maximum",
            steps=max_steps,
            bound=float("inf"),
        )
