# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small SQLite file on the host, opened so that nothing in it takes more than its bounds, and never in the way.

A disk that is full or read-only, a file that is torn, locked or of a later release, a Python without SQLite are all no error.
Only if its tables are those of the migrations, to the letter, is anything read: so no view, trigger or virtual table is ever run.
``connect`` is the one place that opens it.

Migrations are a list; a file's ``user_version`` says how many of them it has had.
"""

from __future__ import annotations

import os
import typing as t
from contextlib import closing, suppress
from functools import lru_cache

from ansible_collections.fleetclean.docker.plugins.module_utils import state_folder, trust

try:
    import sqlite3
except ImportError:  # a Python built without it
    sqlite3 = None  # type: ignore[assignment]

MIGRATIONS = (
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
#: Seconds to wait for another run that writes.
_PATIENCE = 2.0
#: SQLite's journal needs room beside the file; without that much free, nothing is written.
_ROOM = 4 << 20
#: Bytes of the file; ten thousand images, their layers and names take a tenth of it.
_LARGEST = 64 << 20
#: What is read of one table, and how long a name may be. More of either was not written by this.
_MOST_ROWS, LONGEST_NAME = 200_000, 4096
#: Steps of SQLite's machine for one use of the file, some seconds' worth, and bytes of memory.
_MOST_STEPS, _STEPS_AT_ONCE, _MOST_MEMORY = 100_000_000, 100_000, 32 << 20
_LONGEST_VALUE = 1 << 20
_TABLES = ("last_use", "measured", "first_seen", "watched")
#: What another run, or the disk, is in the way of, in SQLite's words; all else is the file's own trouble.
_PASSING = ("locked", "full", "readonly", "unable to open", "disk I/O error")


def damage(state_dir: str) -> str | None:
    """Return why what earlier runs saw cannot be read, if the file is damaged or not of this collection; None if it is whole, or not there."""
    if sqlite3 is None:
        return None
    try:
        path = state_folder.file_in(state_dir)
        if path and os.path.lexists(path):
            with closing(connect(path, "ro")) as connection:
                _version(connection)
    except (sqlite3.DatabaseError, MemoryError, ValueError) as error:
        if not _is_passing(error):
            file, why = os.path.join(state_dir, state_folder.FILE), str(error) or "out of memory"
            return f"{file} cannot be read ({why}); what earlier runs saw is not known, and it is made anew."
    except state_folder.NotAFile as error:
        return f"{error.filename} is no file; what earlier runs saw is not known, and nothing is noted until it is removed."
    except (OSError, trust.NotTrusted):
        pass
    return None


def rows(state_dir: str, query: str, engine_id: str) -> list[t.Any]:
    """What a query gives; nothing if there is no file, or none that can be read."""
    if sqlite3 is None or not engine_id:
        return []
    try:
        path = state_folder.file_in(state_dir)
        if not path or not os.path.lexists(path):
            return []
        with closing(connect(path, "ro")) as connection:
            connection.execute("BEGIN")
            # A later release's is none that can be read.
            return select(connection, query, engine_id) if _version(connection) <= len(MIGRATIONS) else []
    except (sqlite3.Error, MemoryError, OSError, ValueError, TypeError, trust.NotTrusted):
        return []


def select(connection: sqlite3.Connection, query: str, engine_id: str) -> list[t.Any]:
    """What a query gives of this engine.

    :raises sqlite3.DatabaseError: there are more rows than were ever noted.
    """
    found = connection.execute(query, (engine_id,)).fetchmany(_MOST_ROWS + 1)
    if len(found) > _MOST_ROWS:
        raise sqlite3.DatabaseError(f"it has more than {_MOST_ROWS} rows")
    return found


def note(state_dir: str, engine_id: str, write: t.Callable[[sqlite3.Connection], None]) -> bool:
    """Let ``write`` change the file in one transaction, made anew where it is torn; return whether that was done."""
    if sqlite3 is None or not engine_id:
        return False
    try:
        path = state_folder.file_in(state_dir)
        if not path or not _has_room(os.path.dirname(path)):
            return False
        _make_folder(os.path.dirname(path))
        state_folder.trusted(state_dir)  # in a folder as /tmp somebody else may have made it first
        try:
            return _write(path, write)
        except (sqlite3.DatabaseError, MemoryError, TypeError, ValueError) as error:
            if _is_passing(error):
                return False  # another time
            # Torn, or no database of ours at all: begin anew. The file goes last, since without it what is beside it means nothing.
            for suffix in (*state_folder.BESIDE, ""):
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
    with closing(connect(path, "rw")) as connection:
        connection.execute("BEGIN IMMEDIATE")
        version = _version(connection)
        if version > len(MIGRATIONS):
            return False  # a later release's: it knows more than we do
        if version < len(MIGRATIONS):
            connection.set_authorizer(_allow_all)
            _migrate(connection, version, len(MIGRATIONS))
            connection.set_authorizer(_allow)
        write(connection)
        connection.execute("COMMIT")
        return True


def _migrate(connection: sqlite3.Connection, version: int, until: int) -> None:
    for number in range(version, until):
        connection.execute(MIGRATIONS[number])
        connection.execute(f"PRAGMA user_version = {number + 1}")


# -- opening what may be anything -------------------------------------------------------------------


def connect(path: str, mode: str) -> sqlite3.Connection:
    """Open the file so that nothing in it takes more than its bounds.

    :raises sqlite3.DatabaseError: it is too large.
    """
    size = sum(os.lstat(path + suffix).st_size for suffix in ("", *state_folder.BESIDE) if os.path.lexists(path + suffix))
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
    if version <= len(MIGRATIONS):
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
