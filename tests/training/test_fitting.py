"""A network in one call: for a prior or samples; and what it warns of."""

from __future__ import annotations

import warnings

import pytest
import torch

from invbayes import (
    Approximation,
    Divergence,
    GaussianMixture,
    InvertibleResNet,
    LinearProblem,
    LogDeterminant,
    RangeWarning,
    Reconstruction,
    RunawayWarning,
    fit,
    fresh_noise,
    fresh_samples,
    posterior_metric,
    quasi_samples,
    train,
)
from invbayes.training.runaway import runaway
from tests.own_blocks import Convolutions
from tests.training.test_training import NOISE, PRIOR, PROBLEM, weights


def test_fit_trains_a_new_network_and_freezes_it():
    generator = torch.Generator().manual_seed(4)
    options = {"hidden": (8, 8), "lipschitz": 0.7}
    run = {"steps": 3, "generator": generator, "progress": False}
    net, record = fit(Divergence(PROBLEM), PRIOR, PROBLEM, **run, **options)
    generator.manual_seed(4)
    same = InvertibleResNet.dense(2, generator=generator, **options).double()
    sampler = quasi_samples(PRIOR, PROBLEM, generator=generator)
    assert torch.equal(train(same, Divergence(PROBLEM), sampler, **run).losses, record.losses)
    assert torch.equal(weights(net), weights(same))
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_fit_hands_its_generator_to_the_sampler():
    generator, seen = torch.Generator().manual_seed(4), []

    def sampler(n, given):
        seen.append(given)
        return fresh_samples(PRIOR, PROBLEM)(n, given)

    run = {"generator": generator, "steps": 3, "progress": False}
    fit(Divergence(PROBLEM), PRIOR, PROBLEM, sampler=sampler, **run)
    assert len(seen) == 3
    assert all(given is generator for given in seen)


def test_fit_refuses_the_objective_of_another_problem():
    other = LinearProblem(PROBLEM.operator, 0.1)
    with pytest.raises(ValueError, match="problem must be the objective's own"):
        fit(Divergence(other), PRIOR, PROBLEM, generator=torch.Generator(), steps=1)


def test_options_reach_the_training_and_the_network():
    sizes, seen = [], []

    def sampler(n, generator):
        sizes.append(n)
        return fresh_samples(PRIOR, PROBLEM)(n, generator)

    net, record = fit(
        Approximation(PROBLEM),
        PRIOR,
        PROBLEM,
        generator=torch.Generator().manual_seed(0),
        sampler=sampler,
        steps=5,
        batch=7,
        average=0.5,
        callback=lambda step, *_: seen.append(step),
        hidden=(8,),
        blocks=2,
        scale=1.5,
        learn_scale=False,
    )
    assert sizes == [7] * 5
    assert seen == [*range(5)]
    assert len(net.blocks) == 2
    assert net.scale.item() == pytest.approx(1.5)
    assert len(record.losses) == 5


def test_options_that_would_do_nothing_are_refused(generator):
    """An unknown name, and a jitter that no sampler would use."""
    x, run = torch.zeros(5, 2).double(), {"generator": generator, "steps": 1}
    with pytest.raises(ValueError, match=r"options \['epochs'\] are unknown; .* batch, .*blocks,"):
        fit(Reconstruction(), x, PROBLEM, epochs=3, **run)
    with pytest.raises(ValueError, match=r"jitter is for your own samples .* came with a prior"):
        fit(Reconstruction(), PRIOR, PROBLEM, jitter=0.1, **run)
    own = fresh_noise(x, PROBLEM)
    with pytest.raises(ValueError, match=r"jitter is for .* came with a sampler of its own"):
        fit(Reconstruction(), x, PROBLEM, sampler=own, jitter=0.1, **run)
    with pytest.raises(ValueError, match="jitter must"):
        fit(Reconstruction(), x, PROBLEM, jitter=-0.1, **run)


