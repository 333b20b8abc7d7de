# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each storage driver keeps where below an engine's data root, and whose data root it is.

The one place that knows drivers by name. Sources: the engine's ``daemon/graphdriver/*`` and
``layer/filestore.go`` for the layer stores, ``container/container.go`` for the containers' folder,
containerd's ``docs/PLUGINS.md`` and ``plugins/snapshots/*`` for the snapshotters; ``zfs(8)`` and ``zfsprops(7)``.

Nothing below a data root may be read before ``prove`` has shown that it belongs to the engine that
was asked: an engine on another machine names a path that exists here as well.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import struct
import typing as t
from functools import lru_cache
from types import MappingProxyType

from ansible_collections.fleetclean.docker.plugins.module_utils import record_files, safe_open

#: How the folders of layers have something in common on the disk: by hard links, as snapshots of a filesystem,
#: or as copies, which share their blocks where the filesystem can (reflinks).
LINKS, SNAPSHOTS, COPIES = "links", "snapshots", "copies"


class _Driver(t.NamedTuple):
    """Where a driver keeps layers, relative to its root.

    ``layers`` hold one entry for each layer, by the layer's id, the first of them its files; ``own`` are entries
    there that are the driver's. ``pool`` is one store of all layers, which no folder shows.
    """

    layers: tuple[str, ...]
    own: tuple[str, ...] = ()
    sharing: str = ""
    pool: tuple[str, ...] = ()


#: The graph drivers, relative to the data root. Docker 1.9 had the same folders and kept its records in ``graph``.
_DRIVERS: dict[str, _Driver] = {
    "aufs": _Driver(("aufs/diff", "aufs/layers", "aufs/mnt")),
    "btrfs": _Driver(("btrfs/subvolumes",), sharing=SNAPSHOTS),
    "devicemapper": _Driver(
        ("devicemapper/metadata", "devicemapper/mnt"),
        own=("base", "deviceset-metadata", "transaction-metadata"),
        pool=("devicemapper/devicemapper",),
    ),
    "fuse-overlayfs": _Driver(("fuse-overlayfs",), own=("l",)),
    "overlay": _Driver(("overlay",), sharing=LINKS),
    "overlay2": _Driver(("overlay2",), own=("l",)),
    "vfs": _Driver(("vfs/dir",), sharing=COPIES),
    "zfs": _Driver(("zfs/graph",)),
}
#: containerd's snapshotters, relative to the snapshotter's own folder; a layer is called by a number there.
_SNAPSHOTTERS: dict[str, _Driver] = {
    "blockfile": _Driver(("snapshots",), sharing=COPIES),
    "btrfs": _Driver(("active", "snapshots", "view"), sharing=SNAPSHOTS),
    "devmapper": _Driver(()),
    "fuse-overlayfs": _Driver(("snapshots",)),
    "native": _Driver(("snapshots",), sharing=COPIES),
    "overlayfs": _Driver(("snapshots",)),
    "zfs": _Driver(()),
}
#: What a containerd holds open as long as it runs, below its folder.
_DATABASE = "/io.containerd.metadata.v1.bolt/meta.db"
#: Seconds for a containerd to take a connection, which says nothing and ends.
_ANSWERS_WITHIN = 2.0
#: Process, user and group (socket(7), struct ucred).
_CREDENTIALS = struct.Struct("3i")
_DELETED = " (deleted)"
#: Where containerd keeps its data, unless it can be asked: its own below the data root, or the system's. Each
#: snapshotter has a folder of its name there.
_CONTAINERD = ("{root}/containerd/daemon", "/var/lib/containerd")
#: The same for every driver, relative to the data root.
_COMMON: dict[str, tuple[str, ...]] = {
    "containers": ("containers",),
    "volumes": ("volumes",),
    "build_cache": ("buildkit", "builder"),
    "logs": ("containers",),
    "tmp": ("tmp",),
    "plugins": ("plugins",),
    "swarm": ("swarm",),
    "networks": ("network",),
}
#: What lies at these places, unless somebody owns it, is the engine's own; the rest at the root is nobody we know.
_ENGINES_OWN = (
    "builder", "buildkit", "containerd", "engine-id", "image", "graph", "network", "nuke-graph-directory.sh", "plugins",
    "runtimes", "swarm", "trust", "volumes", "linkgraph.db", "init", "execdriver", "rootfs", "containers",
    ".migration-v1-images.json", ".migration-v1-tags",  # of the move from 1.9, which engines until 18.09 look at again
    "lost+found",  # the filesystem's
)
#: Half-made things: of pulls, builds and loads that are under way, or were when the engine was killed.
_TEMPORARY = ("tmp", "graph/_tmp", "containerd/daemon/tmpmounts", "buildkit/executor")
_TOOL_PLACES = "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin:/usr/local/bin"
#: Seconds; a pool that has lost its disks answers never.
_PATIENCE = 60
_DECIMAL = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4, "p": 1000**5}


