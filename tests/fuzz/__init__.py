# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fuzz targets: hypothesis makes the inputs, and one rule holds for all of them: no uncaught exception, no hang, no memory without a bound.

``make unit`` runs each with a small, repeatable budget, ``make fuzz MINUTES=30`` with new inputs until the time is over (``__main__``).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# hypothesis keeps notes of its own, which are in nobody's way there.
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(ROOT / ".build" / "hypothesis"))
# The collection by its own name, and the writers of files and worlds that the unit tests have.
for folder in (ROOT / "tests" / "unit", ROOT / "playbooks" / "collections"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
