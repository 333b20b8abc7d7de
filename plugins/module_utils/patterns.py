# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read every list option of the modules, and refuse patterns that can never match.

A pattern that matches nothing protects nothing: what it was meant to keep would be removed. So what no object of its kind can be called
is an error that names the option and what it takes. Nothing is refused that the engine could have: the rules are those of the engine's own names.
Pure; the modules read with it, and so does the role's preflight on the controller.
"""

from __future__ import annotations

import re
import typing as t
from functools import lru_cache

from ansible_collections.fleetclean.docker.plugins.module_utils import lists
from ansible_collections.fleetclean.docker.plugins.module_utils.names import ID_PREFIX, escape_host, glob_fits, glob_tokens
from ansible_collections.fleetclean.docker.plugins.module_utils.words import printable

_GLOB = re.compile(r"[*?\[]")
_CHARACTERS = frozenset(map(chr, range(32, 127)))
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_ALPHANUMERIC = _LETTERS + _LETTERS.upper() + "0123456789"

# Image references (github.com/distribution/reference, regexp.go), with the beginning of a digest in place of a digest.
_HOST_PART = "[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_PATH_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?:(?:{_HOST_PART}(?:\.{_HOST_PART})*|\[[A-Fa-f0-9:]+\])(?::[0-9]+)?/)?"
    rf"{_PATH_PART}(?:/{_PATH_PART})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]*)?"
    r"(?:@[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-f]{4,})?"
)
# What never stands in the key of a label that anybody made on purpose; ``?`` stands for it where somebody did.
_NO_LABEL_KEY = re.compile(r"[\s\x00-\x1f\x7f^$|()\\\"'`]")
_NO_DRIVER = re.compile(r"[\s\x00-\x1f\x7f^$|()\\\"'`{}]")


class _Grammar(t.NamedTuple):
    """The characters of names, which of them begin and end one, and which never follow each other."""

    characters: str
    first: str
    last: str
    apart: t.Pattern[str] | None = None

    def follows(self, before: str, after: str) -> bool:
        return not (self.apart and self.apart.fullmatch(before + after))


#: Names of containers and of the driver local's volumes (moby, daemon/names).
_NAME = _Grammar(_ALPHANUMERIC + "_.-", _ALPHANUMERIC, _ALPHANUMERIC + "_.-")
#: Image references, somewhat wider than _REFERENCE: good for globs, where the parts cannot be told apart.
_IMAGE = _Grammar(
    _ALPHANUMERIC + "_.-:/@[]+", _ALPHANUMERIC + "[", _ALPHANUMERIC + "_.-",
    re.compile(r"[^A-Za-z0-9:\[\]]:|:[^A-Za-z0-9:_\]]|[^A-Za-z0-9\]]/|/[^a-z0-9]|[^A-Za-z0-9_.-]@|@[^A-Za-z]|.\[|[^A-Fa-f0-9:]\]|\[[^A-Fa-f0-9:]|\][^:/]"),
)


class _Kind(t.NamedTuple):
    """What a list is made of: ``takes`` for people, ``fits`` whether an entry can ever match something."""

    what: str
    takes: str
    fits: t.Callable[[str], bool]


def read_list(option: str, values: t.Sequence[object], drivers: t.Sequence[str] | None = None) -> tuple[str, ...]:
    """Return a list option's entries; those that are patterns were seen to be able to match something.

    :param drivers: for names of volumes, the drivers whose volumes are meant.
    :raises FleetcleanError: naming the option and what it takes.
    """
    entries = lists.entries(option, list(values), None)
    kind = _KINDS.get(option)
    if kind is None or (drivers is not None and not _only_local(drivers)):
        return tuple(entries)  # other drivers' volumes may be called anything
    if kind is _LABELS:
        entries = [re.sub(r"\s*=\s*", "=", entry, count=1) for entry in entries]
    for entry in entries:
        if not kind.fits(entry):
            raise lists.refused(option, f'"{printable(entry)}" cannot match any {kind.what}', None)
    return tuple(entries)


# -- what can match -------------------------------------------------------------------------------


def _only_local(drivers: t.Sequence[str]) -> bool:
    return all(re.fullmatch(r"local(/.*)?", driver.strip()) for driver in drivers)


def _container(pattern: str) -> bool:
    # The names of a link's target are container/alias, and an alias may be anything.
    head, slash, alias = pattern.lstrip("/").partition("/")
    return bool(ID_PREFIX.fullmatch(head)) or (_can_match(head, _NAME) and bool(alias or not slash))


def _volume(pattern: str) -> bool:
    return _can_match(pattern, _NAME)


def _image(pattern: str) -> bool:
    if ID_PREFIX.fullmatch(pattern) or _REFERENCE.fullmatch(pattern):
        return True
    glob = escape_host(pattern)
    return bool(_GLOB.search(glob[3:] if glob != pattern else glob)) and _can_match(glob, _IMAGE)


def _label(pattern: str) -> bool:
    key = pattern.partition("=")[0]
    return bool(key) and not _NO_LABEL_KEY.search(key)


def _driver(pattern: str) -> bool:
    return not _NO_DRIVER.search(pattern)


def _network(_pattern: str) -> bool:
    return True  # engines take any name for a network


_GLOBS = "globs such as {} are allowed, regular expressions are not"
_CONTAINERS = _Kind("container", f"names or IDs of containers ({_GLOBS.format('web-*')})", _container)
_LABELS = _Kind("label", f"key or key=value ({_GLOBS.format('tier=data*')})", _label)
#: By the names of the options; a list that is not here has choices.
_KINDS = {
    "containers": _CONTAINERS,
    "volumes.drivers": _Kind("volume driver", f"names of volume drivers ({_GLOBS.format('local/*')})", _driver),
    "keep_labels": _LABELS,
}
_SECTIONS = {
    "containers": _CONTAINERS,
    "images": _Kind("image", f"repository:tag, repository, digests or IDs ({_GLOBS.format('app/*')})", _image),
    "volumes": _Kind("volume of the driver local", f"names of volumes ({_GLOBS.format('db-*')})", _volume),
    "networks": _Kind("network", f"names or IDs of networks ({_GLOBS.format('front-*')})", _network),
}
for _section, _kind in _SECTIONS.items():
    _KINDS.update({f"{_section}.keep": _kind, f"{_section}.only": _kind, f"{_section}.only_labels": _LABELS})
#: The same by the names of the role's variables.
_BY_VARIABLE = {f"cleanup_{name.replace('.', '_')}": kind for name, kind in _KINDS.items() if name != "containers"}
_BY_VARIABLE["cleanup_logs_containers"] = _CONTAINERS


def what_it_takes(option: str) -> str | None:
    """What entries of an option, or of the role's variable, have to be, for people; None if it is not one of patterns."""
    kind = _KINDS.get(option) or _BY_VARIABLE.get(option)
    return kind.takes if kind else None


