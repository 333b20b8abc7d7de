# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was taken out of a log for a moment is put back by the next run, whatever ended the one before; and nothing else is."""

from __future__ import annotations

import os
import signal
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import log_rescue

CONTENT = b"".join(b"%07d\n" % number for number in range(4096))
BEGIN = 8192


class Log:
    """An open log, and the folder where copies are kept."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.path, self.memory = folder / "log", folder / "memory"
        self.path.write_bytes(CONTENT)
        self.memory.mkdir()
        patch.setattr(log_rescue, "_FOLDERS", (str(folder / "nowhere"), str(self.memory)))
        self.descriptor = os.open(self.path, os.O_RDWR)

    def take_out(self, begin: int = BEGIN, length: int = 12_288) -> None:
        os.pwrite(self.descriptor, bytes(length), begin)

    @property
    def content(self) -> bytes:
        return self.path.read_bytes()

    @property
    def home(self) -> Path:
        """The folder of this user's."""
        return self.memory / f"fleetclean-{os.geteuid()}"

    @property
    def copy(self) -> Path:
        (found,) = self.home.iterdir()
        return found

    def killed(self, written: int = 0) -> None:
        """What stays was taken out, and ``written`` bytes of it are there again, when the process is killed."""
        child = os.fork()
        if not child:
            with log_rescue.kept(self.descriptor, BEGIN, CONTENT[BEGIN:]):
                self.take_out(BEGIN, len(CONTENT) - BEGIN)
                os.pwrite(self.descriptor, CONTENT[BEGIN:BEGIN + written], BEGIN)
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    made = Log(tmp_path, monkeypatch)
    yield made
    os.close(made.descriptor)


@pytest.mark.parametrize("written", [0, 4096, 12_288, len(CONTENT) - BEGIN])
def test_what_was_taken_out_is_put_back_after_a_kill(log: Log, written: int) -> None:
    log.killed(written)
    assert (log.content == CONTENT) == (written == len(CONTENT) - BEGIN)
    # The container went on writing.
    with log.path.open("ab") as engine:
        engine.write(b"new\n")
    log_rescue.put_back(log.descriptor)
    assert log.content == CONTENT + b"new\n"
    assert not list(log.memory.iterdir())


def test_without_a_kill_no_copy_is_left(log: Log) -> None:
    with log_rescue.kept(log.descriptor, BEGIN, CONTENT[BEGIN:]):
        assert log.copy.stat().st_mode & 0o777 == 0o600
        log.take_out()
        os.pwrite(log.descriptor, CONTENT[BEGIN:], BEGIN)
    assert not list(log.memory.iterdir())
    log_rescue.put_back(log.descriptor)
    assert log.content == CONTENT


def test_a_copy_stays_for_the_next_run_where_it_could_not_be_written_back(log: Log) -> None:
    with pytest.raises(OSError, match="full"):
        with log_rescue.kept(log.descriptor, BEGIN, CONTENT[BEGIN:]):
            log.take_out()
            raise OSError("full")
    log_rescue.put_back(log.descriptor)
    assert log.content == CONTENT


def test_nothing_is_taken_out_where_no_copy_can_be_kept(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_rescue, "_FOLDERS", ("/nowhere/at", "/nowhere/all"))
    with pytest.raises(FileNotFoundError):
        with log_rescue.kept(log.descriptor, BEGIN, CONTENT[BEGIN:]):
            log.take_out()
    assert log.content == CONTENT


def test_a_copy_that_was_never_finished_is_not_put_back(log: Log) -> None:
    # Killed while it was written: then nothing was taken out yet.
    log.killed()
    whole = log.copy.read_bytes()
    name = log.copy
    os.pwrite(log.descriptor, CONTENT, 0)
    for length in (0, 5, 16, 17, 31, 32, 33, len(whole) - 1):
        name.parent.mkdir(mode=0o700, exist_ok=True)
        name.write_bytes(whole[:length])
        log_rescue.put_back(log.descriptor)
        assert log.content == CONTENT
        assert not list(log.memory.iterdir())


def test_a_copy_of_another_file_that_had_the_same_number_is_not_put_back(log: Log) -> None:
    log.killed()
    for content in (CONTENT[::-1], b"x" * len(CONTENT), CONTENT[:100], CONTENT.replace(b"0003000", b"other!!")):
        copy = log.copy.read_bytes()
        name = log.copy
        os.ftruncate(log.descriptor, 0)
        os.pwrite(log.descriptor, content, 0)
        log_rescue.put_back(log.descriptor)
        assert log.content == content
        name.parent.mkdir(mode=0o700)
        name.write_bytes(copy)


def test_what_is_no_copy_of_ours_is_left_alone(log: Log, tmp_path: Path) -> None:
    log.killed()
    name = log.copy
    torn = log.content
    (tmp_path / "elsewhere").write_bytes(name.read_bytes())
    name.unlink()

    def untouched() -> None:
        before = sorted(os.listdir("/proc/self/fd"))
        log_rescue.put_back(log.descriptor)
        assert sorted(os.listdir("/proc/self/fd")) == before
        assert log.content == torn
        assert os.path.lexists(name)

    name.symlink_to(tmp_path / "elsewhere")
    untouched()
    name.unlink()
    os.link(tmp_path / "elsewhere", name)
    untouched()
    name.unlink()
    os.mkfifo(name)
    untouched()
    name.unlink()
    name.mkdir()
    untouched()
    name.rmdir()
    if os.geteuid() == 0:
        name.write_bytes((tmp_path / "elsewhere").read_bytes())
        os.chown(name, 12345, 12345)
        untouched()


