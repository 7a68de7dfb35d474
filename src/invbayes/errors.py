"""What the package raises when an answer cannot be trusted."""

from __future__ import annotations

from torch import Tensor


class NotConverged(RuntimeError):
    """An iteration used up its steps, or stopped at a point that is not a solution.

    Attributes:
        steps: the number of iterations made.
        bound: the largest error bound that was left, in the units of the tolerance.
    """

    def __init__(self, message: str, *, steps: int, bound: float) -> None:
        super().__init__(message)
        self.steps, self.bound = steps, bound


class TiedModes(ValueError):
    """Two different points have the same, largest density: the MAP estimate is not unique.

    Attributes:
        index: the positions of the tied mixtures in the flattened batch.
    """

    def __init__(self, message: str, *, index: Tensor) -> None:
        super().__init__(message)
        self.index = index


class TrainingDiverged(RuntimeError):
    """A loss or its gradient became NaN or infinite.

    Attributes:
        step: the step at which it happened, counted from zero.
    """

    def __init__(self, message: str, *, step: int) -> None:
        super().__init__(message)
        self.step = step
