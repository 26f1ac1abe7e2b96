"""The catalogue: ``"layernorm+l2=1e-3"``, ``"ewc=100+layernorm"`` and any other combination, turned into plugins.

Names and values are checked without torch or Avalanche, which are imported when plugins are made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from plasticity_cl.errors import UserError, unknown_name

if TYPE_CHECKING:
    from avalanche.training.plugins import SupervisedPlugin

Value = float | tuple[float, float] | None
"""A strength or a count; the ends of a range; or nothing."""

FINETUNE = "finetune"
"""Stands for no component at all."""


@dataclass(frozen=True)
class Component:
    """One part of a combination; ``str`` gives its canonical spelling.

    Args:
        name: A key of ``COMPONENTS``.
        value: Its value, the default where none was written.
    """

    name: str
    value: Value = None

    def __str__(self) -> str:
        if self.value is None:
            return self.name
        ends = self.value if isinstance(self.value, tuple) else (self.value,)
        return f"{self.name}={'..'.join(map(_number, ends))}"


@dataclass(frozen=True)
class Entry:
    """What the catalogue knows of a component.

    Args:
        help: One line for ``plasticity-cl list``.
        make: Makes the plugin from the value and a seed.
        acts_on_first_experience: Whether training on the first experience differs from finetuning. Where no component
            acts there, a fresh network learns as under finetuning.
        parse: Reads what stands behind ``=``; ``None`` where nothing may stand there. Raises ``ValueError`` with a
            word on what the value must be.
        default: The value where none is written.
        excludes: Names of components that do the same thing in another way.
    """

    help: str
    make: Callable[[Any, int], SupervisedPlugin]
    acts_on_first_experience: bool
    parse: Callable[[str], Value] | None = None
    default: Value = None
    excludes: tuple[str, ...] = ()


def parse(text: str) -> tuple[Component, ...]:
    """Read a combination.

    Args:
        text: Components joined by ``+``, each ``name`` or ``name=value``, in any order; or ``finetune`` alone.

    Returns:
        The components in canonical order, values filled in; none for ``finetune``.

    Raises:
        UserError: For an unknown name, a value that the component does not take, a component named twice, or two that
            exclude each other.
    """
    # The plus sign of an exponent, as in 1e+3, joins nothing.
    parts = [part.strip().lower() for part in re.split(r"(?<!\de)(?<!\.e)\+", text, flags=re.IGNORECASE)]
    if parts == [FINETUNE]:
        return ()
    if not all(parts):
        raise UserError(f"strategy {text!r} has an empty component; write for instance finetune or layernorm+l2=1e-3")
    components: dict[str, Component] = {}
    for part in parts:
        component = _parse_component(part)
        if component.name in components:
            raise UserError(f"strategy {text!r} names {component.name} twice; name it once")
        rival = next((name for name in COMPONENTS[component.name].excludes if name in components), None)
        if rival is not None:
            raise UserError(f"strategy {text!r} has both {rival} and {component.name}; choose one of them")
        components[component.name] = component
    return tuple(components[name] for name in COMPONENTS if name in components)


def normalise(text: str) -> str:
    """Spell a combination in the one canonical way: components in the catalogue's order, every value written out.

    Equal combinations have equal names: ``L2 + layernorm`` is ``layernorm+l2=0.001``. The result is a good file name.

    Args:
        text: As for :func:`parse`.

    Raises:
        UserError: As :func:`parse` does.
    """
    return _spell(parse(text))


def fresh_name(text: str) -> str:
    """Spell what is left of a combination on the very first experience, in canonical form.

    Components that need a past (EWC, replay) cannot act there, so a fresh network trained on one experience ends with
    the same weights under all combinations of one fresh name: ``ewc=100+layernorm`` and ``layernorm`` share theirs.

    Args:
        text: As for :func:`parse`.

    Raises:
        UserError: As :func:`parse` does.
    """
    return _spell(tuple(c for c in parse(text) if COMPONENTS[c.name].acts_on_first_experience))


def make_plugins(text: str, *, seed: int = 0) -> list[SupervisedPlugin]:
    """Make the plugins of a combination, to be handed to one strategy.

    Args:
        text: As for :func:`parse`.
        seed: Root of what plugins draw at random: the last layer that ``scale-invariant`` makes.

    Returns:
        New plugins, in canonical order.

    Raises:
        UserError: As :func:`parse` does.
    """
    return [COMPONENTS[component.name].make(component.value, seed) for component in parse(text)]


def _spell(components: tuple[Component, ...]) -> str:
    return "+".join(map(str, components)) or FINETUNE


def _parse_component(part: str) -> Component:
    name, equals, value = (piece.strip() for piece in part.partition("="))
    if name == FINETUNE:
        raise UserError(f"{FINETUNE} stands for no component at all and joins no others; leave {part!r} out")
    if name not in COMPONENTS:
        raise unknown_name("strategy", name, [FINETUNE, *COMPONENTS])
    entry = COMPONENTS[name]
    if not equals:
        return Component(name, entry.default)
    if entry.parse is None:
        raise UserError(f"strategy component {name} takes no value; write {name} instead of {part!r}")
    try:
        return Component(name, entry.parse(value))
    except ValueError as error:
        raise UserError(f"bad value in strategy component {part!r}: {error}") from None


def _number(value: float) -> str:
    """The text that reads best among those that read back as the same number: 200, 0.001, 1e-5, 1e9, never a plus sign.

    Numbers from 1e-4 to below 1e5 have no exponent, smaller ones have one, and larger ones where that is shorter.
    """
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)
    minus, first, *rest = "-" if sign else "", *map(str, digits)
    magnitude = exponent + len(rest)
    scientific = f"{minus}{first}{'.' if rest else ''}{''.join(rest)}e{magnitude}"
    plain = f"{Decimal(repr(value)):f}".removesuffix(".0")
    if value == 0 or -4 <= magnitude < 5:
        return plain
    return scientific if magnitude < 0 or len(scientific) < len(plain) else plain


def _read(text: str, requirement: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(requirement)
    return value + 0.0  # minus zero becomes zero


def _strength(text: str) -> float:
    requirement = "it must be a number of 0 or more, for instance 1e-3"
    value = _read(text, requirement)
    if value < 0:
        raise ValueError(requirement)
    return value


def _count(text: str) -> float:
    requirement = "it must be a whole number of 1 or more, for instance 200"
    value = _read(text, requirement)
    if value < 1 or value != int(value):
        raise ValueError(requirement)
    return value


def _range(text: str) -> tuple[float, float]:
    requirement = "it must be the range of the targets as LOW..HIGH, for instance -10..110"
    low, dots, high = text.partition("..")
    ends = _read(low, requirement), _read(high, requirement)
    if not dots or ends[0] >= ends[1]:
        raise ValueError(requirement)
    return ends


_BINS_OF_A_RANGE = 255  # two bins or more a standard deviation where the range is a hundred of them


def _normalization(kind: str) -> Callable[[Any, int], SupervisedPlugin]:
    def make(value: Any, seed: int) -> SupervisedPlugin:
        from plasticity_cl.strategies.layer_norm import LayerNormPlugin

        return LayerNormPlugin(kind)

    return make


def _scale_invariant(loss: str) -> Callable[[Any, int], SupervisedPlugin]:
    def make(value: tuple[float, float] | None, seed: int) -> SupervisedPlugin:
        from plasticity_cl.strategies.scale_invariant import ScaleInvariantLossPlugin

        if value is None:
            return ScaleInvariantLossPlugin(loss, seed=seed)
        return ScaleInvariantLossPlugin(loss, *value, n_bins=_BINS_OF_A_RANGE, scale="linear", seed=seed)

    return make


def _l2(value: float, seed: int) -> SupervisedPlugin:
    from plasticity_cl.strategies.l2 import L2Plugin

    return L2Plugin(value)


def _weight_decay(value: float, seed: int) -> SupervisedPlugin:
    from plasticity_cl.strategies.weight_decay import WeightDecayPlugin

    return WeightDecayPlugin(value)


def _ewc(value: float, seed: int) -> SupervisedPlugin:
    from avalanche.training.plugins import EWCPlugin

    # One penalty with the importances summed: the original's separate penalties cost more with every experience.
    return EWCPlugin(value, mode="online", decay_factor=1.0)


def _replay(value: float, seed: int) -> SupervisedPlugin:
    from avalanche.training.plugins import ReplayPlugin

    return ReplayPlugin(mem_size=int(value))


def _lwf(value: float, seed: int) -> SupervisedPlugin:
    from plasticity_cl.strategies.lwf import LwFPlugin

    return LwFPlugin(alpha=value)


def _optimizer_reset(value: None, seed: int) -> SupervisedPlugin:
    from plasticity_cl.strategies.optimizer_reset import OptimizerResetPlugin

    return OptimizerResetPlugin()


_NORMALIZATIONS = {"layernorm": "layer", "batchnorm": "batch", "rmsnorm": "rms", "groupnorm": "group"}
_REGRESSION_LOSSES = {"scale-invariant": "two-hot", "hl-gauss": "hl-gauss"}

COMPONENTS: dict[str, Entry] = {
    **{
        name: Entry(
            f"{kind} normalisation before every nonlinearity",
            _normalization(kind),
            acts_on_first_experience=True,
            excludes=tuple(other for other in _NORMALIZATIONS if other != name),
        )
        for name, kind in _NORMALIZATIONS.items()
    },
    **{
        name: Entry(
            f"regression by {loss} cross-entropy over the range LOW..HIGH (default: symlog, -1000..1000)",
            _scale_invariant(loss),
            acts_on_first_experience=True,
            parse=_range,
            excludes=tuple(other for other in _REGRESSION_LOSSES if other != name),
        )
        for name, loss in _REGRESSION_LOSSES.items()
    },
    "l2": Entry(
        "L2 penalty, VALUE * sum(w ** 2), through the gradients",
        _l2,
        acts_on_first_experience=True,
        parse=_strength,
        default=1e-3,
    ),
    "weight-decay": Entry(
        "decoupled weight decay, as in AdamW",
        _weight_decay,
        acts_on_first_experience=True,
        parse=_strength,
        default=1e-2,
    ),
    "ewc": Entry(
        "Avalanche's elastic weight consolidation, online: importances summed in one penalty of weight VALUE",
        _ewc,
        acts_on_first_experience=False,
        parse=_strength,
        default=100.0,
    ),
    "replay": Entry(
        "Avalanche's experience replay from a memory of VALUE samples",
        _replay,
        acts_on_first_experience=False,
        parse=_count,
        default=200.0,
    ),
    "lwf": Entry(
        "Avalanche's learning without forgetting, distillation of weight VALUE (classification)",
        _lwf,
        acts_on_first_experience=False,
        parse=_strength,
        default=1.0,
    ),
    "optimizer-reset": Entry(
        "a fresh optimizer state at each experience",
        _optimizer_reset,
        acts_on_first_experience=False,
    ),
}
"""Components by name, in canonical order. ``finetune`` is not among them: it is what none of them makes."""
