# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random worlds on real engines: what is wanted never goes, what was planned is done, and the second run plans nothing.

The same as tests/fuzz/test_worlds.py does with a model, and by the same expectation, which is written from the documentation. What
is there before and after is read here by the raw API. The dice are hypothesis's, and fall alike in each run; since a world costs seconds, one that
fails is not made smaller.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple
from urllib.parse import quote

import pytest

from tests.fleet import Fleet, Host, HostSpec
from tests.fleet.dirty import build_image, load_image, tar
from tests.fleet.errors import FleetError
from tests.fuzz.dice import Dice, SeededDice, throw
from tests.integration.support import CONTAINERD, REPOSITORY, Ansible, on_all, start
from tests.integration.test_clean import connect
from tests.integration.things import clear

sys.path.insert(0, str(REPOSITORY / "tests/unit"))

from ansible_collections.fleetclean.docker.plugins.module_utils import engine as engines
from ansible_collections.fleetclean.docker.plugins.module_utils import fields, policy, removal, snapshot
from ansible_collections.fleetclean.docker.plugins.module_utils.last_use import uses_seen
from ansible_collections.fleetclean.docker.plugins.module_utils.units import parse_time
from expected import Expected, promised, what
from model import Box, Data, Model, Net, Picture, Record
from worlds import hexadecimal, sha

SPECS = [
    HostSpec("r20"),
    HostSpec("r26", root="trixie"),
    HostSpec("r28", root="forky"),
    HostSpec("r28-ctd", root="forky", daemon_json=CONTAINERD),
]
WORLDS = 6
#: Seconds between the older and the younger half of a world: engines tell some times in whole seconds.
GAP = 3.0
MANAGED = ({"io.kubernetes.pod.name": "p"}, {"com.hashicorp.nomad.alloc_id": "a"}, {"com.docker.swarm.task": "t"})


@pytest.fixture(scope="module")
def fleet(here: None) -> Iterator[Fleet]:
    with start(SPECS) as hosts:
        yield hosts
        # A paused container is frozen, and feels no signal: a host that ends would wait for it.
        on_all(hosts, clear)


# -- making a world ------------------------------------------------------------------------------


