# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Traps of engines that have no other test: figures that are not to be believed, and two who remove the same."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import policy, removal, snapshot
from ansible_collections.fleetclean.docker.plugins.module_utils.engine import EngineError

INFO = {"SystemTime": "2024-03-01T12:00:00Z", "Driver": "overlay2"}


class Engine:
    """One container with the volume ``used``, beside it ``idle``; and what the engine counts of their users, which is wrong."""

    info = INFO

    def speaks(self, _version: str) -> bool:
        return True

    def containers_as(self, make: t.Callable[[dict[str, t.Any]], t.Any], size: bool = False) -> list[t.Any]:
        return [make(raw) for raw in self.containers(size)]

    def containers(self, size: bool = False) -> list[dict[str, t.Any]]:
        return [{"Id": "c", "Names": ["/c"], "State": "exited", "Mounts": [{"Type": "volume", "Name": "used"}]}]

    def container(self, ident: str) -> dict[str, t.Any]:
        return {"Id": ident, "State": {"Status": "exited"}}

    def volumes(self) -> list[dict[str, t.Any]]:
        return [{"Name": name, "Driver": "local", "CreatedAt": "2024-01-01T00:00:00Z"} for name in ("used", "idle")]

    def services(self) -> list[dict[str, t.Any]]:
        return []

    events_kept = 256

    def past_events(self) -> list[dict[str, t.Any]]:
        return []

    def disk_usage(self, *kinds: str) -> dict[str, t.Any]:
        counts = {"used": 0, "idle": 3}
        return {"Volumes": [{"Name": name, "UsageData": {"RefCount": count, "Size": -1}} for name, count in counts.items()]}


def test_the_engines_count_of_a_volumes_users_is_not_believed() -> None:
    """It is the daemon's memory, and was wrong after restarts (moby 38883, 41686, 37706); containers say who has what."""
    looked = snapshot.take(t.cast(t.Any, Engine()), snapshot.Wanted(volumes=True, ages=True, sizes=True), None)
    plan = policy.decide(looked, policy.Wishes(volumes=policy.VolumeWish(scope="unused")))
    assert [step.name for step in plan.steps] == ["idle"]
    assert {kept.name: kept.reason for kept in plan.kept} == {"used": "used by a container"}


@pytest.mark.parametrize(
    "words",
    ["removal of container 41576a1f0729 is already in progress", "removal of network idle is already in progress"],
    ids=["container", "network"],
)
def test_what_somebody_else_is_removing_at_the_moment_counts_as_gone(words: str) -> None:
    class Busy(Engine):
        def remove_container(self, ident: str, force: bool = False) -> None:
            raise EngineError(f"DELETE /containers/{ident}", 409, words)

    outcome = removal.Outcome()
    step = policy.Step("container", "c", "c", 1, "exited 2 days ago", expects=("exited", "None"))
    removal.carry_out(t.cast(t.Any, Busy()), policy.Plan((step,)), 1, lambda: None, None, outcome)
    assert ([gone.name for gone in outcome.gone], outcome.failed, outcome.kept) == (["c"], [], [])
