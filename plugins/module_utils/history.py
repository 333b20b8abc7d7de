# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What earlier runs saw: when images, volumes and networks were last in use, what layers take, in a small SQLite file on the host.

An engine forgets when an image, a volume or a network was used last: once its last container is removed, nothing
tells. So each run notes what it saw in use, and the next one takes that for a sign of life. An image that an earlier
run did not see came after it: where nothing else tells when, that is its arrival. The record
only ever makes things look younger. Since when runs have seen the engine's events without a gap is noted, too: an engine
holds few of them, and what happened between is not known. And a layer that is registered never changes again, so what it was found to take
holds as long as its folder is the same one. The record may be lost at any time (then they are judged by what the
engine knows), and it is never in the way: a disk that is full or read-only, a file that is torn,
locked or of a later release, a Python without SQLite are all no error. It holds no more than
what the engine still has, by the engine's id: two engines on a host have one file.

Migrations are a list; a file's ``user_version`` says how many of them it has had.
"""

from __future__ import annotations

import os
import time
import typing as t
import zlib

from ansible_collections.fleetclean.docker.plugins.module_utils.last_use import Watched, uses_seen
from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import NETWORK, VOLUME, Snapshot

try:
    import sqlite3
except ImportError:  # a Python built without it
    sqlite3 = None  # type: ignore[assignment]

_FILE = "history.sqlite"
_MIGRATIONS = (
    "CREATE TABLE last_use (engine TEXT NOT NULL, object TEXT NOT NULL, used REAL NOT NULL,"
    " PRIMARY KEY (engine, object)) WITHOUT ROWID",
    "CREATE TABLE measured (engine TEXT NOT NULL, account TEXT NOT NULL, identity TEXT NOT NULL, disk INTEGER NOT NULL,"
    " apparent INTEGER NOT NULL, frees INTEGER NOT NULL, inodes INTEGER NOT NULL, sum INTEGER NOT NULL,"
    " PRIMARY KEY (engine, account)) WITHOUT ROWID",
    "CREATE TABLE first_seen (engine TEXT NOT NULL, object TEXT NOT NULL, seen REAL NOT NULL,"
    " PRIMARY KEY (engine, object)) WITHOUT ROWID",
    "CREATE TABLE watched (engine TEXT NOT NULL PRIMARY KEY, since REAL NOT NULL, until REAL NOT NULL, sum INTEGER NOT NULL)"
    " WITHOUT ROWID",
)
#: Instead of an image's id: the first run on this engine. What it saw was there before, nobody knows since when.
_BEGINNING = ""
#: Seconds to wait for another run that writes.
_PATIENCE = 2.0
#: Seconds that a clock may be ahead. What is noted for later than that was noted while it was wrong.
_AHEAD = 86400.0
#: SQLite's journal needs room beside the file; without that much free, nothing is written.
_ROOM = 4 << 20


class Memory(t.NamedTuple):
    """``used``: when earlier runs saw objects in use; ``came``: when they first saw images that came between two runs.

    Seconds since 1970, by an image's id, the name of a volume behind ``VOLUME`` or the id of a network behind ``NETWORK``.
    ``watched``: when they saw the engine's events without a gap, None if they never did.
    """

    used: dict[str, float]
    came: dict[str, float]
    watched: Watched | None = None


def recall(state_dir: str, engine_id: str, now: float) -> Memory:
    """Return what earlier runs saw of this engine's objects; but nothing that is still to come, by its clock of today."""
    used, came = (
        {key: moment for key, moment in seen.items() if moment <= now + _AHEAD}
        for seen in (last_uses(state_dir, engine_id), came_between(state_dir, engine_id))
    )
    seen = watched(state_dir, engine_id)
    return Memory(used, came, seen if seen and seen.until <= now + _AHEAD else None)


def note(state_dir: str, engine_id: str, looked: Snapshot, volumes: bool, networks: bool = False) -> bool:
    """Note what this run saw, before anything goes. ``volumes``, ``networks``: whether it asked for them."""
    present = {VOLUME + volume.name for volume in looked.volumes} if volumes else None
    nets = {NETWORK + network.id for network in looked.networks} if networks else None
    images = {image.id for image in looked.images}
    # Of networks that were not asked for, no use is noted, whatever the events tell.
    since = looked.events_since if networks else None
    return note_uses(state_dir, engine_id, uses_seen(looked), images, present, looked.now, nets, since)


