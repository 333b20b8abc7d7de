# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of the host that others write: bbolt databases, the engine's records, this collection's own history, and the kernel's texts.

Each is read as content, or not at all: nothing but the errors that its reader promises, and no figure or name of a wrong type.
"""

from __future__ import annotations

import io
import json
import os
import sqlite3
import typing as t
from pathlib import Path
from unittest import mock

import boltfile
from ansible_collections.fleetclean.docker.plugins.module_utils import bolt, history, image_records, layers, mounts, open_deleted, state_folder
from ansible_collections.fleetclean.docker.plugins.module_utils.layers import Holdings
from dataroots import ContainerdRoot, GraphRoot
from hypothesis import example
from hypothesis import strategies as st
from worlds import hexadecimal, image, world

from tests.fuzz import places
from tests.fuzz.budget import fuzz
from tests.fuzz.mutations import mutated, mutated_bytes

PLACE = places.in_memory()

# -- bbolt databases -------------------------------------------------------------------------------

_TREE = {b"v1": {b"moby": {f"name {number:03}".encode(): {b"id": bytes([number]), b"in": {b"deep": b"x" * 40}} for number in range(60)}}, b"empty": {}, b"big": b"y" * 9000}
DATABASES = [
    boltfile.encode(_TREE, per_page=5),
    boltfile.encode(_TREE),
    boltfile.encode({b"a": b"1"}, before=_TREE),
    boltfile.encode(_TREE, page_size=1024, per_page=4, torn=(1,)),
]
#: The metas, and the headers and first elements of pages.
SPOTS = tuple(page * 4096 + offset for page in range(8) for offset in range(0, 96, 3))


def everything(bucket: bolt.Bucket, depth: int = 0) -> int:
    if depth > 12:
        raise ValueError("deeper than any that is written here")
    return sum(everything(value, depth + 1) if isinstance(value, bolt.Bucket) else len(value) for _key, value in bucket.items())


@fuzz(300, content=mutated_bytes(DATABASES, most=12, spots=SPOTS))
def test_a_damaged_database_is_content_or_bolt_error(content: bytes) -> None:
    path = PLACE / "x.db"
    path.write_bytes(content)
    try:
        bolt.read(str(path), everything)
    except (bolt.BoltError, OSError):
        pass


@fuzz(60, tree=st.recursive(st.binary(max_size=300), lambda inner: st.dictionaries(st.binary(min_size=1, max_size=20), inner, max_size=6), max_leaves=40), per_page=st.integers(2, 9))
def test_a_database_is_read_as_it_was_written(tree: t.Any, per_page: int) -> None:
    def plain(bucket: bolt.Bucket) -> t.Any:
        return {key: plain(value) if isinstance(value, bolt.Bucket) else value for key, value in bucket.items()}

    if isinstance(tree, dict):
        path = PLACE / "y.db"
        path.write_bytes(boltfile.encode(tree, per_page=per_page))
        assert bolt.read(str(path), plain) == tree


# -- the engine's records -------------------------------------------------------------------------------


def _graph(folder: Path) -> GraphRoot:
    root = GraphRoot(folder)
    one, two = (f"sha256:{hexadecimal(name)}" for name in ("one", "two"))
    root.layer(one)
    root.layer(two, parent=one)
    root.mount(hexadecimal("box"), parent=two)
    root.folder(hexadecimal("snapshot"))
    root.buildkit(
        {b"v1": {b"snapshots": {b"snapshot": {b"id": hexadecimal("snapshot").encode(), b"parent": b""}}, b"chains": {b"x": two.encode()}}},
        {"record": {"cache.snapshot": "snapshot", "cache.parent": "", "cache.layerType": "regular", "cache.blobonly": False}},
    )
    ident = hexadecimal("box")
    box = folder / "containers" / ident
    box.mkdir(parents=True)
    (box / "config.v2.json").write_text(json.dumps(_CONFIG))
    (box / "hostconfig.json").write_text(json.dumps(_HOST_CONFIG))
    for part, name, text in (("content", "", json.dumps(_IMAGE)), ("metadata", "/lastUpdated", "2024-01-01T00:00:00Z")):
        path = folder / f"image/overlay2/imagedb/{part}/sha256/{hexadecimal('image')}{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


_CONFIG = {
    "Created": "2024-01-01T00:00:00Z", "RestartCount": 1, "HasBeenManuallyStopped": True, "Config": {"Image": "app:1"},
    "State": {"Status": "exited", "Running": False, "ExitCode": 1, "StartedAt": "2024-01-01T00:00:00Z", "FinishedAt": "2024-01-02T00:00:00Z"},
    "NetworkSettings": {"Networks": {"bridge": {"Links": ["db:database"]}, "n": None}},
}
_HOST_CONFIG = {"NetworkMode": "container:x", "RestartPolicy": {"Name": "always", "MaximumRetryCount": 3}, "VolumesFrom": ["a"], "Links": ["/a:/b/c"], "Binds": ["/x:/y"]}
_IMAGE = {"rootfs": {"type": "layers", "diff_ids": ["sha256:a", "sha256:b"]}}


def _containerd(folder: Path) -> ContainerdRoot:
    root = ContainerdRoot(folder)
    manifest, config, layer = (f"sha256:{hexadecimal(name)}" for name in ("manifest", "config", "layer"))
    root.image("docker.io/library/app:1", manifest)
    root.blob(manifest, ref_content_config=config, ref_content_l_0=layer)
    root.blob(config)
    root.blob(layer)
    below = root.snapshot("sha256:chain")
    root.snapshot("box", parent="sha256:chain", kind=2)
    root.lease("lease", content=[layer], snapshots=["sha256:chain"], expire="2030-01-01T00:00:00Z")
    os.makedirs(below, exist_ok=True)
    (root.blobs / manifest[7:]).write_text(json.dumps({"mediaType": "application/vnd.oci.image.manifest.v1+json", "config": {"digest": config}, "layers": [{"digest": layer}]}))
    (root.blobs / config[7:]).write_text(json.dumps({"rootfs": {"diff_ids": [layer]}}))
    return root


GRAPH, CONTAINERD = _graph(PLACE / "graph"), _containerd(PLACE / "containerd")
CONTAINERD.read()  # writes the databases
RECORDS = sorted(str(path.relative_to(PLACE)) for root in (GRAPH.root, PLACE / "containerd") for path in root.rglob("*") if path.is_file())
_BEFORE = {name: (PLACE / name).read_bytes() for name in RECORDS}
LOOKED = world(image("image", "app:1"), layer_bytes={})


def held(found: Holdings) -> None:
    """Folders of the engine only, however they were named in its records."""
    for path in found.paths:
        assert os.path.normpath(path).startswith(f"{PLACE}/"), path


def read_records() -> None:
    """As the modules read what belongs to whom."""
    ident = hexadecimal("box")
    for root in (GRAPH.storage, CONTAINERD.storage):
        held(layers.read(root, LOOKED))
        root.container_record(ident)
        assert all(isinstance(size, int) for size in root.layer_sizes().values())
        for part in (root.image_layers, root.image_tagged):
            part(f"sha256:{hexadecimal('image')}")
        for record in image_records.read(root, ("linux", "amd64"), layers=True).values():
            assert record.layers is None or isinstance(record.layers, tuple)


@st.composite
def damaged_record(draw: t.Any) -> tuple[str, bytes]:
    name = draw(st.sampled_from(RECORDS))
    content = _BEFORE[name]
    if name.endswith(".json") and draw(st.booleans()):
        try:
            return name, json.dumps(draw(mutated([json.loads(content)]))).encode()
        except (ValueError, RecursionError):
            pass
    return name, draw(mutated_bytes([content], spots=SPOTS if name.endswith(".db") else ()) | st.sampled_from([b"", b"null", b"[]", b"\xff" * 40, b"[" * 20_000, b"9" * 5000, b'{"State":' * 5000]))


@fuzz(150, damage=damaged_record())
def test_a_damaged_record_of_the_engine_is_read_as_far_as_it_goes(damage: tuple[str, bytes]) -> None:
    name, content = damage
    try:
        (PLACE / name).write_bytes(content)
        read_records()
    finally:
        (PLACE / name).write_bytes(_BEFORE[name])


# -- this collection's own history ----------------------------------------------------------------------------


def _history() -> bytes:
    folder = PLACE / "history"
    folder.mkdir()
    images = [f"sha256:{number:064}" for number in range(30)]
    for now in (1000.0, 2000.0):
        assert history.note_uses(str(folder), "ENGINE", {name: now for name in images}, images[: int(now / 100)], now=now, since=1.0)
    assert history.note_measured(str(folder), "ENGINE", {name: history.Measured("1:2", 3, 4, 5, 6) for name in images})
    return (folder / state_folder.FILE).read_bytes()


HISTORY = _history()


def use_history() -> None:
    """All that runs ask of it and note in it."""
    folder = str(PLACE / "history")
    found = history.recall(folder, "ENGINE", 3000.0)
    assert all(isinstance(moment, float) and moment <= 3000 + history._AHEAD for moment in [*found.used.values(), *found.came.values()])
    for measured in history.measured(folder, "ENGINE").values():
        assert all(isinstance(figure, int) for figure in measured[1:])
    history.note_uses(folder, "ENGINE", {"i": 3000.0}, ["i"], now=3000.0, since=2500.0)
    history.note_measured(folder, "ENGINE", {"a": history.Measured("1:2", 3, 4, 5, 6)})


@fuzz(150, content=mutated_bytes([HISTORY], most=12, spots=tuple(page * 4096 + offset for page in range(8) for offset in range(0, 110, 5))))
def test_a_damaged_history_costs_no_more_than_itself(content: bytes) -> None:
    _write_history(content)
    use_history()


def _write_history(content: bytes) -> None:
    for path in (PLACE / "history").iterdir():
        path.unlink()
    (PLACE / "history" / state_folder.FILE).write_bytes(content)


_NAMES = st.sampled_from(["last_use", "first_seen", "watched", "measured", "other"])
_VALUES = st.sampled_from(["NULL", "'x'", "x'00ff'", "1e999", "-1", "9223372036854775807", "'1'", "''", "zeroblob(100000)"])
_COLUMNS = st.sampled_from(["engine", "object", "used", "seen", "account", "disk", "sum", "since", "until", "identity"])
#: Rows without an end, and one of gigabytes, where runs look for theirs.
_ROWS = {
    "endless": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT 'ENGINE' AS engine, 'o' || i AS object, 1.0 AS used, 1.0 AS seen FROM n",
    "large": "SELECT 'ENGINE' AS engine, hex(zeroblob(400000000)) AS object, 1.0 AS used, 1.0 AS seen",
}
_ENDLESS = [f"DROP TABLE {name}; CREATE VIEW {name} AS {rows}" for name in ("last_use", "first_seen") for rows in _ROWS.values()]
statements = st.one_of(
    st.builds("DROP TABLE {}".format, _NAMES),
    st.builds("DELETE FROM {}".format, _NAMES),
    st.builds("ALTER TABLE {} RENAME TO {}".format, _NAMES, _NAMES),
    st.builds("ALTER TABLE {} RENAME COLUMN {} TO {}".format, _NAMES, _COLUMNS, _COLUMNS),
    st.builds("UPDATE OR IGNORE {} SET {} = {}".format, _NAMES, _COLUMNS, _VALUES),
    st.builds("CREATE TABLE {} ({} TEXT, {} BLOB)".format, _NAMES, _COLUMNS, _COLUMNS),
    st.builds("CREATE VIEW {} AS SELECT {} AS {}, {} AS {} FROM {}".format, _NAMES, _VALUES, _COLUMNS, _VALUES, _COLUMNS, _NAMES),
    st.sampled_from(_ENDLESS),
    st.builds("PRAGMA user_version = {}".format, st.sampled_from([-1, 0, 1, 2, 3, 4, 99])),
    st.builds("CREATE TRIGGER t BEFORE INSERT ON {} BEGIN SELECT RAISE(ABORT, 'no'); END".format, _NAMES),
    st.builds("CREATE UNIQUE INDEX i ON {} ({})".format, _NAMES, _COLUMNS),
)


@fuzz(60, made=st.lists(statements, min_size=1, max_size=5))
@example(made=[_ENDLESS[0]])
@example(made=[_ENDLESS[1]])
def test_a_history_of_another_shape_is_no_error(made: list[str]) -> None:
    _write_history(HISTORY)
    connection = sqlite3.connect(PLACE / "history" / state_folder.FILE, isolation_level=None)
    for statement in made:
        try:
            connection.executescript(statement)
        except (sqlite3.Error, sqlite3.Warning):
            pass
    connection.close()
    use_history()


# -- the kernel's texts ---------------------------------------------------------------------------------

MOUNTINFO = (
    b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
    b"23 22 0:5 / /proc rw - proc proc rw\n"
    b"40 22 8:2 / /var/lib/docker rw master:3 - xfs /dev/sdb1 rw\n"
    b"41 40 0:50 / /var/lib/docker/overlay2/a/merged rw - overlay overlay rw,lowerdir=/l/A:/l/B,upperdir=/var/lib/docker/overlay2/a/diff,workdir=/w\n"
    b"42 40 8:1 /srv/a\\040b /var/lib/docker/volumes/v/_data rw - ext4 /dev/sda1 rw\n"
    b"43 40 8:1 /srv/gone\\134040//deleted /mnt rw - ext4 /dev/sda1 rw\n"
)
STATUS = b"Name:\tdockerd\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t1\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nVmSize:\t 100 kB\n"
CGROUP = b"12:devices:/docker/" + hexadecimal("box").encode() + b"\n0::/system.slice/docker.service\n"
FDINFO = b"pos:\t0\nflags:\t02102001\nmnt_id:\t30\nino:\t5\n"


@fuzz(300, text=mutated_bytes([MOUNTINFO], most=6))
@example(text=MOUNTINFO.replace(b"22 1 ", b" 1 "))
@example(text=MOUNTINFO.replace(b"22 1 ", b"22 41 "))
def test_a_mount_table_of_any_names_is_read(text: bytes) -> None:
    plain = text.decode("utf-8", "surrogateescape")
    table = mounts.Table(plain, [(plain, ("box",))])
    for mount in table.mounts:
        assert isinstance(mount.layers, list)
    for path in ("/var/lib/docker/volumes/v/_data", "/", "/var/lib/docker/overlay2/a/merged/x"):
        for place in table.way(path):
            table.path(place)
    with _file(open_deleted, text):
        for line in open_deleted._mount_table("1"):
            assert isinstance(line.number, int)


@fuzz(200, text=mutated_bytes([STATUS, CGROUP, FDINFO], most=6))
def test_what_the_kernel_says_of_a_process_is_read(text: bytes) -> None:
    with _file(open_deleted, text):
        holder = open_deleted._holder(1)
    assert holder.user is None or holder.user >= 0


def _file(module: t.Any, content: bytes) -> t.Any:
    """Let a module find this content in any file that it opens."""

    def opened(_path: str, *_mode: str, **how: t.Any) -> t.Any:
        return io.TextIOWrapper(io.BytesIO(content), encoding=how.get("encoding"), errors=how.get("errors"), newline=how.get("newline"))

    return mock.patch.object(module, "open", opened, create=True)
