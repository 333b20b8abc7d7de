# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell which processes of this host are an engine's: the one door for all that is believed of another process, or done to it.

Names prove nothing. Anybody may call a process ``dockerd``, and in a mount namespace of their own users give open files any path (a detached
mount has no path but the one within it). An engine is known by what nobody else has:

* it has the database of its volumes open for writing (``volumes/metadata.db``, 0600), told by device and inode: every engine since 1.11 keeps it
  open as long as it runs (``volume/service/store.go``), and nobody opens it who may not do with the host as he likes;
* all of its user ids are that of the database's owner, who is root or the owner of the data root;
* it sees this very data root at its path, and is in the control group of none of this engine's own containers;
* it is one process, or several of one program, and still the one that was looked at: same start, same program.

The engine itself writes the logs; no other process does (``daemon/logger``). Sources: proc_pid_stat(5), proc_pid_status(5), proc_pid_fdinfo(5),
ioctl_nsfs(2), pidfd_open(2), pidfd_getfd(2), pidfd_send_signal(2).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import stat
import sys
import typing as t
from contextlib import contextmanager
from functools import partial
from itertools import islice

from ansible_collections.fleetclean.docker.plugins.module_utils.safe_open import NotMeant, open_regular_of_process

#: The same on all architectures since Linux 5.1, 5.3 and 5.6.
_PIDFD_SEND_SIGNAL, _PIDFD_OPEN, _PIDFD_GETFD = 424, 434, 438
_DATABASE = "metadata.db"
_NAMESPACE_OWNER = 0xB704  # linux/nsfs.h: NS_GET_OWNER_UID, since Linux 4.11
_CONTAINER_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_USER_IDS = re.compile(r"^Uid:\s+([0-9]+)\s+([0-9]+)\s+([0-9]+)\s+([0-9]+)\s*$", re.MULTILINE)
_FLAGS = re.compile(r"^flags:\s+([0-7]+)\s*$", re.MULTILINE)
#: Bytes; what the kernel writes of a process or of an open file in these places is much less.
_MOST_TEXT = 1 << 16
#: Open files that are looked at of one process: in a container it may have millions.
_MOST_OPEN = 1 << 18

FileId = t.Tuple[int, int]


class Stat(t.NamedTuple):
    """What ``/proc/PID/stat`` tells: the state's letter, the parent, and when it started, in clock ticks since the host did."""

    state: str
    parent: int
    started: int


class Process(t.NamedTuple):
    """A process: a number may be another one's a moment later, so its start and its program (device, inode) belong to it."""

    pid: int
    started: int
    program: FileId

    def is_running(self) -> bool:
        """Whether the number still is this process's, and it has not ended or become another program."""
        return look(self.pid) == self


class Engine(t.NamedTuple):
    """The processes that are proven to be an engine's, and the user that it runs as; without any, ``why`` says what is missing."""

    processes: tuple[Process, ...] = ()
    user_id: int = -1
    devices: frozenset[int] = frozenset()
    why: str = ""


# -- what the kernel says of a process --------------------------------------------------------------


def parse_stat(text: str) -> Stat | None:
    """Read ``/proc/PID/stat``; a command's name may have blanks, parentheses and line ends in it. None for what is none."""
    fields = text.rpartition(")")[2].split()
    try:
        return Stat(fields[0], int(fields[1]), int(fields[19]))
    except (IndexError, ValueError):
        return None


def parse_user_ids(text: str) -> tuple[int, ...]:
    """Read the real, effective, saved and filesystem user out of ``/proc/PID/status``; () if they are not there."""
    match = _USER_IDS.search(text)
    return tuple(int(user) for user in match.groups()) if match else ()


def parse_flags(text: str) -> int | None:
    """Read an open file's flags out of ``/proc/PID/fdinfo/NUMBER``; None if they are not there."""
    match = _FLAGS.search(text)
    return int(match[1], 8) if match else None


def parse_container_ids(text: str) -> list[str]:
    """The ids of containers in the names of the control groups of ``/proc/PID/cgroup``, those nearest to the root first."""
    return list(dict.fromkeys(_CONTAINER_ID.findall(text)))


