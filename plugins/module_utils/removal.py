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

An engine that goes away meanwhile (a restart, an upgrade) is waited for; then the work goes on, each step checked anew.
"""

from __future__ import annotations

import functools
import threading
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby

from ansible_collections.fleetclean.docker.plugins.module_utils.engine import (
    Engine,
    EngineError,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import (
    FleetcleanError,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.last_look import LastLook
from ansible_collections.fleetclean.docker.plugins.module_utils.names import known_as, mounted_by
from ansible_collections.fleetclean.docker.plugins.module_utils.plan import (
    NOT_REACHED,
    PARENT_STAYS,
    Kept,
    Plan,
    Step,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.policy import is_unchanged
from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import (
    Wanted,
    container_from,
    engine_clock,
    references,
    take,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Storage
from ansible_collections.fleetclean.docker.plugins.module_utils.units import parse_time
from ansible_collections.fleetclean.docker.plugins.module_utils.words import printable

#: How a step came out.
_DONE, _GONE, _KEPT, _FAILED = "done", "gone", "kept", "failed"
#: Seconds for an engine that went away to come back: a restart with many containers takes its time.
PATIENCE = 60.0
#: So many records of the build cache go with one call. The builder looks at all it has for each call, and
#: answers only at the end: a large batch is fast, a small one loses little when it is interrupted.
_CACHE_BATCH = 64
_ATTEMPTS = 3
#: Seconds within which an engine that shuts down is gone (it gives its containers some time before), and between two looks.
_ENDS_WITHIN = 20.0
_MOMENT = 0.5
#: Seconds for another cleaner to be done with an image.
_VANISHES_WITHIN = 5.0
#: So long an image whose names others change at this moment is looked at again, and with all that is looked at before it goes.
_CHANGES_WITHIN = 2.0
_IN_USE = "it came into use"
_WAS_USED = "it was used meanwhile"
_TAGGED = "it has got another tag"
_LOST = "the engine went away before this was done"


class Result(t.NamedTuple):
    """How one step came out; ``words`` say why it was kept or failed, empty otherwise.

    ``later``: it may come out better once other steps are done (space is free, an image is gone).
    ``touched``: though it was not done, something was changed, or nobody can tell that nothing was.
    """

    step: Step
    outcome: str
    words: str = ""
    later: bool = False
    disk_full: bool = False
    touched: bool = False


@dataclass
class Outcome:
    """All that was done. ``by_kind`` is what came free on the filesystem, bytes, None where it is not ours to see.

    ``images`` are the ids of those that are gone. ``touched``: what was not removed was changed.
    """

    removed: list[Step] = field(default_factory=list)
    gone: list[Step] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    failed: list[Result] = field(default_factory=list)
    by_kind: dict[str, int] = field(default_factory=dict)
    images: set[str] = field(default_factory=set)
    touched: bool = False

    @property
    def is_changed(self) -> bool:
        return bool(self.removed) or self.touched

    def add(self, result: Result) -> None:
        step = result.step
        self.touched = self.touched or result.touched
        if step.kind == "image" and result.outcome in (_DONE, _GONE):
            self.images.add(step.id)
        if result.outcome == _DONE:
            self.removed.append(step)
        elif result.outcome == _GONE:
            self.gone.append(step._replace(bytes=0, logical_bytes=0, reason=f"{step.reason}; was gone already"))
        elif result.outcome == _KEPT:
            self.kept.append(step.kept(result.words))
        else:
            self.failed.append(result)


def carry_out(
    engine: Engine,
    plan: Plan,
    parallel: int,
    available: t.Callable[[], int | None],
    needed: t.Callable[[t.Sequence[Step]], bool] | None,
    outcome: Outcome,
    storage: Storage | None = None,
) -> None:
    """Remove what the plan says, in its order, and put into ``outcome`` what was done as it is done.

    :param available: free bytes of the engine's filesystems, None if that is not ours to see.
    :param needed: asked before each object with its steps; they stay if nothing of them is needed any more. With it, one step at a time.
    :param storage: the engine's storage, if it is proven to be this host's: then mounts are looked at again before each removal.
    :raises FleetcleanError: the engine went away and did not come back; ``outcome`` has what was done until then.
    """
    steps: list[Step] = list(plan.steps)
    held: list[Result] = []
    presence = _Presence(engine)
    look = LastLook(engine, storage, {step.id for step in plan.steps if step.kind == "container"})
    before = available() if steps else None
    desperate = False
    try:
        while steps:
            progress = len(outcome.removed)
            for kind, group in groupby(list(steps), key=_kind_group):
                act = _Actor(engine, presence, look, outcome.images)
                for result in _carry_out_group(act, list(group), parallel, needed):
                    steps.remove(result.step)
                    if result.later:
                        held.append(result)
                    else:
                        outcome.add(result)
                after = available()
                if before is not None and after is not None:
                    outcome.by_kind[kind] = outcome.by_kind.get(kind, 0) + max(0, after - before)
                before = after
                if presence.lost:
                    raise presence.lost
                if needed and not needed(steps):
                    return
            if len(outcome.removed) == progress:
                # On a full disk the engine has dropped a name that it could not untag, but from its file only: then by id it goes.
                if desperate or not any(result.disk_full for result in held):
                    return
                desperate = True
            steps, held = [result.step for result in held], []
    finally:
        for result in held:
            outcome.add(result)
        for step in steps:
            outcome.kept.append(step.kept(_LOST if presence.lost else NOT_REACHED))


def _kind_group(step: Step) -> str:
    if step.of:
        return "container"
    return "image" if step.kind == "tag" else step.kind


def _key(step: Step) -> tuple[str, str, str]:
    return step.kind, step.id, step.name


def _unit(step: Step) -> str:
    """What is done as one: an image's tags before the image itself, a container before its volumes."""
    return step.of or step.id


