# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docker_clean and what belongs to somebody: swarm, compose, buildx, plugins, other volume drivers; and names that look like something else."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Dict, Iterator, Optional
from urllib.parse import quote

import pytest
import yaml

from tests.fleet import Fleet, Host, HostSpec
from tests.fleet.dirty import load_image, tar
from tests.integration.support import CONTAINERD, REPOSITORY, Ansible, start, state
from tests.integration.test_clean import connect
from tests.integration.things import base, both_stores, by_itself, clear, container, kept, removed, until, volume_driver

sys.path.insert(0, str(REPOSITORY / "playbooks/collections"))

from ansible_collections.fleetclean.docker.plugins.module_utils import policy as policies
from ansible_collections.fleetclean.docker.plugins.module_utils import snapshot

#: As much as can be asked for without a word about what others look after.
EVERYTHING: Dict[str, Any] = {
    "containers": {"volumes": True},
    "images": {"scope": "unused"},
    "volumes": {"scope": "unused"},
    "networks": {},
    "build_cache": {"scope": "all"},
    "state_dir": "",
}
LIVE = ["created", "exited", "dead", "running", "paused", "restarting"]


@pytest.fixture(scope="module")
def fleet(here: None) -> Iterator[Fleet]:
    with start([HostSpec("one"), HostSpec("ctd", root="forky", daemon_json=CONTAINERD)]) as hosts:
        yield hosts


@pytest.fixture()
def host(request: pytest.FixtureRequest, fleet: Fleet) -> Iterator[Host]:
    """A host with an image to run, and nothing else before and after."""
    found = fleet[getattr(request, "param", "one")]
    base(found)
    yield found
    found.api("POST", "/swarm/leave?force=1")
    until(lambda: found.must("GET", "/info")["Swarm"]["LocalNodeState"] == "inactive")
    clear(found)


def clean(host: Host, through: Optional[Ansible] = None, **wishes: Any) -> Dict[str, Any]:
    """The module's result; a failure is the test's. ``through``: as Ansible runs it."""
    asked = {**EVERYTHING, **wishes}
    result = through.module("docker_clean", asked, hosts=host.name)[host.name] if through else by_itself(host, **asked)
    assert not result["failed"], str((result["msg"], result["failures"]))[:3000]
    return result


# -- swarm -------------------------------------------------------------------------------------


def serve(host: Host, image: str) -> Dict[str, Any]:
    """A swarm of one node with a service that runs; its specification."""
    host.must("POST", "/swarm/init", {"ListenAddr": "127.0.0.1:2377", "AdvertiseAddr": "127.0.0.1"})
    mounts = [{"Type": "volume", "Source": "service-data", "Target": "/data"}]
    task = {
        "ContainerSpec": {"Image": image, "Command": ["/bin/sleep", "1000000"], "Mounts": mounts, "StopSignal": "SIGKILL"},
        "Networks": [{"Target": "host"}],
    }
    spec = {"Name": "web", "TaskTemplate": task, "Mode": {"Replicated": {"Replicas": 1}}}
    host.must("POST", "/services/create", spec)
    until(lambda: running(host, image))
    return spec


def update(host: Host, spec: Dict[str, Any], image: str) -> None:
    """Let the service have another image, and wait for its task."""
    service = host.must("GET", "/services")[0]
    spec["TaskTemplate"]["ContainerSpec"]["Image"] = image
    host.must("POST", f"/services/{service['ID']}/update?version={service['Version']['Index']}", spec)
    until(lambda: running(host, image))


def availability(host: Host, word: str) -> None:
    """``drain``: swarm takes its tasks away from this node; ``active``: it brings them back."""
    node = host.must("GET", "/nodes")[0]
    host.must("POST", f"/nodes/{node['ID']}/update?version={node['Version']['Index']}", {**node["Spec"], "Availability": word})
    until(lambda: bool(state(host)["running"]) == (word == "active"))


def running(host: Host, image: str) -> bool:
    return any(entry["Image"] == image and entry["State"] == "running" for entry in host.must("GET", "/containers/json"))


