# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docker_clean and images as they really are: several names, digests alone, families, two platforms, and those that are coming meanwhile."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "playbooks" / "collections"))

from ansible_collections.fleetclean.docker.plugins.module_utils import image_records
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Storage
from ansible_collections.fleetclean.docker.plugins.module_utils.units import parse_time

from tests.fleet import Fleet, Host, HostSpec
from tests.fleet.dirty import build_image, load_image, tar
from tests.integration.support import CONTAINERD, start, state
from tests.integration.test_clean import connect
from tests.integration.things import (
    base,
    both_stores,
    by_itself,
    clear,
    container,
    content_bytes,
    kept,
    load_two_platforms,
    pull,
    registry,
    removed,
    until,
)

UNUSED: Dict[str, Any] = {"images": {"scope": "unused"}, "state_dir": ""}


@pytest.fixture(scope="module")
def fleet(here: None) -> Iterator[Fleet]:
    specs = [
        HostSpec("one"),
        HostSpec("ctd", root="forky", daemon_json=CONTAINERD),
        HostSpec("ctd26", root="trixie", daemon_json=CONTAINERD),
    ]
    with start(specs) as hosts:
        yield hosts


@pytest.fixture()
def host(request: pytest.FixtureRequest, fleet: Fleet) -> Iterator[Host]:
    """A host, empty before and after."""
    found = fleet[getattr(request, "param", "one")]
    yield found
    clear(found)


containerd = pytest.mark.parametrize("host", ["ctd26", "ctd"], indirect=True)


def clean(host: Host, wishes: Dict[str, Any], check: bool = False) -> Dict[str, Any]:
    """Run it, and fail if it does; with ``check`` in check mode before: the same plan."""
    result = by_itself(host, check=check, **wishes)
    assert not result["failed"], result
    if check:
        promised = names(result)
        result = clean(host, wishes)
        assert names(result) == promised
    return result


def names(result: Dict[str, Any]) -> Any:
    return [(entry["kind"], entry["id"], entry["name"]) for entry in result["removed"]]


def tag(host: Host, image: str, *names: str) -> None:
    for name in names:
        repository, _colon, version = name.rpartition(":")
        host.must("POST", f"/images/{image}/tag?repo={repository}&tag={version}")


@both_stores
def test_an_image_of_several_names_goes_with_all_of_them_or_keeps_those_that_are_wanted(host: Host) -> None:
    going = load_image(host, "app/old:1", {"a": b"old"})
    tag(host, "app/old:1", "app/old:latest", "other/name:v2", "localhost:5000/app/old:1")
    staying = load_image(host, "app/mixed:1", {"a": b"mixed"})
    tag(host, "app/mixed:1", "wanted/mixed:stable", "app/mixed:2")
    result = clean(host, {**UNUSED, "images": {"scope": "unused", "keep": ["wanted/*"]}}, check=True)
    now = state(host)
    assert going not in now["images"] and staying in now["images"]
    assert now["tags"] == {"wanted/mixed:stable"}
    assert "its image stays as wanted/mixed:stable" in removed(result, "tag")["app/mixed:1"]
    assert [entry["id"] for entry in result["removed"] if entry["kind"] == "image"] == [going]
    assert kept(result, "image") == {"named in images.keep": 1}


@both_stores
def test_an_image_of_a_container_that_stays_keeps_every_name_and_one_of_a_container_that_goes_does_not(host: Host) -> None:
    stays = load_image(host, "app/job:1", {"a": b"job"})
    tag(host, "app/job:1", "app/job:latest", "mirror/job:1")
    goes = load_image(host, "app/batch:1", {"a": b"batch"})
    tag(host, "app/batch:1", "app/batch:latest")
    container(host, "wanted-job", "app/job:latest", ["/bin/true"], run="done")
    container(host, "done-batch", "app/batch:1", ["/bin/true"], run="done")
    container(host, "other-batch", goes, ["/bin/true"], run="done")
    result = clean(host, {**UNUSED, "containers": {"keep": ["wanted-*"]}}, check=True)
    now = state(host)
    assert set(now["containers"]) == {"wanted-job"}
    assert (now["images"], now["tags"]) == ({stays}, {"app/job:1", "app/job:latest", "mirror/job:1"})
    assert set(removed(result)) == {"done-batch", "other-batch", "app/batch:1", "app/batch:latest"}
    kinds = [entry["kind"] for entry in result["removed"]]
    assert kinds.index("image") > max(place for place, kind in enumerate(kinds) if kind == "container")