class _Presence:
    """Whether the engine is there: one waits for it, and what is found holds for all threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._back = float("-inf")
        self._stubborn = False
        self.lost: FleetcleanError | None = None

    def ends(self, first: float) -> bool:
        """Wait a moment for an engine that says that it is shutting down; False once that is not to be believed any more.

        :param first: when it said so first, by the monotonic clock. It may be back before anybody sees that it was gone.
        """
        if not self._stubborn and time.monotonic() - first > _ENDS_WITHIN:
            self._stubborn = True  # then it is its answer, and nobody else waits for it
        if not self._stubborn:
            time.sleep(_MOMENT)
        return not self._stubborn

    def back(self, error: FleetcleanError, since: float) -> bool:
        """Wait after a call that did not come through; return whether it may be tried again.

        :param since: when the call was made, by the monotonic clock: who finds that it was waited for since then waits no more.
        """
        with self._lock:
            if self.lost or self._back > since:
                return not self.lost
            if not self._engine.wait(PATIENCE):
                self.lost = error
            self._back = time.monotonic()
            return not self.lost


def _carry_out_group(
    act: _Actor, steps: list[Step], parallel: int, needed: t.Callable[[t.Sequence[Step]], bool] | None
) -> t.Iterator[Result]:
    if needed:
        for _ident, unit in groupby(steps, key=_unit):
            alike = list(unit)
            if needed(alike):
                yield from act.remove(alike)
            else:
                yield from (Result(step, _KEPT, NOT_REACHED) for step in alike)
        return
    if steps[0].kind == "build_cache":
        for start in range(0, len(steps), _CACHE_BATCH):
            yield from act.remove(steps[start:start + _CACHE_BATCH])
        return
    with ThreadPoolExecutor(max_workers=parallel) as pool:
        for batch in _batches(steps):
            for results in pool.map(act.remove, batch):
                yield from results


def _batches(steps: list[Step]) -> list[list[list[Step]]]:
    """Units that may run at once, split where one has to wait for all before it (a parent for its children)."""
    batches: list[list[list[Step]]] = [[]]
    for _ident, unit in groupby(steps, key=_unit):
        unit_steps = list(unit)
        if any(step.waits for step in unit_steps) and batches[-1]:
            batches.append([])
        batches[-1].append(unit_steps)
    return batches


class _Actor:
    """Does steps, each after a last look. ``went`` are the ids of images that are gone."""

    def __init__(self, engine: Engine, presence: _Presence, look: LastLook, went: t.Collection[str]) -> None:
        self._engine = engine
        self._went = went
        self._presence = presence
        self._look = look
        #: What was right before the engine was asked to remove it, by kind, id and name: a container's state, an image's names.
        self._sent: dict[tuple[str, str, str], object] = {}

    def remove(self, steps: list[Step]) -> list[Result]:
        """Do steps, if they are still right. Raises nothing: whatever happens is the result."""
        if steps[0].kind == "build_cache":
            return self._through(lambda: self._build_cache(steps), steps)
        results: list[Result] = []
        for step in steps:
            before = results[-1] if results else None
            if before and before.later and before.step.id == step.id:
                # Of one object: what stopped its first name stops all of it, until that is tried again.
                results.append(before._replace(step=step))
            else:
                results += self._through(functools.partial(self._one, step), [step])
        return results

    def _through(self, act: t.Callable[[], list[Result]], steps: list[Step]) -> list[Result]:
        """Do it, and once more if the engine went away meanwhile and came back."""
        attempt, first = 0, 0.0
        while attempt < _ATTEMPTS and not self._presence.lost:
            since = time.monotonic()
            try:
                results = act()
                if attempt or first:
                    # Without an answer nobody knows; but what is gone after we asked for it went by our call.
                    results = [result._replace(outcome=_DONE) if result.outcome == _GONE else result for result in results]
                return results
            except FleetcleanError as error:
                last = str(error)
                if isinstance(error, EngineError) and error.ending:
                    first = first or since
                    if not self._presence.ends(first):
                        break
                elif error.code != "engine_down" or not self._presence.back(error, since):
                    break
                else:
                    attempt += 1
            # In a thread of its own an exception would take the results of its neighbours along.
            except Exception as error:  # pylint: disable=broad-except
                return [Result(step, _FAILED, f"{type(error).__name__}: {error}") for step in steps]
        if self._presence.lost:
            return [Result(step, _KEPT, _LOST, touched=_key(step) in self._sent) for step in steps]
        return [Result(step, _FAILED, last, touched=_key(step) in self._sent) for step in steps]

    def _one(self, step: Step) -> list[Result]:
        if any(child not in self._went for child in step.children):
            # containerd's store would take its names and leave it there without any.
            return [Result(step, _KEPT, PARENT_STAYS, later=True)]
        end = time.monotonic() + _CHANGES_WITHIN
        while True:
            try:
                return [getattr(self, f"_{step.kind}")(step)]
            except EngineError as error:
                if not error.changing or time.monotonic() > end:
                    return [self._refused(step, error)]
            time.sleep(0.1)

    def _refused(self, step: Step, error: EngineError) -> Result:
        if error.ending:
            raise error
        if error.gone or (error.vanishing and self._vanished(step)):
            return Result(step, _GONE)
        if error.conflict:
            if "already in progress" in error.answer:
                return Result(step, _GONE)
            # A child, or a container, that had to wait may hold it: then it is tried once more.
            touched = step.kind in ("tag", "image") and bool(self._change(step))
            return Result(step, _KEPT, f'the engine says "{error.said}"', later=True, touched=touched)
        change = self._change(step)
        return Result(step, _FAILED, f"{error}{change}", later=error.disk_full, disk_full=error.disk_full, touched=bool(change))

    def _change(self, step: Step) -> str:
        """What a removal changed that came to no good end, in words; a blank if nobody can tell, empty if nothing was changed."""
        if _key(step) not in self._sent:
            return ""
        before = self._sent[_key(step)]
        try:
            if step.kind == "container":
                now = container_from({"Id": step.id}, self._engine.container(step.id)).state
                if now == before:
                    return "" if now != "dead" else " "
                return f" It is {now} now{', and cannot start again' if now == 'dead' else ''}."
            if step.kind in ("tag", "image"):
                names = {name for group in references(self._engine.image(step.id)) for name in group}
                lost = sorted(name for name in t.cast("set[str]", before) if name not in names)
                return f" It has lost its name{'' if len(lost) == 1 else 's'} {', '.join(map(printable, lost))}." if lost else ""
        except EngineError:
            pass
        return " "

    def _vanished(self, step: Step) -> bool:
        """Whether an image that somebody else is removing is gone within a moment."""
        end = time.monotonic() + _VANISHES_WITHIN
        while time.monotonic() < end:
            try:
                self._engine.image(step.id)
            except EngineError as error:
                if error.gone:
                    return True
            time.sleep(0.1)
        return False

    def _container(self, step: Step) -> Result:
        now = container_from({"Id": step.id}, self._engine.container(step.id))
        if step.force:
            if now.state not in step.expects:
                return Result(step, _KEPT, f"it is {now.state} now")
        elif not is_unchanged(now, step.expects):
            return Result(step, _KEPT, f"it ran meanwhile, and is {now.state} now")
        reason = self._look.why_needed(step.id, step.users) or self._look.why_held("container", step.id)
        if reason:
            return Result(step, _KEPT, reason, later=True)  # by a container perhaps that is about to go
        self._sent[_key(step)] = now.state
        self._engine.remove_container(step.id, force=step.force and now.live)
        return Result(step, _DONE)

    def _tag(self, step: Step) -> Result:
        found = self._engine.image(step.name)
        if str(found.get("Id")) != step.id:
            return Result(step, _KEPT, "the tag names another image now")
        tags, digests = references(found)
        if step.beside and not {*tags, *digests}.intersection(step.beside):
            return Result(step, _KEPT, "it is the last tag of its image now")
        if step.expects and set(tags).difference(step.expects):
            return Result(step, _KEPT, _TAGGED)  # then the image stays, and with all its names
        if self._came_into_use(step, tags + digests):
            return Result(step, _KEPT, _IN_USE)
        self._sent[_key(step)] = {*tags, *digests}
        self._engine.remove_image(step.name)
        return Result(step, _DONE)

    def _image(self, step: Step) -> Result:
        tags, digests = references(self._engine.image(step.id))
        if set(tags) - set(step.expects):
            return Result(step, _KEPT, _TAGGED)
        # Without force the engine refuses an image that a container has; with it, it asks nobody. And nobody is asked
        # about what containers mount.
        if self._look.mounts_image(step.id, known_as(step.id, *tags, *digests)) or (
            step.force and self._came_into_use(step, tags + digests)
        ):
            return Result(step, _KEPT, _IN_USE)
        held = self._look.why_held("image", step.id)
        if held:
            return Result(step, _KEPT, held, later=True)
        self._sent[_key(step)] = {*tags, *digests}
        try:
            self._engine.remove_image(step.id, force=step.force)
        except EngineError as error:
            # By id the engine removes an image of one repository only; those of its digests count.
            if not (error.conflict and "multiple repositories" in error.answer and digests):
                raise
            try:
                for digest in digests if tags else digests[:-1]:
                    self._engine.remove_image(digest)
                self._engine.remove_image(step.id)
            except EngineError as last:
                if not last.gone:
                    raise  # else it went with its last name
        return Result(step, _DONE)

    def _volume(self, step: Step) -> Result:
        held = self._look.why_held("volume", step.id)
        if held:
            return Result(step, _KEPT, held, later=True)
        # A volume has no id: one that was made anew under this name, or used, is another one.
        if step.expects and repr(parse_time(self._engine.volume(step.id).get("CreatedAt"))) not in step.expects:
            return Result(step, _KEPT, "it was made anew or changed meanwhile")
        self._sent[_key(step)] = None
        self._engine.remove_volume(step.id)
        return Result(step, _DONE)

    def _network(self, step: Step) -> Result:
        # The engine removes a network from under a stopped container; we do not.
        containers = take(self._engine, Wanted(), None).containers
        if any({step.id, step.name}.intersection(container.networks) for container in containers):
            return Result(step, _KEPT, _IN_USE)
        if step.unused_for and self._look.network_used_at(step.id) > engine_clock(self._engine.info) - step.unused_for:
            return Result(step, _KEPT, _WAS_USED)
        self._sent[_key(step)] = None
        try:
            self._engine.remove_network(step.id)
        except EngineError as error:
            if "active endpoints" in error.answer:
                return Result(step, _KEPT, _IN_USE)
            raise
        return Result(step, _DONE)

    def _build_cache(self, steps: list[Step]) -> list[Result]:
        try:
            went = self._engine.remove_cache_records([step.id for step in steps], min(step.unused_for for step in steps))
        except EngineError as error:
            # It went through them one by one until then.
            there = self._records_left()
            done = [step for step in steps if there is not None and step.id not in there]
            return [Result(step, _DONE) for step in done] + [self._refused(step, error) for step in steps if step not in done]
        results = [Result(step, _DONE) for step in steps if step.id in went]
        left = [step for step in steps if step.id not in went]
        if left:
            still = self._records_left()
            for step in left:
                # An image that went a moment ago may still hold it: the builder lets go a little later.
                kept = Result(step, _KEPT, "the builder kept it: in use, or used meanwhile", later=True)
                results.append(kept if still is None or step.id in still else Result(step, _GONE))
        return results

    def _records_left(self) -> set[str] | None:
        try:
            return {str(raw.get("ID")) for raw in self._engine.disk_usage("build-cache").get("BuildCache") or ()}
        except EngineError:
            return None  # on a full disk the builder cannot even tell

    def _came_into_use(self, step: Step, names: tuple[str, ...]) -> bool:
        """Whether a container has or mounts the image that the plan did not know of; under force, also one that runs by now."""
        found = [container_from(raw) for raw in self._engine.containers()]
        if mounted_by(found)(step.id, known_as(step.id, *names)):
            return True
        return any(
            container.image_id == step.id and (container.live or container.id not in step.users) for container in found
        )