@both_stores
def test_what_is_swarms_stays_also_what_no_task_has_at_the_moment(host: Host) -> None:
    for tag in ("app/web:1", "app/web:2", "app/web:3", "app/other:1"):
        load_image(host, tag, {"a": tag.encode()})
    spec = serve(host, "app/web:2")
    update(host, spec, "app/web:3")
    for what in ("configs", "secrets"):
        host.must("POST", f"/{what}/create", {"Name": "wanted", "Data": "YQ=="})
    host.must("POST", "/networks/create", {"Name": "of-services", "Driver": "overlay"})
    before = state(host)
    assert len(before["containers"]) == 2, "the task's, and the one of the task before"
    result = clean(host, containers={"volumes": True, "states": LIVE})
    now = state(host)
    assert now["containers"] == before["containers"]
    assert "app/web:3" in now["tags"], "what the service wants next"
    assert "app/web:2" in now["tags"], "what it would be rolled back to"
    assert {"app/web:1", "app/other:1"} <= set(removed(result, "image"))
    assert "service-data" in now["volumes"]
    assert now["networks"] == before["networks"] >= {"ingress", "docker_gwbridge", "of-services"}
    assert kept(result, "container") == {"managed by swarm": 2}
    assert kept(result, "network")["swarm's"] == 1
    assert [len(host.must("GET", f"/{what}")) for what in ("configs", "secrets")] == [1, 1]
    # With its tasks elsewhere, the service alone knows of its images and its volume.
    availability(host, "drain")
    for ident in before["containers"].values():
        host.must("DELETE", f"/containers/{ident}")
    result = clean(host)
    assert {"app/web:2", "app/web:3"} == state(host)["tags"]
    assert kept(result, "image") == {"used by a swarm service": 2}
    assert kept(result, "volume") == {"used by a swarm service": 1}
    availability(host, "active")
    update(host, spec, "app/web:2")


def test_full_takes_swarms_containers_and_leaves_its_networks(host: Host) -> None:
    """`orchestrated: clean` is the word for it; swarm makes its containers anew, from images that may be gone."""
    load_image(host, "app/web:1", {"a": b"web"})
    serve(host, "app/web:1")
    availability(host, "drain")
    result = clean(host, containers={"volumes": True, "states": LIVE}, images={"scope": "all"}, orchestrated="clean")
    now = state(host)
    assert (now["containers"], now["images"], now["volumes"]) == ({}, set(), set())
    assert {"ingress", "docker_gwbridge"} <= now["networks"]
    assert any(name.startswith("web.1.") for name in removed(result, "container"))


# -- compose -----------------------------------------------------------------------------------


@both_stores
def test_a_compose_project_that_is_stopped_keeps_its_networks_and_volumes(host: Host) -> None:
    project = {"com.docker.compose.project": "shop"}
    gone = {"com.docker.compose.project": "gone"}
    for name, labels in (("shop_default", project), ("shop_idle", project), ("gone_default", gone)):
        host.must("POST", "/networks/create", {"Name": name, "Driver": "bridge", "Labels": labels})
    for name, labels in (("shop_db", project), ("shop_idle", project), ("gone_db", gone)):
        host.must("POST", "/volumes/create", {"Name": name, "Labels": labels})
    load_image(host, "shop/web:1", {"a": b"shop"})
    container(host, "shop-web-1", "shop/web:1", ["/bin/true"], run="done", labels=project, network="shop_default", Binds=["shop_db:/data"])
    result = clean(host, containers={"older_than": "1d"})
    now = state(host)
    assert set(now["containers"]) == {"shop-web-1"}
    assert now["volumes"] == {"shop_db", "shop_idle"}
    assert {"shop_default", "shop_idle"} <= now["networks"] and "gone_default" not in now["networks"]
    assert "shop/web:1" in now["tags"]
    for kind in ("volume", "network"):
        assert kept(result, kind)["of compose project shop, which has containers"] == 1
        assert kept(result, kind)["used by a container"] == 1
    # Once its containers go as well, nothing of it is wanted for their sake.
    result = clean(host)
    now = state(host)
    assert (now["containers"], now["volumes"]) == ({}, set())
    assert not {"shop_default", "shop_idle"} & now["networks"]


