"""What every metric here rests on: it never ends the training that it watches, and it keeps strategies apart."""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
import weakref
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from avalanche.evaluation import PluginMetric

from plasticity_cl.errors import UserError
from plasticity_cl.quantity import Quantity

State = TypeVar("State")
Found = TypeVar("Found")


class RefusedError(UserError):
    """A wrong argument that shows only when training begins: the one error that goes through :class:`GuardedMetric`."""


class GuardedMetric(PluginMetric):  # type: ignore[misc]
    """A plugin metric whose hooks raise nothing into the training that it watches.

    Every hook (``before_...``, ``after_...``) of a subclass is guarded, with nothing to be added in it. Where one
    raises, the metric warns once for each place that raises, by its name and with the reason in one line; then
    :meth:`on_failure` drops what is no longer true, and the hook gives no value. Interrupts and :class:`RefusedError`
    go through. A hook that calls the one of its base class is guarded as a whole.
    """

    quantities: Mapping[str, Quantity] = MappingProxyType({})
    """What the numbers are that it emits, by name, for the report of a run; nothing needs to be said."""

    _is_guarding = False
    _warned_of: frozenset[tuple[Any, ...]] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, hook in list(vars(cls).items()):
            if name.startswith(("before_", "after_")) and callable(hook):
                setattr(cls, name, _guarded(name, hook))

    def on_failure(self, strategy: Any, event: str) -> None:
        """Drop what is no longer true now that the hook ``event`` has raised; forgets everything if not overridden."""
        self.reset()

    def attempt(self, event: str, look: Callable[..., Found], *arguments: Any) -> Found | None:
        """What ``look`` gives; ``None`` and a warning where it raises, so that the rest of the hook goes on."""
        try:
            return look(*arguments)
        except RefusedError:
            raise
        except Exception as error:
            self.warn_of(error, event)
            return None

    def warn_of(self, error: Exception, event: str) -> None:
        """Say once for each place that raises that there is no value, and why."""
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = (type(error), trace and (trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        if place not in self._warned_of:
            self._warned_of = self._warned_of | {place}
            warnings.warn(f"{type(self).__name__}: no value ({event}): {one_line(error)}", stacklevel=3)


def one_line(error: Exception) -> str:
    """What an error says, in one line, with its type unless it is one of ours."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else f"{text[:297]}..."
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def _guarded(event: str, hook: Callable[..., Any]) -> Callable[..., Any]:
    # The name of the class stays in __qualname__, by which the template tells who acts at an event.
    @functools.wraps(hook)
    def guarded(self: GuardedMetric, strategy: Any, *args: Any, **kwargs: Any) -> Any:
        if self._is_guarding:
            return hook(self, strategy, *args, **kwargs)
        self._is_guarding = True
        try:
            return hook(self, strategy, *args, **kwargs)
        except RefusedError:
            raise
        except Exception as error:
            with contextlib.suppress(Exception):
                self.on_failure(strategy, event)
            self.warn_of(error, event)
            return None
        finally:
            self._is_guarding = False

    return guarded


class PerStrategy(Generic[State]):
    """What a metric knows of each strategy that it has met, apart from each other.

    Strategies are not kept alive by it. A copied or pickled strategy takes what is known of it along.

    Args:
        make: Gives what is known of a strategy at first.
    """

    def __init__(self, make: Callable[[], State]) -> None:
        self._make = make
        self._states: dict[int, tuple[weakref.ref[Any], State]] = {}
        self.latest = make()

    def of(self, strategy: Any) -> State:
        """What is known of ``strategy``, which becomes the latest one."""
        known = self._states.get(id(strategy))
        if known is None or known[0]() is not strategy:
            self._states = {key: pair for key, pair in self._states.items() if pair[0]() is not None}
            known = self._states[id(strategy)] = (weakref.ref(strategy), self._make())
        self.latest = known[1]
        return known[1]

    def replace(self, strategy: Any) -> State:
        """Forget what is known of ``strategy``, and begin again."""
        self._states.pop(id(strategy), None)
        return self.of(strategy)

    def __getstate__(self) -> dict[str, Any]:
        pairs = [(of(), state) for of, state in self._states.values() if of() is not None]
        return {"make": self._make, "pairs": pairs, "latest": self.latest}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self._make, self.latest = kept["make"], kept["latest"]
        self._states = {id(strategy): (weakref.ref(strategy), state) for strategy, state in kept["pairs"]}

    def __deepcopy__(self, memo: dict[int, Any]) -> PerStrategy[State]:
        # Only a strategy that is itself being copied has a copy: copying the others along would copy whole networks.
        twin: PerStrategy[State] = PerStrategy.__new__(PerStrategy)
        memo[id(self)] = twin
        twin._make = copy.deepcopy(self._make, memo)
        twin._states = {}
        for of, state in list(self._states.values()):
            strategy = of()
            if strategy is not None:
                owner = memo.get(id(strategy), strategy)
                twin._states[id(owner)] = (weakref.ref(owner), copy.deepcopy(state, memo))
        twin.latest = copy.deepcopy(self.latest, memo)
        return twin
