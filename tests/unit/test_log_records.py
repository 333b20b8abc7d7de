# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where records begin in both formats of logs, and fillers that show nothing: against a reader that shares no code (localdriver.py)."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils.log_records import (
    FRAMED,
    GRAIN,
    JSON_LINES,
    Format,
    Front,
    Unreadable,
)
from localdriver import JSON_FILE, LOCAL, Made, framed

FORMATS = [pytest.param(JSON_FILE, JSON_LINES, id="json-file"), pytest.param(LOCAL, FRAMED, id="local")]
both = pytest.mark.parametrize(("made", "form"), FORMATS)
SEEDS = range(6)
#: A filler of json-file as it is promised to readers of logs.
HEAD = b'{"log":"","fleetclean":"filler'


@contextmanager
def opened(content: bytes) -> Iterator[int]:
    descriptor = os.memfd_create("log")
    try:
        os.write(descriptor, content)
        yield descriptor
    finally:
        os.close(descriptor)


def front(form: Format, content: bytes) -> Front:
    with opened(content) as descriptor:
        return form.front(descriptor, len(content))


def newest(form: Format, content: bytes, keep: int) -> int:
    with opened(content) as descriptor:
        return form.newest(descriptor, keep, form.front(descriptor, len(content)).text, len(content))


def begins(made: Made, content: bytes) -> list[int]:
    return [shown.begin for shown in made.read(content)]


# -- fillers -------------------------------------------------------------------------------------


LENGTHS = [
    *range(180), 255, 256, 257, 16_000, *range(16_390, 16_400), 65_535, GRAIN, GRAIN + 1, 4 * GRAIN, 4 * GRAIN + 1, 4 * GRAIN + 9, 8 * GRAIN,
    8 * GRAIN + 5, 3_000_000,
]


@both
def test_a_filler_has_the_wished_length_and_shows_nothing_in_front_of_a_record_or_between_two(made: Made, form: Format) -> None:
    for length in LENGTHS:
        if not form.fits(length):
            assert made is LOCAL and 0 < length < 10, "only what is shorter than a record's own frame has no filler"
            continue
        filler = form.filler(length)
        assert len(filler) == length
        content = filler + made.record(1) + filler + made.record(2)
        assert made.numbers(content) == [1, 2], length


def test_a_filler_of_json_file_is_one_line_that_says_what_it_is_and_has_no_stream() -> None:
    for length in (100, 4096, GRAIN, 1 << 22):
        filler = JSON_LINES.filler(length)
        assert filler.startswith(HEAD)
        assert filler.index(b"\n") == length - 1
        assert b"stream" not in filler
        assert filler[filler.index(b"}") + 1:].strip(b" ") == b"\n"
        assert b'"time":"1970-01-01T00:00:00Z"' in filler, "--since and --until pass over it"


def test_a_filler_that_is_too_short_for_words_is_a_line_of_spaces() -> None:
    assert JSON_LINES.filler(1) == b"\n"
    assert JSON_LINES.filler(20) == b" " * 19 + b"\n"


def test_a_filler_of_framed_records_is_never_longer_than_engines_read() -> None:
    filler = FRAMED.filler(3_000_000)
    position = 0
    while position < len(filler):
        (length,) = struct.unpack_from(">L", filler, position)
        assert length + 8 <= FRAMED.largest_filler < 1_000_000
        position += length + 8


# -- front ---------------------------------------------------------------------------------------


@both
def test_a_log_without_fillers_begins_with_its_text(made: Made, form: Format) -> None:
    assert front(form, made.records(10)) == Front(0, 0, False)
    assert front(form, b"") == Front(0, 0, False)


