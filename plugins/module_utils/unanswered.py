# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is worth knowing of this host where no engine answers: a disk without room to start one, and sockets that users have.

Imported only then. Nothing is changed, and nothing is asked of whoever listens at a socket: any user can make one in a folder of his own.
"""

from __future__ import annotations

import glob
import json
import os
import re
import stat
import typing as t

from ansible_collections.fleetclean.docker.plugins.module_utils import processes
from ansible_collections.fleetclean.docker.plugins.module_utils.units import say_size

_USUAL_ROOT = "/var/lib/docker"
_CONFIGURATION = "/etc/docker/daemon.json"
_MAX_CONFIGURATION_BYTES = 64 * 1024
#: Where engines without root listen: $XDG_RUNTIME_DIR/docker.sock (docs.docker.com/engine/security/rootless).
_USERS = "/run/user/"
_ROOTLESS = f"{_USERS}[0-9]*/docker.sock"
#: In the folder of the volumes.
_DATABASE = "metadata.db"
#: With less an engine may not start: it makes folders and opens databases (for-linux 435; seen with 20 KB on xfs).
_MIN_FREE_BYTES = 1024**2
#: A log below that is not worth emptying, and so many containers are looked at.
_MIN_LOG_BYTES, _MAX_CONTAINERS = 1024**2, 20_000
_MOST_NAMED = 3


def room_words(path: str, is_usual: bool) -> str:
    """Sentences that say which filesystem has no room for an engine to start, and what to do; empty if it has, or if that is not known.

    :param path: of the socket that nobody answers at.
    :param is_usual: whether it is the one that this host's engine with root has unless somebody decided otherwise.
    """
    if path.startswith(_USERS):
        # That engine has its data in its user's home.
        return ""
    root = _data_root()
    try:
        found = os.statvfs(root)
    except OSError:
        return ""
    where = f"The usual data root {root}" if root == _USUAL_ROOT else f"The data root {root} (of {_CONFIGURATION})"
    if found.f_files and not found.f_ffree:
        return f"{where} has no inode free, which keeps an engine from starting: remove files there that are not the engine's first."
    # The engine is root and may use ext4's reserve.
    free = found.f_bfree * found.f_frsize
    if free >= _MIN_FREE_BYTES:
        return ""
    log = _largest_log(root) if is_usual and _is_idle(root) else None
    how = f", such as with: truncate -s 0 {log[1]} ({say_size(log[0])}; while no engine runs nobody writes its logs)" if log else ""
    return f"{where} has {say_size(free)} free, which keeps an engine from starting: make room there first{how}."


def socket_words() -> str:
    """Sentence that names the sockets where engines without root would listen; empty if there is none.

    It is all that they are: each user can make one, with or without an engine.
    """
    found = []
    for path in sorted(glob.glob(_ROOTLESS)):
        try:
            status = os.lstat(path)
        except OSError:
            continue
        if stat.S_ISSOCK(status.st_mode):
            found.append(f"unix://{path} is a socket of user {status.st_uid}")
    if not found:
        return ""
    more = f" (and {len(found) - _MOST_NAMED} more)" if len(found) > _MOST_NAMED else ""
    how = "if the engine that you mean listens there, name it in docker_host and run this as that user (become_user)."
    return f"{', '.join(found[:_MOST_NAMED])}{more}; {how}"


def _is_idle(root: str) -> bool:
    """Whether no process has the database of the data root's volumes open: each engine since 1.11 does, as long as it runs.

    False if that cannot be told. Here it does not matter whether whoever has it open is proven to be an engine.
    """
    try:
        database = os.lstat(f"{root}/volumes/{_DATABASE}")
    except OSError:
        return False
    return not any(_has_open(pid, database) for pid in processes.pids())


def _has_open(pid: int, database: os.stat_result) -> bool:
    try:
        for number in processes.names_in(f"/proc/{pid}/fd"):
            link = f"/proc/{pid}/fd/{number}"
            try:
                # The path only spares asking for files that are on a network: they may never answer.
                if os.readlink(link).endswith(f"/{_DATABASE}") and os.path.samestat(os.stat(link), database):
                    return True
            except OSError:
                continue
    except PermissionError:
        # Nobody can tell what it has open.
        return True
    except OSError:
        pass
    return False


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
