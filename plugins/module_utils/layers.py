# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which folder is whose layer, and who holds it: out of the records that the engine keeps on its disk.

Graph drivers: the layer store names the folder of each layer (``layerdb/sha256/<chain>/cache-id``) and of each
writable one (``layerdb/mounts/<container>``); BuildKit has more of them in ``buildkit/snapshots.db``. Engines
before 1.10 had one layer an image, of the same id. containerd's store is a graph, in its ``meta.db``: images, leases
and containers refer to content and snapshots by labels, and what nobody refers to is collected. Sources: the engine's
``layer/filestore.go`` and ``builder-next/adapters/snapshot``, containerd's ``core/metadata`` (buckets.go, gc.go) and
``core/snapshots/storage``.

Whoever holds a layer holds all those below it.
"""

from __future__ import annotations

import os
import re
import time
import typing as t
from collections import defaultdict
from dataclasses import dataclass, field

from ansible_collections.fleetclean.docker.plugins.module_utils import bolt, record_files
from ansible_collections.fleetclean.docker.plugins.module_utils.accounts import (
    CACHE,
    CONTAINER,
    IMAGE,
    LAYER,
    NOBODY,
    WRITABLE_LAYER,
    Accounts,
    Paths,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.safe_open import read_head
from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import Snapshot
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import LAYER_NAME, Storage
from ansible_collections.fleetclean.docker.plugins.module_utils.units import parse_time

_DIGEST = re.compile(r"[a-z0-9]+:[0-9a-f]{32,128}")
_HEX = re.compile(r"[0-9a-f]{64}")
#: What the layer store calls a layer's record while it removes the layer (``layer/layer_store.go``, deleteLayer).
_REMOVING = re.compile(r"[0-9a-f]{64}-[0-9a-f]{64}-removing")
#: Seconds. The engine that began to remove a layer is done within this time, or was killed; it looks again at its next start.
_REMOVES_WITHIN = 3600
#: A damaged disk may have thousands; a few say enough.
_MOST_DOUBTS = 5
_OTHERS = "another user of the same containerd"
#: What the engine lays between an image and a container's writable layer: mount points, and files such as /etc/hosts.
_INIT = "-init"
#: Who holds what the engine itself refers to and no object of its API does.
ENGINE = "engine:"


@dataclass
class Holdings:
    """``paths``: whose account each folder and record is, ``depth`` how many layers lie below it; ``logical``: bytes by account, as the engine has them.

    ``chains``: by record of BuildKit's the layer, as images name it, that makes it a shared one as long as an image has it.
    ``doubts``: records that could not be read, in words. As long as there are any, nothing is nobody's.
    """

    accounts: Accounts = field(default_factory=Accounts)
    paths: Paths[int] = field(default_factory=Paths)
    depth: Paths[int] = field(default_factory=Paths)
    logical: dict[int, int] = field(default_factory=dict)
    chains: dict[str, str] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)

    def group(self, *holders: str) -> int:
        """The number of the group of these holders, such as ``container:<id>``."""
        return self.accounts.group_of_names(*holders)

    def add(
        self,
        kind: str,
        ident: str,
        places: t.Iterable[tuple[str, str]],
        group: int = NOBODY,
        category: str = "",
        final: bool = False,
        words: str = "",
        depth: int = 0,
    ) -> int:
        """Note an account, and the folder and name of what is its; of one that is there already the holders are joined."""
        known = self.accounts.find(kind, ident)
        if known is not None:
            group = self.accounts.union((group, self.accounts.group_number(known)))
            final = final or self.accounts.is_final(known)
        number = self.accounts.add(kind, ident, category or _category(self.accounts, group), group, final, "" if group else words)
        for folder, name in places:
            self.paths.put(folder, name, number)
            if depth:
                self.depth.put(folder, name, max(depth, self.depth.get(f"{folder}/{name}", 0)))
        return number

    def doubt(self, words: str) -> None:
        """Note a record that could not be read."""
        if len(self.doubts) < _MOST_DOUBTS:
            self.doubts.append(words)


def read(storage: Storage, snapshot: Snapshot, accounts: Accounts | None = None, paths: Paths[int] | None = None) -> Holdings:
    """Return who holds which folder, by the engine's records at this moment.

    :param accounts: those that are known already, to which these are added.
    :param paths: the same of paths.
    """
    found = Holdings(Accounts() if accounts is None else accounts, Paths() if paths is None else paths)
    for kind, objects in ((IMAGE, snapshot.images), (CONTAINER, snapshot.containers), (CACHE, snapshot.build_cache)):
        for each in objects:
            found.accounts.holder(kind, each.id)  # by the id that is there anyway
    if storage.image_store == "containerd":
        _containerd(storage, snapshot, found)
    elif storage.old_records:
        _before_layers(storage, snapshot, found)
    else:
        _layer_store(storage, snapshot, found)
    if found.doubts:
        for number in found.accounts.of_category("leftovers"):
            # Who held it may stand in the very record that could not be read.
            found.accounts.set_category(number, "unattributed")
    return found


def _category(accounts: Accounts, group: int) -> str:
    """A layer is reported where it would be missed first."""
    kinds = accounts.kinds_in(group)
    # What the engine alone refers to is being pulled, or was.
    for kind, category in ((IMAGE, "images"), (CACHE, "build_cache"), (CONTAINER, "containers"), (ENGINE, "images")):
        if kind in kinds:
            return category
    return "leftovers"


def _layer_places(storage: Storage, ident: str) -> list[tuple[str, str]]:
    """The folders in which a layer may lie, each with its name there."""
    return [(folder, ident) for folder in storage.layer_folders()] if LAYER_NAME.fullmatch(ident) else []


# -- graph drivers -------------------------------------------------------------------------------


def _layer_store(storage: Storage, snapshot: Snapshot, found: Holdings) -> None:
    records = f"{storage.layer_records}/sha256"
    parents: dict[str, str] = {}
    folders: dict[str, str] = {}
    going: list[tuple[str, str]] = []
    same: dict[str, str] = {}
    for name in _names(records, found):
        if _HEX.fullmatch(name):
            # Thousands of layers may have one parent.
            parent = _text(f"{records}/{name}/parent", found, _DIGEST)
            parents[f"sha256:{name}"] = same.setdefault(parent, parent)
            folders[f"sha256:{name}"] = _text(f"{records}/{name}/cache-id", found, LAYER_NAME)
        elif _REMOVING.fullmatch(name) and _is_going(f"{records}/{name}"):
            # The record goes last, and may go while it is read.
            going.append((_text(f"{records}/{name}/cache-id", found), _text(f"{records}/{name}/parent", found)))
    same.clear()
    below = _Below(parents)
    direct: dict[str, list[int]] = defaultdict(list)

    def hold(chain: str, who: str) -> None:
        direct[chain].append(found.accounts.holder(*_parts(who)))

    for image in snapshot.images:
        if image.layers:
            hold(image.layers[-1], IMAGE + image.id)
        record = storage.image_record(image.id)
        if record and not image.layers and os.path.lexists(record) and storage.image_layers(image.id) is None:
            found.doubt(f"{record} cannot be read")
        if record:
            content, _slash, name = record.rpartition("/")
            places = [(content, name), (content.replace("/imagedb/content/", "/imagedb/metadata/"), name)]
            found.add("record of", image.id, places, found.group(IMAGE + image.id), "engine_metadata")
    known = {container.id: container.id for container in snapshot.containers}
    mounts = f"{storage.layer_records}/mounts"
    for name in _names(mounts, found):
        # BuildKit takes writable layers, too, for as long as it builds: those stand under names of its own.
        name = known.get(name, name)
        group = found.group(CONTAINER + name) if name in known else NOBODY
        parent = _text(f"{mounts}/{name}/parent", found, _DIGEST)
        if group:
            hold(parent, CONTAINER + name)
        depth = below.depth(parent)
        for more, kind in enumerate(("init-id", "mount-id"), 1):
            ident = _text(f"{mounts}/{name}/{kind}", found, LAYER_NAME)
            if ident:
                found.add(
                    WRITABLE_LAYER, name, _layer_places(storage, ident), group, words="writable layer of a container that is gone",
                    depth=depth + more,
                )
        words = "record of a writable layer of a container that is gone"
        found.add("layer record of", name, [(mounts, name)], group, "engine_metadata" if group else "", words=words)
    _buildkit(storage, snapshot, found, hold, below)
    for folder, parent in going:
        # Once it is gone the engine goes on with those below, if nobody has them.
        hold(parent, ENGINE)
        if LAYER_NAME.fullmatch(folder):
            found.add(LAYER, folder, _layer_places(storage, folder), found.group(ENGINE), depth=below.depth(parent) + 1)
    holders = _all_holders(direct, below, found.accounts)
    direct.clear()
    for chain, folder in folders.items():
        held_by = holders.get(chain, NOBODY)
        words = "layer of no image"
        number = found.add(LAYER, folder, _layer_places(storage, folder), held_by, final=True, words=words, depth=below.depth(chain))
        if chain in snapshot.layer_bytes:
            found.logical[number] = snapshot.layer_bytes[chain]
        places = [(records, chain.partition(":")[2])]
        found.add("record of layer", folder, places, held_by, "engine_metadata" if held_by else "", words=f"record of a {words}")


def _parts(holder: str) -> tuple[str, str]:
    """A holder's kind and id."""
    kind, colon, ident = holder.partition(":")
    return kind + colon, ident


