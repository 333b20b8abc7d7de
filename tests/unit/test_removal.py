# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carrying a plan out, against a fake engine that refuses as a real one does: what is tried again, and what is told."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import removal
from ansible_collections.fleetclean.docker.plugins.module_utils.engine import EngineError
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError
from ansible_collections.fleetclean.docker.plugins.module_utils.plan import (
    NOT_REACHED,
    Plan,
    Step,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.policy import condition
from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import container_from


class FakeEngine:
    """Answers for images and volumes alone; ``refusals`` says how often, and how, a removal is refused first."""

    def __init__(self, **refusals: list[EngineError]) -> None:
        self.refusals = refusals
        self.asked: list[str] = []
        self.info = {"DockerRootDir": "/nowhere"}

    def speaks(self, _version: str) -> bool:
        return False

    def containers_as(self, make: t.Callable[[dict[str, t.Any]], t.Any], size: bool = False) -> list[t.Any]:
        return [make(raw) for raw in self.containers(size)]

    def containers(self, size: bool = False) -> list[dict[str, t.Any]]:
        return []

    def image(self, ident: str) -> dict[str, t.Any]:
        return {"Id": ident.partition(":")[0], "RepoTags": [], "RepoDigests": []}

    def remove_image(self, reference: str, force: bool = False) -> None:
        self._remove(reference)

    def remove_volume(self, name: str) -> None:
        self._remove(name)

    def _remove(self, name: str) -> None:
        self.asked.append(name)
        if self.refusals.get(name):
            raise self.refusals[name].pop(0)


def full(name: str) -> EngineError:
    return EngineError(f"DELETE {name}", 500, "write repositories.json: no space left on device")


def changing(name: str) -> EngineError:
    return EngineError(f"DELETE {name}", 500, "consistency error: data changed during operation, retry")


def conflict(name: str) -> EngineError:
    return EngineError(f"DELETE {name}", 409, f"conflict: {name} has dependent child images")


def step(name: str, kind: str = "image", size: int = 10, waits: bool = False) -> Step:
    return Step(kind, name, name, size, "why", waits=waits)


def carry_out(engine: FakeEngine, *steps: Step, enough: t.Callable[[], bool] | None = None) -> removal.Outcome:
    outcome = removal.Outcome()
    needed = (lambda _steps: not enough()) if enough else None
    removal.carry_out(t.cast(t.Any, engine), Plan(steps), 1, lambda: None, needed, outcome)
    return outcome


def names(found: t.Iterable[t.Any]) -> list[str]:
    return [getattr(entry, "step", entry).name for entry in found]


def test_what_failed_for_want_of_space_is_tried_again_once_others_made_some() -> None:
    engine = FakeEngine(a=[full("a")])
    outcome = carry_out(engine, step("a"), step("b"))
    assert engine.asked == ["a", "b", "a"]
    assert (names(outcome.removed), outcome.failed) == (["b", "a"], [])


def test_without_progress_it_is_given_up_and_told() -> None:
    engine = FakeEngine(a=[full("a")] * 9, b=[full("b")] * 9)
    outcome = carry_out(engine, step("a"), step("b"))
    assert engine.asked == ["a", "b"] * 2, "once more, for an engine drops a name before it finds that it cannot write"
    assert names(outcome.failed) == ["a", "b"]
    assert "no space left on device" in outcome.failed[0].words


def test_a_parent_that_was_refused_for_its_child_goes_once_the_child_has_gone() -> None:
    engine = FakeEngine(child=[full("child")], parent=[conflict("parent")])
    outcome = carry_out(engine, step("other"), step("child"), step("parent", waits=True))
    assert names(outcome.removed) == ["other", "child", "parent"]
    assert (outcome.kept, outcome.failed) == ([], [])


def test_what_is_in_use_stays_and_the_engines_words_are_kept() -> None:
    engine = FakeEngine(a=[conflict("a"), conflict("a")])
    outcome = carry_out(engine, step("a"), step("b"))
    assert names(outcome.removed) == ["b"]
    assert [kept.reason for kept in outcome.kept] == ['the engine says "conflict: a has dependent child images"']


def test_an_image_whose_names_change_at_this_moment_is_looked_at_again_and_goes() -> None:
    engine = FakeEngine(a=[changing("a"), changing("a")])
    outcome = carry_out(engine, step("a"))
    assert engine.asked == ["a", "a", "a"]
    assert (names(outcome.removed), outcome.failed) == (["a"], [])


def test_names_that_change_without_end_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "_CHANGES_WITHIN", 0.2)
    outcome = carry_out(FakeEngine(a=[changing("a")] * 99), step("a"))
    assert "data changed during operation" in outcome.failed[0].words


