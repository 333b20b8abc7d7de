# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shortens an open log in place: the newest whole records stay, and no record that is being written is lost.

The engine holds a running container's log open and appends to it. Deleting the file frees nothing, and copying a tail
loses what is written meanwhile. ``decide`` chooses one of these ways, ``carry_out`` goes it; after each of its system calls
the log can be read and has all that is to stay, so it may be killed at any of them:

``collapse``
    FALLOC_FL_COLLAPSE_RANGE takes whole blocks out of the front (ext4, xfs). The record at the boundary is overwritten
    first with what readers pass over. It wants no free space, but a writer that appends (O_APPEND): after a rotation
    engines write at an offset of their own and would leave a hole of NULs up to it. Engines 23 and newer remember their
    position also for reading: `docker logs --tail` and `-f` go silent until the container starts again (moby 45728).
``clone``
    FICLONERANGE puts shared blocks of filler over the front (btrfs, xfs with reflinks). The file keeps its length, so
    no reader notices. All fillers are made in a nameless file and come over the front in one call.
``rewrite``, ``paused``
    Records move from the end to the front, piece by piece, each written together with what fills the rest of the record
    that it half covers; then the file is cut. Nobody may write meanwhile: nobody does, or the container is paused.
``truncate``
    The file becomes empty: nothing is to stay, and nobody writes (or may not be paused).

Without a free byte xfs overwrites the first blocks in place, which gives room for the rest. btrfs never writes in place:
extents of the front are taken out whole (for a moment there are NULs), and if all of the log is in one extent, what stays
is written once more, from memory.

Measured on ext4, xfs and btrfs with engines 20.10 to 28.5 under fast writers.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import typing as t
from contextlib import contextmanager, nullcontext

from ansible_collections.fleetclean.docker.plugins.module_utils import extents, log_rescue
from ansible_collections.fleetclean.docker.plugins.module_utils.log_records import (
    GRAIN,
    Format,
)

_COLLAPSE_RANGE, _PUNCH_HOLE, _KEEP_SIZE = 0x08, 0x02, 0x01  # linux/falloc.h
_CLONE_RANGE = 0x4020940D  # linux/fs.h: FICLONERANGE
_SECTOR = 4096
#: Records move in pieces of about this many bytes.
_PIECE = 1 << 20
#: No record is longer, nor a filler: what goes on for longer is a hole, and could not be read before either.
_REST = 1 << 22
#: Into so many fillers a front is cut, if they are not too small or too large for that: few calls, little disk.
_FILLERS = 128
#: The most that is taken through memory where there is no other way, bytes.
_MEMORY = 1 << 26
#: Measured: `docker logs` without --tail decodes this many bytes of filler in a second.
FILLER_BYTES_PER_SECOND = 120 * 1000 * 1000
#: From this release on the engine reads by its own write position, not by the file's size (moby 44005).
REMEMBERS = 23
_Pause = t.Callable[[], t.ContextManager[object]]
#: A filesystem's words for "not with this file".
_CANNOT = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EXDEV, errno.EPERM, errno.ETXTBSY)


class Writer(t.NamedTuple):
    """Who writes a log: nobody, or an engine.

    ``appends``: its open file has O_APPEND, or was given it. ``seen``: its open files may be looked at from here; ``doubt``: why not.
    ``pausable``: what writes into the engine can be made to stand still for a moment.
    """

    writes: bool
    appends: bool = True
    seen: bool = True
    pausable: bool = False
    doubt: str = ""


