# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mount tables of every shape, and what of the engine's folders they keep."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import mounts, path_uses
from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import Container, Volume, _overlaid
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Storage

ROOT = "/var/lib/docker"
#: The root disk, and the data root's.
HERE = f"20 1 8:1 / / rw - ext4 /dev/sda1 rw\n21 20 8:2 / {ROOT} rw shared:1 - ext4 /dev/sdb rw\n"
ONE, TWO = "1" * 64, "2" * 64


def table(*lines: str, others: t.Sequence[tuple[str, tuple[str, ...]]] = ()) -> mounts.Table:
    return mounts.Table(HERE + "".join(f"{line}\n" for line in lines), others)


@pytest.fixture()
def holds(monkeypatch: pytest.MonkeyPatch) -> t.Callable[..., set[tuple[str, str, str]]]:
    def found(*lines: str, others: t.Sequence[tuple[str, tuple[str, ...]]] = (), loops: t.Sequence[tuple[str, str]] = ()) -> set[tuple[str, str, str]]:
        monkeypatch.setattr(mounts, "collect", lambda _before=None, _owners=(): table(*lines, others=others))
        monkeypatch.setattr(mounts, "loops", lambda: list(loops))
        uses = path_uses.PathUses(Storage(ROOT, "overlay2", "graphdriver", {}), ROOT)
        return {(hold.holder, hold.reason, hold.via) for hold in uses.holds((), {ONE, TWO})}

    return found


def test_a_place_is_that_of_the_mount_on_top_and_not_of_one_that_is_hidden_below_it() -> None:
    assert table().place(f"{ROOT}/volumes/a") == "8:2 /volumes/a"
    # A disk for the volumes, then one for all of it: the first is there, and hidden.
    hidden = table(f"22 21 8:3 / {ROOT}/volumes rw - ext4 /dev/sdc rw", f"23 21 8:4 / {ROOT} rw - ext4 /dev/sdd rw")
    assert hidden.place(f"{ROOT}/volumes/a") == "8:4 /volumes/a"
    on_top = table(f"22 21 8:3 / {ROOT} rw - ext4 /dev/sdc rw", f"23 22 8:4 / {ROOT}/volumes rw - ext4 /dev/sdd rw")
    assert on_top.place(f"{ROOT}/volumes/a") == "8:4 /a"
    # Two roots on each other, and a process whose root is no mount.
    assert mounts.Table("1 0 0:1 / / rw - rootfs none rw\n2 1 8:1 / / rw - ext4 /dev/sda1 rw\n").place("/srv") == "8:1 /srv"
    assert mounts.Table("5 4 8:9 /x /mnt rw - ext4 /dev/sda1 rw\n").place("/mnt/a") == "8:9 /x/a"
    assert mounts.Table("5 4 8:9 /x /mnt rw - ext4 /dev/sda1 rw\n").place("/srv") == "/srv"


@pytest.mark.parametrize("name", ["a b", "a\rb", "a\nb", "a\\b", "a\tb", "\x1b[2J", "ä", "a,b:c"])
def test_a_path_of_any_characters_is_read_as_the_kernel_writes_it(tmp_path: Path, name: str, holds: t.Callable[..., set[tuple[str, str, str]]]) -> None:
    # Only these does it escape (fs/proc_namespace.c).
    written = "".join(f"\\{ord(char):03o}" if char in " \t\n\\" else char for char in name)
    file = tmp_path / "mountinfo"
    file.write_bytes(f"30 21 8:1 /srv/{written} {ROOT}/volumes/v/_data/{written} rw - ext4 /dev/sda1 rw\n".encode())
    line = mounts._text(str(file))
    found = mounts.parse(mounts.Namespace(HERE + line))[-1]
    assert (found.at, found.shows) == (f"8:2 /volumes/v/_data/{name}", f"8:1 /srv/{name}")
    ((holder, reason, via),) = holds(line.rstrip("\n"))
    assert (holder, via, reason.isprintable()) == ("volume:v", "", True)


