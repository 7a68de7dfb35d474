"""The tables of `error_bars.py`, as the chapter on error bars shows them."""

from __future__ import annotations

import math
import re

LEVELS = (0.5, 0.9, 0.95)


def worst(entries: list[dict], key: str) -> float:
    """The seed farthest from the goal, which is one for ratios and zero else."""
    goal = 1.0 if key in ("ratio", "trace") else 0.0
    return max((entry[key] for entry in entries), key=lambda value: abs(value - goal))


def covers(entries: list[dict], key: str = "cover") -> str:
    """Coverage of the seed farthest from nominal."""
    chosen = max(
        entries, key=lambda e: max(abs(c / 100 - p) for c, p in zip(e[key], LEVELS, strict=True))
    )
    return "/".join(f"{value:.1f}" for value in chosen[key])


def percent(value: float) -> str:
    """With two figures; a dash for none."""
    return "–" if math.isnan(value) else f"{float(f'{100 * value:.2g}'):g} %"


def span(entries: list[dict], key: str) -> str:
    """From the nearest seed to the farthest: they scatter."""
    least, most = (percent(choose(entry[key] for entry in entries)) for choose in (min, max))
    return most if least == most else f"{least.removesuffix(' %')} to {most}"


def off_exact(entries: list[dict]) -> str:
    """The largest distance of a coverage from that of the exact ellipses, in points."""
    gaps = [abs(a - b) for e in entries for a, b in zip(e["cover"], e["exact"], strict=True)]
    return f"{max(gaps):.1f}"


MEAN = {
    "error": lambda e: f"{worst(e, 'ratio'):.4f}",
    "rms": lambda e: percent(worst(e, "rms")),
    "median": lambda e: percent(worst(e, "median")),
    "cover": off_exact,
    "trace": lambda e: percent(worst(e, "trace") - 1),
    "risk": lambda e: f"{worst(e, 'risk'):.1f}",
    "evidence": lambda e: f"{worst(e, 'evidence'):.3f}",
    "log q": lambda e: f"{worst(e, 'log q'):.2f}",
}
BLIND = {key: MEAN[key] for key in ("error", "rms", "evidence")}
LEGEND = """*error*: the mean squared error over the posterior mean's. *rms*: the distance of the
covariance from the exact one, over the latter's size. *median*: of the relative distances. *cover*:
coverage of the 50, 90 and 95 % ellipses less that of the exact ones, in points, the largest.
*trace*: the mean trace over the exact one's, less one (*ratio*: not less one). *risk*: unbiased
risk less true error, in standard errors of this difference (all rows share one draw of the noise).
*evidence*, *log q*: the distance from the true log-density up to a constant, rms, in nats. *one
mode*: the share of data with one mode; *to Laplace*: the median relative distance over these, from
the best of the seeds to the worst (a dash: there are none). *coverage*, *Laplace's own*: of the 50,
90 and 95 % ellipses over all data, of the network and of Laplace at exact MAP. *from MAP*: the
distance of the network's answer from exact MAP over all data, rms and median.
"""
LOG_DET = {"coverage": covers, "ratio": lambda e: f"{worst(e, 'trace'):.2f}"}
PEAK = {
    "one mode": lambda e: percent(worst(e, "one mode")),
    "to Laplace": lambda e: span(e, "laplace"),
    "coverage": lambda e: covers(e, "some cover"),
    "Laplace's own": lambda e: covers(e, "laplace cover"),
}
MAP = PEAK | {"from MAP": lambda e: f"{worst(e, 'map rms'):.2g}, {worst(e, 'map median'):.2g}"}


