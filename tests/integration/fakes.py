# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""FAKE engines, for what no kernel and no package at hand has: an HTTP server on a unix socket, and a data root in a folder.

None of this is an engine. ``GET /version`` and the driver's part of ``GET /info`` answer what real ones were seen to answer (where stands beside
each), but for paths and names; the lists are made up in the shape of their API. The trees are laid out as the engines' own source says:

Docker 1.9.1   ``graph/graph.go``, ``daemon/daemon.go``, ``daemon/graphdriver/{aufs/aufs.go,devmapper/deviceset.go}``, ``volume/local/local.go``
Docker 18.09   ``layer/filestore.go``, ``image/fs.go``, ``distribution/metadata``, ``daemon/graphdriver/aufs/aufs.go``, ``migrate/v1/migratev1.go`` of 1.10
balenaEngine   the same layout: it is Docker 17.12, 19.03 and 20.10 under other names (its ``docs/getting-started.md``)

What is laid out for whom is noted while it is laid out, and added up by ``du``: so nothing that is expected comes from the module.
"""

from __future__ import annotations

import hashlib
import json
import os
import socketserver
import subprocess
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple, Type, Union
from urllib.parse import parse_qs, urlsplit

KB = 1024
#: Everything laid out is this old: what is younger might be half made.
_AGE = 30 * 86400
_VERSION_1_9 = {  # of moby 18314
    "Version": "1.9.1", "ApiVersion": "1.21", "GitCommit": "a34a1d5", "GoVersion": "go1.4.2", "Os": "linux", "Arch": "amd64",
    "KernelVersion": "3.13.0-71-generic", "BuildTime": "Fri Nov 20 13:12:04 UTC 2015",
}


def _ident(*words: object) -> str:
    """64 digits, always the same for the same words."""
    return hashlib.sha256(" ".join(map(str, words)).encode()).hexdigest()


def du(*paths: Union[str, Path]) -> int:
    """Bytes that these take on their filesystem. Nothing is mounted in them, so ``-x``, which takes some overlays for many filesystems, is not needed."""
    if not paths:
        return 0
    done = subprocess.run(["du", "-scB1", "--", *map(str, paths)], check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1].split()[0])


class FakeRoot:
    """A data root that is being laid out, and whose each part of it is.

    ``leftovers``: what nobody owns, with a piece of the reason that a report has to give.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.leftovers: Dict[str, str] = {}
        self._parts: Dict[str, List[Path]] = defaultdict(list)
        self._shelves: Dict[Path, str] = {}
        root.mkdir(parents=True)

    def file(self, path: str, content: Union[int, str] = "", category: str = "") -> Path:
        """A file of so many bytes, or with this text."""
        found = self.root / path
        found.parent.mkdir(parents=True, exist_ok=True)
        with open(found, "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else b"\x55" * content)
            os.fsync(stream.fileno())
        return self._note(found, category)

    def folder(self, path: str, category: str = "") -> Path:
        found = self.root / path
        found.mkdir(parents=True, exist_ok=True)
        return self._note(found, category)

    def shelf(self, path: str, category: str) -> None:
        """A folder that goes to a category by itself, without what is in it: aufs needs megabytes for names alone."""
        self._shelves[self.folder(path)] = category

    def sparse(self, path: str, length: int, written: int, category: str = "") -> Path:
        """A file with a hole: ``written`` bytes at its front, a hole up to ``length``."""
        found = self.file(path, written, category)
        os.truncate(found, length)
        return found

    def leftover(self, path: str, reason: str) -> None:
        self.leftovers[str(self.root / path)] = reason
        self._note(self.root / path, "leftovers")

    def finish(self) -> None:
        """Make everything old, and let the filesystem decide how many blocks each file has."""
        then = time.time() - _AGE
        for folder, _folders, files in os.walk(self.root, topdown=False):
            for name in files:
                os.utime(os.path.join(folder, name), (then, then), follow_symlinks=False)
            os.utime(folder, (then, then))
        os.sync()

    def expected(self) -> Dict[str, int]:
        """Bytes on disk by category. What no category was given to is the engine's own."""
        found = {}
        everything = [(path, category) for category, paths in self._parts.items() for path in paths]
        for category, paths in self._parts.items():
            inside = [path for path, other in everything if other != category and any(above in path.parents for above in paths)]
            found[category] = du(*paths) - sum(du(path) for path in inside)
        for shelf, category in self._shelves.items():
            found[category] += shelf.lstat().st_blocks * 512
        found["engine_metadata"] = du(self.root) - sum(found.values())
        return found

    def _note(self, path: Path, category: str) -> Path:
        if category:
            self._parts[category].append(path)
        return path


class FakeEngine:
    """A FAKE: answers ``GET`` with what it was given, anything else as an engine that does not know the path.

    ``answers``: by the API's path, without the version in front; a function gets the query. ``asked``: every path that was asked for.
    """

    def __init__(self, socket: Path, tree: FakeRoot, version: Dict[str, Any], info: Dict[str, Any]) -> None:
        self.socket, self.tree = socket, tree
        self.asked: List[str] = []
        self.images: List[Dict[str, Any]] = []
        self.containers: List[Dict[str, Any]] = []
        self.volumes: List[Dict[str, Any]] = []
        self.layer_bytes: Dict[str, int] = {}  # layers that an image has
        self.log_bytes = 0  # of the lengths of logs
        self.version, self.info = version, info
        self.answers: Dict[str, Any] = {
            "/version": version,
            "/info": lambda _query: {**info, "DockerRootDir": str(tree.root), "SystemTime": time.strftime("%Y-%m-%dT%H:%M:%S.000000001Z", time.gmtime())},
            "/images/json": lambda _query: self.images,
            "/containers/json": self._list_containers,
            "/volumes": lambda _query: {"Volumes": self.volumes},
            "/networks": [],
        }
        self._server: Optional[_Server] = None

    @property
    def address(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        self.tree.finish()
        self._server = _Server(str(self.socket), _handler(self))
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self.socket.unlink()

    def answer(self, url: str) -> Tuple[int, Any]:
        parts = urlsplit(url)
        path = parts.path if not parts.path.startswith("/v1.") else f"/{parts.path.split('/', 2)[2]}"
        self.asked.append(path)
        found = self.answers.get(path)
        if found is None:
            return 404, {"message": "page not found"}
        return 200, found(parse_qs(parts.query)) if callable(found) else found

    def _list_containers(self, query: Dict[str, List[str]]) -> List[Dict[str, Any]]:
        if query.get("size") == ["1"]:
            return self.containers
        return [{key: value for key, value in entry.items() if not key.startswith("Size")} for entry in self.containers]


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


def _handler(engine: FakeEngine) -> Type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, answer = engine.answer(self.path)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_words: Any) -> None:
            """Nobody reads it."""

    return Handler


# -- what all of them have -------------------------------------------------------------------------


def _volume(engine: FakeEngine, name: str, size: int) -> str:
    engine.tree.folder(f"volumes/{name}", "volumes")
    engine.tree.file(f"volumes/{name}/_data/content", size)
    engine.volumes.append({"Name": name, "Driver": "local", "Mountpoint": str(engine.tree.root / f"volumes/{name}/_data")})
    return name


def _container(engine: FakeEngine, name: str, image: str, running: bool, size: int, log: int, volumes: List[str], config: str) -> str:
    """A container's folder and its entry in the list; its writable layer is the driver's."""
    tree, ident = engine.tree, _ident("container", name)
    folder = f"containers/{ident}"
    tree.folder(folder, "container_metadata")
    for file, content in ((config, 2600), ("hostconfig.json", 900), ("hostname", f"{ident[:12]}\n"), ("hosts", 174), ("resolv.conf", 60), ("resolv.conf.hash", 71)):
        tree.file(f"{folder}/{file}", content)
    if log:
        tree.file(f"{folder}/{ident}-json.log", log, "logs")
        engine.log_bytes += log
    tree.folder(f"{folder}/shm")
    mounts = [
        {"Name": volume, "Source": str(tree.root / f"volumes/{volume}/_data"), "Destination": f"/{number}", "Driver": "local", "Mode": "", "RW": True}
        for number, volume in enumerate(volumes)
    ]
    state = "running" if running else "exited"
    summary = {
        "Id": ident, "Names": [f"/{name}"], "Image": image, "ImageID": image, "Command": "sleep 1d", "Created": 1454320800, "Ports": [],
        "Labels": {}, "Status": "Up 2 hours" if running else "Exited (0) 2 hours ago", "HostConfig": {"NetworkMode": "default"},
        "SizeRw": size, "SizeRootFs": size + 100 * KB,
    }
    details = {
        "Id": ident, "Created": "2016-02-01T10:00:00.123456789Z", "Path": "sleep", "Args": ["1d"], "Image": image, "Name": f"/{name}", "Mounts": mounts,
        "State": {"Status": state, "Running": running, "StartedAt": "2016-02-01T10:00:01.1Z", "FinishedAt": "0001-01-01T00:00:00Z"},
        "LogPath": str(tree.root / folder / f"{ident}-json.log"), "NetworkSettings": {"Networks": {}}, "HostConfig": {"NetworkMode": "default"},
    }
    engine.containers.append(summary)
    engine.answers[f"/containers/{ident}/json"] = details
    if engine.version["ApiVersion"] != "1.21":
        summary.update(State=state, Mounts=[{"Type": "volume", **mount} for mount in mounts], NetworkSettings={"Networks": {}})
    return ident


# -- Docker 1.9 --------------------------------------------------------------------------------------


class _Docker19:
    """Lays out what Docker 1.9.1 keeps: one layer an image, both called by the image's id."""

    def __init__(self, engine: FakeEngine, layer: Callable[[str, str, int, str], None]) -> None:
        self.engine, self.tree, self._layer = engine, engine.tree, layer
        self._total: Dict[str, int] = {"": 0}
        self._repositories: Dict[str, Dict[str, str]] = defaultdict(dict)
        driver = engine.info["Driver"]

        base = self.image("base", "", 300 * KB, "app/base:1")
        app = self.image("app", base, 120 * KB, "app/web:1")
        step = self.image("step", base, 40 * KB)  # of a build
        self.image("built", step, 50 * KB, "app/built:1")
        self.image("old", base, 70 * KB)  # dangling
        self.image("empty", app, 0, "app/web:2")

        self.container("web", app, True, 30 * KB, 90 * KB, ["data", _ident("anonymous")])
        self.container("done", base, False, 10 * KB, 5 * KB, [])
        for name, size in (("data", 200 * KB), (_ident("anonymous"), 20 * KB), ("unused", 33 * KB)):
            _volume(engine, name, size)

        # The engine's own.
        self.tree.file(f"repositories-{driver}", json.dumps({"Repositories": self._repositories}))
        for name, size in (("linkgraph.db", 7 * KB), ("network/files/local-kv.db", 16 * KB), ("init/dockerinit-1.9.1", 50 * KB), ("trust/official.json", 500)):
            self.tree.file(name, size)
        # Half made: a pull, and a layer that is being registered.
        self.tree.folder("tmp", "tmp")
        self.tree.file("tmp/GetImageBlob042", 60 * KB)
        self.tree.folder("graph/_tmp", "tmp")
        self.tree.file("graph/_tmp/17/json", 700)

        # Nobody's: a layer whose record is gone, the record of an image whose layer is, a container's folder, a volume.
        layer(_ident("lost layer"), "", 80 * KB, "")
        self._graph(_ident("lost record"), base, 1)
        self.tree.leftover(f"graph/{_ident('lost record')}", "an image that the engine does not have")
        gone = _ident("container", "gone")
        self.tree.file(f"containers/{gone}/{gone}-json.log", 44 * KB)
        self.tree.leftover(f"containers/{gone}", "a container that the engine does not have")
        # An administrator's.
        self.tree.file("backup-before-upgrade.tar", 25 * KB, "unattributed")

    def image(self, name: str, parent: str, size: int, tag: str = "") -> str:
        ident = _ident("image", name)
        self._layer(ident, parent, size, "images")
        self._graph(ident, parent, size)
        self._total[ident] = self._total[parent] + size
        self.engine.layer_bytes[ident] = size
        self.engine.images.append({
            "Id": ident, "ParentId": parent, "RepoTags": [tag or "<none>:<none>"], "RepoDigests": [] if tag else ["<none>@<none>"],
            "Created": int(time.time()) - 86400, "Size": size, "VirtualSize": self._total[ident], "Labels": None,
        })
        self.engine.answers[f"/images/{ident}/json"] = {
            "Id": ident, "RepoTags": [tag] if tag else [], "Parent": parent, "Created": "2016-01-01T00:00:00.5Z", "Size": size, "VirtualSize": self._total[ident],
        }
        if tag:
            repository, _colon, name = tag.partition(":")
            self._repositories[repository][name] = ident
        return ident

    def container(self, name: str, image: str, running: bool, size: int, log: int, volumes: List[str]) -> None:
        ident = _container(self.engine, name, image, running, size, log, volumes, "config.json")
        self._layer(f"{ident}-init", image, 0, "containers")
        self._layer(ident, f"{ident}-init", size, "containers")

    def _graph(self, ident: str, parent: str, size: int) -> None:
        self.tree.file(f"graph/{ident}/json", json.dumps({"id": ident, "parent": parent, "Size": size}))
        self.tree.file(f"graph/{ident}/layersize", str(size))
        self.tree.file(f"graph/{ident}/tar-data.json.gz", 3 * KB)


def aufs_on_docker_1_9(socket: Path, root: Path) -> FakeEngine:
    """FAKE Docker 1.9.1 with aufs, and what devicemapper left that was in use before. The driver's status is of moby 31408 (the same fields)."""
    tree = FakeRoot(root)
    engine = FakeEngine(socket, tree, _VERSION_1_9, {
        "ID": "KJSQ:FUCN:V3QB:RBA3:MCEK:SWSQ:CDOU:3KST:KI5J:LFPI:XGJP:MC6C", "Containers": 2, "Images": 6, "Driver": "aufs", "ServerVersion": "1.9.1",
        "DriverStatus": [["Root Dir", f"{root}/aufs"], ["Backing Filesystem", "extfs"], ["Dirs", "12"], ["Dirperm1 Supported", "true"]],
        "ExecutionDriver": "native-0.2", "LoggingDriver": "json-file", "KernelVersion": "3.13.0-71-generic", "OperatingSystem": "Ubuntu 14.04.3 LTS",
        "Name": os.uname().nodename, "Labels": None,
    })
    below: Dict[str, List[str]] = {"": []}

    def layer(ident: str, parent: str, size: int, category: str) -> None:
        _aufs_layer(tree, ident, [parent, *below[parent]] if parent else [], size, category)
        below[ident] = [parent, *below[parent]] if parent else []

    _Docker19(engine, layer)
    # aufs renames what it removes, and a mount that is busy stays so (moby 34634).
    for place in ("diff", "mnt"):
        tree.folder(f"aufs/{place}/{_ident('removing')}-removing")
        tree.leftover(f"aufs/{place}/{_ident('removing')}-removing", "no image, container or build names")
    tree.file(f"aufs/diff/{_ident('removing')}-removing/content", 15 * KB)
    # Used before: its pool is thick by now.
    tree.sparse("devicemapper/devicemapper/data", 100 << 20, 400 * KB)
    tree.sparse("devicemapper/devicemapper/metadata", 2 << 20, 12 * KB)
    tree.file(f"devicemapper/metadata/{_ident('image', 'base')}", 70)
    tree.leftover("devicemapper", "a storage driver that is not in use")
    tree.file("repositories-devicemapper", 200)
    tree.leftover("repositories-devicemapper", "a storage driver that is not in use")
    return engine


def _aufs_layer(tree: FakeRoot, ident: str, below: List[str], size: int, category: str) -> None:
    """A layer of aufs: its files, the names of all below it, a mount point."""
    for place in ("diff", "layers", "mnt"):
        tree.shelf(f"aufs/{place}", "images")
    folders = [tree.folder(f"aufs/diff/{ident}", category), tree.folder(f"aufs/mnt/{ident}", category)]
    if size:
        tree.file(f"aufs/diff/{ident}/usr/share/content", size)
    tree.file(f"aufs/layers/{ident}", "".join(f"{name}\n" for name in below), category)
    if not category:
        for path in (*folders, tree.root / f"aufs/layers/{ident}"):
            tree.leftover(str(path.relative_to(tree.root)), "no image, container or build names")


def devicemapper_on_docker_1_9(socket: Path, root: Path) -> FakeEngine:
    """FAKE Docker 1.9.1 with devicemapper on loop files. The driver's status is of moby 18314, in full."""
    tree = FakeRoot(root)
    pool = f"{root}/devicemapper/devicemapper"
    engine = FakeEngine(socket, tree, _VERSION_1_9, {
        "ID": "UV2L:CG6Y:NQ4W:K7KY:6VN5:DIMN:SYED:BIQK:ZYBZ:HH4I:NE5Y:4ACN", "Containers": 2, "Images": 6, "Driver": "devicemapper", "ServerVersion": "1.9.1",
        "DriverStatus": [
            ["Pool Name", "docker-202:1-401324-pool"], ["Pool Blocksize", "65.54 kB"], ["Base Device Size", "107.4 GB"], ["Backing Filesystem", "ext4"],
            ["Data file", "/dev/loop0"], ["Metadata file", "/dev/loop1"], ["Data Space Used", "3.369 GB"], ["Data Space Total", "107.4 GB"],
            ["Data Space Available", "26.44 GB"], ["Metadata Space Used", "47.08 MB"], ["Metadata Space Total", "2.147 GB"],
            ["Metadata Space Available", "2.1 GB"], ["Udev Sync Supported", "true"], ["Deferred Removal Enabled", "false"],
            ["Deferred Deletion Enabled", "false"], ["Deferred Deleted Device Count", "0"], ["Data loop file", f"{pool}/data"],
            ["Metadata loop file", f"{pool}/metadata"], ["Library Version", "1.02.77 (2012-10-15)"],
        ],
        "ExecutionDriver": "native-0.2", "LoggingDriver": "json-file", "Name": os.uname().nodename, "Labels": None,
    })

    def layer(ident: str, _parent: str, _size: int, category: str) -> None:
        for place in ("metadata", "mnt"):
            tree.shelf(f"devicemapper/{place}", "images")
        # A layer's content is in the pool. Here are its device's number, and where it is mounted.
        paths = [tree.file(f"devicemapper/metadata/{ident}", '{"device_id":7,"size":107374182400,"transaction_id":9,"initialized":false}', category),
                 tree.folder(f"devicemapper/mnt/{ident}", category)]
        if not category:
            for path in paths:
                tree.leftover(str(path.relative_to(root)), "no image, container or build names")

    _Docker19(engine, layer)
    tree.sparse("devicemapper/devicemapper/data", 100 << 30, 900 * KB, "images")
    tree.sparse("devicemapper/devicemapper/metadata", 2 << 30, 30 * KB, "images")
    for name in ("base", "deviceset-metadata", "transaction-metadata"):
        tree.file(f"devicemapper/metadata/{name}", 90)
    return engine


# -- Docker 1.10 and newer ---------------------------------------------------------------------------


class _Modern:
    """Lays out what engines from 1.10 on keep: images by the digest of their configuration, layers by their chain id."""

    def __init__(self, engine: FakeEngine, layer: Callable[[str, List[str], int, str], None], logs: bool = True) -> None:
        self.engine, self.tree, self._layer = engine, engine.tree, layer
        self._store = f"image/{engine.info['Driver']}"
        self._chains: Dict[Tuple[str, ...], Tuple[str, List[str], int]] = {(): ("", [], 0)}
        base = self.image(("base",), (300 * KB,), "app/base:1")
        app = self.image(("base", "app"), (300 * KB, 120 * KB), "app/web:1")
        self.image(("base", "old"), (300 * KB, 70 * KB), "")
        self.container("web", app, ("base", "app"), True, 30 * KB, 90 * KB * logs, ["data", _ident("anonymous")])
        self.container("done", base, ("base",), False, 10 * KB, 5 * KB * logs, [])
        for name, size in (("data", 200 * KB), (_ident("anonymous"), 20 * KB), ("unused", 33 * KB)):
            _volume(engine, name, size)
        for name, size in (("volumes/metadata.db", 32 * KB), ("network/files/local-kv.db", 64 * KB), (f"{self._store}/repositories.json", 800),
                           (f"{self._store}/distribution/v2metadata-by-diffid/sha256/{_ident('base')}", 300), ("builder/fscache.db", 16 * KB)):
            self.tree.file(name, size)
        for name in ("plugins/tmp", "swarm", "trust", "runtimes", f"{self._store}/layerdb/tmp"):
            self.tree.folder(name)
        self.tree.folder("tmp", "tmp")
        self.tree.file("tmp/docker-builder042/context", 60 * KB)
        self._nobodys()
        self.tree.file("backup-before-upgrade.tar", 25 * KB, "unattributed")
        engine.answers["/system/df"] = lambda _query: {
            "LayersSize": sum(engine.layer_bytes.values()), "Images": engine.images, "Containers": engine.containers, "BuildCache": [],
            "Volumes": [{**volume, "UsageData": {"RefCount": 1, "Size": 1000}} for volume in engine.volumes],
        }

    def _nobodys(self) -> None:
        self._layer(_ident("lost layer"), [], 80 * KB, "")
        chain, _below, _size = self._register(("lost",), 21 * KB, "leftovers")
        self.tree.leftover(f"{self._store}/layerdb/sha256/{chain[7:]}", "no image")
        gone = _ident("container", "gone")
        self.tree.file(f"containers/{gone}/{gone}-json.log", 44 * KB)
        self.tree.leftover(f"containers/{gone}", "a container that the engine does not have")
        self.tree.file(f"{self._store}/layerdb/mounts/{gone}/mount-id", _ident("lost mount"))
        self.tree.leftover(f"{self._store}/layerdb/mounts/{gone}", "a container that")
        self.tree.file(f"{self._store}/layerdb/tmp/write-set-042/diff", 71)
        self.tree.leftover(f"{self._store}/layerdb/tmp/write-set-042", "did not come to its end")
        self.tree.file("volumes/lost/_data/content", 9 * KB)
        self.tree.leftover("volumes/lost", "a volume that the engine does not have")

    def _register(self, names: Tuple[str, ...], size: int, category: str = "images") -> Tuple[str, List[str], int]:
        """A layer, and those below it: chain id, driver's ids (uppermost first) and bytes of all."""
        if names in self._chains:
            return self._chains[names]
        parent, below, total = self._register(names[:-1], 0)
        diff = f"sha256:{_ident('diff', names[-1])}"
        chain = f"sha256:{hashlib.sha256(f'{parent} {diff}'.encode()).hexdigest()}" if parent else diff
        cache = _ident("cache", *names)
        record = f"{self._store}/layerdb/sha256/{chain[7:]}"
        for file, content in (("diff", diff), ("size", str(size)), ("cache-id", cache), ("tar-split.json.gz", "x" * 900)):
            self.tree.file(f"{record}/{file}", content)
        if parent:
            self.tree.file(f"{record}/parent", parent)
        self._layer(cache, below, size, category)
        if category == "images":
            self.engine.layer_bytes[chain] = size
        self._chains[names] = (chain, [cache, *below], total + size)
        return self._chains[names]

    def image(self, names: Tuple[str, ...], sizes: Tuple[int, ...], tag: str) -> str:
        for number, size in enumerate(sizes, 1):
            self._register(names[:number], size)
        diffs = [f"sha256:{_ident('diff', name)}" for name in names]
        config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diffs}})
        ident = hashlib.sha256(config.encode()).hexdigest()
        self.tree.file(f"{self._store}/imagedb/content/sha256/{ident}", config)
        if tag:
            self.tree.file(f"{self._store}/imagedb/metadata/sha256/{ident}/lastUpdated", "2019-03-01T10:00:00.1Z")
        ident = f"sha256:{ident}"
        self.engine.images.append({
            "Id": ident, "ParentId": "", "RepoTags": [tag] if tag else None, "RepoDigests": None, "Created": int(time.time()) - 86400,
            "Size": sum(sizes), "VirtualSize": sum(sizes), "SharedSize": -1, "Containers": -1, "Labels": None,
        })
        self.engine.answers[f"/images/{ident}/json"] = {"Id": ident, "RootFS": {"Type": "layers", "Layers": diffs}, "Size": sum(sizes)}
        return ident

    def container(self, name: str, image: str, names: Tuple[str, ...], running: bool, size: int, log: int, volumes: List[str]) -> None:
        ident = _container(self.engine, name, image, running, size, log, volumes, "config.v2.json")
        chain, below, _total = self._chains[names]
        mount = _ident("mount", name)
        record = f"{self._store}/layerdb/mounts/{ident}"
        for file, content in (("mount-id", mount), ("init-id", f"{mount}-init"), ("parent", chain)):
            self.tree.file(f"{record}/{file}", content)
        self._layer(f"{mount}-init", below, 0, "containers")
        self._layer(mount, [f"{mount}-init", *below], size, "containers")


