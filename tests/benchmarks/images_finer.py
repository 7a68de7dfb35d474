"""The networks of `images.py`, trained on smaller pictures, with fewer offsets, and sharpened."""

from __future__ import annotations

import copy
import math
from itertools import product

import torch
from joblib import Parallel, delayed
from torch import Tensor, nn

import invbayes as ib
from tests.benchmarks.images_data import TESTS, decibels, noise, observed, operators, test_picture
from tests.benchmarks.images_operators import best_variation, by_network, columns
from tests.benchmarks.images_rivals import by_tikhonov

PAIRS = {  # the factors (λ, h)
    "deblurring": ((0.7, 1), (1, 1), (2, 1), (1, 1.4), (4, 3)),
    "tomography": ((1, 1), (2, 2)),
}
HEADS = ("linear", "total variation", "trained for it", "falling", "h = 1", "λ = h = 1")
WAYS = {  # for the moon: the power of h by which a is divided, λ, h, and the stretch of the data
    "as above": (0.5, 4, 3, 1),
    "$a$ kept": (0, 4, 3, 1),
    "$a/h$": (1, 4, 3, 1),
    "$R_h$": (0, 4, 1, 3),
    "h = 1": (0, 2, 1, 1),
}
Trained = list[ib.InvertibleResNet]


def finer(nets: Trained, plain: nn.Module) -> list[str]:
    """Every method with its best factors on the picture; and denoising, which has none."""
    cases = [*product(TESTS, PAIRS)]
    found = Parallel(n_jobs=2)(delayed(row)(*case, nets, plain) for case in cases)
    lines = [f"| | {' | '.join(HEADS)} |", "|---" * (len(HEADS) + 1) + "|"]
    for (name, task), cells in zip(cases, found, strict=True):
        lines.append(f"| {task}, {name} | {' | '.join(cells)} |")
    for name in TESTS:
        cells = ["–"] * 5 + [denoised(name, nets)]
        lines.append(f"| denoising, {name} | {' | '.join(cells)} |")
    return lines


def row(name: str, task: str, nets: Trained, plain: nn.Module) -> list[str]:
    """Decibels of the rivals, and of each network by the rules of `columns`."""
    torch.set_num_threads(1)
    problem, x = operators(name)[task]
    y = observed(problem, x)
    # Tikhonov's weight in finer steps than in the other tables: those of a factor of √2.
    weights = [problem.noise_std**2 * 2 ** (k / 2) for k in range(-14, 11)]
    straight = max(decibels(by_tikhonov(problem, y, w), x) for w in weights)
    trained = f"{decibels(y - plain(y[None])[0], x):.2f}" if task == "deblurring" else "–"
    scores = [
        {pair: decibels(answer(net, problem, y, *pair), x) for pair in PAIRS[task]} for net in nets
    ]
    print(name, task, scores, flush=True)
    rivals = [f"{straight:.2f}", f"{best_variation(problem, x, y):.2f}", trained]
    return [*rivals, *columns("falling", scores).values()]


def answer(
    net: ib.InvertibleResNet,
    problem: ib.LinearProblem,
    y: Tensor,
    weight: float,
    factor: float,
) -> Tensor:
    """The minimum of the energy with the penalty of the sharpened network."""
    return by_network(sharpened(net, factor), problem, y, weight, 1)


def sharpened(net: ib.InvertibleResNet, factor: float, power: float = 0.5) -> ib.InvertibleResNet:
    """The network with h s for each filter's s, and with a / h^p for a."""
    sharp = copy.deepcopy(net)
    block = sharp.blocks[0]
    block.log_sharpness += math.log(factor)
    block.share_logit.copy_((block.share_logit.sigmoid() / factor**power).logit())
    return sharp


def ways(nets: Trained) -> list[str]:
    """The moon's blur, sharpened as above and otherwise."""
    found = Parallel(n_jobs=2)(delayed(each_way)(net) for net in nets)
    cells = [" ".join(f"{score:.2f}" for score in scores) for scores in zip(*found, strict=True)]
    lines = [f"| | {' | '.join(WAYS)} |", "|---" * (len(WAYS) + 1) + "|"]
    return [*lines, f"| deblurring, moon | {' | '.join(cells)} |"]


def each_way(net: ib.InvertibleResNet) -> list[float]:
    """Decibels, in the order of `WAYS`."""
    torch.set_num_threads(1)
    problem, x = operators("moon")["deblurring"]
    y = observed(problem, x)
    return [
        decibels(by_network(sharpened(net, factor, power), problem, y, weight, stretch), x)
        for power, weight, factor, stretch in WAYS.values()
    ]


def denoised(name: str, nets: Trained) -> str:
    """Decibels of each network."""
    x = test_picture(name, 256)
    y = observed(noise(x.shape), x)
    return " ".join(f"{decibels(net.inverse(y[None], tol=0.5)[0], x):.2f}" for net in nets)
