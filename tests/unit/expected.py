# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to go and what has to stay, written anew from the documentation of docker_clean: it shares no line with the policy."""

from __future__ import annotations

import typing as t
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from ansible_collections.fleetclean.docker.plugins.module_utils import policy
from model import Box, Data, Model, Net, Picture, Record


def what(steps: t.Iterable[t.Any]) -> list[tuple[str, str]]:
    """Steps as Model.everything() names objects."""
    return [(step.kind, step.name if step.kind == "tag" else step.id) for step in steps]


def promised(plan: policy.Plan) -> set[tuple[str, str]]:
    """All that is not there after the plan: an image takes its last tag along."""
    return set(what(plan.steps)) | {("tag", tag) for step in plan.steps if step.kind == "image" for tag in step.expects}


class Expected:
    """``stays``: what must not go. ``goes``: what must. ``asked``: what has to be accounted for. All as Model.everything() names it.

    Of the build cache it tells only what stays whatever else goes: keep_storage may let more of it stay.
    """

    def __init__(self, engine: Model, wishes: policy.Wishes, seen: t.Mapping[str, float]) -> None:
        self.engine, self.wishes, self.seen = engine, wishes, seen
        self.goes: set[tuple[str, str]] = set()
        self.asked: set[tuple[str, str]] = set()
        self.keeping = wishes.orchestrated == "keep"
        boxes = list(engine.boxes.values())
        self.leaving = [box for box in boxes if wishes.containers and not self.box_stays(box, wishes.containers)]
        self.staying = [box for box in boxes if box not in self.leaving]
        #: Containers that stay for others alone.
        self.needed: list[Box] = []
        while wishes.containers:
            more = [box for box in self.leaving if self.box_is_needed(box, wishes.containers)]
            if not more:
                break
            self.needed += more
            self.staying += more
            self.leaving = [box for box in self.leaving if box not in more]
        self.projects = {box.labels.get("com.docker.compose.project") for box in self.staying} - {None}
        self.reached = {name for box in self.staying for name in self.volumes_in(box.binds)}
        self.goes.update(("container", box.id) for box in self.leaving)
        self.asked.update(("container", box.id) for box in boxes if wishes.containers)
        self.judged: dict[str, bool] = {}
        if wishes.images:
            self.images(wishes.images)
        for data in engine.data.values():
            along = self.goes_along(data)
            if wishes.volumes or along:
                self.asked.add(("volume", data.name))
                if not self.volume_stays(data, along):
                    self.goes.add(("volume", data.name))
        for _ in engine.data:  # one shows the data of another, which shows that of a third
            for data in engine.data.values():
                if ("volume", data.name) not in self.goes:
                    self.goes -= {("volume", shown) for shown in self.volumes_in([data.options.get("device", "")])}
        for net in engine.nets.values() if wishes.networks else ():
            self.asked.add(("network", net.id))
            if not self.net_stays(net):
                self.goes.add(("network", net.id))
        self.stays = engine.everything() - self.goes - {("build_cache", ident) for ident in engine.records}
        if wishes.build_cache:
            self.asked.update(("build_cache", ident) for ident in engine.records)
        for record in engine.records.values():
            if self.record_stays(record):
                self.stays |= {("build_cache", record.id)}

    # Shared by all kinds.

    def labelled(self, labels_: dict[str, str], patterns: t.Iterable[str] | None = None) -> bool:
        for pattern in self.wishes.keep_labels if patterns is None else patterns:
            key, equals, value = pattern.partition("=")
            for own, content in labels_.items():
                if fnmatchcase(own, key) and (not equals or fnmatchcase(content, value)):
                    return True
        return False

    def meant(self, wish: t.Any, labels_: dict[str, str], named: t.Callable[[t.Sequence[str]], bool]) -> bool:
        """Both lists have to select it; an empty one selects nothing."""
        if wish.only is not None and not named(wish.only):
            return False
        return wish.only_labels is None or self.labelled(labels_, wish.only_labels)

    def young(self, since: float | None, older_than: int | None) -> bool:
        """Nothing known is no permission; 0 is no limit."""
        return bool(older_than) and (since is None or self.engine.now - since < (older_than or 0))

    @staticmethod
    def named(patterns: t.Iterable[str], ident: str, *names: str) -> bool:
        plain = ident.rpartition(":")[2]
        for pattern in patterns:
            if any(name == pattern or fnmatchcase(name, pattern) for name in names):
                return True
            if len(pattern) >= 12 and set(pattern) <= set("sha256:0123456789abcdef") and plain.startswith(pattern.rpartition(":")[2]):
                return True
        return False

    @staticmethod
    def manager(labels_: dict[str, str], box: Box | None = None) -> str:
        for prefix, name, who in (
            ("io.kubernetes.", "k8s_", "host"), ("com.amazonaws.ecs.", "ecs-agent", "host"), ("com.hashicorp.nomad.", "nomad_init_", "host"),
            ("com.docker.swarm.", "\0", "swarm"), ("\0", "buildx_buildkit_", "buildx"),
        ):
            if any(key.startswith(prefix) for key in labels_) or (box and box.name.startswith(name)):
                return who
        return ""

    # Containers.

    def box_stays(self, box: Box, wish: policy.ContainerWish) -> bool:
        stopped_at = box.finished or (None if box.state == "exited" else box.created)
        return (
            not self.box_is_meant(box, wish)
            or box.state not in wish.states
            or self.wanted(box)
            or (self.starts_again(box) and "running" not in wish.states)
            or self.young(box.created if box.live else stopped_at, wish.older_than)
        )

    def box_is_meant(self, box: Box, wish: policy.ContainerWish) -> bool:
        """A path is matched part by part, so that no link is a name of its own."""
        linked = [PurePosixPath(link) for link in box.links]

        def named(patterns: t.Sequence[str]) -> bool:
            return self.named(patterns, box.id, box.name) or any(path.match(f"/{pattern}") for path in linked for pattern in patterns)

        return self.meant(wish, box.labels, named)

    def starts_again(self, box: Box) -> bool:
        tries = box.restart == "on-failure" and box.exit_code != 0 and (box.retries == 0 or box.restarted < box.retries)
        return self.keeping and box.state in ("exited", "dead") and (tries or box.restart in ("always", "unless-stopped"))

    def box_is_needed(self, box: Box, wish: policy.ContainerWish) -> bool:
        """A container that stays cannot start without it, has its folder by a path, or is of the compose project whose service it is."""
        project = box.labels.get("com.docker.compose.project")
        for other in self.staying:
            if {box.id, box.name} & set(other.needs.values()) or f"/{other.name}/" in "".join(link.rpartition("/")[0] + "/" for link in box.links):
                return True
            if any(path.startswith(f"/nowhere/containers/{box.id}") for path in other.binds):
                return True
            runs = other.live or self.starts_again(other)
            if project and runs and not box.live and not wish.compose and other.labels.get("com.docker.compose.project") == project:
                return box.labels.get("com.docker.compose.oneoff") != "True"
        return False

    @staticmethod
    def volumes_in(paths: t.Iterable[str]) -> set[str]:
        """The volumes whose folders these paths are or lie in."""
        return {path.split("/")[3] for path in paths if path.startswith("/nowhere/volumes/")}

    def wanted(self, box: Box) -> bool:
        """Somebody said that it stays; its state and age are not that."""
        wish = self.wishes.containers
        links = [link.lstrip("/") for link in box.links]
        return (
            (wish is not None and not self.box_is_meant(box, wish))
            or (wish is not None and self.named(wish.keep, box.id, box.name, *links))
            or (self.keeping and bool(self.manager(box.labels, box)))
            or self.labelled(box.labels)
        )

    # Images.

    def images(self, wish: policy.ImageWish) -> None:
        children: dict[str, list[str]] = {}
        for picture in self.engine.pictures.values():
            children.setdefault(picture.parent, []).append(picture.id)
            self.asked.add(("image", picture.id))
        todo = list(self.engine.pictures.values())
        while todo:
            picture = todo.pop(0)
            mine = children.get(picture.id, [])
            if any(child not in self.judged for child in mine):
                todo.append(picture)
                continue
            self.judged[picture.id] = self.image_stays(picture, wish, bool(mine)) or any(self.judged[child] for child in mine)
            kept = {tag for tag in picture.tags if self.tag_stays(tag, wish) or not self.tag_is_meant(tag, picture, wish)}
            known = not kept and self.stays_by_digest(picture, wish)
            if (kept or known) and self.has_user(picture):
                self.judged[picture.id] = True  # it stays anyway, and then with all names by which it would be pulled again
            if not self.judged[picture.id]:
                self.goes.update(("tag", tag) for tag in picture.tags if tag not in kept)
                if kept or known:
                    self.judged[picture.id] = True
                else:
                    self.goes.add(("image", picture.id))

    def has_user(self, picture: Picture) -> bool:
        return any(box.image == picture.id or (self.engine.containerd and box.given in picture.references) for box in self.staying)

    def image_stays(self, picture: Picture, wish: policy.ImageWish, parent: bool) -> bool:
        # On containerd's store a container also keeps the image that has the name by now that it was started by.
        users = [box for box in self.staying if box.image == picture.id or (self.engine.containerd and box.given in picture.references)]
        if wish.scope == "all":
            users = [box for box in users if box.live or self.wanted(box) or box in self.needed or self.starts_again(box)]
        users += [box for box in self.staying if {picture.id, *picture.references} & set(box.mounted)]
        hosts = [box for box in self.engine.boxes.values() if self.manager(box.labels, box) == "host"]
        repositories = [] if picture.tags else [digest.partition("@")[0] for digest in picture.digests]
        local = not picture.digests or self.engine.containerd
        if (
            users
            or (not picture.tags and not self.meant(wish, picture.labels, lambda patterns: self.names_untagged(patterns, picture)))
            or (wish.only_labels is not None and not self.labelled(picture.labels, wish.only_labels))
            or (self.keeping and (hosts or self.served(picture)))
            or self.labelled(picture.labels)
            # Beside tags, each of which is judged by itself, a digest counts only where it is named as one.
            or self.named(self.plain(wish.keep), picture.id, *([] if picture.tags else picture.digests), *repositories)
            or self.named([pattern for pattern in wish.keep if "@" in pattern], picture.id, *picture.digests)
            or (picture.tags and (wish.scope == "dangling" or (wish.keep_local and local)))
        ):
            return True
        by_digest = bool(picture.digests) and not picture.tags
        if by_digest and self.engine.containerd and wish.scope == "dangling":
            return True
        if parent and not picture.tags and not by_digest:
            return False
        limit = wish.older_than
        if by_digest and not self.engine.containerd:
            limit = max(wish.older_than or 0, wish.dangling_older_than or 0)
        elif not picture.tags and not by_digest and wish.dangling_older_than is not None:
            limit = wish.dangling_older_than
        return self.young(self.last_use(picture), limit)

    def names_untagged(self, patterns: t.Sequence[str], picture: Picture) -> bool:
        """Each of its names has to be meant, or it by its id."""
        return all(self.named(self.plain(patterns), picture.id, *names) for names in self.by_digest(picture) or [()])

    @staticmethod
    def by_digest(picture: Picture) -> list[tuple[str, ...]]:
        return [(digest, digest.partition("@")[0]) for digest in picture.digests]

    def stays_by_digest(self, picture: Picture, wish: policy.ImageWish) -> bool:
        """All its tags go; some other repository's digest is a name, too, that nobody meant."""
        if wish.only is None or not picture.tags:
            return False
        own = [tag[: tag.rindex(":")] for tag in picture.tags]
        return any(family not in own and not self.named(self.plain(wish.only), picture.id, digest, family) for digest, family in self.by_digest(picture))

    def tag_is_meant(self, tag: str, picture: Picture, wish: policy.ImageWish) -> bool:
        if wish.only is None:
            return True
        family = tag.rpartition(":")[0]
        by_digest = [pattern for pattern in wish.only if pattern in picture.digests and pattern.partition("@")[0] == family]
        return bool(by_digest) or self.named(self.plain(wish.only), picture.id, tag, family)

    def served(self, picture: Picture) -> bool:
        specs = [service.get(which) or {} for service in self.engine.swarm_services for which in ("Spec", "PreviousSpec")]
        return any((spec.get("TaskTemplate") or {}).get("ContainerSpec", {}).get("Image") in picture.references for spec in specs)

    def last_use(self, picture: Picture) -> float:
        signs = [self.seen.get(picture.id), picture.tagged, picture.arrived]
        for box in self.engine.boxes.values():
            named = self.engine.containerd and box.given in picture.references
            if box.image == picture.id or named or {picture.id, *picture.references} & set(box.mounted):
                signs += [self.engine.now] if box.live else [box.created, box.started, box.finished]
        signs += [
            event["time"] for event in self.engine.events
            if event["Type"] == "container" and event["Action"] in ("create", "start", "die")
            and event["Actor"]["Attributes"]["image"] in picture.references
        ]
        return max((sign for sign in signs if sign is not None), default=int(picture.created))

    @staticmethod
    def plain(patterns: t.Iterable[str]) -> list[str]:
        return [pattern.replace("docker.io/library/", "") for pattern in patterns]

    def tag_stays(self, tag: str, wish: policy.ImageWish) -> bool:
        repository = tag.rpartition(":")[0]
        if any(fnmatchcase(name, pattern) for pattern in self.plain(wish.keep) for name in (tag, repository)):
            return True
        alike = [
            (int(picture.created), picture.tagged or 0, max(picture.tags), tuple(picture.tags))
            for picture in self.engine.pictures.values() if any(own.rpartition(":")[0] == repository for own in picture.tags)
        ]
        return any(tag in tags for *_age, tags in sorted(alike, reverse=True)[: wish.keep_latest])

    # Volumes and networks.

    def goes_along(self, data: Data) -> bool:
        wish = self.wishes.containers
        return bool(wish and wish.volumes) and data.anonymous and any(data.name in box.volumes for box in self.leaving)

    def volume_stays(self, data: Data, along: bool) -> bool:
        wish = self.wishes.volumes
        driver = data.driver
        if driver == "local" and data.options.get("device"):
            driver = "local/bind" if data.options["type"] == "none" else f"local/{data.options['type']}"
        drivers = wish.drivers if wish else ("local",)
        served = any(data.name == "v1" for _ in self.engine.swarm_services)
        names = () if data.anonymous else (data.name,)
        if (
            (not along and wish is not None and not self.meant(wish, data.labels, lambda patterns: self.named(patterns, data.name if data.anonymous else "", *names)))
            or any(data.name in box.volumes for box in self.staying)
            or data.name in self.reached
            or data.cluster
            or self.labelled(data.labels)
            or (self.keeping and (served or bool(self.manager(data.labels))))
            or data.labels.get("com.docker.compose.project") in self.projects
            or not any(fnmatchcase(driver, pattern) for pattern in drivers)
            or (wish is not None and self.named(wish.keep, data.name, data.name))
        ):
            return True
        if along:
            return False
        assert wish
        signs = [data.created, self.seen.get(policy.VOLUME + data.name)]
        for box in self.engine.boxes.values():
            if data.name in box.volumes or data.name in self.volumes_in(box.binds):
                signs += [self.engine.now] if box.live else [box.created, box.started, box.finished]
        last = max((sign for sign in signs if sign is not None), default=None)
        return (wish.scope == "anonymous" and not data.anonymous) or self.young(last, wish.older_than)

    def net_stays(self, net: Net) -> bool:
        wish = self.wishes.networks
        assert wish
        return (
            not self.meant(wish, net.labels, lambda patterns: self.named(patterns, net.id, net.name))
            or net.name in ("bridge", "host", "none")
            or net.scope == "swarm"
            or any({net.name, net.id} & set(box.networks) for box in self.staying)
            or self.named(wish.keep, net.id, net.name)
            or self.labelled(net.labels)
            or (self.keeping and bool(self.manager(net.labels)))
            or net.labels.get("com.docker.compose.project") in self.projects
            or self.young(self.last_use_of(net), wish.older_than)
            or (bool(wish.older_than) and self.forgotten(wish.older_than or 0))
        )

    def last_use_of(self, net: Net) -> float | None:
        signs = [net.created, self.seen.get(f"network:{net.id}")]
        for box in self.engine.boxes.values():
            if {net.name, net.id} & set(box.networks):
                signs += [self.engine.now] if box.live else [box.created, box.started, box.finished]
        signs += [
            event["time"] for event in self.engine.events
            if event["Type"] == "network" and event["Action"] in ("connect", "disconnect") and event["Actor"]["ID"] == net.id
        ]
        return max((sign for sign in signs if sign is not None), default=None)

    def forgotten(self, older_than: int) -> bool:
        """The engine's memory of events is full, or nearly, and its oldest one is not that old."""
        full = len(self.engine.events) >= self.engine.events_kept - 16
        # An event without nanoseconds was at some time of its second.
        oldest = min((event.get("timeNano", (event["time"] + 1) * 1e9) / 1e9 for event in self.engine.events), default=None)
        return full and (oldest is None or self.engine.now - oldest < older_than)

    # Build cache.

    def record_stays(self, record: Record) -> bool:
        wish = self.wishes.build_cache
        if wish is None:
            return True
        shared = any(image in self.engine.pictures and ("image", image) not in self.goes for image in record.images)
        return (
            record.in_use
            or (wish.scope == "unused" and (shared or record.type in ("internal", "frontend")))
            or self.young(record.used or record.created, wish.older_than)
            or any(self.record_stays(child) for child in self.engine.records.values() if record.id in child.parents)
        )