def _modern(engine: FakeEngine, logs: bool = True) -> FakeEngine:
    """Layers of aufs or overlay2, whichever the engine says it has."""
    tree = engine.tree

    def aufs(ident: str, below: List[str], size: int, category: str) -> None:
        _aufs_layer(tree, ident, below, size, "" if category == "leftovers" else category)
        if category == "leftovers":  # registered: the engine knows it
            for place in ("diff", "layers", "mnt"):
                tree.leftovers[f"{tree.root}/aufs/{place}/{ident}"] = "layer of no image"

    def overlay2(ident: str, _below: List[str], size: int, category: str) -> None:
        tree.shelf("overlay2", "images")
        folder = f"overlay2/{ident}"
        tree.folder(folder, category if category != "leftovers" else "")
        short = _ident("link", ident)[:26].upper()
        for name, content in (("link", short), ("lower", f"l/{short}"), ("diff/usr/share/content", size)):
            tree.file(f"{folder}/{name}", content)
        tree.folder(f"{folder}/work")
        tree.folder("overlay2/l")
        (tree.root / f"overlay2/l/{short}").symlink_to(f"../{ident}/diff")
        if category in ("", "leftovers"):
            tree.leftover(folder, "layer of no image" if category else "no image, container or build names")

    _Modern(engine, aufs if engine.info["Driver"] == "aufs" else overlay2, logs)
    return engine


