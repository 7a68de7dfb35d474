"""What one step of each training costs, against the dimension: run by `make bench`.

One thread, processor time, the package's default network and single precision. Writes the table
that chapter 5 includes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from invbayes import (
    Approximation,
    Divergence,
    GaussianMixture,
    InvertibleResNet,
    LinearProblem,
    LogDeterminant,
    Reconstruction,
    fresh_samples,
    train,
)

PAGE = Path(__file__).parents[2] / "book" / "_generated" / "training_costs.md"
DIMENSIONS = (2, 16, 64, 256)
adam = partial(torch.optim.Adam, lr=1e-2)
BATCH, TRAINED, REPEATS = 64, 5, 3


def milliseconds(make: Callable[[LinearProblem], Callable[..., Tensor]], dim: int) -> float:
    """The median processor time of a loss and its gradient, for a network trained a little."""
    generator = torch.Generator().manual_seed(0)
    operator = torch.diag(torch.linspace(1.0, 0.5, dim))
    problem = LinearProblem(operator, noise_std=0.2)
    prior = GaussianMixture(
        torch.tensor([0.5, 0.5]),
        torch.stack([-torch.ones(dim), torch.ones(dim)]) / dim**0.5,
        0.3 * torch.eye(dim).expand(2, dim, dim),
    )
    net = InvertibleResNet.dense(dim, generator=generator)
    sampler, objective = fresh_samples(prior, problem), make(problem)
    options = {"steps": TRAINED, "batch": BATCH, "progress": False, "optimizer": adam}
    train(net, objective, sampler, generator=generator, **options)
    x, z = sampler(BATCH, generator)
    times = []
    for _ in range(REPEATS + 1):
        net.zero_grad()
        start = time.process_time()
        objective(net, x, z).backward()
        times.append(time.process_time() - start)
    return 1e3 * statistics.median(times[1:])


def main() -> None:
    """Measure, print and write the page."""
    torch.set_num_threads(1)
    trainings = {
        "approximation": Approximation,
        "divergence": Divergence,
        "log-determinant": LogDeterminant,
        "reconstruction": lambda _: Reconstruction(),
    }
    times = {name: [] for name in trainings}
    for dim in DIMENSIONS:
        for name, make in trainings.items():
            times[name].append(milliseconds(make, dim))
            print(f"d = {dim}, {name}: {times[name][-1]:.1f} ms", flush=True)
    plain = times["approximation"]
    lines = [
        "| $d$ | approximation, ms | divergence | log-determinant | reconstruction |",
        "|---|---|---|---|---|",
    ]
    for i, dim in enumerate(DIMENSIONS):
        ratios = [times[name][i] / plain[i] for name in list(trainings)[1:]]
        lines.append(f"| {dim} | {plain[i]:.1f} | " + " | ".join(f"{r:.2g}" for r in ratios) + " |")
    page = "\n".join(lines) + "\n"
    PAGE.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
