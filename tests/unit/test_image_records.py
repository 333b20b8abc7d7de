# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What containerd's records say of images; that an engine's inspection says the same is shown in tests/integration/test_images.py."""

from __future__ import annotations

import hashlib
import json
import typing as t
from pathlib import Path

import boltfile
import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import attribution, image_records, snapshot
from ansible_collections.fleetclean.docker.plugins.module_utils.image_records import ImageRecord
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Storage
from dataroots import varint
from test_snapshot import FakeEngine, take

NOON = 1709294400.0  # 2024-03-01T12:00:00Z
OCI = "application/vnd.oci.image."
HOST = ("linux", "amd64")
LAYERS = ("sha256:" + "11" * 32, "sha256:" + "22" * 32)


def go_time(seconds: float) -> bytes:
    """What Go's time.Time makes of itself in binary, in a zone of one hour to the east."""
    whole = int(seconds // 1)
    return b"\1" + (whole + 62135596800).to_bytes(8, "big") + round(seconds % 1 * 1e9).to_bytes(4, "big") + (60).to_bytes(2, "big", signed=True)


class Store:
    """A containerd's images and content, as the engine makes them."""

    def __init__(self, root: Path) -> None:
        self.storage = Storage(str(root), "overlayfs", "containerd", {})
        self.base = root / "containerd/daemon"
        self.blobs = self.base / "io.containerd.content.v1.content/blobs/sha256"
        self.blobs.mkdir(parents=True)
        (self.base / "io.containerd.snapshotter.v1.overlayfs").mkdir()
        self.images: dict[bytes, t.Any] = {}
        self.content: dict[bytes, t.Any] = {}

    def blob(self, value: object) -> str:
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        digest = "sha256:" + hashlib.sha256(raw).hexdigest()
        (self.blobs / digest[7:]).write_bytes(raw)
        self.content[digest.encode()] = {b"size": varint(len(raw)), b"labels": {b"a": b"b"}}
        return digest

    def manifest(self, layers: t.Sequence[str] = LAYERS, kind: str = f"{OCI}layer.v1.tar", architecture: str = "amd64") -> str:
        config = self.blob({"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": list(layers)}})
        return self.blob({"config": {"digest": config}, "layers": [{"mediaType": kind, "digest": layer} for layer in layers]})

    def index(self, *entries: dict[str, t.Any]) -> str:
        return self.blob({"manifests": [{"mediaType": f"{OCI}manifest.v1+json", **entry} for entry in entries]})

    def name(self, name: str, digest: str, updated: float = NOON, kind: str = "manifest", **labels: str) -> str:
        record: dict[bytes, t.Any] = {
            b"createdat": go_time(NOON - 99), b"updatedat": go_time(updated),
            b"target": {b"digest": digest.encode(), b"mediatype": f"{OCI}{kind}.v1+json".encode(), b"size": varint(5)},
        }
        if labels:
            record[b"labels"] = {f"org.mobyproject.image.{key}".encode(): value.encode() for key, value in labels.items()}
        self.images[name.encode()] = record
        return digest

    def write(self) -> None:
        space = {b"images": self.images, b"content": {b"blob": self.content}}
        boltfile.write(self.base / "io.containerd.metadata.v1.bolt/meta.db", {b"v1": {b"moby": space}})

    def read(self, layers: bool = True) -> dict[str, ImageRecord]:
        self.write()
        return image_records.read(self.storage, HOST, layers)


@pytest.fixture()
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def platform(digest: str, architecture: str = "amd64", variant: str = "", **more: t.Any) -> dict[str, t.Any]:
    return {"digest": digest, "platform": {"os": "linux", "architecture": architecture, **({"variant": variant} if variant else {})}, **more}


def test_an_image_is_as_old_as_the_newest_change_of_its_names(store: Store) -> None:
    image = store.name("docker.io/app/a:1", store.manifest(), NOON)
    store.name("docker.io/app/a:2", image, NOON + 0.123456789)
    store.name(f"moby-dangling@{image}", image, NOON - 5)
    assert store.read() == {image: ImageRecord(NOON + 0.123456789, "", LAYERS)}
    assert store.read(layers=False)[image].layers is None


def test_a_time_before_1970_is_none(store: Store) -> None:
    image = store.name("a", store.manifest(), -62135596800.0)
    assert store.read()[image].tagged is None


