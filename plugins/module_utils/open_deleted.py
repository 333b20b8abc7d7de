# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find files that were deleted while a process holds them open: ``df`` counts them, ``du`` does not.

What decides is what the kernel says of the open file (link count, blocks), never what it is called: a process in a
container has paths of its own. Only filesystems that the caller names are looked at, and nothing is asked of any other,
since a file of a network filesystem may never answer: which mount an open file is on, its fdinfo tells without asking.

A container's file is on an overlay, its blocks on the filesystem of the overlay's upper folder. There a deleted file of
an image still has its link (fs/overlayfs/inode.c, ovl_getattr), and its blocks stay with the image: it does not count.

Any user may have as many files open as he likes, and write into the options of an overlay of his own any path: of a process no more than
``_MOST_OPEN`` files are looked at, of all no longer than ``_PATIENCE``, and the upper folder of an overlay that only mount namespaces of other user
namespaces have is looked for within these.

Not seen: files that only the kernel holds (a loop device's, a socket's queue), those in a mount that no namespace has any
more, and those that a thread has apart from its process.
Sources: proc_pid_fd(5), proc_pid_fdinfo(5), proc_pid_maps(5), proc_pid_map_files(5), proc_pid_mountinfo(5).
"""

from __future__ import annotations

import errno
import heapq
import os
import re
import stat
import time
import typing as t
from collections import defaultdict
from dataclasses import dataclass, field

from ansible_collections.fleetclean.docker.plugins.module_utils.extents import SHARED, mapped
from ansible_collections.fleetclean.docker.plugins.module_utils.safe_open import open_regular_of_process

_DELETED = " (deleted)"
_MOUNT_ID = re.compile(rb"^mnt_id:\s*(\d+)", re.MULTILINE)
_CONTAINER = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_UNIT = re.compile(r"[^/]+\.(?:service|scope)")
#: Where files share blocks; there a file's blocks alone do not tell what comes free with it.
_REFLINKS = frozenset(("xfs", "btrfs", "bcachefs", "ocfs2"))
#: Filesystems that are not asked whether a path exists.
_REMOTE = ("nfs", "cifs", "smb", "fuse", "9p", "ceph", "afs", "gluster", "lustre", "autofs")
#: The kernel follows no more of them (fs/namei.c, MAXSYMLINKS).
_MOST_LINKS = 40
#: From here on a file that one process has by an overlay and another by its upper folder is counted once.
_ALIAS_MIN_BYTES = 1 << 20
#: Files that are looked at of one process, deleted files that are told from each other, and seconds for all of it: more is not read.
_MOST_OPEN, _MOST_DELETED, _PATIENCE = 1 << 18, 1 << 17, 60.0
_MOST_MOUNTS = 1 << 17
#: So many namespaces an overlay of a user's is looked for in.
_MOST_NAMESPACES = 8


class Holder(t.NamedTuple):
    """A process. ``unit`` is systemd's, ``container`` an id, each empty if there is none; ``user`` the effective user's id."""

    pid: int
    command: str = ""
    user: int | None = None
    unit: str = ""
    container: str = ""


class DeletedFile(t.NamedTuple):
    """One deleted file. ``path`` is the one that its holder had it by; ``bytes`` come free when the last process lets go of it.

    ``device`` is the filesystem's in the mount table. ``is_mapped``: the first holder has it in memory, without a descriptor.
    """

    path: str
    bytes: int
    device: str
    inode: tuple[int, int]
    holder: Holder
    is_mapped: bool = False
    processes: int = 1


@dataclass
class DeletedFiles:
    """``largest`` are files, the largest first; ``bytes`` and ``counts`` are of all that have blocks, by filesystem.

    ``unread`` processes could not be looked into, or not to the end.
    """

    largest: list[DeletedFile] = field(default_factory=list)
    bytes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    unread: int = 0


def find(devices: t.Collection[str], layer_folders: t.Sequence[str] = (), top: int = -1) -> DeletedFiles:
    """Look through all processes of this process namespace but this one.

    :param devices: the filesystems to look at, as the mount table names them ("8:1"); one for all subvolumes of a btrfs.
    :param layer_folders: where an overlay's upper folder may be whose mount names it by a relative path.
    :param top: how many files to name; below zero all.
    """
    return _Search(frozenset(devices), layer_folders, top).run() if devices else DeletedFiles()


class _TooMany(Exception):
    """A process has more open than is looked at, or the time is over."""


class _Mount(t.NamedTuple):
    """A mount whose files' blocks are on a wanted filesystem."""

    device: str
    is_overlay: bool
    has_reflinks: bool


class _Line(t.NamedTuple):
    """One line of a mount table."""

    number: int
    device: str
    point: str
    type: str
    upper: str


