# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was wished, and what comes of it: wishes, steps, and the plan they make. Pure data; policy.py decides."""

from __future__ import annotations

import typing as t
from collections import Counter, defaultdict
from dataclasses import dataclass

#: Why a step was not done, or is not in the plan any more.
NOT_REACHED = "enough is free without it"
_FREES_NOTHING = "frees nothing, and a target is to be met"
PARENT_STAYS = "parent of an image that stays"


@dataclass(frozen=True)
class ContainerWish:
    states: tuple[str, ...] = ("created", "exited", "dead")
    older_than: int | None = None
    keep: tuple[str, ...] = ()
    volumes: bool = False
    compose: bool = False


@dataclass(frozen=True)
class ImageWish:
    scope: str = "dangling"
    older_than: int | None = None
    dangling_older_than: int | None = None
    keep: tuple[str, ...] = ()
    keep_latest: int = 0
    keep_local: bool = False


@dataclass(frozen=True)
class VolumeWish:
    scope: str = "anonymous"
    older_than: int | None = None
    keep: tuple[str, ...] = ()
    drivers: tuple[str, ...] = ("local",)


@dataclass(frozen=True)
class NetworkWish:
    older_than: int | None = None
    keep: tuple[str, ...] = ()


@dataclass(frozen=True)
class CacheWish:
    scope: str = "unused"
    older_than: int | None = None
    keep_storage: int | None = None


@dataclass(frozen=True)
class Wishes:
    """What a user asked for; a section that is None is not touched. Ages in seconds, sizes in bytes."""

    containers: ContainerWish | None = None
    images: ImageWish | None = None
    volumes: VolumeWish | None = None
    networks: NetworkWish | None = None
    build_cache: CacheWish | None = None
    keep_labels: tuple[str, ...] = ("fleetclean.keep",)
    orchestrated: str = "keep"
    #: Order for a run that stops as soon as enough is free: the cheapest loss first.
    cheapest_first: bool = False


@dataclass(frozen=True)
class Kept:
    kind: str
    id: str
    name: str
    bytes: int | None
    reason: str


@dataclass(frozen=True)
class Step:
    """One removal. ``id`` is what the engine is asked for, ``name`` what people call it.

    ``expects`` is what has to be still so right before the act: a container's state; the tags beside which an image has
    no others; a volume's creation. ``beside``: one of these tags still has to be the image's, when another goes and it stays.
    ``users`` are the containers from under which an image is taken by ``force``, with any other it stays; of a container those that
    use something of it, and have to be gone before.
    ``children``: images that have to be gone before this one, or its names, can go.
    ``waits``: not before all steps of its kind that stand before it (a parent after its children).
    ``unused_for``: seconds; what was used since stays (build cache, whose builder checks it; networks, by the engine's events).
    ``of``: the container right behind which a volume goes, as a part of it.
    ``frees``: whether anything of it is on the data root's filesystem, so that its going can help to meet a target.
    """

    kind: str
    id: str
    name: str
    bytes: int | None
    reason: str
    force: bool = False
    expects: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    children: tuple[str, ...] = ()
    waits: bool = False
    unused_for: int = 0
    of: str = ""
    inodes: int = 0
    frees: bool = True

    def kept(self, reason: str) -> Kept:
        """What it is if it is not done."""
        return Kept(self.kind, self.id, self.name, self.bytes, reason)


@dataclass(frozen=True)
class Plan:
    steps: tuple[Step, ...] = ()
    kept: tuple[Kept, ...] = ()

    @property
    def bytes(self) -> int:
        """The bytes of all steps whose size is known."""
        return sum(step.bytes or 0 for step in self.steps)

    def kept_by_reason(self) -> list[dict[str, t.Any]]:
        """Kind, reason, count and bytes of what stays, the most objects first."""
        counts: Counter[tuple[str, str]] = Counter()
        sizes: dict[tuple[str, str], int] = defaultdict(int)
        for kept in self.kept:
            counts[(kept.kind, kept.reason)] += 1
            sizes[(kept.kind, kept.reason)] += kept.bytes or 0
        return [
            {"kind": kind, "reason": reason, "count": count, "bytes": sizes[(kind, reason)]}
            for (kind, reason), count in counts.most_common()
        ]

    def until(self, needed: int, needed_inodes: int = 0) -> tuple[Plan, Plan]:
        """Split the plan: the shortest beginning that frees enough bytes and inodes by the known sizes, and the rest.

        What can never free anything is in neither.
        """
        images = {step.id for step in self.steps if step.kind == "image"}
        useful = [
            step
            for step in self.steps
            if step.frees and step.kind != "network" and (step.kind != "tag" or step.id in images)
        ]
        taken = 0
        while taken < len(useful) and (needed > 0 or needed_inodes > 0):
            needed -= useful[taken].bytes or 0
            needed_inodes -= useful[taken].inodes
            taken += 1
        chosen = set(map(id, useful))
        useless = tuple(step.kept(_FREES_NOTHING) for step in self.steps if id(step) not in chosen)
        return Plan(tuple(useful[:taken]), self.kept + useless), Plan(tuple(useful[taken:]))

    def as_kept(self, reason: str) -> tuple[Kept, ...]:
        """Its steps, as what stays for one reason."""
        return tuple(step.kept(reason) for step in self.steps)
