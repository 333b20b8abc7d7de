# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes, what stays, in which order and why: every rule of the policy, each in a world of its own."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils.last_use import Watched, evidence_of, last_uses
from ansible_collections.fleetclean.docker.plugins.module_utils.names import has_label, matches
from ansible_collections.fleetclean.docker.plugins.module_utils.policy import (
    CacheWish,
    ContainerWish,
    ImageWish,
    Kept,
    NetworkWish,
    Plan,
    Step,
    VolumeWish,
    Wishes,
    decide,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import Snapshot
from worlds import (
    DAY,
    GB,
    HOUR,
    MINUTE,
    NOW,
    ago,
    container,
    fake_carry_out,
    hexadecimal,
    image,
    network,
    record,
    sha,
    volume,
    world,
)

KILLING = ("created", "exited", "dead", "running", "paused", "restarting")
ANONYMOUS = hexadecimal("an anonymous volume")


def plan_of(snapshot: Snapshot, seen: t.Mapping[str, float] | None = None, **wishes: t.Any) -> Plan:
    return decide(snapshot, Wishes(**wishes), seen)


def goes(plan: Plan, kind: str | None = None) -> list[str]:
    return [step.name for step in plan.steps if kind in (None, step.kind)]


def why(plan: Plan, name: str) -> str:
    """The reason why the object goes, and nothing if it does not."""
    return next((step.reason for step in plan.steps if name in (step.name, step.id)), "")


def stays(plan: Plan, name: str) -> str:
    """The reason why the object stays, and nothing if it does not."""
    return next((kept.reason for kept in plan.kept if name in (kept.name, kept.id)), "")


# -- nothing asked -----------------------------------------------------------------------------


def test_nothing_goes_and_nothing_is_counted_without_a_wish() -> None:
    full = world(container("c"), image("i"), volume("v"), network("n"), record("r"))
    assert plan_of(full) == Plan()


def test_an_empty_engine_has_an_empty_plan() -> None:
    everything = Wishes(ContainerWish(), ImageWish("all"), VolumeWish("unused"), NetworkWish(), CacheWish("all"))
    plan = decide(world(), everything)
    assert plan == Plan()
    assert plan.bytes == 0
    assert plan.kept_by_reason() == []


# -- containers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("exited", "exited 10 days ago"),
        ("dead", "dead 10 days ago"),
        ("created", "never started, created 20 days ago"),
    ],
)
def test_stopped_containers_go_and_say_since_when(state: str, reason: str) -> None:
    plan = plan_of(world(container("c", state=state)), containers=ContainerWish())
    (step,) = plan.steps
    assert (step.kind, step.name, step.bytes, step.reason) == ("container", "c", 1000, reason)
    assert step.expects[0] == state
    assert not step.force


@pytest.mark.parametrize("state", ["running", "paused", "restarting"])
def test_a_container_with_processes_stays_unless_its_state_is_named(state: str) -> None:
    here = world(container("c", state=state))
    assert stays(plan_of(here, containers=ContainerWish()), "c") == state
    plan = plan_of(here, containers=ContainerWish(states=(state,)))
    assert plan.steps[0].force
    assert why(plan, "c") == f"{state}, killed as containers.states asks"


def test_a_state_that_was_not_named_keeps_a_container() -> None:
    plan = plan_of(
        world(container("c", state="created"), container("d", state="removing")),
        containers=ContainerWish(states=("exited",)),
    )
    assert stays(plan, "c") == "its state is created"
    assert stays(plan, "d") == "its state is removing"
    assert not plan.steps


def test_a_containers_age_is_that_of_its_stop_and_not_of_its_creation() -> None:
    # Trap 1: the engine's own `until` counts from the creation.
    here = world(
        container("just-stopped", created=100 * DAY, stopped=MINUTE),
        container("long-stopped", created=100 * DAY, stopped=8 * DAY),
    )
    plan = plan_of(here, containers=ContainerWish(older_than=7 * DAY))
    assert goes(plan) == ["long-stopped"]
    assert stays(plan, "just-stopped") == "younger than 7d"


def test_a_container_that_never_ran_is_as_old_as_its_creation() -> None:
    here = world(container("new", state="created", created=HOUR), container("old", state="created", created=8 * DAY))
    assert goes(plan_of(here, containers=ContainerWish(older_than=7 * DAY))) == ["old"]


def test_a_container_that_runs_is_as_old_as_its_creation() -> None:
    wish = ContainerWish(states=KILLING, older_than=7 * DAY)
    here = world(
        container("new", state="running", created=HOUR),
        # Restarted by its policy: it stopped long ago for the last time, and was made today.
        container("flapping", state="restarting", created=HOUR, finished=ago(30 * DAY)),
        container("old", state="running", created=8 * DAY),
    )
    plan = plan_of(here, containers=wish)
    assert goes(plan) == ["old"]
    assert stays(plan, "new") == stays(plan, "flapping") == "younger than 7d"


def test_an_age_is_reached_at_the_very_second() -> None:
    at_it = world(container("c", stopped=7 * DAY))
    before = world(container("c", stopped=7 * DAY - 1))
    assert goes(plan_of(at_it, containers=ContainerWish(older_than=7 * DAY))) == ["c"]
    assert goes(plan_of(before, containers=ContainerWish(older_than=7 * DAY))) == []


def test_a_container_whose_stop_is_unknown_stays_when_an_age_was_asked_for() -> None:
    # It ran; when it was created says nothing of when it stopped.
    here = world(container("c", stopped=None))
    assert stays(plan_of(here, containers=ContainerWish(older_than=7 * DAY)), "c") == "its age is unknown"
    assert why(plan_of(here, containers=ContainerWish()), "c") == "exited"


def test_a_stop_in_the_future_is_young_and_is_never_said_as_a_negative_age() -> None:
    here = world(container("c", stopped=-5 * DAY))
    assert stays(plan_of(here, containers=ContainerWish(older_than=HOUR)), "c") == "younger than 1h"
    assert why(plan_of(here, containers=ContainerWish()), "c") == "exited 0 seconds ago"


@pytest.mark.parametrize(
    "pattern", ["web", "w*", "w?b", "[vw]eb", hexadecimal("container web"), hexadecimal("container web")[:12]]
)
def test_containers_keep_takes_names_globs_and_ids(pattern: str) -> None:
    plan = plan_of(world(container("web"), container("db")), containers=ContainerWish(keep=(pattern,)))
    assert goes(plan) == ["db"]
    assert stays(plan, "web") == "named in containers.keep"


def test_containers_keep_knows_every_name_that_a_container_has() -> None:
    linked = container("web", names=("web", "front/backend"))
    plan = plan_of(world(linked), containers=ContainerWish(keep=("front/backend",)))
    assert stays(plan, "web") == "named in containers.keep"


def test_a_glob_does_not_mean_part_of_a_name_and_case_counts() -> None:
    plan = plan_of(world(container("web"), container("Web")), containers=ContainerWish(keep=("we", "WEB")))
    assert sorted(goes(plan)) == ["Web", "web"]


def test_containers_go_longest_stopped_first() -> None:
    here = world(container("b", stopped=DAY), container("a", stopped=3 * DAY), container("c", stopped=2 * DAY))
    assert goes(plan_of(here, containers=ContainerWish())) == ["a", "c", "b"]


