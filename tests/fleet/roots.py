"""Debian root file systems for hosts whose engine is another one than the machine's.

Each is made once with debootstrap and kept in a cache folder; a host only ever uses it as the lower, read-only part of an overlay.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

from .errors import FleetError
from .system import die_with_parent

SUITES = ("bullseye", "bookworm", "trixie", "forky")
_PACKAGES = ("docker.io", "openssh-server", "python3", "iproute2", "iptables", "busybox-static", "sudo")
# Until bookworm the client is part of docker.io; from trixie on it is a package of its own.
_WITHOUT_CLIENT_PACKAGE = ("bullseye", "bookworm")
# Suites whose debootstrap script an older debootstrap may lack: any later Debian suite's does the same.
_SCRIPT_STAND_INS = {"trixie": "sid", "forky": "sid"}
_SCRIPTS = Path("/usr/share/debootstrap/scripts")


def cache() -> Path:
    """The folder that holds what is made once: ``$FLEETCLEAN_CACHE``, else ``~/.cache/fleetclean``."""
    return Path(os.environ.get("FLEETCLEAN_CACHE") or Path.home() / ".cache" / "fleetclean")


def path(suite: str) -> Path:
    """Where the root file system of ``suite`` is, or would be."""
    return cache() / "roots" / suite


def made(suite: str) -> bool:
    """Whether the root file system of ``suite`` is there and whole."""
    return path(suite).is_dir()


def mirror() -> str:
    """The Debian mirror: ``$FLEETCLEAN_MIRROR``, else Debian's own front."""
    return os.environ.get("FLEETCLEAN_MIRROR") or "http://deb.debian.org/debian"


def available(suite: str) -> Optional[str]:
    """Why ``suite`` cannot be used here; None when it is made already or can be made."""
    if suite not in SUITES:
        return f"no such suite: {suite} (known: {', '.join(SUITES)})"
    if made(suite):
        return None
    if os.geteuid() != 0:
        return "making a root file system needs root"
    if shutil.which("debootstrap") is None:
        return "debootstrap is missing (apt-get install debootstrap)"
    if _script(suite) is None:
        return f"debootstrap has no script for {suite}"
    return None


def make(suite: str, log: Optional[Path] = None) -> Path:
    """Make the root file system of ``suite`` unless it is there (about a minute and 400 MB); its path.

    Another process that makes the same one is waited for. Raises :class:`FleetError` with the end of debootstrap's output.
    """
    reason = available(suite)
    if reason:
        raise FleetError(reason)
    roots = cache() / "roots"
    roots.mkdir(parents=True, exist_ok=True)
    with locked(roots / f".{suite}.lock"):
        if made(suite):
            return path(suite)
        for stale in roots.glob(f".{suite}.making-*"):
            shutil.rmtree(stale, ignore_errors=True)
        target = Path(tempfile.mkdtemp(prefix=f".{suite}.making-", dir=roots))
        try:
            _debootstrap(suite, target, log)
            _slim(target)
            target.chmod(0o755)
            target.rename(path(suite))
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
    return path(suite)


def _script(suite: str) -> Optional[Path]:
    for name in (suite, _SCRIPT_STAND_INS.get(suite, suite)):
        if (_SCRIPTS / name).exists():
            return _SCRIPTS / name
    return None


def _debootstrap(suite: str, target: Path, log: Optional[Path]) -> None:
    packages = list(_PACKAGES)
    if suite not in _WITHOUT_CLIENT_PACKAGE:
        packages.append("docker-cli")
    # In namespaces of its own, since debootstrap mounts inside its target and starts what packages start: a kill leaves neither.
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--",
               "debootstrap", "--variant=minbase", f"--include={','.join(packages)}", suite, str(target), mirror(), str(_script(suite))]
    parent = os.getpid()
    # Nor may it go on without the lock that its caller holds.
    done = subprocess.run(command, preexec_fn=lambda: die_with_parent(parent), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace")
    if log:
        log.write_text(done.stdout)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        raise FleetError(f"debootstrap of {suite} failed: " + " | ".join(lines[-3:]))


def _slim(target: Path) -> None:
    """Take away what a test host never reads: apt's lists and archives, documentation, translations."""
    for folder in ("var/lib/apt/lists", "var/cache/apt", "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info"):
        shutil.rmtree(target / folder, ignore_errors=True)
        (target / folder).mkdir(parents=True, exist_ok=True)


@contextmanager
def locked(lock: Path) -> Iterator[None]:
    with open(lock, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