class Cut(t.NamedTuple):
    """What was done, or would be done, to one log. Sizes in bytes; fillers do not count as log.

    ``readers`` is what `docker logs` does afterwards: ok, slow (it reads through fillers for ``slow_seconds``), stale, or spared: the log
    stays, since they would be stale.
    ``repeats``: who follows the file by a position of its own reads what stayed once more. ``unbounded``: the engine does
    not rotate this log, so it will grow again. ``words`` say why nothing was done where something was wished.
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
    repeats: bool = False
    unbounded: bool = False
    words: str = ""
    failed: bool = False
    disk_full: bool = False

    @property
    def changed(self) -> bool:
        return self.method != "none"


class Plan(t.NamedTuple):
    """How a log of ``size`` bytes is to be cut.

    ``start`` is where the first record begins that stays, ``boundary`` where the file is cut (or where fillers end),
    ``fillers`` up to where there are fillers of earlier runs, ``piece`` the length of one new filler.
    ``frees`` are the bytes that come free.
    """

    method: str
    size: int
    text: int
    start: int
    boundary: int = 0
    fillers: int = 0
    piece: int = 0
    frees: int = 0


def decide(descriptor: int, form: Format, writer: Writer, major: int, larger_than: int, keep: int) -> tuple[list[Plan], str]:
    """The ways to cut this log, the best one first; none if there is nothing to cut, or, for a reason in words, no way.

    :param major: the engine's release.
    :param larger_than: bytes; a log of less stays, unless it begins with something that readers stumble over, or nobody
        writes it any more and it has fillers of earlier cuts.
    :raises log_records.Unreadable: its records cannot be told apart.
    """
    size = os.fstat(descriptor).st_size
    front = form.front(descriptor, size)
    large = size - front.text > larger_than
    if not large and not front.nuls and not (front.fillers and not writer.writes):
        return [], ""
    start = form.newest(descriptor, keep, front.text, size) if large else front.text
    if start == 0 or (start == front.text and not front.nuls and not front.fillers):
        return [], ""
    plan = Plan("", size, front.text, start, fillers=front.fillers)
    ways = _ways(descriptor, writer, major)
    if not ways:
        return [], _impossible(writer)
    found = [found for found in (way(descriptor, form, plan) for way in ways) if found is not None]
    in_place = {_by_clone, _by_collapse}
    if writer.writes and in_place.intersection(ways) and not front.nuls and not any(way.method in ("clone", "collapse") for way in found):
        found = []  # less than a piece: not worth a pause, and readers that stay behind
    useful = [way for way in found if way.frees > 0 or front.nuls]
    if large and not found and ways == [_by_truncation]:
        return [], _impossible(writer)
    if large and found and not useful and start - front.text >= os.fstatvfs(descriptor).f_bsize:
        return [], "nothing would come free: its filesystem holds what would go and what stays in the same piece"
    return useful, ""


def _ways(descriptor: int, writer: Writer, major: int) -> list[t.Callable[[int, Format, Plan], Plan | None]]:
    collapses = [_by_collapse] if extents.collapses(descriptor) else []
    clones = [_by_clone] if extents.reflinks(descriptor) else []
    if not writer.writes:
        return [_by_truncation, *collapses, _by_rewrite]
    paused = [_by_pause, _by_truncation] if writer.pausable else [_by_truncation]
    if not writer.appends:
        return [*clones]
    return [*clones, *collapses, *paused] if major >= REMEMBERS or not collapses else [*collapses, *clones, *paused]


def _impossible(writer: Writer) -> str:
    """Why there is no way for a log of this writer, where there is something to cut and no way to do it."""
    if not writer.seen:
        why = "how it does so cannot be seen from here (run this in the engine's own process namespace, as root)"
        why += f": {writer.doubt}" if writer.doubt else ""
    elif not writer.appends:
        why = "the engine does not append to it (after a rotation of its own), and could not be made to"
    else:
        why = "its filesystem can neither take blocks out nor share them, and the container could not be paused"
    return f"a container that runs writes it, and {why}: there is no way that loses no line"


def _by_truncation(descriptor: int, _form: Format, plan: Plan) -> Plan | None:
    return plan._replace(method="truncate", frees=extents.frees(descriptor, 0, plan.size)) if plan.start == plan.size else None


def _by_collapse(descriptor: int, form: Format, plan: Plan) -> Plan | None:
    block = os.fstatvfs(descriptor).f_bsize
    # The range may not reach the end of the file.
    boundary = min(plan.start, plan.size - 1) // block * block
    while boundary > 0 and form.seam(descriptor, boundary, plan.start) is None:
        boundary -= block
    if boundary <= 0:
        return None
    return plan._replace(method="collapse", boundary=boundary, frees=extents.frees(descriptor, 0, boundary))


def _by_clone(descriptor: int, form: Format, plan: Plan) -> Plan | None:
    boundary = plan.start // GRAIN * GRAIN
    while boundary > plan.fillers and form.seam(descriptor, boundary, plan.start) is None:
        boundary -= GRAIN
    if boundary <= plan.fillers:
        return None
    length = boundary - plan.fillers
    piece = min(max(GRAIN, length // _FILLERS // GRAIN * GRAIN), form.largest_filler)
    # One filler of a length stands for all of that length.
    parts = _pieces(length, piece)
    own = sum(each for each, _end in parts)
    count = length // piece + length % piece // GRAIN
    frees = extents.frees(descriptor, plan.fillers, boundary) - own - extents.map_bytes(descriptor, count)
    if extents.kind(descriptor) == "btrfs":
        end, disk = _worth_moving(descriptor, plan.fillers, boundary, plan.size)
        frees += disk - _sectors(end - boundary)
    return plan._replace(method="clone", boundary=boundary, piece=piece, frees=frees)


def _pieces(length: int, piece: int) -> list[tuple[int, int]]:
    """Of which fillers ``length`` bytes are made: how long each is, and up to where there are such; short ones first."""
    rest = length % piece
    return [(GRAIN, rest)] * bool(rest) + [(piece, length)] * (length >= piece)


def _by_rewrite(descriptor: int, _form: Format, plan: Plan) -> Plan | None:
    block = os.fstatvfs(descriptor).f_bsize
    stays = (plan.size - plan.start + block - 1) // block * block
    return plan._replace(method="rewrite", frees=extents.frees(descriptor, 0, plan.size) - stays)


def _by_pause(descriptor: int, form: Format, plan: Plan) -> Plan | None:
    found = _by_truncation(descriptor, form, plan) or _by_rewrite(descriptor, form, plan)
    return found._replace(method="paused") if found else None


def _worth_moving(descriptor: int, begin: int, boundary: int, size: int) -> tuple[int, int]:
    """Where the btrfs extent ends that lies on both sides of ``boundary``, and the bytes that it holds, if it is worth it.

    btrfs gives it back only once the part that stays is written elsewhere.
    """
    try:
        end, disk = extents.shared_over(descriptor, boundary, begin)
    except OSError:
        return boundary, 0
    end = min(end, size)
    return (end, disk) if disk - _sectors(end - boundary) > 0 else (boundary, 0)


def _sectors(length: int) -> int:
    return (length + _SECTOR - 1) // _SECTOR * _SECTOR


def drop_nuls(descriptor: int, form: Format) -> int:
    """Take NULs from behind a log's last record, which nobody may write meanwhile; return how many."""
    size = os.fstat(descriptor).st_size
    end = form.end(descriptor, size)
    if end < size:
        os.ftruncate(descriptor, end)
    return size - end


