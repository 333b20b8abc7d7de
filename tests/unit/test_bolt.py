# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""bbolt databases, written by the tests themselves: whole ones are read whole, damaged ones end in BoltError, soon."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import tempfile
import time
import types
import typing as t
from contextlib import contextmanager
from pathlib import Path

import boltfile
import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import bolt
from boltfile import BRANCH, LEAF, Writer, leaf_body
from hypothesis import example, given, settings
from mutations import bounded, mutated

Plain = t.Dict[bytes, t.Any]


class Hang(BaseException):
    """It takes too long; nothing catches this."""


@contextmanager
def within(seconds: float) -> t.Iterator[None]:
    def ring(_number: int, _frame: types.FrameType | None) -> None:
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def plain(bucket: bolt.Bucket, depth: int = 0) -> Plain:
    """All of a database, as the mapping that it was written from."""
    if depth > 12:
        raise ValueError("deeper than any that is written here")
    return {key: plain(value, depth + 1) if isinstance(value, bolt.Bucket) else value for key, value in bucket.items()}


def content(path: Path) -> Plain:
    return bolt.read(str(path), plain)


def trouble(path: Path) -> str:
    with within(10), pytest.raises(bolt.BoltError) as caught:
        content(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def random_tree(dice: random.Random, depth: int = 0) -> Plain:
    tree: Plain = {}
    for _ in range(dice.choice((0, 1, 3, 20)) if depth else dice.choice((0, 5, 100))):
        key = dice.getrandbits(8 * dice.randint(1, 30) + 8).to_bytes(32, "big").lstrip(b"\0") or b"\xff"
        if depth < 3 and dice.random() < 0.3:
            tree[key] = random_tree(dice, depth + 1)
        else:
            tree[key] = bytes(dice.choice((0, 1, 7, 200))) + key
    return tree


# -- whole databases ---------------------------------------------------------------------------------


def test_the_checksum_is_fnv_1a_of_64_bits() -> None:
    # The algorithm's own test vectors (draft-eastlake-fnv).
    for text, expected in ((b"", 0xCBF29CE484222325), (b"a", 0xAF63DC4C8601EC8C), (b"foobar", 0x85944171F73967E8)):
        assert bolt._checksum(text) == boltfile.checksum(text) == expected


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
@pytest.mark.parametrize("per_page", [1 << 15, 4])
def test_a_tree_of_any_height_is_read_whole(tmp_path: Path, page_size: int, per_page: int) -> None:
    tree: Plain = {f"key {number:05}".encode(): f"value {number}".encode() * 5 for number in range(2000)}
    path = boltfile.write(tmp_path / "x.db", tree, page_size=page_size, per_page=per_page)
    assert content(path) == tree
    assert list(content(path)) == sorted(tree)


@pytest.mark.parametrize("seed", range(20))
def test_random_trees_are_read_as_they_were_written(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    tree = random_tree(dice)
    path = boltfile.write(
        tmp_path / "x.db", tree, page_size=dice.choice((4096, 16384)), per_page=dice.choice((2, 5, 1000)), transaction=dice.randint(2, 99)
    )
    assert content(path) == tree


def test_small_buckets_stand_inline_and_large_ones_on_pages_of_their_own(tmp_path: Path) -> None:
    small = {b"a": b"1", b"b": b""}
    large = {b"%03d" % number: b"x" * 100 for number in range(400)}
    tree: Plain = {b"large": large, b"nested": {b"inner": {b"innermost": large, b"small": small}}, b"none": {}, b"small": small}
    path = boltfile.write(tmp_path / "x.db", tree)
    assert content(path) == tree
    # A small one costs no page of its own.
    assert path.stat().st_size == len(boltfile.encode({**tree, b"more": small}))


def test_values_larger_than_a_page_are_read_whole(tmp_path: Path) -> None:
    tree = {b"before": b"1", b"large": bytes(range(256)) * 300, b"larger": b"x" * 200_000, b"small": b"2"}
    assert content(boltfile.write(tmp_path / "x.db", tree)) == tree


def test_an_empty_database_has_nothing_and_is_no_error(tmp_path: Path) -> None:
    assert content(boltfile.write(tmp_path / "x.db", {})) == {}
    assert plain(bolt.empty()) == {}


def test_a_bucket_is_found_by_its_path_and_a_value_of_that_name_is_none(tmp_path: Path) -> None:
    path = boltfile.write(tmp_path / "x.db", {b"v1": {b"moby": {b"images": {b"k": b"v"}}, b"value": b"plain"}})

    def look(top: bolt.Bucket) -> tuple[t.Any, ...]:
        found = top.bucket(b"v1", b"moby", b"images")
        return (
            found and found.values(),
            top.bucket(b"v1", b"other", b"images"),
            top.bucket(b"v1", b"value"),
            top.bucket(b"v1", b"value", b"deeper"),
            top.bucket() is top,
            [name for name, _bucket in (top.bucket(b"v1") or bolt.empty()).buckets()],
        )

    assert bolt.read(str(path), look) == ({b"k": b"v"}, None, None, None, True, [b"moby"])


# -- which state is the newest -------------------------------------------------------------------------


@pytest.mark.parametrize("transaction", [2, 3])
@pytest.mark.parametrize("page_size", [4096, 16384])
def test_the_newer_of_the_two_metas_counts(tmp_path: Path, transaction: int, page_size: int) -> None:
    path = boltfile.write(tmp_path / "x.db", {b"new": b"1"}, before={b"old": b"1"}, transaction=transaction, page_size=page_size)
    assert content(path) == {b"new": b"1"}


@pytest.mark.parametrize("transaction", [2, 3])
@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
def test_a_torn_meta_leaves_the_state_before_it(tmp_path: Path, transaction: int, page_size: int) -> None:
    path = boltfile.write(
        tmp_path / "x.db", {b"new": b"1"}, before={b"old": b"1"}, transaction=transaction, page_size=page_size, torn=[transaction % 2]
    )
    assert content(path) == {b"old": b"1"}


def test_two_torn_metas_are_no_database(tmp_path: Path) -> None:
    assert "is no bbolt database" in trouble(boltfile.write(tmp_path / "x.db", {b"a": b"1"}, torn=[0, 1]))


@pytest.mark.parametrize("at", [0, 4, 8, 12, 16, 24, 32, 40, 48, 56])
def test_each_field_of_a_meta_is_covered_by_its_checksum(tmp_path: Path, at: int) -> None:
    whole = bytearray(boltfile.encode({b"new": b"1"}, before={b"old": b"1"}, transaction=2))
    whole[16 + at] ^= 1
    path = tmp_path / "x.db"
    path.write_bytes(whole)
    assert content(path) == {b"old": b"1"}


@pytest.mark.parametrize(("magic", "version"), [(0xED0CDAEE, 2), (0xED0CDAED, 1), (0xED0CDAED, 3)])
def test_another_format_is_no_database_be_its_checksum_right(tmp_path: Path, magic: int, version: int) -> None:
    fields = struct.pack("<IIIIQQQQQ", magic, version, 4096, 0, 3, 0, 2, 4, 1)
    page = boltfile.page_header(0, 4, 0) + fields + struct.pack("<Q", boltfile.checksum(fields))
    path = tmp_path / "x.db"
    path.write_bytes(page.ljust(4096, b"\0") * 4)
    assert "is no bbolt database" in trouble(path)


def test_a_page_size_of_nothing_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(boltfile.meta_page(0, 0, 3, 4, 7).ljust(4096 * 4, b"\0"))
    assert "its pages have 0 bytes" in trouble(path)


# -- while the engine writes -----------------------------------------------------------------------------


class Changing:
    """pread(2), and a database that is another one each time that so much of it was read."""

    def __init__(self, path: Path, states: t.Iterator[bytes]) -> None:
        self._path, self._states, self._pread = path, states, os.pread
        self.heads = 0

    def __call__(self, descriptor: int, count: int, offset: int) -> bytes:
        found = self._pread(descriptor, count, offset)
        if count == 1 << 18 and offset == 0:
            self.heads += 1
            if self.heads % 2:  # the first look at the metas
                following = next(self._states, None)
                if following is not None:
                    with open(self._path, "r+b") as stream:
                        stream.write(following)
        return found


def test_what_was_read_while_a_change_was_committed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = boltfile.write(tmp_path / "x.db", {b"state": b"0"}, transaction=5)
    later = (boltfile.encode({b"state": b"%d" % number}, transaction=5 + number) for number in range(1, 4))
    changing = Changing(path, later)
    monkeypatch.setattr(os, "pread", changing)
    assert content(path) == {b"state": b"3"}
    assert changing.heads == 8


def test_what_never_stands_still_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = boltfile.write(tmp_path / "x.db", {b"state": b"0"}, transaction=5)
    later = (boltfile.encode({b"state": b"x"}, transaction=6 + number) for number in range(1000))
    monkeypatch.setattr(os, "pread", Changing(path, later))
    assert "changes faster than it can be read" in trouble(path)


def large(state: int) -> Plain:
    return {b"%06d" % number: {b"state": b"%d" % state, b"rest": bytes(900)} for number in range(6000)}


def test_a_large_file_is_looked_at_page_by_page_and_never_in_memory_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = boltfile.write(tmp_path / "x.db", large(1))
    assert path.stat().st_size > bolt._LARGEST_COPY_AT_ONCE
    sizes: list[int] = []
    real = os.pread

    def fake_pread(descriptor: int, count: int, offset: int) -> bytes:
        sizes.append(count)
        return real(descriptor, count, offset)

    monkeypatch.setattr(os, "pread", fake_pread)
    assert content(path) == large(1)
    assert max(sizes) == 1 << 18, "the metas at the beginning"


def test_a_large_file_that_changes_under_the_look_is_looked_at_again_and_at_last_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = boltfile.write(tmp_path / "x.db", large(0), transaction=5)
    states = [boltfile.encode(large(number), transaction=5 + number) for number in range(1, bolt._TRIES_BY_PAGE + 1)]
    looks = 0

    def look(bucket: bolt.Bucket) -> set[bytes]:
        nonlocal looks
        looks += 1
        found = set()
        for number, (_key, inner) in enumerate(bucket.buckets()):
            found.add(inner.values()[b"state"])
            if number == 3000 and states:
                with open(path, "r+b") as stream:
                    stream.write(states.pop(0))
                if looks == 1:
                    raise KeyError("pages of two moments may say anything")
        return found

    assert bolt.read(str(path), look) == {b"%d" % bolt._TRIES_BY_PAGE}
    assert looks == bolt._TRIES_BY_PAGE + 1


def test_what_a_look_stumbles_over_in_a_file_that_stands_still_is_told(tmp_path: Path) -> None:
    path = boltfile.write(tmp_path / "x.db", large(0))

    def look(_bucket: bolt.Bucket) -> None:
        raise KeyError("a defect")

    with pytest.raises(KeyError):
        bolt.read(str(path), look)


def test_a_large_page_of_a_damaged_file_is_not_believed(tmp_path: Path) -> None:
    writer = Writer()
    root = writer.place(LEAF, 0, b"")
    path = with_root(tmp_path / "x.db", writer, root)
    os.truncate(path, bolt._LARGEST)
    with open(path, "r+b") as stream:
        stream.seek(root * 4096)
        stream.write(struct.pack("<QHHI", root, LEAF, 0, 100_000))
    assert "is another one" in trouble(path)


def test_a_half_written_commit_is_not_seen(tmp_path: Path) -> None:
    # Pages come first, the meta last: until then the state is the one before.
    writer = Writer()
    first = writer.bucket({b"state": b"whole"})
    before = writer.file(first, first, 6)
    second = writer.bucket({b"state": b"half"})
    after = writer.file(second, first, 7)
    path = tmp_path / "x.db"
    path.write_bytes(before[: 2 * 4096] + after[2 * 4096 :])
    assert content(path) == {b"state": b"whole"}


def test_a_file_that_is_cut_while_it_is_read_is_damaged_and_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = boltfile.write(tmp_path / "x.db", {b"%d" % number: b"x" * 500 for number in range(500)})
    real = os.pread

    def fake_pread(descriptor: int, count: int, offset: int) -> bytes:
        if count != 1 << 18:
            os.truncate(path, 3 * 4096)
        return real(descriptor, count, offset)

    monkeypatch.setattr(os, "pread", fake_pread)
    assert "is damaged" in trouble(path)


# -- damage --------------------------------------------------------------------------------------------------


def with_root(path: Path, writer: Writer, root: int) -> Path:
    path.write_bytes(writer.file(root, root))
    return path


def branch_body(*children: int) -> bytes:
    return b"".join(struct.pack("<IIQ", 0, 0, child) for child in children)


def test_a_branch_that_names_itself_is_damage(tmp_path: Path) -> None:
    writer = Writer()
    root = writer.place(BRANCH, 2, branch_body(3, 3))
    assert root == 3
    assert "is damaged" in trouble(with_root(tmp_path / "x.db", writer, root))


def test_pages_that_name_each_other_over_and_over_do_not_take_for_ever(tmp_path: Path) -> None:
    # 30 levels of 100 branches to the same page each: 100^30 ways to the same empty leaf.
    writer = Writer()
    below = writer.place(LEAF, 0, b"")
    for _ in range(30):
        below = writer.place(BRANCH, 100, branch_body(*[below] * 100))
    assert "circles" in trouble(with_root(tmp_path / "x.db", writer, below))


def test_buckets_that_are_each_others_do_not_take_for_ever(tmp_path: Path) -> None:
    writer = Writer()
    inner = struct.pack("<QQ", 3, 0)
    root = writer.place(LEAF, 100, leaf_body([(1, b"%02d" % number, inner) for number in range(100)]))
    path = with_root(tmp_path / "x.db", writer, root)

    def seven_below(bucket: bolt.Bucket, depth: int = 0) -> int:
        return sum(1 + (seven_below(each, depth + 1) if depth < 7 else 0) for _name, each in bucket.buckets())

    with within(20), pytest.raises(bolt.BoltError, match="circles"):
        bolt.read(str(path), seven_below)


def test_many_values_on_the_same_bytes_do_not_take_for_ever(tmp_path: Path) -> None:
    writer = Writer()
    count = 60_000
    elements = b"".join(struct.pack("<IIII", 0, 16 * (count - index), 0, 900_000) for index in range(count))
    root = writer.place(LEAF, count, elements + bytes(900_000))
    assert "circles" in trouble(with_root(tmp_path / "x.db", writer, root))


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (lambda writer: writer.place(0x20, 1, b""), "wrong kind"),
        (lambda writer: writer.place(boltfile.FREELIST, 0, b""), "wrong kind"),
        (lambda writer: writer.place(BRANCH, 1, branch_body(1 << 60)), "leads nowhere"),
        (lambda writer: writer.place(BRANCH, 1, branch_body(0)), "wrong kind"),
        (lambda writer: writer.place(LEAF, 1, struct.pack("<IIII", 0, 16, 4, 1 << 31)), "leads out of its page"),
        (lambda writer: writer.place(LEAF, 1, struct.pack("<IIII", 0, (1 << 32) - 1, 0, 0)), "leads out of its page"),
        (lambda writer: writer.place(LEAF, 60_000, b""), "damaged"),
        (lambda writer: writer.place(LEAF, 1, struct.pack("<IIII", 1, 16, 0, 3) + b"abc"), "16 bytes"),
        (lambda writer: writer.place(LEAF, 1, leaf_body([(1, b"k", struct.pack("<QQ", 0, 0))])), "is damaged"),
        (lambda writer: 1 << 50, "leads nowhere"),
    ],
    ids=["no-kind", "freelist", "far-page", "meta", "long-value", "far-key", "many-keys", "short-bucket", "bucket-of-nothing", "far-root"],
)
def test_a_damaged_page_is_said_to_be_damaged(tmp_path: Path, place: t.Callable[[Writer], int], words: str) -> None:
    writer = Writer()
    writer.bucket({})
    root = place(writer)
    said = trouble(with_root(tmp_path / "x.db", writer, root))
    assert "is damaged" in said
    assert words in said


