"""The command line. Everything heavy is imported by the command that needs it, so that help answers at once."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import tyro

from plasticity_cl.errors import UserError
from plasticity_cl.experiments.spec import CompareSpec, Machine, RunSpec, read_toml


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
        from plasticity_cl.models import MODELS
        from plasticity_cl.scenarios.catalogue import SCENARIOS
        from plasticity_cl.scenarios.sources import SOURCES
        from plasticity_cl.strategies.catalogue import COMPONENTS

        print("scenarios")
        for name, entry in SCENARIOS.items():
            options = f"; options: {', '.join(entry.options)}" if entry.options else ""
            print(_item(name, entry.help + options))
        print(f"\nsources\n  {', '.join(SOURCES)}\n\nnetworks\n  {', '.join(MODELS)}")
        print("  imagenet-resnet18, imagenet-resnet50 (torchvision's)")
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0; 1 when a run failed; 2 for a mistake of the user's; 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        command: Run | Compare | Report | List = tyro.cli(
            Command,  # type: ignore[arg-type]
            prog="plasticity-cl",
            description="Does it forget, or can it no longer learn? Plasticity and forgetting, told apart.",
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
            **_from_file(arguments),
        )
        return command()
    except UserError as error:
        print(f"plasticity-cl: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("plasticity-cl: interrupted; finished runs are kept, the same command continues", file=sys.stderr)
        return 130


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
    code = _report(folder)
    failed = {directory: state for directory, state in states.items() if state.startswith("failed")}
    for directory, state in failed.items():
        print(f"plasticity-cl: {directory} {state}; see error.txt there", file=sys.stderr)
    return 1 if failed else code


def _report(directory: Path) -> int:
    from plasticity_cl.report import read_runs, summary_table, write_report

    print(summary_table(read_runs(directory)))
    print(f"\nreport: {write_report(directory)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
