# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docker_clean from its options to its result: wishes, snapshot, plan, and the deed or its foretelling."""

from __future__ import annotations

import typing as t
from dataclasses import replace

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleetclean.docker.plugins.module_utils import (
    history,
    measure,
    options,
    path_uses,
    removal,
    session,
    snapshot,
    words,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import (
    FleetcleanError,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.plan import NOT_REACHED, Kept, Plan, Step, Wishes
from ansible_collections.fleetclean.docker.plugins.module_utils.policy import decide
from ansible_collections.fleetclean.docker.plugins.module_utils.units import resolve

if t.TYPE_CHECKING:
    from ansible_collections.fleetclean.docker.plugins.module_utils import attribution
    from ansible_collections.fleetclean.docker.plugins.module_utils.ledger import Ledger
    from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Storage


#: How far what was promised may be from what comes free: within it the filesystem itself is asked, and waited for.
_PRECISION = 1.25


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

    def settled(self) -> int | None:
        """The same once all that was given back is there."""
        self.settle()
        return self.free()

    def low(self) -> bool:
        """Whether there is a reason to begin."""
        marks, found = self._marks, self.now()
        if found is None or (marks.only_below is None and marks.only_below_inodes is None):
            return True
        return (marks.only_below is not None and found.available < resolve(marks.only_below, found.size)) or (
            marks.only_below_inodes is not None
            and bool(found.inodes)  # filesystems that make them as they are needed tell of none, and never run out of them
            and found.inodes_available < resolve(marks.only_below_inodes, found.inodes)
        )

    def missing(self) -> int:
        """Bytes still missing to the target; 0 if it is met or there is none."""
        found = self.now()
        if found is None or self._marks.free_target is None:
            return 0
        return max(0, resolve(self._marks.free_target, found.size) - found.headroom)

    def missing_inodes(self) -> int:
        found = self.now()
        if found is None or self._marks.free_target_inodes is None or not found.inodes:
            return 0
        return max(0, resolve(self._marks.free_target_inodes, found.inodes) - found.inodes_available)

    def enough(self) -> bool:
        return not self.missing() and not self.missing_inodes()


def clean(module: AnsibleModule, result: dict[str, t.Any]) -> None:
    """Fill ``result`` with what was removed, or in check mode would be."""
    wishes, marks = options.read_clean(module.params)
    result["policy"] = words.policy_lines(wishes, marks)
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
    if before and before.read_only and not module.check_mode:
        raise FleetcleanError(
            f"the data root's filesystem at {before.mount_point} is mounted read-only, so nothing can be removed; nothing was "
            "tried. Look into the kernel's log for why, and mount it to be written.",
            "disk",
        )
    if not space.low() or (marks.target and space.enough()):
        result["target_met"] = True if marks.target and space.enough() else None
        if not module.check_mode:
            # The night on which space is low has to know what was used on all nights before.
            wanted = snapshot.Wanted(images=True, volumes=True, networks=True, ages=True, parallel=module.params["parallel"])
            _note(module, site, wanted, snapshot.take(site.engine, wanted, own))
        return
    _Run(module, site, wishes, marks, space, result).run()


class _Run:
    """One run that has something to decide."""

    def __init__(
        self,
        module: AnsibleModule,
        site: session.Site,
        wishes: Wishes,
        marks: options.Watermarks,
        space: Space,
        result: dict[str, t.Any],
    ) -> None:
        self._module = module
        self._site = site
        self._own = site.own_storage
        self._wishes = wishes
        self._marks = marks
        self._space = space
        self._result = result
        self._wanted = _wanted(module, wishes, marks)

    def run(self) -> None:
        """Look, decide, and do it or say it."""
        module, result = self._module, self._result
        looked, plan = self._decide()
        chosen, rest = plan, Plan()
        if self._marks.target:
            chosen, rest = plan.until(self._space.missing(), self._space.missing_inodes())
        result["planned_bytes"] = chosen.bytes
        result["kept"] = Plan(kept=chosen.kept + rest.as_kept(NOT_REACHED)).kept_by_reason()
        if module.check_mode:
            self._foretell(chosen)
        else:
            self._do(looked, chosen, rest)
        for what, answer in looked.unreadable.items():
            module.warn(f'{what} could not be listed, so they stay: the engine says "{answer}". The next run looks again.')
        if module._diff:
            steps = chosen.steps if module.check_mode else [Step(**entry) for entry in result["removed"]]
            free = words.free_words(result["free_before"], result["free_after"], result["filesystem_bytes"])
            lines = words.plan_lines(result["policy"], steps, result["kept"], free)
            result["diff"] = {"prepared": "\n".join(lines) + "\n"}

    def _decide(self) -> tuple[snapshot.Snapshot, Plan]:
        """Look at everything and make the plan; with sizes that were measured, where they decide something."""
        site, wanted = self._site, self._wanted
        survey: attribution.Survey | None = None
        sharers: t.Mapping[str, t.Collection[str]] | None
        if self._own and (self._module.check_mode or self._marks.target):
            survey = _survey(self._module, site, wanted)
            looked, sharers = survey.snapshot, survey.sharers
        else:
            looked = path_uses.complete(snapshot.take(site.engine, wanted, self._own), self._own, site.storage.root)
            sharers = _sharers(self._own, looked, self._wishes)
        memory = history.recall(self._module.params["state_dir"] or "", site.engine_id, looked.now)
        if not self._module.check_mode:
            _note(self._module, site, wanted, looked)
        plan = decide(looked, self._wishes, memory.used, sharers, memory.came, memory.watched)
        return looked, _sized(plan, survey.ledger.without(survey.elsewhere)) if survey else plan

    def _foretell(self, plan: Plan) -> None:
        result, before, space = self._result, self._space.now(), self._space
        result["removed"] = [_entry(step) for step in plan.steps]
        result["changed"] = bool(plan.steps)
        if before:
            result["free_after"] = max(0, min(before.size, before.headroom + plan.bytes))
        if self._marks.target:
            inodes = sum(step.inodes for step in plan.steps)
            result["target_met"] = plan.bytes >= space.missing() and inodes >= space.missing_inodes()

    def _do(self, looked: snapshot.Snapshot, chosen: Plan, rest: Plan) -> None:
        worker = _Worker(self._site, self._module.params["parallel"], self._space, self._marks, self._result)
        worker.carry_out(chosen)
        if self._marks.target:
            worker.carry_out(rest)  # goes on only if the filesystem says that it was not enough
        if self._wishes.build_cache and self._cache_may_be_had(looked):
            self._site.engine.wait(removal.PATIENCE)  # it may be starting again
            wanted = replace(self._wanted, images=False, volumes=False, networks=False, ages=False, container_ages=False)
            again = path_uses.complete(snapshot.take(self._site.engine, wanted, self._own), self._own, self._site.storage.root)
            only = Wishes(build_cache=self._wishes.build_cache, keep_labels=self._wishes.keep_labels)
            worker.forget_kept("build_cache")
            worker.carry_out(decide(again, only))
        worker.complain()

    def _cache_may_be_had(self, looked: snapshot.Snapshot) -> bool:
        """Whether there may be more of the cache now: what images shared is nobody's, and what wanted for space can be listed."""
        removed = self._result["removed"]
        if "build_cache" in looked.unreadable:
            return bool(removed)
        return any(record.shared for record in looked.build_cache) and any(entry["kind"] == "image" for entry in removed)


def _note(module: AnsibleModule, site: session.Site, wanted: snapshot.Wanted, looked: snapshot.Snapshot) -> None:
    """Note what this run sees, before containers go; without images nobody could tell which of them are gone."""
    if wanted.images:
        history.note(module.params["state_dir"] or "", site.engine_id, looked, wanted.volumes, wanted.networks)


def _survey(module: AnsibleModule, site: session.Site, wanted: snapshot.Wanted) -> attribution.Survey:
    """Measure exactly, since it is the sizes that are asked for: a plain run does not pay for them."""
    from ansible_collections.fleetclean.docker.plugins.module_utils import attribution

    how = attribution.How(True, False, module.params["state_dir"] or "", site.engine_id)
    return attribution.survey(site.engine, site.own_storage, how, wanted)


def _sharers(
    own: Storage | None, looked: snapshot.Snapshot, wishes: Wishes
) -> t.Mapping[str, t.Collection[str]] | None:
    """The images that have a build cache record's layer: so a plain run plans what check mode does."""
    if not (own and wishes.images and wishes.build_cache and any(record.shared for record in looked.build_cache)):
        return None
    from ansible_collections.fleetclean.docker.plugins.module_utils import attribution

    return attribution.sharers(own, looked)


def _sized(plan: Plan, ledger: Ledger) -> Plan:
    """The plan with what comes free with each step at its place: what is shared comes with the last that has it."""
    from ansible_collections.fleetclean.docker.plugins.module_utils.ledger import PREFIXES

    freed = iter(ledger.in_turn(PREFIXES[step.kind] + step.id for step in plan.steps if step.kind in PREFIXES))
    steps = []
    for step in plan.steps:
        if step.kind in PREFIXES:
            sizes, held = next(freed), ledger.of(PREFIXES[step.kind] + step.id)
            step = replace(step, bytes=sizes.frees, inodes=sizes.inodes, frees=bool(held.frees or held.inodes))
        steps.append(step)
    return replace(plan, steps=tuple(steps))


def _wanted(module: AnsibleModule, wishes: Wishes, marks: options.Watermarks) -> snapshot.Wanted:
    return snapshot.Wanted(
        # Also where none are to go: what containers use has to be noted before the containers go.
        images=wishes.images is not None or bool(module.params["state_dir"]),
        volumes=wishes.volumes is not None or bool(wishes.containers and wishes.containers.volumes),
        networks=wishes.networks is not None or bool(module.params["state_dir"]),
        build_cache=wishes.build_cache is not None,
        # Also where no age was asked for: the order and the reasons go by it.
        ages=wishes.images is not None,
        container_ages=True,
        # A plain run does not pay for sizes that decide nothing.
        sizes=module.check_mode or module._diff or marks.target,
        image_sizes=False,
        services=wishes.orchestrated == "keep",
        parallel=module.params["parallel"],
    )


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
        self._kept: tuple[Kept, ...] = ()
        self._free_before = space.free()
        self._missing = space.missing()

    def carry_out(self, plan: Plan) -> None:
        """Do what the plan says, as far as it still holds."""
        self._kept += plan.kept
        enough = self._enough if self._target else None
        try:
            own = self._site.own_storage
            removal.carry_out(self._site.engine, plan, self._parallel, self._space.settled, enough, self._outcome, own)
        finally:
            self._tell()

    def _enough(self) -> bool:
        """Whether the target is met; near to it, what comes free late is waited for, or one object more would go."""
        if self._space.enough():
            return True
        promised = sum(step.bytes or 0 for step in self._outcome.removed)
        if not self._outcome.removed or promised * _PRECISION < self._missing:
            return False
        self._space.settle()
        return self._space.enough()

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
        result["kept"] = Plan(kept=(*self._kept, *outcome.kept)).kept_by_reason()
        result["changed"] = bool(outcome.removed)
        result["reclaimed_by_kind"] = outcome.by_kind
        after = self._space.now()
        if after is not None and self._free_before is not None:
            result["free_after"] = after.available
            result["reclaimed_bytes"] = max(0, after.free - self._free_before)
        if self._target:
            result["target_met"] = self._space.enough()


def _entry(step: Step) -> dict[str, t.Any]:
    return {"kind": step.kind, "id": step.id, "name": step.name, "bytes": step.bytes, "reason": step.reason}
