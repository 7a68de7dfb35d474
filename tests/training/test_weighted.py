"""The weighted divergence: its formula, its minimiser, and the trainings on every problem."""

from __future__ import annotations

import pytest
import torch

from invbayes import (
    Approximation,
    Divergence,
    InvertibleResNet,
    LinearProblem,
    LogDeterminant,
    NonlinearProblem,
    PoissonProblem,
    RangeWarning,
    Reconstruction,
    WeightedDivergence,
    fit,
    ideal_forward_map,
    posterior_covariance,
    posterior_metric,
)
from invbayes.examples import two_blobs, two_layers
from tests.conftest import assert_mean_close, jacobian_of

MATRIX = torch.tensor([[1.0, 0.4], [-0.3, 0.8]], dtype=torch.float64)
METRIC = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=torch.float64)
PROBLEMS = {
    "linear": LinearProblem(MATRIX, 0.4),
    "layers": two_layers(0.4),
    "counts": PoissonProblem(MATRIX, 6.0),
    "exponential": NonlinearProblem(
        PoissonProblem(MATRIX, 6.0).apply, 0.4, reference=torch.zeros(2).double()
    ),
}


def network(seed: int) -> InvertibleResNet:
    generator = torch.Generator().manual_seed(seed)
    return InvertibleResNet.dense(2, (8, 8), lipschitz=0.8, generator=generator).double()


@pytest.mark.parametrize("metric", [None, METRIC])
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_loss_is_the_divergence_of_the_field(name, metric, generator):
    problem, net = PROBLEMS[name], network(0)
    x = 0.5 * torch.randn(6, 2, generator=generator).double()
    matrix = torch.eye(2).double() if metric is None else metric

    def field(points):
        return torch.einsum("nij,jk,nk->ni", problem.pullback(points).matrix, matrix, net(points))

    h = 1e-5
    steps = h * torch.eye(2).double()
    parts = [(field(x + s) - field(x - s))[:, i] / (2 * h) for i, s in enumerate(steps)]
    misfit = net(x) - problem.mean_normal_data(x)
    data = torch.einsum("ni,ij,nj->n", misfit, matrix, misfit).mean() / 2
    wanted = data - 0.7 * sum(parts).mean()
    loss = WeightedDivergence(problem, metric=metric, weight=0.7)(net, x, x)
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-7)
    first = WeightedDivergence(problem, metric=metric, weight=0.7, volume=False)(net, x, x)
    product = problem.pullback(x).matrix @ matrix @ jacobian_of(net, x)
    traces = product.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(first, data - 0.7 * traces.mean())


@pytest.mark.parametrize("volume", [True, False])
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_loss_is_a_distance_to_its_goal(name, volume, generator):
    """J(φ) − J(ψ) = ½ E|φ − φ_*|² − ½ E|ψ − φ_*|² for two networks, by z-score."""
    prior, problem = two_blobs(), PROBLEMS[name]
    net, other = network(1), network(2)
    x = prior.sample(60_000, generator=generator)
    goal = ideal_forward_map(prior, problem, x)
    if not volume:  # MAP of F(x): the density of x is divided by |det DF|
        goal = goal - problem.noise_std**2 * problem.pullback(x).divergence
    objective = WeightedDivergence(problem, metric=METRIC, volume=volume)

    def gaps(net):
        misfit, value = net(x) - goal, net(x)
        clean = value - problem.mean_normal_data(x)
        own, data = (torch.einsum("ni,ij,nj->n", v, METRIC, v) / 2 for v in (misfit, clean))
        found = objective._divergence(value, net.jacobian(x), x)
        return own, data - problem.noise_std**2 * found

    (own, loss), (own_other, loss_other) = gaps(net), gaps(other)
    torch.testing.assert_close(loss.mean(), objective(net, x, x))
    assert_mean_close((loss - loss_other) - (own - own_other), torch.zeros(()).double())
    assert ((own - own_other).mean() / own.std() * len(x) ** 0.5).abs() > 20  # a real difference


