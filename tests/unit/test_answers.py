# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The door for what hosts answer: what is documented comes in whole, and nothing else does any harm.

`mutated_hosts` and `costs_only_itself` are a strategy and a property for whoever wants to try more of them.
"""

from __future__ import annotations

import copy
import importlib
import json
import time
import typing as t

import pytest
import yaml
from ansible_collections.fleetclean.docker.plugins.plugin_utils import answers, fleet, host_record, page
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests import records

GB = records.GB
MODULES = ("docker_clean", "docker_disk_report", "docker_log_truncate")
VARIABLES = {"_cleanup_engine": "docker_disk_report", "_cleanup_logs": "docker_log_truncate", "_cleanup_clean": "docker_clean"}
#: All that is known of one host, as the role writes it.
MAX_JSON = 20_000_000


def documented(module: str) -> dict[str, t.Any]:
    found = importlib.import_module(f"ansible_collections.fleetclean.docker.plugins.modules.{module}")
    return dict(yaml.safe_load(found.RETURN))


def record_of(**results: t.Any) -> host_record.HostRecord:
    return host_record.host_record(records.hostvars("odd", **results))


# -- the schema ------------------------------------------------------------------------------------


def bare(shape: answers.Shape, where: str) -> t.Iterator[str]:
    """Places of which nobody says what is in them."""
    if shape.type not in ("bool", "int", "float", "str", "list", "dict") or (shape.type in ("list", "dict") and not (shape.elements or shape.contains)):
        yield where
    for key, inner in (shape.contains or {}).items():
        yield from bare(inner, f"{where}.{key}")
    if shape.elements:
        yield from bare(shape.elements, f"{where}[]")


@pytest.mark.parametrize("module", MODULES)
def test_return_documents_every_value_down_to_its_leaves_and_its_samples_fit(module: str) -> None:
    assert [place for key, shape in answers.shapes(module).items() for place in bare(shape, key)] == []
    samples = {key: about["sample"] for key, about in documented(module).items()}
    assert answers.read(module, samples) == (samples, ())


def differing(record: type, contains: t.Mapping[str, answers.Shape], where: str) -> t.Iterator[str]:
    """Fields of a record that are not as RETURN has them."""
    known, _left_out = host_record.fields(record)
    for name in sorted(set(known) | set(contains)):
        if name not in known or name not in contains:
            yield f"{where}.{name}: only in {'the record' if name in known else 'RETURN'}"
        else:
            yield from _differing_field(known[name], contains[name], f"{where}.{name}")


def _differing_field(field: t.Any, shape: answers.Shape, where: str) -> t.Iterator[str]:
    if field.kind == "record":
        yield from differing(field.inner, shape.contains or {}, where)
    elif field.kind in ("list", "dict"):
        if shape.type != field.kind or shape.elements is None:
            yield f"{where}: a {field.kind} here, {shape.type} in RETURN"
        else:
            yield from _differing_field(field.inner, shape.elements, f"{where}[]")
    elif t.get_origin(field.inner) is None and shape.type != field.inner.__name__:
        yield f"{where}: {field.inner.__name__} here, {shape.type} in RETURN"


@pytest.mark.parametrize(
    ("record", "module", "unneeded"),
    [
        (host_record.Report, "docker_disk_report", {"paths"}),
        (host_record.Logs, "docker_log_truncate", set()),
        (host_record.Clean, "docker_clean", set()),
    ],
)
def test_a_record_has_the_fields_and_types_of_return(record: type, module: str, unneeded: set[str]) -> None:
    common = {"changed": answers.Shape("bool"), "failed": answers.Shape("bool"), "msg": answers.Shape("str")}
    contains = {key: shape for key, shape in {**answers.shapes(module), **common}.items() if key not in unneeded}
    if record is host_record.Report:
        contains = {key: shape for key, shape in contains.items() if key not in (*common, "failure")}
    assert list(differing(record, contains, module)) == []


def test_return_is_read_once_for_all_workers() -> None:
    # Ansible's strategies load an action plugin before they fork a worker for a host.
    importlib.import_module("ansible_collections.fleetclean.docker.plugins.action.docker_clean")
    before = answers.shapes.cache_info()
    assert answers.shapes("docker_clean") is answers.shapes("docker_clean")
    assert answers.shapes.cache_info().misses == before.misses


# -- what comes in ---------------------------------------------------------------------------------


def recorded() -> list[tuple[str, dict[str, t.Any]]]:
    hosts = [*records.report_fleet(), *records.report_fleet(exact=False), *records.clean_fleet()]
    return [(VARIABLES[name], answer) for host in hosts for name, answer in host.items() if name in VARIABLES]


@pytest.mark.parametrize(("module", "answer"), recorded())
def test_what_an_honest_host_answers_comes_in_whole(module: str, answer: dict[str, t.Any]) -> None:
    if answer.get("unreachable"):
        return
    admitted = answers.admit(module, {**answer, "invocation": {"module_args": {}}, "_ansible_parsed": True})
    assert admitted.dropped == ()
    assert admitted.values == {key: value for key, value in answer.items() if key != "warnings" or value}


#: What Ansible does with these keys of an answer: sets variables, adds hosts and groups, sums, hides, prints.
ORDERS = {
    "ansible_facts": {"cleanup_report_dir": "/etc", "cleanup_hosts": "all"}, "add_host": {"host_name": "evil"}, "add_group": "evil",
    "ansible_stats": {"data": {"x": 1}}, "_ansible_no_log": True, "_ansible_verbose_always": True, "_ansible_facts_cacheable": True,
    "_ansible_delegated_vars": {"ansible_host": "evil"}, "results": [{"ansible_facts": {"x": 1}}], "skipped": True, "unreachable": True, "rc": 1,
    "failed_when_result": True, "ansible_job_id": "../../x", "stdout": "x", "stat": {"exists": True}, "include": "/etc/passwd", "attempts": 1,
}


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("key", ORDERS)
def test_no_key_of_an_answer_is_an_order_to_ansible(module: str, key: str) -> None:
    admitted = answers.admit(module, {"changed": False, key: ORDERS[key]})
    assert admitted == ({"changed": False}, (key,))
    assert key in answers.dropped_words(admitted.dropped)


def test_keys_within_documented_values_are_dropped_as_well_and_few_are_named() -> None:
    answer = {"engine": {"root_dir": "/d", "x": 1, **{f"k{number}\x1b[2J{'y' * 999}": 1 for number in range(999)}}, **{f"z{number}": 1 for number in range(99)}}
    admitted = answers.admit("docker_disk_report", answer)
    assert admitted.values == {"engine": {"root_dir": "/d"}}
    words = answers.dropped_words(admitted.dropped)
    assert words.isprintable() and words.endswith(" and more") and len(words) < 600


def test_no_name_of_a_driver_makes_something_else_of_a_mapping() -> None:
    status = {"__ansible_type": "datetime_date", "iso8601": "2026-01-01", "__ansible_vault": "x"}
    admitted = answers.admit("docker_disk_report", {"engine": {"root_dir": "/d", "driver_status": status}})
    assert admitted == ({"engine": {"root_dir": "/d", "driver_status": {"iso8601": "2026-01-01"}}}, ("__ansible_type", "__ansible_vault"))


def test_a_job_has_the_keys_of_ansibles_wrapper_and_nothing_else_has() -> None:
    started = {"ansible_job_id": "j1.2", "results_file": "/root/x", "started": 1, "finished": 0, "failed": 0}
    admitted = answers.admit("docker_clean", {**started, "ansible_facts": {"x": 1}}, job=True)
    assert admitted == ({**started, "started": True, "finished": False, "failed": False}, ("ansible_facts",))
    assert answers.admit("docker_clean", {**started, "failed": False}).dropped == ("ansible_job_id", "results_file", "started", "finished")


class Told(t.NamedTuple):
    """As Ansible's own types of warnings and errors are since 2.19."""

    event: t.Any


