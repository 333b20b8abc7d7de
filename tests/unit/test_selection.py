# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``only`` and ``only_labels`` select: whatever they do not stays, with that for a reason."""

from __future__ import annotations

import time
import typing as t

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import managers, names, words
from ansible_collections.fleetclean.docker.plugins.module_utils.options import Watermarks
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
from worlds import container, hexadecimal, image, network, sha, volume, world

ANONYMOUS = hexadecimal("an anonymous volume")
TEAM = {"team": "search"}


def plan_of(snapshot: Snapshot, **wishes: t.Any) -> Plan:
    return decide(snapshot, Wishes(**wishes))


def goes(plan: Plan) -> list[str]:
    return [step.name for step in plan.steps]


def stays(plan: Plan) -> dict[str, str]:
    return {kept.name: kept.reason for kept in plan.kept}


def every(labels: dict[str, str]) -> Snapshot:
    return world(
        container("web-1", labels=labels), container("job-1"), image("i1", "app/web:1", labels=labels), image("i2", "other/web:1"),
        volume("web-data", labels=labels), volume("job-data"), network("web-net", labels=labels), network("job-net"),
    )


def wishes_of(**options: t.Any) -> dict[str, t.Any]:
    return {
        "containers": ContainerWish(**options), "images": ImageWish("unused", **options), "volumes": VolumeWish("unused", **options),
        "networks": NetworkWish(**options),
    }


def test_each_section_takes_names_and_what_has_others_stays() -> None:
    plan = plan_of(every({}), **wishes_of(only=("web-*", "app/*")))
    assert goes(plan) == ["web-1", "web-net", "app/web:1", "web-data"]
    assert stays(plan) == {
        "job-1": "not named in containers.only", "other/web:1": "not named in images.only", "job-data": "not named in volumes.only",
        "job-net": "not named in networks.only",
    }


@pytest.mark.parametrize("pattern", ["team", "team=search", "te*=s*"])
def test_each_section_takes_labels_as_keep_labels_reads_them(pattern: str) -> None:
    plan = plan_of(every(TEAM), **wishes_of(only_labels=("none", pattern)))
    assert goes(plan) == ["web-1", "web-net", "app/web:1", "web-data"]
    assert stays(plan)["job-1"] == "without a label of containers.only_labels"


def test_both_lists_have_to_select_an_object() -> None:
    here = world(container("a", labels=TEAM), container("b", labels=TEAM), container("c"))
    plan = plan_of(here, containers=ContainerWish(only=("a", "c"), only_labels=("team",)))
    assert goes(plan) == ["a"]
    assert stays(plan) == {"b": "not named in containers.only", "c": "without a label of containers.only_labels"}


@pytest.mark.parametrize("option", ["only", "only_labels"])
def test_an_empty_list_selects_nothing(option: str) -> None:
    """A template that found nothing is no wish for everything."""
    plan = plan_of(every(TEAM), **wishes_of(**{option: ()}))
    assert goes(plan) == []
    assert all(f".{option}, which is empty" in reason for reason in stays(plan).values())
    assert len(stays(plan)) == 8


def test_what_is_to_be_kept_is_kept_though_it_is_selected() -> None:
    plan = plan_of(every({"fleetclean.keep": ""}), **wishes_of(only=("*",), keep=("job-*", "other/*")))
    assert goes(plan) == []
    assert set(stays(plan).values()) == {
        "labelled fleetclean.keep", "named in containers.keep", "named in images.keep", "named in volumes.keep", "named in networks.keep",
    }


def test_without_a_selection_nothing_is_asked_of_names() -> None:
    assert len(goes(plan_of(every({}), **wishes_of()))) == 8


# -- ids -----------------------------------------------------------------------------------------------


