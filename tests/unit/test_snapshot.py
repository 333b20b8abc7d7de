# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers of old and new engines become one shape. The answers are recorded ones, cut to what is read."""

from __future__ import annotations

import hashlib
import json
import os
import typing as t
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import fields, managers, policy, snapshot
from ansible_collections.fleetclean.docker.plugins.module_utils.engine import EngineError
from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import Wanted
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Storage
from worlds import random_wishes, random_world

from tests.fuzz.dice import SeededDice

CONTAINER = "8dfafdbc3a40" + "0" * 52
IMAGE = "sha256:" + "5f" * 32
NOON = 1709294400.0  # 2024-03-01T12:00:00Z

#: GET /containers/json of API 1.21: no State, no Mounts, no ImageID of use to us but the id itself.
OLD_CONTAINER = {
    "Id": CONTAINER,
    "Names": ["/web"],
    "Image": "app:1",
    "ImageID": IMAGE,
    "Created": 1709290800,
    "Status": "Exited (0) 3 hours ago",
    "Labels": None,
    "HostConfig": {"NetworkMode": "default"},
}
#: GET /containers/json?size=1 of API 1.45.
NEW_CONTAINER = {
    **OLD_CONTAINER,
    "State": "exited",
    "Labels": {"com.docker.compose.project": "shop"},
    "NetworkSettings": {"Networks": {"front": {"NetworkID": "f" * 64}}},
    "HostConfig": {"NetworkMode": "front"},
    "Mounts": [
        {"Type": "volume", "Name": "data", "Destination": "/data"},
        {"Type": "bind", "Source": "/etc", "Destination": "/host"},
    ],
    "SizeRw": 1234,
    "SizeRootFs": 99999,
}
#: GET /containers/{id}/json.
DETAILS = {
    "Created": "2024-03-01T11:00:00.123456789Z",
    "State": {
        "Status": "exited",
        "StartedAt": "2024-03-01T11:00:01.5Z",
        "FinishedAt": "2024-03-01T12:00:00.000000001Z",
    },
    "Image": IMAGE,
    "Mounts": [{"Type": "volume", "Name": "old-data"}],
    "NetworkSettings": {"Networks": {"bridge": {"NetworkID": "b" * 64}}},
}
OLD_IMAGE = {
    "Id": IMAGE,
    "ParentId": "",
    "RepoTags": ["app:1"],
    "RepoDigests": [],
    "Created": 1709290800,
    "Size": 5,
    "Labels": None,
}


SHAPES: dict[str, fields.Shape] = {
    "containers": fields.CONTAINERS,
    "container": fields.CONTAINER_DETAILS,
    "images": fields.IMAGES,
    "image": fields.IMAGE_DETAILS,
    "volumes": fields.List(fields.VOLUME),
    "networks": fields.NETWORKS,
    "services": fields.SERVICES,
    "disk_usage": fields.DISK_USAGE,
    "past_events": fields.List(fields.EVENT),
}


class FakeEngine:
    """Gives recorded answers."""

    def __init__(self, api: str = "1.45", **answers: t.Any) -> None:
        self.info = {"SystemTime": "2024-03-01T12:00:00.000000000Z"}
        self.answers = answers
        self.asked: list[str] = []
        self.events_kept = 256
        self._api = tuple(int(part) for part in api.split("."))

    def speaks(self, version: str) -> bool:
        return self._api >= tuple(int(part) for part in version.split("."))

    def containers_as(self, make: t.Callable[[dict[str, t.Any]], t.Any], size: bool = False) -> list[t.Any]:
        return [make(raw) for raw in self.containers(size=size)]

    def images_as(self, make: t.Callable[[dict[str, t.Any]], t.Any]) -> list[t.Any]:
        return [make(raw) for raw in self.images()]

    def __getattr__(self, name: str) -> t.Any:
        def answer(*arguments: t.Any, **_named: t.Any) -> t.Any:
            self.asked.append(name)
            value = self.answers.get(name, {} if name == "disk_usage" else [])
            if callable(value):
                value = value(*arguments)
            # As the door to the engine gives it: the fields that are declared, and no others.
            return fields.check(value, SHAPES[name])

        return answer


def take(engine: FakeEngine, storage: Storage | None = None, **wanted: t.Any) -> snapshot.Snapshot:
    return snapshot.take(t.cast(t.Any, engine), Wanted(**wanted), storage)


# -- the clock -------------------------------------------------------------------------------------


def test_ages_are_counted_by_the_engines_clock() -> None:
    # Trap 32.
    assert take(FakeEngine()).now == NOON
    assert snapshot.engine_clock({"SystemTime": "2024-03-01T14:00:00.5+02:00"}) == NOON + 0.5


@pytest.mark.parametrize("info", [{}, {"SystemTime": ""}, {"SystemTime": "0001-01-01T00:00:00Z"}])
def test_an_engine_that_does_not_tell_its_time_is_taken_to_have_ours(info: dict[str, str]) -> None:
    now = snapshot.engine_clock(info)
    assert now > NOON


def test_events_are_asked_for_behind_the_images_that_they_tell_of_and_containers_behind_all() -> None:
    """An image whose pull the events do not tell counts as old as it was made."""
    engine = FakeEngine()
    take(engine, images=True, volumes=True, networks=True, ages=True)
    asked = [name for name in engine.asked if name in ("images", "networks", "disk_usage", "past_events")]
    assert asked[-1] == "past_events" and asked.count("past_events") == 1
    assert engine.asked.index("containers") > engine.asked.index("images")


# -- containers ------------------------------------------------------------------------------------


