# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docker_clean from its options to its result, on a model of an engine and a filesystem of any size."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.fleetclean.docker.plugins.module_utils import (
    attribution,
    cleaning,
    history,
    measure,
    options,
    places,
    removal,
    session,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.accounts import Account
from ansible_collections.fleetclean.docker.plugins.module_utils.engine import EngineError
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError
from ansible_collections.fleetclean.docker.plugins.module_utils.plan import Plan, Step
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Proof, Storage
from ansible_collections.fleetclean.docker.plugins.module_utils.units import parse_amount
from ansible_collections.fleetclean.docker.plugins.module_utils.walk import Sizes
from ledgers import ledger_of
from model import NOW, Model
from worlds import DAY

MB = 1 << 20
IMAGES = {"a": 10, "b": 20, "c": 30}  # MB; the least recently used first


class World:
    """A model with three images and two networks, and a disk that has more when they go (``late``: not at once)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own: bool = True, promise: float = 1.0) -> None:
        self.engine = Model()
        for number, name in enumerate(IMAGES):
            self.engine.add_image(name, f"{name}:1", created=NOW - (30 - number) * DAY)
        self.engine.add_net("one", NOW - 9 * DAY)
        self.size, self.base = 1000 * MB, 100 * MB
        self.inodes, self.read_only = 1000, False
        self.promise = promise  # what is said of each image, in proportion to what comes free
        self.state_dir = str(tmp_path / "state")
        self._own = own
        self.surveys = 0
        monkeypatch.setattr(session, "open_site", lambda _params: self._site())
        monkeypatch.setattr(measure, "filesystem", lambda _path: self._filesystem())
        monkeypatch.setattr(measure, "settle", lambda _path: None)
        monkeypatch.setattr(attribution, "survey", self._survey)
        monkeypatch.setattr(attribution, "sharers", lambda _storage, _looked: {})

    def _site(self) -> session.Site:
        storage = Storage("/nowhere", "overlay2", "graphdriver", {})
        return session.Site(t.cast(t.Any, self.engine), storage, Proof(self._own, "of another machine"))

    def _filesystem(self) -> measure.Filesystem:
        gone = [name for name in IMAGES if not any(f"{name}:1" in picture.tags for picture in self.engine.pictures.values())]
        free = self.base + sum(IMAGES[name] * MB for name in gone)
        inodes = min(self.inodes, 100 + 10 * len(gone))
        return measure.Filesystem("/data", "ext4", self.size, self.size - free, free, free, self.inodes, inodes, free, self.read_only)

    def _survey(self, engine: t.Any, _storage: object, _how: object, wanted: t.Any) -> attribution.Survey:
        self.surveys += 1
        looked = cleaning.snapshot.take(engine, wanted, None)
        accounts = {image.id: Account("images", frozenset({f"image:{image.id}"})) for image in looked.images}
        sizes = {
            image.id: Sizes(frees=int(IMAGES[image.tags[0][0]] * MB * self.promise), inodes=10) for image in looked.images if image.tags
        }
        return attribution.Survey(looked, ledger_of(accounts, sizes))

    def run(self, check: bool = False, diff: bool = False, **wishes: t.Any) -> dict[str, t.Any]:
        validated = ArgumentSpecValidator({**options.shared_spec(), **options.clean_spec()}).validate({"state_dir": self.state_dir, **wishes})
        assert not validated.error_messages
        warned: list[str] = []
        module = type("Module", (), {"params": validated.validated_parameters, "check_mode": check, "_diff": diff, "warn": warned.append})
        self.result: dict[str, t.Any] = {"changed": False}
        cleaning.clean(t.cast(t.Any, module), self.result, *options.read_clean(module.params))
        return self.result


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> t.Callable[..., World]:
    return lambda **more: World(monkeypatch, tmp_path, **more)


def names(result: dict[str, t.Any]) -> list[str]:
    return [entry["name"] for entry in result["removed"]]


WISHES: dict[str, t.Any] = {"images": {"scope": "unused"}, "networks": {}}


@pytest.mark.parametrize(("megabytes", "going"), [(1, "a"), (10, "a"), (11, "ab"), (30, "ab"), (31, "abc"), (60, "abc")])
@pytest.mark.parametrize("promise", [1.0, 0.5, 2.0])
def test_a_target_is_met_and_not_one_object_more_goes(make: t.Callable[..., World], megabytes: int, going: str, promise: float) -> None:
    """Whatever was promised: what the filesystem has counts."""
    world = make(promise=promise)
    target = {**WISHES, "free_target": str(world.base + megabytes * MB)}
    if promise == 1.0:
        check = world.run(check=True, **target)
        assert (names(check), check["target_met"], check["changed"]) == ([f"{name}:1" for name in going], True, True)
        assert check["free_after"] >= world.base + megabytes * MB
    done = world.run(**target)
    assert (names(done), done["target_met"]) == ([f"{name}:1" for name in going], True)
    again = world.run(**target)
    assert (again["changed"], again["target_met"]) == (False, True)


def test_what_can_never_free_anything_stays_where_a_target_is_to_be_met(make: t.Callable[..., World]) -> None:
    world = make()
    result = world.run(**WISHES, free_target="100%")
    assert (names(result), result["target_met"]) == (["a:1", "b:1", "c:1"], False)
    assert {"kind": "network", "reason": "frees nothing, and a target is to be met", "count": 1, "bytes": 0} in result["kept"]
    assert "one" in {net.name for net in world.engine.nets.values()}


def test_inodes_are_a_target_of_their_own(make: t.Callable[..., World]) -> None:
    world = make()
    both = {**WISHES, "free_target": str(world.base + 1), "free_target_inodes": "115"}
    assert names(world.run(check=True, **both)) == ["a:1", "b:1"]
    assert names(world.run(**both)) == ["a:1", "b:1"]


@pytest.mark.parametrize(
    ("marks", "begins"),
    [
        ({"only_below": "20%"}, True),
        ({"only_below": "5%"}, False),
        ({"only_below_inodes": "20%"}, True),
        ({"only_below_inodes": "5%"}, False),
        ({"only_below": "5%", "only_below_inodes": "20%"}, True),
        ({"only_below": "20%", "only_below_inodes": "5%"}, True),
        ({"only_below": "20%", "free_target": "10%"}, False),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_on_a_healthy_host_nothing_is_done_and_nothing_is_measured(make: t.Callable[..., World], marks: dict[str, str], begins: bool, check: bool) -> None:
    world = make()
    result = world.run(check=check, **WISHES, **marks)
    assert result["changed"] == begins
    assert begins or (world.surveys, result["removed"]) == (0, [])


@pytest.mark.parametrize("check", [True, False])
def test_what_was_used_is_noted_on_the_nights_without_anything_to_do_too(make: t.Callable[..., World], check: bool) -> None:
    world = make()
    used = next(iter(world.engine.pictures))
    world.engine.add_box("box", used, state="running")
    assert not world.run(check=check, **WISHES, only_below="1%")["changed"]
    assert set(history.recall(world.state_dir, "MODEL", NOW).used) == (set() if check else {used})


@pytest.mark.parametrize("wishes", [{"networks": {}, "only_below": "1%"}, {"images": {"keep": ["*"]}}, {"containers": {}}])
def test_networks_that_were_used_are_noted_whatever_was_asked_for(make: t.Callable[..., World], wishes: dict[str, t.Any]) -> None:
    """A job's container is gone when the next run comes, and so may be the engine's events."""
    world = make()
    one = next(net for net in world.engine.nets.values() if net.name == "one")
    job = {"Type": "network", "Action": "connect", "Actor": {"ID": one.id, "Attributes": {"container": "gone"}}, "time": int(NOW - 3600)}
    world.engine.events += [job]
    world.run(**wishes)
    memory = history.recall(world.state_dir, "MODEL", NOW)
    assert memory.used == {f"network:{one.id}": NOW - 3600}
    assert memory.watched == (NOW - 1000 * DAY, NOW), "since the engine was started"
    world.engine.events.clear()
    kept = world.run(networks={"older_than": "1d"})["kept"]
    assert {"kind": "network", "reason": "last used less than 1d ago (seen in use by an earlier run)", "count": 1, "bytes": 0} in kept


def test_runs_that_come_often_enough_know_of_a_network_what_the_engine_has_forgotten(make: t.Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    world, start = make(), NOW - 20 * DAY
    world.engine.events_kept = 16
    one = next(net for net in world.engine.nets.values() if net.name == "one")
    one.created = start
    wish = {"networks": {"older_than": "7d"}}

    def night(number: int, oldest: float) -> list[str]:
        now = start + number * DAY
        monkeypatch.setattr("model.NOW", now)
        world.engine.events[:] = [{"Type": "container", "Action": "health_status", "Actor": {}, "time": int(now - oldest)}]
        result = world.run(**wish)
        world.engine.nets.setdefault(one.id, one)
        return names(result)

    assert [night(number, 25 * 3600) for number in range(1, 8)] == [[]] * 6 + [["one"]]
    assert night(8, 300) == [], "the engine held less than a night's events"
    assert [night(number, 25 * 3600) for number in range(9, 16)] == [[]] * 6 + [["one"]]


def test_a_filesystem_without_a_number_of_inodes_never_lacks_any(make: t.Callable[..., World]) -> None:
    world = make()
    world.inodes = 0
    assert not world.run(**WISHES, only_below_inodes="1000")["changed"]
    result = world.run(**WISHES, free_target_inodes="50%")
    assert (result["changed"], result["target_met"]) == (False, True)


def figures(result: dict[str, t.Any]) -> dict[str, tuple[int | None, int | None]]:
    return {entry["name"]: (entry["bytes"], entry["logical_bytes"]) for entry in result["removed"] if entry["kind"] == "image"}


def test_a_plain_run_says_the_engines_figures_by_their_name_where_nothing_was_measured(make: t.Callable[..., World]) -> None:
    world = make()
    engines = {f"{image.tags[0]}": image.bytes for image in cleaning.snapshot.take(t.cast(t.Any, world.engine), cleaning.snapshot.Wanted(images=True), None).images}
    result = world.run(**WISHES)
    assert len(result["removed"]) == 4
    assert world.surveys == 0
    assert figures(result) == {name: (None, size) for name, size in engines.items()}
    assert (result["planned_bytes"], result["planned_logical_bytes"]) == (None, sum(size or 0 for size in engines.values()))


@pytest.mark.parametrize(("objects", "measured"), [(3, True), (2, False)])
def test_a_plain_run_measures_a_small_plan_and_nothing_else(
    make: t.Callable[..., World], monkeypatch: pytest.MonkeyPatch, objects: int, measured: bool
) -> None:
    world = make()
    monkeypatch.setattr(cleaning, "_FEW_OBJECTS", objects)
    monkeypatch.setattr(cleaning.snapshot, "with_layers", lambda looked, _engine, _storage: looked)
    asked: list[t.Collection[str]] = []

    def fake_measure(_storage: object, _looked: object, how: object, going: t.Collection[str], most_files: int) -> t.Any:
        asked.append(going)
        return world._survey(world.engine, None, how, cleaning.snapshot.Wanted(images=True)).ledger

    monkeypatch.setattr(attribution, "measure_alone", fake_measure)
    check = make().run(check=True, **WISHES)
    world = make()
    result = world.run(**WISHES)
    assert [sorted(going) for going in asked] == ([sorted(f"image:{entry['id']}" for entry in result["removed"] if entry["kind"] == "image")] if measured else [])
    if measured:
        assert figures(result) == figures(check)
        assert result["planned_bytes"] == check["planned_bytes"] == result["filesystems"][0]["planned_bytes"] == 60 * MB
    else:
        assert {size for size, _logical in figures(result).values()} == {None}


def test_a_disk_that_cannot_be_measured_is_no_reason_to_remove_nothing(make: t.Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    def fake_layers(*_arguments: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(cleaning.snapshot, "with_layers", fake_layers)
    result = make().run(**WISHES)
    assert (len(result["removed"]), result["planned_bytes"]) == (4, None)


def test_files_are_counted_by_their_names_and_no_further_than_is_needed(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"folder{number}").mkdir()
        (tmp_path / f"folder{number}" / "file").touch()
    (tmp_path / "link").symlink_to("/")
    assert attribution._are_few([str(tmp_path)], 12) and not attribution._are_few([str(tmp_path)], 11)
    assert attribution._are_few([str(tmp_path / "folder0" / "file")], 1), "a file of its own"
    assert not attribution._are_few([str(tmp_path / "nothing")], 100), "what cannot be looked at has nobody knows how many"


def test_on_a_read_only_filesystem_nothing_is_tried_and_check_mode_still_tells(make: t.Callable[..., World]) -> None:
    world = make()
    world.read_only = True
    assert len(world.run(check=True, **WISHES)["removed"]) == 4
    before = world.engine.everything()
    with pytest.raises(FleetcleanError, match="mounted read-only, so nothing can be removed; nothing was tried") as caught:
        world.run(**WISHES)
    assert (caught.value.code, world.engine.everything()) == ("disk", before)
    assert world.result["policy"] == ["images: unused", "networks: used by no container", "always: keep what is labelled fleetclean.keep"]


def test_watermarks_of_another_machines_disk_are_refused(make: t.Callable[..., World]) -> None:
    world = make(own=False)
    with pytest.raises(FleetcleanError, match="only_below and free_target") as caught:
        world.run(**WISHES, free_target="10%")
    assert caught.value.code == "foreign_root"
    assert world.run(**WISHES)["reclaimed_bytes"] is None


def test_a_run_that_loses_its_engine_returns_what_it_did(make: t.Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    world = make()

    def fake_loss(call: str, _name: str) -> None:
        if call == "remove_image" and len(world.engine.pictures) == 2:
            raise FleetcleanError("engine does not answer: /run/docker.sock: connection refused.", "engine_down")

    world.engine.before = fake_loss
    monkeypatch.setattr(world.engine, "wait", lambda _seconds: False)
    with pytest.raises(FleetcleanError) as caught:
        world.run(**WISHES, parallel=1)
    assert caught.value.code == "engine_down"
    assert names(world.result) == ["one", "a:1"]
    assert world.result["changed"]
    assert ("the engine went away before this was done", 2) in [(entry["reason"], entry["count"]) for entry in world.result["kept"]]
    assert removal.PATIENCE >= 30


def test_the_diff_says_the_wishes_first(make: t.Callable[..., World]) -> None:
    text = make().run(check=True, diff=True, **WISHES)["diff"]["prepared"]
    assert text.splitlines()[:2] == ["  wished      images: unused", "  wished      networks: used by no container"]
    assert "- image       c:1" in text


def test_what_a_container_used_is_noted_before_it_goes_though_no_image_was_to_go(make: t.Callable[..., World]) -> None:
    world = make()
    used = next(iter(world.engine.pictures))
    world.engine.add_box("box", used, state="exited", created=NOW - 9 * DAY, started=NOW - 9 * DAY, finished=NOW - DAY)
    assert names(world.run(containers={})) == ["box"]
    assert history.recall(world.state_dir, "MODEL", NOW).used == {used: NOW - DAY}
    assert len(world.run(images={"scope": "unused", "older_than": "2d"})["removed"]) == 2


def test_an_engine_that_is_lost_for_the_second_look_is_told_beside_what_failed(make: t.Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    world = make()
    first = next(iter(world.engine.pictures))
    world.engine.add_record("r", images=frozenset({first, "another"}), created=NOW - DAY)
    looks: list[str] = []

    def fake_trouble(call: str, name: str) -> None:
        if call == "remove_image" and name != first:
            raise EngineError(f"DELETE /images/{name}", 500, "input/output error")
        if call == "disk_usage":
            looks.append(call)
            if len(looks) > 1:
                raise FleetcleanError("engine does not answer: /run/docker.sock: connection refused.", "engine_down")

    world.engine.before = fake_trouble
    monkeypatch.setattr(world.engine, "wait", lambda _seconds: False)
    with pytest.raises(FleetcleanError) as caught:
        world.run(**WISHES, build_cache={})
    assert caught.value.code == "engine_down"
    assert len(world.result["failures"]) == 2 and "a:1" in names(world.result)
    assert not {"msg", "failure"} & world.result.keys(), "these are the error's, and are given once"


# -- what failed ---------------------------------------------------------------------------------------------


def failing(world: World, removal: str, act: t.Callable[[str], None] = lambda _name: None) -> None:
    """Let each such removal fail, after ``act`` did a part of it."""

    def fake_trouble(call: str, name: str) -> None:
        if call == removal:
            act(name)
            raise EngineError(f"DELETE /{name}", 500, "operation not permitted")

    world.engine.before = fake_trouble


def test_what_failed_and_is_in_the_next_plan_is_tried_again_and_nothing_else_is_promised(make: t.Callable[..., World]) -> None:
    world = make()
    failing(world, "remove_image")
    result = world.run(**WISHES)
    assert result["msg"].startswith("3 objects could not be removed, all else was done. The first: image a:1: ")
    assert result["msg"].endswith('the engine says "operation not permitted" (HTTP 500). The next run tries again.')
    assert (result["changed"], names(result)) == (True, ["one"])
    result = world.run(images={"scope": "unused"})
    assert (result["changed"], len(result["failures"])) == (False, 3), "nothing was changed"


def test_an_image_that_lost_its_name_half_way_is_said_to_have_and_is_not_promised_to_a_run_that_goes_by_names(make: t.Callable[..., World]) -> None:
    world = make()
    failing(world, "remove_image", lambda ident: world.engine.pictures[ident].references.clear())
    result = world.run(images={"scope": "unused", "only": ["a", "b"], "keep_latest": 0})
    assert result["changed"]
    assert result["failures"][0]["error"].endswith("It has lost its name a:1.")
    assert "tries again" not in result["msg"]
    assert result["msg"].endswith("It leaves image a:1: not named in images.only. Remove that by hand, or ask for it.")
    world.engine.add_image("d", "d:1", created=NOW - DAY)
    failing(world, "remove_image", lambda ident: world.engine.pictures[ident].references.clear() if world.engine.pictures[ident].tags == ["c:1"] else None)
    result = world.run(images={"scope": "unused", "only": ["c", "d"]})
    assert "The next run tries 1 of them again. It leaves image c:1: not named" in result["msg"]


def test_an_anonymous_volume_whose_container_is_gone_is_not_tried_again_where_volumes_are_not_asked_for(make: t.Callable[..., World]) -> None:
    world = make()
    world.engine.add_volume("d" * 64, created=NOW - DAY)
    world.engine.add_box("box", next(iter(world.engine.pictures)), finished=NOW - DAY, volumes=["d" * 64])
    failing(world, "remove_volume")
    result = world.run(containers={"volumes": True})
    assert names(result) == ["box"]
    assert result["msg"].endswith(f"It leaves volume {'d' * 64}: it is not asked for any more. Remove that by hand, or ask for it.")
    assert world.run(volumes={})["msg"].endswith("The next run tries again.")


def test_what_is_gone_in_the_end_was_removed_whatever_the_engine_answered(make: t.Callable[..., World]) -> None:
    world = make()
    failing(world, "remove_network", lambda ident: world.engine.nets.pop(ident) and None)
    result = world.run(networks={})
    assert (result["failures"], names(result), result["changed"], "msg" in result) == ([], ["one"], True, False)


def test_nothing_is_promised_where_nobody_can_look_any_more(make: t.Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    world = make()
    failing(world, "remove_network")
    looks: list[int] = []
    look = cleaning._look

    def fake_look(site: t.Any, wanted: t.Any) -> t.Any:
        looks.append(1)
        if len(looks) > 1:
            raise OSError(5, "Input/output error")
        return look(site, wanted)

    monkeypatch.setattr(cleaning, "_look", fake_look)
    result = world.run(networks={})
    assert result["failure"] == "engine"
    assert result["msg"].endswith("What the next run makes of it cannot be told: [Errno 5] Input/output error")


def test_with_a_watermark_the_next_run_tries_when_it_needs_the_space(make: t.Callable[..., World]) -> None:
    world = make()
    failing(world, "remove_image")
    assert world.run(images={"scope": "unused"}, only_below="50%")["msg"].endswith("The next run that needs the space tries again.")


def test_a_stopped_container_that_became_dead_was_changed(make: t.Callable[..., World]) -> None:
    world = make()
    box = world.engine.add_box("box", next(iter(world.engine.pictures)), finished=NOW - DAY)
    failing(world, "remove_container", lambda _ident: setattr(box, "state", "dead"))
    result = world.run(containers={})
    assert result["changed"]
    assert result["failures"][0]["error"].endswith("It is dead now, and cannot start again.")
    assert result["msg"].endswith("The next run tries again.")
    box.state = "exited"
    failing(world, "remove_container")
    assert not world.run(containers={})["changed"]


def test_records_that_went_before_the_builder_failed_were_removed(make: t.Callable[..., World]) -> None:
    world = make()
    world.engine.add_record("r1", created=NOW - DAY)
    world.engine.add_record("r2", created=NOW - DAY)
    failing(world, "remove_cache_records", lambda _ids: world.engine.records.pop("r1", None) and None)
    result = world.run(build_cache={})
    assert (names(result), result["changed"]) == (["r1"], True)
    assert [entry["name"] for entry in result["failures"]] == ["r2"]


# -- several filesystems -----------------------------------------------------------------------------------


class TwoDisks(World):
    """The same, with the first image on a filesystem of its own (/b), which has 10 MB free of 100."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        super().__init__(monkeypatch, tmp_path)
        self.b_is_read_only = False
        self.pool = ""
        monkeypatch.setattr(places, "disks", lambda _storage: [places.Disk("dev a", ("/a",), ("logs",)), places.Disk("dev b", ("/b",))])
        monkeypatch.setattr(places, "disk_of", lambda _path, disks: disks[0])
        monkeypatch.setattr(measure, "pool", lambda path: self.pool or path)
        monkeypatch.setattr(measure, "filesystem", lambda path: self._on(path))

    def _on(self, path: str) -> measure.Filesystem:
        left = {name for name in IMAGES if any(f"{name}:1" in picture.tags for picture in self.engine.pictures.values())}
        size, base, mine = (100 * MB, 10 * MB, {"a"}) if path == "/b" else (1000 * MB, 100 * MB, {"b", "c"})
        free = base + sum(IMAGES[name] * MB for name in mine - left)
        return measure.Filesystem(path, "ext4", size, size - free, free, free, 0, 0, free, path == "/b" and self.b_is_read_only)

    def _survey(self, engine: t.Any, storage: object, how: object, wanted: t.Any) -> attribution.Survey:
        survey = super()._survey(engine, storage, how, wanted)
        accounts = survey.ledger.accounts
        for number in accounts:
            (holder,) = accounts[number].holders
            image = next(image for image in survey.snapshot.images if f"image:{image.id}" == holder)
            accounts.set_disk(number, "dev b" if "a:1" in image.tags else "")
        return survey


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TwoDisks:
    return TwoDisks(monkeypatch, tmp_path)