def test_a_parent_is_named_by_a_label_and_two_that_differ_are_the_engines_to_tell(store: Store) -> None:
    child = store.name("child", store.manifest(), parent="sha256:" + "aa" * 32)
    store.name("child:2", child)
    torn = store.name("torn", store.manifest(LAYERS[:1]), parent="x")
    store.name("torn:2", torn, parent="y")
    assert {digest: record.parent for digest, record in store.read().items()} == {child: "sha256:" + "aa" * 32}


def test_of_several_platforms_the_engines_own_counts(store: Store) -> None:
    mine, other = store.manifest(LAYERS), store.manifest(LAYERS[:1], architecture="arm64")
    attestation = store.manifest((), kind="application/vnd.in-toto+json")
    annotated = {"annotations": {"vnd.docker.reference.type": "attestation-manifest"}}
    image = store.name("a", store.index(
        platform(other, "arm64"), platform(mine), {"digest": attestation, "platform": {"os": "unknown", "architecture": "unknown"}}, platform(attestation, **annotated),
    ), kind="index")
    assert store.read()[image].layers == LAYERS


def test_of_an_index_the_one_platform_that_is_here_counts_whichever_it_is(store: Store) -> None:
    image = store.name("a", store.index(platform("sha256:" + "00" * 32), platform(store.manifest(LAYERS[:1]), "arm64", "v8")), kind="index")
    assert store.read()[image].layers == LAYERS[:1]


@pytest.mark.parametrize(
    "make",
    [
        lambda store: store.index(platform(store.manifest()), platform(store.manifest(LAYERS[:1]))),
        lambda store: store.index(platform(store.manifest(), variant="v3"), platform(store.manifest(LAYERS[:1]), "386")),
        lambda store: store.index(platform(store.manifest(), "arm"), platform(store.manifest(LAYERS[:1]), "386")),
        lambda store: store.index(platform(store.manifest()), {"digest": store.manifest(LAYERS[:1])}),
        lambda store: store.index(platform(store.manifest(), mediaType=f"{OCI}index.v1+json")),
        lambda store: store.index({"digest": ["no", "digest"]}),
        lambda store: store.blob({"manifests": "none"}),
        lambda store: store.blob({"manifests": ["none", 5]}),
        lambda store: store.blob(b"no json"),
        lambda store: store.blob(b"[" * 100_000),
        lambda store: store.index(),
    ],
    ids=["twice", "variant", "neither", "unnamed", "nested", "digest", "text", "entries", "damaged", "deep", "empty"],
)
def test_what_is_not_plain_is_left_to_the_engine(store: Store, make: t.Callable[[Store], str]) -> None:
    image = store.name("a", make(store), kind="index")
    assert store.read()[image] == ImageRecord(NOON, "", None)


def test_a_manifest_that_is_no_image_or_not_all_here_is_left_to_the_engine(store: Store) -> None:
    store.name("chart", store.manifest(kind="application/vnd.cncf.helm.chart.content.v1.tar+gzip"))
    store.name("odd", store.blob({"config": {"digest": 5}, "layers": []}))
    store.name("text", store.blob({"config": {"digest": store.blob({"rootfs": {"diff_ids": "x"}})}, "layers": []}))
    store.name("gone", "sha256:" + "00" * 32)
    store.name("outside", "../../../etc/passwd")
    store.name("unknown", store.manifest(LAYERS[:1]), kind="other")
    link = store.name("link", store.manifest(LAYERS[1:]))
    (store.blobs / link[7:]).rename(store.blobs / "elsewhere")
    (store.blobs / link[7:]).symlink_to("elsewhere")
    found = store.read()
    assert len(found) == 7 and {record.layers for record in found.values()} == {None}


def test_content_of_another_namespace_is_not_the_engines(store: Store) -> None:
    image = store.name("a", store.manifest())
    del store.content[image.encode()]
    assert store.read()[image].layers is None


def test_records_that_cannot_be_read_say_nothing(store: Store) -> None:
    store.name("a", store.manifest())
    store.images[b"a"][b"updatedat"] = b"x"
    assert store.read() == {}
    (store.base / "io.containerd.metadata.v1.bolt/meta.db").write_bytes(b"x" * 9000)
    assert image_records.read(store.storage, HOST, True) == {}
    (store.base / "io.containerd.metadata.v1.bolt/meta.db").unlink()
    assert image_records.read(store.storage, HOST, True) == {}


