"""Error bars of trained networks against exact posteriors, as a table: run by `make bench`.

Nine problems of each of two priors, three seeds, one process: about an hour on a quiet core. Writes
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
STEPS = {"b": 1500, "bW": 1500, "b2": 3000, "without truth": 1500, "c": 600, "cW": 600, "d": 1500}
TWO = {"blocks": 2, "lipschitz": 0.9}  # a deeper network; its bars are certified by no bound
NETWORKS = {"b2": TWO | {"batch": 1024}, "without truth": TWO}
CHOSEN = [("I", 0.2), ("I", 0.5), ("diag(1, ½)", 0.2), ("diag(1, ⅛)", 0.2)]  # for c and cW
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
        "b2": ib.Reconstruction(metric=torch.linalg.inv(metric)),
        "without truth": ib.UnbiasedRisk(problem),
        "c": ib.LogDeterminant(problem),
        "cW": ib.LogDeterminant(problem, metric=metric),
        "d": ib.Divergence(problem),
    }[name]
    generator = torch.Generator().manual_seed(seed)
    options = {"steps": STEPS[name], "generator": generator, "progress": False}
    options |= NETWORKS.get(name, {})
    if name == "without truth":
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
    if name in ("b", "bW", "b2", "without truth"):
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
    "bW": ("Trained for the mean in the metric W⁻¹", MEAN),
    "without truth": ("Trained without the truth", BLIND),
    "c": ("Log-determinant, M = I", LOG_DET),
    "cW": ("Log-determinant, M = W", LOG_DET),
    "d": ("Divergence, against exact MAP", PEAK),
}


def table(results: dict, prior: str, names: tuple[str, ...]) -> list[str]:
    """One line for each problem, the columns of each training."""
    titles = [
        column if len(names) == 1 else f"{PARTS[name][0].split(', ')[1]}: {column}"
        for name in names
        for column in PARTS[name][1]
    ]
    lines = [
        r"| $A$ | $\delta$ | " + " | ".join(titles) + " |",
        "|---" * (len(titles) + 2) + "|",
    ]
    for operator, noise_std in CHOSEN if names == ("c", "cW") else product(OPERATORS, NOISE):
        entries = []
        for name in names:
            start = f"{prior}|{name}|{operator}|{noise_std:g}|"
            found = [value for key, value in results.items() if key.startswith(start)]
            entries += [show(found) if found else "" for show in PARTS[name][1].values()]
        lines.append(f"| {operator} | {noise_std:g} | " + " | ".join(entries) + " |")
    return [*lines, ""]


def page(results: dict, seeds: dict[str, int]) -> str:
    """All tables: the mean's open, the others folded."""
    lines = [LEGEND]
    for name, prior in product(("b", "bW"), PRIORS):
        title = "" if name == "b" else ", in the metric $M = W^{-1}$"
        lines += [f"**{prior.capitalize()}{title}**", "", *table(results, prior, (name,))]
    lines += [":::{admonition} The other trainings", ":class: dropdown", ""]
    for prior, names in product(PRIORS, (("without truth",), ("c", "cW"), ("d",))):
        title = PARTS[names[0]][0].split(", M")[0]
        lines += [f"**{prior.capitalize()}: {title}**", "", *table(results, prior, names)]
    lines += [":::", ""]
    made = (f"{PARTS[n][0]}: {count} × {STEPS[n]}" for n, count in seeds.items())
    lines.append(f"Seeds × steps. {'; '.join(made)}. Test data: 20 000; for exact MAP 3000.")
    text = "\n".join(lines) + "\n"
    return re.sub("(?<=1,) | (?=%)", "\N{NO-BREAK SPACE}", text)


def main(log: str | None = None, most_seeds: int = 3) -> None:
    """Train, measure, write; what the log holds already is not done again."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    path = Path(log) if log else None
    results = json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else {}
    seeds = {"b": 3, "bW": 3, "without truth": 1, "c": 1, "cW": 1, "d": 1}
    jobs = [
        job
        for seed in range(most_seeds)
        for job in product(PRIORS, STEPS, OPERATORS, NOISE, [seed])
        if seed < seeds[job[1]] and (job[1] not in ("c", "cW") or job[2:4] in CHOSEN)
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
    made = {n: len({k.split("|")[4] for k in results if k.split("|")[1] == n}) for n in STEPS}
    PAGE.write_text(page(results, made), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(*(int(part) if part.isdigit() else part for part in sys.argv[1:]))
