"""A catalogue: names, each with an import path and a line of help; and every stranger's part by its dotted path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, wraps
from importlib.metadata import entry_points
from typing import Any, ParamSpec, TypeVar

from plasticity_cl.errors import UserError, in_one_line, unknown_name
from plasticity_cl.parts import grammar, values
from plasticity_cl.parts.signature import REQUIRED, Argument, Signature, load, locate, signature

P = ParamSpec("P")
T = TypeVar("T")


def facts(**stated: Any) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """State facts of a part that is a function, literally, so that they can be read without importing it.

    They become attributes of the function, and of what it returns where that has them.
    """

    def state(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def make(*args: P.args, **kwargs: P.kwargs) -> T:
            made = function(*args, **kwargs)
            for name, value in stated.items():
                if hasattr(made, name):
                    setattr(made, name, value)
            return made

        for name, value in stated.items():
            setattr(make, name, value)
        return make

    return state


@dataclass(frozen=True)
class Entry:
    """One line of a catalogue.

    Args:
        path: ``module:attribute`` of a class or a function.
        help: One line for ``plasticity-cl list``; the docstring's first line where empty.
        presets: Arguments that the name stands for; they are no options.
        group: A word that stands for several parts together, where the catalogue has such.
        check: ``module:function``, light to import, that raises a :class:`UserError` where what the part needs is not
            there.
    """

    path: str
    help: str = ""
    presets: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""
    check: str = ""


@dataclass(frozen=True)
class Chosen:
    """A part with the options that were given.

    Attributes:
        name: Its name in the catalogue, or its dotted path.
        options: Their values by name, in the constructor's order.
        text: Its canonical text, which reads back as the same.
    """

    name: str
    options: Mapping[str, Any]
    text: str

    def __str__(self) -> str:
        return self.text


class Catalogue(Mapping[str, Entry]):
    """Parts of one kind by name.

    Args:
        kind: What they are, in words, for messages.
        group: Name of the entry points under which packages of others add parts.
        entries: Its lines.
        given: Arguments that the run itself fills in where a constructor has them; they are no options.
        writes_first: Whether the canonical text says the value of the first option where it was not given, so that a
            name in a table says what was done; and says it alone behind ``=`` where no other was given.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        entries: Mapping[str, Entry],
        given: tuple[str, ...] = (),
        *,
        writes_first: bool = False,
    ) -> None:
        self.kind, self.group = kind, group
        self._entries, self._given, self._writes_first = dict(entries), frozenset(given), writes_first

    @property
    def given(self) -> frozenset[str]:
        """Arguments that the run itself fills in."""
        return self._given

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @cached_property
    def others(self) -> dict[str, Entry]:
        """The parts that installed packages of others add, by name; never in place of ours."""
        found = entry_points(group=f"plasticity_cl.{self.group}")
        return {point.name: Entry(point.value) for point in found if point.name not in self._entries}

    def entry(self, name: str) -> Entry:
        """Find a part.

        Args:
            name: In the catalogue, of an entry point, or a dotted path.

        Raises:
            UserError: If there is no such part.
        """
        if name in self._entries:
            return self._entries[name]
        if name in self.others:
            return self.others[name]
        if "." in name:
            return Entry(locate(name))
        raise unknown_name(self.kind, name, [*self._entries, *self.others])

    def signature(self, name: str) -> Signature:
        """What is known of a part without making it."""
        return signature(self.entry(name).path)

    def options(self, name: str) -> dict[str, Argument]:
        """The options of a part, by name, in order."""
        entry = self.entry(name)
        arguments = signature(entry.path).arguments
        return {a.name: a for a in arguments if a.name not in self._given and a.name not in entry.presets}

    def help(self, name: str) -> str:
        """One line about a part."""
        return self.entry(name).help or self.signature(name).help

    def facts(self, name: str) -> Mapping[str, Any]:
        """What a part states of itself."""
        return self.signature(name).facts

    def knows(self, name: str) -> bool:
        """Whether a name is in the catalogue or of an entry point, or may be a dotted path."""
        return name in self._entries or name in self.others or "." in name

    def read(self, given: str | Mapping[str, Any] | Chosen, options: Mapping[str, Any] | None = None) -> Chosen:
        """Read a part.

        Args:
            given: Its text; or, as TOML has it, a table of its ``name`` and its options; or what was read before.
            options: Further options, which go before those that are given with it.

        Raises:
            UserError: If it is unknown, has no such option, or an option can have no such value.
        """
        if options:
            chosen = self.read(given)
            given = {"name": chosen.name, **chosen.options, **options}
        if isinstance(given, Chosen):
            return given
        if isinstance(given, str):
            written = grammar.read(self.kind, given)
            name, texts = written.name, written.options
        else:
            if not isinstance(given.get("name"), str):
                raise UserError(
                    f"a {self.kind} given as a table needs a name, for instance name = {next(iter(self))!r}"
                )
            name = given["name"] if "." in given["name"] else given["name"].lower()
            texts = {option.replace("-", "_"): value for option, value in given.items() if option != "name"}
        known = self.options(name)
        found = {self._option(name, known, option): value for option, value in texts.items()}
        of = {option: self._value(name, known[option], value) for option, value in found.items()}
        first = next(iter(known), None)
        if self._writes_first and first is not None and first not in of and _is_value(known[first].default):
            of[first] = known[first].default
        for option, argument in known.items():
            if argument.default is REQUIRED and option not in of:
                raise UserError(f"{self.kind} {name} needs a value of {option}; write {name}:{option}=VALUE")
        of = {option: of[option] for option in known if option in of}
        texts = {option: values.write(value, known[option].type) for option, value in of.items()}
        return Chosen(name, of, grammar.write(name, texts, first if self._writes_first else None))

    def make(self, given: str | Mapping[str, Any] | Chosen, **filled: Any) -> Any:
        """Make a part.

        Args:
            given: As for :meth:`read`.
            **filled: Arguments that the run fills in, as far as the constructor has them.

        Raises:
            UserError: As :meth:`read` does; if the part cannot be imported; or if it refuses its arguments.
        """
        chosen = self.read(given)
        entry = self.entry(chosen.name)
        names = {argument.name for argument in signature(entry.path).arguments}
        arguments = {name: value for name, value in filled.items() if name in names}
        try:
            return load(entry.path)(**arguments, **entry.presets, **chosen.options)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{self.kind} {chosen.text}: {in_one_line(error)}") from error

    def _option(self, name: str, options: Mapping[str, Argument], option: str) -> str:
        if option == "":
            if not options:
                raise UserError(f"{self.kind} {name} takes no value; write {name} alone")
            return next(iter(options))
        if option not in options:
            if not options:
                raise UserError(f"{self.kind} {name} has no option {option}: it has none")
            raise unknown_name(f"option of {self.kind} {name}", option, options)
        return option

    def _value(self, name: str, option: Argument, value: Any) -> Any:
        try:
            return values.accept(option.type, value)
        except ValueError as error:
            what, shown = str(error), value if isinstance(value, str) else values.write(value)
            if len(error.args) > 1:  # one of a few words
                raise unknown_name(option.name, shown, error.args[1]) from None
            raise UserError(f"bad value in {self.kind} {name}: {option.name} is {shown}: it must be {what}") from None


def _is_value(default: Any) -> bool:
    return isinstance(default, int | float) and not isinstance(default, bool)
