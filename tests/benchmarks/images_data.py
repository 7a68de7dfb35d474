"""What the networks of `images.py` and their rivals are trained and judged on."""

from __future__ import annotations

import math

import torch
from skimage.metrics import structural_similarity
from torch import Tensor, nn

import invbayes as ib
from invbayes.imaging import gaussian_blur, photograph, tomograph

TRAINING = ("astronaut", "chelsea", "coffee", "rocket", "stereo_motorcycle")
TESTS = ("camera", "coins", "moon")
RAYS = tomograph(128, angles=30).astype("float32")


def units(name: str, halvings: int) -> Tensor:
    """A photograph in units in which noise of a tenth of its range is one."""
    return 10 * (photograph(name, halvings) - 0.5)


def training_pictures(halvings: tuple[int, ...] = (0, 1)) -> list[Tensor]:
    """Each in several sizes, by default full and half."""
    return [units(name, count) for name in TRAINING for count in halvings]


def test_picture(name: str, size: int) -> Tensor:
    """The middle of a halved photograph that no network was trained on."""
    picture = units(name, 0 if name == "coins" else 1)
    picture = nn.functional.avg_pool2d(picture, 2) if size < 200 else picture
    top, left = ((side - min(size, side)) // 2 for side in picture.shape[1:])
    return picture[:, top : top + size, left : left + size]


def decibels(found: Tensor, x: Tensor) -> float:
    """The peak signal-to-noise ratio."""
    return -10 * math.log10((found - x).square().mean().item() / 100)


def alike(found: Tensor, x: Tensor) -> float:
    """The structural similarity."""
    return structural_similarity(found[0].numpy(), x[0].numpy(), data_range=10)


def observed(problem: ib.LinearProblem, x: Tensor, seed: int = 12345) -> Tensor:
    """The same noise for the same seed."""
    return problem.observe(x, generator=torch.Generator().manual_seed(seed))


def operators(name: str) -> dict[str, tuple[ib.LinearProblem, Tensor]]:
    """A blur of 1.5 pixels with noise of a hundredth; thirty views with one per cent of noise."""
    large, small = test_picture(name, 256), test_picture(name, 128)
    level = 0.01 * projected(small[None]).abs().mean().item()
    scan = ib.LinearProblem(projected, level, shape=small.shape, adjoint=projected_back)
    return {"deblurring": (blur(large.shape), large), "tomography": (scan, small)}


def noise(shape: tuple[int, ...]) -> ib.LinearProblem:
    """Noise of one, and nothing else, for pictures of one size."""
    return ib.LinearProblem(torch.clone, 1.0, shape=shape)


def blur(shape: tuple[int, ...]) -> ib.LinearProblem:
    """For pictures of one size; see `operators`."""
    return ib.LinearProblem(gaussian_blur(1.5), 0.1, shape=shape)


def projected(x: Tensor) -> Tensor:
    """The sinogram of pictures."""
    return torch.from_numpy((RAYS @ x.flatten(1).numpy().T).T)


def projected_back(y: Tensor) -> Tensor:
    """The adjoint."""
    return torch.from_numpy((RAYS.T @ y.numpy().T).T).reshape(-1, 1, 128, 128)
