# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Types of the engine's answers: the one place where what an engine says becomes data of known shape.

Every field that any reader uses is declared here, for each call, with its type. ``parse`` reads an
answer while it arrives and keeps the declared fields only. A field of another type, a number out of
range, a text that cannot be written or would be a path elsewhere raises ``Unexpected``, which says
which field it is. Missing fields and null are allowed where a field is not ``required``: engines
differ, and Go's empty list and map are null.

Memory is bounded by what is kept, not by what arrives: elements of lists are decoded one at a time.

Sources: https://docs.docker.com/reference/api/engine/ (versions 1.21 to 1.52).
"""

from __future__ import annotations

import codecs
import json
import math
import re
import typing as t

#: An element of a list, or a field that is not a list, is decoded as a whole: at most this part of the limit.
_ELEMENT_SHARE = 32
#: Bytes that a text, and each entry of a list or mapping, takes in memory besides its characters.
_TEXT_COST, _ENTRY_COST = 56, 100
#: Numbers of more digits are none that an engine sends; Python takes quadratic time for them, or refuses.
_MAX_DIGITS = 20
#: The end of the year 9999, seconds since 1970.
_MAX_MOMENT = 253402300800
_MAX_NUMBER = 2**63


class Unexpected(ValueError):
    """An answer is not of the declared shape; ``path`` is the field, outermost part first."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path: list[str] = []

    def inside(self, part: str) -> Unexpected:
        self.path.insert(0, part)
        return self

    def __str__(self) -> str:
        return f"{''.join(self.path).lstrip('.') or 'the answer'} {self.problem}"


class TooLarge(ValueError):
    """An answer is larger than the limit allows; ``part``: what is read at once of it may have so many bytes; 0 if the whole is too large."""

    def __init__(self, part: int = 0) -> None:
        super().__init__()
        self.part = part


class NotJson(ValueError):
    """An answer is not JSON."""


