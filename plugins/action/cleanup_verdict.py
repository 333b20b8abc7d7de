# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The last task of the role cleanup, for nobody else: it fails for a host that needs a look. It runs on the controller and has no module.

When a host may fail is decided in plugin_utils/batches.py.
"""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase
from ansible_collections.fleetclean.docker.plugins.plugin_utils.batches import Batch, Noted, batch_of, play_id
from ansible_collections.fleetclean.docker.plugins.plugin_utils.host_record import host_record, host_trouble

#: So many hosts of earlier batches are named with their reasons; the table names all.
_MOST_NAMED = 10


class ActionModule(ActionBase):
    """Fails with the host's reason; skips one that is well, or is spared."""

    _requires_connection = False

    def run(self, tmp: None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result = {**super().run(tmp, task_vars), "play": play_id(self._task)}
        variables = task_vars or {}
        trouble = host_trouble(host_record(variables))
        batch = batch_of(self._task, variables)
        name = str(variables.get("inventory_hostname"))
        if trouble and name == next(iter(batch.hosts), None) and batch.may_spare and not _somebody_is_well(batch, variables):
            words = f"{trouble} The run fails for it with the last batch; failing here would end it for the hosts of later ones."
            return {**result, "changed": False, "skipped": True, "spared": True, "msg": words}
        spared = _spared(name, batch, variables, Noted(self._task, variables["hostvars"])) if batch.is_last and batch.earlier else ""
        if spared and not trouble:
            spared += f" {name} is well: it fails for them."
        if trouble or spared:
            return {**result, "failed": True, "spoke": bool(spared), "msg": " ".join(filter(None, (trouble, spared)))}
        return {**result, "changed": False, "skipped": True}


def _trouble(name: str, variables: t.Mapping[str, t.Any]) -> str:
    return host_trouble(host_record(variables["hostvars"][name]))


def _somebody_is_well(batch: Batch, variables: t.Mapping[str, t.Any]) -> bool:
    others = (host_record(variables["hostvars"][name]) for name in batch.hosts[1:])
    return any(record["status"] in ("ok", "no_docker") for record in others)


def _spared(name: str, batch: Batch, variables: t.Mapping[str, t.Any], noted: Noted) -> str:
    """The hosts of earlier batches that were spared, with their reasons; empty if it is not for this host to say."""
    if not noted.speaks(name, batch, variables.get("ansible_play_hosts_all") or (), lambda host: _trouble(host, variables)):
        return ""
    # A second run of the role may have found a host well.
    found = [(host, words) for host, words in ((host, _trouble(host, variables)) for host in batch.earlier if noted.was_spared(host)) if words]
    if not found:
        return ""
    named = "; ".join(f"{host}: {words.rstrip('.')}" for host, words in found[:_MOST_NAMED])
    more = f"; and {len(found) - _MOST_NAMED} more, see the table" if len(found) > _MOST_NAMED else ""
    return f"Of earlier batches {len(found)} host{'' if len(found) == 1 else 's'} need{'s' if len(found) == 1 else ''} a look. {named}{more}."
