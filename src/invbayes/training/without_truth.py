"""A training that never sees the unknowns, by Stein's unbiased risk."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from invbayes._checks import check_count, check_instance, check_positive
from invbayes.bayes.problems import LinearProblem
from invbayes.networks.covariance import check_injective
from invbayes.networks.iresnet import InvertibleResNet
from invbayes.networks.stein import Seen, risk_terms
from invbayes.training.metrics import check_metric
from invbayes.training.objectives import check_samples


@dataclass(frozen=True, eq=False)
class UnbiasedRisk:
    r"""The mean squared error of the inverse, from noisy data alone,

    .. math:: \min_\varphi\; \mathbb{E}\big[\tfrac12 \|\varphi^{-1}(z) - A^+ y\|_M^2 + \delta^2\, \mathrm{tr}\, M D\varphi^{-1}(z)\big]
        - \tfrac12 \delta^2\, \mathrm{tr}\, M (A^*\!A)^{-1} \qquad\Rightarrow\qquad \varphi^{-1} = x_{\mathrm{PM}},

    whatever the metric M. Its expectation is the loss of `Reconstruction` in the same metric; no
    unknown is looked at. It needs the noise level, and many data: on a small data set, seen again
    and again, it is too optimistic.

    Args:
        problem: the measurement; its operator must be injective.
        tol: the largest error of the inverse, in the units of x; by default 1e-4 in double precision,
            and in single what it can reach for the batch, as in `InvertibleResNet.inverse`.
        metric: M, as in `Reconstruction`.
        probes: the number of random vectors for the trace; None computes it from Jacobians, which
            have d² entries a sample.
        generator: the source of the random vectors: that of the training, so that a training
            that goes on from a checkpoint goes on with them.

    Call:
        ``objective(net, x, z)`` for normal data z ``(n, *shape)`` gives the loss; of x only the
        shape matters, so pass z twice, as in ``fixed_samples(z, z)``.

    Raises:
        ValueError: for an operator with a kernel, a tolerance that is not above zero, a metric that does not
            fit or is not symmetric positive definite, or no probe.
        NotConverged: as `InvertibleResNet.inverse` does.

    Source: Stein 1981 and Eldar 2009 for the risk; Raphan and Simoncelli 2011, Metzler et al. 2018
    and Soltanayev and Chun 2018 for trainings with it.

    Example:
        >>> import torch
        >>> from invbayes import unbiased_risk
        >>> net, problem = InvertibleResNet.dense(2), LinearProblem(torch.eye(2), noise_std=0.1)
        >>> z = torch.ones(5, 2)
        >>> loss = UnbiasedRisk(problem)(net, z, z)
        >>> torch.allclose(2 * loss, unbiased_risk(net, problem, z).mean(), atol=1e-3)
        True
    """

    problem: LinearProblem
    tol: float | None = field(default=None, kw_only=True)
    metric: Tensor | None = field(default=None, kw_only=True)
    probes: int | None = field(default=None, kw_only=True)
    generator: torch.Generator | None = field(default=None, kw_only=True)
    _seen: Seen = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_instance("problem", self.problem, LinearProblem)
        if self.tol is not None:
            check_positive("tol", self.tol)
        if self.probes is not None:
            check_count("probes", self.probes)
        check_injective(self.problem)
        if self.metric is not None:
            check_metric("metric", self.metric, self.problem)
        object.__setattr__(self, "_seen", Seen.of(self.problem, self.metric))

    def __call__(self, net: InvertibleResNet, x: Tensor, z: Tensor) -> Tensor:
        """The loss of a batch, a number."""
        check_samples(x, z)
        tol = 1e-4 if self.tol is None and z.dtype == torch.float64 else self.tol
        terms = risk_terms(net, self._seen, z, tol, self.probes, self.generator)
        misfit, trace = (term.mean() for term in terms)
        return misfit / 2 + self.problem.noise_std**2 * (trace - self._seen.naive / 2)
