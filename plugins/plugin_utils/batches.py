# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a host that needs a look may fail, in a play whose hosts have their turn batch by batch (``serial``).

Ansible ends a play, and all plays after it, as soon as each host of a batch has failed (ansible 7019): with ``serial: 1`` the first bad host
takes their turn from all others. So one host of such a batch is spared until the last batch; there the run fails for it.

Invariants

* A host fails at once wherever that ends nothing: in the only or the last batch, and beside one that is well.
* Nobody is spared where the play says that failures count: ``any_errors_fatal``, ``max_fail_percentage``. A canary has to stop the run.
* Nobody is spared where it cannot be told which batch is the last: then the run would end as if all were well.
"""

from __future__ import annotations

import typing as t

#: How a play's ``order`` arranges the hosts of the inventory.
_ORDERS: dict[t.Any, t.Callable[[list[str]], list[str]]] = {
    None: lambda hosts: hosts,
    "inventory": lambda hosts: hosts,
    "reverse_inventory": lambda hosts: hosts[::-1],
    "sorted": sorted,
    "reverse_sorted": lambda hosts: sorted(hosts, reverse=True),
}


class Batch(t.NamedTuple):
    """The hosts of a play at one moment, without those that failed: of this batch, of earlier ones, and whether others have their turn later.

    ``may_spare``: whether a host of this batch may be spared.
    """

    hosts: t.Sequence[str]
    earlier: t.Sequence[str]
    is_last: bool
    may_spare: bool


def batch_of(task: t.Any, variables: t.Mapping[str, t.Any]) -> Batch:
    """Return the batch in which a host has its turn.

    :param task: Ansible's task, which knows its play.
    :param variables: the host's variables, as Ansible gives them to an action plugin.
    """
    play = play_of(task)
    hosts = [str(name) for name in variables.get("ansible_play_batch") or ()]
    well = {str(name) for name in variables.get("ansible_play_hosts") or ()}
    mine = {*hosts, str(variables.get("inventory_hostname"))}
    if well <= mine:
        return Batch(hosts, (), True, False)
    arrange = _ORDERS.get(getattr(play, "order", None))
    everybody = (arrange or _ORDERS[None])([str(name) for name in variables.get("ansible_play_hosts_all") or ()])
    last = max((number for number, name in enumerate(everybody) if name in mine), default=-1)
    is_last = not any(name in well for name in everybody[last + 1:])
    counts = bool(task.any_errors_fatal) or getattr(play, "max_fail_percentage", None) is not None
    earlier = [name for name in everybody[:last + 1] if name in well and name not in mine]
    return Batch(hosts, earlier, is_last, not is_last and not counts and arrange is not None)


def play_of(task: t.Any) -> t.Any:
    """Return the play of a task: its blocks know it."""
    above = task
    while above is not None and getattr(above, "_play", None) is None:
        above = getattr(above, "_parent", None)
    return getattr(above, "_play", None)
