"""Steps towards a fixed point: plain, Newton's, Anderson's, each with its safeguard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from invbayes.networks.conjugate import PRODUCTS, REDUCTION, conjugate_gradients

Method = Literal["newton", "newton-cg", "anderson", "plain"]
Linearised = Callable[[Tensor], Callable[[Tensor], Tensor]]
MEMORY = 6


class Points(NamedTuple):
    """Points on their way: their row in the batch, f there, its Jacobian if the method uses it."""

    rows: Tensor
    target: Tensor
    x: Tensor
    value: Tensor
    jacobian: Tensor | None = None

    def take(self, chosen: Tensor) -> Points:
        """Some of the points."""
        return Points(*(None if part is None else part[chosen] for part in self))

    def put(self, chosen: Tensor, others: Points) -> None:
        """Replace some of the points."""
        for part, fresh in zip(self, others, strict=True):
            if part is not None:
                part[chosen] = fresh

    @property
    def residual(self) -> Tensor:
        """z + f(x) − x."""
        return self.target + self.value - self.x

    def size(self) -> Tensor:
        """The residual's length at each point."""
        return self.residual.norm(dim=-1)

    def rounding(self) -> Tensor:
        """How far the residual's size may be off, since it is a difference of larger numbers."""
        terms = self.target.norm(dim=-1) + self.value.norm(dim=-1) + self.x.norm(dim=-1)
        return torch.finfo(terms.dtype).eps * terms


class Steps:
    """Plain steps, x ← z + f(x): no trial, no safeguard, one evaluation each."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        self.f = f

    def evaluate(self, x: Tensor, rows: Tensor) -> Tensor:  # noqa: ARG002  for the others
        """f at points of these rows of the batch."""
        return self.f(x)

    def at(self, rows: Tensor, target: Tensor, x: Tensor) -> Points:
        """f at x, copied: it may hand out views."""
        value = self.evaluate(x, rows)
        if not isinstance(value, Tensor) or value.shape != x.shape:
            came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"f must map {tuple(x.shape)} to the same shape, got {came}")
        return Points(rows, target, x, value.clone())

    def keep(self, moving: Tensor) -> None:
        """Forget the points that are done."""

    def trials(self, points: Points) -> list[Tensor]:  # noqa: ARG002  for the others
        """Where to go, the best guess first; a plain step follows them all."""
        return []

    def advance(self, points: Points, lipschitz: float) -> Points:
        """Try one place after the other where the residual does not shrink enough."""
        first, *others = *self.trials(points), points.x + points.residual
        moved = self.at(points.rows, points.target, first)
        enough = max(lipschitz, 0.9) * points.size()
        for trial in others:
            poor = (~(moved.size() <= enough)).nonzero().flatten()
            if not len(poor):
                break
            moved.put(poor, self.at(points.rows[poor], points.target[poor], trial[poor]))
        return moved


class NewtonSteps(Steps):
    """Newton's step with the Jacobian, then a quarter of it."""

    def __init__(self, with_jacobian: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        self.with_jacobian = with_jacobian

    def at(self, rows: Tensor, target: Tensor, x: Tensor) -> Points:
        """f and its Jacobian at x."""
        found = self.with_jacobian(x)
        wanted = (x.shape, (*x.shape, x.shape[-1]))
        if not isinstance(found, tuple) or tuple(part.shape for part in found) != wanted:
            came = [tuple(part.shape) for part in found]
            raise ValueError(
                f"with_jacobian must map (n, d) to (n, d) and (n, d, d), got {came} for "
                f"{tuple(x.shape)}"
            )
        return Points(rows, target, x, *(part.clone() for part in found))

    def trials(self, points: Points) -> list[Tensor]:
        """The whole step, and a quarter of it."""
        identity = torch.eye(points.x.shape[-1]).to(points.x)
        step = torch.linalg.solve_ex(identity - points.jacobian, points.residual)[0]
        return [points.x + step, points.x + step / 4]


class ConjugateSteps(Steps):
    """Newton's step by conjugate gradients where f is a gradient, then shorter ones.

    With −1 < Df < 1 the matrix I − Df is positive definite, and along Newton's step the residual
    falls at first: a short enough one always helps. Each step is solved to a twentieth.
    """

    def __init__(self, f: Callable[[Tensor], Tensor], linearised: Linearised) -> None:
        super().__init__(f)
        self.linearised = linearised

    def trials(self, points: Points) -> list[Tensor]:
        """The whole step, a quarter, a sixteenth of it."""
        product = self.linearised(points.x)
        step = conjugate_gradients(
            lambda v: v - product(v), points.residual, reduction=REDUCTION, most=PRODUCTS
        )
        return [points.x + step / share for share in (1, 4, 16)]


class AndersonSteps(Steps):
    """The combination of the last steps whose linear model has the least residual.

    With the differences X and R of the last points and residuals, γ minimises ‖r − R γ‖, and
    the trial is x + r − (X + R) γ: Newton's step on the span of R, without a Jacobian.
    """

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__(f)
        self.last: tuple[Tensor, Tensor] | None = None
        self.moves: list[tuple[Tensor, Tensor]] = []

    def keep(self, moving: Tensor) -> None:
        """Forget the history of the points that are done."""
        self.moves = [(x[moving], r[moving]) for x, r in self.moves]
        self.last = None if self.last is None else (self.last[0][moving], self.last[1][moving])

    def trials(self, points: Points) -> list[Tensor]:
        """The combined step; none at first."""
        x, r = points.x, points.residual
        if self.last is not None:
            self.moves = [*self.moves, (x - self.last[0], r - self.last[1])][-MEMORY:]
        self.last = (x, r)
        if not self.moves:
            return []
        dx, dr = (torch.stack(parts, -1) for parts in zip(*self.moves, strict=True))
        gamma = _least_squares(dr, r)
        return [x + r - ((dx + dr) @ gamma[..., None]).squeeze(-1)]


class LinearSteps(AndersonSteps):
    """Anderson's steps for a linear map that only knows the whole batch, such as w ↦ Df(x)ᵀ w."""

    def __init__(self, product: Callable[[Tensor], Tensor], size: int) -> None:
        super().__init__(product)
        self.batch = size

    def evaluate(self, x: Tensor, rows: Tensor) -> Tensor:
        """The product at some rows: the others are zero."""
        whole = x.new_zeros(self.batch, x.shape[1]).index_copy(0, rows, x)
        return self.f(whole)[rows]


def _least_squares(matrix: Tensor, right: Tensor) -> Tensor:
    """The γ of least ‖right − matrix γ‖, by normal equations with columns of length one.

    A little damping keeps parallel columns harmless; the safeguard judges the result.
    """
    size = matrix.norm(dim=-2).clamp(min=torch.finfo(matrix.dtype).tiny)
    unit = matrix / size[..., None, :]
    gram = unit.mT @ unit
    damped = gram + 16 * torch.finfo(gram.dtype).eps * torch.eye(gram.shape[-1]).to(gram)
    found = torch.linalg.solve_ex(damped, (unit.mT @ right[..., None]).squeeze(-1))[0]
    return found / size


def make_steps(
    method: Method,
    f: Callable[[Tensor], Tensor],
    with_jacobian: Callable[[Tensor], tuple[Tensor, Tensor]] | None,
    linearised: Linearised | None,
) -> Steps:
    """The steps of a method."""
    if method == "newton":
        return NewtonSteps(with_jacobian)
    if method == "newton-cg":
        return ConjugateSteps(f, linearised)
    return AndersonSteps(f) if method == "anderson" else Steps(f)
