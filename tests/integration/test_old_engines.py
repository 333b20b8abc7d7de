# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docker_clean on engines from 20.10 to 28.5, both image stores, each with its newest and its oldest API; what our client is told, and by ssh."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set, Tuple

import docker
import pytest

from tests.fleet import Dirt, Fleet, HostSpec, dirty
from tests.integration.support import CONTAINERD, REPOSITORY, Ansible, on_all, start, state

sys.path.insert(0, str(REPOSITORY / "playbooks/collections"))

from ansible_collections.fleetclean.docker.plugins.module_utils import engine as engines
from ansible_collections.fleetclean.docker.plugins.module_utils import fields

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


def agrees(own: Any, raw: Any) -> bool:
    """Whether all that our client gives stands in what the SDK gives; it gives what it reads, and no more."""
    if own is True and isinstance(raw, dict):
        return True  # a field of which only matters that it is there
    if isinstance(own, dict) and isinstance(raw, dict):
        return all(name in raw and agrees(value, raw[name]) for name, value in own.items())
    if isinstance(own, list) and isinstance(raw, list):
        return len(own) == len(raw) and all(map(agrees, own, raw))
    return bool(own == raw)


def in_order(answer: Any) -> Any:
    """An answer with its lists in one order: the engine's own is that of a table in memory. Without the texts that count seconds."""
    if isinstance(answer, dict):
        return {name: in_order(value) for name, value in answer.items() if name not in ("Status", "SystemTime")}
    if isinstance(answer, list):
        return sorted(map(in_order, answer), key=lambda entry: json.dumps(entry, sort_keys=True) if not isinstance(entry, dict) else str(
            entry.get("Id") or entry.get("ID") or entry.get("Name") or json.dumps(entry, sort_keys=True)))
    return answer


def test_our_client_and_the_sdk_are_told_the_same(fleet: Fleet, dirt: Dict[str, Dirt]) -> None:
    """The Docker SDK is the witness: written by others, and no part of what is tested."""
    for host in fleet:
        address = f"unix://{host.path('/run/docker.sock')}"
        own = engines.connect({"docker_host": address, "api_version": "auto", "timeout": 60})
        witness = docker.APIClient(base_url=address, version="auto", timeout=60)
        told: List[Tuple[str, Any, Any, fields.Shape]] = [
            ("version", own.version, witness.version(), fields.VERSION),
            ("info", own.info, witness.info(), fields.INFO),
            ("containers", own.containers(), witness.containers(all=True), fields.CONTAINERS),
            ("containers with sizes", own.containers(size=True), witness.containers(all=True, size=True), fields.CONTAINERS),
            ("images", own.images(), witness.images(all=True), fields.IMAGES),
            ("volumes", own.volumes(), witness.volumes()["Volumes"], fields.List(fields.VOLUME)),
            ("networks", own.networks(), witness.networks(), fields.NETWORKS),
            ("disk usage", own.disk_usage("container", "image", "volume", "build-cache"), witness.df(), fields.DISK_USAGE),
            *((f"container {entry['Id']}", own.container(entry["Id"]), witness.inspect_container(entry["Id"]), fields.CONTAINER_DETAILS)
              for entry in witness.containers(all=True)),
            *((f"image {entry['Id']}", own.image(entry["Id"]), witness.inspect_image(entry["Id"]), fields.IMAGE_DETAILS)
              for entry in witness.images(all=True)),
        ]
        witness.close()
        for what, ours, theirs, shape in told:
            ours, theirs = in_order(ours), in_order(theirs)
            assert ours and agrees(ours, theirs), (host.name, what, ours, theirs)
            # Nothing is missing that the SDK was told.
            assert ours == in_order(fields.check(theirs, shape)), (host.name, what)