#: What is taken along of a container's records.
_STATE = {"Running": bool, "Paused": bool, "Restarting": bool, "StartedAt": str, "FinishedAt": str, "ExitCode": int}
_RESTART = {"Name": str, "MaximumRetryCount": int}
#: Of a layer's size in bytes.
_MOST_DIGITS = 18
_ID = re.compile(r"[0-9a-f]{64}")
#: With user namespaces the data root has a folder for each mapping, named by the user and group that root is.
_REMAPPED = re.compile(r"[0-9]+\.[0-9]+")
#: A layer's id for its driver: of a pulled layer 64 digits, of a writable one perhaps with ``-init``, of BuildKit's
#: 25 letters, of containerd's a number.
LAYER_NAME = re.compile(r"[0-9a-z]{1,64}(-init|-removing)?")


def is_name(name: str) -> bool:
    """Whether an object's name can be a folder's, as it is: nothing that leads elsewhere."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


class Storage(t.NamedTuple):
    """An engine's storage as ``GET /info`` describes it.

    ``image_store`` is ``graphdriver`` or ``containerd``; ``driver_status`` what the driver says of
    itself (for zfs and devicemapper the only place where its sizes are). ``namespace``: what the engine
    calls itself at its containerd; ``containerd_address``: the containerd's socket, where the engine tells it.
    ``moved``: folders that are links, and where what the engine keeps there really lies, as places.py has verified it;
    ``containerd_root``: the same of the containerd's folder, once it is known.
    """

    root: str
    driver: str
    image_store: str
    driver_status: dict[str, str]
    namespace: str = "moby"
    containerd_address: str = ""
    moved: t.Mapping[str, str] = MappingProxyType({})
    containerd_root: str = ""

    def at(self, part: str) -> str:
        """Where a part of the data root really lies: behind a link where one was verified, else below the root."""
        return self.really(f"{self.root}/{part}")

    def really(self, path: str) -> str:
        """The same for any path."""
        for link, target in self.moved.items():
            if path == link or path.startswith(f"{link}/"):
                return target + path[len(link):]
        return path

    def candidates(self) -> dict[str, list[str]]:
        """Every path that this driver may use, by category, whether it exists or not."""
        paths: dict[str, list[str]] = {"layers": [], "image_metadata": []}
        if self.image_store == "containerd":
            for base in self._containerd_places():
                paths["layers"].append(self._snapshotter(base))
                paths["image_metadata"].append(self.really(f"{base}/io.containerd.content.v1.content"))
                paths["image_metadata"].append(self.really(f"{base}/io.containerd.metadata.v1.bolt"))
        else:
            driver = _DRIVERS.get(self.driver, _Driver((self.driver,)))
            paths["layers"] = [self.at(part) for part in (*driver.pool, *driver.layers)]
            paths["image_metadata"] = [self.at(f"image/{self.driver}"), self.at("graph"), self.at(f"repositories-{self.driver}")]
        for category, parts in _COMMON.items():
            paths[category] = [self.at(part) for part in parts]
        return paths

    def paths(self) -> dict[str, list[str]]:
        """The paths that exist, by category. Read this only after ``prove``."""
        found = {name: [p for p in paths if os.path.lexists(p)] for name, paths in self.candidates().items()}
        base = self.containerd
        if base:
            # Another containerd is somebody else's, or was in use before.
            for name in ("layers", "image_metadata"):
                found[name] = [path for path in found[name] if path.startswith(f"{base}/")]
        return found

    def others(self) -> list[str]:
        """Layer folders of drivers that were in use before, and their lists of tags: they stay on disk and out of sight."""
        own = set(self.candidates()["layers"])
        found = []
        for name, driver in _DRIVERS.items():
            tags = f"{self.root}/repositories-{name}"
            if name != self.driver and os.path.isfile(tags) and not os.path.islink(tags):
                found.append(tags)
            path = f"{self.root}/{(*driver.pool, *driver.layers)[0]}"
            if path not in own and os.path.isdir(path) and not os.path.islink(path) and os.listdir(path):
                found.append(path)
        return sorted(found)

    def other_stores(self) -> list[str]:
        """What the engine's own containerd has of an image store or a snapshotter that was in use before."""
        own = self.at("containerd/daemon")
        in_use = os.path.realpath(self.containerd or "/") == os.path.realpath(own)
        found = []
        for name, kind in _SNAPSHOTTERS.items():
            folder = f"{own}/io.containerd.snapshotter.v1.{name}"
            if not (in_use and name == self.driver) and any(_has_entries(f"{folder}/{part}") for part in kind.layers):
                found.append(folder)
        content = f"{own}/io.containerd.content.v1.content"
        # Layers are there once images were: else that content is of a pull for the graph driver.
        return sorted(found + ([content] if found and not in_use and os.path.isdir(content) else []))

    def container_record(self, container_id: str) -> dict[str, t.Any] | None:
        """What a container's own records say of its times, its restart policy, on which other containers it stands and whether it
        was stopped by hand, as its inspection names it; None if they are not there (``container/container.go``, CheckpointTo).
        Nothing else of them is taken along.
        """
        if not _ID.fullmatch(container_id):
            return None
        folder = f"{self.containers}/{container_id}"
        try:
            return _typed_record(record_files.read_object(f"{folder}/config.v2.json"), record_files.read_object(f"{folder}/hostconfig.json"))
        except (OSError, ValueError):
            return None

    def volume_data(self, name: str) -> str | None:
        """The folder that a volume of the local driver is mounted from; None for a name that is no folder's."""
        return f"{self.volumes}/{name}/_data" if is_name(name) else None

    def image_record(self, image_id: str) -> str | None:
        """The file that the graph drivers' image store wrote when this image arrived."""
        return self._in_image_store("content", image_id)

    def _in_image_store(self, part: str, image_id: str) -> str | None:
        ident = image_id.rsplit(":", 1)[-1]
        if self.image_store != "graphdriver" or not _ID.fullmatch(ident):
            return None
        return self.at(f"image/{self.driver}/imagedb/{part}/sha256/{ident}")

    def image_tagged(self, image_id: str) -> str | None:
        """When an image was last given a tag, as its inspection would tell (``image/store.go``, SetLastUpdated); None if never."""
        folder = self._in_image_store("metadata", image_id)
        if not folder:
            return None
        try:
            return record_files.read_line(f"{folder}/lastUpdated", 64)
        except OSError:
            return None

    def image_layers(self, image_id: str) -> tuple[str, ...] | None:
        """The digests of an image's layers, lowest first, out of its record; None if it has none here."""
        path = self.image_record(image_id)
        if not path:
            return None
        try:
            layers = record_files.read_object(path)["rootfs"]
            return tuple(record_files.texts(layers.get("diff_ids")))
        except (OSError, ValueError, KeyError, AttributeError):
            return None

    def layer_sizes(self) -> dict[str, int]:
        """Bytes of every layer that the layer store knows, by chain id (the engine's figure: file lengths)."""
        sizes: dict[str, int] = {}
        folder = f"{self.layer_records}/sha256"
        try:
            names = os.listdir(folder)
        except OSError:
            return sizes
        for name in names:
            try:
                size = record_files.read_line(f"{folder}/{name}/size", 40) or "0"
            except OSError:
                continue
            if size.isdigit() and len(size) <= _MOST_DIGITS:
                sizes[f"sha256:{name}"] = int(size)
        return sizes

    @property
    def containers(self) -> str:
        """The folder that has a folder for each container."""
        return self.at("containers")

    @property
    def volumes(self) -> str:
        """The folder that has a folder for each volume of the local driver."""
        return self.at("volumes")

    @property
    def volumes_linked(self) -> bool:
        """Whether that folder is a link. The engine removes nothing whose real path is not below its root (``volume/local``, Remove)."""
        return os.path.islink(f"{self.root}/volumes")

    # -- where layers lie ----------------------------------------------------------------------

    @property
    def layer_records(self) -> str:
        """The layer store of the graph drivers: a folder for each layer, by chain id, and one for each writable layer."""
        return self.at(f"image/{self.driver}/layerdb")

    @property
    def old_records(self) -> str | None:
        """The records of Docker 1.9 and older, a folder for each image; None if there are none."""
        path = self.at("graph")
        return path if os.path.isdir(path) and not os.path.isdir(self.layer_records) else None

    @property
    def containerd(self) -> str | None:
        """The folder of the containerd that has the images; None with a graph driver, or where it is not found."""
        if self.image_store != "containerd":
            return None
        if self.containerd_root:
            return self.containerd_root
        places = [place for place in self._containerd_places() if os.path.isdir(self._snapshotter(place))]
        if len(places) > 1:
            # An engine that has gone over to the system's has left its own behind, without a process.
            places = [place for place in places if self.runs_containerd(place)] or places
        return places[0] if places else None

    def runs_containerd(self, folder: str) -> bool:
        """Whether the engine's containerd is seen to have its database open at this place."""
        return _is_open(f"{folder}{_DATABASE}", self.users)

    @property
    def users(self) -> frozenset[int]:
        """Whose processes may be the engine's: root's, and those of the data root's owner, which an engine without root is."""
        try:
            owner = os.stat(self.root).st_uid
        except OSError:
            owner = 0
        # With user namespaces that is the containers' root.
        return frozenset({0} if _REMAPPED.fullmatch(os.path.basename(self.root)) else {0, owner})

    @property
    def snapshotter(self) -> str | None:
        """The folder of the snapshotter that has the layers of containerd's image store."""
        base = self.containerd
        return self._snapshotter(base) if base else None

    @property
    def roots(self) -> list[str]:
        """The data roots: the engine's, its containerd's where that lies elsewhere, and where links lead that were verified. Links are resolved."""
        found = [os.path.realpath(self.root)]
        base = self.containerd
        # Nobody goes by a link that was not verified.
        own = [base] if base and os.path.realpath(base) == base else []
        for path in (*self.moved.values(), *own):
            if path not in found and not path.startswith(tuple(f"{root}/" for root in found)):
                found.append(path)
        return found

    @property
    def sharing(self) -> str:
        """How layers share what they have in common: LINKS, SNAPSHOTS, COPIES, or not at all ("")."""
        return self._kind().sharing

    @property
    def pools(self) -> list[str]:
        """Files and folders that hold all layers together."""
        return [self.at(part) for part in self._kind().pool]

    def layer_folders(self) -> list[str]:
        """The folders in which each entry is a layer's."""
        if self.image_store != "containerd":
            return [self.at(part) for part in self._kind().layers]
        base = self.snapshotter
        return [f"{base}/{part}" for part in self._kind().layers] if base else []

    def layer_paths(self, ident: str) -> list[str]:
        """Where a layer may lie, by the id that the driver knows it by."""
        if not LAYER_NAME.fullmatch(ident):
            return []
        return [f"{folder}/{ident}" for folder in self.layer_folders()]

    def is_drivers_own(self, name: str) -> bool:
        """Whether an entry beside the layers belongs to the driver."""
        return name in self._kind().own or not LAYER_NAME.fullmatch(name)

    def engines_own(self) -> list[str]:
        """Places of which the engine has no object: its databases, records and keys."""
        parts = (*_ENGINES_OWN, f"repositories-{self.driver}")
        own = [f"{self.root}/{part}" for part in parts]
        # A link is the engine's as well as what it leads to.
        own += [path for path in map(self.at, parts) if path not in own]
        own += self.moved
        return own + ([self.containerd] if self.containerd else [])

    def temporary(self) -> list[str]:
        """Places for what is half made."""
        found = [self.at(part) for part in _TEMPORARY]
        if self.containerd:
            found += [f"{self.containerd}/tmpmounts", f"{self.content}/ingest"]
        return found

    @property
    def content(self) -> str:
        """The folder of containerd's content store; "" with a graph driver."""
        return self.really(f"{self.containerd}/io.containerd.content.v1.content") if self.containerd else ""

    def structure(self) -> set[str]:
        """Folders that hold what the engine owns of one sort, and those above them: a filesystem that is mounted on one is the engine's to fill.

        What is mounted further below, on an object's own folder, is not: a volume's own disk, a layer's device, somebody's NFS.
        """
        records = (self.layer_records, *(f"{self.layer_records}/{part}" for part in ("sha256", "mounts", "tmp")))
        lowest = [*self.layer_folders(), *self.pools, *records, *self.temporary(), self.at("containerd/daemon")]
        if self.containerd:
            lowest += [self.really(path) for path in _children(self.containerd) if os.path.basename(path).startswith("io.containerd.")]
            lowest += [f"{self.content}/blobs/sha256"]
        names = [part for part in (*_ENGINES_OWN, *(parts[0] for parts in _COMMON.values())) if "." not in part]
        found = {self.at(name) for name in names}
        roots = self.roots
        for path in lowest:
            while path.startswith(tuple(f"{root}/" for root in roots)) and path not in roots:
                found.add(path)
                path = os.path.dirname(path)
        return found.union(roots)

    def _containerd_places(self) -> list[str]:
        told = _containerd_at(self.containerd_address, self.users) if self.containerd_address else None
        return [told] if told else [self.really(place.format(root=self.root)) for place in _CONTAINERD]

    def _snapshotter(self, base: str) -> str:
        return self.really(f"{base}/io.containerd.snapshotter.v1.{self.driver}")

    def _kind(self) -> _Driver:
        if self.image_store == "containerd":
            return _SNAPSHOTTERS.get(self.driver, _Driver(("snapshots",)))
        return _DRIVERS.get(self.driver, _Driver((self.driver,)))


