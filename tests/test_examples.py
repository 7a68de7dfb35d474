"""The chapters' shared priors and operators."""

from __future__ import annotations

import math

import pytest
import torch

from invbayes.examples import blur_operator, smooth_signals, three_blobs, two_blobs, two_peaks


def test_two_blobs_has_the_stated_shape():
    p = two_blobs()
    assert p.weights.tolist() == [0.55, 0.45]
    assert p.mean.tolist() == pytest.approx([-0.1, -0.025])
    variances, axes = torch.linalg.eigh(p.covariances)
    expected = torch.tensor([[0.16, 0.49], [0.16, 0.36]], dtype=torch.float64)
    torch.testing.assert_close(variances, expected)
    # The axis of the smaller deviation is the first one, turned by the stated angle.
    slopes = axes[:, 1, 0] / axes[:, 0, 0]
    degrees = [math.degrees(math.atan(s)) for s in slopes.tolist()]
    assert degrees == pytest.approx([20, -15])


def test_two_peaks_merge_when_the_width_reaches_the_separation():
    origin = torch.zeros(1, 1, dtype=torch.float64)
    assert two_peaks(separation=1.0, width=0.9).hessian(origin) > 0
    assert two_peaks(separation=1.0, width=1.1).hessian(origin) < 0


def test_two_peaks_has_the_stated_spread():
    assert two_peaks(separation=2.0, width=0.5).covariance.item() == pytest.approx(4.25)


def test_three_blobs_has_the_stated_spreads_and_angles():
    """The first covariance maps the direction of 30° to 0.36 times itself, its normal to 0.1225."""
    prior = three_blobs()
    angle = math.radians(30)
    along = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    torch.testing.assert_close(prior.covariances[0] @ along, 0.6**2 * along)
    across = torch.stack([-along[1], along[0]])
    torch.testing.assert_close(prior.covariances[0] @ across, 0.35**2 * across)
    assert prior.covariances[1, 0, 1] < 0 == prior.covariances[2, 0, 1]
    expected = 0.4 * -1.2 + 0.35 * 0.3 + 0.25 * 1.2
    assert prior.mean[0].item() == pytest.approx(expected)


def test_dtype_is_as_asked():
    for value in (
        two_blobs(torch.float32).covariance,
        three_blobs(torch.float32).covariance,
        two_peaks(dtype=torch.float32).covariance,
        smooth_signals(4, 1.0, dtype=torch.float32).covariance,
        blur_operator(4, 1.0, dtype=torch.float32),
    ):
        assert value.dtype == torch.float32


def test_smooth_signals_has_unit_variance_and_the_stated_correlation():
    covariance = smooth_signals(size=20, length=3.0, nugget=0.01).covariance
    torch.testing.assert_close(covariance.diagonal(), torch.ones(20, dtype=torch.float64))
    assert covariance[4, 7].item() == pytest.approx(0.99 * math.exp(-0.5))


def test_blur_keeps_a_constant_away_from_the_ends_and_is_its_own_adjoint():
    blur = blur_operator(size=41, width=2.0)
    assert torch.equal(blur, blur.mT)
    assert blur.sum(1)[20].item() == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: two_peaks(separation=0.0), "separation must be finite and > 0"),
        (lambda: two_peaks(width=-1.0), "width must be finite and > 0"),
        (lambda: smooth_signals(0, 1.0), "size must be a positive int"),
        (lambda: smooth_signals(4, 0.0), "length must be finite and > 0"),
        (lambda: smooth_signals(4, 1.0, nugget=0.0), "nugget must be finite and > 0"),
        (lambda: blur_operator(4, 0.0), "width must be finite and > 0"),
        (lambda: blur_operator(2.0, 1.0), "size must be a positive int"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