def test_what_the_engine_mounts_for_itself_keeps_nothing(holds: t.Callable[..., set[tuple[str, str, str]]]) -> None:
    own = f"{ROOT}/containers/{ONE}"
    lines = [
        f"30 21 0:50 / {own}/mounts/shm rw - tmpfs shm rw",
        f"31 21 0:51 / {own}/mounts/secrets rw - tmpfs tmpfs rw",
        f"32 21 0:52 / {own}/mqueue rw - mqueue mqueue rw",
        f"33 21 0:53 / {ROOT}/overlay2/{ONE}/merged rw - overlay overlay rw,lowerdir={ROOT}/volumes/v/_data,upperdir={ROOT}/overlay2/{ONE}/diff",
    ]
    inside = f"40 9 0:53 / / rw - overlay overlay rw,upperdir={ROOT}/volumes/v/_data\n41 40 8:2 /containers/{ONE}/hosts /etc/hosts rw - ext4 /dev/sdb rw\n"
    assert holds(*lines, others=[(inside, (ONE,))]) == set()


@pytest.mark.parametrize(
    "place", ["checkpoints/x", "mounts", "mounts/shm/x", "mounts/other", "secrets/x", "x"],
)
def test_anything_else_in_a_containers_folder_keeps_it(holds: t.Callable[..., set[tuple[str, str, str]]], place: str) -> None:
    assert holds(f"30 21 8:1 /srv/x {ROOT}/containers/{ONE}/{place} rw - ext4 /dev/sda1 rw") == {
        (f"container:{ONE}", f"/srv/x is mounted at {ROOT}/containers/{ONE}/{place}", "")
    }


def test_an_overlay_and_a_loop_device_keep_the_volumes_that_they_are_made_of(holds: t.Callable[..., set[tuple[str, str, str]]]) -> None:
    data = f"{ROOT}/volumes"
    # As the kernel writes them: the colon of a name has a backslash, which is escaped as all backslashes are.
    overlay = f"30 20 0:60 / /mnt rw - overlay o rw,lowerdir={data}/low/_data/a\\134:b\\054c:{data}/lower/_data,upperdir={data}/up/_data/u,workdir={data}/up/_data/w"
    inside = "40 9 0:53 / / rw - overlay o rw\n" + overlay.replace("30 20", "41 40")
    reason = "the overlay at /mnt has its data"
    assert holds(overlay) == {(f"volume:{name}", reason, "") for name in ("low", "lower", "up")}
    where = f"the overlay at /mnt in the mount namespace of container {ONE[:12]} has its data"
    assert holds(others=[(inside, (ONE,))]) == {(f"volume:{name}", where, f"container:{ONE}") for name in ("low", "lower", "up")}
    assert mounts.parse(mounts.Namespace(overlay))[0].layers[0] == f"{data}/low/_data/a:b,c"
    assert holds(loops=[("/dev/loop0", f"{data}/disk/_data/img"), ("/dev/loop1", "/srv/img")]) == {
        ("volume:disk", f"/dev/loop0 has its data in {data}/disk/_data/img", "")
    }


def test_a_volume_shows_what_it_lays_over_each_other() -> None:
    options = {"type": "overlay", "device": "overlay", "o": f"lowerdir={ROOT}/volumes/a/_data:/srv/b,upperdir={ROOT}/volumes/c/_data/u,workdir=w"}
    overlaid = _overlaid({"Driver": "local", "Options": options})
    assert overlaid == (f"{ROOT}/volumes/a/_data", "/srv/b", f"{ROOT}/volumes/c/_data/u")
    assert _overlaid({"Driver": "other", "Options": options}) == _overlaid({"Driver": "local", "Options": None}) == ()
    # Also where nothing is known of the disk.
    volume = Volume("v", "local/overlay", None, {}, False, False, None, overlaid=overlaid)
    assert path_uses.PathUses(None, ROOT).volume(volume).shows == ("volume:a", "volume:c")


