"""Fresh networks, trained on one experience alone while a run goes on and without disturbing it."""

from __future__ import annotations

import copy
import inspect
import sys
import types
import warnings
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, NoReturn

import torch
from avalanche.evaluation import PluginMetric
from avalanche.training import JointTraining
from avalanche.training.plugins import LRSchedulerPlugin
from avalanche.training.templates import SupervisedTemplate as AvalancheTemplate
from avalanche.training.templates.base import BaseTemplate
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from plasticity_cl.errors import UserError
from plasticity_cl.metrics.copying import CopyError, bound_copy, network_parts
from plasticity_cl.metrics.experience_score import ExperienceScore, score_on
from plasticity_cl.metrics.guard import RefusedError
from plasticity_cl.metrics.identity import number_of
from plasticity_cl.metrics.probe import ProbeMetric
from plasticity_cl.seeding import preserve_rng, restore_rng, rng_state
from plasticity_cl.training.avalanche_names import WAITING_VALUES, evaluation_streams, whole_experience
from plasticity_cl.training.hooks import is_overridden

FreshFactory = Callable[[], nn.Module | AvalancheTemplate]

_ADVICE = "let the reference be a function that returns a whole new strategy"
_SETTINGS = ("train_epochs", "train_mb_size", "eval_mb_size")


