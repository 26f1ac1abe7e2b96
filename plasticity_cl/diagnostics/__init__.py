"""Diagnostics of a network: functions of a module and a batch, or of a tensor, that leave no trace in the network."""

from plasticity_cl.diagnostics.curvature import (
    HessianExtremes,
    LossAlongGradient,
    lanczos_extremes,
    loss_along_gradient,
    max_hessian_eigenvalue,
)
from plasticity_cl.diagnostics.norms import (
    effective_learning_rate,
    feature_norm,
    gradient_norm,
    parameter_norm,
    parameter_snapshot,
    update_ratio,
)
from plasticity_cl.diagnostics.ntk import NTKStatistics, cosine_gram, empirical_ntk, ntk_statistics
from plasticity_cl.diagnostics.ranks import (
    FeatureRank,
    effective_rank,
    feature_rank,
    participation_ratio,
    penultimate_features,
    srank,
    stable_rank,
    top_singular_share,
)
from plasticity_cl.diagnostics.targets import TargetStatistics, output_bias_share, target_statistics
from plasticity_cl.diagnostics.trainability import Trainability, fit_random_targets, trainability
from plasticity_cl.diagnostics.units import (
    UnitStatistics,
    activation_sparsity,
    dead_units,
    dormant_units,
    linearised_units,
    preactivation_shift,
    rare_units,
    saturated_units,
    sign_entropy,
    unit_statistics,
)

__all__ = [
    "FeatureRank",
    "HessianExtremes",
    "LossAlongGradient",
    "NTKStatistics",
    "TargetStatistics",
    "Trainability",
    "UnitStatistics",
    "activation_sparsity",
    "cosine_gram",
    "dead_units",
    "dormant_units",
    "effective_learning_rate",
    "effective_rank",
    "empirical_ntk",
    "feature_norm",
    "feature_rank",
    "fit_random_targets",
    "gradient_norm",
    "lanczos_extremes",
    "linearised_units",
    "loss_along_gradient",
    "max_hessian_eigenvalue",
    "ntk_statistics",
    "output_bias_share",
    "parameter_norm",
    "parameter_snapshot",
    "participation_ratio",
    "penultimate_features",
    "preactivation_shift",
    "rare_units",
    "saturated_units",
    "sign_entropy",
    "srank",
    "stable_rank",
    "target_statistics",
    "top_singular_share",
    "trainability",
    "unit_statistics",
    "update_ratio",
]
