# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docker_clean from its options to its result: wishes, snapshot, plan, and the deed or its foretelling."""

from __future__ import annotations

import typing as t
from collections import defaultdict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleetclean.docker.plugins.module_utils import (
    history,
    managers,
    measure,
    options,
    path_uses,
    places,
    removal,
    session,
    snapshot,
    words,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import (
    FleetcleanError,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.plan import NOT_REACHED, Freed, Kept, Plan, Step, Wishes
from ansible_collections.fleetclean.docker.plugins.module_utils.policy import decide
from ansible_collections.fleetclean.docker.plugins.module_utils.units import resolve

if t.TYPE_CHECKING:
    from ansible_collections.fleetclean.docker.plugins.module_utils import attribution
    from ansible_collections.fleetclean.docker.plugins.module_utils.ledger import Ledger
    from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Storage


#: How far what was promised may be from what comes free: within it the filesystem itself is asked, and waited for.
_PRECISION = 1.25
#: An object lies where one in so many of its bytes or inodes is, or so much of it. What is less are records of it: with graph drivers some KB of
#: each image in ``image``, a container's log of a gigabyte beside its empty layer.
_PART, _PART_BYTES, _PART_INODES = 10, 16 << 20, 1000
#: In a plain run a plan of so many objects is measured, if they have no more files than that and the engine no more objects, whose records are
#: read: that takes tenths of a second.
_FEW_OBJECTS, _FEW_FILES, _FEW_ON_HOST = 50, 20_000, 2_000


class Space:
    """The engine's filesystems, asked anew at each call, by device, the data root's first; none where they are not this host's.

    ``assumed``: in check mode, bytes by device that earlier tasks would have reclaimed, which count as free.
    """

    def __init__(self, disks: t.Sequence[places.Disk], marks: options.Watermarks, assumed: t.Mapping[str, int] | None = None) -> None:
        self._disks = disks
        self._marks = marks
        self._assumed = assumed or {}

    @property
    def disks(self) -> t.Sequence[places.Disk]:
        return self._disks

    def now(self) -> dict[str, measure.Filesystem]:
        """What each of them has at this moment."""
        return {disk.device: _with_more(measure.filesystem(disk.path), self._assumed.get(disk.device, 0)) for disk in self._disks}

    def free(self) -> dict[str, int]:
        """Free bytes, root's reserve included: the one figure whose difference is what came free."""
        return {device: found.free for device, found in self.now().items()}

    def settle(self) -> None:
        """Wait for a filesystem that gives space back late, so that what came free can be said."""
        for disk in self._disks:
            measure.settle(disk.path)

    def settled(self) -> int | None:
        """Free bytes of all of them once all that was given back is there."""
        self.settle()
        return self.total(self.free()) if self._disks else None

    def total(self, figures: t.Mapping[str, int]) -> int:
        """The sum of what each has, where two of them have not the same."""
        pools: dict[str, int] = {}
        for disk in self._disks:
            pool = measure.pool(disk.path)
            pools[pool] = max(figures[disk.device], pools.get(pool, 0))
        return sum(pools.values())

    def low(self) -> bool:
        """Whether there is a reason to begin: on one of them is enough."""
        marks = self._marks
        if not self._disks or (marks.only_below is None and marks.only_below_inodes is None):
            return True
        return any(
            (marks.only_below is not None and found.available < resolve(marks.only_below, found.size))
            or (
                marks.only_below_inodes is not None
                and bool(found.inodes)  # filesystems that make them as they are needed tell of none, and never run out of them
                and found.inodes_available < resolve(marks.only_below_inodes, found.inodes)
            )
            for found in self.now().values()
        )

    def missing(self) -> dict[str, tuple[int, int]]:
        """Bytes and inodes still missing to the target, for each filesystem where any are."""
        found = {device: (self._missing_bytes(disk), self._missing_inodes(disk)) for device, disk in self.now().items()}
        return {device: missing for device, missing in found.items() if any(missing)}

    def _missing_bytes(self, found: measure.Filesystem) -> int:
        if self._marks.free_target is None:
            return 0
        return max(0, resolve(self._marks.free_target, found.size) - found.headroom)

    def _missing_inodes(self, found: measure.Filesystem) -> int:
        if self._marks.free_target_inodes is None or not found.inodes:
            return 0
        return max(0, resolve(self._marks.free_target_inodes, found.inodes) - found.inodes_available)

    def enough(self) -> bool:
        return not self.missing()


def _with_more(found: measure.Filesystem, freed: int) -> measure.Filesystem:
    """The same once so many bytes came free."""
    if not freed:
        return found
    headroom = min(found.size, found.headroom + freed)
    return found._replace(
        used=max(0, found.used - freed), free=min(found.size, found.free + freed), headroom=headroom, available=max(0, headroom),
    )


def clean(module: AnsibleModule, result: dict[str, t.Any], wishes: Wishes, marks: options.Watermarks) -> None:
    """Fill ``result`` with what was removed, or in check mode would be."""
    result["policy"] = words.policy_lines(wishes, marks)
    site = session.open_site(module.params)
    own = site.own_storage
    if marks.any and not own:
        raise FleetcleanError(
            f"only_below and free_target ask for the engine's filesystems, and {site.proof.words}. "
            "Run this on the engine's host, or without them.",
            "foreign_root",
        )
    for line in site.refused:
        module.warn(words.printable(line))
    disks = places.disks(own) if own else []
    assumed = options.read_assumed(module.params) if module.check_mode and own else {}
    space = Space(disks, marks, {places.disk_of(own.containers, disks).device: sum(assumed.values())} if own else {})
    before = space.now()
    _begin(result, before)
    result["assumed_bytes"] = sum(assumed.values())
    for found in before.values():
        if found.read_only and not module.check_mode:
            what = "the data root's filesystem" if found is next(iter(before.values())) else "a filesystem of the engine"
            raise FleetcleanError(
                f"{what} at {words.printable(found.mount_point)} is mounted read-only, so nothing can be removed; nothing was "
                "tried. Look into the kernel's log for why, and mount it to be written.",
                "disk",
            )
    if not space.low() or (marks.target and space.enough()):
        result["target_met"] = True if marks.target and space.enough() else None
        if not module.check_mode:
            # The night on which space is low has to know what was used on all nights before.
            wanted = snapshot.Wanted(images=True, volumes=True, networks=True, ages=True, parallel=module.params["parallel"])
            _note(module, site, wanted, _look(site, wanted))
        return
    _Run(module, site, wishes, marks, space, result, assumed).run()


def _begin(result: dict[str, t.Any], before: t.Mapping[str, measure.Filesystem]) -> None:
    """The result of a run that has done nothing yet. The data root's filesystem has its figures at the top as well."""
    root = next(iter(before.values()), None)
    result.update(
        removed=[],
        failures=[],
        kept=[],
        planned_bytes=0,
        planned_logical_bytes=0,
        reclaimed_bytes=0 if root else None,
        reclaimed_by_kind={},
        free_before=root.available if root else None,
        free_after=root.available if root else None,
        filesystem_bytes=root.size if root else None,
        filesystems=[
            {
                "mount_point": words.printable(found.mount_point), "size": found.size, "free_before": found.available,
                "free_after": found.available, "planned_bytes": 0, "reclaimed_bytes": 0,
            }
            for found in before.values()
        ],
        target_met=None,
    )


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
        assumed: t.Mapping[str, int],
    ) -> None:
        self._module = module
        self._assumed = assumed
        self._site = site
        self._own = site.own_storage
        self._wishes = wishes
        self._marks = marks
        self._space = space
        self._result = result
        self._wanted = _wanted(module, wishes, marks)
        self._sizer: t.Callable[[Step], Step] | None = None
        self._is_measured = False

    def run(self) -> None:
        """Look, decide, and do it or say it."""
        module, result = self._module, self._result
        looked, plan = self._decide()
        chosen, rest = plan, Plan()
        if self._marks.target:
            chosen, rest = plan.until_each(self._space.missing(), self._sizer)
        result["planned_bytes"] = chosen.bytes if self._is_measured else None
        result["planned_logical_bytes"] = chosen.logical_bytes
        for disk, entry in zip(self._space.disks, result["filesystems"]):
            entry["planned_bytes"] = _on(chosen, disk.device)[0]
        result["kept"] = Plan(kept=chosen.kept + rest.as_kept(NOT_REACHED)).kept_by_reason()
        if module.check_mode:
            self._foretell(chosen)
        else:
            self._do(looked, chosen, rest)
        for what, answer in looked.unreadable.items():
            so = "are not known" if what.endswith(" sizes") else "stay"
            module.warn(f'{what} could not be listed, so they {so}: the engine says "{answer}". The next run looks again.')
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
            looked = _look(site, wanted)
            sharers = _sharers(self._own, looked, self._wishes)
        memory = history.recall(self._module.params["state_dir"] or "", site.engine_id, looked.now)
        if not self._module.check_mode:
            _note(self._module, site, wanted, looked)
        plan = decide(looked, self._wishes, memory.used, sharers, memory.came, memory.watched)
        ledger = survey.ledger if survey else self._measure_few(looked, plan)
        plan = plan._replace(steps=tuple(map(_unmeasured, plan.steps)))
        self._is_measured = bool(ledger) or not _objects(plan)
        if not ledger:
            return looked, plan
        main = self._space.disks[0].device
        from ansible_collections.fleetclean.docker.plugins.module_utils.accounts import LOG

        # What came free with a log does not come free once more with its container.
        ledger = ledger.reduced({(LOG, ident): size for ident, size in self._assumed.items()})
        if self._marks.target:
            self._sizer = _sizer(ledger, main, self._marks, plan)
        every = _sizer(ledger, main, self._marks, plan)
        del survey, sharers
        return looked, plan._replace(steps=tuple(every(step) for step in _waiting(plan.steps, looked)))

    def _measure_few(self, looked: snapshot.Snapshot, plan: Plan) -> Ledger | None:
        """Measure what goes in a plain run, where that costs little."""
        objects = _objects(plan)
        on_host = sum(map(len, (looked.containers, looked.images, looked.volumes, looked.build_cache)))
        if not self._own or not self._wanted.images or not 0 < len(objects) <= _FEW_OBJECTS or on_host > _FEW_ON_HOST:
            return None
        from ansible_collections.fleetclean.docker.plugins.module_utils import attribution

        how = attribution.How(True, False, self._module.params["state_dir"] or "", self._site.engine_id)
        try:
            # Without the layers of all images nobody knows whose they are.
            complete = snapshot.with_layers(looked, self._site.engine, self._own)
            return attribution.measure_alone(self._own, complete, how, objects, _FEW_FILES) if complete else None
        except OSError:
            return None  # a disk that cannot be read is no reason to remove nothing

    def _foretell(self, plan: Plan) -> None:
        result, before = self._result, self._space.now()
        result["removed"] = [_entry(step) for step in plan.steps]
        result["changed"] = bool(plan.steps)
        for (device, found), entry in zip(before.items(), result["filesystems"]):
            entry["free_after"] = max(0, min(found.size, found.headroom + _on(plan, device)[0]))
        if before:
            result["free_after"] = result["filesystems"][0]["free_after"]
        if self._marks.target:
            freed = {device: _on(plan, device) for device in before}
            result["target_met"] = all(
                freed[device][0] >= size and freed[device][1] >= inodes for device, (size, inodes) in self._space.missing().items()
            )

    def _do(self, looked: snapshot.Snapshot, chosen: Plan, rest: Plan) -> None:
        worker = _Worker(self._site, self._module.params["parallel"], self._space, self._marks, self._result)
        worker.carry_out(chosen)
        if self._marks.target:
            worker.carry_out(rest)  # goes on only if the filesystem says that it was not enough
        if self._wishes.build_cache and self._cache_may_be_had(looked):
            self._site.engine.wait(removal.PATIENCE)  # it may be starting again
            wanted = self._wanted._replace(images=False, volumes=False, networks=False, ages=False, container_ages=False)
            again = _look(self._site, wanted)
            only = Wishes(build_cache=self._wishes.build_cache, keep_labels=self._wishes.keep_labels)
            worker.forget_kept("build_cache")
            more = decide(again, only)
            if self._own and self._marks.target:
                # None of it goes for a filesystem that it does not lie on.
                device = places.disk_of(next(iter(self._own.layer_folders()), self._own.root), self._space.disks).device
                more = more._replace(steps=tuple(step._replace(frees=(Freed(device, step.bytes or 0, 0),)) for step in more.steps))
            worker.carry_out(more._replace(steps=tuple(map(_unmeasured, more.steps))))
        if worker.failed:
            worker.complain(*self._next_run(worker))

    def _next_run(self, worker: _Worker) -> tuple[int, str]:
        """What the next run makes of what could not be removed: how much of it is tried again, and why the first that is not is left.

        The plan of the next run is made for it: whoever lost its name, or its container, may not be asked for any more.
        """
        try:
            looked = _look(self._site, self._wanted._replace(sizes=False))
            sharers = _sharers(self._own, looked, self._wishes)
        except (FleetcleanError, OSError) as error:
            return 0, f"What the next run makes of it cannot be told: {error}"
        there = {
            "container": {found.id for found in looked.containers}, "volume": {found.name for found in looked.volumes},
            "image": {found.id for found in looked.images}, "network": {found.id for found in looked.networks},
        }
        tags = {tag for image in looked.images for tag in image.tags}
        worker.count_as_removed(lambda step: step.name not in tags if step.kind == "tag" else step.id not in there.get(step.kind, {step.id}))
        memory = history.recall(self._module.params["state_dir"] or "", self._site.engine_id, looked.now)
        plan = decide(looked, self._wishes, memory.used, sharers, memory.came, memory.watched)
        planned = {(_object_kind(step), step.id) for step in plan.steps}
        left = [step for step in worker.failed if (_object_kind(step), step.id) not in planned]
        if not left:
            return len(worker.failed), ""
        kept = {(_object_kind(entry), entry.id): entry.reason for entry in plan.kept}
        reason = kept.get((_object_kind(left[0]), left[0].id), "it is not asked for any more")
        name, reason = words.printable(left[0].name), words.printable(reason)
        return len(worker.failed) - len(left), f"It leaves {left[0].kind} {name}: {reason}. Remove that by hand, or ask for it."

    def _cache_may_be_had(self, looked: snapshot.Snapshot) -> bool:
        """Whether there may be more of the cache now: what images shared is nobody's, and what wanted for space can be listed."""
        removed = self._result["removed"]
        if "build_cache" in looked.unreadable:
            return bool(removed)
        return any(record.shared for record in looked.build_cache) and any(entry["kind"] == "image" for entry in removed)


def _look(site: session.Site, wanted: snapshot.Wanted) -> snapshot.Snapshot:
    """What the engine has at this moment, and who uses it by a path."""
    own = site.own_storage
    return path_uses.complete(snapshot.take(site.engine, wanted, own), own, site.storage.root)


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


def _sizer(ledger: Ledger, main: str, marks: options.Watermarks, plan: Plan) -> t.Callable[[Step], Step]:
    """Return what gives one step after the other what comes free with it then: what is shared comes with the last that has it.

    :param main: the device of the data root's filesystem.
    :param marks: what is to come free, bytes or inodes: an object goes for the sake of the filesystem on which its own lie.
    :param plan: what shares something with what is not in it frees nothing of that.
    """
    from ansible_collections.fleetclean.docker.plugins.module_utils.ledger import IMAGE, PREFIXES
    from ansible_collections.fleetclean.docker.plugins.module_utils.walk import Sizes

    turns = ledger.turns()
    going = ledger.going(PREFIXES[step.kind] + step.id for step in plan.steps if step.kind in PREFIXES)

    def sized(step: Step) -> Step:
        if step.kind not in PREFIXES:
            return step._replace(frees=())
        holder = PREFIXES[step.kind] + step.id
        # Its image's layers are no reason for a container to go.
        without = IMAGE if step.kind == "container" else ""
        freed, may, whole = turns(holder), ledger.disks(holder, going, without), ledger.disks(holder, None, without).values()
        size, inodes = sum(sizes.frees for sizes in whole), sum(sizes.inodes for sizes in whole)
        frees = []
        for disk in sorted(may.keys() | freed.keys()):
            has, comes = may.get(disk) or Sizes(), freed.get(disk) or Sizes()
            by_bytes = marks.free_target is not None and (has.frees * _PART >= size or has.frees >= _PART_BYTES)
            by_inodes = marks.free_target_inodes is not None and (has.inodes * _PART >= inodes or has.inodes >= _PART_INODES)
            frees.append(Freed(disk or main, comes.frees, comes.inodes, by_bytes or by_inodes))
        return step._replace(bytes=sum(part.bytes for part in frees), inodes=sum(part.inodes for part in frees), frees=tuple(frees))

    return sized


def _objects(plan: Plan) -> list[str]:
    """What of a plan has bytes, as the ledger names it."""
    return [f"{step.kind}:{step.id}" for step in plan.steps if step.kind not in ("tag", "network")]


def _unmeasured(step: Step) -> Step:
    """A step with the engine's figure for what it is."""
    return step._replace(bytes=None, logical_bytes=step.bytes)


def _waiting(steps: t.Sequence[Step], looked: snapshot.Snapshot) -> t.Iterator[Step]:
    """The steps, each with the containers that have what it is to remove and go before it."""
    going = {step.id for step in steps if step.kind == "container"}
    users: dict[tuple[str, str], list[str]] = defaultdict(list)
    for container in looked.containers:
        if container.id in going:
            users["image", container.image_id].append(container.id)
            for name in container.volumes:
                users["volume", name].append(container.id)
    for step in steps:
        yield step._replace(after=tuple(users[step.kind, step.id])) if (step.kind, step.id) in users else step


def _on(plan: Plan, device: str) -> tuple[int, int]:
    """Bytes and inodes that come free on one filesystem."""
    freed = [part for step in plan.steps for part in step.frees or () if part.device == device]
    return sum(part.bytes for part in freed), sum(part.inodes for part in freed)


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
        labels=managers.looked_at(wishes.label_patterns),
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
        self._is_watching = marks.any
        self._result = result
        self._outcome = removal.Outcome()
        self._kept: tuple[Kept, ...] = ()
        self._before = space.now()
        self._missing = space.missing()

    def carry_out(self, plan: Plan) -> None:
        """Do what the plan says, as far as it still holds."""
        self._kept += plan.kept
        needed = self._needed if self._target else None
        try:
            own = self._site.own_storage
            removal.carry_out(self._site.engine, plan, self._parallel, self._space.settled, needed, self._outcome, own)
        finally:
            self._tell()

    def _needed(self, steps: t.Sequence[Step]) -> bool:
        """Whether one of these steps helps to meet the target; near to it, what comes free late is waited for, or one object more would go."""
        lacking = self._space.missing()
        promised = Plan(tuple(self._outcome.removed))
        if lacking and self._outcome.removed and any(_on(promised, device)[0] * _PRECISION >= self._missing.get(device, (0, 0))[0] for device in lacking):
            self._space.settle()
            lacking = self._space.missing()
        return any(step.helps(lacking) for step in steps)

    def forget_kept(self, kind: str) -> None:
        """What stays of this kind is decided anew."""
        self._kept = tuple(kept for kept in self._kept if kept.kind != kind)
        self._outcome.kept = [kept for kept in self._outcome.kept if kept.kind != kind]

    @property
    def failed(self) -> list[Step]:
        """What could not be removed."""
        return [entry.step for entry in self._outcome.failed]

    def count_as_removed(self, is_gone: t.Callable[[Step], bool]) -> None:
        """What is gone in the end was removed, whatever the engine answered."""
        for entry in list(self._outcome.failed):
            if is_gone(entry.step):
                self._outcome.failed.remove(entry)
                self._outcome.removed.append(entry.step)
        self._tell()

    def complain(self, again: int, rest: str) -> None:
        """Let the module fail if an object could not be removed.

        :param again: how many of them the next run tries to remove.
        :param rest: what becomes of the others.
        """
        failed = self._outcome.failed
        if failed:
            step = failed[0].step
            self._result["failure"] = "engine"
            which = "" if again == len(failed) else f" {again} of them"
            when = "The next run that needs the space" if self._is_watching else "The next run"
            tried = f" {when} tries{which} again." if again else ""
            self._result["msg"] = (
                f"{len(failed)} object{'' if len(failed) == 1 else 's'} could not be removed, all else was done. "
                f"The first: {step.kind} {words.printable(step.name)}: {failed[0].words.strip()}{tried} {rest}".strip()
            )

    def _tell(self) -> None:
        result, outcome = self._result, self._outcome
        result["removed"] = [_entry(step) for step in outcome.removed + outcome.gone]
        result["failures"] = [{**_entry(entry.step), "error": entry.words.strip()} for entry in outcome.failed]
        result["kept"] = Plan(kept=(*self._kept, *outcome.kept)).kept_by_reason()
        result["changed"] = outcome.is_changed
        result["reclaimed_by_kind"] = outcome.by_kind
        after = self._space.now()
        for device, entry in zip(after, result["filesystems"]):
            entry["free_after"] = after[device].available
            entry["reclaimed_bytes"] = max(0, after[device].free - self._before[device].free)
        if after:
            result["free_after"] = result["filesystems"][0]["free_after"]
            result["reclaimed_bytes"] = self._space.total(
                {device: entry["reclaimed_bytes"] for device, entry in zip(after, result["filesystems"])}
            )
        if self._target:
            result["target_met"] = self._space.enough()


def _object_kind(entry: Step | Kept) -> str:
    """The kind of the object: a tag is a name of an image."""
    return "image" if entry.kind == "tag" else entry.kind


def _entry(step: Step) -> dict[str, t.Any]:
    return {"kind": step.kind, "id": step.id, "name": step.name, "bytes": step.bytes, "logical_bytes": step.logical_bytes, "reason": step.reason}
