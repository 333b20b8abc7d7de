# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes, shares, durations and timestamps: what is understood, what is refused with which words, what people read."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import units
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError
from ansible_collections.fleetclean.docker.plugins.module_utils.units import Share

MIB = 1024**2
GIB = 1024**3


def at(*moment: int) -> float:
    return datetime(*moment, tzinfo=timezone.utc).timestamp()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0),
        ("0", 0),
        (1048576, MIB),
        ("1048576", MIB),
        ("512B", 512),
        ("1K", 1024),
        ("500MB", 500 * MIB),
        ("500mb", 500 * MIB),
        ("500 MB", 500 * MIB),
        ("  500MB  ", 500 * MIB),
        ("1MiB", MIB),
        ("10GiB", 10 * GIB),
        ("10gib", 10 * GIB),
        ("10G", 10 * GIB),
        ("1.5GB", 3 * GIB // 2),
        ("2TB", 2 * 1024**4),
        ("1PB", 1024**5),
        ("1EB", 1024**6),
    ],
)
def test_a_size_is_bytes_or_a_number_with_a_unit_of_powers_of_1024(text: object, size: int) -> None:
    assert units.parse_size(text, "keep") == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "big",
        "-1",
        "-5MB",
        "5 parrots",
        "5MMB",
        "MB",
        "1e9",
        "1,5GB",
        "20%",
        "0x10",
        "٣MB",
        None,
        True,
        False,
        [5],
        "5MB\nrm",
        "9223372036854775808",
        "8EiB",
        pytest.param("9" * 400, id="more than any number of ours"),
        pytest.param("9" * 5000 + "EB", id="more than Python reads"),
    ],
)
def test_what_is_no_size_is_refused_by_the_name_of_its_option(text: object) -> None:
    with pytest.raises(FleetcleanError) as caught:
        units.parse_size(text, "build_cache.keep_storage")
    assert str(caught.value) == (
        f'build_cache.keep_storage: "{text}" is not a size; use bytes or a number with a unit, such as 500MB or 10GiB.'
    )
    assert caught.value.code == "bad_input"


@pytest.mark.parametrize(
    ("text", "amount"),
    [("20%", Share(20)), (" 12.5 % ", Share(12.5)), ("0%", Share(0)), ("100%", Share(100)), ("20GB", 20 * GIB), (500, 500), ("0", 0), ("15B", 15)],
)
def test_an_amount_is_a_size_or_a_share(text: object, amount: units.Amount) -> None:
    assert units.parse_amount(text, "only_below") == amount


@pytest.mark.parametrize("text", ["101%", "-5%", "%", "a lot", "", "20 percent", "٢٠%"])
def test_what_is_neither_size_nor_share_is_refused(text: str) -> None:
    with pytest.raises(FleetcleanError) as caught:
        units.parse_amount(text, "only_below")
    assert str(caught.value) == (
        f'only_below: "{text}" is neither a size nor a share; use 20GB, or 15% of the filesystem.'
    )


@pytest.mark.parametrize("text", ["15", 5, "100", "007"])
def test_a_forgotten_percent_sign_is_no_size(text: object) -> None:
    """15 bytes are never lacking: a host would never be cleaned, and nobody would notice."""
    with pytest.raises(FleetcleanError, match="use .*% for a share"):
        units.parse_amount(text, "only_below")
    with pytest.raises(FleetcleanError, match="use .*% for a share"):
        units.parse_count(text, "only_below_inodes")


@pytest.mark.parametrize(("text", "amount"), [("100000", 100000), (700, 700), ("0", 0), ("10%", Share(10))])
def test_a_count_of_inodes_is_a_number_or_a_share(text: object, amount: units.Amount) -> None:
    assert units.parse_count(text, "only_below_inodes") == amount


@pytest.mark.parametrize("text", ["10GB", "-3", "1.5", "", "many", "²", pytest.param("9" * 5000, id="more than Python reads")])
def test_inodes_have_no_units(text: str) -> None:
    with pytest.raises(FleetcleanError, match="only_below_inodes: .* is not a number of inodes; use 100000, or 10%"):
        units.parse_count(text, "only_below_inodes")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("45s", 45),
        ("90m", 5400),
        ("24h", 86400),
        ("7d", 604800),
        ("2w", 1209600),
        ("0", 0),
        (0, 0),
        ("0s", 0),
        (" 7d ", 604800),
    ],
)
def test_a_duration_is_a_number_with_its_unit(text: object, seconds: int) -> None:
    assert units.parse_duration(text, "older_than") == seconds


