# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docker_clean and what others stand on: mounts at and below the engine's folders, volumes that are used by their path, namespaces, links.

Each case is one that an engine lets go: it empties the folder that is mounted there, or leaves a container that cannot start again.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Dict, Iterator

import pytest

from tests.fleet import Fleet, Host, HostSpec
from tests.fleet.dirty import load_image
from tests.integration.bare import Bare
from tests.integration.support import CONTAINERD, start, state
from tests.integration.things import IDLE, base, by_itself, clear, container, kept, removed, until, volume_driver

#: The oldest engine and the newest, with an image store each, and a driver whose layers are plain folders.
HOSTS = [
    HostSpec("old"), HostSpec("ctd", root="forky", daemon_json={**CONTAINERD, "bridge": None}), HostSpec("copies", root="trixie", driver="vfs"),
]
EVERYTHING: Dict[str, Any] = {"containers": {"volumes": True}, "images": {"scope": "unused"}, "volumes": {"scope": "unused"}, "networks": {}, "state_dir": ""}
LIVE = ["created", "exited", "dead", "running", "paused", "restarting"]
on_all_hosts = pytest.mark.parametrize("host", [spec.name for spec in HOSTS], indirect=True)
both_stores = pytest.mark.parametrize("host", ["old", "ctd"], indirect=True)


@pytest.fixture(scope="module")
def fleet(here: None) -> Iterator[Fleet]:
    with start(HOSTS) as hosts:
        for host in hosts:
            # As on any host with systemd.
            host.exec(["mount", "--make-rshared", "/"])
        yield hosts


@pytest.fixture()
def host(request: pytest.FixtureRequest, fleet: Fleet) -> Iterator[Host]:
    found = fleet[getattr(request, "param", "old")]
    base(found)
    yield found
    clear(found)


def clean(host: Host, check: bool = False, **wishes: Any) -> Dict[str, Any]:
    result = by_itself(host, check=check, **{**EVERYTHING, **wishes})
    assert not result["failed"], str((result["msg"], result["failures"]))[:3000]
    return result


def both(host: Host, **wishes: Any) -> Dict[str, Any]:
    """The plain run's result; check mode said the same before, and a second run finds nothing to do."""
    foretold = clean(host, check=True, **wishes)
    result = clean(host, **wishes)
    assert [list(removed(foretold)), kept(foretold)] == [list(removed(result)), kept(result)]
    again = clean(host, **wishes)
    assert (again["changed"], again["removed"]) == (False, [])
    return result


def volume(host: Host, name: str, device: str = "") -> str:
    """A volume of the local driver, which may show a path of the host; where its data is."""
    options = {"DriverOpts": {"type": "none", "o": "bind", "device": device}} if device else {}
    return str(host.must("POST", "/volumes/create", {"Name": name, **options})["Mountpoint"])


@contextmanager
def mounted(host: Host, source: str, target: str) -> Iterator[None]:
    """A bind mount on the host, and the folders that it takes; in the end nothing is mounted below the data root."""
    host.exec(["mkdir", "-p", source, target])
    host.exec(["mount", "--bind", source, target])
    try:
        yield
    finally:
        host.exec(["umount", "-l", target], check=False)


def stop(host: Host, *names: str) -> None:
    for name in names:
        host.must("POST", f"/containers/{name}/stop?t=0")


# -- mounts at and below what the engine would delete ----------------------------------------------------


