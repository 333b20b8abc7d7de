# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a file's bytes are on its filesystem, and what comes free when a part of it goes.

Blocks that several places share come free with the last of them. btrfs gives back an extent only as a whole, once nothing
of it is in use, so a file's blocks alone do not tell; the filesystem's own tree does, to root.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import typing as t

_FIEMAP = 0xC020660B
_FIEMAP_HEAD = struct.Struct("=QQLLLL")  # start, length, flags, mapped extents, extent count, reserved
_FIEMAP_EXTENT = struct.Struct("=QQQQQLLLL")  # logical, physical, length, reserved*2, flags, reserved*3
_FIEMAP_SYNC = 0x1
_EXTENTS = 128
_LAST, UNKNOWN, INLINE, SHARED = 0x1, 0x2, 0x200, 0x2000
#: linux/magic.h
_KINDS = {0xEF53: "ext4", 0x58465342: "xfs", 0x9123683E: "btrfs"}
_GET_FLAGS, _EXTENT_FLAG = 0x80086601, 0x80000  # FS_IOC_GETFLAGS, FS_EXTENT_FL: not ext2's and ext3's lists of blocks
_XFS_GEOMETRY, _XFS_REFLINK = 0x80705864, 1 << 20  # XFS_IOC_FSGEOMETRY_V1, XFS_FSOP_GEOM_FLAGS_REFLINK (xfs_fs.h)
#: XFS_IOC_FREE_EOFBLOCKS, struct xfs_fs_eofblocks: version, flags, user, group, project, smallest size (xfs_fs.h).
_XFS_FREE_STORE, _FREE_STORE, _SYNC, _LARGER = 0x8080583A, struct.Struct("=6LQ96x"), 1, 1 << 4
_BTRFS_TREE_SEARCH = 0xD0009411
_BTRFS_SYNC, _BTRFS_FS_INFO = 0x9408, 0x8400941F
#: struct btrfs_ioctl_search_key: tree, objectid, offset and transaction from and to, type from and to, items.
_SEARCH = struct.Struct("=7Q4L4Q")
_ITEM = struct.Struct("=3Q2L")  # transaction, objectid, offset, type, length
_FILE_EXTENT = struct.Struct("=2QBBHB4Q")  # btrfs_tree.h: struct btrfs_file_extent_item
_EXTENT_DATA, _INLINE = 108, 0
#: So many extents xfs writes into a block of 4 KiB, once they are more than fit into an inode (xfs_format.h: xfs_bmbt_rec).
_RECORDS, _IN_INODE = 250, 16


#: A node of a btrfs tree, as mkfs makes it.
NODE = 16384


class Extent(t.NamedTuple):
    """A piece of a file: where it is in the file and on the disk, bytes; ``flags`` are those of linux/fiemap.h."""

    logical: int
    physical: int
    length: int
    flags: int


class _Reference(t.NamedTuple):
    """A piece of a btrfs file: the extent that holds it, and how many bytes of disk that takes."""

    logical: int
    length: int
    extent: int
    disk: int


def kind(descriptor: int) -> str:
    """The filesystem of an open file, by what it can do with a log: ext4, xfs, btrfs or "" for any other."""
    about = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None, use_errno=True)
    call = libc.fstatfs64 if hasattr(libc, "fstatfs64") else libc.fstatfs
    if call(descriptor, about):
        return ""
    return _KINDS.get(struct.unpack_from("l", about)[0] & 0xFFFFFFFF, "")


def collapses(descriptor: int) -> bool:
    """Whether blocks can be taken out of the front of this file."""
    found = kind(descriptor)
    if found == "ext4":
        flags = bytearray(8)
        try:
            fcntl.ioctl(descriptor, _GET_FLAGS, flags)
        except OSError:
            return False
        return bool(struct.unpack_from("=L", flags)[0] & _EXTENT_FLAG)
    return found == "xfs"


def reflinks(descriptor: int) -> bool:
    """Whether files of this filesystem can share blocks."""
    found = kind(descriptor)
    if found != "xfs":
        return found == "btrfs"
    geometry = bytearray(112)
    try:
        fcntl.ioctl(descriptor, _XFS_GEOMETRY, geometry)
    except OSError:
        return False
    # blocksize, rtextsize, agblocks, agcount, logblocks, sectsize, inodesize, imaxpct; datablocks, rtblocks, rtextents,
    # logstart; uuid; sunit, swidth, version, flags
    return bool(struct.unpack_from("=L", geometry, 8 * 4 + 4 * 8 + 16 + 3 * 4)[0] & _XFS_REFLINK)


