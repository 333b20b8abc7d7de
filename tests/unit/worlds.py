# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Objects for the policy's tests, with as little said as possible, and a fake engine that carries a plan out."""

from __future__ import annotations

import hashlib
import typing as t

from ansible_collections.fleetclean.docker.plugins.module_utils import policy
from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import (
    CacheRecord,
    Container,
    Image,
    Network,
    Snapshot,
    Volume,
)

if t.TYPE_CHECKING:
    from tests.fuzz.dice import Dice

NOW = 1_700_000_000.0
MINUTE, HOUR, DAY = 60, 3600, 86400
GB = 1024**3


def hexadecimal(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def sha(name: str) -> str:
    return f"sha256:{hexadecimal(name)}"


def ago(seconds: float | None) -> float | None:
    return None if seconds is None else NOW - seconds


def container(
    name: str,
    image: str = "",
    state: str = "exited",
    stopped: float | None = 10 * DAY,
    created: float | None = 20 * DAY,
    **more: t.Any,
) -> Container:
    """Ages are seconds before now. ``image`` is the name of an ``image()``, or says nothing."""
    live = state in ("running", "paused", "restarting")
    values: dict[str, t.Any] = {
        "id": hexadecimal(f"container {name}"),
        "name": name,
        "names": (name,),
        "image_id": sha(image) if image else sha(f"image of {name}"),
        "image_name": "",
        "created": ago(created),
        "started": None if state == "created" else ago(created),
        "finished": None if live or state == "created" else ago(stopped),
        "state": state,
        "labels": {},
        "volumes": (),
        "networks": (),
        "bytes": 1000,
    }
    values.update(more)
    return Container(**values)


def image(name: str, *tags: str, created: float | None = 30 * DAY, parent: str = "", **more: t.Any) -> Image:
    values: dict[str, t.Any] = {
        "id": sha(name),
        "parent": sha(parent) if parent else "",
        "tags": tags,
        "digests": tuple(f"{tag.rpartition(':')[0]}@{sha('digest ' + name)}" for tag in tags),
        "created": ago(created),
        "arrived": None,
        "tagged": None,
        "bytes": GB,
        "labels": {},
        "layers": (),
    }
    values.update(more)
    return Image(**values)


def volume(name: str, changed: float | None = 10 * DAY, anonymous: bool = False, **more: t.Any) -> Volume:
    values: dict[str, t.Any] = {"driver": "local", "labels": {}, "cluster": False, "bytes": GB}
    values.update(more)
    return Volume(name=name, created=ago(changed), anonymous=anonymous, **values)


def network(name: str, created: float | None = 10 * DAY, **more: t.Any) -> Network:
    values: dict[str, t.Any] = {"labels": {}, "predefined": False, "swarm": False}
    values.update(more)
    return Network(id=hexadecimal(f"network {name}"), name=name, created=ago(created), **values)


def record(name: str, used: float | None = 10 * DAY, *parents: str, **more: t.Any) -> CacheRecord:
    values: dict[str, t.Any] = {
        "type": "regular",
        "in_use": False,
        "shared": False,
        "bytes": GB,
        "created": ago(20 * DAY),
    }
    values.update(more)
    return CacheRecord(id=name, parents=parents, last_used=ago(used), **values)


def world(*objects: t.Any, **more: t.Any) -> Snapshot:
    """An engine that remembers all its events, if nothing else is said."""

    def of(kind: type) -> tuple[t.Any, ...]:
        return tuple(found for found in objects if isinstance(found, kind))

    return Snapshot(
        now=NOW,
        containers=of(Container),
        images=of(Image),
        volumes=of(Volume),
        networks=of(Network),
        build_cache=of(CacheRecord),
        **{"events_since": 0.0, **more},
    )


class Refused(AssertionError):
    """A real engine would have said 404 or 409 to this step."""


def fake_carry_out(snapshot: Snapshot, plan: policy.Plan) -> Snapshot:
    """What is left after the plan; refuses what a real engine refuses (moby: daemon/images/image_delete.go)."""
    containers = {found.id: found for found in snapshot.containers}
    images = {found.id: found for found in snapshot.images}
    volumes = {found.name: found for found in snapshot.volumes}
    networks = {found.id: found for found in snapshot.networks}
    cache = {found.id: found for found in snapshot.build_cache}
    for step in plan.steps:
        if step.kind == "container":
            gone = containers.pop(step.id)
            if gone.live and not step.force:
                raise Refused(f"{step.name} is {gone.state}")
        elif step.kind in ("tag", "image"):
            found = images[step.id]
            users = [user for user in containers.values() if user.image_id == found.id]
            if any(user.live for user in users):
                raise Refused(f"{step.name} is used by a container that runs")
            if step.kind == "tag":
                if step.name not in found.tags or len(found.tags) == 1:
                    raise Refused(f"{step.name} is no tag that can go alone")
                images[step.id] = found._replace(tags=tuple(tag for tag in found.tags if tag != step.name))
                continue
            if users and not step.force:
                raise Refused(f"{step.name} is used by a stopped container")
            if found.tags != step.expects or len(found.tags) > 1:
                raise Refused(f"{step.name} has the tags {found.tags}")
            if any(child.parent == found.id for child in images.values()):
                raise Refused(f"{step.name} has children")
            del images[step.id]
        elif step.kind == "volume":
            if any(step.id in user.volumes for user in containers.values()):
                raise Refused(f"volume {step.name} is in use")
            del volumes[step.id]
        elif step.kind == "network":
            if any({step.id, step.name} & set(user.networks) for user in containers.values()):
                raise Refused(f"network {step.name} is in use")
            del networks[step.id]
        elif step.kind == "build_cache":
            if any(step.id in child.parents for child in cache.values()):
                raise Refused(f"record {step.name} has children")
            del cache[step.id]
        else:
            raise Refused(f"no such kind: {step.kind}")
    return snapshot._replace(
        containers=tuple(containers.values()),
        images=tuple(images.values()),
        volumes=tuple(volumes.values()),
        networks=tuple(networks.values()),
        build_cache=tuple(cache.values()),
    )


# -- random worlds -----------------------------------------------------------------------------

STATES = ("created", "exited", "dead", "running", "paused", "restarting", "removing")
KEEP_LABELS = ({}, {}, {}, {}, {"fleetclean.keep": ""}, {"other": "label"})


def random_world(dice: Dice) -> Snapshot:
    """A small engine: shared layers, parents, tags of several repositories, objects that hold each other."""

    def age() -> float | None:
        return dice.choice((None, -HOUR, MINUTE, HOUR, DAY, 3 * DAY, 10 * DAY, 100 * DAY, dice.uniform(0, 40 * DAY)))

    images: list[Image] = []
    free_tags = [f"{repository}:{number}" for repository in ("app", "host:5000/team/db", "ci") for number in range(4)]
    dice.shuffle(free_tags)
    for number in range(dice.randint(0, 8)):
        tags = tuple(free_tags.pop() for _ in range(dice.choice((0, 0, 1, 1, 2, 3))) if free_tags)
        parent = f"i{dice.randrange(number)}" if number and dice.chance(0.4) else ""
        own = tuple(f"layer {number} {depth}" for depth in range(dice.randint(0, 2)))
        base = images[int(parent[1:])].layers if parent else ()
        images.append(
            image(
                f"i{number}",
                *tags,
                created=age(),
                parent=parent,
                digests=() if dice.chance(0.4) else (f"app@{sha(f'digest {number}')}",),
                arrived=ago(age()),
                tagged=ago(age()),
                labels=dice.choice(KEEP_LABELS),
                layers=base + own,
                bytes=dice.choice((None, 0, GB)),
            )
        )
    volumes = []
    for number in range(dice.randint(0, 4)):
        anonymous = dice.chance(0.5)
        name = hexadecimal(f"v{number}") if anonymous else f"v{number}"
        volumes.append(volume(name, age(), anonymous, labels=dice.choice(KEEP_LABELS), cluster=dice.chance(0.1)))
    networks = [
        network(
            f"n{number}",
            age(),
            labels=dice.choice(KEEP_LABELS),
            predefined=dice.chance(0.1),
            swarm=dice.chance(0.1),
        )
        for number in range(dice.randint(0, 4))
    ]
    containers = []
    for number in range(dice.randint(0, 5)):
        of = dice.choice(images) if images and dice.chance(0.8) else None
        managed = {"io.kubernetes.pod.name": "p"} if dice.chance(0.05) else {}
        containers.append(
            container(
                f"c{number}",
                state=dice.choice(STATES),
                stopped=age(),
                created=age(),
                image_id=of.id if of else sha("elsewhere"),
                image_name=of.tags[0] if of and of.tags and dice.chance(0.5) else "",
                labels={**dice.choice(KEEP_LABELS), **managed},
                volumes=tuple(found.name for found in volumes if dice.chance(0.4)),
                networks=tuple(dice.choice((found.name, found.id)) for found in networks if dice.chance(0.4)),
            )
        )
    cache = [
        record(
            f"r{number}",
            age(),
            *{f"r{dice.randrange(number)}" for _ in range(dice.choice((0, 1, 2))) if number},
            type=dice.choice(("regular", "source.local", "internal", "frontend", "exec.cachemount")),
            in_use=dice.chance(0.1),
            shared=dice.chance(0.2),
            created=ago(age()),
            bytes=dice.choice((None, 0, 1, 5, 20)),
        )
        for number in range(dice.randint(0, 7))
    ]
    sizes = {layer: 10 for found in images for layer in found.layers} if dice.chance(0.5) else {}
    return world(*images, *volumes, *networks, *containers, *cache, layer_bytes=sizes)


def random_wishes(dice: Dice) -> policy.Wishes:
    def maybe(wish: t.Any) -> t.Any:
        return wish if dice.chance(0.8) else None

    def age() -> int | None:
        return dice.choice((None, 0, HOUR, DAY, 7 * DAY))

    return policy.Wishes(
        containers=maybe(
            policy.ContainerWish(
                states=tuple(state for state in STATES[:6] if dice.chance(0.6)),
                older_than=age(),
                keep=dice.choice(((), ("c1",))),
                volumes=dice.chance(0.5),
            )
        ),
        images=maybe(
            policy.ImageWish(
                scope=dice.choice(("dangling", "unused", "all")),
                older_than=age(),
                dangling_older_than=age(),
                keep=dice.choice(((), ("app",), ("*:1",))),
                keep_latest=dice.choice((0, 0, 1, 2)),
                keep_local=dice.chance(0.3),
            )
        ),
        volumes=maybe(policy.VolumeWish(dice.choice(("anonymous", "unused")), age(), dice.choice(((), ("v1",))))),
        networks=maybe(policy.NetworkWish(age(), dice.choice(((), ("n1",))))),
        build_cache=maybe(
            policy.CacheWish(dice.choice(("unused", "all")), age(), dice.choice((None, None, 0, 10, 40)))
        ),
        orchestrated=dice.choice(("keep", "clean")),
        cheapest_first=dice.chance(0.3),
    )
