# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads bbolt databases, in which containerd and BuildKit keep which snapshot lies in which folder.

Only reading, and only from copies in memory: the engine has the file open and mapped. Its pages are
copy-on-write, so what the newer of the two meta pages describes stays whole until the second
commit after it. If that page is still the newest once all is read, what was read is one moment's.

A small file is copied at once. Of a large one each page is copied when it is looked at, since the memory of
the host is not ours (containerd has five pages for each image); only where commits come too fast for that it is copied at once, too.

The format is that of go.etcd.io/bbolt: ``internal/common/{page,meta,bucket}.go``.
"""

from __future__ import annotations

import errno
import os
import struct
import typing as t

from ansible_collections.fleetclean.docker.plugins.module_utils.safe_open import NotRegular, open_regular

_MAGIC, _VERSION = 0xED0CDAED, 2
_BRANCH, _LEAF = 0x01, 0x02
_IS_BUCKET = 0x01
_PAGE = struct.Struct("<QHHI")  # id, flags, count, overflow
_META = struct.Struct("<IIIIQQQQQQ")  # magic, version, page size, flags, root, sequence, freelist, pages, txid, checksum
_BRANCH_ELEMENT = struct.Struct("<IIQ")  # position, key size, page
_LEAF_ELEMENT = struct.Struct("<IIII")  # flags, position, key size, value size
_HEADER = struct.Struct("<QQ")  # a bucket's root page and sequence
#: A tree is a few pages deep; a damaged file may have circles.
_DEEPEST = 40
#: Bytes. A larger file is not read at all, one that is larger than the second not into memory as a whole, unless it changes
#: too fast, and one that is larger than the third never.
_LARGEST, _LARGEST_COPY_AT_ONCE, _LARGEST_COPY = 1 << 30, 4 << 20, 64 << 20
#: Bytes. A page may have others behind it, for large values; what a damaged one says of them is not believed.
_LARGEST_PAGE = 16 << 20
#: How often all of a file may be looked at; who reads containerd's database looks at it two and a half times (measured with 3,000 images).
_TIMES = 8
_TRIES = 8
#: How many of the tries look at a large file page by page, before it is copied.
_TRIES_BY_PAGE = 3


class BoltError(Exception):
    """The file is no database, damaged, or changed faster than it could be read; the message has its path."""


class _Pages:
    """The file, and how much of it may still be looked at: in a damaged one a few pages may name each other without end."""

    def __init__(self, read: t.Callable[[int, int], bytes], length: int, page_size: int) -> None:
        """``read``: return so many bytes from an offset on, or fewer at the end."""
        self._read = read
        self._length = length
        self._size = page_size
        self._left = _TIMES * length

    def page(self, number: int) -> bytes:
        """Return a page, with those behind it that belong to it."""
        begin = number * self._size
        head = self._read(begin, self._size) if begin + _PAGE.size <= self._length else b""
        if len(head) < _PAGE.size:
            raise ValueError("a page leads nowhere")
        ident, _flags, _count, overflow = _PAGE.unpack_from(head)
        whole = (overflow + 1) * self._size
        if ident != number or begin + whole > self._length or whole > max(_LARGEST_PAGE, self._size):
            raise ValueError(f"page {number} is another one")
        self.look_at(whole)
        return self._read(begin, whole) if overflow else head

    def look_at(self, count: int) -> None:
        """Note that so many bytes are looked at."""
        self._left -= count
        if self._left < 0:
            raise ValueError("its pages lead in circles")


class Bucket:
    """A bucket of the tree: keys with values, and buckets within it."""

    def __init__(self, pages: _Pages, root: int, inline: bytes = b"") -> None:
        self._pages = pages
        self._root = root
        self._inline = inline

    def items(self) -> t.Iterator[tuple[bytes, bytes | Bucket]]:
        """Keys in order, each with its value or the bucket of that name."""
        if self._root:
            yield from self._page(self._root, 0)
        else:
            yield from self._leaf(self._inline)

    def values(self) -> dict[bytes, bytes]:
        """The plain values, without the buckets."""
        return {key: value for key, value in self.items() if isinstance(value, bytes)}

    def buckets(self) -> t.Iterator[tuple[bytes, Bucket]]:
        """The buckets within this one."""
        for key, value in self.items():
            if isinstance(value, Bucket):
                yield key, value

    def bucket(self, *path: bytes) -> Bucket | None:
        """The bucket at the end of ``path``, None if it is not there."""
        found: Bucket | None = self
        for name in path:
            found = next((value for key, value in found.buckets() if key == name), None) if found else None
        return found

    def _page(self, number: int, depth: int) -> t.Iterator[tuple[bytes, bytes | Bucket]]:
        if depth > _DEEPEST:
            raise ValueError("a page leads nowhere")
        data = self._pages.page(number)
        _ident, flags, count, _overflow = _PAGE.unpack_from(data)
        if flags & _LEAF:
            yield from self._leaf(data)
        elif flags & _BRANCH:
            self._pages.look_at(_PAGE.size + count * _BRANCH_ELEMENT.size)
            for index in range(count):
                at = _PAGE.size + index * _BRANCH_ELEMENT.size
                yield from self._page(_BRANCH_ELEMENT.unpack_from(data, at)[2], depth + 1)
        else:
            raise ValueError("a page of the wrong kind")

    def _leaf(self, data: bytes) -> t.Iterator[tuple[bytes, bytes | Bucket]]:
        count = _PAGE.unpack_from(data)[2]
        self._pages.look_at(_PAGE.size)
        for index in range(count):
            at = _PAGE.size + index * _LEAF_ELEMENT.size
            flags, position, key_size, value_size = _LEAF_ELEMENT.unpack_from(data, at)
            key_at = at + position
            value_at = key_at + key_size
            if value_at + value_size > len(data):
                raise ValueError("a value leads out of its page")
            self._pages.look_at(_LEAF_ELEMENT.size + key_size + value_size)
            key, value = data[key_at:value_at], data[value_at:value_at + value_size]
            if flags & _IS_BUCKET:
                root, _sequence = _HEADER.unpack_from(value)
                yield key, Bucket(self._pages, root, value[_HEADER.size:])
            else:
                yield key, value


def empty() -> Bucket:
    """A bucket with nothing in it."""
    return Bucket(_Pages(lambda _begin, _count: b"", _PAGE.size, _PAGE.size), 0, bytes(_PAGE.size))


_Answer = t.TypeVar("_Answer")


def read(path: str, look: t.Callable[[Bucket], _Answer]) -> _Answer:
    """Return what ``look`` makes of the database's top bucket; it is called again if the file changed meanwhile.

    :raises BoltError: no database, damaged, or it never stood still.
    :raises OSError: it is not there, or may not be read.
    """
    try:
        descriptor = open_regular(path)
    except NotRegular as error:
        if error.errno != errno.EINVAL:
            raise
        raise BoltError(f"{path} is not a file") from None
    try:
        for attempt in range(_TRIES):
            size = os.fstat(descriptor).st_size
            if size > _LARGEST:
                raise BoltError(f"{path} is too large to be read ({size} bytes)")
            by_page = size > (_LARGEST_COPY_AT_ONCE if attempt < _TRIES_BY_PAGE else _LARGEST_COPY)
            try:
                return (_read_by_page if by_page else _read_copy)(descriptor, size, path, look)
            except _Changed:
                continue
        raise BoltError(f"{path} changes faster than it can be read")
    except (ValueError, struct.error, IndexError) as error:
        raise BoltError(f"{path} is damaged: {error}") from None
    finally:
        os.close(descriptor)


class _Changed(Exception):
    """The database changed while it was read."""


def _read_copy(descriptor: int, size: int, path: str, look: t.Callable[[Bucket], _Answer]) -> _Answer:
    """Copy the whole file, and look at the copy."""
    page_size, before, root = _newest(os.pread(descriptor, 1 << 18, 0), path)
    data = _all(descriptor, size)
    if _newest(os.pread(descriptor, 1 << 18, 0), path)[1] != before:
        raise _Changed
    return look(Bucket(_Pages(lambda begin, count: data[begin:begin + count], len(data), page_size), root))


def _read_by_page(descriptor: int, size: int, path: str, look: t.Callable[[Bucket], _Answer]) -> _Answer:
    """Copy each page when it is looked at."""
    page_size, before, root = _newest(os.pread(descriptor, 1 << 18, 0), path)
    try:
        return look(Bucket(_Pages(lambda begin, count: os.pread(descriptor, count, begin), size, page_size), root))
    finally:
        # Pages of two moments may say anything, and raise anything.
        if _newest(os.pread(descriptor, 1 << 18, 0), path)[1] != before:
            raise _Changed


def _all(descriptor: int, size: int) -> bytes:
    parts, at = [], 0
    while at < size:
        part = os.pread(descriptor, size - at, at)
        if not part:
            break
        parts.append(part)
        at += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _newest(head: bytes, path: str) -> tuple[int, int, int]:
    """Page size, transaction and root page of the newer meta page that is whole."""
    found = []
    # The second meta page is one page further, and a page is as large as the machine's that made it.
    for at in (0, 4096, 8192, 16384, 32768, 65536):
        try:
            meta = _META.unpack_from(head, at + _PAGE.size)
        except struct.error:
            break
        whole = head[at + _PAGE.size: at + _PAGE.size + _META.size - 8]
        if meta[0] == _MAGIC and meta[1] == _VERSION and meta[9] == _checksum(whole) and at in (0, meta[2]):
            found.append((meta[8], meta[2], meta[4]))
    if not found:
        raise BoltError(f"{path} is no bbolt database")
    transaction, page_size, root = max(found)
    if page_size < 512:
        raise BoltError(f"{path} is damaged: its pages have {page_size} bytes")
    return page_size, transaction, root


def _checksum(data: bytes) -> int:
    """FNV-1a, 64 bits."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value
