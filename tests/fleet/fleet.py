"""A fleet of test hosts, from the side of the one who wants it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Optional, Union

from . import inventory, keeper
from .errors import FleetError
from .host import Host, HostSpec
from .system import Process

_REPOSITORY = Path(__file__).resolve().parents[2]


class Fleet:
    """Hosts that live as long as the ``with`` block, or as the process that runs it if that ends first, however it ends.

    ``directory``: a folder for the fleet, made if missing and removed at the end; a fresh one in /var/tmp without it. ``timeout``: seconds
    that the hosts have for each step of starting. Raises :class:`FleetError` when a host does not come up (then all are gone again).
    """

    def __init__(self, specs: Iterable[HostSpec], directory: Union[str, Path, None] = None, timeout: float = 60) -> None:
        self.specs = list(specs)
        names = [spec.name for spec in self.specs]
        if len(set(names)) != len(names):
            raise FleetError("two hosts have the same name")
        self.wanted = Path(directory).absolute() if directory is not None else None
        self.timeout = timeout
        self.hosts: dict[str, Host] = {}
        self._directory: Optional[Path] = None
        self._pipe: Optional[int] = None
        self._janitor: Optional[subprocess.Popen[bytes]] = None

    @classmethod
    def attach(cls, directory: Union[str, Path]) -> Fleet:
        """The running fleet in ``directory``, which somebody else owns. Raises :class:`FleetError` when none runs there."""
        directory = Path(directory).absolute()
        state = keeper.read_state(directory)
        if state is None or not keeper.processes(state):
            raise FleetError(f"no fleet runs in {directory}")
        fleet = cls([HostSpec.from_json(record["spec"]) for record in state["hosts"]], directory)
        fleet._load(directory, state)
        return fleet

    @property
    def directory(self) -> Path:
        """The fleet's folder."""
        if self._directory is None:
            raise FleetError("the fleet does not run")
        return self._directory

    @property
    def inventory(self) -> Path:
        """The Ansible inventory, with the group ``docker_hosts``."""
        return self.directory / keeper.INVENTORY

    def add_to_inventory(self, name: str, address: Optional[str] = None, **variables: Any) -> None:
        """Add an entry to the inventory, reached as the hosts are; without ``address`` with ``variables`` only."""
        own = inventory.variables(self.directory, address) if address else {}
        inventory.add(self.inventory, name, {**own, **variables})

    def ssh(self, name: str, user: str = "root") -> list[str]:
        """The beginning of an ssh command to the host ``name``."""
        host = self[name]
        if host.address is None:
            raise FleetError(f"{name}: a bare host has no ssh")
        return ["ssh", *inventory.ssh_arguments(self.directory).split(), "-o", "BatchMode=yes", "-i", str(self.directory / "id_ed25519"),
                f"{user}@{host.address}"]

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def __iter__(self) -> Iterator[Host]:
        return iter(self.hosts.values())

    def __len__(self) -> int:
        return len(self.hosts)

    def __enter__(self) -> Fleet:
        self.up(owner=os.getpid(), pipe=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def up(self, owner: Optional[int] = None, pipe: bool = False) -> None:
        """Start the hosts and wait until they answer. They end with the process ``owner``, if given, and with this one if ``pipe``."""
        if self._directory is not None:
            raise FleetError("the fleet runs already")
        # Here rather than in the keeper: what the user got wrong is said before anything is made.
        reason = keeper.missing(self.specs)
        if reason:
            raise FleetError(reason)
        if self.wanted is not None:
            keeper.check_directory(self.wanted)
            left_over = keeper.read_state(self.wanted)
            if left_over is not None:
                if keeper.processes(left_over):
                    raise FleetError(f"a fleet runs in {self.wanted} already; end it with: python3 -m tests.fleet down --dir {self.wanted}")
                keeper.clean(self.wanted)
        arguments = {"specs": [spec.to_json() for spec in self.specs], "directory": str(self.wanted) if self.wanted else None,
                     "owner": owner, "timeout": self.timeout}
        owner_read, owner_write = os.pipe()
        status_read, status_write = os.pipe()
        passed = [status_write] + ([owner_read] if pipe else [])
        command = [sys.executable, "-m", "tests.fleet", "keep", str(status_write), str(owner_read) if pipe else "-"]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("DOCKER_", "PYTHON"))}
        try:
            self._janitor = subprocess.Popen(command, cwd=_REPOSITORY, env={**environment, "PYTHONDONTWRITEBYTECODE": "1"},
                                             stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                             start_new_session=True, pass_fds=passed)
            os.close(owner_read)
            os.close(status_write)
            self._pipe = owner_write
            assert self._janitor.stdin is not None
            with self._janitor.stdin as stdin:
                stdin.write(json.dumps(arguments).encode())
            with open(status_read, encoding="utf-8") as status:
                line = status.readline()
            answer = json.loads(line) if line else {"error": "the keeper ended without a word"}
            if "error" in answer:
                raise FleetError(answer["error"])
            directory = Path(answer["directory"])
            state = keeper.read_state(directory)
            assert state is not None
            self._load(directory, state)
        except BaseException:
            self.down()
            raise
        if not pipe:
            os.close(owner_write)
            self._pipe = None

    def down(self, timeout: float = 40) -> None:
        """End the fleet and wait until nothing of it is left; nothing when it is gone already. Raises :class:`FleetError` after ``timeout``."""
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
        directory, self._directory = self._directory, None
        self.hosts = {}
        if directory is not None:
            end(directory, timeout)
        if self._janitor is not None:
            try:
                self._janitor.wait(timeout)
            except subprocess.TimeoutExpired:
                raise FleetError(f"the fleet in {directory} did not end within {timeout:.0f} s") from None
            self._janitor = None

    def _load(self, directory: Path, state: Mapping[str, Any]) -> None:
        self._directory = directory
        self.hosts = {}
        for record in state["hosts"]:
            spec = HostSpec.from_json(record["spec"])
            self.hosts[spec.name] = Host(spec, Process(*record["process"]), record["address"], directory)


def end(directory: Path, timeout: float = 40) -> list[str]:
    """End the fleet in ``directory``, dead or alive, and wait until nothing is left; what could not be removed, in words.

    Raises :class:`FleetError` when its keeper does not end within ``timeout`` seconds.
    """
    state = keeper.read_state(directory)
    if state is None:
        return []
    deadline = time.monotonic() + timeout
    for process in [Process(*state["keeper"])] if state.get("keeper") else []:
        process.kill(signal.SIGTERM)
    while keeper.processes(state):
        if time.monotonic() > deadline:
            raise FleetError(f"the keeper of the fleet in {directory} does not end: {keeper.processes(state)}")
        time.sleep(0.02)
    return keeper.clean(directory)