@pytest.mark.parametrize(("mark", "begins"), [("9%", False), ("10%", False), ("11%", True), ("9MB", False), ("11MB", True), ("99MB", True), ("101MB", True)])
def test_one_low_filesystem_is_reason_enough_by_its_own_size(two: TwoDisks, mark: str, begins: bool) -> None:
    assert two.run(check=True, images={"scope": "unused"}, only_below=mark)["changed"] == begins


def test_a_target_is_one_for_each_filesystem_and_nothing_else_goes_for_it(two: TwoDisks) -> None:
    for check in (True, False):
        result = two.run(check=check, images={"scope": "unused"}, free_target="15MB")
        assert (names(result), result["target_met"]) == (["a:1"], True)
        assert {entry["reason"] for entry in result["kept"]} == {"frees nothing on a filesystem that has less than its target"}
    assert [(entry["planned_bytes"], entry["reclaimed_bytes"]) for entry in result["filesystems"]] == [(0, 0), (10 * MB, 10 * MB)]
    assert (result["reclaimed_bytes"], result["free_before"], result["free_after"]) == (10 * MB, 100 * MB, 100 * MB)


NO_MARKS: dict[str, t.Any] = dict.fromkeys(("only_below", "free_target", "only_below_inodes", "free_target_inodes"))


