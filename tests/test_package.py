"""What is packed: one version everywhere, everything that the tests need, and nothing of them in what is installed."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

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


def test_the_version_stands_in_one_place_and_is_said_everywhere(packed):
    _, names = packed
    version = plasticity_cl.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert f"plasticity_cl-{version}.dist-info/METADATA" in names
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    shown = subprocess.run([sys.executable, "-m", "plasticity_cl", "--version"], capture_output=True, text=True)
    assert (shown.returncode, shown.stdout) == (0, f"plasticity-cl {version}\n")


def test_the_source_distribution_has_what_tests_build_and_citation_need(packed):
    source, _ = packed
    wanted = [ROOT / name for name in ("Makefile", "CITATION.cff", "LICENSE", "README.md", "requirements.lock")]
    wanted += [ROOT / "pyproject.toml", ROOT / "MANIFEST.in", ROOT / ".ci" / "run"]
    for folder in ("tests", "docs", "scripts", "plasticity_cl"):
        wanted += [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
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


def test_the_wheel_has_the_package_alone_with_scenarios_and_strategies_as_real_folders(packed):
    _, names = packed
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"plasticity_cl"}
    for linked in ("scenarios", "strategies"):
        for path in (ROOT / "plasticity_cl" / linked).glob("*.py"):
            assert path.relative_to(ROOT).as_posix() in names
    assert "plasticity_cl/py.typed" in names
    assert not [name for name in names if "test" in name]


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
