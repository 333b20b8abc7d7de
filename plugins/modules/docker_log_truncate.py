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
        C(slow_seconds); V(stale), C(--tail) and C(-f) stay silent until the container is started again.
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

import errno
import os
import re
import typing as t
from dataclasses import replace

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleetclean.docker.plugins.module_utils import (
    logs,
    options,
    policy,
    session,
    snapshot,
    words,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import (
    FleetcleanError,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.units import say_size


def truncate(module: AnsibleModule, result: dict[str, t.Any]) -> None:
    """Fill ``result`` with the logs that were cut, or in check mode would be."""
    wish = options.read_truncate(module.params)
    site = session.open_site(module.params)
    result.update(logs=[], reclaimed_bytes=0, restarted=[])
    if not site.own_storage:
        raise FleetcleanError(
            f"{site.proof.words}; nothing was touched. Run this on that host, without docker_host.", "foreign_root"
        )
    root = site.own_storage.root
    containers = snapshot.take(site.engine, snapshot.Wanted(), None).containers
    held = logs.open_logs(root)
    appends = {log.path: log.appends for log in held if not log.deleted}
    major = _major(site.engine.info.get("ServerVersion"))
    cuts: list[logs.Cut] = []
    try:
        for container in containers:
            if _wanted(container, wish):
                cuts += _cut_one(root, container, wish, appends, major, module.check_mode)
        if wish.deleted:
            chosen = {container.id: container for container in containers if _wanted(container, wish)}
            gone = {container.id for container in containers}
            for log in held:
                ident = os.path.basename(os.path.dirname(log.path))
                if log.deleted and (ident in chosen or ident not in gone):
                    cuts += _give_back(log, chosen.get(ident), ident, module.check_mode)
    finally:
        result["logs"] = [{key: value for key, value in vars(cut).items() if key not in ("failed", "disk_full")} for cut in cuts]
        result["reclaimed_bytes"] = sum(cut.reclaimed_bytes for cut in cuts)
        result["changed"] = any(cut.changed for cut in cuts)
    if module._diff:
        lines = [_line(cut, wish) for cut in sorted(cuts, key=lambda cut: -cut.reclaimed_bytes)]
        result["diff"] = {"prepared": "".join(f"{line}\n" for line in lines)}
    failed = [cut for cut in cuts if cut.failed]
    if failed:
        result["failure"] = "disk_full" if all(cut.disk_full for cut in failed) else "disk"
        result["msg"] = (
            f"{len(failed)} log{'' if len(failed) == 1 else 's'} could not be cut, all others were. "
            f"The first: {words.printable(failed[0].name)}: {failed[0].words}"
        )


def _wanted(container: snapshot.Container, wish: options.LogWish) -> bool:
    names = container.names or (container.name,)
    return policy.matches(wish.containers, container.id, names) and not any(
        policy.has_label(container.labels, pattern) for pattern in wish.keep_labels
    )


def _cut_one(
    root: str,
    container: snapshot.Container,
    wish: options.LogWish,
    appends: dict[str, bool],
    major: int,
    dry_run: bool,
) -> list[logs.Cut]:
    folder = f"{root}/containers/{container.id}"
    path = f"{folder}/{container.id}-json.log"
    found = logs.Cut(container.id, container.name, "json-file", path, 0, 0, 0)
    try:
        with logs.open_log(root, container.id, write=not dry_run) as descriptor:
            size = logs.content_bytes(descriptor)
            if size <= wish.larger_than:
                return []
            found = replace(found, bytes_before=size, bytes_after=size)
            real = os.path.realpath(path)
            writer = logs.Writer(container.live or real in appends, appends.get(real, True))
            done = logs.cut(descriptor, found, wish.keep, writer, major, dry_run)
    except FileNotFoundError:
        return _local_driver(folder, container, wish)
    except logs.LogRefused as refusal:
        return [replace(found, words=str(refusal), failed=True)]
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return [replace(found, words=f"{path}: {error.strerror}", failed=True, disk_full=full)]
    return [done] if done.changed or done.words else []


def _local_driver(folder: str, container: snapshot.Container, wish: options.LogWish) -> list[logs.Cut]:
    """Say of a large log of the local driver that it stays; it rotates by itself, by default at 20 MB."""
    path = f"{folder}/local-logs/container.log"
    try:
        size = os.lstat(path).st_size
    except OSError:
        return []
    if size <= wish.larger_than:
        return []
    why = "logs of the local driver can not be cut yet in this release"
    return [logs.Cut(container.id, container.name, "local", path, size, size, 0, words=why)]


def _give_back(
    log: logs.OpenLog, container: snapshot.Container | None, ident: str, dry_run: bool
) -> list[logs.Cut]:
    if not log.bytes:
        return []
    found = logs.Cut(
        ident,
        container.name if container else ident[:12],
        "json-file",
        log.path,
        log.bytes,
        0,
        log.bytes,
        method="deleted",
        readers="stale",
    )
    try:
        freed = log.bytes if dry_run else logs.give_back_deleted(log)
    except OSError as error:
        return [replace(found, method="none", reclaimed_bytes=0, words=f"{log.path}: {error.strerror}", failed=True)]
    return [replace(found, reclaimed_bytes=freed)] if freed else []


def _line(cut: logs.Cut, wish: options.LogWish) -> str:
    if not cut.changed:
        return words.kept_line("log", 1, cut.bytes_before, f"{cut.name}: {cut.words}")
    if cut.method == "deleted":
        return words.step_line("log", cut.name, cut.reclaimed_bytes, "deleted while the engine held it open")
    stay = f"newest {say_size(wish.keep)} stay" if wish.keep else "nothing stays"
    return words.step_line(
        "log", cut.name, cut.reclaimed_bytes, f"larger than {say_size(wish.larger_than)}, {stay}"
    )


def _major(version: object) -> int:
    match = re.search(r"\d+", str(version or ""))
    return int(match.group()) if match else 0


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={**options.shared_spec(), **options.truncate_spec()}, supports_check_mode=True
    )
    session.run(module, lambda result: truncate(module, result))


if __name__ == "__main__":
    main()