class Maker:
    """Makes random objects, in two halves: what is made in ``older`` is ``GAP`` seconds older than what is made in ``younger``."""

    def __init__(self, host: Host, number: int, thrown: Optional[Dice] = None, managed: float = 0.07) -> None:
        self.host, self.dice, self.managed = host, thrown or SeededDice(number), managed
        self.mark = f"w{number}"  # the engine's events tell of names, so each world has its own
        self.arrived: Dict[str, float] = {}
        self.images: List[str] = []
        self.runnable: List[str] = []
        self.volumes: List[str] = []
        self.nets: List[str] = []
        self.boxes = self.made = 0
        self.mounts_images = float(host.api_version) >= 1.48

    def older(self) -> None:
        base = load_image(self.host, f"{self.mark}/base:1", {})
        self._came(base)
        self.runnable.append(f"{self.mark}/base:1")
        for _ in range(self.dice.randint(2, 4)):
            self._image()
        if self.dice.chance(0.5):
            self._family()
        self._things()

    def younger(self) -> None:
        for _ in range(self.dice.randint(1, 3)):
            self._image()
        if self.dice.chance(0.4):
            self._cache()
        self._things()

    def _came(self, image: str) -> None:
        self.arrived[image] = time.time()

    def _labels(self, managed: bool = False) -> Dict[str, str]:
        found = dict(self.dice.choice(({}, {}, {}, {}, {"fleetclean.keep": ""}, {"tier": "database"})))
        if managed and self.dice.chance(self.managed):
            found.update(self.dice.choice(MANAGED))
        if managed and self.dice.chance(0.15):
            found["com.docker.compose.project"] = f"{self.mark}{self.dice.choice('pq')}"
        return found

    def _tag(self) -> str:
        repository = self.dice.choice(("app", "a.b-c__d/x", "registry.example:5000/team/db"))
        host, slash, path = repository.rpartition("5000/")
        return f"{host}{slash}{self.mark}-{path}:{self.dice.choice(('1', '2', 'latest'))}"

    def _image(self) -> None:
        """A small image of one layer, with one name or several, or none: another image has taken it."""
        self.made += 1
        first = self._tag()
        image = load_image(self.host, first, {"n": f"{self.mark} {self.made}".encode()}, labels=self._labels(), base=False)
        self._came(image)
        for _ in range(self.dice.choice((0, 0, 1, 2))):
            name, _colon, tag = self._tag().rpartition(":")
            self.host.must("POST", f"/images/{image}/tag?repo={quote(name, safe='')}&tag={tag}")
        self.images.append(image)

    def _family(self) -> None:
        """A chain of the classic builder: the steps between are images without a name."""
        steps = "".join(f"LABEL step{number}={self.mark}\n" for number in range(self.dice.randint(1, 2)))
        name = f"{self.mark}/built:{self.dice.randint(1, 2)}"
        parent = f"{self.mark}/base:1"
        build_image(self.host, name, f"FROM {parent}\n{steps}COPY n /n\n", {"n": self.mark.encode()})
        if self.dice.chance(0.5):
            build_image(self.host, f"{self.mark}/child:1", f"FROM {name}\nLABEL child={self.mark}\n", {})
        self.runnable.append(name)

    def _cache(self) -> None:
        """BuildKit's cache, where this engine builds without a client's session or the host's client can."""
        dockerfile, name = f"FROM {self.mark}/base:1\nCOPY n /n\nCOPY m /m\n", f"{self.mark}/cached:1"
        files = {"n": self.mark.encode() * 100, "m": b"m" * 5000}
        try:
            build_image(self.host, name, dockerfile, files, buildkit=True)
        except FleetError:
            context = self.host.path("/run/fleet/context.tar")
            context.write_bytes(tar({"Dockerfile": dockerfile.encode(), **files}))
            self.host.exec(["/bin/sh", "-c", f"docker build -q --network none -t {name} - </run/fleet/context.tar"], check=False,
                           env={"DOCKER_BUILDKIT": "1", "PATH": "/usr/bin:/bin"})
        if self.dice.chance(0.5):
            self.host.api("DELETE", f"/images/{name}")

    def _things(self) -> None:
        dice, host = self.dice, self.host
        for _ in range(dice.randint(1, 2)):
            self.made += 1
            name = f"{self.mark}-v{self.made}"
            host.must("POST", "/volumes/create", {"Name": name, "Labels": self._labels(True)})
            self.volumes.append(name)
        for _ in range(dice.randint(0, 2)):
            self.made += 1
            name = dice.choice((f"{self.mark} n {self.made}", f"../../{self.mark}-{self.made}", f"[{self.mark}]*{self.made}", f"{self.mark}%2f{self.made}"))
            status, _ = host.api("POST", "/networks/create", {"Name": name, "Driver": "bridge", "Labels": self._labels(True), "CheckDuplicate": True})
            if status == 201:  # newer engines refuse some names
                self.nets.append(name)
        for _ in range(dice.randint(1, 3)):
            self._container()
        if dice.chance(0.5):  # an anonymous volume whose container is gone
            made = host.must("POST", "/containers/create", {"Image": self.runnable[0], "Cmd": ["x"], "Volumes": {"/data": {}}})["Id"]
            host.must("DELETE", f"/containers/{made}")

    def _container(self) -> None:
        dice, host = self.dice, self.host
        self.boxes += 1
        state = dice.choice(("created", "created", "exited", "running", "paused"))
        image = dice.choice(self.runnable if state != "created" else self.runnable + self.images)
        body: Dict[str, Any] = {
            "Image": image, "Cmd": ["/bin/true"] if state == "exited" else ["/bin/sleep", "1000000"], "StopSignal": "SIGKILL", "Labels": self._labels(True),
            "Volumes": {"/data": {}} if dice.chance(0.3) else {},
            "HostConfig": {
                "NetworkMode": dice.choice([*self.nets, "none", "none", "none"]),
                "Binds": [f"{name}:/{name}" for name in self.volumes if dice.chance(0.2)],
                "RestartPolicy": {"Name": dice.choice(("no", "no", "unless-stopped", "always")) if state == "created" else "no"},
            },
        }
        if body["HostConfig"]["NetworkMode"] != "none" and state != "created":
            body["HostConfig"]["NetworkMode"] = "none"  # without iptables a container gets no network that works
        if self.mounts_images and dice.chance(0.25):
            body["HostConfig"]["Mounts"] = [{"Type": "image", "Source": dice.choice(self.images), "Target": "/image"}]
        made = host.must("POST", f"/containers/create?name={self.mark}-c{self.boxes}", body)["Id"]
        if state != "created":
            host.must("POST", f"/containers/{made}/start")
        if state == "exited":
            host.must("POST", f"/containers/{made}/wait")
        if state == "paused":
            host.must("POST", f"/containers/{made}/pause")


