"""The ridge block: a gradient, 1-Lipschitz, with closed divergence, inverted by products alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invbayes import (
    Block,
    InvertibleResNet,
    LearnedPosterior,
    LinearProblem,
    LipschitzDense,
    NotConverged,
    Reconstruction,
    Ridge,
    WeaklyConvexRidge,
    line_integral,
    load_network,
    posterior_variance,
    save_network,
    train,
)
from invbayes.networks import inversion, steps

DOUBLE = torch.float64


def made(shape, filters, kernel=None, seed=0, spread=1.0, kind=Ridge, offsets=None):
    """A block with every parameter random, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    block = kind(shape, filters, kernel, offsets=offsets, generator=generator).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return block


def network(block, lipschitz=0.9, scale=1.3):
    return InvertibleResNet(block, lipschitz=lipschitz, scale=scale).double()


CASES = [
    ((5,), 7, None, (5,)),
    ((1, None, None), 4, 3, (1, 6, 5)),
    ((2, None, None), 3, 4, (2, 4, 5)),
]
EACH = pytest.mark.parametrize(("shape", "filters", "kernel", "size"), CASES)
KINDS = (Ridge, WeaklyConvexRidge)
EACH_KIND = pytest.mark.parametrize("kind", KINDS)


def dense_weight(block, size):
    """W as a matrix, entry by entry from the definition of a periodic correlation."""
    weight = block.weight.detach()
    if weight.ndim == 2:
        return weight
    (filters, channels, side, _), (_, height, width) = weight.shape, size
    matrix = torch.zeros(filters, height, width, channels, height, width, dtype=DOUBLE)
    before = (side - 1) // 2
    for f, c, i, j in itertools.product(*map(range, weight.shape)):
        for y, x in itertools.product(range(height), range(width)):
            place = (y + i - before) % height, (x + j - before) % width
            matrix[f, y, x, c, place[0], place[1]] += weight[f, c, i, j]
    return matrix.reshape(filters * height * width, -1)


def profile(kind, b, share, sharp):
    """σ(b) and σ'(b) as the docstrings write them, and γ."""
    b, pace = b.detach().requires_grad_(), share / 32
    saturated = b / (1 + (sharp * b) ** 2).sqrt()
    bent, gamma = (1 - share) * b + share * saturated, 1
    if kind is WeaklyConvexRidge:
        bent, gamma = saturated - pace * b / (1 + (pace * sharp * b) ** 2).sqrt(), 31 / 33
    return bent.detach(), torch.autograd.grad(bent.sum(), b)[0], gamma


@EACH
@EACH_KIND
def test_value_and_jacobian_are_those_of_the_equation(
    kind, shape, filters, kernel, size, generator
):
    block = made(shape, filters, kernel, kind=kind)
    x = torch.randn(3, *size, generator=generator, dtype=DOUBLE)
    matrix = dense_weight(block, size)
    repeats = len(matrix) // filters
    bias, share, sharp = (
        p.detach().flatten().repeat_interleave(repeats)
        for p in (block.bias, block.share_logit.sigmoid(), block.log_sharpness.exp())
    )
    b = x.flatten(1) @ matrix.mT + bias
    bent, slope, gamma = profile(kind, b, share, sharp)
    value = gamma * x.flatten(1) - (1 + gamma) * bent @ matrix
    inner = (matrix.mT * slope[:, None]) @ matrix
    jacobian = gamma * torch.eye(value.shape[1]).double() - (1 + gamma) * inner
    torch.testing.assert_close(block(x).flatten(1), value)
    torch.testing.assert_close(block.with_jacobian(x)[1], jacobian)
    torch.testing.assert_close(Block.with_jacobian(block, x)[1], jacobian)
    v = torch.randn(x.shape, generator=generator, dtype=DOUBLE)
    for linearised in (block.linearised, lambda x: Block.linearised(block, x)):
        product = linearised(x)
        torch.testing.assert_close(
            product(v).flatten(1), (jacobian @ v.flatten(1)[..., None])[..., 0]
        )


@EACH
@EACH_KIND
def test_the_divergence_is_the_trace_and_trains_as_it(
    kind, shape, filters, kernel, size, generator
):
    block = made(shape, filters, kernel, kind=kind)
    x = torch.randn(3, *size, generator=generator, dtype=DOUBLE)
    value, divergence = block.with_divergence(x)
    torch.testing.assert_close(value, block(x))
    expected = Block.with_divergence(block, x)[1]
    torch.testing.assert_close(divergence, expected, rtol=0, atol=1e-12)
    found = torch.autograd.grad(divergence.square().sum(), [*block.parameters()])
    slow = torch.autograd.grad(expected.square().sum(), [*block.parameters()])
    for a, b in zip(found, slow, strict=True):
        torch.testing.assert_close(a, b)


