# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When images, volumes and networks were used last, and by which sign that is known: containers, events, earlier runs, arrival. Pure."""

from __future__ import annotations

import typing as t
from collections import defaultdict

from ansible_collections.fleetclean.docker.plugins.module_utils.names import container_names, image_names, spellings
from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import (
    NETWORK,
    VOLUME,
    Container,
    Image,
    Snapshot,
)

#: Signs of use, the strongest first: the engine's events have whole seconds, so that several often have the same moment.
_USES = (_CONTAINER, _EVENTS, _EARLIER_RUN) = (
    "last container",
    "last container, by the engine's events",
    "seen in use by an earlier run",
)


class Evidence(t.NamedTuple):
    """When an image was last wanted, seconds since 1970, and by which sign."""

    moment: float | None
    words: str


class Watched(t.NamedTuple):
    """From when to when earlier runs saw the engine's events without a gap, seconds since 1970."""

    since: float
    until: float


def known_since(snapshot: Snapshot, watched: Watched | None) -> float | None:
    """Return since when no use was missed: by the events that the engine holds, joined to those that earlier runs saw; None if never."""
    since = snapshot.events_since
    if since is not None and watched and watched.since < since <= watched.until:
        return watched.since
    return since


def evidence_of(
    image: Image,
    used_at: t.Mapping[str, Evidence],
    came: t.Mapping[str, float] | None = None,
    came_between: t.Mapping[str, float] | None = None,
    since: float | None = None,
) -> Evidence:
    """When an image was last wanted, and how that is known. The latest sign of life counts.

    Of several at the same moment the strongest is named: a use (in the order of ``_USES``), a tag, the arrival.

    :param came: when the engine saw images come, by its events: by name or id, see ``arrivals``.
    :param came_between: when an earlier run first saw it, by id, if it came between two runs: the last to be believed.
    :param since: since when no use was missed. Only what came after that is said to be never used.
    """
    names = image_names(image)
    uses = [used_at[name] for name in names if name in used_at]
    use = max(uses, key=lambda evidence: (evidence.moment or 0, -_USES.index(evidence.words)), default=None)
    seen_coming = max((came[name] for name in names if name in came), default=None) if came else None
    arrived = max((moment for moment in (image.arrived, seen_coming) if moment is not None), default=None)

    def sign(moment: float, what: str, exact: bool = True) -> Evidence:
        if use:
            return Evidence(moment, what)
        # The event of its arrival is still there, so all later ones are.
        complete = seen_coming is not None or (since is not None and since <= moment)
        return Evidence(moment, f"{what}, never used" if exact and complete else f"{what}; no later use is known")

    known = [use] if use else []
    if image.tagged:
        known.append(sign(image.tagged, "tagged"))
    if arrived:
        known.append(sign(arrived, "arrived"))
    elif (came_between or {}).get(image.id):
        # It came some time before it was seen, and may have been used until then.
        known.append(sign((came_between or {})[image.id], "arrived", exact=False))
    if known:
        # The first of those that are equal.
        return max(known, key=lambda evidence: evidence.moment or 0)
    return Evidence(image.created, "created; no later use is known")


def arrivals(snapshot: Snapshot) -> dict[str, float]:
    """When the engine saw images come, by its events: by each name that an image may go by."""
    found: dict[str, float] = {}
    for given, moment in snapshot.came.items():
        for name in spellings(given):
            found[name] = max(found.get(name, 0.0), moment)
    return found


def last_uses(snapshot: Snapshot, last_seen_used: t.Mapping[str, float]) -> dict[str, Evidence]:
    """When each name that an image may go by was last in use, and by which sign.

    :param last_seen_used: what earlier runs saw.
    """
    uses: dict[str, Evidence] = {}

    def note(name: str, moment: float, words: str) -> None:
        # They come in the order of _USES, so that the stronger of two with the same moment stays.
        if name not in uses or (uses[name].moment or 0) < moment:
            uses[name] = Evidence(moment, words)

    for container, moment in _moments(snapshot):
        mounted = {name for given in container.mounted_images for name in spellings(given)}
        for name in container_names([container]) | mounted:
            note(name, moment, _CONTAINER)
    for given, moment in snapshot.seen.items():
        for name in spellings(given):
            note(name, moment, _EVENTS)
    for name, moment in last_seen_used.items():
        note(name, moment, _EARLIER_RUN)
    return uses


def uses_seen(snapshot: Snapshot) -> dict[str, float]:
    """When images, volumes and networks were last seen in use, by what is there and by events: what history is to remember."""
    by_name = last_uses(snapshot, {})
    seen: dict[str, float] = {}
    for image in snapshot.images:
        moments = [by_name[name].moment or 0 for name in image_names(image) if name in by_name]
        if moments:
            seen[image.id] = max(moments)
    networks = {NETWORK + ident: evidence.moment or 0 for ident, evidence in network_uses(snapshot, {}).items()}
    return {**seen, **volume_uses(snapshot), **networks}


def volume_uses(snapshot: Snapshot) -> dict[str, float]:
    """When volumes were last in use, by what is there and by events: by name behind ``VOLUME``."""
    uses = {name: moment for name, moment in snapshot.seen.items() if name.startswith(VOLUME)}
    for container, moment in _moments(snapshot):
        for name in (*container.volumes, *container.volumes_by_path):
            uses[VOLUME + name] = max(uses.get(VOLUME + name, 0), moment)
    return uses


def network_uses(snapshot: Snapshot, last_seen_used: t.Mapping[str, float]) -> dict[str, Evidence]:
    """When networks were last in use, and by which sign, by id; nothing of those of which no use is known.

    :param last_seen_used: what earlier runs saw: by id behind ``NETWORK``.
    """
    by_name: dict[str, set[str]] = defaultdict(set)
    for network in snapshot.networks:
        by_name[network.name].add(network.id)
        by_name[network.id].add(network.id)
    uses: dict[str, Evidence] = {}

    def note(ident: str, moment: float, words: str) -> None:
        # The stronger sign comes first, and stays if another has the same moment.
        if ident not in uses or (uses[ident].moment or 0) < moment:
            uses[ident] = Evidence(moment, words)

    for container, moment in _moments(snapshot):
        for name in container.networks:
            for ident in by_name.get(name, ()):
                note(ident, moment, "last container")
    for words, seen in (("the engine's events", snapshot.seen), ("seen in use by an earlier run", last_seen_used)):
        for key, moment in seen.items():
            if key.startswith(NETWORK):
                note(key[len(NETWORK):], moment, words)
    return uses


def _moments(snapshot: Snapshot) -> t.Iterator[tuple[Container, float]]:
    """The containers whose last use is known, and when that was."""
    for container in snapshot.containers:
        moment = snapshot.now if container.live else container.last_use
        if moment:
            yield container, moment
