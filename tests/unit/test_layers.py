# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose layer a folder is, out of records laid out as the engine, BuildKit and containerd lay them out."""

from __future__ import annotations

import json
import os
import tempfile
import time
import typing as t
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from pathlib import Path

import boltfile
import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import image_records, layers
from ansible_collections.fleetclean.docker.plugins.module_utils.accounts import WRITABLE_LAYER
from ansible_collections.fleetclean.docker.plugins.module_utils.layers import ENGINE, Holdings
from ansible_collections.fleetclean.docker.plugins.module_utils.ledger import CACHE, CONTAINER, IMAGE
from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import Snapshot, chain_ids
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Storage
from dataroots import ContainerdRoot, GraphRoot
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mutations import bounded, mutated
from worlds import container, hexadecimal, image, record, sha, world

#: Names of layers are told apart by what they stand for; on the disk they are ids.
BASE, TOP, OTHER = (sha(f"layer {name}") for name in ("base", "top", "other"))


def holders(found: Holdings, path: str) -> set[str]:
    return set(found.accounts[found.paths[path]].holders)


def category(found: Holdings, path: str) -> str:
    return found.accounts[found.paths[path]].category


@pytest.fixture
def graph(tmp_path: Path) -> GraphRoot:
    return GraphRoot(tmp_path)


# -- the layer store ---------------------------------------------------------------------------------------


def test_who_holds_a_layer_holds_all_below_it(graph: GraphRoot) -> None:
    base, top, other = graph.layer(BASE), graph.layer(TOP, BASE), graph.layer(OTHER, BASE)
    one, two = image("one", "one:1", layers=(BASE, TOP)), image("two", "two:1", layers=(BASE, OTHER))
    found = graph.read(one, two)
    assert holders(found, base) == {IMAGE + one.id, IMAGE + two.id}
    assert holders(found, top) == {IMAGE + one.id}
    assert holders(found, other) == {IMAGE + two.id}
    assert [category(found, path) for path in (base, top, other)] == ["images"] * 3
    assert found.depth[base] < found.depth[top] == found.depth[other]
    assert found.accounts[found.paths[base]].final
    assert found.doubts == []


def test_a_layers_size_by_the_engine_is_the_layer_stores(graph: GraphRoot) -> None:
    path = graph.layer(BASE, size=4711)
    found = graph.read(image("one", layers=(BASE,)))
    assert found.logical[found.paths[path]] == 4711


def test_records_go_with_their_objects(graph: GraphRoot) -> None:
    graph.layer(BASE)
    who, run = image("one", "one:1", layers=(BASE,)), container("web", "one")
    graph.mount(run.id, BASE)
    found = graph.read(who, run)
    places = {
        f"{graph.records}/sha256/{BASE[7:]}": {IMAGE + who.id, CONTAINER + run.id},
        f"{graph.records}/mounts/{run.id}": {CONTAINER + run.id},
        f"{graph.root}/image/overlay2/imagedb/content/sha256/{who.id[7:]}": {IMAGE + who.id},
        f"{graph.root}/image/overlay2/imagedb/metadata/sha256/{who.id[7:]}": {IMAGE + who.id},
    }
    for path, expected in places.items():
        assert holders(found, path) == expected
        assert category(found, path) == "engine_metadata"


def test_a_containers_writable_layers_are_its_own_and_hold_the_image(graph: GraphRoot) -> None:
    base = graph.layer(BASE)
    run = container("web", "one")
    mine, init = graph.mount(run.id, BASE)
    # Its image was removed by force meanwhile.
    found = graph.read(run)
    assert holders(found, mine) == holders(found, init) == holders(found, base) == {CONTAINER + run.id}
    assert category(found, mine) == category(found, init) == category(found, base) == "containers"
    assert found.paths[mine] == found.paths[init]
    assert not found.accounts[found.paths[mine]].final
    assert found.depth[base] < found.depth[init] < found.depth[mine]


def test_a_container_without_any_image_layer_has_a_writable_one(graph: GraphRoot) -> None:
    run = container("scratch")
    mine, _init = graph.mount(run.id, init=False)
    found = graph.read(run)
    assert holders(found, mine) == {CONTAINER + run.id}
    assert found.doubts == []


def test_a_layer_of_no_image_is_a_leftover_and_says_so(graph: GraphRoot) -> None:
    base, top, other = graph.layer(BASE), graph.layer(TOP, BASE), graph.layer(OTHER, BASE)
    found = graph.read(image("one", layers=(BASE, TOP)))
    assert (holders(found, other), category(found, other)) == (set(), "leftovers")
    assert found.accounts[found.paths[other]].words == "layer of no image"
    assert category(found, f"{graph.records}/sha256/{OTHER[7:]}") == "leftovers"
    # What somebody holds has no word of it.
    assert {category(found, base), category(found, top)} == {"images"}
    assert {found.accounts[found.paths[path]].words for path in (base, top)} == {""}