def test_samples_stand_for_a_prior(generator):
    """A data set with fresh noise; the network takes its dtype."""
    x = 0.7 * torch.randn(300, 2, generator=generator)
    problem = PROBLEM.to(dtype=torch.float32)
    run = {"generator": torch.Generator().manual_seed(1), "steps": 4, "batch": 64}
    net, record = fit(Reconstruction(), x, problem, hidden=(8, 8), jitter=0.1, **run)
    again = torch.Generator().manual_seed(1)
    same = InvertibleResNet.dense(2, (8, 8), generator=again)
    sampler = fresh_noise(x, problem, jitter=0.1)
    other = train(same, Reconstruction(), sampler, steps=4, batch=64, generator=again)
    assert torch.equal(record.losses, other.losses)
    assert net.log_scale.dtype == torch.float32


def test_a_network_of_ones_own(generator):
    x = torch.randn(50, 1, 4, 4, generator=generator, dtype=torch.float64)
    problem = LinearProblem(lambda x: x, 0.3, shape=(1, 4, 4), dtype=torch.float64)
    own = InvertibleResNet(Convolutions(generator=generator))
    run = {"generator": generator, "steps": 3, "batch": 16}
    net, _ = fit(Divergence(problem), x, problem, net=own, **run)
    assert net is own
    assert net.log_scale.dtype == torch.float64
    with pytest.raises(ValueError, match=r"options \['hidden'\] are of a new network"):
        fit(Divergence(problem), x, problem, net=own, hidden=(8,), **run)
    with pytest.raises(ValueError, match=r"net must be given for points of shape \(1, 4, 4\)"):
        fit(Divergence(problem), x, problem, **run)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "source must be a GaussianMixture or Tensor, got NoneType"),
        (torch.zeros(5, 3).double(), r"source must have shape \(\*, 2\), got \(5, 3\)"),
        (torch.zeros(5, 2), "source must have dtype torch.float64"),
        (torch.full((5, 2), torch.nan).double(), "source must be finite"),
        (GaussianMixture.gaussian(torch.zeros(1), torch.ones(1, 1)), "prior must have dimension 2"),
    ],
)
def test_a_bad_source_is_named(source, message):
    with pytest.raises(ValueError, match=message):
        fit(Divergence(PROBLEM), source, PROBLEM, generator=torch.Generator(), steps=1)


def test_a_seed_in_place_of_a_generator_is_named():
    with pytest.raises(ValueError, match=r"^generator must be a Generator, got int$"):
        fit(Divergence(PROBLEM), UNIT, PROBLEM, generator=0, steps=1)


def run(objective, source, problem, **options):
    generator = torch.Generator().manual_seed(0)
    return fit(objective, source, problem, generator=generator, steps=1, batch=8, **options)


def problem_with(ratio, noise_std=0.1):
    return LinearProblem(torch.diag(torch.tensor([1.0, ratio**-0.5]).double()), noise_std)


UNIT = GaussianMixture.gaussian(torch.zeros(2).double(), torch.eye(2).double())


@pytest.mark.parametrize(
    ("lipschitz", "blocks", "holds"), [(0.99, 1, 199.0), (0.9, 1, 19.0), (0.9, 2, 361.0)]
)
def test_slopes_beyond_the_bound_are_told_with_their_numbers(lipschitz, blocks, holds):
    """Just inside there is silence; just outside the eigenvalues and the ratio are named."""
    options = {"lipschitz": lipschitz, "blocks": blocks, "hidden": (8,)}
    inside, outside = problem_with(0.99 * holds), problem_with(1.01 * holds)
    run(Approximation(inside), UNIT, inside, **options)
    least = f"{1 / (1.01 * holds):.3g}"
    message = (
        rf"slopes from {least} to 1, .*lipschitz={lipschitz:g} and {blocks} .*ratio of {holds:.4g}"
    )
    with pytest.warns(RangeWarning, match=message) as told:
        run(Approximation(outside), UNIT, outside, **options)
    assert told[0].filename == __file__  # at the line that called fit


