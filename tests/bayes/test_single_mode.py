"""One mode or several: against the sign changes of the score, saddles, batches."""

from __future__ import annotations

import torch

from invbayes import GaussianMixture, has_single_mode
from invbayes.examples import two_peaks
from tests.conftest import random_mixture


def test_one_mode_or_several_agrees_with_a_dense_grid(generator):
    """On the line, count the sign changes of the score."""
    x = torch.linspace(-8, 8, 20_001, dtype=torch.float64)[:, None]
    answers = []
    for _ in range(60):
        mixture = random_mixture(1, 3, generator)
        falls = ((mixture.score(x[:-1]) > 0) & (mixture.score(x[1:]) <= 0)).sum().item()
        assert has_single_mode(mixture).item() == (falls == 1)
        answers.append(falls)
    assert min(answers) == 1 < max(answers)


def test_one_mode_or_several_takes_batches():
    near = two_peaks(separation=0.4, width=0.5)  # two peaks merge when m ≤ s
    far = two_peaks(separation=0.6, width=0.5)
    batch = GaussianMixture(
        near.weights.expand(2, 2),
        torch.stack([near.means, far.means]),
        torch.stack([near.covariances, far.covariances]),
    )
    assert has_single_mode(batch).tolist() == [True, False]
    assert has_single_mode(near).shape == ()


def test_a_saddle_on_a_ring_is_no_second_mode():
    """The density on the ring has one peak, one saddle opposite and a crater within."""
    t = torch.arange(12).double() * torch.pi / 6
    means = 2 * torch.stack([t.cos(), t.sin()], 1)
    covariances = 0.64 * torch.eye(2).double().expand(12, 2, 2).clone()
    assert has_single_mode(GaussianMixture(torch.softmax(0.3 * t.cos(), 0), means, covariances))


def test_a_component_without_weight_is_no_second_mode():
    means = torch.tensor([[9.0], [-9.0]])
    assert has_single_mode(GaussianMixture(torch.tensor([0.0, 1.0]), means, torch.ones(2, 1, 1)))
