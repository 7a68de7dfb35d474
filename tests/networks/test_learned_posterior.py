"""One network, every operator: closed forms for a Gaussian, double wells, certificates."""

import contextlib

import pytest
import torch
from torch import Tensor

from invbayes import (
    GaussianMixture,
    InvertibleResNet,
    LearnedPosterior,
    LinearProblem,
    LipschitzDense,
    NotConverged,
    Ridge,
    concavity_defect,
    posterior,
    proximal,
)
from invbayes.networks.blocks import Block
from invbayes.networks.descent import _downhill, _work, descend, newton
from invbayes.networks.proximal import contraction
from tests.own_blocks import Affine

LEVEL, DOUBLE = 0.5, torch.float64
OPERATORS = {
    "square": torch.tensor([[1.0, 0.3], [-0.2, 0.5]], dtype=DOUBLE),
    "wide": torch.tensor([[0.6, 0.8]], dtype=DOUBLE),
    "tall": torch.tensor([[1.0, 0.0], [0.0, 0.5], [0.4, 0.4]], dtype=DOUBLE),
}


class Wells(Block):
    """Entrywise tanh: with c above one the learned prior has a well on each side of zero."""

    shape = (None,)

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros((), dtype=DOUBLE))

    def forward(self, x: Tensor) -> Tensor:
        return x.tanh()

    def lipschitz_bound(self) -> float:
        return 1.0


def gaussian_network(shape=(2,)) -> tuple[InvertibleResNet, GaussianMixture]:
    """The ideal denoiser of a Gaussian prior at LEVEL, which is affine without an offset."""
    covariance = torch.tensor([[0.6, 0.2], [0.2, 0.3]], dtype=DOUBLE)
    ideal = torch.eye(2, dtype=DOUBLE) + LEVEL**2 * torch.linalg.inv(covariance)
    slopes = torch.linalg.eigvalsh(ideal)
    scale, lipschitz = slopes.mean().item(), ((slopes[1] - slopes[0]) / slopes.sum()).item() + 0.05
    matrix = (torch.eye(2, dtype=DOUBLE) - ideal / scale) / lipschitz
    block = Affine(matrix)
    block.shape = shape
    net = InvertibleResNet(block, lipschitz=lipschitz, scale=scale)
    return net, GaussianMixture.gaussian(torch.zeros(2, dtype=DOUBLE), covariance)


def wells() -> InvertibleResNet:
    return InvertibleResNet(Wells(), lipschitz=0.9, scale=1.5).requires_grad_(False)