# -- networks ----------------------------------------------------------------------------------


@both_stores
def test_a_network_ages_by_its_last_use_and_stays_where_that_is_forgotten(host: Host) -> None:
    """docker/compose 7556: an external network, made long ago, and a nightly job whose container is gone; moby 49725, 30502: 256 events."""
    for name in ("proxy", "idle"):
        host.must("POST", "/networks/create", {"Name": name, "Driver": "bridge"})
    time.sleep(2.1)
    job = container(host, "nightly", "base/app:1", ["/bin/true"], run="done", network="proxy")
    host.must("DELETE", f"/containers/{job}")
    engine = connect(host)

    def plan(older_than: Optional[int] = 3600) -> Dict[str, str]:
        """What an hour and a second after the networks were made would be said of them. (Nobody can make a network older than it is.)"""
        looked = snapshot.take(engine, snapshot.Wanted(networks=True, container_ages=True), None)
        looked = looked._replace(now=max(net.created or 0 for net in looked.networks if not net.predefined) + 3601)
        found = policies.decide(looked, policies.Wishes(networks=policies.NetworkWish(older_than=older_than)))
        return {entry.name: entry.reason for entry in (*found.steps, *found.kept)}

    told = plan()
    assert told["idle"] == "used by no container, created 1 hour ago, never used"
    assert told["proxy"] == "last used less than 1h ago (the engine's events)"
    only: Dict[str, Any] = {"images": None, "volumes": None, "build_cache": None, "containers": None, "state_dir": "/run/notes"}
    result = clean(host, **{**only, "networks": {"older_than": "1h"}})
    assert kept(result, "network")["last used less than 1h ago (the engine's events)"] == 1
    # Its events are flushed; what a run has seen of it is noted, and of what comes in between nobody knows.
    ident = container(host, "renamed", "base/app:1")
    for number in range(256):
        host.must("POST", f"/containers/{ident}/rename?name=renamed-{number}")
    told = plan()
    for name in ("idle", "proxy"):
        assert told[name].startswith("its last use is not known: the engine holds its events of the last "), told[name]
    assert plan(None)["idle"] == "used by no container, created 1 hour ago; no later use is known"
    result = clean(host, **{**only, "networks": {"older_than": "1h"}})
    assert kept(result, "network")["last used less than 1h ago (seen in use by an earlier run)"] == 1
    assert set(removed(clean(host, **{**only, "networks": {}}))) == {"proxy", "idle"}
    # Who else could have written what was noted, and what nobody noted.
    database = "/run/notes/history.sqlite"
    assert host.exec(["stat", "-c", "%a %U", "/run/notes", database]).stdout.split() == ["700", "root", "600", "root"]
    host.exec(["chmod", "777", "/run/notes"])
    refused = by_itself(host, **{**EVERYTHING, **only, "networks": {}})
    assert refused["failed"] and "others may write to /run/notes" in refused["msg"], refused["msg"]
    host.exec(["chmod", "700", "/run/notes"])
    assert not clean(host, **{**only, "networks": {}}).get("warnings")
    host.exec(["sh", "-c", f"echo torn > {database}"])
    (warning,) = clean(host, **{**only, "networks": {}})["warnings"]
    assert f"{database} cannot be read (file is not a database)" in str(warning) and "made anew" in str(warning)
    assert not clean(host, **{**only, "networks": {}}).get("warnings")


# -- volumes -----------------------------------------------------------------------------------


