# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model of the engine, behind the interface of ``module_utils.engine.Engine``: it refuses what a real one refuses, in its words.

It knows nothing of the policy. What it does was read in the engine's source, which stands beside each rule (moby/moby; 20.10.24
unless another release is named): daemon/images/image_delete.go for graph drivers, daemon/containerd/image_delete.go for containerd's
store, daemon/delete.go for containers, volume/service/store.go, libnetwork's Network.Delete, and BuildKit's cache/manager.go.

``log`` has all that went, in turn, as (kind, id or name), whoever took it. ``before`` is called before each call, so that a test can
let others work in between; what it does is a part of the same engine's history.
"""

from __future__ import annotations

import json
import re
import threading
import typing as t
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone

from ansible_collections.fleetclean.docker.plugins.module_utils.engine import EngineError
from worlds import DAY, NOW, hexadecimal, sha

LIVE = ("running", "paused", "restarting")
PREDEFINED = ("bridge", "host", "none")
_ZERO = "0001-01-01T00:00:00Z"


@dataclass
class Box:
    """A container. Moments are seconds since 1970, None where it never happened or nobody knows."""

    id: str
    name: str
    image: str
    state: str = "exited"
    given: str = ""
    created: float = NOW
    started: float | None = None
    finished: float | None = None
    labels: dict[str, str] = field(default_factory=dict)
    volumes: list[str] = field(default_factory=list)
    networks: list[str] = field(default_factory=list)
    restart: str = "no"
    links: list[str] = field(default_factory=list)
    #: Images that it mounts, as they were named.
    mounted: list[str] = field(default_factory=list)
    #: What of other containers it cannot start without: by NetworkMode, IpcMode, PidMode (an id), VolumesFrom, Links (names).
    needs: dict[str, str] = field(default_factory=dict)
    #: Paths of the host that it binds.
    binds: list[str] = field(default_factory=list)
    exit_code: int = 0
    retries: int = 0
    restarted: int = 0

    @property
    def live(self) -> bool:
        return self.state in LIVE


@dataclass
class Picture:
    """An image. ``references`` are ``repository:tag`` and ``repository@digest``, in the order in which they were given."""

    id: str
    created: float
    parent: str = ""
    references: list[str] = field(default_factory=list)
    tagged: float | None = None
    arrived: float | None = None
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def tags(self) -> list[str]:
        return [reference for reference in self.references if "@" not in reference]

    @property
    def digests(self) -> list[str]:
        return [reference for reference in self.references if "@" in reference]


@dataclass
class Data:
    """A volume."""

    name: str
    created: float | None
    labels: dict[str, str] = field(default_factory=dict)
    driver: str = "local"
    options: dict[str, str] = field(default_factory=dict)
    cluster: bool = False

    @property
    def anonymous(self) -> bool:
        return "com.docker.volume.anonymous" in self.labels or bool(re.fullmatch("[0-9a-f]{64}", self.name))


@dataclass
class Net:
    """A network."""

    id: str
    name: str
    created: float | None
    labels: dict[str, str] = field(default_factory=dict)
    scope: str = "local"


@dataclass
class Record:
    """A record of the build cache; ``images`` have its layer, too."""

    id: str
    parents: list[str]
    type: str = "regular"
    in_use: bool = False
    size: int | None = 0
    created: float | None = NOW
    used: float | None = None
    images: frozenset[str] = frozenset()


class Model:
    """One engine. ``store`` is "graphdriver" (and answers as 20.10 does) or "containerd" (as 28 does)."""

    def __init__(self, store: str = "graphdriver") -> None:
        self.containerd = store == "containerd"
        self.now = NOW
        self.host = "unix:///model.sock"
        self.api_version = "1.51" if self.containerd else "1.41"
        self.version: dict[str, t.Any] = {"Version": "28.5.2" if self.containerd else "20.10.24", "ApiVersion": self.api_version}
        self.boxes: dict[str, Box] = {}
        self.pictures: dict[str, Picture] = {}
        self.data: dict[str, Data] = {}
        self.nets: dict[str, Net] = {}
        self.records: dict[str, Record] = {}
        self.swarm_services: list[dict[str, t.Any]] = []
        self.events: list[dict[str, t.Any]] = []
        self.events_kept = 256
        self.log: list[tuple[str, str]] = []
        #: Networks whose containers lost them: an engine lets it happen to stopped ones.
        self.robbed: list[str] = []
        self.before: t.Callable[[str, str], None] | None = None
        self._lock = threading.RLock()
        for name in PREDEFINED:
            # It has run for so long, and remembers all events.
            self.add_net(name, NOW - 1000 * DAY)

    # -- making it ---------------------------------------------------------------------------

    def add_image(self, name: str, *references: str, created: float = NOW, parent: str = "", **more: t.Any) -> Picture:
        made = Picture(sha(name), created, sha(parent) if parent else "", [], **more)
        self.pictures[made.id] = made
        for reference in references:
            self.tag(made.id, reference)
        return made

    def tag(self, image: str, reference: str) -> None:
        """Give a reference; whichever image had it loses it."""
        with self._lock:
            for other in self.pictures.values():
                if reference in other.references:
                    other.references.remove(reference)
            self.pictures[image].references.append(reference)

    def add_box(self, name: str, image: str, **more: t.Any) -> Box:
        """Create a container; the engine refuses one whose image, volume or network it does not have."""
        with self._lock:
            if image not in self.pictures:
                raise EngineError("POST /containers/create", 404, f"No such image: {image}")
            made = Box(hexadecimal(f"container {name}"), name, image, **more)
            for volume in made.volumes:
                self.data.setdefault(volume, Data(volume, NOW))
            self.boxes[made.id] = made
            return made

    def start(self, ident: str) -> None:
        """Start a container; one that lost a network cannot."""
        with self._lock:
            box = self.boxes[ident]
            known = {name for net in self.nets.values() for name in (net.id, net.name)}
            if set(box.networks) - known:
                raise EngineError(f"POST /containers/{ident}/start", 404, f"network {box.networks[0]} not found")
            if box.state in ("created", "exited"):
                box.state, box.started, box.finished = "running", NOW, None

    def add_volume(self, name: str, created: float | None = NOW, **more: t.Any) -> Data:
        self.data[name] = Data(name, created, **more)
        return self.data[name]

    def add_net(self, name: str, created: float | None = NOW, **more: t.Any) -> Net:
        made = Net(hexadecimal(f"network {name}"), name, created, **more)
        self.nets[made.id] = made
        return made

    def add_record(self, ident: str, *parents: str, **more: t.Any) -> Record:
        self.records[ident] = Record(ident, list(parents), **more)
        return self.records[ident]

    def everything(self) -> frozenset[tuple[str, str]]:
        """All that is there, as ``log`` names it."""
        with self._lock:
            return frozenset(
                [("container", ident) for ident in self.boxes]
                + [("image", ident) for ident in self.pictures]
                + [("tag", tag) for picture in self.pictures.values() for tag in picture.tags]
                + [("volume", name) for name in self.data]
                + [("network", ident) for ident in self.nets]
                + [("build_cache", ident) for ident in self.records]
            )

    # -- the interface of Engine: asking -----------------------------------------------------

    @property
    def info(self) -> dict[str, t.Any]:
        status = [["driver-type", "io.containerd.snapshotter.v1"]] if self.containerd else [["Backing Filesystem", "extfs"]]
        return {
            "ID": "MODEL",
            "SystemTime": _rfc3339(NOW),
            "Driver": "overlayfs" if self.containerd else "overlay2",
            "DriverStatus": status,
            "DockerRootDir": "/nowhere",
            "Swarm": {"ControlAvailable": bool(self.swarm_services)},
        }

    @property
    def is_local_socket(self) -> bool:
        return True

    def speaks(self, api_version: str) -> bool:
        return [int(part) for part in self.api_version.split(".")] >= [int(part) for part in api_version.split(".")]

    def wait(self, seconds: float) -> bool:
        return True

    def containers_as(self, make: t.Callable[[dict[str, t.Any]], t.Any], size: bool = False) -> list[t.Any]:
        return [make(raw) for raw in self.containers(size)]

    def containers(self, size: bool = False) -> list[dict[str, t.Any]]:
        with self._call("containers", ""):
            return [self._summary(box) for box in self.boxes.values()]

    def container(self, ident: str) -> dict[str, t.Any]:
        with self._call("container", ident):
            box = self._box(ident, "GET")
            state = {
                "Status": box.state,
                "Running": box.live,
                "Paused": box.state == "paused",
                "Restarting": box.state == "restarting",
                "Dead": box.state == "dead",
                "StartedAt": _rfc3339(box.started),
                "FinishedAt": _rfc3339(box.finished),
                "ExitCode": box.exit_code,
            }
            config: dict[str, t.Any] = {
                "NetworkMode": box.networks[0] if box.networks else "default",
                "RestartPolicy": {"Name": box.restart, "MaximumRetryCount": box.retries},
            }
            for name, other in box.needs.items():
                config[name] = f"container:{other}" if name.endswith("Mode") else [f"/{other}:/{box.name}/x" if name == "Links" else other]
            return {
                "Id": box.id,
                "Created": _rfc3339(box.created),
                "State": state,
                "Image": box.image,
                "Name": f"/{box.name}",
                "Config": {"Image": box.given or box.image, "Labels": dict(box.labels)},
                "HostConfig": config,
                "RestartCount": box.restarted,
                "Mounts": self._mounts(box),
                "NetworkSettings": {"Networks": self._ends(box)},
            }

    def images_as(self, make: t.Callable[[dict[str, t.Any]], t.Any]) -> list[t.Any]:
        return [make(raw) for raw in self.images()]

    def images(self) -> list[dict[str, t.Any]]:
        with self._call("images", ""):
            return [self._picture(picture) for picture in self.pictures.values()]

    def image(self, ident: str) -> dict[str, t.Any]:
        with self._call("image", ident):
            picture = self._resolve(ident, "GET")
            return {
                **self._picture(picture),
                "Parent": picture.parent if picture.parent in self.pictures else "",
                "Metadata": {"LastTagTime": _rfc3339(picture.tagged)},
            }

    def volumes(self) -> list[dict[str, t.Any]]:
        with self._call("volumes", ""):
            return [self._volume(data) for data in self.data.values()]

    def volume(self, name: str) -> dict[str, t.Any]:
        with self._call("volume", name):
            if name not in self.data:
                raise EngineError(f"GET /volumes/{name}", 404, f"get {name}: no such volume")
            return self._volume(self.data[name])

    def networks(self) -> list[dict[str, t.Any]]:
        with self._call("networks", ""):
            return [
                {
                    "Id": net.id,
                    "Name": net.name,
                    "Created": _rfc3339(net.created),
                    "Labels": dict(net.labels),
                    "Driver": {"host": "host", "none": "null"}.get(net.name, "overlay" if net.scope == "swarm" else "bridge"),
                    "Scope": net.scope,
                    "Ingress": False,
                }
                for net in self.nets.values()
            ]

    def services(self) -> list[dict[str, t.Any]]:
        with self._call("services", ""):
            return list(self.swarm_services)

    def past_events(self) -> list[dict[str, t.Any]]:
        with self._call("events", ""):
            return list(self.events)

    def disk_usage(self, *kinds: str) -> dict[str, t.Any]:
        with self._call("disk_usage", ""):
            return {
                "BuildCache": [
                    {
                        "ID": record.id,
                        # Before API 1.42 there is one parent.
                        **({"Parents": list(record.parents)} if self.containerd else {"Parent": (record.parents or [""])[0]}),
                        "Type": record.type,
                        "InUse": record.in_use,
                        "Shared": self._shared(record),
                        "Size": record.size if record.size is not None else -1,
                        "CreatedAt": _rfc3339(record.created),
                        "LastUsedAt": _rfc3339(record.used) if record.used else None,
                    }
                    for record in self.records.values()
                ]
            }

    # -- the interface of Engine: removing ---------------------------------------------------

    def remove_container(self, ident: str, force: bool = False) -> None:
        """daemon/delete.go, cleanupContainer."""
        with self._call("remove_container", ident):
            box = self._box(ident, "DELETE")
            call = f"DELETE /containers/{ident}"
            if box.state == "removing":
                raise EngineError(call, 409, f"removal of container {ident} is already in progress")
            if box.live and not force:
                words = "Unpause and then stop" if box.state == "paused" else "Stop"
                raise EngineError(
                    call,
                    409,
                    f"You cannot remove a {box.state} container {box.id}. {words} the container before attempting removal or force remove",
                )
            del self.boxes[box.id]
            self.log.append(("container", box.id))

    def remove_image(self, reference: str, force: bool = False) -> None:
        with self._call("remove_image", reference):
            picture = self._resolve(reference, "DELETE")
            if self.containerd:
                self._remove_from_containerd(picture, reference, force)
            else:
                self._remove_from_graphdriver(picture, reference, force)

    def _remove_from_graphdriver(self, picture: Picture, reference: str, force: bool) -> None:
        """daemon/images/image_delete.go, ImageDelete."""
        call, users = f"DELETE /images/{reference}", self._using(picture)
        quiet = False
        if not _is_id(picture.id, reference):
            if not force and _single(picture.references) and users:
                raise EngineError(
                    call, 409, f'conflict: unable to remove repository reference "{reference}" (must force) - container '
                    f"{users[0].id[:12]} is using its referenced image {_short(picture.id)}"
                )
            self._untag(picture, reference)
            repository = _repository(reference)
            if "@" not in reference and not any(_repository(tag) == repository for tag in picture.tags):
                # The digests of a repository go with the last of its tags.
                for digest in [digest for digest in picture.digests if _repository(digest) == repository]:
                    self._untag(picture, digest)
            if picture.references:
                return
            quiet = True
        elif _single(picture.references):
            self._conflict(picture, call, references=False, stopped=not force)
            for given in list(picture.references):
                self._untag(picture, given)
        try:
            self._conflict(picture, call, references=not force, stopped=not force)
        except EngineError as error:
            dangling = not picture.references and not self._children(picture)
            if quiet and (not dangling or "is being used" in error.answer):
                return
            raise
        for given in list(picture.references):
            self._untag(picture, given)
        self._delete(picture)

    def _conflict(self, picture: Picture, call: str, references: bool, stopped: bool) -> None:
        """checkImageDeleteConflict: a child or a container that runs cannot be forced."""

        def refuse(how: str, why: str) -> t.NoReturn:
            raise EngineError(call, 409, f"conflict: unable to delete {_short(picture.id)} ({how}) - {why}")

        users = [box for box in self.boxes.values() if box.image == picture.id]
        if not self.containerd and self._children(picture):
            refuse("cannot be forced", "image has dependent child images")
        for box in users:
            if box.live:
                refuse("cannot be forced", f"image is being used by running container {box.id[:12]}")

        def named() -> None:
            if references and len(picture.references) > (1 if self.containerd else 0):
                refuse("must be forced", "image is referenced in multiple repositories")

        def had() -> None:
            for box in users:
                if stopped and not box.live:
                    refuse("must be forced", f"image is being used by stopped container {box.id[:12]}")

        for look in (had, named) if self.containerd else (named, had):
            look()

    def _remove_from_containerd(self, picture: Picture, reference: str, force: bool) -> None:
        """daemon/containerd/image_delete.go of 28.5.2, ImageDelete. References are images of their own there, with one target."""
        call = f"DELETE /images/{reference}"
        references = not force
        if not _is_id(picture.id, reference):
            repository = _repository(reference)
            same = [reference]
            if not any(_repository(tag) == repository and tag != reference for tag in picture.tags):
                same += [digest for digest in picture.digests if _repository(digest) == repository and digest != reference]
            if len(same) != len(picture.references):
                for given in same:
                    self._untag(picture, given)
                return
            if len(picture.references) > 1 and not force:
                references = False
            users = self._using(picture)
            if users:
                if not force:
                    raise EngineError(
                        call, 409, f"conflict: unable to delete {reference} (must be forced) - container {users[0].id[:12]} is using its "
                        f"referenced image {_short(picture.id)}"
                    )
                for given in same:
                    self._untag(picture, given)  # softImageDelete: what is left is dangling
                return
        self._conflict(picture, call, references=references, stopped=not force)
        was_named = bool(picture.references)
        for given in list(picture.references):
            self._untag(picture, given)
        if was_named and not force and self._children(picture):
            return  # it stays as a dangling image, for its children
        self._delete(picture)

    def _untag(self, picture: Picture, reference: str) -> None:
        if reference in picture.references:
            picture.references.remove(reference)
            if "@" not in reference:
                self.log.append(("tag", reference))

    def _delete(self, picture: Picture) -> None:
        del self.pictures[picture.id]
        self.log.append(("image", picture.id))

    def remove_volume(self, name: str) -> None:
        """volume/service/store.go, Remove: a container in any state has a reference."""
        with self._call("remove_volume", name):
            call = f"DELETE /volumes/{name}"
            if name not in self.data:
                raise EngineError(call, 404, f"get {name}: no such volume")
            users = [box.id for box in self.boxes.values() if name in box.volumes]
            if users:
                raise EngineError(call, 409, f"remove {name}: volume is in use - [{', '.join(users)}]")
            del self.data[name]
            self.log.append(("volume", name))

    def remove_network(self, ident: str) -> None:
        """libnetwork's Network.Delete: only what runs has an endpoint in it; stopped containers are not asked."""
        with self._call("remove_network", ident):
            call = f"DELETE /networks/{ident}"
            found = self.nets.get(ident) or next((net for net in self.nets.values() if net.name == ident), None)
            if found is None:
                raise EngineError(call, 404, f"network {ident} not found")
            if found.name in PREDEFINED:
                raise EngineError(call, 403, f"{found.name} is a pre-defined network and cannot be removed")
            users = [box for box in self.boxes.values() if {found.id, found.name} & set(box.networks)]
            if any(box.live for box in users):
                raise EngineError(call, 403, f"error while removing network: network {found.name} id {found.id} has active endpoints")
            self.robbed += [box.id for box in users]
            del self.nets[found.id]
            self.log.append(("network", found.id))

    def remove_cache_records(self, idents: t.Collection[str], unused_for: int = 0) -> frozenset[str]:
        """BuildKit's cache/manager.go, pruneOnce: again and again what nothing refers to, until nothing more goes."""
        ids = re.compile(f"^({'|'.join(re.escape(ident) for ident in idents)})$")
        gone: list[str] = []
        with self._call("remove_cache_records", json.dumps(sorted(idents))):
            while True:
                ready = [
                    record
                    for record in self.records.values()
                    if ids.search(record.id)
                    and not record.in_use
                    and not any(record.id in other.parents for other in self.records.values())
                    and not (unused_for and record.used and NOW - record.used < unused_for)
                ]
                if not ready:
                    return frozenset(gone)
                for record in sorted(ready, key=lambda r: r.used or 0):
                    del self.records[record.id]
                    gone.append(record.id)
                    self.log.append(("build_cache", record.id))

    # -- inside ------------------------------------------------------------------------------

    @contextmanager
    def _call(self, what: str, about: str) -> t.Iterator[None]:
        if self.before:
            self.before(what, about)
        with self._lock:
            yield

    def _box(self, ident: str, method: str) -> Box:
        found = self.boxes.get(ident) or next((box for box in self.boxes.values() if ident in (box.name, f"/{box.name}")), None)
        if found is None:
            raise EngineError(f"{method} /containers/{ident}", 404, f"No such container: {ident}")
        return found

    def _resolve(self, reference: str, method: str) -> Picture:
        given = reference if ":" in reference or "@" in reference else f"{reference}:latest"
        for picture in self.pictures.values():
            if given in picture.references or picture.id == reference:
                return picture
        starts = [picture for picture in self.pictures.values() if _is_id(picture.id, reference)]
        if len(starts) != 1:
            raise EngineError(f"{method} /images/{reference}", 404, f"No such image: {given}")
        return starts[0]

    def _children(self, picture: Picture) -> list[Picture]:
        return [other for other in self.pictures.values() if other.parent == picture.id]

    def _using(self, picture: Picture) -> list[Box]:
        """Whom the engine asks when a name is to go. By id it asks only those whose own image it is."""
        names = {picture.id, *picture.references}
        return [box for box in self.boxes.values() if box.image == picture.id or names & set(box.mounted)]

    def _shared(self, record: Record) -> bool:
        return any(image in self.pictures for image in record.images)

    def _summary(self, box: Box) -> dict[str, t.Any]:
        # The name that it was started with, while that still names its image (daemon/list.go); else the id.
        named = box.image in self.pictures and box.given in self.pictures[box.image].references
        return {
            "Id": box.id,
            "Names": [f"/{box.name}", *box.links],
            "Image": box.given if named else box.image,
            "ImageID": box.image,
            "Created": int(box.created),
            "State": box.state,
            "Status": "",
            "Labels": dict(box.labels),
            "Mounts": self._mounts(box),
            "HostConfig": {"NetworkMode": self._network_mode(box)},
            "NetworkSettings": {"Networks": self._ends(box)},
        }

    @staticmethod
    def _network_mode(box: Box) -> str:
        return f"container:{box.needs['NetworkMode']}" if "NetworkMode" in box.needs else (box.networks[0] if box.networks else "default")

    def _mounts(self, box: Box) -> list[dict[str, t.Any]]:
        binds = [{"Type": "bind", "Source": path, "Destination": "/etc"} for path in ("/etc", *box.binds)]
        return binds + [
            {"Type": "volume", "Name": name, "Driver": "local", "Destination": f"/{number}"} for number, name in enumerate(box.volumes)
        ] + [{"Type": "image", "Name": name, "Source": "/x/merged", "Destination": f"/i{number}"} for number, name in enumerate(box.mounted)]

    def _ends(self, box: Box) -> dict[str, t.Any]:
        """By the name that it was attached with; the id is there once it has run."""
        ids = {net.name: net.id for net in self.nets.values()}
        return {name: {"NetworkID": ids.get(name, "") if box.started else ""} for name in box.networks}

    def _picture(self, picture: Picture) -> dict[str, t.Any]:
        tags, digests = picture.tags, picture.digests
        if self.containerd:
            # Every image has a digest there: its own, by each repository that names it.
            digests = list(dict.fromkeys([*digests, *(f"{_repository(tag)}@{picture.id}" for tag in tags)]))
        elif not picture.references:
            tags, digests = ["<none>:<none>"], ["<none>@<none>"]
        return {
            "Id": picture.id,
            "ParentId": picture.parent if picture.parent in self.pictures else "",
            "RepoTags": tags or None,
            "RepoDigests": digests or None,
            "Created": int(picture.created),
            "Size": 1000,
            "Labels": dict(picture.labels) or None,
        }

    @staticmethod
    def _volume(data: Data) -> dict[str, t.Any]:
        return {
            "Name": data.name,
            "Driver": data.driver,
            "CreatedAt": _rfc3339(data.created) if data.created else "",
            "Labels": dict(data.labels) or None,
            "Options": dict(data.options) or None,
            **({"ClusterVolume": {"ID": "x"}} if data.cluster else {}),
        }


def _rfc3339(moment: float | None) -> str:
    if not moment:
        return _ZERO
    # Microseconds are written, nanoseconds are what engines write: the rest is zeros.
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")


def _short(ident: str) -> str:
    return ident.partition(":")[2][:12]


def _repository(reference: str) -> str:
    head, at, _digest = reference.partition("@")
    return head if at else reference.rpartition(":")[0]


def _is_id(ident: str, given: str) -> bool:
    """isImageIDPrefix."""
    return ident.startswith(given) or ident.partition(":")[2].startswith(given)


def _single(references: t.Sequence[str]) -> bool:
    """isSingleReference: at most one tag, and all digests of its repository."""
    if len(references) <= 1:
        return len(references) == 1
    tags = [reference for reference in references if "@" not in reference]
    digested = {_repository(reference) for reference in references if "@" in reference}
    if len(tags) > 1:
        return False
    return digested == {_repository((tags or list(references))[0])}