def test_a_container_of_todays_list() -> None:
    found = snapshot.container_from(NEW_CONTAINER)
    assert (found.id, found.name, found.image_id, found.image_name) == (CONTAINER, "web", IMAGE, "app:1")
    assert (found.state, found.bytes, found.volumes) == ("exited", 1234, ("data",))
    assert found.labels == {"com.docker.compose.project": "shop"}
    assert {"front", "f" * 64} <= set(found.networks)
    assert found.created == NOON - 3600
    assert found.finished is None


def test_labels_that_nobody_looks_at_are_left_out() -> None:
    labels = {"com.docker.compose.project": "shop", "org.opencontainers.image.revision": "1", "team": "b", "stay": "", "io.kubernetes.pod": "x"}
    engine = FakeEngine(containers=[{**NEW_CONTAINER, "Labels": labels}], images=[{**OLD_IMAGE, "Labels": labels}])
    kept = {"com.docker.compose.project": "shop", "stay": "", "io.kubernetes.pod": "x"}
    for patterns, team in ((("sta?", "team=a"), {}), (("stay", "t*m=b"), {"team": "b"})):
        found = take(engine, images=True, labels=managers.looked_at(patterns))
        assert [found.containers[0].labels, found.images[0].labels] == [{**kept, **team}] * 2
    assert take(engine, images=True).images[0].labels == labels
    assert take(engine, images=True, labels=managers.looked_at(())).images[0].labels.keys() == kept.keys() - {"stay"}


@pytest.mark.parametrize("seed", range(150))
def test_a_plan_is_the_same_without_the_labels_that_nobody_looks_at(seed: int) -> None:
    dice = SeededDice(seed)
    keys = ("other", "fleetclean.keep", "com.docker.compose.project", "com.docker.compose.oneoff", "com.docker.swarm.task", "io.kubernetes.pod", "team")
    wishes = random_wishes(dice)._replace(keep_labels=dice.choice((("fleetclean.keep",), ("team=a",), (), ("*.keep", "oth*=?"))))

    def labelled(each: t.Any) -> t.Any:
        return each._replace(labels={**each.labels, **{key: dice.choice(("a", "b", "")) for key in keys if dice.chance(0.3)}})

    def without(each: t.Any) -> t.Any:
        return each._replace(labels={key: value for key, value in each.labels.items() if looked_at(key, value)})

    looked_at = managers.looked_at(wishes.keep_labels)
    here = random_world(dice)
    whole = here._replace(containers=tuple(map(labelled, here.containers)), images=tuple(map(labelled, here.images)))
    less = whole._replace(containers=tuple(map(without, whole.containers)), images=tuple(map(without, whole.images)))
    assert policy.decide(less, wishes) == policy.decide(whole, wishes)


def test_a_container_of_a_list_of_api_1_21() -> None:
    found = snapshot.container_from(OLD_CONTAINER, DETAILS)
    assert found.state == "exited"
    assert found.labels == {}
    assert found.volumes == ("old-data",)
    assert {"bridge", "b" * 64} <= set(found.networks)
    assert found.finished == pytest.approx(NOON, abs=1e-6)
    assert found.bytes is None


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("Up 3 hours", "running"),
        ("Up About a minute (Paused)", "paused"),
        ("Up 2 days (healthy)", "running"),
        ("Restarting (1) 5 seconds ago", "restarting"),
        ("Exited (137) 2 weeks ago", "exited"),
        ("Dead", "dead"),
        ("Removal In Progress", "removing"),
        ("Created", "created"),
        ("", "created"),
    ],
)
def test_before_api_1_23_the_state_is_read_from_the_words_for_people(status: str, state: str) -> None:
    assert snapshot.container_from({"Id": CONTAINER, "Status": status}).state == state


def test_a_container_is_as_old_as_its_stop() -> None:
    found = snapshot.container_from(NEW_CONTAINER, DETAILS)
    assert found.since == found.finished == pytest.approx(NOON, abs=1e-6)
    assert found.last_use == found.finished
    assert found.created == pytest.approx(NOON - 3600 + 0.123456789)


def test_a_container_that_never_ran_has_zero_times_and_is_as_old_as_its_creation() -> None:
    zero = "0001-01-01T00:00:00Z"
    details = {"Created": "2024-03-01T11:00:00Z", "State": {"Status": "created", "StartedAt": zero, "FinishedAt": zero}}
    found = snapshot.container_from({**NEW_CONTAINER, "State": "created"}, details)
    assert (found.started, found.finished) == (None, None)
    assert found.since == found.last_use == NOON - 3600


def test_a_container_that_ran_and_was_not_looked_at_has_no_known_stop() -> None:
    assert snapshot.container_from(NEW_CONTAINER).since is None


def test_a_container_started_again_is_last_used_at_its_start() -> None:
    details = {
        "Created": "2024-01-01T00:00:00Z",
        "State": {"Status": "running", "StartedAt": "2024-03-01T12:00:00Z", "FinishedAt": "2024-02-01T00:00:00Z"},
    }
    found = snapshot.container_from({**NEW_CONTAINER, "State": "running"}, details)
    assert found.live
    assert found.last_use == NOON


def test_a_container_that_is_linked_to_is_called_by_its_own_name() -> None:
    found = snapshot.container_from({**NEW_CONTAINER, "Names": ["/front/db", "/db"]})
    assert found.name == "db"
    assert found.names == ("front/db", "db")


@pytest.mark.parametrize("names", [None, [], [""]])
def test_a_container_without_a_name_is_called_by_its_id(names: object) -> None:
    assert snapshot.container_from({"Id": CONTAINER, "Names": names}).name == CONTAINER[:12]


