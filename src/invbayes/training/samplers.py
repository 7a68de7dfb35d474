"""Where a training takes its samples from: the prior, evenly spread, or a fixed data set."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from invbayes._checks import check_points
from invbayes.bayes.mixtures import GaussianMixture
from invbayes.bayes.posteriors import check_fit
from invbayes.bayes.problems import LinearProblem

Sampler = Callable[[int, torch.Generator | None], tuple[Tensor, Tensor]]


def fresh_samples(prior: GaussianMixture, problem: LinearProblem) -> Sampler:
    r"""Independent samples, new at every step: :math:`x \sim p_X` and :math:`z = A^*(A x + \eta)`.

    Raises:
        ValueError: for a batch of priors, dimensions or dtypes that do not fit.

    Example:
        >>> import torch
        >>> prior = GaussianMixture.gaussian(torch.zeros(2), torch.eye(2))
        >>> x, z = fresh_samples(prior, LinearProblem(torch.eye(2), 0.1))(5, None)
        >>> x.shape, z.shape
        (torch.Size([5, 2]), torch.Size([5, 2]))
    """
    check_fit(prior, problem)

    def draw(n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        x = prior.sample(n, generator=generator)
        return x, problem.normal_data(problem.observe(x, generator=generator))

    return draw


def quasi_samples(
    prior: GaussianMixture, problem: LinearProblem, *, generator: torch.Generator | None = None
) -> Sampler:
    r"""Samples as `fresh_samples` draws them, but spread evenly: randomised quasi-Monte Carlo.

    A scrambled Sobol sequence u in the unit cube is mapped to a component of the mixture, a point
    of that component and a noise vector,

    .. math:: k = F^{-1}(u_0), \qquad x = m_k + \Sigma_k^{1/2}\, \Phi^{-1}(u_{1..d}), \qquad
        \eta = \delta\, \Phi^{-1}(u_{d+1..d+m}),

    with F the distribution of the components and Φ the normal distribution function. Each sample
    has the right distribution, and averages over a batch of a power of two vary far less than
    those of independent samples. No two samples are independent: use it to train, not to test.

    Args:
        prior: a single mixture on :math:`\mathbb{R}^d`.
        problem: the measurement.
        generator: the source of the scrambling; without one, PyTorch's global generator.

    Raises:
        ValueError: for a batch of priors, dimensions or dtypes that do not fit.

    Source: scrambling as in Matoušek 1998 and Owen 1998, by `torch.quasirandom.SobolEngine`.

    Example:
        >>> import torch
        >>> prior = GaussianMixture.gaussian(torch.zeros(2), torch.eye(2))
        >>> x, z = quasi_samples(prior, LinearProblem(torch.eye(2), 0.1))(1024, None)
        >>> bool(x.mean(0).norm() < 0.01)
        True
    """
    check_fit(prior, problem)
    seed = int(torch.randint(2**31, (), generator=generator))
    engine = SobolEngine(1 + prior.dim + problem.data_dim, scramble=True, seed=seed)

    def draw(n: int, _: torch.Generator | None) -> tuple[Tensor, Tensor]:
        # Half of the engine's resolution is added, so that no coordinate is zero; one is kept out.
        u = (engine.draw(n, dtype=torch.float64) + 2.0**-31).clamp(max=1 - 2.0**-31)
        u = u.to(prior.means.device)
        chosen = torch.bucketize(u[:, 0].contiguous(), prior.weights.double().cumsum(0)[:-1])
        normal = torch.special.ndtri(u[:, 1:]).to(prior.means.dtype)
        x_part, noise = normal.split([prior.dim, problem.data_dim], dim=1)
        factor = prior.components.scale_tril[chosen]
        x = prior.means[chosen] + torch.einsum("nij,nj->ni", factor, x_part)
        return x, problem.normal_data(problem.apply(x) + problem.noise_std * noise)

    return draw


def fixed_samples(x: Tensor, z: Tensor) -> Sampler:
    """A data set: each step takes a random part of it, or all of it where it is small.

    Args:
        x: the unknowns, shape ``(n, d)``.
        z: their normal data, shape ``(n, d)``.

    Raises:
        ValueError: for shapes or dtypes that do not fit, no samples, or NaN.

    Example:
        >>> import torch
        >>> x, z = fixed_samples(torch.ones(3, 2), torch.zeros(3, 2))(1024, None)
        >>> x.shape
        torch.Size([3, 2])
    """
    if x.ndim != 2 or x.shape != z.shape or not len(x):
        came = f"{tuple(x.shape)} and {tuple(z.shape)}"
        raise ValueError(f"x and z must both have shape (n, d) with n > 0, got {came}")
    check_points("x", x, x.shape[1], like=x)
    check_points("z", z, x.shape[1], like=x)

    def draw(n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        if n >= len(x):
            return x, z
        chosen = torch.randperm(len(x), generator=generator)[:n].to(x.device)
        return x[chosen], z[chosen]

    return draw
