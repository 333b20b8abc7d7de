# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docker_clean on a live host: what changes between plan and act, watermarks, and the engine's older APIs."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, Iterator, List

import pytest

from tests.fleet import Dirt, Fleet, Host, HostSpec, dirty
from tests.fleet.dirty import load_image
from tests.integration.support import CONTAINERD, REPOSITORY, Ansible, start, state
from tests.integration.things import both_stores, by_itself

sys.path.insert(0, str(REPOSITORY / "playbooks/collections"))

from ansible_collections.fleetclean.docker.plugins.module_utils import engine as engines
from ansible_collections.fleetclean.docker.plugins.module_utils import policy, removal, snapshot

EVERYTHING = policy.Wishes(
    containers=policy.ContainerWish(volumes=True),
    images=policy.ImageWish(scope="unused"),
    volumes=policy.VolumeWish(scope="unused"),
    networks=policy.NetworkWish(),
)


@pytest.fixture(scope="module")
def fleet(here: None) -> Iterator[Fleet]:
    with start([HostSpec("one"), HostSpec("ctd", root="forky", daemon_json=CONTAINERD)]) as hosts:
        yield hosts


@pytest.fixture()
def host(request: pytest.FixtureRequest, fleet: Fleet) -> Host:
    return fleet[getattr(request, "param", "one")]


@pytest.fixture()
def dirt(host: Host) -> Dirt:
    return dirty(host, "small", log_bytes=1_000_000)


def connect(host: Host) -> engines.Engine:
    """The collection's own connection, from here to the host's engine."""
    nothing = dict.fromkeys(("tls_hostname", "ca_path", "client_cert", "client_key"))
    socket = host.path("/run/docker.sock")
    return engines.connect(
        {"docker_host": f"unix://{socket}", "api_version": "auto", "timeout": 60, "tls": False, "validate_certs": False, **nothing}
    )


def plan(engine: engines.Engine) -> policy.Plan:
    wanted = snapshot.Wanted(images=True, volumes=True, networks=True, ages=True)
    return policy.decide(snapshot.take(engine, wanted, None), EVERYTHING)


def do(engine: engines.Engine, steps: policy.Plan) -> removal.Outcome:
    outcome = removal.Outcome()
    removal.carry_out(engine, steps, 4, lambda: None, None, outcome)
    return outcome


@both_stores
def test_what_came_into_use_after_the_plan_stays(host: Host, dirt: Dirt) -> None:
    engine = connect(host)
    steps = plan(engine)
    planned = {(step.kind, step.name) for step in steps.steps}
    assert ("container", dirt.stopped_new) in planned
    assert ("image", dirt.unused_image) in planned
    assert ("volume", dirt.named_volume) in planned
    assert ("network", dirt.unused_network) in planned
    # Now others use it: a stopped container runs again, a new one takes image, volume and network.
    host.must("POST", f"/containers/{dirt.never_started}/start")
    image = host.must("GET", f"/images/{dirt.unused_image}/json")["Id"]
    host.must(
        "POST",
        "/containers/create?name=newcomer",
        {
            "Image": dirt.unused_image,
            "Cmd": ["/bin/busybox", "true"],
            "HostConfig": {"Binds": [f"{dirt.named_volume}:/data"], "NetworkMode": dirt.unused_network},
        },
    )
    outcome = do(engine, steps)
    now = state(host)
    assert dirt.never_started in now["containers"]
    assert {"newcomer", dirt.never_started} <= set(now["containers"])
    assert dirt.unused_image in now["tags"] and image in now["images"]
    assert dirt.named_volume in now["volumes"]
    assert dirt.unused_network in now["networks"]
    assert outcome.failed == []
    stays = {kept.name: kept.reason for kept in outcome.kept}
    assert {dirt.unused_image, dirt.named_volume, dirt.unused_network} <= set(stays)
    assert dirt.stopped_new not in now["containers"], "one that stays does not stop the rest"
    host.must("DELETE", "/containers/newcomer?force=1")


@both_stores
def test_what_is_gone_already_counts_as_done(host: Host, dirt: Dirt) -> None:
    engine = connect(host)
    steps = plan(engine)
    host.must("DELETE", f"/containers/{dirt.stopped_new}")
    host.must("DELETE", f"/volumes/{dirt.named_volume}")
    outcome = do(engine, steps)
    assert outcome.failed == []
    assert {dirt.stopped_new, dirt.named_volume} <= {step.name for step in outcome.gone}
    assert plan(connect(host)).steps == ()


@both_stores
def test_a_tag_that_names_another_image_now_stays(host: Host) -> None:
    first = load_image(host, "moving:1", {"a": b"first"})
    engine = connect(host)
    steps = plan(engine)
    assert ("image", "moving:1") in {(step.kind, step.name) for step in steps.steps}
    second = load_image(host, "moving:1", {"a": b"second"})
    assert first != second
    do(engine, steps)
    assert host.must("GET", "/images/moving:1/json")["Id"] == second