@pytest.mark.parametrize(
    ("mark", "layers", "records", "goes_for"),
    [
        ("free_target", Sizes(frees=40 * MB, inodes=10), Sizes(frees=40_000, inodes=12), {"layers"}),
        ("free_target", Sizes(frees=MB, inodes=10), Sizes(frees=40_000, inodes=12), {"layers"}),
        ("free_target", Sizes(frees=40 * MB, inodes=10), Sizes(frees=5 * MB, inodes=1), {"layers", "root"}),
        ("free_target", Sizes(frees=900 * MB, inodes=10), Sizes(frees=16 * MB, inodes=1), {"layers", "root"}),
        ("free_target", Sizes(), Sizes(frees=12_000, inodes=3), {"root"}),
        ("free_target_inodes", Sizes(frees=40 * MB, inodes=10), Sizes(frees=40_000, inodes=12), {"layers", "root"}),
        ("free_target_inodes", Sizes(frees=40 * MB, inodes=10_000), Sizes(frees=40_000, inodes=12), {"layers"}),
    ],
)
def test_nothing_goes_for_the_sake_of_a_filesystem_that_has_its_records_alone(mark: str, layers: Sizes, records: Sizes, goes_for: set[str]) -> None:
    accounts = {"layer": Account("images", frozenset({"image:i"}), disk="layers"), "record": Account("images", frozenset({"image:i"}), disk="root")}
    marks = options.Watermarks(**{**NO_MARKS, mark: parse_amount("1%", mark)})
    step = Step("image", "i", "i:1", None, "why")
    step = cleaning._sizer(ledger_of(accounts, {"layer": layers, "record": records}), "root", marks, Plan((step,)))(step)
    assert {device for device in ("layers", "root") if step.helps({device})} == goes_for
    assert (step.bytes, cleaning._on(Plan((step,)), "root")) == (layers.frees + records.frees, (records.frees, records.inodes)), "they come free all the same"
    short, _rest = Plan((step,)).until_each({"root": (1, 1)})
    assert bool(short.steps) == ("root" in goes_for)


