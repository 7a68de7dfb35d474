"""The training loop: schedule, average, record, and what happens when it goes wrong."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from invbayes import (
    AdaptiveInertia,
    Approximation,
    Block,
    Divergence,
    GaussianMixture,
    InvertibleResNet,
    LinearProblem,
    LogDeterminant,
    Reconstruction,
    TrainingDiverged,
    fixed_samples,
    fresh_samples,
    gaussian_forward_eigenvalues,
    ideal_forward_map,
    map_estimate,
    posterior,
    posterior_mean,
    posterior_metric,
    quasi_samples,
    train,
)
from invbayes.examples import two_blobs
from tests.conftest import assert_mean_close, jacobian_of

SIGMA, NOISE = 0.7, 0.4
PRIOR = GaussianMixture.gaussian(
    torch.zeros(2, dtype=torch.float64), SIGMA**2 * torch.eye(2, dtype=torch.float64)
)
PROBLEM = LinearProblem(torch.diag(torch.tensor([1.0, 0.5], dtype=torch.float64)), NOISE)
SGD = partial(torch.optim.SGD, lr=0.1)


def make(**options):
    generator = torch.Generator().manual_seed(0)
    return InvertibleResNet.dense(2, (16, 16), generator=generator, **options).double()


def weights(net):
    return torch.nn.utils.parameters_to_vector(net.parameters()).detach().clone()


def spied(objective, trace):
    """The objective, which first notes the network's parameters."""

    def call(net, x, z):
        trace.append(weights(net))
        return objective(net, x, z)

    return call


def go(net, objective, steps=10, seed=0, **options):
    return train(
        net,
        objective,
        options.pop("sampler", fresh_samples(PRIOR, PROBLEM)),
        steps=steps,
        batch=32,
        generator=options.pop("source", torch.Generator().manual_seed(seed)),
        progress=False,
        **options,
    )


METRIC = posterior_metric(PROBLEM, PRIOR.covariance)


@pytest.mark.parametrize(
    ("objective", "field"),
    [
        (Approximation(PROBLEM), "approximation"),
        (Reconstruction(), "posterior"),
        (LogDeterminant(PROBLEM), "log_det"),
        (LogDeterminant(PROBLEM, metric=METRIC), "posterior"),
        (Divergence(PROBLEM), "posterior"),
    ],
    ids=["approximation", "reconstruction", "log-det", "log-det in W", "divergence"],
)
def test_each_training_finds_its_closed_form(objective, field):
    """Within 6 % after 300 steps; the closed forms differ by 17 % at least."""
    net, seed = make(), torch.Generator().manual_seed(1)
    sampler = quasi_samples(PRIOR, PROBLEM, generator=seed)
    record = train(net, objective, sampler, steps=300, batch=256, progress=False)
    values = gaussian_forward_eigenvalues(PROBLEM.operator.diagonal(), SIGMA, NOISE)
    z = fresh_samples(PRIOR, PROBLEM)(2000, seed)[1]
    with torch.no_grad():
        found = net.inverse(z)
    exact = z / getattr(values, field)
    assert (found - exact).norm() < 0.06 * exact.norm()
    assert record.lipschitz_bound == net.lipschitz_bound() <= 0.99
    assert record.losses.shape == (300,)
    assert record.losses[-20:].mean() < record.losses[:20].mean()
    assert record.seconds > 0


def test_each_step_is_one_gradient_step():
    net, same, sizes = make(), make(), []
    draw, objective = fresh_samples(PRIOR, PROBLEM), Approximation(PROBLEM)

    def sampler(n, generator):
        sizes.append(n)
        return draw(n, generator)

    go(net, objective, steps=3, sampler=sampler, warmup=0.0, average=0.0, optimizer=SGD)
    generator = torch.Generator().manual_seed(0)
    for step in range(3):
        slopes = torch.autograd.grad(objective(same, *draw(32, generator)), [*same.parameters()])
        size = 0.1 * (1 + math.cos(math.pi * step / 3)) / 2
        with torch.no_grad():
            for parameter, slope in zip(same.parameters(), slopes, strict=True):
                parameter.sub_(size * slope)
    assert sizes == [32] * 3
    torch.testing.assert_close(weights(net), weights(same))


