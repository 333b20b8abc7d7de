# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Trees as containers may make them: deep, wide, full of links and of long names. The walk's memory does not grow with them."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import typing as t
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import descent, walk
from ansible_collections.fleetclean.docker.plugins.module_utils.walk import Model, Unit

LONG = "\udcff" * 255
#: Bytes; half of what a module may take.
MOST = 50_000_000


@pytest.fixture
def tree() -> t.Iterator[str]:
    """A folder on a filesystem in memory, where the most can be made in a moment."""
    memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None)
    yield folder
    remove(folder)


def remove(folder: str) -> None:
    """Remove a tree of any depth: what lies deep is brought up first."""
    subprocess.run(["rm", "-rf", "--", folder], check=True)


def chain(folder: str, depth: int, name: str = LONG, beside: bool = False) -> int:
    """Make a folder within the other, with one beside each; return the number of folders."""
    before = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    at = os.dup(before)
    for _ in range(depth):
        os.mkdir(name, dir_fd=at)
        if beside:
            os.mkdir("beside", dir_fd=at)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    os.close(before)
    return depth * (2 if beside else 1)


def walk_alone(tree: str, before: str = "", models: str = "{}") -> dict[str, t.Any]:
    """Walk in a process of its own; what was found, and that process' peak of memory in bytes."""
    code = f"""
import json, sys
sys.path[:0] = {sys.path!r}
from ansible_collections.fleetclean.docker.plugins.module_utils import walk
{before}
found = walk.walk([walk.Unit((sys.argv[1],))], {{}}, {models})
sizes = found.sizes.get(sys.argv[1], walk.Sizes())
print(json.dumps({{
    "inodes": sizes.inodes, "disk": sizes.disk, "unread": found.unread, "examples": found.examples, "limits": sorted(found.limits),
    "apparent": sizes.apparent, "frees": sizes.frees, "shared": sizes.shared,
    # Not ru_maxrss: that has the peak of the process that started this one.
    "peak": int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]) * 1024,
}}))
"""
    answer = subprocess.run([sys.executable, "-c", code, tree], capture_output=True, text=True, check=True)
    return t.cast("dict[str, t.Any]", json.loads(answer.stdout))


@pytest.mark.parametrize("beside", [False, True], ids=["chain", "branches"])
def test_10_000_levels_of_255_characters_take_little_memory_and_time(tree: str, beside: bool) -> None:
    made = chain(tree, 10_000, beside=beside)
    found = walk_alone(tree)
    assert (found["inodes"], found["unread"]) == (made + 1, 0)
    assert found["peak"] < MOST


def test_a_folder_of_many_folders_is_read_in_pieces(tree: str) -> None:
    for number in range(25_000):
        os.mkdir(f"{tree}/{number:06}{LONG[:249]}")
    found = walk_alone(tree)
    assert (found["inodes"], found["unread"]) == (25_001, 0)
    assert found["peak"] < MOST


