"""Invertible networks as Bayesian point estimators: the package behind the book."""

from invbayes.errors import NotConverged, TiedModes
from invbayes.estimators import (
    ForwardEigenvalues,
    gaussian_forward_eigenvalues,
    ideal_forward_map,
    map_estimate,
    posterior_mean,
)
from invbayes.mixtures import GaussianMixture
from invbayes.modes import global_mode
from invbayes.posteriors import data_density, normal_data_density, posterior
from invbayes.problems import LinearProblem

__all__ = [
    "ForwardEigenvalues",
    "GaussianMixture",
    "LinearProblem",
    "NotConverged",
    "TiedModes",
    "data_density",
    "gaussian_forward_eigenvalues",
    "global_mode",
    "ideal_forward_map",
    "map_estimate",
    "normal_data_density",
    "posterior",
    "posterior_mean",
]
