# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A container that stands still for a cut goes on afterwards, whatever becomes of the process that paused it."""

from __future__ import annotations

import os
import signal
import time
import typing as t
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import engine, pausing
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError


class Engine:
    """One container, whose state is in a file: it is asked from several processes."""

    def __init__(self, place: Path, state: str = "running") -> None:
        self._place = place
        self.connections = place.with_suffix(".connections")
        self.busy = place.with_suffix(".busy")
        place.write_text(state)

    def connect(self) -> t.Any:
        with self.connections.open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        return self

    @property
    def state(self) -> str:
        return self._place.read_text()

    def container(self, _ident: str) -> dict[str, t.Any]:
        return {"State": {"Running": self.state in ("running", "paused"), "Paused": self.state == "paused"}}

    def pause(self, _ident: str) -> None:
        self._place.write_text("paused")

    def unpause(self, _ident: str) -> None:
        if self.busy.exists():
            self.busy.unlink()
            raise engine.EngineError("POST /containers/x/unpause", 500, "busy")
        self._place.write_text("running")


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[int]:
    monkeypatch.setattr(pausing, "_QUIET", 0.01)
    descriptor = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def cutter(asked: Engine, log: int) -> int:
    """A process that has the container paused, and goes on having it."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        with pausing.paused(asked.connect, "x", log):
            os.write(write, b"x")
            time.sleep(60)
        os._exit(0)
    os.close(write)
    assert os.read(read, 1)
    os.close(read)
    return child


def killed(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def comes_to_be(asked: Engine, state: str) -> bool:
    end = time.monotonic() + 20
    while asked.state != state and time.monotonic() < end:
        time.sleep(0.01)
    return asked.state == state


@pytest.mark.parametrize("busy", [False, True])
def test_a_container_goes_on_though_the_process_that_paused_it_was_killed(tmp_path: Path, log: int, busy: bool) -> None:
    asked = Engine(tmp_path / "state")
    pid = cutter(asked, log)
    assert asked.state == "paused"
    if busy:
        asked.busy.touch()
    killed(pid)
    assert comes_to_be(asked, "running")
    # By a connection of its own: what two processes share neither must speak through.
    assert len(set(asked.connections.read_text().split())) == 2


def test_a_container_that_somebody_else_paused_stays_paused_though_the_cutter_is_killed(tmp_path: Path, log: int) -> None:
    asked = Engine(tmp_path / "state", "paused")
    killed(cutter(asked, log))
    time.sleep(0.3)
    assert asked.state == "paused"


@pytest.mark.parametrize("lost", ["no answer", "an answer that is none"])
def test_a_container_goes_on_though_the_answer_to_its_pause_was_lost(tmp_path: Path, log: int, lost: str) -> None:
    asked = Engine(tmp_path / "state")
    pause = asked.pause

    def pause_and_fail(ident: str) -> None:
        pause(ident)
        raise FleetcleanError("engine does not answer", "engine_down") if lost == "no answer" else engine.UnexpectedAnswer("POST /pause", "it is larger")

    asked.pause = pause_and_fail  # type: ignore[method-assign]
    with pytest.raises((FleetcleanError, pausing.NotPaused)), pausing.paused(asked.connect, "x", log):
        pytest.fail("it is not known to stand still")
    assert asked.state == "running"


def test_a_container_goes_on_though_the_engine_did_not_take_the_order_at_first(tmp_path: Path, log: int) -> None:
    asked = Engine(tmp_path / "state")
    with pytest.raises(engine.EngineError, match="busy"), pausing.paused(asked.connect, "x", log):
        asked.busy.touch()
    assert asked.state == "running", "nobody tried again"


def test_the_guard_has_no_file_of_ours_open(tmp_path: Path, log: int) -> None:
    asked = Engine(tmp_path / "state")
    # A lock, or the pipe of an answer that somebody waits for.
    read, write = os.pipe()
    with pausing.paused(asked.connect, "x", log):
        os.close(write)
        assert os.read(read, 1) == b"", "the guard has it open as well"
    os.close(read)


def test_afterwards_there_is_no_other_process(tmp_path: Path, log: int) -> None:
    asked = Engine(tmp_path / "state")
    with pausing.paused(asked.connect, "x", log):
        pass
    assert asked.state == "running"
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_an_error_in_between_lets_it_go_on(tmp_path: Path, log: int) -> None:
    asked = Engine(tmp_path / "state")
    with pytest.raises(ZeroDivisionError), pausing.paused(asked.connect, "x", log):
        assert asked.state == "paused"
        raise ZeroDivisionError
    assert asked.state == "running"


@pytest.mark.parametrize("state", ["exited", "created"])
def test_a_container_that_does_not_run_is_not_paused(tmp_path: Path, log: int, state: str) -> None:
    asked = Engine(tmp_path / "state", state)
    with pausing.paused(asked.connect, "x", log):
        assert asked.state == state
    assert asked.state == state


def test_without_a_guard_nothing_is_paused(tmp_path: Path, log: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pausing, "_guard", lambda *_more: None)
    asked = Engine(tmp_path / "state")
    with pytest.raises(pausing.NotPaused, match="has not come up"):
        with pausing.paused(asked.connect, "x", log):
            raise AssertionError("it is paused")
    assert asked.state == "running"
