# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Data roots for the tests, laid out as the engine, BuildKit and containerd lay them out."""

from __future__ import annotations

import json
import os
import typing as t
from pathlib import Path

import boltfile
from ansible_collections.fleetclean.docker.plugins.module_utils import layers
from ansible_collections.fleetclean.docker.plugins.module_utils.layers import Holdings
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Storage
from worlds import hexadecimal, world


def ident(chain: str) -> str:
    """The folder that a test's layer store keeps a layer in."""
    return hexadecimal(f"folder of {chain}")


class GraphRoot:
    """A data root with a graph driver, laid out as ``layer/filestore.go`` does it."""

    def __init__(self, root: Path, driver: str = "overlay2") -> None:
        self.storage = Storage(str(root), driver, "graphdriver", {})
        self.root = root
        self.records = root / "image" / driver / "layerdb"
        (self.records / "sha256").mkdir(parents=True)
        (self.records / "mounts").mkdir()

    def layer(self, chain: str, parent: str = "", size: int = 100, folder: str = "") -> str:
        place = self.records / "sha256" / chain.partition(":")[2]
        place.mkdir()
        (place / "cache-id").write_text(folder or ident(chain))
        (place / "diff").write_text(chain)
        (place / "size").write_text(str(size))
        if parent:
            (place / "parent").write_text(parent)
        return self.folder(folder or ident(chain))

    def folder(self, name: str) -> str:
        (path,) = self.storage.layer_paths(name)
        os.makedirs(f"{path}/diff", exist_ok=True)
        return path

    def mount(self, name: str, parent: str = "", init: bool = True) -> tuple[str, str]:
        place = self.records / "mounts" / name
        place.mkdir()
        mine = hexadecimal(f"writable layer of {name}")
        (place / "mount-id").write_text(mine)
        if init:
            (place / "init-id").write_text(f"{mine}-init")
        if parent:
            (place / "parent").write_text(parent)
        return self.folder(mine), self.folder(f"{mine}-init")

    def buildkit(self, snapshots: boltfile.Tree, records: t.Mapping[str, t.Mapping[str, t.Any]], name: str = "metadata_v2.db") -> None:
        main = {
            key.encode(): {field.encode(): json.dumps({"value": value}).encode() for field, value in fields.items()}
            for key, fields in records.items()
        }
        boltfile.write(self.root / "buildkit/snapshots.db", snapshots)
        boltfile.write(self.root / "buildkit" / name, {b"_main": main, b"_external": {}})

    def read(self, *objects: t.Any, **more: t.Any) -> Holdings:
        return layers.read(self.storage, world(*objects, layer_bytes=self.storage.layer_sizes(), **more))


def varint(number: int) -> bytes:
    found = b""
    while number >= 0x80:
        found += bytes([number & 0x7F | 0x80])
        number >>= 7
    return found + bytes([number])


LABEL = "containerd.io/gc."


class ContainerdRoot:
    """A data root with containerd's image store, laid out as ``core/metadata`` and ``core/snapshots/storage`` do it."""

    def __init__(self, root: Path, snapshotter: str = "overlayfs") -> None:
        self.storage = Storage(str(root), snapshotter, "containerd", {})
        self.base = root / "containerd/daemon"
        self.snapshotter = self.base / f"io.containerd.snapshotter.v1.{snapshotter}"
        self.blobs = self.base / "io.containerd.content.v1.content/blobs/sha256"
        self.name = snapshotter.encode()
        self.spaces: dict[str, dict[bytes, t.Any]] = {}
        self.numbers: dict[bytes, dict[bytes, bytes]] = {}
        self.blobs.mkdir(parents=True)
        (self.snapshotter / "snapshots").mkdir(parents=True)

    def space(self, name: str = "moby") -> dict[bytes, t.Any]:
        return self.spaces.setdefault(
            name, {b"images": {}, b"content": {b"blob": {}}, b"snapshots": {self.name: {}}, b"leases": {}, b"containers": {}}
        )

    def image(self, name: str, digest: str) -> None:
        self.space()[b"images"][name.encode()] = {b"target": {b"digest": digest.encode(), b"size": varint(5)}, b"createdat": b"x"}

    def blob(self, digest: str, space: str = "moby", **refs: str) -> str:
        labels = {f"{LABEL}{key.replace('_', '.')}".encode(): value.encode() for key, value in refs.items()}
        self.space(space)[b"content"][b"blob"][digest.encode()] = {b"size": varint(7), b"labels": labels}
        (self.blobs / digest[7:]).write_text("x")
        return f"{self.blobs}/{digest[7:]}"

    def snapshot(self, name: str, parent: str = "", kind: int = 3, space: str = "moby", size: int = 300, **labels: str) -> str:
        number = len(self.numbers) + 1
        full = f"{space}/{number}/{name}"
        tables: dict[bytes, t.Any] = {b"name": full.encode(), b"createdat": b"x", b"children": {}}
        if parent:
            tables[b"parent"] = parent.encode()
        if labels:
            tables[b"labels"] = {f"{LABEL}{key}".encode(): value.encode() for key, value in labels.items()}
        self.space(space)[b"snapshots"][self.name][name.encode()] = tables
        self.numbers[full.encode()] = {b"id": varint(number), b"kind": bytes([kind]), b"size": varint(size * 2)}
        (self.snapshotter / "snapshots" / str(number) / "fs").mkdir(parents=True)
        return f"{self.snapshotter}/snapshots/{number}"

    def lease(self, name: str, content: t.Sequence[str] = (), snapshots: t.Sequence[str] = (), **labels: str) -> None:
        self.space()[b"leases"][name.encode()] = {
            b"createdat": b"x",
            b"labels": {f"{LABEL}{key}".encode(): value.encode() for key, value in labels.items()},
            b"content": {digest.encode(): b"" for digest in content},
            b"snapshots": {self.name: {snapshot.encode(): b"" for snapshot in snapshots}},
        }

    def read(self, *objects: t.Any) -> Holdings:
        self.space()
        tree = {b"v1": {name.encode(): space for name, space in self.spaces.items()}}
        boltfile.write(self.base / "io.containerd.metadata.v1.bolt/meta.db", tree)
        boltfile.write(self.snapshotter / "metadata.db", {b"v1": {b"snapshots": self.numbers, b"parents": {}}})
        return layers.read(self.storage, world(*objects))