class _Memory:
    """What has been kept of one answer. Equal texts, such as labels' names, are kept once."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._texts: dict[str, str] = {}

    def spend(self, cost: int) -> None:
        self._left -= cost
        if self._left < 0:
            raise TooLarge

    def text(self, raw: str) -> str:
        known = self._texts.get(raw)
        if known is None:
            self.spend(_TEXT_COST + _ENTRY_COST + len(raw))
            known = self._texts[raw] = raw
        return known


class Shape:
    """A type that a field may have; ``name`` is how errors call it."""

    name = ""

    def read(self, raw: t.Any, memory: _Memory) -> t.Any:
        """Return what is kept of a value that is not null.

        :raises Unexpected: it is of another type.
        """
        raise NotImplementedError

    def wrong(self, raw: t.Any) -> Unexpected:
        return Unexpected(f"is {_kind(raw)}, not {self.name}")


class _Text(Shape):
    """A text; ``pattern`` is what it has to match as a whole, and ``name`` what it is then."""

    def __init__(self, name: str = "a text", pattern: str = "") -> None:
        self.name = name
        self._matches = re.compile(pattern).fullmatch if pattern else None

    def read(self, raw: t.Any, memory: _Memory) -> str:
        if not isinstance(raw, str):
            raise self.wrong(raw)
        if self._matches and raw and not self._matches(raw):
            raise Unexpected(f"is {shown(raw)}, not {self.name}")
        if not raw.isascii():
            try:
                raw.encode()
            except UnicodeEncodeError:
                # Go's encoder writes U+FFFD for what is not UTF-8, so no engine sends it.
                raise Unexpected("is not text: it has half of a surrogate pair") from None
        return memory.text(raw)


class _Number(Shape):
    name = "a number"

    def read(self, raw: t.Any, memory: _Memory) -> int:
        if type(raw) not in (int, float):
            raise self.wrong(raw)
        if not -_MAX_NUMBER <= raw < _MAX_NUMBER:
            raise Unexpected("is a number out of range")
        return int(raw)


class _Moment(Shape):
    """Seconds since 1970 or an RFC 3339 text: the same field has either, by API version."""

    name = "a time"

    def read(self, raw: t.Any, memory: _Memory) -> float | str:
        if isinstance(raw, str):
            return TEXT.read(raw, memory)
        if type(raw) not in (int, float):
            raise self.wrong(raw)
        if not -_MAX_MOMENT < raw < _MAX_MOMENT:
            raise Unexpected("is a time out of range")
        return t.cast(float, raw)


class _Flag(Shape):
    name = "true or false"

    def read(self, raw: t.Any, memory: _Memory) -> bool:
        if not isinstance(raw, bool):
            raise self.wrong(raw)
        return raw


class _Presence(Shape):
    """An object of which only matters that it is there."""

    name = "an object"

    def read(self, raw: t.Any, memory: _Memory) -> bool:
        if not isinstance(raw, dict):
            raise self.wrong(raw)
        return True


class List(Shape):
    """A list of values of one shape."""

    name = "a list"

    def __init__(self, entry: Shape) -> None:
        self.entry = entry

    def read(self, raw: t.Any, memory: _Memory) -> list[t.Any]:
        if not isinstance(raw, list):
            raise self.wrong(raw)
        memory.spend(_ENTRY_COST)
        return [self.read_entry(value, number, memory) for number, value in enumerate(raw)]

    def read_entry(self, raw: t.Any, number: int, memory: _Memory) -> t.Any:
        memory.spend(8)
        try:
            if raw is None and isinstance(self.entry, Fields):
                raise self.entry.wrong(raw)
            return None if raw is None else self.entry.read(raw, memory)
        except Unexpected as error:
            raise error.inside(f"[{number}]") from None


class Each(List):
    """A list each entry of which becomes something else as soon as it was read."""

    def __init__(self, entry: Shape, make: t.Callable[[t.Any], t.Any]) -> None:
        super().__init__(entry)
        self._make = make

    def read_entry(self, raw: t.Any, number: int, memory: _Memory) -> t.Any:
        return self._make(super().read_entry(raw, number, memory))


class Map(Shape):
    """A mapping of names to values of one shape."""

    name = "an object"

    def __init__(self, value: Shape) -> None:
        self.value = value

    def read(self, raw: t.Any, memory: _Memory) -> dict[str, t.Any]:
        if not isinstance(raw, dict):
            raise self.wrong(raw)
        memory.spend(_ENTRY_COST * (1 + len(raw)))
        found = {}
        for name, value in raw.items():
            try:
                found[TEXT.read(name, memory)] = None if value is None else self.value.read(value, memory)
            except Unexpected as error:
                raise error.inside(f"[{shown(name)}]") from None
        return found


class Fields(Shape):
    """An object of which the named fields are kept; ``required`` ones have to be there, and not empty."""

    name = "an object"

    def __init__(self, required: t.Mapping[str, Shape] | None = None, /, **fields: Shape) -> None:
        self.required = tuple(required or ())
        self.fields: dict[str, Shape] = {**(required or {}), **fields}

    def read(self, raw: t.Any, memory: _Memory) -> dict[str, t.Any]:
        if not isinstance(raw, dict):
            raise self.wrong(raw)
        memory.spend(_ENTRY_COST)
        found = {}
        for name, shape in self.fields.items():
            if name in raw:
                found[name] = self.read_field(name, shape, raw[name], memory)
        return self.complete(found)

    @staticmethod
    def read_field(name: str, shape: Shape, raw: t.Any, memory: _Memory) -> t.Any:
        memory.spend(_ENTRY_COST)
        try:
            return None if raw is None else shape.read(raw, memory)
        except Unexpected as error:
            raise error.inside(f".{name}") from None

    def complete(self, found: dict[str, t.Any]) -> dict[str, t.Any]:
        for name in self.required:
            if not found.get(name):
                raise Unexpected("is missing").inside(f".{name}")
        return found


class Lists(Fields):
    """An object whose fields are long lists: it is read field by field, not as a whole."""


def shown(raw: str) -> str:
    """A short quote of a text that an engine sent, safe for a terminal."""
    text = "".join(c if c.isprintable() and not "\ud800" <= c <= "\udfff" else "?" for c in raw[:80])
    return f'"{text}{"..." if len(raw) > 80 else ""}"'


def _kind(raw: t.Any) -> str:
    for kind, name in ((bool, "true or false"), ((int, float), "a number"), (str, "a text"), (list, "a list"), (dict, "an object")):
        if isinstance(raw, kind):
            return name
    return "null"


# -- reading while it arrives ----------------------------------------------------------------------


def _parse_int(digits: str) -> float:
    return int(digits) if len(digits) <= _MAX_DIGITS else math.inf


def _parse_constant(word: str) -> t.NoReturn:
    raise NotJson(f"{word} is not JSON")


_DECODER = json.JSONDecoder(parse_int=_parse_int, parse_constant=_parse_constant)
_SPACE = re.compile(r"[ \t\r\n]*")


class _Stream:
    """Characters of an answer, of which only those are held that have not been read."""

    def __init__(self, pieces: t.Iterator[bytes], longest: int) -> None:
        self._pieces = pieces
        self._longest = longest
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._ended = False
        self._text = ""
        self._at = 0

    def more(self, wanted: int = 1) -> bool:
        """Get at least ``wanted`` characters more, if there are so many; return whether any came."""
        got = [self._text[self._at:]]
        count = 0
        while count < wanted and not self._ended:
            piece = next(self._pieces, b"")
            self._ended = not piece
            try:
                got.append(self._decode(piece, self._ended))
            except UnicodeDecodeError:
                raise NotJson("it is not UTF-8") from None
            count += len(got[-1])
        self._text, self._at = "".join(got), 0
        return bool(count)

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            found = _SPACE.match(self._text, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self.more():
                return ""

    def take(self, characters: str) -> str:
        """Read one of the given characters."""
        found = self.peek()
        if not found or found not in characters:
            raise NotJson(f"{shown(found)} in place of {characters[0]}" if found else "it ends too early")
        self._at += 1
        return found

    def value(self) -> t.Any:
        """Read one value as a whole."""
        if not self.peek():
            raise NotJson("it ends too early")
        while True:
            try:
                found, end = _DECODER.raw_decode(self._text, self._at)
                # A number may go on.
                if end < len(self._text) or self._ended or not isinstance(found, (int, float)):
                    if end - self._at > self._longest:
                        raise TooLarge(self._longest)
                    self._at = end
                    return found
            except RecursionError:
                raise Unexpected("is nested too deeply") from None
            except (NotJson, TooLarge):
                raise
            except ValueError as error:
                if self._ended:
                    raise NotJson(str(error)) from None
            length = len(self._text) - self._at
            if length > self._longest:
                raise TooLarge(self._longest)
            # So each character is looked at twice at most, however long the value is.
            self.more(length)


def parse(pieces: t.Iterator[bytes], shape: Shape, limit: int) -> t.Any:
    """Return what ``shape`` keeps of a JSON answer; None for null. An answer without content is none: it may have been cut short.

    :param limit: bytes of memory that it may take.
    :raises Unexpected: it is of another shape.
    :raises NotJson: it is not JSON.
    :raises TooLarge: it would take more memory.
    """
    stream, memory = _Stream(pieces, limit // _ELEMENT_SHARE), _Memory(limit)
    if not stream.peek():
        raise NotJson("it is empty")
    found = _read(stream, shape, memory)
    if stream.peek():
        raise NotJson("something comes after its end")
    return found


def parse_each(pieces: t.Iterator[bytes], shape: Shape, limit: int) -> t.Iterator[t.Any]:
    """Yield what ``shape`` keeps of each object of an answer that is a sequence of them; others are passed over."""
    stream, memory = _Stream(pieces, limit // _ELEMENT_SHARE), _Memory(limit)
    number = 0
    while stream.peek():
        raw = stream.value()
        if isinstance(raw, dict):
            try:
                yield shape.read(raw, memory)
            except Unexpected as error:
                raise error.inside(f"[{number}]") from None
        number += 1


def check(raw: t.Any, shape: Shape, limit: int = 2**26) -> t.Any:
    """The same as ``parse`` for what is decoded already."""
    return None if raw is None else shape.read(raw, _Memory(limit))


def _read(stream: _Stream, shape: Shape, memory: _Memory) -> t.Any:
    """Read a value; lists and objects of the answer's upper levels entry by entry."""
    first = stream.peek()
    if isinstance(shape, List) and first == "[":
        return list(_entries(stream, shape, memory))
    if isinstance(shape, Lists) and first == "{":
        return _object(stream, shape, memory)
    raw = stream.value()
    return None if raw is None else shape.read(raw, memory)