def points(count: int, seed: int = 0, dim: int = 2) -> Tensor:
    return torch.randn(count, dim, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("coloured", [False, True])
def test_a_gaussian_denoiser_gives_the_posterior_of_every_operator(name, coloured):
    net, prior = gaussian_network()
    matrix = OPERATORS[name]
    noise = {"noise_covariance": 0.04 * (1 + torch.arange(len(matrix), dtype=DOUBLE))}
    problem = LinearProblem(matrix, **(noise if coloured else {"noise_std": 0.3}))
    learned, y = LearnedPosterior(net, problem, trained_at=LEVEL), points(7, dim=len(matrix))
    z, belief = problem.normal_data(y), posterior(prior, problem, y)
    assert learned.monotonicity > 0  # even with a kernel: κ is negative for this prior
    assert torch.allclose(learned.inverse(z, tol=1e-10), belief.mean, atol=1e-9)
    assert torch.allclose(learned.mode(z, points(3)[:, None]), belief.mean, atol=1e-8)
    x = points(7, seed=1)
    assert torch.allclose(learned.score(x, z), belief.score(x), atol=1e-9)
    drop = problem.noise_std**2 * (belief.log_prob(x) - belief.log_prob(torch.zeros_like(x)))
    assert torch.allclose(learned.energy(x, z), -drop, atol=1e-9)
    precision = torch.linalg.inv(belief.covariance) * problem.noise_std**2
    assert torch.allclose(learned.with_jacobian(x)[1], precision, atol=1e-9)
    assert torch.allclose(learned.with_jacobian(x)[0], learned.forward_map(x))


def test_points_may_have_any_shape():
    net, _ = gaussian_network()
    picture, _ = gaussian_network(shape=(1, 2))
    flat = LinearProblem(OPERATORS["square"], noise_std=0.3)
    shaped = LinearProblem(
        lambda x: x.flatten(1) @ OPERATORS["square"].mT, 0.3, shape=(1, 2), dtype=DOUBLE
    )
    one, two = (
        LearnedPosterior(n, p, trained_at=LEVEL) for n, p in ((net, flat), (picture, shaped))
    )
    z, x = points(6).reshape(2, 3, 2), points(6, seed=2).reshape(2, 3, 2)
    for name in ("inverse", "forward_map"):
        expected = getattr(one, name)(z)
        assert torch.allclose(getattr(two, name)(z[:, :, None])[:, :, 0], expected, atol=1e-6)
    for name in ("energy", "error_bound", "score"):
        found = getattr(two, name)(x[:, :, None], z[:, :, None])
        assert torch.allclose(
            found.reshape(getattr(one, name)(x, z).shape), getattr(one, name)(x, z)
        )
    starts = points(4, seed=3).reshape(4, 1, 1, 2)
    found = two.stationary_points(z[:, :, None], starts[..., None, :])
    assert found.x.shape == (4, 2, 3, 1, 2)
    assert found.residual.shape == (4, 2, 3)
    assert torch.allclose(
        two.mode(z[:, :, None], starts[..., None, :])[:, :, 0], one.inverse(z), atol=1e-5
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", OPERATORS)
def test_the_certificate_bounds_the_slopes(name, seed):
    source = torch.Generator().manual_seed(seed)
    block = LipschitzDense(2, (16,), generator=source).double()
    net = InvertibleResNet(block, lipschitz=0.8, scale=0.9).requires_grad_(False)
    learned = LearnedPosterior(net, LinearProblem(OPERATORS[name], 0.4), trained_at=0.3)
    x, other = points(2000, seed).split(1000)
    rise = learned.forward_map(x) - learned.forward_map(other)
    slope = (rise * (x - other)).sum(1) / (x - other).square().sum(1)
    assert (slope >= learned.monotonicity - 1e-12).all()


def test_the_certificate_and_its_bound_are_attained_by_a_dilation():
    net = InvertibleResNet(Affine(torch.eye(2, dtype=DOUBLE)), lipschitz=0.8, scale=2.0)
    problem = LinearProblem(torch.diag(torch.tensor([1.0, 0.9], dtype=DOUBLE)), noise_std=0.3)
    learned = LearnedPosterior(net, problem, trained_at=0.4)
    assert concavity_defect(net) == pytest.approx(1 - 2.0 * 0.2)
    assert learned.monotonicity == pytest.approx(0.81 - 0.5625 * 0.6)
    z, along = points(5), torch.tensor([0.0, 1.0], dtype=DOUBLE)
    found = learned.inverse(z, tol=1e-12)
    away = found + 0.3 * along
    assert torch.allclose(learned.error_bound(away, z), torch.full((5,), 0.3, dtype=DOUBLE))
    assert (learned.error_bound(found + 0.3, z) > 0.3 * 2**0.5).all()


def test_a_picture_gets_no_certificate_from_its_operator():
    """Beyond 1024 unknowns the least eigenvalue, here one, is not computed."""
    source = torch.Generator().manual_seed(1)
    net = InvertibleResNet(Ridge((1, None, None), 2, 3, generator=source), lipschitz=0.9)
    small, large = (LinearProblem(torch.clone, 0.3, shape=(1, 32, n)) for n in (32, 33))
    found = [LearnedPosterior(net, each, trained_at=0.3).monotonicity for each in (small, large)]
    assert found == pytest.approx([1 - concavity_defect(net), -concavity_defect(net)])


def test_the_inverse_keeps_its_tolerance_and_refuses_without_a_certificate():
    source = torch.Generator().manual_seed(1)
    net = InvertibleResNet(LipschitzDense(2, (32,), generator=source).double(), lipschitz=0.95)
    problem = LinearProblem(torch.diag(torch.tensor([2.0, 1.0], dtype=DOUBLE)), noise_std=0.1)
    learned, z = LearnedPosterior(net, problem, trained_at=0.2), points(50)
    sharp = learned.stationary_points(z, z, tol=1e-12).x
    for tol in (1e-2, 1e-5):
        assert (learned.inverse(z, tol) - sharp).norm(dim=1).max() <= tol
    weak = LinearProblem(torch.diag(torch.tensor([2.0, 0.3], dtype=DOUBLE)), noise_std=0.1)
    refused = LearnedPosterior(net, weak, trained_at=0.2)
    for call in (refused.inverse, lambda z: refused.error_bound(z, z)):
        with pytest.raises(ValueError, match=r"problem .* is 0\.09, and t κ = 0\.2"):
            call(z)


def test_the_energy_is_the_integral_of_the_field():
    problem = LinearProblem(torch.tensor([[0.7, 0.2]], dtype=DOUBLE), noise_std=0.5)
    learned, z = LearnedPosterior(wells(), problem, trained_at=0.5), points(6, seed=4)
    x = points(6).requires_grad_()
    (slope,) = torch.autograd.grad(learned.energy(x, z, origin=points(1, seed=9)[0]).sum(), x)
    assert torch.allclose(slope, learned.forward_map(x.detach()) - z, atol=1e-6)
    x = x.detach()
    there, back = learned.energy(x, z, origin=z), learned.energy(z, z, origin=x)
    assert torch.allclose(there, -back, atol=1e-9)
    assert (learned.energy(z, z, origin=z) == 0).all()
    middle = ((learned.forward_map(x / 2) - z) * x).sum(1)  # the rule with one node
    assert torch.allclose(learned.energy(x, z, nodes=1), middle)


def test_the_search_leaves_a_saddle_and_the_energy_chooses_the_mode():
    problem = LinearProblem(torch.tensor([[0.3, 0.0]], dtype=DOUBLE), noise_std=0.5)
    learned = LearnedPosterior(wells(), problem, trained_at=0.5)
    z = torch.tensor([[0.02, 0.0], [-0.02, 0.0]], dtype=DOUBLE)
    saddle = learned.stationary_points(0 * z, 0 * z)
    assert not saddle.is_mode.any()
    assert (saddle.x == 0).all()
    starts = torch.tensor([[[-1.5, 1e-3]], [[1.5, 1e-3]], [[1e-3, 0.0]]], dtype=DOUBLE)
    found = learned.stationary_points(z, starts)
    assert found.is_mode[:2].all()
    assert found.residual.max() < 1e-9
    assert (found.x[0, :, 0] < -1).all()
    assert (found.x[1, :, 0] > 1).all()
    assert (found.x[:2, :, 1] > 1).all()  # from beside the ridge into the well
    best = learned.mode(z, starts[:2])
    assert (best[:, 0].sign() == z[:, 0].sign()).all()
    assert torch.equal(learned.mode(z, starts[:2].flip(0)), best)


def test_a_search_that_misses_counts_only_where_it_came_lowest():
    problem = LinearProblem(torch.tensor([[0.3, 0.0]], dtype=DOUBLE), noise_std=0.5)
    learned = LearnedPosterior(wells(), problem, trained_at=0.5)
    z = torch.tensor([[0.02, 0.0]], dtype=DOUBLE)
    sides = torch.tensor([[[-1.5, 1.5]], [[1.5, 1.5]]], dtype=DOUBLE)
    high, low = learned.stationary_points(z, sides).x
    coarse = learned.stationary_points(z, sides[1], tol=0.1).x
    assert torch.equal(learned.mode(z, sides[1:], tol=0.1), coarse)
    assert (coarse - low).norm() > 1e-6
    far, near = high - 30, low - 0.7
    assert torch.equal(learned.mode(z, torch.stack([far, low]), max_steps=1), low)
    with pytest.raises(NotConverged) as caught:  # the answer is not the other well's
        learned.mode(z, torch.stack([high, near]), max_steps=1)
    left = caught.value.point
    assert left.shape == z.shape
    assert 0 < (left - low).norm() < 0.4  # one step, and one step more
    torch.testing.assert_close(learned.mode(z, torch.stack([high, near]), max_steps=2), low)


def test_energies_are_compared_from_a_solution_where_a_search_misses(monkeypatch):
    learned = LearnedPosterior(wells(), LinearProblem(OPERATORS["square"], 0.5), trained_at=0.5)
    z, seen, energy = points(3), [], LearnedPosterior.energy

    def spying(self, *points, origin):
        seen.append(origin)
        return energy(self, *points, origin=origin)

    monkeypatch.setattr(LearnedPosterior, "energy", spying)
    found = learned.mode(z, torch.ones(1, 1, 2, dtype=DOUBLE))
    far = torch.full_like(found, 99.0)
    for starts in ([far, found], [found, far]):
        assert torch.equal(learned.mode(z, torch.stack(starts), max_steps=1), found)
        assert torch.equal(seen[-1], found)


def test_newton_alone_would_leap_over_and_over():
    """F = x / √(1 + x²): Newton's step from 3 leads to −27."""

    def field(x: Tensor, _rows: Tensor) -> Tensor:
        return x / (1 + x**2).sqrt()

    def with_jacobian(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return field(x, rows), ((1 + x**2) ** -1.5)[..., None]

    start = torch.tensor([[3.0], [-0.1], [40.0]], dtype=DOUBLE)
    found = descend(field, newton(with_jacobian), start, longest=1e9, tol=None, max_steps=60)
    assert found.abs().max() < 1e-9
    seen = []

    def spying(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(x)
        return with_jacobian(x, rows)

    descend(field, newton(spying), start[2:], longest=0.5, tol=None, max_steps=200)
    steps = torch.stack(seen).diff(dim=0).abs()
    assert steps.max() == pytest.approx(0.5)
    assert len(seen) > 75


def test_a_search_that_runs_away_or_is_cut_short_says_so():
    net = InvertibleResNet(Affine(torch.eye(2, dtype=DOUBLE)), lipschitz=0.9, scale=1.0)
    problem = LinearProblem(torch.tensor([[1.0, 0.0]], dtype=DOUBLE), noise_std=0.5)
    learned, z = LearnedPosterior(net, problem, trained_at=0.5), points(4)
    with pytest.raises(NotConverged, match="4 of 4 searches") as failure:
        learned.stationary_points(z, z + 1, max_steps=3)
    assert failure.value.point.shape == z.shape
    assert failure.value.steps == 3
    assert failure.value.bound > 0.01


@pytest.mark.parametrize("gamma", [0.1, 1.0, 3.0])
def test_the_proximal_map_of_every_step_is_a_denoiser(gamma):
    net, prior = gaussian_network()
    v = points(6).reshape(2, 3, 2)
    denoise = LinearProblem(torch.eye(2, dtype=DOUBLE), noise_std=LEVEL * gamma**0.5)
    found = proximal(net=net, v=v, step=gamma, tol=1e-10)
    assert torch.allclose(found, posterior(prior, denoise, v).mean, atol=1e-9)
    learned = LearnedPosterior(net, denoise, trained_at=LEVEL)
    assert torch.allclose(learned.inverse(v, tol=1e-10), found, atol=1e-9)
    assert proximal(gaussian_network((1, 2))[0], v[:, :, None], gamma).shape == (2, 3, 1, 2)


def test_the_proximal_map_stretches_as_far_as_it_may_and_ends_at_its_limit():
    net = InvertibleResNet(Affine(torch.eye(2, dtype=DOUBLE)), lipschitz=0.9, scale=2.0)
    v, defect = points(4), 0.8
    for gamma in (0.5, 1.2):
        assert torch.allclose(proximal(net, v, gamma, tol=1e-9), v / (1 - gamma * defect))
    with pytest.raises(ValueError, match=r"step must be below 1 / κ = 1\.25"):
        proximal(net, v, 1.25 + 1e-9)
    deep = InvertibleResNet(LipschitzDense(2, (16,)).double(), lipschitz=0.9, scale=0.9)
    one = proximal(deep, v, 0.7, tol=1e-9)
    assert torch.allclose(0.3 * one + 0.7 * deep(one), v, atol=1e-8)


def test_wrong_arguments_are_named():
    net, _ = gaussian_network()
    problem = LinearProblem(OPERATORS["square"], noise_std=0.3)
    two = InvertibleResNet.dense(2, blocks=2).double()
    with pytest.raises(ValueError, match="net must have one block, got 2"):
        LearnedPosterior(two, problem, trained_at=0.5)
    with pytest.raises(ValueError, match="net must have one block"):
        proximal(two, points(2), 0.5)
    with pytest.raises(ValueError, match="trained_at"):
        LearnedPosterior(net, problem, trained_at=0.0)
    with pytest.raises(ValueError, match="problem must be a LinearProblem"):
        LearnedPosterior(net, OPERATORS["square"], trained_at=0.5)
    with pytest.raises(ValueError, match="problem must have dtype"):
        LearnedPosterior(net, LinearProblem(torch.eye(2), 0.3), trained_at=0.5)
    with pytest.raises(ValueError, match="problem must have shape"):
        LearnedPosterior(net, LinearProblem(torch.eye(3, dtype=DOUBLE), 0.3), trained_at=0.5)
    learned = LearnedPosterior(net, problem, trained_at=0.5)
    with pytest.raises(ValueError, match="z must have shape"):
        learned.inverse(points(2, dim=3))
    for call in (learned.score, learned.energy, learned.error_bound):
        with pytest.raises(ValueError, match="x must have shape"):
            call(points(2, dim=3), points(2))
        with pytest.raises(ValueError, match="x must be finite"):
            call(points(2) * torch.nan, points(2))
    with pytest.raises(ValueError, match="z must be finite"):
        learned.score(points(2), torch.full((2, 2), torch.nan, dtype=DOUBLE))
    with pytest.raises(ValueError, match="starts must have shape"):
        learned.stationary_points(points(2), points(2, dim=1))
    with pytest.raises(ValueError, match="tol"):
        learned.stationary_points(points(2), points(2), tol=0.0)
    for starts in (points(2), points(1)[0]):  # whose energies would be those of different data
        with pytest.raises(ValueError, match="starts must have one axis more than z"):
            learned.mode(points(2), starts)
    with pytest.raises(ValueError, match="step"):
        proximal(net, points(2), -1.0)
    with pytest.raises(ValueError, match="net must be an InvertibleResNet"):
        concavity_defect(torch.nn.Identity())
    with pytest.raises(ValueError, match="v must have shape"):
        proximal(net, points(2, dim=3), 0.5)
    assert repr(learned).startswith("LearnedPosterior(LinearProblem((2,)")


def test_answers_can_be_differentiated_in_the_data():
    source = torch.Generator().manual_seed(3)
    net = InvertibleResNet(LipschitzDense(2, (16,), generator=source).double(), lipschitz=0.9)
    problem = LinearProblem(torch.diag(torch.tensor([2.0, 1.0], dtype=DOUBLE)), noise_std=0.1)
    learned, z = LearnedPosterior(net, problem, trained_at=0.2), points(1)
    slope = torch.autograd.functional.jacobian(lambda z: learned.inverse(z, 1e-10), z)[0, :, 0]
    wanted = learned.with_jacobian(learned.inverse(z, 1e-10))[1][0].inverse()
    assert torch.allclose(slope, wanted, atol=1e-8)
    with torch.inference_mode():  # what it keeps must not be of this mode
        other = LearnedPosterior(net, problem, trained_at=0.2)
        assert other.monotonicity > 0
    assert other.inverse(z.clone().requires_grad_()).requires_grad
    slope = torch.autograd.functional.jacobian(lambda v: proximal(net, v, 0.4, tol=1e-10), z)
    whole = 0.6 * torch.eye(2) + 0.4 * net.jacobian(proximal(net, z, 0.4, tol=1e-10))[0]
    assert torch.allclose(slope[0, :, 0], whole.inverse(), atol=1e-8)


def test_the_work_of_a_step_is_exact_for_polynomials_of_degree_nine():
    x, step = (
        torch.tensor([[0.3], [-1.2]], dtype=DOUBLE),
        torch.tensor([[0.9], [1.1]], dtype=DOUBLE),
    )
    work = _work(lambda x, _rows: 10 * x**9, x, torch.arange(2), step)
    assert torch.allclose(work, ((x + step) ** 10 - x**10)[:, 0], rtol=1e-12)


def test_outside_of_a_valley_the_step_follows_the_sizes_of_the_curvatures():
    value = torch.tensor([[1.0, 1.0], [1.0, -2.0]], dtype=DOUBLE)
    matrices = torch.diag_embed(torch.tensor([[4.0, -1e-9], [-2.0, 0.5]], dtype=DOUBLE))
    wanted = torch.tensor([[-0.25, -250.0], [-0.5, 4.0]], dtype=DOUBLE)
    assert torch.allclose(_downhill(value, matrices), wanted)


def test_one_point_may_meet_many_data_and_many_points_one_datum():
    problem = LinearProblem(torch.tensor([[0.7, 0.2]], dtype=DOUBLE), noise_std=0.5)
    learned = LearnedPosterior(wells(), problem, trained_at=0.5)
    x, z = points(1)[0], points(12, seed=4).reshape(3, 4, 2)
    start, nowhere = points(3, seed=5)[:, None], torch.zeros(2, dtype=DOUBLE)
    for parts in ((x, z, nowhere), (z, x, nowhere), (x, z, start), (x, x, start)):
        first, second, origin = torch.broadcast_tensors(*parts)
        whole = learned.energy(first, second, origin=origin)
        found = learned.energy(*parts[:2], origin=parts[2])
        assert torch.allclose(found, whole, atol=1e-12)
    assert torch.equal(learned.energy(x, z), learned.energy(x, z, origin=nowhere))
    certain = LearnedPosterior(
        gaussian_network()[0], LinearProblem(OPERATORS["square"], noise_std=0.3), trained_at=LEVEL
    )
    assert torch.allclose(certain.error_bound(x, z), certain.error_bound(x.expand(z.shape), z))
    assert torch.allclose(certain.error_bound(z, x), certain.error_bound(z, x.expand(z.shape)))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_kernel_is_no_information_whatever_rounding_makes_of_it(dtype):
    """A*A's zero is rounded to a positive number about half the time."""
    net = InvertibleResNet.dense(6, lipschitz=0.9).to(dtype)
    for seed in range(20):
        source = torch.Generator().manual_seed(seed)
        wide = torch.randn(5, 6, generator=source, dtype=dtype)
        tall = torch.cat([wide, wide.mean(0, keepdim=True), wide[:2]])
        turned = LinearProblem(lambda x, tall=tall: x @ tall.mT, 1e-4, shape=(6,), dtype=dtype)
        for problem in (LinearProblem(wide, 1e-4), LinearProblem(tall, 1e-4), turned):
            learned = LearnedPosterior(net, problem, trained_at=1.0)
            assert learned.monotonicity == -learned.ratio * concavity_defect(net)


def test_the_certificate_of_a_single_precision_operator_is_sharp():
    net = InvertibleResNet.dense(4, lipschitz=0.5, generator=torch.Generator().manual_seed(0))
    axes = torch.linalg.qr(torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0)))[0]
    matrix = axes[0] @ torch.diag(torch.tensor([1.0, 0.5, 0.2, 1e-3])) @ axes[1]
    learned = LearnedPosterior(net, LinearProblem(matrix, 1e-4), trained_at=1.0)
    least = torch.linalg.svdvals(matrix.double())[-1].item() ** 2
    assert learned.monotonicity == pytest.approx(least - 1e-8 * concavity_defect(net), rel=1e-10)


@pytest.mark.parametrize("ratio", [1e-4, 1e-9, 1e-14])
def test_small_noise_leaves_a_contraction_above_zero(ratio):
    """1 − μ / λ would be rounding, of any sign."""
    source = torch.Generator().manual_seed(0)
    net = InvertibleResNet.dense(8, lipschitz=0.5, scale=1.5, generator=source)
    for _ in range(10):
        matrix = torch.randn(12, 8, generator=source)
        learned = LearnedPosterior(net, LinearProblem(matrix, ratio**0.5), trained_at=1.0)
        x = learned.inverse(torch.ones(8))
        exact = torch.linalg.solve(matrix.double().mT @ matrix.double(), torch.ones(8).double())
        assert (x - exact).norm() < (1e-4 + 20 * ratio) * exact.norm()
        step = proximal(net, torch.ones(8), ratio)
        assert torch.allclose(step, torch.ones(8), atol=1e-5 + 10 * ratio)


def test_the_contraction_is_that_of_the_difference():
    for scale, gamma in ((0.9, 0.7), (2.0, 1.2), (1.5, 0.01)):
        net = InvertibleResNet(Affine(torch.eye(2, dtype=DOUBLE)), lipschitz=0.8, scale=scale)
        whole, slope = 1 - gamma + gamma * scale, 1 - gamma * concavity_defect(net)
        assert contraction(net, gamma, slope) == pytest.approx(1 - slope / whole, rel=1e-12)


def test_a_block_that_does_nothing_is_no_obstacle():
    still = InvertibleResNet(Affine(torch.zeros(2, 2, dtype=DOUBLE)), lipschitz=0.8, scale=1.5)
    v = points(3)
    assert torch.allclose(proximal(still, v, 0.5), v / 1.25)


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 1e-3), (DOUBLE, 1e-6)])
def test_an_inverse_that_rounding_keeps_from_its_tolerance_says_so(dtype, least):
    source = torch.Generator().manual_seed(0)
    net = InvertibleResNet.dense(4, lipschitz=0.5, scale=1.5, generator=source).to(dtype)
    axes = torch.linalg.qr(torch.randn(2, 4, 4, generator=source, dtype=DOUBLE))[0].to(dtype)
    matrix = axes[0] @ torch.diag(torch.tensor([1.0, 0.5, 0.2, least], dtype=dtype)) @ axes[1]
    learned = LearnedPosterior(net, LinearProblem(matrix, least / 2), trained_at=1.0)
    x = torch.randn(5, 4, generator=source, dtype=dtype)
    z = learned.forward_map(x).detach()
    with pytest.raises(NotConverged, match=r"largest slope is 1\.\de\+(06|12) times") as told:
        learned.inverse(z, 1e-6)
    error = (told.value.point - x).norm(dim=-1).max().item()
    assert told.value.point.shape == z.shape
    assert 1e-6 < error < 4 * told.value.bound
    assert (learned.inverse(z) - x).norm(dim=-1).max() < 1  # by default what rounding allows
    assert (learned.inverse(z, 1.0) - x).norm(dim=-1).max() < 1
    alone = learned.inverse(z[0], 1.0)
    assert torch.allclose(alone, learned.inverse(z, 1.0)[0], atol=0.5)


