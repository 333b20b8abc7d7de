#!/usr/bin/python
# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module docker_disk_report."""

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_disk_report
short_description: Say where the disk space of a Docker host has gone
version_added: 0.1.0
description:
  - Reports what an engine's images, containers, volumes, build cache and logs take, and what of it could be had back.
  - Changes nothing, and runs on a host without a free byte and without the Docker SDK.
author: The fleetclean.docker contributors (@fleetclean)
extends_documentation_fragment:
  - fleetclean.docker.options
  - fleetclean.docker.options.attributes
attributes:
  check_mode:
    support: full
    details: It changes nothing anyway, so the answer is the same.
  diff_mode:
    support: none
options:
  include:
    description:
      - What to report. An empty list gives the engine's facts and paths alone, from one question to the engine.
      - V(leftovers) is not there yet in this release and is refused.
    type: list
    elements: str
    choices: [filesystem, images, containers, volumes, build_cache, logs, leftovers]
    default: [filesystem, images, containers, volumes, build_cache, logs, leftovers]
  measure:
    description:
      - V(fast) takes the engine's and the layer store's own figures and reads the disk only where there are none (logs).
      - V(exact) is not there yet in this release and is refused.
    type: str
    choices: [fast, exact]
    default: fast
  top:
    description: How many of the largest items to list of each category; V(0) none, V(-1) all.
    type: int
    default: 20
  gentle:
    description: Whether to measure with the lowest priority (nice 19, idle I/O), so that the host's own work goes first.
    type: bool
    default: true
seealso:
  - module: fleetclean.docker.docker_clean
  - module: fleetclean.docker.docker_log_truncate
"""

EXAMPLES = r"""
- name: Where has the space gone?
  fleetclean.docker.docker_disk_report:
  register: disk

- name: Only the engine's facts and the storage driver's paths
  fleetclean.docker.docker_disk_report:
    include: []
  register: engine

- name: The hundred largest volumes and logs
  fleetclean.docker.docker_disk_report:
    include: [volumes, logs]
    top: 100
"""

RETURN = r"""
engine:
  description: Facts of the engine, from C(docker info).
  returned: when the engine answers
  type: dict
  sample:
    name: build1
    version: 26.1.5
    api_version: "1.45"
    storage_driver: overlay2
    image_store: graphdriver
    driver_status: {"Backing Filesystem": extfs}
    logging_driver: json-file
    root_dir: /var/lib/docker
    root_dir_proven: true
    root_dir_proof: /var/lib/docker/engine-id
    rootless: false
    live_restore: false
    swarm: inactive
    sdk: {source: carried, version: 7.1.0}
  contains:
    name: {description: The host's name as the engine knows it., type: str, returned: always}
    version: {description: The engine's release., type: str, returned: always}
    api_version: {description: The API that was spoken., type: str, returned: always}
    storage_driver: {description: The storage driver or snapshotter., type: str, returned: always}
    image_store: {description: V(graphdriver) or V(containerd)., type: str, returned: always}
    driver_status: {description: What the driver says of itself., type: dict, returned: always}
    logging_driver: {description: The logging driver that new containers get., type: str, returned: always}
    root_dir: {description: The engine's data root., type: str, returned: always}
    root_dir_proven: {description: Whether that folder on this host was shown to be this engine's., type: bool, returned: always}
    root_dir_proof: {description: 'By what it was shown, or why it was not.', type: str, returned: always}
    rootless: {description: Whether the engine runs without root., type: bool, returned: always}
    live_restore: {description: Whether containers outlive the engine., type: bool, returned: always}
    swarm: {description: The node's state in a swarm., type: str, returned: always}
    sdk: {description: Which SDK was used., type: dict, returned: always}
paths:
  description: The storage driver's paths below the data root that exist; empty if the data root is not proven to be here.
  returned: when the engine answers
  type: dict
  sample: {layers: [/var/lib/docker/overlay2], image_metadata: [/var/lib/docker/image/overlay2]}
filesystems:
  description: The filesystems of the data root. Sizes in bytes.
  returned: when O(include) has V(filesystem) and the data root is proven to be here
  type: list
  elements: dict
  sample:
    - {mount_point: /var/lib/docker, type: ext4, size: 53660876800, used: 53660876800, free: 0, available: 0,
       inodes: 3276800, inodes_available: 3010000}
usage:
  description: >-
    By category (images, containers, volumes, build_cache, logs): C(count), C(active), C(logical_bytes) (the engine's
    figure), C(disk_bytes) (allocated; null where it was not measured) and C(reclaimable_bytes) (could be freed by
    some policy).
  returned: when the engine answers
  type: dict
  sample:
    images: {count: 12, active: 3, logical_bytes: 9000000000, disk_bytes: null, reclaimable_bytes: 6000000000}
items:
  description: By category the largest items. C(size) in bytes, C(age) in seconds.
  returned: when the engine answers
  type: dict
  sample:
    logs: [{id: 5f2a, name: ci-runner, size: 8100000000, age: 864000, used_by: [ci-runner]}]
totals:
  description: Sums over the categories asked for; null where nothing was measured.
  returned: when the engine answers
  type: dict
  sample: {disk_bytes: null, attributed_bytes: null, unattributed_bytes: null, reclaimable_bytes: 31200000000}
failure:
  description: >-
    What kind of failure it was: V(bad_input), V(no_sdk), V(no_engine) (nothing is installed), V(engine_down),
    V(denied), V(not_docker), V(not_yet), V(engine), V(disk) or V(defect) (of the module itself).
  returned: on failure
  type: str
  sample: engine_down
"""

from ansible_collections.fleetclean.docker.plugins.module_utils import (
    options,
    reporting,
    session,
)


def main() -> None:
    """Run the module."""
    session.main(options.report_spec(), reporting.report)


if __name__ == "__main__":
    main()
