# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All objects of an engine at one moment, and who uses whom: typed and immutable.

Answers differ between API 1.21 and today's, and between the image stores; here they become one
shape. A figure that the engine did not give is None, never 0: no data is not the same as unused.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from types import MappingProxyType

from ansible_collections.fleetclean.docker.plugins.module_utils import fields, image_records
from ansible_collections.fleetclean.docker.plugins.module_utils.engine import (
    Engine,
    EngineError,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import (
    FleetcleanError,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Storage, from_info
from ansible_collections.fleetclean.docker.plugins.module_utils.units import parse_time

#: States in which a container has processes, and goes only by being killed.
LIVE_STATES = ("running", "paused", "restarting")
REMOVING = "removing"
#: Networks that every engine makes for itself, and swarm's own.
PREDEFINED_NETWORKS = ("bridge", "host", "none", "ingress", "docker_gwbridge", "default", "nat")
#: Stands before a volume's name where names of images and volumes are keys of one mapping.
VOLUME = "volume:"
#: The same before a network's id.
NETWORK = "network:"
#: What could not be listed, if it is swarm's services: then nobody knows what they use.
SERVICES = "swarm's services and what they use"
#: So many entries of a list are read before they are dropped.
_AT_ONCE = 256
_Entry = t.TypeVar("_Entry")
_Read = t.TypeVar("_Read")
_RANDOM_NAME = re.compile(r"[0-9a-f]{64}")


class Container(t.NamedTuple):
    """``since`` is when it came into its state: its stop, or for one that never ran its creation.

    One that did run and whose stop is not known has none: its creation may be long before.
    ``restarts`` is its restart policy, if by that the engine starts it again when it starts itself.
    ``mounted_images`` are those that it mounts, by the names that its user gave them (API 1.48 and newer).
    ``stands_on`` are the containers without which it cannot start: each by id or name, and what it has of it.
    ``binds`` are the host's paths that it has, as its user gave them; ``reaches`` the objects whose folders those
    are or lie in, such as ``volume:data``, each with the path.
    """

    id: str
    name: str
    names: tuple[str, ...]
    image_id: str
    image_name: str
    created: float | None
    started: float | None
    finished: float | None
    state: str
    labels: dict[str, str]
    volumes: tuple[str, ...]
    networks: tuple[str, ...]
    bytes: int | None
    virtual_bytes: int | None = None
    restarts: str = ""
    mounted_images: tuple[str, ...] = ()
    stands_on: tuple[tuple[str, str], ...] = ()
    binds: tuple[str, ...] = ()
    reaches: tuple[tuple[str, str], ...] = ()

    @property
    def live(self) -> bool:
        return self.state in LIVE_STATES

    @property
    def volumes_by_path(self) -> list[str]:
        """The names of the volumes that it has by a path."""
        return [owner[len(VOLUME):] for owner, _path in self.reaches if owner.startswith(VOLUME)]

    @property
    def since(self) -> float | None:
        return self.finished or (None if self.state == "exited" else self.created)

    @property
    def last_use(self) -> float | None:
        return max((moment for moment in (self.created, self.started, self.finished) if moment), default=None)


class Image(t.NamedTuple):
    """``arrived`` is when it came to this host, ``tagged`` when it was last given a tag, where that is known.

    ``origin_known``: no digests means that it was never pushed or pulled. containerd's store gives every
    image digests, so nothing can be told from them there.
    ``layers`` are the chain ids of its layers, lowest first, empty if they were not asked for.
    """

    id: str
    parent: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    created: float | None
    arrived: float | None
    tagged: float | None
    bytes: int | None
    labels: dict[str, str]
    layers: tuple[str, ...] = ()
    origin_known: bool = True

    @property
    def has_digests_alone(self) -> bool:
        return bool(self.digests) and not self.tags

    @property
    def dangling(self) -> bool:
        """Whether the engine itself calls it dangling: graph drivers those without a tag, containerd's store those without any name.

        Source: moby, daemon/images/image_prune.go (graph drivers), daemon/containerd/image_prune.go (isDanglingImage).
        """
        return not self.tags and (self.origin_known or not self.digests)


class Volume(t.NamedTuple):
    """``driver`` is ``local/<type>`` for a volume of the local driver that mounts something from elsewhere.

    ``changed`` is the last change of its data's own folder, where that is at hand. ``created`` is the engine's CreatedAt: before 26 the
    last change of that folder, since then its making.
    ``device`` is the host's path that it shows instead of a folder of its own, ``overlaid`` are those that it shows as an overlay;
    ``shows`` are the volumes whose data that is or lies in, such as ``volume:data``.
    """

    name: str
    driver: str
    created: float | None
    labels: dict[str, str]
    anonymous: bool
    cluster: bool
    bytes: int | None
    changed: float | None = None
    device: str = ""
    overlaid: tuple[str, ...] = ()
    shows: tuple[str, ...] = ()


class Hold(t.NamedTuple):
    """A mount, or whatever else on the host, that keeps an object: the engine would delete what is mounted in its folder, or take away
    what others see of it.

    ``holder`` is the object, such as ``volume:data``, and ``reason`` says why it stays. ``via``: through whom, such as
    ``container:<id>`` in whose mount namespace it is, or ``volume:<name>`` that the engine has mounted; with that it ends.
    """

    holder: str
    reason: str
    via: str = ""


class Network(t.NamedTuple):
    id: str
    name: str
    created: float | None
    labels: dict[str, str]
    predefined: bool
    swarm: bool


class CacheRecord(t.NamedTuple):
    """One record of the build cache. Its description may hold a build's secrets, so it is not taken along."""

    id: str
    parents: tuple[str, ...]
    type: str
    in_use: bool
    shared: bool
    bytes: int | None
    created: float | None
    last_used: float | None


class Snapshot(t.NamedTuple):
    """``now`` is the engine's clock. ``layer_bytes`` are the layer store's figures by chain id (before API 1.22: by image id).

    ``shared_bytes`` (by image, with others) and ``layers_bytes`` (of all images) are the engine's, where the layer
    store's are not at hand.

    ``seen`` is when the engine saw something in use, by its events: by the name or id of an image as its user gave
    it, by volume name behind ``VOLUME`` and by network id behind ``NETWORK``; ``came`` is when it saw an image come, in the same way.
    Seconds since 1970. Of these events none is missing since ``events_since`` (None if that is not known); ``events_lost`` says that
    there may have been earlier ones that it does not hold any more, since it holds few and none from before its start, or that it did not tell them.
    ``service_images`` and ``service_volumes`` are those that swarm's services name, as a manager knows them.

    ``service_binds`` are the host's paths that they name; ``holds`` what on the host keeps objects (see ``path_uses``).

    ``unreadable`` says what the engine could not list, with its own words: BuildKit writes down the sizes that it is
    asked for, so on a full disk its list fails; a swarm without a leader cannot tell its services.
    ``volumes_linked``: the folder of volumes is a link, through which the engine removes none.
    """

    now: float
    containers: tuple[Container, ...] = ()
    images: tuple[Image, ...] = ()
    volumes: tuple[Volume, ...] = ()
    networks: tuple[Network, ...] = ()
    build_cache: tuple[CacheRecord, ...] = ()
    layer_bytes: t.Mapping[str, int] = MappingProxyType({})
    shared_bytes: t.Mapping[str, int] = MappingProxyType({})
    layers_bytes: int | None = None
    seen: t.Mapping[str, float] = MappingProxyType({})
    came: t.Mapping[str, float] = MappingProxyType({})
    events_since: float | None = None
    events_lost: bool = False
    service_images: frozenset[str] = frozenset()
    service_volumes: frozenset[str] = frozenset()
    service_binds: frozenset[str] = frozenset()
    holds: tuple[Hold, ...] = ()
    unreadable: t.Mapping[str, str] = MappingProxyType({})
    volumes_linked: bool = False


class Wanted(t.NamedTuple):
    """What to ask the engine for. Containers are always asked for: they hold everything else.

    ``ages`` needs a call for each stopped container and each image that has no record at hand, ``container_ages`` one for each
    such container, both the engine's past events; ``sizes`` lets the engine walk the
    containers' writable layers and, unless ``volume_sizes`` is off, the volumes, and unless ``image_sizes`` is off compute
    what images share (which on containerd's store takes it as long as its list of images). ``layers``: which layers images
    have; without a record at hand that needs a call for each, too. ``labels``: whether anybody looks at a label, by its key and value; the
    others are left out, since images have many and their containers have them all.
    """

    images: bool = False
    volumes: bool = False
    networks: bool = False
    build_cache: bool = False
    ages: bool = False
    container_ages: bool = False
    sizes: bool = False
    volume_sizes: bool = True
    image_sizes: bool = True
    layers: bool = True
    labels: t.Callable[[str, str], bool] | None = None
    services: bool = True
    parallel: int = 4


def engine_clock(info: dict[str, t.Any]) -> float:
    """The engine's own time, seconds since 1970. Ages are counted by it, not by this machine's clock."""
    return parse_time(info.get("SystemTime")) or time.time()


def take(engine: Engine, wanted: Wanted, storage: Storage | None) -> Snapshot:
    """Ask the engine for its objects.

    :param storage: the engine's own storage, if it is proven to be on this machine: then the
        arrival of images and the sizes of their layers are read there.
    """
    unreadable: dict[str, str] = {}
    with ThreadPoolExecutor(max_workers=max(1, wanted.parallel) + 2) as pool:
        # The engine walks its disk for it. Meanwhile all else is asked, but events and containers: what came and who uses what comes last.
        walking = pool.submit(_usage, engine, wanted, storage, unreadable)
        images = _images(engine, wanted, storage, pool) if wanted.images else ()
        layer_bytes = storage.layer_sizes() if storage and wanted.images and wanted.sizes else {}
        networks = tuple(_network(raw) for raw in engine.networks()) if wanted.networks else ()
        services = _services(engine, unreadable) if wanted.services and (wanted.images or wanted.volumes) else []
        usage = walking.result()
        # The engine takes its time for them, until the moment that was given as their end. Behind the images: none is there that they do not tell of.
        with_events = (wanted.ages or wanted.container_ages) and (wanted.images or wanted.volumes or wanted.networks)
        telling = pool.submit(past_uses, engine) if with_events else None
        volumes = _volumes(engine, usage, storage) if wanted.volumes else ()
        containers = _containers(engine, wanted, pool, usage, storage, unreadable, (image.id for image in images))
        past = telling.result() if telling else PastUses({}, {})
    if wanted.networks and not past.lost:
        # It forgets them all when it ends, so none is older than its start.
        first = [moment for moment in (past.since, _started(engine.info, networks)) if moment is not None]
        past = past._replace(since=min(first, default=None), lost=True)
    if not engine.speaks("1.22") and wanted.sizes and not any(image.layers for image in images):
        images, layer_bytes = _before_layers(images)
    return Snapshot(
        now=engine_clock(engine.info),
        containers=containers,
        images=images,
        volumes=volumes,
        networks=networks,
        build_cache=tuple(_cache_record(raw) for raw in usage.get("BuildCache") or ()) if engine.speaks("1.39") else (),
        layer_bytes=layer_bytes,
        shared_bytes={
            str(raw.get("Id")): max(0, raw.get("SharedSize") or 0) for raw in usage.get("Images") or () if wanted.sizes
        },
        layers_bytes=_size(usage.get("LayersSize")) if wanted.sizes else None,
        seen=past.seen,
        came=past.came,
        events_since=past.since,
        events_lost=past.lost,
        service_images=frozenset(name for service in services for name in _images_of(service)),
        service_volumes=frozenset(name for service in services for name in _mounted_by(service, "volume")),
        service_binds=frozenset(name for service in services for name in _mounted_by(service, "bind")),
        unreadable=unreadable,
        volumes_linked=storage.volumes_linked if storage else False,
    )


#: A container's removal is no sign of use: our own would make its image look young.
_SIGNS_OF_USE = ("create", "start", "restart", "unpause", "die", "stop", "exec_start", "attach", "commit")
_SIGNS_OF_ARRIVAL = ("pull", "load", "import")
#: The engine's memory of events counts as full a few before it is: meanwhile others may come, and an event may have no time.
_NEARLY_FULL = 16


def _started(info: dict[str, t.Any], networks: t.Sequence[Network]) -> float | None:
    """When the engine was started: it makes its bridge anew then, unless containers went on without it (daemon_unix.go, initBridgeDriver)."""
    bridge = next((network for network in networks if network.name == "bridge" and network.predefined), None)
    return bridge.created if bridge and not info.get("LiveRestoreEnabled") else None


class PastUses(t.NamedTuple):
    """What past events tell, see ``Snapshot``."""

    seen: dict[str, float]
    came: dict[str, float]
    since: float | None = None
    lost: bool = False


def past_uses(engine: Engine) -> PastUses:
    """Return what the engine's past events tell; that they are lost if it does not tell them."""
    try:
        return read_events(engine.past_events(), engine.events_kept)
    except FleetcleanError:
        return PastUses({}, {}, lost=True)  # a sign of life more or less; what is not known is judged by all else


def read_events(events: t.Sequence[dict[str, t.Any]], kept: int) -> PastUses:
    """Read events: what was seen in use and when, which images came, and since when none is missing.

    Source: https://docs.docker.com/reference/api/engine/version/v1.41/#tag/System/operation/SystemEvents

    :param kept: how many events the engine holds.
    """
    seen: dict[str, float] = {}
    came: dict[str, float] = {}
    for event in events:
        actor = event.get("Actor") if isinstance(event.get("Actor"), dict) else {}
        of, name = str((actor or {}).get("ID") or event.get("id") or ""), str(event.get("from") or "")
        attributes = (actor or {}).get("Attributes")
        moment = parse_time(event.get("time"))
        # Before API 1.22 an event has neither a type nor an actor, and what it is about is told by its name alone.
        kind = str(event.get("Type") or ("container" if name else "image"))
        action = str(event.get("Action") or event.get("status") or "").partition(":")[0]
        if moment is None:
            continue
        if kind == "container" and action in _SIGNS_OF_USE:
            given = str((attributes if isinstance(attributes, dict) else {}).get("image") or name)
            seen[given] = max(seen.get(given, 0.0), moment)
        elif kind == "volume" and action in ("mount", "unmount"):
            seen[VOLUME + of] = max(seen.get(VOLUME + of, 0.0), moment)
        elif kind == "network" and action in ("connect", "disconnect"):
            seen[NETWORK + of] = max(seen.get(NETWORK + of, 0.0), moment)
        elif kind == "image" and action in _SIGNS_OF_ARRIVAL:
            came[of] = max(came.get(of, 0.0), moment)
    since = next((moment for moment in map(_complete_after, events) if moment is not None), None)
    return PastUses(seen, came, since, len(events) >= kept - _NEARLY_FULL)


def _complete_after(event: dict[str, t.Any]) -> float | None:
    """When an event was, for what is known since then: without nanoseconds others of its second may be missing."""
    nanoseconds = event.get("timeNano")
    if isinstance(nanoseconds, int) and nanoseconds > 0:
        return nanoseconds / 1e9
    moment = parse_time(event.get("time"))
    return None if moment is None else moment + 1


def _services(engine: Engine, unreadable: dict[str, str]) -> list[dict[str, t.Any]]:
    """Swarm's services; a manager without a leader cannot tell, as one whose disk is full."""
    try:
        return engine.services()
    except EngineError as error:
        unreadable[SERVICES] = error.said
        return []


def _specs(service: dict[str, t.Any]) -> t.Iterator[dict[str, t.Any]]:
    """What a service's containers are made from: now, and after a roll-back."""
    for name in ("Spec", "PreviousSpec"):
        template = (service.get(name) or {}).get("TaskTemplate") or {}
        yield template.get("ContainerSpec") or {}


def _images_of(service: dict[str, t.Any]) -> list[str]:
    return [str(spec["Image"]) for spec in _specs(service) if spec.get("Image")]


def _mounted_by(service: dict[str, t.Any], kind: str) -> list[str]:
    mounts = [mount for spec in _specs(service) for mount in spec.get("Mounts") or () if isinstance(mount, dict)]
    return [str(mount["Source"]) for mount in mounts if mount.get("Type") == kind and mount.get("Source")]


def _usage(
    engine: Engine, wanted: Wanted, storage: Storage | None, unreadable: dict[str, str]
) -> dict[str, t.Any]:
    """All that has to come out of the engine's ``/system/df``, asked once: before API 1.42 it always computes everything."""
    kinds = [("build-cache", "build_cache")] if wanted.build_cache and engine.speaks("1.39") else []
    if wanted.sizes:
        kinds += [("container", "")]  # the list of containers has them as well
        kinds += [("volume", "volumes' sizes")] if wanted.volumes and wanted.volume_sizes else []
        # The layer store on the disk knows better, where there is one.
        there = storage and storage.image_store == "graphdriver"
        kinds += [("image", "images' sizes")] if wanted.images and wanted.image_sizes and not there else []
    if not any(what for _kind, what in kinds) and not engine.speaks("1.42"):
        return {}  # the list has all of it, and this would walk the volumes
    if not kinds or not engine.speaks("1.25"):
        return {}
    try:
        return engine.disk_usage(*(kind for kind, _what in kinds))
    except EngineError as error:
        if not error.broken:
            raise
        failed = error
    usage: dict[str, t.Any] = {}
    for kind, what in kinds:
        # One object that the engine trips over makes it answer nothing at all. On a full disk BuildKit does, which writes while it is asked.
        try:
            if not engine.speaks("1.42"):
                raise failed
            usage.update({name: part for name, part in engine.disk_usage(kind).items() if part})
        except EngineError as error:
            if not error.broken:
                raise
            if what:
                unreadable[what] = error.said
    return usage


def container_from(summary: dict[str, t.Any], details: dict[str, t.Any] | None = None) -> Container:
    """Read a container from its entry in the list, and from its inspection where there is one."""
    found = _container(summary)
    return _with_details(found, details) if details else found


def _with_details(found: Container, details: dict[str, t.Any]) -> Container:
    """Add what the inspection of a container says to what the list said."""
    inner = details.get("State")
    moments: dict[str, t.Any] = inner if isinstance(inner, dict) else {}
    if not (found.volumes or found.mounted_images or found.binds):
        volumes, mounted_images, binds = _mounts(details.get("Mounts"))
        found = found._replace(volumes=volumes, mounted_images=mounted_images, binds=binds)
    return found._replace(
        image_id=found.image_id or str(details.get("Image") or ""),
        created=parse_time(details.get("Created")) or found.created,
        started=parse_time(moments.get("StartedAt")),
        finished=parse_time(moments.get("FinishedAt")),
        state=str(moments.get("Status") or found.state).lower(),
        networks=tuple(dict.fromkeys(found.networks + _attached(details))),
        restarts=_restarts(details),
        stands_on=tuple(dict.fromkeys([*found.stands_on, *_stands_on(details)])),
    )


def _mounts(raw: t.Any) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The volumes, the images and the host's paths that a container mounts."""
    every = [mount for mount in raw or [] if isinstance(mount, dict)]
    mounts = [mount for mount in every if mount.get("Name")]
    return (
        tuple(str(mount["Name"]) for mount in mounts if mount.get("Type") != "image"),
        tuple(str(mount["Name"]) for mount in mounts if mount.get("Type") == "image"),
        # Before API 1.20 a mount has no type, and a bind has no name.
        tuple(str(mount["Source"]) for mount in every if mount.get("Source") and mount.get("Type", "" if mount.get("Name") else "bind") == "bind"),
    )


def _container(summary: dict[str, t.Any]) -> Container:
    ident = str(summary["Id"])
    names = tuple(str(name).lstrip("/") for name in summary.get("Names") or [] if name)
    # A container that is linked to has names like /other/alias besides its own.
    own = next((name for name in names if "/" not in name), None)
    state = str(summary.get("State") or "") or _state_from_status(str(summary.get("Status") or ""))
    volumes, mounted_images, binds = _mounts(summary.get("Mounts"))
    return Container(
        id=ident,
        name=own or (names[0] if names else ident[:12]),
        names=names,
        image_id=str(summary.get("ImageID") or ""),
        image_name=str(summary.get("Image") or ""),
        created=parse_time(summary.get("Created")),
        started=None,
        finished=None,
        state=state.lower(),
        labels=_labels(summary.get("Labels")),
        volumes=volumes,
        mounted_images=mounted_images,
        # Before API 1.22 the list names the network that it was started with, and no other.
        networks=tuple(dict.fromkeys(_attached(summary))),
        # Asked for sizes, the list leaves out those that are 0 and still has SizeRootFs.
        bytes=_size(summary.get("SizeRw", 0 if "SizeRootFs" in summary else None)),
        virtual_bytes=_size(summary.get("SizeRootFs")),
        stands_on=tuple(dict.fromkeys(_stands_on(summary))),
        binds=binds,
    )


def _restarts(details: dict[str, t.Any]) -> str:
    """``unless-stopped`` is as ``always``, but for what was stopped by hand; that, the API does not tell.

    ``on-failure`` goes by the exit code also of what was stopped by hand, and by the tries that are left (``restartmanager.go``).
    """
    given = (details.get("HostConfig") or {}).get("RestartPolicy") or {}
    policy = str(given.get("Name") or "")
    if policy == "on-failure":
        most, made = given.get("MaximumRetryCount") or 0, details.get("RestartCount") or 0
        return policy if (details.get("State") or {}).get("ExitCode") and (not most or made < most) else ""
    return policy if policy in ("always", "unless-stopped") else ""


#: Namespaces that a container may have of another one.
_NAMESPACES = (("NetworkMode", "network namespace"), ("IpcMode", "IPC namespace"), ("PidMode", "PID namespace"))


def _stands_on(raw: dict[str, t.Any]) -> list[tuple[str, str]]:
    """The containers, by id or name, without which this one cannot start, and what it has of each."""
    config = raw.get("HostConfig") or {}
    found = []
    for name, what in _NAMESPACES:
        kind, _colon, other = str(config.get(name) or "").partition(":")
        if kind == "container" and other:
            found.append((other, what))
    found += [(str(given).partition(":")[0], "volumes") for given in config.get("VolumesFrom") or ()]
    ends = ((raw.get("NetworkSettings") or {}).get("Networks") or {}).values()
    links = [*(config.get("Links") or ()), *(link for end in ends if isinstance(end, dict) for link in end.get("Links") or ())]
    # `--link db:database`: as it was given, or as an inspection has it, /db:/web/database.
    return found + [(str(link).partition(":")[0].lstrip("/"), "link") for link in links]


def _attached(raw: dict[str, t.Any]) -> tuple[str, ...]:
    """Names and ids of the networks that a container is connected to, running or not."""
    ends = (raw.get("NetworkSettings") or {}).get("Networks") or {}
    found = list(ends)
    found += [str(end["NetworkID"]) for end in ends.values() if isinstance(end, dict) and end.get("NetworkID")]
    mode = (raw.get("HostConfig") or {}).get("NetworkMode")
    return tuple(found + ([str(mode)] if mode else []))


#: What many containers have alike.
_IN_COMMON = ("image_id", "volumes", "networks", "binds", "stands_on")


def _containers(
    engine: Engine,
    wanted: Wanted,
    pool: ThreadPoolExecutor,
    usage: dict[str, t.Any],
    storage: Storage | None,
    unreadable: dict[str, str],
    image_ids: t.Iterable[str] = (),
) -> tuple[Container, ...]:
    sizes = {str(raw.get("Id")): {key: raw[key] for key in ("SizeRw", "SizeRootFs") if key in raw} for raw in usage.pop("Containers", None) or ()}
    # Mounts came into the list with API 1.22: without them nobody knows which volumes are in use.
    inspect = wanted.ages or wanted.container_ages or not engine.speaks("1.22")

    by_name = from_info(engine.info).image_store == "containerd"

    def with_given_name(found: Container, details: dict[str, t.Any]) -> Container:
        # Once the tag has moved on the list has the image's id there. On containerd's store a container keeps its name's image (moby 53706).
        given = str((details.get("Config") or {}).get("Image") or "")
        return found._replace(image_name=given) if by_name and given else found

    same: dict[t.Any, t.Any] = {ident: ident for ident in image_ids}

    def sharing(found: Container) -> Container:
        """The same, with one object for what thousands have: a few networks and volumes, and their image's id."""
        return found._replace(**{name: same.setdefault(value, value) for name in _IN_COMMON for value in (getattr(found, name),)})

    def first(summary: dict[str, t.Any]) -> Container:
        return sharing(container_from({**sizes.get(str(summary["Id"]), {}), **summary, "Labels": _labels(summary.get("Labels"), wanted)}))

    def read(listed: Container) -> Container | None:
        live = engine.speaks("1.23") and listed.state in LIVE_STATES
        # After a removal that failed the list has "removing" until the engine starts again, and the record has no word for it (moby 22260, 27381).
        record = _record(storage, listed.id) if storage and engine.speaks("1.23") and listed.state != REMOVING else None
        if record and not live and not any(record["State"][name] for name in ("Running", "Paused", "Restarting")):
            # On a full disk the engine cannot write down that a container ended; then its record is of no use.
            found = _with_details(listed, record)
            found = found._replace(restarts="") if found.restarts == "unless-stopped" and record["StoppedByHand"] else found
            return with_given_name(found, record)
        try:
            details = record if record and live else engine.container(listed.id)
        except EngineError as error:
            # Gone between the list and the look: it holds nothing any more.
            return None if error.gone else listed
        if live:  # it is in use now, whenever it was started
            details = {name: details.get(name) for name in ("HostConfig", "Config", "Mounts", "NetworkSettings")}
        return with_given_name(_with_details(listed, details), details)

    try:
        listed = engine.containers_as(first, size=wanted.sizes and not sizes)
    except EngineError as error:
        if not error.broken or not wanted.sizes:
            raise
        # A container whose layer is gone, after a removal that failed half-way, has no size, and no other one has one then.
        unreadable["containers' sizes"] = error.said
        listed = engine.containers_as(first)
    if not inspect and not any(found.state == REMOVING for found in listed):
        return tuple(listed)

    def look(found: Container) -> Container | None:
        return read(found) if inspect or found.state == REMOVING else found

    return tuple(sharing(found) for found in _in_turn(pool, look, listed) if found)


def _record(storage: Storage, container_id: str) -> dict[str, t.Any] | None:
    """A container's own records, of the same types as its inspection; None if they are not, and then the engine is asked."""
    raw = storage.container_record(container_id)
    try:
        return {**fields.check(raw, fields.CONTAINER_DETAILS), "StoppedByHand": raw["StoppedByHand"]} if raw else None
    except ValueError:
        return None


def _images(
    engine: Engine, wanted: Wanted, storage: Storage | None, pool: ThreadPoolExecutor
) -> tuple[Image, ...]:
    graphdriver = from_info(engine.info).image_store == "graphdriver"
    layers = wanted.layers and (wanted.sizes or bool(storage and wanted.build_cache))
    records: dict[str, image_records.ImageRecord] = {}
    if storage and not graphdriver and (wanted.ages or layers):
        platform = (str(engine.version.get("Os")), str(engine.version.get("Arch")))
        records = image_records.read(storage, platform, layers)

    def first(raw: dict[str, t.Any]) -> Image:
        return image_from({**raw, "Labels": _labels(raw.get("Labels"), wanted)}, {}, None, graphdriver)

    def read(listed: Image) -> Image:
        details: dict[str, t.Any] = {}
        ident = listed.id
        # What the image's record here says needs no call.
        record = records.get(ident)
        if record and (record.layers is not None or not layers):
            details = {"Parent": record.parent, "RootFS": {"Layers": record.layers}, "Metadata": {"LastTagTime": record.tagged}}
            return _with_image_details(listed, details, None)
        arrived = _arrival(storage, ident)
        digests = storage.image_layers(ident) if storage and layers else None
        if (wanted.ages and arrived is None) or (layers and digests is None):
            try:
                details = engine.image(ident)
            except EngineError:
                # Gone, or broken. Without what was asked for it must not look older than it is.
                return listed._replace(created=None)
        elif wanted.ages and storage:
            details = {"Metadata": {"LastTagTime": storage.image_tagged(ident)}}
        if digests is not None:
            details = {**details, "RootFS": {"Layers": digests}}
        return _with_image_details(listed, details, arrived)

    found = tuple(_in_turn(pool, read, engine.images_as(first)))
    _chain_id.cache_clear()
    return found


def with_layers(looked: Snapshot, engine: Engine, storage: Storage) -> Snapshot | None:
    """Return the same with the layers of each image, by the records on the disk; None if one of them has none there."""
    records: dict[str, image_records.ImageRecord] = {}
    if storage.image_store != "graphdriver":
        records = image_records.read(storage, (str(engine.version.get("Os")), str(engine.version.get("Arch"))), True)
    images = []
    for image in looked.images:
        if not image.layers:
            record = records.get(image.id)
            digests = record.layers if record else storage.image_layers(image.id)
            if digests is None:
                return None
            image = image._replace(layers=_with_image_details(image, {"RootFS": {"Layers": digests}}, None).layers)
        images.append(image)
    _chain_id.cache_clear()
    return looked._replace(images=tuple(images))


def _in_turn(pool: ThreadPoolExecutor, read: t.Callable[[_Entry], _Read], listed: list[_Entry]) -> t.Iterator[_Read]:
    """Read the entries of a list, several at once, and drop each once it was read: of thousands there is no room for both forms."""
    listed.reverse()
    while listed:
        yield from pool.map(read, [listed.pop() for _number in range(min(len(listed), _AT_ONCE))])


def _before_layers(images: tuple[Image, ...]) -> tuple[tuple[Image, ...], dict[str, int]]:
    """Give images of Docker 1.9 their layers, each of which had an image's id; and return the layers' bytes.

    ``/images/json`` tells the sum of an image and its parents, so what an image has more than its parent is its layer's.
    """
    by_id = {image.id: image for image in images}
    sizes: dict[str, int] = {}
    found = []
    for image in images:
        chain, current = [image.id], image.parent
        while current in by_id and current not in chain:
            chain.append(current)
            current = by_id[current].parent
        below = by_id[image.parent].bytes if image.parent in by_id else 0
        if image.bytes is not None and below is not None:
            sizes[image.id] = max(0, image.bytes - below)
        found.append(image._replace(layers=tuple(reversed(chain))))
    return tuple(found), sizes


def image_from(
    raw: dict[str, t.Any], details: dict[str, t.Any], arrived: float | None, origin_known: bool = True
) -> Image:
    """Read an image from its entry in the list, and from its inspection where there is one."""
    tags, digests = references(raw)
    found = Image(
        id=str(raw["Id"]),
        parent=str(raw.get("ParentId") or ""),
        tags=tags,
        digests=digests,
        created=parse_time(raw.get("Created")),
        arrived=None,
        tagged=None,
        # Before API 1.22 ``Size`` is that of the image's own layer alone.
        bytes=_size(raw.get("VirtualSize")) or _size(raw.get("Size")),
        labels=_labels(raw.get("Labels")),
        origin_known=origin_known,
    )
    return _with_image_details(found, details, arrived)


def _with_image_details(found: Image, details: dict[str, t.Any], arrived: float | None) -> Image:
    """Add what the inspection of an image says to what the list said."""
    return found._replace(
        parent=found.parent or str(details.get("Parent") or ""),
        arrived=arrived,
        tagged=parse_time((details.get("Metadata") or {}).get("LastTagTime")),
        layers=chain_ids((details.get("RootFS") or {}).get("Layers") or []),
    )


def references(raw: dict[str, t.Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """An image's tags and digests, without the stand-ins that engines give for none.

    containerd's store names what was pulled by digest among the tags.
    """
    names = [str(name) for name in raw.get("RepoTags") or () if name and "<none>" not in name]
    digests = [str(digest) for digest in raw.get("RepoDigests") or () if digest] + [name for name in names if "@" in name]
    return (
        tuple(name for name in names if "@" not in name),
        tuple(dict.fromkeys(digest for digest in digests if not digest.startswith(("<none>@", "moby-dangling@")))),
    )


def chain_ids(diff_ids: t.Sequence[str]) -> tuple[str, ...]:
    """The layer store's names of an image's layers: each says itself and all below it.

    The rule is that of the OCI image specification (config.md, "Layer ChainID").
    """
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(_chain_id(chain[-1] if chain else "", diff_id))
    return tuple(chain)


# Thousands of images share their lower layers: one string for each, computed once.
@lru_cache(maxsize=1 << 16)
def _chain_id(below: str, diff_id: str) -> str:
    if not below:
        return diff_id
    return f"sha256:{hashlib.sha256(f'{below} {diff_id}'.encode('utf-8', 'surrogatepass')).hexdigest()}"


def _arrival(storage: Storage | None, image_id: str) -> float | None:
    path = storage.image_record(image_id) if storage else None
    if not path:
        return None
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return None


def _volumes(engine: Engine, usage: dict[str, t.Any], storage: Storage | None) -> tuple[Volume, ...]:
    sizes = {
        str(raw.get("Name")): _size((raw.get("UsageData") or {}).get("Size")) for raw in usage.pop("Volumes", None) or []
    }
    found = []
    for raw in engine.volumes():
        name, labels = str(raw["Name"]), _labels(raw.get("Labels"))
        found.append(
            Volume(
                name=name,
                driver=_volume_driver(raw),
                created=parse_time(raw.get("CreatedAt")),
                labels=labels,
                # Engines 23 and newer label them; before, only the random name tells.
                anonymous="com.docker.volume.anonymous" in labels or bool(_RANDOM_NAME.fullmatch(name)),
                cluster=bool(raw.get("ClusterVolume")),
                bytes=sizes.get(name),
                changed=_changed(storage.volume_data(name)) if storage and raw.get("Driver") == "local" else None,
                device=_bound(raw),
                overlaid=_overlaid(raw),
            )
        )
    return tuple(found)


def _changed(folder: str | None) -> float | None:
    try:
        found = os.lstat(folder or "")
    except (OSError, ValueError):
        return None
    return max(found.st_mtime, found.st_ctime)


def _bound(raw: dict[str, t.Any]) -> str:
    """The host's path that a volume of the local driver shows; empty for one with a folder of its own, or a filesystem from elsewhere."""
    options = raw.get("Options")
    if raw.get("Driver") != "local" or not isinstance(options, dict):
        return ""
    device = str(options.get("device") or "")
    flags = str(options.get("o") or "").split(",")
    return device if device.startswith("/") and ({"bind", "rbind"}.intersection(flags) or options.get("type") in (None, "", "none")) else ""


def _overlaid(raw: dict[str, t.Any]) -> tuple[str, ...]:
    """The host's paths that a volume of the local driver lays over each other."""
    options = raw.get("Options")
    if raw.get("Driver") != "local" or not isinstance(options, dict) or options.get("type") != "overlay":
        return ()
    paths = [
        path
        for name, _equals, value in (option.partition("=") for option in str(options.get("o") or "").split(","))
        for path in (re.split(r"(?<!\\):+", value) if name == "lowerdir" else [value])
        if name in ("lowerdir", "upperdir", "workdir")
    ]
    return tuple(path for path in paths if path.startswith("/"))


def _volume_driver(raw: dict[str, t.Any]) -> str:
    """The options of a mount may hold credentials, so its type is all that is taken along."""
    driver, options = str(raw.get("Driver") or ""), raw.get("Options")
    if driver != "local" or not isinstance(options, dict) or not (options.get("device") or options.get("type")):
        return driver  # a size alone is a quota on data that is here
    kind = str(options.get("type") or "none")
    return f"local/{'bind' if kind == 'none' else kind}"


def _network(raw: dict[str, t.Any]) -> Network:
    name = str(raw.get("Name") or "")
    return Network(
        id=str(raw["Id"]),
        name=name,
        created=parse_time(raw.get("Created")),
        labels=_labels(raw.get("Labels")),
        predefined=name in PREDEFINED_NETWORKS or bool(raw.get("Ingress")) or raw.get("Driver") in ("host", "null"),
        swarm=raw.get("Scope") == "swarm",
    )


def _cache_record(raw: dict[str, t.Any]) -> CacheRecord:
    parents = tuple(str(parent) for parent in raw.get("Parents") or [] if parent)
    if not parents and raw.get("Parent"):
        parents = (str(raw["Parent"]),)
    return CacheRecord(
        id=str(raw["ID"]),
        parents=parents,
        type=str(raw.get("Type") or ""),
        in_use=bool(raw.get("InUse")),
        shared=bool(raw.get("Shared")),
        bytes=_size(raw.get("Size")),
        created=parse_time(raw.get("CreatedAt")),
        last_used=parse_time(raw.get("LastUsedAt")),
    )


#: Most objects have none that anybody looks at.
_NO_LABELS: dict[str, str] = {}


def _labels(raw: object, wanted: Wanted | None = None) -> dict[str, str]:
    labels = {str(key): str(value) for key, value in raw.items()} if isinstance(raw, dict) else {}
    if wanted and wanted.labels:
        labels = {key: value for key, value in labels.items() if wanted.labels(key, value)}
    return labels or _NO_LABELS


def _size(raw: object) -> int | None:
    """Engines say -1 for "not computed", and on containerd's store less than that (moby 45395)."""
    return raw if isinstance(raw, int) and not isinstance(raw, bool) and raw >= 0 else None


def _state_from_status(status: str) -> str:
    """Before API 1.23 the list has only the words for people: ``Up 3 hours (Paused)``, ``Exited (0) ...``."""
    lower = status.lower()
    if lower.startswith("up"):
        return "paused" if "(paused)" in lower else "running"
    for word, state in (("restarting", "restarting"), ("exited", "exited"), ("dead", "dead"), ("removal", "removing")):
        if lower.startswith(word):
            return state
    return "created"
