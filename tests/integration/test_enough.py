# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Watermarks: nothing while enough is free; else the cheapest loss first, until it is enough, and not one object more."""

from __future__ import annotations

import json
import os
from typing import Any, Dict, Iterator, List

import pytest

from tests.fleet import Fleet, Host, HostSpec
from tests.fleet.dirty import load_image
from tests.integration.support import CONTAINERD, Ansible, on_all, start, state
from tests.integration.things import base, by_itself, clear, container

MB = 1 << 20
#: Large ones, old ones, small ones: the engine is told them in this order, so the first is the least recently used.
IMAGES = {f"app:{number}": size * MB for number, size in enumerate((6, 1, 9, 3, 12, 2, 7, 5))}
WISHES: Dict[str, Any] = {"containers": {}, "images": {"scope": "unused"}, "volumes": {"scope": "unused"}, "networks": {}}
#: How far what comes free may be from what was said; engines write their own databases meanwhile.
PRECISION = {"ext4": 0.01, "xfs": 0.01, "btrfs": 0.10}


@pytest.fixture(scope="module")
def fleet(here: None) -> Iterator[Fleet]:
    with start(
        [
            HostSpec("ext4"),
            HostSpec("xfs", filesystem="xfs", root="trixie"),
            HostSpec("btrfs", filesystem="btrfs", driver="btrfs"),
            HostSpec("ctd", root="forky", daemon_json=CONTAINERD),
        ]
    ) as hosts:
        yield hosts


def fill(host: Host) -> None:
    """Images of known sizes, one of them without a name, containers that stopped, a volume and a network."""
    for name, size in IMAGES.items():
        load_image(host, name, {"data": os.urandom(size)})
    load_image(host, "nameless:1", {"data": os.urandom(4 * MB)})
    load_image(host, "nameless:1", {"data": os.urandom(4 * MB), "other": b"x"})
    host.must("POST", "/images/nameless:1/tag?repo=app&tag=named")
    host.must("DELETE", "/images/nameless:1")
    host.api("POST", "/networks/create", {"Name": "unused"})
    host.must("POST", "/volumes/create", {"Name": "unused"})
    host.path(f"{host.data_root}/volumes/unused/_data/file").write_bytes(os.urandom(3 * MB))
    host.exec(["sync", "--file-system", host.data_root])


#: Each host its own, of a variable of that name.
TARGET = "{{ targets[inventory_hostname] }}"


def available(ansible: Ansible, hosts: str = "all") -> Dict[str, int]:
    found = ansible.module("docker_disk_report", {"include": ["filesystem"]}, hosts=hosts)
    return {name: result["filesystems"][0]["available"] for name, result in found.items()}


def objects(entries: List[Dict[str, Any]]) -> List[Any]:
    return [(entry["kind"], entry["id"], entry["name"], entry["reason"].split(" for ")[0]) for entry in entries]


@pytest.mark.parametrize("megabytes", [1, 30])
def test_not_one_object_more_than_is_enough(fleet: Fleet, ansible: Ansible, megabytes: int) -> None:
    on_all(fleet, fill)
    free = available(ansible)
    targets = {name: bytes_ + megabytes * MB for name, bytes_ in free.items()}
    wishes = {**WISHES, "free_target": TARGET}
    checks = ansible.module("docker_clean", wishes, check=True, targets=targets)
    runs = ansible.module("docker_clean", wishes, targets=targets)
    agains = ansible.module("docker_clean", wishes, targets=targets)
    for host in fleet:
        check, done, again = checks[host.name], runs[host.name], agains[host.name]
        assert not done["failed"], done
        assert (check["target_met"], done["target_met"]) == (True, True), (host.name, check, done)
        assert objects(done["removed"]) == objects(check["removed"]), (host.name, free[host.name], check, done)
        assert done["free_after"] >= targets[host.name]
        slack = max(done["reclaimed_bytes"], done["planned_bytes"]) * PRECISION[host.spec.filesystem or "ext4"] + 131072
        assert abs(done["planned_bytes"] - done["reclaimed_bytes"]) <= slack, (host.name, done["planned_bytes"], done["reclaimed_bytes"])
        # Without the last object it would not have been enough.
        assert done["reclaimed_bytes"] - done["removed"][-1]["bytes"] < megabytes * MB + slack
        assert "unused" in state(host)["networks"], "a network frees nothing"
        assert (again["changed"], again["removed"], again["target_met"]) == (False, [], True)


