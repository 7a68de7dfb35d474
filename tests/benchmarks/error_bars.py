"""Error bars of trained networks against exact posteriors, as a table: run by `make bench`.

Nine problems of each of two priors, one process: about five hours on a quiet core. Writes
``book/_generated/error_bars.md``, which the chapter on error bars shows. All numbers go to the
standard output. A file, if one is named, keeps the results, so that an interrupted run can go on.
"""

from __future__ import annotations

import json
import sys
from functools import cache, partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

import invbayes as ib
from invbayes.examples import three_blobs, two_blobs
from tests.benchmarks.composed import composed_bars, denoising
from tests.benchmarks.error_bars_page import LEVELS, page, shown
from tests.benchmarks.forgiving import EDGES, FLOOR, ForgivingDivergence

PAGE = Path(__file__).parents[2] / "book" / "_generated" / "error_bars.md"
OPERATORS = {"I": (1.0, 1.0), "diag(1, ½)": (1.0, 0.5), "diag(1, ⅛)": (1.0, 0.125)}
NOISE = (0.1, 0.2, 0.5)
PRIORS = {"two blobs": two_blobs, "three blobs": three_blobs}
LONG = {"steps": 3000, "batch": 1024}
TWO = {"blocks": 2, "lipschitz": 0.9}  # no bound certifies its bars
TRAININGS = {  # options and seeds
    "b": ({"steps": 1500}, 3),
    "bW": ({"steps": 1500}, 3),
    "long": (LONG, 3),
    "deep": (LONG | TWO, 3),
    "sharp": (LONG | TWO, 3),
    "blind": ({"steps": 1500}, 1),
    "deep blind": ({"steps": 3000, "batch": 2048} | TWO, 1),
    "c": ({"steps": 600}, 1),
    "cW": ({"steps": 600}, 1),
    "d": (LONG, 3),
    "patient": (LONG | {"steps": 12_000}, 1),
    "one": (LONG | {"steps": 12_000}, 3),
    "forgiving": (LONG, 3),
    "modes": (LONG, 1),
    "everywhere": (LONG, 3),
}
EXTRA = {"forgiving": {"floor": FLOOR, "edges": list(EDGES)}}  # not for `fit`, but for the log
MEANS = ("b", "bW", "long", "deep", "sharp", "blind", "deep blind")  # trained for the mean
SOME = [("I", 0.2), ("I", 0.5), ("diag(1, ½)", 0.2), ("diag(1, ⅛)", 0.2)]
HARD = [("diag(1, ⅛)", 0.1)]
MISSED = [("I", 0.5), *product(("diag(1, ½)", "diag(1, ⅛)"), NOISE)]  # by one blind block
JUMPS = {  # more than a hundredth of the data have several modes, and not all
    "two blobs": [("I", 0.5), ("diag(1, ½)", 0.5), ("diag(1, ⅛)", 0.5)],
    "three blobs": [
        ("I", 0.5),
        ("diag(1, ½)", 0.2),
        ("diag(1, ½)", 0.5),
        ("diag(1, ⅛)", 0.1),
        ("diag(1, ⅛)", 0.2),
    ],
}
CHOSEN = {  # the problems of each prior, where not all
    "c": {"two blobs": SOME, "three blobs": SOME},
    "cW": {"two blobs": SOME, "three blobs": SOME},
    "long": {"three blobs": HARD},
    "sharp": {"three blobs": HARD},
    "deep blind": {"two blobs": HARD, "three blobs": MISSED},
    "patient": JUMPS,
    "forgiving": JUMPS,
    "modes": JUMPS,
    "everywhere": {prior: [("I", 0.5), ("diag(1, ½)", 0.5)] for prior in PRIORS},
}
TESTS, PAIRS = 20_000, 40_000


def inside(x: Tensor, mean: Tensor, covariance: Tensor) -> list[float]:
    """The share of the truths in the ellipse of each level, in percent."""
    away = x - mean
    squared = (away * torch.linalg.solve(covariance, away)).sum(1)
    levels = -2 * torch.log(1 - torch.tensor(LEVELS))
    return (100 * (squared[:, None] < levels).double().mean(0)).tolist()


