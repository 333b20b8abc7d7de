# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan and a fleet in lines for people: the same words in check mode, in diffs and in the fleet's report.

A hundred columns, the largest first, no colour needed. Names are other people's: whatever could move
a cursor is taken out of them.
"""

from __future__ import annotations

import typing as t

from ansible_collections.fleetclean.docker.plugins.module_utils.units import (
    say_amount,
    say_size,
    say_span,
)

if t.TYPE_CHECKING:
    from ansible_collections.fleetclean.docker.plugins.module_utils.options import Watermarks
    from ansible_collections.fleetclean.docker.plugins.module_utils.plan import (
        CacheWish,
        ContainerWish,
        ImageWish,
        NetworkWish,
        VolumeWish,
        Wishes,
    )

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
    import textwrap

    indent = " " * len(head)
    lines = textwrap.wrap(text, COLUMNS, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    return head + "\n".join(lines)[len(head):] if lines else head.rstrip()


def step_line(kind: str, name: str, size: int | None, reason: str, logical: int | None = None) -> str:
    """One line for one object that goes; a reason that is too long goes on below itself.

    :param logical: the engine's figure, which stands in place of a ``size`` that was not measured, and is marked.
    """
    shown = printable(name.split(":", 1)[1][:12] if name.startswith("sha256:") else name, _NAME_WIDTH)
    return wrapped(
        f"- {kind.replace('_', ' '):<11} {shown:<{_NAME_WIDTH}} {say_measured(size, logical):>9}   ", printable(reason)
    )


def say_measured(size: int | None, logical: int | None) -> str:
    """A size, or the engine's figure with a mark, ``~3.1 GB``."""
    return say_size(size) if size is not None or logical is None else f"~{say_size(logical)}"


def kept_line(kind: str, count: int, size: int | None, reason: str) -> str:
    """One line for all objects that stay for one reason."""
    what = f"{_NOUNS.get(kind, kind)}{'' if count == 1 else 's'}"
    return wrapped(
        f"  {'stays':<11} {f'{count} {what}':<{_NAME_WIDTH}} {say_size(size):>9}   ", printable(reason)
    )


def policy_lines(wishes: Wishes, marks: Watermarks) -> list[str]:
    """The wishes in words, a sentence for each section and for what holds for all of them."""
    said: list[tuple[str, t.Any, t.Callable[[t.Any], list[str]]]] = [
        ("containers", wishes.containers, _containers),
        ("images", wishes.images, _images),
        ("volumes", wishes.volumes, _volumes),
        ("networks", wishes.networks, _networks),
        ("build cache", wishes.build_cache, _cache),
        ("always", wishes, _always),
        ("when", marks, _when),
    ]
    parts = [(section, say(wish)) for section, wish, say in said if wish]
    return [f"{section}: {', '.join(words)}" for section, words in parts if words]


def _containers(wish: ContainerWish) -> list[str]:
    states = f"{', '.join(wish.states[:-1])} or {wish.states[-1]}" if len(wish.states) > 1 else "".join(wish.states) or "in no state"
    parts = [states + _for(wish.older_than), *_only(wish), *_named(wish.keep)]
    parts += ["their anonymous volumes as well"] if wish.volumes else []
    return parts + (["also services of running compose projects"] if wish.compose else [])


def _images(wish: ImageWish) -> list[str]:
    parts = [
        {
            "dangling": f"dangling{_for(wish.older_than if wish.dangling_older_than is None else wish.dangling_older_than)}",
            "unused": f"unused{_for(wish.older_than)}",
            "all": f"used by no running container{_for(wish.older_than)}",
        }[wish.scope]
    ]
    if wish.scope != "dangling" and wish.dangling_older_than is not None:
        parts.append(f"dangling{_for(wish.dangling_older_than) or ' ones at once'}")
    if wish.keep_latest:
        parts.append(f"keep the newest {wish.keep_latest} of each repository")
    if wish.keep_local:
        parts.append("keep what was never pushed or pulled")
    return parts + _only(wish) + _named(wish.keep)


def _volumes(wish: VolumeWish) -> list[str]:
    parts = [("anonymous, unused" if wish.scope == "anonymous" else "unused") + _for(wish.older_than)]
    if tuple(wish.drivers) != ("local",):
        parts.append(f"of the drivers {', '.join(map(printable, wish.drivers)) or 'none'}")
    return parts + _only(wish) + _named(wish.keep)


def _networks(wish: NetworkWish) -> list[str]:
    return [f"used by no container{_for(wish.older_than)}", *_only(wish), *_named(wish.keep)]


def _cache(wish: CacheWish) -> list[str]:
    parts = [f"unused{_for(wish.older_than)}"]
    if wish.scope == "all":
        parts.append("also what is shared and the builder's own")
    if wish.keep_storage is not None:
        parts.append(f"keep the {say_size(wish.keep_storage)} used most recently")
    return parts


def _always(wishes: Wishes) -> list[str]:
    labels = ", ".join(map(printable, wishes.keep_labels))
    parts = [f"keep what is labelled {labels}"] if labels else []
    if wishes.orchestrated == "clean":
        parts.append("clean also what kubelet, the ECS agent, Nomad, swarm and buildx look after, and what starts again with the engine")
    return parts


def _when(marks: Watermarks) -> list[str]:
    below = [(marks.only_below, False), (marks.only_below_inodes, True)]
    until = [(marks.free_target, False), (marks.free_target_inodes, True)]
    starts = [f"less than {_free(mark, count)}" for mark, count in below if mark is not None]
    stops = [_free(mark, count) for mark, count in until if mark is not None]
    parts = [f"only if {' or '.join(starts)}"] if starts else []
    return parts + ([f"until {' and '.join(stops)}, the cheapest loss first"] if stops else [])


def _free(mark: t.Any, inodes: bool) -> str:
    return f"{say_amount(mark, inodes)} of the inodes are free" if inodes else f"{say_amount(mark)} is free"


def _for(seconds: int | None) -> str:
    return f" for {say_span(seconds)}" if seconds else ""


def _only(wish: ContainerWish | ImageWish | VolumeWish | NetworkWish) -> list[str]:
    limits = (("named", wish.only), ("labelled", wish.only_labels))
    return [f"only those {how} {', '.join(map(printable, limit)) or 'in an empty list: none'}" for how, limit in limits if limit is not None]


def _named(keep: t.Sequence[str]) -> list[str]:
    return [f"keep those named {', '.join(map(printable, keep))}"] if keep else []


def plan_lines(
    policy: t.Iterable[str], steps: t.Iterable[t.Any], kept: t.Iterable[dict[str, t.Any]], free: str
) -> list[str]:
    """The wishes; what goes, largest first; what stays, by reason; and what is free before and after."""
    lines = [wrapped(f"  {'wished':<11} ", line) for line in policy]
    lines += [
        step_line(step.kind, step.name, step.bytes, step.reason, step.logical_bytes)
        for step in sorted(steps, key=lambda step: -(step.bytes or step.logical_bytes or 0))
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