def read(host: Host, arrived: Dict[str, float]) -> Model:
    """What the engine has, by its raw API."""
    info = host.must("GET", "/info")
    found = Model("containerd" if ["driver-type", "io.containerd.snapshotter.v1"] in (info["DriverStatus"] or []) else "graphdriver")
    found.nets.clear()
    now = parse_time(info["SystemTime"])
    assert now
    found.now = now
    for entry in host.must("GET", "/containers/json?all=1"):
        status, raw = host.api("GET", f"/containers/{entry['Id']}/json")
        if status == 404:
            continue  # the engine was still about it when whoever asked for it was killed
        state = raw["State"]
        found.boxes[raw["Id"]] = Box(
            raw["Id"], raw["Name"].lstrip("/"), raw["Image"], state=state["Status"], given=raw["Config"]["Image"], created=parse_time(raw["Created"]) or 0,
            started=parse_time(state["StartedAt"]), finished=parse_time(state["FinishedAt"]), labels=raw["Config"]["Labels"] or {},
            volumes=[mount["Name"] for mount in raw["Mounts"] if mount["Type"] == "volume"], networks=list(raw["NetworkSettings"]["Networks"]),
            restart=raw["HostConfig"]["RestartPolicy"]["Name"], mounted=[mount["Name"] for mount in raw["Mounts"] if mount["Type"] == "image"],
        )
    for entry in host.must("GET", "/images/json?all=1"):
        status, raw = host.api("GET", f"/images/{entry['Id']}/json")
        if status == 404:
            continue
        names = [name for name in (entry["RepoTags"] or []) + (entry["RepoDigests"] or []) if "<none>" not in name]
        found.pictures[entry["Id"]] = Picture(
            entry["Id"], entry["Created"], entry.get("ParentId") or raw.get("Parent") or "", names,
            tagged=parse_time((raw.get("Metadata") or {}).get("LastTagTime")), arrived=arrived.get(entry["Id"]), labels=entry["Labels"] or {},
        )
    for entry in host.must("GET", "/volumes")["Volumes"] or []:
        found.data[entry["Name"]] = Data(entry["Name"], parse_time(entry["CreatedAt"]), entry["Labels"] or {})
    for entry in host.must("GET", "/networks"):
        found.nets[entry["Id"]] = Net(entry["Id"], entry["Name"], parse_time(entry["Created"]), entry["Labels"] or {}, entry["Scope"])
    for entry in host.must("GET", "/system/df?type=build-cache")["BuildCache"] or []:
        found.records[entry["ID"]] = Record(
            entry["ID"], entry.get("Parents") or [parent for parent in (entry.get("Parent"),) if parent], entry["Type"], entry["InUse"], entry["Size"],
            parse_time(entry["CreatedAt"]) or 0, parse_time(entry["LastUsedAt"]), frozenset({"some"} if entry["Shared"] else ()),
        )
    found.events += host.must("GET", f"/events?since=1&until={now + 0.1:.9f}") or []
    return found