@both_stores
def test_volumes_whose_data_is_elsewhere_stay_unless_their_driver_is_named(host: Host) -> None:
    host.exec(["sh", "-ec", "mkdir -p /srv/wanted; echo data > /srv/wanted/file"])
    mounts = {
        "on-nfs": {"type": "nfs", "o": "addr=127.0.0.1,ro", "device": ":/export"},
        "bound": {"type": "none", "o": "bind", "device": "/srv/wanted"},
        "in-memory": {"type": "tmpfs", "device": "tmpfs", "o": "size=1m"},
    }
    with volume_driver(host, "elsewhere"):
        for name, options in mounts.items():
            host.must("POST", "/volumes/create", {"Name": name, "DriverOpts": options})
        host.must("POST", "/volumes/create", {"Name": "plain"})
        host.must("POST", "/volumes/create", {"Name": "far", "Driver": "elsewhere"})
        # A container has them for a moment, so that they are really mounted.
        container(host, "user", "base/app:1", ["/bin/true"], run="done", Binds=["bound:/bound", "in-memory:/memory", "far:/far"])
        result = clean(host)
        assert state(host)["volumes"] == {*mounts, "far"}
        assert set(removed(result, "volume")) == {"plain"}
        assert kept(result, "volume") == {
            "of volume driver local/nfs": 1, "of volume driver local/bind": 1, "of volume driver local/tmpfs": 1, "of volume driver elsewhere": 1,
        }
        result = clean(host, volumes={"scope": "unused", "drivers": ["local/*"]})
        assert state(host)["volumes"] == {"far"}
        assert host.path("/srv/wanted/file").read_text() == "data\n", "the volume is gone, and not what it stood for"
        result = clean(host, volumes={"scope": "unused", "drivers": ["elsewhere"]})
        assert set(removed(result, "volume")) == {"far"}
        assert state(host)["volumes"] == set()


# -- plugins, builders -------------------------------------------------------------------------


def test_plugins_are_not_ours(host: Host) -> None:
    config = {
        "description": "", "documentation": "", "entrypoint": ["/bin/sleep"], "workdir": "", "mounts": None, "env": None, "args": {}, "linux": {},
        "interface": {"types": ["docker.volumedriver/1.0"], "socket": "plugin.sock"}, "network": {"type": "none"},
    }
    # The engine wants folders as entries of their own, which the bed's archives do not have.
    where = "/run/fleet/plugin"
    host.exec(["sh", "-ec", f"mkdir -p {where}/rootfs/bin; echo x > {where}/rootfs/bin/sleep"])
    host.path(f"{where}/config.json").write_text(json.dumps(config))
    host.exec(["tar", "-C", where, "-cf", f"{where}.tar", "."])
    host.must("POST", "/plugins/create?name=some/plugin:1", host.path(f"{where}.tar").read_bytes())
    result = clean(host, containers={"states": LIVE}, images={"scope": "all"}, volumes={"scope": "unused", "drivers": ["*"]}, orchestrated="clean")
    assert not any("plugin" in entry["name"] for entry in result["removed"])
    plugins = host.must("GET", "/plugins")
    assert [plugin["Name"] for plugin in plugins] == ["some/plugin:1"]
    assert host.path(f"{host.data_root}/plugins/{plugins[0]['Id']}/rootfs/bin/sleep").exists()
    host.must("DELETE", "/plugins/some/plugin:1")


def test_a_buildx_builder_and_its_cache_stay_together(host: Host) -> None:
    load_image(host, "moby/buildkit:buildx-stable-1", {"a": b"buildkit"})
    for number in (0, 1):
        host.must("POST", "/volumes/create", {"Name": f"buildx_buildkit_builder{number}_state"})
    container(host, "buildx_buildkit_builder0", "moby/buildkit:buildx-stable-1", ["/bin/true"], run="done",
              Binds=["buildx_buildkit_builder0_state:/var/lib/buildkit"])
    result = clean(host, volumes={"scope": "anonymous"})
    assert set(state(host)["containers"]) == {"buildx_buildkit_builder0"}
    assert "moby/buildkit:buildx-stable-1" in state(host)["tags"]
    assert kept(result, "container") == {"managed by buildx": 1}
    assert kept(result, "volume") == {"used by a container": 1, "cache of a buildx builder that is gone (volumes.scope is anonymous)": 1}
    result = clean(host)
    assert state(host)["volumes"] == {"buildx_buildkit_builder0_state"}
    assert "cache of a buildx builder that is gone" in removed(result)["buildx_buildkit_builder1_state"]


