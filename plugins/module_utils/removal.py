# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries a plan out, object by object, and survives what changes meanwhile.

Between plan and act containers start, images get used and others clean up too. So each step asks
again right before the act whether what was decided still holds; what came into use stays, what is
gone already counts as done, and one object that fails does not stop the rest. The engine's own
prune calls are not used: they take more than a plan says (named volumes below API 1.42; the leases
of running pulls on containerd's store, moby issue 53321).

On a disk without a free byte untagging an image fails, for the engine writes a new
``repositories.json`` first. Steps that fail so are tried again after others have made space.
"""

from __future__ import annotations

import typing as t
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby

from ansible_collections.fleetclean.docker.plugins.module_utils.engine import (
    Engine,
    EngineError,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import (
    FleetcleanError,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.policy import (
    NOT_REACHED,
    Kept,
    Plan,
    Step,
    condition,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import (
    Wanted,
    container_from,
    references,
    take,
)

#: How a step came out.
_DONE, _GONE, _KEPT, _FAILED = "done", "gone", "kept", "failed"


@dataclass(frozen=True)
class Result:
    """How one step came out; ``words`` say why it was kept or failed, empty otherwise.

    ``later``: it may come out better once other steps are done (space is free, an image is gone).
    """

    step: Step
    outcome: str
    words: str = ""
    later: bool = False


@dataclass
class Outcome:
    """All that was done. ``by_kind`` is what came free on the filesystem, bytes, None where it is not ours to see."""

    removed: list[Step] = field(default_factory=list)
    gone: list[Step] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    failed: list[Result] = field(default_factory=list)
    by_kind: dict[str, int] = field(default_factory=dict)

    def add(self, result: Result) -> None:
        step = result.step
        if result.outcome == _DONE:
            self.removed.append(step)
        elif result.outcome == _GONE:
            self.gone.append(replace(step, bytes=0, reason=f"{step.reason}; was gone already"))
        elif result.outcome == _KEPT:
            self.kept.append(Kept(step.kind, step.id, step.name, step.bytes, result.words))
        else:
            self.failed.append(result)


def carry_out(
    engine: Engine,
    plan: Plan,
    parallel: int,
    available: t.Callable[[], int | None],
    enough: t.Callable[[], bool] | None,
    outcome: Outcome,
) -> None:
    """Remove what the plan says, in its order, and put into ``outcome`` what was done as it is done.

    :param available: free bytes of the data root's filesystem, None if that is not ours to see.
    :param enough: asked before each step; True ends the work. With it, one step at a time.
    """
    steps: list[Step] = list(plan.steps)
    held: list[Result] = []
    try:
        while steps:
            progress = len(outcome.removed)
            for kind, group in groupby(list(steps), key=_kind_group):
                before = available()
                for result in _carry_out_group(engine, list(group), parallel, enough):
                    steps.remove(result.step)
                    if result.later:
                        held.append(result)
                    else:
                        outcome.add(result)
                after = available()
                if before is not None and after is not None:
                    outcome.by_kind[kind] = outcome.by_kind.get(kind, 0) + max(0, after - before)
                if enough and enough():
                    return
            if len(outcome.removed) == progress:
                return
            steps, held = [result.step for result in held], []
    finally:
        for result in held:
            outcome.add(result)
        for step in steps:
            outcome.kept.append(Kept(step.kind, step.id, step.name, step.bytes, NOT_REACHED))


def _kind_group(step: Step) -> str:
    return "image" if step.kind == "tag" else step.kind


def _carry_out_group(
    engine: Engine, steps: list[Step], parallel: int, enough: t.Callable[[], bool] | None
) -> t.Iterator[Result]:
    act = _Actor(engine, steps)
    if enough:
        for step in steps:
            if enough():
                return
            yield act.remove(step)
        return
    with ThreadPoolExecutor(max_workers=parallel) as pool:
        for batch in _batches(steps):
            for results in pool.map(lambda unit: [act.remove(step) for step in unit], batch):
                yield from results


def _batches(steps: list[Step]) -> list[list[list[Step]]]:
    """Steps that may run at once: units of one object (an image's tags before the image itself),
    split where one has to wait for all before it (a parent for its children)."""
    batches: list[list[list[Step]]] = [[]]
    for _ident, unit in groupby(steps, key=lambda step: step.id):
        unit_steps = list(unit)
        if any(step.waits for step in unit_steps) and batches[-1]:
            batches.append([])
        batches[-1].append(unit_steps)
    return batches


class _Actor:
    """Does single steps. Made anew for each group, so what it looks up once is fresh."""

    def __init__(self, engine: Engine, steps: list[Step]) -> None:
        self._engine = engine
        self._networks_in_use: set[str] = set()
        if steps and steps[0].kind == "network":
            # The engine removes a network from under a stopped container; we do not.
            for container in take(engine, Wanted(), None).containers:
                self._networks_in_use.update(container.networks)

    def remove(self, step: Step) -> Result:
        """Do one step, if it is still right. Raises nothing: whatever happens is the result."""
        try:
            return getattr(self, f"_{step.kind}")(step)
        except EngineError as error:
            if error.gone:
                return Result(step, _GONE)
            if error.conflict:
                if "already in progress" in error.answer:
                    return Result(step, _GONE)
                # A child, or a container, that had to wait may hold it: then it is tried once more.
                return Result(step, _KEPT, f'the engine says "{error.answer}"', later=True)
            return Result(step, _FAILED, str(error), later=error.disk_full)
        except FleetcleanError as error:
            return Result(step, _FAILED, str(error))
        # In a thread of its own an exception would take the results of its neighbours along.
        except Exception as error:  # pylint: disable=broad-except
            return Result(step, _FAILED, f"{type(error).__name__}: {error}")

    def _container(self, step: Step) -> Result:
        now = container_from({"Id": step.id}, self._engine.container(step.id))
        if not step.force and condition(now) != step.expects:
            return Result(step, _KEPT, f"it ran meanwhile, and is {now.state} now")
        self._engine.remove_container(step.id, force=step.force)
        return Result(step, _DONE)

    def _tag(self, step: Step) -> Result:
        if str(self._engine.image(step.name).get("Id")) != step.id:
            return Result(step, _KEPT, "the tag names another image now")
        if self._in_use(step.id, running=step.force):
            return Result(step, _KEPT, "it came into use")
        self._engine.remove_image(step.name)
        return Result(step, _DONE)

    def _image(self, step: Step) -> Result:
        tags, digests = references(self._engine.image(step.id))
        if set(tags) - set(step.expects):
            return Result(step, _KEPT, "it has got another tag")
        try:
            self._engine.remove_image(step.id, force=step.force)
        except EngineError as error:
            # By id the engine removes an image with one name only; digests of other registries count.
            if not (error.conflict and "multiple repositories" in error.answer and len(digests) > 1):
                raise
            for digest in digests[:-1]:
                self._engine.remove_image(digest)
            self._engine.remove_image(step.id)
        return Result(step, _DONE)

    def _volume(self, step: Step) -> Result:
        self._engine.remove_volume(step.id)
        return Result(step, _DONE)

    def _network(self, step: Step) -> Result:
        if {step.id, step.name} & self._networks_in_use:
            return Result(step, _KEPT, "it came into use")
        try:
            self._engine.remove_network(step.id)
        except EngineError as error:
            if "active endpoints" in error.answer:
                return Result(step, _KEPT, "it came into use")
            raise
        return Result(step, _DONE)

    def _build_cache(self, step: Step) -> Result:
        if self._engine.remove_cache_record(step.id) is None:
            # An image that went a moment ago may still hold it: the builder lets go a little later.
            return Result(step, _KEPT, "the engine kept it: in use by a build, or gone", later=True)
        return Result(step, _DONE)

    def _in_use(self, image_id: str, running: bool) -> bool:
        """Whether a container has the image; with ``running``, only those that have processes count."""
        found = [container_from(raw) for raw in self._engine.containers()]
        return any(container.image_id == image_id and (container.live or not running) for container in found)
