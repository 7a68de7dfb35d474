"""The best map of the log-determinant training, against closed forms and its equation."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch

from invbayes import (
    GaussianMixture,
    HeatStep,
    LinearProblem,
    LogDeterminant,
    NotConverged,
    gaussian_forward_eigenvalues,
    posterior_mean,
    posterior_metric,
)
from invbayes.examples import two_blobs, two_peaks
from tests.conftest import random_operator

METRIC = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize("metric", [None, "inverse"])
def test_for_a_gaussian_prior_it_is_the_closed_form(metric, generator):
    problem = LinearProblem(random_operator(3, 2, 2, generator), noise_std=0.4)
    prior = GaussianMixture.gaussian(torch.zeros(2).double(), 0.49 * torch.eye(2).double())
    squares, axes = torch.linalg.eigh(problem.normal_operator)
    values = gaussian_forward_eigenvalues(squares.sqrt(), 0.7, 0.4)
    values = values.log_det if metric is None else values.log_det_metric
    weights = None if metric is None else torch.linalg.inv(problem.normal_operator)
    best = HeatStep(problem, prior, metric=weights)
    x = prior.sample(50, generator=generator)
    torch.testing.assert_close(best(x), x @ axes @ torch.diag(values) @ axes.mT, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("least", "noise"), [(0.01, 0.5), (0.003, 0.1), (0.02, 1.0)])
def test_a_direction_that_is_hardly_seen_has_its_closed_form(least, noise):
    """Φ is known but for a constant, and its curvatures differ by a factor of 10¹⁰."""
    singular = torch.tensor([1.0, least]).double()
    prior = GaussianMixture.gaussian(torch.zeros(2).double(), torch.eye(2).double())
    best = HeatStep(LinearProblem(torch.diag(singular), noise), prior)
    x = torch.full((1, 2), 0.5).double()
    values = (singular**2 + (singular**4 + 4 * noise**2).sqrt()) / 2
    torch.testing.assert_close(best(x) / x, values[None], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("least", "noise"), [(1e-4, 0.1), (0.01, 1.0), (1e-5, 1.0)])
def test_a_minimum_that_rounding_hides_is_not_reported(least, noise):
    """Which of these are found depends on the processor's rounding."""
    singular = torch.tensor([1.0, least]).double()
    prior = GaussianMixture.gaussian(torch.zeros(2).double(), torch.eye(2).double())
    x, values = (
        torch.full((1, 2), 0.5).double(),
        (singular**2 + (singular**4 + 4 * noise**2) ** 0.5) / 2,
    )
    with suppress(NotConverged):
        found = HeatStep(LinearProblem(torch.diag(singular), noise), prior, cells=8)(x)
        torch.testing.assert_close(found / x, values[None], rtol=1e-2, atol=0)


