# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docker_log_truncate from its options to its result: which logs, how each is cut, and what is said of it."""

from __future__ import annotations

import errno
import os
import re
import typing as t
from dataclasses import replace

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleetclean.docker.plugins.module_utils import (
    history,
    logs,
    names,
    options,
    session,
    snapshot,
    words,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.engine import Engine, EngineError
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
    looked = snapshot.take(site.engine, snapshot.Wanted(images=True), None)
    containers = looked.containers
    major = _major(site.engine.info.get("ServerVersion"))
    cuts: list[logs.Cut] = []
    try:
        for container in containers:
            if _wanted(container, wish):
                cuts += _cut_one(site.engine, root, container, wish, major, module.check_mode)
        if wish.deleted:
            chosen = {container.id: container for container in containers if _wanted(container, wish)}
            gone = {container.id for container in containers}
            for log in logs.open_logs(root):
                ident = os.path.basename(os.path.dirname(log.path))
                if log.deleted and (ident in chosen or ident not in gone):
                    cuts += _give_back(log, chosen.get(ident), ident, module.check_mode)
    finally:
        result["logs"] = [{key: value for key, value in vars(cut).items() if key not in ("failed", "disk_full")} for cut in cuts]
        result["reclaimed_bytes"] = sum(cut.reclaimed_bytes for cut in cuts)
        result["changed"] = any(cut.changed for cut in cuts)
    if not module.check_mode:
        history.note(module.params["state_dir"] or "", site.engine_id, looked, volumes=False)
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
    known = container.names or (container.name,)
    return names.matches(wish.containers, container.id, known) and not any(
        names.has_label(container.labels, pattern) for pattern in wish.keep_labels
    )


def _writer(engine: Engine, root: str, ident: str, descriptor: int) -> logs.Writer:
    """Who writes this log at this moment: the list of containers is as old as all the cuts before this one."""
    found = os.fstat(descriptor)
    held = [log for log in logs.open_logs(root) if log.inode == (found.st_dev, found.st_ino)]
    if held:
        return logs.Writer(True, all(log.appends for log in held))
    try:
        live = snapshot.container_from({"Id": ident}, engine.container(ident)).live
    except EngineError as error:
        if not error.gone:
            raise
        live = False
    return logs.Writer(live, appends=not live, seen=not live)


def _cut_one(
    engine: Engine,
    root: str,
    container: snapshot.Container,
    wish: options.LogWish,
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
            writer = _writer(engine, root, container.id, descriptor)
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
