# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docker_clean on engines from 20.10 to 28.5, both image stores, each with its newest and its oldest API, and with the SDK that spoke the oldest."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, Set, Tuple

import pytest

from tests.fleet import Dirt, Fleet, HostSpec, dirty
from tests.integration.support import CONTAINERD, Ansible, on_all, start, state

#: Engine 20.10 answers the API of Docker 1.9; later ones that of Docker 1.12 and newer.
SPECS = [
    HostSpec("e20-5", root="bullseye"),
    HostSpec("e20-24"),
    HostSpec("e26", root="trixie"),
    HostSpec("e28", root="forky"),
    HostSpec("ctd26", root="trixie", daemon_json=CONTAINERD),
    HostSpec("ctd28", root="forky", daemon_json=CONTAINERD),
]
OLD = ("e20-5", "e20-24")
OLDEST = "{{ '1.21' if inventory_hostname in ['e20-5', 'e20-24'] else '1.24' }}"
WISHES: Dict[str, Any] = {
    "containers": {"volumes": True, "older_than": "0"},
    "images": {"scope": "unused"},
    "volumes": {"scope": "anonymous"},
    "networks": {},
    "state_dir": "",
}
#: What the last release for API 1.21 to 1.23 needs, of its own time (docker-py issue 3256).
SDK = ("docker==7.0.0", "requests<2.32", "urllib3<2.3")


@pytest.fixture(scope="module")
def fleet(here: None) -> Iterator[Fleet]:
    with start(SPECS) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def dirt(fleet: Fleet) -> Dict[str, Dirt]:
    return on_all(fleet, lambda host: dirty(host, "small", scale=0.02, log_bytes=100_000))


def objects(result: Dict[str, Any]) -> Set[Tuple[str, str, str]]:
    return {(entry["kind"], entry["id"], entry["name"]) for entry in result["removed"]}


def reasons(result: Dict[str, Any]) -> Set[Tuple[str, str, int]]:
    return {(entry["kind"], entry["reason"], entry["count"]) for entry in result["kept"]}


def test_the_oldest_api_has_the_plan_and_the_deed_of_the_newest(fleet: Fleet, dirt: Dict[str, Dirt], ansible: Ansible) -> None:
    before = on_all(fleet, state)
    newest = ansible.module("docker_clean", WISHES, check=True)
    oldest = ansible.module("docker_clean", {**WISHES, "api_version": OLDEST}, check=True)
    for host in fleet:
        made = dirt[host.name]
        assert not oldest[host.name]["failed"], oldest[host.name]
        assert objects(oldest[host.name]) == objects(newest[host.name])
        assert reasons(oldest[host.name]) == reasons(newest[host.name])
        assert {made.stopped_new, made.unused_image, made.unused_network, made.anonymous_volume} <= {name for _k, _i, name in objects(newest[host.name])}
    assert on_all(fleet, state) == before
    done = ansible.module("docker_clean", {**WISHES, "api_version": OLDEST}, hosts="!e20-24")
    for host in fleet:
        if host.name == "e20-24":  # for the old SDK
            continue
        made, now = dirt[host.name], state(host)
        assert not done[host.name]["failed"], done[host.name]
        assert objects(done[host.name]) == objects(newest[host.name])
        assert {made.running, made.chatty, made.kept_container} <= set(now["containers"])
        assert {*made.running_tags, made.kept_image} <= now["tags"]
        # Below API 1.42 the engine's own prune would have taken the named ones.
        assert {made.named_volume, made.kept_volume, made.used_named_volume} <= now["volumes"]
        assert made.anonymous_volume not in now["volumes"]
    again = ansible.module("docker_clean", WISHES, hosts="!e20-24", check=True)
    assert not any(result["changed"] for result in again.values()), again


def test_the_sdk_that_spoke_the_oldest_api_does_the_same(
    fleet: Fleet, dirt: Dict[str, Dirt], ansible: Ansible, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """docker 7.0.0 is the last one for API 1.21; it lies on the host, as where somebody pinned it for their engine."""
    host = fleet["e20-24"]
    folder = tmp_path_factory.mktemp("sdk")
    pure = ["--only-binary=:all:", "--platform", "any", "--implementation", "py", "--abi", "none", "--python-version", "3.9"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check", "--target", str(folder), *pure, *SDK]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no package index to have {SDK[0]} from: {done.stderr[-300:]}")
    target = host.path("/opt/sdk")
    shutil.copytree(folder, target)
    wishes = {**WISHES, "sdk": "host", "api_version": "1.21"}
    tasks = [
        {"name": "ask", "fleetclean.docker.docker_disk_report": {"include": [], "sdk": "host", "api_version": "1.21"}},
        {"name": "plan", "fleetclean.docker.docker_clean": wishes, "check_mode": True},
        {"name": "carried", "fleetclean.docker.docker_clean": {**WISHES, "sdk": "carried"}, "check_mode": True},
        {"name": "clean", "fleetclean.docker.docker_clean": wishes},
        {"name": "again", "fleetclean.docker.docker_clean": wishes},
    ]
    play = [{"hosts": host.name, "gather_facts": False, "environment": {"PYTHONPATH": "/opt/sdk"}, "tasks": tasks}]
    playbook = Path(folder, "play.yml")
    playbook.write_text(json.dumps(play))
    run = ansible.run(["ansible-playbook", "-i", ansible.inventory, str(playbook)])
    assert run.code == 0, run.text
    result = {line["task"]: line["result"] for line in run.lines}
    engine = result["ask"]["engine"]
    assert (engine["sdk"]["source"], engine["sdk"]["version"], engine["api_version"]) == ("host", "7.0.0", "1.21")
    assert objects(result["plan"]) == objects(result["carried"]) == objects(result["clean"])
    made, now = dirt[host.name], state(host)
    assert result["clean"]["changed"] and not result["again"]["changed"]
    assert {made.running, made.chatty, made.big_log, made.kept_container} == set(now["containers"])
    assert {*made.running_tags, made.kept_image} <= now["tags"]
    assert {made.named_volume, made.kept_volume} <= now["volumes"] and made.anonymous_volume not in now["volumes"]
    assert made.used_network in now["networks"] and made.unused_network not in now["networks"]


@pytest.mark.parametrize(("version", "hosts", "words"), [("1.20", "e20-24", "1.21"), ("1.23", "e28", "1.24"), ("1.99", "e28", "1.51")])
def test_an_api_that_the_engine_does_not_speak_is_one_clear_error(fleet: Fleet, dirt: Dict[str, Dirt], ansible: Ansible, version: str, hosts: str, words: str) -> None:
    result = ansible.module("docker_clean", {"images": {}, "api_version": version}, hosts=hosts)[hosts]
    assert result["failed"] and "Traceback" not in str(result)
    assert "api" in result["msg"].lower() and words in result["msg"], result["msg"]
