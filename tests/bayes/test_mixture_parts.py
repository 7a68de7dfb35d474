"""Parts of mixtures: copied, moved, flattened, and refused by name."""

from __future__ import annotations

import pytest
import torch

from invbayes import GaussianMixture
from tests.conftest import random_mixture

ONE = {
    "weights": torch.tensor([0.5, 0.5]),
    "means": torch.zeros(2, 3),
    "covariances": torch.eye(3).repeat(2, 1, 1),
}


def test_the_parts_are_copied(generator):
    parts = [getattr(random_mixture(2, 3, generator), n) for n in ("weights", "means")]
    parts.append(torch.eye(2, dtype=torch.float64).repeat(3, 1, 1))
    p, x = GaussianMixture(*parts), torch.ones(4, 2, dtype=torch.float64)
    one = GaussianMixture.gaussian(parts[1][0], parts[2][0])
    before, alone = p.log_prob(x), one.log_prob(x)
    mean, covariance = p.mean, p.covariance
    for part in parts:
        part.mul_(100)
    for found, expected in [
        (p.log_prob(x), before),
        (p.mean, mean),
        (p.covariance, covariance),
        (one.log_prob(x), alone),
    ]:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_to_another_dtype_and_back(batch, generator):
    p = random_mixture(2, 2, generator)
    p = GaussianMixture(
        p.weights.expand(*batch, 2), p.means.expand(*batch, 2, 2), p.covariances.clone()
    )
    low = p.to(dtype=torch.float32)
    x = torch.randn(5, *batch, 2, generator=generator, dtype=torch.float64)
    assert low.log_prob(x.float()).dtype == low.weights.dtype == torch.float32
    assert low.to(dtype=torch.float64).weights.sum(-1).flatten()[0].item() == pytest.approx(1)
    torch.testing.assert_close(
        low.log_prob(x.float()).double(), p.log_prob(x), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(low.covariance.double(), p.covariance, rtol=1e-5, atol=1e-5)
    assert torch.equal(p.to().log_prob(x), p.log_prob(x))


def test_the_weights_still_sum_to_one_in_another_dtype():
    weights = torch.full((1000,), 1e-3, dtype=torch.float32)
    p = GaussianMixture(weights, torch.zeros(1000, 1), torch.ones(1, 1, 1).expand(1000, 1, 1))
    assert p.to(dtype=torch.float64).weights.sum().item() == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.int32, "float32", torch.complex64])