@both_stores
def test_images_of_stopped_containers_that_stay_go_by_scope_all_alone(host: Host) -> None:
    ran = load_image(host, "app/ran:1", {"a": b"ran"})
    runs = load_image(host, "app/runs:1", {"a": b"runs"})
    tag(host, "app/ran:1", "app/ran:latest")
    container(host, "ran", "app/ran:1", ["/bin/true"], run="done")
    container(host, "runs", "app/runs:1", run="on")
    assert removed(clean(host, UNUSED)) == {}
    result = clean(host, {**UNUSED, "images": {"scope": "all"}})
    assert state(host)["images"] == {runs}
    assert ran in {entry["id"] for entry in result["removed"]}
    assert set(state(host)["containers"]) == {"ran", "runs"}


@both_stores
def test_what_is_known_by_digests_alone_goes_under_each_of_them(host: Host) -> None:
    layer = tar({"a": os.urandom(1000)})
    with registry(host) as store:
        digest, _layers = store.push("team/app", "1", [layer])
        for repository in ("mirror/app", "third/app"):
            store.push(repository, "1", [layer])
        names = [f"{store.address}/{repository}@{digest}" for repository in ("team/app", "mirror/app", "third/app")]
        for name in names:
            pull(host, name)
        pull(host, f"{store.address}/team/app:1")
        image = host.must("GET", f"/images/{names[0]}/json")
        assert set(image["RepoDigests"]) == set(names)
        # Tagged once, it is no dangling one; untagged it is known by the three digests.
        assert removed(clean(host, {"images": {}, "state_dir": ""})) == {}
        stays = clean(host, {**UNUSED, "images": {"scope": "unused", "keep": [f"{store.address}/team/app:1"]}})
        assert kept(stays, "image") == {"named in images.keep": 1}
        host.must("DELETE", f"/images/{store.address}/team/app:1?noprune=1")
        assert state(host)["images"] == {image["Id"]}
        for scope in ("dangling", "unused"):
            assert removed(clean(host, {"images": {"scope": scope, "keep": [names[1]]}, "state_dir": ""})) == {}
        result = clean(host, {"images": {}, "state_dir": ""})
        if host.name == "ctd":  # there a digest is a name like any other
            assert kept(result, "image") == {"known by its digest, not dangling (images.scope is dangling)": 1}
            result = clean(host, UNUSED)
        assert [entry["kind"] for entry in result["removed"]] == ["image"]
    assert state(host)["images"] == set()


@both_stores
def test_what_was_pulled_by_digest_goes_by_the_age_of_images_and_not_of_dangling_ones(host: Host) -> None:
    """moby 30307, 31252. What is dangling the engine's own filter says; a graph driver cannot tell a pull by digest from a tag that moved."""
    with registry(host) as store:
        plain, both = (store.push(f"of/{name}", "1", [tar({"a": name.encode()})])[0] for name in ("plain", "both"))
        pull(host, f"{store.address}/of/plain@{plain}")
        host.must("POST", f"/images/create?fromImage={store.address}/of/both:1@{both}")
        by_digest = state(host)["images"]
        for content in (b"1", b"2"):
            store.push("of/moved", "1", [tar({"a": content})])
            pull(host, f"{store.address}/of/moved:1")
            load_image(host, "app/retagged:1", {"a": content})
        dangling = {entry["Id"] for entry in host.must("GET", '/images/json?filters={"dangling":["true"]}')}
        graph = host.name == "one"
        assert by_digest & dangling == (by_digest if graph else set())
        report = by_itself(host, "docker_disk_report", include=["images"], state_dir="", top=-1, measure="fast")
        assert {item["id"] for item in report["largest"]["images"] if item["dangling"]} == dangling
        assert report["reclaimable"]["dangling_images"]["count"] == len(dangling)
        time.sleep(1.1)
        result = clean(host, {**UNUSED, "images": {"scope": "unused", "older_than": "1d", "dangling_older_than": "1s"}})
        known = "known by its digest alone (pulled by it, or its tag moved on)"
        # With a graph driver what the moved tag left behind has a digest, too.
        expected = {f"{known}: younger than 1d": 3, "younger than 1d": 2} if graph else {"younger than 1d": 4}
        assert kept(result, "image") == expected
        assert {entry["reason"].partition(",")[0] for entry in result["removed"]} == {"dangling"}
        assert len(result["removed"]) == (1 if graph else 2)
        wishes = {"scope": "dangling"} if graph else {"scope": "unused", "keep": ["*/moved:*", "app/*"]}
        result = clean(host, {**UNUSED, "images": {**wishes, "older_than": "1s", "dangling_older_than": "1s"}})
        assert by_digest <= {entry["id"] for entry in result["removed"]}
        assert {entry["reason"].partition(", unused")[0] for entry in result["removed"]} == {known if graph else "known by its digest"}
        assert len(state(host)["images"]) == 2