@pytest.mark.parametrize(
    "text", ["3 fortnights", "7", 7, "7 d", "7D", "-7d", "1.5h", "d", "", "1h30m", "٧d", "9999999999s", True, None]
)
def test_what_is_no_duration_is_refused_and_told_how_one_looks(text: object) -> None:
    with pytest.raises(FleetcleanError) as caught:
        units.parse_duration(text, "images.older_than")
    assert str(caught.value) == (
        f'images.older_than: "{text}" is not a duration; use a number with s, m, h, d or w, such as 7d.'
    )
    assert caught.value.code == "bad_input"


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2024-03-01T12:00:00Z", at(2024, 3, 1, 12)),
        ("2024-03-01T12:00:00.5Z", at(2024, 3, 1, 12) + 0.5),
        ("2024-03-01T12:00:00.250000000Z", at(2024, 3, 1, 12) + 0.25),
        ("2024-03-01T14:00:00+02:00", at(2024, 3, 1, 12)),
        ("2024-03-01T06:30:00-05:30", at(2024, 3, 1, 12)),
        ("2024-03-01T14:00:00.5+0200", at(2024, 3, 1, 12) + 0.5),
        ("2024-03-01 12:00:00 +0000 UTC", at(2024, 3, 1, 12)),
        ("2024-03-01T12:00:00", at(2024, 3, 1, 12)),
        ("2999-01-01T00:00:00Z", at(2999, 1, 1)),
        (1709294400, at(2024, 3, 1, 12)),
        (1709294400.5, at(2024, 3, 1, 12) + 0.5),
    ],
)
def test_an_engines_timestamp_is_read_with_any_decimals_and_any_zone(text: object, moment: float) -> None:
    assert units.parse_time(text) == pytest.approx(moment, abs=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "0001-01-01T00:00:00Z",
        "",
        None,
        0,
        -62135596800,
        -1,
        True,
        "yesterday",
        "2024-13-01T00:00:00Z",
        "2024-02-30T00:00:00Z",
        "1970-01-01T00:00:00Z",
        "1969-12-31T00:00:00Z",
        {},
        [],
        float("inf"),
        float("nan"),
        pytest.param(10**400, id="more than a float holds"),
        253_402_300_800,
    ],
)
def test_the_zero_time_and_what_is_no_time_are_none(text: object) -> None:
    assert units.parse_time(text) is None


def test_a_share_is_rounded_up_and_an_amount_is_itself() -> None:
    assert units.resolve(Share(15), 1000) == 150
    assert units.resolve(Share(33.3), 10) == 4
    assert units.resolve(Share(0), 1000) == 0
    assert units.resolve(Share(100), 1001) == 1001
    assert units.resolve(123, 10) == 123


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.0 KB"),
        (MIB - 1, "1.0 MB"),
        (int(31.2 * GIB), "31.2 GB"),
        (GIB, "1.0 GB"),
        (5 * 1024**4, "5.0 TB"),
        (5000 * 1024**4, "5000.0 TB"),
        (-GIB, "-1.0 GB"),
    ],
)
def test_a_size_is_said_in_the_unit_that_reads_best(size: int | None, text: str) -> None:
    assert units.say_size(size) == text


@pytest.mark.parametrize("text", ["1MiB", "500MB", "10GiB", "1.5GB"])
def test_what_is_said_can_be_read_again(text: str) -> None:
    size = units.parse_size(text, "keep")
    assert units.parse_size(units.say_size(size), "keep") == size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 seconds"),
        (0, "0 seconds"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "1 minute"),
        (3599, "59 minutes"),
        (3600, "1 hour"),
        (86400, "24 hours"),
        (2 * 86400 - 1, "47 hours"),
        (2 * 86400, "2 days"),
        (34 * 86400 + 3, "34 days"),
    ],
)
def test_a_span_is_said_in_its_largest_unit_and_one_day_in_hours(seconds: float, text: str) -> None:
    assert units.say_duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0"), (604800, "7d"), (1209600, "2w"), (86400, "1d"), (129600, "36h"), (5400, "90m"), (90, "90s")],
)
def test_an_age_limit_is_said_as_a_user_writes_it(seconds: int, text: str) -> None:
    assert units.say_limit(seconds) == text
    assert units.parse_duration(text, "older_than") == seconds
