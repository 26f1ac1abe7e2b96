"""What is known of each strategy apart from the others, kept beside them and not in them."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from plasticity_cl.errors import UserError

State = TypeVar("State")


class PerStrategy(Generic[State]):
    """What a metric or a plugin knows of each strategy that it has met, apart from each other.

    Strategies are not kept alive by it. A copied or pickled strategy takes what is known of it along.

    Args:
        make: Gives what is known of a strategy at first.
    """

    def __init__(self, make: Callable[[], State]) -> None:
        self._make = make
        self._states: dict[int, tuple[weakref.ref[Any], State]] = {}
        self.latest = make()
        self._loaded: State | None = None

    def of(self, strategy: Any) -> State:
        """What is known of ``strategy``, which becomes the latest one."""
        known = self._states.get(id(strategy))
        if known is None or known[0]() is not strategy:
            self._states = {key: pair for key, pair in self._states.items() if pair[0]() is not None}
            state = self._make() if self._loaded is None else self._loaded
            self._loaded = None
            known = self._states[id(strategy)] = (weakref.ref(strategy), state)
        self.latest = known[1]
        return known[1]

    def alone(self) -> State:
        """What is known of the one strategy that was met, for a state that is saved.

        Raises:
            UserError: If several have been met.
        """
        if sum(of() is not None for of, _ in self._states.values()) > 1:
            raise UserError("a metric that serves several strategies has no state of its own: give each strategy one")
        return self.latest

    def adopt(self, state: State) -> None:
        """Let the one strategy that was met go on with ``state``, or the first one that will be.

        Raises:
            UserError: If several have been met.
        """
        self.alone()
        owners = [owner for of, _ in self._states.values() if (owner := of()) is not None]
        self.latest = state
        self._loaded = None if owners else state
        self._states = {id(owner): (weakref.ref(owner), state) for owner in owners}

    def __getstate__(self) -> dict[str, Any]:
        pairs = [(of(), state) for of, state in self._states.values() if of() is not None]
        return {"make": self._make, "pairs": pairs, "latest": self.latest, "loaded": self._loaded}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self._make, self.latest, self._loaded = kept["make"], kept["latest"], kept["loaded"]
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
        twin._loaded = copy.deepcopy(self._loaded, memo)
        twin.latest = copy.deepcopy(self.latest, memo)
        return twin
