# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shortens a container's log in place: the newest whole lines stay, no line that is being written is lost.

The engine holds a running container's log open and appends to it. Deleting the file frees nothing,
and copying a tail loses what is written meanwhile. Three ways lose nothing; each works on the open
file, at any moment, without free space to speak of:

``collapse``
    FALLOC_FL_COLLAPSE_RANGE takes whole blocks out of the front (ext4, xfs). What is left of the
    line at the cut is overwritten with spaces first, which JSON skips. It needs a writer that
    appends (O_APPEND): after its own first rotation an engine writes at an offset of its own, and
    would leave a hole of NULs up to it. Engines 23 and newer remember their position also for
    reading: `docker logs --tail` and `-f` go silent until the container starts again (moby 45728).
``clone``
    FICLONERANGE puts shared blocks of filler over the front (btrfs, xfs with reflinks). The
    file keeps its length, so no reader notices; the filler is a valid record with an empty text.
``rewrite``
    The tail is copied to the front and the file cut. Only for a log that nobody writes.

Measured on ext4, xfs and btrfs with engines 20.10 to 28.5 under fast writers; the json-file format
is that of the engine's ``daemon/logger/jsonfilelog``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import stat
import struct
import typing as t
from contextlib import contextmanager
from dataclasses import dataclass, replace

_COLLAPSE_RANGE = 0x08  # linux/falloc.h
_CLONE_RANGE = 0x4020940D  # linux/fs.h: FICLONERANGE
_CHUNK = 1 << 16
#: One filler record. A multiple of every block size, and little enough for a disk that is nearly full.
FILLER_BYTES = 1 << 16
#: The most that is shared at once. The front grows by copies of itself, so few calls do much.
_CLONE_BYTES = 1 << 24
_FILLER_HEAD = b'{"log":"","stream":"stdout","fleetclean":"filler","time":"1970-01-01T00:00:00Z"}'
#: Measured: `docker logs` without --tail decodes this many bytes of filler in a second.
FILLER_BYTES_PER_SECOND = 120 * 1000 * 1000
_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Writer:
    """Who writes a log: nobody, or an engine that appends (or does not, or whose open files we may not see)."""

    writes: bool
    appends: bool = True
    seen: bool = True


@dataclass(frozen=True)
class Cut:
    """What was done, or would be done, to one log. Sizes in bytes; fillers do not count as log.

    ``method`` is collapse, clone, rewrite, truncate, deleted or none; ``readers`` what
    `docker logs` does afterwards: ok, slow (it reads through fillers for ``slow_seconds``), or stale.
    ``words`` say why nothing was done where something was wished.
    """

    container: str
    name: str
    driver: str | None
    path: str
    bytes_before: int
    bytes_after: int
    reclaimed_bytes: int
    method: str = "none"
    readers: str = "ok"
    slow_seconds: float = 0.0
    words: str = ""
    failed: bool = False
    disk_full: bool = False

    @property
    def changed(self) -> bool:
        return self.method != "none"


class LogRefused(Exception):
    """This file is not touched; the message says why, and names the path."""