def read_text(path: str, folder: int | None = None) -> str:
    """Read what the kernel says in a file of ``/proc``.

    :param folder: a descriptor of the process's folder, which ``path`` is relative to.
    :raises OSError: the process has ended, or may not be looked at.
    """
    opener = None if folder is None else partial(os.open, dir_fd=folder)
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n", opener=opener) as stream:
        return stream.read(_MOST_TEXT)


def look(pid: int) -> Process | None:
    """The process that has this number now; None if there is none, it has ended, or it may not be looked at."""
    try:
        found = parse_stat(read_text(f"/proc/{pid}/stat"))
        if not found or found.state in ("Z", "X", "x"):
            return None
        program = os.stat(f"/proc/{pid}/exe")
    except OSError:
        return None
    return Process(pid, found.started, (program.st_dev, program.st_ino))


def user_ids(pid: int) -> tuple[int, ...]:
    """The four user ids of a process; () if it may not be looked at."""
    try:
        return parse_user_ids(read_text(f"/proc/{pid}/status"))
    except OSError:
        return ()


def user_namespace(pid: int) -> str:
    """Which user namespace a process is in, as the kernel calls it; "" if it may not be looked at."""
    try:
        return os.readlink(f"/proc/{pid}/ns/user")
    except OSError:
        return ""


def user_namespace_owner(pid: int) -> int | None:
    """The user who made the user namespace that a process is in; None where the kernel does not tell."""
    about = bytearray(4)
    try:
        descriptor = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, _NAMESPACE_OWNER, about)
        finally:
            os.close(descriptor)
    except OSError:
        return None
    return int.from_bytes(about, sys.byteorder)


def pids() -> list[int]:
    """All processes that can be seen but this one, those that started first mostly in front."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid())


def descriptors(pid: int) -> t.Iterator[str]:
    """The numbers of what a process has open, the lowest first, as far as they are looked at; none if it may not be looked at or has ended."""
    try:
        yield from names_in(f"/proc/{pid}/fd")
    except OSError:
        return


def names_in(folder: str | int) -> t.Iterator[str]:
    """The same by a process's folder of them."""
    with os.scandir(folder) as entries:
        for entry in islice(entries, _MOST_OPEN):
            yield entry.name


def open_for_writing(pid: int, number: str) -> bool:
    """Whether a process has a descriptor open for writing.

    :raises OSError: it is closed, or may not be looked at.
    """
    flags = parse_flags(read_text(f"/proc/{pid}/fdinfo/{number}"))
    return flags is not None and flags & os.O_ACCMODE != os.O_RDONLY and not flags & os.O_PATH


# -- the proof ----------------------------------------------------------------------------------------


def find_engine(root: str, containers: str, volumes: str) -> Engine:
    """Find the processes of the engine whose data root this is.

    :param root: the data root, proven to be the engine's.
    :param containers: where the folders of its containers really lie.
    :param volumes: where its volumes really lie.
    """
    path = f"{volumes}/{_DATABASE}"
    try:
        database, above = os.stat(path, follow_symlinks=False), os.stat(root)
        devices = frozenset((database.st_dev, os.stat(containers).st_dev))
    except OSError as error:
        return Engine(why=f"{error.filename}: {error.strerror}")
    if not stat.S_ISREG(database.st_mode) or database.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or database.st_uid not in (0, above.st_uid):
        return Engine(why=f"{path} is no file that only the engine may write")
    found: dict[Process, int] = {}
    for pid in pids():
        process = look(pid)
        if process and _is_engine(pid, root, containers, database) and process.is_running():
            found[process] = _parent(pid)
    # A child of the engine's has all that it has until it becomes another program.
    ours = {process.pid for process in found}
    processes = tuple(process for process, parent in found.items() if parent not in ours)
    if not processes:
        return Engine(why=f"no process that can be seen here is proven to be the engine: none of user {database.st_uid} has {path} open for writing")
    if len({process.program for process in processes}) > 1:
        numbers = ", ".join(str(process.pid) for process in processes)
        return Engine(why=f"several programs have {path} open for writing (processes {numbers})")
    return Engine(processes, database.st_uid, devices)