class Event(t.NamedTuple):
    msg: str


@pytest.mark.parametrize(("entry", "left_out"), [("w", 4_999_981), ({}, 4_999_001)])
def test_millions_of_warnings_are_counted_and_few_are_looked_at(entry: t.Any, left_out: int) -> None:
    began = time.process_time()
    values = answers.admit("docker_clean", {"warnings": ["first", *[entry] * 5_000_000]}).values
    assert time.process_time() - began < 1
    assert (values["warnings"][0], values["warnings"][-1]) == ("first", f"{left_out} more warnings of this host are left out")


def test_warnings_diff_and_traceback_come_in_as_bounded_text_that_can_be_seen() -> None:
    evil = "\x1b[2J\u202eevil\nPLAY RECAP\ud800"
    answer = {
        "failed": True, "msg": evil, "warnings": [evil, Told(Event(evil)), 7, {"msg": evil, "removed": True}, *["w"] * 99], "deprecations": [{"msg": evil, "x": 1}],
        "diff": {"prepared": f"- image a\n{evil}\n" + "+ x\n" * 2_000_000, "before_header": evil}, "exception": f"Traceback\n{evil}" + "x" * 10**6,
    }
    values = answers.admit("docker_clean", answer).values
    assert len(values["warnings"]) == answers.MAX_WARNINGS + 1
    assert all(text.isprintable() for text in (values["msg"], *values["warnings"]))
    diff = values["diff"]["prepared"]
    assert set(values["diff"]) == {"prepared"} and diff.startswith("- image a\n") and len(diff) <= answers.MAX_LINES_TEXT + 9
    for text in (diff, values["exception"]):
        assert all(line.isprintable() for line in text.split("\n"))
        text.encode()
    assert len(values["exception"]) < 20_000
    assert answers.admit("docker_clean", {"diff": ["x"]}) == ({}, ("diff",))


