"""The invertible network: round trips with a guarantee, and exact derivatives."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize_scalar

from invbayes.networks.blocks import Block
from invbayes.networks.contraction import fixed_point
from invbayes.networks.iresnet import InvertibleResNet
from tests.conftest import jacobian_of

SHAPES = pytest.mark.parametrize(
    ("dim", "hidden", "blocks"), [(1, (8,), 1), (2, (8, 8), 1), (2, (8, 8), 3), (5, (9, 7, 8), 2)]
)


def make(dim=2, hidden=(8, 8), blocks=1, lipschitz=0.9, dtype=torch.float64, **options):
    generator = torch.Generator().manual_seed(3)
    net = InvertibleResNet.dense(dim, hidden, blocks, lipschitz, generator=generator, **options)
    return net.to(dtype)


@SHAPES
@pytest.mark.parametrize("lipschitz", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("tol", [1e-3, 1e-6])
def test_the_inverse_is_within_its_tolerance(dim, hidden, blocks, lipschitz, tol, generator):
    net = make(dim, hidden, blocks, lipschitz, scale=0.7)
    x = 2 * torch.randn(100, dim, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        assert (net.inverse(net(x), tol=tol) - x).norm(dim=1).max() <= tol


def test_the_tolerance_is_split_so_that_the_blocks_errors_add_up_to_it(monkeypatch):
    """An error t of a block grows to at most t / (1 − L) in each block inverted after it."""
    shares = []

    def recorded(_, z, __, goal, **_options):
        shares.append(goal.tol * goal.share / (1 - goal.lipschitz) ** (2 - len(shares)))
        return z

    monkeypatch.setattr("invbayes.networks.inversion.solve", recorded)
    make(blocks=3).inverse(torch.zeros(1, 2, dtype=torch.float64), tol=1e-4)
    assert sum(shares) == pytest.approx(1e-4)


@SHAPES
def test_a_start_saves_steps_and_changes_nothing(dim, hidden, blocks, generator, monkeypatch):
    """From the solution itself, each block's solver finds nothing to do."""
    net = make(dim, hidden, blocks, scale=1.7).requires_grad_(False)
    x = torch.randn(20, dim, generator=generator, dtype=torch.float64)
    z = net(x)
    far = net.inverse(z, 1e-8, start=x + 1)
    assert (far - x).norm(dim=-1).max() <= 1e-8
    made = "invbayes.networks.steps.Steps.advance"
    monkeypatch.setattr(made, lambda *_: pytest.fail("a step was made"))
    assert (net.inverse(z, 1e-8, start=x) - x).norm(dim=-1).max() <= 1e-8


@SHAPES
def test_derivatives_agree_with_autograd(dim, hidden, blocks, generator):
    net = make(dim, hidden, blocks, scale=1.7)
    x = torch.randn(20, dim, generator=generator, dtype=torch.float64)
    expected = jacobian_of(net, x)
    torch.testing.assert_close(net.jacobian(x), expected, rtol=1e-11, atol=1e-12)
    trace = expected.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(net.divergence(x), trace, rtol=1e-11, atol=1e-12)
    log_det = torch.linalg.slogdet(expected).logabsdet
    torch.testing.assert_close(net.log_abs_det(x), log_det, rtol=1e-10, atol=1e-11)
    for together in (net.with_jacobian, net.with_divergence, net.with_log_abs_det):
        torch.testing.assert_close(together(x)[0], net(x))


@SHAPES
def test_distances_obey_the_certified_bounds(dim, hidden, blocks, generator):
    net = make(dim, hidden, blocks, lipschitz=0.8, scale=1.5)
    x, y = 2 * torch.randn(2, 5000, dim, generator=generator, dtype=torch.float64)
    ratio = (net(x) - net(y)).norm(dim=1) / (x - y).norm(dim=1)
    assert ratio.max() <= 1.5 * 1.8**blocks * (1 + 1e-10)
    assert ratio.min() >= 1.5 * 0.2**blocks * (1 - 1e-10)
    assert net.lipschitz_bound() <= 0.8


