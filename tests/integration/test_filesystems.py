# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The walk on filesystems of its own: what copies and snapshots share, what removing gives back, and what is mounted below.

Each test runs in a process with mounts of its own, on disks that are files: both are gone when it ends, however it ends.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Iterable, Mapping

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "playbooks" / "collections"))

from ansible_collections.fleetclean.docker.plugins.module_utils import measure, walk
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import COPIES, SNAPSHOTS
from ansible_collections.fleetclean.docker.plugins.module_utils.walk import Found, Sizes, Unit

from tests.integration.disks import apart, disk, free, needs_filesystems, run

pytestmark = needs_filesystems


def walked(place: Path, *units: Unit | Path, owners: Mapping[str, str] | None = None) -> Found:
    kind = measure.filesystem(str(place)).type
    models = {os.stat(place).st_dev: walk.model_of(str(place), kind)}
    made = [unit if isinstance(unit, Unit) else Unit((str(unit),)) for unit in units]
    return walk.walk(made, owners or {}, models)


def sizes(place: Path, path: Path) -> Sizes:
    return walked(place, path).sizes[str(path)]


def du(*paths: Path) -> int:
    answer = subprocess.run(["du", "-csB1", "--", *map(str, paths)], capture_output=True, text=True, check=True)
    return int(answer.stdout.splitlines()[-1].split("\t")[0])


