# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin behind all three modules: it makes them run on any host.

A host whose disk is full to the last byte is the one that needs cleaning most, and the one where
Ansible usually gives up before a module starts: the remote temporary folder cannot be made. So:

* pipelining is turned on for this task, where connection and become method can do it and nobody turned it off; nothing is
  copied to the host then;
* where they cannot (su, a requested terminal, a sudo that refuses to work without one), the remote temporary folder is put on a tmpfs;
* TMPDIR points to a tmpfs, because the module's wrapper unpacks itself even with pipelining;
* a job (``async``) has its file in a folder of its own on that tmpfs, and an id that leads there.

All of this is per task: the play's other tasks keep their settings. Where a strategy runs modules in a way of its own (mitogen), none of
Ansible's methods that it replaces is called.

What the host answers goes through one door, `_parse_returned_data`: answers.py admits what the module documents, and nothing else
of it reaches Ansible, which would set facts, add hosts or print whatever a host puts there.
"""

from __future__ import annotations

import gc
import json
import re
import secrets
import time
import typing as t
from contextlib import contextmanager, suppress

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.utils.vars import merge_hash
from ansible_collections.fleetclean.docker.plugins.plugin_utils import answers, last_words

#: A tmpfs that every Linux host has, and that every user may write to.
TMPFS = "/dev/shm"
#: Where Ansible keeps the files of jobs as long as nobody says otherwise.
_ASYNC_DIR = "~/.ansible_async"
_JOB_FOLDER = ".ansible_async-"
_WORKS = "fleetclean-works"


@contextmanager
def _without_collector() -> t.Iterator[None]:
    """Ansible parses all that a module imports: so many objects that Python would look through all of Ansible's for garbage
    again and again, which takes as long as the parsing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class ActionModule(ActionBase):
    """Runs its module on hosts without a free byte, and admits what the module documents of their answers."""

    _supports_check_mode = True
    _supports_async = True
    _module = ""
    _inventory_name = ""
    _is_job = False
    _is_admitted = False
    _is_mute = False
    _job_seconds = 0
    _job_folder = ""

    def __init_subclass__(cls, module: str = "", **more: t.Any) -> None:
        """:param module: the module's name. Its schema is read here, once, before Ansible forks a worker for each task and host."""
        super().__init_subclass__(**more)
        if module:  # none: mitogen makes a class of ours and its own
            cls._module = module
            answers.shapes(module)

    def run(self, tmp: None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        if self._job_seconds:
            self._task.async_val = self._job_seconds  # the same task again (until): as a job, as before
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        args = dict(self._task.args)
        wrap_async = bool(self._task.async_val) and not self._connection.has_native_async
        # First in the list: whoever sets TMPDIR for the task or the play still has the last word.
        self._task.environment = [{"TMPDIR": TMPFS}] + list(self._task.environment or [])
        self._inventory_name = str(task_vars.get("inventory_hostname") or "")
        if wrap_async and not self._is_run_by_ansible:
            # Mitogen cuts a job off from the controller, which it loads a collection's module_utils from: the job hangs until its time is up.
            if not self._task.poll:
                msg = f"{self._module}: no job with poll: 0 under a mitogen strategy, where it would hang. Set strategy: linear, or leave async out."
                return {**result, "failed": True, "failure": "bad_input", "msg": msg}
            self._task.async_val, wrap_async = 0, False  # it is waited for anyway
        self._is_job = wrap_async
        try:
            answer = self._answer(args, task_vars, wrap_async)
        except AnsibleError as error:
            msg = last_words.not_run(self._module, str(error))
            if not msg:
                raise
            # Ansible would call a host that cannot be written to one that cannot be reached, and end the role for one that wants a password.
            answer = {"failed": True, "changed": False, "failure": "no_answer", "msg": msg}
        result = merge_hash(result, answer)
        if not wrap_async:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        return result

    def _answer(self, args: dict[str, t.Any], task_vars: dict[str, t.Any], wrap_async: bool) -> dict[str, t.Any]:
        if self._is_run_by_ansible:
            self._stay_off_the_disk(wrap_async, task_vars)
        answer: dict[str, t.Any] = {}
        copied = self._connection._shell.tmpdir
        try:
            answer = self._executed(None, args, task_vars, wrap_async)
        finally:
            if wrap_async and not answer.get("ansible_job_id"):
                # Ansible leaves both to a job, and calls each a change.
                answer["changed"] = False
                self._remove_job_folder()
                self._remove_tmp_path(copied)
        if self._job_folder and answer.get("ansible_job_id"):
            # async_status joins its own folder and this: an absolute path stays what it is.
            answer["ansible_job_id"] = f"{self._job_folder}/{answer['ansible_job_id'].rpartition('/')[2]}"
        if wrap_async and self._task.poll > 0 and not answer.get("failed"):
            return self._job_answer(answer, task_vars)
        return answer

    @property
    def _is_run_by_ansible(self) -> bool:
        """Whether Ansible's own way of running a module is in use.

        Mitogen's strategies put their own methods in the place of Ansible's: they run modules in memory, have no pipelining and no files on
        the host, and fail a task that asks about them (``ActionModuleMixin`` of ansible_mitogen/mixins.py).
        """
        return type(self)._execute_module is ActionBase._execute_module

    def _executed(self, name: str | None, args: dict[str, t.Any], task_vars: dict[str, t.Any], wrap_async: bool = False) -> dict[str, t.Any]:
        """Run a module (ours without a name), and once more with a terminal where sudo wants one."""
        self._is_admitted = self._is_mute = False
        with _without_collector():
            answer = self._execute_module(name, module_args=dict(args), task_vars=task_vars, wrap_async=wrap_async)
            if self._is_mute and not wrap_async and self._needs_terminal():
                Display().vv(f"{self._on_host}: sudo works with a terminal only, so once more without pipelining")
                self._connection.set_option("pipelining", False)
                self._put_files_in_memory()
                answer = self._execute_module(name, module_args=dict(args), task_vars=task_vars, wrap_async=wrap_async)
        # No ansible-core up to 2.21 has not admitted it by now; one that reads answers in another place would.
        return answer if self._is_admitted else self._admitted(answer)

    def _needs_terminal(self) -> bool:
        """Whether becoming another user fails without a terminal (requiretty), whatever is run: then the module did not start either.

        Asked only where a module said nothing that could be read, so it costs no run that works. With something to read, ssh has no terminal.
        """
        if not self._is_run_by_ansible or not self._connection.become or not self._is_pipelining_enabled("new"):
            return False
        with suppress(AnsibleError):
            said = self._low_level_execute_command(f"echo {_WORKS}", in_data=b"\n")
            return _WORKS not in said["stdout"].split()
        return False

    def _parse_returned_data(self, res: dict[str, t.Any], *profile: t.Any, **named: t.Any) -> t.Any:
        """Let Ansible read what the module documents of what the host wrote. It comes as text, as every ansible-core reads it."""
        self._is_admitted = True
        return super()._parse_returned_data({**res, **self._admitted_output(res)}, *profile, **named)

    def _admitted_output(self, res: t.Mapping[str, t.Any]) -> dict[str, str]:
        text = res.get("stdout") or ""
        stderr = answers.lines(res.get("stderr") or "", answers.MAX_MODULE_OUTPUT)
        try:
            if len(text) > answers.MAX_BYTES:
                raise answers.UnexpectedAnswer(f"more than {answers.MAX_BYTES // 1024**2} MB")
            try:
                data = json.loads(self._without_junk(text))
            except RecursionError:
                raise answers.UnexpectedAnswer("lists or mappings without end") from None
            except ValueError:
                return {"stdout": json.dumps(self._no_answer(text, stderr, res.get("rc"))), "stderr": stderr}
            values = self._admitted(data)
        except answers.UnexpectedAnswer as error:
            values = self._refused(error)
        return {"stdout": json.dumps(values), "stderr": stderr}

    def _no_answer(self, stdout: str, stderr: str, code: object) -> dict[str, t.Any]:
        """What is told in place of an answer: the reason and the next step first, then all that was written, as Ansible does."""
        self._is_mute = True
        text = answers.no_answer(stdout)
        msg = last_words.no_answer(self._module, text, stderr, code, (self._used_interpreter or "").lstrip("#!").strip())
        more = {"rc": code} if isinstance(code, int) else {}
        return {"failed": True, "changed": False, "failure": "no_answer", "msg": msg, "module_stdout": text, "module_stderr": stderr, **more}

    def _without_junk(self, text: str) -> str:
        """The lines from the first that begins with a brace to the last that ends with one. Ansible would warn of later ones in the
        host's own characters."""
        first = re.search(r"^[^\S\n]*\{", text, re.MULTILINE)
        rest = text[first.start():].rstrip() if first else ""
        # Searched from the end, and copied once: a host can write millions of lines.
        last = re.search(r"^[^\S\n]*\}", rest[::-1], re.MULTILINE)
        end = len(rest) - last.end() + 1 if last else 0
        if end and end < len(rest):
            Display().warning(f"{self._on_host}: what was written after the answer is left out: {answers.one_line(rest[end:].strip(), 200)}")
        return rest[:end]

    def _admitted(self, data: dict[str, t.Any]) -> dict[str, t.Any]:
        try:
            answer = answers.admit(self._module, data, self._is_job, self._most_bytes())
        except answers.UnexpectedAnswer as error:
            return self._refused(error, data.get("changed") is True)
        values = answer.values
        if answer.dropped:
            values["warnings"] = [f"{self._on_host}: {answers.dropped_words(answer.dropped)}", *values.get("warnings", ())]
        if self._is_job and values.get("failed") and last_words.is_mute(values.get("msg")):
            # Ansible's wrapper of jobs found no JSON in what the module wrote, and tells so with a traceback of its own.
            stdout, stderr = (answers.lines(data.get(key) or "", answers.MAX_MODULE_OUTPUT) for key in ("data", "stderr"))
            values.update(failure="no_answer", msg=last_words.no_answer(self._module, stdout, stderr, None))
        if self._is_job and data.get("_ansible_suppress_tmpdir_delete") is True:
            values["_ansible_suppress_tmpdir_delete"] = True  # the job is still in that folder
        return values

    def _most_bytes(self) -> int:
        """What an answer may take."""
        return answers.MAX_BYTES

    def _refused(self, error: answers.UnexpectedAnswer, changed: bool = False) -> dict[str, t.Any]:
        msg = f"{self._module}: {error}. Nothing of it is kept. Look into that host: its Python, or who answers in its place."
        return {"failed": True, "changed": changed, "failure": "unexpected_answer", "msg": msg}

    @property
    def _on_host(self) -> str:
        return f"{self._module} on {self._inventory_name}" if self._inventory_name else self._module

    def _job_answer(self, started: dict[str, t.Any], task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """Wait for a job and return its answer.

        Ansible would wait for it with the action plugin of async_status, past this door.
        """
        seconds = left = self._job_seconds = self._task.async_val
        folder = self._remote_expand_user(self.get_shell_option("async_dir", default=_ASYNC_DIR))
        args = {"jid": started.get("ansible_job_id") or "", "_async_dir": folder}
        self._task.async_val = 0
        while left > 0:
            time.sleep(self._task.poll)
            left -= self._task.poll
            try:
                answer = self._executed("ansible.legacy.async_status", {**args, "mode": "status"}, task_vars)
            except AnsibleConnectionFailure:
                if left <= 0:
                    raise
                with suppress(AttributeError):
                    self._connection.reset()
                continue
            # A file that is written at this moment cannot be read yet.
            if answer.get("finished") or (answer.get("failed") and not self._is_mute):
                self._executed("ansible.legacy.async_status", {**args, "mode": "cleanup"}, task_vars)
                self._remove_job_folder()
                return answer
        msg = f"{self._module}: the job did not end within {seconds} seconds. Raise async, or look for it with async_status."
        return {**started, "failed": True, "msg": msg}

    def _stay_off_the_disk(self, wrap_async: bool, task_vars: dict[str, t.Any]) -> None:
        # Up to 2.18 an origin is looked for anew, and what an action plugin is given has all of a connection's options by then, set or not.
        variables = task_vars.get("vars") or {}
        try:
            _value, origin = self._connection.get_option_and_origin("pipelining", variables)
            if origin == "default" or self._connection.get_option("pipelining"):
                self._connection.set_option("pipelining", True)
        except KeyError:
            pass  # a connection plugin without that option
        if wrap_async:
            self._keep_job_in_memory()
        if not self._is_pipelining_enabled("new", wrap_async):
            self._put_files_in_memory()

    def _put_files_in_memory(self) -> None:
        """What is copied to the host goes to a tmpfs. Not `system_tmpdirs` alone: that one is asked only where an unprivileged user takes over."""
        shell = self._connection._shell
        before = {}
        for option, value in (("remote_tmp", TMPFS), ("system_tmpdirs", [TMPFS])):
            try:
                before[option] = shell.get_option(option)
                shell.set_option(option, value)
            except KeyError:
                continue
        try:
            self._make_tmp_path()
        except AnsibleConnectionFailure:
            # No such tmpfs here: then the place that Ansible would have taken anyway.
            for option, value in before.items():
                shell.set_option(option, value)

    def _keep_job_in_memory(self) -> None:
        """Put a job's file (by default in ``~/.ansible_async``) into a folder of its own on a tmpfs, unless somebody chose a place for it.

        Made by the user who runs the job, and never one that is there already: whoever else had made it could give root's file another place.
        """
        shell = self._connection._shell
        try:
            if shell.get_option("async_dir") not in (_ASYNC_DIR, self._job_folder):
                return
        except KeyError:
            return
        folder = f"{TMPFS}/{_JOB_FOLDER}{secrets.token_hex(8)}"
        if self._low_level_execute_command(f"umask 77 && mkdir {folder}")["rc"] == 0:
            shell.set_option("async_dir", folder)
            self._job_folder = folder
        else:
            shell.set_option("async_dir", _ASYNC_DIR)
            self._job_folder = ""

    def _remove_job_folder(self) -> None:
        """It is empty by now, or stays for whoever wants to know what is in it."""
        if self._job_folder:
            self._low_level_execute_command(f"rmdir {self._job_folder}")