@pytest.mark.parametrize("tol", [1e-4, 1e-2])
def test_a_tolerance_is_kept_or_refused_also_where_the_residual_rounds_to_zero(tol):
    """An operator with the condition 1000, in single precision; the truth in double."""
    for seed in range(20):
        source = torch.Generator().manual_seed(seed)
        net = InvertibleResNet.dense(2, (8,), lipschitz=0.5, scale=1.5, generator=source)
        axes = torch.linalg.qr(torch.randn(2, 2, 2, generator=source))[0]
        problem = LinearProblem(axes[0] @ torch.diag(torch.tensor([1.0, 1e-3])) @ axes[1], 5e-4)
        learned = LearnedPosterior(net, problem, trained_at=1.0)
        z, found = learned.forward_map(torch.randn(8, 2, generator=source)).detach(), {}
        for row, point in enumerate(z):
            with contextlib.suppress(NotConverged, ValueError):
                found[row] = learned.inverse(point, tol).detach().double()
        exact = LearnedPosterior(net.double(), problem.to(dtype=DOUBLE), trained_at=1.0)
        truth = exact.inverse(z.double(), 1e-7)
        assert all((x - truth[row]).norm() <= tol for row, x in found.items())


def test_no_data_have_no_answers():
    net, _ = gaussian_network((1, 2))
    problem = LinearProblem(torch.clone, noise_std=0.3, shape=(1, 2), dtype=DOUBLE)
    learned = LearnedPosterior(net, problem, trained_at=LEVEL)
    none = torch.zeros(0, 1, 2, dtype=DOUBLE)
    found = learned.stationary_points(none, none)
    assert [part.shape for part in found] == [(0, 1, 2), (0,), (0,)]
    assert learned.inverse(none).shape == learned.mode(none, none[None]).shape == none.shape


