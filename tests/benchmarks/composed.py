"""Laplace's bars of every problem from one denoising network: for `error_bars.py`."""

from __future__ import annotations

import torch
from torch import Tensor

import invbayes as ib
from tests.benchmarks.one_network import guesses

LEVEL = 0.2  # of the noise in the training, A = I


def denoising() -> ib.LinearProblem:
    """The measurement that the network is trained for."""
    return ib.LinearProblem(torch.eye(2), LEVEL)


def composed_bars(
    net: ib.InvertibleResNet, prior: ib.GaussianMixture, problem: ib.LinearProblem, y: Tensor
) -> ib.ErrorBars:
    r"""The learned posterior's mode, and :math:`\delta^2 (D\varphi_{A,\delta})^{-1}` there."""
    learned = ib.LearnedPosterior(net, problem, trained_at=LEVEL)
    samples = prior.sample(20_000, generator=torch.Generator().manual_seed(9))
    mode = learned.mode(problem.normal_data(y), guesses(samples, problem, y))
    both = problem.noise_std**2 * torch.linalg.inv(learned.with_jacobian(mode)[1])
    half = (both - both.mT) / 2
    return ib.ErrorBars(mode, both - half, torch.linalg.matrix_norm(half))