# -- labels ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "labels", "fits"),
    [
        ("fleetclean.keep", {"fleetclean.keep": ""}, True),
        ("fleetclean.keep", {"fleetclean.keep": "false"}, True),
        ("fleetclean.keep", {"fleetclean.keeper": ""}, False),
        ("fleetclean.*", {"fleetclean.keep": ""}, True),
        ("tier=db", {"tier": "db"}, True),
        ("tier=db", {"tier": "web"}, False),
        ("tier=d*", {"tier": "db"}, True),
        ("tier=", {"tier": ""}, True),
        ("tier=", {"tier": "db"}, False),
        ("t*=*b", {"tier": "db"}, True),
        ("url=a=b", {"url": "a=b"}, True),
        ("name=[prod]", {"name": "[prod]"}, True),
        ("*", {}, False),
        ("*", {"any": ""}, True),
    ],
)
def test_a_label_is_a_key_or_a_key_and_value_with_globs_in_both(
    pattern: str, labels: dict[str, str], fits: bool
) -> None:
    assert has_label(labels, pattern) is fits


def test_a_labelled_object_of_any_kind_stays_whatever_is_wished() -> None:
    labels = {"com.example.tier": "database"}
    here = world(
        container("c", labels=labels),
        container("killed", state="running", labels=labels),
        image("i", "i:1", labels=labels),
        image("dangling", labels=labels),
        volume("v", labels=labels),
        volume(ANONYMOUS, anonymous=True, labels=labels),
        network("n", labels=labels),
    )
    plan = plan_of(
        here,
        containers=ContainerWish(states=KILLING, volumes=True),
        images=ImageWish("all"),
        volumes=VolumeWish("unused"),
        networks=NetworkWish(),
        keep_labels=("other", "com.example.tier=data*"),
    )
    assert plan.steps == ()
    assert {kept.reason for kept in plan.kept} == {"labelled com.example.tier=data*"}
    assert len(plan.kept) == 7


def test_without_keep_labels_no_label_keeps_anything() -> None:
    here = world(container("c", labels={"fleetclean.keep": ""}))
    assert goes(plan_of(here, containers=ContainerWish(), keep_labels=())) == ["c"]


# -- orchestrated hosts ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "who"),
    [
        ("io.kubernetes.pod.name", "kubelet"),
        ("com.amazonaws.ecs.cluster", "the ECS agent"),
        ("com.hashicorp.nomad.alloc_id", "Nomad"),
    ],
)
def test_on_an_orchestrated_host_its_containers_and_all_images_stay(label: str, who: str) -> None:
    # Trap 8: the images of a pod that may come back look unused.
    here = world(container("pod", labels={label: "x"}), container("mine"), image("i", "i:1"), image("dangling"))
    plan = plan_of(here, containers=ContainerWish(), images=ImageWish("all"))
    assert goes(plan) == ["mine"]
    assert stays(plan, "pod") == stays(plan, "i:1") == stays(plan, sha("dangling")) == f"managed by {who}"
    cleaned = plan_of(here, containers=ContainerWish(), images=ImageWish("all"), orchestrated="clean")
    assert sorted(goes(cleaned)) == sorted(["pod", "mine", "i:1", sha("dangling")])


def test_the_host_is_orchestrated_even_where_containers_are_not_asked_for_or_all_of_them_run() -> None:
    here = world(container("pod", state="running", labels={"io.kubernetes.pod.name": "x"}), image("i"))
    assert stays(plan_of(here, images=ImageWish()), sha("i")) == "managed by kubelet"


def test_a_swarm_task_stays_but_a_swarm_nodes_images_may_go() -> None:
    here = world(container("task", labels={"com.docker.swarm.task.id": "x"}), image("i"))
    plan = plan_of(here, containers=ContainerWish(), images=ImageWish())
    assert stays(plan, "task") == "managed by swarm"
    assert goes(plan) == [sha("i")]
    assert "task" in goes(plan_of(here, containers=ContainerWish(), orchestrated="clean"))


# -- images: scope and use ---------------------------------------------------------------------


def test_scope_dangling_takes_only_images_without_a_tag() -> None:
    plan = plan_of(world(image("i", "app:1"), image("d")), images=ImageWish())
    assert goes(plan) == [sha("d")]
    assert stays(plan, "app:1") == "tagged (images.scope is dangling)"
    assert why(plan, sha("d")) == "dangling, unused for 30 days (created; no later use is known)"


def test_scope_unused_takes_tagged_images_that_no_container_has() -> None:
    here = world(container("c", "used"), image("used", "used:1"), image("free", "free:1"), image("d"))
    plan = plan_of(here, images=ImageWish("unused"))
    assert goes(plan) == [sha("d"), "free:1"]
    assert stays(plan, "used:1") == "used by a container"


@pytest.mark.parametrize("state", ["created", "exited", "dead", "running", "paused", "restarting", "removing"])
def test_an_image_is_in_use_by_a_container_in_any_state(state: str) -> None:
    here = world(container("c", "i", state=state), image("i", "i:1"))
    assert stays(plan_of(here, images=ImageWish("unused")), "i:1") == "used by a container"


@pytest.mark.parametrize("scope", ["dangling", "unused"])
def test_an_image_without_a_tag_that_a_container_has_is_in_use(scope: str) -> None:
    here = world(container("c", "d"), image("d"))
    assert stays(plan_of(here, images=ImageWish(scope)), sha("d")) == "used by a container"


@pytest.mark.parametrize("name", ["app:1", "app@" + sha("digest i")])
def test_an_image_is_in_use_by_the_name_that_a_container_was_started_with(name: str) -> None:
    # Trap 4: on containerd's store the id may be another one.
    here = world(container("c", image_id=sha("manifest"), image_name=name), image("i", "app:1"))
    assert stays(plan_of(here, images=ImageWish("unused")), "app:1") == "used by a container"


def test_a_container_started_without_a_tag_uses_latest() -> None:
    here = world(
        container("c", image_id=sha("manifest"), image_name="app"), image("i", "app:latest"), image("j", "app:2")
    )
    plan = plan_of(here, images=ImageWish("unused"))
    assert stays(plan, "app:latest") == "used by a container"
    assert goes(plan) == ["app:2"]


@pytest.mark.parametrize("state", ["running", "paused", "restarting"])
def test_scope_all_still_leaves_what_runs(state: str) -> None:
    here = world(container("c", "i", state=state), image("i", "i:1"))
    assert stays(plan_of(here, images=ImageWish("all")), "i:1") == "used by a container"


def test_scope_all_takes_the_images_of_stopped_containers_by_force() -> None:
    here = world(container("c", "i"), image("i", "i:1", "i:2"), image("free", "free:1"))
    plan = plan_of(here, images=ImageWish("all"))
    assert {step.name: step.force for step in plan.steps} == {"i:1": True, "i:2": True, "free:1": False}


def test_what_only_a_going_container_holds_is_unused_in_the_same_plan() -> None:
    here = world(container("c", "i", volumes=("v",), networks=("n",)), image("i", "i:1"), volume("v"), network("n"))
    plan = plan_of(
        here,
        containers=ContainerWish(),
        images=ImageWish("unused"),
        volumes=VolumeWish("unused"),
        networks=NetworkWish(),
    )
    assert [step.kind for step in plan.steps] == ["container", "network", "image", "volume"]
    assert not any(step.force for step in plan.steps)
    assert plan.kept == ()


def test_what_a_staying_container_holds_stays_although_another_one_goes() -> None:
    both = {"volumes": ("v",), "networks": ("n",)}
    here = world(
        container("old", "i", **both),
        container("new", "i", stopped=HOUR, **both),
        image("i", "i:1"),
        volume("v"),
        network("n"),
    )
    plan = plan_of(
        here,
        containers=ContainerWish(older_than=DAY),
        images=ImageWish("unused"),
        volumes=VolumeWish("unused"),
        networks=NetworkWish(),
    )
    assert goes(plan) == ["old"]
    assert stays(plan, "i:1") == stays(plan, "v") == stays(plan, "n") == "used by a container"


