"""The mechanisms of plasticity loss, watched while a run goes on: one metric a group of diagnostics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from plasticity_cl.diagnostics import (
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
    parameter_snapshot,
    penultimate_features,
    target_statistics,
    unit_statistics,
    update_ratio,
)
from plasticity_cl.diagnostics.norms import LayerValues
from plasticity_cl.diagnostics.ntk import alignment_scalars, spectrum_scalars
from plasticity_cl.errors import UserError
from plasticity_cl.metrics.pictures import network_picture
from plasticity_cl.metrics.probe import At, ProbeMetric, first_samples


class UnitMetric(ProbeMetric):
    """Units and preactivations (mechanism 1) on the probe batch, against the network's own initialisation on it.

    Emitted: ``units/...``, every quantity of :func:`~plasticity_cl.diagnostics.unit_statistics`, in total and by layer.
    See :class:`~plasticity_cl.metrics.probe.ProbeMetric` for the arguments.
    """

    group = "units"

    def __init__(self, size: int = 256, every: int = 1, at: At = "end") -> None:
        super().__init__(size, every, at)

    def reset(self) -> None:
        """Forget the probe batch and the initialisation."""
        super().reset()
        self._initial: Any = None

    def remember(self, strategy: Any) -> None:
        """Take the moments at initialisation."""
        self._initial = unit_statistics(strategy.model, self.probe)

    def measure(self, strategy: Any) -> Mapping[str, float]:
        """Every quantity, in total and by layer."""
        return unit_statistics(strategy.model, self.probe, self._initial).scalars()


class FeatureMetric(ProbeMetric):
    """Ranks and norm of the features, the input of the last linear layer, on the probe batch.

    Emitted: ``features/...``, every quantity of :func:`~plasticity_cl.diagnostics.feature_rank`, and
    ``features/feature_norm``. See :class:`~plasticity_cl.metrics.probe.ProbeMetric` for the arguments.
    """

    group = "features"

    def __init__(self, size: int = 256, every: int = 1, at: At = "end") -> None:
        super().__init__(size, every, at)

    def measure(self, strategy: Any) -> Mapping[str, float]:
        """Every rank, and the norm."""
        features = penultimate_features(strategy.model, self.probe)
        return {**feature_rank(features).scalars(), "feature_norm": feature_norm(features)}


class NormMetric(ProbeMetric):
    """Norms of parameters, gradients and updates (mechanism 2).

    Emitted:
        ``norms/parameter_norm``, in total and by layer; ``norms/parameter_norm_ratio``, over that at initialisation.
        ``norms/gradient_norm``: of the gradients that the last step left, penalties and all; at the end only.
        ``norms/update_ratio``: of the last step of the experience, ||dW|| / ||W||; at the end only.
        ``norms/effective_learning_rate``: for SGD and Adam-like optimizers.

    See :class:`~plasticity_cl.metrics.probe.ProbeMetric` for the arguments.
    """

    group = "norms"

    def __init__(self, every: int = 1, at: At = "end") -> None:
        super().__init__(2, every, at)

    def reset(self) -> None:
        """Forget the initialisation."""
        super().reset()
        self._initial = LayerValues(math.nan, {})
        self._hooks: list[RemovableHandle] = []

    def remember(self, strategy: Any) -> None:
        """Take the norms at initialisation."""
        self._initial = parameter_norm(strategy.model)

    def prepare(self, strategy: Any) -> None:
        """Watch for the last step of the experience: a copy of the parameters at each step would cost too much."""
        self._remove_hooks()
        self._update: LayerValues | None = None
        try:
            last = len(strategy.dataloader) * strategy.train_epochs
        except (AttributeError, TypeError):
            return
        steps = 0
        before: dict[str, Any] = {}

        def before_step(*_: Any) -> None:
            nonlocal steps, before
            steps += 1
            if steps == last:
                before = parameter_snapshot(strategy.model)

        def after_step(*_: Any) -> None:
            if steps == last:
                self._update = update_ratio(before, strategy.model)

        optimizer = strategy.optimizer
        self._hooks = [
            optimizer.register_step_pre_hook(before_step),
            optimizer.register_step_post_hook(after_step),
        ]

    def measure(self, strategy: Any) -> Mapping[str, float]:
        """The norms, in total and by layer."""
        self._remove_hooks()
        norm = parameter_norm(strategy.model)
        initial = self._initial.total
        values = norm.scalars("parameter_norm")
        values["parameter_norm_ratio"] = norm.total / initial if initial else math.nan
        if self._at == "end":
            values |= _defined(lambda: {"gradient_norm": gradient_norm(strategy.model).total})
            if self._update is not None:
                values["update_ratio"] = self._update.total
        rates = _defined(lambda: effective_learning_rate(strategy.model, strategy.optimizer).scalars("rate"))
        return values | ({"effective_learning_rate": rates["rate"]} if rates else {})

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


class TargetMetric(ProbeMetric):
    """Where regression targets lie, and which part of the network carries their mean (mechanism 3).

    Emitted, for floating-point targets only:
        ``targets/target_mean``, ``targets/target_std``, ``targets/offset_to_scale``: of the experience's first samples.
        ``targets/output_bias_share``, ``targets/output_top_direction_share``: on the probe batch.

    See :class:`~plasticity_cl.metrics.probe.ProbeMetric` for the arguments.
    """

    group = "targets"

    def __init__(self, size: int = 1024, every: int = 1, at: At = "end") -> None:
        super().__init__(size, every, at)

    def measure(self, strategy: Any) -> Mapping[str, float]:
        """Statistics of the targets, and the share of the output bias."""
        _, targets = first_samples(strategy, self._size)
        if not targets.is_floating_point():
            return {}
        return {
            **target_statistics(targets).scalars(),
            "output_bias_share": output_bias_share(strategy.model, self.probe),
            "output_top_direction_share": output_top_direction_share(strategy.model, self.probe),
        }


class KernelMetric(ProbeMetric):
    """The empirical tangent kernel, and the covariance of gradients, on the first samples of the experience.

    Emitted, of eigenvalues, which are squared singular values of the Jacobian:
        ``kernel/ntk_effective_rank``, ``ntk_srank``, ``ntk_participation_ratio``, ``ntk_trace_over_top``,
        ``ntk_condition_number``: of the trace kernel.
        ``kernel/gradient_mean_cosine``, ``gradient_diagonal_plus_rank_one``: of the Gram matrix of the gradients of the
        samples' losses. To be compared with the network's own initialisation, which ``at="start"`` shows at the first
        experience.

    See :class:`~plasticity_cl.metrics.probe.ProbeMetric` for the arguments.
    """

    group = "kernel"

    def __init__(self, size: int = 64, every: int = 1, at: At = "end") -> None:
        super().__init__(size, every, at)

    def measure(self, strategy: Any) -> Mapping[str, float]:
        """Scalars of both Gram matrices."""
        inputs, targets = first_samples(strategy, self._size)
        kernel = empirical_ntk(strategy.model, inputs)
        gradients = empirical_ntk(strategy.model, inputs, kind="loss", targets=targets, loss=strategy._criterion)
        values = {f"ntk_{name}": value for name, value in spectrum_scalars(kernel).items()}
        return values | {f"gradient_{name}": value for name, value in alignment_scalars(gradients).items()}


class CurvatureMetric(ProbeMetric):
    """Both ends of the Hessian's spectrum, of the task loss on the first samples of the experience.

    Emitted: ``curvature/hessian_largest`` (the sharpness) and ``curvature/hessian_smallest`` (a Ritz value). See
    :class:`~plasticity_cl.metrics.probe.ProbeMetric` for the arguments.
    """

    group = "curvature"

    def __init__(self, size: int = 256, every: int = 40, at: At = "end") -> None:
        super().__init__(size, every, at)

    def measure(self, strategy: Any) -> Mapping[str, float]:
        """Both eigenvalues."""
        inputs, targets = first_samples(strategy, self._size)
        extremes = max_hessian_eigenvalue(strategy.model, strategy._criterion, inputs, targets, tol=1e-2)
        return {"hessian_largest": extremes.largest, "hessian_smallest": extremes.smallest}


class TrainabilityMetric(ProbeMetric):
    """How well a copy of the network fits fresh random targets, against the network's own initialisation.

    Emitted: ``trainability/probe_loss``, the mean loss of the fits on the probe batch, and
    ``trainability/probe_loss_ratio``, over that of the initialisation: above 1 is less trainable than fresh. Outputs
    are classified for class labels and for criteria that encode their targets, and regressed on otherwise; with a
    fresh Adam at the better of two learning rates, two targets each. See
    :func:`~plasticity_cl.diagnostics.trainability`, and :class:`~plasticity_cl.metrics.probe.ProbeMetric` for the
    arguments. The first experience is passed over unless it is due anyway: the initialisation is known.
    """

    group = "trainability"
    looks_at_first = False

    def __init__(self, size: int = 64, every: int = 40, at: At = "end") -> None:
        super().__init__(size, every, at)

    def reset(self) -> None:
        """Forget the probe batch and the initialisation's fit."""
        super().reset()
        self._fresh_loss = math.nan

    def remember(self, strategy: Any) -> None:
        """Fit the initialisation; the probe batch and its targets stay the same, so once is enough."""
        self._fresh_loss = self._fit(strategy)

    def measure(self, strategy: Any) -> Mapping[str, float]:
        """The mean loss and its ratio."""
        loss = self._fit(strategy)
        return {"probe_loss": loss, "probe_loss_ratio": loss / self._fresh_loss}

    def _fit(self, strategy: Any) -> float:
        _, targets = first_samples(strategy, 2)
        encoded = hasattr(strategy._criterion, "decode")
        task = "regression" if targets.is_floating_point() and not encoded else "classification"
        return fit_random_targets(strategy.model, self.probe, task=task, learning_rates=(1e-3, 1e-2), n_targets=2).loss


