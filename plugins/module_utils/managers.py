# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who looks after objects of a host and will want them again, by labels, names and images. Pure."""

from __future__ import annotations

import re
import typing as t

from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import Container

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
#: What `docker compose run` makes; compose does not count on it.
_ONE_OFF = "com.docker.compose.oneoff"


def manager_of_container(container: Container) -> str | None:
    """Who looks after a container, by its labels, names and image."""
    who = manager_of(container.labels)
    if who:
        return who
    for _label, name, manager in (*_ORCHESTRATORS, *_OTHERS):
        if name and any(re.fullmatch(name, own) for own in container.names or (container.name,)):
            return manager
    return "the ECS agent" if _ECS_AGENT.fullmatch(container.image_name) else None


def manager_of(labels: t.Mapping[str, str]) -> str | None:
    """Who looks after an object, by its labels."""
    for prefix, _name, manager in (*_ORCHESTRATORS, *_OTHERS):
        if any(key.startswith(prefix) for key in labels):
            return manager
    return None


def manager_of_host(containers: t.Sequence[Container]) -> str | None:
    """Who looks after the whole host, its images too, told by its containers."""
    for container in containers:
        manager = manager_of_container(container)
        if manager and any(manager == who for _label, _name, who in _ORCHESTRATORS):
            return manager
    return None


def projects_of(containers: t.Iterable[Container]) -> set[str]:
    """The compose projects that have containers."""
    return {container.labels[COMPOSE] for container in containers if container.labels.get(COMPOSE)}


def is_service(container: Container) -> bool:
    """Whether a stopped container is one of a compose project's services, such as one that ran once before the others started."""
    labels = container.labels
    return bool(labels.get(COMPOSE)) and not container.live and labels.get(_ONE_OFF, "").lower() != "true"


def template(name: str) -> re.Pattern[str]:
    """What a volume may be called that a service names by a template, such as ``data-{{.Task.Slot}}``."""
    return re.compile(".*".join(re.escape(part) for part in re.split(r"\{\{.*?\}\}", name)), re.DOTALL)
