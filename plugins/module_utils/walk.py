# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a folder really takes: allocated blocks, and what removing it would give back on this filesystem.

One pass, without following a link: each folder is opened by name in the one above it (descent.py), nothing but folders is
opened, and regular files where blocks may be shared (safe_open.py). The work is cut into
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

What is walked was made by containers, so what is remembered of it has bounds, whatever they make: see ``Limit``.
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
from dataclasses import dataclass, field
from itertools import chain
from types import MappingProxyType

from ansible_collections.fleetclean.docker.plugins.module_utils.accounts import Paths
from ansible_collections.fleetclean.docker.plugins.module_utils.descent import FIRST_LIMIT, Descent, Folders, Level, shorten
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
from ansible_collections.fleetclean.docker.plugins.module_utils.safe_open import DIRECTORY, open_directory, open_regular
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import (
    COPIES,
    LINKS,
    SNAPSHOTS,
)

_EXAMPLES = 20
#: Of a hard-linked file: its key, and what it added to disk, apparent, shared and frees.
_LINK = 5
#: Of an account: its number, and its sizes.
_FIGURES = 6
#: The root of a btrfs subvolume has always this inode number (btrfs_tree.h: BTRFS_FIRST_FREE_OBJECTID).
_SUBVOLUME_INODE = 256
#: Characters of a path in an example. A path may have megabytes.
_LONGEST_PATH = 1000
#: Numbers for files with links, and for extents, that others may have as well, in one process: 4 MB each.
_MOST_NUMBERS = 500_000
#: Of an extent: where it lies, and its length.
_EXTENT = 2
#: Keys that are remembered: 16 to 32 MB of files' identities and extents' places, and 8 MB of inodes, of which a row of 64 is one.
_MOST_KEYS, _MOST_ROWS = 1 << 20, 1 << 18


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

    def copy(self) -> Sizes:
        return Sizes(self.disk, self.apparent, self.shared, self.frees, self.inodes)


#: An account: its number, or the path of what is nobody's.
Key = t.Union[int, str]
#: So many accounts have an object each.
_FEW = 500
#: Numbers of an account's sizes.
_CELLS = 5


