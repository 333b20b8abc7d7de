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

**Who may write it.** What is remembered decides what looks old. So the folder, and each part of the path to it, belongs to the user who runs this or to root,
and nobody else may write there (``trust.py``); else ``check`` refuses it before anything is touched. What this makes is for its user
alone. The file itself is opened by ``_connect``, the one place: within bounds of size, steps and memory, and only if its tables are those
of the migrations, to the letter, so that no view, trigger or virtual table is ever run.

Migrations are a list; a file's ``user_version`` says how many of them it has had.
"""

from __future__ import annotations

import errno
import math
import os
import stat
import time
import typing as t
import zlib
from contextlib import closing, suppress
from functools import lru_cache

from ansible_collections.fleetclean.docker.plugins.module_utils import trust
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError
from ansible_collections.fleetclean.docker.plugins.module_utils.last_use import Watched, uses_seen
from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import NETWORK, VOLUME, Snapshot

try:
    import sqlite3
except ImportError:  # a Python built without it
    sqlite3 = None  # type: ignore[assignment]

_FILE = "history.sqlite"
#: What SQLite puts beside the file (https://sqlite.org/tempfiles.html).
_BESIDE = ("-journal", "-wal", "-shm")
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
#: Bytes of the file; ten thousand images, their layers and names take a tenth of it.
_LARGEST = 64 << 20
#: What is read of one table, and how long a name may be. More of either was not written by this.
_MOST_ROWS, _LONGEST_NAME = 200_000, 4096
#: Steps of SQLite's machine for one use of the file, some seconds' worth, and bytes of memory.
_MOST_STEPS, _STEPS_AT_ONCE, _MOST_MEMORY = 100_000_000, 100_000, 32 << 20
_LONGEST_VALUE = 1 << 20
_TABLES = ("last_use", "measured", "first_seen", "watched")
#: What another run, or the disk, is in the way of, in SQLite's words; all else is the file's own trouble.
_PASSING = ("locked", "full", "readonly", "unable to open", "disk I/O error")


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
    return _moments(_rows(state_dir, "SELECT object, used FROM last_use WHERE engine = ?", engine_id))


def came_between(state_dir: str, engine_id: str) -> dict[str, float]:
    """Return when images were first seen that came after the first run: image id -> seconds since 1970."""
    seen = _moments(_rows(state_dir, "SELECT object, seen FROM first_seen WHERE engine = ?", engine_id))
    begun = seen.pop(_BEGINNING, float("inf"))
    return {ident: moment for ident, moment in seen.items() if moment > begun}


def watched(state_dir: str, engine_id: str) -> Watched | None:
    """Return from when to when earlier runs saw the engine's events without a gap; None if nothing is known."""
    rows = _rows(state_dir, "SELECT since, until, sum FROM watched WHERE engine = ?", engine_id)
    return _watched(rows)


def _moments(rows: t.Iterable[t.Sequence[t.Any]]) -> dict[str, float]:
    """Names, each with a time, of rows; those of another kind are left out: SQLite does not insist on a column's type."""
    return {key: float(moment) for key, moment in rows if isinstance(key, str) and len(key) <= _LONGEST_NAME and _is_moment(moment)}


def _watched(rows: t.Iterable[t.Sequence[t.Any]]) -> Watched | None:
    found = (Watched(since, until) for since, until, sum_ in rows if _is_moment(since) and _is_moment(until) and sum_ == _sum(since, until))
    return next(found, None)


