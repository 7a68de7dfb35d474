"""The limit of the log-determinant training on the line and in the plane, without a network."""

from __future__ import annotations

from itertools import count

import torch
from torch import Tensor

from invbayes._checks import check_count, check_instance, check_points
from invbayes.bayes.inverse_problem import matched_weight
from invbayes.bayes.mixtures import GaussianMixture
from invbayes.bayes.posteriors import check_single
from invbayes.bayes.problems import LinearProblem
from invbayes.errors import NotConverged
from invbayes.training.metrics import check_metric

# The four pieces of a cubic B-spline, as polynomials of the place t in a cell, 0 <= t < 1.
PIECES = [[1, -3, 3, -1], [4, 0, -6, 3], [1, 3, 3, -3], [0, 0, 0, 1]]
NODES, SHARES = [0.5 - 0.15**0.5, 0.5, 0.5 + 0.15**0.5], [5, 8, 5]  # of Gauss, in a cell
ROUNDING = 4 * torch.finfo(torch.float64).eps  # of a place, relative to it
REACH, FLOOR = 5.0, 1e-9  # the box, in standard deviations; the least weight of a node


class HeatStep:
    r"""The best of all maps for the log-determinant training, one step of the heat flow,

    .. math:: \varphi = (A^*\!A\,M)^{-1}\,\nabla\Phi, \qquad \Phi \text{ minimises } \;
        \mathbb{E}\big[\tfrac12 \|\varphi(x) - A^*\!A\,x\|_M^2 - \hat\delta^2 \log\det\nabla^2\Phi(x)\big].

    This is convex in Φ. So Φ is written in cubic splines on a box of five standard deviations about
    each component, the mean is a sum over nodes, and Newton's method finds the minimum.

    Args:
        problem: the measurement; its operator must be injective.
        prior: a single mixture on the line or in the plane.
        weight: :math:`\hat\delta^2 > 0`, by default δ².
        metric: M, symmetric positive definite ``(d, d)``; the identity by default.
        cells: of the splines along each axis.

    Call:
        ``best(x)`` gives φ(x) for points ``(*, d)`` of the box.

    Raises:
        ValueError: for parts that do not fit each other, or more than two dimensions.
        NotConverged: if Newton's method does not reach the minimum.

    Source: chapter 5 of the book.

    Example:
        >>> import torch
        >>> prior = GaussianMixture.gaussian(torch.zeros(1), torch.eye(1))
        >>> best = HeatStep(LinearProblem(torch.eye(1), 2**0.5), prior)
        >>> x = torch.ones(1, 1)
        >>> torch.allclose(best(x), 2 * x, atol=1e-4)  # by the closed form
        True
        >>> torch.allclose(best.inverse(best(x)), x), best.jacobian(x).shape
        (True, torch.Size([1, 1, 1]))
    """

    def __init__(
        self,
        problem: LinearProblem,
        prior: GaussianMixture,
        *,
        weight: float | None = None,
        metric: Tensor | None = None,
        cells: int = 24,
    ) -> None:
        check_instance("problem", problem, LinearProblem)
        check_single(prior)
        check_count("cells", cells)
        if prior.dim > 2 or prior.dim != problem.dim:
            raise ValueError(f"prior must have dimension {problem.dim}, at most 2, got {prior.dim}")
        weight, wide = matched_weight(problem, weight), prior.to(dtype=torch.float64)
        metric = torch.eye(prior.dim).to(prior.means) if metric is None else metric
        check_metric("metric", metric, problem)
        normal, metric = problem.normal_operator.to(wide.means), metric.to(wide.means)
        if torch.linalg.matrix_rank(normal, hermitian=True) < prior.dim:
            raise ValueError("problem must have an injective operator, got one with a kernel")
        spread = REACH * wide.covariances.diagonal(dim1=-2, dim2=-1).sqrt()
        self.low, self.high = (wide.means - spread).amin(0), (wide.means + spread).amax(0)
        self._cells, self._width = cells, (self.high - self.low) / cells
        self._turn = torch.linalg.inv(normal @ metric)
        self._start = normal @ metric @ normal  # the Hessian of the Φ whose map is A*A
        self._point = self.low.new_zeros((cells + 3) ** prior.dim)
        self._minimise(wide, metric, weight)

    def __call__(self, x: Tensor) -> Tensor:
        """φ(x) at points ``(*, d)``."""
        check_points("x", x, len(self.low), like=x)
        return (self._bends(x)[0] @ self._turn.mT).to(x)

    def jacobian(self, x: Tensor) -> Tensor:
        """Dφ(x) at points ``(*, d)``, shape ``(*, d, d)``."""
        check_points("x", x, len(self.low), like=x)
        return (self._turn @ self._bends(x)[1]).to(x)

    def inverse(self, z: Tensor, tol: float | None = None) -> Tensor:
        """The x with φ(x) = z, by Newton's method; where the box has none, a point of its rim.

        The tolerance is in the units of x; by default 1e-8 of the box, or what rounding allows.
        """
        check_points("z", z, len(self.low), like=z)
        aim, wide = z.to(self.low) @ torch.linalg.inv(self._turn).mT, self.high - self.low
        x = ((self.low + self.high) / 2).expand(aim.shape)
        for n in range(200):
            gradient, hessian = self._bends(x)
            step = torch.linalg.solve(hessian, aim - gradient)
            share = (2 / (20 + n) / (step / wide).norm(dim=-1, keepdim=True)).clamp(max=1)
            old, x = x, torch.clamp(x + step * share, self.low, self.high)
            inside = ((x > self.low) & (x < self.high)).all(-1)
            least = torch.maximum(1e-8 * wide, ROUNDING * x.abs()) if tol is None else tol
            moving = ((x - old).abs() > least).any(-1) | (share < 1).squeeze(-1)
            if not moving[inside].any():
                return x.to(z)
        raise NotConverged("Newton's method did not find the inverse", steps=200, point=x)

    def _local(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The splines that live at x ``(n, d)``: which, and their gradients and Hessians there."""
        places, dim = (x - self.low) / self._width, x.shape[1]
        first = places.floor().clamp(0, self._cells - 1)
        t, w, pieces = places - first, self._width[:, None], torch.tensor(PIECES).to(x) / 6
        powers = (
            [t**0, t, t**2, t**3],
            [0 * t, t**0, 2 * t, 3 * t**2],
            [0 * t, 0 * t, 2 * t**0, 6 * t],
        )
        tables = [torch.stack(p, -1) / w**k @ pieces.T for k, p in enumerate(powers)]  # (n, d, 4)
        axes = list((first.long()[..., None] + torch.arange(4, device=x.device)).unbind(1))
        index = axes[0] if dim == 1 else axes[0][:, :, None] * (self._cells + 3) + axes[1][:, None]

        def product(orders: Tensor) -> Tensor:
            parts = [tables[order][:, k] for k, order in enumerate(orders.tolist())]
            return parts[0] if dim == 1 else torch.einsum("na,nb->nab", *parts).flatten(1)

        units = torch.eye(dim, dtype=torch.long)
        gradient = torch.stack([product(e) for e in units], 1)
        hessian = torch.stack([product(e + f) for e in units for f in units], 1)
        return index.flatten(1), gradient, hessian.unflatten(1, (dim, dim))

    def _bends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient and the Hessian of Φ, a quadratic function plus the splines."""
        x = x.to(self.low)
        index, *parts = self._local(x.reshape(-1, x.shape[-1]))
        found = [torch.einsum("n...a,na->n...", part, self._point[index]) for part in parts]
        gradient, hessian = (f.reshape(x.shape[:-1] + f.shape[1:]) for f in found)
        return x @ self._start + gradient, self._start + hessian

    def _minimise(self, prior: GaussianMixture, metric: Tensor, weight: float) -> None:
        """Newton's method with halved steps, for the coefficients of the splines."""
        cells, size = torch.arange(self._cells), len(self._point)
        places = (cells[:, None] + torch.tensor(NODES)).flatten().to(self.low)
        nodes, shares = [places] * prior.dim, [torch.tensor(SHARES).repeat(self._cells)] * prior.dim
        x = torch.cartesian_prod(*nodes).reshape(-1, prior.dim) * self._width + self.low
        density = prior.log_prob(x).exp()
        mass = torch.cartesian_prod(*shares).reshape(len(x), -1).prod(1).to(x)
        mass = mass * (density + FLOOR * density.max())
        mass = mass / mass.sum()
        index, gradient, hessian = self._local(x)
        pairs = (index[:, :, None] * size + index[:, None]).flatten()

        def matrix(rows: Tensor, columns: Tensor) -> Tensor:
            blocks = torch.einsum("n,nra,nrb->nab", mass, rows, columns).flatten()
            return blocks.new_zeros(size**2).index_add(0, pairs, blocks).view(size, size)

        phi = torch.einsum("ij,njk->nik", self._turn, gradient)
        image = torch.einsum("ij,njk->nik", metric, phi)
        quad = matrix(image, phi)  # the data term is a square, as the start has the map A*A

        def bent() -> Tensor:
            return self._start + torch.einsum("nija,na->nij", hessian, self._point[index])

        def value() -> Tensor:
            factor, failed = torch.linalg.cholesky_ex(bent())
            log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
            found = self._point @ quad @ self._point / 2 - weight * mass @ log_det
            return torch.where(failed.any(), torch.inf, found)

        for n in count(1):
            factor = torch.linalg.inv(torch.linalg.cholesky(bent()))
            scaled = torch.einsum("nij,njla,nml->nima", factor, hessian, factor)
            trace = mass[:, None] * scaled.diagonal(dim1=1, dim2=2).sum(-1)
            pull = self.low.new_zeros(size).index_add(0, index.flatten(), trace.flatten())
            scaled, now, start = scaled.flatten(1, 2), value(), self._point
            slope = quad @ start - weight * pull
            step, length = _solve(quad + weight * matrix(scaled, scaled), slope), 1.0
            self._point, gain = start - step, slope @ step
            if abs(gain) < 1e-9 * weight:  # the error that is left is of the order of its square
                return
            if not gain > 0 or n == 100:  # below zero: the matrix' least eigenvalues are rounding
                raise NotConverged("Newton's method did not reach the minimum", steps=n)
            while value() > now - 0.1 * length * gain and length > 1e-9:
                length /= 2
                self._point = start - length * step


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Newton's step, in coefficients of one scale. The constants change nothing and are held."""
    size = matrix.diagonal().sqrt()
    constant = size / size.norm()
    scaled = matrix / size / size[:, None] + constant * constant[:, None]
    return torch.linalg.solve(scaled, right / size) / size
