# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What lies under the data root and no engine object owns.

Ownerless is what was there before the engine was asked for its objects, and is in none of the records that were
read after that: so nothing that came meanwhile is taken for it. What is being made is in no record yet, either: it
is young, or a process still writes the layer store's record of it. Whether one does is looked at before the records are
read as well as after: what was finished in between is in none of them.
"""

from __future__ import annotations

import os
import re
import stat
import typing as t
from array import array
from dataclasses import dataclass, field

from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Storage, open_files

#: Seconds within which something may be half made without any sign of it: folder and record are made at once.
_YOUNG = 3.0
_ID = re.compile(r"[0-9a-f]{64}")


class Entry(t.NamedTuple):
    """Something in a folder in which everything belongs to somebody. ``changed`` in seconds since 1970."""

    path: str
    kind: str
    changed: float
    folder: bool


class Entries:
    """Tens of thousands of entries of few folders, each in its name's bytes and nine more until it is looked at."""

    def __init__(self) -> None:
        self._parts: list[tuple[str, str, str, array[float], bytes]] = []

    def add(self, folder: str, kind: str, keep: t.Callable[[Entry], bool] = lambda _entry: True) -> None:
        """Note what is in a folder now, as far as it is to be kept."""
        names: list[str] = []
        changed, folders = array("d"), bytearray()
        for entry in _scan(folder, kind):
            if keep(entry):
                names.append(os.path.basename(entry.path))
                changed.append(entry.changed)
                folders.append(entry.folder)
        if names:
            self._parts.append((folder, kind, "/".join(names), changed, bytes(folders)))

    def __iter__(self) -> t.Iterator[Entry]:
        for folder, kind, names, changed, folders in self._parts:
            for name, moment, is_folder in zip(_split(names), changed, folders):
                yield Entry(os.path.join(folder, name), kind, moment, bool(is_folder))

    def __len__(self) -> int:
        return sum(len(folders) for *_rest, folders in self._parts)

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Entries) else NotImplemented

    __hash__ = None  # type: ignore[assignment]


def _split(names: str) -> t.Iterator[str]:
    """The parts between slashes, one at a time."""
    start = 0
    while True:
        end = names.find("/", start)
        yield names[start:] if end < 0 else names[start:end]
        if end < 0:
            return
        start = end + 1


@dataclass(frozen=True)
class Listing:
    """What was there at one moment, and since when images were being made then (seconds since 1970; None: none were)."""

    entries: Entries = field(default_factory=Entries)
    making_since: float | None = None


class Leftover(t.NamedTuple):
    """``kind`` says what it is, ``reason`` why it is nobody's."""

    path: str
    kind: str
    reason: str
    changed: float


def listing(storage: Storage) -> Listing:
    """Everything that has to have an owner. To be called before the engine is asked for its objects."""
    found = Entries()
    for folder in storage.layer_folders():
        found.add(folder, "layer", lambda entry: not storage.is_drivers_own(os.path.basename(entry.path)))
    if storage.image_store == "graphdriver":
        found.add(f"{storage.layer_records}/sha256", "layer record", _is_id)
        found.add(f"{storage.layer_records}/mounts", "record of a writable layer")
        found.add(f"{storage.layer_records}/tmp", "half-made layer record")
        if storage.old_records:
            found.add(storage.old_records, "image record", _is_id)
    elif storage.containerd:
        for entry in _entries(f"{storage.content}/blobs", ""):
            found.add(entry.path, "content")
    found.add(storage.containers, "container", _is_id)
    found.add(storage.volumes, "volume", lambda entry: entry.folder)
    return Listing(found, _making_since(storage))


def others(storage: Storage) -> list[Leftover]:
    """What storage drivers and image stores left behind that were in use before (moby has no way back but by hand)."""
    found = []
    for path in storage.others():
        top = f"{storage.root}/{os.path.relpath(path, storage.root).split('/')[0]}"
        found.append(Leftover(top, "other storage driver", "of a storage driver that is not in use", _changed(top)))
    for entry in _entries(storage.at("image"), "other image store"):
        if entry.folder and (storage.image_store != "graphdriver" or os.path.basename(entry.path) != storage.driver):
            found.append(Leftover(entry.path, entry.kind, "of a storage driver that is not in use", entry.changed))
    for path in storage.other_stores():
        found.append(Leftover(path, "other image store", "of an image store that is not in use", _changed(path)))
    return found