def _buildkit(
    storage: Storage,
    snapshot: Snapshot,
    found: Holdings,
    hold: t.Callable[[str, str], None],
    below: _Below,
) -> None:
    """The layers of BuildKit's own records. A record that became an image's layer shares its folder with it."""
    database = storage.at("buildkit/snapshots.db")
    snapshots = _database(database, _tables, found) or {}
    records = _database(storage.at("buildkit/metadata_v2.db"), _records, found)
    if records is None and os.path.lexists(storage.at("buildkit/metadata.db")):
        records = _database(storage.at("buildkit/metadata.db"), _records, found)
    listed = {record.id for record in snapshot.build_cache}
    holder_of: dict[str, set[str]] = defaultdict(set)
    for ident, record in (records or {}).items():
        twin = record.get("cache.equalMutable", "")
        # Of a record that was not written down yet there are two, and the engine lists one of them.
        who = next((CACHE + name for name in (ident, twin) if name in listed), "")
        for key in {record.get("cache.snapshot", ident), twin} - {""}:
            if who:
                holder_of[key].add(who)
    chain_of = {key: table.get("chainid", "") for key, table in snapshots.items()}
    for key, holders in holder_of.items():
        chain = chain_of.get(key) or (key if key.startswith("sha256:") else "")
        found.chains.update({who[len(CACHE):]: chain for who in holders if chain})

    depths: dict[str, int] = {}
    done: dict[str, set[str]] = defaultdict(set)

    def depth(key: str) -> int:
        path: list[str] = []
        while key in snapshots and key not in depths and key not in path:
            path.append(key)
            key = snapshots[key].get("parent", "")
        lowest = depths.get(key, below.depth(key) if key.startswith("sha256:") else 0)
        for number, name in enumerate(reversed(path), 1):
            depths[name] = lowest + number
        return depths.get(path[0], lowest) if path else lowest

    def hold_all(key: str, who: str) -> None:
        # What somebody holds already he holds with all below it.
        while key in snapshots and key not in done[who] and not key.startswith("sha256:"):
            done[who].add(key)
            table = snapshots[key]
            ident = table.get("committed") or key
            if chain_of.get(key):
                hold(chain_of[key], who)
            category = "build_cache" if who == ENGINE else ""
            found.add(LAYER, ident, _layer_places(storage, ident), found.group(who), category, depth=depth(ident))
            key = table.get("parent") or snapshots.get(ident, {}).get("parent", "")
        if key.startswith("sha256:"):
            hold(key, who)

    # A record that was finished has its folder under the name that it was begun with.
    begun = {table["committed"] for table in snapshots.values() if table.get("committed")}
    for key in snapshots:
        # What BuildKit has and lists nowhere is still BuildKit's.
        unlisted = {ENGINE} if key not in begun and not key.startswith("sha256:") else set()
        for who in holder_of.get(key) or unlisted:
            hold_all(key, who)


