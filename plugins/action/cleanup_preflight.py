# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The first task of the role cleanup, for nobody else: see plugin_utils/preflight.py. It runs on the controller and has no module."""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError

# page: what the role's filters import. Ansible loads action plugins before it forks workers, and filters in each worker that uses one.
from ansible_collections.fleetclean.docker.plugins.plugin_utils import page, preflight, turns
from ansible_collections.fleetclean.docker.plugins.plugin_utils.batches import batch_of, play_id, will_run

__all__ = ["ActionModule", "page"]


class ActionModule(ActionBase):
    """Returns the options of the role's modules, or refuses variables that cannot be meant."""

    _requires_connection = False

    def run(self, tmp: None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result = {**super().run(tmp, task_vars), "play": play_id(self._task)}
        try:
            options = preflight.check(task_vars or {}, self._templar.template, self._task.args.get("report") is True)
            turns.begin(self._task, task_vars or {})
        except FleetcleanError as error:
            return {**result, **_refusal(str(error), self._is_spared(task_vars or {}))}
        # With -v Ansible would print what somebody may have put into a vault.
        return {**result, "changed": False, "_ansible_verbose_override": True, **options}

    def _is_spared(self, variables: dict[str, t.Any]) -> bool:
        """Whether the verdict fails for this host and not this task."""
        batch = batch_of(self._task, variables)
        is_first = variables.get("inventory_hostname") == next(iter(batch.hosts), None)
        return batch.may_spare and is_first and will_run(self._task, self._task.args.get("verdict_tags") or ())


def _refusal(words: str, is_spared: bool) -> dict[str, t.Any]:
    """What is returned for variables that cannot be meant. Who is spared has nothing to do, and ``refused`` says why."""
    if is_spared:
        return {"changed": False, "refused": words, "report": {}, "logs": {}, "clean": {}}
    return {"failed": True, "msg": words}
