"""The command line. Everything heavy is imported by the command that needs it, so that help answers at once."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import signal
import sys
import threading
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import tyro

import plasticity_cl
from plasticity_cl.errors import UserError, unknown_name
from plasticity_cl.experiments.moved import MOVED, new_spelling
from plasticity_cl.experiments.spec import CompareSpec, Machine, RunSpec
from plasticity_cl.experiments.spec_file import read_toml
from plasticity_cl.parts import grammar

PROGRAM = "plasticity-cl"
_KEPT = "what is finished is kept, and the same command goes on from there"


@dataclasses.dataclass(frozen=True)
class Run:
    """Train one strategy on one stream with one seed."""

    spec: RunSpec
    machine: Machine
    out: Path | None = None
    """Results folder; runs/SCENARIO-SOURCE if not given. Unfinished work in it is continued."""
    config: Path | None = None
    """TOML file with the fields of the spec; options on the command line go before it."""

    def __call__(self) -> int:
        """Do it."""
        return _do([self.spec], self.out, self.machine)


@dataclasses.dataclass(frozen=True)
class Compare:
    """Train several strategies on one stream with several seeds, and report what each loses and why."""

    spec: CompareSpec
    machine: Machine
    out: Path | None = None
    """Results folder; runs/SCENARIO-SOURCE if not given. Unfinished work in it is continued."""
    config: Path | None = None
    """TOML file with the fields of the spec; options on the command line go before it."""

    def __call__(self) -> int:
        """Do it."""
        return _do(self.spec.runs(), self.out, self.machine)


@dataclasses.dataclass(frozen=True)
class Report:
    """Make report.html and PNG figures of a results folder."""

    directory: Annotated[Path, tyro.conf.Positional]
    """Folder with runs anywhere below it."""

    def __call__(self) -> int:
        """Do it."""
        return _report(self.directory)


@dataclasses.dataclass(frozen=True)
class List:
    """Name every part that a run can be made of; or say the options of some."""

    parts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Parts whose options are to be listed, by name or dotted path; all parts by name if none is given."""

    def __call__(self) -> int:
        """Do it."""
        from plasticity_cl.listing import list_all, list_options

        print("\n\n".join(map(list_options, self.parts)) if self.parts else list_all())
        return 0


Command: TypeAlias = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[List, tyro.conf.subcommand("list")]
)
_COMMANDS: Mapping[str, type] = {"run": Run, "compare": Compare, "report": Report, "list": List}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0; 1 when a run failed or diverged; 2 for a mistake of the user's; 128 and the signal's number
        when ended by one: 130 when interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    # A part of one's own is found in the folder where the command is given, as it is by a script there.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return carry_out(PROGRAM, lambda: _command(given)())


def carry_out(program: str, do: Callable[[], int | None]) -> int:
    """Do what a command does, and turn whatever ends it early into one line and an exit code.

    Args:
        program: Its name, which stands before the line.
        do: Does it, and returns the exit code, or ``None`` for 0.

    Returns:
        The exit code, as :func:`main` says.
    """
    try:
        with _signals_raise():
            code = do() or 0
            sys.stdout.flush()
            return code
    except UserError as error:
        _say(program, error)
        return 2
    except BrokenPipeError:
        # Whoever read the output has seen enough. Python would try, and fail, to write the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        _say(program, f"interrupted; {_KEPT}")
        return 128 + signal.SIGINT
    except _Ended as error:
        _say(program, f"ended by {error.signal.name}; {_KEPT}")
        return 128 + error.signal


def tell(program: str, states: Mapping[Path, str]) -> int:
    """Say in one line each which runs failed or diverged, and return the exit code: 1 where there is one, otherwise 0.

    Args:
        program: Its name, which stands before each line.
        states: What :func:`~plasticity_cl.experiments.compare.run_all` returned.
    """
    from plasticity_cl.experiments.compare import problems

    lines = problems(states)
    for line in lines:
        _say(program, line)
    return 1 if lines else 0


