# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The walk on real files: to the byte what du says, never a link followed, whatever happens to the files meanwhile.

Reflinks, snapshots and mounts need filesystems of their own: tests/integration/test_filesystems.py.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import typing as t
from concurrent import futures
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import walk
from ansible_collections.fleetclean.docker.plugins.module_utils.measure import Mount
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import COPIES, LINKS, SNAPSHOTS
from ansible_collections.fleetclean.docker.plugins.module_utils.walk import Figures, Found, Key, Model, Seen, Sizes, Unit

Name = t.Union[str, bytes]


def walked(
    *units: Unit | Path | str,
    owners: t.Mapping[str, str] | None = None,
    models: t.Mapping[int, Model] | None = None,
    processes: int = 1,
    known: t.Collection[str] = (),
) -> Found:
    made = [unit if isinstance(unit, Unit) else Unit((str(unit),)) for unit in units]
    return walk.walk(made, owners or {}, models or {}, processes, known)


def disk(found: Found) -> int:
    return sum(sizes.disk for sizes in found.sizes.values())


def du(*paths: Path | str) -> int:
    """Bytes that du counts for all of these together."""
    answer = subprocess.run(
        ["du", "-cxsB1", "--", *map(str, paths)], capture_output=True, check=True, env={**os.environ, "LC_ALL": "C"}
    )
    return int(answer.stdout.splitlines()[-1].split(b"\t")[0])


def blocks(path: Path | str) -> int:
    return os.lstat(path).st_blocks * 512