def test_a_page_that_lies_where_another_should_is_damage(tmp_path: Path) -> None:
    # What bbolt itself checks: a page knows its own number.
    writer = Writer()
    root = writer.bucket({b"a": b"1"})
    writer.pages[root] = boltfile.page_header(99, LEAF, 1) + writer.pages[root][16:]
    assert "is damaged" in trouble(with_root(tmp_path / "x.db", writer, root))


TREE: Plain = {
    b"v1": {
        b"images": {b"image %d" % number: {b"target": {b"digest": b"sha256:%064d" % number}} for number in range(30)},
        b"large": {b"%04d" % number: b"x" * 300 for number in range(60)},
        b"one": b"y" * 9000,
    }
}


def quiet(path: Path) -> None:
    """Whatever the file is: its content, BoltError or OSError, and soon."""
    try:
        with within(5):
            content(path)
    except (bolt.BoltError, OSError):
        pass


def test_a_file_cut_anywhere_is_content_or_bolt_error_and_never_anything_else(tmp_path: Path) -> None:
    whole = boltfile.encode(TREE, per_page=7)
    path = tmp_path / "x.db"
    lengths = {*range(0, len(whole), 4096), *random.Random(1).sample(range(len(whole)), 60), 1, 15, 16, 79, 80, 81}
    for length in lengths:
        path.write_bytes(whole[:length])
        quiet(path)
    path.write_bytes(whole[:-1])
    assert "is damaged" in trouble(path)


