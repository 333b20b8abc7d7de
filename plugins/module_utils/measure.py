# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bytes on disk: what a filesystem has, and what a tree has allocated.

``disk`` bytes are blocks allocated (``st_blocks * 512``), a hard-linked file once. Links are not
followed, and other filesystems below are not entered.
"""

from __future__ import annotations

import ctypes
import os
import time
import typing as t
from dataclasses import dataclass


@dataclass(frozen=True)
class Filesystem:
    """A mounted filesystem. Sizes in bytes; ``available`` is ``free`` less what is reserved for root."""

    mount_point: str
    type: str
    size: int
    used: int
    free: int
    available: int
    inodes: int
    inodes_available: int


@dataclass
class Measured:
    """What a walk found. ``unreadable`` counts what vanished or could not be read meanwhile."""

    disk_bytes: int = 0
    files: int = 0
    unreadable: int = 0


def filesystem(path: str) -> Filesystem:
    """Return the filesystem that holds ``path``.

    :raises OSError: the path is not there or cannot be asked.
    """
    stat = os.statvfs(path)
    mount_point, kind = _mount_of(path)
    return Filesystem(
        mount_point=mount_point,
        type=kind,
        size=stat.f_blocks * stat.f_frsize,
        used=(stat.f_blocks - stat.f_bfree) * stat.f_frsize,
        free=stat.f_bfree * stat.f_frsize,
        available=stat.f_bavail * stat.f_frsize,
        inodes=stat.f_files,
        inodes_available=stat.f_favail,
    )


def settle(path: str, seconds: float = 5.0) -> None:
    """Wait, where a filesystem gives space back later than it is asked to, until it has.

    btrfs counts what was removed as used until its transaction is committed, and its cleaner takes
    removed subvolumes apart after that; zfs frees in the background. Elsewhere this returns at once.

    :param seconds: the longest wait.
    """
    if _mount_of(path)[1] not in ("btrfs", "zfs"):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        end, last = time.monotonic() + seconds, -1
        while time.monotonic() < end:
            ctypes.CDLL(None).syncfs(descriptor)
            free = os.statvfs(path).f_bfree
            if free == last:
                return
            last = free
            time.sleep(0.5)
    finally:
        os.close(descriptor)


def allocated(path: str) -> Measured:
    """Return the allocated bytes of the tree at ``path``; a path that is not there has none."""
    found = Measured()
    linked: set[int] = set()
    try:
        top = os.lstat(path)
    except OSError:
        return found
    found.disk_bytes += top.st_blocks * 512
    found.files += 1
    folders = [path] if os.path.isdir(path) and not os.path.islink(path) else []
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    folders += _count(entry, top.st_dev, linked, found)
        except OSError:
            found.unreadable += 1
    return found


def _count(entry: os.DirEntry[str], device: int, linked: set[int], found: Measured) -> list[str]:
    """Add one entry; return it as a list if it is a folder to be entered."""
    try:
        stat = entry.stat(follow_symlinks=False)
    except OSError:
        found.unreadable += 1
        return []
    if stat.st_dev != device:
        return []
    if stat.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
        if stat.st_ino in linked:
            return []
        linked.add(stat.st_ino)
    found.disk_bytes += stat.st_blocks * 512
    found.files += 1
    return [entry.path] if entry.is_dir(follow_symlinks=False) else []


def _mount_of(path: str) -> tuple[str, str]:
    """Mount point and type of the filesystem at ``path``, by the longest mount that holds it."""
    real = os.path.realpath(path)
    best, kind = "/", ""
    for point, type_ in _mounts():
        if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, type_
    return best, kind


def _mounts() -> t.Iterator[tuple[str, str]]:
    # Format: proc_pid_mountinfo(5). Spaces in paths are octal escapes there.
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as stream:
            for line in stream:
                left, _dash, right = line.partition(" - ")
                yield left.split()[4].encode("utf-8", "surrogateescape").decode("unicode_escape"), right.split()[0]
    except (OSError, IndexError):
        return
