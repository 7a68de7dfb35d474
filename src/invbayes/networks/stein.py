"""Stein's unbiased risk: the mean squared error of a network, from data alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from invbayes._checks import check_count, check_instance, check_points
from invbayes._random import random_signs
from invbayes.bayes.posteriors import rounding_of
from invbayes.bayes.problems import LinearProblem
from invbayes.networks.iresnet import InvertibleResNet


class Seen(NamedTuple):
    r"""What a measurement sees, and how it counts.

    Singular vectors ``(r, d)``, squared singular values ``(r,)``, and V ``(k, d)`` with
    :math:`V^* V = M`, the metric; where none is given, M = P.
    """

    directions: Tensor
    squares: Tensor
    frame: Tensor

    @classmethod
    def of(cls, problem: LinearProblem, metric: Tensor | None = None) -> Seen:
        """Of the whitened operator, values that are rounding apart."""
        _, values, directions = torch.linalg.svd(problem.white_matrix, full_matrices=False)
        rank = int((values > rounding_of(values, problem)).sum())
        seen, squares = directions[:rank], values[:rank].square()
        return cls(seen, squares, seen if metric is None else torch.linalg.cholesky(metric).mT)

    def weigh(self, rows: Tensor) -> Tensor:
        """M x for rows ``(n, d)``."""
        return rows @ self.frame.mT @ self.frame

    def least_squares(self, rows: Tensor) -> Tensor:
        """A⁺y for rows of normal data z = A*y, ``(n, d)``."""
        missed = (rows - rows @ self.directions.mT @ self.directions).norm(dim=-1)
        if (missed > torch.finfo(rows.dtype).eps ** 0.5 * rows.norm(dim=-1)).any():
            raise ValueError("z must lie in the range of the adjoint, as z = A*y does")
        return rows @ self.directions.mT / self.squares @ self.directions

    def misfit(self, found: Tensor, z: Tensor) -> Tensor:
        """‖x − A⁺y‖² in the metric for points ``(n, *shape)``, shape ``(n,)``."""
        away = found.flatten(1) - self.least_squares(z.flatten(1))
        return (away @ self.frame.mT).square().sum(-1)

    @property
    def naive(self) -> Tensor:
        """tr M (A*A)⁺: δ² times this is the mean squared error of A⁺y, projected, in the metric."""
        return ((self.frame @ self.directions.mT).square() / self.squares).sum()


def unbiased_risk(
    net: InvertibleResNet,
    problem: LinearProblem,
    z: Tensor,
    *,
    tol: float | None = None,
    probes: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The squared error of a network without the truth: one unbiased sample of it for each datum,

    .. math:: \|P \varphi^{-1}(z) - A^+ y\|^2 + 2 \delta^2\, \mathrm{tr}\big(P\, D\varphi^{-1}(z)\big) - \delta^2\, \mathrm{tr}\, (A^*\!A)^+,
        \qquad P = A^+ A,

    whose expectation is :math:`\mathbb{E} \|P (\varphi^{-1}(z) - x)\|^2`; for an injective operator
    P is the identity. It holds for every network and every prior, and even for a fixed x; but z
    must not have been used to train the network, or the mean is too small. A single value is
    noisy, and may be negative: take the mean of many.

    Args:
        net: φ, trained or not.
        problem: the measurement, of any rank; A is formed as a matrix.
        z: normal data :math:`A^* y`, shape ``(*, *shape)``.
        tol: of the inverse, as in `InvertibleResNet.inverse`.
        probes: the number of random vectors for the trace; None computes it from Jacobians.
        generator: the source of the random vectors.

    Returns:
        Values, shape ``(*,)``.

    Raises:
        ValueError: for points that do not fit, z outside of the range of A*, or no probe.
        NotConverged: as `InvertibleResNet.inverse` does.

    Source: Stein 1981; through the normal data Eldar 2009, projected Giryes, Elad and Eldar 2011.

    Example:
        >>> import torch
        >>> net, problem = InvertibleResNet.dense(2), LinearProblem(torch.eye(2), noise_std=0.1)
        >>> unbiased_risk(net, problem, torch.ones(5, 2)).shape
        torch.Size([5])
    """
    check_instance("net", net, InvertibleResNet)
    check_instance("problem", problem, LinearProblem)
    check_points("z", z, problem.shape, like=problem.like)
    lead = z.shape[: z.ndim - len(problem.shape)]
    with torch.inference_mode(False), torch.no_grad():
        seen, rows = Seen.of(problem), z.detach().clone().reshape(lead.numel(), *problem.shape)
        misfit, trace = risk_terms(net, seen, rows, tol, probes, generator)
        risk = misfit + problem.noise_std**2 * (2 * trace - seen.naive)
    return risk.detach().reshape(lead)


def risk_terms(
    net: InvertibleResNet,
    seen: Seen,
    z: Tensor,
    tol: float | None,
    probes: int | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    r"""‖φ⁻¹(z) − A⁺y‖² in the metric M and tr(M Dφ⁻¹(z)) for z ``(n, *shape)``, with their graph."""
    if probes is None:
        x = net.inverse(z, tol)
        return seen.misfit(x, z), _exact_trace(net, seen, x)
    check_count("probes", probes)
    with torch.inference_mode(False), torch.enable_grad():
        points = z.clone().requires_grad_()
        x = net.inverse(points, tol)
        found = [_random_trace(net, seen, points, x, generator) for _ in range(probes)]
        return seen.misfit(x, z), torch.stack(found).mean(0)


def _exact_trace(net: InvertibleResNet, seen: Seen, x: Tensor) -> Tensor:
    """From Jacobians."""
    columns = seen.frame.mT.expand(len(x), -1, -1)
    return (torch.linalg.solve(net.jacobian(x), columns) * columns).sum((-2, -1))


def _random_trace(
    net: InvertibleResNet, seen: Seen, z: Tensor, x: Tensor, generator: torch.Generator | None
) -> Tensor:
    r"""One estimate without a Jacobian, ⟨M u, v⟩ with signs v and :math:`u = D\varphi^{-*} v`.

    Its derivative would be a second one of the inverse. We use :math:`\mathrm{d}\, \mathrm{tr}(M J^{-1})
    = -\mathrm{tr}(J^{-1} M J^{-1}\, \mathrm{d}J)`, of which :math:`-\langle J^{-*} M u,\, \mathrm{d}J\, v\rangle`
    is an estimate, that is, minus the derivative of :math:`\langle J^* w, v\rangle` for a fixed w.
    """
    v = random_signs(z, generator)
    weighed = seen.weigh(_pull(x, z, v).flatten(1)).reshape(z.shape)
    w = _pull(x, z, weighed)
    turned = torch.autograd.grad(net(x), x, w, create_graph=True)[0]
    slope = (turned * v).flatten(1).sum(-1)
    return (weighed * v).flatten(1).sum(-1) - (slope - slope.detach())


def _pull(x: Tensor, z: Tensor, v: Tensor) -> Tensor:
    """(Dφ⁻¹)* v, without a graph."""
    return torch.autograd.grad(x, z, v, retain_graph=True)[0]