def test_a_writable_layer_of_a_container_that_is_gone_is_a_leftover(graph: GraphRoot) -> None:
    base = graph.layer(BASE)
    here = container("here", "one")
    mine, _init = graph.mount(here.id, BASE)
    lost, lost_init = graph.mount(hexadecimal("lost"), BASE)
    found = graph.read(here, image("one", layers=(BASE,)))
    assert category(found, lost) == category(found, lost_init) == "leftovers"
    assert "container that is gone" in found.accounts[found.paths[lost]].words
    assert category(found, f"{graph.records}/mounts/{hexadecimal('lost')}") == "leftovers"
    assert category(found, mine) == "containers"
    # It holds nothing.
    assert holders(found, base) == {IMAGE + sha("one"), CONTAINER + here.id}


@pytest.mark.parametrize(("hours", "expected"), [(0, {"images"}), (2, {"leftovers"})])
def test_a_layer_that_the_engine_removes_at_this_moment_is_nobodys_leftover(
    graph: GraphRoot, monkeypatch: pytest.MonkeyPatch, hours: int, expected: set[str]
) -> None:
    # The image is gone first, then the layers from the top down (layer/layer_store.go). Two hours later the engine was killed over it.
    below, going = graph.layer(BASE), graph.layer(TOP, BASE)
    os.rename(graph.records / "sha256" / TOP[7:], graph.records / "sha256" / f"{TOP[7:]}-{OTHER[7:]}-removing")
    now = time.time() + hours * 3600
    monkeypatch.setattr(time, "time", lambda: now)
    found = graph.read()
    assert category(found, below) in expected
    assert {category(found, path) for path in (going,) if path in found.paths} == expected - {"leftovers"}


def test_a_record_of_a_layer_that_goes_may_name_anything(graph: GraphRoot) -> None:
    place = graph.records / "sha256" / f"{TOP[7:]}-{OTHER[7:]}-removing"
    place.mkdir()
    (place / "cache-id").write_text("../../../etc")
    (place / "parent").write_text("nothing")
    found = graph.read()
    assert (found.paths, found.doubts) == ({}, [])


def test_names_in_the_layer_store_that_are_no_ids_lead_nowhere(graph: GraphRoot) -> None:
    (graph.records / "sha256" / f"{BASE[7:]}-removing").mkdir()
    (graph.records / "sha256" / "x").mkdir()
    (graph.records / "mounts" / "odd\nname").mkdir()
    found = graph.read()
    assert not [path for path in found.paths if "removing" in path or path.endswith("/x")]
    assert found.doubts == []


@pytest.mark.parametrize("evil", ["../../../etc", "..", "/etc", "a/b", "a\nb", "UPPER", "x" * 65])
def test_a_record_that_names_another_place_leads_nowhere_and_is_a_doubt(graph: GraphRoot, evil: str) -> None:
    graph.layer(BASE)
    (graph.records / "sha256" / BASE[7:] / "cache-id").write_text(evil)
    found = graph.read(image("one", layers=(BASE,)))
    assert not [path for path in found.paths if "etc" in path or ".." in path or "\n" in path]
    assert found.doubts == [f"{graph.records}/sha256/{BASE[7:]}/cache-id is damaged"]


def test_parents_in_a_circle_are_no_hang(graph: GraphRoot) -> None:
    one, two = graph.layer(BASE, TOP), graph.layer(TOP, BASE)
    found = graph.read(image("one", layers=(BASE, TOP)))
    assert holders(found, one) == holders(found, two) == {IMAGE + sha("one")}


def test_a_stack_of_two_thousand_layers_is_no_matter(graph: GraphRoot) -> None:
    chain = chain_ids([sha(f"diff {number}") for number in range(2000)])
    paths = [graph.layer(layer, chain[number - 1] if number else "") for number, layer in enumerate(chain)]
    found = graph.read(image("deep", layers=chain))
    assert all(holders(found, path) == {IMAGE + sha("deep")} for path in paths)


# -- records that cannot be read ---------------------------------------------------------------------------


def damage_cache_id(graph: GraphRoot) -> Path:
    path = graph.records / "sha256" / BASE[7:] / "cache-id"
    path.write_text("")  # as after a power cut
    return path


def damage_parent(graph: GraphRoot) -> Path:
    path = graph.records / "sha256" / TOP[7:] / "parent"
    path.write_bytes(b"\0" * 71)
    return path


