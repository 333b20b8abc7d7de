# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``docker_host: ssh://...``: the installed SDK opens the way, and all bounds hold on it.

The SDK is the real one; ``ssh`` is a stand-in on PATH that leads to a socket here, and paramiko, which the SDK imports and does not use for
this, an empty module.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
import typing as t
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError
from test_connection import HEAD, WITHOUT_END, Place, http

SSH = f"""#!{sys.executable} -IS
import json, os, select, socket, sys

with open(os.environ["SSH_CALLS"], "a") as stream:
    stream.write(json.dumps([os.getpid(), sys.argv[1:]]) + "\\n")
if "SSH_BANNER" in os.environ:
    sys.stderr.write(os.environ["SSH_BANNER"] * 100_000)
if "SSH_SAYS" in os.environ:
    sys.stderr.write(os.environ["SSH_SAYS"])
    sys.exit(255)
peer = socket.socket(socket.AF_UNIX)
peer.connect(os.environ["SSH_LEADS_TO"])
while True:
    for ready in select.select([0, peer], [], [])[0]:
        content = os.read(0, 65536) if ready == 0 else peer.recv(65536)
        if not content:
            sys.exit()
        peer.sendall(content) if ready == 0 else os.write(1, content)
"""


class Way:
    """A place that ``ssh`` leads to."""

    def __init__(self, place: Place, calls: Path) -> None:
        self.place = place
        self._calls = calls

    def calls(self) -> list[tuple[int, list[str]]]:
        """The process and arguments of each ``ssh`` that was started."""
        return [tuple(json.loads(line)) for line in self._calls.read_text().splitlines()] if self._calls.exists() else []


