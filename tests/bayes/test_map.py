"""MAP as a limit of small balls, where it inverts a smooth map, and where it jumps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import fixed_quad
from scipy.optimize import isotonic_regression, minimize
from scipy.stats import ncx2

from invbayes import (
    GaussianMixture,
    InvertibleResNet,
    LinearProblem,
    TiedModes,
    fixed_point,
    has_single_mode,
    ideal_forward_map,
    map_estimate,
    posterior,
)
from invbayes.examples import two_blobs, two_peaks
from tests.conftest import jacobian_of, random_operator


def best_centre(belief, radius):
    """The c with the largest P(‖x − c‖ ≤ r): a noncentral χ², for round components in the plane."""
    weights, means, variances = (
        value.numpy() for value in (belief.weights, belief.means, belief.covariances[:, 0, 0])
    )

    def height(c):
        away = ((means - c) ** 2).sum(1) / variances
        return -np.log(weights @ ncx2.cdf(radius**2 / variances, 2, away))

    options = {"method": "Nelder-Mead", "options": {"xatol": 1e-9, "fatol": 1e-15}}
    found = [minimize(height, start, **options) for start in means]
    return torch.from_numpy(min(found, key=lambda result: result.fun).x)


@pytest.mark.parametrize(
    ("weights", "widths"), [((0.75, 0.25), (1.0, 0.3)), ((0.5, 0.5), (0.6, 0.6))]
)
def test_the_best_small_ball_closes_in_on_the_map_estimate(weights, widths):
    """The second posterior has two maximisers, and the ball may choose either."""
    means = torch.tensor([[-1.0, 0.2], [1.0, -0.2]]).double()
    covariances = torch.tensor(widths).double()[:, None, None] ** 2 * torch.eye(2).double()
    prior = GaussianMixture(torch.tensor(weights, dtype=torch.float64), means, covariances)
    problem, y = LinearProblem(torch.eye(2).double(), noise_std=0.8), torch.zeros(2).double()
    highest = map_estimate(prior, problem, y, on_tie="first")
    maximisers = torch.stack([highest, -highest if weights[0] == 0.5 else highest])
    belief = posterior(prior, problem, y)
    for radius in (0.3, 0.1, 0.03):
        distances = (best_centre(belief, radius) - maximisers).norm(dim=1)
        assert distances.min() < 0.3 * radius**2
    # A large ball answers another question.
    assert (best_centre(belief, 2.0) - maximisers).norm(dim=1).min() > 0.3


def gentle(generator):
    """A prior with two peaks that the data hold together, and the extreme eigenvalues of Dφ_*.

    For means ±m and covariance s² I it is A*A + δ²/s² I − sech²(⟨m, x⟩/s²) δ²/s⁴ m m*: smallest
    at x = 0, and largest far out along m.
    """
    u, _, v = torch.linalg.svd(random_operator(4, 3, 2, generator))
    problem = LinearProblem(u[:, :2] @ torch.diag(torch.tensor([1, 0.4]).to(u)) @ v[:2], 0.3)
    mean = 0.85 * v[0] + 0.25 * v[1]
    covariances = 0.25 * torch.eye(3).double().expand(2, 3, 3)
    prior = GaussianMixture(mean.new_full((2,), 0.5), torch.stack([-mean, mean]), covariances)
    far_out = problem.normal_operator + 0.09 / 0.25 * torch.eye(3).double()
    least = torch.linalg.eigvalsh(far_out - 0.09 / 0.25**2 * torch.outer(mean, mean))[0].item()
    return prior, problem, least, torch.linalg.eigvalsh(far_out)[-1].item()


def test_where_the_energy_is_convex_the_map_estimate_is_unique_and_differentiable(generator):
    """D x_MAP = (A*A − δ² ∇² log p_X)⁻¹ A*, though the prior itself has two modes."""
    prior, problem, least, _ = gentle(generator)
    assert least > 0
    assert not has_single_mode(prior)
    y = 2 * torch.randn(100, 4, generator=generator, dtype=torch.float64)
    assert has_single_mode(posterior(prior, problem, y)).all()
    step = 1e-5 * torch.eye(4).double()[:, None]
    ahead, behind = map_estimate(prior, problem, y + step), map_estimate(prior, problem, y - step)
    jacobian = ((ahead - behind) / 2e-5).permute(1, 2, 0)
    hessian = prior.hessian(map_estimate(prior, problem, y))
    bend = problem.normal_operator - 0.09 * hessian
    expected = torch.linalg.solve(bend, problem.operator.mT.expand(100, 3, 4))
    torch.testing.assert_close(jacobian, expected, rtol=0, atol=1e-6)


def least_eigenvalue(prior, problem, x):
    """Of Dφ_* = A*A − δ² ∇² log p_X."""
    bend = problem.normal_operator - problem.noise_std**2 * prior.hessian(x)
    return torch.linalg.eigvalsh(bend)[..., 0]


@pytest.mark.parametrize(("a", "noise_std"), [(1.0, 0.35), (1.0, 0.8), (0.5, 0.35)])
def test_the_map_estimate_never_answers_where_the_forward_map_folds(a, noise_std):
    """Many points have a negative eigenvalue, but none of them is an answer."""
    prior = two_blobs()
    problem = LinearProblem(torch.diag(torch.tensor([1.0, a])).double(), noise_std)
    points = torch.cartesian_prod(*(torch.linspace(-3, 3, 61).double() for _ in range(2)))
    assert (least_eigenvalue(prior, problem, points) < -1).double().mean() > 0.02
    assert least_eigenvalue(prior, problem, map_estimate(prior, problem, points)).min() > 0


def test_on_a_box_with_positive_eigenvalues_their_least_bounds_the_stretch():
    """|x_MAP(y) − x_MAP(y')| ≤ |y − y'| / μ on a box into which MAP maps; the bound is close."""
    prior, problem = two_blobs(), LinearProblem(torch.eye(2).double(), 0.1)
    across, along = torch.linspace(-2.6, 2.6, 521).double(), torch.linspace(-2.2, 2.2, 45).double()
    y = torch.stack(torch.meshgrid(across, along, indexing="ij"), dim=-1)
    x = map_estimate(prior, problem, y)
    assert (x.abs() < torch.tensor([2.6, 2.2]).double()).all()
    bound = 1 / least_eigenvalue(prior, problem, y).min()
    stretch = x.diff(dim=0).norm(dim=-1) / y.diff(dim=0).norm(dim=-1)
    assert 0.9 * bound < stretch.max() < bound


def test_on_the_line_the_condition_of_smoothness_is_sharp():
    """For peaks at ±1 of width ½ it holds as long as δ² < s⁴ / (1 − s²)."""
    threshold = (0.5**4 / (1 - 0.5**2)) ** 0.5
    y = torch.zeros(1).double()
    smooth, torn = (LinearProblem(torch.eye(1).double(), f * threshold) for f in (0.99, 1.01))
    assert map_estimate(two_peaks(), smooth, y).abs() < 1e-8
    with pytest.raises(TiedModes):
        map_estimate(two_peaks(), torn, y)


def test_the_ideal_forward_map_is_one_block_and_its_inverse_is_the_map_estimate(generator):
    """φ_* = c (Id − f) with Lip(f) = L for the smallest L that the eigenvalues allow."""
    prior, problem, least, most = gentle(generator)
    scale, lipschitz = (most + least) / 2, (most - least) / (most + least)

    def block(x):
        return x - ideal_forward_map(prior, problem, x) / scale

    def with_jacobian(x):
        bend = problem.normal_operator - 0.09 * prior.hessian(x)
        return block(x), torch.eye(3).double() - bend / scale

    y = 2 * torch.randn(100, 4, generator=generator, dtype=torch.float64)
    z = torch.cat([problem.normal_data(y), torch.randn(100, 3, generator=generator).double()])
    x = fixed_point(block, z / scale, lipschitz=lipschitz, tol=1e-9, with_jacobian=with_jacobian)
    torch.testing.assert_close(x[:100], map_estimate(prior, problem, y), rtol=0, atol=1e-8)
    torch.testing.assert_close(ideal_forward_map(prior, problem, x), z, rtol=0, atol=1e-8)
    ends = torch.stack([torch.zeros(3).double(), 50 * prior.means[0]])
    norms = torch.linalg.matrix_norm(jacobian_of(block, torch.cat([ends, x])), 2)
    torch.testing.assert_close(norms[:2], torch.full_like(norms[:2], lipschitz))
    assert norms.max() <= lipschitz * (1 + 1e-12)
    steps = (block(x) - block(x.flip(0))).norm(dim=1) / (x - x.flip(0)).norm(dim=1)
    assert steps.max() <= lipschitz


@pytest.fixture(params=[(0.7, 0.5, 1.0), (0.6, 0.4, 0.6), (0.35, 0.3, 0.5)])
def torn(request):
    """Peaks at ±1 of unequal weight or width, such that φ_* folds."""
    weight, width, noise_std = request.param
    weights = torch.tensor([weight, 1 - weight], dtype=torch.float64)
    widths = torch.tensor([width, 0.5], dtype=torch.float64)
    means = torch.tensor([[-1.0], [1.0]]).double()
    prior = GaussianMixture(weights, means, widths[:, None, None] ** 2)
    return prior, LinearProblem(torch.eye(1).double(), noise_std)


def jump_of_map(prior, problem):
    """The level y_*, and the points x_− and x_+."""

    low, high = -2.0, 2.0
    for _ in range(4):
        y = torch.linspace(low, high, 1001, dtype=torch.float64)
        x = map_estimate(prior, problem, y[:, None], on_tie="first")[:, 0]
        k = int((x < 0).sum())
        low, high = y[k - 1].item(), y[k].item()
    return (low + high) / 2, x[k - 1].item(), x[k].item()


def area(torn, level, left, right, *, weighted):
    """The integral of φ_* − level, times p_X or not, by Gauss and Legendre."""
    prior, problem = torn

    def integrand(x):
        x = torch.from_numpy(x)[:, None]
        height = ideal_forward_map(prior, problem, x)[:, 0] - level
        return height * prior.log_prob(x).exp() if weighted else height

    return fixed_quad(lambda x: integrand(x).numpy(), left, right, n=200)[0]


def test_the_map_estimate_never_falls_and_jumps_where_the_areas_are_equal(torn):
    level, left, right = jump_of_map(*torn)
    y = torch.linspace(-3, 3, 601, dtype=torch.float64)
    x = map_estimate(*torn, y[:, None])[:, 0]
    steps = x.diff()
    assert (steps >= 0).all()
    assert (steps > 0.1).sum() == 1  # no other jump
    assert (x[y < level] <= left).all()
    assert (x[y > level] >= right).all()
    ends = torch.tensor([[left], [right]]).double()
    heights = posterior(*torn, torch.tensor([level]).double()).log_prob(ends)
    assert heights.diff().abs() < 1e-6
    assert abs(area(torn, level, left, right, weighted=False)) < 1e-7
    assert area(torn, level, left, (left + right) / 2, weighted=False) > 0.3
    inside = torch.linspace(left, right, 400, dtype=torch.float64)[1:-1, None]
    above = ideal_forward_map(*torn, inside)[:, 0] > level
    assert above.int().diff().ne(0).sum() == 1  # one piece above the level, then one below
    assert above[0]


def test_the_closest_rising_map_weights_the_areas_by_the_prior(torn):
    """In the mean square under the prior, by isotonic regression; MAP's areas have no weight."""
    prior, problem = torn
    grid = torch.linspace(-5, 5, 10_001, dtype=torch.float64)[:, None]
    values = ideal_forward_map(prior, problem, grid)[:, 0].numpy()
    closest = isotonic_regression(values, weights=prior.log_prob(grid).exp().numpy()).x

    levels, counts = np.unique(closest, return_counts=True)
    flat = levels[counts.argmax()]
    assert counts.max() > 1000
    left, right = grid[closest == flat][[0, -1], 0].tolist()
    assert abs(area(torn, flat, left, right, weighted=True)) < 1e-6
    assert abs(area(torn, flat, left, right, weighted=False)) > 0.05

    jump = jump_of_map(prior, problem)
    assert abs(area(torn, *jump, weighted=False)) < 1e-7
    assert area(torn, *jump, weighted=True) > 0.005
    assert flat > jump[0] + 0.04


def test_on_a_convex_set_one_block_is_the_ideal_map_and_inverts_to_the_map_estimate(generator):
    """The block is φ_* on a box, and beyond it continued from the nearest point of the box."""
    prior, problem = two_blobs(), LinearProblem(torch.eye(2).double(), noise_std=0.1)
    corner = torch.tensor([3.2, 2.7]).double()
    points = (2 * torch.rand(20_000, 2, generator=generator).double() - 1) * corner
    slopes = torch.linalg.eigvalsh(torch.eye(2).double() - 0.01 * prior.hessian(points))
    least, most = 0.95 * slopes.min().item(), 1.05 * slopes.max().item()
    assert least > 0
    lipschitz = (most - least) / (most + least)
    scale = least / (1 - lipschitz)

    def f(x):
        nearest = x.clamp(-corner, corner)
        return nearest - ideal_forward_map(prior, problem, nearest) / scale

    ahead, behind = (3 * torch.randn(2000, 2, generator=generator).double() for _ in range(2))
    steps = (f(ahead) - f(behind)).norm(dim=1) / (ahead - behind).norm(dim=1)
    assert steps.max() <= lipschitz
    y = problem.observe(prior.sample(300, generator=generator), generator=generator)
    estimate = map_estimate(prior, problem, y)
    inside = (estimate.abs() <= corner).all(1)
    assert inside.double().mean() > 0.99
    x = y / scale
    for _ in range(200):
        x = y / scale + f(x)
    torch.testing.assert_close(x[inside], estimate[inside], rtol=0, atol=1e-8)


def test_the_closest_monotone_map_of_a_saddle_is_a_shear(generator):
    """By minimising over linear monotone maps, and by the conditions for maps that bend."""
    covariance = np.array([[1.0, -1.0], [-1.0, 2.0]])
    saddle, shear = np.array([[1.0, -1.0], [-1.0, -2.0]]), np.array([[1.0, -1.0], [1.0, 0.0]])

    def monotone(v):
        root = np.array([[v[0], 0.0], [v[1], v[2]]])
        return root @ root.T + v[3] * np.array([[0.0, -1.0], [1.0, 0.0]])

    def distance(v):
        gap = monotone(v) - saddle
        return np.trace(gap @ covariance @ gap.T)

    best = minimize(distance, [1.0, 0.3, 0.5, 0.0], tol=1e-14)
    np.testing.assert_allclose(monotone(best.x), shear, atol=1e-3)

    nodes, mass = np.polynomial.hermite_e.hermegauss(40)
    unit = torch.from_numpy(np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2))
    mass = torch.from_numpy(np.outer(mass, mass).reshape(-1) / (2 * np.pi))
    x = unit @ torch.linalg.cholesky(torch.from_numpy(covariance)).T
    gap = x @ torch.from_numpy(shear - saddle).T
    assert abs(mass @ (gap * (x @ torch.from_numpy(shear).T)).sum(1)) < 1e-10
    for _ in range(20):
        block = InvertibleResNet.dense(2, (8, 8), 1, 0.95, generator=generator).double()
        with torch.no_grad():
            assert mass @ (gap * block(x)).sum(1) > 0