class Figures(t.MutableMapping[Key, Sizes]):
    """Sizes by account. Those of thousands stand in columns, so what is read is a copy; ``add`` adds to one.

    Accounts without a number, and figures that no 64 bits hold (files may be as long as they like, where nothing is in them), are objects.
    """

    def __init__(self, sizes: t.Mapping[Key, Sizes] | None = None) -> None:
        self._few: dict[Key, Sizes] = {}
        self._cells = array("q")
        self._used = bytearray()
        for account, its in (sizes or {}).items():
            self.add(account, its)

    def add(self, account: Key, its: Sizes) -> None:
        """Add to the sizes of an account, which has some from then on."""
        known = self._few.get(account)
        if known is not None:
            known.add(its)
        elif isinstance(account, str) or (not self._used and len(self._few) < _FEW):
            self._few[account] = its.copy()
        else:
            if not self._used:
                self._to_columns()
            self._add_to_columns(account, its)

    def _to_columns(self) -> None:
        few, self._few = self._few, {}
        self._room(1)
        for account, its in few.items():
            if isinstance(account, str):
                self._few[account] = its
            else:
                self._add_to_columns(account, its)

    def _room(self, count: int) -> None:
        more = count - len(self._used)
        if more > 0:
            more += len(self._used) // 8 + 1000
            self._used.extend(bytes(more))
            self._cells.frombytes(bytes(8 * _CELLS * more))

    def _add_to_columns(self, account: int, its: Sizes) -> None:
        self._room(account + 1)
        cells, at = self._cells, account * _CELLS
        try:
            mine = array("q", (
                cells[at] + its.disk, cells[at + 1] + its.apparent, cells[at + 2] + its.shared, cells[at + 3] + its.frees,
                cells[at + 4] + its.inodes,
            ))
        except OverflowError:
            known = self._in_columns(account)
            known.add(its)
            self._clear(account)
            self._few[account] = known
            return
        cells[at:at + _CELLS] = mine
        self._used[account] = 1

    def _clear(self, account: int) -> None:
        self._used[account] = 0
        self._cells[account * _CELLS:(account + 1) * _CELLS] = array("q", bytes(8 * _CELLS))

    def _in_columns(self, account: int) -> Sizes:
        return Sizes(*self._cells[account * _CELLS:(account + 1) * _CELLS])

    def get(self, key: Key, default: t.Any = None) -> t.Any:
        found = self._few.get(key)
        if found is None and isinstance(key, int) and key < len(self._used) and self._used[key]:
            return self._in_columns(key)
        return default if found is None else found.copy()

    def __contains__(self, account: object) -> bool:
        return account in self._few or (isinstance(account, int) and account < len(self._used) and bool(self._used[account]))

    def __getitem__(self, account: Key) -> Sizes:
        found = self.get(account)
        if found is None:
            raise KeyError(account)
        return t.cast(Sizes, found)

    def __setitem__(self, account: Key, its: Sizes) -> None:
        if account in self:
            del self[account]
        self.add(account, its)

    def __delitem__(self, account: Key) -> None:
        if account in self._few:
            del self._few[account]
        elif isinstance(account, int) and account in self:
            self._clear(account)
        else:
            raise KeyError(account)

    def __iter__(self) -> t.Iterator[Key]:
        yield from self._few
        yield from (number for number, used in enumerate(self._used) if used)

    def __len__(self) -> int:
        return len(self._few) + sum(self._used)

    def __bool__(self) -> bool:
        return bool(self._few) or 1 in self._used

    def total(self) -> Sizes:
        """The sum of all."""
        columns = (sum(self._cells[cell::_CELLS]) for cell in range(_CELLS)) if self._used else (0,) * _CELLS
        found = Sizes(*columns)
        for its in self._few.values():
            found.add(its)
        return found

    def copy(self) -> Figures:
        """The same figures, of which one may change without the other."""
        made = Figures()
        made._few = {account: its.copy() for account, its in self._few.items()}
        made._cells, made._used = self._cells[:], self._used[:]
        return made

    def packed(self) -> array[int]:
        """Take out what has numbers that fit; each account's number and its sizes."""
        found = array("q")
        for account, its in list(self._few.items()):
            try:
                found += array("q", (t.cast(int, account), its.disk, its.apparent, its.shared, its.frees, its.inodes))
            except (TypeError, OverflowError):
                continue
            del self._few[account]
        for number, used in enumerate(self._used):
            if used:
                found.append(number)
                found += self._cells[number * _CELLS:(number + 1) * _CELLS]
        self._cells, self._used = array("q"), bytearray()
        return found

    def unpack(self, packed: array[int]) -> None:
        """Add what another one's ``packed`` returned."""
        for at in range(0, len(packed), _FIGURES):
            self.add(packed[at], Sizes(*packed[at + 1:at + _FIGURES]))


class Unit(t.NamedTuple):
    """Folders that one process walks, in this order; each goes on the account of its own path in ``owners``.

    ``sharing``: how these folders have in common what is not there twice (see storage.py).
    """

    paths: tuple[str, ...]
    sharing: str = ""


class Limit:
    """What there was more of than is remembered, and how it counts then."""

    LINKS = "there are so many files with hard links that each name of some of them counts with its part of the file"
    ELSEWHERE = "there are so many files with hard links elsewhere that some of them count several times"
    EXTENTS = "there are so many shared extents that some of them are left out of what would come free"
    KEYS = "there are so many files in layers that share that some of them count as shared"


