"""A look at any network of a strategy: at which samples, and through which eyes a diagnostic sees it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from avalanche.models import MultiTaskModule, TrainEvalModel
from torch import Tensor, nn

from plasticity_cl.errors import UserError
from plasticity_cl.metrics.scores import logits_of
from plasticity_cl.training.learner import Learner, criterion_of
from plasticity_cl.training.probe_samples import Batch, random_samples

__all__ = ["Batch", "Look", "inner_network", "looking", "random_samples"]


class Look:
    """What a diagnostic sees of a strategy: a network that is called with inputs alone and gives logits.

    Attributes:
        model: The strategy's network, out of whatever is wrapped around it.
    """

    def __init__(self, model: nn.Module, criterion: Any) -> None:
        self.model = model
        self._loss_function = criterion
        self._seen: Any = None

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The strategy's criterion; where the network gives more than logits, the criterion gets all of it."""
        seen = self._seen
        value: Tensor = self._loss_function(output if seen is None else _with_logits(seen, output), target)
        return value

    def pick(self, output: Any) -> Tensor:
        """The logits in what the network gave."""
        if not isinstance(output, Tensor):
            self._seen = output
        return logits_of(output)


@contextmanager
def looking(strategy: Learner, batch: Batch) -> Iterator[Look]:
    """Look at the strategy's network on the samples of ``batch``, without leaving a trace in network or criterion.

    While the block lasts, networks for several tasks get the task labels of the samples, as Avalanche's strategies give
    them; of outputs that are tuples or mappings the logits are seen; and a network with one head for training and
    another for evaluation, as iCaRL's, has the one that is trained. Wrappers (``DataParallel``, ``torch.compile``) are
    looked through. Modes, gradients and random numbers are the diagnostics' own care.
    """
    network = inner_network(strategy.model)
    look = Look(network, _copy(criterion_of(strategy)))
    with _attributes_kept(network), ExitStack() as stack:
        if isinstance(network, TrainEvalModel):
            stack.callback(setattr, network, "eval_classifier", network.eval_classifier)
            network.eval_classifier = _StandIn(network.train_classifier)
        if isinstance(network, MultiTaskModule):
            stack.callback(network.register_forward_pre_hook(_labeller(batch.task_labels)).remove)
        # A function, not a method: copies of the network share it.
        stack.callback(network.register_forward_hook(lambda _module, _inputs, output: look.pick(output)).remove)
        yield look


class _StandIn(nn.Module):
    """Does what another module does. One module in two places would be taken for two."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = (module,)  # in a tuple it is no part of this one

    def forward(self, x: Tensor) -> Any:
        return self._module[0](x)


_OWN = frozenset(vars(nn.Module()))


@contextmanager
def _attributes_kept(network: nn.Module) -> Iterator[None]:
    """Give modules back what they hold: some write down what they have seen.

    Meanwhile what they keep of an earlier pass is no part of its graph, with which they could not be copied.
    """
    kept = [
        (vars(module), {name: value for name, value in vars(module).items() if name not in _OWN})
        for module in network.modules()
    ]
    held = [value for _, values in kept for value in values.values() if isinstance(value, dict | list | set)]
    for module in network.modules():
        # PyTorch's functional calls leave other parameters in a module that is in two places.
        held += [module._buffers, module._parameters]
    contents = [(container, copy.copy(container)) for container in held]
    for attributes, values in kept:
        for name, value in values.items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                attributes[name] = value.detach()
    try:
        yield
    finally:
        for attributes, values in kept:
            for name in [name for name in attributes if name not in _OWN and name not in values]:
                del attributes[name]
            attributes.update(values)
        for container, content in contents:
            if isinstance(container, list):
                container[:] = content
            else:
                container.clear()
                container.update(content)


def inner_network(model: nn.Module) -> nn.Module:
    """The network in whatever is wrapped around it for speed: what it holds has the same names with and without."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = cast(nn.Module, model._orig_mod)
        else:
            return model


def _labeller(labels: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
    same = len(set(labels.tolist())) == 1

    def add_labels(_module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        if len(inputs) != 1:
            return None
        if same:
            return inputs[0], labels[:1].expand(len(inputs[0]))
        if len(inputs[0]) != len(labels):
            raise UserError("samples of several tasks can only be looked at all at once")
        return inputs[0], labels

    return add_labels


def _copy(criterion: Any) -> Any:
    """A copy, since a criterion may keep count of its calls; the criterion itself where it cannot be copied."""
    try:
        return copy.deepcopy(criterion)
    except Exception:
        return criterion


def _with_logits(seen: Any, logits: Tensor) -> Any:
    """What the network gave, with other logits in their place."""
    old = logits_of(seen)
    if isinstance(seen, Mapping):
        twin = copy.copy(seen)
        for name, value in seen.items():
            if value is old:
                twin[name] = logits  # type: ignore[index]
        return twin
    if isinstance(seen, tuple | list):
        parts = [logits if part is old else part for part in seen]
        return type(seen)(*parts) if hasattr(seen, "_fields") else type(seen)(parts)
    twin = copy.copy(seen)
    for name, value in vars(seen).items():
        if value is old:
            setattr(twin, name, logits)
    return twin
