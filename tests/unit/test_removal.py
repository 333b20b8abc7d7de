# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carrying a plan out, against a fake engine that refuses as a real one does: what is tried again, and what is told."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import removal
from ansible_collections.fleetclean.docker.plugins.module_utils.engine import EngineError
from ansible_collections.fleetclean.docker.plugins.module_utils.policy import (
    NOT_REACHED,
    Plan,
    Step,
)


class FakeEngine:
    """Answers for images and volumes alone; ``refusals`` says how often, and how, a removal is refused first."""

    def __init__(self, **refusals: list[EngineError]) -> None:
        self.refusals = refusals
        self.asked: list[str] = []

    def speaks(self, _version: str) -> bool:
        return False

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


def conflict(name: str) -> EngineError:
    return EngineError(f"DELETE {name}", 409, f"conflict: {name} has dependent child images")


def step(name: str, kind: str = "image", size: int = 10, waits: bool = False) -> Step:
    return Step(kind, name, name, size, "why", waits=waits)


def carry_out(engine: FakeEngine, *steps: Step, enough: t.Callable[[], bool] | None = None) -> removal.Outcome:
    outcome = removal.Outcome()
    removal.carry_out(t.cast(t.Any, engine), Plan(steps), 1, lambda: None, enough, outcome)
    return outcome


def names(found: t.Iterable[t.Any]) -> list[str]:
    return [getattr(entry, "step", entry).name for entry in found]


def test_what_failed_for_want_of_space_is_tried_again_once_others_made_some() -> None:
    engine = FakeEngine(a=[full("a")])
    outcome = carry_out(engine, step("a"), step("b"))
    assert engine.asked == ["a", "b", "a"]
    assert (names(outcome.removed), outcome.failed) == (["b", "a"], [])


def test_without_progress_it_is_given_up_and_told() -> None:
    engine = FakeEngine(a=[full("a"), full("a")], b=[full("b"), full("b")])
    outcome = carry_out(engine, step("a"), step("b"))
    assert engine.asked == ["a", "b"]
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