@both
@pytest.mark.parametrize("seed", SEEDS)
def test_text_begins_behind_all_fillers_whatever_their_lengths(made: Made, form: Format, seed: int) -> None:
    dice = random.Random(seed)
    fillers = b""
    grain = 0
    for _count in range(dice.randrange(1, 12)):
        fillers += form.filler(dice.choice((10, 57, 100, 4096, GRAIN, 2 * GRAIN, GRAIN - len(fillers) % GRAIN or GRAIN)))
        # Spaces alone do not tell that they were fillers to their end.
        grain = len(fillers) if len(fillers) % GRAIN == 0 else grain
    for text in (b"", made.records(5)):
        found = front(form, fillers + text)
        assert found.text == len(fillers)
        assert found.fillers in (grain, 0) if made is JSON_FILE else found.fillers == grain
        assert not found.nuls


@both
def test_whole_fillers_of_an_earlier_cut_are_known_up_to_their_end(made: Made, form: Format) -> None:
    for pieces in ([GRAIN], [4 * GRAIN] * 3, [4 * GRAIN, 4 * GRAIN, 5 * GRAIN if made is JSON_FILE else GRAIN]):
        fillers = b"".join(map(form.filler, pieces))
        rest = form.filler(333)
        assert front(form, fillers + rest + made.records(3)) == Front(len(fillers) + 333, len(fillers), False)
        assert front(form, fillers) == Front(len(fillers), len(fillers), False)


def test_fillers_of_the_first_release_are_known() -> None:
    filler = b'{"log":"","stream":"stdout","fleetclean":"filler","time":"1970-01-01T00:00:00Z"}'.ljust(GRAIN - 1) + b"\n"
    assert front(JSON_LINES, filler * 3 + JSON_FILE.records(2)) == Front(3 * GRAIN, 3 * GRAIN, False)


def test_lines_of_spaces_in_front_are_no_text() -> None:
    for blank in (b"\n", b" " * 99 + b"\n", b" " * 200_000 + b"\n", b"   \n  \n\r\n\t\n", b" " * 31):
        assert front(JSON_LINES, blank + JSON_FILE.records(2)) == Front(len(blank), 0, False)
        assert front(JSON_LINES, JSON_LINES.filler(GRAIN) + blank + JSON_FILE.records(2)) == Front(GRAIN + len(blank), GRAIN, False)


@both
@pytest.mark.parametrize("nuls", [8, 100, 4096, 65_536, 65_537, 300_000])
@pytest.mark.parametrize("width", [110, 300, 70_000])
def test_nuls_in_front_are_seen_and_the_text_behind_them_is_found(made: Made, form: Format, nuls: int, width: int) -> None:
    # Trap 19: an engine that writes at an offset of its own leaves a hole before it.
    text = made.records(6, width)
    for fillers in (b"", form.filler(GRAIN), form.filler(3 * GRAIN)):
        assert front(form, fillers + b"\0" * nuls + text) == Front(len(fillers) + nuls, len(fillers), True)


@both
def test_a_log_of_nuls_alone_has_no_text(made: Made, form: Format) -> None:
    found = front(form, b"\0" * 200_000)
    assert (found.text, found.nuls) == (200_000, True)


@both
@pytest.mark.parametrize("nuls", [0, 1, 3, 4096, 200_000])
@pytest.mark.parametrize("width", range(250, 262))
def test_nuls_behind_the_last_record_are_no_part_of_the_log(made: Made, form: Format, nuls: int, width: int) -> None:
    # Of the widths some have a length that ends with a NUL itself.
    content = made.records(3, width)
    with opened(content + b"\0" * nuls) as descriptor:
        assert form.end(descriptor, len(content) + nuls) == len(content)