def damage_mount(graph: GraphRoot) -> Path:
    path = graph.records / "mounts" / hexadecimal("container web") / "mount-id"
    path.write_text("")
    return path


def damage_store(graph: GraphRoot) -> Path:
    path = graph.records / "sha256"
    os.rename(path, graph.records / "moved")
    path.write_text("a file")
    return path


def damage_snapshots(graph: GraphRoot) -> Path:
    path = graph.root / "buildkit/snapshots.db"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"torn" * 5000)
    return path


def damage_folder(graph: GraphRoot) -> Path:
    path = graph.root / "buildkit/metadata_v2.db"
    path.mkdir(parents=True)
    return path


def damage_image(graph: GraphRoot) -> Path:
    path = graph.root / "image/overlay2/imagedb/content/sha256" / sha("bare")[7:]
    path.parent.mkdir(parents=True)
    path.write_text('{"rootfs": {"type": "lay')
    return path


@pytest.mark.parametrize(
    "damage", [damage_cache_id, damage_parent, damage_mount, damage_store, damage_snapshots, damage_folder, damage_image]
)
def test_with_a_record_that_cannot_be_read_nothing_is_a_leftover(graph: GraphRoot, damage: t.Callable[[GraphRoot], Path]) -> None:
    graph.layer(BASE)
    graph.layer(TOP, BASE)
    other = graph.layer(OTHER, BASE)
    run = container("web", "one")
    graph.mount(run.id, TOP)
    graph.mount(hexadecimal("lost"), TOP)
    objects = [image("one", layers=(BASE, TOP)), image("bare"), run]
    assert category(graph.read(*objects), other) == "leftovers"
    path = damage(graph)
    found = graph.read(*objects)
    (doubt,) = found.doubts
    assert str(path) in doubt
    assert "leftovers" not in {account.category for account in found.accounts.values()}


def test_a_thousand_doubts_are_said_in_a_few(graph: GraphRoot) -> None:
    for number in range(1000):
        graph.layer(sha(f"layer {number}"))
        (graph.records / "sha256" / hexadecimal(f"layer {number}") / "cache-id").write_text("")
    assert 0 < len(graph.read().doubts) < 10


def test_an_image_without_layers_is_no_doubt(graph: GraphRoot) -> None:
    place = graph.root / "image/overlay2/imagedb/content/sha256" / sha("bare")[7:]
    place.parent.mkdir(parents=True)
    place.write_text('{"rootfs": {"type": "layers"}}')
    assert graph.read(image("bare"), image("gone meanwhile")).doubts == []


def test_a_layer_store_without_anything_is_no_doubt(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path), "overlay2", "graphdriver", {})
    found = layers.read(storage, world())
    assert (len(found.accounts), found.doubts) == (0, [])


# -- BuildKit ----------------------------------------------------------------------------------------------

ONE, TWO, THREE = "a1" * 12 + "x", "b2" * 12 + "x", "c3" * 12 + "x"


def test_a_record_of_the_build_cache_holds_its_layer_and_those_below(graph: GraphRoot) -> None:
    base = graph.layer(BASE)
    one, two = graph.folder(ONE), graph.folder(TWO)
    graph.buildkit(
        {ONE.encode(): {b"parent": BASE.encode()}, TWO.encode(): {b"parent": ONE.encode()}},
        {"r1": {"cache.snapshot": ONE}, "r2": {"cache.snapshot": TWO}},
    )
    found = graph.read(record("r1"), record("r2", None, "r1"), image("one", layers=(BASE,)))
    assert holders(found, two) == {CACHE + "r2"}
    assert holders(found, one) == {CACHE + "r1", CACHE + "r2"}
    assert holders(found, base) == {CACHE + "r1", CACHE + "r2", IMAGE + sha("one")}
    assert (category(found, two), category(found, base)) == ("build_cache", "images")
    assert found.depth[base] < found.depth[one] < found.depth[two]
    assert found.doubts == []


def test_a_base_image_that_buildkit_pulled_is_held_by_the_cache_alone(graph: GraphRoot) -> None:
    base, top = graph.layer(BASE), graph.layer(TOP, BASE)
    graph.buildkit({TOP.encode(): {b"chainid": TOP.encode()}}, {"r1": {"cache.snapshot": TOP}})
    found = graph.read(record("r1"))
    assert holders(found, base) == holders(found, top) == {CACHE + "r1"}
    assert category(found, base) == "build_cache"