@pytest.mark.parametrize(
    ("sizes", "size"),
    [
        ({"SizeRw": 5}, 5),
        ({"SizeRw": 0}, 0),
        ({"SizeRootFs": 9}, 0),
        ({}, None),
        ({"SizeRw": -1}, None),
        ({"SizeRw": None}, None),
    ],
)
def test_a_writable_layers_size_that_was_not_given_is_not_zero(sizes: dict[str, t.Any], size: int | None) -> None:
    assert snapshot.container_from({"Id": CONTAINER, **sizes}).bytes == size


def test_containers_are_looked_at_one_by_one_only_where_that_tells_more() -> None:
    plain = FakeEngine(containers=[NEW_CONTAINER])
    take(plain)
    assert "container" not in plain.asked
    ages = FakeEngine(containers=[NEW_CONTAINER], container=DETAILS)
    assert take(ages, ages=True).containers[0].finished is not None
    old = FakeEngine("1.21", containers=[OLD_CONTAINER], container=DETAILS)
    assert take(old).containers[0].volumes == ("old-data",)


def test_a_container_that_vanishes_meanwhile_holds_nothing_any_more() -> None:
    def fake_gone(_ident: str) -> None:
        raise EngineError("GET /containers/x/json", 404, "No such container")

    def fake_broken(_ident: str) -> None:
        raise EngineError("GET /containers/x/json", 500, "broken")

    assert take(FakeEngine(containers=[NEW_CONTAINER], container=fake_gone), ages=True).containers == ()
    (kept,) = take(FakeEngine(containers=[NEW_CONTAINER], container=fake_broken), ages=True).containers
    assert kept.volumes == ("data",)


# -- images ----------------------------------------------------------------------------------------


def test_an_image_of_a_list_of_api_1_21() -> None:
    found = snapshot.image_from({**OLD_IMAGE, "ParentId": "sha256:aa"}, {}, None)
    assert (found.id, found.parent, found.tags, found.digests) == (IMAGE, "sha256:aa", ("app:1",), ())
    assert (found.created, found.bytes, found.labels, found.layers) == (NOON - 3600, 5, {}, ())


@pytest.mark.parametrize(
    "raw",
    [
        {"RepoTags": ["<none>:<none>"], "RepoDigests": ["<none>@<none>"]},
        {"RepoTags": None, "RepoDigests": None},
        {"RepoTags": []},
        {"RepoTags": [], "RepoDigests": ["moby-dangling@sha256:aa"]},
        {},
    ],
    ids=["1.21", "1.43", "empty", "containerd", "missing"],
)
def test_an_image_without_a_tag_has_none_whatever_the_engine_says_instead(raw: dict[str, t.Any]) -> None:
    assert snapshot.references(raw) == ((), ())


def test_an_image_pulled_by_its_digest_has_a_digest_and_no_tag() -> None:
    raw = {"RepoTags": ["app:<none>"], "RepoDigests": ["app@sha256:aa"]}
    assert snapshot.references(raw) == ((), ("app@sha256:aa",))


def test_parents_come_from_the_inspection_where_the_list_has_none_and_may_be_missing_in_both() -> None:
    # Trap 4: API 1.52 leaves them out.
    without = {key: value for key, value in OLD_IMAGE.items() if key != "ParentId"}
    assert snapshot.image_from(without, {"Parent": "sha256:aa"}, None).parent == "sha256:aa"
    assert snapshot.image_from(without, {}, None).parent == ""


@pytest.mark.parametrize(
    ("time", "moment"),
    [("0001-01-01T00:00:00Z", None), ("2024-03-01T13:00:00.000000000+01:00", NOON), (None, None)],
)
def test_the_last_tagging_is_known_only_where_the_engine_wrote_it_down(time: str | None, moment: float | None) -> None:
    assert snapshot.image_from(OLD_IMAGE, {"Metadata": {"LastTagTime": time}}, None).tagged == moment


@pytest.mark.parametrize(
    ("raw", "size"), [(-1, None), (0, 0), (7, 7), (None, None), (-4096, None), (True, None), ("5", None)]
)
def test_sizes_below_nothing_are_unknown(raw: object, size: int | None) -> None:
    # Trap 9.
    assert snapshot.image_from({**OLD_IMAGE, "Size": raw}, {}, None).bytes == size


def test_layers_are_named_by_their_chain() -> None:
    one, two = "sha256:" + "11" * 32, "sha256:" + "22" * 32
    chain = snapshot.chain_ids([one, two])
    assert chain == (one, "sha256:" + hashlib.sha256(f"{one} {two}".encode()).hexdigest())
    assert snapshot.chain_ids([]) == ()
    assert snapshot.image_from(OLD_IMAGE, {"RootFS": {"Type": "layers", "Layers": None}}, None).layers == ()


@pytest.mark.parametrize("ages", [True, False])
@pytest.mark.parametrize("status", ["dead", "removing"])
def test_what_a_failed_removal_left_is_dead_whatever_list_and_record_say(tmp_path: Path, ages: bool, status: str) -> None:
    """The list goes on calling it "removing" (moby 22260, 27381); while somebody is removing it, the inspection does so, too."""
    listed = [{"Id": "a" * 64, "Names": ["/stuck"], "State": "removing"}]
    state = {"Status": status, "FinishedAt": "2024-02-01T00:00:00Z"}
    folder = tmp_path / "containers" / ("a" * 64)
    folder.mkdir(parents=True)
    record = {"State": {"Running": False, "Paused": False, "Restarting": False, "Dead": True, "FinishedAt": "2024-02-01T00:00:00Z"}, "StoppedByHand": False}
    (folder / "config.v2.json").write_text(json.dumps(record))
    engine = FakeEngine(containers=listed, container={"State": state})
    (found,) = take(engine, Storage(str(tmp_path), "overlay2", "graphdriver", {}), container_ages=ages).containers
    assert (found.state, "container" in engine.asked) == (status, True)


