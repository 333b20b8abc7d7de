# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes bbolt databases for the tests: trees of any depth, by the format of go.etcd.io/bbolt (internal/common).

A tree is a mapping: bytes are values, mappings are buckets. Small buckets are written inline, as bbolt does it; a
value that is larger than a page gets overflow pages.
"""

from __future__ import annotations

import struct
import typing as t
from pathlib import Path

Tree = t.Mapping[bytes, t.Any]

MAGIC, VERSION = 0xED0CDAED, 2
BRANCH, LEAF, META, FREELIST = 0x01, 0x02, 0x04, 0x10
PAGE_HEADER, ELEMENT, BUCKET_HEADER = 16, 16, 16


def checksum(data: bytes) -> int:
    """FNV-1a of 64 bits, as hash/fnv of Go's library has it."""
    value = 14695981039346656037
    for byte in data:
        value ^= byte
        value = value * 1099511628211 % (1 << 64)
    return value


def page_header(number: int, flags: int, count: int, overflow: int = 0) -> bytes:
    return struct.pack("<QHHI", number, flags, count, overflow)


def meta_page(number: int, page_size: int, root: int, pages: int, transaction: int, *, torn: bool = False) -> bytes:
    """A meta page; a torn one has the checksum of something else."""
    plain = struct.pack("<IIIIQQQQQ", MAGIC, VERSION, page_size, 0, root, 0, 2, pages, transaction)
    page = page_header(number, META, 0) + plain + struct.pack("<Q", checksum(plain) ^ torn)
    return page.ljust(page_size, b"\0")


def leaf_body(items: t.Sequence[tuple[int, bytes, bytes]]) -> bytes:
    """What stands behind a leaf page's header: elements, then keys and values."""
    elements, data = b"", b""
    for index, (flags, key, value) in enumerate(items):
        position = (len(items) - index) * ELEMENT + len(data)
        elements += struct.pack("<IIII", flags, position, len(key), len(value))
        data += key + value
    return elements + data


class Writer:
    """Pages of one file. ``per_page`` keeps pages small, so that few keys make a tree of many levels."""

    def __init__(self, page_size: int = 4096, per_page: int = 1 << 15) -> None:
        self.page_size = page_size
        self.per_page = per_page
        self.pages: dict[int, bytes] = {}
        self.next = 3  # metas and the freelist come first

    def bucket(self, tree: Tree) -> int:
        """Write a bucket and all below it; return its root page."""
        items = []
        for key, value in sorted(tree.items()):
            items.append((0, key, value) if isinstance(value, bytes) else (1, key, self._inner(value)))
        level = [(items[group[0]][1] if items else b"", self._leaf([items[i] for i in group])) for group in self._groups(items)]
        while len(level) > 1:
            level = [
                (level[start][0], self._branch(level[start : start + self._fan(level)]))
                for start in range(0, len(level), self._fan(level))
            ]
        return level[0][1]

    def _inner(self, tree: Tree) -> bytes:
        plain = all(isinstance(value, bytes) for value in tree.values())
        body = leaf_body([(0, key, value) for key, value in sorted(tree.items())]) if plain else b""
        # bbolt inlines a bucket without buckets in it, up to a quarter of a page.
        if plain and PAGE_HEADER + len(body) <= self.page_size // 4 and len(tree) <= self.per_page:
            return struct.pack("<QQ", 0, 0) + page_header(0, LEAF, len(tree)) + body
        return struct.pack("<QQ", self.bucket(tree), 0)

    def _groups(self, items: t.Sequence[tuple[int, bytes, bytes]]) -> list[list[int]]:
        groups: list[list[int]] = [[]]
        room = self.page_size - PAGE_HEADER
        for index, (_flags, key, value) in enumerate(items):
            size = ELEMENT + len(key) + len(value)
            if groups[-1] and (size > room or len(groups[-1]) >= self.per_page):
                groups.append([])
                room = self.page_size - PAGE_HEADER
            groups[-1].append(index)
            room -= size
        return groups

    def _fan(self, level: t.Sequence[tuple[bytes, int]]) -> int:
        longest = max(len(key) for key, _page in level)
        return max(2, min(self.per_page, (self.page_size - PAGE_HEADER) // (ELEMENT + longest)))

    def _leaf(self, items: t.Sequence[tuple[int, bytes, bytes]]) -> int:
        return self.place(LEAF, len(items), leaf_body(items))

    def _branch(self, children: t.Sequence[tuple[bytes, int]]) -> int:
        elements, data = b"", b""
        for index, (key, page) in enumerate(children):
            elements += struct.pack("<IIQ", (len(children) - index) * ELEMENT + len(data), len(key), page)
            data += key
        return self.place(BRANCH, len(children), elements + data)

    def place(self, flags: int, count: int, body: bytes) -> int:
        """Put a page where there is room next, with as many overflow pages as it takes."""
        number = self.next
        overflow = (PAGE_HEADER + len(body) - 1) // self.page_size
        page = page_header(number, flags, count, overflow) + body
        self.pages[number] = page.ljust((overflow + 1) * self.page_size, b"\0")
        self.next += overflow + 1
        return number

    def file(self, newer: int, older: int, transaction: int = 7, torn: t.Collection[int] = ()) -> bytes:
        """The whole file: ``newer`` and ``older`` are root pages, ``torn`` the meta pages (0, 1) that are damaged."""
        metas = {transaction % 2: (newer, transaction), (transaction - 1) % 2: (older, transaction - 1)}
        head = b""
        for number, (root, moment) in sorted(metas.items()):
            head += meta_page(number, self.page_size, root, self.next, moment, torn=number in torn)
        freelist = page_header(2, FREELIST, 0).ljust(self.page_size, b"\0")
        return head + freelist + b"".join(page for _number, page in sorted(self.pages.items()))


def encode(
    tree: Tree,
    page_size: int = 4096,
    per_page: int = 1 << 15,
    transaction: int = 7,
    before: Tree | None = None,
    torn: t.Collection[int] = (),
) -> bytes:
    """A database with ``tree`` as its newest state, and ``before`` as the one before that."""
    writer = Writer(page_size, per_page)
    older = writer.bucket({} if before is None else before)
    return writer.file(writer.bucket(tree), older, transaction, torn)


def write(path: Path, tree: Tree, **more: t.Any) -> Path:
    """Write a database, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(tree, **more))
    return path