def test_what_another_manager_runs_here_is_left_to_it_and_so_are_all_images(host: Host) -> None:
    load_image(host, "app/idle:1", {"a": b"idle"})
    container(host, "k8s_web_web-1_default_0", "base/app:1", ["/bin/true"], run="done", labels={"io.kubernetes.pod.name": "web"})
    container(host, "ecs-web-1-web", "base/app:1", ["/bin/true"], run="done", labels={"com.amazonaws.ecs.task-arn": "arn:aws:ecs:x"})
    container(host, "web-1", "base/app:1", ["/bin/true"], run="done", labels={"com.hashicorp.nomad.alloc_id": "1"})
    container(host, "by-hand", "base/app:1", ["/bin/true"], run="done")
    result = clean(host)
    assert set(removed(result)) == {"by-hand"}
    assert kept(result, "container") == {"managed by kubelet": 1, "managed by the ECS agent": 1, "managed by Nomad": 1}
    (reason, count), = kept(result, "image").items()
    assert reason in kept(result, "container") and count == 2
    clean(host, orchestrated="clean")
    assert (state(host)["containers"], state(host)["images"]) == ({}, set())


@both_stores
def test_an_images_label_does_not_make_the_host_managed(host: Host) -> None:
    """The engine gives a container the labels of its image; whoever made that could switch the cleaning of the host off."""
    said = {"io.kubernetes.pod.name": "web", "com.hashicorp.nomad.alloc_id": "1", "com.docker.swarm.task.id": "t"}
    load_image(host, "evil/app:1", {"a": b"evil"}, labels=said)
    load_image(host, "app/idle:1", {"a": b"idle"})
    container(host, "from-evil", "evil/app:1", ["/bin/true"], run="done")
    container(host, "runs", "evil/app:1", run="on", labels={"mine": "1"})
    listed = host.must("GET", "/containers/json?all=1")
    assert all(entry["Labels"].items() >= said.items() for entry in listed)
    result = clean(host)
    assert {"from-evil", "app/idle:1"} <= set(removed(result)) and "runs" not in removed(result)
    assert "evil/app:1" in state(host)["tags"]
    # The same label, but whoever made the container set another of the same manager.
    container(host, "pod", "evil/app:1", ["/bin/true"], run="done", labels={"io.kubernetes.pod.uid": "1"})
    load_image(host, "app/idle:1", {"a": b"idle"})
    result = clean(host)
    assert removed(result) == {}
    assert kept(result, "container") == {"managed by kubelet": 1, "running": 1}


@both_stores
def test_what_an_images_configuration_holds_is_no_matter(host: Host) -> None:
    """The engine keeps it as it came, and whoever made the image may have nested it deeper than Python goes."""
    for name, more in (("deep", b"[" * 5000 + b"]" * 5000), ("large", b'"' + b"x" * 3_000_000 + b'"'), ("lists", b"[" + b"[]," * 300_000 + b"[]]")):
        plain = b'{"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": []}, "author.x": '
        config = plain + more + b"}"
        file = hashlib.sha256(config).hexdigest() + ".json"
        manifest = [{"Config": file, "RepoTags": [f"evil/{name}:1"], "Layers": []}]
        host.must("POST", "/images/load?quiet=1", tar({file: config, "manifest.json": json.dumps(manifest).encode()}))
    report = by_itself(host, "docker_disk_report", measure="exact", state_dir="", top=-1)
    assert not report["failed"], report["msg"]
    wanted = {f"evil/{name}:1" for name in ("deep", "large", "lists")}
    result = clean(host, images={"scope": "unused", "keep_latest": 0})
    assert wanted <= set(removed(result))


# -- containers that come back or go by themselves ---------------------------------------------


