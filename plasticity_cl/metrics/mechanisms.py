"""The mechanisms of plasticity loss, watched while a run goes on: one metric a group of diagnostics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plasticity_cl.diagnostics import (
    Trainability,
    effective_learning_rate,
    empirical_ntk,
    feature_norm,
    feature_rank,
    fit_random_targets,
    gradient_norm,
    loss_along_gradient,
    max_hessian_eigenvalue,
    output_bias_share,
    output_top_direction_share,
    parameter_norm,
    penultimate_features,
    target_statistics,
    unit_statistics,
)
from plasticity_cl.diagnostics.ntk import alignment_scalars, spectrum_scalars
from plasticity_cl.diagnostics.trainability import RandomTargetFit
from plasticity_cl.errors import UserError
from plasticity_cl.metrics.last_step import LastStep
from plasticity_cl.metrics.look import inner_network, looking
from plasticity_cl.metrics.pictures import network_picture
from plasticity_cl.metrics.probe import At, ProbeMetric, ProbeRun
from plasticity_cl.metrics.scalar import Shown
from plasticity_cl.quantity import Quantity
from plasticity_cl.training.learner import Batch, Learner, criterion_of

_UNITS, _NORMS, _TARGETS = (
    "Mechanism 1: units and preactivations",
    "Mechanism 2: norms",
    "Mechanism 3: regression targets",
)
_FEATURES, _KERNEL, _LANDSCAPE = "Features", "Tangent kernel", "Curvature and trainability"
_SHARE: Mapping[str, Any] = {"low": 0, "high": 1, "unit": "share"}
_SPREADS = "standard deviations at initialisation"


class UnitMetric(ProbeMetric):
    """Units and preactivations (mechanism 1) on the probe batch, against the network's own initialisation on it.

    Emitted: ``units/...``, every quantity of :func:`~plasticity_cl.diagnostics.unit_statistics`, in total and by layer.
    A network that has other units since, because it grew, gets those that need no initialisation, and one warning.

    Args:
        size: Samples in the probe batch, which stays the same, at least 2.
        every: Look at every so many experiences, at the first and at the last one.
        at: ``"end"`` of the training on an experience, or its ``"start"``.
    """

    group = "units"
    quantities: Mapping[str, Quantity] = {
        "preactivation_shift": Quantity("preactivation shift", _UNITS, "up", low=0, unit=_SPREADS),
        "mean_shift": Quantity("mean shift", _UNITS, "up", low=0, unit=_SPREADS),
        "log_scale_shift": Quantity("log scale shift", _UNITS, "away from 0"),
        "sign_entropy": Quantity("sign entropy", _UNITS, "down", low=0, high=1, unit="bits"),
        "sign_entropy_ratio": Quantity("sign entropy ratio", _UNITS, "down", low=0),
        "dead_units": Quantity("dead units", _UNITS, "up", **_SHARE),
        "linearised_units": Quantity("linearised units", _UNITS, "up", **_SHARE),
        "dormant_units": Quantity("dormant units", _UNITS, "up", **_SHARE),
        "rare_units": Quantity("rare units", _UNITS, "up", **_SHARE),
        "saturated_units": Quantity("saturated units", _UNITS, "up", **_SHARE),
        "activation_sparsity": Quantity("activation sparsity", _UNITS, **_SHARE),
        "preactivation_shift_p95": Quantity("preactivation shift p95", _UNITS, "up", low=0, unit=_SPREADS),
        "mean_shift_p95": Quantity("mean shift p95", _UNITS, "up", low=0, unit=_SPREADS),
        "log_scale_shift_p95": Quantity("log scale shift p95", _UNITS, "away from 0"),
    }

    def __init__(self, size: int = 256, every: int = 1, at: At = "end") -> None:
        super().__init__(size, every, at)

    def remember(self, strategy: Learner, run: ProbeRun) -> Any:
        """Take the moments at initialisation."""
        assert run.probe is not None
        with looking(strategy, run.probe) as look:
            return unit_statistics(look.model, run.probe.inputs).moments

    def measure(self, strategy: Learner, run: ProbeRun) -> Mapping[str, float]:
        """Every quantity, in total and by layer."""
        assert run.probe is not None
        with looking(strategy, run.probe) as look:
            if run.initial is not None:
                try:
                    return unit_statistics(look.model, run.probe.inputs, run.initial).scalars()
                except UserError as error:
                    values = unit_statistics(look.model, run.probe.inputs).scalars()
                    self.warn_of(error, "against the initialisation")
                    return values
            return unit_statistics(look.model, run.probe.inputs).scalars()


class FeatureMetric(ProbeMetric):
    """Ranks and norm of the features, the input of the last linear layer, on the probe batch.

    Emitted: ``features/...``, every quantity of :func:`~plasticity_cl.diagnostics.feature_rank`, and
    ``features/feature_norm``.

    Args:
        size: Samples in the probe batch, which stays the same, at least 2.
        every: Look at every so many experiences, at the first and at the last one.
        at: ``"end"`` of the training on an experience, or its ``"start"``.
    """

    group = "features"
    quantities: Mapping[str, Quantity] = {
        "effective_rank": Quantity("effective rank", _FEATURES, "down", low=0),
        "srank": Quantity("srank", _FEATURES, "down", low=0),
        "stable_rank": Quantity("stable rank", _FEATURES, "down", low=0),
        "participation_ratio": Quantity("participation ratio", _FEATURES, "down", low=0),
        "top_singular_share": Quantity("top singular share", _FEATURES, "up", **_SHARE),
        "feature_norm": Quantity("feature norm", _FEATURES, low=0),
    }

    def __init__(self, size: int = 256, every: int = 1, at: At = "end") -> None:
        super().__init__(size, every, at)

    def measure(self, strategy: Learner, run: ProbeRun) -> Mapping[str, float]:
        """Every rank, and the norm."""
        assert run.probe is not None
        with looking(strategy, run.probe) as look:
            features = penultimate_features(look.model, run.probe.inputs)
        return {**feature_rank(features).scalars(), "feature_norm": feature_norm(features)}


class NormMetric(ProbeMetric):
    """Norms of parameters, gradients and updates (mechanism 2).

    Emitted:
        ``norms/parameter_norm``, in total and by layer; ``norms/parameter_norm_ratio``, over that at initialisation, of
        the layers that have the shape they had then.
        ``norms/gradient_norm``: of the gradients that the last step left, penalties and all; at the end only.
        ``norms/update_ratio``: of the last step that was taken on the experience, ||dW|| / ||W||; at the end only. See
        :class:`~plasticity_cl.metrics.last_step.LastStep`.
        ``norms/effective_learning_rate``: for SGD and Adam-like optimizers.

    Args:
        every: Look at every so many experiences, at the first and at the last one.
        at: ``"end"`` of the training on an experience, or its ``"start"``.
    """

    group = "norms"
    quantities: Mapping[str, Quantity] = {
        "parameter_norm": Quantity("parameter norm", _NORMS, "up", low=0),
        "parameter_norm_ratio": Quantity("parameter norm ratio", _NORMS, "up", low=0),
        "gradient_norm": Quantity("gradient norm", _NORMS, low=0),
        "update_ratio": Quantity("update ratio", _NORMS, "down", low=0),
        "effective_learning_rate": Quantity("effective learning rate", _NORMS, "down", low=0),
    }
    needs_samples = False

    def __init__(self, every: int = 1, at: At = "end") -> None:
        super().__init__(2, every, at)

    def remember(self, strategy: Learner, run: ProbeRun) -> Any:
        """Take the norms at initialisation."""
        network = inner_network(strategy.model)
        return parameter_norm(network).layers, _shapes(network)

    def prepare(self, strategy: Learner) -> LastStep:
        """Watch for the last step of the experience."""
        return LastStep(strategy)

    def measure(self, strategy: Learner, run: ProbeRun) -> Mapping[str, float]:
        """The norms, in total and by layer."""
        network = inner_network(strategy.model)
        norm = parameter_norm(network)
        values = norm.scalars("parameter_norm")
        if run.initial is not None:
            initial, shapes = run.initial
            now = _shapes(network)
            same = [layer for layer in initial if shapes[layer] == now.get(layer)]
            before = math.hypot(*(initial[layer] for layer in same))
            if before:
                values["parameter_norm_ratio"] = math.hypot(*(norm.layers[layer] for layer in same)) / before
        if self._at == "end":
            values |= _defined(lambda: {"gradient_norm": gradient_norm(network).total})
        if run.prepared is not None:
            ratio = run.prepared.ratio()
            values |= {} if ratio is None else {"update_ratio": ratio}
        rates = _defined(lambda: effective_learning_rate(network, strategy.optimizer).scalars("rate"))
        return values | ({"effective_learning_rate": rates["rate"]} if rates else {})


class TargetMetric(ProbeMetric):
    """Where regression targets lie, and which part of the network carries their mean (mechanism 3).

    Emitted, for floating-point targets only:
        ``targets/target_mean``, ``targets/target_std``, ``targets/offset_to_scale``: of samples of the experience.
        ``targets/output_bias_share``, ``targets/output_top_direction_share``: on the probe batch.

    Args:
        size: Samples of the experience, and in the probe batch, at least 2.
        every: Look at every so many experiences, at the first and at the last one.
        at: ``"end"`` of the training on an experience, or its ``"start"``.
    """

    group = "targets"
    quantities: Mapping[str, Quantity] = {
        "target_mean": Quantity("target mean", _TARGETS, "set by the stream"),
        "target_std": Quantity("target std", _TARGETS, "set by the stream", low=0),
        "offset_to_scale": Quantity("offset to scale", _TARGETS, "up", low=0),
        "output_bias_share": Quantity("output bias share", _TARGETS, **_SHARE),
        "output_top_direction_share": Quantity("output top direction share", _TARGETS, "up", **_SHARE),
    }

    def __init__(self, size: int = 1024, every: int = 1, at: At = "end") -> None:
        super().__init__(size, every, at)

    def measure(self, strategy: Learner, run: ProbeRun) -> Mapping[str, float]:
        """Statistics of the targets, and the share of the output bias."""
        targets = self.samples(strategy).targets
        if not targets.is_floating_point():
            return {}
        shares = self.attempt("shares of the output", self._shares, strategy, run)
        return target_statistics(targets).scalars() | (shares or {})

    def _shares(self, strategy: Learner, run: ProbeRun) -> dict[str, float]:
        assert run.probe is not None
        with looking(strategy, run.probe) as look:
            return {
                "output_bias_share": output_bias_share(look.model, run.probe.inputs),
                "output_top_direction_share": output_top_direction_share(look.model, run.probe.inputs),
            }


class KernelMetric(ProbeMetric):
    """The empirical tangent kernel, and the covariance of gradients, on samples of the experience.

    Emitted, of eigenvalues, which are squared singular values of the Jacobian:
        ``kernel/ntk_effective_rank``, ``ntk_srank``, ``ntk_participation_ratio``, ``ntk_trace_over_top``,
        ``ntk_condition_number``: of the trace kernel.
        ``kernel/gradient_mean_cosine``, ``gradient_diagonal_plus_rank_one``: of the Gram matrix of the gradients of the
        samples' losses. To be compared with the network's own initialisation, which ``at="start"`` shows at the first
        experience.

    Args:
        size: Samples of the experience, at least 2.
        every: Look at every so many experiences, at the first and at the last one.
        at: ``"end"`` of the training on an experience, or its ``"start"``.
    """

    group = "kernel"
    quantities: Mapping[str, Quantity] = {
        "ntk_effective_rank": Quantity("ntk effective rank", _KERNEL, "down", low=0),
        "ntk_srank": Quantity("ntk srank", _KERNEL, "down", low=0),
        "ntk_participation_ratio": Quantity("ntk participation ratio", _KERNEL, "down", low=0),
        "ntk_trace_over_top": Quantity("ntk trace over top", _KERNEL, "down", low=0),
        "ntk_condition_number": Quantity("ntk condition number", _KERNEL, "up", low=1),
        "gradient_mean_cosine": Quantity("gradient mean cosine", _KERNEL, "near 1", low=-1, high=1),
        "gradient_diagonal_plus_rank_one": Quantity(
            "gradient diagonal plus rank one", _KERNEL, "near 1", low=0, high=1
        ),
    }

    def __init__(self, size: int = 64, every: int = 1, at: At = "end") -> None:
        super().__init__(size, every, at)

    def measure(self, strategy: Learner, run: ProbeRun) -> Mapping[str, float]:
        """Scalars of both Gram matrices."""
        batch = self.samples(strategy)
        values: dict[str, float] = {}
        for name, scalars in (("tangent kernel", self._kernel), ("gradients", self._gradients)):
            values |= self.attempt(name, scalars, strategy, batch) or {}
        return values

    @staticmethod
    def _kernel(strategy: Learner, batch: Batch) -> dict[str, float]:
        with looking(strategy, batch) as look:
            kernel = empirical_ntk(look.model, batch.inputs)
        return {f"ntk_{name}": value for name, value in spectrum_scalars(kernel).items()}

    @staticmethod
    def _gradients(strategy: Learner, batch: Batch) -> dict[str, float]:
        with looking(strategy, batch) as look:
            gram = empirical_ntk(look.model, batch.inputs, kind="loss", targets=batch.targets, loss=look.loss)
        return {f"gradient_{name}": value for name, value in alignment_scalars(gram).items()}


class CurvatureMetric(ProbeMetric):
    """Both ends of the Hessian's spectrum, of the task loss on samples of the experience.

    Emitted: ``curvature/hessian_largest`` (the sharpness) and ``curvature/hessian_smallest`` (a Ritz value).

    Args:
        size: Samples of the experience, at least 2.
        every: Look at every so many experiences, at the first and at the last one.
        at: ``"end"`` of the training on an experience, or its ``"start"``.
    """

    group = "curvature"
    quantities: Mapping[str, Quantity] = {
        "hessian_largest": Quantity("hessian largest", _LANDSCAPE, "up"),
        "hessian_smallest": Quantity("hessian smallest", _LANDSCAPE),
    }

    def __init__(self, size: int = 256, every: int = 40, at: At = "end") -> None:
        super().__init__(size, every, at)

    def measure(self, strategy: Learner, run: ProbeRun) -> Mapping[str, float]:
        """Both eigenvalues."""
        batch = self.samples(strategy)
        with looking(strategy, batch) as look:
            extremes = max_hessian_eigenvalue(look.model, look.loss, batch.inputs, batch.targets, tol=1e-2)
        return {"hessian_largest": extremes.largest, "hessian_smallest": extremes.smallest}


class TrainabilityMetric(ProbeMetric):
    """How well a copy of the network fits fresh random targets, against the network's own initialisation.

    Emitted: ``trainability/probe_loss``, the mean loss of the fits on the probe batch, and
    ``trainability/probe_loss_ratio``, over that of the initialisation: above 1 is less trainable than fresh. Outputs
    are classified for class labels and for criteria that encode their targets, and regressed on otherwise; with a
    fresh Adam at the better of two learning rates, two targets each. A head that grew is fitted on the outputs that
    were in use at initialisation. See :func:`~plasticity_cl.diagnostics.trainability`. The first experience is passed
    over unless it is due anyway: the initialisation is known.

    Args:
        size: Samples in the probe batch, which stays the same, at least 2.
        every: Look at every so many experiences and at the last one.
        at: ``"end"`` of the training on an experience, or its ``"start"``.
    """

    group = "trainability"
    quantities: Mapping[str, Quantity] = {
        "probe_loss": Quantity("probe loss", _LANDSCAPE, "up", low=0),
        "probe_loss_ratio": Quantity("probe loss ratio", _LANDSCAPE, "up", low=0),
    }
    looks_at_first = False

    def __init__(self, size: int = 64, every: int = 40, at: At = "end") -> None:
        super().__init__(size, every, at)

    def remember(self, strategy: Learner, run: ProbeRun) -> RandomTargetFit:
        """Fit the initialisation; the probe batch and its targets stay the same, so once is enough."""
        return self._fit(strategy, run)

    def save_initial(self, initial: RandomTargetFit) -> dict[str, Any]:
        """The fields of the fit."""
        return dict(vars(initial))

    def load_initial(self, saved: dict[str, Any]) -> RandomTargetFit:
        """The fit."""
        return RandomTargetFit(**saved)

    def measure(self, strategy: Learner, run: ProbeRun) -> Mapping[str, float]:
        """The mean loss and its ratio."""
        fit = self._fit(strategy, run)
        if run.initial is None:
            return {"probe_loss": fit.loss}
        return {"probe_loss": fit.loss, "probe_loss_ratio": Trainability(fit, run.initial).ratio}

    @staticmethod
    def _fit(strategy: Learner, run: ProbeRun) -> RandomTargetFit:
        assert run.probe is not None
        encoded = hasattr(criterion_of(strategy), "decode")
        task = "regression" if run.probe.targets.is_floating_point() and not encoded else "classification"
        with looking(strategy, run.probe) as look:
            return fit_random_targets(
                look.model,
                run.probe.inputs,
                task=task,
                learning_rates=(1e-3, 1e-2),
                n_targets=2,
                classes=run.initial.classes or None if run.initial is not None else None,
            )


class PictureMetric(ProbeMetric):
    """What is better looked at than read, for samples of the experience.

    Emitted, for loggers that take images and histograms; others pass them over:
        ``pictures/network``: the tangent kernel as a heat map, ordered by target, its spectrum, and the loss along the
        gradient.
        ``weights/<layer>``: histograms of the parameters of each layer.
        ``preactivation_mean/<layer>`` and ``preactivation_std/<layer>``: histograms over units, on the probe batch.
        What is not finite is in no histogram.

    Args:
        size: Samples of the experience, and in the probe batch, at least 2.
        every: Look at every so many experiences, at the first and at the last one.
        at: ``"end"`` of the training on an experience, or its ``"start"``.
    """

    group = "pictures"

    def __init__(self, size: int = 64, every: int = 40, at: At = "end") -> None:
        super().__init__(size, every, at)

    def measure(self, strategy: Learner, run: ProbeRun) -> Mapping[str, float]:
        """No number."""
        return {}

    def pictures(self, strategy: Learner, run: ProbeRun) -> Iterable[tuple[str, Any]]:
        """The image and the histograms."""
        for name, draw in (("network", self._image), ("weights", self._weights), ("preactivations", self._units)):
            yield from self.attempt(name, draw, strategy, run) or ()

    def _image(self, strategy: Learner, run: ProbeRun) -> list[tuple[str, Shown]]:
        batch = self.samples(strategy)
        with looking(strategy, batch) as look:
            kernel = empirical_ntk(look.model, batch.inputs)
            line = loss_along_gradient(look.model, look.loss, batch.inputs, batch.targets)
        return [("pictures/network", Shown(network_picture(kernel, batch.targets, line)))]

    @staticmethod
    def _weights(strategy: Learner, run: ProbeRun) -> list[tuple[str, Shown]]:
        histograms: list[tuple[str, Shown]] = []
        for name, module in inner_network(strategy.model).named_modules():
            own = [parameter.detach().flatten() for parameter in module.parameters(recurse=False)]
            histograms += _histogram(f"weights/{name or 'network'}", own)
        return histograms

    @staticmethod
    def _units(strategy: Learner, run: ProbeRun) -> list[tuple[str, Shown]]:
        assert run.probe is not None
        with looking(strategy, run.probe) as look:
            statistics = unit_statistics(look.model, run.probe.inputs)
        histograms: list[tuple[str, Shown]] = []
        for name, layer in statistics.layers.items():
            histograms += _histogram(f"preactivation_mean/{name}", [layer.mean])
            histograms += _histogram(f"preactivation_std/{name}", [layer.std])
        return histograms


def _histogram(name: str, values: list[Tensor]) -> list[tuple[str, Shown]]:
    """One histogram of the finite values, or none: TensorBoard ends the training over an empty one."""
    finite = [tensor[tensor.isfinite()].float().cpu() for tensor in values if not tensor.is_complex()]
    joined = torch.cat(finite) if finite else torch.empty(0)
    return [(name, Shown(joined))] if joined.numel() else []


def _shapes(network: nn.Module) -> dict[str, list[list[int]]]:
    """The shapes of the parameters of each layer, layers named as :func:`parameter_norm` names them."""
    shapes: dict[str, list[list[int]]] = {}
    for name, parameter in network.named_parameters():
        shapes.setdefault(name.rpartition(".")[0] or name, []).append(list(parameter.shape))
    return shapes


def _defined(values: Any) -> dict[str, float]:
    """The values, or none where the diagnostic is not defined for this network or optimizer."""
    try:
        return dict(values())
    except UserError:
        return {}