def last_uses(state_dir: str, engine_id: str) -> dict[str, float]:
    """Return when earlier runs saw objects in use: key -> seconds since 1970; empty if nothing is known.

    A key is an image's id, the name of a volume behind ``VOLUME``, or the id of a network behind ``NETWORK``.
    """
    rows = _rows(state_dir, "SELECT object, used FROM last_use WHERE engine = ?", engine_id)
    try:
        return {str(key): float(used) for key, used in rows}
    except (TypeError, ValueError):
        return {}


def came_between(state_dir: str, engine_id: str) -> dict[str, float]:
    """Return when images were first seen that came after the first run: image id -> seconds since 1970."""
    rows = _rows(state_dir, "SELECT object, seen FROM first_seen WHERE engine = ?", engine_id)
    try:
        seen = {str(ident): float(moment) for ident, moment in rows}
    except (TypeError, ValueError):
        return {}
    begun = seen.pop(_BEGINNING, float("inf"))
    return {ident: moment for ident, moment in seen.items() if moment > begun}


def watched(state_dir: str, engine_id: str) -> Watched | None:
    """Return from when to when earlier runs saw the engine's events without a gap; None if nothing is known."""
    rows = _rows(state_dir, "SELECT since, until, sum FROM watched WHERE engine = ?", engine_id)
    return next((Watched(since, until) for since, until, sum_ in rows if sum_ == _sum(since, until)), None)


def note_uses(
    state_dir: str,
    engine_id: str,
    uses: t.Mapping[str, float],
    images: t.Collection[str],
    volumes: t.Collection[str] | None = None,
    now: float | None = None,
    networks: t.Collection[str] | None = None,
    since: float | None = None,
) -> bool:
    """Note when objects were seen in use, and images for the first time; forget those that the engine has no more.

    :param uses: key -> seconds since 1970; an earlier note that is later stands.
    :param images: ids of all images that the engine has.
    :param volumes: keys of all its volumes, None if this run did not ask for them.
    :param now: the engine's clock; this machine's if not given.
    :param networks: keys of all its networks, None if this run did not ask for them.
    :param since: since when none of its events is missing, None if that is not known.
    :returns: whether it could be noted.
    """

    moment = time.time() if now is None else now

    def here(key: str) -> bool:
        if key.startswith(VOLUME):
            return volumes is None or key in volumes
        if key.startswith(NETWORK):
            return networks is None or key in networks
        return key in images

    def write(connection: sqlite3.Connection) -> None:
        rows = connection.execute("SELECT object, used FROM last_use WHERE engine = ?", (engine_id,))
        known = {str(key): float(used) for key, used in rows}
        connection.executemany(
            "DELETE FROM last_use WHERE engine = ? AND object = ?",
            [(engine_id, key) for key in known if not here(key)],
        )
        connection.executemany(
            "INSERT OR REPLACE INTO last_use VALUES (?, ?, ?)",
            [(engine_id, key, used) for key, used in uses.items() if here(key) and not used <= known.get(key, 0.0) <= moment + _AHEAD],
        )
        rows = connection.execute("SELECT object FROM first_seen WHERE engine = ?", (engine_id,))
        seen = {str(ident) for (ident,) in rows}
        connection.executemany(
            "DELETE FROM first_seen WHERE engine = ? AND object = ?",
            [(engine_id, ident) for ident in seen - {_BEGINNING} if ident not in images],
        )
        connection.executemany(
            "INSERT INTO first_seen VALUES (?, ?, ?)",
            [(engine_id, ident, moment) for ident in {_BEGINNING, *images} - seen],
        )
        if since is not None and since <= moment:
            rows = connection.execute("SELECT since, until, sum FROM watched WHERE engine = ?", (engine_id,))
            before = next((Watched(*row[:2]) for row in rows if row[2] == _sum(*row[:2])), None)
            begun, until = float(since), float(moment)
            if before and before.until <= moment + _AHEAD and since <= before.until:
                begun, until = min(begun, before.since), max(until, before.until)
            connection.execute("INSERT OR REPLACE INTO watched VALUES (?, ?, ?, ?)", (engine_id, begun, until, _sum(begun, until)))

    return _note(state_dir, engine_id, write)


