"""The network of a deep inverse prior: wide, with two layers, and its kernel."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from invbayes._checks import check_count, check_dtype, check_fits, check_flag, check_matrix
from invbayes._random import standard_normal


@cache
def _mean_squared_slope() -> float:
    """E tanh'(ξ)² for ξ ~ N(0, 1), by Gauss and Hermite."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    return float(weights @ (1 - np.tanh(nodes) ** 2) ** 2 / weights.sum())


class DeepPrior(nn.Module):
    r"""A wide network without training data, which maps its parameters to an unknown,

    .. math:: g(W) = \frac{1}{\sqrt{k}}\, D\, V \tanh(W u), \qquad W \in \mathbb{R}^{k \times p},

    with a fixed input u of length one, fixed output weights V, a fixed decoder D (the identity,
    unless one is given), and W the only parameter. At the start W is standard Gaussian, and V is
    Gaussian with the variance :math:`1 / \mathbb{E} \tanh'(\xi)^2`, :math:`\xi \sim \mathcal{N}(0, 1)`,
    so that the kernel :math:`\partial_W g\, (\partial_W g)^*` has the mean :math:`D D^*`. The buffer
    ``output_weight`` holds :math:`V / \sqrt{k}`.

    Args:
        dim: d, the number of unknowns.
        width: k.
        input_dim: p. Only W u matters, so p = 1 loses nothing for gradient descent and inertia.
        decoder: D, shape ``(d, r)``.
        zero_start: whether to pair each unit with another one of opposite output weight, so that
            g vanishes at the start; k must be even.
        dtype: of everything, real.
        generator: the source of u, V and W; without one, PyTorch's global generator.

    Raises:
        ValueError: for sizes that are not positive, a decoder that is no matrix with d rows, an
            odd width with ``zero_start``, a dtype that is not real; by `output` and `pull_back` for
            a W or a direction of another shape or dtype. NaN in them gives NaN.

    Source: two-layer deep priors as in arXiv 2303.11265; D, the zero start and the scale of V are ours.

    Example:
        >>> import torch
        >>> net = DeepPrior(dim=3, width=10, zero_start=True, generator=torch.Generator().manual_seed(0))
        >>> net().abs().max() < 1e-15
        tensor(True)
        >>> torch.equal(net.output(net.weight), net())
        True
        >>> net.kernel().shape, torch.equal(net.limit_kernel(), torch.eye(3).double())
        (torch.Size([3, 3]), True)
        >>> net.pull_back(net.weight.detach(), torch.ones(3).double()).shape
        torch.Size([10, 1])
    """

    def __init__(
        self,
        dim: int,
        width: int,
        *,
        input_dim: int = 1,
        decoder: Tensor | None = None,
        zero_start: bool = False,
        dtype: torch.dtype = torch.float64,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value in {"dim": dim, "width": width, "input_dim": input_dim}.items():
            check_count(name, value)
        check_flag("zero_start", zero_start)
        if zero_start and width % 2:
            raise ValueError(f"width must be even with zero_start, got {width}")
        check_dtype("dtype", dtype)
        like = torch.zeros((), dtype=dtype)
        if decoder is not None:
            check_matrix("decoder", decoder, dim)
            decoder = decoder.detach().to(like, copy=True)
        self.dim, self.width = dim, width
        half = width // 2 if zero_start else width
        u = standard_normal((input_dim,), like, generator)
        codes = dim if decoder is None else decoder.shape[1]
        v = standard_normal((codes, half), like, generator) / _mean_squared_slope() ** 0.5
        w = standard_normal((half, input_dim), like, generator)
        if zero_start:
            v, w = torch.cat([v, -v], dim=1), torch.cat([w, w])
        self.register_buffer("input", u / u.norm())
        self.register_buffer("output_weight", v / width**0.5)
        self.register_buffer("decoder", decoder)
        self.weight = nn.Parameter(w)

    def forward(self) -> Tensor:
        """g(W) for the current W, shape ``(d,)``."""
        return self.output(self.weight)

    def output(self, weight: Tensor) -> Tensor:
        """g as a function of W, shape ``(*, k, p)`` to ``(*, d)``."""
        check_fits("weight", weight, self.weight.shape, like=self.weight)
        return self._decode(torch.tanh(weight @ self.input) @ self.output_weight.mT)

    def kernel(self) -> Tensor:
        r"""The kernel of the current W, shape ``(d, d)``,

        .. math:: M = \partial_W g\, (\partial_W g)^* = \tfrac1k\, D V \,\mathrm{diag}\big(\tanh'(W u)\big)^2\, V^* D^* .
        """
        root = self._decode((self.output_weight * self._slopes(self.weight.detach())).mT)
        return root.mT @ root

    def limit_kernel(self) -> Tensor:
        """The kernel's mean at the start, and its limit as k grows, D D*, shape ``(d, d)``."""
        root = self._decode(torch.eye(len(self.output_weight)).to(self.weight))
        return root.mT @ root

    def pull_back(self, weight: Tensor, direction: Tensor) -> Tensor:
        r"""The adjoint of the derivative at W, for a direction ``(*, d)``, shape ``(*, k, p)``,

        .. math:: (\partial_W g)^* v = \tfrac{1}{\sqrt k}\, \big(\tanh'(W u) \circ V^* D^* v\big)\, u^* .
        """
        check_fits("weight", weight, self.weight.shape, like=self.weight)
        check_fits("direction", direction, (self.dim,), like=self.weight)
        codes = direction if self.decoder is None else direction @ self.decoder
        return (codes @ self.output_weight * self._slopes(weight))[..., None] * self.input

    def _slopes(self, weight: Tensor) -> Tensor:
        return 1 - torch.tanh(weight @ self.input).square()

    def _decode(self, codes: Tensor) -> Tensor:
        """D applied to rows of codes."""
        return codes if self.decoder is None else codes @ self.decoder.mT