def power(matrix: Tensor, exponent: float) -> Tensor:
    """Of a symmetric positive definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values**exponent @ vectors.mT


def modes(prior: ib.GaussianMixture, problem: ib.LinearProblem, generator: torch.Generator):
    """Exact MAP and its datum; points that are the MAP of no datum never occur."""
    y = problem.observe(prior.sample(PAIRS, generator=generator), generator=generator)
    parts = [ib.map_estimate(prior, problem, part, on_tie="first") for part in y.split(5000)]
    return ib.fixed_samples(torch.cat(parts), problem.normal_data(y))


def everywhere(prior: ib.GaussianMixture, problem: ib.LinearProblem, n: int, source):
    """Samples of the prior and φ_* there, in the fold as well."""
    x = prior.sample(n, generator=source)
    return x, ib.ideal_forward_map(prior, problem, x)


def forgiving(
    prior: ib.GaussianMixture, problem: ib.LinearProblem, seed: int
) -> ForgivingDivergence:
    """The loss of a second training, with a weight from the first."""
    first = train("d", prior, problem, seed).requires_grad_(False)
    root = power(ib.posterior_metric(problem, prior.covariance), 0.5)
    return ForgivingDivergence(problem, first, root)


def train(
    name: str, prior: ib.GaussianMixture, problem: ib.LinearProblem, seed: int
) -> ib.InvertibleResNet:
    """A network; without truth, from data alone."""
    metric = ib.posterior_metric(problem, prior.covariance)
    inverse = power(metric, -1)
    objectives = {
        "b": ib.Reconstruction(),
        "bW": ib.Reconstruction(metric=inverse),
        "long": ib.Reconstruction(metric=inverse),
        "deep": ib.Reconstruction(metric=inverse),
        "sharp": ib.Reconstruction(metric=power(metric, -1.5)),
        "blind": ib.UnbiasedRisk(problem),
        "deep blind": ib.UnbiasedRisk(problem, metric=inverse),
        "c": ib.LogDeterminant(problem),
        "cW": ib.LogDeterminant(problem, metric=metric),
        "d": ib.Divergence(problem),
        "patient": ib.Divergence(problem),
        "one": ib.Divergence(problem),
        "modes": ib.Approximation(problem, conditional_mean=False),
        "everywhere": ib.Approximation(problem, conditional_mean=False),
    }
    objective = objectives.get(name) or forgiving(prior, problem, seed)
    generator = torch.Generator().manual_seed(seed)
    options = TRAININGS[name][0] | {"generator": generator, "progress": False}
    if isinstance(objective, ib.UnbiasedRisk):
        pairs = ib.quasi_samples(prior, problem, generator=generator)
        options["sampler"] = lambda n, source: (pairs(n, source)[1],) * 2
    if name == "modes":
        options["sampler"] = modes(prior, problem, generator)
    if name == "everywhere":
        options["sampler"] = partial(everywhere, prior, problem)
    return ib.fit(objective, prior, problem, **options)[0]


def tests(prior: ib.GaussianMixture, problem: ib.LinearProblem) -> tuple[Tensor, Tensor]:
    """Fresh truths and their data, the same ones for each network."""
    generator = torch.Generator().manual_seed(12345)
    x = prior.sample(TESTS, generator=generator)
    return x, problem.observe(x, generator=generator)


def measure(
    name: str, net: ib.InvertibleResNet, prior: ib.GaussianMixture, problem: ib.LinearProblem
) -> dict:
    """Compare with the exact posteriors of fresh data."""
    x, y = tests(prior, problem)
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
    if name in MEANS:
        truth = ib.data_density(prior, problem).log_prob(y)
        found["evidence"] = (
            (ib.log_evidence(net, problem, y, origin=prior.mean) - truth).std().item()
        )
        truth_z = ib.normal_data_density(prior, problem).log_prob(z)
        found["log q"] = (ib.pushforward_log_prob(net, prior, bars.mean) - truth_z).std().item()
    if name in ("d", "patient", "forgiving", "modes", "everywhere"):
        found |= laplace(bars, prior, problem, x, y)
    return found


@cache
def denoiser(prior_name: str, seed: int) -> ib.InvertibleResNet:
    """The one network for all problems of a prior."""
    return train("one", PRIORS[prior_name](), denoising(), seed)


def result(name: str, prior_name: str, problem: ib.LinearProblem, seed: int) -> dict:
    """Train, and compare."""
    prior = PRIORS[prior_name]()
    if name != "one":
        return measure(name, train(name, prior, problem, seed), prior, problem)
    x, y = tests(prior, problem)
    some = y[:3000]
    bars = composed_bars(denoiser(prior_name, seed), prior, problem, some)
    return laplace(bars, prior, problem, x, y)


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
    missed = (bars.mean[some] - highest).norm(dim=1)
    return {
        "map rms": missed.square().mean().sqrt().item(),
        "map median": missed.median().item(),
        "one mode": single.double().mean().item(),
        "laplace": relative.median().item() if single.any() else float("nan"),
        "laplace cover": inside(x[some], highest, exact),
        "some cover": inside(x[some], bars.mean[some], bars.covariance[some]),
    }


def problems(name: str) -> list[tuple[str, str, float]]:
    """Prior, operator and noise of each."""
    chosen = CHOSEN.get(name, {prior: [*product(OPERATORS, NOISE)] for prior in PRIORS})
    return [(prior, *problem) for prior, some in chosen.items() for problem in some]


def main(log: str | None = None) -> None:
    """Train, measure, write; what the log holds already is not done again."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    path = Path(log) if log else None
    results = json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else {}
    jobs = [
        (name, *problem, seed)
        for name, (_, seeds) in TRAININGS.items()
        for problem in problems(name)
        for seed in range(seeds)
    ]
    for name, prior_name, operator, noise_std, seed in jobs:
        key = f"{prior_name}|{name}|{operator}|{noise_std:g}|{seed}"
        options = TRAININGS[name][0] | EXTRA.get(name, {})
        if shown(name, results.get(key, {})) and results[key]["options"] == options:
            continue
        problem = ib.LinearProblem(torch.diag(torch.tensor(OPERATORS[operator])), noise_std)
        results[key] = result(name, prior_name, problem, seed)
        results[key]["options"] = options
        print(key, results[key], flush=True)
        if path:
            path.write_text(json.dumps(results), encoding="utf-8")
    PAGE.write_text(page(results, TRAININGS), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(*sys.argv[1:])