def test_a_long_warm_up_ends_well():
    record = go(make(), Approximation(PROBLEM), steps=10, warmup=0.97)
    assert torch.isfinite(record.losses).all()


def test_a_frozen_network_is_named():
    with pytest.raises(ValueError, match="net must have a parameter that requires a gradient"):
        go(make().requires_grad_(False), Approximation(PROBLEM))


def test_it_is_reproducible_and_follows_the_generator():
    nets = [make() for _ in range(3)]
    records = [go(net, Divergence(PROBLEM), seed=s) for net, s in zip(nets, (1, 1, 2), strict=True)]
    assert torch.equal(records[0].losses, records[1].losses)
    assert torch.equal(weights(nets[0]), weights(nets[1]))
    assert not torch.equal(records[0].losses, records[2].losses)


def test_the_network_ends_as_the_moving_average():
    net, trace = make(), []
    go(net, spied(Approximation(PROBLEM), trace), average=0.8, optimizer=SGD)
    last = make()
    go(last, Approximation(PROBLEM), average=0.0, optimizer=SGD)
    expected = trace[1]
    for theta in [*trace[2:], weights(last)]:
        expected = 0.8 * expected + 0.2 * theta
    torch.testing.assert_close(weights(net), expected)
    assert not torch.allclose(expected, weights(last))


def test_the_step_size_rises_and_falls():
    sizes = []

    def watched(parameters):
        optimizer = SGD(parameters)
        optimizer.register_step_pre_hook(lambda o, *_: sizes.append(o.param_groups[0]["lr"]))
        return optimizer

    go(make(), Approximation(PROBLEM), steps=100, warmup=0.2, optimizer=watched)
    rise, fall = torch.tensor(sizes[:21]), torch.tensor(sizes[20:])
    assert (rise.diff() > 0).all()
    assert (fall.diff() < 0).all()
    assert max(sizes) == pytest.approx(0.1)
    assert 0 < sizes[-1] < 1e-3 * 0.1 + 1e-9 < sizes[0] < 0.01
    assert sizes[60] == pytest.approx(0.05)  # half of the way down the cosine


def test_what_is_frozen_stays():
    net = make(scale=0.9, learn_scale=False)
    go(net, Approximation(PROBLEM))
    assert net.scale.item() == pytest.approx(0.9)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_raises_with_the_step(bad):
    net, trace = make(), []
    usual = spied(Approximation(PROBLEM), trace)

    def breaks(net, x, z):
        return usual(net, x, z) * (bad if len(trace) == 5 else 1.0)

    with pytest.raises(TrainingDiverged, match="not finite at step 4 ") as caught:
        go(net, breaks)
    assert caught.value.step == 4
    assert torch.isfinite(weights(net)).all()


def test_a_gradient_that_is_not_finite_raises_before_it_does_harm():
    net = make()

    def breaks(net, *_):
        return (net.log_scale - net.log_scale.detach()).abs().sqrt()  # zero, with slope infinity

    before = weights(net)
    with pytest.raises(TrainingDiverged, match="not finite at step 0"):
        go(net, breaks)
    assert torch.equal(weights(net), before)


def test_an_interruption_keeps_the_average():
    """Whoever stops the kernel has the network of the steps that were made."""
    net, same, trace = make(), make(), []
    usual = spied(Approximation(PROBLEM), trace)

    def stops(net, x, z):
        if len(trace) == 6:
            raise KeyboardInterrupt
        return usual(net, x, z)

    with pytest.raises(KeyboardInterrupt):
        go(net, stops, optimizer=SGD, average=0.5)
    trace.clear()
    go(same, usual, optimizer=SGD, average=0.5)
    average = trace[1]
    for theta in trace[2:7]:
        average = (average + theta) / 2
    torch.testing.assert_close(weights(net), average)


