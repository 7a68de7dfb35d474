"""Nonlinear inverse problems with Gaussian noise: y = F(x) + η, as many data as unknowns."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor

from invbayes._checks import check_callable, check_float_tensor, check_points
from invbayes.bayes.inverse_problem import InverseProblem, Pullback, in_rows
from invbayes.bayes.noise import white_noise
from invbayes.bayes.operators import Map, check_one_by_one, tried


class NonlinearProblem(InverseProblem):
    r"""A smooth measurement with noise, seen from a reference point,

    .. math:: y = F(x) + \eta, \qquad \eta \sim \mathcal{N}(0, \delta^2 I_d), \qquad
        z = A_0^* y, \quad A_0 = DF(x_0), \qquad B(x) = DF(x)^{-1} A_0.

    :math:`A_0^*` mends sign and orientation, which a network of one block cannot. DF must be
    invertible wherever it is asked for. For correlated noise, whiten F and y first.

    Args:
        forward: F, a function of batches, ``(n, *shape)`` to ``(n, *data_shape)``, with as many
            data as unknowns; made of PyTorch's operations.
        noise_std: δ > 0, in the units of y.
        reference: :math:`x_0`, of shape ``shape``; its dtype and device are the problem's.
        jacobian: DF in closed form, ``(n, *shape)`` to ``(n, d, d)``, entries of F along the
            rows; by default by automatic differentiation. Compared with F at :math:`x_0`.

    Raises:
        ValueError: if F is no such function, its Jacobian is singular or not finite at a point
            where it is needed, the closed form is not its Jacobian, or points do not fit.

    Source: chapter 11 of the book.

    Example:
        >>> import torch
        >>> problem = NonlinearProblem(torch.exp, noise_std=0.1, reference=torch.zeros(2))
        >>> x = torch.tensor([[0.0, 1.0]])
        >>> problem.apply(x), problem.jacobian(x), problem.reference
        (tensor([[1.0000, 2.7183]]), tensor([[[1.0000, 0.0000],
                 [0.0000, 2.7183]]]), tensor([0., 0.]))
        >>> found = problem.pullback(x)
        >>> found.matrix.diagonal(dim1=1, dim2=2), found.divergence
        (tensor([[1.0000, 0.3679]]), tensor([[-1.0000, -0.3679]]))
        >>> problem.to(dtype=torch.float64).dtype
        torch.float64
    """

    def __init__(
        self,
        forward: Map,
        noise_std: float,
        *,
        reference: Tensor,
        jacobian: Map | None = None,
    ) -> None:
        check_callable("forward", forward)
        check_float_tensor("reference", reference)
        self._reference = reference.detach().clone()
        self._noise = white_noise(noise_std, self._reference)
        pair = _near(forward, self._reference)
        image = tried("forward", forward, pair)
        check_one_by_one("forward", image, tried("forward", forward, pair[:1]))
        self._forward, self._data_shape = forward, image.shape[1:]
        if self.data_dim != self.dim:
            raise ValueError(
                f"forward must give as many data as unknowns, {self.dim}, got {self.data_dim}"
            )
        self._closed = None
        own = self.jacobian(self._reference)
        if jacobian is not None:
            check_callable("jacobian", jacobian)
            self._closed = jacobian
            self._check_closed(own)
        self._matrix = own
        self._inverted("reference", own)

    def __repr__(self) -> str:
        return f"NonlinearProblem({tuple(self.shape)}, noise_std={self.noise_std:g})"

    @property
    def noise_std(self) -> float:
        """δ."""
        return self._noise.std

    @property
    def shape(self) -> torch.Size:
        """The shape of one point."""
        return self._reference.shape

    @property
    def data_shape(self) -> torch.Size:
        """The shape of one measurement."""
        return self._data_shape

    @property
    def like(self) -> Tensor:
        """A tensor of the points' dtype and device."""
        return self._reference

    @property
    def reference(self) -> Tensor:
        """A copy of x₀, at which A₀ = DF(x₀)."""
        return self._reference.clone()

    @property
    def white_matrix(self) -> Tensor:
        """A₀, shape ``(d, d)``."""
        return self._matrix

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> NonlinearProblem:
        """The same problem on another device or in another dtype; F must follow its input's."""
        reference = self._reference.to(device=device, dtype=dtype)
        options = {"reference": reference, "jacobian": self._closed}
        return NonlinearProblem(self._forward, self.noise_std, **options)

    def apply(self, x: Tensor) -> Tensor:
        """F(x) for points ``(*, *shape)``, shape ``(*, *data_shape)``."""
        check_points("x", x, self.shape, like=self.like)
        return in_rows(self._forward, x, len(self.shape))

    def respond(self, x: Tensor, white: Tensor) -> Tensor:
        """F(x) + δ w for standard normal numbers w, ``(*, *data_shape)``."""
        check_points("white", white, self.data_shape, like=self.like)
        return self.apply(x) + self._noise.colour(white)

    def normal_data(self, y: Tensor) -> Tensor:
        r""":math:`z = A_0^* y` for data ``(*, *data_shape)``, shape ``(*, *shape)``."""
        check_points("y", y, self.data_shape, like=self.like)
        return in_rows(self._turned, y, len(self.data_shape))

    def log_likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        r""":math:`-|F(x) - y|^2 / (2 \delta^2)`; x and y are broadcast, shape ``(*,)``."""
        check_points("y", y, self.data_shape, like=self.like)
        return in_rows(self._noise.log_density, self.apply(x) - y, len(self.data_shape))

    def jacobian(self, x: Tensor) -> Tensor:
        """DF(x) for points ``(*, *shape)``, shape ``(*, d, d)``: data along the rows."""
        check_points("x", x, self.shape, like=self.like)
        found = in_rows(self._differential, x, len(self.shape))
        if not torch.isfinite(found).all():
            raise ValueError("x must hold points where forward is differentiable, got NaN in DF")
        return found

    def pullback(self, x: Tensor) -> Pullback:
        r"""B(x) and its divergence for points ``(*, *shape)``,

        .. math:: B = DF(x)^{-1} A_0, \qquad \mathrm{div} B = -B^* \nabla \log |\det DF|,

        the second by Piola's identity.
        """
        matrix = self._inverted("x", self.jacobian(x)) @ self._matrix
        slope = in_rows(torch.func.grad(self._log_volume), x, len(self.shape))
        if not torch.isfinite(slope).all():
            raise ValueError("x must hold points where forward is twice differentiable")
        flat = slope.flatten(x.ndim - len(self.shape))
        return Pullback(matrix, -torch.einsum("...ij,...i->...j", matrix, flat))

    def _differential(self, rows: Tensor) -> Tensor:
        """DF for rows, ``(n, d, d)``.

        Backwards only: forward mode under vmap is silently wrong for `torch.linalg.solve` (PyTorch
        2.13). The rows do not see each other, so that the derivative of their sum holds them all.
        """
        if self._closed is not None:
            return self._closed(rows)
        found = torch.func.jacrev(lambda x: self._forward(x).sum(0).reshape(self.dim))(rows)
        return found.reshape(self.dim, len(rows), self.dim).movedim(0, 1)

    def _log_volume(self, rows: Tensor) -> Tensor:
        return torch.linalg.slogdet(self._differential(rows)).logabsdet.sum()

    def _inverted(self, name: str, matrices: Tensor) -> Tensor:
        inverse, failed = torch.linalg.inv_ex(matrices)
        size = torch.linalg.matrix_norm(matrices) * torch.linalg.matrix_norm(inverse)
        if failed.any() or not (size * torch.finfo(size.dtype).eps < 0.01).all():
            raise ValueError(
                f"{name} must hold points where DF is invertible, got a condition number of "
                f"{size.max().item():.2g}"
            )
        return inverse

    def _check_closed(self, own: Tensor) -> None:
        given = tried("jacobian", self._closed, self._reference[None])
        wanted = (1, self.dim, self.dim)
        if given.shape != wanted:
            raise ValueError(f"jacobian must have shape {wanted}, got {tuple(given.shape)}")
        slack = torch.finfo(own.dtype).eps ** 0.5 * own.norm()
        if (given[0] - own).norm() > slack:
            raise ValueError("jacobian must be that of forward, but differs at the reference")

    def _turned(self, rows: Tensor) -> Tensor:
        """A₀* y for rows y."""
        flat = rows.reshape(len(rows), self.dim)
        return (flat @ self._matrix).reshape(len(rows), *self.shape)


def _near(forward: Map, reference: Tensor) -> Tensor:
    """The reference and a point beside it that F is defined at, as far away as 1/8 if it can be."""
    for size in (0.125, 1e-3, 1e-6):
        pair = torch.stack([reference, reference + size])
        with torch.no_grad(), suppress(Exception):  # `tried` says what is wrong, if all fail
            if torch.isfinite(forward(pair)).all():
                return pair
    return torch.stack([reference, reference])
