# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes, shares, durations and the engine's timestamps: reading them, and saying them to people.

A size's units are powers of 1024, on the way in (Ansible's human_to_bytes) and on the way out.
"""

from __future__ import annotations

import re
import typing as t
from datetime import datetime, timedelta, timezone

from ansible.module_utils.common.text.formatters import human_to_bytes
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import (
    FleetcleanError,
)

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_TIME = re.compile(
    r"(\d{4}-\d{2}-\d{2})[T ](\d{2}:\d{2}:\d{2})(?:\.(\d+))?\s*(Z|[+-]\d{2}:?\d{2})?", re.ASCII
)
_SIZE = re.compile(r"[0-9]+(\.[0-9]+)?\s*([KMGTPE]?(i?B)?)?", re.IGNORECASE | re.ASCII)


class Share(t.NamedTuple):
    """A share of a whole, in percent."""

    percent: float


#: What a signed number of 64 bits holds: sizes of disks, numbers of inodes.
_MOST = 2**63 - 1
#: The end of the year 9999, beyond which Python has no dates.
_END_OF_TIME = 253_402_300_800

#: Bytes, or a share of the filesystem.
Amount = t.Union[int, Share]


def parse_size(value: object, option: str) -> int:
    """Return bytes for ``500MB``, ``10GiB`` or a number of bytes.

    :raises FleetcleanError: naming the option and what it takes.
    """
    text = str(value).strip()
    if not isinstance(value, bool) and _SIZE.fullmatch(text):
        try:
            size = int(human_to_bytes(re.sub(r"i(b?)$", r"\1", text, flags=re.IGNORECASE).upper()))
        except (ValueError, OverflowError):
            size = _MOST + 1
        if size <= _MOST:
            return size
    raise FleetcleanError(
        f'{option}: "{value}" is not a size; use bytes or a number with a unit, such as 500MB or 10GiB.', "bad_input"
    )


def parse_amount(value: object, option: str) -> Amount:
    """Return a share for ``20%``, else bytes as parse_size does.

    :raises FleetcleanError: also for a plain number that is no size of a filesystem: its percent sign was forgotten.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*", str(value))
    if match and float(match.group(1)) <= 100:
        return Share(float(match.group(1)))
    _refuse_bare(value, option, "bytes", "a size such as 20GB")
    try:
        return parse_size(value, option)
    except FleetcleanError:
        raise FleetcleanError(
            f'{option}: "{value}" is neither a size nor a share; use 20GB, or 15% of the filesystem.', "bad_input"
        ) from None


def _refuse_bare(value: object, option: str, unit: str, instead: str) -> None:
    """Refuse what can only be a share without its sign: no filesystem ever lacks 15 bytes."""
    if re.fullmatch(r"0*[1-9][0-9]?|0*100", str(value).strip()):
        raise FleetcleanError(f'{option}: "{value}" is {value} {unit}; use {value}% for a share, or {instead}.', "bad_input")


def parse_count(value: object, option: str) -> Amount:
    """Return a share for ``10%``, else a plain number: how many inodes."""
    text = str(value).strip()
    _refuse_bare(value, option, "inodes", "a number such as 100000")
    if re.fullmatch(r"[0-9]{1,18}", text):
        return int(text)
    if text.endswith("%"):
        return parse_amount(value, option)
    raise FleetcleanError(
        f'{option}: "{value}" is not a number of inodes; use 100000, or 10% of the filesystem.', "bad_input"
    )


def parse_duration(value: object, option: str) -> int:
    """Return seconds for ``90m``, ``24h``, ``7d`` or ``2w``; ``0`` is none at all.

    :raises FleetcleanError: naming the option and what it takes.
    """
    text = str(value).strip()
    match = re.fullmatch(r"([0-9]{1,9})([smhdw])", text)
    if match:
        return int(match.group(1)) * _SECONDS[match.group(2)]
    if text == "0":
        return 0
    raise FleetcleanError(
        f'{option}: "{value}" is not a duration; use a number with s, m, h, d or w, such as 7d.', "bad_input"
    )


def parse_time(value: object) -> float | None:
    """Return an engine's timestamp as seconds since 1970, None if it has none.

    Takes RFC 3339 with any number of decimals and any zone, and plain seconds (the image and
    container lists). The zero time of Go (``0001-01-01T00:00:00Z``) means none.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value) if 0 < value < _END_OF_TIME else None
    match = _TIME.match(str(value or ""))
    if not match:
        return None
    day, clock, decimals, zone = match.groups()
    try:
        moment = datetime.strptime(f"{day} {clock}", "%Y-%m-%d %H:%M:%S").replace(tzinfo=timezone.utc)
    except ValueError:
        return None
    seconds = (moment - datetime(1970, 1, 1, tzinfo=timezone.utc)) / timedelta(seconds=1)
    if zone and zone != "Z":
        hours, minutes = int(zone[1:3]), int(zone[-2:])
        seconds -= (hours * 3600 + minutes * 60) * (-1 if zone[0] == "-" else 1)
    seconds += float(f"0.{decimals}") if decimals else 0.0
    return seconds if seconds > 0 else None


def resolve(amount: Amount, total: int) -> int:
    """Return the amount itself, or its share of `total`, rounded up."""
    if isinstance(amount, Share):
        return -int(-total * amount.percent // 100)
    return amount


def say_size(count: int | float | None) -> str:
    """Return bytes for a person: ``31.2 GB``, ``0 B``; ``-`` for what is not known."""
    if count is None:
        return "-"
    size = float(count)
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if abs(size) < 1023.95 or unit == "TB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def say_duration(seconds: float) -> str:
    """Return a span in its largest unit that is at least two (one day and less in hours): ``12 days``."""
    whole = max(0, int(seconds))
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if whole >= length and (whole >= 2 * length or unit != "day"):
            count = whole // length
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return f"{whole} second{'' if whole == 1 else 's'}"


def say_span(seconds: int) -> str:
    """Return a duration without rounding it, in the largest unit that fits: ``7 days``, ``36 hours``, ``90 minutes``."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
        if seconds % length == 0 and (seconds >= length or unit == "second"):
            count = seconds // length
            break
    return f"{count} {unit}{'' if count == 1 else 's'}"


def say_amount(amount: Amount, count: bool = False) -> str:
    """Return a watermark in words: ``15 %``, ``20.0 GB``; a number of inodes with ``count``."""
    if isinstance(amount, Share):
        return f"{amount.percent:g} %"
    return str(amount) if count else say_size(amount)


def say_limit(seconds: int) -> str:
    """Return a duration in the option's own notation: ``7d``, ``36h``, ``0``."""
    for unit in ("w", "d", "h", "m"):
        if seconds and seconds % _SECONDS[unit] == 0 and not (unit == "w" and seconds == _SECONDS["w"]):
            return f"{seconds // _SECONDS[unit]}{unit}"
    return f"{seconds}s" if seconds else "0"
