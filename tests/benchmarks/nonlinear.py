"""The trainings on nonlinear problems against exact estimators, as a table: run by `make bench`.

Three seeds, each the better of two starts, one process: about an hour. Writes
``book/_generated/nonlinear.md``, which chapter 11 shows.
"""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import invbayes as ib
from invbayes.bayes.operators import Map
from invbayes.examples import two_layers
from invbayes.networks.descent import descend, newton

GENERATED = Path(__file__).parents[2] / "book" / "_generated"
PAGE = GENERATED / "nonlinear.md"
BOX, DATA, STEPS, SEEDS, STARTS = (-4.5, 4.5, -4.5, 4.5), 1000, 4800, range(3), 2
MIX = torch.tensor([[1.0, 0.4], [0.4, 1.0]], dtype=torch.float64)
EXPOSURE = 8.0


class Start(NamedTuple):
    """A trained network and its loss on samples that it has not seen."""

    loss: float
    net: ib.InvertibleResNet


def distance(found: Tensor, wanted: Tensor) -> float:
    """In percent of the wanted points' size."""
    return 100 * ((found - wanted).norm() / wanted.norm()).item()


def trained(objective, prior, problem, seed: int, **options) -> ib.InvertibleResNet:
    """A network of default size."""
    options = {"steps": STEPS, "progress": False} | options
    generator = torch.Generator().manual_seed(seed)
    return ib.fit(objective, prior, problem, generator=generator, **options)[0]


def starts(objective, prior, problem) -> list[Start]:
    """All networks of a training, each with its loss on fresh samples."""
    x, z = fresh(prior, problem)
    found = []
    for seed in range(STARTS * len(SEEDS)):
        net = trained(objective, prior, problem, seed)
        with torch.no_grad():
            found.append(Start(objective(net, x, z).item(), net))
    print("losses", [start.loss for start in found], flush=True)
    return found


def better(found: list[Start]) -> list[ib.InvertibleResNet]:
    """For each seed that of its starts with the least loss: no exact answer is looked at."""
    groups = (found[STARTS * seed : STARTS * (seed + 1)] for seed in SEEDS)
    return [min(group, key=attrgetter("loss")).net for group in groups]


def fresh(prior, problem) -> tuple[Tensor, Tensor]:
    """Samples and normal data that no training has seen."""
    generator = torch.Generator().manual_seed(7)
    x = prior.sample(20_000, generator=generator)
    return x, problem.normal_data(problem.observe(x, generator=generator))


def gaussian(dim: int, std: float) -> ib.GaussianMixture:
    """The prior N(0, σ² I)."""
    return ib.GaussianMixture.gaussian(torch.zeros(dim), std**2 * torch.eye(dim))


def data(prior, problem, count: int) -> tuple[Tensor, Tensor]:
    """Unknowns and observations, the same in every run."""
    generator = torch.Generator().manual_seed(12345)
    x = prior.sample(count, generator=generator)
    return x, problem.observe(x, generator=generator)


def span(rows: list[list[float]]) -> list[str]:
    """Of each column, the seeds' smallest and largest value in percent."""
    ends = [torch.tensor(rows).amin(0).tolist(), torch.tensor(rows).amax(0).tolist()]
    return [ranged(*pair) for pair in zip(*ends, strict=True)]


def ranged(low: float, high: float) -> str:
    """From … to … percent, with two figures or no decimals; one number where they agree."""
    shown = [f"{v:.0f}" if v >= 10 else f"{v:.2g}" for v in (low, high)]
    return "–".join(dict.fromkeys(shown)) + " %"