def test_a_record_that_was_finished_has_its_folder_under_the_name_that_it_was_begun_with(graph: GraphRoot) -> None:
    base = graph.layer(BASE)
    one = graph.folder(ONE)
    # Commit writes a bucket of the new name; the old one keeps the parent (builder-next/adapters/snapshot).
    graph.buildkit(
        {ONE.encode(): {b"parent": BASE.encode()}, TWO.encode(): {b"committed": ONE.encode(), b"iscommitted": b"iscommitted"}},
        {"r1": {"cache.snapshot": TWO}},
    )
    found = graph.read(record("r1"))
    assert holders(found, one) == holders(found, base) == {CACHE + "r1"}
    assert found.accounts[found.paths[one]].category == "build_cache"


def test_a_record_that_became_an_images_layer_shares_its_folder_with_it(graph: GraphRoot) -> None:
    base = graph.layer(BASE)
    top = graph.layer(TOP, BASE, folder=ONE)
    graph.buildkit({ONE.encode(): {b"parent": BASE.encode(), b"chainid": TOP.encode()}}, {"r1": {"cache.snapshot": ONE}})
    found = graph.read(record("r1"), image("built", layers=(BASE, TOP)))
    assert holders(found, top) == holders(found, base) == {CACHE + "r1", IMAGE + sha("built")}
    assert category(found, top) == "images"
    assert found.accounts[found.paths[top]].final
    assert found.chains == {"r1": TOP}


def test_of_a_record_and_its_mutable_twin_the_listed_one_holds_the_layer(graph: GraphRoot) -> None:
    one, two = graph.folder(ONE), graph.folder(TWO)
    graph.buildkit(
        {ONE.encode(): {}, TWO.encode(): {}},
        # The immutable one is listed; its snapshot is still the mutable one's. And the other way round.
        {"r1": {"cache.equalMutable": ONE}, ONE: {"cache.snapshot": ONE}, "r2": {"cache.equalMutable": TWO}, TWO: {}},
    )
    found = graph.read(record("r1"), record(TWO))
    assert holders(found, one) == {CACHE + "r1"}
    assert holders(found, two) == {CACHE + TWO}


def test_what_buildkit_has_and_lists_nowhere_is_still_its_own(graph: GraphRoot) -> None:
    # A build that runs: its record comes with its end.
    base, one = graph.layer(BASE), graph.folder(ONE)
    graph.buildkit({ONE.encode(): {b"parent": BASE.encode()}}, {"other": {"cache.snapshot": TWO}})
    found = graph.read(record("other"))
    assert holders(found, one) == holders(found, base) == {ENGINE}
    assert category(found, one) == "build_cache"
    assert category(found, base) != "leftovers"


def test_an_older_buildkits_records_are_read_where_it_kept_them(graph: GraphRoot) -> None:
    one = graph.folder(ONE)
    graph.buildkit({ONE.encode(): {}}, {"r1": {"cache.snapshot": ONE}}, "metadata.db")
    assert holders(graph.read(record("r1")), one) == {CACHE + "r1"}


def test_values_that_are_no_json_are_passed_over(graph: GraphRoot) -> None:
    one = graph.folder(ONE)
    main = {b"r1": {b"cache.snapshot": b'{"value": "%s"}' % ONE.encode(), b"a": b"\xff", b"b": b"[" * 100_000, b"c": b"[]", b"d": b"7", b"e": b""}}
    boltfile.write(graph.root / "buildkit/snapshots.db", {ONE.encode(): {}})
    boltfile.write(graph.root / "buildkit/metadata_v2.db", {b"_main": main})
    found = graph.read(record("r1"))
    assert holders(found, one) == {CACHE + "r1"}
    assert found.doubts == []


def test_snapshots_on_top_of_each_other_in_a_circle_or_by_the_thousand_are_no_matter(graph: GraphRoot) -> None:
    names = [f"{number:025}" for number in range(3000)]
    stack = {name.encode(): {b"parent": names[number - 1].encode()} if number else {} for number, name in enumerate(names)}
    circle = {ONE.encode(): {b"parent": TWO.encode()}, TWO.encode(): {b"parent": ONE.encode()}}
    graph.buildkit({**stack, **circle}, {"r1": {"cache.snapshot": names[-1]}, "r2": {"cache.snapshot": ONE}})
    found = graph.read(record("r1"), record("r2"))
    (lowest,) = graph.storage.layer_paths(names[0])
    assert holders(found, lowest) >= {CACHE + "r1"}
    for name in (ONE, TWO):
        assert CACHE + "r2" in holders(found, graph.storage.layer_paths(name)[0])


@pytest.mark.parametrize("evil", ["../../../etc", "a/b", "..", "x" * 70, "\udcff"])
def test_a_snapshot_of_a_hostile_name_leads_nowhere(graph: GraphRoot, evil: str) -> None:
    name = evil.encode("utf-8", "surrogateescape")
    graph.buildkit({name: {b"parent": name}, ONE.encode(): {b"committed": name}}, {"r1": {"cache.snapshot": ONE}})
    found = graph.read(record("r1"))
    assert found.paths == {}