def _is_going(record: str) -> bool:
    """Whether the engine removes a layer at this moment: its record was given that name not long ago."""
    try:
        return time.time() - os.stat(record, follow_symlinks=False).st_ctime < _REMOVES_WITHIN
    except OSError:
        return False


def _all_holders(direct: t.Mapping[str, t.Sequence[int]], below: _Below, accounts: Accounts) -> dict[str, int]:
    """The group that holds each layer: who holds it by itself, and who holds one above it.

    Each layer is looked at once, from the top down, and has its only child's group itself: with thousands of images above the same
    layers a group for each of these is what takes the memory.
    """
    layers = {layer for chain in direct for layer in below.chain(chain)}
    above: dict[str, list[int]] = defaultdict(list)
    found: dict[str, int] = {}
    for layer in sorted(layers, key=below.depth, reverse=True):
        groups = above.pop(layer, [])
        if layer in direct:
            groups.append(accounts.group(direct[layer]))
        found[layer] = accounts.union(groups)
        parent = below.parent(layer)
        if parent:
            above[parent].append(found[layer])
    return found


class _Below:
    """What lies below a layer. In a circle, which no engine makes, the one that is asked for last is the lowest."""

    def __init__(self, parents: t.Mapping[str, str]) -> None:
        self._parents = parents
        self._depths: dict[str, int] = {"": 0}

    def depth(self, layer: str) -> int:
        """How many layers that are, the layer itself included."""
        known = self._depths.get(layer)
        if known is not None:
            return known
        path: dict[str, None] = {}
        while layer not in self._depths and layer not in path:
            path[layer] = None
            layer = self._parents.get(layer, "")
        depth = self._depths.get(layer, 0)
        for name in reversed(list(path)):
            depth += 1
            self._depths[name] = depth
        return depth

    def parent(self, layer: str) -> str:
        """The layer right below; "" for the lowest."""
        parent = self._parents.get(layer, "")
        return parent if parent and self.depth(layer) == self.depth(parent) + 1 else ""

    def chain(self, layer: str) -> t.Iterator[str]:
        """The layer and all below it, lowest last."""
        while layer:
            yield layer
            layer = self.parent(layer)


