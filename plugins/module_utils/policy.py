# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes and what stays: a pure function from a snapshot and wishes to a plan.

Neither the engine nor the disk is known here. The same plan is returned in check mode and carried out
in a real run, so whatever decides something has to be in the snapshot. Each object of a section
that was asked for ends up once: as a step, or among what is kept, with the reason in words.

Rules that hold whatever is wished:

* Containers are decided first. What only they hold (an image, an anonymous volume, a network) counts as
  unused in the same plan.
* An image that stays keeps all its tags if it is in use; one whose child stays cannot go at all
  (the engine refuses), so it is not tried.
* No data is no permission: an object whose age is unknown stays when an age was asked for.
"""

from __future__ import annotations

import functools
import re
import typing as t
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from ansible_collections.fleetclean.docker.plugins.module_utils.last_use import (
    Evidence,
    Watched,
    arrivals,
    evidence_of,
    known_since,
    last_uses,
    network_uses,
    volume_uses,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.managers import (
    BUILDER_STATE,
    COMPOSE,
    Managers,
    Template,
    manager_of,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.names import (
    container_names,
    fits_image,
    glob_fits,
    has_label,
    image_names,
    matches,
    mounted_by,
    names_digest,
    repository,
    spellings,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.plan import (
    PARENT_STAYS,
    CacheWish,
    ContainerWish,
    ImageWish,
    Kept,
    NetworkWish,
    Plan,
    Step,
    VolumeWish,
    Wishes,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.selection import (
    names_container,
    names_image,
    names_object,
    names_tag,
    unselected_digests,
    why_unselected,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import (
    LIVE_STATES,
    SERVICES,
    VOLUME,
    CacheRecord,
    Container,
    Hold,
    Image,
    Network,
    Snapshot,
    Volume,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.units import (
    say_duration,
    say_limit,
)

#: Records of the build cache that the engine's own plain prune leaves alone.
_INNER_CACHE = ("internal", "frontend")
#: At its start an engine takes each folder beside its volumes for one of them. These are what filesystems and their tools keep at the top of a
#: disk (``lost+found``, ``.snapshots``, ``$RECYCLE.BIN``, ``@eaDir``): names that the engine gives no volume (moby, volume/local, validateName).
_NO_VOLUME = re.compile(r"lost\+found|[.@#$][a-zA-Z0-9][^/]*")
#: With graph drivers the engine keeps no more than that of either: then the longer of two ages counts.
_DIGESTS_ALONE = "known by its digest alone (pulled by it, or its tag moved on)"


@dataclass
class _Draft:
    """A plan in the making."""

    now: float
    wishes: Wishes
    managers: Managers
    steps: dict[str, list[Step]] = field(default_factory=lambda: defaultdict(list))
    kept: list[Kept] = field(default_factory=list)
    #: What on the host keeps objects, by object.
    holds: dict[str, list[Hold]] = field(default_factory=dict)
    #: Ids of the containers that go.
    going: set[str] = field(default_factory=set)
    #: Ids of containers that stay because others need them: to start again they need all that they have.
    needed: set[str] = field(default_factory=set)
    #: Volumes that containers have which all go.
    released: set[str] = field(default_factory=set)

    @property
    def leaves_managed(self) -> bool:
        """Whether what somebody else looks after is left to them."""
        return self.wishes.orchestrated == "keep"

    def keep(self, kind: str, ident: str, name: str, size: int | None, reason: str) -> None:
        self.kept.append(Kept(kind, ident, name, size, reason))

    def protected(self, labels: dict[str, str]) -> str | None:
        """The reason why labels keep an object, or None."""
        for pattern in self.wishes.keep_labels:
            if has_label(labels, pattern):
                return f"labelled {pattern}"
        return None

    def held(self, kind: str, ident: str) -> str | None:
        """The reason why a mount or a path of the host keeps an object, or None. What ends with the containers that go keeps nothing."""
        for hold in self.holds.get(f"{kind}:{ident}", ()):
            through, _colon, name = hold.via.partition(":")
            ends = {
                "container": name in self.going,
                "volume": name in self.released,
                "swarm": not self.leaves_managed,
            }.get(through, False)
            if not ends:
                return hold.reason
        return None

    def too_young(self, moment: float | None, older_than: int | None) -> str | None:
        """The reason why an age keeps an object, or None."""
        if not older_than:
            return None  # 0 is no age at all: what a user writes to take everything
        if moment is None:
            return "its age is unknown"
        if self.now - moment < older_than:
            return f"younger than {say_limit(older_than)}"
        return None

    def ago(self, moment: float | None) -> str:
        return say_duration(self.now - moment) if moment is not None else "an unknown time"


def decide(
    snapshot: Snapshot,
    wishes: Wishes,
    last_seen_used: t.Mapping[str, float] | None = None,
    sharers: t.Mapping[str, t.Collection[str]] | None = None,
    came_between: t.Mapping[str, float] | None = None,
    watched: Watched | None = None,
) -> Plan:
    """Return what goes, in which order and why, and what stays and why.

    :param last_seen_used: when earlier runs saw things in use, seconds since 1970: by image id, by
        volume name behind ``VOLUME``, and by network id behind ``NETWORK``.
    :param sharers: by build cache record the images that have its layer: once they are gone it is shared no more. Without
        it such a record stays, and goes when it is looked at again.
    :param came_between: by image id when it was first seen, if an earlier run did not see it.
    :param watched: when earlier runs saw the engine's events without a gap.
    """
    draft = _Draft(snapshot.now, wishes, Managers(snapshot.images))
    for hold in snapshot.holds:
        draft.holds.setdefault(hold.holder, []).append(hold)
    staying = _decide_containers(draft, snapshot)
    since = known_since(snapshot, watched)
    if wishes.networks:
        _decide_networks(draft, snapshot, staying, wishes.networks, last_seen_used or {}, since)
    if wishes.images:
        _decide_images(draft, snapshot, staying, wishes.images, last_seen_used or {}, came_between or {}, since)
    _decide_volumes(draft, snapshot, staying, last_seen_used or {})
    if wishes.build_cache:
        going = {step.id for group in ("dangling", "image") for step in draft.steps[group] if step.kind == "image"}
        alone = {record for record, images in (sharers or {}).items() if images and going.issuperset(images)}
        records = [record._replace(shared=record.shared and record.id not in alone) for record in snapshot.build_cache]
        _decide_cache(draft, records, wishes.build_cache)
        if wishes.cheapest_first:
            _hold_back(draft, {record.id for record in snapshot.build_cache if record.shared}, snapshot.build_cache)
    order: tuple[str, ...] = ("container", "network", "dangling", "image", "volume", "build_cache")
    if wishes.cheapest_first:
        order = ("container", "network", "dangling", "build_cache", "image", "shared_cache", "volume")
    steps = tuple(step for group in order for step in draft.steps[group])
    return Plan(_with_image_bytes(steps, snapshot), tuple(draft.kept))


# -- containers ------------------------------------------------------------------------------


def _decide_containers(draft: _Draft, snapshot: Snapshot) -> list[Container]:
    """Plan the containers; return those that stay."""
    wish = draft.wishes.containers
    if wish is None:
        return list(snapshot.containers)
    ordered = sorted(snapshot.containers, key=lambda c: (c.since or 0, c.id))
    reasons = {container.id: _why_container_stays(draft, container, wish) for container in ordered}
    users = _users_of(snapshot.containers)
    draft.going = {ident for ident, reason in reasons.items() if not reason}
    _keep_what_is_needed(draft, ordered, reasons, users, wish)
    staying = [container for container in ordered if container.id not in draft.going]
    for container in staying:
        draft.keep("container", container.id, container.name, container.bytes, reasons[container.id] or "")
    draft.released = {name for container in ordered if container.id in draft.going for name in container.volumes}
    draft.released.difference_update(name for container in staying for name in container.volumes)
    gone: set[str] = set()
    for container in _users_first(ordered, users, draft.going):
        # In a circle the first one goes before its user: nobody can start either of them without the other.
        above = tuple(dict.fromkeys(user.id for user, _uses in users[container.id] if user.id in gone))
        gone.add(container.id)
        draft.steps["container"].append(
            Step(
                "container",
                container.id,
                container.name,
                container.bytes,
                _why_container_goes(draft, container),
                force=container.live,
                expects=_killable(wish) if container.live else condition(container),
                users=above,
                waits=bool(above),
            )
        )
    return staying


#: By container, who cannot start without it, and what of it that is.
_UsersOf = t.Mapping[str, t.Sequence[t.Tuple[Container, str]]]


def _users_of(containers: t.Sequence[Container]) -> _UsersOf:
    known = {name: container for container in containers for name in (container.name, *container.names)}
    known.update((container.id, container) for container in containers)
    users: dict[str, list[tuple[Container, str]]] = defaultdict(list)
    for container in containers:
        for given, what in container.stands_on:
            # Engines keep what was given for --volumes-from: a name, an id, or as much of it as was enough.
            meant = [known[given].id] if given in known else [one.id for one in containers if len(given) >= 4 and one.id.startswith(given)]
            for ident in meant:
                if ident != container.id:
                    users[ident].append((container, _USES[what]))
        for owner, path in container.reaches:
            kind, _colon, ident = owner.partition(":")
            if kind == "container" and ident != container.id:
                users[ident].append((container, f"binds {path}"))
        # A container that is linked to has names such as web/database besides its own.
        for name in container.names:
            user = known.get(name.partition("/")[0]) if "/" in name else None
            if user and user.id != container.id:
                users[container.id].append((user, _USES["link"]))
    return users


_USES = {
    "network namespace": "uses its network namespace",
    "IPC namespace": "uses its IPC namespace",
    "PID namespace": "uses its PID namespace",
    "volumes": "has its volumes (--volumes-from)",
    "link": "is linked to it",
}


def _keep_what_is_needed(
    draft: _Draft, containers: t.Sequence[Container], reasons: dict[str, str | None], users: _UsersOf, wish: ContainerWish
) -> None:
    """Let containers stay that others which stay need, and those that a mount keeps; until there is nothing more to find."""
    found = True
    while found:
        found = False
        running = draft.managers.projects(
            container for container in containers if container.id not in draft.going and (container.live or _starts_again(draft, container))
        )
        for container in containers:
            if container.id not in draft.going:
                continue
            reason = next((f"container {user.name} {uses}" for user, uses in users[container.id] if user.id not in draft.going), None)
            project = draft.managers.project_of_service(container)
            if not reason and not wish.compose and project in running:
                reason = f"of compose project {project}, which is running"
            reason = reason or draft.held("container", container.id)
            if reason:
                reasons[container.id], found = reason, True
                draft.needed.add(container.id)
                draft.going.discard(container.id)


def _users_first(containers: t.Sequence[Container], users: _UsersOf, going: t.Collection[str]) -> list[Container]:
    """The containers that go, each behind those that use something of it: a run that is cut off leaves none without what it needs."""
    done: dict[str, Container] = {}
    begun: set[str] = set()
    for first in containers:
        stack = [(first, False)]
        while stack:
            container, expanded = stack.pop()
            if expanded:
                done[container.id] = container
            elif container.id in going and container.id not in begun:
                begun.add(container.id)
                stack.append((container, True))
                stack += [(user, False) for user, _uses in reversed(users[container.id])]
    return list(done.values())


def condition(container: Container) -> tuple[str, ...]:
    """What has to be unchanged for a decision on a stopped container to hold: it may have run again meanwhile."""
    return (container.state, repr(container.finished))


def is_unchanged(container: Container, expected: tuple[str, ...]) -> bool:
    """Whether a stopped container is as it was when it was decided on.

    One that only became dead is: a removal of it began and failed. An engine whose disk is full or read-only cannot write that down, so
    its list and its records go on calling the container created or exited.
    """
    if container.state == "dead" and expected[0] in ("created", "exited"):
        container = container._replace(state=expected[0])
    return condition(container) == expected


def _killable(wish: ContainerWish) -> tuple[str, ...]:
    """The states in which a container that lived when it was decided on may go. One that stopped meanwhile has an age of its own."""
    return tuple(state for state in wish.states if state in LIVE_STATES or not wish.older_than)


def _why_container_is_not_meant(container: Container, wish: ContainerWish) -> str | None:
    def named(patterns: t.Sequence[str]) -> bool:
        return names_container(patterns, container.id, container.names or (container.name,))

    return why_unselected("containers", wish, container.labels, named)


def _why_container_stays(draft: _Draft, container: Container, wish: ContainerWish) -> str | None:
    unselected = _why_container_is_not_meant(container, wish)
    if unselected:
        return unselected
    if container.state not in wish.states:
        return container.state if container.live else f"its state is {container.state}"
    if matches(wish.keep, container.id, container.names or (container.name,)):
        return "named in containers.keep"
    manager = draft.managers.of_container(container)
    if manager and draft.leaves_managed:
        return f"managed by {manager}"
    if _starts_again(draft, container) and "running" not in wish.states:
        return f"restart policy {container.restarts}: it starts again with the engine"
    # How long a container that runs has been running says nothing about its worth.
    moment = container.created if container.live else container.since
    return draft.protected(container.labels) or draft.too_young(moment, wish.older_than)


def _starts_again(draft: _Draft, container: Container) -> bool:
    """Whether a stopped container is as good as one that runs: the engine starts it with itself (and none that never ran)."""
    return bool(container.restarts) and container.state in ("exited", "dead") and draft.leaves_managed


def _why_container_goes(draft: _Draft, container: Container) -> str:
    if container.live:
        return f"{container.state}, killed as containers.states asks"
    if container.state == "created":
        return f"never started, created {draft.ago(container.created)} ago"
    if container.finished is None:
        return container.state
    return f"{container.state} {draft.ago(container.finished)} ago"


def _looked_after(draft: _Draft, labels: t.Mapping[str, str], projects: t.Collection[str]) -> str | None:
    """The reason why a network or a volume stays for somebody who will want it again, or None."""
    manager = manager_of(labels)
    if manager and draft.leaves_managed:
        return f"managed by {manager}"
    if labels.get(COMPOSE) in projects:
        return f"of compose project {labels[COMPOSE]}, which has containers"
    return None


def _services_unknown(draft: _Draft, snapshot: Snapshot) -> str | None:
    """The reason why all stays that a swarm service may use, where nobody can tell what they use; or None."""
    if draft.leaves_managed and SERVICES in snapshot.unreadable:
        return "perhaps used by a swarm service: they could not be listed"
    return None


# -- images ----------------------------------------------------------------------------------


def _decide_images(
    draft: _Draft,
    snapshot: Snapshot,
    staying: list[Container],
    wish: ImageWish,
    last_seen_used: t.Mapping[str, float],
    came_between: t.Mapping[str, float],
    since: float | None,
) -> None:
    services = snapshot.service_images if draft.leaves_managed else ()
    users = _Users(staying, [container for container in staying if _wanted_by_name(draft, container)], services)
    used_at, came = last_uses(snapshot, last_seen_used), arrivals(snapshot)
    newest = _newest_tags(snapshot.images, wish.keep_latest)
    manager = draft.managers.of_host(snapshot.containers) if draft.leaves_managed else None
    unsure = _services_unknown(draft, snapshot)
    children: dict[str, list[str]] = defaultdict(list)
    for image in snapshot.images:
        if image.parent:
            children[image.parent].append(image.id)
    going: set[str] = set()
    dangling, tagged = [], []
    with_tagged: set[str] = set()
    for image in _children_first(snapshot.images, children):
        evidence = evidence_of(image, used_at, came, came_between, since)
        name = _image_name(image)
        mine = children[image.id]
        reason = f"managed by {manager}" if manager else None
        reason = reason or users.hold(image, wish.scope) or draft.held("image", image.id) or unsure
        if not reason and any(child not in going for child in mine):
            reason = PARENT_STAYS
        reason = reason or _why_image_stays(draft, image, wish, evidence.moment, follows=bool(mine))
        if reason != PARENT_STAYS:
            # What has no name and a child may be a step of its build, and as well a base image whose tag moved on.
            reason = why_unselected("images", wish, image.labels, functools.partial(names_image, image=image)) or reason
        names_kept = {} if reason else _why_tags_stay(image, wish, newest)
        if names_kept and len(names_kept) == len(image.tags):
            reason = next(iter(names_kept.values()))
        elif not reason and not names_kept and image.tags and wish.only is not None:
            names_kept = dict.fromkeys(unselected_digests(wish.only, image), "not named in images.only")
        if not reason and names_kept and users.of(image):
            reason = "used by a container"  # it stays anyway: then with all names that a host would pull it by again
        if reason:
            # A parent's bytes are its children's, too: they are counted there.
            draft.keep("image", image.id, name, 0 if reason == PARENT_STAYS else image.bytes, reason)
            continue
        why = _why_image_goes(draft, image, evidence, follows=bool(mine))
        if names_kept:
            # The image stays under these names; only its other names go.
            still = next(iter(names_kept))
            draft.keep("image", image.id, still, image.bytes, names_kept[still])
            steps = [
                Step("tag", image.id, tag, 0, f"{why}; its image stays as {still}", beside=tuple(names_kept))
                for tag in image.tags
                if tag not in names_kept
            ]
        else:
            going.add(image.id)
            under = users.of(image)
            forced = bool(under)
            steps = [
                Step("tag", image.id, tag, 0, f"{why}; its image goes, too", force=forced, expects=image.tags, users=under)
                for tag in image.tags[:-1]
            ]
            steps.append(
                Step("image", image.id, name, image.bytes, why, force=forced, expects=image.tags[-1:], users=under)
            )
        if mine:
            steps = [step._replace(waits=True, children=tuple(mine)) for step in steps]
        # An untagged parent of a tagged image goes after it, so among the tagged ones.
        if not image.dangling or any(child in with_tagged for child in mine):
            with_tagged.add(image.id)
            tagged.append((evidence.moment or 0, image, steps))
        else:
            dangling.append((evidence.moment or 0, image, steps))
    for group, found in (("dangling", dangling), ("image", tagged)):
        draft.steps[group] += _oldest_families_first(found, children)


class _Users:
    """Which images the containers that stay need, and swarm's services."""

    def __init__(
        self, staying: t.Sequence[Container], wanted: t.Sequence[Container], services: t.Collection[str]
    ) -> None:
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for container in staying:
            for name in container_names([container]):
                self._by_name[name].append(container.id)
        self._needed = container_names([*wanted, *(container for container in staying if container.live)])
        # The engine takes a mounted image from under whatever mounts it, and asks nobody.
        self._mounted = mounted_by(staying)
        self._services = {name for given in services for name in spellings(given)}

    def hold(self, image: Image, scope: str) -> str | None:
        """The reason why an image is kept in use. Scope ``all`` passes over stopped containers that nobody asked to keep."""
        names = image_names(image)
        if names & self._needed if scope == "all" else names & self._by_name.keys():
            return "used by a container"
        if self._mounted(image.id, names):
            return "mounted by a container"
        return "used by a swarm service" if names & self._services else None

    def of(self, image: Image) -> tuple[str, ...]:
        """The stopped containers that stay and have it: such an image goes only by force (scope ``all``)."""
        return tuple(dict.fromkeys(ident for name in image_names(image) for ident in self._by_name.get(name, ())))