@both_stores
def test_what_starts_again_with_the_engine_stays_and_does(host: Host) -> None:
    for policy in ("always", "unless-stopped", "on-failure", "no"):
        ident = container(host, policy, "base/app:1", run="on", RestartPolicy={"Name": policy})
        host.must("POST", f"/containers/{ident}/stop?t=0")
    container(host, "never-started", "base/app:1", RestartPolicy={"Name": "always"})
    result = clean(host)
    assert "never-started" in removed(result), "engines do not start it"
    # One that was stopped by hand ended with an error, which is all that on-failure asks for (moby 35166, 47846).
    assert set(state(host)["containers"]) == {"always", "on-failure"}
    assert kept(result, "container") == {f"restart policy {policy}: it starts again with the engine": 1 for policy in ("always", "on-failure")}
    assert "base/app:1" in state(host)["tags"]
    host.restart_engine()
    until(lambda: state(host)["running"] == {"always", "on-failure"})
    clean(host, containers={"states": LIVE})
    assert state(host)["containers"] == {}


@both_stores
def test_containers_that_restart_pause_or_remove_themselves_go_when_asked_for(host: Host) -> None:
    container(host, "loops", "base/app:1", ["/bin/false"], run="on", RestartPolicy={"Name": "always"})
    paused = container(host, "paused", "base/app:1", run="on")
    host.must("POST", f"/containers/{paused}/pause")
    for number in range(12):
        container(host, f"rm-{number}", "base/app:1", run="on", AutoRemove=True)
    result = clean(host)
    assert len(state(host)["containers"]) == 14 and not result["changed"]
    result = clean(host, containers={"states": LIVE})
    assert (state(host)["containers"], state(host)["images"]) == ({}, set())
    assert len(removed(result, "container")) == 14


def test_two_runs_at_once_do_not_get_into_each_others_way(host: Host, ansible: Ansible) -> None:
    for number in range(40):
        load_image(host, f"app/many:{number}", {"n": str(number).encode()})
        container(host, f"many-{number}", f"app/many:{number}", ["/bin/true"])
        host.must("POST", "/volumes/create", {"Name": f"many-{number}"})
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda _n: clean(host, ansible, parallel=4), range(2)))
    now = state(host)
    assert (now["containers"], now["images"], now["volumes"]) == ({}, set(), set())
    assert [result["failures"] for result in results] == [[], []]


# -- names that look like something else -------------------------------------------------------

#: All of them are names that engines take.
NETWORKS = ["-rf", "--force", "*", "[ab]*", "../../etc", "a b", "net[1]", "/", "..", "a?b", "$(id)", "\nx", "%2e%2e", "sha256:abcd", "b", "naïve"]
NAMES = ["a..b", "x--force", "0123abcd", "b.", "b-", "B.b"]
LABELS = {"[x]*": "*", "../..": "/etc", "--filter": "label!=x", "a=b": "c=d", "": "empty", "q\"'`": "\n"}


@both_stores
def test_names_are_names_and_nothing_else(host: Host, ansible: Ansible) -> None:
    for name in NETWORKS:
        host.must("POST", "/networks/create", {"Name": name, "Driver": "bridge", "Internal": True, "Labels": LABELS})
    for name in NAMES:
        host.must("POST", "/volumes/create", {"Name": name, "Labels": LABELS})
        container(host, name, "base/app:1", ["/bin/true"], labels=LABELS)
    keep_networks, keep_names = ["net[1]", "-rf", "../../etc"], ["a..b", "x--force"]
    keeping = {
        "containers": {"keep": keep_names}, "volumes": {"scope": "unused", "keep": keep_names}, "networks": {"keep": keep_networks},
        "images": {"scope": "unused"}, "keep_labels": ["[x]"],
    }
    result = clean(host, ansible, **keeping)
    now = state(host)
    assert set(now["containers"]) == set(keep_names)
    assert now["volumes"] == set(keep_names)
    assert now["networks"] - {"bridge", "host", "none", "docker_gwbridge"} == set(keep_networks)
    # What a host says comes to the controller with nothing in it that moves a cursor: the end of a line is a blank.
    assert set(removed(result, "network")) == {name.replace("\n", " ") for name in set(NETWORKS) - set(keep_networks)}
    # Labels of the same kind: the pattern is the label itself.
    result = clean(host, ansible, keep_labels=["../..=/etc"])
    assert result["removed"] == []
    clean(host, ansible, keep_labels=["fleetclean.keep"])
    assert (state(host)["containers"], state(host)["volumes"]) == ({}, set())


