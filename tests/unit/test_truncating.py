# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docker_log_truncate from its options to its result: on a model of an engine, with real files on a tmpfs and a process that holds them.

A tmpfs has two ways: records move, with the container paused where somebody writes.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import tempfile
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.fleetclean.docker.plugins.module_utils import (
    engine,
    history,
    log_cuts,
    logs,
    options,
    pausing,
    restarting,
    session,
    truncating,
)
from ansible_collections.fleetclean.docker.plugins.module_utils import live_restore as live_restore_module
from ansible_collections.fleetclean.docker.plugins.module_utils.engine import EngineError
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError
from ansible_collections.fleetclean.docker.plugins.module_utils.logs import CACHE, JSON_FILE, LOCAL, Kind
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Proof, Storage
from holder import Holder
from localdriver import JSON_FILE as LINES
from localdriver import LOCAL as FRAMES
from localdriver import Made
from model import Box, Model
from worlds import sha

MADE: dict[Kind, Made] = {JSON_FILE: LINES, LOCAL: FRAMES, CACHE: FRAMES}
#: What is said of a log whose readers are stale.
ADVICE = (
    "docker logs --tail and -f stay silent or hang until it is started again; restart: engine with live_restore: enable (no container stops) or "
    "restart: containers cures that"
)
RECORDS = 2000  # of 120 bytes
SIZE = RECORDS * 120


class Engine(Model):
    """The model, with containers' log drivers; ``calls`` go to a file, since they come from other processes, too."""

    def __init__(self, root: Path, version: str, live_restore: bool) -> None:
        super().__init__()
        self._root, self._calls = root, root / "calls"
        self._facts = {"ServerVersion": version, "LiveRestoreEnabled": live_restore, "DockerRootDir": str(root)}
        self.drivers: dict[str, dict[str, t.Any]] = {}
        #: What `docker logs --tail 1` shows, by id: True unless said otherwise.
        self.shows: dict[str, bool] = {}
        self.refuses: dict[str, EngineError] = {}
        self.on_restart: t.Callable[[str], None] = lambda _ident: None

    @property
    def info(self) -> dict[str, t.Any]:
        return {**super().info, **self._facts}

    def container(self, ident: str) -> dict[str, t.Any]:
        found = super().container(ident)
        found["HostConfig"]["LogConfig"] = self.drivers[ident]
        return found

    def pause(self, ident: str) -> None:
        self._called("pause", ident)

    def unpause(self, ident: str) -> None:
        self._called("unpause", ident)

    def restart_container(self, ident: str) -> None:
        self._called("restart", ident)
        self.on_restart(ident)

    def shows_last_line(self, ident: str, seconds: float) -> bool:
        return self.shows.get(ident, True)

    def _called(self, what: str, ident: str) -> None:
        with self._calls.open("a") as stream:
            stream.write(f"{what} {self.boxes[ident].name}\n")
        if what in self.refuses:
            raise self.refuses[what]

    @property
    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines() if self._calls.exists() else []


class World:
    """An engine's data root with containers' logs in it."""

    def __init__(self, patch: pytest.MonkeyPatch, root: Path, version: str = "28.5.2", live_restore: bool = False, own: bool = True) -> None:
        self.root, self.patch = root, patch
        self.engine = Engine(root, version, live_restore)
        self.engine.add_image("app", "app:1")
        self.holders: list[Holder] = []
        self.noted: list[str] = []
        self.restarts_of_engine = 0
        storage = Storage(str(root), "overlay2", "graphdriver", {})
        site = session.Site(t.cast(t.Any, self.engine), storage, Proof(own, "it is another machine's"))
        patch.setattr(session, "open_site", lambda _params: site)
        patch.setattr(engine, "connect", lambda _params: self.engine)
        patch.setattr(history, "note", lambda folder, *_more, **_options: self.noted.append(folder))
        patch.setattr(pausing, "_QUIET", 0.01)
        patch.setattr(live_restore_module, "restart", lambda _engine, _found, _connect: self._restart_engine())
        patch.setattr(live_restore_module, "check_restart", lambda _engine, _found: self._look_for_engine())
        #: Why the engine cannot be restarted, if it cannot.
        self.no_restart: FleetcleanError | None = None
        patch.setattr(restarting, "cured", lambda look, seconds=0.0: look())

    def _look_for_engine(self) -> None:
        if self.no_restart:
            raise self.no_restart

    def _restart_engine(self) -> None:
        self._look_for_engine()
        self.restarts_of_engine += 1
        self.engine.shows.clear()

    def add(
        self, name: str, kind: Kind | None = JSON_FILE, records: int = RECORDS, state: str = "running", held: str = "append", driver: str = "",
        config: dict[str, str] | None = None, labels: dict[str, str] | None = None,
    ) -> Box:
        """A container with a log of ``records``; an engine holds it as ``held`` says, if it runs."""
        box = self.engine.add_box(name, sha("app"), state=state, labels=labels or {})
        self.engine.drivers[box.id] = {"Type": driver or (kind.driver if kind else "") or "json-file", "Config": config or {}}
        if kind:
            path = self.path(name, kind)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(MADE[kind].records(records))
            if state == "running" and held:
                self.hold(path, held)
        return box

    def hold(self, path: Path, how: str = "append") -> Holder:
        self.holders.append(Holder(f"{how}:{path}", root=self.root))
        return self.holders[-1]

    def path(self, name: str, kind: Kind = JSON_FILE) -> Path:
        return Path(kind.path(str(self.root / "containers"), self.ident(name)))

    def ident(self, name: str) -> str:
        return next(box.id for box in self.engine.boxes.values() if box.name == name)

    def numbers(self, name: str, kind: Kind = JSON_FILE) -> list[int]:
        return MADE[kind].numbers(self.path(name, kind).read_bytes())

    def run(self, check: bool = False, diff: bool = False, **wishes: t.Any) -> dict[str, t.Any]:
        """Run the module. Most tests are about cuts, which this engine's readers would not survive: they are allowed unless said otherwise."""
        spec = {**options.shared_spec(), **options.truncate_spec()}
        validated = ArgumentSpecValidator(spec).validate({"keep": "12000", "state_dir": str(self.root / "state"), "stale_readers": "allow", **wishes})
        assert not validated.error_messages
        self.warnings: list[str] = []
        module = type("Module", (), {"params": validated.validated_parameters, "check_mode": check, "_diff": diff, "warn": self.warnings.append})
        self.result: dict[str, t.Any] = {"changed": False}
        truncating.truncate(t.cast(t.Any, module), self.result)
        return self.result

    def entry(self, name: str, method: str | None = None) -> dict[str, t.Any]:
        (found,) = [entry for entry in self.result["logs"] if entry["name"] == name and method in (None, entry["method"])]
        return found


