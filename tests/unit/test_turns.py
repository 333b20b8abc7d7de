# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which host tells of the fleet where hosts do not wait for each other."""

from __future__ import annotations

import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible import constants
from ansible_collections.fleetclean.docker.plugins.plugin_utils import fleet, turns

NAMES = ["a", "b/" + "x" * 300, "c"]
STARTED = {"_cleanup_preflight": {"report": {}, "clean": {}, "logs": {}}}


@pytest.fixture(autouse=True)
def local_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "DEFAULT_LOCAL_TMP", str(tmp_path))
    return tmp_path


def comes(name: str, strategy: str = "free", play: str = "p1", well: t.Sequence[str] = NAMES, **hostvars: t.Any) -> bool:
    block = SimpleNamespace(_parent=SimpleNamespace(_parent=None, _play=SimpleNamespace(strategy=strategy, _uuid=play)))
    variables = {"inventory_hostname": name, "ansible_play_batch": NAMES, "ansible_play_hosts": well,
                 "hostvars": {**dict.fromkeys(NAMES, STARTED), **hostvars}}
    return turns.is_last(SimpleNamespace(_parent=block), variables)


@pytest.mark.parametrize("strategy", ["free", "ansible.builtin.free", "host_pinned", "mitogen_free", "mitogen_host_pinned"])
def test_the_last_host_that_comes_tells_and_again_in_the_next_turn_and_play(strategy: str) -> None:
    for play in ("p1", "p1", "p2"):
        assert [comes(name, strategy, play) for name in NAMES] == [False, False, True]


@pytest.mark.parametrize("strategy", ["linear", "ansible.builtin.linear", "mitogen_linear", "debug", ""])
def test_where_hosts_wait_for_each_other_the_one_that_is_asked_tells(strategy: str) -> None:
    assert comes(NAMES[1], strategy)


def test_hosts_that_never_come_are_not_waited_for() -> None:
    assert not comes("a", well=["a", "c"])
    assert comes("c", play="p2", well=["c"], c=STARTED)
    out = {NAMES[1]: {"_cleanup_preflight": {"failed": True, "msg": "x"}}, "c": {}}
    assert comes("a", play="p3", **out)
    # One that nobody knew of has come after all: it is the last now.
    assert comes("c", play="p3", **out)


@pytest.mark.parametrize("play", range(5))
def test_exactly_one_tells_of_many_that_come_at_once(play: int) -> None:
    names = [f"h{number}" for number in range(40)]
    block = SimpleNamespace(_play=SimpleNamespace(strategy="free", _uuid=str(play)))
    variables = {"ansible_play_batch": names, "ansible_play_hosts": names, "hostvars": dict.fromkeys(names, STARTED)}
    with ThreadPoolExecutor(20) as pool:
        told = list(pool.map(lambda name: turns.is_last(SimpleNamespace(_parent=block), {**variables, "inventory_hostname": name}), names))
    assert sum(told) == 1


def test_a_controller_without_room_has_a_table_too_many_and_not_none(local_tmp: Path) -> None:
    (local_tmp / "file").write_text("")
    constants.DEFAULT_LOCAL_TMP += "/file"
    assert comes("a") and comes("c")


def test_a_host_without_all_its_steps_is_still_running_and_had_not_nothing_to_do() -> None:
    engine = {"changed": False, "engine": {"root_dir": "/var/lib/docker"}, "filesystems": [
        {"mount_point": "/var/lib/docker", "size": 100, "used": 50, "available": 50, "holds": []}]}
    done = {**STARTED, "inventory_hostname": "done", "_cleanup_engine": engine, "_cleanup_clean": {"skipped": True}}
    at_work = {**STARTED, "inventory_hostname": "work", "_cleanup_engine": engine}
    asked = {**STARTED, "inventory_hostname": "asked"}
    later = {"inventory_hostname": "later"}
    bad = {**STARTED, "inventory_hostname": "bad", "_cleanup_engine": {"failed": True, "msg": "x"}}
    records = [turns.record(hostvars, ["_cleanup_clean"]) for hostvars in (done, at_work, asked, later, bad)]
    assert [record["status"] for record in records] == ["ok", "running", "running", "not_asked", "trouble"]
    assert not any(fleet.host_trouble(record) for record in records[:4])
    table = fleet.fleet_table(records, "clean")
    words = " ".join(" ".join(table).split())
    assert "5 hosts: 0 cleaned, 1 had nothing to do, 1 not asked, 2 still running, 1 needs a look" in words
    assert [" ".join(line.split()) for line in table if line.startswith(("work", "asked"))] == [
        f"{name} still running: it has not come to the end yet" for name in ("work", "asked")]
    assert turns.record(at_work)["status"] == "ok"  # of a report that is all
