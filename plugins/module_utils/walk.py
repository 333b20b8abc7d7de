# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a folder really takes: allocated blocks, and what removing it would give back on this filesystem.

One pass, without following a link: each folder is opened by name in the one above it. The work is cut into
units that several processes walk at once; a path that is somebody else's (``owners``) changes the
account on which everything below it goes. What is counted:

``disk``     allocated blocks (st_blocks * 512), a hard-linked file once, as ``du`` does.
``apparent`` the lengths of files: more than ``disk`` where they are sparse.
``shared``   the part of ``disk`` that other files have as well (reflinks, snapshots): ``du`` counts it each time.
``frees``    what the filesystem has more once all of it is gone. Measured: ext4 the blocks; xfs the blocks and the
             inodes; btrfs not the blocks of small files, which lie in its metadata, but their metadata. Shared
             extents give nothing.

Within a unit the lowest folder comes first, and what a later one shares with it is the first one's: so a layer
that is a snapshot or a copy of its parent is charged with what it has of its own.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import os
import platform
import resource
import signal
import stat
import struct
import typing as t
from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from types import MappingProxyType

from ansible_collections.fleetclean.docker.plugins.module_utils.extents import (
    INLINE,
    NODE,
    SHARED,
    mapped,
    metadata_copies,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.measure import (
    Mount,
    mounts_below,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import (
    COPIES,
    LINKS,
    SNAPSHOTS,
)

_EXAMPLES = 20
#: Of a hard-linked file: its key, and what it added to disk, apparent, shared and frees.
_LINK = 5
#: The root of a btrfs subvolume has always this inode number (btrfs_tree.h: BTRFS_FIRST_FREE_OBJECTID).
_SUBVOLUME_INODE = 256
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass
class Sizes:
    """Bytes, and how many inodes."""

    disk: int = 0
    apparent: int = 0
    shared: int = 0
    frees: int = 0
    inodes: int = 0

    def add(self, other: Sizes) -> None:
        self.disk += other.disk
        self.apparent += other.apparent
        self.shared += other.shared
        self.frees += other.frees
        self.inodes += other.inodes


@dataclass(frozen=True)
class Unit:
    """Folders that one process walks, in this order; each goes on the account of its own path in ``owners``.

    ``sharing``: how these folders have in common what is not there twice (see storage.py).
    """

    paths: tuple[str, ...]
    sharing: str = ""


@dataclass
class Found:
    """``sizes`` by account. ``self_contained``: accounts whose figures do not depend on any other's; the rest are ``entangled``.

    ``subvolumes``: by place, the bytes of ``disk`` in btrfs subvolumes, into which ``du -x`` does not look.
    ``links``: by account, what was counted for files with links elsewhere, ``_LINK`` numbers for each.
    ``extents``: by account, where extents lie that other files have as well, and their length.
    ``together``: what comes free once all of these accounts are gone, and in none of them yet.
    """

    sizes: dict[str, Sizes] = field(default_factory=dict)
    self_contained: set[str] = field(default_factory=set)
    entangled: set[str] = field(default_factory=set)
    mounts: list[Mount] = field(default_factory=list)
    subvolumes: dict[str, int] = field(default_factory=dict)
    unread: int = 0
    vanished: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)
    links: list[tuple[str, array[int]]] = field(default_factory=list)
    extents: list[tuple[str, array[int]]] = field(default_factory=list)
    together: dict[frozenset[str], int] = field(default_factory=dict)

    @property
    def in_subvolumes(self) -> int:
        return sum(self.subvolumes.values())

    def of(self, account: str) -> Sizes:
        return self.sizes.setdefault(account, Sizes())

    def fail(self, path: str, error: OSError) -> None:
        """Note what could not be read; what is gone meanwhile is no failure."""
        if error.errno in (errno.ENOENT, errno.ESTALE):
            self.vanished += 1
            return
        self.unread += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append((path, error.strerror or str(error)))

    def free_with(self, accounts: set[str], frees: int) -> None:
        """Note what comes free with the last of these accounts."""
        if len(accounts) == 1:
            self.of(*accounts).frees += frees
        else:
            together = frozenset(accounts)
            self.together[together] = self.together.get(together, 0) + frees

    def merge(self, other: Found) -> None:
        for account, sizes in other.sizes.items():
            self.of(account).add(sizes)
        self.entangled |= other.entangled
        self.self_contained = (self.self_contained | other.self_contained) - self.entangled
        # Everything that lies behind a mount meets it.
        known = {mount.path for mount in self.mounts}
        for mount in other.mounts:
            if mount.path not in known:
                known.add(mount.path)
                self.mounts.append(mount)
        for place, size in other.subvolumes.items():
            self.subvolumes[place] = self.subvolumes.get(place, 0) + size
        self.unread += other.unread
        self.vanished += other.vanished
        self.examples += other.examples[: _EXAMPLES - len(self.examples)]
        self.links += other.links
        self.extents += other.extents


@dataclass(frozen=True)
class Model:
    """What a filesystem gives back for a file besides its blocks.

    ``inode_bytes``: xfs frees the inode itself. ``inline``: btrfs keeps files up to this length in its metadata,
    of which it has ``copies``. ``reflinks``: files may share extents.
    """

    reflinks: bool = False
    inode_bytes: int = 0
    inline: int = -1
    copies: int = 0

    # Sizes of items: linux/btrfs_tree.h; each has a header of 25 bytes in its leaf. Measured: leaves are filled to
    # 86 % (empty, small and large files, 20,000 each).
    def metadata(self, name: int, size: int, blocks: int) -> int:
        """Bytes of btrfs' metadata for one file: inode, reference, two folder entries, and its content or its extents."""
        items = 330 + 3 * name
        if blocks:
            items += 46 + size if size <= self.inline else 156 + blocks // 8 * 4
        return items * self.copies * 100 // 86


_PLAIN = Model()


class Seen:
    """64-bit keys, in 16 to 32 bytes each: Python's own set takes five times that."""

    def __init__(self) -> None:
        self._mask = 1023
        self._keys = array("Q", bytes(8 * 1024))
        self._used = 0

    def add(self, key: int) -> bool:
        """Note a key; whether it is new."""
        key = key & 0xFFFFFFFFFFFFFFFF or 1 << 63
        keys, mask = self._keys, self._mask
        # Places on a disk are multiples of its blocks, inodes come in rows: all bits have to count.
        at = (key * 0x9E3779B97F4A7C15 >> 32) & mask
        while keys[at]:
            if keys[at] == key:
                return False
            at = (at + 1) & mask
        keys[at] = key
        self._used += 1
        if self._used * 2 > mask:
            self._grow()
        return True

    def _grow(self) -> None:
        before = self._keys
        self._mask = self._mask * 2 + 1
        self._keys = array("Q", bytes(8 * (self._mask + 1)))
        self._used = 0
        for key in before:
            if key:
                self.add(key)


def model_of(path: str, kind: str) -> Model:
    """How the filesystem at ``path``, of type ``kind``, gives space back."""
    if kind == "xfs":
        return Model(reflinks=True, inode_bytes=_xfs_inode(path))
    if kind == "btrfs":
        return Model(reflinks=True, inline=2048, copies=_metadata_copies(path))
    return Model(reflinks=kind in ("bcachefs", "ocfs2"))


def spare_processors(gentle: bool) -> int:
    """How many processors to use, at least one.

    :param gentle: at the lowest priority each is to spare, since whoever wants it has it. Else those that nobody uses
        at this moment.
    """
    have = len(os.sched_getaffinity(0))
    if gentle:
        return min(8, have)
    try:
        with open("/proc/loadavg", encoding="ascii") as stream:
            running = int(stream.read().split()[3].partition("/")[0]) - 1
    except (OSError, ValueError, IndexError):
        running = 0
    return max(1, min(8, have - max(0, running)))


def give_way() -> None:
    """Let everybody else go first: nice 19, and the disk only when it is idle (ioprio_set(2))."""
    try:
        os.nice(19)
    except OSError:
        pass
    number = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "loongarch64": 30, "i686": 289, "ppc64le": 273, "s390x": 282}
    call = number.get(platform.machine())
    if call:
        ctypes.CDLL(None).syscall(ctypes.c_long(call), 1, 0, 3 << 13)  # this process, class idle


