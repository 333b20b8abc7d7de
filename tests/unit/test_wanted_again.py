# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What looks unused and is not: what somebody on the host looks after, and what signs there are that it was used."""

from __future__ import annotations

import time
import typing as t

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import policy
from ansible_collections.fleetclean.docker.plugins.module_utils.last_use import uses_seen
from ansible_collections.fleetclean.docker.plugins.module_utils.managers import Template
from ansible_collections.fleetclean.docker.plugins.module_utils.policy import (
    ContainerWish,
    ImageWish,
    NetworkWish,
    Plan,
    VolumeWish,
    Wishes,
    decide,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import Snapshot
from worlds import DAY, HOUR, NOW, ago, container, image, network, record, sha, volume, world

UNUSED = ImageWish("unused")
ALL_STATES = ("created", "exited", "dead", "running", "paused", "restarting")


def plan_of(here: Snapshot, **wishes: t.Any) -> Plan:
    return decide(here, Wishes(**wishes))


def goes(plan: Plan) -> list[str]:
    return [step.name for step in plan.steps]


def reason(plan: Plan, name: str) -> str:
    found = [entry.reason for entry in (*plan.steps, *plan.kept) if entry.name == name]
    assert len(found) == 1, f"{name} is in the plan {len(found)} times"
    return found[0]


# -- who looks after it ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sign", "who"),
    [
        ({"labels": {"io.kubernetes.pod.name": "p"}}, "kubelet"),
        ({"name": "k8s_POD_web-1_default_0"}, "kubelet"),
        ({"labels": {"com.amazonaws.ecs.task-arn": "arn"}}, "the ECS agent"),
        ({"name": "ecs-agent"}, "the ECS agent"),
        ({"image_name": "amazon/amazon-ecs-agent:latest"}, "the ECS agent"),
        ({"image_name": "registry.example/amazon/amazon-ecs-agent@sha256:0"}, "the ECS agent"),
        ({"labels": {"com.hashicorp.nomad.alloc_id": "a"}}, "Nomad"),
        ({"name": "nomad_init_0"}, "Nomad"),
    ],
)
def test_on_a_host_that_others_look_after_their_objects_and_all_images_stay(sign: dict[str, t.Any], who: str) -> None:
    values = {"names": (sign.get("name", "c"),), **sign}
    theirs = container(values.pop("name", "c"), "used", **values)
    here = world(theirs, container("mine"), image("used", "used:1"), image("idle", "idle:1"), image("nameless"))
    wishes = {"containers": ContainerWish(), "images": UNUSED}
    plan = plan_of(here, **wishes)
    assert goes(plan) == ["mine"]
    for name in (theirs.name, "used:1", "idle:1", sha("nameless")):
        assert reason(plan, name) == f"managed by {who}"
    assert set(goes(plan_of(here, orchestrated="clean", **wishes))) == {theirs.name, "mine", "used:1", "idle:1", sha("nameless")}


MANAGERS_LABELS = [
    {"io.kubernetes.x": "y"},
    {"io.kubernetes.pod.name": "p", "io.kubernetes.pod.uid": "1"},
    {"com.amazonaws.ecs.task-arn": "arn"},
    {"com.hashicorp.nomad.alloc_id": "a"},
    {"com.docker.swarm.task.id": "t"},
    {"com.docker.buildx.x": "y"},
]


@pytest.mark.parametrize("labels", MANAGERS_LABELS)
def test_an_images_label_makes_nobody_a_manager_of_its_containers_or_of_the_host(labels: dict[str, str]) -> None:
    """The engine gives a container all labels of its image."""
    here = world(container("c", "evil", labels={**labels, "own": "1"}), image("evil", "evil:1", labels=labels), image("idle", "idle:1"))
    assert set(goes(plan_of(here, containers=ContainerWish(), images=UNUSED))) == {"c", "evil:1", "idle:1"}
    here = world(container("c", "evil", "running", labels=labels), image("evil", "evil:1", labels=labels), image("idle", "idle:1"))
    assert goes(plan_of(here, images=UNUSED)) == ["idle:1"]


