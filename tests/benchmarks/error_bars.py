"""Error bars of trained networks against exact posteriors, as a table: run by `make bench`.

Nine problems of each of two priors, one process: about three hours on a quiet core. Writes
``book/_generated/error_bars.md``, which the chapter on error bars shows. All numbers go to the
standard output. A file, if one is named, keeps the results, so that an interrupted run can go on.
"""

from __future__ import annotations

import json
import math
import re
import sys
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

import invbayes as ib
from invbayes.examples import three_blobs, two_blobs

PAGE = Path(__file__).parents[2] / "book" / "_generated" / "error_bars.md"
OPERATORS = {"I": (1.0, 1.0), "diag(1, ½)": (1.0, 0.5), "diag(1, ⅛)": (1.0, 0.125)}
NOISE = (0.1, 0.2, 0.5)
PRIORS = {"two blobs": two_blobs, "three blobs": three_blobs}
TWO = {"blocks": 2, "lipschitz": 0.9}  # no bound certifies its bars
TRAININGS = {  # options and seeds
    "b": ({"steps": 1500}, 3),
    "bW": ({"steps": 1500}, 3),
    "long": ({"steps": 3000, "batch": 1024}, 3),
    "deep": ({"steps": 3000, "batch": 1024} | TWO, 3),
    "blind": ({"steps": 1500}, 1),
    "deep blind": ({"steps": 1500} | TWO, 1),
    "c": ({"steps": 600}, 1),
    "cW": ({"steps": 600}, 1),
    "d": ({"steps": 1500}, 1),
}
LIKE = {"long": "bW", "deep": "bW", "deep blind": "blind"}  # the same objective
SOME = [("I", 0.2), ("I", 0.5), ("diag(1, ½)", 0.2), ("diag(1, ⅛)", 0.2)]
HARD = [("diag(1, ⅛)", 0.1)]
WEAK = [("diag(1, ⅛)", noise) for noise in NOISE]
CHOSEN = {"c": SOME, "cW": SOME, "long": HARD, "deep blind": WEAK}
ONLY = {"long": ("three blobs",)}  # the hardest problem
TESTS, LEVELS = 20_000, (0.5, 0.9, 0.95)


def inside(x: Tensor, mean: Tensor, covariance: Tensor) -> list[float]:
    """The share of the truths in the ellipse of each level, in percent."""
    away = x - mean
    squared = (away * torch.linalg.solve(covariance, away)).sum(1)
    levels = -2 * torch.log(1 - torch.tensor(LEVELS))
    return (100 * (squared[:, None] < levels).double().mean(0)).tolist()


def train(name: str, prior: ib.GaussianMixture, problem: ib.LinearProblem, seed: int):
    """A network; without truth, from data alone."""
    metric = ib.posterior_metric(problem, prior.covariance)
    objective = {
        "b": ib.Reconstruction(),
        "bW": ib.Reconstruction(metric=torch.linalg.inv(metric)),
        "blind": ib.UnbiasedRisk(problem),
        "c": ib.LogDeterminant(problem),
        "cW": ib.LogDeterminant(problem, metric=metric),
        "d": ib.Divergence(problem),
    }[LIKE.get(name, name)]
    generator = torch.Generator().manual_seed(seed)
    options = TRAININGS[name][0] | {"generator": generator, "progress": False}
    if isinstance(objective, ib.UnbiasedRisk):
        pairs = ib.quasi_samples(prior, problem, generator=generator)
        options["sampler"] = lambda n, source: (pairs(n, source)[1],) * 2
    return ib.fit(objective, prior, problem, **options)[0]


