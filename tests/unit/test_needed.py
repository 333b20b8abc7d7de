# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The policy and what others need: containers that stand on others, holds of the host, volumes that are used by a path or shown by others."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import policy
from ansible_collections.fleetclean.docker.plugins.module_utils.policy import ContainerWish, ImageWish, VolumeWish, Wishes, decide
from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import Hold
from worlds import MINUTE, container, hexadecimal, image, volume, world

EVERYTHING = Wishes(containers=ContainerWish(), images=ImageWish("unused"), volumes=VolumeWish("unused"))
KILL = ContainerWish(states=("created", "exited", "dead", "running", "paused", "restarting"))


def goes(plan: policy.Plan, kind: str) -> list[str]:
    return [step.name for step in plan.steps if step.kind == kind]


def reasons(plan: policy.Plan, kind: str) -> dict[str, str]:
    return {kept.name: kept.reason for kept in plan.kept if kept.kind == kind}


@pytest.mark.parametrize("what", ["network namespace", "IPC namespace", "PID namespace", "volumes", "link"])
def test_a_container_stays_without_which_another_one_cannot_start_with_all_that_it_has(what: str) -> None:
    base = container("base", "old", volumes=("data",))
    user = container("user", state="running", stands_on=((base.id if "namespace" in what else "base", what),))
    plan = decide(world(base, user, image("old", "app:1"), volume("data")), EVERYTHING)
    assert goes(plan, "container") + goes(plan, "image") + goes(plan, "volume") == []
    assert reasons(plan, "container")["base"].startswith("container user ")


@pytest.mark.parametrize("length", [4, 12, 64])
def test_as_much_of_an_id_as_was_given_names_the_container_and_no_name_that_is_taken_does(length: int) -> None:
    base, other = container("base"), container("other")
    given = base.id[:length]
    user = container("user", state="running", stands_on=((given, "volumes"),))
    assert reasons(decide(world(base, other, user), EVERYTHING), "container") == {
        "base": "container user has its volumes (--volumes-from)", "user": "running",
    }
    # Engines look for a name first.
    called_so = container(given)
    if length < 64:
        assert sorted(goes(decide(world(base, other, user, called_so), EVERYTHING), "container")) == ["base", "other"]


def test_they_all_go_where_all_go_and_each_before_what_it_stands_on() -> None:
    lowest = container("lowest", stopped=100 * MINUTE)
    middle = container("middle", stopped=50 * MINUTE, stands_on=((lowest.id, "network namespace"),))
    top = container("top", state="running", stands_on=(("middle", "volumes"),))
    plan = decide(world(lowest, middle, top), Wishes(containers=KILL))
    assert goes(plan, "container") == ["top", "middle", "lowest"]
    assert [(step.waits, step.users) for step in plan.steps] == [(False, ()), (True, (top.id,)), (True, (middle.id,))]


def test_two_that_stand_on_each_other_go_together_or_stay_together() -> None:
    one = container("one", stands_on=(("two", "link"),))
    two = container("two", stands_on=(("one", "link"),))
    assert sorted(goes(decide(world(one, two), EVERYTHING), "container")) == ["one", "two"]
    plan = decide(world(one, two), Wishes(containers=ContainerWish(keep=("one",))))
    assert reasons(plan, "container") == {"one": "named in containers.keep", "two": "container one is linked to it"}


def test_the_target_of_a_link_is_known_by_the_names_that_it_has() -> None:
    target = container("db", names=("db", "web/database"))
    plan = decide(world(target, container("web", state="running")), EVERYTHING)
    assert reasons(plan, "container")["db"] == "container web is linked to it"


def test_what_others_need_keeps_its_image_even_where_all_images_go() -> None:
    base = container("base", "old")
    user = container("user", state="running", stands_on=((base.id, "network namespace"),))
    aside = container("aside", "other", stopped=1)
    wishes = Wishes(containers=ContainerWish(older_than=MINUTE), images=ImageWish("all"))
    plan = decide(world(base, user, aside, image("old", "app:1"), image("other", "app:2")), wishes)
    assert goes(plan, "image") == ["app:2"]


@pytest.mark.parametrize(
    ("labels", "live", "wish", "stays"),
    [
        ({}, True, ContainerWish(), True),
        ({}, True, ContainerWish(compose=True), False),
        ({}, True, KILL, False),
        ({}, False, ContainerWish(), False),
        ({"com.docker.compose.oneoff": "True"}, True, ContainerWish(), False),
        ({"com.docker.compose.oneoff": "False"}, True, ContainerWish(), True),
    ],
)
def test_a_service_that_ran_once_stays_as_long_as_its_project_runs(labels: dict[str, str], live: bool, wish: ContainerWish, stays: bool) -> None:
    project = {"com.docker.compose.project": "shop"}
    once = container("migrate", labels={**project, **labels})
    web = container("web", state="running" if live else "exited", labels=project)
    plan = decide(world(once, web, container("other", state="running")), Wishes(containers=wish))
    assert ("migrate" not in goes(plan, "container")) is stays
    assert not stays or reasons(plan, "container")["migrate"] == "of compose project shop, which is running"


