# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is mounted where, in every mount namespace of this host, as places on a filesystem.

One folder has many paths: bind mounts, links, the view of a container. Its *place* has them all in one: the device of its
filesystem and the path within that, as text (``8:1 /lib/docker/volumes/data``). A mount has two places: the one it covers
(``at``) and the one it shows (``shows``). Source: proc_pid_mountinfo(5).

In a mount namespace of their own users mount what they like, if they have a user namespace. Where a mount is and what it shows the kernel writes, and
nobody sees there what he may not see elsewhere; but the folders of an overlay are text that was given for it: that of another user namespace counts
by that namespace's own mounts. Of what users make themselves no more is read than ``_MOST_OF_USERS``.

Knows no Docker. A process of another user, and one in another process namespace, cannot be seen; then what is left is this
process's own namespace.
"""

from __future__ import annotations

import os
import posixpath
import re
import typing as t

from ansible_collections.fleetclean.docker.plugins.module_utils import processes

_ESCAPED = re.compile(r"\\([0-7]{3})")
#: What stands between the lower folders of an overlay; one with a backslash before it is a part of a name.
_COLONS = re.compile(r"(?<!\\):+")
#: The kernel follows no more links than that on one path.
_LINKS = 40
#: The kernel's mark behind a folder that was removed while it was mounted elsewhere.
_REMOVED = "//deleted"
#: Characters of mount tables in all namespaces that users have made without being root: those of four thousand, and none without end.
_MOST_OF_USERS = 1 << 24


class Mount(t.NamedTuple):
    """One mount. ``at`` is None for the root of its namespace.

    ``path``: where it is in its namespace; ``source``: the device or whatever it was mounted from; ``containers``: the ids in
    the name of the control group of a process in its namespace, none in this process's own; ``root``: what its namespace has as its
    root directory. ``overlay``: what an overlay is made of, as the kernel writes it. ``alone``: nothing that is mounted or unmounted
    elsewhere comes here (private propagation). ``layer_places``: where the folders of an overlay lie that was mounted in another user namespace, whose
    paths are not this one's; None for others.
    """

    shows: str
    at: str | None
    path: str
    type: str
    source: str
    containers: tuple[str, ...] = ()
    root: str = ""
    overlay: str = ""
    alone: bool = True
    layer_places: tuple[str, ...] | None = None

    @property
    def layers(self) -> list[str]:
        """The folders that an overlay is made of, by the paths that were given."""
        found = []
        for option in self.overlay.split(","):
            name, _equals, value = option.partition("=")
            if name in ("lowerdir", "lowerdir+", "datadir+"):
                found += [re.sub(r"\\(.)", r"\1", folder) for folder in _COLONS.split(_plain(value)) if folder]
            elif name in ("upperdir", "workdir"):
                found.append(_plain(value))
        return found


class Namespace(t.NamedTuple):
    """The mount table of a namespace, as the kernel writes it, and the ids of the containers that its processes belong to.

    ``is_users``: its processes are in another user namespace than this one.
    """

    text: str
    containers: tuple[str, ...] = ()
    is_users: bool = False


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
    """All mounts at one moment. ``namespaces`` are all that can be seen, this process's own first."""

    def __init__(self, own: str, others: t.Iterable[tuple[t.Any, ...]] = (), before: Table | None = None) -> None:
        """Read mount tables.

        :param own: this process's own, as the kernel writes it.
        :param others: those of other namespaces, each with the rest of what a ``Namespace`` has.
        :param before: an earlier table, whose work is used.
        """
        self.namespaces = [Namespace(own), *(Namespace(*other) for other in others)]
        self._ways: dict[str, tuple[str, ...]] = {}
        #: By path, and by the number of the one that they are mounted on.
        self._here: dict[str, Mount] = {}
        self._on: dict[str, list[tuple[str, Mount]]] = {}
        if before and before.namespaces[0] == self.namespaces[0]:
            self._here, self._on = before._here, before._on
            return
        for ident, above, mount in _read(self.namespaces[0]):
            self._here[mount.path] = mount  # of several on one path the last is on top
            self._on.setdefault(above, []).append((ident, mount))

    @property
    def mounts(self) -> list[Mount]:
        """All of them."""
        return [mount for namespace in self.namespaces for mount in parse(namespace)]

    def place(self, path: str) -> str:
        """The place of a path of this process's own namespace; links are followed, as a mount does that names it."""
        return self.way(path)[0]

    def places(self, paths: t.Iterable[str]) -> tuple[str, ...]:
        """The places of paths of this table's first namespace, by its mounts alone: links there are not this process's to follow."""
        return tuple(self._covered(path)[0] for path in map(posixpath.normpath, paths) if path.startswith("/"))

    def way(self, path: str) -> tuple[str, ...]:
        """The place of a path, and all that lead there: those of the links that are followed, and those that mounts cover on the way.

        Without any of them the path leads elsewhere, or nowhere.
        """
        if path not in self._ways:
            links, real = _resolve(path)
            self._ways[path] = tuple(dict.fromkeys([*self._covered(real), *(place for link in links for place in self._covered(link))]))
        return self._ways[path]

    def _covered(self, real: str) -> list[str]:
        """The place of a path without links, and those that are covered on the way: by what is mounted first from the root, on that, and so on."""
        ident, found, covered = "", None, []
        passed = set()  # a table is read in pieces, and numbers are given again: it may lead in circles
        while ident not in passed:
            passed.add(ident)
            further = [(len(mount.path), other, mount) for other, mount in self._on.get(ident, ()) if below(real, mount.path)]
            if not further:
                break
            _length, ident, found = min(further, key=lambda one: one[0])
            covered += [found.at] if found.at else []
        return [_join(found.shows, real[len(found.path.rstrip("/")):]) if found else real, *covered]

    def path(self, place: str) -> str | None:
        """A path in this process's own namespace by which a place is reached, the shortest; None if there is none."""
        found = [
            _join(mount.path, place[len(mount.shows.rstrip("/")):]) for mount in self._here.values() if below(place, mount.shows)
        ]
        return min(found, key=len, default=None)