def _entries(stream: _Stream, shape: List, memory: _Memory) -> t.Iterator[t.Any]:
    stream.take("[")
    number = 0
    if stream.peek() == "]":
        stream.take("]")
        return
    while True:
        yield shape.read_entry(stream.value(), number, memory)
        number += 1
        if stream.take(",]") == "]":
            return


def _object(stream: _Stream, shape: Lists, memory: _Memory) -> dict[str, t.Any]:
    stream.take("{")
    found: dict[str, t.Any] = {}
    while stream.peek() != "}":
        name = stream.value()
        if not isinstance(name, str):
            raise NotJson("a field's name is not a text")
        stream.take(":")
        inner = shape.fields.get(name)
        if isinstance(inner, (List, Lists)):
            try:
                found[name] = _read(stream, inner, memory)
            except Unexpected as error:
                raise error.inside(f".{name}") from None
        else:
            raw = stream.value()
            if inner:
                found[name] = shape.read_field(name, inner, raw, memory)
        if stream.peek() == "}":
            break
        stream.take(",")
    stream.take("}")
    return shape.complete(found)


# -- what is read of which call --------------------------------------------------------------------

TEXT = _Text()
#: A path on the host, or a volume's name: the system's calls take no NUL.
PATH = _Text("a path", r"[^\0]*")
#: An object's id, which is part of paths below the data root.
IDENT = _Text("an ID", r"[0-9A-Za-z][0-9A-Za-z:_.-]{0,255}")
#: A storage driver or a namespace, the same.
WORD = _Text("a name", r"[0-9A-Za-z][0-9A-Za-z_.() -]{0,127}")
API_VERSION = _Text("a version of the API", r"[0-9]{1,4}\.[0-9]{1,4}")
NUMBER = _Number()
MOMENT = _Moment()
FLAG = _Flag()
PRESENCE = _Presence()
TEXTS = List(TEXT)
LABELS = Map(TEXT)

