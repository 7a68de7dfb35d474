"""Random numbers from a generator that may live on another device than the data."""

from __future__ import annotations

import torch
from torch import Tensor


def standard_normal(
    shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Independent standard normal numbers of the dtype and device of ``like``."""
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=device).to(like.device)


def random_signs(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Independent signs ±1 of the shape, dtype and device of ``like``."""
    device = like.device if generator is None else generator.device
    return (2 * torch.randint(0, 2, like.shape, generator=generator, device=device) - 1).to(like)


def random_part(n: int, count: int, generator: torch.Generator | None) -> Tensor:
    """``count`` of the positions 0 … n − 1, none twice."""
    device = "cpu" if generator is None else generator.device
    return torch.randperm(n, generator=generator, device=device)[:count]