def test_a_tag_that_moves_to_another_image_while_it_is_removed_stays() -> None:
    """That is what the engine says then: the name is not asked for once more, but looked at."""

    class Tags(FakeEngine):
        """Its tag is given to another image the first time that it is to go."""

        def __init__(self) -> None:
            super().__init__(**{"app:1": [changing("app:1")]})
            self.tags = {"app:1": "old", "app:2": "old"}

        def image(self, ident: str) -> dict[str, t.Any]:
            found = self.tags.get(ident, ident)
            return {"Id": found, "RepoTags": [tag for tag, image in self.tags.items() if image == found], "RepoDigests": []}

        def remove_image(self, reference: str, force: bool = False) -> None:
            if not self.asked:
                self.tags["app:1"] = "new"
            super().remove_image(reference, force)

    engine = Tags()
    outcome = carry_out(engine, Step("tag", "old", "app:1", 1, "why", expects=("app:1", "app:2"), beside=("app:2",)))
    assert engine.asked == ["app:1"]
    assert [kept.reason for kept in outcome.kept] == ["the tag names another image now"]


def test_what_is_gone_counts_as_done() -> None:
    engine = FakeEngine(a=[EngineError("DELETE a", 404, "no such image")])
    outcome = carry_out(engine, step("a"))
    assert (outcome.removed, names(outcome.gone)) == ([], ["a"])
    assert outcome.gone[0].reason == "why; was gone already"


def test_once_enough_is_free_the_rest_stays_and_is_named() -> None:
    engine = FakeEngine()
    outcome = carry_out(engine, step("a"), step("b"), step("v", "volume"), enough=lambda: len(engine.asked) >= 1)
    assert names(outcome.removed) == ["a"]
    assert [(kept.name, kept.reason) for kept in outcome.kept] == [("b", NOT_REACHED), ("v", NOT_REACHED)]


@pytest.mark.parametrize("count", [1, 3])
def test_every_step_ends_up_somewhere_whatever_ends_the_run(count: int) -> None:
    class Broken(FakeEngine):
        """Its connection dies in a way that nobody foresaw."""

        def remove_image(self, reference: str, force: bool = False) -> None:
            if len(self.asked) >= count:
                raise RuntimeError("the connection died")
            super().remove_image(reference, force)

    outcome = carry_out(Broken(), *(step(name) for name in "abcd"))
    assert names(outcome.removed) == list("abcd")[:count]
    assert names(outcome.failed) == list("abcd")[count:]
    assert outcome.failed[0].words == "RuntimeError: the connection died"


# -- an engine that goes away ----------------------------------------------------------------------


class FleetingEngine(FakeEngine):
    """Goes away at some calls; ``back`` says whether it comes again, ``took`` what had gone before the answer was lost."""

    def __init__(self, away: t.Iterable[str], back: bool, took: t.Iterable[str] = ()) -> None:
        super().__init__()
        self.away, self.back, self.gone = list(away), back, set(took)
        self.waited = 0

    def wait(self, _seconds: float) -> bool:
        self.waited += 1
        return self.back

    def _remove(self, name: str) -> None:
        if name in self.away:
            self.away.remove(name)
            raise FleetcleanError("engine does not answer: /run/docker.sock: connection refused.", "engine_down")
        if name in self.gone:
            raise EngineError(f"DELETE {name}", 404, "no such object")
        super()._remove(name)


def test_an_engine_that_comes_back_is_waited_for_and_the_work_goes_on() -> None:
    engine = FleetingEngine(["b", "b"], back=True)
    outcome = carry_out(engine, *(step(name) for name in "abc"))
    assert [entry.id for entry in outcome.removed] == ["a", "b", "c"]
    assert (outcome.failed, outcome.kept, engine.waited) == ([], [], 2)


def test_what_went_although_the_answer_was_lost_was_removed_by_us() -> None:
    outcome = carry_out(FleetingEngine(["b"], back=True, took=["b"]), *(step(name) for name in "abc"))
    assert [entry.id for entry in outcome.removed] == ["a", "b", "c"]
    assert outcome.gone == []