def fill(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(random.Random(str(path)).randbytes(size))
    return path


# -- what is shared --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_a_reflinked_file_is_shared_and_frees_nothing(tmp_path: Path, kind: str) -> None:
    def work() -> None:
        place = disk(tmp_path, kind)
        fill(place / "one/file", 4 << 20)
        fill(place / "two/own", 1 << 20)
        run("cp", "--reflink=always", place / "one/file", place / "two/file")
        os.sync()
        two = sizes(place, place / "two")
        assert two.disk == du(place / "two")
        assert two.shared == 4 << 20
        assert (1 << 20) <= two.frees < (1 << 20) * 1.05
        # Of copies that are looked at together, the first one's are its own: that is how layers of vfs are charged.
        together = walked(place, Unit((str(place / "one"), str(place / "two")), COPIES)).sizes
        assert together[str(place / "one")].shared == 0
        assert together[str(place / "two")].shared == 4 << 20
        before = free(place)
        shutil.rmtree(place / "two")
        given_back = free(place) - before
        assert abs(given_back - two.frees) <= max(two.frees * 0.1, 65536)

    apart(work)


def test_a_file_of_which_a_part_was_changed_shares_the_rest(tmp_path: Path) -> None:
    def work() -> None:
        for kind in ("xfs", "btrfs"):
            place = disk(tmp_path, kind)
            fill(place / "one/file", 8 << 20)
            (place / "two").mkdir()
            run("cp", "--reflink=always", place / "one/file", place / "two/file")
            with open(place / "two/file", "r+b") as stream:
                stream.seek(2 << 20)
                stream.write(b"x" * (1 << 20))
            os.sync()
            two = sizes(place, place / "two")
            assert two.disk == du(place / "two") >= 8 << 20
            assert two.shared == 7 << 20
            assert (1 << 20) <= two.frees < (1 << 20) * 1.1

    apart(work)


def test_a_files_many_extents_are_all_looked_at(tmp_path: Path) -> None:
    # The kernel tells 128 of them at a time.
    def work() -> None:
        place = disk(tmp_path, "xfs")
        with open(place / "file", "wb") as stream:
            for number in range(700):
                stream.seek(number * 32768)
                stream.write(b"x" * 4096)
        (place / "copies").mkdir()
        run("cp", "--reflink=always", place / "file", place / "copies/file")
        os.sync()
        found = sizes(place, place / "copies")
        assert found.shared == 700 * 4096
        assert found.frees < 65536

    apart(work)


def test_what_a_btrfs_snapshot_did_not_change_is_shared(tmp_path: Path) -> None:
    def work() -> None:
        place = disk(tmp_path, "btrfs")
        lower, upper = place / "lower", place / "upper"
        run("btrfs", "-q", "subvolume", "create", lower)
        for number in range(20):
            fill(lower / f"etc/large{number}", 1 << 20)
            fill(lower / f"etc/small{number}", 900)
        os.link(lower / "etc/large0", lower / "etc/another name")
        os.sync()
        run("btrfs", "-q", "subvolume", "snapshot", lower, upper)
        fill(upper / "etc/large3", 2 << 20)
        fill(upper / "etc/new", 3 << 20)
        os.unlink(upper / "etc/large5")
        os.sync()
        found = walked(place, Unit((str(lower), str(upper)), SNAPSHOTS)).sizes
        below, above = found[str(lower)], found[str(upper)]
        assert (below.disk, above.disk) == (du(lower), du(upper))
        assert below.shared == 0
        # 20 large ones, of which one changed and one went; the small ones are as they were.
        small = sum(os.lstat(upper / f"etc/small{number}").st_blocks * 512 for number in range(20))
        assert above.shared == (18 << 20) + small
        assert (5 << 20) <= above.frees < (5 << 20) * 1.1
        # One after the other, the upper first: what both have is the lower's, and comes free with it.
        for path, said in ((upper, above.frees), (lower, below.frees)):
            before = free(place)
            run("btrfs", "-q", "subvolume", "delete", path)
            given_back = free(place) - before
            assert abs(given_back - said) <= said * 0.1, (path.name, given_back, said)

    apart(work)


def test_a_subvolume_is_walked_and_is_no_other_filesystem(tmp_path: Path) -> None:
    def work() -> None:
        place = disk(tmp_path, "btrfs")
        (place / "root").mkdir()
        run("btrfs", "-q", "subvolume", "create", place / "root/inner")
        fill(place / "root/inner/folder/file", 1 << 20)
        fill(place / "root/file", 1 << 20)
        os.sync()
        found = walked(place, place / "root")
        assert found.mounts == []
        assert found.sizes[str(place / "root")].disk == du(place / "root")
        assert found.in_subvolumes == du(place / "root/inner")

    apart(work)


# -- what removing gives back -------------------------------------------------------------------------------------


def many_small(folder: Path) -> None:
    dice = random.Random(1)
    for number in range(4000):
        size = dice.choice((0, 1, 60, 500, 1900, 2048, 2049, 3000, 5000))
        below = f"folder-{number}/file" if number % 5 == 0 else f"file-{number}"
        fill(folder / f"d{number // 50:02}" / below, size)
        if number % 10 == 0:
            os.symlink("/somewhere/else", folder / f"d{number // 50:02}/link-{number}")


def few_large(folder: Path) -> None:
    for number in range(12):
        fill(folder / f"d{number}/file", (4 << 20) + number * 4097)
    with open(folder / "sparse", "wb") as stream:
        stream.seek(1 << 30)
        stream.write(b"x" * 9000)


@pytest.mark.parametrize(("kind", "share"), [("ext4", 0.01), ("xfs", 0.01), ("btrfs", 0.1)])
@pytest.mark.parametrize("content", [many_small, few_large])
def test_removing_gives_back_what_was_said(tmp_path: Path, kind: str, share: float, content: Callable[[Path], None]) -> None:
    def work() -> None:
        place = disk(tmp_path, kind)
        (place / "stays").mkdir()
        content(place / "stays")
        (place / "goes").mkdir()
        content(place / "goes")
        before = free(place)
        said = sizes(place, place / "goes")
        assert said.disk == du(place / "goes")
        shutil.rmtree(place / "goes")
        given_back = free(place) - before
        assert abs(given_back - said.frees) <= said.frees * share, (given_back, said)

    apart(work)


# -- what is mounted below ------------------------------------------------------------------------------------------


def test_other_filesystems_below_are_named_and_not_entered(tmp_path: Path) -> None:
    def work() -> None:
        place = tmp_path / "root"
        fill(place / "own/file", 200_000)
        for name in ("tmp fs", "proc", "other"):
            (place / name).mkdir()
        inside = du(place)
        run("mount", "-t", "tmpfs", "tmpfs", place / "tmp fs")
        fill(place / "tmp fs/big", 900_000)
        run("mount", "-t", "proc", "proc", place / "proc")
        other = disk(tmp_path, "ext4")
        fill(other / "big", 900_000)
        run("mount", "--bind", other, place / "other")
        found = walked(tmp_path, place)
        assert {(mount.path, mount.type, mount.own) for mount in found.mounts} == {
            (f"{place}/tmp fs", "tmpfs", False), (f"{place}/proc", "proc", False), (f"{place}/other", "ext4", False),
        }
        # The folders that they cover are out of sight.
        covered = 3 * 4096
        assert inside - covered <= found.sizes[str(place)].disk <= inside

    apart(work)


def test_a_unit_in_another_filesystem_is_named_and_not_entered(tmp_path: Path) -> None:
    def work() -> None:
        place = tmp_path / "root"
        (place / "volumes").mkdir(parents=True)
        run("mount", "-t", "tmpfs", "tmpfs", place / "volumes")
        fill(place / "volumes/data/_data/file", 900_000)
        found = walked(tmp_path, place, place / "volumes/data")
        assert sum(each.disk for each in found.sizes.values()) < 100_000
        assert f"{place}/volumes" in {mount.path for mount in found.mounts}

    apart(work)


def test_a_folder_mounted_over_itself_is_entered_and_counted_once(tmp_path: Path) -> None:
    # Engines do so with the folder of their storage driver.
    def work() -> None:
        place = tmp_path / "root"
        fill(place / "overlay/a/file", 200_000)
        fill(place / "other", 100_000)
        before = du(place)
        run("mount", "--bind", place / "overlay", place / "overlay")
        for units in ((place,), (place, place / "overlay/a")):
            found = walked(tmp_path, *units)
            assert sum(each.disk for each in found.sizes.values()) == before
            assert found.mounts == []

    apart(work)


def test_another_folder_of_the_same_filesystem_is_not_entered(tmp_path: Path) -> None:
    # It is counted where it lies, or it is none of the data root's at all.
    def work() -> None:
        place = tmp_path / "root"
        fill(tmp_path / "outside/big", 900_000)
        fill(place / "inside/big", 500_000)
        fill(place / "file", 100_000)
        (place / "one").mkdir()
        (place / "two").mkdir()
        before = du(place)
        run("mount", "--bind", tmp_path / "outside", place / "one")
        run("mount", "--bind", place / "inside", place / "two")
        found = walked(tmp_path, place)
        assert {mount.path for mount in found.mounts} == {f"{place}/one", f"{place}/two"}
        assert before - 2 * 4096 <= found.sizes[str(place)].disk <= before

    apart(work)


def test_a_filesystem_that_came_since_the_table_was_read_is_not_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: Callable[[Iterable[str]], list[measure.Mount]] = lambda _paths: []  # noqa: E731

    def work() -> None:
        place = tmp_path / "root"
        fill(place / "file", 100_000)
        (place / "late").mkdir()
        run("mount", "-t", "tmpfs", "tmpfs", place / "late")
        fill(place / "late/big", 900_000)
        monkeypatch.setattr(walk, "mounts_below", nothing)
        found = walked(tmp_path, place)
        assert [mount.path for mount in found.mounts] == [f"{place}/late"]
        assert found.sizes[str(place)].disk < 200_000

    apart(work)


def test_a_layers_device_that_is_mounted_on_its_folder_is_left_alone(tmp_path: Path) -> None:
    # devicemapper and zfs do so while a container runs: its bytes are the pool's.
    def work() -> None:
        place = tmp_path / "root"
        layer = place / "mnt" / ("a" * 64)
        layer.mkdir(parents=True)
        run("mount", "-t", "tmpfs", "tmpfs", layer)
        fill(layer / "rootfs/big", 900_000)
        found = walked(tmp_path, place, layer)
        assert sum(each.disk for each in found.sizes.values()) < 50_000
        assert [mount.path for mount in found.mounts] == [str(layer)]

    apart(work)


def test_what_root_took_of_the_reserve_has_to_come_free_first(tmp_path: Path) -> None:
    """ext4 keeps 5 % for root, as whom engines and containers run: there a full disk has less than nothing available."""

    def work() -> None:
        place = disk(tmp_path, "ext4")
        before = measure.filesystem(str(place))
        reserve = before.free - before.available
        assert before.headroom == before.available and reserve > 10 << 20
        with open(place / "filler", "wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, before.available + (10 << 20))
        full = measure.filesystem(str(place))
        assert full.available == 0
        assert full.headroom == full.free - reserve
        assert -(11 << 20) < full.headroom <= -(10 << 20)
        os.truncate(place / "filler", before.available - (10 << 20))
        os.sync()
        again = measure.filesystem(str(place))
        assert again.headroom == again.available > 0

    apart(work)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    def work() -> None:
        place = disk(tmp_path, "ext4")
        fill(place / "file", 1000)
        raise RuntimeError("it fails in the middle")

    with pytest.raises(pytest.fail.Exception, match="fails in the middle"):
        apart(work)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    for _ in range(100):
        loops = subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True).stdout
        if str(tmp_path) not in loops:
            return
        time.sleep(0.05)
    pytest.fail(loops)
