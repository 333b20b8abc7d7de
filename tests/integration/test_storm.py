# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Twenty cleans in the middle of a storm: containers start and stop, are made from images that were unused a moment ago, images are
built, loaded and tagged. Nothing that is in use is lost, and nothing fails but what a named conflict keeps.

Three things engines do by themselves, and no client can see or prevent them:

- While an engine makes a container, it has looked the image up and does not yet count the container among its users (moby,
  daemon/create.go: the image first, Register last). An image that goes within that moment is told apart by the engine's own event.
- BuildKit may panic when many build at once, and takes the whole engine with it (moby 42414). Then that host's storm begins anew, once.
- With containerd's store a build that has found a step in its cache does not hold that image until it is used (moby,
  image/cache/cache.go). A build or two may fail of it.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

import pytest

from tests.fleet import Fleet, Host, HostSpec
from tests.fleet.dirty import build_image, load_image, tar
from tests.fleet.errors import FleetError
from tests.integration.support import CONTAINERD, REPOSITORY, Ansible, on_all, start
from tests.integration.test_clean import connect

sys.path.insert(0, str(REPOSITORY / "playbooks/collections"))

from ansible_collections.fleetclean.docker.plugins.module_utils import policy, removal, snapshot

SPECS = [HostSpec("storm"), HostSpec("storm-ctd", root="forky", daemon_json=CONTAINERD)]
BASE = "storm/base:1"
IDLE = ["/bin/sleep", "1000000"]
#: 17 by the functions, 3 by the module.
CLEANS, MODULE_CLEANS = 17, 3
#: A build of the classic builder has images without a name; this is what the documentation says to do about it.
UNDER_WAY = 600
#: Builds on containerd's store that may fail for want of an image that they had found in their cache, and what they say then: they know
#: it by its digest, while one that they were told to build on has a name.
MAY_LACK_CACHED = 2
LACKS_CACHED = re.compile(r"(_build|_build_with_buildkit): .*(unable to find image \W*sha256:[0-9a-f]{64}|sha256:[0-9a-f]{64}\W*: not found)")


@pytest.fixture(scope="module")
def fleet(here: None) -> Iterator[Fleet]:
    with start(SPECS) as hosts:
        yield hosts


