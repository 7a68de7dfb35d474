"""The report: its numbers against their definitions, and networks whose errors are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from invbayes import (
    Approximation,
    InvertibleResNet,
    LinearProblem,
    linear_estimate,
    report,
)

PROBLEM = LinearProblem(torch.diag(torch.tensor([1.0, 0.5]).double()), 0.4)


def constant_block(scale=2.0, shift=(0.5, -1.0)):
    """φ(x) = c (x − shift), whose inverse is known."""
    net = InvertibleResNet.dense(2, (4,), lipschitz=0.9, scale=scale).double()
    with torch.no_grad():
        net.blocks[0].layers[-1].raw.zero_()
        net.blocks[0].layers[-1].bias.copy_(torch.tensor(shift).double() / 0.9)
    return net


def samples(n, seed):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed)).double()


def test_every_number_is_its_formula():
    net, x, known = constant_block(), samples(500, 1), samples(300, 2)
    found = report(
        net,
        Approximation(PROBLEM),
        PROBLEM,
        x,
        samples=known,
        tol=1e-10,
        generator=torch.Generator().manual_seed(3),
    )
    y = PROBLEM.observe(x, generator=torch.Generator().manual_seed(3))
    z = PROBLEM.adjoint(y)
    shift = torch.tensor([0.5, -1.0]).double()
    misfits = {
        "forward": 2 * (x - shift) - x * torch.tensor([1.0, 0.25]),
        "backward": z / 2 + shift - x,
        "linear": linear_estimate(known, PROBLEM, y) - x,
        "mean": known.mean(0) - x,
    }
    for name, misfit in misfits.items():
        square = misfit.square().sum(1) / 2
        value = square.mean().sqrt().item()
        measured = getattr(found, name)
        assert measured.value == pytest.approx(value, rel=1e-7)  # log c is single
        # The delta method: sd of the mean square over twice the root.
        error = square.std().item() / 500**0.5 / (2 * value)
        assert measured.error == pytest.approx(error, rel=1e-6)
        assert f"{value:10.4g} ± {error:.2g}" in str(found)
    loss = misfits["forward"].square().sum(1).mean().item() / 2
    assert found.loss == pytest.approx(loss, rel=1e-7)
    assert f"{loss:10.4g}" in str(found)


def test_the_gain_is_judged_in_pairs():
    """It is that of the two errors, and over many draws its scatter is the error it tells."""
    net, known = constant_block(scale=3.0, shift=(0.0, 0.0)), samples(300, 2)

    def drawn(k):
        generator = torch.Generator().manual_seed(k)
        options = {"samples": known, "generator": generator}
        return report(net, Approximation(PROBLEM), PROBLEM, samples(200, 10 + k), **options)

    found = [drawn(k) for k in range(200)]
    shares = torch.tensor([1 - (f.backward.value / f.linear.value) ** 2 for f in found])
    gains = torch.tensor([f.gain for f in found])
    assert torch.allclose(gains[:, 0], shares, atol=1e-6)
    assert gains[:, 0].std() == pytest.approx(gains[:, 1].mean().item(), rel=0.15)
    share, error = (100 * part for part in found[0].gain)
    assert f"{share:9.1f}% ± {error:.1f}%" in str(found[0])


def test_a_perfect_forward_map_has_no_error():
    identity = LinearProblem(torch.eye(2).double(), 0.1)
    net = constant_block(scale=1.0, shift=(0.0, 0.0))
    found = report(net, Approximation(identity), identity, samples(50, 1), samples=samples(50, 2))
    assert found.forward == (0.0, 0.0)
    assert found.backward.value == pytest.approx(0.1, rel=0.2)


def test_an_objective_that_differentiates_is_told():
    """Its derivative is that of φ = c (x − shift) for the shift."""
    net, x = constant_block(), samples(50, 1)

    def slope(net, x, _):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(net(x).sum(), x, create_graph=True)[0].mean()

    assert report(net, slope, PROBLEM, x, samples=x).loss == pytest.approx(2, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net": None}, "net must be an InvertibleResNet, got NoneType"),
        ({"objective": 1}, "objective must be callable"),
        ({"objective": Approximation}, "objective must be an instance, got the class Approx"),
        ({"x": np.zeros((5, 2))}, "x must be a floating-point tensor, got ndarray; see torch.from"),
        ({"problem": torch.eye(2)}, "problem must be a LinearProblem, got Tensor"),
        ({"x": torch.zeros(5, 3).double()}, r"x must have shape \(\*, 2\)"),
        ({"x": torch.zeros(2).double()}, "x must hold at least two points"),
        ({"x": torch.zeros(1, 2).double()}, "x must hold at least two points"),
        ({"samples": torch.zeros(5, 2)}, "samples must have dtype torch.float64"),
        ({"samples": torch.zeros(1, 2).double()}, "samples must hold at least two points"),
        ({"tol": -1.0}, "tol must be finite and > 0"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {
        "net": constant_block(),
        "objective": Approximation(PROBLEM),
        "problem": PROBLEM,
        "x": samples(4, 1),
        "samples": samples(4, 2),
        **change,
    }
    net, objective, problem, x = (given.pop(k) for k in ("net", "objective", "problem", "x"))
    with pytest.raises(ValueError, match=message):
        report(net, objective, problem, x, **given)