def test_somebody_elses_file_in_its_place_is_not_overwritten(log: Log) -> None:
    log.killed()
    name = log.copy
    os.pwrite(log.descriptor, CONTENT, 0)
    name.write_bytes(b"somebody's")
    with pytest.raises(FileExistsError):
        with log_rescue.kept(log.descriptor, BEGIN, CONTENT[BEGIN:]):
            log.take_out()
    assert name.read_bytes() == b"somebody's"
    assert log.content == CONTENT


# -- where others may write ------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["a folder that others may write to", "another user's folder", "a link", "a file", "a pipe"])
@pytest.mark.parametrize("full", [False, True])
def test_a_name_that_somebody_else_has_taken_holds_nothing_up(log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, full: bool) -> None:
    """The name of the copy is known to everybody: who took it in ``/dev/shm`` made the cut fail, or had it written where he liked."""
    if what == "another user's folder" and os.geteuid():
        pytest.skip("not here: only root gives files away")
    (tmp_path / "nowhere").mkdir()
    taken = log.home
    {"a link": lambda: taken.symlink_to(tmp_path), "a file": taken.touch, "a pipe": lambda: os.mkfifo(taken)}.get(what, lambda: taken.mkdir(mode=0o700))()
    if what == "another user's folder":
        os.chown(taken, 12345, 12345)
    elif what.startswith("a folder"):
        taken.chmod(0o770)
    real = log_rescue._write

    def write(name: str, content: bytes, home: int | None = None) -> None:
        if full and home is not None:
            raise OSError(28, "No space left on device")
        real(name, content, home)

    monkeypatch.setattr(log_rescue, "_write", write)
    before = sorted(os.listdir("/proc/self/fd"))
    log.killed()
    (beside,) = [path for path in log.memory.iterdir() if path != taken] or [None]
    assert (beside is not None) == full
    if beside:
        assert (beside.stat().st_mode & 0o777, beside.stat().st_uid) == (0o600, os.geteuid())
    log_rescue.put_back(log.descriptor)
    assert log.content == CONTENT
    assert not list((tmp_path / "nowhere").iterdir()) and list(log.memory.iterdir()) == [taken]
    with log_rescue.kept(log.descriptor, BEGIN, CONTENT[BEGIN:]):
        log.take_out()
        os.pwrite(log.descriptor, CONTENT[BEGIN:], BEGIN)
    assert not list((tmp_path / "nowhere").iterdir()) and list(log.memory.iterdir()) == [taken]
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("target", ["/etc/passwd", "{memory}/x", "{memory}/fleetclean-1", "{memory}/../memory/fleetclean-" + "0" * 32, "fleetclean-" + "0" * 32])
def test_a_link_that_is_not_one_of_ours_is_neither_followed_nor_removed(log: Log, target: str) -> None:
    log.killed()
    name, torn = log.copy, log.content
    (log.memory / "x").write_bytes(name.read_bytes())
    name.unlink()
    name.symlink_to(target.format(memory=log.memory))
    log_rescue.put_back(log.descriptor)
    assert log.content == torn and name.is_symlink() and (log.memory / "x").exists()


def test_a_copy_that_was_not_begun_when_its_link_was_there_is_forgotten(log: Log) -> None:
    log.killed()
    name = log.copy
    name.unlink()
    os.pwrite(log.descriptor, CONTENT, 0)
    name.symlink_to(f"{log.memory}/fleetclean-{'0' * 32}")
    log_rescue.put_back(log.descriptor)
    assert log.content == CONTENT and not list(log.memory.iterdir())


def test_what_is_no_copy_by_its_beginning_or_its_size_is_not_put_back(log: Log) -> None:
    log.killed()
    name, torn = log.copy, log.content
    copy = name.read_bytes()
    name.write_bytes(b"f" * 16 + copy[16:])
    log_rescue.put_back(log.descriptor)
    assert log.content == torn and not list(log.memory.iterdir())
    name.parent.mkdir(mode=0o700)
    name.write_bytes(copy)
    os.truncate(name, 1 << 40)
    log_rescue.put_back(log.descriptor)
    assert log.content == torn and name.exists()
    with pytest.raises(OSError, match="File too large"):
        with log_rescue.kept(log.descriptor, 0, bytes((1 << 26) + (1 << 13) + 1)):
            pass


def test_a_copy_stays_where_it_cannot_be_put_back_and_the_run_ends_there(log: Log) -> None:
    """To cut what has holes would lose them for good."""
    log.killed()
    descriptor = os.open(log.path, os.O_RDONLY)
    with pytest.raises(OSError, match="Bad file descriptor"):
        log_rescue.put_back(descriptor)
    os.close(descriptor)
    assert log.copy.exists()
    log_rescue.put_back(log.descriptor)
    assert log.content == CONTENT


def test_a_folder_that_another_run_removes_at_that_moment_is_made_again(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    real, times = log_rescue._write, []

    def write(name: str, content: bytes, home: int | None = None) -> None:
        times.append(name)
        if len(times) == 1:
            log.home.rmdir()
        real(name, content, home)

    monkeypatch.setattr(log_rescue, "_write", write)
    log.killed()
    log_rescue.put_back(log.descriptor)
    assert log.content == CONTENT


def test_what_others_have_put_there_is_not_even_looked_at(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Millions of files with such names cost nothing."""
    log.killed()

    def no_list(_path: object = None) -> t.NoReturn:
        raise AssertionError("a folder is listed")

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", no_list)
        patch.setattr(os, "scandir", no_list)
        log_rescue.put_back(log.descriptor)
    assert log.content == CONTENT