# -- Docker 1.9 --------------------------------------------------------------------------------------------


def test_before_layers_each_image_was_one_with_its_record(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path), "aufs", "graphdriver", {})
    base, top, lost = (hexadecimal(name) for name in ("base", "top", "lost"))
    for name in (base, top, lost):
        (tmp_path / "graph" / name).mkdir(parents=True)
        (tmp_path / "graph" / name / "layersize").write_text("4711")
    run = container("web", image_id=top)
    upper = image("t", id=top)._replace(parent=base)
    found = layers.read(storage, world(image("b", id=base), upper, run))
    diff = f"{tmp_path}/aufs/diff"
    assert holders(found, f"{diff}/{top}") == {IMAGE + top, CONTAINER + run.id}
    assert holders(found, f"{diff}/{base}") == {IMAGE + base, IMAGE + top, CONTAINER + run.id}
    assert holders(found, f"{diff}/{run.id}") == holders(found, f"{diff}/{run.id}-init") == {CONTAINER + run.id}
    assert holders(found, f"{tmp_path}/graph/{base}") == holders(found, f"{diff}/{base}")
    assert found.logical[found.paths[f"{diff}/{base}"]] == 4711
    assert found.depth[f"{diff}/{base}"] < found.depth[f"{diff}/{top}"] < found.depth[f"{diff}/{run.id}"]
    # What no image or container names is in nobody's account.
    assert f"{diff}/{lost}" not in found.paths
    assert f"{tmp_path}/graph/{lost}" not in found.paths


# -- containerd --------------------------------------------------------------------------------------------


INDEX, MANIFEST, CONFIG, BLOB, LOST = (sha(f"content {name}") for name in ("index", "manifest", "config", "blob", "lost"))


@pytest.fixture
def store(tmp_path: Path) -> ContainerdRoot:
    return ContainerdRoot(tmp_path)


def test_an_image_holds_its_content_and_its_snapshots_by_their_labels(store: ContainerdRoot) -> None:
    store.image("app:1", INDEX)
    paths = [
        store.blob(INDEX, ref_content_m_0=MANIFEST),
        store.blob(MANIFEST, ref_content_config=CONFIG, ref_content_l_0=BLOB),
        store.blob(CONFIG, ref_snapshot_overlayfs=TOP),
        store.blob(BLOB),
        store.snapshot(BASE),
        store.snapshot(TOP, BASE),
    ]
    lost = store.blob(LOST)
    found = store.read(image("app", "app:1", id=INDEX))
    for path in paths:
        assert holders(found, path) == {IMAGE + INDEX}
        assert category(found, path) == "images"
    assert (holders(found, lost), category(found, lost)) == (set(), "leftovers")
    assert found.depth[paths[4]] < found.depth[paths[5]]
    assert found.logical[found.paths[paths[4]]] == 300
    assert found.doubts == []


def test_snapshots_of_another_snapshotter_are_not_this_ones(store: ContainerdRoot) -> None:
    store.image("app:1", INDEX)
    store.blob(INDEX, ref_snapshot_native=TOP, ref_snapshot_overlayfsx=TOP)
    top = store.snapshot(TOP)
    assert holders(store.read(image("app", id=INDEX)), top) == set()


def test_an_image_that_the_engine_does_not_list_is_still_the_engines(store: ContainerdRoot) -> None:
    # While it is pulled, or between two of our questions.
    store.image("app:1", INDEX)
    path = store.blob(INDEX)
    found = store.read()
    assert (holders(found, path), category(found, path)) == ({ENGINE}, "images")


def test_a_containers_snapshot_is_its_writable_layer(store: ContainerdRoot) -> None:
    run = container("web", "app")
    base = store.snapshot(BASE)
    init = store.snapshot(f"{run.id}-init", BASE)
    mine = store.snapshot(run.id, f"{run.id}-init", kind=2)
    found = store.read(run)
    assert holders(found, mine) == holders(found, init) == holders(found, base) == {CONTAINER + run.id}
    assert found.paths[mine] == found.paths[init] == found.accounts.find(WRITABLE_LAYER, run.id)
    assert category(found, mine) == category(found, base) == "containers"
    assert not found.accounts[found.paths[mine]].final, "what is in it changes, though its init layer never does"
    assert found.accounts[found.paths[base]].final


