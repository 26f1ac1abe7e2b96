"""A drop-in for Avalanche's supervised template that trains in-memory streams at the speed of a bare loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.plugins.evaluation import default_evaluator
from avalanche.training.templates import SupervisedTemplate as AvalancheTemplate
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity_cl.training.accelerate import Accelerator
from plasticity_cl.training.avalanche_names import LossFunction, criterion_of, is_stopping
from plasticity_cl.training.hooks import Hooks
from plasticity_cl.training.in_memory import SamplesLoader, samples_of
from plasticity_cl.training.loader import gives_device_batches
from plasticity_cl.training.probe_samples import Batch, random_samples

_STEP_EVENTS = (
    *("before_training_iteration", "before_forward", "after_forward", "before_backward", "after_backward"),
    *("before_update", "after_update", "after_training_iteration"),
    *("before_eval_iteration", "before_eval_forward", "after_eval_forward", "after_eval_iteration"),
)
_OTHER_EVENTS = (
    *("before_training", "before_train_dataset_adaptation", "after_train_dataset_adaptation", "before_training_epoch"),
    *("after_training_epoch", "after_training_exp", "after_training", "before_eval", "before_eval_dataset_adaptation"),
    *("after_eval_dataset_adaptation", "after_eval_exp", "after_eval"),
)


def _caller(event: str) -> Callable[..., None]:
    def call(self: SupervisedTemplate, **kwargs: Any) -> None:
        self._call_plugins(event, kwargs)

    return call


class SupervisedTemplate(AvalancheTemplate):  # type: ignore[misc]
    """Avalanche's ``SupervisedTemplate`` with batches gathered from tensors and only overridden hooks called.

    It takes the same arguments, gives bit-identical weights, and runs any plugin. Where a data set is not plainly in
    memory (transforms, subsets, replay), where the loader is asked for workers, where data have task labels, and where
    a plugin brings a loader that is no :class:`~plasticity_cl.training.loader.DeviceLoader`, it does exactly what
    Avalanche does. With a loader of that kind, whatever it draws its batches from, the steps are as fast.

    Avalanche's accuracy and loss of an epoch, an experience or a stream get the same values without waiting for the
    device at each batch. Between its steps the loss is detached from the graph that it came out of, which the backward
    pass has used up.

    Args:
        model: The network.
        optimizer: Made from the model's parameters.
        criterion: Loss function of output and target; cross-entropy when ``None``.
        train_mb_size: Samples in a batch of training.
        train_epochs: Passes over each experience.
        eval_mb_size: Samples in a batch of evaluation; as in training when ``None``.
        device: Where to train.
        plugins: Any plugins of Avalanche's or of ours.
        evaluator: Metrics and loggers.
        eval_every: Epochs or iterations between evaluations during training; 0 for one at the end, -1 for none.
        peval_mode: ``epoch`` or ``iteration``, what ``eval_every`` counts.
        accelerate: Compile the network and fuse the optimizer's step, where a trial shows that the results stay the
            same to the last bit; see :class:`~plasticity_cl.training.accelerate.Accelerator`. It compiles for some
            seconds when training begins, which only large networks and long runs repay.
        **base_kwargs: What further bases of a subclass take.
    """

    task_loss: Tensor
    """The loss of the current batch as the criterion gave it: no penalty of a plugin is in it."""

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: LossFunction | None = None,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = 1,
        device: str | torch.device = "cpu",
        plugins: Sequence[Any] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] | None = default_evaluator,
        eval_every: int = -1,
        peval_mode: str = "epoch",
        accelerate: bool = False,
        **base_kwargs: Any,
    ) -> None:
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=nn.CrossEntropyLoss() if criterion is None else criterion,
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=plugins,
            evaluator=evaluator,
            eval_every=eval_every,
            peval_mode=peval_mode,
            **base_kwargs,
        )
        self._accelerator = Accelerator() if accelerate else None
        self._hooks = Hooks(self.plugins)

    def make_train_dataloader(
        self, num_workers: int = 0, shuffle: bool = True, drop_last: bool = False, **kwargs: Any
    ) -> None:
        """Make ``self.dataloader`` for the current experience; gathers from tensors where the data set allows it."""
        samples = samples_of(self.adapted_dataset)
        if samples is None or num_workers > 0 or hasattr(self.experience, "task_labels"):
            super().make_train_dataloader(num_workers=num_workers, shuffle=shuffle, drop_last=drop_last, **kwargs)
        else:
            self.dataloader = SamplesLoader(
                samples.to(self.device), self.train_mb_size, shuffle=shuffle, drop_last=drop_last
            )

    def make_eval_dataloader(self, num_workers: int = 0, shuffle: bool = False, **kwargs: Any) -> None:
        """Make ``self.dataloader`` for an evaluation; gathers from tensors where the data set allows it."""
        samples = samples_of(self.adapted_dataset)
        if samples is None or num_workers > 0 or shuffle or hasattr(self.experience, "task_labels"):
            super().make_eval_dataloader(num_workers=num_workers, shuffle=shuffle, **kwargs)
        else:
            self.dataloader = SamplesLoader(samples.to(self.device), self.eval_mb_size, shuffle=False)

    def forward(self) -> Any:
        """The model's output for the current batch."""
        has_labels = len(self.mbatch) > 2 and hasattr(self.experience, "task_labels")  # the latter takes a while
        if has_labels or not gives_device_batches(self.dataloader):
            return super().forward()
        if self._accelerator is not None and self.is_training:
            return self._accelerator.forward(self)
        return self.model(self.mb_x)

    def criterion(self) -> Tensor:
        """The loss of the current batch, kept as ``task_loss`` before any plugin adds to it."""
        loss: Tensor = criterion_of(self)(self.mb_output, self.mb_y)
        self.task_loss = loss.detach()
        return loss

    def probe_samples(self, n: int) -> Batch:
        """Samples of what is being learned, for a diagnostic to look at.

        Here they are :func:`~plasticity_cl.training.probe_samples.random_samples` of the experience; a subclass that
        learns from other data, a replay of transitions for instance, gives some of those.

        Args:
            n: How many at most.
        """
        return random_samples(self, n)

    def training_epoch(self, **kwargs: Any) -> None:
        """One pass over ``self.dataloader``, step by step as in Avalanche."""
        if not self._takes_steps():
            super().training_epoch(**kwargs)
            return
        call = self._call_plugins
        own_backward = self._is_own("backward")
        for batch in self.dataloader:
            self.mbatch = batch
            if is_stopping(self):
                break
            acting = self._acting()
            if acting["before_training_iteration"]:
                acting = call("before_training_iteration", kwargs)
            _zero_grad(self.optimizer)
            # Avalanche adds the criterion to a tensor of zeros, which costs as much as a small layer. Nobody can tell
            # unless a hook looks at the loss before the backward pass.
            seen = acting["before_forward"] or acting["after_forward"] or acting["before_backward"] or not own_backward
            if seen:
                self.loss = self._make_empty_loss()
                call("before_forward", kwargs)
            self.mb_output = self.forward()
            if seen:
                call("after_forward", kwargs)
            loss = self.criterion()
            if seen or loss.dtype != torch.float32 or loss.dim() > 0:
                if not seen:
                    self.loss = self._make_empty_loss()
                self.loss += loss
                call("before_backward", kwargs)
                self.backward()
            else:
                self.loss = loss
                self.backward()
                self.loss = loss.detach().view(1).clone()
            if acting["after_backward"]:
                acting = call("after_backward", kwargs)
            if acting["before_update"]:
                acting = call("before_update", kwargs)
            self.optimizer_step()
            if acting["after_update"]:
                acting = call("after_update", kwargs)
            call("after_training_iteration", kwargs)

    def eval_epoch(self, **kwargs: Any) -> None:
        """One pass over ``self.dataloader`` in evaluation, step by step as in Avalanche."""
        if not self._takes_steps():
            super().eval_epoch(**kwargs)
            return
        call = self._call_plugins
        for batch in self.dataloader:
            self.mbatch = batch
            acting = self._acting()
            if acting["before_eval_iteration"]:
                acting = call("before_eval_iteration", kwargs)
            if acting["before_eval_forward"]:
                acting = call("before_eval_forward", kwargs)
            self.mb_output = self.forward()
            if acting["after_eval_forward"]:
                call("after_eval_forward", kwargs)
            self.loss = self.criterion()
            call("after_eval_iteration", kwargs)

    def _takes_steps(self) -> bool:
        """Whether the steps may be taken here: batches are on the device, and no subclass has its own way with one."""
        return gives_device_batches(self.dataloader) and all(map(self._is_own, _STEP_PARTS))

    def _is_own(self, method: str) -> bool:
        return method not in vars(self) and getattr(type(self), method) is getattr(SupervisedTemplate, method)

    def _acting(self) -> Hooks:
        if not self._hooks.current(self.plugins):
            self._hooks = Hooks(self.plugins)
        return self._hooks

    def _call_plugins(self, event: str, kwargs: dict[str, Any]) -> Hooks:
        """Call the hooks of ``event``; gives the hooks as they are afterwards."""
        hooks = self._acting()
        for hook in hooks[event]:
            hook(self, **kwargs)
        if self.plugins != hooks.plugins:
            # Avalanche goes through the list itself: whoever came in behind during this very event is called as well.
            for plugin in self.plugins[len(hooks.plugins) :]:
                if hasattr(plugin, event):
                    getattr(plugin, event)(self, **kwargs)
        return self._acting()

    # Avalanche's template calls this hook, and has no other that comes after the loader is made and is no plugin's.
    def _before_training_exp(self, **kwargs: Any) -> None:
        super()._before_training_exp(**kwargs)
        if self._accelerator is not None:
            self._accelerator.begin_experience()


def _zero_grad(optimizer: Optimizer) -> None:
    """What ``optimizer.zero_grad()`` does, without its entry in torch's profiler, which costs as much as a layer."""
    if type(optimizer).zero_grad is not Optimizer.zero_grad or "zero_grad" in vars(optimizer):
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


# The hooks that Avalanche's template calls at each event; there is no other way to hear of them in its order.
for _event in (*_STEP_EVENTS, *_OTHER_EVENTS):
    setattr(SupervisedTemplate, f"_{_event}", _caller(_event))
_STEP_PARTS = ("_unpack_minibatch", "_make_empty_loss", *(f"_{event}" for event in _STEP_EVENTS))
