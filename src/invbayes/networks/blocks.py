"""What a residual block must offer: the part of a network that a researcher replaces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from invbayes._checks import Shape
from invbayes.networks.state import Described


class BlockMap(Protocol):
    """A block as a function: its value, and what is known of its derivative."""

    def __call__(self, x: Tensor) -> Tensor:
        """g(x), shape ``(n, *shape)``."""

    def with_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """g(x) and its Jacobian ``(n, d, d)``."""

    def with_divergence(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """g(x) and its divergence ``(n,)``."""

    def linearised(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The product v ↦ Dg(x)ᵀ v."""


class Block(Described, ABC):
    r"""A map that never stretches a distance, :math:`\|g(x) - g(y)\| \le \|x - y\|`: subclass it.

    To define a block, set ``shape``, write `forward` and `lipschitz_bound`, and give in `options`
    the constructor's arguments, with which a saved network is built again. The rest has defaults:
    Jacobian and divergence by reverse-mode differentiation, d passes each, exact. A block that
    knows a shorter way overrides `with_divergence`, which the divergence training needs, or
    `with_jacobian`, which makes Newton's method cheap.

    The value at a point must not depend on the other points of the batch.

    Attributes:
        shape: of one point, such as ``(2,)`` or ``(1, 28, 28)``; None stands for any length.
        is_gradient: whether g is the gradient of a function, which ``potential(x)`` then gives,
            shape ``(n,)``; the inverse needs no Jacobian, only products with it. If the prepared
            block gives g's mean on segments, ``mean_between(start, end)``, `line_integral` is exact.

    Example:
        >>> import torch
        >>> class Tent(Block):
        ...     shape = (None,)
        ...
        ...     def forward(self, x):
        ...         return x.abs()
        ...
        ...     def lipschitz_bound(self):
        ...         return 1.0
        >>> block, x = Tent(), torch.tensor([[-1.0, 2.0]])
        >>> block.with_jacobian(x)[1].tolist(), block.with_divergence(x)[1].tolist()
        ([[[-1.0, 0.0], [-0.0, 1.0]]], [0.0])
        >>> block.options, block.prepared() is block, block.lipschitz_bound()
        ({}, True, 1.0)
        >>> block.linearised(x)(torch.ones(1, 2))
        tensor([[-1.,  1.]])
    """

    shape: Shape
    is_gradient = False

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """g(x) for points ``(n, *shape)``, of the same shape."""

    @abstractmethod
    def lipschitz_bound(self) -> float:
        """A certified bound of g's Lipschitz constant: at most one, whatever the parameters are."""

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of the constructor, as plain numbers, strings and tuples, for saving."""
        return {}

    def prepared(self) -> BlockMap:
        """The block for repeated use with the same parameters, work that can be shared done once."""
        return self

    def with_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """g(x) and its Jacobian ``(n, d, d)``, by d reverse-mode passes."""
        return jacobian_by_rows(self, x)

    def with_divergence(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """g(x) and its divergence ``(n,)``, the trace of `with_jacobian`."""
        value, jacobian = self.with_jacobian(x)
        return value, trace(jacobian)

    def linearised(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The product v ↦ Dg(x)ᵀ v, by reverse-mode differentiation."""
        _, pull = torch.func.vjp(self, x)
        return lambda v: pull(v)[0]

    kind = "block"

    def description(self) -> dict[str, Any]:
        """Its class and options."""
        return {"block": type(self).__name__, **self.options}


def has_own_jacobian(block: nn.Module) -> bool:
    """Whether a block knows a shorter way to its Jacobian than d passes."""
    return type(block).with_jacobian is not Block.with_jacobian


def trace(jacobian: Tensor) -> Tensor:
    """The trace of matrices ``(*, d, d)``."""
    return jacobian.diagonal(dim1=-2, dim2=-1).sum(-1)


def jacobian_by_rows(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) and its Jacobian ``(n, d, d)``, a row at a time in one vectorised backward pass."""
    value, pull = torch.func.vjp(f, x)
    units = torch.eye(x.shape[1:].numel()).to(x)

    def row(unit: Tensor) -> Tensor:
        return pull(unit.reshape(x.shape[1:]).expand(x.shape))[0]

    rows = torch.func.vmap(row)(units)
    return value, rows.flatten(2).transpose(0, 1)


def check_blocks(blocks: Block | Iterable[Block]) -> list[Block]:
    """The blocks, each with a bound of at most one, all for the same points."""
    found = [blocks] if isinstance(blocks, nn.Module) else [*blocks]
    if not found:
        raise ValueError("blocks must name at least one block, got none")
    for block in found:
        name = type(block).__name__
        if not isinstance(block, Block):
            raise ValueError(f"blocks must be instances of Block, got {name}")
        if not isinstance(getattr(block, "shape", None), tuple):
            raise ValueError(f"blocks must have a shape, a tuple, got none of {name}")
        if block.shape != found[0].shape:
            raise ValueError(f"blocks must share one shape, got {found[0].shape} and {block.shape}")
        bound = block.lipschitz_bound()
        if not bound <= 1 + 1e-5:
            raise ValueError(f"blocks must have a Lipschitz bound of at most 1, got {bound:.6g}")
        _check_stretch(block, bound)
    return found


@torch.no_grad()
def _check_stretch(block: Block, bound: float) -> None:
    """Raise if some pair of points proves a bound wrong; that none does proves nothing."""
    like = next(block.parameters(), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    kernels = (p.shape[2:] for p in block.parameters() if p.ndim == 4)
    side = max([16, *(size for kernel in kernels for size in kernel)])  # no kernel is larger
    shape = (side if size is None else size for size in block.shape)
    x, direction = torch.randn(2, 16, *shape, generator=generator).to(like)
    g = block.prepared()
    value = g(x)
    for length in (1e-2, 1.0):
        step = length * direction
        moved = (g(x + step) - value).flatten(1).norm(dim=1)
        stretch = (moved / step.flatten(1).norm(dim=1)).max().item()
        if stretch > 1.01:
            raise ValueError(
                f"blocks must have a true Lipschitz bound; {type(block).__name__} says "
                f"{bound:.3g} but moves two points {stretch:.3g} times as far apart"
            )