# -- images: age and its evidence --------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, "unused for 30 days (created; no later use is known)"),
        ({"arrived": ago(20 * DAY)}, "unused for 20 days (arrived, never used)"),
        ({"tagged": ago(15 * DAY)}, "unused for 15 days (tagged, never used)"),
        ({"arrived": ago(20 * DAY), "tagged": ago(15 * DAY)}, "unused for 15 days (tagged, never used)"),
        ({"arrived": ago(12 * DAY), "tagged": ago(15 * DAY)}, "unused for 12 days (arrived, never used)"),
        # Built a year ago, pulled yesterday: the build's date is no use.
        ({"created": ago(365 * DAY), "arrived": ago(2 * DAY)}, "unused for 2 days (arrived, never used)"),
        # A build date in the future or long ago does not stand against a real sign.
        ({"created": ago(-DAY), "arrived": ago(20 * DAY)}, "unused for 20 days (arrived, never used)"),
        ({"created": None}, "unused for an unknown time (created; no later use is known)"),
    ],
)
def test_an_images_age_is_its_latest_sign_of_use_and_the_plan_says_which(facts: dict[str, t.Any], words: str) -> None:
    plan = plan_of(world(image("i", "i:1")._replace(**facts)), images=ImageWish("unused"))
    assert why(plan, "i:1") == words


def test_the_last_container_is_evidence_of_use_even_if_it_goes_itself() -> None:
    here = world(container("c", "i", stopped=3 * DAY), image("i", "i:1", arrived=ago(20 * DAY)))
    plan = plan_of(here, containers=ContainerWish(), images=ImageWish("unused"))
    assert why(plan, "i:1") == "unused for 3 days (last container)"
    young = plan_of(here, containers=ContainerWish(), images=ImageWish("unused", older_than=7 * DAY))
    assert goes(young) == ["c"]
    assert stays(young, "i:1") == "younger than 7d"


def test_the_latest_of_several_containers_counts() -> None:
    here = world(container("a", "i", stopped=30 * DAY), container("b", "i", stopped=4 * DAY), image("i", "i:1"))
    plan = plan_of(here, containers=ContainerWish(), images=ImageWish("unused"))
    assert why(plan, "i:1") == "unused for 4 days (last container)"


def test_a_use_that_an_earlier_run_saw_counts() -> None:
    here = world(image("i", "i:1"))
    plan = plan_of(here, {sha("i"): NOW - 5 * DAY}, images=ImageWish("unused"))
    assert why(plan, "i:1") == "unused for 5 days (seen in use by an earlier run)"
    assert stays(plan_of(here, {sha("i"): NOW - HOUR}, images=ImageWish("unused", older_than=DAY)), "i:1")


def test_a_later_arrival_than_the_last_container_is_said_as_what_it_is() -> None:
    # Used, removed, pulled again: "never used" would be wrong.
    here = world(image("i", "i:1", arrived=ago(2 * DAY)))
    plan = plan_of(here, {sha("i"): NOW - 5 * DAY}, images=ImageWish("unused"))
    assert why(plan, "i:1") == "unused for 2 days (arrived)"


def test_of_signs_at_the_same_moment_the_strongest_is_named_whatever_the_order_in_which_names_are_looked_up() -> None:
    # Many images, since their names come out of sets: one alone would have the right words by chance.
    numbers = range(40)
    when = ago(2 * DAY)
    images = [image(f"i{number}", f"i{number}:1", f"also{number}:1", arrived=when, tagged=when) for number in numbers]
    by_id = {sha(f"i{number}"): when for number in numbers}
    events = {f"also{number}:1": when for number in numbers}
    containers = [container(f"c{number}", f"i{number}", stopped=2 * DAY) for number in numbers]

    def words(here: Snapshot, earlier: dict[str, float]) -> set[str]:
        used_at = last_uses(here, earlier)
        return {evidence_of(each, used_at, since=here.events_since).words for each in here.images}

    assert words(world(*images), {}) == {"tagged, never used"}
    assert words(world(*images), by_id) == {"seen in use by an earlier run"}
    assert words(world(*images)._replace(seen=events), by_id) == {"last container, by the engine's events"}
    assert words(world(*images, *containers)._replace(seen=events), by_id) == {"last container"}


def test_an_image_younger_than_asked_stays() -> None:
    here = world(image("i", "i:1", arrived=ago(6 * DAY)), image("j", "j:1", arrived=ago(8 * DAY)))
    plan = plan_of(here, images=ImageWish("unused", older_than=7 * DAY))
    assert goes(plan) == ["j:1"]
    assert stays(plan, "i:1") == "younger than 7d"


def test_an_image_of_unknown_age_stays_when_an_age_was_asked_for() -> None:
    here = world(image("i", "i:1", created=None))
    assert stays(plan_of(here, images=ImageWish("unused", older_than=HOUR)), "i:1") == "its age is unknown"


def test_an_age_of_zero_asks_for_no_age_so_nothing_stays_for_want_of_one() -> None:
    here = world(
        container("c", stopped=None),
        container("later", stopped=-HOUR),
        image("i", "i:1", created=None),
        volume("v", changed=None),
        network("n", created=None),
        record("r", None, created=None),
    )
    plan = plan_of(
        here,
        containers=ContainerWish(older_than=0),
        images=ImageWish("unused", older_than=0),
        volumes=VolumeWish("unused", older_than=0),
        networks=NetworkWish(older_than=0),
        build_cache=CacheWish(older_than=0),
    )
    assert sorted(goes(plan)) == ["c", "i:1", "later", "n", "r", "v"]


def test_dangling_images_may_have_an_age_of_their_own() -> None:
    here = world(image("i", "i:1", created=2 * DAY), image("d", created=2 * DAY), image("building", created=MINUTE))
    plan = plan_of(here, images=ImageWish("unused", older_than=7 * DAY, dangling_older_than=HOUR))
    assert goes(plan) == [sha("d")]
    assert stays(plan, "i:1") == "younger than 7d"
    assert stays(plan, sha("building")) == "younger than 1h"


def test_dangling_images_take_the_age_of_all_images_if_they_have_none_of_their_own() -> None:
    here = world(image("d", created=2 * DAY))
    assert stays(plan_of(here, images=ImageWish(older_than=7 * DAY)), sha("d")) == "younger than 7d"


# -- images: keep, keep_latest, keep_local ------------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    [
        "host:5000/team/app:1",
        "host:5000/team/app",
        "host:5000/team/*",
        "*/app:*",
        "*:1",
        "host:5000/team/app@*",
        sha("i"),
        hexadecimal("i"),
        hexadecimal("i")[:12],
        sha("i")[:20],
    ],
)
def test_images_keep_takes_tags_repositories_digests_and_ids(pattern: str) -> None:
    here = world(image("i", "host:5000/team/app:1"), image("j", "host:5000/other:2"))
    plan = plan_of(here, images=ImageWish("unused", keep=(pattern,)))
    assert goes(plan) == ["host:5000/other:2"]
    assert stays(plan, "host:5000/team/app:1") == "named in images.keep"


@pytest.mark.parametrize("pattern", ["app", "host", "host:5000", "5000/team/app", hexadecimal("i")[:3], "team/app:1"])
def test_images_keep_does_not_take_parts_of_names_or_too_little_of_an_id(pattern: str) -> None:
    here = world(image("i", "host:5000/team/app:1"))
    assert goes(plan_of(here, images=ImageWish("unused", keep=(pattern,)))) == ["host:5000/team/app:1"]