class _Ended(BaseException):
    """A signal that asks the process to end: raised, so that what it holds is let go."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    def end(number: int, frame: object) -> None:
        raise _Ended(number)

    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    # Signals belong to the main thread; and one that is ignored, as nohup has it, stays so.
    mine = [n for n in numbers if signal.getsignal(n) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        mine = []
    try:
        for number in mine:
            signal.signal(number, end)
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)


def _say(program: str, what: object) -> None:
    with contextlib.suppress(OSError):  # a terminal that was closed
        print(f"{program}: {what}", file=sys.stderr, flush=True)


def _command(arguments: list[str]) -> Callable[[], int]:
    """Read the command and its options.

    Raises:
        UserError: If they are wrong.
        SystemExit: After help.
    """
    if "--version" in arguments:
        return _version
    if not {"-h", "--help"} & {*arguments}:
        _check_names(arguments)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            command: Run | Compare | Report | List = tyro.cli(
                Command,  # type: ignore[arg-type]
                prog=PROGRAM,
                description="Does it forget, or can it no longer learn? Plasticity and forgetting, told apart.",
                args=arguments,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
                **_from_file(arguments),
            )
            return command
    except SystemExit as error:
        if error.code:
            raise UserError(_in_one_line(complaint.getvalue())) from None
        sys.stdout.flush()
        return lambda: 0


def _check_names(arguments: Sequence[str]) -> None:
    """Check the names of the command and of its options.

    Raises:
        UserError: With the close matches.
    """
    if not arguments or arguments[0].startswith("-"):
        raise UserError(f"the command comes first: {', '.join(_COMMANDS)}; {PROGRAM} --help says what each does")
    if arguments[0] not in _COMMANDS:
        raise unknown_name("command", arguments[0], _COMMANDS)
    known = set(_options(_COMMANDS[arguments[0]]))
    for argument in arguments[1:]:
        option = argument.partition("=")[0].replace("_", "-")
        if option.startswith("--") and option not in known:
            if not known:
                raise UserError(f"unknown option {option!r}: {arguments[0]} has none")
            _check_moved(arguments)
            raise unknown_name(f"option of {arguments[0]}", option, known)


def _check_moved(arguments: Sequence[str]) -> None:
    """Answer options that were fields of their own before version 0.3.0 with what to write instead.

    Raises:
        UserError: If there is one.
    """
    given: dict[str, str] = {}
    for argument, after in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        if argument.startswith("--"):
            option, equals, value = argument[2:].partition("=")
            given[option.replace("-", "_")] = value if equals else after
    texts = new_spelling(given, given)
    if texts:
        former = ", ".join(f"--{name.replace('_', '-')}" for name in given if name in MOVED)
        now = " ".join(f"--{part} {text}" for part, text in texts.items())
        raise UserError(f"{former} {'are options' if ',' in former else 'is an option'} of a part: write {now}")


def _options(of: type) -> Iterator[str]:
    for field, hint in typing.get_type_hints(of).items():
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield from _options(hint)
        elif of not in (Report, List):
            name = field.replace("_", "-")
            yield from (f"--{name}", f"--no-{name}") if hint is bool else (f"--{name}",)


def _in_one_line(box: str) -> str:
    """What the parser complains of in the first part of its box, without the frame."""
    lines = [line.strip("│ \n") for line in box.splitlines()]
    said = itertools.takewhile(lambda line: not line.startswith(("─", "╰")), lines[1:])
    return f"{' '.join(' '.join(said).split()).rstrip('.')}; --help says more"


def _version() -> int:
    print(f"{PROGRAM} {plasticity_cl.__version__}")
    return 0


def _from_file(arguments: Sequence[str]) -> dict[str, Any]:
    """The command with the values of its TOML file, as the parser's defaults."""
    values = [value for flag, value in itertools.pairwise(arguments) if flag == "--config"]
    values += [argument.partition("=")[2] for argument in arguments if argument.startswith("--config=")]
    if not values or not arguments:
        return {}
    path = Path(values[-1])
    if arguments[0] == "run":
        return {"default": Run(read_toml(path, RunSpec), Machine())}
    return {"default": Compare(read_toml(path, CompareSpec), Machine())}


def _do(specs: Sequence[RunSpec], out: Path | None, machine: Machine) -> int:
    from plasticity_cl.experiments.compare import compare

    names = grammar.read("scenario", specs[0].scenario).name, grammar.read("source", specs[0].source).name
    folder = out or Path("runs") / "-".join(names)
    states = compare(specs, folder, machine)
    # Told before the report is printed, since whoever reads that may stop reading.
    code = tell(PROGRAM, states)
    return _report(folder) or code


def _report(directory: Path) -> int:
    if not directory.is_dir():
        raise UserError(f"no such directory: {directory}")
    from plasticity_cl.report import read_runs, summary_table, write_report

    runs = read_runs(directory)
    page = write_report(directory)
    print(summary_table(runs))
    print(f"\nreport: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
