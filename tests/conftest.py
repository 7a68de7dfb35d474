"""Random problems, and the one z-score test, that several test files share."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from invbayes import GaussianMixture, LinearProblem

# Small matrices gain nothing from a second thread, and pytest's two workers share the cores.
torch.set_num_threads(1)

# Random problems are the same on every machine, and a slow machine is not a failure.
settings.register_profile("book", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("book")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20251104)


def random_mixture(
    dim: int, components: int, generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> GaussianMixture:
    """Weights from 0.1 up, means of size about 1.5, standard deviations from 0.4 up."""
    weights = 0.1 + torch.rand(components, generator=generator, dtype=dtype)
    factor = torch.randn(components, dim, dim, generator=generator, dtype=dtype) / dim**0.5
    return GaussianMixture(
        weights / weights.sum(),
        1.5 * torch.randn(components, dim, generator=generator, dtype=dtype),
        factor @ factor.mT + 0.16 * torch.eye(dim, dtype=dtype),
    )


def random_operator(rows: int, dim: int, rank: int, generator: torch.Generator) -> Tensor:
    """A ``(rows, dim)`` matrix of the given rank with singular values between 0.2 and 1.2."""
    u = torch.linalg.qr(torch.randn(rows, rows, generator=generator, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
    values = 0.2 + torch.rand(rank, generator=generator, dtype=torch.float64)
    return u[:, :rank] * values @ v[:, :rank].mT


@st.composite
def cases(draw: st.DrawFn, *, injective: bool = False) -> tuple:
    """A prior, a problem of any shape and rank, and five observations."""
    dim = draw(st.integers(1, 4), label="dim")
    rows = draw(st.integers(dim if injective else 1, 5), label="rows")
    rank = dim if injective else draw(st.integers(0, min(rows, dim)), label="rank")
    noise_std = draw(st.sampled_from([0.05, 0.2, 0.5, 1.0]), label="noise_std")
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000), label="seed"))
    prior = random_mixture(dim, draw(st.integers(1, 4), label="components"), generator)
    problem = LinearProblem(random_operator(rows, dim, rank, generator), noise_std)
    y = problem.observe(prior.sample(5, generator=generator), generator=generator)
    return prior, problem, y


def assert_mean_close(samples: Tensor, expected: Tensor, z_max: float = 5.0) -> None:
    """The mean of independent samples ``(n, *)`` lies within ``z_max`` standard errors."""
    error = samples.std(0) / len(samples) ** 0.5
    z = ((samples.mean(0) - expected) / error).abs().max().item()
    assert z < z_max, f"z-score {z:.2f}"


def jacobian_of(net: torch.nn.Module, x: Tensor) -> Tensor:
    """The Jacobian at points ``(n, d)`` by reverse mode, a row at a time, shape ``(n, d, d)``."""
    x = x.clone().requires_grad_()
    value = net(x)
    rows = [torch.autograd.grad(part.sum(), x, retain_graph=True)[0] for part in value.unbind(1)]
    return torch.stack(rows, 1)