class Storm:
    """Threads that work on a host until ``stop``. ``mine``: containers that are to be there in the end, with their images' ids."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.mine: Dict[str, str] = {}
        self.running: Set[str] = set()
        self.created: List[str] = []
        self.errors: List[str] = []
        self.counts: Dict[str, int] = {}
        self.deleted: List[Tuple[str, float]] = []
        self.made_within: Dict[str, Tuple[float, float]] = {}
        self._end = threading.Event()
        self._number = iter(range(10**6))
        self._events = socket.socket(socket.AF_UNIX)
        self._threads: List[threading.Thread] = []

    def begin(self) -> None:
        load_image(self.host, BASE, {})
        for number in range(4):
            # They are stopped and stay for their state alone: scope all may take their images, but not while they run.
            load_image(self.host, f"old/{number}:1", {"n": f"old {number}".encode()})
            self.host.must("POST", f"/containers/create?name=old-{number}", {"Image": f"old/{number}:1", "Cmd": IDLE, "StopSignal": "SIGKILL",
                                                                           "HostConfig": {"NetworkMode": "none"}})
        for number in range(8):
            self._load(random.Random(number))
        self._listen()
        for work in (self._run, self._create, self._load, self._tag, self._build, self._build_with_buildkit, self._start_old, self._hold):
            self._threads.append(threading.Thread(target=self._again, args=(work,), daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(60)
        self._events.shutdown(socket.SHUT_RDWR)
        self._events.close()
        assert not any(thread.is_alive() for thread in self._threads)

    def _again(self, work: Callable[[random.Random], None]) -> None:
        dice = random.Random(work.__name__)
        while not self._end.is_set():
            try:
                work(dice)
                self.counts[work.__name__] = self.counts.get(work.__name__, 0) + 1
            except (FleetError, OSError) as error:
                self.errors.append(f"{work.__name__}: {error}")
            self._end.wait(0.4 + dice.random() * 0.8)

    def _listen(self) -> None:
        """Note when the engine says that images went."""
        self._events.connect(str(self.host.socket))
        filters = json.dumps({"type": ["image"], "event": ["delete"]}).replace('"', "%22").replace(" ", "")
        self._events.sendall(f"GET /events?filters={filters} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())

        def read() -> None:
            response = http.client.HTTPResponse(self._events)
            with suppress(OSError, ValueError, http.client.HTTPException):
                response.begin()
                for line in response:
                    event = json.loads(line)
                    self.deleted.append((event["Actor"]["ID"], event["timeNano"] / 1e9))

        threading.Thread(target=read, daemon=True).start()

    def _images(self) -> List[str]:
        # On containerd's store the whole list is a 404 while one of its images goes.
        status, found = self.host.api("GET", "/images/json")
        tags = [tag for entry in (found if status == 200 else []) for tag in entry["RepoTags"] or []]
        return [tag for tag in tags if tag.startswith(("pool/", "tagged/", "built/"))]

    def _new(self, dice: random.Random, run: bool, **host_config: Any) -> str:
        """A container from an image that may just be going; its id, or nothing if the image was faster."""
        images = self._images()
        if not images:
            return ""
        began = time.time()
        status, answer = self.host.api("POST", f"/containers/create?name=storm-{next(self._number)}", {
            "Image": dice.choice(images), "Cmd": IDLE, "StopSignal": "SIGKILL", "HostConfig": {"NetworkMode": "none", **host_config}})
        if status != 201:
            return ""
        made = str(answer["Id"])
        self.made_within[made] = (began, time.time())
        self.mine[made] = self.host.must("GET", f"/containers/{made}/json")["Image"]
        if run:
            self.host.must("POST", f"/containers/{made}/start")
            self.running.add(made)
        return made

    # What the threads do, each again and again.

    def _run(self, dice: random.Random) -> None:
        """Start one; sometimes stop one, sometimes remove one."""
        self._new(dice, run=len(self.running) < 5)
        for made in [made for made in self.running if dice.random() < 0.3]:
            self.running.discard(made)
            self.host.must("POST", f"/containers/{made}/stop?t=0")
            if dice.random() < 0.5:
                self.mine.pop(made)
                self.host.must("DELETE", f"/containers/{made}")

    def _create(self, dice: random.Random) -> None:
        volume = f"storm-{dice.randrange(5)}"
        self.created += [self._new(dice, run=False, Binds=[f"{volume}:/data"] if dice.random() < 0.5 else [])]
        if len(self.created) > 15:
            made = self.created.pop(dice.randrange(len(self.created)))
            if self.mine.pop(made, None):
                self.host.must("DELETE", f"/containers/{made}")

    def _load(self, dice: random.Random) -> None:
        number = dice.randrange(8)
        with suppress(FleetError):  # by the time that it is asked for its id it may be gone
            load_image(self.host, f"pool/{number}:1", {"n": f"{number} {dice.randrange(3)}".encode()})

    def _tag(self, dice: random.Random) -> None:
        images = self._images()
        if images:
            self.host.api("POST", f"/images/{dice.choice(images)}/tag?repo=tagged/{dice.randrange(4)}&tag={dice.randrange(3)}")

    def _build(self, dice: random.Random) -> None:
        number = next(self._number)
        dockerfile = f"FROM {BASE}\nLABEL number={number}\nCOPY a /a\nLABEL second={number}\nCOPY b /b\n"
        self._built(lambda: build_image(self.host, f"built/{dice.randrange(3)}:1", dockerfile, {"a": b"a" * number, "b": b"b"}))

    def _build_with_buildkit(self, dice: random.Random) -> None:
        number = next(self._number)
        # A name of its own each: on containerd's store BuildKit takes a name from an image that a container has, and the engine drops the image.
        name = f"built/kit{number}:1"
        dockerfile, files = f"FROM {BASE}\nCOPY a /a\nCOPY b /b\n", {"a": b"a" * (number % 3), "b": str(number).encode()}
        if self.host.spec.root == "machine":
            context = self.host.path("/run/fleet/context.tar")
            context.write_bytes(tar({"Dockerfile": dockerfile.encode(), **files}))
            self.host.exec(["/bin/sh", "-c", f"docker build -q --network none -t {name} - </run/fleet/context.tar"],
                           env={"DOCKER_BUILDKIT": "1", "PATH": "/usr/bin:/bin"})
        else:
            self._built(lambda: build_image(self.host, name, dockerfile, files, buildkit=True))

    @staticmethod
    def _built(build: Callable[[], Any]) -> None:
        """Build; that the image went before it was asked for its id is no failure of the build."""
        try:
            build()
        except FleetError as error:
            if "GET /images/" not in str(error):
                raise

    def _start_old(self, dice: random.Random) -> None:
        """Run a container for a moment from under which scope ``all`` takes images."""
        name = f"old-{dice.randrange(4)}"
        image = self.host.must("GET", f"/containers/{name}/json")["Image"]
        if self.host.api("GET", f"/images/{image}/json")[0] == 404:
            with suppress(FleetError):  # as in _load
                load_image(self.host, name.replace("-", "/") + ":1", {"n": name.replace("-", " ").encode()})
            return
        self.host.must("POST", f"/containers/{name}/start")
        there = self.host.api("GET", f"/images/{image}/json")[0] == 200
        self._end.wait(0.3)
        if there and self.host.api("GET", f"/images/{image}/json")[0] != 200:
            self.errors.append(f"{name} runs, and its image went")
        self.host.must("POST", f"/containers/{name}/stop?t=0")

    def _hold(self, dice: random.Random) -> None:
        """Networks and volumes come and go."""
        number = dice.randrange(3)
        self.host.api("POST", "/networks/create", {"Name": f"net-{number}", "Driver": "bridge", "CheckDuplicate": True})
        self.host.api("POST", "/volumes/create", {"Name": f"free-{number}"})
        self._end.wait(0.2)


def wishes_of(number: int) -> policy.Wishes:
    """A clean's wishes: all take what is unused this moment; every third also what is under containers that nobody asked to keep."""
    return policy.Wishes(
        containers=policy.ContainerWish(states=("created", "exited", "dead"), keep=("storm-*",), older_than=3600),
        images=policy.ImageWish(scope="all" if number % 3 == 2 else "unused", keep=("storm/base",), dangling_older_than=UNDER_WAY),
        volumes=policy.VolumeWish("unused"),
        networks=policy.NetworkWish(),
        build_cache=policy.CacheWish("all" if number % 2 else "unused"),
    )


