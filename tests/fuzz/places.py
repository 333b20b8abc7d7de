# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Folders for the files of targets. A process that a watchdog had to kill leaves its own, which the next one takes away."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "fleetclean-fuzz-"


def folder(above: str) -> Path:
    """A new folder in a folder, gone at this process's end."""
    for name in os.listdir(above):
        owner = name[len(_PREFIX):].partition("-")[0] if name.startswith(_PREFIX) else ""
        if owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
            shutil.rmtree(os.path.join(above, name), ignore_errors=True)
    made, mine = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=above)), os.getpid()
    # What is forked off (tests/integration/disks.py) ends earlier, and it is not its.
    atexit.register(lambda: shutil.rmtree(made, ignore_errors=True) if os.getpid() == mine else None)
    return made


def in_memory() -> Path:
    """A new folder on a tmpfs, where there is one: thousands of small files are written."""
    return folder("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())
