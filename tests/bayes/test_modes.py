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
    posterior,
)
from invbayes.bayes.modes import _start_weights, _uphill, _worth_climbing
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


@pytest.mark.parametrize("weight", [0.0, 1e-30])
def test_a_negligible_component_is_no_start(weight):
    """Only from its own mean would the climb end at the lower of the two peaks."""
    weights = torch.tensor([0.3, 0.7 - weight, weight], dtype=torch.float64)
    means = torch.tensor([[-9.0], [9.0], [-20.0]], dtype=torch.float64)
    p = GaussianMixture(weights, means, torch.ones(3, 1, 1, dtype=torch.float64))
    assert global_mode(p).item() == pytest.approx(9)
    starts = _start_weights(p.flattened())
    tried = starts[_worth_climbing(p.flattened(), starts)[0]]
    assert tried.tolist() == [[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0]]


def test_a_step_is_uphill_and_finite_point_by_point():
    step = torch.tensor([[torch.nan, 1.0], [1.0, 2.0], [1.0, 2.0], [1.0, torch.inf]])
    score = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, -1.0], [1.0, 1.0]])
    expected = torch.tensor([[7.0, 7.0], [1.0, 2.0], [-1.0, -2.0], [7.0, 7.0]])
    assert torch.equal(_uphill(step, score, otherwise=torch.full_like(step, 7.0)), expected)


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


def test_a_top_that_is_flat_to_rounding_is_a_maximum():
    """Here the heights of the two modes and of the saddle between them agree to rounding."""
    prior = two_peaks(separation=1.0, width=1.0 - 1e-9)
    mode = global_mode(prior)
    assert mode.abs() < 1e-4
    assert 0 < prior.hessian(torch.zeros(1, dtype=torch.float64)) < 1e-8


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
    """To its default tolerance of 1e-5 standard deviations, also where the first step is long."""
    for _ in range(10):
        p = random_mixture(2, 3, generator)
        found = global_mode(p.to(dtype=torch.float32)).double()
        torch.testing.assert_close(found, global_mode(p), rtol=1e-5, atol=1e-5)


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


def test_a_saddle_raises(monkeypatch):
    """With the start between two peaks alone, the climb stays on the saddle, and says so."""
    between = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    monkeypatch.setattr("invbayes.bayes.modes._start_weights", lambda _: between)
    with pytest.raises(NotConverged, match="ended at a saddle point") as caught:
        global_mode(two_peaks())
    assert caught.value.bound == float("inf")
    assert caught.value.steps == 1000
    with pytest.raises(NotConverged, match="ended at a saddle point") as caught:
        has_single_mode(two_peaks())
    assert caught.value.steps == 1000


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


@pytest.mark.parametrize("search", [global_mode, has_single_mode])
def test_only_mixtures_have_modes(search):
    with pytest.raises(ValueError, match="mixture must be a GaussianMixture, got NoneType"):
        search(None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("unit", "origin"), [(1.0, 300.0), (1e5, 0.0), (1e-5, 0.0)])
def test_units_and_origin_change_no_mode(unit, origin, dtype):
    weights = torch.tensor([0.5, 0.5], dtype=dtype)
    means = origin + unit * torch.tensor([[-0.5], [0.5]], dtype=dtype)
    tied = GaussianMixture(weights, means, torch.full((2, 1, 1), 0.04 * unit**2, dtype=dtype))
    assert not has_single_mode(tied)
    with pytest.raises(TiedModes):
        global_mode(tied)
    merged = GaussianMixture(weights, means, torch.full((2, 1, 1), 0.4 * unit**2, dtype=dtype))
    assert has_single_mode(merged)


@pytest.mark.parametrize(
    ("dtype", "levels"), [(torch.float32, (1e-3, 1e-4)), (torch.float64, (1e-7, 1e-8))]
)
def test_small_noise_beside_a_kernel_leaves_map_its_digits(dtype, levels, generator):
    """For a Gaussian prior MAP is the posterior mean, which is computed by singular values."""
    prior = GaussianMixture.gaussian(
        torch.tensor([0.3, -0.2], dtype=dtype), torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=dtype)
    )
    for level in levels:
        problem = LinearProblem(torch.tensor([[1.0, -1.02]], dtype=dtype), level)
        y = problem.observe(prior.sample(50, generator=generator), generator=generator)
        belief = posterior(prior, problem, y)
        away = (map_estimate(prior, problem, y) - belief.mean)[..., None]
        steps = torch.linalg.solve_triangular(belief._factors[0], away, upper=False)
        assert steps.norm(dim=1).max() < 30 * torch.finfo(dtype).eps / level + 1e-5
    near, nearer = (
        map_estimate(two_blobs(dtype), LinearProblem(problem.matrix, level), y) for level in levels
    )
    assert (near - nearer).norm(dim=1).max() < 1e-4
