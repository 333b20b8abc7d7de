# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is mounted where, in every mount namespace of this host, as places on a filesystem.

One folder has many paths: bind mounts, links, the view of a container. Its *place* has them all in one: the device of its
filesystem and the path within that, as text (``8:1 /lib/docker/volumes/data``). A mount has two places: the one it covers
(``at``) and the one it shows (``shows``). Source: proc_pid_mountinfo(5).

Knows no Docker. A process of another user, and one in another process namespace, cannot be seen; then what is left is this
process's own namespace.
"""

from __future__ import annotations

import os
import re
import typing as t
from dataclasses import dataclass, field

_ESCAPED = re.compile(r"\\([0-7]{3})")
#: Engines name the control group of each container by its id, with every driver of control groups.
_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
#: The kernel's mark behind a folder that was removed while it was mounted elsewhere.
_REMOVED = "//deleted"


@dataclass(frozen=True)
class Mount:
    """One mount. ``at`` is None for the root of its namespace.

    ``path``: where it is in its namespace; ``source``: the device or whatever it was mounted from; ``containers``: the ids in
    the name of the control group of a process in its namespace, none in this process's own; ``root``: what its namespace has as its
    root directory.
    """

    shows: str
    at: str | None
    path: str
    type: str
    source: str
    containers: tuple[str, ...] = ()
    root: str = field(default="", repr=False)


def below(path: str, above: str) -> bool:
    """Whether a path or place is ``above`` itself or lies in it."""
    return path == above or path.startswith(above if above.endswith("/") else f"{above}/")


def ancestors(place: str) -> t.Iterator[str]:
    """A path or place itself, and all above it."""
    device, slash, path = place.partition("/")
    yield place
    while path:
        path = path.rpartition("/")[0]
        yield f"{device}{slash}{path}"


class Table:
    """All mounts at one moment."""

    def __init__(self, own: str, others: t.Iterable[tuple[str, tuple[str, ...]]] = ()) -> None:
        """Read mount tables.

        :param own: this process's own, as the kernel writes it.
        :param others: those of other namespaces, each with the ids of containers that its processes belong to.
        """
        self.mounts = _parse(own, ())
        self._here = {mount.path: mount for mount in self.mounts}  # of several on one path the last is on top
        for text, containers in others:
            self.mounts += _parse(text, containers)

    def place(self, path: str) -> str:
        """The place of a path of this process's own namespace; links are followed, as a mount does that names it."""
        real = os.path.realpath(path)
        for above in ancestors(real):
            mount = self._here.get(above or "/")
            if mount:
                return _join(mount.shows, real[len(above.rstrip("/")):])
        return real

    def path(self, place: str) -> str | None:
        """A path in this process's own namespace by which a place is reached, the shortest; None if there is none."""
        found = [
            _join(mount.path, place[len(mount.shows.rstrip("/")):]) for mount in self._here.values() if below(place, mount.shows)
        ]
        return min(found, key=len, default=None)


def collect() -> Table:
    """Read the mount tables of all namespaces that can be seen."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as stream:
        own = stream.read()
    try:
        seen = {os.readlink("/proc/self/ns/mnt")}
        pids = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return Table(own)
    others = []
    for pid in pids:
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace in seen:
                continue
            with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as stream:
                text = stream.read()
            with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as stream:
                containers = tuple(dict.fromkeys(_CONTAINER_ID.findall(stream.read())))
        except OSError:
            continue  # it ended, or is not ours to look at; another process may tell of the same namespace
        seen.add(namespace)
        others.append((text, containers))
    return Table(own, others)


def _parse(text: str, containers: tuple[str, ...]) -> list[Mount]:
    lines = []
    for line in text.split("\n"):
        left, dash, right = line.partition(" - ")
        parts, of = left.split(" "), right.split(" ")
        if not dash or len(parts) < 6 or len(of) < 2:
            continue
        shown = _plain(parts[3])
        shown = shown[: -len(_REMOVED)] if shown.endswith(_REMOVED) else shown
        lines.append((parts[0], parts[1], f"{parts[2]} {shown}", _plain(parts[4]), of[0], _plain(of[1])))
    by_id = {ident: (shows, point) for ident, _above, shows, point, _type, _source in lines}
    root = next((shows for _ident, _above, shows, point, _type, _source in reversed(lines) if point == "/"), "")
    found = []
    for _ident, above, shows, point, kind, source in lines:
        upper = by_id.get(above)
        inside = upper is not None and below(point, upper[1]) and point != "/"
        at = _join(upper[0], point[len(upper[1].rstrip("/")):]) if upper and inside else None
        found.append(Mount(shows, at, point, kind, source, containers, root))
    return found


def _join(above: str, rest: str) -> str:
    return f"{above.rstrip('/')}{rest}" if rest.strip("/") else above


def _plain(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text) if "\\" in text else text
