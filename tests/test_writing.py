"""Files and folders appear whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from plasticity_cl.writing import replacing, write_atomically


def test_what_is_written_is_what_was_given(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content, data in [("grün\r\n", "grün\r\n".encode()), (b"\x00\xff", b"\x00\xff"), ("", b"")]:
        for durable in (False, True):
            write_atomically(path, content, durable=durable)
            assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as partial:
        partial.write_text("ne")
        assert path.read_text() == "old"
        assert partial.parent == tmp_path
        assert partial.name.startswith(".file."), "hidden: no pattern for results finds it"
        partial.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with replacing(folder) as partial:
        (partial / "train").mkdir(parents=True)
        (partial / "train" / "a.txt").write_text("a")
        assert not folder.exists()
    assert (folder / "train" / "a.txt").read_text() == "a"
    assert list(tmp_path.iterdir()) == [folder]
    with pytest.raises(OSError, match="not empty") as caught, replacing(folder) as partial:
        partial.mkdir()
    assert caught.value.filename
    assert (folder / "train" / "a.txt").read_text() == "a", "what is there stays"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), OSError("a text"), RuntimeError("?")]
)
def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "kept"
    path.write_text("old")

    def fail(in_a_folder: bool) -> None:
        with replacing(path) as partial:
            if in_a_folder:
                partial.mkdir()
            (partial / "inside" if in_a_folder else partial).write_text("half")
            raise error

    for in_a_folder in (False, True):
        with pytest.raises(type(error)) as caught:
            fail(in_a_folder)
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]
        assert error.args[-1] in str(caught.value)
        if error.args[0] == errno.ENOSPC:
            assert isinstance(caught.value, OSError)
            assert caught.value.filename == str(path), "an error of an open file names none of its own"


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    (tmp_path / f".file.{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(path, "x" * 100_000)
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_an_error_that_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write_atomically(tmp_path / "nowhere" / "file", "x")
    assert Path(caught.value.filename).parent == tmp_path / "nowhere"


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    code = f"""
import os, signal
from pathlib import Path
from plasticity_cl.writing import replacing
with replacing(Path({str(path)!r})) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    write_atomically(path, "new")
    assert path.read_text() == "new"


def test_it_is_light_to_import() -> None:
    code = "import sys, plasticity_cl.writing; print(sorted({'torch', 'numpy', 'avalanche'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
