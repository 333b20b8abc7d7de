# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Logs of both formats are cut in place, on real files: on the tests' own filesystem, and on a tmpfs, which can do nothing special.

Every cut is read by a reader that shares no code with it (localdriver.py). Filesystems of its own has
tests/integration/test_log_filesystems.py.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import struct
import tempfile
import threading
import time
import typing as t
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import apart, log_cuts
from ansible_collections.fleetclean.docker.plugins.module_utils.log_cuts import (
    Cut,
    Plan,
    Writer,
    carry_out,
    decide,
    outcome,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.log_records import FRAMED, GRAIN, JSON_LINES, Format
from localdriver import JSON_FILE, LOCAL, Made

KIB = 1024
NOBODY = Writer(writes=False)
ENGINE = Writer(writes=True)
PAUSABLE = Writer(writes=True, pausable=True)
ROTATED = Writer(writes=True, appends=False)
UNSEEN = Writer(writes=True, appends=False, seen=False)
FORMATS = [pytest.param(JSON_FILE, JSON_LINES, id="json-file"), pytest.param(LOCAL, FRAMED, id="local")]
both = pytest.mark.parametrize(("made", "form"), FORMATS)


def can_collapse(folder: Path) -> bool:
    with tempfile.TemporaryFile(dir=folder) as probe:
        os.ftruncate(probe.fileno(), 8 * os.fstatvfs(probe.fileno()).f_bsize)
        try:
            log_cuts._fallocate(probe.fileno(), 0x08, 0, os.fstatvfs(probe.fileno()).f_bsize)
        except OSError:
            return False
    return True


def can_clone(folder: Path) -> bool:
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b"x" * (128 * KIB))
        probe.flush()
        try:
            fcntl.ioctl(probe.fileno(), 0x4020940D, struct.pack("qQQQ", probe.fileno(), 0, 64 * KIB, 64 * KIB))
        except OSError:
            return False
    return True


