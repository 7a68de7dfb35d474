"""Invertible residual networks: a certified bound, a guaranteed inverse, exact derivatives."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from invbayes._checks import check_count, check_points, check_positive
from invbayes.networks.contraction import MapWithJacobian, check_contraction, fixed_point
from invbayes.networks.dense import LipschitzDense
from invbayes.networks.stochastic import Estimate, log_det_series


class InvertibleResNet(nn.Module):
    r"""An invertible map of :math:`\mathbb{R}^d`, made of residual blocks,

    .. math:: \varphi = c\, (\mathrm{Id} - f_B) \circ \dots \circ (\mathrm{Id} - f_1), \qquad
        f_b = L\, g_b, \quad \mathrm{Lip}(g_b) \le 1, \quad c > 0.

    Each block stretches distances by at least 1 − L and at most 1 + L, so

    .. math:: \mathrm{Lip}(\varphi) \le c\,(1 + L)^B, \qquad \mathrm{Lip}(\varphi^{-1}) \le \frac{1}{c\,(1 - L)^B}.

    Args:
        dim: d, at least 1.
        hidden: the widths of each block's hidden layers.
        blocks: B, at least 1.
        lipschitz: L, in (0, 1).
        activation: as in `LipschitzDense`.
        scale: the initial c > 0.
        learn_scale: whether c is trained.
        generator: the source of the initial weights; without one, PyTorch's global generator.

    Raises:
        ValueError: for arguments outside these ranges.

    Source: Behrmann et al. 2019; with a learned scale as in arXiv 2510.26704.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> net = InvertibleResNet(2, generator=generator)
        >>> x = torch.ones(1, 2)
        >>> torch.allclose(net.inverse(net(x), tol=1e-4), x, atol=2e-4)
        True
        >>> net.lipschitz_bound() <= 0.99
        True
        >>> jacobian, divergence, log_abs_det = net.jacobian(x), net.divergence(x), net.log_abs_det(x)
        >>> torch.allclose(divergence[0], jacobian[0].trace())
        True
        >>> torch.allclose(log_abs_det[0], jacobian[0].logdet(), atol=1e-6)
        True
        >>> net.estimate_log_abs_det(x, terms=10, generator=generator).value.shape
        torch.Size([1])
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (32, 32),
        blocks: int = 1,
        lipschitz: float = 0.99,
        *,
        activation: str = "half_linear",
        scale: float = 1.0,
        learn_scale: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_count("blocks", blocks)
        check_contraction(lipschitz)
        check_positive("scale", scale)
        self.dim, self.lipschitz = dim, lipschitz
        self.blocks = nn.ModuleList(
            LipschitzDense(dim, hidden, activation, generator=generator) for _ in range(blocks)
        )
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=learn_scale)

    @property
    def scale(self) -> Tensor:
        """The factor c > 0, a number."""
        return self.log_scale.exp()

    def lipschitz_bound(self) -> float:
        """A certified bound for every block's f, at most L: computed by singular values."""
        return self.lipschitz * max(block.lipschitz_bound() for block in self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        r""":math:`z = \varphi(x)` for points ``(*, d)``."""
        check_points("x", x, self.dim, like=self.log_scale)
        for block in self.blocks:
            x = x - self.lipschitz * block(x)
        return self.scale * x

    def inverse(self, z: Tensor, tol: float = 1e-6, *, start: Tensor | None = None) -> Tensor:
        r""":math:`x = \varphi^{-1}(z)`, each point to an error of at most ``tol``.

        Block by block, from the last to the first. The error of a block grows by at most
        1/(1 − L) in each block that follows, and the tolerances are split accordingly.

        Args:
            z: points, shape ``(*, d)``.
            tol: the largest Euclidean error of each point, in the units of x.
            start: a guess of x, shape ``(*, d)``, that saves iterations; the answer depends on
                it within ``tol`` only.

        Raises:
            ValueError: for wrong shapes, NaN, or a tolerance that the dtype cannot reach.
            NotConverged: if a point misses its tolerance.
        """
        check_points("z", z, self.dim, like=self.log_scale)
        check_positive("tol", tol)
        if start is not None:
            check_points("start", start, self.dim, like=self.log_scale)
        with parametrize.cached():
            for block in self.blocks:
                block.weights()  # each normalised once, with its graph, for the solver has none
            x, starts = z / self.scale, self._images(start)
            for later, block in reversed([*enumerate(self.blocks)]):
                share = tol * (1 - self.lipschitz) ** later / len(self.blocks)
                x = fixed_point(
                    self._scaled(block), x, lipschitz=self.lipschitz, tol=share, start=starts[later]
                )
        return x

    @torch.no_grad()
    def _images(self, start: Tensor | None) -> list[Tensor | None]:
        """What each block receives when the network is applied to the start."""
        images = [start]
        for block in self.blocks[:-1]:
            images.append(
                None if start is None else images[-1] - self.lipschitz * block(images[-1])
            )
        return images

    def _scaled(self, block: LipschitzDense) -> MapWithJacobian:
        def with_jacobian(x: Tensor) -> tuple[Tensor, Tensor]:
            value, jacobian = block.with_jacobian(x)
            return self.lipschitz * value, self.lipschitz * jacobian

        return with_jacobian

    def with_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\varphi(x)` and its Jacobian ``(*, d, d)``."""
        check_points("x", x, self.dim, like=self.log_scale)
        identity = torch.eye(self.dim).to(x)
        jacobian = identity.expand(*x.shape, self.dim)
        for block in self.blocks:
            value, inner = block.with_jacobian(x)
            x = x - self.lipschitz * value
            jacobian = (identity - self.lipschitz * inner) @ jacobian
        return self.scale * x, self.scale * jacobian

    def with_divergence(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\varphi(x)` and :math:`\mathrm{div}\, \varphi(x) = \mathrm{tr}\, D\varphi(x)`, ``(*,)``.

        One block needs no Jacobian: see `LipschitzDense.with_divergence`.
        """
        if len(self.blocks) > 1:
            value, jacobian = self.with_jacobian(x)
            return value, jacobian.diagonal(dim1=-2, dim2=-1).sum(-1)
        check_points("x", x, self.dim, like=self.log_scale)
        value, divergence = self.blocks[0].with_divergence(x)
        inner = self.dim - self.lipschitz * divergence
        return self.scale * (x - self.lipschitz * value), self.scale * inner

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

    def estimate_log_abs_det(
        self,
        x: Tensor,
        *,
        terms: int,
        probes: int = 1,
        roulette: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Estimate:
        r"""A random estimate of `log_abs_det`, without any Jacobian: for large d.

        The sum over the blocks of `log_det_series`, whose options these are, plus :math:`d \log c`.
        The bound of its bias is the sum of the blocks' bounds.

        Args:
            x: points, shape ``(n, d)``.
            terms, probes, roulette, generator: as in `log_det_series`.
        """
        check_points("x", x, self.dim, like=self.log_scale)
        if x.ndim != 2:
            raise ValueError(f"x must have shape (n, {self.dim}), got {tuple(x.shape)}")
        total, bias = self.dim * self.log_scale, 0.0
        for block in self.blocks:
            part = log_det_series(
                lambda p, g=block: self.lipschitz * g(p),
                x,
                lipschitz=self.lipschitz,
                terms=terms,
                probes=probes,
                roulette=roulette,
                generator=generator,
            )
            total, bias = total + part.value, bias + part.bias_bound
            x = x - self.lipschitz * block(x)
        return Estimate(total, bias)