def test_an_images_arrival_and_layer_sizes_are_read_from_the_proven_storage(tmp_path: Path) -> None:
    hexadecimal = IMAGE.split(":")[1]
    content = tmp_path / "image/overlay2/imagedb/content/sha256"
    content.mkdir(parents=True)
    (content / hexadecimal).write_text("{}")
    os.utime(content / hexadecimal, (NOON - 60, NOON - 60))
    layer = tmp_path / "image/overlay2/layerdb/sha256" / ("11" * 32)
    layer.mkdir(parents=True)
    (layer / "size").write_text("4711")
    storage = Storage(str(tmp_path), "overlay2", "graphdriver", {})
    looked = take(FakeEngine(images=[OLD_IMAGE], image={}), storage, images=True, sizes=True)
    assert looked.images[0].arrived == NOON - 60
    assert looked.layer_bytes == {"sha256:" + "11" * 32: 4711}
    elsewhere = take(FakeEngine(images=[OLD_IMAGE], image={}), None, images=True, sizes=True)
    assert elsewhere.images[0].arrived is None
    assert elsewhere.layer_bytes == {}


def test_an_image_that_cannot_be_looked_at_has_no_age() -> None:
    def fake_broken(_ident: str) -> None:
        raise EngineError("GET /images/x/json", 500, "broken")

    (found,) = take(FakeEngine(images=[OLD_IMAGE], image=fake_broken), images=True, ages=True).images
    assert (found.tags, found.created) == (("app:1",), None), "its build date alone would make it look old"


# -- volumes, networks, build cache -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "anonymous"),
    [
        ({"Name": "a" * 64}, True),
        ({"Name": "a" * 64, "Labels": {"com.docker.volume.anonymous": ""}}, True),
        ({"Name": "short", "Labels": {"com.docker.volume.anonymous": ""}}, True),
        ({"Name": "data", "Labels": None}, False),
        ({"Name": "A" * 64}, False),
        ({"Name": "a" * 63}, False),
    ],
)
def test_an_anonymous_volume_is_known_by_its_label_or_its_random_name(raw: dict[str, t.Any], anonymous: bool) -> None:
    (found,) = take(FakeEngine(volumes=[raw]), volumes=True).volumes
    assert found.anonymous is anonymous


def test_a_volume_without_a_time_has_no_age_and_one_that_was_not_measured_no_size() -> None:
    # CreatedAt came with API 1.30.
    usage = {
        "Volumes": [
            {"Name": "a", "UsageData": {"Size": 7, "RefCount": 0}},
            {"Name": "b", "UsageData": {"Size": -1}},
            {"Name": "c", "UsageData": None},
        ]
    }
    volumes = [
        {"Name": "a", "CreatedAt": "2024-03-01T12:00:00Z"},
        {"Name": "b"},
        {"Name": "c"},
        {"Name": "d", "ClusterVolume": {"ID": "x"}},
    ]
    looked = take(FakeEngine(volumes=volumes, disk_usage=usage), volumes=True, sizes=True)
    assert [(v.name, v.created, v.bytes, v.cluster) for v in looked.volumes] == [
        ("a", NOON, 7, False),
        ("b", None, None, False),
        ("c", None, None, False),
        ("d", None, None, True),
    ]


def test_sizes_of_volumes_are_not_asked_for_where_they_decide_nothing() -> None:
    engine = FakeEngine(volumes=[{"Name": "a"}])
    take(engine, volumes=True)
    assert "disk_usage" not in engine.asked


@pytest.mark.parametrize(
    ("raw", "predefined", "swarm"),
    [
        ({"Name": "bridge", "Driver": "bridge", "Scope": "local"}, True, False),
        ({"Name": "host", "Driver": "host"}, True, False),
        ({"Name": "none", "Driver": "null"}, True, False),
        ({"Name": "docker_gwbridge", "Driver": "bridge", "Scope": "local"}, True, False),
        ({"Name": "entry", "Driver": "overlay", "Scope": "swarm", "Ingress": True}, True, True),
        ({"Name": "shop_default", "Driver": "bridge", "Scope": "local"}, False, False),
        ({"Name": "stack", "Driver": "overlay", "Scope": "swarm"}, False, True),
    ],
    ids=lambda value: value["Name"] if isinstance(value, dict) else "",
)
def test_networks_of_the_engine_and_of_swarm_are_told_apart_from_users(
    raw: dict[str, t.Any], predefined: bool, swarm: bool
) -> None:
    (found,) = take(FakeEngine(networks=[{"Id": "x", **raw}]), networks=True).networks
    assert (found.predefined, found.swarm) == (predefined, swarm)
    # Networks have a time of creation since API 1.26.
    assert found.created is None


def test_a_record_of_the_build_cache_has_parents_in_two_ways_and_never_its_description() -> None:
    old = {
        "ID": "a",
        "Parent": "p",
        "Type": "regular",
        "Description": "RUN curl -u user:secret",
        "InUse": False,
        "Shared": True,
        "Size": 5,
        "CreatedAt": "2024-03-01T11:00:00Z",
        "LastUsedAt": None,
    }
    new = {
        "ID": "b",
        "Parents": ["p", "q"],
        "Type": "regular",
        "InUse": True,
        "Size": -1,
        "LastUsedAt": "2024-03-01T12:00:00.5Z",
    }
    first, second = take(FakeEngine(disk_usage={"BuildCache": [old, new]}), build_cache=True).build_cache
    assert first.parents == ("p",)
    assert (first.shared, first.bytes, first.last_used, first.created) == (True, 5, None, NOON - 3600)
    assert second.parents == ("p", "q")
    assert (second.in_use, second.bytes, second.last_used) == (True, None, NOON + 0.5)
    assert "secret" not in repr(first)


# -- the engine's own figures --------------------------------------------------------------------------

