"""Draw the front page's curves, `_static/fold.png`: run by `make execute`."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

from invbayes import HeatStep, LinearProblem, ideal_forward_map
from invbayes.examples import two_peaks

ONE = torch.ones(1, 1, dtype=torch.float64)
PROBLEM = LinearProblem(ONE, noise_std=0.7)
PRIOR = two_peaks(separation=1.0, width=0.6, dtype=torch.float64)


def maps(line: Tensor) -> dict[str, Tensor]:
    """On the line: the map that MAP inverts, and the two trainings' best maps."""
    line = line[:, None]
    folded = ideal_forward_map(PRIOR, PROBLEM, line)[:, 0]
    density = PRIOR.log_prob(line).exp()
    level = isotonic_regression(folded.numpy(), weights=density.numpy()).x
    return {
        "$x$: no second term": line[:, 0],
        r"$\varphi_*$, which MAP inverts": folded,
        "best with the divergence": torch.from_numpy(level),
        "best with the log-determinant": HeatStep(PROBLEM, PRIOR, cells=800)(line)[
            :, 0
        ],
    }


def main() -> None:
    """Draw and save them."""
    plt.style.use("invbayes.book")
    line = torch.linspace(-2.4, 2.4, 2401, dtype=torch.float64)
    figure, ax = plt.subplots(figsize=(5.0, 3.9))
    density = PRIOR.log_prob(line[:, None]).exp()
    ax.fill_between(line, 2.4 * density - 3.4, -3.4, color="0.87")
    styles = [("k:", 1), ("C1--", 1.5), ("C0-", 3), ("C2-.", 1.5)]
    for (label, values), (style, width) in zip(
        maps(line).items(), styles, strict=True
    ):
        ax.plot(line, values, style, linewidth=width, alpha=0.8, label=label)
    ax.set(xlabel="$x$", ylabel=r"$\varphi(x)$", xlim=(-2.4, 2.4), ylim=(-3.4, 3.4))
    ax.legend(loc="upper left", fontsize="small")
    path = Path(__file__).parent / "_static" / "fold.png"
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    main()
