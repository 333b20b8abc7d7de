# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work in a process of its own comes to its end, whatever ends the process that wanted it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import apart
from ansible_collections.fleetclean.docker.plugins.module_utils.engine import EngineError
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError
from ansible_collections.fleetclean.docker.plugins.module_utils.logs import LogRefused
from ansible_collections.fleetclean.docker.plugins.module_utils.pausing import NotPaused

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGALRM, signal.SIGIO)


def until(said: t.Callable[[], t.Any]) -> None:
    end = time.monotonic() + 30
    while not said():
        assert time.monotonic() < end
        time.sleep(0.01)


def raising(error: BaseException) -> t.Callable[[], t.NoReturn]:
    def work() -> t.NoReturn:
        raise error

    return work


def test_it_returns_what_the_work_returns_and_does_it_elsewhere() -> None:
    here = os.getpid()
    assert apart.do(lambda: None) is None
    assert apart.do(lambda: {"one": (1, b"\0", "\ud800")}) == {"one": (1, b"\0", "\ud800")}
    assert apart.do(os.getpid) != here
    changed: list[int] = []
    apart.do(lambda: changed.append(1))
    assert changed == []


def test_an_answer_of_any_size_comes_back() -> None:
    size = 30_000_000
    assert apart.do(lambda: b"x" * size) == b"x" * size


@pytest.mark.parametrize(
    "error",
    [
        FleetcleanError("no room", "disk_full"),
        EngineError("GET /containers/x/json", 404, "No such container: x"),
        LogRefused("it is a link"),
        NotPaused("the log goes on growing"),
        OSError(errno.ENOSPC, "No space left on device", "/var/lib/docker"),
        FileNotFoundError(errno.ENOENT, "No such file", "/log"),
        ValueError("x"),
        KeyError("y"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_it_raises_what_the_work_raises(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        apart.do(raising(error))
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    assert vars(caught.value) == vars(error)
    if isinstance(error, OSError):
        assert (t.cast(OSError, caught.value).errno, t.cast(OSError, caught.value).filename) == (error.errno, error.filename)


class Awkward(Exception):
    """Cannot be taken apart and put together again."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def test_what_cannot_come_back_whole_comes_back_as_its_words() -> None:
    with pytest.raises(RuntimeError, match="Awkward: this and that"):
        apart.do(raising(Awkward("this", "that")))
    with pytest.raises(RuntimeError, match="function"):
        apart.do(lambda: lambda: None)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_signals_do_not_end_the_work(number: signal.Signals) -> None:
    def work() -> str:
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        return "done"

    assert apart.do(work) == "done"


@pytest.mark.parametrize("end", [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(3), lambda: sys.exit(0)])
def test_a_process_that_was_killed_is_no_answer(end: t.Callable[[], t.Any]) -> None:
    with pytest.raises(ChildProcessError, match=r"was killed; what it did until then can be seen by running this again"):
        apart.do(end)


def test_nothing_is_left_behind() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    apart.do(lambda: 1)
    with pytest.raises(ValueError, match="x"):
        apart.do(raising(ValueError("x")))
    with pytest.raises(ChildProcessError):
        apart.do(lambda: os._exit(0))
    assert sorted(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # no child, dead or alive


SCRIPT = """
import os, sys, time
from ansible_collections.fleetclean.docker.plugins.module_utils import apart
folder = sys.argv[1]
def touch(name):
    open(os.path.join(folder, name), "w").close()
def work():
    print("not to be seen", flush=True)
    os.write(2, b"nor this")
    touch("started")
    while not os.path.exists(os.path.join(folder, "go")):
        time.sleep(0.01)
    touch("done")
    return "x" * 1_000_000
sys.stdout.write("once")
print(len(apart.do(work)), flush=True)
"""


class Module:
    """A process that has work done, as Ansible starts modules: in a session of its own, its output in a pipe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            # Whoever runs the tests may ignore hangups (nohup), which is inherited; a module does not.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )
        until((folder / "started").exists)

    def go(self) -> None:
        (self.folder / "go").touch()


def test_the_module_says_each_word_once_and_the_work_none(tmp_path: Path) -> None:
    module = Module(tmp_path)
    module.go()
    assert module.process.communicate(timeout=30)[0] == b"once1000000\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_the_work_is_done_though_the_module_is_killed_and_all_of_its_group(tmp_path: Path, number: signal.Signals) -> None:
    module = Module(tmp_path)
    os.killpg(module.process.pid, number)
    # Nobody who reads what the module says waits for the work.
    module.process.communicate(timeout=30)
    assert module.process.returncode
    assert not (tmp_path / "done").exists()
    module.go()
    until((tmp_path / "done").exists)