@on_all_hosts
def test_what_is_mounted_below_an_objects_folder_is_not_emptied_by_its_removal(host: Host) -> None:
    folders = ("/srv/i", "/srv/disk", "/srv/deep", "/srv/odd")
    for folder in folders:
        host.exec(["mkdir", "-p", folder])
        host.exec(["touch", f"{folder}/a"])
    data = {name: volume(host, name) for name in ("shared", "whole", "odd", "free")}
    # A line's end in a path is none in the kernel's table.
    with mounted(host, "/srv/disk", data["whole"]), mounted(host, "/srv/odd", f"{data['odd']}/a\r\nb \\c"):
        if host.name == "copies":
            # The recipe's mount does not come out of this driver's containers; so somebody made one in a layer, as only a plain folder lets.
            ident = container(host, "sh", "base/app:1", ["/bin/true"], run="done")
            layer = host.path(f"/var/lib/docker/image/vfs/layerdb/mounts/{ident}/mount-id").read_text()
            place = f"/var/lib/docker/vfs/dir/{layer}/mnt"
        else:
            # The recipe of moby 35323: a bind with shared propagation below a volume leaves a mount on the host.
            container(host, "sh", "base/app:1", ["/bin/true"], run="done", Binds=["shared:/x", "/srv/i:/x/i:shared"])
            ident = container(host, "own", "base/app:1", ["/bin/true"])
            place = f"/var/lib/docker/containers/{ident}/mnt"
        with mounted(host, "/srv/deep", place):
            result = both(host)
            assert ("whole" in state(host)["volumes"], "free" in removed(result, "volume")) == (True, True)
            assert f"/srv/disk is mounted at {data['whole']}" in kept(result, "volume")
            assert kept(result, "container") == {f"/srv/deep is mounted at {place}": 1}
            assert ident in state(host)["containers"].values()
            assert "base/app:1" in state(host)["tags"], "the container that stays can be started again"
            assert f"/srv/odd is mounted at {data['odd']}/a??b \\c" in kept(result, "volume")
            for folder in folders:
                assert host.path(folder).joinpath("a").exists(), folder
            if host.name != "copies":
                assert f"/srv/i is mounted at {data['shared']}/i" in kept(result, "volume")
                host.exec(["umount", f"{data['shared']}/i"])
    result = clean(host)
    assert {"whole", "odd"} <= removed(result, "volume").keys()
    assert (host.name == "copies") or "shared" in removed(result, "volume")
    assert ident not in state(host)["containers"].values()
    assert all(host.path(folder).joinpath("a").exists() for folder in folders)


def test_what_is_mounted_while_the_run_is_under_way_is_seen_right_before_the_removal(host: Host) -> None:
    with volume_driver(host, "slowly", slow=3):
        host.must("POST", "/volumes/create", {"Name": "a-slow", "Driver": "slowly"})
        data = {name: volume(host, name) for name in ("b-mounted", "c-bound", "d-free")}
        wishes = {**EVERYTHING, "images": {"scope": "dangling"}, "volumes": {"scope": "unused", "drivers": ["*"]}, "parallel": 1}
        assert list(removed(clean(host, check=True, **wishes))) == ["a-slow", *data]
        run = Bare(host, "docker_clean").start(**wishes)
        until(host.path("/srv/volumes/removing").exists)
        with mounted(host, "/srv/late", data["b-mounted"]):
            container(host, "late", "base/app:1", Binds=[f"{data['c-bound']}:/x"])
            result = run.end().result
            assert list(removed(result)) == ["a-slow", "d-free"]
            assert kept(result, "volume") == {f"/srv/late is mounted at {data['b-mounted']}": 1, f"container late binds {data['c-bound']}": 1}
            assert state(host)["volumes"] == {"b-mounted", "c-bound"}


# -- volumes that are used by their path -------------------------------------------------------------------


