"""A progress bar that the environment can switch off."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")


def progress_bar(steps: Iterable[T], *, total: int | None = None, show: bool = True) -> Iterable[T]:
    """The same steps, one after the other, with tqdm's progress bar, which goes when they end.

    TQDM_DISABLE=1 in the environment hides it. (tqdm heeds that itself, but not in notebooks.)

    Args:
        steps: whatever is to be done.
        total: their number, where ``steps`` does not know it.
        show: whether to show the bar at all.

    Example:
        >>> sum(progress_bar(range(4), show=False))
        6
    """
    hidden = not show or os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
    return tqdm(steps, total=total, leave=False, disable=hidden)