def wishes_for(made: Maker, middle: Optional[float]) -> policy.Wishes:
    """Random wishes; ``middle`` is what divides the older half from the younger, in seconds before now."""
    dice = made.dice

    def age() -> Optional[int]:
        return dice.choice((None, None, 0, 3600) if middle is None else (None, None, 0, round(middle), round(middle), 3600))

    def maybe(wish: Any) -> Any:
        return wish if dice.chance(0.85) else None

    def some(*patterns: str) -> Tuple[str, ...]:
        return tuple(pattern for pattern in patterns if dice.chance(0.2))

    image = dice.choice(made.images)
    return policy.Wishes(
        containers=maybe(policy.ContainerWish(
            states=tuple(state for state in ("created", "exited", "dead", "running", "paused") if dice.chance(0.6)),
            older_than=age(), keep=some(f"{made.mark}-c1", f"{made.mark}-c[23]"), volumes=dice.chance(0.5),
        )),
        images=maybe(policy.ImageWish(
            scope=dice.choice(("dangling", "unused", "unused", "all")), older_than=age(), dangling_older_than=age(),
            keep=some(f"{made.mark}-app", "*:latest", "registry.example:5000/*", image, image[7:19]), keep_latest=dice.choice((0, 0, 1, 2)),
            keep_local=dice.chance(0.1),
        )),
        volumes=maybe(policy.VolumeWish(dice.choice(("anonymous", "unused", "unused")), age(), some(f"{made.mark}-v1", "*-v[23]"))),
        networks=maybe(policy.NetworkWish(age(), some(f"[[]{made.mark}*", "../*"))),
        build_cache=maybe(policy.CacheWish(dice.choice(("unused", "all")), age())),
        keep_labels=dice.choice((("fleetclean.keep",), ("fleetclean.keep", "tier=data*"), ())),
        orchestrated=dice.choice(("keep", "clean")),
        cheapest_first=dice.chance(0.3),
    )


def look(engine: engines.Engine, wishes: policy.Wishes) -> snapshot.Snapshot:
    engine.info["SystemTime"] = engine._object("/info", fields.INFO)["SystemTime"]
    wanted = snapshot.Wanted(
        images=wishes.images is not None, volumes=wishes.volumes is not None or bool(wishes.containers and wishes.containers.volumes),
        networks=wishes.networks is not None, build_cache=wishes.build_cache is not None, ages=True,
    )
    return snapshot.take(engine, wanted, None)


def carry_out(engine: engines.Engine, plan: policy.Plan, parallel: int) -> removal.Outcome:
    outcome = removal.Outcome()
    removal.carry_out(engine, plan, parallel, lambda: None, None, outcome)
    return outcome


def one_world(host: Host, number: int, thrown: Dice) -> None:
    clear(host)
    made = Maker(host, number, thrown)
    made.older()
    between = time.time() + GAP / 2
    time.sleep(GAP)
    made.younger()
    engine = connect(host)
    wishes = wishes_for(made, time.time() - between)
    before = read(host, made.arrived)
    looked = look(engine, wishes)
    plan = policy.decide(looked, wishes)
    expected = Expected(before, wishes, {})
    going, there = promised(plan), before.everything()
    told = f"\n{host.name}, world {number}: {wishes}\n" + "\n".join(
        f"{entry.kind} {entry.name} {entry.id[:19]}: {entry.reason}" for entry in (*plan.steps, *plan.kept))

    def sure(found: Any) -> Set[Tuple[str, str]]:
        """What of it can be told before: the builder uses and drops its cache by itself."""
        return {entry for entry in found if entry[0] != "build_cache"}

    assert not sure(going & expected.stays), f"{sure(going & expected.stays)}{told}"
    assert sure(going) == expected.goes, f"{sure(going) ^ expected.goes}{told}"
    shared = {record.id for record in looked.build_cache if record.in_use or (record.shared and wishes.build_cache and wishes.build_cache.scope == "unused")}
    assert not {("build_cache", ident) for ident in shared} & going, told
    parallel = made.dice.choice((1, 4))
    outcome = carry_out(engine, plan, parallel)
    after = read(host, made.arrived)
    told += "\nleft in the end: " + ", ".join(f"{kept.name}: {kept.reason}" for kept in outcome.kept)
    assert outcome.failed == [], f"{outcome.failed}{told}"
    assert not sure(what([*outcome.gone, *outcome.kept])), told
    assert sure(there - after.everything()) == sure(going), f"{sure(there - after.everything()) ^ sure(going)}{told}"
    if parallel == 1:
        assert what(outcome.removed) == [entry for entry in what(plan.steps) if entry in what(outcome.removed)], told
    ran = {box.id for box in before.boxes.values() if box.live}
    assert ran & after.boxes.keys() == {box.id for box in after.boxes.values() if box.live}, told
    # What images shared is nobody's now: the module looks at the build cache again, too (cleaning.py).
    remembered = uses_seen(looked)
    if wishes.build_cache:
        only = policy.Wishes(build_cache=wishes.build_cache)
        carry_out(engine, policy.decide(look(engine, only)._replace(now=looked.now), only), 4)
    # At the same moment: what has become old enough meanwhile may go.
    again = policy.decide(look(engine, wishes)._replace(now=looked.now), wishes, remembered)
    assert what(again.steps) == [], told


