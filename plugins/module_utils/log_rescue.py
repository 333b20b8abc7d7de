# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of a log is in memory alone for a moment, kept on a tmpfs: whoever is killed then loses nothing, the next run puts it back.

Only where there is no other way: btrfs without a free byte, and a log that is one extent.

Copies lie in a folder that only this user can look into, ``fleetclean-UID``, by the log's device and inode. Where everybody may write (``/dev/shm``)
somebody else may have taken that name: then the copy gets a name that nobody can guess, and the folder elsewhere has a link to it. So one look by
name finds what was kept, however many files others have put there.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import struct
import typing as t
from contextlib import contextmanager, suppress

from ansible_collections.fleetclean.docker.plugins.module_utils.safe_open import open_regular

_FOLDERS = ("/run", "/run/user/{user}", "/dev/shm")
_MAGIC = b"fleetclean log 1"
_HEAD = struct.Struct("=16s2Q")  # what it is, where it belongs, and its length: a file that is shorter was never finished
#: The longest copy, bytes: more is not taken through memory (``log_cuts``), but for two blocks that it covers in part.
_MOST = (1 << 26) + (1 << 13)
_RANDOM = re.compile(r"fleetclean-[0-9a-f]{32}")


@contextmanager
def kept(descriptor: int, position: int, content: bytes) -> t.Iterator[None]:
    """Keep a log's bytes from ``position`` on until they are in the log again.

    :raises OSError: no tmpfs takes them; nothing may be taken out of the log then.
    """
    if len(content) > _MOST:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    name = _name(descriptor)
    folder = _keep(name, _HEAD.pack(_MAGIC, position, len(content)) + content)
    yield
    # Not in a finally: where writing it back failed, the next run does it.
    with _home(folder) as home:
        _remove(home, name)
    with suppress(OSError):
        os.rmdir(_home_path(folder))


def put_back(descriptor: int) -> None:
    """Write into a log what somebody who was killed had taken out of it.

    Only into what is empty since then, or has the same bytes: the file's number may be another's by now.

    :raises OSError: it cannot be written; then it stays kept.
    """
    name = _name(descriptor)
    for folder in _FOLDERS:
        found = None
        with suppress(OSError), _home(folder) as home:
            found = _read(home, name)
        if found is None:
            continue
        _restore(descriptor, found)
        with suppress(OSError), _home(folder) as home:
            _remove(home, name)
            os.rmdir(_home_path(folder))


def _restore(descriptor: int, found: bytes) -> None:
    if len(found) < _HEAD.size:
        return
    magic, position, length = _HEAD.unpack_from(found)
    content = found[_HEAD.size:]
    if magic != _MAGIC or len(content) != length:
        return
    there = os.pread(descriptor, length, position)
    if len(there) == length and _fits(there, content):
        done = 0
        while done < length:
            done += os.pwrite(descriptor, content[done:], position + done)


def _fits(there: bytes, content: bytes) -> bool:
    """Whether what is there came from ``content``, with holes in it."""
    if there == content:
        return True
    size = 4096
    return all(
        there[at:at + size] in (content[at:at + size], bytes(len(there[at:at + size]))) for at in range(0, len(there), size)
    )


# -- where copies lie --------------------------------------------------------------------------------


def _name(descriptor: int) -> str:
    found = os.fstat(descriptor)
    return f"{found.st_dev:x}-{found.st_ino:x}"


def _home_path(folder: str) -> str:
    return f"{folder.format(user=os.geteuid())}/fleetclean-{os.geteuid()}"


@contextmanager
def _home(folder: str, make: bool = False) -> t.Iterator[int]:
    """Open our own folder in one that others may write to.

    :raises OSError: it is not there, or it is not ours alone.
    """
    path = _home_path(folder)
    if make:
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
    home = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(home)
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise PermissionError(errno.EPERM, "it is not this user's alone", path)
        yield home
    finally:
        os.close(home)


def _keep(name: str, content: bytes) -> str:
    """Write a copy into the first folder that takes it, and return the folder that has it by its name.

    :raises OSError: none does.
    """
    refused: list[OSError] = []
    # Twice: who is done with a copy of another log removes the folder that we have just made sure of.
    for folder in _FOLDERS * 2:
        try:
            with _home(folder, make=True) as home:
                _write(name, content, home)
            return folder
        except OSError as error:
            refused.append(error)
    # What has no room may have some for a link, to where there is room and no folder of ours.
    for folder in _FOLDERS:
        try:
            with _home(folder) as home:
                _write_beside(home, name, content)
            return folder
        except OSError as error:
            refused.append(error)
    raise next((error for error in refused if error.errno != errno.ENOENT), refused[0])


def _write(name: str, content: bytes, home: int | None = None) -> None:
    copy = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=home)
    try:
        with os.fdopen(copy, "wb") as stream:
            stream.write(content)
    except OSError:
        os.unlink(name, dir_fd=home)
        raise


def _write_beside(home: int, name: str, content: bytes) -> None:
    """Write a copy by a name that nobody can guess; the link is first, so that no copy is forgotten."""
    path = f"{_FOLDERS[-1]}/fleetclean-{secrets.token_hex(16)}"
    os.symlink(path, name, dir_fd=home)
    try:
        _write(path, content)
    except OSError:
        os.unlink(name, dir_fd=home)
        raise


def _beside(home: int, name: str) -> str:
    """Where the link leads that we have made in our folder; "" if there is none."""
    try:
        path = os.readlink(name, dir_fd=home)
    except OSError:
        return ""
    folder, _slash, last = path.rpartition("/")
    return path if folder == _FOLDERS[-1] and _RANDOM.fullmatch(last) else ""


def _read(home: int, name: str) -> bytes | None:
    """What was kept by this name, as far as it was written; None if nothing was, or what is there is not ours.

    In a folder that everybody may write to it may be anything.
    """
    beside = _beside(home, name)
    try:
        copy = open_regular(beside or name, dir_fd=None if beside else home)
    except FileNotFoundError:
        return b"" if beside else None
    with os.fdopen(copy, "rb") as stream:
        about = os.fstat(copy)
        if about.st_uid != os.geteuid() or about.st_nlink != 1 or about.st_size > _HEAD.size + _MOST:
            return None
        return stream.read(_HEAD.size + _MOST)


def _remove(home: int, name: str) -> None:
    beside = _beside(home, name)
    if beside:
        with suppress(FileNotFoundError):
            os.unlink(beside)
    os.unlink(name, dir_fd=home)