@pytest.fixture
def way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Way]:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").write_text(SSH)
    (tmp_path / "bin/ssh").chmod(0o755)
    (tmp_path / "paramiko.py").touch()
    place = Place()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("SSH_CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("SSH_LEADS_TO", f"{place.folder}/d.sock")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Way(place, tmp_path / "calls")
    place.close()


def fails(way: Way, host: str = "ssh://web1", **params: t.Any) -> FleetcleanError:
    with pytest.raises(FleetcleanError) as caught:
        way.place.connect(host, **params)
    return caught.value


@pytest.mark.parametrize(
    ("host", "arguments"),
    [
        ("ssh://web1", ["--", "web1"]),
        ("ssh://deploy@web1.example.com/", ["-l", "deploy", "--", "web1.example.com"]),
        ("ssh://deploy@198.51.100.7:2222", ["-l", "deploy", "-p", "2222", "--", "198.51.100.7"]),
    ],
)
def test_an_engine_behind_ssh_is_asked_as_dockers_own_clients_do_it(way: Way, host: str, arguments: list[str]) -> None:
    server = way.place.serve(lambda method, path: [http([])])
    engine = way.place.connect(host)
    assert (engine.containers(), engine.networks()) == ([], [])
    engine.remove_volume("v")
    ((_pid, found),) = way.calls()  # one session for all calls of a thread
    assert found == [*arguments, "docker system dial-stdio"]
    assert [method for _number, method, *_rest in server.requests] == ["GET"] * 4 + ["DELETE"]
    assert (engine.is_local_socket, engine.listener) == (False, None)


@pytest.mark.parametrize(
    "host",
    ["ssh://", "ssh://deploy@", "ssh://user:secret@web1", "ssh://-oProxyCommand=x", "ssh://-l@web1", "ssh://web1;id", "ssh://web1/run/docker.sock", "ssh://[::1]",
     "ssh://web1:", "ssh://web1:22x", "ssh://a@b@web1", "ssh://web 1", "ssh://web1\n"],
)
def test_what_ssh_or_a_shell_would_take_for_more_than_a_name_is_refused_without_a_secret(way: Way, host: str) -> None:
    error = fails(way, host)
    assert (error.code, way.calls()) == ("bad_input", [])
    assert "secret@" not in str(error)
    assert "is not ssh://USER@HOST:PORT" in str(error)


def test_whatever_ssh_says_does_not_stop_it(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_BANNER", "hello ")
    way.place.serve(lambda method, path: [http([])])
    assert way.place.connect("ssh://web1").containers() == []
    monkeypatch.setenv("SSH_SAYS", "Permission denied (publickey).")
    text = str(fails(way))
    assert "hello Permission denied (publickey)" in text


def test_a_threads_ssh_ends_with_it(way: Way) -> None:
    way.place.serve(lambda method, path: [http([])])
    engine = way.place.connect("ssh://web1")
    engine.containers()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        thread = threading.Thread(target=engine.containers)
        thread.start()
        thread.join()
    gc.collect()
    first, *others = [pid for pid, _arguments in way.calls()]
    assert len(others) == 3
    assert [os.path.exists(f"/proc/{pid}") for pid in (first, *others)] == [True, False, False, False]
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_ssh_says_is_the_error(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_SAYS", "ssh: connect to host web1 port 22: No route \x1b[2J to host.\n")
    error = fails(way)
    assert error.code == "engine_down"
    assert str(error) == (
        "engine does not answer: ssh://web1: ssh: connect to host web1 port 22: No route [2J to host. The user that the module runs as has "
        "to get there by ssh without being asked, and may use the engine there."
    )


def test_an_ssh_that_ends_without_a_word_is_an_error_too(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_SAYS", "")
    assert "engine does not answer: ssh://web1: ssh ended with status 255. " in str(fails(way))


def test_an_engine_that_hangs_up_is_no_failure_of_ssh(way: Way) -> None:
    way.place.serve(lambda method, path: [t.cast(bytes, None)])
    engine = way.place.connect("ssh://web1")
    with pytest.raises(FleetcleanError) as caught:
        engine.remove_volume("v")
    assert caught.value.code == "engine_down"
    assert "Look at the engine's own log." in str(caught.value)


def test_a_session_that_ended_between_calls_is_opened_again_for_what_only_asks(way: Way) -> None:
    way.place.serve(lambda method, path: [http([]), t.cast(bytes, None)])
    engine = way.place.connect("ssh://web1")
    for _number in range(3):
        assert engine.containers() == []
        time.sleep(0.2)
    assert len(way.calls()) == 3


@pytest.mark.parametrize("kind", ["list", "headers", "deep"])
def test_an_answer_without_end_is_bounded_on_this_way_too(way: Way, kind: str) -> None:
    head, piece = WITHOUT_END[kind]

    def answer(_method: str, _path: str) -> Iterator[bytes]:
        yield head
        while True:
            yield piece

    server = way.place.serve(answer)
    engine = way.place.connect("ssh://web1")
    with pytest.raises(FleetcleanError):
        engine.containers()
    assert server.sent < 4 * 2**20


def test_an_answer_that_does_not_come_is_given_up(way: Way) -> None:
    def half(_method: str, _path: str) -> Iterator[bytes]:
        yield HEAD + b"Content-Length: 100\r\n\r\n["
        time.sleep(5)

    way.place.serve(half)
    engine = way.place.connect("ssh://web1", timeout=1)
    began = time.monotonic()
    with pytest.raises(FleetcleanError, match="GET /containers/json took longer than the timeout"):
        engine.containers()
    assert time.monotonic() - began < 3
    (pid, _arguments), = way.calls()
    assert not os.path.exists(f"/proc/{pid}")


def test_threads_have_sessions_of_their_own_and_a_forks_end_ends_none(way: Way) -> None:
    way.place.serve(lambda method, path: [http([])])
    engine = way.place.connect("ssh://web1")
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda _number: engine.containers(), range(6))) == [[]] * 6
    before = len(way.calls())
    pid = os.fork()
    if pid == 0:
        try:
            engine.containers()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert engine.containers() == []
    assert len(way.calls()) == before + 1  # the fork's own


def test_sessions_leave_no_descriptor_and_the_modules_own_stderr_as_it_was(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    before, opened = os.readlink("/proc/self/fd/2"), len(os.listdir("/proc/self/fd"))
    monkeypatch.setenv("SSH_SAYS", "no")
    for _number in range(5):
        fails(way)
    assert os.readlink("/proc/self/fd/2") == before
    # What other tests left open may go meanwhile.
    assert len(os.listdir("/proc/self/fd")) < opened + 5


def test_a_host_without_the_ssh_program_is_told_the_package(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    error = fails(way)
    assert error.code == "no_sdk"
    assert str(error).startswith("docker_host: ssh://web1 needs the program ssh on this host (No such file or directory). Install openssh-client there")


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "ModuleNotFoundError: No module named 'docker'"),
        ({"docker/__init__.py": "", "docker/transport/__init__.py": "", "docker/transport/sshconn.py": "import paramiko"}, "ModuleNotFoundError: No module named 'paramiko'"),
        ({"docker/__init__.py": "", "docker/transport/__init__.py": "", "docker/transport/sshconn.py": ""}, "ImportError: cannot import name 'SSHSocket'"),
        ({"docker/__init__.py": "raise RuntimeError('half an upgrade')"}, "RuntimeError: half an upgrade"),
    ],
    ids=["nothing", "no paramiko", "older than 4.4", "broken"],
)
def test_a_host_without_the_sdk_is_told_the_packages_and_which_python(tmp_path: Path, files: dict[str, str], problem: str) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from ansible_collections.fleetclean.docker.plugins.module_utils import ssh_transport\n"
        "try:\n    ssh_transport.SshStream('web1')\nexcept Exception as error:\n    print(error.code, error)\n"
    )
    collections = Path(__file__).resolve().parents[2] / "playbooks" / "collections"
    done = subprocess.run([sys.executable, "-I", "-S", "-B", "-c", code, str(tmp_path), str(collections)], capture_output=True, text=True, check=True)
    start = f"no_sdk docker_host: ssh://web1 needs the Python packages docker (4.4 or newer) and paramiko on this host, for {sys.executable} ({problem}"
    assert done.stdout.startswith(start)
    assert "Debian: python3-docker, python3-paramiko" in done.stdout
