"""One denoiser for photographs and every operator, as a table: run by `make bench`.

Networks of chapter 10's kind, steeper ones, and such whose penalty falls back: up to nine minutes
each on a quiet core, two at a time; trained networks are kept in ``.bench``. Writes
``book/_generated/images_*.md``, which chapter 10 shows.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from joblib import Parallel, delayed
from skimage.metrics import structural_similarity
from torch import Tensor, nn

import invbayes as ib
from invbayes.imaging import gaussian_blur, photograph, tomograph
from tests.benchmarks.images_rivals import (
    by_bm3d,
    by_bm3d_deblurring,
    by_non_local_means,
    by_tikhonov,
    by_variation,
    plain_network,
)

ROOT = Path(__file__).parents[2]
GENERATED, KEPT = ROOT / "book" / "_generated", ROOT / ".bench"
TRAINING = ("astronaut", "chelsea", "coffee", "rocket", "stereo_motorcycle")
TESTS = ("camera", "coins", "moon")


class Kind(NamedTuple):
    """A block with its initial share and sharpness, L and c, and how many seeds."""

    block: type[ib.Ridge]
    share: float
    lipschitz: float
    scale: float
    seeds: int
    learn_share: bool = True


FALLING = Kind(ib.WeaklyConvexRidge, 0.5, 0.99, 1 / (1 - 0.99 * 31 / 33), seeds=3)
KINDS = {
    "convex": Kind(ib.Ridge, 0.999, 0.9, 10.2, seeds=1),
    "steep": Kind(ib.Ridge, 0.999, 0.97, 34.0, seeds=3),
    "falling": FALLING,
    "held": FALLING._replace(share=1e-3, learn_share=False, seeds=1),  # its profiles stay
}
WEIGHTS = {"steep": (0.5, 1, 2, 4, 8), "falling": (0.25, 0.5, 1, 2, 4)}  # the factors λ
STRETCHED = ("falling", "tomography")  # where h = 2 is tried, too
WIDER = (-0.25, 0, 0.25, 0.5, 0.75)  # binary logarithms of factors on the noise, for BM3D
DRAWS = 5
STEPS, CROP, BATCH, PLAIN_STEPS = 3000, 48, 2, 6000
CUT = (1, CROP, CROP)
RAYS = tomograph(128, angles=30).astype("float32")
Denoiser = Callable[[Tensor], Tensor]


def units(name: str, halvings: int) -> Tensor:
    """A photograph in units in which noise of a tenth of its range is one."""
    return 10 * (photograph(name, halvings) - 0.5)


def training_pictures() -> list[Tensor]:
    """Full and half size."""
    return [units(name, halvings) for name in TRAINING for halvings in (0, 1)]


def test_picture(name: str, size: int) -> Tensor:
    """The middle of a halved photograph that no network was trained on."""
    picture = units(name, 0 if name == "coins" else 1)
    picture = nn.functional.avg_pool2d(picture, 2) if size < 200 else picture
    top, left = ((side - min(size, side)) // 2 for side in picture.shape[1:])
    return picture[:, top : top + size, left : left + size]


def denoiser(kind: str, seed: int) -> ib.InvertibleResNet:
    """Trained once, and kept."""
    path = KEPT / f"images-{kind}-{seed}-{STEPS}.pt"
    if path.exists():
        return ib.load_network(path).requires_grad_(False)
    generator, chosen = torch.Generator().manual_seed(seed), KINDS[kind]
    start = {"share": chosen.share, "sharpness": 12.0, "generator": generator}
    block = chosen.block((1, None, None), 24, 5, **start)
    block.share_logit.requires_grad_(chosen.learn_share)
    net = ib.InvertibleResNet(
        block, lipschitz=chosen.lipschitz, scale=chosen.scale, learn_scale=False
    )
    problem = noise(CUT)
    sampler = ib.random_crops(training_pictures(), problem)
    options = {"average": 0.98, "generator": generator, "progress": False}
    record = ib.train(
        net, ib.Reconstruction(tol=0.1 * CROP), sampler, steps=STEPS, batch=BATCH, **options
    )
    print(f"{kind}, seed {seed}: {record.seconds:.0f} s", flush=True)
    KEPT.mkdir(exist_ok=True)
    ib.save_network(net, path)
    return net.requires_grad_(False)


def decibels(found: Tensor, x: Tensor) -> float:
    """The peak signal-to-noise ratio."""
    return -10 * math.log10((found - x).square().mean().item() / 100)


def alike(found: Tensor, x: Tensor) -> float:
    """The structural similarity."""
    return structural_similarity(found[0].numpy(), x[0].numpy(), data_range=10)


def observed(problem: ib.LinearProblem, x: Tensor, seed: int = 12345) -> Tensor:
    """The same noise for the same seed."""
    return problem.observe(x, generator=torch.Generator().manual_seed(seed))


def denoising(nets: dict[str, Denoiser]) -> list[str]:
    """The test photograph by every method; the competitors are tuned on a training picture."""
    x, tuned = test_picture("camera", 256), units("chelsea", 1)
    problem, other = (noise(p.shape) for p in (x, tuned))
    y, z = observed(problem, x), observed(other, tuned)
    methods = {
        "total variation": lambda p, y, w: by_variation(p, y, 0.6 * 2**w),
        "non-local means": lambda _, y, w: by_non_local_means(y, 0.4 * 2**w),
    }
    rows = {"noisy": y}
    for name, method in methods.items():
        scores = {w: decibels(method(other, z, w), tuned) for w in (0, 0.25, 0.5, 0.75, 1, 1.25)}
        rows[name] = method(problem, y, max(scores, key=scores.get))
    with contextlib.suppress(ImportError):
        rows["BM3D"] = by_bm3d(y)
    rows |= {name: net(y[None])[0] for name, net in nets.items()}
    lines = ["| denoising | dB | SSIM |", "|---|---|---|"]
    return lines + [f"| {k} | {decibels(v, x):.2f} | {alike(v, x):.3f} |" for k, v in rows.items()]


def operators(name: str) -> dict[str, tuple[ib.LinearProblem, Tensor]]:
    """A blur of 1.5 pixels with noise of a hundredth; thirty views with one per cent of noise."""
    large, small = test_picture(name, 256), test_picture(name, 128)
    level = 0.01 * projected(small[None]).abs().mean().item()
    scan = ib.LinearProblem(projected, level, shape=small.shape, adjoint=projected_back)
    return {"deblurring": (blur(large.shape), large), "tomography": (scan, small)}


def noise(shape: tuple[int, ...]) -> ib.LinearProblem:
    """Noise of one, and nothing else, for pictures of one size."""
    return ib.LinearProblem(torch.clone, 1.0, shape=shape)


def blur(shape: tuple[int, ...]) -> ib.LinearProblem:
    """For pictures of one size; see `operators`."""
    return ib.LinearProblem(gaussian_blur(1.5), 0.1, shape=shape)


def projected(x: Tensor) -> Tensor:
    """The sinogram of pictures."""
    return torch.from_numpy((RAYS @ x.flatten(1).numpy().T).T)


def projected_back(y: Tensor) -> Tensor:
    """The adjoint."""
    return torch.from_numpy((RAYS.T @ y.numpy().T).T).reshape(-1, 1, 128, 128)


def by_network(
    net: ib.InvertibleResNet, problem: ib.LinearProblem, y: Tensor, weight: float, stretch: float
) -> Tensor:
    """The minimum of the energy with the penalty λ R(h x) / h²."""
    z = problem.normal_data(stretch * y)
    posterior = ib.LearnedPosterior(net, problem, trained_at=weight**-0.5)
    found = posterior.mode(z, torch.zeros(1, *z.shape), tol=2e-5 * z.norm().item())
    return found / stretch


def matched(task: str, problem: ib.LinearProblem, x: Tensor, y: Tensor) -> str:
    """BM3D's best, where it has a method."""
    if task != "deblurring":
        return "–"
    try:
        scores = [decibels(by_bm3d_deblurring(problem, y, 0.1 * 2**w), x) for w in WIDER]
    except ImportError:
        return "–"
    return f"{max(scores):.2f}"