@pytest.mark.parametrize("host", ["ctd"], indirect=True)
def test_lists_as_surveys_give_them_keep_what_they_name_and_nothing_else(host: Host, ansible: Ansible) -> None:
    """AWX gives a text, with blanks, or one a line (awx 13554). Images have registries' names that look like globs, and Docker Hub's."""
    labels = {"blue": {"team": "a b"}, "green": {"fleetclean.keep": ""}, "red": {"team": "c"}}
    for name in ("web-1", "web-2", "db", "cache", *labels):
        container(host, name, "base/app:1", ["/bin/true"], labels=labels.get(name, {}))
        host.must("POST", "/volumes/create", {"Name": name, "Labels": labels.get(name, {})})
        host.must("POST", "/networks/create", {"Name": f"{name} net", "Driver": "bridge", "Internal": True, "Labels": labels.get(name, {})})
    wanted = {"postgres:16", "redis:7", "registry.example:5000/team/app:1"}
    others = {"team/app:1", "registry.example/library/x:1", "localhost/x:1"}
    ipv6 = {"[2001:db8::1]:5000/app:1": True, "[2001:db8::1]:5000/team/app:2": True, "[2001:db8::2]:5000/app:1": False}
    for tag in sorted(wanted | others):
        load_image(host, tag, {"a": tag.encode()})
    for tag, stays in ipv6.items():
        repository, _colon, version = tag.rpartition(":")
        load_image(host, "app/tagged:1", {"a": tag.encode()})
        host.must("POST", f"/images/app/tagged:1/tag?repo={quote(repository)}&tag={version}")
        host.must("DELETE", "/images/app/tagged:1")
        (wanted if stays else others).add(tag)
    run = ansible.play(
        "clean", hosts=host.name, cleanup_profile="full", cleanup_full_confirmed=True, cleanup_logs=False,
        cleanup_keep_labels="team=a b, fleetclean.keep", cleanup_containers_keep="web-*, db,", cleanup_volumes_keep="web-*\ndb\n",
        cleanup_networks_keep=["web-1 net\ndb net\n"], cleanup_images_keep="docker.io/library/*,\n[2001:db8::1]:5000/*,\r\n registry.example:5000/team/*\r\n",
    )
    assert run.code == 0, run.text
    now = state(host)
    assert set(now["containers"]) == {"web-1", "web-2", "db", "blue", "green"}
    assert now["volumes"] == set(now["containers"])
    assert {name for name in now["networks"] if name.endswith(" net")} == {"web-1 net", "db net", "blue net", "green net"}
    assert now["tags"] == {*wanted, "base/app:1"}
    policy = run.task("Remove what the profile allows")[host.name]["policy"]
    assert any(words.endswith("keep those named docker.io/library/*, [2001:db8::1]:5000/*, registry.example:5000/team/*") for words in policy)