@pytest.mark.parametrize("weight", [None, 0.3])
def test_in_the_posterior_metric_it_is_affine_for_every_gaussian_prior(weight, generator):
    problem = LinearProblem(random_operator(3, 2, 2, generator), noise_std=0.4)
    prior = GaussianMixture.gaussian(torch.tensor([0.5, -1.0]).double(), METRIC)
    metric = posterior_metric(problem, METRIC, weight=weight)
    best, x = (
        HeatStep(problem, prior, weight=weight, metric=metric),
        prior.sample(9, generator=generator),
    )
    jacobian = torch.linalg.inv(metric)
    torch.testing.assert_close(best.jacobian(x), jacobian.expand(9, 2, 2), rtol=0, atol=1e-5)
    if weight is None:
        y = problem.observe(x, generator=generator)
        mean, found = posterior_mean(prior, problem, y), best.inverse(problem.normal_data(y))
        torch.testing.assert_close(found, mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize("metric", [None, METRIC])
def test_in_the_plane_it_obeys_the_equation(metric, generator):
    r"""A*A x = φ(x) + δ² M⁻¹ ∇log q(φ(x)), with the score by differences of log p − log det Dφ."""
    prior, problem = two_blobs(), LinearProblem(random_operator(2, 2, 2, generator), 0.3)
    best, x = (
        HeatStep(problem, prior, metric=metric, cells=40),
        two_blobs().sample(200, generator=generator),
    )

    def log_q(points):
        return prior.log_prob(points) - best.jacobian(points).det().log()

    shifts = 0.1 * torch.eye(2).double()
    slopes = torch.stack([(log_q(x + s) - log_q(x - s)) / 0.2 for s in shifts], -1)
    score = torch.linalg.solve(best.jacobian(x).mT, slopes)
    pull = (
        0.3**2
        * torch.linalg.solve(torch.eye(2).double() if metric is None else metric, score.mT).mT
    )
    missed = x @ problem.normal_operator - best(x) - pull
    relative = missed.norm(dim=1) / pull.norm(dim=1)  # at most points; rougher in the valley
    assert relative.median() < 0.01
    assert relative.quantile(0.9) < 0.1


def test_on_the_line_it_obeys_the_equation():
    prior, problem = two_peaks(1.0, 0.6), LinearProblem(torch.eye(1).double(), 0.3)
    best, x = HeatStep(problem, prior, cells=400), torch.linspace(-2, 2, 101)[:, None].double()
    log_q = [prior.log_prob(p) - best.jacobian(p).det().log() for p in (x - 0.02, x + 0.02)]
    score = (log_q[1] - log_q[0])[:, None] / 0.04 / best.jacobian(x)[:, 0]
    torch.testing.assert_close(x - best(x), 0.09 * score, rtol=0, atol=2e-4)


@pytest.mark.parametrize("metric", [None, METRIC])
def test_a_single_unseen_number_is_answered_by_its_median(metric, generator):
    """A nearly unseen coordinate; the output's unseen part is Gaussian and independent."""
    prior, problem = two_blobs(), LinearProblem(torch.diag(torch.tensor([0.03, 1.0]).double()), 0.3)
    best = HeatStep(problem, prior, metric=metric)
    data = torch.stack([torch.zeros(9), torch.linspace(-1.2, 1.2, 9)], -1).double()
    answers, axis = best.inverse(data), torch.linspace(-5, 5, 2001).double()
    given = answers[:, 1:].expand(-1, len(axis))
    share = prior.log_prob(torch.stack([axis.expand_as(given), given], -1)).softmax(1)
    medians = axis[(share.cumsum(1) < 0.5).sum(1)]
    torch.testing.assert_close(answers[:, 0], medians, rtol=0, atol=0.01)
    assert (answers[:, 0] - share @ axis).abs().max() > 0.3
    inverse = torch.linalg.inv(torch.eye(2).double() if metric is None else metric)
    image = best(prior.sample(20_000, generator=generator))
    n = image[:, 0] / inverse[0, 0]  # z = z' + M⁻¹n
    seen = image[:, 1] - inverse[1, 0] * n
    assert abs(n.std() * inverse[0, 0].sqrt() / 0.3 - 1) < 0.02
    assert abs(torch.stack([n, seen]).corrcoef()[0, 1]) < 0.03


class BestMap:
    """A best map where a loss expects a network, moved by a push."""

    def __init__(self, best, push):
        self.best, self.push = best, push

    def with_log_abs_det(self, x):
        turn = torch.stack([torch.cos(x[:, 0]), torch.zeros_like(x[:, 0])], -1)
        moved = x + self.push * torch.stack([torch.sin(x[:, 0]), torch.zeros_like(x[:, 1])], -1)
        return self.best(moved), self.best.jacobian(moved).det().log() + (
            1 + self.push * turn[:, 0]
        ).log()


def test_no_push_lowers_its_loss():
    prior, problem = two_blobs(), LinearProblem(torch.diag(torch.tensor([1.0, 0.5]).double()), 0.35)
    best, objective = HeatStep(problem, prior), LogDeterminant(problem)
    x = prior.sample(20_000, generator=torch.Generator().manual_seed(0))
    least, *others = [objective(BestMap(best, p), x, x) for p in (0.0, -0.1, -0.03, 0.03, 0.1)]
    assert min(others) > least


def test_it_inverts_and_keeps_to_its_box(generator):
    prior, problem = two_blobs(torch.float32), LinearProblem(torch.eye(2), 0.5)
    best, x = HeatStep(problem, prior), two_blobs(torch.float32).sample(30, generator=generator)
    assert best(x).dtype == torch.float32
    torch.testing.assert_close(best.inverse(best(x)), x, rtol=0, atol=1e-5)
    edge = best.inverse(torch.tensor([[1e3, 0.0]]))
    assert edge[0, 0] == best.high[0].float()
    with pytest.raises(NotConverged, match="inverse"):
        best.inverse(best(x), tol=-1.0)


@pytest.mark.parametrize("unit", [1e-12, 1e-8, 1e7])
def test_it_inverts_in_every_unit(unit):
    """A tolerance in the units of x would be too large for one, too small for the other."""
    prior = two_peaks(1.0, 0.6)
    scaled = GaussianMixture(prior.weights, unit * prior.means, unit**2 * prior.covariances)
    best = HeatStep(LinearProblem(torch.eye(1).double(), unit), scaled)
    x = unit * torch.linspace(-2, 2, 50)[:, None].double()
    torch.testing.assert_close(best.inverse(best(x)), x, rtol=0, atol=1e-9 * unit)
    rough = best.inverse(best(x), tol=unit)  # a step that was cut short is no sign of nearness
    torch.testing.assert_close(rough, x, rtol=0, atol=unit)


def test_it_inverts_in_a_long_box_far_from_the_origin():
    """Steps are measured in the box, and rounding bounds the last of them."""
    mean, spread = torch.tensor([1e9, 0.0]).double(), torch.tensor([1e-1, 1e3]).double()
    prior = GaussianMixture.gaussian(mean, torch.diag(spread**2))
    best = HeatStep(LinearProblem(torch.eye(2).double(), 0.1), prior, cells=8)
    x = mean + spread * torch.tensor([[0.5, -1.0], [2.0, 1.5]]).double()
    away = (best.inverse(best(x)) - x) / spread
    assert away.abs().max() < 1e-4


def test_on_the_rim_of_its_box_it_is_the_limit_from_inside():
    best = HeatStep(LinearProblem(torch.eye(2).double(), 0.5), two_blobs(), cells=6)
    for rim in (best.high, best.low):
        inside = rim + 1e-9 * ((best.low + best.high) / 2 - rim)
        torch.testing.assert_close(best(rim), best(inside), rtol=0, atol=1e-7)
        torch.testing.assert_close(best.jacobian(rim), best.jacobian(inside), rtol=0, atol=1e-7)


def test_in_other_units_it_is_the_same_map(generator):
    prior, unit = two_blobs(), 1e-2
    small = GaussianMixture(prior.weights, unit * prior.means, unit**2 * prior.covariances)
    best, scaled = (
        HeatStep(LinearProblem(torch.eye(2).double(), noise), of, cells=6)
        for noise, of in [(0.5, prior), (0.5 * unit, small)]
    )
    x = prior.sample(100, generator=generator)
    torch.testing.assert_close(scaled(unit * x), unit * best(x), rtol=0, atol=1e-3 * unit)


def test_it_names_what_does_not_fit():
    prior, problem = two_blobs(), LinearProblem(torch.eye(2).double(), 0.5)
    with pytest.raises(ValueError, match="at most 2"):
        HeatStep(LinearProblem(torch.eye(1).double(), 0.5), prior)
    three = GaussianMixture.gaussian(torch.zeros(3).double(), torch.eye(3).double())
    with pytest.raises(ValueError, match="at most 2"):
        HeatStep(LinearProblem(torch.eye(3).double(), 0.5), three)
    with pytest.raises(ValueError, match="problem must be a LinearProblem"):
        HeatStep(problem.matrix, prior)
    with pytest.raises(ValueError, match="injective"):
        HeatStep(LinearProblem(torch.diag(torch.tensor([1.0, 0.0]).double()), 0.5), prior)
    with pytest.raises(ValueError, match="cells"):
        HeatStep(problem, prior, cells=0)
    with pytest.raises(ValueError, match="metric"):
        HeatStep(problem, prior, metric=torch.eye(3).double())
    with pytest.raises(ValueError, match="x must"):
        HeatStep(problem, prior)(torch.zeros(3).double())
