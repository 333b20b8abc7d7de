"""The processes that own a fleet's hosts, so that nothing outlives whoever wanted them.

    owner (pytest, a demo, a shell) ── pipe or pid ──► keeper ──► unshare ──► process 1 of a host, one each
                                                         ▲
                                        janitor ─────────┘ its parent, which does nothing but clean up after it

The keeper starts the hosts and then waits for the end of its owner, or for SIGTERM. It ends by just ending: every host has asked the
kernel to be killed when the keeper's thread ends, so it makes no difference how that came about. The janitor then sees to what the
kernel does not take away with a process: control groups, connections that ssh keeps open, the fleet's folder. It is a subreaper, so
that no host can slip away from it. If the janitor itself is killed, the keeper gets SIGTERM and cleans up in its place; if both are
killed at once the hosts are gone as well, and the next ``down`` removes folder and groups.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

from . import cgroups, inventory, network, roots
from .errors import FleetError
from .host import PATH, Host, HostSpec, size_bytes
from .system import Process, adopt_orphans, children, die_with_parent

STATE = "fleet.json"
INVENTORY = "inventory.yml"
# Folders are in /var/tmp since it is on a disk (images of several GB), and short since ssh's control sockets lie there.
PARENT = Path("/var/tmp")
# sockaddr_un holds 107 characters; the longest name below the folder is s/198.19.255.255root.<16 random characters>
_LONGEST_DIRECTORY = 64
_INIT = Path(__file__).with_name("init.sh")
_NEEDED = ("unshare", "nsenter", "setpriv", "ip", "mount", "losetup")

SSHD_CONFIG = """\
HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile /etc/ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
PrintLastLog no
MaxSessions 100
MaxStartups 100
Subsystem sftp internal-sftp
"""


def missing(specs: list[HostSpec]) -> Optional[str]:
    """Why hosts such as ``specs`` cannot run on this machine; None when they can."""
    if os.geteuid() != 0:
        return "test hosts need root (namespaces, mounts, loop devices)"
    programs = list(_NEEDED)
    programs += [f"mkfs.{spec.filesystem}" for spec in specs if spec.filesystem]
    programs += [f"mkfs.{kind}" for spec in specs for _where, kind, _size in spec.further_disks() if kind != "tmpfs"]
    if any(spec.ssh for spec in specs):
        programs += ["ssh", "ssh-keygen"]
    on_machine = [spec for spec in specs if spec.root == "machine"]
    if any(spec.engine for spec in on_machine):
        programs.append("dockerd")
    if any(spec.ssh for spec in on_machine):
        programs.append("sshd")
    if any(spec.driver == "fuse-overlayfs" for spec in on_machine):
        programs.append("fuse-overlayfs")
    for program in programs:
        if shutil.which(program, path=PATH) is None:
            packages = {"dockerd": "docker.io", "sshd": "openssh-server", "mkfs.xfs": "xfsprogs", "mkfs.btrfs": "btrfs-progs"}
            return f"{program} is missing" + (f" (apt-get install {packages[program]})" if program in packages else "")
    for suite in {spec.root for spec in specs if spec.root != "machine"}:
        if not roots.made(suite):
            return f"the root file system of {suite} is not made yet: python3 -m tests.fleet roots {suite}"
    return None


def run(arguments: dict[str, Any], owner_pipe: Optional[int], status_pipe: int) -> None:
    """Be the janitor, with a keeper as its child; returns when all is gone.

    ``arguments``: ``specs``, ``directory`` (or None), ``owner`` (a pid or None), ``timeout`` in seconds. The end of ``owner_pipe`` is the
    end of the owner. ``status_pipe`` gets one JSON line: ``{"directory": ...}`` when all hosts answer, or ``{"error": ...}``.
    """
    # Handlers, not SIG_IGN: that would be inherited by all that the hosts run.
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(signum, lambda *_: None)
    adopt_orphans()
    janitor = os.getpid()
    try:
        directory = _make_directory(arguments.get("directory"))
    except (FleetError, OSError) as error:
        _say(status_pipe, {"error": str(error)})
        return
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = _Keeper(directory, arguments, janitor, owner_pipe, status_pipe).main()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if owner_pipe is not None:
        os.close(owner_pipe)
    os.close(status_pipe)
    os.waitpid(child, 0)
    clean(directory)


def clean(directory: Path) -> list[str]:
    """Take away what is left of the fleet in ``directory``, dead or alive; what could not be taken away, in words."""
    state = read_state(directory)
    if state is None:
        return []
    _close_connections(directory)
    token = state["token"]
    devices = [record["device"] for record in state["hosts"] if record["device"]]
    started = time.monotonic()
    while (waited := time.monotonic() - started) < 20:
        for pid in cgroups_processes(token):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        _reap()
        busy = cgroups_processes(token) or _loops(directory)
        devices = [device for device in devices if not network.gone(device)]
        if not busy and not devices:
            break
        # The kernel takes these away with the namespaces, a moment after the last process; whoever looks into one holds it up.
        if waited > 3:
            for device in devices:
                network.delete(device)
        if waited > 5:
            for loop in _loops(directory):
                subprocess.run(["losetup", "--detach", loop], capture_output=True)
        time.sleep(0.02)
    left = [f"control group {path}" for path in cgroups.remove(token)]
    left += [f"network device {device}" for device in devices] + [f"loop device {loop}" for loop in _loops(directory)]
    shutil.rmtree(directory, ignore_errors=True)
    for path in left:
        print(f"could not remove {path}", file=sys.stderr)
    return left


def read_state(directory: Path) -> Optional[dict[str, Any]]:
    """What the fleet in ``directory`` says of itself, or None when there is none."""
    try:
        return json.loads((directory / STATE).read_text())
    except (OSError, ValueError):
        return None


def processes(state: dict[str, Any]) -> list[Process]:
    """The janitor and the keeper of a fleet's state, those that live."""
    known = [Process(*state[who]) for who in ("janitor", "keeper") if state.get(who)]
    return [process for process in known if process.alive()]