def test_an_image_with_a_wanted_and_an_unwanted_tag_loses_only_the_unwanted_one() -> None:
    here = world(image("i", "app:1", "tmp:1", "tmp:2"))
    plan = plan_of(here, images=ImageWish("unused", keep=("app",)))
    assert [(step.kind, step.name, step.id, step.bytes) for step in plan.steps] == [
        ("tag", "tmp:1", sha("i"), 0),
        ("tag", "tmp:2", sha("i"), 0),
    ]
    assert why(plan, "tmp:1") == ("unused for 30 days (created; no later use is known); its image stays as app:1")
    assert [(kept.kind, kept.name, kept.bytes, kept.reason) for kept in plan.kept] == [
        ("image", "app:1", GB, "named in images.keep")
    ]


def test_an_image_goes_tag_by_tag_and_its_last_tag_with_it() -> None:
    # Trap 11: by its id, the engine refuses an image with several tags.
    plan = plan_of(world(image("i", "a:1", "b:1", "c:1")), images=ImageWish("unused"))
    assert [(step.kind, step.name, step.expects) for step in plan.steps] == [
        ("tag", "a:1", ("a:1", "b:1", "c:1")),
        ("tag", "b:1", ("a:1", "b:1", "c:1")),
        ("image", "c:1", ("c:1",)),
    ]
    assert why(plan, "a:1").endswith("; its image goes, too")
    assert [step.bytes for step in plan.steps] == [0, 0, GB]


def test_an_image_in_use_keeps_every_tag_that_it_has() -> None:
    here = world(container("c", "i"), image("i", "app:1", "tmp:1"))
    plan = plan_of(here, images=ImageWish("unused"))
    assert plan.steps == ()
    assert stays(plan, sha("i")) == "used by a container"


def test_an_image_that_only_a_digest_names_goes_as_one_step() -> None:
    here = world(image("i", digests=(f"app@{sha('x')}", f"mirror/app@{sha('x')}")))
    (step,) = plan_of(here, images=ImageWish()).steps
    assert (step.kind, step.id, step.name, step.expects) == ("image", sha("i"), f"app@{sha('x')}", ())


def test_the_newest_tags_of_each_repository_stay_by_the_images_creation() -> None:
    here = world(
        image("a1", "app:1", created=30 * DAY),
        image("a2", "app:2", created=20 * DAY),
        image("a3", "app:3", created=10 * DAY),
        image("d1", "host:5000/db:1", created=90 * DAY),
        image("unknown", "app:0", created=None),
    )
    plan = plan_of(here, images=ImageWish("unused", keep_latest=2))
    assert sorted(goes(plan)) == ["app:0", "app:1"]
    assert stays(plan, "app:3") == stays(plan, "app:2") == "the newest 2 of app"
    assert stays(plan, "host:5000/db:1") == "the newest 2 of host:5000/db"


def test_keep_latest_of_one_repository_does_not_keep_the_images_name_in_another() -> None:
    here = world(image("old", "app:1", "ci:1", created=30 * DAY), image("new", "app:2", created=DAY))
    plan = plan_of(here, images=ImageWish("unused", keep_latest=1))
    assert [(step.kind, step.name) for step in plan.steps] == [("tag", "app:1")]
    assert stays(plan, "ci:1") == "the newest 1 of ci"


def test_keep_local_keeps_tagged_images_that_nobody_can_pull_again() -> None:
    # Trap 7.
    here = world(image("mine", "mine:1", digests=()), image("pulled", "pulled:1"), image("d", digests=()))
    plan = plan_of(here, images=ImageWish("unused", keep_local=True))
    assert sorted(goes(plan)) == sorted(["pulled:1", sha("d")])
    assert stays(plan, "mine:1") == "never pushed or pulled (images.keep_local)"
    assert "mine:1" in goes(plan_of(here, images=ImageWish("unused")))


# -- images: parents and children ----------------------------------------------------------------


def test_children_go_before_their_parents_and_the_parent_waits() -> None:
    here = world(image("a"), image("b", parent="a"), image("c", parent="b"), image("d", parent="a"))
    plan = plan_of(here, images=ImageWish())
    order = [step.id for step in plan.steps]
    assert order.index(sha("c")) < order.index(sha("b")) < order.index(sha("a"))
    assert order.index(sha("d")) < order.index(sha("a"))
    assert {step.id for step in plan.steps if step.waits} == {sha("b"), sha("a")}
    assert why(plan, sha("a")) == "parent of images that go"


def test_the_untagged_parents_of_a_tagged_image_go_after_it() -> None:
    # The chain of a classic build: only its last image has a tag.
    here = world(image("step1"), image("step2", parent="step1"), image("built", "app:1", parent="step2"))
    plan = plan_of(here, images=ImageWish("unused"))
    assert [step.id for step in plan.steps] == [sha("built"), sha("step2"), sha("step1")]
    fake_carry_out(here, plan)


@pytest.mark.parametrize("cheapest_first", [False, True])
def test_a_tagged_parent_waits_for_its_tags_too(cheapest_first: bool) -> None:
    here = world(image("base", "base:1", "base:2"), image("child", "app:1", parent="base", created=DAY))
    plan = plan_of(here, images=ImageWish("unused"), cheapest_first=cheapest_first)
    assert goes(plan) == ["app:1", "base:1", "base:2"]
    assert [step.waits for step in plan.steps] == [False, True, True]
    fake_carry_out(here, plan)


def test_the_parent_of_an_image_that_stays_stays_and_its_bytes_are_not_counted_twice() -> None:
    # Trap 4: an untagged parent with children is not dangling.
    here = world(container("c", "used"), image("a"), image("b", parent="a"), image("used", "app:1", parent="b"))
    plan = plan_of(here, images=ImageWish("unused"))
    assert plan.steps == ()
    assert stays(plan, sha("a")) == stays(plan, sha("b")) == "parent of an image that stays"
    assert sum(kept.bytes or 0 for kept in plan.kept) == GB


def test_an_untagged_parent_has_no_age_of_its_own() -> None:
    here = world(image("a", created=HOUR), image("b", "app:1", parent="a", created=30 * DAY))
    assert goes(plan_of(here, images=ImageWish("unused", older_than=7 * DAY))) == ["app:1", sha("a")]


def test_a_tagged_parent_is_judged_by_its_own_age() -> None:
    here = world(image("a", "base:1", created=HOUR), image("b", "app:1", parent="a", created=30 * DAY))
    plan = plan_of(here, images=ImageWish("unused", older_than=7 * DAY))
    assert goes(plan) == ["app:1"]
    assert stays(plan, "base:1") == "younger than 7d"


def test_a_labelled_parent_stays_without_its_children() -> None:
    here = world(image("a", labels={"fleetclean.keep": ""}), image("b", parent="a"))
    plan = plan_of(here, images=ImageWish())
    assert goes(plan) == [sha("b")]
    assert stays(plan, sha("a")) == "labelled fleetclean.keep"


def test_a_parent_that_is_not_in_the_list_is_no_matter() -> None:
    assert goes(plan_of(world(image("b", parent="gone")), images=ImageWish())) == [sha("b")]


def test_images_go_least_recently_used_first_and_dangling_ones_before_all_others() -> None:
    here = world(
        image("new", "new:1", created=2 * DAY),
        image("old", "old:1", created=90 * DAY),
        image("d-new", created=3 * DAY),
        image("d-old", created=9 * DAY),
    )
    assert goes(plan_of(here, images=ImageWish("unused"))) == [sha("d-old"), sha("d-new"), "old:1", "new:1"]


def test_a_long_chain_of_parents_is_no_problem() -> None:
    chain = [image(f"i{n}", parent=f"i{n - 1}" if n else "") for n in range(3000)]
    plan = plan_of(world(*chain), images=ImageWish())
    assert [step.id for step in plan.steps] == [sha(f"i{n}") for n in reversed(range(3000))]