EVERYTHING: dict[str, t.Any] = {"images": True, "volumes": True, "build_cache": True, "sizes": True}
FULL = EngineError("GET /system/df", 500, "write /var/lib/docker/buildkit/metadata_v2.db: no space left on device")
RECORD = {"ID": "r", "Type": "regular", "InUse": False, "Shared": False, "Size": 5}


def usage_asked_for(api: str, storage: Storage | None, **wanted: t.Any) -> list[tuple[str, ...]]:
    """The kinds of each call of /system/df."""
    calls: list[tuple[str, ...]] = []

    def fake_usage(*kinds: str) -> dict[str, t.Any]:
        calls.append(kinds)
        return {}

    take(FakeEngine(api, disk_usage=fake_usage), storage, **wanted)
    return calls


def test_all_sizes_come_out_of_one_call() -> None:
    # Trap 26: before API 1.42 each call computes everything.
    assert [sorted(kinds) for kinds in usage_asked_for("1.45", None, **EVERYTHING)] == [
        ["build-cache", "container", "image", "volume"]
    ]
    assert len(usage_asked_for("1.41", None, **EVERYTHING)) == 1


def test_what_the_disk_knows_better_is_not_asked_for(tmp_path: Path) -> None:
    here = Storage(str(tmp_path), "overlay2", "graphdriver", {})
    assert usage_asked_for("1.45", here, **EVERYTHING, volume_sizes=False) == [("build-cache", "container")]
    containerd = Storage(str(tmp_path), "overlayfs", "containerd", {})
    assert usage_asked_for("1.45", containerd, **EVERYTHING, volume_sizes=False) == [("build-cache", "container", "image")]


def test_what_images_share_is_not_asked_for_where_it_is_measured(tmp_path: Path) -> None:
    # Trap 62: on containerd's store it takes the engine as long as its list of images.
    containerd = Storage(str(tmp_path), "overlayfs", "containerd", {})
    everything = {**EVERYTHING, "volume_sizes": False, "image_sizes": False}
    assert usage_asked_for("1.45", containerd, **everything) == [("build-cache", "container")]


def test_an_engine_without_a_build_cache_to_list_is_not_asked_to_walk_its_disk_for_it(tmp_path: Path) -> None:
    assert usage_asked_for("1.38", None, build_cache=True) == []
    assert usage_asked_for("1.39", None, build_cache=True) == [("build-cache",)]
    here = Storage(str(tmp_path), "overlay2", "graphdriver", {})
    assert usage_asked_for("1.38", here, **EVERYTHING, volume_sizes=False) == []


def test_an_engine_older_than_its_own_figures_is_not_asked_for_them() -> None:
    assert usage_asked_for("1.24", None, **EVERYTHING) == []


def test_where_the_figures_do_not_have_the_containers_the_list_is_asked_for_their_sizes() -> None:
    asked: list[bool] = []

    class Lists(FakeEngine):
        def containers(self, size: bool = False) -> list[dict[str, t.Any]]:
            asked.append(size)
            return [NEW_CONTAINER]

    take(Lists("1.24"), sizes=True)
    take(Lists("1.45", disk_usage={"Containers": [NEW_CONTAINER]}), sizes=True)
    take(Lists("1.45"))
    assert asked == [True, False, False]


def test_writable_layers_have_the_size_that_the_figures_give_them() -> None:
    plain = {key: value for key, value in NEW_CONTAINER.items() if not key.startswith("Size")}
    for sizes, expected in (({"SizeRw": 7, "SizeRootFs": 9}, 7), ({"SizeRootFs": 9}, 0), ({}, None)):
        engine = FakeEngine(containers=[plain], disk_usage={"Containers": [{"Id": CONTAINER, **sizes}]})
        assert take(engine, sizes=True).containers[0].bytes == expected


def test_what_images_share_and_take_together_is_the_engines_figure_and_never_less_than_nothing() -> None:
    # Trap 9.
    usage = {"LayersSize": 50, "Images": [{"Id": IMAGE, "SharedSize": 20}, {"Id": "b", "SharedSize": -1}, {"Id": "c", "SharedSize": None}]}
    looked = take(FakeEngine(disk_usage=usage), images=True, sizes=True)
    assert (looked.layers_bytes, looked.shared_bytes) == (50, {IMAGE: 20, "b": 0, "c": 0})
    negative = take(FakeEngine(disk_usage={"LayersSize": -1}), images=True, sizes=True)
    assert negative.layers_bytes is None
    unasked = take(FakeEngine(disk_usage=usage), build_cache=True)
    assert (unasked.layers_bytes, unasked.shared_bytes) == (None, {})


def test_on_a_full_disk_all_but_the_build_cache_is_still_known() -> None:
    def fake_usage(*kinds: str) -> dict[str, t.Any]:
        if "build-cache" in kinds:
            raise FULL
        return {"volume": {"Volumes": [{"Name": "data", "UsageData": {"Size": 7}}], "Images": None}}.get(kinds[0], {"LayersSize": 50})

    engine = FakeEngine(disk_usage=fake_usage, volumes=[{"Name": "data"}])
    looked = take(engine, **EVERYTHING)
    assert looked.unreadable == {"build_cache": FULL.answer}
    assert looked.volumes[0].bytes == 7
    assert looked.layers_bytes == 50


def test_on_a_full_disk_an_engine_that_computes_everything_at_once_is_asked_once() -> None:
    def fake_usage(*_kinds: str) -> None:
        raise FULL

    engine = FakeEngine("1.41", disk_usage=fake_usage)
    looked = take(engine, **EVERYTHING)
    assert engine.asked.count("disk_usage") == 1
    assert set(looked.unreadable) == {"build_cache", "volumes' sizes", "images' sizes"}
    assert set(looked.unreadable.values()) == {FULL.answer}


