# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An engine that lives on between runs: containers start and stop, images are pulled and tagged, volumes are used, builds go on, others clean.

After whatever happened, a run in check mode changes nothing and foretells the real one; that takes what expected.py says and nothing in use;
and the run after it has nothing to do.
"""

from __future__ import annotations

import typing as t

from ansible_collections.fleetclean.docker.plugins.module_utils import policy
from ansible_collections.fleetclean.docker.plugins.module_utils.last_use import uses_seen
from expected import Expected, promised, what
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from model import NOW, Model

from tests.fuzz.budget import machine
from tests.fuzz.dice import Dice, dice
from tests.fuzz.test_worlds import Case, Others, act, check_plan, explain, look, random_model, random_wishes


class LivingEngine(RuleBasedStateMachine):
    """See above."""

    engine: t.Optional[Model] = None

    @initialize(thrown=dice())
    def is_installed(self, thrown: Dice) -> None:
        self.engine = random_model(thrown)
        self.remembered: dict[str, float] = {}
        self.pulled = 0

    def others(self, thrown: Dice) -> Others:
        assert self.engine
        return Others(thrown, self.engine)

    @rule(thrown=dice())
    def a_container_starts(self, thrown: Dice) -> None:
        self.others(thrown).starts()

    @rule(thrown=dice())
    def a_container_runs_again(self, thrown: Dice) -> None:
        self.others(thrown).runs_again()

    @rule(thrown=dice())
    def a_container_stops(self, thrown: Dice) -> None:
        assert self.engine
        live = [box for box in self.engine.boxes.values() if box.live]
        if live:
            box = thrown.choice(live)
            box.state, box.finished, box.exit_code = "exited", NOW, thrown.choice((0, 1, 137))

    @rule(thrown=dice(), state=st.sampled_from(["created", "running"]))
    def a_container_is_made(self, thrown: Dice, state: str) -> None:
        assert self.engine
        picture = self.others(thrown).any_of(self.engine.pictures.values())
        if picture:
            self.pulled += 1
            self.engine.add_box(
                f"made{self.pulled}", picture.id, state=state, given=thrown.choice([*picture.references, picture.id]), started=NOW if state == "running" else None,
                volumes=[name for name in self.engine.data if thrown.chance(0.4)],
                networks=[net.name for net in self.engine.nets.values() if net.scope == "local" and thrown.chance(0.3)],
            )

    @rule(thrown=dice())
    def an_image_is_pulled(self, thrown: Dice) -> None:
        assert self.engine
        self.pulled += 1
        name = thrown.choice([f"pulled/{self.pulled}:1", *(tag for picture in self.engine.pictures.values() for tag in picture.tags)])
        self.engine.add_image(f"pulled {self.pulled}", name, created=NOW - 1000 * thrown.randint(0, 2000), tagged=NOW)

    @rule(thrown=dice())
    def an_image_is_tagged(self, thrown: Dice) -> None:
        self.others(thrown).tags()

    @rule(thrown=dice())
    def somebody_else_cleans(self, thrown: Dice) -> None:
        self.others(thrown).takes()

    @rule(thrown=dice())
    def something_is_built(self, thrown: Dice) -> None:
        assert self.engine
        for record in self.engine.records.values():
            record.in_use = False
        self.pulled += 1
        parents = [ident for ident in sorted(self.engine.records) if thrown.chance(0.2)][: 2 if self.engine.containerd else 1]
        self.engine.add_record(f"built{self.pulled}", *parents, in_use=thrown.chance(0.3), used=NOW, size=5)

    @rule(thrown=dice(), parallel=st.sampled_from([1, 4]))
    def it_is_cleaned(self, thrown: Dice, parallel: int) -> None:
        self.clean(thrown, parallel)

    @rule(thrown=dice(), others=st.booleans())
    def it_is_cleaned_after_a_build(self, thrown: Dice, others: bool) -> None:
        self.something_is_built(thrown)
        if others:
            self.somebody_else_cleans(thrown)
        self.clean(thrown, 1)

    def clean(self, thrown: Dice, parallel: int) -> None:
        engine = self.engine
        assert engine
        wishes = random_wishes(thrown, engine)
        before = engine.everything()
        looked = look(engine, wishes)
        sharers = {record.id: record.images for record in engine.records.values()}
        plan = policy.decide(looked, wishes, self.remembered, sharers)
        made = Case(engine, wishes, Expected(engine, wishes, self.remembered), plan, self.remembered)
        assert engine.everything() == before, "looking changed something" + explain(made)
        assert policy.decide(look(engine, wishes), wishes, self.remembered, sharers) == plan, "check mode and the run have different plans" + explain(made)
        check_plan(made)
        live = {box.id for box in engine.boxes.values() if box.live}
        # What the run notes before anything goes, as every run does.
        for name, moment in uses_seen(looked).items():
            self.remembered[name] = max(moment, self.remembered.get(name, 0))
        engine.robbed.clear()
        outcome = act(made, parallel)
        assert (outcome.failed, outcome.gone, outcome.kept) == ([], [], []), explain(made)
        assert sorted(what(outcome.removed)) == sorted(what(plan.steps)), explain(made)
        assert before - engine.everything() == promised(plan), explain(made)
        assert engine.robbed == [], "a container lost its network" + explain(made)
        if not (wishes.containers and {"running", "paused", "restarting"} & set(wishes.containers.states)):
            assert live == {box.id for box in engine.boxes.values() if box.live}, "a container that runs is gone" + explain(made)
        again = policy.decide(look(engine, wishes), wishes, self.remembered, {})
        assert again.steps == (), explain(made) + "\nagain:\n" + explain(made._replace(plan=again))

    @invariant()
    def what_runs_has_what_it_needs(self) -> None:
        """Of what it had: the worlds have containers whose image was taken by force before."""
        engine = self.engine
        known = {name for net in engine.nets.values() for name in (net.id, net.name)} if engine else set()
        for box in engine.boxes.values() if engine else ():
            if box.live:
                assert set(box.volumes) <= set(engine.data), f"{box.name} lost a volume"
                assert set(box.networks) <= known, f"{box.name} lost a network"


test_an_engine_that_lives_on_between_runs = machine(40, steps=14)(LivingEngine)
