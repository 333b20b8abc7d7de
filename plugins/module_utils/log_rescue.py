# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of a log is in memory alone for a moment, kept on a tmpfs: whoever is killed then loses nothing, the next run puts it back.

Only where there is no other way: btrfs without a free byte, and a log that is one extent.
"""

from __future__ import annotations

import os
import stat
import struct
import typing as t
from contextlib import contextmanager

_FOLDERS = ("/run", "/dev/shm")
_HEAD = struct.Struct("=2Q")  # where it belongs, and its length: a file that is shorter was never finished


@contextmanager
def kept(descriptor: int, position: int, content: bytes) -> t.Iterator[None]:
    """Keep a log's bytes from ``position`` on until they are in the log again.

    :raises OSError: no tmpfs takes them; nothing may be taken out of the log then.
    """
    path = _path(descriptor, _FOLDERS[0])
    for folder in _FOLDERS:
        path = _path(descriptor, folder)
        try:
            copy = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError:
            if folder == _FOLDERS[-1]:
                raise
            continue
        try:
            with os.fdopen(copy, "wb") as stream:
                stream.write(_HEAD.pack(position, len(content)) + content)
            break
        except OSError:
            os.unlink(path)
            if folder == _FOLDERS[-1]:
                raise
    yield
    # Not in a finally: where writing it back failed, the next run does it.
    os.unlink(path)


def put_back(descriptor: int) -> None:
    """Write into a log what somebody who was killed had taken out of it.

    Only into what is empty since then, or has the same bytes: the file's number may be another's by now.
    """
    for folder in _FOLDERS:
        path = _path(descriptor, folder)
        try:
            copy = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        about = os.fstat(copy)
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_nlink != 1:
            os.close(copy)
            continue  # a folder that everybody may write to
        with os.fdopen(copy, "rb") as stream:
            found = stream.read()
        if len(found) >= _HEAD.size:
            position, length = _HEAD.unpack_from(found)
            content = found[_HEAD.size:]
            there = os.pread(descriptor, length, position)
            if len(content) == length == len(there) and _fits(there, content):
                done = 0
                while done < length:
                    done += os.pwrite(descriptor, content[done:], position + done)
        os.unlink(path)


def _fits(there: bytes, content: bytes) -> bool:
    """Whether what is there came from ``content``, with holes in it."""
    if there == content:
        return True
    size = 4096
    return all(
        there[at:at + size] in (content[at:at + size], bytes(len(there[at:at + size]))) for at in range(0, len(there), size)
    )


def _path(descriptor: int, folder: str) -> str:
    found = os.fstat(descriptor)
    return f"{folder}/fleetclean-{found.st_dev:x}-{found.st_ino:x}"