@pytest.mark.parametrize("objective", [Divergence, LogDeterminant, lambda _: Reconstruction()])
def test_the_prior_lifts_the_slopes(objective):
    """A*A + δ²Σ⁻¹, with the covariance of the prior or of the samples."""
    problem = problem_with(1e6, noise_std=0.1)  # slopes 1 + 0.01/v and 1e-6 + 0.01/v
    samples = UNIT.sample(4000, generator=torch.Generator().manual_seed(0))
    for source in (UNIT, samples):
        run(objective(problem), source, problem, lipschitz=0.99)
        with pytest.warns(RangeWarning, match=r"asks for slopes from 0\.0\d+ to 1\.01"):
            run(objective(problem), source, problem, lipschitz=0.9)
    weak = problem_with(1e6, noise_std=0.01)
    with pytest.warns(RangeWarning):
        run(objective(weak), UNIT, weak, lipschitz=0.99)
    if objective in (Divergence, LogDeterminant):
        run(objective(weak, weight=0.01), UNIT, weak, lipschitz=0.99)


def test_a_data_set_without_a_density_is_told(generator):
    """Constant entries at once; too fine a structure as soon as the scale shows it."""
    x = torch.randn(400, 2, generator=generator, dtype=torch.float64)
    constant = torch.cat([x, torch.zeros(400, 1).double()], 1)
    flat = LinearProblem(torch.eye(3).double(), 0.1)
    with pytest.warns(RunawayWarning, match="hardly vary in some direction .* jitter"):
        fit(Divergence(flat), constant, flat, generator=generator, steps=1, batch=400)
    fit(Divergence(flat), constant, flat, generator=generator, steps=1, batch=400, jitter=0.1)
    net, sampler = InvertibleResNet.dense(3).double(), fresh_noise(constant, flat)
    with pytest.warns(RunawayWarning) as told:
        train(net, Divergence(flat), sampler, generator=generator, steps=1)
    assert told[0].filename == __file__


@pytest.mark.parametrize("operator", [1.0, 3.0])
def test_the_scale_that_counts_as_a_run_away(operator, generator):
    """c = ‖A*A‖ + δ̂²/τ² with τ a twentieth of the spread."""
    x = 2 * torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    problem = LinearProblem(operator * torch.diag(torch.tensor([1.0, 0.5, 0.1]).double()), 0.1)
    spread = (x - x.mean(0)).square().mean().sqrt().item()
    limit = operator**2 + 0.04 / (0.05 * spread) ** 2
    for factor, told in ((0.999, False), (1.001, True)):
        net = InvertibleResNet.dense(3, (8,), scale=factor * limit).double()
        message = runaway(net, problem, 0.04, x)
        assert (message is not None) == told
    assert f"c = {1.001 * limit:.3g} runs away: it fits structure of size 0.1 in" in message


def test_two_samples_make_the_divergence_run_away():
    """The counterexample: two points, and a map as steep as it likes between and on them."""
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    problem = LinearProblem(torch.eye(1).double(), 0.5)
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "steps": 350, "batch": 2, "hidden": (16, 16)}
    with pytest.warns(RunawayWarning, match=r"the scale c = .* runs away"):
        net, record = fit(Divergence(problem), x, problem, **options)
    assert record.losses.min() < -20
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        healthy, record = fit(Divergence(problem), x, problem, jitter=0.3, **options)
    assert record.losses.min() > -2
    assert healthy.scale < 0.2 * net.scale


def test_a_metric_is_not_watched():
    metric = posterior_metric(PROBLEM, PRIOR.covariance)
    net = InvertibleResNet.dense(2, scale=1e6).double()
    x = PRIOR.sample(100, generator=torch.Generator().manual_seed(0))
    assert LogDeterminant(PROBLEM, metric=metric).watch(net, x) is None
    assert LogDeterminant(PROBLEM).watch(net, x) is not None
    assert Divergence(PROBLEM).strength == pytest.approx(NOISE**2)