@pytest.mark.parametrize("text", ["\x1b[2J" * 10**6, '{"a": "\x01"}\n \t{"ansible_facts": {}}\r{"b": 1}\x85{\u2028{\x0c{', ""])
def test_what_is_no_answer_at_all_is_cut_made_visible_and_can_be_read_as_none(text: str) -> None:
    found = answers.no_answer(text)
    assert len(found) < 20_000 and all(line.isprintable() for line in found.split("\n"))
    assert not [line for line in found.splitlines() if line.strip().startswith("{")]


@pytest.mark.parametrize(
    ("module", "answer", "words"),
    [
        ("docker_clean", {"removed": [{"kind": "image"}, {"bytes": "5"}]}, "removed[1].bytes: a text, where a whole number is documented"),
        ("docker_clean", {"removed": {"kind": "image"}}, "removed: a mapping, where a list is documented"),
        ("docker_clean", {"removed": [None]}, "removed[0]: null, where a mapping is documented"),
        ("docker_clean", {"reclaimed_by_kind": {"image": True}}, "reclaimed_by_kind.image: a boolean, where a whole number is documented"),
        ("docker_clean", {"reclaimed_by_kind": {"a\x1b": []}}, "reclaimed_by_kind.a\ufffd: a list, where a whole number is documented"),
        ("docker_clean", {"changed": "yes"}, "changed: a text, where a boolean is documented"),
        ("docker_clean", {"failed": 0}, "failed: a whole number, where a boolean is documented"),
        ("docker_clean", {"free_after": 2**128}, "free_after: a number out of bounds"),
        ("docker_clean", {"free_after": -(10**400)}, "free_after: a number out of bounds"),
        ("docker_clean", {"free_after": 1.0}, "free_after: a number, where a whole number is documented"),
        ("docker_log_truncate", {"logs": [{"slow_seconds": float("nan")}]}, "logs[0].slow_seconds: a number out of bounds"),
        ("docker_log_truncate", {"logs": [{"slow_seconds": float("inf")}]}, "logs[0].slow_seconds: a number out of bounds"),
        ("docker_disk_report", {"usage": {"images": 5}}, "usage.images: a whole number, where a mapping is documented"),
        ("docker_disk_report", {"largest": {"images": [{"used_by": [7]}]}}, "largest.images[0].used_by[0]: a whole number, where a text is documented"),
    ],
)
def test_what_is_documented_otherwise_is_refused_with_place_and_reason(module: str, answer: dict[str, t.Any], words: str) -> None:
    with pytest.raises(answers.UnexpectedAnswer) as error:
        answers.admit(module, answer)
    assert str(error.value) == f"unexpected answer ({words})"