def test_parents_in_a_circle_are_no_hang() -> None:
    circle = [image("a", parent="b"), image("b", parent="a"), image("c", parent="c"), image("d", parent="a")]
    assert {step.id for step in plan_of(world(*circle), images=ImageWish()).steps} <= {sha("d")}


# -- images: bytes -----------------------------------------------------------------------------


def test_a_shared_layer_comes_free_with_the_last_image_that_has_it() -> None:
    here = world(
        image("a", "a:1", layers=("base", "a"), created=30 * DAY),
        image("b", "b:1", layers=("base", "b"), created=20 * DAY),
        layer_bytes={"base": 100, "a": 1, "b": 2},
    )
    plan = plan_of(here, images=ImageWish("unused"))
    assert [(step.name, step.bytes) for step in plan.steps] == [("a:1", 1), ("b:1", 102)]
    assert plan.bytes == 103


def test_a_layer_that_an_image_which_stays_has_is_not_promised() -> None:
    here = world(
        container("c", "b"),
        image("a", "a:1", layers=("base", "a")),
        image("b", "b:1", layers=("base", "b")),
        layer_bytes={"base": 100, "a": 1, "b": 2},
    )
    assert plan_of(here, images=ImageWish("unused")).bytes == 1


def test_two_images_of_the_same_layers_free_them_once() -> None:
    here = world(image("a", "a:1", layers=("base",)), image("b", "b:1", layers=("base",)), layer_bytes={"base": 100})
    assert sorted(step.bytes or 0 for step in plan_of(here, images=ImageWish("unused")).steps) == [0, 100]


def test_a_parent_has_its_childrens_lower_layers() -> None:
    here = world(
        image("a", layers=("base",)),
        image("b", "b:1", parent="a", layers=("base", "top")),
        layer_bytes={"base": 100, "top": 7},
    )
    plan = plan_of(here, images=ImageWish("unused"))
    assert [(step.id, step.bytes) for step in plan.steps] == [(sha("b"), 7), (sha("a"), 100)]


def test_a_tag_frees_nothing() -> None:
    here = world(image("a", "a:1", "keep:1", layers=("base",)), layer_bytes={"base": 100})
    assert plan_of(here, images=ImageWish("unused", keep=("keep",))).bytes == 0


def test_without_the_layer_stores_figures_the_engines_own_stand() -> None:
    here = world(image("a", "a:1", layers=("base",)), image("b", "b:1", bytes=None))
    plan = plan_of(here, images=ImageWish("unused"))
    assert {step.name: step.bytes for step in plan.steps} == {"a:1": GB, "b:1": None}
    assert plan.bytes == GB


# -- volumes -----------------------------------------------------------------------------------


def test_scope_anonymous_leaves_named_volumes() -> None:
    here = world(volume("db"), volume(ANONYMOUS, anonymous=True))
    plan = plan_of(here, volumes=VolumeWish())
    assert goes(plan) == [ANONYMOUS]
    assert why(plan, ANONYMOUS) == "anonymous, used by no container, created 10 days ago"
    assert stays(plan, "db") == "named (volumes.scope is anonymous)"


def test_scope_unused_takes_named_volumes_that_no_container_has() -> None:
    plan = plan_of(world(volume("db"), volume("used"), container("c", volumes=("used",))), volumes=VolumeWish("unused"))
    assert goes(plan) == ["db"]
    assert why(plan, "db") == "named, used by no container, created 10 days ago"
    assert stays(plan, "used") == "used by a container"


@pytest.mark.parametrize("state", ["created", "exited", "dead", "running", "removing"])
def test_a_volume_of_a_container_in_any_state_is_in_use(state: str) -> None:
    here = world(volume("v"), container("c", state=state, volumes=("v",)))
    assert stays(plan_of(here, volumes=VolumeWish("unused")), "v") == "used by a container"


@pytest.mark.parametrize(
    ("name", "goes"),
    [("lost+found", False), (".snapshots", False), (".Trash-0", False), ("@eaDir", False), ("$RECYCLE.BIN", False), ("lost", True), ("a.b_c-d", True)],
)
def test_a_folder_beside_the_volumes_that_the_engine_takes_for_one_stays(name: str, goes: bool) -> None:
    # A filesystem that is mounted there has a lost+found, with what fsck saved.
    here = world(volume(name), volume("another drivers", driver="rexray"))
    plan = decide(here, Wishes(volumes=VolumeWish(scope="unused", drivers=("*",))))
    assert {step.name for step in plan.steps} == ({name} if goes else set()) | {"another drivers"}
    assert [kept.reason for kept in plan.kept] == ([] if goes else ["no volume of the engine's, but a folder that a filesystem or its tools made there"])


def test_a_cluster_volume_stays() -> None:
    here = world(volume("v", cluster=True))
    assert stays(plan_of(here, volumes=VolumeWish("unused")), "v") == "a cluster volume"


def test_volumes_have_ages_and_unknown_ones_stay() -> None:
    here = world(volume("old"), volume("new", HOUR), volume("unknown", None), volume("later", -DAY))
    plan = plan_of(here, volumes=VolumeWish("unused", older_than=7 * DAY))
    assert goes(plan) == ["old"]
    assert stays(plan, "new") == stays(plan, "later") == "younger than 7d"
    assert stays(plan, "unknown") == "its age is unknown"
    without = plan_of(world(volume("unknown", None)), volumes=VolumeWish("unused"))
    assert why(without, "unknown") == "named, used by no container, changed last an unknown time ago"


@pytest.mark.parametrize("pattern", ["db-1", "db-*", "*1"])
def test_volumes_keep_takes_names_and_globs(pattern: str) -> None:
    here = world(volume("db-1"), volume("cache"))
    plan = plan_of(here, volumes=VolumeWish("unused", keep=(pattern,)))
    assert goes(plan) == ["cache"]
    assert stays(plan, "db-1") == "named in volumes.keep"


def test_an_anonymous_volume_can_be_kept_by_the_beginning_of_its_name() -> None:
    here = world(volume(ANONYMOUS, anonymous=True))
    assert stays(plan_of(here, volumes=VolumeWish(keep=(ANONYMOUS[:12],))), ANONYMOUS) == "named in volumes.keep"


def test_removing_a_container_leaves_its_anonymous_volumes_unless_asked() -> None:
    # Trap 6: two safe steps, one loss.
    here = world(container("c", volumes=(ANONYMOUS,)), volume(ANONYMOUS, anonymous=True))
    assert goes(plan_of(here, containers=ContainerWish())) == ["c"]
    plan = plan_of(here, containers=ContainerWish(volumes=True))
    assert goes(plan) == ["c", ANONYMOUS]
    assert why(plan, ANONYMOUS) == "anonymous, of container c"


def test_a_containers_named_volumes_never_go_with_it() -> None:
    here = world(container("c", volumes=("data",)), volume("data"))
    assert goes(plan_of(here, containers=ContainerWish(volumes=True))) == ["c"]
    both = plan_of(here, containers=ContainerWish(volumes=True), volumes=VolumeWish())
    assert stays(both, "data") == "named (volumes.scope is anonymous)"


def test_volumes_of_going_containers_alone_are_touched_where_volumes_were_not_asked_for() -> None:
    other = hexadecimal("another")
    here = world(
        container("c", volumes=(ANONYMOUS,)),
        volume(ANONYMOUS, anonymous=True),
        volume(other, anonymous=True),
        volume("db"),
    )
    plan = plan_of(here, containers=ContainerWish(volumes=True))
    assert goes(plan, "volume") == [ANONYMOUS]
    assert not any(kept.kind == "volume" for kept in plan.kept)


def test_a_going_containers_volume_that_another_container_has_stays() -> None:
    here = world(
        container("c", volumes=(ANONYMOUS,)),
        container("d", state="running", volumes=(ANONYMOUS,)),
        volume(ANONYMOUS, anonymous=True),
    )
    plan = plan_of(here, containers=ContainerWish(volumes=True))
    assert goes(plan) == ["c"]
    assert stays(plan, ANONYMOUS) == "used by a container"


