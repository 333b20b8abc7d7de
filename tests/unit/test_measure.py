# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is mounted where, by tables of mounts as the kernel writes them; and when space that was given back is there."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import typing as t
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import measure
from ansible_collections.fleetclean.docker.plugins.module_utils.measure import Mount, mounts_below

ROOT = "23 1 254:0 / / rw,noatime - ext4 /dev/vda rw"


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> t.Callable[..., None]:
    """Makes lines the table of mounts."""

    def fake_table(*lines: str) -> None:
        path = tmp_path / "mountinfo"
        path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
        monkeypatch.setattr(measure, "open", lambda _name, **more: open(path, **more), raising=False)

    return fake_table


def below(*paths: str) -> dict[str, tuple[str, bool]]:
    return {mount.path: (mount.type, mount.own) for mount in mounts_below(paths)}


# -- what is mounted ------------------------------------------------------------------------------------------


def test_what_is_mounted_below_is_named_and_what_is_beside_is_not(table: t.Callable[..., None]) -> None:
    table(
        ROOT,
        "30 34 254:16 / /var/lib/docker rw,relatime shared:1 - ext4 /dev/vdb rw",
        "31 30 0:40 / /var/lib/docker/overlay2/a/merged rw - overlay overlay rw,lowerdir=x",
        "32 30 0:41 / /var/lib/docker/containers/b/mounts/shm rw - tmpfs shm rw,size=65536k",
        "33 23 0:42 / /var/lib/docker-other rw - tmpfs tmpfs rw",
        "34 23 0:43 / /var rw - tmpfs tmpfs rw",
    )
    assert below("/var/lib/docker") == {
        "/var/lib/docker/overlay2/a/merged": ("overlay", False),
        "/var/lib/docker/containers/b/mounts/shm": ("tmpfs", False),
    }
    assert below("/srv") == {}
    assert below() == {}


def test_paths_with_a_slash_at_the_end_and_several_of_them_are_the_same(table: t.Callable[..., None]) -> None:
    table(ROOT, "31 23 0:40 / /data/a rw - tmpfs x rw", "32 23 0:41 / /more/b rw - tmpfs x rw")
    assert below("/data/", "/more") == below("/data", "/more/", "/more") == {"/data/a": ("tmpfs", False), "/more/b": ("tmpfs", False)}
    assert set(below("/")) == {"/data/a", "/more/b"}


def test_a_folder_mounted_over_itself_is_the_same_place(table: t.Callable[..., None]) -> None:
    # Engines do so with the folder of their storage driver.
    table(ROOT, "31 23 254:0 /var/lib/docker/btrfs /var/lib/docker/btrfs rw - ext4 /dev/vda rw")
    assert below("/var/lib/docker") == {"/var/lib/docker/btrfs": ("ext4", True)}


def test_another_folder_of_the_same_filesystem_is_another_place(table: t.Callable[..., None]) -> None:
    table(ROOT, "31 23 254:0 /srv/volumes /var/lib/docker/volumes rw - ext4 /dev/vda rw")
    assert below("/var/lib/docker") == {"/var/lib/docker/volumes": ("ext4", False)}


def test_the_same_folder_of_another_filesystem_is_another_place(table: t.Callable[..., None]) -> None:
    table(ROOT, "31 23 254:32 /var/lib/docker/volumes /var/lib/docker/volumes rw - ext4 /dev/vdc rw")
    assert below("/var/lib/docker") == {"/var/lib/docker/volumes": ("ext4", False)}


def test_a_folder_over_itself_below_a_mount_counts_from_there(table: t.Callable[..., None]) -> None:
    # The data root is a subvolume, or a bind mount: then the folder's name in its filesystem is another one.
    table(
        ROOT,
        "30 23 0:50 /@docker /var/lib/docker rw - btrfs /dev/vdb rw,subvol=/@docker",
        "31 30 0:50 /@docker/btrfs /var/lib/docker/btrfs rw - btrfs /dev/vdb rw",
        "32 31 0:50 /@docker/btrfs/subvolumes/a /var/lib/docker/btrfs/subvolumes/a rw - btrfs /dev/vdb rw",
        "33 30 0:50 /btrfs /var/lib/docker/other rw - btrfs /dev/vdb rw",
        "34 30 0:50 /@dockerx/x /var/lib/docker/x rw - btrfs /dev/vdb rw",
    )
    assert {path: own for path, (_kind, own) in below("/var/lib/docker").items()} == {
        "/var/lib/docker/btrfs": True, "/var/lib/docker/btrfs/subvolumes/a": True,
        "/var/lib/docker/other": False, "/var/lib/docker/x": False,
    }