def clean(host: Host, number: int) -> Tuple[policy.Plan, removal.Outcome]:
    engine = connect(host)
    wishes = wishes_of(number)
    wanted = snapshot.Wanted(images=True, volumes=True, networks=True, build_cache=True, ages=True)
    plan = policy.decide(snapshot.take(engine, wanted, None), wishes)
    outcome = removal.Outcome()
    removal.carry_out(engine, plan, (1, 4, 8)[number % 3], lambda: None, None, outcome)
    return plan, outcome


@dataclass
class Weather:
    """A host's storm, what its cleans came to, and what ended them early."""

    storm: Storm
    outcomes: List[removal.Outcome] = field(default_factory=list)
    forced: int = 0
    by_module: List[Dict[str, Any]] = field(default_factory=list)
    ended_by: Optional[Exception] = None


def clean_in_a_storm(hosts: List[Host], ansible: Ansible) -> Dict[str, Weather]:
    """All the cleans of some hosts, in a storm on each."""
    weather = {host.name: Weather(Storm(host)) for host in hosts}
    on_all(hosts, lambda host: weather[host.name].storm.begin())
    try:
        def cleans(host: Host) -> None:
            here = weather[host.name]
            try:
                for number in range(CLEANS):
                    plan, outcome = clean(host, number)
                    here.outcomes.append(outcome)
                    here.forced += sum(step.kind == "image" and step.force for step in plan.steps)
            except Exception as error:  # told by the caller, who looks first whether there is an engine at all
                here.ended_by = error

        on_all(hosts, cleans)
        options = {"containers": {"keep": ["storm-*"], "older_than": "1h"}, "images": {"scope": "unused", "keep": ["storm/base"], "dangling_older_than": "10m"},
                   "volumes": {"scope": "unused"}, "networks": {}, "build_cache": {"scope": "all"}}
        names = [name for name, here in weather.items() if not here.ended_by]
        for _ in range(MODULE_CLEANS if names else 0):
            for name, result in ansible.module("docker_clean", options, hosts=":".join(names)).items():
                weather[name].by_module.append(result)
    finally:
        for here in weather.values():
            here.storm.stop()
    return weather


