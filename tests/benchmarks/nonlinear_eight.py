"""A nonlinear problem with eight unknowns, as a table: run by `make bench`.

Three seeds, one process: about ten minutes. Writes ``book/_generated/nonlinear_eight.md``, which
chapter 11 shows.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

import invbayes as ib
from invbayes.networks.descent import descend, newton
from tests.benchmarks.nonlinear import (
    DATA,
    GENERATED,
    SEEDS,
    data,
    distance,
    gaussian,
    plain_limit,
    ranged,
    span,
    trained,
    write,
)

BOUNDS = (0.97, 0.99, 0.999)


def eight_pieces() -> ib.NonlinearProblem:
    """A rod of eight pieces, cold at one end, heat flow known; eight temperatures, δ = 0.1.

    x is white: the log-conductivities are L x, with deviation ½ and correlations e^{-|i-j|/3}.
    """
    place, edges = torch.arange(8), torch.linspace(0, 1, 9)
    root = torch.linalg.cholesky(0.25 * (-(place[:, None] - place).abs() / 3).exp())
    flow = torch.ones(8, 8).tril() * (2 * edges - edges**2).diff()

    def temperatures(x: Tensor) -> Tensor:
        return (-x @ root.T).exp() @ flow.T

    return ib.NonlinearProblem(temperatures, 0.1, reference=torch.zeros(8))


def highest(problem, prior, y: Tensor, starts: list[Tensor]) -> Tensor:
    """The best mode that Newton's method finds from the starts."""

    def energy(points: Tensor, rows: Tensor) -> Tensor:
        return -(prior.log_prob(points) + problem.log_likelihood(points, y[rows]))

    def field(points: Tensor, rows: Tensor) -> Tensor:
        return torch.func.grad(lambda p: energy(p, rows).sum())(points) / 100

    def both(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        bends = torch.func.jacrev(lambda p: field(p, rows).sum(0))(points)
        return field(points, rows), bends.movedim(0, 1)

    options = {"longest": 1.0, "tol": 1e-9, "max_steps": 300}
    found = torch.stack([descend(field, newton(both), start, **options) for start in starts])
    rows = torch.arange(len(y))
    return found[torch.stack([energy(points, rows) for points in found]).argmin(0), rows]


def means(problem, prior, y: Tensor, top: Tensor) -> Tensor:
    """Posterior means by importance sampling from Student's t about each mode, six degrees."""
    generator, found = torch.Generator().manual_seed(2), []
    for data_point, mode in zip(y, top, strict=True):

        def energy(points: Tensor, seen: Tensor = data_point) -> Tensor:
            return -(prior.log_prob(points) + problem.log_likelihood(points, seen))

        root = 1.2 * torch.linalg.cholesky(torch.linalg.inv(torch.func.hessian(energy)(mode)))
        normal = torch.randn(6000, problem.dim + 6, generator=generator)
        steps = normal[:, :-6] / normal[:, -6:].square().mean(1, keepdim=True).sqrt()
        points = mode + steps @ root.mT
        tilt = (6 + problem.dim) / 2 * torch.log1p(steps.square().sum(1) / 6)
        weights = (tilt - energy(points)).softmax(0)
        found.append(weights @ points)
    return torch.stack(found)


def out_of_reach(prior, problem, x: Tensor) -> str:
    """The share of points where no block with a bound has the goal's Jacobian; best scale."""
    goal = torch.func.jacrev(lambda p: ib.ideal_forward_map(prior, problem, p).sum(0))
    slopes, eye, found = goal(x).movedim(0, 1), torch.eye(problem.dim), []
    norms = [torch.linalg.matrix_norm(eye - slopes / c, 2) for c in torch.logspace(-2, 1, 91)]
    for bound in BOUNDS:
        found.append(f"{100 * min((n > bound).double().mean().item() for n in norms):.0f} %")
    values = torch.linalg.svdvals(slopes)
    print("singular values", values[:, -1].median(), values.min(), values.max())
    least = torch.linalg.eigvalsh((slopes + slopes.mT) / 2)[:, 0]
    print("not monotone, folded", (least <= 0).double().mean(), (slopes.det() < 0).double().mean())
    return " | ".join(found)


def eight_table() -> list[str]:
    """Three bounds L, three trainings: distances to MAP."""
    prior, problem = gaussian(8, 1.0), eight_pieces()
    x, y = data(prior, problem, DATA // 2)
    z, metric = problem.normal_data(y), ib.posterior_metric(problem, prior.covariance)
    top = highest(problem, prior, y, [x, 0 * x, x.roll(1, 0)])
    objectives = {
        "weighted divergence, in $M$": ib.WeightedDivergence(problem, metric=metric),
        "divergence": ib.Divergence(problem),
        "reconstruction": ib.Reconstruction(),
    }
    centre, found = means(problem, prior, y, top), {}
    for (name, objective), bound in product(objectives.items(), BOUNDS):
        options = {"lipschitz": bound, "steps": 1200}
        nets = [trained(objective, prior, problem, seed, **options) for seed in SEEDS]
        rows = [[distance(net.inverse(z), w) for w in (top, centre)] for net in nets]
        found[name, bound] = span(rows)
        print(name, bound, found[name, bound], flush=True)
    lines = ["| training | " + " | ".join(f"$L = {bound}$" for bound in BOUNDS) + " |"]
    lines.append("|---" * (1 + len(BOUNDS)) + "|")
    for name in objectives:
        lines.append(f"| {name} | " + " | ".join(found[name, bound][0] for bound in BOUNDS) + " |")
    own = " | ".join(found["reconstruction", bound][1] for bound in BOUNDS)
    lines.append(f"| reconstruction, to the exact mean | {own} |")
    others = {
        "the exact mean": centre,
        "the exact plain limit": plain_limit(prior, problem, z, top),
    }
    for name, points in others.items():
        apart = ranged(*[distance(points, top)] * 2)
        lines.append(f"| {name}, to MAP | {' | '.join([apart] * 3)} |")
    samples = prior.sample(2000, generator=torch.Generator().manual_seed(1))
    for name, points in {"samples of the prior": samples, "MAPs": top}.items():
        lines.append(f"| {name} out of reach | {out_of_reach(prior, problem, points)} |")
    return [*lines, ""]


def main() -> None:
    """Train, measure, write."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    write(GENERATED / "nonlinear_eight.md", eight_table())


if __name__ == "__main__":
    main()
