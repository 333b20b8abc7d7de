#!/usr/bin/python
# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module docker_clean."""

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_clean
short_description: Remove what a Docker host no longer needs, and say what and why
version_added: 0.1.0
description:
  - Removes containers, images, volumes, networks and build cache by scope, age, name and label, object by object.
  - In check mode it returns the very plan that a real run carries out, with the reason for each object that goes and for
    what stays.
  - A running container, a named volume, an image that a container uses and an object with one of O(keep_labels) are
    never removed unless the option made for it asks for it. The predefined networks always stay.
  - What comes into use between plan and removal stays; what is gone already counts as done. One object that fails does
    not stop the rest; the module fails at the end, with all that it did in the result.
author: The fleetclean.docker contributors (@fleetclean)
extends_documentation_fragment:
  - fleetclean.docker.options
  - fleetclean.docker.options.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
notes:
  - Sizes are bytes, or a number with a unit (powers of 1024), such as V(500MB) or V(10GiB).
  - Durations are a number with V(s), V(m), V(h), V(d) or V(w), such as V(7d). Ages are counted by the engine's clock.
  - A section that is not given is not touched. V({}) takes a section's defaults.
options:
  containers:
    description: Which containers to remove.
    type: dict
    suboptions:
      states:
        description:
          - The states that may go. Containers that are V(running), V(paused) or V(restarting) are killed.
        type: list
        elements: str
        choices: [created, exited, dead, running, paused, restarting]
        default: [created, exited, dead]
      older_than:
        description: Only those that stopped (never started ones, were created) longer ago. For running ones, the creation counts.
        type: str
      keep:
        description: Names (globs) and ids of containers that stay.
        type: list
        elements: str
        default: []
      volumes:
        description: Whether the anonymous volumes of removed containers go too.
        type: bool
        default: false
  images:
    description: Which images to remove.
    type: dict
    suboptions:
      scope:
        description:
          - V(dangling) are those without a tag; V(unused) those that no container has, tagged or not.
          - V(all) also takes images of containers that are stopped and stay; those can not be started again.
            Images of running containers stay always.
        type: str
        choices: [dangling, unused, all]
        default: dangling
      older_than:
        description:
          - Only those not used for longer. The latest sign of use counts, a container's start or stop, the last tagging,
            the arrival on the host; where none is known, the image's creation. The plan says which it was.
        type: str
      dangling_older_than:
        description:
          - The same for images without a tag; O(images.older_than) if not given.
          - A build by the classic builder that is under way holds images without a tag, so keep this above some minutes.
        type: str
      keep:
        description: >-
          Images that stay, as C(repository:tag) or C(repository) (globs), digests or ids.
        type: list
        elements: str
        default: []
      keep_latest:
        description: So many newest tags of each repository stay, by the images' creation.
        type: int
        default: 0
      keep_local:
        description:
          - Whether tagged images that were never pushed or pulled stay. Nobody can pull them again.
          - An image without digests is taken for one. With containerd's image store every image has digests, so nothing can be
            told there, and with this option all tagged images stay.
        type: bool
        default: false
  volumes:
    description: Which volumes to remove. A volume that any container has, stopped ones too, stays.
    type: dict
    suboptions:
      scope:
        description: V(anonymous) are those that the engine named; V(unused) are all that no container has, named ones too.
        type: str
        choices: [anonymous, unused]
        default: anonymous
      older_than:
        description: Only those whose folder was changed last longer ago. Engines do not know when a volume was used last.
        type: str
      keep:
        description: Names (globs) of volumes that stay.
        type: list
        elements: str
        default: []
  networks:
    description: Which networks to remove. Those of a container, stopped ones too, the predefined ones and swarm's stay.
    type: dict
    suboptions:
      older_than:
        description: Only those created longer ago.
        type: str
      keep:
        description: Names (globs) and ids of networks that stay.
        type: list
        elements: str
        default: []
  build_cache:
    description: Which records of the engine's build cache to remove. Needs API 1.39.
    type: dict
    suboptions:
      scope:
        description: V(unused) leaves what images share and what the builder keeps for itself; V(all) takes that as well.
        type: str
        choices: [unused, all]
        default: unused
      older_than:
        description: Only those not used for longer.
        type: str
      keep_storage:
        description: So much of the cache stays, the most recently used.
        type: str
  leftovers:
    description: What lies below the data root and no engine object owns. Not there yet in this release, and refused.
    type: dict
    suboptions:
      older_than:
        description: Only those not changed for longer.
        type: str
        default: 24h
      offline:
        description: Whether to take also what only a stopped engine can let go of.
        type: bool
        default: false
  keep_labels:
    description: Objects with one of these labels stay. C(key) or C(key=value), globs allowed in both.
    type: list
    elements: str
    default: [fleetclean.keep]
  only_below:
    description: Do nothing unless less than this is free on the data root's filesystem, as a size or a share such as V(15%).
    type: str
  free_target:
    description:
      - Stop as soon as this much is free, as a size or a share. Least recently used first, the cheapest loss first.
      - In check mode the plan ends where the known sizes reach the target.
    type: str
  only_below_inodes:
    description: Like O(only_below), for inodes, as a number or a share. With both, one of them is enough to begin.
    type: str
  free_target_inodes:
    description: Like O(free_target), for inodes, as a number or a share. With both, the run goes on until both are met.
    type: str
  orchestrated:
    description:
      - Whether to V(keep) what others look after on this host, or to V(clean) it as well.
      - That is containers of kubelet, the ECS agent, Nomad and swarm, and on hosts of the first three all images.
    type: str
    choices: [keep, clean]
    default: keep
  parallel:
    description: How many removals at once, 1 to 32. With a target, one at a time.
    type: int
    default: 4