@pytest.mark.parametrize("parallel", [1, 4])
def test_an_engine_that_does_not_come_back_ends_the_run_with_all_that_was_done(parallel: int) -> None:
    engine = FleetingEngine(["c", "d", "e", "f"], back=False)
    outcome = removal.Outcome()
    with pytest.raises(FleetcleanError, match="connection refused") as caught:
        removal.carry_out(t.cast(t.Any, engine), Plan(tuple(step(name) for name in "abcdef")), parallel, lambda: None, None, outcome)
    assert caught.value.code == "engine_down"
    assert [entry.id for entry in outcome.removed] == ["a", "b"]
    assert {kept.id: kept.reason for kept in outcome.kept} == dict.fromkeys("cdef", "the engine went away before this was done")
    assert engine.waited == 1, "one waits for all"


def test_one_object_at_which_the_engine_falls_over_each_time_is_given_up_and_the_others_go() -> None:
    outcome = carry_out(FleetingEngine(["b"] * 9, back=True), *(step(name) for name in "abc"))
    assert [entry.id for entry in outcome.removed] == ["a", "c"]
    assert [(result.step.id, "connection refused" in result.words) for result in outcome.failed] == [("b", True)]


# -- build cache -----------------------------------------------------------------------------------


class Builder(FakeEngine):
    """Has records of the build cache; ``busy`` are those it keeps, ``refusals`` how calls fail first."""

    def __init__(self, records: t.Iterable[str], busy: t.Iterable[str] = (), **refusals: list[EngineError]) -> None:
        super().__init__(**refusals)
        self.records, self.busy = set(records), set(busy)
        self.calls: list[tuple[int, int]] = []

    def remove_cache_records(self, idents: t.Collection[str], unused_for: int = 0) -> frozenset[str]:
        self.calls.append((len(idents), unused_for))
        self._remove("prune")
        went = self.records.intersection(idents) - self.busy
        self.records -= went
        return frozenset(went)

    def disk_usage(self, *kinds: str) -> dict[str, t.Any]:
        assert kinds == ("build-cache",)
        return {"BuildCache": [{"ID": ident} for ident in self.records]}


def records(count: int, **more: t.Any) -> list[Step]:
    return [Step("build_cache", f"r{number}", f"r{number}", 1, "why", **more) for number in range(count)]


def test_records_of_the_build_cache_go_many_at_a_time_and_in_the_plans_order() -> None:
    steps = records(150, unused_for=3600)
    builder = Builder([step.id for step in steps])
    outcome = carry_out(builder, *steps)
    assert outcome.removed == steps
    assert len(builder.calls) <= 3
    assert {unused_for for _count, unused_for in builder.calls} == {3600}, "the builder checks the age again"


def test_a_record_that_is_in_use_stays_and_one_that_is_gone_is_done() -> None:
    outcome = carry_out(Builder(["r0", "r1"], busy=["r1"]), *records(3))
    assert [entry.id for entry in outcome.removed] == ["r0"]
    assert [(kept.id, kept.reason) for kept in outcome.kept] == [("r1", "the builder kept it: in use, or used meanwhile")]
    assert [entry.id for entry in outcome.gone] == ["r2"]


def test_with_a_target_records_go_one_by_one() -> None:
    builder = Builder(["r0", "r1", "r2"])
    outcome = carry_out(builder, *records(3), enough=lambda: len(builder.records) == 1)
    assert [entry.id for entry in outcome.removed] == ["r0", "r1"]
    assert [count for count, _age in builder.calls] == [1, 1]


# -- last looks ------------------------------------------------------------------------------------


class Looked(FakeEngine):
    """An engine of one image, one volume and some containers, as they are at the moment of the act."""

    api = (1, 45)

    def __init__(self, tags: t.Sequence[str] = (), containers: t.Sequence[dict[str, t.Any]] = (), created: str = "") -> None:
        super().__init__()
        self.tags, self.boxes, self.created = list(tags), list(containers), created

    def speaks(self, version: str) -> bool:
        return self.api >= tuple(int(part) for part in version.split("."))

    def image(self, ident: str) -> dict[str, t.Any]:
        return {"Id": "i", "RepoTags": self.tags, "RepoDigests": []}

    def containers_as(self, make: t.Callable[[dict[str, t.Any]], t.Any], size: bool = False) -> list[t.Any]:
        return [make(raw) for raw in self.containers(size)]

    def containers(self, size: bool = False) -> list[dict[str, t.Any]]:
        return self.boxes

    def volume(self, name: str) -> dict[str, t.Any]:
        return {"Name": name, "CreatedAt": self.created}


