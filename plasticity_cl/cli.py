"""The command line. Everything heavy is imported by the command that needs it, so that help answers at once."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import signal
import sys
import textwrap
import threading
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import tyro

import plasticity_cl
from plasticity_cl.errors import UserError, unknown_name
from plasticity_cl.experiments.spec import CompareSpec, Machine, RunSpec, read_toml

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
    """Name every scenario, source, network and intervention."""

    def __call__(self) -> int:
        """Do it."""
        from plasticity_cl.names import IMAGENET_NETWORKS, NETWORKS
        from plasticity_cl.scenarios.catalogue import SCENARIOS
        from plasticity_cl.scenarios.files import SOURCES
        from plasticity_cl.strategies.catalogue import COMPONENTS

        print("scenarios")
        for name, entry in SCENARIOS.items():
            options = f"; options: {', '.join(entry.options)}" if entry.options else ""
            print(_item(name, entry.help + options))
        print(f"\nsources\n  {', '.join(SOURCES)}\n\nnetworks\n  {', '.join(NETWORKS)}")
        print(f"  {', '.join(IMAGENET_NETWORKS)} (torchvision's)")
        print("\nstrategies: finetune, or any of these joined by +, as in layernorm+l2=1e-3")
        for name, component in COMPONENTS.items():
            print(_item(name, component.help))
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
            raise unknown_name(f"option of {arguments[0]}", option, known)


def _options(of: type) -> Iterator[str]:
    for field, hint in typing.get_type_hints(of).items():
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield from _options(hint)
        elif of is not Report:
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


def _item(name: str, text: str) -> str:
    return textwrap.fill(text, 79, initial_indent=f"  {name:<18} ", subsequent_indent=" " * 21)


def _do(specs: Sequence[RunSpec], out: Path | None, machine: Machine) -> int:
    from plasticity_cl.experiments.compare import compare

    folder = out or Path("runs") / f"{specs[0].scenario}-{specs[0].source}"
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
