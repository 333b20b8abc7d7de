"""A whole machine under emulation (qemu without KVM): Debian 12, an engine with a storage driver of the kernel's, SSH.

For drivers that need a module which the machine of the tests may lack, and which a host in namespaces (tests/fleet) therefore cannot have.
It starts in half a minute, and ends with the ``with`` block or with the process that runs it. The image that it boots from is never changed.

    owner ──► keeper.py ──► qemu ──► initrd.sh ──► init.sh ──► sshd, dockerd
      └──► ssh, which forwards the engine's socket, and is the way in for every other ssh and for Ansible
"""

from __future__ import annotations

import json
import os
import select
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from tests.fleet import CommandFailed, FleetError, inventory, keeper
from tests.fleet.host import SOCKET, Engine
from tests.fleet.system import die_with_parent

from . import images, initrd

# Driver: the image that has it, and its options of the engine.
DRIVERS: dict[str, tuple[str, list[str]]] = {
    # Without udev there is nothing to wait for. The sparse files are 100 GB large without the other one.
    "devicemapper": ("plain", ["dm.override_udev_sync_check=true", "dm.loopdatasize=4G"]),
    "zfs": ("zfs", []),
}
_HERE = Path(__file__).parent
_PROGRAMS = {"qemu-system-x86_64": "qemu-system-x86", "ssh": "openssh-client", "ssh-keygen": "openssh-client", "mkfs.ext4": "e2fsprogs"}
_EMULATOR = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2G", "-nodefaults", "-no-user-config",
             "-display", "none", "-no-reboot"]