class FreshNetworks:
    """Trains a fresh network on each experience as the watched strategy is about to do.

    The first time that it meets the strategy, before any training, it copies it as a whole: class, plugins, schedulers,
    optimizer with its groups, criterion, metrics. For each experience that copy is copied again around a fresh network,
    and everything in it that held on to the network, its parameters or its optimizer holds on to the fresh one's (see
    :func:`~plasticity_cl.metrics.copying.bound_copy`). It is trained with the options that ``train()`` was called with,
    from the state that the random generators had then: a fresh network that starts from the same weights as the watched
    one ends with the same weights, bit for bit.

    Settings that a script changes between two calls of ``train()`` are followed: epochs, batch sizes, hyperparameters
    of the optimizer, and a new optimizer. What cannot be reproduced is refused, by name.

    Args:
        factory: Gives a network at its initialisation, or a whole strategy around one, a new one at each call.
    """

    def __init__(self, factory: FreshFactory) -> None:
        self._factory = factory
        self._met = False
        self._template: AvalancheTemplate | None = None
        self._uncopied = ""
        self._optimizer: Any = None
        self._settings: dict[str, Any] = {}
        self._hyperparameters: list[dict[str, Any]] = []
        self._plugins: list[Any] = []
        self._refused = ""
        self._in_use: MutableMapping[Tensor, None] = WeakTensorKeyDictionary()
        self._rng: Any = None
        self._options: dict[str, Any] = {}
        self._fresh: AvalancheTemplate | None = None
        self._trained_on: tuple[Any, int] | None = None

    def remember(self, strategy: AvalancheTemplate) -> None:
        """Copy the strategy as it is; to be called when it is met, before it trains for the first time."""
        if self._met:
            return
        self._met = True
        if strategy.clock.train_iterations > 0:
            self._uncopied = "the strategy had trained already when the metric met it"
            return
        self._in_use.update(dict.fromkeys(strategy.model.parameters()))
        self._optimizer, self._plugins = strategy.optimizer, list(strategy.plugins)
        made = self._new()
        if isinstance(made, BaseTemplate):
            return
        try:
            evaluator = _quiet_evaluator(strategy)
            template = self._copy_around(made, strategy, [(strategy.evaluator, evaluator)])
            pairs = [*self._matched(strategy.model, made), (strategy, template)]
            metrics = map(_without_reference, strategy.evaluator.metrics)
            evaluator.metrics = [bound_copy(metric, pairs) for metric in metrics if metric is not None]
            self._template = template
        except CopyError as error:
            self._uncopied = str(error)
        self._warn_of_early_plugins(strategy)

    def state_dict(self) -> dict[str, Any]:
        """The settings with which the last training ended, and those that fresh networks are trained with."""
        template: Any = self._template
        followed = None
        if template is not None:
            groups = [_hyperparameters(group) for group in template.optimizer.param_groups]
            followed = {"settings": _settings(template), "hyperparameters": groups}
        return {"settings": self._settings, "hyperparameters": self._hyperparameters, "followed": followed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave, after :meth:`remember`.

        Args:
            state: As it was, or as ``torch.load(..., weights_only=True)`` read it.
        """
        self._settings, self._hyperparameters = dict(state["settings"]), list(state["hyperparameters"])
        template: Any = self._template
        if template is not None and state["followed"] is not None:
            vars(template).update(state["followed"]["settings"])
            for group, saved in zip(template.optimizer.param_groups, state["followed"]["hyperparameters"], strict=True):
                group.update(copy.deepcopy(saved))

    def before_training(self, strategy: AvalancheTemplate) -> None:
        """Note what the training begins with: random state, options of ``train()``, and what the script changed."""
        self.remember(strategy)
        self._rng = rng_state()
        self._options = _options_of_train(strategy)
        if self._template is not None:
            if self._settings:
                self._follow_settings(strategy)
            self._note_settings(strategy)

    def before_experience(self) -> None:
        """Note the random state before anything is done for an experience after the first of one ``train()``."""
        self._rng = rng_state()

    def after_training(self, strategy: AvalancheTemplate) -> None:
        """Note the settings with which the training ended: what differs at the next one, the script has changed."""
        self._note_settings(strategy)

    def train(self, strategy: AvalancheTemplate) -> None:
        """Train a fresh network on the strategy's current experience, in the batch order that it is about to use.

        A mini experience of an online stream goes on with the network of the one before, if that was part of the same
        experience.

        Raises:
            UserError: If the run cannot be reproduced; once.
            Exception: Whatever the strategy's own code raises around a fresh network.
        """
        if self._refused:
            return
        if isinstance(strategy, JointTraining):
            self._refuse("JointTraining trains on all experiences at once, and no network does that on one alone")
        experience = strategy.experience
        of = (whole_experience(experience), number_of(experience))
        goes_on = experience is not of[0] and self._trained_on is not None and self._trained_on[0] is of[0]
        trained, self._trained_on = self._fresh, None
        self._fresh = None
        with preserve_rng(), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the watched strategy says it itself
            fresh = trained if goes_on and trained is not None else self._make()
            options = bound_copy(self._options, [])
            restore_rng(self._rng)
            fresh.train(experience, eval_streams=evaluation_streams(strategy), **options)
        self._fresh, self._trained_on = fresh, of

    def score(self, strategy: AvalancheTemplate, metric: ExperienceScore) -> float:
        """Score the last fresh network on the experience that the strategy is being evaluated on.

        Args:
            strategy: The watched strategy, in an evaluation.
            metric: Scores it.

        Returns:
            The score; NaN where there is no fresh network for this experience.
        """
        if self._fresh is None or self._trained_on is None or self._trained_on[1] != number_of(strategy.experience):
            return float("nan")
        with preserve_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return score_on(self._fresh, [strategy.experience], metric)

    def _make(self) -> AvalancheTemplate:
        try:
            made = self._new()
        except RefusedError as error:  # it is too late to refuse the run
            self._refuse(str(error))
        if isinstance(made, BaseTemplate):
            made.evaluator.loggers = []
            return made
        if self._template is None:
            self._refuse(self._uncopied)
        try:
            return self._copy_around(made, self._template)
        except CopyError as error:
            self._refuse(str(error))

    def _new(self) -> nn.Module | AvalancheTemplate:
        """A new network or strategy from the factory.

        Raises:
            RefusedError: If it is neither of them, or holds on to parameters of one that it made before.
        """
        with preserve_rng():
            made = self._factory()
        if not isinstance(made, nn.Module | BaseTemplate):
            kind = type(made).__name__
            raise RefusedError(
                f"the reference must return a torch.nn.Module or an Avalanche strategy; it returned a {kind}"
            )
        network = made.model if isinstance(made, BaseTemplate) else made
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        if any(parameter in self._in_use for parameter in parameters):
            raise RefusedError(
                "the reference returned a network that is in use already; it must make a new one at each call"
            )
        self._in_use.update(dict.fromkeys(parameters))
        return made

    def _warn_of_early_plugins(self, strategy: AvalancheTemplate) -> None:
        early = strategy.plugins[: strategy.plugins.index(strategy.evaluator)]
        for plugin in early:
            acts = is_overridden(plugin, "before_training") and not isinstance(plugin, LRSchedulerPlugin)
            if acts and strategy.is_training:
                name = type(plugin).__name__
                warnings.warn(
                    f"fresh networks: {name} acts in before_training, before anybody could copy it, so that its copies "
                    f"act a second time; if that makes a difference, {_ADVICE}",
                    stacklevel=2,
                )

    def _copy_around(
        self, network: nn.Module, strategy: AvalancheTemplate, others: Sequence[tuple[Any, Any]] = ()
    ) -> AvalancheTemplate:
        """A copy of a strategy around another network, on which stands what the strategy has put on its own."""
        matched = self._matched(strategy.model, network)
        made: AvalancheTemplate = bound_copy(strategy, [*matched, *others])
        for old, new in matched:
            if isinstance(old, nn.Module):
                added = {name: value for name, value in vars(old).items() if name not in vars(new)}
                vars(new).update(bound_copy(added, [*matched, (strategy, made)]) if added else {})
        return made

    def _matched(self, model: nn.Module, network: nn.Module) -> list[tuple[Any, Any]]:
        """Parts of two networks in pairs; one that is not built as the other is refused."""
        old, new = network_parts(model), network_parts(network)
        for name in [*old, *(name for name in new if name not in old)]:
            here, there = (_looks(parts.get(name)) for parts in (old, new))
            if here != there:
                self._refuse(f"the reference's network differs from the strategy's: {name} is {there}, not {here}")
        return [(part, new[name]) for name, part in old.items()]

    def _refuse(self, why: str) -> NoReturn:
        self._refused = why
        raise UserError(f"no fresh networks: {why}; {_ADVICE}")

    def _note_settings(self, strategy: AvalancheTemplate) -> None:
        self._settings = _settings(strategy)
        self._optimizer = strategy.optimizer
        self._hyperparameters = [_hyperparameters(group) for group in strategy.optimizer.param_groups]
        self._plugins = list(strategy.plugins)

    def _follow_settings(self, strategy: AvalancheTemplate) -> None:
        """Change the template as the script has changed the strategy since its last training."""
        template: Any = self._template
        for name, value in self._settings.items():
            if getattr(strategy, name) != value:
                setattr(template, name, getattr(strategy, name))
        if list(strategy.plugins) != self._plugins:
            self._refuse("plugins were added or removed between two trainings")
        if strategy.optimizer is not self._optimizer:
            parts = network_parts(template.model)
            pairs = [(part, parts[name]) for name, part in network_parts(strategy.model).items() if name in parts]
            template.optimizer = bound_copy(strategy.optimizer, pairs)
            return
        groups = zip(
            strategy.optimizer.param_groups, self._hyperparameters, template.optimizer.param_groups, strict=False
        )
        for group, known, copied in groups:
            for name, value in _hyperparameters(group).items():
                if not _same(value, known.get(name)):
                    copied[name] = copy.deepcopy(value)


def _settings(strategy: AvalancheTemplate) -> dict[str, Any]:
    return {name: getattr(strategy, name) for name in _SETTINGS if hasattr(strategy, name)}


def _looks(part: Any) -> str:
    """What has to be the same in two networks for one to take the other's place."""
    if isinstance(part, Tensor):
        frozen = "" if part.requires_grad or not isinstance(part, nn.Parameter) else ", frozen"
        return f"{str(part.dtype).removeprefix('torch.')} {list(part.shape)}{frozen}"
    if part is None:
        return "missing"
    hooks = len(part._forward_hooks) + len(part._forward_pre_hooks) + len(part._backward_hooks)
    return type(part).__name__ + (f" with {hooks} hooks" if hooks else "")


def _hyperparameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    return bool(one == other)


def _quiet_evaluator(strategy: AvalancheTemplate) -> Any:
    """The strategy's evaluator, without what it has seen and without anybody who listens."""
    evaluator = copy.copy(strategy.evaluator)
    evaluator.metrics, evaluator.loggers = [], []
    evaluator.all_metric_results = type(evaluator.all_metric_results)(
        *([evaluator.all_metric_results.default_factory] if evaluator.collect_all else [])
    )
    evaluator.last_metric_results = {}
    setattr(evaluator, WAITING_VALUES, [])
    return evaluator


def _without_reference(metric: PluginMetric) -> PluginMetric | None:
    """The metric as a fresh network needs it: none that looks inside networks, none that trains fresh ones itself."""
    if isinstance(metric, ProbeMetric):
        return None
    stand_in = getattr(metric, "without_reference", None)
    return metric if stand_in is None else stand_in()


def _options_of_train(strategy: AvalancheTemplate) -> dict[str, Any]:
    """What ``train()`` was called with, beside experiences and evaluation streams.

    Avalanche hands these options to plugins but not to metrics, so they are read where they are: in the outermost
    ``train`` of the strategy that is being carried out.
    """
    call: types.FrameType | None = None
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "train" and frame.f_locals.get("self") is strategy:
            call = frame
        frame = frame.f_back
    if call is None:
        return {}
    names, _, keywords, values = inspect.getargvalues(call)
    options = {name: values[name] for name in (*names, *_keyword_only(call)) if name in values}
    for name in (*names[:2], "eval_streams"):  # self and the experiences
        options.pop(name, None)
    return options | (dict(values[keywords]) if keywords else {})


def _keyword_only(call: types.FrameType) -> tuple[str, ...]:
    code = call.f_code
    return code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