@pytest.mark.parametrize("labels", MANAGERS_LABELS)
@pytest.mark.parametrize("more", [{}, {"name": "k8s_POD_x"}, {"image_name": "amazon/amazon-ecs-agent"}, {"other": "value"}])
def test_a_label_that_a_manager_set_counts_whatever_its_image_says(labels: dict[str, str], more: dict[str, str]) -> None:
    """A commit of a pod's container has the pod's labels, and a pod may run it."""
    name = more.get("name", "c")
    key = next(iter(labels))
    own = {**labels, key: "another", "plain": "1"} if not more or "other" in more else labels
    said = {**labels, **({f"{key}.other": "1"} if "other" in more else {})}
    theirs = container(name, "used", labels={**said, **own}, image_name=more.get("image_name", ""))
    here = world(theirs, image("used", "used:1", labels=said))
    assert goes(plan_of(here, containers=ContainerWish())) == []


def test_labels_of_a_container_whose_image_is_gone_are_its_own() -> None:
    here = world(container("c", "gone", labels={"io.kubernetes.pod.name": "p"}), image("idle", "idle:1"))
    assert goes(plan_of(here, containers=ContainerWish(), images=UNUSED)) == []


PROJECT = {"com.docker.compose.project": "web", "com.docker.compose.service": "init"}


@pytest.mark.parametrize(
    ("own", "stays"), [({}, False), ({"com.docker.compose.container-number": "1"}, True), ({"com.docker.compose.project": "web"}, False)]
)
def test_an_image_that_compose_built_makes_no_service_of_a_container_that_compose_did_not_make(own: dict[str, str], stays: bool) -> None:
    service = container("web-1", "base", "running", labels={**PROJECT, "com.docker.compose.container-number": "1"})
    by_hand = container("hand", "built", labels={**PROJECT, **own})
    here = world(service, by_hand, image("base", "base:1"), image("built", "built:1", labels=PROJECT), network("n", labels=PROJECT))
    assert goes(plan_of(here, containers=ContainerWish())) == ([] if stays else ["hand"])
    alone = world(by_hand, image("built", "built:1", labels=PROJECT), network("n", labels=PROJECT))
    assert goes(plan_of(alone, networks=NetworkWish(), images=UNUSED)) == ([] if stays else ["n"])


@pytest.mark.parametrize("name", ["ak8s_POD", "k8s_", "my-ecs-agent", "nomad_init_"])
def test_a_name_that_only_looks_like_theirs_is_nobodys(name: str) -> None:
    here = world(container(name), image("idle", "idle:1"))
    assert goes(plan_of(here, containers=ContainerWish(), images=UNUSED)) == [name, "idle:1"]


@pytest.mark.parametrize("label", ["io.kubernetes.pod.uid", "com.amazonaws.ecs.cluster", "com.hashicorp.nomad.job_id", "com.docker.swarm.service.id"])
def test_networks_and_volumes_of_those_who_look_after_a_host_stay(label: str) -> None:
    here = world(network("n", labels={label: "x"}), volume("v", labels={label: "x"}), network("free"), volume("free-volume"))
    wishes = {"networks": NetworkWish(), "volumes": VolumeWish("unused")}
    plan = plan_of(here, **wishes)
    assert goes(plan) == ["free", "free-volume"]
    assert reason(plan, "n").startswith("managed by ") and reason(plan, "v").startswith("managed by ")
    assert len(plan_of(here, orchestrated="clean", **wishes).steps) == 4


def test_a_builder_instance_stays_and_its_images_too() -> None:
    builder = container("buildx_buildkit_mine0", "buildkit", volumes=("buildx_buildkit_mine0_state",))
    here = world(builder, image("buildkit", "moby/buildkit:1"), image("idle", "idle:1"), volume("buildx_buildkit_mine0_state"))
    wishes = {"containers": ContainerWish(volumes=True), "images": UNUSED, "volumes": VolumeWish("unused")}
    plan = plan_of(here, **wishes)
    assert goes(plan) == ["idle:1"]
    assert reason(plan, builder.name) == "managed by buildx"
    assert len(plan_of(here, orchestrated="clean", **wishes).steps) == 4