# -- doing ---------------------------------------------------------------------------------------


def carry_out(descriptor: int, form: Format, plans: t.Sequence[Plan], pause: _Pause) -> Plan:
    """Go the first of these ways that the filesystem lets us go; return it.

    :param pause: makes the container stand still as long as it is entered.
    :raises OSError: none can be gone; the log is as it was then, to its readers.
    """
    refused: OSError | None = None
    for plan in plans:
        try:
            _DEEDS[plan.method](descriptor, form, plan, pause)
            return plan
        except OSError as error:
            if error.errno not in (*_CANNOT, errno.ENOSPC, errno.EDQUOT):
                raise
            # Of several refusals a full disk is the one that somebody can do something about.
            if refused is None or refused.errno in _CANNOT:
                refused = error
    raise refused or OSError(errno.EOPNOTSUPP, "there is no way")


def _collapse(descriptor: int, form: Format, plan: Plan, _pause: object) -> None:
    # Before a byte of the log is changed: a file that cannot be collapsed has to stay whole. Nothing takes out one byte.
    try:
        _fallocate(descriptor, _COLLAPSE_RANGE, 0, 1)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    _sew(descriptor, form, plan)
    _fallocate(descriptor, _COLLAPSE_RANGE, 0, plan.boundary)


def _clone(descriptor: int, form: Format, plan: Plan, pause: _Pause) -> None:
    _with_room(lambda: _cover(descriptor, form, plan), lambda: _make_room(descriptor, form, plan, pause))
    extents.commit(descriptor)
    if extents.kind(descriptor) == "btrfs":
        _move_what_stays(descriptor, plan)


def _cover(descriptor: int, form: Format, plan: Plan) -> None:
    """Put fillers over the front."""
    length = plan.boundary - plan.fillers
    folder = os.path.dirname(os.readlink(f"/proc/self/fd/{descriptor}"))
    source = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        at = 0
        for piece, end in _pieces(length, plan.piece):
            _write(source, form.filler(piece), at)
            done = piece
            # What is there is shared with what follows it: a few calls make any length.
            while at + done < end:
                more = min(done, end - at - done)
                _share(source, source, at, more, at + done)
                done += more
            at = end
        os.fsync(source)
        _sew_below(descriptor, form, plan)
        _sew(descriptor, form, plan)
        _share(descriptor, source, 0, length, plan.fillers)
    finally:
        os.close(source)


def _sew(descriptor: int, form: Format, plan: Plan) -> None:
    """Make a record end and another begin at the boundary."""
    seam = form.seam(descriptor, plan.boundary, plan.start)
    if seam is None:  # decided otherwise
        raise OSError(errno.EINVAL, "records moved meanwhile")
    _write(descriptor, seam[1], seam[0])


