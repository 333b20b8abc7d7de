# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who looks after objects of a host and will want them again, by labels, names and images. Pure.

The engine gives a container the labels of its image, too, and anybody may have made that image. So a manager's labels count
only if whoever made the container set one of them: an image's labels alone neither keep its containers nor make a whole host
managed. Names are never an image's.
"""

from __future__ import annotations

import re
import typing as t
from functools import lru_cache

from ansible_collections.fleetclean.docker.plugins.module_utils.names import has_label
from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import Container, Image

#: Who looks after a host by itself, told by the labels of its objects (their beginning) and its containers' names.
_ORCHESTRATORS = (
    ("io.kubernetes.", r"k8s_.+", "kubelet"),
    ("com.amazonaws.ecs.", r"ecs-agent", "the ECS agent"),
    ("com.hashicorp.nomad.", r"nomad_init_.+", "Nomad"),
)
#: Who looks after some objects only, and not after the host's images.
_OTHERS = (("com.docker.swarm.", r"", "swarm"), ("com.docker.stack.", r"", "swarm"), ("com.docker.buildx.", r"buildx_buildkit_.+", "buildx"))
_ECS_AGENT = re.compile(r"(.*/)?amazon/amazon-ecs-agent(:.*|@.*)?")
#: Where buildx's builder instances keep their cache (docker/buildx, driver/docker-container).
BUILDER_STATE = re.compile(r"buildx_buildkit_.+_state")
COMPOSE = "com.docker.compose.project"
#: How the labels of each manager begin.
_PREFIXES = (*(prefix for prefix, _name, _who in (*_ORCHESTRATORS, *_OTHERS)), "com.docker.compose.")
#: What `docker compose run` makes; compose does not count on it.
_ONE_OFF = "com.docker.compose.oneoff"


class Managers:
    """Tells who looks after containers, and after the host."""

    def __init__(self, images: t.Iterable[Image]) -> None:
        """:param images: all that the engine has; of a container whose image is not among them all labels count."""
        self._image_labels = {image.id: image.labels for image in images if image.labels}

    def of_container(self, container: Container) -> str | None:
        """Return who looks after a container, by its labels, names and image."""
        who = manager_of(self._set_labels(container))
        if who:
            return who
        for _label, name, manager in (*_ORCHESTRATORS, *_OTHERS):
            if name and any(re.fullmatch(name, own) for own in container.names or (container.name,)):
                return manager
        return "the ECS agent" if _ECS_AGENT.fullmatch(container.image_name) else None

    def of_host(self, containers: t.Iterable[Container]) -> str | None:
        """Return who looks after the whole host, its images too, told by its containers."""
        for container in containers:
            manager = self.of_container(container)
            if manager and any(manager == who for _label, _name, who in _ORCHESTRATORS):
                return manager
        return None

    def projects(self, containers: t.Iterable[Container]) -> set[str]:
        """Return the compose projects that have containers."""
        found = (self._set_labels(container).get(COMPOSE) for container in containers)
        return {project for project in found if project}

    def project_of_service(self, container: Container) -> str | None:
        """Return the compose project of a stopped container that is one of its services, such as one that ran once before the others."""
        labels = self._set_labels(container)
        is_service = not container.live and labels.get(_ONE_OFF, "").lower() != "true"
        return (labels.get(COMPOSE) or None) if is_service else None

    def _set_labels(self, container: Container) -> t.Mapping[str, str]:
        """Return a container's labels without those of managers of whom its image alone speaks."""
        inherited = self._image_labels.get(container.image_id)
        if not inherited:
            return container.labels
        # Compose and commits write some of them into images, too; then the others are the container's own.
        made_by = {_prefix_of(key) for key, value in container.labels.items() if inherited.get(key) != value}
        return {key: value for key, value in container.labels.items() if not _prefix_of(key) or _prefix_of(key) in made_by}


def looked_at(patterns: t.Sequence[str]) -> t.Callable[[str, str], bool]:
    """Return what tells, of a label's key and value, whether anybody looks at it: managers are told by it, or one of these patterns may fit it."""
    keys = [pattern.partition("=")[0] for pattern in patterns]

    @lru_cache(maxsize=1 << 12)
    def by_key(key: str) -> bool:
        return bool(_prefix_of(key)) or any(has_label({key: ""}, pattern) for pattern in keys)

    return lambda key, value: by_key(key) and (bool(_prefix_of(key)) or any(has_label({key: value}, pattern) for pattern in patterns))


def _prefix_of(key: str) -> str:
    """Return how all labels of a label's manager begin; "" if it is no manager's."""
    return next((prefix for prefix in _PREFIXES if key.startswith(prefix)), "")


def manager_of(labels: t.Mapping[str, str]) -> str | None:
    """Who looks after an object, by its labels."""
    for prefix, _name, manager in (*_ORCHESTRATORS, *_OTHERS):
        if any(key.startswith(prefix) for key in labels):
            return manager
    return None


class Template:
    """What a volume may be called that a service names by a template, such as ``data-{{.Task.Slot}}``.

    Told in time that grows with the lengths: an expression of many ``.*`` would try every way of sharing a name among them.
    """

    def __init__(self, name: str) -> None:
        self._parts = []
        begin = 0
        while True:
            at = name.find("{{", begin)
            end = name.find("}}", at + 2) if at >= 0 else -1
            if end < 0:
                break
            self._parts.append(name[begin:at])
            begin = end + 2
        self._last = name[begin:]

    def fits(self, name: str) -> bool:
        """Whether a volume may be meant by it."""
        if not self._parts:
            return name == self._last
        at = len(self._parts[0])
        if not name.startswith(self._parts[0]) or not name.endswith(self._last):
            return False
        for part in self._parts[1:]:
            # The first place is as good as any later one: what follows has the most room behind it.
            found = name.find(part, at)
            if found < 0:
                return False
            at = found + len(part)
        return at <= len(name) - len(self._last)
