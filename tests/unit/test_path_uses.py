# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who uses the engine's folders by their path: by what is mounted, and by what containers and volumes name."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import mounts, path_uses
from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import Snapshot
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Storage
from worlds import container, hexadecimal, volume, world

from tests import attacker

WEB = hexadecimal("container web")


@pytest.fixture()
def root(tmp_path: Path) -> str:
    found = os.path.realpath(tmp_path)
    for name in ("data", "other"):
        os.makedirs(f"{found}/volumes/{name}/_data/sub")
    os.makedirs(f"{found}/containers/{WEB}")
    os.makedirs(f"{found}/overlay2/abc/diff")
    return found


def look(monkeypatch: pytest.MonkeyPatch, root: str, snapshot: Snapshot, *lines: str, inside: str = "") -> Snapshot:
    """The completed snapshot where these are mounted: each line "device root point", on top of the data root's own disk."""
    own = [f"{number} 1 {line.split()[0]} {line.split()[1]} {line.split()[2]} rw - ext4 /dev/{number} rw" for number, line in enumerate(lines, 10)]
    table = mounts.Table("\n".join(["1 0 8:1 / / rw - ext4 /dev/sda1 rw", *own]), [(inside, (WEB,))] if inside else ())
    monkeypatch.setattr(mounts, "collect", lambda _before=None, _owners=(): table)
    return path_uses.complete(snapshot, Storage(root, "overlay2", "graphdriver", {}), root)


def held(snapshot: Snapshot) -> dict[str, tuple[str, str]]:
    return {hold.holder: (hold.reason, hold.via) for hold in snapshot.holds}


