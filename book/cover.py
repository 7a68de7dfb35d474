"""Draw the book's picture, `_static/cover.png`: run by `make execute`."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from invbayes import (
    Divergence,
    LinearProblem,
    LogDeterminant,
    fit,
    map_estimate,
    posterior_mean,
)
from invbayes.examples import two_blobs
from invbayes.figures import draw_density, draw_net, lattice
from invbayes.training.objectives import Objective

BOX = (-2.7, 2.7, -2.1, 2.1)
Estimator = Callable[[Tensor], Tensor]


def draw_lines(ax: Axes, estimate: Estimator, longest: float) -> None:
    """The images of a square lattice's lines, cut where neighbours part."""
    level = lattice(BOX, rows=22, columns=400)
    upright = lattice(BOX, rows=400, columns=28).transpose(0, 1)
    for lines in (level, upright):
        image = estimate(lines)
        torn = image.diff(dim=1).norm(dim=-1) > longest
        image[:, 1:][torn] = torch.nan
        for line in image:
            ax.plot(*line.T, color="0.15", linestyle="-", linewidth=0.7)


def main() -> None:
    """Deform a lattice by two estimators and two networks, and save all four."""
    plt.style.use("invbayes.book")
    prior = two_blobs()
    problem = LinearProblem(torch.eye(2, dtype=torch.float64), noise_std=0.5)

    def inverse(objective: Objective) -> Estimator:
        generator = torch.Generator().manual_seed(0)
        return fit(objective, prior, problem, generator=generator)[0].inverse

    maps = {
        "posterior mean": partial(posterior_mean, prior, problem),
        "MAP": partial(map_estimate, prior, problem, on_tie="first"),
        "network, log-determinant": inverse(LogDeterminant(problem)),
        "network, divergence": inverse(Divergence(problem)),
    }
    figure, axes = plt.subplots(2, 2, figsize=(5.6, 4.8))
    for ax, (title, estimate) in zip(axes.flat, maps.items(), strict=True):
        draw_density(ax, prior.log_prob, BOX)
        draw_lines(ax, estimate, 0.3 if title == "MAP" else math.inf)
        draw_net(ax, lattice(BOX, rows=2, columns=2), color="0.6", linewidth=1)
        ax.set_aspect("equal")
        ax.margins(0.01)
        ax.set_title(title, fontsize=13)
        ax.set_axis_off()
    path = Path(__file__).parent / "_static" / "cover.png"
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    main()