def test_engines_refuse_what_the_model_refuses(fleet: Fleet) -> None:
    """Else the random worlds of the unit tests would show nothing: the same calls, one after the other, to both."""

    def compare(host: Host) -> List[str]:
        clear(host)
        store = "containerd" if host.spec.daemon_json else "graphdriver"
        engine, model = connect(host), Model(store)
        ids: Dict[str, str] = {}
        for name in ("i1:1", "i2:1", "i3:1"):
            ids[name] = load_image(host, name, {"n": name.encode()}, base=name == "i3:1")
            model.add_image(name, name)
        for old, new in (("i1:1", "i1:2"), ("i2:1", "other:1")):
            host.must("POST", f"/images/{old}/tag?repo={new[:-2]}&tag={new[-1]}")
            model.tag(sha(old), new)
        build_image(host, "child:1", "FROM i3:1\nLABEL a=b\n", {})
        ids["child:1"] = host.must("GET", "/images/child:1/json")["Id"]
        model.add_image("child:1", "child:1", parent="i3:1")
        for name in ("free", "held"):
            host.must("POST", "/networks/create", {"Name": name, "Driver": "bridge"})
            host.must("POST", "/volumes/create", {"Name": name})
            model.add_net(name)
            model.add_volume(name)
        for name, image, state in (("runs", "child:1", "running"), ("stopped", "i2:1", "created")):
            made = host.must("POST", f"/containers/create?name={name}", {"Image": image, "Cmd": ["/bin/sleep", "1000"], "HostConfig": {
                "NetworkMode": "held" if state == "created" else "none", "Binds": ["held:/data"]}})["Id"]
            if state == "running":
                host.must("POST", f"/containers/{made}/start")
            model.add_box(name, sha(image), state=state, volumes=["held"], networks=["held"] if state == "created" else [])
        nets = {entry["Name"]: entry["Id"] for entry in host.must("GET", "/networks")}
        different = []

        def both(call: str, name: str, real: str, modelled: str, **more: Any) -> None:
            said = []
            for asked, ident in ((engine, real), (model, modelled)):
                try:
                    getattr(asked, call)(ident, **more)
                    said.append("done")
                except engines.EngineError as error:
                    said.append(f"gone {error.gone}, conflict {error.conflict}, several {'multiple repositories' in error.answer}")
            if said[0] != said[1]:
                different.append(f"{host.name}: {call} {name} {more}: the engine {said[0]}, the model {said[1]}")

        for name in ids:
            both("remove_image", name, ids[name], sha(name))
        for force in (False, True):
            for name in ("child:1", "i3:1"):
                if store == "graphdriver" or name == "child:1":  # on containerd's store a parent goes, and stays for its child without a name
                    both("remove_image", name, ids[name], sha(name), force=force)
        both("remove_image", "the name of what runs", "child:1", "child:1")
        both("remove_image", "one of two names of what a stopped one has", "other:1", "other:1")
        both("remove_image", "its last name", "i2:1", "i2:1")
        both("remove_image", "by id", ids["i2:1"], sha("i2:1"))
        both("remove_image", "by force", ids["i2:1"], sha("i2:1"), force=True)
        both("remove_image", "once more", ids["i2:1"], sha("i2:1"))
        both("remove_image", "one name", "i1:2", "i1:2")
        both("remove_image", "with one name left", ids["i1:1"], sha("i1:1"))
        both("remove_volume", "held", "held", "held")
        both("remove_volume", "free", "free", "free")
        both("remove_volume", "free", "free", "free")
        both("remove_network", "none", nets["none"], "none")
        both("remove_network", "free", nets["free"], hexadecimal("network free"))
        both("remove_network", "held, by one that does not run", nets["held"], hexadecimal("network held"))
        both("remove_container", "runs", "runs", "runs")
        both("remove_container", "runs", "runs", "runs", force=True)
        both("remove_container", "stopped", "stopped", "stopped")
        both("remove_volume", "held", "held", "held")
        tags = {tag for entry in host.must("GET", "/images/json?all=1") for tag in entry["RepoTags"] or [] if "<none>" not in tag}
        if tags != {tag for kind, tag in model.everything() if kind == "tag"}:
            different.append(f"{host.name}: {tags} are left, and in the model {model.everything()}")
        return different

    assert [words for found in on_all(fleet, compare).values() for words in found] == []


