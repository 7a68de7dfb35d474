"""The posterior of any linear problem under a prior that a network has learned by denoising."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from invbayes._checks import check_fits, check_instance, check_points, check_positive, number
from invbayes.bayes.problems import LinearProblem
from invbayes.errors import NotConverged
from invbayes.networks.contraction import Goal
from invbayes.networks.covariance import LARGEST, spectrum
from invbayes.networks.descent import StationaryPoints, best_direction, descend
from invbayes.networks.evidence import line_integral
from invbayes.networks.iresnet import InvertibleResNet
from invbayes.networks.minimum import minimum
from invbayes.networks.precision import in_full_precision
from invbayes.networks.proximal import check_one_block, concavity_defect, contraction, resolve

# The longest step of a search, in units of δ₀ √d: the network was trained to see no finer detail.
STRIDE = 5 / 2**0.5


class LearnedPosterior:
    r"""The posterior of a problem, with the prior of a network φ that was trained for denoising.

    A network trained by `Divergence` for A = I at the noise level δ₀ learns
    :math:`\mathrm{Id} - \delta_0^2 \nabla \log p_X`. For another problem with A and δ,

    .. math:: \varphi_{A,\delta}(x) = A^*\!A\, x + t\,(\varphi(x) - x), \qquad t = \frac{\delta^2}{\delta_0^2},

    is then :math:`A^*\!A\, x - \delta^2 \nabla \log p_X(x)`, which is z at the stationary points
    of the posterior. With :math:`\kappa = 1 - c\,(1 - L)` and one block

    .. math:: \langle \varphi_{A,\delta}(x) - \varphi_{A,\delta}(x'), x - x' \rangle \ge \mu\, \|x - x'\|^2, \qquad
        \mu = \lambda_{\min}(A^*\!A) - t \kappa,

    and if μ > 0 there is one such point, which `inverse` finds to a guaranteed error.

    Args:
        net: φ, of one block.
        problem: the measurement, of any rank.
        trained_at: δ₀ > 0.

    Raises:
        ValueError: for arguments that do not fit, several blocks, or a level not above zero.

    Source: chapter 9 of the book.

    Example:
        >>> import torch
        >>> source = torch.Generator().manual_seed(0)
        >>> net = InvertibleResNet.dense(2, lipschitz=0.5, scale=1.5, generator=source)
        >>> problem = LinearProblem(torch.tensor([[1.0, 0.5]]), noise_std=0.1)
        >>> learned, z = LearnedPosterior(net, problem, trained_at=0.1), torch.zeros(5, 2)
        >>> round(learned.monotonicity, 3)  # A has a kernel
        -0.25
        >>> found = learned.stationary_points(z, torch.ones(3, 1, 2))
        >>> bool(learned.score(found.x, z).abs().max() < 1e-3), learned.mode(z, found.x).shape
        (True, torch.Size([5, 2]))
        >>> learned = LearnedPosterior(net, LinearProblem(torch.eye(2), 0.1), trained_at=0.2)
        >>> x = learned.inverse(z)
        >>> bool(learned.error_bound(x, z).max() < 1e-5), learned.energy(x, z).shape
        (True, torch.Size([5]))
        >>> learned.forward_map(x).shape, learned.with_jacobian(x)[1].shape
        (torch.Size([5, 2]), torch.Size([5, 2, 2]))
    """

    def __init__(self, net: InvertibleResNet, problem: LinearProblem, *, trained_at: float) -> None:
        check_one_block(net)
        check_instance("problem", problem, LinearProblem)
        check_positive("trained_at", trained_at)
        check_fits("problem", torch.empty(problem.shape).to(problem.like), net.shape, net.log_scale)
        self.net, self.problem = net, problem
        self.trained_at = number("trained_at", trained_at)
        self.ratio = (problem.noise_std / self.trained_at) ** 2

    def __repr__(self) -> str:
        return f"LearnedPosterior({self.problem!r}, t={self.ratio:.3g})"

    @cached_property
    def normal_operator(self) -> Tensor:
        """A*A, shape ``(d, d)``."""
        return self.problem.normal_operator

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        return spectrum(self.problem)

    @property
    def monotonicity(self) -> float:
        """The certificate μ, with zero for A*A's least eigenvalue beyond 1024 unknowns."""
        least = self._spectrum[0][-1].item() ** 2 if self.problem.dim <= LARGEST else 0.0
        return least - self.ratio * concavity_defect(self.net)

    @in_full_precision
    def forward_map(self, x: Tensor) -> Tensor:
        r""":math:`\varphi_{A,\delta}(x)` for points ``(*, *shape)``."""
        return self.problem.mean_normal_data(x) + self.ratio * (self.net(x) - x)

    @in_full_precision
    def with_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\varphi_{A,\delta}(x)` and its Jacobian ``(*, d, d)``."""
        value, jacobian = self.net.with_jacobian(x)
        inner = self.ratio * (jacobian - torch.eye(self.problem.dim).to(x))
        mapped = self.problem.mean_normal_data(x) + self.ratio * (value - x)
        return mapped, self.normal_operator + inner

    def score(self, x: Tensor, z: Tensor) -> Tensor:
        r"""The learned :math:`\nabla_x \log p(x \mid z) = (z - \varphi_{A,\delta}(x)) / \delta^2`."""
        self._check(z=z)
        return (z - self.forward_map(x)) / self.problem.noise_std**2

    @in_full_precision
    def energy(
        self, x: Tensor, z: Tensor, *, origin: Tensor | None = None, nodes: int = 24
    ) -> Tensor:
        r"""The learned :math:`-\delta^2 \log p(x \mid z)`, up to a constant for each z and origin,

        .. math:: \int_0^1 \langle \varphi_{A,\delta}(x_0 + \tau (x - x_0)) - z,\, x - x_0 \rangle\, \mathrm{d}\tau .

        Args:
            x: points, shape ``(*, *shape)``.
            z: normal data that broadcast with x.
            origin: x₀, by default zero. Energies are compared with the same one.
            nodes: as in `line_integral`.

        Returns:
            Values, shape ``(*,)``.
        """
        self._check(x=x, z=z)
        origin = torch.zeros_like(x) if origin is None else origin
        self._check(origin=origin)
        work = line_integral(self.net, origin, x, nodes=nodes)
        middle, step = (x + origin) / 2, x - origin
        rest = self.problem.mean_normal_data(middle) - self.ratio * middle - z
        return self.ratio * work + self._flat(rest * step).sum(-1)

    def error_bound(self, x: Tensor, z: Tensor) -> Tensor:
        r"""A bound of the distance of any points x from the solution, if μ > 0,

        .. math:: \|x - \varphi_{A,\delta}^{-1}(z)\| \le \frac{\|\varphi_{A,\delta}(x) - z\|}{\mu} .

        Raises:
            ValueError: if μ is not above zero.
        """
        self._check(x=x, z=z)
        return self._flat(self.forward_map(x) - z).norm(dim=-1) / self._certified()

    @in_full_precision
    def inverse(self, z: Tensor, tol: float | None = None) -> Tensor:
        r""":math:`\varphi_{A,\delta}^{-1}(z)`, each point to an error of at most ``tol``, if μ > 0.

        With :math:`\varphi = c\,(\mathrm{Id} - f)` the equation is :math:`x = H^{-1} (z + t c f(x))`,
        :math:`H = A^*\!A + t (c - 1) I`, and contracts by :math:`1 - \mu / \lambda_{\min}(H)`. Beyond 1024
        unknowns a block that is a gradient needs no matrix: it takes up to 300 of Newton's steps.

        Args:
            z: normal data, shape ``(*, *shape)``.
            tol: as in `fixed_point`.

        Raises:
            ValueError: if μ is not above zero; and as `fixed_point` does.
            NotConverged: as `fixed_point` does, if these steps end too soon or rounding is too coarse.
        """
        self._check(z=z)
        if self.problem.dim > LARGEST and getattr(self.net.blocks[0], "is_gradient", False):
            return minimum(self, self._certified(), z, tol)
        least, (values, axes), scale = self._certified(), self._spectrum, self.net.scale.item()
        spread = (values[0].item() ** 2 + self.ratio * (1 + 2 * scale)) / least  # of the slopes
        lipschitz = contraction(self.net, self.ratio, least)
        goal = Goal.of(lipschitz, tol)._replace(growth=spread * (1 - lipschitz))
        near = (axes.mT / (values.square() + self.ratio * (scale - 1)) @ axes).to(z)
        maps = self.forward_map, self.with_jacobian
        return resolve(self.net, *maps, lambda rows: rows @ near, z, goal)

    def stationary_points(
        self, z: Tensor, starts: Tensor, *, tol: float | None = None, max_steps: int = 100
    ) -> StationaryPoints:
        r"""Solutions of :math:`\varphi_{A,\delta}(x) = z` by descent from given points, for any μ.

        Newton's steps where the symmetric part of the Jacobian is positive definite, steps that
        turn downhill elsewhere, each shortened until the energy falls: the search leaves saddle
        points. There is no guarantee that all solutions are found.

        Args:
            z: normal data, shape ``(*, *shape)``.
            starts: where to begin, of a shape that broadcasts with z, such as ``(k, 1, d)``.
            tol: the largest residual, in the units of z; by default :math:`\varepsilon^{0.6}`; where
                the energy is flat, the distance to a solution is much larger.
            max_steps: of each search.

        Raises:
            NotConverged: if a search misses the tolerance; it carries the points reached.
        """
        self._check(z=z, starts=starts)
        x = self._descended(z, starts, tol, max_steps)
        value, jacobian = self.with_jacobian(x)
        size = self._flat(value - z).norm(dim=-1)
        is_mode = torch.linalg.cholesky_ex(jacobian + jacobian.mT).info == 0
        return StationaryPoints(x, size, is_mode)

    def mode(
        self, z: Tensor, starts: Tensor, *, tol: float | None = None, max_steps: int = 100
    ) -> Tensor:
        """The solution with the least energy among those reached from several starts.

        Many unknowns and a block that is a gradient need no Jacobian. A search that misses the
        tolerance counts only where it is lowest when it stops: there it goes on for as many steps
        again. A mode that it would have reached later is not found.

        Args:
            z, tol, max_steps: as in `stationary_points`.
            starts: k of them along the first axis, ``(k, *, *shape)``.

        Raises:
            NotConverged: if the lowest search misses the tolerance; it carries the lowest points.
        """
        self._check(z=z, starts=starts)
        if starts.ndim <= z.ndim:
            raise ValueError(f"starts must have one axis more than z, got {tuple(starts.shape)}")
        try:
            found = self._descended(z, starts, tol, max_steps)
            origin = found[0]
        except NotConverged as missed:  # a far origin would falsify energies of an inexact gradient
            found = missed.point
            left = self._flat(self.forward_map(found) - z).norm(dim=-1)
            origin = self._picked(found, left.argmin(0))
        best = self.energy(found, z.expand(found.shape), origin=origin).argmin(0)
        return self._descended(z, self._picked(found, best), tol, max_steps)

    def _picked(self, found: Tensor, which: Tensor) -> Tensor:
        """For each datum one of the points ``(k, *, *shape)``."""
        index = which.reshape(1, *which.shape, *[1] * len(self.problem.shape))
        return found.gather(0, index.expand(1, *found.shape[1:]))[0]

    @in_full_precision
    def _descended(self, z: Tensor, starts: Tensor, tol: float | None, max_steps: int) -> Tensor:
        """Where descent from the starts ends, of the shape that they broadcast to with z."""
        starts, z = torch.broadcast_tensors(starts, z)
        targets = z.reshape(-1, *self.problem.shape)

        def field(x: Tensor, rows: Tensor) -> Tensor:
            return self.forward_map(x) - targets[rows]

        direction = best_direction(self.net, self.problem, self.ratio, self.with_jacobian)
        longest = STRIDE * self.trained_at * self.problem.dim**0.5
        options = {"longest": longest, "tol": tol, "max_steps": max_steps}
        try:
            x = descend(field, direction, starts.reshape(targets.shape), **options)
        except NotConverged as failure:
            failure.point = failure.point.reshape(z.shape)
            raise
        return x.reshape(z.shape)

    def _flat(self, points: Tensor) -> Tensor:
        """Each point as one row, ``(*, d)``."""
        return points.flatten(points.ndim - len(self.problem.shape))

    def _check(self, **points: Tensor) -> None:
        for name, value in points.items():
            check_points(name, value, self.problem.shape, like=self.problem.like)

    def _certified(self) -> float:
        """μ, if it is above zero."""
        mu = self.monotonicity
        if mu <= 0:
            needed = self.ratio * concavity_defect(self.net)
            raise ValueError(
                "problem must have A*A larger than what the prior may lack in concavity: its least "
                f"eigenvalue is {mu + needed:.3g}, and t κ = {needed:.3g}; use stationary_points"
            )
        return mu