def _wanted_by_name(draft: _Draft, container: Container) -> bool:
    """Whether a container stays because somebody said so, and not for its state or age alone."""
    wish = draft.wishes.containers
    named = wish and matches(wish.keep, container.id, container.names or (container.name,))
    managed = draft.leaves_managed and draft.managers.of_container(container)
    needed = container.id in draft.needed or (wish and _why_container_is_not_meant(container, wish))
    return bool(named or managed or needed or _starts_again(draft, container) or draft.protected(container.labels))


def _why_image_stays(
    draft: _Draft, image: Image, wish: ImageWish, moment: float | None, follows: bool
) -> str | None:
    # Without a tag, the digests say whose image it is; with tags, each is judged by itself, and a digest only by its own name.
    repositories = [] if image.tags else [digest.partition("@")[0] for digest in image.digests]
    named = any(fits_image(pattern, name) for pattern in wish.keep for name in repositories)
    if named or matches(wish.keep, image.id, ()) or _kept_by_digest(image, wish.keep):
        return "named in images.keep"
    if image.tags and wish.scope == "dangling":
        return "tagged (images.scope is dangling)"
    if image.tags and wish.keep_local and not image.digests:
        return "never pushed or pulled (images.keep_local)"
    if image.tags and wish.keep_local and not image.origin_known:
        return "perhaps never pushed: this image store does not tell (images.keep_local)"
    if image.has_digests_alone and not image.dangling and wish.scope == "dangling":
        return "known by its digest, not dangling (images.scope is dangling)"
    reason = draft.protected(image.labels)
    if reason or (follows and _is_step(image)):
        # A step of a build has no life of its own: it goes with the last of its children.
        return reason
    if image.has_digests_alone and image.dangling:
        reason = draft.too_young(moment, max(wish.older_than or 0, wish.dangling_older_than or 0))
        return f"{_DIGESTS_ALONE}: {reason}" if reason else None
    older_than = wish.older_than
    if image.dangling and wish.dangling_older_than is not None:
        older_than = wish.dangling_older_than
    return draft.too_young(moment, older_than)