@both_stores
def test_a_volume_that_is_used_by_its_path_stays(host: Host) -> None:
    names = ("running", "deep", "created", "by-volume", "by-nobodys-volume", "by-link", "by-mount", "mounted", "linked", "overlaid", "agent", "free")
    data = {name: volume(host, name) for name in names}
    host.path(data["deep"]).joinpath("sub").mkdir()
    volume(host, "shows", device=data["by-volume"])
    volume(host, "shows-too", device=f"{data['by-nobodys-volume']}/")
    host.exec(["mkdir", "-p", "/srv/links"])
    host.exec(["ln", "-sfn", data["by-link"], "/srv/links/a"])
    # Somebody put a link in the place of a volume's folder: its removal would empty the other one.
    volume(host, "link")
    host.path("/var/lib/docker/volumes/link/_data").rmdir()
    host.exec(["ln", "-s", "../linked/_data", "/var/lib/docker/volumes/link/_data"])
    volume(host, "links")
    host.exec(["sh", "-c", "cd /var/lib/docker/volumes && rm -r links && ln -s linked links"])
    for folder in ("upper", "work"):
        host.path(data["overlaid"]).joinpath(folder).mkdir()
    overlay = f"lowerdir={data['overlaid']},upperdir={data['overlaid']}/upper,workdir={data['overlaid']}/work"
    host.must("POST", "/volumes/create", {"Name": "overlay", "DriverOpts": {"type": "overlay", "device": "overlay", "o": overlay}})
    root = "/var/lib/docker/volumes"
    with mounted(host, data["by-mount"], "/srv/m"), mounted(host, data["mounted"], "/srv/ftp"):
        binds = [f"{data['running']}:/a", f"{data['deep']}/sub:/b", "shows:/c", "/srv/links/a:/d", "/srv/m:/e"]
        container(host, "web", "base/app:1", run="on", Binds=binds)
        container(host, "later", "base/app:1", Binds=[f"{data['created']}:/a"], labels={"fleetclean.keep": ""})
        container(host, "backup", "base/app:1", run="on", Binds=[f"{root}:{root}", "/var/lib/docker:/docker:ro"])
        result = both(host)
        assert set(removed(result, "volume")) == {"agent", "free"}
        there = state(host)["volumes"]
        assert there == {*names, "shows", "shows-too", "link", "links", "overlay"} - {"agent", "free"}
        assert kept(result, "volume") == {
            f"container web binds {data['running']}": 1,
            f"container web binds {data['deep']}/sub": 1,
            f"container later binds {data['created']}": 1,
            "used by a container": 1,
            "volume shows shows its data": 1,
            "volume shows-too shows its data": 1,
            "of volume driver local/bind": 1,
            "of volume driver local/overlay": 1,
            "volume overlay shows its data": 1,
            "its folder is a link to /var/lib/docker/volumes/linked": 1,
            "container web binds /srv/links/a": 1,
            "container web binds /srv/m": 1,
            "its data is mounted at /srv/ftp as well": 1,
            "its folder _data is a link to /var/lib/docker/volumes/linked/_data": 1,
            "volume link shows its data": 1,
        }
        # Who goes keeps nothing: in one run the containers that are killed, and what they alone had, whoever of them goes first.
        container(host, "has", "base/app:1", run="on", Mounts=[{"Type": "volume", "Target": "/own"}])
        (own,) = host.must("GET", "/containers/has/json")["Mounts"]
        container(host, "borrows", "base/app:1", run="on", Binds=[f"{own['Source']}:/a"])
        wishes = {"containers": {"states": LIVE, "volumes": True}, "volumes": {"scope": "unused", "drivers": ["local", "local/*"]}}
        foretold, full = clean(host, check=True, **wishes), clean(host, **wishes)
        assert (removed(full).keys(), kept(full)) == (removed(foretold).keys(), kept(foretold))
        assert own["Name"] in removed(full, "volume")
        assert {"running", "deep", "by-volume", "shows", "by-link"} <= removed(full, "volume").keys(), kept(full)
        assert state(host)["volumes"] == {"created", "by-mount", "mounted", "linked", "link", "links"}
    host.exec(["rm", "/var/lib/docker/volumes/link/_data", "/var/lib/docker/volumes/links"])


