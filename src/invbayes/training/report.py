"""Did it work? What can be told without knowing the posterior."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from invbayes._checks import check_callable, check_instance, check_points
from invbayes.bayes.estimators import linear_estimate
from invbayes.bayes.problems import LinearProblem
from invbayes.networks.iresnet import InvertibleResNet
from invbayes.training.objectives import Objective, plain_loss


class Measured(NamedTuple):
    """A number, such as a root mean square error for each entry, and its standard error."""

    value: float
    error: float

    @classmethod
    def of(cls, difference: Tensor) -> Measured:
        """From differences ``(n, *shape)`` of independent points."""
        square = _squares(difference)
        mean = square.mean().item()
        scatter = square.std().item() / len(square) ** 0.5 if len(square) > 1 else float("inf")
        return cls(mean**0.5, scatter / (2 * mean**0.5) if mean else 0.0)

    @classmethod
    def gain(cls, difference: Tensor, rival: Tensor) -> Measured:
        """By which share a mean square is lower than a rival's at the same points."""
        square, other = _squares(difference), _squares(rival)
        ratio = (square.mean() / other.mean()).item()
        scatter = (square - ratio * other).std().item() / len(square) ** 0.5
        return cls(1 - ratio, scatter / other.mean().item())


def _squares(difference: Tensor) -> Tensor:
    """The mean square of each point's entries."""
    return difference.flatten(1).square().mean(1)


class Report(NamedTuple):
    """A network on samples that it has not seen, beside two estimates that need no network.

    Attributes:
        loss: the objective's loss.
        forward: root mean square error of φ(x) against E[z | x].
        backward: of :math:`\\varphi^{-1}(z)` against x.
        linear: of the best linear estimate, `linear_estimate`, against x.
        mean: of the samples' mean against x.
        gain: the share by which the inverse network's mean squared error is below the linear
            estimate's. Both see the same data, so its standard error is that of a ratio of
            pairs, smaller than those of the two errors suggest.
    """

    loss: float
    forward: Measured
    backward: Measured
    linear: Measured
    mean: Measured
    gain: Measured

    def __str__(self) -> str:
        lines = [f"{'held-out loss':<28}{self.loss:10.4g}"]
        names = {
            "forward map against E[z | x]": self.forward,
            "inverse network against x": self.backward,
            "best linear estimate": self.linear,
            "mean of the samples": self.mean,
        }
        lines += [f"{name:<28}{m.value:10.4g} ± {m.error:.2g}" for name, m in names.items()]
        share, error = (100 * part for part in self.gain)
        lines.append(f"{'squared error below linear':<28}{share:9.1f}% ± {error:.1f}%")
        return "\n".join(lines)


@torch.no_grad()
def report(
    net: InvertibleResNet,
    objective: Objective,
    problem: LinearProblem,
    x: Tensor,
    *,
    samples: Tensor,
    tol: float | None = None,
    generator: torch.Generator | None = None,
) -> Report:
    r"""Forward and backward error on held-out samples, beside the best linear estimate,

    .. math:: \sqrt{\mathbb{E}\, \|\varphi^{-1}(z) - x\|^2 / d}, \qquad
        \sqrt{\mathbb{E}\, \|\varphi(x) - \mathbb{E}[z \mid x]\|^2 / d} .

    A network that does not beat the linear estimate has learnt nothing that a matrix does not
    know; the report's ``gain`` says whether it does. The forward error is no failure in itself: a
    regularized map is meant to differ from A*A.

    Args:
        net: φ.
        objective: whose loss is to be told.
        problem: the measurement.
        x: held-out samples, shape ``(n, *shape)``, n > 1.
        samples: those of the training, for the linear estimate and the mean.
        tol: as in `InvertibleResNet.inverse`.
        generator: the source of the noise.

    Raises:
        ValueError: for samples that do not fit the problem.
        NotConverged: as `InvertibleResNet.inverse` does.

    Example:
        >>> import torch
        >>> from invbayes import Approximation
        >>> generator = torch.Generator().manual_seed(0)
        >>> problem = LinearProblem(torch.eye(2), noise_std=0.1)
        >>> x = torch.randn(100, 2, generator=generator)
        >>> net = InvertibleResNet.dense(2, generator=generator)
        >>> found = report(net, Approximation(problem), problem, x[:50], samples=x[50:])
        >>> found.linear.value < 0.2 < found.mean.value, found.gain.value < 0
        (True, True)
    """
    check_instance("net", net, InvertibleResNet)
    check_callable("objective", objective)
    check_instance("problem", problem, LinearProblem)
    for name, value in {"x": x, "samples": samples}.items():
        check_points(name, value, problem.shape, like=problem.like)
        if value.ndim != 1 + len(problem.shape) or len(value) < 2:
            raise ValueError(f"{name} must hold at least two points, got {tuple(value.shape)}")
    y = problem.observe(x, generator=generator)
    z = problem.normal_data(y)
    backward, linear = net.inverse(z, tol) - x, linear_estimate(samples, problem, y) - x
    return Report(
        plain_loss(objective, net, x, z).item(),
        Measured.of(net(x) - problem.mean_normal_data(x)),
        Measured.of(backward),
        Measured.of(linear),
        Measured.of(samples.mean(0) - x),
        Measured.gain(backward, linear),
    )
