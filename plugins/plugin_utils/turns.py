# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which host tells of the fleet, and which hosts are still at work, where hosts do not wait for each other (``strategy: free``).

Under Ansible's own strategy all hosts come to the end together and ``run_once`` asks one of them. Under ``free``, ``host_pinned`` and mitogen's
of these names each host comes when it is done, and ``run_once`` is not known: each would print a table in which the others are half done.

Invariants

* The last host that comes tells, and exactly one does, though two may come at the same moment.
* Where it cannot be told who is the last, a host tells: a table too many is better than none.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import typing as t

from ansible import constants
from ansible_collections.fleetclean.docker.plugins.plugin_utils.batches import play_id, play_of
from ansible_collections.fleetclean.docker.plugins.plugin_utils.host_record import HostRecord, host_record

_EACH_ON_ITS_OWN = re.compile(r"(?:.*[._])?(?:free|host_pinned)")


def begin(task: t.Any, variables: t.Mapping[str, t.Any]) -> None:
    """Note that the role begins with a host, so that others wait for it to come."""
    folder = _folder(task)
    if folder:
        _number(folder, "begun", str(variables["inventory_hostname"]))


class Turn(t.NamedTuple):
    """Whether a host tells of the fleet, and which hosts of its batch are still at work."""

    is_last: bool
    running: t.Sequence[str] = ()


def come(task: t.Any, variables: t.Mapping[str, t.Any]) -> Turn:
    """Note that a host has come to the end.

    :param task: Ansible's task, which knows its play.
    :param variables: the host's variables, as Ansible gives them to an action plugin.
    """
    folder = _folder(task)
    if not folder:
        return Turn(True)
    me = str(variables["inventory_hostname"])
    batch = [str(name) for name in variables.get("ansible_play_batch") or ()]
    well = {str(name) for name in variables.get("ansible_play_hosts") or ()}
    # A play may have the role more than once, and not for all of its hosts.
    turn = _number(folder, "come", me)
    if turn is None:
        return Turn(True)
    expected = {me, *(name for name in batch if name in well and _is_noted(folder, "begun", name, turn))}
    running = sorted(name for name in expected if not _is_noted(folder, "come", name, turn))
    if running:
        return Turn(False, running)
    # Two that come at once both see that all have come.
    is_last = _number(folder, "told", " ".join(sorted(_name(name) for name in expected)), turn) == turn
    if is_last:
        _number(folder, "teller", me)
    return Turn(is_last)


def tells(task: t.Any, variables: t.Mapping[str, t.Any]) -> bool:
    """Whether this host came last, and has not told yet. To be asked in a later task than `come`.

    What a worker knows of other hosts is what Ansible knew when it made that worker: in the very task in which a host finds that it is the last,
    the others' answers may be missing. And a variable that the earlier task registers would not do: with ``run_once`` each host's answer takes the
    place of everybody's, under free as well.
    """
    folder = _folder(task)
    if not folder:
        return True
    try:
        os.unlink(_file(folder, "teller", str(variables["inventory_hostname"]), 0))
        return True
    except FileNotFoundError:
        return not os.access(folder, os.W_OK)
    except OSError:
        return True


def record(hostvars: t.Mapping[str, t.Any], running: t.Collection[str] = ()) -> HostRecord:
    """Return what is known of a host, as `host_record` does, or that it is still at work.

    :param running: the hosts that are, by `come`.
    """
    found = host_record(hostvars)
    if found["status"] in ("ok", "not_asked") and hostvars.get("inventory_hostname") in running:
        found["status"], found["error"] = "running", "still running: it has not come to the end yet"
    return found


def _folder(task: t.Any) -> str:
    """Where the hosts of a play note that they come; empty where all come together, or where nothing can be noted."""
    play = play_of(task)
    if not _EACH_ON_ITS_OWN.fullmatch(str(getattr(play, "strategy", ""))):
        return ""
    # A folder of this run of Ansible alone, which removes it at its end.
    folder = os.path.join(constants.DEFAULT_LOCAL_TMP, f"fleetclean-{_name(play_id(task))}")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError:
        return ""
    return folder


def _number(folder: str, what: str, name: str, first: int = 0) -> int | None:
    """Note something, and return how often it was noted before; None where that cannot be done."""
    for number in itertools.count(first):
        try:
            os.close(os.open(_file(folder, what, name, number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            return number
        except FileExistsError:
            continue
        except OSError:
            return None
    return None


def _is_noted(folder: str, what: str, name: str, number: int) -> bool:
    return os.path.exists(_file(folder, what, name, number))


def _file(folder: str, what: str, name: str, number: int) -> str:
    return os.path.join(folder, f"{what}-{number}-{_name(name)}")


def _name(text: str) -> str:
    """A host's name may be longer than a file's, or have a slash."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