def test_lengths_of_sparse_files_that_a_container_made_cost_its_host_no_figure() -> None:
    """XFS, btrfs and tmpfs allow a file of 8 EiB that takes no block; anybody in a container can make some of them."""
    report = records.engine_result(1)
    long = 3 * (2**63 - 1)
    report["usage"] = {**report["usage"], "volumes": {**report["usage"]["volumes"], "logical_bytes": long, "apparent_bytes": long}}
    found = record_of(engine=report)
    assert (found["status"], found["usage"]["volumes"]["apparent_bytes"]) == ("ok", long)


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"engine": {"name": "x"}}, "docker_disk_report.engine.root_dir: missing"),
        ({"largest": {"images": [{"size": 1}]}}, "docker_disk_report.largest.images[0].name: missing"),
        ({"filesystems": [{"mount_point": "/", "size": 1, "used": None, "available": 1}]}, "docker_disk_report.filesystems[0].used: missing"),
    ],
)
def test_a_host_without_what_a_report_needs_needs_attention(engine: dict[str, t.Any], words: str) -> None:
    found = record_of(engine={**records.engine_result(1), **engine})
    assert (found["status"], found["error"]) == ("trouble", f"unexpected answer ({words})")
    assert found["engine"] is None and found["usage"] == {}


def test_the_controllers_refusal_is_the_hosts_trouble() -> None:
    refused = {"failed": True, "changed": False, "failure": "unexpected_answer", "msg": "docker_disk_report: unexpected answer (engine: a list, where a mapping is documented). x"}
    assert record_of(engine=refused)["error"].startswith("unexpected answer (engine: ")


def test_the_second_try_for_logs_adds_up_whatever_is_missing_in_it() -> None:
    first = {"changed": True, "logs": [{"name": "a"}, {"method": "none"}, {"method": "clone"}], "reclaimed_bytes": None}
    found = record_of(engine=records.engine_result(1), logs=first, logs_again={"logs": [{"method": "rewrite"}], "reclaimed_bytes": 5, "restarted": ["b"]})
    assert found["logs"] and [log["method"] for log in found["logs"]["logs"]] == [None, "clone", "rewrite"]
    assert (found["logs"]["changed"], found["logs"]["reclaimed_bytes"], found["logs"]["restarted"]) == (True, 5, ["b"])


# -- size ------------------------------------------------------------------------------------------