@pytest.mark.parametrize("ratio", [1.01, 5.0, 199.0])
def test_a_block_holds_every_map_with_symmetric_jacobians_of_its_ratio(ratio, generator):
    """For φ(x) = μ₋ x + B* tanh(B x) + 1, Dφ is largest at x = 0 and smallest far out."""
    bend = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    least = torch.linalg.matrix_norm(bend, 2).square() / (ratio - 1)
    scale, lipschitz = least * (1 + ratio) / 2, (ratio - 1) / (ratio + 1)

    def phi(x):
        return least * x + torch.tanh(x @ bend.mT) @ bend + 1

    def with_jacobian(x):
        slopes = 1 - torch.tanh(x @ bend.mT) ** 2
        jacobian = least * torch.eye(3) + bend.mT @ (slopes[..., None] * bend)
        return x - phi(x) / scale, torch.eye(3) - jacobian / scale

    x = 2 * torch.randn(200, 3, generator=generator, dtype=torch.float64)
    points = torch.cat([torch.zeros(1, 3).double(), torch.full((1, 3), 100.0).double(), x])
    norms = torch.linalg.matrix_norm(jacobian_of(lambda p: p - phi(p) / scale, points), 2)
    assert norms.max() <= lipschitz * (1 + 1e-12)
    torch.testing.assert_close(norms[:2], torch.full_like(norms[:2], lipschitz))
    found = fixed_point(
        lambda p: p - phi(p) / scale,
        phi(x) / scale,
        lipschitz=lipschitz,
        tol=1e-8,
        with_jacobian=with_jacobian,
    )
    assert (found - x).norm(dim=1).max() <= 1e-8


class Identity(Block):
    shape = (2,)

    def forward(self, x):
        return x

    def lipschitz_bound(self):
        return 1.0


@pytest.mark.parametrize("linear", [True, False])
def test_the_inverse_misses_least_squares_by_the_forward_error_there(linear, generator):
    """|φ⁻¹(A*y) - A⁺y| ≤ |φ(x̂) - A*A x̂| / (c (1 - L)) at x̂ = A⁺y; attained by φ = c (1 - L) Id."""
    operator = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    y = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    found = y @ torch.linalg.pinv(operator).mT
    net = make(scale=0.7, lipschitz=0.8)
    if linear:
        net = InvertibleResNet(Identity(), lipschitz=0.8, scale=0.7).double()
    with torch.no_grad():
        missed = (net.inverse(y @ operator, tol=1e-10) - found).norm(dim=1)
        forward = (net(found) - found @ operator.mT @ operator).norm(dim=1)
    bound = forward / (0.7 * (1 - 0.8))
    assert (missed <= bound * (1 + 1e-8)).all()
    assert not linear or torch.allclose(missed, bound)


def test_the_reach_of_a_block_is_the_least_norm_over_all_scales(generator):
    """The smallest ‖I − S/c‖ is (λ_max − λ_min)/(λ_max + λ_min), at c = (λ_max + λ_min)/2."""
    factor = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    symmetric = factor @ factor.mT
    values = torch.linalg.eigvalsh(symmetric)
    least, most = values[0].item(), values[-1].item()

    def norm(scale):
        return torch.linalg.matrix_norm(torch.eye(4) - symmetric / scale, 2).item()

    options = {"method": "bounded", "options": {"xatol": 1e-8}}
    best = minimize_scalar(norm, bounds=(least, 2 * most), **options)
    assert best.fun == pytest.approx((most - least) / (most + least), rel=1e-8)
    assert best.x == pytest.approx((most + least) / 2, rel=1e-6)