@dataclass
class Found:
    """``sizes`` by account. ``self_contained``: accounts whose figures do not depend on any other's; the rest are ``entangled``.

    ``subvolumes``: by place, the bytes of ``disk`` in btrfs subvolumes, into which ``du -x`` does not look.
    ``links``: by account, what was counted for files with links elsewhere, ``_LINK`` numbers for each.
    ``extents``: by account, where extents lie that other files have as well, and their length.
    ``together``: what comes free once all of these accounts are gone, and in none of them yet.
    ``limits``: bounds that were met, in words.
    """

    sizes: Figures = field(default_factory=Figures)
    self_contained: set[Key] = field(default_factory=set)
    entangled: set[Key] = field(default_factory=set)
    mounts: list[Mount] = field(default_factory=list)
    subvolumes: dict[str, int] = field(default_factory=dict)
    unread: int = 0
    vanished: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)
    links: list[tuple[Key, array[int]]] = field(default_factory=list)
    extents: list[tuple[Key, array[int]]] = field(default_factory=list)
    together: dict[frozenset[Key], int] = field(default_factory=dict)
    limits: set[str] = field(default_factory=set)

    @property
    def in_subvolumes(self) -> int:
        return sum(self.subvolumes.values())

    def fail(self, path: str, error: OSError) -> None:
        """Note what could not be read; what is gone meanwhile is no failure."""
        if error.errno in (errno.ENOENT, errno.ESTALE):
            self.vanished += 1
            return
        self.unread += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append((_shortened(path), error.strerror or str(error)))

    def free_with(self, accounts: set[Key], frees: int) -> None:
        """Note what comes free with the last of these accounts."""
        if len(accounts) == 1:
            (account,) = accounts
            self.sizes.add(account, Sizes(frees=frees))
        else:
            together = frozenset(accounts)
            self.together[together] = self.together.get(together, 0) + frees

    def merge(self, other: Found) -> None:
        """Add what was found elsewhere, which is this one's from then on."""
        if self.sizes:
            for account, sizes in other.sizes.items():
                self.sizes.add(account, sizes)
        else:
            self.sizes = other.sizes
        self.entangled |= other.entangled
        self.self_contained |= other.self_contained - self.entangled
        self.self_contained -= other.entangled
        # Everything that lies behind a mount meets it.
        known = {mount.path for mount in self.mounts} if other.mounts else set()
        for mount in other.mounts:
            if mount.path not in known:
                known.add(mount.path)
                self.mounts.append(mount)
        for place, size in other.subvolumes.items():
            self.subvolumes[place] = self.subvolumes.get(place, 0) + size
        self.unread += other.unread
        self.vanished += other.vanished
        self.examples += other.examples[: _EXAMPLES - len(self.examples)]
        self.limits |= other.limits
        for mine, theirs, limit in ((self.links, other.links, Limit.ELSEWHERE), (self.extents, other.extents, Limit.EXTENTS)):
            if _length(mine) + _length(theirs) <= _MOST_NUMBERS:
                mine += theirs
            else:
                self.limits.add(limit)


class _Packed(t.NamedTuple):
    """What a worker found, with the numbers of accounts in few bytes: thousands wait in the module until the first is there.

    ``rest``: all else, accounts without a number too; None if there is nothing else.
    """

    figures: array[int]
    self_contained: array[int]
    entangled: array[int]
    rest: Found | None

    @classmethod
    def of(cls, found: Found) -> _Packed:
        figures, self_contained, entangled = found.sizes.packed(), _numbered(found.self_contained), _numbered(found.entangled)
        return cls(figures, self_contained, entangled, found if any(vars(found).values()) else None)

    def add_to(self, found: Found) -> None:
        """Merge it into what was found elsewhere."""
        rest = self.rest or Found()
        rest.self_contained.update(self.self_contained)
        rest.entangled.update(self.entangled)
        found.sizes.unpack(self.figures)
        found.merge(rest)


def _numbered(accounts: set[Key]) -> array[int]:
    """Take out of a set what is a number; return those."""
    known = [account for account in accounts if isinstance(account, int)]
    accounts.difference_update(known)
    return array("q", known)


def _length(numbers: t.Iterable[tuple[Key, array[int]]]) -> int:
    return sum(len(some) for _account, some in numbers)


def _shortened(path: str) -> str:
    if len(path) <= _LONGEST_PATH:
        return path
    return f"{path[:_LONGEST_PATH // 2]}...{path[-_LONGEST_PATH // 2:]}"