def test_what_shares_all_with_something_that_stays_goes_for_no_filesystem() -> None:
    def holds(category: str, disk: str, *holders: str) -> Account:
        return Account(category, frozenset(holders), disk=disk)

    accounts = {
        "base": holds("images", "layers", "image:a", "image:b", "image:stays", "container:c"),
        "both": holds("images", "layers", "image:a", "image:b"),
        "tag": holds("images", "root", "image:b2"),
        "same": holds("images", "layers", "image:b2", "image:stays"),
        "writable": holds("containers", "layers", "container:c"),
        "log": holds("logs", "root", "container:c"),
    }
    sizes = {name: Sizes(frees=size, inodes=1) for name, size in {"base": 50 * MB, "both": 9 * MB, "tag": 9_000, "same": 9 * MB, "writable": 9_000, "log": MB}.items()}
    marks = options.Watermarks(**{**NO_MARKS, "free_target": parse_amount("1%", "free_target")})
    steps = tuple(Step(kind, ident, ident, None, "why") for kind, ident in (("container", "c"), ("image", "a"), ("image", "b"), ("image", "b2")))
    sized = cleaning._sizer(ledger_of(accounts, sizes), "root", marks, Plan(steps))
    found = {step.id: {device for device in ("layers", "root") if step.helps({device})} for step in map(sized, steps)}
    assert found == {"c": {"root"}, "a": {"layers"}, "b": {"layers"}, "b2": set()}