def _typed_record(config: dict[str, t.Any], host: dict[str, t.Any]) -> dict[str, t.Any]:
    """What is taken along of a container's records.

    :raises ValueError: a value is of another type than the engine's own.
    """
    state = _part(config, "State")
    if not state or "Config" not in config:
        raise ValueError("a record of another form")
    restart = _part(host, "RestartPolicy")
    return {
        "Created": record_files.only(config.get("Created"), str),
        "State": {name: record_files.only(state.get(name), kind) for name, kind in _STATE.items()},
        "RestartCount": record_files.only(config.get("RestartCount"), int),
        "Config": {"Image": record_files.only(_part(config, "Config").get("Image"), str)},
        "HostConfig": {
            "RestartPolicy": {name: record_files.only(restart.get(name), kind) for name, kind in _RESTART.items()},
            **{name: record_files.only(host.get(name), str) for name in ("NetworkMode", "IpcMode", "PidMode")},
            **{name: record_files.texts(host.get(name)) for name in ("VolumesFrom", "Links")},
        },
        "NetworkSettings": {"Networks": {name: {"Links": record_files.texts(end.get("Links"))} for name, end in _ends(config).items()}},
        "StoppedByHand": config.get("HasBeenManuallyStopped") is True,
    }


def _part(record: dict[str, t.Any], name: str) -> dict[str, t.Any]:
    return record_files.only(record.get(name), dict) or {}