def test_what_a_path_leads_through_stays(host: Host) -> None:
    data = {name: volume(host, name) for name in ("linking", "linked-to", "deep", "free")}
    host.exec(["ln", "-s", data["linked-to"], f"{data['linking']}/current"])
    # One volume shows another, which shows a third; while a container has it, its device is mounted there.
    middle = volume(host, "middle", device=data["deep"])
    volume(host, "top", device=middle)
    runs = container(host, "runs", "base/app:1", run="on", Binds=["middle:/a"])
    keeper = {"fleetclean.keep": ""}
    container(host, "by-path", "base/app:1", Binds=[f"{data['linking']}/current:/a", "top:/b"], labels=keeper)
    layer = host.must("GET", f"/containers/{runs}/json")["GraphDriver"]["Data"]["MergedDir"]
    container(host, "looks-in", "base/app:1", run="on", Binds=[f"{layer}:/a:ro,rslave"], labels=keeper)
    wishes = {"containers": {"states": LIVE}, "volumes": {"scope": "unused", "drivers": ["local", "local/*"]}, "images": {"scope": "dangling"}}
    result = both(host, **wishes)
    assert list(removed(result)) == ["free"]
    assert kept(result, "container") == {"labelled fleetclean.keep": 2, f"container looks-in binds {layer}": 1}
    host.must("DELETE", "/containers/looks-in?force=1")
    assert list(removed(clean(host, **wishes))) == ["runs"]
    assert state(host)["volumes"] == {"linking", "linked-to", "deep", "middle", "top"}
    host.must("POST", "/containers/by-path/start")


# -- containers that others stand on ------------------------------------------------------------------------


@both_stores
def test_a_container_stays_that_another_one_cannot_start_without_and_so_does_what_it_has(host: Host) -> None:
    load_image(host, "vpn/app:1", {"a": b"vpn"})
    volume(host, "vpn-data")
    volume(host, "of-source")
    container(host, "vpn", "vpn/app:1", run="on", Binds=["vpn-data:/d"])
    container(host, "client", "base/app:1", run="on", network="container:vpn")
    container(host, "ipc", "base/app:1", run="on", IpcMode="shareable")
    container(host, "ipc-user", "base/app:1", IpcMode="container:ipc", labels={"fleetclean.keep": ""})
    container(host, "pid", "base/app:1", run="on")
    container(host, "pid-user", "base/app:1", PidMode="container:pid", labels={"fleetclean.keep": ""})
    container(host, "source", "base/app:1", Binds=["of-source:/d"])
    container(host, "source-user", "base/app:1", run="on", VolumesFrom=["source:ro"])
    # A chain, all of which goes; and in an order that leaves nobody without what he needs.
    container(host, "lower", "base/app:1", run="on")
    container(host, "upper", "base/app:1", run="on", network="container:lower")
    stop(host, "vpn", "ipc", "pid", "upper", "lower")
    result = both(host)
    assert list(removed(result, "container")) == ["upper", "lower"]
    assert kept(result, "container") == {
        "container client uses its network namespace": 1,
        "container ipc-user uses its IPC namespace": 1,
        "container pid-user uses its PID namespace": 1,
        "container source-user has its volumes (--volumes-from)": 1,
        "labelled fleetclean.keep": 2,
        "running": 2,
    }
    assert {"vpn/app:1", "base/app:1"} <= state(host)["tags"]
    assert {"vpn-data", "of-source"} <= state(host)["volumes"]
    assert "vpn/app:1" in removed(clean(host, check=True, containers={"states": LIVE}, images={"scope": "all"}), "image"), "and all go where all is to go"
    for name in ("vpn", "ipc", "pid", "ipc-user", "pid-user"):
        host.must("POST", f"/containers/{name}/start")
    host.must("POST", "/containers/client/restart?t=0")


