# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When images and volumes were used last, and by which sign that is known: containers, events, earlier runs, arrival. Pure."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from ansible_collections.fleetclean.docker.plugins.module_utils.names import container_names, image_names, spellings
from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import VOLUME, Container, Image, Snapshot

#: Signs of use, the strongest first: the engine's events have whole seconds, so that several often have the same moment.
_USES = (_CONTAINER, _EVENTS, _EARLIER_RUN) = (
    "last container",
    "last container, by the engine's events",
    "seen in use by an earlier run",
)


@dataclass(frozen=True)
class Evidence:
    """When an image was last wanted, seconds since 1970, and by which sign."""

    moment: float | None
    words: str


def evidence_of(
    image: Image,
    used_at: t.Mapping[str, Evidence],
    came: t.Mapping[str, float] | None = None,
    came_between: t.Mapping[str, float] | None = None,
) -> Evidence:
    """When an image was last wanted, and how that is known. The latest sign of life counts.

    Of several at the same moment the strongest is named: a use (in the order of ``_USES``), a tag, the arrival.

    :param came: when the engine saw images come, by its events: by name or id.
    :param came_between: when an earlier run first saw it, by id, if it came between two runs: the last to be believed.
    """
    uses = [used_at[name] for name in image_names(image) if name in used_at]
    use = max(uses, key=lambda evidence: (evidence.moment or 0, -_USES.index(evidence.words)), default=None)
    arrivals = [image.arrived, *((came or {}).get(name) for name in image_names(image))]
    arrived = max((moment for moment in arrivals if moment is not None), default=(came_between or {}).get(image.id))
    signs = [(image.tagged, "tagged, never used"), (arrived, "arrived, never used")]
    known = [use] if use else []
    known += [Evidence(moment, words.replace(", never used", "") if use else words) for moment, words in signs if moment]
    if known:
        # The first of those that are equal.
        return max(known, key=lambda evidence: evidence.moment or 0)
    return Evidence(image.created, "created; no later use is known")


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
    """When images and volumes were last seen in use, by what is there and by events: what history is to remember."""
    by_name = last_uses(snapshot, {})
    seen: dict[str, float] = {}
    for image in snapshot.images:
        moments = [by_name[name].moment or 0 for name in image_names(image) if name in by_name]
        if moments:
            seen[image.id] = max(moments)
    return {**seen, **volume_uses(snapshot)}


def volume_uses(snapshot: Snapshot) -> dict[str, float]:
    """When volumes were last in use, by what is there and by events: by name behind ``VOLUME``."""
    uses = {name: moment for name, moment in snapshot.seen.items() if name.startswith(VOLUME)}
    for container, moment in _moments(snapshot):
        by_path = [owner for owner, _path in container.reaches if owner.startswith(VOLUME)]
        for name in (*(VOLUME + name for name in container.volumes), *by_path):
            uses[name] = max(uses.get(name, 0), moment)
    return uses


def _moments(snapshot: Snapshot) -> t.Iterator[tuple[Container, float]]:
    """The containers whose last use is known, and when that was."""
    for container in snapshot.containers:
        moment = snapshot.now if container.live else container.last_use
        if moment:
            yield container, moment