def test_what_was_committed_from_a_container_keeps_its_init_layer_and_no_more(store: ContainerdRoot) -> None:
    run = container("web", "app")
    store.snapshot(BASE)
    init = store.snapshot(f"{run.id}-init", BASE)
    mine = store.snapshot(run.id, f"{run.id}-init", kind=2)
    committed = store.snapshot(TOP, f"{run.id}-init")
    store.image("saved:1", CONFIG)
    store.blob(CONFIG, ref_snapshot_overlayfs=TOP)
    found = store.read(run, image("saved", id=CONFIG))
    assert holders(found, mine) == {CONTAINER + run.id}
    assert holders(found, init) == {CONTAINER + run.id, IMAGE + CONFIG}
    assert holders(found, committed) == {IMAGE + CONFIG}
    assert found.paths[init] != found.paths[mine]
    # And once the container is gone, it is the image's.
    found = store.read(image("saved", id=CONFIG))
    assert (holders(found, init), category(found, init)) == ({IMAGE + CONFIG}, "images")


def test_a_snapshot_of_a_container_that_is_gone_is_a_leftover(store: ContainerdRoot) -> None:
    mine = store.snapshot(hexadecimal("lost"), kind=2)
    found = store.read(container("other"))
    assert category(found, mine) == "leftovers"
    assert found.accounts[found.paths[mine]].words == "snapshot that nothing refers to"


def test_a_lease_holds_for_whom_it_was_taken(store: ContainerdRoot) -> None:
    run = container("web")
    of_container, of_record = store.snapshot(BASE), store.snapshot(TOP)
    of_variant, of_engine = store.blob(BLOB), store.blob(CONFIG)
    store.lease(run.id, snapshots=[BASE])
    store.lease("r1", snapshots=[TOP])
    store.lease("r1-variants", content=[BLOB])
    store.lease("r1-view", snapshots=[TOP])
    store.lease("moby-image-pull", content=[CONFIG])
    found = store.read(run, record("r1"))
    assert holders(found, of_container) == {CONTAINER + run.id}
    assert holders(found, of_record) == holders(found, of_variant) == {CACHE + "r1"}
    assert (category(found, of_record), category(found, of_variant)) == ("build_cache", "build_cache")
    assert (holders(found, of_engine), category(found, of_engine)) == ({ENGINE}, "images")


def moment(delta: timedelta) -> str:
    return (datetime.now(timezone.utc) + delta).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_record_is_shared_by_whom_its_layer_has_or_the_one_that_it_stands_on(store: ContainerdRoot) -> None:
    store.snapshot(BASE)
    records = {
        "r1": {"cache.chainID": BASE, "cache.parent": "r0"}, "r2": {"cache.parent": "r1"}, "r3": {"cache.parent": "r4"},
        "r4": {"cache.parent": "r3"}, "r5": {}, "unlisted": {"cache.chainID": TOP},
    }
    main = {
        key.encode(): {name.encode(): json.dumps({"value": value}).encode() for name, value in fields.items()}
        for key, fields in records.items()
    }
    objects = [record(f"r{number}") for number in range(1, 7)]
    assert store.read(*objects).chains == {}
    path = Path(store.storage.root) / "buildkit/containerd-overlayfs/metadata_v2.db"
    path.parent.mkdir(parents=True)
    boltfile.write(path, {b"_main": main})
    assert store.read(*objects).chains == {"r1": BASE, "r2": BASE}
    path.write_bytes(b"torn")
    found = store.read(*objects)
    assert (found.chains, found.doubts) == ({}, []), "whose layers they are is known without it"


def test_a_lease_that_expired_holds_nothing(store: ContainerdRoot) -> None:
    over, still = store.blob(BLOB), store.blob(CONFIG)
    store.lease("old", content=[BLOB], expire=moment(-timedelta(hours=1)))
    store.lease("new", content=[CONFIG], expire=moment(timedelta(hours=1)))
    found = store.read()
    assert (category(found, over), category(found, still)) == ("leftovers", "images")


def test_a_flat_lease_holds_its_content_and_not_what_that_refers_to(store: ContainerdRoot) -> None:
    manifest, blob = store.blob(MANIFEST, ref_content_l_0=BLOB), store.blob(BLOB)
    base, top = store.snapshot(BASE), store.snapshot(TOP, BASE)
    store.lease("flat", content=[MANIFEST], snapshots=[TOP], flat="x")
    found = store.read()
    assert holders(found, manifest) == {ENGINE}
    assert holders(found, blob) == set()
    # A snapshot is nothing without those below it.
    assert holders(found, top) == holders(found, base) == {ENGINE}
    # The same lease, not flat, holds all.
    store.lease("flat", content=[MANIFEST])
    assert holders(store.read(), blob) == {ENGINE}


