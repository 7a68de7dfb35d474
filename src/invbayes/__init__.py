"""Invertible networks as Bayesian point estimators: the package behind the book."""

from invbayes.contraction import fixed_point
from invbayes.errors import NotConverged, TiedModes
from invbayes.estimators import (
    ForwardEigenvalues,
    gaussian_forward_eigenvalues,
    ideal_forward_map,
    map_estimate,
    posterior_mean,
)
from invbayes.iresnet import InvertibleResNet
from invbayes.lipschitz import LipschitzDense
from invbayes.mixtures import GaussianMixture
from invbayes.modes import global_mode
from invbayes.posteriors import data_density, normal_data_density, posterior
from invbayes.problems import LinearProblem
from invbayes.stochastic import hutchinson_divergence, log_det_series, truncation_bound

__all__ = [
    "ForwardEigenvalues",
    "GaussianMixture",
    "InvertibleResNet",
    "LinearProblem",
    "LipschitzDense",
    "NotConverged",
    "TiedModes",
    "data_density",
    "fixed_point",
    "gaussian_forward_eigenvalues",
    "global_mode",
    "hutchinson_divergence",
    "ideal_forward_map",
    "log_det_series",
    "map_estimate",
    "normal_data_density",
    "posterior",
    "posterior_mean",
    "truncation_bound",
]