Make = t.Callable[..., World]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("not here: no tmpfs at /dev/shm")
    root = Path(tempfile.mkdtemp(prefix="fleetclean-test-", dir="/dev/shm"))
    worlds: list[World] = []

    def made(**more: t.Any) -> World:
        worlds.append(World(monkeypatch, root, **more))
        return worlds[-1]

    yield made
    for world in worlds:
        for holder in world.holders:
            holder.end()
    shutil.rmtree(root)


def names(result: dict[str, t.Any]) -> list[str]:
    return [entry["name"] for entry in result["logs"]]


# -- which logs ----------------------------------------------------------------------------------


def test_each_log_is_cut_in_its_own_format_and_all_of_it_is_told(make: Make) -> None:
    world = make()
    world.add("web")
    world.add("job", state="exited", config={"max-size": "10m"})
    world.add("db", LOCAL)
    world.add("gelf", CACHE, driver="gelf")
    result = world.run()
    assert result["changed"]
    assert result["reclaimed_bytes"] == sum(entry["reclaimed_bytes"] for entry in result["logs"]) > 4 * 220_000
    assert "failure" not in result
    for name, kind, driver, method, readers, unbounded in (
        ("web", JSON_FILE, "json-file", "paused", "stale", True),
        ("job", JSON_FILE, "json-file", "rewrite", "ok", False),
        ("db", LOCAL, "local", "paused", "stale", False),
        ("gelf", CACHE, "gelf", "paused", "stale", False),
    ):
        entry = dict(world.entry(name))
        reclaimed = entry.pop("reclaimed_bytes")
        assert entry == {
            "container": world.ident(name), "name": name, "driver": driver, "path": str(world.path(name, kind)), "bytes_before": SIZE, "bytes_after": 12_000,
            "method": method, "readers": readers, "slow_seconds": 0.0, "repeats": True, "unbounded": unbounded,
            "words": ADVICE if readers == "stale" else "",
        }
        assert reclaimed == (SIZE + 4095) // 4096 * 4096 - 12_288
        assert world.numbers(name, kind) == list(range(RECORDS - 100, RECORDS))
    assert world.noted == [str(world.root / "state")]
    again = world.run()
    assert (again["changed"], again["logs"], again["reclaimed_bytes"]) == (False, [], 0)


def test_what_is_named_is_cut_and_what_is_labelled_stays(make: Make) -> None:
    world = make()
    for name in ("web-1", "web-2", "db"):
        world.add(name, state="exited")
    world.add("web-3", state="exited", labels={"fleetclean.keep": ""})
    world.add("web-4", state="exited", labels={"tier": "data"})
    assert names(world.run(check=True)) == ["web-1", "web-2", "db", "web-4"]
    assert names(world.run(check=True, containers=["web-*"], keep_labels=["tier=da*"])) == ["web-1", "web-2", "web-3"]
    assert names(world.run(check=True, containers=[world.ident("db")[:12], "/web-2"])) == ["web-2", "db"]
    assert names(world.run(containers=["nobody"])) == []
    assert not world.result["changed"]


def test_what_a_container_is_linked_to_keeps_its_log(make: Make) -> None:
    """The engine lists it as ``web-1/database`` as well; only a pattern that has a slash means that."""
    world = make()
    world.add("web-1", state="exited")
    world.add("db", state="exited").links.append("/web-1/database")
    assert names(world.run(check=True, containers=["web-*"])) == ["web-1"]
    assert names(world.run(check=True, containers=["web-*/data*"])) == ["db"]
    assert names(world.run(check=True, containers=["/web-1/database"])) == ["db"]
    world.add("x", state="exited").name = "web-1/x"
    assert names(world.run(check=True)) == ["web-1", "db", "web-1/x"], "all are all, also what has no name of its own"


