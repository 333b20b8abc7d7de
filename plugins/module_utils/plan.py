# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was wished, and what comes of it: wishes, steps, and the plan they make. Pure data; policy.py decides."""

from __future__ import annotations

import typing as t
from collections import Counter, defaultdict

#: Why a step was not done, or is not in the plan any more.
NOT_REACHED = "enough is free without it"
_FREES_NOTHING = "frees nothing, and a target is to be met"
_FREES_ELSEWHERE = "frees nothing on a filesystem that has less than its target"
PARENT_STAYS = "parent of an image that stays"


class ContainerWish(t.NamedTuple):
    """``only`` and ``only_labels``: None means all, an empty list none; so in the other sections."""

    states: tuple[str, ...] = ("created", "exited", "dead")
    older_than: int | None = None
    keep: tuple[str, ...] = ()
    volumes: bool = False
    compose: bool = False
    only: tuple[str, ...] | None = None
    only_labels: tuple[str, ...] | None = None


class ImageWish(t.NamedTuple):
    scope: str = "dangling"
    older_than: int | None = None
    dangling_older_than: int | None = None
    keep: tuple[str, ...] = ()
    keep_latest: int = 0
    keep_local: bool = False
    only: tuple[str, ...] | None = None
    only_labels: tuple[str, ...] | None = None


class VolumeWish(t.NamedTuple):
    scope: str = "anonymous"
    older_than: int | None = None
    keep: tuple[str, ...] = ()
    drivers: tuple[str, ...] = ("local",)
    only: tuple[str, ...] | None = None
    only_labels: tuple[str, ...] | None = None


class NetworkWish(t.NamedTuple):
    older_than: int | None = None
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None
    only_labels: tuple[str, ...] | None = None


class CacheWish(t.NamedTuple):
    scope: str = "unused"
    older_than: int | None = None
    keep_storage: int | None = None


class Wishes(t.NamedTuple):
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

    @property
    def label_patterns(self) -> tuple[str, ...]:
        """All patterns that objects' labels are compared with."""
        sections = (self.containers, self.images, self.volumes, self.networks)
        return self.keep_labels + tuple(pattern for section in sections if section for pattern in section.only_labels or ())


class Kept(t.NamedTuple):
    kind: str
    id: str
    name: str
    bytes: int | None
    reason: str


class Freed(t.NamedTuple):
    """What comes free on one filesystem, which its device tells from others.

    ``counts``: whether it is for that, too, that something would go. What lies elsewhere has a few records there.
    """

    device: str
    bytes: int
    inodes: int
    counts: bool = True


class Step(t.NamedTuple):
    """One removal. ``id`` is what the engine is asked for, ``name`` what people call it.

    ``expects`` is what has to be still so right before the act: a container's state; the tags beside which an image has
    no others; a volume's creation. ``beside``: one of these tags or digests still has to be the image's, when another goes and it stays.
    ``users`` are the containers from under which an image is taken by ``force``, with any other it stays; of a container those that
    use something of it, and have to be gone before.
    ``children``: images that have to be gone before this one, or its names, can go.
    ``waits``: not before all steps of its kind that stand before it (a parent after its children).
    ``unused_for``: seconds; what was used since stays (build cache, whose builder checks it; networks, by the engine's events).
    ``of``: the container right behind which a volume goes, as a part of it.
    ``bytes``, ``inodes``: what comes free with it at its place in the plan. ``frees``: the same on each filesystem that has anything of it, so
    that its going can help to meet a target there, be it together with others; None if that was not measured.
    ``after``: containers that have to be gone before this can go. ``logical_bytes``: the engine's figure, where ``bytes`` is not it.
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
    frees: tuple[Freed, ...] | None = None
    after: tuple[str, ...] = ()
    logical_bytes: int | None = None

    def helps(self, devices: t.Collection[str]) -> bool:
        """Whether its going can free something on one of these filesystems."""
        return bool(devices) if self.frees is None else any(freed.counts and freed.device in devices for freed in self.frees)

    def kept(self, reason: str) -> Kept:
        """What it is if it is not done."""
        return Kept(self.kind, self.id, self.name, self.logical_bytes if self.bytes is None else self.bytes, reason)


class Plan(t.NamedTuple):
    steps: tuple[Step, ...] = ()
    kept: tuple[Kept, ...] = ()

    @property
    def bytes(self) -> int:
        """The bytes of all steps whose size is known."""
        return sum(step.bytes or 0 for step in self.steps)

    @property
    def logical_bytes(self) -> int | None:
        """The sum of the engine's figures; None if it has none of some object."""
        sizes = [step.logical_bytes for step in self.steps if step.kind not in ("tag", "network")]
        return None if None in sizes else sum(size or 0 for size in sizes)

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
        """Split the plan where all is on one filesystem: the shortest beginning that frees enough by the known sizes, and the rest."""
        return self.until_each({"": (needed, needed_inodes)})

    def until_each(self, lacking: t.Mapping[str, tuple[int, int]], sized: t.Callable[[Step], Step] | None = None) -> tuple[Plan, Plan]:
        """Split the plan: the fewest steps, in its order, that free enough by the known sizes wherever something lacks, and the rest.

        What frees nothing there is in neither, unless what frees something has to wait for it.

        :param lacking: bytes and inodes by the filesystem's device.
        :param sized: called with one step after the other as they are chosen: the step with what comes free with it then. Left out, steps
            are taken to free what they say.
        """
        chosen = _Selection(self.steps, lacking, sized or (lambda step: step))
        chosen.take_until_enough()
        first = tuple(chosen.taken)
        chosen.take_the_rest()
        return Plan(first, self.kept + chosen.useless()), Plan(tuple(chosen.taken[len(first):]))

    def as_kept(self, reason: str) -> tuple[Kept, ...]:
        """Its steps, as what stays for one reason."""
        return tuple(step.kept(reason) for step in self.steps)


