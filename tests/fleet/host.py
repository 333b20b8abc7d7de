"""One test host: what it is to be (:class:`HostSpec`) and the way into it (:class:`Host`)."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Optional, Union

from . import roots
from .errors import FleetError
from .system import Process

FILESYSTEMS = ("ext4", "xfs", "btrfs")
DRIVERS = ("overlay2", "overlay", "vfs", "btrfs", "fuse-overlayfs")
ROOTS = ("machine", *roots.SUITES)
SOCKET = "/run/docker.sock"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Everything that tells one host from another; what a process inside would inherit from the caller stays outside.
_NSENTER = ("--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup")
_CLIENTS = ("/usr/bin/docker", "/usr/local/bin/docker")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class HostSpec:
    """What a host is to be.

    ``filesystem`` of the data root: ext4, xfs, btrfs, or None for a tmpfs. ``root``: "machine" (what this machine has) or a Debian
    suite (see roots.py). Sizes are bytes or "500M", "3G"; ``root_size`` is memory as far as it is filled. ``daemon_json`` is merged over
    the engine's configuration. ``ssh``: a network address and sshd; without it the host is bare. ``engine``: start the engine.
    ``tmp_on_disk``: /tmp is on the root disk and can be full with it, else it is a tmpfs. ``disks``: further filesystems by the folder that each is
    mounted on, those above first, as ``type:size`` (``xfs:1G``, ``tmpfs:64M``). ``links``: symbolic links, which root makes, and the folder that each
    leads to. Both are there before the engine starts.
    """

    name: str
    filesystem: Optional[str] = "ext4"
    driver: str = "overlay2"
    root: str = "machine"
    data_size: Union[int, str] = "3G"
    root_size: Union[int, str] = "1G"
    daemon_json: Mapping[str, Any] = field(default_factory=dict)
    data_root: str = "/var/lib/docker"
    ssh: bool = True
    engine: bool = True
    tmp_on_disk: bool = True
    disks: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?", self.name):
            raise FleetError(f"host name {self.name!r}: use small letters, digits and hyphens")
        for what, value, known in (("filesystem", self.filesystem, (*FILESYSTEMS, None)), ("driver", self.driver, DRIVERS), ("root", self.root, ROOTS)):
            if value not in known:
                raise FleetError(f"host {self.name}: unknown {what} {value!r}; known: {', '.join(str(k) for k in known)}")
        if self.driver == "btrfs" and self.filesystem != "btrfs":
            raise FleetError(f"host {self.name}: driver btrfs needs filesystem btrfs")
        if not self.data_root.startswith("/") or self.data_root == "/":
            raise FleetError(f"host {self.name}: data_root {self.data_root!r} is not an absolute folder")
        size_bytes(self.data_size)
        size_bytes(self.root_size)
        for where, kind, _size in self.further_disks():
            if kind not in (*FILESYSTEMS, "tmpfs"):
                raise FleetError(f"host {self.name}: unknown filesystem {kind!r} for {where}")
        for path in (*self.disks, *self.links, *self.links.values()):
            if not re.fullmatch(r"(/[\w.-]+)+", path):
                raise FleetError(f"host {self.name}: {path!r} is not an absolute path of plain characters")

    def further_disks(self) -> list[tuple[str, str, int]]:
        """Folder, type and bytes of each of ``disks``."""
        return [(where, kind, size_bytes(size)) for where, (kind, _colon, size) in ((where, text.partition(":")) for where, text in self.disks.items())]

    @classmethod
    def parse(cls, text: str, **defaults: Any) -> HostSpec:
        """A spec from ``name[:filesystem[:driver[:root]]]``; ``defaults`` are other fields."""
        parts = text.split(":")
        if len(parts) > 4:
            raise FleetError(f"host {text!r}: give name:filesystem:driver:root")
        named = dict(zip(("name", "filesystem", "driver", "root"), parts))
        given: dict[str, Any] = {**defaults, **{key: value for key, value in named.items() if value}}
        if given.get("filesystem") in ("tmpfs", "none"):
            given["filesystem"] = None
        return cls(**given)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> HostSpec:
        """A spec from a JSON object with these fields."""
        unknown = set(record) - {f.name for f in fields(cls)}
        if unknown:
            raise FleetError(f"host {record.get('name', '?')}: unknown field {', '.join(sorted(unknown))}")
        if "name" not in record:
            raise FleetError("a host without a name")
        return cls(**record)

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return {**asdict(self), "daemon_json": dict(self.daemon_json), "disks": dict(self.disks), "links": dict(self.links)}

    def daemon_configuration(self) -> dict[str, Any]:
        """What /etc/docker/daemon.json says in the host."""
        own: dict[str, Any] = {"data-root": self.data_root, "bridge": "none", "iptables": False, "ip6tables": False}
        features = self.daemon_json.get("features") or {}
        # With containerd's image store the driver is a snapshotter, and it is the engine that knows the right one.
        if not features.get("containerd-snapshotter"):
            own["storage-driver"] = self.driver
        merged = {**own, **self.daemon_json}
        return {key: value for key, value in merged.items() if value is not None}


def size_bytes(size: Union[int, str]) -> int:
    """Bytes of a number, or of a text such as ``500M`` (powers of 1024)."""
    if isinstance(size, int):
        return size
    match = re.fullmatch(r"(\d+)([KMG]?)", size)
    if not match:
        raise FleetError(f"{size!r} is not a size; use a number with K, M or G, such as 3G")
    return int(match[1]) * _UNITS[match[2]]


class CommandFailed(FleetError):
    """A command in a host ended with another code than 0; ``result`` is its CompletedProcess."""

    def __init__(self, host: str, result: subprocess.CompletedProcess[str]) -> None:
        self.result = result
        said = (result.stderr or result.stdout or "").strip()
        super().__init__(f"{host}: {' '.join(map(str, result.args))} ended with {result.returncode}: {said[-2000:]}")


class Engine:
    """An engine by its API, wherever it runs."""

    @property
    def name(self) -> str:
        """The host that it runs on, for messages."""
        raise NotImplementedError

    @property
    def socket(self) -> Path:
        """Its socket, as this machine sees it."""
        raise NotImplementedError

    def api(self, method: str, path: str, body: Union[bytes, str, dict, list, None] = None, headers: Optional[Mapping[str, str]] = None,
            timeout: Optional[float] = 300) -> tuple[int, Any]:
        """One request to the engine: (HTTP status, parsed JSON or bytes).

        ``body``: bytes as they are, anything else as JSON. A path without ``/v1.NN`` in front gets the engine's newest API. An answer of
        many JSON objects (build, load) comes as a list. Raises OSError when the engine does not answer within ``timeout`` seconds.
        """
        sent = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        if isinstance(body, bytes):
            sent.setdefault("Content-Type", "application/x-tar")
        connection = _UnixConnection(str(self.socket), timeout)
        try:
            try:
                connection.request(method, path, body=body, headers=sent)
            except BrokenPipeError:
                pass  # it has heard enough: what it says is the answer
            response = connection.getresponse()
            answer = response.read()
        except http.client.HTTPException as error:
            raise OSError(f"{self.name}: {method} {path}: {error!r}") from error
        finally:
            connection.close()
        return response.status, _parsed(answer, response.headers.get_content_type())

    def must(self, method: str, path: str, body: Union[bytes, str, dict, list, None] = None, headers: Optional[Mapping[str, str]] = None) -> Any:
        """As :meth:`api`, the answer only; raises :class:`FleetError` for a status of 400 and more or an error within a stream."""
        status, answer = self.api(method, path, body, headers)
        said = [item["error"] for item in answer if isinstance(item, dict) and "error" in item] if isinstance(answer, list) else []
        if isinstance(answer, dict) and "error" in answer:
            said.append(answer["error"])
        if status >= 400 or said:
            raise FleetError(f"{self.name}: {method} {path}: {status} {said or answer}")
        return answer

    @property
    def api_version(self) -> str:
        """The newest API that the engine speaks, such as 1.41."""
        return self.must("GET", "/version")["ApiVersion"]


class Host(Engine):
    """A running host. Any process of the machine's root may hold one; the host lives as long as its fleet."""

    def __init__(self, spec: HostSpec, process: Process, address: Optional[str], directory: Path) -> None:
        self.spec = spec
        self.process = process
        self.address = address
        self.directory = directory

    def __repr__(self) -> str:
        return f"<Host {self.name} pid {self.pid}>"

    @property
    def name(self) -> str:
        """Its name in the fleet, the inventory, and its hostname."""
        return self.spec.name

    @property
    def pid(self) -> int:
        """The host's process 1, as the machine numbers it."""
        return self.process.pid

    @property
    def data_root(self) -> str:
        """The engine's data root, as a path in the host."""
        return self.spec.data_root

    @property
    def python(self) -> str:
        """A Python 3 in the host."""
        return "/usr/bin/python3"

    @property
    def alive(self) -> bool:
        """Whether the host still runs."""
        return self.process.alive()

    @property
    def socket(self) -> Path:
        """The engine's socket, as the machine sees it."""
        return Path(f"/proc/{self.pid}/root{SOCKET}")

    # Commands and files

    def command(self, argv: Sequence[Union[str, Path]], env: Optional[Mapping[str, str]] = None) -> list[str]:
        """The command for the machine that runs ``argv`` in the host, as root, in /, with a clean environment."""
        variables = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", **(env or {})}
        # setpriv: nsenter forks to get into the process namespace; if it is killed (a timeout), what it forked shall not live on.
        return ["nsenter", "--target", str(self.pid), *_NSENTER, "--", "/usr/bin/setpriv", "--pdeathsig", "KILL", "--",
                "/usr/bin/env", "-i", *(f"{key}={value}" for key, value in variables.items()), *map(str, argv)]

    def exec(self, argv: Sequence[Union[str, Path]], input: Optional[str] = None, check: bool = True, timeout: Optional[float] = 120,
             env: Optional[Mapping[str, str]] = None) -> subprocess.CompletedProcess[str]:
        """Run ``argv`` in the host and wait; output as text.

        Raises :class:`CommandFailed` for another code than 0 unless ``check`` is False, and subprocess.TimeoutExpired after ``timeout``
        seconds.
        """
        self._must_live()
        stdin: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        done = subprocess.run(self.command(argv, env), capture_output=True, text=True, errors="replace", timeout=timeout, **stdin)
        result = subprocess.CompletedProcess(list(map(str, argv)), done.returncode, done.stdout, done.stderr)
        if check and result.returncode:
            raise CommandFailed(self.name, result)
        return result

    def popen(self, argv: Sequence[Union[str, Path]], env: Optional[Mapping[str, str]] = None, **options: Any) -> subprocess.Popen[str]:
        """Start ``argv`` in the host and do not wait; it ends when the returned process does."""
        self._must_live()
        return subprocess.Popen(self.command(argv, env), text=True, **options)

    def path(self, inside: Union[str, Path] = "/") -> Path:
        """The host's file ``inside`` as the machine sees it; symbolic links in it are followed as the host would."""
        root = Path(f"/proc/{self.pid}/root")
        todo = list(Path(inside).parts[1:])[::-1]
        seen: list[str] = []
        links = 0
        while todo:
            part = todo.pop()
            if part == "..":
                del seen[-1:]
                continue
            try:
                target = os.readlink(root.joinpath(*seen, part))
            except OSError:
                target = ""
            if not target or links >= 40:
                seen.append(part)
                continue
            links += 1
            if target.startswith("/"):
                seen = []
            todo.extend([p for p in target.split("/") if p not in ("", ".")][::-1])
        return root.joinpath(*seen)

    def free_bytes(self, path: str = "/var/lib/docker") -> int:
        """Bytes that are free on the filesystem of ``path`` in the host."""
        figures = os.statvfs(self.path(path))
        return figures.f_bavail * figures.f_frsize

    def fill(self, path: str, leave: int = 0) -> str:
        """Fill the filesystem of the folder ``path`` until ``leave`` bytes are free; the filler file (remove it to undo).

        With ``leave=0`` nothing more can be written: writing goes on until the kernel says ENOSPC. (xfs says so with a few blocks left,
        which it wants for its own trees.) On the root disk and other tmpfs what is filled is memory.
        """
        filler = f"{path.rstrip('/')}/.filler"
        handle = os.open(self.path(path) / ".filler", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            size = os.fstat(handle).st_size
            step = max(self.free_bytes(path) - leave, 0)
            # fallocate says no as a whole: halve what is asked for until it is less than a block.
            while step >= 4096:
                step = min(step, max(self.free_bytes(path) - leave, 0)) // 4096 * 4096
                try:
                    if step:
                        os.posix_fallocate(handle, size, step)
                        size += step
                except OSError:
                    step //= 2
            if leave == 0:
                os.lseek(handle, 0, os.SEEK_END)
                # A copy-on-write filesystem gives delayed space back when it writes: go on until it really has none.
                for _ in range(5):
                    for chunk in (b"\0" * (1 << 20), b"\0" * 4096, b"\0" * 512):
                        try:
                            while os.write(handle, chunk):
                                pass
                        except OSError:
                            pass
                    try:
                        os.fsync(handle)
                    except OSError:
                        pass
                    if self.free_bytes(path) == 0:
                        break
        finally:
            os.close(handle)
        return filler

    # The engine

    def start_engine(self, timeout: float = 60) -> None:
        """Start the engine and wait until it answers. Raises :class:`FleetError` with the end of its log."""
        self._must_live()
        if self.engine_process() is not None:
            raise FleetError(f"{self.name}: the engine runs already")
        self.path("/run/fleet/engine.pid").unlink(missing_ok=True)
        with open(self.path("/run/fleet/control"), "w") as control:
            control.write("start\n")
        self.wait_for_engine(timeout)

    def wait_for_engine(self, timeout: float = 60) -> None:
        """Wait until the engine answers; raises :class:`FleetError` when it ends instead, or after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            state = self.engine_state()
            if state is None:
                return
            if state or time.monotonic() > deadline:
                raise FleetError(f"{self.name}: the engine {state or 'does not answer'}; the end of its log:\n{self.engine_log()[-3000:]}")
            time.sleep(0.05)

    def engine_state(self) -> Optional[str]:
        """None: the engine answers. "": it is starting. Else: what became of it."""
        try:
            if self.api("GET", "/_ping", timeout=5)[0] == 200:
                return None
        except OSError:
            pass
        if not self.alive:
            return "is gone with its host"
        if self.path("/run/fleet/engine.pid").exists() and self.engine_process() is None:
            return "has ended"
        return ""

    def engine_process(self) -> Optional[int]:
        """The engine's process number in the host, or None when it does not run."""
        # Between fork and exec it is still called what started it.
        return self._running("/run/fleet/engine.pid", "dockerd", "setsid", "bash")

    def _running(self, pid_file: str, *names: str) -> Optional[int]:
        """The number in ``pid_file`` if a process of one of these names runs under it."""
        try:
            pid = int(self.path(pid_file).read_text())
            name, _, fields = self.path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
        except (OSError, ValueError):
            return None
        return pid if name in names and fields.split()[0] not in ("Z", "X") else None

    def stop_engine(self, timeout: float = 60) -> None:
        """Stop the engine as an init would (SIGTERM) and wait until it has ended; nothing when it does not run."""
        self._end_engine("TERM", timeout)

    def kill_engine(self, timeout: float = 20) -> None:
        """Kill the engine (SIGKILL) and wait until it and its containerd have ended; nothing when it does not run."""
        self._end_engine("KILL", timeout)

    def restart_engine(self, timeout: float = 60) -> None:
        """Stop the engine, start it, and wait until it answers."""
        self.stop_engine(timeout)
        self.start_engine(timeout)

    def _end_engine(self, name: str, timeout: float) -> None:
        pid = self.engine_process()
        if pid is None:
            return
        self.exec(["kill", f"-{name}", str(pid)], check=False)
        deadline = time.monotonic() + timeout
        while self.engine_process() is not None or self._running("/run/docker/containerd/containerd.pid", "containerd") is not None:
            if time.monotonic() > deadline:
                raise FleetError(f"{self.name}: the engine did not end within {timeout:.0f} s of SIG{name}; the end of its log:\n"
                                 f"{self.engine_log()[-3000:]}")
            time.sleep(0.05)

    def engine_log(self) -> str:
        """What the engine has written since the host was made."""
        try:
            return self.path("/run/fleet/engine.log").read_text(errors="replace")
        except OSError:
            return ""

    def docker(self, *args: str, check: bool = True, timeout: float = 300, input: Optional[str] = None,
               env: Optional[Mapping[str, str]] = None) -> subprocess.CompletedProcess[str]:
        """Run the host's Docker client, Debian's own before another. Raises :class:`FleetError` when it has none."""
        for client in _CLIENTS:
            if self.path(client).exists():
                return self.exec([client, *args], check=check, timeout=timeout, input=input, env=env)
        raise FleetError(f"{self.name}: no Docker client in this root ({self.spec.root})")

    def _must_live(self) -> None:
        if not self.alive:
            raise FleetError(f"{self.name}: the host is gone (see {self.directory / (self.name + '.log')})")


def _parsed(answer: bytes, content_type: str) -> Any:
    if "json" not in content_type:
        return answer
    try:
        return json.loads(answer) if answer else None
    except ValueError:
        pass
    try:
        return [json.loads(line) for line in answer.splitlines() if line.strip()]
    except ValueError:
        return answer


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: Optional[float]) -> None:
        super().__init__("docker", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
