# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules take of a host's memory, however much there is on its disk."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Iterator

import pytest

from tests.fleet import Host, HostSpec
from tests.fleet.crowded import load_images, write_files
from tests.fleet.dirty import load_image
from tests.integration.bare import REPOSITORY, Bare, run_here
from tests.integration.support import start

IMAGES, LAYERS, FILES, LINKS = 5_000, 20, 900_000, 100_000
MOST = 100_000_000


@pytest.fixture(scope="module")
def crowded(here: None) -> Iterator[Host]:
    """5,000 images of 20 layers each, and a volume with a million files, some of them hard-linked, which have to be remembered: a minute's work."""
    with start([HostSpec("crowded", "ext4", data_size="20G", ssh=False)]) as fleet:
        host = fleet["crowded"]
        load_image(host, "crowd/base:1", {})
        load_images(host, 1, LAYERS - 1, 1)
        volume = host.must("POST", "/volumes/create", {"Name": "many-files"})
        with ThreadPoolExecutor() as pool:
            work = [pool.submit(load_images, host, IMAGES, 0, 0, "crowd/0:1"), pool.submit(write_files, host.path(volume["Mountpoint"]), FILES, LINKS)]
            for part in work:
                part.result()
        yield host


@pytest.mark.parametrize("measure", ["fast", "exact"])
def test_a_million_files_and_5000_images_take_less_than_100_mb(crowded: Host, measure: str) -> None:
    outcome = Bare(crowded).run(watch=True, measure=measure)
    print(f"{measure}: {outcome.peak / 1e6:.0f} MB, its workers {outcome.workers_peak / 1e6:.0f} MB each, together {outcome.together / 1e6:.0f} MB")
    usage = outcome.result["usage"]
    assert usage["images"]["count"] > IMAGES and usage["volumes"]["count"] == 1
    assert outcome.peak < MOST
    # Pages that they share with the module are in the workers' figures as well, but they are there once.
    assert outcome.workers_peak < MOST and outcome.together < MOST


#: Objects of an engine that has nothing but records: what they take is the snapshot's, and the accounts'.
MANY_IMAGES, MANY_CONTAINERS = 5_000, 10_000


@pytest.fixture(scope="module")
def multitude() -> Iterator[str]:
    """The address of a FAKE engine with thousands of images and containers."""
    with tempfile.TemporaryDirectory(prefix="fc-", dir="/dev/shm") as folder:
        command = [sys.executable, "-m", "tests.integration.multitude", f"{folder}/s", f"{folder}/root", str(MANY_IMAGES), str(MANY_CONTAINERS)]
        with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout and process.stdout.readline() == "ready\n"
                yield f"unix://{folder}/s"
            finally:
                process.kill()


UNUSED = {"containers": {"older_than": "1d"}, "images": {"scope": "unused", "older_than": "1d"}, "volumes": {"scope": "unused"}}


@pytest.mark.parametrize(
    ("module", "options"),
    [("docker_disk_report", {"measure": "fast"}), ("docker_disk_report", {"measure": "exact"}), ("docker_clean", {"_ansible_check_mode": True, **UNUSED})],
    ids=["fast", "exact", "clean"],
)
def test_10000_containers_and_5000_images_take_less_than_100_mb(multitude: str, tmp_path: Path, module: str, options: Any) -> None:
    result, took = run_here(tmp_path, module, docker_host=multitude, state_dir="", **options)
    print(f"{module}: {took['peak'] / 1e6:.0f} MB")
    assert not result.get("failed"), json.dumps(result)[:1000]
    assert took["peak"] < MOST and took["workers_peak"] < MOST