def test_an_image_that_got_another_tag_stays(host: Host) -> None:
    load_image(host, "tagged:1", {"a": b"tagged"})
    engine = connect(host)
    steps = plan(engine)
    host.must("POST", "/images/tagged:1/tag?repo=wanted&tag=now")
    outcome = do(engine, steps)
    assert "wanted:now" in state(host)["tags"]
    assert "it has got another tag" in {kept.reason for kept in outcome.kept} or host.spec.daemon_json


def test_nothing_happens_while_enough_is_free(host: Host, dirt: Dirt) -> None:
    before = state(host)
    wishes = {"containers": {}, "images": {"scope": "unused"}, "only_below": "10%"}
    result = by_itself(host, **wishes)
    assert (result["changed"], result["removed"], result["failed"]) == (False, [], False)
    assert state(host) == before
    result = by_itself(host, **wishes | {"only_below": "1GB", "free_target": "50%"})
    assert (result["changed"], result["target_met"]) == (False, True)


def test_a_target_is_met_with_the_least_loss(host: Host, dirt: Dirt) -> None:
    free = by_itself(host, "docker_disk_report", include=["filesystem"])["filesystems"][0]["available"]
    wishes: Dict[str, Any] = {"containers": {}, "images": {"scope": "unused"}, "free_target": free + 1_000_000}
    check = by_itself(host, check=True, **wishes)
    assert check["target_met"]
    result = by_itself(host, **wishes)
    assert result["target_met"], result
    assert result["free_after"] >= free + 1_000_000
    kinds: List[str] = [entry["kind"] for entry in result["removed"]]
    images = len(plan(connect(host)).steps)
    assert images, "something was left: not one object more than needed"
    assert kinds == sorted(kinds, key=lambda kind: kind != "container"), "the cheapest loss first"
    impossible = by_itself(host, **wishes | {"free_target": "100%"})
    assert (impossible["failed"], impossible["target_met"]) == (False, False)


@pytest.mark.parametrize("version", ["1.21", "1.41"])
def test_the_same_plan_with_every_api_of_the_engine(fleet: Fleet, version: str) -> None:
    host = fleet["one"]
    dirty(host, "small", log_bytes=1_000_000)
    wishes = {"containers": {"older_than": "0"}, "images": {"scope": "unused"}, "volumes": {"scope": "unused"}, "networks": {}}
    newest = by_itself(host, check=True, **wishes)
    pinned = by_itself(host, check=True, **wishes, api_version=version)
    assert not pinned["failed"], pinned
    expected = {(entry["kind"], entry["id"]) for entry in newest["removed"]}
    assert expected
    assert {(entry["kind"], entry["id"]) for entry in pinned["removed"]} == expected
    report = by_itself(host, "docker_disk_report", api_version=version)
    assert not report["failed"], report
    assert report["usage"]["images"]["count"] > 0
    done = by_itself(host, **wishes, api_version=version)
    assert not done["failed"], done
    assert {(entry["kind"], entry["id"]) for entry in done["removed"]} == expected


def test_what_an_image_was_used_for_is_remembered_when_its_container_is_gone(host: Host, dirt: Dirt) -> None:
    image = host.must("GET", f"/containers/{dirt.stopped_new}/json")["Image"]
    wishes = {"containers": {}, "images": {"scope": "unused", "older_than": "7d"}}
    check = by_itself(host, check=True, **wishes)
    assert check["changed"]
    query = "import sqlite3; print(*sqlite3.connect('/var/lib/fleetclean/history.sqlite').execute('select object from last_use'))"
    host.exec(["rm", "-rf", "/var/lib/fleetclean"])
    assert by_itself(host, **wishes)["changed"]
    assert dirt.stopped_new not in state(host)["containers"]
    assert image in host.exec([host.python, "-c", query]).stdout
    assert not by_itself(host, **wishes)["changed"]


def test_a_killed_run_is_finished_by_the_next(fleet: Fleet, ansible: Ansible) -> None:
    host = fleet["one"]
    dirt = dirty(host, "small", log_bytes=1_000_000)
    for number in range(60):
        load_image(host, f"many:{number}", {"n": str(number).encode() * 1000})
    wishes = {
        "containers": {"volumes": True},
        "images": {"scope": "unused"},
        "volumes": {"scope": "unused"},
        "networks": {},
        "parallel": 1,
    }
    before = len(state(host)["images"])
    with ThreadPoolExecutor(max_workers=1) as pool:
        running = pool.submit(ansible.module, "docker_clean", wishes, "one")
        while len(host.must("GET", "/images/json?all=1")) == before and not running.done():
            time.sleep(0.02)
        host.exec(["pkill", "-9", "-x", "python3"], check=False)
        killed = running.result()["one"]
    left = len(state(host)["images"])
    assert killed["failed"], "the module ended before it could be killed"
    assert left < before, "it was killed before it had begun"
    result = ansible.module("docker_clean", wishes, hosts="one")["one"]
    assert not result["failed"], result
    assert result["changed"]
    assert plan(connect(host)).steps == ()
    assert dirt.running in state(host)["running"]
