# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the module of the same name run on any host: see plugin_utils/anywhere.py."""

from __future__ import annotations

from ansible_collections.fleetclean.docker.plugins.plugin_utils import anywhere


class ActionModule(anywhere.ActionModule, module="docker_disk_report"):
    """The door of this module's answers."""