def test_an_engine_behind_ssh_has_the_same_plan_through_the_installed_sdk(fleet: Fleet, dirt: Dict[str, Dirt], ansible: Ansible) -> None:
    """A host gets to itself by a real ssh; its SDK is a copy of this Python's. paramiko, which that imports and does not use here, is empty.

    A host of Debian 14 has no ssh by itself, and says so.
    """
    hosts = [fleet["ctd26"], fleet["e28"]]
    packages = Path(str(docker.__file__)).parents[1]
    config = "Host *\n  IdentityFile /run/key\n  UserKnownHostsFile /run/known\n"
    for host in hosts:
        target = host.path("/run/sdk")
        for name in ("docker", "requests", "urllib3", "idna", "certifi", "charset_normalizer"):
            shutil.copytree(packages / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        (target / "paramiko.py").touch()
        host.path("/run/key").touch(0o600)
        host.path("/run/key").write_bytes((fleet.directory / "id_ed25519").read_bytes())
        host.path("/run/known").write_bytes((fleet.directory / "known_hosts").read_bytes())
        host.exec(["mkdir", "-p", "-m", "700", "/root/.ssh"])
        host.path("/root/.ssh/config").write_text(config)
    by_ssh = {"docker_host": "ssh://root@{{ ansible_host }}"}
    playbook = Path(fleet.directory, "ssh.yml")
    tasks: List[Dict[str, Any]] = [
        {"name": "unknown", "fleetclean.docker.docker_disk_report": {"include": [], "docker_host": "ssh://root@localhost"}},
        {"name": "plan", "fleetclean.docker.docker_clean": {**WISHES, **by_ssh}, "check_mode": True},
        {"name": "here", "fleetclean.docker.docker_clean": WISHES, "check_mode": True},
    ]
    playbook.write_text(json.dumps([{"hosts": "ctd26:e28", "gather_facts": False, "environment": {"PYTHONPATH": "/run/sdk"}, "ignore_errors": True, "tasks": tasks}]))
    run = ansible.run(["ansible-playbook", "-i", ansible.inventory, str(playbook)])
    assert run.code == 0, run.text
    for host in hosts:
        unknown = run.task("unknown")[host.name]
        if not host.path("/usr/bin/ssh").exists():
            assert unknown["failure"] == "no_sdk" and "Install openssh-client there" in unknown["msg"], unknown
            continue
        # A host that OpenSSH does not know is not talked to.
        assert unknown["failure"] == "engine_down" and "Host key verification failed. " in unknown["msg"], unknown
        plan, here = run.task("plan")[host.name], run.task("here")[host.name]
        assert (objects(plan), reasons(plan)) == (objects(here), reasons(here))
        assert plan["free_before"]  # its disk was found to be this one
        # No session is left.
        assert "dial-stdio" not in host.exec(["sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"]).stdout


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
    done = ansible.module("docker_clean", {**WISHES, "api_version": OLDEST})
    for host in fleet:
        made, now = dirt[host.name], state(host)
        assert not done[host.name]["failed"], done[host.name]
        assert objects(done[host.name]) == objects(newest[host.name])
        assert {made.running, made.chatty, made.kept_container} <= set(now["containers"])
        assert {*made.running_tags, made.kept_image} <= now["tags"]
        # Below API 1.42 the engine's own prune would have taken the named ones.
        assert {made.named_volume, made.kept_volume, made.used_named_volume} <= now["volumes"]
        assert made.anonymous_volume not in now["volumes"]
    again = ansible.module("docker_clean", WISHES, check=True)
    assert not any(result["changed"] for result in again.values()), again


@pytest.mark.parametrize(("version", "hosts", "words"), [("1.20", "e20-24", "1.21"), ("1.23", "e28", "1.24"), ("1.99", "e28", "1.51")])
def test_an_api_that_the_engine_does_not_speak_is_one_clear_error(fleet: Fleet, dirt: Dict[str, Dirt], ansible: Ansible, version: str, hosts: str, words: str) -> None:
    result = ansible.module("docker_clean", {"images": {}, "api_version": version}, hosts=hosts)[hosts]
    assert result["failed"] and "Traceback" not in str(result)
    assert "api" in result["msg"].lower() and words in result["msg"], result["msg"]