def _tables(top: bolt.Bucket) -> dict[str, dict[str, str]]:
    return {_string(key): _strings(bucket) for key, bucket in top.buckets()}


def _records(top: bolt.Bucket) -> dict[str, dict[str, str]]:
    """BuildKit's records: each value is JSON with the field ``value``."""
    main = top.bucket(b"_main")
    found: dict[str, dict[str, str]] = {}
    for key, bucket in main.buckets() if main else ():
        found[_string(key)] = {}
        for name, raw in bucket.values().items():
            try:
                value = record_files.parse_object(raw).get("value")
            except ValueError:
                continue
            if isinstance(value, str):
                found[_string(key)][_string(name)] = value
    return found


# -- Docker 1.9 ----------------------------------------------------------------------------------


def _before_layers(storage: Storage, snapshot: Snapshot, found: Holdings) -> None:
    """One layer an image, under the image's id, and its record in ``graph``; writable layers under the containers' ids."""
    parents = {image.id: image.parent for image in snapshot.images}
    below = _Below(parents)
    holders: dict[str, list[str]] = defaultdict(list)
    for image in snapshot.images:
        for ident in below.chain(image.id):
            holders[ident].append(IMAGE + image.id)
    for container in snapshot.containers:
        for ident in below.chain(container.image_id):
            holders[ident].append(CONTAINER + container.id)
        for more, ident in enumerate((f"{container.id}-init", container.id), 1):
            found.add(
                WRITABLE_LAYER, container.id, _layer_places(storage, ident), found.group(CONTAINER + container.id),
                depth=below.depth(container.image_id) + more,
            )
    for full, who in holders.items():
        ident, group = full.rpartition(":")[2], found.group(*who)
        number = found.add(LAYER, ident, _layer_places(storage, ident), group, final=True, depth=below.depth(full))
        if storage.old_records:
            found.add("record of", ident, [(storage.old_records, ident)], group, "engine_metadata")
            size = _text(f"{storage.old_records}/{ident}/layersize", found)
            if size.isdigit() and len(size) <= 18:
                found.logical[number] = int(size)