seealso:
  - module: fleetclean.docker.docker_disk_report
  - module: fleetclean.docker.docker_log_truncate
  - module: community.docker.docker_prune
"""

EXAMPLES = r"""
- name: See what would go (run with --check --diff)
  fleetclean.docker.docker_clean:
    containers: {older_than: 7d}
    images: {scope: unused, older_than: 7d, keep_latest: 2}
    networks: {older_than: 7d}
    build_cache: {older_than: 7d}

- name: Only when less than 15 % is free, and only until 30 % is
  fleetclean.docker.docker_clean:
    containers: {older_than: 24h}
    images: {scope: unused}
    build_cache: {}
    only_below: 15%
    free_target: 30%

- name: Everything but what carries a label
  fleetclean.docker.docker_clean:
    containers: {states: [created, exited, dead, running, paused, restarting], volumes: true}
    images: {scope: all}
    volumes: {scope: unused}
    networks: {}
    build_cache: {scope: all}
    keep_labels: [fleetclean.keep, com.example.tier=database]
"""

RETURN = r"""
removed:
  description: What was removed; in check mode, what would be, in the same order.
  returned: when the engine answers
  type: list
  elements: dict
  sample:
    - {kind: image, id: sha256:5f2a, name: "ci/build:417", bytes: 2200000000, reason: unused for 34 days (last container)}
  contains:
    kind: {description: 'container, image, tag, volume, network or build_cache.', type: str, returned: always}
    id: {description: "The engine's id (for a tag, its image's).", type: str, returned: always}
    name: {description: What people call it., type: str, returned: always}
    bytes:
      description: The engine's figure of what comes free with it; null where it was not asked for (see check mode).
      type: int
      returned: always
    reason: {description: Why it goes., type: str, returned: always}
failures:
  description: What should have been removed and could not be, as in RV(removed), with C(error).
  returned: when the engine answers
  type: list
  elements: dict
  sample: []
kept:
  description: What stays, by kind and reason, with the number of objects and their bytes.
  returned: when the engine answers
  type: list
  elements: dict
  sample: [{kind: image, reason: used by a container, count: 12, bytes: 9800000000}]
planned_bytes:
  description: The known sizes of all that the plan removes, bytes.
  returned: when the engine answers
  type: int
  sample: 13600000000
reclaimed_bytes:
  description: What came free on the data root's filesystem, measured there; null where that is not this host's, and in check mode 0.
  returned: when the engine answers
  type: int
  sample: 13600000000
reclaimed_by_kind:
  description: RV(reclaimed_bytes), measured after each kind of object.
  returned: when the engine answers
  type: dict
  sample: {container: 1200000000, image: 12400000000}
