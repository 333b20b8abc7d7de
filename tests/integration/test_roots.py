# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docker_disk_report on real engines whose data lies where few have it: found from the engine's own answer, and every byte accounted for.

A data root elsewhere, one behind a link, one with links and other filesystems in it, user namespaces, an engine without root, and a containerd of the system's
that others use as well. The module runs by itself (bare.py): what Ansible adds does not depend on any of this.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

import pytest

from tests.fleet import Fleet, FleetError, Host, HostSpec
from tests.fleet.dirty import build_image, load_image, tar
from tests.integration.bare import Bare
from tests.integration.support import CONTAINERD, on_all, start

#: Where the engine's own containerd has images, below the data root.
CONTAINERDS_STORE = ("containerd/daemon/io.containerd.content.v1.content", "containerd/daemon/io.containerd.snapshotter.v1.overlayfs")
MB = 1 << 20
#: The user of the engine without root, and what its other users and groups are on the host.
ROOTLESS_USER, SUBORDINATE = 1234, 200000
#: dockerd in namespaces of a user's own, as rootlesskit and newuidmap would start it, which Debian's docker.io does not bring along: the user makes
#: the namespaces, root writes down who is who in them, and what dockerd keeps in /run and /etc it finds empty.
ROOTLESS = r"""
import ctypes, os, sys

user, start, home = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
made, mapped = os.pipe(), os.pipe()
child = os.fork()
if child:
    os.read(made[0], 1)
    for kind in ("uid", "gid"):
        with open(f"/proc/{child}/{kind}_map", "w") as stream:
            stream.write(f"0 {user} 1\n1 {start} 65536\n")
    os.write(mapped[1], b".")
    os.waitpid(child, 0)
    sys.exit()
os.setgroups([])
os.setresgid(user, user, user)
os.setresuid(user, user, user)
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(CLONE_NEWNS | CLONE_NEWUSER | CLONE_NEWNET):
    raise OSError(ctypes.get_errno(), "unshare")
os.write(made[1], b".")
os.read(mapped[0], 1)
os.setresgid(0, 0, 0)
os.setresuid(0, 0, 0)
run = f"/run/user/{user}"
script = 'mount --make-rslave / && for d in /run/docker /run/containerd /etc/docker; do mount -t tmpfs tmpfs $d || exit; done && exec dockerd "$@"'
argv = ["--rootless", "--config-file", "/run/rootless.json", "--data-root", f"{home}/.local/share/docker", "--exec-root", f"{run}/docker",
        "--pidfile", f"{run}/docker.pid", "--host", f"unix://{run}/docker.sock", "--bridge=none", "--iptables=false", "--ip6tables=false"]
os.execve("/bin/sh", ["sh", "-c", script, "dockerd", *argv],
          {"PATH": os.environ["PATH"], "HOME": home, "XDG_RUNTIME_DIR": run})
"""


class RootlessHost(Host):
    """A host seen from its user's engine."""

    @property
    def socket(self) -> Path:
        return Path(f"/proc/{self.pid}/root/run/user/{ROOTLESS_USER}/docker.sock")


class UsersHost(RootlessHost):
    """The same, and commands run as the user."""

    def command(self, argv: Sequence[Any], env: Any = None) -> List[str]:
        return super().command(["setpriv", f"--reuid={ROOTLESS_USER}", f"--regid={ROOTLESS_USER}", "--clear-groups", "--", *argv], env)


def link_to_the_root(host: Host) -> Host:
    host.exec(["mkdir", "/data/docker"])
    host.exec(["ln", "-s", "/data/docker", "/var/lib/docker"])
    host.start_engine()
    return host


def link_in_the_root(host: Host) -> Host:
    host.exec(["mkdir", "/srv/volumes"])
    host.exec(["ln", "-s", "/srv/volumes", "/var/lib/docker/volumes"])
    host.start_engine()
    return host


def user_namespaces(host: Host) -> Host:
    host.exec(["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", "dockremap"])
    for name in ("subuid", "subgid"):
        host.path(f"/etc/{name}").write_text("dockremap:100000:65536\n")
    host.start_engine()
    return host


