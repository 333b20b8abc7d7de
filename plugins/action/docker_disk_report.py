# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the module of the same name run on any host: see plugin_utils/anywhere.py."""

from __future__ import annotations

from ansible_collections.fleetclean.docker.plugins.plugin_utils import answers, anywhere

#: What a report may take that lists nothing: what stands once for a host (the names of ten thousand containers, filesystems, ways, notes).
_BASE = 2 * 1024**2
#: What it may take besides for each item of each category that was asked for.
_ITEM, _CATEGORIES = 16 * 1024, 10


class ActionModule(anywhere.ActionModule, module="docker_disk_report"):
    """The door of this module's answers."""

    def _most_bytes(self) -> int:
        """As much as can come of what was asked for: Ansible takes seconds of CPU for each megabyte of a host's answer."""
        top = str(self._task.args.get("top", 20))
        return min(_BASE + int(top) * _CATEGORIES * _ITEM, answers.MAX_BYTES) if top.isdecimal() and len(top) < 9 else answers.MAX_BYTES
