"""One denoising network for every operator, against exact MAP, as a table: run by `make bench`.

Three seeds, one process: about five minutes. Writes ``book/_generated/one_network.md``, which
chapter 9 shows, beside the networks that `trainings.py` trained for each problem of its own.
"""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

import invbayes as ib
from invbayes.examples import two_blobs

GENERATED = Path(__file__).parents[2] / "book" / "_generated"
PAGE, SPECIALISTS = GENERATED / "one_network.md", GENERATED / "trainings.md"
NINE = {"I": [[1, 0], [0, 1]], "diag(1, ½)": [[1, 0], [0, 0.5]], "diag(1, ⅛)": [[1, 0], [0, 0.125]]}
OTHERS = {
    "(1, 0)": [[1, 0]],
    "(0.6, 0.8)": [[0.6, 0.8]],
    "3 × 2": [[1, 0], [0, 0.5], [0.5, 0.5]],
    "(½, ½; ¼, ¼)": [[0.5, 0.5], [0.25, 0.25]],
    "(0.3, −0.2; 0.1, 0.4)": [[0.3, -0.2], [0.1, 0.4]],
}
NOISE = (0.1, 0.2, 0.5)
LEVEL, STEPS, TESTS, SEEDS = 0.2, 3000, 3000, range(3)


def guesses(samples: Tensor, problem: ib.LinearProblem, y: Tensor) -> Tensor:
    """Where to search: the linear estimate, and six samples."""
    linear = ib.linear_estimate(samples, problem, y)
    return torch.stack([linear, *samples[:6, None].expand(6, *linear.shape)])


def denoiser(prior: ib.GaussianMixture, seed: int) -> ib.InvertibleResNet:
    """Trained once."""
    problem = ib.LinearProblem(torch.eye(2), LEVEL)
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "steps": STEPS, "progress": False}
    return ib.fit(ib.Divergence(problem), prior, problem, **options)[0]


def measure(
    net: ib.InvertibleResNet, prior: ib.GaussianMixture, matrix: Tensor, noise_std: float
) -> dict:
    """Distances to exact MAP, in percent, of the best of seven searches; μ; certified answers."""
    problem = ib.LinearProblem(matrix, noise_std)
    learned = ib.LearnedPosterior(net, problem, trained_at=LEVEL)
    generator = torch.Generator().manual_seed(12345)
    x = prior.sample(TESTS, generator=generator)
    y = problem.observe(x, generator=generator)
    z, samples = problem.normal_data(y), prior.sample(20_000, generator=generator)
    found, exact = (
        learned.mode(z, guesses(samples, problem, y)),
        ib.map_estimate(prior, problem, y, on_tie="first"),
    )
    single = ib.has_single_mode(ib.posterior(prior, problem, y))
    off, size = (found - exact).square().sum(1), exact.square().sum(1)
    mu = learned.monotonicity
    reached = (learned.inverse(z, 1e-6) - found).norm(dim=1).max().item() if mu > 0 else None
    return {
        "mu": mu,
        "single": 100 * single.double().mean().item(),
        "one": 100 * (off[single].sum() / size[single].sum()).sqrt().item(),
        "all": 100 * (off.sum() / size.sum()).sqrt().item(),
        "right": 100 * (off.sqrt() < 0.1).double().mean().item(),
        "reached": reached,
    }


def specialists() -> dict[tuple[str, float], tuple[str, str]]:
    """The two columns of the divergence on two blobs, from the page of `trainings.py`."""
    part = (
        SPECIALISTS.read_text(encoding="utf-8")
        .replace("\N{NO-BREAK SPACE}", " ")
        .split("**Two blobs**")[1]
        .split("**Three blobs**")[0]
    )
    lines = [line for line in part.splitlines() if line.startswith("|")]
    head, _, *rows = (re.split(r"\s*\|\s*", line.strip("| ")) for line in lines)
    chosen = head.index("d: distance to MAP, one mode"), head.index("d: the same over all z")
    return {(row[0], float(row[1])): tuple(row[i] for i in chosen) for row in rows}


def worst(results: list[dict], key: str) -> str:
    """Of the seeds, with two figures."""
    pick = min if key in ("right", "mu") else max
    value = pick(result[key] for result in results)
    return f"{value:.1f}" if key in ("right", "single") else f"{float(f'{value:.2g}'):g}"


def table(names: dict, results: dict, own: dict) -> list[str]:
    """One line for each problem."""
    own_titles = " its own network | the same, all |" if own else ""
    lines = [
        rf"| $A$ | $\delta$ | $\mu$ | one mode | distance | all | close |{own_titles}",
        "|---" * (9 if own else 7) + "|",
    ]
    for name, noise in product(names, NOISE):
        found = results[name, noise]
        entries = [f"{worst(found, key)} %" for key in ("single", "one", "all", "right")]
        if found[0]["single"] == 0:
            entries[1] = "–"
        entries += own.get((name, noise), ())
        lines.append(f"| {name} | {noise:g} | {worst(found, 'mu')} | " + " | ".join(entries) + " |")
    return [*lines, ""]


def main() -> None:
    """Train, measure, write."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    prior = two_blobs()
    nets = [denoiser(prior, seed) for seed in SEEDS]
    results = {}
    for (name, matrix), noise in product((NINE | OTHERS).items(), NOISE):
        operator = torch.tensor(matrix, dtype=torch.float64)
        results[name, noise] = [measure(net, prior, operator, noise) for net in nets]
        print(name, noise, results[name, noise], flush=True)
    made = f"*close*: within 0.1 of MAP. {len(nets)} seeds, {STEPS} steps; {TESTS} test data."
    made += " *Its own network*: one seed, 4000 steps, other test data."
    lines = [*table(NINE, results, specialists()), *table(OTHERS, results, {}), made, ""]
    text = re.sub("(?<=1,) ", "\N{NO-BREAK SPACE}", "\n".join(lines))
    PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
