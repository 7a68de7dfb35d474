"""Linear inverse problems with white Gaussian noise: y = A x + η."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invbayes._checks import check_float_tensor, check_points, check_positive


@dataclass(frozen=True, eq=False)
class LinearProblem:
    r"""A linear measurement with noise,

    .. math:: y = A x + \eta, \qquad \eta \sim \mathcal{N}(0, \delta^2 I_m), \qquad A \in \mathbb{R}^{m \times d}.

    Args:
        operator: A, shape ``(m, d)``; any rank.
        noise_std: δ > 0, the standard deviation of the noise, in the units of y.

    Raises:
        ValueError: if the operator is not a finite floating-point matrix, or δ is not above zero.

    Example:
        >>> import torch
        >>> problem = LinearProblem(torch.tensor([[1.0, 0.0], [0.0, 0.5]]), noise_std=0.1)
        >>> problem.apply(torch.tensor([[2.0, 2.0]]))
        tensor([[2., 1.]])
        >>> y = torch.tensor([[2.0, 1.0]])
        >>> problem.normal_data(y), torch.equal(problem.normal_data(y), problem.adjoint(y))
        (tensor([[2.0000, 0.5000]]), True)
        >>> problem.observe(torch.ones(5, 2), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([5, 2])
    """

    operator: Tensor
    noise_std: float

    def __post_init__(self) -> None:
        check_float_tensor("operator", self.operator)
        if self.operator.ndim != 2 or 0 in self.operator.shape:
            came = tuple(self.operator.shape)
            raise ValueError(f"operator must be a matrix of shape (m, d), got {came}")
        check_positive("noise_std", self.noise_std)

    @property
    def data_dim(self) -> int:
        """m, the number of measurements."""
        return self.operator.shape[0]

    @property
    def dim(self) -> int:
        """d, the number of unknowns."""
        return self.operator.shape[1]

    @property
    def normal_operator(self) -> Tensor:
        r""":math:`A^* A`, shape ``(d, d)``."""
        return self.operator.mT @ self.operator

    def apply(self, x: Tensor) -> Tensor:
        """A x for points ``(*, d)``, shape ``(*, m)``."""
        check_points("x", x, self.dim, like=self.operator)
        return x @ self.operator.mT

    def adjoint(self, y: Tensor) -> Tensor:
        r""":math:`A^* y` for data ``(*, m)``, shape ``(*, d)``."""
        check_points("y", y, self.data_dim, like=self.operator)
        return y @ self.operator

    def observe(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One noisy observation y = A x + η of each point ``(*, d)``, shape ``(*, m)``.

        Args:
            x: the unknowns, shape ``(*, d)``.
            generator: the source of the noise; without one, PyTorch's global generator.
        """
        clean = self.apply(x)
        noise = torch.randn(
            clean.shape, generator=generator, dtype=clean.dtype, device=clean.device
        )
        return clean + self.noise_std * noise

    def normal_data(self, y: Tensor) -> Tensor:
        r""":math:`z = A^* y`, the right-hand side of the normal equation :math:`A^* A x = z`.

        The data of the invertible network: z has as many entries as x, and no information about x
        is lost on the way from y to z (Lemma 1 of arXiv 2510.26704).
        """
        return self.adjoint(y)


def matched_weight(problem: LinearProblem, weight: float | None) -> float:
    """A regularizer's weight δ̂² > 0, by default the matched one, δ²."""
    weight = problem.noise_std**2 if weight is None else weight
    check_positive("weight", weight)
    return weight
