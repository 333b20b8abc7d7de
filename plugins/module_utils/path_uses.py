# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who uses the engine's folders by their path: bind mounts, volumes that show another one's data, mounts at or below them, links.

The engine counts who has a volume by its name, and nothing else. It empties what is mounted below a folder that it removes
(moby 35323), and takes a volume's data from under a container that has it by a bind of ``volumes/NAME/_data``. So all of that
is found here and put into the snapshot, for the policy to decide by; and found again right before a removal.

A path is compared by its place (see ``mounts``), which has all links and mounts resolved, and as it is written. Only a folder of
one object, or what lies in it, counts: who has all of ``volumes`` (backup tools, cAdvisor, Portainer's agent) wants none of it
in particular, or everything would stay.
"""

from __future__ import annotations

import os
import posixpath
import typing as t
from dataclasses import replace

from ansible_collections.fleetclean.docker.plugins.module_utils import mounts
from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import Container, Hold, Snapshot, Volume
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Storage, is_name
from ansible_collections.fleetclean.docker.plugins.module_utils.words import printable

_CONTAINER, _VOLUME = "container", "volume"
#: What the engine itself mounts in a container's folder while it runs, and lets go of before it removes it.
_IN_CONTAINERS = ("mounts", "secrets", "shm", "mqueue", "checkpoints")
#: Where storage drivers mount a container's root file system, below its layer: the layer itself, or this.
_IN_LAYERS = ("", "merged")
_LAYER = "layer"


class Folders:
    """The folders that go with the engine's objects, by place and by path."""

    def __init__(self, root: str, storage: Storage | None, table: mounts.Table | None) -> None:
        """``root``: the engine's data root as it names it; ``storage`` and ``table`` where that is this host's."""
        self.root = root
        self._table = table
        self._tops: dict[str, str] = {}
        for part, kind in (("volumes", _VOLUME), ("containers", _CONTAINER)):
            self._add(f"{root}/{part}", kind)
        self._layers: dict[str, str] = {}
        for folder in storage.layer_folders() if storage else ():
            self._add(folder, _LAYER)
            if table:
                self._layers[table.place(folder)] = folder

    def _add(self, folder: str, kind: str) -> None:
        self._tops[posixpath.normpath(folder)] = kind
        if self._table:
            self._tops[self._table.place(folder)] = kind

    def find(self, place: str) -> tuple[str, str, str]:
        """What a place lies in, and the rest of the path there: (kind, name, rest); ("", "", "") if in none."""
        below = ""
        for above in mounts.ancestors(place):
            if above in self._tops and below:
                return self._tops[above], below[len(above.rstrip("/")) + 1:], place[len(below) + 1:]
            below = above
        return "", "", ""

    def owner(self, path: str) -> str:
        """The object in whose folder a path of the host lies, such as ``volume:data``; empty if in none."""
        for place in (self._table.place(path), path) if self._table else (path,):
            kind, name, _rest = self.find(posixpath.normpath(place) if place == path else place)
            if kind in (_VOLUME, _CONTAINER):
                return f"{kind}:{name}"
        return ""

    def layer(self, place: str) -> str:
        """The path of the layer's folder in which a place lies; empty if in none."""
        for above in mounts.ancestors(place):
            folder = self._layers.get(above)
            if folder and above != place:
                return f"{folder}/{place[len(above.rstrip('/')) + 1:].split('/')[0]}"
        return ""


class PathUses:
    """What is mounted on this host at one moment, as far as it concerns the engine's folders."""

    def __init__(self, storage: Storage | None, root: str) -> None:
        """``root``: the engine's data root; ``storage`` only where it is proven to be this host's."""
        self._table = mounts.collect() if storage else None
        self._folders = Folders(root, storage, self._table)

    def owner(self, path: str) -> str:
        """The object in whose folder a path of the host lies, such as ``volume:data``; empty if in none."""
        return self._folders.owner(path)

    def container(self, container: Container) -> Container:
        """The container with the objects whose folders it has by a path."""
        found = {owner: path for path in container.binds for owner in (self._folders.owner(path),) if owner}
        return replace(container, reaches=tuple(found.items())) if found else container

    def volume(self, volume: Volume) -> Volume:
        """The volume with the volumes whose data it shows: as its device, or by a link in the place of its folder."""
        paths = [volume.device] if volume.device else []
        link = self.link(volume.name)
        owners = {self._folders.owner(path) for path in paths + ([link] if link else [])}
        shows = tuple(sorted(owners - {"", f"{_VOLUME}:{volume.name}"}))
        return replace(volume, shows=shows) if shows else volume

    def holds(self, volumes: t.Iterable[Volume], containers: t.Collection[str]) -> list[Hold]:
        """The mounts and links that keep containers and volumes.

        :param containers: ids of the engine's containers.
        """
        found: dict[tuple[str, str, str], Hold] = {}
        bound = set()
        for volume in volumes:
            if volume.driver.startswith("local/"):
                bound.add(volume.name)  # the engine mounts it at its folder as long as a container that runs has it
            link = self.link(volume.name)
            if link:
                hold = Hold(f"{_VOLUME}:{volume.name}", link_reason(link))
                found[(hold.holder, hold.reason, "")] = hold
        for mount in self._table.mounts if self._table else ():
            for hold in self._of_mount(mount, bound, containers):
                found[(hold.holder, hold.reason, hold.via)] = hold
        return list(found.values())

    def in_layers(self) -> list[tuple[str, str]]:
        """Foreign mounts in folders of layers: the layer's path, and the reason in words. Nearly always there are none."""
        found = {}
        for mount in self._table.mounts if self._table else ():
            for place, reason in ((mount.at, self._mounted(mount)), (mount.shows, self._seen(mount))):
                kind, _name, rest = self._folders.find(place or "")
                # Below its own root file system each container has its mounts.
                if kind == _LAYER and rest not in _IN_LAYERS and not (mount.containers and mounts.below(place or "", mount.root)):
                    found[self._folders.layer(place or "")] = reason
        return list(found.items())

    def _of_mount(self, mount: mounts.Mount, bound: t.Collection[str], containers: t.Collection[str]) -> t.Iterator[Hold]:
        via = next((f"{_CONTAINER}:{ident}" for ident in mount.containers if ident in containers), "")
        if mount.at is not None:
            kind, name, rest = self._folders.find(mount.at)
            if kind == _VOLUME:
                own = f"{_VOLUME}:{name}" if not via and rest == "_data" and name in bound else via
                yield Hold(f"{_VOLUME}:{name}", self._mounted(mount), own)
            elif kind == _CONTAINER and rest.split("/")[0] not in _IN_CONTAINERS:
                yield Hold(f"{_CONTAINER}:{name}", self._mounted(mount), via)
        kind, name, rest = self._folders.find(mount.shows)
        if kind == _VOLUME:
            # A volume that shows this one's data keeps it by itself as long as it stays (Volume.shows).
            if via or not self._is_device(mount, bound):
                yield Hold(f"{_VOLUME}:{name}", self._seen(mount), via)
        elif kind == _CONTAINER and not mount.containers:
            yield Hold(f"{_CONTAINER}:{name}", self._seen(mount))

    def _is_device(self, mount: mounts.Mount, bound: t.Collection[str]) -> bool:
        """Whether it is a volume's device, which the engine has mounted at its folder."""
        kind, name, rest = self._folders.find(mount.at or "")
        return kind == _VOLUME and rest == "_data" and name in bound

    def _mounted(self, mount: mounts.Mount) -> str:
        shown = mount.shows.partition(" ")[2]
        path = self._table.path(mount.shows) if self._table else None
        # A whole filesystem is called by its device, part of one by a path; the shortest one may be the mount itself.
        what = mount.source if shown in ("", "/") or path in (None, mount.path) else path
        return f"{printable(what)} is mounted at {printable(mount.path)}"

    @staticmethod
    def _seen(mount: mounts.Mount) -> str:
        where = f" in the mount namespace of container {mount.containers[-1][:12]}" if mount.containers else ""
        return f"its data is mounted at {printable(mount.path)} as well{where}"

    def link(self, volume: str) -> str:
        """Where a volume's folder ``_data`` leads, if somebody put a link in its place."""
        if not self._table or not is_name(volume):
            return ""
        path = f"{self._folders.root}/volumes/{volume}/_data"
        try:
            return os.path.realpath(path) if os.path.islink(path) else ""
        except (OSError, ValueError):
            return ""


def link_reason(target: str) -> str:
    """Why a volume stays that is a link: the engine would empty what it leads to, if that is below its volumes."""
    return f"its folder _data is a link to {printable(target)}"


def complete(looked: Snapshot, storage: Storage | None, root: str) -> Snapshot:
    """Return the snapshot with all that uses objects by their path.

    :param storage: the engine's storage, if it is proven to be this host's; else paths are compared as they are written.
    :param root: the engine's data root, as it names it.
    """
    uses = PathUses(storage, root)
    containers = tuple(map(uses.container, looked.containers))
    volumes = tuple(map(uses.volume, looked.volumes))
    holds = uses.holds(volumes, {container.id for container in containers})
    holds += [Hold(owner, "used by a swarm service", "swarm") for owner in map(uses.owner, looked.service_binds) if owner]
    looked = replace(looked, containers=containers, volumes=volumes, holds=tuple(holds))
    strange = uses.in_layers()
    return replace(looked, holds=looked.holds + tuple(of_layers(looked, storage, strange))) if storage and strange else looked


def of_layers(looked: Snapshot, storage: Storage, strange: t.Iterable[tuple[str, str]]) -> list[Hold]:
    """The objects that have layers in whose folders something is mounted.

    :param strange: the layers' folders, each with the reason in words.
    """
    # Who holds which layer is read only where it is asked for: with thousands of images that takes a second.
    from ansible_collections.fleetclean.docker.plugins.module_utils import layers

    holdings = layers.read(storage, looked)
    found = []
    for path, reason in strange:
        account = holdings.accounts.get(holdings.paths.get(path, ""))
        found += [Hold(holder, reason) for holder in sorted(account.holders if account else ())]
    return found
