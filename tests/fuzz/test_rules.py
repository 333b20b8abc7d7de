# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The policy's rules in small worlds: snapshots as they come from no engine in particular, and what must hold for each plan."""

from __future__ import annotations

import typing as t
from collections import Counter

from ansible_collections.fleetclean.docker.plugins.module_utils.last_use import uses_seen
from ansible_collections.fleetclean.docker.plugins.module_utils.policy import Plan, Wishes, decide
from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import Snapshot
from worlds import GB, fake_carry_out, random_wishes, random_world

from tests.fuzz.budget import fuzz
from tests.fuzz.dice import Dice, dice

LIVE = ("running", "paused", "restarting")


def names_of(found: t.Any) -> set[str]:
    return {found.id, *found.tags, *found.digests}


def check_nothing_wanted_goes(here: Snapshot, wishes: Wishes, plan: Plan) -> None:
    ids = {
        kind: {step.id for step in plan.steps if step.kind == kind}
        for kind in ("container", "image", "tag", "volume", "network", "build_cache")
    }
    staying = [found for found in here.containers if found.id not in ids["container"]]
    for found in here.containers:
        if found.id in ids["container"]:
            assert wishes.containers is not None
            assert found.state in wishes.containers.states
            assert "fleetclean.keep" not in found.labels
    for found in here.images:
        if found.id in ids["image"] | ids["tag"]:
            assert "fleetclean.keep" not in found.labels
            users = [user for user in staying if user.image_id == found.id or user.image_name in names_of(found)]
            assert not any(user.state in LIVE for user in users)
            assert wishes.images is not None
            assert not users or wishes.images.scope == "all"
            assert not found.tags or wishes.images.scope != "dangling"
            assert not (wishes.images.keep_local and found.tags and not found.digests)
    for found in here.volumes:
        if found.name in ids["volume"]:
            assert not found.cluster
            assert "fleetclean.keep" not in found.labels
            assert not any(found.name in user.volumes for user in staying)
            assert found.anonymous or (wishes.volumes and wishes.volumes.scope == "unused")
    for found in here.networks:
        if found.id in ids["network"]:
            assert not found.predefined
            assert not found.swarm
            assert "fleetclean.keep" not in found.labels
            assert not any({found.name, found.id} & set(user.networks) for user in staying)
    for found in here.build_cache:
        if found.id in ids["build_cache"]:
            assert not found.in_use
            assert wishes.build_cache
            assert not found.shared or wishes.build_cache.scope == "all"


def check_each_object_ends_up_once(here: Snapshot, wishes: Wishes, plan: Plan) -> None:
    ends = Counter((step.kind, step.id) for step in plan.steps if step.kind != "tag")
    ends += Counter((kept.kind, kept.id) for kept in plan.kept)
    expected: set[tuple[str, str]] = set()
    for kind, wish, found in (
        ("container", wishes.containers, [o.id for o in here.containers]),
        ("image", wishes.images, [o.id for o in here.images]),
        ("volume", wishes.volumes, [o.name for o in here.volumes]),
        ("network", wishes.networks, [o.id for o in here.networks]),
        ("build_cache", wishes.build_cache, [o.id for o in here.build_cache]),
    ):
        if wish is not None:
            expected |= {(kind, ident) for ident in found}
    assert set(ends.values()) <= {1}
    unexpected = set(ends) - expected
    assert expected <= set(ends)
    # The anonymous volumes of going containers may be there without a section of their own.
    assert all(kind == "volume" and wishes.containers and wishes.containers.volumes for kind, _ident in unexpected)


def check_parents_wait(here: Snapshot, plan: Plan) -> None:
    place = {step.id: number for number, step in enumerate(plan.steps) if step.kind in ("image", "build_cache")}
    waiting = {step.id for step in plan.steps if step.waits}
    for found in here.images:
        if found.parent in place:
            assert place[found.id] < place[found.parent]
            assert found.parent in waiting
    for found in here.build_cache:
        for parent in found.parents:
            if parent in place:
                assert place[found.id] < place[parent]
                assert parent in waiting


@fuzz(400, thrown=dice())
def test_in_small_worlds_the_rules_hold(thrown: Dice) -> None:
    here, wishes = random_world(thrown), random_wishes(thrown)
    plan = decide(here, wishes)
    check_nothing_wanted_goes(here, wishes, plan)
    check_each_object_ends_up_once(here, wishes, plan)
    check_parents_wait(here, plan)
    left = fake_carry_out(here, plan)
    again = decide(left, wishes, uses_seen(here))
    assert again.steps == (), "deciding again finds more"
    assert decide(here, wishes) == plan, "the same question has two answers"
    if here.layer_bytes:
        images = {step.id for step in plan.steps if step.kind == "image"}
        sizes = {layer for found in here.images if found.id in images for layer in found.layers}
        sizes -= {layer for found in left.images for layer in found.layers}
        freed = sum(
            step.bytes or 0
            for step in plan.steps
            if step.kind == "image" and any(o.id == step.id and o.layers for o in here.images)
        )
        assert freed == 10 * len(sizes), "the promised bytes are not those of the layers that go"
    shorter, rest = plan.until(thrown.randrange(3 * GB))
    both = shorter.steps + rest.steps
    assert both == tuple(step for step in plan.steps if step in both)
    fake_carry_out(here, shorter)
