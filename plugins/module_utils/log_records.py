# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two formats in which engines write logs: where a record begins, and records that show nothing (fillers).

``JSON_LINES``
    The json-file driver (daemon/logger/jsonfilelog): one JSON object in a line. White space between objects is skipped.
    A filler has no ``stream``, so no client of the engine ever gets it, and the time 0, so ``--since`` passes over it.
``FRAMED``
    The ``local`` driver and the engine's own cache of other drivers' logs (daemon/logger/local, loggerutils/cache): the
    length of a record (four bytes, big-endian), the record (a protobuf message, api/types/plugins/logdriver/entry.proto),
    and the same length again, so that it can be read from both ends. A filler is a message with one field that no engine
    knows, which readers of protobuf pass over.
"""

from __future__ import annotations

import errno
import os
import re
import struct
import typing as t

_CHUNK = 1 << 16
#: Fillers begin at multiples of this: a multiple of every block size, and little enough for a disk that is nearly full.
GRAIN = 1 << 16
_BLANK = b" \n\r\t"


class Front(t.NamedTuple):
    """How a log begins. Positions in bytes.

    ``text``: where the first record is that is no filler. ``fillers``: the last multiple of ``GRAIN`` up to which there are
    nothing but whole fillers; ``nuls``: whether the engine would stumble over NULs before it comes to the text.
    """

    text: int
    fillers: int
    nuls: bool


class Format:
    """What is to be known of a format; positions in bytes from a file's beginning."""

    #: The longest that one filler may be, bytes.
    largest_filler: int

    def front(self, descriptor: int, size: int) -> Front:
        raise NotImplementedError

    def newest(self, descriptor: int, keep: int, front: int, size: int) -> int:
        """Where the newest whole records of at most ``keep`` bytes begin, at ``front`` or after it.

        What is not finished at the end stays whole, however long it is.

        :raises Unreadable: records cannot be told apart.
        """
        raise NotImplementedError

    def end(self, descriptor: int, size: int) -> int:
        """Where a log ends, or would if NULs behind its last record did not count.

        xfs leaves them if a process is killed in the very call that takes blocks out (iomap_truncate_page gives up then).
        """
        end = size
        while end > 0:
            begin = max(0, end - _CHUNK)
            text = os.pread(descriptor, end - begin, begin).rstrip(b"\0")
            if text:
                return self._after_last(descriptor, begin + len(text), size)
            end = begin
        return 0

    def _after_last(self, _descriptor: int, position: int, _size: int) -> int:
        return position

    def border(self, descriptor: int, position: int, end: int, known: int | None = None) -> int:
        """The next beginning of a record, at ``position`` or after it; ``end`` (which is one) if there is none before.

        :param known: a beginning before it: going on from there is sure, while what a container printed may look like records.
        """
        raise NotImplementedError

    def filler(self, length: int) -> bytes:
        """Exactly ``length`` bytes that a reader passes over, one filler or, if that were too long, several; see ``fits``."""
        raise NotImplementedError

    def fits(self, length: int) -> bool:
        """Whether there are fillers of this length."""
        raise NotImplementedError

    def whole(self, piece: bytes) -> int:
        """How many bytes of ``piece``, which begins with a record, are whole records."""
        raise NotImplementedError

    def seam(self, descriptor: int, boundary: int, start: int) -> tuple[int, bytes] | None:
        """What to write, and where, so that a record ends and another begins at ``boundary``; None if that cannot be.

        Nothing from ``start`` (the beginning of a record, not before ``boundary``) on is changed.
        """
        raise NotImplementedError


class Unreadable(Exception):
    """A log's records cannot be told apart; the message says where."""


def _after_hole(descriptor: int, position: int, size: int) -> int:
    """Where the hole ends that ``position`` is in; ``position`` if it is in none."""
    try:
        return min(os.lseek(descriptor, position, os.SEEK_DATA), size)
    except OSError as error:
        return size if error.errno == errno.ENXIO else position


