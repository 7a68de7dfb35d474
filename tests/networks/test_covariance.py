"""The covariance in a network's Jacobian: closed forms, differences, probes, bounds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invbayes import (
    Block,
    InvertibleResNet,
    LinearProblem,
    gaussian_forward_eigenvalues,
    ideal_forward_map,
    normal_data_density,
    posterior,
    posterior_covariance,
    posterior_variance,
    variance_bounds,
)
from invbayes.examples import two_blobs
from invbayes.networks.covariance import spectrum
from tests.conftest import cases, random_mixture, random_operator
from tests.own_blocks import Affine, Convolutions, exact_network


@pytest.fixture
def net(generator):
    return InvertibleResNet.dense(2, (8, 8), lipschitz=0.7, scale=1.4, generator=generator).double()


def plane(generator, **noise):
    """Three measurements of two unknowns, and data."""
    problem = LinearProblem(random_operator(3, 2, 2, generator), **(noise or {"noise_std": 0.3}))
    y = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    return problem, y, problem.normal_data(y)


@given(st.integers(1, 4), st.integers(0, 2), st.booleans(), st.integers(0, 1000))
def test_one_gaussian_gives_the_posterior_covariance(dim, more, coloured, seed):
    generator = torch.Generator().manual_seed(seed)
    prior = random_mixture(dim, 1, generator)
    operator = random_operator(dim + more, dim, dim, generator)
    variances = 0.1 + torch.rand(dim + more, generator=generator, dtype=torch.float64)
    noise = {"noise_covariance": variances} if coloured else {"noise_std": 0.3}
    problem = LinearProblem(operator, **noise)
    y = problem.observe(prior.sample(3, generator=generator), generator=generator)
    net = exact_network(prior, problem)
    bars = posterior_covariance(net, problem, problem.normal_data(y), tol=1e-10)
    belief = posterior(prior, problem, y)
    torch.testing.assert_close(bars.mean, belief.mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(bars.covariance, belief.covariance, rtol=1e-8, atol=1e-11)
    assert bars.asymmetry.max() < 1e-11
    low, high = variance_bounds(net, problem)
    values = torch.linalg.eigvalsh(bars.covariance)
    assert low * (1 - 1e-9) < values.min()
    assert values.max() < high * (1 + 1e-9)


def test_it_is_the_symmetric_part_of_the_scaled_derivative_of_the_inverse(net, generator):
    """By central differences, at data and not at the truth; and what symmetrising took away."""
    problem, _, z = plane(generator)
    bars = posterior_covariance(net, problem, z, tol=1e-11)
    steps = 1e-4 * torch.eye(2, dtype=torch.float64)
    columns = [(net.inverse(z + h, 1e-12) - net.inverse(z - h, 1e-12)) / 2e-4 for h in steps]
    matrix = 0.09 * torch.stack(columns, -1)
    torch.testing.assert_close(bars.covariance, (matrix + matrix.mT) / 2, rtol=0, atol=1e-7)
    asymmetry = (matrix[:, 0, 1] - matrix[:, 1, 0]).abs() / 2**0.5
    torch.testing.assert_close(bars.asymmetry, asymmetry, rtol=0, atol=1e-7)
    assert asymmetry.max() > 0.002


def test_a_network_of_the_ideal_map_gives_laplaces_covariance():
    """δ²Dφ*⁻¹ = (A*A/δ² − ∇²log p)⁻¹: by differences of the exact map, which MAP inverts."""
    prior, problem = two_blobs(), LinearProblem(torch.eye(2, dtype=torch.float64), 0.1)
    x = prior.sample(50, generator=torch.Generator().manual_seed(0))
    steps = 1e-5 * torch.eye(2, dtype=torch.float64)
    columns = [
        (ideal_forward_map(prior, problem, x + h) - ideal_forward_map(prior, problem, x - h)) / 2e-5
        for h in steps
    ]
    laplace = torch.linalg.inv(problem.normal_operator / 0.01 - prior.hessian(x))
    found = 0.01 * torch.linalg.inv(torch.stack(columns, -1))
    torch.testing.assert_close(found, laplace, rtol=1e-6, atol=1e-9)


@given(cases(injective=True))
def test_the_covariance_is_tweedies_formula_one_derivative_further(case):
    """A*A Cov(x | z) = δ²(I + δ² A*A ∇²log p_Z): for every mixture."""
    prior, problem, y = case
    normal, strength = problem.normal_operator, problem.noise_std**2
    curvature = normal_data_density(prior, problem).hessian(problem.normal_data(y))
    expected = strength * (torch.eye(prior.dim).double() + strength * normal @ curvature)
    found = normal @ posterior(prior, problem, y).covariance
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@given(st.floats(0.05, 3), st.floats(0.05, 3), st.floats(0.05, 3))
def test_bars_of_the_log_determinant_are_too_wide_or_too_narrow(singular, sigma, noise_std):
    """The log-determinant equation, differentiated, on the line; the sign of the bar's error."""
    values = gaussian_forward_eigenvalues(torch.tensor([singular]).double(), sigma, noise_std)
    b, slope, strength = values.log_det.item(), values.posterior.item(), noise_std**2
    curvature = -1 / (b * sigma) ** 2  # of log q
    assert singular**2 * strength / b == pytest.approx(strength * (1 + strength * curvature))
    if abs(slope - 1) > 1e-9:
        assert (strength / b > strength / slope) == (slope > 1)


