# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What earlier runs saw: when images, volumes and networks were last in use, what layers take, in a small SQLite file on the host.

An engine forgets when an image, a volume or a network was used last: once its last container is removed, nothing
tells. So each run notes what it saw in use, and the next one takes that for a sign of life. An image that an earlier
run did not see came after it: where nothing else tells when, that is its arrival. The record
only ever makes things look younger. Since when runs have seen the engine's events without a gap is noted, too: an engine
holds few of them, and what happened between is not known. And a layer that is registered never changes again, so what it was found to take
holds as long as its folder is the same one. The record may be lost at any time (then they are judged by what the
engine knows). It holds no more than what the engine still has, by the engine's id: two engines on a host have one file.

``state_folder`` decides who may write it, ``state_file`` opens it.
"""

from __future__ import annotations

import math
import time
import typing as t
import zlib

from ansible_collections.fleetclean.docker.plugins.module_utils import state_file
from ansible_collections.fleetclean.docker.plugins.module_utils.last_use import Watched, uses_seen
from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import NETWORK, VOLUME, Snapshot

if t.TYPE_CHECKING:
    import sqlite3

#: Instead of an image's id: the first run on this engine. What it saw was there before, nobody knows since when.
_BEGINNING = ""
#: Seconds that a clock may be ahead. What is noted for later than that was noted while it was wrong.
_AHEAD = 86400.0


class Memory(t.NamedTuple):
    """``used``: when earlier runs saw objects in use; ``came``: when they first saw images that came between two runs.

    Seconds since 1970, by an image's id, the name of a volume behind ``VOLUME`` or the id of a network behind ``NETWORK``.
    ``watched``: when they saw the engine's events without a gap, None if they never did.
    """

    used: dict[str, float]
    came: dict[str, float]
    watched: Watched | None = None


def recall(state_dir: str, engine_id: str, now: float) -> Memory:
    """Return what earlier runs saw of this engine's objects; but nothing that is still to come, by its clock of today."""
    used, came = (
        {key: moment for key, moment in seen.items() if moment <= now + _AHEAD}
        for seen in (last_uses(state_dir, engine_id), came_between(state_dir, engine_id))
    )
    seen = watched(state_dir, engine_id)
    return Memory(used, came, seen if seen and seen.until <= now + _AHEAD else None)


def note(state_dir: str, engine_id: str, looked: Snapshot, volumes: bool, networks: bool = False) -> bool:
    """Note what this run saw, before anything goes. ``volumes``, ``networks``: whether it asked for them."""
    present = {VOLUME + volume.name for volume in looked.volumes} if volumes else None
    nets = {NETWORK + network.id for network in looked.networks} if networks else None
    images = {image.id for image in looked.images}
    # Of networks that were not asked for, no use is noted, whatever the events tell.
    since = looked.events_since if networks else None
    return note_uses(state_dir, engine_id, uses_seen(looked), images, present, looked.now, nets, since)


def last_uses(state_dir: str, engine_id: str) -> dict[str, float]:
    """Return when earlier runs saw objects in use: key -> seconds since 1970; empty if nothing is known.

    A key is an image's id, the name of a volume behind ``VOLUME``, or the id of a network behind ``NETWORK``.
    """
    return _moments(state_file.rows(state_dir, "SELECT object, used FROM last_use WHERE engine = ?", engine_id))


def came_between(state_dir: str, engine_id: str) -> dict[str, float]:
    """Return when images were first seen that came after the first run: image id -> seconds since 1970."""
    seen = _moments(state_file.rows(state_dir, "SELECT object, seen FROM first_seen WHERE engine = ?", engine_id))
    begun = seen.pop(_BEGINNING, float("inf"))
    return {ident: moment for ident, moment in seen.items() if moment > begun}


def watched(state_dir: str, engine_id: str) -> Watched | None:
    """Return from when to when earlier runs saw the engine's events without a gap; None if nothing is known."""
    rows = state_file.rows(state_dir, "SELECT since, until, sum FROM watched WHERE engine = ?", engine_id)
    return _watched(rows)


def _moments(rows: t.Iterable[t.Sequence[t.Any]]) -> dict[str, float]:
    """Names, each with a time, of rows; those of another kind are left out: SQLite does not insist on a column's type."""
    return {key: float(moment) for key, moment in rows if isinstance(key, str) and len(key) <= state_file.LONGEST_NAME and _is_moment(moment)}


def _watched(rows: t.Iterable[t.Sequence[t.Any]]) -> Watched | None:
    found = (Watched(since, until) for since, until, sum_ in rows if _is_moment(since) and _is_moment(until) and sum_ == _sum(since, until))
    return next(found, None)