def _ends(config: dict[str, t.Any]) -> dict[str, t.Any]:
    """The networks of a container's record, by name."""
    ends = _part(_part(config, "NetworkSettings"), "Networks")
    return {name: end for name, end in ends.items() if isinstance(end, dict)}


class Proof(t.NamedTuple):
    """Whether the data root here is the engine's. ``words`` says by what, or why not."""

    proven: bool
    words: str


def from_info(info: dict[str, t.Any]) -> Storage:
    """Read an engine's storage from its answer to ``GET /info``."""
    status: dict[str, str] = {}
    for pair in info.get("DriverStatus") or []:
        if isinstance(pair, (list, tuple)) and len(pair) == 2:
            status[str(pair[0])] = str(pair[1])
    root = str(info.get("DockerRootDir") or "/var/lib/docker").rstrip("/") or "/"
    told = info.get("Containerd") or {}  # API 1.46 and newer
    namespace = (told.get("Namespaces") or {}).get("Containers")
    if not namespace:
        # With user namespaces it has the root's own numbers in it (daemon.go, RemapContainerdNamespaces).
        remapped = any("name=userns" in str(option) for option in info.get("SecurityOptions") or [])
        ids = os.path.basename(root)
        namespace = f"moby-{ids}" if remapped and _REMAPPED.fullmatch(ids) else "moby"
    # Only containerd's image store names its snapshotter plugin here.
    containerd = status.get("driver-type", "").startswith("io.containerd.snapshotter")
    return Storage(
        root=root,
        driver=str(info.get("Driver") or ""),
        image_store="containerd" if containerd else "graphdriver",
        driver_status=status,
        namespace=str(namespace),
        containerd_address=str(told.get("Address") or ""),
    )


