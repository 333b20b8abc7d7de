# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The classic recipe, `docker rm -f $(docker ps -aq); docker rmi -f $(docker images -aq)`: profile full does all of it, on every driver that runs here."""

from __future__ import annotations

from typing import Any, Dict, Iterator, Set

import pytest

from tests.fleet import Fleet, Host, HostSpec
from tests.fleet.dirty import build_image, load_image
from tests.fleet.errors import FleetError
from tests.integration.support import CONTAINERD, Ansible, on_all, start, state
from tests.integration.things import container, until

SPECS = [
    HostSpec("overlay2", "ext4", "overlay2"),
    HostSpec("overlay", "ext4", "overlay"),
    HostSpec("vfs", "ext4", "vfs"),
    HostSpec("btrfs", "btrfs", "btrfs"),
    HostSpec("fuse", "ext4", "fuse-overlayfs"),
    HostSpec("containerd", "ext4", root="forky", daemon_json=CONTAINERD),
]
FULL: Dict[str, Any] = {"cleanup_profile": "full", "cleanup_full_confirmed": True, "cleanup_keep_labels": []}


@pytest.fixture(scope="module")
def fleet(here: None) -> Iterator[Fleet]:
    with start(SPECS) as hosts:
        yield hosts


def crowd(host: Host) -> None:
    """All that makes plain calls stumble."""
    image = load_image(host, "crowd/app:1", {"a": b"crowd"})
    for number in range(2):
        host.must("POST", f"/images/crowd/app:1/tag?repo=other/app{number}&tag=latest")
    container(host, "paused", "crowd/app:1", run="on")
    host.must("POST", "/containers/paused/pause")
    container(host, "loops", "other/app0", ["/bin/false"], run="on", RestartPolicy={"Name": "always"})
    container(host, "removes-itself", image, run="on", AutoRemove=True)
    container(host, "always", "crowd/app:1", ["/bin/true"], run="done", RestartPolicy={"Name": "unless-stopped"})
    container(host, "managed", "crowd/app:1", run="on", labels={"io.kubernetes.pod.name": "web"})
    # Its image has no name any more, and a child.
    lost = load_image(host, "crowd/lost:1", {"b": b"lost"})
    container(host, "of-a-lost-image", "crowd/lost:1", run="on")
    build_image(host, "crowd/child:1", "FROM crowd/lost:1\nLABEL child=yes\n", {})
    load_image(host, "crowd/lost:1", {"b": b"found"})
    assert lost in state(host)["images"] or host.spec.daemon_json
    host.must("POST", "/networks/create", {"Name": "crowd", "Driver": "bridge"})
    container(host, "on-a-network", "crowd/app:1", run="on", network="crowd", Binds=["crowd:/data"])
    try:
        build_image(host, "crowd/cached:1", "FROM crowd/app:1\nCOPY c /c\n", {"c": b"c"}, buildkit=True)
    except FleetError:
        # Engine 20.10 wants its client for BuildKit.
        host.exec(["sh", "-ec", "mkdir -p /run/fleet/c; cd /run/fleet/c; echo 'FROM crowd/app:1\nCOPY c /c' >Dockerfile; touch c; docker build -q ."],
                  env={"DOCKER_BUILDKIT": "1", "PATH": "/usr/bin:/bin"})
    assert host.must("GET", "/system/df")["BuildCache"]
    container(host, "with-anonymous", "crowd/app:1", run="on", Mounts=[{"Type": "volume", "Target": "/data"}])


def ids(result: Dict[str, Any], kind: str) -> Set[str]:
    return {entry["id"] for entry in result["removed"] if entry["kind"] == kind}


def test_full_is_the_classic_recipe_and_leaves_the_engine_empty_and_working(fleet: Fleet) -> None:
    ansible = Ansible(str(fleet.inventory))
    on_all(fleet, crowd)
    before = on_all(fleet, state)
    run = ansible.play("clean", **FULL)
    assert run.code == 0, run.text
    results = run.task("Remove what the profile allows")
    for host in fleet:
        assert results[host.name]["failures"] == []
        # What `docker ps -aq` and `docker images -aq` list.
        assert ids(results[host.name], "container") == set(before[host.name]["containers"].values())
        assert ids(results[host.name], "image") == before[host.name]["images"]
        now = state(host)
        assert (now["containers"], now["images"], now["tags"], now["volumes"]) == ({}, set(), set(), set()), host.name
        assert now["networks"] == {"bridge", "host", "none"} & before[host.name]["networks"]
        assert not host.must("GET", "/system/df")["BuildCache"]
    on_all(fleet, works)


def works(host: Host) -> None:
    """The engine loads, builds and runs, with a volume and a network."""
    load_image(host, "after/full:1", {"a": b"after"})
    build_image(host, "after/full:2", "FROM after/full:1\nRUN /bin/echo built > /built\n", {})
    host.must("POST", "/networks/create", {"Name": "after", "Driver": "bridge"})
    ident = container(host, "after", "after/full:2", ["/bin/sh", "-c", "cat /a /built; cat /built > /data/b"], run="done", network="after", Binds=["after:/data"])
    assert host.must("GET", f"/containers/{ident}/json")["State"]["ExitCode"] == 0
    assert until(lambda: host.path(f"{host.data_root}/volumes/after/_data/b").read_text()) == "built\n"
