# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Batch by batch: who may be spared, and who speaks for those that were."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.fleetclean.docker.plugins.plugin_utils import host_record
from ansible_collections.fleetclean.docker.plugins.plugin_utils.batches import Batch, batch_of

HOSTS = ["b", "a", "d", "c"]


class Play:
    def __init__(self, order: str | None = None, max_fail_percentage: float | None = None) -> None:
        self.order = order
        self.max_fail_percentage = max_fail_percentage


class Task:
    """A task in two blocks, the outer of which knows the play; as Ansible has them."""

    def __init__(self, play: Play, any_errors_fatal: bool = False) -> None:
        self.any_errors_fatal = any_errors_fatal
        block: t.Any = type("Block", (), {})()
        block._play = play
        self._parent = type("TaskInclude", (), {})()
        self._parent._parent = block


def batch(hosts: list[str], removed: t.Collection[str] = (), any_errors_fatal: bool = False, **play: t.Any) -> Batch:
    well = [name for name in HOSTS if name not in removed]
    names = {"ansible_play_hosts_all": HOSTS, "ansible_play_hosts": well, "ansible_play_batch": [name for name in hosts if name in well]}
    return batch_of(Task(Play(**play), any_errors_fatal), {**names, "inventory_hostname": hosts[0]})


@pytest.mark.parametrize(
    ("hosts", "order", "earlier", "may_spare"),
    [
        (["b"], None, [], True),
        (["a"], None, ["b"], True),
        (["c"], None, ["b", "a", "d"], False),
        (["b", "a"], "inventory", [], True),
        (["d", "c"], "inventory", ["b", "a"], False),
        (["b"], "reverse_inventory", ["c", "d", "a"], False),
        (["c"], "reverse_inventory", [], True),
        (["d"], "sorted", ["a", "b", "c"], False),
        (["a"], "reverse_sorted", ["d", "c", "b"], False),
        (HOSTS, None, [], False),
    ],
)
def test_a_host_may_be_spared_as_long_as_others_have_their_turn_later(hosts: list[str], order: str | None, earlier: list[str], may_spare: bool) -> None:
    found = batch(hosts, order=order)
    assert (list(found.earlier), found.is_last, found.may_spare) == (earlier, not may_spare, may_spare)


def test_nobody_is_spared_where_failures_count_or_the_last_batch_is_not_known() -> None:
    assert not batch(["b"], any_errors_fatal=True).may_spare
    assert not batch(["b"], max_fail_percentage=0).may_spare
    assert not batch(["b"], order="shuffle").may_spare
    assert batch(["b"]).may_spare


def test_hosts_that_failed_are_waited_for_by_nobody() -> None:
    assert batch(["d"], removed=["c"]).is_last
    assert batch(["b"], removed=["a", "d", "c"]) == Batch(["b"], (), True, False)
    assert batch(["d", "c"], removed=["c"]).hosts == ["d"]


def test_a_host_whose_turn_has_not_come_is_told_from_one_whose_variables_were_refused() -> None:
    later = host_record.host_record({"inventory_hostname": "a"})
    assert (later["status"], later["error"]) == ("not_asked", "was not asked: its turn has not come")
    assert host_record.host_trouble(later) == ""
    words = "cleanup_images_older_than: \x1b[2J is not a duration"
    for preflight in ({"failed": True, "msg": words}, {"refused": words, "report": {}}):
        refused = host_record.host_record({"inventory_hostname": "a", "_cleanup_preflight": preflight})
        assert refused["status"] == "refused" and refused["error"].isprintable()
        assert refused["error"].startswith("was not asked: its variables were refused: cleanup_images_older_than: ")
        assert host_record.host_trouble(refused) == refused["error"]