def box(name: str, **more: t.Any) -> dict[str, t.Any]:
    return {"Id": name, "Names": [f"/{name}"], "ImageID": "other", "State": "exited", **more}


def kept_for(engine: FakeEngine, one: Step) -> str:
    outcome = carry_out(engine, one)
    assert outcome.failed == []
    return outcome.kept[0].reason if outcome.kept else ""


def test_by_force_an_image_goes_from_under_the_containers_that_the_plan_knew_and_no_others() -> None:
    one = Step("image", "i", "app:1", 1, "why", force=True, expects=("app:1",), users=("known",))
    known, new = box("known", ImageID="i"), box("new", ImageID="i")
    assert kept_for(Looked(["app:1"], [known]), one) == ""
    assert kept_for(Looked(["app:1"], [known, new]), one) == "it came into use"
    assert kept_for(Looked(["app:1"], [box("known", ImageID="i", State="running")]), one) == "it came into use"


def test_an_image_that_somebody_mounts_stays() -> None:
    class New(Looked):
        api = (1, 48)

    mounting = box("c", Mounts=[{"Type": "image", "Name": "app", "Destination": "/x"}])
    one = Step("image", "i", "app:latest", 1, "why", expects=("app:latest",))
    assert kept_for(New(["app:latest"], [mounting]), one) == "it came into use"
    assert kept_for(New(["app:latest"], [box("c")]), one) == ""


def test_the_last_tag_of_an_image_that_was_to_stay_stays() -> None:
    one = Step("tag", "i", "app:2", 0, "why", beside=("app:1", "app:0"))
    assert kept_for(Looked(["app:2", "app:0"]), one) == ""
    assert kept_for(Looked(["app:2"]), one) == "it is the last tag of its image now"
    assert kept_for(Looked(["app:2", "app:1"], [box("c", ImageID="i")]), one) == "it came into use"


@pytest.mark.parametrize(("digests", "reason"), [(["base@sha256:d"], ""), (["app@sha256:d"], "it is the last tag of its image now")])
def test_a_tag_beside_which_another_repositorys_digest_stays_goes_while_that_is_there(digests: list[str], reason: str) -> None:
    class Known(Looked):
        def image(self, ident: str) -> dict[str, t.Any]:
            return {**super().image(ident), "RepoDigests": digests}

    assert kept_for(Known(["app:2"]), Step("tag", "i", "app:2", 0, "why", beside=("base@sha256:d",))) == reason


def test_an_image_that_got_another_tag_keeps_all_its_tags() -> None:
    one = Step("tag", "i", "app:2", 0, "why", expects=("app:1", "app:2"))
    assert kept_for(Looked(["app:2", "app:1"]), one) == ""
    assert kept_for(Looked(["app:2"]), one) == "", "the other one has gone before"
    assert kept_for(Looked(["app:2", "app:1", "wanted:1"]), one) == "it has got another tag"


def test_a_volume_that_was_made_anew_under_its_name_is_another_one() -> None:
    one = Step("volume", "v", "v", 1, "why", expects=(repr(1709294400.0),))
    assert kept_for(Looked(created="2024-03-01T12:00:00Z"), one) == ""
    assert kept_for(Looked(created="2024-03-01T12:00:01Z"), one) == "it was made anew or changed meanwhile"


class Ending(FleetingEngine):
    """Answers while it shuts down, as engines do."""

    def __init__(self, *away: str) -> None:
        super().__init__(away, back=True)

    def _remove(self, name: str) -> None:
        if name in self.away:
            self.away.remove(name)
            raise EngineError(f"DELETE {name}", 500, "error deleting lease: grpc: the client connection is closing: context canceled")
        super()._remove(name)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "_MOMENT", 0.01)
    monkeypatch.setattr(removal, "_ENDS_WITHIN", 0.3)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("parallel", [1, 4])
def test_an_engine_that_shuts_down_is_waited_for_though_it_still_answers(parallel: int) -> None:
    """And though it may be back before anybody saw that it was gone."""
    outcome = removal.Outcome()
    plan = Plan(tuple(step(name) for name in "abcd"))
    removal.carry_out(t.cast(t.Any, Ending(*"aaaaa", "b", "c")), plan, parallel, lambda: None, None, outcome)
    assert sorted(entry.id for entry in outcome.removed) == ["a", "b", "c", "d"]
    assert outcome.failed == []


