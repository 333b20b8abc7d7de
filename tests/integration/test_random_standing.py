# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random hosts whose containers, volumes and folders stand on each other in every way that Docker and mount(8) have.

Nothing that a container that stays, the engine's next start or another filesystem needs goes; all that stays can be started again and finds
its data; and what nothing needs goes. What is needed is known from how the host was made, and what goes is expected by
tests/unit/expected.py; neither knows the policy. The dice are hypothesis's,
and fall alike in each run; since a world costs seconds, one that fails is not made smaller.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, FrozenSet, Iterator, List, Optional, Set, Tuple

import pytest

from tests.fleet import Fleet, Host, HostSpec
from tests.fleet.dirty import load_image
from tests.fleet.errors import FleetError
from tests.fuzz.dice import Dice, throw
from tests.integration.support import CONTAINERD, REPOSITORY, on_all, start
from tests.integration.test_random_hosts import read
from tests.integration.things import by_itself, clear, until

sys.path.insert(0, str(REPOSITORY / "tests/unit"))

from ansible_collections.fleetclean.docker.plugins.module_utils import policy
from expected import Expected
from model import Box, Model

SPECS = [HostSpec("s20", daemon_json={"bridge": None}), HostSpec("s28-ctd", root="forky", daemon_json={**CONTAINERD, "bridge": None})]
WORLDS = 3
VOLUMES = "/var/lib/docker/volumes"
#: Runs on, unless it is to end by itself: then only once the test wants it to.
COMMAND = "[ -z $ENDS ] || [ -e /control/go ] || exit $ENDS; exec /bin/sleep 1000000"
PROJECT = "com.docker.compose.project"
LIVE = ("running", "paused")


@pytest.fixture(scope="module")
def fleet(here: None) -> Iterator[Fleet]:
    with start(SPECS) as hosts:
        for host in hosts:
            host.exec(["mount", "--make-rshared", "/"])  # as on any host with systemd
        yield hosts


@dataclass(frozen=True)
class Source:
    """What a container can have: a volume's name, or a path of the host.

    ``marker``: the file below it that says whose data it is, by one of ``contents``. ``volumes``: those in whose folders it lies.
    """

    given: str
    contents: FrozenSet[str]
    volumes: FrozenSet[str] = frozenset()
    marker: str = "marker"

    @property
    def path(self) -> str:
        return self.given if self.given.startswith("/") else f"{VOLUMES}/{self.given}/_data"


@dataclass
class Made:
    """A container. ``has``: its sources, by the path at which it has each; ``needs``: the containers without which it does not start."""

    name: str
    goal: str
    id: str = ""
    has: Dict[str, Source] = field(default_factory=dict)
    needs: Dict[str, Made] = field(default_factory=dict)
    uses: Dict[str, Made] = field(default_factory=dict)
    by_hand: bool = False
    network: str = "none"


