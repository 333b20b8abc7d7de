# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which host tells of the fleet where hosts do not wait for each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible import constants
from ansible_collections.fleetclean.docker.plugins.plugin_utils import fleet, turns
from conftest import COLLECTIONS

NAMES = ["a", "b/" + "x" * 300, "c"]


@pytest.fixture(autouse=True)
def local_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "DEFAULT_LOCAL_TMP", str(tmp_path))
    return tmp_path


def task(strategy: str = "free", play: str = "p1") -> t.Any:
    block = SimpleNamespace(_parent=SimpleNamespace(_parent=None, _play=SimpleNamespace(strategy=strategy, _uuid=play)))
    return SimpleNamespace(_parent=block)


def begin(names: t.Sequence[str] = NAMES, *where: str) -> None:
    for name in names:
        turns.begin(task(*where), {"inventory_hostname": name})


def comes(name: str, *where: str, batch: t.Sequence[str] = NAMES, well: t.Sequence[str] = NAMES) -> bool:
    return turns.come(task(*where), {"inventory_hostname": name, "ansible_play_batch": batch, "ansible_play_hosts": well}).is_last


@pytest.mark.parametrize("strategy", ["free", "ansible.builtin.free", "host_pinned", "mitogen_free", "mitogen_host_pinned"])
def test_the_last_host_that_comes_tells_and_again_in_the_next_turn_and_play(strategy: str) -> None:
    for play in ("p1", "p1", "p2"):
        begin(NAMES, strategy, play)
        assert [comes(name, strategy, play) for name in NAMES] == [False, False, True]


@pytest.mark.parametrize("strategy", ["linear", "ansible.builtin.linear", "mitogen_linear", "debug", ""])
def test_where_hosts_wait_for_each_other_the_one_that_is_asked_tells(strategy: str, local_tmp: Path) -> None:
    begin(NAMES, strategy)
    assert comes(NAMES[1], strategy)
    assert not list(local_tmp.iterdir())


def test_hosts_that_never_come_are_not_waited_for() -> None:
    begin()
    assert not comes("a", well=["a", "c"])
    assert comes("c", well=["c"])
    begin(["a"], "free", "p2")  # the others' variables were refused
    assert comes("a", "free", "p2")
    # One that nobody knew of has come after all: it is the last now.
    begin(["c"], "free", "p2")
    assert comes("c", "free", "p2")


def test_a_second_time_for_some_hosts_only_and_batch_by_batch() -> None:
    begin()
    assert [comes(name) for name in NAMES] == [False, False, True]
    begin(["a"])
    assert comes("a")
    for name in NAMES:
        begin([name], "free", "serial")
        assert comes(name, "free", "serial", batch=[name])


@pytest.mark.parametrize("play", range(5))
def test_exactly_one_tells_of_many_that_come_at_once(play: int) -> None:
    names = [f"h{number}" for number in range(40)]
    begin(names)
    with ThreadPoolExecutor(20) as pool:
        told = list(pool.map(lambda name: comes(name, batch=names, well=names), names))
    assert sum(told) == 1


def test_a_controller_without_room_has_a_table_too_many_and_not_none(local_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (local_tmp / "file").write_text("")
    monkeypatch.setattr(constants, "DEFAULT_LOCAL_TMP", str(local_tmp / "file"))
    begin()
    assert comes("a") and comes("c")


def test_a_host_that_has_not_come_is_still_running_and_had_not_nothing_to_do() -> None:
    begin()
    turn = turns.come(task(), {"inventory_hostname": "c", "ansible_play_batch": NAMES, "ansible_play_hosts": NAMES})
    assert turn == turns.Turn(False, NAMES[:2])
    engine = {"changed": False, "engine": {"root_dir": "/var/lib/docker"}, "filesystems": [
        {"mount_point": "/var/lib/docker", "size": 100, "used": 50, "available": 50, "holds": []}]}
    hosts = {"done": {"_cleanup_engine": engine}, "work": {"_cleanup_engine": engine}, "asked": {}, "later": {}, "bad": {"_cleanup_engine": {"failed": True, "msg": "x"}}}
    records = [turns.record({**hostvars, "inventory_hostname": name}, ["work", "asked", "bad"]) for name, hostvars in hosts.items()]
    assert [record["status"] for record in records] == ["ok", "running", "running", "not_asked", "trouble"]
    assert not any(fleet.host_trouble(record) for record in records[:4])
    table = fleet.fleet_table(records, "clean")
    words = " ".join(" ".join(table).split())
    assert "5 hosts: 0 cleaned, 1 had nothing to do, 1 not asked, 2 still running, 1 needs a look" in words
    assert [" ".join(line.split()) for line in table if line.startswith(("work", "asked"))] == [
        f"{name} still running: it has not come to the end yet" for name in ("work", "asked")]


def test_who_came_last_tells_in_a_later_task_and_nobody_else_does() -> None:
    for name in NAMES:
        turns.begin(task(), {"inventory_hostname": name})
    for name in NAMES:
        comes(name)
        assert not any(turns.tells(task(), {"inventory_hostname": other}) for other in NAMES if other != name or name != NAMES[-1])
    assert turns.tells(task(), {"inventory_hostname": NAMES[-1]})
    assert not turns.tells(task(), {"inventory_hostname": NAMES[-1]}), "it told"
    assert turns.tells(task("linear"), {"inventory_hostname": NAMES[0]}), "where all come together Ansible asks one"


def test_a_play_of_many_hosts_that_do_not_wait_for_each_other_prints_one_table(tmp_path: Path) -> None:
    """Ansible gives each host's answer to all hosts where ``run_once`` is set, under free as well."""
    names = [f"h{number}" for number in range(10)]
    answer = {"failed": True, "failure": "no_engine", "msg": "docker_disk_report: no Docker here."}
    common = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "_cleanup_engine": answer}
    (tmp_path / "hosts.json").write_text(json.dumps({"all": {"hosts": dict.fromkeys(names, common)}}))
    role = {"name": "fleetclean.docker.cleanup", "rolespec_validate": False}
    parts = [{"ansible.builtin.import_role": {**role, "tasks_from": part}, "vars": {"_cleanup_table": "clean"}} for part in ("preflight", "summary")]
    (tmp_path / "play.json").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "strategy": "free", "tasks": parts}]))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    ours = {"ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_LOCAL_TEMP": str(tmp_path), "ANSIBLE_NOCOLOR": "1", "LC_ALL": "C.UTF-8"}
    command = [sys.executable, "-m", "ansible", "playbook", "-i", str(tmp_path / "hosts.json"), str(tmp_path / "play.json"), "--forks", "10"]
    done = subprocess.run(command, cwd=tmp_path, env={**kept, **ours}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (fleet_line,) = [line for line in done.stdout.splitlines() if line.startswith("fleet ")]
    assert "10 hosts" in fleet_line and "10 without Docker" in fleet_line
    assert "still running" not in done.stdout