def test_the_cache_of_a_lost_builder_is_named_as_what_it_is() -> None:
    """Trap 18."""
    here = world(volume("buildx_buildkit_lost0_state"), volume("plain"))
    plan = plan_of(here, volumes=VolumeWish("anonymous"))
    assert reason(plan, "buildx_buildkit_lost0_state") == "cache of a buildx builder that is gone (volumes.scope is anonymous)"
    assert reason(plan, "plain") == "named (volumes.scope is anonymous)"
    plan = plan_of(here, volumes=VolumeWish("unused"))
    assert reason(plan, "buildx_buildkit_lost0_state").startswith("cache of a buildx builder that is gone, used by no container")


def test_what_starts_again_with_the_engine_is_as_good_as_running() -> None:
    here = world(container("always", restarts="always"), container("never"), image("i", "i:1"))
    plan = plan_of(here, containers=ContainerWish())
    assert goes(plan) == ["never"]
    assert reason(plan, "always") == "restart policy always: it starts again with the engine"
    assert set(goes(plan_of(here, containers=ContainerWish(states=ALL_STATES)))) == {"always", "never"}
    assert set(goes(plan_of(here, containers=ContainerWish(), orchestrated="clean"))) == {"always", "never"}


def test_what_swarms_services_name_stays_the_one_for_a_roll_back_too() -> None:
    """Trap 7; moby 31254."""
    here = world(
        image("new", "app:2"), image("old", "app:1"), image("other", "other:1"), image("pinned"), volume("data"), volume("free"),
        service_images=frozenset({"docker.io/library/app:2", "app:1", f"pinned@{sha('digest pinned')}"}),
        service_volumes=frozenset({"data"}),
    )
    pinned = image("pinned", digests=(f"pinned@{sha('digest pinned')}",))
    here = world(*[i for i in here.images if i.id != pinned.id], pinned, *here.volumes, service_images=here.service_images, service_volumes=here.service_volumes)
    wishes = {"images": UNUSED, "volumes": VolumeWish("unused")}
    plan = plan_of(here, **wishes)
    assert goes(plan) == ["other:1", "free"]
    for name in ("app:1", "app:2", pinned.digests[0], "data"):
        assert reason(plan, name) == "used by a swarm service"
    assert len(plan_of(here, orchestrated="clean", **wishes).steps) == 6


def test_networks_and_volumes_of_a_compose_project_stay_while_it_has_containers() -> None:
    labels = {"com.docker.compose.project": "shop"}
    here = world(
        container("shop-web-1", labels=labels, state="exited"), container("other", labels={"com.docker.compose.project": "other"}),
        network("shop_back", labels=labels), network("gone_net", labels={"com.docker.compose.project": "gone"}),
        volume("shop_data", labels=labels), volume("gone_data", labels={"com.docker.compose.project": "gone"}),
    )
    wishes = {"networks": NetworkWish(), "volumes": VolumeWish("unused")}
    plan = plan_of(here, **wishes)
    assert goes(plan) == ["gone_net", "gone_data"]
    assert reason(plan, "shop_back") == reason(plan, "shop_data") == "of compose project shop, which has containers"
    # Who asks for its containers asks for the project.
    assert {"shop_back", "shop_data"} <= set(goes(plan_of(here, containers=ContainerWish(), **wishes)))
    assert "shop_back" not in goes(plan_of(here, containers=ContainerWish(keep=("shop-*",)), **wishes))


def test_volumes_whose_data_is_elsewhere_stay() -> None:
    kinds = {"plain": "local", "nfs": "local/nfs", "bind": "local/bind", "cloud": "cloudstor:aws", "old": ""}
    here = world(*(volume(name, driver=driver) for name, driver in kinds.items()))
    plan = plan_of(here, volumes=VolumeWish("unused"))
    assert set(goes(plan)) == {"plain", "old"}
    assert reason(plan, "cloud") == "of volume driver cloudstor:aws"
    assert set(goes(plan_of(here, volumes=VolumeWish("unused", drivers=("local/*", "cloudstor:*"))))) == {"nfs", "bind", "cloud"}
    assert len(plan_of(here, volumes=VolumeWish("unused", drivers=("*",))).steps) == 5


