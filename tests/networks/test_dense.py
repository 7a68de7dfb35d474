"""The certificate, the exact derivatives and the activations of the 1-Lipschitz network."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invbayes.networks.activations import ACTIVATIONS
from invbayes.networks.dense import LipschitzDense, unit_spectral_norm
from tests.conftest import jacobian_of

each_activation = pytest.mark.parametrize("activation", list(ACTIVATIONS))
HIDDEN = pytest.mark.parametrize("hidden", [(7,), (8, 5), (6, 7, 5)])


def make(dim=3, hidden=(8, 5), activation="half_linear", seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return LipschitzDense(dim, hidden, activation, generator=generator).to(dtype)


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 1000))
def test_the_bound_is_the_product_of_singular_values_and_at_most_one(dim, width, seed):
    net = make(dim, (width, width), seed=seed)
    expected = 1.0
    for layer in net.layers:
        expected *= torch.linalg.svdvals(layer.weight)[0].item()
    assert net.lipschitz_bound() == pytest.approx(expected, rel=1e-12)
    assert 1 - 1e-12 < net.lipschitz_bound() <= 1


@each_activation
def test_no_pair_of_points_is_stretched(activation, generator):
    net = make(activation=activation)
    x, y = 3 * torch.randn(2, 20_000, 3, generator=generator, dtype=torch.float64)
    assert ((net(x) - net(y)).norm(dim=1) <= (x - y).norm(dim=1) * (1 + 1e-12)).all()
    close = x + 1e-4 * y
    assert ((net(x) - net(close)).norm(dim=1) <= 1e-4 * y.norm(dim=1) * (1 + 1e-8)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_certificate_holds_at_every_training_step(dtype, generator):
    """Large, noisy steps that try to stretch: the bound must not move above one."""
    net = make(dtype=dtype)
    optimiser = torch.optim.SGD(net.parameters(), lr=1.0)
    for _ in range(50):
        x = torch.randn(32, 3, generator=generator, dtype=dtype)
        optimiser.zero_grad()
        (-net.with_jacobian(x)[1].square().sum((1, 2)).mean()).backward()
        optimiser.step()
        assert net.lipschitz_bound() <= 1
    assert torch.linalg.svdvals(net.with_jacobian(x)[1]).max() > 0.9


def test_normalising_has_the_right_gradient():
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(unit_spectral_norm, weight.requires_grad_())
    assert torch.equal(unit_spectral_norm(torch.zeros(2, 2)), torch.zeros(2, 2))


@each_activation
@HIDDEN
def test_jacobian_and_divergence_agree_with_autograd(activation, hidden, generator):
    net = make(hidden=hidden, activation=activation)
    x = torch.randn(11, 3, generator=generator, dtype=torch.float64)
    expected = jacobian_of(net, x)
    value, jacobian = net.with_jacobian(x)
    torch.testing.assert_close(value, net(x))
    torch.testing.assert_close(jacobian, expected, rtol=1e-11, atol=1e-13)
    value, divergence = net.with_divergence(x)
    torch.testing.assert_close(value, net(x))
    trace = expected.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(divergence, trace, rtol=1e-11, atol=1e-13)


@HIDDEN
def test_derivatives_can_be_differentiated(hidden, generator):
    """A loss on the divergence reaches the weights: against finite differences."""
    net = make(hidden=hidden)
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    parameter = net.layers[1].raw

    def loss():
        return net.with_divergence(x)[1].sum() + net.with_jacobian(x)[1].square().sum()

    (gradient,) = torch.autograd.grad(loss(), parameter)
    with torch.no_grad():
        parameter[0, 1] += 1e-6
        up = loss()
        parameter[0, 1] -= 2e-6
        down = loss()
    assert gradient[0, 1].item() == pytest.approx((up - down).item() / 2e-6, rel=1e-6)


@each_activation
def test_slopes_are_at_most_one_and_belong_to_the_values(activation, generator):
    unit = ACTIVATIONS[activation](6).double()
    for sharpness in unit.parameters():
        torch.nn.init.normal_(sharpness, generator=generator)
    b = 4 * torch.randn(500, 6, generator=generator, dtype=torch.float64)
    value, slope = unit.with_slope(b)
    assert slope.abs().max() <= 1
    torch.testing.assert_close(value, unit(b))
    numeric = (unit(b + 1e-6) - unit(b - 1e-6)) / 2e-6
    torch.testing.assert_close(slope, numeric, rtol=1e-6, atol=1e-7)


def test_the_generator_fixes_the_weights():
    first, again, other = make(seed=1), make(seed=1), make(seed=2)
    x = torch.ones(1, 3, dtype=torch.float64)
    assert torch.equal(first(x), again(x))
    assert not torch.equal(first(x), other(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim must be a positive int, got 0"),
        ({"hidden": ()}, "hidden must name at least one width"),
        ({"hidden": (8, 0)}, "hidden must be a positive int, got 0"),
        ({"hidden": (8, 2.5)}, r"hidden must be a positive int, got 2\.5"),
        ({"activation": "relu"}, "activation must be one of .*half_linear.*, got 'relu'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


@pytest.mark.parametrize("method", ["forward", "with_jacobian", "with_divergence"])
def test_bad_points_are_named(method):
    call = getattr(make(), method)
    with pytest.raises(ValueError, match=r"x must have shape \(\*, 3\), got \(2, 4\)"):
        call(torch.zeros(2, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"x must have dtype torch\.float64"):
        call(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="x must be a floating-point tensor, got list"):
        call([0.0, 0.0, 0.0])


def test_a_state_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="state_dict belongs to another block"):
        make(hidden=(4, 4)).load_state_dict(make(hidden=(8, 5)).state_dict())
