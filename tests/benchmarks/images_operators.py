"""The networks of `images.py` on a blur and a tomograph, beside what one would take otherwise."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import product

import torch
from joblib import Parallel, delayed
from torch import Tensor, nn

import invbayes as ib
from tests.benchmarks.images_data import (
    TESTS,
    decibels,
    observed,
    operators,
    projected,
    training_pictures,
)
from tests.benchmarks.images_rivals import (
    by_bm3d_deblurring,
    by_tikhonov,
    by_variation,
    by_wiener,
)

WEIGHTS = {"steep": (0.5, 1, 2, 4, 8), "falling": (0.25, 0.5, 1, 2, 4)}  # the factors λ
STRETCHES = {("falling", "tomography"): (1, 2)}  # the factors h, where not one alone
WIDER = (-0.25, 0, 0.25, 0.5, 0.75)  # binary logarithms of factors on the noise, for BM3D
RULES = {  # a column of a network's scores at its factors (λ, h): the best, or no choice at all
    "steep": {"steep": lambda found: max(found.values()), "λ = 1": lambda found: found[1, 1]},
    "falling": {
        "falling": lambda found: max(found.values()),
        "h = 1": lambda found: max(score for (_, h), score in found.items() if h == 1),
        "λ = h = 1": lambda found: found[1, 1],
    },
}
TABLES = {  # the kind, and what stands beside it
    "operators": ("steep", ["Wiener", "linear", "total variation", "BM3D", "trained for it"]),
    "operators_falling": ("falling", ["total variation", "trained for it"]),
}
Networks = dict[str, list[ib.InvertibleResNet]]


def reconstructions(nets: Networks, trained: dict[str, nn.Module]) -> dict[str, list[str]]:
    """Two tables: the networks with convex penalties, and those whose profiles fall back."""
    cases = [*product(TESTS, ("deblurring", "tomography"))]
    found = Parallel(n_jobs=2)(delayed(row)(nets, trained, *case) for case in cases)
    tables = {}
    for title, (kind, beside) in TABLES.items():
        heads = [*beside, *RULES[kind]]
        lines = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
        for (name, task), entries in zip(cases, found, strict=True):
            lines.append(
                f"| {task}, {name} | " + " | ".join(entries[head] for head in heads) + " |"
            )
        tables[title] = lines
    return tables


def row(nets: Networks, trained: dict[str, nn.Module], name: str, task: str) -> dict[str, str]:
    """Each method with its own best factors on the picture; the networks also with one.

    Beside them plain networks that were trained for a task, and have no factor.
    """
    torch.set_num_threads(1)
    problem, x = operators(name)[task]
    y, std = observed(problem, x), problem.noise_std
    best = max(decibels(by_tikhonov(problem, y, std**2 * 2.0**w), x) for w in range(-7, 6))
    edges = f"{best_variation(problem, x, y):.2f}"
    entries = {"linear": f"{best:.2f}", "total variation": edges, "Wiener": "–"}
    if task == "deblurring":
        entries["Wiener"] = f"{decibels(by_wiener(training_pictures(), problem, y), x):.2f}"
    entries["BM3D"] = matched(task, problem, x, y)
    plain = trained.get(task)
    entries["trained for it"] = f"{decibels(y - plain(y[None])[0], x):.2f}" if plain else "–"
    for kind, weights in WEIGHTS.items():
        tried = [*product(weights, STRETCHES.get((kind, task), (1,)))]
        scores = [
            {pair: decibels(by_network(net, problem, y, *pair), x) for pair in tried}
            for net in nets[kind]
        ]
        entries |= columns(kind, scores)
    print(name, task, entries, flush=True)
    return entries


def best_variation(problem: ib.LinearProblem, x: Tensor, y: Tensor) -> float:
    """Decibels of total variation with the best of eight weights on the picture."""
    weights = [problem.noise_std * 2.0**w for w in range(-5, 3)]
    return max(decibels(by_variation(problem, y, w), x) for w in weights)


def columns(kind: str, scores: list[dict[tuple[float, float], float]]) -> dict[str, str]:
    """The columns of a kind; a number for each seed."""
    rules = RULES[kind].items()
    return {head: " ".join(f"{rule(each):.2f}" for each in scores) for head, rule in rules}


def by_network(
    net: ib.InvertibleResNet,
    problem: ib.LinearProblem,
    y: Tensor,
    weight: float,
    stretch: float,
    start: Tensor | None = None,
) -> Tensor:
    """The minimum of the energy with the penalty λ R(h x) / h², searched from a picture or zero."""
    z = problem.normal_data(stretch * y)
    posterior = ib.LearnedPosterior(net, problem, trained_at=weight**-0.5)
    tol = 1e-6 * z.norm().item()  # twenty times as much moves some tomograms by a decibel
    start = torch.zeros_like(z) if start is None else stretch * start
    return posterior.mode(z, start[None], tol=tol, max_steps=400) / stretch


def starts(nets: Networks) -> list[str]:
    """The camera's tomogram with λ = h = 2 from several starts: decibels, and energy to spare."""
    problem, x = operators("camera")["tomography"]
    y, random = observed(problem, x), torch.Generator().manual_seed(1)
    begun = {
        "zero": None,
        "the truth": x,
        "total variation": by_variation(problem, y, problem.noise_std),
        "noise of the size of the picture": x.std() * torch.randn(x.shape, generator=random),
    }
    columns = [from_each(net, problem, y, x, begun.values()) for net in nets["falling"]]
    lines = [f"| start | {' | '.join(f'seed {k}' for k in range(len(columns)))} |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    return lines + [
        f"| {name} | {' | '.join(cells)} |" for name, *cells in zip(begun, *columns, strict=True)
    ]


def from_each(
    net: ib.InvertibleResNet,
    problem: ib.LinearProblem,
    y: Tensor,
    x: Tensor,
    begun: Iterable[Tensor | None],
) -> list[str]:
    """For each start the decibels, and by which share the energy lies above the lowest found."""
    found = [by_network(net, problem, y, 2, 2, start) for start in begun]
    u, exact = 2 * torch.stack(found).double(), copy.deepcopy(net).double()
    misfit = projected(u) - 2 * y.double()  # of the learned energy single precision leaves nothing
    penalty = exact.potential(u) - u.square().flatten(1).sum(1) / 2
    energies = misfit.square().flatten(1).sum(1) / 2 + 2 * problem.noise_std**2 * penalty
    spare = energies / energies.min() - 1
    shown = [f"{s:.0e}" if s > 0 else "lowest" for s in spare.tolist()]
    return [f"{decibels(one, x):.2f} ({s})" for one, s in zip(found, shown, strict=True)]


def matched(task: str, problem: ib.LinearProblem, x: Tensor, y: Tensor) -> str:
    """BM3D's best, where it has a method."""
    if task != "deblurring":
        return "–"
    try:
        scores = [decibels(by_bm3d_deblurring(problem, y, 0.1 * 2**w), x) for w in WIDER]
    except ImportError:
        return "–"
    return f"{max(scores):.2f}"