@lru_cache(maxsize=None)
def _containerd_at(address: str, users: frozenset[int]) -> str | None:
    """The data of the containerd that listens at a socket, by the database that its process holds open; None if that cannot be seen.

    What is read there says what is nobody's, so neither the address nor a name in /proc is believed: anybody may bind a socket to any path in a
    mount namespace of his own, and a container's root is root. The socket is one that only these users could have put there, and the kernel says
    which process listens there (unix(7), SO_PEERCRED).
    """
    from ansible_collections.fleetclean.docker.plugins.module_utils import trust

    path = address[len("unix://"):] if address.startswith("unix://") else address
    if not os.path.isabs(path):
        return None
    try:
        real = os.path.realpath(path)
        for folder in (os.path.dirname(path), os.path.dirname(real)):
            trust.resolve(folder, users)
        found = os.lstat(real)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid not in users or os.lstat(path).st_uid not in users:
            return None
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_ANSWERS_WITHIN)
            connection.connect(real)
            pid, uid, _gid = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid not in users or pid <= 0:
            return None
        opened = next(iter(_opened_by(str(pid), users, lambda name: name.endswith(_DATABASE))), None)
        return opened[: -len(_DATABASE)] if opened else None
    except (OSError, ValueError, trust.NotTrusted):
        return None


