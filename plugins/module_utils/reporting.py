# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docker_disk_report from its options to its result."""

from __future__ import annotations

import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleetclean.docker.plugins.module_utils import (
    attribution,
    measure,
    session,
    snapshot,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import not_yet


def report(module: AnsibleModule, result: dict[str, t.Any]) -> None:
    """Fill ``result`` with the report that the module's options ask for."""
    params = module.params
    include = params["include"] or []
    if "leftovers" in include:
        raise not_yet("include: leftovers", "leave it out")
    if params["measure"] == "exact":
        raise not_yet("measure: exact", "use measure: fast")
    site = session.open_site(params)
    own = site.own_storage
    result["engine"] = site.facts()
    result["paths"] = own.paths() if own else {}
    result["filesystems"] = []
    if params["gentle"]:
        _give_way()
    if own and "filesystem" in include:
        result["filesystems"] = [vars(measure.filesystem(own.root))]
    categories: dict[str, attribution.Category] = {}
    looked = snapshot.Snapshot(0.0)
    if set(include) - {"filesystem"}:
        categories, looked = attribution.attribute(site.engine, own, include)
    result["usage"] = {name: category.usage() for name, category in categories.items()}
    result["items"] = {name: category.largest(params["top"], looked.now) for name, category in categories.items()}
    reclaimable = [usage["reclaimable_bytes"] for usage in result["usage"].values()]
    result["totals"] = {
        "disk_bytes": None,
        "attributed_bytes": None,
        "unattributed_bytes": None,
        "reclaimable_bytes": sum(size or 0 for size in reclaimable) if reclaimable else None,
    }
    result["warnings"] = [
        f'{what} could not be listed: the engine says "{answer}".' for what, answer in looked.unreadable.items()
    ]
    if not own:
        result["warnings"].append(f"{site.proof.words}; figures are the engine's own.")


def _give_way() -> None:
    """Lowest CPU priority; Linux derives an idle-like I/O priority from it (ioprio_set(2))."""
    try:
        os.nice(19)
    except OSError:
        pass