def _is_engine(pid: int, root: str, containers: str, database: os.stat_result) -> bool:
    """Whether all but the start is proven of a process."""
    if set(user_ids(pid)) != {database.st_uid}:
        return False
    try:
        # What a container has open is not even listed.
        return _sees(pid, root) and not _is_contained(pid, containers) and _holds(pid, database)
    except OSError:
        return False


def _holds(pid: int, database: os.stat_result) -> bool:
    for number in descriptors(pid):
        link = f"/proc/{pid}/fd/{number}"
        try:
            # The path only spares asking for files that are on a network or a user's own filesystem: they may never answer.
            if os.readlink(link).endswith(f"/{_DATABASE}") and os.path.samestat(os.stat(link), database) and open_for_writing(pid, number):
                return True
        except OSError:
            continue
    return False


def _sees(pid: int, root: str) -> bool:
    return os.path.samestat(os.stat(root), os.stat(f"/proc/{pid}/root{root}"))


def _is_contained(pid: int, containers: str) -> bool:
    """Whether a process is in one of this engine's own containers, by its control groups: what is there is no engine of theirs."""
    return any(os.path.lexists(f"{containers}/{ident}") for ident in parse_container_ids(read_text(f"/proc/{pid}/cgroup")))


def _parent(pid: int) -> int:
    try:
        found = parse_stat(read_text(f"/proc/{pid}/stat"))
    except OSError:
        return -1
    return found.parent if found else -1


# -- what is done to a process ------------------------------------------------------------------------


@contextmanager
def open_file(process: Process, number: int, expected: FileId, owner: int) -> t.Iterator[int]:
    """Open a regular file once more that a process has open, for writing: the one that is expected, and nothing else.

    :raises OSError: the descriptor is closed, or may not be opened.
    :raises ProcessLookupError: the process is another one, or the file is.
    """
    try:
        descriptor = open_regular_of_process(f"/proc/{process.pid}/fd/{number}", expected, os.O_WRONLY)
    except NotMeant as error:
        raise ProcessLookupError(f"descriptor {number} of process {process.pid}: {error}") from None
    try:
        if not process.is_running() or os.fstat(descriptor).st_uid != owner:
            raise ProcessLookupError(f"descriptor {number} of process {process.pid} is another file by now")
        yield descriptor
    finally:
        os.close(descriptor)


def take_descriptor(process: Process, number: int) -> int:
    """Get an open file of a process, the same that it has; -1 where the kernel does not give it (Linux 5.6) or the process is another one."""
    pinned = _pin(process)
    if pinned < 0:
        return -1
    try:
        return _syscall(_PIDFD_GETFD, ctypes.c_int(pinned), ctypes.c_int(number), ctypes.c_uint(0))
    finally:
        os.close(pinned)


def send_signal(process: Process, number: int) -> None:
    """Send a signal to this process and to no other that has its number by then, as far as the kernel can see to that (Linux 5.3).

    :raises ProcessLookupError: it has ended.
    """
    pinned = _pin(process)
    try:
        if pinned >= 0 and _syscall(_PIDFD_SEND_SIGNAL, ctypes.c_int(pinned), ctypes.c_int(number), None, ctypes.c_uint(0)) == 0:
            return
        if not process.is_running():
            raise ProcessLookupError(f"process {process.pid} has ended")
        os.kill(process.pid, number)
    finally:
        if pinned >= 0:
            os.close(pinned)


def _pin(process: Process) -> int:
    """A descriptor of the process; -1 where the kernel has none, or the number is another process's."""
    pinned = _syscall(_PIDFD_OPEN, ctypes.c_int(process.pid), ctypes.c_uint(0))
    # Looked at afterwards: it had this number all the time, so the descriptor is of no other.
    if pinned >= 0 and not process.is_running():
        os.close(pinned)
        return -1
    return pinned


def _syscall(number: int, *arguments: t.Any) -> int:
    return int(ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *arguments))
