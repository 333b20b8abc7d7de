# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters that the role cleanup uses on the controller: see plugin_utils/host_record.py, turns.py, fleet.py and page.py."""

from __future__ import annotations

import typing as t

from ansible_collections.fleetclean.docker.plugins.plugin_utils import fleet, page, turns


class FilterModule:
    """Names of filters, and the functions behind them."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {
            "asks_for_something": fleet.asks_for_something,
            "cleanup_problem": fleet.cleanup_problem,
            "fleet_page": page.fleet_page,
            "fleet_table": fleet.fleet_table,
            "host_record": turns.record,
            "host_trouble": fleet.host_trouble,
            "logs_reclaimed": fleet.logs_reclaimed,
        }
