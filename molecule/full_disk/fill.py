"""Fills every host of the fleet in $FLEETCLEAN_DIR to the last byte: the data root, / and /tmp."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.fleet import Fleet

for host in Fleet.attach(os.environ["FLEETCLEAN_DIR"]):
    for folder in (host.data_root, "/"):
        host.fill(folder)
    left = {folder: host.free_bytes(folder) for folder in (host.data_root, "/", "/tmp")}
    if any(left.values()):
        sys.exit(f"{host.name}: bytes are still free: {left}")
