# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who uses the engine's folders by their path: bind mounts, volumes that show another one's data, mounts at or below them, links.

The engine counts who has a volume by its name, and nothing else. It empties what is mounted below a folder that it removes
(moby 35323), and takes a volume's data from under a container that has it by a bind of ``volumes/NAME/_data``. So all of that
is found here and put into the snapshot, for the policy to decide by; and found again right before a removal.

A path is compared by its place (see ``mounts``), which has all links and mounts resolved, by the places that lead there, and as it is
written. Only a folder of one object, or what lies in it, counts: who has all of ``volumes`` (backup tools, cAdvisor, Portainer's agent) wants none of it
in particular, or everything would stay.
"""

from __future__ import annotations

import os
import posixpath
import typing as t

from ansible_collections.fleetclean.docker.plugins.module_utils import mounts
from ansible_collections.fleetclean.docker.plugins.module_utils.names import with_names
from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import Container, Hold, Snapshot, Volume
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Storage, is_name
from ansible_collections.fleetclean.docker.plugins.module_utils.words import printable

_CONTAINER, _VOLUME = "container", "volume"
#: What the engine itself mounts in a container's folder while it runs, and lets go of before it removes it (``container/container_unix.go``).
_IN_CONTAINERS = ("mounts/shm", "mounts/secrets", "mounts/mqueue", "shm", "secrets", "mqueue")
#: Where storage drivers mount a container's root file system, below its layer: the layer itself, or this.
_IN_LAYERS = ("", "merged")
_LAYER = "layer"
#: Where the engine mounts a container's root file system on containerd's store, by the container's id.
_ROOT = "root"
#: Something of a layer's folder that is used: the folder, why that keeps it in words, and through whom (``Hold.via``).
LayerUse = t.Tuple[str, str, str]


class Folders:
    """The folders that go with the engine's objects, by place and by path."""

    def __init__(self, root: str, storage: Storage | None, table: mounts.Table | None) -> None:
        """``root``: the engine's data root as it names it; ``storage`` and ``table`` where that is this host's."""
        self.root = root
        self._table = table
        self._tops: dict[str, str] = {}
        for part, kind in (("volumes", _VOLUME), ("containers", _CONTAINER)):
            self._add(f"{root}/{part}", kind)
        if storage:
            self._add(f"{root}/rootfs/{storage.driver}", _ROOT)
        self._layers: dict[str, str] = {}
        for folder in storage.layer_folders() if storage else ():
            self._add(folder, _LAYER)
            if table:
                self._layers[table.place(folder)] = folder
        #: The longest first, which is the nearest.
        self._by_length = sorted(((f"{top.rstrip('/')}/", kind) for top, kind in self._tops.items()), key=lambda top: -len(top[0]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folders) and self._by_length == other._by_length

    def _add(self, folder: str, kind: str) -> None:
        self._tops[posixpath.normpath(folder)] = kind
        if self._table:
            self._tops[self._table.place(folder)] = kind

    def find(self, place: str) -> tuple[str, str, str]:
        """What a place lies in, and the rest of the path there: (kind, name, rest); ("", "", "") if in none."""
        for above, kind in self._by_length:
            if place.startswith(above) and len(place) > len(above):
                name, _slash, rest = place[len(above):].partition("/")
                return kind, name, rest
        return "", "", ""

    def touches(self, mount: mounts.Mount) -> bool:
        """Whether a mount has to do with objects' folders, other than the root file systems of containers."""
        kind, _name, rest = self.find(mount.at or "")
        if kind in (_VOLUME, _CONTAINER) or self.find(mount.shows)[0] not in ("", _ROOT):
            return True
        return rest not in _IN_LAYERS if kind == _LAYER else bool(mount.overlay)

    def owners(self, path: str) -> list[str]:
        """The objects in whose folders a path of the host lies, or what it leads through, such as ``volume:data``."""
        return self.owners_at((*self.way(path), posixpath.normpath(path)))

    def owners_at(self, places: t.Iterable[str]) -> list[str]:
        """The same of places."""
        found = map(self.find, places)
        owned = {_VOLUME: _VOLUME, _CONTAINER: _CONTAINER, _ROOT: _CONTAINER}
        return list(dict.fromkeys(f"{owned[kind]}:{name}" for kind, name, _rest in found if kind in owned))

    def way(self, path: str) -> tuple[str, ...]:
        """The places of a path, see ``mounts.Table.way``."""
        return self._table.way(path) if self._table else ()

    def layers_at(self, path: str) -> list[str]:
        """The folders of layers in which a path of the host lies, or what it leads through, as storage names them."""
        return [layer for layer in dict.fromkeys(map(self.layer, self.way(path))) if layer]

    def layer(self, place: str) -> str:
        """The path of the layer's folder in which a place lies; empty if in none."""
        for above in mounts.ancestors(place):
            folder = self._layers.get(above)
            if folder and above != place:
                return f"{folder}/{place[len(above.rstrip('/')) + 1:].split('/')[0]}"
        return ""


class PathUses:
    """What is mounted on this host at one moment, as far as it concerns the engine's folders."""

    def __init__(self, storage: Storage | None, root: str, before: PathUses | None = None) -> None:
        """``root``: the engine's data root; ``storage`` only where it is proven to be this host's; ``before``: an earlier look, whose work is used."""
        self._table: mounts.Table | None = (
            mounts.collect(before._table if before else None, _owners(root)) if storage else None
        )
        self._folders = Folders(root, storage, self._table)
        self._volumes = os.path.realpath(f"{root}/volumes") if storage else ""
        known: dict[mounts.Namespace, tuple[mounts.Mount, ...]] = before._mounts if before and before._folders == self._folders else {}
        self._mounts: dict[mounts.Namespace, tuple[mounts.Mount, ...]] = {
            namespace: known[namespace] if namespace in known else tuple(filter(self._folders.touches, mounts.parse(namespace)))
            for namespace in (self._table.namespaces if self._table else ())
        }

    def owners(self, path: str) -> list[str]:
        """The objects in whose folders a path of the host lies, or what it leads through, such as ``volume:data``."""
        return self._folders.owners(path)

    def container(self, container: Container) -> Container:
        """The container with the objects whose folders it has by a path."""
        # Engines list a container's mounts in another order each time; the first by name is told.
        found = {owner: printable(path) for path in sorted(container.binds, reverse=True) for owner in self._folders.owners(path)}
        return container._replace(reaches=tuple(found.items())) if found else container

    def volume(self, volume: Volume) -> Volume:
        """The volume with the volumes whose data it shows: as its device, as a part of an overlay, or by a link in the place of its folder."""
        link, _target = self.link(volume.name)
        paths = [path for path in (volume.device, f"{self._folders.root}/volumes/{volume.name}/_data" if link else "", *volume.overlaid) if path]
        owners = {owner for path in paths for owner in self._folders.owners(path)}
        shows = tuple(sorted(owners - {f"{_VOLUME}:{volume.name}"}))
        return volume._replace(shows=shows) if shows else volume

    def holds(self, volumes: t.Iterable[Volume], containers: t.Collection[str]) -> list[Hold]:
        """The mounts and links that keep containers and volumes.

        :param containers: ids of the engine's containers.
        """
        found: dict[tuple[str, str, str], Hold] = {}
        bound = {}
        for volume in volumes:
            if volume.driver.startswith("local/"):
                bound[volume.name] = volume.device  # the engine mounts it at its folder as long as a container that runs has it
            reason = self.link_reason(volume.name)
            if reason:
                found[(f"{_VOLUME}:{volume.name}", reason, "")] = Hold(f"{_VOLUME}:{volume.name}", reason)
        for mount in self._all():
            for hold in self._of_mount(mount, bound, containers):
                found[(hold.holder, hold.reason, hold.via)] = hold
        for device, path in mounts.loops() if self._table else ():
            for owner in self._folders.owners(path):
                reason = f"{printable(device)} has its data in {printable(path)}"
                found[(owner, reason, "")] = Hold(owner, reason)
        return list(found.values())

    def in_layers(self, containers: t.Iterable[Container]) -> list[LayerUse]:
        """Foreign mounts in folders of layers, and those that containers bind. Nearly always there are none."""
        found: list[LayerUse] = []
        ids = set()
        for container in containers:
            ids.add(container.id)
            for path in container.binds:
                for layer in self._folders.layers_at(path):
                    found.append((layer, f"container {container.name} binds {printable(path)}", f"{_CONTAINER}:{container.id}"))
        for mount in self._all():
            for place, say in ((mount.at, self._mounted), (mount.shows, self._seen)):
                kind, _name, rest = self._folders.find(place or "")
                # Below its own root file system each container has its mounts.
                if kind == _LAYER and rest not in _IN_LAYERS and not (mount.containers and mounts.below(place or "", mount.root)):
                    found.append((self._folders.layer(place or ""), say(mount), _through(mount, ids)))
        return list(dict.fromkeys(found))

    def _all(self) -> t.Iterator[mounts.Mount]:
        for found in self._mounts.values():
            yield from found

    def _is_device(self, mount: mounts.Mount, bound: t.Mapping[str, str]) -> bool:
        """Whether a mount is the engine's, of what a volume shows; or follows it, as one that came elsewhere with it does."""
        kind, name, rest = self._folders.find(mount.at or "")
        if kind != _VOLUME or rest != "_data" or name not in bound:
            return False
        if mount.alone and mount.path != f"{self._volumes}/{name}/_data":
            return False
        return not bound[name] or mount.shows in self._device_places(name, bound, set())

    def _device_places(self, name: str, bound: t.Mapping[str, str], seen: set[str]) -> set[str]:
        """What a volume can show: its device, and what that shows in turn once it is mounted."""
        seen.add(name)
        found = set(self._folders.way(bound[name]))
        for place in tuple(found):
            kind, other, rest = self._folders.find(place)
            if kind == _VOLUME and bound.get(other) and other not in seen and mounts.below(rest, "_data"):
                found |= {f"{above.rstrip('/')}{rest[len('_data'):]}" for above in self._device_places(other, bound, seen)}
        return found

    def _of_mount(self, mount: mounts.Mount, bound: t.Mapping[str, str], containers: t.Collection[str]) -> t.Iterator[Hold]:
        via = _through(mount, containers)
        kind_at, name, rest = self._folders.find(mount.at or "")
        is_device = self._is_device(mount, bound)
        if kind_at == _VOLUME:
            yield Hold(f"{_VOLUME}:{name}", self._mounted(mount), f"{_VOLUME}:{name}" if not via and is_device else via)
        elif kind_at == _CONTAINER and rest not in _IN_CONTAINERS:
            yield Hold(f"{_CONTAINER}:{name}", self._mounted(mount), via)
        kind, name, rest = self._folders.find(mount.shows)
        if kind == _VOLUME:
            # A volume that shows this one's data keeps it by itself as long as it stays (Volume.shows).
            if via or not is_device:
                yield Hold(f"{_VOLUME}:{name}", self._seen(mount), via)
        elif kind == _CONTAINER and not mount.containers:
            yield Hold(f"{_CONTAINER}:{name}", self._seen(mount))
        # An overlay is the engine's where it is mounted in a layer, or is a container's root.
        if mount.overlay and kind_at != _LAYER and mount.path != "/" and (via or not is_device):
            if mount.layer_places is None:
                owners = {owner for path in mount.layers if path.startswith("/") for owner in self._folders.owners(path)}
            else:
                owners = set(self._folders.owners_at(place for place in mount.layer_places if not place.startswith("/")))
            for owner in sorted(owners):
                yield Hold(owner, f"the overlay at {printable(mount.path)}{_where(mount)} has its data", via)

    def _mounted(self, mount: mounts.Mount) -> str:
        shown = mount.shows.partition(" ")[2]
        path = self._table.path(mount.shows) if self._table else None
        # A whole filesystem is called by its device, part of one by a path; the shortest one may be the mount itself.
        what = mount.source if shown in ("", "/") or path in (None, mount.path) else path
        return f"{printable(what)} is mounted at {printable(mount.path)}{_where(mount)}"

    @staticmethod
    def _seen(mount: mounts.Mount) -> str:
        return f"its data is mounted at {printable(mount.path)} as well{_where(mount)}"

    def link(self, volume: str) -> tuple[str, str]:
        """The link that somebody put in the place of a volume's folder or of its ``_data``, and where its data is by that; "" for none."""
        if not self._table or not is_name(volume):
            return "", ""
        folder = f"{self._folders.root}/volumes/{volume}"
        try:
            return next(((path, os.path.realpath(f"{folder}/_data")) for path in (folder, f"{folder}/_data") if os.path.islink(path)), ("", ""))
        except (OSError, ValueError):
            return "", ""

    def link_reason(self, volume: str) -> str:
        """Why a volume stays that is a link: the engine would empty what it leads to, if that is below its volumes; empty if it is none."""
        link, target = self.link(volume)
        what = "its folder _data" if link.endswith("/_data") else "its folder"
        return f"{what} is a link to {printable(target if what.endswith('_data') else posixpath.dirname(target))}" if link else ""


def _owners(root: str) -> set[int]:
    """The user of an engine's: his mounts are the engine's own, where it has no root."""
    try:
        return {os.stat(root).st_uid}
    except OSError:
        return set()


def _through(mount: mounts.Mount, containers: t.Collection[str]) -> str:
    """The container in whose mount namespace a mount is, as ``Hold.via`` has it."""
    return next((f"{_CONTAINER}:{ident}" for ident in mount.containers if ident in containers), "")


def _where(mount: mounts.Mount) -> str:
    return f" in the mount namespace of container {mount.containers[-1][:12]}" if mount.containers else ""


def complete(looked: Snapshot, storage: Storage | None, root: str) -> Snapshot:
    """Return the snapshot with all that uses objects by their path.

    :param storage: the engine's storage, if it is proven to be this host's; else paths are compared as they are written.
    :param root: the engine's data root, as it names it.
    """
    uses = PathUses(storage, root)
    containers = tuple(map(uses.container, looked.containers))
    volumes = tuple(map(uses.volume, looked.volumes))
    holds = by_name(uses.holds(volumes, {container.id for container in containers}), containers)
    holds += [Hold(owner, "used by a swarm service", "swarm") for path in looked.service_binds for owner in uses.owners(path)]
    looked = looked._replace(containers=containers, volumes=volumes, holds=tuple(holds))
    strange = uses.in_layers(containers)
    return looked._replace(holds=looked.holds + tuple(of_layers(looked, storage, strange))) if storage and strange else looked


def by_name(holds: t.Iterable[Hold], containers: t.Iterable[Container]) -> list[Hold]:
    """The same, with reasons that call the containers by their names."""
    known = {container.id: container.name for container in containers}
    return [hold._replace(reason=with_names(hold.reason, known)) for hold in holds]


def of_layers(looked: Snapshot, storage: Storage, strange: t.Iterable[LayerUse]) -> list[Hold]:
    """The objects that have layers in whose folders something is mounted, or that somebody binds."""
    # Who holds which layer is read only where it is asked for: with thousands of images that takes a second.
    from ansible_collections.fleetclean.docker.plugins.module_utils import layers

    holdings = layers.read(storage, looked)
    found = []
    for path, reason, via in strange:
        account = holdings.paths.get(path)
        found += [Hold(holder, reason, via) for holder in sorted(holdings.accounts[account].holders if account is not None else ())]
    return by_name(found, looked.containers)
