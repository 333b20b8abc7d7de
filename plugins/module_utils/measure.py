# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bytes on disk: what the filesystem of a data root has, and when it has what was given back."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import struct
import time
import typing as t

from ansible_collections.fleetclean.docker.plugins.module_utils.safe_open import open_block_device


class Filesystem(t.NamedTuple):
    """A mounted filesystem. Sizes in bytes; ``available`` is ``free`` less what is reserved for root.

    ``headroom`` is the same, but below zero by what root took of the reserve (ext4 keeps 5 %; engines and containers run as
    root): so much has to come free before anything is available at all.
    """

    mount_point: str
    type: str
    size: int
    used: int
    free: int
    available: int
    inodes: int
    inodes_available: int
    headroom: int = 0
    read_only: bool = False


def filesystem(path: str) -> Filesystem:
    """Return the filesystem that holds ``path``.

    :raises OSError: the path is not there or cannot be asked.
    """
    stat = os.statvfs(path)
    mount = _mount_of(path)
    return Filesystem(
        mount_point=mount.point,
        type=mount.type,
        size=stat.f_blocks * stat.f_frsize,
        used=(stat.f_blocks - stat.f_bfree) * stat.f_frsize,
        free=stat.f_bfree * stat.f_frsize,
        available=stat.f_bavail * stat.f_frsize,
        inodes=stat.f_files,
        inodes_available=stat.f_favail,
        headroom=_headroom(path, mount, stat),
        # An ext4 that gave up after an error tells so in the mount table alone, on kernels of 2025 and newer.
        read_only=bool(stat.f_flag & os.ST_RDONLY) or bool(mount.options & {"ro", "emergency_ro"}),
    )


def device(path: str) -> str:
    """What tells the filesystem at ``path`` from others; the same for all subvolumes of one, and wherever it is mounted again."""
    return _mount_of(path).device


def pool(path: str) -> str:
    """What tells the space of the filesystem at ``path`` from that of others: the datasets of a zfs pool have one and the same."""
    mount = _mount_of(path)
    return f"zfs {mount.source.partition('/')[0]}" if mount.type == "zfs" else mount.device


def within(path: str) -> str:
    """The same path as it stands in its filesystem, whatever part of that is mounted."""
    mount, real = _mount_of(path), os.path.realpath(path)
    return f"{mount.root.rstrip('/')}/{real[len(mount.point.rstrip('/')):].lstrip('/')}".rstrip("/") or "/"


#: Where in ext4's superblock, which stands 1024 bytes into the device (fs/ext4/ext4.h): magic number, log2 of a block in KiB,
#: blocks reserved for root, features; and the feature that numbers of blocks have high halves.
_EXT_MAGIC, _EXT_BLOCK, _EXT_RESERVED, _EXT_RESERVED_HIGH, _EXT_FEATURES, _EXT_64BIT = 0x38, 0x18, 0x08, 0x154, 0x60, 0x80


def _headroom(path: str, mount: _Entry, stat: os.statvfs_result) -> int:
    if stat.f_bavail:
        return stat.f_bavail * stat.f_frsize
    reserved = _reserve_of_ext(mount.source, os.stat(path).st_dev) if mount.type in ("ext2", "ext3", "ext4") else None
    return 0 if reserved is None else stat.f_bfree * stat.f_frsize - reserved


def _reserve_of_ext(source: str, device: int) -> int | None:
    """Bytes that an ext filesystem reserves, for root and for itself (fs/ext4/super.c, ext4_statfs); None if that is not ours to read."""
    try:
        descriptor = open_block_device(source, device)
        try:
            found = os.pread(descriptor, 1024, 1024)
        finally:
            os.close(descriptor)
        (magic,), (log,) = struct.unpack_from("<H", found, _EXT_MAGIC), struct.unpack_from("<L", found, _EXT_BLOCK)
        (blocks,), (features,) = struct.unpack_from("<L", found, _EXT_RESERVED), struct.unpack_from("<L", found, _EXT_FEATURES)
        (high,) = struct.unpack_from("<L", found, _EXT_RESERVED_HIGH) if features & _EXT_64BIT else (0,)
    except (OSError, struct.error):
        return None
    if magic != 0xEF53 or log > 6:
        return None
    try:
        name = os.path.basename(os.path.realpath(source))
        with open(f"/sys/fs/ext4/{name}/reserved_clusters", encoding="ascii") as stream:
            own = int(stream.read())
    except (OSError, ValueError):
        own = 0  # ext2 and ext3 have none
    return int((blocks + (high << 32) + own) * (1024 << log))


