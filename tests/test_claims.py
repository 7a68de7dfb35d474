"""Numbers that the prose quotes from the tables of `make bench`, computed again from the tables.

When a benchmark has written new tables, this says which sentences have to follow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

import pytest

from book.chapters import BOOK, text

PICTURES = ("camera", "coins", "moon")
EDGES = ("camera", "moon")
STEEP = [f"steep, 3000 steps, seed {seed}" for seed in range(3)]
FALLING = [f"falling, 3000 steps, seed {seed}" for seed in range(3)]
CONVEX, HELD = ["convex, 3000 steps, seed 0", *STEEP], "held, 3000 steps, seed 0"
PLAIN = "plain network of 16081 weights, 6000 steps"
TV, TV_BEST = "total variation", "total variation, its best weight"
TASKS = ("deblurring", "tomography")
PEAK = "divergence, 3000 steps of 1024, against exact MAP"
FORGIVEN = "the fold forgiven, 3000 steps of 1024, against exact MAP"
ONE = "one denoising network for every problem, 12 000 steps of 1024, against exact MAP"
PATIENT = PEAK.replace("3000", "12 000")
PAGES = ("which_training.yml", "08_error_bars", "09_one_network", "10_images")


@cache
def said(page: str) -> str:
    """What a notebook or a file of the book says, with single spaces."""
    found = (BOOK / page).read_text(encoding="utf-8") if "." in page else text(page)
    return re.sub(r"\s+", " ", found)


@cache
def table(name: str, title: str) -> dict[str, dict[str, list[float]]]:
    """The numbers in each cell, by row and column; a row for A and δ is called "A, δ"."""
    page = "\n" + (BOOK / "_generated" / f"{name}.md").read_text(encoding="utf-8")
    part = page.split(f"**{title}**")[1] if title else page
    lines = part[part.index("\n|") :].strip().split("\n\n")[0].split("\n")
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    keys = 2 if r"$\delta$" in head else 1
    return {
        ", ".join(row[:keys]): dict(zip(head[keys:], map(numbers, row[keys:]), strict=True))
        for row in rows
    }


def numbers(cell: str) -> list[float]:
    """All of a cell."""
    return [float(found) for found in re.findall(r"-?\d+(?:\.\d+)?", cell)]


def column(name: str, title: str, head: str, rows: str = "") -> list[float]:
    """All numbers of a column, in the rows whose names match."""
    found = table(name, title).items()
    return [value for row, cells in found if re.search(rows, row) for value in cells[head]]


def span(values: Iterable[float]) -> tuple[float, float]:
    """From the least to the largest."""
    return min(values := list(values)), max(values)


def less(first: list[float], second: list[float]) -> list[float]:
    """Differences; one number is subtracted from all."""
    second = second * len(first) if len(second) == 1 else second
    return [a - b for a, b in zip(first, second, strict=True)]


def denoised(row: str, name: str) -> list[float]:
    """The decibels of a row."""
    found = table("images_denoising", "") | table("images_falling", "")
    return found[row][name]


def above(
    rows: list[str], rival: str, names: tuple[str, ...] = PICTURES, sign: int = 1
) -> list[float]:
    """By how many decibels rows are above another, in denoising; with the sign −1 below it."""
    pairs = [(denoised(row, name), denoised(rival, name)) for row in rows for name in names]
    return [sign * value for pair in pairs for value in less(*pair)]


def ahead(
    tasks: tuple[str, ...] | list[str],
    head: str,
    rival: str,
    names: tuple[str, ...] = PICTURES,
    sign: int = 1,
) -> list[float]:
    """By how many decibels a column is above another; with the sign −1 below it."""
    rows = [f"{task}, {name}" for task in tasks for name in names]
    found = [
        table("images_operators", "")[row] | table("images_operators_falling", "")[row]
        for row in rows
    ]
    return [sign * value for row in found for value in less(row[head], row[rival])]


def bars(blobs: str, training: str, head: str, rows: str = "") -> list[float]:
    """A column of the error bars' tables."""
    return column("error_bars", f"{blobs} blobs: {training}", head, rows)


def behind_the_search() -> list[float]:
    """How much farther from MAP a problem's own network is than the denoiser and a search."""
    both = (column("one_network", "", head, "0.5") for head in ("the same, all", "all"))
    return [own / search for own, search in zip(*both, strict=True)]