def test_a_container_whose_layer_is_gone_costs_sizes_and_nothing_else() -> None:
    """After a removal that failed half-way, containerd's store answers any question with sizes with an error."""
    error = EngineError("GET", 404, "rw layer snapshot not found for container c")

    def fake_usage(*kinds: str) -> dict[str, t.Any]:
        if "container" in kinds:
            raise error
        return {"volume": {"Volumes": [{"Name": "data", "UsageData": {"Size": 7}}]}}.get(kinds[0], {})

    class Broken(FakeEngine):
        def containers(self, size: bool = False) -> list[dict[str, t.Any]]:
            if size:
                raise error
            return [{"Id": "c", "State": "dead"}]

    looked = take(Broken(disk_usage=fake_usage, volumes=[{"Name": "data"}]), **EVERYTHING)
    assert looked.unreadable == {"containers' sizes": error.answer}
    assert [(found.id, found.bytes) for found in looked.containers] == [("c", None)]
    assert looked.volumes[0].bytes == 7


def test_another_trouble_with_the_engines_figures_is_told() -> None:
    def fake_usage(*_kinds: str) -> None:
        raise EngineError("GET /system/df", 500, "a disk usage operation is already running")

    with pytest.raises(EngineError, match="already running"):
        take(FakeEngine(disk_usage=fake_usage), **EVERYTHING)


def test_records_of_the_build_cache_are_left_alone_where_they_were_not_asked_for() -> None:
    usage = {"BuildCache": [RECORD]}
    assert [found.id for found in take(FakeEngine(disk_usage=usage), build_cache=True).build_cache] == ["r"]
    assert take(FakeEngine(disk_usage=usage), volumes=True).build_cache == ()


def test_only_what_is_wanted_is_asked_for() -> None:
    engine = FakeEngine()
    take(engine)
    assert engine.asked == ["containers"]


def test_a_snapshot_does_not_change() -> None:
    looked = take(FakeEngine(containers=[NEW_CONTAINER]))
    with pytest.raises(AttributeError):
        looked.containers[0].state = "running"  # type: ignore[misc]


# -- what else tells of use ------------------------------------------------------------------------

EVENTS = [
    {"Type": "container", "Action": "create", "from": "app:1", "Actor": {"ID": "c1", "Attributes": {"image": "app:1", "name": "web"}}, "time": 1709290000},
    {"Type": "container", "Action": "die", "from": "app:1", "Actor": {"ID": "c1", "Attributes": {"image": "app:1"}}, "time": 1709290900},
    {"Type": "container", "Action": "exec_start: sh -c 'id'", "Actor": {"ID": "c2", "Attributes": {"image": "busy"}}, "time": 1709290100},
    {"Type": "container", "Action": "destroy", "Actor": {"ID": "c1", "Attributes": {"image": "cleaned:1"}}, "time": 1709294000},
    {"Type": "image", "Action": "untag", "Actor": {"ID": "sha256:x", "Attributes": {"name": "sha256:x"}}, "time": 1709294000},
    {"Type": "image", "Action": "pull", "Actor": {"ID": "pulled:1", "Attributes": {"name": "pulled"}}, "time": 1709290300},
    {"Type": "image", "Action": "load", "Actor": {"ID": "sha256:loaded"}, "time": 1709290400},
    {"Type": "volume", "Action": "mount", "Actor": {"ID": "data", "Attributes": {"driver": "local"}}, "time": 1709290500},
    {"Type": "volume", "Action": "destroy", "Actor": {"ID": "other"}, "time": 1709290600},
    {"Type": "network", "Action": "connect", "Actor": {"ID": "n", "Attributes": {"container": "c1", "name": "net"}}, "time": 1709290600},
    {"Type": "network", "Action": "disconnect", "Actor": {"ID": "n"}, "time": 1709290700},
    {"Type": "network", "Action": "create", "Actor": {"ID": "made", "Attributes": {"name": "made"}}, "time": 1709290710},
    {"Type": "network", "Action": "destroy", "Actor": {"ID": "m"}, "time": 1709290720},
    {"status": "start", "id": "c9", "from": "old:1", "time": 1709290800},
    {"status": "pull", "id": "old-pull:1", "time": 1709290850},
    {"Type": "container", "Action": "start", "Actor": None},
]


def test_events_tell_what_was_used_and_what_came() -> None:
    """Trap 34. What a cleaner does (destroy, untag) is no sign of use."""
    found = take(FakeEngine(past_events=EVENTS), images=True, ages=True)
    assert found.seen == {"app:1": 1709290900.0, "busy": 1709290100.0, "old:1": 1709290800.0, "volume:data": 1709290500.0, "network:n": 1709290700.0}
    assert found.came == {"pulled:1": 1709290300.0, "sha256:loaded": 1709290400.0, "old-pull:1": 1709290850.0}


def test_an_engine_that_tells_no_events_is_believed_for_all_else() -> None:
    def fake_refusal() -> None:
        raise EngineError("GET /events", 400, "bad parameter")

    found = take(FakeEngine(past_events=fake_refusal, images=[OLD_IMAGE], image={}), images=True, ages=True)
    assert (found.seen, found.came, len(found.images)) == ({}, {}, 1)
    assert (found.events_since, found.events_lost) == (None, True)


@pytest.mark.parametrize(
    ("events", "since", "lost"),
    [
        ([], None, False),
        ([{"time": 1709290000, "timeNano": 1709290000_500000000}, {"time": 1709290001}], 1709290000.5, False),
        # Of the second of an event without nanoseconds, others may be missing.
        ([{"time": 1709290000}] * 230, 1709290001.0, False),
        ([{"time": 1709290000}] * 256, 1709290001.0, True),
        # While it answers, others come and push out the oldest.
        ([{"time": 1709290000}] * 250, 1709290001.0, True),
        ([{}, {"time": 1709290005}], 1709290006.0, False),
    ],
)
def test_since_when_no_event_is_missing_is_that_of_the_oldest(events: list[t.Any], since: float | None, lost: bool) -> None:
    found = snapshot.read_events([event for event in events if isinstance(event, dict)], 256)
    assert (found.since, found.lost) == (since, lost)