def cgroups_processes(token: str) -> list[int]:
    """All processes in the fleet's control groups."""
    found: set[int] = set()
    for hierarchy in cgroups.hierarchies():
        for folder, _, _ in os.walk(hierarchy.where / token):
            try:
                found.update(map(int, (Path(folder) / "cgroup.procs").read_text().split()))
            except OSError:
                pass
    return sorted(found - {0})


class _Stopped(Exception):
    """The owner has ended, or somebody sent SIGTERM."""


class _Keeper:
    def __init__(self, directory: Path, arguments: dict[str, Any], janitor: int, owner_pipe: Optional[int], status_pipe: int) -> None:
        self.directory = directory
        self.specs = [HostSpec.from_json(record) for record in arguments["specs"]]
        self.timeout = float(arguments["timeout"])
        self.janitor = janitor
        self.status_pipe = status_pipe
        self.state = read_state(directory) or {}
        self.unshares: dict[str, subprocess.Popen[bytes]] = {}
        self.hosts: dict[str, Host] = {}
        self.ends = select.poll()
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(wake_write)
        self.ends.register(wake_read, select.POLLIN)
        die_with_parent(janitor, signal.SIGTERM)
        if owner_pipe is not None:
            self.ends.register(owner_pipe, select.POLLIN)
        self.owner_gone = False
        if arguments.get("owner"):
            try:
                self.ends.register(os.pidfd_open(arguments["owner"]), select.POLLIN)
            except ProcessLookupError:
                self.owner_gone = True

    def main(self) -> int:
        """Start the hosts and keep them; the exit code."""
        code = 0
        try:
            self._start()
            _say(self.status_pipe, {"directory": str(self.directory)})
            while True:
                self._pause(3600)
        except _Stopped:
            pass
        except (FleetError, OSError, subprocess.SubprocessError) as error:
            _say(self.status_pipe, {"error": str(error)})
            code = 1
        if os.getppid() != self.janitor:
            clean(self.directory)
        return code

    def _pause(self, seconds: float) -> None:
        if self.owner_gone or self.ends.poll(seconds * 1000):
            raise _Stopped

    def _start(self) -> None:
        reason = missing(self.specs)
        if reason:
            raise FleetError(reason)
        self.state["keeper"] = _identity(os.getpid())
        self._save()
        if any(spec.ssh for spec in self.specs):
            self._make_keys()
        for spec in self.specs:
            self._spawn(spec)
        first = secrets.randbelow(1 << 15)
        for spec in self.specs:
            self._adopt(spec, first)
        ready: list[tuple[str, Callable[[HostSpec], bool]]] = [
            ("make its root", self._is_built), ("run its engine", self._has_engine), ("answer ssh", self._has_ssh)]
        for what, done in ready:
            self._wait_for_all(what, done)
        # Bare hosts are not in it: Ansible could only reach the machine in their place.
        inventory.write(self.directory / INVENTORY, {
            name: inventory.variables(self.directory, host.address) for name, host in self.hosts.items() if host.address})

    def _save(self) -> None:
        fresh = self.directory / f".{STATE}"
        fresh.write_text(json.dumps(self.state, indent=1))
        fresh.replace(self.directory / STATE)

    def _make_keys(self) -> None:
        (self.directory / "s").mkdir(mode=0o700)
        for name in ("id_ed25519", "host_ed25519"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test fleet", "-f", str(self.directory / name)],
                           check=True, capture_output=True, stdin=subprocess.DEVNULL)
        kind, key, *_ = (self.directory / "host_ed25519.pub").read_text().split()
        (self.directory / "known_hosts").write_text(f"198.18.*,198.19.* {kind} {key}\n")

    def _etc(self, spec: HostSpec) -> None:
        """Write what the host gets in /etc."""
        etc = self.directory / f"{spec.name}.etc"
        files = {
            "docker/daemon.json": json.dumps(spec.daemon_configuration(), indent=2) + "\n",
            "hostname": spec.name + "\n",
            "hosts": f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {spec.name}\n",
            "machine-id": secrets.token_hex(16) + "\n",
            "environment": "",
        }
        if spec.ssh:
            files["ssh/sshd_config"] = SSHD_CONFIG
            files["ssh/authorized_keys"] = (self.directory / "id_ed25519.pub").read_text()
            files["ssh/ssh_host_ed25519_key"] = (self.directory / "host_ed25519").read_text()
            files["sudoers.d/ops"] = "ops ALL=(ALL) NOPASSWD: ALL\n"
        for name, content in files.items():
            path = etc / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
            path.chmod(0o600 if name.endswith("_key") else 0o644)

    def _spawn(self, spec: HostSpec) -> None:
        self._etc(spec)
        (self.directory / spec.name).mkdir()
        groups = cgroups.make(self.state["token"], spec.name)
        keeper = os.getpid()

        def before_exec() -> None:
            die_with_parent(keeper)
            cgroups.enter(groups)

        lower = "/" if spec.root == "machine" else str(roots.path(spec.root).resolve())
        if set(lower) & set(":,\\"):
            raise FleetError(f"the path {lower} has a character that overlayfs cannot take")
        environment = {
            "PATH": PATH, "LANG": "C.UTF-8", "HOME": "/root",
            "FLEET_NAME": spec.name, "FLEET_DIR": str(self.directory), "FLEET_LOWER": lower, "FLEET_INIT": str(_INIT),
            "FLEET_TOKEN": self.state["token"], "FLEET_FILESYSTEM": spec.filesystem or "tmpfs", "FLEET_DATA_ROOT": spec.data_root,
            "FLEET_DATA_SIZE": str(size_bytes(spec.data_size)), "FLEET_ROOT_SIZE": str(size_bytes(spec.root_size)),
            "FLEET_DISKS": "\n".join(f"{where} {kind} {size}" for where, kind, size in spec.further_disks()),
            "FLEET_LINKS": "\n".join(f"{where} {target}" for where, target in spec.links.items()),
            "FLEET_TMP_ON_DISK": str(int(spec.tmp_on_disk)), "FLEET_SSH": str(int(spec.ssh)), "FLEET_ENGINE": str(int(spec.engine)),
            "FLEET_CGROUPS": "\n".join(f"{h.where} {h.fstype} {h.options}" for h in cgroups.hierarchies()),
        }
        with open(self.directory / f"{spec.name}.log", "wb") as log:
            self.unshares[spec.name] = subprocess.Popen(
                ["unshare", "--mount", "--pid", "--fork", "--net", "--uts", "--ipc", "--cgroup", "--kill-child", "--",
                 "/bin/bash", str(_INIT), "build"],
                env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=before_exec)

    def _adopt(self, spec: HostSpec, first: int) -> None:
        """Find the host's process 1 and connect it."""
        unshare = self.unshares[spec.name]
        deadline = time.monotonic() + self.timeout
        while not (pids := children(unshare.pid)):
            if unshare.poll() is not None or time.monotonic() > deadline:
                raise FleetError(f"host {spec.name} did not start: {self._log_end(spec)}")
            self._pause(0.005)
        process = Process.of(pids[0])
        if process is None:
            raise FleetError(f"host {spec.name} did not start: {self._log_end(spec)}")
        link = None
        if spec.ssh:
            number = int(self.state["hosts"][-1]["device"][2:]) + 1 if self.state["hosts"] and self.state["hosts"][-1]["device"] else first
            link = network.connect(process.pid, number)
        host = Host(spec, process, link.inner if link else None, self.directory)
        self.hosts[spec.name] = host
        self.state["hosts"].append({"spec": spec.to_json(), "process": [process.pid, process.start],
                                    "address": host.address, "device": link.device if link else None})
        self._save()

    def _wait_for_all(self, what: str, done: Callable[[HostSpec], bool]) -> None:
        waiting = list(self.specs)
        deadline = time.monotonic() + self.timeout
        while waiting := [spec for spec in waiting if not done(spec)]:
            for spec in waiting:
                if self.unshares[spec.name].poll() is not None:
                    raise FleetError(f"host {spec.name} ended before it could {what}: {self._log_end(spec)}")
                if time.monotonic() > deadline:
                    raise FleetError(f"host {spec.name} could not {what} within {self.timeout:.0f} s; the end of its engine's log:\n"
                                     f"{self.hosts[spec.name].engine_log()[-2000:]}")
            self._pause(0.02)

    def _is_built(self, spec: HostSpec) -> bool:
        # Until the host has moved to its root this is the machine's file, which is not there or tells another token.
        try:
            return Path(f"/proc/{self.hosts[spec.name].pid}/root/run/fleet/ready").read_text().strip() == self.state["token"]
        except OSError:
            return False

    def _has_engine(self, spec: HostSpec) -> bool:
        if not spec.engine:
            return True
        state = self.hosts[spec.name].engine_state()
        if state:
            raise FleetError(f"host {spec.name}: the engine {state}; the end of its log:\n{self.hosts[spec.name].engine_log()[-2000:]}")
        return state is None

    def _has_ssh(self, spec: HostSpec) -> bool:
        if not spec.ssh:
            return True
        try:
            with socket.create_connection((str(self.hosts[spec.name].address), 22), timeout=2) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def _log_end(self, spec: HostSpec) -> str:
        try:
            return " | ".join((self.directory / f"{spec.name}.log").read_text().splitlines()[-3:])
        except OSError:
            return "no log"


