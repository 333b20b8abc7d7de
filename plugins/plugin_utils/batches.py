# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a host that needs a look may fail, in a play whose hosts have their turn batch by batch (``serial``).

Ansible ends a play, and all plays after it, as soon as each host of a batch has failed (ansible 7019): with ``serial: 1`` the first bad host
takes their turn from all others. So one host of such a batch is spared until the last batch; there the run fails for it.
The verdict's result, registered as ``_cleanup_verdict``, says who was spared and who spoke for those that were.

Invariants

* A host fails at once wherever that ends nothing: in the only or the last batch, and beside one that is well.
* Nobody is spared where the play says that failures count: ``any_errors_fatal``, ``max_fail_percentage``. A canary has to stop the run.
* Nobody is spared where it cannot be told which batch is the last: then the run would end as if all were well.
* Nor with a strategy that lets hosts run ahead (``free``, ``host_pinned``): nobody would know who is well, and who speaks.
* Nor where tags leave the verdict out.
* For those that were spared exactly one host of the last batch fails: one on which the role runs, and one that is in trouble itself before
  one that is well. A host that failed has left Ansible's lists before the verdict comes to the last of many hosts.
"""

from __future__ import annotations

import typing as t
from itertools import takewhile

#: How a play's ``order`` arranges the hosts of the inventory.
_ORDERS: dict[t.Any, t.Callable[[list[str]], list[str]]] = {
    None: lambda hosts: hosts,
    "inventory": lambda hosts: hosts,
    "reverse_inventory": lambda hosts: hosts[::-1],
    "sorted": sorted,
    "reverse_sorted": lambda hosts: sorted(hosts, reverse=True),
}

#: The strategies that have each task done by all hosts before the next one begins.
_IN_STEP = ("linear", "debug", "mitogen", "mitogen_linear")


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
    is_in_step = str(getattr(play, "strategy", None)).rpartition(".")[2] in _IN_STEP
    earlier = [name for name in everybody[:last + 1] if name in well and name not in mine]
    return Batch(hosts, earlier, is_last, not is_last and not counts and is_in_step and arrange is not None)


class Noted:
    """What the role noted in this play: a host's variables outlive plays, and a role that is skipped overwrites none of them.

    A host's variables are expensive (Ansible puts all of them together), so none is asked for that decides nothing.
    """

    def __init__(self, task: t.Any, hostvars: t.Mapping[str, t.Any]) -> None:
        self._play = play_id(task)
        self._hostvars = hostvars

    def speaks(self, name: str, batch: Batch, everybody: t.Iterable[str], trouble: t.Callable[[str], str]) -> bool:
        """Whether this host of the last batch is the one that fails for those that were spared: the first in trouble, else the first.

        :param everybody: the play's hosts, those that failed too.
        :param trouble: says why a host needs a look; empty if it does not.
        """
        is_troubled = bool(trouble(name))
        before = takewhile(lambda host: host != name, batch.hosts)
        if not self._is_able(name) or any(self._is_able(host) and (not is_troubled or trouble(host)) for host in before):
            return False
        if not is_troubled and any(self._is_able(host) and trouble(host) for host in batch.hosts if host != name):
            return False
        return not any(host not in batch.hosts and self._of(host, "_cleanup_verdict").get("spoke") is True for host in everybody)

    def was_spared(self, name: str) -> bool:
        """Whether a host of an earlier batch was spared; who failed there and was rescued was not."""
        return self._of(name, "_cleanup_verdict").get("spared") is True

    def _is_able(self, name: str) -> bool:
        """Whether the role ran on a host, and comes to its end there."""
        preflight = self._of(name, "_cleanup_preflight")
        return bool(preflight) and preflight.get("failed") is not True

    def _of(self, name: str, variable: str) -> t.Mapping[str, t.Any]:
        found = self._hostvars[name].get(variable) if name in self._hostvars else None
        # What the role's own `when` skips is registered as skipped, without a play.
        return found if isinstance(found, t.Mapping) and found.get("play") == self._play else {}


def will_run(task: t.Any, tags: t.Iterable[str]) -> bool:
    """Whether the command line's tags surely let a later task of the same role run.

    :param task: a task of that role that has the tag ``always``.
    :param tags: the later one's own.
    """
    play = play_of(task)
    later = {*map(str, task.tags), *tags} - {"always"}
    wanted, unwanted = (set(getattr(play, name, None) or ()) for name in ("only_tags", "skip_tags"))
    is_wanted = not wanted or bool(later & wanted) or ("never" not in later and bool({"all", "tagged"} & wanted))
    return is_wanted and not {*later, "all", "tagged"} & unwanted


def play_id(task: t.Any) -> str:
    """What tells a play of a run from its others."""
    return str(getattr(play_of(task), "_uuid", ""))


def play_of(task: t.Any) -> t.Any:
    """Return the play of a task: its blocks know it."""
    above = task
    while above is not None and getattr(above, "_play", None) is None:
        above = getattr(above, "_parent", None)
    return getattr(above, "_play", None)
