"""What the networks of `images.py` are compared with."""

from __future__ import annotations

import time
from itertools import pairwise
from unittest import mock

import numpy as np
import torch
from skimage.restoration import denoise_nl_means
from torch import Tensor, nn

import invbayes as ib
from invbayes.imaging import total_variation, wiener
from invbayes.networks.conjugate import conjugate_gradients


def by_variation(problem: ib.LinearProblem, y: Tensor, weight: float) -> Tensor:
    """Total variation."""
    return total_variation(problem, y, weight)


def by_non_local_means(y: Tensor, weight: float) -> Tensor:
    """Non-local means, told the noise."""
    found = denoise_nl_means(y[0].numpy(), 5, 6, h=weight, sigma=1.0, fast_mode=True)
    return torch.from_numpy(found).float()[None]


def by_bm3d(y: Tensor) -> Tensor:
    """BM3D, told the noise."""
    from bm3d import bm3d  # noqa: PLC0415  installed for the benchmark alone

    return torch.from_numpy(bm3d(y[0].numpy(), 1.0)).float()[None]


def by_bm3d_deblurring(problem: ib.LinearProblem, y: Tensor, std: float) -> Tensor:
    """BM3D's deblurring, told this noise; its constants are made for a range of one."""
    from bm3d import bm3d_deblurring  # noqa: PLC0415  installed for the benchmark alone

    spot = torch.zeros(problem.shape)
    spot[0, 0, 0] = 1
    kernel = problem.apply(spot)[0].roll((9, 9), (0, 1))[:19, :19].double().numpy()
    # It calls NumPy's trapz, which has another name now.
    with mock.patch.object(np, "trapz", np.trapezoid, create=True):
        found = bm3d_deblurring(y[0].double().numpy()[..., None] / 10, std / 10, kernel)
    return 10 * torch.from_numpy(found).float().reshape(y.shape)


def by_tikhonov(problem: ib.LinearProblem, y: Tensor, weight: float) -> Tensor:
    """Tikhonov's estimate, by conjugate gradients."""
    z = problem.normal_data(y)[None]

    def product(v: Tensor) -> Tensor:
        return problem.mean_normal_data(v.reshape(z.shape)).flatten(1) + weight * v

    found = conjugate_gradients(product, z.flatten(1), reduction=1e-4, most=300)
    return found.reshape(z.shape)[0]


def by_wiener(pictures: list[Tensor], problem: ib.LinearProblem, y: Tensor) -> Tensor:
    """Wiener's filter for the pictures that are large enough."""
    large = [picture for picture in pictures if min(picture.shape[1:]) >= problem.shape[1]]
    cut_outs, _ = ib.random_crops(large, problem)(200, torch.Generator().manual_seed(5))
    return wiener(problem, y, cut_outs)


def plain_network(pictures: list[Tensor], problem: ib.LinearProblem, steps: int) -> nn.Sequential:
    """What one would try without any certificate: five layers that guess y − x for one problem."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes, layers = [1, 24, 24, 24, 24, 1], []
        for before, after in pairwise(sizes):
            layers += [nn.Conv2d(before, after, 3, padding=1, padding_mode="circular"), nn.ReLU()]
        net = nn.Sequential(*layers[:-1])
    sampler, generator = ib.random_crops(pictures, problem), torch.Generator().manual_seed(0)
    adam = torch.optim.Adam(net.parameters(), lr=2e-3)
    pace, started = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps), time.perf_counter()
    for _ in range(steps):
        x, _ = sampler(8, generator)
        y = problem.observe(x, generator=generator)
        adam.zero_grad()
        (y - net(y) - x).square().mean().backward()
        adam.step()
        pace.step()
    print(f"plain network: {time.perf_counter() - started:.0f} s", flush=True)
    return net.requires_grad_(False)