LARGE = 40_000_000
HUGE: dict[str, t.Callable[[], dict[str, t.Any]]] = {
    "text": lambda: {"clean": {**records.clean_result(0), "msg": "\u202e" * LARGE}},
    "entries": lambda: {"clean": {**records.clean_result(0), "removed": [{"kind": "image", "name": "x" * 40, "reason": "y" * 40}] * 300_000}},
    "empty entries": lambda: {"logs": {**records.log_result(), "logs": [{}] * 2_000_000}},
    # As many as come in: each becomes a record with all its fields.
    "some empty entries": lambda: {"logs": {**records.log_result(), "logs": [{}] * 60_000}},
    "empty mappings": lambda: {"engine": {**records.engine_result(1), "deleted_open": {"largest": [{}] * 70_000}}},
    "texts": lambda: {"clean": {**records.clean_result(0), "policy": ["\x1b" * 4096] * 10_000}},
    "names": lambda: {"engine": {**records.engine_result(1), "usage": {f"{number:0200}": {} for number in range(200_000)}}},
    "unknown keys": lambda: {"engine": {**records.engine_result(1), **{f"{number:040}": "x" for number in range(1_000_000)}}},
    "unknown value": lambda: {"engine": {**records.engine_result(1), "x": "y" * LARGE}},
    "four answers": lambda: {
        "engine": {**records.engine_result(1), "mounts": [{"path": "x" * 4000}] * 3900}, "clean": {**records.clean_result(0), "policy": ["x" * 4000] * 3900},
        "logs": {**records.log_result(), "restarted": ["x" * 4000] * 3900}, "logs_again": {**records.log_result(), "restarted": ["x" * 4000] * 3900},
    },
}


@pytest.mark.parametrize("name", HUGE)
def test_forty_megabytes_cost_a_moment_and_little_of_them_is_kept(name: str) -> None:
    host = records.hostvars("odd", **HUGE[name]())
    began = time.process_time()
    found = host_record.host_record(host)
    lines = fleet.fleet_table([found], "clean")
    text = page.fleet_page([found], "clean")
    dumped = json.dumps(found, indent=1, sort_keys=True)
    assert time.process_time() - began < 6
    assert len(dumped) < MAX_JSON and len(text) < 500_000 and len(lines) < 200


def test_an_honest_host_with_twenty_thousand_of_everything_comes_in_whole() -> None:
    ident = "5f2a" * 16
    path = f"/var/lib/docker/containers/{ident}/{ident}-json.log"
    log = {**records.log_result()["logs"][0], "container": ident, "path": path, "slow_seconds": 0.0, "repeats": True, "unbounded": True}
    entry = {"kind": "build_cache", "id": ident, "name": f"registry.example.com/team/application:{ident}", "bytes": GB, "reason": "unused for 34 days (last container)"}
    clean = {**records.clean_result(0), "removed": [entry] * 20_000}
    found = record_of(engine=records.engine_result(1), logs={**records.log_result(), "logs": [log] * 20_000}, clean=clean)
    assert found["status"] == "ok"
    assert found["clean"] and found["logs"] and (len(found["clean"]["removed"]), len(found["logs"]["logs"])) == (20_000, 20_000)
    assert 16_000_000 < len(json.dumps(found, indent=1)) < MAX_JSON
    assert len(host_record.logs_reclaimed({"logs": [log] * 20_000})) == 20_000


# -- anything at all -------------------------------------------------------------------------------

HONEST = [records.hostvars("web3", engine=records.engine_result(3), logs=records.log_result(), clean=records.clean_result(8 * GB)), records.hostvars("db", engine=records.DOWN)]
HONEST_RECORDS = [host_record.host_record(host) for host in HONEST]
VIEWS: tuple[tuple[str, bool], ...] = (("report", False), ("clean", False), ("clean", True))


def figures(lines: t.Sequence[str], table: str) -> list[list[str]]:
    """What the table says of the honest hosts, each with the lines below its own; data roots give way to others' figures."""
    blocks: list[list[str]] = []
    for line in lines:
        blocks = [*blocks[:-1], blocks[-1] + line.split()] if line.startswith(" ") and blocks else [*blocks, line.split()]
    return [block[:1] + block[2:] if table == "report" and block[0] == "web3" else block for block in blocks if block and block[0].strip(":,") in ("web3", "db")]


def rows(text: str) -> list[str]:
    """The honest host's row of the page."""
    return [line for line in text.split("\n") if line.startswith("<li data-v") and "<bdi>web3</bdi>" in line]


ALONE = {view: (figures(fleet.fleet_table(HONEST_RECORDS, *view), view[0]), rows(page.fleet_page(HONEST_RECORDS, *view))) for view in VIEWS}


