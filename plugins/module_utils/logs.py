# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A container's log files: where they are, which are whose, and how to open them without being led elsewhere.

Drivers and names: daemon/logger/jsonfilelog, daemon/logger/local, daemon/logger/loggerutils/cache (the engine's own copy of
what drivers that cannot be read back get, since 20.10). Exec sessions and health checks write no log files.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import time
import typing as t
from contextlib import contextmanager

from ansible_collections.fleetclean.docker.plugins.module_utils.log_records import (
    FRAMED,
    JSON_LINES,
    Format,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.safe_open import NotRegular, open_directory, open_real_directory, open_regular

_ID = re.compile(r"[0-9a-f]{64}")
#: What a rotated file's name has behind the log's: the engine's .1 and .2.gz, and logrotate's, which has dates (dateext, dateformat) and
#: other packers (compresscmd, compressext) as well. Names that people give, such as .bak, are none.
_ROTATED = re.compile(r"(\.[0-9]+|[.-][0-9]{4}-?[0-9]{2}-?[0-9]{2}[0-9]*([-_.T][0-9]+)*)(\.(gz|bz2|xz|zst|lzma|lz4|Z))?")
#: Seconds; between the old log's new name and the new log the engine does nothing else.
_ROTATES_WITHIN = 0.5
#: Engines from 18.09 on pass over rotated files that are not there any more.
MISSES_NO_ROTATED = (18, 9)


class Kind(t.NamedTuple):
    """A kind of log file: the driver that writes it (None: the engine's copy for a driver that cannot be read), and its name."""

    driver: str | None
    folder: str
    name: str
    format: Format

    def file(self, ident: str) -> str:
        return self.name.format(ident)

    def path(self, containers: str, ident: str) -> str:
        return "/".join(part for part in (containers, ident, self.folder, self.file(ident)) if part)


JSON_FILE = Kind("json-file", "", "{0}-json.log", JSON_LINES)
LOCAL = Kind("local", "local-logs", "container.log", FRAMED)
CACHE = Kind(None, "", "container-cached.log", FRAMED)
KINDS = (JSON_FILE, LOCAL, CACHE)


class LogRefused(Exception):
    """This file is not touched; the message says why, and names the path."""


class Rotated(Exception):
    """The engine put another file in the place of the one that is open."""


@contextmanager
def _folder(containers: str, ident: str, kind: Kind) -> t.Iterator[int]:
    """Open the folder of a container's log without following any link.

    The way there may belong to the user of an engine without root, who could make it lead to another engine's logs once it was looked at.

    :param containers: the folder of all containers by its real path, below the proven data root or where a link of its own was verified to lead.
    :param ident: the container's id, 64 hexadecimal digits; nothing else becomes part of a path.
    """
    if not _ID.fullmatch(ident):
        raise LogRefused(f"{ident!r} is not a container's id")
    above, name = os.path.split(containers)
    opened: list[int] = []
    try:
        opened.append(open_real_directory(above))
        for part in (name, ident, kind.folder):
            if part:
                opened.append(open_directory(part, opened[-1]))
        yield opened[-1]
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise LogRefused(f"{kind.path(containers, ident)} is reached through a link; it stays as it is") from None
        raise
    finally:
        for descriptor in reversed(opened):
            os.close(descriptor)


@contextmanager
def open_log(containers: str, ident: str, write: bool, kind: Kind = JSON_FILE) -> t.Iterator[int]:
    """Open a container's log, the one that is written now.

    :raises LogRefused: it is not a plain file of the engine's.
    :raises OSError: it is not there, or cannot be opened.
    """
    path = kind.path(containers, ident)
    with _folder(containers, ident, kind) as folder:
        mode = os.O_RDWR if write else os.O_RDONLY
        _await_rotation(folder, ident, kind)
        try:
            descriptor = open_regular(kind.file(ident), mode, dir_fd=folder)
        except NotRegular as error:
            if error.errno == errno.ELOOP:
                raise
            raise LogRefused(f"{path} is not a regular file; it stays as it is") from None
        try:
            found = os.fstat(descriptor)
            if found.st_nlink > 1:
                raise LogRefused(f"{path} has another name elsewhere (a hard link); it stays as it is")
            if found.st_uid not in (0, os.fstat(folder).st_uid):
                raise LogRefused(f"{path} belongs to user {found.st_uid}, not to the engine; it stays as it is")
            yield descriptor
        finally:
            os.close(descriptor)


@contextmanager
def claim(containers: str, ident: str, kind: Kind) -> t.Iterator[int]:
    """Open a log to change it, once nobody else of us does: whoever comes second waits."""
    while True:
        with open_log(containers, ident, True, kind) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not is_current(containers, ident, kind, descriptor):
                continue  # rotated while we waited
            yield descriptor
            return


def is_current(containers: str, ident: str, kind: Kind, descriptor: int) -> bool:
    """Whether this open file still is the log that is written."""
    try:
        there = os.stat(kind.path(containers, ident), follow_symlinks=False)
    except OSError:
        return False
    here = os.fstat(descriptor)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def kinds(containers: str, ident: str) -> list[Kind]:
    """The logs that a container has, by name alone."""
    return [kind for kind in KINDS if _ID.fullmatch(ident) and _is_there(containers, ident, kind)]


def _is_there(containers: str, ident: str, kind: Kind) -> bool:
    if os.path.lexists(kind.path(containers, ident)):
        return True
    try:
        with _folder(containers, ident, kind) as folder:
            _await_rotation(folder, ident, kind)
    except (OSError, LogRefused):
        return False
    return os.path.lexists(kind.path(containers, ident))


def _await_rotation(folder: int, ident: str, kind: Kind) -> None:
    """Wait a little for a log that is not there and has rotated files: the engine renames it first, and makes the new one then."""
    until = time.monotonic() + _ROTATES_WITHIN
    while not _has(folder, kind.file(ident)) and _rotated_names(folder, ident, kind) and time.monotonic() < until:
        time.sleep(0.01)


def _has(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _rotated_names(folder: int, ident: str, kind: Kind) -> list[str]:
    file = kind.file(ident)
    return sorted(name for name in os.listdir(folder) if _is_rotated(name, file))


def _is_rotated(name: str, file: str) -> bool:
    """Whether a name is that of a rotated file of the log ``file``."""
    return name.startswith(file) and _ROTATED.fullmatch(name, len(file)) is not None


def rotated(containers: str, ident: str, kind: Kind) -> list[tuple[str, os.stat_result]]:
    """The rotated files of a log, the engine's and logrotate's: their names, and what they are. Links and other things are not among them."""
    found = []
    try:
        with _folder(containers, ident, kind) as folder:
            for name in _rotated_names(folder, ident, kind):
                try:
                    about = os.stat(name, dir_fd=folder, follow_symlinks=False)
                except FileNotFoundError:
                    continue  # the engine gave it its next name, or has packed it
                if stat.S_ISREG(about.st_mode):
                    found.append((name, about))
    except FileNotFoundError:
        pass
    return found


def remove_rotated(containers: str, ident: str, kind: Kind, held: t.Collection[tuple[int, int]]) -> int:
    """Remove the rotated files of a log, the engine's and logrotate's, and return the bytes that come free.

    :param held: files (device, inode) that somebody has open for writing: they stay, whatever they are called.
    :raises OSError: one cannot be removed.
    """
    freed = 0
    for name, about in rotated(containers, ident, kind):
        if (about.st_dev, about.st_ino) in held:
            continue
        with _folder(containers, ident, kind) as folder:
            try:
                os.unlink(name, dir_fd=folder)
            except FileNotFoundError:
                continue  # the engine was quicker
        freed += about.st_blocks * 512 if about.st_nlink == 1 else 0
    return freed


def files(folder: str, ident: str) -> list[str]:
    """The log files in a container's folder by name alone: what can be cut, and what removing rotated ones takes.

    json-file and ``local`` write there, and the engine itself for drivers that cannot be read back
    (``container-cached.log``, engine 20.10 and newer).
    """
    found = []
    listed: dict[str, list[str]] = {}
    for kind in KINDS:
        place = f"{folder}/{kind.folder}" if kind.folder else folder
        if place not in listed:
            try:
                listed[place] = os.listdir(place)
            except OSError:
                listed[place] = []
        file = kind.file(ident)
        found += [f"{place}/{name}" for name in listed[place] if name == file or _is_rotated(name, file)]
    return found
