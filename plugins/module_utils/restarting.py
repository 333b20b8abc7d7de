# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts an engine again that keeps its containers running meanwhile (live-restore), whoever looks after it.

systemd is asked to, where it runs the engine. Elsewhere the engine is ended as an init would end it; if nobody else starts
it again, it is started as it was: the same program, arguments, environment, folder, output and control groups.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import time
import typing as t
from dataclasses import dataclass

from ansible_collections.fleetclean.docker.plugins.module_utils.engine import Engine
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import (
    FleetcleanError,
)

#: Seconds until an engine has ended, until somebody who looks after it started it again, and until it answers.
_END, _OTHERS, _ANSWER = 60.0, 5.0, 120.0
_DELETED = " (deleted)"
_PID_FILES = ("/run/docker.pid", "/var/run/docker.pid")
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class _Process:
    """An engine's process, and all that is needed to start it as it was."""

    pid: int
    command: tuple[str, ...]
    environment: dict[str, str]
    folder: str
    outputs: tuple[int, int]
    groups: tuple[str, ...]


def restart_engine(engine: Engine) -> None:
    """Start the engine again and wait until it answers.

    :raises FleetcleanError: its process is not known from here, or it does not come back.
    """
    pid = _pid(engine)
    unit = _unit(pid)
    if unit:
        done = subprocess.run(
            ["systemctl", "restart", unit], env={"PATH": _SYSTEM_PATH}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        if done.returncode:
            said = done.stdout.decode("utf-8", "replace").strip()
            raise FleetcleanError(f"restart: engine: systemctl restart {unit} says: {said}", "engine")
    else:
        _end_and_start(engine, pid)
    if not engine.wait(_ANSWER):
        raise FleetcleanError(f"restart: engine: the engine was restarted and does not answer after {_ANSWER:.0f} s; look at its log.", "engine_down")


def _pid(engine: Engine) -> int:
    """The process at the other end of the engine's socket; of one that another process made for it, the one in its pid file."""
    path = engine.host[len("unix://"):] if engine.is_local_socket else ""
    try:
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as link:
            link.settimeout(10)
            link.connect(path)
            pid = int(struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
        if _name(pid) not in ("systemd", "init", ""):
            return pid
        for file in _PID_FILES:
            with contextlib.suppress(OSError, ValueError), open(file, encoding="ascii") as stream:
                pid = int(stream.read())
                if "docker" in _name(pid) or "balena" in _name(pid):
                    return pid
    except OSError:
        pass
    raise FleetcleanError(
        "restart: engine: its process cannot be found from here; run this on the engine's own host as root, or restart the engine yourself.", "denied"
    )


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def _unit(pid: int) -> str:
    """The systemd service that a process belongs to, where systemd runs; else nothing."""
    if not os.path.isdir("/run/systemd/system"):
        return ""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as stream:
            found = re.search(r"/([^/\n]+\.service)$", stream.read(), re.MULTILINE)
    except OSError:
        return ""
    return found[1] if found else ""


def _end_and_start(engine: Engine, pid: int) -> None:
    was = _look_at(pid)
    try:
        os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + _END
        while _runs(pid):
            if time.monotonic() > end:
                raise FleetcleanError(f"restart: engine: process {pid} did not end within {_END:.0f} s; nothing else was done.", "engine")
            time.sleep(0.05)
        if not engine.wait(_OTHERS):
            _start(was)
    finally:
        for descriptor in was.outputs:
            os.close(descriptor)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            return stream.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (OSError, IndexError):
        return False


def _look_at(pid: int) -> _Process:
    def parts(name: str) -> list[str]:
        with open(f"/proc/{pid}/{name}", "rb") as stream:
            return [os.fsdecode(part) for part in stream.read().split(b"\0")[:-1]]

    try:
        program = os.readlink(f"/proc/{pid}/exe")
        # Upgraded meanwhile: the new one has the same name.
        program = program[: -len(_DELETED)] if program.endswith(_DELETED) else program
        if not os.access(program, os.X_OK):
            raise PermissionError(f"{program} is not there to be started again")
        command = [program, *parts("cmdline")[1:]]
        environment = dict(part.split("=", 1) for part in parts("environ") if "=" in part)
        folder = os.readlink(f"/proc/{pid}/cwd")
        folder = folder if os.path.isdir(folder) else "/"  # somebody removed it since
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as stream:
            groups = tuple(line.rstrip("\n") for line in stream)
    except (OSError, ValueError) as error:
        raise FleetcleanError(
            f"restart: engine: process {pid} cannot be looked at ({error}); use become: true, or restart the engine yourself.", "denied"
        ) from None
    return _Process(pid, tuple(command), environment, folder, (_output(pid, 1), _output(pid, 2)), groups)


def _output(pid: int, number: int) -> int:
    """Where the engine writes its own log to, opened for appending; nowhere if that is a socket or gone."""
    try:
        return os.open(f"/proc/{pid}/fd/{number}", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def _start(was: _Process) -> None:
    def join_groups() -> None:
        for line in was.groups:
            _number, names, path = line.split(":", 2)
            place = f"/sys/fs/cgroup/{names.replace('name=', '')}{path}" if names else f"/sys/fs/cgroup{path}"
            with contextlib.suppress(OSError), open(f"{place}/cgroup.procs", "w", encoding="ascii") as stream:
                stream.write(str(os.getpid()))

    for descriptor in was.outputs:
        os.set_blocking(descriptor, True)
    subprocess.Popen(  # pylint: disable=consider-using-with
        was.command, env=was.environment, cwd=was.folder, stdin=subprocess.DEVNULL, stdout=was.outputs[0], stderr=was.outputs[1],
        start_new_session=True, preexec_fn=join_groups,  # pylint: disable=subprocess-popen-preexec-fn
    )


def cured(look: t.Callable[[], bool], seconds: float = 15.0) -> bool:
    """Wait for what a restart was to cure to be cured; return whether it is."""
    end = time.monotonic() + seconds
    while not look():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True