def costs_only_itself(host: t.Mapping[str, t.Any]) -> None:
    """One odd host among honest ones: nothing fails, others have their rows, and its own part is bounded, visible, and JSON."""
    found = host_record.host_record(host)
    for view in VIEWS:
        lines = fleet.fleet_table([found, *HONEST_RECORDS], *view)
        text = page.fleet_page([found, *HONEST_RECORDS], *view)
        assert (figures(lines, view[0]), rows(text)) == ALONE[view]
        assert all(line.isprintable() and len(line) <= 100 for line in lines), [line for line in lines if len(line) > 100]
        assert len(lines) < 300 and len(text.encode()) < 500_000
    dumped = json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    assert len(dumped.encode()) < MAX_JSON
    assert json.loads(dumped) == found
    assert bool(host_record.host_trouble(found)) == (found["status"] in ("trouble", "unreachable"))
    for entry in host_record.logs_reclaimed(host.get("_cleanup_logs")):
        assert set(entry) == {"container", "bytes"} and 0 < entry["bytes"] < 2**60


_LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.sampled_from([0, -1, 2**59, -(2**59), 2**60, 2**63, 10**30, 2**127, -(2**127)]), st.floats(),
    st.text(st.characters(codec=None), max_size=20), st.sampled_from([*records.HOSTILE, "{{ 7 * 7 }}", "images", "\x85\x9b", "x" * 9999]),
)
JUNK = st.recursive(_LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)), max_leaves=5)


def _place(draw: st.DrawFn, value: t.Any) -> tuple[t.Any, t.Any]:
    """A container within a value and one of its keys or indices: down from the outside, so that small parts are met as often as large ones."""
    while True:
        keys = [key for key in (value if isinstance(value, dict) else range(len(value))) if key != "inventory_hostname"]
        key = draw(st.sampled_from(keys))
        within = value[key]
        if not isinstance(within, (dict, list)) or not within or draw(st.integers(0, 4)) == 0:
            return value, key
        value = within


_BASES = [
    {**HONEST[0], "inventory_hostname": "odd", "_cleanup_logs_again": records.log_result(GB)}, *records.clean_fleet()[:3],
    *records.report_fleet()[6:9], records.report_fleet(exact=False)[0], *records.hostile_fleet()[4:8:2],
]


@st.composite
def mutated_hosts(draw: st.DrawFn) -> dict[str, t.Any]:
    """A host's variables as the role registers them, with up to six places changed: other values, others' values, less, more, again."""
    host: dict[str, t.Any] = copy.deepcopy(draw(st.sampled_from(_BASES)))
    for _time in range(draw(st.integers(1, 6))):
        if len(host) < 2:
            break
        within, key = _place(draw, host)
        how = draw(st.sampled_from(("junk", "junk", "null", "other", "gone", "gone", "more", "again")))
        if how == "junk":
            within[key] = draw(JUNK)
        elif how == "null":
            within[key] = None
        elif how == "other":
            other, name = _place(draw, host)
            within[key] = copy.deepcopy(other[name])
        elif how == "gone":
            del within[key]
        elif how == "more" and isinstance(within, dict):
            within[draw(st.sampled_from([*ORDERS, *records.HOSTILE, "name", "size", "images"]))] = draw(JUNK)
        elif isinstance(within[key], list):
            within[key] = within[key] * draw(st.sampled_from((0, 2, 300)))
    return host


@settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(mutated_hosts())
@example({"inventory_hostname": "odd", "_cleanup_engine": {**records.engine_result(1), "engine": {"name": "x"}}})
@example({"inventory_hostname": "odd", "_cleanup_engine": {**records.engine_result(1), "filesystems": [{"mount_point": "/", "size": 1, "used": 2**59, "available": 2**59}]}})
def test_one_odd_host_costs_only_itself(host: dict[str, t.Any]) -> None:
    costs_only_itself(host)
