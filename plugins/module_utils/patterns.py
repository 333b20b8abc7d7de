# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read every list option of the modules, and refuse patterns that can never match.

A pattern that matches nothing protects nothing: what it was meant to keep would be removed. So a list that came as text (AWX surveys:
"a, b", or one a line) is split, white space at the ends is dropped, and what no object of its kind can be called is an error that
names the option and what it takes. Nothing is refused that the engine could have: the rules are those of the engine's own names.
Pure; the modules read with it, and so does the role's preflight on the controller.
"""

from __future__ import annotations

import ast
import math
import re
import typing as t
from dataclasses import dataclass
from functools import lru_cache

from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError
from ansible_collections.fleetclean.docker.plugins.module_utils.names import ID_PREFIX, escape_host, glob_fits, glob_tokens
from ansible_collections.fleetclean.docker.plugins.module_utils.words import printable

_LINES = re.compile(r"\r\n|\r|\n")
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


@dataclass(frozen=True)
class _Grammar:
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


@dataclass(frozen=True)
class _Kind:
    """What a list is made of: ``takes`` for people, ``fits`` whether an entry can ever match something."""

    what: str
    takes: str
    fits: t.Callable[[str], bool]


def split_lists(values: t.Mapping[str, t.Any], spec: t.Mapping[str, t.Any], section: str = "") -> dict[str, t.Any]:
    """Return options as they were given, with each list as a list of texts, and no number that is none.

    To be used before Ansible's own reading, which splits a text at commas only, and makes texts of whatever it finds in a list.

    :param spec: the module's argument spec.
    :raises FleetcleanError: naming the option and what it takes.
    """
    result = dict(values)
    for name, about in spec.items():
        value, option = result.get(name), f"{section}{name}"
        if value is None and name in result and _SELECTS.search(option):
            raise _refused(option, "has no value; leave it out if all are meant", None)
        if isinstance(value, t.Mapping) and "options" in about:
            result[name] = split_lists(value, about["options"], f"{option}.")
        elif about.get("type") == "list" and about.get("elements", "str") == "str" and value is not None:
            result[name] = _entries(option, value, about.get("choices"))
        elif about.get("type") == "int" and isinstance(value, float) and not math.isfinite(value):
            raise FleetcleanError(f"{option}: {value} is no whole number.", "bad_input")  # Ansible would end in a traceback
    return result


def read_list(option: str, values: t.Sequence[object], drivers: t.Sequence[str] | None = None) -> tuple[str, ...]:
    """Return a list option's entries; those that are patterns were seen to be able to match something.

    :param drivers: for names of volumes, the drivers whose volumes are meant.
    :raises FleetcleanError: naming the option and what it takes.
    """
    entries = _entries(option, list(values), None)
    kind = _KINDS.get(option)
    if kind is None or (drivers is not None and not _only_local(drivers)):
        return tuple(entries)  # other drivers' volumes may be called anything
    if kind is _LABELS:
        entries = [re.sub(r"\s*=\s*", "=", entry, count=1) for entry in entries]
    for entry in entries:
        if not kind.fits(entry):
            raise _refused(option, f'"{printable(entry)}" cannot match any {kind.what}', None)
    return tuple(entries)


def _entries(option: str, value: object, choices: t.Sequence[str] | None) -> list[str]:
    """The entries of a list, or of what stands for one, without white space at their ends."""
    if isinstance(value, str):
        listed = _literal(value)
        if listed is None:
            return _split(option, value, choices)
        value = listed
    if not isinstance(value, (list, tuple)):
        value = [value]
    found: list[str] = []
    for entry in value:
        if isinstance(entry, bool) or not isinstance(entry, (str, int, float, type(None))):
            raise _refused(option, f"an entry is {_type_name(entry)} and not a text", choices)
        text = "" if entry is None else str(entry).strip()
        if not text:
            raise _refused(option, "an entry is empty", choices)
        found += _split(option, text, choices) if _LINES.search(text) else [text]
    return found


def _split(option: str, text: str, choices: t.Sequence[str] | None) -> list[str]:
    """The entries of a text: by lines and commas. One comma too many at either end of a line is no entry."""
    found = []
    for line in _LINES.split(text):
        entries = [entry.strip() for entry in line.split(",")]
        for end in (0, -1):
            if entries and not entries[end]:
                del entries[end]
        if not all(entries):
            raise _refused(option, "an entry is empty", choices)
        found += entries
    return found


def _literal(text: str) -> list[str] | None:
    """The list that a text is written as, in JSON or Python (``["a", "b"]``); None for any other text, such as a glob."""
    if not re.match(r"\s*\[\s*[\"']", text):
        return None
    try:
        found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return None
    return found if isinstance(found, list) and all(isinstance(entry, str) for entry in found) else None


def _type_name(value: object) -> str:
    if isinstance(value, bool):
        return f"{value} (yes, no, on and off want quotes)"
    return "a mapping" if isinstance(value, t.Mapping) else "a list" if isinstance(value, (list, tuple)) else type(value).__name__


def _refused(option: str, problem: str, choices: t.Sequence[str] | None) -> FleetcleanError:
    kind = _KINDS.get(option) or _BY_VARIABLE.get(option)
    takes = kind.takes if kind else ", ".join(choices or ()) or "texts"
    return FleetcleanError(f"{option}: {problem}. Use {takes}; commas or lines stand between entries.", "bad_input")


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
#: A list that limits what is removed; one without a value would not.
_SELECTS = re.compile(r"[._]only(_labels)?$")
#: The same by the names of the role's variables.
_BY_VARIABLE = {f"cleanup_{name.replace('.', '_')}": kind for name, kind in _KINDS.items() if name != "containers"}
_BY_VARIABLE["cleanup_logs_containers"] = _CONTAINERS


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
