"""A block as an argument: the whole machinery with blocks that the package does not know."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from invbayes import (
    Approximation,
    Block,
    Divergence,
    InvertibleResNet,
    LinearProblem,
    LipschitzDense,
    LogDeterminant,
    NotConverged,
    Reconstruction,
    fresh_noise,
    train,
)
from invbayes.networks.blocks import jacobian_by_rows
from tests.conftest import assert_mean_close
from tests.own_blocks import Convolutions, Smoothing, ThirdParty

SIZE = 4


def convolutional(lipschitz=0.9, count=1, **options):
    generator = torch.Generator().manual_seed(3)
    blocks = [Convolutions(generator=generator) for _ in range(count)]
    return InvertibleResNet(blocks, lipschitz=lipschitz, **options).double()


def third_party(lipschitz=0.9, count=1, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = [ThirdParty() for _ in range(count)]
    return InvertibleResNet(blocks, lipschitz=lipschitz, **options).double()


def points(net, n, generator):
    shape = [SIZE if s is None else s for s in net.shape]
    return torch.randn(n, *shape, generator=generator, dtype=torch.float64)


MAKERS = pytest.mark.parametrize("make", [convolutional, third_party])
COUNTS = pytest.mark.parametrize("count", [1, 2])


def dense_jacobian(net, x):
    """Column by column, by central differences: no differentiation at all."""
    d, columns = x[0].numel(), []
    for unit in torch.eye(d, dtype=x.dtype).reshape(d, *x.shape[1:]):
        columns.append((net(x + 1e-6 * unit) - net(x - 1e-6 * unit)).flatten(1) / 2e-6)
    return torch.stack(columns, -1)


@MAKERS
@COUNTS
def test_value_derivatives_and_inverse(make, count, generator):
    net = make(count=count, scale=1.7)
    x = points(net, 6, generator)
    expected = dense_jacobian(net, x)
    torch.testing.assert_close(net.jacobian(x), expected, rtol=1e-6, atol=1e-7)
    trace = expected.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(net.divergence(x), trace, rtol=1e-6, atol=1e-6)
    log_det = torch.linalg.slogdet(expected).logabsdet
    torch.testing.assert_close(net.log_abs_det(x), log_det, rtol=1e-6, atol=1e-6)
    for method in (None, "newton", "anderson", "plain"):
        with torch.no_grad():
            found = net.inverse(net(x), 1e-8, method=method)
        assert (found - x).flatten(1).norm(dim=1).max() <= 1e-8
    assert net.lipschitz_bound() <= 0.9 * (1 + 1e-12)


@MAKERS
@pytest.mark.parametrize("method", ["newton", "anderson", "plain"])
def test_the_implicit_gradient_reaches_data_and_parameters(make, method, generator):
    net = make(count=2)
    z = points(net, 3, generator).requires_grad_()
    weights = points(net, 3, generator)

    def loss(z):
        return (net.inverse(z, 1e-12, method=method) * weights).sum()

    some = [p for name, p in net.named_parameters() if name.endswith("bias")][:2]
    found = torch.autograd.grad(loss(z), [z, net.log_scale, *some])
    with torch.no_grad():
        direction = points(net, 3, generator)
        numeric = (loss(z + 1e-5 * direction) - loss(z - 1e-5 * direction)) / 2e-5
        along = (found[0] * direction).sum().item()
        assert along == pytest.approx(numeric.item(), rel=1e-6)
        for gradient, parameter in zip(found[1:], [net.log_scale, *some], strict=True):
            entry = parameter.data.view(-1)
            entry[0] += 1e-5
            up = loss(z).item()
            entry[0] -= 2e-5
            down = loss(z).item()
            entry[0] += 1e-5
            numeric = (up - down) / 2e-5
            assert gradient.flatten()[0].item() == pytest.approx(numeric, rel=1e-5, abs=1e-8)


@MAKERS
@pytest.mark.parametrize(
    "objective", [Approximation, LogDeterminant, Divergence, lambda _: Reconstruction(tol=1e-3)]
)
def test_every_training_lowers_its_loss(make, objective, generator):
    net = make()
    x = points(net, 64, generator)
    problem = LinearProblem(lambda x: 0.5 * x, 0.2, shape=x.shape[1:], dtype=torch.float64)
    sampler, loss = fresh_noise(x, problem), objective(problem)
    held_out = fresh_noise(x, problem)(64, generator)
    before = loss(net, *held_out).item()
    options = {"batch": 32, "optimizer": lambda p: torch.optim.Adam(p, lr=0.02)}
    record = train(net, loss, sampler, steps=30, generator=generator, **options)
    assert loss(net, *held_out).item() < before - 0.01
    assert record.lipschitz_bound <= 0.9 * (1 + 1e-12)


@MAKERS
def test_the_log_determinant_can_be_estimated(make, generator):
    net = make(count=2, lipschitz=0.5)
    x = points(net, 1, generator)
    many = x.expand(4000, *x.shape[1:])
    with torch.no_grad():
        exact = net.log_abs_det(x)
    found = net.estimate_log_abs_det(many, terms=4, roulette=0.6, generator=generator)
    assert_mean_close(found.value.detach()[:, None], exact)


def test_pictures_of_any_size_and_any_leading_axes(generator):
    net = convolutional()
    for size in ((5, 7), (12, 3)):
        x = torch.randn(2, 3, 1, *size, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            assert (net.inverse(net(x), 1e-7) - x).flatten(2).norm(dim=-1).max() <= 1e-7
        assert net.divergence(x).shape == (2, 3)
        assert net.jacobian(x).shape == (2, 3, size[0] * size[1], size[0] * size[1])
        assert torch.equal(net(x)[1, 2], net(x[1, 2]))
    with pytest.raises(ValueError, match=r"x must have shape \(\*, 1, any, any\), got \(2, 5, 5\)"):
        net(torch.zeros(2, 5, 5).double())


def test_one_pass_for_each_row_of_the_jacobian(generator):
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    value, jacobian = jacobian_by_rows(lambda x: x.flip(1) * x, x)
    expected = torch.diag_embed(x.flip(1)) + torch.diag_embed(x).flip(2)
    torch.testing.assert_close(jacobian, expected)
    assert torch.equal(value, x.flip(1) * x)


def test_ten_thousand_unknowns_without_a_jacobian(generator, monkeypatch):
    """Against the inverse by Fourier series, at L = .99; and three times fewer evaluations."""
    net = InvertibleResNet(Smoothing(), lipschitz=0.99).double()
    z = 1 + torch.randn(1, 1, 100, 100, generator=generator, dtype=torch.float64)
    unit = torch.zeros(1, 1, 100, 100).double()
    unit[..., 0, 0] = 1
    symbol = torch.fft.fft2(net(unit))
    exact = torch.fft.ifft2(torch.fft.fft2(z) / symbol).real
    calls = Counter()
    for method in ("anderson", "plain"):

        def counted(x, method=method, forward=net.blocks[0].forward):
            calls[method] += 1
            return forward(x)

        monkeypatch.setattr(net.blocks[0], "forward", counted)
        with torch.no_grad():
            found = net.inverse(z, 1e-4, method=method)
        monkeypatch.undo()
        assert (found - exact).norm() <= 1e-4
    assert calls["plain"] >= 3 * calls["anderson"]
    monkeypatch.setattr(Block, "with_jacobian", lambda *_: pytest.fail("a Jacobian was asked for"))
    x = net.inverse(z.requires_grad_(), 1e-4)
    (gradient,) = torch.autograd.grad(x.square().sum() / 2, z)
    adjoint = torch.fft.ifft2(torch.fft.fft2(x.detach()) / symbol.conj()).real
    assert (gradient - adjoint).norm() <= 1e-6 * adjoint.norm()


def test_what_is_no_block_is_refused():
    class Stretching(Smoothing):
        def lipschitz_bound(self):
            return 1.3

    dense = LipschitzDense(2)
    for blocks, message in [
        (torch.nn.Linear(2, 2), "blocks must be instances of Block, got Linear"),
        ([], "blocks must name at least one block"),
        ([dense, LipschitzDense(3)], r"blocks must share one shape, got \(2,\) and \(3,\)"),
        (Stretching(), r"blocks must have a Lipschitz bound of at most 1, got 1\.3"),
    ]:
        with pytest.raises(ValueError, match=message):
            InvertibleResNet(blocks)


def test_a_bound_that_training_breaks_is_refused(generator):
    class Scaled(Block):
        shape = (2,)

        def __init__(self):
            super().__init__()
            self.factor = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

        def lipschitz_bound(self):
            return abs(self.factor.item())

        def forward(self, x):
            return self.factor * x

    net = InvertibleResNet(Scaled(), lipschitz=0.9)
    x = torch.randn(32, 2, generator=generator, dtype=torch.float64)

    def loss(net, x, _):
        return (net(x) + 3 * x).square().mean()

    with pytest.raises(ValueError, match="net must keep a Lipschitz bound below 1 in training"):
        train(net, loss, lambda *_: (x, x), steps=60, average=0.0)


def test_a_false_bound_carries_the_point_reached(generator):
    class Liar(Smoothing):
        factor = 1.0

        def forward(self, x):
            return -self.factor * x

    net = InvertibleResNet([Liar(), Smoothing()], lipschitz=0.9)
    net.blocks[0].factor = 1.5  # a lie that cannot be seen when the network is made
    z = torch.randn(2, 1, 3, 3, generator=generator)
    with torch.no_grad(), pytest.raises(NotConverged, match="missed the tolerance") as caught:
        net.inverse(z, 1e-3, method="plain")
    assert caught.value.point.shape == z.shape
    residual = (net(caught.value.point) - z).flatten(1).norm(dim=1).max().item()
    assert caught.value.bound == pytest.approx(residual / 0.1**2, rel=1e-4)


@MAKERS
def test_no_points_are_no_failure(make, generator):
    net = make(count=2, lipschitz=0.5)
    none = points(net, 2, generator)[:0]
    size = none.shape[1:].numel()
    assert net.jacobian(none).shape == (0, size, size)
    assert net.inverse(none).shape == net(none).shape == none.shape
    assert net.divergence(none).shape == (0,)
    assert net.estimate_log_abs_det(none, terms=2, generator=generator).value.shape == (0,)


class Declared(Block):
    """A map that says of itself what it likes."""

    shape = (2,)

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)

    def lipschitz_bound(self):
        return 1.0


@pytest.mark.parametrize("f", [lambda x: 1.02 * x, lambda x: (5 * x).sin(), lambda x: -3 * x])
def test_a_bound_that_two_points_disprove_is_refused(f):
    with pytest.raises(
        ValueError, match="blocks must have a true Lipschitz bound; Declared says 1"
    ):
        InvertibleResNet(Declared(f))


@pytest.mark.parametrize("f", [lambda x: x.flip(-1), torch.sin, lambda x: -x])
def test_a_bound_that_is_attained_is_accepted(f):
    assert InvertibleResNet(Declared(f)).lipschitz_bound() <= 0.99


def test_a_block_without_a_shape_is_named():
    class Shapeless(Declared):
        shape = None

    with pytest.raises(
        ValueError, match="blocks must have a shape, a tuple, got none of Shapeless"
    ):
        InvertibleResNet(Shapeless(torch.sin))
