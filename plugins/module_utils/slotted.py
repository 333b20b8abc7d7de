# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Dataclasses of which there are tens of thousands, without a dictionary in each: ``dataclass(slots=True)`` of Python 3.10."""

from __future__ import annotations

import dataclasses
import typing as t

_Class = t.TypeVar("_Class")


def slotted(cls: type[_Class]) -> type[_Class]:
    """Return the same dataclass with slots for its fields, and nothing else in its objects."""
    names = tuple(each.name for each in dataclasses.fields(cls))  # type: ignore[arg-type]
    left_out = {*names, "__dict__", "__weakref__"}
    body = {name: value for name, value in vars(cls).items() if name not in left_out}
    made: t.Any = type(cls)
    return t.cast("type[_Class]", made(cls.__name__, cls.__bases__, {**body, "__slots__": names}))
