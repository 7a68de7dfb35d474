"""The networks of `images.py`, trained on smaller pictures: what that does for a blur."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import torch
from joblib import Parallel, delayed
from torch import Tensor, nn

import invbayes as ib
from tests.benchmarks.images_data import TESTS, decibels, noise, observed, operators, test_picture
from tests.benchmarks.images_operators import by_network
from tests.benchmarks.images_rivals import by_tikhonov

WEIGHTS = (0.5, 0.7, 1, 2, 4)  # the factors λ
HEADS = ("linear", "trained for it", "falling", "λ = 1", "falling before")
Trained = list[ib.InvertibleResNet]


def finer(new: Trained, old: Trained, plain: nn.Module) -> list[str]:
    """Deblurring with the best factor on the picture, and with one; and denoising."""
    cases = [*product(TESTS, (new, old))]
    found = iter(Parallel(n_jobs=2)(delayed(deblurred)(*case) for case in cases))
    lines = [f"| | {' | '.join(HEADS)} |", "|---" * (len(HEADS) + 1) + "|"]
    for name in TESTS:
        (best, one), (before, _) = next(found), next(found)
        cells = [linear(name), by_plain(name, plain), best, one, before]
        lines.append(f"| deblurring, {name} | {' | '.join(cells)} |")
    for name in TESTS:
        cells = ["–", "–", denoised(name, new), "–", denoised(name, old)]
        lines.append(f"| denoising, {name} | {' | '.join(cells)} |")
    return lines


def deblurred(name: str, nets: Trained) -> tuple[str, str]:
    """Decibels of each network with its best factor, and with λ = 1."""
    torch.set_num_threads(1)
    problem, x, y = blurred(name)
    scores = [{w: decibels(by_network(net, problem, y, w, 1), x) for w in WEIGHTS} for net in nets]
    print(name, scores, flush=True)
    return several(max(each.values()) for each in scores), several(each[1] for each in scores)


def blurred(name: str) -> tuple[ib.LinearProblem, Tensor, Tensor]:
    """The blur, a photograph, and its data."""
    problem, x = operators(name)["deblurring"]
    return problem, x, observed(problem, x)


def denoised(name: str, nets: Trained) -> str:
    """Decibels of each network."""
    x = test_picture(name, 256)
    y = observed(noise(x.shape), x)
    return several(decibels(net.inverse(y[None], tol=0.5)[0], x) for net in nets)


def linear(name: str) -> str:
    """Tikhonov's best weight on the picture, in steps of a factor of the square root of two."""
    problem, x, y = blurred(name)
    weights = [problem.noise_std**2 * 2 ** (k / 2) for k in range(-14, 11)]
    return several([max(decibels(by_tikhonov(problem, y, w), x) for w in weights)])


def by_plain(name: str, plain: nn.Module) -> str:
    """The plain network that was trained for this blur."""
    _, x, y = blurred(name)
    return several([decibels(y - plain(y[None])[0], x)])


def several(scores: Iterable[float]) -> str:
    """Decibels, one after the other."""
    return " ".join(f"{score:.2f}" for score in scores)
