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


def in_full_precision(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """The method with autocast off: all is computed in the dtype of its points."""

    @wraps(method)
    def run(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        kinds = [v.device.type for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        with torch.autocast(kinds[0] if kinds else "cpu", enabled=False):
            return method(self, *args, **kwargs)

    return run
