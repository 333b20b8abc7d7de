# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open files and folders that others may have made: regular files and directories only, never through a link.

What a container or an image has written may be anything, and may become something else between a look and the opening.
Opening a device or a FIFO does something (a tape rewinds, a watchdog starts, a writer is woken) or waits. So:

* A regular file is opened with ``O_PATH``, which touches no driver (open(2)), looked at, and opened again through that
  descriptor: what was looked at is what is opened, whatever the name leads to by then.
* A directory is opened with ``O_DIRECTORY``: the kernel looks before it calls anything else of the file
  (fs/namei.c, do_open: ``LOOKUP_DIRECTORY`` without ``d_can_lookup`` is ``ENOTDIR``, before ``vfs_open``).
"""

from __future__ import annotations

import errno
import os
import stat

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
#: How a directory is opened.
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: Of a lease that somebody else has on the file one is told at once (fcntl(2), F_SETLEASE).
_ALWAYS = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_TYPES = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFBLK: "a device", stat.S_IFCHR: "a device"}


class NotMeant(OSError):
    """There is something else than what is to be opened."""


class NotRegular(NotMeant):
    """There is something else than a regular file."""


def open_regular(path: str, flags: int = os.O_RDONLY, dir_fd: int | None = None) -> int:
    """Open a regular file, which the last part of ``path`` is itself; return the descriptor.

    :param flags: how to open it; nothing is created.
    :raises NotRegular: it is something else. Its ``errno`` is ELOOP for a link and ENXIO for a socket, as open(2) has it, else EINVAL.
    """
    held = os.open(path, _LOOK, dir_fd=dir_fd)
    try:
        _refuse_others(os.fstat(held).st_mode, path)
        return _open_held(held, flags, path)
    finally:
        os.close(held)


def open_regular_of_process(link: str, inode: tuple[int, int], flags: int = os.O_RDONLY) -> int:
    """Open the regular file that one of a process's links in /proc (``fd``, ``map_files``) stands for; return the descriptor.

    :param inode: device and number of the file that is meant.
    :raises NotMeant: it is something else, or another file, by now.
    """
    held = os.open(link, _LOOK & ~os.O_NOFOLLOW)
    try:
        about = os.fstat(held)
        _refuse_others(about.st_mode, link)
        if (about.st_dev, about.st_ino) != inode:
            raise NotMeant(errno.ESTALE, "it is another file by now", link)
        return _open_held(held, flags, link)
    finally:
        os.close(held)


def open_block_device(path: str, device: int) -> int:
    """Open a block device to read it, if it is the one of that number; return the descriptor. Links are followed.

    :raises OSError: it is another one, or none.
    """
    held = os.open(path, _LOOK & ~os.O_NOFOLLOW)
    try:
        about = os.fstat(held)
        if not stat.S_ISBLK(about.st_mode) or about.st_rdev != device:
            raise OSError(errno.ENODEV, "it is not the device that is meant", path)
        return _open_held(held, os.O_RDONLY, path)
    finally:
        os.close(held)


def _refuse_others(mode: int, path: str) -> None:
    if stat.S_ISLNK(mode):
        raise NotRegular(errno.ELOOP, os.strerror(errno.ELOOP), path)
    if not stat.S_ISREG(mode):
        number = errno.ENXIO if stat.S_ISSOCK(mode) else errno.EINVAL
        raise NotRegular(number, f"it is {_TYPES.get(stat.S_IFMT(mode), 'something else')}, not a regular file", path)


def _open_held(held: int, flags: int, path: str) -> int:
    try:
        return os.open(f"/proc/self/fd/{held}", flags & ~os.O_NOFOLLOW | _ALWAYS)
    except OSError as error:
        # The file is held, so it is /proc that is not there.
        words = "/proc is not mounted" if error.errno == errno.ENOENT else error.strerror
        raise OSError(errno.ENOTSUP if error.errno == errno.ENOENT else error.errno, words, path) from None


def open_directory(path: str, dir_fd: int | None = None) -> int:
    """Open a directory, which the last part of ``path`` is itself; return the descriptor."""
    return os.open(path, DIRECTORY, dir_fd=dir_fd)


def open_real_directory(path: str) -> int:
    """Open a directory by an absolute path no part of which is a link; return the descriptor.

    :raises OSError: one is (ENOTDIR), or it cannot be opened.
    """
    held = os.open("/", _LOOK | os.O_DIRECTORY)
    try:
        for part in filter(None, path.split("/")):
            below = os.open(part, _LOOK | os.O_DIRECTORY, dir_fd=held)
            os.close(held)
            held = below
        return open_directory(".", held)
    finally:
        os.close(held)


def read_regular(path: str, limit: int, dir_fd: int | None = None) -> bytes:
    """Return what a regular file has.

    :param limit: bytes.
    :raises OSError: it has more (EFBIG), is something else, or cannot be read.
    """
    content = read_head(path, limit + 1, dir_fd)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit} bytes", path)
    return content


def read_head(path: str, limit: int, dir_fd: int | None = None) -> bytes:
    """Return the first bytes of a regular file, as many as ``limit`` if it has them."""
    descriptor = open_regular(path, dir_fd=dir_fd)
    try:
        content = os.read(descriptor, limit)
        while 0 < len(content) < limit:
            more = os.read(descriptor, limit - len(content))
            if not more:
                break
            content += more
        return content
    finally:
        os.close(descriptor)
