# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts an engine again that keeps its containers running meanwhile (live-restore), whoever looks after it.

systemd is asked to, where it runs the engine. Elsewhere the engine is ended as an init would end it; if nobody else starts
it again, it is started as it was: the same program, arguments, environment, folder, output and control groups.

An engine whose service systemd stops with all that it started (``KillMode``) is not restarted, nor one that does not say right before it that
live-restore is on: its containers would stop.

Only a process that is proven to be the engine (``processes.find_engine``) is ended or asked after its service. One is started as it was only
where that gives nobody more than he has: it ran as the user who starts it, in the same namespaces, and its program lies where no other user
can have put it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import stat
import struct
import subprocess
import time
import typing as t

from ansible_collections.fleetclean.docker.plugins.module_utils import processes, trust
from ansible_collections.fleetclean.docker.plugins.module_utils.engine import Engine
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import (
    FleetcleanError,
)

#: Seconds until an engine has ended, until somebody who looks after it started it again, and until it answers.
_END, _OTHERS, _ANSWER = 60.0, 5.0, 120.0
#: Seconds that systemctl gets to restart a service, and to say something of it.
_RESTART, _SHOW = 600.0, 30.0
#: Ways in which systemd stops a service and lets what it started live on, containers' shims among them (systemd.kill(5)).
_KILL_MODES = ("process", "none")
_DELETED = " (deleted)"
_NAMESPACES = ("user", "mnt", "pid", "net")
#: What is above a unit in a line of control groups: slices, maybe a container's group; below a unit groups are named by whoever runs in it.
_ABOVE = r"(?:/(?![^/\n]*\.(?:service|scope)(?:/|$))[^/\n]+)*"
_UNIT = re.compile(rf"^[^:\n]*:[^:\n]*:{_ABOVE}(?:/user@([0-9]+)\.service{_ABOVE})?/((?!user@)[A-Za-z0-9:_.\\@][A-Za-z0-9:_.\\@-]*\.service)$", re.MULTILINE)
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class _Process(t.NamedTuple):
    """An engine's process, and all that is needed to start it as it was."""

    pid: int
    command: tuple[str, ...]
    environment: dict[str, str]
    folder: str
    outputs: tuple[int, int]
    groups: tuple[str, ...]


def restart_engine(engine: Engine, found: processes.Engine, connect: t.Callable[[], Engine]) -> None:
    """Start the engine again and wait until it answers.

    :param found: its processes, as far as they are proven.
    :param connect: makes a new connection to the engine.
    :raises FleetcleanError: its process is not known from here, its containers would stop, or it does not come back.
    """
    process = _process(engine, found)
    command = service_command(process)
    _refuse_unit(command)
    # Minutes may have passed since it was asked.
    if not connect().info.get("LiveRestoreEnabled"):
        raise FleetcleanError(
            "restart: engine: live-restore is off by now, so a restart would stop its containers; the engine was not restarted. Somebody may have changed "
            'its daemon.json: set "live-restore": true there, or use restart: containers.', "engine"
        )
    if command:
        done = _systemctl(command, _RESTART)
        if done.returncode:
            said = done.stdout.decode("utf-8", "replace").strip()
            raise FleetcleanError(f"restart: engine: {' '.join(command)} says: {said}", "engine")
    else:
        _end_and_start(engine, process, found.user_id)
    if not engine.wait(_ANSWER):
        raise FleetcleanError(f"restart: engine: the engine was restarted and does not answer after {_ANSWER:.0f} s; look at its log.", "engine_down")


def check(engine: Engine, found: processes.Engine) -> processes.Process:
    """Return the engine's process, if it can be restarted from here; nothing is done.

    :raises FleetcleanError: as ``restart_engine`` does.
    """
    process = _process(engine, found)
    command = service_command(process)
    if command:
        _refuse_unit(command)
    else:
        _refuse_strangers(process, found.user_id)
    return process


def _process(engine: Engine, found: processes.Engine) -> processes.Process:
    """The engine's process, if somebody listens at its socket here."""
    why = found.why or f"{len(found.processes)} processes are the engine's"
    try:
        if not engine.is_local_socket:
            why = f"{engine.host} is no socket of this host"
        elif not _listener(engine.host[len("unix://"):]):
            why = f"who listens at {engine.host} runs in another process namespace"
        elif len(found.processes) == 1:
            return found.processes[0]
    except OSError as error:
        why = f"{engine.host}: {error.strerror or error}"
    raise FleetcleanError(
        f"restart: engine: its process cannot be found from here ({why}); run this on the engine's own host as root, or restart the engine yourself.",
        "denied",
    )