class World:
    """Makes a random host, and knows what stands on what there."""

    def __init__(self, host: Host, number: int, thrown: Dice) -> None:
        self.host, self.dice, self.mark = host, thrown, f"w{number}"
        self.place = f"/srv/{self.mark}"
        self.sources: List[Source] = []
        self.boxes: List[Made] = []
        self.images: List[str] = []
        self.nets: List[str] = []
        self.plain: List[str] = []
        #: The volumes that each volume shows: as its device, or by a link in the place of its folder.
        self.shows: Dict[str, FrozenSet[str]] = {}
        #: The type of what these volumes mount.
        self.types: Dict[str, str] = {}
        #: Volumes where something is mounted, or whose data is mounted elsewhere: they stay, and what they show.
        self.entangled: Set[str] = set()
        #: Folders of the host whose markers have to stay, open, so that no later mount hides them; and what those say.
        self.wanted: Dict[str, Tuple[int, str]] = {}
        #: Where mounts lie that are no shared ones.
        self.private: List[str] = []
        self.made = 0

    def make(self) -> None:
        dice = self.dice
        self.folder("control")
        for _ in range(dice.randint(2, 4)):
            self.image(f"{self.mark}/app{self.number()}:1")
        for _ in range(dice.randint(1, 2)):
            name = f"{self.mark}-n{self.number()}"
            self.host.must("POST", "/networks/create", {"Name": name, "Driver": "bridge", "Labels": self.labels(), "CheckDuplicate": True})
            self.nets.append(name)
        for _ in range(2):
            self.sources.append(self.host_folder())
        for _ in range(dice.randint(3, 6)):
            self.volume()
        for _ in range(dice.randint(3, 8)):
            self.special()
        boxes = [self.box() for _ in range(dice.randint(5, 9))]
        late = dice.chance(0.4)
        for box in boxes:
            if box.goal != "created":
                self.host.must("POST", f"/containers/{box.id}/start")
            if late and dice.chance(0.3):
                self.special()
        if dice.chance(0.5):  # a tag that moves on
            self.image(dice.choice(self.images))
        self.image(f"{self.mark}/free:1")
        self.volume()
        self.settle()

    def settle(self) -> None:
        """Give each container the state that it is to have, those that use others first."""
        for box in reversed(self.boxes):
            if box.goal == "exited":
                self.host.must("POST", f"/containers/{box.id}/stop?t=0")
                box.by_hand = True
            elif box.goal == "ended":
                until(lambda box=box: self.inspect(box)["State"]["Status"] == "exited")
        for box in self.boxes:
            if box.goal == "paused":
                self.host.must("POST", f"/containers/{box.id}/pause")

    def number(self) -> int:
        self.made += 1
        return self.made

    def inspect(self, box: Made) -> Dict[str, Any]:
        found = self.host.must("GET", f"/containers/{box.id}/json")
        assert isinstance(found, dict)
        return found

    def labels(self) -> Dict[str, str]:
        found = dict(self.dice.choice(({}, {}, {}, {}, {}, {}, {"fleetclean.keep": ""}, {"tier": "database"})))
        if self.dice.chance(0.2):
            found.update({PROJECT: f"{self.mark}{self.dice.choice('pq')}", "com.docker.compose.oneoff": self.dice.choice(("False", "False", "True"))})
        return found

    def image(self, tag: str) -> None:
        load_image(self.host, tag, {"n": f"{tag} {self.number()}".encode()}, labels={"tier": "database"} if self.dice.chance(0.1) else {})
        if tag not in self.images:
            self.images.append(tag)

    def folder(self, name: str, content: str = "") -> str:
        """A folder of the host, and its marker."""
        path = name if name.startswith("/") else f"{self.place}/{name}"
        there = self.host.path(path)
        there.mkdir(parents=True, exist_ok=True)
        if content:
            (there / "marker").write_text(content)
        return path

    def want(self, path: str) -> None:
        opened = os.open(self.host.path(path), os.O_RDONLY | os.O_DIRECTORY)
        self.wanted[path] = (opened, marker_in(opened))

    def host_folder(self) -> Source:
        name = f"h{self.number()}"
        path = self.folder(name, name)
        self.folder(f"{path}/sub", name)
        self.want(path)
        return Source(path, frozenset([name]))

    def volume(self, device: Optional[Source] = None) -> str:
        dice, name = self.dice, f"{self.mark}-v{self.number()}"
        body: Dict[str, Any] = {"Name": name, "Labels": self.labels()}
        contents = frozenset([name])
        if device:
            path = dice.choice((device.path, device.path, f"{device.path}/", device.path.replace("/", "//"), f"{device.path}/../{Path(device.path).name}"))
            body["DriverOpts"] = {"type": "none", "o": dice.choice(("bind", "bind", "rbind", "bind,rw")), "device": path}
            self.show(name, device, "none")
            contents = device.contents
        self.host.must("POST", "/volumes/create", body)
        own = self.folder(f"{VOLUMES}/{name}/_data", name)  # a device covers it, once a container has it
        self.sources.append(Source(name, contents, frozenset([name])))
        if not device:
            self.plain.append(name)
            self.folder(f"{own}/sub", f"{name}/sub")
            self.sources.append(Source(f"{own}/sub", frozenset([f"{name}/sub"]), frozenset([name])))
        self.sources.append(Source(own, contents | {name}, frozenset([name])))
        self.sources.append(Source(f"{VOLUMES}/{name}", contents | {name}, frozenset([name]), "_data/marker"))
        return name

    def show(self, name: str, found: Source, kind: str) -> None:
        self.shows[name], self.types[name] = found.volumes, kind
        if len(found.volumes) > 1:
            self.entangled |= found.volumes  # the expectation knows of one only

    def special(self) -> None:
        """Something on the host that leads to a volume, or lies in one."""
        dice, host = self.dice, self.host
        # By its path, a volume's folder has what lies below the device as well: nothing is mounted there as long as no container has it.
        folders = [
            source if source.given.startswith("/") else replace(source, given=source.path, contents=source.contents | {source.given})
            for source in self.sources if source.marker == "marker"
        ]
        what = dice.choice(("device", "device", "link", "link", "inner", "elsewhere", "below", "upon", "all", "instead", "file", "layer", "overlay"))
        if what == "device":
            self.volume(dice.choice(folders))
        elif what == "link":
            found = dice.choice(folders)
            path = f"{self.place}/l{self.number()}"
            target = os.path.relpath(found.path, self.place) if dice.chance(0.3) else found.path
            host.path(self.place).joinpath(Path(path).name).symlink_to(target)
            self.sources.append(replace(found, given=path))
        elif what == "inner":  # a link that lies in one volume and leads to another folder
            name, found = dice.choice(self.plain), dice.choice(folders)
            path = f"{VOLUMES}/{name}/_data/l{self.number()}"
            if name not in self.entangled and name not in self.reached(found.volumes):
                host.path(path).symlink_to(found.path)
                self.sources.append(replace(found, given=path, volumes=found.volumes | {name}))
        elif what == "layer":
            self.mount_in_layer()
        elif what == "overlay":
            self.overlay(dice.choice(folders))
        elif what == "elsewhere":
            found = dice.choice(folders)
            path = self.folder(f"m{self.number()}")
            self.mount(found.path, path)
            self.entangled |= self.reached(found.volumes)
            self.sources.append(replace(found, given=path))
            self.want(path)
        elif what == "below" or (what == "upon" and set(self.plain) - self.entangled):
            name, found = dice.choice([name for name in self.plain if what == "below" or name not in self.entangled]), self.host_folder()
            path = self.folder(f"{VOLUMES}/{name}/_data" + (f"/m{self.number()}" if what == "below" else ""))
            self.mount(found.path, path)
            self.entangled.add(name)
            self.covered(name, found) if what == "upon" else None
            self.sources.append(replace(found, given=path, volumes=frozenset([name])))
        elif what == "all":
            path = self.folder(f"m{self.number()}")
            self.mount(VOLUMES, path)
            if dice.chance(0.3):
                host.exec(["mount", dice.choice(("--make-rprivate", "--make-rslave")), path])
                self.private.append(path)
                self.entangled.update(self.shows)  # what is mounted in their folders at the moment is mounted there as well
            name = dice.choice(self.plain)
            self.sources += [
                replace(source, given=source.given.replace(VOLUMES, path)) for source in self.sources
                if source.given.startswith(f"{VOLUMES}/{name}/") and source.volumes == {name}
            ]
        elif what == "instead" and self.plain:
            name = dice.choice(self.plain)
            rest = [source for source in folders if name not in self.reached(source.volumes)]
            found = dice.choice(rest)
            own = f"{VOLUMES}/{name}/_data"
            if name in self.entangled or self.used(name):
                return
            host.exec(["/bin/sh", "-c", f"rm -r {own} && ln -s {found.path} {own}"])
            self.plain.remove(name)
            self.entangled |= {name} | self.reached(found.volumes)
            self.show(name, found, "none")
            # What was below it is gone, and a container that has the folder above it would look for the other one in itself.
            self.sources = [source for source in self.sources if source.given not in (f"{own}/sub", f"{VOLUMES}/{name}")]
            self.covered(name, found)
        elif what == "file":
            found = dice.choice(folders)
            self.sources.append(replace(found, given=f"{found.path}/marker", marker=""))

    def mount_in_layer(self) -> None:
        """A mount that somebody made in the root file system of a container that runs."""
        found = self.host_folder()
        for box in self.boxes:
            pid = self.inspect(box)["State"]["Pid"]
            if pid:
                self.mount(found.path, self.folder(f"{self.root_of(box)}/mnt"))
                break

    def root_of(self, box: Made) -> str:
        raw = self.inspect(box)
        return str(((raw.get("GraphDriver") or {}).get("Data") or {}).get("MergedDir") or f"/var/lib/docker/rootfs/overlayfs/{box.id}")

    def overlay(self, found: Source) -> None:
        """A volume that has another folder as the lower one of an overlay."""
        name = f"{self.mark}-v{self.number()}"
        options = {"type": "overlay", "device": "overlay", "o": f"lowerdir={found.path}:{self.folder('empty')}"}
        self.host.must("POST", "/volumes/create", {"Name": name, "Labels": self.labels(), "DriverOpts": options})
        self.show(name, found, "overlay")
        self.folder(f"{VOLUMES}/{name}/_data", name)
        self.sources.append(Source(name, found.contents, frozenset([name])))

    def used(self, name: str) -> bool:
        """Whether anything has led to a volume already."""
        return any(name in source.volumes and not source.path.startswith(f"{VOLUMES}/{name}") for source in self.sources) or any(
            name in source.volumes for box in self.boxes for source in box.has.values()) or any(name in shown for shown in self.shows.values())

    def mount(self, source: str, target: str) -> None:
        self.host.exec(["mount", self.dice.choice(("--bind", "--bind", "--rbind")), source, target])

    def covered(self, name: str, by: Source) -> None:
        """What a volume's folder shows by now, or once its containers start again."""
        own = f"{VOLUMES}/{name}"

        def seen(source: Source) -> Source:
            through = source.given == name or source.path == f"{own}/_data" or source.given == own
            return replace(source, contents=source.contents | by.contents) if through or name in source.volumes else source

        self.sources = [seen(source) for source in self.sources]
        for box in self.boxes:
            box.has = {target: seen(source) for target, source in box.has.items()}

    def reached(self, volumes: FrozenSet[str]) -> Set[str]:
        """These volumes, and all whose data they show."""
        found: Set[str] = set()
        more = set(volumes)
        while more - found:
            found |= more
            more = {shown for name in found for shown in self.shows.get(name, ())}
        return found

    def box(self) -> Made:
        dice = self.dice
        box = Made(f"{self.mark}-c{self.number()}", dice.choice(("created", "exited", "exited", "running", "running", "paused", "ended")))
        body: Dict[str, Any] = {
            "Cmd": ["/bin/sh", "-c", COMMAND], "StopSignal": "SIGKILL", "Image": dice.choice(self.images), "Labels": self.labels(),
            "Env": [f"ENDS={dice.choice((0, 3))}"] if box.goal == "ended" else [],
        }
        hosts: Dict[str, Any] = {"NetworkMode": "none", "IpcMode": "shareable", "Binds": [f"{self.place}/control:/control"], "RestartPolicy": self.restarts(box)}
        body["HostConfig"] = hosts
        others = [other for other in self.boxes if other.goal != "ended" and (other.goal != "created" or box.goal == "created")]
        if others and dice.chance(0.6):
            self.stand_on(box, dice.choice(others), hosts, body)
        elif dice.chance(0.3):
            box.network = hosts["NetworkMode"] = dice.choice([*self.nets, "bridge", "host"])
        for _ in range(dice.choice((0, 1, 1, 2, 3))):
            # By a path more often than by name, which the engine knows itself.
            found = [source for source in self.sources if source.given.startswith("/")]
            self.give(box, dice.choice(found if dice.chance(0.7) else self.sources), hosts["Binds"])
        if dice.chance(0.1):
            hosts["Binds"].append(dice.choice((f"{VOLUMES}:/all", "/var/lib/docker:/all:ro", "/:/all:ro,rslave")))
            if box.goal in LIVE:
                self.entangled.update(self.shows)  # those that are mounted are mounted in its namespace as well
        if dice.chance(0.2):
            body["Volumes"] = {"/anonymous": {}}
        if dice.chance(0.1) and self.plain:
            # The recipe of moby 35323: a mount that is left behind on the host, below the volume.
            name, found = dice.choice(self.plain), self.host_folder()
            target = f"/shared/{box.name}"
            hosts["Binds"] += [f"{name}:/shared", f"{found.path}:{target}:shared"]
            self.entangled.add(name)
            box.has[target] = found
        box.id = self.host.must("POST", f"/containers/create?name={box.name}", body)["Id"]
        for mount in self.inspect(box)["Mounts"]:
            if mount["Destination"] == "/anonymous":
                self.folder(f"{VOLUMES}/{mount['Name']}/_data", mount["Name"])
                box.has["/anonymous"] = Source(mount["Name"], frozenset([mount["Name"]]), frozenset([mount["Name"]]))
                self.sources.append(replace(box.has["/anonymous"], given=f"{VOLUMES}/{mount['Name']}/_data"))
        self.boxes.append(box)
        return box

    def restarts(self, box: Made) -> Dict[str, Any]:
        name = self.dice.choice(("no", "no", "no", "always", "unless-stopped", "on-failure", "on-failure"))
        if box.goal == "ended":  # any other would have it run for ever
            return {"Name": name, "MaximumRetryCount": 1} if name == "on-failure" else {"Name": "no"}
        return {"Name": name, "MaximumRetryCount": self.dice.choice((0, 1, 3)) if name == "on-failure" else 0}

    def give(self, box: Made, source: Source, binds: List[str]) -> None:
        target = f"/m{self.number()}"
        modes = ("", "", ":ro", ":rw")
        if source.given.startswith("/"):
            inside = source.given.startswith("/var/lib/docker/")
            modes += (":rslave", ":rshared") if inside else (":rprivate",) if source.given.startswith(tuple(self.private)) else (":rprivate", ":shared")
        mode = self.dice.choice(modes)
        binds.append(f"{source.given}:{target}{mode}")
        box.has[target] = source

    def stand_on(self, box: Made, other: Made, hosts: Dict[str, Any], body: Dict[str, Any]) -> None:
        """Let a container use something of another one."""
        what = self.dice.choice(("network", "network", "ipc", "pid", "from", "from", "link", "folder"))
        given = self.dice.choice((other.name, other.id))
        if what == "network":
            hosts["NetworkMode"] = f"container:{given}"
        elif what in ("ipc", "pid"):
            hosts[{"ipc": "IpcMode", "pid": "PidMode"}[what]] = f"container:{given}"
            if what == "pid" and other.goal == "exited" and box.goal in LIVE:
                box.goal = "exited"  # it ends with the first process of that namespace
        elif what == "from":
            hosts["VolumesFrom"] = [given + self.dice.choice(("", ":ro"))]
            box.has.update(other.has)
        elif what == "link" and other.network in ("bridge", *self.nets):
            box.network = hosts["NetworkMode"] = other.network
            if other.network == "bridge":
                hosts["Links"] = [f"{given}:other"]
            else:
                body["NetworkingConfig"] = {"EndpointsConfig": {other.network: {"Links": [f"{given}:other"]}}}
        elif what == "folder":
            hosts["Binds"].append(f"/var/lib/docker/containers/{other.id}:/other:ro")
            box.has["/other"] = Source(f"/var/lib/docker/containers/{other.id}", frozenset([other.id]), marker="hostname")
        else:
            return
        (box.uses if what in ("from", "folder") else box.needs)[what] = other

    # -- what is there ---------------------------------------------------------------------------

    def model(self) -> Model:
        """What the engine has, as the expectation knows it: paths as what they are paths of."""
        found = read(self.host, {})
        mine = {box.id: box for box in self.boxes}
        for ident, box in found.boxes.items():
            raw, made = self.host.must("GET", f"/containers/{ident}/json"), mine[ident]
            box.exit_code, box.restarted = raw["State"]["ExitCode"], raw["RestartCount"]
            box.retries = raw["HostConfig"]["RestartPolicy"]["MaximumRetryCount"]
            self.stopped_by_hand(box, made)
            box.needs = {what: other.id for what, other in (*made.needs.items(), *made.uses.items())}
            box.binds = [f"/nowhere/volumes/{name}" for source in made.has.values() for name in source.volumes]
        for name, shown in self.shows.items():
            data = found.data.get(name)
            if data:
                data.options = {"type": self.types[name], "device": f"/nowhere/volumes/{next(iter(shown))}" if shown else "/srv"}
        return found

    @staticmethod
    def stopped_by_hand(box: Box, made: Made) -> None:
        """The engine starts no such container again that has this policy, and it is in its record, which is at hand here."""
        if made.by_hand and box.restart == "unless-stopped":
            box.restart = "no"

    def views(self) -> Dict[Tuple[str, str], str]:
        """What each container that lives has at each of its places."""
        found = {}
        for box in self.boxes:
            status, raw = self.host.api("GET", f"/containers/{box.id}/json")
            if status != 404 and raw["State"]["Pid"]:
                for target, source in box.has.items():
                    found[(box.name, target)] = self.seen(raw["State"]["Pid"], target, source)
        return found

    def seen(self, pid: int, target: str, source: Source) -> str:
        try:
            return Path(f"/proc/{self.host.pid}/root/proc/{pid}/root{target}/{source.marker}".rstrip("/")).read_text()
        except OSError as error:
            return f"cannot be read: {error.strerror}"

    def lost(self) -> List[str]:
        """Folders of the host whose markers are not as they were."""
        return [path for path, (opened, content) in self.wanted.items() if marker_in(opened) != content]

    def clean_up(self) -> None:
        """Remove all that was made; nothing is mounted in the end."""
        for opened, _content in self.wanted.values():
            os.close(opened)
        for entry in self.host.must("GET", "/containers/json?all=1"):
            self.host.api("DELETE", f"/containers/{entry['Id']}?force=1&v=1")
        for line in reversed(Path(f"/proc/{self.host.pid}/mountinfo").read_text().splitlines()):
            point = line.split()[4]
            if point.startswith((f"{VOLUMES}/", "/var/lib/docker/containers/", f"{self.place}/")):
                self.host.exec(["umount", "-l", point], check=False)
        for name in self.shows:
            self.host.exec(["/bin/sh", "-c", f"[ ! -L {VOLUMES}/{name}/_data ] || rm {VOLUMES}/{name}/_data"])
        clear(self.host)
        self.host.exec(["rm", "-rf", self.place])