def _is_step(image: Image) -> bool:
    """Whether an image that has children may be no more than a step of their build: those never had a name."""
    return not image.tags and not image.digests


def _kept_by_digest(image: Image, patterns: t.Sequence[str]) -> bool:
    """Whether a pattern names one of the image's digests: as ``name@digest``, with a tag before it, or the digest alone."""
    return any(
        names_digest(pattern, own) if "@" in pattern else matches([pattern], own.partition("@")[2], ())
        for pattern in patterns
        for own in image.digests
    )


def _why_tags_stay(image: Image, wish: ImageWish, newest: set[str]) -> dict[str, str]:
    """The tags that stay, each with the reason."""
    kept = {}
    for tag in image.tags:
        family = repository(tag)
        if any(fits_image(pattern, tag) or fits_image(pattern, family) for pattern in wish.keep):
            kept[tag] = "named in images.keep"
        elif tag in newest:
            kept[tag] = f"the newest {wish.keep_latest} of {family}"
        elif wish.only is not None and not names_tag(wish.only, image, tag):
            kept[tag] = "not named in images.only"
    return kept


def _why_image_goes(draft: _Draft, image: Image, evidence: Evidence, follows: bool) -> str:
    if follows and _is_step(image):
        return "parent of images that go"
    unused = f"unused for {draft.ago(evidence.moment)} ({evidence.words})"
    if image.has_digests_alone:
        return f"{_DIGESTS_ALONE if image.dangling else 'known by its digest'}, {unused}"
    return unused if image.tags else f"dangling, {unused}"