def find(
    storage: Storage,
    listed: Listing,
    owned: t.Container[str],
    registered: t.Mapping[str, str],
    now: float,
) -> tuple[list[Leftover], list[Entry]]:
    """Return what is nobody's, and what may be being made at this moment.

    :param listed: what was there, and whether images were being made, before the records were read.
    :param owned: every path that has an owner, by those records.
    :param registered: paths that the records name and no object has, with the reason in words. The engine knows
        them, so they go with a restart and not by hand (moby 29358).
    :param now: this machine's clock, seconds since 1970; file times are counted by it.
    """
    free = [entry for entry in listed.entries if entry.path not in owned and os.path.lexists(entry.path)]
    since_when = (listed.making_since, _making_since(storage) if free else None)
    making_since = min((since for since in since_when if since is not None), default=None)
    nobodys, making = [], []
    for entry in free:
        since = now - _YOUNG if making_since is None else min(now, making_since) - _YOUNG
        if entry.kind == "half-made layer record" and making_since is None:
            since = now
        if entry.changed > since:
            making.append(entry)
        elif entry.path in registered:
            nobodys.append(Leftover(entry.path, "registered layer", registered[entry.path], entry.changed))
        else:
            nobodys.append(Leftover(entry.path, entry.kind, _REASONS[entry.kind], entry.changed))
    return nobodys, making


_REASONS = {
    "layer": "a layer's folder that no image, container or build names",
    "layer record": "a layer that no image, container or build has",
    "record of a writable layer": "of a container that the engine does not have",
    "half-made layer record": "of a pull, load or build that did not come to its end",
    "image record": "of an image that the engine does not have",
    "content": "content that no image of containerd's refers to",
    "container": "of a container that the engine does not have",
    "volume": "of a volume that the engine does not have",
}


def children(folder: str, keep: t.Callable[[str], bool] = lambda _name: True) -> list[str]:
    """The paths right below a folder with such names; none if it cannot be read."""
    found: list[str] = []
    try:
        with os.scandir(folder) as entries:
            found += (entry.path for entry in entries if keep(entry.name))
    except OSError:
        pass
    return found


def identity(*paths: str) -> str:
    """What tells a layer's folders from ones that were made anew in their place: inodes, and when they were changed last.

    The folder itself changes when a layer is put on top (overlay2 notes it there), what is in it does not.
    """
    parts = []
    for path in paths:
        inner = [place for place in (f"{path}/diff", f"{path}/fs") if os.path.lexists(place)]
        for place in (path, *inner):
            try:
                found = os.lstat(place)
            except OSError:
                continue
            parts.append(str(found.st_ino))
            if place != path or not inner:
                parts.append(f"{found.st_ctime_ns}.{found.st_mtime_ns}.{found.st_size}")
    return " ".join(parts)


def _making_since(storage: Storage) -> float | None:
    """Since when images are being made, by the files that processes hold open in the engine's places for half-made things.

    The engine makes a layer's folder, opens a transaction in the layer store's ``tmp``, and unpacks: until it is
    committed, only that open file tells (``layer/filestore.go``, StartTransaction). An image's layers are registered one
    by one, and the image after the last of them; meanwhile what is loaded or pulled is open below ``tmp``.
    """
    places = [f"{place}/" for place in (*storage.temporary(), f"{storage.layer_records}/tmp") if _entries(place, "")]
    if not places:
        return None
    begun = []
    for target in (path for opened in open_files(lambda path: path.startswith(tuple(places)), storage.users) for path in opened):
        for place in places:
            if target.startswith(place):
                try:
                    begun.append(os.stat(place + target[len(place):].split("/")[0]).st_ctime)
                except OSError:
                    continue
    return min(begun, default=None)


def _entries(folder: str, kind: str) -> list[Entry]:
    return list(_scan(folder, kind))


def _scan(folder: str, kind: str) -> t.Iterator[Entry]:
    """What is in a folder; nothing if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                yield Entry(entry.path, kind, status.st_mtime, stat.S_ISDIR(status.st_mode))
    except OSError:
        return


def _is_id(entry: Entry) -> bool:
    return bool(_ID.fullmatch(os.path.basename(entry.path)))


def _changed(path: str) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0