def test_a_flat_lease_takes_nothing_from_what_others_hold(store: ContainerdRoot) -> None:
    store.image("app:1", MANIFEST)
    store.blob(MANIFEST, ref_content_l_0=BLOB)
    blob = store.blob(BLOB)
    store.lease("flat", content=[MANIFEST], flat="x")
    assert holders(store.read(image("app", id=MANIFEST)), blob) == {IMAGE + MANIFEST}


def test_what_is_labelled_a_root_is_kept(store: ContainerdRoot) -> None:
    base = store.snapshot(BASE)
    top = store.snapshot(TOP, BASE, root="x")
    blob = store.blob(BLOB, root="x")
    found = store.read()
    assert holders(found, base) == holders(found, top) == holders(found, blob) == {ENGINE}


def test_references_in_a_circle_are_no_hang(store: ContainerdRoot) -> None:
    store.image("app:1", MANIFEST)
    one, two = store.blob(MANIFEST, ref_content_m_0=BLOB), store.blob(BLOB, ref_content_m_0=MANIFEST)
    base, top = store.snapshot(BASE, TOP), store.snapshot(TOP, BASE)
    store.lease("l", snapshots=[TOP])
    found = store.read(image("app", id=MANIFEST))
    assert holders(found, one) == holders(found, two) == {IMAGE + MANIFEST}
    assert holders(found, base) == holders(found, top) == {ENGINE}


def test_what_other_users_of_the_same_containerd_have_is_nobodys_leftover(store: ContainerdRoot) -> None:
    theirs = [store.snapshot(BASE, space="k8s.io"), store.blob(BLOB, space="k8s.io")]
    store.image("app:1", CONFIG)
    both = store.blob(CONFIG)
    store.blob(CONFIG, space="k8s.io")
    history = store.blob(MANIFEST, space="moby_history")
    found = store.read(image("app", id=CONFIG))
    for path in theirs:
        assert (holders(found, path), category(found, path)) == (set(), "other_users")
        assert "another user of the same containerd" in found.accounts[found.paths[path]].words
    assert holders(found, both) == {IMAGE + CONFIG}
    assert category(found, history) == "engine_metadata"


def test_a_digest_that_is_none_leads_nowhere(store: ContainerdRoot) -> None:
    for digest in (b"sha256:../../../etc", b"../x:" + b"a" * 64, b"sha256:" + b"a" * 63 + b"/", b"sha256"):
        store.space()[b"content"][b"blob"][digest] = {b"size": b"\1"}
        store.space("other")[b"content"][b"blob"][digest] = {b"size": b"\1"}
    assert store.read().paths == {}


def test_a_record_and_its_snapshot_are_read_whatever_the_number(store: ContainerdRoot) -> None:
    for number in range(200):
        store.snapshot(f"filler {number}")
    path = store.snapshot(BASE, size=5_000_000_000)
    assert path.endswith("/201")
    store.lease("r1", snapshots=[BASE])
    found = store.read(record("r1"))
    assert holders(found, path) == {CACHE + "r1"}
    assert found.logical[found.paths[path]] == 5_000_000_000


@pytest.mark.parametrize("damaged", ["meta.db", "metadata.db"])
@pytest.mark.parametrize("how", ["torn", "missing", "folder"])
def test_with_a_database_of_containerd_that_cannot_be_read_nothing_is_a_leftover(
    store: ContainerdRoot, damaged: str, how: str
) -> None:
    store.blob(LOST)
    store.snapshot(hexadecimal("lost"), kind=2)
    assert "leftovers" in {account.category for account in store.read().accounts.values()}
    path = store.base / "io.containerd.metadata.v1.bolt/meta.db" if damaged == "meta.db" else store.snapshotter / "metadata.db"
    path.unlink()
    if how == "torn":
        path.write_bytes(b"x" * 9000)
    elif how == "folder":
        path.mkdir()
    found = layers.read(store.storage, Snapshot(now=0.0))
    assert found.doubts
    assert "leftovers" not in {account.category for account in found.accounts.values()}


def test_a_containerd_without_any_snapshot_yet_is_no_doubt(store: ContainerdRoot) -> None:
    store.read()
    (store.snapshotter / "metadata.db").unlink()
    found = layers.read(store.storage, Snapshot(now=0.0))
    assert (found.doubts, len(found.accounts)) == ([], 0)


def test_a_containerd_that_is_nowhere_is_a_doubt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ansible_collections.fleetclean.docker.plugins.module_utils.storage._CONTAINERD", (f"{tmp_path}/nowhere",))
    found = layers.read(Storage(str(tmp_path), "overlayfs", "containerd", {}), Snapshot(now=0.0))
    assert found.doubts == ["containerd's folder is not at any place that is known"]


# -- records of any bytes ----------------------------------------------------------------------------------


