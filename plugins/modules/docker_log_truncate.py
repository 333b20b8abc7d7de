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
  - Cuts logs to their newest whole lines while containers go on writing. No restart, no free space to speak of.
  - Logs of the C(json-file) and C(local) drivers, and the copies that the engine keeps of what other drivers get (dual logging,
    C(container-cached.log)), of running and stopped containers. Drivers that keep nothing here (C(none), C(journald),
    C(syslog)) are said so in RV(logs[].words). Health checks and exec sessions write no log files.
  - Nothing is touched unless the data root on this host is proven to be the engine's, and no file that is reached through a link, but one of
    root's at the containers' folder itself, once what it leads to is verified to be this engine's.
  - How it is done depends on filesystem, engine and who writes, see RV(logs[].method). What C(docker logs) does afterwards is
    said in RV(logs[].readers).
  - A log that the engine rotates is cut with its container paused for about 0.3 seconds, since an engine that packs a file
    meanwhile would lose lines. So is one on a filesystem that can neither take out nor share blocks (tmpfs, overlay, nfs).
  - The work on a log comes to its end even if the module is killed. Two runs at once wait for each other.
  - A paused container goes on even if the process that paused it is killed.
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
    description:
      - Whose logs, by name (globs) or id; all by default. Running and stopped containers.
      - What a link calls a container, such as C(web/database), is meant by a pattern that has a slash only, part by part.
    type: list
    elements: str
    default: ["*"]
  keep_labels:
    description: Logs of containers with one of these labels stay. C(key) or C(key=value), globs allowed in both.
    type: list
    elements: str
    default: [fleetclean.keep]
  larger_than:
    description:
      - Only logs of more than this, as a size; by default whatever O(keep) is.
      - Fillers of earlier cuts are taken out of smaller ones as well once nobody writes them any more, and NULs at a log's
        beginning (of somebody's C(truncate)), over which C(docker logs) stumbles.
    type: str
  keep:
    description:
      - How much of the newest output stays, in whole lines; V(0) is nothing.
      - A line that is not finished stays, however long it is.
    type: str
    default: 1MiB
  rotated:
    description:
      - What to do with rotated files, the engine's and logrotate's, packed ones too. V(remove) takes all of them from the chosen containers,
        whatever O(keep) is, with the container paused for a moment if it runs.
    type: str
    choices: [keep, remove]
    default: keep
  deleted:
    description: Whether to give back the space of log files that were deleted while the engine held them open.
    type: bool
    default: true
  stale_readers:
    description:
      - Whether to cut a log although C(docker logs --tail) and C(-f) stay silent or hang afterwards, see RV(logs[].readers). That is so where the
        file of a running container becomes shorter (ext4, xfs without reflinks) under an engine of 23 or newer.
      - V(when_full) cuts such a log only if less than 10 % of its filesystem, or nothing, is available when the run begins.
      - V(avoid) never does. V(allow) always does.
      - What is not cut for that says so in RV(logs[].words), with its bytes and the ways out, and RV(logs[].readers) is V(spared).
      - Logs that can be cut in another way, and all logs if O(restart) cures their readers in the same run, are cut whatever this is.
    type: str
    choices: [avoid, when_full, allow]
    default: when_full
  restart:
    description:
      - What may be started again where the engine can no longer read or write a log properly (RV(logs[].readers) is V(stale)),
        by this run, an earlier one, or somebody who deleted or renamed a log. Whether it helped is looked at in the same run.
      - V(engine) needs live-restore, which stops no container, and is refused without (O(live_restore) can turn it on). systemd is asked to restart it where it
        runs the engine; elsewhere the engine is ended and, if nobody else does so, started as it was. That is refused for a program that
        others than root could have put there. It is refused as well for an engine without root (use V(containers)), where systemd ends what
        the engine started together with it (C(KillMode)), if live-restore is off by then, and where the engine would not start with its
        C(daemon.json) and command line as they are by then, or with another data root, storage driver or image store, or without
        live-restore.
      - V(containers) restarts the containers concerned, and no others.
    type: str
    choices: [never, engine, containers]
    default: never
  live_restore:
    description:
      - What to do for O(restart=engine) where live-restore is off. V(enable) adds C(live-restore) to the C(daemon.json) that the engine
        reads (C(--config-file), or C(/etc/docker/daemon.json), which is made if it is not there) and lets the engine reload it, right before
        the engine is restarted; no container stops. It stays on, see RV(live_restore_file).
      - All else in the file stays to the byte, and so do its mode and owner. It is put back if the engine does not say then that
        live-restore is on, unless somebody else changed it meanwhile. Whatever else was changed in it since the engine read it takes effect,
        as with any restart; another data root is refused.
      - Refused, before anything is touched, on a swarm node (a swarm and live-restore refuse each other), for an engine without root, where a
        flag of the engine's command line or the file itself says otherwise, where others than root may write the file or it is a link,
        and where systemd ends what the engine started together with it (C(KillMode)).
    type: str
    choices: [keep, enable]
    default: keep
notes:
  - Lists may also be text with commas or lines between the entries, as surveys give them; white space at the ends of entries is dropped.
    Patterns are globs (V(*), V(?), V([abc]), V([!abc])). What no name of that kind can match, such as a regular expression or an empty entry, is
    an error before anything is touched.
  - Who writes a log is read from the open files of the engine's process. What proves it is the database C(volumes/metadata.db) in the data root, which
    no other process has open for writing, not its name or the paths of its files. Where no process is proven, logs of containers that run stay if there is
    no way to cut them under any writer, and the result says so.
  - Who follows a log by an offset of his own (fluent-bit, filebeat, promtail) takes a file that became shorter for a new one and
    reads what stayed once more, see RV(logs[].repeats).
  - C(docker logs --follow) of an engine before 23 reads what stayed once more as well. A follower that was further behind than
    what stays can miss lines, or end.
seealso:
  - module: fleetclean.docker.docker_disk_report
  - module: fleetclean.docker.docker_clean
"""

EXAMPLES = r"""
- name: Logs of more than 100 MB shrink to their newest 10 MB
  fleetclean.docker.docker_log_truncate:
    larger_than: 100MB
    keep: 10MB

- name: Empty the logs of the CI runners, rotated ones too
  fleetclean.docker.docker_log_truncate:
    containers: ["ci-runner-*"]
    keep: "0"
    rotated: remove

- name: Logs are cut on ext4 as well, and readers are right afterwards; no container stops
  fleetclean.docker.docker_log_truncate:
    larger_than: 100MB
    keep: 10MB
    restart: engine
    live_restore: enable

- name: Somebody deleted a log; its space comes back, and the container logs to a real file again
  fleetclean.docker.docker_log_truncate:
    larger_than: 100MB
    keep: 10MB
    restart: containers
"""

RETURN = r"""
logs:
  description: The logs that were cut (in check mode, would be), and those where something is to be said.
  returned: when the engine answers
  type: list
  elements: dict
  sample:
    - {container: 5f2a, name: ci-runner, driver: json-file, path: /var/lib/docker/containers/5f2a/5f2a-json.log,
       bytes_before: 8100000000, bytes_after: 10485760, reclaimed_bytes: 8089514240, method: collapse, readers: ok,
       slow_seconds: 0.0, repeats: true, unbounded: true, words: ""}
  contains:
    container: {description: The container's id., type: str, returned: always}
    name: {description: The container's name., type: str, returned: always}
    driver: {description: "The log driver: V(json-file), V(local), or another one.", type: str, returned: always}
    path: {description: The log's file., type: str, returned: always}
    bytes_before: {description: The log's length before; fillers of V(clone) do not count., type: int, returned: always}
    bytes_after: {description: The log's length afterwards; fillers do not count., type: int, returned: always}
    reclaimed_bytes:
      description: What came free; in check mode, what would, as the filesystem counts it.
      type: int
      returned: always
    method:
      description:
        - V(collapse) takes whole blocks out of the front in place (ext4; xfs with an engine before 23, or without reflinks, or if
          nobody writes). No line is lost, no space needed, nobody waits.
        - V(clone) puts shared blocks of filler over the front, while somebody writes (btrfs; xfs with reflinks and an engine of 23
          or newer). The file keeps its length, so no reader notices. No line is lost; it takes up to 4 MiB for a moment.
        - V(rewrite) moves the lines that stay to the front, and V(truncate) empties the file; both only where nobody writes.
        - V(paused) moves the lines while the container is paused, for some tenths of a second. Where it cannot be paused, and
          O(keep) is V(0), V(truncate) loses what is written at that very moment.
        - V(rotated) removed rotated files, V(deleted) emptied a file without a name, V(none) did nothing (see C(words)).
      type: str
      returned: always
    readers:
      description: >-
        What C(docker logs) does afterwards. V(ok); V(slow), without C(--tail) it reads through fillers for
        C(slow_seconds); V(stale), C(docker logs) is right, but C(--tail) and C(-f) stay silent, or hang and keep
        the engine busy, until the container is started again (engines of 23 and newer whose file became shorter).
        V(spared), the log stays as it is, since its readers would be stale (O(stale_readers)).
      type: str
      returned: always
    slow_seconds: {description: Seconds that fillers cost C(docker logs)., type: float, returned: always}
    repeats:
      description: Whether those who follow the file by an offset of their own read what stayed once more.
      type: bool
      returned: always
    unbounded:
      description: >-
        Whether the engine does not rotate this log, so that it will grow again. Log options of the engine's daemon.json
        reach new containers only; this one has to be made again.
      type: bool
      returned: always
    words: {description: Why nothing was done; or what somebody should know., type: str, returned: always}
reclaimed_bytes:
  description: The sum over all logs; in check mode, what would come free.
  returned: when the engine answers
  type: int
  sample: 8089514240
restarted:
  description: What was started again, names of containers or V(engine); in check mode, what would be.
  returned: when the engine answers
  type: list
  elements: str
  sample: []
live_restore_file:
  description: The file in which live-restore was turned on, where it stays; in check mode, would be. Empty if it was not (O(live_restore)).
  returned: when the engine answers
  type: str
  sample: /etc/docker/daemon.json
failure:
  description: >-
    What kind of failure it was, as in M(fleetclean.docker.docker_disk_report); V(foreign_root) if the data root is
    not the engine's, V(disk_full) if a cut wants a block that is not there.
  returned: on failure
  type: str
  sample: foreign_root
"""

from ansible_collections.fleetclean.docker.plugins.module_utils import start


def main() -> None:
    """Run the module."""
    start.prepare()
    from ansible_collections.fleetclean.docker.plugins.module_utils import options, session, truncating

    session.main(options.truncate_spec(), truncating.truncate)


if __name__ == "__main__":
    main()
