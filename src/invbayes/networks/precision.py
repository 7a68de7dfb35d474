"""A certificate holds for the map that is evaluated: autocast must not change it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


def in_full_precision(
    method: Callable[Concatenate[S, Tensor, P], R],
) -> Callable[Concatenate[S, Tensor, P], R]:
    """The method with autocast off: all is computed in the dtype of its points."""

    @wraps(method)
    def run(self: S, x: Tensor, *args: P.args, **kwargs: P.kwargs) -> R:
        kind = x.device.type if isinstance(x, Tensor) else "cpu"
        with torch.autocast(kind, enabled=False):
            return method(self, x, *args, **kwargs)

    return run
