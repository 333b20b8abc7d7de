"""Makes a host dirty in the way real ones get dirty, through the engine's HTTP API: no client, no registry.

All images come from the static busybox of the host, either loaded from an archive made on the spot (which can have any age) or built on
such a one by the classic builder. What each thing is for is its name in :class:`Dirt`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import secrets
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Optional
from urllib.parse import quote, urlencode

from .errors import FleetError
from .host import Engine, Host

KEEP_LABEL = "fleetclean.keep"
DAY = 86400
OLD = 30 * DAY
MB = 1_000_000
_ZERO_TIME = "0001-01-01T00:00:00Z"
# What a container runs that has nothing to do. It must not take ten seconds to stop, and process 1 does not feel SIGTERM.
_IDLE = ["/bin/sleep", "1000000"]
# A process each tenth of a second and no more: twelve hosts that chatter are not to take the time of what is tested.
_CHATTER = 'i=0; while :; do i=$((i+1)); echo "chatter line $i"; sleep 0.1; done'


@dataclass(frozen=True)
class Dirt:
    """What was made, by the part it plays. Containers by name, volumes and networks by name, images by tag, untagged ones by id."""

    host: str
    base_image: str
    running: str
    running_image: str
    running_tags: tuple[str, ...]
    chain: tuple[str, ...]
    parent_image: str
    child_image: str
    dangling_image: str
    retagged_image: str
    unused_image: str
    unused_image_old: str
    kept_image: str
    stopped_new: str
    stopped_old: str
    never_started: str
    kept_container: str
    chatty: str
    big_log: str
    big_log_bytes: int
    with_anonymous_volume: str
    used_anonymous_volume: str
    with_named_volume: str
    used_named_volume: str
    anonymous_volume: str
    named_volume: str
    kept_volume: str
    used_network: str
    unused_network: str
    kept_network: str
    build_cache: bool
    aged: bool
    dead: Optional[str] = None
    leftover_layers: tuple[str, ...] = ()
    leftover_paths: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)

    @classmethod
    def load(cls, host: Host) -> Dirt:
        """The record of the last :func:`dirty` on ``host``. Raises :class:`FleetError` when there is none."""
        try:
            record = json.loads(_record(host).read_text())
        except OSError:
            raise FleetError(f"{host.name} has not been made dirty") from None
        values: dict[str, Any] = {f.name: tuple(record[f.name]) if isinstance(record[f.name], list) else record[f.name] for f in fields(cls)}
        return cls(**values)

    def summary(self) -> str:
        """One line for a person."""
        return (f"running {self.running}, {self.chatty}, {self.big_log} (log {self.big_log_bytes // MB} MB); stopped {self.stopped_old}, "
                f"{self.stopped_new}; kept {self.kept_container}, {self.kept_image}, {self.kept_volume}, {self.kept_network}"
                + ("; BuildKit cache" if self.build_cache else "") + ("; leftovers" if self.leftover_paths else ""))


def dirty(host: Host, profile: str = "standard", *, scale: Optional[float] = None, log_bytes: Optional[int] = None, aged: bool = False,
          leftovers: bool = False, seed: Optional[int] = None) -> Dirt:
    """Make ``host`` dirty; what was made (also saved in the fleet's folder). Its own earlier containers, volumes, networks go first.

    ``profile``: ``standard`` (about 200 MB, and a log of 200 MB) or ``small`` (a tenth, and a log of 2 MB); ``scale`` multiplies all sizes
    but the log's, which is ``log_bytes``. ``aged``: part of it is 30 days old, images by arrival as well (with a graph driver), for which
    the engine is restarted (volumes and networks cannot be made old: their age is the filesystem's and the engine's own), and one
    container is dead. ``leftovers``: what crashed engines
    leave behind, 30 days old by mtime; the engine is restarted too, and containerd's image store has none of it. ``seed`` makes the contents repeatable.
    """
    if profile not in ("standard", "small"):
        raise FleetError(f"unknown profile {profile!r}; known: standard, small")
    small = profile == "small"
    maker = _Maker(host, (0.1 if small else 1.0) if scale is None else scale, seed)
    dirt = maker.make((2 * MB if small else 200 * MB) if log_bytes is None else log_bytes, aged, leftovers)
    _record(host).write_text(json.dumps(dirt.to_json(), indent=1))
    return dirt


def age(host: Host, ages: Mapping[str, float], dead: Iterable[str] = ()) -> None:
    """Make containers (name or id) as if created and stopped that many seconds ago. The engine is restarted; those that ran, run again.

    Those in ``dead`` become dead besides: what a container is whose removal failed half-way.
    """
    now = datetime.now(timezone.utc)

    def make_old(name: str, config: dict[str, Any]) -> None:
        when = now - timedelta(seconds=ages[name])
        # Zero means that it never happened (a container that was never started), which ageing does not change.
        state = config["State"]
        config["Created"] = _rfc3339(when - timedelta(seconds=2))
        for key, moment in (("StartedAt", when - timedelta(seconds=1)), ("FinishedAt", when)):
            if not str(state.get(key, _ZERO_TIME)).startswith("0001-"):
                state[key] = _rfc3339(moment)
        if name in dead:
            state["Dead"] = True

    rewrite_containers(host, ages, make_old)


def rewrite_containers(host: Host, names: Iterable[str], change: Callable[[str, dict[str, Any]], None]) -> None:
    """Stop the engine, call ``change(name, config)`` for each container's config.v2.json, start the engine and what had run."""
    ids = {name: host.must("GET", f"/containers/{quote(name)}/json")["Id"] for name in names}
    ran = [c["Id"] for c in host.must("GET", "/containers/json")]
    host.stop_engine()
    try:
        for name, identifier in ids.items():
            path = host.path(f"{host.data_root}/containers/{identifier}/config.v2.json")
            config = json.loads(path.read_text())
            change(name, config)
            path.write_text(json.dumps(config))
    finally:
        host.start_engine()
    for identifier in ran:
        host.must("POST", f"/containers/{identifier}/start")


def load_image(host: Engine, tag: str, files: Mapping[str, bytes], *, created: Optional[datetime] = None, labels: Optional[Mapping[str, str]] = None,
               command: Iterable[str] = tuple(_IDLE), base: bool = True) -> str:
    """Load an image of one or two layers (busybox, unless ``base`` is False; ``files``), created at ``created`` (now); its id."""
    layers = ([_layer(_busybox(host))] if base else []) + ([_layer(files)] if files else [])
    config = {
        "architecture": "amd64", "os": "linux", "created": _rfc3339(created or datetime.now(timezone.utc)),
        "config": {"Cmd": list(command), "Labels": dict(labels or {}), "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [_sha256(layer) for layer in layers]},
        "history": [{"created": _rfc3339(created or datetime.now(timezone.utc)), "created_by": "test bed"} for _ in layers],
    }
    content = json.dumps(config).encode()
    name = _sha256(content).partition(":")[2] + ".json"
    archive = {name: content}
    for number, layer in enumerate(layers):
        archive[f"{number}/layer.tar"] = layer
    manifest = [{"Config": name, "RepoTags": [tag], "Layers": [f"{number}/layer.tar" for number in range(len(layers))]}]
    archive["manifest.json"] = json.dumps(manifest).encode()
    host.must("POST", "/images/load?quiet=1", tar(archive))
    return host.must("GET", f"/images/{quote(tag)}/json")["Id"]


def build_image(host: Engine, tag: str, dockerfile: str, files: Mapping[str, bytes], buildkit: bool = False) -> str:
    """Build an image with the classic builder, or with BuildKit; its id. Raises :class:`FleetError` with the builder's error."""
    query = {"t": tag, "networkmode": "none", "rm": "1", "forcerm": "1", "version": "2" if buildkit else "1"}
    host.must("POST", f"/build?{urlencode(query)}", tar({"Dockerfile": dockerfile.encode(), **files}))
    return host.must("GET", f"/images/{quote(tag)}/json")["Id"]


def tar(files: Mapping[str, bytes], executable: Iterable[str] = (), links: Optional[Mapping[str, str]] = None) -> bytes:
    """A tar archive of ``files`` (name: content), symbolic ``links`` (name: target), all root's and of 1970 so that digests repeat."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mode = 0o755 if name in executable else 0o644
            archive.addfile(entry, io.BytesIO(content))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return buffer.getvalue()


class _Maker:
    def __init__(self, host: Host, scale: float, seed: Optional[int]) -> None:
        self.host = host
        self.scale = scale
        self.random = random.Random(secrets.randbits(64) if seed is None else seed)

    def make(self, log_bytes: int, aged: bool, leftovers: bool) -> Dirt:
        host = self.host
        old = datetime.now(timezone.utc) - timedelta(seconds=OLD)
        then = old if aged else None
        self._clear()

        load_image(host, "fleet/base:1", {}, created=old)
        chain = ("app/web:1.0", "app/web:1.1", "app/web:1.2")
        for below, tag in zip(("fleet/base:1", *chain), chain):
            self._build(tag, below, 15)
        tags = ("app/web:1.2", "app/web:latest", "registry.example/app/web:1.2")
        for tag in tags[1:]:
            repository, _, name = tag.rpartition(":")
            host.must("POST", f"/images/{quote(tags[0])}/tag?{urlencode({'repo': repository, 'tag': name})}")

        dangling = load_image(host, "app/worker:latest", self._files(30), created=then)
        load_image(host, "app/worker:latest", self._files(30), created=then)
        parent = self._build("app/stage:1", "fleet/base:1", 10)
        self._build("app/child:1", "app/stage:1", 5)
        host.must("DELETE", "/images/app/stage:1?noprune=1")
        load_image(host, "app/report:1", self._files(25))
        load_image(host, "app/report:0", self._files(35), created=old)
        load_image(host, "app/kept:1", self._files(5), created=then, labels={KEEP_LABEL: ""})
        if aged:
            self._arrived(old, dangling, host.must("GET", "/images/app/report:0/json")["Id"])

        for name, labels in (("unused-net", {}), ("used-net", {}), ("kept-net", {KEEP_LABEL: ""})):
            host.must("POST", "/networks/create", {"Name": name, "Driver": "bridge", "Labels": labels, "CheckDuplicate": True})

        self._container("stopped-new", "fleet/base:1", ["/bin/true"], run=True)
        self._container("stopped-old", "fleet/base:1", ["/bin/sh", "-c", f"dd if=/dev/urandom of=/scratch bs=1000 count={int(5000 * self.scale) or 1}; exit 3"],
                        run=True)
        self._container("kept-job", "fleet/base:1", ["/bin/true"], run=True, Labels={KEEP_LABEL: ""})
        self._container("never-started", "fleet/base:1", _IDLE)

        self._container("job-cache", "fleet/base:1", ["/bin/true"], run=True, Volumes={"/data": {}})
        used_anonymous = self._volume_of("job-cache")
        self._container("orphan-maker", "fleet/base:1", ["/bin/true"], run=True, Volumes={"/data": {}})
        anonymous = self._volume_of("orphan-maker")
        host.must("DELETE", "/containers/orphan-maker")
        for name, labels in (("db-data", {}), ("old-data", {}), ("kept-data", {KEEP_LABEL: ""})):
            host.must("POST", "/volumes/create", {"Name": name, "Labels": labels})
        self._container("db", "fleet/base:1", ["/bin/true"], run=True, HostConfig={"Binds": ["db-data:/data"]})
        for volume, megabytes in ((used_anonymous, 8), (anonymous, 12), ("db-data", 10), ("old-data", 10), ("kept-data", 3)):
            self._fill_volume(volume, megabytes)

        build_cache = self._build_cache()

        dead = None
        if aged:
            dead = "dead-job"
            self._container(dead, "fleet/base:1", ["/bin/true"], run=True)
            age(host, {name: OLD for name in ("stopped-old", "kept-job", "job-cache", "never-started", dead)}, dead=(dead,))
        left: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
        if leftovers:
            left = self._leftovers(old)

        self._container("web", tags[0], _IDLE, run=True, wait=False, HostConfig={"NetworkMode": "used-net"})
        written = self._big_log("noisy", log_bytes)
        self._container("chatty", "fleet/base:1", ["/bin/sh", "-c", _CHATTER], run=True, wait=False)
        return Dirt(
            host=host.name, base_image="fleet/base:1", running="web", running_image=tags[0], running_tags=tags, chain=chain,
            parent_image=parent, child_image="app/child:1", dangling_image=dangling, retagged_image="app/worker:latest",
            unused_image="app/report:1", unused_image_old="app/report:0", kept_image="app/kept:1",
            stopped_new="stopped-new", stopped_old="stopped-old", never_started="never-started", kept_container="kept-job",
            chatty="chatty", big_log="noisy", big_log_bytes=written, with_anonymous_volume="job-cache", used_anonymous_volume=used_anonymous,
            with_named_volume="db", used_named_volume="db-data", anonymous_volume=anonymous, named_volume="old-data", kept_volume="kept-data",
            used_network="used-net", unused_network="unused-net", kept_network="kept-net", build_cache=build_cache, aged=aged, dead=dead,
            leftover_layers=left[0], leftover_paths=left[1])

    def _clear(self) -> None:
        """Remove what an earlier run left under the names that this one uses; images are just tagged anew."""
        for name in ("web", "noisy", "chatty", "stopped-new", "stopped-old", "kept-job", "never-started", "job-cache", "orphan-maker", "db", "dead-job"):
            self._gone("DELETE", f"/containers/{name}?force=1&v=1")
        for name in ("db-data", "old-data", "kept-data"):
            self._gone("DELETE", f"/volumes/{name}")
        for name in ("unused-net", "used-net", "kept-net"):
            self._gone("DELETE", f"/networks/{name}")

    def _gone(self, method: str, path: str) -> None:
        status, answer = self.host.api(method, path)
        if status >= 400 and status != 404:
            raise FleetError(f"{self.host.name}: {method} {path}: {status} {answer}")

    def _bytes(self, megabytes: float) -> bytes:
        return self.random.randbytes(max(int(megabytes * self.scale * MB), 1))

    def _files(self, megabytes: float) -> dict[str, bytes]:
        """A few large files and many small ones, ``megabytes`` in all."""
        small = {f"srv/small/{number // 10}/{number}": self.random.randbytes(500) for number in range(100)}
        return {"srv/large": self._bytes(megabytes), **small}

    def _build(self, tag: str, base: str, megabytes: float) -> str:
        return build_image(self.host, tag, f"FROM {base}\nCOPY srv /srv\nLABEL made.by=test-bed\n", self._files(megabytes))

    def _arrived(self, when: datetime, *images: str) -> None:
        """Make images (by id) as if they had arrived ``when``: the mtime of their record. containerd's image store tells it nowhere that one may write to."""
        info = self.host.must("GET", "/info")
        if ["driver-type", "io.containerd.snapshotter.v1"] in (info["DriverStatus"] or []):
            return
        records = self.host.path(f"{info['DockerRootDir']}/image/{info['Driver']}/imagedb/content/sha256")
        for identifier in images:
            os.utime(records / identifier.partition(":")[2], (when.timestamp(), when.timestamp()))

    def _container(self, name: str, image: str, command: list[str], run: bool = False, wait: bool = True, **options: Any) -> str:
        """Create a container, start it if ``run``, wait for its end if ``wait``; its id."""
        host_config = {"NetworkMode": "none", "LogConfig": {"Type": "json-file", "Config": {}}, **options.pop("HostConfig", {})}
        body = {"Image": image, "Cmd": command, "StopSignal": "SIGKILL", "HostConfig": host_config, **options}
        identifier = self.host.must("POST", f"/containers/create?name={quote(name)}", body)["Id"]
        if run:
            self.host.must("POST", f"/containers/{identifier}/start")
            if wait:
                self.host.must("POST", f"/containers/{identifier}/wait")
        return identifier

    def _volume_of(self, container: str) -> str:
        return self.host.must("GET", f"/containers/{container}/json")["Mounts"][0]["Name"]

    def _fill_volume(self, volume: str, megabytes: float) -> None:
        data = self.host.path(self.host.must("GET", f"/volumes/{volume}")["Mountpoint"])
        (data / "folder").mkdir()
        (data / "large").write_bytes(self._bytes(megabytes))
        for number in range(20):
            (data / "folder" / str(number)).write_bytes(self.random.randbytes(1000))
        (data / "secret").write_bytes(b"only root may read this\n")
        (data / "secret").chmod(0o600)

    def _big_log(self, name: str, size: int) -> int:
        """A running container with a json-file log of ``size`` bytes, of whole lines; the bytes really written.

        The lines are written while it is stopped: the engine holds the file open only while the container runs.
        """
        identifier = self._container(name, "fleet/base:1", ["/bin/sh", "-c", "echo started; exec /bin/sleep 1000000"], run=True, wait=False)
        self.host.must("POST", f"/containers/{identifier}/stop?t=0")
        path = self.host.path(self.host.must("GET", f"/containers/{identifier}/json")["LogPath"])
        begin = datetime.now(timezone.utc) - timedelta(days=1)
        padding = "x" * 700
        written = first = 0
        with open(path, "ab") as log:
            while written < size:
                stamp = _rfc3339(begin + timedelta(milliseconds=first))
                block = "".join(f'{{"log":"noisy line {number} {padding}\\n","stream":"stdout","time":"{stamp}"}}\n'
                                for number in range(first + 1, first + 1001)).encode()
                first += 1000
                if len(block) > size - written:
                    block = block[:block.rfind(b"\n", 0, size - written) + 1]
                    if not block:
                        break
                written += log.write(block)
        self.host.must("POST", f"/containers/{identifier}/start")
        return written

    def _build_cache(self) -> bool:
        """Fill BuildKit's cache, if this engine builds without a client's session or the host's client can; whether it did."""
        files = self._files(20)
        dockerfile = "FROM fleet/base:1\nCOPY srv /srv\n"
        try:
            build_image(self.host, "app/cached:1", dockerfile, files, buildkit=True)
        except FleetError:
            context = self.host.path("/run/fleet/context.tar")
            context.write_bytes(tar({"Dockerfile": dockerfile.encode(), **files}))
            try:
                done = self.host.exec(["/bin/sh", "-c", "docker build -q --network none -t app/cached:1 - </run/fleet/context.tar"], check=False,
                                      env={"DOCKER_BUILDKIT": "1", "PATH": "/usr/bin:/bin"})
            finally:
                context.unlink()
            if done.returncode:
                return False
        # Its image goes, so that what it took is the cache's alone.
        self.host.must("DELETE", "/images/app/cached:1")
        return True

    def _leftovers(self, old: datetime) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What an engine leaves that was killed while it loaded an image: (cache ids of layers without an image, other paths).

        The same state as after a kill (see the layer store, moby's layer/filestore.go), but made so that it is always the same.
        """
        host = self.host
        info = host.must("GET", "/info")
        driver, root = info["Driver"], info["DockerRootDir"]
        if ["driver-type", "io.containerd.snapshotter.v1"] in (info["DriverStatus"] or []):
            return (), ()
        identifier = load_image(host, "app/lost:1", self._files(20), base=False).partition(":")[2]
        diff_id = host.must("GET", "/images/app/lost:1/json")["RootFS"]["Layers"][-1].partition(":")[2]
        ran = [c["Id"] for c in host.must("GET", "/containers/json")]
        host.stop_engine()
        paths = []
        try:
            store = host.path(f"{root}/image/{driver}")
            cache_id = (store / "layerdb/sha256" / diff_id / "cache-id").read_text()
            repositories = json.loads((store / "repositories.json").read_text())
            repositories["Repositories"].pop("app/lost", None)
            (store / "repositories.json").write_text(json.dumps(repositories))
            (store / "imagedb/content/sha256" / identifier).unlink()

            write_set = f"image/{driver}/layerdb/tmp/write-set-{self.random.randrange(10**9):09d}"
            self._leave(root, f"{write_set}/diff", ("sha256:" + self.random.randbytes(32).hex()).encode())
            paths = [write_set]
            if driver in ("overlay2", "fuse-overlayfs"):
                nobody = f"{driver}/{self.random.randbytes(32).hex()}"
                self._leave(root, f"{nobody}/diff/srv/large", self._bytes(10))
                self._leave(root, f"{nobody}/link", self.random.randbytes(13).hex().upper().encode())
                paths.append(nobody)
        finally:
            host.start_engine()
        for running in ran:
            host.must("POST", f"/containers/{running}/start")
        # Last, since an engine that starts sweeps its tmp folder by itself.
        half = f"tmp/docker-import-{self.random.randrange(10**9):09d}"
        self._leave(root, f"{half}/repositories", b"{}")
        self._leave(root, f"{half}/{self.random.randbytes(32).hex()}/layer.tar", self._bytes(15))
        paths.append(half)
        for name in paths:
            for folder, _, files in os.walk(host.path(root) / name, topdown=False):
                for entry in (*files, "."):
                    os.utime(os.path.join(folder, entry), (old.timestamp(), old.timestamp()))
        return (cache_id,), tuple(f"{root}/{name}" for name in paths)

    def _leave(self, root: str, name: str, content: bytes) -> None:
        path = self.host.path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _busybox(host: Engine) -> dict[str, bytes]:
    own = [host.path("/bin/busybox")] if isinstance(host, Host) else []
    for path in (*own, Path("/bin/busybox")):
        if path.exists():
            content = path.read_bytes()
            # A program that is linked dynamically names its interpreter, and could not run alone in an image.
            if b"ld-linux" not in content[:4096]:
                return {"bin/busybox": content}
    raise FleetError("no static /bin/busybox (apt-get install busybox-static)")


def _layer(files: Mapping[str, bytes]) -> bytes:
    if "bin/busybox" not in files:
        return tar(files)
    applets = ("sh", "sleep", "true", "false", "echo", "dd", "cat", "date", "ls", "rm", "touch", "seq", "usleep")
    return tar(files, executable=["bin/busybox"], links={f"bin/{applet}": "busybox" for applet in applets})


def _record(host: Host) -> Path:
    return host.directory / f"{host.name}.dirt.json"


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()
