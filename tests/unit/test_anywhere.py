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
from ansible.errors import AnsibleConnectionFailure, AnsibleError
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
def test_what_is_no_answer_is_a_failure_with_the_text_made_visible(action: t.Any, stdout: str) -> None:
    output = action._admitted_output({"stdout": stdout, "stderr": "\x1b]0;owned\x07", "rc": 0})
    assert "\x1b" not in output["stdout"] + output["stderr"] and "\\u001b" not in output["stdout"]
    found = action._parse_returned_data({"stdout": stdout, "stderr": "", "rc": 0}, *PROFILE)
    assert getattr(found, "failed", None) or found["failed"]


def test_what_is_no_answer_is_told_with_its_last_line_and_the_next_step_and_not_as_a_fault_of_json(action: t.Any) -> None:
    found = parsed(action, "")
    assert found["msg"] == "docker_clean: no answer from the host; it wrote nothing and ended with 0. Run it with -vvv to see all that the host wrote."
    raw = {"stdout": "", "stderr": "sudo: sorry, you must have a tty to run sudo\n", "rc": 1}
    found = action._parse_returned_data(raw, *PROFILE)
    found = getattr(found, "result", found)  # ansible-core has several types of it, since 2.19
    assert (found["failure"], found["rc"], found["module_stderr"]) == ("no_answer", 1, raw["stderr"])
    assert found["msg"].startswith("docker_clean: no answer from the host; it wrote last: sudo: sorry, you must have a tty to run sudo. Let this user's sudo ")
    assert "json" not in found["msg"].lower()


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
    action._connection = SimpleNamespace(has_native_async=False, _shell=SimpleNamespace(tmpdir=None))
    monkeypatch.setattr(ActionBase, "run", lambda *_args: {})
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    for method, instead in (("_execute_module", execute), ("_stay_off_the_disk", lambda _is_job, _vars: None), ("_remote_expand_user", str), ("get_shell_option", lambda *_args, **_named: "~")):
        setattr(action, method, instead)
    assert [action.run(None, {}), action.run(None, {})] == [{"finished": True}] * 2
    assert jobs == [True, True]
    assert action._task.async_val == 0  # Ansible would wait for it itself, past the door


# -- ways onto a host ------------------------------------------------------------------------------


class Shell:
    """The options of a shell plugin. ``tmpdir``: the folder on the host that was made, if one was."""

    def __init__(self) -> None:
        self.options: dict[str, t.Any] = {"remote_tmp": "~/.ansible/tmp", "system_tmpdirs": ["/var/tmp"], "async_dir": "~/.ansible_async"}
        self.tmpdir = None

    def get_option(self, name: str) -> t.Any:
        return self.options[name]

    def set_option(self, name: str, value: t.Any) -> None:
        self.options[name] = value


class Connection(Shell):
    """A connection to a host whose sudo may want a terminal, which ssh has only where nothing is piped in."""

    has_native_async = False
    become = True

    def __init__(self, origin: str = "default", wants_terminal: bool = False) -> None:
        super().__init__()
        self.options = {"pipelining": False}
        self.origin, self.wants_terminal = origin, wants_terminal
        self._shell = Shell()

    def get_option_and_origin(self, name: str, _variables: object) -> tuple[t.Any, str]:
        return self.options[name], self.origin


MUTE = {"stdout": "", "stderr": "sudo: sorry, you must have a tty to run sudo\n", "rc": 1}