class _Search:
    """One look through all processes."""

    def __init__(self, devices: frozenset[str], layer_folders: t.Sequence[str], top: int) -> None:
        self._devices = devices
        self._layer_folders = layer_folders
        self._top = top
        self._mounts: dict[int, _Mount] = {}
        #: By device in a process's map of its memory.
        self._by_device: dict[str, _Mount] = {}
        #: Mount namespaces whose root is a wanted overlay.
        self._on_overlay: set[str] = set()
        self._holders: dict[int, int] = {}
        self._aliases: dict[tuple[str, int, int], bool] = {}
        self._heap: list[tuple[int, int, DeletedFile]] = []
        #: Of the process that is looked at: its files, and who it is.
        self._mine: set[int] = set()
        self._who: Holder | None = None
        self._looked_at: set[tuple[bytes, bytes]] = set()
        self._seen = 0
        self._until = time.monotonic() + _PATIENCE
        self._found = DeletedFiles()

    def run(self) -> DeletedFiles:
        pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
        namespaces = self._namespaces(pids)
        self._read_mounts(namespaces)
        for pid in pids:
            if pid != os.getpid():
                self._process(pid, namespaces.get(pid, "") in self._on_overlay)
        self._found.largest = [
            entry._replace(processes=self._holders[_key(entry.inode)]) for _bytes, _order, entry in sorted(self._heap, key=lambda e: e[:2], reverse=True)
        ]
        return self._found

    # -- mounts --------------------------------------------------------------------------------

    @staticmethod
    def _namespaces(pids: t.Iterable[int]) -> dict[int, str]:
        found = {}
        for pid in pids:
            try:
                found[pid] = os.readlink(f"/proc/{pid}/ns/mnt")
            except OSError:
                continue
        return found

    def _read_mounts(self, namespaces: t.Mapping[int, str]) -> None:
        """Find the mounts of all namespaces that count."""
        first = {name: pid for pid, name in reversed(list(namespaces.items()))}
        own = list(_mount_table("self"))
        types = {line.device: line.type for line in own if line.device in self._devices}
        uppers: dict[str, str] = {}
        users: dict[str, tuple[str, list[int]]] = {}
        own_user = _namespace("self", "user")
        lines: list[tuple[str, _Line]] = []
        trusted = []
        # Those that were there first: the engine's and its containers' before most of what users make.
        for name, pid in [("", 0), *sorted(first.items(), key=lambda namespace: namespace[1])]:
            if name and (time.monotonic() > self._until or len(lines) > _MOST_MOUNTS):
                break
            is_users = bool(name) and _namespace(str(pid), "user") != own_user
            trusted += [pid] if name and not is_users else []
            for line in _mount_table(str(pid)) if name else own:
                if line.upper and is_users:
                    users.setdefault(line.device, (line.upper, []))[1].append(pid)
                elif line.upper:
                    uppers.setdefault(line.device, line.upper)
                if line.upper or line.device in self._devices:
                    # The rest of it is not needed any more.
                    lines.append((name, line._replace(upper="")))
        located = self._locate(uppers, own, trusted)
        located.update(self._locate_users({device: found for device, found in users.items() if device not in uppers}))
        for name, line in lines:
            is_wanted = line.device in self._devices  # which may be an overlay, too
            device = line.device if is_wanted else located.get(line.device)
            if device is None:
                continue
            mount = _Mount(device, not is_wanted, types.get(device, line.type) in _REFLINKS)
            self._mounts[line.number] = self._by_device.setdefault(line.device, mount)
            if mount.is_overlay and line.point == "/":
                self._on_overlay.add(name)

    def _locate(self, uppers: t.Mapping[str, str], own: t.Sequence[_Line], pids: t.Iterable[int]) -> dict[str, str]:
        """The filesystem of each overlay's upper folder, if it is a wanted one; by the overlay's device.

        The folder's path is that of whoever mounted it: mostly the engine here, maybe one in a container.
        """
        found: dict[str, str] = {}
        todo = dict(uppers)
        for prefix, table in self._tables(own, pids):
            points = {line.point: line for line in table}
            for overlay, upper in list(todo.items()):
                for place in [upper] if upper.startswith("/") else [f"{folder}/{upper}" for folder in self._layer_folders]:
                    real = _resolved(prefix, place, points)
                    line = _mount_at(points, real) if real else None
                    if line:
                        del todo[overlay]
                        if line.device in self._devices:
                            found[overlay] = line.device
                        break
            if not todo:
                return found
        # Whose folder is gone from its place.
        points = {line.point: line for line in own}
        for overlay, upper in todo.items():
            place = upper if upper.startswith("/") or not self._layer_folders else self._layer_folders[0]
            line = _mount_at(points, _resolved("", place, points, gone=True) or place)
            if line and line.device in self._devices:
                found[overlay] = line.device
        return found

    def _locate_users(self, overlays: t.Mapping[str, tuple[str, t.Sequence[int]]]) -> dict[str, str]:
        """The same for overlays of other user namespaces, each with processes that have it: the path that is given for it is theirs."""
        found: dict[str, str] = {}
        tables: dict[int, dict[str, _Line]] = {}
        for overlay, (upper, pids) in overlays.items():
            for pid in pids[:_MOST_NAMESPACES]:
                if pid not in tables:
                    tables = {pid: {line.point: line for line in _mount_table(str(pid))}}
                places = [upper] if upper.startswith("/") else [f"{folder}/{upper}" for folder in self._layer_folders]
                real = next(filter(None, (_resolved(f"/proc/{pid}/root", place, tables[pid]) for place in places)), None)
                line = _mount_at(tables[pid], real) if real else None
                if line and line.device in self._devices:
                    found[overlay] = line.device
                if line or time.monotonic() > self._until:
                    break
        return found

    @staticmethod
    def _tables(own: t.Sequence[_Line], pids: t.Iterable[int]) -> t.Iterator[tuple[str, t.Iterable[_Line]]]:
        yield "", own
        for pid in pids:
            yield f"/proc/{pid}/root", _mount_table(str(pid))

    # -- processes -----------------------------------------------------------------------------

    def _process(self, pid: int, on_overlay: bool) -> None:
        self._mine, self._who, self._seen = set(), None, 0
        try:
            self._count()
            self._descriptors(pid, f"/proc/{pid}", on_overlay)
            if not self._has_memory(pid):
                # A kernel's thread, or a first thread that has ended while others go on with its files.
                for task in os.listdir(f"/proc/{pid}/task"):
                    if task != str(pid):
                        self._descriptors(pid, f"/proc/{pid}/task/{task}", on_overlay)
            self._mappings(pid, on_overlay)
        except (PermissionError, _TooMany):
            self._found.unread += 1
        except OSError:
            return  # it has ended

    def _count(self) -> None:
        self._seen += 1
        if self._seen > _MOST_OPEN or (self._seen % 1024 == 1 and time.monotonic() > self._until):
            raise _TooMany

    @staticmethod
    def _has_memory(pid: int) -> bool:
        with open(f"/proc/{pid}/statm", "rb") as stream:
            return not stream.read().startswith(b"0 ")

    def _descriptors(self, pid: int, folder: str, on_overlay: bool) -> None:
        with os.scandir(f"{folder}/fd") as entries:
            for entry in entries:
                self._count()
                try:
                    target = os.readlink(entry.path)
                except OSError as error:
                    if error.errno != errno.ENAMETOOLONG:
                        continue
                    target = _DELETED  # a path of more than 4,095 bytes
                # What was removed from an overlay's upper folder itself is not called deleted.
                if not target.endswith(_DELETED) and not (on_overlay and target.startswith("/")):
                    continue
                try:
                    with open(f"{folder}/fdinfo/{entry.name}", "rb") as stream:
                        number = _MOUNT_ID.search(stream.read(4096))
                    mount = self._mounts.get(int(number[1])) if number else None
                    if mount:
                        self._look(pid, entry.path, target, mount, is_mapped=False)
                except OSError:
                    continue

    def _mappings(self, pid: int, on_overlay: bool) -> None:
        denied = False
        with open(f"/proc/{pid}/maps", "rb") as stream:
            for line in stream:
                self._count()
                if not line.endswith(b" (deleted)\n") and not (on_overlay and b"/" in line):
                    continue
                parts = line.split(None, 5)
                if len(parts) < 6:
                    continue
                span, _rights, _offset, device, inode, _path = parts
                mount = self._by_device.get(_decimal(device))
                # Of a library each process has several pieces; one that is not deleted is looked at once.
                if not mount or (not line.endswith(b" (deleted)\n") and (device, inode) in self._looked_at):
                    continue
                self._looked_at.add((device, inode))
                try:
                    path = "/proc/{}/map_files/{:x}-{:x}".format(pid, *(int(part, 16) for part in span.split(b"-")))
                    self._look(pid, path, os.readlink(path), mount, is_mapped=True)
                except PermissionError:
                    denied = True
                except (OSError, ValueError):
                    continue
        if denied:
            self._found.unread += 1

    # -- files ---------------------------------------------------------------------------------

    def _look(self, pid: int, link: str, target: str, mount: _Mount, is_mapped: bool) -> None:
        status = os.stat(link)
        if status.st_nlink or not stat.S_ISREG(status.st_mode):
            return
        inode = (status.st_dev, status.st_ino)
        key = _key(inode)
        if key in self._mine:
            return
        if len(self._holders) >= _MOST_DELETED and key not in self._holders:
            raise _TooMany
        self._mine.add(key)
        self._holders[key] = self._holders.get(key, 0) + 1
        if self._holders[key] > 1:
            return
        size = status.st_blocks * 512
        if size >= _ALIAS_MIN_BYTES:
            # On one filesystem an overlay shows the inode number of the file below it.
            seen = self._aliases.setdefault((mount.device, status.st_ino, status.st_ctime_ns), mount.is_overlay)
            if seen != mount.is_overlay:
                return
        if size and mount.has_reflinks:
            size = max(0, size - _shared_bytes(link, inode))
        if not size:
            return  # a lock, mostly
        self._found.bytes[mount.device] += size
        self._found.counts[mount.device] += 1
        order = -len(self._holders)
        if self._top < 0 or len(self._heap) < self._top or (self._heap and (size, order) > self._heap[0][:2]):
            path = target[: -len(_DELETED)] if target.endswith(_DELETED) else target
            self._who = self._who or _holder(pid)
            entry = (size, order, DeletedFile(path, size, mount.device, inode, self._who, is_mapped))
            if self._top < 0 or len(self._heap) < self._top:
                heapq.heappush(self._heap, entry)
            else:
                heapq.heapreplace(self._heap, entry)