@pytest.fixture(params=["here", "tmpfs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on the tests' own filesystem, and one on a tmpfs."""
    if request.param == "here":
        yield tmp_path
        return
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("not here: no tmpfs at /dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="fleetclean-test-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


class Log:
    """A log file, open as the module opens it."""

    def __init__(self, folder: Path, content: bytes, form: Format) -> None:
        self.path = folder / "log"
        self.path.write_bytes(content)
        self.form = form

    @contextmanager
    def opened(self) -> Iterator[int]:
        descriptor = os.open(self.path, os.O_RDWR)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def decide(self, keep: int, writer: Writer, major: int = 28, larger_than: int | None = None) -> tuple[list[Plan], str]:
        with self.opened() as descriptor:
            return decide(descriptor, self.form, writer, major, keep if larger_than is None else larger_than, keep)

    def carry_out(self, plans: t.Sequence[Plan], pause: t.Callable[[], t.ContextManager[object]] = nullcontext) -> Plan:
        with self.opened() as descriptor:
            return carry_out(descriptor, self.form, plans, pause)

    def cut(self, keep: int, writer: Writer, major: int = 28) -> Plan | None:
        plans, _why = self.decide(keep, writer, major)
        return self.carry_out(plans) if plans else None

    @property
    def content(self) -> bytes:
        return self.path.read_bytes()

    @property
    def blocks(self) -> int:
        with self.opened() as descriptor:
            os.fsync(descriptor)
            return os.fstat(descriptor).st_blocks * 512

    def state(self) -> tuple[t.Any, ...]:
        found = self.path.stat()
        return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, self.content)


def block_of(path: Path) -> int:
    return os.statvfs(path).f_bsize


def way_of(place: Path, writer: Writer, keep: int = 1, major: int = 28) -> str:
    """The way that the documentation promises."""
    if not writer.writes:
        return "truncate" if not keep else "collapse" if can_collapse(place) else "rewrite"
    if can_clone(place) and (major >= 23 or not can_collapse(place)):
        return "clone"
    return "collapse" if can_collapse(place) else "paused"


# -- what stays ----------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("width", [120, 3000, 16 * KIB])
@pytest.mark.parametrize("keep", [1, 50 * KIB, 333_333])
@pytest.mark.parametrize("writer", [NOBODY, PAUSABLE], ids=["nobody", "engine"])
def test_a_log_keeps_its_newest_whole_records(place: Path, made: Made, form: Format, keep: int, width: int, writer: Writer) -> None:
    count = 400_000 // width
    log = Log(place, made.records(count, width), form)
    before = log.blocks
    plans, why = log.decide(keep, writer)
    assert plans, why
    done = log.carry_out(plans)
    # Nothing stays of a record that is longer than what is kept: then the file is empty, where nobody appends to it.
    assert done.method == way_of(place, writer, keep // width)
    left = made.numbers(log.content)
    assert left == list(range(count - keep // width, count))
    assert done == plans[0]
    if done.method != "clone":
        assert before - log.blocks == done.frees
        assert len(log.content) <= keep + block_of(place)


@both
@pytest.mark.parametrize("keep", [0, 999, 1200, 123_456])
@pytest.mark.parametrize("writer", [NOBODY, ENGINE, PAUSABLE], ids=["nobody", "engine", "pausable"])
@pytest.mark.parametrize("width", [120, 20_000])
def test_a_second_cut_changes_nothing(place: Path, made: Made, form: Format, keep: int, writer: Writer, width: int) -> None:
    log = Log(place, made.records(300_000 // width, width), form)
    first, why = log.decide(keep, writer)
    if not first:
        assert writer is ENGINE and not can_collapse(place) and not can_clone(place) and why
        return
    log.carry_out(first)
    after = log.state()
    assert log.decide(keep, writer) == ([], "")
    assert log.state() == after
    # Nor does one for another engine, or once the container stopped: except that fillers of clones go then.
    for other in (NOBODY, PAUSABLE):
        for major in (20, 28):
            assert first[0].method == "clone" or log.decide(keep, other, major) == ([], "")


@both
def test_deciding_touches_nothing(place: Path, made: Made, form: Format) -> None:
    log = Log(place, made.records(5000), form)
    before = log.state()
    for keep in (0, 1, 1000, 123_456):
        for writer in (NOBODY, ENGINE, PAUSABLE, ROTATED, UNSEEN):
            assert log.decide(keep, writer) == log.decide(keep, writer)
    assert log.state() == before
    assert [entry.name for entry in place.iterdir()] == ["log"]


@both
def test_a_log_that_is_small_enough_is_not_touched(place: Path, made: Made, form: Format) -> None:
    log = Log(place, made.records(100), form)
    before = log.state()
    for keep in (12_000, 12_001, 10**12):
        for writer in (NOBODY, ENGINE, ROTATED):
            assert log.decide(keep, writer) == ([], "")
    assert log.decide(1000, NOBODY, larger_than=12_000) == ([], "")
    assert log.state() == before


@both
def test_an_empty_log_is_left_alone(place: Path, made: Made, form: Format) -> None:
    log = Log(place, b"", form)
    for keep in (0, 1000):
        for writer in (NOBODY, PAUSABLE, ROTATED):
            assert log.decide(keep, writer) == ([], "")


@both
@pytest.mark.parametrize("writer", [NOBODY, PAUSABLE], ids=["nobody", "pausable"])
def test_keep_0_empties_a_log_as_far_as_its_writer_allows(place: Path, made: Made, form: Format, writer: Writer) -> None:
    log = Log(place, made.records(5000), form)
    done = log.cut(0, writer)
    assert done is not None
    assert done.method == way_of(place, writer, keep=0)
    assert made.read(log.content) == []
    assert done.method in ("collapse", "clone") or log.content == b""
    assert done.method == "clone" or len(log.content) <= block_of(place)


@both
@pytest.mark.parametrize("writer", [NOBODY, PAUSABLE], ids=["nobody", "pausable"])
def test_one_endless_record_is_never_torn(place: Path, made: Made, form: Format, writer: Writer) -> None:
    log = Log(place, made.record(1, 600_000)[:300_000], form)
    before = log.state()
    for keep in (0, 1000):
        assert log.decide(keep, writer) == ([], "")
    assert log.state() == before


@both
@pytest.mark.parametrize("writer", [NOBODY, PAUSABLE], ids=["nobody", "pausable"])
@pytest.mark.parametrize("unfinished", [1, 60, 50_000])
@pytest.mark.parametrize("keep", [0, 1000])
def test_a_last_record_that_is_not_finished_stays_whole(place: Path, made: Made, form: Format, writer: Writer, unfinished: int, keep: int) -> None:
    # It is being written, or its writer was killed.
    last = made.record(3000, 60_000)
    log = Log(place, made.records(3000) + last[:unfinished], form)
    done = log.cut(keep, writer)
    assert done is not None
    # What comes next completes it.
    with log.path.open("ab") as engine:
        engine.write(last[unfinished:] + made.record(3001))
    left = made.numbers(log.content)
    assert left == list(range(left[0], 3002))
    assert 2 + (keep - unfinished) // 120 <= len(left) <= 2 + keep // 120 + 1
    assert log.cut(keep, writer) is not None or len(left) == 2


@both
@pytest.mark.parametrize("writer", [NOBODY, PAUSABLE], ids=["nobody", "pausable"])
def test_a_torn_record_in_the_middle_is_no_obstacle(place: Path, made: Made, form: Format, writer: Writer) -> None:
    # Trap 21: a short write on a full disk, and the next record right behind it.
    torn = made.record(2000, 300)[:77]
    log = Log(place, made.records(2000) + torn + made.records(2000, first=5000), form)
    assert log.cut(100_000, writer) is not None
    left = made.numbers(log.content)
    assert left == list(range(7000 - 100_000 // 120, 7000))
    second = Log(place, made.records(2000) + torn + made.records(1000, first=5000), form)
    assert second.cut(150_000, writer) is not None
    assert torn + made.records(1000, first=5000) in second.content
    start = second.content.index(torn)
    assert made.numbers(second.content[:start])[-200:] == list(range(1800, 2000))


@both
@pytest.mark.parametrize("writer", [NOBODY, PAUSABLE], ids=["nobody", "pausable"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "too many"])
def test_nuls_in_front_are_taken_out(place: Path, made: Made, form: Format, writer: Writer, kept: bool) -> None:
    # Trap 20: `docker logs` stops at them. The disk has nothing of them: they are a hole.
    log = Log(place, b"", form)
    with log.path.open("r+b") as stream:
        stream.seek(10_000_123)
        stream.write(made.records(1000))
    keep = 10**6 if kept else 50_000
    plans, why = log.decide(keep, writer)
    assert plans, why
    log.carry_out(plans)
    assert made.numbers(log.content) == (list(range(1000)) if kept else list(range(1000 - 50_000 // 120, 1000)))
    assert log.decide(keep, writer) == ([], "")


@both
@pytest.mark.parametrize("writer", [NOBODY, PAUSABLE], ids=["nobody", "pausable"])
@pytest.mark.parametrize("whole", [1, 2, 3, 20])
def test_few_records_between_nuls_and_one_that_is_not_finished_stay(place: Path, made: Made, form: Format, writer: Writer, whole: int) -> None:
    last = made.record(whole, 5000)
    for unfinished in (1, 3, 500):
        log = Log(place, b"", form)
        with log.path.open("r+b") as stream:
            stream.seek(10_000_123)
            stream.write(made.records(whole) + last[:unfinished])
        assert log.cut(10**6, writer) is not None
        with log.path.open("ab") as engine:
            engine.write(last[unfinished:])
        assert made.numbers(log.content) == list(range(whole + 1))


@both
@pytest.mark.parametrize("writer", [NOBODY, PAUSABLE], ids=["nobody", "pausable"])
def test_a_hole_of_many_gigabytes_takes_no_time_and_no_space(place: Path, made: Made, form: Format, writer: Writer) -> None:
    log = Log(place, b"", form)
    with log.path.open("r+b") as stream:
        stream.seek(50_000_000_123)
        stream.write(made.records(30_000))
    before = log.blocks
    plans, why = log.decide(2_400_000, writer)
    assert plans, why
    log.carry_out(plans)
    assert log.blocks < before
    assert made.numbers(log.content) == list(range(10_000, 30_000))


@both
@pytest.mark.parametrize("end", [4096, 40_960, 65_536])
def test_a_hole_that_somebody_punched_is_taken_out_and_no_whole_record_goes_with_it(place: Path, made: Made, form: Format, end: int) -> None:
    content = made.records(5000)
    log = Log(place, content, form)
    with log.opened() as descriptor:
        log_cuts._fallocate(descriptor, 0x03, 0, end)
    first = -(-end // 120)
    for writer in (PAUSABLE, NOBODY):
        log.cut(10**9, writer)
        assert made.numbers(log.content) == list(range(first, 5000))


@both
def test_fillers_of_earlier_cuts_go_once_nobody_writes_the_log(place: Path, made: Made, form: Format) -> None:
    # A clone left them while the container ran. It stopped, and may have been started again.
    log = Log(place, form.filler(GRAIN) * 8 + made.records(100), form)
    assert log.decide(100_000, PAUSABLE) == ([], "")
    plans, _why = log.decide(100_000, NOBODY)
    done = log.carry_out(plans)
    assert done.method == ("collapse" if can_collapse(place) else "rewrite")
    assert made.numbers(log.content) == list(range(100))
    assert len(log.content) <= 12_000 + block_of(place)
    assert log.decide(100_000, NOBODY) == ([], "")


@both
def test_fillers_do_not_count_as_log(place: Path, made: Made, form: Format) -> None:
    log = Log(place, form.filler(GRAIN) * 8 + made.records(100), form)
    assert log.decide(12_000, PAUSABLE) == ([], "")
    plans, _why = log.decide(6_000, PAUSABLE)
    told = outcome(Cut("id", "web", "json-file", "/log", 0, 0, 0), plans[0], PAUSABLE, 28)
    assert (told.bytes_before, told.bytes_after) == (12_000, 6_000)
    log.carry_out(plans)
    assert made.numbers(log.content) == list(range(50, 100))


@both
@pytest.mark.parametrize("writer", [NOBODY, PAUSABLE], ids=["nobody", "pausable"])
@pytest.mark.parametrize("seed", range(5))
def test_random_worlds_are_cut_again_and_again(place: Path, made: Made, form: Format, writer: Writer, seed: int) -> None:
    dice = random.Random(seed)
    content = form.filler(dice.choice((0, 300, GRAIN))) + made.world(dice, 300, longest=dice.choice((200, 4000, 20_000)))
    log = Log(place, content, form)
    number = 300
    expected = list(range(300))
    for _cut in range(4):
        keep = dice.choice((0, dice.randrange(5000), dice.randrange(len(log.content) + 1)))
        shown = made.read(log.content)
        size = len(log.content)
        stays = [record.number for record in shown if size - record.begin <= keep]
        before = log.blocks
        if log.cut(keep, writer, dice.choice((20, 28))):
            assert made.numbers(log.content) == stays, (seed, keep)
            assert log.blocks < before
        else:
            # It is no larger, or it is by less than a block.
            assert made.numbers(log.content) == expected
            assert before <= keep + 2 * block_of(place) or len(stays) == len(expected)
            stays = expected
        # The container goes on.
        with log.path.open("ab") as engine:
            for _more in range(dice.randrange(60)):
                engine.write(made.record(number, made.least + dice.randrange(2000)))
                stays.append(number)
                number += 1
        expected = stays
        assert made.numbers(log.content) == expected


@both
@pytest.mark.parametrize("writer", [NOBODY, PAUSABLE], ids=["nobody", "pausable"])
def test_records_that_look_like_fillers_or_hold_records_stay_what_they_are(place: Path, made: Made, form: Format, writer: Writer) -> None:
    texts = [form.filler(500), form.filler(GRAIN // 8), made.records(30, 120), b'","fleetclean":"filler 0000065536"', b"\0" * 900, b"\n" * 300]
    content = b"".join(made.of_text(b"%08d " % number + texts[number % len(texts)]) for number in range(300))
    shown = made.read(content)
    for keep in (100, 5000, 100_000, 400_000):
        log = Log(place, content, form)
        log.cut(keep, writer)
        assert [record.text for record in made.read(log.content)] == [record.text for record in shown if len(content) - record.begin <= keep]


# -- while it is written -------------------------------------------------------------------------


@both
def test_a_log_that_is_written_while_it_is_cut_loses_no_new_record(place: Path, made: Made, form: Format) -> None:
    log = Log(place, made.records(4000), form)
    standing = threading.Lock()
    wanted = 12_000

    def engine() -> None:
        descriptor = os.open(log.path, os.O_WRONLY | os.O_APPEND)
        try:
            for number in range(4000, wanted):
                with standing:
                    os.write(descriptor, made.record(number))
        finally:
            os.close(descriptor)

    @contextmanager
    def pause() -> Iterator[None]:
        with standing:
            yield

    cuts = 0
    writer = threading.Thread(target=engine)
    writer.start()
    while writer.is_alive():
        plans, _why = log.decide(20_000, PAUSABLE, 20)
        if plans:
            log.carry_out(plans, pause)
            cuts += 1
    writer.join()
    left = made.numbers(log.content)
    assert cuts
    assert left == list(range(left[0], wanted))


@both
def test_what_was_written_since_it_was_decided_stays(place: Path, made: Made, form: Format) -> None:
    for writer in (NOBODY, PAUSABLE):
        for keep in (1200, 120_000):
            log = Log(place, made.records(2000), form)
            plans, _why = log.decide(keep, writer)
            with log.path.open("ab") as late:
                late.write(made.records(5000, 200, first=2000))
            log.carry_out(plans)
            assert made.numbers(log.content) == list(range(2000 - keep // 120, 7000))


@both
def test_a_log_that_was_to_be_emptied_is_not_when_something_came_before_the_pause_worked(made: Made, form: Format, tmp_path: Path) -> None:
    log = Log(tmp_path, made.records(2000), form)
    (plan,) = [plan._replace(method="paused") for plan in log.decide(0, NOBODY)[0] if plan.method == "truncate"]

    @contextmanager
    def pause() -> Iterator[None]:
        with log.path.open("ab") as late:
            late.write(made.records(3, first=2000))
        yield

    log.carry_out([plan], pause)
    assert made.numbers(log.content) == [2000, 2001, 2002]


@both
def test_whoever_opens_a_log_while_its_records_move_waits_and_sees_each_once(tmp_path: Path, made: Made, form: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path, made.records(3000), form)
    plan = log.decide(120_000, NOBODY)[0][0]._replace(method="rewrite")
    moving = tmp_path / "moving"
    real = os.pwrite

    def slow(descriptor: int, content: bytes, position: int) -> int:
        done = real(descriptor, content, position)
        if not moving.exists():
            moving.touch()
            time.sleep(0.3)
        return done

    monkeypatch.setattr(os, "pwrite", slow)
    seen: list[bytes] = []

    def reader() -> None:
        while not moving.exists():
            time.sleep(0.01)
        seen.append(log.content)

    thread = threading.Thread(target=reader)
    thread.start()
    # As the module does: who holds a lease is told by SIGIO that somebody waits.
    apart.do(lambda: log.carry_out([plan]))
    thread.join()
    assert made.numbers(seen[0]) == list(range(2000, 3000))


# -- where there is no way -----------------------------------------------------------------------


def test_a_written_log_that_cannot_be_cut_stays_as_it_is_and_says_why(place: Path) -> None:
    if can_clone(place):
        pytest.skip("not here: blocks can be shared here, which always goes")
    log = Log(place, JSON_FILE.records(5000), JSON_LINES)
    before = log.state()
    words = {writer: log.decide(1050, writer) for writer in (ROTATED, UNSEEN, ENGINE)}
    assert words[ROTATED] == ([], (
        "a container that runs writes it, and the engine does not append to it (after a rotation of its own), and could not be made to: "
        "there is no way that loses no line"
    ))
    assert words[UNSEEN] == ([], (
        "a container that runs writes it, and how it does so cannot be seen from here (run this in the engine's own process namespace, "
        "as root): there is no way that loses no line"
    ))
    if not can_collapse(place):
        assert words[ENGINE] == ([], (
            "a container that runs writes it, and its filesystem can neither take blocks out nor share them, and the container could not "
            "be paused: there is no way that loses no line"
        ))
    assert log.state() == before


class Refusing:
    """A filesystem that refuses what ``calls`` names, each by an error of its own."""

    def __init__(self, patch: pytest.MonkeyPatch, **calls: int) -> None:
        for name, number in calls.items():
            patch.setattr(log_cuts, name, self._refuse(number))

    @staticmethod
    def _refuse(number: int) -> t.Callable[..., t.NoReturn]:
        def refuse(*_arguments: t.Any) -> t.NoReturn:
            raise OSError(number, os.strerror(number))

        return refuse


def planned(log: Log, *methods: str) -> list[Plan]:
    """Ways that this filesystem may not have: what is said of them is another one's."""
    with log.opened() as descriptor:
        size = os.fstat(descriptor).st_size
        start = log.form.newest(descriptor, 12_000, 0, size)
    return [Plan(method, size, 0, start, boundary=start // GRAIN * GRAIN, piece=GRAIN, frees=1) for method in methods]


@both
@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOTTY, errno.EPERM, errno.EXDEV, errno.ENOSPC])
def test_a_way_that_is_refused_is_followed_by_the_next(place: Path, made: Made, form: Format, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    Refusing(monkeypatch, _fallocate=number, _share=number)
    for methods in (("collapse", "paused"), ("clone", "paused"), ("clone", "collapse", "rewrite")):
        log = Log(place, made.records(5000), form)
        done = log.carry_out(planned(log, *methods))
        assert done.method == methods[-1]
        assert made.numbers(log.content) == list(range(4900, 5000))


@both
def test_of_several_refusals_the_full_disk_is_told(place: Path, made: Made, form: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    for fallocate, share in ((errno.ENOSPC, errno.EOPNOTSUPP), (errno.EOPNOTSUPP, errno.ENOSPC)):
        Refusing(monkeypatch, _fallocate=fallocate, _share=share)
        log = Log(place, made.records(5000), form)
        with pytest.raises(OSError, match="No space left") as caught:
            log.carry_out(planned(log, "collapse", "clone"))
        assert caught.value.errno == errno.ENOSPC
        assert made.numbers(log.content)[-100:] == list(range(4900, 5000))


@both
def test_a_file_that_cannot_be_collapsed_is_not_changed_by_a_byte(place: Path, made: Made, form: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(place, made.records(5000), form)
    before = log.content
    for number in (errno.EOPNOTSUPP, errno.ETXTBSY, errno.EIO):
        Refusing(monkeypatch, _fallocate=number)
        with pytest.raises(OSError, match=os.strerror(number)):
            log.carry_out(planned(log, "collapse"))
        assert log.content == before


@both
def test_an_error_of_the_disk_is_no_refusal(place: Path, made: Made, form: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(place, made.records(5000), form)
    Refusing(monkeypatch, _fallocate=errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        log.carry_out(planned(log, "collapse", "paused"))


def plain(made: Made) -> bytes:
    return b"".join(made.record(number, 110 + number % 37) for number in range(2500))


def hostile(made: Made) -> bytes:
    """What prints records of its own: lengths in it lead from one to the next."""
    return b"".join(made.of_text(b"%08d " % number + made.records(9 + number % 5, 100)) for number in range(250))


@both
@pytest.mark.parametrize("method", ["collapse", "clone", "rewrite", "paused"])
@pytest.mark.parametrize("content", [plain, hostile])
def test_what_fails_at_any_step_leaves_a_log_that_can_be_read(
    place: Path, made: Made, form: Format, method: str, content: t.Callable[[Made], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = {name: getattr(log_cuts, name) for name in ("_write", "_fallocate", "_share")}
    monkeypatch.setattr(log_cuts, "_PIECE", 20_000)
    whole = content(made)
    size = len(whole)
    with Log(place, whole, form).opened() as descriptor:
        start = form.newest(descriptor, 100_000, 0, size)
    wanted = made.numbers(whole[start:])
    assert len(wanted) > 50

    def failing(name: str, counter: list[int]) -> t.Callable[..., None]:
        def call(*arguments: t.Any) -> None:
            counter[0] -= 1
            if counter[0] < 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real[name](*arguments)

        return call

    steps = 0
    while True:
        log = Log(place, whole, form)
        counter = [steps]
        for name in real:
            monkeypatch.setattr(log_cuts, name, failing(name, counter))
        try:
            log.carry_out([Plan(method, size, 0, start, boundary=start // GRAIN * GRAIN, piece=GRAIN, frees=1)])
            break
        except OSError as error:
            if error.errno != errno.EIO:
                assert error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL)
                pytest.skip("not here: this filesystem has no such way")
            assert set(wanted) <= set(made.numbers(log.content)), steps
        steps += 1
    assert steps >= 2
    assert made.numbers(log.content) == wanted


# -- what is said --------------------------------------------------------------------------------


def told(method: str, writer: Writer, major: int = 28, **plan: int) -> Cut:
    found = Cut("id", "web", "json-file", "/log", 0, 0, 0)
    return outcome(found, Plan(method, **{"size": 1000, "text": 100, "start": 800, "boundary": 0, "frees": 5000, **plan}), writer, major)


def test_bytes_are_without_fillers_and_what_comes_free_is_the_plans() -> None:
    done = told("collapse", ENGINE)
    assert (done.bytes_before, done.bytes_after, done.reclaimed_bytes, done.method) == (900, 200, 5000, "collapse")
    assert done.changed
    assert told("truncate", NOBODY, start=1000).bytes_after == 0
    assert told("rewrite", NOBODY, frees=-4096).reclaimed_bytes == 0
    assert not Cut("id", "web", "json-file", "/log", 1, 1, 0, words="why").changed


@pytest.mark.parametrize(
    ("method", "writer", "major", "readers", "repeats"),
    [
        ("collapse", ENGINE, 20, "ok", True),
        ("collapse", ENGINE, 22, "ok", True),
        ("collapse", ENGINE, 23, "stale", True),
        ("paused", PAUSABLE, 28, "stale", True),
        ("paused", PAUSABLE, 20, "ok", True),
        ("truncate", ENGINE, 28, "stale", False),
        ("truncate", ENGINE, 20, "ok", False),
        ("collapse", NOBODY, 28, "ok", True),
        ("rewrite", NOBODY, 28, "ok", True),
        ("truncate", NOBODY, 28, "ok", False),
        ("clone", ENGINE, 28, "ok", False),
        ("clone", ENGINE, 20, "ok", False),
    ],
)
def test_what_readers_see_depends_on_the_way_the_writer_and_the_engines_release(
    method: str, writer: Writer, major: int, readers: str, repeats: bool
) -> None:
    done = told(method, writer, major)
    assert (done.readers, done.repeats, done.slow_seconds) == (readers, repeats, 0.0)


def test_a_log_that_was_emptied_has_nothing_to_repeat() -> None:
    assert not told("paused", PAUSABLE, start=1000).repeats


def test_many_fillers_make_docker_logs_slow_and_it_is_said_how_slow() -> None:
    assert told("clone", ENGINE, boundary=10**6).readers == "ok"
    slow = told("clone", ENGINE, boundary=12 * 10**9)
    assert slow.readers == "slow"
    assert slow.slow_seconds == pytest.approx(12e9 / log_cuts.FILLER_BYTES_PER_SECOND, abs=0.1)


def test_no_descriptor_is_left_open(place: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for made, form in ((JSON_FILE, JSON_LINES), (LOCAL, FRAMED)):
        for writer in (NOBODY, PAUSABLE):
            Log(place, made.records(5000), form).cut(1000, writer)
    assert sorted(os.listdir("/proc/self/fd")) == before
