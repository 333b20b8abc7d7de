# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a plan is cut down where several filesystems have a target."""

from __future__ import annotations

import typing as t

from ansible_collections.fleetclean.docker.plugins.module_utils.plan import Freed, Plan, Step


def on(kind: str, name: str, *frees: tuple[str, int], **more: t.Any) -> Step:
    """A step that frees so many bytes on these filesystems."""
    freed = tuple(Freed(device, size, 1) for device, size in frees)
    return Step(kind, name, name, sum(part.bytes for part in freed), "why", frees=freed, inodes=len(freed), **more)


def test_for_a_target_on_one_of_several_filesystems_goes_only_what_lies_there() -> None:
    plan = Plan((on("container", "c", ("data", 5)), on("image", "i", ("images", 10)), on("volume", "v", ("data", 7)), on("image", "j", ("images", 10))))
    short, rest = plan.until_each({"images": (15, 0)})
    assert [step.id for step in short.steps] == ["i", "j"]
    assert rest.steps == ()
    assert {(kept.id, kept.reason) for kept in short.kept} == {
        ("c", "frees nothing on a filesystem that has less than its target"), ("v", "frees nothing on a filesystem that has less than its target"),
    }
    short, rest = plan.until_each({"images": (5, 0), "data": (6, 0)})
    assert [step.id for step in short.steps] == ["c", "i", "v"]
    assert [step.id for step in rest.steps] == ["j"], "it helps if the filesystem has less than was said"
    assert [step.id for step in plan.until_each({"images": (0, 2)})[0].steps] == ["i", "j"]


def test_what_frees_on_both_counts_on_both() -> None:
    plan = Plan((on("container", "c", ("data", 5), ("images", 5)), on("image", "i", ("images", 5)), on("volume", "v", ("data", 5))))
    assert [step.id for step in plan.until_each({"images": (5, 0), "data": (5, 0)})[0].steps] == ["c"]
    assert [step.id for step in plan.until_each({"images": (10, 0), "data": (5, 0)})[0].steps] == ["c", "i"]


def test_what_has_to_wait_takes_along_what_it_waits_for_and_no_more() -> None:
    plan = Plan(
        (
            on("container", "c", ("data", 5)),
            on("container", "d", ("data", 5)),
            Step("tag", "child", "child:1", 0, "why", frees=()),
            on("image", "child", ("images", 1)),
            Step("tag", "parent", "parent:1", 0, "why", frees=()),
            on("image", "parent", ("other", 20), children=("child",), after=("c",)),
            on("volume", "v", ("volumes", 9), after=("d",)),
        )
    )
    short, _rest = plan.until_each({"other": (20, 0)})
    assert [step.name for step in short.steps] == ["c", "child:1", "child", "parent:1", "parent"]
    assert all(step.helps({"other"}) for step in short.steps), "while the target is not met none of them is in vain"
    assert [step.name for step in plan.until_each({"volumes": (1, 0)})[0].steps] == ["d", "v"]


def test_a_volume_that_goes_along_waits_for_its_container() -> None:
    plan = Plan((on("container", "c", ("data", 5)), on("volume", "v", ("volumes", 9), of="c")))
    assert [step.name for step in plan.until_each({"volumes": (1, 0)})[0].steps] == ["c", "v"]


def test_what_is_chosen_frees_what_it_does_without_what_was_passed_over() -> None:
    """A layer that two images have comes free with the second only if the first was chosen, too."""
    told: list[str] = []

    def sized(step: Step) -> Step:
        told.append(step.id)
        return step._replace(bytes=1, frees=(Freed("images", 1, 0),))

    plan = Plan((on("image", "a", ("elsewhere", 5)), on("image", "b", ("images", 100)), on("image", "c", ("images", 100))))
    short, rest = plan.until_each({"images": (2, 0)}, sized)
    assert [step.id for step in short.steps] == ["b", "c"] == told
    assert (short.bytes, rest.steps) == (2, ())
