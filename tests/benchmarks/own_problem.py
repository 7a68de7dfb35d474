"""What a reader meets with data of their own: digits denoised, and 10 000 unknowns inverted.

Run by `make bench`; prints, and asserts what the package promises.
"""

from __future__ import annotations

import time

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from invbayes import (
    Divergence,
    InvertibleResNet,
    LinearProblem,
    LogDeterminant,
    Reconstruction,
    fit,
    linear_estimate,
)
from tests.own_blocks import Smoothing

NOISE, COMPONENTS = 0.25, 32


def digits() -> tuple[Tensor, Tensor, Tensor]:
    """Components of 1500 known digits, of 297 others, and what is left out of these."""
    pictures = torch.from_numpy(load_digits().images).float().flatten(1) / 16
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
    known, unseen = pictures[order].split([1500, 297])
    mean = known.mean(0)
    axes = torch.linalg.svd(known - mean, full_matrices=False)[2][:COMPONENTS]
    found = (unseen - mean) @ axes.T
    return (known - mean) @ axes.T, found, unseen - mean - found @ axes


def denoising() -> None:
    """Peak signal-to-noise ratios, beside those of the linear and the empirical estimate."""
    known, unseen, left_out = digits()
    problem = LinearProblem(torch.eye(COMPONENTS), NOISE)
    y = problem.observe(unseen, generator=torch.Generator().manual_seed(1))

    def decibels(estimate: Tensor) -> float:
        """Of each picture, as usual; then their mean (more than the ratio of the mean error)."""
        error = (estimate - unseen).square().sum(1) + left_out.square().sum(1)
        return -10 * torch.log10(error / 64).mean().item()

    weights = torch.softmax(-torch.cdist(y, known).square() / (2 * NOISE**2), 1)
    print(f"noisy {decibels(y):.2f} dB, linear {decibels(linear_estimate(known, problem, y)):.2f}")
    print(f"posterior mean of the empirical prior {decibels(weights @ known):.2f}")
    trainings = [
        (Reconstruction(), 300, 0.0, 17.4),
        (Divergence(problem), 1000, 0.1, 17.5),
        (LogDeterminant(problem), 300, 0.0, 0.0),
    ]
    for objective, steps, jitter, aim in trainings:
        started = time.process_time()
        options = {"steps": steps, "jitter": jitter, "batch": 256, "scale": 2.0}
        generator = torch.Generator().manual_seed(2)
        net, _ = fit(objective, known, problem, generator=generator, progress=False, **options)
        seconds = time.process_time() - started
        reached = decibels(net.inverse(problem.normal_data(y)))
        name = type(objective).__name__
        print(f"{name}: {reached:.2f} dB, {steps} steps, {seconds:.0f} s of one core")
        assert seconds < 30
        assert reached >= aim, f"{reached:.2f} dB is below {aim}"


def inversion() -> None:
    """Evaluations and seconds of a matrix-free inverse at L = .99, to 1e-4 of the exact one."""
    net = InvertibleResNet(Smoothing(), lipschitz=0.99).double()
    z = 1 + torch.randn(1, 1, 100, 100, generator=torch.Generator().manual_seed(0)).double()
    counts = {}
    for method in ("anderson", "plain"):
        calls = []
        hook = net.blocks[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        started = time.perf_counter()
        with torch.no_grad():
            net.inverse(z, 1e-4, method=method)
        hook.remove()
        counts[method] = len(calls)
        print(f"{method}: {len(calls)} evaluations, {time.perf_counter() - started:.2f} s")
    assert counts["plain"] >= 3 * counts["anderson"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    denoising()
    inversion()
