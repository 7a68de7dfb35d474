"""Where a training takes its samples from: a prior, evenly spread or not, or a data set.

Every sampler is called as ``sampler(n, generator)`` and gives x and z, each ``(n, *shape)``. All can
be pickled; randomness is drawn on the generator's device and moved to that of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from invbayes._checks import (
    check_count,
    check_instance,
    check_not_negative,
    check_pictures,
    check_points,
)
from invbayes._random import random_part, standard_normal
from invbayes.bayes.inverse_problem import InverseProblem
from invbayes.bayes.mixtures import GaussianMixture
from invbayes.bayes.posteriors import check_fit

Sampler = Callable[[int, torch.Generator | None], tuple[Tensor, Tensor]]


def fresh_samples(prior: GaussianMixture, problem: InverseProblem) -> Sampler:
    r"""Independent samples, new at every step: :math:`x \sim p_X` and :math:`z = A^*(A x + \eta)`.

    Raises:
        ValueError: for a batch of priors, dimensions or dtypes that do not fit.

    Example:
        >>> import torch
        >>> from invbayes import LinearProblem
        >>> prior = GaussianMixture.gaussian(torch.zeros(2), torch.eye(2))
        >>> x, z = fresh_samples(prior, LinearProblem(torch.eye(2), 0.1))(5, None)
        >>> x.shape, z.shape
        (torch.Size([5, 2]), torch.Size([5, 2]))
    """
    check_fit(prior, problem)
    return partial(_draw_fresh, prior, problem)


def _draw_fresh(
    prior: GaussianMixture, problem: InverseProblem, n: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    x = prior.sample(n, generator=generator).reshape(n, *problem.shape)
    return x, problem.normal_data(problem.observe(x, generator=generator))


def fresh_noise(x: Tensor, problem: InverseProblem, *, jitter: float = 0.0) -> Sampler:
    r"""Your own samples with new noise at every step,

    .. math:: x = x_i + \tau\, \xi, \qquad z = A^*(A x + \eta), \qquad i \text{ random}, \quad \xi, \eta \text{ new}.

    Each step takes a random part of the data, or all of it where it is small. Frozen noise can be
    learnt by heart, fresh noise cannot: where A and the noise are known, this is the sampler to use.

    A finite data set has no density, which the divergence and log-determinant trainings need. The
    jitter τ > 0 gives it one: the target is then that of the prior :math:`p * \mathcal{N}(0, \tau^2 I)`.

    Args:
        x: the unknowns, shape ``(n, *shape)``.
        problem: the measurement.
        jitter: τ ≥ 0, in the units of x.

    Raises:
        ValueError: for samples that do not fit the problem, none, NaN, or a negative jitter.

    Source: noise on the samples is denoising score matching's device (Vincent 2011).

    Example:
        >>> import torch
        >>> from invbayes import LinearProblem
        >>> problem = LinearProblem(torch.eye(2), 0.1)
        >>> sampler = fresh_noise(torch.zeros(3, 2), problem, jitter=0.5)
        >>> x, z = sampler(2, torch.Generator().manual_seed(0))
        >>> x.shape, bool((x != 0).all()), bool((z != x).all())
        (torch.Size([2, 2]), True, True)
    """
    check_instance("problem", problem, InverseProblem)
    check_points("x", x, problem.shape, like=problem.like)
    if x.ndim != 1 + len(problem.shape) or not len(x):
        shape = ", ".join(map(str, problem.shape))
        raise ValueError(f"x must have shape (n, {shape}) with n > 0, got {tuple(x.shape)}")
    check_not_negative("jitter", jitter)
    return partial(_draw_noise, x.clone(), problem, float(jitter))


def _draw_noise(
    data: Tensor, problem: InverseProblem, jitter: float, n: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    check_count("n", n)
    x = data[_chosen(len(data), n, generator).to(data.device)]
    if jitter:
        x = x + jitter * standard_normal(x.shape, x, generator)
    return x, problem.normal_data(problem.observe(x, generator=generator))


def random_crops(pictures: Sequence[Tensor], problem: InverseProblem) -> Sampler:
    r"""Random cut-outs of pictures, mirrored at random, with new noise at every step.

    Every place of every picture is as likely as every other one. Where the cut-out is a square, it
    is transposed at random, too.

    Args:
        pictures: each of shape ``(channels, height, width)``.
        problem: the measurement of a cut-out; its shape is that of the cut-outs.

    Raises:
        ValueError: for no picture, or one that does not fit or is smaller than a cut-out.

    Example:
        >>> import torch
        >>> from invbayes import LinearProblem
        >>> problem = LinearProblem(lambda x: x, 0.1, shape=(1, 8, 8))
        >>> x, z = random_crops([torch.rand(1, 20, 30)], problem)(4, None)
        >>> x.shape, z.shape
        (torch.Size([4, 1, 8, 8]), torch.Size([4, 1, 8, 8]))
    """
    check_instance("problem", problem, InverseProblem)
    check_pictures("problem", problem.shape)
    channels, *sides = problem.shape
    for picture in pictures:
        check_points("pictures", picture, (channels, None, None), like=problem.like)
        if picture.ndim != 3 or any(n < s for n, s in zip(picture.shape[1:], sides, strict=True)):
            raise ValueError(
                f"pictures must have three axes and be at least as large as a cut-out, "
                f"{tuple(problem.shape)}, got {tuple(picture.shape)}"
            )
    if not len(pictures):
        raise ValueError("pictures must name at least one, got none")
    return partial(_draw_crops, [picture.clone() for picture in pictures], problem)


def _draw_crops(
    pictures: list[Tensor], problem: InverseProblem, n: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    check_count("n", n)
    _, height, width = problem.shape
    places = [(p.shape[1] - height + 1, p.shape[2] - width + 1) for p in pictures]
    counts = torch.tensor([rows * columns for rows, columns in places], dtype=torch.float64)
    device = None if generator is None else generator.device
    chosen = torch.multinomial(counts.to(device), n, replacement=True, generator=generator)
    draws = torch.rand(n, 5, generator=generator, device=device).tolist()
    crops = []
    for index, (down, right, *turns) in zip(chosen.tolist(), draws, strict=True):
        top, left = int(down * places[index][0]), int(right * places[index][1])
        crop = pictures[index][:, top : top + height, left : left + width]
        crop = crop.flip([axis for axis in (1, 2) if turns[axis] < 0.5])
        crops.append(crop.mT if height == width and turns[0] < 0.5 else crop)
    x = torch.stack(crops)
    return x, problem.normal_data(problem.observe(x, generator=generator))


def fixed_samples(x: Tensor, z: Tensor) -> Sampler:
    """A data set of pairs: each step takes a random part of it, or all of it where it is small.

    Args:
        x: the unknowns, shape ``(n, *shape)``.
        z: their normal data, of the same shape.

    Raises:
        ValueError: for shapes or dtypes that do not fit, no samples, or NaN.

    Example:
        >>> import torch
        >>> x, z = fixed_samples(torch.ones(3, 2), torch.zeros(3, 2))(1024, None)
        >>> x.shape
        torch.Size([3, 2])
    """
    for name, value in {"x": x, "z": z}.items():
        check_points(name, value, (), like=x if isinstance(x, Tensor) else value)
    if x.ndim < 2 or x.shape != z.shape or not x.numel():
        came = f"{tuple(x.shape)} and {tuple(z.shape)}"
        raise ValueError(f"x and z must both have shape (n, *shape) with n > 0, got {came}")
    return partial(_draw_pairs, x.clone(), z.clone())


def _draw_pairs(
    x: Tensor, z: Tensor, n: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    check_count("n", n)
    chosen = _chosen(len(x), n, generator).to(x.device)
    return x[chosen], z[chosen]


def _chosen(count: int, n: int, generator: torch.Generator | None) -> Tensor:
    """The positions of a batch: all of them, in order, where there are no more than n."""
    return torch.arange(count) if n >= count else random_part(count, n, generator)


class QuasiSampler:
    """What `quasi_samples` returns: a Sobol sequence, mapped to samples; it remembers its place."""

    def __init__(self, prior: GaussianMixture, problem: InverseProblem, seed: int) -> None:
        self._prior, self._problem, self._seed = prior, problem, seed
        dim = 1 + prior.dim + problem.data_dim
        self._engine = SobolEngine(dim, scramble=True, seed=seed)

    def __call__(self, n: int, _: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """The next n points of the sequence; its generator is its own."""
        check_count("n", n)
        prior, problem = self._prior, self._problem
        # Half of the engine's resolution is added, so that no coordinate is zero; one is kept out.
        u = (self._engine.draw(n, dtype=torch.float64) + 2.0**-31).clamp(max=1 - 2.0**-31)
        u = u.to(prior.means.device)
        chosen = torch.bucketize(u[:, 0].contiguous(), prior.weights.double().cumsum(0)[:-1])
        normal = torch.special.ndtri(u[:, 1:]).to(prior.means.dtype)
        x_part, noise = normal.split([prior.dim, problem.data_dim], dim=1)
        factor = prior.components.scale_tril[chosen]
        x = prior.means[chosen] + torch.einsum("nij,nj->ni", factor, x_part)
        x = x.reshape(n, *problem.shape)
        noise = noise.reshape(n, *problem.data_shape)
        return x, problem.normal_data(problem.respond(x, noise))

    def state_dict(self) -> dict[str, Any]:
        """The seed and the place in the sequence, for resuming."""
        return {"seed": self._seed, "drawn": self._engine.num_generated}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the place that `state_dict` told."""
        self.__init__(self._prior, self._problem, state["seed"])
        self._engine.fast_forward(state["drawn"])


def quasi_samples(
    prior: GaussianMixture, problem: InverseProblem, *, generator: torch.Generator | None = None
) -> QuasiSampler:
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
        >>> from invbayes import LinearProblem
        >>> prior = GaussianMixture.gaussian(torch.zeros(2), torch.eye(2))
        >>> x, z = quasi_samples(prior, LinearProblem(torch.eye(2), 0.1))(1024, None)
        >>> bool(x.mean(0).norm() < 0.01)
        True
    """
    check_fit(prior, problem)
    device = None if generator is None else generator.device
    seed = int(torch.randint(2**31, (), generator=generator, device=device))
    return QuasiSampler(prior, problem, seed)