def test_many_wide_folders_in_each_other_are_left_and_come_back_to(tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # With room for a few names only, every list is dropped and read again.
    monkeypatch.setattr(descent, "_MOST_WAITING", 3000)
    monkeypatch.setattr(descent, "_MOST_OF_ONE", 1500)
    monkeypatch.setattr(descent, "FIRST_LIMIT", 4)
    monkeypatch.setattr(walk, "FIRST_LIMIT", 4)
    monkeypatch.setattr(descent, "_COUNT_EXACTLY_FROM", 0)
    monkeypatch.setattr(descent, "_WINDOW", 2)
    dice = random.Random(3)
    folders = [tree]
    while len(folders) < 3000:
        place = dice.choice(folders[-50:])
        path = f"{place}/{len(folders)}"
        if len(path) < 3900:
            os.mkdir(path)
            folders.append(path)
    found = walk.walk([Unit((tree,))], {}, {})
    assert (found.sizes[tree].inodes, found.unread) == (3000, 0)


@pytest.mark.parametrize("seed", range(4))
def test_owners_mounts_and_other_units_are_found_in_a_tree_that_is_left_and_come_back_to(tree: str, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    dice = random.Random(seed)
    folders = [tree]
    while len(folders) < 800:
        path = f"{dice.choice(folders[-40:])}/{len(folders)}"
        if len(path) < 3900:
            os.mkdir(path)
            folders.append(path)
            for number in range(dice.randrange(3)):
                Path(f"{path}/file{number}").touch()
    owners = {path: f"account {number % 5}" for number, path in enumerate(dice.sample(folders[1:], 20))}
    units = [Unit((path,)) for path in [tree, *dice.sample(folders[1:], 5)]]
    expected = walk.walk(units, owners, {}).sizes
    for name, value in (("_MOST_WAITING", 3000), ("_MOST_OF_ONE", 1500), ("_COUNT_EXACTLY_FROM", 0), ("_WINDOW", 1)):
        monkeypatch.setattr(descent, name, value)
    assert walk.walk(units, owners, {}).sizes == expected


def test_folders_of_one_inode_number_are_each_visited_once(tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A subvolume and a folder of btrfs may have the same.
    real = os.scandir

    class Entry:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name, self.is_dir, self.stat = entry.name, entry.is_dir, entry.stat

        def inode(self) -> int:
            return 7

    class Scan:
        def __init__(self, place: int) -> None:
            self.entries = [Entry(entry) for entry in real(place)]

        def __enter__(self) -> list[Entry]:
            return self.entries

        def __exit__(self, *_error: object) -> None:
            pass

    for number in range(50):
        os.makedirs(f"{tree}/a/{number}/b/c")
    monkeypatch.setattr(os, "scandir", Scan)
    monkeypatch.setattr(descent, "_WINDOW", 1)
    assert walk.walk([Unit((tree,))], {}, {}).sizes[tree].inodes == 152


def test_what_lies_deeper_than_can_be_remembered_is_named(tree: str) -> None:
    chain(tree, 300, "d" * 200, beside=True)
    found = walk_alone(tree, "from ansible_collections.fleetclean.docker.plugins.module_utils import descent\ndescent._MOST_FROZEN = 100")
    assert found["unread"] > 0 and "too deep" in found["examples"][0][1]
    assert 200 < found["inodes"] < 601
    # The path of that one has 30,000 characters, which nobody wants to read.
    assert all(len(path) < 1100 for path, _words in found["examples"])


def test_what_is_moved_away_while_it_is_walked_leads_nowhere_else(tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    top, outside = f"{tree}/walked", f"{tree}/outside"
    os.mkdir(top)
    os.makedirs(f"{outside}/secret/deep")
    path = top
    for number in range(100):
        os.makedirs(f"{path}/beside")
        path = f"{path}/d{number}"
    os.mkdir(path)
    real, moved = os.open, []

    def fake_open(place: t.Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if place == "d99" and not moved:
            moved.append(True)
            os.rename(f"{top}/d0/d1/d2/d3", f"{outside}/d3")
        return real(place, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", fake_open)
    before = sorted(os.listdir("/proc/self/fd"))
    found = walk.walk([Unit((top,))], {}, {})
    assert moved and sorted(os.listdir("/proc/self/fd")) == before
    assert sum(sizes.inodes for sizes in found.sizes.values()) <= 201
    if found.unread:
        assert found.unread == 1 and "moved" in found.examples[0][1]


def linked(tree: str, count: int, names: int = 2) -> None:
    for name in range(names):
        os.mkdir(f"{tree}/{name}")
    for number in range(count):
        with open(f"{tree}/0/{number}", "wb") as stream:
            stream.write(b"x")
        for name in range(1, names):
            os.link(f"{tree}/0/{number}", f"{tree}/{name}/{number}")


def test_many_files_with_links_take_little_memory(tree: str) -> None:
    linked(tree, 50_000)
    found = walk_alone(tree)
    disk = sum(os.lstat(f"{tree}/0/{number}").st_blocks for number in range(50_000)) * 512
    folders = sum(os.lstat(path).st_blocks for path in (tree, f"{tree}/0", f"{tree}/1")) * 512
    assert (found["inodes"], found["disk"], found["limits"]) == (50_003, disk + folders, [])
    assert found["peak"] < MOST


def test_of_more_links_than_are_remembered_each_counts_with_its_part(tree: str) -> None:
    linked(tree, 5000, names=3)
    expected = walk_alone(tree)
    found = walk_alone(tree, "walk.SeenInodes.__init__.__defaults__ = (20,)")
    assert found["limits"] and not expected["limits"]
    assert found["inodes"] == expected["inodes"] == 5004
    assert expected["disk"] - 15_000 <= found["disk"] <= expected["disk"]


@pytest.mark.parametrize("seed", range(3))
def test_an_inode_is_new_once(seed: int) -> None:
    dice = random.Random(seed)
    keys = [dice.choice((dice.getrandbits(8), dice.getrandbits(64), 131_072 + dice.randrange(9000))) for _ in range(20_000)]
    seen, reference = walk.SeenInodes(), set()
    for key in (*keys, 0, 0, (1 << 64) - 1, (1 << 64) - 1):
        assert seen.add(key) is (key not in reference)
        reference.add(key)


def test_inodes_beyond_the_bound_are_not_noted_and_those_within_are() -> None:
    seen = walk.SeenInodes(3)
    assert [seen.add(number * 64) for number in (1, 2, 3, 4, 4, 1)] == [True, True, True, None, None, False]
    keys = walk.Seen(3)
    assert [keys.add(number) for number in (1, 2, 3, 4, 4, 1)] == [True, True, True, True, True, False]
    assert keys.full


def test_inodes_in_rows_take_two_bytes_each_at_most() -> None:
    seen = walk.SeenInodes()
    for number in range(500_000):
        seen.add(1 << 40 | number)
    assert (len(seen._rows) + len(seen._bits)) * 8 < 2 * 500_000


def test_extents_of_a_file_without_end_take_little_memory(tree: str) -> None:
    Path(f"{tree}/file").write_bytes(b"x" * 9000)
    extents = "walk._shared_extents = lambda _descriptor: ((number << 12, 4096) for number in range(2_000_000))"
    found = walk_alone(tree, extents, f"{{{os.stat(tree).st_dev}: walk.Model(reflinks=True)}}")
    assert found["limits"] and found["shared"] == os.lstat(f"{tree}/file").st_blocks * 512
    assert found["peak"] < MOST


def test_links_fifos_sockets_and_devices_are_counted_and_never_opened(tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(50):
        os.symlink("/etc/passwd", f"{tree}/link{number}")
        os.mkfifo(f"{tree}/fifo{number}")
        os.mknod(f"{tree}/device{number}", 0o020600, os.makedev(1, 3))
    here = os.getcwd()
    os.chdir(tree)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
    os.chdir(here)
    with open(os.fsencode(tree) + b"/" + b"\xfe" * 255, "wb") as stream:
        stream.write(b"x" * 5000)
    real, opened = os.open, []

    def fake_open(path: t.Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        descriptor = real(path, flags, mode, dir_fd=dir_fd)
        if not flags & os.O_PATH:
            opened.append(os.fstat(descriptor).st_mode & 0o170000)
        return descriptor

    monkeypatch.setattr(os, "open", fake_open)
    found = walk.walk([Unit((tree,))], {}, {os.stat(tree).st_dev: Model(reflinks=True)})
    assert (found.sizes[tree].inodes, found.unread) == (153, 0)
    assert sorted(opened) == [0o040000, 0o100000]


def test_a_file_that_becomes_a_fifo_before_it_is_opened_is_not_opened(tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(f"{tree}/file").write_bytes(b"x" * 9000)
    real, swapped, opened = os.open, [], []

    def fake_open(path: t.Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == "file" and not swapped:
            swapped.append(True)
            os.unlink(f"{tree}/file")
            os.mkfifo(f"{tree}/file")
        descriptor = real(path, flags, mode, dir_fd=dir_fd)
        if not flags & os.O_PATH:
            opened.append(os.fstat(descriptor).st_mode & 0o170000)
        return descriptor

    monkeypatch.setattr(os, "open", fake_open)
    found = walk.walk([Unit((tree,))], {}, {os.stat(tree).st_dev: Model(reflinks=True)})
    assert swapped and 0o010000 not in opened
    assert found.examples == [(f"{tree}/file", "it is a FIFO, not a regular file")]