def test_symmetrising_never_moves_it_away_from_a_covariance(net, generator):
    """‖F − Σ‖² = ‖sym F − Σ‖² + ‖asym F‖² for every symmetric Σ."""
    problem, _, z = plane(generator)
    bars = posterior_covariance(net, problem, z)
    matrix = 0.09 * torch.linalg.inv(net.jacobian(bars.mean))
    other = torch.randn(40, 2, 2, generator=generator, dtype=torch.float64)
    other = other @ other.mT
    whole = (matrix - other).square().sum((1, 2))
    parts = (bars.covariance - other).square().sum((1, 2)) + bars.asymmetry.square()
    torch.testing.assert_close(whole, parts)


def agree(found, exact, error):
    """Within five standard errors; where the probes do not scatter, to rounding."""
    assert ((found - exact).abs() <= 5 * error + 1e-6 * exact.abs()).all()


@pytest.mark.parametrize("shape", [(2,), (3, 2)])
def test_probes_give_the_diagonal_and_the_trace(net, generator, shape):
    problem, _, _ = plane(generator)
    z = torch.randn(*shape, 2, generator=generator, dtype=torch.float64)
    covariance = posterior_covariance(net, problem, z).covariance
    found = posterior_variance(net, problem, z, probes=400, generator=generator)
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    agree(found.variance, diagonal, found.variance_error)
    agree(found.total, diagonal.sum(-1), found.total_error)
    torch.testing.assert_close(found.mean, net.inverse(z), rtol=0, atol=3e-6)
    # The scatter of vᵢ(Mv)ᵢ is the row's off-diagonal part: the standard errors are right.
    row = 0.09 * torch.linalg.inv(net.jacobian(found.mean)).mT
    off = (row - torch.diag_embed(row.diagonal(dim1=-2, dim2=-1))).norm(dim=-1)
    torch.testing.assert_close(found.variance_error, off / 20, rtol=0.2, atol=1e-6)


def test_points_of_any_shape_need_no_jacobian(generator, monkeypatch):
    net = InvertibleResNet(Convolutions(generator=generator), lipschitz=0.8).double()
    problem = LinearProblem(lambda x: 2 * x, 0.5, shape=(1, 4, 5), dtype=torch.float64)
    z = torch.randn(3, 1, 4, 5, generator=generator, dtype=torch.float64)
    bars = posterior_covariance(net, problem, z)
    assert bars.covariance.shape == (3, 20, 20)

    def refuse(*_):
        raise AssertionError("a Jacobian was asked for")

    monkeypatch.setattr(InvertibleResNet, "with_jacobian", refuse)
    monkeypatch.setattr(Block, "with_jacobian", refuse)
    found = posterior_variance(net, problem, z, probes=300, generator=generator)
    diagonal = bars.covariance.diagonal(dim1=-2, dim2=-1)
    agree(found.variance.flatten(1), diagonal, found.variance_error.flatten(1))
    agree(found.total, diagonal.sum(-1), found.total_error)
    assert found.variance_error.max() > 0


