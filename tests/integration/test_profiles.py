# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole thread over SSH, on every storage driver that runs here and on four engines.

The tests of this file are one story on one fleet, in order: report, careful, standard, full.
"""

from __future__ import annotations

import socket
import time
from contextlib import closing
from typing import Any, Dict, Iterator, List

import pytest

from tests.fleet import Dirt, Fleet, Host, HostSpec, dirty
from tests.fleet.dirty import load_image
from tests.integration.support import CONTAINERD, Ansible, Run, on_all, start, state

SPECS = [
    HostSpec("ext4", "ext4", "overlay2"),
    HostSpec("btrfs", "btrfs", "overlay2"),
    HostSpec("d-btrfs", "btrfs", "btrfs"),
    HostSpec("d-vfs", "ext4", "vfs", root="trixie"),
    HostSpec("d-overlay", "ext4", "overlay"),
    HostSpec("d-fuse", "ext4", "fuse-overlayfs"),
    HostSpec("e20-5", "ext4", "overlay2", root="bullseye"),
    HostSpec("e26", "xfs", "overlay2", root="trixie"),
    HostSpec("e28-ctd", "ext4", "overlay2", root="forky", daemon_json=CONTAINERD),
]
LOG = 20_000_000
#: Where a cut leaves `docker logs --tail` and `-f` stale: ext4 under engines 26.1 and 28.5.
STALE = ("d-vfs", "e28-ctd")
CURE = "cleanup_logs_restart: engine with cleanup_logs_live_restore: enable (no container stops) or cleanup_logs_restart: containers"
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


def shows(host: Host, container: str, query: str, lines: int) -> bool:
    """Whether `docker logs` shows so many lines within some seconds: a stale reader is silent, or hangs."""
    with closing(socket.socket(socket.AF_UNIX)) as link:
        link.connect(str(host.socket))
        # An HTTP/1.0 client gets the stream as it is.
        link.sendall(f"GET /containers/{container}/logs?stdout=1&stderr=1&{query} HTTP/1.0\r\n\r\n".encode())
        answer, end = b"", time.monotonic() + 3
        while answer.partition(b"\r\n\r\n")[2].count(b"\n") < lines:
            link.settimeout(max(0.01, end - time.monotonic()))
            try:
                piece = link.recv(1 << 16)
            except TimeoutError:
                return False
            if not piece:
                return False
            answer += piece
    return True


def silent(host: Host, dirt: Dirt) -> List[str]:
    """Of which containers `docker logs` does not show what it has to, by option. Who talks all the time is followed for a while."""
    return [
        f"{host.name} {name} {query}"
        for name in (dirt.chatty, dirt.big_log)
        for query in ("tail=1", f"since={int(time.time()) - 7 * 86400}", "follow=1&tail=1")
        if not shows(host, name, query, 10 if name == dirt.chatty and "follow" in query else 1)
    ]


def story(fleet: Fleet, dirt: Dict[str, Dirt], ansible: Ansible, profile: str, **variables: Any) -> Run:
    """Check mode lists what the real run removes, in its order; what is wanted stays; a second run changes nothing. The real run."""
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
    return real


def test_careful(fleet: Fleet, dirt: Dict[str, Dirt], ansible: Ansible) -> None:
    """Where space is left, all readers work afterwards, and the table says which logs stay for that."""
    run = story(fleet, dirt, ansible, "careful")
    text = " ".join(" ".join(run.table).split())
    assert text.count("of logs stay, since docker logs --tail and -f would be stale: noisy; ways out:") == len(STALE), text
    assert text.count(f"{CURE}; new containers with max-size; cleanup_logs_stale_readers: allow") == len(STALE), text
    assert [found for found in on_all(fleet, lambda host: silent(host, dirt[host.name])).values() if found] == []
    for host in fleet:
        now = state(host)
        assert dirt[host.name].stopped_old not in now["containers"]
        assert dirt[host.name].stopped_new in now["containers"]
        assert dirt[host.name].anonymous_volume in now["volumes"]


def test_logs_are_cut_and_keep_their_newest_lines(fleet: Fleet, dirt: Dict[str, Dirt], ansible: Ansible) -> None:
    """careful has cut them: nothing is left to cut, and the engine still tells the newest lines. Where readers would be stale, all of it is there."""
    again = ansible.module("docker_log_truncate", {"larger_than": "10MB", "keep": "1MB"})
    for host in fleet:
        result = again[host.name]
        spared = [(entry["name"], entry["readers"], entry["reclaimed_bytes"]) for entry in result["logs"]]
        assert (result["changed"], spared) == (False, [(dirt[host.name].big_log, "spared", 0)] if host.name in STALE else [])
        ident = state(host)["containers"][dirt[host.name].big_log]
        status, text = host.api("GET", f"/containers/{ident}/logs?stdout=1")
        assert status == 200
        if host.name in STALE:
            assert len(text) > 0.8 * LOG
        else:
            assert 900_000 < len(text) < 1_200_000, len(text)


def test_with_2_percent_left_space_comes_and_the_table_says_whose_readers_are_stale_and_what_cures_them(
    fleet: Fleet, dirt: Dict[str, Dirt], ansible: Ansible
) -> None:
    hosts, limit = [fleet[name] for name in STALE], ",".join(STALE)
    options = {"larger_than": "10MB", "keep": "1MB"}
    fillers = [host.fill(host.data_root, leave=60_000_000) for host in hosts]
    try:
        before = {host.name: host.free_bytes(host.data_root) for host in hosts}
        told = ansible.module("docker_log_truncate", options, hosts=limit, check=True)
        run = ansible.play("clean", hosts=limit, cleanup_profile="careful", **LOGS)
        assert run.code == 0, run.text
        text = " ".join(" ".join(run.table).split())
        assert text.count(f"docker logs --tail and -f are stale for noisy; cured by {CURE}") == len(STALE), text
        for host in hosts:
            assert host.free_bytes(host.data_root) - before[host.name] > 0.9 * LOG
            done = run.task("Shorten logs in place")[host.name]
            assert done["logs"] == told[host.name]["logs"]
            assert "warnings" not in done
            assert not shows(host, dirt[host.name].big_log, "tail=1", 1), "its readers work: there is nothing to be cured"
    finally:
        for host, filler in zip(hosts, fillers):
            host.path(filler).unlink()

    # And the cure: the engine alone starts again.
    was = {host.name: [host.must("GET", f"/containers/{name}/json")["State"]["Pid"] for name in sorted(state(host)["running"])] for host in hosts}
    cured = ansible.module("docker_log_truncate", {**options, "restart": "engine", "live_restore": "enable"}, hosts=limit)
    for host in hosts:
        # The fleet goes by this to stop an engine.
        host.path("/run/fleet/engine.pid").write_text(host.path("/run/docker.pid").read_text())
        assert (cured[host.name]["restarted"], cured[host.name]["live_restore_file"]) == (["engine"], "/etc/docker/daemon.json")
        assert silent(host, dirt[host.name]) == []
        assert [host.must("GET", f"/containers/{name}/json")["State"]["Pid"] for name in sorted(state(host)["running"])] == was[host.name]


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