class _Selection:
    """Steps that are taken one by one, each with those that it has to wait for right before it."""

    def __init__(self, steps: t.Sequence[Step], lacking: t.Mapping[str, tuple[int, int]], sized: t.Callable[[Step], Step]) -> None:
        images = {step.id for step in steps if step.kind == "image"}
        self.taken: list[Step] = []
        self._steps = steps
        self._able = [step.kind != "network" and (step.kind != "tag" or step.id in images) for step in steps]
        self._low = {device for device, (size, inodes) in lacking.items() if size > 0 or inodes > 0}
        self._lacking = dict(lacking)
        self._sized = sized
        self._gone: set[int] = set()
        self._tags: dict[str, list[int]] = defaultdict(list)
        self._objects: dict[str, int] = {}
        for number, step in enumerate(steps):
            if step.kind == "tag":
                self._tags[step.id].append(number)
            elif step.kind in ("container", "image"):
                self._objects[step.id] = number

    def take_until_enough(self) -> None:
        """Take what helps, as long as something lacks."""
        for number, step in enumerate(self._steps):
            lacks = {device for device, (size, inodes) in self._lacking.items() if size > 0 or inodes > 0}
            if not lacks:
                return
            self._consider(number, step, lacks)

    def take_the_rest(self) -> None:
        """Take all that helps where something lacked at first; where nothing did, all that frees anything."""
        devices = self._low or {*self._lacking, *(freed.device for step in self._steps for freed in step.frees or ())}
        for number, step in enumerate(self._steps):
            self._consider(number, step, devices)

    def useless(self) -> tuple[Kept, ...]:
        """What was not taken, with the reason."""
        return tuple(
            step.kept(_FREES_ELSEWHERE if self._able[number] and step.frees else _FREES_NOTHING)
            for number, step in enumerate(self._steps)
            if number not in self._gone
        )

    def _consider(self, number: int, step: Step, devices: t.Collection[str]) -> None:
        # A tag frees nothing by itself: it goes with its image.
        if self._able[number] and step.kind != "tag" and step.helps(devices):
            self._take(number, [device for device in sorted(devices) if step.helps({device})])

    def _take(self, number: int, helped: t.Sequence[str]) -> None:
        if number in self._gone:
            return
        self._gone.add(number)
        step = self._steps[number]
        users = step.users if step.kind == "container" else ()
        before = [self._objects[ident] for ident in (*step.children, *step.after, *users, step.of) if ident in self._objects]
        for other in sorted(before + (self._tags[step.id] if step.kind == "image" else [])):
            self._take(other, helped)
        step = self._sized(step)
        for device in self._lacking:
            size, inodes = self._lacking[device]
            freed = [(step.bytes or 0, step.inodes)] if step.frees is None else [(f.bytes, f.inodes) for f in step.frees if f.device == device]
            self._lacking[device] = (size - sum(f[0] for f in freed), inodes - sum(f[1] for f in freed))
        if step.frees is not None:
            # What goes for another's sake helps where that does.
            known = {freed.device for freed in step.frees if freed.counts}
            step = step._replace(frees=step.frees + tuple(Freed(device, 0, 0) for device in helped if device not in known))
        self.taken.append(step)