def test_the_cheapest_loss_comes_first_and_the_least_recently_used(fleet: Fleet, ansible: Ansible) -> None:
    on_all(fleet, fill)
    check = ansible.module("docker_clean", {**WISHES, "free_target": "100%"}, check=True)
    for host in fleet:
        result = check[host.name]
        assert result["target_met"] is False
        kinds = [entry["kind"] if not entry["reason"].startswith("dangling") else "dangling" for entry in result["removed"] if entry["kind"] != "tag"]
        order = ["container", "dangling", "build_cache", "image", "volume"]
        assert kinds == sorted(kinds, key=order.index), host.name
        assert {"dangling", "image", "volume"} <= set(kinds), host.name


def test_inodes_run_out_as_well(fleet: Fleet, ansible: Ansible) -> None:
    host = fleet["ext4"]
    fill(host)
    for number in range(4):
        load_image(host, f"many:{number}", {f"{number}/{file}": b"" for file in range(500)})
    report = ansible.module("docker_disk_report", {"include": ["filesystem"]}, hosts="ext4")["ext4"]["filesystems"][0]
    wishes = {"images": {"scope": "unused"}, "free_target_inodes": str(report["inodes_available"] + 1200)}
    check = ansible.module("docker_clean", wishes, hosts="ext4", check=True)["ext4"]
    done = ansible.module("docker_clean", wishes, hosts="ext4")["ext4"]
    assert objects(done["removed"]) == objects(check["removed"])
    assert (check["target_met"], done["target_met"]) == (True, True), (check, done)
    after = ansible.module("docker_disk_report", {"include": ["filesystem"]}, hosts="ext4")["ext4"]["filesystems"][0]
    assert report["inodes_available"] + 1200 <= after["inodes_available"] < report["inodes_available"] + 1200 + 600
    assert {"many:3"} <= state(host)["tags"], "not one object more"
    both = {**wishes, "free_target": "1%", "only_below_inodes": "101"}
    idle = ansible.module("docker_clean", both, hosts="ext4")["ext4"]
    assert (idle["changed"], idle["target_met"]) == (False, True)


def test_a_filesystem_without_a_number_of_inodes_has_enough(fleet: Fleet, ansible: Ansible) -> None:
    result = ansible.module("docker_clean", {"images": {"scope": "unused"}, "free_target_inodes": "50%"}, hosts="btrfs")["btrfs"]
    assert (result["changed"], result["target_met"], result["failed"]) == (False, True, False)


def test_a_target_that_cannot_be_met_is_no_failure(fleet: Fleet, ansible: Ansible) -> None:
    for result in ansible.module("docker_clean", {**WISHES, "free_target": "100%"}).values():
        assert (result["failed"], result["target_met"]) == (False, False)
    for result in ansible.module("docker_clean", {**WISHES, "free_target": "100%"}).values():
        assert (result["changed"], result["failed"], result["target_met"]) == (False, False, False)


def test_what_lies_on_another_disk_is_no_help(fleet: Fleet, ansible: Ansible) -> None:
    """Volumes on a disk of their own: none goes for a target that it cannot help to meet."""
    hosts = [fleet["ext4"], fleet["btrfs"]]
    names = ":".join(host.name for host in hosts)
    ansible.module("docker_clean", WISHES, hosts=names)
    for host in hosts:
        host.exec(["mount", "-t", "tmpfs", "tmpfs", f"{host.data_root}/volumes"])
    try:
        on_all(hosts, fill)
        targets = {name: bytes_ + 500 * MB for name, bytes_ in available(ansible, names).items()}
        wishes = {**WISHES, "free_target": TARGET}
        checks = ansible.module("docker_clean", wishes, hosts=names, check=True, targets=targets)
        runs = ansible.module("docker_clean", wishes, hosts=names, targets=targets)
        for host in hosts:
            name, check, done = host.name, checks[host.name], runs[host.name]
            assert (check["target_met"], done["target_met"]) == (False, False), name
            assert objects(check["removed"]) == objects(done["removed"]), name
            assert {entry["kind"] for entry in done["removed"]} == {"image"}, "the volume stays"
            assert "unused" in state(host)["volumes"]
            slack = done["reclaimed_bytes"] * PRECISION[host.spec.filesystem or "ext4"] + 131072
            assert abs(check["planned_bytes"] - done["reclaimed_bytes"]) <= slack, (name, check["planned_bytes"], done["reclaimed_bytes"])
            assert sum(done["reclaimed_by_kind"].values()) >= done["reclaimed_bytes"] * 0.9, "also where space comes free late"
            host.must("DELETE", "/volumes/unused")
    finally:
        for host in hosts:
            host.exec(["umount", "-l", f"{host.data_root}/volumes"])