def mapped(descriptor: int, sync: bool = False) -> t.Iterator[Extent]:
    """The pieces of a file that have blocks, in order; with ``sync`` what waits to be written gets its blocks first.

    :raises OSError: the filesystem does not tell.
    """
    start = 0
    while True:
        asked = bytearray(_FIEMAP_HEAD.size + _EXTENTS * _FIEMAP_EXTENT.size)
        _FIEMAP_HEAD.pack_into(asked, 0, start, (1 << 64) - 1 - start, _FIEMAP_SYNC if sync else 0, 0, _EXTENTS, 0)
        fcntl.ioctl(descriptor, _FIEMAP, asked)
        count = _FIEMAP_HEAD.unpack_from(asked, 0)[3]
        if not count:
            return
        for number in range(count):
            logical, physical, length, _r1, _r2, flags, *_rest = _FIEMAP_EXTENT.unpack_from(
                asked, _FIEMAP_HEAD.size + number * _FIEMAP_EXTENT.size
            )
            yield Extent(logical, physical, length, flags)
            if flags & _LAST:
                return
            start = logical + length


def map_bytes(descriptor: int, count: int) -> int:
    """What the map of ``count`` new extents takes by itself, where that counts as used."""
    if kind(descriptor) != "xfs" or count <= _IN_INODE:
        return 0
    return -(-count // _RECORDS) * os.fstatvfs(descriptor).f_bsize


def commit(descriptor: int) -> None:
    """Make btrfs give back at once what nobody uses any more, and xfs what it holds in store behind the ends of such large files.

    Both would do so by themselves, some seconds or minutes later. Nothing to do elsewhere.
    """
    found = kind(descriptor)
    try:
        if found == "btrfs":
            os.fsync(descriptor)
            fcntl.ioctl(descriptor, _BTRFS_SYNC)
        elif found == "xfs":
            fcntl.ioctl(descriptor, _XFS_FREE_STORE, _FREE_STORE.pack(1, _SYNC | _LARGER, 0, 0, 0, 0, os.fstat(descriptor).st_size))
    except OSError:
        pass  # the space comes later


def whole_extents(descriptor: int, begin: int, end: int) -> list[tuple[int, int]]:
    """The parts of ``begin`` to ``end`` whose btrfs extents nothing else of the file uses: (position, length)."""
    references = list(_references(descriptor))
    elsewhere = {ref.extent for ref in references if not begin <= ref.logical < ref.logical + ref.length <= end}
    return [(ref.logical, ref.length) for ref in references if ref.extent and ref.extent not in elsewhere]


def shared_over(descriptor: int, boundary: int, begin: int) -> tuple[int, int]:
    """Of the btrfs extents that lie both within ``begin`` to ``boundary`` and behind it: where they end, and their disk bytes."""
    references = list(_references(descriptor))
    before = {ref.extent for ref in references if begin <= ref.logical < boundary} - {0}
    after = [ref for ref in references if ref.extent in before and ref.logical + ref.length > boundary]
    return max((ref.logical + ref.length for ref in after), default=boundary), sum({ref.extent: ref.disk for ref in after}.values())


def half_used(descriptor: int, begin: int, end: int) -> tuple[int, int]:
    """Of the btrfs extents of which the file uses a part that begins at ``begin`` to ``end``, and no more: (end, disk bytes)."""
    used: dict[int, list[_Reference]] = {}
    for ref in _references(descriptor):
        used.setdefault(ref.extent, []).append(ref)
    found = disk = 0
    for extent, refs in used.items():
        # Compressed extents are shorter than what is mapped to them: they are never found wanting.
        if extent and begin <= refs[0].logical <= end and sum(ref.length for ref in refs) < refs[0].disk:
            found, disk = max(found, refs[-1].logical + refs[-1].length), disk + refs[0].disk
    return max(found, begin), disk


def frees(descriptor: int, begin: int, end: int) -> int:
    """Bytes that come free when nothing of the file uses what is from ``begin`` to ``end`` any more.

    With xfs also what it holds in store behind the file's end, since that goes as soon as anybody shortens or closes it.
    """
    size = os.fstat(descriptor).st_size
    try:
        if kind(descriptor) == "btrfs":
            try:
                return _frees_extents(descriptor, begin, end)
            except PermissionError:
                pass
        return _frees_blocks(descriptor, begin, end, size)
    except OSError:
        # No map: by the share of its blocks.
        taken = os.fstat(descriptor).st_blocks * 512
        block = os.fstatvfs(descriptor).f_bsize
        return max(0, min(taken - (size - end + block - 1) // block * block, taken)) if end > begin else 0


def _frees_extents(descriptor: int, begin: int, end: int) -> int:
    os.fsync(descriptor)
    if end >= os.fstat(descriptor).st_size:
        end = 1 << 63  # the last extent ends behind the last byte
    goes: dict[int, int] = {}
    stays = set()
    for ref in _references(descriptor):
        if begin <= ref.logical and ref.logical + ref.length <= end:
            goes[ref.extent] = ref.disk
        else:
            stays.add(ref.extent)
    return sum(disk for extent, disk in goes.items() if extent and extent not in stays)


def metadata_copies(descriptor: int) -> int:
    """How often btrfs keeps its metadata (sysfs-fs-btrfs).

    :raises OSError: it does not tell.
    """
    about = bytearray(1024)
    fcntl.ioctl(descriptor, _BTRFS_FS_INFO, about)
    raw = bytes(about[16:32]).hex()
    name = f"{raw[:8]}-{raw[8:12]}-{raw[12:16]}-{raw[16:20]}-{raw[20:]}"
    profiles = set(os.listdir(f"/sys/fs/btrfs/{name}/allocation/metadata"))
    return 1 if "single" in profiles and "dup" not in profiles else 3 if "raid1c3" in profiles else 2


def _frees_blocks(descriptor: int, begin: int, end: int, size: int) -> int:
    block = os.fstatvfs(descriptor).f_bsize
    goes: list[tuple[int, int]] = []
    stays: list[tuple[int, int]] = []
    spare = 0
    last = (size + block - 1) // block * block
    end = last if end >= size else end
    for extent in mapped(descriptor, sync=True):
        if extent.flags & (INLINE | UNKNOWN):
            if extent.logical >= last:
                spare += extent.length
            continue
        for low, high, where in (
            (0, begin, stays), (begin, end, goes), (end, last, stays), (last, 1 << 63, None),
        ):
            first, after = max(low, extent.logical), min(high, extent.logical + extent.length)
            if first >= after:
                continue
            if where is None:
                spare += after - first
            else:
                where.append((extent.physical + first - extent.logical, extent.physical + after - extent.logical))
    return _length_without(goes, stays) + (spare if kind(descriptor) == "xfs" else 0)


def _length_without(goes: list[tuple[int, int]], stays: list[tuple[int, int]]) -> int:
    """The length of what ``goes`` covers and ``stays`` does not."""
    events = sorted([(low, 0, 1) for low, _high in goes] + [(high, 0, -1) for _low, high in goes]
                    + [(low, 1, 1) for low, _high in stays] + [(high, 1, -1) for _low, high in stays])
    depth, total, before = [0, 0], 0, 0
    for place, which, step in events:
        if depth[0] and not depth[1]:
            total += place - before
        depth[which] += step
        before = place
    return total


def _references(descriptor: int) -> t.Iterator[_Reference]:
    """The pieces of a btrfs file, by its own tree; a hole is the extent 0.

    :raises PermissionError: only root is told.
    """
    most, inode, start = (1 << 64) - 1, os.fstat(descriptor).st_ino, 0
    while True:
        asked = bytearray(4096)
        _SEARCH.pack_into(asked, 0, 0, inode, inode, start, most, 0, most, _EXTENT_DATA, _EXTENT_DATA, 64, 0, 0, 0, 0, 0)
        fcntl.ioctl(descriptor, _BTRFS_TREE_SEARCH, asked)
        count, at = _SEARCH.unpack_from(asked)[9], _SEARCH.size
        if not count:
            return
        for _number in range(count):
            _transaction, _inode, offset, _type, length = _ITEM.unpack_from(asked, at)
            at += _ITEM.size
            if length >= _FILE_EXTENT.size:
                _generation, _ram, _compressed, _encrypted, _other, sort, extent, disk, _within, number = _FILE_EXTENT.unpack_from(asked, at)
                # A small file's content stands here itself, in the metadata.
                if sort != _INLINE:
                    yield _Reference(offset, number, extent, disk)
            at += length
            start = offset + 1