def fill(path: Path, size: int = 5000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


ODD_NAMES: tuple[bytes, ...] = (
    b"plain", b"new\nline", b"\xff\xfe not utf-8", b" ", b"-rf", b"*", b"\x01\x1b[31m", "é".encode(), b"n" * 255, b"a b\tc", b"'\"\\",
)


def random_tree(folder: bytes, dice: random.Random, depth: int = 0, links: bool = True) -> list[bytes]:
    """Files, folders, links of both kinds, holes, pipes; returns all that may have a hard link."""
    files: list[bytes] = []
    for number in range(dice.randint(0, 9)):
        stem = dice.choice(ODD_NAMES)[:200] + b"%d" % number
        path = folder + b"/" + stem
        kind = dice.random()
        if kind < 0.3 and depth < 5:
            os.mkdir(path)
            files += random_tree(path, dice, depth + 1, links)
        elif kind < 0.4:
            os.symlink(dice.choice((b"/", b"..", b".", b"nowhere", b"x" * 300, stem)), path)
        elif kind < 0.45:
            os.mkfifo(path)
        elif kind < 0.65 and files and links:
            os.link(dice.choice(files), path)
        elif kind < 0.75:
            with open(path, "wb") as stream:
                stream.seek(dice.choice((1 << 20, 1 << 33)))
                stream.write(b"x" * dice.choice((0, 1, 9000)))
                stream.truncate(1 << 34)
            files.append(path)
        else:
            with open(path, "wb") as stream:
                stream.write(b"x" * dice.choice((0, 1, 59, 4096, 4097, 70_000)))
            files.append(path)
    return files


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder on a filesystem that may have anything in it."""
    folder = tmp_path / "tree"
    folder.mkdir()
    return folder


# -- as du -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(15))
def test_a_random_tree_takes_what_du_says(tree: Path, seed: int) -> None:
    random_tree(os.fsencode(tree), random.Random(seed))
    found = walked(tree)
    assert disk(found) == du(tree)
    assert (found.unread, found.vanished, found.mounts) == (0, 0, [])


@pytest.mark.parametrize("seed", range(15))
def test_a_tree_in_units_and_on_accounts_takes_what_du_says(tree: Path, seed: int) -> None:
    # Hard links from everywhere to everywhere, units within units, accounts within accounts.
    dice = random.Random(100 + seed)
    random_tree(os.fsencode(tree), dice)
    folders = [top for top, _folders, _files in os.walk(tree) if top != str(tree)]
    files = [f"{top}/{name}" for top, _folders, names in os.walk(tree) for name in names]
    dice.shuffle(folders)
    apart = folders[: dice.randint(0, 4)]
    owners = {path: f"account {dice.randrange(4)}" for path in [*folders[: dice.randint(0, 9)], *dice.sample(files, min(3, len(files)))]}
    units = [Unit((str(tree),)), *(Unit((path,)) for path in apart)]
    dice.shuffle(units)
    found = walked(*units, owners=owners)
    assert disk(found) == du(tree)
    assert all(figure >= 0 for sizes in found.sizes.values() for figure in asdict(sizes).values())
    # Without a filesystem that knows better, blocks are what comes free, and inodes are those that there are.
    assert sum(sizes.frees for sizes in found.sizes.values()) + sum(found.together.values()) == disk(found)
    inodes = {(os.lstat(path).st_dev, os.lstat(path).st_ino) for path in [str(tree), *folders, *files]}
    inodes |= {(os.lstat(f"{top}/{name}").st_dev, os.lstat(f"{top}/{name}").st_ino) for top, names, _f in os.walk(tree) for name in names}
    assert sum(sizes.inodes for sizes in found.sizes.values()) == len(inodes)


@pytest.mark.parametrize("seed", range(8))
def test_each_account_has_what_lies_below_its_path_and_above_the_next_ones(tree: Path, seed: int) -> None:
    # Against a second opinion: each path goes to the nearest path above it that has an owner.
    dice = random.Random(200 + seed)
    random_tree(os.fsencode(tree), dice, links=False)
    paths = [f"{top}/{name}" for top, folders, files in os.walk(tree) for name in [*folders, *files]]
    owners = {path: f"account {number % 5}" for number, path in enumerate(dice.sample(paths, min(10, len(paths))))}
    expected: dict[str, int] = {}
    for path in [str(tree), *paths]:
        above = path
        while above not in owners and above != str(tree):
            above = os.path.dirname(above)
        account = owners.get(above, above)
        expected[account] = expected.get(account, 0) + blocks(path)
    found = walked(tree, owners=owners)
    assert {name: sizes.disk for name, sizes in found.sizes.items()} == expected


def test_lengths_of_files_count_for_holes_and_blocks_do_not(tree: Path) -> None:
    with open(tree / "sparse", "wb") as stream:
        stream.truncate(1 << 30)
    fill(tree / "file", 5000)
    (tree / "link").symlink_to("file")
    sizes = walked(tree).sizes[str(tree)]
    assert sizes.apparent == (1 << 30) + 5000 + 4
    assert sizes.disk == du(tree) < 1 << 20
    assert sizes.inodes == 4


def test_a_hard_link_within_a_unit_counts_once_and_on_the_account_that_comes_first(tree: Path) -> None:
    fill(tree / "a/file", 9000)
    (tree / "b").mkdir()
    os.link(tree / "a/file", tree / "b/again")
    found = walked(tree, owners={f"{tree}/a": "a", f"{tree}/b": "b"})
    assert disk(found) == du(tree)
    assert sorted([found.sizes["a"].inodes, found.sizes["b"].inodes]) == [1, 2]


def test_a_hard_link_across_units_comes_off_the_account_that_it_was_put_on(tree: Path) -> None:
    # The second unit's own account must not pay for what one within it was charged with.
    big = fill(tree / "first/file", 100_000)
    fill(tree / "second/inner/own", 5000)
    os.link(big, tree / "second/inner/again")
    found = walked(tree / "first", tree / "second", owners={f"{tree}/second/inner": "inner"})
    assert found.sizes[f"{tree}/first"].disk == du(tree / "first")
    assert found.sizes[f"{tree}/second"].disk == blocks(tree / "second")
    inner = found.sizes["inner"]
    assert inner.disk == blocks(tree / "second/inner") + blocks(tree / "second/inner/own") == inner.frees
    assert (inner.apparent, inner.inodes) == (5000, 2)


def test_a_file_of_three_names_in_three_units_counts_once_in_the_first(tree: Path) -> None:
    for place in ("a", "b", "c"):
        (tree / place).mkdir()
    file = fill(tree / "a/file", 50_000)
    os.link(file, tree / "b/file")
    os.link(file, tree / "c/file")
    found = walked(tree / "b", tree / "a", tree / "c")
    assert [found.sizes[f"{tree}/{place}"].disk - blocks(tree / place) for place in "abc"] == [0, blocks(file), 0]
    assert disk(found) == du(tree / "a", tree / "b", tree / "c")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_may_be_anything(tree: Path, name: bytes) -> None:
    folder = os.fsencode(tree) + b"/" + name
    os.mkdir(folder)
    with open(folder + b"/" + name, "wb") as stream:
        stream.write(b"x" * 7000)
    found = walked(tree, owners={os.fsdecode(folder): "odd"})
    assert found.sizes["odd"].disk == du(os.fsdecode(folder))
    assert found.unread == 0


def test_a_deep_tree_is_walked_to_its_end(tree: Path) -> None:
    # Deeper than a path may be long, and than a program may call itself.
    before = os.getcwd()
    try:
        os.chdir(tree)
        for _ in range(1500):
            os.mkdir("folder")
            os.chdir("folder")
        with open("file", "wb") as stream:
            stream.write(b"x" * 50_000)
        os.chdir(before)
        found = walked(tree)
        assert found.unread == 0
        assert found.sizes[str(tree)].inodes == 1502
        assert disk(found) == du(tree)
    finally:
        os.chdir(before)
        subprocess.run(["rm", "-rf", "--", str(tree)], check=True)


def test_few_folders_are_open_at_once_however_deep_they_are(tree: Path) -> None:
    code = f"""
import os, resource, sys
sys.path[:0] = {sys.path!r}
from ansible_collections.fleetclean.docker.plugins.module_utils import walk
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
found = walk.walk([walk.Unit((sys.argv[1],))], {{}}, {{}})
print(found.unread, sum(sizes.inodes for sizes in found.sizes.values()))
"""
    place = tree
    for _ in range(200):
        (place / "side").mkdir(parents=True)
        place = place / "d"
    answer = subprocess.run([sys.executable, "-c", code, str(tree)], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["0", str(1 + 199 + 200)]


def test_a_path_may_be_a_file_a_link_a_pipe_or_nothing(tree: Path) -> None:
    file = fill(tree / "file", 20_000)
    (tree / "link").symlink_to("/")
    os.mkfifo(tree / "pipe")
    found = walked(file, tree / "link", tree / "pipe", tree / "nothing")
    assert {os.path.basename(path): sizes.disk for path, sizes in found.sizes.items()} == {
        "file": blocks(file), "link": blocks(tree / "link"), "pipe": 0,
    }
    assert (found.vanished, found.unread) == (1, 0)


# -- what is not there any more, or may not be read ---------------------------------------------------------


@contextmanager
def before_opening(monkeypatch: pytest.MonkeyPatch, name: str, act: t.Callable[[], None]) -> t.Iterator[None]:
    """Do something at the very moment before a folder or file of that name is opened."""
    real = os.open
    done: list[bool] = []

    def fake_open(path: t.Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if os.path.basename(os.fsdecode(path)) == name and not done:
            done.append(True)
            act()
        return real(path, flags, mode, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fake_open)
        yield
    assert done


def test_a_folder_that_vanishes_meanwhile_is_no_failure(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tree / "stays/file", 9000)
    fill(tree / "goes/file", 9000)
    with before_opening(monkeypatch, "goes", lambda: shutil.rmtree(tree / "goes")):
        found = walked(tree)
    assert (found.unread, found.vanished) == (0, 1)
    assert found.sizes[str(tree)].disk == du(tree)


def test_a_file_that_vanishes_meanwhile_is_no_failure(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tree / "goes", 9000)
    fill(tree / "stays", 9000)
    real = os.scandir

    @contextmanager
    def fake_scandir(place: t.Any) -> t.Iterator[list[os.DirEntry[str]]]:
        with real(place) as entries:
            listed = list(entries)
        if (tree / "goes").exists():
            os.unlink(tree / "goes")
        yield listed

    monkeypatch.setattr(os, "scandir", fake_scandir)
    found = walked(tree)
    assert (found.unread, found.vanished) == (0, 1)
    assert disk(found) == du(tree)


def test_a_unit_that_vanishes_meanwhile_is_no_failure(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tree / "goes/file", 9000)
    with before_opening(monkeypatch, "goes", lambda: shutil.rmtree(tree / "goes")):
        found = walked(tree / "goes")
    assert (found.unread, found.vanished, disk(found)) == (0, 1, 0)
    assert not found.self_contained


def test_a_tree_that_never_stands_still_is_walked_without_a_failure(tree: Path) -> None:
    fill(tree / "stays/file", 300_000)
    end = threading.Event()

    def churn(number: int) -> None:
        dice = random.Random(number)
        while not end.is_set():
            place = tree / f"churn{number}" / str(dice.randrange(5))
            try:
                if dice.random() < 0.5:
                    fill(place / "deeper" / "file", dice.choice((1, 9000)))
                    os.link(place / "deeper" / "file", place / f"again{dice.random()}")
                else:
                    shutil.rmtree(place, ignore_errors=True)
            except OSError:
                pass

    threads = [threading.Thread(target=churn, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(40):
            found = walked(tree, tree / "stays", owners={f"{tree}/churn1": "churn"})
            assert found.unread == 0, found.examples
            assert found.sizes[f"{tree}/stays"].disk == du(tree / "stays")
    finally:
        end.set()
        for thread in threads:
            thread.join()


def test_a_folder_that_becomes_a_link_is_not_followed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tree / "elsewhere/big", 500_000)
    inside = tree / "inside"
    fill(inside / "victim/file", 100)

    def swap() -> None:
        shutil.rmtree(inside / "victim")
        (inside / "victim").symlink_to(tree / "elsewhere")

    with before_opening(monkeypatch, "victim", swap):
        found = walked(inside)
    assert disk(found) < 100_000
    assert found.unread == 1
    assert found.examples[0][0] == f"{inside}/victim"


def test_a_unit_that_becomes_a_link_is_not_followed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tree / "elsewhere/big", 500_000)
    (tree / "victim").mkdir()

    def swap() -> None:
        os.rmdir(tree / "victim")
        (tree / "victim").symlink_to(tree / "elsewhere")

    with before_opening(monkeypatch, "victim", swap):
        found = walked(tree / "victim")
    assert (disk(found), found.unread) == (0, 1)


def test_a_folder_above_that_is_moved_away_does_not_lead_elsewhere(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Folders are opened in the one above, not by their whole path.
    fill(tree / "other/inner/big", 500_000)
    fill(tree / "walked/outer/inner/file", 100)

    def move() -> None:
        os.rename(tree / "walked/outer", tree / "moved")
        (tree / "walked/outer").symlink_to(tree / "other")

    with before_opening(monkeypatch, "inner", move):
        found = walked(tree / "walked")
    assert disk(found) < 100_000
    assert found.sizes[f"{tree}/walked"].inodes == 4


@contextmanager
def nobody() -> t.Iterator[Path]:
    """A folder in which this process has no more rights than anybody."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@contextmanager
def without_rights() -> t.Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    before = os.getresuid()
    os.setresuid(-1, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(*before)


def test_what_may_not_be_read_is_named_and_the_rest_is_walked() -> None:
    with nobody() as folder:
        fill(folder / "open/file", 9000)
        fill(folder / "shut/file", 9000)
        fill(folder / "blind/file", 9000)
        os.chmod(folder / "shut", 0o000)
        os.chmod(folder / "blind", 0o744 if os.geteuid() == 0 else 0o644)  # its names may be read, and nothing about them
        try:
            with without_rights():
                found = walked(folder, folder / "shut", owners={f"{folder}/open": "open"})
        finally:
            os.chmod(folder / "shut", 0o755)
            os.chmod(folder / "blind", 0o755)
        assert found.sizes["open"].disk == du(folder / "open")
        assert found.unread == 2
        assert (f"{folder}/shut", os.strerror(errno.EACCES)) in found.examples
        assert f"{folder}/shut" not in found.self_contained


def test_only_so_many_examples_are_kept_of_what_could_not_be_read() -> None:
    with nobody() as folder:
        for number in range(50):
            (folder / f"{number:02}").mkdir(mode=0o000)
        try:
            with without_rights():
                one = walked(folder)
                several = walked(*(folder / f"{number:02}" for number in range(50)), processes=2)
        finally:
            for number in range(50):
                os.chmod(folder / f"{number:02}", 0o755)
        for found in (one, several):
            assert (found.unread, len(found.examples)) == (50, 20)


def test_a_file_system_that_fails_in_the_middle_is_no_traceback(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tree / "file", 9000)

    def fake_fstat(_descriptor: int) -> t.NoReturn:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    descriptors = sorted(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "fstat", fake_fstat)
    found = walked(tree)
    monkeypatch.undo()
    assert found.examples == [(str(tree), os.strerror(errno.EIO))]
    assert sorted(os.listdir("/proc/self/fd")) == descriptors


def test_no_descriptor_is_left_open(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_tree(os.fsencode(tree), random.Random(7))
    fill(tree / "deep/er/file")
    before = sorted(os.listdir("/proc/self/fd"))
    walked(tree, models={os.stat(tree).st_dev: Model(reflinks=True)})
    walked(tree, tree / "deep", tree / "nowhere", processes=2)
    with before_opening(monkeypatch, "er", lambda: shutil.rmtree(tree / "deep")):
        walked(tree)
    assert sorted(os.listdir("/proc/self/fd")) == before


# -- accounts ----------------------------------------------------------------------------------------------


def test_the_account_changes_at_each_path_that_has_an_owner(tree: Path) -> None:
    for place in ("containers/one", "containers/two", "containers/one/local-logs"):
        fill(tree / place / "file", 9000)
    fill(tree / "containers/one/one-json.log", 50_000)
    fill(tree / "containers/one/one-json.log.1", 20_000)
    owners = {
        str(tree): "engine",
        f"{tree}/containers/one": "folder of one",
        f"{tree}/containers/one/one-json.log": "log of one",
        f"{tree}/containers/one/one-json.log.1": "log of one",
        f"{tree}/containers/one/local-logs": "log of one",
        f"{tree}/containers/gone": "folder of another",
    }
    found = walked(tree, owners=owners)
    one = tree / "containers/one"
    assert {name: sizes.disk for name, sizes in found.sizes.items()} == {
        "engine": du(tree) - du(one),
        "folder of one": blocks(one) + blocks(one / "file"),
        "log of one": blocks(one / "one-json.log") + blocks(one / "one-json.log.1") + du(one / "local-logs"),
    }


def test_a_unit_is_walked_by_itself_and_nowhere_else(tree: Path) -> None:
    fill(tree / "volumes/data/_data/file", 90_000)
    fill(tree / "volumes/metadata.db", 5000)
    found = walked(tree, tree / "volumes/data", owners={f"{tree}/volumes/data": "volume data", str(tree): "engine"})
    assert found.sizes["volume data"].disk == du(tree / "volumes/data")
    assert found.sizes["engine"].disk == du(tree) - du(tree / "volumes/data")


def test_what_is_known_is_not_walked(tree: Path) -> None:
    fill(tree / "layers/known/diff/file", 90_000)
    fill(tree / "layers/new/diff/file", 20_000)
    fill(tree / "layers/known-file", 20_000)
    known = [f"{tree}/layers/known", f"{tree}/layers/known-file", f"{tree}/layers/nowhere"]
    found = walked(tree, tree / "layers/new", known=known)
    assert disk(found) == du(tree) - du(tree / "layers/known") - blocks(tree / "layers/known-file")


def test_a_unit_without_links_to_others_depends_on_nobody(tree: Path) -> None:
    fill(tree / "alone/file")
    os.link(tree / "alone/file", tree / "alone/again")
    fill(tree / "linked/file")
    fill(tree / "outside/x")
    os.link(tree / "linked/file", tree / "outside/file")
    found = walked(tree / "alone", tree / "linked")
    assert found.self_contained == {f"{tree}/alone"}
    assert walked(Unit((str(tree / "alone"),), COPIES)).self_contained == set()


def test_an_account_of_several_folders_depends_on_others_if_one_of_them_does(tree: Path) -> None:
    # A layer of aufs has three.
    for place in ("diff", "layers", "outside"):
        fill(tree / place / "file")
    os.link(tree / "layers/file", tree / "outside/again")
    owners = {f"{tree}/diff": "layer", f"{tree}/layers": "layer"}
    for processes in (1, 2):
        assert walked(tree / "diff", tree / "layers", owners=owners, processes=processes).self_contained == set()
        assert walked(tree / "layers", tree / "diff", owners=owners, processes=processes).self_contained == set()
    os.unlink(tree / "outside/again")
    assert walked(tree / "diff", tree / "layers", owners=owners).self_contained == {"layer"}


# -- layers that share -------------------------------------------------------------------------------------


def layers(tree: Path) -> tuple[Path, Path]:
    """Two layers, the second of which has the first one's files as hard links, and one of its own."""
    lower, upper = tree / "lower", tree / "upper"
    fill(lower / "etc/file", 90_000)
    fill(lower / "etc/other", 30_000)
    (upper / "etc").mkdir(parents=True)
    for name in ("file", "other"):
        os.link(lower / "etc" / name, upper / "etc" / name)
    fill(upper / "own", 10_000)
    return lower, upper


def test_layers_that_share_by_hard_links_count_their_own(tree: Path) -> None:
    # The driver "overlay": the first layer has the file, those above it a link.
    lower, upper = layers(tree)
    found = walked(Unit((str(lower), str(upper)), LINKS))
    assert found.sizes[str(lower)].disk == du(lower)
    assert found.sizes[str(upper)].disk == blocks(upper) + blocks(upper / "etc") + blocks(upper / "own")
    assert disk(found) == du(tree) - blocks(tree)
    assert found.self_contained == set()


def test_a_snapshot_of_a_layer_frees_only_what_it_has_of_its_own(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No two files here have the same inode and times: their names and contents have to do.
    monkeypatch.setattr(walk, "_identity", lambda name, found: hash((name, found.st_size)))
    lower, upper = fill(tree / "lower/etc/file", 90_000).parents[1], tree / "upper"
    fill(lower / "etc/other", 30_000)
    shutil.copytree(lower, upper)
    fill(upper / "own", 10_000)
    fill(upper / "etc/other", 30_001)
    found = walked(Unit((str(lower), str(upper)), SNAPSHOTS))
    assert found.sizes[str(lower)] == Sizes(du(lower), 120_000, 0, du(lower), 4)
    above = found.sizes[str(upper)]
    same = blocks(upper / "etc/file") + blocks(upper / "etc")
    assert (above.disk, above.shared, above.frees) == (du(upper), same, du(upper) - same)


def test_a_hard_link_within_a_snapshot_counts_once(tree: Path) -> None:
    fill(tree / "layer/file", 90_000)
    os.link(tree / "layer/file", tree / "layer/another name")
    found = walked(Unit((str(tree / "layer"),), SNAPSHOTS))
    assert found.sizes[f"{tree}/layer"].disk == du(tree / "layer")
    assert found.sizes[f"{tree}/layer"].shared == 0


def test_a_file_that_changed_since_the_snapshot_is_its_own(tree: Path) -> None:
    found = os.lstat(fill(tree / "file"))
    same = walk._identity("file", found)
    os.utime(tree / "file", ns=(1, 2))
    assert walk._identity("file", os.lstat(tree / "file")) != same
    assert walk._identity("other", found) != same


class Extents:
    """In the place of the kernel's answer: which places on the disk a file shares with others, by the file's name."""

    def __init__(self, shared: t.Mapping[str, t.Sequence[tuple[int, int]]]) -> None:
        self._shared = shared

    def __call__(self, descriptor: int) -> t.Iterator[tuple[int, int]]:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        if name == "refused":
            raise OSError(errno.EOPNOTSUPP, "no extents here")
        return iter(self._shared.get(name, ()))


def test_copies_that_share_blocks_are_the_first_layers(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lower, upper = fill(tree / "lower/copy", 8192).parent, fill(tree / "upper/copy", 8192).parent
    fill(upper / "own", 4096)
    monkeypatch.setattr(walk, "_shared_extents", Extents({"copy": [(1 << 20, 8192)]}))
    models = {os.stat(tree).st_dev: Model(reflinks=True)}
    found = walked(Unit((str(lower), str(upper)), COPIES), models=models)
    assert found.sizes[str(lower)].shared == 0
    assert found.sizes[str(lower)].frees == du(lower)
    assert found.sizes[str(upper)].shared == 8192
    assert found.sizes[str(upper)].frees == du(upper) - 8192
    # By itself, each of them says what others have as well.
    alone = walked(lower, models=models)
    assert (alone.sizes[str(lower)].shared, alone.self_contained) == (8192, set())


def test_an_extent_comes_free_with_the_last_that_has_it(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extents = {"twice": [(1 << 20, 8192)], "again": [(1 << 20, 8192)], "outside": [(2 << 20, 4096)], "inside": [(3 << 20, 4096)]}
    monkeypatch.setattr(walk, "_shared_extents", Extents({**extents, "also": extents["inside"]}))
    one, two = fill(tree / "one/twice", 8192).parent, fill(tree / "two/again", 8192).parent
    fill(one / "outside", 4096)
    fill(two / "inside", 4096)
    fill(two / "also", 4096)
    found = walked(one, two, models={os.stat(tree).st_dev: Model(reflinks=True)})
    # What was met once is shared with somebody whom nobody walked.
    assert (found.sizes[str(one)].shared, found.sizes[str(one)].frees) == (12288, du(one) - 12288)
    # A copy within one account comes free with it, once.
    assert (found.sizes[str(two)].shared, found.sizes[str(two)].frees) == (16384, du(two) - 16384 + 4096)
    assert found.together == {frozenset((str(one), str(two))): 8192}


def test_what_snapshots_share_is_the_lowest_ones(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # To the kernel the lower one's extents are shared as soon as there is a snapshot of it.
    monkeypatch.setattr(walk, "_shared_extents", Extents({"lower": [(1 << 20, 8192)], "changed": [(1 << 20, 4096)]}))
    lower, upper = fill(tree / "a/lower", 8192).parent, fill(tree / "b/changed", 8192).parent
    found = walked(Unit((str(lower), str(upper)), SNAPSHOTS), models={os.stat(tree).st_dev: Model(reflinks=True)})
    assert (found.sizes[str(lower)].shared, found.sizes[str(lower)].frees) == (0, du(lower))
    assert (found.sizes[str(upper)].shared, found.sizes[str(upper)].frees) == (4096, du(upper) - 4096)


def test_never_more_is_shared_than_a_file_has(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tree / "cut", 4096)
    fill(tree / "refused", 4096)
    monkeypatch.setattr(walk, "_shared_extents", Extents({"cut": [(0, 1 << 30)]}))
    sizes = walked(tree, models={os.stat(tree).st_dev: Model(reflinks=True)}).sizes[str(tree)]
    assert sizes.shared == blocks(tree / "cut")
    assert sizes.frees == sizes.disk - sizes.shared


def test_inodes_come_free_as_well_where_the_filesystem_frees_them(tree: Path) -> None:
    for number in range(30):
        fill(tree / f"{number}", 0)
    (tree / "link").symlink_to("nowhere")
    sizes = walked(tree, models={os.stat(tree).st_dev: Model(inode_bytes=512)}).sizes[str(tree)]
    assert sizes.frees == sizes.disk + 512 * 32


def test_small_files_in_the_metadata_free_no_blocks(tree: Path) -> None:
    model = Model(reflinks=True, inline=2048, copies=2)
    models = {os.stat(tree).st_dev: model}
    for number in range(100):
        fill(tree / f"{number:03}", 2000)
    small = walked(tree, models=models).sizes[str(tree)]
    assert 100 * 2000 * 2 < small.frees < 100 * 2000 * 4
    fill(tree / "large", 1 << 20)
    large = walked(tree, models=models).sizes[str(tree)]
    assert (1 << 20) < large.frees - small.frees < (1 << 20) * 1.01


def test_a_file_that_is_walked_by_itself_gives_what_it_gives_in_its_folder(tree: Path) -> None:
    """Its entry in the folder has its own name, and not the whole path."""
    models = {os.stat(tree).st_dev: Model(inline=2048, copies=2)}
    fill(tree / "file", 3000)
    owners = {str(tree): "folder", str(tree / "file"): "file"}
    together = walk.walk([walk.Unit((str(tree),))], owners, models).sizes["file"]
    alone = walk.walk([walk.Unit((str(tree / "file"),))], owners, models).sizes["file"]
    assert alone == together and together.frees > 4096


def test_metadata_grows_with_names_contents_and_copies() -> None:
    one, two = Model(inline=2048, copies=1), Model(inline=2048, copies=2)
    empty = one.metadata(10, 0, 0)
    assert 300 < empty < 600
    assert abs(two.metadata(10, 0, 0) - 2 * empty) <= 1
    assert one.metadata(110, 0, 0) > empty
    # Within the inode the content itself, beyond it a sum of four bytes for each block.
    assert one.metadata(10, 2048, 8) - empty > 2048
    assert one.metadata(10, 2049, 8) < one.metadata(10, 2048, 8)
    assert (1 << 18) * 4 < one.metadata(10, 1 << 30, 1 << 21) < (1 << 18) * 4 * 1.3


def test_a_filesystem_is_modelled_by_what_it_says_of_itself_or_by_what_is_usual(tree: Path) -> None:
    assert walk.model_of(str(tree), "ext4") == Model()
    assert walk.model_of(str(tree), "overlay") == Model()
    # Asked for what it is not, it refuses; nowhere there is nobody to ask.
    for place in (str(tree), "/nowhere"):
        assert walk.model_of(place, "btrfs").copies in (1, 2, 3)
        assert walk.model_of(place, "xfs").inode_bytes in (256, 512, 1024, 2048)
    assert walk.model_of("/nowhere", "btrfs") == Model(reflinks=True, inline=2048, copies=2)
    assert walk.model_of("/nowhere", "xfs") == Model(reflinks=True, inode_bytes=512)


# -- several processes ---------------------------------------------------------------------------------------


def many(tree: Path) -> list[Path]:
    """Thirty units with links between each other."""
    dice = random.Random(5)
    units: list[Path] = []
    for number in range(30):
        unit = tree / f"unit{number:02}"
        unit.mkdir()
        random_tree(os.fsencode(unit), dice)
        fill(unit / "own", dice.randrange(50_000))
        if units and dice.random() < 0.5:
            os.link(dice.choice(units) / "own", unit / "theirs")
        units.append(unit)
    return units


def plain(found: Found) -> t.Any:
    return ({name: asdict(sizes) for name, sizes in found.sizes.items()}, found.self_contained, found.unread, found.vanished)


@pytest.mark.parametrize("processes", [2, 5])
def test_several_processes_find_what_one_does(tree: Path, processes: int) -> None:
    units = [tree, *many(tree)]
    assert plain(walked(*units, processes=processes)) == plain(walked(*units))
    assert disk(walked(*units, processes=processes)) == du(tree)
    assert multiprocessing.active_children() == []


def dying(monkeypatch: pytest.MonkeyPatch, act: t.Callable[[], t.Any], at: int) -> None:
    """Whoever works for this process does ``act`` at that unit."""
    parent, real = os.getpid(), walk._Work.one

    def fake_one(work: walk._Work, number: int) -> Found:
        if os.getpid() != parent and number == at:
            act()
        return real(work, number)

    monkeypatch.setattr(walk._Work, "one", fake_one)


def test_what_a_worker_found_comes_back_as_it_was() -> None:
    """Also an account without a number, and files that are longer together than any number in few bytes."""
    sizes: dict[Key, Sizes] = {1: Sizes(4096, 100, 0, 4096, 1), 3: Sizes(0, 2**70, 0, 0, 9), "other": Sizes(1, 2, 3, 4, 5)}
    found = Found(sizes=Figures(sizes), self_contained={1, "other"}, entangled={2}, unread=2)
    again = Found()
    pickle.loads(pickle.dumps(walk._Packed.of(found))).add_to(again)
    assert again == Found(sizes=Figures(sizes), self_contained={1, "other"}, entangled={2}, unread=2)


@pytest.mark.parametrize("at", [0, 13, 30])
def test_a_worker_that_is_killed_takes_nothing_with_it(tree: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    units = [tree, *many(tree)]
    expected = plain(walked(*units))
    dying(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGKILL), at)
    assert plain(walked(*units, processes=3)) == expected
    assert walk._WORK is None


def test_a_worker_whose_system_call_fails_takes_nothing_with_it(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units = [tree, *many(tree)]
    expected = plain(walked(*units))

    def fail() -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    dying(monkeypatch, fail, 9)
    assert plain(walked(*units, processes=2)) == expected


@pytest.mark.parametrize("error", [ImportError("no semaphores"), OSError(errno.ENOSYS, "none"), NotImplementedError(), ValueError("no fork")])
def test_where_no_process_can_be_had_one_does_it_all(tree: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    units = [tree, *many(tree)]
    expected = plain(walked(*units))

    def fake_pool(*_arguments: t.Any) -> t.NoReturn:
        raise error

    monkeypatch.setattr(futures, "ProcessPoolExecutor", fake_pool)
    assert plain(walked(*units, processes=4)) == expected


def test_workers_end_with_the_process_that_wants_them(tree: Path) -> None:
    # A module that is killed must leave nobody behind who walks on for hours.
    code = f"""
import os, sys, time
sys.path[:0] = {sys.path!r}
from ansible_collections.fleetclean.docker.plugins.module_utils import walk
walk._Work.one = lambda work, number: (print(os.getpid(), flush=True), time.sleep(60))[1]
walk.walk([walk.Unit((sys.argv[1],))] * 20, {{}}, {{}}, 2)
"""
    with subprocess.Popen([sys.executable, "-c", code, str(tree)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        workers = [int(process.stdout.readline()) for _ in range(2)]
        assert process.pid not in workers
        process.kill()
    end = time.monotonic() + 10
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("loadavg", "have", "expected"),
    [
        ("0.00 0.01 0.05 1/300 4711", 4, 4),
        ("0.00 0.01 0.05 3/300 4711", 4, 2),
        ("9.00 9.01 9.05 9/300 4711", 4, 1),
        ("0.00 0.01 0.05 1/300 4711", 64, 8),
        ("0.00 0.01 0.05 0/300 4711", 2, 2),
        ("", 4, 4),
        ("not at all", 4, 4),
        ("1 2 3 x/y 5", 4, 4),
    ],
)
def test_no_more_processes_walk_than_processors_are_idle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loadavg: str, have: int, expected: int
) -> None:
    (tmp_path / "loadavg").write_text(loadavg)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(have)))
    monkeypatch.setattr(walk, "open", lambda _path, **more: open(tmp_path / "loadavg", **more), raising=False)
    assert walk.spare_processors(gentle=False) == expected
    # At the lowest priority every processor is to spare.
    assert walk.spare_processors(gentle=True) == min(8, have)


def test_a_gentle_walk_lets_everybody_else_go_first() -> None:
    code = f"""
import ctypes, os, platform, sys
sys.path[:0] = {sys.path!r}
from ansible_collections.fleetclean.docker.plugins.module_utils import walk
walk.give_way()
call = {{"x86_64": 252, "aarch64": 31}}.get(platform.machine())
ioprio = ctypes.CDLL(None).syscall(ctypes.c_long(call), 1, 0) >> 13 if call else 3
print(os.getpriority(os.PRIO_PROCESS, 0), ioprio)
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["19", "3"]


# -- what was seen -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_key_is_new_once(seed: int) -> None:
    dice = random.Random(seed)
    # Few bits, so that there are many again; many bits; inodes in a row; places on a disk.
    keys = [dice.choice((dice.getrandbits(10), dice.getrandbits(64), 131_072 + dice.randrange(3000), dice.randrange(5000) << 12)) for _ in range(20_000)]
    seen, reference = Seen(), set()
    for key in keys:
        assert seen.add(key) == (key not in reference)
        reference.add(key)


def test_a_key_may_be_negative_or_nothing() -> None:
    seen = Seen()
    for key in (0, -1, (1 << 64) - 2):
        assert seen.add(key)
        assert not seen.add(key)


@pytest.mark.parametrize("step", [1, 2, 64, 4096, 65536, 1 << 20, (1 << 48) + 1])
def test_keys_in_steps_are_found_as_quickly_as_any(step: int) -> None:
    seen = Seen()
    begun = time.process_time()
    for number in range(60_000):
        seen.add(number * step)
    assert time.process_time() - begun < 2


def test_a_million_keys_take_no_more_than_they_say() -> None:
    seen = Seen()
    count = 300_000
    for number in range(count):
        seen.add(number * 4096)
    assert len(seen._keys) * seen._keys.itemsize <= 32 * count * 1.01


# -- several filesystems ---------------------------------------------------------------------------------------


def test_a_mount_that_many_units_lie_behind_is_named_once() -> None:
    one, two = walk.Found(mounts=[Mount("/a", "nfs", False)]), walk.Found(mounts=[Mount("/a", "nfs", False), Mount("/b", "nfs", False)])
    one.merge(two)
    one.merge(two)
    assert [mount.path for mount in one.mounts] == ["/a", "/b"]


@pytest.mark.parametrize(("disks", "together"), [(("x", "x"), True), (("x", "y"), False)])
def test_the_same_place_on_two_disks_is_not_the_same_extent(
    tree: Path, monkeypatch: pytest.MonkeyPatch, disks: tuple[str, str], together: bool
) -> None:
    paths = []
    for name in ("one", "two"):
        (tree / name).mkdir()
        (tree / name / "file").write_bytes(b"x" * 8192)
        paths.append(str(tree / name))
    monkeypatch.setattr(walk, "_shared_extents", lambda _descriptor: iter([(1 << 30, 8192)]))
    models = {os.stat(tree).st_dev: walk.Model(reflinks=True)}
    found = walk.walk([Unit((path,)) for path in paths], {path: path for path in paths}, models, places=dict(zip(paths, disks)))
    assert found.together == ({frozenset(paths): 8192} if together else {})


def test_a_place_is_walked_though_something_is_mounted_on_it(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tree / "volumes"
    (inner / "data/_data").mkdir(parents=True)
    (inner / "data/_data/file").write_bytes(b"x" * 8192)
    (inner / "foreign").mkdir()
    (inner / "foreign/file").write_bytes(b"x" * 8192)
    table = [Mount(str(inner), "xfs", False), Mount(f"{inner}/foreign", "ext4", False)]
    monkeypatch.setattr(walk, "mounts_below", lambda _paths: table)
    owners = {str(tree): "root", str(inner): "engine", f"{inner}/data": "volume"}
    units = [Unit((str(tree), str(inner))), Unit((f"{inner}/data",))]
    models = {os.stat(tree).st_dev: walk.Model()}
    closed = walk.walk(units, owners, models)
    assert closed.sizes.get("volume") is None and {mount.path for mount in closed.mounts} == {str(inner)}
    found = walk.walk(units, owners, models, places={str(tree): "a", str(inner): "b"})
    assert found.sizes["volume"].disk >= 8192
    assert [mount.path for mount in found.mounts] == [f"{inner}/foreign"]
