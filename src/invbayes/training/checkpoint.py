"""The file of a training under way: what it holds, and whether it is that of this training."""

from __future__ import annotations

import copy
import os
import tempfile
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invbayes._checks import check_instance

Path = str | os.PathLike[str]


def check_place(path: Path) -> None:
    """Raise unless a file can lie there: before the first step, and not after a minute."""
    check_instance("checkpoint", path, str, os.PathLike)
    try:
        with tempfile.TemporaryFile(dir=os.path.dirname(os.path.abspath(path))):
            pass
    except OSError as error:
        raise ValueError(
            f"checkpoint must lie in a folder that can be written to, got {path}"
        ) from error


def mark_of(
    options: tuple[int, int, float, float],
    objective: object,
    sampler: object,
    generator: torch.Generator | None,
    stepper: torch.optim.Optimizer,
) -> dict[str, str]:
    """What a training has in common with its file, in words; before a schedule changes the sizes."""
    groups = [
        {name: _shown(option) for name, option in group.items() if name != "params"}
        for group in stepper.param_groups
    ]
    marks = {
        "steps, batch, warmup, average": options,
        "objective": _kind(objective),
        "sampler": _kind(sampler),
        "generator": "none" if generator is None else "its own",
        "optimizer": _kind(stepper),
        "options of the optimizer": groups,
    }
    return {name: str(value) for name, value in marks.items()}


def write(path: Path, content: dict[str, Any]) -> None:
    """All of it or nothing: the old file stays until the new one is there."""
    torch.save(_plain(content), f"{path}.new")
    os.replace(f"{path}.new", path)


def read(path: Path, mark: dict[str, str]) -> dict[str, Any]:
    """What `write` wrote, if it bears the mark."""
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        found = dict(content["mark"])
    except Exception as error:
        raise ValueError(f"checkpoint must be a file of a training, got {path}") from error
    for name, mine in mark.items():
        if found.get(name) != mine:
            raise ValueError(
                f"checkpoint must be of this training, with {name} = {mine}, "
                f"got one with {found.get(name)}"
            )
    return content


def _kind(part: object) -> str:
    """The name of a part's class; of a function its own, as all of them have one class."""
    part = part.func if isinstance(part, partial) else part
    return getattr(part, "__qualname__", type(part).__qualname__)


def _shown(option: object) -> object:
    """An option of an optimiser, where it reads the same in every session."""
    if isinstance(option, Tensor):
        return option.tolist()
    return _plain(option) if isinstance(option, (int, float, str, tuple, np.generic)) else None


def _plain(value: Any) -> Any:
    """With Python's numbers for NumPy's, which a file that is read safely cannot hold."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (list, tuple):
        return type(value)(_plain(entry) for entry in value)
    if isinstance(value, dict):
        fresh = copy.copy(value)  # the dict of a network's state has attributes, too
        fresh.update((k, _plain(entry)) for k, entry in value.items())
        return fresh
    return value