def test_the_role_in_check_mode_decides_as_if_the_logs_were_cut(fleet: Fleet, ansible: Ansible) -> None:
    host = fleet["ext4"]
    clear(host)
    base(host)
    ident = container(host, "chatter", "base/app:1", ["/bin/busybox", "true"], run="done")
    fill(host)
    long_log(host, ident)
    free = available(ansible, "ext4")["ext4"]
    wishes = {
        "cleanup_profile": "standard", "cleanup_images_older_than": "0", "cleanup_images_dangling_older_than": "0", "cleanup_containers_older_than": "0",
        "cleanup_logs_larger_than": "2MB", "cleanup_logs_keep": "1MB",
    }
    # The log alone makes enough room: with it nothing is low, in check mode as well.
    idle = ansible.play("clean", "--check", hosts="ext4", **wishes, cleanup_only_below=str(free + 10 * MB))
    assert idle.code == 0, idle.text
    cleaned = idle.task("Remove what the profile allows")["ext4"]
    assert (cleaned["changed"], cleaned["removed"]) == (False, []), cleaned
    assert 18 * MB < cleaned["assumed_bytes"] == idle.task("Shorten logs in place")["ext4"]["reclaimed_bytes"]
    # It makes some of it: the container goes first, of whose log a megabyte is left, then images.
    target = {**wishes, "cleanup_free_target": str(free + 32 * MB)}
    check = ansible.play("clean", "--check", hosts="ext4", **target)
    run = ansible.play("clean", hosts="ext4", **target)
    said, done = (play.task("Remove what the profile allows")["ext4"] for play in (check, run))
    assert which(said) == which(done) and {"container", "image"} <= {entry["kind"] for entry in done["removed"]}, (said, done)
    assert (said["target_met"], done["target_met"]) == (True, True)
    assert abs(said["free_after"] - done["free_after"]) < (done["free_after"] - free) * 0.01 + 131072, (said, done)
    assert abs(said["free_before"] - done["free_before"]) < 131072
    # Host, before, after, what came (or would come) free: alike, and the log once.
    rows = [next(line for line in play.table if line.startswith("ext4")).split() for play in (check, run)]
    assert rows[0][:9] == rows[1][:9], rows
    assert abs(float(rows[0][9]) - float(rows[1][9])) < 0.5, rows


# -- several filesystems on a host -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several(here: None) -> Iterator[Fleet]:
    """Hosts whose data lies on four and three filesystems; without a controller, which knows nothing of this."""
    with start(
        [
            HostSpec("disks", ssh=False, disks={"/var/lib/docker/volumes": "xfs:400M", "/var/lib/docker/overlay2": "btrfs:1G", "/srv/disk": "ext4:300M"},
                     links={"/var/lib/docker/containers": "/srv/disk/containers"}),
            HostSpec("stores", root="forky", daemon_json=CONTAINERD, ssh=False,
                     disks={"/var/lib/docker/containerd": "ext4:600M", "/var/lib/docker/volumes": "btrfs:400M"}),
        ]
    ) as hosts:
        yield hosts


@pytest.fixture(params=["disks", "stores"])
def one(several: Fleet, request: pytest.FixtureRequest) -> Iterator[Host]:
    if request.param not in {host.name for host in several}:
        pytest.skip("not made: its root (make roots)")
    host = several[request.param]
    yield host
    clear(host)


def long_log(host: Host, ident: str) -> None:
    """Give a container a log of 21 MB."""
    log = host.path(host.must("GET", f"/containers/{ident}/json")["LogPath"])
    log.write_text("".join(json.dumps({"log": f"{'x' * 1000}\n", "stream": "stdout", "time": "2024-03-01T12:00:00Z"}) + "\n" for _ in range(20_000)))
    host.exec(["sync", "--file-system", str(host.data_root)])


def spread(host: Host) -> None:
    """Images, a stopped container with a long log, whose volume nobody else has, and a volume of nobody's: something large on each filesystem."""
    base(host)
    for name, size in (("app:1", 40), ("app:2", 20)):
        load_image(host, name, {"data": os.urandom(size * MB)})
    for name, size in (("old", 30), ("held", 25)):
        host.must("POST", "/volumes/create", {"Name": name})
        host.path(f"{host.data_root}/volumes/{name}/_data/file").write_bytes(os.urandom(size * MB))
    long_log(host, container(host, "user", "base/app:1", ["/bin/busybox", "true"], run="done", Binds=["held:/held"]))
    for place in (host.data_root, *host.spec.disks):
        host.exec(["sync", "--file-system", place])


def which(result: Dict[str, Any]) -> List[Any]:
    return [(entry["kind"], entry["id"]) for entry in result["removed"]]


def by_mount(result: Dict[str, Any]) -> Dict[str, Dict[str, Any]]:
    return {entry["mount_point"]: entry for entry in result["filesystems"]}


def kind_of(host: Host, mount_point: str) -> str:
    return host.spec.disks.get(mount_point, "ext4").partition(":")[0]


