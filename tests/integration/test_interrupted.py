# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ends a run half-way: the module is killed, a connection dies, the engine goes away. The next run finishes the job, nothing wanted is
gone, and who could still speak said what was done. And two runs at once.

A proxy between module and engine counts the removals, so that what happens, happens at each of them and not by chance.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

import pytest

from tests.fleet import Fleet, Host, HostSpec
from tests.fleet.dirty import load_image
from tests.integration import bare
from tests.integration.support import CONTAINERD, REPOSITORY, on_all, start
from tests.integration.test_clean import connect
from tests.integration.test_random_hosts import Maker, clear, read

sys.path.insert(0, str(REPOSITORY / "tests/unit"))

from ansible_collections.fleetclean.docker.plugins.module_utils import policy, removal
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError
from expected import Expected, promised
from model import Model

SPECS = [HostSpec("cut"), HostSpec("cut-ctd", root="forky", daemon_json=CONTAINERD)]
#: What the runs are asked for, as the module's options and as wishes.
OPTIONS: Dict[str, Any] = {
    "containers": {"volumes": True}, "images": {"scope": "unused", "keep": ["*/base:1"]}, "volumes": {"scope": "unused"}, "networks": {}, "build_cache": {},
}
WISHES = policy.Wishes(
    containers=policy.ContainerWish(volumes=True), images=policy.ImageWish(scope="unused", keep=("*/base:1",)), volumes=policy.VolumeWish("unused"),
    networks=policy.NetworkWish(), build_cache=policy.CacheWish(),
)


@pytest.fixture(scope="module")
def fleet(here: None) -> Iterator[Fleet]:
    with start(SPECS) as hosts:
        yield hosts
        # A paused container is frozen, and feels no signal: a host that ends would wait for it.
        on_all(hosts, clear)


# -- a world, and what is to be of it ----------------------------------------------------------------


@dataclass
class World:
    """What there was, and which of it is to go. The builder's cache is its own."""

    host: Host
    before: Model
    goes: Set[Tuple[str, str]]

    def left(self) -> Set[Tuple[str, str]]:
        """What is to go and has not gone yet; fails if anything else is gone."""
        there = read(self.host, {}).everything()
        lost = {entry for entry in self.before.everything() - there - self.goes if entry[0] != "build_cache"}
        assert not lost, f"{self.host.name}: wanted, and gone: {lost}"
        return self.goes & there

    def check_engine(self) -> None:
        """The engine works: what is wanted runs, and a new container does."""
        assert self.host.must("GET", "/containers/wanted/json")["State"]["Running"]
        image = next(tag for picture in self.before.pictures.values() for tag in picture.tags if tag.endswith("/base:1"))
        made = self.host.must("POST", "/containers/create", {"Image": image, "Cmd": ["/bin/true"], "HostConfig": {"NetworkMode": "none"}})["Id"]
        self.host.must("POST", f"/containers/{made}/start")
        assert self.host.must("POST", f"/containers/{made}/wait")["StatusCode"] == 0
        self.host.must("DELETE", f"/containers/{made}")


def make(host: Host, seed: int, images: int = 6) -> World:
    clear(host)
    maker = Maker(host, seed, managed=0)
    maker.older()
    maker.younger()
    for number in range(images):
        load_image(host, f"more/{number}:1", {"n": f"{seed} {number}".encode()}, base=False)
        for tag in range(number % 3):
            host.must("POST", f"/images/more/{number}:1/tag?repo=other/{number}&tag={tag}")
    for number in range(3):
        host.must("POST", "/volumes/create", {"Name": f"free-{number}"})
        host.must("POST", "/networks/create", {"Name": f"free-{number}", "Driver": "bridge"})
        host.must("POST", f"/containers/create?name=free-{number}", {"Image": f"more/{number}:1", "Cmd": ["x"], "Volumes": {"/data": {}}})
    host.must("POST", "/containers/create?name=wanted", {
        "Image": f"w{seed}/base:1", "Cmd": ["/bin/sleep", "1000000"], "StopSignal": "SIGKILL", "Labels": {"fleetclean.keep": ""},
        "HostConfig": {"NetworkMode": "none", "RestartPolicy": {"Name": "always"}, "Binds": ["wanted:/data"]}})
    host.must("POST", "/containers/wanted/start")
    before = read(host, {})
    goes = Expected(before, WISHES, {}).goes
    assert len(goes) > 20, goes
    return World(host, before, goes)


