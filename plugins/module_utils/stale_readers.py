# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide whether a cut may leave a log's readers stale, and say what cures them.

A cut that makes a file shorter under an engine of 23 or newer leaves `docker logs --tail` and `-f` silent or hanging (moby 45728, portainer 12984).

Invariants

* The plan and the run decide alike: how full a filesystem is counts as it was when it was first looked at, before a cut gave anything back.
* Where a restart in the same run cures readers, none are left stale.
"""

from __future__ import annotations

import os

from ansible_collections.fleetclean.docker.plugins.module_utils.units import say_size

#: A filesystem with less of it available than this is full, for `when_full`.
FULL_BELOW_PERCENT = 10


class StaleReaders:
    """What one run may do to readers: ``rule`` is avoid, when_full or allow; with ``is_cured`` a restart follows."""

    def __init__(self, rule: str, has_live_restore: bool, is_swarm: bool) -> None:
        self._rule = rule
        self._cure = cure(has_live_restore, is_swarm)
        self._available: dict[int, tuple[int, int]] = {}
        self.is_cured = False
        self.no_cure = ""

    def look(self, log: int | str) -> None:
        """Remember how full the filesystem of a log or folder is, unless that is known."""
        device = os.stat(log).st_dev
        if device not in self._available:
            space = os.statvfs(log)
            self._available[device] = (space.f_bavail, space.f_blocks)

    def are_allowed(self, log: int) -> bool:
        """Whether this log may be cut in a way that leaves its readers stale until something is restarted."""
        return self.is_cured or self._rule == "allow" or (self._rule == "when_full" and self._is_full(log))

    @property
    def yield_to_a_full_disk(self) -> bool:
        """Whether a filesystem counts as full that refuses a block, whatever it says is free."""
        return self._rule == "when_full"

    def _is_full(self, log: int) -> bool:
        available, size = self._space(log)
        return available <= 0 or available * 100 < size * FULL_BELOW_PERCENT

    def _space(self, log: int) -> tuple[int, int]:
        self.look(log)
        return self._available[os.fstat(log).st_dev]

    def reason_to_keep(self, log: int, reclaimable: int) -> str:
        """Why a log stays, what would come free, and the ways out."""
        available, size = self._space(log)
        free = f", and {100 * available // size} % of its filesystem is free" if self._rule == "when_full" and size else ""
        trouble = f" ({self.no_cure})" if self.no_cure else ""
        return (
            f"{say_size(reclaimable)} stay (stale_readers: {self._rule}): docker logs --tail and -f would stay silent or hang after the cut{free}. "
            f"Ways out: {self._cure}{trouble}; a new container with max-size, whose log the engine rotates; stale_readers: allow"
        )

    def advice(self) -> str:
        """What is to be known of a log whose readers are stale."""
        return f"docker logs --tail and -f stay silent or hang until it is started again; {self._cure} cures that"


def cure(has_live_restore: bool | None, is_swarm: bool, prefix: str = "") -> str:
    """What cures stale readers on a host; ``prefix`` stands before the names of options (the role's are ``cleanup_logs_``)."""
    containers = f"{prefix}restart: containers"
    if has_live_restore:
        return f"{prefix}restart: engine (live-restore is on, no container stops) or {containers}"
    if is_swarm:
        return containers
    return f"{prefix}restart: engine with {prefix}live_restore: enable (no container stops) or {containers}"