def test_a_data_set_is_enough():
    x, z = fresh_samples(PRIOR, PROBLEM)(64, torch.Generator().manual_seed(3))
    record = go(make(), Reconstruction(), sampler=fixed_samples(x, z))
    assert torch.isfinite(record.losses).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be a positive int, got 0"),
        ({"batch": 0}, "batch must be a positive int, got 0"),
        ({"warmup": 1.0}, r"warmup must lie in \[0, 1\), got 1.0"),
        ({"warmup": -0.1}, r"warmup must lie in \[0, 1\), got -0.1"),
        ({"average": 1.0}, r"average must lie in \[0, 1\), got 1.0"),
        ({"average": float("nan")}, r"average must lie in \[0, 1\), got nan"),
        ({"steps": True}, "steps must be a positive int, got True"),
        ({"warmup": None}, "warmup must be a number, got None"),
        ({"average": "0.5"}, "average must be a number, got '0.5'"),
        ({"held_out": torch.zeros(3, 2)}, "held_out must be a pair of samples x and z"),
        ({"held_out": (torch.zeros(3, 2), torch.zeros(2, 2))}, "z must have the shape of x"),
        ({"patience": 2}, "patience needs held_out samples"),
        ({"patience": 0, "held_out": (torch.zeros(3, 2),) * 2}, "patience must be a positive int"),
        ({"callback": 3}, "callback must be callable, got int"),
        ({"optimizer": partial(AdaptiveInertia, damping=1.0)}, "must have a step size lr"),
        ({"optimizer": torch.optim.LBFGS}, "optimizer must step without a closure"),
        ({"optimizer": lambda _: None}, r"optimizer\(parameters\) must be an Optimizer"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        train(make(), Approximation(PROBLEM), fresh_samples(PRIOR, PROBLEM), **options)


@pytest.mark.parametrize("made", [lambda n, _: torch.zeros(n, 2), lambda *_: (1, 2, 3)])
def test_samples_that_are_no_pair_are_named(made):
    with pytest.raises(ValueError, match=r"sampler must give a pair, x and z, got (Tensor|tuple)"):
        go(make(), Approximation(PROBLEM), sampler=made)


def test_samples_with_nan_are_named():
    def bad(n, _):
        return torch.full((n, 2), torch.nan).double(), torch.zeros(n, 2).double()

    with pytest.raises(ValueError, match="x must be finite"):
        go(make(), Approximation(PROBLEM), sampler=bad)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (None, "objective must be callable, got NoneType"),
        (lambda net, x, _: net(x), r"objective must return a number .*, got shape \(32, 2\)"),
        (lambda *_: 1.0, "objective must return a number .*, got float"),
        (lambda *_: torch.zeros(()), "objective must return a number with a gradient"),
    ],
)
def test_a_bad_objective_is_named(objective, message):
    with pytest.raises(ValueError, match=message):
        go(make(), objective)


def test_without_gradient_tracking_it_says_so():
    with torch.no_grad(), pytest.raises(ValueError, match="is gradient tracking off"):
        go(make(), Approximation(PROBLEM))


def held_out(n=256):
    return fresh_samples(PRIOR, PROBLEM)(n, torch.Generator().manual_seed(9))


def test_the_held_out_loss_is_that_of_the_average():
    """Twenty times, at equal distances; the last one is the loss of the final network."""
    net, samples = make(), held_out()
    record = go(net, Divergence(PROBLEM), steps=40, held_out=samples)
    assert record.held_out[:, 0].tolist() == [*range(2, 42, 2)]
    with torch.no_grad():
        final = Divergence(PROBLEM)(net, *samples).item()
    assert record.held_out[-1, 1].item() == pytest.approx(final, rel=1e-12)
    plain = make()
    go(plain, Divergence(PROBLEM), steps=40)
    assert torch.equal(weights(plain), weights(net))  # to look changes nothing
    assert go(make(), Divergence(PROBLEM), steps=5).held_out.shape == (0, 2)
    odd = go(make(), Divergence(PROBLEM), steps=39, held_out=samples).held_out[:, 0]
    assert (len(odd), odd[-1].item()) == (20, 39)
    assert len(go(make(), Divergence(PROBLEM), steps=5, held_out=samples).held_out) == 5