VERSION = Fields(
    Version=TEXT, ApiVersion=API_VERSION, MinAPIVersion=TEXT, Os=TEXT, Arch=TEXT, Components=List(Fields(Name=TEXT, Version=TEXT))
)
INFO = Fields(
    ID=TEXT, Name=TEXT, ServerVersion=TEXT, Driver=WORD, DriverStatus=List(TEXTS), DockerRootDir=PATH, LoggingDriver=TEXT,
    Containerd=Fields(Address=PATH, Namespaces=Fields(Containers=WORD)), SecurityOptions=TEXTS, SystemTime=MOMENT, LiveRestoreEnabled=FLAG,
    Swarm=Fields(LocalNodeState=TEXT, ControlAvailable=FLAG), Containers=NUMBER, ContainersRunning=NUMBER, ContainersPaused=NUMBER,
    ContainersStopped=NUMBER, Images=NUMBER, OperatingSystem=TEXT, KernelVersion=TEXT, Architecture=TEXT, NCPU=NUMBER, MemTotal=NUMBER,
    CgroupDriver=TEXT,
)
_MOUNTS = List(Fields(Name=PATH, Source=PATH, Type=TEXT))
_NETWORKS = Fields(Networks=Map(Fields(NetworkID=TEXT, Links=TEXTS)))
_NAMESPACES: dict[str, Shape] = {"NetworkMode": TEXT, "IpcMode": TEXT, "PidMode": TEXT, "VolumesFrom": TEXTS, "Links": TEXTS}
#: An entry of ``GET /containers/json``.
CONTAINER = Fields(
    {"Id": IDENT},
    Names=TEXTS, Image=TEXT, ImageID=TEXT, Created=MOMENT, State=TEXT, Status=TEXT, Labels=LABELS, Mounts=_MOUNTS, SizeRw=NUMBER,
    SizeRootFs=NUMBER, NetworkSettings=_NETWORKS, HostConfig=Fields(**_NAMESPACES),
)
CONTAINERS = List(CONTAINER)
#: ``GET /containers/{id}/json``.
CONTAINER_DETAILS = Fields(
    Id=IDENT, Name=TEXT, Image=TEXT, Created=MOMENT, RestartCount=NUMBER, Mounts=_MOUNTS, NetworkSettings=_NETWORKS,
    State=Fields(
        Status=TEXT, Running=FLAG, Paused=FLAG, Restarting=FLAG, StartedAt=MOMENT, FinishedAt=MOMENT, ExitCode=NUMBER
    ),
    HostConfig=Fields(
        RestartPolicy=Fields(Name=TEXT, MaximumRetryCount=NUMBER), LogConfig=Fields(Type=TEXT, Config=Map(TEXT)), **_NAMESPACES
    ),
    Config=Fields(Image=TEXT),
)
#: An entry of ``GET /images/json``.
IMAGE = Fields(
    {"Id": IDENT},
    ParentId=TEXT, RepoTags=TEXTS, RepoDigests=TEXTS, Created=MOMENT, Size=NUMBER, VirtualSize=NUMBER, SharedSize=NUMBER, Labels=LABELS,
)
IMAGES = List(IMAGE)
IMAGE_DETAILS = Fields(
    Id=IDENT, Parent=TEXT, RepoTags=TEXTS, RepoDigests=TEXTS, Created=MOMENT, Metadata=Fields(LastTagTime=MOMENT), RootFS=Fields(Layers=TEXTS)
)
VOLUME = Fields(
    {"Name": PATH},
    Driver=TEXT, CreatedAt=MOMENT, Labels=LABELS, Options=Map(PATH), ClusterVolume=PRESENCE, UsageData=Fields(Size=NUMBER, RefCount=NUMBER),
)
VOLUMES = Lists(Volumes=List(VOLUME))
NETWORKS = List(
    Fields({"Id": IDENT}, Name=TEXT, Created=MOMENT, Labels=LABELS, Ingress=FLAG, Driver=TEXT, Scope=TEXT)
)
_SPEC = Fields(
    TaskTemplate=Fields(ContainerSpec=Fields(Image=TEXT, Mounts=List(Fields(Type=TEXT, Source=PATH))))
)
SERVICES = List(Fields(ID=TEXT, Spec=_SPEC, PreviousSpec=_SPEC))
_CACHE = List(
    Fields(
        {"ID": IDENT},
        Parents=TEXTS, Parent=TEXT, Type=TEXT, InUse=FLAG, Shared=FLAG, Size=NUMBER, CreatedAt=MOMENT, LastUsedAt=MOMENT,
    )
)
#: ``GET /system/df``: until API 1.51, and from 1.52 on. Of what the lists tell as well, its sizes alone.
_IMAGE_SIZES = List(Fields({"Id": IDENT}, SharedSize=NUMBER))
_CONTAINER_SIZES = List(Fields({"Id": IDENT}, SizeRw=NUMBER, SizeRootFs=NUMBER))
_VOLUME_SIZES = List(Fields({"Name": PATH}, UsageData=Fields(Size=NUMBER)))
DISK_USAGE = Lists(
    LayersSize=NUMBER, Images=_IMAGE_SIZES, Containers=_CONTAINER_SIZES, Volumes=_VOLUME_SIZES, BuildCache=_CACHE,
    ImageUsage=Lists(TotalSize=NUMBER, Items=_IMAGE_SIZES), ContainerUsage=Lists(Items=_CONTAINER_SIZES), VolumeUsage=Lists(Items=_VOLUME_SIZES),
    BuildCacheUsage=Lists(Items=_CACHE),
)
EVENT = Fields(
    Type=TEXT, Action=TEXT, status=TEXT, id=TEXT, time=MOMENT, timeNano=NUMBER, Actor=Fields(ID=TEXT, Attributes=Fields(image=TEXT)),
    **{"from": TEXT},
)
PRUNED = Fields(CachesDeleted=TEXTS, SpaceReclaimed=NUMBER)
