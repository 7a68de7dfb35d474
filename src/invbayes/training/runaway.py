"""A data set has no density: how a training shows it."""

from __future__ import annotations

import torch
from torch import Tensor

from invbayes.bayes.inverse_problem import InverseProblem
from invbayes.bayes.problems import LinearProblem, largest_gain
from invbayes.networks.iresnet import InvertibleResNet

_REMEDY = "add a jitter (fresh_noise), project on principal components, or stop on held-out samples"


def runaway(
    net: InvertibleResNet, problem: InverseProblem, strength: float, x: Tensor
) -> str | None:
    r"""What speaks against the samples' having a density, which the regularizers need; or None.

    For structure of size τ the minimiser has slopes of size ‖A*A‖ + δ̂²/τ². So the scale c
    tells what the network takes for structure; on a data set without a density it grows
    without end, and with it the loss falls. (Only a linear problem tells how large c may be.)
    """
    centred = x - x.mean(0)
    points = centred.flatten(1)
    spread = points.square().mean().sqrt()
    if len(x) > 2 * points.shape[1]:
        thinnest = torch.linalg.svdvals(points)[-1] / len(x) ** 0.5
        if thinnest < 0.01 * spread:
            return (
                f"the samples hardly vary in some direction (standard deviation {thinnest:.2g}, "
                f"in others {spread:.2g}; constant entries?): they have no density there, and "
                f"the loss may fall without end; {_REMEDY}"
            )
    if not isinstance(problem, LinearProblem):
        return None
    excess = (net.scale - largest_gain(problem, centred, steps=10)).clamp(
        min=torch.finfo(x.dtype).tiny
    )
    size = (strength / excess).sqrt()
    if size < 0.05 * spread:
        return (
            f"the scale c = {net.scale:.3g} runs away: it fits structure of size {size:.2g} in "
            f"samples that spread by {spread:.2g}. A data set has no density; {_REMEDY}"
        )
    return None