def walk(
    units: t.Sequence[Unit],
    owners: t.Mapping[str, str],
    models: t.Mapping[int, Model],
    processes: int = 1,
    known: t.Collection[str] = (),
    places: t.Mapping[str, str] = MappingProxyType({}),
) -> Found:
    """Walk all units and return what was found, by account.

    :param owners: absolute path -> account. A path that is a unit's own is walked there and nowhere else.
    :param known: paths that are not walked: what is in them is known already.
    :param models: by device number; what is not in it gives its blocks back.
    :param places: folders that are walked though another filesystem is mounted on them, and what tells the filesystem of each
        from others. Each is the path of a unit.
    :param processes: how many walk at once.
    """
    work = _Work(units, owners, models, known, places)
    found = Found()
    for part in work.all(processes):
        found.merge(part)
    _count_links_once(found)
    _free_extents_with_the_last(found)
    return found


def _count_links_once(found: Found) -> None:
    """A file with links in several units counts where the first of them was, and comes free with the last."""
    seen, again = Seen(), defaultdict(set)
    for account, numbers in found.links:
        sizes = found.of(account)
        for at in range(0, len(numbers), _LINK):
            key, disk, apparent, shared, frees = numbers[at:at + _LINK]
            if not seen.add(key):
                sizes.disk -= disk
                sizes.apparent -= apparent
                sizes.shared -= shared
                sizes.frees -= frees
                sizes.inodes -= 1
                again[key].add(account)
    for account, numbers in found.links if again else ():
        for at in range(0, len(numbers), _LINK):
            # The first place at which it comes by is the one that counted.
            others = again.pop(numbers[at], None)
            if others:
                found.of(account).frees -= numbers[at + _LINK - 1]
                found.free_with({account, *others}, numbers[at + _LINK - 1])
    found.links = []


