"""A trained network in a file: its architecture, its bound, its parameters."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch

from invbayes._checks import check_instance
from invbayes.networks.blocks import Block
from invbayes.networks.convolutional import LipschitzConvolutional
from invbayes.networks.dense import LipschitzDense
from invbayes.networks.iresnet import InvertibleResNet
from invbayes.networks.ridge import Ridge
from invbayes.networks.weakly_convex import WeaklyConvexRidge

FORMAT, VERSION = "invbayes.InvertibleResNet", 1
OWN = (LipschitzDense, LipschitzConvolutional, Ridge, WeaklyConvexRidge)


def save_network(net: InvertibleResNet, path: str | PathLike[str]) -> None:
    r"""Write a network to a file from which `load_network` builds the same map.

    The file holds the blocks' class names and options, L, the parameters and which of them are
    trained, all as plain data, and the version of this format.

    Args:
        net: φ; each block's `Block.options` must be the arguments of its constructor.
        path: of the file.

    Raises:
        ValueError: if a block could not be built again from its options.

    Example:
        >>> import tempfile, torch
        >>> net = InvertibleResNet.dense(2, (8, 8), lipschitz=0.9)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_network(net, f"{folder}/net.pt")
        ...     again = load_network(f"{folder}/net.pt")
        >>> x = torch.ones(3, 2)
        >>> torch.equal(net(x), again(x)), again.lipschitz
        (True, 0.9)
    """
    check_instance("net", net, InvertibleResNet)
    for block in net.blocks:
        _check_options(block)
    # Blocks that share their parameters are built again apart: each trains its own.
    parameters = net.named_parameters(remove_duplicate=False)
    parts = [{"block": type(block).__name__, "options": block.options} for block in net.blocks]
    content = {
        "format": FORMAT,
        "version": VERSION,
        "lipschitz": net.lipschitz,
        "dtype": str(net.log_scale.dtype).removeprefix("torch."),
        "blocks": parts,
        "trained": [name for name, value in parameters if value.requires_grad],
        "state": net.state_dict(),
    }
    torch.save(content, path)


def load_network(
    path: str | PathLike[str],
    *,
    blocks: Sequence[type[Block]] = (),
    device: torch.device | str = "cpu",
) -> InvertibleResNet:
    r"""The network that `save_network` wrote. The file is read as data: no code in it is run.

    Args:
        path: of the file.
        blocks: the classes of your own blocks; the package's own are known.
        device: where the network shall be.

    Raises:
        ValueError: if the file holds something else, comes from a newer version, or names a block
            that is not among the classes.
        FileNotFoundError: if there is no such file.

    Example:
        >>> import tempfile
        >>> class Tent(Block):
        ...     shape = (None,)
        ...
        ...     def forward(self, x):
        ...         return x.abs()
        ...
        ...     def lipschitz_bound(self):
        ...         return 1.0
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_network(InvertibleResNet(Tent()), f"{folder}/net.pt")
        ...     net = load_network(f"{folder}/net.pt", blocks=[Tent])
        >>> net.blocks
        ModuleList(
          (0): Tent()
        )
    """
    content = _read(path, device)
    for cls in blocks:
        if not isinstance(cls, type):
            raise ValueError(f"blocks must hold classes, got an instance of {type(cls).__name__}")
    known = {cls.__name__: cls for cls in (*OWN, *blocks)}
    unknown = {part["block"] for part in content["blocks"]} - known.keys()
    if unknown:
        raise ValueError(f"blocks must hold the classes of this file's blocks, {sorted(unknown)}")
    made = [known[part["block"]](**part["options"]) for part in content["blocks"]]
    net = InvertibleResNet(made, lipschitz=content["lipschitz"])
    net.to(device=device, dtype=getattr(torch, content["dtype"]))
    net.load_state_dict(content["state"])
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in content["trained"])
    return net


def _read(path: str | PathLike[str], device: torch.device | str) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"path must name a file of save_network, {path} is none") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"path must name a file of save_network, {path} holds something else")
    if content["version"] > VERSION:
        raise ValueError(
            f"path must name a file of version {VERSION} or before, got {content['version']}: "
            "update invbayes"
        )
    return content


def _check_options(block: Block) -> None:
    """Raise before a file is written that could not be read."""
    try:
        inspect.signature(type(block)).bind(**block.options)
    except TypeError as error:
        raise ValueError(
            f"net must have blocks whose options are their constructor's arguments; those of "
            f"{type(block).__name__}, {block.options}, are not: {error}"
        ) from error
