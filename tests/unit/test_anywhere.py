# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the action plugin does to its own process, and what it lets in of what a host writes."""

from __future__ import annotations

import gc
import importlib
import inspect
import json
import time
import typing as t
from types import SimpleNamespace

import pytest
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.fleetclean.docker.plugins.action import docker_clean, docker_disk_report
from ansible_collections.fleetclean.docker.plugins.plugin_utils import anywhere


@pytest.mark.parametrize("before", [True, False])
def test_the_garbage_collector_rests_while_the_module_is_made_and_is_as_it_was_afterwards(before: bool) -> None:
    try:
        if not before:
            gc.disable()
        with pytest.raises(ConnectionError), anywhere._without_collector():
            assert not gc.isenabled()
            raise ConnectionError("whatever the connection raises")
        assert gc.isenabled() == before
    finally:
        gc.enable()


# -- the door ----------------------------------------------------------------------------------------


class Task(t.NamedTuple):
    action: str = "fleetclean.docker.docker_clean"
    resolved_action: str = "fleetclean.docker.docker_clean"
    args: t.Mapping[str, t.Any] = {}


#: ansible-core has several ways to read what modules write, since 2.19.
PROFILE = ("legacy",) if "profile" in inspect.signature(ActionBase._parse_returned_data).parameters else ()


@pytest.fixture
def action() -> t.Any:
    """An action plugin without a host. What a host writes is read by Ansible's own method, through ours."""
    found = docker_clean.ActionModule.__new__(docker_clean.ActionModule)
    found._used_interpreter = None
    found._task = Task()
    found._inventory_name = "web1"
    return found


def parsed(action: t.Any, stdout: str) -> dict[str, t.Any]:
    """What every ansible-core is given to read."""
    return dict(json.loads(action._admitted_output({"stdout": stdout, "stderr": "", "rc": 0})["stdout"]))


def test_nothing_of_an_answer_but_what_is_documented_gets_to_ansible(action: t.Any) -> None:
    orders = {"ansible_facts": {"cleanup_report_dir": "/etc"}, "add_host": {}, "_ansible_no_log": True, "results": [], "unreachable": True}
    found = parsed(action, json.dumps({"changed": True, "removed": [{"kind": "image", "x": 1}], **orders, "invocation": {}}))
    (warning,) = found.pop("warnings")
    assert found == {"changed": True, "removed": [{"kind": "image"}]}
    assert warning.startswith("docker_clean on web1: the answer has keys that the module does not document; they are dropped: x, ansible_facts, add_host,")


def test_an_answer_of_another_type_is_a_failure_with_place_and_reason(action: t.Any) -> None:
    found = parsed(action, json.dumps({"changed": True, "removed": [{"bytes": "5"}], "ansible_facts": {}}))
    assert (found["failed"], found["changed"], found["failure"]) == (True, True, "unexpected_answer")
    assert found["msg"].startswith("docker_clean: unexpected answer (removed[0].bytes: a text, where a whole number is documented). ")
    assert set(found) == {"failed", "changed", "failure", "msg"}


@pytest.mark.parametrize(
    ("top", "items", "users", "admitted"),
    [(3, 3, 10_000, True), (3, 20_000, 1, False), ("3", 20_000, 1, False), ("20", 20, 100, True), (-1, 20_000, 1, True), (20_000, 20_000, 1, True)],
)
def test_a_report_is_as_large_as_what_was_asked_for(top: object, items: int, users: int, admitted: bool) -> None:
    """Ansible takes a second and more for each 200 KB of a host's answer, and all others wait."""
    report = docker_disk_report.ActionModule.__new__(docker_disk_report.ActionModule)
    report._task, report._inventory_name = Task(args={"top": top}), "web1"
    item = {"id": "a" * 64, "name": "team/app:1", "size": 1, "used_by": ["team_app_1.abcdefghijklmnopqrstuvwxyz"] * users, "tags": ["team/app:1"]}
    found = parsed(report, json.dumps({"changed": False, "largest": {"images": [item] * items}}))
    assert (len(found["largest"]["images"]) == items) if admitted else ("more than 2 MB" in found["msg"])


