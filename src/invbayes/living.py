"""Figures that compute in the built page: what their JavaScript needs to know, as JSON.

Imported by notebooks only. The scripts are in ``book/_static/living``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import torch
from IPython.display import HTML
from torch import Tensor

from invbayes._checks import check_instance
from invbayes.bayes.mixtures import GaussianMixture
from invbayes.networks.activations import HalfLinear
from invbayes.networks.dense import LipschitzDense
from invbayes.networks.iresnet import InvertibleResNet

_ELSEWHERE = (
    "This figure lives in the built book: open its page in a browser (see the README). "
    "Here, use the slider."
)


def living_figure(
    figure: str,
    *,
    label: str,
    start: Mapping[str, Any],
    witness: Sequence[Mapping[str, Any]],
    **data: Any,
) -> HTML:
    """A figure that the reader of the built page drags; it computes there, without a kernel.

    Mixtures, networks and tensors among the data are written out in full: what the page computes
    agrees with PyTorch to rounding, and the page says by how much, at the witnesses.

    Args:
        figure: the name of its script, such as ``"posterior"``.
        label: what it is, for a reader who cannot see it.
        start: what the reader sets, as it stands first, such as ``{"point": [0.1, 0.5]}``.
        witness: a ``{"state": …, "expected": …}`` for each place where the page checks itself
            against numbers from PyTorch.
        **data: what else the script computes with: numbers, text, lists, `Tensor`,
            `GaussianMixture`, `InvertibleResNet` of one dense block.

    Raises:
        ValueError: for a network that the page cannot compute, or a piece of data of another kind.

    Example:
        >>> page = living_figure("posterior", label="a point", start={"point": [0, 1]}, witness=[])
        >>> 'data-figure="posterior"' in page.data, '"point": [0, 1]' in page.data
        (True, True)
    """
    known = {"start": start, "witness": witness, **data}
    # "</" would end the script.
    numbers = json.dumps(known, default=_plain, allow_nan=False).replace("</", "<\\/")
    return HTML(
        f'<div class="living" data-figure="{escape(figure)}" role="group" '
        f'aria-label="{escape(label)}"><p>{_ELSEWHERE}</p>'
        f'<script type="application/json">{numbers}</script></div>'
    )


def _plain(value: Any) -> Any:
    """What JSON has no word for."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, GaussianMixture):
        return {key: getattr(value, key) for key in ("weights", "means", "covariances")}
    check_instance("data", value, InvertibleResNet)
    return _network(value)


def _network(net: InvertibleResNet) -> dict[str, Any]:
    """The normalised weights, as the bytes of doubles: thirteen kilobytes for the default width."""
    block = net.blocks[0]
    known = isinstance(block, LipschitzDense) and all(
        isinstance(each, HalfLinear) for each in block.activations
    )
    if len(net.blocks) > 1 or not known:
        raise ValueError("data must hold networks of one dense block with half-linear layers only")
    return {
        "lipschitz": net.lipschitz,
        "scale": net.scale.item(),
        "weights": [_bytes(weight) for weight in block.weights()],
        "biases": [_bytes(layer.bias) for layer in block.layers],
        "sharpnesses": [_bytes(each.log_sharpness.exp()) for each in block.activations],
    }


def _bytes(values: Tensor) -> str:
    plain = values.detach().to("cpu", torch.float64).contiguous().numpy().astype("<f8")
    return base64.b64encode(plain.tobytes()).decode()
