# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin behind all three modules: it makes them run on any host.

A host whose disk is full to the last byte is the one that needs cleaning most, and the one where
Ansible usually gives up before a module starts: the remote temporary folder cannot be made. So:

* pipelining is turned on for this task, where connection and become method can do it; nothing is
  copied to the host then;
* where they cannot (su, a requested terminal), the remote temporary folder is put on a tmpfs;
* TMPDIR points to a tmpfs, because the module's wrapper unpacks itself even with pipelining;
* the Docker SDK of the controller goes along in memory, for hosts that have none.

All of this is per task: the play's other tasks keep their settings.
"""

from __future__ import annotations

import gc
import os
import typing as t
from contextlib import contextmanager

from ansible import constants as C
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.vars import merge_hash
from ansible_collections.fleetclean.docker.plugins.plugin_utils import carried_sdk

#: A tmpfs that every Linux host has, and that every user may write to.
TMPFS = "/dev/shm"


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
    """Runs the module named by the task on hosts without a free byte and without the SDK."""

    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp: None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        args = dict(self._task.args)
        if args.get("sdk") != "host":
            args.update(self._carried(task_vars))
        wrap_async = bool(self._task.async_val) and not self._connection.has_native_async
        self._stay_off_the_disk(wrap_async)
        # First in the list: whoever sets TMPDIR for the task or the play still has the last word.
        self._task.environment = [{"TMPDIR": TMPFS}] + list(self._task.environment or [])
        with _without_collector():
            answer = self._execute_module(module_args=args, task_vars=task_vars, wrap_async=wrap_async)
        result = merge_hash(result, answer)
        if not wrap_async:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        return result

    def _carried(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        folder = task_vars.get("fleetclean_sdk_path") or os.environ.get("FLEETCLEAN_SDK_PATH")
        if folder:
            folder = os.path.expanduser(self._templar.template(folder))
        sdk = carried_sdk.pack(folder or None, os.path.join(C.ANSIBLE_HOME, "fleetclean_cache"), C.DEFAULT_LOCAL_TMP)
        about = {"python": sdk.python, "packages": sdk.packages, "error": sdk.error}
        return {"_sdk_archive": sdk.archive, "_sdk_about": about}

    def _stay_off_the_disk(self, wrap_async: bool) -> None:
        try:
            self._connection.set_option("pipelining", True)
        except KeyError:
            pass  # a connection plugin without that option
        if self._is_pipelining_enabled("new", wrap_async):
            return
        # Not `system_tmpdirs` alone: that one is asked only where an unprivileged user takes over.
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
