"""Trainability probe: how fast a copy of the network fits fresh random targets, against a fresh initialisation."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plasticity_cl.diagnostics.undisturbed import copied_module, ordinary, ordinary_tensor, outside_of_modes
from plasticity_cl.errors import UserError, unknown_name
from plasticity_cl.seeding import derive_seed, generator, preserve_rng

_TASKS = ("classification", "regression")


@dataclass(frozen=True)
class RandomTargetFit:
    """Loss curves of copies of one network while they fit random targets.

    Attributes:
        learning_rate: The best of the learning rates tried.
        losses: Loss of each step's batch before its update, at that rate, shape [targets, steps], float64; infinite
            from the first step on at which it is not finite, which happens only if no learning rate does better.
        classes: The outputs that were fitted, in ascending order; empty for outputs that are not ``[n, outputs]``.
    """

    learning_rate: float
    losses: Tensor
    classes: tuple[int, ...] = ()

    @property
    def loss(self) -> float:
        """Mean loss over targets and steps; infinite if every learning rate diverged."""
        return float(self.losses.mean())


@dataclass(frozen=True)
class Trainability:
    """The probe's outcome for a network and for a fresh one of the same architecture.

    Attributes:
        worn: Fit of the network in question.
        fresh: Fit of the fresh initialisation.
    """

    worn: RandomTargetFit
    fresh: RandomTargetFit

    @property
    def ratio(self) -> float:
        """Mean loss over that of the fresh network: 1 is as trainable as fresh, above 1 less.

        Infinite where the network diverges at every learning rate, NaN where already the fresh one does.
        """
        return self.worn.loss / self.fresh.loss if math.isfinite(self.fresh.loss) else math.nan


def trainability(
    model: nn.Module,
    inputs: Tensor,
    fresh_model: nn.Module,
    *,
    task: str = "classification",
    optimizer: torch.optim.Optimizer | None = None,
    learning_rates: Sequence[float] = (1e-3, 3e-3, 1e-2),
    steps: int = 100,
    n_targets: int = 3,
    batch_size: int = 128,
    seed: int = 0,
    classes: Sequence[int] | None = None,
) -> Trainability:
    """Fit fresh random targets with copies of the network and of a fresh one, and compare the mean losses.

    Each network gets the same random numbers, the same batches and the best of the same learning rates, since a fixed
    one confounds plasticity with scale; the first target chooses it. The copies train in training mode. Network,
    optimizer, mode flags and every random number generator stay exactly as they were, also when the probe raises. The
    same seed gives the same bits.

    A fresh network's fit stays the same while inputs and settings do: to save half the time, keep it and build
    ``Trainability(fit_random_targets(model, inputs), kept)``.

    The probe follows the capacity measures of Lyle et al. 2022 ("Understanding and preventing capacity loss") and 2023
    ("Understanding plasticity in neural networks"); they report the final loss, this one the mean over the steps.

    Args:
        model: The network in question. It is copied, never run; its hooks are copied with it.
        inputs: Samples to fit, shape [n, ...]. About a hundred are enough, and cheapest.
        fresh_model: A network of the same architecture at initialisation, of another draw or the network's own.
        task: What is fitted; see :func:`fit_random_targets`.
        optimizer: ``None`` is a fresh Adam. An optimizer over the parameters of ``model`` is copied, with its settings
            and its state (the carried optimizer; one without state yet is a fresh optimizer of its kind). Only the
            learning rate is replaced, in every parameter group. The fresh network gets the settings without the state.
        learning_rates: Learning rates to choose from, for each network on its own.
        steps: Steps a fit. 20 tell fresh from worn, but not degrees of wear.
        n_targets: Independent draws of the targets.
        batch_size: Samples a step; all of them if there are no more.
        seed: Seed of targets, batches, and of what the networks draw themselves (dropout).
        classes: The outputs to fit; by default those that are in use in both networks.

    Returns:
        Both fits, with their ratio.

    Raises:
        UserError: As :func:`fit_random_targets`, and if ``fresh_model`` has other parameters than ``model``.
    """
    shapes, fresh_shapes = (
        {name: tuple(value.shape) for name, value in network.named_parameters()} for network in (model, fresh_model)
    )
    if shapes != fresh_shapes:
        differing = sorted(dict(shapes.items() ^ fresh_shapes.items()))
        raise UserError(f"fresh_model is not of the same architecture; parameters that differ: {', '.join(differing)}")
    settings = (inputs, task, tuple(learning_rates), steps, n_targets, batch_size, seed)
    if classes is None:
        used, fresh_used = (_outputs(network, inputs)[1] for network in (model, fresh_model))
        classes = [output for output in used if output in fresh_used] if used else None
    fresh_optimizer = None
    if optimizer is not None:
        fresh_optimizer = _transfer(optimizer, model, fresh_model)
        fresh_optimizer.state.clear()
    return Trainability(
        _fit(model, optimizer, *settings, classes), _fit(fresh_model, fresh_optimizer, *settings, classes)
    )


def fit_random_targets(
    model: nn.Module,
    inputs: Tensor,
    *,
    task: str = "classification",
    optimizer: torch.optim.Optimizer | None = None,
    learning_rates: Sequence[float] = (1e-3, 3e-3, 1e-2),
    steps: int = 100,
    n_targets: int = 3,
    batch_size: int = 128,
    seed: int = 0,
    classes: Sequence[int] | None = None,
) -> RandomTargetFit:
    """Fit random targets with copies of the network: one half of :func:`trainability`.

    - ``classification``: labels drawn uniformly from the outputs in use, cross-entropy over these outputs.
    - ``regression``: mean squared error to the network's own outputs (in eval mode) plus noise N(0, 1) for each output.
      The loss starts at 1 for every network without dropout or batch normalisation. Targets that do not move with
      the network would measure the scale of its outputs instead: on digits with redrawn labels they rate a network with
      layer norm and L2, which goes on learning, 2.5 times worse than fresh; these rate it 1.0.

    Outputs that no parameter moves, as heads that grow mask those of classes not seen yet, are not in use and left out.
    The loss depends on how many there are, so a head with more outputs in use than at initialisation is compared by
    ``classes=fit_at_initialisation.classes``. Networks in half precision are copied in single precision.

    Args:
        model: The network. It is copied, never run; its hooks are copied with it.
        inputs: Samples to fit, shape [n, ...].
        task: ``"classification"`` for outputs of shape [n, classes], ``"regression"`` for outputs of any shape.
        optimizer: As in :func:`trainability`.
        learning_rates: Learning rates to try.
        steps: Steps a fit.
        n_targets: Independent draws of the targets.
        batch_size: Samples a step; all of them if there are no more.
        seed: Seed of targets, batches, and of what the network draws itself (dropout).
        classes: The outputs to fit, of outputs ``[n, outputs]``; by default those that are in use.

    Returns:
        The loss curves.

    Raises:
        UserError: If an argument is out of range or the task unknown, the outputs do not suit the task, no parameter is
            trainable, the network cannot be copied, or the optimizer does not hold the network's parameters.
    """
    return _fit(model, optimizer, inputs, task, tuple(learning_rates), steps, n_targets, batch_size, seed, classes)


def _fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    inputs: Tensor,
    task: str,
    learning_rates: tuple[float, ...],
    steps: int,
    n_targets: int,
    batch_size: int,
    seed: int,
    classes: Sequence[int] | None,
) -> RandomTargetFit:
    if task not in _TASKS:
        raise unknown_name("task", task, _TASKS)
    if not learning_rates or not all(0 < rate < math.inf for rate in learning_rates):
        raise UserError(f"learning_rates must be one or more positive numbers, got {list(learning_rates)}")
    for name, count in (("steps", steps), ("n_targets", n_targets), ("batch_size", batch_size)):
        if count < 1:
            raise UserError(f"{name} must be at least 1, got {count}")
    if not any(value.requires_grad for value in model.parameters()):
        raise UserError("the network has no trainable parameter")
    outputs, used = _outputs(model, inputs)
    if task == "classification" and (outputs.dim() != 2 or outputs.shape[1] < 2):
        raise UserError(
            f"classification needs outputs of shape [n, classes], got {list(outputs.shape)}; use task='regression'"
        )
    if classes is not None:
        used = tuple(sorted(classes))
        if outputs.dim() != 2 or len(set(used)) < len(used) or not set(used) <= set(range(outputs.shape[1])):
            raise UserError(f"classes must be different outputs of [n, outputs], got {used} for {list(outputs.shape)}")
    if task == "classification" and len(used) < 2:
        raise UserError(f"classification needs two outputs in use, and of {outputs.shape[1]} only {len(used)} are")
    columns = torch.tensor(used, device=outputs.device) if used and len(used) < outputs.shape[1] else None
    outputs = outputs if columns is None else outputs[:, columns]
    criterion = F.cross_entropy if task == "classification" else F.mse_loss

    def curve(rate: float, draw: int) -> Tensor:
        noise = generator(seed, "probe targets", draw)
        if task == "classification":
            targets = torch.randint(outputs.shape[1], (len(inputs),), generator=noise).to(outputs.device)
        else:
            targets = outputs + torch.randn(outputs.shape, generator=noise).to(outputs)
        _seed_global_generators(derive_seed(seed, "probe network", draw), inputs.is_cuda)
        network = copied_module(source).train()
        if optimizer is None:
            trainable = [value for value in network.parameters() if value.requires_grad]
            stepper: torch.optim.Optimizer = torch.optim.Adam(trainable, fused=True)
        else:
            stepper = _transfer(optimizer, model, network)
        for group in stepper.param_groups:
            group["lr"] = rate
        losses = torch.full((steps,), math.inf, dtype=torch.float64)
        for step, batch in enumerate(_batches(len(inputs), batch_size, steps, seed, draw)):
            few = inputs[batch]
            try:
                found = network(few)
            except ValueError as error:
                if len(few) > 1:
                    raise
                raise UserError(f"the network cannot be trained on one sample at a time: {error}") from error
            loss = criterion(found if columns is None else found[:, columns], targets[batch])
            if not loss.isfinite():
                break
            losses[step] = loss.detach()
            stepper.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            stepper.step()
        return losses

    with outside_of_modes(), preserve_rng():
        source = ordinary(model, single_precision=True)
        inputs = ordinary_tensor(inputs, single_precision=source is not model)
        # The first target chooses the learning rate: half the cost of trying every rate on every target.
        trials = sorted(((curve(rate, 0), rate) for rate in learning_rates), key=lambda trial: float(trial[0].mean()))
        for first, rate in trials:
            losses = torch.stack([first, *(curve(rate, draw) for draw in range(1, n_targets))])
            if losses.isfinite().all():
                break
    return RandomTargetFit(rate, losses, used)


def _outputs(model: nn.Module, inputs: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Run a copy of the network in eval mode.

    Returns:
        Its outputs, detached; and which of them are in use, where they are ``[n, outputs]``: those that depend on the
        sample or on a trainable parameter. If that is none (a network that died), all are.
    """
    if not inputs.dim() or not len(inputs):
        raise UserError(f"samples in inputs must be at least 1, got inputs of shape {list(inputs.shape)}")
    if not inputs.isfinite().all():
        raise UserError("the inputs hold NaN or infinities, which nothing can be fitted to")
    with outside_of_modes(), preserve_rng():
        source = ordinary(model, single_precision=True)
        network = (copied_module(source) if source is model else source).eval()
        inputs = ordinary_tensor(inputs, single_precision=source is not model)
        with torch.no_grad():
            outputs: Tensor = network(inputs)
        if not isinstance(outputs, Tensor):
            raise UserError(
                f"the probe needs a network with one tensor as output, not a {type(outputs).__name__}; wrap it"
            )
        if outputs.dim() != 2:
            return outputs, ()
        trainable = [value for value in network.parameters() if value.requires_grad]
        masked = outputs[0] == -math.inf
        constant = ((outputs == outputs[0]).all(0) & ~masked).nonzero().flatten()
        if len(constant):
            few = network(inputs[:2])
            waiting = [constant]
            while waiting:
                group = waiting.pop()
                weighted = few[:, group] * torch.linspace(1, 2, len(group)).to(few)
                if not _moves(weighted.sum(), trainable):
                    masked[group] = True
                elif len(group) > 1:
                    waiting += group.tensor_split(2)
    used = (~masked).nonzero().flatten().tolist()
    return outputs, tuple(used or range(outputs.shape[1]))