# -- containerd ----------------------------------------------------------------------------------


def _containerd(storage: Storage, snapshot: Snapshot, found: Holdings) -> None:
    base, snapshotter = storage.containerd, storage.snapshotter
    if not base or not snapshotter:
        found.doubt("containerd's folder is not at any place that is known")
        return
    graph = _database(storage.really(f"{base}/io.containerd.metadata.v1.bolt/meta.db"), lambda top: _graph(top, storage), found)
    numbers = _database(f"{snapshotter}/metadata.db", _numbers, found)
    if numbers is None and not any(_names(folder, found) for folder in storage.layer_folders()):
        numbers = {}  # it makes its database with its first snapshot
    if graph is None or numbers is None:
        found.doubt(f"the records of containerd are not all in {base}")
        return
    holders = graph.holders(
        {image.id for image in snapshot.images},
        {container.id for container in snapshot.containers},
        {record.id for record in snapshot.build_cache},
    )
    ours = set(graph.snapshots.values())
    for key, number in numbers.items():
        if key in ours:
            continue
        words = f"layer of {_OTHERS}"
        found.add(LAYER, number.ident, _layer_places(storage, number.ident), NOBODY, "other_users", words=words)
    for name, full in graph.snapshots.items():
        if full not in numbers:
            continue
        number = numbers[full]
        who = holders.get(("s", name), set())
        depth = graph.depth(name)
        container = name[: -len(_INIT)] if name.endswith(_INIT) else name
        # What was committed from a container stands on its init layer, and keeps that one alone.
        writable = not number.committed or (container != name and who == holders.get(("s", container)))
        account = found.add(
            WRITABLE_LAYER if writable else LAYER, container if writable else number.ident, _layer_places(storage, number.ident),
            found.group(*who), "containers" if writable and any(holder.startswith(CONTAINER) for holder in who) else "",
            # The init layer never changes, but the one that it shares the account with does.
            final=not writable, words="snapshot that nothing refers to", depth=depth,
        )
        if number.committed and number.size is not None:
            found.logical[account] = number.size
    found.chains = _chains(storage.at(f"buildkit/containerd-{storage.driver}/metadata_v2.db"), snapshot)
    blobs = f"{storage.content}/blobs"
    for digest in graph.content:
        kind, _colon, value = digest.partition(":")
        if _DIGEST.fullmatch(digest):
            who = holders.get(("c", digest), set())
            found.add("content", digest, [(f"{blobs}/{kind}", value)], found.group(*who), final=True, words="content that nothing refers to")
    for digest, namespace in graph.elsewhere.items():
        kind, _colon, value = digest.partition(":")
        if digest not in graph.content and _DIGEST.fullmatch(digest):
            # BuildKit writes down there what was built, how long it took and what was said.
            history = namespace == f"{storage.namespace}_history"
            found.add(
                "content", digest, [(f"{blobs}/{kind}", value)], found.group(ENGINE) if history else NOBODY,
                "engine_metadata" if history else "other_users", final=True, words=f"content of {_OTHERS}",
            )