free_before:
  description: Bytes available on the data root's filesystem before; null where that is not this host's.
  returned: when the engine answers
  type: int
  sample: 0
free_after:
  description: Bytes available afterwards; in check mode, as planned.
  returned: when the engine answers
  type: int
  sample: 13600000000
filesystem_bytes:
  description: The size of the data root's filesystem; null where that is not this host's.
  returned: when the engine answers
  type: int
  sample: 53660876800
target_met:
  description: Whether O(free_target) and O(free_target_inodes) are met; null without them.
  returned: when the engine answers
  type: bool
  sample: true
failure:
  description: What kind of failure it was, as in M(fleetclean.docker.docker_disk_report).
  returned: on failure
  type: str
  sample: engine
"""

import typing as t
from dataclasses import replace

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleetclean.docker.plugins.module_utils import (
    measure,
    options,
    policy,
    removal,
    session,
    snapshot,
    words,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import (
    FleetcleanError,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.units import resolve


class Space:
    """The data root's filesystem, asked anew at each call; knows nothing where it is not this host's."""

    def __init__(self, root: str | None, marks: options.Watermarks) -> None:
        self._root = root
        self._marks = marks

    def now(self) -> measure.Filesystem | None:
        return measure.filesystem(self._root) if self._root else None

    def free(self) -> int | None:
        """Free bytes, root's reserve included: the one figure whose difference is what came free."""
        found = self.now()
        return found.free if found else None

    def settle(self) -> None:
        """Wait for a filesystem that gives space back late, so that what came free can be said."""
        if self._root:
            measure.settle(self._root)

    def low(self) -> bool:
        """Whether there is a reason to begin."""
        marks, found = self._marks, self.now()
        if found is None or (marks.only_below is None and marks.only_below_inodes is None):
            return True
        return (marks.only_below is not None and found.available < resolve(marks.only_below, found.size)) or (
            marks.only_below_inodes is not None
            and found.inodes_available < resolve(marks.only_below_inodes, found.inodes)
        )

    def missing(self) -> int:
        """Bytes still missing to the target; 0 if it is met or there is none."""
        found = self.now()
        if found is None or self._marks.free_target is None:
            return 0
        return max(0, resolve(self._marks.free_target, found.size) - found.available)

    def missing_inodes(self) -> int:
        found = self.now()
        if found is None or self._marks.free_target_inodes is None:
            return 0
        return max(0, resolve(self._marks.free_target_inodes, found.inodes) - found.inodes_available)

    def enough(self) -> bool:
        return not self.missing() and not self.missing_inodes()


def clean(module: AnsibleModule, result: dict[str, t.Any]) -> None:
    """Fill ``result`` with what was removed, or in check mode would be."""
    wishes, marks = options.read_clean(module.params)
    site = session.open_site(module.params)
    own = site.own_storage
    if marks.any and not own:
        raise FleetcleanError(
            f"only_below and free_target ask for the data root's filesystem, and {site.proof.words}. "
            "Run this on the engine's host, or without them.",
            "foreign_root",
        )
    space = Space(own.root if own else None, marks)
    before = space.now()
    result.update(
        removed=[],
        failures=[],
        kept=[],
        planned_bytes=0,
        reclaimed_bytes=0 if before else None,
        reclaimed_by_kind={},
        free_before=before.available if before else None,
        free_after=before.available if before else None,
        filesystem_bytes=before.size if before else None,
        target_met=None,
    )
    if not space.low() or (marks.target and space.enough()):
        result["target_met"] = True if marks.target else None
        return
    wanted = _wanted(module, wishes, marks)
    looked = snapshot.take(site.engine, wanted, own)
    plan = policy.decide(looked, wishes)
    if module.check_mode and marks.target and not space.missing_inodes():
        # What the known sizes promise. A real run goes by the filesystem, and may need more or less.
        plan = plan.until(space.missing())
    result["planned_bytes"] = plan.bytes
    result["kept"] = plan.kept_by_reason()
    if module.check_mode:
        _foretell(result, plan, before, space, marks)
    else:
        worker = _Worker(site, module.params["parallel"], space, marks, result)
        worker.carry_out(plan)
        if "build_cache" in looked.unreadable and result["removed"]:
            # The engine could not list its cache for want of space. There is some now.
            looked = snapshot.take(site.engine, replace(wanted, images=False, volumes=False, networks=False), own)
            only = policy.Wishes(build_cache=wishes.build_cache, keep_labels=wishes.keep_labels)
            worker.carry_out(policy.decide(looked, only))
        worker.complain()
    for what, answer in looked.unreadable.items():
        module.warn(f'{what} could not be listed, so they stay: the engine says "{answer}". The next run looks again.')
    if module._diff:
        steps = plan.steps if module.check_mode else [policy.Step(**entry) for entry in result["removed"]]
        free = words.free_words(result["free_before"], result["free_after"], result["filesystem_bytes"])
        result["diff"] = {"prepared": "\n".join(words.plan_lines(steps, result["kept"], free)) + "\n"}


