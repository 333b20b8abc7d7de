# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A report's parts out of one survey: categories, their largest items, what could be had back, and deleted files that are open.

``logical`` is the engine's figure (a sum of file lengths, which may be half of what a disk allocates), ``disk`` are
allocated blocks. A figure that nobody has is None.
"""

from __future__ import annotations

import heapq
import typing as t
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import chain

from ansible_collections.fleetclean.docker.plugins.module_utils import (
    attribution,
    history,
    last_use,
    log_holders,
    measure,
    open_deleted,
    places,
    snapshot,
    words,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.accounts import (
    CACHE,
    CONTAINER,
    IMAGE,
    LEFTOVER,
    LOG,
    VOLUME,
    VOLUME_DATA,
    WRITABLE_LAYER,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.ledger import PREFIXES, Name
from ansible_collections.fleetclean.docker.plugins.module_utils.plan import CacheWish, ContainerWish, ImageWish, VolumeWish, Wishes
from ansible_collections.fleetclean.docker.plugins.module_utils.policy import decide
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Storage, has_layers_elsewhere
from ansible_collections.fleetclean.docker.plugins.module_utils.walk import Sizes

Item = t.Dict[str, t.Any]

#: What else is reported with what was asked for: a container's folder with the containers, and so on.
_ALONG = {"containers": ("container_metadata",), "leftovers": ("tmp", "engine_metadata", "other_users", "unattributed")}
#: Ways to have space back: docker_clean's own policies, without any age.
_WAYS: tuple[tuple[str, Wishes, str], ...] = (
    ("stopped_containers", Wishes(containers=ContainerWish()), "docker_clean: containers: {}"),
    ("dangling_images", Wishes(images=ImageWish()), "docker_clean: images: {scope: dangling}"),
    ("unused_images", Wishes(images=ImageWish(scope="unused")), "docker_clean: images: {scope: unused}"),
    ("anonymous_volumes", Wishes(volumes=VolumeWish()), "docker_clean: volumes: {scope: anonymous}"),
    ("unused_volumes", Wishes(volumes=VolumeWish(scope="unused")), "docker_clean: volumes: {scope: unused}"),
    ("unused_build_cache", Wishes(build_cache=CacheWish()), "docker_clean: build_cache: {scope: unused}"),
    (
        "everything_unused",
        Wishes(
            containers=ContainerWish(),
            images=ImageWish(scope="unused"),
            volumes=VolumeWish(scope="unused"),
            build_cache=CacheWish(),
        ),
        "docker_clean: containers: {}, images: {scope: unused}, volumes: {scope: unused}, build_cache: {scope: unused}",
    ),
)
_FREES_DELETED_LOGS = "docker_log_truncate: deleted: true"
_WAY_OF = {
    "containers": "stopped_containers", "images": "unused_images", "volumes": "unused_volumes",
    "build_cache": "unused_build_cache", "logs": "logs", "leftovers": "leftovers",
}


@dataclass
class _Count:
    """What is said of all items of a category, of which only the largest are shown."""

    items: int = 0
    active: int = 0
    logical: int | None = None

    def of(self, items: t.Iterable[Item]) -> t.Iterator[Item]:
        """The same items, each counted as it is taken: of thousands there is no room for all."""
        for item in items:
            self.items += 1
            self.active += bool(item["active"])
            if item["logical_bytes"] is not None:
                self.logical = (self.logical or 0) + item["logical_bytes"]
            yield item


def _largest(items: t.Iterable[Item], top: int) -> list[Item]:
    """The ``top`` largest items; less than 0: all."""
    def order(item: Item) -> tuple[int, str]:
        return -item["size"], item["name"]

    if top < 0:
        return sorted(items, key=order)
    # All have to come by, to be counted, also where none is shown.
    return heapq.nsmallest(max(1, top), items, key=order)[:top]


class Report:
    """The result's parts, out of one survey."""

    def __init__(
        self,
        survey: attribution.Survey,
        storage: Storage | None,
        exact: bool,
        top: int,
        memory: history.Memory,
    ) -> None:
        self._survey = survey
        self._used_at = last_use.last_uses(survey.snapshot, memory.used)
        self._came, self._came_between = last_use.arrivals(survey.snapshot), memory.came
        self._known_since = last_use.known_since(survey.snapshot, memory.watched)
        self._storage = storage
        self._exact = exact
        self._top = top
        self._ledger = survey.ledger
        self._accounts = survey.ledger.accounts
        self._now = survey.snapshot.now
        self._used_by: dict[str, list[str]] = defaultdict(list)
        for container in survey.snapshot.containers:
            self._used_by[IMAGE + container.image_id].append(container.name)
            for name in container.volumes:
                self._used_by[VOLUME + name].append(container.name)

    def fill(self, result: dict[str, t.Any], include: t.Collection[str]) -> None:
        survey = self._survey
        ways = self._ways()
        asked = [name for name in attribution.CATEGORIES if name in include or any(name in _ALONG.get(i, ()) for i in include)]
        here = self._storage is not None
        for category in asked:
            if not here and category not in ("images", "containers", "volumes", "build_cache"):
                continue  # of another machine's disk nothing is known
            if category == "unattributed" and not self._exact:
                continue
            if category in survey.snapshot.unreadable:
                continue
            if category == "other_users" and not any(True for _account in self._accounts.of_category(category)):
                continue
            count = _Count()
            items = count.of(self._items(category))
            if category == "images":
                items = chain(items, self._held_by_the_engine())
            result["largest"][category] = _largest(items, self._top)
            result["usage"][category] = self._usage(category, count, ways)
        result["reclaimable"] = ways
        result["totals"] = self._totals(ways)
        found = survey.found
        if self._exact and found:
            result["roots"] = [
                {"path": words.printable(path), "disk_bytes": size, "subvolume_bytes": found.subvolumes.get(path, 0)}
                for path, size in survey.roots.items()
            ]
        result["unread"] = unread(survey)
        result["mounts"] = [{"path": words.printable(mount.path), "type": mount.type} for mount in found.mounts] if found else []
        result["measured"] = {
            "mode": "exact" if self._exact else "fast",
            "seconds": round(survey.seconds, 3),
            "processes": survey.processes,
            "files": survey.files,
            "walked_bytes": survey.walked_bytes,
            "remembered_layers": survey.remembered,
            "remembered_bytes": survey.remembered_bytes,
        }

    # -- sums ----------------------------------------------------------------------------------

    def _usage(self, category: str, count: _Count, ways: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        sizes = self._ledger.in_category(category)
        measured = category in self._survey.measured
        way = _WAY_OF.get(category)
        return {
            "count": count.items,
            "active": count.active,
            "logical_bytes": self._logical(category, count),
            "disk_bytes": sizes.disk if measured else None,
            "apparent_bytes": sizes.apparent if measured else None,
            "shared_bytes": sizes.shared if measured else None,
            "reclaimable_bytes": ways[way]["bytes"] if way else 0,
        }

    def _logical(self, category: str, count: _Count) -> int | None:
        if category == "images":
            snapshot = self._survey.snapshot
            if snapshot.layer_bytes:
                held = {layer for image in snapshot.images for layer in image.layers}
                return sum(snapshot.layer_bytes.get(layer, 0) for layer in held)
            return snapshot.layers_bytes
        return count.logical

    def _totals(self, ways: t.Mapping[str, t.Any]) -> dict[str, int | None]:
        totals: dict[str, int | None] = dict.fromkeys(("disk_bytes", "attributed_bytes", "unattributed_bytes", "shared_bytes"))
        if self._exact:
            sums = {category: self._ledger.in_category(category) for category in attribution.CATEGORIES}
            disk = sum(sizes.disk for sizes in sums.values())
            totals = {
                "disk_bytes": disk,
                "attributed_bytes": disk - sums["unattributed"].disk,
                "unattributed_bytes": sums["unattributed"].disk,
                "shared_bytes": sum(sizes.shared for sizes in sums.values()),
            }
        # A log that goes with its container is counted with it.
        staying = ways["logs"]["bytes"] - self._gone_logs
        return {**totals, "reclaimable_bytes": ways["everything_unused"]["bytes"] + max(0, staying) + ways["leftovers"]["bytes"]}

    def _ways(self) -> dict[str, dict[str, t.Any]]:
        """What each way of cleaning would give back, by the very policy that docker_clean goes by."""
        found: dict[str, dict[str, t.Any]] = {}
        for name, wishes, means in _WAYS:
            plan = decide(self._survey.snapshot, wishes, sharers=self._survey.sharers)
            count = sum(1 for step in plan.steps if step.kind in PREFIXES)
            gone = (PREFIXES[step.kind] + step.id for step in plan.steps if step.kind in PREFIXES)
            found[name] = {"bytes": self._ledger.freed(gone), "count": count, "means": means}
            if name == "everything_unused":
                self._gone_logs = sum(self._log_bytes(step.id) for step in plan.steps if step.kind == "container")
            del plan  # there is no room for two of them
        logs = [self._log_bytes(container.id) for container in self._survey.snapshot.containers]
        means = "docker_log_truncate: keep: 0, rotated: remove, stale_readers: allow"
        found["logs"] = {"bytes": sum(logs), "count": sum(1 for size in logs if size), "means": means}
        found["tmp"] = {
            "bytes": self._ledger.in_category("tmp").frees,
            "count": sum(1 for account in self._accounts.of_category("tmp") if self._accounts.words(account)),
            "means": "the engine's next start: what is half made and nobody goes on with goes then",
        }
        sizes = self._ledger.in_category("leftovers")
        found["leftovers"] = {
            "bytes": sizes.frees, "count": len(self._survey.leftovers),
            "means": "a restart of the engine takes what it knows itself; the rest has to be looked at",
        }
        return found

    def _log_bytes(self, ident: str) -> int:
        """What cutting a log and removing its rotated files gives back: their blocks."""
        sizes = self._ledger.size(LOG, ident)
        return sizes.disk - sizes.shared

    # -- items ---------------------------------------------------------------------------------

    def _items(self, category: str) -> t.Iterator[Item]:
        return getattr(self, f"_{category}", self._accounts_of)(category)

    def _item(
        self, category: str, ident: str, name: str, logical: int | None, account: Name | int | None = None, holder: str = "",
        moment: float | None = None, active: bool = False, used_by: t.Sequence[str] = (), along: t.Iterable[str] = (), **more: t.Any,
    ) -> Item:
        """One entry: by its own account, or by all accounts of its holder. ``along``: holders that go with it."""
        if account is None:
            sizes = self._ledger.of(holder)
        else:
            sizes = self._ledger.of_number(account) if isinstance(account, int) else self._ledger.size(*account)
        measured = category in self._survey.measured and self._storage is not None
        alone = self._ledger.alone(holder, *along) if account is None else sizes.frees
        if account is None and category == "containers":
            sizes = self._ledger.size(WRITABLE_LAYER, ident)
        disk = sizes.disk if measured else None
        return {
            "id": words.printable(ident),
            "name": words.printable(name),
            "size": (sizes.disk - sizes.shared if category != "images" else sizes.disk) if measured else logical or 0,
            "logical_bytes": logical,
            "disk_bytes": disk,
            "shared_bytes": sizes.shared if measured else None,
            "reclaimable_bytes": 0 if active else alone,
            "age": self._age(moment),
            "active": active,
            "used_by": [words.printable(user) for user in used_by],
            **more,
        }

    def _age(self, moment: float | None) -> int | None:
        """Whole seconds since ``moment``; 0 for one to come: the engine's clock may have gone backwards."""
        return max(0, int(self._now - moment)) if moment else None

    def _images(self, category: str) -> t.Iterator[Item]:
        by_id = {image.id: image for image in self._survey.snapshot.images}
        parents = Counter(image.parent for image in by_id.values())
        for image in self._survey.snapshot.images:
            if not image.tags and image.id in parents:
                continue  # a step of a build, with its image's layers
            used_by = self._used_by.get(IMAGE + image.id, [])
            evidence = last_use.evidence_of(image, self._used_at, self._came, self._came_between, self._known_since)
            last_used = self._age(evidence.moment)
            yield self._item(
                category, image.id, ", ".join(image.tags) or (image.digests[0] if image.digests else "<none>"), image.bytes,
                holder=IMAGE + image.id, moment=image.created, active=bool(used_by), used_by=used_by,
                along=self._steps_below(image, by_id, parents),
                tags=[words.printable(tag) for tag in image.tags],
                digests=[words.printable(digest) for digest in image.digests],
                dangling=image.dangling, layers=len(image.layers),
                last_used=last_used if self._exact else None, evidence=evidence.words if self._exact else None,
            )

    def _held_by_the_engine(self) -> list[Item]:
        """What counts as images and no image has: layers in the making, of a pull that was killed, a driver's pool of all."""
        accounts = self._accounts
        size = sum(
            self._ledger.of_number(account).disk
            for account in accounts.of_category("images")
            if IMAGE not in accounts.kinds_in(accounts.group_number(account))
        )
        if not size or "images" not in self._survey.measured:
            return []
        item = self._item("images", "engine", "layers that no image names", None, active=True, used_by=["the engine"])
        nothing = {"tags": [], "digests": [], "dangling": False, "layers": None, "last_used": None, "evidence": None}
        return [{**item, "size": size, "disk_bytes": size, **nothing}]

    def _steps_below(
        self, image: snapshot.Image, by_id: t.Mapping[str, snapshot.Image], children: t.Mapping[str, int]
    ) -> list[str]:
        """The steps of an image's build that the engine removes with it: without a name, a user, or another child."""
        found: list[str] = []
        step = by_id.get(image.parent)
        while step and not (step.tags or step.digests or children[step.id] > 1 or IMAGE + step.id in (*self._used_by, *found)):
            found.append(IMAGE + step.id)
            step = by_id.get(step.parent)
        return found

    def _containers(self, category: str) -> t.Iterator[Item]:
        return (
            self._item(
                category, container.id, container.name, container.bytes, holder=CONTAINER + container.id,
                moment=container.created, active=container.live, used_by=[container.name] if container.live else [],
                state=container.state, image=words.printable(container.image_name), virtual_bytes=container.virtual_bytes,
            )
            for container in self._survey.snapshot.containers
        )

    def _volumes(self, category: str) -> t.Iterator[Item]:
        for volume in self._survey.snapshot.volumes:
            used_by = self._used_by.get(VOLUME + volume.name, [])
            account = (VOLUME_DATA, volume.name)
            # Of another driver's volume nobody here knows a size.
            there = self._accounts.find(*account) is not None
            logical = volume.bytes
            if logical is None and there and category in self._survey.measured and self._storage:
                logical = self._ledger.size(*account).apparent
            item = self._item(
                category, volume.name, volume.name, logical, account=account, moment=volume.created, active=bool(used_by),
                used_by=used_by, driver=volume.driver, anonymous=volume.anonymous, dangling=not used_by,
                path=words.printable(f"{self._storage.root}/volumes/{volume.name}/_data") if self._storage and there else None,
            )
            yield item if there else {**item, "size": 0, "disk_bytes": None, "shared_bytes": None}

    def _build_cache(self, category: str) -> t.Iterator[Item]:
        for record in self._survey.snapshot.build_cache:
            holder = CACHE + record.id
            item = self._item(
                category, record.id, f"{record.type or 'record'} {record.id}", record.bytes, holder=holder,
                moment=record.created, active=record.in_use, type=record.type, in_use=record.in_use, shared=record.shared,
                last_used=self._age(record.last_used),
            )
            if item["disk_bytes"] is not None:
                own = self._ledger.of_category(holder, category)
                item.update(size=own.disk - own.shared, disk_bytes=own.disk, shared_bytes=own.shared)
            yield item

    def _logs(self, category: str) -> t.Iterator[Item]:
        for container in self._survey.snapshot.containers:
            forms = self._survey.log_files.get(container.id)
            if not forms or not self._storage:
                continue
            sizes = self._ledger.size(LOG, container.id)
            names = [form.replace("{0}", container.id) for form in forms]
            item = self._item(
                category, container.id, container.name, sizes.apparent, account=(LOG, container.id), moment=container.created,
                active=container.live, used_by=[container.name],
                path=words.printable(f"{self._storage.containers}/{container.id}/{min(names, key=len)}"), files=len(names),
            )
            # Also while its container runs: it is cut in place.
            item.update(
                size=sizes.disk - sizes.shared, disk_bytes=sizes.disk, shared_bytes=sizes.shared,
                reclaimable_bytes=self._log_bytes(container.id),
            )
            yield item

    def _leftovers(self, category: str) -> t.Iterator[Item]:
        return (
            self._item(
                category, left.path, left.path, None, account=(LEFTOVER, left.path),
                moment=left.changed or None, kind=left.kind, reason=left.reason, path=words.printable(left.path),
            )
            for left in self._survey.leftovers
        )

    def _accounts_of(self, category: str) -> t.Iterator[Item]:
        """Categories that no object of the engine stands for: by account."""
        return (
            self._item(category, self._accounts.name(account), self._accounts.words(account) or self._accounts.name(account), None, account=account)
            for account in self._accounts.of_category(category)
            if self._ledger.of_number(account).inodes
        )


# -- deleted files ---------------------------------------------------------------------------------


def deleted_open(
    result: dict[str, t.Any], storage: Storage, top: int, survey: attribution.Survey | None = None, exact: bool = False
) -> dict[str, t.Any]:
    """Return ``deleted_open``; add to filesystems, totals and ways what follows from it.

    Every filesystem that has something of the engine's is looked at.
    """
    devices = {disk.device: disk.path for disk in places.disks(storage)}
    found = open_deleted.find(devices, storage.layer_folders(), top)
    # What docker_log_truncate would empty: the logs that the engine still writes.
    held = log_holders.Holders(storage.root, storage.containers, storage.volumes).logs() if found.counts else []
    logs = {log.inode: log.bytes for log in held if log.deleted and log.bytes}
    attributed = _attributed(survey, storage) if survey and exact and not has_layers_elsewhere(storage) else {}
    for row in result["filesystems"]:
        device = measure.device(row["mount_point"])
        row.update(_beside_the_files(row, attributed.get(device), found.bytes.get(device, 0)))
    if survey:
        result["reclaimable"]["deleted_logs"] = {"bytes": sum(logs.values()), "count": len(logs), "means": _FREES_DELETED_LOGS}
        result["totals"]["reclaimable_bytes"] += sum(logs.values())
    names = {container.id: container.name for container in survey.snapshot.containers} if survey else {}
    mount_points = {device: measure.filesystem(place).mount_point for device, place in devices.items()}
    return {
        "count": sum(found.counts.values()),
        "bytes": sum(found.bytes.values()),
        "unread": found.unread,
        "largest": [_deleted_file(entry, names, mount_points, entry.inode in logs) for entry in found.largest],
    }


def _deleted_file(
    entry: open_deleted.DeletedFile, names: t.Mapping[str, str], mount_points: t.Mapping[str, str], is_log: bool
) -> Item:
    holder = entry.holder
    return {
        "path": words.printable(entry.path),
        "bytes": entry.bytes,
        "pid": holder.pid,
        "command": words.printable(holder.command),
        "user_id": holder.user,
        "unit": words.printable(holder.unit) or None,
        "container": words.printable(names.get(holder.container, "")) or None,
        "container_id": holder.container or None,
        "mount_point": words.printable(mount_points[entry.device]),
        "how": "mapped" if entry.is_mapped else "descriptor",
        "processes": entry.processes,
        "means": _FREES_DELETED_LOGS if is_log else None,
    }


def _beside_the_files(filesystem: t.Mapping[str, t.Any], attributed: int | None, deleted: int) -> dict[str, int | None]:
    """What of a filesystem's used bytes is in the engine's files, in deleted ones, and in neither."""
    rest = None if attributed is None else filesystem["used"] - attributed - deleted
    # Less than nothing: the filesystem counts late (btrfs), or files share blocks that could not be told apart.
    return {"attributed_bytes": attributed, "deleted_open_bytes": deleted, "unaccounted_bytes": None if rest is None or rest < 0 else rest}


def _attributed(survey: attribution.Survey, storage: Storage) -> dict[str, int]:
    """What was found to be in files, by filesystem. Blocks that files share count once."""
    root = measure.device(storage.root)
    sums: dict[str, Sizes] = defaultdict(Sizes)
    for account in survey.ledger.accounts:
        sums[survey.ledger.accounts.disk(account) or root].add(survey.ledger.of_number(account))
    return {device: min(sizes.disk, sizes.frees) if sizes.shared else sizes.disk for device, sizes in sums.items()}


def unread(survey: attribution.Survey | None) -> dict[str, t.Any]:
    found = survey.found if survey else None
    if found is None:
        return {"count": 0, "vanished": 0, "examples": []}
    examples = [{"path": words.printable(path), "error": error} for path, error in found.examples]
    return {"count": found.unread, "vanished": found.vanished, "examples": examples}
