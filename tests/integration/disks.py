# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filesystems of a test's own, in files, mounted in a process with mounts of its own: all is gone when it ends, however it ends."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Callable, Tuple

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "playbooks" / "collections"))

from ansible_collections.fleetclean.docker.plugins.module_utils import measure

_TOOLS = ("mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "btrfs", "mount", "du", "cp")
_missing = [tool for tool in _TOOLS if not shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")]
needs_filesystems = pytest.mark.skipif(
    os.geteuid() != 0 or bool(_missing), reason=f"needs root and {', '.join(_missing) or 'nothing else'} to make filesystems"
)

_NEW_MOUNTS, _PRIVATE = 0x00020000, (1 << 18) | (1 << 14)  # CLONE_NEWNS, MS_PRIVATE | MS_REC
_MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}


def run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)


def apart(work: Callable[[], None]) -> None:
    """Do ``work`` in a process with mounts of its own, and fail as it fails."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(read)
            libc = ctypes.CDLL(None, use_errno=True)
            libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            if libc.unshare(_NEW_MOUNTS) or libc.mount(b"none", b"/", None, _PRIVATE, None):
                raise OSError(ctypes.get_errno(), "no mounts of its own")
            work()
        except BaseException:
            os.write(write, traceback.format_exc().encode()[-60_000:])
            os._exit(1)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, encoding="utf-8", errors="replace") as stream:
        said = stream.read()
    if os.waitpid(child, 0)[1]:
        pytest.fail(said or "it ended without a word", pytrace=False)


def disk(folder: Path, kind: str, size: int = 1 << 30, options: Tuple[str, ...] = ()) -> Path:
    """A new filesystem in a file, mounted below ``folder``; ``options`` are its mkfs's. A tmpfs is in memory."""
    image, place = folder / f"{kind}.img", folder / kind
    place.mkdir()
    if kind == "tmpfs":
        run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place)
        return place
    with open(image, "wb") as stream:
        stream.truncate(size)
    run(*_MAKE[kind], *options, image)
    run("mount", "-o", "loop", image, place)
    return place


def free(place: Path) -> int:
    """Bytes that are free once everything that was asked for is done."""
    last = -1
    for _ in range(60):
        _sync(place)
        measure.settle(str(place))
        found = os.statvfs(place)
        if found.f_bfree == last:
            break
        last = found.f_bfree
        time.sleep(0.1)
    return last * found.f_frsize


def _sync(place: Path) -> None:
    """Not of all disks of the machine, as sync(2) does."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        ctypes.CDLL(None).syncfs(descriptor)
    finally:
        os.close(descriptor)


def settle(place: Path) -> None:
    """Let what was given up so far come free: less than ``free`` waits for, and quick."""
    _sync(place)
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, 0x9408)  # BTRFS_IOC_SYNC
    except OSError:
        pass
    finally:
        os.close(descriptor)


def fill_up(place: Path, name: str = ".filler") -> Path:
    """Fill a filesystem until nothing more can be written; the file that fills it.

    (xfs says so with a few blocks left, which it wants for its own trees.)
    """
    filler = place / name
    handle = os.open(filler, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        step, size = _available(place), 0
        # fallocate says no as a whole: halve what is asked for until it is less than a block.
        while step >= 4096:
            step = min(step, _available(place)) // 4096 * 4096
            try:
                if step:
                    os.posix_fallocate(handle, size, step)
                    size += step
            except OSError:
                step //= 2
        os.lseek(handle, 0, os.SEEK_END)
        # A copy-on-write filesystem gives delayed space back when it writes: go on until it really has none.
        for _ in range(5):
            for chunk in (b"\0" * (1 << 20), b"\0" * 4096, b"\0" * 512):
                try:
                    while os.write(handle, chunk):
                        pass
                except OSError:
                    pass
            try:
                os.fsync(handle)
            except OSError:
                pass
            if not _available(place):
                break
    finally:
        os.close(handle)
    return filler


def _available(place: Path) -> int:
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize
