# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""On which filesystems an engine's data lies: its data root, its containerd's, and what is mounted or linked there.

A link right below one of these roots, or in the place of containerd's, is followed once, by its name, if root (or, for an engine without root, the owner
of the data root) made it where nobody else may write, and if what it leads to is shown to be this engine's: by folders of its
objects, or by databases that its own processes hold open there. In doubt it is not followed, and that is said. Links further below are
never followed.

A filesystem mounted on one of the folders that hold objects of one sort is the engine's; one that is mounted further below, on an object's own
folder, is somebody else's (``Storage.structure``), and so is whatever comes from another machine.
"""

from __future__ import annotations

import os
import re
import typing as t

from ansible_collections.fleetclean.docker.plugins.module_utils import trust
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError
from ansible_collections.fleetclean.docker.plugins.module_utils.record_files import read_line
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Storage, is_name, open_files

_ID = re.compile(r"[0-9a-f]{64}")
#: Types that are no disk of this host's: what other machines have may hang, and what the kernel makes up is nobody's data.
_FOREIGN = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|ceph|afs|9p|lustre|glusterfs|gpfs|fuse(\..*)?|autofs|proc|sysfs|cgroup2?|devpts|devtmpfs|mqueue|nsfs|bpf|debugfs"
    r"|tracefs|securityfs|overlay"
)


class Objects(t.Protocol):
    """What of an engine is asked for, to tell its folders by."""

    def containers(self) -> list[dict[str, t.Any]]:
        """The engine's list of containers."""

    def volumes(self) -> list[dict[str, t.Any]]:
        """The engine's list of volumes."""

    def images(self) -> list[dict[str, t.Any]]:
        """The engine's list of images."""


class Disk(t.NamedTuple):
    """A filesystem that holds what the engine owns. ``device`` tells it from others, wherever it is mounted.

    ``places``: the folders from which on it is the engine's, ``holds``: what of the engine's lies there, by the names that reports have for it.
    """

    device: str
    places: tuple[str, ...]
    holds: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """Where to ask for it."""
        return self.places[0]


# -- mounts ----------------------------------------------------------------------------------------


def find(storage: Storage) -> dict[str, str]:
    """The engine's places, the data root first, and the device of each: what is below one, and below no other, is on that filesystem."""
    from ansible_collections.fleetclean.docker.plugins.module_utils import measure

    roots = storage.roots
    found = {root: measure.device(root) for root in roots}
    structure = storage.structure()
    for mount in measure.mounts_below(roots):
        if mount.path in structure and not mount.own and not _FOREIGN.fullmatch(mount.type):
            device = measure.device(mount.path)
            # A folder of a place, mounted once more, counts where it lies.
            if not any(_lies_in(mount.path, place) for place, other in found.items() if other == device):
                found[mount.path] = device
    return found


def beyond(storage: Storage) -> list[str]:
    """Folders of the engine's that lie in none of its places: behind links that were not followed, or on what another machine has."""
    from ansible_collections.fleetclean.docker.plugins.module_utils import measure

    found = [link for root in storage.roots for link in _links(root) if link not in storage.moved]
    base = storage.containerd
    found += [base] if base and os.path.realpath(base) != base else []
    structure = storage.structure()
    return found + [mount.path for mount in measure.mounts_below(storage.roots) if mount.path in structure and _FOREIGN.fullmatch(mount.type)]


def _lies_in(path: str, place: str) -> bool:
    from ansible_collections.fleetclean.docker.plugins.module_utils import measure

    inner, outer = measure.within(path), measure.within(place)
    return inner == outer or inner.startswith(f"{outer.rstrip('/')}/")


def disks(storage: Storage) -> list[Disk]:
    """The filesystems of these places, that of the data root first."""
    by_device: dict[str, list[str]] = {}
    places = find(storage)
    elsewhere = beyond(storage)
    for path, device in places.items():
        by_device.setdefault(device, []).append(path)
    holds: dict[str, list[str]] = {device: [] for device in by_device}
    for category, path in _holding(storage):
        device = places[place_of(path, places)]
        if category not in holds[device] and os.path.isdir(path) and not is_below(path, elsewhere):
            holds[device].append(category)
    return [Disk(device, tuple(paths), tuple(holds[device])) for device, paths in by_device.items()]


def disk_of(path: str, found: t.Sequence[Disk]) -> Disk:
    """The filesystem of these that a path lies on."""
    place = place_of(path, [place for disk in found for place in disk.places])
    return next(disk for disk in found if place in disk.places)


def place_of(path: str, places: t.Collection[str]) -> str:
    """The place that a path lies in; the data root, which is the first, if it is in none."""
    while path not in places:
        if path in ("", "/"):
            return next(iter(places))
        path = os.path.dirname(path)
    return path


def is_below(path: str, folders: t.Collection[str]) -> bool:
    """Whether a path is one of these folders, or lies in one."""
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def _holding(storage: Storage) -> t.Iterator[tuple[str, str]]:
    layers = [*storage.layer_folders(), *storage.pools]
    content = [storage.content] if storage.content else []
    for category, paths in (
        ("images", [*layers, *content]),
        ("containers", layers),
        ("volumes", [storage.volumes]),
        ("build_cache", layers),
        ("logs", [storage.containers]),
        ("container_metadata", [storage.containers]),
        ("engine_metadata", [storage.root, *map(storage.at, ("image", "buildkit", "network", "plugins", "swarm"))]),
        ("tmp", storage.temporary()),
    ):
        for path in paths:
            yield category, path


# -- links -----------------------------------------------------------------------------------------


def locate(storage: Storage, engine: Objects, user: int | None = None) -> tuple[Storage, list[str]]:
    """Return the storage as it really lies, and in words which links were not followed.

    To be called once ``storage.root`` is proven to be this engine's.

    :param user: who runs the engine, None if that is not known. An engine without root has nothing in folders of root's: a link of its
        user's to them leads to another engine's, whose containers he may name as his.
    """
    found = storage._replace(root=os.path.realpath(storage.root))
    refused: list[str] = []
    found = _Witness(found, engine, user).follow(_links(found.root), refused)
    base = found.containerd
    if not base:
        return found, refused
    # The engine's own may be told by its real path.
    own = found.at("containerd/daemon")
    link = own if os.path.realpath(own) == os.path.realpath(base) else base
    if os.path.islink(link):
        found = _Witness(found, engine, user).follow([link], refused)
        base = found.containerd or base
    elif not base.startswith(tuple(f"{root}/" for root in found.roots)):
        base = os.path.realpath(base)
    if os.path.realpath(base) == base:
        found = found._replace(containerd_root=base)
        found = _Witness(found, engine, user).follow(_links(base), refused)
    return found, refused