def aufs_on_docker_18_09(socket: Path, root: Path) -> FakeEngine:
    """FAKE Docker 18.09.9 with aufs, upgraded from 1.9 once, with an overlay2 tree that is not in use.

    The last releases of the last kernels with aufs. The fields are those of ``docker info`` in docker/for-linux 1255 and moby 21081.
    """
    tree = FakeRoot(root)
    engine = _modern(FakeEngine(socket, tree, {
        "Platform": {"Name": "Docker Engine - Community"}, "Version": "18.09.9", "ApiVersion": "1.39", "MinAPIVersion": "1.12", "GitCommit": "039a7df9ba",
        "GoVersion": "go1.11.13", "Os": "linux", "Arch": "amd64", "KernelVersion": "4.15.0-65-generic", "BuildTime": "2019-09-04T16:19:38.000000000+00:00",
        "Components": [{"Name": "Engine", "Version": "18.09.9", "Details": {"ApiVersion": "1.39", "Experimental": "false"}}],
    }, {
        "ID": "POOG:XCQH:TJHC:M5N7:HNQ7:I27N:ZHQA:DW26:TWDV:ZENE:R5BV:STV2", "Containers": 2, "ContainersRunning": 1, "Images": 3, "Driver": "aufs",
        "DriverStatus": [["Root Dir", f"{root}/aufs"], ["Backing Filesystem", "extfs"], ["Dirs", "9"], ["Dirperm1 Supported", "true"]], "SystemStatus": None,
        "LoggingDriver": "json-file", "CgroupDriver": "cgroupfs", "ServerVersion": "18.09.9", "OperatingSystem": "Ubuntu 18.04.3 LTS",
        "Name": os.uname().nodename, "SecurityOptions": ["name=apparmor", "name=seccomp,profile=default"], "LiveRestoreEnabled": False,
        "Swarm": {"NodeID": "", "LocalNodeState": "inactive"},
    }))
    removing = f"{_ident('removing')}-removing"
    for place in ("diff", "mnt"):
        tree.folder(f"aufs/{place}/{removing}")
        tree.leftover(f"aufs/{place}/{removing}", "no image, container or build names")
    tree.file(f"aufs/diff/{removing}/content", 15 * KB)
    # Of the move to 1.10: the engine looks into these at each start.
    for name, content in ((f"graph/{_ident('image', 'base')}/json", 400), (f"graph/{_ident('image', 'base')}/.migration-diffid", 71),
                          ("repositories-aufs", 90), (".migration-v1-images.json", 150), (".migration-v1-tags", 2)):
        tree.file(name, content)
    # Of another driver.
    tree.file(f"overlay2/{_ident('of overlay2')}/diff/content", 110 * KB)
    tree.leftover("overlay2", "a storage driver that is not in use")
    tree.file(f"image/overlay2/layerdb/sha256/{_ident('of overlay2')}/size", "112640")
    tree.leftover("image/overlay2", "a storage driver that is not in use")
    return engine


