# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An engine is started again as it was. The engine is a fake: a process with a socket, which writes down how it was started."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import typing as t
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import processes, restarting
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError
from ansible_collections.fleetclean.docker.plugins.module_utils.restarting import check, cured, restart_engine

#: Listens on a socket, writes down how it was started, and ends when it is told to, or only says so.
FAKE_ENGINE = """
import json, os, signal, socket, sys
path, how = sys.argv[1], sys.argv[2]
def end(*_):
    if how != "stubborn":
        os.unlink(path)
        os._exit(0)
signal.signal(signal.SIGTERM, end)
with open(path + ".starts", "a") as stream:
    stream.write(json.dumps({
        "pid": os.getpid(), "arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd(), "input": os.readlink("/proc/self/fd/0"),
        "session": os.getsid(0), "exe": os.readlink("/proc/self/exe"), "descriptors": os.listdir("/proc/self/fd"),
    }) + "\\n")
print("started", flush=True)
print("trouble", file=sys.stderr, flush=True)
listening = socket.socket(socket.AF_UNIX)
listening.bind(path)
listening.listen()
while True:
    listening.accept()[0].close()
"""


class Fake:
    """An engine's process, and all there is of ``Engine`` for a restart."""

    is_local_socket = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "docker.sock"
        self.host = f"unix://{self.socket}"
        self.script = folder / "dockerd.py"
        self.script.write_text(FAKE_ENGINE)
        (folder / "cwd").mkdir()
        self.patience = 20.0
        #: What it says when it is asked anew.
        self.info: dict[str, t.Any] = {"LiveRestoreEnabled": True}

    def start(self, *arguments: str, how: str = "well", program: str = sys.executable, environment: dict[str, str] | None = None,
              before: t.Sequence[str] = (), **more: t.Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*before, program, str(self.script), str(self.socket), how, *arguments], cwd=self.folder / "cwd",
            env={"PATH": os.environ["PATH"], "NOTIFY": "a=b", "EMPTY": "", **(environment or {})}, stdin=subprocess.DEVNULL,
            **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **more},
        )
        assert self.wait(20)
        return process

    def wait(self, seconds: float) -> bool:
        """As ``Engine.wait``: until it answers."""
        end = time.monotonic() + min(seconds, self.patience)
        while time.monotonic() < end:
            with socket.socket(socket.AF_UNIX) as link:
                try:
                    link.connect(str(self.socket))
                    return True
                except OSError:
                    time.sleep(0.02)
        return False

    @property
    def starts(self) -> list[dict[str, t.Any]]:
        return [json.loads(line) for line in Path(f"{self.socket}.starts").read_text().splitlines()]

    @property
    def found(self) -> processes.Engine:
        """What is proven of it: that of the processes that were started the last one is the engine's."""
        process = processes.look(self.starts[-1]["pid"]) if Path(f"{self.socket}.starts").exists() else None
        return processes.Engine((process,), os.geteuid()) if process else processes.Engine(why="nothing is proven")

    def restart(self, found: processes.Engine | None = None) -> None:
        restart_engine(t.cast(t.Any, self), found or self.found, lambda: t.cast(t.Any, self))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    folder = Path(tempfile.mkdtemp(prefix="fleetclean-"))  # a socket's path has little room
    monkeypatch.setattr(restarting, "_OTHERS", 0.3)
    monkeypatch.setattr(restarting, "_unit", lambda _pid: ("", None))
    made = Fake(folder)
    yield made
    if Path(f"{made.socket}.starts").exists():
        for start in made.starts:
            try:
                # Only what this test started: its first argument is the test's own socket.
                if str(made.socket).encode() in Path(f"/proc/{start['pid']}/cmdline").read_bytes().split(b"\0"):
                    os.kill(start["pid"], signal.SIGKILL)
            except OSError:
                pass
            # Those that the module has started are this process's children, and nobody else's.
            end = time.monotonic() + 20
            with suppress(ChildProcessError):
                while os.waitpid(start["pid"], os.WNOHANG) == (0, 0) and time.monotonic() < end:
                    time.sleep(0.01)
    shutil.rmtree(folder)