def test_a_layer_that_a_container_binds_is_told_with_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = f"40 9 0:53 / / rw - overlay o rw\n41 40 8:2 /overlay2/{TWO}/diff/a /b rw - ext4 /dev/sdb rw\n"
    monkeypatch.setattr(mounts, "collect", lambda _before=None, _owners=(): table(others=[(inside, (ONE,))]))
    one = Container(ONE, "one", ("one",), "", "", None, None, None, "exited", {}, (), (), None, binds=(f"{ROOT}/overlay2/{TWO}/merged/x\x1b", "/srv"))
    assert path_uses.PathUses(Storage(ROOT, "overlay2", "graphdriver", {}), ROOT).in_layers([one]) == [
        (f"{ROOT}/overlay2/{TWO}", f"container one binds {ROOT}/overlay2/{TWO}/merged/x?", f"container:{ONE}"),
        (f"{ROOT}/overlay2/{TWO}", f"its data is mounted at /b as well in the mount namespace of container {ONE[:12]}", f"container:{ONE}"),
    ]


def test_a_volume_whose_folder_is_a_link_stays_and_shows_what_it_leads_to(tmp_path: Path) -> None:
    root = str(tmp_path)
    (tmp_path / "volumes" / "other" / "_data").mkdir(parents=True)
    (tmp_path / "volumes" / "whole").symlink_to("other")
    (tmp_path / "volumes" / "inner").mkdir()
    (tmp_path / "volumes" / "inner" / "_data").symlink_to("../other/_data")
    uses = path_uses.PathUses(Storage(root, "overlay2", "graphdriver", {}), root)
    volumes = [uses.volume(Volume(name, "local", None, {}, False, False, None)) for name in ("whole", "inner", "other")]
    assert [volume.shows for volume in volumes] == [("volume:other",), ("volume:other",), ()]
    assert {(hold.holder, hold.reason) for hold in uses.holds(volumes, ())} == {
        ("volume:whole", f"its folder is a link to {root}/volumes/other"), ("volume:inner", f"its folder _data is a link to {root}/volumes/other/_data"),
    }


def test_an_unchanged_table_is_not_read_twice_and_a_changed_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [table()]
    monkeypatch.setattr(mounts, "collect", lambda _before=None, _owners=(): now[0])
    storage = Storage(ROOT, "overlay2", "graphdriver", {})
    first = path_uses.PathUses(storage, ROOT)
    with monkeypatch.context() as patch:
        patch.setattr(mounts, "parse", lambda _namespace: pytest.fail("it was read again"))
        second = path_uses.PathUses(storage, ROOT, first)
    now[0] = table(f"30 21 8:1 /srv {ROOT}/volumes/v/_data rw - ext4 /dev/sda1 rw")
    assert [hold.holder for hold in path_uses.PathUses(storage, ROOT, second).holds((), ())] == ["volume:v"]


def test_thousands_of_mounts_are_looked_at_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    path = mounts.Table.path
    monkeypatch.setattr(mounts.Table, "path", lambda self, place: asked.append(place) or path(self, place))
    lines = [f"{number} 20 0:{number} / /mnt/{number} rw - tmpfs tmpfs rw" for number in range(100, 5100)]
    monkeypatch.setattr(mounts, "collect", lambda _before=None, _owners=(): table(*lines, f"30 21 8:1 /srv {ROOT}/volumes/v/_data rw - ext4 /dev/sda1 rw"))
    uses = path_uses.PathUses(Storage(ROOT, "overlay2", "graphdriver", {}), ROOT)
    assert ([hold.holder for hold in uses.holds((), ())], uses.in_layers([])) == (["volume:v"], [])
    assert len(asked) == 1, "the words for a mount are made for those that keep something only"
