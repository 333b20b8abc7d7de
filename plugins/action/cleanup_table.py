# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role cleanup prints the fleet's table with this, and nobody else does. It runs on the controller and has no module.

Ansible's own ``debug`` prints a list as a quoted one: no column is where it has to be, and a line of a hundred columns wraps. So the
lines go to Ansible's Display as they are, once, and stand in the result as well.

With the strategy free each host comes here when it is done, and ``run_once`` is not known: the last one has the table (plugin_utils/turns.py).
"""

from __future__ import annotations

import typing as t

from ansible import constants
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import callback_loader
from ansible.utils.display import Display
from ansible_collections.fleetclean.docker.plugins.module_utils.words import printable
from ansible_collections.fleetclean.docker.plugins.plugin_utils import fleet, turns

#: The callback that shows no result of a task that went well, and from which those are derived that print for people as it does.
_DEFAULT = "ansible.plugins.callback.default"


class ActionModule(ActionBase):
    """Prints the table ``table`` and returns its lines in ``msg``. ``running``: hosts that are still at work."""

    _requires_connection = False

    def run(self, tmp: None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result = super().run(tmp, task_vars)
        variables = task_vars or {}
        if not turns.tells(self._task, variables):
            return {**result, "changed": False, "skipped": True}
        running = self._task.args.get("running") or ()
        records = [turns.record(variables["hostvars"][name], running) for name in variables["ansible_play_hosts_all"]]
        # The names in them are other people's.
        lines = [printable(line) for line in fleet.fleet_table(records, str(self._task.args.get("table")), bool(variables.get("ansible_check_mode")))]
        if lines and _leaves_results_out():
            Display().display("\n".join(lines))
        # With -v Ansible would print them again.
        return {**result, "changed": False, "_ansible_verbose_override": True, "msg": lines}


def _leaves_results_out() -> bool:
    """Whether what prints the run is for people and shows no results.

    Any other callback, such as json, minimal or null, shows the lines as a part of the result or wants nothing on the screen. A line
    among its JSON would make that no JSON any more.
    """
    callback = callback_loader.get(constants.DEFAULT_STDOUT_CALLBACK, class_only=True)
    return any(base.__module__ == _DEFAULT for base in getattr(callback, "__mro__", ()))
