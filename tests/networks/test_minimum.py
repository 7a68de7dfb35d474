"""The inverse of a learned posterior for pictures: a guaranteed error, without any matrix."""

import pytest
import torch

from invbayes import InvertibleResNet, LearnedPosterior, LinearProblem, NotConverged, Ridge
from invbayes.imaging import gaussian_blur
from invbayes.networks import learned_posterior, minimum
from invbayes.networks.descent import linearised

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
    """Each point by its own size: single precision against double."""
    learned, z = of_pictures(dtype=torch.float32)
    z = torch.stack([z[0, 0], 1e3 * z[0, 1]])
    with torch.no_grad():
        with pytest.raises(
            ValueError, match=r"tol must be at least .* can reach.*, got 1.0e-09"
        ) as e:
            learned.inverse(z, 1e-9)
        reachable = float(str(e.value).split()[5].rstrip(","))
        found, near = learned.inverse(z), learned.inverse(z, 4 * reachable)
        sharp = of_pictures()[0].inverse(z.double(), 1e-6)
    sizes, slope = z.double().flatten(1).norm(dim=1), learned.monotonicity
    away = (found.double() - sharp).flatten(1).norm(dim=1)
    assert (away <= 40 * torch.finfo(torch.float32).eps * sizes / slope).all()
    assert away[1] > 1e-6  # the default gives way to rounding
    assert (near.double() - sharp).flatten(1).norm(dim=1).max() <= 4 * reachable
    with pytest.raises(ValueError, match="tol must be at least"), torch.no_grad():
        learned.inverse(z, 0.97 * reachable)


def test_terms_that_cancel_count_as_rounding():
    """A bias makes terms of F(x) that are large where z is zero."""
    learned, z = of_pictures(dtype=torch.float32)
    learned.net.blocks[0].bias.data.fill_(3.0)
    with torch.no_grad():
        found = learned.inverse(0 * z[:1, 0])
        bound = learned.error_bound(found, 0 * z[:1, 0]).item()
    assert 1e-6 < bound < 1e-2


def test_answers_far_from_zero_are_reached():
    learned, z = of_pictures()
    with torch.no_grad():
        far = 1e5 * torch.ones_like(z[0, :1]) + z[0, :1]
        found = learned.inverse(learned.forward_map(far), 1e-4)
    assert (found - far).norm() < 1e-4


def test_the_derivative_is_solved_also_where_the_operator_loses_constants():
    """Of a strong derivative constants know nothing, and its condition number is large."""
    learned, z = of_pictures()

    def operator(x):
        return 100 * x.diff(dim=-1, append=x[..., -1:])

    problem = LinearProblem(operator, 0.3, shape=(1, 32, 33), dtype=DOUBLE)
    learned = LearnedPosterior(learned.net.requires_grad_(False), problem, trained_at=0.5)
    z = z[0, :1].requires_grad_()
    found = learned.inverse(z, 1e-7)
    v = torch.randn(z.shape, generator=torch.Generator().manual_seed(4), dtype=DOUBLE)
    (slope,) = torch.autograd.grad((v * found).sum(), z)
    with torch.no_grad():
        product = linearised(learned.net, problem, learned.ratio)(found.detach())
        assert (product(slope) - v).norm() < 1e-7 * v.norm()


def test_a_search_of_pictures_that_ends_too_early_says_how_near_it_is(monkeypatch):
    learned, z = of_pictures()
    monkeypatch.setattr(minimum, "STEPS", 1)
    with (
        torch.no_grad(),
        pytest.raises(NotConverged, match=r"missed the tolerance 1.0e-06; its error") as caught,
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
