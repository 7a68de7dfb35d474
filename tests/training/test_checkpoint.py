"""The file of a training under way: what it may hold, what it goes on from, what it refuses."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from invbayes import (
    Approximation,
    Divergence,
    InvertibleResNet,
    LogDeterminant,
    UnbiasedRisk,
    fixed_samples,
    quasi_samples,
)
from tests.training.test_training import PRIOR, PROBLEM, SGD, go, held_out, make, weights


def stop_at(step):
    def callback(number, *_):
        if number == step:
            raise KeyboardInterrupt

    return callback


def interrupted(path, *, objective=None, callback=None, **options):
    """A training of ten steps, stopped after the sixth."""
    with pytest.raises(KeyboardInterrupt):
        go(
            make(),
            objective or Approximation(PROBLEM),
            callback=callback or stop_at(5),
            checkpoint=path,
            **options,
        )


@pytest.mark.parametrize(
    "options",
    [
        {"average": np.float64(0.9), "warmup": np.float32(0.25)},
        {"optimizer": partial(torch.optim.SGD, lr=np.float64(0.05))},
        {
            "optimizer": lambda p: torch.optim.Adam(
                p, lr=np.float64(0.05), betas=(np.float64(0.8), 0.9)
            )
        },
    ],
    ids=["options", "step size", "in a tuple"],
)
def test_numbers_of_numpy_are_written_and_read(options, tmp_path):
    path, whole, net = tmp_path / "run.pt", make(), make()
    expected = go(whole, Approximation(PROBLEM), **options)
    interrupted(path, **options)
    record = go(net, Approximation(PROBLEM), checkpoint=path, **options)
    assert torch.equal(record.losses, expected.losses)
    assert torch.equal(weights(net), weights(whole))


@pytest.mark.parametrize("step", [3, 4])
def test_what_a_check_draws_belongs_to_the_training(step, tmp_path):
    """Held out every second step, with random vectors from the training's generator."""
    z = held_out(64)[1]

    def run(callback=None, path=None):
        net, generator = make(lipschitz=0.8), torch.Generator().manual_seed(0)
        risk = UnbiasedRisk(PROBLEM, probes=1, generator=generator)
        options = {"sampler": fixed_samples(z, z), "held_out": (z, z), "steps": 40}
        return net, go(net, risk, callback=callback, checkpoint=path, source=generator, **options)

    whole, expected = run()
    with pytest.raises(KeyboardInterrupt):
        run(stop_at(step), tmp_path / "run.pt")
    net, record = run(path=tmp_path / "run.pt")
    assert torch.equal(record.held_out, expected.held_out)
    assert torch.equal(record.losses, expected.losses)
    assert torch.equal(weights(net), weights(whole))


def test_what_a_callback_draws_belongs_to_the_training(tmp_path, monkeypatch):
    """A file is written after each callback; the one after five is kept, as in a loss of power."""
    path, copy = tmp_path / "run.pt", tmp_path / "copy.pt"
    monkeypatch.setattr("invbayes.training.training.SAVE_EVERY", 0.0)

    def run(net, path):
        generator = torch.Generator().manual_seed(0)

        def callback(step, *_):
            if step == 5 and not copy.exists():
                copy.write_bytes(path.read_bytes())
            PRIOR.sample(3, generator=generator)

        return go(net, Approximation(PROBLEM), source=generator, callback=callback, checkpoint=path)

    whole, net = make(), make()
    expected = run(whole, path)
    assert torch.equal(run(net, copy).losses, expected.losses)
    assert torch.equal(weights(net), weights(whole))


def test_two_interruptions_of_one_check_change_nothing(tmp_path):
    """The second comes before the first step of the training that goes on."""
    path, whole, net, checks = tmp_path / "run.pt", make(), make(), []
    samples = held_out(64)
    expected = go(whole, Approximation(PROBLEM), steps=40, held_out=samples)

    class Stopping(Approximation):
        def __call__(self, net, x, z):
            if len(x) == 64:
                checks.append(len(x))
                if len(checks) in (3, 4):
                    raise KeyboardInterrupt
            return super().__call__(net, x, z)

    options = {"steps": 40, "held_out": samples, "checkpoint": path}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            go(make(), Stopping(PROBLEM), **options)
    assert torch.equal(go(net, Stopping(PROBLEM), **options).losses, expected.losses)
    assert torch.equal(weights(net), weights(whole))