@lru_cache(maxsize=None)
def databases() -> dict[str, bytes]:
    """Databases as an engine leaves them, by what they are called below the data root."""
    with tempfile.TemporaryDirectory() as folder:
        store = ContainerdRoot(Path(folder))
        for number in range(4):
            name = f"layer {number}"
            store.snapshot(sha(name), sha(f"layer {number - 1}") if number else "")
            store.blob(sha(f"config {number}"), **{"ref.snapshot.overlayfs": sha(name)})
            store.blob(sha(f"manifest {number}"), **{"ref.content.config": sha(f"config {number}")})
            store.image(f"app/{number}:1", sha(f"manifest {number}"))
            store.lease(f"lease {number}", [sha(f"config {number}")], [sha(name)], expire="2099-01-01T00:00:00Z")
        store.read()
        graph = GraphRoot(Path(folder, "graph"))
        graph.buildkit({BASE.encode(): {b"chainid": BASE.encode()}, b"a": {b"parent": BASE.encode(), b"committed": b"b"}},
                       {"a": {"cache.snapshot": "a", "cache.equalMutable": "b"}, "b": {"cache.parent": "a", "cache.chainID": BASE}})
        return {
            "meta": (store.base / "io.containerd.metadata.v1.bolt/meta.db").read_bytes(),
            "metadata": (store.snapshotter / "metadata.db").read_bytes(),
            "snapshots": (graph.root / "buildkit/snapshots.db").read_bytes(),
            "records": (graph.root / "buildkit/metadata_v2.db").read_bytes(),
        }


def read_any(**changed: bytes) -> None:
    """Whatever databases hold: what is read is no error, and where one cannot be read nothing is nobody's."""
    content = {**databases(), **changed}
    seen = (image("one", "app/1:1", layers=(BASE,)), record("a"), record("b"), container("web", "one"))
    with tempfile.TemporaryDirectory() as folder:
        store = ContainerdRoot(Path(folder, "c"))
        graph = GraphRoot(Path(folder, "g"))
        graph.layer(BASE)
        for path, name in (
            (store.base / "io.containerd.metadata.v1.bolt/meta.db", "meta"), (store.snapshotter / "metadata.db", "metadata"),
            (store.base.parent.parent / "buildkit/containerd-overlayfs/metadata_v2.db", "records"),
            (graph.root / "buildkit/snapshots.db", "snapshots"), (graph.root / "buildkit/metadata_v2.db", "records"),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content[name])
        for storage in (store.storage, graph.storage):
            found = layers.read(storage, world(*seen))
            assert not found.doubts or not any(account.category == "leftovers" for account in found.accounts.values())
            assert all(path.startswith(f"{storage.root}/") for path in found.paths)
        for ident, read in image_records.read(store.storage, ("linux", "amd64"), True).items():
            assert isinstance(ident, str) and isinstance(read.parent, str)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(("meta", "metadata", "snapshots", "records")).flatmap(lambda name: mutated(databases()[name]).map(lambda data: {name: data})))
@example({})
@example({"meta": boltfile.encode({b"v1": {b"moby": {b"images": {b"x": {b"target": {}, b"updatedat": b"x" * 15}}}}})})
@example({"metadata": boltfile.encode({b"v1": {b"snapshots": {b"x": {b"id": b"\xff" * 200_000, b"kind": b"", b"size": b"\x80" * 200_000}}}})})
@example({"records": boltfile.encode({b"_main": {b"a": {b"cache.snapshot": b"[" * 20_000, b"cache.parent": b'{"value": "a"}', b"x": b"[1]"}}})})
@example({"snapshots": boltfile.encode({b"a": {b"parent": b"a", b"committed": b"a"}, b"../b": {b"chainid": b"../../etc", b"parent": b"\0"}})})
def test_any_databases_are_no_error_and_make_nothing_nobodys(changed: dict[str, bytes]) -> None:
    with bounded(5.0, 60 << 20):
        read_any(**changed)


# -- thousands ---------------------------------------------------------------------------------------------------


def test_layers_below_the_same_layer_have_one_set_of_holders(graph: GraphRoot) -> None:
    # With a set for each, 20 layers below 15,000 holders take 20 MB.
    chains = [sha(f"layer {number}") for number in range(5)]
    paths = [graph.layer(chain, chains[at - 1] if at else "") for at, chain in enumerate(chains)]
    objects: list[t.Any] = []
    for number in range(4):
        own = sha(f"own layer {number}")
        graph.layer(own, chains[-1])
        objects.append(image(f"image{number}", layers=(*chains, own)))
    found = graph.read(*objects)
    groups = {found.accounts.group_number(found.paths[path]) for path in paths}
    assert len(groups) == 1 and found.accounts.size_of_group(groups.pop()) == 4