def start_afresh(host: Host) -> None:
    """Start a broken engine with nothing: its builder may be left with records that nobody can remove any more."""
    host.start_engine()
    for entry in host.must("GET", "/containers/json?all=1"):
        host.must("DELETE", f"/containers/{entry['Id']}?force=1")  # they have mounts below the data root
    host.stop_engine()
    host.exec(["find", host.data_root, "-mindepth", "1", "-delete"])
    host.start_engine()


def buildkit_panic(log: str) -> str:
    """The panic of BuildKit that an engine's log ends with, and where it was; nothing if it is anything else.

    What panicked is on top of the first stack, below frames of Go's own packages, whose names begin with no host's name.
    """
    lines = log.splitlines()
    begin = max((number for number, line in enumerate(lines) if line.startswith(("panic: ", "fatal error: "))), default=len(lines))
    stacks = [number for number in range(begin, len(lines)) if lines[number].startswith("goroutine ")]
    stack = takewhile(bool, lines[stacks[0] + 1 :]) if stacks else iter(())
    functions = (line.rpartition("(")[0] for line in stack if not line.startswith("\t"))
    top = next((function for function in functions if "." in function.partition("/")[0] and "/" in function), "")
    return f"{lines[begin]} in {top}" if "github.com/moby/buildkit/" in top else ""


STACK = """time="2026-01-01T00:00:00Z" level=info msg="panic: told by a container"
{what}

goroutine 1204 [running]:
{frames}

goroutine 1 [chan receive, 5 minutes]:
github.com/moby/buildkit/solver.(*scheduler).loop(0xc000442000)
\t/src/solver/scheduler.go:104 +0x1e8
"""
OF_GO = "panic(0x55d0c0, 0xc0001)\n\t/usr/lib/go/src/runtime/panic.go:965 +0x1b9\nsync.(*Mutex).Unlock(...)\n\t/usr/lib/go/src/sync/mutex.go:190\n"
OF_BUILDKIT = "github.com/docker/docker/vendor/github.com/moby/buildkit/solver.(*edge).unpark(0xc1, 0xc2)\n\t/src/solver/edge.go:363 +0x1da"
OF_THE_ENGINE = "github.com/docker/docker/daemon.(*Daemon).ContainerStart(0xc1)\n\t/src/daemon/start.go:18 +0x17b\n"


