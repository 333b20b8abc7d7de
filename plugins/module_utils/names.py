# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""By which names people mean containers and images: globs, ids, labels, and how one image is spelled in many ways. Pure."""

from __future__ import annotations

import re
import typing as t
from fnmatch import fnmatchcase

from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import Container, Image

_ID_PREFIX = re.compile(r"(sha256:)?[0-9a-f]{4,64}")


def matches(patterns: t.Sequence[str], ident: str, names: t.Iterable[str]) -> bool:
    """Whether one of the user's patterns is the id, the beginning of it, or a glob of a name."""
    plain = ident.rsplit(":", 1)[-1]
    for given in patterns:
        pattern = given.lstrip("/")  # as `docker inspect` names containers
        if _ID_PREFIX.fullmatch(pattern) and plain.startswith(pattern.rsplit(":", 1)[-1]):
            return True
        # A name that is itself full of brackets fits as it is written, too.
        if any(name == pattern or fnmatchcase(name, pattern) for name in names):
            return True
    return False


def has_label(labels: dict[str, str], pattern: str) -> bool:
    """Whether one of the labels fits ``key`` or ``key=value``; globs in both."""
    key, equals, value = pattern.partition("=")
    return any(
        (k == key or fnmatchcase(k, key)) and (not equals or v == value or fnmatchcase(v, value))
        for k, v in labels.items()
    )


def known_as(ident: str, *names: str) -> set[str]:
    """The same for an image's id, tags and digests."""
    return {ident, *names, *(plain_name(name) for name in names)}


def image_names(image: Image) -> set[str]:
    """The names that an image's users may have written for it."""
    return known_as(image.id, *image.tags, *image.digests)


def spellings(given: str) -> set[str]:
    """The names that an image may go by in a list, for one that a user wrote: ``app`` is ``app:latest``."""
    if not given:
        return set()
    named, at, digest = plain_name(given).partition("@")
    if at:
        # Whatever the name leads to by now, it is the digest that counts; on containerd's store that is the image's id.
        return {given, f"{repository(named)}@{digest}", digest}
    return {given, named, f"{named}:latest"} if repository(named) == named else {given, named}


def container_names(containers: t.Iterable[Container]) -> set[str]:
    """The names of the images that containers were made from."""
    names: set[str] = set()
    for container in containers:
        # By id; and by the name it was started with, which is what counts on containerd's store.
        names.add(container.image_id)
        names.update(spellings(container.image_name))
    return names - {""}


def mounted_by(containers: t.Iterable[Container]) -> t.Callable[[str, t.Collection[str]], bool]:
    """Return what tells, of an image's id and names, whether one of the containers mounts it."""
    given = {name for container in containers for name in container.mounted_images}
    names = {name for mounted in given for name in spellings(mounted)}
    parts = [mounted.rpartition(":")[2] for mounted in given if _ID_PREFIX.fullmatch(mounted)]

    def mounted(ident: str, known_as: t.Collection[str]) -> bool:
        plain = ident.rpartition(":")[2]
        return not names.isdisjoint({ident, *known_as}) or any(plain.startswith(part) for part in parts)

    return mounted


def plain_name(name: str) -> str:
    """An image's name without what stands for Docker Hub, as lists have it."""
    for prefix in ("index.docker.io/", "docker.io/", "library/"):
        name = name[len(prefix):] if name.startswith(prefix) else name
    return name


def repository(tag: str) -> str:
    """``host:5000/name:tag`` -> ``host:5000/name``."""
    head, colon, tail = tag.rpartition(":")
    return head if colon and "/" not in tail else tag