class PictureMetric(ProbeMetric):
    """What is better looked at than read, for the first samples of the experience.

    Emitted, for loggers that take images and histograms:
        ``pictures/network``: the tangent kernel as a heat map, ordered by target, its spectrum, and the loss along the
        gradient.
        ``weights/<layer>``: histograms of the parameters of each layer.
        ``preactivation_mean/<layer>`` and ``preactivation_std/<layer>``: histograms over units, on the probe batch.

    See :class:`~plasticity_cl.metrics.probe.ProbeMetric` for the arguments.
    """

    group = "pictures"

    def __init__(self, size: int = 64, every: int = 40, at: At = "end") -> None:
        super().__init__(size, every, at)

    def measure(self, strategy: Any) -> Mapping[str, float]:
        """No number."""
        return {}

    def pictures(self, strategy: Any) -> Iterable[tuple[str, Any]]:
        """The image and the histograms."""
        inputs, targets = first_samples(strategy, self._size)
        kernel = empirical_ntk(strategy.model, inputs)
        line = loss_along_gradient(strategy.model, strategy._criterion, inputs, targets)
        yield "pictures/network", network_picture(kernel, targets, line)
        for name, module in strategy.model.named_modules():
            own = [parameter.detach().flatten() for parameter in module.parameters(recurse=False)]
            if own:
                yield f"weights/{name or 'network'}", torch.cat(own)
        for name, layer in unit_statistics(strategy.model, self.probe).layers.items():
            yield f"preactivation_mean/{name}", layer.mean
            yield f"preactivation_std/{name}", layer.std


def _defined(values: Any) -> dict[str, float]:
    """The values, or none where the diagnostic is not defined for this network or optimizer."""
    try:
        return dict(values())
    except UserError:
        return {}
