"""One denoiser for photographs and every operator, as tables: run by `make bench`.

Networks of chapter 10's kind, steeper ones, and such whose profiles fall back: up to nine minutes
each on a quiet core, two at a time; trained networks are kept in ``.bench``. Writes
``book/_generated/images_*.md``, which chapter 10 shows. Arguments (``denoising``, ``operators``,
``risk``, ``starts``, ``finer``) name the parts that are made; by default all.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import torch
from joblib import Parallel, delayed
from torch import nn

import invbayes as ib
from tests.benchmarks.images_data import blur, noise, training_pictures
from tests.benchmarks.images_denoising import Denoisers, denoising, risks
from tests.benchmarks.images_finer import finer, ways
from tests.benchmarks.images_operators import Networks, reconstructions, starts
from tests.benchmarks.images_rivals import plain_network

ROOT = Path(__file__).parents[2]
GENERATED, KEPT = ROOT / "book" / "_generated", ROOT / ".bench"


class Kind(NamedTuple):
    """A block with its initial share, L and c, how many seeds, and what else differs."""

    block: type[ib.Ridge]
    share: float
    lipschitz: float
    scale: float
    seeds: int
    learn_share: bool = True
    halvings: tuple[int, ...] = (0, 1)  # of the training pictures
    offsets: int | None = None  # how many of the filters have one; all


FALLING = Kind(ib.WeaklyConvexRidge, 0.5, 0.99, 1 / (1 - 0.99 * 31 / 33), seeds=3)
KINDS = {
    "convex": Kind(ib.Ridge, 0.999, 0.9, 10.2, seeds=1),
    "steep": Kind(ib.Ridge, 0.999, 0.97, 34.0, seeds=3),
    "held": FALLING._replace(share=1e-3, learn_share=False, seeds=1),  # its profiles stay
    "falling": FALLING,
}
FINER = {"finer": FALLING._replace(halvings=(1, 2), offsets=12)}
STEPS, CROP, BATCH, PLAIN_STEPS = 3000, 48, 2, 6000
CUT = (1, CROP, CROP)


def denoiser(kind: str, seed: int) -> ib.InvertibleResNet:
    """Trained once, and kept."""
    path = KEPT / f"images-{kind}-{seed}-{STEPS}.pt"
    if path.exists():
        return ib.load_network(path).requires_grad_(False)
    generator, chosen = torch.Generator().manual_seed(seed), (KINDS | FINER)[kind]
    start = {"share": chosen.share, "sharpness": 12.0, "generator": generator}
    block = chosen.block((1, None, None), 24, 5, offsets=chosen.offsets, **start)
    block.share_logit.requires_grad_(chosen.learn_share)
    net = ib.InvertibleResNet(
        block, lipschitz=chosen.lipschitz, scale=chosen.scale, learn_scale=False
    )
    problem = noise(CUT)
    sampler = ib.random_crops(training_pictures(chosen.halvings), problem)
    options = {"average": 0.98, "generator": generator, "progress": False}
    record = ib.train(
        net, ib.Reconstruction(tol=0.1 * CROP), sampler, steps=STEPS, batch=BATCH, **options
    )
    print(f"{kind}, seed {seed}: {record.seconds:.0f} s", flush=True)
    KEPT.mkdir(exist_ok=True)
    ib.save_network(net, path)
    return net.requires_grad_(False)


def networks(kinds: dict[str, Kind]) -> Networks:
    """Every kind with its seeds."""
    jobs = [(name, seed) for name, kind in kinds.items() for seed in range(kind.seeds)]
    made = Parallel(n_jobs=2)(delayed(denoiser)(*job) for job in jobs)
    return {
        name: [net for (kind, _), net in zip(jobs, made, strict=True) if kind == name]
        for name in kinds
    }


def plain_one(task: str, halvings: tuple[int, ...] = (0, 1)) -> nn.Module:
    """The network without a certificate, trained for one task."""
    problem = {"denoising": noise, "deblurring": blur}[task](CUT)
    return plain_network(training_pictures(halvings), problem, PLAIN_STEPS)


def sharper(nets: Networks) -> dict[str, list[str]]:
    """What smaller pictures, fewer offsets and sharper profiles do."""
    plain = plain_one("deblurring", FINER["finer"].halvings)
    return {"finer": finer(nets["finer"], plain), "ways": ways(nets["finer"])}


def denoisers(nets: Networks) -> Denoisers:
    """Each network as a function of noisy pictures, and the plain one."""
    found = {
        f"{kind}, {STEPS} steps, seed {seed}": lambda y, net=net: net.inverse(y, tol=0.5)
        for kind, each in nets.items()
        for seed, net in enumerate(each)
    }
    plain = plain_one("denoising")
    count = sum(p.numel() for p in plain.parameters())
    name = f"plain network of {count} weights, {PLAIN_STEPS} steps"
    return {name: lambda y: y - plain(y), **found}


MAKERS = {
    "denoising": lambda nets: denoising(denoisers(nets)),
    "operators": lambda nets: reconstructions(nets, {"deblurring": plain_one("deblurring")}),
    "risk": lambda nets: {"risk": risks(nets["steep"][0])},
    "starts": lambda nets: {"starts": starts(nets)},
    "finer": sharper,
}
TRAINED = {"finer": FINER}  # the networks of a part, by default all the others


def main(*names: str) -> None:
    """Train, measure, write."""
    torch.set_num_threads(1)
    for name in names or MAKERS:
        for title, lines in MAKERS[name](networks(TRAINED.get(name, KINDS))).items():
            text = "\n".join([*lines, ""])
            (GENERATED / f"images_{title}.md").write_text(text, encoding="utf-8")
            print(text, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