def _newest_tags(images: t.Sequence[Image], count: int) -> set[str]:
    if count <= 0:
        return set()
    # An image counts once in each repository, however many tags it has there: app:3 and app:latest are one.
    by_repository: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    # Reproducible builds have no creation of their own: then tagging and arrival tell, and at last the tag itself.
    ages = {image.id: (image.created or 0, image.tagged or 0, image.arrived or 0, max(image.tags, default="")) for image in images}
    for image in images:
        for tag in image.tags:
            by_repository[repository(tag)][image.id].append(tag)
    newest: set[str] = set()
    for found in by_repository.values():
        for ident in sorted(found, key=lambda ident: ages[ident], reverse=True)[:count]:
            newest.update(found[ident])
    return newest


def _image_name(image: Image) -> str:
    if image.tags:
        return image.tags[-1]
    return image.digests[0] if image.digests else image.id


def _children_first(images: t.Sequence[Image], children: t.Mapping[str, list[str]]) -> list[Image]:
    by_id = {image.id: image for image in images}
    done: dict[str, None] = {}
    begun: set[str] = set()
    for image in sorted(images, key=lambda i: i.id):
        stack = [(image.id, False)]
        while stack:
            ident, expanded = stack.pop()
            if expanded:
                done[ident] = None
                continue
            if ident in begun or ident not in by_id:
                continue  # begun and not done: an engine that names parents in a circle
            begun.add(ident)
            stack.append((ident, True))
            stack += [(child, False) for child in children.get(ident, ()) if child not in done]
    return [by_id[ident] for ident in done]