def _key(inode: tuple[int, int]) -> int:
    return inode[0] << 64 | inode[1]


def _decimal(device: bytes) -> str:
    """A device as the mount table writes it, of one as a process's map does."""
    major, _colon, minor = device.partition(b":")
    try:
        return f"{int(major, 16)}:{int(minor, 16)}"
    except ValueError:
        return ""


def _shared_bytes(link: str, inode: tuple[int, int]) -> int:
    """Bytes of an open file that other files have as well: they do not come free with it.

    The descriptor may be of something else by now, which is not opened, or of another file.
    """
    try:
        descriptor = open_regular_of_process(link, inode)
        try:
            return sum(extent.length for extent in mapped(descriptor) if extent.flags & SHARED)
        finally:
            os.close(descriptor)
    except OSError:
        return 0


def _namespace(pid: str, kind: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return ""


def _mount_table(pid: str) -> t.Iterator[_Line]:
    # Spaces in paths are octal escapes there; optional fields end with a dash.
    try:
        with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as stream:
            for line in stream:
                left, _dash, right = line.partition(" - ")
                parts, of = left.split(" "), right.split(" ")
                upper = next((option[9:] for option in of[-1].rstrip("\n").split(",") if option.startswith("upperdir=")), "")
                is_overlay = of[0] == "overlay"
                yield _Line(int(parts[0]), parts[2], _unescaped(parts[4]), of[0], _unescaped(upper) if is_overlay else "")
    except (OSError, IndexError, ValueError):
        return


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text) if "\\" in text else text