def _wanted(module: AnsibleModule, wishes: policy.Wishes, marks: options.Watermarks) -> snapshot.Wanted:
    return snapshot.Wanted(
        images=wishes.images is not None,
        volumes=wishes.volumes is not None or bool(wishes.containers and wishes.containers.volumes),
        networks=wishes.networks is not None,
        build_cache=wishes.build_cache is not None,
        ages=wishes.needs_ages(),
        # A plain run does not pay for sizes that decide nothing.
        sizes=module.check_mode or module._diff or marks.target,
        parallel=module.params["parallel"],
    )


def _foretell(
    result: dict[str, t.Any],
    plan: policy.Plan,
    before: measure.Filesystem | None,
    space: Space,
    marks: options.Watermarks,
) -> None:
    result["removed"] = [_entry(step) for step in plan.steps]
    result["changed"] = bool(plan.steps)
    if before:
        result["free_after"] = min(before.size, before.available + plan.bytes)
    if marks.target:
        result["target_met"] = plan.bytes >= space.missing() and not space.missing_inodes()


class _Worker:
    """Carries plans out and keeps the result up to date, so that nothing is lost whatever ends the run."""

    def __init__(
        self,
        site: session.Site,
        parallel: int,
        space: Space,
        marks: options.Watermarks,
        result: dict[str, t.Any],
    ) -> None:
        self._site = site
        self._parallel = parallel
        self._space = space
        self._target = marks.target
        self._result = result
        self._outcome = removal.Outcome()
        self._kept: tuple[policy.Kept, ...] = ()
        self._free_before = space.free()

    def carry_out(self, plan: policy.Plan) -> None:
        """Do what the plan says, as far as it still holds."""
        self._kept += plan.kept
        enough = self._space.enough if self._target else None
        try:
            removal.carry_out(self._site.engine, plan, self._parallel, self._space.free, enough, self._outcome)
        finally:
            self._tell()

    def complain(self) -> None:
        """Let the module fail if an object could not be removed."""
        failed = self._outcome.failed
        if failed:
            step = failed[0].step
            self._result["failure"] = "engine"
            self._result["msg"] = (
                f"{len(failed)} object{'' if len(failed) == 1 else 's'} could not be removed, all else was done. "
                f"The first: {step.kind} {words.printable(step.name)}: {failed[0].words} The next run tries again."
            )

    def _tell(self) -> None:
        result, outcome = self._result, self._outcome
        if outcome.removed:
            self._space.settle()
        after = self._space.now()
        result["removed"] = [_entry(step) for step in outcome.removed + outcome.gone]
        result["failures"] = [{**_entry(entry.step), "error": entry.words} for entry in outcome.failed]
        result["kept"] = policy.Plan(kept=(*self._kept, *outcome.kept)).kept_by_reason()
        result["changed"] = bool(outcome.removed)
        result["reclaimed_by_kind"] = outcome.by_kind
        if after is not None and self._free_before is not None:
            result["free_after"] = after.available
            result["reclaimed_bytes"] = max(0, after.free - self._free_before)
        if self._target:
            result["target_met"] = self._space.enough()


def _entry(step: policy.Step) -> dict[str, t.Any]:
    return {"kind": step.kind, "id": step.id, "name": step.name, "bytes": step.bytes, "reason": step.reason}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={**options.shared_spec(), **options.clean_spec()}, supports_check_mode=True
    )
    session.run(module, lambda result: clean(module, result))


if __name__ == "__main__":
    main()
