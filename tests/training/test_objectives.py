"""The four losses, against plain formulas, exact moments and unrolled gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from invbayes import (
    Approximation,
    Divergence,
    GaussianMixture,
    InvertibleResNet,
    LinearProblem,
    LogDeterminant,
    Reconstruction,
    gaussian_forward_eigenvalues,
    ideal_forward_map,
    posterior,
    posterior_metric,
)
from invbayes.examples import two_blobs
from invbayes.figures import lattice
from tests.conftest import assert_mean_close, jacobian_of, random_operator

METRIC = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=torch.float64)


@pytest.fixture
def batch(generator):
    """A network, a problem with A*A not the identity, and samples whose z is not A*A x."""
    net = InvertibleResNet.dense(2, (8, 8), lipschitz=0.6, generator=generator).double()
    problem = LinearProblem(random_operator(3, 2, 2, generator), noise_std=0.3)
    x = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    z = problem.normal_data(problem.observe(x, generator=generator))
    return net, problem, x, z


@pytest.mark.parametrize("metric", [None, METRIC])
@pytest.mark.parametrize("conditional_mean", [True, False])
@pytest.mark.parametrize("weight", [None, 0.7])
def test_each_loss_is_its_formula(batch, metric, conditional_mean, weight):
    net, problem, x, z = batch
    options = {"metric": metric, "conditional_mean": conditional_mean}
    target = x @ (problem.operator.T @ problem.operator) if conditional_mean else z
    matrix = torch.eye(2).double() if metric is None else metric
    misfits = net(x) - target
    data = torch.stack([v @ matrix @ v for v in misfits]).mean() / 2
    jacobians = jacobian_of(net, x)
    delta_hat_squared = 0.3**2 if weight is None else weight
    log_det = jacobians.det().abs().log().mean()
    trace = sum(j.trace() for j in jacobians) / len(x)

    torch.testing.assert_close(Approximation(problem, **options)(net, x, z), data)
    log_determinant = LogDeterminant(problem, weight=weight, **options)
    torch.testing.assert_close(log_determinant(net, x, z), data - delta_hat_squared * log_det)
    divergence = Divergence(problem, weight=weight, **options)
    torch.testing.assert_close(divergence(net, x, z), data - delta_hat_squared * trace)


@pytest.mark.parametrize("metric", [None, METRIC])
def test_reconstruction_is_the_error_of_the_inverse_at_the_noisy_data(batch, metric):
    net, _, x, z = batch
    matrix = torch.eye(2).double() if metric is None else metric
    exact = torch.stack([v @ matrix @ v for v in net.inverse(z, 1e-12) - x]).mean() / 2
    found = Reconstruction(tol=1e-10, metric=metric)(net, x, z)
    torch.testing.assert_close(found, exact, rtol=1e-8, atol=0)


@pytest.mark.parametrize("metric", [None, METRIC])
def test_the_gradient_of_reconstruction_is_that_of_unrolled_iterations(batch, metric):
    net, _, x, z = batch
    parameters = [*net.parameters()]
    found = torch.autograd.grad(Reconstruction(tol=1e-12, metric=metric)(net, x, z), parameters)
    point = z / net.scale
    for _ in range(80):  # 0.6 ** 80 = 2e-18
        point = z / net.scale + net.lipschitz * net.blocks[0](point)
    matrix = torch.eye(2).double() if metric is None else metric
    loss = torch.einsum("ni,ij,nj->n", point - x, matrix, point - x).mean() / 2
    for ours, theirs in zip(found, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)
        assert theirs.abs().max() > 0


def test_reconstruction_starts_from_the_truth(batch, monkeypatch):
    net, _, x, _ = batch
    monkeypatch.setattr(
        "invbayes.networks.steps.Steps.advance", lambda *_: pytest.fail("a step was made")
    )
    assert Reconstruction()(net, x, net(x).detach()) == 0


@pytest.mark.parametrize(
    ("activation", "accuracy"), [("half_linear", 1e-10), ("tanh", 1e-10), ("half_abs", 1e-3)]
)
def test_the_mean_divergence_is_minus_the_mean_product_with_the_score(
    activation, accuracy, generator
):
    """By the trapezium rule; the last map is Lipschitz only, with a divergence that jumps."""
    net = InvertibleResNet.dense(
        2, (8, 8), 1, 0.9, activation=activation, generator=generator
    ).double()
    prior, points = two_blobs(), lattice((-7, 7, -7, 7), rows=281, columns=281).reshape(-1, 2)
    mass = prior.log_prob(points).exp() * 0.05**2
    divergence = mass @ net.divergence(points)
    product = mass @ (prior.score(points) * net(points)).sum(1)
    assert divergence.item() == pytest.approx(-product.item(), abs=accuracy)
    assert divergence > 1


@pytest.mark.parametrize("options", [{}, {"weight": 0.4}, {"conditional_mean": False}])
def test_divergence_losses_differ_as_the_distances_to_the_ideal_map(options, generator):
    """By half the difference of the mean squares, for two maps that nobody trained."""
    prior, problem = two_blobs(), LinearProblem(random_operator(3, 2, 2, generator), noise_std=0.5)
    nets = [
        InvertibleResNet.dense(2, (8,), lipschitz=0.9, scale=c, generator=generator).double()
        for c in (2.0, 0.6)
    ]
    objective, weight = Divergence(problem, **options), options.get("weight", 0.25)
    x = prior.sample(30_000, generator=generator)
    data = problem.normal_data(problem.observe(x, generator=generator))
    best = ideal_forward_map(prior, problem, x, weight=weight)

    def above(net, points, z, target):
        """The loss of a batch, less half its mean squared distance."""
        return objective(net, points, z) - (net(points) - target).square().sum(1).mean() / 2

    batches = [*zip(x.split(300), data.split(300), best.split(300), strict=True)]
    with torch.no_grad():
        one, other = (torch.stack([above(net, *batch) for batch in batches]) for net in nets)
    assert_mean_close(one - other, torch.zeros(()))


@pytest.mark.parametrize("weight", [None, 0.7])
def test_the_posterior_metric_is_the_posterior_covariance_over_the_weight(weight, generator):
    delta_hat = 0.3 if weight is None else weight**0.5
    operator = random_operator(3, 2, 2, generator)
    prior = GaussianMixture.gaussian(torch.zeros(2).double(), METRIC)
    belief = posterior(prior, LinearProblem(operator, delta_hat), torch.zeros(3).double())
    found = posterior_metric(LinearProblem(operator, 0.3), METRIC, weight=weight)
    torch.testing.assert_close(found, belief.covariances[0] / delta_hat**2)


def test_another_problem_brings_its_own_weight(batch):
    net, problem, x, z = batch
    other = LinearProblem(problem.operator, noise_std=0.8)
    moved = replace(Divergence(problem), problem=other)
    torch.testing.assert_close(moved(net, x, z), Divergence(other)(net, x, z))


@pytest.mark.parametrize("short", [lambda z: z[:1], lambda z: z[:, :1]])
def test_data_of_another_shape_is_named(batch, short):
    net, problem, x, z = batch
    with pytest.raises(ValueError, match=r"z must have the shape of x, \(30, 2\)"):
        Approximation(problem, conditional_mean=False)(net, x, short(z))


class DiagonalNet(nn.Module):
    """The linear map diag(b), with the interface that the objectives use."""

    def __init__(self, eigenvalues):
        super().__init__()
        self.eigenvalues = nn.Parameter(eigenvalues)

    def forward(self, x):
        return x * self.eigenvalues

    def inverse(self, z, _, start):
        assert start.shape == z.shape
        return z / self.eigenvalues

    def with_log_abs_det(self, x):
        return self(x), self.eigenvalues.log().sum().expand(len(x))

    def with_divergence(self, x):
        return self(x), self.eigenvalues.sum().expand(len(x))


@given(
    singular=st.tuples(*[st.floats(0.1, 1.5)] * 2),
    sigma=st.floats(0.3, 2),
    noise_std=st.floats(0.05, 1),
    factor=st.sampled_from([None, 0.5, 2.0]),
)
def test_the_closed_forms_for_a_gaussian_prior_are_stationary(singular, sigma, noise_std, factor):
    """On samples whose moments are exact, the gradient vanishes there, and nowhere near."""
    generator = torch.Generator().manual_seed(0)
    problem = LinearProblem(torch.diag(torch.tensor(singular, dtype=torch.float64)), noise_std)
    raw = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    white = torch.linalg.qr(raw - raw.mean(0)).Q * 50**0.5  # mean 0 and covariance I, exactly
    x = sigma * white[:, :2]
    z = problem.normal_data(problem.apply(x) + noise_std * white[:, 2:])
    weight = None if factor is None else factor * noise_std**2
    strength = noise_std if factor is None else factor**0.5 * noise_std
    values = torch.tensor(singular, dtype=torch.float64)
    known = gaussian_forward_eigenvalues(values, sigma, noise_std)
    weighted = gaussian_forward_eigenvalues(values, sigma, strength)
    covariance = sigma**2 * torch.eye(2, dtype=torch.float64)
    best_metric = posterior_metric(problem, covariance, weight=weight)
    inverse_metric = torch.linalg.inv(problem.normal_operator)
    for objective, best in [
        (Approximation(problem), known.approximation),
        (Approximation(problem, conditional_mean=False), known.approximation),
        (Reconstruction(), known.posterior),
        (LogDeterminant(problem, weight=weight), weighted.log_det),
        (LogDeterminant(problem, weight=weight, metric=inverse_metric), weighted.log_det_metric),
        (LogDeterminant(problem, weight=weight, metric=best_metric), weighted.posterior),
        (Divergence(problem, weight=weight), weighted.posterior),
        (Divergence(problem, weight=weight, conditional_mean=False), weighted.posterior),
    ]:
        for scale, stationary in [(1.0, True), (1.1, False)]:
            net = DiagonalNet(scale * best)
            (gradient,) = torch.autograd.grad(objective(net, x, z), net.eigenvalues)
            curvature = best * gradient.abs()
            assert (curvature.max() < 1e-9) == stationary, (objective, scale, gradient)


class AffineNet(nn.Module):
    """The map x ↦ Cx + b."""

    def __init__(self, matrix, shift):
        super().__init__()
        self.matrix, self.shift = matrix, shift

    def with_log_abs_det(self, x):
        log_det = self.matrix.det().abs().log()
        return x @ self.matrix.mT + self.shift, log_det.expand(len(x))


@pytest.mark.parametrize("metric", [None, "inverse", "posterior"])
def test_the_loss_exceeds_the_least_by_a_relative_entropy(metric, generator):
    """For affine maps of Gaussians, near the best map and far from it, symmetric or not."""
    problem = LinearProblem(random_operator(3, 2, 2, generator), noise_std=0.4)
    normal, strength = problem.normal_operator, 0.4**2
    if metric == "posterior":
        covariance, mean = METRIC, torch.tensor([0.5, -1.0], dtype=torch.float64)
        weights = posterior_metric(problem, covariance)
        best, shift = torch.linalg.inv(weights), -strength * torch.linalg.solve(METRIC, mean)
    else:
        covariance, mean = 0.49 * torch.eye(2, dtype=torch.float64), torch.zeros(2).double()
        weights = None if metric is None else torch.linalg.inv(normal)
        squares, axes = torch.linalg.eigh(normal)
        values = gaussian_forward_eigenvalues(squares.sqrt(), 0.7, 0.4)
        values = values.log_det if metric is None else values.log_det_metric
        best, shift = axes @ torch.diag(values) @ axes.mT, torch.zeros(2).double()
    raw = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    white = torch.linalg.qr(raw - raw.mean(0)).Q * 50**0.5  # mean 0 and covariance I, exactly
    x = mean + white @ torch.linalg.cholesky(covariance).mT
    objective = LogDeterminant(problem, metric=weights)

    def output(matrix, shift):
        law = matrix @ covariance @ matrix.mT
        return torch.distributions.MultivariateNormal(matrix @ mean + shift, law)

    least, gaps = objective(AffineNet(best, shift), x, x), []
    for size in (0.01, 0.1, 1.0):
        for _ in range(20):
            noise = torch.randn(2, 3, generator=generator, dtype=torch.float64) * size
            other = best + noise[:, :2], shift + noise[:, 2]
            gap = objective(AffineNet(*other), x, x) - least
            entropy = torch.distributions.kl_divergence(output(*other), output(best, shift))
            assert gap >= strength * entropy - 1e-12
            gaps.append((gap / (strength * entropy)).item())
    assert min(gaps) < 3  # the bound is no empty one


def test_what_the_measurement_does_not_see_changes_no_loss(generator):
    """A swirl of the kernel, with the angle depending on the point, keeps the Gaussian prior."""
    operator = torch.diag(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    problem, prior = LinearProblem(operator, 0.3), torch.distributions.Normal(0.0, 1.0)
    net = InvertibleResNet.dense(3, (8, 8), lipschitz=0.6, generator=generator).double()

    def swirl(x):
        angle = x[..., 0] + x[..., 1:].square().sum(-1)
        turned = [
            angle.cos() * x[..., 1] - angle.sin() * x[..., 2],
            angle.sin() * x[..., 1] + angle.cos() * x[..., 2],
        ]
        return torch.stack([x[..., 0], *turned], -1)

    class Swirled(nn.Module):
        def with_log_abs_det(self, x):
            return net(swirl(x)), jacobian_of(lambda p: net(swirl(p)), x).det().abs().log()

    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    moved = swirl(x)
    assert (moved - x).norm(dim=1).mean() > 0.5
    torch.testing.assert_close(prior.log_prob(moved).sum(1), prior.log_prob(x).sum(1))
    for metric in (None, torch.diag(torch.tensor([2.0, 1.0, 3.0], dtype=torch.float64))):
        objective = LogDeterminant(problem, metric=metric)
        torch.testing.assert_close(objective(Swirled(), x, x), objective(net, moved, moved))
    assert not torch.allclose(net(swirl(x))[:, 1:], net(x)[:, 1:], atol=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda p: Approximation(p, metric=torch.eye(3).double()),
            r"metric must be a matrix of shape \(2, 2\)",
        ),
        (lambda p: Approximation(p, metric=torch.eye(2)), "metric must have the dtype of operator"),
        (lambda p: Divergence(p, metric=-METRIC), "metric must be symmetric positive definite"),
        (
            lambda p: LogDeterminant(p, metric=torch.tensor([[1.0, 0.5], [0.0, 1.0]]).double()),
            "metric must be symmetric positive definite",
        ),
        (lambda p: Divergence(p, weight=0.0), "weight must be finite and > 0, got 0"),
        (lambda p: LogDeterminant(p, weight=-1.0), "weight must be finite and > 0, got -1"),
        (lambda _: Reconstruction(tol=0.0), "tol must be finite and > 0, got 0"),
        (lambda _: Reconstruction(metric=-METRIC), "metric must be symmetric positive definite"),
        (lambda _: Reconstruction(metric=METRIC[:1]), r"metric must be a matrix of shape \(1, 1\)"),
        (lambda p: posterior_metric(p, -METRIC), "covariance must be symmetric positive definite"),
        (lambda p: posterior_metric(p, METRIC, weight=0.0), "weight must be finite and > 0"),
    ],
)
def test_bad_input_is_named(batch, make, message):
    with pytest.raises(ValueError, match=message):
        make(batch[1])


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (None, "z must be a floating-point tensor, got NoneType"),
        (torch.zeros(5, 2).numpy(), "z must be a floating-point tensor, got ndarray"),
        (torch.zeros(5, 2, dtype=torch.complex128), "z must be a floating-point tensor"),
        (torch.zeros(5, 2, dtype=torch.int64), "z must be a floating-point tensor"),
        (torch.zeros(5, 2), "z must have dtype torch.float64, got torch.float32"),
        (torch.zeros(4, 2).double(), r"z must have the shape of x, \(5, 2\), got \(4, 2\)"),
    ],
)
@pytest.mark.parametrize("conditional_mean", [True, False])
def test_samples_that_do_not_fit_are_named(batch, z, message, conditional_mean):
    net, problem, x = batch[0], batch[1], torch.zeros(5, 2).double()
    given = {"conditional_mean": conditional_mean}
    for objective in (
        Reconstruction(),
        Approximation(problem, **given),
        LogDeterminant(problem, **given),
        Divergence(problem, **given),
    ):
        with pytest.raises(ValueError, match=message):
            objective(net, x, z)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (torch.eye(3).double(), r"x must have shape \(\*, 3\)"),
        (torch.eye(2), "x must have dtype torch.float32, got torch.float64"),
    ],
)
def test_a_metric_of_other_points_is_named(batch, metric, message):
    net, _, x, z = batch
    with pytest.raises(ValueError, match=message):
        Reconstruction(metric=metric)(net, x, z)


def test_no_samples_are_named(batch):
    net, problem, nothing = batch[0], batch[1], torch.zeros(0, 2).double()
    for objective in (Reconstruction(), Divergence(problem)):
        with pytest.raises(ValueError, match="x must hold at least one sample"):
            objective(net, nothing, nothing)


@pytest.mark.parametrize("objective", [Approximation, LogDeterminant, Divergence])
def test_a_bad_problem_or_flag_is_named(batch, objective):
    with pytest.raises(ValueError, match="problem must be an InverseProblem, got NoneType"):
        objective(None)
    for flag in ("no", 1, torch.tensor(True)):
        with pytest.raises(ValueError, match="conditional_mean must be True or False"):
            objective(batch[1], conditional_mean=flag)


@pytest.mark.parametrize("metric", [torch.zeros(2, 2), torch.zeros(2), "identity", 1.0])
def test_what_is_no_metric_is_named(batch, metric):
    with pytest.raises(ValueError, match="metric must be"):
        Approximation(batch[1], metric=metric)


@pytest.mark.parametrize("weight", [1e-40, 1e-30])
def test_a_weight_that_vanishes_beside_a_kernel_is_named(weight):
    """In single precision the inverse is infinite, or the sum is singular."""
    problem = LinearProblem(torch.tensor([[1.0, 1.0], [1.0, 1.0]]), 0.1)
    with pytest.raises(ValueError, match="weight must not vanish beside an operator"):
        posterior_metric(problem, torch.eye(2), weight=weight)
    diagonal = LinearProblem(torch.diag(torch.tensor([1.0, 0.0])), 0.1)
    if weight == 1e-40:
        with pytest.raises(ValueError, match="weight must not vanish beside an operator"):
            posterior_metric(diagonal, torch.eye(2), weight=weight)


def test_every_training_takes_pictures_and_coloured_noise(generator):
    """z = A*Γ⁻¹y, and the data term is about A*Γ⁻¹A x, entry by entry."""
    covariance = torch.tensor([4.0, 1.0, 0.25, 1.0], dtype=torch.float64)
    matrix = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    problem = LinearProblem(
        lambda x: x.flatten(1) @ matrix.mT,
        shape=(2, 2),
        noise_covariance=covariance,
        dtype=torch.float64,
    )
    x = torch.randn(6, 2, 2, generator=generator, dtype=torch.float64)
    normal = matrix.mT @ torch.diag(1 / covariance) @ matrix

    class Half(nn.Module):
        def forward(self, x):
            return 0.5 * x

    expected = (0.5 * x.flatten(1) - x.flatten(1) @ normal).square().sum(1).mean() / 2
    assert Approximation(problem)(Half(), x, x).item() == pytest.approx(expected.item())
    z = problem.normal_data(problem.observe(x, generator=generator))
    noisy = Approximation(problem, conditional_mean=False)(Half(), x, z).item()
    assert noisy == pytest.approx((0.5 * x - z).square().sum((1, 2)).mean().item() / 2)
    assert Divergence(problem).strength == 1.0
