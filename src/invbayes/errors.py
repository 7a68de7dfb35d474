"""What the package raises, or warns of, when an answer cannot be trusted.

The details have defaults, so that the errors can be pickled: they cross from a worker process.
"""

from __future__ import annotations

import math

from torch import Tensor


class NotConverged(RuntimeError):
    """An iteration used up its steps, or stopped at a point that is not a solution.

    Attributes:
        steps: the number of iterations made.
        bound: the largest error bound that was left, in the units of the tolerance.
        point: where the iteration stood, of the shape of the answer; None where there is no point.
    """

    def __init__(
        self, message: str, *, steps: int = 0, bound: float = math.inf, point: Tensor | None = None
    ) -> None:
        super().__init__(message)
        self.steps, self.bound, self.point = steps, bound, point


class TiedModes(ValueError):
    """Two different points have the same, largest density: the MAP estimate is not unique.

    Attributes:
        index: the positions of the tied mixtures in the flattened batch.
    """

    def __init__(self, message: str, *, index: Tensor | None = None) -> None:
        super().__init__(message)
        self.index = index


class TrainingDiverged(RuntimeError):
    """A loss or its gradient became NaN or infinite.

    Attributes:
        step: the step at which it happened, counted from zero.
    """

    def __init__(self, message: str, *, step: int = 0) -> None:
        super().__init__(message)
        self.step = step


class RangeWarning(UserWarning):
    """The problem asks for slopes that the network cannot have."""


class RunawayWarning(UserWarning):
    """The training resolves structure that the samples do not have: they have no density."""
