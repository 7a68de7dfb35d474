"""A certificate holds for the map that is evaluated: autocast must not change it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def in_full_precision(method: Callable[P, R]) -> Callable[P, R]:
    """The method with autocast off: all is computed in the dtype of its points."""

    @wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        kinds = [v.device.type for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        with torch.autocast(kinds[0] if kinds else "cpu", enabled=False):
            return method(*args, **kwargs)

    return run