class Model(t.NamedTuple):
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
    """64-bit keys, in 16 to 32 bytes each: Python's own set takes five times that. ``full``: no more are noted."""

    def __init__(self, most: int = _MOST_KEYS) -> None:
        self._most = most
        self._mask = 1023
        self._keys = array("Q", bytes(8 * 1024))
        self._used = 0

    @property
    def full(self) -> bool:
        return self._used >= self._most

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
        if self._used >= self._most:
            return True
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


class SeenInodes:
    """Inodes, which come in rows: 64 of them in 32 to 64 bytes, which is what a single one takes at most."""

    def __init__(self, most: int = _MOST_ROWS) -> None:
        self._most = most
        self._mask = 1023
        self._rows = array("Q", bytes(8 * 1024))
        self._bits = array("Q", bytes(8 * 1024))
        self._used = 0

    def add(self, key: int) -> bool | None:
        """Note an inode; whether it is new, None if it is not known and there is no room to note it."""
        row, bit = (key >> 6) + 1, 1 << (key & 63)
        rows, mask = self._rows, self._mask
        at = (row * 0x9E3779B97F4A7C15 >> 32) & mask
        while rows[at] != row:
            if not rows[at]:
                if self._used >= self._most:
                    return None
                rows[at] = row
                self._bits[at] = bit
                self._used += 1
                if self._used * 2 > mask:
                    self._grow()
                return True
            at = (at + 1) & mask
        if self._bits[at] & bit:
            return False
        self._bits[at] |= bit
        return True

    def _grow(self) -> None:
        rows, bits = self._rows, self._bits
        self._mask = mask = self._mask * 2 + 1
        self._rows, self._bits = array("Q", bytes(8 * (mask + 1))), array("Q", bytes(8 * (mask + 1)))
        for row, its in zip(rows, bits):
            if row:
                at = (row * 0x9E3779B97F4A7C15 >> 32) & mask
                while self._rows[at]:
                    at = (at + 1) & mask
                self._rows[at], self._bits[at] = row, its


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
    owners: t.Mapping[str, Key],
    models: t.Mapping[int, Model],
    processes: int = 1,
    known: t.Collection[str] = (),
    places: t.Mapping[str, str] = MappingProxyType({}),
) -> Found:
    """Walk all units and return what was found, by account.

    :param owners: absolute path -> account. A path that is a unit's own is walked there and nowhere else.
    :param known: paths that are not walked, unless they are a unit's: what is in them is known already.
    :param models: by device number; what is not in it gives its blocks back.
    :param places: folders that are walked though another filesystem is mounted on them, and what tells the filesystem of each
        from others. Each is the path of a unit.
    :param processes: how many walk at once.
    """
    work = _Work(units, owners, models, known, places)
    found = Found()
    for part in work.all(processes):
        if isinstance(part, _Packed):
            part.add_to(found)
        else:
            found.merge(part)
    _count_links_once(found)
    _free_extents_with_the_last(found)
    return found


class _Several:
    """The accounts of keys that were met on more than one. Most have them in common: one set stands for all that are alike."""

    def __init__(self) -> None:
        self._accounts: dict[int, frozenset[Key]] = {}
        self._alike: dict[frozenset[Key], frozenset[Key]] = {}

    def __bool__(self) -> bool:
        return bool(self._accounts)

    def add(self, key: int, account: Key) -> None:
        accounts = self._accounts.get(key, frozenset()) | {account}
        self._accounts[key] = self._alike.setdefault(accounts, accounts)

    def pop(self, key: int) -> frozenset[Key]:
        return self._accounts.pop(key, frozenset())


def _count_links_once(found: Found) -> None:
    """A file with links in several units counts where the first of them was, and comes free with the last."""
    seen, again = Seen(), _Several()
    for account, numbers in found.links:
        for at in range(0, len(numbers), _LINK):
            key, disk, apparent, shared, frees = numbers[at:at + _LINK]
            if not seen.add(key):
                found.sizes.add(account, Sizes(-disk, -apparent, -shared, -frees, -1))
                again.add(key, account)
    for account, numbers in found.links if again else ():
        for at in range(0, len(numbers), _LINK):
            # The first place at which it comes by is the one that counted.
            others = again.pop(numbers[at])
            if others:
                found.sizes.add(account, Sizes(frees=-numbers[at + _LINK - 1]))
                found.free_with({account, *others}, numbers[at + _LINK - 1])
    found.links = []


