# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is worth knowing of this host where no engine answers: a disk without room to start one, and sockets of engines without root.

Imported only then. Nothing is changed, and nothing is asked of whoever listens at a socket: any user can make one in a folder of his own.
"""

from __future__ import annotations

import glob
import json
import os
import re
import stat
import typing as t

from ansible_collections.fleetclean.docker.plugins.module_utils.units import say_size

_USUAL_ROOT = "/var/lib/docker"
_CONFIGURATION = "/etc/docker/daemon.json"
_MAX_CONFIGURATION_BYTES = 64 * 1024
#: Where engines without root listen: $XDG_RUNTIME_DIR/docker.sock (docs.docker.com/engine/security/rootless).
_ROOTLESS = "/run/user/[0-9]*/docker.sock"
#: With less an engine may not start: it makes folders and opens databases (for-linux 435; seen with 20 KB on xfs).
_MIN_FREE_BYTES = 1024**2
#: A log below that is not worth emptying, and so many containers are looked at.
_MIN_LOG_BYTES, _MAX_CONTAINERS = 1024**2, 20_000
_MOST_NAMED = 3


def room_words() -> str:
    """Sentences that say which filesystem has no room for an engine to start, and what to do; empty if it has, or if that is not known."""
    root = _data_root()
    try:
        found = os.statvfs(root)
    except OSError:
        return ""
    where = f"The usual data root {root}" if root == _USUAL_ROOT else f"The data root {root} (of {_CONFIGURATION})"
    if found.f_files and not found.f_ffree:
        return f"{where} has no inode free, which keeps an engine from starting: remove files there that are not the engine's first."
    free = found.f_bavail * found.f_frsize
    if free >= _MIN_FREE_BYTES:
        return ""
    log = _largest_log(root)
    how = f", such as with: truncate -s 0 {log[1]} ({say_size(log[0])}; while no engine runs nobody writes its logs)" if log else ""
    return f"{where} has {say_size(free)} free, which keeps an engine from starting: make room there first{how}."


def rootless_words() -> str:
    """Where engines without root listen, as the end of a sentence; empty if none does."""
    found = []
    for path in sorted(glob.glob(_ROOTLESS)):
        try:
            status = os.lstat(path)
        except OSError:
            continue
        if stat.S_ISSOCK(status.st_mode):
            found.append(f"unix://{path} (user {status.st_uid})")
    if not found:
        return ""
    more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    return f": an engine without root has {', '.join(found[:_MOST_NAMED])}{more}; run this as its user (become_user)"


def _data_root() -> str:
    """The data root that an engine of this host would have."""
    try:
        with open(_CONFIGURATION, encoding="utf-8") as stream:
            configuration = json.loads(stream.read(_MAX_CONFIGURATION_BYTES))
    except (OSError, ValueError, RecursionError):
        configuration = None
    for option in ("data-root", "graph"):
        path: t.Any = configuration.get(option) if isinstance(configuration, dict) else None
        if isinstance(path, str) and os.path.isabs(path) and path.isprintable():
            return os.path.normpath(path)
    return _USUAL_ROOT


def _largest_log(root: str) -> tuple[int, str] | None:
    """The largest log of the engine's that is a plain file, and its bytes."""
    found = []
    try:
        with os.scandir(f"{root}/containers") as entries:
            for _number, entry in zip(range(_MAX_CONTAINERS), entries):
                if re.fullmatch("[0-9a-f]{64}", entry.name):
                    found.append(f"{entry.path}/{entry.name}-json.log")
    except OSError:
        return None
    largest = (0, "")
    for path in found:
        try:
            status = os.lstat(path)
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            largest = max(largest, (status.st_blocks * 512, path))
    return largest if largest[0] >= _MIN_LOG_BYTES else None