def reconstructions(
    nets: dict[str, list[ib.InvertibleResNet]], trained: dict[str, nn.Module]
) -> list[str]:
    """Each method with its own best factors on the picture; the networks also with one.

    Beside them plain networks that were trained for a task, and have no factor.
    """
    ones = {kind: "λ = h = 1" if kind in STRETCHED else "λ = 1" for kind in nets}
    heads = " | ".join(f"{kind} | {one}" for kind, one in ones.items())
    lines = [f"| | linear | total variation | BM3D | trained for it | {heads} |"]
    lines.append("|---" * (5 + 2 * len(nets)) + "|")
    for name, task in product(TESTS, ("deblurring", "tomography")):
        problem, x = operators(name)[task]
        y, std = observed(problem, x), problem.noise_std
        best = max(decibels(by_tikhonov(problem, y, std**2 * 2.0**w), x) for w in range(-7, 2))
        edges = max(decibels(by_variation(problem, y, std * 2.0**w), x) for w in range(-5, 3))
        entries = [f"{best:.2f}", f"{edges:.2f}", matched(task, problem, x, y)]
        plain = trained.get(task)
        entries.append(f"{decibels(y - plain(y[None])[0], x):.2f}" if plain else "–")
        for kind, each in nets.items():
            tried = [*product(WEIGHTS[kind], (1, 2) if (kind, task) == STRETCHED else (1,))]
            scores = [
                {pair: decibels(by_network(net, problem, y, *pair), x) for pair in tried}
                for net in each
            ]
            entries.append(" ".join(f"{max(found.values()):.2f}" for found in scores))
            entries.append(" ".join(f"{found[1, 1]:.2f}" for found in scores))
        lines.append(f"| {task}, {name} | " + " | ".join(entries) + " |")
        print(lines[-1], flush=True)
    return lines


