# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan and a fleet in lines for people: the same words in check mode, in diffs and in the fleet's report.

A hundred columns, the largest first, no colour needed. Names are other people's: whatever could move
a cursor is taken out of them.
"""

from __future__ import annotations

import textwrap
import typing as t

from ansible_collections.fleetclean.docker.plugins.module_utils.units import say_size

#: What fits a phone, a CI log and AWX alike.
COLUMNS = 100
_NAME_WIDTH = 28
_NOUNS = {"build_cache": "build cache record"}


def printable(text: object, width: int | None = None) -> str:
    """Text without control characters, cut in its middle to ``width`` columns."""
    clean = str(text)
    if not clean.isprintable():
        clean = "".join(char if char.isprintable() else "?" for char in clean)
    if width and len(clean) > width:
        head = (width - 1) // 2
        clean = f"{clean[:head]}…{clean[len(clean) - (width - head - 1):]}"
    return clean


def wrapped(head: str, text: str) -> str:
    """``head`` and ``text`` in as many lines as it takes, the text below itself."""
    indent = " " * len(head)
    lines = textwrap.wrap(text, COLUMNS, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    return head + "\n".join(lines)[len(head):] if lines else head.rstrip()


def step_line(kind: str, name: str, size: int | None, reason: str) -> str:
    """One line for one object that goes; a reason that is too long goes on below itself."""
    shown = printable(name.split(":", 1)[1][:12] if name.startswith("sha256:") else name, _NAME_WIDTH)
    return wrapped(
        f"- {kind.replace('_', ' '):<11} {shown:<{_NAME_WIDTH}} {say_size(size):>9}   ", printable(reason)
    )


def kept_line(kind: str, count: int, size: int | None, reason: str) -> str:
    """One line for all objects that stay for one reason."""
    what = f"{_NOUNS.get(kind, kind)}{'' if count == 1 else 's'}"
    return wrapped(
        f"  {'stays':<11} {f'{count} {what}':<{_NAME_WIDTH}} {say_size(size):>9}   ", printable(reason)
    )


def plan_lines(steps: t.Iterable[t.Any], kept: t.Iterable[dict[str, t.Any]], free: str) -> list[str]:
    """What goes, largest first; what stays, by reason; and what is free before and after."""
    lines = [
        step_line(step.kind, step.name, step.bytes, step.reason)
        for step in sorted(steps, key=lambda step: -(step.bytes or 0))
    ]
    lines += [
        kept_line(entry["kind"], entry["count"], entry["bytes"], entry["reason"])
        for entry in sorted(kept, key=lambda entry: -(entry["bytes"] or 0))
    ]
    return lines + ([f"  {'free':<11} {free}"] if free else [])


def free_words(before: int | None, after: int | None, size: int | None) -> str:
    """``0 B -> 13.6 GB of 50.0 GB (27 %)``."""
    if before is None or after is None or not size:
        return ""
    return f"{say_size(before)} -> {say_size(after)} of {say_size(size)} ({100 * after // size} %)"