PARTS = {
    "b": ("Trained for the mean", MEAN),
    "bW": ("In the metric $M = W^{-1}$", MEAN),
    "long": ("In the metric $M = W^{-1}$, 3000 steps of 1024", MEAN),
    "deep": ("Two blocks in the metric $M = W^{-1}$, 3000 steps of 1024", MEAN),
    "sharp": ("Two blocks in the metric $M = W^{-3/2}$, 3000 steps of 1024", MEAN),
    "blind": ("Trained without the truth", BLIND),
    "deep blind": (
        "Without the truth, two blocks in the metric $M = W^{-1}$, 3000 steps of 2048",
        BLIND,
    ),
    "c": ("Log-determinant, M = I", LOG_DET),
    "cW": ("Log-determinant, M = W", LOG_DET),
    "d": ("Divergence, 3000 steps of 1024, against exact MAP", MAP),
    "patient": ("Divergence, 12 000 steps of 1024, against exact MAP", MAP),
    "one": (
        r"One denoising network for every problem, 12 000 steps of 1024, against exact MAP",
        MAP,
    ),
    "forgiving": ("The fold forgiven, 3000 steps of 1024, against exact MAP", MAP),
    "everywhere": (
        r"Fitted to $\varphi_*$ at samples, 3000 steps of 1024, against exact MAP",
        PEAK,
    ),
    "modes": ("Fitted to exact modes, 3000 steps of 1024, against exact MAP", PEAK),
}
OPEN = (("b",), ("deep",))
FOLDED = (
    ("bW",),
    ("long",),
    ("sharp",),
    ("blind",),
    ("deep blind",),
    ("c", "cW"),
    ("one",),
    ("d",),
    ("patient",),
    ("forgiving",),
    ("modes",),
    ("everywhere",),
)


def shown(name: str, entry: dict) -> bool:
    """Whether an entry of the log has all that the page shows of a training."""
    try:
        return all(show([entry]) for show in PARTS[name][1].values())
    except KeyError:
        return False


def table(results: dict, prior: str, names: tuple[str, ...]) -> list[str]:
    """A title, and one line for each problem with the columns of each training."""
    columns = [
        column if len(names) == 1 else f"{PARTS[name][0].split(', ')[1]}: {column}"
        for name in names
        for column in PARTS[name][1]
    ]
    title = PARTS[names[0]][0].split(", M")[0]
    lines = [f"**{prior.capitalize()}: {title[0].lower()}{title[1:]}**", ""]
    lines.append(r"| $A$ | $\delta$ | " + " | ".join(columns) + " |")
    lines.append("|---" * (len(columns) + 2) + "|")
    for operator, noise_std in unique(results, names[0], prior):
        entries = []
        for name in names:
            start = f"{prior}|{name}|{operator}|{noise_std}|"
            found = [value for key, value in results.items() if key.startswith(start)]
            entries += [show(found) if found else "" for show in PARTS[name][1].values()]
        lines.append(f"| {operator} | {noise_std} | " + " | ".join(entries) + " |")
    return [*lines, ""]


def unique(results: dict, training: str, prior: str) -> list[tuple[str, str]]:
    """Operator and noise of each problem that was tried, in order."""
    keys = (key.split("|") for key in results)
    return [*dict.fromkeys((k[2], k[3]) for k in keys if k[:2] == [prior, training])]


def tables(results: dict, groups: tuple[tuple[str, ...], ...]) -> list[str]:
    """Of every prior, training after training."""
    priors = [*dict.fromkeys(key.split("|")[0] for key in results)]
    pairs = [(names, p) for names in groups for p in priors if unique(results, names[0], p)]
    return [line for names, prior in pairs for line in table(results, prior, names)]


def page(results: dict, trainings: dict[str, tuple[dict, int]]) -> str:
    """All tables: the mean's open, the others folded."""
    lines = [LEGEND]
    lines += tables(results, OPEN)
    lines += [":::{admonition} The other trainings", ":class: dropdown", ""]
    lines += tables(results, FOLDED)
    lines += [":::", ""]
    made = (f"{PARTS[n][0]}: {seeds} × {o['steps']}" for n, (o, seeds) in trainings.items())
    lines.append(f"Seeds × steps. {'; '.join(made)}. Test data: 20 000; for exact MAP 3000.")
    return re.sub("(?<=1,) ", "\N{NO-BREAK SPACE}", "\n".join(lines) + "\n")