def aufs_on_balena_os(socket: Path, root: Path) -> FakeEngine:
    """FAKE balenaEngine 19.03.18 of balenaOS, as in balena-engine 259: aufs, logs in the journal, an answer without swarm or an empty one."""
    return _modern(FakeEngine(socket, FakeRoot(root), {
        "Platform": {"Name": ""}, "Version": "19.03.18", "ApiVersion": "1.40", "MinAPIVersion": "1.12", "GitCommit": "840aacc77b6c600b3b929fe9e4d9356a322b9e5b",
        "GoVersion": "go1.12.17", "Os": "linux", "Arch": "arm", "Experimental": True, "BuildTime": "2021-07-09T12:46:22.000000000+00:00",
        "Components": [
            {"Name": "Engine", "Version": "19.03.18", "Details": {"ApiVersion": "1.40", "Experimental": "true"}},
            {"Name": "containerd", "Version": "1.2.0+unknown", "Details": {"GitCommit": ""}},
            {"Name": "runc", "Version": "1.0.0-rc4+dev", "Details": {"GitCommit": "dc9208a3303feef5b3839f4323d9beb36df0a9dd"}},
            {"Name": "balena-engine-init", "Version": "0.13.0", "Details": {"GitCommit": "949e6fa-dirty"}},
        ],
    }, {
        "ID": "QBDL:6VHX:WZ4M:CT5H:YH7F:K2GK:SLPV:R6QX:J2BZ:7TJ5:W2KK:NUFA", "Containers": 2, "ContainersRunning": 1, "Images": 3, "Driver": "aufs",
        "DriverStatus": [["Root Dir", f"{root}/aufs"], ["Backing Filesystem", "extfs"], ["Dirs", "45"], ["Dirperm1 Supported", "true"]],
        "LoggingDriver": "journald", "CgroupDriver": "systemd", "ServerVersion": "19.03.18", "Name": os.uname().nodename, "SecurityOptions": None,
        "Swarm": {"NodeID": "", "LocalNodeState": "", "RemoteManagers": None}, "Runtimes": {"bare": {}, "runc": {"path": "runc"}}, "InitBinary": "balena-engine-init",
    }), logs=False)


