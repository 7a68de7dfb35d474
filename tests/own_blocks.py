"""Blocks as a reader would write them: the package knows nothing of these."""

from __future__ import annotations

import torch
from deel import torchlip
from torch import nn
from torch.nn.functional import conv2d

from invbayes import Block, InvertibleResNet


class Convolutions(Block):
    """Two convolutions of pictures of any size, divided by Young's bound of their norm."""

    shape = (1, None, None)

    def __init__(self, channels=4, generator=None):
        super().__init__()
        self.channels = channels
        self.first = nn.Parameter(torch.randn(channels, 1, 3, 3, generator=generator))
        self.last = nn.Parameter(torch.randn(1, channels, 3, 3, generator=generator))
        self.bias = nn.Parameter(torch.randn(channels, generator=generator))

    @property
    def options(self):
        return {"channels": self.channels}

    def kernels(self):
        return [kernel / young(kernel) for kernel in (self.first, self.last)]

    def lipschitz_bound(self):
        first, last = self.kernels()
        return young(first).item() * young(last).item()

    def forward(self, x):
        first, last = self.kernels()
        return conv2d(torch.tanh(conv2d(x, first, self.bias, padding=1)), last, padding=1)


def young(kernel):
    """A bound of a convolution's norm, for every size: rows and columns of its absolute sums."""
    mass = kernel.abs().sum((2, 3))
    return (mass.sum(0).max() * mass.sum(1).max()).sqrt()


class ThirdParty(Block):
    """Layers of deel-torchlip, whose norms are a little above one: divided by their product."""

    shape = (3,)

    def __init__(self):
        super().__init__()
        linear = torchlip.SpectralLinear
        self.layers = nn.Sequential(linear(3, 16), torchlip.GroupSort2(), linear(16, 3)).eval()

    def stretch(self):
        norms = [torch.linalg.matrix_norm(self.layers[i].weight, 2) for i in (0, 2)]
        return torch.prod(torch.stack(norms)).clamp(min=1)

    def lipschitz_bound(self):
        norms = [torch.linalg.matrix_norm(self.layers[i].weight, 2).item() for i in (0, 2)]
        return norms[0] * norms[1] / self.stretch().item()

    def forward(self, x):
        return self.layers(x) / self.stretch()


class Smoothing(Block):
    """The mean of 25 neighbours on a torus: linear, with norm one, and slow for plain steps."""

    shape = (1, None, None)

    def lipschitz_bound(self):
        return 1.0

    def forward(self, x):
        padded = nn.functional.pad(x, (2, 2, 2, 2), mode="circular")
        return nn.functional.avg_pool2d(padded, 5, stride=1)


class Affine(Block):
    """A matrix of norm at most one and a shift, fixed."""

    def __init__(self, matrix, shift=None):
        super().__init__()
        shift = torch.zeros_like(matrix[0]) if shift is None else shift
        self.matrix, self.shift = (nn.Parameter(p, requires_grad=False) for p in (matrix, shift))
        self.shape = (len(matrix),)

    def lipschitz_bound(self):
        return torch.linalg.matrix_norm(self.matrix, 2).item()

    def forward(self, x):
        return x @ self.matrix.mT + self.shift


def exact_network(prior, problem):
    """φ with φ⁻¹ = x_PM for one Gaussian: φ(x) = (A*A + δ²Σ⁻¹) x − δ²Σ⁻¹m, as c (Id − L g)."""
    pull = problem.noise_std**2 * torch.linalg.inv(prior.covariance)
    slope = problem.normal_operator + pull
    values = torch.linalg.eigvalsh(slope)
    scale = (values[0] + values[-1]) / 2
    lipschitz = (1 + (values[-1] / scale - 1).item()) / 2
    matrix = (torch.eye(prior.dim).to(slope) - slope / scale) / lipschitz
    shift = pull @ prior.mean / scale / lipschitz
    block = Affine(matrix, shift)
    return InvertibleResNet(block, lipschitz=lipschitz, scale=scale.item()).to(slope)