def other_net():
    return InvertibleResNet.dense(2, (9,), generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": LogDeterminant(PROBLEM)}, "objective = LogDeterminant, .* Approximation"),
        (
            {"sampler": fixed_samples(*held_out())},
            "sampler = _draw_pairs, got one with _draw_fresh",
        ),
        ({"sampler": quasi_samples(PRIOR, PROBLEM)}, "sampler = QuasiSampler"),
        ({"source": None}, "generator = none, got one with its own"),
        ({"optimizer": partial(torch.optim.Adam, lr=0.1)}, "optimizer = Adam, got one with SGD"),
        ({"optimizer": partial(torch.optim.SGD, lr=0.2)}, "options of .*'lr': 0.2.*'lr': 0.1"),
        ({"net": other_net()}, "got .*run.pt"),
    ],
)
def test_the_file_of_another_training_leaves_the_network(change, message, tmp_path):
    path = tmp_path / "run.pt"
    interrupted(path, optimizer=SGD)
    given = {"net": make(), "objective": Approximation(PROBLEM), "optimizer": SGD, **change}
    net = given["net"]
    before = weights(net)
    with pytest.raises(
        ValueError, match=rf"^checkpoint must be of this training, (with )?{message}"
    ):
        go(given.pop("net"), given.pop("objective"), checkpoint=path, **given)
    assert torch.equal(weights(net), before)
    assert path.exists()


@pytest.mark.parametrize(
    "spoil", [lambda p: p.write_bytes(b"hello"), lambda p: torch.save({"a": 1}, p)]
)
def test_a_file_of_something_else_is_named(spoil, tmp_path):
    path = tmp_path / "run.pt"
    spoil(path)
    with pytest.raises(ValueError, match=r"^checkpoint must be a file of a training, got .*run.pt"):
        go(make(), Approximation(PROBLEM), checkpoint=path)


def test_a_file_that_breaks_off_leaves_the_network(tmp_path):
    """Its mark is right, and so is its network; the state of the optimiser is gone."""
    path, net = tmp_path / "run.pt", make()
    interrupted(path)
    content = torch.load(path)
    del content["schedule"]
    torch.save(content, path)
    before = weights(net)
    with pytest.raises(ValueError, match=r"^checkpoint must be of this training"):
        go(net, Approximation(PROBLEM), checkpoint=path)
    assert torch.equal(weights(net), before)


def test_a_place_that_cannot_be_written_is_named_before_the_first_step(tmp_path):
    net = make()
    before = weights(net)
    for path in (tmp_path / "nowhere" / "run.pt", "/proc/run.pt"):
        with pytest.raises(ValueError, match=r"^checkpoint must lie in a folder that can be"):
            go(net, Approximation(PROBLEM), checkpoint=path)
    with pytest.raises(ValueError, match=r"^checkpoint must be a str or PathLike, got int"):
        go(net, Approximation(PROBLEM), checkpoint=3)
    assert torch.equal(weights(net), before)


def test_an_interruption_is_told_also_where_the_file_cannot_be_written(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()

    def callback(*_):
        folder.rmdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        go(make(), Approximation(PROBLEM), callback=callback, checkpoint=folder / "run.pt")
    assert caught.value.__notes__[0].startswith("The checkpoint could not be written")


def test_another_function_as_objective_is_noticed(tmp_path):
    def near(net, x, z):
        return (net(x) - z).square().mean()

    def far(net, x, z):
        return -near(net, x, z)

    path = tmp_path / "run.pt"
    interrupted(path, objective=near)
    with pytest.raises(ValueError, match=r"with objective = .*far, got one with .*near$"):
        go(make(), far, checkpoint=path)


def test_a_held_out_loss_that_is_not_finite_is_named():
    """With patience it would stop the training in silence."""
    x, z = held_out()
    objective = Approximation(PROBLEM, conditional_mean=False)
    with pytest.raises(ValueError, match=r"^held_out must have a finite loss, got nan"):
        go(make(), objective, steps=40, held_out=(x, z * torch.nan), patience=2)


@pytest.mark.parametrize("wrong", [torch.ones(3, 3).double(), torch.ones(3, 2)])
def test_held_out_samples_that_do_not_fit_are_named_before_the_first_step(wrong):
    net = make()
    before = weights(net)
    with pytest.raises(ValueError, match=r"^held_out must have (shape \(\*, 2\)|dtype)"):
        go(net, Approximation(PROBLEM), steps=40, held_out=(wrong, wrong))
    assert torch.equal(weights(net), before)


def test_an_objective_that_differentiates_can_be_held_out():
    """The divergence by differentiation, as the objective of the package has it."""

    def own(net, x, z):
        points = x.clone().requires_grad_()
        value = net(points)
        slopes = [
            torch.autograd.grad(value[:, i].sum(), points, create_graph=True)[0][:, i]
            for i in range(2)
        ]
        plain = Approximation(PROBLEM)(net, points, z)
        return plain - PROBLEM.noise_std**2 * sum(slopes).mean()

    found = go(make(), own, steps=20, optimizer=SGD, held_out=held_out())
    expected = go(make(), Divergence(PROBLEM), steps=20, optimizer=SGD, held_out=held_out())
    torch.testing.assert_close(found.held_out, expected.held_out, rtol=1e-9, atol=0)