def test_a_classic_builds_steps_stay_with_their_image_and_go_with_it_leaf_first(host: Host) -> None:
    base(host)
    steps = "".join(f"RUN /bin/echo {number} > /step{number}\n" for number in range(3))
    build_image(host, "app/built:1", f"FROM base/app:1\n{steps}LABEL of=app\n", {})
    build_image(host, "app/built:2", f"FROM base/app:1\n{steps}LABEL of=other\n", {})
    everything = state(host)["images"]
    assert len(everything) == 6, "the base, three steps that both have, two images"
    assert removed(clean(host, {"images": {}, "state_dir": ""})) == {}, "a parent of a tagged image is not dangling"
    result = clean(host, {**UNUSED, "images": {"scope": "unused", "keep": ["app/built:2"]}})
    assert set(removed(result)) == {"app/built:1"}
    assert kept(result, "image") == {"parent of an image that stays": 4, "named in images.keep": 1}
    result = clean(host, UNUSED, check=True)
    assert state(host)["images"] == set()
    order = [entry["name"] for entry in result["removed"]]
    assert (order[0], order[-1]) == ("app/built:2", "base/app:1")
    assert list(removed(result).values()).count("parent of images that go") == 3


def test_an_untagged_chain_is_dangling_as_a_whole(host: Host) -> None:
    base(host)
    built = build_image(host, "app/gone:1", "FROM base/app:1\nRUN /bin/echo 1 > /a\nRUN /bin/echo 2 > /b\n", {})
    host.must("DELETE", "/images/app/gone:1?noprune=1&force=1")
    if built not in state(host)["images"]:
        build_image(host, "app/gone:1", "FROM base/app:1\nRUN /bin/echo 1 > /a\nRUN /bin/echo 2 > /b\n", {})
        build_image(host, "app/gone:1", "FROM base/app:1\nRUN /bin/echo 3 > /a\n", {})
    result = clean(host, {"images": {}, "state_dir": ""})
    assert len(result["removed"]) >= 2, result["removed"]
    assert all(entry["name"].startswith("sha256:") for entry in result["removed"])
    assert "base/app:1" in state(host)["tags"]


@containerd
def test_an_image_of_two_platforms_frees_the_content_of_both(host: Host) -> None:
    before = content_bytes(host)
    busybox = host.path("/bin/busybox").read_bytes()
    image = load_two_platforms(host, "library/multi:1", busybox)
    assert content_bytes(host) - before > 4_000_000
    made = container(host, "of-one-platform", "multi:1")
    assert removed(clean(host, UNUSED)) == {}
    host.must("DELETE", f"/containers/{made}")
    free = host.free_bytes()
    result = clean(host, UNUSED)
    assert [(entry["kind"], entry["id"]) for entry in result["removed"]] == [("image", image)]
    until(lambda: content_bytes(host) <= before)
    assert host.free_bytes() - free > 4_000_000


@containerd
def test_containerds_records_say_of_each_image_what_its_inspection_does(host: Host) -> None:
    """Of images that were loaded, tagged again, lost their tag to another, were pulled by tag and by digest, built, or made for two platforms."""
    base(host)
    load_image(host, "app/loaded:1", {"a": b"loaded"})
    load_two_platforms(host, "library/multi:1", host.path("/bin/busybox").read_bytes(), megabytes=0)
    built = build_image(host, "app/built:1", "FROM base/app:1\nRUN /bin/echo 1 > /a\nLABEL of=app\n", {})
    replaced = load_image(host, "app/moved:1", {"a": b"before"})
    with registry(host) as store:
        digest, _layers = store.push("team/app", "1", [tar({"a": b"pulled"})])
        pull(host, f"{store.address}/team/app@{digest}")
        for content in (b"second", b"third"):
            store.push("team/app", "2", [tar({"a": content}), tar({"b": content})])
            pull(host, f"{store.address}/team/app:2")
    tag(host, "app/loaded:1", "app/moved:1", "app/loaded:2", "other/loaded:1")
    tag(host, "multi:1", "app/multi:1")
    version = host.must("GET", "/version")
    storage = Storage(str(host.path(host.data_root)), host.must("GET", "/info")["Driver"], "containerd", {})
    found = image_records.read(storage, (version["Os"], version["Arch"]), True)
    images = {entry["Id"] for entry in host.must("GET", "/images/json?all=1")}
    assert images >= {built, replaced, digest} and len(images) >= 8
    inspected = {ident: host.must("GET", f"/images/{ident}/json") for ident in images}
    said = {
        ident: (parse_time(image["Metadata"]["LastTagTime"]), image["Parent"], tuple(image["RootFS"]["Layers"]))
        for ident, image in inspected.items()
    }
    assert {ident: tuple(record) for ident, record in found.items()} == said
    assert len({moment for moment, _parent, _layers in said.values()}) == len(images)
    assert said[built][1] in images