def _chains(database: str, snapshot: Snapshot) -> dict[str, str]:
    """The layer of images that each of BuildKit's records is, or else stands on: either makes it a shared one there."""
    try:
        records = bolt.read(database, _records)
    except (OSError, bolt.BoltError):
        return {}  # whose layers they are says the graph
    found = {}
    for listed in snapshot.build_cache:
        ident, seen = listed.id, set()
        while ident in records and ident not in seen and "cache.chainID" not in records[ident]:
            seen.add(ident)
            ident = records[ident].get("cache.parent", "")
        chain = records.get(ident, {}).get("cache.chainID")
        if chain:
            found[listed.id] = chain
    return found


class _Number(t.NamedTuple):
    """A snapshot's folder by number, whether it is committed, and bytes that its snapshotter counted."""

    ident: str
    committed: bool
    size: int | None


@dataclass
class _Graph:
    """What containerd knows of the engine: each node refers to content ("c") and snapshots ("s").

    ``elsewhere``: content of other namespaces, and whose it is. Only the records are apart, the files lie together.
    """

    content: dict[str, list[tuple[str, str]]]
    snapshots: dict[str, str]
    parents: dict[str, str]
    images: dict[str, list[str]]
    leases: dict[str, list[tuple[str, str]]]
    labelled: set[tuple[str, str]]
    elsewhere: dict[str, str]

    def holders(
        self, images: t.Collection[str], containers: t.Collection[str], records: t.Collection[str]
    ) -> dict[tuple[str, str], set[str]]:
        found: dict[tuple[str, str], set[str]] = defaultdict(set)
        for target in self.images:
            who = IMAGE + target if target in images else ENGINE
            self._mark(("c", target), who, found)
        for lease, resources in self.leases.items():
            # The engine's lease for a container has the container's id, BuildKit's the record's (cache/refs.go).
            name = re.sub("-(variants|view)$", "", lease)
            who = CONTAINER + lease if lease in containers else CACHE + name if name in records else ENGINE
            for resource in resources:
                self._mark(resource, who, found)
        for name in self.snapshots:
            plain = name[: -len(_INIT)] if name.endswith(_INIT) else name
            if plain in containers:
                self._mark(("s", name), CONTAINER + plain, found)
        for node in self.labelled:
            self._mark(node, ENGINE, found)
        return found

    def depth(self, name: str) -> int:
        count = 0
        while name and count < 500:
            name = self.parents.get(name, "")
            count += 1
        return count

    def _mark(self, node: tuple[str, str], who: str, found: dict[tuple[str, str], set[str]]) -> None:
        todo = [node]
        while todo:
            current = todo.pop()
            if who in found[current]:
                continue
            found[current].add(who)
            kind, name = current
            if kind == "flat":
                found[("c", name)].add(who)
            elif kind == "c":
                todo += self.content.get(name, [])
            elif self.parents.get(name):
                todo.append(("s", self.parents[name]))


def _graph(top: bolt.Bucket, storage: Storage) -> _Graph:
    snapshotter = storage.driver
    graph = _Graph({}, {}, {}, defaultdict(list), {}, set(), {})
    for key, other in (top.bucket(b"v1") or bolt.empty()).buckets():
        if _string(key) != storage.namespace:
            for raw, _blob in (other.bucket(b"content", b"blob") or bolt.empty()).buckets():
                graph.elsewhere[_string(raw)] = _string(key)
    space = top.bucket(b"v1", storage.namespace.encode())
    for kind, bucket in space.buckets() if space else ():
        if kind == b"images":
            for name, image in bucket.buckets():
                target = image.bucket(b"target")
                digest = _string(target.values().get(b"digest", b"")) if target else ""
                graph.images[digest].append(_string(name))
        elif kind == b"content":
            for raw, blob in (bucket.bucket(b"blob") or bolt.empty()).buckets():
                graph.content[_string(raw)] = _references(blob, snapshotter)
                _note_root(graph, ("c", _string(raw)), blob)
        elif kind == b"snapshots":
            for name, entry in (bucket.bucket(snapshotter.encode()) or bolt.empty()).buckets():
                values = _strings(entry)
                graph.snapshots[_string(name)] = values.get("name", "")
                graph.parents[_string(name)] = values.get("parent", "")
                _note_root(graph, ("s", _string(name)), entry)
        elif kind == b"leases":
            for name, lease in bucket.buckets():
                labels = _strings(lease.bucket(b"labels") or bolt.empty())
                expires = parse_time(labels.get("containerd.io/gc.expire"))
                if expires is None or expires > time.time():
                    graph.leases[_string(name)] = _resources(lease, snapshotter, "containerd.io/gc.flat" in labels)
    return graph