def system_containerd(host: Host) -> Host:
    """The system's own, started before the engine: where Debian has it, or wherever its configuration says.

    The engine of the former has had one of its own before, and an image in it.
    """
    if host.name == "containerd-systems":
        before_that(host, {"containerd": None})
    place = "/data/elsewhere" if host.name == "containerd-moved" else "/var/lib/containerd"
    # The former is a disk: overlayfs cannot have its layers on the host's root, which is one itself.
    host.exec(["mkdir", "-p", place])
    host.path("/run/containerd.toml").write_text(f'version = 2\nroot = "{place}"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
    host.exec(["sh", "-c", "setsid containerd --config /run/containerd.toml >/run/fleet/containerd.log 2>&1 </dev/null &"])
    _wait_for(lambda: host.path("/run/containerd/containerd.sock").exists(), "containerd")
    host.start_engine()
    return host


def back_to_a_graph_driver(host: Host) -> Host:
    before_that(host, {"storage-driver": None, **CONTAINERD})
    host.start_engine()
    return host


def before_that(host: Host, other: Dict[str, Any]) -> None:
    """Let the engine run otherwise configured for once, and load an image into it."""
    path = host.path("/etc/docker/daemon.json")
    now = path.read_text()
    changed = {**json.loads(now), **other}
    path.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))
    host.start_engine()
    load_image(host, "app/before:1", {"srv/before": b"0" * 2 * MB})
    host.stop_engine()
    path.write_text(now)


def rootless(host: Host) -> Host:
    home, run = "/home/keeper", f"/run/user/{ROOTLESS_USER}"
    host.exec(["useradd", "--uid", str(ROOTLESS_USER), "--home-dir", home, "--no-create-home", "keeper"])
    host.exec(["mkdir", "-p", run, "/run/docker", "/run/containerd", "/etc/docker"])
    host.exec(["chown", "keeper:keeper", home, run])
    host.exec(["chmod", "700", home, run])
    host.path("/run/rootless.json").write_text("{}")
    host.path("/run/rootless.py").write_text(ROOTLESS)
    command = f"setsid {host.python} /run/rootless.py {ROOTLESS_USER} {SUBORDINATE} {home} >>/run/fleet/engine.log 2>&1 </dev/null &"
    host.exec(["sh", "-c", command])
    found = RootlessHost(host.spec, host.process, host.address, host.directory)
    _wait_for(lambda: found.engine_state() is None, "the engine without root", host)
    return found


def as_it_is(host: Host) -> Host:
    return host


def _wait_for(done: Callable[[], bool], what: str, host: Any = None) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline, f"{what} does not answer; {host.engine_log()[-2000:] if host else ''}"
        time.sleep(0.1)


@dataclass(frozen=True)
class Setup:
    """A host, what is done before its engine starts, and what has to be found: data roots (for du; the engine's first), leftovers below it."""

    spec: HostSpec
    prepare: Callable[[Host], Host]
    places: Tuple[str, ...]
    images: str = "graphdriver"
    sockets: Dict[str, str] = field(default_factory=dict)
    leftovers: Tuple[str, ...] = ()


SETUPS = {
    setup.spec.name: setup
    for setup in (
        Setup(HostSpec("elsewhere", data_root="/srv/engines/one", ssh=False), as_it_is, ("/srv/engines/one",)),
        Setup(HostSpec("linked", data_root="/data", daemon_json={"data-root": "/var/lib/docker"}, ssh=False, engine=False), link_to_the_root, ("/data/docker",)),
        Setup(HostSpec("link-inside", ssh=False, engine=False, disks={"/srv": "ext4:200M"}), link_in_the_root, ("/var/lib/docker", "/srv/volumes")),
        Setup(HostSpec("disks", ssh=False, disks={"/var/lib/docker/volumes": "xfs:1G", "/var/lib/docker/overlay2": "btrfs:1G", "/srv/disk": "ext4:500M"},
                       links={"/var/lib/docker/containers": "/srv/disk/containers"}),
              as_it_is, ("/var/lib/docker", "/var/lib/docker/volumes", "/var/lib/docker/overlay2", "/srv/disk/containers")),
        Setup(HostSpec("containerd-disks", root="forky", daemon_json=CONTAINERD, ssh=False,
                       disks={"/srv/containerd": "xfs:1G", "/srv/disk": "btrfs:1G"},
                       links={"/var/lib/docker/containerd": "/srv/containerd/there", "/var/lib/docker/volumes": "/srv/disk/volumes"}),
              as_it_is, ("/var/lib/docker", "/srv/containerd/there", "/srv/disk/volumes"), "containerd"),
        Setup(HostSpec("userns", daemon_json={"userns-remap": "default"}, ssh=False, engine=False), user_namespaces, ("/var/lib/docker/100000.100000",)),
        # This engine does not say what it calls itself at its containerd; the next ones do.
        Setup(HostSpec("userns-containerd", root="trixie", daemon_json={"userns-remap": "default", **CONTAINERD}, ssh=False, engine=False), user_namespaces,
              ("/var/lib/docker/100000.100000",), "containerd"),
        Setup(HostSpec("containerd-moved", root="forky", data_root="/data", ssh=False, engine=False,
                       daemon_json={"data-root": "/data/docker", "containerd": "/run/containerd/containerd.sock", **CONTAINERD}),
              system_containerd, ("/data/docker", "/data/elsewhere"), "containerd"),
        Setup(HostSpec("containerd-systems", root="trixie", data_root="/data", ssh=False, engine=False, disks={"/var/lib/containerd": "xfs:1G"},
                       daemon_json={"data-root": "/data/docker", "containerd": "/run/containerd/containerd.sock", **CONTAINERD}),
              system_containerd, ("/data/docker", "/var/lib/containerd"), "containerd", leftovers=CONTAINERDS_STORE),
        Setup(HostSpec("back-to-overlay2", root="forky", daemon_json={"features": {"containerd-snapshotter": False}}, ssh=False, engine=False),
              back_to_a_graph_driver, ("/var/lib/docker",), leftovers=CONTAINERDS_STORE),
        Setup(HostSpec("rootless", data_root="/home/keeper", ssh=False, engine=False), rootless, ("/home/keeper/.local/share/docker",),
              sockets={"docker_host": f"unix:///run/user/{ROOTLESS_USER}/docker.sock"}),
    )
}


