"""A training by two processes under torchrun, and trainings on the workers of a Dask cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

import joblib
import pytest
import torch
from dask.distributed import Client, LocalCluster
from torch import distributed

from invbayes import (
    Approximation,
    Divergence,
    LogDeterminant,
    Reconstruction,
    UnbiasedRisk,
    fit,
    fixed_samples,
    fresh_samples,
    train,
)
from tests.training.test_training import PRIOR, PROBLEM, held_out, make, weights

ADAM = partial(torch.optim.Adam, lr=0.01)
OBJECTIVES = {
    "approximation": Approximation(PROBLEM),
    "reconstruction": Reconstruction(tol=1e-9),
    "log-det": LogDeterminant(PROBLEM),
    "divergence": Divergence(PROBLEM),
    "unbiased risk": UnbiasedRisk(PROBLEM, tol=1e-9),
}


def go(objective, sampler=None, generator=None, **options):
    """Eight steps: the parameters, and the losses of the steps and on the held-out samples."""
    net, sampler = make(blocks=2), sampler or fresh_samples(PRIOR, PROBLEM)
    generator = generator or torch.Generator().manual_seed(3)
    options = {"optimizer": ADAM, "steps": 8, "batch": 32, "progress": False} | options
    record = train(net, objective, sampler, generator=generator, **options)
    return weights(net), record.losses, record.held_out[:, 1]


def trainings():
    """Those whose result does not depend on the number of processes."""
    found = {name: go(loss, held_out=held_out(64)) for name, loss in OBJECTIVES.items()}
    return found | {"small data": go(Divergence(PROBLEM), fixed_samples(*held_out(30)))}


def interrupted(rank, folder):
    """Which files there are after a stop at the fifth step; and what going on from there finds."""

    def stop(step, *_):
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(Divergence(PROBLEM), callback=stop, checkpoint=folder / f"{rank}.run")
    distributed.barrier()
    written = sorted(path.name for path in folder.glob("*.run"))
    return written, go(Divergence(PROBLEM), checkpoint=folder / "0.run")


def refusal(**options):
    with pytest.raises(ValueError, match="batch must") as caught:
        go(Approximation(PROBLEM), **options)
    return str(caught.value)


def parted(rank):
    """How many samples an objective gets, and a held-out loss that is its process's number."""
    sizes = set()

    def objective(net, x, z):
        sizes.add(len(x))
        return Approximation(PROBLEM)(net, x, z) if torch.is_grad_enabled() else torch.tensor(rank)

    return sizes, go(objective, held_out=held_out(64))[2]


def probed():
    """Probes that come from the generator of the training, and where that ends."""
    generator = torch.Generator().manual_seed(3)
    risk = UnbiasedRisk(PROBLEM, probes=2, generator=generator)
    return *go(risk, generator=generator), generator.get_state()


def in_this_process(folder):
    rank = distributed.get_rank()
    return {
        "trainings": trainings(),
        "interrupted": interrupted(rank, folder),
        "refusals": [refusal(batch=33), refusal(sampler=fixed_samples(*held_out(31)))],
        "parted": parted(float(rank)),
        "probed": probed(),
        "soap": go(Divergence(PROBLEM), optimizer=train.__kwdefaults__["optimizer"]),
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes found; this very file is their script."""
    if sys.platform == "win32":
        pytest.skip(
            "PyTorch's builds for Windows lack libuv, which torchrun asks for (issue 139990)"
        )
    folder, root = tmp_path_factory.mktemp("two"), Path(__file__).parents[2]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = ["--nproc-per-node=2", "--module", "tests.training.test_beyond_one_core", str(folder)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(torchrun + script, cwd=root, env=settings, timeout=300, check=True)
    assert not [*folder.glob("*.run*")]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_two_processes_find_what_one_does(two):
    """To rounding; and each other's parameters and losses to the bit."""
    for name, one in trainings().items():
        for value, *others in zip(one, *(found["trainings"][name] for found in two), strict=True):
            torch.testing.assert_close(others[0], value, rtol=0, atol=1e-12)
            assert torch.equal(*others), name


def test_each_process_takes_half_of_the_samples_and_all_decide_alike(two):
    for found in two:
        sizes, losses = found["parted"]
        assert sizes == {16, 64}
        assert (losses == 0.5).all()


def test_samples_that_cannot_be_shared_evenly_are_refused(two):
    for found in two:
        for message, count in zip(found["refusals"], (33, 31), strict=True):
            assert message.startswith("batch must give the 2 processes equally many samples")
            assert f"{count} came" in message


def test_one_process_writes_and_all_go_on(two):
    """To the bit as if there had been no interruption."""
    for found in two:
        written, rest = found["interrupted"]
        assert written == ["0.run"]
        for value, whole in zip(rest[:2], found["trainings"]["divergence"][:2], strict=True):
            assert torch.equal(value, whole)


@pytest.mark.parametrize("name", ["probed", "soap"])
def test_what_rounding_or_probes_change_is_the_same_in_all_processes(two, name):
    for one, other in zip(*(found[name] for found in two), strict=True):
        assert torch.equal(one, other)


def fitted(call, generator):
    options = {"steps": 8, "batch": 32, "progress": False}
    return call(Divergence(PROBLEM), PRIOR, PROBLEM, generator=generator, **options)


def test_a_sweep_on_a_dask_cluster_gives_the_same_to_the_bit():
    """And the generators stay where they are: the workers, other processes, have copies."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        found = joblib.Parallel()(fitted(joblib.delayed(fit), g) for g in generators)
    for seed, (net, record) in enumerate(found):
        generator = torch.Generator().manual_seed(seed)
        assert torch.equal(generator.get_state(), generators[seed].get_state())
        same, expected = fitted(fit, generator)
        assert torch.equal(weights(net), weights(same))
        assert torch.equal(record.losses, expected.losses)


if __name__ == "__main__":
    # A process that waits in vain for the other ends, too.
    distributed.init_process_group("gloo", timeout=timedelta(minutes=3))
    place = Path(sys.argv[1])
    torch.save(in_this_process(place), place / f"{distributed.get_rank()}.pt")
    distributed.destroy_process_group()