def _is_moment(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


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
        known = _moments(_select(connection, "SELECT object, used FROM last_use WHERE engine = ?", engine_id))
        connection.executemany(
            "DELETE FROM last_use WHERE engine = ? AND object = ?",
            [(engine_id, key) for key in known if not here(key)],
        )
        connection.executemany(
            "INSERT OR REPLACE INTO last_use VALUES (?, ?, ?)",
            [
                (engine_id, key, used)
                for key, used in uses.items()
                if here(key) and len(key) <= _LONGEST_NAME and not used <= known.get(key, 0.0) <= moment + _AHEAD
            ],
        )
        rows = _select(connection, "SELECT object FROM first_seen WHERE engine = ?", engine_id)
        seen = {ident for (ident,) in rows if isinstance(ident, str)}
        connection.executemany(
            "DELETE FROM first_seen WHERE engine = ? AND object = ?",
            [(engine_id, ident) for ident in seen - {_BEGINNING} if ident not in images],
        )
        connection.executemany(
            "INSERT INTO first_seen VALUES (?, ?, ?)",
            [(engine_id, ident, moment) for ident in {_BEGINNING, *images} - seen],
        )
        if since is not None and since <= moment:
            before = _watched(_select(connection, "SELECT since, until, sum FROM watched WHERE engine = ?", engine_id))
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
    return {
        account: Measured(identity, *figures)
        for account, identity, *figures, sum_ in rows
        if isinstance(account, str) and isinstance(identity, str) and all(isinstance(figure, int) for figure in figures)
        and sum_ == _sum(account, identity, *figures)
    }


def note_measured(state_dir: str, engine_id: str, layers: t.Mapping[str, Measured]) -> bool:
    """Note what layers take, and forget all others; return whether it could be noted."""

    def write(connection: sqlite3.Connection) -> None:
        rows = _select(connection, "SELECT account FROM measured WHERE engine = ?", engine_id)
        connection.executemany(
            "DELETE FROM measured WHERE engine = ? AND account = ?",
            [(engine_id, account) for (account,) in rows if account not in layers],
        )
        connection.executemany(
            "INSERT OR REPLACE INTO measured VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(engine_id, account, *figures, _sum(account, *figures)) for account, figures in layers.items()],
        )

    return _note(state_dir, engine_id, write)


def _sum(*values: object) -> int:
    return zlib.crc32(repr(values).encode("utf-8", "replace"))


class _NotAFile(OSError):
    """Something of ours, or root's, is in the place of the file. It is not opened."""


def check(state_dir: str) -> None:
    """Refuse a folder where somebody else could change what is remembered. To be called before anything is touched.

    :raises FleetcleanError: somebody else could; it says who.
    """
    try:
        _trusted(state_dir)
    except (trust.NotTrusted, ValueError) as why:
        raise FleetcleanError(
            f'state_dir: "{state_dir}" cannot be used: {why}. Use a folder that only the user who runs this, and root, may write to, or "".', "bad_input"
        ) from None
    except OSError:
        return  # a place where nothing can be remembered is no error


def damage(state_dir: str) -> str | None:
    """Return why what earlier runs saw cannot be read, if the file is damaged or not of this collection; None if it is whole, or not there."""
    if sqlite3 is None:
        return None
    try:
        path = _path(state_dir)
        if path and os.path.lexists(path):
            with closing(_connect(path, "ro")) as connection:
                _version(connection)
    except (sqlite3.DatabaseError, MemoryError, ValueError) as error:
        if not _is_passing(error):
            file, why = os.path.join(state_dir, _FILE), str(error) or "out of memory"
            return f"{file} cannot be read ({why}); what earlier runs saw is not known, and it is made anew."
    except _NotAFile as error:
        return f"{error.filename} is no file; what earlier runs saw is not known, and nothing is noted until it is removed."
    except (OSError, trust.NotTrusted):
        pass
    return None


def _trusted(state_dir: str) -> str:
    """Return the folder, without links, and look at what is there already.

    :raises trust.NotTrusted: somebody else can write, or wrote, there.
    :raises OSError: it cannot be looked at.
    """
    users = {0, os.geteuid()}
    # Not even a folder as /tmp: whoever makes a journal there decides what SQLite puts into the file.
    folder = trust.resolve(state_dir, users, missing=True, shared=False)
    for suffix in ("", *_BESIDE):
        path = f"{folder.rstrip('/')}/{_FILE}{suffix}"
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            continue
        if stat.S_ISLNK(found.st_mode):
            raise trust.NotTrusted(f"{path} is a link")
        if found.st_uid not in users:
            raise trust.NotTrusted(f"{path} belongs to user {found.st_uid}")
        if trust.others_may_write(found, path):
            raise trust.NotTrusted(f"others may write to {path}")
        if not stat.S_ISREG(found.st_mode):
            raise _NotAFile(errno.EINVAL, "is no file", path)
    return folder


def _path(state_dir: str) -> str | None:
    """Return the file that nobody else can have written; None if nothing is to be remembered."""
    return f"{_trusted(state_dir).rstrip('/')}/{_FILE}" if os.path.isabs(state_dir) else None


def _rows(state_dir: str, query: str, engine_id: str) -> list[t.Any]:
    """What a query gives; nothing if there is no file, or none that can be read."""
    if sqlite3 is None or not engine_id:
        return []
    try:
        path = _path(state_dir)
        if not path or not os.path.lexists(path):
            return []
        with closing(_connect(path, "ro")) as connection:
            connection.execute("BEGIN")
            # A later release's is none that can be read.
            return _select(connection, query, engine_id) if _version(connection) <= len(_MIGRATIONS) else []
    except (sqlite3.Error, MemoryError, OSError, ValueError, TypeError, trust.NotTrusted):
        return []


def _select(connection: sqlite3.Connection, query: str, engine_id: str) -> list[t.Any]:
    rows = connection.execute(query, (engine_id,)).fetchmany(_MOST_ROWS + 1)
    if len(rows) > _MOST_ROWS:
        raise sqlite3.DatabaseError(f"it has more than {_MOST_ROWS} rows")
    return rows


def _note(state_dir: str, engine_id: str, write: t.Callable[[sqlite3.Connection], None]) -> bool:
    if sqlite3 is None or not engine_id:
        return False
    try:
        path = _path(state_dir)
        if not path or not _has_room(os.path.dirname(path)):
            return False
        _make_folder(os.path.dirname(path))
        _trusted(state_dir)  # in a folder as /tmp somebody else may have made it first
        try:
            return _write(path, write)
        except (sqlite3.DatabaseError, MemoryError, TypeError, ValueError) as error:
            if _is_passing(error):
                return False  # another time
            # Torn, or no database of ours at all: begin anew. The file goes last, since without it what is beside it means nothing.
            for suffix in (*_BESIDE, ""):
                with suppress(FileNotFoundError):
                    os.unlink(path + suffix)
            return _write(path, write)
    except (sqlite3.Error, MemoryError, OSError, TypeError, ValueError, OverflowError, trust.NotTrusted):
        return False


def _make_folder(folder: str) -> None:
    """Make a folder and those above it, for this user alone."""
    missing = []
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for path in reversed(missing):
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)


