"""Invertible networks as Bayesian point estimators: the package behind the book."""

from invbayes.contraction import fixed_point
from invbayes.errors import NotConverged, TiedModes, TrainingDiverged
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
from invbayes.modes import global_mode, has_single_mode
from invbayes.objectives import (
    Approximation,
    Divergence,
    LogDeterminant,
    Reconstruction,
    posterior_metric,
)
from invbayes.posteriors import data_density, normal_data_density, posterior
from invbayes.problems import LinearProblem
from invbayes.pushforward import pushforward_log_prob, pushforward_score
from invbayes.samplers import fixed_samples, fresh_samples, quasi_samples
from invbayes.stochastic import hutchinson_divergence, log_det_series, truncation_bound
from invbayes.training import TrainingRecord, fit, train

__all__ = [
    "Approximation",
    "Divergence",
    "ForwardEigenvalues",
    "GaussianMixture",
    "InvertibleResNet",
    "LinearProblem",
    "LipschitzDense",
    "LogDeterminant",
    "NotConverged",
    "Reconstruction",
    "TiedModes",
    "TrainingDiverged",
    "TrainingRecord",
    "data_density",
    "fit",
    "fixed_point",
    "fixed_samples",
    "fresh_samples",
    "gaussian_forward_eigenvalues",
    "global_mode",
    "has_single_mode",
    "hutchinson_divergence",
    "ideal_forward_map",
    "log_det_series",
    "map_estimate",
    "normal_data_density",
    "posterior",
    "posterior_mean",
    "posterior_metric",
    "pushforward_log_prob",
    "pushforward_score",
    "quasi_samples",
    "train",
    "truncation_bound",
]
