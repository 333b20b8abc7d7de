# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Batch by batch: who may be spared, and who speaks for those that were."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.plugin_utils import host_record
from ansible_collections.fleetclean.docker.plugins.plugin_utils.batches import Batch, batch_of
from conftest import COLLECTIONS

HOSTS = ["b", "a", "d", "c"]


class Play:
    def __init__(self, order: str | None = None, max_fail_percentage: float | None = None, strategy: str = "ansible.builtin.linear") -> None:
        self.strategy = strategy
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
    assert not batch(["b"], strategy="free").may_spare
    assert not batch(["b"], strategy="ansible.builtin.host_pinned").may_spare
    assert batch(["b"], strategy="debug").may_spare and batch(["b"], strategy="mitogen").may_spare
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


# -- what ansible-playbook does of it: its end, and for whom it fails -----------------------------------

DOWN = {"_cleanup_engine": {"failed": True, "failure": "engine_down", "msg": "docker_disk_report: engine does not answer."}}
NO_DOCKER = {"_cleanup_engine": {"failed": True, "failure": "no_engine", "msg": "docker_disk_report: no Docker here."}}
REFUSED = {"cleanup_images_older_than": "9 lives"}


def run(
    folder: Path, hosts: dict[str, dict[str, t.Any]], parts: list[str], *options: str, when: str = "true", is_rescued: bool = False,
    before: t.Sequence[dict[str, t.Any]] = (), **play: t.Any
) -> tuple[int, dict[str, str]]:
    """The code with which ansible-playbook ends, and the hosts that failed with their reasons; hosts are given what their modules answered."""
    common = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "cleanup_docker_host": "unix:///run/nowhere.sock"}
    (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": {name: {**common, **values} for name, values in hosts.items()}}}))
    role = {"name": "fleetclean.docker.cleanup", "rolespec_validate": False}
    tasks = [{"ansible.builtin.import_role": {**role, "tasks_from": part}, "vars": {"_cleanup_table": "clean"}, "when": when} for part in parts]
    rescued = [{"block": tasks, "rescue": [{"ansible.builtin.meta": "noop"}]}]
    (folder / "play.json").write_text(json.dumps([*before, {"hosts": "all", "gather_facts": False, "tasks": rescued if is_rescued else tasks, **play}]))
    command = [sys.executable, "-m", "ansible", "playbook", "-i", str(folder / "hosts.json"), str(folder / "play.json"), *options]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    ours = {"ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_LOCAL_TEMP": str(folder), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
    done = subprocess.run(command, cwd=folder, env={**kept, "LC_ALL": "C.UTF-8", **ours}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    failed = {}
    for line in done.stdout.splitlines():
        name, separator, words = line.partition("]: FAILED! => ")
        if separator:
            failed[name.partition("[")[2]] = json.loads(words)["msg"]
    return done.returncode, failed


PARTS = ["preflight", "summary"]


def test_what_an_earlier_play_noted_does_not_count(tmp_path: Path) -> None:
    """A role that is included under `when` overwrites nothing on hosts where it is skipped."""
    hosts = {"a": DOWN, "b": NO_DOCKER, "c": NO_DOCKER}
    role = {"name": "fleetclean.docker.cleanup", "rolespec_validate": False}

    def tasks(when: str) -> list[dict[str, t.Any]]:
        return [{"ansible.builtin.include_role": {**role, "tasks_from": part}, "vars": {"_cleanup_table": "clean"}, "when": when} for part in PARTS]

    rescued = [{"block": tasks("true"), "rescue": [{"ansible.builtin.meta": "noop"}]}]
    plays = [{"hosts": "all", "gather_facts": False, "tasks": rescued}]
    code, failed = run(tmp_path, hosts, [], serial=[1, 2], before=plays, tasks=tasks("inventory_hostname != 'b'"))
    assert (code, [name for name, words in failed.items() if "Of earlier batches" in words]) == (2, ["c"])


@pytest.mark.parametrize(
    ("hosts", "keywords", "failing"),
    [
        # The role is skipped on the first host of the last batch.
        ({"a": DOWN, "b": NO_DOCKER, "c": NO_DOCKER, "d": NO_DOCKER}, {"serial": [1, 4], "when": "inventory_hostname != 'b'"}, {"c"}),
        # Who is in trouble itself speaks.
        ({"a": DOWN, "b": NO_DOCKER, "c": DOWN, "d": DOWN}, {"serial": [1, 4]}, {"c", "d"}),
        # Hosts that failed have left the batch before the last of many are asked.
        ({"a": DOWN, **{name: NO_DOCKER for name in "bcdefghi"}}, {"serial": [1, 9]}, {"b"}),
        # Nobody knows who is well where hosts run ahead.
        ({"a": DOWN, "b": NO_DOCKER, "c": NO_DOCKER}, {"serial": [1, 4], "strategy": "free"}, {"a"}),
    ],
    ids=["skipped", "in trouble", "many", "free"],
)
def test_for_those_that_were_spared_one_host_of_the_last_batch_fails(
    tmp_path: Path, hosts: dict[str, dict[str, t.Any]], keywords: dict[str, t.Any], failing: set[str]
) -> None:
    code, failed = run(tmp_path, hosts, PARTS, "--forks", "2", **keywords)
    assert (code, set(failed)) == (2, failing), failed
    speaking = [name for name, words in failed.items() if "Of earlier batches 1 host needs a look. a: engine does not answer." in words]
    assert speaking == ([] if "strategy" in keywords else [min(failing)])
    if failing == {"b"}:
        assert failed["b"].endswith(" b is well: it fails for them.")


def test_who_failed_and_was_rescued_was_not_spared(tmp_path: Path) -> None:
    hosts = {"a": DOWN, "b": NO_DOCKER, "c": NO_DOCKER}
    code, failed = run(tmp_path, hosts, PARTS, is_rescued=True, serial=2)
    assert (code, set(failed)) == (0, {"a"})


@pytest.mark.parametrize(
    ("options", "failing"),
    [((), {"b"}), (("--skip-tags", "report"), {"a"}), (("--tags", "other"), {"a"}), (("--tags", "clean,other"), {"b"})],
    ids=["", "skip report", "other", "clean"],
)
def test_a_host_is_spared_before_the_role_begins_only_where_tags_let_it_end(tmp_path: Path, options: tuple[str, ...], failing: set[str]) -> None:
    code, failed = run(tmp_path, {"a": REFUSED, "b": {}}, ["main"], *options, serial=1)
    assert (code, set(failed)) == (2, failing), failed
    assert all("9 lives" in words for words in failed.values())