def _oldest_families_first(
    found: list[tuple[float, Image, list[Step]]], children: t.Mapping[str, list[str]]
) -> list[Step]:
    """Least recently used first, but no parent before its children."""
    latest: dict[str, float] = {}
    keyed = []
    for position, (moment, image, steps) in enumerate(found):  # children come first in ``found``
        latest[image.id] = max([moment] + [latest.get(child, 0) for child in children.get(image.id, ())])
        keyed.append((latest[image.id], position, steps))
    return [step for _moment, _position, steps in sorted(keyed, key=lambda k: k[:2]) for step in steps]


def _with_image_bytes(steps: tuple[Step, ...], snapshot: Snapshot) -> tuple[Step, ...]:
    """Give each image the bytes that come free with it at its place in the plan.

    Layers are shared: one comes free with the last image that has it. Without the layer store's
    figures (another machine's engine, containerd's store) the engine's own figure stands.
    """
    layers = {image.id: image.layers for image in snapshot.images}
    if not snapshot.layer_bytes or not any(layers.values()):
        return steps
    holders = Counter(layer for chain in layers.values() for layer in chain)
    sized = []
    for step in steps:
        if step.kind == "image" and layers.get(step.id):
            holders.subtract(layers[step.id])
            freed = sum(snapshot.layer_bytes.get(layer, 0) for layer in layers[step.id] if not holders[layer])
            step = step._replace(bytes=freed)
        sized.append(step)
    return tuple(sized)