class _JsonLines(Format):
    largest_filler = 1 << 22

    _HEAD = b'{"log":"","fleetclean":"filler %010d","time":"1970-01-01T00:00:00Z"}'
    _KNOWN = re.compile(rb'\{"log":"","fleetclean":"filler ([0-9]{10})"')
    #: Engines cut lines at 16 KiB, before they are written as JSON; more is no line, but a hole or a shell's work.
    _LONGEST = 1 << 21
    # Of the first release: always 64 KiB.
    _KNOWN_BEFORE = b'{"log":"","stream":"stdout","fleetclean":"filler"'

    def front(self, descriptor: int, size: int) -> Front:
        position = fillers = 0
        nuls = False
        while position < size:
            piece = os.pread(descriptor, _CHUNK, position)
            length = self._filler_length(piece)
            if length and os.pread(descriptor, 1, position + length - 1) == b"\n":
                position += length
                if position % GRAIN == 0:
                    fillers = position
                continue
            blank = len(piece) - len(piece.lstrip(_BLANK + b"\0"))
            if not blank:
                break
            nuls = nuls or b"\0" in piece[:blank]
            position += blank
            if blank == len(piece):
                position = _after_hole(descriptor, position, size)
        if nuls and os.pread(descriptor, 1, position) not in (b"{", b""):
            position = self.border(descriptor, position + 1, size)  # a hole ended within a line: half a one ends every reader's way
        return Front(min(position, size), fillers, nuls)

    def _filler_length(self, piece: bytes) -> int:
        if piece.startswith(self._KNOWN_BEFORE):
            return GRAIN
        match = self._KNOWN.match(piece)
        return int(match[1]) if match else 0

    def newest(self, descriptor: int, keep: int, front: int, size: int) -> int:
        position = max(front, size - keep)
        if position == front:
            return front
        start = self._after_newline(descriptor, position - 1, size)
        # One line reaches to the end: it is being written, so nothing of it may go.
        return self._last_line(descriptor, front, size) if start is None else start

    def border(self, descriptor: int, position: int, end: int, known: int | None = None) -> int:
        if position <= 0:
            return 0
        start = self._after_newline(descriptor, position - 1, end)
        return end if start is None else start

    @staticmethod
    def _after_newline(descriptor: int, position: int, end: int) -> int | None:
        """The place behind the first newline at ``position`` or after it."""
        while position < end:
            piece = os.pread(descriptor, min(_CHUNK, end - position), position)
            newline = piece.find(b"\n")
            if newline >= 0:
                return position + newline + 1
            if not piece:
                break
            position += len(piece)
        return None

    @staticmethod
    def _last_line(descriptor: int, front: int, size: int) -> int:
        """Where the line begins that holds the byte before ``size``."""
        end = size
        while end > front:
            begin = max(front, end - _CHUNK)
            newline = os.pread(descriptor, end - begin, begin).rfind(b"\n")
            if newline >= 0:
                return begin + newline + 1
            end = begin
        return front

    def filler(self, length: int) -> bytes:
        head = self._HEAD % length
        return (head if len(head) < length else b"").ljust(length - 1) + b"\n" if length else b""

    def fits(self, length: int) -> bool:
        return length >= 0

    def whole(self, piece: bytes) -> int:
        return piece.rfind(b"\n") + 1

    def seam(self, descriptor: int, boundary: int, start: int) -> tuple[int, bytes] | None:
        if start == boundary:
            return boundary, b""
        if self.border(descriptor, boundary, start) == boundary:
            return boundary, b" " * (start - boundary - 1) + b"\n"  # no line has to be ended; those up to the start go as well
        # The whole line, not only what is left of it: half a line would end every reader's way.
        # But not in a hole, which would take space, and where readers end anyway.
        hole = os.pread(descriptor, 1, boundary - 1) == b"\0"
        begin = boundary if hole else self._last_line(descriptor, max(0, boundary - self._LONGEST), boundary)
        return begin, b" " * (start - begin - 1) + b"\n"


