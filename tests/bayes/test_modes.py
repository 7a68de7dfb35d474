"""The highest mode against dense grids, and the ways in which a search can fail."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invbayes import (
    GaussianMixture,
    LinearProblem,
    NotConverged,
    TiedModes,
    global_mode,
    has_single_mode,
    ideal_forward_map,
    map_estimate,
)
from invbayes.examples import two_blobs, two_peaks
from invbayes.figures import lattice
from tests.conftest import random_mixture


def grid(mixture, points):
    """A grid over the box that holds every mode: three deviations beyond the means."""
    reach = 3 * mixture.covariances.diagonal(dim1=-2, dim2=-1).amax(0).sqrt()
    low, high = mixture.means.amin(0) - reach, mixture.means.amax(0) + reach
    axes = [
        torch.linspace(a, b, points, dtype=torch.float64) for a, b in zip(low, high, strict=True)
    ]
    return torch.cartesian_prod(*axes).reshape(-1, mixture.dim)


@given(st.integers(1, 2), st.integers(1, 6), st.integers(0, 10_000))
def test_no_grid_point_is_higher(dim, components, seed):
    mixture = random_mixture(dim, components, torch.Generator().manual_seed(seed))
    mode = global_mode(mixture)
    best = mixture.log_prob(grid(mixture, 20_001 if dim == 1 else 201)).max()
    assert mixture.log_prob(mode) >= best - 1e-12
    assert mixture.score(mode).abs().max() < 1e-8


def test_a_mode_between_two_crossing_components_is_found():
    """Two long, crossing ridges are highest where they cross, far from both means."""
    mixture = GaussianMixture(
        torch.tensor([0.5, 0.5], dtype=torch.float64),
        torch.tensor([[3.0, 0.0], [0.0, 3.1]], dtype=torch.float64),
        torch.tensor([[[9.0, 0.0], [0.0, 0.01]], [[0.01, 0.0], [0.0, 9.0]]], dtype=torch.float64),
    )
    mode = global_mode(mixture)
    assert mode.norm() < 0.1
    assert mixture.log_prob(mode) > mixture.log_prob(mixture.means).max() + 0.1


def test_where_two_peaks_just_merge_the_top_is_between_and_no_tie():
    assert global_mode(two_peaks(separation=1.0, width=1.0)).abs() < 1e-4


@pytest.mark.parametrize("noise_std", [0.15, 0.2, 0.5])
def test_slow_passes_are_climbed(noise_std):
    """Starts that pass a vanishing second mode: curvature there has either sign, and is tiny."""
    prior, box = two_blobs(), (-2.6, 2.6, -2.2, 2.2)
    problem = LinearProblem(torch.eye(2, dtype=torch.float64), noise_std)
    y = lattice(box, rows=150, columns=150)
    x = map_estimate(prior, problem, y, max_steps=50)  # 58 or more without turning round
    residual = ideal_forward_map(prior, problem, x) - y
    assert residual.abs().max() < 1e-8


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_the_mode_moves_with_the_units(scale, generator):
    p = random_mixture(2, 3, generator)
    scaled = GaussianMixture(p.weights, scale * p.means, scale**2 * p.covariances)
    torch.testing.assert_close(global_mode(scaled) / scale, global_mode(p), rtol=1e-9, atol=1e-9)


def test_the_mode_moves_with_the_origin(generator):
    p = random_mixture(2, 3, generator)
    moved = GaussianMixture(p.weights, p.means + 1e7, p.covariances)
    torch.testing.assert_close(global_mode(moved) - 1e7, global_mode(p), rtol=0, atol=1e-7)


def test_the_middle_start_follows_the_precisions():
    """The ridge's midpoint, not the means' midpoint, leads to the crossing of thin ridges."""
    p = GaussianMixture(
        torch.tensor([0.55, 0.45], dtype=torch.float64),
        torch.tensor([[3.0, 0.0], [0.0, 3.1]], dtype=torch.float64),
        torch.tensor([[[9.0, 0], [0, 1e-3]], [[1e-3, 0], [0, 9.0]]], dtype=torch.float64),
    )
    assert p.log_prob(global_mode(p)) >= p.log_prob(torch.zeros(2, dtype=torch.float64))


def test_a_component_without_weight_is_no_mode():
    p = GaussianMixture(
        torch.tensor([0.0, 1.0]), torch.tensor([[9.0], [-9.0]]), torch.ones(2, 1, 1)
    )
    assert global_mode(p).item() == pytest.approx(-9)


def test_a_mirrored_mixture_ties_to_rounding():
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        p = random_mixture(2, 3, generator)
        centre = 4.0 + torch.rand(2, generator=generator, dtype=torch.float64)
        mirrored = GaussianMixture(
            p.weights.repeat(2) / 2,
            torch.cat([p.means, 2 * centre - p.means]),
            p.covariances.repeat(2, 1, 1),
        )
        with pytest.raises(TiedModes):
            global_mode(mirrored)


def test_a_batch_with_two_axes_and_its_own_covariances(generator):
    members = [random_mixture(2, 3, generator) for _ in range(6)]
    parts = [
        torch.stack([getattr(p, name) for p in members]).unflatten(0, (2, 3))
        for name in ("weights", "means", "covariances")
    ]
    modes = global_mode(GaussianMixture(*parts))
    torch.testing.assert_close(modes.flatten(0, 1), torch.stack([global_mode(p) for p in members]))


@pytest.mark.parametrize("width", [0.97, 0.999, 1.001, 1.03])
def test_flat_tops_are_climbed(width):
    """At width 1 the two peaks merge; close to it curvature is small and a climb is slow."""
    prior = two_peaks(separation=1.0, width=width)
    mode = global_mode(prior, on_tie="first")
    assert prior.score(mode).abs() < 1e-10
    assert prior.hessian(mode) < 0


def test_a_batch_is_searched_member_by_member(generator):
    members = [random_mixture(2, 3, generator) for _ in range(6)]
    batch = GaussianMixture(
        *(
            torch.stack([getattr(p, n) for p in members])
            for n in ("weights", "means", "covariances")
        )
    )
    expected = torch.stack([global_mode(p) for p in members])
    torch.testing.assert_close(global_mode(batch), expected, rtol=1e-9, atol=1e-9)


def test_single_precision_agrees(generator):
    p = random_mixture(3, 3, generator)
    low = GaussianMixture(p.weights.float(), p.means.float(), p.covariances.float())
    torch.testing.assert_close(global_mode(low).double(), global_mode(p), rtol=1e-4, atol=1e-4)


def test_a_tie_raises_and_can_be_settled():
    prior = two_peaks()
    with pytest.raises(TiedModes, match="two equally high modes, the first at index 0") as caught:
        global_mode(prior)
    assert caught.value.index.tolist() == [0]
    left = global_mode(prior, on_tie="first")
    assert -1 < left.item() < -0.9
    assert prior.score(left).abs() < 1e-10


def test_a_broken_tie_is_no_tie():
    prior = two_peaks()
    tilted = GaussianMixture(
        torch.tensor([0.5 - 1e-9, 0.5 + 1e-9], dtype=torch.float64), prior.means, prior.covariances
    )
    assert global_mode(tilted) > 0.9


def test_too_few_steps_raise_with_the_bound(generator):
    mixture = random_mixture(2, 4, generator)
    with pytest.raises(NotConverged, match="missed the tolerance 1e-10 after 1 steps") as caught:
        global_mode(mixture, max_steps=1)
    assert caught.value.steps == 1
    assert caught.value.bound > 1e-10


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


def test_a_saddle_raises(monkeypatch):
    """With the start between two peaks alone, the climb stays on the saddle, and says so."""
    between = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    monkeypatch.setattr("invbayes.bayes.modes._start_weights", lambda _: between)
    with pytest.raises(NotConverged, match="ended at a saddle point") as caught:
        global_mode(two_peaks())
    assert caught.value.bound == float("inf")
    with pytest.raises(NotConverged, match="ended at a saddle point"):
        has_single_mode(two_peaks())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tol": 0.0}, "tol must be finite and > 0, got 0"),
        ({"tol": -1e-3}, "tol must be finite and > 0"),
        ({"max_steps": 0}, "max_steps must be a positive int, got 0"),
        ({"on_tie": "last"}, "on_tie must be 'raise' or 'first', got 'last'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        global_mode(two_peaks(), **options)