def test_an_engine_that_nobody_looks_after_is_started_as_it_was(fake: Fake) -> None:
    with open(fake.folder / "out", "ab") as out, open(fake.folder / "err", "ab") as errors:
        fake.start("--label=a b", "", "--empty=", "ü\n", stdout=out, stderr=errors, environment={"Ä": "ö\n"})
    fake.restart()
    before, after = fake.starts
    assert after["pid"] != before["pid"]
    for same in ("arguments", "environment", "folder", "exe", "input"):
        assert after[same] == before[same], same
    assert before["arguments"][2:] == ["--label=a b", "", "--empty=", "ü\n"]
    assert after["session"] == after["pid"], "what ends the module must not end the engine"
    assert set(after["descriptors"]) == set(before["descriptors"]), "nothing of the module is left open in it"
    assert (fake.folder / "out").read_text() == "started\n" * 2
    assert (fake.folder / "err").read_text() == "trouble\n" * 2


def test_a_look_beforehand_says_what_a_restart_would_say_and_does_nothing(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    process = fake.start()
    assert check(t.cast(t.Any, fake), fake.found).pid == process.pid
    with pytest.raises(FleetcleanError, match="its process cannot be found from here"):
        check(t.cast(t.Any, fake), processes.Engine(why="nothing is proven"))
    with pytest.raises(FleetcleanError, match="cannot be started again as it was: it runs as user"):
        check(t.cast(t.Any, fake), fake.found._replace(user_id=os.geteuid() + 1))
    # Whom systemd starts again needs nothing of that.
    monkeypatch.setattr(processes, "user_ids", lambda _pid: (0,) * 4)
    Systemctl(monkeypatch)
    assert check(t.cast(t.Any, fake), fake.found._replace(user_id=os.geteuid() + 1)).pid == process.pid
    assert process.poll() is None and len(fake.starts) == 1


def test_a_folder_that_is_gone_is_no_obstacle(fake: Fake) -> None:
    fake.start()
    (fake.folder / "cwd").rmdir()
    fake.restart()
    assert [start["folder"] for start in fake.starts] == [str(fake.folder / "cwd"), "/"]


def test_an_output_that_is_a_pipe_goes_on_as_one(fake: Fake) -> None:
    read, write = os.pipe()
    fake.start(stdout=write)
    fake.restart()
    os.set_blocking(read, False)
    assert os.read(read, 1000) == b"started\n" * 2
    os.close(read)
    os.close(write)


def test_an_output_that_cannot_be_opened_again_goes_nowhere(fake: Fake) -> None:
    # The journal's socket.
    ours, its = socket.socketpair()
    with ours, its:
        fake.start(stdout=its.fileno())
        fake.restart()
        assert len(fake.starts) == 2
        ours.setblocking(False)
        assert ours.recv(1000) == b"started\n"


def test_who_looks_after_an_engine_is_left_to_start_it(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarting, "_OTHERS", 20.0)
    first = fake.start()

    def look_after() -> None:
        first.wait()
        fake.start(how="looked after")

    keeper = threading.Thread(target=look_after)
    keeper.start()
    fake.restart()
    keeper.join()
    assert [start["arguments"][1] for start in fake.starts] == ["well", "looked after"]


def test_a_program_that_was_replaced_meanwhile_is_started_by_its_name(fake: Fake) -> None:
    # The package was upgraded, and the engine not yet started again.
    program = fake.folder / "dockerd"
    shutil.copy(os.path.realpath(sys.executable), program)
    fake.start(program=str(program), environment={"PYTHONHOME": sys.base_prefix})
    new = fake.folder / "new"
    shutil.copy(program, new)
    new.rename(program)
    fake.restart()
    before, after = fake.starts
    assert (before["exe"], after["exe"]) == (str(program), str(program))


def test_a_program_that_is_gone_is_said_before_the_engine_ends(fake: Fake) -> None:
    program = fake.folder / "dockerd"
    shutil.copy(os.path.realpath(sys.executable), program)
    process = fake.start(program=str(program), environment={"PYTHONHOME": sys.base_prefix})
    program.unlink()
    with pytest.raises(FleetcleanError, match=str(program)):
        fake.restart()
    assert process.poll() is None


def test_an_engine_that_does_not_end_is_said_and_not_killed(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarting, "_END", 0.3)
    process = fake.start(how="stubborn")
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(FleetcleanError, match=rf"process {process.pid} did not end within .* s; nothing else was done"):
        fake.restart()
    assert process.poll() is None
    assert len(fake.starts) == 1
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_an_engine_that_does_not_come_back_is_said(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.start()
    fake.patience = 0.2
    fake.script.write_text("raise SystemExit(1)")
    with pytest.raises(FleetcleanError, match=r"the engine was restarted and does not answer after 120 s; look at its log") as caught:
        fake.restart()
    assert caught.value.code == "engine_down"


@pytest.mark.parametrize("host", ["unix:///nowhere/at/all.sock", "tcp://127.0.0.1:2375"])
def test_an_engine_whose_process_is_not_here_is_not_restarted(fake: Fake, host: str) -> None:
    fake.host, fake.is_local_socket = host, host.startswith("unix")
    with pytest.raises(FleetcleanError, match="its process cannot be found from here") as caught:
        fake.restart()
    assert caught.value.code == "denied"


def test_who_is_not_proven_to_be_the_engine_is_not_ended_whoever_listens(fake: Fake) -> None:
    """A socket that systemd made, or a proxy's: the other end of it is not the engine."""
    process = fake.start()
    with pytest.raises(FleetcleanError, match=r"its process cannot be found from here \(nobody has the database open\)") as caught:
        fake.restart(processes.Engine(why="nobody has the database open"))
    assert caught.value.code == "denied"
    several = processes.Engine(fake.found.processes * 2, os.geteuid())
    with pytest.raises(FleetcleanError, match="2 processes are the engine's"):
        fake.restart(several)
    assert process.poll() is None


def test_who_cannot_be_seen_at_the_socket_is_not_looked_for_elsewhere(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    process = fake.start()
    monkeypatch.setattr(restarting, "_listener", lambda _path: 0)
    with pytest.raises(FleetcleanError, match="cannot be found from here .who listens at .* runs in another process namespace") as caught:
        fake.restart()
    assert caught.value.code == "denied" and process.poll() is None


def test_a_number_that_is_another_processs_by_now_is_sent_nothing(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an engine that ended after it was looked at; the number was given away."""
    process = fake.start()
    (was,) = fake.found.processes
    for old in (was._replace(started=was.started - 1), was._replace(program=(1, 2))):
        for kernel in (processes._PIDFD_OPEN, 100_000):
            monkeypatch.setattr(processes, "_PIDFD_OPEN", kernel)
            with pytest.raises(ProcessLookupError):
                processes.send_signal(old, signal.SIGTERM)
        with pytest.raises(FleetcleanError, match=f"process {process.pid} cannot be looked at"):
            fake.restart(processes.Engine((old,), os.geteuid()))
    assert process.poll() is None


def test_another_users_program_is_not_started_by_this_one(fake: Fake) -> None:
    """An engine without root: its program, arguments and environment are whatever its user likes."""
    process = fake.start()
    with pytest.raises(FleetcleanError, match=rf"cannot be started again as it was: it runs as user {os.geteuid() + 1}, and this as user {os.geteuid()}") as caught:
        fake.restart(processes.Engine(fake.found.processes, os.geteuid() + 1))
    assert caught.value.code == "denied"
    assert process.poll() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes namespaces")
@pytest.mark.parametrize(("option", "name"), [("--user", "user"), ("--mount", "mnt"), ("--net", "net")])
def test_an_engine_in_namespaces_of_its_own_is_not_started_in_others(fake: Fake, option: str, name: str) -> None:
    process = fake.start(before=("unshare", option))
    with pytest.raises(FleetcleanError, match=f"cannot be started again as it was: it runs in another {name} namespace"):
        fake.restart()
    assert process.poll() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
@pytest.mark.parametrize("how", ["everybody may write to its folder", "a group may write to its folder", "its folder is another user's", "it is another user's", "everybody may write to it"])
def test_a_program_that_another_user_may_have_put_there_is_not_started(fake: Fake, how: str) -> None:
    """The engine's own was removed by an upgrade, and somebody else took its name."""
    place = fake.folder / "place"
    place.mkdir()
    program = place / "dockerd"
    shutil.copy(os.path.realpath(sys.executable), program)
    process = fake.start(program=str(program), environment={"PYTHONHOME": sys.base_prefix})
    program.unlink()
    shutil.copy(os.path.realpath(sys.executable), program)
    if "its folder" in how:
        os.chown(place, 12345 if "another" in how else 0, 12345)
        place.chmod(0o777 if "everybody" in how else 0o775)
    elif "everybody" in how:
        program.chmod(0o777)
    else:
        os.chown(program, 12345, 12345)
    with pytest.raises(FleetcleanError, match=f"others than root may put another program in the place of {place}"):
        fake.restart()
    assert process.poll() is None
    # In a folder where nobody can take away what is another's, root's own is root's own.
    os.chown(place, 0, 0)
    os.chown(program, 0, 0)
    program.chmod(0o755)
    place.chmod(0o1777)
    fake.restart()
    assert len(fake.starts) == 2


SHOW_KILL_MODE = ["systemctl", "show", "docker.service", "--property=KillMode"]


class Systemctl:
    """systemd that runs the engine as docker.service; ``code`` and ``said`` are its answer, ``mode`` is how it stops that service."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: int = 0, said: bytes = b"", user: int | None = None, mode: str = "process") -> None:
        self.calls: list[list[str]] = []
        self._answer = (code, said)
        self._mode = mode
        monkeypatch.setattr(restarting, "_unit", lambda _pid: ("docker.service", user))
        monkeypatch.setattr(restarting.subprocess, "run", self._run)

    def _run(self, command: list[str], **more: t.Any) -> subprocess.CompletedProcess[bytes]:
        assert more["timeout"] > 0
        self.calls.append(command)
        if command[-1] == "--property=KillMode":
            return subprocess.CompletedProcess(command, 0, f"KillMode={self._mode}\n".encode())
        return subprocess.CompletedProcess(command, self._answer[0], self._answer[1])


def test_an_engine_that_systemd_runs_is_restarted_by_it(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    process = fake.start()
    systemctl = Systemctl(monkeypatch)
    monkeypatch.setattr(processes, "user_ids", lambda _pid: (0,) * 4)
    fake.restart()
    assert systemctl.calls == [SHOW_KILL_MODE, ["systemctl", "restart", "docker.service"]]
    assert process.poll() is None


@pytest.mark.parametrize(("mode", "refused"), [("process", False), ("none", False), ("control-group", True), ("mixed", True), ("", True)])
def test_a_service_that_systemd_stops_with_all_that_it_started_is_refused(fake: Fake, monkeypatch: pytest.MonkeyPatch, mode: str, refused: bool) -> None:
    """live-restore keeps the engine from stopping its containers, and not systemd."""
    fake.start()
    systemctl = Systemctl(monkeypatch, mode=mode)
    monkeypatch.setattr(processes, "user_ids", lambda _pid: (0,) * 4)
    if not refused:
        check(t.cast(t.Any, fake), fake.found)
        fake.restart()
        assert systemctl.calls == [SHOW_KILL_MODE, SHOW_KILL_MODE, ["systemctl", "restart", "docker.service"]]
        return
    for do in (lambda: check(t.cast(t.Any, fake), fake.found), fake.restart):
        with pytest.raises(FleetcleanError, match="docker.service has KillMode=") as caught:
            do()
        assert caught.value.code == "bad_input"
    assert systemctl.calls == [SHOW_KILL_MODE, SHOW_KILL_MODE]


@pytest.mark.parametrize("is_service", [True, False])
def test_an_engine_whose_live_restore_was_turned_off_meanwhile_is_not_restarted(fake: Fake, monkeypatch: pytest.MonkeyPatch, is_service: bool) -> None:
    process = fake.start()
    if is_service:
        systemctl = Systemctl(monkeypatch)
        monkeypatch.setattr(processes, "user_ids", lambda _pid: (0,) * 4)
    fake.info = {"LiveRestoreEnabled": False}
    with pytest.raises(FleetcleanError, match="live-restore is off by now, so a restart would stop its containers; the engine was not restarted"):
        fake.restart()
    assert process.poll() is None
    assert not is_service or systemctl.calls == [SHOW_KILL_MODE]


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (FileNotFoundError(2, "No such file or directory"), r"cannot be started here \(No such file or directory\), and systemd runs the engine"),
        (subprocess.TimeoutExpired("systemctl", 30), "does not end within 30 s"),
    ],
)
def test_a_systemctl_that_is_missing_or_hangs_is_said(fake: Fake, monkeypatch: pytest.MonkeyPatch, trouble: Exception, words: str) -> None:
    process = fake.start()

    def run(_command: list[str], **_more: t.Any) -> t.Any:
        raise trouble

    Systemctl(monkeypatch)
    monkeypatch.setattr(restarting.subprocess, "run", run)
    monkeypatch.setattr(processes, "user_ids", lambda _pid: (0,) * 4)
    for do in (lambda: check(t.cast(t.Any, fake), fake.found), fake.restart):
        with pytest.raises(FleetcleanError, match=f"systemctl show docker.service --property=KillMode {words}"):
            do()
    assert process.poll() is None


def test_what_systemd_says_against_it_is_told(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.start()
    Systemctl(monkeypatch, 1, b"Job for docker.service failed.\n")
    monkeypatch.setattr(processes, "user_ids", lambda _pid: (0,) * 4)
    with pytest.raises(FleetcleanError, match=r"systemctl restart docker\.service says: Job for docker\.service failed\.$"):
        fake.restart()


@pytest.mark.parametrize(("user", "command"), [(0, ["systemctl", "--user"]), (12345, ["systemctl", "--user", "--machine=12345@.host"])])
def test_a_users_service_is_restarted_by_the_systemd_of_that_user(fake: Fake, monkeypatch: pytest.MonkeyPatch, user: int, command: list[str]) -> None:
    """The system may have a service of that name, which is none of his business."""
    user = user or os.geteuid()
    fake.start()
    systemctl = Systemctl(monkeypatch, user=user)
    monkeypatch.setattr(processes, "user_ids", lambda _pid: (user,) * 4)
    fake.restart()
    assert systemctl.calls == [[*command, "show", "docker.service", "--property=KillMode"], [*command, "restart", "docker.service"]]


@pytest.mark.parametrize(("said", "restarted"), [
    (b"User=\n", False), (b"User=root\n", False), (b"User=12345\n", True), (b"User=nobody at all\n", False), (b"User=\xc2\xb2\n", False), (b"", False),
])
def test_what_a_user_runs_in_a_service_of_the_systems_is_not_that_service(fake: Fake, monkeypatch: pytest.MonkeyPatch, said: bytes, restarted: bool) -> None:
    """His jobs of cron's are in cron's control group, and an engine without root may be one."""
    process = fake.start()
    found = fake.found._replace(user_id=12345)
    systemctl = Systemctl(monkeypatch, said=said)
    monkeypatch.setattr(processes, "user_ids", lambda _pid: (12345,) * 4)
    if restarted:
        fake.restart(found)
    else:
        with pytest.raises(FleetcleanError, match="cannot be started again as it was: it runs as user 12345"):
            fake.restart(found)
    restart = [SHOW_KILL_MODE, ["systemctl", "restart", "docker.service"]] * restarted
    assert systemctl.calls == [["systemctl", "show", "--property=User", "docker.service"], *restart]
    assert process.poll() is None


def test_what_root_runs_in_a_users_session_is_no_service_of_that_users(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.start()
    systemctl = Systemctl(monkeypatch, user=os.geteuid() + 1)
    fake.restart()
    assert systemctl.calls == []
    assert len(fake.starts) == 2


@pytest.mark.parametrize(
    ("groups", "unit", "user"),
    [
        ("0::/system.slice/docker.service\n", "docker.service", None),
        ("12:pids:/system.slice/snap.docker.dockerd.service\n1:name=systemd:/system.slice/snap.docker.dockerd.service\n", "snap.docker.dockerd.service", None),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/docker.service\n", "docker.service", 1000),
        ("0::/lxc.payload.web/system.slice/docker.service\n", "docker.service", None),
        ("0::/system.slice/containerd.service/kubepods-burstable.slice\n", "", None),
        ("0::/init.scope\n", "", None),
        ("", "", None),
        # Below a unit that was given to a user he makes groups of any name.
        ("0::/system.slice/rootless.service/sshd.service\n", "", None),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-1.scope/sshd.service\n", "", None),
        ("0::/user.slice/user-1000.slice/user@1000.service\n", "", None),
        ("0::/system.slice/--force.service\n", "", None),
        ("0::/system.slice/a b.service\n", "", None),
    ],
)
def test_the_service_of_a_process_is_known_by_its_control_group(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, groups: str, unit: str, user: int | None
) -> None:
    (tmp_path / "cgroup").write_text(groups)
    monkeypatch.setattr(restarting, "open", lambda _path, **more: open(tmp_path / "cgroup", **more), raising=False)
    monkeypatch.setattr(restarting.os.path, "isdir", lambda path: path == "/run/systemd/system")
    assert restarting._unit(1) == (unit, user)
    monkeypatch.setattr(restarting.os.path, "isdir", lambda _path: False)
    assert restarting._unit(1) == ("", None)


def test_a_cure_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarting.time, "sleep", lambda _seconds: None)
    looks = iter([False, False, True])
    assert cured(lambda: next(looks))
    assert not cured(lambda: False, 0.05)
