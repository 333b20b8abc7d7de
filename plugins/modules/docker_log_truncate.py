#!/usr/bin/python
# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module docker_log_truncate."""

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_log_truncate
short_description: Shorten container logs in place, without losing a line that is being written
version_added: 0.1.0
description:
  - Cuts logs of the C(json-file) driver to their newest whole lines while containers go on writing. No restart, no free
    space to speak of.
  - Nothing is touched unless the data root on this host is proven to be the engine's.
  - How it is done depends on filesystem and engine, see RV(logs[].method). What C(docker logs) does afterwards is said in
    RV(logs[].readers).
author: The fleetclean.docker contributors (@fleetclean)
extends_documentation_fragment:
  - fleetclean.docker.options
  - fleetclean.docker.options.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
options:
  containers:
    description: Whose logs, by name (globs) or id; all by default. Running and stopped containers.
    type: list
    elements: str
    default: ["*"]
  keep_labels:
    description: Logs of containers with one of these labels stay. C(key) or C(key=value), globs allowed in both.
    type: list
    elements: str
    default: [fleetclean.keep]
  larger_than:
    description: Only logs of more than this, as a size; by default whatever O(keep) is.
    type: str
  keep:
    description:
      - How much of the newest output stays, in whole lines; V(0) is nothing.
      - Where blocks are taken out or shared, up to one block (of the filesystem, or 64 KiB) more stays.
    type: str
    default: 1MiB
  rotated:
    description: What to do with the engine's rotated files. V(remove) is not there yet in this release and is refused.
    type: str
    choices: [keep, remove]
    default: keep
  deleted:
    description: Whether to give back the space of log files that were deleted while the engine held them open.
    type: bool
    default: true
  restart:
    description:
      - What may be started again where the engine can no longer read a log properly (RV(logs[].readers) is V(stale)).
      - Only V(never) is there in this release; the others are refused.
    type: str
    choices: [never, engine, containers]
    default: never
seealso:
  - module: fleetclean.docker.docker_disk_report
  - module: fleetclean.docker.docker_clean
"""

EXAMPLES = r"""
- name: Logs of more than 100 MB shrink to their newest 10 MB
  fleetclean.docker.docker_log_truncate:
    larger_than: 100MB
    keep: 10MB

- name: Empty the logs of the CI runners
  fleetclean.docker.docker_log_truncate:
    containers: ["ci-runner-*"]
    keep: "0"
"""

RETURN = r"""
logs:
  description: The logs that were cut (in check mode, would be), and those where it was wished for and could not be done.
  returned: when the engine answers
  type: list
  elements: dict
  sample:
    - {container: 5f2a, name: ci-runner, driver: json-file, path: /var/lib/docker/containers/5f2a/5f2a-json.log,
       bytes_before: 8100000000, bytes_after: 10485760, reclaimed_bytes: 8089514240, method: collapse, readers: ok,
       slow_seconds: 0.0, words: ""}
  contains:
    container: {description: The container's id., type: str, returned: always}
    name: {description: The container's name., type: str, returned: always}
    driver: {description: V(json-file) or V(local)., type: str, returned: always}
    path: {description: The log's file., type: str, returned: always}
    bytes_before: {description: The log's length before., type: int, returned: always}
    bytes_after: {description: The log's length afterwards; fillers of V(clone) do not count., type: int, returned: always}
    reclaimed_bytes: {description: What came free., type: int, returned: always}
    method:
      description: >-
        V(collapse) takes blocks out of the front, V(clone) shares one block of filler over it (the file keeps its
        length), V(rewrite) and V(truncate) are for logs that nobody writes, V(deleted) emptied a file without a name,
        V(none) did nothing (see C(words)).
      type: str
      returned: always
    readers:
      description: >-
        What C(docker logs) does afterwards. V(ok); V(slow), without C(--tail) it reads through fillers for
        C(slow_seconds); V(stale), C(--tail) and C(-f) stay silent, or hang and keep
          the engine busy, until the container is started again.
      type: str
      returned: always
    slow_seconds: {description: Seconds that fillers cost C(docker logs)., type: float, returned: always}
    words: {description: Why nothing was done., type: str, returned: always}
reclaimed_bytes:
  description: The sum over all logs; in check mode, what would come free.
  returned: when the engine answers
  type: int
  sample: 8089514240
restarted:
  description: What was started again.
  returned: when the engine answers
  type: list
  elements: str
  sample: []
failure:
  description: >-
    What kind of failure it was, as in M(fleetclean.docker.docker_disk_report); V(foreign_root) if the data root is
    not the engine's, V(disk_full) if a cut wants a block that is not there.
  returned: on failure
  type: str
  sample: foreign_root
"""

from ansible_collections.fleetclean.docker.plugins.module_utils import (
    options,
    session,
    truncating,
)


def main() -> None:
    """Run the module."""
    session.main(options.truncate_spec(), truncating.truncate)


if __name__ == "__main__":
    main()
