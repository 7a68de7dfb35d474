"""The convolutional network against dense matrices: value, Jacobian, divergence, certificate."""

from __future__ import annotations

import pytest
import torch

from invbayes import (
    Block,
    Divergence,
    InvertibleResNet,
    LinearProblem,
    fresh_noise,
    load_network,
    save_network,
    train,
)
from invbayes.networks.activations import ACTIVATIONS
from invbayes.networks.blocks import trace
from invbayes.networks.convolutional import LipschitzConvolutional, UnitConvolution
from invbayes.networks.convolutions import unit_convolution
from invbayes.networks.inversion import best_method
from tests.networks.test_convolutions import dense

each_activation = pytest.mark.parametrize("activation", list(ACTIVATIONS))

# Channels, hidden channels and kernels, with the largest size at which a pixel sees itself.
ARCHITECTURES = [
    (1, (4, 3), (5, 3, 5), 5),
    (2, (3, 5), (3, 4, 2), 4),
    (1, (2, 3), (2, 3, 6), 5),
    (2, (2, 4), (4, 2, 4), 5),
    (1, (3, 2), (1, 2, 7), 4),
    (1, (3, 4), (3, 6, 1), 4),
    (3, (2,), (3, 4), 3),
    (1, (5,), (4, 2), 3),
    (2, (3, 2, 4), (3, 2, 3, 2), 4),
]
each_architecture = pytest.mark.parametrize(
    ("channels", "hidden", "kernels", "reach"), ARCHITECTURES
)


def make(channels=1, hidden=(4, 3), kernels=(5, 3, 5), activation="half_linear", seed=0):
    """With parameters away from where they start."""
    generator = torch.Generator().manual_seed(seed)
    net = LipschitzConvolutional(channels, hidden, kernels, activation, generator=generator)
    for unit in net.activations:
        for parameter in unit.parameters():
            torch.nn.init.normal_(parameter, generator=generator)
    return net.double()


def pictures(net, size, generator, n=2):
    return 3 * torch.randn(n, net.shape[0], *size, generator=generator, dtype=torch.float64)


def sizes_of(kernels, reach):
    """Just above the reach, and at it where no kernel is too large; none a square."""
    least = max(reach + 1, *kernels)
    sizes = [(least, least + 2), (least + 3, least)]
    return sizes + [(reach, reach + 2), (reach + 1, reach)] * (reach >= max(kernels))


def by_matrices(net, weights, x):
    """g(x) and Dg(x) by dense matrices, and activations a channel at a time."""
    size, rows = x.shape[2:], x.flatten(1)
    pixels = size.numel()
    jacobian = torch.eye(rows.shape[1]).to(x)
    for number, (layer, weight) in enumerate(zip(net.layers, weights, strict=True)):
        matrix = dense(weight, size)
        bias = layer.bias.flatten().repeat_interleave(pixels)
        rows, jacobian = rows @ matrix.mT + bias, matrix @ jacobian
        if number < len(net.activations):
            units = rows.unflatten(1, (-1, pixels)).mT
            value, slope = (
                part.mT.flatten(1) for part in net.activations[number].with_slope(units)
            )
            rows, jacobian = value, slope[..., None] * jacobian
    return rows.reshape(x.shape), jacobian


