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
from ansible_collections.fleetclean.docker.plugins.plugin_utils.host_record import HostRecord, host_record

_EACH_ON_ITS_OWN = re.compile(r"(?:.*[._])?(?:free|host_pinned)")


def is_last(task: t.Any, variables: t.Mapping[str, t.Any]) -> bool:
    """Whether a host is the last of its batch that comes here. Asking is coming.

    :param task: Ansible's task, which knows its play.
    :param variables: the host's variables, as Ansible gives them to an action plugin.
    """
    play = _play(task)
    if not _EACH_ON_ITS_OWN.fullmatch(str(getattr(play, "strategy", ""))):
        return True
    hostvars = variables["hostvars"]
    batch = [str(name) for name in variables.get("ansible_play_batch") or ()]
    well = {str(name) for name in variables.get("ansible_play_hosts") or ()}
    others = [name for name in batch if name in well and _takes_part(hostvars[name])]
    try:
        # A folder of this run of Ansible alone; it removes it at its end.
        folder = os.path.join(constants.DEFAULT_LOCAL_TMP, f"fleetclean-{_name(getattr(play, '_uuid', ''))}")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        me = str(variables["inventory_hostname"])
        # A play may have the role more than once.
        turn = next(number for number in itertools.count() if _make(folder, f"{number}-{_name(me)}"))
        come = sum(os.path.exists(os.path.join(folder, f"{turn}-{_name(name)}")) for name in {me, *others})
        # Two that come at once both see that all have come.
        return come == len({me, *others}) and _make(folder, f"{turn}-told-{come}")
    except OSError:
        return True


def record(hostvars: t.Mapping[str, t.Any], steps: t.Sequence[str] = ()) -> HostRecord:
    """Return what is known of a host, as `host_record` does; one that has not done all of its steps yet is still at work.

    :param steps: the variables that the role has registered for a host that came to the end.
    """
    found = host_record(hostvars)
    if found["status"] in ("ok", "not_asked") and _takes_part(hostvars) and any(name not in hostvars for name in ("_cleanup_engine", *steps)):
        found["status"], found["error"] = "running", "still running: it has not come to the end yet"
    return found


def _takes_part(hostvars: t.Mapping[str, t.Any]) -> bool:
    """Whether the role has begun with a host and has not refused its variables."""
    preflight = hostvars.get("_cleanup_preflight")
    return isinstance(preflight, t.Mapping) and preflight.get("failed") is not True and preflight.get("skipped") is not True


def _play(task: t.Any) -> t.Any:
    """The play of a task: its blocks know it."""
    above = task
    while above is not None and getattr(above, "_play", None) is None:
        above = getattr(above, "_parent", None)
    return getattr(above, "_play", None)


def _name(text: str) -> str:
    """A host's name may be longer than a file's, or have a slash."""
    return hashlib.sha256(str(text).encode("utf-8", "surrogateescape")).hexdigest()


def _make(folder: str, name: str) -> bool:
    """Make a file; whether it was not there."""
    try:
        os.close(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return False
    return True