def test_gradients_flow_through_the_inverse(generator):
    net = make(blocks=2)
    z = torch.randn(4, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    x = net.inverse(z, tol=1e-11)
    (gradient,) = torch.autograd.grad(x.sum(), z)
    inverse = torch.linalg.inv(net.jacobian(x.detach()))
    torch.testing.assert_close(gradient, inverse.sum(1), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    "name",
    [
        "log_scale",
        "blocks.0.layers.1.bias",
        "blocks.1.layers.0.bias",
        "blocks.0.layers.0.raw",
        "blocks.1.layers.1.raw",
    ],
)
def test_gradients_reach_every_parameter_through_the_inverse(name, generator):
    net = make(blocks=2)
    z = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    parameter = net.get_parameter(name)

    def loss():
        return net.inverse(z, tol=1e-11).square().sum()

    (gradient,) = torch.autograd.grad(loss(), parameter)
    entry = parameter.data.view(-1)
    entry[0] += 1e-5
    up = loss().item()
    entry[0] -= 2e-5
    down = loss().item()
    assert gradient.flatten()[0].item() == pytest.approx((up - down) / 2e-5, rel=1e-5, abs=1e-8)


def test_the_scale_can_be_fixed():
    assert make(learn_scale=False).log_scale.requires_grad is False
    assert make(scale=2.5).scale.item() == pytest.approx(2.5)
    assert make().log_scale.requires_grad


def test_a_map_with_a_known_inverse():
    """With a zero last layer f is constant, and the inverse a shift."""
    net = make(scale=2.0)
    with torch.no_grad():
        net.blocks[0].layers[-1].raw.zero_()
    shift = 0.9 * net.blocks[0].layers[-1].bias
    z = torch.tensor([[1.0, -3.0]], dtype=torch.float64)
    torch.testing.assert_close(net.inverse(z), z / 2 + shift, rtol=0, atol=1e-6)
    assert net.log_abs_det(z).item() == pytest.approx(2 * torch.tensor(2.0).log().item())
    assert net.divergence(z).item() == pytest.approx(4)


def test_single_precision(generator):
    net = make(dtype=torch.float32)
    x = torch.randn(50, 2, generator=generator)
    found = net.inverse(net(x), tol=1e-4)
    assert found.dtype == torch.float32
    assert (found - x).norm(dim=1).max() <= 1.1e-4  # the forward map rounds too


def test_a_state_travels_and_another_shape_is_refused(generator):
    net, copy = make(), make()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1)
    copy.load_state_dict(net.state_dict())
    x = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    assert torch.equal(net(x), copy(x))
    with pytest.raises(ValueError, match="state_dict belongs to another block"):
        make(hidden=(4, 4)).load_state_dict(net.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lipschitz": 1.0}, r"lipschitz must lie in \(0, 1\), got 1"),
        ({"lipschitz": -0.5}, r"lipschitz must lie in \(0, 1\), got -0.5"),
        ({"blocks": 0}, "blocks must be a positive int, got 0"),
        ({"hidden": (8, -1)}, "hidden must be a positive int, got -1"),
        ({"dim": 0}, "dim must be a positive int"),
        ({"scale": 0.0}, "scale must be finite and > 0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize("method", ["forward", "jacobian", "divergence", "log_abs_det", "inverse"])
def test_bad_points_are_named(method):
    call, name = getattr(make(), method), "z" if method == "inverse" else "x"
    with pytest.raises(ValueError, match=rf"{name} must have shape \(\*, 2\), got \(4, 3\)"):
        call(torch.zeros(4, 3, dtype=torch.float64))
    if method == "inverse":
        with pytest.raises(ValueError, match="z must be finite"):
            call(torch.full((4, 2), torch.nan, dtype=torch.float64))
    with pytest.raises(ValueError, match=f"{name} must have dtype torch.float64"):
        call(torch.zeros(4, 2))


def test_a_tolerance_out_of_reach_says_what_can_be_had():
    net = make(dtype=torch.float32)
    with pytest.raises(ValueError, match=r"tol must be at least .*torch.float32 can reach"):
        net.inverse(torch.ones(2, 2), tol=1e-9)