def _free_extents_with_the_last(found: Found) -> None:
    """An extent in several files comes free with the last of them. One that was met once has its others elsewhere, and stays."""
    seen, again = Seen(), defaultdict(set)
    for account, numbers in found.extents:
        for place in numbers[::2]:
            if not seen.add(place):
                again[place].add(account)
    for account, numbers in found.extents if again else ():
        for place, length in zip(numbers[::2], numbers[1::2]):
            others = again.pop(place, None)
            if others:
                found.free_with({account, *others}, length)
    found.extents = []


#: What forked processes work on: they have it from the process that they come from, without a copy.
_WORK: _Work | None = None


def _walk_one(number: int) -> Found:
    return t.cast("_Work", _WORK).one(number)


def _give_memory_back() -> None:
    """What is free in this process is the host's again, before each worker has a copy of it (glibc keeps it otherwise)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class _Work:
    def __init__(
        self,
        units: t.Sequence[Unit],
        owners: t.Mapping[str, str],
        models: t.Mapping[int, Model],
        known: t.Collection[str],
        places: t.Mapping[str, str],
    ) -> None:
        self._units = units
        roots = {path for unit in units for path in unit.paths}
        self._plan = _Plan(
            owners=owners,
            apart=roots | set(known),
            parents={path.rpartition("/")[0] or "/" for path in (*owners, *roots, *known)},
            models=models,
            mounts={mount.path: mount for mount in mounts_below(roots) if mount.path not in places},
            disks={path: (os.stat(path).st_dev, list(places.values()).index(disk)) for path, disk in places.items()},
        )
        # As many folders are open as a tree is deep.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else max(soft, 65536), hard))

    def all(self, processes: int) -> t.Iterator[Found]:
        """What each unit came to."""
        done = 0
        if processes > 1 and len(self._units) > 1:
            for part in self._forked(processes):
                yield part
                done += 1
        for number in range(done, len(self._units)):
            yield self.one(number)

    def _forked(self, processes: int) -> t.Iterator[Found]:
        """In several processes; ends early, without a word, where that cannot be."""
        global _WORK  # pylint: disable=global-statement
        try:
            import multiprocessing
            from concurrent.futures import ProcessPoolExecutor
            from concurrent.futures.process import BrokenProcessPool

            _WORK = self
            _give_memory_back()
            count = len(self._units)
            pool = ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), _end_with_parent)
        except (ImportError, OSError, ValueError, NotImplementedError):
            return  # no semaphores here, or no fork
        try:
            with pool:
                yield from pool.map(_walk_one, range(count), chunksize=max(1, min(16, count // (processes * 8))))
        except (BrokenProcessPool, OSError):
            return  # one was killed, as the largest are when memory is short
        finally:
            _WORK = None

    def one(self, number: int) -> Found:
        """Walk one unit."""
        unit = self._units[number]
        found = Found()
        seen = Seen()
        for path in unit.paths:
            mount = self._plan.foreign(path)
            if mount:
                found.mounts.append(mount)  # a layer's device while its container runs, a volume's own disk
                continue
            _Walk(self._plan, unit.sharing, seen, found).tree(path)
        return found


@dataclass(frozen=True)
class _Plan:
    """What all units have in common. ``apart`` are walked elsewhere, ``parents`` the folders right above such and owned paths.

    ``disks``: by place the device number there, and a small number that tells its filesystem from others.
    """

    owners: t.Mapping[str, str]
    apart: t.Collection[str]
    parents: t.Collection[str]
    models: t.Mapping[int, Model]
    mounts: t.Mapping[str, Mount]
    disks: t.Mapping[str, tuple[int, int]]

    def place(self, path: str) -> str:
        """The place that a path lies in; "" if none was named."""
        while path not in self.disks:
            if path in ("", "/"):
                return ""
            path = os.path.dirname(path)
        return path

    def foreign(self, path: str) -> Mount | None:
        """The other filesystem in which a path lies, if it does."""
        while path and path != "/" and path not in self.disks:
            mount = self.mounts.get(path)
            if mount and not mount.own:
                return mount
            path = os.path.dirname(path)
        return None

    def model(self, device: int, place: str = "") -> Model:
        found = self.models.get(device)
        if found is None:
            # The subvolumes of one btrfs have a number each.
            models = [self.models.get(self.disks[place][0], _PLAIN)] if place else self.models.values()
            found = next((model for model in models if model.copies), _PLAIN)
        return found


class _Walk:
    """One folder of a unit, from its top to its leaves."""

    def __init__(self, plan: _Plan, sharing: str, seen: Seen, found: Found) -> None:
        self._plan, self._sharing, self._seen, self._found = plan, sharing, seen, found
        self._links = seen if sharing == LINKS else Seen()
        self._linked: dict[str, array[int]] = {}
        self._extents: dict[str, array[int]] = {}
        self._open_links = 0
        self._shares = False
        self._place = ""
        self._disk = 0

    def tree(self, path: str) -> None:
        self._place = self._plan.place(path)
        if self._place:
            # Where an extent lies says something on its own disk alone.
            self._disk = (self._plan.disks[self._place][1] & 0xFF) << 56
        account = self._plan.owners.get(path, path)
        try:
            top = os.lstat(path)
            if not stat.S_ISDIR(top.st_mode):
                self._file(path, None, os.path.basename(path), top, account, self._plan.model(top.st_dev, self._place))
                self._finish(account)
                return
            descriptor = os.open(path, _FOLDER)
        except OSError as error:
            self._found.fail(path, error)
            return
        # (path, descriptor, its folders that are still to be walked, device, account)
        stack: list[tuple[str, int, list[str], int, str]] = []
        try:
            own = os.fstat(descriptor)
            stack.append((path, descriptor, self._folder(path, descriptor, own, account), own.st_dev, account))
        except OSError as error:
            os.close(descriptor)
            self._found.fail(path, error)
            return
        try:
            while stack:
                above, descriptor, folders, device, mine = stack[-1]
                if not folders:
                    os.close(descriptor)
                    stack.pop()
                    continue
                name = folders.pop()
                below = f"{above}/{name}"
                owner = mine
                if above in self._plan.parents:
                    if below in self._plan.apart:
                        continue
                    owner = self._plan.owners.get(below, mine)
                mount = self._plan.mounts.get(below)
                if mount and not mount.own:  # before it is opened: a dead NFS server would hold us
                    self._found.mounts.append(mount)
                    continue
                try:
                    inner = os.open(name, _FOLDER, dir_fd=descriptor)
                except OSError as error:
                    self._found.fail(below, error)
                    continue
                try:
                    own = os.fstat(inner)
                    if self._elsewhere(below, own, device):
                        os.close(inner)
                        continue
                    stack.append((below, inner, self._folder(below, inner, own, owner), own.st_dev, owner))
                except OSError as error:
                    os.close(inner)
                    self._found.fail(below, error)
        finally:
            for entry in stack:
                os.close(entry[1])
        self._finish(account)

    def _finish(self, account: str) -> None:
        self._found.extents += self._extents.items()
        if self._open_links and self._sharing != LINKS:
            self._found.links += self._linked.items()
        elif not self._sharing and not self._shares and account not in self._found.entangled:
            self._found.self_contained.add(account)
            return
        self._found.entangled.add(account)
        self._found.self_contained.discard(account)

    def _elsewhere(self, path: str, own: os.stat_result, device: int) -> bool:
        """Whether another filesystem came to be mounted there; then it is named and left alone."""
        if own.st_dev == device or path in self._plan.mounts:
            return False
        if own.st_ino == _SUBVOLUME_INODE and self._plan.model(device, self._place).copies:
            return False  # a subvolume: a folder with a device number of its own
        self._found.mounts.append(Mount(path, "", False))
        return True

    def _folder(self, path: str, descriptor: int, own: os.stat_result, account: str) -> list[str]:
        """Count a folder and its files; return the names of the folders in it."""
        model = self._plan.model(own.st_dev, self._place)
        sizes = self._found.of(account)
        inherited = self._sharing == SNAPSHOTS and not self._seen.add(_identity(path.rpartition("/")[2], own))
        blocks = own.st_blocks * 512
        sizes.disk += blocks
        sizes.inodes += 1
        if inherited:
            sizes.shared += blocks
        elif model.copies:
            sizes.frees += model.metadata(24, 0, 0)
            if own.st_ino == _SUBVOLUME_INODE:
                sizes.frees += model.copies * NODE  # a tree of its own, be it ever so small
        else:
            sizes.frees += blocks + model.inode_bytes
        folders: list[str] = []
        claimed = path in self._plan.parents
        plain = not (claimed or model.reflinks or self._sharing)
        disk = apparent = inodes = 0
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.name)
                        continue
                    try:
                        found = entry.stat(follow_symlinks=False)
                    except OSError as error:
                        self._found.fail(f"{path}/{entry.name}", error)
                        continue
                    if plain and found.st_nlink == 1:
                        # Almost every file there is; the rest is slower.
                        disk += found.st_blocks
                        apparent += found.st_size
                        inodes += 1
                        continue
                    its = account
                    if claimed:
                        below = f"{path}/{entry.name}"
                        if below in self._plan.apart:
                            continue
                        its = self._plan.owners.get(below, account)
                    self._file(path, descriptor, entry.name, found, its, model)
        except OSError as error:
            self._found.fail(path, error)
        sizes.disk += disk * 512
        if own.st_dev not in self._plan.models:
            self._in_subvolume(blocks + disk * 512)
        sizes.apparent += apparent
        sizes.inodes += inodes
        sizes.frees += disk * 512 + inodes * model.inode_bytes
        return folders

    def _in_subvolume(self, size: int) -> None:
        self._found.subvolumes[self._place] = self._found.subvolumes.get(self._place, 0) + size

    def _file(
        self, path: str, folder: int | None, name: str, found: os.stat_result, account: str, model: Model
    ) -> None:
        key = (found.st_ino ^ found.st_dev << 48) & 0xFFFFFFFFFFFFFFFF
        if found.st_nlink > 1:
            if not self._links.add(key):
                self._open_links -= 1
                return
            self._open_links += found.st_nlink - 1
        blocks = found.st_blocks * 512
        inline = found.st_size <= model.inline
        shared = frees = 0
        if self._sharing == SNAPSHOTS and not self._seen.add(_identity(name, found)):
            shared = blocks
        else:
            if model.reflinks and blocks and not inline and stat.S_ISREG(found.st_mode):
                extents = self._shared(path, folder, name)
                everything = sum(length for _physical, length in extents)
                shared = min(blocks, everything)
                self._shares = self._shares or bool(shared)
                if self._sharing not in (COPIES, SNAPSHOTS):
                    mine = self._extents.setdefault(account, array("Q")) if extents else array("Q")
                    for physical, length in extents:  # compressed, they are longer than their blocks
                        mine.extend((physical ^ self._disk, length * shared // everything))
            if model.copies:
                frees = 0 if inline else blocks - shared
                frees += model.metadata(len(os.fsencode(name)), found.st_size, found.st_blocks)
            else:
                frees = blocks - shared + model.inode_bytes
        sizes = self._found.of(account)
        sizes.disk += blocks
        if found.st_dev not in self._plan.models:
            self._in_subvolume(blocks)
        sizes.apparent += found.st_size
        sizes.shared += shared
        sizes.frees += frees
        sizes.inodes += 1
        if found.st_nlink > 1 and self._sharing != LINKS:
            self._linked.setdefault(account, array("Q")).extend((key, blocks, found.st_size, shared, frees))

    def _shared(self, path: str, folder: int | None, name: str) -> list[tuple[int, int]]:
        """A file's extents that others have as well. Of copies and snapshots in the unit, the first one's are its own."""
        try:
            descriptor = os.open(
                name if folder is not None else path,
                os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                dir_fd=folder,
            )
        except OSError as error:
            self._found.fail(f"{path}/{name}" if folder is not None else path, error)
            return []
        try:
            return [
                extent for extent in _shared_extents(descriptor)
                if self._sharing not in (COPIES, SNAPSHOTS) or not self._seen.add(extent[0])
            ]
        except OSError:
            return []  # a file without extents to ask for
        finally:
            os.close(descriptor)


def _identity(name: str, found: os.stat_result) -> int:
    """What a file and its unchanged copy in a snapshot have in common, and two files never."""
    return hash((name, found.st_ino, found.st_ctime_ns, found.st_mtime_ns, found.st_size))


def _shared_extents(descriptor: int) -> t.Iterator[tuple[int, int]]:
    """Physical place and length of the extents that other files have as well."""
    for extent in mapped(descriptor):
        if extent.flags & SHARED and not extent.flags & INLINE:
            yield extent.physical, extent.length


def _xfs_inode(path: str) -> int:
    """Bytes of an inode: XFS_IOC_FSGEOMETRY_V1 (xfs_fs.h); 512 unless made otherwise."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            geometry = bytearray(112)
            fcntl.ioctl(descriptor, 0x80705864, geometry)
            size = struct.unpack_from("=7L", geometry)[6]
            return size if size in (256, 512, 1024, 2048) else 512
        finally:
            os.close(descriptor)
    except OSError:
        return 512


def _metadata_copies(path: str) -> int:
    """How often btrfs keeps its metadata: twice, unless it was made otherwise."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return metadata_copies(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        return 2