def test_what_is_mounted_at_and_below_an_objects_folder_keeps_it(monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    looked = look(
        monkeypatch, root, world(volume("data"), volume("other"), container("web")),
        f"8:9 / {root}/volumes/data/_data/sub", f"8:1 /srv {root}/volumes/other", f"8:1 /srv/deep {root}/containers/{WEB}/x",
        f"0:9 / {root}/containers/{WEB}/mounts/shm", f"0:9 / {root}/overlay2/abc/merged",
    )
    assert held(looked) == {
        "volume:data": (f"/dev/10 is mounted at {root}/volumes/data/_data/sub", ""),
        "volume:other": (f"/srv is mounted at {root}/volumes/other", ""),
        f"container:{WEB}": (f"/srv/deep is mounted at {root}/containers/{WEB}/x", ""),
    }


def test_volumes_on_a_filesystem_of_their_own_are_found_there(monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    table = mounts.Table(f"1 0 8:1 / / rw - ext4 a rw\n2 1 8:2 / {root}/volumes rw - xfs b rw\n3 2 8:3 / {root}/volumes/data/_data/x rw - xfs c rw\n")
    monkeypatch.setattr(mounts, "collect", lambda _before=None, _owners=(): table)
    looked = path_uses.complete(world(volume("data")), Storage(root, "overlay2", "graphdriver", {}), root)
    assert held(looked) == {"volume:data": (f"c is mounted at {root}/volumes/data/_data/x", "")}


def test_what_a_mount_shows_elsewhere_keeps_it_and_ends_with_its_container(monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    inside = f"40 39 0:60 / / rw - overlay overlay rw\n41 40 8:1 {root}/volumes/other/_data /data rw - ext4 x rw\n42 41 0:61 / /data/sub rw - tmpfs tmpfs rw\n"
    looked = look(monkeypatch, root, world(volume("data"), volume("other"), container("web")), f"8:1 {root}/volumes/data/_data /srv/ftp", inside=inside)
    assert held(looked)["volume:data"] == ("its data is mounted at /srv/ftp as well", "")
    reasons = {(hold.reason, hold.via) for hold in looked.holds if hold.holder == "volume:other"}
    assert reasons == {
        ("its data is mounted at /data as well in the mount namespace of container web", f"container:{WEB}"),
        ("tmpfs is mounted at /data/sub in the mount namespace of container web", f"container:{WEB}"),
    }


def test_the_mount_of_a_volumes_device_is_the_engines(monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    shows = volume("shows", driver="local/bind", device=f"{root}/volumes/data/_data")
    os.makedirs(f"{root}/volumes/shows/_data")
    looked = look(monkeypatch, root, world(volume("data"), shows), f"8:1 {root}/volumes/data/_data {root}/volumes/shows/_data")
    assert held(looked) == {"volume:shows": (f"{root}/volumes/data/_data is mounted at {root}/volumes/shows/_data", "volume:shows")}
    assert {found.name: found.shows for found in looked.volumes} == {"data": (), "shows": ("volume:data",)}


def test_a_path_that_leads_through_a_volumes_device_is_of_both_volumes(monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    """As long as a container has it; then the device is mounted there, and afterwards it is not."""
    os.makedirs(f"{root}/volumes/shows/_data")
    shows, again = (volume(name, driver="local/bind", device=f"{root}/volumes/{of}/_data") for name, of in (("shows", "data"), ("again", "shows")))
    user = container("user", binds=(f"{root}/volumes/shows/_data",))
    looked = look(monkeypatch, root, world(volume("data"), shows, again, user), f"8:1 {root}/volumes/data/_data {root}/volumes/shows/_data")
    assert {name for name, _path in looked.containers[0].reaches} == {"volume:data", "volume:shows"}
    assert {found.name: found.shows for found in looked.volumes} == {"data": (), "shows": ("volume:data",), "again": ("volume:data", "volume:shows")}
    assert set(held(looked)) == {"volume:shows"}


@pytest.mark.parametrize(
    ("line", "via"),
    [
        ("8:1 {root}/volumes/data/_data {root}/volumes/shows/_data", "volume:shows"),
        # Somebody's own mount there, before the engine's: what it shows is not the device.
        ("8:1 /srv {root}/volumes/shows/_data", ""),
    ],
)
def test_only_the_engines_own_mount_ends_with_its_volumes_containers(monkeypatch: pytest.MonkeyPatch, root: str, line: str, via: str) -> None:
    os.makedirs(f"{root}/volumes/shows/_data")
    shows = volume("shows", driver="local/bind", device=f"{root}/volumes/data/_data")
    assert held(look(monkeypatch, root, world(volume("data"), shows), line.format(root=root)))["volume:shows"][1] == via


@pytest.mark.parametrize(("propagation", "stays"), [("", True), ("shared:3", False), ("master:3", False)])
def test_a_copy_of_the_engines_mount_that_does_not_go_with_it_keeps_the_volume(
    monkeypatch: pytest.MonkeyPatch, root: str, propagation: str, stays: bool
) -> None:
    os.makedirs(f"{root}/volumes/shows/_data")
    engines = f"2 1 8:1 {root}/volumes/data/_data {root}/volumes/shows/_data rw shared:3 - ext4 a rw\n"
    copies = f"3 1 8:1 {root}/volumes /mnt rw {propagation} - ext4 a rw\n4 3 8:1 {root}/volumes/data/_data /mnt/shows/_data rw {propagation} - ext4 a rw\n"
    table = mounts.Table(f"1 0 8:1 / / rw shared:1 - ext4 a rw\n{engines}{copies}")
    monkeypatch.setattr(mounts, "collect", lambda _before=None, _owners=(): table)
    shows = volume("shows", driver="local/bind", device=f"{root}/volumes/data/_data")
    looked = path_uses.complete(world(volume("data"), shows), Storage(root, "overlay2", "graphdriver", {}), root)
    kept = {hold.holder for hold in looked.holds if not hold.via}
    assert kept == ({"volume:data", "volume:shows"} if stays else set())


def test_a_link_that_lies_in_a_volume_keeps_it_as_what_it_leads_to(monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    os.symlink("../../other/_data/sub", f"{root}/volumes/data/_data/current")
    os.symlink(f"{root}/volumes/data/_data/current", f"{root}/link")
    looked = look(monkeypatch, root, world(volume("data"), volume("other"), container("user", binds=(f"{root}/link/x",))))
    assert {name for name, _path in looked.containers[0].reaches} == {"volume:data", "volume:other"}


def test_links_in_a_circle_lead_nowhere_and_no_further(monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    os.symlink(f"{root}/b", f"{root}/a")
    os.symlink(f"{root}/a", f"{root}/b")
    looked = look(monkeypatch, root, world(volume("data"), container("user", binds=(f"{root}/a", f"{root}/volumes/data/_data"))))
    assert [name for name, _path in looked.containers[0].reaches] == ["volume:data"]


def test_the_root_file_system_of_a_container_that_another_one_binds_keeps_it(monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    os.makedirs(f"{root}/rootfs/overlay2/{WEB}")
    user = container("user", binds=(f"{root}/rootfs/overlay2/{WEB}/etc",))
    looked = look(monkeypatch, root, world(container("web"), user), f"0:60 / {root}/rootfs/overlay2/{WEB}")
    assert [one.reaches for one in looked.containers if one.name == "user"] == [((f"container:{WEB}", f"{root}/rootfs/overlay2/{WEB}/etc"),)]
    assert held(looked) == {}


def test_a_link_in_the_place_of_a_volumes_folder_is_no_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    os.makedirs(f"{root}/volumes/link")
    os.symlink("../data/_data", f"{root}/volumes/link/_data")
    looked = look(monkeypatch, root, world(volume("data"), volume("link")))
    assert held(looked) == {"volume:link": (f"its folder _data is a link to {root}/volumes/data/_data", "")}
    assert {found.name: found.shows for found in looked.volumes} == {"data": (), "link": ("volume:data",)}


@pytest.mark.parametrize(
    ("bind", "owner"),
    [
        ("{root}/volumes/data/_data", "volume:data"),
        ("{root}/volumes/data/_data/", "volume:data"),
        ("{root}/volumes/data", "volume:data"),
        ("{root}/volumes/other/../data/_data/sub/deep", "volume:data"),
        ("{root}/link", "volume:data"),
        ("{root}/containers/" + WEB + "/hostname", f"container:{WEB}"),
        ("{root}/volumes", ""),
        ("{root}/volumes/", ""),
        ("{root}", ""),
        ("/", ""),
        ("{root}/volumes-of-mine/data/_data", ""),
    ],
)
def test_a_bind_of_one_objects_folder_counts_and_one_of_all_does_not(monkeypatch: pytest.MonkeyPatch, root: str, bind: str, owner: str) -> None:
    os.symlink(f"{root}/volumes/data/_data/sub", f"{root}/link")
    path = bind.format(root=root)
    looked = look(monkeypatch, root, world(volume("data"), container("web"), container("user", binds=(path,))))
    (found,) = [one.reaches for one in looked.containers if one.name == "user"]
    assert found == (((owner, path),) if owner else ())


def test_of_several_binds_of_one_object_the_same_is_told_each_time() -> None:
    """Engines list a container's mounts in another order each time."""
    binds = tuple(f"/var/lib/docker/volumes/data/_data{below}" for below in ("/sub", "", "/a"))
    for given in itertools.permutations(binds):
        looked = path_uses.complete(world(volume("data"), container("user", binds=given)), None, "/var/lib/docker")
        assert looked.containers[0].reaches == (("volume:data", "/var/lib/docker/volumes/data/_data"),)


def test_another_machines_paths_are_compared_as_they_are_written() -> None:
    shows = volume("shows", driver="local/bind", device="/var/lib/docker/volumes/other/_data")
    user = container("user", binds=("/var/lib/docker/volumes/data/_data/x/",))
    looked = path_uses.complete(world(volume("data"), shows, user, service_binds=frozenset({"/var/lib/docker/volumes/third/_data"})), None, "/var/lib/docker")
    assert looked.containers[0].reaches == (("volume:data", "/var/lib/docker/volumes/data/_data/x/"),)
    assert [found.shows for found in looked.volumes] == [(), ("volume:other",)]
    assert held(looked) == {"volume:third": ("used by a swarm service", "swarm")}


def test_an_overlay_of_a_users_claims_no_volume_by_the_path_that_he_gives_it(root: str) -> None:
    """He could keep every volume whose name he knows from being removed, and with them all that they stand on."""
    if not attacker.works():
        pytest.skip("not here: no user namespaces for users")
    below = f"{root}/volumes/data/_data"
    command = [*attacker.IN_USER_NAMESPACE, os.path.realpath(sys.executable), "-c", attacker.FAKED_OVERLAY, f"/{Path(root).parts[1]}", below]
    with subprocess.Popen(command, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        assert f"lowerdir={below}/lower" in Path(f"/proc/{process.pid}/mountinfo").read_text(), "the attack itself does not work"
        looked = path_uses.complete(world(volume("data")), Storage(root, "overlay2", "graphdriver", {}), root)
        assert held(looked) == {}


def test_an_overlay_in_another_user_namespace_keeps_what_it_really_has(monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    """An engine without root, or a container that a manager runs so, may well be made of a volume's data."""
    own, overlay = "1 0 8:1 / / rw - ext4 a rw\n", f"9 2 0:60 / /mnt rw - overlay o rw,lowerdir={root}/volumes/data/_data:/srv,upperdir=up"
    for before, kept in (("", True), (f"3 2 0:50 / {os.path.dirname(root)} rw - tmpfs none rw\n", False), ("3 2 8:2 /x /srv rw - ext4 b rw\n", True)):
        table = mounts.Table(own, [(f"2 1 8:1 / / rw - ext4 a rw\n{before}{overlay}", (), True)])
        monkeypatch.setattr(mounts, "collect", lambda _before=None, _owners=(), table=table: table)
        looked = path_uses.complete(world(volume("data")), Storage(root, "overlay2", "graphdriver", {}), root)
        assert held(looked) == ({"volume:data": ("the overlay at /mnt has its data", "")} if kept else {}), before
