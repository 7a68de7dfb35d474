"""The mixture against scipy, quadrature, automatic differentiation and its own samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import multivariate_normal

from invbayes import GaussianMixture
from tests.conftest import assert_mean_close, random_mixture

DIMS = pytest.mark.parametrize("dim", [1, 2, 5])

ONE = {
    "weights": torch.tensor([0.5, 0.5]),
    "means": torch.zeros(2, 3),
    "covariances": torch.eye(3).repeat(2, 1, 1),
}


@DIMS
def test_log_prob_agrees_with_scipy(dim, generator):
    p = random_mixture(dim, 3, generator)
    x = 2 * torch.randn(50, dim, generator=generator, dtype=torch.float64)
    parts = zip(p.weights.numpy(), p.means.numpy(), p.covariances.numpy(), strict=True)
    density = sum(w * multivariate_normal(m, c).pdf(x.numpy()) for w, m, c in parts)
    np.testing.assert_allclose(p.log_prob(x).exp().numpy(), density.reshape(50), rtol=1e-12)


def test_density_integrates_to_one_and_gives_the_moments(generator):
    p = random_mixture(1, 3, generator)

    def integral(power):
        def integrand(x):
            point = torch.tensor([[x]], dtype=torch.float64)
            return x**power * p.log_prob(point).exp().item()

        return quad(integrand, -15, 15, limit=200, epsabs=1e-12)[0]

    mean = integral(1)
    assert integral(0) == pytest.approx(1, abs=1e-10)
    assert p.mean.item() == pytest.approx(mean, abs=1e-10)
    assert p.covariance.item() == pytest.approx(integral(2) - mean**2, abs=1e-9)


@DIMS
def test_score_and_hessian_agree_with_autograd(dim, generator):
    p = random_mixture(dim, 3, generator)
    x = 2 * torch.randn(20, dim, generator=generator, dtype=torch.float64)
    for point, score, hessian in zip(x, p.score(x), p.hessian(x), strict=True):
        by_autograd = torch.autograd.functional.jacobian(p.log_prob, point)
        torch.testing.assert_close(score, by_autograd, rtol=1e-11, atol=1e-12)
        by_autograd = torch.autograd.functional.hessian(p.log_prob, point)
        torch.testing.assert_close(hessian, by_autograd, rtol=1e-10, atol=1e-11)


@DIMS
def test_score_and_hessian_agree_with_finite_differences(dim, generator):
    p = random_mixture(dim, 3, generator)
    x, h = torch.randn(20, 1, dim, generator=generator, dtype=torch.float64), 1e-5
    steps = h * torch.eye(dim, dtype=torch.float64)
    by_difference = (p.log_prob(x + steps) - p.log_prob(x - steps)) / (2 * h)
    torch.testing.assert_close(p.score(x[:, 0]), by_difference, rtol=1e-7, atol=1e-8)
    by_difference = (p.score(x + steps) - p.score(x - steps)) / (2 * h)
    torch.testing.assert_close(p.hessian(x[:, 0]), by_difference, rtol=1e-7, atol=1e-7)


def test_expansion_is_the_functions_in_one_pass(generator):
    p = random_mixture(3, 4, generator)
    x = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    log_prob, score, hessian, metric = p.expand(x)
    assert torch.equal(log_prob, p.log_prob(x))
    assert torch.equal(score, p.score(x))
    assert torch.equal(hessian, p.hessian(x))
    precisions = torch.linalg.inv(p.covariances)
    torch.testing.assert_close(
        metric, torch.einsum("nk,kij->nij", p.responsibilities(x), precisions)
    )


@DIMS
def test_samples_have_the_mean_and_covariance(dim, generator):
    p = random_mixture(dim, 3, generator)
    x = p.sample(200_000, generator=generator)
    centred = x - p.mean
    assert_mean_close(x, p.mean)
    assert_mean_close(centred[:, :, None] * centred[:, None, :], p.covariance)
    assert_mean_close(p.responsibilities(x), p.weights)


def test_samples_of_a_batch_have_each_ones_moments(generator):
    batch = GaussianMixture(
        torch.tensor([[0.2, 0.8], [0.6, 0.4], [1.0, 0.0]], dtype=torch.float64),
        torch.randn(3, 2, 2, generator=generator, dtype=torch.float64),
        torch.eye(2, dtype=torch.float64).expand(2, 2, 2) * 0.3,
    )
    x = batch.sample(100_000, generator=generator)
    assert x.shape == (100_000, 3, 2)
    assert_mean_close(x, batch.mean)
    centred = x - batch.mean
    assert_mean_close(centred[..., :, None] * centred[..., None, :], batch.covariance)


def test_members_of_a_batch_are_drawn_independently(generator):
    batch = GaussianMixture(torch.ones(2, 1), torch.zeros(2, 1, 1), torch.ones(1, 1, 1))
    x = batch.sample(10_000, generator=generator)
    assert_mean_close(x[:, 0] * x[:, 1], torch.zeros(1))


def test_the_generator_fixes_the_samples():
    p = random_mixture(2, 3, torch.Generator().manual_seed(0))
    first, again, other = (
        p.sample(10, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("shared", [True, False])
def test_a_batch_is_its_members(shared, generator):
    members = [random_mixture(2, 3, generator) for _ in range(4)]
    covariances = torch.stack([members[0 if shared else i].covariances for i in range(4)])
    batch = GaussianMixture(
        torch.stack([p.weights for p in members]),
        torch.stack([p.means for p in members]),
        covariances[0] if shared else covariances,
    )
    x = torch.randn(6, 4, 2, generator=generator, dtype=torch.float64)
    for i, member in enumerate(members):
        alone = GaussianMixture(member.weights, member.means, covariances[i])
        for name in ("log_prob", "score", "hessian"):
            expected = getattr(alone, name)(x[:, i])
            torch.testing.assert_close(getattr(batch, name)(x)[:, i], expected)
            torch.testing.assert_close(getattr(batch[i], name)(x[:, i]), expected)
        torch.testing.assert_close(batch.mean[i], alone.mean)
        torch.testing.assert_close(batch.covariance[i], alone.covariance)
    assert batch[1:3].batch_shape == (2,)


def test_far_tail_follows_the_widest_component():
    p = GaussianMixture(
        torch.tensor([0.5, 0.5], dtype=torch.float64),
        torch.tensor([[0.0], [1.0]], dtype=torch.float64),
        torch.tensor([[[1.0]], [[4.0]]], dtype=torch.float64),
    )
    x = torch.tensor([[1e4]], dtype=torch.float64)
    torch.testing.assert_close(p.score(x), (1 - x) / 4)
    torch.testing.assert_close(p.hessian(x), torch.full((1, 1, 1), -0.25, dtype=torch.float64))


@pytest.mark.parametrize("size", [1e160, 1e200, 1e308])
def test_where_the_squared_distance_overflows_there_is_no_density_and_no_score(size, generator):
    p = random_mixture(2, 3, generator)
    x = size * torch.tensor([1.0, -1.0], dtype=torch.float64)
    assert p.log_prob(x) == -torch.inf
    assert p.score(x).isnan().all()


def test_a_component_without_weight_changes_nothing(generator):
    p = random_mixture(2, 2, generator)
    padded = GaussianMixture(
        torch.cat([p.weights, torch.zeros(1, dtype=torch.float64)]),
        torch.cat([p.means, torch.full((1, 2), 9.0, dtype=torch.float64)]),
        torch.cat([p.covariances, p.covariances[:1]]),
    )
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(padded.log_prob(x), p.log_prob(x))
    torch.testing.assert_close(padded.hessian(x), p.hessian(x))


def test_single_precision_stays_single_and_agrees(generator):
    p = random_mixture(3, 2, generator)
    low = GaussianMixture(p.weights.float(), p.means.float(), p.covariances.float())
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    for name in ("log_prob", "score", "hessian"):
        value = getattr(low, name)(x.float())
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), getattr(p, name)(x), rtol=1e-4, atol=1e-4)
    assert low.sample(3, generator=generator).dtype == torch.float32


def test_vmap_and_reverse_mode_give_the_hessian(generator):
    p = random_mixture(3, 3, generator)
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(torch.func.jacrev(p.score))(x), p.hessian(x))


@pytest.mark.parametrize("method", ["log_prob", "score", "hessian", "responsibilities", "pulls"])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4, 2), r"x must have shape \(\*, 3\), got \(4, 2\)"),
        (torch.tensor(0.0), r"x must have shape \(\*, 3\), got \(\)"),
        (torch.full((4, 3), torch.nan), "x must be finite"),
        (torch.zeros(4, 3).double(), "x must have dtype torch.float32, got torch.float64"),
    ],
)
def test_bad_points_are_named(method, x, message):
    with pytest.raises(ValueError, match=message):
        getattr(GaussianMixture(**ONE), method)(x)


@pytest.mark.parametrize("n", [0, -1, 2.5, True])
def test_bad_sample_sizes_are_named(n):
    with pytest.raises(ValueError, match="n must be a positive int"):
        GaussianMixture(**ONE).sample(n)
