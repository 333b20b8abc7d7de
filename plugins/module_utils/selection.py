# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell which objects ``only`` and ``only_labels`` select. Pure.

They read as ``keep`` and ``keep_labels`` do, with what a mistake costs the other way round: what is selected too much is lost. So

* of an id it takes the twelve digits that Docker shows; ``cafe`` is a name, whatever ids begin so;
* of a container its own name counts, and what a link calls it only where a pattern says both (``web/database``);
* what has no name, such as an anonymous volume, is selected by its id alone, and by no glob;
* of an image's tags those go that are selected, and it stays under the others; so it does under the digest of a repository that nobody selected;
* an empty list selects nothing.
"""

from __future__ import annotations

import typing as t

from ansible_collections.fleetclean.docker.plugins.module_utils.names import (
    ID_PREFIX,
    fits_image,
    has_label,
    matches,
    names_digest,
    plain_name,
    repository,
    selects_container,
)

if t.TYPE_CHECKING:
    from ansible_collections.fleetclean.docker.plugins.module_utils.plan import ContainerWish, ImageWish, NetworkWish, VolumeWish
    from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import Image

#: So many digits of an id are shown by Docker, and are enough.
_ID_DIGITS = 12


def why_unselected(
    section: str,
    wish: ContainerWish | ImageWish | VolumeWish | NetworkWish,
    labels: dict[str, str],
    is_named: t.Callable[[t.Sequence[str]], bool],
) -> str | None:
    """Return the reason why a section does not mean an object, or None.

    :param is_named: whether one of these patterns names it.
    """
    if wish.only is not None and not is_named(wish.only):
        return f"not named in {section}.only{_none(wish.only)}"
    if wish.only_labels is not None and not any(has_label(labels, pattern) for pattern in wish.only_labels):
        return f"without a label of {section}.only_labels{_none(wish.only_labels)}"
    return None


def _none(patterns: t.Sequence[str]) -> str:
    return "" if patterns else ", which is empty"


def names_object(patterns: t.Sequence[str], ident: str, names: t.Iterable[str]) -> bool:
    """Whether one of the patterns is an object's id, at least the beginning that Docker shows of it, or fits one of its names."""
    return matches(patterns, "", names) or matches(_ids(patterns), ident, ())


def names_container(patterns: t.Sequence[str], ident: str, names: t.Iterable[str]) -> bool:
    """The same for a container, without what others that are linked to it call it."""
    return selects_container(patterns, names) or matches(_ids(patterns), ident, ())


def names_image(patterns: t.Sequence[str], image: Image) -> bool:
    """Whether the patterns name an image: by its id, a bare digest, one of its tags or, where it has none, each of its digests."""
    if image.tags:
        return any(names_tag(patterns, image, tag) for tag in image.tags)
    digests = image.digests
    return _names_content(patterns, image) or (bool(digests) and all(_names_repository_or_digest(patterns, digest) for digest in digests))


def unselected_digests(patterns: t.Sequence[str], image: Image) -> list[str]:
    """The digests that the image keeps though all of its tags are selected: of repositories in which it has no tag, and that nobody named."""
    if _names_content(patterns, image):
        return []
    families = {plain_name(repository(tag)) for tag in image.tags}
    return [
        digest for digest in image.digests
        if plain_name(digest.partition("@")[0]) not in families and not _names_repository_or_digest(patterns, digest)
    ]


def _names_repository_or_digest(patterns: t.Sequence[str], digest: str) -> bool:
    family = digest.partition("@")[0]
    return any(fits_image(pattern, family) or names_digest(pattern, digest) for pattern in patterns)


def names_tag(patterns: t.Sequence[str], image: Image, tag: str) -> bool:
    """Whether one of the patterns names a tag: by its own name, or by its image's id or digest."""
    family = repository(tag)
    if _names_content(patterns, image):
        return True
    for pattern in patterns:
        named, at, _digest = pattern.partition("@")
        fits = fits_image(named, tag) or fits_image(named, family)
        if fits and (not at or any(names_digest(pattern, digest) for digest in image.digests)):
            return True
    return False


def _names_content(patterns: t.Sequence[str], image: Image) -> bool:
    """Whether one of the patterns is the image's id or the bare digest of one of its names."""
    ids = _ids(patterns)
    return matches(ids, image.id, ()) or any(matches(ids, digest, ()) for digest in image.digests)


def _ids(patterns: t.Sequence[str]) -> list[str]:
    return [pattern for pattern in patterns if ID_PREFIX.fullmatch(pattern) and len(pattern.rpartition(":")[2]) >= _ID_DIGITS]