@pytest.mark.parametrize(
    ("stdout", "words"),
    [
        ('{"x": "' + "y" * 40_000_000 + '"}', "the whole: more than 19 MB"),
        ('{"x": ' + "[" * 200_000 + "]" * 200_000 + "}", "the whole: lists or mappings without end"),
        ('{"free_after": Infinity}', "free_after: a number, where a whole number is documented"),
        ('{"free_after": ""}' + "\n}}{" * 4_000_000, "free_after: a text, where a whole number is documented"),
    ],
)
def test_an_answer_without_bounds_is_refused_in_a_moment(action: t.Any, stdout: str, words: str) -> None:
    began = time.process_time()
    assert parsed(action, stdout)["msg"].startswith(f"docker_clean: unexpected answer ({words})")
    assert time.process_time() - began < 2


@pytest.mark.parametrize("stdout", ["", "\x1b[2Jno answer", '{"a": ', "[1]", '{"a": 1} x', '{"n": ' + "9" * 10_000 + "}", '{"ansible_facts": {"x": "\x01"}}'])
def test_what_is_no_answer_is_ansibles_own_failure_with_the_text_made_visible(action: t.Any, stdout: str) -> None:
    output = action._admitted_output({"stdout": stdout, "stderr": "\x1b]0;owned\x07", "rc": 0})
    assert "\x1b" not in output["stdout"] + output["stderr"]
    found = action._parse_returned_data({"stdout": stdout, "stderr": "", "rc": 0}, *PROFILE)
    assert getattr(found, "failed", None) or found["failed"]


@pytest.mark.parametrize(("junk", "told"), [("", False), ("\n\n", False), ("\n\x1b[2Jmore\n{\n", True), ("\nan answer {} in words\n" * 9, True)])
def test_what_is_written_after_an_answer_is_left_out_and_told_in_one_visible_line(
    action: t.Any, monkeypatch: pytest.MonkeyPatch, junk: str, told: bool
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(Display, "warning", lambda _self, msg, *_more, **_named: warnings.append(msg))
    assert parsed(action, 'before\n{"changed": false}' + junk) == {"changed": False}
    assert len(warnings) == told
    assert all(text.isprintable() and len(text) < 400 for text in warnings)


@pytest.mark.parametrize("name", ["docker_clean", "docker_disk_report", "docker_log_truncate"])
def test_each_action_plugin_is_the_door_of_its_own_module(name: str) -> None:
    plugin = importlib.import_module(f"ansible_collections.fleetclean.docker.plugins.action.{name}").ActionModule
    assert issubclass(plugin, anywhere.ActionModule) and plugin._module == name


def test_a_job_that_is_tried_again_is_a_job_again(action: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """``until`` with ``async``: Ansible runs the same action plugin again."""
    jobs: list[bool] = []

    def execute(name: str = "", *_args: t.Any, **named: t.Any) -> dict[str, t.Any]:
        jobs.extend([named["wrap_async"]] if not name else [])
        return {"finished": True} if name else {"started": True, "ansible_job_id": "j1.2"}

    action._task = SimpleNamespace(async_val=60, poll=1, args={}, environment=None)
    action._connection = SimpleNamespace(has_native_async=False)
    monkeypatch.setattr(ActionBase, "run", lambda *_args: {})
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    for method, instead in (("_execute_module", execute), ("_stay_off_the_disk", lambda _is_job: None), ("_remote_expand_user", str), ("get_shell_option", lambda *_args, **_named: "~")):
        setattr(action, method, instead)
    assert [action.run(None, {}), action.run(None, {})] == [{"finished": True}] * 2
    assert jobs == [True, True]
    assert action._task.async_val == 0  # Ansible would wait for it itself, past the door