class _Framed(Format):
    #: Engines refuse records of more than a million bytes (daemon/logger/local/read.go).
    largest_filler = 4 * GRAIN

    _LENGTH = struct.Struct(">L")
    _SOMETHING = re.compile(rb"[^\0]")
    _MOST = 1_000_000
    #: Field 15, a text: the engine's entries have the fields 1 to 5.
    _TAG = b"\x7a"
    _LEAST = 10
    #: So many records in a row are no coincidence.
    _IN_A_ROW = 4

    def front(self, descriptor: int, size: int) -> Front:
        position = fillers = 0
        while position < size:
            found = self._record(descriptor, position, size)
            if found is None or os.pread(descriptor, 1, position + 4) != self._TAG:
                break
            position = found
            if position % GRAIN == 0:
                fillers = position
        text = position
        while text < size:  # a hole, of somebody's truncate
            piece = os.pread(descriptor, _CHUNK, text)
            rest = piece.lstrip(b"\0")
            # The first byte of a record's length is a NUL itself, and so are others.
            text += len(piece) - len(rest)
            if rest or not piece:
                break
            text = _after_hole(descriptor, text, size)
        if text - position < 8:
            return Front(position, fillers, False)
        begin = max(position, text - 3)
        # Behind a hole that was never written to comes a record. A few of them may be all there is, with one behind them that is not
        # finished: no row of records then, by which border() would know them.
        whole = next((at for at in range(begin, min(text + 1, size)) if self._record(descriptor, at, size)), None)
        # A hole that somebody punched ends at a block's end, which need not be where a record begins.
        return Front(self.border(descriptor, begin, size) if whole is None else whole, fillers, True)

    def _record(self, descriptor: int, position: int, end: int) -> int | None:
        """Where the record ends that begins at ``position``; None if none does."""
        head = os.pread(descriptor, 4, position)
        if len(head) < 4:
            return None
        (length,) = self._LENGTH.unpack(head)
        after = position + length + 8
        if not 0 < length <= self._MOST or after > end or os.pread(descriptor, 4, after - 4) != head:
            return None
        return int(after)

    def _chain(self, descriptor: int, position: int, end: int) -> bool:
        for _count in range(self._IN_A_ROW):
            found = self._record(descriptor, position, end)
            if found is None:
                return False
            position = found
            if position == end:
                break
        return True

    def newest(self, descriptor: int, keep: int, front: int, size: int) -> int:
        position = end = self._end(descriptor, front, size)
        for begin in self._back(descriptor, end, front):
            if size - begin > keep:
                return position
            position = begin
        # A torn record in the way: what is on its other side is wanted as well.
        return front if position == front else self.border(descriptor, max(front, size - keep), end)

    def _end(self, descriptor: int, front: int, size: int) -> int:
        """The end of the last whole record. What follows is not finished, or was torn when the disk was full."""
        if next(self._back(descriptor, size, front), None) is not None or size == front:
            return size
        position = front
        while True:
            found = self._record(descriptor, position, size)
            if found is None:
                break
            position = found
        if size - position > self._MOST + 8:
            raise Unreadable(f"its records cannot be told apart behind byte {position}")
        return position

    def _back(self, descriptor: int, end: int, front: int) -> t.Iterator[int]:
        """The beginnings of records before ``end``, newest first, as long as they can be told."""
        piece, base = b"", end
        while end - front >= 8:
            if end - 4 < base:
                base = max(front, end - _CHUNK)
                piece = os.pread(descriptor, end - base, base)
            (length,) = self._LENGTH.unpack_from(piece, end - 4 - base)
            begin = end - length - 8
            if not 0 < length <= self._MOST or begin < front:
                return
            if begin < base:
                base = max(front, end - max(_CHUNK, length + 8))
                piece = os.pread(descriptor, end - base, base)
            if self._LENGTH.unpack_from(piece, begin - base)[0] != length:
                return
            yield begin
            end = begin

    def border(self, descriptor: int, position: int, end: int, known: int | None = None) -> int:
        if position <= 0:
            return 0
        while known is not None and known < position:
            known = self._record(descriptor, known, end)
        if known is not None:
            return known
        # In the middle of a file nothing marks a record, but lengths that lead from one to the next.
        while position < end:
            piece = os.pread(descriptor, min(_CHUNK, end - position), position)
            if len(piece) < 8:
                break
            offset = 0
            while offset < len(piece) - 7:
                (length,) = self._LENGTH.unpack_from(piece, offset)
                if 0 < length <= self._MOST and self._chain(descriptor, position + offset, end):
                    return position + offset
                something = None if length else self._SOMETHING.search(piece, offset)
                # A hole is passed over quickly.
                offset = max(offset + 1, something.start() - 3 if something else 0 if length else len(piece) - 7)
            position += len(piece) - 7
        return end

    def _after_last(self, descriptor: int, position: int, size: int) -> int:
        # The last bytes of a record's length may be NULs themselves.
        for end in range(position, min(position + 4, size + 1)):
            if next(self._back(descriptor, end, 0), None) is not None:
                return end
        return size

    def filler(self, length: int) -> bytes:
        if not length:
            return b""
        if length > self.largest_filler:
            # None shorter than the shortest.
            first = min(self.largest_filler, length - self._LEAST)
            return self.filler(first) + self.filler(length - first)
        inside = length - 8
        # How long the field is, in as many bytes as there is room for: a number's own bytes may go on with zeros.
        width = min(3, inside - 1)
        left = inside - 1 - width
        number = bytes(((left >> (7 * at)) & 0x7F) | (0x80 if at < width - 1 else 0) for at in range(width))
        text = b"fleetclean"[:left].ljust(left, b" ")
        frame = self._LENGTH.pack(inside)
        return frame + self._TAG + number + text + frame

    def fits(self, length: int) -> bool:
        return length == 0 or length >= self._LEAST

    def whole(self, piece: bytes) -> int:
        position = 0
        while position + 8 <= len(piece):
            (length,) = self._LENGTH.unpack_from(piece, position)
            if position + length + 8 > len(piece):
                break
            position += length + 8
        return position

    def seam(self, descriptor: int, boundary: int, start: int) -> tuple[int, bytes] | None:
        if start == boundary:
            return boundary, b""
        if not self.fits(start - boundary):
            return None
        for begin in self._back(descriptor, start, 0):
            if begin <= boundary and self.fits(boundary - begin):
                return begin, self.filler(boundary - begin) + self.filler(start - boundary)
        # A hole, or a torn record: readers do not come so far anyway, until the front is gone.
        return boundary, self.filler(start - boundary)


JSON_LINES: Format = _JsonLines()
FRAMED: Format = _Framed()
