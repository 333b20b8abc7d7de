# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What users may say: any options of the three modules, and the readers of sizes, durations, times, globs, names and lists."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from typing import Any, Dict

from ansible.module_utils.common.arg_spec import ModuleArgumentSpecValidator
from ansible_collections.fleetclean.docker.plugins.module_utils import lists, names, options, patterns, units, words
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError
from hypothesis import example
from hypothesis import strategies as st

from tests.fuzz.budget import fuzz

#: What JSON can bring, nested a little.
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
#: Texts with what globs, lists, sizes and names are made of.
written = st.text(st.sampled_from("ab1.:/-_@=*?[]!^,;\n\r\t \"'(){}|\\%9kMgi\u00e9\u0660\ud800\x00"), max_size=40)
sizes = st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,2})?\s?[kKmMgGtTpPeE]?(i?[bB])?%?", fullmatch=True) | st.builds(str.__add__, st.sampled_from(["9" * 18, "9" * 20, "9" * 400, "9" * 5000]), st.sampled_from(["", "%", "M", "EiB", "s"]))
durations = st.from_regex(r"[0-9]{1,12}[smhdw]?", fullmatch=True)
globs = st.lists(st.sampled_from(["a", "b", "ab", "*", "?", "[ab]", "[!a]", "[b-a]", "[", "]", "[]]", "[!]", "[*]", "-", "[a-b", "\n", "[[]"]), max_size=12).map("".join)
likely = sizes | durations | globs | written


def value_of(about: Dict[str, Any]) -> st.SearchStrategy[Any]:
    """Mostly what an option takes, sometimes anything."""
    kinds: Dict[str, st.SearchStrategy[Any]] = {
        "str": st.sampled_from(about.get("choices") or ["x"]) if about.get("choices") else likely,
        "int": st.integers(-1, 40),
        "bool": st.booleans(),
        "path": written,
        "list": st.lists(st.sampled_from(about["choices"]) if about.get("choices") else likely, max_size=4) | written,
        "dict": of_spec(about["options"]) if "options" in about else st.just({}),
    }
    if about.get("elements") == "dict":
        kinds["list"] = st.lists(of_spec(about["options"]), max_size=3)
    return kinds[about["type"]] if about["type"] == "dict" else st.one_of(kinds[about["type"]], kinds[about["type"]], kinds[about["type"]], anything)