def readme_play(name: str) -> Dict[str, Any]:
    """A play of the README's, by its name."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return next(play for block in blocks for play in yaml.safe_load(block) if play.get("name") == name)


@both_stores
def test_the_readmes_play_for_one_team_takes_what_that_team_built_and_nothing_else(host: Host, ansible: Ansible, tmp_path: Path) -> None:
    """It said "only what this team built" and selected nothing (moby 33229, docker/cli 625)."""
    play = readme_play("Only what this team built")
    for number, tag in enumerate(("search/app:1", "search/app:2", "search/app:3", "registry.example:5000/search/job:1", "other/app:1", "search:1")):
        load_image(host, tag, {"a": tag.encode()}, created=datetime.now(timezone.utc) - timedelta(days=40 - number))
    host.must("POST", "/images/search/app:1/tag?repo=other/copy&tag=1")
    container(host, "ours", "base/app:1", ["/bin/true"], run="done", labels={"com.example.team": "search"})
    container(host, "theirs", "base/app:1", ["/bin/true"], run="done", labels={"com.example.team": "other"})
    for task in play["tasks"]:
        for section in task.get("fleetclean.docker.docker_clean", {}).values():
            section["older_than"] = "0"  # days, which nobody waits for here
    (tmp_path / "play.yml").write_text(json.dumps([{**play, "hosts": host.name}]))
    run = ansible.run(["ansible-playbook", "-i", ansible.inventory, str(tmp_path / "play.yml")])
    assert run.code == 0, run.text
    now = state(host)
    assert set(now["containers"]) == {"theirs"}
    kept_tags = {"base/app:1", "other/app:1", "search:1", "other/copy:1", "search/app:2", "search/app:3", "registry.example:5000/search/job:1"}
    assert now["tags"] == kept_tags, "of its repositories the newest two, of what several have the others' names"
    result = next(line["result"] for line in run.lines if line["result"].get("removed"))
    assert {"not named in images.only", "used by a container"} & set(kept(result, "image"))
    assert kept(result, "container") == {"without a label of containers.only_labels": 1}


@both_stores
def test_what_is_selected_goes_and_an_empty_selection_takes_nothing(host: Host) -> None:
    labels = {"team": "search"}
    for name in ("web-1", "job-1"):
        host.must("POST", "/volumes/create", {"Name": name, "Labels": labels if name == "web-1" else {}})
        host.must("POST", "/networks/create", {"Name": f"{name}-net", "Driver": "bridge", "Internal": True, "Labels": labels if name == "web-1" else {}})
        container(host, name, "base/app:1", ["/bin/true"], labels=labels if name == "web-1" else {}, Binds=["anonymous:/data"])
    host.must("POST", "/volumes/create", {})
    before = state(host)
    empty = {"only": [], "older_than": "0"}
    result = clean(host, containers=empty, images={"scope": "unused", **empty}, volumes={"scope": "unused", **empty}, networks=empty, build_cache=None)
    assert (result["changed"], result["removed"], state(host)) == (False, [], before)
    assert kept(result, "volume") == {"not named in volumes.only, which is empty": 4}
    by_label = {"only_labels": ["team=s*"]}
    said = clean(host, check=True, containers=by_label, images={}, volumes={"scope": "unused", **by_label}, networks=by_label)
    result = clean(host, containers=by_label, images={}, volumes={"scope": "unused", **by_label}, networks=by_label)
    assert set(removed(said)) == set(removed(result))
    assert set(removed(result)) == {"web-1", "web-1-net"}
    result = clean(host, containers={"only": ["job-*"]}, images={}, volumes={"scope": "unused", "only": ["*"]}, networks={"only": ["job-*"]})
    assert set(removed(result)) == {"job-1", "job-1-net", "anonymous"}, "a volume without a name is selected by no glob"
    assert len(state(host)["volumes"]) == 1


def test_a_driver_may_call_its_volumes_what_it_likes(host: Host) -> None:
    """The local driver takes plain names only, other drivers take any: none of them reaches another object."""
    names = ["a/b", "../containers", "*", "a b", "?force=1"]
    with volume_driver(host, "odd"):
        taken = [name for name in names if host.api("POST", "/volumes/create", {"Name": name, "Driver": "odd"})[0] == 201]
        host.must("POST", "/volumes/create", {"Name": "plain"})
        result = by_itself(host, **{**EVERYTHING, "volumes": {"scope": "unused", "drivers": ["*"]}})
        assert taken
        assert "plain" not in state(host)["volumes"]
        told = {entry["name"] for entry in [*result["removed"], *result["failures"]] if entry["kind"] == "volume"}
        assert told == {*taken, "plain"}
        for name in state(host)["volumes"]:
            assert name in {entry["name"] for entry in result["failures"]}, result
