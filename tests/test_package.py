"""What is packed: one version everywhere, everything that the tests need, and nothing of them in what is installed."""

import itertools
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import plasticity_cl

ROOT = Path(__file__).parent.parent
LEFT_OUT = shutil.ignore_patterns(
    ".*_cache", ".venv", ".git", "__pycache__", "*.egg-info", "build", "dist", "runs", "demo"
)
BUILD = "import setuptools.build_meta as b; b.build_sdist({0!r}); b.build_wheel({0!r})"


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The unpacked source distribution, and the names in the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("packed")
    shutil.copytree(ROOT, folder / "copy", symlinks=True, ignore=LEFT_OUT)
    for source in (folder / "copy", folder / f"plasticity_cl-{plasticity_cl.__version__}"):
        command = [sys.executable, "-c", BUILD.format(str(folder))]
        subprocess.run(command, cwd=source, capture_output=True, check=True)
        (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
    with zipfile.ZipFile(wheel) as archive:
        return source, set(archive.namelist())


@pytest.mark.slow
def test_the_version_stands_in_one_place_and_is_said_everywhere(packed):
    _, names = packed
    version = plasticity_cl.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert f"plasticity_cl-{version}.dist-info/METADATA" in names
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    shown = subprocess.run([sys.executable, "-m", "plasticity_cl", "--version"], capture_output=True, text=True)
    assert (shown.returncode, shown.stdout) == (0, f"plasticity-cl {version}\n")


def test_the_changelog_says_what_changed_in_this_version_and_all_before_it():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)$", changelog, flags=re.MULTILINE)
    numbers = [tuple(map(int, version.split("."))) for version, _ in versions]
    dates = [date for _, date in versions]
    assert versions[0][0] == plasticity_cl.__version__
    assert (0, 1, 0) in numbers
    assert numbers == sorted(set(numbers), reverse=True)
    assert dates == sorted(dates, reverse=True)


def pins(name):
    """Versions in a lock by project."""
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+) \\$", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE))


def test_the_locks_hold_every_dependency_within_its_range_with_hashes_and_no_addresses():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = {
        "requirements.lock": [*project["dependencies"], *itertools.chain(*extras.values())],
        "requirements-lowest.txt": [*project["dependencies"], *extras["test"]],
    }
    for name, requirements in wanted.items():
        text, found = (ROOT / name).read_text(encoding="utf-8"), pins(name)
        for requirement in map(Requirement, requirements):
            assert requirement.specifier.contains(found[requirement.name], prereleases=True), requirement
        assert re.search(r"://|^-|@ ", text, flags=re.MULTILINE) is None
        assert all("--hash=sha256:" in entry for entry in re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:])
    # The lowest versions are those that the ranges begin with, but for bug fixes where the first one cannot be had.
    for requirement in map(Requirement, wanted["requirements-lowest.txt"]):
        (bound,) = requirement.specifier
        lowest = Version(bound.version).release
        lowest = lowest if len(lowest) > 1 else (*lowest, 0)
        assert Version(found[requirement.name]).release[: len(lowest)] == lowest, requirement


def test_hooks_run_what_lint_runs():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)[1]
    tools = re.findall(r"\$\(BIN\)/(\S+(?: (?:check|format)\b)?)", lint)
    config = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert len(tools) == 4
    assert re.findall(r"entry: \.venv/bin/(\S+(?: (?:check|format)\b)?)", config) == tools
    assert set(re.findall(r"repo: (\S+)", config)) == {"local"}


@pytest.mark.slow
def test_the_source_distribution_has_what_tests_build_and_citation_need(packed):
    source, _ = packed
    wanted = [ROOT / name for name in ("Makefile", "CITATION.cff", "LICENSE", "README.md", "CONTRIBUTING.md")]
    wanted += [ROOT / name for name in ("CHANGELOG.md", "requirements.lock", "requirements-lowest.txt")]
    wanted += [ROOT / name for name in ("pyproject.toml", "MANIFEST.in", ".pre-commit-config.yaml", ".ci/run")]
    for folder in ("tests", "docs", "examples", "scripts", "plasticity_cl"):
        wanted += [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    wanted = [path for path in wanted if path.parent != ROOT / "docs" / "api"]  # written by make docs
    for linked in ("scenarios", "strategies"):
        wanted += (ROOT / "plasticity_cl" / linked).glob("*.py")
    assert len(wanted) > 100
    assert [path for path in wanted if not (source / path.relative_to(ROOT)).is_file()] == []
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/metrics/test_separation.py", "-p", "no:cacheprovider"],
        cwd=source,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout


@pytest.mark.slow
def test_the_wheel_has_the_package_alone_with_scenarios_and_strategies_as_real_folders(packed):
    _, names = packed
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"plasticity_cl"}
    for linked in ("scenarios", "strategies"):
        for path in (ROOT / "plasticity_cl" / linked).glob("*.py"):
            assert path.relative_to(ROOT).as_posix() in names
    assert "plasticity_cl/py.typed" in names
    assert not [name for name in names if "tests" in name.split("/") or "/test_" in name]


def test_make_says_how_much_it_will_fetch_before_it_does(tmp_path):
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    fetch = tmp_path / "tools" / "uv"
    fetch.parent.mkdir()
    fetch.write_text("#!/bin/sh\necho fetched\nexit 3\n")
    fetch.chmod(0o755)
    path = os.pathsep.join([str(fetch.parent), os.environ["PATH"]])
    made = subprocess.run(
        ["make", "-s", "demo"], cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert made.returncode == 2
    assert made.stdout.splitlines() == [
        f"fetching the environment, about 7 GB in {tmp_path / '.venv'}: once, and some minutes",
        "fetched",
    ]
