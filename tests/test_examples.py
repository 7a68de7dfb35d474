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
    assert two_peaks().covariance.item() == pytest.approx(1.25)
    assert two_peaks().weights.tolist() == [0.5, 0.5]
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
    assert prior.means.tolist() == [[-1.2, -0.6], [0.3, 1.1], [1.2, -0.7]]
    assert prior.weights.tolist() == [0.4, 0.35, 0.25]
    angle = math.radians(-10)
    along = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    torch.testing.assert_close(prior.covariances[1] @ along, 0.7**2 * along)
    across = torch.stack([-along[1], along[0]])
    torch.testing.assert_close(prior.covariances[1] @ across, 0.4**2 * across)
    torch.testing.assert_close(
        prior.covariances[2].diagonal(), torch.tensor([0.35**2, 0.5**2], dtype=torch.float64)
    )


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
    by_default = smooth_signals(size=20, length=3.0)
    assert by_default.covariance[4, 7].item() == pytest.approx(0.999 * math.exp(-0.5))
    assert by_default.mean.tolist() == [0.0] * 20
    alone = smooth_signals(size=3, length=3.0, nugget=1.0).covariance
    assert torch.equal(alone, torch.eye(3, dtype=torch.float64))


def test_blur_keeps_a_constant_away_from_the_ends_and_is_its_own_adjoint():
    blur = blur_operator(size=41, width=2.0)
    assert torch.equal(blur, blur.mT)
    assert blur.sum(1)[20].item() == pytest.approx(1, abs=1e-7)
    assert blur[20, 22].item() == pytest.approx(math.exp(-0.5) / (2 * math.sqrt(2 * math.pi)))


def test_numbers_may_be_tensors():
    two = torch.tensor(2.0)
    assert torch.equal(blur_operator(5, two), blur_operator(5, 2.0))
    assert torch.equal(smooth_signals(5, two).covariance, smooth_signals(5, 2.0).covariance)
    assert torch.equal(two_peaks(two, two).covariance, two_peaks(2.0, 2.0).covariance)


def test_a_very_narrow_bell_is_the_identity():
    assert torch.equal(smooth_signals(3, 1e-200).covariance, torch.eye(3, dtype=torch.float64))
    assert blur_operator(3, 1e-200)[0, 1:].tolist() == [0.0, 0.0]


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
        (lambda: blur_operator(2, 1e-320), "width must have an inverse that torch.float64 can"),
        (lambda: blur_operator(2, True), "width must be a number, got True"),
        (lambda: blur_operator(2, 1.0, dtype=None), "dtype must be a floating-point dtype, got"),
        (lambda: two_blobs(torch.int64), "dtype must be a floating-point dtype, got torch.int64"),
        (lambda: three_blobs("x"), "dtype must be a floating-point dtype, got 'x'"),
        (lambda: two_peaks(dtype=torch.int64), "dtype must be a floating-point dtype, got"),
        (lambda: two_peaks(width=1e200), "separation and the square of width must be numbers"),
        (lambda: two_peaks(width=1e-170), r"torch.float64 can hold, got 1\.0 and 1e-170"),
        (lambda: two_peaks(separation=1e40, dtype=torch.float32), "torch.float32 can hold, got 1e"),
        (lambda: smooth_signals(4, 1.0, nugget=1.5), r"nugget must lie in \(0, 1\] and keep Σ inv"),
        (lambda: smooth_signals(32, 8.0, nugget=1e-20), "nugget must .* invertible, got 1e-20"),
        (lambda: smooth_signals(4, 1.0, dtype="x"), "dtype must be a floating-point dtype"),
        (lambda: smooth_signals(4, None), "length must be a number, got None"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
