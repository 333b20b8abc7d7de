# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An unprivileged user of a host who has files open that seem to be the engine's: by a mount of his own that he has detached.

The kernel writes the path of such a file from the root of its mount on, so the user chooses all of it. The process has the user and group 65534,
no groups besides, and a user namespace in which it is root.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import List, Sequence, Tuple

from tests.fleet.system import children

USER = 65534
#: Makes folders and files in a tmpfs that nobody sees, has them open (deleted or not) and says their descriptors; then it stays.
_SCRIPT = """
import os, subprocess, sys
place, *files = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
opened = []
for name in files:
    deleted, path = name[0] == "-", place + name[1:]
    os.makedirs(os.path.dirname(path), exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.write(descriptor, b"precious" * 8192)
    opened.append(descriptor)
for name in files:
    if name[0] == "-":
        os.unlink(place + name[1:])
os.chdir("/")
subprocess.run(["umount", "--lazy", place], check=True)
print(*opened, flush=True)
sys.stdin.read()
"""


#: In a user namespace: an overlay on a tmpfs of his own, whose folders have the paths of others on another filesystem. Holds a deleted file of it.
FAKED_OVERLAY = """
import os, subprocess, sys
top, below = sys.argv[1:]
def mount(*words):
    subprocess.run(["mount", *words], check=True)
mount("-t", "tmpfs", "none", top)
for name in ("lower", "upper", "work"):
    os.makedirs(below + "/" + name)
mount("-t", "overlay", "overlay", "-o", "userxattr,lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work" % (below, below, below), "/mnt")
kept = os.open("/mnt/gone", os.O_RDWR | os.O_CREAT)
os.write(kept, bytes(1 << 20))
os.unlink("/mnt/gone")
print("ready", flush=True)
sys.stdin.read()
"""
#: Leads to where he is root of nothing but his own.
IN_USER_NAMESPACE = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "unshare", "--user", "--map-root-user", "--mount")


class Attacker:
    """His process. ``files`` are paths as he wants them to seem, with "-" before those that are to be deleted, "+" before others.

    ``before``: what leads to where he is (``Host.command``); ``place``: a folder there to mount on; ``python``: a program there.
    """

    def __init__(self, *files: str, before: Sequence[str] = (), place: str = "/mnt", python: str = "") -> None:
        self._process = subprocess.Popen(
            [*before, *IN_USER_NAMESPACE, python or os.path.realpath(sys.executable), "-c", _SCRIPT, place, *files],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/", env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )
        assert self._process.stdout is not None
        self.descriptors = [int(word) for word in self._process.stdout.readline().split()]
        assert len(self.descriptors) == len(files), "the attack itself does not work here"

    @property
    def pid(self) -> int:
        """Its number on this machine."""
        return next((pid for pid in (self._process.pid, *children(self._process.pid)) if _is_his(pid)), self._process.pid)

    def sizes(self) -> List[Tuple[str, int]]:
        """How his files seem to be called, and how large they are."""
        folder = f"/proc/{self.pid}/fd"
        return [(os.readlink(f"{folder}/{number}"), os.stat(f"{folder}/{number}").st_size) for number in self.descriptors]

    def end(self) -> None:
        """End it."""
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.communicate()


def _is_his(pid: int) -> bool:
    return f"Uid:\t{USER}\t" in Path(f"/proc/{pid}/status").read_text()


def works() -> bool:
    """Whether a user may have a user namespace on this machine, and this process may become one."""
    if os.geteuid() != 0:
        return False
    try:
        Attacker("+/x").end()
    except (AssertionError, OSError):
        return False
    return True
