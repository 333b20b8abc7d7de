# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What docker_disk_report and docker_clean do on a machine with any of the storage drivers; a test file for each driver adds what is special."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, Tuple

import pytest

from tests.fleet.dirty import MB
from tests.integration.support import Ansible
from tests.vm import content
from tests.vm.machine import Machine

Report = Dict[str, Any]


@dataclass(repr=False)
class Reports:
    """One machine, and what was said of it before anything was removed."""

    machine: Machine
    ansible: Ansible
    exact: Report
    fast: Report
    really: Callable[[Machine], int]

    def takes(self) -> int:
        """Bytes that the engine's data takes, by another hand than the module's."""
        return self.really(self.machine)


def reports(driver: str, really: Callable[[Machine], int]) -> Iterator[Reports]:
    """Start a machine, fill it, and have it measured; skips where it cannot run. ``really``: see :meth:`Reports.takes`."""
    reason = Machine.missing(driver)
    if reason:
        pytest.skip(reason)
    with Machine(driver) as machine:
        content.fill(machine)
        ansible = Ansible(str(machine.inventory))
        exact, fast = (report(ansible, machine, measure=measure) for measure in ("exact", "fast"))
        yield Reports(machine, ansible, exact, fast, really)


def report(ansible: Ansible, machine: Machine, check: bool = False, **options: Any) -> Report:
    """What docker_disk_report says of everything."""
    include = ["images", "containers", "volumes", "build_cache", "logs", "leftovers", "filesystem"]
    return run(ansible, machine, "docker_disk_report", {"include": include, "top": -1, **options}, check)


def run(ansible: Ansible, machine: Machine, module: str, options: Dict[str, Any], check: bool = False) -> Report:
    """A module's result, which is no failure."""
    result = ansible.module(module, options, check=check)[machine.name]
    assert not result["failed"], result
    return result


def item(said: Report, category: str, name: str) -> Dict[str, Any]:
    """The entry of one object, by its name."""
    return next(entry for entry in said["largest"][category] if entry["name"] == name)


def figures(said: Report) -> Tuple[Any, ...]:
    """What must be the same each time: no ages, no durations."""
    items = {
        category: sorted((entry["id"], entry["logical_bytes"], entry["disk_bytes"], entry["reclaimable_bytes"]) for entry in entries)
        for category, entries in said["largest"].items()
    }
    return said["totals"], said["usage"], said["reclaimable"], items