@pytest.mark.parametrize(("sign", "blocks"), [(1.0, 1), (-1.0, 1), (1.0, 2)])
def test_the_bounds_are_attained(sign, blocks):
    """By f = ±L Id, the flattest and the steepest block; the upper one by several flat ones."""
    made = [Affine(sign * torch.eye(2).double()) for _ in range(blocks)]
    net = InvertibleResNet(made, lipschitz=0.6, scale=2.0).double()
    problem = LinearProblem(torch.eye(2).double(), 0.5)
    bars = posterior_covariance(net, problem, torch.ones(1, 2).double())
    low, high = variance_bounds(net, problem)
    wanted = high if sign > 0 else low
    identity = wanted * torch.eye(2).double()
    torch.testing.assert_close(bars.covariance[0], identity)


def turned(lipschitz, blocks):
    """Blocks Id − L R, each of which turns by arcsin L: R turns by arccos L."""
    cos, sin = lipschitz, (1 - lipschitz**2) ** 0.5
    rotation = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    made = [Affine(rotation) for _ in range(blocks)]
    return InvertibleResNet(made, lipschitz=lipschitz).double()


@pytest.mark.parametrize(("blocks", "edge"), [(2, 2**-0.5), (3, 0.5)])
def test_several_blocks_guarantee_positive_variances_up_to_a_sharp_bound(blocks, edge):
    problem, z = LinearProblem(torch.eye(2).double(), 1.0), torch.ones(1, 2).double()
    safe = turned(edge - 0.01, blocks)
    low, high = variance_bounds(safe, problem)
    values = torch.linalg.eigvalsh(posterior_covariance(safe, problem, z).covariance)
    assert 0 < low <= values.min() <= values.max() <= high
    unsafe = turned(edge + 0.01, blocks)
    with pytest.raises(ValueError, match=f"net has {blocks} blocks"):
        posterior_covariance(unsafe, problem, z)
    for refuses in (variance_bounds, lambda *a: posterior_variance(*a, z)):
        with pytest.raises(ValueError, match="net must guarantee positive variances"):
            refuses(unsafe, problem)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_every_eigenvalue_lies_within_the_bounds(blocks, generator):
    lipschitz = math.sin(math.pi / 2 / blocks) - 0.05
    net = InvertibleResNet.dense(3, (6,), blocks, lipschitz, generator=generator).double()
    problem = LinearProblem(torch.eye(3).double(), 0.4)
    z = 5 * torch.randn(500, 3, generator=generator, dtype=torch.float64)
    values = torch.linalg.eigvalsh(posterior_covariance(net, problem, z).covariance)
    low, high = variance_bounds(net, problem)
    assert low <= values.min()
    assert values.max() <= high


def test_wrong_arguments_are_named(net, generator):
    problem, y, z = plane(generator)
    flat = LinearProblem(torch.ones(1, 2).double(), 0.3)
    kinds = {posterior_covariance: "an InverseProblem", posterior_variance: "a LinearProblem"}
    for function, kind in kinds.items():
        with pytest.raises(ValueError, match="net must be an InvertibleResNet"):
            function(problem, problem, z)
        with pytest.raises(ValueError, match=f"problem must be {kind}"):
            function(net, net, z)
        with pytest.raises(ValueError, match="z must have shape"):
            function(net, problem, y)  # data, not normal data
        with pytest.raises(ValueError, match="z must have dtype"):
            function(net, problem, z.float())
        with pytest.raises(ValueError, match="z must be finite"):
            function(net, problem, z * torch.nan)
        with pytest.raises(ValueError, match="problem must have an injective operator, got rank 1"):
            function(net, flat, z)
    with pytest.raises(ValueError, match="probes must be an int of at least 2"):
        posterior_variance(net, problem, z, probes=1)
    with pytest.raises(ValueError, match="problem must be a LinearProblem"):
        variance_bounds(net, problem.matrix)


@pytest.mark.parametrize("lead", [(0,), (3, 0)])
def test_no_data_have_no_variances(net, lead):
    problem = LinearProblem(torch.eye(2).double(), noise_std=0.1)
    found = posterior_variance(net, problem, torch.zeros(*lead, 2).double(), probes=4)
    assert [part.shape for part in found] == [(*lead, 2)] * 3 + [lead] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_spectrum_has_a_value_for_each_unknown(dtype, generator):
    for rows in (3, 5, 9):
        matrix = torch.randn(rows, 5, generator=generator, dtype=dtype)
        values, axes = spectrum(LinearProblem(matrix, noise_std=1.0))
        assert (values > 0).sum() == min(rows, 5)
        found = axes.mT * values.square() @ axes
        torch.testing.assert_close(found, matrix.double().mT @ matrix.double())
        torch.testing.assert_close(axes @ axes.mT, torch.eye(5).double())