def test_of_several_on_one_place_the_last_is_on_top(table: t.Callable[..., None]) -> None:
    itself, other = "{} {} 254:0 /data/x /data/x rw - ext4 /dev/vda rw", "{} {} 0:9 / /data/x rw - tmpfs t rw"
    table(ROOT, itself.format(31, 23), other.format(32, 31))
    assert below("/data") == {"/data/x": ("tmpfs", False)}
    table(ROOT, other.format(31, 23), itself.format(32, 31))
    assert below("/data")["/data/x"][0] == "ext4"
    # Kernels list them by number, which is given again to later ones.
    table(ROOT, other.format(30, 31), itself.format(31, 23))
    assert below("/data")["/data/x"][0] == "tmpfs"


def test_what_lies_below_a_later_mount_cannot_be_seen(table: t.Callable[..., None], tmp_path: Path) -> None:
    root = str(tmp_path)
    lines = [
        ROOT,
        f"31 23 254:16 / {root} rw - ext4 /dev/vdb rw",
        f"32 31 0:40 / {root}/volumes rw - tmpfs hidden rw",
        f"33 31 254:32 / {root} rw - xfs /dev/vdc rw",
        f"34 32 0:41 / {root}/volumes/x rw - tmpfs hidden rw",
    ]
    table(*lines)
    assert below(root) == {}
    assert (measure.device(root), measure.device(f"{root}/volumes")) == ("254:32", "254:32")
    table(*lines, f"35 33 0:42 / {root}/volumes rw - btrfs seen rw")
    assert below(root) == {f"{root}/volumes": ("btrfs", False)}
    assert measure.device(f"{root}/volumes/x") == "0:42"


def test_signs_in_paths_are_read_as_the_kernel_writes_them(table: t.Callable[..., None]) -> None:
    table(
        ROOT,
        r"31 23 254:0 /data/a\040b /data/a\040b rw - ext4 /dev/vda rw",
        r"32 23 0:40 / /data/new\012line\134\011 rw - tmpfs t rw",
        "33 23 0:41 / /data/\udcff rw - tmpfs t rw",
    )
    assert below("/data") == {
        "/data/a b": ("ext4", True), "/data/new\nline\\\t": ("tmpfs", False), "/data/\udcff": ("tmpfs", False),
    }


def test_white_space_that_the_kernel_writes_as_it_is_ends_no_path_and_no_line(table: t.Callable[..., None]) -> None:
    # Whoever may mount anything at all (FUSE) chooses its name.
    table(ROOT, "31 23 0:40 / /data/a\rb rw - tmpfs t rw", "32 23 0:41 / /data/no\u00a0break\x0b\x1c\u2028 rw - tmpfs t rw", "33 23 0:42 / /data/c rw - tmpfs t rw")
    assert set(below("/data")) == {"/data/a\rb", "/data/no\u00a0break\x0b\x1c\u2028", "/data/c"}


@pytest.mark.parametrize("lines", [[], ["no table at all"], [""], [ROOT, "31 23"]])
def test_a_table_that_cannot_be_read_names_nothing(table: t.Callable[..., None], lines: list[str]) -> None:
    table(*lines)
    assert below("/") == {}


def test_lines_with_and_without_optional_fields_are_read_alike(table: t.Callable[..., None]) -> None:
    table(
        ROOT,
        "31 23 0:40 / /data/none rw - tmpfs t rw",
        "32 23 0:41 / /data/some rw shared:1 master:2 propagate_from:3 unbindable - fuse.sshfs t rw",
    )
    assert below("/data") == {"/data/none": ("tmpfs", False), "/data/some": ("fuse.sshfs", False)}


def test_this_machines_own_table_is_read() -> None:
    found = mounts_below(["/"])
    assert Mount("/proc", "proc", False) in found


@pytest.mark.parametrize(
    ("options", "read_only"),
    [("rw", False), ("rw,errors=remount-ro", False), ("ro", True), ("ro,seclabel", True), ("rw,errors=remount-ro,emergency_ro", True)],
)
def test_a_filesystem_that_gave_up_is_read_only(table: t.Callable[..., None], tmp_path: Path, options: str, read_only: bool) -> None:
    table(ROOT, f"31 23 7:0 / {tmp_path} rw - ext4 /dev/loop0 {options}")
    assert measure.filesystem(str(tmp_path)).read_only == read_only