def on_host(action: t.Any, monkeypatch: pytest.MonkeyPatch, connection: Connection, poll: int = 0, async_val: int = 0) -> list[str]:
    """Let the action run on a host that is none; what is done there, in words."""
    done: list[str] = []
    action._task = SimpleNamespace(async_val=async_val, poll=poll, args={}, environment=None, action=Task.action)
    action._connection = connection

    def execute(_self: object, module_name: str | None = None, wrap_async: bool = False, **_named: t.Any) -> t.Any:
        pipelining = connection.options["pipelining"] and not wrap_async
        done.append(f"run {module_name or 'ours'}{' as a job' if wrap_async else ''}{'' if pipelining else ' without pipelining'}")
        if pipelining and connection.wants_terminal:
            return action._parse_returned_data(MUTE, *PROFILE)
        if wrap_async:
            return {"started": True, "ansible_job_id": "j12.34", "results_file": f"{connection._shell.options['async_dir']}/j12.34"}
        return {"changed": False, "free_after": 5, **({"finished": True} if module_name else {})}

    def command(cmd: str, in_data: bytes | None = None, **_named: t.Any) -> dict[str, t.Any]:
        done.append(cmd)
        refused = connection.wants_terminal and in_data
        return {"rc": 1 if refused else 0, "stdout": "" if refused else cmd.rpartition(" ")[2], "stderr": ""}

    monkeypatch.setattr(ActionBase, "run", lambda *_args: {})
    monkeypatch.setattr(ActionBase, "_execute_module", execute)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    for name, instead in (
        ("_is_pipelining_enabled", lambda _style, is_job=False: connection.options["pipelining"] and not is_job),
        ("_make_tmp_path", lambda: done.append(f"folder in {connection._shell.options['remote_tmp']}")),
        ("_low_level_execute_command", command), ("_remove_tmp_path", lambda _path: None), ("_remote_expand_user", str),
        ("get_shell_option", lambda name, default: connection._shell.options.get(name, default)),
    ):
        setattr(action, name, instead)
    return done


