"""What networks and optimizers promise."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plasticity_cl.diagnostics.last_layer import output_layer
from plasticity_cl.models import MODELS, make_model
from plasticity_cl.seeding import derive_seed, preserve_rng, rng_state
from plasticity_cl.testing.bench import network, stream, undisturbed
from plasticity_cl.testing.promises import (
    SPELLING,
    UNTOUCHED,
    BrokenError,
    Part,
    difference,
    made_by,
    name_of,
    promise,
    require_finite,
    require_spelling,
    require_untouched,
    saved,
    seed_generators,
)
from plasticity_cl.training.catalogue import OPTIMIZERS

SEED = "the seed decides its initial weights"
OUTPUT = "it maps a batch to as many outputs as are asked for"
LAST = "its last layer is an nn.Linear"
MOVES = "training moves every parameter"
SPARES = "frozen parameters stay untouched"
STATE = "its state can be saved"


def check_model(model: Part, *, input_shape: tuple[int, ...] = (3, 32, 32), n_outputs: int = 4) -> None:
    """Check what a network promises.

    - **Spelling**: one that is named reads back from its text, from a table in TOML, and from ``spec.json``.
    - **Seed**: the same seed gives the same bits, whatever the global generators hold; another one gives others.
      Torch's generator is seeded while a network is made, and has its state back afterwards; no other is drawn from.
    - **Output**: a batch ``[N, *input_shape]`` becomes ``[N, n_outputs]``, all finite.
    - **Last layer**: an ``nn.Linear``, whose input diagnostics take for the features, and whose outputs others are put
      in place of.
    - **Training**: within a few steps every parameter that requires a gradient has moved.

    Args:
        model: The network: a name with its options, a dotted path, or what makes it.
        input_shape: Shape of one input.
        n_outputs: How many outputs.

    Raises:
        AssertionError: For the first promise that is broken, in one line.
    """
    name = name_of(model)

    def make(seed: int) -> nn.Module:
        if isinstance(model, str):
            return make_model(model, input_shape, n_outputs, seed=seed)
        with preserve_rng(), torch.device("cpu"):
            torch.default_generator.manual_seed(derive_seed(seed, "initialisation"))
            made: nn.Module = made_by(model, input_shape=input_shape, n_outputs=n_outputs, seed=seed)
        if not isinstance(made, nn.Module):
            raise BrokenError(f"it made a {type(made).__name__}, which is no torch.nn.Module")
        return made

    with undisturbed():
        if isinstance(model, str):
            with promise(name, SPELLING):
                require_spelling("model", lambda given: MODELS.read(given).text, [MODELS.read(model)])
        with promise(name, SEED):
            seed_generators(1)
            first = dict(make(0).state_dict())
            seed_generators(2)
            made = make(0)
            found = difference(first, dict(made.state_dict()))
            if found:
                raise BrokenError(f"with other states of the global generators {found}; draw from torch's generator")
            if not difference(first, dict(make(1).state_dict())):
                raise BrokenError("seeds 0 and 1 give the same weights")
        inputs = torch.randn(8, *input_shape, generator=torch.Generator().manual_seed(0))
        targets = torch.arange(8) % n_outputs
        with promise(name, OUTPUT):
            output = made.eval()(inputs)
            if not isinstance(output, Tensor) or output.shape != (8, n_outputs):
                shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise BrokenError(f"{list(inputs.shape)} becomes {shape}, not {[8, n_outputs]}")
            require_finite({"of a batch of normal numbers": output}, "its outputs")
        with promise(name, LAST):
            if output_layer(made, inputs) is None:
                raise BrokenError("its output does not come directly out of an nn.Linear: let it end in such a layer")
        with promise(name, MOVES):
            before = {key: parameter.detach().clone() for key, parameter in made.named_parameters()}
            optimizer = torch.optim.SGD(made.parameters(), lr=0.01)
            made.train()
            for _ in range(3):
                optimizer.zero_grad()
                F.cross_entropy(made(inputs), targets).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            for key, parameter in made.named_parameters():
                if parameter.requires_grad and not difference(before[key], parameter.detach()):
                    why = "has no gradient" if parameter.grad is None else "has a gradient of 0"
                    raise BrokenError(f"{key} does not: it {why}")
            require_finite(dict(made.named_parameters()), "parameter")


def check_optimizer(optimizer: Part) -> None:
    """Check what an optimizer promises.

    - **Spelling**: one that is named reads back from its text, from a table in TOML, and from ``spec.json``.
    - **Training**: a few steps move every parameter that has a gradient, to finite values.
    - **Frozen** parameters, and others without a gradient, stay what they are.
    - **State**: saved, read with ``weights_only=True`` and loaded into a new one, it goes on to the same weights.
    - **Global random numbers** stay untouched by its steps.

    Args:
        optimizer: The optimizer: a name with its options, a dotted path, or a class or function of ``params``.

    Raises:
        AssertionError: For the first promise that is broken, in one line.
    """
    name = name_of(optimizer)

    def made_for(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        given = list(parameters)
        made: Any = (
            OPTIMIZERS.make(optimizer, params=given) if isinstance(optimizer, str) else made_by(optimizer, params=given)
        )
        if not isinstance(made, torch.optim.Optimizer):
            raise BrokenError(f"it made a {type(made).__name__}, which is no torch.optim.Optimizer")
        return made

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, times: int) -> None:
        samples = stream("classification").train_stream[0].samples
        inputs, targets = samples.batch(torch.arange(16))
        for _ in range(times):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    with undisturbed():
        if isinstance(optimizer, str):
            with promise(name, SPELLING):
                require_spelling("optimizer", lambda given: OPTIMIZERS.read(given).text, [OPTIMIZERS.read(optimizer)])
        first = network("classification", "mlp")
        frozen = next(iter(dict(first.named_parameters())))
        first.get_parameter(frozen).requires_grad_(False)
        before = {key: parameter.detach().clone() for key, parameter in first.named_parameters()}
        with promise(name, MOVES):
            stepping = made_for(first.parameters())
            state = rng_state()
            step(first, stepping, 3)
            for key, parameter in first.named_parameters():
                if key != frozen and not difference(before[key], parameter.detach()):
                    raise BrokenError(f"{key} is what it was after 3 steps")
            require_finite(dict(first.named_parameters()), "parameter")
        with promise(name, SPARES):
            found = difference({frozen: before[frozen]}, {frozen: first.get_parameter(frozen).detach()})
            if found:
                raise BrokenError(found)
        with promise(name, UNTOUCHED):
            require_untouched(state)
        with promise(name, STATE):
            second = network("classification", "mlp")
            second.get_parameter(frozen).requires_grad_(False)
            second.load_state_dict(first.state_dict())
            resumed = made_for(second.parameters())
            resumed.load_state_dict(saved(stepping.state_dict()))
            step(first, stepping, 2)
            step(second, resumed, 2)
            found = difference(dict(first.state_dict()), dict(second.state_dict()))
            if found:
                raise BrokenError(f"after going on, {found}; keep what it remembers in state[parameter] or the groups")