def test_a_going_containers_volume_stays_if_it_is_named_in_volumes_keep() -> None:
    here = world(container("c", volumes=(ANONYMOUS,)), volume(ANONYMOUS, anonymous=True))
    plan = plan_of(here, containers=ContainerWish(volumes=True), volumes=VolumeWish(keep=(ANONYMOUS,)))
    assert goes(plan) == ["c"]
    assert stays(plan, ANONYMOUS) == "named in volumes.keep"


def test_a_going_containers_anonymous_volume_is_as_old_as_its_container() -> None:
    here = world(container("c", volumes=(ANONYMOUS,)), volume(ANONYMOUS, HOUR, anonymous=True))
    plan = plan_of(here, containers=ContainerWish(volumes=True), volumes=VolumeWish(older_than=7 * DAY))
    assert goes(plan) == ["c", ANONYMOUS]


# -- networks ----------------------------------------------------------------------------------


def test_unused_networks_go() -> None:
    plan = plan_of(world(network("n")), networks=NetworkWish())
    (step,) = plan.steps
    assert (step.kind, step.name, step.bytes) == ("network", "n", 0)
    assert step.reason == "used by no container, created 10 days ago, never used"


def test_predefined_networks_and_swarms_own_always_stay() -> None:
    here = world(network("bridge", predefined=True), network("overlay", swarm=True))
    plan = plan_of(here, networks=NetworkWish(), orchestrated="clean", keep_labels=())
    assert plan.steps == ()
    assert stays(plan, "bridge") == "predefined"
    assert stays(plan, "overlay") == "swarm's"


@pytest.mark.parametrize("known_as", ["n", hexadecimal("network n")])
@pytest.mark.parametrize("state", ["created", "exited", "running"])
def test_a_network_of_a_container_stays_stopped_or_not_by_name_or_id(state: str, known_as: str) -> None:
    # The engine removes it from under a stopped container, which can not be started again then.
    here = world(network("n"), container("c", state=state, networks=(known_as,)))
    assert stays(plan_of(here, networks=NetworkWish()), "n") == "used by a container"


@pytest.mark.parametrize("pattern", ["front", "fr*", hexadecimal("network front"), hexadecimal("network front")[:12]])
def test_networks_keep_takes_names_globs_and_ids(pattern: str) -> None:
    plan = plan_of(world(network("front"), network("back")), networks=NetworkWish(keep=(pattern,)))
    assert goes(plan) == ["back"]
    assert stays(plan, "front") == "named in networks.keep"


def test_networks_have_ages_and_unknown_ones_stay() -> None:
    here = world(network("old"), network("new", HOUR), network("unknown", None))
    plan = plan_of(here, networks=NetworkWish(older_than=7 * DAY))
    assert goes(plan) == ["old"]
    assert stays(plan, "new") == "younger than 7d"
    assert stays(plan, "unknown") == "its age is unknown"


WEEK = NetworkWish(older_than=7 * DAY)
NET = f"network:{hexadecimal('network n')}"


@pytest.mark.parametrize(
    ("uses", "earlier", "containers", "words"),
    [
        ({}, {}, (), "used by no container, created 100 days ago, never used"),
        ({NET: NOW - 9 * DAY}, {}, (), "used by no container, last used 9 days ago (the engine's events)"),
        ({}, {NET: NOW - 8 * DAY}, (), "used by no container, last used 8 days ago (seen in use by an earlier run)"),
        ({NET: NOW - 9 * DAY}, {NET: NOW - 8 * DAY}, (), "used by no container, last used 8 days ago (seen in use by an earlier run)"),
        ({NET: NOW - 9 * DAY}, {NET: NOW - 9 * DAY}, (), "used by no container, last used 9 days ago (the engine's events)"),
        ({}, {}, ("n",), "used by no container, last used 10 days ago (last container)"),
        ({}, {}, (hexadecimal("network n"),), "used by no container, last used 10 days ago (last container)"),
        ({NET: NOW - HOUR}, {}, (), "last used less than 7d ago (the engine's events)"),
        ({}, {NET: NOW - HOUR}, (), "last used less than 7d ago (seen in use by an earlier run)"),
        # Another's use, and one from before it was made anew, say nothing.
        ({"network:other": NOW - HOUR, "n": NOW - HOUR, "volume:n": NOW - HOUR}, {}, (), "used by no container, created 100 days ago, never used"),
    ],
)
def test_a_networks_age_is_its_last_use_and_the_plan_says_by_which_sign(
    uses: dict[str, float], earlier: dict[str, float], containers: tuple[str, ...], words: str
) -> None:
    """Trap 60: an external network that was made long ago goes a minute after the nightly job that used it."""
    here = world(network("n", 100 * DAY), *(container("c", networks=(name,)) for name in containers), seen=uses)
    plan = plan_of(here, earlier, containers=ContainerWish(), networks=WEEK)
    assert (why(plan, "n") or stays(plan, "n")) == words


def test_a_network_that_only_a_killed_container_has_was_used_a_moment_ago() -> None:
    here = world(network("n"), container("c", state="running", networks=("n",)))
    plan = plan_of(here, containers=ContainerWish(states=KILLING), networks=WEEK)
    assert (goes(plan), stays(plan, "n")) == (["c"], "last used less than 7d ago (last container)")
    assert goes(plan_of(here, containers=ContainerWish(states=KILLING), networks=NetworkWish())) == ["c", "n"]


@pytest.mark.parametrize(
    ("since", "watched", "words"),
    [
        (NOW - 4 * MINUTE, None, "its last use is not known: the engine holds its events of the last 4 minutes only"),
        (None, None, "its last use is not known: the engine told none of its events"),
        (NOW - 7 * DAY, None, ""),
        # Earlier runs saw what was before, without a gap; or with one.
        (NOW - DAY, Watched(NOW - 30 * DAY, NOW - DAY), ""),
        (NOW - DAY, Watched(NOW - 3 * DAY, NOW - HOUR), "its last use is not known: the engine holds its events of the last 3 days only"),
        (NOW - DAY, Watched(NOW - 30 * DAY, NOW - DAY - 1), "its last use is not known: the engine holds its events of the last 24 hours only"),
        (None, Watched(NOW - 30 * DAY, NOW), "its last use is not known: the engine told none of its events"),
    ],
)
@pytest.mark.parametrize("seen", [{}, {NET: NOW - 8 * DAY}])
def test_a_network_whose_last_use_may_have_been_forgotten_stays(
    since: float | None, watched: Watched | None, words: str, seen: dict[str, float]
) -> None:
    """Trap 61: ten containers with health checks flush the engine's events in minutes (moby 49725, 30502)."""
    here = world(network("n", 100 * DAY), events_since=since, events_lost=True)

    def plan(wish: NetworkWish, here: Snapshot = here) -> Plan:
        return decide(here, Wishes(networks=wish), seen, watched=watched)

    assert stays(plan(WEEK), "n") == words
    assert goes(plan(NetworkWish())) == goes(plan(NetworkWish(older_than=0))) == ["n"], "what was asked for without an age"
    assert goes(plan(WEEK, here._replace(events_lost=False))) == ["n"]