def test_pipelining_is_turned_on_unless_somebody_turned_it_off(action: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    done = on_host(action, monkeypatch, Connection())
    assert action.run(None, {})["free_after"] == 5
    assert done == ["run ours"]
    done = on_host(action, monkeypatch, Connection("var: ansible_pipelining"))
    assert action.run(None, {})["free_after"] == 5
    assert done == ["folder in /dev/shm", "run ours without pipelining"]


def test_a_sudo_that_wants_a_terminal_gets_one_and_the_files_are_in_memory(action: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    done = on_host(action, monkeypatch, Connection(wants_terminal=True))
    assert action.run(None, {})["free_after"] == 5
    assert done == ["run ours", "echo fleetclean-works", "folder in /dev/shm", "run ours without pipelining"]


def test_a_module_that_ended_without_a_word_is_not_run_again_where_sudo_works(action: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have removed something."""
    connection = Connection(wants_terminal=True)
    done = on_host(action, monkeypatch, connection)
    monkeypatch.setattr(action, "_low_level_execute_command", lambda cmd, **_named: done.append(cmd) or {"rc": 0, "stdout": "Welcome!\nfleetclean-works\n"})
    assert action.run(None, {})["failure"] == "no_answer"
    assert done == ["run ours", "echo fleetclean-works"]


def test_a_jobs_file_is_in_memory_and_its_id_leads_there(action: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = Connection()
    done = on_host(action, monkeypatch, connection, async_val=60)
    found = action.run(None, {})
    folder = connection._shell.options["async_dir"]
    assert folder.startswith("/dev/shm/.ansible_async-")
    # mkdir alone, without -p: a folder that is there already is somebody else's.
    assert done == [f"umask 77 && mkdir {folder}", "folder in /dev/shm", "run ours as a job without pipelining"]
    assert found["ansible_job_id"] == found["results_file"] == f"{folder}/j12.34"


def test_a_job_that_is_waited_for_leaves_no_folder(action: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = Connection()
    done = on_host(action, monkeypatch, connection, poll=1, async_val=60)
    assert action.run(None, {})["free_after"] == 5
    assert done[3:] == ["run ansible.legacy.async_status"] * 2 + [f"rmdir {connection._shell.options['async_dir']}"]


def test_a_job_whose_module_wrote_no_json_is_told_as_any_other(action: t.Any) -> None:
    action._is_job = True
    raw = {"failed": True, "cmd": "x", "data": "", "stderr": "SyntaxError: invalid syntax\n", "msg": "Traceback\nValueError: No start of json char found", "finished": 1}
    found = parsed(action, json.dumps(raw))
    assert (found["failed"], found["finished"], found["failure"]) == (True, True, "no_answer")
    assert found["msg"].startswith("docker_clean: no answer from the host; it wrote last: SyntaxError: invalid syntax. The modules need Python 3.8")


def test_a_job_that_does_not_start_leaves_no_folder(action: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = Connection()
    done = on_host(action, monkeypatch, connection, async_val=60)

    def execute(*_args: object, **_named: object) -> t.NoReturn:
        raise AnsibleError("Failed to set permissions on the temporary files")

    monkeypatch.setattr(ActionBase, "_execute_module", execute)
    with pytest.raises(AnsibleError):
        action.run(None, {})
    assert done[-1] == f"rmdir {connection._shell.options['async_dir']}"


def test_a_jobs_file_is_where_somebody_wants_it_or_where_it_always_was(action: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = Connection()
    done = on_host(action, monkeypatch, connection, async_val=60)
    connection._shell.options["async_dir"] = "/srv/jobs"
    assert action.run(None, {})["ansible_job_id"] == "j12.34"
    assert not any("mkdir" in word for word in done)
    connection = Connection()
    on_host(action, monkeypatch, connection, async_val=60)
    monkeypatch.setattr(action, "_low_level_execute_command", lambda _cmd: {"rc": 1})  # no such tmpfs
    assert action.run(None, {})["ansible_job_id"] == "j12.34"
    assert connection._shell.options["async_dir"] == "~/.ansible_async"


@pytest.mark.parametrize("words", ["Failed to create temporary directory. In some cases", "failed to transfer file to x:\n\ndd: y: No space left on device\n0+1 records"])
def test_a_host_that_cannot_be_written_to_is_not_called_one_that_cannot_be_reached(action: t.Any, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    on_host(action, monkeypatch, Connection())

    def execute(*_args: object, **_named: object) -> t.NoReturn:
        raise AnsibleConnectionFailure(words)

    monkeypatch.setattr(ActionBase, "_execute_module", execute)
    found = action.run(None, {})
    assert (found["failed"], found["failure"]) == (True, "no_answer") and "environment: {TMPDIR: /run}" in found["msg"]
    words = "Failed to connect to the host via ssh"
    with pytest.raises(AnsibleConnectionFailure):
        action.run(None, {})


#: What mitogen puts in the place of Ansible's methods (ActionModuleMixin, ansible_mitogen/mixins.py of 0.3.54). The first two fail the task.
FORBIDDEN = ("_configure_module", "_is_pipelining_enabled")
REPLACED = (
    "_remote_file_exists", "_make_tmp_path", "_transfer_data", "_fixup_perms2", "_remote_chmod", "_remote_chown", "_low_level_execute_command", "_generate_tmp_path",
)


def test_under_a_mitogen_strategy_none_of_the_methods_is_called_that_it_forbids_or_replaces(action: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen with mitogen itself too, which CI does not install: 0.3.54, ansible-core 2.17, 2.19 and 2.21, mitogen_linear and mitogen_free."""

    def called(*_args: object, **_named: object) -> t.NoReturn:
        raise AssertionError("should never be called")

    def execute(self: t.Any, *_args: t.Any, **_named: t.Any) -> t.Any:
        # mitogen names the profile where ansible-core has one.
        named = {"profile": "legacy"} if PROFILE else {}
        return self._parse_returned_data({"stdout": '{"changed": false, "free_after": 5}', "stderr": "", "rc": 0}, **named)

    mixin = type("ActionModuleMixin", (ActionBase,), {
        **dict.fromkeys((*FORBIDDEN, *REPLACED), called), "_execute_module": execute, "_remove_tmp_path": lambda *_args: None,
        "run": lambda self, tmp=None, task_vars=None: super(mixin, self).run(tmp, task_vars),
    })
    # As its strategy makes it: of its own class and ours, by the name that the task has.
    adorned = type("fleetclean.docker.docker_clean", (mixin, docker_clean.ActionModule), {})
    assert adorned._module == "docker_clean"
    monkeypatch.setattr(ActionBase, "run", lambda *_args: {})
    for async_val, poll in ((0, 0), (60, 1)):
        found = adorned.__new__(adorned)
        found._task = SimpleNamespace(async_val=async_val, poll=poll, args={}, environment=None)
        found._connection, found._used_interpreter = Connection(), None
        assert found.run(None, {})["free_after"] == 5
        assert found._task.async_val == 0
    found._task.async_val, found._task.poll = 60, 0
    assert found.run(None, {})["msg"].startswith("docker_clean: no job with poll: 0 under a mitogen strategy")