@pytest.mark.parametrize("seed", range(8))
def test_flipped_bytes_are_content_or_bolt_error_and_never_anything_else(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    whole = boltfile.encode(TREE, per_page=dice.choice((5, 1000)))
    # Where the tree is: the metas and headers of pages most of all.
    heads = [page + offset for page in range(0, len(whole), 4096) for offset in range(64)]
    path = tmp_path / "x.db"
    for _ in range(120):
        torn = bytearray(whole)
        for _ in range(dice.choice((1, 1, 4, 60))):
            at = dice.choice(heads) if dice.random() < 0.7 else dice.randrange(len(torn))
            torn[at] = dice.choice((0, 1, 255, dice.randrange(256)))
        if dice.random() < 0.5:
            # Damage behind a meta that is right.
            torn[: 2 * 4096] = whole[: 2 * 4096]
        path.write_bytes(torn)
        quiet(path)


@pytest.mark.parametrize("seed", range(4))
def test_random_bytes_are_no_database(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    path = tmp_path / "x.db"
    for size in (0, 1, 64, 4096, 70_000):
        path.write_bytes(dice.getrandbits(8 * size).to_bytes(size, "big") if size else b"")
        assert "is no bbolt database" in trouble(path)
    # Behind metas that are right, anything may stand.
    whole = boltfile.encode(TREE)
    for _ in range(30):
        path.write_bytes(whole[: 2 * 4096] + dice.getrandbits(8 * 90_000).to_bytes(90_000, "big"))
        quiet(path)


#: Any bytes: what a fuzzer may call. ``content`` reads all of it, as no reader of ours does.
def read_any(data: bytes) -> None:
    """Whatever the bytes are: their content, or BoltError; soon, and within bounds of memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.db")
        path.write_bytes(data)
        quiet(path)


@settings(max_examples=150, deadline=None)
@given(mutated(boltfile.encode(TREE, per_page=5)))
@example(b"")
def test_any_bytes_are_content_or_bolt_error(data: bytes) -> None:
    read_any(data)


@settings(max_examples=150, deadline=None)
@given(mutated(boltfile.encode(TREE)[2 * 4096:]))
def test_behind_metas_that_are_right_any_bytes_are_content_or_bolt_error(rest: bytes) -> None:
    read_any(boltfile.encode(TREE)[: 2 * 4096] + rest)


def test_values_that_lie_in_each_other_take_no_memory_without_bounds(tmp_path: Path) -> None:
    """A leaf of as many elements as there can be, each of which is all the rest of the page, under a name of its own."""
    writer = Writer()
    count, size = 60_000, 1 << 20
    body = bytearray(size)
    for index in range(count):
        struct.pack_into("<IIII", body, index * 16, 0, (count - index) * 16 + index, 8, size - 16 - count * 16 - index - 8)
    body[count * 16:] = bytes(number & 0xFF for number in range(size - count * 16))
    path = tmp_path / "x.db"
    path.write_bytes(writer.file(writer.place(LEAF, count, bytes(body)), writer.bucket({})))
    with bounded(5.0, 60 << 20):
        assert "lead in circles" in trouble(path)


# -- in the place of the file ----------------------------------------------------------------------------


def test_what_is_not_there_or_not_a_file_is_said_so(tmp_path: Path) -> None:
    path = boltfile.write(tmp_path / "x.db", {b"a": b"1"})
    with pytest.raises(FileNotFoundError):
        content(tmp_path / "nowhere.db")
    (tmp_path / "link.db").symlink_to(path)
    with pytest.raises(OSError):
        content(tmp_path / "link.db")
    assert "is not a file" in trouble(tmp_path)
    if os.path.exists("/dev/zero"):
        assert "is not a file" in trouble(Path("/dev/zero"))


def test_a_pipe_in_the_place_of_the_file_does_not_hold_us(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.db")
    assert "is not a file" in trouble(tmp_path / "pipe.db")
    with socket.socket(socket.AF_UNIX) as listening:
        before = os.getcwd()
        os.chdir(tmp_path)  # its address may have 108 bytes
        try:
            listening.bind("socket.db")
        finally:
            os.chdir(before)
        with within(5), pytest.raises(OSError):
            content(tmp_path / "socket.db")


def test_a_huge_file_is_not_read_into_memory(tmp_path: Path) -> None:
    path = boltfile.write(tmp_path / "x.db", {b"a": b"1"})
    os.truncate(path, bolt._LARGEST)
    assert content(path) == {b"a": b"1"}
    os.truncate(path, bolt._LARGEST + 1)
    assert "too large" in trouble(path)


def test_no_descriptor_is_left_open_whatever_happens(tmp_path: Path) -> None:
    path = boltfile.write(tmp_path / "x.db", {b"a": b"1"})
    (tmp_path / "torn.db").write_bytes(b"x" * 9000)
    before = sorted(os.listdir("/proc/self/fd"))
    content(path)
    trouble(tmp_path / "torn.db")
    trouble(tmp_path)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_database_of_some_size_is_read_in_a_moment(tmp_path: Path) -> None:
    tree = {b"bucket %05d" % number: {b"labels": b"x" * 200} for number in range(20_000)}
    path = boltfile.write(tmp_path / "x.db", tree)
    begun = time.process_time()
    assert len(content(path)) == 20_000
    assert time.process_time() - begun < 5
