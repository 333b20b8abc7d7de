# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real engine with devicemapper on loop devices, the way it is set up by default: all layers in one sparse file."""

from __future__ import annotations

from typing import Iterator

import pytest

from tests.vm.common import Removing, Reporting, Reports, reports
from tests.vm.machine import Machine

POOL = "/var/lib/docker/devicemapper/devicemapper"


@pytest.fixture(scope="module")
def there() -> Iterator[Reports]:
    yield from reports("devicemapper", takes)


def takes(machine: Machine) -> int:
    # A block that was freed goes back to the file system when the discard has gone through thin pool and loop device.
    return int(machine.sh(f"sync; sleep 2; du -sx --block-size=1 {machine.data_root}").split()[0])


class TestDevicemapper(Reporting):
    def test_the_sparse_file_counts_by_its_blocks(self, there: Reports) -> None:
        length, blocks = map(int, there.machine.sh(f"stat -c '%s %b' {POOL}/data").split())
        images = there.exact["usage"]["images"]
        assert length == 4 << 30
        assert length <= images["apparent_bytes"] <= 2 * length
        assert blocks * 512 <= images["disk_bytes"] <= blocks * 512 * 1.05


class TestRemoving(Removing):
    pass