def _free_extents_with_the_last(found: Found) -> None:
    """An extent in several files comes free with the last of them. One that was met once has its others elsewhere, and stays."""
    seen, again = Seen(), _Several()
    for account, numbers in found.extents:
        for at in range(0, len(numbers), _EXTENT):
            if not seen.add(numbers[at]):
                again.add(numbers[at], account)
    for account, numbers in found.extents if again else ():
        for at in range(0, len(numbers), _EXTENT):
            others = again.pop(numbers[at])
            if others:
                found.free_with({account, *others}, numbers[at + 1])
    found.extents = []


#: What forked processes work on: they have it from the process that they come from, without a copy.
_WORK: _Work | None = None


def _walk_some(first: int, last: int) -> _Packed:
    work = t.cast("_Work", _WORK)
    found = Found()
    for number in range(first, last):
        found.merge(work.one(number))
    return _Packed.of(found)


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
        owners: t.Mapping[str, Key],
        models: t.Mapping[int, Model],
        known: t.Collection[str],
        places: t.Mapping[str, str],
    ) -> None:
        self._units = units
        # Those that are known are not noted twice: there may be tens of thousands.
        roots = {path for unit in units for path in unit.paths if path not in known}
        mounts = {mount.path: mount for mount in mounts_below(_tops(chain(roots, known))) if mount.path not in places}
        parents = {folder for paths in (owners, roots, known) for folder in _folders_of(paths)}
        self._plan = _Plan(
            owners=owners,
            apart=_Either(roots, known),
            parents=_Folders(parents, owners.has_files) if isinstance(owners, Paths) else parents,
            above=_Folders(_all_above(parents, mounts), owners.leads_to_files) if isinstance(owners, Paths) else _all_above(parents, mounts),
            models=models,
            mounts=mounts,
            disks={path: (os.stat(path).st_dev, list(places.values()).index(disk)) for path, disk in places.items()},
        )
        # Folders above what is looked for by path are open all at once.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else max(soft, 65536), hard))

    def all(self, processes: int) -> t.Iterator[Found | _Packed]:
        """What the units came to."""
        done = 0
        if processes > 1 and len(self._units) > 1:
            for part, last in self._forked(processes):
                yield part
                done = last
        for number in range(done, len(self._units)):
            yield self.one(number)

    def _forked(self, processes: int) -> t.Iterator[tuple[_Packed, int]]:
        """In several processes: what was found, and how many units are done with it; ends early, without a word, where that cannot be."""
        global _WORK  # pylint: disable=global-statement
        try:
            import multiprocessing
            from concurrent.futures import ProcessPoolExecutor
            from concurrent.futures.process import BrokenProcessPool

            _WORK = self
            _give_memory_back()
            count = len(self._units)
            at_once = max(1, min(16, count // (processes * 8)))
            firsts, lasts = range(0, count, at_once), [min(count, first + at_once) for first in range(0, count, at_once)]
            pool = ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), _end_with_parent)
        except (ImportError, OSError, ValueError, NotImplementedError):
            return  # no semaphores here, or no fork
        try:
            with pool:
                for last, packed in zip(lasts, pool.map(_walk_some, firsts, lasts)):
                    yield packed, last
        except (BrokenProcessPool, OSError):
            return  # one was killed, as the largest are when memory is short
        finally:
            _WORK = None

    def one(self, number: int) -> Found:
        """Walk one unit."""
        unit = self._units[number]
        found = Found()
        # Those that go from one folder of the unit to the next one.
        seen, links = Seen(), SeenInodes() if unit.sharing == LINKS else None
        for path in unit.paths:
            mount = self._plan.foreign(path)
            if mount:
                found.mounts.append(mount)  # a layer's device while its container runs, a volume's own disk
                continue
            _Walk(self._plan, unit.sharing, seen, links, found).tree(path)
        return found