def test_an_id_selects_from_the_digits_on_that_docker_shows() -> None:
    """What is shorter may be meant for a name: ``cafe`` would take whatever container has an id that begins so."""
    ident = "cafe" + hexadecimal("x")[4:]
    here = world(container("web", id=ident), image("i", "a:1", id=f"sha256:{ident}"))
    for length in (4, 11):
        assert goes(plan_of(here, containers=ContainerWish(only=(ident[:length],)), images=ImageWish("unused", only=(ident[:length],)))) == []
    for pattern in (ident[:12], ident):
        plan = plan_of(here, containers=ContainerWish(only=(pattern,)), images=ImageWish("unused", only=(f"sha256:{pattern}",)))
        assert goes(plan) == ["web", "a:1"]
    front = network("front")
    assert goes(plan_of(world(front), networks=NetworkWish(only=(front.id[:12],)))) == ["front"]
    assert goes(plan_of(world(front), networks=NetworkWish(only=(front.id[:11],)))) == []
    assert goes(plan_of(world(container("cafe"), container("b", id=ident)), containers=ContainerWish(only=("cafe",)))) == ["cafe"]


def test_a_named_volume_has_no_id() -> None:
    here = world(volume("cafebabe1234-data"), volume("cafebabe1234"))
    assert goes(plan_of(here, volumes=VolumeWish("unused", only=("cafebabe1234",)))) == ["cafebabe1234"]


@pytest.mark.parametrize(("pattern", "selected"), [("*", False), (ANONYMOUS[:4] + "*", False), (ANONYMOUS[:12], True), (ANONYMOUS, True)])
def test_an_anonymous_volume_has_no_name_that_a_glob_selects(pattern: str, selected: bool) -> None:
    here = world(volume(ANONYMOUS, anonymous=True))
    assert goes(plan_of(here, volumes=VolumeWish(only=(pattern,)))) == ([ANONYMOUS] if selected else [])


def test_an_anonymous_volume_is_selected_with_its_container_and_not_by_the_volumes_own_section() -> None:
    here = world(container("web", volumes=(ANONYMOUS,)), volume(ANONYMOUS, anonymous=True), volume("data"))
    plan = plan_of(here, containers=ContainerWish(only=("web",), volumes=True), volumes=VolumeWish("unused", only=("x",)))
    assert goes(plan) == ["web", ANONYMOUS]
    assert goes(plan_of(here, containers=ContainerWish(only=("x",), volumes=True), volumes=VolumeWish("unused"))) == ["data"]


# -- containers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "selected"),
    [("web-*", False), ("*b", True), ("db", True), ("web-1/db", True), ("/web-?/d*", True), ("*/db", True), ("web-1/*/db", False), ("*/web", False)],
)
def test_what_a_link_calls_a_container_is_selected_by_a_pattern_with_a_slash_only(pattern: str, selected: bool) -> None:
    """The list names what ``web-1`` is linked to ``web-1/db`` as well."""
    here = world(container("db", names=("db", "web-1/db")), container("other"))
    assert goes(plan_of(here, containers=ContainerWish(only=(pattern,)))) == (["db"] if selected else [])


def test_what_is_to_be_kept_is_found_by_all_that_it_is_called() -> None:
    here = world(container("db", names=("db", "web-1/db")))
    assert goes(plan_of(here, containers=ContainerWish(keep=("web-*",)))) == []


# -- images --------------------------------------------------------------------------------------------


def test_of_several_tags_those_go_that_are_selected_and_the_image_stays() -> None:
    here = world(image("i", "app/web:1", "app/web:latest", "theirs/web:1"))
    plan = plan_of(here, images=ImageWish("unused", only=("app/*",)))
    assert [(step.kind, step.name) for step in plan.steps] == [("tag", "app/web:1"), ("tag", "app/web:latest")]
    assert stays(plan) == {"theirs/web:1": "not named in images.only"}
    assert plan.steps[0].beside == ("theirs/web:1",)


@pytest.mark.parametrize("pattern", [sha("i"), sha("i")[7:19], "sha256:" + "d" * 64, "d" * 12])
def test_an_id_or_a_digest_selects_an_image_with_all_its_names(pattern: str) -> None:
    digest = "sha256:" + "d" * 64
    here = world(image("i", "app:1", "b:1", digests=(f"app@{digest}",)), image("j", "app:2"))
    assert [step.name for step in plan_of(here, images=ImageWish("unused", only=(pattern,))).steps] == ["app:1", "b:1"]