def test_only_what_is_larger_is_cut_to_what_is_kept(make: Make) -> None:
    world = make()
    world.add("large", state="exited")
    world.add("small", state="exited", records=1000)
    assert names(world.run(larger_than="120000")) == ["large"]
    assert world.numbers("small") == list(range(1000))
    assert len(world.numbers("large")) == 100
    # Never less than what is kept.
    assert names(world.run(larger_than="0", keep="120000")) == []


def test_unbounded_is_what_the_engine_does_not_rotate(make: Make) -> None:
    world = make()
    for name, kind, config in (
        ("none", JSON_FILE, {}), ("off", JSON_FILE, {"max-size": "-1"}), ("on", JSON_FILE, {"max-size": "1g"}),
        ("local", LOCAL, {}), ("cache", CACHE, {}),
    ):
        world.add(name, kind, state="exited", config=config)
    world.run()
    assert {entry["name"]: entry["unbounded"] for entry in world.result["logs"]} == {
        "none": True, "off": True, "on": False, "local": False, "cache": False,
    }


@pytest.mark.parametrize("driver", ["none", "journald", "syslog"])
def test_a_driver_that_keeps_no_file_is_told_and_nothing_is_changed(make: Make, driver: str) -> None:
    world = make()
    world.add("web", None, driver=driver)
    world.add("never ran", None, state="created")
    result = world.run(diff=True)
    assert not result["changed"]
    assert [(entry["name"], entry["driver"], entry["method"], entry["words"]) for entry in result["logs"]] == [
        ("web", driver, "none", f"nothing to cut: the driver {driver} keeps no log file here")
    ]
    assert f"web: nothing to cut: the driver {driver} keeps no log file here" in " ".join(result["diff"]["prepared"].split())


# -- who writes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "pauses"), [({}, 1), ({"max-size": "10m"}, 2)])
def test_a_container_stands_still_while_its_records_move(make: Make, config: dict[str, str], pauses: int) -> None:
    world = make()
    world.add("web", config=config)
    world.run(check=True)
    assert world.engine.calls == []
    world.run()
    # One that is paused so that the engine does not rotate is paused already.
    assert world.engine.calls == ["pause web"] * pauses + ["unpause web"] * pauses
    world.run()
    assert len(world.engine.calls) == 2 * pauses


@pytest.mark.parametrize("answer", ["Container x is already paused", "Container x is not running"])
def test_a_container_that_somebody_paused_stays_paused(make: Make, answer: str) -> None:
    world = make()
    world.add("web", LOCAL)
    world.engine.refuses["pause"] = EngineError("POST /containers/x/pause", 500, answer)
    assert world.run()["changed"]
    assert "unpause web" not in world.engine.calls


@pytest.mark.parametrize("kind", [JSON_FILE, LOCAL], ids=["json-file", "local"])
def test_a_container_that_cannot_be_paused_keeps_its_log_and_it_is_said_why(make: Make, kind: Kind) -> None:
    world = make()
    world.add("web", kind)
    world.add("other", state="exited")
    world.engine.refuses["pause"] = EngineError("POST /containers/x/pause", 500, "cannot pause without the freezer")
    result = world.run()
    entry = world.entry("web")
    assert (entry["method"], entry["bytes_after"], entry["reclaimed_bytes"]) == ("none", SIZE if entry["bytes_before"] else 0, 0)
    assert "cannot be paused for a moment" in entry["words"]
    assert "without the freezer" in entry["words"]
    assert len(world.numbers("web", kind)) == RECORDS
    # It is no failure: that nothing can be done here is how things are.
    assert "failure" not in result
    assert world.entry("other")["method"] == "rewrite"


def test_a_log_that_goes_on_growing_while_its_container_is_paused_is_left_alone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make()
    world.add("web")

    def noisy(_descriptor: int) -> None:
        raise pausing.NotPaused("the log goes on growing")

    monkeypatch.setattr(pausing, "_wait_for_quiet", noisy)
    world.run()
    assert "the log goes on growing" in world.entry("web")["words"]
    assert world.engine.calls == ["pause web", "unpause web"]
    assert len(world.numbers("web")) == RECORDS


def test_an_engine_that_does_not_append_is_made_to_before_the_cut_and_not_in_check_mode(make: Make) -> None:
    world = make()
    world.add("web", held="offset", config={"max-size": "10m"})
    (holder,) = world.holders
    assert world.run(check=True)["changed"]

    def flags() -> int:
        return int(Path(f"/proc/{holder.pid}/fdinfo/{holder.descriptors[0]}").read_text().split()[3], 8)

    assert not flags() & os.O_APPEND
    assert world.run()["changed"]
    assert flags() & os.O_APPEND
    holder.tell(holder.descriptors[0], LINES.record(RECORDS).decode().rstrip("\n"))
    assert world.numbers("web") == list(range(RECORDS - 100, RECORDS + 1))