@given(
    seed=st.integers(0, 10_000),
    spread=st.floats(0.1, 5),
    case=st.sampled_from(CASES),
    kind=st.sampled_from(KINDS),
)
@settings(max_examples=60, deadline=None)
def test_it_never_stretches_whatever_the_parameters_are(seed, spread, case, kind):
    shape, filters, kernel, size = case
    block = made(shape, filters, kernel, seed, spread, kind)
    x = torch.randn(2, *size, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    curvatures = torch.linalg.eigvalsh(block.with_jacobian(x)[1])
    assert curvatures.abs().max() <= 1 + 1e-12
    assert torch.linalg.matrix_norm(dense_weight(block, size), 2) <= 1
    assert block.lipschitz_bound() == 1


@EACH
@EACH_KIND
def test_the_potential_has_the_value_as_gradient(kind, shape, filters, kernel, size, generator):
    net = network(made(shape, filters, kernel, kind=kind))
    x = torch.randn(3, *size, generator=generator, dtype=DOUBLE).requires_grad_()
    (gradient,) = torch.autograd.grad(net.potential(x).sum(), x)
    torch.testing.assert_close(gradient, net(x))
    start, end = torch.zeros(size, dtype=DOUBLE), 0.3 * x.detach()
    exact = line_integral(net, start, end)
    rule = (end.flatten(1) * torch.stack([net(t * end) for t in MIDDLES]).mean(0).flatten(1)).sum(1)
    torch.testing.assert_close(exact, rule, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(net.potential(x[0]), net.potential(x)[0])


MIDDLES = ((torch.arange(400) + 0.5) / 400).tolist()


def test_the_potential_keeps_its_digits_at_both_ends():
    """S(b) is a b²/2 for small b and |b| / s for large: no difference of nearly equal numbers."""
    block = Ridge((1,), 1, share=0.25, sharpness=2.0)
    with torch.no_grad():
        block.raw.fill_(1.0)
    for size in (1e-6, 1e6):
        x = torch.tensor([[size]])
        square = x.double() ** 2
        bent = (torch.sqrt(1 + 4 * square) - 1) / 4 if size > 1 else square / 2
        expected = square / 2 - 2 * (0.75 * square / 2 + 0.25 * bent)
        assert block.potential(x).item() == pytest.approx(expected.item(), rel=1e-4)


def test_only_one_block_that_is_a_gradient_has_a_potential():
    x = torch.zeros(1, 2)
    for blocks in (LipschitzDense(2), [Ridge((2,), 3), Ridge((2,), 3)]):
        with pytest.raises(ValueError, match="net must have one block, and that a gradient"):
            InvertibleResNet(blocks).potential(x)


def test_many_unknowns_are_inverted_without_a_jacobian(generator, monkeypatch):
    """By default; to the tolerance, as Anderson's method does; and in few steps."""
    net = network(made((1, None, None), 8, 5), lipschitz=0.99, scale=3.0)
    x = 3 * torch.randn(2, 1, 40, 33, generator=generator, dtype=DOUBLE)
    z, made_steps = net(x).detach(), []
    advance = steps.ConjugateSteps.advance

    def counted(self, points, lipschitz):
        made_steps.append(len(points.x))
        return advance(self, points, lipschitz)

    monkeypatch.setattr(steps.ConjugateSteps, "advance", counted)
    with torch.no_grad():
        found = net.inverse(z, 1e-6)
        assert 0 < len(made_steps) <= 20
        assert (found - x).flatten(1).norm(dim=1).max() <= 1e-6
        slow = net.inverse(z, 1e-6, method="anderson")
        assert (found - slow).flatten(1).norm(dim=1).max() <= 2e-6
    with pytest.raises(ValueError, match="'newton-cg' is for blocks that are gradients"):
        network(LipschitzDense(2)).inverse(torch.zeros(1, 2).double(), method="newton-cg")


def test_the_implicit_gradient_is_the_derivative(generator):
    net = network(made((1, None, None), 3, 3), lipschitz=0.95)
    z = torch.randn(2, 1, 12, 12, generator=generator, dtype=DOUBLE).requires_grad_()
    weights = torch.randn(z.shape, generator=generator, dtype=DOUBLE)

    def loss(z):
        return (net.inverse(z, 1e-11) * weights).sum()

    parameters = [z, net.log_scale, net.blocks[0].raw, net.blocks[0].log_sharpness]
    found = torch.autograd.grad(loss(z), parameters)
    with torch.no_grad():
        for gradient, parameter in zip(found, parameters, strict=True):
            direction = torch.randn(parameter.shape, generator=generator, dtype=DOUBLE)
            parameter.add_(1e-5 * direction)
            up = loss(z)
            parameter.sub_(2e-5 * direction)
            down = loss(z)
            parameter.add_(1e-5 * direction)
            numeric = ((up - down) / 2e-5).item()
            assert (gradient * direction).sum().item() == pytest.approx(numeric, rel=1e-5)


def test_variances_by_probes_are_those_of_the_jacobian(generator):
    net = network(made((1, None, None), 4, 3), lipschitz=0.8)
    problem = LinearProblem(lambda x: x, 0.7, shape=(1, 12, 12), dtype=DOUBLE)
    z = torch.randn(1, 1, 12, 12, generator=generator, dtype=DOUBLE)
    found = posterior_variance(net, problem, z, probes=400, tol=1e-8, generator=generator)
    exact = 0.49 * torch.linalg.inv(net.jacobian(found.mean))[0].detach()
    score = (found.total - exact.trace()) / found.total_error
    assert score.abs() < 4
    scores = (found.variance.flatten() - exact.diagonal()) / found.variance_error.flatten()
    assert scores.square().mean() == pytest.approx(1, abs=0.5)


def learned(size, dtype=DOUBLE):
    """Of a blur with a kernel, under a prior that is log-concave: c (1 − L) is 1.2."""
    net = network(made((1, None, None), 3, 3, spread=0.3), lipschitz=0.8, scale=6.0)
    problem = LinearProblem(lambda x: x + x.roll(1, -1), 0.5, shape=(1, *size), dtype=dtype)
    return LearnedPosterior(net, problem, trained_at=1.0)


def test_the_mode_is_found_without_a_jacobian(generator, monkeypatch):
    posterior = learned((5, 6))
    z = 3 * torch.randn(2, 1, 5, 6, generator=generator, dtype=DOUBLE)
    starts = torch.zeros(1, *z.shape, dtype=DOUBLE)
    expected = posterior.mode(z, starts, tol=1e-9)
    monkeypatch.setattr(inversion, "NEWTON_DIM", 3)
    monkeypatch.setattr(LearnedPosterior, "with_jacobian", None)
    found = posterior.mode(z, starts, tol=1e-9)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    assert (posterior.forward_map(found) - z).flatten(1).norm(dim=1).max() <= 1e-9
    with pytest.raises(NotConverged) as caught:
        posterior.mode(z, starts, tol=1e-9, max_steps=1)
    assert caught.value.point.shape == z.shape


@EACH_KIND
def test_it_is_saved_and_loaded(kind, tmp_path, generator):
    for offsets in (None, 1):
        net = network(made((2, None, None), 3, 4, kind=kind, offsets=offsets))
        save_network(net, tmp_path / "net.pt")
        x = torch.randn(2, 2, 6, 7, generator=generator, dtype=DOUBLE)
        assert torch.equal(load_network(tmp_path / "net.pt")(x), net(x))


@EACH_KIND
@pytest.mark.parametrize(
    ("shape", "kernel", "size"), [((5,), None, (5,)), ((1, None, None), 3, (1, 6, 5))]
)
def test_filters_without_an_offset_keep_none(kind, shape, kernel, size, generator):
    """The last ones, also after a training; without any the block is odd and its potential even."""

    def sampler(n, generator):
        x = 1 + 3 * torch.randn(n, *size, generator=generator, dtype=DOUBLE)
        return x, x + torch.randn(x.shape, generator=generator, dtype=DOUBLE)

    options = {"steps": 10, "batch": 4, "generator": generator, "progress": False}
    for offsets in (0, 2, 4):
        block = kind(shape, 4, kernel, offsets=offsets, generator=generator).double()
        train(network(block), Reconstruction(), sampler, **options)
        b = block.prepared().bias.detach().flatten()
        assert b.shape == (4,)
        assert (b[:offsets].abs() > 1e-3).all()
        assert (b[offsets:] == 0).all()
        x = torch.randn(3, *size, generator=generator, dtype=DOUBLE)
        odd = torch.allclose(block(-x), -block(x), rtol=1e-12)
        even = torch.allclose(block.potential(-x), block.potential(x), rtol=1e-12)
        assert odd == even == (offsets == 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((5,), 3, 3), "shape must be .channels, None, None. with kernel=3"),
        (((1, None, None), 3), "shape must be .d,. with kernel=None"),
        ((5, 3), "shape must be .d,. with kernel=None, got 5"),
        (((0,), 3), "shape must be a positive int, got 0"),
        (((1, None, "a"), 3, 3), "shape must be a positive int, got 'a'"),
        (((2,), 0), "filters must be a positive int, got 0"),
        (((1, None, None), 3, 0), "kernel must be a positive int, got 0"),
        (((2,), 3, None, 1.0), "share must lie in .0, 1., got 1.0"),
        (((2,), 3, None, 0.5, 0.0), "sharpness must be .*, got 0.0"),
        (((2,), 3, None, 0.5, 1.0, -1), "offsets must be an int of at least 0, got -1"),
        (((2,), 3, None, 0.5, 1.0, 4), "offsets must be at most filters=3, got 4"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    names = ("shape", "filters", "kernel", "share", "sharpness", "offsets")
    with pytest.raises(ValueError, match=message):
        Ridge(**dict(zip(names, arguments, strict=False)))


def test_a_picture_smaller_than_the_kernel_is_refused():
    with pytest.raises(ValueError, match="x must not be smaller than the kernel"):
        Ridge((1, None, None), 2, 5)(torch.zeros(1, 1, 4, 9))


@pytest.mark.parametrize("kind", [Ridge, WeaklyConvexRidge])
def test_a_block_takes_one_batch_axis(kind):
    for block, lead, wanted in (
        (kind((3,), 4), (2, 5), r"\(n, 3\), got \(2, 5, 3\)"),
        (kind((3,), 4), (), r"\(n, 3\), got \(3,\)"),
        (kind((1, None, None), 4, 3), (2, 5), r"\(n, 1, any, any\), got \(2, 5, 1, 6, 6\)"),
    ):
        x = torch.zeros(*lead, *(6 if size is None else size for size in block.shape))
        calls = (block.linearised, block.with_divergence, block.with_jacobian, block.potential)
        for call in (block, *calls):
            with pytest.raises(ValueError, match="x must have shape " + wanted):
                call(x)


def test_kernels_of_every_side_make_a_network():
    source = torch.Generator().manual_seed(0)
    net = InvertibleResNet(Ridge((1, None, None), 2, 66, generator=source), lipschitz=0.9)
    x = torch.rand(1, 1, 66, 70, generator=source)
    found = net.inverse(net(x), 1e-4)
    assert (found - x).norm() <= 2e-4


@pytest.mark.parametrize("size", [1e-10, 1e-20, 1e-24, 1e-36])
@pytest.mark.parametrize("method", ["newton-cg", "anderson"])
def test_a_tiny_gradient_is_pulled_back_as_a_large_one(method, size):
    source = torch.Generator().manual_seed(0)
    net = InvertibleResNet(Ridge((1, None, None), 4, 3, generator=source), lipschitz=0.9)
    z = torch.rand(2, 1, 12, 12, generator=source).requires_grad_()
    v = torch.randn(z.shape, generator=source)
    x = net.inverse(z, method=method)
    (whole,) = torch.autograd.grad(x, z, v, retain_graph=True)
    (tiny,) = torch.autograd.grad(x, z, size * v)
    assert torch.allclose(tiny.double() / size, whole.double(), atol=3e-3)


@pytest.mark.parametrize("method", ["newton-cg", "anderson"])
def test_the_implicit_derivative_ignores_autocast(method):
    source = torch.Generator().manual_seed(0)
    net = InvertibleResNet(Ridge((1, None, None), 4, 3, generator=source), lipschitz=0.9)
    z = torch.rand(2, 1, 12, 12, generator=source).requires_grad_()
    x, v = net.inverse(z, method=method), torch.randn(z.shape, generator=source)
    (plain,) = torch.autograd.grad(x, z, v, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = torch.autograd.grad(x, z, v)
        _, turned = torch.func.jvp(lambda z: net.inverse(z, method=method), (z.detach(),), (v,))
    assert torch.equal(found, plain)
    straight = torch.func.jvp(lambda z: net.inverse(z, method=method), (z.detach(),), (v,))[1]
    assert torch.equal(turned, straight)