@lru_cache(maxsize=None)
def _is_open(path: str, users: frozenset[int]) -> bool:
    """Whether a process of these users has a file open, as far as that can be seen."""
    path = os.path.realpath(path)
    return any(path in opened for opened in open_files(lambda name: name == path, users))


def _has_entries(folder: str) -> bool:
    return bool(_children(folder))


def _children(folder: str) -> list[str]:
    """The paths right below a folder; none if it cannot be read."""
    try:
        return [f"{folder}/{name}" for name in os.listdir(folder)]
    except OSError:
        return []


def open_files(wanted: t.Callable[[str], bool], users: t.Collection[int]) -> t.Iterator[list[str]]:
    """What each process of these users has open of what is wanted, by paths of this mount namespace, as far as that can be seen.

    A path in /proc is that of the process's own mount namespace, in which anybody may have a folder of any name: so what it leads to here has to be
    the very file. Of a deleted one that can only be said of its filesystem.
    """
    from ansible_collections.fleetclean.docker.plugins.module_utils import processes

    return (_opened_by(str(pid), users, wanted) for pid in (os.getpid(), *processes.pids()))


def _opened_by(pid: str, users: t.Collection[int], wanted: t.Callable[[str], bool]) -> list[str]:
    from ansible_collections.fleetclean.docker.plugins.module_utils import processes

    found: list[str] = []
    try:
        # This stays with the process: should it end and its number be another's, nothing is found through it any more.
        process = os.open(f"/proc/{pid}", safe_open.DIRECTORY)
    except OSError:
        return found
    try:
        # First: a file of another user's may be on a filesystem of his own, which never answers.
        if not _users_of(process) <= set(users):
            return found
        descriptors = os.open("fd", safe_open.DIRECTORY, dir_fd=process)
        try:
            for number in processes.names_in(descriptors):
                try:
                    path = os.readlink(number, dir_fd=descriptors)
                    if path.startswith("/") and wanted(path) and _is_here(path, os.stat(number, dir_fd=descriptors)):
                        found.append(path)
                except OSError:
                    continue
        finally:
            os.close(descriptors)
        # It may have become somebody else's meanwhile, with what it had open.
        return found if not found or _users_of(process) <= set(users) else []
    except OSError:
        return []
    finally:
        os.close(process)


