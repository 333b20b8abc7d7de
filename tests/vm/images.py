"""What emulated machines boot from: made once by root.sh, and kept beside the test hosts' root file systems (see tests/fleet/roots.py)."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Optional

from tests.fleet import FleetError, roots
from tests.fleet.system import die_with_parent

KINDS = ("plain", "zfs")
_SCRIPT = Path(__file__).with_name("root.sh")
_PROGRAMS = {"debootstrap": "debootstrap", "mkfs.ext4": "e2fsprogs", "losetup": "mount", "fstrim": "util-linux"}
_MADE_FROM = "made-from"


def path(kind: str) -> Path:
    """Where the image of ``kind`` is, or would be: a folder, see root.sh."""
    return roots.cache() / "vm" / kind


def made(kind: str) -> bool:
    """Whether the image of ``kind`` is there, whole, and made as it would be made now."""
    try:
        return (path(kind) / _MADE_FROM).read_text() == _SCRIPT.read_text()
    except OSError:
        return False


def missing() -> Optional[str]:
    """Why no image can be made here; None when one can be."""
    if os.geteuid() != 0:
        return "making an image for emulated machines needs root"
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            return f"{program} is missing (apt-get install {package})"
    return None


def make(kind: str) -> Path:
    """Make the image of ``kind`` unless it is there; its folder.

    ``plain`` takes a minute and 1.2 GB of disk, ``zfs`` five minutes and 1.4 GB besides. Another process that makes one is waited for. Raises
    :class:`FleetError` with the end of the script's output.
    """
    parent = roots.cache() / "vm"
    parent.mkdir(parents=True, exist_ok=True)
    with roots.locked(parent / ".lock"):
        for needed in KINDS[:KINDS.index(kind) + 1]:
            if not made(needed):
                _make(needed, parent)
    return path(kind)


def _make(kind: str, parent: Path) -> None:
    reason = missing()
    if reason:
        raise FleetError(reason)
    for stale in parent.glob(".making-*"):
        shutil.rmtree(stale, ignore_errors=True)
    target = Path(tempfile.mkdtemp(prefix=".making-", dir=parent))
    try:
        # In namespaces of its own, since it mounts, and starts what packages start: a kill leaves neither.
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--",
                   "bash", str(_SCRIPT), kind, str(target), roots.mirror(), str(path("plain"))]
        own = os.getpid()
        # Nor may it go on without the lock.
        done = subprocess.run(command, preexec_fn=lambda: die_with_parent(own), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace")
        if done.returncode:
            lines = [line for line in done.stdout.splitlines() if line.strip()]
            raise FleetError(f"making the image {kind} failed:\n" + "\n".join(lines[-20:]))
        (target / "log").write_text(done.stdout)
        (target / _MADE_FROM).write_text(_SCRIPT.read_text())
        shutil.rmtree(path(kind), ignore_errors=True)
        target.rename(path(kind))
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