class _Witness:
    """Tells whose it is where a link leads."""

    def __init__(self, storage: Storage, engine: Objects, user: int | None) -> None:
        self._storage = storage
        self._engine = engine
        self._user = user
        self._databases: list[list[str]] | None = None

    def follow(self, links: t.Sequence[str], refused: list[str]) -> Storage:
        """Follow these links, those first that are told by the engine's objects."""
        known = self._known_names()
        for link in sorted(links, key=lambda path: (path not in known, path)):
            target, why = _target(link, self._user)
            if target and not os.listdir(target):
                continue  # nothing is there that could be counted
            if target and not why:
                why = self._doubt(link, target, known.get(link))
            if target and not why:
                self._storage = self._storage._replace(moved={**self._storage.moved, link: target})
            else:
                refused.append(f"{link} leads elsewhere by a link; what is there is not counted: {why}")
        return self._storage

    def _known_names(self) -> dict[str, t.Callable[[str], tuple[str, list[str]]]]:
        """By link, how to ask for the folder below its target that has a folder for each of these objects of the engine's."""
        storage = self._storage
        images = "io.containerd.content.v1.content"
        found: dict[str, t.Callable[[str], tuple[str, list[str]]]] = {
            f"{storage.root}/containers": lambda at: (at, [str(raw.get("Id")) for raw in self._engine.containers()]),
            f"{storage.root}/volumes": lambda at: (at, [str(raw["Name"]) for raw in self._engine.volumes() if raw.get("Driver") == "local"]),
            f"{storage.root}/image": lambda at: (f"{at}/{storage.driver}/imagedb/content/sha256", self._images()),
            f"{storage.root}/containerd": lambda at: (f"{at}/daemon/{images}/blobs/sha256", self._images()),
            storage.at("containerd/daemon"): lambda at: (f"{at}/{images}/blobs/sha256", self._images()),
        }
        if storage.containerd:
            found[storage.containerd] = lambda at: (f"{at}/{images}/blobs/sha256", self._images())
            found[f"{storage.containerd}/{images}"] = lambda at: (f"{at}/blobs/sha256", self._images())
        if storage.image_store == "graphdriver":
            # aufs has three of them in one folder, and the first holds the files.
            top, _slash, inner = os.path.relpath(storage.layer_folders()[0], storage.root).partition("/")
            found[f"{storage.root}/{top}"] = lambda at: (f"{at}/{inner}".rstrip("/"), self._layers())
        return found

    def _doubt(self, link: str, target: str, ask: t.Callable[[str], tuple[str, list[str]]] | None) -> str:
        """Why what is there may not be this engine's; empty if it is."""
        home = self._containerd_behind(link, target)
        for other in (*self._storage.roots, *self._storage.moved.values()):
            if other == home:
                continue
            if other == target or other.startswith(f"{target.rstrip('/')}/") or target.startswith(f"{other}/"):
                return f"{target} and {other} have each other's files"
        if home and self._storage.runs_containerd(home):
            return ""
        try:
            folder, names = ask(target) if ask else (target, [])
        except FleetcleanError as error:
            return str(error)
        names = [name for name in names if is_name(name)]
        there = sum(1 for name in names if os.path.lexists(f"{folder}/{name}"))
        # Objects come and go while we look.
        if there * 2 > len(names) or self._is_open_by_the_engine(target):
            return ""
        if names:
            return f"{len(names) - there} of {len(names)} objects of this engine are not in {target}"
        return f"nothing shows that {target} is this engine's"

    def _containerd_behind(self, link: str, target: str) -> str:
        """Where the engine's containerd really is, if this link is what leads there; else ""."""
        storage = self._storage
        if not storage.containerd or link not in (f"{storage.root}/containerd", storage.at("containerd/daemon"), storage.containerd):
            return ""
        home = os.path.realpath(storage.containerd)
        return home if home == target or home.startswith(f"{target.rstrip('/')}/") else ""

    def _images(self) -> list[str]:
        found = [str(raw.get("Id")).rpartition(":")[2] for raw in self._engine.images()]
        return [name for name in found if _ID.fullmatch(name)]

    def _layers(self) -> list[str]:
        """The folders of all layers that the layer store names."""
        found = []
        for kind, names in (("sha256", ("cache-id",)), ("mounts", ("mount-id",))):
            folder = f"{self._storage.layer_records}/{kind}"
            try:
                records = os.listdir(folder)
            except OSError:
                continue
            for record in records:
                for name in names:
                    try:
                        found.append(read_line(f"{folder}/{record}/{name}"))
                    except OSError:
                        continue
        return found

    def _is_open_by_the_engine(self, target: str) -> bool:
        """Whether a process has databases open there and in a root that is the engine's: nobody but an engine, or its containerd, does."""
        if self._databases is None:
            self._databases = list(open_files(lambda path: path.endswith(".db"), self._storage.users))
        beneath = tuple(f"{root}/" for root in self._storage.roots)
        return any(
            any(path.startswith(beneath) for path in opened) and any(path.startswith(f"{target}/") for path in opened) for opened in self._databases
        )


def _links(root: str) -> list[str]:
    try:
        with os.scandir(root) as entries:
            return sorted(entry.path for entry in entries if entry.is_symlink())
    except OSError:
        return []


def _target(link: str, user: int | None) -> tuple[str, str]:
    """The folder that a link leads to, and why it is not to be followed; neither if it leads to no folder."""
    try:
        root = os.path.dirname(link)
        trusted = {0, os.stat(root).st_uid}
        # With user namespaces what is the engine's belongs to those whom the data root is named by.
        remapped = re.fullmatch(r"([0-9]+)\.[0-9]+", os.path.basename(root))
        # Over TCP nobody knows who answers; a data root that is a user's makes him the engine's.
        runs_as = os.stat(root).st_uid if user is None and not remapped else user
        owners = {runs_as} if runs_as else trusted | {int(remapped[1])} if remapped else trusted
        return trust.resolve(link, trusted, owners), ""
    except trust.NotTrusted as why:
        return "", str(why)
    except OSError as error:
        return "", f"{error.filename or link}: {error.strerror}"