def test_autocast_changes_no_answer():
    source = torch.Generator().manual_seed(2)
    net = InvertibleResNet.dense(3, lipschitz=0.8, scale=2.0, generator=source)
    learned = LearnedPosterior(net, LinearProblem(torch.eye(3), 0.3), trained_at=0.5)
    z = torch.randn(4, 3, generator=source)
    calls = (
        learned.inverse,
        learned.forward_map,
        lambda z: learned.energy(z, z),
        lambda z: learned.stationary_points(z, z).x,
        lambda z: learned.error_bound(z + 1, z),
        lambda z: learned.with_jacobian(z)[0],
        lambda z: proximal(net, v=z, step=0.5),
        lambda z: learned.inverse(z=z),
    )
    for call in calls:
        plain = call(z)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(call(z), plain)


def test_the_inverse_can_be_differentiated_in_the_operator_and_the_parameters():
    source = torch.Generator().manual_seed(3)
    net = InvertibleResNet(LipschitzDense(2, (16,), generator=source).double(), lipschitz=0.8)
    matrix = torch.tensor([[2.0, 0.3], [-0.2, 1.0]], dtype=DOUBLE, requires_grad=True)
    learned = LearnedPosterior(net, LinearProblem(matrix, 0.1), trained_at=0.2)
    x, weight = learned.inverse(points(3), 1e-12), points(3, seed=1)
    inputs = [matrix, *net.parameters()]
    found = torch.autograd.grad(x, inputs, weight, retain_graph=True)
    pulled = torch.linalg.solve(learned.with_jacobian(x)[1].mT, weight[..., None])[..., 0]
    value = learned.forward_map(x.detach())
    for one, other in zip(found, torch.autograd.grad(value, inputs, -pulled.detach()), strict=True):
        assert torch.allclose(one, other, atol=1e-8)