@pytest.mark.parametrize(
    ("events", "live_restore", "since"),
    [
        # The bridge was made when the engine was started, and all events since then are there.
        ([], False, NOON - 600),
        ([{"time": NOON - 60}], False, NOON - 600),
        # Containers went on while it was away: the bridge may be older than its memory.
        ([{"time": NOON - 60}], True, NOON - 59),
        ([], True, None),
        # Its memory is full: there were others.
        ([{"time": NOON - 60}] * 256, False, NOON - 59),
    ],
)
def test_an_engine_remembers_no_event_from_before_its_start(events: list[t.Any], live_restore: bool, since: float | None) -> None:
    networks = [{"Id": name, "Name": name, "Driver": "bridge", "Created": f"2024-03-01T{time}Z"} for name, time in (("bridge", "11:50:00"), ("old", "01:00:00"))]
    engine = FakeEngine(past_events=events, networks=networks)
    engine.info["LiveRestoreEnabled"] = t.cast(t.Any, live_restore)
    found = take(engine, networks=True, container_ages=True)
    assert (found.events_since, found.events_lost) == (since, True)


def test_events_are_asked_for_networks_too_and_not_where_no_age_is() -> None:
    for wanted, asks in (({"ages": True}, True), ({"container_ages": True}, True), ({}, False)):
        engine = FakeEngine()
        take(engine, networks=True, **wanted)
        assert ("past_events" in engine.asked) == asks, wanted


def test_swarms_services_name_images_and_volumes_now_and_before() -> None:
    def service(now: str, before: str) -> dict[str, t.Any]:
        def spec(name: str) -> dict[str, t.Any]:
            mounts = [{"Type": "volume", "Source": f"{name}-data"}, {"Type": "bind", "Source": "/srv"}, {"Type": "volume"}]
            return {"TaskTemplate": {"ContainerSpec": {"Image": name, "Mounts": mounts}}}

        return {"ID": "s", "Spec": spec(now), "PreviousSpec": spec(before)}

    network = {"ID": "n", "Spec": {"TaskTemplate": {"NetworkAttachmentSpec": {"ContainerID": "c"}}}, "PreviousSpec": None}
    found = take(FakeEngine(services=[service("app", "old"), network]), images=True)
    assert found.service_images == {"app", "old"}
    assert found.service_volumes == {"app-data", "old-data"}


@pytest.mark.parametrize(
    ("driver", "options", "said"),
    [
        ("local", None, "local"),
        ("local", {}, "local"),
        ("local", {"size": "10G"}, "local"),
        ("local", {"type": "nfs", "o": "addr=10.0.0.1,password=secret", "device": ":/srv"}, "local/nfs"),
        ("local", {"type": "none", "o": "bind", "device": "/srv"}, "local/bind"),
        ("local", {"o": "bind", "device": "/srv"}, "local/bind"),
        ("local", {"type": "tmpfs", "device": "tmpfs"}, "local/tmpfs"),
        ("rexray/ebs:0.11", {"size": "1"}, "rexray/ebs:0.11"),
    ],
)
def test_a_volume_whose_data_is_elsewhere_is_told_by_its_options_and_nothing_of_them_is_kept(
    driver: str, options: dict[str, str] | None, said: str
) -> None:
    (found,) = take(FakeEngine(volumes=[{"Name": "v", "Driver": driver, "Options": options}]), volumes=True).volumes
    assert found.driver == said
    assert "secret" not in repr(found)


def test_digests_among_the_tags_are_digests() -> None:
    raw = {"RepoTags": ["team/app:1", f"team/app@sha256:{'a' * 64}", "<none>:<none>"], "RepoDigests": [f"mirror/app@sha256:{'a' * 64}", f"team/app@sha256:{'a' * 64}"]}
    assert snapshot.references(raw) == (("team/app:1",), (f"mirror/app@sha256:{'a' * 64}", f"team/app@sha256:{'a' * 64}"))
    assert snapshot.references({"RepoTags": None, "RepoDigests": ["moby-dangling@sha256:1"]}) == ((), ())


def test_a_mounted_image_is_no_volume() -> None:
    mounts = [{"Type": "image", "Name": "data:1", "Destination": "/x"}, {"Type": "volume", "Name": "v"}, {"Type": "bind", "Source": "/srv"}, {"Name": "old"}]
    found = snapshot.container_from({"Id": "c", "Names": ["/c"], "Mounts": mounts})
    assert (found.volumes, found.mounted_images) == (("v", "old"), ("data:1",))


def put_record(root: Path, ident: str, policy: str, by_hand: bool = False, **state: t.Any) -> None:
    folder = root / "containers" / ident
    folder.mkdir(parents=True)
    moments = {"StartedAt": "2024-02-01T00:00:00.5Z", "FinishedAt": "2024-02-02T00:00:00.123456789Z"}
    config = {"Created": "2024-01-31T00:00:00Z", "State": {"Running": False, **moments, **state}, "HasBeenManuallyStopped": by_hand, "Config": {"Env": ["SECRET=x"]}}
    (folder / "config.v2.json").write_text(json.dumps(config))
    (folder / "hostconfig.json").write_text(json.dumps({"RestartPolicy": {"Name": policy, "MaximumRetryCount": 0}}))