def _make_directory(wanted: Optional[str]) -> Path:
    """Make the fleet's folder, with the state that :func:`clean` needs."""
    if wanted is None:
        directory = Path(tempfile.mkdtemp(prefix="fleetclean-", dir=PARENT))
    else:
        directory = Path(wanted)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise FleetError(f"{directory} is not empty")
        directory.chmod(0o700)
    state = {"token": f"fleetclean-{secrets.token_hex(4)}", "janitor": _identity(os.getpid()), "keeper": None, "hosts": []}
    (directory / STATE).write_text(json.dumps(state))
    return directory


def check_directory(directory: Path) -> None:
    """Raise :class:`FleetError` when a fleet cannot live in ``directory``."""
    text = str(directory)
    if len(text) > _LONGEST_DIRECTORY:
        raise FleetError(f"the folder {text} is too long for ssh's control sockets: at most {_LONGEST_DIRECTORY} characters")
    if set(text) & set(" \t\n:,\\'\"%$"):
        raise FleetError(f"the folder {text} has a character that ssh or overlayfs cannot take")


def _identity(pid: int) -> list[int]:
    process = Process.of(pid)
    assert process is not None
    return [process.pid, process.start]


def _say(pipe: int, message: dict[str, Any]) -> None:
    try:
        os.write(pipe, (json.dumps(message) + "\n").encode())
        os.close(pipe)
    except OSError:
        # The owner is gone; its end is noticed elsewhere.
        pass


def _close_connections(directory: Path) -> None:
    """End the masters that ssh's ControlPersist left at the fleet's control sockets."""
    try:
        sockets = list((directory / "s").iterdir())
    except OSError:
        return
    for path in sockets:
        subprocess.run(["ssh", "-F", "/dev/null", "-o", f"ControlPath={path}", "-O", "exit", "fleet"],
                       stdin=subprocess.DEVNULL, capture_output=True, timeout=10)


def _loops(directory: Path) -> list[str]:
    """Loop devices whose image lies, or lay, in ``directory``."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if path.read_text().startswith(f"{directory}/"):
                found.append(f"/dev/{path.parts[3]}")
        except OSError:
            pass
    return found


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
