# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the records that an engine and its containerd keep in files: JSON objects and single lines, within bounds.

Whoever makes an image or a container has a say in what they hold (an image's configuration is kept as it came, labels are the user's),
so they are as large, as deep and of such types as somebody liked. What is not plain is a ``ValueError``, and
the caller asks the engine or goes without.
"""

from __future__ import annotations

import json
import typing as t

from ansible_collections.fleetclean.docker.plugins.module_utils import safe_open

#: Bytes of a record; those of real images and containers are a few thousand. Parsed, an object takes up to twenty times as much.
LARGEST = 512 << 10
#: Digits of a number; a longer one is none that an engine writes, and Python takes a time for it that grows with its square.
_MOST_DIGITS = 20


def read_object(path: str, limit: int = LARGEST) -> dict[str, t.Any]:
    """Return the JSON object that a regular file holds.

    :raises OSError: it is not there, no regular file, larger, or cannot be read.
    :raises ValueError: it holds something else.
    """
    return parse_object(safe_open.read_regular(path, limit))


def parse_object(raw: bytes) -> dict[str, t.Any]:
    """Return a JSON object.

    :raises ValueError: it is something else, or nested too deep.
    """
    try:
        parsed = json.loads(raw, parse_int=_integer)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(parsed, dict):
        raise ValueError("it is no object")
    return parsed


def read_line(path: str, limit: int = 200) -> str:
    """Return the one line of a regular file.

    :raises OSError: it is not there, no regular file, or cannot be read.
    """
    return safe_open.read_head(path, limit).decode("ascii", "replace").strip()


_Kind = t.TypeVar("_Kind")


def only(value: object, kind: type[_Kind]) -> _Kind | None:
    """Return a value of this kind, or None where there is none.

    :raises ValueError: it is of another kind.
    """
    if value is None or (isinstance(value, kind) and not (kind is int and isinstance(value, bool))):
        return value
    raise ValueError(f"{kind.__name__} expected")


def texts(value: object) -> list[str]:
    """Return a list of texts, empty where there is none.

    :raises ValueError: it is something else.
    """
    found = only(value, list) or []
    if not all(isinstance(text, str) for text in found):
        raise ValueError("texts expected")
    return found


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError("a number of too many digits")
    return int(text)