class Measured(t.NamedTuple):
    """What a layer was found to take, in bytes; ``identity`` is that of the folder in which it was found."""

    identity: str
    disk: int
    apparent: int
    frees: int
    inodes: int


def measured(state_dir: str, engine_id: str) -> dict[str, Measured]:
    """Return what earlier runs measured of layers that never change: account -> figures; empty if nothing is known."""
    rows = _rows(
        state_dir, "SELECT account, identity, disk, apparent, frees, inodes, sum FROM measured WHERE engine = ?", engine_id
    )
    # SQLite does not notice a flipped bit in a figure, and a wrong figure is worse than none.
    return {account: Measured(*figures) for account, *figures, sum_ in rows if sum_ == _sum(account, *figures)}


def note_measured(state_dir: str, engine_id: str, layers: t.Mapping[str, Measured]) -> bool:
    """Note what layers take, and forget all others; return whether it could be noted."""

    def write(connection: sqlite3.Connection) -> None:
        rows = connection.execute("SELECT account FROM measured WHERE engine = ?", (engine_id,))
        connection.executemany(
            "DELETE FROM measured WHERE engine = ? AND account = ?",
            [(engine_id, account) for (account,) in rows.fetchall() if account not in layers],
        )
        connection.executemany(
            "INSERT OR REPLACE INTO measured VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(engine_id, account, *figures, _sum(account, *figures)) for account, figures in layers.items()],
        )

    return _note(state_dir, engine_id, write)


def _sum(*values: object) -> int:
    return zlib.crc32(repr(values).encode("utf-8", "replace"))


def _rows(state_dir: str, query: str, engine_id: str) -> list[t.Any]:
    """What a query gives; nothing if there is no file, or none that can be read."""
    path = _path(state_dir)
    if not path or not engine_id or not os.path.isfile(path):
        return []
    try:
        connection = sqlite3.connect(f"file:{_quoted(path)}?mode=ro", uri=True, timeout=_PATIENCE)
        try:
            if connection.execute("PRAGMA user_version").fetchone()[0] > len(_MIGRATIONS):
                return []  # a later release's
            return connection.execute(query, (engine_id,)).fetchall()
        finally:
            connection.close()
    except (sqlite3.Error, OSError, ValueError, TypeError):
        return []


def _note(state_dir: str, engine_id: str, write: t.Callable[[sqlite3.Connection], None]) -> bool:
    path = _path(state_dir)
    if not path or not engine_id:
        return False
    try:
        if not _has_room(state_dir):
            return False
        os.makedirs(state_dir, mode=0o700, exist_ok=True)
        try:
            return _write(path, write)
        except (sqlite3.DatabaseError, TypeError, ValueError) as error:
            if isinstance(error, sqlite3.OperationalError) and "no such" not in str(error):
                return False  # locked, full, read-only: another time
            os.unlink(path)  # torn, or no database of ours at all: begin anew
            return _write(path, write)
    except (sqlite3.Error, OSError, TypeError, ValueError, OverflowError):
        return False


def _write(path: str, write: t.Callable[[sqlite3.Connection], None]) -> bool:
    connection = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(_MIGRATIONS):
            connection.execute("ROLLBACK")  # a later release's: it knows more than we do
            return False
        for number, step in enumerate(_MIGRATIONS[version:], version + 1):
            connection.execute(step)
            connection.execute(f"PRAGMA user_version = {number}")
        write(connection)
        connection.execute("COMMIT")
        return True
    finally:
        connection.close()


def _path(state_dir: str) -> str | None:
    return os.path.join(state_dir, _FILE) if state_dir and sqlite3 is not None else None


def _has_room(folder: str) -> bool:
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder.rstrip("/")) or "/"
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize > _ROOM


def _quoted(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
