# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder of what is remembered from run to run, and that nobody else can write there.

What is remembered decides what looks old. So the folder, each part of the path to it, and the file in it belong to the user who runs this or to
root, and nobody else may write there (``trust.py``); else ``check`` refuses it before anything is touched.
"""

from __future__ import annotations

import errno
import os
import stat

from ansible_collections.fleetclean.docker.plugins.module_utils import trust
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError

FILE = "history.sqlite"
#: What SQLite puts beside the file (https://sqlite.org/tempfiles.html).
BESIDE = ("-journal", "-wal", "-shm")


class NotAFile(OSError):
    """Something of ours, or root's, is in the place of the file. It is not opened."""


def check(state_dir: str) -> None:
    """Refuse a folder where somebody else could change what is remembered. To be called before anything is touched.

    :raises FleetcleanError: somebody else could; it says who.
    """
    try:
        trusted(state_dir)
    except (trust.NotTrusted, ValueError) as why:
        raise FleetcleanError(
            f'state_dir: "{state_dir}" cannot be used: {why}. Use a folder that only the user who runs this, and root, may write to, or "".', "bad_input"
        ) from None
    except OSError:
        return  # a place where nothing can be remembered is no error


def trusted(state_dir: str) -> str:
    """Return the folder, without links, and look at what is there already.

    :raises trust.NotTrusted: somebody else can write, or wrote, there.
    :raises OSError: it cannot be looked at.
    """
    users = {0, os.geteuid()}
    # Not even a folder as /tmp: whoever makes a journal there decides what SQLite puts into the file.
    folder = trust.resolve(state_dir, users, missing=True, shared=False)
    for suffix in ("", *BESIDE):
        path = f"{folder.rstrip('/')}/{FILE}{suffix}"
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            continue
        if stat.S_ISLNK(found.st_mode):
            raise trust.NotTrusted(f"{path} is a link")
        if found.st_uid not in users:
            raise trust.NotTrusted(f"{path} belongs to user {found.st_uid}")
        if trust.others_may_write(found, path):
            raise trust.NotTrusted(f"others may write to {path}")
        if not stat.S_ISREG(found.st_mode):
            raise NotAFile(errno.EINVAL, "is no file", path)
    return folder


def file_in(state_dir: str) -> str | None:
    """Return the file that nobody else can have written; None if nothing is to be remembered."""
    return f"{trusted(state_dir).rstrip('/')}/{FILE}" if os.path.isabs(state_dir) else None


def has_file(state_dir: str) -> bool:
    """Whether something lies where the file is: whoever reads it goes by ``file_in``."""
    return os.path.isabs(state_dir) and os.path.lexists(os.path.join(state_dir, FILE))