def marker_in(folder: int) -> str:
    """What the marker in an open folder says; empty if there is none."""
    try:
        with open(os.open("marker", os.O_RDONLY, dir_fd=folder), encoding="utf-8") as stream:
            return stream.read()
    except OSError:
        return ""


def wishes_for(world: World) -> policy.Wishes:
    dice = world.dice
    names = [box.name for box in world.boxes]

    def age() -> Optional[int]:
        return 3600 if dice.chance(0.04) else None

    containers = policy.ContainerWish(
        states=tuple(state for state in ("created", "exited", "dead", "running", "paused") if dice.chance(0.35 if state in LIVE else 0.9)),
        older_than=age(), keep=tuple(name for name in names if dice.chance(0.08)), volumes=dice.chance(0.5), compose=dice.chance(0.3),
    )
    images = policy.ImageWish(scope=dice.choice(("dangling", "unused", "unused", "all")), older_than=age(), keep_latest=dice.choice((0, 0, 0, 1)))
    volumes = policy.VolumeWish(
        dice.choice(("anonymous", "unused", "unused", "unused", "unused", "unused")), age(), tuple(name for name in world.plain if dice.chance(0.06)),
        dice.choice((("local",), ("local", "local/*"), ("local", "local/*"), ("*",))),
    )
    wishes = policy.Wishes(
        containers if dice.chance(0.85) else None, images if dice.chance(0.6) else None, volumes if dice.chance(0.9) else None,
        policy.NetworkWish(age()) if dice.chance(0.6) else None, None,
        dice.choice((("fleetclean.keep",), ("fleetclean.keep",), ("fleetclean.keep", "tier=data*"), ())), dice.choice(("keep", "keep", "keep", "clean")),
    )
    return wishes if wishes.containers or wishes.images or wishes.volumes or wishes.networks else wishes._replace(volumes=volumes)