def _can_match(pattern: str, grammar: _Grammar) -> bool:
    """Whether some text that obeys the grammar fits a glob."""
    if "[^" in pattern:
        return False  # the shell's [^a] is [!a] here; taken for ^ or a, it would protect the opposite of what is meant
    reach: frozenset[str] | None = None  # what may stand last in what was read; None before the first character
    any_before = False
    for characters in _tokens(pattern):
        if characters is None:
            any_before = True
            continue
        allowed = characters.intersection(grammar.characters)
        if not any_before:
            if reach is None:
                allowed = allowed.intersection(grammar.first)
            else:
                allowed = frozenset(char for char in allowed if any(grammar.follows(before, char) for before in reach))
        if not allowed:
            return False
        reach, any_before = allowed, False
    return any_before or (reach is not None and not reach.isdisjoint(grammar.last))


def _tokens(pattern: str) -> t.Iterator[frozenset[str] | None]:
    """A glob's parts as fnmatch reads them: the characters that may stand there, or None for any number of any."""
    for at, end in glob_tokens(pattern):
        char = pattern[at]
        if char == "*":
            yield None
        elif char == "?":
            yield _CHARACTERS
        else:
            yield _members(pattern[at:end]) if end > at + 1 else frozenset(char)


@lru_cache(maxsize=64)
def _members(character_class: str) -> frozenset[str]:
    return frozenset(char for char in _CHARACTERS if glob_fits(character_class, char))
