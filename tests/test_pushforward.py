"""The density of a network's output, by quadrature and by finite differences."""

from __future__ import annotations

import pytest
import torch

from invbayes import GaussianMixture, InvertibleResNet, pushforward_log_prob, pushforward_score
from invbayes.examples import two_blobs
from invbayes.figures import lattice


@pytest.fixture
def net(generator):
    return InvertibleResNet(2, (8, 8), 2, 0.5, scale=1.4, generator=generator).double()


def test_the_density_integrates_to_one(net):
    """And its mean is that of φ(x): both by the trapezium rule over z."""
    prior = two_blobs()
    net.requires_grad_(False)
    z = lattice((-16, 16, -16, 16), rows=321, columns=321).reshape(-1, 2)
    x = net.inverse(z, 1e-10)
    mass = pushforward_log_prob(net, prior, x).exp() * 0.1**2
    assert mass.sum().item() == pytest.approx(1, abs=1e-5)
    at_x = prior.log_prob(z).exp() * 0.1**2  # the same lattice, now as points x
    torch.testing.assert_close(mass @ z, at_x @ net(z), rtol=0, atol=1e-5)


def test_the_score_is_the_gradient_of_the_log_density(net, generator):
    prior = two_blobs()
    x = prior.sample(10, generator=generator)
    z = net(x).detach()
    step = 1e-5

    def log_q(points):
        with torch.no_grad():
            return pushforward_log_prob(net, prior, net.inverse(points, 1e-12))

    differences = [(log_q(z + v) - log_q(z - v)) / (2 * step) for v in step * torch.eye(2).double()]
    found = pushforward_score(net, prior, x)
    torch.testing.assert_close(found, torch.stack(differences, 1), rtol=1e-6, atol=1e-6)
    assert not found.requires_grad
    with torch.no_grad():
        assert torch.equal(pushforward_score(net, prior, x), found)


def test_bad_input_is_named(net):
    prior = two_blobs()
    batch = GaussianMixture(
        prior.weights.expand(3, 2), prior.means.expand(3, 2, 2), prior.covariances
    )
    with pytest.raises(ValueError, match="prior must be a single mixture, got a batch"):
        pushforward_log_prob(net, batch, torch.zeros(3, 2).double())
    with pytest.raises(ValueError, match=r"x must have shape \(\*, 2\), got \(5, 3\)"):
        pushforward_score(net, two_blobs(), torch.zeros(5, 3).double())
    with pytest.raises(ValueError, match=r"x must have dtype torch\.float64"):
        pushforward_log_prob(net, two_blobs(), torch.zeros(5, 2))