class Reporting:
    """Tests that each driver's file inherits, with a fixture ``there``."""

    def test_exact_sums_up_to_what_it_takes(self, there: Reports) -> None:
        totals = there.exact["totals"]
        assert totals["attributed_bytes"] + totals["unattributed_bytes"] == totals["disk_bytes"]
        assert totals["disk_bytes"] == pytest.approx(there.takes(), rel=0.005)
        assert sum(usage["disk_bytes"] for usage in there.exact["usage"].values()) == totals["disk_bytes"]
        assert there.exact["measured"]["mode"] == "exact"
        assert there.exact["unread"]["count"] == 0

    def test_all_of_it_has_an_owner(self, there: Reports) -> None:
        assert there.exact["totals"]["unattributed_bytes"] < MB
        assert there.exact["largest"]["leftovers"] == []

    @pytest.mark.parametrize("mode", ["exact", "fast"])
    def test_the_engines_figures(self, there: Reports, mode: str) -> None:
        said: Report = getattr(there, mode)
        images = {tag: image["Size"] for image in there.machine.must("GET", "/images/json") for tag in image["RepoTags"]}
        # Besides them there is one entry for the pool, which no image has alone.
        assert {entry["name"]: entry["logical_bytes"] for entry in said["largest"]["images"] if entry["tags"]} == images
        assert said["usage"]["images"]["logical_bytes"] == there.machine.must("GET", "/system/df")["LayersSize"]
        assert said["usage"]["images"]["active"] == 2
        assert item(said, "containers", content.STOPPED)["logical_bytes"] == content.STOPPED_BYTES
        assert item(said, "volumes", content.VOLUME)["logical_bytes"] == content.VOLUME_BYTES

    def test_volumes_are_measured(self, there: Reports) -> None:
        volume = item(there.exact, "volumes", content.VOLUME)
        assert volume["disk_bytes"] == pytest.approx(content.VOLUME_BYTES, rel=0.02)
        assert there.exact["usage"]["volumes"]["disk_bytes"] == volume["disk_bytes"]

    @pytest.mark.parametrize("mode", ["exact", "fast"])
    def test_logs_are_measured(self, there: Reports, mode: str) -> None:
        said: Report = getattr(there, mode)
        log = there.machine.must("GET", f"/containers/{content.RUNNING}/json")["LogPath"]
        blocks = int(there.machine.sh(f"stat -c %b {log}"))
        assert item(said, "logs", content.RUNNING)["disk_bytes"] == blocks * 512

    def test_a_running_container_has_only_what_it_wrote(self, there: Reports) -> None:
        """Its file system is mounted below the data root, with all of its image in it."""
        assert item(there.exact, "containers", content.RUNNING)["size"] < MB

    def test_fast_does_not_walk_the_layers(self, there: Reports) -> None:
        assert there.fast["measured"]["mode"] == "fast"
        assert there.fast["totals"]["disk_bytes"] is None
        assert "unattributed" not in there.fast["usage"]

    @pytest.mark.parametrize("mode", ["exact", "fast"])
    def test_check_mode_says_the_same(self, there: Reports, mode: str) -> None:
        said = report(there.ansible, there.machine, check=True, measure=mode)
        assert figures(said) == figures(getattr(there, mode))
        assert said["changed"] is False


class Removing:
    """The same, for the end of the file: what is not in use goes."""

    def test_a_clock_that_went_backwards_makes_nothing_old(self, there: Reports) -> None:
        """Only a whole machine has a clock of its own: what is from the future by now is young, and has no age below nothing."""
        machine = there.machine
        machine.sh("date -s @$(($(date +%s) - 172800))")
        try:
            asked = {"containers": {"older_than": "1s"}, "images": {"scope": "unused", "older_than": "1s"}, "volumes": {"scope": "unused", "older_than": "1s"}}
            cleaned = run(there.ansible, machine, "docker_clean", asked)
            said = report(there.ansible, machine)
        finally:
            machine.sh("date -s @$(($(date +%s) + 172800))")
        assert (cleaned["changed"], cleaned["removed"]) == (False, [])
        ages = [entry[key] for entries in said["largest"].values() for entry in entries for key in ("age", "last_used") if entry.get(key) is not None]
        assert ages and min(ages) >= 0

    def test_what_is_reclaimable_comes_free(self, there: Reports) -> None:
        said = there.exact["reclaimable"]
        assert said["stopped_containers"]["bytes"] == pytest.approx(content.STOPPED_BYTES, rel=0.2)
        assert said["unused_volumes"]["bytes"] == 0
        # The image of the stopped container goes as well, once that has gone.
        promised = content.STOPPED_BYTES + content.BUILT_BYTES + content.UNUSED_BYTES + content.VOLUME_BYTES
        assert said["everything_unused"]["bytes"] == pytest.approx(promised, rel=0.1)
        before = there.takes()
        everything = {"containers": {}, "images": {"scope": "unused"}, "volumes": {"scope": "unused"}}
        cleaned = run(there.ansible, there.machine, "docker_clean", everything)
        assert cleaned["changed"]
        freed = before - there.takes()
        assert freed == pytest.approx(said["everything_unused"]["bytes"], rel=0.15)
        assert {container["Names"][0] for container in there.machine.must("GET", "/containers/json?all=1")} == {f"/{content.RUNNING}"}
        assert there.machine.must("GET", "/volumes")["Volumes"] in (None, [])
        after = report(there.ansible, there.machine, measure="exact")
        assert after["totals"]["disk_bytes"] == pytest.approx(there.takes(), rel=0.005)