def _write(path: str, write: t.Callable[[sqlite3.Connection], None]) -> bool:
    # SQLite would make it for all to read; its journal has the mode of the file (os_unix.c, findCreateFileMode).
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_uid == os.geteuid():
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)
    with closing(_connect(path, "rw")) as connection:
        connection.execute("BEGIN IMMEDIATE")
        version = _version(connection)
        if version > len(_MIGRATIONS):
            return False  # a later release's: it knows more than we do
        if version < len(_MIGRATIONS):
            connection.set_authorizer(_allow_all)
            _migrate(connection, version, len(_MIGRATIONS))
            connection.set_authorizer(_allow)
        write(connection)
        connection.execute("COMMIT")
        return True


def _migrate(connection: sqlite3.Connection, version: int, until: int) -> None:
    for number in range(version, until):
        connection.execute(_MIGRATIONS[number])
        connection.execute(f"PRAGMA user_version = {number + 1}")


# -- opening what may be anything -------------------------------------------------------------------


def _connect(path: str, mode: str) -> sqlite3.Connection:
    """Open the file so that nothing in it takes more than its bounds.

    :raises sqlite3.DatabaseError: it is too large.
    """
    size = sum(os.lstat(path + suffix).st_size for suffix in ("", *_BESIDE) if os.path.lexists(path + suffix))
    if size > _LARGEST:
        raise sqlite3.DatabaseError(f"it has {size} bytes, more than {_LARGEST}")
    connection = sqlite3.connect(f"file:{_quoted(path)}?mode={mode}", uri=True, timeout=_PATIENCE, isolation_level=None)
    try:
        # Before anything is read; a SQLite that does not know one of them passes it over.
        for pragma in (f"hard_heap_limit = {_MOST_MEMORY}", "trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        if hasattr(connection, "setlimit"):  # Python 3.11 and newer
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE)
            connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        steps = iter(range(_MOST_STEPS // _STEPS_AT_ONCE))
        connection.set_progress_handler(lambda: next(steps, None) is None, _STEPS_AT_ONCE)
        connection.set_authorizer(_allow)
    except BaseException:
        connection.close()
        raise
    return connection


def _allow(action: int, first: str | None, second: str | None, _database: str | None, inside: str | None) -> int:
    """What SQLite may do for a statement: read and write our tables, and nothing from within a view or a trigger."""
    ours = first in _TABLES or (action == sqlite3.SQLITE_READ and first in ("sqlite_master", "sqlite_schema"))
    allowed = (
        action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_TRANSACTION)
        or (action in (sqlite3.SQLITE_READ, sqlite3.SQLITE_INSERT, sqlite3.SQLITE_DELETE) and ours)
        or (action == sqlite3.SQLITE_PRAGMA and first == "user_version" and second is None)
    )
    return sqlite3.SQLITE_OK if allowed and inside is None else sqlite3.SQLITE_DENY


def _allow_all(*_what: object) -> int:
    return sqlite3.SQLITE_OK


def _version(connection: sqlite3.Connection) -> int:
    """Return how many migrations a file has had.

    :raises sqlite3.DatabaseError: its tables are not those that they make. A later release's are not looked at.
    """
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version <= len(_MIGRATIONS):
        known = _schema(version) if version >= 0 else None
        # One more than there should be says enough.
        if known is None or sorted(connection.execute(_SCHEMA).fetchmany(len(known) + 1)) != known:
            raise sqlite3.DatabaseError("its tables are not those of this collection")
    return int(version)


_SCHEMA = "SELECT type, name, tbl_name, sql FROM sqlite_master"


@lru_cache(maxsize=None)
def _schema(version: int) -> list[tuple[t.Any, ...]]:
    """The tables of a file that has had so many migrations."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        _migrate(connection, 0, version)
        return sorted(connection.execute(_SCHEMA).fetchall())


def _is_passing(error: BaseException) -> bool:
    """Whether a failure is another run's or the disk's, and may be none the next time."""
    return isinstance(error, sqlite3.OperationalError) and any(words in str(error) for words in _PASSING)


def _has_room(folder: str) -> bool:
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder.rstrip("/")) or "/"
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize > _ROOM


def _quoted(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
