"""The inverse of a learned posterior for pictures: a guaranteed error, without any matrix."""

import pytest
import torch

from invbayes import InvertibleResNet, LearnedPosterior, LinearProblem, NotConverged, Ridge
from invbayes.imaging import gaussian_blur
from invbayes.networks import learned_posterior, minimum

DOUBLE = torch.float64


def of_pictures(side=33, dtype=DOUBLE, scale=12.0, noise=0.3):
    """A blur, and a penalty with slopes of at least 0.2 t."""
    source = torch.Generator().manual_seed(1)
    block = Ridge((1, None, None), 4, 3, share=0.95, sharpness=3.0, generator=source)
    net = InvertibleResNet(block.to(dtype), lipschitz=0.9, scale=scale, learn_scale=False)
    problem = LinearProblem(gaussian_blur(1.0), noise, shape=(1, 32, side), dtype=dtype)
    x = torch.randn(2, 3, 1, 32, side, generator=source).to(dtype)
    learned = LearnedPosterior(net.to(dtype), problem, trained_at=0.5)
    return learned, problem.normal_data(problem.observe(x, generator=source))


@pytest.mark.parametrize("tol", [1e-1, 1e-4, None])
def test_the_inverse_of_pictures_keeps_its_tolerance(tol):
    """Against the search to rounding; on several axes of batches, in the dtype of the data."""
    learned, z = of_pictures()
    with torch.no_grad():
        sharp = learned.mode(z, torch.zeros(1, *z.shape, dtype=DOUBLE), tol=1e-10)
        found = learned.inverse(z, tol)
    away = (found - sharp).flatten(2).norm(dim=-1)
    assert away.max() <= (tol or 1e-6)
    assert (learned.error_bound(found, z) <= (tol or 1e-6)).all()
    if tol == 0.1:
        assert away.max() > 1e-6  # no more work than was asked for


def test_pictures_and_small_points_have_the_same_inverse(monkeypatch):
    """With the singular values, and by products alone."""
    learned, z = of_pictures(side=12)  # 384 unknowns
    expected = learned.inverse(z, 1e-7)
    monkeypatch.setattr(learned_posterior, "LARGEST", 300)
    by_products = learned.inverse(z, 1e-7)
    assert (by_products - expected).flatten(2).norm(dim=-1).max() < 2e-7
    assert not torch.equal(by_products, expected)


def test_no_matrix_is_made_for_pictures(monkeypatch):
    learned, z = of_pictures()

    def refuse(*_):
        raise AssertionError("a matrix of the unknowns was made")

    for owner, name in ((learned_posterior, "spectrum"), (Ridge, "with_jacobian")):
        monkeypatch.setattr(owner, name, refuse)
    assert learned.inverse(z, 1e-2).shape == z.shape
    monkeypatch.setattr(Ridge, "is_gradient", False)
    with pytest.raises(AssertionError, match="a matrix of the unknowns"):
        learned.inverse(z, 1e-2)  # any other block needs one


def test_the_inverse_of_pictures_has_the_implicit_derivative():
    """In z, which is symmetric, and in the sharpness, against differences."""
    learned, z = of_pictures()
    z = z[:1, :2]
    v, w = torch.randn(2, *z.shape, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
    slope = torch.autograd.functional.vjp(lambda z: learned.inverse(z, 1e-9), z, v)[1]
    with torch.no_grad():
        ahead, behind = (learned.inverse(z + step * w, 1e-9) for step in (1e-4, -1e-4))
    along = (v * (ahead - behind)).sum() / 2e-4
    assert (slope * w).sum().item() == pytest.approx(along.item(), rel=1e-6)
    sharpness = learned.net.blocks[0].log_sharpness
    (v * learned.inverse(z, 1e-9)).sum().backward()
    with torch.no_grad():
        values = []
        for step in (1e-4, -2e-4):
            sharpness[2] += step
            values.append((v * learned.inverse(z, 1e-9)).sum().item())
    expected = (values[0] - values[1]) / 2e-4
    assert sharpness.grad[2].item() == pytest.approx(expected, rel=1e-6)


def test_rounding_counts_in_the_inverse_of_pictures():
    learned, z = of_pictures(dtype=torch.float32)
    with torch.no_grad():
        with pytest.raises(ValueError, match=r"tol must be at least .* by rounding, got 1.0e-09"):
            learned.inverse(1e3 * z, 1e-9)
        found = learned.inverse(1e3 * z)  # the default gives way to rounding
    exact, _ = of_pictures()
    with torch.no_grad():
        sharp = exact.inverse(1e3 * z.double(), 1e-6)
    away = (found.double() - sharp).flatten(2).norm(dim=-1).max().item()
    size = (1e3 * z).flatten(2).norm(dim=-1).max().item()
    slope = learned.monotonicity
    assert 1e-6 < away <= 8 * minimum.ROUNDING * torch.finfo(torch.float32).eps * size / slope


def test_a_search_of_pictures_that_ends_too_early_says_how_near_it_is(monkeypatch):
    learned, z = of_pictures()
    monkeypatch.setattr(minimum, "STEPS", 1)
    with (
        torch.no_grad(),
        pytest.raises(NotConverged, match=r"missed the tolerance 1.0e-06 after 1 step") as caught,
    ):
        learned.inverse(z, 1e-6)
    assert caught.value.point.shape == z.shape
    bounds = learned.error_bound(caught.value.point, z)
    assert caught.value.bound == pytest.approx(bounds.max().item(), rel=1e-6)
    with pytest.raises(ValueError, match="tol must be finite and > 0"):
        learned.inverse(z, -1.0)
    assert learned.inverse(z[:0]).shape == z[:0].shape
    flat = of_pictures(scale=9.0)[0]
    with pytest.raises(ValueError, match="problem must have A\\*A larger"):
        flat.inverse(z)