def test_a_target_that_one_filesystem_cannot_meet_takes_nothing_more_from_another(two: TwoDisks) -> None:
    for check in (True, False):
        result = two.run(check=check, images={"scope": "unused"}, free_target="30MB")
        assert (names(result), result["target_met"]) == (["a:1"], False)


def test_where_each_lacks_something_each_gets_what_it_lacks(two: TwoDisks) -> None:
    for check in (True, False):
        result = two.run(check=check, images={"scope": "unused"}, free_target="11%")
        # 10 of 100 MB and 100 of 1000: each lacks a share of its own.
        assert (names(result), result["target_met"]) == (["a:1", "b:1"], True)


def test_figures_are_there_for_each_filesystem_and_add_up(two: TwoDisks) -> None:
    check, done = (two.run(check=check, images={"scope": "unused"}) for check in (True, False))
    assert check["filesystems"] == [
        {"mount_point": "/a", "size": 1000 * MB, "free_before": 100 * MB, "free_after": 150 * MB, "planned_bytes": 50 * MB, "reclaimed_bytes": 0},
        {"mount_point": "/b", "size": 100 * MB, "free_before": 10 * MB, "free_after": 20 * MB, "planned_bytes": 10 * MB, "reclaimed_bytes": 0},
    ]
    assert (check["planned_bytes"], done["reclaimed_bytes"], done["free_after"]) == (60 * MB, 60 * MB, 150 * MB)
    assert [entry["reclaimed_bytes"] for entry in done["filesystems"]] == [50 * MB, 10 * MB]