def test_an_anonymous_volume_goes_along_only_if_its_data_is_here() -> None:
    here = world(container("c", volumes=("a" * 64, "b" * 64)), volume("a" * 64, anonymous=True), volume("b" * 64, anonymous=True, driver="cloud"))
    plan = plan_of(here, containers=ContainerWish(volumes=True))
    assert goes(plan) == ["c", "a" * 64]


# -- when it was used ------------------------------------------------------------------------------


def test_events_that_the_engine_still_holds_are_signs_of_use() -> None:
    """Trap 34."""
    here = world(
        image("plain", "plain:latest"), image("by-id", "by-id:1"), image("unseen", "unseen:1"), image("came", "came:1"),
        seen={"plain": NOW - HOUR, sha("by-id"): NOW - HOUR},
        came={"came:1": NOW - HOUR},
    )
    plan = plan_of(here, images=ImageWish("unused", older_than=DAY))
    assert goes(plan) == ["unseen:1"]
    plan = plan_of(here, images=UNUSED)
    assert reason(plan, "plain:latest") == "unused for 1 hour (last container, by the engine's events)"
    assert reason(plan, "came:1") == "unused for 1 hour (arrived, never used)"
    assert reason(plan, "unseen:1") == "unused for 30 days (created; no later use is known)"


def test_a_mounted_volume_was_used() -> None:
    here = world(volume("v", 30 * DAY), volume("w", 30 * DAY), seen={"volume:v": NOW - HOUR})
    assert goes(plan_of(here, volumes=VolumeWish("unused", older_than=DAY))) == ["w"]
    assert "last seen in use 1 hour ago" in reason(plan_of(here, volumes=VolumeWish("unused")), "v")


def test_an_image_that_came_between_two_runs_is_no_older_than_that() -> None:
    here = world(image("i", "i:1", created=400 * DAY), image("known", "known:1", created=400 * DAY, arrived=ago(50 * DAY)))
    between = {sha("i"): NOW - HOUR, sha("known"): NOW - HOUR}
    plan = decide(here, Wishes(images=ImageWish("unused", older_than=DAY)), came_between=between)
    assert goes(plan) == ["known:1"], "where the arrival is known, a run that saw it later knows less"
    assert reason(decide(here, Wishes(images=UNUSED), came_between=between), "i:1") == "unused for 1 hour (arrived; no later use is known)"


@pytest.mark.parametrize(
    ("given", "known", "other"),
    [
        ("app", {"tags": ("app:latest",)}, "app:1"),
        ("docker.io/library/app:1", {"tags": ("app:1",)}, "app:latest"),
        ("app:1", {"tags": ("docker.io/library/app:1",)}, "app:latest"),
        ("host:5000/team/app", {"tags": ("host:5000/team/app:latest",)}, "team/app:latest"),
        (f"app:1@{sha('d')}", {"digests": (f"app@{sha('d')}",)}, "app:1"),
        (f"app@{sha('app')}", {}, "app:latest"),
    ],
)
def test_an_image_is_found_by_the_name_it_was_started_with(given: str, known: dict[str, t.Any], other: str) -> None:
    """On containerd's store a container's image id may be another platform's: then its name tells (trap 4)."""
    values = {"digests": (), **{key: value for key, value in known.items() if key != "tags"}}
    mine = image("app", *known.get("tags", ()), **values)
    here = world(container("c", image_id=sha("elsewhere"), image_name=given), mine, image("other", other, digests=()))
    plan = plan_of(here, images=UNUSED)
    assert goes(plan) == [other]
    assert [kept.reason for kept in plan.kept] == ["used by a container"]


def test_history_remembers_what_events_told() -> None:
    net = f"network:{network('n').id}"
    here = world(image("i", "i:1"), volume("v"), network("n"), seen={"i:1": NOW - HOUR, "volume:v": NOW - DAY, net: NOW - DAY})
    assert uses_seen(here) == {sha("i"): NOW - HOUR, "volume:v": NOW - DAY, net: NOW - DAY}