def test_nothing_wanted_goes_and_what_is_planned_is_done(fleet: Fleet) -> None:
    """All hosts at once, several worlds on each."""

    def worlds(host: Host) -> List[str]:
        failures = []

        def world(thrown: Dice, before: int) -> None:
            try:
                one_world(host, 100 * (before + 1) + SPECS.index(host.spec), thrown)
            except (AssertionError, FleetError) as error:
                failures.append(f"{type(error).__name__}: {error}")

        throw(WORLDS, SPECS.index(host.spec), world)
        return failures

    failed = [failure for failures in on_all(fleet, worlds).values() for failure in failures]
    assert not failed, f"{len(failed)} of {WORLDS * len(fleet)} worlds:\n" + "\n\n".join(failed)


def test_the_module_does_what_it_foretold_in_the_same_order(fleet: Fleet) -> None:
    """Check mode, the real run, and the second one, through Ansible, on all hosts at once, each with a world of its own."""
    ansible = Ansible(str(fleet.inventory))

    def make(host: Host) -> Model:
        clear(host)
        maker = Maker(host, 9000 + SPECS.index(host.spec))
        maker.older()
        maker.younger()
        return read(host, {})

    before = on_all(fleet, make)
    args: Dict[str, Any] = {
        "containers": {"states": ["created", "exited", "paused"], "volumes": True, "keep": ["*-c1"]}, "images": {"scope": "all", "keep": ["*:latest"]},
        "volumes": {"scope": "unused", "keep": ["*-v1"]}, "networks": {"keep": ["../*"]}, "parallel": 1,
    }
    wishes = policy.Wishes(
        containers=policy.ContainerWish(states=("created", "exited", "paused"), volumes=True, keep=("*-c1",)),
        images=policy.ImageWish(scope="all", keep=("*:latest",)), volumes=policy.VolumeWish("unused", keep=("*-v1",)),
        networks=policy.NetworkWish(keep=("../*",)),
    )
    check = ansible.module("docker_clean", args, check=True)
    for host in fleet:
        changed = {entry for entry in read(host, {}).everything() ^ before[host.name].everything() if entry[0] != "build_cache"}
        assert not changed, f"check mode changed {changed}"
    real = ansible.module("docker_clean", args)
    again = ansible.module("docker_clean", args)
    for host in fleet:
        foretold, done = ([(entry["kind"], entry["id"], entry["name"]) for entry in run[host.name]["removed"]] for run in (check, real))
        assert not real[host.name]["failed"], real[host.name]
        assert foretold, "something was to go"
        assert done == foretold, host.name
        went = before[host.name].everything() - read(host, {}).everything()
        assert {entry for entry in went if entry[0] != "build_cache"} == Expected(before[host.name], wishes, {}).goes, host.name
        assert (again[host.name]["changed"], again[host.name]["removed"]) == (False, [])
