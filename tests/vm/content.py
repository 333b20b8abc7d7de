"""What the tests put into an emulated machine's engine, of known sizes that no compression makes smaller."""

from __future__ import annotations

import random
from typing import Any
from urllib.parse import quote, urlencode

from tests.fleet.dirty import MB, build_image, load_image

from .machine import Machine

BASE = "app/base:1"
USED = "app/web:1"
BUILT = "app/web:2"
UNUSED = "app/report:1"
RUNNING = "web"
STOPPED = "job"
VOLUME = "data"
# Bytes of random content: files of image layers, of a writable layer, of a volume; and of a log's lines.
USED_BYTES = 12 * MB
BUILT_BYTES = 5 * MB
UNUSED_BYTES = 8 * MB
STOPPED_BYTES = 6 * MB
VOLUME_BYTES = 10 * MB
LOG_LINES = 30_000


def fill(machine: Machine) -> None:
    """Images with layers in common, a container that runs and has a log, one that has stopped and has written, a volume."""
    content = random.Random(7)
    load_image(machine, BASE, {})
    load_image(machine, USED, {"srv/used": content.randbytes(USED_BYTES)})
    build_image(machine, BUILT, f"FROM {USED}\nCOPY built /srv/built\n", {"built": content.randbytes(BUILT_BYTES)})
    load_image(machine, UNUSED, {"srv/unused": content.randbytes(UNUSED_BYTES)}, base=False)
    machine.must("POST", "/volumes/create", {"Name": VOLUME})
    _run(machine, RUNNING, USED, f"seq -f 'line %.0f of a log that nobody reads' {LOG_LINES} 2>/dev/null || seq {LOG_LINES}; exec sleep 1000000")
    _run(machine, STOPPED, BUILT, f"dd if=/dev/urandom of=/scratch bs=1000 count={STOPPED_BYTES // 1000}; "
         f"dd if=/dev/urandom of=/data/content bs=1000 count={VOLUME_BYTES // 1000}", Binds=[f"{VOLUME}:/data"])
    machine.must("POST", f"/containers/{STOPPED}/wait")
    machine.exec(["sync"])


def _run(machine: Machine, name: str, image: str, script: str, **host: Any) -> None:
    config = {"Image": image, "Cmd": ["/bin/sh", "-c", script], "HostConfig": {"NetworkMode": "none", **host}}
    machine.must("POST", f"/containers/create?{urlencode({'name': name})}", config)
    machine.must("POST", f"/containers/{quote(name)}/start")