def of_spec(spec: Dict[str, Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({}, optional={name: value_of(about) for name, about in spec.items() if not name.startswith("_")})


def read(spec: Dict[str, Any], given: Dict[str, Any]) -> Dict[str, Any]:
    """As session.py's module and the role's preflight read options; Ansible's own errors name the option."""
    found = ModuleArgumentSpecValidator(spec).validate(lists.split_lists(given, spec))
    if found.error_messages:
        assert any(name in " ".join(found.error_messages) for name in spec), found.error_messages
        raise FleetcleanError("refused", "bad_input")
    return dict(found.validated_parameters)


def refused(error: FleetcleanError, given: Dict[str, Any]) -> None:
    assert error.code in ("bad_input", "not_yet"), error.code
    assert str(error)


@fuzz(500, given=of_spec(options.clean_spec()))
def test_docker_clean(given: Dict[str, Any]) -> None:
    try:
        params = read(options.clean_spec(), given)
        options.read_assumed(params)
        wishes, marks = options.read_clean(params)
    except FleetcleanError as error:
        refused(error, given)
        return
    assert all(isinstance(line, str) for line in words.policy_lines(wishes, marks))
    for mark in marks:
        assert mark is None or units.resolve(mark, 10**12) >= 0


@fuzz(200, given=of_spec(options.truncate_spec()))
def test_docker_log_truncate(given: Dict[str, Any]) -> None:
    try:
        wish = options.read_truncate(read(options.truncate_spec(), given))
    except FleetcleanError as error:
        refused(error, given)
        return
    assert 0 <= wish.keep <= wish.larger_than


@fuzz(150, given=of_spec({**options.report_spec(), **options.shared_spec()}))
def test_docker_disk_report(given: Dict[str, Any]) -> None:
    try:
        read({**options.report_spec(), **options.shared_spec()}, given)
    except FleetcleanError as error:
        refused(error, given)


@fuzz(500, value=likely | anything)
def test_what_reads_a_value_says_what_it_is_or_names_the_option(value: Any) -> None:
    for parse in (units.parse_size, units.parse_amount, units.parse_count, units.parse_duration):
        try:
            found = parse(value, "the_option")
        except FleetcleanError as error:
            assert str(error).startswith("the_option: ")
        else:
            amount = found if isinstance(found, units.Share) else int(found)
            assert units.resolve(amount, 1000) >= 0
            assert units.say_amount(amount) and units.say_amount(amount, count=True)
    units.parse_time(value)


@fuzz(300, seconds=st.integers(0, 10**9 - 1))
def test_a_duration_is_written_as_it_is_read(seconds: int) -> None:
    assert units.parse_duration(units.say_limit(seconds), "x") == seconds
    assert units.say_span(seconds) and units.say_duration(seconds)


@fuzz(300, moment=st.datetimes(datetime(1971, 1, 2), datetime(2200, 1, 1)), zone=st.integers(-14 * 60, 14 * 60), decimals=st.integers(0, 9))
def test_a_time_is_read_in_any_zone_with_any_number_of_decimals(moment: datetime, zone: int, decimals: int) -> None:
    sign, hours, minutes = "-" if zone < 0 else "+", abs(zone) // 60, abs(zone) % 60
    text = moment.strftime("%Y-%m-%dT%H:%M:%S") + (f".{moment.microsecond:06}000"[: decimals + 1] if decimals else "") + f"{sign}{hours:02}:{minutes:02}"
    found = units.parse_time(text)
    assert found is not None
    assert abs(found - (moment.replace(tzinfo=timezone.utc).timestamp() - zone * 60)) <= 1


@fuzz(1000, pattern=globs, name=st.text(st.sampled_from("ab-]![*\n"), max_size=12))
@example(pattern="[b-a]*", name="a")
@example(pattern="*[!b-a]", name="a")
def test_a_glob_fits_what_fnmatch_says(pattern: str, name: str) -> None:
    try:
        expected = fnmatchcase(name, pattern)
    except re.error:
        expected = False
    assert names.glob_fits(pattern, name) == expected


@fuzz(100, part=st.sampled_from(["a", "ab", "[ab]", "?", "a?"]), stars=st.integers(1, 200), tail=st.sampled_from(["", "b", "[!a]"]), length=st.integers(0, 20_000))
@example(part="a", stars=40, tail="b", length=20_000)
def test_no_glob_takes_long(part: str, stars: int, tail: str, length: int) -> None:
    pattern = "*" + f"{part}*" * stars + tail
    names.glob_fits(pattern, "a" * length)
    names.has_label({"a" * length: "a" * length}, f"{pattern}={pattern}")


@fuzz(500, option=st.sampled_from(sorted(patterns._KINDS)), entry=likely)
def test_a_pattern_is_refused_or_can_be_used(option: str, entry: str) -> None:
    try:
        entries = patterns.read_list(option, [entry])
    except FleetcleanError as error:
        assert str(error).startswith(f"{option}: ")
        return
    assert entries
    for pattern in entries:
        names.matches([pattern], "sha256:" + "a" * 64, ["a", pattern])
        names.fits_image(pattern, "a/b:1")
        assert names.fits_image(pattern, pattern) or not option.startswith("images") or "[" in pattern or names.plain_name(pattern) != pattern
        assert option != "keep_labels" or isinstance(names.has_label({"a": "b"}, pattern), bool)


@fuzz(300, name=written)
def test_an_images_name_has_stable_spellings(name: str) -> None:
    plain = names.plain_name(name)
    assert names.plain_name(plain) == plain or "/" in plain
    assert not name or name in names.spellings(name) | {plain}
    assert names.repository(names.repository(name)) or not name or name.startswith(":")


@fuzz(200, text=st.text(), width=st.integers(1, 60) | st.none())
def test_what_is_printed_moves_no_cursor(text: str, width: Any) -> None:
    shown = words.printable(text, width)
    assert shown.isprintable()
    assert width is None or len(shown) <= width