def test_a_running_container_whose_writer_cannot_be_seen_keeps_its_log(make: Make) -> None:
    world = make()
    world.add("web", held="")
    result = world.run()
    assert not result["changed"]
    assert "cannot be seen from here" in world.entry("web")["words"]
    assert len(world.numbers("web")) == RECORDS


def test_a_container_that_went_meanwhile_has_nobody_who_writes(make: Make) -> None:
    world = make()
    box = world.add("web", state="exited")
    world.engine.before = lambda what, _about: world.engine.boxes.pop(box.id, None) if what == "container" else None
    result = world.run()
    assert [entry["method"] for entry in result["logs"]] == ["rewrite"]
    assert LINES.numbers(Path(result["logs"][0]["path"]).read_bytes()) == list(range(RECORDS - 100, RECORDS))


def test_a_log_that_the_engine_rotates_again_and_again_is_left_alone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make()
    world.add("web", config={"max-size": "10m"})
    current = itertools.cycle([True, False])
    monkeypatch.setattr(logs, "is_current", lambda *_log: next(current))
    world.run()
    assert world.entry("web")["words"] == "the engine rotated it again and again"
    assert world.engine.calls == ["pause web", "unpause web"] * 5
    assert len(world.numbers("web")) == RECORDS


def test_a_log_that_was_rotated_once_is_cut_then(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make()
    world.add("web", config={"max-size": "10m"})
    answers = iter([True, False])
    monkeypatch.setattr(logs, "is_current", lambda *_log: next(answers, True))
    world.run()
    assert world.entry("web")["method"] == "paused"


# -- check mode and what is said -----------------------------------------------------------------


def test_check_mode_says_what_would_be_and_touches_nothing(make: Make) -> None:
    world = make()
    for name, kind, state in (("web", JSON_FILE, "running"), ("db", LOCAL, "running"), ("job", JSON_FILE, "exited"), ("old", LOCAL, "exited")):
        world.add(name, kind, state=state)
        path = world.path(name, kind)
        path.with_name(f"{path.name}.1").write_bytes(b"x" * 9000)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in world.root.rglob("*") if path.is_file()}
    told = world.run(check=True, diff=True, rotated="remove", restart="containers")
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in world.root.rglob("*") if path.is_file()} == before
    assert (world.noted, world.engine.calls) == ([], [])
    assert told["restarted"] == ["web", "db"]
    assert world.warnings == []
    done = world.run(diff=True, rotated="remove", restart="containers")
    assert told == done
    assert done["changed"]


def test_the_diff_has_a_line_for_each_log_the_largest_first(make: Make) -> None:
    world = make()
    world.add("small", state="exited", records=500)
    world.add("large", state="exited")
    world.add("none", None, driver="none")
    lines = world.run(diff=True, check=True)["diff"]["prepared"].splitlines()
    assert [line.split()[2] for line in lines[:2]] == ["large", "small"]
    assert "larger than 11.7 KB, newest 11.7 KB stay" in lines[0]
    assert "diff" not in world.run(check=True)
    assert "nothing stays" in world.run(diff=True, check=True, keep="0")["diff"]["prepared"]


def test_fillers_of_earlier_cuts_are_said_to_be_what_goes(make: Make) -> None:
    world = make()
    world.add("web", state="exited", records=10)
    filler = b'{"log":"","fleetclean":"filler %010d","time":"1970-01-01T00:00:00Z"}' % 65_536
    world.path("web").write_bytes(filler.ljust(65_535) + b"\n" + LINES.records(10))
    assert "fillers of earlier cuts, or NULs, are taken out" in " ".join(world.run(diff=True)["diff"]["prepared"].split())
    assert (world.entry("web")["bytes_before"], world.entry("web")["bytes_after"]) == (1200, 1200)
    assert world.path("web").read_bytes() == LINES.records(10)


@pytest.mark.parametrize(("version", "stale"), [("20.10.24", False), ("22.0.0", False), ("23.0.0", True), ("28.5.2", True), ("29.0.0-rc.1", True)])
def test_a_log_whose_readers_stay_silent_says_so_and_what_cures_it(make: Make, version: str, stale: bool) -> None:
    world = make(version=version)
    world.add("web")
    assert (ADVICE in " ".join(world.run(check=True, diff=True)["diff"]["prepared"].split())) == stale
    world.run()
    assert (world.entry("web")["readers"], world.entry("web")["words"]) == (("stale", ADVICE) if stale else ("ok", ""))
    assert world.warnings == []


@pytest.mark.parametrize("version", ["9" * 5000, "\N{ARABIC-INDIC DIGIT THREE}", "", "v" * 200 + "1.2"])
def test_a_version_that_is_none_ends_nothing(make: Make, version: str) -> None:
    world = make(version=version)
    world.add("web")
    assert names(world.run()) == ["web"]