def _listener(path: str) -> int:
    """The process that listened first at a socket: the engine, or one that made the socket for it (systemd); 0 if it cannot be seen."""
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as link:
        link.settimeout(10)
        link.connect(path)
        return int(struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def service_command(process: processes.Process) -> list[str]:
    """How systemd is told to restart a process, where it runs it; else nothing."""
    unit, user = _unit(process.pid)
    if not unit:
        return []
    users = set(processes.user_ids(process.pid))
    if user is None:
        # What a user starts by cron is a process of cron's service.
        return ["systemctl", "restart", unit] if users == {0} or _runs_as(unit, users) else []
    # A user's own service may have the name of one of the system's.
    if users != {user}:
        return []
    machine = [] if user == os.geteuid() else [f"--machine={user}@.host"]
    return ["systemctl", "--user", *machine, "restart", unit]


def _refuse_unit(command: list[str]) -> None:
    """Refuse an engine whose service systemd stops with all that it started.

    :param command: how systemd is told to restart it; nothing if it does not run it.
    """
    if not command:
        return
    done = _systemctl([part if part != "restart" else "show" for part in command] + ["--property=KillMode"], _SHOW)
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    mode = next((line.partition("=")[2].strip() for line in lines if line.startswith("KillMode=")), "")
    if mode not in _KILL_MODES:
        raise FleetcleanError(
            f"restart: engine: {command[-1]} has KillMode={mode or '?'}, with which systemd may end containers together with the engine. Use "
            "KillMode=process, or restart: containers.", "bad_input"
        )


def _systemctl(command: list[str], seconds: float) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            command, env={"PATH": _SYSTEM_PATH, "XDG_RUNTIME_DIR": f"/run/user/{os.geteuid()}"}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=seconds, check=False,
        )
    except subprocess.TimeoutExpired:
        why = f"does not end within {seconds:.0f} s; look at the engine's log"
    except OSError as error:
        why = f"cannot be started here ({error.strerror or error}), and systemd runs the engine; restart the engine yourself"
    raise FleetcleanError(f"restart: engine: {' '.join(command)} {why}.", "engine")


def _runs_as(unit: str, users: t.Collection[int]) -> bool:
    """Whether a service of the system's is made to run as one user, the only one of these."""
    try:
        import pwd  # which a Python may be built without

        done = subprocess.run(
            ["systemctl", "show", "--property=User", unit], env={"PATH": _SYSTEM_PATH}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, timeout=_ANSWER, check=False,
        )
        name = done.stdout.decode("utf-8", "replace").strip().partition("User=")[2]
        return set(users) == {int(name) if name.isdigit() else pwd.getpwnam(name).pw_uid}
    except (ImportError, OSError, subprocess.SubprocessError, KeyError, ValueError):
        return False


def _unit(pid: int) -> tuple[str, int | None]:
    """The systemd service that a process belongs to, where systemd runs, and the user whose it is (None: the system's); else ""."""
    if not os.path.isdir("/run/systemd/system"):
        return "", None
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as stream:
            found = _UNIT.search(stream.read())
    except OSError:
        return "", None
    return (found[2], int(found[1]) if found[1] else None) if found else ("", None)


def _end_and_start(engine: Engine, process: processes.Process, user_id: int) -> None:
    _refuse_strangers(process, user_id)
    was = _look_at(process)
    try:
        with contextlib.suppress(ProcessLookupError):
            processes.send_signal(process, signal.SIGTERM)
        end = time.monotonic() + _END
        while process.is_running():
            if time.monotonic() > end:
                raise FleetcleanError(f"restart: engine: process {process.pid} did not end within {_END:.0f} s; nothing else was done.", "engine")
            time.sleep(0.05)
        if not engine.wait(_OTHERS):
            _start(was)
    finally:
        for descriptor in was.outputs:
            os.close(descriptor)


def _refuse_strangers(process: processes.Process, user_id: int) -> None:
    """Refuse to end what could not be started again as it was: another user's, or one in namespaces of its own (an engine without root)."""
    pid = process.pid
    why = ""
    try:
        other = [name for name in _NAMESPACES if os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")]
        if user_id != os.geteuid():
            why = f"it runs as user {user_id}, and this as user {os.geteuid()}"
        elif other:
            why = f"it runs in another {other[0]} namespace"
        elif not os.path.samefile(f"/proc/{pid}/root", "/"):
            why = "it has another root directory"
    except OSError as error:
        why = str(error)
    if why:
        raise FleetcleanError(f"restart: engine: process {pid} cannot be started again as it was: {why}; restart the engine yourself.", "denied")


def _look_at(process: processes.Process) -> _Process:
    pid = process.pid

    def parts(name: str) -> list[str]:
        with open(f"/proc/{pid}/{name}", "rb") as stream:
            return [os.fsdecode(part) for part in stream.read().split(b"\0")[:-1]]

    try:
        program = os.readlink(f"/proc/{pid}/exe")
        # Upgraded meanwhile: the new one has the same name.
        program = program[: -len(_DELETED)] if program.endswith(_DELETED) else program
        if not os.access(program, os.X_OK):
            raise PermissionError(f"{program} is not there to be started again")
        _check_program(program)
        command = [program, *parts("cmdline")[1:]]
        environment = dict(part.split("=", 1) for part in parts("environ") if "=" in part)
        folder = os.readlink(f"/proc/{pid}/cwd")
        folder = folder if os.path.isdir(folder) else "/"  # somebody removed it since
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as stream:
            groups = tuple(line.rstrip("\n") for line in stream)
        if not process.is_running():
            raise ProcessLookupError("it has ended")
    except (OSError, ValueError) as error:
        raise FleetcleanError(
            f"restart: engine: process {pid} cannot be looked at ({error}); use become: true, or restart the engine yourself.", "denied"
        ) from None
    return _Process(pid, tuple(command), environment, folder, (_output(pid, 1), _output(pid, 2)), groups)


def _check_program(path: str) -> None:
    """See that no other user can have put a program where it lies: the engine's own may be gone, and its name free to be taken.

    :raises OSError: one can.
    """
    users = {0, os.geteuid()}
    try:
        trust.resolve(os.path.dirname(path), users)
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode):
            raise PermissionError(f"{path} is not what it was")
        if found.st_uid not in users or trust.others_may_write(found, path):
            raise trust.NotTrusted(f"it belongs to user {found.st_uid}, and its mode is {stat.S_IMODE(found.st_mode):o}")
    except trust.NotTrusted as why:
        raise PermissionError(f"others than root may put another program in the place of {path}: {why}") from None


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
