# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Logs are cut on filesystems of a test's own: killed at every step, without a free byte, and what is said comes free.

What is left is read by tests/unit/localdriver.py, which shares no code with what cuts.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Tuple

import pytest

# First: it makes the collection importable.
from tests.integration.disks import apart, disk, fill_up, needs_filesystems, settle  # isort: skip

from ansible_collections.fleetclean.docker.plugins.module_utils import log_cuts, log_rescue
from ansible_collections.fleetclean.docker.plugins.module_utils.log_cuts import Plan, Writer, carry_out, decide
from ansible_collections.fleetclean.docker.plugins.module_utils.log_records import FRAMED, JSON_LINES, Format

from tests.fuzz import on_disks
from tests.unit.localdriver import JSON_FILE, LOCAL, Made

pytestmark = needs_filesystems

MIB = 1 << 20
MEMORY = "/dev/shm"
NOBODY = Writer(writes=False)
ENGINE = Writer(writes=True, pausable=True)
FORMATS: Tuple[Tuple[Made, Format], ...] = ((JSON_FILE, JSON_LINES), (LOCAL, FRAMED))
#: Who writes where a way is gone, and how much of the log stays: nothing where it becomes empty.
WAYS = {"collapse": NOBODY, "clone": ENGINE, "rewrite": NOBODY, "paused": ENGINE, "truncate": NOBODY}
#: Which ways a filesystem has. A better one is passed over where another is to be seen.
HAS = {
    "ext4": ("collapse", "rewrite", "paused", "truncate"),
    "xfs": ("collapse", "clone", "rewrite", "paused", "truncate"),
    "btrfs": ("clone", "rewrite", "paused", "truncate"),
    "tmpfs": ("rewrite", "paused", "truncate"),
}


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder for disks, in memory where that can be: much is written to them and waited for."""
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(prefix="fleetclean-test-", dir=MEMORY))
    yield folder
    shutil.rmtree(folder)


class Log:
    """A log file on a filesystem, and what of it is to stay."""

    def __init__(self, place: Path, made: Made, form: Format, keep: int) -> None:
        self.path, self.made, self.form, self.keep = place / "log", made, form, keep
        self._engine = self.path.open("ab", buffering=0)

    def write(self, content: bytes) -> None:
        """Append, as an engine does that holds it open."""
        self._engine.write(content)
        os.fsync(self._engine.fileno())

    def stop(self) -> None:
        """Nobody writes it any more."""
        self._engine.close()

    def close(self) -> None:
        self.stop()
        self.path.unlink()

    @property
    def wanted(self) -> List[int]:
        """What is to stay, before it is cut."""
        content = self.path.read_bytes()
        return [shown.number for shown in self.made.read(content) if len(content) - shown.begin <= self.keep]

    @contextmanager
    def opened(self, mode: int = os.O_RDWR) -> Iterator[int]:
        """Each time anew, as each run does: what is open goes with whoever is killed."""
        descriptor = os.open(self.path, mode)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def plans(self, writer: Writer, major: int = 28, way: Optional[str] = None) -> List[Plan]:
        """The ways to cut it; with ``way`` that one alone."""
        # For reading, as check mode does: xfs takes the closing of a file that was open for writing as a sign.
        with self.opened(os.O_RDONLY) as descriptor:
            plans, why = decide(descriptor, self.form, writer, major, self.keep, self.keep)
        assert plans or not why, why
        return [plan for plan in plans if way in (None, plan.method)]

    def cut(self, plans: List[Plan]) -> Plan:
        with self.opened() as descriptor:
            return carry_out(descriptor, self.form, plans, nullcontext)

    def put_back(self) -> None:
        """As every run begins."""
        with self.opened() as descriptor:
            log_rescue.put_back(descriptor)

    def left(self) -> List[int]:
        return self.made.numbers(self.path.read_bytes())


def world(made: Made, size: int, width: int = 900, number: int = 0) -> bytes:
    """Records of changing widths, from ``number`` on."""
    content = []
    length = 0
    while length < size:
        record = made.record(number, width + number * 37 % 400)
        content.append(record)
        length, number = length + len(record), number + 1
    return b"".join(content)


# -- killed at every step ------------------------------------------------------------------------


class Steps:
    """Counts what changes a file; after ``last`` such calls this process is killed."""

    def __init__(self, last: int) -> None:
        self._left = last
        for module, name in ((os, "pwrite"), (os, "ftruncate"), (log_cuts, "_share"), (log_cuts, "_fallocate")):
            setattr(module, name, self._counted(getattr(module, name)))

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            try:
                return call(*arguments)
            finally:
                self._left -= 1
                if not self._left:
                    os.kill(os.getpid(), signal.SIGKILL)

        return counted


def killed(log: Log, plans: List[Plan], step: int) -> bool:
    """Cut in a process that is killed right after so many steps; whether that was before it was done."""
    child = os.fork()
    if not child:
        code = 1
        try:
            Steps(step)
            log.cut(plans)
            code = 0
        finally:
            os._exit(code)
    ended = os.waitpid(child, 0)[1]
    assert ended in (0, signal.SIGKILL), ended
    return ended == signal.SIGKILL


@pytest.mark.parametrize("kind", HAS)
def test_a_cut_that_is_killed_at_any_step_leaves_a_log_that_can_be_read_and_has_all_that_was_to_stay(
    memory: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Smaller pieces: more steps.
    monkeypatch.setattr(log_cuts, "_PIECE", 30_000)

    def work() -> None:
        place = disk(memory, kind, 512 * MIB)
        for made, form in FORMATS:
            old, new = world(made, 300_000, 300), world(made, 500_000, 300, number=100_000)
            for way in HAS[kind]:
                steps = 0
                while True:
                    steps += 1
                    what = (kind, str(made), way, steps)
                    log = Log(place, made, form, 0 if way == "truncate" else 120_000)
                    if "clone" in HAS[kind]:
                        # An earlier cut left fillers.
                        log.write(old)
                        log.cut(log.plans(ENGINE, way="clone"))
                    log.write(new)
                    if WAYS[way] is NOBODY:
                        log.stop()
                    wanted = log.wanted
                    plans = log.plans(WAYS[way], way=way)
                    assert plans, what
                    broken_off = killed(log, plans, steps)
                    # The engine's decoder comes to the end of it. Lines that moved may be there twice.
                    left = log.left()
                    assert way == "truncate" or left[-len(wanted):] == wanted, what
                    if not broken_off:
                        assert left == wanted, what
                        log.close()
                        break
                    # The next run does what is left to do.
                    log.put_back()
                    again = log.plans(WAYS[way])
                    if again:
                        log.cut(again)
                    assert log.left() == wanted, what
                    assert not log.plans(WAYS[way]), what
                    log.close()
                assert steps >= {"truncate": 2, "collapse": 4}.get(way, 5), what

    apart(work)


# -- what is said comes free ---------------------------------------------------------------------


def settled(place: Path) -> int:
    """Bytes that are free once all that was given up came free."""
    last = -1
    for _ in range(50):
        settle(place)
        found = os.statvfs(place)
        if found.f_bfree == last:
            break
        last = found.f_bfree
        time.sleep(0.05)
    return last * found.f_frsize


def at_once(log: Log) -> None:
    """In a few pieces: on btrfs the last extent holds what goes and what stays."""
    log.write(world(log.made, 5 * MIB))


def in_one_piece(log: Log) -> None:
    """One extent on btrfs, if there is room for one."""
    log.write(world(log.made, 2 * MIB))


def in_pieces(log: Log) -> None:
    """Little by little, while other files grow: many extents."""
    content = world(log.made, 5 * MIB)
    with log.path.with_name("other").open("wb") as other:
        for position in range(0, len(content), 200_000):
            log.write(content[position:position + 200_000])
            other.write(b"x" * 50_000)
            os.fsync(other.fileno())


def after_others(log: Log) -> None:
    """Behind what an earlier cut left in front of it."""
    in_pieces(log)
    writer = ENGINE if log.plans(ENGINE)[0].method == "clone" else NOBODY
    log.cut(log.plans(writer))
    log.write(world(log.made, 3 * MIB, number=100_000))


@pytest.mark.parametrize("lay", [at_once, in_pieces, after_others])
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_what_is_said_to_come_free_comes_free(memory: Path, kind: str, lay: Callable[[Log], None]) -> None:
    def work() -> None:
        place = disk(memory, kind)
        for number, way in enumerate(HAS[kind]):
            made, form = FORMATS[number % 2]
            log = Log(place, made, form, 0 if way == "truncate" else 200_000)
            lay(log)
            if WAYS[way] is NOBODY:
                log.stop()
            before = settled(place)
            wanted = log.wanted
            (plan,) = log.plans(WAYS[way], way=way)
            assert plan == log.plans(WAYS[way], way=way)[0], "looking once more changes nothing"
            log.cut([plan])
            came = settled(place) - before
            # What trees take is not foreseen to the byte: a block of xfs's map of many extents, and much of btrfs's.
            leeway = {"ext4": 0, "xfs": 4096, "btrfs": max(plan.frees // 100, 128 * 1024)}[kind]
            assert abs(came - plan.frees) <= leeway, (way, came, plan.frees)
            assert came > 2 * MIB, way
            assert log.left() == wanted, way
            log.close()

    apart(work)


# -- without a free byte -------------------------------------------------------------------------


def small_disk(folder: Path, kind: str) -> Path:
    """One that is soon full, to the last byte: ext4 keeps some for root unless told otherwise."""
    return disk(folder, kind, (64 if kind in ("ext4", "tmpfs") else 320) * MIB, ("-m", "0") if kind == "ext4" else ())


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_log_of_less_than_a_block_is_not_worth_a_pause_and_frees_no_more_than_it_takes(memory: Path, kind: str) -> None:
    """btrfs keeps it in its metadata, where nothing says how much of the disk it takes."""

    def work() -> None:
        place = disk(memory, kind)
        for made, form in FORMATS:
            log = Log(place, made, form, 0)
            log.write(made.records(3, 300))
            assert log.plans(ENGINE) == []
            assert [plan for plan in log.plans(NOBODY) if not 0 < plan.frees <= 16_384] == []
            log.close()

    apart(work)


@pytest.mark.parametrize("lay", [at_once, in_pieces, in_one_piece])
@pytest.mark.parametrize("kind", HAS)
def test_a_log_is_cut_on_a_disk_without_a_free_byte(memory: Path, kind: str, lay: Callable[[Log], None]) -> None:
    def work() -> None:
        place = small_disk(memory, kind)
        writers = [(NOBODY, 28, 200_000), (ENGINE, 28, 200_000)]
        if lay is at_once:
            writers += [(NOBODY, 28, 0), (ENGINE, 20, 200_000), (ENGINE, 28, 0)]
        for number, (writer, major, keep) in enumerate(writers):
            made, form = FORMATS[number % 2]
            log = Log(place, made, form, keep)
            lay(log)
            if writer is NOBODY:
                log.stop()
            wanted = log.wanted
            filler = fill_up(place)
            what = (kind, writer, major, keep)
            # Of its last blocks xfs gives none.
            assert os.statvfs(place).f_bavail <= 8, what
            plan = log.cut(log.plans(writer, major))
            assert log.left() == wanted, (*what, plan.method)
            # Something is free again, and can be written.
            settle(place)
            assert os.statvfs(place).f_bavail * os.statvfs(place).f_frsize > MIB, (*what, plan.method)
            (place / "new").write_bytes(b"x" * MIB)
            if writer is ENGINE:
                log.write(made.records(3, first=500_000))
                wanted += [500_000, 500_001, 500_002]
            assert log.left() == wanted, what
            for path in (filler, place / "new"):
                path.unlink()
            log.close()
            (place / "other").unlink(missing_ok=True)
            settle(place)

    apart(work)


@pytest.mark.parametrize(("kind", "lay"), [("ext4", at_once), ("xfs", at_once), ("btrfs", at_once), ("btrfs", in_one_piece)])
def test_a_cut_that_is_killed_on_a_full_disk_is_done_by_the_next_run_and_nothing_that_was_to_stay_is_lost(
    memory: Path, kind: str, lay: Callable[[Log], None]
) -> None:
    """On btrfs there are NULs in the log in between: nothing can be written before something was taken out."""

    def work() -> None:
        place = small_disk(memory, kind)
        fill_up(place)
        (place / ".filler").open("r+b").truncate(os.stat(place / ".filler").st_size - 12 * MIB)
        settle(place)
        for writer, (made, form) in zip((NOBODY, ENGINE), FORMATS):
            steps = 0
            while True:
                steps += 1
                what = (kind, writer, steps)
                log = Log(place, made, form, 200_000)
                lay(log)
                if writer is NOBODY:
                    log.stop()
                wanted = log.wanted
                more = fill_up(place, ".more")
                assert os.statvfs(place).f_bavail <= 8, what
                broken_off = killed(log, log.plans(writer), steps)
                if broken_off and kind != "btrfs":
                    assert log.left()[-len(wanted):] == wanted, what
                log.put_back()
                plans = log.plans(writer)
                assert broken_off or not plans, what
                if plans:
                    log.cut(plans)
                assert log.left() == wanted, what
                assert not log.plans(writer), what
                log.close()
                for path in (more, place / "other"):
                    path.unlink(missing_ok=True)
                settle(place)
                if not broken_off:
                    break
            assert steps > 3, (kind, writer)

    apart(work)


# -- holes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HAS)
def test_a_hole_in_front_is_taken_out_and_what_is_behind_it_stays(memory: Path, kind: str) -> None:
    """An engine that does not append leaves one, when somebody truncates its log (moby 53631)."""

    def work() -> None:
        place = disk(memory, kind, 512 * MIB)
        for made, form in FORMATS:
            for writer, major, keep in ((NOBODY, 28, 10**9), (ENGINE, 28, 10**9), (ENGINE, 20, 100_000), (NOBODY, 28, 100_000)):
                what = (kind, str(made), writer, major, keep)
                log = Log(place, made, form, keep)
                os.truncate(log.path, 40_000_123)
                log.write(world(made, MIB))
                if writer is NOBODY:
                    log.stop()
                size, before = os.stat(log.path).st_size, settled(place)
                wanted = [shown.number for shown in made.read(world(made, MIB)) if size - 40_000_123 - shown.begin <= keep]
                plans = log.plans(writer, major)
                assert plans, what
                log.cut(plans)
                # What is shared filler is read as such: the file keeps its length then.
                assert log.left() == wanted, what
                assert not log.plans(writer, major), what
                assert settled(place) > before - 5 * MIB, what
                log.close()

    apart(work)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_whatever_is_written_and_however_it_is_cut_the_newest_records_stay(memory: Path, kind: str) -> None:
    """The state machine of ``make fuzz``, with a small budget of the same steps each time."""
    apart(lambda: on_disks.on(disk(memory, kind, on_disks.SIZES[kind]), budget=15))
