"""Every diagnostic of a run by name. Light to import: the metrics are loaded when they are made.

A new one is a file and a line here: an Avalanche plugin metric, mostly a
:class:`~plasticity_cl.metrics.probe.ProbeMetric`, that emits :class:`~plasticity_cl.metrics.scalar.Scalar` values and
says what they are by its ``quantities``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from plasticity_cl.errors import UserError, unknown_name
from plasticity_cl.parts import Catalogue, Chosen, Entry, grammar

if TYPE_CHECKING:
    from avalanche.evaluation import PluginMetric

_MECHANISMS = "plasticity_cl.metrics.mechanisms"
LIGHT, ALL, NONE = "light", "all", "none"

METRICS = Catalogue(
    "diagnostic",
    "metrics",
    {
        "units": Entry(f"{_MECHANISMS}:UnitMetric", "dead and linearised units, preactivations", group=LIGHT),
        "features": Entry(f"{_MECHANISMS}:FeatureMetric", "ranks and norm of the features", group=LIGHT),
        "norms": Entry(f"{_MECHANISMS}:NormMetric", "parameters, gradients and updates", group=LIGHT),
        "targets": Entry(f"{_MECHANISMS}:TargetMetric", "mean of regression targets, and what carries it", group=LIGHT),
        "kernel": Entry(f"{_MECHANISMS}:KernelMetric", "rank and condition of the tangent kernel", group=LIGHT),
        "curvature": Entry(f"{_MECHANISMS}:CurvatureMetric", "extreme eigenvalues of the Hessian", group=ALL),
        "trainability": Entry(f"{_MECHANISMS}:TrainabilityMetric", "how well random targets are fitted", group=ALL),
        "pictures": Entry(f"{_MECHANISMS}:PictureMetric", "kernel, landscape and histograms as pictures", group=ALL),
    },
)


def read_diagnostics(given: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]) -> tuple[Chosen, ...]:
    """Read the diagnostics of a run.

    Args:
        given: Names joined by ``+``: those of :data:`METRICS` with options or without, dotted paths, and the words
            ``none``, ``light`` (units, features, norms, targets, kernel) and ``all``. Or a table of a ``name`` and its
            options, or a list of such texts and tables.

    Returns:
        Each once; the options of one that is named beside a word that it is in go before those of the word.

    Raises:
        UserError: For an unknown name or option.
    """
    found: dict[str, Chosen] = {}
    groups = {NONE: (), LIGHT: (LIGHT,), ALL: (LIGHT, ALL)}
    of_words: list[str] = []
    for piece in grammar.split(given) if isinstance(given, str) else [given] if isinstance(given, Mapping) else given:
        name = piece.lower() if isinstance(piece, str) else ""
        if name in groups:
            of_words += [metric for metric, entry in METRICS.items() if entry.group in groups[name]]
            continue
        plain = grammar.read("choice of diagnostics", piece).name if isinstance(piece, str) else piece.get("name", "")
        if not METRICS.knows(plain):
            raise unknown_name("choice of diagnostics", plain, [*groups, *METRICS, *METRICS.others])
        chosen = METRICS.read(piece)
        if chosen.name in found:
            raise UserError(f"diagnostics name {chosen.name} twice; name it once")
        found[chosen.name] = chosen
    for name in of_words:
        found.setdefault(name, METRICS.read(name))
    order = [*(name for name in METRICS if name in found), *(name for name in found if name not in METRICS)]
    return tuple(found[name] for name in order)


def write_diagnostics(given: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]) -> str:
    """The canonical text of the diagnostics of a run: a word where that says it all."""
    chosen = "+".join(map(str, read_diagnostics(given)))
    words = {"+".join(map(str, read_diagnostics(word))): word for word in (NONE, LIGHT, ALL)}
    return words.get(chosen, chosen)


def make_diagnostics(given: str) -> list[PluginMetric]:
    """Make the metrics of :func:`read_diagnostics`.

    Raises:
        UserError: As that does; or if something named is no metric.
    """
    from avalanche.evaluation import PluginMetric

    metrics = []
    for chosen in read_diagnostics(given):
        metric = METRICS.make(chosen)
        if not isinstance(metric, PluginMetric):
            raise UserError(f"diagnostic {chosen.name} made a {type(metric).__name__}, which is no Avalanche metric")
        metrics.append(metric)
    return metrics