def test_history_remembers_which_networks_containers_had() -> None:
    runs, ran = container("runs", state="running", networks=("n", "bridge")), container("ran", stopped=DAY, networks=(network("m").id,))
    assert {key: moment for key, moment in uses_seen(world(network("n"), network("m"), network("o"), runs, ran)).items() if "network" in key} == {
        f"network:{network('n').id}": NOW, f"network:{network('m').id}": NOW - DAY,
    }


def test_a_pull_by_tag_and_digest_is_the_arrival_of_what_a_graph_driver_knows_by_its_digest() -> None:
    here = world(image("i", digests=(f"repo@{sha('d')}",)), came={f"repo:1@{sha('d')}": NOW - HOUR})
    assert "unused for 1 hour (arrived, never used)" in reason(plan_of(here, images=UNUSED), f"repo@{sha('d')}")


def test_an_image_that_stays_in_use_keeps_all_its_tags() -> None:
    here = world(image("i", "i:1", "j:1", "j:2"), container("c", "i", state="exited"))
    for scope in ("unused", "all"):
        plan = plan_of(here, images=ImageWish(scope, keep=("i",)))
        assert goes(plan) == []
        assert [kept.reason for kept in plan.kept] == ["used by a container"]


def test_the_image_of_what_starts_again_with_the_engine_stays_whatever_the_scope() -> None:
    here = world(container("always", "i", restarts="always"), container("never", "j"), image("i", "i:1"), image("j", "j:1"))
    for states in (("exited",), ("exited", "running")):
        plan = plan_of(here, containers=ContainerWish(states=states, older_than=99 * DAY), images=ImageWish("all"))
        assert goes(plan) == ["j:1"], "from under a container that stays for its age alone"
        assert reason(plan, "i:1") == "used by a container"


@pytest.mark.parametrize(
    "written",
    [
        "{digest}", "{short}", "docker.io/library/postgres@{digest}", "postgres:16@{digest}", "docker.io/library/postgres:16@{digest}", "postgres@{digest}",
        "postgres@*", "*@{digest}",
    ],
)
def test_a_digest_is_kept_however_people_write_it(written: str) -> None:
    digest = sha("digest postgres")
    here = world(image("i", "postgres:16", digests=(f"postgres@{digest}",)), image("j", "other:1"))
    plan = plan_of(here, images=ImageWish("unused", keep=(written.format(digest=digest, short=digest[7:19]),)))
    assert goes(plan) == ["other:1"]


def test_volumes_that_swarm_names_by_a_template_stay() -> None:
    here = world(
        volume("data-1"), volume("data-2"), volume("other-1"), volume("stack_x", labels={"com.docker.stack.namespace": "stack"}),
        service_volumes=frozenset({"data-{{.Task.Slot}}", "a.b"}),
    )
    plan = plan_of(here, volumes=VolumeWish("unused"))
    assert goes(plan) == ["other-1"]
    assert reason(plan, "stack_x") == "managed by swarm"


@pytest.mark.parametrize(("template", "name", "fits"), [
    ("{{.Task.Slot}}", "anything", True), ("a{{x}}", "a", True), ("a{{x}}a", "a", False), ("a{{x}}a", "aa", True), ("a{{x}}b{{y}}c", "a-b-b-c", True),
    ("a{{x}}b{{y}}c", "a-c-b", False), ("a{{x}}b{{y}}c", "abc", True), ("a{{x", "a{{x", True), ("a{{x", "a", False), ("a}}b", "a}}b", True), ("a.b", "axb", False),
    ("{{a}}{{b}}x", "x", True), ("{{a}}ab{{b}}b", "ab", False), ("{{a}}ab{{b}}b", "abb", True),
])
def test_a_template_is_filled_in_with_anything(template: str, name: str, fits: bool) -> None:
    assert Template(template).fits(name) is fits


@pytest.mark.parametrize("template", ["{{x}}a" * 1000 + "b", "{{" * 500_000, "{{}}" * 500_000])
def test_no_template_costs_time(template: str) -> None:
    """Whoever may make a service of swarm's chooses it; expressions take centuries for the first."""
    began = time.monotonic()
    Template(template).fits("a" * 5000)
    assert time.monotonic() - began < 2


