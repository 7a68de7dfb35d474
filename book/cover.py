"""Draw the book's picture, `_static/cover.png`: run by `make execute`."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch

from invbayes import LinearProblem, map_estimate, posterior_mean
from invbayes.examples import two_blobs
from invbayes.figures import draw_density, draw_net, lattice


def main() -> None:
    """Deform one lattice by both estimators and save the pair."""
    plt.style.use("invbayes.book")
    prior, box = two_blobs(), (-2.7, 2.7, -2.1, 2.1)
    problem = LinearProblem(torch.eye(2, dtype=torch.float64), noise_std=0.5)
    nodes = lattice(box, rows=22, columns=28)
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4))
    pairs = [(posterior_mean, "posterior mean"), (map_estimate, "MAP")]
    for ax, (estimate, title) in zip(axes, pairs, strict=True):
        draw_density(ax, prior.log_prob, box)
        draw_net(ax, estimate(prior, problem, nodes), color="0.15")
        ax.set(title=title, aspect="equal", xlim=(-2.3, 2.3), ylim=(-1.9, 1.9))
        ax.set_axis_off()
    figure.savefig(
        Path(__file__).parent / "_static" / "cover.png", metadata={"Software": None}
    )


if __name__ == "__main__":
    main()
