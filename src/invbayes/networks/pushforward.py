"""The density of a network's output, by the change of variables."""

from __future__ import annotations

import torch
from torch import Tensor

from invbayes._checks import check_instance, check_points
from invbayes.bayes.mixtures import GaussianMixture
from invbayes.bayes.posteriors import check_single
from invbayes.networks.iresnet import InvertibleResNet


def pushforward_log_prob(net: InvertibleResNet, prior: GaussianMixture, x: Tensor) -> Tensor:
    r"""The log-density of z = φ(x), where x is drawn from the prior, at the point φ(x),

    .. math:: \log q(\varphi(x)) = \log p_X(x) - \log |\det D\varphi(x)|.

    Args:
        net: φ.
        prior: a single mixture on :math:`\mathbb{R}^d`.
        x: points, shape ``(*, d)``.

    Returns:
        Values, shape ``(*,)``.

    Raises:
        ValueError: for shapes or dtypes that do not fit, or NaN in x.

    Source: the change-of-variables formula.

    Example:
        >>> import torch
        >>> prior = GaussianMixture.gaussian(torch.zeros(1), torch.ones(1, 1))
        >>> net, x = InvertibleResNet.dense(1), torch.zeros(1, 1)
        >>> log_q = pushforward_log_prob(net, prior, x)
        >>> torch.allclose(log_q, prior.log_prob(x) - net.log_abs_det(x))
        True
    """
    check_instance("net", net, InvertibleResNet)
    check_single(prior)
    check_points("x", x, prior.dim, like=prior.means)
    return prior.log_prob(x) - net.log_abs_det(x)


def pushforward_score(net: InvertibleResNet, prior: GaussianMixture, x: Tensor) -> Tensor:
    r"""The score of z = φ(x), where x is drawn from the prior, at the point φ(x),

    .. math:: \nabla \log q(\varphi(x)) = D\varphi(x)^{-\top}\, \nabla_x \big[\log p_X(x) - \log |\det D\varphi(x)|\big].

    Args:
        net, prior, x: as in `pushforward_log_prob`; x of shape ``(n, d)``.

    Returns:
        Vectors, shape ``(n, d)``, without a graph.

    Raises:
        ValueError: as `pushforward_log_prob` does.

    Source: the chain rule, applied to :math:`\log q(\varphi(x))`.

    Example:
        >>> import torch
        >>> prior = GaussianMixture.gaussian(torch.zeros(1), torch.ones(1, 1))
        >>> pushforward_score(InvertibleResNet.dense(1), prior, torch.zeros(3, 1)).shape
        torch.Size([3, 1])
    """
    check_single(prior)
    check_points("x", x, prior.dim, like=prior.means)
    with torch.inference_mode(False), torch.enable_grad():
        points = x.detach().clone().requires_grad_()
        total = pushforward_log_prob(net, prior, points).sum()
        (gradient,) = torch.autograd.grad(total, points)
    with torch.no_grad():
        return torch.linalg.solve(net.jacobian(x).mT, gradient)