@pytest.mark.parametrize(("what", "frames", "told"), [
    ("panic: failed to get edge", OF_BUILDKIT, "panic: failed to get edge in github.com/docker/docker/vendor/github.com/moby/buildkit/solver.(*edge).unpark"),
    ("fatal error: concurrent map writes", OF_GO + OF_BUILDKIT.replace("github.com/docker/docker/vendor/", ""),
     "fatal error: concurrent map writes in github.com/moby/buildkit/solver.(*edge).unpark"),
    ("panic: no such thing", OF_GO + OF_THE_ENGINE + OF_BUILDKIT, ""),
    ("level=error msg=no", OF_BUILDKIT, ""),
])
def test_only_what_panicked_within_buildkit_is_buildkits_panic(what: str, frames: str, told: str) -> None:
    assert buildkit_panic(STACK.format(what=what, frames=frames)) == told


def test_twenty_cleans_in_a_storm_lose_nothing_that_is_in_use(fleet: Fleet) -> None:
    ansible = Ansible(str(fleet.inventory))
    weather = clean_in_a_storm(list(fleet), ansible)
    panics = {host.name: host.engine_process() is None and buildkit_panic(host.engine_log()) for host in fleet}
    broken = [host for host in fleet if panics[host.name]]
    for host in broken:
        print(f"{host.name}: the engine ended, {panics[host.name]}; once more")
        start_afresh(host)
    weather.update(clean_in_a_storm(broken, ansible) if broken else {})
    for host in fleet:
        here, storm = weather[host.name], weather[host.name].storm
        if here.ended_by:
            raise here.ended_by
        failed = [result for outcome in here.outcomes for result in outcome.failed]
        kept = {entry.reason for outcome in here.outcomes for entry in outcome.kept}
        removed = sum(len(outcome.removed) for outcome in here.outcomes)
        told = f"{host.name}: {storm.counts}, {len(storm.mine)} containers, {removed} removed, {here.forced} by force, kept: {sorted(kept)}"
        print(told)
        assert not failed, f"{[(result.step.kind, result.step.name, result.words) for result in failed]} {told}"
        assert len(here.by_module) == MODULE_CLEANS
        for result in here.by_module:
            assert not result["failed"], result
        lacking = [error for error in storm.errors if LACKS_CACHED.match(error)] if host.spec.daemon_json == CONTAINERD else []
        assert not [error for error in storm.errors if error not in lacking], f"{storm.errors} {told}"
        assert len(lacking) <= MAY_LACK_CACHED, f"{lacking} {told}"
        assert min(storm.counts.values()) > 3 and len(storm.counts) == 8, f"it was no storm: {told}"
        assert removed > 15 and here.forced, told
        named = ("it came into use", 'the engine says "', "the tag names another image now", "it has got another tag", "the builder kept it", "it is the last tag of",
                 "it was made anew or changed meanwhile", "parent of an image that stays", "it ran meanwhile")
        assert not [reason for reason in kept if not reason.startswith(named)], told
        check_all_is_there(host, storm)


def check_all_is_there(host: Host, storm: Storm) -> None:
    there = {entry["Id"]: entry for entry in host.must("GET", "/containers/json?all=1")}
    assert storm.mine.keys() <= there.keys()
    assert {made for made in storm.running if there[made]["State"] != "running"} == set()
    images = {entry["Id"] for entry in host.must("GET", "/images/json?all=1")}
    for made, image in storm.mine.items():
        if image not in images:
            began, ended = storm.made_within[made]
            assert made not in storm.running, "a container runs whose image is gone"
            # Only if it was on its way while the container was being made: the engine did not count that one yet.
            gone = [when for ident, when in storm.deleted if ident == image]
            assert any(began <= when <= ended + 1 for when in gone), f"{made} was made from {began} to {ended}, its image {image} went at {gone}"
        volumes = [mount["Name"] for mount in there[made]["Mounts"] if mount["Type"] == "volume"]
        assert all(host.api("GET", f"/volumes/{name}")[0] == 200 for name in volumes)
    for made in [made for made in storm.mine if made not in storm.running][:3]:
        host.must("POST", f"/containers/{made}/start")