# -- volumes, networks, build cache ------------------------------------------------------------


def _decide_volumes(
    draft: _Draft, snapshot: Snapshot, staying: list[Container], last_seen_used: t.Mapping[str, float]
) -> None:
    uses = volume_uses(snapshot)
    wish = draft.wishes.volumes
    used = {name for container in staying for name in container.volumes}
    projects = draft.managers.projects(staying)
    unsure = _services_unknown(draft, snapshot)
    services = [Template(name) for name in snapshot.service_volumes if draft.leaves_managed]
    of_going: dict[str, str] = {}
    if draft.wishes.containers and draft.wishes.containers.volumes:
        stays = {container.id for container in staying}
        for container in snapshot.containers:
            if container.id not in stays:
                of_going.update({name: container.name for name in container.volumes})
    has = {container.id: (*container.volumes, *container.volumes_by_path) for container in snapshot.containers}
    written = {name for container in snapshot.containers if container.live for name in has[container.id]}
    written |= {name[len(VOLUME):] for volume in snapshot.volumes if volume.name in written for name in volume.shows}

    def last_use(volume: Volume) -> float | None:
        # Its folder's last change says little; a container that had it says more.
        seen = (volume.created, volume.changed, uses.get(VOLUME + volume.name), last_seen_used.get(VOLUME + volume.name))
        return max((when for when in seen if when is not None), default=None)

    bound = {owner: f"container {container.name} binds {path}" for container in staying for owner, path in container.reaches}
    ordered = sorted(snapshot.volumes, key=lambda v: (last_use(v) or 0, v.name))
    reasons: dict[str, str | None] = {}
    for volume in ordered:
        goes_along = volume.anonymous and volume.name in of_going
        if wish is None and not goes_along:
            continue
        reason = None if wish is None or goes_along else _why_volume_is_not_meant(volume, wish)
        reason = reason or ("used by a container" if volume.name in used else bound.get(VOLUME + volume.name) or unsure)
        reason = reason or ("used by a swarm service" if any(template.fits(volume.name) for template in services) else None)
        reason = reason or _looked_after(draft, volume.labels, projects)
        reason = reason or _why_volume_stays(draft, volume, wish, goes_along, last_use(volume))
        if not reason and snapshot.volumes_linked and volume.driver.partition("/")[0] == "local":
            reason = "behind a link (the volumes' folder is one), through which the engine removes nothing"
        reasons[volume.name] = reason
    _keep_what_is_shown(snapshot.volumes, reasons)
    reasons.update({name: draft.held("volume", name) for name, reason in reasons.items() if not reason})
    _keep_what_is_shown(snapshot.volumes, reasons)
    along: dict[str, Step] = {}
    for volume in ordered:
        if volume.name not in reasons:
            continue
        if reasons[volume.name]:
            draft.keep("volume", volume.name, volume.name, volume.bytes, reasons[volume.name] or "")
            continue
        # What a container of this plan still writes to changes until that is gone.
        expects = (repr(volume.created),) if volume.created and volume.name not in written else ()
        step = Step("volume", volume.name, volume.name, volume.bytes, "", expects=expects)
        if volume.anonymous and volume.name in of_going:
            along[volume.name] = step._replace(reason=f"anonymous, of container {of_going[volume.name]}")
        else:
            draft.steps["volume"].append(step._replace(reason=_why_volume_goes(draft, volume, last_use(volume))))
    if along:
        _go_along(draft, has, along)


