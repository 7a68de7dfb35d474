"""Invertible networks as Bayesian point estimators: the package behind the book."""

from invbayes.bayes.estimators import (
    ForwardEigenvalues,
    gaussian_forward_eigenvalues,
    ideal_forward_map,
    linear_estimate,
    map_estimate,
    posterior_mean,
)
from invbayes.bayes.inverse_problem import InverseProblem, Pullback
from invbayes.bayes.mixtures import Expansion, GaussianMixture
from invbayes.bayes.modes import global_mode, has_single_mode
from invbayes.bayes.nonlinear import NonlinearProblem
from invbayes.bayes.poisson import PoissonProblem
from invbayes.bayes.posteriors import data_density, normal_data_density, posterior
from invbayes.bayes.problems import LinearProblem
from invbayes.bayes.quadrature import PlanePosterior, plane_posterior
from invbayes.deep_prior.adaptive_optimizer import AdaptiveInertia
from invbayes.deep_prior.inertia import Trajectory, gradient_flow, inertial_flow
from invbayes.deep_prior.linearised import (
    decay_rate,
    linearised_gradient_flow,
    linearised_inertia,
    mode_roots,
    optimal_damping,
)
from invbayes.deep_prior.network import DeepPrior
from invbayes.deep_prior.observation_fit import DataMisfit, Iterate, fit_observation, iterates
from invbayes.deep_prior.optimizers import Inertia
from invbayes.deep_prior.stability import amplification, largest_step
from invbayes.errors import NotConverged, RangeWarning, RunawayWarning, TiedModes, TrainingDiverged
from invbayes.networks.activations import Elu, HalfAbs, HalfLinear, Tanh
from invbayes.networks.blocks import Block
from invbayes.networks.contraction import fixed_point
from invbayes.networks.convolutional import LipschitzConvolutional
from invbayes.networks.convolutions import convolution_norm
from invbayes.networks.covariance import (
    ErrorBars,
    EstimatedVariance,
    posterior_covariance,
    posterior_variance,
    variance_bounds,
)
from invbayes.networks.dense import LipschitzDense, unit_spectral_norm
from invbayes.networks.descent import StationaryPoints
from invbayes.networks.evidence import line_integral, log_evidence
from invbayes.networks.iresnet import InvertibleResNet
from invbayes.networks.learned_posterior import LearnedPosterior
from invbayes.networks.proximal import concavity_defect, proximal
from invbayes.networks.pushforward import pushforward_log_prob, pushforward_score
from invbayes.networks.ridge import Ridge
from invbayes.networks.saving import load_network, save_network
from invbayes.networks.stein import unbiased_risk
from invbayes.networks.stochastic import (
    Estimate,
    hutchinson_divergence,
    log_det_series,
    truncation_bound,
)
from invbayes.networks.weakly_convex import WeaklyConvexRidge
from invbayes.progress import progress_bar
from invbayes.training.fitting import fit
from invbayes.training.heat_step import HeatStep
from invbayes.training.metrics import posterior_metric
from invbayes.training.objectives import (
    Approximation,
    Divergence,
    LogDeterminant,
    Reconstruction,
)
from invbayes.training.report import Measured, Report, report
from invbayes.training.samplers import (
    fixed_samples,
    fresh_noise,
    fresh_samples,
    quasi_samples,
    random_crops,
)
from invbayes.training.training import TrainingRecord, train
from invbayes.training.weighted import WeightedDivergence
from invbayes.training.without_truth import UnbiasedRisk

__all__ = [
    "AdaptiveInertia",
    "Approximation",
    "Block",
    "DataMisfit",
    "DeepPrior",
    "Divergence",
    "Elu",
    "ErrorBars",
    "Estimate",
    "EstimatedVariance",
    "Expansion",
    "ForwardEigenvalues",
    "GaussianMixture",
    "HalfAbs",
    "HalfLinear",
    "HeatStep",
    "Inertia",
    "InverseProblem",
    "InvertibleResNet",
    "Iterate",
    "LearnedPosterior",
    "LinearProblem",
    "LipschitzConvolutional",
    "LipschitzDense",
    "LogDeterminant",
    "Measured",
    "NonlinearProblem",
    "NotConverged",
    "PlanePosterior",
    "PoissonProblem",
    "Pullback",
    "RangeWarning",
    "Reconstruction",
    "Report",
    "Ridge",
    "RunawayWarning",
    "StationaryPoints",
    "Tanh",
    "TiedModes",
    "TrainingDiverged",
    "TrainingRecord",
    "Trajectory",
    "UnbiasedRisk",
    "WeaklyConvexRidge",
    "WeightedDivergence",
    "amplification",
    "concavity_defect",
    "convolution_norm",
    "data_density",
    "decay_rate",
    "fit",
    "fit_observation",
    "fixed_point",
    "fixed_samples",
    "fresh_noise",
    "fresh_samples",
    "gaussian_forward_eigenvalues",
    "global_mode",
    "gradient_flow",
    "has_single_mode",
    "hutchinson_divergence",
    "ideal_forward_map",
    "inertial_flow",
    "iterates",
    "largest_step",
    "line_integral",
    "linear_estimate",
    "linearised_gradient_flow",
    "linearised_inertia",
    "load_network",
    "log_det_series",
    "log_evidence",
    "map_estimate",
    "mode_roots",
    "normal_data_density",
    "optimal_damping",
    "plane_posterior",
    "posterior",
    "posterior_covariance",
    "posterior_mean",
    "posterior_metric",
    "posterior_variance",
    "progress_bar",
    "proximal",
    "pushforward_log_prob",
    "pushforward_score",
    "quasi_samples",
    "random_crops",
    "report",
    "save_network",
    "train",
    "truncation_bound",
    "unbiased_risk",
    "unit_spectral_norm",
    "variance_bounds",
]