def _resolve(path: str) -> tuple[list[str], str]:
    """The links on a path, each by the path of the link itself, and where they lead; as the kernel follows them."""
    rest = path.split("/")[::-1]
    links: list[str] = []
    real = ""
    while rest:
        part = rest.pop()
        if part == "..":
            real = real.rpartition("/")[0]
        elif part not in ("", "."):
            here = f"{real}/{part}"
            try:
                target = os.readlink(here) if len(links) < _LINKS else ""
            except (OSError, ValueError):
                target = ""
            if target:
                links.append(here)
                real = "" if target.startswith("/") else real
                rest += target.split("/")[::-1]
            else:
                real = here
    return links, real or "/"


def collect(before: Table | None = None, owners: t.Collection[int] = ()) -> Table:
    """Read the mount tables of all namespaces that can be seen.

    :param before: an earlier table, whose work is used.
    :param owners: users, besides root and this process's own, whose user namespaces are read in full whatever others make.
    """
    own = _text("/proc/self/mountinfo")
    try:
        seen = {os.readlink("/proc/self/ns/mnt")}
        pids = processes.pids()
    except OSError:
        return Table(own, (), before)
    trusted = {None, 0, os.geteuid(), *owners}
    own_user = processes.user_namespace(os.getpid())
    others = []
    left = _MOST_OF_USERS
    for pid in pids:
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace in seen:
                continue
            is_users = processes.user_namespace(pid) != own_user
            is_bounded = is_users and processes.user_namespace_owner(pid) not in trusted
            if is_bounded and left <= 0:
                continue
            text = _text(f"/proc/{pid}/mountinfo", left if is_bounded else -1)
            left -= len(text) if is_bounded else 0
            others.append((text, tuple(processes.parse_container_ids(_text(f"/proc/{pid}/cgroup"))), is_users))
        except OSError:
            continue  # it ended, or is not ours to look at; another process may tell of the same namespace
        seen.add(namespace)
    return Table(own, others, before)


def _text(path: str, most: int = -1) -> str:
    # A carriage return is a part of a path, and no line's end.
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as stream:
        return stream.read(most)


def loops() -> list[tuple[str, str]]:
    """The loop devices that have a file that is there, and its path."""
    found = []
    try:
        names = [name for name in os.listdir("/sys/block") if name.startswith("loop")]
    except OSError:
        return []
    for name in names:
        try:
            path = _text(f"/sys/block/{name}/loop/backing_file")
        except OSError:
            continue  # it has none
        path = path[:-1] if path.endswith("\n") else path
        if os.path.isfile(path):
            found.append((f"/dev/{name}", path))
    return found


def parse(namespace: Namespace) -> list[Mount]:
    """The mounts of a namespace."""
    found = [mount for _ident, _above, mount in _read(namespace)]
    # A container's own root is an overlay, and nobody asks what it is made of: thousands have nothing else.
    if not namespace.is_users or not any(mount.overlay and mount.path != "/" for mount in found):
        return found
    table = Table(namespace.text)
    return [mount._replace(layer_places=table.places(mount.layers)) if mount.overlay else mount for mount in found]


def _read(namespace: Namespace) -> t.Iterator[tuple[str, str, Mount]]:
    """Each mount with its number and that of the one it is mounted on, "" for none that is there."""
    lines = []
    for line in namespace.text.split("\n"):
        left, dash, right = line.partition(" - ")
        parts, of = left.split(" "), right.split(" ")
        if not dash or len(parts) < 6 or len(of) < 2:
            continue
        shown = _plain(parts[3])
        shown = shown[: -len(_REMOVED)] if shown.endswith(_REMOVED) else shown
        alone = not any(part.startswith(("shared:", "master:")) for part in parts[6:])
        lines.append((parts[0], parts[1], f"{parts[2]} {shown}", _plain(parts[4]), alone, of))
    by_id = {ident: (shows, point) for ident, _above, shows, point, _alone, _of in lines}
    root = next((shows for _ident, _above, shows, point, _alone, _of in reversed(lines) if point == "/"), "")
    for ident, above, shows, point, alone, of in lines:
        upper = by_id.get(above) if above != ident else None
        at = None
        if upper and point != "/" and below(point, upper[1]):
            at = _join(upper[0], point[len(upper[1].rstrip("/")):])
        overlay = of[2] if of[0] == "overlay" and len(of) > 2 else ""
        yield ident, above if upper else "", Mount(shows, at, point, of[0], _plain(of[1]), namespace.containers, root, overlay, alone)


def _join(above: str, rest: str) -> str:
    return f"{above.rstrip('/')}{rest}" if rest.strip("/") else above


def _plain(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text) if "\\" in text else text