def measure(
    name: str, net: ib.InvertibleResNet, prior: ib.GaussianMixture, problem: ib.LinearProblem
) -> dict:
    """Compare with the exact posteriors of fresh data."""
    generator = torch.Generator().manual_seed(12345)
    x = prior.sample(TESTS, generator=generator)
    y = problem.observe(x, generator=generator)
    z, belief = problem.normal_data(y), ib.posterior(prior, problem, y)
    bars, exact = ib.posterior_covariance(net, problem, z), belief.covariance
    off, size = (torch.linalg.matrix_norm(m) for m in (bars.covariance - exact, exact))
    variance = exact.diagonal(dim1=1, dim2=2).sum(1).mean()
    errors = (bars.mean - x).square().sum(1)
    risk = ib.unbiased_risk(net, problem, z)
    found = {
        "ratio": 1 + ((bars.mean - belief.mean).square().sum(1).mean() / variance).item(),
        "rms": (off.square().mean() / size.square().mean()).sqrt().item(),
        "median": (off / size).median().item(),
        "cover": inside(x, bars.mean, bars.covariance),
        "exact": inside(x, belief.mean, exact),
        "trace": (bars.covariance.diagonal(dim1=1, dim2=2).sum(1).mean() / variance).item(),
        "risk": ((risk - errors).mean() / ((risk - errors).std() / TESTS**0.5)).item(),
    }
    if LIKE.get(name, name) in ("b", "bW", "blind"):
        truth = ib.data_density(prior, problem).log_prob(y)
        found["evidence"] = (
            (ib.log_evidence(net, problem, y, origin=prior.mean) - truth).std().item()
        )
        truth_z = ib.normal_data_density(prior, problem).log_prob(z)
        found["log q"] = (ib.pushforward_log_prob(net, prior, bars.mean) - truth_z).std().item()
    if name == "d":
        found |= laplace(bars, prior, problem, x, y)
    return found


def laplace(
    bars: ib.ErrorBars,
    prior: ib.GaussianMixture,
    problem: ib.LinearProblem,
    x: Tensor,
    y: Tensor,
) -> dict:
    """Compare with exact MAP and the curvature there, on some of the data."""
    some = slice(3000)
    highest = ib.map_estimate(prior, problem, y[some], on_tie="first")
    single = ib.has_single_mode(ib.posterior(prior, problem, y[some]))
    curvature = problem.normal_operator / problem.noise_std**2 - prior.hessian(highest)
    exact = torch.linalg.inv(curvature)
    off = torch.linalg.matrix_norm(bars.covariance[some] - exact)
    relative = (off / torch.linalg.matrix_norm(exact))[single]
    return {
        "one mode": single.double().mean().item(),
        "laplace": relative.median().item() if single.any() else float("nan"),
        "laplace cover": inside(x[some], highest, exact),
        "some cover": inside(x[some], bars.mean[some], bars.covariance[some]),
    }


def worst(entries: list[dict], key: str) -> float:
    """The seed farthest from the goal, which is one for ratios and zero else."""
    goal = 1.0 if key in ("ratio", "trace") else 0.0
    return max((entry[key] for entry in entries), key=lambda value: abs(value - goal))


def covers(entries: list[dict], key: str = "cover") -> str:
    """Coverage of the seed farthest from nominal."""
    chosen = max(
        entries, key=lambda e: max(abs(c / 100 - p) for c, p in zip(e[key], LEVELS, strict=True))
    )
    return "/".join(f"{value:.1f}" for value in chosen[key])


def percent(value: float) -> str:
    """With two figures; a dash for none."""
    return "–" if math.isnan(value) else f"{float(f'{100 * value:.2g}'):g} %"


def off_exact(entries: list[dict]) -> str:
    """The largest distance of a coverage from that of the exact ellipses, in points."""
    gaps = [abs(a - b) for e in entries for a, b in zip(e["cover"], e["exact"], strict=True)]
    return f"{max(gaps):.1f}"


MEAN = {
    "error": lambda e: f"{worst(e, 'ratio'):.4f}",
    "rms": lambda e: percent(worst(e, "rms")),
    "median": lambda e: percent(worst(e, "median")),
    "cover": off_exact,
    "trace": lambda e: percent(worst(e, "trace") - 1),
    "risk": lambda e: f"{worst(e, 'risk'):.1f}",
    "evidence": lambda e: f"{worst(e, 'evidence'):.3f}",
    "log q": lambda e: f"{worst(e, 'log q'):.2f}",
}
BLIND = {key: MEAN[key] for key in ("error", "rms", "evidence")}
LEGEND = """*error*: the mean squared error over the posterior mean's. *rms*: the distance of the
covariance from the exact one, over the latter's size. *median*: of the relative distances. *cover*:
coverage of the 50, 90 and 95 % ellipses less that of the exact ones, in points, the largest.
*trace*: the mean trace over the exact one's, less one (*ratio*: not less one). *risk*: unbiased
risk less true error, in standard errors of this difference (all rows share one draw of the noise).
*evidence*, *log q*: the distance from the true log-density up to a constant, rms, in nats. *one
mode*: the share of data with one mode; *to Laplace*: the median relative distance over these
(a dash: there are none). *coverage*, *Laplace's own*: of the 50, 90 and 95 % ellipses over all
data, of the network and of Laplace at exact MAP.
"""
LOG_DET = {"coverage": covers, "ratio": lambda e: f"{worst(e, 'trace'):.2f}"}
PEAK = {
    "one mode": lambda e: percent(worst(e, "one mode")),
    "to Laplace": lambda e: percent(worst(e, "laplace")),
    "coverage": lambda e: covers(e, "some cover"),
    "Laplace's own": lambda e: covers(e, "laplace cover"),
}