def test_said_and_freed_agree_on_each_filesystem(one: Host) -> None:
    spread(one)
    check = by_itself(one, check=True, **WISHES, state_dir="")
    done = by_itself(one, **WISHES, state_dir="")
    assert not done["failed"], done
    assert which(check) == which(done)
    said, freed = by_mount(check), by_mount(done)
    assert set(said) == {one.data_root, *one.spec.disks}
    for place, entry in freed.items():
        # What engines write of their own besides, on whatever filesystem their records are.
        slack = entry["reclaimed_bytes"] * PRECISION[kind_of(one, place)] + 131072
        assert abs(said[place]["planned_bytes"] - entry["reclaimed_bytes"]) <= slack, (place, said[place], entry)
        assert entry["free_after"] - entry["free_before"] >= entry["reclaimed_bytes"] - slack
        if place != one.data_root:
            assert entry["reclaimed_bytes"] > 19 * MB, (place, entry)
    assert done["reclaimed_bytes"] == sum(entry["reclaimed_bytes"] for entry in freed.values())
    assert check["planned_bytes"] == sum(entry["planned_bytes"] for entry in said.values())
    assert sum(done["reclaimed_by_kind"].values()) >= done["reclaimed_bytes"] * 0.95


@pytest.mark.parametrize(("one", "more", "goes"), [("disks", 45, {"old", "user", "held"}), ("stores", 20, {"old"})], indirect=["one"])
def test_what_lies_on_a_low_filesystem_goes_and_nothing_else(one: Host, more: int, goes: set[str]) -> None:
    """The volumes' filesystem alone is low: no image goes for it, and the container only where its volume has to."""
    spread(one)
    full = f"{one.data_root}/volumes"
    one.fill(full, 5 * MB)
    try:
        before = by_itself(one, "docker_disk_report", include=["filesystem"], state_dir="")["filesystems"]
        room = next(entry["available"] for entry in before if entry["mount_point"] == full)
        assert by_itself(one, **WISHES, state_dir="", only_below=str(room))["changed"] is False, "nothing is low"
        wishes = {**WISHES, "state_dir": "", "only_below": str(room + MB), "free_target": str(room + more * MB)}
        check, done = by_itself(one, check=True, **wishes), by_itself(one, **wishes)
        assert not done["failed"], done
        assert which(check) == which(done)
        assert {entry["name"] for entry in done["removed"]} == goes, done
        assert (check["target_met"], done["target_met"]) == (True, True), (check, done)
        assert by_mount(done)[full]["free_after"] >= room + more * MB
        assert {"app:1", "app:2"} <= state(one)["tags"]
        again = by_itself(one, **wishes)
        assert (again["changed"], again["target_met"]) == (False, True), again
    finally:
        one.path(f"{full}/.filler").unlink()


@pytest.mark.parametrize(("one", "goes"), [("disks", []), ("stores", ["user"])], indirect=["one"])
def test_what_has_no_more_than_records_on_a_low_filesystem_does_not_go_for_it(one: Host, goes: List[str]) -> None:
    """Each image has some KB in the data root's ``image``; all else lies elsewhere, but the log of one host's container."""
    spread(one)
    one.fill(one.data_root, 20 * MB)
    try:
        check = by_itself(one, check=True, **WISHES, state_dir="", only_below="2%", free_target="50%")
        assert ([entry["name"] for entry in check["removed"]], check["target_met"]) == (goes, False), check
        done = by_itself(one, **WISHES, state_dir="", only_below="2%", free_target="50%")
        assert which(done) == which(check)
        assert {"app:1", "app:2"} <= state(one)["tags"] and {"old", "held"} <= state(one)["volumes"]
    finally:
        one.path(f"{one.data_root}/.filler").unlink()


def test_a_log_behind_a_link_is_cut_and_small_ones_are_no_failure(several: Fleet) -> None:
    host = several["disks"]
    spread(host)
    try:
        small = container(host, "small", "base/app:1", ["/bin/echo", "hello"], run="done")
        report = by_itself(host, "docker_disk_report", include=["logs"], measure="exact", state_dir="")
        assert report["usage"]["logs"]["disk_bytes"] > 20 * MB
        check = by_itself(host, "docker_log_truncate", check=True, keep="1MiB", larger_than="10MB", state_dir="")
        free = host.free_bytes("/srv/disk")
        done = by_itself(host, "docker_log_truncate", keep="1MiB", larger_than="10MB", state_dir="")
        assert [entry["name"] for entry in done["logs"]] == [entry["name"] for entry in check["logs"]] == ["user"], done
        assert abs(host.free_bytes("/srv/disk") - free - done["reclaimed_bytes"]) < 65536 and done["reclaimed_bytes"] > 18 * MB
        assert small not in {entry["container"] for entry in done["logs"]}
    finally:
        clear(host)
