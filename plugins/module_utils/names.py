# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""By which names people mean containers and images: globs, ids, labels, and how one image is spelled in many ways. Pure."""

from __future__ import annotations

import re
import typing as t
from fnmatch import translate

if t.TYPE_CHECKING:
    from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import Container, Image

#: How Docker Hub is called in names of images; it has two names and mostly none.
_HUB = "docker.io"
_OFFICIAL = "library/"
#: The host of a registry that has an IPv6 address for a name, at the beginning of a pattern.
_IPV6_HOST = re.compile(r"\[(?=[0-9A-Fa-f.*?]*:[0-9A-Fa-f:.*?]*\](?:[:/*?]|$))")
#: So much of a digest is enough, as of an id.
_DIGEST_PREFIX = re.compile("[^:]+:[0-9a-f]{4,}")
_SPECIAL = re.compile(r"[*?\[]")
#: Patterns that were compiled. The first ones stay: were the oldest dropped, as lru_cache does, one pattern too many that is compared with each
#: name in turn would have all compiled anew for each.
_KNOWN_PIECES: dict[str, list[tuple[t.Pattern[str], int]]] = {}
_MOST_PIECES = 8192
ID_PREFIX = re.compile(r"(sha256:)?[0-9a-f]{4,64}")

#: A container's id, whole or as the engine shortens it, that is neither a part of a path nor of a digest; in a call of the API it is.
_CONTAINER_ID = re.compile(r"(?:(?<=[A-Z] /containers/)|(?<![\w/:@.-]))(?:[0-9a-f]{64}|[0-9a-f]{12})(?![\w-])")


def with_names(text: str, names: t.Mapping[str, str]) -> str:
    """The text with containers called by their names, where it calls them by ids; what has no name here keeps its id.

    :param names: names of containers by their ids.
    """

    def name(match: re.Match[str]) -> str:
        ident = match[0]
        return names.get(ident) or next((name for whole, name in names.items() if whole.startswith(ident)), ident)

    return _CONTAINER_ID.sub(name, text)


def matches(patterns: t.Sequence[str], ident: str, names: t.Iterable[str]) -> bool:
    """Whether one of the user's patterns is the id, the beginning of it, or a glob of a name."""
    plain = ident.rsplit(":", 1)[-1]
    for given in patterns:
        pattern = given.lstrip("/")  # as `docker inspect` names containers
        if ID_PREFIX.fullmatch(pattern) and plain.startswith(pattern.rsplit(":", 1)[-1]):
            return True
        written = (pattern,) if pattern == given else (pattern, given)
        if any(_fits(spelled, name) for name in names for spelled in written):
            return True
    return False


def selects_container(patterns: t.Sequence[str], names: t.Iterable[str]) -> bool:
    """Whether one of the patterns selects a container by a name.

    What it is called by a link of another one (``web/database``) is selected by a pattern that has a slash, part by part: else ``web*`` would
    take what the containers that it means are linked to.
    """
    for name in names:
        if "/" not in name:
            if matches(patterns, "", (name,)):
                return True
            continue
        parts = name.split("/")
        for pattern in patterns:
            wanted = pattern.lstrip("/").split("/")
            if len(wanted) == len(parts) and all(_fits(*pair) for pair in zip(wanted, parts)):
                return True
    return False


def has_label(labels: dict[str, str], pattern: str) -> bool:
    """Whether one of the labels fits ``key`` or ``key=value``; globs in both."""
    key, equals, value = pattern.partition("=")
    return any(_fits(key, k) and (not equals or _fits(value, v)) for k, v in labels.items())


def _fits(pattern: str, name: str) -> bool:
    """Whether a glob fits a name. One that is itself full of brackets fits as it is written, too; white space at its ends is no matter."""
    plain = name.strip()  # a pattern that a user gave has none
    return pattern in (name, plain) or glob_fits(pattern, name) or (plain != name and glob_fits(pattern, plain))


def glob_fits(pattern: str, name: str) -> bool:
    """Whether a glob fits a name; one that is none, such as ``[z-a]`` to Python before 3.11, fits nothing.

    As ``fnmatch.fnmatchcase``, but in time that grows with the length of both only: before Python 3.9 that makes one expression of
    all stars, which tries every way of sharing a text among them (``*a*a*a*a*b`` takes minutes for the names that an image's author chose).
    Thousands of patterns are compared with each name, so that only what needs an expression has one made.
    """
    special = _SPECIAL.search(pattern)
    if not special:
        return pattern == name
    begin = special.start()
    if pattern[:begin] != name[:begin]:
        return False
    if "?" not in pattern and "[" not in pattern:
        return _stars_fit(pattern, name)
    try:
        (first, _length), *rest = _pieces(pattern)
    except re.error:
        return False
    if not rest:
        return first.fullmatch(name) is not None
    found = first.match(name)
    for piece, _length in rest[:-1]:
        # The first place is as good as any later one: what follows has the most room behind it.
        found = piece.search(name, found.end()) if found else None
    last, length = rest[-1]
    begin = len(name) - length
    return found is not None and found.end() <= begin and last.match(name, begin) is not None


