"""The training that sees data only: its loss, its gradient, what it finds."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from invbayes import (
    GaussianMixture,
    InvertibleResNet,
    LinearProblem,
    Reconstruction,
    UnbiasedRisk,
    fit,
    gaussian_forward_eigenvalues,
    quasi_samples,
)
from invbayes.examples import two_blobs
from tests.conftest import assert_mean_close, random_operator


@pytest.fixture
def parts(generator):
    net = InvertibleResNet.dense(2, (6, 6), lipschitz=0.6, generator=generator).double()
    problem = LinearProblem(random_operator(3, 2, 2, generator), 0.3)
    x = two_blobs().sample(60, generator=generator)
    return net, problem, x, problem.normal_data(problem.observe(x, generator=generator))


@pytest.fixture(params=["identity", "skew"])
def metric(request):
    """None, which stands for the identity, or one that favours a direction aslant."""
    return None if request.param == "identity" else torch.tensor([[3.0, 1.0], [1.0, 0.5]]).double()


def test_its_expectation_is_the_reconstruction_loss(parts, metric, generator):
    net, problem, *_ = parts
    ours, theirs = UnbiasedRisk(problem, metric=metric), Reconstruction(metric=metric)
    x = two_blobs().sample(20_000, generator=generator)
    z = problem.normal_data(problem.observe(x, generator=generator))
    batches = zip(x.split(200), z.split(200), strict=True)
    differences = [ours(net, b, b) - theirs(net, a, b) for a, b in batches]
    assert_mean_close(torch.stack(differences).detach(), torch.zeros(()).double())


def test_it_never_looks_at_the_unknowns(parts):
    net, problem, x, z = parts
    loss = UnbiasedRisk(problem)
    assert loss(net, x, z) == loss(net, torch.full_like(z, torch.nan), z)


def gradients(net, loss, z):
    return torch.autograd.grad(loss(net, z, z), [*net.parameters()])


def test_its_gradient_is_that_of_differences(parts, metric):
    net, problem, _, z = parts
    loss = UnbiasedRisk(problem, tol=1e-12, metric=metric)
    for parameter, gradient in zip(net.parameters(), gradients(net, loss, z), strict=True):
        flat, place = parameter.data.view(-1), gradient.flatten().abs().argmax()
        value = flat[place].item()
        ends = []
        for moved in (value + 1e-5, value - 1e-5):
            flat[place] = moved
            ends.append(loss(net, z, z).item())
        flat[place] = value
        slope = (ends[0] - ends[1]) / 2e-5
        assert gradient.flatten()[place].item() == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_probes_give_the_loss_and_its_gradient_without_bias(parts, metric, generator):
    net, problem, _, z = parts
    z = z[:3]
    exact = UnbiasedRisk(problem, tol=1e-11, metric=metric)
    random = UnbiasedRisk(problem, tol=1e-11, metric=metric, probes=1, generator=generator)
    losses = torch.stack([random(net, z, z) for _ in range(100)]).detach()
    assert_mean_close(losses, exact(net, z, z).detach())
    wanted = torch.cat([g.flatten() for g in gradients(net, exact, z)])
    found = [torch.cat([g.flatten() for g in gradients(net, random, z)]) for _ in range(100)]
    samples = torch.stack(found)
    moving = samples.std(0) > 1e-9
    assert moving.any()
    assert_mean_close(samples[:, moving], wanted[moving])


@pytest.mark.parametrize("probes", [None, 1])
def test_without_a_single_unknown_it_finds_the_posterior_mean(generator, probes):
    """A Gaussian prior, whose posterior mean is known; the sampler hands out data twice."""
    prior = GaussianMixture.gaussian(torch.zeros(2).double(), 0.49 * torch.eye(2).double())
    problem = LinearProblem(torch.diag(torch.tensor([1.0, 0.5])).double(), 0.3)
    pairs = quasi_samples(prior, problem, generator=generator)

    def data_only(n, source):
        z = pairs(n, source)[1]
        return z, z

    loss = UnbiasedRisk(problem, probes=probes, generator=generator)
    options = {"generator": generator, "sampler": data_only, "hidden": (8, 8)}
    net, record = fit(loss, prior, problem, steps=150, **options)
    singular = torch.tensor([1.0, 0.5]).double()
    best = gaussian_forward_eigenvalues(singular, 0.7, 0.3).posterior
    z = data_only(2000, None)[0]
    distance = (net.inverse(z) - z / best).norm() / (z / best).norm()
    assert distance < (0.03 if probes is None else 0.06)
    expected = (0.09 / best).sum() / 2
    assert record.losses[-20:].mean().item() == pytest.approx(expected.item(), rel=0.1)


def test_by_default_single_precision_asks_for_what_it_can_reach():
    """A prior of size ten: 1e-4 is below the rounding of a network with a bound of 0.99."""
    prior = GaussianMixture.gaussian(torch.zeros(2), 100 * torch.eye(2))
    problem, generator = LinearProblem(torch.eye(2), 0.3), torch.Generator().manual_seed(0)
    net = InvertibleResNet.dense(2, (8,), generator=generator)
    z = problem.normal_data(problem.observe(prior.sample(2000, generator=generator)))
    wide, wide_problem = copy.deepcopy(net).double(), LinearProblem(torch.eye(2).double(), 0.3)
    expected = UnbiasedRisk(wide_problem)(wide, z.double(), z.double()).item()
    assert UnbiasedRisk(problem)(net, z, z).item() == pytest.approx(expected, rel=1e-3)
    assert expected == UnbiasedRisk(wide_problem, tol=1e-4)(wide, z.double(), z.double()).item()


def test_a_multiple_of_the_identity_multiplies_the_loss(parts):
    net, problem, _, z = parts
    given = UnbiasedRisk(problem, metric=4 * torch.eye(2).double())(net, z, z)
    assert torch.isclose(given, 4 * UnbiasedRisk(problem)(net, z, z), rtol=1e-12)


def test_it_can_be_pickled(parts):
    net, problem, _, z = parts
    loss = UnbiasedRisk(problem)
    assert pickle.loads(pickle.dumps(loss))(net, z, z) == loss(net, z, z)


def test_wrong_arguments_are_named(parts):
    net, problem, x, z = parts
    with pytest.raises(ValueError, match="problem must be a LinearProblem"):
        UnbiasedRisk(0.3)
    with pytest.raises(ValueError, match="problem must have an injective operator"):
        UnbiasedRisk(LinearProblem(torch.ones(1, 2).double(), 0.3))
    with pytest.raises(ValueError, match="tol must be finite and > 0"):
        UnbiasedRisk(problem, tol=0.0)
    with pytest.raises(ValueError, match="probes must be a positive int"):
        UnbiasedRisk(problem, probes=0)
    with pytest.raises(ValueError, match="metric must be symmetric positive definite"):
        UnbiasedRisk(problem, metric=-torch.eye(2).double())
    with pytest.raises(ValueError, match=r"metric must be a matrix of shape \(2, 2\)"):
        UnbiasedRisk(problem, metric=torch.eye(3).double())
    with pytest.raises(ValueError, match="z must have the shape of x"):
        UnbiasedRisk(problem)(net, x[:2], z)