def _is_moment(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def note_uses(
    state_dir: str,
    engine_id: str,
    uses: t.Mapping[str, float],
    images: t.Collection[str],
    volumes: t.Collection[str] | None = None,
    now: float | None = None,
    networks: t.Collection[str] | None = None,
    since: float | None = None,
) -> bool:
    """Note when objects were seen in use, and images for the first time; forget those that the engine has no more.

    :param uses: key -> seconds since 1970; an earlier note that is later stands.
    :param images: ids of all images that the engine has.
    :param volumes: keys of all its volumes, None if this run did not ask for them.
    :param now: the engine's clock; this machine's if not given.
    :param networks: keys of all its networks, None if this run did not ask for them.
    :param since: since when none of its events is missing, None if that is not known.
    :returns: whether it could be noted.
    """

    moment = time.time() if now is None else now

    def here(key: str) -> bool:
        if key.startswith(VOLUME):
            return volumes is None or key in volumes
        if key.startswith(NETWORK):
            return networks is None or key in networks
        return key in images

    def write(connection: sqlite3.Connection) -> None:
        known = _moments(state_file.select(connection, "SELECT object, used FROM last_use WHERE engine = ?", engine_id))
        connection.executemany(
            "DELETE FROM last_use WHERE engine = ? AND object = ?",
            [(engine_id, key) for key in known if not here(key)],
        )
        connection.executemany(
            "INSERT OR REPLACE INTO last_use VALUES (?, ?, ?)",
            [
                (engine_id, key, used)
                for key, used in uses.items()
                if here(key) and len(key) <= state_file.LONGEST_NAME and not used <= known.get(key, 0.0) <= moment + _AHEAD
            ],
        )
        rows = state_file.select(connection, "SELECT object FROM first_seen WHERE engine = ?", engine_id)
        seen = {ident for (ident,) in rows if isinstance(ident, str)}
        connection.executemany(
            "DELETE FROM first_seen WHERE engine = ? AND object = ?",
            [(engine_id, ident) for ident in seen - {_BEGINNING} if ident not in images],
        )
        connection.executemany(
            "INSERT INTO first_seen VALUES (?, ?, ?)",
            [(engine_id, ident, moment) for ident in {_BEGINNING, *images} - seen],
        )
        if since is not None and since <= moment:
            before = _watched(state_file.select(connection, "SELECT since, until, sum FROM watched WHERE engine = ?", engine_id))
            begun, until = float(since), float(moment)
            if before and before.until <= moment + _AHEAD and since <= before.until:
                begun, until = min(begun, before.since), max(until, before.until)
            connection.execute("INSERT OR REPLACE INTO watched VALUES (?, ?, ?, ?)", (engine_id, begun, until, _sum(begun, until)))

    return state_file.note(state_dir, engine_id, write)


class Measured(t.NamedTuple):
    """What a layer was found to take, in bytes; ``identity`` is that of the folder in which it was found."""

    identity: str
    disk: int
    apparent: int
    frees: int
    inodes: int


def measured(state_dir: str, engine_id: str) -> dict[str, Measured]:
    """Return what earlier runs measured of layers that never change: account -> figures; empty if nothing is known."""
    rows = state_file.rows(
        state_dir, "SELECT account, identity, disk, apparent, frees, inodes, sum FROM measured WHERE engine = ?", engine_id
    )
    # SQLite does not notice a flipped bit in a figure, and a wrong figure is worse than none.
    return {
        account: Measured(identity, *figures)
        for account, identity, *figures, sum_ in rows
        if isinstance(account, str) and isinstance(identity, str) and all(isinstance(figure, int) for figure in figures)
        and sum_ == _sum(account, identity, *figures)
    }


def note_measured(state_dir: str, engine_id: str, layers: t.Mapping[str, Measured]) -> bool:
    """Note what layers take, and forget all others; return whether it could be noted."""

    def write(connection: sqlite3.Connection) -> None:
        rows = state_file.select(connection, "SELECT account FROM measured WHERE engine = ?", engine_id)
        connection.executemany(
            "DELETE FROM measured WHERE engine = ? AND account = ?",
            [(engine_id, account) for (account,) in rows if account not in layers],
        )
        connection.executemany(
            "INSERT OR REPLACE INTO measured VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(engine_id, account, *figures, _sum(account, *figures)) for account, figures in layers.items()],
        )

    return state_file.note(state_dir, engine_id, write)


def _sum(*values: object) -> int:
    return zlib.crc32(repr(values).encode("utf-8", "replace"))