def fill(host: Host) -> bool:
    """Images, containers, volumes, a log: what can be had without a running container. Returns whether the engine has build cache, too."""
    load_image(host, "app/base:1", {})
    load_image(host, "app/web:1", {"srv/large": bytes(2 * MB)})
    load_image(host, "app/web:1", {"srv/large": b"2" * 3 * MB})  # the first is dangling now
    host.must("POST", "/volumes/create", {"Name": "data"})
    body = {"Image": "app/web:1", "Volumes": {"/anonymous": {}}, "HostConfig": {"NetworkMode": "none", "Binds": ["data:/data"]}}
    ident = host.must("POST", "/containers/create?name=web", body)["Id"]
    host.must("PUT", f"/containers/{ident}/archive?path=/", tar({"written": b"4" * MB, "data/kept": b"5" * 4 * MB}))
    details = host.must("GET", f"/containers/{ident}/json")
    log = details["LogPath"] or f"{host.must('GET', '/info')['DockerRootDir']}/containers/{ident}/{ident}-json.log"
    host.path(log).write_text("x" * MB)
    try:
        build_image(host, "app/built:1", "FROM app/base:1\nCOPY file /\n", {"file": b"3" * MB}, buildkit=True)
    except FleetError:
        return False  # some engines build for a client's session alone
    finally:
        host.exec(["sync"])
    return True


def fill_for_another(host: Host) -> None:
    """Images of another user of the host's containerd: one that the engine has as well, and one that it has not."""
    status, content = host.api("GET", "/images/get?names=app/base:1")
    assert status == 200
    load_image(host, "other/own:1", {"own": b"6" * 2 * MB})
    own = host.api("GET", "/images/get?names=other/own:1")[1]
    for name, archive in (("same", content), ("own", own)):
        host.path(f"/run/{name}.tar").write_bytes(archive)
        host.exec(["ctr", "-n", "somebody", "images", "import", f"/run/{name}.tar"])
        host.path(f"/run/{name}.tar").unlink()
    host.must("DELETE", "/images/other/own:1")


class World:
    """The hosts that could be had, and the report of each."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        prepared = on_all(fleet, lambda host: SETUPS[host.name].prepare(host))
        self.hosts: Dict[str, Host] = dict(prepared)
        self.cached = on_all(self.hosts.values(), fill)
        for name in ("containerd-moved", "containerd-systems"):
            if name in self.hosts:
                fill_for_another(self.hosts[name])
        self.reports = {host.name: self.report(host) for host in self.hosts.values()}

    def report(self, host: Host, **options: Any) -> Dict[str, Any]:
        return Bare(host).run(**{"measure": "exact", "top": -1, "state_dir": "", **SETUPS[host.name].sockets, **options}).result

    def __getitem__(self, name: str) -> Tuple[Host, Dict[str, Any]]:
        if name not in self.hosts:
            pytest.skip(f"not made: the root {SETUPS[name].spec.root} (make roots)")
        return self.hosts[name], self.reports[name]


@pytest.fixture(scope="module")
def world(here: None) -> Iterator[World]:
    with start([setup.spec for setup in SETUPS.values()]) as fleet:
        yield World(fleet)


@pytest.fixture(params=list(SETUPS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def du(host: Host, *folders: str) -> int:
    return sum(int(host.exec(["du", "-sxB1", folder]).stdout.split()[0]) for folder in folders)


def words(report: Dict[str, Any]) -> List[str]:
    """The module's warnings, which Ansible wraps by now."""
    return [json.dumps(entry) for entry in report.get("warnings") or []]


