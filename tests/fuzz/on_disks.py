# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Log files and their writer on ext4, xfs and btrfs, for ``make fuzz`` as root: each process mounts what it needs where nobody else sees it.

``make integration`` runs the same with a small budget (tests/integration/test_log_filesystems.py).
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from tests.fuzz.budget import machine
from tests.fuzz.logs import LogMachine
from tests.integration import disks

_MIB = 1 << 20
SIZES = {"ext4": 64 * _MIB, "xfs": 320 * _MIB, "btrfs": 128 * _MIB}


def can_run() -> bool:
    """Whether filesystems can be made and mounted here."""
    return os.geteuid() == 0 and not disks._missing


@lru_cache(maxsize=1)
def mounted(kind: str) -> Path:
    """A new filesystem in this process's own mounts, in memory: all of it goes with the process, however that ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(disks._NEW_MOUNTS) or libc.mount(b"none", b"/", None, disks._PRIVATE, None):
        raise OSError(ctypes.get_errno(), "no mounts of its own")
    folder = Path(tempfile.gettempdir())
    disks.run("mount", "-t", "tmpfs", "tmpfs", folder)  # this process's alone
    return disks.disk(folder, kind, SIZES[kind])


def target(kind: str) -> Any:
    """The state machine on a filesystem of this kind, which is made at its first step."""
    made = type(f"On{kind.capitalize()}", (LogMachine,), {"place": staticmethod(lambda: mounted(kind)), "__doc__": f"On {kind}."})
    return machine(0, steps=14)(made)


def on(folder: Path, budget: int) -> None:
    """A small budget in a folder that is on such a filesystem."""
    made = type("OnDisk", (LogMachine,), {"place": staticmethod(lambda: folder)})
    machine(budget, steps=14)(made)()


test_logs_on_ext4, test_logs_on_xfs, test_logs_on_btrfs = map(target, ("ext4", "xfs", "btrfs"))