@pytest.mark.parametrize(
    ("policy", "by_hand", "restarts"),
    [("always", True, "always"), ("always", False, "always"), ("unless-stopped", False, "unless-stopped"), ("unless-stopped", True, ""),
     ("on-failure", False, ""), ("", False, ""), ("no", False, "")],
)
def test_the_engine_starts_again_what_was_not_stopped_by_hand(tmp_path: Path, policy: str, by_hand: bool, restarts: str) -> None:
    ident = "c" * 64
    put_record(tmp_path, ident, policy, by_hand)
    engine = FakeEngine(containers=[{"Id": ident, "State": "exited"}])
    (found,) = take(engine, Storage(str(tmp_path), "overlay2", "graphdriver", {}), container_ages=True).containers
    assert found.restarts == restarts
    assert (found.created, found.started, found.finished) == (1706659200.0, 1706745600.5, 1706832000.1234567)
    assert "container" not in engine.asked, "its records tell, without a call"
    assert "SECRET" not in repr(found)


def test_a_record_that_the_engine_could_not_bring_up_to_date_is_not_believed(tmp_path: Path) -> None:
    """At 0 bytes free it cannot write down that a container ended: the stop in the record is that of the run before."""
    ident = "c" * 64
    put_record(tmp_path, ident, "no", Running=True)
    inspected = {"State": {"Status": "exited", "FinishedAt": "2024-03-01T00:00:00Z"}}
    engine = FakeEngine(containers=[{"Id": ident, "State": "exited"}], container=inspected)
    (found,) = take(engine, Storage(str(tmp_path), "overlay2", "graphdriver", {}), container_ages=True).containers
    assert found.finished == 1709251200.0


@pytest.mark.parametrize("state", snapshot.LIVE_STATES)
def test_one_that_runs_is_looked_at_for_what_it_stands_on_alone(state: str) -> None:
    details = {
        "Created": "2020-01-01T00:00:00Z", "State": {"Status": "exited", "StartedAt": "2020-01-01T00:00:00Z"}, "RestartCount": 1,
        "HostConfig": {"IpcMode": "container:d", "RestartPolicy": {"Name": "on-failure"}},
    }
    engine = FakeEngine(containers=[{"Id": "c", "State": state, "Created": 1706659200}], container=details)
    (found,) = take(engine, None, ages=True).containers
    assert (found.live, found.created, found.started, found.restarts) == (True, 1706659200.0, None, "")
    assert found.stands_on == (("d", "IPC namespace"),)
    assert "container" not in FakeEngine(containers=[{"Id": "c", "State": state}]).asked, "who does not ask for ages asks for none of it"


@pytest.mark.parametrize(
    ("code", "most", "made", "restarts"),
    [(137, 0, 0, "on-failure"), (1, 3, 2, "on-failure"), (1, 3, 3, ""), (0, 0, 0, ""), (None, 0, None, "")],
)
def test_on_failure_starts_again_with_the_engine_as_the_engine_decides_it(code: int | None, most: int, made: int | None, restarts: str) -> None:
    details = {
        "State": {"ExitCode": code}, "RestartCount": made, "HostConfig": {"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": most}},
    }
    assert snapshot.container_from({"Id": "c"}, details).restarts == restarts


def test_who_stands_on_whom_is_told_by_list_and_inspection() -> None:
    summary = {
        "Id": "c", "HostConfig": {"NetworkMode": "container:vpn"},
        "NetworkSettings": {"Networks": {"own": {"Links": ["cache:redis"], "NetworkID": "n"}}},
        "Mounts": [{"Type": "bind", "Source": "/srv/x"}, {"Type": "volume", "Name": "v", "Source": "/v"}, {"Source": "/old"}, {"Name": "w", "Source": "/w"}],
    }
    details = {"HostConfig": {"PidMode": "container:p", "IpcMode": "private", "VolumesFrom": ["data:ro", "more"], "Links": ["/db:/web/database"]}}
    found = snapshot.container_from(summary, details)
    assert found.stands_on == (
        ("vpn", "network namespace"), ("cache", "link"), ("p", "PID namespace"), ("data", "volumes"), ("more", "volumes"), ("db", "link"),
    )
    assert (found.binds, found.volumes) == (("/srv/x", "/old"), ("v", "w"))


@pytest.mark.parametrize(
    ("options", "device"),
    [
        ({"type": "none", "o": "bind", "device": "/srv/x"}, "/srv/x"),
        ({"o": "ro,rbind", "type": "tmpfs", "device": "/srv/x"}, "/srv/x"),
        ({"type": "nfs", "o": "addr=x,password=secret", "device": ":/export"}, ""),
        ({"type": "ext4", "device": "/dev/sdb1"}, ""),
        ({"size": "1g"}, ""),
        (None, ""),
    ],
)
def test_a_volume_may_show_a_path_of_the_host(options: dict[str, str] | None, device: str) -> None:
    assert snapshot._bound({"Driver": "local", "Options": options}) == device


def test_without_its_record_at_hand_it_is_taken_for_one_that_starts_again() -> None:
    details = {"HostConfig": {"RestartPolicy": {"Name": "unless-stopped"}}}
    assert snapshot.container_from({"Id": "c"}, details).restarts == "unless-stopped"
    assert snapshot.container_from({"Id": "c"}, {"HostConfig": None}).restarts == ""


def test_services_that_cannot_be_listed_are_no_error_and_not_asked_for_where_nobody_wants_to_know() -> None:
    def fake_refusal() -> None:
        raise EngineError("GET /services", 503, "The swarm does not have a leader.")

    found = take(FakeEngine(services=fake_refusal), images=True)
    assert found.unreadable == {snapshot.SERVICES: "The swarm does not have a leader."}
    engine = FakeEngine(services=fake_refusal)
    assert take(engine, images=True, services=False).unreadable == {}
    assert "services" not in engine.asked