def test_what_two_datasets_of_a_pool_have_more_is_the_same_bytes(two: TwoDisks) -> None:
    two.pool = "zfs tank"
    done = two.run(images={"scope": "unused"})
    assert [entry["reclaimed_bytes"] for entry in done["filesystems"]] == [50 * MB, 10 * MB]
    assert done["reclaimed_bytes"] == 50 * MB


def test_build_cache_does_not_go_for_a_filesystem_that_it_does_not_lie_on(two: TwoDisks) -> None:
    """The builder is asked once more, after images went that shared its records."""
    first = next(image for image, picture in two.engine.pictures.items() if "a:1" in picture.tags)
    two.engine.add_record("r", images=frozenset({first, "another"}), created=NOW - DAY)
    result = two.run(images={"scope": "unused"}, build_cache={"scope": "all"}, free_target="30MB")
    assert (names(result), result["target_met"]) == (["a:1"], False)


def test_one_read_only_filesystem_stops_a_run_and_is_named(two: TwoDisks) -> None:
    two.b_is_read_only = True
    with pytest.raises(FleetcleanError, match="a filesystem of the engine at /b is mounted read-only"):
        two.run(images={"scope": "unused"})


# -- what earlier tasks would have reclaimed -----------------------------------------------------------------


def assumed(megabytes: int, container: str = "") -> dict[str, t.Any]:
    return {"assume_reclaimed": [{"container": container, "bytes": megabytes * MB}]}


