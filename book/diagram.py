"""Draw the introduction's diagram, `_static/diagram.png`: run by `make execute`."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

# Where the three spaces stand. Large letters: a phone shows the picture small.
PLACES = {"x": (0.0, 0.0), "y": (1.0, 1.0), "z": (2.0, 0.0)}
NAMES = {"x": "the unknown", "y": "the data", "z": "the normal data"}
BLUE, ORANGE, GREY = "C0", "C1", "0.25"


def arrow(
    ax: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    color: str,
    line: str = "-",
) -> None:
    """An arrow that leaves room for the letters at its ends."""
    style = {"arrowstyle": "-|>", "color": color, "lw": 2.2, "linestyle": line}
    style |= {"shrinkA": 25, "shrinkB": 25, "mutation_scale": 22}
    ax.annotate("", end, start, arrowprops=style)


def main() -> None:
    """Three spaces, the measurement above them, the network below."""
    plt.style.use("invbayes.book")
    figure, ax = plt.subplots(figsize=(5.6, 3.6))
    x, y, z = PLACES.values()
    for letter, place in PLACES.items():
        ax.text(*place, f"${letter}$", fontsize=30, ha="center", va="center")
    arrow(ax, x, y, GREY)
    arrow(ax, y, z, GREY)
    for height, ends, color, line in [
        (0.09, (x, z), BLUE, "-"),
        (-0.09, (z, x), ORANGE, "--"),
    ]:
        start, end = ((place[0], place[1] + height) for place in ends)
        arrow(ax, start, end, color, line)
    ax.text(
        0.42,
        0.62,
        "measured by $A$,\nwith noise",
        ha="right",
        va="bottom",
        fontsize=14,
    )
    ax.text(1.58, 0.62, "back by $A^*$", ha="left", va="bottom", fontsize=14)
    ax.text(
        1,
        0.15,
        r"$\varphi$, the network",
        color=BLUE,
        ha="center",
        va="bottom",
        fontsize=16,
    )
    below = {"ha": "center", "va": "top", "fontsize": 16}
    ax.text(1, -0.15, r"$\varphi^{-1}$, the reconstruction", color=ORANGE, **below)
    for letter, (left, height) in PLACES.items():
        at = (left, height + (0.2 if letter == "y" else -0.42))
        ax.text(*at, NAMES[letter], ha="center", va="center", fontsize=14)
    ax.set(xlim=(-0.45, 2.45), ylim=(-0.5, 1.28))
    ax.set_axis_off()
    folder = Path(__file__).parent / "_static"
    figure.savefig(folder / "diagram.png", metadata={"Software": None})


if __name__ == "__main__":
    main()