def test_what_images_share_goes_behind_them_where_a_target_may_end_the_run_before() -> None:
    here = world(
        image("i", "i:1"), record("plain", 9 * DAY), record("shared", 9 * DAY, shared=True), record("below", 9 * DAY), record("top", 9 * DAY, "below"),
        record("child", 9 * DAY, "parent", shared=True), record("parent", 9 * DAY),
    )
    sharers = {"shared": {sha("i")}, "child": {sha("i")}}
    wishes = Wishes(images=UNUSED, build_cache=policy.CacheWish(), cheapest_first=True)
    order = goes(decide(here, wishes, sharers=sharers))
    assert sorted(order[:3]) == ["below", "plain", "top"]
    assert order[3] == "i:1"
    assert sorted(order[4:]) == ["child", "parent", "shared"] and order.index("child") < order.index("parent")


def test_a_volume_that_was_written_is_as_young_as_that() -> None:
    """Since engine 26 CreatedAt is the making of a volume, and never moves."""
    here = world(volume("v", 30 * DAY)._replace(changed=ago(HOUR)), volume("w", 30 * DAY)._replace(changed=ago(20 * DAY)))
    plan = plan_of(here, volumes=VolumeWish("unused", older_than=DAY))
    assert goes(plan) == ["w"]
    assert reason(plan, "w").endswith("changed last 20 days ago")


def test_where_swarm_cannot_tell_its_services_all_that_they_may_use_stays() -> None:
    """A manager without a leader; a full disk is a usual reason."""
    here = world(container("c"), image("i", "i:1"), volume("v"), unreadable={"swarm's services and what they use": "The swarm does not have a leader"})
    wishes = {"containers": ContainerWish(), "images": UNUSED, "volumes": VolumeWish("unused")}
    plan = plan_of(here, **wishes)
    assert goes(plan) == ["c"]
    assert reason(plan, "i:1") == reason(plan, "v") == "perhaps used by a swarm service: they could not be listed"
    assert len(plan_of(here, orchestrated="clean", **wishes).steps) == 3


def test_the_newest_of_a_repository_are_images_and_not_tags() -> None:
    here = world(
        image("new", "app:3", "app:latest", "other:1", created=1 * DAY), image("middle", "app:2", created=2 * DAY), image("old", "app:1", created=3 * DAY),
    )
    plan = plan_of(here, images=ImageWish("unused", keep_latest=2))
    assert goes(plan) == ["app:1"]


def test_anonymous_volumes_go_right_behind_their_last_container() -> None:
    shared, own = "a" * 64, "b" * 64
    here = world(
        container("first", stopped=9 * DAY, volumes=(shared, own)), container("second", stopped=8 * DAY, volumes=(shared,)), container("third", stopped=7 * DAY),
        volume(shared, anonymous=True), volume(own, anonymous=True), network("n"),
    )
    plan = plan_of(here, containers=ContainerWish(volumes=True), networks=NetworkWish())
    assert goes(plan) == ["first", own, "second", shared, "third", "n"]


def test_what_cannot_be_had_does_not_count_for_what_is_to_stay_of_the_cache() -> None:
    here = world(*(record(f"shared{n}", n * DAY, shared=True, bytes=100) for n in range(1, 6)), *(record(f"own{n}", n * DAY, bytes=10) for n in range(1, 4)))
    assert goes(plan_of(here, build_cache=policy.CacheWish(keep_storage=100))) == []
    assert goes(plan_of(here, build_cache=policy.CacheWish(keep_storage=25))) == ["own3"]


def test_a_volume_that_a_container_of_the_plan_still_writes_to_may_change_until_then() -> None:
    here = world(container("c", state="running", volumes=("a" * 64,)), volume("a" * 64, anonymous=True))
    plan = plan_of(here, containers=ContainerWish(states=ALL_STATES, volumes=True))
    assert [(step.kind, step.expects) for step in plan.steps if step.kind == "volume"] == [("volume", ())]