def overlay2_on_balena_engine(socket: Path, root: Path) -> FakeEngine:
    """FAKE balenaEngine 17.12 on a Linux of one's own, as in balena-engine 170: its release has a letter in front."""
    return _modern(FakeEngine(socket, FakeRoot(root), {
        "Platform": {"Name": ""}, "Version": "v17.12.0", "ApiVersion": "1.35", "MinAPIVersion": "1.12", "GitCommit": "3fdfd0d", "GoVersion": "go1.10.4",
        "Os": "linux", "Arch": "amd64", "BuildTime": "2018-10-17T15:42:29.000000000+00:00",
        "Components": [{"Name": "Engine", "Version": "v17.12.0", "Details": {"ApiVersion": "1.35"}}],
    }, {
        "ID": "2ZJH:UVPO:7FXR:ZWRJ:H3Q2:BOSQ:MM5C:QG6B:J7ZX:SXHO:KZ2N:2TZH", "Containers": 2, "ContainersRunning": 1, "Images": 3, "Driver": "overlay2",
        "DriverStatus": [["Backing Filesystem", "extfs"], ["Supports d_type", "true"], ["Native Overlay Diff", "true"]], "LoggingDriver": "json-file",
        "CgroupDriver": "cgroupfs", "ServerVersion": "v17.12.0", "Name": os.uname().nodename, "SecurityOptions": ["name=apparmor"],
        "Swarm": {"NodeID": "", "LocalNodeState": "", "RemoteManagers": None},
    }))


#: Each by the name that tests give it, with where its data root lies below the test's folder.
FAKES: Dict[str, Tuple[Callable[[Path, Path], FakeEngine], str]] = {
    "fake-aufs-docker-1.9": (aufs_on_docker_1_9, "var/lib/docker"),
    "fake-devicemapper-docker-1.9": (devicemapper_on_docker_1_9, "var/lib/docker"),
    "fake-aufs-docker-18.09": (aufs_on_docker_18_09, "var/lib/docker"),
    "fake-aufs-balena-os": (aufs_on_balena_os, "mnt/data/docker"),
    "fake-overlay2-balena-engine": (overlay2_on_balena_engine, "var/lib/balena-engine"),
}
