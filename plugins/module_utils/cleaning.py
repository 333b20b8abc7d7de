# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docker_clean from its options to its result: wishes, snapshot, plan, and the deed or its foretelling."""

from __future__ import annotations

import typing as t
from dataclasses import replace

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleetclean.docker.plugins.module_utils import (
    attribution,
    history,
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
from ansible_collections.fleetclean.docker.plugins.module_utils.ledger import PREFIXES, Ledger
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

    def enough_now(self) -> bool:
        """The same right after a removal: what came free late counts, or one object more would go."""
        if self.enough():
            return True
        self.settle()
        return self.enough()


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
        result["target_met"] = space.enough() if marks.target else None
        if wishes.images and not module.check_mode:
            # The night on which space is low has to know what was used on all nights before.
            wanted = replace(_wanted(module, wishes, marks), networks=False, build_cache=False, sizes=False)
            _remembered(module, site, wanted, snapshot.take(site.engine, wanted, own))
        return
    wanted = _wanted(module, wishes, marks)
    survey = _survey(module, site, wanted) if module.check_mode and own else None
    looked = survey.snapshot if survey else snapshot.take(site.engine, wanted, own)
    remembered = _remembered(module, site, wanted, looked)
    plan = policy.decide(looked, wishes, remembered, survey.sharers if survey else None)
    if survey:
        plan = _sized(plan, survey.ledger)
    if module.check_mode and marks.target and not space.missing_inodes():
        # What was measured promises so much. A real run goes by the filesystem itself.
        plan = plan.until(space.missing())
    result["planned_bytes"] = plan.bytes
    result["kept"] = plan.kept_by_reason()
    if module.check_mode:
        _foretell(result, plan, before, space, marks)
    else:
        worker = _Worker(site, module.params["parallel"], space, marks, result)
        worker.carry_out(plan)
        images_went = any(entry["kind"] == "image" for entry in result["removed"])
        if wishes.build_cache and (images_went or ("build_cache" in looked.unreadable and result["removed"])):
            # What images shared is nobody's now; and a cache that could not be listed for want of space can be.
            looked = snapshot.take(site.engine, replace(wanted, images=False, volumes=False, networks=False, ages=False), own)
            only = policy.Wishes(build_cache=wishes.build_cache, keep_labels=wishes.keep_labels)
            worker.forget_kept("build_cache")
            worker.carry_out(policy.decide(looked, only))
        worker.complain()
    for what, answer in looked.unreadable.items():
        module.warn(f'{what} could not be listed, so they stay: the engine says "{answer}". The next run looks again.')
    if module._diff:
        steps = plan.steps if module.check_mode else [policy.Step(**entry) for entry in result["removed"]]
        free = words.free_words(result["free_before"], result["free_after"], result["filesystem_bytes"])
        result["diff"] = {"prepared": "\n".join(words.plan_lines(steps, result["kept"], free)) + "\n"}


def _survey(module: AnsibleModule, site: session.Site, wanted: snapshot.Wanted) -> attribution.Survey:
    """Measure exactly, since it is the sizes that are asked for: a plain run does not pay for them."""
    how = attribution.How(True, False, module.params["state_dir"] or "", str(site.engine.info.get("ID") or ""))
    return attribution.survey(site.engine, site.own_storage, how, wanted)


def _sized(plan: policy.Plan, ledger: Ledger) -> policy.Plan:
    """The plan with the bytes that come free with each step at its place: what is shared comes with the last that has it."""
    sized = [step for step in plan.steps if step.kind in PREFIXES]
    freed = iter(ledger.freed_in_turn(PREFIXES[step.kind] + step.id for step in sized))
    steps = (replace(step, bytes=next(freed)) if step.kind in PREFIXES else step for step in plan.steps)
    return replace(plan, steps=tuple(steps))


def _remembered(
    module: AnsibleModule, site: session.Site, wanted: snapshot.Wanted, looked: snapshot.Snapshot
) -> dict[str, float]:
    """What earlier runs saw of the last use; and note what this one sees, before containers go."""
    state_dir, engine_id = module.params["state_dir"] or "", str(site.engine.info.get("ID") or "")
    if not (wanted.images and engine_id):
        return {}
    remembered = history.last_uses(state_dir, engine_id)
    if not module.check_mode:
        present = {policy.VOLUME + volume.name for volume in looked.volumes} if wanted.volumes else None
        history.note_uses(
            state_dir, engine_id, policy.uses_seen(looked), {image.id for image in looked.images}, present
        )
    return remembered


def _wanted(module: AnsibleModule, wishes: policy.Wishes, marks: options.Watermarks) -> snapshot.Wanted:
    return snapshot.Wanted(
        images=wishes.images is not None,
        volumes=wishes.volumes is not None or bool(wishes.containers and wishes.containers.volumes),
        networks=wishes.networks is not None,
        build_cache=wishes.build_cache is not None,
        # Also where no age was asked for: the order and the reasons go by it.
        ages=True,
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
        enough = self._space.enough_now if self._target else None
        try:
            removal.carry_out(self._site.engine, plan, self._parallel, self._space.free, enough, self._outcome)
        finally:
            self._tell()

    def forget_kept(self, kind: str) -> None:
        """What stays of this kind is decided anew."""
        self._kept = tuple(kept for kept in self._kept if kept.kind != kind)
        self._outcome.kept = [kept for kept in self._outcome.kept if kept.kind != kind]

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
        result["removed"] = [_entry(step) for step in outcome.removed + outcome.gone]
        result["failures"] = [{**_entry(entry.step), "error": entry.words} for entry in outcome.failed]
        result["kept"] = policy.Plan(kept=(*self._kept, *outcome.kept)).kept_by_reason()
        result["changed"] = bool(outcome.removed)
        result["reclaimed_by_kind"] = outcome.by_kind
        if outcome.removed:
            self._space.settle()
        after = self._space.now()
        if after is not None and self._free_before is not None:
            result["free_after"] = after.available
            result["reclaimed_bytes"] = max(0, after.free - self._free_before)
        if self._target:
            result["target_met"] = self._space.enough()


def _entry(step: policy.Step) -> dict[str, t.Any]:
    return {"kind": step.kind, "id": step.id, "name": step.name, "bytes": step.bytes, "reason": step.reason}
