# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each storage driver keeps where below an engine's data root, and whose data root it is.

The one place that knows drivers by name. Sources: the engine's ``daemon/graphdriver/*`` and
``layer/filestore.go`` for the layer stores, ``container/container.go`` for the containers' folder,
containerd's ``docs/PLUGINS.md`` and ``plugins/snapshots/*`` for the snapshotters.

Nothing below a data root may be read before ``prove`` has shown that it belongs to the engine that
was asked: an engine on another machine names a path that exists here as well.
"""

from __future__ import annotations

import json
import os
import re
import typing as t
from dataclasses import dataclass

#: What the classic drivers keep of layers, relative to the data root. Docker 1.9 had the same folders
#: and kept its records in ``graph``.
_LAYERS: dict[str, tuple[str, ...]] = {
    "aufs": ("aufs/diff", "aufs/layers", "aufs/mnt"),
    "btrfs": ("btrfs/subvolumes",),
    "devicemapper": ("devicemapper/devicemapper", "devicemapper/metadata", "devicemapper/mnt"),
    "fuse-overlayfs": ("fuse-overlayfs",),
    "overlay": ("overlay",),
    "overlay2": ("overlay2",),
    "vfs": ("vfs/dir",),
    "zfs": ("zfs/graph",),
}
#: Where containerd keeps its data: its own below the data root, or the system's. Each snapshotter
#: (overlayfs, native, btrfs, zfs, blockfile, ...) has a folder of its name there.
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
_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Storage:
    """An engine's storage as ``GET /info`` describes it.

    ``image_store`` is ``graphdriver`` or ``containerd``; ``driver_status`` what the driver says of
    itself (for zfs and devicemapper the only place where its sizes are).
    """

    root: str
    driver: str
    image_store: str
    driver_status: dict[str, str]

    def candidates(self) -> dict[str, list[str]]:
        """Every path that this driver may use, by category, whether it exists or not."""
        paths: dict[str, list[str]] = {"layers": [], "image_metadata": []}
        if self.image_store == "containerd":
            for base in (place.format(root=self.root) for place in _CONTAINERD):
                paths["layers"].append(f"{base}/io.containerd.snapshotter.v1.{self.driver}")
                paths["image_metadata"].append(f"{base}/io.containerd.content.v1.content")
                paths["image_metadata"].append(f"{base}/io.containerd.metadata.v1.bolt")
        else:
            paths["layers"] = [f"{self.root}/{part}" for part in _LAYERS.get(self.driver, (self.driver,))]
            paths["image_metadata"] = [
                f"{self.root}/image/{self.driver}",
                f"{self.root}/graph",
                f"{self.root}/repositories-{self.driver}",
            ]
        for category, parts in _COMMON.items():
            paths[category] = [f"{self.root}/{part}" for part in parts]
        return paths

    def paths(self) -> dict[str, list[str]]:
        """The paths that exist, by category. Read this only after ``prove``."""
        found = {name: [p for p in paths if os.path.lexists(p)] for name, paths in self.candidates().items()}
        if self.image_store == "containerd":
            # With a containerd below the data root, the system's containerd is somebody else's.
            for name in ("layers", "image_metadata"):
                inside = [path for path in found[name] if path.startswith(f"{self.root}/")]
                found[name] = inside or found[name]
        return found

    def others(self) -> list[str]:
        """Layer folders of drivers that were in use before: they stay on disk and out of sight."""
        own = set(self.candidates()["layers"])
        found = []
        for parts in _LAYERS.values():
            path = f"{self.root}/{parts[0]}"
            if path not in own and os.path.isdir(path) and not os.path.islink(path) and os.listdir(path):
                found.append(path)
        return sorted(found)

    def image_record(self, image_id: str) -> str | None:
        """The file that the graph drivers' image store wrote when this image arrived."""
        ident = image_id.rsplit(":", 1)[-1]
        if self.image_store != "graphdriver" or not _ID.fullmatch(ident):
            return None
        return f"{self.root}/image/{self.driver}/imagedb/content/sha256/{ident}"

    def layer_sizes(self) -> dict[str, int]:
        """Bytes of every layer that the layer store knows, by chain id (the engine's figure: file lengths)."""
        sizes: dict[str, int] = {}
        folder = f"{self.root}/image/{self.driver}/layerdb/sha256"
        try:
            names = os.listdir(folder)
        except OSError:
            return sizes
        for name in names:
            try:
                with open(f"{folder}/{name}/size", encoding="ascii") as stream:
                    sizes[f"sha256:{name}"] = int(stream.read().strip() or 0)
            except (OSError, ValueError):
                continue
        return sizes


@dataclass(frozen=True)
class Proof:
    """Whether the data root here is the engine's. ``words`` says by what, or why not."""

    proven: bool
    words: str


def from_info(info: dict[str, t.Any]) -> Storage:
    """Read an engine's storage from its answer to ``GET /info``."""
    status: dict[str, str] = {}
    for pair in info.get("DriverStatus") or []:
        if isinstance(pair, (list, tuple)) and len(pair) == 2:
            status[str(pair[0])] = str(pair[1])
    # Only containerd's image store names its snapshotter plugin here.
    containerd = status.get("driver-type", "").startswith("io.containerd.snapshotter")
    return Storage(
        root=str(info.get("DockerRootDir") or "/var/lib/docker").rstrip("/") or "/",
        driver=str(info.get("Driver") or ""),
        image_store="containerd" if containerd else "graphdriver",
        driver_status=status,
    )


def prove(
    storage: Storage,
    info: dict[str, t.Any],
    address: str,
    containers: t.Sequence[str],
    volumes: t.Sequence[str],
    key_file: str = "/etc/docker/key.json",
) -> Proof:
    """Show that ``storage.root`` on this machine is the data root of the engine that answered.

    By, in this order: the ``engine-id`` file that engines 23 and newer write into their data root;
    folders that only this engine could have made (containers, anonymous volumes by their random
    ids); the key that older engines take their id from. A clone of a machine has the same
    engine-id, so an engine reached over TCP must also give this machine's name.

    :param address: docker_host.
    :param containers: ids of the engine's containers.
    :param volumes: names of the engine's volumes.
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
    if ident and address.startswith("unix://") and _key_id(key_file) == ident:
        return Proof(True, key_file)
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
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.readline(200).strip()
    except OSError:
        return None


def _key_id(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as stream:
            return str(json.load(stream).get("kid"))
    except (OSError, ValueError, AttributeError):
        return None