def undone(forward: Map, z: Tensor, start: Tensor) -> Tensor:
    """The x with forward(x) = z, by Newton's method."""

    def field(x: Tensor, rows: Tensor) -> Tensor:
        return forward(x) - z[rows]

    def both(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        slopes = torch.func.jacrev(lambda p: forward(p).sum(0))(x).movedim(0, 1)
        return field(x, rows), slopes

    return descend(field, newton(both), start, longest=0.5, tol=1e-9, max_steps=300)


def plain_limit(prior, problem, z: Tensor, start: Tensor) -> Tensor:
    """The exact inverse of what the plain divergence aims at."""

    def goal(points: Tensor) -> Tensor:
        return problem.mean_normal_data(points) - problem.noise_std**2 * prior.score(points)

    return undone(goal, z, start)


def trainings(problem, prior) -> dict:
    """All that chapter 11 speaks of."""
    metric = ib.posterior_metric(problem, prior.covariance)
    first = ib.WeightedDivergence(problem, metric=metric, volume=False)
    return {
        "approximation": ib.Approximation(problem),
        "reconstruction": ib.Reconstruction(),
        "log-determinant, in $M$": ib.LogDeterminant(problem, metric=metric),
        "divergence": ib.Divergence(problem),
        "first part alone, in $M$": first,
        "weighted divergence, $M = I$": ib.WeightedDivergence(problem),
        "weighted divergence, in $M$": ib.WeightedDivergence(problem, metric=metric),
    }


def two_layer_table(logarithmic: bool) -> tuple[list[str], list[str]]:
    """Trainings against the two MAPs, the mean and the plain limit; the starts of the last one."""
    prior, problem = gaussian(2, 0.6), two_layers(logarithmic=logarithmic)
    x, y = data(prior, problem, DATA)
    z = problem.normal_data(y)
    exact = ib.plane_posterior(prior.log_prob, problem, y, box=BOX, nodes=301)

    def relative(points: Tensor) -> Tensor:
        volume = torch.linalg.slogdet(problem.jacobian(points)).logabsdet
        return prior.log_prob(points) - volume

    image = ib.plane_posterior(relative, problem, y, box=BOX, nodes=301).mode
    limit = plain_limit(prior, problem, z, exact.mode)
    bayes = (exact.mean - x).square().sum()
    lines = ["| training | to MAP | to MAP of $F(x)$ | to the mean | to the plain limit | ratio |"]
    lines.append("|---" * 6 + "|")
    for name, objective in trainings(problem, prior).items():
        found = starts(objective, prior, problem)
        nets = better(found)
        answers = [net.inverse(z) for net in nets]
        wanted = (exact.mode, image, exact.mean, limit)
        rows = [[distance(answer, w) for w in wanted] for answer in answers]
        worst = max(((answer - x).square().sum() / bayes).item() for answer in answers)
        print(name, rows, worst, flush=True)
        lines.append(f"| {name} | {' | '.join(span(rows))} | {worst:.3f} |")
    own = [distance(w, exact.mode) for w in (exact.mode, image, exact.mean, limit)]
    lines.append(f"| MAP itself | {' | '.join(ranged(d, d) for d in own)} | |")
    rows = [bars(net, problem, prior, y, exact) for net in nets]
    print("bars", rows, flush=True)
    told = "Error bars of the last networks: to Laplace's at exact MAP {}, to the true deviations "
    told += "{}, relative asymmetry {}; Laplace's bars to the true deviations {}."
    return [*lines, "", told.format(*span(rows)), ""], minima_table(found, z, exact.mode)


def bars(net, problem, prior, y, exact) -> list[float]:
    """In percent: the network's deviations against Laplace's and the true ones; asymmetry."""
    found = ib.posterior_covariance(net, problem, problem.normal_data(y))

    def slope(points: Tensor) -> Tensor:
        energy = prior.log_prob, problem.log_likelihood
        return -torch.func.grad(lambda p: (energy[0](p) + energy[1](p, y)).sum())(points)

    hessian = torch.func.jacrev(lambda p: slope(p).sum(0))(exact.mode).movedim(0, 1)
    three = (found.covariance, torch.linalg.inv(hessian), exact.covariance)
    own, laplace, true = (c.diagonal(dim1=1, dim2=2).sqrt() for c in three)
    uneven = found.asymmetry / torch.linalg.matrix_norm(found.covariance)
    parts = (own / laplace - 1, own / true - 1, uneven, laplace / true - 1)
    return [100 * part.abs().mean().item() for part in parts]


def minima_table(found: list[Start], z: Tensor, top: Tensor) -> list[str]:
    """Does the loss on fresh samples rank the starts?"""
    rows = sorted((loss, distance(net.inverse(z), top)) for loss, net in found)
    print("minima", rows, flush=True)
    lines = ["| loss on fresh samples, above the least | to MAP |", "|---|---|"]
    lines += [f"| {1e4 * (loss - rows[0][0]):.1f} · 10⁻⁴ | {off:.1f} % |" for loss, off in rows]
    return [*lines, ""]


def count_table() -> list[str]:
    """One map, two noises: both divergences on both."""
    prior, counts = gaussian(2, 0.6), ib.PoissonProblem(MIX, EXPOSURE)
    seen = ib.NonlinearProblem(counts.apply, counts.noise_std, reference=torch.zeros(2))
    metric, pair = ib.posterior_metric(counts, prior.covariance), (counts, seen)
    normal, modes = [], []
    for problem in pair:
        _, y = data(prior, problem, DATA)
        normal.append(problem.normal_data(y))
        modes.append(ib.plane_posterior(prior.log_prob, problem, y, box=BOX, nodes=301).mode)
    lines = ["| training | to MAP, counts | to MAP, Gaussian noise |", "|---|---|---|"]
    for name, problem in zip(("divergence", "weighted divergence"), pair, strict=True):
        objective = ib.WeightedDivergence(problem, metric=metric)
        nets = better(starts(objective, prior, problem))
        rows = [
            [distance(net.inverse(z), top) for z, top in zip(normal, modes, strict=True)]
            for net in nets
        ]
        print(name, rows, flush=True)
        lines.append(f"| {name} | {' | '.join(span(rows))} |")
    return [*lines, ""]


def main() -> None:
    """Train, measure, write."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    table, minima = two_layer_table(False)
    lines = ["**Temperatures**", "", *table]
    lines += ["**The six starts of the weighted divergence, in $M$**", "", *minima]
    lines += ["**Logarithms of temperatures**", "", *two_layer_table(True)[0]]
    lines += ["**One map, two noises**", "", *count_table()]
    write(PAGE, lines)


def write(page: Path, lines: list[str]) -> None:
    """Percent signs stay with their numbers."""
    page.write_text("\n".join(lines), encoding="utf-8")
    print(page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