def risks(net: ib.InvertibleResNet) -> list[str]:
    """The mean squared error of a pixel in three photographs of full size, told and true."""
    lines = ["| error | told | true | off by, each draw | their mean |", "|---|---|---|---|---|"]
    for number, name in enumerate(TESTS):
        x = units(name, 0)
        drawn = [one_risk(net, x, seed=100 * number + draw) for draw in range(DRAWS)]
        told, error, true = torch.tensor(drawn).T
        off = 100 * (told / true - 1)
        each = " ".join(f"{value:.1f}" for value in off.tolist())
        spread = off.std().item() / DRAWS**0.5
        middle = f"{told.mean():.4f} ± {error.mean():.4f} | {true.mean():.4f}"
        lines.append(f"| {name} | {middle} | {each} % | {off.mean():.1f} ± {spread:.1f} % |")
    return lines


def one_risk(net: ib.InvertibleResNet, x: Tensor, seed: int) -> tuple[float, float, float]:
    """Told, a bound of its standard error, and true, for one draw of the noise."""
    problem = noise(x.shape)
    y, generator = observed(problem, x, seed), torch.Generator().manual_seed(seed)
    bars = ib.posterior_variance(net, problem, y, probes=4, tol=0.1, generator=generator)
    misfit, total = (bars.mean - y).square().sum().item(), bars.total.item()
    size = x.numel()
    error = math.sqrt(4 * misfit + 4 * total - 2 * size) / size
    true = (bars.mean - x).square().mean().item()
    return (misfit + 2 * total) / size - 1, error, true


def main() -> None:
    """Train, measure, write."""
    torch.set_num_threads(1)
    jobs = [(name, seed) for name, kind in KINDS.items() for seed in range(kind.seeds)]
    made = dict(zip(jobs, Parallel(n_jobs=2)(delayed(denoiser)(*job) for job in jobs), strict=True))
    nets = {
        f"{kind}, {STEPS} steps, seed {seed}": partial(net.inverse, tol=0.5)
        for (kind, seed), net in made.items()
    }
    ours = {kind: [made[kind, seed] for seed in range(KINDS[kind].seeds)] for kind in WEIGHTS}
    small = {"denoising": noise(CUT), "deblurring": blur(CUT)}
    pictures = training_pictures()
    trained = {task: plain_network(pictures, p, PLAIN_STEPS) for task, p in small.items()}
    plain = trained["denoising"]
    count = sum(p.numel() for p in plain.parameters())
    nets[f"plain network of {count} weights, {PLAIN_STEPS} steps"] = lambda y: y - plain(y)
    parts = {
        "denoising": denoising(nets),
        "operators": reconstructions(ours, trained),
        "risk": risks(made["steep", 0]),
    }
    for name, lines in parts.items():
        text = "\n".join([*lines, ""])
        (GENERATED / f"images_{name}.md").write_text(text, encoding="utf-8")
        print(text)


if __name__ == "__main__":
    main()
