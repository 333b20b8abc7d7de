# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read options that are lists: what came as text (AWX surveys: "a, b", or one a line) is split, white space at the ends is dropped.

Pure. What entries may be is decided by ``patterns``.
"""

from __future__ import annotations

import ast
import math
import re
import typing as t
from contextlib import suppress

from ansible.module_utils.common.validation import check_type_dict
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError

#: A list that limits what is removed; one without a value would not.
_SELECTS = re.compile(r"[._]only(_labels)?$")
_LINES = re.compile(r"\r\n|\r|\n")


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
            raise refused(option, "has no value; leave it out if all are meant", None)
        if isinstance(value, str) and "options" in about:
            # Read as Ansible does; what is no mapping it refuses itself.
            with suppress(TypeError, ValueError, SyntaxError, RecursionError, MemoryError):
                value = check_type_dict(value)
        if isinstance(value, t.Mapping) and "options" in about:
            result[name] = split_lists(value, about["options"], f"{option}.")
        elif about.get("type") == "list" and about.get("elements", "str") == "str" and value is not None:
            result[name] = entries(option, value, about.get("choices"))
        elif about.get("type") == "int" and isinstance(value, float) and not math.isfinite(value):
            raise FleetcleanError(f"{option}: {value} is no whole number.", "bad_input")  # Ansible would end in a traceback
    return result


def entries(option: str, value: object, choices: t.Sequence[str] | None) -> list[str]:
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
            raise refused(option, f"an entry is {_type_name(entry)} and not a text", choices)
        text = "" if entry is None else str(entry).strip()
        if not text:
            raise refused(option, "an entry is empty", choices)
        found += _split(option, text, choices) if _LINES.search(text) else [text]
    return found


def _split(option: str, text: str, choices: t.Sequence[str] | None) -> list[str]:
    """The entries of a text: by lines and commas. One comma too many at either end of a line is no entry."""
    found = []
    for line in _LINES.split(text):
        parts = [entry.strip() for entry in line.split(",")]
        for end in (0, -1):
            if parts and not parts[end]:
                del parts[end]
        if not all(parts):
            raise refused(option, "an entry is empty", choices)
        found += parts
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


def refused(option: str, problem: str, choices: t.Sequence[str] | None) -> FleetcleanError:
    """The error that names the option, what is wrong with it, and what it takes."""
    from ansible_collections.fleetclean.docker.plugins.module_utils import patterns

    takes = patterns.what_it_takes(option) or ", ".join(choices or ()) or "texts"
    return FleetcleanError(f"{option}: {problem}. Use {takes}; commas or lines stand between entries.", "bad_input")
