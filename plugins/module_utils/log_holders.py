# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which log files an engine has open for writing, and how: by what its processes hold, not by a program's name.

Only processes that are proven to be this engine's count (``processes.find_engine``), and of what they hold only files that its user owns, on
the device of its logs: anybody can have open files that are called like a log of the engine's.
Source: proc_pid_fdinfo(5), pidfd_getfd(2).
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import typing as t

from ansible_collections.fleetclean.docker.plugins.module_utils import processes

_LOG = r"([0-9a-f]{64})/(?:\1-json\.log|container-cached\.log|local-logs/container\.log|[^/]*log[^/]*)"
_DELETED = " (deleted)"


class OpenLog(t.NamedTuple):
    """A log file that an engine has open for writing. ``path`` as its process sees it; ``bytes`` are its blocks; ``owner`` is a user's id."""

    process: processes.Process
    descriptor: int
    container: str
    path: str
    deleted: bool
    appends: bool
    bytes: int
    inode: tuple[int, int] = (0, 0)
    owner: int = -1

    @property
    def pid(self) -> int:
        """The number of the engine's process."""
        return self.process.pid


class Holders:
    """The processes of one engine, and the logs that they hold open for writing in its containers' folder (by its real path).

    Needs the right to look into them; without it, or in another process namespace, there are none.
    """

    def __init__(self, root: str, containers: str = "", volumes: str = "") -> None:
        self._root = os.path.realpath(root)
        self._containers = os.path.realpath(containers) if containers else f"{self._root}/containers"
        self._volumes = volumes or f"{self._root}/volumes"
        self._pattern = re.compile(re.escape(f"{self._containers}/") + _LOG)
        self.engine = processes.Engine()
        self.look_for_processes()

    def look_for_processes(self) -> None:
        """Find out anew which processes are the engine's."""
        self.engine = processes.find_engine(self._root, self._containers, self._volumes)

    def logs(self) -> list[OpenLog]:
        """What is held at this moment."""
        found = []
        for process in self.engine.processes:
            held = list(self._held(process)) if process.is_running() else []
            found += held if process.is_running() else []
        return found

    def of(self, descriptor: int) -> list[OpenLog]:
        """Who has this open file open as well, for writing."""
        found = os.fstat(descriptor)
        held = [log for log in self.logs() if log.inode == (found.st_dev, found.st_ino)]
        if held or any(process.is_running() for process in self.engine.processes):
            return held
        self.look_for_processes()  # it was started since
        return [log for log in self.logs() if log.inode == (found.st_dev, found.st_ino)]

    def _held(self, process: processes.Process) -> t.Iterator[OpenLog]:
        for name in processes.descriptors(process.pid):
            log = self._open_log(process, name)
            if log:
                yield log

    def _open_log(self, process: processes.Process, name: str) -> OpenLog | None:
        link = f"/proc/{process.pid}/fd/{name}"
        try:
            target = os.readlink(link)
            deleted = target.endswith(_DELETED)
            path = target[: -len(_DELETED)] if deleted else target
            match = self._pattern.fullmatch(path)
            if not match:
                return None
            flags = processes.parse_flags(processes.read_text(f"/proc/{process.pid}/fdinfo/{name}"))
            if flags is None or flags & os.O_ACCMODE == os.O_RDONLY:
                return None  # a reader: `docker logs -f`
            held = os.stat(link)
            if not stat.S_ISREG(held.st_mode) or held.st_uid != self.engine.user_id or held.st_dev not in self._devices(match[1]):
                return None
            inode = (held.st_dev, held.st_ino)
            return OpenLog(process, int(name), match[1], path, deleted, bool(flags & os.O_APPEND), held.st_blocks * 512, inode, held.st_uid)
        except (OSError, ValueError):
            return None

    def _devices(self, container: str) -> set[int]:
        """Where a log of this container can be: with the engine's data, or where its own folder is."""
        try:
            folder = os.stat(f"{self._containers}/{container}", follow_symlinks=False)
        except OSError:
            return set(self.engine.devices)
        return {*self.engine.devices, folder.st_dev} if stat.S_ISDIR(folder.st_mode) else set(self.engine.devices)


def make_append(log: OpenLog) -> bool:
    """Make an engine append that writes at an offset of its own, as it does after a rotation; return whether it does now.

    The flag belongs to the open file, which the engine shares with us for a moment; it sets the same flag itself on
    every log that it opens at a container's start.
    """
    shared = processes.take_descriptor(log.process, log.descriptor)
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
    """Empty a log file that somebody deleted while the engine held it open; return its bytes, 0 if the number is another file's by now.

    Nobody can read it any more: `docker logs` opens the name, which is gone.

    :raises OSError: the descriptor is closed already, or may not be opened.
    """
    try:
        with processes.open_file(log.process, log.descriptor, log.inode, log.owner) as descriptor:
            found = os.fstat(descriptor)
            if found.st_nlink:
                return 0
            os.ftruncate(descriptor, 0)
            return found.st_blocks * 512
    except ProcessLookupError:
        return 0