def test_a_repositorys_digest_selects_the_tags_that_the_image_has_there() -> None:
    digest = "sha256:" + "d" * 64
    here = world(image("i", "app:1", "b:1", digests=(f"app@{digest}", f"b@{digest}")), image("j", "app:2"))
    plan = plan_of(here, images=ImageWish("unused", only=(f"app@{digest}",)))
    assert [(step.kind, step.name) for step in plan.steps] == [("tag", "app:1")]
    assert goes(plan_of(world(image("k", digests=(f"app@{digest}",))), images=ImageWish("unused", only=(f"app@{digest[:20]}",)))) == [f"app@{digest}"]


OTHERS = f"registry.example/base@{sha('d')}"
OURS = f"search/app@{sha('d')}"


@pytest.mark.parametrize("digests", [(OTHERS,), (OURS, OTHERS)])
@pytest.mark.parametrize("only", [("search/*",), ("search/app:1", "search/app:2"), (OURS, "search/app")])
def test_the_digest_of_a_repository_that_is_not_selected_is_a_name_under_which_the_image_stays(digests: tuple[str, ...], only: tuple[str, ...]) -> None:
    """It was pulled by it: whoever did wants it by that."""
    here = world(image("i", "search/app:1", "search/app:2", digests=digests))
    plan = plan_of(here, images=ImageWish("unused", only=only))
    assert [(step.kind, step.name, step.beside) for step in plan.steps] == [("tag", "search/app:1", (OTHERS,)), ("tag", "search/app:2", (OTHERS,))]
    assert stays(plan) == {OTHERS: "not named in images.only"}
    assert goes(plan_of(world(image("i", digests=(OTHERS,))), images=ImageWish("unused", only=only))) == []


@pytest.mark.parametrize("also", ["registry.example/base", "registry.example/*", OTHERS, sha("d"), sha("i")[7:19]])
def test_an_image_goes_once_all_its_repositories_are_selected(also: str) -> None:
    here = world(image("i", "search/app:1", digests=(OURS, OTHERS)))
    assert [step.kind for step in plan_of(here, images=ImageWish("unused", only=("search/*", also))).steps] == ["image"]
    here = world(image("i", digests=(OURS, OTHERS)))
    assert [step.kind for step in plan_of(here, images=ImageWish("unused", only=("search/*", also))).steps] == ["image"]


@pytest.mark.parametrize("only", ["search/*", OURS, "registry.example/base"])
def test_of_an_image_without_a_tag_all_digests_have_to_be_selected(only: str) -> None:
    here = world(image("i", digests=(OURS, OTHERS)))
    plan = plan_of(here, images=ImageWish("unused", only=(only,)))
    assert (goes(plan), stays(plan)) == ([], {OURS: "not named in images.only"})


def test_labels_alone_ask_for_no_digest() -> None:
    here = world(image("i", "search/app:1", digests=(OTHERS,), labels=TEAM))
    assert [step.kind for step in plan_of(here, images=ImageWish("unused", only_labels=("team",))).steps] == ["image"]


def test_an_image_that_a_stopped_container_has_keeps_all_names_where_it_stays_by_a_digest() -> None:
    here = world(container("job", image="i"), image("i", "search/app:1", digests=(OTHERS,)))
    plan = plan_of(here, images=ImageWish("all", only=("search/*",)))
    assert (goes(plan), stays(plan)) == ([], {"search/app:1": "used by a container"})


def test_an_image_without_a_name_is_selected_by_its_labels_or_not_at_all() -> None:
    here = world(image("i", labels=TEAM), image("j"))
    assert goes(plan_of(here, images=ImageWish(only=("*", "*/*")))) == []
    assert goes(plan_of(here, images=ImageWish(only_labels=("team",)))) == [sha("i")]


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        (ImageWish("unused", only=("search",)), "not named in images.only"),
        (ImageWish("unused", only_labels=("team=search",)), "without a label of images.only_labels"),
        (ImageWish("unused", only=("search",), only_labels=("team=search",)), "not named in images.only"),
    ],
)
def test_what_an_image_was_built_on_stays_though_it_lost_its_name(wish: ImageWish, reason: str) -> None:
    """It may be a step of the build, and as well another team's base image whose tag moved on: an engine shows them alike."""
    here = world(image("base", labels={"team": "other"}), image("ours", "search:1", parent="base", labels=TEAM))
    plan = plan_of(here, images=wish)
    assert (goes(plan), stays(plan)) == (["search:1"], {sha("base"): reason})
    assert sha("base") in goes(plan_of(here, images=wish._replace(only=None, only_labels=None)))