# -- running the module -------------------------------------------------------------------------------


class Run:
    """The module as a process of its own on the host."""

    def __init__(self, host: Host, docker_host: str = "unix:///run/docker.sock", **options: Any) -> None:
        bare.Bare(host, "docker_clean")
        arguments = {"_ansible_module_name": "fleetclean.docker.docker_clean", "_ansible_check_mode": False, "_ansible_remote_tmp": "/dev/shm",
                     "_ansible_tmpdir": None, "docker_host": docker_host, **OPTIONS, **options}
        command = host.command([host.python, f"{bare._FOLDER}/run.py", f"{bare._FOLDER}/module.zip", "docker_clean", ""],
                               env={"TMPDIR": "/dev/shm", "PYTHONDONTWRITEBYTECODE": "1"})
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._input = json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode()
        self._answer: Tuple[bytes, bytes] = (b"", b"")
        self._talk = threading.Thread(target=self._communicate, daemon=True)
        self._talk.start()

    def _communicate(self) -> None:
        with suppress(OSError, ValueError):
            self._answer = self.process.communicate(self._input)

    def kill(self) -> None:
        """SIGKILL, which nothing of it hears."""
        self.process.kill()

    def end(self, timeout: float = 120) -> Optional[Dict[str, Any]]:
        """Wait for its end; its result, None if it was killed before it had one."""
        self._talk.join(timeout)
        assert not self._talk.is_alive(), "the module does not end"
        try:
            return json.loads(self._answer[0])
        except ValueError:
            assert self.process.returncode < 0, self._answer
            return None

    def must(self) -> Dict[str, Any]:
        result = self.end()
        assert result is not None
        assert not result.get("failed"), {key: value for key, value in result.items() if key != "invocation"}
        return result


def removed(result: Dict[str, Any]) -> Set[Tuple[str, str]]:
    return {(entry["kind"], entry["name"] if entry["kind"] == "tag" else entry["id"]) for entry in result["removed"] if entry["kind"] != "build_cache"}