@pytest.mark.parametrize(
    ("since", "watched", "known"),
    [
        (0.0, None, ", never used"),
        (NOW - 20 * DAY, None, ", never used"),
        (NOW - 20 * DAY + 1, None, "; no later use is known"),
        (None, None, "; no later use is known"),
        (NOW - DAY, Watched(NOW - 21 * DAY, NOW - HOUR), ", never used"),
        (NOW - DAY, Watched(NOW - 21 * DAY, NOW - 2 * DAY), "; no later use is known"),
    ],
)
@pytest.mark.parametrize("sign", ["arrived", "tagged"])
def test_only_what_the_events_reach_back_to_is_called_never_used(since: float | None, watched: Watched | None, known: str, sign: str) -> None:
    here = world(image("i", "i:1", **{sign: ago(20 * DAY)}), events_since=since)
    plan = decide(here, Wishes(images=ImageWish("unused")), watched=watched)
    assert why(plan, "i:1") == f"unused for 20 days ({sign}{known})"


def test_an_image_whose_arrival_the_events_still_tell_is_known_to_be_never_used() -> None:
    """Its record is written a moment before the event, which may be the oldest that the engine holds."""
    here = world(image("i", "i:1", arrived=ago(DAY)), came={"i:1": NOW - DAY - 0.5}, events_since=ago(DAY - 1))
    assert why(plan_of(here, images=ImageWish("unused")), "i:1") == "unused for 24 hours (arrived, never used)"


# -- images that are known by digests alone ----------------------------------------------------


BY_DIGEST = {"digests": (f"repo@{sha('d')}",)}


@pytest.mark.parametrize(
    ("older_than", "dangling_older_than", "age", "stays_for"),
    [
        (7 * DAY, HOUR, 2 * DAY, "7d"),
        (HOUR, 7 * DAY, 2 * DAY, "7d"),
        (None, 7 * DAY, 2 * DAY, "7d"),
        (7 * DAY, 0, 2 * DAY, "7d"),
        (7 * DAY, None, 2 * DAY, "7d"),
        (7 * DAY, HOUR, 8 * DAY, ""),
        (0, None, MINUTE, ""),
        (0, 0, MINUTE, ""),
    ],
)
@pytest.mark.parametrize("scope", ["dangling", "unused", "all"])
def test_a_graph_driver_cannot_tell_a_pull_by_digest_from_a_tag_that_moved_so_the_longer_age_counts(
    scope: str, older_than: int | None, dangling_older_than: int | None, age: float, stays_for: str
) -> None:
    """Trap 41 (moby 30307, 31252)."""
    here = world(image("i", created=age, **BY_DIGEST))
    plan = plan_of(here, images=ImageWish(scope, older_than=older_than, dangling_older_than=dangling_older_than))
    known = "known by its digest alone (pulled by it, or its tag moved on)"
    if stays_for:
        assert stays(plan, sha("i")) == f"{known}: younger than {stays_for}"
    else:
        assert why(plan, sha("i")).startswith(f"{known}, unused for ")


def test_on_containerds_store_an_image_that_is_known_by_its_digest_is_not_dangling() -> None:
    mine = image("i", created=2 * DAY, origin_known=False, digests=(f"repo:1@{sha('d')}", f"repo@{sha('d')}"))
    nameless = image("none", created=2 * DAY, origin_known=False)
    here = world(mine, nameless)
    plan = plan_of(here, images=ImageWish())
    assert goes(plan) == [sha("none")]
    assert stays(plan, sha("i")) == "known by its digest, not dangling (images.scope is dangling)"
    plan = plan_of(here, images=ImageWish("unused", older_than=7 * DAY, dangling_older_than=HOUR))
    assert (goes(plan), stays(plan, sha("i"))) == ([sha("none")], "younger than 7d")
    plan = plan_of(here, images=ImageWish("unused", older_than=DAY, dangling_older_than=7 * DAY))
    assert (goes(plan), why(plan, sha("i"))) == ([mine.digests[0]], "known by its digest, unused for 2 days (created; no later use is known)")


def test_an_image_with_a_digest_is_no_mere_step_of_its_childrens_build() -> None:
    """A base image that was pulled by digest has an age of its own."""
    here = world(image("base", created=2 * DAY, **BY_DIGEST), image("child", "child:1", created=9 * DAY, parent="base"))
    plan = plan_of(here, images=ImageWish("unused", older_than=7 * DAY))
    assert goes(plan) == ["child:1"]
    assert stays(plan, sha("base")).endswith(": younger than 7d")
    assert goes(plan_of(here, images=ImageWish("unused"))) == ["child:1", f"repo@{sha('d')}"]


# -- build cache -------------------------------------------------------------------------------


def test_build_cache_goes_least_recently_used_first() -> None:
    here = world(record("new", DAY), record("old", 30 * DAY), record("never-used", None, created=ago(5 * DAY)))
    plan = plan_of(here, build_cache=CacheWish())
    assert goes(plan) == ["old", "never-used", "new"]
    assert why(plan, "old") == "build cache (regular), unused for 30 days"
    assert why(plan, "never-used") == "build cache (regular), unused for 5 days"


@pytest.mark.parametrize("scope", ["unused", "all"])
def test_a_record_that_a_build_uses_stays(scope: str) -> None:
    assert stays(plan_of(world(record("r", in_use=True)), build_cache=CacheWish(scope)), "r") == "in use by a build"


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"shared": True}, "shared with an image (build_cache.scope is unused)"),
        ({"type": "internal"}, "the builder's own (build_cache.scope is unused)"),
        ({"type": "frontend"}, "the builder's own (build_cache.scope is unused)"),
    ],
)
def test_what_the_engines_plain_prune_leaves_goes_only_with_scope_all(facts: dict[str, t.Any], reason: str) -> None:
    here = world(record("r", **facts))
    assert stays(plan_of(here, build_cache=CacheWish()), "r") == reason
    assert goes(plan_of(here, build_cache=CacheWish("all"))) == ["r"]


def test_records_have_ages() -> None:
    here = world(record("old"), record("new", HOUR), record("unknown", None, created=None))
    plan = plan_of(here, build_cache=CacheWish(older_than=7 * DAY))
    assert goes(plan) == ["old"]
    assert stays(plan, "new") == "younger than 7d"
    assert stays(plan, "unknown") == "its age is unknown"


def test_a_records_children_go_first_and_it_waits() -> None:
    here = world(record("base", 30 * DAY), record("top", 2 * DAY, "base"), record("other", 3 * DAY, "base"))
    plan = plan_of(here, build_cache=CacheWish())
    assert goes(plan) == ["other", "top", "base"]
    assert [step.waits for step in plan.steps] == [False, False, True]


def test_a_record_is_shared_no_more_once_all_its_images_go() -> None:
    one, two, used = image("one", "one:1"), image("two", "two:1"), image("used", "used:1")
    records = [record(name, shared=True) for name in ("alone", "both", "stays", "unknown")]
    here = world(one, two, used, container("c", "used"), *records)
    sharers = {"alone": {one.id}, "both": {one.id, two.id}, "stays": {one.id, used.id}, "unknown": set()}
    wishes = Wishes(images=ImageWish(scope="unused"), build_cache=CacheWish())
    assert {step.id for step in decide(here, wishes, sharers=sharers).steps if step.kind == "build_cache"} == {"alone", "both"}
    assert not [step for step in decide(here, wishes).steps if step.kind == "build_cache"]
    # Nothing of that holds while the images stay.
    assert not decide(here, Wishes(build_cache=CacheWish()), sharers=sharers).steps


def test_the_parent_of_a_record_that_stays_stays() -> None:
    here = world(record("base"), record("middle", 10 * DAY, "base"), record("top", HOUR, "middle"))
    plan = plan_of(here, build_cache=CacheWish(older_than=DAY))
    assert plan.steps == ()
    assert stays(plan, "base") == stays(plan, "middle") == "parent of a record that stays"
    assert stays(plan, "top") == "younger than 1d"


