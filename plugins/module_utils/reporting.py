# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docker_disk_report from its options to its result. What was asked for nothing, or for filesystems alone, needs no survey."""

from __future__ import annotations

import typing as t

from ansible_collections.fleetclean.docker.plugins.module_utils import places, session, words

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule


def report(module: AnsibleModule, result: dict[str, t.Any]) -> None:
    """Fill ``result`` with the report that the module's options ask for."""
    params = module.params
    include = params["include"] or []
    site = session.open_site(params)
    own = site.own_storage
    result["engine"] = site.facts()
    result["paths"] = site.storage.paths() if own else {}
    result["filesystems"] = []
    result["warnings"] = [words.printable(line) for line in site.refused] if own else [f"{site.proof.words}; figures are the engine's own."]
    if own and "filesystem" in include:
        from ansible_collections.fleetclean.docker.plugins.module_utils import measure

        result["filesystems"] = [{**measure.filesystem(disk.path)._asdict(), "holds": list(disk.holds)} for disk in places.disks(own)]
    result.update(usage={}, largest={}, reclaimable={}, roots=[], mounts=[], unread={"count": 0, "vanished": 0, "examples": []})
    result["totals"] = dict.fromkeys(("disk_bytes", "attributed_bytes", "unattributed_bytes", "shared_bytes", "reclaimable_bytes"))
    result["deleted_open"] = {}
    if not include:
        return
    from ansible_collections.fleetclean.docker.plugins.module_utils import report_parts

    if not set(include) - {"filesystem"}:
        if own:
            result["deleted_open"] = report_parts.deleted_open(result, own, params["top"])
        return
    from ansible_collections.fleetclean.docker.plugins.module_utils import attribution, history, managers, plan, snapshot

    exact = params["measure"] == "exact" and own is not None
    how = attribution.How(exact, params["gentle"], params["state_dir"] or "", site.engine_id)
    wanted = snapshot.Wanted(networks=True, labels=managers.looked_at(plan.Wishes().keep_labels))
    survey = attribution.survey(site.engine, own, how, wanted)
    report_parts.Report(survey, own, exact, params["top"], history.recall(how.state_dir, how.engine_id, survey.snapshot.now)).fill(result, include)
    if own:
        result["deleted_open"] = report_parts.deleted_open(result, own, params["top"], survey, exact)
    if not module.check_mode:
        history.note(how.state_dir, how.engine_id, survey.snapshot, volumes=True, networks=True)
    for what, answer in survey.snapshot.unreadable.items():
        result["warnings"].append(f'{what} could not be listed: the engine says "{answer}".')
    result["warnings"] += [words.printable(doubt) for doubt in survey.doubts if not any(line.startswith(doubt) for line in site.refused)]
    unread = result["unread"]
    if unread["count"]:
        first = unread["examples"][0]
        result["warnings"].append(
            f"{unread['count']} files and folders could not be read, so figures are too small; the first: {first['path']}: {first['error']}. "
            "Use become: true."
        )
