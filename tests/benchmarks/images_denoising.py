"""Photographs denoised by the networks of `images.py` and by others, and the risk they tell."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

import invbayes as ib
from tests.benchmarks.images_data import (
    TESTS,
    alike,
    decibels,
    noise,
    observed,
    test_picture,
    units,
)
from tests.benchmarks.images_rivals import by_bm3d, by_non_local_means, by_variation

Denoisers = dict[str, Callable[[Tensor], Tensor]]
TUNED_ON = ("chelsea", 1)  # a training picture, halved
FACTORS = (0, 0.25, 0.5, 0.75, 1, 1.25)  # binary logarithms
METHODS = {
    "total variation": lambda p, y, w: by_variation(p, y, 0.6 * 2**w),
    "non-local means": lambda _, y, w: by_non_local_means(y, 0.4 * 2**w),
}
DRAWS = 5


def denoising(nets: Denoisers) -> dict[str, list[str]]:
    """Two tables: the networks with convex penalties, and those whose profiles fall back."""
    scores = {name: denoised(name, nets) for name in TESTS}
    heads = ["| denoising | " + " | ".join(TESTS) + f" | SSIM, {TESTS[0]} |"]
    heads.append("|---" * (len(TESTS) + 2) + "|")
    rows = {
        method: " | ".join(f"{scores[name][method][0]:.2f}" for name in TESTS)
        + f" | {scores[TESTS[0]][method][1]:.3f}"
        for method in scores[TESTS[0]]
    }
    new = [method for method in rows if method.startswith(("held", "falling"))]
    first = [f"| {method} | {row} |" for method, row in rows.items() if method not in new]
    beside = [method for method in rows if method.startswith(("total variation", "BM3D", "plain"))]
    second = [f"| {method} | {rows[method]} |" for method in (*beside, *new)]
    return {"denoising": heads + first, "falling": heads + second}


def denoised(name: str, nets: Denoisers) -> dict[str, tuple[float, float]]:
    """Decibels and structural similarity on one photograph."""
    x = test_picture(name, 256)
    y = observed(noise(x.shape), x)
    answers = {"noisy": y} | by_rivals(x, y)
    with contextlib.suppress(ImportError):
        answers["BM3D"] = by_bm3d(y)
    answers |= {method: net(y[None])[0] for method, net in nets.items()}
    return {method: (decibels(found, x), alike(found, x)) for method, found in answers.items()}


def by_rivals(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Each method with the best weight on a training picture, and with the best on this one."""
    problem, found = noise(x.shape), {}
    for title, method in METHODS.items():
        found[title] = method(problem, y, tuned(title))
        found[f"{title}, its best weight"] = method(problem, y, best_factor(title, x, y))
    return found


@cache
def tuned(title: str) -> float:
    """The factor that is best on a training picture."""
    x = units(*TUNED_ON)
    return best_factor(title, x, observed(noise(x.shape), x))


def best_factor(title: str, x: Tensor, y: Tensor) -> float:
    """The factor that is best on this picture."""
    problem = noise(x.shape)
    return max(FACTORS, key=lambda w: decibels(METHODS[title](problem, y, w), x))


def risks(net: ib.InvertibleResNet) -> list[str]:
    """The mean squared error of a pixel in three photographs of full size, told and true."""
    lines = ["| error | told | true | off by, each draw | their mean |", "|---|---|---|---|---|"]
    for number, name in enumerate(TESTS):
        x = units(name, 0)
        drawn = [one_risk(net, x, seed=100 * number + draw) for draw in range(DRAWS)]
        told, error, true = torch.tensor(drawn).T
        off = 100 * (told / true - 1)
        each = " ".join(f"{round(value, 1) + 0.0:.1f}" for value in off.tolist())  # no −0.0
        spread = off.std().item() / DRAWS**0.5
        middle = f"{told.mean():.4f} ± {error.mean():.4f} | {true.mean():.4f}"
        lines.append(f"| {name} | {middle} | {each} % | {off.mean():.1f} ± {spread:.1f} % |")
    return lines


def one_risk(net: ib.InvertibleResNet, x: Tensor, seed: int) -> tuple[float, float, float]:
    """Told, a bound of its standard error, and true, for one draw of the noise."""
    problem = noise(x.shape)
    y, generator = observed(problem, x, seed), torch.Generator().manual_seed(seed)
    bars = ib.posterior_variance(net, problem, y, probes=4, tol=0.1, generator=generator)
    misfit, total = (bars.mean - y).square().sum().item(), bars.total.item()
    size = x.numel()
    error = math.sqrt(4 * misfit + 4 * total - 2 * size) / size
    true = (bars.mean - x).square().mean().item()
    return (misfit + 2 * total) / size - 1, error, true
