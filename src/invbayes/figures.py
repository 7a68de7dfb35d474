"""Pictures: densities, deformed grids, arrows, and a slider that needs no kernel.

Imported by notebooks only, which first choose the book's style by
``plt.style.use("invbayes.book")``.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from html import escape
from io import BytesIO
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import HTML
from ipywidgets import Image as ImageWidget
from ipywidgets import ValueWidget, VBox
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from invbayes._checks import check_count

Box = tuple[float, float, float, float]


def lattice(box: Box, rows: int, columns: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """The points of a regular lattice, shape ``(rows, columns, 2)``.

    Args:
        box: ``(left, right, bottom, top)``.
        rows: the number of points along the vertical axis.
        columns: the number of points along the horizontal axis.
        dtype: of the points.

    Example:
        >>> lattice((0, 1, 0, 2), rows=2, columns=2).tolist()
        [[[0.0, 0.0], [1.0, 0.0]], [[0.0, 2.0], [1.0, 2.0]]]
    """
    check_count("rows", rows)
    check_count("columns", columns)
    left, right, bottom, top = box
    horizontal = torch.linspace(left, right, columns, dtype=dtype)
    vertical = torch.linspace(bottom, top, rows, dtype=dtype)
    return torch.stack(torch.meshgrid(horizontal, vertical, indexing="xy"), dim=-1)


def draw_density(ax: Axes, log_prob: Callable[[Tensor], Tensor], box: Box, **style: Any) -> None:
    """Fill the contours of ``exp(log_prob)``, at nine equal steps up to its greatest value.

    Args:
        ax: where to draw.
        log_prob: takes points ``(n, 2)`` and returns ``(n,)``; need not be normalised.
        box: ``(left, right, bottom, top)``.
        **style: passed to `matplotlib.axes.Axes.contourf`.

    Example:
        >>> ax = plt.figure().add_subplot()
        >>> draw_density(ax, lambda x: -x.square().sum(-1), (-1, 1, -1, 1), cmap="Blues")
        >>> plt.close()
    """
    points = lattice(box, rows=121, columns=121)
    values = log_prob(points.reshape(-1, 2)).detach().reshape(points.shape[:2])
    shape = (values - values.max()).exp()
    levels = torch.linspace(0.05, 1, 10).tolist()
    ax.contourf(points[..., 0], points[..., 1], shape, levels=levels, **{"alpha": 0.75, **style})
    ax.contour(
        points[..., 0], points[..., 1], shape, levels=levels[::3], colors="0.45", linewidths=0.5
    )


def draw_net(ax: Axes, nodes: Tensor, *, longest: float = math.inf, **style: Any) -> None:
    """Draw the lines that join neighbouring nodes ``(rows, columns, 2)`` of a deformed lattice.

    Neighbours farther apart than ``longest`` are not joined: there the map has torn the lattice.

    Example:
        >>> ax = plt.figure().add_subplot()
        >>> draw_net(ax, lattice((0, 1, 0, 1), rows=2, columns=3))
        >>> len(ax.lines)
        5
        >>> plt.close()
    """
    style = {"color": "0.25", "linewidth": 0.7, "linestyle": "-", **style}
    for line in (*nodes.detach(), *nodes.detach().transpose(0, 1)):
        torn = (line.diff(dim=0).norm(dim=-1) > longest).nonzero()[:, 0]
        for part in line.tensor_split((torn + 1).tolist()):
            ax.plot(*part.T, **style)


def draw_arrows(ax: Axes, start: Tensor, displacement: Tensor, **style: Any) -> None:
    """Draw arrows from ``start`` along ``displacement``, both ``(*, 2)``, to the axes' own scale.

    Example:
        >>> ax = plt.figure().add_subplot()
        >>> draw_arrows(ax, start=torch.zeros(3, 2), displacement=torch.ones(3, 2))
        >>> plt.close()
    """
    start, displacement = (each.detach().reshape(-1, 2) for each in (start, displacement))
    style = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.006, **style}
    ax.quiver(*start.T, *displacement.T, **style)


def frame(ax: Axes, box: Box, *, xlabel: str, ylabel: str, title: str = "") -> None:
    """Give a picture of the plane its window ``(left, right, bottom, top)``, equal units and labels.

    Example:
        >>> ax = plt.figure().add_subplot()
        >>> frame(ax, (-2, 2, -1, 1), xlabel="$x_1$", ylabel="$x_2$")
        >>> ax.get_ylim() == (-1, 1)
        True
        >>> plt.close()
    """
    ax.set(xlim=box[:2], ylim=box[2:], xlabel=xlabel, ylabel=ylabel, title=title, aspect="equal")


def slider(
    draw: Callable[[float], Figure],
    values: Sequence[float],
    *,
    label: str,
    alt: Callable[[float], str],
    start: int = 0,
    photo: bool = False,
) -> HTML:
    """A slider over pictures that are drawn beforehand, so that it moves without a kernel.

    Args:
        draw: returns the figure for one value; it is closed here.
        values: one picture each.
        label: what the slider changes, such as ``"noise level δ"``.
        alt: the text for a reader who cannot see the picture, for one value.
        start: the position of the picture that is shown first.
        photo: whether the pictures keep their light and dark in the book's dark theme, as
            photographs must.

    Raises:
        ValueError: without values, or if ``start`` is not a position in them.

    Example:
        >>> page = slider(lambda v: plt.figure(), [1, 2], label="n", alt=lambda v: f"n is {v}")
        >>> page.data.count("<img"), 'max="1"' in page.data
        (2, True)
    """
    if not 0 <= start < len(values):
        raise ValueError(
            f"start must be a position in values (there are {len(values)}), got {start}"
        )
    pictures = "".join(
        f'<img src="{_as_data_url(draw(value))}" alt="{escape(alt(value))}"'
        f"{' class=photo' * photo}{' hidden=hidden' * (i != start)}>"
        for i, value in enumerate(values)
    )
    names = escape(",".join(f"{value:g}" for value in values))
    return HTML(
        f'<div class="frame-slider" data-values="{names}">'
        f'<label style="display: block">{escape(label)} = '
        f'<output style="display: inline-block; min-width: 3em">{values[start]:g}</output> '
        f'<input type="range" min="0" max="{len(values) - 1}" value="{start}" '
        f'data-lm-suppress-shortcuts="true" aria-valuetext="{values[start]:g}" '
        f'oninput="{escape(_MOVE)}"></label>{_HINT}{pictures}</div>'
    )


# Inline, since Jupyter and the built page both run it, and neither needs another file. (The
# attribute data-lm-suppress-shortcuts above leaves the arrow keys to the slider in JupyterLab.)
_MOVE = (
    "const box = this.closest('.frame-slider');"
    "const value = box.dataset.values.split(',')[this.value];"
    "box.querySelectorAll('img').forEach((img, i) => { img.hidden = i != this.value; });"
    "box.querySelector('output').textContent = value;"
    "this.setAttribute('aria-valuetext', value);"
)
# JupyterLab strips the script, and attributes without a value, from pages that it does not trust:
# the hint is seen there only, and the pictures' hidden=hidden stays.
_HINT = '<p hidden="">Run this cell to make the slider move.</p>'


def live(draw: Callable[[float], Figure], control: ValueWidget) -> VBox:
    """The slider's picture for a running kernel: drawn anew whenever the control moves.

    A picture widget, and not `ipywidgets.interact`, whose output capture can stall
    nbconvert.

    Args:
        draw: returns the figure for one value; it is closed here.
        control: an ipywidgets control with a value, such as a ``FloatSlider``.

    Example:
        >>> from ipywidgets import FloatSlider
        >>> box = live(lambda v: plt.figure(), FloatSlider(value=1.0))
        >>> [type(part).__name__ for part in box.children]
        ['FloatSlider', 'Image']
    """
    first = draw(control.value)
    picture = ImageWidget(
        value=_as_png(first),
        format="png",
        layout={"align_self": "flex-start", "max_width": "100%"},  # its own size, not the page's
    )
    # To lay a figure out takes as long as to draw it: the later ones take the first one's places.
    places = [ax.get_position(original=True) for ax in first.axes]

    def redraw(change: dict[str, float]) -> None:
        figure = draw(change["new"])
        figure.set_layout_engine("none")
        for ax, place in zip(figure.axes, places, strict=False):
            ax.set_position(place)
        picture.value = _as_png(figure)

    control.observe(redraw, names="value")
    return VBox([control, picture])


def _as_data_url(figure: Figure) -> str:
    return "data:image/png;base64," + base64.b64encode(_as_png(figure)).decode()


def _as_png(figure: Figure) -> bytes:
    """A PNG of at most 64 colours, about a third of the size of a full one."""
    figure.set_dpi(110)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # savefig would do it twice
    plt.close(figure)
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    small = BytesIO()
    drawn.quantize(64).save(small, format="png", optimize=True)
    return small.getvalue()