def options_of(wishes: policy.Wishes) -> Dict[str, Any]:
    """The module's options that say it."""
    found: Dict[str, Any] = {"keep_labels": list(wishes.keep_labels), "orchestrated": wishes.orchestrated, "state_dir": ""}
    for section in ("containers", "images", "volumes", "networks"):
        wish = getattr(wishes, section)
        if wish:
            found[section] = {
                key: f"{value}s" if key.endswith("older_than") else list(value) if isinstance(value, tuple) else value
                for key, value in wish._asdict().items() if value is not None
            }
    return found


def objects(result: Dict[str, Any]) -> List[Tuple[str, str]]:
    return [(entry["kind"], entry["name"] if entry["kind"] == "tag" else entry["id"]) for entry in result["removed"]]


def kept_of(result: Dict[str, Any]) -> Dict[Tuple[str, str], int]:
    """Their number, by kind and reason; check mode measures sizes, and a plain run does not."""
    return {(entry["kind"], entry["reason"]): entry["count"] for entry in result["kept"]}


def one_world(host: Host, number: int, thrown: Dice) -> None:
    clear(host)
    world = World(host, number, thrown)
    try:
        world.make()
        judge(world, number)
    finally:
        world.clean_up()


def judge(world: World, number: int) -> None:
    host, wishes = world.host, wishes_for(world)
    target = world.dice.chance(0.1)
    options = {**options_of(wishes), **({"free_target": "100%"} if target else {"parallel": world.dice.choice((1, 4))})}
    before, seen = world.model(), world.views()
    foretold = by_itself(host, check=True, **options)
    told = f"\n{host.name}, world {number}: {options}\n" + "\n".join(
        [f"{entry['kind']} {entry['name']}: {entry['reason']}" for entry in foretold.get("removed", ())] + [str(entry) for entry in foretold.get("kept", ())]
        + [f"{box.name} ({box.goal}) needs {[other.name for other in (*box.needs.values(), *box.uses.values())]}, has "
           + ", ".join(f"{source.given} at {where}" for where, source in box.has.items()) for box in world.boxes]
        + [f"{name} shows {set(shown)}" for name, shown in world.shows.items()] + [f"entangled: {world.entangled}"])
    assert not foretold["failed"], f"{foretold['msg']}{told}"
    assert world.model().everything() == before.everything(), f"check mode changed something{told}"
    result = by_itself(host, **options)
    assert (result["failed"], result["failures"]) == (False, []), f"{result.get('msg')} {result['failures']}{told}"
    assert objects(result) == objects(foretold), f"done: {objects(result)}{told}"
    assert kept_of(result) == kept_of(foretold), f"kept: {result['kept']}{told}"

    after = world.model()
    went = set(objects(result))
    assert before.everything() - after.everything() == went | {entry for entry in before.everything() - after.everything() if entry[0] == "tag"}, told
    for kind, had, asked in (("container", before.boxes, wishes.containers), ("image", before.pictures, wishes.images),
                             ("volume", before.data, wishes.volumes), ("network", before.nets, wishes.networks)):
        known = sum(entry["count"] for entry in result["kept"] if entry["kind"] == kind) + sum(entry[0] == kind for entry in went)
        assert not asked or known == len(had), f"{known} of {len(had)} {kind}s are accounted for{told}"
    if not target:
        expected = Expected(before, wishes, {})
        loose = {("volume", name) for name in world.reached(frozenset(world.entangled))}
        assert went - loose == {entry for entry in expected.goes if entry[0] != "tag" or entry in went} - loose, f"{(went ^ expected.goes) - loose}{told}"

    still = world.views()
    there = {box.name for box in world.boxes if box.id in after.boxes}
    changed = {key: (content, still.get(key)) for key, content in seen.items() if key[0] in there and still.get(key) != content}
    assert not changed, f"a container lost what it had: {changed}{told}"
    assert not world.lost(), f"the host lost {world.lost()}{told}"
    again = by_itself(host, **options)
    assert (again["failed"], objects(again)) == (False, []), f"the second run: {again}{told}"
    come_back(world, after, told)