def _is_here(path: str, found: os.stat_result) -> bool:
    """Whether an open file is the one that its path leads to here."""
    if not path.endswith(_DELETED):
        here = os.stat(path, follow_symlinks=False)
        return (here.st_dev, here.st_ino) == (found.st_dev, found.st_ino)
    folder = os.path.dirname(path)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return os.stat(folder).st_dev == found.st_dev


def _users_of(process: int) -> set[int]:
    """The users of a process, by a descriptor of its folder (which may belong to root, whoever it is: proc(5), PR_SET_DUMPABLE); -1 if that is not told."""
    from ansible_collections.fleetclean.docker.plugins.module_utils import processes

    return set(processes.parse_user_ids(processes.read_text("status", process))) or {-1}


def prove(
    storage: Storage,
    info: dict[str, t.Any],
    address: str,
    containers: t.Sequence[str],
    volumes: t.Sequence[str],
    key_file: str = "/etc/docker/key.json",
    listener: int | None = None,
) -> Proof:
    """Show that ``storage.root`` on this machine is the data root of the engine that answered.

    By, in this order: the ``engine-id`` file that engines 23 and newer write into their data root;
    folders that only this engine could have made (containers, anonymous volumes by their random
    ids); the key that older engines take their id from. A clone of a machine has the same
    engine-id, so an engine reached over TCP must also give this machine's name. What listens at a socket has to be root's, or of the
    user whose data root it is: ids of another engine's containers are for all to see, and any user may answer with them.

    :param address: docker_host.
    :param containers: ids of the engine's containers.
    :param volumes: names of the engine's volumes.
    :param listener: the user whose process listens at the engine's socket, None if there is none.
    """
    root = storage.root
    ident = str(info.get("ID") or "")
    foreign = f"the data root {root} here is not the one of the engine at {address}"
    if not os.path.isabs(root) or not os.path.isdir(root):
        return Proof(False, f"{foreign}: there is no such folder")
    if not os.access(root, os.R_OK | os.X_OK):
        return Proof(False, f"the data root {root} cannot be read; use become: true")
    if not address.startswith("unix://") and info.get("Name") != os.uname().nodename:
        return Proof(False, f"{foreign}: that one runs on {info.get('Name')!r}, this is {os.uname().nodename!r}")
    owner = os.stat(root).st_uid
    if listener not in (None, 0, owner, os.geteuid()):
        return Proof(False, f"{foreign}: it belongs to user {owner}, and user {listener} listens there")
    written = _first_line(f"{root}/engine-id")
    if written is not None:
        if ident and written == ident:
            return Proof(True, f"{root}/engine-id")
        return Proof(False, f"{foreign}: {root}/engine-id is another engine's")
    ids = [name for name in containers if _ID.fullmatch(name)]
    if ids:
        return _by_folders(f"{root}/containers", ids, foreign, "containers")
    random_names = [name for name in volumes if _ID.fullmatch(name)]
    if random_names:
        return _by_folders(f"{root}/volumes", random_names, foreign, "anonymous volumes")
    for key in (key_file, *_other_keys(root)) if ident and address.startswith("unix://") else ():
        if _key_id(key) == ident:
            return Proof(True, key)
    return Proof(
        False,
        f"nothing shows that the data root {root} here is the one of the engine at {address} "
        "(no engine-id, no container, no anonymous volume)",
    )