@torch.no_grad()
@each_architecture
def test_value_and_jacobian_are_those_of_the_matrices(channels, hidden, kernels, reach, generator):
    net = make(channels, hidden, kernels)
    weights, g = net.weights(), net.prepared()
    for size in sizes_of(kernels, reach):
        x = pictures(net, size, generator)
        value, jacobian = by_matrices(net, weights, x)
        torch.testing.assert_close(g(x), value, rtol=0, atol=1e-13)
        torch.testing.assert_close(g.with_jacobian(x)[1], jacobian, rtol=0, atol=1e-13)
        pull = g.linearised(x)
        v = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        expected = torch.einsum("nij,ni->nj", jacobian, v.flatten(1))
        torch.testing.assert_close(pull(v).flatten(1), expected, rtol=0, atol=1e-12)
    for found, expected in zip(net.with_jacobian(x), (net(x), jacobian), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@torch.no_grad()
@each_activation
@each_architecture
def test_the_divergence_is_the_trace(channels, hidden, kernels, reach, activation, generator):
    net = make(channels, hidden, kernels, activation)
    weights, g = net.weights(), net.prepared()
    assert g.reach == reach
    assert {type(unit) for unit in net.activations} == {ACTIVATIONS[activation]}
    for size in sizes_of(kernels, reach):
        x = pictures(net, size, generator)
        expected = trace(by_matrices(net, weights, x)[1])
        value, divergence = g.with_divergence(x)
        torch.testing.assert_close(value, g(x), rtol=0, atol=1e-13)
        torch.testing.assert_close(divergence, expected, rtol=0, atol=2e-13)
    for found, expected in zip(net.with_divergence(x), (value, divergence), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@each_architecture
def test_the_divergence_s_gradient_in_the_parameters(channels, hidden, kernels, reach, generator):
    net = make(channels, hidden, kernels)
    # The last bias moves the value alone.
    parameters = [p for name, p in net.named_parameters() if p is not net.layers[-1].bias]
    size = (max(reach + 1, *kernels), reach + 3)
    x = pictures(net, size, generator)
    weights = torch.tensor([1.0, -2.0]).double()
    found = torch.autograd.grad(net.with_divergence(x)[1] @ weights, parameters)
    expected = torch.autograd.grad(Block.with_divergence(net, x)[1] @ weights, parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert all(gradient.abs().max() > 1e-4 for gradient in expected if gradient.numel())


def test_the_gradient_of_the_divergence_in_the_picture(generator):
    net = make(2, (3, 4), (3, 2, 3))
    x = pictures(net, (4, 5), generator).requires_grad_()
    g = net.prepared()
    assert torch.autograd.gradcheck(lambda x: g.with_divergence(x)[1], x, rtol=1e-6, atol=1e-8)


@each_architecture
def test_no_jacobian_where_the_divergence_is_known(
    channels, hidden, kernels, reach, monkeypatch, generator
):
    net = make(channels, hidden, kernels)

    def refuse(*_):
        raise AssertionError("a pass for every pixel")

    monkeypatch.setattr(Block, "with_divergence", refuse)
    least = max(reach + 1, *kernels)
    if len(hidden) <= 2:
        assert net.with_divergence(pictures(net, (least, least), generator))[1].shape == (2,)
    if len(hidden) > 2:
        least = reach
    for size in ((reach, reach + 9), (reach + 9, reach)) if reach >= max(kernels) else ():
        with pytest.raises(AssertionError, match="a pass for every pixel"):
            net.with_divergence(pictures(net, size, generator))


def test_two_hidden_layers_by_default():
    net = LipschitzConvolutional(3)
    assert [*net.weights()[1].shape] == [16, 16, 3, 3]
    assert net.options == {
        "channels": 3,
        "hidden": (16, 16),
        "kernels": (5, 3, 5),
        "activation": "half_linear",
    }
    assert LipschitzConvolutional(1, [2, 3, 4]).options["kernels"] == (5, 3, 3, 5)
    assert LipschitzConvolutional(1, [2]).options["kernels"] == (5, 5)
    assert net.shape == (3, None, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_certificate_holds_on_sizes_not_trained_on(dtype, generator):
    """Large steps that try to stretch one vector on 8 × 8: no singular value may pass one."""
    net = make(1, (3, 3), (3, 2, 3)).to(dtype)
    optimiser = torch.optim.Adam(net.parameters(), 0.1)
    x = torch.randn(2, 1, 8, 8, generator=generator, dtype=dtype)
    direction = torch.randn(1, 1, 8, 8, generator=generator, dtype=dtype).expand_as(x)
    for step in range(25):
        optimiser.zero_grad()
        pull = net.linearised(x)
        stretched = pull(direction)
        (-stretched.flatten(1).norm(dim=1).mean()).backward()
        optimiser.step()
        direction = (stretched / stretched.flatten(1).norm(dim=1)[:, None, None, None]).detach()
        if step % 8 == 0:
            assert net.lipschitz_bound() <= 1
    largest = []
    for size in ((8, 8), (8, 16), (4, 4), (5, 9), (10, 6)):
        points = torch.randn(2, 1, *size, generator=generator, dtype=dtype)
        jacobian = net.with_jacobian(points)[1].double()
        largest.append(torch.linalg.matrix_norm(jacobian, 2).max().item())
    assert max(largest) <= net.lipschitz_bound() * (1 + torch.finfo(dtype).eps)
    assert 1 - 1e-3 < net.lipschitz_bound() <= 1
    assert min(largest[:2]) > 0.9  # else this test would prove little


def test_the_bound_is_the_product_of_the_norms(monkeypatch):
    net = make(2, (3, 4), (3, 2, 5))
    assert 1 - 1e-11 < net.lipschitz_bound() <= 1
    wider = make(1, (2,), (3, 3))
    with torch.no_grad():
        for factor in (1e-6, 1e6):
            wider.layers[0].raw.mul_(factor)
            assert 1 - 1e-11 < wider.lipschitz_bound() <= 1
    # With other kernels it is another number: it has been computed.
    smaller = property(lambda layer: unit_convolution(layer.raw) / layer.raw.shape[0])
    monkeypatch.setattr(UnitConvolution, "weight", smaller)
    assert net.lipschitz_bound() == pytest.approx(1 / (3 * 4 * 2), rel=1e-11)


def test_an_invertible_network_of_pictures(generator):
    """Trained with its divergence on one size, inverted on another, with two blocks."""
    blocks = [make(1, (4, 4), (3, 3, 3), seed=seed) for seed in (0, 1)]
    net = InvertibleResNet(blocks[:1], lipschitz=0.9).double()
    x = torch.randn(32, 1, 6, 6, generator=generator, dtype=torch.float64)
    problem = LinearProblem(lambda x: 0.5 * x, 0.2, shape=x.shape[1:], dtype=torch.float64)
    sampler, loss = fresh_noise(x, problem), Divergence(problem)
    before = loss(net, x, x).item()
    options = {"batch": 16, "optimizer": lambda p: torch.optim.Adam(p, lr=0.02)}
    record = train(net, loss, sampler, steps=20, generator=generator, **options)
    assert loss(net, x, x).item() < before - 0.01
    assert record.lipschitz_bound <= 0.9
    both = InvertibleResNet(blocks, lipschitz=0.9).double()
    x = pictures(blocks[0], (7, 9), generator)
    with torch.no_grad():
        assert (both.inverse(both(x), 1e-8) - x).flatten(1).norm(dim=1).max() <= 1e-8
    # A row of the Jacobian costs a pass: Newton's method would not pay.
    assert best_method(blocks[0].prepared(), 63) == best_method(blocks[0], 63) == "anderson"


@each_activation
def test_the_same_map_comes_back_from_a_file(activation, tmp_path, generator):
    block = make(2, [3, 4], [3, 2, 5], activation)
    net = InvertibleResNet(block, lipschitz=0.9).double()
    save_network(net, tmp_path / "net.pt")
    again = load_network(tmp_path / "net.pt", blocks=[LipschitzConvolutional])
    x = pictures(block, (6, 5), generator)
    torch.testing.assert_close(again(x), net(x), rtol=0, atol=1e-13)
    assert again.blocks[0].options == block.options
    assert again.blocks[0].options["hidden"] == (3, 4)


def test_a_state_of_another_network_is_refused():
    with pytest.raises(ValueError, match="state_dict belongs to another block"):
        make(activation="elu").load_state_dict(make(activation="tanh").state_dict())


def test_the_generator_fixes_the_weights():
    first, again, other = make(seed=1), make(seed=1), make(seed=2)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
        assert not torch.equal(parameter, other.get_parameter(name)) or not parameter.numel()


def test_no_pictures_are_no_failure():
    none = torch.zeros(0, 1, 8, 8).double()
    assert make()(none).shape == none.shape
    assert make().with_divergence(none)[1].shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0}, "channels must be a positive int, got 0"),
        ({"hidden": ()}, "hidden must hold at least one int, got none"),
        ({"hidden": 8}, "hidden must be a sequence of ints, got 8"),
        ({"hidden": (8, 2.5)}, r"hidden must be a positive int, got 2\.5"),
        ({"kernels": ()}, "kernels must hold at least one int, got none"),
        ({"kernels": (5, 0, 5)}, "kernels must be a positive int, got 0"),
        ({"kernels": (5, 5)}, r"kernels must be one more than the layers of hidden, got \(5, 5\)"),
        ({"kernels": (5, 3, 3, 5)}, "kernels must be one more than the layers of hidden"),
        ({"activation": "relu"}, "activation must be one of .*half_linear.*, got 'relu'"),
        ({"activation": ["elu"]}, r"activation must be one of .*, got \['elu'\]"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


@pytest.mark.parametrize("method", ["forward", "with_jacobian", "with_divergence"])
def test_bad_pictures_are_named(method):
    call = getattr(make(), method)
    for shape in ((2, 2, 8, 8), (8, 8)):
        with pytest.raises(ValueError, match=r"x must have shape \(\*, 1, any, any\), got \("):
            call(torch.zeros(shape).double())
    for shape in ((1, 8, 8), (2, 2, 1, 8, 8)):
        with pytest.raises(ValueError, match=r"x must have shape \(n, channels, any, any\), got"):
            call(torch.zeros(shape).double())
    with pytest.raises(ValueError, match="x must not be smaller than the kernel"):
        call(torch.zeros(2, 1, 8, 4).double())
    with pytest.raises(ValueError, match=r"x must have dtype torch\.float64"):
        call(torch.zeros(2, 1, 8, 8))


def test_half_precision_has_no_certificate():
    with pytest.raises(ValueError, match="weight must be in single or double precision"):
        make().half()(torch.zeros(1, 1, 8, 8).half())


def test_a_kernel_wider_than_the_hidden_pictures_makes_a_network():
    source = torch.Generator().manual_seed(0)
    block = LipschitzConvolutional(1, (2,), (65, 17), generator=source)
    net = InvertibleResNet(block, lipschitz=0.9)
    assert net.lipschitz_bound() <= 0.9
    x = torch.rand(1, 1, 65, 65, generator=source)
    assert (net.inverse(net(x), 1e-3) - x).norm() <= 2e-3