def settle(path: str, seconds: float = 60.0) -> None:
    """Wait, where a filesystem gives space back later than it is asked to, until it has.

    btrfs counts what was removed as used until its transaction is committed, and its cleaner takes
    removed subvolumes apart after that; zfs frees in the background, and so does xfs, within moments (since Linux
    5.14, fs/xfs/xfs_icache.c, inodegc). Elsewhere this returns at once.

    :param seconds: the longest wait.
    """
    kind = _mount_of(path).type
    if kind not in _LATE:
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        end, last = time.monotonic() + seconds, -1
        while time.monotonic() < end:
            if kind == "btrfs":
                # Unlike syncfs, this also wakes the cleaner, which else comes every half minute (fs/btrfs/ioctl.c).
                fcntl.ioctl(descriptor, _BTRFS_SYNC)
            elif kind == "zfs":
                ctypes.CDLL(None).syncfs(descriptor)
            free = os.statvfs(path).f_bfree
            if free == last and not (kind == "btrfs" and _half_removed(descriptor)):
                return
            last = free
            time.sleep(_LATE[kind])
    except OSError:
        return  # no right to ask: what is free is what it is
    finally:
        os.close(descriptor)


#: Filesystems that give space back late, and seconds between two looks at what they have.
_LATE = {"btrfs": 0.5, "zfs": 0.5, "xfs": 0.05}
_BTRFS_SYNC = 0x9408
_BTRFS_TREE_SEARCH = 0xD0009411
#: struct btrfs_ioctl_search_key: tree, objectid, offset and transaction from and to, type from and to, items.
_SEARCH = struct.Struct("=7Q4L4Q")
_ROOT_TREE, _ORPHANS, _ORPHAN_ITEM = 1, (1 << 64) - 5, 48


def _half_removed(descriptor: int) -> bool:
    """Whether btrfs has removed subvolumes that it has not yet taken apart (orphans in its tree of roots)."""
    most = (1 << 64) - 1
    asked = bytearray(4096)
    _SEARCH.pack_into(asked, 0, _ROOT_TREE, _ORPHANS, _ORPHANS, 0, most, 0, most, _ORPHAN_ITEM, _ORPHAN_ITEM, 1, 0, 0, 0, 0, 0)
    try:
        fcntl.ioctl(descriptor, _BTRFS_TREE_SEARCH, asked)
    except OSError:
        return False  # needs CAP_SYS_ADMIN
    return bool(_SEARCH.unpack_from(asked)[9])


class Mount(t.NamedTuple):
    """Something mounted. ``own``: a folder mounted over itself, as engines do with their layers; still the same place."""

    path: str
    type: str
    own: bool


def mounts_below(paths: t.Collection[str]) -> list[Mount]:
    """What is mounted below these paths."""
    beneath = tuple(f"{path.rstrip('/')}/" for path in paths)
    by_point = _visible()
    found = []
    for point, entry in by_point.items():
        if point == "/" or not point.startswith(beneath):
            continue
        above: _Entry | None = None
        upper = point
        while above is None and upper != "/":
            upper = os.path.dirname(upper)
            above = by_point.get(upper)
        own = bool(
            above
            and above.device == entry.device
            and entry.root == f"{above.root.rstrip('/')}{point[len(above.point.rstrip('/')):]}"
        )
        found.append(Mount(point, entry.type, own))
    return found


class _Entry(t.NamedTuple):
    """One line of the mount table: the device, what of it is mounted (``root``), where, the filesystem's options, and the mount
    that it is mounted on, both by number.
    """

    device: str
    root: str
    point: str
    type: str
    source: str
    options: frozenset[str]
    number: int = 0
    above: int = 0


def _mount_of(path: str) -> _Entry:
    """The filesystem at ``path``."""
    by_point = _visible()
    upper = os.path.realpath(path)
    while upper not in by_point and upper not in ("", "/"):
        upper = os.path.dirname(upper)
    return by_point.get(upper) or _Entry("", "/", "/", "", "", frozenset())


def _visible() -> dict[str, _Entry]:
    """The mounts that can be seen, by where they are: not those that lie below another one, which came later on the same place or above it."""
    entries = list(_mounts())
    known = {entry.number for entry in entries if entry.above != entry.number}
    children = {(entry.above if entry.above in known else 0, entry.point): entry for entry in entries}
    found: dict[str, _Entry] = {}
    for point in sorted({entry.point for entry in entries}, key=len):
        upper = point
        while upper not in ("", "/"):
            upper = os.path.dirname(upper)
            if upper in found:
                break
        top = found.get(upper) if upper != point else None
        under = top.number if top else 0
        while (under, point) in children:
            found[point] = children.pop((under, point))
            under = found[point].number
    return found


def _mounts() -> t.Iterator[_Entry]:
    # Format: proc_pid_mountinfo(5). Spaces in paths are octal escapes there, other white space and ends of lines of other systems are not.
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as stream:
            for line in stream:
                left, _dash, right = line.rstrip("\n").partition(" - ")
                parts, of = left.split(" "), right.split(" ")
                options = frozenset(of[2].split(",")) if len(of) > 2 else frozenset()
                source = _plain(of[1]) if len(of) > 1 else ""
                yield _Entry(parts[2], _plain(parts[3]), _plain(parts[4]), of[0], source, options, int(parts[0]), int(parts[1]))
    except (OSError, IndexError, ValueError):
        return


def _plain(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