@contextmanager
def open_log(root: str, ident: str, write: bool) -> t.Iterator[int]:
    """Open a container's json-file log below the proven data root, without following any link.

    :param ident: the container's id, 64 hexadecimal digits; nothing else becomes part of a path.
    :raises LogRefused: it is not a plain file of the engine's.
    :raises OSError: it is not there, or cannot be opened.
    """
    if not _ID.fullmatch(ident):
        raise LogRefused(f"{ident!r} is not a container's id")
    path = path_of(root, ident)
    folders = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    opened = [os.open(os.path.realpath(root), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
    try:
        for name in ("containers", ident):
            opened.append(os.open(name, folders, dir_fd=opened[-1]))
        owner = os.fstat(opened[-1]).st_uid
        mode = os.O_RDWR if write else os.O_RDONLY
        flags = mode | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        opened.append(os.open(f"{ident}-json.log", flags, dir_fd=opened[-1]))
        found = os.fstat(opened[-1])
        if not stat.S_ISREG(found.st_mode):
            raise LogRefused(f"{path} is not a regular file; it stays as it is")
        if found.st_nlink != 1:
            raise LogRefused(f"{path} has another name elsewhere (a hard link); it stays as it is")
        if found.st_uid not in (0, owner):
            raise LogRefused(f"{path} belongs to user {found.st_uid}, not to the engine; it stays as it is")
        yield opened[-1]
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise LogRefused(f"{path} is reached through a link; it stays as it is") from None
        raise
    finally:
        for descriptor in reversed(opened):
            os.close(descriptor)


def path_of(root: str, ident: str) -> str:
    """Where json-file writes a container's log: the only one that is cut."""
    return f"{root}/containers/{ident}/{ident}-json.log"


def files(folder: str, ident: str) -> list[str]:
    """The log files in a container's folder, rotated ones too, by name alone.

    json-file and ``local`` write there, and the engine itself for drivers that cannot be read back
    (``container-cached.log``, engine 20.10 and newer).
    """
    found = []
    for place, prefixes in ((folder, (f"{ident}-json.log", "container-cached.log")), (f"{folder}/local-logs", ("container.log",))):
        try:
            found += [f"{place}/{name}" for name in os.listdir(place) if name.startswith(prefixes)]
        except OSError:
            continue
    return found


def content_bytes(descriptor: int) -> int:
    """The log's bytes without the fillers of earlier cuts."""
    return os.fstat(descriptor).st_size - _filler_end(descriptor)


def cut(descriptor: int, found: Cut, keep: int, writer: Writer, engine_major: int, dry_run: bool) -> Cut:
    """Shorten an open log to its newest whole lines of at most about ``keep`` bytes.

    :param found: the log as it is; returned with what was (or, with ``dry_run``, would be) done.
    :param engine_major: the engine's release, as in 26: decides how readers fare.
    :raises OSError: the filesystem refused; the log is whole.
    """
    size = os.fstat(descriptor).st_size
    filler = _filler_end(descriptor)
    # What an earlier cut left of a line are spaces: no text, and without the newline that ended it.
    if size - keep <= _text_start(descriptor, filler, size):
        return found
    if not writer.writes and keep == 0:
        if not dry_run:
            os.ftruncate(descriptor, 0)
        return replace(found, method="truncate", bytes_after=0, reclaimed_bytes=found.bytes_before)
    start = _line_start(descriptor, size - keep, size)
    ways: list[t.Callable[..., Cut]]
    if not writer.writes:
        ways = [_collapse, _rewrite]
    elif not writer.appends:
        ways = [_clone]
    elif engine_major >= 23:
        ways = [_clone, _collapse]
    else:
        ways = [_collapse, _clone]
    for way in ways:
        try:
            done = way(descriptor, found, start, size, filler, dry_run)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EXDEV):
                continue
            if error.errno == errno.ENOSPC and way is not ways[-1]:
                continue  # the filler wants a block; taking out blocks wants none
            raise
        return _readers(done, writer, engine_major, descriptor)
    if not writer.seen:
        why = "how it does so cannot be seen from here (run this in the engine's own process namespace, as root)"
    elif not writer.appends:
        why = "the engine does not append to it (after a rotation of its own)"
    else:
        why = "its filesystem can neither take blocks out nor share them"
    return replace(found, words=f"a container that runs writes it, and {why}: there is no way yet that loses no line")


def _collapse(descriptor: int, found: Cut, start: int, size: int, filler: int, dry_run: bool) -> Cut:
    block = os.fstatvfs(descriptor).f_bsize
    # The range may not reach the end of the file.
    boundary = min(start, size - 1) // block * block
    if boundary <= 0:
        return found
    # Before a byte of the log is changed: a filesystem that refuses has to leave it whole.
    _can_collapse(descriptor)
    if not dry_run:
        _blank(descriptor, boundary, start)
        _fallocate(descriptor, _COLLAPSE_RANGE, 0, boundary)
    after = size - boundary
    return replace(found, method="collapse", bytes_after=after, reclaimed_bytes=_reclaimed(boundary, filler))


def _reclaimed(boundary: int, filler: int) -> int:
    """Leading fillers share one block, so taking them out frees next to nothing."""
    return max(0, boundary - filler)


def _clone(descriptor: int, found: Cut, start: int, size: int, filler: int, dry_run: bool) -> Cut:
    boundary = start // FILLER_BYTES * FILLER_BYTES
    if boundary <= filler:
        return found
    first = _line_start(descriptor, boundary, size)
    with _filler_file(descriptor) as source:
        _can_clone(source)
        if not dry_run:
            _blank(descriptor, boundary, first)
            _share(descriptor, source, 0, FILLER_BYTES, filler)
            done = filler + FILLER_BYTES
            while done < boundary:
                length = min(done - filler, _CLONE_BYTES, boundary - done)
                _share(descriptor, descriptor, filler, length, done)
                done += length
    freed = boundary - filler
    return replace(found, method="clone", bytes_after=size - boundary, reclaimed_bytes=freed)


def _rewrite(descriptor: int, found: Cut, start: int, size: int, filler: int, dry_run: bool) -> Cut:
    if start <= 0:
        return found
    length = size - start
    if not dry_run:
        position = 0
        # A container may have started since: what it wrote meanwhile is copied as well.
        while start + position < os.fstat(descriptor).st_size:
            piece = os.pread(descriptor, _CHUNK, start + position)
            position += os.pwrite(descriptor, piece, position)
        length = position
        os.ftruncate(descriptor, length)
        os.fsync(descriptor)
    return replace(found, method="rewrite", bytes_after=length, reclaimed_bytes=_reclaimed(start, filler))


def _readers(done: Cut, writer: Writer, engine_major: int, descriptor: int) -> Cut:
    if done.method == "clone":
        seconds = _filler_end(descriptor) / FILLER_BYTES_PER_SECOND or done.reclaimed_bytes / FILLER_BYTES_PER_SECOND
        return replace(done, readers="slow" if seconds >= 1 else "ok", slow_seconds=round(seconds, 1))
    if done.method == "collapse" and writer.writes and engine_major >= 23:
        return replace(done, readers="stale")
    return done


def _line_start(descriptor: int, position: int, size: int) -> int:
    """The beginning of the first line at or after ``position``; ``size`` if none begins there."""
    if position <= 0:
        return 0
    offset = position - 1
    while offset < size:
        piece = os.pread(descriptor, min(_CHUNK, size - offset), offset)
        if not piece:
            break
        newline = piece.find(b"\n")
        if newline >= 0:
            return offset + newline + 1
        offset += len(piece)
    # One unfinished line reaches to the end: it is being written, so nothing of it may go.
    return _last_line_start(descriptor, size)


def _text_start(descriptor: int, position: int, size: int) -> int:
    """The first byte at or after ``position`` that is no space."""
    while position < size:
        piece = os.pread(descriptor, min(_CHUNK, size - position), position)
        text = piece.lstrip(b" ")
        if text or not piece:
            return position + len(piece) - len(text)
        position += len(piece)
    return size


def _last_line_start(descriptor: int, size: int) -> int:
    end = size
    while end > 0:
        begin = max(0, end - _CHUNK)
        newline = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        end = begin
    return 0


def _blank(descriptor: int, begin: int, end: int) -> None:
    """Overwrite what is left of the line at the cut, so that no reader ever sees half a line."""
    while begin < end:
        begin += os.pwrite(descriptor, b" " * min(_CHUNK, end - begin), begin)


def _filler_end(descriptor: int) -> int:
    """Where the fillers of earlier cuts end; 0 if there are none."""
    position = 0
    while os.pread(descriptor, len(_FILLER_HEAD), position) == _FILLER_HEAD:
        position += FILLER_BYTES
    return position


@contextmanager
def _filler_file(descriptor: int) -> t.Iterator[int]:
    """A nameless file of one filler record, on the log's filesystem: nothing is left if we are killed."""
    folder = os.path.dirname(os.readlink(f"/proc/self/fd/{descriptor}"))
    source = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(source, _FILLER_HEAD.ljust(FILLER_BYTES - 1) + b"\n", 0)
        os.fsync(source)
        yield source
    finally:
        os.close(source)


def _can_clone(source: int) -> None:
    """Try it on the nameless file itself: for a moment it is twice as long."""
    _share(source, source, 0, FILLER_BYTES, FILLER_BYTES)
    os.ftruncate(source, FILLER_BYTES)


def _share(descriptor: int, source: int, begin: int, length: int, offset: int) -> None:
    # struct file_clone_range: source, its offset, length, destination's offset
    fcntl.ioctl(descriptor, _CLONE_RANGE, struct.pack("qQQQ", source, begin, length, offset))


def _can_collapse(descriptor: int) -> None:
    """Try it on a nameless file beside the log, which itself is not touched."""
    folder = os.path.dirname(os.readlink(f"/proc/self/fd/{descriptor}"))
    block = os.fstatvfs(descriptor).f_bsize
    try:
        probe = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as full:
        if full.errno != errno.ENOSPC:
            raise
        # No inode to be had. One byte is a range that no filesystem takes out; EINVAL says that it knows how.
        try:
            _fallocate(descriptor, _COLLAPSE_RANGE, 0, 1)
        except OSError as error:
            if error.errno == errno.EBADF:  # opened for reading only: check mode
                raise full from None
            if error.errno != errno.EINVAL:
                raise
        return
    try:
        # A sparse file takes no space, so this works on a full disk as well.
        os.ftruncate(probe, 2 * block)
        _fallocate(probe, _COLLAPSE_RANGE, 0, block)
    finally:
        os.close(probe)


def _fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    call = libc.fallocate64 if hasattr(libc, "fallocate64") else libc.fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if call(descriptor, mode, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


# -- what the engine holds open ------------------------------------------------------------------


@dataclass(frozen=True)
class OpenLog:
    """A log file that an engine process has open for writing."""

    pid: int
    descriptor: int
    path: str
    deleted: bool
    appends: bool
    bytes: int
    inode: tuple[int, int] = (0, 0)


def open_logs(root: str) -> list[OpenLog]:
    """The json-file logs below ``root`` that processes of this machine hold open for writing.

    By what is held, not by a program's name: engines have many. Needs the right to look into the
    engine's process; without it, or in another process namespace, its logs are not in the list.
    """
    prefix = f"{os.path.realpath(root)}/containers/"
    found = []
    others = [name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    for pid in others:
        try:
            descriptors = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for name in descriptors:
            log = _open_log(int(pid), name, prefix)
            if log:
                found.append(log)
    return found


def give_back_deleted(log: OpenLog) -> int:
    """Empty a log file that somebody deleted while the engine held it open; return its bytes.

    Nobody can read it any more: `docker logs` opens the name, which is gone.

    :raises OSError: the descriptor is closed already, or may not be opened.
    """
    descriptor = os.open(f"/proc/{log.pid}/fd/{log.descriptor}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink or (found.st_dev, found.st_ino) != log.inode:
            return 0  # the number was given to another file meanwhile
        os.ftruncate(descriptor, 0)
        return found.st_blocks * 512
    finally:
        os.close(descriptor)


def _open_log(pid: int, name: str, prefix: str) -> OpenLog | None:
    try:
        target = os.readlink(f"/proc/{pid}/fd/{name}")
        deleted = target.endswith(" (deleted)")
        path = target[: -len(" (deleted)")] if deleted else target
        match = re.fullmatch(re.escape(prefix) + r"([0-9a-f]{64})/\1-json\.log", path)
        if not match:
            return None
        with open(f"/proc/{pid}/fdinfo/{name}", encoding="ascii") as stream:
            flags = int(next(line for line in stream if line.startswith("flags:")).split()[1], 8)
        if flags & os.O_ACCMODE == os.O_RDONLY:
            return None  # a reader: `docker logs -f`
        held = os.stat(f"/proc/{pid}/fd/{name}")
        inode = (held.st_dev, held.st_ino)
        return OpenLog(pid, int(name), path, deleted, bool(flags & os.O_APPEND), held.st_blocks * 512, inode)
    except (OSError, ValueError, StopIteration):
        return None