def test_a_matrix_without_metric_gives_the_divergence(generator):
    problem, net = PROBLEMS["linear"], network(3)
    x = torch.randn(6, 2, generator=generator).double()
    weighted, plain = WeightedDivergence(problem), Divergence(problem)
    torch.testing.assert_close(weighted(net, x, x), plain(net, x, x))


def test_the_log_determinant_of_a_map_is_that_of_its_image(generator):
    """J_F(ψ∘F) = J_Id(ψ) − δ² E log|det DF|, sample by sample, with the same noise."""
    net, matrix = network(5), MATRIX + torch.eye(2).double()

    def forward(x):
        return torch.asinh(x @ matrix.mT) + x @ matrix.mT

    problem = NonlinearProblem(forward, 0.4, reference=torch.zeros(2).double())
    x = torch.randn(50, 2, generator=generator).double()
    image = problem.apply(x)
    y = image + 0.4 * torch.randn(50, 2, generator=generator).double()
    slopes = jacobian_of(net, image) @ problem.jacobian(x)
    log_det = torch.linalg.slogdet(slopes)[1].mean()
    of_map = (net(image) - y).square().sum(1).mean() / 2 - 0.16 * log_det
    denoising = LinearProblem(torch.eye(2).double(), 0.4)
    of_image = LogDeterminant(denoising, conditional_mean=False)(net, image, y)
    volume = torch.linalg.slogdet(problem.jacobian(x))[1].mean()
    torch.testing.assert_close(of_map, of_image - 0.16 * volume)


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_training_takes_every_problem(name, generator):
    prior, problem = two_blobs(), PROBLEMS[name]
    metric = posterior_metric(problem, prior.covariance)
    for objective in (
        Approximation(problem, metric=metric),
        Reconstruction(),
        LogDeterminant(problem, metric=metric),
        Divergence(problem),
        WeightedDivergence(problem, metric=metric),
    ):
        _, record = fit(
            objective, prior, problem, generator=generator, steps=25, batch=64, progress=False
        )
        assert record.losses[-5:].mean() < record.losses[:5].mean()
    samples = prior.sample(300, generator=generator)
    _, record = fit(Divergence(problem), samples, problem, generator=generator, steps=5, jitter=0.1)
    assert torch.isfinite(record.losses).all()


def test_a_nonlinear_problem_is_linearised_for_the_range(generator):
    steep = NonlinearProblem(
        lambda x: x * torch.tensor([1.0, 1e-3]).double(), 1e-6, reference=torch.zeros(2).double()
    )
    with pytest.warns(RangeWarning, match="slopes from 1e-06"):
        fit(Approximation(steep), two_blobs(), steep, generator=generator, steps=1)


@pytest.mark.parametrize("name", PROBLEMS)
def test_error_bars_are_pulled_back(name, generator):
    problem, net = PROBLEMS[name], network(4)
    z = problem.mean_normal_data(0.4 * torch.randn(5, 2, generator=generator).double())
    bars = posterior_covariance(net, problem, z, tol=1e-10)
    pulled = problem.pullback(bars.mean).matrix
    matrix = problem.noise_std**2 * torch.linalg.inv(jacobian_of(net, bars.mean)) @ pulled.mT
    torch.testing.assert_close(bars.covariance, (matrix + matrix.mT) / 2)
    torch.testing.assert_close(bars.asymmetry, torch.linalg.matrix_norm(matrix - matrix.mT) / 2)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="problem must be an InverseProblem"):
        WeightedDivergence(MATRIX)
    with pytest.raises(ValueError, match="volume must be"):
        WeightedDivergence(PROBLEMS["layers"], volume=1)
    with pytest.raises(ValueError, match="metric must be symmetric positive definite"):
        WeightedDivergence(PROBLEMS["layers"], metric=-METRIC)
    folded = NonlinearProblem(torch.sin, 0.1, reference=torch.zeros(2).double())
    x = torch.tensor([[torch.pi / 2, 0.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="x must hold points where DF is invertible"):
        WeightedDivergence(folded)(network(0), x, x)
