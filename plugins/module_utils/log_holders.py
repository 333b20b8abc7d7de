# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which log files an engine has open for writing, and how: by what its processes hold, not by a program's name.

Only processes that see this very data root count: one in a container may have a folder of the same name.
Source: proc_pid_fdinfo(5), pidfd_getfd(2).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import stat
import typing as t
from dataclasses import dataclass

_LOG = r"([0-9a-f]{64})/(?:\1-json\.log|container-cached\.log|local-logs/container\.log|[^/]*log[^/]*)"
_DELETED = " (deleted)"
_PIDFD_OPEN, _PIDFD_GETFD = 434, 438  # the same on all architectures since Linux 5.3 and 5.6


@dataclass(frozen=True)
class OpenLog:
    """A log file that a process has open for writing. ``path`` as that process sees it; ``bytes`` are its blocks."""

    pid: int
    descriptor: int
    container: str
    path: str
    deleted: bool
    appends: bool
    bytes: int
    inode: tuple[int, int] = (0, 0)


class Holders:
    """The processes of one engine, and the logs that they hold open for writing in its containers' folder (by its real path).

    Needs the right to look into them; without it, or in another process namespace, there are none.
    """

    def __init__(self, root: str, containers: str = "") -> None:
        self._root = os.path.realpath(root)
        self._pattern = re.compile(re.escape(f"{os.path.realpath(containers) if containers else f'{self._root}/containers'}/") + _LOG)
        self._pids: set[int] = set()
        self.look_for_processes()

    def look_for_processes(self) -> None:
        """Find out anew which processes hold logs."""
        self._pids = {int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid() and self._sees_root(name)}
        self._pids = {log.pid for log in self.logs()}

    def logs(self) -> list[OpenLog]:
        """What is held at this moment."""
        return [log for pid in sorted(self._pids) for log in self._held(pid)]

    def of(self, descriptor: int) -> list[OpenLog]:
        """Who has this open file open as well, for writing."""
        found = os.fstat(descriptor)
        held = [log for log in self.logs() if log.inode == (found.st_dev, found.st_ino)]
        if held or self._pids:
            return held
        self.look_for_processes()  # the first container of an engine that had none
        return [log for log in self.logs() if log.inode == (found.st_dev, found.st_ino)]

    def _sees_root(self, pid: str) -> bool:
        try:
            here, there = os.stat(self._root), os.stat(f"/proc/{pid}/root{self._root}")
        except OSError:
            return False
        return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)

    def _held(self, pid: int) -> t.Iterator[OpenLog]:
        try:
            names = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            return
        for name in names:
            log = self._open_log(pid, name)
            if log:
                yield log

    def _open_log(self, pid: int, name: str) -> OpenLog | None:
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
            deleted = target.endswith(_DELETED)
            path = target[: -len(_DELETED)] if deleted else target
            match = self._pattern.fullmatch(path)
            if not match:
                return None
            with open(f"/proc/{pid}/fdinfo/{name}", encoding="ascii") as stream:
                flags = int(next(line for line in stream if line.startswith("flags:")).split()[1], 8)
            if flags & os.O_ACCMODE == os.O_RDONLY:
                return None  # a reader: `docker logs -f`
            held = os.stat(f"/proc/{pid}/fd/{name}")
            if not stat.S_ISREG(held.st_mode):
                return None
            inode = (held.st_dev, held.st_ino)
            return OpenLog(pid, int(name), match[1], path, deleted, bool(flags & os.O_APPEND), held.st_blocks * 512, inode)
        except (OSError, ValueError, StopIteration):
            return None


def make_append(log: OpenLog) -> bool:
    """Make an engine append that writes at an offset of its own, as it does after a rotation; return whether it does now.

    The flag belongs to the open file, which the engine shares with us for a moment; it sets the same flag itself on
    every log that it opens at a container's start.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    process = libc.syscall(ctypes.c_long(_PIDFD_OPEN), ctypes.c_int(log.pid), ctypes.c_uint(0))
    if process < 0:
        return False
    try:
        shared = libc.syscall(ctypes.c_long(_PIDFD_GETFD), ctypes.c_int(process), ctypes.c_int(log.descriptor), ctypes.c_uint(0))
    finally:
        os.close(process)
    if shared < 0:
        return False
    try:
        found = os.fstat(shared)
        if (found.st_dev, found.st_ino) != log.inode:
            return False  # the number was given to another file meanwhile
        fcntl.fcntl(shared, fcntl.F_SETFL, fcntl.fcntl(shared, fcntl.F_GETFL) | os.O_APPEND)
        return bool(fcntl.fcntl(shared, fcntl.F_GETFL) & os.O_APPEND)
    except OSError:
        return False
    finally:
        os.close(shared)


def give_back_deleted(log: OpenLog) -> int:
    """Empty a log file that somebody deleted while the engine held it open; return its bytes.

    Nobody can read it any more: `docker logs` opens the name, which is gone.

    :raises OSError: the descriptor is closed already, or may not be opened.
    """
    descriptor = os.open(f"/proc/{log.pid}/fd/{log.descriptor}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink or (found.st_dev, found.st_ino) != log.inode:
            return 0  # the number was given to another file meanwhile
        os.ftruncate(descriptor, 0)
        return found.st_blocks * 512
    finally:
        os.close(descriptor)
