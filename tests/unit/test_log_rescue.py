# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was taken out of a log for a moment is put back by the next run, whatever ended the one before; and nothing else is."""

from __future__ import annotations

import os
import signal
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
    def copy(self) -> Path:
        (found,) = self.memory.iterdir()
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
    for length in (0, 5, 16, 17, len(whole) - 1):
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
