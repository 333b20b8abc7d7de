# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Logs as engines write and read them, in both formats, made and read without a line of the collection's own.

The sources are the engine's: daemon/logger/jsonfilelog, daemon/logger/local and api/types/plugins/logdriver/entry.proto.
"""

from __future__ import annotations

import json
import random
import struct
import typing as t
from functools import lru_cache

#: Nothing longer is read by an engine (daemon/logger/local/read.go: maxMsgLen).
LONGEST = 1_000_000


class Broken(Exception):
    """An engine's decoder would stop here."""


class Shown(t.NamedTuple):
    """A record that `docker logs` shows: where it begins and ends in the file, and its text."""

    begin: int
    end: int
    text: bytes

    @property
    def number(self) -> int:
        return int(self.text.split()[0])


class Made:
    """One of the two formats. ``records``: numbered ones, ``width`` bytes each."""

    name: str
    #: The shortest record that ``record`` makes.
    least: int

    def record(self, number: int, width: int = 120) -> bytes:
        raise NotImplementedError

    def of_text(self, text: bytes) -> bytes:
        """A record of what a container printed."""
        raise NotImplementedError

    def read(self, content: bytes) -> list[Shown]:
        """What `docker logs` shows.

        :raises Broken: and what follows it does not show.
        """
        raise NotImplementedError

    def records(self, count: int, width: int = 120, first: int = 0) -> bytes:
        return b"".join(self.record(number, width) for number in range(first, first + count))

    def numbers(self, content: bytes) -> list[int]:
        return [shown.number for shown in self.read(content)]

    def world(self, dice: random.Random, count: int, longest: int = 3000) -> bytes:
        """``count`` numbered records of random widths."""
        return b"".join(self.record(number, self.least + int(dice.random() ** 3 * longest)) for number in range(count))

    def __repr__(self) -> str:
        return self.name


class _JsonFile(Made):
    name = "json-file"
    least = 100

    @lru_cache(maxsize=100_000)  # noqa: B019
    def record(self, number: int, width: int = 120) -> bytes:
        head, tail = b'{"log":"%08d ' % number, b'\\n","stream":"stdout","time":"2024-03-01T12:00:00.%09dZ"}\n' % number
        return head + b"x" * (width - len(head) - len(tail)) + tail

    def of_text(self, text: bytes) -> bytes:
        return json.dumps({"log": text.decode("latin-1"), "stream": "stdout", "time": "2024-03-01T12:00:00Z"}).encode() + b"\n"

    def read(self, content: bytes) -> list[Shown]:
        # Go's decoder reads one value after another, with white space between them; most of the time that is a line.
        shown = []
        decoder = json.JSONDecoder()
        text = content.decode("latin-1")
        position, size = 0, len(text)
        while True:
            while position < size and text[position] in " \n\r\t":
                # A long run of spaces is a filler.
                step = text.find("\n", position)
                position = step + 1 if text[position] == " " and step > 0 and not text[position:step].strip(" ") else position + 1
            if position >= size:
                return shown
            try:
                record, end = decoder.raw_decode(text, position)
            except ValueError as error:
                raise Broken(f"byte {position}: {error}: {text[position:position + 60]!r}") from None
            # What has no stream goes to no client.
            if record.get("stream") in ("stdout", "stderr"):
                shown.append(Shown(position, end + 1, record["log"].encode("latin-1")))
            position = end


class _Local(Made):
    name = "local"
    least = 60

    @lru_cache(maxsize=100_000)  # noqa: B019
    def record(self, number: int, width: int = 120) -> bytes:
        # Lengths that take a byte more make some widths impossible, unless the time is written with a byte less.
        for short in (False, True):
            rest = width - len(self.of_text(b"%08d " % number, short))
            for more in (rest, rest - 1, rest - 2, rest - 3):
                made = self.of_text(b"%08d " % number + b"x" * more, short)
                if len(made) == width:
                    return made
        raise ValueError(f"no record of {width} bytes")

    def of_text(self, text: bytes, short: bool = False) -> bytes:
        inside = b"\x0a\x06stdout" + b"\x10" + varint(1 if short else 300) + b"\x1a" + varint(len(text)) + text
        return framed(inside)

    def read(self, content: bytes) -> list[Shown]:
        shown = []
        position = 0
        while position < len(content):
            inside, end = self._frame(content, position)
            fields = _fields(inside, position)
            if fields.get(1) in (b"stdout", b"stderr"):
                shown.append(Shown(position, end, t.cast(bytes, fields[3])))
            position = end
        backwards = self._begins_backwards(content)
        forwards = {record.begin for record in shown}
        if not forwards <= backwards:
            raise Broken("read from its end it is another log")
        return shown

    @staticmethod
    def _frame(content: bytes, position: int) -> tuple[bytes, int]:
        if position + 4 > len(content):
            raise Broken(f"byte {position}: the file ends within a length")
        (length,) = struct.unpack_from(">L", content, position)
        end = position + length + 8
        if length > LONGEST:
            raise Broken(f"byte {position}: a record of {length} bytes is refused")
        if end > len(content):
            raise Broken(f"byte {position}: the file ends within a record of {length} bytes")
        if content[end - 4:end] != content[position:position + 4]:
            raise Broken(f"byte {position}: a record of {length} bytes has another length at its end")
        return content[position + 4:end - 4], end

    @staticmethod
    def _begins_backwards(content: bytes) -> set[int]:
        """As `--tail` goes through a file."""
        begins = set()
        position = len(content)
        while position > 0:
            (length,) = struct.unpack_from(">L", content, position - 4)
            position -= length + 8
            if position < 0:
                raise Broken("read from its end, a record begins before the file")
            begins.add(position)
        return begins


def varint(number: int) -> bytes:
    made = b""
    while number > 0x7F:
        made += bytes([number & 0x7F | 0x80])
        number >>= 7
    return made + bytes([number])


def framed(inside: bytes) -> bytes:
    length = struct.pack(">L", len(inside))
    return length + inside + length


def _varint(content: bytes, position: int, where: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if position >= len(content) or shift > 63:
            raise Broken(f"byte {where}: a protobuf number has no end")
        byte = content[position]
        number |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return number, position


def _fields(content: bytes, where: int) -> dict[int, bytes | int]:
    """A message of entry.proto; fields that it does not know are passed over, as protobuf has it."""
    found: dict[int, bytes | int] = {}
    position = 0
    while position < len(content):
        key, position = _varint(content, position, where)
        field, kind = key >> 3, key & 7
        if not field:
            raise Broken(f"byte {where}: a field without a number")
        if kind == 0:
            found[field], position = _varint(content, position, where)
        elif kind == 2:
            length, position = _varint(content, position, where)
            if position + length > len(content):
                raise Broken(f"byte {where}: field {field} is longer than its record")
            found[field], position = content[position:position + length], position + length
        else:
            raise Broken(f"byte {where}: a field of kind {kind}")
    return found


JSON_FILE = _JsonFile()
LOCAL = _Local()