class _Either:
    """What is in one of two collections."""

    def __init__(self, one: t.Container[str], other: t.Container[str]) -> None:
        self._one, self._other = one, other

    def __contains__(self, path: object) -> bool:
        return path in self._one or path in self._other


class _Folders:
    """Folders that are in a set, or of which something else says so."""

    def __init__(self, known: t.Container[str], also: t.Callable[[str], bool]) -> None:
        self._known, self._also = known, also

    def __contains__(self, path: object) -> bool:
        return path in self._known or (isinstance(path, str) and self._also(path))


def _folders_of(paths: t.Iterable[str]) -> t.Iterable[str]:
    """The folders right above paths."""
    return paths.folders() if isinstance(paths, Paths) else map(_above, paths)


def _tops(paths: t.Iterable[str]) -> set[str]:
    """Paths below which all the given ones lie."""
    found = set()
    for path in sorted(paths, key=len):
        upper = path
        while upper != "/" and upper not in found:
            upper = _above(upper)
        if upper not in found:
            found.add(path)
    return found


def _above(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def _all_above(parents: t.Iterable[str], mounts: t.Iterable[str]) -> set[str]:
    """The folders on the way to what is looked for by path."""
    found = {"/"}
    for path in (*parents, *map(_above, mounts)):
        while path not in found:
            found.add(path)
            path = _above(path)
    return found


class _Plan(t.NamedTuple):
    """What all units have in common. ``apart`` are walked elsewhere, ``parents`` the folders right above such and owned paths.

    ``above``: all folders above such and owned paths, and mounts. Only there a folder's path means something.
    ``disks``: by place the device number there, and a small number that tells its filesystem from others.
    """

    owners: t.Mapping[str, Key]
    apart: t.Container[str]
    parents: t.Container[str | None]
    above: t.Container[str | None]
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

    def __init__(self, plan: _Plan, sharing: str, seen: Seen, links: SeenInodes | None, found: Found) -> None:
        self._plan, self._sharing, self._seen, self._found = plan, sharing, seen, found
        self._links = links or SeenInodes()
        self._linked: dict[Key, array[int]] = {}
        self._extents: dict[Key, array[int]] = {}
        self._numbers = {"links": _length(found.links), "extents": _length(found.extents)}
        self._parts: dict[Key, float] = {}
        self._open_links = 0
        self._shares = False
        self._top = ""
        self._place = ""
        self._disk = 0

    def tree(self, path: str) -> None:
        self._top = path
        self._place = self._plan.place(path)
        if self._place:
            # Where an extent lies says something on its own disk alone.
            self._disk = (self._plan.disks[self._place][1] & 0xFF) << 56
        account = self._plan.owners.get(path, path)
        try:
            top = os.lstat(path)
            if not stat.S_ISDIR(top.st_mode):
                self._file(None, path, top, account, self._plan.model(top.st_dev, self._place))
                self._finish(account)
                return
            descriptor = open_directory(path)
        except OSError as error:
            self._found.fail(path, error)
            return
        descent = Descent(lambda lost, error: self._found.fail(self._path(lost), error))
        try:
            try:
                own = os.fstat(descriptor)
                folders = self._folder(path, path.rpartition("/")[2], descriptor, own, account)
            except OSError as error:
                os.close(descriptor)
                self._found.fail(path, error)
                return
            if folders:
                descent.push(Level(descriptor, own, 0, account, path, folders))
            else:
                os.close(descriptor)
            for level, name in descent:
                below = self._enter(level, name)
                if below:
                    descent.push(below)
        finally:
            descent.close()
        self._finish(account)

    def _enter(self, level: Level, name: str) -> Level | None:
        """Count a folder and its files; None if there are no folders in it, or it is walked elsewhere, or cannot be."""
        plan, path, account = self._plan, None, level.account
        if level.path is not None:
            path = f"{level.path}/{name}"
            if level.path in plan.parents:
                if path in plan.apart:
                    return None
                account = plan.owners.get(path, account)
            mount = plan.mounts.get(path)
            if mount and not mount.own:  # before it is opened: a dead NFS server would hold us
                self._found.mounts.append(mount)
                return None
        try:
            descriptor = os.open(name, DIRECTORY, dir_fd=level.descriptor)  # open_directory, without a call
        except OSError as error:
            self._found.fail(self._path(level.descriptor, name), error)
            return None
        try:
            own = os.fstat(descriptor)
            if own.st_dev != level.device and self._elsewhere(path, descriptor, own):
                os.close(descriptor)
                return None
            folders = self._folder(path, name, descriptor, own, account)
        except OSError as error:
            self._found.fail(self._path(descriptor), error)
            os.close(descriptor)
            return None
        if not folders:
            os.close(descriptor)
            return None
        return Level(descriptor, own, level.depth + 1, account, path if path in plan.above else None, folders)

    def _finish(self, account: Key) -> None:
        for its, inodes in self._parts.items():
            self._found.sizes.add(its, Sizes(inodes=round(inodes)))
        self._found.extents += self._extents.items()
        if self._open_links and self._sharing != LINKS:
            self._found.links += self._linked.items()
            if self._numbers["links"] >= _MOST_NUMBERS:
                self._found.limits.add(Limit.ELSEWHERE)
        elif not self._sharing and not self._shares and account not in self._found.entangled:
            self._found.self_contained.add(account)
            return
        self._found.entangled.add(account)
        self._found.self_contained.discard(account)

    def _path(self, descriptor: int, name: str = "") -> str:
        """Where an open folder is, for people; the kernel does not tell it if it has more than a page."""
        try:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            path = f"{self._top}/..."
        return f"{path}/{name}" if name else path

    def _elsewhere(self, path: str | None, descriptor: int, own: os.stat_result) -> bool:
        """Whether another filesystem came to be mounted there; then it is named and left alone."""
        if path in self._plan.mounts:
            return False
        if own.st_ino == _SUBVOLUME_INODE and self._plan.model(own.st_dev, self._place).copies:
            return False  # a subvolume: a folder with a device number of its own
        self._found.mounts.append(Mount(path or _shortened(self._path(descriptor)), "", False))
        return True

    def _folder(self, path: str | None, name: str, descriptor: int, own: os.stat_result, account: Key) -> Folders | None:
        """Count a folder and its files; return the folders in it, None if there are none."""
        model = self._plan.model(own.st_dev, self._place)
        inherited = self._sharing == SNAPSHOTS and not self._seen.add(_identity(name, own))
        blocks = own.st_blocks * 512
        shared = frees = 0
        if inherited:
            shared = blocks
        elif model.copies:
            frees = model.metadata(24, 0, 0)
            if own.st_ino == _SUBVOLUME_INODE:
                frees += model.copies * NODE  # a tree of its own, be it ever so small
        else:
            frees = blocks + model.inode_bytes
        waiting: list[tuple[int, str]] = []
        limit, more = FIRST_LIMIT, False
        claimed = path in self._plan.parents
        plain = not (claimed or model.reflinks or self._sharing)
        disk = apparent = inodes = 0
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append((entry.inode(), entry.name))
                        if len(waiting) >= limit:
                            limit, cut = shorten(waiting, limit)
                            more = more or cut
                        continue
                    try:
                        found = entry.stat(follow_symlinks=False)
                    except OSError as error:
                        self._found.fail(self._path(descriptor, entry.name), error)
                        continue
                    if plain and found.st_nlink == 1:
                        # Almost every file there is; the rest is slower.
                        disk += found.st_blocks
                        apparent += found.st_size
                        inodes += 1
                        continue
                    whose = account
                    if claimed:
                        below = f"{path}/{entry.name}"
                        if below in self._plan.apart:
                            continue
                        whose = self._plan.owners.get(below, account)
                    self._file(descriptor, entry.name, found, whose, model)
        except OSError as error:
            self._found.fail(self._path(descriptor), error)
        if own.st_dev not in self._plan.models:
            self._in_subvolume(blocks + disk * 512)
        its = Sizes(blocks + disk * 512, apparent, shared, frees + disk * 512 + inodes * model.inode_bytes, 1 + inodes)
        self._found.sizes.add(account, its)
        return Folders(waiting, more) if waiting else None

    def _in_subvolume(self, size: int) -> None:
        self._found.subvolumes[self._place] = self._found.subvolumes.get(self._place, 0) + size

    def _file(self, folder: int | None, name: str, found: os.stat_result, account: Key, model: Model) -> None:
        """Count a file.

        :param folder: the descriptor of the folder in which it has that name; None if the name is a whole path.
        """
        key = (found.st_ino ^ found.st_dev << 48) & 0xFFFFFFFFFFFFFFFF
        part = 1
        if found.st_nlink > 1:
            new = self._links.add(key)
            if new is False:
                self._open_links -= 1
                return
            if new:
                self._open_links += found.st_nlink - 1
            else:
                part = found.st_nlink
                self._shares = True
                self._found.limits.add(Limit.LINKS)
        blocks = found.st_blocks * 512
        inline = found.st_size <= model.inline
        shared = frees = 0
        if self._sharing == SNAPSHOTS and not self._seen.add(_identity(name, found)):
            shared = blocks
        else:
            if model.reflinks and blocks and not inline and stat.S_ISREG(found.st_mode):
                shared = self._shared(folder, name, blocks, account)
                self._shares = self._shares or bool(shared)
            if model.copies:
                frees = 0 if inline else blocks - shared
                own_name = name.rpartition("/")[2] if folder is None else name
                frees += model.metadata(len(os.fsencode(own_name)), found.st_size, found.st_blocks)
            else:
                frees = blocks - shared + model.inode_bytes
        if found.st_dev not in self._plan.models:
            self._in_subvolume(blocks // part)
        self._add(Sizes(blocks, found.st_size, shared, frees, 1), account, part)
        if found.st_nlink > 1 and part == 1 and self._sharing != LINKS and self._numbers["links"] < _MOST_NUMBERS:
            self._numbers["links"] += _LINK
            self._linked.setdefault(account, array("Q")).extend((key, blocks, found.st_size, shared, frees))

    def _add(self, its: Sizes, account: Key, part: int) -> None:
        """Put a file on an account, or a name's part of it."""
        if part > 1:
            self._parts[account] = self._parts.get(account, 0.0) + 1 / part
            its = Sizes(its.disk // part, its.apparent // part, its.shared // part, its.frees // part, 0)
        self._found.sizes.add(account, its)

    def _shared(self, folder: int | None, name: str, blocks: int, account: Key) -> int:
        """How many bytes of a file's blocks others have as well. Of copies and snapshots in the unit, the first one's are its own."""
        try:
            descriptor = open_regular(name, dir_fd=folder)
        except OSError as error:
            self._found.fail(name if folder is None else self._path(folder, name), error)
            return 0
        layers = self._sharing in (COPIES, SNAPSHOTS)
        everything, mine = 0, array("Q")
        try:
            for physical, length in _shared_extents(descriptor):
                if layers:
                    if self._seen.add(physical):
                        if not self._seen.full:
                            continue
                        self._found.limits.add(Limit.KEYS)
                elif self._numbers["extents"] < _MOST_NUMBERS:
                    self._numbers["extents"] += _EXTENT
                    mine.extend((physical ^ self._disk, length))
                else:
                    self._found.limits.add(Limit.EXTENTS)
                everything += length
        except OSError:
            everything, mine = 0, array("Q")  # a file without extents to ask for
        finally:
            os.close(descriptor)
        shared = min(blocks, everything)
        for at in range(1, len(mine), _EXTENT):  # compressed, they are longer than their blocks
            mine[at] = mine[at] * shared // everything
        if mine:
            self._extents.setdefault(account, array("Q")).extend(mine)
        return shared


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
        descriptor = open_directory(path)
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
        descriptor = open_directory(path)
        try:
            return metadata_copies(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        return 2
