# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose bytes they are: usage by category, and the largest items, from the cheapest source of each figure.

``logical`` is the engine's figure (a sum of file lengths, which may be half of what a disk allocates),
``disk`` are allocated blocks. A figure that nobody gave is None.
"""

from __future__ import annotations

import typing as t
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from ansible_collections.fleetclean.docker.plugins.module_utils import logs
from ansible_collections.fleetclean.docker.plugins.module_utils.engine import Engine
from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import (
    Snapshot,
    Wanted,
    take,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Storage


@dataclass(frozen=True)
class Item:
    """One object. ``used_by`` names what holds it; ``reclaimable`` bytes come free if it goes alone."""

    id: str
    name: str
    logical: int | None
    disk: int | None
    reclaimable: int | None
    moment: float | None
    active: bool
    used_by: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return self.disk if self.disk is not None else self.logical or 0


@dataclass
class Category:
    """All items of a kind; the sums differ from the items' where items share bytes."""

    items: list[Item] = field(default_factory=list)
    logical: int | None = None
    reclaimable: int | None = None

    def usage(self) -> dict[str, t.Any]:
        return {
            "count": len(self.items),
            "active": sum(1 for item in self.items if item.active),
            "logical_bytes": self.logical if self.logical is not None else _sum(item.logical for item in self.items),
            "disk_bytes": _sum(item.disk for item in self.items),
            "reclaimable_bytes": (
                self.reclaimable if self.reclaimable is not None else _sum(item.reclaimable for item in self.items)
            ),
        }

    def largest(self, top: int, now: float) -> list[dict[str, t.Any]]:
        found = sorted(self.items, key=lambda item: (-item.size, item.name))
        return [
            {
                "id": item.id,
                "name": item.name,
                "size": item.size,
                "age": int(now - item.moment) if item.moment else None,
                "used_by": list(item.used_by),
            }
            for item in (found if top < 0 else found[:top])
        ]


def attribute(
    engine: Engine, storage: Storage | None, include: t.Collection[str]
) -> tuple[dict[str, Category], Snapshot]:
    """Return the categories asked for, and the snapshot behind them.

    :param storage: the engine's own storage if it is proven to be here; without it there are no logs.
    :param include: images, containers, volumes, build_cache, logs.
    """
    snapshot = take(
        engine,
        Wanted(
            images="images" in include,
            volumes="volumes" in include,
            build_cache="build_cache" in include,
            # One walk by the engine for the writable layers and the volumes.
            sizes=bool({"containers", "volumes", "images"} & set(include)),
        ),
        storage,
    )
    found: dict[str, Category] = {}
    if "images" in include:
        usage = {} if snapshot.layer_bytes or snapshot.unreadable else engine.disk_usage("image")
        found["images"] = _images(snapshot, usage)
    if "containers" in include:
        found["containers"] = _containers(snapshot)
    if "volumes" in include:
        found["volumes"] = _volumes(snapshot)
    if "build_cache" in include and "build_cache" not in snapshot.unreadable:
        found["build_cache"] = _cache(snapshot)
    if "logs" in include and storage:
        found["logs"] = _logs(snapshot, storage)
    return found, snapshot


def _images(snapshot: Snapshot, usage: dict[str, t.Any]) -> Category:
    used_by: dict[str, list[str]] = defaultdict(list)
    for container in snapshot.containers:
        used_by[container.image_id].append(container.name)
    parents = {image.parent for image in snapshot.images}
    shown = [image for image in snapshot.images if image.tags or image.id not in parents]
    holders = Counter(layer for image in shown for layer in image.layers)
    used_layers = {layer for image in shown if used_by[image.id] for layer in image.layers}
    category = Category()
    if snapshot.layer_bytes:
        category.logical = sum(snapshot.layer_bytes.get(layer, 0) for layer in holders)
        category.reclaimable = sum(
            snapshot.layer_bytes.get(layer, 0) for layer in holders if layer not in used_layers
        )
        shared = {}
    else:
        category.logical = usage.get("LayersSize")
        shared = {str(raw.get("Id")): max(0, raw.get("SharedSize") or 0) for raw in usage.get("Images") or []}
    for image in shown:
        if snapshot.layer_bytes:
            alone = sum(snapshot.layer_bytes.get(layer, 0) for layer in image.layers if holders[layer] == 1)
        else:
            alone = max(0, (image.bytes or 0) - shared.get(image.id, 0))
        category.items.append(
            Item(
                id=image.id,
                name=", ".join(image.tags) or "<none>",
                logical=image.bytes,
                disk=None,
                reclaimable=0 if used_by[image.id] else alone,
                moment=image.created,
                active=bool(used_by[image.id]),
                used_by=tuple(used_by[image.id]),
            )
        )
    return category


def _containers(snapshot: Snapshot) -> Category:
    return Category(
        [
            Item(
                id=container.id,
                name=container.name,
                logical=container.bytes,
                disk=None,
                reclaimable=0 if container.live else container.bytes,
                moment=container.created,
                active=container.live,
                used_by=(container.state,),
            )
            for container in snapshot.containers
        ]
    )


def _volumes(snapshot: Snapshot) -> Category:
    used_by: dict[str, list[str]] = defaultdict(list)
    for container in snapshot.containers:
        for name in container.volumes:
            used_by[name].append(container.name)
    return Category(
        [
            Item(
                id=volume.name,
                name=volume.name,
                logical=volume.bytes,
                disk=None,
                reclaimable=0 if used_by[volume.name] else volume.bytes,
                moment=volume.created,
                active=bool(used_by[volume.name]),
                used_by=tuple(used_by[volume.name]),
            )
            for volume in snapshot.volumes
        ]
    )


def _cache(snapshot: Snapshot) -> Category:
    return Category(
        [
            Item(
                id=record.id,
                name=f"{record.type or 'record'} {record.id}",
                logical=record.bytes,
                disk=None,
                reclaimable=0 if record.in_use or record.shared else record.bytes,
                moment=record.last_used or record.created,
                active=record.in_use,
            )
            for record in snapshot.build_cache
        ]
    )


def _logs(snapshot: Snapshot, storage: Storage) -> Category:
    category = Category()
    for container in snapshot.containers:
        length, blocks = logs.sizes(storage.root, container.id)
        if blocks is not None:
            category.items.append(
                Item(
                    id=container.id,
                    name=container.name,
                    logical=length,
                    disk=blocks,
                    reclaimable=blocks,
                    moment=container.created,
                    active=container.live,
                    used_by=(container.name,),
                )
            )
    return category


def _sum(sizes: t.Iterable[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return sum(known) if known else None
