# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Watermarks: nothing while enough is free; else the cheapest loss first, until it is enough, and not one object more."""

from __future__ import annotations

import os
from typing import Any, Dict, Iterator, List

import pytest

from tests.fleet import Fleet, Host, HostSpec
from tests.fleet.dirty import load_image
from tests.integration.support import CONTAINERD, Ansible, on_all, start, state

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
