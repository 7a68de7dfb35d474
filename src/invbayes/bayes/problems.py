"""Linear inverse problems with Gaussian noise: y = A x + η."""

from __future__ import annotations

import torch
from torch import Tensor

from invbayes._checks import check_dtype, check_points
from invbayes.bayes.inverse_problem import OperatorProblem, in_rows
from invbayes.bayes.noise import coloured_noise, white_noise
from invbayes.bayes.operators import Function, Map, function_operator, matrix_operator


class LinearProblem(OperatorProblem):
    r"""A linear measurement with noise,

    .. math:: y = A x + \eta, \qquad \eta \sim \mathcal{N}(0, \delta^2 I_m) \quad\text{or}\quad
        \eta \sim \mathcal{N}(0, \Gamma).

    With a covariance Γ = R R* everything that depends on the noise sees the whitened measurement
    :math:`R^{-1} y`, whose operator is :math:`R^{-1} A` and whose noise has δ = 1.

    Args:
        operator: A, of any rank: a dense or sparse matrix ``(m, d)``, also of `scipy.sparse`; or
            a function of batches, ``(n, *shape)`` to ``(n, *data_shape)``.
        noise_std: δ > 0, the standard deviation of the noise, in the units of y.
        noise_covariance: Γ in place of δ: ``(m, m)``, or its diagonal ``(m,)``.
        shape: of one point, such as ``(1, 28, 28)``; for a matrix ``(d,)``, if it is not given.
        adjoint: A* for a function: ``(n, *data_shape)`` to ``(n, *shape)``; by default by
            automatic differentiation. Compared with A on random points.
        dtype: of the points of a function; by default PyTorch's default.

    Raises:
        ValueError: if the operator is no finite matrix and no linear function, the adjoint is not
            its adjoint, or not exactly one of δ and Γ is given, positive (definite) and of a size
            that the dtype can hold.

    Example:
        >>> import torch
        >>> problem = LinearProblem(torch.tensor([[1.0, 0.0], [0.0, 0.5]]), noise_std=0.1)
        >>> problem.apply(torch.tensor([[2.0, 2.0]]))
        tensor([[2., 1.]])
        >>> y = torch.tensor([[2.0, 1.0]])
        >>> problem.normal_data(y), torch.equal(problem.normal_data(y), problem.adjoint(y))
        (tensor([[2.0000, 0.5000]]), True)
        >>> torch.equal(problem.mean_normal_data(y), problem.normal_data(problem.apply(y)))
        True
        >>> problem.observe(torch.ones(5, 2), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([5, 2])
        >>> mean = LinearProblem(lambda x: x.mean((-1, -2)), 0.1, shape=(3, 4, 4))
        >>> mean.matrix.shape, mean.data_shape, mean.to(dtype=torch.float64).dtype
        (torch.Size([3, 48]), torch.Size([3]), torch.float64)
        >>> coloured = LinearProblem(torch.eye(2), noise_covariance=torch.tensor([4.0, 1.0]))
        >>> coloured.whiten(y), coloured.normal_data(y), coloured.colour(torch.ones(1, 2))
        (tensor([[1., 1.]]), tensor([[0.5000, 1.0000]]), tensor([[2., 1.]]))
    """

    def __init__(
        self,
        operator: Tensor | Map,
        noise_std: float | None = None,
        *,
        noise_covariance: Tensor | None = None,
        shape: tuple[int, ...] | None = None,
        adjoint: Map | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if callable(operator) and not isinstance(operator, Tensor):
            dtype = torch.get_default_dtype() if dtype is None else dtype
            check_dtype("dtype", dtype)
            like = torch.zeros((), dtype=dtype)
            self._operator = function_operator(operator, adjoint, shape, like)
        else:
            if adjoint is not None or dtype is not None:
                raise ValueError("adjoint and dtype are for a function as operator only")
            self._operator = matrix_operator(operator, shape)
        if (noise_std is None) == (noise_covariance is None):
            which = "neither" if noise_std is None else "both"
            raise ValueError(f"one of noise_std and noise_covariance must be given, got {which}")
        if noise_covariance is None:
            self._noise = white_noise(noise_std, self.like)
        else:
            self._noise = coloured_noise(noise_covariance, self.data_dim, self.like)

    def __repr__(self) -> str:
        white = self._noise.root is None
        noise = f"noise_std={self.noise_std:g}" if white else "noise_covariance"
        return f"LinearProblem({tuple(self.shape)} -> {tuple(self.data_shape)}, {noise})"

    @property
    def operator(self) -> Tensor | Map:
        """A copy of the matrix, or the function itself."""
        given = self._operator
        return given.function if isinstance(given, Function) else given.like.clone()

    @property
    def noise_std(self) -> float:
        """δ; one for a covariance, the level of the whitened noise."""
        return self._noise.std

    @property
    def matrix(self) -> Tensor:
        """A as a dense matrix of flattened points, shape ``(m, d)``: for a function d evaluations."""
        return self._operator.matrix()

    @property
    def white_matrix(self) -> Tensor:
        r""":math:`R^{-1} A`, shape ``(m, d)``; A where the noise is white."""
        return self._noise.whiten(self.matrix.mT).mT

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> LinearProblem:
        """The same problem on another device or in another dtype."""
        if dtype is not None:
            check_dtype("dtype", dtype)
        moved = object.__new__(LinearProblem)
        moved._operator = self._operator.to(device, dtype)
        moved._noise = self._noise.to(moved.like)
        return moved

    def apply(self, x: Tensor) -> Tensor:
        """A x for points ``(*, *shape)``, shape ``(*, *data_shape)``."""
        check_points("x", x, self.shape, like=self.like)
        return in_rows(self._operator.apply, x, len(self.shape))

    def adjoint(self, y: Tensor) -> Tensor:
        r""":math:`A^* y` for data ``(*, *data_shape)``, shape ``(*, *shape)``."""
        check_points("y", y, self.data_shape, like=self.like)
        return in_rows(self._operator.adjoint, y, len(self.data_shape))

    def respond(self, x: Tensor, white: Tensor) -> Tensor:
        """A x + η for the noise that `colour` makes of standard normal numbers."""
        return self.apply(x) + self.colour(white)

    def colour(self, white: Tensor) -> Tensor:
        """Noise η made of independent standard normal numbers of the data's shape."""
        check_points("white", white, self.data_shape, like=self.like)
        return self._on_rows(self._noise.colour, white)

    def whiten(self, y: Tensor) -> Tensor:
        r""":math:`R^{-1} y`, whose noise has the standard deviation `noise_std`; y for white noise."""
        check_points("y", y, self.data_shape, like=self.like)
        return self._on_rows(self._noise.whiten, y)

    def normal_data(self, y: Tensor) -> Tensor:
        r""":math:`z = A^* y`, or :math:`A^* \Gamma^{-1} y`, the right-hand side of the normal equation.

        The data of the invertible network: z has as many entries as x, and no information about x
        is lost on the way from y to z (Lemma 1 of arXiv 2510.26704).
        """
        check_points("y", y, self.data_shape, like=self.like)
        return self._pulled(y)

    def mean_normal_data(self, x: Tensor) -> Tensor:
        r""":math:`\mathbb{E}[z \mid x] = A^*\!A\, x`, or :math:`A^* \Gamma^{-1} A\, x`, ``(*, *shape)``."""
        return self._pulled(self.apply(x))

    def log_likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        r""":math:`-|R^{-1} (A x - y)|^2 / (2 \delta^2)`; x and y are broadcast, shape ``(*,)``."""
        check_points("y", y, self.data_shape, like=self.like)
        return in_rows(self._noise.log_density, self.apply(x) - y, len(self.data_shape))

    def _pulled(self, y: Tensor) -> Tensor:
        weighted = self._on_rows(self._noise.whiten_adjoint, self._on_rows(self._noise.whiten, y))
        return in_rows(self._operator.adjoint, weighted, len(self.data_shape))

    def _on_rows(self, change: Map, data: Tensor) -> Tensor:
        """Change data ``(*, *data_shape)`` as rows ``(n, m)``."""
        lead = data.shape[: data.ndim - len(self.data_shape)]
        return change(data.reshape(lead.numel(), self.data_dim)).reshape(data.shape)


def largest_gain(problem: LinearProblem, v: Tensor, steps: int) -> Tensor:
    """The largest eigenvalue of A*A that v has a part in, by power iterations; v may be several."""
    for _ in range(steps):
        v = problem.mean_normal_data(v / v.norm().clamp(min=torch.finfo(v.dtype).tiny))
    return v.norm()


def gain_of_any(problem: LinearProblem) -> float:
    """About the most that A*A does: often to constants, but not where A sharpens edges."""
    noise = torch.randn(problem.shape, generator=torch.Generator().manual_seed(0))
    starts = torch.ones(problem.shape).to(problem.like), noise.to(problem.like)
    return 1.1 * max(largest_gain(problem, v, steps=30).item() for v in starts)  # it may be low
