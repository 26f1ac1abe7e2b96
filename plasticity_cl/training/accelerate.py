"""Compiled networks and fused optimizers, used only where a trial gives the same bits as without."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from plasticity_cl.seeding import preserve_rng
from plasticity_cl.training.avalanche_names import LossFunction, criterion_of
from plasticity_cl.training.learner import Learner

# What torch.compile is asked for, in this order. "cudagraphs" replays the very kernels of the plain network.
_BACKENDS: dict[str, tuple[Any, ...]] = {"cpu": ("inductor",), "cuda": ("inductor", "cudagraphs")}
_TRIAL_STEPS = 5


class Accelerator:
    """Runs the training steps of a strategy faster where that changes nothing.

    The first batch of an experience goes through a copy of the network and through a compiled copy. Only if outputs,
    loss, gradients, buffers and random state agree to the last bit, batches of that size are trained with the compiled
    network. The optimizer's fused step is tried likewise, before its first step. Whatever is not used is named in one
    warning. A trial is no proof: it is one batch, and five steps of random gradients.

    The compiled network is left aside while any module has hooks, since a compiled network may pass them over; nothing
    is tried while there are any.
    """

    def __init__(self) -> None:
        self._compiled: Callable[[Tensor], Any] | None = None
        self._tried: Any = None
        self._to_try = True
        self._batch_size = 0
        self._hooks: list[dict[int, Any]] = []
        self._warned: set[str] = set()

    def begin_experience(self) -> None:
        """Try with the next batch what can be used for the experience; nothing is tried twice."""
        self._to_try = True

    def forward(self, learner: Learner) -> Any:
        """The output for the current batch of a training, the same whichever way it is computed."""
        model, inputs = learner.model, learner.mb_x
        if self._to_try:
            self._try(learner)
        if self._compiled is None or inputs.shape[0] != self._batch_size or any(self._hooks):
            return model(inputs)
        return self._compiled(inputs)

    def _try(self, learner: Learner) -> None:
        model, inputs, target = learner.model, learner.mb_x, learner.mb_y
        self._fuse(learner.optimizer)
        self._to_try = False
        size = inputs.shape[0]
        network = (id(model), size, [(id(p), p.shape, p.requires_grad) for p in model.parameters()])
        if network == self._tried:
            return
        self._compiled = None
        self._hooks = [
            hooks
            for module in model.modules()
            for hooks in (
                module._forward_hooks,
                module._forward_pre_hooks,
                module._backward_hooks,
                module._backward_pre_hooks,
            )
        ]
        if any(self._hooks):
            self._to_try = True
            return
        self._tried, self._batch_size = network, size
        reason = f"there is no compiler for the device {inputs.device.type}"
        for backend in _BACKENDS.get(inputs.device.type, ()):
            try:
                reason = _difference(model, backend, criterion_of(learner), inputs, target)
            except Exception as error:  # whatever goes wrong in a compiler
                reason = f"it could not be compiled ({str(error).strip().splitlines()[0] if str(error) else error!r})"
            if not reason:
                self._compiled = torch.compile(model, backend=backend, dynamic=False)
                return
        self._warn("the network is not compiled", reason)

    def _fuse(self, optimizer: Optimizer) -> None:
        groups = optimizer.param_groups
        if optimizer.state or any(group.get("fused") for group in groups):
            return
        if type(optimizer) not in (SGD, Adam, AdamW):
            self._warn("the optimizer is not fused", f"{type(optimizer).__name__} has no fused step")
            return
        try:
            same = _fused_is_same(optimizer)
        except (RuntimeError, ValueError) as error:
            self._warn("the optimizer is not fused", str(error).splitlines()[0])
            return
        if not same:
            self._warn("the optimizer is not fused", "its fused step rounds otherwise")
            return
        for group in groups:
            group["fused"], group["foreach"] = True, False

    def _warn(self, what: str, why: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(f"accelerate: {what}: {why}; results stay the same", stacklevel=2)


def _difference(model: nn.Module, backend: Any, criterion: LossFunction, inputs: Tensor, target: Tensor) -> str:
    """Why a compiled copy of ``model`` is not as good as ``model``; empty if it is."""
    plain, other = copy.deepcopy(model), copy.deepcopy(model)
    compiled = torch.compile(other, backend=backend, dynamic=False)
    with preserve_rng(), torch.enable_grad():
        expected = _step(plain, plain, criterion, inputs, target)
    with preserve_rng(), torch.enable_grad():
        found = _step(other, compiled, criterion, inputs, target)
    pairs = list(zip(expected, found, strict=True))
    if all(torch.equal(one, another) for one, another in pairs):
        return ""
    largest = max(float((one.double() - another.double()).abs().max()) for one, another in pairs if one.numel())
    return f"compiled, it differs by up to {largest:.1e} in a step"


def _step(
    module: nn.Module,
    forward: Callable[[Tensor], Any],
    criterion: LossFunction,
    inputs: Tensor,
    target: Tensor,
) -> list[Tensor]:
    module.zero_grad()
    output = forward(inputs)
    loss = criterion(output, target)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if inputs.is_cuda else ())]
    return [output.detach(), loss.detach(), *gradients, *module.buffers(), *states]


def _fused_is_same(optimizer: Optimizer) -> bool:
    results = []
    for fused in (None, True):
        parameters: list[Tensor] = []
        groups = []
        for group in optimizer.param_groups:
            copies = [p.detach().clone().requires_grad_() for p in group["params"]]
            options = {key: value for key, value in group.items() if key in optimizer.defaults}
            groups.append({**options, "params": copies, **({"fused": True, "foreach": False} if fused else {})})
            parameters += copies
        kind: Any = type(optimizer)
        trial = kind(groups)
        generator = torch.Generator().manual_seed(0)
        for _ in range(_TRIAL_STEPS):
            for parameter in parameters:
                gradient = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.grad = gradient.to(parameter.device)
            trial.step()
        results.append(parameters)
    return all(map(torch.equal, *results))
