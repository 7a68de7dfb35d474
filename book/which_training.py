"""Write the page that leads from a problem to a training, `which_training.md`.

Run by `make execute`. The questions, the answers and the reasons stand in
`which_training.yml`; from them come both the picture, whose leaves are links, and
the list below it. The picture is inline SVG, in the colours of the page's theme.
"""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

import yaml
from book.chapters import BOOK, link, places, write

WIDTH, ROW, BOX, STEP = 400, 58, 46, 16

PAGE = """\
# Which training?

Follow the questions to a training; each links to its place in the book. Every
recommendation rests on what the chapters proved or measured, most of it in the
plane, on blobs of standard deviation 0.4 to 0.7 (the unit of every $\\delta$ here);
the list below has the reasons.

Did it work for you? For the mean, hold samples out, and beat
{{py:func}}`~invbayes.linear_estimate` ({{ref}}`ch-your-own`). Without the truth,
take the {{py:func}}`~invbayes.unbiased_risk` of fresh data. For MAP there is no
such test: it may rightly lose in squared error.

```{{raw}} html
<figure class="decisions" id="fig-which-training">
{picture}
<figcaption>Rounded boxes ask; square ones, with an arrow, name a training. The line
in italics is the answer that leads to a box. The list below has the same
trainings, each with the answers that lead to it.</figcaption>
</figure>
```

## In words, with reasons

{words}

## And error bars?

Most of these networks bring some: the variance of the noise times the Jacobian of
the inverse, {{py:func}}`~invbayes.posterior_covariance`. What that is depends on
the training ({{ref}}`ch-error-bars`).

- *Reconstruction*: the covariance of the posterior, if the inverse is the posterior
  mean and $A$ injective. It was right to a few percent on two blobs, and to a tenth
  on three (14 % for the weakest operator at $\\delta = 0.1$). For a nonlinear
  problem there is no such formula.
- *Unbiased risk*: the same, about as good, but off by up to 8 % on two blobs and
  12 % on three where $A$ is weak.
- *Divergence, weighted divergence*: that of Laplace's approximation. It is fair
  where the posterior has one mode, much too small where it has several, and means
  nothing near MAP's jump. For a nonlinear problem it is multiplied by $B^*$
  {{eq}}`eq-nonlinear-bars`.
- *Log-determinant*: good for $A = I$ and small noise. In a weak direction it was
  three times too small without the metric $W$; with it, right within a tenth on two
  blobs, and a fifth too wide on three.
- *A denoiser* can draw from the posterior: mean and covariance came out right to a
  few percent, in the plane ({{ref}}`ch-one-network`).
- *Photographs*: right on average for one of three, and nearly the same in every
  pixel ({{ref}}`ch-images`).
"""


class Node(NamedTuple):
    """A box of the picture: what leads to it, what it says, where it links."""

    depth: int
    parent: int
    answer: str
    says: str
    label: str


def nodes(tree: dict, depth: int = 0, parent: int = -1) -> Iterator[Node]:
    """The tree from top to bottom; the parent stands so many rows away."""
    says, label = tree.get("ask") or tree["take"], tree.get("at", "")
    yield Node(depth, parent, tree.get("if", ""), says, label)
    below = 1
    for branch in tree.get("answers", []):
        found = list(nodes(branch, depth + 1))
        yield found[0]._replace(parent=-below)
        yield from found[1:]
        below += len(found)


def box(row: int, node: Node) -> str:
    """One box with its line from the parent."""
    x, y = 2 + STEP * node.depth, 2 + ROW * row
    corner, thick = (0, 2.5) if node.label else (14, 1)
    says = ("→ " if node.label else "") + escape(node.says)
    low = y + (37 if node.answer else 28)
    text = f'<text x="{x + 12}" y="{low}" font-weight="bold">{says}</text>'
    if node.label:
        text = f'<a href="{places()[node.label]}.html#{node.label}">{text}</a>'
    above = y + ROW * node.parent + BOX
    parts = [
        f'<path d="M{x - STEP + 10} {above}V{y + BOX // 2}H{x}"/>' * bool(row),
        f'<rect x="{x}" y="{y}" width="{WIDTH - x - 2}" height="{BOX}"'
        f' rx="{corner}" stroke-width="{thick}"/>',
        f'<text x="{x + 12}" y="{y + 17}" font-style="italic" font-size="14">'
        f"{escape(node.answer)}</text>" * bool(node.answer),
        text,
    ]
    return "\n".join(filter(None, parts))


def picture(tree: dict) -> str:
    """The tree as inline SVG."""
    found = list(nodes(tree))
    boxes = "\n".join(box(row, node) for row, node in enumerate(found))
    return f"""\
<svg viewBox="0 0 {WIDTH} {ROW * len(found)}" role="group" font-size="15"
 aria-label="A tree of questions on a problem; its leaves link to trainings.">
{boxes}
</svg>"""


def words(tree: dict, path: tuple[str, ...] = ()) -> str:
    """A list of the trainings, each with the answers that lead to it."""
    if "take" not in tree:
        below = ((branch, (*path, branch["if"])) for branch in tree["answers"])
        return "\n".join(words(*each) for each in below)
    take = f"- **{tree['take']}** ({link(tree['at'])})"
    return "\\\n  ".join([take, f"*{' · '.join(path)}*", tree["because"]])


def pages() -> dict[Path, str]:
    """The text of the page."""
    tree = yaml.safe_load((BOOK / "which_training.yml").read_text(encoding="utf-8"))
    page = PAGE.format(picture=picture(tree), words=words(tree))
    return {BOOK / "which_training.md": page}


if __name__ == "__main__":
    write(pages())
