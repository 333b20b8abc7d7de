# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole thread over SSH, on every storage driver that runs here and on four engines.

The tests of this file are one story on one fleet, in order: report, careful, standard, full.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator

import pytest

from tests.fleet import Dirt, Fleet, HostSpec, dirty
from tests.fleet.dirty import load_image
from tests.integration.support import CONTAINERD, Ansible, on_all, start, state

SPECS = [
    HostSpec("ext4", "ext4", "overlay2"),
    HostSpec("btrfs", "btrfs", "overlay2"),
    HostSpec("d-btrfs", "btrfs", "btrfs"),
    HostSpec("d-vfs", "ext4", "vfs"),
    HostSpec("d-overlay", "ext4", "overlay"),
    HostSpec("d-fuse", "ext4", "fuse-overlayfs"),
    HostSpec("e20-5", "ext4", "overlay2", root="bullseye"),
    HostSpec("e26", "xfs", "overlay2", root="trixie"),
    HostSpec("e28-ctd", "ext4", "overlay2", root="forky", daemon_json=CONTAINERD),
]
LOG = 20_000_000
LOGS = {"cleanup_logs_larger_than": "10MB", "cleanup_logs_keep": "1MB"}


@pytest.fixture(scope="module")
def fleet(here: None) -> Iterator[Fleet]:
    with start(SPECS) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def dirt(fleet: Fleet) -> Dict[str, Dirt]:
    return on_all(fleet, lambda host: dirty(host, "small", log_bytes=LOG, aged=True))


def assert_wanted_stays(before: Dict[str, Any], after: Dict[str, Any], dirt: Dirt) -> None:
    """A running container, its image with all its tags, named volumes, what carries the label, predefined networks."""
    for name in (dirt.running, dirt.chatty, dirt.kept_container):
        assert after["containers"][name] == before["containers"][name]
    assert after["running"] >= before["running"]
    assert {*dirt.running_tags, dirt.kept_image} <= after["tags"]
    assert {dirt.used_named_volume, dirt.named_volume, dirt.kept_volume} <= after["volumes"]
    assert {"bridge", "host", "none", dirt.kept_network, dirt.used_network} & before["networks"] <= after["networks"]


def removed(run: Any) -> Dict[str, list]:
    results = run.task("Remove what the profile allows")
    return {host: [(entry["kind"], entry["id"], entry["name"]) for entry in result["removed"]] for host, result in results.items()}


def test_report_tells_each_host_and_changes_nothing(fleet: Fleet, dirt: Dict[str, Dirt], ansible: Ansible) -> None:
    before = on_all(fleet, state)
    run = ansible.play("report")
    assert run.code == 0, run.text
    results = run.task("choose the storage driver's paths")
    for host in fleet:
        result = results[host.name]
        assert result["engine"]["root_dir_proven"], result["engine"]
        assert result["paths"]["layers"] and result["paths"]["image_metadata"], result["paths"]
        assert all(host.path(path).exists() for paths in result["paths"].values() for path in paths)
        assert result["usage"]["logs"]["disk_bytes"] >= LOG
        assert result["usage"]["images"]["logical_bytes"] > 0
        assert result["usage"]["volumes"]["count"] >= 4
        assert result["filesystems"][0]["type"] == host.spec.filesystem
        assert any(line.startswith(host.name[:20]) for line in run.table)
    assert on_all(fleet, state) == before
    assert not any(run.changed().values())


def story(fleet: Fleet, dirt: Dict[str, Dirt], ansible: Ansible, profile: str, **variables: Any) -> None:
    """Check mode lists what the real run removes, in its order; what is wanted stays; a second run changes nothing."""
    before = on_all(fleet, state)
    check = ansible.play("clean", "--check", "--diff", cleanup_profile=profile, **LOGS, **variables)
    assert check.code == 0, check.text
    assert on_all(fleet, state) == before
    real = ansible.play("clean", cleanup_profile=profile, **LOGS, **variables)
    assert real.code == 0, real.text
    promised, done = removed(check), removed(real)
    for host in fleet:
        assert sorted(done[host.name]) == sorted(promised[host.name])
        assert real.task("Remove what the profile allows")[host.name]["failures"] == []
    if profile != "standard":  # the other two show it well enough
        again = ansible.play("clean", cleanup_profile=profile, **LOGS, **variables)
        assert again.code == 0, again.text
        assert not any(again.changed().values()), (again.table, [line for line in again.lines if line["result"].get("changed")])
    after = on_all(fleet, state)
    if profile != "full":
        for host in fleet:
            assert_wanted_stays(before[host.name], after[host.name], dirt[host.name])


def test_careful(fleet: Fleet, dirt: Dict[str, Dirt], ansible: Ansible) -> None:
    story(fleet, dirt, ansible, "careful")
    for host in fleet:
        now = state(host)
        assert dirt[host.name].stopped_old not in now["containers"]
        assert dirt[host.name].stopped_new in now["containers"]
        assert dirt[host.name].anonymous_volume in now["volumes"]


def test_logs_are_cut_and_keep_their_newest_lines(fleet: Fleet, dirt: Dict[str, Dirt], ansible: Ansible) -> None:
    """careful has cut them: nothing is left to cut, and the engine still tells the newest lines."""
    again = ansible.module("docker_log_truncate", {"larger_than": "10MB", "keep": "1MB"})
    for host in fleet:
        assert (again[host.name]["changed"], again[host.name]["logs"]) == (False, [])
        ident = state(host)["containers"][dirt[host.name].big_log]
        status, text = host.api("GET", f"/containers/{ident}/logs?stdout=1")
        assert status == 200
        assert 900_000 < len(text) < 1_200_000, len(text)


def test_standard(fleet: Fleet, dirt: Dict[str, Dirt], ansible: Ansible) -> None:
    story(fleet, dirt, ansible, "standard")


def test_full_refuses_without_a_word_of_confirmation(fleet: Fleet, dirt: Dict[str, Dirt], ansible: Ansible) -> None:
    before = on_all(fleet, state)
    run = ansible.play("clean", cleanup_profile="full")
    assert run.code != 0
    assert "set cleanup_full_confirmed: true" in run.text
    assert on_all(fleet, state) == before


def test_full_leaves_an_empty_engine_that_works(fleet: Fleet, dirt: Dict[str, Dirt], ansible: Ansible) -> None:
    story(fleet, dirt, ansible, "full", cleanup_full_confirmed=True)
    for host in fleet:
        now, kept = state(host), dirt[host.name]
        assert set(now["containers"]) == {kept.kept_container}
        # The container that its label keeps needs its image.
        assert now["tags"] == {kept.kept_image, kept.base_image}
        assert now["volumes"] == {kept.kept_volume}
    run = ansible.play("clean", cleanup_profile="full", cleanup_full_confirmed=True, cleanup_keep_labels=[])
    assert run.code == 0, run.text
    for host in fleet:
        now = state(host)
        assert (now["containers"], now["images"], now["volumes"]) == ({}, set(), set())
        load_image(host, "after/full:1", {})
        made = host.must("POST", "/containers/create", {"Image": "after/full:1", "Cmd": ["/bin/busybox", "true"], "HostConfig": {"NetworkMode": "none"}})
        host.must("POST", f"/containers/{made['Id']}/start")
        assert host.must("POST", f"/containers/{made['Id']}/wait")["StatusCode"] == 0
