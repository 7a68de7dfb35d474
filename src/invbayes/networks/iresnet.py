"""Invertible residual networks: a certified bound, a guaranteed inverse, exact derivatives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from invbayes._checks import (
    Shape,
    check_contraction,
    check_count,
    check_fits,
    check_flag,
    check_points,
    check_positive,
    number,
)
from invbayes.errors import NotConverged
from invbayes.networks.blocks import Block, check_blocks, trace
from invbayes.networks.contraction import Goal, check_start
from invbayes.networks.dense import LipschitzDense
from invbayes.networks.inversion import undo_blocks
from invbayes.networks.precision import in_full_precision
from invbayes.networks.state import Described
from invbayes.networks.steps import Method
from invbayes.networks.stochastic import Estimate, residual_log_det


class InvertibleResNet(Described):
    r"""An invertible map of :math:`\mathbb{R}^d`, made of residual blocks,

    .. math:: \varphi = c\, (\mathrm{Id} - f_B) \circ \dots \circ (\mathrm{Id} - f_1), \qquad
        f_b = L\, g_b, \quad \mathrm{Lip}(g_b) \le 1, \quad c > 0.

    Each block stretches distances by at least 1 − L and at most 1 + L, so

    .. math:: \mathrm{Lip}(\varphi) \le c\,(1 + L)^B, \qquad \mathrm{Lip}(\varphi^{-1}) \le \frac{1}{c\,(1 - L)^B}.

    All is computed in the parameters' dtype, single or double precision, despite autocast.

    Args:
        blocks: the g_b, one `Block` or several; all for points of one shape.
        lipschitz: L, in (0, 1).
        scale: the initial c > 0.
        learn_scale: whether c is trained.

    Raises:
        ValueError: for arguments outside these ranges, a block that is no `Block`, whose bound
            exceeds one, or whose shape is another one.

    Source: Behrmann et al. 2019; with a learned scale as in arXiv 2510.26704.

    Example:
        >>> import torch
        >>> from invbayes import Ridge
        >>> generator = torch.Generator().manual_seed(0)
        >>> net = InvertibleResNet.dense(2, generator=generator)
        >>> x = torch.ones(1, 2)
        >>> torch.allclose(net.inverse(net(x), tol=1e-4), x, atol=2e-4)
        True
        >>> net.lipschitz_bound() <= 0.99
        True
        >>> jacobian, divergence, log_abs_det = net.jacobian(x), net.divergence(x), net.log_abs_det(x)
        >>> exact = torch.stack([jacobian[0].trace(), jacobian[0].logdet()])
        >>> torch.allclose(torch.cat([divergence, log_abs_det]), exact, atol=1e-6)
        True
        >>> net.estimate_log_abs_det(x, terms=10, generator=generator).value.shape
        torch.Size([1])
        >>> InvertibleResNet(Ridge((2,), filters=4)).potential(x).shape
        torch.Size([1])
        >>> InvertibleResNet([LipschitzDense(2), LipschitzDense(2, (8,))]).shape
        (2,)
    """

    def __init__(
        self,
        blocks: Block | Iterable[Block],
        *,
        lipschitz: float = 0.99,
        scale: float = 1.0,
        learn_scale: bool = True,
    ) -> None:
        super().__init__()
        check_contraction(lipschitz)
        check_positive("scale", scale)
        check_flag("learn_scale", learn_scale)
        self.lipschitz = number("lipschitz", lipschitz)
        self.blocks = nn.ModuleList(check_blocks(blocks))
        like = next(self.blocks.parameters(), torch.zeros(()))
        log_scale = torch.tensor(math.log(scale), dtype=like.dtype, device=like.device)
        self.log_scale = nn.Parameter(log_scale, requires_grad=learn_scale)

    @classmethod
    def dense(
        cls,
        dim: int,
        hidden: Sequence[int] | None = None,
        blocks: int = 1,
        lipschitz: float = 0.99,
        *,
        scale: float = 1.0,
        learn_scale: bool = True,
        **options: Any,
    ) -> InvertibleResNet:
        """A network of ``blocks`` dense blocks; the options are those of `LipschitzDense`."""
        check_count("blocks", blocks)
        made = [LipschitzDense(dim, hidden, **options) for _ in range(blocks)]
        return cls(made, lipschitz=lipschitz, scale=scale, learn_scale=learn_scale)

    def extra_repr(self) -> str:
        """L and the scale."""
        return f"lipschitz={self.lipschitz:g}, scale={self.scale.item():.4g}"

    kind = "network"

    def description(self) -> dict[str, Any]:
        """What the parameters do not tell: it goes into ``state_dict``."""
        return {"lipschitz": self.lipschitz}

    @property
    def shape(self) -> Shape:
        """The shape of one point; None stands for any length."""
        return self.blocks[0].shape

    @property
    def scale(self) -> Tensor:
        """The factor c > 0, a number."""
        return self.log_scale.exp()

    def lipschitz_bound(self) -> float:
        """A certified bound for every block's f, at most L: computed by singular values."""
        return self.lipschitz * max(block.lipschitz_bound() for block in self.blocks)

    @in_full_precision
    def forward(self, x: Tensor) -> Tensor:
        r""":math:`z = \varphi(x)` for points ``(*, *shape)``; the values are not checked."""
        rows = self._rows("x", x)
        for block in self.blocks:
            rows = rows - self.lipschitz * block(rows)
        return (self.scale * rows).reshape(x.shape)

    @in_full_precision
    def inverse(
        self,
        z: Tensor,
        tol: float | None = None,
        *,
        start: Tensor | None = None,
        method: Method | None = None,
    ) -> Tensor:
        r""":math:`x = \varphi^{-1}(z)`, each point to an error of at most ``tol``.

        Block by block, from the last to the first. The error of a block grows by at most
        1/(1 − L) in each block that follows, and the tolerances are split accordingly.

        Args:
            z: points, shape ``(*, *shape)``.
            tol: the largest Euclidean error of each point, in the units of x; by default 1e-6, or
                what the dtype can reach, as in `fixed_point`.
            start: a guess of x, of the shape of z, that saves iterations; the answer depends on
                it within ``tol`` only.
            method: as in `fixed_point`, or ``"newton-cg"`` for gradients; by default Newton's for
                blocks that know their Jacobian and at most 128 unknowns, else the latter or Anderson's.

        Raises:
            ValueError: for wrong shapes, NaN, or a tolerance that the dtype cannot reach.
            NotConverged: if a point misses its tolerance; it carries the x reached, and a bound
                of its error.
        """
        check_points("z", z, self.shape, like=self.log_scale)
        goal = Goal.of(self.lipschitz, tol)
        if z.dtype.itemsize < 4:
            raise ValueError(f"z must be in single or double precision, got {z.dtype}")
        maps = [block.prepared() for block in self.blocks]
        rows, first = self._rows("z", z), None
        if start is not None:
            check_start(start, z, self.shape)
            first = self._rows("start", start.detach())
        try:
            return undo_blocks(maps, rows / self.scale, first, goal, method).reshape(z.shape)
        except NotConverged as failure:
            raise self._with_bound(failure, rows, z.shape) from failure

    @torch.no_grad()
    def _with_bound(self, failure: NotConverged, z: Tensor, shape: torch.Size) -> NotConverged:
        """The failure of some block as that of the network: with x, and a bound of x's error."""
        residual = ((self(failure.point) - z) / self.scale).flatten(1).norm(dim=1).max().item()
        bound = residual / (1 - self.lipschitz) ** len(self.blocks)
        return NotConverged(
            str(failure), steps=failure.steps, bound=bound, point=failure.point.reshape(shape)
        )

    def _rows(self, name: str, x: Tensor) -> Tensor:
        """The points in one batch axis; nothing is asked of their values."""
        check_fits(name, x, self.shape, like=self.log_scale)
        return x.reshape(-1, *x.shape[x.ndim - len(self.shape) :])

    @in_full_precision
    def with_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\varphi(x)` and its Jacobian ``(*, d, d)``, d the number of entries of a point."""
        rows, lead = self._rows("x", x), x.shape[: x.ndim - len(self.shape)]
        identity = torch.eye(rows.shape[1:].numel()).to(x)
        jacobian = identity.expand(len(rows), *identity.shape)
        for block in self.blocks:
            value, inner = block.with_jacobian(rows)
            rows = rows - self.lipschitz * value
            jacobian = (identity - self.lipschitz * inner) @ jacobian
        jacobian = (self.scale * jacobian).reshape(*lead, *identity.shape)
        return (self.scale * rows).reshape(x.shape), jacobian

    @in_full_precision
    def with_divergence(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\varphi(x)` and :math:`\mathrm{div}\, \varphi(x) = \mathrm{tr}\, D\varphi(x)`, ``(*,)``.

        One block needs no Jacobian, if it knows its own divergence; several do.
        """
        if len(self.blocks) > 1:
            value, jacobian = self.with_jacobian(x)
            return value, trace(jacobian)
        rows, lead = self._rows("x", x), x.shape[: x.ndim - len(self.shape)]
        value, divergence = self.blocks[0].with_divergence(rows)
        inner = rows.shape[1:].numel() - self.lipschitz * divergence
        value = self.scale * (rows - self.lipschitz * value)
        return value.reshape(x.shape), (self.scale * inner).reshape(lead)

    @in_full_precision
    def potential(self, x: Tensor) -> Tensor:
        r""":math:`\Psi^*(x)` with :math:`\nabla \Psi^* = \varphi`, ``(*,)``, for one block that is a gradient."""
        if len(self.blocks) > 1 or not self.blocks[0].is_gradient:
            raise ValueError("net must have one block, and that a gradient, to have a potential")
        rows, lead = self._rows("x", x), x.shape[: x.ndim - len(self.shape)]
        half = rows.flatten(1).square().sum(1) / 2
        return (self.scale * (half - self.lipschitz * self.blocks[0].potential(rows))).reshape(lead)

    def with_log_abs_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\varphi(x)` and :math:`\log |\det D\varphi(x)|`, ``(*,)``, from `with_jacobian`."""
        value, jacobian = self.with_jacobian(x)
        return value, torch.linalg.slogdet(jacobian).logabsdet

    def jacobian(self, x: Tensor) -> Tensor:
        r""":math:`D\varphi(x)`, shape ``(*, d, d)``."""
        return self.with_jacobian(x)[1]

    def divergence(self, x: Tensor) -> Tensor:
        r""":math:`\mathrm{tr}\, D\varphi(x)`, shape ``(*,)``."""
        return self.with_divergence(x)[1]

    def log_abs_det(self, x: Tensor) -> Tensor:
        r""":math:`\log |\det D\varphi(x)|`, shape ``(*,)``."""
        return self.with_log_abs_det(x)[1]

    @in_full_precision
    def estimate_log_abs_det(self, x: Tensor, *, terms: int, **options: Any) -> Estimate:
        r"""A random estimate of `log_abs_det`, without any Jacobian: for large d.

        The sum over the blocks of `log_det_series`, plus :math:`d \log c`. The bound of its bias
        is the sum of the blocks' bounds.

        Args:
            x: points, shape ``(n, *shape)``.
            terms: as in `log_det_series`.
            **options: of `log_det_series`: ``probes``, ``roulette``, ``generator``.
        """
        rows = self._rows("x", x)
        if x.shape != rows.shape:
            wanted = ", ".join(map(str, ("n", *self.shape)))
            raise ValueError(f"x must have shape ({wanted}), got {tuple(x.shape)}")
        found = residual_log_det(self.blocks, self.lipschitz, rows, terms=terms, **options)
        return found._replace(value=found.value + rows.shape[1:].numel() * self.log_scale)