def test_patience_stops_and_keeps_the_best():
    """A loss that can only rise: the first check was the best, two more are waited for."""
    net, trace = make(), []

    def rises(net, x, z):
        return (net(x) - z).square().mean() - 5 * net.log_scale

    def told(net, x, z):
        if len(x) == 256:
            trace.append(weights(net))
            return torch.tensor(float(len(trace)))
        return rises(net, x, z)

    record = go(net, told, steps=200, held_out=held_out(), patience=2)
    assert record.held_out.tolist() == [[10.0, 1.0], [20.0, 2.0], [30.0, 3.0]]
    assert len(record.losses) == 30
    assert torch.equal(weights(net), trace[0])


def test_without_patience_a_rising_loss_stops_nothing():
    net, count = make(), []

    def told(net, x, z):
        count.append(len(x))
        return Approximation(PROBLEM)(net, x, z) + (len(count) if len(x) == 256 else 0)

    record = go(net, told, steps=40, held_out=held_out())
    assert len(record.losses) == 40
    assert not torch.equal(weights(net), weights(make()))


def test_a_callback_sees_each_step_and_can_stop():
    seen = []

    def callback(step, loss, average):
        seen.append((step, loss, weights(average)))
        return step == 6

    net = make()
    record = go(net, Approximation(PROBLEM), steps=20, callback=callback)
    assert [step for step, _, _ in seen] == [*range(7)]
    assert [loss for _, loss, _ in seen] == record.losses.tolist()
    assert torch.equal(seen[-1][2], weights(net))


SAMPLERS = {
    "fresh": lambda: fresh_samples(PRIOR, PROBLEM),
    "quasi": lambda: quasi_samples(PRIOR, PROBLEM, generator=torch.Generator().manual_seed(2)),
}


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("where", ["sampler", "objective", "callback"])
def test_an_interrupted_training_goes_on_as_if_nothing_had_been(kind, where, tmp_path):
    """To the bit: network, losses, held-out losses; and the file is gone in the end."""
    path, options = tmp_path / "run.pt", {"steps": 30, "held_out": held_out(), "patience": 25}
    whole = make()
    expected = go(whole, Divergence(PROBLEM), sampler=SAMPLERS[kind](), **options)
    calls = {"sampler": 0, "objective": 0, "callback": 0}

    def trip(name):
        calls[name] += 1
        if name == where and calls[name] == 13:
            raise KeyboardInterrupt

    def objective(net, x, z):
        if len(x) == 32:
            trip("objective")
        return Divergence(PROBLEM)(net, x, z)

    class Tripping:
        """A sampler that fails after the draw, so that the generator has moved on."""

        def __init__(self):
            self.inner = SAMPLERS[kind]()
            if kind == "quasi":
                self.state_dict = self.inner.state_dict
                self.load_state_dict = self.inner.load_state_dict

        def __call__(self, n, generator):
            drawn = self.inner(n, generator)
            trip("sampler")
            return drawn

    def run(net):
        return go(
            net,
            objective,
            sampler=Tripping(),
            callback=lambda *_: trip("callback"),
            checkpoint=path,
            **options,
        )

    with pytest.raises(KeyboardInterrupt):
        run(make())
    assert path.exists()
    net = make()
    record = run(net)
    assert torch.equal(record.losses, expected.losses)
    assert torch.equal(record.held_out, expected.held_out)
    assert torch.equal(weights(net), weights(whole))
    assert not path.exists()


def test_the_state_is_written_every_minute(tmp_path, monkeypatch):
    """After a loss of power the last file is there; the training goes on from it."""
    path, copy = tmp_path / "run.pt", tmp_path / "copy.pt"
    monkeypatch.setattr("invbayes.training.training.SAVE_EVERY", 0.0)

    def keep(step, *_):
        if step == 7:
            copy.write_bytes(path.read_bytes())

    expected = go(make(), Approximation(PROBLEM), steps=12, callback=keep, checkpoint=path)
    steps = []
    record = go(
        make(),
        Approximation(PROBLEM),
        steps=12,
        callback=lambda step, *_: steps.append(step),
        checkpoint=copy,
    )
    assert steps == [*range(7, 12)]
    assert torch.equal(record.losses, expected.losses)