def gained(row: str) -> list[float]:
    """By how much the networks trained on finer pictures are above those from before."""
    found = table("images_finer", "")[row]
    return less(found["falling"], found["falling before"])


# The words, with a # for each number, and the numbers.
CLAIMS = [
    ("# to # dB below total variation in denoising", lambda: span(above(CONVEX, TV, sign=-1))),
    (
        "# below or level in deblurring and # to # behind in tomography, each",
        lambda: (
            max(ahead(TASKS[:1], "steep", TV, sign=-1)),
            *span(ahead(TASKS[1:], "steep", TV, sign=-1)),
        ),
    ),
    (
        "A weakly convex one is # to # dB above total variation in denoising",
        lambda: span(above(FALLING, TV)),
    ),
    (
        "from # below to # above elsewhere",
        lambda: (
            max(ahead(TASKS, "falling", TV, sign=-1)),
            max(ahead(TASKS, "falling", TV)),
        ),
    ),
    ("nearer to MAP by factors of # to #", lambda: span(behind_the_search())),
    (
        "from # dB below total variation to # above in deblurring; in tomography they are # to # "
        "dB above the linear estimate and # to # behind total variation. And $\\lambda = 1$ costs "
        "them # dB at most. BM3D's deblurring is # dB ahead of total variation on the camera",
        lambda: (
            max(ahead(TASKS[:1], "steep", TV, sign=-1)),
            max(ahead(TASKS[:1], "steep", TV)),
            *span(ahead(TASKS[1:], "steep", "linear")),
            *span(ahead(TASKS[1:], "steep", TV, sign=-1)),
            max(ahead(TASKS, "steep", "λ = 1")),
            *ahead(TASKS[:1], "BM3D", TV, ("camera",)),
        ),
    ),
    (
        "The fall alone is worth # to # dB on the camera, # on the coins and # to # on the moon",
        lambda: (
            *span(above(FALLING, HELD, ("camera",))),
            sum(above(FALLING, HELD, ("coins",))) / 3,
            *span(above(FALLING, HELD, ("moon",))),
        ),
    ),
    (
        "are # to # dB above total variation and # to # above non-local means with the weight of "
        "the cat. With the best weight on the moon itself total variation is # to # ahead there",
        lambda: (
            *span(above(FALLING, TV)),
            *span(above(FALLING, "non-local means")),
            *span(above(FALLING, TV_BEST, ("moon",), sign=-1)),
        ),
    ),
    (
        "Non-local means are # to # above *steep* on all three. The plain network, larger and "
        "deeper, is # to # above *steep*, and BM3D {cite}`dabov2007image`, which compares distant "
        "patches, # to #.",
        lambda: [
            end
            for rival in ("non-local means", PLAIN, "BM3D")
            for end in span(above(STEEP, rival, sign=-1))
        ],
    ),
    (
        "level with total variation, to #, whose penalty is convex, too; on the other two it is "
        "# to # below",
        lambda: (
            max(map(abs, above(STEEP, TV, ("camera",)))),
            *span(above(STEEP, TV, ("coins", "moon"), sign=-1)),
        ),
    ),
    ("the fall gained # to # dB", lambda: span(above(FALLING, HELD))),
    ("BM3D is ahead by # to # on all three", lambda: span(above(FALLING, "BM3D", sign=-1))),
    (
        "In deblurring the networks with their best λ are # to # dB above the linear estimate "
        "with its best weight, and from level with total variation, to # dB, (coins) to # above "
        "(camera). With $\\lambda = 1$ they are # to # dB above Wiener's filter",
        lambda: (
            *span(ahead(TASKS[:1], "falling", "linear")),
            max(map(abs, ahead(TASKS[:1], "falling", TV, ("coins",)))),
            max(ahead(TASKS[:1], "falling", TV, ("camera",))),
            *span(ahead(TASKS[:1], "λ = h = 1", "Wiener")),
        ),
    ),
    (
        "between # dB behind total variation in tomography and # ahead, and # to # above the "
        "linear estimate. With $\\lambda = h = 1$ they lose # to # dB on the camera and the moon, "
        "and are # to # behind total variation",
        lambda: (
            max(ahead(TASKS[1:], "falling", TV, sign=-1)),
            max(ahead(TASKS[1:], "falling", TV)),
            *span(ahead(TASKS[1:], "falling", "linear")),
            *span(ahead(TASKS[1:], "falling", "λ = h = 1", EDGES)),
            *span(ahead(TASKS[1:], "λ = h = 1", TV, EDGES, sign=-1)),
        ),
    ),
    (
        "with the best weight for it, # to # behind)",
        lambda: span(above(FALLING, TV_BEST, ("moon",), sign=-1)),
    ),
    (
        "for the moon with the best weight for it # to #)",
        lambda: span(above(CONVEX, TV_BEST, ("moon",), sign=-1)),
    ),
    (
        "the worst error of the evidence falls from # to # on two blobs and from # to # on three",
        lambda: [
            max(bars(blobs, training, "evidence"))
            for blobs in ("Two", "Three")
            for training in ("trained for the mean", "in the metric $M = W^{-1}$")
        ],
    ),
    (
        "comes within # % of the Bayes error on two blobs and within # % on three. Its covariance "
        "is about as good as with the truth, except where $A$ is weak and $\\delta = 0.5$ (# % "
        "instead of # % on two blobs)",
        lambda: (
            100 * max(bars("Two", "trained without the truth", "error")) - 100,
            100 * max(bars("Three", "trained without the truth", "error")) - 100,
            *bars("Two", "trained without the truth", "rms", "⅛.*0.5"),
            *bars("Two", "trained for the mean", "rms", "⅛.*0.5"),
        ),
    ),
    (
        "by # to # % on two blobs, and by # to # % on three, except the weak operator at "
        "$\\delta = 0.2$, where # % of the data have one mode (# to # %)",
        lambda: (
            *span(bars("Two", PEAK, "to Laplace", "0.5")),
            *span(bars("Three", PEAK, "to Laplace", "0.5|½.*0.2|⅛.*0.1")),
            *bars("Three", PEAK, "one mode", "⅛.*0.2"),
            *bars("Three", PEAK, "to Laplace", "⅛.*0.2"),
        ),
    ),
    (
        "On two blobs the misses of # to # % become # to # %",
        lambda: (
            *span(bars("Two", PEAK, "to Laplace", "0.5")),
            *span(bars("Two", FORGIVEN, "to Laplace")),
        ),
    ),
    (
        "Laplace's to # % at most (median, the worst of three seeds)",
        lambda: (max(bars("Two", ONE, "to Laplace") + bars("Three", ONE, "to Laplace")),),
    ),
    (
        "Laplace's to # % at most (median, the worst seed)",
        lambda: (max(bars("Two", ONE, "to Laplace") + bars("Three", ONE, "to Laplace")),),
    ),
    (
        "(one training each, where MAP jumps) leave # to # %",
        lambda: span(bars("Two", PATIENT, "to Laplace") + bars("Three", PATIENT, "to Laplace")),
    ),
    (
        "The coins gain # to # dB in deblurring, in all three trainings",
        lambda: span(gained("deblurring, coins")),
    ),
    (
        "and are # to # dB above the linear estimate with its best weight. That is level",
        lambda: span(
            less(
                table("images_finer", "")["deblurring, coins"]["falling"],
                table("images_finer", "")["deblurring, coins"]["linear"],
            )
        ),
    ),
    (
        "But the camera loses up to # in deblurring, and the moon, which is smooth, # to # in",
        lambda: (
            -min(gained("deblurring, camera")),
            *span(-value for value in gained("denoising, moon")),
        ),
    ),
]


@pytest.mark.parametrize(("words", "values"), CLAIMS, ids=[words[:50] for words, _ in CLAIMS])
def test_prose_quotes_the_tables(words, values):
    """To half a unit of the last decimal, and what the tables themselves round off."""
    pattern = re.escape(words).replace(r"\#", r"(\d+(?:\.\d+)?)")
    quoted = [found for page in PAGES for found in re.finditer(pattern, said(page))]
    assert len(quoted) == 1
    for number, value in zip(quoted[0].groups(), values(), strict=True):
        decimals = len(number.partition(".")[2])
        assert abs(float(number) - value) <= 0.5 * 10**-decimals + 0.011, (number, value)
