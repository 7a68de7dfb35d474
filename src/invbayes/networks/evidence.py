"""The density of the data, up to a constant, from a network trained for the posterior mean."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from invbayes._checks import check_count, check_instance, check_points
from invbayes.bayes.problems import LinearProblem
from invbayes.networks.covariance import check_bars
from invbayes.networks.iresnet import InvertibleResNet
from invbayes.networks.precision import in_full_precision


def line_integral(net: InvertibleResNet, start: Tensor, end: Tensor, *, nodes: int = 24) -> Tensor:
    r"""The integral of φ along a segment, by Gauss's rule, or exactly for one `Ridge` block,

    .. math:: \int_0^1 \langle \varphi(x_0 + t\,(x_1 - x_0)),\, x_1 - x_0 \rangle\, \mathrm{d}t .

    If φ is a gradient it is the difference of the potential; else it depends on the path.

    Args:
        net: φ.
        start, end: x₀ and x₁, shapes ``(*, *shape)`` that broadcast.
        nodes: of the rule; where φ bends sharply, compare with twice as many.

    Returns:
        Values, shape ``(*,)``.

    Raises:
        ValueError: for points that do not fit, or no node.

    Example:
        >>> import torch
        >>> net = InvertibleResNet.dense(1)
        >>> gained = line_integral(net, torch.zeros(1), torch.ones(3, 1))
        >>> bool((gained > net(torch.zeros(1, 1)).item()).all()), gained.shape  # φ rises
        (True, torch.Size([3]))
    """
    check_instance("net", net, InvertibleResNet)
    check_count("nodes", nodes)
    check_points("start", start, net.shape, like=net.log_scale)
    check_points("end", end, net.shape, like=net.log_scale)
    step = end - start
    mean = _mean_of(net, start, end, nodes)
    return (mean * step).flatten(step.ndim - len(net.shape)).sum(-1)


@in_full_precision
def _mean_of(net: InvertibleResNet, start: Tensor, end: Tensor, nodes: int) -> Tensor:
    """The mean of φ on a segment. A difference of potentials would drown in rounding if it is short."""
    g = net.blocks[0].prepared() if len(net.blocks) == 1 and net.blocks[0].is_gradient else None
    if not hasattr(g, "mean_between"):
        return mean_along(net, start, end - start, nodes)
    start, end = torch.broadcast_tensors(start, end)
    size = start.shape[start.ndim - len(net.shape) :]
    mean = g.mean_between(start.reshape(-1, *size), end.reshape(-1, *size))
    return net.scale * ((start + end) / 2 - net.lipschitz * mean.reshape(start.shape))


def mean_along(
    field: Callable[[Tensor], Tensor], start: Tensor, step: Tensor, nodes: int
) -> Tensor:
    r"""The mean of a field on a segment, :math:`\int_0^1 F(x_0 + t\,v)\, \mathrm{d}t`, by Gauss's rule."""
    rule = np.polynomial.legendre.leggauss(nodes)
    places, weights = (torch.from_numpy(numbers).to(step) / 2 for numbers in rule)
    pairs = zip(places, weights, strict=True)
    return sum(w * field(start + (t + 0.5) * step) for t, w in pairs)


@torch.no_grad()
def log_evidence(
    net: InvertibleResNet,
    problem: LinearProblem,
    y: Tensor,
    *,
    origin: Tensor,
    nodes: int = 24,
    tol: float | None = None,
) -> Tensor:
    r"""The logarithm of the density of the data, up to a constant that is the same for all y,

    .. math:: \log p_Y(y) = \frac{1}{\delta^2} \Big( \langle z, \hat x \rangle - \tfrac12 \|y\|^2
        - \int_0^1 \langle \varphi(x_0 + t\,(\hat x - x_0)),\, \hat x - x_0 \rangle\, \mathrm{d}t \Big) + \text{const},

    with :math:`\hat x = \varphi^{-1}(z)`, if :math:`\varphi^{-1}` is the posterior mean.

    Args:
        net: φ, trained for the posterior mean, as by `Reconstruction`.
        problem: the measurement; its operator must be injective.
        y: data, shape ``(*, *data_shape)``.
        origin: x₀, shape ``(*shape)``: any point amid the samples. The constant depends on it.
        nodes: as in `line_integral`.
        tol: of the inverse, as in `InvertibleResNet.inverse`.

    Returns:
        Values, shape ``(*,)``. Their differences are log-ratios of densities.

    Raises:
        ValueError: for points that do not fit, or an operator with a kernel.
        NotConverged: as `InvertibleResNet.inverse` does.

    Source: chapter 8 of the book.

    Example:
        >>> import torch
        >>> net, problem = InvertibleResNet.dense(2), LinearProblem(torch.eye(2), noise_std=0.1)
        >>> log_evidence(net, problem, torch.ones(5, 2), origin=torch.zeros(2)).shape
        torch.Size([5])
    """
    check_instance("problem", problem, LinearProblem)
    check_points("y", y, problem.data_shape, like=problem.like)
    z = problem.normal_data(y)
    check_bars(net, problem, z)
    found = net.inverse(z, tol)
    tilt = (z * found).flatten(z.ndim - len(problem.shape)).sum(-1)
    size = problem.whiten(y).square().flatten(y.ndim - len(problem.data_shape)).sum(-1)
    work = line_integral(net, origin, found, nodes=nodes)
    return (tilt - size / 2 - work) / problem.noise_std**2