@pytest.mark.usefixtures("fast")
def test_an_engine_that_goes_on_answering_so_means_it() -> None:
    engine = Ending(*["b"] * 999, *["d"] * 999)
    outcome = carry_out(engine, *(step(name) for name in "abcde"))
    assert [entry.id for entry in outcome.removed] == ["a", "c", "e"]
    assert [result.step.id for result in outcome.failed] == ["b", "d"]
    assert engine.away.count("d") == 998, "nobody waits for it a second time"


def test_a_name_that_stays_for_want_of_space_lets_its_image_wait_too() -> None:
    class Full(Looked):
        def remove_image(self, reference: str, force: bool = False) -> None:
            self.asked.append(reference)
            if self.asked.count("app:1") == 1:
                raise full(reference)
            self.tags = [tag for tag in self.tags if tag != reference]

    engine = Full(["app:1", "app:2"])
    outcome = carry_out(
        engine,
        Step("tag", "i", "app:1", 0, "why", expects=("app:1", "app:2")),
        Step("image", "i", "app:2", 1, "why", expects=("app:2",)),
    )
    assert engine.asked == ["app:1", "app:1", "i"]
    assert [entry.name for entry in outcome.removed] == ["app:1", "app:2"]
    assert (outcome.kept, outcome.failed) == ([], [])


@pytest.mark.parametrize(
    ("planned", "now", "stays"),
    [
        (("restarting",), "running", "it is running now"),
        (("restarting",), "restarting", ""),
        (("running", "paused"), "paused", ""),
        (("running",), "exited", "it is exited now"),
        (("exited", "running"), "exited", ""),
    ],
)
def test_a_container_is_killed_only_in_a_state_that_was_asked_for(planned: tuple[str, ...], now: str, stays: str) -> None:
    class Flipping(FakeEngine):
        def container(self, ident: str) -> dict[str, t.Any]:
            return {"Id": ident, "State": {"Status": now}}

        def remove_container(self, ident: str, force: bool = False) -> None:
            assert force == (now in ("running", "paused", "restarting"))
            self._remove(ident)

    assert kept_for(Flipping(), Step("container", "c", "c", 1, "why", force=True, expects=planned)) == stays


@pytest.mark.parametrize(
    ("planned", "now", "finished", "stays"),
    [
        ("exited", "dead", "2024-03-01T12:00:00Z", ""),
        ("exited", "dead", "2024-03-01T12:00:01Z", "it ran meanwhile, and is dead now"),
        ("exited", "exited", "2024-03-01T12:00:01Z", "it ran meanwhile, and is exited now"),
        ("dead", "exited", "2024-03-01T12:00:00Z", "it ran meanwhile, and is exited now"),
    ],
)
def test_a_container_whose_removal_began_and_failed_is_unchanged(planned: str, now: str, finished: str, stays: str) -> None:
    """Its disk being read-only, an engine cannot write down that it is dead: the list and the records say what it was before."""

    class Dead(FakeEngine):
        def container(self, ident: str) -> dict[str, t.Any]:
            return {"Id": ident, "State": {"Status": now, "FinishedAt": finished}}

        def remove_container(self, ident: str, force: bool = False) -> None:
            self._remove(ident)

    then = condition(container_from({"Id": "c"}, {"State": {"Status": planned, "FinishedAt": "2024-03-01T12:00:00Z"}}))
    assert kept_for(Dead(), Step("container", "c", "c", 1, "why", expects=then)) == stays


@pytest.mark.parametrize("words", ["unrecognized image ID sha256:1", "layer does not exist"])
@pytest.mark.parametrize("goes", [True, False])
def test_an_image_that_somebody_else_is_removing_is_waited_for(monkeypatch: pytest.MonkeyPatch, words: str, goes: bool) -> None:
    class Shared(Looked):
        looks = 0

        def image(self, ident: str) -> dict[str, t.Any]:
            self.looks += 1
            if goes and self.looks > 3:
                raise EngineError(f"GET {ident}", 404, "No such image")
            return super().image(ident)

        def remove_image(self, reference: str, force: bool = False) -> None:
            raise EngineError(f"DELETE {reference}", 500, words)

    monkeypatch.setattr(removal, "_VANISHES_WITHIN", 0.5)
    outcome = carry_out(Shared(["app:1"]), Step("image", "i", "app:1", 1, "why", expects=("app:1",)))
    assert ([entry.id for entry in outcome.gone], [result.step.id for result in outcome.failed]) == ((["i"], []) if goes else ([], ["i"]))
