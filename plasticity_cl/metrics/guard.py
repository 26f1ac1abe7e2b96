"""What every metric here rests on: it never ends the training that it watches, and it keeps strategies apart."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from avalanche.evaluation import PluginMetric

from plasticity_cl.errors import UserError, in_one_line
from plasticity_cl.quantity import Quantity
from plasticity_cl.training.learner import Learner
from plasticity_cl.training.per_strategy import PerStrategy

__all__ = ["GuardedMetric", "PerStrategy", "RefusedError", "one_line"]

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

    def state_dict(self) -> dict[str, Any]:
        """What the metric has to remember from one experience to the next, of the one strategy that it serves.

        Tensors, numbers, strings, ``None``, and lists, tuples and dictionaries of them; nothing if not overridden.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave, with the strategy that is met first.

        Args:
            state: As it was, or as ``torch.load(..., weights_only=True)`` read it.
        """

    def on_failure(self, strategy: Learner, event: str) -> None:
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
    text = in_one_line(error)
    text = text if len(text) <= 300 else f"{text[:297]}..."
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def _guarded(event: str, hook: Callable[..., Any]) -> Callable[..., Any]:
    # The name of the class stays in __qualname__, by which the template tells who acts at an event.
    @functools.wraps(hook)
    def guarded(self: GuardedMetric, strategy: Learner, *args: Any, **kwargs: Any) -> Any:
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