def _moves(value: Tensor, parameters: Sequence[Tensor]) -> bool:
    """Whether a value changes with any of the parameters."""
    if not value.requires_grad:
        return False
    gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return any(bool(gradient.any()) for gradient in gradients if gradient is not None)


def _batches(n: int, batch_size: int, steps: int, seed: int, draw: int) -> Iterator[slice | Tensor]:
    """Indices of each step's samples: everything, or full batches of one random order after another."""
    if n <= batch_size:
        yield from (slice(None) for _ in range(steps))
        return
    order = generator(seed, "probe batches", draw)
    made = 0
    while True:
        for batch in torch.split(torch.randperm(n, generator=order)[: n - n % batch_size], batch_size):
            if made == steps:
                return
            made += 1
            yield batch


def _transfer(optimizer: torch.optim.Optimizer, model: nn.Module, network: nn.Module) -> torch.optim.Optimizer:
    """Copy an optimizer, settings and state, from the parameters of ``model`` to those of ``network``."""
    # deepcopy looks parameters up by identity, as group members and as keys of the state: both find the new ones.
    twins: dict[int, object] = {id(old): new for old, new in zip(model.parameters(), network.parameters(), strict=True)}
    if not any(id(value) in twins for group in optimizer.param_groups for value in group["params"]):
        raise UserError("the optimizer holds no parameter of the network")
    copied = copy.deepcopy(optimizer, twins)
    for parameter, state in copied.state.items():
        # The moments of a network in half precision follow its copy into single precision.
        state |= {
            name: ordinary_tensor(value, single_precision=parameter.dtype is torch.float32)
            for name, value in state.items()
            if isinstance(value, Tensor)
        }
    return copied


def _seed_global_generators(seed: int, cuda: bool) -> None:
    """Seed what dropout and the like draw from; the caller gives the states back."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if cuda:
        torch.cuda.manual_seed_all(seed)