def _sew_below(descriptor: int, form: Format, plan: Plan) -> None:
    """Make records begin wherever a filler will end: the kernel shares one after the other, and may be killed between two."""
    ends = [plan.fillers]
    for piece, end in _pieces(plan.boundary - plan.fillers, plan.piece):
        ends += range(ends[-1] + piece, plan.fillers + end + 1, piece)
    # Not as it was decided: where room was made, fillers stand already, whose blocks are shared and not to be written to.
    text = form.front(descriptor, plan.size).text
    for position in ends[1:-1]:
        if position <= text or os.lseek(descriptor, position, os.SEEK_HOLE) == position:
            continue  # no record ends here
        start = form.border(descriptor, position, min(plan.start, position + _REST))
        seam = form.seam(descriptor, position, start) if start < position + _REST else None
        if seam:
            _write(descriptor, seam[1], seam[0])


def _with_room(write: t.Callable[[], None], make_room: t.Callable[[], None]) -> None:
    """Write, and make room for that where there is none: twice, since what is given back first may be too little."""
    for _attempt in range(2):
        try:
            write()
            return
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
        make_room()
    write()


def _make_room(descriptor: int, form: Format, plan: Plan, pause: _Pause) -> None:
    """Give back some of the front though nothing can be written elsewhere."""
    length = plan.boundary - plan.fillers
    if extents.kind(descriptor) != "btrfs":
        # In place: two fillers and what is left of the record under the second one's end, then one stands for both.
        half = min(1 << 20, form.largest_filler, length // 4 // GRAIN * GRAIN)
        if half < GRAIN:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        end = plan.fillers + 2 * half
        _write(descriptor, form.filler(half) * 2 + _rest(descriptor, form, end, plan.start, plan.fillers), plan.fillers)
        _share(descriptor, descriptor, plan.fillers, half, plan.fillers + half)
        return
    holes = extents.whole_extents(descriptor, plan.fillers, plan.boundary)
    if holes:
        for position, long in holes:
            _fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, position, long)
        extents.commit(descriptor)
        return
    with pause():
        _write_once_more(descriptor, plan)


def _write_once_more(descriptor: int, plan: Plan) -> None:
    """Take everything out of the one extent that holds both what goes and what stays, and write what stays again."""
    end, disk = extents.shared_over(descriptor, plan.boundary, plan.fillers)
    size = os.fstat(descriptor).st_size
    if not disk or min(end, size) - plan.boundary > _MEMORY:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    # Whole sectors: of one that is half taken out btrfs would have to write the other half elsewhere.
    first, begin, end = _sectors(plan.fillers), plan.boundary // _SECTOR * _SECTOR, _sectors(end)
    stays = os.pread(descriptor, end - begin, begin)
    with log_rescue.kept(descriptor, begin, stays):
        _fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, first, end - first)
        extents.commit(descriptor)
        _write(descriptor, stays, begin)


def _move_what_stays(descriptor: int, plan: Plan) -> None:
    """Write once more what shares its extent with the front, so that btrfs can let the extent go."""
    end, disk = _worth_moving_now(descriptor, plan)
    if not disk:
        return
    try:
        for position in range(plan.boundary, end, _PIECE):
            _write(descriptor, os.pread(descriptor, min(_PIECE, end - position), position), position)
        extents.commit(descriptor)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise


def _worth_moving_now(descriptor: int, plan: Plan) -> tuple[int, int]:
    """As ``_worth_moving``, once the front is gone: which extent of what stays has most of its bytes there."""
    try:
        end, disk = extents.half_used(descriptor, plan.boundary, _sectors(plan.start))
    except OSError:
        return plan.boundary, 0
    end = min(end, plan.size)
    return (end, disk) if disk - _sectors(end - plan.boundary) > 0 else (plan.boundary, 0)


def _rewrite(descriptor: int, form: Format, plan: Plan, _pause: object) -> None:
    with _alone(descriptor):
        _move(descriptor, form, plan)


def _paused(descriptor: int, form: Format, plan: Plan, pause: _Pause) -> None:
    with pause():
        if plan.start == plan.size == os.fstat(descriptor).st_size:
            os.ftruncate(descriptor, 0)
        else:
            _move(descriptor, form, plan)


def _truncate(descriptor: int, _form: Format, _plan: Plan, _pause: object) -> None:
    os.ftruncate(descriptor, 0)


