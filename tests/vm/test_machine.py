# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing of an emulated machine outlives the one who wanted it."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Set

import pytest

from tests.fleet.keeper import PARENT
from tests.integration.support import REPOSITORY
from tests.vm.machine import Machine


def folders() -> Set[Path]:
    return set(PARENT.glob("fleetclean-vm-*"))


def emulators(folder: Path) -> Set[int]:
    """Processes that have the folder in their command line."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if re.search(rb"\b%b\b" % folder.name.encode(), entry.read_bytes()):
                found.add(int(entry.parent.name))
        except OSError:
            pass
    return found


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_it_ends_when_its_owner_is_killed() -> None:
    reason = Machine.missing("devicemapper")
    if reason:
        pytest.skip(reason)
    others = folders()
    owner = subprocess.Popen([sys.executable, "-m", "tests.vm", "devicemapper"], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: any((folder / "console.log").exists() for folder in folders() - others))
        (folder,) = folders() - others
        # The keeper and the emulator at least.
        assert len(emulators(folder)) >= 2
    finally:
        owner.kill()
        owner.wait()
    wait_for(lambda: not folder.exists() and not emulators(folder))
