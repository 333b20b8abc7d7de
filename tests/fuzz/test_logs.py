# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Log files of both formats and their writer, on a tmpfs and on the filesystem of the tests; ext4, xfs and btrfs have on_disks.py."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import pytest

from tests.fuzz import places
from tests.fuzz.budget import machine
from tests.fuzz.logs import LogMachine

HERE = places.folder("/var/tmp")


@lru_cache(maxsize=1)
def memory() -> Path:
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("not here: no tmpfs at /dev/shm")
    return places.in_memory()


class OnTmpfs(LogMachine):
    place = staticmethod(memory)


class Here(LogMachine):
    place = staticmethod(lambda: HERE)


test_a_log_on_a_tmpfs_keeps_its_newest_records_and_all_new_ones = machine(60, steps=14)(OnTmpfs)
test_a_log_here_keeps_its_newest_records_and_all_new_ones = machine(40, steps=14)(Here)
