# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real engine with zfs: every layer is a dataset that is mounted nowhere, so that only zfs knows what it takes."""

from __future__ import annotations

from typing import Dict, Iterator

import pytest

from tests.vm import content
from tests.vm.common import Removing, Reporting, Reports, item, reports
from tests.vm.machine import Machine


@pytest.fixture(scope="module")
def there() -> Iterator[Reports]:
    yield from reports("zfs", takes)


def used(machine: Machine) -> Dict[str, int]:
    """Bytes of the engine's dataset and of those below it, by name, snapshots and children with them."""
    lines = machine.sh("zpool sync; zfs list -Hp -r -o name,used tank/docker").splitlines()
    return {name: int(size) for name, size in (line.split("\t") for line in lines)}


def takes(machine: Machine) -> int:
    return used(machine)["tank/docker"]


class TestZfs(Reporting):
    def test_layers_by_their_datasets(self, there: Reports) -> None:
        image = there.machine.must("GET", f"/images/{content.UNUSED}/json")
        own = used(there.machine)[image["GraphDriver"]["Data"]["Dataset"]]
        said = item(there.exact, "images", content.UNUSED)
        assert said["disk_bytes"] == pytest.approx(own, rel=0.01)
        container = there.machine.must("GET", f"/containers/{content.STOPPED}/json")
        own = used(there.machine)[container["GraphDriver"]["Data"]["Dataset"]]
        assert item(there.exact, "containers", content.STOPPED)["disk_bytes"] == pytest.approx(own, rel=0.02)

    def test_who_else_is_in_the_pool_is_not_counted(self, there: Reports) -> None:
        assert there.exact["totals"]["disk_bytes"] < int(there.machine.sh("zfs get -Hp -o value used tank")) - 5_000_000


class TestRemoving(Removing):
    pass
