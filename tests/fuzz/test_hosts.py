# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Host answers to record, table, page and JSON: whatever one host says, it costs only itself.

``report`` is the one entry to the code under test.
"""

from __future__ import annotations

import copy
import json
import typing as t

from ansible_collections.fleetclean.docker.plugins.plugin_utils import fleet, page
from hypothesis import example
from hypothesis import strategies as st

from tests import records
from tests.fuzz.budget import fuzz
from tests.fuzz.mutations import mutated

_GOOD = {"report": records.report_fleet()[0], "clean": records.clean_fleet()[0]}
_ANSWERS = {"report": [*records.report_fleet(False)[:2], *records.report_fleet()[-3:], records.hostile_fleet()[2]], "clean": records.clean_fleet()}
#: Of one host, in JSON and in the page: what it says has an end.
MOST_BYTES = 1_000_000


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


class Report(t.NamedTuple):
    lines: list[str]
    page: str
    json: str


def report(hostvars: t.Sequence[t.Mapping[str, t.Any]], table: str, check: bool) -> Report:
    """As the role's report.yml makes them."""
    found = [fleet.host_record(variables) for variables in hostvars]
    for variables, record in zip(hostvars, found):
        fleet.host_trouble(record)
        fleet.logs_reclaimed(variables.get("_cleanup_logs"))
    return Report(fleet.fleet_table(found, table, check), page.fleet_page(found, table, check), json.dumps(found))


def without(hostvars: dict[str, t.Any], *path: str) -> dict[str, t.Any]:
    """A host's variables without what stands there."""
    changed = copy.deepcopy(hostvars)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    del holder[path[-1]]
    return changed


def judge(hostvars: dict[str, t.Any], table: str, check: bool) -> None:
    good = {**_GOOD[table], "inventory_hostname": "the-good-one"}
    alone = report([good], table, check)
    found = report([good, hostvars], table, check)
    assert all(isinstance(line, str) and line.isprintable() for line in found.lines), "the table moves a cursor"
    for line in alone.lines:
        head = line[:12]
        assert head != "the-good-one" or any(other.startswith(head) for other in found.lines), "the good host's line is gone"
    assert "the-good-one" in found.page
    json.loads(found.json)
    found.page.encode()
    assert len(found.json) < MOST_BYTES, f"{len(found.json)} bytes of JSON"
    assert len(found.page) < MOST_BYTES, f"{len(found.page)} bytes of page"
    assert sum(map(len, found.lines)) < MOST_BYTES / 10


@fuzz(200, hostvars=mutated([*_ANSWERS["report"], *_ANSWERS["clean"]], large=True), table=st.sampled_from(["report", "clean"]), check=st.booleans())
@example(hostvars=without(_GOOD["report"], "_cleanup_engine", "engine", "root_dir"), table="report", check=False)
def test_what_one_host_says_costs_only_itself(hostvars: t.Any, table: str, check: bool) -> None:
    said = hostvars if isinstance(hostvars, dict) else {"_cleanup_engine": hostvars}
    judge({**said, "inventory_hostname": "bad"}, table, check)  # the name is the controller's


@fuzz(20, answer=anything, key=st.sampled_from(["engine", "logs", "clean"]))
@example(answer={"engine": {}}, key="engine")
def test_an_answer_of_another_module_is_said_to_be_none(answer: t.Any, key: str) -> None:
    for table in ("report", "clean"):
        judge({"inventory_hostname": "bad", f"_cleanup_{key}": answer}, table, False)