def _by_folders(folder: str, names: t.Sequence[str], foreign: str, what: str) -> Proof:
    """Objects come and go while we look, so one missing folder proves nothing; most missing do."""
    there = sum(1 for name in names if os.path.isdir(f"{folder}/{name}"))
    if there * 2 > len(names):
        return Proof(True, f"{what} in {folder}")
    return Proof(False, f"{foreign}: {len(names) - there} of its {len(names)} {what} are not in {folder}")


def _first_line(path: str) -> str | None:
    try:
        return safe_open.read_head(path, 200).decode("utf-8", "replace").partition("\n")[0].strip()
    except OSError:
        return None


def _other_keys(root: str) -> list[str]:
    """Where balenaEngine has its key, and an engine without root: with the rest of its user's configuration."""
    home, _slash, rest = root.partition("/.local/share/")
    return ["/etc/balena-engine/key.json"] + ([f"{home}/.config/{rest}/key.json"] if rest in ("docker", "balena-engine") else [])


def _key_id(path: str) -> str | None:
    try:
        return record_files.only(record_files.read_object(path).get("kid"), str)
    except (OSError, ValueError):
        return None


# -- outside plain folders -------------------------------------------------------------------------


class Pool(t.NamedTuple):
    """Layers that no folder shows: ZFS datasets, thin pools on block devices.

    ``layers``: bytes by the id that the driver knows a layer by; one entry for all if only the sum is known.
    ``with_root``: the sum has the data root's own files in it.
    """

    layers: t.Mapping[str, int] = MappingProxyType({})
    by_layer: bool = False
    with_root: bool = False


def pool(storage: Storage) -> Pool:
    """Return what lies outside the data root's folders; nothing for drivers that keep all in folders."""
    status = storage.driver_status
    dataset = status.get("Parent Dataset")
    if dataset:
        found = _datasets(dataset)
        if found is not None:
            return Pool(found, True)
        used = status.get("Space Used By Parent")
        return Pool({"all": int(used)}, with_root=True) if used and re.fullmatch(r"[0-9]{1,18}", used) else Pool()
    if status.get("Pool Name") and not status.get("Data loop file"):
        used_bytes = _human(status.get("Data Space Used", ""))
        return Pool({"all": used_bytes}) if used_bytes else Pool()
    return Pool()


def has_layers_elsewhere(storage: Storage) -> bool:
    """Whether layers lie where the data root's own filesystem does not count them."""
    status = storage.driver_status
    return bool(status.get("Parent Dataset") or (status.get("Pool Name") and not status.get("Data loop file")))


def _datasets(parent: str) -> dict[str, int] | None:
    """Bytes that each dataset below ``parent`` has of its own, with its snapshots; None if nobody can be asked."""
    import shutil
    import subprocess

    tool = shutil.which("zfs", path=_TOOL_PLACES)
    if not tool or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.:/ -]*", parent):
        return None
    columns = "name,usedbydataset,usedbysnapshots,usedbyrefreservation"
    try:
        done = subprocess.run(
            [tool, "list", "-H", "-p", "-r", "-t", "filesystem,volume", "-o", columns, parent],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE, check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    if done.returncode:
        return None
    found = {}
    for line in done.stdout.splitlines():
        name, *figures = line.split("\t")
        if name != parent and figures and all(figure.isdigit() for figure in figures):
            # The parent itself is the data root, whose files are walked.
            found[name.rpartition("/")[2]] = sum(int(figure) for figure in figures)
    return found


def _human(text: str) -> int | None:
    """The engine's way to write sizes, decimal: ``240.1MB``."""
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?) ?([kKMGTP]?)B", text.strip())
    return int(float(match[1]) * _DECIMAL[match[2].lower()]) if match else None
