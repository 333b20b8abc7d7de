# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether somebody else could make a path lead elsewhere, or change what is there.

The one place that decides it: for the folder of what is remembered, links below the data root, a containerd's socket, an engine's program.
A path is looked at part by part, links as well as what they lead to: each belongs to one of the users that are
trusted, and nobody else may write to any folder of it. Where that holds nobody else can replace a part meanwhile, so what
was looked at may be opened by its path.
"""

from __future__ import annotations

import os
import stat
import struct
import typing as t

try:
    import grp
    import pwd
except ImportError:  # a Python built without them
    grp = pwd = None  # type: ignore[assignment]

#: Links on the way; the kernel follows 40 of them (fs/namei.c, MAXSYMLINKS).
_MOST_LINKS = 40
#: An ACL's entry, of which those of named users and groups matter here (linux/posix_acl_xattr.h).
_ENTRY, _NAMED, _MAY_WRITE = struct.Struct("<HHI"), (0x02, 0x08), 0x02


class NotTrusted(Exception):
    """Somebody else could lead us elsewhere, or write there; the message says who and where."""


def resolve(path: str, users: t.Collection[int], owners: t.Collection[int] | None = None, missing: bool = False, shared: bool = True) -> str:
    """Return the folder that a path leads to, without links, if nobody but these users can make any part of it lead elsewhere.

    :param owners: to one of whom the folder itself has to belong; ``users`` if not given.
    :param missing: whether the end of the path may be missing; it is returned as it is.
    :param shared: whether others may make files in the folder itself, if they cannot replace what is there (as in /tmp).
    :raises NotTrusted: somebody else can, or it leads to no folder.
    :raises OSError: it cannot be looked at.
    """
    real, todo, links = "", path.split("/")[1:], 0
    while todo:
        name = todo.pop(0)
        if name in ("", "."):
            continue
        if name == "..":
            real = os.path.dirname(real).rstrip("/")
            continue
        here = f"{real}/{name}"
        try:
            found = os.lstat(here)
        except FileNotFoundError:
            if not missing or ".." in todo:
                raise
            return "/".join([here, *(part for part in todo if part not in ("", "."))])
        last = stat.S_ISDIR(found.st_mode) and not any(part not in ("", ".") for part in todo)
        if found.st_uid not in (owners if last and owners is not None else users):
            raise NotTrusted(f"{here} belongs to user {found.st_uid}")
        if stat.S_ISLNK(found.st_mode):
            links += 1
            if links > _MOST_LINKS:
                raise NotTrusted(f"{here} leads in a circle")
            target = os.readlink(here)
            if target.startswith("/"):
                real = ""
            todo = target.split("/") + todo
            continue
        if not stat.S_ISDIR(found.st_mode):
            raise NotTrusted(f"{here} is no folder")
        # In a folder such as /tmp nobody can take away or rename what is another's (S_ISVTX).
        if others_may_write(found, here) and not (found.st_mode & stat.S_ISVTX and (shared or not last)):
            raise NotTrusted(f"others may write to {here}")
        real = here
    return real or "/"


def others_may_write(found: os.stat_result, path: str) -> bool:
    """Whether somebody besides the owner and root may write a file or folder. What an ACL allows shows in the group's bits (acl(5))."""
    if found.st_mode & stat.S_IWGRP and (_lets_others_write(path) or not _is_own_group(found.st_uid, found.st_gid)):
        return True
    return bool(found.st_mode & stat.S_IWOTH)


def _lets_others_write(path: str) -> bool:
    """Whether an ACL lets a user or a group write that it names."""
    try:
        entries = os.getxattr(path, "system.posix_acl_access", follow_symlinks=False)[4:]
    except OSError:
        return False
    return any(tag in _NAMED and rights & _MAY_WRITE for tag, rights, _ident in _ENTRY.iter_unpack(entries[: len(entries) // _ENTRY.size * _ENTRY.size]))


def _is_own_group(uid: int, gid: int) -> bool:
    """Whether a group is a user's own, with nobody else in it, as most distributions make one for each user."""
    if pwd is None or uid == 0:
        return False
    try:
        user, group = pwd.getpwuid(uid), grp.getgrgid(gid)
    except (KeyError, OSError):
        return False
    return gid == user.pw_gid and group.gr_name == user.pw_name and not set(group.gr_mem) - {user.pw_name}