class Proxy:
    """Stands before the engine. ``meddle(number, path)`` is asked at each removal what to do with it:

    "" lets it pass; "before" and "after" drop the connection before, or after, the engine was asked. It may also act itself.
    """

    def __init__(self, host: Host, meddle: Callable[[int, str], str], kinds: Tuple[str, ...] = ("DELETE ", "POST ")) -> None:
        self._host, self._meddle, self._kinds = host, meddle, kinds
        self.count = 0
        self._path = host.path("/run/proxy.sock")
        self._path.unlink(missing_ok=True)
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(self._path))
        self._server.listen(64)
        self._lock = threading.Lock()
        self._serving: List[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._path.unlink(missing_ok=True)
        self._accepting.join(30)  # from here on no thread is added
        for thread in self._serving:
            thread.join(30)  # what the engine was asked alone, it has done then

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                serving = threading.Thread(target=self._serve, args=(client,), daemon=True)
                serving.start()
                self._serving.append(serving)

    def _serve(self, client: socket.socket) -> None:
        engine = socket.socket(socket.AF_UNIX)
        with client, engine, suppress(OSError):
            engine.connect(str(self._host.socket))
            back = threading.Thread(target=self._pump, args=(engine, client), daemon=True)
            waiting = b""
            back.start()
            while True:
                read_ = client.recv(65536)
                if not read_:
                    break
                waiting += read_
                # What the module asks has no body: a request ends with its head.
                while b"\r\n\r\n" in waiting:
                    head, _, waiting = waiting.partition(b"\r\n\r\n")
                    verdict = self._judge(head.decode("latin-1"))
                    if verdict == "before":
                        return
                    if verdict == "after":
                        self._alone(head)  # the engine is asked, and its answer is nobody's
                        return
                    engine.sendall(head + b"\r\n\r\n")

    def _judge(self, head: str) -> str:
        if not head.startswith(self._kinds):
            return ""
        with self._lock:
            self.count += 1
            return self._meddle(self.count, head.split()[1])

    def _alone(self, head: bytes) -> None:
        with socket.socket(socket.AF_UNIX) as engine:
            engine.connect(str(self._host.socket))
            engine.sendall(head + b"\r\n\r\n")
            engine.recv(65536)

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while True:
                read_ = source.recv(65536)
                if not read_:
                    break
                target.sendall(read_)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


PROXY = "unix:///run/proxy.sock"


# -- the tests ------------------------------------------------------------------------------------------


def test_killed_at_each_removal_in_turn_the_next_run_goes_on(fleet: Fleet) -> None:
    """Each run is killed at its first or second removal, before the engine hears of it or after it, until all is done."""

    def story(host: Host) -> None:
        world = make(host, 1)
        todo, kills = world.left(), 0
        for number in range(14):
            killed: List[Run] = []

            def meddle(count: int, path: str, number: int = number, killed: List[Run] = killed) -> str:
                if count < 1 + number % 2:
                    return ""
                killed[0].kill()
                return ("before", "after")[number // 2 % 2]

            with Proxy(host, meddle):
                killed.append(Run(host, PROXY, parallel=1))
                assert killed[0].end() is None, "it was to be killed"
            kills += 1
            left = world.left()
            assert left <= todo
            if number % 2 or number // 2 % 2:
                assert len(left) < len(todo), f"kill {number} came before anything was done"
            todo = left
        assert kills >= 12 and todo, "so that there was something to do each time"
        result = Run(host, parallel=4).must()
        assert world.left() == set()
        assert {entry for entry in removed(result) if entry in todo}, "the last run says what it did"
        assert Run(host).must()["removed"] == []
        world.check_engine()

    on_all(fleet, story)


def test_killed_at_any_moment_nothing_is_lost(fleet: Fleet) -> None:
    """The same by the clock: while it starts, looks, remembers, removes."""

    def story(host: Host) -> None:
        world = make(host, 2)
        for number in range(8):
            run = Run(host, parallel=4)
            time.sleep(0.2 + number * 0.12)
            run.kill()
            run.end()
            world.left()
        Run(host).must()
        assert world.left() == set()
        world.check_engine()

    on_all(fleet, story)


def test_a_connection_that_dies_is_made_again(fleet: Fleet) -> None:
    """Every third removal loses its connection, in turn before and after the engine was asked: it is done all the same, and told."""

    def story(host: Host) -> None:
        world = make(host, 3)
        drops: List[str] = []

        def meddle(count: int, path: str) -> str:
            if count % 3:
                return ""
            drops.append(("before", "after")[len(drops) % 2])
            return drops[-1]

        with Proxy(host, meddle):
            result = Run(host, PROXY, parallel=1).must()
        assert len(drops) > 5
        assert world.left() == set()
        tags = {entry for entry in world.goes if entry[0] == "tag"}
        assert removed(result) | tags >= world.goes, "what went is in the result, whether the engine's answer came or not"
        assert not [entry for entry in result["removed"] if "gone already" in entry["reason"]], "nobody else took it"
        world.check_engine()

    on_all(fleet, story)


def test_a_connection_that_dies_while_it_looks_ends_the_run_before_anything_is_done(fleet: Fleet) -> None:
    host = fleet["cut"]
    world = make(host, 4)
    for number in (1, 4, 9):
        with Proxy(host, lambda count, path, number=number: "before" if count >= number else "", kinds=("GET ",)):  # type: ignore[misc]
            result = Run(host, PROXY).end()
        assert result is not None
        assert (result["failed"], result["failure"]) == (True, "engine_down"), result
        assert not result["changed"] and world.left() == world.goes
    Run(host).must()
    assert world.left() == set()


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_an_engine_that_is_restarted_meanwhile_is_waited_for(fleet: Fleet, how: str) -> None:
    def story(host: Host) -> None:
        world = make(host, 5 if how == "restart" else 6, images=12)
        again: List[threading.Thread] = []
        images: List[str] = []

        def restart() -> None:
            if how == "restart":
                host.restart_engine()
            else:
                host.kill_engine()
                time.sleep(3)
                host.start_engine()

        def meddle(count: int, path: str) -> str:
            # Not while networks go: killed within that, engine 20.10 may panic at its next start (libnetwork, reservePools).
            images.append(path) if "/images/" in path else None
            if len(images) == 5 and not again:
                again.append(threading.Thread(target=restart))
                again[0].start()
                time.sleep(0.3)
            return ""

        with Proxy(host, meddle):
            run = Run(host, PROXY, parallel=2)
            result = run.end()
        again[0].join(60)
        host.wait_for_engine()
        assert result is not None
        assert not result.get("failed"), (result.get("msg"), {entry["error"] for entry in result["failures"]})
        assert world.left() == set(), "the same run finished it"
        for _ in range(100):
            if host.must("GET", "/containers/wanted/json")["State"]["Running"]:
                break
            time.sleep(0.1)
        world.check_engine()

    on_all(fleet, story)


def test_an_engine_that_does_not_come_back_leaves_what_was_done_in_the_result(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "PATIENCE", 2.0)
    host = fleet["cut"]
    world = make(host, 7, images=12)
    with suppress(OSError):
        Path(host.path("/run/proxy.sock")).unlink()

    images: List[str] = []

    def meddle(count: int, path: str) -> str:
        images.append(path) if "/images/" in path else None
        if len(images) == 5:
            host.kill_engine()
        return ""

    from tests.integration.test_random_hosts import look

    with Proxy(host, meddle):
        engine = connect(_Through(host))  # type: ignore[arg-type]
        plan = policy.decide(look(engine, WISHES), WISHES)
        outcome = removal.Outcome()
        began = time.monotonic()
        with pytest.raises(FleetcleanError) as caught:
            removal.carry_out(engine, plan, 2, lambda: None, None, outcome)
        assert caught.value.code == "engine_down"
        assert time.monotonic() - began < 30
    host.start_engine()
    ends = [step.id for step in (*outcome.removed, *outcome.gone)] + [kept.id for kept in outcome.kept] + [result.step.id for result in outcome.failed]
    assert sorted(ends) == sorted(step.id for step in plan.steps), "each step came out somehow"
    went = world.goes - world.left()
    told = promised(policy.Plan((*outcome.removed, *outcome.gone)))
    # The one that was on its way when the engine died may have gone untold.
    assert told <= went and len(went - told) <= 2, (went, told)
    assert told, "some was done before"
    # What ran without a restart policy has stopped with the engine, so it is what was asked for now.
    now = read(host, {})
    rest = World(host, now, Expected(now, WISHES, {}).goes)
    assert rest.goes >= world.goes - went
    Run(host).must()
    assert rest.left() == set()
    rest.check_engine()


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_disk_that_fails_in_the_middle_of_a_run_costs_nothing_that_is_wanted(fleet: Fleet, fault: str) -> None:
    """From the fourth removal on no byte can be written, or none at all: what can be done is done, the rest is told and goes next time."""

    def story(host: Host) -> None:
        world = make(host, 9 if fault == "full" else 10)
        root = host.data_root
        undo: List[List[str]] = []

        def meddle(count: int, path: str) -> str:
            if count == 4 and not undo:
                if fault == "full":
                    undo.append(["rm", host.fill(root)])
                else:
                    host.exec(["sh", "-ec", f"mount --bind {root} {root}; mount -o remount,bind,ro {root}"])
                    undo.append(["umount", root])
            return ""

        try:
            with Proxy(host, meddle):
                result = Run(host, PROXY, parallel=1).end()
        finally:
            for command in undo:
                host.exec(command)
        assert undo and result is not None
        left = world.left()
        tags = {entry for entry in world.goes if entry[0] == "tag"}
        # An engine that cannot write down that an object is gone says that it failed, and has forgotten it all the same.
        failed = {(entry["kind"], entry["id"]) for entry in result["failures"]}
        assert world.goes - left <= removed(result) | failed | tags, "what went is told"
        if fault == "full":
            assert not result.get("failed"), (result.get("msg"), result["failures"])
        else:
            assert result["failed"] and left, result
            assert any("read-only file system" in entry["error"] for entry in result["failures"]), result["failures"]
        report = bare.Bare(host).run(measure="exact").result
        assert report["usage"]["containers"]["count"] == len(host.must("GET", "/containers/json?all=1"))
        Run(host).must()
        assert world.left() == set()
        world.check_engine()

    on_all(fleet, story)


class _Through:
    """A host whose engine is reached through the proxy."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def path(self, inside: str) -> Path:
        return self._host.path("/run/proxy.sock" if inside == "/run/docker.sock" else inside)


def test_two_runs_at_once_do_no_harm(fleet: Fleet) -> None:
    def story(host: Host) -> None:
        world = make(host, 8, images=15)
        runs = [Run(host, parallel=2), Run(host, parallel=4), Run(host, parallel=1)]
        results = [run.must() for run in runs]
        assert world.left() == set()
        told = set().union(*(removed(result) for result in results))
        tags = {entry for entry in world.goes if entry[0] == "tag"}
        assert told | tags >= world.goes
        assert Run(host).must()["removed"] == []
        world.check_engine()

    on_all(fleet, story)
