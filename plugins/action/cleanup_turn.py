# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells the role cleanup which host tells of the fleet: see plugin_utils/turns.py. For nobody else; it runs on the controller, without a module."""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase
from ansible_collections.fleetclean.docker.plugins.plugin_utils import turns


class ActionModule(ActionBase):
    """Returns whether the host is the last that comes (``is_last``), and which are still at work (``running``)."""

    _requires_connection = False

    def run(self, tmp: None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result = super().run(tmp, task_vars)
        turn = turns.come(self._task, task_vars or {})
        return {**result, "changed": False, "is_last": turn.is_last, "running": list(turn.running)}