@both
@pytest.mark.parametrize("width", [110, 3000])
@pytest.mark.parametrize("end", [4096, 8192, 65_536, 131_072])
def test_behind_a_hole_that_ends_within_a_record_the_text_begins_at_the_next_whole_one(made: Made, form: Format, end: int, width: int) -> None:
    # Somebody's fallocate --punch-hole, or a cut on a full btrfs that was killed.
    content = made.records(200_000 // width + 10, width)
    whole = next(begin for begin in begins(made, content) if begin >= end)
    found = front(form, b"\0" * end + content[end:])
    assert found == Front(whole, 0, True)


@both
def test_a_filler_whose_end_is_missing_is_text(made: Made, form: Format) -> None:
    # Half of it was overwritten, or the file ends in it.
    filler = form.filler(GRAIN)
    for content in (filler[:-1], filler[: GRAIN // 2], filler[: GRAIN // 2] + made.records(2000)):
        assert front(form, content) == Front(0, 0, False)
        assert front(form, filler + content).text == GRAIN


def test_a_record_that_prints_fillers_is_text() -> None:
    for text in (HEAD + b' 0000065536"}\n', JSON_LINES.filler(500), b"", b"\n", b'","fleetclean":"filler 0000065536"', b" " * 200):
        for content in (JSON_FILE.of_text(text), JSON_FILE.of_text(text) * 3):
            assert front(JSON_LINES, content) == Front(0, 0, False)
    # An option of the engine's puts labels into every record.
    attributes = b'{"log":"\\n","stream":"stdout","attrs":{"fleetclean":"filler 0000065536"},"time":"2024-03-01T12:00:00Z"}\n'
    assert front(JSON_LINES, attributes) == Front(0, 0, False)
    for text in (FRAMED.filler(500), b"\x7a\x0afleetclean", b"", b"\0" * 5000):
        content = LOCAL.of_text(text) + LOCAL.records(5)
        assert front(FRAMED, content) == Front(0, 0, False)


def test_what_is_no_log_is_text() -> None:
    noise = random.Random(1).randbytes(100_000).lstrip(b"\0 \n\r\t")
    for form in (JSON_LINES, FRAMED):
        assert front(form, noise).text == 0


# -- newest --------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("seed", SEEDS)
def test_the_newest_records_are_as_many_whole_ones_as_fit(made: Made, form: Format, seed: int) -> None:
    dice = random.Random(seed)
    content = form.filler(dice.choice((0, 100, GRAIN))) + made.world(dice, 200, longest=dice.choice((100, 3000, 20_000)))
    places = begins(made, content)
    keeps = [0, 1, 50, 1000, 100_000, len(content), 10**9]
    keeps += [len(content) - dice.choice(places) + dice.choice((-1, 0, 1)) for _ in range(40)]
    keeps += [dice.randrange(len(content)) for _ in range(40)]
    with opened(content) as descriptor:
        text = form.front(descriptor, len(content)).text
        for keep in keeps:
            fit = min((place for place in places if place >= len(content) - keep), default=len(content))
            assert form.newest(descriptor, keep, text, len(content)) == fit, keep


@both
def test_a_record_that_is_not_finished_stays_whole(made: Made, form: Format) -> None:
    # It is being written, or its writer was killed, or the disk was full.
    whole = made.records(50, 150)
    last = made.record(50, 400)
    for cut in (*range(1, 20), 200, 395, 396, 397, 398, 399):
        for keep in (0, 1, 10, 100):
            start = newest(form, whole + last[:cut], keep)
            assert start <= len(whole), (cut, keep)
            assert len(whole) - start <= max(keep, 0) + 150
        for keep in (1000, 2000):
            start = newest(form, whole + last[:cut], keep)
            assert start in begins(made, whole)
            assert keep - 300 <= len(whole) + cut - start <= keep + 400


@both
@pytest.mark.parametrize("length", [65_000, 65_536, 300_000, 900_000])
def test_a_last_record_of_any_length_that_is_not_finished_stays_whole(made: Made, form: Format, length: int) -> None:
    whole = made.records(20)
    unfinished = made.of_text(b"y" * 950_000)[:length]
    assert newest(form, whole + unfinished, 1000) <= len(whole)
    assert newest(form, unfinished, 1000) == 0
    filler = form.filler(GRAIN)
    assert newest(form, filler + unfinished, 1000) == GRAIN


def test_one_endless_line_is_never_torn() -> None:
    content = b'{"log":"' + b"x" * 3_000_000
    for keep in (0, 1000, 1 << 20):
        assert newest(JSON_LINES, content, keep) == 0
        assert newest(JSON_LINES, JSON_FILE.records(3) + content, keep) == len(JSON_FILE.records(3))


@both
@pytest.mark.parametrize("torn", [1, 3, 4, 5, 9, 60, 100])
def test_a_torn_record_in_the_middle_is_no_obstacle(made: Made, form: Format, torn: int) -> None:
    # Trap 21: a short write on a full disk, and the next record right behind it.
    before, after = made.records(300), made.records(300, first=1000)
    content = before + made.record(500, 200)[:torn] + after
    # Less than what follows it: as if it were not there. A line that begins with a torn one ends with that.
    for keep in (0, 1000, len(after) - 500):
        assert made.numbers(content[newest(form, content, keep):]) == made.numbers(after)[len(after) // 120 - keep // 120:]
    # More: everything that fits, on both sides.
    start = newest(form, content, len(after) + 12_000)
    assert start in begins(made, before)
    assert len(content) - start <= len(after) + 12_000
    assert made.read(before[start:])[0].number >= 200 - 2
    assert content[start:].endswith(after)


@both
@pytest.mark.parametrize("torn", [1, 3, 4, 5, 9, 60, 100])
def test_what_is_on_the_other_side_of_a_torn_record_is_kept_if_it_fits(made: Made, form: Format, torn: int) -> None:
    before, after = made.records(300), made.records(20, first=1000)
    content = before + made.record(500, 200)[:torn] + after
    assert newest(form, content, len(content)) == 0
    start = newest(form, content, len(content) - 1)
    assert start == 120
    start = newest(form, content, len(after) + torn + 1200)
    assert start == len(before) - 1200


def test_nuls_of_an_older_accident_in_the_middle_are_no_obstacle() -> None:
    content = JSON_FILE.records(1000) + b"\0" * 100_000 + b"\n" + JSON_FILE.records(1000)
    assert content[newest(JSON_LINES, content, 50_000):] == JSON_FILE.records(416, first=584)
    content = LOCAL.records(1000) + b"\0" * 100_000 + LOCAL.records(1000)
    assert content[newest(FRAMED, content, 50_000):] == LOCAL.records(416, first=584)


def test_what_cannot_be_told_apart_says_so_and_where() -> None:
    good = LOCAL.records(100)
    noise = b"\xff" * 1_500_000
    with pytest.raises(Unreadable, match=rf"behind byte {len(good)}\b"):
        newest(FRAMED, good + noise, 1000)
    with pytest.raises(Unreadable, match=r"behind byte 0\b"):
        newest(FRAMED, JSON_FILE.records(20_000), 1000)


# -- borders and seams ---------------------------------------------------------------------------


def hostile_texts(dice: random.Random) -> list[bytes]:
    """What containers print to lead a reader of frames astray: lengths, and records in records."""
    length = struct.pack(">L", 10)
    return [
        b"\0" * 500,
        length * 200,
        b"".join(struct.pack(">L", dice.choice((1, 4, 8, 16, 100))) + dice.randbytes(dice.randrange(20)) for _ in range(100)),
        LOCAL.records(3, 70),
        b"\0\0\0" + LOCAL.record(7, 90)[:-1],
        FRAMED.filler(50) * 3,
        b"\x01\0" * 300,
        framed(b"\x7a")[:8] * 20,
        b"\n" * 100,
        b'\n{"log":"fake\\n","stream":"stdout","time":"2024-03-01T12:00:00Z"}\n' * 10,
        HEAD + b' 0000065536"}\n' + b" " * 300,
    ]


def hostile_world(made: Made, dice: random.Random, count: int = 60) -> bytes:
    return b"".join(made.of_text(b"%08d " % number + dice.choice([*hostile_texts(dice), b"plain\n"])) for number in range(count))


@both
@pytest.mark.parametrize("seed", SEEDS)
def test_the_next_border_is_the_next_beginning_of_a_record(made: Made, form: Format, seed: int) -> None:
    dice = random.Random(seed)
    content = (made.world(dice, 60, 400), hostile_world(made, dice))[seed % 2]
    places = [*begins(made, content), len(content)]
    with opened(content) as descriptor:
        for position in sorted({*places, *(place + 1 for place in places[:-1]), *(dice.randrange(len(content)) for _ in range(150))}):
            assert form.border(descriptor, position, len(content)) == min(place for place in places if place >= position), position


@both
def test_without_a_border_before_the_end_the_end_is_one(made: Made, form: Format) -> None:
    content = made.record(1, 30_000) + made.record(2)
    with opened(content) as descriptor:
        assert form.border(descriptor, 5, 30_000) == 30_000
        assert form.border(descriptor, 0, 30_000) == 0
        assert form.border(descriptor, 30_000, 30_000) == 30_000


@both
@pytest.mark.parametrize("seed", SEEDS)
def test_a_seam_makes_a_record_begin_at_the_boundary_and_changes_nothing_that_stays(made: Made, form: Format, seed: int) -> None:
    dice = random.Random(seed)
    content = (made.world(dice, 80, 600), hostile_world(made, dice))[seed % 2]
    shown = made.read(content)
    for _count in range(120):
        start = dice.choice([*(record.begin for record in shown[1:]), len(content)])
        begins = [record.begin for record in shown[1:] if record.begin < start] or [start]
        boundary = dice.choice((start, max(1, start - dice.randrange(1, 30)), dice.randrange(1, start + 1), dice.choice(begins)))
        with opened(content) as descriptor:
            seam = form.seam(descriptor, boundary, start)
            if seam is None:
                assert made is LOCAL
                # Nothing fits between them, or before them.
                assert 0 < start - boundary < 10 or boundary < 10
                continue
            os.pwrite(descriptor, seam[1], seam[0])
            after = os.pread(descriptor, len(content) + 1, 0)
        assert len(after) == len(content)
        assert after[start:] == content[start:]
        # Killed right then, all can be read, and all that is to stay is there.
        left = made.read(after)
        assert [record for record in left if record.begin >= start] == [record for record in shown if record.begin >= start]
        assert {record.begin for record in left if record.begin < start} <= {record.begin for record in shown}
        # Without what is before the boundary, too; and there is nothing between, also where a record begins at the boundary by chance.
        assert made.numbers(after[boundary:])[-len(shown):] == [record.number for record in shown if record.begin >= start]


def test_a_seam_in_an_endless_line_stays_within_bounds() -> None:
    endless = b'{"log":"' + b"x" * 5_000_000 + b"\n"
    content = endless + JSON_FILE.records(3)
    boundary = 4_501_504
    with opened(content) as descriptor:
        seam = JSON_LINES.seam(descriptor, boundary, len(endless))
        assert seam is not None
        os.pwrite(descriptor, seam[1], seam[0])
        after = os.pread(descriptor, len(content), 0)
    assert len(seam[1]) < 3_000_000
    assert JSON_FILE.numbers(after[boundary:]) == [0, 1, 2]


# -- pieces --------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("seed", SEEDS)
def test_a_pieces_whole_records_end_where_its_last_one_ends(made: Made, form: Format, seed: int) -> None:
    dice = random.Random(seed)
    content = (made.world(dice, 40, 300), hostile_world(made, dice, 20))[seed % 2]
    ends = [0, *(record.end for record in made.read(content))]
    for length in (*range(300), *(dice.randrange(len(content)) for _ in range(100)), len(content)):
        assert form.whole(content[:length]) == max(end for end in ends if end <= length), length