def test_what_an_image_was_built_on_goes_with_it_where_it_is_selected_itself() -> None:
    here = world(image("step", labels=TEAM), image("ours", "app:1", parent="step", labels=TEAM), image("theirs", parent="ours"))
    assert goes(plan_of(here, images=ImageWish("unused", only_labels=("team",)))) == []
    here = world(*here.images[:2])
    assert goes(plan_of(here, images=ImageWish("unused", only_labels=("team",)))) == ["app:1", sha("step")]
    assert goes(plan_of(here, images=ImageWish("unused", only=("app", sha("step")[7:19])))) == ["app:1", sha("step")]


def test_an_image_is_never_taken_from_under_a_container_that_is_not_selected() -> None:
    """Scope ``all`` takes images of stopped containers that stay for their age or state; these stay because nobody means them."""
    here = world(container("theirs", image="i"), container("ours", image="j", state="exited"), image("i", "app:1"), image("j", "app:2"))
    plan = plan_of(here, containers=ContainerWish(only=("ours",)), images=ImageWish("all"))
    assert goes(plan) == ["ours", "app:2"]
    assert stays(plan)["app:1"] == "used by a container"


# -- many patterns -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["host.example:5000/team/app{}:v1", "host.example:5000/*/app{}:v*", "host.example:5000/team/app{}:v?"])
def test_lists_of_thousands_of_patterns_take_no_time(shape: str) -> None:
    """A survey writes one for each image; a cache that holds fewer than there are holds none (12 s for 1500 patterns and 100 images)."""
    patterns = tuple(shape.format(number) for number in range(1500))
    here = world(*[image(f"i{number}", f"host.example:5000/team/other{number}:v1") for number in range(40)], image("i", "host.example:5000/team/app7:v1"))
    began = time.process_time()
    assert goes(plan_of(here, images=ImageWish("unused", only=patterns))) == ["host.example:5000/team/app7:v1"]
    assert "host.example:5000/team/app7:v1" not in goes(plan_of(here, images=ImageWish("unused", keep=patterns)))
    assert time.process_time() - began < 4


def test_compiled_patterns_take_a_bounded_space_and_one_more_than_fits_leaves_the_others_there(monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[str, t.Any] = {}
    monkeypatch.setattr(names, "_KNOWN_PIECES", known)
    monkeypatch.setattr(names, "_MOST_PIECES", 3)
    for _ in range(2):
        assert [names.glob_fits(f"a{number}?", f"a{number}b") for number in range(5)] == [True] * 5
        assert list(known) == ["a0?", "a1?", "a2?"]


# -- in words ------------------------------------------------------------------------------------------


def test_a_policy_says_what_it_is_limited_to() -> None:
    lines = words.policy_lines(Wishes(images=ImageWish("unused", only=("app/*", "b"), keep=("app/x",)), volumes=VolumeWish(only_labels=())), Watermarks(None, None, None, None))
    assert lines[:2] == [
        "images: unused, only those named app/*, b, keep those named app/x",
        "volumes: anonymous, unused, only those labelled in an empty list: none",
    ]


def test_the_labels_that_select_are_among_those_that_are_looked_at() -> None:
    """Of a label that no list names nothing is remembered."""
    wishes = Wishes(containers=ContainerWish(only_labels=("team=search",)), images=ImageWish(only_labels=("tier",)), keep_labels=("mine",))
    looked_at = managers.looked_at(wishes.label_patterns)
    assert [looked_at(*label) for label in (("team", "search"), ("tier", "x"), ("mine", ""), ("other", ""))] == [True, True, True, False]
