# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules take of a host's memory, however much there is on its disk."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Iterator

import pytest

from tests.fleet import Host, HostSpec
from tests.fleet.crowded import load_images, write_files
from tests.fleet.dirty import load_image
from tests.integration.bare import Bare
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