@pytest.mark.parametrize("via", ["", "of-web", "volume:data"])
def test_a_mount_keeps_what_it_is_in_until_it_ends_with_its_container(via: str) -> None:
    web = container("web", state="running", volumes=("data",))
    hold = Hold("volume:data", "/srv is mounted at /x", f"container:{web.id}" if via == "of-web" else via)
    snapshot = world(web, volume("data"), holds=(hold,))
    assert goes(decide(snapshot, EVERYTHING), "volume") == []
    plan = decide(snapshot, Wishes(containers=KILL, volumes=VolumeWish("unused")))
    assert goes(plan, "volume") == ([] if via == "" else ["data"])
    assert reasons(plan, "volume") == ({"data": "/srv is mounted at /x"} if via == "" else {})


def test_what_a_mount_keeps_is_kept_of_every_kind() -> None:
    stopped, old = container("stopped"), image("old", "app:1")
    holds = tuple(Hold(holder, "/srv is mounted at /x") for holder in (f"container:{stopped.id}", f"image:{old.id}"))
    plan = decide(world(stopped, old, holds=holds), EVERYTHING)
    assert plan.steps == ()
    assert reasons(plan, "container") == {"stopped": "/srv is mounted at /x"}


@pytest.mark.parametrize(("live", "stays"), [(True, True), (False, False)])
def test_a_volume_that_a_container_has_by_a_path_stays_with_it(live: bool, stays: bool) -> None:
    user = container("user", state="running" if live else "exited", reaches=(("volume:data", "/v/data/_data"),))
    plan = decide(world(user, volume("data")), EVERYTHING)
    assert (goes(plan, "volume") == []) is stays
    assert reasons(plan, "volume") == ({"data": "container user binds /v/data/_data"} if stays else {})


@pytest.mark.parametrize("by", ["name", "path"])
def test_an_anonymous_volume_goes_behind_the_last_that_has_it_which_waits_for_the_others(by: str) -> None:
    name = hexadecimal("anonymous")
    has: dict[str, t.Any] = {"volumes": (name,)} if by == "name" else {"reaches": ((f"volume:{name}", "/v/_data"),)}
    boxes = [container("first", stopped=30, volumes=(name,)), container("second", stopped=20, **has), container("third", stopped=10)]
    plan = decide(world(*boxes, volume(name, anonymous=True)), Wishes(containers=ContainerWish(volumes=True)))
    assert [step.name for step in plan.steps] == ["first", "second", name, "third"]
    assert [(step.waits, step.of) for step in plan.steps if step.kind == "volume"] == [(True, boxes[1].id)]


def test_a_volume_that_is_written_to_by_a_path_or_through_another_one_may_have_changed_until_it_goes() -> None:
    writers = [container("writes", state="running", reaches=(("volume:bound", "/v/bound/_data"),), volumes=("shows",))]
    volumes = [volume("bound"), volume("shown"), volume("shows", driver="local/bind", shows=("volume:shown",)), volume("other")]
    plan = decide(world(*writers, *volumes), Wishes(containers=KILL, volumes=VolumeWish("unused", drivers=("*",))))
    assert {step.name: bool(step.expects) for step in plan.steps if step.kind == "volume"} == {"bound": False, "shown": False, "shows": False, "other": True}


def test_a_volume_stays_whose_data_another_one_shows_that_stays() -> None:
    chain: list[t.Any] = [volume("a"), volume("b", driver="local/bind", shows=("volume:a",)), volume("c", driver="local/bind", shows=("volume:b",))]
    plan = decide(world(*chain), Wishes(volumes=VolumeWish("unused")))
    assert reasons(plan, "volume") == {"a": "volume b shows its data", "b": "of volume driver local/bind", "c": "of volume driver local/bind"}
    plan = decide(world(*chain), Wishes(volumes=VolumeWish("unused", drivers=("local", "local/bind"))))
    assert sorted(goes(plan, "volume")) == ["a", "b", "c"]
    plan = decide(world(*chain), Wishes(volumes=VolumeWish("unused", drivers=("local", "local/bind"), keep=("c",))))
    assert reasons(plan, "volume") == {"a": "volume b shows its data", "b": "volume c shows its data", "c": "named in volumes.keep"}


def test_the_reason_why_data_is_shown_does_not_depend_on_the_order_of_the_engines_list() -> None:
    shown = [volume("data"), volume("a", shows=("volume:data",), driver="local/bind"), volume("b", shows=("volume:data",), driver="local/bind")]
    for listed in (shown, shown[::-1]):
        assert reasons(decide(world(*listed), EVERYTHING), "volume")["data"] == "volume a shows its data"


def test_an_anonymous_volume_does_not_go_along_if_something_is_mounted_in_it() -> None:
    name = hexadecimal("anonymous")
    snapshot = world(container("gone", volumes=(name,)), volume(name, anonymous=True), holds=(Hold(f"volume:{name}", "/srv is mounted at /x"),))
    plan = decide(snapshot, Wishes(containers=ContainerWish(volumes=True)))
    assert (goes(plan, "container"), goes(plan, "volume")) == (["gone"], [])


def test_a_swarm_services_bind_counts_as_long_as_swarm_is_left_alone() -> None:
    snapshot = world(volume("data"), holds=(Hold("volume:data", "used by a swarm service", "swarm"),))
    assert goes(decide(snapshot, EVERYTHING), "volume") == []
    assert goes(decide(snapshot, Wishes(volumes=VolumeWish("unused"), orchestrated="clean")), "volume") == ["data"]