def _references(node: bolt.Bucket, snapshotter: str) -> list[tuple[str, str]]:
    """What a node's labels keep alive: gc.ref.content[.x] and gc.ref.snapshot.<snapshotter>[/x]."""
    found = []
    for key, value in (node.bucket(b"labels") or bolt.empty()).values().items():
        name = _string(key)
        if name.startswith("containerd.io/gc.ref.content"):
            found.append(("c", _string(value)))
        elif re.match(rf"containerd\.io/gc\.ref\.snapshot\.{re.escape(snapshotter)}(/|$)", name):
            found.append(("s", _string(value)))
    return found


def _note_root(graph: _Graph, node: tuple[str, str], entry: bolt.Bucket) -> None:
    labels = (entry.bucket(b"labels") or bolt.empty()).values()
    if b"containerd.io/gc.root" in labels:
        graph.labelled.add(node)


def _resources(lease: bolt.Bucket, snapshotter: str, flat: bool) -> list[tuple[str, str]]:
    """What a lease keeps. A flat one keeps its content, and not what that refers to."""
    found = [("flat" if flat else "c", _string(name)) for name, _value in (lease.bucket(b"content") or bolt.empty()).items()]
    inner = lease.bucket(b"snapshots", snapshotter.encode()) or bolt.empty()
    return found + [("s", _string(name)) for name, _value in inner.items()]


def _numbers(top: bolt.Bucket) -> dict[str, _Number]:
    found = {}
    for name, entry in (top.bucket(b"v1", b"snapshots") or bolt.empty()).buckets():
        values = entry.values()
        size = _varint(values[b"size"], zigzag=True) if b"size" in values else None
        found[_string(name)] = _Number(
            str(_varint(values.get(b"id", b"\0"))), _varint(values.get(b"kind", b"\0")) == 3, size
        )
    return found


def _varint(raw: bytes, zigzag: bool = False) -> int:
    """Go's binary.Uvarint, or binary.Varint."""
    value = shift = 0
    for byte in raw[:10]:  # binary.MaxVarintLen64
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            break
    return (value >> 1) ^ -(value & 1) if zigzag else value


# -- reading ---------------------------------------------------------------------------------------


_Answer = t.TypeVar("_Answer")


def _database(path: str, look: t.Callable[[bolt.Bucket], _Answer], found: Holdings) -> _Answer | None:
    """What ``look`` makes of a database; None, and a doubt if it is there and cannot be read."""
    try:
        return bolt.read(path, look)
    except FileNotFoundError:
        return None
    except OSError as error:
        found.doubt(f"{path}: {error.strerror}")
    except bolt.BoltError as error:
        found.doubt(str(error))
    return None


def _names(folder: str, found: Holdings) -> list[str]:
    """The names in a folder; none if it is not there, and a doubt if it cannot be read."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        found.doubt(f"{folder}: {error.strerror}")
    return []


def _text(path: str, found: Holdings, form: re.Pattern[str] | None = None) -> str:
    """The one line of a record; "" if it is not there, and a doubt if it cannot be read or does not have that form."""
    try:
        text = read_head(path, 200).decode("ascii", "replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        found.doubt(f"{path}: {error.strerror}")
        return ""
    if form and not form.fullmatch(text):
        found.doubt(f"{path} is damaged")
        return ""
    return text


def _string(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _strings(bucket: bolt.Bucket) -> dict[str, str]:
    return {_string(key): _string(value) for key, value in bucket.values().items()}