def come_back(world: World, after: Model, told: str) -> None:
    """After the engine's next start all that it starts is there, the rest can be started, and everybody finds his data."""
    host = world.host
    staying = [box for box in world.boxes if box.id in after.boxes]
    for box in staying:
        if after.boxes[box.id].state == "paused":
            host.must("POST", f"/containers/{box.id}/unpause")
    host.path(f"{world.place}/control/go").touch()
    host.restart_engine()
    for box in staying:
        if starts(after.boxes[box.id]) and not box.needs:
            until(lambda box=box: world.inspect(box)["State"]["Status"] == "running")
    for box in staying:
        status, said = host.api("POST", f"/containers/{box.id}/start")
        assert status in (204, 304), f"{box.name} does not start again: {said}{told}"
    found = world.views()
    for box in staying:
        for target, source in box.has.items():
            content = found.get((box.name, target), "it does not run").strip()
            assert content in source.contents or box.id[:12] in content or (source.marker == "hostname" and content), (
                f"{box.name} has at {target} {content!r} of {source}{told}")
    for name in after.data:
        path = f"{VOLUMES}/{name}/_data/marker"
        assert host.path(path).exists(), f"{name} lost its data{told}"
    assert not world.lost(), f"the host lost {world.lost()}{told}"


def starts(box: Box) -> bool:
    """Whether the engine starts a container with itself."""
    if box.restart == "on-failure":
        return (box.live or box.exit_code != 0) and (box.retries == 0 or box.restarted < box.retries) and box.started is not None
    return box.restart in ("always", "unless-stopped") and box.started is not None


def test_what_others_stand_on_stays_and_starts_again_with_its_data(fleet: Fleet) -> None:
    """Both hosts at once, several worlds on each."""

    def worlds(host: Host) -> List[str]:
        failures = []

        def world(thrown: Dice, before: int) -> None:
            try:
                one_world(host, 1000 * SPECS.index(host.spec) + before + 1, thrown)
            except (AssertionError, FleetError) as error:
                failures.append(f"{type(error).__name__}: {error}")

        throw(WORLDS, SPECS.index(host.spec), world)
        return failures

    failed = [failure for failures in on_all(fleet, worlds).values() for failure in failures]
    assert not failed, f"{len(failed)} worlds:\n" + "\n\n".join(failed)