def test_only_real_dtypes_are_moved_to(dtype):
    with pytest.raises(ValueError, match="dtype must be a floating-point dtype, got"):
        GaussianMixture(**ONE).to(dtype=dtype)


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1e-80), (1e200, 1.0)])
def test_a_dtype_that_cannot_hold_the_mixture_is_refused(mean, variance):
    mean, variance = (torch.tensor(v, dtype=torch.float64) for v in (mean, variance))
    p = GaussianMixture.gaussian(mean[None], variance[None, None])
    with pytest.raises(ValueError, match="dtype must hold the means and precisions"):
        p.to(dtype=torch.float32)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_flattened_has_one_batch_axis(batch, shared, generator):
    p = random_mixture(2, 4, generator)
    shift = torch.randn(*batch, 1, 1, generator=generator, dtype=torch.float64)
    covariances = p.covariances if shared else p.covariances * (1 + shift[..., None].abs())
    p = GaussianMixture(p.weights.expand(*batch, 4), p.means + shift, covariances)
    flat, x = p.flattened(), torch.ones(2, dtype=torch.float64)
    assert flat.batch_shape == (shift.numel(),)
    torch.testing.assert_close(flat.log_prob(x), p.log_prob(x).reshape(-1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": torch.tensor([0.5, 0.6])}, r"weights must sum to one, got a sum of 1\.1"),
        ({"weights": torch.tensor([0.5, 0.5001])}, "weights must sum to one"),
        (
            {"covariances": torch.eye(3) + 1e-3 * torch.ones(2, 3, 3).triu(1)},
            "covariances must be symmetric",
        ),
        ({"weights": torch.tensor([1.5, -0.5])}, r"weights must not be negative, got -0\.5"),
        (
            {"weights": torch.tensor([1, 0])},
            "weights must be a floating-point tensor, got torch.int64",
        ),
        ({"weights": [0.5, 0.5]}, "weights must be a floating-point tensor, got list"),
        ({"weights": torch.ones(1)}, r"weights must have shape \(2,\), got \(1,\)"),
        ({"weights": torch.tensor([0.5, torch.nan])}, "weights must be finite"),
        ({"means": torch.zeros(3)}, r"means must have shape \(\*B, K, d\), got \(3,\)"),
        ({"means": torch.zeros(2, 0)}, r"means must have shape \(\*B, K, d\), got \(2, 0\)"),
        ({"means": torch.full((2, 3), torch.inf)}, "means must be finite"),
        ({"means": torch.zeros(2, 3).double()}, "means must have the dtype of weights"),
        ({"covariances": torch.eye(3)}, r"covariances must have shape \(2, 3, 3\), got \(3, 3\)"),
        ({"covariances": torch.ones(2, 3, 3).triu()}, "covariances must be symmetric"),
        (
            {"covariances": torch.zeros(2, 3, 3)},
            "covariances must be positive definite, got an eig",
        ),
        ({"covariances": -torch.eye(3).repeat(2, 1, 1)}, r"positive definite, got .* of -1"),
        (
            {"covariances": torch.stack([torch.eye(3), 2 * torch.eye(3) - torch.ones(3, 3)])},
            "covariances must be positive definite, got an eigenvalue of -1",
        ),
        ({"covariances": torch.full((2, 3, 3), torch.nan)}, "covariances must be finite"),
    ],
)
def test_bad_parts_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(**{**ONE, **change})


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        (None, torch.eye(2), "mean must be a floating-point tensor, got NoneType"),
        (torch.zeros(2), None, "covariance must be a floating-point tensor, got NoneType"),
        (torch.zeros(2, 1), torch.eye(2), r"mean must have shape \(d,\), got \(2, 1\)"),
        (torch.zeros(0), torch.eye(2), r"mean must have shape \(d,\), got \(0,\)"),
        (torch.tensor(0.0), torch.eye(2), r"mean must have shape \(d,\), got \(\)"),
        (torch.full((2,), torch.nan), torch.eye(2), "mean must be finite"),
        (torch.zeros(2), torch.eye(3), r"covariance must be a matrix of shape \(2, 2\), got"),
        (torch.zeros(2), torch.eye(2).double(), "covariance must have the dtype of mean"),
        (torch.zeros(2), torch.ones(2, 2).triu(), "covariance must be symmetric"),
        (torch.zeros(2), -torch.eye(2), "covariance must be positive definite, got .* of -1"),
        (torch.zeros(1), torch.full((1, 1), 1e-41), "covariance must be positive definite, got"),
    ],
)
def test_bad_parts_of_one_gaussian_are_named(mean, covariance, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture.gaussian(mean, covariance)


@pytest.mark.parametrize(
    ("responsibilities", "message"),
    [
        (None, "responsibilities must be a floating-point tensor, got NoneType"),
        (torch.ones(3), r"responsibilities must have shape \(\*, 2\), got \(3,\)"),
        (torch.ones(2).double(), "responsibilities must have dtype torch.float32"),
    ],
)
def test_bad_responsibilities_are_named(responsibilities, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(**ONE).mean_precision(responsibilities)


def test_a_single_mixture_cannot_be_indexed():
    with pytest.raises(ValueError, match="index needs a batch"):
        GaussianMixture(**ONE)[0]


def test_a_batch_may_be_empty():
    weights, means = torch.ones(0, 1), torch.zeros(0, 1, 2)
    empty = GaussianMixture(weights, means, torch.eye(2).expand(0, 1, 2, 2))
    assert empty.mean.shape == (0, 2)
    assert empty.covariance.shape == (0, 2, 2)