def test_the_data_root_is_the_one_that_the_engine_names(world: World, name: str) -> None:
    _host, report = world[name]
    engine, setup = report["engine"], SETUPS[name]
    assert engine["root_dir"] == setup.places[0] and engine["root_dir_proven"], engine
    assert engine["image_store"] == setup.images
    assert engine["rootless"] == (name == "rootless")
    assert sorted(place["path"] for place in report["roots"]) == sorted(setup.places)


def test_every_byte_has_an_owner(world: World, name: str) -> None:
    host, report = world[name]
    totals, said = report["totals"], du(host, *SETUPS[name].places)
    both = totals["attributed_bytes"] + totals["unattributed_bytes"]
    assert abs(both - said) <= said * 0.005
    assert sum(place["disk_bytes"] for place in report["roots"]) == both == totals["disk_bytes"]
    # What others have in the same containerd is theirs: it is known, and not this engine's.
    nobodys = report["largest"]["unattributed"]
    assert sum(item["disk_bytes"] for item in nobodys) <= both * 0.01, nobodys
    assert report["unread"]["count"] == 0


def test_what_is_there_is_found(world: World, name: str) -> None:
    _host, report = world[name]
    disk = {category: figures["disk_bytes"] for category, figures in report["usage"].items()}
    assert disk["images"] > 6 * MB, disk
    assert 1 * MB <= disk["containers"] < (9 * MB if name == "userns-containerd" else 2 * MB), disk
    assert MB <= disk["logs"] < 1.1 * MB, disk
    assert bool(report["usage"]["build_cache"]["count"]) == world.cached[name], disk
    assert 4 * MB <= disk["volumes"] < 5 * MB, disk


#: What of the engine lies on which filesystem, the data root's first.
HOLDS = {
    "link-inside": [{"images", "containers", "build_cache", "logs", "container_metadata", "engine_metadata", "tmp"}, {"volumes"}],
    "disks": [{"engine_metadata", "tmp"}, {"logs", "container_metadata"}, {"volumes"}, {"images", "containers", "build_cache"}],
    "containerd-moved": [{"images", "containers", "volumes", "build_cache", "logs", "container_metadata", "engine_metadata", "tmp"}],
    "containerd-systems": [{"volumes", "logs", "container_metadata", "engine_metadata", "tmp"}, {"images", "containers", "build_cache", "tmp"}],
    "containerd-disks": [{"logs", "container_metadata", "engine_metadata", "tmp"}, {"images", "containers", "build_cache", "tmp"}, {"volumes"}],
}


def test_each_filesystem_that_holds_what_the_engine_owns_is_reported_once(world: World, name: str) -> None:
    host, report = world[name]
    found = report["filesystems"]
    assert [set(entry["holds"]) for entry in found] == HOLDS.get(name, HOLDS["containerd-moved"]), found
    for place in SETUPS[name].places:
        device = os.stat(host.path(place)).st_dev
        (entry,) = [entry for entry in found if os.stat(host.path(entry["mount_point"])).st_dev == device]
        figures = os.statvfs(host.path(place))
        assert entry["size"] == figures.f_blocks * figures.f_frsize
    for entry in report["roots"]:
        # Each by itself, to the byte, and none of them twice.
        said = du(host, entry["path"])
        assert abs(entry["disk_bytes"] - entry["subvolume_bytes"] - said) <= said * 0.005 + 65536, entry
    assert report["mounts"] == [], "the engine's own disks are no others"


def test_a_link_that_somebody_else_made_is_not_followed_and_a_warning_says_so(world: World) -> None:
    host, _report = world["link-inside"]
    host.exec(["chown", "--no-dereference", "nobody", "/var/lib/docker/volumes"])
    try:
        report = world.report(host)
    finally:
        host.exec(["chown", "--no-dereference", "root", "/var/lib/docker/volumes"])
    why = "/var/lib/docker/volumes leads elsewhere by a link; what is there is not counted: /var/lib/docker/volumes belongs to user 65534"
    assert [line for line in words(report) if why in line], words(report)
    assert report["usage"]["volumes"]["count"] == 2 and report["usage"]["volumes"]["disk_bytes"] is None
    assert [entry["path"] for entry in report["roots"]] == ["/var/lib/docker"]
    for name in SETUPS:
        assert name not in world.hosts or words(world[name][1]) == []


