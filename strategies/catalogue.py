"""The catalogue: ``"layernorm+l2=1e-3"``, ``"ewc=100@optimizer=adam:lr=3e-4"`` and any other strategy, by name.

A new intervention is a file beside the others and a line here: an Avalanche plugin. Names and values are checked
without torch or Avalanche, which are imported when plugins are made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plasticity_cl.errors import UserError, unknown_name
from plasticity_cl.models.catalogue import MODELS
from plasticity_cl.parts import Catalogue, Chosen, Entry, grammar, values
from plasticity_cl.training.catalogue import OPTIMIZERS

if TYPE_CHECKING:
    from avalanche.training.plugins import SupervisedPlugin

Component = Chosen
"""What :func:`parse` gives."""

FINETUNE = "finetune"
"""Stands for no intervention at all."""

_HERE = "plasticity_cl.strategies"
_NORM = f"{_HERE}.layer_norm:LayerNormPlugin"
_LOSS = f"{_HERE}.scale_invariant:scale_invariant"
_NORM_HELP = "{} normalisation before every nonlinearity"
_LOSS_HELP = "regression by {} cross-entropy over a range LOW..HIGH (default: symlog, -1000..1000)"

COMPONENTS = Catalogue(
    "strategy",
    "strategies",
    {
        "layernorm": Entry(_NORM, _NORM_HELP.format("layer"), {"kind": "layer"}),
        "batchnorm": Entry(_NORM, _NORM_HELP.format("batch"), {"kind": "batch"}),
        "rmsnorm": Entry(_NORM, _NORM_HELP.format("rms"), {"kind": "rms"}),
        "groupnorm": Entry(_NORM, _NORM_HELP.format("group"), {"kind": "group"}),
        "scale-invariant": Entry(_LOSS, _LOSS_HELP.format("two-hot"), {"loss": "two-hot"}),
        "hl-gauss": Entry(_LOSS, _LOSS_HELP.format("hl-gauss"), {"loss": "hl-gauss"}),
        "l2": Entry(f"{_HERE}.l2:L2Plugin", "L2 penalty, STRENGTH * sum(w ** 2), through the gradients"),
        "weight-decay": Entry(f"{_HERE}.weight_decay:WeightDecayPlugin", "decoupled weight decay, as in AdamW"),
        "ewc": Entry(f"{_HERE}.ewc:EWCPlugin", "elastic weight consolidation, online: importances in one penalty"),
        "replay": Entry(f"{_HERE}.replay:ReplayPlugin", "experience replay from a memory of MEM_SIZE samples"),
        "lwf": Entry(f"{_HERE}.lwf:LwFPlugin", "learning without forgetting, by distillation (classification)"),
        "optimizer-reset": Entry(
            f"{_HERE}.optimizer_reset:OptimizerResetPlugin", "a fresh optimizer state at each experience"
        ),
    },
    given=("seed",),
    writes_first=True,
)
"""Interventions by name, in canonical order. ``finetune`` is not among them: it is what none of them makes."""


def _count(name: str, value: Any) -> str:
    try:
        return values.write(values.accept(values.Count, value))
    except ValueError as error:
        raise UserError(f"{name} of a strategy is {value}: it must be {error}") from None


OWN: Mapping[str, Callable[[Any], str]] = {
    "model": lambda given: MODELS.read(given).text,
    "optimizer": lambda given: OPTIMIZERS.read(given).text,
    "epochs": lambda given: _count("epochs", given),
    "batch_size": lambda given: _count("batch_size", given),
}
"""The settings that a strategy may have for itself, and what gives each its canonical text."""


@dataclass(frozen=True)
class Strategy:
    """What is compared: interventions, and the settings that this strategy has for itself.

    Attributes:
        interventions: In canonical order; none for ``finetune``.
        settings: Canonical texts by name, each of :data:`OWN`.
    """

    interventions: tuple[Chosen, ...]
    settings: Mapping[str, str]

    def __str__(self) -> str:
        name = "+".join(map(str, self.interventions)) or FINETUNE
        return "".join([name, *(f"@{setting}={text}" for setting, text in self.settings.items())])


def read_strategy(given: str | Mapping[str, Any]) -> Strategy:
    """Read a strategy.

    Args:
        given: Interventions joined by ``+``, in any order, or ``finetune``; behind them its own settings, each after an
            ``@``: ``"l2=1e-3@optimizer=adam:lr=3e-4@epochs=10"``. As a table: an intervention's ``name`` and options,
            or ``strategy`` with the text or a list of interventions; and its own settings.

    Raises:
        UserError: For an unknown name, a value that cannot be, an intervention named twice, or two that do the same
            thing in another way.
    """
    if isinstance(given, str):
        combination, *own = grammar.split(given, "@")
        pieces: list[str | Mapping[str, Any]] = list(grammar.split(combination))
        pairs = [piece.partition("=") for piece in own]
        settings: dict[str, Any] = {name.strip().replace("-", "_"): value for name, _, value in pairs}
        if len(settings) < len(pairs):
            raise UserError(f"strategy {given!r} gives one of its settings twice")
        text = given
    else:
        settings = {name: value for name, value in given.items() if name in OWN}
        rest = {name: value for name, value in given.items() if name not in OWN}
        listed = rest.pop("strategy", None)
        if listed is None:
            pieces = [rest]
        elif rest:
            raise unknown_name("key of a strategy", next(iter(rest)), ["strategy", *OWN])
        else:
            pieces = list(grammar.split(listed)) if isinstance(listed, str) else list(listed)
        text = str(dict(given))
    for name in settings:
        if name not in OWN:
            raise unknown_name(f"setting in strategy {text!r}:", name, OWN)
    own_texts = {name: read(settings[name]) for name, read in OWN.items() if name in settings}
    return Strategy(_combined(text, pieces), own_texts)


def _combined(text: str, pieces: list[str | Mapping[str, Any]]) -> tuple[Chosen, ...]:
    if [piece.lower() if isinstance(piece, str) else piece.get("name") for piece in pieces] == [FINETUNE]:
        return ()
    if not all(pieces):
        raise UserError(f"strategy {text!r} has an empty component; write for instance finetune or layernorm+l2=1e-3")
    found: dict[str, Chosen] = {}
    made: dict[str, str] = {}
    for piece in pieces:
        name = grammar.read("strategy", piece).name if isinstance(piece, str) else piece.get("name", "")
        if name == FINETUNE:
            raise UserError(f"{FINETUNE} stands for no component at all and joins no others; leave it out of {text!r}")
        if not COMPONENTS.knows(name):
            raise unknown_name("strategy", name, [FINETUNE, *COMPONENTS, *COMPONENTS.others])
        chosen = COMPONENTS.read(piece)
        if chosen.name in found:
            raise UserError(f"strategy {text!r} names {chosen.name} twice; name it once")
        rival = made.setdefault(COMPONENTS.entry(chosen.name).path, chosen.name)
        if rival != chosen.name:
            raise UserError(f"strategy {text!r} has both {rival} and {chosen.name}; choose one of them")
        found[chosen.name] = chosen
    order = [*(name for name in COMPONENTS if name in found), *(name for name in found if name not in COMPONENTS)]
    return tuple(found[name] for name in order)


def parse(text: str) -> tuple[Chosen, ...]:
    """The interventions of a strategy in canonical order; none for ``finetune``. See :func:`read_strategy`."""
    return read_strategy(text).interventions


def normalise(text: str | Mapping[str, Any]) -> str:
    """Spell a strategy in the one canonical way: interventions in the catalogue's order, strengths written out.

    Equal combinations have equal names: ``L2 + layernorm`` is ``layernorm+l2=0.001``.

    Args:
        text: As for :func:`read_strategy`.

    Raises:
        UserError: As :func:`read_strategy` does.
    """
    return str(read_strategy(text))


def fresh_name(text: str) -> str:
    """Spell what is left of a strategy on the very first experience, in canonical form.

    Interventions that need a past (EWC, replay) cannot act there, so a fresh network trained on one experience ends
    with the same weights under all strategies of one fresh name: ``ewc=100+layernorm`` and ``layernorm`` share theirs.
    An intervention says so by a class attribute, ``acts_on_first_experience = False``.

    Args:
        text: As for :func:`read_strategy`.

    Raises:
        UserError: As :func:`read_strategy` does.
    """
    strategy = read_strategy(text)
    acting = [chosen for chosen in strategy.interventions if acts_on_first_experience(chosen.name)]
    return str(Strategy(tuple(acting), strategy.settings))


def acts_on_first_experience(name: str) -> bool:
    """Whether training on the first experience with an intervention differs from finetuning."""
    return COMPONENTS.facts(name).get("acts_on_first_experience") is not False


def make_plugins(text: str, *, seed: int = 0) -> list[SupervisedPlugin]:
    """Make the plugins of a strategy, to be handed to one Avalanche strategy.

    Args:
        text: As for :func:`read_strategy`; its own settings are left to the caller.
        seed: Root of what plugins draw at random: the last layer that ``scale-invariant`` makes.

    Returns:
        New plugins, in canonical order.

    Raises:
        UserError: As :func:`read_strategy` does; or if something named is no plugin.
    """
    from avalanche.core import BasePlugin

    plugins = []
    for chosen in parse(text):
        plugin = COMPONENTS.make(chosen, seed=seed)
        if not isinstance(plugin, BasePlugin):
            raise UserError(f"strategy {chosen.name} made a {type(plugin).__name__}, which is no Avalanche plugin")
        plugins.append(plugin)
    return plugins
