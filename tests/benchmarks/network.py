"""What the guarantees of the invertible network cost: run by `make bench`.

One thread. Every figure is a ratio of times measured in this run, or an error measured against a
solution known beforehand. Writes the table that the page on reproducibility includes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from normflows.flows.residual import iResBlock
from torch import Tensor, nn
from torch.func import jacrev, vmap

from invbayes import InvertibleResNet

BOOK = Path(__file__).parents[2] / "book"
TOL = 1e-6


def seconds(run: Callable[[], object], repeats: int = 7) -> float:
    """The median time of a call, after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def stretched(lipschitz: float, dim: int = 2) -> InvertibleResNet:
    """A network trained to use its bound: to shrink distances as far as it may."""
    generator = torch.Generator().manual_seed(0)
    net = InvertibleResNet.dense(dim, lipschitz=lipschitz, learn_scale=False, generator=generator)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(1500):
        x = torch.randn(256, dim, generator=generator)
        optimiser.zero_grad()
        net.jacobian(x).square().sum((-1, -2)).mean().backward()
        optimiser.step()
    return net


class Residual(nn.Module):
    """The same function for normflows, y = x + g(x) with g = −f, from the normalised weights."""

    def __init__(self, net: InvertibleResNet) -> None:
        super().__init__()
        self.lipschitz, self.activations = net.lipschitz, net.blocks[0].activations
        self.weights = [layer.weight.detach().clone() for layer in net.blocks[0].layers]
        self.biases = [layer.bias.detach().clone() for layer in net.blocks[0].layers]

    def forward(self, x: Tensor) -> Tensor:
        pairs = zip(self.weights, self.biases, [*self.activations, lambda b: b], strict=True)
        for weight, bias, activation in pairs:
            x = activation(nn.functional.linear(x, weight, bias))
        return -self.lipschitz * x


def power_of_ten(value: float) -> str:
    """A positive number with one figure, as it is written in print."""
    figure, exponent = f"{value:.0e}".split("e")
    factor = "" if figure == "1" else rf"{figure} \cdot "
    return f"${factor}10^{{{int(exponent)}}}$"