PARTS = {
    "b": ("Trained for the mean", MEAN),
    "bW": ("In the metric $M = W^{-1}$", MEAN),
    "long": ("In the metric $M = W^{-1}$, 3000 steps of 1024", MEAN),
    "deep": ("Two blocks in the metric $M = W^{-1}$, 3000 steps of 1024", MEAN),
    "blind": ("Trained without the truth", BLIND),
    "deep blind": ("Trained without the truth, two blocks", BLIND),
    "c": ("Log-determinant, M = I", LOG_DET),
    "cW": ("Log-determinant, M = W", LOG_DET),
    "d": ("Divergence, against exact MAP", PEAK),
}
OPEN = (("b",), ("deep",))
FOLDED = (("bW",), ("long",), ("blind",), ("deep blind",), ("c", "cW"), ("d",))


def problems(name: str) -> list[tuple[str, float]]:
    """Operator and noise of each."""
    return CHOSEN.get(name, [*product(OPERATORS, NOISE)])


def table(results: dict, prior: str, names: tuple[str, ...]) -> list[str]:
    """A title, and one line for each problem with the columns of each training."""
    columns = [
        column if len(names) == 1 else f"{PARTS[name][0].split(', ')[1]}: {column}"
        for name in names
        for column in PARTS[name][1]
    ]
    title = PARTS[names[0]][0].split(", M")[0]
    lines = [f"**{prior.capitalize()}: {title[0].lower()}{title[1:]}**", ""]
    lines.append(r"| $A$ | $\delta$ | " + " | ".join(columns) + " |")
    lines.append("|---" * (len(columns) + 2) + "|")
    for operator, noise_std in problems(names[0]):
        entries = []
        for name in names:
            start = f"{prior}|{name}|{operator}|{noise_std:g}|"
            found = [value for key, value in results.items() if key.startswith(start)]
            entries += [show(found) if found else "" for show in PARTS[name][1].values()]
        lines.append(f"| {operator} | {noise_std:g} | " + " | ".join(entries) + " |")
    return [*lines, ""]


def tables(results: dict, groups: tuple[tuple[str, ...], ...]) -> list[str]:
    """Of every prior, training after training."""
    pairs = [(names, prior) for names in groups for prior in ONLY.get(names[0], PRIORS)]
    return [line for names, prior in pairs for line in table(results, prior, names)]


def page(results: dict) -> str:
    """All tables: the mean's open, the others folded."""
    lines = [LEGEND]
    lines += tables(results, OPEN)
    lines += [":::{admonition} The other trainings", ":class: dropdown", ""]
    lines += tables(results, FOLDED)
    lines += [":::", ""]
    made = (f"{PARTS[n][0]}: {seeds} × {o['steps']}" for n, (o, seeds) in TRAININGS.items())
    lines.append(f"Seeds × steps. {'; '.join(made)}. Test data: 20 000; for exact MAP 3000.")
    return re.sub("(?<=1,) | (?=%)", "\N{NO-BREAK SPACE}", "\n".join(lines) + "\n")


def main(log: str | None = None) -> None:
    """Train, measure, write; what the log holds already is not done again."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    path = Path(log) if log else None
    results = json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else {}
    jobs = [
        (prior, name, *problem, seed)
        for name, (_, seeds) in TRAININGS.items()
        for prior in ONLY.get(name, PRIORS)
        for problem in problems(name)
        for seed in range(seeds)
    ]
    for prior_name, name, operator, noise_std, seed in jobs:
        key = f"{prior_name}|{name}|{operator}|{noise_std:g}|{seed}"
        if key in results:
            continue
        prior = PRIORS[prior_name]()
        problem = ib.LinearProblem(torch.diag(torch.tensor(OPERATORS[operator])), noise_std)
        results[key] = measure(name, train(name, prior, problem, seed), prior, problem)
        print(key, results[key], flush=True)
        if path:
            path.write_text(json.dumps(results), encoding="utf-8")
    PAGE.write_text(page(results), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(*sys.argv[1:])