@pytest.mark.parametrize("host", ["ctd"], indirect=True)
def test_the_target_of_a_link_stays(host: Host) -> None:
    for name in ("db", "cache", "free"):
        container(host, name, "base/app:1", run="on", network="bridge")
    host.must("POST", "/networks/create", {"Name": "own", "Driver": "bridge"})
    host.must("POST", "/networks/own/connect", {"Container": "cache"})
    container(host, "web", "base/app:1", run="on", network="bridge", Links=["db:database"])
    body = {
        "Image": "base/app:1", "Cmd": list(IDLE), "HostConfig": {"NetworkMode": "own"},
        "NetworkingConfig": {"EndpointsConfig": {"own": {"Links": ["cache:redis"]}}}, "Labels": {"fleetclean.keep": ""},
    }
    host.must("POST", "/containers/create?name=api", body)
    stop(host, "db", "cache", "free", "web")
    result = both(host, keep_labels=["fleetclean.keep"], containers={"keep": ["web"]})
    assert list(removed(result, "container")) == ["free"]
    assert kept(result, "container") == {
        "container web is linked to it": 1, "container api is linked to it": 1, "labelled fleetclean.keep": 1, "named in containers.keep": 1,
    }
    for name in ("db", "web", "cache", "api"):
        host.must("POST", f"/containers/{name}/start")


@both_stores
def test_what_the_engine_starts_again_after_a_failure_stays(host: Host) -> None:
    policy = {"Name": "on-failure", "MaximumRetryCount": 0}
    container(host, "stopped", "base/app:1", run="on", RestartPolicy=policy)
    container(host, "ended", "base/app:1", ["/bin/true"], run="done", RestartPolicy=policy)
    container(host, "tried", "base/app:1", ["/bin/false"], run="on", RestartPolicy={**policy, "MaximumRetryCount": 1})
    container(host, "never", "base/app:1", RestartPolicy=policy)
    stop(host, "stopped")
    until(lambda: (found := host.must("GET", "/containers/tried/json"))["RestartCount"] == 1 and found["State"]["Status"] == "exited")
    # The engine itself says what it starts again.
    host.restart_engine()
    until(lambda: state(host)["running"] == {"stopped"})
    stop(host, "stopped")
    result = both(host)
    assert set(removed(result, "container")) == {"ended", "tried", "never"}
    assert kept(result, "container") == {"restart policy on-failure: it starts again with the engine": 1}


@pytest.mark.parametrize("host", ["ctd"], indirect=True)
def test_a_container_keeps_the_image_that_has_the_name_by_now_that_it_was_started_by(host: Host) -> None:
    first = load_image(host, "app/moved:1", {"a": b"first"})
    container(host, "runs", "app/moved:1", run="on")
    container(host, "waits", "app/moved:1", labels={"fleetclean.keep": ""})
    second = load_image(host, "app/moved:1", {"a": b"second"})
    other = load_image(host, "app/other:1", {"a": b"other"})
    assert len({first, second, other}) == 3
    result = both(host)
    assert {first, second} <= state(host)["images"], kept(result)
    assert "app/other:1" in removed(result, "image")
    host.must("DELETE", "/containers/runs?force=1")
    both(host)
    assert second in state(host)["images"], "a stopped container's name counts as well"


@both_stores
def test_a_service_that_ran_once_stays_as_long_as_its_compose_project_runs(host: Host) -> None:
    def service(name: str, project: str, command: str, run: str = "done", **labels: str) -> None:
        compose = {"com.docker.compose.project": project, "com.docker.compose.service": name, **labels}
        container(host, name, "base/app:1", [command, "1000000"][: 2 if command.endswith("sleep") else 1], run=run, labels=compose)

    service("migrate", "shop", "/bin/true")
    service("web", "shop", "/bin/sleep", "on")
    service("by-hand", "shop", "/bin/true", **{"com.docker.compose.oneoff": "True"})
    service("old-migrate", "down", "/bin/true")
    result = both(host)
    assert set(removed(result, "container")) == {"by-hand", "old-migrate"}
    assert kept(result, "container") == {"of compose project shop, which is running": 1, "running": 1}
    assert "migrate" in removed(clean(host, check=True, containers={"compose": True}), "container")
    stop(host, "web")
    assert set(removed(clean(host), "container")) == {"migrate", "web"}
