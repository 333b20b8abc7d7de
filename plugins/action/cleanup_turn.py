# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role cleanup notes with this that a host has come to the end, and nobody else does: see plugin_utils/turns.py.

It runs on the controller and has no module.
"""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase
from ansible_collections.fleetclean.docker.plugins.plugin_utils import turns


class ActionModule(ActionBase):
    """Returns which hosts are still at work (``running``)."""

    _requires_connection = False

    def run(self, tmp: None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result = super().run(tmp, task_vars)
        return {**result, "changed": False, "running": list(turns.come(self._task, task_vars or {}).running)}