@both_stores
def test_an_image_that_is_being_pulled_arrives_and_works(host: Host) -> None:
    """Its lower layer is that of an image that goes meanwhile; its upper one has not come yet."""
    busybox = host.path("/bin/busybox").read_bytes()
    lower = tar({"bin/sleep": busybox, "bin/true": busybox}, executable=["bin/sleep", "bin/true"])
    with registry(host) as store, ThreadPoolExecutor() as pool:
        store.push("app/before", "1", [lower])
        _digest, layers = store.push("app/coming", "1", [lower, tar({"new": os.urandom(100_000)}), tar({"late": os.urandom(100_000)})])
        pull(host, f"{store.address}/app/before:1")
        store.hold(layers[2])
        coming = pool.submit(pull, host, f"{store.address}/app/coming:1")
        assert store.asked.wait(30)
        result = clean(host, {**UNUSED, "build_cache": {"scope": "all"}, "containers": {}, "volumes": {}, "networks": {}})
        assert f"{store.address}/app/before:1" in removed(result, "image")
        assert not coming.done()
        store.open.set()
        coming.result()
        ident = container(host, "of-the-pulled", f"{store.address}/app/coming:1", ["/bin/true"], run="done")
        assert host.must("GET", f"/containers/{ident}/json")["State"]["ExitCode"] == 0


@both_stores
def test_an_image_that_is_being_built_is_built(host: Host) -> None:
    """The classic builder's steps have no name yet; the one that runs has a container, and the ones before are its parents."""
    base(host, "base/builder:1")
    load_image(host, "app/unwanted:1", {"a": b"unwanted"})
    dockerfile = "FROM base/builder:1\nRUN /bin/echo 1 > /a\nRUN /bin/echo 2 > /b\nRUN until [ -e /go ]; do sleep 0.1; done\n"
    with ThreadPoolExecutor() as pool:
        building = pool.submit(build_image, host, "app/coming:1", dockerfile, {})

        def waits() -> List[Any]:
            return [entry for entry in host.must("GET", "/containers/json") if "/go" in entry["Command"]]

        (step,) = until(waits)
        try:
            result = by_itself(host, **UNUSED, containers={}, build_cache={"scope": "all"})
            assert not building.done(), "it was not in the middle of it"
        finally:
            host.must("PUT", f"/containers/{step['Id']}/archive?path=/", tar({"go": b""}))
        image = building.result()
    assert not result["failed"], result
    assert set(removed(result, "image")) == {"app/unwanted:1"}
    assert image in state(host)["images"]


@both_stores
def test_the_engines_events_tell_of_a_use_that_nothing_else_does_until_it_is_restarted(host: Host) -> None:
    base(host)
    load_image(host, "app/once:1", {"a": b"once"})
    time.sleep(1.1)  # events have whole seconds
    used = container(host, "once", "app/once:1", ["/bin/true"], run="done")
    host.must("DELETE", f"/containers/{used}")
    result = by_itself(host, check=True, **UNUSED)
    assert "by the engine's events" in removed(result)["app/once:1"]
    assert "never used" in removed(result)["base/app:1"]
    host.restart_engine()
    result = by_itself(host, check=True, **UNUSED)
    # It was used, which nobody knows any more.
    assert "no later use is known" in removed(result)["app/once:1"]


@pytest.mark.parametrize("host", ["one", "ctd26", "ctd"], indirect=True)
def test_an_event_of_this_moment_is_seen_and_not_waited_for(host: Host) -> None:
    """However long ago the engine was asked for its clock."""
    engine = connect(host)
    time.sleep(0.5)
    for number in range(5):
        name = f"made-{number}"
        host.must("POST", "/volumes/create", {"Name": name})
        began = time.monotonic()
        events = engine.past_events()
        took = time.monotonic() - began
        assert any(event["Actor"]["ID"] == name for event in events if event["Type"] == "volume"), events[-3:]
        assert took < 0.5