def test_the_disk_of_another_machine_is_not_touched(make: Make) -> None:
    world = make(own=False)
    world.add("web", state="exited")
    with pytest.raises(FleetcleanError, match="it is another machine's; nothing was touched") as caught:
        world.run()
    assert caught.value.code == "foreign_root"
    assert len(world.numbers("web")) == RECORDS


# -- what fails ----------------------------------------------------------------------------------


def test_a_log_that_is_no_plain_file_is_told_and_all_others_are_cut(make: Make) -> None:
    world = make()
    for name in ("bad", "good"):
        world.add(name, state="exited")
    os.link(world.path("bad"), world.root / "other")
    result = world.run()
    assert (result["failure"], result["changed"]) == ("disk", True)
    assert result["msg"] == (
        f"1 log could not be cut, all others were. The first: bad: {world.path('bad')} has another name elsewhere (a hard link); it stays as it is"
    )
    assert world.entry("good")["method"] == "rewrite"
    assert world.entry("bad")["method"] == "none"
    assert len(world.numbers("bad")) == RECORDS


def test_a_full_disk_is_told_from_other_failures(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make()
    for name in ("one", "two"):
        world.add(name, state="exited")

    def full(*_cut: t.Any) -> t.NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(log_cuts, "carry_out", full)
    result = world.run()
    assert (result["failure"], result["changed"]) == ("disk_full", False)
    assert result["msg"].startswith(f"2 logs could not be cut, all others were. The first: one: {world.path('one')}: No space left on device")
    os.link(world.path("two"), world.root / "other")
    assert world.run()["failure"] == "disk"


def test_a_process_that_was_killed_at_its_work_is_told(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make()
    world.add("web", state="exited")
    monkeypatch.setattr(log_cuts, "carry_out", lambda *_cut: os._exit(1))
    assert world.run()["failure"] == "disk"
    assert "was killed" in world.entry("web")["words"]


def test_records_that_cannot_be_told_apart_stay_and_are_told(make: Make) -> None:
    world = make()
    world.add("web", LOCAL, state="exited")
    world.path("web", LOCAL).write_bytes(b"\xff" * 1_500_000)
    result = world.run()
    assert not result["changed"]
    assert "its records cannot be told apart behind byte 0; it stays as it is" in world.entry("web")["words"]
    assert "failure" not in result


def test_what_was_done_is_told_though_the_engine_goes_away_meanwhile(make: Make) -> None:
    world = make()
    world.add("one", state="exited")
    world.add("two", state="exited")
    second = world.ident("two")

    # The list of containers looks at each, too.
    looks = itertools.count(1)

    def lose(what: str, about: str) -> None:
        if what == "container" and about == second and next(looks) > 0 and "logs" in world.result:
            raise FleetcleanError("the engine is gone", "engine_down")

    world.engine.before = lose
    with pytest.raises(FleetcleanError, match="the engine is gone"):
        world.run()
    assert names(world.result) == ["one"]
    assert world.result["changed"]


# -- other files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [JSON_FILE, LOCAL, CACHE], ids=["json-file", "local", "cache"])
@pytest.mark.parametrize("state", ["running", "exited"])
def test_rotated_files_are_removed_if_that_is_wished(make: Make, kind: Kind, state: str) -> None:
    world = make()
    world.add("web", kind, state=state, records=10)
    for number in (1, 2):
        Path(f"{world.path('web', kind)}.{number}").write_bytes(b"x" * 10_000)
    assert world.run()["logs"] == []
    told = world.run(check=True, rotated="remove")
    assert world.engine.calls == []
    done = world.run(rotated="remove", diff=True)
    assert told["logs"] == done["logs"]
    entry = world.entry("web")
    assert (entry["path"], entry["method"], entry["bytes_before"], entry["bytes_after"], entry["reclaimed_bytes"]) == (
        f"{world.path('web', kind)}.*", "rotated", 20_000, 0, 24_576,
    )
    assert (entry["readers"], entry["repeats"]) == ("ok", False)
    assert "rotated files" in done["diff"]["prepared"]
    # While it stands still the engine has no reason to rotate.
    assert world.engine.calls == ["pause web", "unpause web"] * (state == "running")
    assert world.numbers("web", kind) == list(range(10))
    assert world.run(rotated="remove")["logs"] == []


def test_a_log_and_its_rotated_files_are_two_entries(make: Make) -> None:
    world = make()
    world.add("web", state="exited")
    Path(f"{world.path('web')}.1").write_bytes(b"x" * 10_000)
    world.run(rotated="remove")
    assert [entry["method"] for entry in world.result["logs"]] == ["rewrite", "rotated"]


def test_an_engine_that_would_miss_its_rotated_files_keeps_them(make: Make) -> None:
    world = make(version="18.06.3-ce")
    world.add("web", records=10)
    world.add("job", records=10, state="exited")
    for name in ("web", "job"):
        Path(f"{world.path(name)}.1").write_bytes(b"x" * 10_000)
    world.run(rotated="remove")
    assert world.entry("web")["words"] == "this engine would miss rotated files of a container that runs; they stay"
    assert world.entry("job")["method"] == "rotated"
    assert Path(f"{world.path('web')}.1").exists()


def test_a_rotated_file_that_is_still_written_stays(make: Make) -> None:
    world = make()
    world.add("web", records=10)
    rotated = Path(f"{world.path('web')}.1")
    rotated.write_bytes(b"x" * 10_000)
    world.hold(rotated)
    assert all(entry["method"] == "none" for entry in world.run(rotated="remove")["logs"])
    assert rotated.exists()


def test_the_space_of_a_deleted_log_comes_back(make: Make) -> None:
    world = make()
    world.add("web")
    path = world.path("web")
    path.unlink()
    told = world.run(check=True)
    done = world.run(diff=True)
    assert told["logs"] == done["logs"]
    entry = world.entry("web")
    assert (entry["method"], entry["path"], entry["reclaimed_bytes"], entry["bytes_after"], entry["readers"]) == ("deleted", str(path), 241_664, 0, "stale")
    assert "deleted while the engine held it open" in done["diff"]["prepared"]
    assert world.run()["logs"] == []


def test_the_space_of_a_deleted_log_stays_if_that_is_wished(make: Make) -> None:
    world = make()
    world.add("web")
    world.path("web").unlink()
    assert world.run(deleted=False)["logs"] == []
    assert world.run(containers=["other"])["logs"] == [], "it was not chosen"


def test_a_deleted_log_of_a_container_that_is_gone_comes_back_too(make: Make) -> None:
    world = make()
    box = world.add("web")
    world.path("web").unlink()
    del world.engine.boxes[box.id]
    (entry,) = world.run()["logs"]
    assert (entry["name"], entry["method"], entry["driver"]) == (box.id[:12], "deleted", "json-file")


def test_a_log_that_somebody_renamed_under_the_engine_is_told(make: Make) -> None:
    world = make()
    world.add("web", records=10)
    path = world.path("web")
    path.rename(f"{path}.old")
    result = world.run()
    assert not result["changed"]
    assert world.entry("web")["words"] == (
        f"the engine writes to {path}.old, which somebody renamed: docker logs does not show it until the container is started again"
    )
    assert world.entry("web")["readers"] == "stale"


# -- restarts ------------------------------------------------------------------------------------


def test_who_would_stay_silent_is_started_again_and_reads_well_then(make: Make) -> None:
    world = make()
    world.add("web")
    world.add("job", state="exited")
    world.add("small", records=10)
    result = world.run(restart="containers")
    assert result["restarted"] == ["web"]
    assert [call for call in world.engine.calls if call.startswith("restart")] == ["restart web"]
    assert {entry["name"]: entry["readers"] for entry in result["logs"]} == {"web": "ok", "job": "ok"}
    assert world.warnings == []
    assert "failure" not in result
    again = world.run(restart="containers")
    assert (again["changed"], again["restarted"]) == (False, [])


def test_engines_that_read_by_the_files_size_need_no_restart(make: Make) -> None:
    world = make(version="20.10.24")
    world.add("web")
    world.engine.shows[world.ident("web")] = False
    assert world.run(restart="containers")["restarted"] == []


def test_who_an_earlier_run_left_silent_is_started_again(make: Make) -> None:
    world = make()
    for name in ("web", "fine", "other"):
        world.add(name, records=10)
    world.add("stopped", records=10, state="exited")
    for name in ("web", "other", "stopped"):
        world.engine.shows[world.ident(name)] = False
    world.engine.on_restart = lambda ident: world.engine.shows.pop(ident)
    assert world.run(containers=["web", "fine", "stopped"])["logs"] == [], "nobody asked"
    result = world.run(restart="containers", containers=["web", "fine", "stopped"], check=True)
    assert (result["restarted"], result["changed"], world.engine.calls) == (["web"], True, [])
    result = world.run(restart="containers", containers=["web", "fine", "stopped"])
    assert (result["restarted"], result["changed"]) == (["web"], True)
    assert world.entry("web")["words"] == "docker logs --tail showed nothing, though there is something to show"
    assert world.entry("web")["readers"] == "ok"
    assert world.run(restart="containers", containers=["web", "fine", "stopped"])["restarted"] == []


def test_a_log_without_a_line_shows_nothing_and_is_well(make: Make) -> None:
    world = make()
    world.add("web", records=0)
    world.engine.shows[world.ident("web")] = False
    assert world.run(restart="containers")["restarted"] == []


def test_a_restart_that_cures_nothing_is_a_failure(make: Make) -> None:
    world = make()
    world.add("web")
    world.engine.shows[world.ident("web")] = False
    result = world.run(restart="containers")
    assert result["restarted"] == ["web"]
    assert result["failure"] == "disk"
    assert "it was started again, and docker logs --tail still shows nothing" in world.entry("web")["words"]
    assert world.entry("web")["readers"] == "stale"
    assert world.entry("web")["method"] == "paused"


def test_a_restart_that_the_engine_refuses_is_told_in_its_words(make: Make) -> None:
    world = make()
    world.add("web")
    world.add("other")
    world.engine.refuses["restart"] = EngineError("POST /containers/x/restart", 500, "driver failed programming external connectivity")
    result = world.run(restart="containers")
    assert (result["restarted"], result["failure"]) == ([], "disk")
    for name in ("web", "other"):
        assert "driver failed programming external connectivity" in world.entry(name)["words"]


def test_an_engine_that_would_stop_its_containers_is_not_restarted_and_nothing_else_is_done(make: Make) -> None:
    world = make()
    world.add("web")
    with pytest.raises(FleetcleanError, match=r"restart: engine: this engine would stop its containers, since live-restore is off; nothing was touched") as caught:
        world.run(restart="engine")
    assert caught.value.code == "bad_input"
    assert len(world.numbers("web")) == RECORDS
    assert world.restarts_of_engine == 0


def test_an_engine_with_live_restore_is_restarted_once_for_all(make: Make) -> None:
    world = make(live_restore=True)
    world.add("web")
    world.add("db", LOCAL)
    world.add("silent", records=10)
    world.engine.shows[world.ident("silent")] = False
    told = world.run(restart="engine", check=True)
    assert (told["restarted"], world.restarts_of_engine) == (["engine"], 0)
    result = world.run(restart="engine")
    assert (result["restarted"], world.restarts_of_engine) == (["engine"], 1)
    assert {entry["name"]: entry["readers"] for entry in result["logs"]} == {"web": "ok", "db": "ok", "silent": "ok"}
    assert [call for call in world.engine.calls if call.startswith("restart")] == []
    again = world.run(restart="engine")
    assert (again["changed"], again["restarted"], world.restarts_of_engine) == (False, [], 1)


def test_a_container_whose_log_was_deleted_is_started_again_and_writes_where_it_is_read(make: Make) -> None:
    world = make()
    world.add("web")
    path = world.path("web")
    path.unlink()

    def start(_ident: str) -> None:
        world.holders[0].end()
        path.write_bytes(LINES.records(3))
        world.hold(path)

    world.engine.on_restart = start
    result = world.run(restart="containers")
    assert result["restarted"] == ["web"]
    assert (world.entry("web")["method"], world.entry("web")["readers"]) == ("deleted", "ok")
    assert "failure" not in result
    assert world.run(restart="containers")["logs"] == []


def test_a_deleted_log_without_a_byte_left_is_cured_as_well(make: Make) -> None:
    # An earlier run gave its space back, and nobody started the container again.
    world = make()
    world.add("web", records=0)
    world.path("web").unlink()
    world.engine.on_restart = lambda _ident: world.holders[0].end()
    result = world.run(restart="containers")
    assert result["restarted"] == ["web"]
    assert "its log was deleted while the engine held it open" in world.entry("web")["words"]


def test_a_restart_after_which_the_engine_still_writes_elsewhere_cured_nothing(make: Make) -> None:
    world = make()
    world.add("web", records=10)
    world.path("web").rename(f"{world.path('web')}.old")
    result = world.run(restart="containers")
    assert result["failure"] == "disk"
    assert world.entry("web")["readers"] == "stale"


# -- behind a link -------------------------------------------------------------------------------------


def test_a_containers_folder_that_is_a_link_is_followed_only_once_it_was_verified(make: Make) -> None:
    world = make()
    world.add("large", records=4000, state="exited")
    world.add("small", records=3, state="exited")
    elsewhere = world.root / "elsewhere"
    (world.root / "containers").rename(elsewhere)
    (world.root / "containers").symlink_to(elsewhere)
    result = world.run(check=True)
    # Whosever it is, there is nothing to cut in the small one.
    assert [(entry["name"], entry["method"]) for entry in result["logs"]] == [("large", "none")]
    assert result["failure"] == "disk" and "reached through a link; it stays as it is" in result["msg"]
    storage = Storage(str(world.root), "overlay2", "graphdriver", {}, moved={f"{world.root}/containers": str(elsewhere)})
    site = session.open_site({})
    world.patch.setattr(session, "open_site", lambda _params: site._replace(located=storage))
    result = world.run()
    assert "failure" not in result
    assert [(entry["name"], entry["path"].startswith(f"{elsewhere}/")) for entry in result["logs"]] == [("large", True)]
    assert world.run()["logs"] == []


# -- readers that would be stale -----------------------------------------------------------------


def filled(monkeypatch: pytest.MonkeyPatch, available: int, size: int = 1000) -> None:
    """Every filesystem has so many blocks, and so many of them available."""
    real = os.statvfs

    def statvfs(path: t.Any) -> t.Any:
        found = list(real(path))
        found[2], found[4] = size, available  # f_blocks, f_bavail
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "statvfs", statvfs)


@pytest.mark.parametrize(
    ("rule", "available", "is_cut"),
    [("when_full", 1000, False), ("when_full", 100, False), ("when_full", 99, True), ("when_full", 0, True), ("avoid", 0, False), ("allow", 1000, True)],
)
@pytest.mark.parametrize("kind", [JSON_FILE, LOCAL, CACHE], ids=["json-file", "local", "cache"])
def test_a_log_whose_readers_would_be_stale_is_cut_only_where_space_is_short_or_that_is_allowed(
    make: Make, monkeypatch: pytest.MonkeyPatch, rule: str, available: int, is_cut: bool, kind: Kind
) -> None:
    filled(monkeypatch, available)
    world = make()
    world.add("web", kind)
    world.add("job", kind, state="exited")
    before = world.path("web", kind).read_bytes()
    told = world.run(check=True, stale_readers=rule)
    assert told == world.run(stale_readers=rule)
    entry = world.entry("web")
    assert world.entry("job")["method"] == "rewrite", "nobody writes it: its readers are well"
    assert (entry["method"], entry["readers"]) == (("paused", "stale") if is_cut else ("none", "spared"))
    assert "failure" not in told
    if not is_cut:
        assert world.path("web", kind).read_bytes() == before
        assert (entry["bytes_before"], entry["bytes_after"], entry["reclaimed_bytes"]) == (SIZE, SIZE, 0)
        share = {"when_full": f", and {available // 10} % of its filesystem is free", "avoid": ""}[rule]
        assert entry["words"] == (
            f"224.0 KB stay (stale_readers: {rule}): docker logs --tail and -f would stay silent or hang after the cut{share}. Ways out: restart: engine "
            "with live_restore: enable (no container stops) or restart: containers; a new container with max-size, whose log the engine rotates; "
            "stale_readers: allow"
        )
        assert world.engine.calls == [], "nothing stands still for that"


def test_the_plan_and_the_run_decide_alike_though_each_cut_makes_room(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make()
    for number in range(3):
        world.add(f"web-{number}")
    filled(monkeypatch, 99)
    real = log_cuts.outcome
    told = world.run(check=True, stale_readers="when_full")
    # Each cut, which is told in a process of its own as well, gives a lot back.
    monkeypatch.setattr(log_cuts, "outcome", lambda *about: (filled(monkeypatch, 900), real(*about))[1])
    assert world.run(stale_readers="when_full") == told
    assert {entry["method"] for entry in told["logs"]} == {"paused"}


@pytest.mark.parametrize("version", ["20.10.24", "22.0.0"])
def test_engines_whose_readers_are_well_afterwards_have_their_logs_cut_as_ever(make: Make, version: str) -> None:
    world = make(version=version)
    world.add("web")
    assert world.run(stale_readers="avoid")["changed"]
    assert world.entry("web")["readers"] == "ok"


@pytest.mark.parametrize("rule", ["avoid", "when_full"])
def test_what_a_restart_cures_in_the_same_run_is_cut(make: Make, rule: str) -> None:
    world = make(live_restore=True)
    for name in ("web", "db"):
        world.add(name)
    told = world.run(check=True, stale_readers=rule, restart="engine")
    assert told == world.run(stale_readers=rule, restart="engine")
    assert (told["restarted"], {entry["readers"] for entry in told["logs"]}) == (["engine"], {"ok"})
    world.add("more")
    assert world.run(stale_readers=rule, restart="containers")["restarted"] == ["more"]


def test_a_restart_that_is_refused_is_so_in_check_mode_as_well(make: Make) -> None:
    """Of logs that an earlier run left silent."""
    world = make(live_restore=True)
    world.add("silent", records=10)
    world.engine.shows[world.ident("silent")] = False
    world.no_restart = FleetcleanError('restart: engine: /etc/docker/daemon.json says "data-root": "/srv/docker"', "bad_input")
    for check in (True, False):
        with pytest.raises(FleetcleanError, match='says "data-root"'):
            world.run(check=check, restart="engine")
        assert (world.result["changed"], world.result["restarted"], world.restarts_of_engine) == (False, [], 0)
        assert world.entry("silent")["readers"] == "stale"


def test_a_restart_that_cannot_be_done_from_here_cures_nothing(make: Make) -> None:
    world = make(live_restore=True)
    world.add("web")
    world.no_restart = FleetcleanError("restart: engine: its process cannot be found from here", "denied")
    for check in (True, False):
        result = world.run(check=check, stale_readers="when_full", restart="engine")
        assert (result["changed"], result["restarted"], world.restarts_of_engine) == (False, [], 0)
        assert world.entry("web")["readers"] == "spared"
        assert "(restart: engine: its process cannot be found from here)" in world.entry("web")["words"]


def test_a_disk_that_refuses_a_block_is_full_whatever_it_says(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """btrfs, without room for its metadata, has free space that nobody can have."""
    world = make()
    world.add("web")
    real = log_cuts.decide

    def decide(*about: t.Any) -> tuple[list[log_cuts.Plan], str]:
        plans, why = real(*about)
        return [log_cuts.Plan("clone", plan.size, plan.text, plan.start) for plan in plans] + plans, why

    def carry_out(_descriptor: int, _form: t.Any, plans: t.Sequence[log_cuts.Plan], _pause: t.Any) -> log_cuts.Plan:
        if [plan.method for plan in plans] == ["clone"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plans[0]

    monkeypatch.setattr(log_cuts, "decide", decide)
    monkeypatch.setattr(log_cuts, "carry_out", carry_out)
    assert world.run(stale_readers="avoid")["failure"] == "disk_full"
    assert "failure" not in world.run(stale_readers="when_full")
    assert (world.entry("web")["method"], world.entry("web")["readers"]) == ("paused", "stale")