def _keep_what_is_shown(volumes: t.Sequence[Volume], reasons: dict[str, str | None]) -> None:
    """Let volumes stay whose data another one shows that stays; volumes without an entry in ``reasons`` were not asked for, and stay."""
    # Engines list volumes in any order, and check mode is to name the same one as the real run.
    showing = sorted((volume for volume in volumes if volume.shows), key=lambda volume: volume.name)
    found = bool(showing)
    while found:
        found = False
        for volume in showing:
            if reasons.get(volume.name, "not asked for"):
                for shown in (name[len(VOLUME):] for name in volume.shows if name.startswith(VOLUME)):
                    if not reasons.get(shown, "not asked for"):
                        reasons[shown], found = f"volume {volume.name} shows its data", True


def _why_volume_is_not_meant(volume: Volume, wish: VolumeWish) -> str | None:
    def named(patterns: t.Sequence[str]) -> bool:
        return names_object(patterns, volume.name, ()) if volume.anonymous else names_object(patterns, "", (volume.name,))

    return why_unselected("volumes", wish, volume.labels, named)


def _why_volume_goes(draft: _Draft, volume: Volume, moment: float | None) -> str:
    kind = "anonymous" if volume.anonymous else "named"
    if BUILDER_STATE.fullmatch(volume.name):
        kind = "cache of a buildx builder that is gone"
    what = {volume.created: "created", volume.changed: "changed last"}.get(moment, "last seen in use")
    return f"{kind}, used by no container, {what} {draft.ago(moment)} ago"


def _go_along(draft: _Draft, volumes: t.Mapping[str, tuple[str, ...]], along: dict[str, Step]) -> None:
    """Put volumes behind the last container that has them, by name or by a path: once that is gone, nobody could say whose they were.

    That one waits for the others.
    """
    users = Counter(name for step in draft.steps["container"] for name in set(volumes.get(step.id, ())))
    steps: list[Step] = []
    for step in reversed(draft.steps["container"]):
        mine = [along.pop(name)._replace(of=step.id, waits=users[name] > 1) for name in dict.fromkeys(volumes.get(step.id, ())) if name in along]
        steps += [*reversed(mine), step]
    draft.steps["container"] = list(reversed(steps))


def _why_volume_stays(
    draft: _Draft,
    volume: Volume,
    wish: VolumeWish | None,
    goes_along: bool,
    moment: float | None,
) -> str | None:
    """``goes_along``: it is an anonymous volume of a container that goes, and takes no age of its own."""
    if volume.cluster:
        return "a cluster volume"
    if volume.driver.partition("/")[0] == "local" and _NO_VOLUME.fullmatch(volume.name):
        return "no volume of the engine's, but a folder that a filesystem or its tools made there"
    reason = draft.protected(volume.labels)
    drivers = wish.drivers if wish else VolumeWish().drivers
    if not reason and not any(glob_fits(pattern, volume.driver or "local") for pattern in drivers):
        # Its data is elsewhere, so nothing comes free here, and others may have it.
        return f"of volume driver {volume.driver}"
    if reason or wish is None:
        return reason
    if matches(wish.keep, volume.name, (volume.name,)):
        return "named in volumes.keep"
    if goes_along:
        return None
    if wish.scope == "anonymous" and not volume.anonymous and BUILDER_STATE.fullmatch(volume.name):
        return "cache of a buildx builder that is gone (volumes.scope is anonymous)"
    if wish.scope == "anonymous" and not volume.anonymous:
        return "named (volumes.scope is anonymous)"
    return draft.too_young(moment, wish.older_than)


def _decide_networks(
    draft: _Draft,
    snapshot: Snapshot,
    staying: list[Container],
    wish: NetworkWish,
    last_seen_used: t.Mapping[str, float],
    since: float | None,
) -> None:
    used = {name for container in staying for name in container.networks}
    projects = draft.managers.projects(staying)
    uses = network_uses(snapshot, last_seen_used)
    for network in sorted(snapshot.networks, key=lambda n: (n.created or 0, n.id)):
        use = uses.get(network.id)
        named = functools.partial(names_object, ident=network.id, names=(network.name,))
        reason = why_unselected("networks", wish, network.labels, named)
        if reason:
            pass
        elif network.predefined:
            reason = "predefined"
        elif network.swarm:
            reason = "swarm's"
        elif network.name in used or network.id in used:
            # The engine would remove it from under a stopped container, which could not start again.
            reason = "used by a container"
        elif matches(wish.keep, network.id, (network.name,)):
            reason = "named in networks.keep"
        else:
            reason = _looked_after(draft, network.labels, projects)
            reason = reason or draft.protected(network.labels)
            if not reason and wish.older_than:
                reason = _why_age_keeps_network(draft, network, use, wish.older_than)
                reason = reason or _why_uses_are_unknown(draft, snapshot.events_lost, since, wish.older_than)
        if reason:
            draft.keep("network", network.id, network.name, 0, reason)
        else:
            why = f"used by no container, {_network_age(draft, network, use, since)}"
            step = Step("network", network.id, network.name, 0, why, unused_for=wish.older_than or 0)
            draft.steps["network"].append(step)