def inversion(lipschitz: float) -> list[str]:
    """Times and true errors for one network, in rows of the table."""
    net = stretched(lipschitz)
    peer = iResBlock(Residual(net)).double()
    x = torch.randn(10_000, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        z = net(x)
        assert torch.allclose(peer(x), z, atol=1e-12), "the peer must hold the same function"
        least = torch.linalg.svdvals(net.jacobian(x)).min().item()

        def row(name: str, solve: Callable[[], Tensor], base: float) -> tuple[str, float, float]:
            spent = seconds(solve, repeats=3)
            error = (solve() - x).norm(dim=-1).max().item()
            ratio = spent / base if base else 1.0
            times = f"{spent:.2f}\N{NO-BREAK SPACE}s | {ratio:.1f}"
            line = f"| {lipschitz:g} | {name} | {power_of_ten(error)} | {times} |"
            return line, spent, error

        print(f"L = {lipschitz}: smallest stretching {least:.4f} of {1 - lipschitz:.4f} allowed")
        ours, base, error = row("ours", lambda: net.inverse(z, tol=TOL), 0.0)
        assert error <= TOL, f"the guarantee failed: {error}"
        shipped, _, _ = row("normflows as it ships", lambda: peer.inverse(z), base)
        atol = TOL
        while True:
            found = peer._inverse_fixed_point(z, atol=atol, rtol=0.0)
            error = (found - x).norm(dim=-1).max().item()
            if error <= TOL or atol < 1e-30:
                break
            atol /= 10
        name = f"normflows' solver at `atol={atol:.0e}`"
        name += "" if error <= TOL else " (its 1000 steps do not reach $10^{-6}$)"
        tuned, _, _ = row(name, lambda: peer._inverse_fixed_point(z, atol=atol, rtol=0.0), base)
    return [ours, shipped, tuned]


def derivatives() -> list[str]:
    """A training step with exact derivatives against one without: N = 1024, width 32."""
    net = InvertibleResNet.dense(2, generator=torch.Generator().manual_seed(0)).float()
    x = torch.randn(1024, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float32)

    def step(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            net.zero_grad()
            loss().backward()

        return run

    def with_divergence() -> Tensor:
        value, divergence = net.with_divergence(x)
        return value.square().mean() + divergence.mean()

    def with_log_det() -> Tensor:
        value, log_det = net.with_log_abs_det(x)
        return value.square().mean() + log_det.mean()

    def unchecked(point: Tensor) -> Tensor:
        block = net.blocks[0]
        inner = point
        for layer, activation in zip(block.layers, block.activations, strict=False):
            inner = activation(layer(inner))
        return net.scale * (point - net.lipschitz * block.layers[-1](inner))

    def by_jacrev() -> Tensor:
        jacobian = vmap(jacrev(unchecked))(x)
        return unchecked(x).square().mean() + jacobian.diagonal(dim1=1, dim2=2).sum(1).mean()

    assert torch.allclose(
        vmap(jacrev(unchecked))(x).diagonal(dim1=1, dim2=2).sum(1), net.divergence(x), atol=1e-4
    )
    plain = seconds(step(lambda: net(x).square().mean()), repeats=101)
    rows = []
    for name, loss, limit in [
        ("with the exact divergence", with_divergence, "1.5"),
        ("with the exact log-determinant", with_log_det, "2.5"),
        ("divergence by `vmap(jacrev)`", by_jacrev, "–"),
    ]:
        rows.append(f"| {name} | {seconds(step(loss), repeats=101) / plain:.2f} | {limit} |")
    return rows


def gradients() -> tuple[str, float]:
    """Differentiating through the inverse, implicitly and by unrolling to the same accuracy."""
    net = stretched(0.9)
    z = torch.randn(1024, 2, generator=torch.Generator().manual_seed(1))
    weight = net.blocks[0].layers[1].parametrizations.weight.original

    def implicit(tol: float) -> Tensor:
        return torch.autograd.grad(net.inverse(z, tol).square().mean(), weight)[0]

    def unrolled(count: int) -> Tensor:
        x = z
        for _ in range(count):
            x = z + net.lipschitz * net.blocks[0](x)
        return torch.autograd.grad(x.square().mean(), weight)[0]

    exact = implicit(1e-12)
    reached = (implicit(TOL) - exact).norm() / exact.norm()
    count = 1
    while (unrolled(count) - exact).norm() / exact.norm() > max(reached, 1e-9):
        count = int(count * 1.2) + 1
    ratio = seconds(lambda: unrolled(count), 3) / seconds(lambda: implicit(TOL), 3)
    return f"{count} unrolled iterations for the relative error {power_of_ten(reached)}", ratio


def growth() -> list[str]:
    """Times against the dimension, and the exponents of the largest half."""
    dims, times = [2, 8, 32, 64, 128], {"forward": [], "divergence": [], "log-determinant": []}
    for dim in dims:
        net = InvertibleResNet.dense(dim, (128, 128), generator=torch.Generator().manual_seed(0))
        x = torch.randn(256, dim, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            times["forward"].append(seconds(lambda n=net, p=x: n(p)))
            times["divergence"].append(seconds(lambda n=net, p=x: n.divergence(p)))
            times["log-determinant"].append(seconds(lambda n=net, p=x: n.log_abs_det(p)))
    plt.style.use("invbayes.book")
    figure, ax = plt.subplots(figsize=(6, 3))
    rows = []
    for name, values in times.items():
        ax.loglog(dims, [1e3 * v for v in values], marker="o", label=name)
        slope = np.polyfit(np.log(dims[-3:]), np.log(values[-3:]), 1)[0]
        rows.append(f"| {name} | {slope:.1f} | {values[-1] / values[0]:.0f} |")
    ax.set(xlabel="dimension $d$", ylabel="time in ms, 256 points")
    ax.legend()
    figure.savefig(BOOK / "_generated" / "growth.png", metadata={"Software": None})
    return rows


def main() -> None:
    """Measure everything and write the page."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    inversions = [row for lipschitz in (0.9, 0.99) for row in inversion(lipschitz)]
    detail, ratio = gradients()
    lines = [
        "**Inverting** 10\u202f000 points to a requested error of $10^{-6}$, in double precision:",
        "",
        "| $L$ | solver | true error | time | time / ours |",
        "|---|---|---|---|---|",
        *inversions,
        "",
        "**A training step** (1024 points, width 32, single precision), as a multiple of a plain "
        "forward and backward pass:",
        "",
        "| step | ratio | at most (required) |",
        "|---|---|---|",
        *derivatives(),
        "",
        f"**A gradient through the inverse** at $L = 0.9$, 1024 points: unrolling takes "
        f"{ratio:.0f} times as long as the implicit derivative ({detail}).",
        "",
        "**Growth with the dimension** (256 points, two hidden layers of width 128):",
        "",
        "| | exponent from $d = 32$ to $128$ | time at $d = 128$ over time at $d = 2$ |",
        "|---|---|---|",
        *growth(),
        "",
        "```{figure} _generated/growth.png",
        ":class: ink",
        ":name: fig-growth",
        ":alt: Time against dimension on logarithmic axes. The line of the divergence stays close "
        "to that of the forward pass; the line of the log-determinant is above both and steeper.",
        "",
        "Time of one pass over 256 points against the dimension $d$, on logarithmic axes: the "
        "forward pass with its divergence takes once to twice the time of the forward pass alone; "
        "the log-determinant grows faster.",
        "```",
    ]
    page = "\n".join(lines) + "\n"
    (BOOK / "_generated" / "benchmarks.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