class Machine(Engine):
    """A machine whose engine has the storage driver ``driver``, one of :data:`DRIVERS`.

    ``timeout``: seconds that it may take until the engine answers. Raises :class:`FleetError` when it does not come up, with the end of
    what its console says.
    """

    data_root = "/var/lib/docker"

    def __init__(self, driver: str, timeout: float = 240) -> None:
        self.driver = driver
        self.timeout = timeout
        self._directory: Optional[Path] = None
        self._keeper: Optional[subprocess.Popen[str]] = None
        self._ssh: Optional[subprocess.Popen[bytes]] = None
        self._port = 0

    @staticmethod
    def missing(driver: str) -> Optional[str]:
        """Why such a machine cannot run here; None when it can."""
        for program, package in _PROGRAMS.items():
            if shutil.which(program) is None:
                return f"{program} is missing (apt-get install {package})"
        kind = DRIVERS[driver][0]
        return None if images.made(kind) else f"the image {kind} of emulated machines is not made yet: make test-vm"

    @property
    def name(self) -> str:
        """Its name in the inventory, and its hostname."""
        return f"vm-{self.driver}"

    @property
    def directory(self) -> Path:
        """The machine's folder on this one."""
        if self._directory is None:
            raise FleetError(f"{self.name} does not run")
        return self._directory

    @property
    def inventory(self) -> Path:
        """The Ansible inventory, with this one host."""
        return self.directory / keeper.INVENTORY

    @property
    def socket(self) -> Path:
        """The engine's socket, as this machine sees it."""
        return self.directory / "docker.sock"

    @property
    def alive(self) -> bool:
        """Whether the emulator still runs."""
        if self._keeper is None or self._keeper.stdout is None or self._keeper.poll() is not None:
            return False
        return not select.select([self._keeper.stdout], [], [], 0)[0]

    def __enter__(self) -> Machine:
        reason = self.missing(self.driver)
        if reason:
            raise FleetError(reason)
        self._directory = Path(tempfile.mkdtemp(prefix="fleetclean-vm-", dir=keeper.PARENT))
        try:
            # First of all: it takes the folder away.
            self._start_keeper()
            self._port = _free_port()
            self._make_files()
            self._start()
            deadline = time.monotonic() + self.timeout
            self._wait_for_ssh(deadline)
            self._wait_for_engine(deadline)
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def down(self) -> None:
        """End the machine and wait until nothing of it is left; nothing when it is gone already."""
        if self._ssh is not None:
            self._ssh.kill()
            self._ssh.wait()
            self._ssh = None
        directory, self._directory = self._directory, None
        if self._keeper is not None:
            self._keeper.communicate(timeout=40)
            self._keeper = None
        elif directory is not None:
            shutil.rmtree(directory, ignore_errors=True)

    def exec(self, argv: Sequence[str], check: bool = True, timeout: Optional[float] = 300) -> subprocess.CompletedProcess[str]:
        """Run ``argv`` on the machine as root and wait; output as text. Raises as :meth:`tests.fleet.Host.exec` does."""
        done = subprocess.run([*self._ssh_command(), shlex.join(argv)], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                              timeout=timeout)
        result = subprocess.CompletedProcess(list(argv), done.returncode, done.stdout, done.stderr)
        if check and result.returncode:
            raise CommandFailed(self.name, result)
        return result

    def sh(self, script: str) -> str:
        """What a shell script says on the machine; it ends with the first command that fails."""
        return self.exec(["/bin/bash", "-euo", "pipefail", "-c", script]).stdout

    def engine_log(self) -> str:
        """What the engine has written since the start."""
        return self.exec(["cat", "/run/fleet/engine.log"], check=False).stdout

    def console(self) -> str:
        """What the kernel and process 1 have written."""
        said = ""
        for name in ("emulator.log", "console.log"):
            try:
                said += (self.directory / name).read_text(errors="replace")
            except OSError:
                pass
        return said

    def _start_keeper(self) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("DOCKER_", "PYTHON"))}
        self._keeper = subprocess.Popen([sys.executable, "-m", "tests.vm.keeper", str(self.directory)], cwd=Path(__file__).resolve().parents[2],
                                        env={**environment, "PYTHONDONTWRITEBYTECODE": "1"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True, start_new_session=True)

    def _make_files(self) -> None:
        for name in ("id_ed25519", "host_ed25519"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test machine", "-f", str(self.directory / name)],
                           check=True, capture_output=True, stdin=subprocess.DEVNULL)
        (self.directory / "s").mkdir(mode=0o700)
        kind, key, *_ = (self.directory / "host_ed25519.pub").read_text().split()
        (self.directory / "known_hosts").write_text(f"[127.0.0.1]:{self._port} {kind} {key}\n")
        inventory.write(self.inventory, {self.name: {**inventory.variables(self.directory, "127.0.0.1"), "ansible_port": self._port}})

        options = DRIVERS[self.driver][1]
        daemon = {"storage-driver": self.driver, "storage-opts": options, "bridge": "none", "iptables": False, "ip6tables": False}
        added = {
            "init.sh": ((_HERE / "init.sh").read_bytes(), 0o755),
            "etc/fleet.env": (f"FLEET_NAME={self.name}\nFLEET_DRIVER={self.driver}\n".encode(), 0o644),
            "etc/hosts": (f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n".encode(), 0o644),
            "etc/docker/daemon.json": (json.dumps(daemon).encode(), 0o644),
            "etc/ssh/sshd_config": (keeper.SSHD_CONFIG.encode(), 0o644),
            "etc/ssh/authorized_keys": ((self.directory / "id_ed25519.pub").read_bytes(), 0o644),
            "etc/ssh/ssh_host_ed25519_key": ((self.directory / "host_ed25519").read_bytes(), 0o600),
        }
        initrd.make(self.directory / "initrd", images.path(DRIVERS[self.driver][0]), (_HERE / "initrd.sh").read_bytes(), added)
        with open(self.directory / "data.img", "wb") as data:
            data.truncate(6 << 30)
        # Here rather than in the machine, where all is ten times as slow.
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(self.directory / "data.img")], check=True, capture_output=True)

    def _start(self) -> None:
        image = images.path(DRIVERS[self.driver][0])
        command = [
            *_EMULATOR, "-kernel", str(image / "vmlinuz"), "-initrd", str(self.directory / "initrd"),
            "-append", "console=ttyS0 quiet panic=-1 mitigations=off",
            "-serial", f"file:{self.directory / 'console.log'}",
            # What is written to it is thrown away.
            "-drive", f"file={image / 'root.img'},format=raw,if=virtio,snapshot=on",
            "-drive", f"file={self.directory / 'data.img'},format=raw,if=virtio,cache=unsafe,discard=unmap",
            # Nothing comes out of it, and only SSH comes in.
            "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{self._port}-10.0.2.15:22",
            "-device", "virtio-net-pci,netdev=net,romfile=",
        ]
        assert self._keeper is not None and self._keeper.stdin is not None
        self._keeper.stdin.write(json.dumps(command) + "\n")
        self._keeper.stdin.flush()

    def _ssh_command(self, *options: str) -> list[str]:
        return ["ssh", *inventory.ssh_arguments(self.directory).split(), "-o", "BatchMode=yes", "-i", str(self.directory / "id_ed25519"),
                "-p", str(self._port), *options, "root@127.0.0.1"]

    def _wait_for_ssh(self, deadline: float) -> None:
        own = os.getpid()
        control = self.directory / "s" / "127.0.0.1root"
        while True:
            # The emulator takes the connection long before the machine does: what answers is sshd's first line.
            while not _speaks(self._port):
                self._must_come_up(deadline, "SSH")
                time.sleep(0.3)
            self._ssh = subprocess.Popen([*self._ssh_command("-M", "-N", "-L", f"{self.socket}:{SOCKET}")], stdin=subprocess.DEVNULL,
                                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=lambda: die_with_parent(own))
            while self._ssh.poll() is None:
                if control.exists() and self.socket.exists():
                    return
                self._must_come_up(deadline, "SSH")
                time.sleep(0.1)

    def _wait_for_engine(self, deadline: float) -> None:
        while True:
            try:
                if self.api("GET", "/_ping", timeout=10)[0] == 200:
                    return
            except OSError:
                pass
            self._must_come_up(deadline, "its engine")
            time.sleep(0.3)

    def _must_come_up(self, deadline: float, what: str) -> None:
        if not self.alive or time.monotonic() > deadline:
            reason = "has ended" if not self.alive else f"gives no answer by {what}"
            log = "" if what == "SSH" else self.engine_log()[-2000:]
            raise FleetError(f"{self.name} {reason}; the end of what it says:\n{self.console()[-2000:]}\n{log}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _speaks(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=3) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False
