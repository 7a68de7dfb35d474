"""What every training asks of a measurement, whatever its operator and its noise."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from invbayes._checks import check_fits, check_points, check_positive, number
from invbayes._random import standard_normal
from invbayes.bayes.operators import Map, Operator


class Pullback(NamedTuple):
    """The field of matrices through which a problem turns posterior gradients into data.

    Attributes:
        matrix: B, shape ``(*, d, d)``.
        divergence: the rows' divergence :math:`(\\mathrm{div} B)_j = \\sum_i \\partial_i B_{ij}`,
            shape ``(*, d)``.
    """

    matrix: Tensor
    divergence: Tensor


class InverseProblem(ABC):
    r"""A measurement y of x, seen by a network through normal data z as large as x,

    .. math:: z = A_0^* y, \qquad \mathbb{E}[z \mid x] = A_0^*\, \mathbb{E}[y \mid x], \qquad
        B(x)^{*}\, \nabla_x \log p(z \mid x) = \delta^{-2} (z - \mathbb{E}[z \mid x]).

    The second is all that the approximation, log-determinant and divergence trainings need, and
    the third is where B comes from: `WeightedDivergence`. For a matrix, and for counts, B is the
    identity; see `NonlinearProblem` for another one.

    A class for another noise defines the abstract members below.

    Source: chapter 11 of the book.

    Example:
        >>> from invbayes import LinearProblem
        >>> problem = LinearProblem(torch.eye(2), noise_std=0.1)
        >>> isinstance(problem, InverseProblem), problem.dim, problem.data_dim, problem.dtype
        (True, 2, 2, torch.float32)
        >>> x = torch.ones(5, 2)
        >>> y = problem.observe(x, generator=torch.Generator().manual_seed(0))
        >>> problem.log_likelihood(x, y).shape, problem.pullback(x).matrix.shape
        (torch.Size([5]), torch.Size([5, 2, 2]))
        >>> bool((problem.respond(x, torch.zeros(5, 2)) == problem.apply(x)).all())
        True
        >>> torch.equal(problem.mean_normal_data(x), problem.normal_data(problem.apply(x)))
        True
    """

    @property
    @abstractmethod
    def noise_std(self) -> float:
        """δ; its square is the factor between the loss's regularizer and the posterior."""

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """The shape of one point."""

    @property
    @abstractmethod
    def data_shape(self) -> torch.Size:
        """The shape of one measurement."""

    @property
    @abstractmethod
    def like(self) -> Tensor:
        """A tensor of the points' dtype and device."""

    @property
    @abstractmethod
    def white_matrix(self) -> Tensor:
        """The operator, or its linearisation, on data whose noise is white, ``(m, d)``."""

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """The mean of the data, E[y | x], for points ``(*, *shape)``."""

    @abstractmethod
    def respond(self, x: Tensor, white: Tensor) -> Tensor:
        """One observation of each point, made of standard normal numbers ``(*, *data_shape)``."""

    @abstractmethod
    def normal_data(self, y: Tensor) -> Tensor:
        """z for data ``(*, *data_shape)``, shape ``(*, *shape)``."""

    @abstractmethod
    def log_likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(y | x) up to a constant that may depend on y; x and y are broadcast, ``(*,)``."""

    @property
    def data_dim(self) -> int:
        """m, the number of measurements."""
        return self.data_shape.numel()

    @property
    def dim(self) -> int:
        """d, the number of unknowns."""
        return self.shape.numel()

    @property
    def dtype(self) -> torch.dtype:
        """Of points and data."""
        return self.like.dtype

    @property
    def normal_operator(self) -> Tensor:
        r""":math:`A^* A`, or :math:`A^* \Gamma^{-1} A`, or that of the linearisation, ``(d, d)``."""
        white = self.white_matrix
        return white.mT @ white

    def observe(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One noisy observation of each point ``(*, *shape)``, shape ``(*, *data_shape)``.

        Args:
            x: the unknowns, shape ``(*, *shape)``.
            generator: the source of the noise; without one, PyTorch's global generator.
        """
        check_fits("x", x, self.shape, like=self.like)  # the values are looked at by `apply`
        lead = x.shape[: x.ndim - len(self.shape)]
        return self.respond(x, standard_normal((*lead, *self.data_shape), x, generator))

    def mean_normal_data(self, x: Tensor) -> Tensor:
        r""":math:`\mathbb{E}[z \mid x]` for points ``(*, *shape)``, of their shape."""
        return self.normal_data(self.apply(x))

    def pullback(self, x: Tensor) -> Pullback:
        """B(x) and div B(x): the identity and zero, unless a class says otherwise."""
        check_points("x", x, self.shape, like=self.like)
        lead, eye = x.shape[: x.ndim - len(self.shape)], torch.eye(self.dim).to(x)
        return Pullback(eye.expand(*lead, *eye.shape), x.new_zeros(*lead, self.dim))


class OperatorProblem(InverseProblem):
    """A problem that takes its sizes, its dtype and its device from an operator."""

    _operator: Operator

    @property
    def shape(self) -> torch.Size:
        """The shape of one point; ``(d,)`` for a matrix."""
        return torch.Size(self._operator.shape)

    @property
    def data_shape(self) -> torch.Size:
        """The shape of one measurement; ``(m,)`` for a matrix."""
        return torch.Size(self._operator.data_shape)

    @property
    def like(self) -> Tensor:
        """A tensor of the points' dtype and device."""
        return self._operator.like


def in_rows(function: Map, points: Tensor, axes: int) -> Tensor:
    """Apply a function of one batch axis to points with any leading axes."""
    lead = points.shape[: points.ndim - axes]
    image = function(points.reshape(lead.numel(), *points.shape[points.ndim - axes :]))
    return image.reshape((*lead, *image.shape[1:]))


def matched_weight(problem: InverseProblem, weight: float | None) -> float:
    """A regularizer's weight δ̂² > 0, by default the matched one, δ²."""
    if weight is not None:
        check_positive("weight", weight)
        return number("weight", weight)
    matched = problem.noise_std * problem.noise_std
    if not 0 < matched < math.inf:
        raise ValueError(
            f"noise_std must have a square that is finite and > 0, got {problem.noise_std}"
        )
    return matched
