"""Control groups of hosts: made outside, so that they can be taken away after whatever end.

Each host has a group ``fleetclean-<token>/<host>`` in every hierarchy (version 1 and 2). Its cgroup namespace is rooted there, so
all that its engine makes lies below it.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_NOT_FOR_MOUNT = ("rw", "ro", "seclabel", "xattr")


@dataclass(frozen=True)
class Hierarchy:
    """One mounted cgroup hierarchy: where, ``cgroup`` or ``cgroup2``, and the options that name its controllers."""

    where: Path
    fstype: str
    options: str


def hierarchies() -> list[Hierarchy]:
    """The hierarchies mounted on this machine, in the order of mounting."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fstype, _, options = after.split(" ", 2)
        if fstype not in ("cgroup", "cgroup2"):
            continue
        where = before.split(" ")[4]
        wanted = [] if fstype == "cgroup2" else [o for o in options.split(",") if o not in _NOT_FOR_MOUNT and not o.startswith("release_agent")]
        found[where] = Hierarchy(Path(where), fstype, ",".join(wanted))
    return list(found.values())


def make(token: str, host: str) -> list[Path]:
    """Make the host's group in every hierarchy; the folders."""
    made = []
    for hierarchy in hierarchies():
        for folder in (hierarchy.where / token, hierarchy.where / token / host):
            folder.mkdir(exist_ok=True)
            # A cpuset of version 1 takes no process before it is told its processors and memory nodes.
            for name in ("cpuset.cpus", "cpuset.mems"):
                if hierarchy.fstype == "cgroup" and (folder / name).exists():
                    (folder / name).write_text((folder.parent / name).read_text())
        made.append(hierarchy.where / token / host)
    return made


def enter(folders: list[Path]) -> None:
    """Move the calling process into ``folders``; for use between fork and exec."""
    for folder in folders:
        with open(folder / "cgroup.procs", "w") as handle:
            handle.write("0")


def remove(token: str, timeout: float = 10.0) -> list[Path]:
    """Remove the fleet's groups; those still there after ``timeout`` seconds (a group is busy until its last process is gone)."""
    deadline = time.monotonic() + timeout
    while True:
        left = [top for hierarchy in hierarchies() if (top := hierarchy.where / token).is_dir() and not _remove_tree(top)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def _remove_tree(top: Path) -> bool:
    for folder, _, _ in os.walk(top, topdown=False):
        try:
            os.rmdir(folder)
        except OSError:
            pass
    return not top.is_dir()