def _stars_fit(pattern: str, name: str) -> bool:
    """The same for a glob that has stars only."""
    first, *rest, last = pattern.split("*")
    at, end = len(first), len(name) - len(last)
    if not (name.startswith(first) and name.endswith(last)):
        return False
    for piece in rest:
        found = name.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return at <= end


def _pieces(pattern: str) -> list[tuple[t.Pattern[str], int]]:
    """What stands before, between and behind a glob's stars: an expression of a fixed length, and that length."""
    pieces = _KNOWN_PIECES.get(pattern)
    if pieces is None:
        pieces = _compiled(pattern)
        if len(_KNOWN_PIECES) < _MOST_PIECES:
            _KNOWN_PIECES[pattern] = pieces
    return pieces


def _compiled(pattern: str) -> list[tuple[t.Pattern[str], int]]:
    pieces, begin, length = [], 0, 0
    for at, end in glob_tokens(pattern):
        if pattern[at] == "*":
            pieces.append((pattern[begin:at], length))
            begin, length = end, 0
        else:
            length += 1
    pieces.append((pattern[begin:], length))
    # Without the end of the text, which fnmatch puts behind it in each release of Python: (?s:...)\\Z or, since 3.14, (?s:...)\\z
    return [(re.compile(translate(piece)[:-2]), length) for piece, length in pieces]


def glob_tokens(pattern: str) -> t.Iterator[tuple[int, int]]:
    """Where each part of a glob begins and ends, as fnmatch reads it: one character, or a class of characters in brackets."""
    at = 0
    while at < len(pattern):
        end = at + 1
        if pattern[at] == "[":
            closing = pattern.find("]", at + 3 if pattern[at + 1 : at + 2] == "!" else at + 2)
            end = closing + 1 if closing > 0 else end
        yield at, end
        at = end


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
    parts = [mounted.rpartition(":")[2] for mounted in given if ID_PREFIX.fullmatch(mounted)]

    def mounted(ident: str, known_as: t.Collection[str]) -> bool:
        plain = ident.rpartition(":")[2]
        return not names.isdisjoint({ident, *known_as}) or any(plain.startswith(part) for part in parts)

    return mounted


def fits_image(pattern: str, name: str) -> bool:
    """Whether a glob fits an image's name: ``repository:tag`` or ``repository``.

    Docker Hub's names are the same with and without its address. A pattern that has it fits Hub's images and no others.
    """
    domain, path = _split_domain(pattern)
    plain = plain_name(name)
    if domain == _HUB and (path != pattern or path.startswith(_OFFICIAL)):
        full = plain if "/" in plain else _OFFICIAL + plain
        return _split_domain(name)[0] == _HUB and (glob_fits(path, plain) or glob_fits(path, full))
    glob = escape_host(pattern)
    return pattern == name or glob_fits(glob, plain) or glob_fits(glob, name)


def names_digest(pattern: str, digest: str) -> bool:
    """Whether ``name@digest``, with a tag before the ``@`` or without, names one of an image's digests."""
    named, at, wanted = pattern.partition("@")
    name, _at, own = digest.partition("@")
    if not at or not (fits_image(named, name) or fits_image(repository(named), name)):
        return False
    return glob_fits(wanted, own) or bool(_DIGEST_PREFIX.fullmatch(wanted) and own.startswith(wanted))


def escape_host(pattern: str) -> str:
    """``[2001:db8::1]:5000/*`` with brackets that fnmatch does not take for a class of characters."""
    return _IPV6_HOST.sub("[[]", pattern, count=1) if _IPV6_HOST.match(pattern) else pattern


def plain_name(name: str) -> str:
    """An image's name without what stands for Docker Hub, as lists have it."""
    domain, path = _split_domain(name)
    if domain != _HUB:
        return name
    official = path.startswith(_OFFICIAL) and path.count("/") == 1
    return path[len(_OFFICIAL):] if official else path


def _split_domain(name: str) -> tuple[str, str]:
    """A name's registry and the rest (github.com/distribution/reference, normalize.go, splitDockerDomain)."""
    first, slash, rest = name.partition("/")
    if not slash or not (first == "localhost" or "." in first or ":" in first or first != first.lower()):
        return _HUB, name
    return (_HUB if first == "index.docker.io" else first), rest


def repository(tag: str) -> str:
    """``host:5000/name:tag`` -> ``host:5000/name``."""
    head, colon, tail = tag.rpartition(":")
    return head if colon and "/" not in tail else tag