def test_in_check_mode_what_logs_would_have_freed_counts_as_free(two: TwoDisks) -> None:
    healthy = two.run(check=True, images={"scope": "unused"}, only_below="120MB", **assumed(111))
    assert healthy["changed"] is True, "the other filesystem is low still"
    result = two.run(check=True, images={"scope": "unused"}, only_below="11%", free_target="13%", **assumed(20))
    # 130 MB are missing on the first, of which it has 120 then; b gives 20.
    assert (names(result), result["target_met"]) == (["a:1", "b:1"], True)
    assert (result["free_before"], result["free_after"], result["assumed_bytes"]) == (120 * MB, 140 * MB, 20 * MB)
    enough = two.run(check=True, images={"scope": "unused"}, free_target="13%", **assumed(30))
    assert (names(enough), enough["target_met"]) == (["a:1"], True)


def test_in_a_real_run_the_filesystem_alone_tells(two: TwoDisks) -> None:
    result = two.run(images={"scope": "unused"}, free_target="13%", **assumed(30))
    assert (names(result), result["assumed_bytes"]) == (["a:1", "b:1", "c:1"][:3], 0)


@pytest.mark.parametrize("size", [-1, 2**60])
def test_a_figure_that_no_disk_has_is_refused(two: TwoDisks, size: int) -> None:
    with pytest.raises(FleetcleanError, match="assume_reclaimed.bytes: .* is out of range"):
        two.run(check=True, images={"scope": "unused"}, assume_reclaimed=[{"bytes": size}])