def _mount_at(points: t.Mapping[str, _Line], path: str) -> _Line | None:
    while path not in points and path not in ("", "/"):
        path = os.path.dirname(path)
    return points.get(path)


def _resolved(prefix: str, path: str, points: t.Mapping[str, _Line], gone: bool = False) -> str | None:
    """Where a path leads in the mount namespace of these mounts, links followed; None if it leads nowhere, or to where nothing is asked.

    :param prefix: under which this process sees that namespace's root.
    :param gone: what is not there any more is no link.
    """
    real, todo, links = "", path.split("/")[1:], 0
    while todo:
        name = todo.pop(0)
        if name in ("", "."):
            continue
        if name == "..":
            real = os.path.dirname(real).rstrip("/")
            continue
        here = f"{real}/{name}"
        line = _mount_at(points, here)
        if line and line.type.startswith(_REMOTE):
            return None
        try:
            target = os.readlink(prefix + here)
        except OSError as error:
            if error.errno == errno.EINVAL or (gone and error.errno == errno.ENOENT):
                real = here
                continue
            return None
        links += 1
        if links > _MOST_LINKS:
            return None
        real = "" if target.startswith("/") else real
        todo = target.split("/") + todo
    return real or "/"


def _holder(pid: int) -> Holder:
    """Who a process is, as far as it still says so."""
    command, user, groups = _read(f"/proc/{pid}/comm").rstrip("\n"), None, _read(f"/proc/{pid}/cgroup")
    ids = re.search(r"^Uid:\s*\d+\s+(\d+)", _read(f"/proc/{pid}/status"), re.MULTILINE)
    if ids:
        user = int(ids[1])
    # Lines are number, controllers, path; of version 1 there are several, and not all need to know the unit.
    paths = [line.split(":", 2)[-1] for line in groups.splitlines()]
    containers = [found for path in paths for found in _CONTAINER.findall(path)]
    if containers:
        return Holder(pid, command, user, container=containers[-1])
    units = [found for path in paths for found in [part for part in path.split("/") if _UNIT.fullmatch(part)][-1:]]
    return Holder(pid, command, user, unit=next((unit for unit in units if unit.endswith(".service")), units[0] if units else ""))


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            return stream.read(65536)
    except OSError:
        return ""
