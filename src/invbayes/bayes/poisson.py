"""Counting: Poisson noise with the exponential link, whose normal data lose nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from invbayes._checks import check_dtype, check_points, check_positive, number, reads_finite
from invbayes.bayes.inverse_problem import OperatorProblem, in_rows
from invbayes.bayes.operators import matrix_operator


class PoissonProblem(OperatorProblem):
    r"""Counts in a number of cells, divided by the exposure τ,

    .. math:: \tau y_i \sim \mathrm{Poisson}(\tau e^{(Ax)_i}) \text{ independently}, \qquad
        z = A^* y, \qquad \mathbb{E}[z \mid x] = A^* e^{Ax}, \qquad \delta^2 = 1 / \tau.

    z is a sufficient statistic, so the trainings for a matrix hold word for word: the inverse
    network of `Divergence` is MAP, that of `Reconstruction` the posterior mean.

    Args:
        operator: A, a dense or sparse matrix ``(m, d)``, also of `scipy.sparse`.
        exposure: τ > 0, the number of counts per unit of intensity.

    Raises:
        ValueError: if the operator is no finite matrix, the exposure is not above zero, counts
            are negative, points do not fit, or an intensity overflows.

    Source: chapter 11 of the book; exponential families in textbooks.

    Example:
        >>> import torch
        >>> problem = PoissonProblem(torch.eye(2), exposure=100.0)
        >>> x = torch.zeros(3, 2)
        >>> y = problem.observe(x, generator=torch.Generator().manual_seed(0))
        >>> torch.allclose(100 * y, (100 * y).round()), problem.noise_std, problem.exposure
        (True, 0.1, 100.0)
        >>> problem.to(dtype=torch.float64).dtype
        torch.float64
    """

    def __init__(self, operator: Tensor, exposure: float) -> None:
        check_positive("exposure", exposure)
        self._operator, self._exposure = (
            matrix_operator(operator, None),
            number("exposure", exposure),
        )

    def __repr__(self) -> str:
        sizes = f"{tuple(self.shape)} -> {tuple(self.data_shape)}"
        return f"PoissonProblem({sizes}, exposure={self.exposure:g})"

    @property
    def exposure(self) -> float:
        """τ."""
        return self._exposure

    @property
    def noise_std(self) -> float:
        r""":math:`\delta = \tau^{-1/2}`, the deviation of y where the intensity is one."""
        return self._exposure**-0.5

    @property
    def white_matrix(self) -> Tensor:
        """A, the linearisation at x = 0, where every intensity is one."""
        return self._operator.matrix()

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> PoissonProblem:
        """The same problem on another device or in another dtype."""
        if dtype is not None:
            check_dtype("dtype", dtype)
        moved = object.__new__(PoissonProblem)
        moved._operator, moved._exposure = self._operator.to(device, dtype), self._exposure
        return moved

    def apply(self, x: Tensor) -> Tensor:
        r"""The intensities :math:`e^{Ax}` for points ``(*, d)``, shape ``(*, m)``."""
        intensity = self._exponents(x).exp()
        if not reads_finite(intensity):
            raise ValueError(f"x must keep the intensities within {x.dtype}, got an overflow")
        return intensity

    def respond(self, x: Tensor, white: Tensor) -> Tensor:
        """Counts over τ at the level that each standard normal number ``(*, m)`` has among normals."""
        check_points("white", white, self.data_shape, like=self.like)
        mean = self._exposure * self.apply(x).detach().double()
        level = torch.special.ndtr(white.detach().double()).clamp(max=1 - 2.0**-53)
        from scipy import stats  # noqa: PLC0415  it takes half a second to import

        counts = torch.from_numpy(stats.poisson.ppf(level.cpu().numpy(), mean.cpu().numpy()))
        return (counts / self._exposure).to(white)

    def normal_data(self, y: Tensor) -> Tensor:
        r""":math:`z = A^* y` for counts over τ ``(*, m)``, shape ``(*, d)``."""
        self._check_counts(y)
        return in_rows(self._operator.adjoint, y, 1)

    def log_likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        r""":math:`\tau \sum_i (y_i\, (Ax)_i - e^{(Ax)_i})`; x and y are broadcast, shape ``(*,)``."""
        self._check_counts(y)
        exponents = self._exponents(x)
        return self._exposure * (y * exponents - exponents.exp()).sum(-1)

    def _exponents(self, x: Tensor) -> Tensor:
        check_points("x", x, self.shape, like=self.like)
        return in_rows(self._operator.apply, x, 1)

    def _check_counts(self, y: Tensor) -> None:
        check_points("y", y, self.data_shape, like=self.like)
        if not reads_finite(torch.where(y < 0, torch.nan, y)):
            raise ValueError(f"y must hold counts over τ, not below zero, got {y.min().item():.3g}")
