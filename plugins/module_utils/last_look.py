# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who uses what, asked anew right before a removal: of the engine by its list of containers, of the host by its mounts.

One look serves all removals of a moment: one for each object would double the time of a run.
"""

from __future__ import annotations

import threading
import time
import typing as t
from dataclasses import dataclass, field

from ansible_collections.fleetclean.docker.plugins.module_utils import path_uses
from ansible_collections.fleetclean.docker.plugins.module_utils.engine import Engine
from ansible_collections.fleetclean.docker.plugins.module_utils.names import mounted_by
from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import (
    NETWORK,
    Container,
    Hold,
    Wanted,
    container_from,
    read_events,
    take,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Storage, from_info

#: Seconds for which one look holds.
_FRESH = 0.2


@dataclass(frozen=True)
class _Seen:
    containers: tuple[Container, ...]
    mounts_image: t.Callable[[str, t.Collection[str]], bool]
    uses: path_uses.PathUses
    holds: dict[str, list[Hold]] = field(default_factory=dict)


class LastLook:
    """``storage`` only where it is proven to be this host's; ``planned`` are the ids of the containers that go."""

    def __init__(self, engine: Engine, storage: Storage | None, planned: t.Collection[str]) -> None:
        self._planned = planned
        self._engine = engine
        self._storage = storage
        self._lock = threading.Lock()
        self._seen: _Seen | None = None
        self._used: dict[str, float] = {}
        self._events_at, self._events_took = float("-inf"), 0.0
        self._at = float("-inf")
        self._of_layers: dict[tuple[path_uses.LayerUse, ...], list[Hold]] = {(): []}

    def why_needed(self, ident: str, users: t.Collection[str]) -> str:
        """Who uses something of a container and is there: one of ``users``, who were to go before, or one that came; empty if nobody is."""

        def find(seen: _Seen) -> str:
            for container in seen.containers:
                came = container.id not in self._planned and any(given == ident for given, _what in container.stands_on)
                if container.id in users or came:
                    return f"container {container.name}, which uses something of it, is there"
            return ""

        return self._find(find)

    def network_used_at(self, ident: str) -> float:
        """When a container had a network last, by the engine's events, seconds since 1970; 0 if they tell of none."""
        with self._lock:
            began = time.monotonic()
            # Never waiting for more of the time than working: an engine that tells its clock slowly is waited for as long.
            if began - self._events_at > max(_FRESH, self._events_took):
                self._used = read_events(self._engine.past_events(), self._engine.events_kept).seen
                self._events_at = time.monotonic()
                self._events_took = self._events_at - began
            return self._used.get(NETWORK + ident, 0.0)

    def mounts_image(self, image_id: str, names: t.Collection[str]) -> bool:
        """Whether a container mounts an image, by its id or one of its names."""
        return bool(self._find(lambda seen: "it does" if seen.mounts_image(image_id, names) else ""))

    def why_held(self, kind: str, ident: str) -> str:
        """Why the host keeps an object: what is mounted in its folder, or has its folder by a path; empty if nothing does."""
        key = f"{kind}:{ident}"

        def find(seen: _Seen) -> str:
            for container in seen.containers:
                path = dict(container.reaches).get(key)
                if path and not (kind == "container" and container.id == ident):
                    return f"container {container.name} binds {path}"
            held = next((hold.reason for hold in seen.holds.get(key, ()) if hold.via != key), "")
            return held or (seen.uses.link_reason(ident) if kind == "volume" else "")

        return self._find(find)

    def _find(self, find: t.Callable[[_Seen], str]) -> str:
        """What is found in the look of this moment; what was in the way a moment ago may be gone, so it is looked for once more."""
        seen = self._now()
        found = find(seen)
        return find(self._now(seen)) if found else ""

    def _now(self, after: _Seen | None = None) -> _Seen:
        """The look of this moment; one that came ``after`` another."""
        with self._lock:
            if self._seen is None or self._seen is after or time.monotonic() - self._at > _FRESH:
                uses = path_uses.PathUses(self._storage, from_info(self._engine.info).root, self._seen.uses if self._seen else None)
                containers = tuple(uses.container(container_from(raw)) for raw in self._engine.containers())
                holds: dict[str, list[Hold]] = {}
                mounted = path_uses.by_name(uses.holds((), {container.id for container in containers}), containers)
                for hold in mounted + self._in_layers(uses, containers):
                    holds.setdefault(hold.holder, []).append(hold)
                self._seen = _Seen(containers, mounted_by(containers), uses, holds)
                self._at = time.monotonic()
            return self._seen

    def _in_layers(self, uses: path_uses.PathUses, containers: t.Iterable[Container]) -> list[Hold]:
        strange = tuple(sorted(uses.in_layers(containers)))
        if strange not in self._of_layers and self._storage:
            everything = take(self._engine, Wanted(images=True, build_cache=True, services=False), self._storage)
            self._of_layers[strange] = path_uses.of_layers(everything, self._storage, strange)
        return self._of_layers.get(strange, [])