def test_what_was_in_use_before_is_a_leftover_and_nothing_else_is(world: World, name: str) -> None:
    _host, report = world[name]
    # What containerd's collector has not got to yet is small.
    setup, found = SETUPS[name], {item["path"]: item for item in report["largest"]["leftovers"] if item["disk_bytes"] > MB // 16}
    assert sorted(found) == [f"{setup.places[0]}/{part}" for part in setup.leftovers]
    assert all(item["reason"] == "of an image store that is not in use" and item["disk_bytes"] > 2 * MB for item in found.values())


@pytest.mark.parametrize("name", ["containerd-moved", "containerd-systems"])
def test_what_others_have_in_the_same_containerd_is_nobodys_leftover(world: World, name: str) -> None:
    host, report = world[name]
    listed = host.exec(["ctr", "-n", "somebody", "images", "list", "-q"]).stdout.split()
    assert sorted(entry.rpartition("/")[2] for entry in listed) == ["base:1", "own:1"]
    theirs = [item["disk_bytes"] for item in report["largest"]["other_users"]]
    # Their own layer as it was sent, and unpacked; the other one's archive the engine has as well.
    assert 4 * MB <= sum(theirs) < 9 * MB
    assert not [line for line in words(report) if "records" in line or "containerd" in line]


def test_an_engine_without_root_is_measured_by_its_user_as_far_as_he_may_read(world: World) -> None:
    host, report = world["rootless"]
    user = UsersHost(host.spec, host.process, host.address, host.directory)
    own = world.report(user)
    assert own["engine"]["root_dir_proven"] and own["engine"]["rootless"]
    # Some of it belongs to users whom only the engine can become: that is said.
    assert own["unread"]["count"] > 0
    assert {entry["error"] for entry in own["unread"]["examples"]} == {"Permission denied"}
    assert own["totals"]["disk_bytes"] <= report["totals"]["disk_bytes"]
    assert own["usage"]["logs"]["disk_bytes"] == report["usage"]["logs"]["disk_bytes"]


def test_fast_finds_the_same_places(world: World, name: str) -> None:
    host, report = world[name]
    fast = world.report(host, measure="fast")
    assert fast["paths"] == report["paths"]
    assert fast["usage"]["logs"]["disk_bytes"] == report["usage"]["logs"]["disk_bytes"]
    assert {category: figures["count"] for category, figures in fast["usage"].items() if category in ("images", "containers", "volumes")} == {
        category: report["usage"][category]["count"] for category in ("images", "containers", "volumes")
    }
    assert fast["usage"]["images"]["logical_bytes"]


@pytest.mark.parametrize("name", ["link-inside", "containerd-disks"])
def test_the_engine_removes_no_volume_behind_a_link_and_the_plan_says_so(world: World, name: str) -> None:
    host, _report = world[name]
    host.must("POST", "/volumes/create", {"Name": "unused"})
    result = Bare(host, "docker_clean").run(volumes={"scope": "unused"}, state_dir="").result
    assert (result["changed"], result["failures"]) == (False, [])
    assert "behind a link (the volumes' folder is one), through which the engine removes nothing" in {entry["reason"] for entry in result["kept"]}
    status, answer = host.api("DELETE", "/volumes/unused")
    assert status == 500 and "outside of the local volume root" in answer["message"], "else it could go"


def test_a_log_is_cut_wherever_the_data_root_is(world: World, name: str) -> None:
    """The last of all tests: it changes what the others have measured."""
    host, report = world[name]
    ident = host.must("GET", "/containers/web/json")["Id"]
    log = host.path(f"{report['engine']['root_dir']}/containers/{ident}/{ident}-json.log")
    lines = [json.dumps({"log": f"{number}\n", "stream": "stdout", "time": "2024-03-01T12:00:00Z"}) for number in range(20_000)]
    log.write_text("\n".join(lines) + "\n")
    owner = os.stat(log.parent)
    os.chown(log, owner.st_uid, owner.st_gid)
    # An engine without root is looked after by its user.
    by = UsersHost(host.spec, host.process, host.address, host.directory) if name == "rootless" else host
    result = Bare(by, "docker_log_truncate").run(keep="100000", state_dir="", **SETUPS[name].sockets).result
    assert [(entry["name"], entry["method"], entry["readers"]) for entry in result["logs"]] == [("web", "collapse", "ok")]
    kept = [line for line in log.read_text().splitlines() if line.strip()]
    assert kept == lines[-len(kept):] and 90_000 < sum(len(line) + 1 for line in kept) <= 100_000