# -- in the snapshot ---------------------------------------------------------------------------------


def engine_of(store: Store, *more: str, **answers: t.Any) -> FakeEngine:
    listed = [{"Id": json_target[b"target"][b"digest"].decode(), "RepoTags": [f"{name.decode()}:1"]} for name, json_target in store.images.items()]
    engine = FakeEngine(images=[*listed, *({"Id": ident, "RepoTags": []} for ident in more)], **answers)
    engine.info = {**engine.info, "Driver": "overlayfs", "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}  # type: ignore[dict-item]
    engine.version = {"Os": "linux", "Arch": "amd64"}  # type: ignore[assignment]
    return engine


@pytest.mark.parametrize("wanted", [{"ages": True}, {"sizes": True}, {"build_cache": True}, {"ages": True, "sizes": True, "build_cache": True}])
def test_no_image_of_containerds_store_needs_a_call_of_its_own(store: Store, wanted: dict[str, bool]) -> None:
    for number in range(50):
        store.name(f"app/{number}", store.manifest((*LAYERS, f"sha256:{number:064x}")), NOON + number, parent=f"sha256:{number:064x}")
    store.write()
    engine = engine_of(store)
    found = take(engine, store.storage, images=True, image_sizes=False, **wanted).images
    assert engine.asked.count("images") == 1 and "image" not in engine.asked
    assert len(found) == 50 and all(image.parent and image.arrived is None and not image.origin_known for image in found)
    assert [image.tagged for image in found] == [NOON + number for number in range(50)]
    chains = {snapshot.chain_ids(LAYERS)[1]} if set(wanted) - {"ages"} else set()
    assert {image.layers[1] for image in found if image.layers} == chains


def test_what_the_records_do_not_tell_the_engine_is_asked(store: Store) -> None:
    store.name("app/plain", store.manifest())
    odd = store.name("app/odd", store.blob({"manifests": []}), kind="index")
    store.write()
    unknown = "sha256:" + "ff" * 32
    details = {"Parent": "p", "RootFS": {"Layers": [LAYERS[0]]}, "Metadata": {"LastTagTime": "2024-03-01T12:00:00.5Z"}}
    asked: list[str] = []

    def fake_image(ident: str) -> dict[str, t.Any]:
        asked.append(ident)
        return details

    found = take(engine_of(store, unknown, image=fake_image), store.storage, images=True, ages=True, sizes=True, image_sizes=False).images
    assert sorted(asked) == sorted([odd, unknown])
    assert [(image.parent, image.tagged, len(image.layers)) for image in found] == [("", NOON, 2), ("p", NOON + 0.5, 1), ("p", NOON + 0.5, 1)]


def test_of_another_machines_engine_each_image_is_asked_for(store: Store) -> None:
    store.name("app/a", store.manifest())
    store.write()
    engine = engine_of(store, image={})
    take(engine, None, images=True, ages=True)
    assert engine.asked.count("image") == 1
    unaged = engine_of(store, image={})
    take(unaged, None, images=True, sizes=True, layers=False)
    assert "image" not in unaged.asked, "nobody there knows a layer's bytes"


class Asked(Exception):
    """A survey has begun to ask the engine."""


@pytest.mark.parametrize(
    ("here", "report", "image_sizes", "layers"),
    [(True, False, False, True), (True, True, True, True), (False, False, True, True), (False, True, True, True)],
)
def test_a_plan_does_not_let_the_engine_compute_what_is_measured_here(
    store: Store, monkeypatch: pytest.MonkeyPatch, here: bool, report: bool, image_sizes: bool, layers: bool
) -> None:
    """A report has the engine's own figures beside those of the disk."""

    def fake_take(_engine: object, wanted: snapshot.Wanted, _storage: object) -> None:
        raise Asked(wanted)

    monkeypatch.setattr(attribution.snapshot, "take", fake_take)
    how = attribution.How(True, False, "", "")
    with pytest.raises(Asked) as asked:
        attribution.survey(t.cast(t.Any, engine_of(store)), store.storage if here else None, how, snapshot.Wanted(image_sizes=report))
    (wanted,) = asked.value.args
    assert (wanted.image_sizes, wanted.layers) == (image_sizes, layers)