def test_records_that_name_each_other_stay() -> None:
    here = world(record("a", DAY, "b"), record("b", DAY, "a"), record("self", DAY, "self"))
    plan = plan_of(here, build_cache=CacheWish())
    assert plan.steps == ()
    assert len(plan.kept) == 3


def test_keep_storage_keeps_the_most_recently_used() -> None:
    here = world(*(record(f"r{days}", days * DAY) for days in (1, 2, 3, 4)))
    plan = plan_of(here, build_cache=CacheWish(keep_storage=2 * GB))
    assert goes(plan) == ["r4", "r3"]
    assert stays(plan, "r1") == stays(plan, "r2") == "within build_cache.keep_storage"


def test_keep_storage_takes_an_old_chain_before_a_new_record() -> None:
    # The old parent can go as soon as its old child has: there is no need to take the new one.
    here = world(
        record("base", 90 * DAY, bytes=10 * GB),
        record("top", 80 * DAY, "base", bytes=GB),
        record("new", HOUR, bytes=5 * GB),
    )
    plan = plan_of(here, build_cache=CacheWish(keep_storage=6 * GB))
    assert goes(plan) == ["top", "base"]
    assert stays(plan, "new") == "within build_cache.keep_storage"


def test_keep_storage_counts_what_stays_for_another_reason() -> None:
    here = world(record("used", 30 * DAY, in_use=True, bytes=3 * GB), record("free", DAY))
    plan = plan_of(here, build_cache=CacheWish(keep_storage=3 * GB))
    assert goes(plan) == ["free"]
    assert stays(plan, "used") == "in use by a build"


@pytest.mark.parametrize(("storage", "left"), [(0, 0), (GB - 1, 0), (GB, 1), (5 * GB, 4)])
def test_keep_storage_is_a_bound_and_not_a_wish(storage: int, left: int) -> None:
    here = world(*(record(f"r{days}", days * DAY) for days in (1, 2, 3, 4)))
    assert len(plan_of(here, build_cache=CacheWish(keep_storage=storage)).kept) == left


# -- order and targets -------------------------------------------------------------------------


def everything() -> Snapshot:
    return world(
        container("c"),
        image("i", "i:1"),
        image("d"),
        volume("v"),
        network("n"),
        record("r"),
    )


def test_containers_go_first_then_what_they_held_and_the_build_cache_last() -> None:
    plan = plan_of(
        everything(),
        containers=ContainerWish(),
        images=ImageWish("unused"),
        volumes=VolumeWish("unused"),
        networks=NetworkWish(),
        build_cache=CacheWish(),
    )
    assert goes(plan) == ["c", "n", sha("d"), "i:1", "v", "r"]


def test_a_run_with_a_target_takes_the_cheapest_loss_first() -> None:
    plan = plan_of(
        everything(),
        containers=ContainerWish(),
        images=ImageWish("unused"),
        volumes=VolumeWish("unused"),
        networks=NetworkWish(),
        build_cache=CacheWish(),
        cheapest_first=True,
    )
    assert goes(plan) == ["c", "n", sha("d"), "r", "i:1", "v"]


def steps(*sizes: int | None) -> tuple[Step, ...]:
    return tuple(Step("volume", f"v{n}", f"v{n}", size, "why") for n, size in enumerate(sizes))


@pytest.mark.parametrize(("needed", "taken"), [(-5, 0), (0, 0), (1, 1), (10, 1), (11, 3), (30, 3), (31, 4), (1000, 4)])
def test_a_plan_ends_as_soon_as_the_known_sizes_are_enough(needed: int, taken: int) -> None:
    plan = Plan(steps(10, None, 20, 5), (Kept("volume", "k", "k", 7, "labelled x"),))
    short, rest = plan.until(needed)
    assert short.steps == plan.steps[:taken]
    assert rest.steps == plan.steps[taken:]
    assert [kept.id for kept in short.kept] == ["k"]
    assert [(kept.id, kept.reason) for kept in rest.as_kept("enough")] == [(step.id, "enough") for step in plan.steps[taken:]]


def test_a_plan_with_a_target_ends_when_bytes_and_inodes_are_enough() -> None:
    some = [step._replace(inodes=inodes) for step, inodes in zip(steps(10, 10, 10), (1, 5, 1))]
    for needed, inodes, taken in ((0, 0, 0), (5, 0, 1), (0, 1, 1), (0, 2, 2), (25, 1, 3), (1, 6, 2), (1, 99, 3)):
        assert len(Plan(tuple(some)).until(needed, inodes)[0].steps) == taken, (needed, inodes)


def test_a_plan_with_a_target_has_nothing_that_can_never_free_anything() -> None:
    plan = Plan(
        (
            Step("network", "n", "n", 0, "why"),
            Step("tag", "stays", "app:1", 0, "why"),
            Step("tag", "goes", "web:1", 0, "why"),
            Step("image", "goes", "web:2", 10, "why"),
            Step("image", "later", "web:3", 10, "why"),
        )
    )
    short, rest = plan.until(5)
    assert [step.name for step in short.steps] == ["web:1", "web:2"]
    assert [step.name for step in rest.steps] == ["web:3"]
    assert {(kept.name, kept.reason) for kept in short.kept} == {
        ("n", "frees nothing, and a target is to be met"), ("app:1", "frees nothing, and a target is to be met"),
    }


def test_a_plan_says_its_known_bytes() -> None:
    assert Plan(steps(10, None, 20)).bytes == 30


def test_what_stays_is_counted_by_kind_and_reason_the_most_first() -> None:
    plan = Plan(
        kept=(
            Kept("volume", "v", "v", 7, "used by a container"),
            Kept("image", "a", "a", 10, "used by a container"),
            Kept("image", "b", "b", None, "used by a container"),
            Kept("image", "c", "c", 1, "younger than 7d"),
        )
    )
    assert plan.kept_by_reason()[0] == {"kind": "image", "reason": "used by a container", "count": 2, "bytes": 10}
    assert {(entry["kind"], entry["reason"], entry["count"]) for entry in plan.kept_by_reason()} == {
        ("image", "used by a container", 2),
        ("volume", "used by a container", 1),
        ("image", "younger than 7d", 1),
    }


# -- names -------------------------------------------------------------------------------------

HOSTILE = [
    "[x]",
    "*",
    "a b",
    "../../etc",
    "-rf",
    "'; rm -rf /",
    "\x1b[2J",
    "новый",
    "a\nb",
    "",
    "sha256:",
    "%2e%2e",
    "x" * 5000,
]


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_a_hostile_name_is_planned_and_kept_as_it_is(name: str) -> None:
    here = world(
        container("c")._replace(name=name, names=(name,)),
        network("n")._replace(name=name),
        volume("v")._replace(name=name),
        image("i", f"{name}:1"),
    )
    wishes = {
        "containers": ContainerWish(),
        "images": ImageWish("unused"),
        "volumes": VolumeWish("unused"),
        "networks": NetworkWish(),
    }
    plan = plan_of(here, **wishes)
    assert goes(plan) == [name, name, f"{name}:1", name]
    fake_carry_out(here, plan)
    kept = plan_of(
        here, **{**wishes, "networks": NetworkWish(keep=(name,)), "volumes": VolumeWish("unused", keep=(name,))}
    )
    assert goes(kept) == [name, f"{name}:1"]


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("0123456789ab", True),
        ("sha256:0123456789ab", True),
        ("0123", True),
        ("012", False),
        ("123456789abc", False),
        ("0123456789AB", False),
        ("md5:0123456789ab", False),
    ],
)
def test_four_digits_of_an_id_are_enough_and_fewer_are_not(pattern: str, fits: bool) -> None:
    ident = "0123456789ab" + "c" * 52
    assert matches((pattern,), ident, ()) is fits
    assert matches((pattern,), f"sha256:{ident}", ()) is fits