def test_a_step_half_made_is_not_written(tmp_path, monkeypatch):
    """An interruption in the middle of a step leaves the file of the step before."""
    path = tmp_path / "run.pt"
    monkeypatch.setattr("invbayes.training.training.SAVE_EVERY", 0.0)

    class Breaking(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            if len(losses) == 4:
                written.append(path.read_bytes())
                raise KeyboardInterrupt

    losses, written = [], []
    with pytest.raises(KeyboardInterrupt):
        go(
            make(),
            Approximation(PROBLEM),
            optimizer=lambda parameters: Breaking(parameters, lr=0.1),
            callback=lambda _, loss, *__: losses.append(loss),
            checkpoint=path,
        )
    assert written == [path.read_bytes()]
    assert torch.load(path)["losses"].tolist() == losses


def test_the_checkpoint_of_another_training_is_refused(tmp_path):
    path = tmp_path / "run.pt"

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(make(), Approximation(PROBLEM), callback=stop, checkpoint=path)
    with pytest.raises(ValueError, match="checkpoint must be of this training, with steps"):
        go(make(), Approximation(PROBLEM), steps=11, checkpoint=path)


def test_with_a_kernel_the_approximation_loss_leaves_the_unseen_part_open():
    """φ(x) = (x₁, t (x₂ - g(x₁))): every g is as good as t is small; best is E[x₂ | x₁]."""
    generator = torch.Generator().manual_seed(2)
    problem = LinearProblem(torch.tensor([[1.0, 0.0]]).double(), noise_std=1e-4)
    prior = two_blobs()
    x = prior.sample(20_000, generator=generator)
    unseen = {
        "mean": lambda first: posterior_mean(prior, problem, first)[:, 1:],
        "zero": torch.zeros_like,
        "sine": torch.sin,
    }
    losses = {}
    for name, g in unseen.items():
        for t in (1e-1, 1e-3):

            def net(x, g=g, t=t):
                return torch.cat([x[:, :1], t * (x[:, 1:] - g(x[:, :1]))], 1)

            y = problem.apply(x[:50])
            z = problem.normal_data(y)
            torch.testing.assert_close(net(torch.cat([y, g(y)], 1)), z)
            losses[name, t] = Approximation(problem)(net, x, x).item()
        assert losses[name, 1e-3] == pytest.approx(1e-4 * losses[name, 1e-1])
        assert losses[name, 1e-3] < 1e-6
    variance = posterior(prior, problem, x[:, :1]).covariance[:, 1, 1].mean().item()
    assert losses["mean", 1e-1] == pytest.approx(0.01 * variance / 2, rel=0.03)
    assert losses["mean", 1e-1] < 0.9 * min(losses["zero", 1e-1], losses["sine", 1e-1])


class Same(Block):
    """Id − L Id has the slope 1 − L, the smallest of all blocks."""

    shape = (2,)

    def forward(self, x):
        return 1.0 * x

    def lipschitz_bound(self):
        return 1.0


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_small_forward_error_keeps_the_inverse_close_to_map(blocks):
    """At every datum, by the slope 1/(c (1 − L)^B); on average by the gap of the loss."""
    generator = torch.Generator().manual_seed(1)
    net = InvertibleResNet.dense(2, (8, 8), blocks, 0.6, scale=1.1, generator=generator).double()
    prior, steepest = two_blobs(), 1 / (1.1 * 0.4**blocks)
    problem = LinearProblem(torch.diag(torch.tensor([1.0, 0.125]).double()), 0.2)
    x = prior.sample(500, generator=generator)
    y = problem.observe(x, generator=generator)
    with torch.no_grad():
        estimate = map_estimate(prior, problem, y)
        error = (net.inverse(problem.normal_data(y), 1e-9) - estimate).norm(dim=1)
        forward = (net(estimate) - ideal_forward_map(prior, problem, estimate)).norm(dim=1)
        assert (error <= steepest * forward + 1e-8).all()
        ideal = ideal_forward_map(prior, problem, x)
        back = (net.inverse(ideal, 1e-9) - x).square().sum(1).mean()
        assert back <= steepest**2 * (net(x) - ideal).square().sum(1).mean()
    flattest = InvertibleResNet([Same() for _ in range(blocks)], lipschitz=0.6, scale=1.1).double()
    with torch.no_grad():
        error = flattest.inverse(problem.normal_data(y), 1e-12) - estimate
        forward = flattest(estimate) - ideal_forward_map(prior, problem, estimate)
    torch.testing.assert_close(error.norm(dim=1), steepest * forward.norm(dim=1))


def test_map_estimates_for_a_gaussian_prior_gather_where_the_prior_is_dense():
    """Their density is at most ∏ √(1 + δ²/(a² σ²)) times the prior's, at the centre."""
    generator = torch.Generator().manual_seed(2)
    y = PROBLEM.observe(PRIOR.sample(40_000, generator=generator), generator=generator)
    shrink = 1 + (NOISE / (torch.tensor([1.0, 0.5]).double() * SIGMA)) ** 2
    assert_mean_close(map_estimate(PRIOR, PROBLEM, y).square(), SIGMA**2 / shrink)
    ratio = PRIOR.log_prob(torch.zeros(2).double()) + shrink.log().sum() / 2
    narrow = GaussianMixture.gaussian(torch.zeros(2).double(), torch.diag(SIGMA**2 / shrink))
    torch.testing.assert_close(narrow.log_prob(torch.zeros(2).double()), ratio)


@pytest.mark.parametrize("k", [1, 10, 1000])
def test_on_a_data_set_the_divergence_loss_has_no_lower_bound(k, generator):
    """Monotone maps within n/k of A*A, whose loss falls like −δ² d k."""
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    problem = LinearProblem(torch.randn(2, 3, generator=generator, dtype=torch.float64), 0.3)

    class Steep(torch.nn.Module):
        def forward(self, points):
            away = points[:, None] - x
            long = (away.square().sum(-1, keepdim=True) + 1 / k**4).sqrt()
            return points @ problem.normal_operator + (away / long).sum(1) / k

        def with_divergence(self, points):
            return self(points), jacobian_of(self, points).diagonal(dim1=1, dim2=2).sum(1)

    steep, points = Steep(), 2 * torch.randn(2, 300, 3, generator=generator).double()
    apart = steep(points[0]) - points[0] @ problem.normal_operator
    assert apart.norm(dim=1).max() <= 5 / k
    assert ((steep(points[0]) - steep(points[1])) * (points[0] - points[1])).sum(1).min() > 0
    loss = Divergence(problem)(steep, x, x)
    assert loss < (5 / k) ** 2 / 2 - 0.09 * (problem.normal_operator.trace() + 3 * k)


def test_with_jitter_a_data_set_has_the_ideal_map_of_its_blurred_samples(generator):
    """Losses differ as the distances to it; and the divergence needs no derivative."""
    data = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    blurred = GaussianMixture(
        torch.ones(6).double() / 6, data, 0.25 * torch.eye(2).double().expand(6, 2, 2)
    )
    one, other = make(lipschitz=0.9), make(lipschitz=0.4, scale=2.0)
    i = torch.randint(6, (40_000,), generator=generator)
    noise = torch.randn(40_000, 2, generator=generator, dtype=torch.float64)
    x = data[i] + 0.5 * noise
    target = ideal_forward_map(blurred, PROBLEM, x)
    assert blurred.score(x).square().sum(1).mean() <= 2 / 0.25

    def above(net):
        value, divergence = net.with_divergence(x)
        loss = (value - x @ PROBLEM.normal_operator).square().sum(1) / 2 - NOISE**2 * divergence
        return loss - (value - target).square().sum(1) / 2

    with torch.no_grad():
        assert_mean_close(above(one) - above(other), torch.zeros(()))
        gap = one.divergence(x) - (noise * one(x)).sum(1) / 0.5
        assert_mean_close(gap, torch.zeros(()))