def _move(descriptor: int, form: Format, plan: Plan) -> None:
    """Move all that stays to the front, also what was written meanwhile, and cut the file behind it."""
    position, source, known = 0, plan.start, 0
    while True:
        size = os.fstat(descriptor).st_size
        if source >= size:
            break
        piece = _records(descriptor, form, source, size)
        end, after = position + len(piece), source + len(piece)
        rest = _rest(descriptor, form, end, source, known) if end < source else form.filler(after - end if form.fits(after - end) else 0)
        piece, known = piece + rest, end + len(rest)
        _move_one(descriptor, form, piece, plan._replace(fillers=position, boundary=source))
        position, source = end, after
    os.ftruncate(descriptor, position)
    os.fsync(descriptor)


def _move_one(descriptor: int, form: Format, piece: bytes, plan: Plan) -> None:
    """Write what moves to ``plan.fillers``; what is there up to ``plan.boundary`` is not wanted any more."""
    if extents.kind(descriptor) != "btrfs":
        _write(descriptor, piece, plan.fillers)
        return
    # Nobody writes, or the container stands still already.
    _with_room(lambda: _write(descriptor, piece, plan.fillers), lambda: _make_room(descriptor, form, plan, nullcontext))


def _rest(descriptor: int, form: Format, position: int, end: int, known: int) -> bytes:
    """What fills the rest of the record at ``position``, which is half covered.

    :param end: where another record begins at the latest.
    :param known: where one began before ``position``.
    """
    border = form.border(descriptor, position, min(end, position + _REST), known)
    # In a hole readers end anyway, until all is done; filled, it would take space.
    if border == position + _REST < end or os.lseek(descriptor, position, os.SEEK_HOLE) < border:
        return b""
    while not form.fits(border - position) and border < end:
        border = form.border(descriptor, border + 1, end, border)
    return form.filler(border - position) if form.fits(border - position) else b""


def _records(descriptor: int, form: Format, begin: int, size: int) -> bytes:
    """Some whole records from ``begin`` on, or all that is left if that is not one."""
    piece = os.pread(descriptor, min(_PIECE, size - begin), begin)
    while not form.whole(piece) and begin + len(piece) < size:
        piece += os.pread(descriptor, min(_PIECE, size - begin - len(piece)), begin + len(piece))
    return piece[: form.whole(piece) or len(piece)]


@contextmanager
def _alone(descriptor: int) -> t.Iterator[None]:
    """Let nobody open the file meanwhile, where the kernel can see to that: who tries waits (fcntl(2), leases)."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        yield  # somebody reads it, or the filesystem has no leases
        return
    try:
        yield
    finally:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _write(descriptor: int, content: bytes, position: int) -> None:
    view = memoryview(content)
    while view:
        done = os.pwrite(descriptor, view, position)
        view, position = view[done:], position + done


def _share(descriptor: int, source: int, begin: int, length: int, offset: int) -> None:
    # struct file_clone_range: source, its offset, length, destination's offset
    fcntl.ioctl(descriptor, _CLONE_RANGE, struct.pack("qQQQ", source, begin, length, offset))


def _fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    call = libc.fallocate64 if hasattr(libc, "fallocate64") else libc.fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if call(descriptor, mode, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_DEEDS: dict[str, t.Callable[[int, Format, Plan, t.Any], None]] = {
    "collapse": _collapse, "clone": _clone, "rewrite": _rewrite, "paused": _paused, "truncate": _truncate,
}


# -- saying --------------------------------------------------------------------------------------


def outcome(found: Cut, plan: Plan, writer: Writer, major: int) -> Cut:
    """What is to be said of a log that was cut so, or would be."""
    before = plan.size - plan.text
    after = 0 if plan.method == "truncate" else plan.size - plan.start
    done = found._replace(
        bytes_before=before, bytes_after=min(before, after), reclaimed_bytes=max(0, plan.frees), method=plan.method,
        repeats=plan.method in ("collapse", "rewrite", "paused") and after > 0,
    )
    if plan.method == "clone":
        seconds = plan.boundary / FILLER_BYTES_PER_SECOND
        return done._replace(readers="slow" if seconds >= 1 else "ok", slow_seconds=round(seconds, 1))
    return done._replace(readers="stale") if leaves_stale(plan, writer, major) else done


def leaves_stale(plan: Plan, writer: Writer, major: int) -> bool:
    """Whether readers go by a position behind the log's end afterwards: `docker logs --tail` and `-f` stay silent or hang."""
    return plan.method != "clone" and writer.writes and major >= REMEMBERS