def test_a_filesystem_is_that_of_the_longest_mount_above(table: t.Callable[..., None], tmp_path: Path) -> None:
    inner = tmp_path / "data" / "docker"
    inner.mkdir(parents=True)
    (tmp_path / "link").symlink_to(inner)
    table(ROOT, f"31 23 0:40 / {tmp_path}/data rw - xfs /dev/x rw", f"32 23 0:41 / {tmp_path}/data/dock rw - tmpfs t rw")
    for path in (inner, tmp_path / "link"):
        found = measure.filesystem(str(path))
        assert (found.mount_point, found.type) == (f"{tmp_path}/data", "xfs")
    assert measure.filesystem(str(tmp_path)).mount_point == "/"


def test_a_path_within_its_filesystem_is_told_whatever_is_mounted_where(table: t.Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    table(ROOT, f"31 23 0:40 /sub {tmp_path}/a rw - xfs /dev/x rw")
    assert [measure.within(f"{tmp_path}/{path}") for path in ("a", "a/b")] == ["/sub", "/sub/b"]
    assert measure.within(str(tmp_path)) == str(tmp_path)
    assert measure.within("/") == "/"


def test_datasets_of_a_pool_share_their_space_and_other_filesystems_do_not(table: t.Callable[..., None], tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    table(
        ROOT, f"31 23 0:40 / {tmp_path}/a rw - zfs tank/a rw", f"32 23 0:41 / {tmp_path}/b rw - zfs tank/b rw",
        f"33 23 7:1 / {tmp_path}/c rw - ext4 /dev/loop1 rw",
    )
    assert [measure.pool(f"{tmp_path}/{name}") for name in "abc"] == ["zfs tank", "zfs tank", "7:1"]


# -- when space is there again ---------------------------------------------------------------------------------


class Disk:
    """A filesystem that gives space back bit by bit; a second passes with each sleep of a second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: str, frees: t.Sequence[int], orphans: t.Sequence[bool] = ()) -> None:
        self.asked: list[str] = []
        self.now = 0.0
        self._frees, self._orphans = list(frees), list(orphans)
        monkeypatch.setattr(measure, "_mount_of", lambda _path: measure._Entry("", "/", "/", kind, "", frozenset()))
        monkeypatch.setattr(measure.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(measure.time, "sleep", self._sleep)
        monkeypatch.setattr(fcntl, "ioctl", self._ioctl)
        monkeypatch.setattr(ctypes, "CDLL", lambda _name: self)
        monkeypatch.setattr(os, "statvfs", self._statvfs)

    def syncfs(self, _descriptor: int) -> None:
        self.asked.append("sync")

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def _statvfs(self, _path: str) -> t.Any:
        free = self._frees.pop(0) if len(self._frees) > 1 else self._frees[0]
        return type("Answer", (), {"f_bfree": free})

    def _ioctl(self, _descriptor: int, call: int, asked: t.Any = None) -> int:
        if call == measure._BTRFS_SYNC:
            self.asked.append("sync")
            return 0
        orphans = self._orphans.pop(0) if self._orphans else False
        # The kernel writes into the key how many items it found.
        measure._SEARCH.pack_into(asked, 0, *measure._SEARCH.unpack_from(asked)[:9], int(orphans), *[0] * 5)
        return 0


@pytest.mark.parametrize("kind", ["ext4", "overlay", "tmpfs", ""])
def test_where_space_is_there_at_once_nobody_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    disk = Disk(monkeypatch, kind, [1])
    measure.settle(str(tmp_path))
    assert (disk.now, disk.asked) == (0.0, [])


@pytest.mark.parametrize("kind", ["btrfs", "xfs", "zfs"])
def test_it_is_waited_until_nothing_more_comes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    disk = Disk(monkeypatch, kind, [10, 20, 30, 30, 99])
    measure.settle(str(tmp_path))
    assert (0.1 if kind == "xfs" else 1.0) < disk.now < 5.0
    assert disk.asked == ([] if kind == "xfs" else ["sync"] * 4)


def test_what_btrfs_has_still_to_take_apart_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The cleaner may not have begun: nothing comes for a while, and then all of it.
    disk = Disk(monkeypatch, "btrfs", [10] * 6 + [90], [True] * 5)
    measure.settle(str(tmp_path))
    assert disk.now >= 2.5


@pytest.mark.parametrize("kind", ["btrfs", "xfs", "zfs"])
def test_nobody_waits_longer_than_he_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    disk = Disk(monkeypatch, kind, range(10_000))
    measure.settle(str(tmp_path), 7.0)
    assert 7.0 <= disk.now < 8.0


def test_where_it_may_not_be_asked_what_is_free_is_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Disk(monkeypatch, "btrfs", [1])

    def fake_refusal(*_arguments: t.Any) -> t.NoReturn:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(fcntl, "ioctl", fake_refusal)
    before = sorted(os.listdir("/proc/self/fd"))
    measure.settle(str(tmp_path))
    assert sorted(os.listdir("/proc/self/fd")) == before