def _why_age_keeps_network(draft: _Draft, network: Network, use: Evidence | None, older_than: int) -> str | None:
    """The reason why a network's creation or its last use keeps it, or None."""
    if use and use.moment and draft.too_young(use.moment, older_than):
        return f"last used less than {say_limit(older_than)} ago ({use.words})"
    signs = (network.created, use.moment if use else None)
    return draft.too_young(max((sign for sign in signs if sign is not None), default=None), older_than)


def _why_uses_are_unknown(draft: _Draft, events_lost: bool, since: float | None, older_than: int) -> str | None:
    """The reason why no network can be said to be unused for that long, or None.

    Events alone tell when a network was used last, and no network has bytes: where they are lost, it stays.
    """
    if not events_lost or (since is not None and draft.now - since >= older_than):
        return None
    told = "told none of its events" if since is None else f"holds its events of the last {draft.ago(since)} only"
    return f"its last use is not known: the engine {told}"


def _network_age(draft: _Draft, network: Network, use: Evidence | None, since: float | None) -> str:
    """When a network that goes was used last, and by which sign."""
    if use and (use.moment or 0) >= (network.created or 0):
        return f"last used {draft.ago(use.moment)} ago ({use.words})"
    never = since is not None and network.created is not None and since <= network.created
    return f"created {draft.ago(network.created)} ago{', never used' if never else '; no later use is known'}"


def _decide_cache(draft: _Draft, records: t.Sequence[CacheRecord], wish: CacheWish) -> None:
    by_id = {record.id: record for record in records}
    children: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for parent in record.parents:
            children[parent].add(record.id)
    reasons: dict[str, str] = {}
    for record in records:
        reason = _why_cache_stays(draft, record, wish)
        if reason:
            reasons[record.id] = reason
    # What is shared counts only where it can be had: as the builder itself counts (BuildKit, cache/manager.go, prune).
    total = sum(record.bytes or 0 for record in records if wish.scope == "all" or not record.shared)
    enough = wish.keep_storage if wish.keep_storage is not None else -1
    going: set[str] = set()
    # Always the least recently used of those that can go now: a record can once its children have.
    ready = [(_cache_moment(r) or 0, r.id) for r in records if r.id not in reasons and not children[r.id]]
    heapify(ready)
    while ready and total > enough:
        record = by_id[heappop(ready)[1]]
        going.add(record.id)
        total -= record.bytes or 0
        why = f"build cache ({record.type or 'record'}), unused for {draft.ago(_cache_moment(record))}"
        draft.steps["build_cache"].append(
            Step(
                "build_cache",
                record.id,
                record.id,
                record.bytes,
                why,
                waits=bool(children[record.id]),
                unused_for=wish.older_than or 0,
            )
        )
        for above in set(record.parents):
            holder = by_id.get(above)
            if holder and above not in reasons and children[above] <= going:
                heappush(ready, (_cache_moment(holder) or 0, above))
    rest = "within build_cache.keep_storage" if total <= enough else "parent of a record that stays"
    for record in records:
        if record.id not in going:
            draft.keep("build_cache", record.id, record.id, record.bytes, reasons.get(record.id, rest))


def _hold_back(draft: _Draft, shared: t.Collection[str], records: t.Iterable[CacheRecord]) -> None:
    """Move what images share, and what is below it, behind the images: before them it would be lost and free nothing."""
    parents = {record.id: record.parents for record in records}
    late = {step.id for step in draft.steps["build_cache"] if step.id in shared}
    for step in draft.steps["build_cache"]:  # children come first
        if step.id in late:
            late.update(parents[step.id])
    draft.steps["shared_cache"] = [step for step in draft.steps["build_cache"] if step.id in late]
    draft.steps["build_cache"] = [step for step in draft.steps["build_cache"] if step.id not in late]


def _cache_moment(record: CacheRecord) -> float | None:
    return record.last_used or record.created


def _why_cache_stays(draft: _Draft, record: CacheRecord, wish: CacheWish) -> str | None:
    if record.in_use:
        return "in use by a build"
    held = draft.held("build_cache", record.id)
    if held:
        return held
    if wish.scope == "unused" and record.shared:
        return "shared with an image (build_cache.scope is unused)"
    if wish.scope == "unused" and record.type in _INNER_CACHE:
        return "the builder's own (build_cache.scope is unused)"
    return draft.too_young(_cache_moment(record), wish.older_than)
