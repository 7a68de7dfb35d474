"""Draw the front page's curves, `_static/fold.png`: run by `make execute`."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from scipy.optimize import isotonic_regression

from invbayes import HeatStep, LinearProblem, ideal_forward_map
from invbayes.examples import two_peaks


def main() -> None:
    """On the line: the map that MAP inverts, and the two trainings' best maps."""
    plt.style.use("invbayes.book")
    torch.set_default_dtype(torch.float64)
    prior = two_peaks(separation=1.0, width=0.6)
    problem = LinearProblem(torch.eye(1), noise_std=0.7)
    line = torch.linspace(-2.4, 2.4, 2401)[:, None]
    density = prior.log_prob(line).exp()
    folded = ideal_forward_map(prior, problem, line)[:, 0]
    curves = {
        "$x$: no second term": (line, "k:", 1),
        r"$\varphi_*$, which MAP inverts": (folded, "C1--", 1.5),
        "best with the divergence": (
            isotonic_regression(folded.numpy(), weights=density.numpy()).x,
            "C0-",
            3,
        ),
        "best with the log-determinant": (
            HeatStep(problem, prior, cells=800)(line),
            "C2-.",
            1.5,
        ),
    }
    figure, ax = plt.subplots(figsize=(5.0, 3.9))
    ax.fill_between(line[:, 0], 2.4 * density - 3.4, -3.4, color="0.87")
    for label, (values, style, width) in curves.items():
        ax.plot(line, values, style, linewidth=width, alpha=0.8, label=label)
    ax.set(xlabel="$x$", ylabel=r"$\varphi(x)$", xlim=(-2.4, 2.4), ylim=(-3.4, 3.4))
    ax.legend(loc="upper left", fontsize="small")
    path = Path(__file__).parent / "_static" / "fold.png"
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    main()
