# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lines of a plan: what people read, at most a hundred columns, whatever things are called."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import options, words
from ansible_collections.fleetclean.docker.plugins.module_utils.policy import Step

GB = 1024**3
HOSTILE = ["\x1b[2J\x1b]0;owned\x07", "a\nb\rc\td", "\u202egpj.exe", "\x00", "\x9b31m", "\u2028"]


@pytest.mark.parametrize("text", HOSTILE, ids=repr)
def test_what_could_move_a_cursor_is_taken_out(text: str) -> None:
    for line in (words.printable(text), words.step_line("image", text, 1, text), words.kept_line("image", 1, 1, text)):
        assert line.isprintable()


def test_ordinary_text_stays_as_it_is() -> None:
    assert words.printable("ci/build:417 – größer") == "ci/build:417 – größer"
    assert words.printable(417) == "417"


@pytest.mark.parametrize("width", [1, 2, 5, 28, 99])
def test_a_long_name_is_cut_in_its_middle(width: int) -> None:
    text = "registry.example.com/team/" + "x" * 80 + ":2024.11"
    cut = words.printable(text, width)
    assert len(cut) == width
    assert "…" in cut
    if width >= 28:
        assert cut.startswith("registry.exam")
        assert cut.endswith(":2024.11")
    assert words.printable("short", 28) == "short"
    assert words.printable("x" * 28, 28) == "x" * 28


def test_one_line_says_kind_name_size_and_reason() -> None:
    assert words.step_line("image", "ci/build:417", int(2.2 * GB), "unused for 34 days (last container)") == (
        "- image       ci/build:417                    2.2 GB   unused for 34 days (last container)"
    )
    assert words.step_line("build_cache", "abc", None, "why").startswith("- build cache abc ")
    assert "        -   why" in words.step_line("tag", "a:1", None, "why")


def test_an_image_without_a_name_is_said_by_the_beginning_of_its_id() -> None:
    line = words.step_line("image", "sha256:" + "5f" * 32, 0, "dangling")
    assert "5f5f5f5f5f5f " in line
    assert "sha256" not in line


def test_what_stays_is_said_with_its_number() -> None:
    assert words.kept_line("image", 12, int(9.8 * GB), "used by a container") == (
        "  stays       12 images                       9.8 GB   used by a container"
    )
    assert "1 volume " in words.kept_line("volume", 1, 0, "x")
    assert "2 build cache records " in words.kept_line("build_cache", 2, 0, "x")


@pytest.mark.parametrize("name", ["x" * 300, "registry.example.com:5000/" + "team/" * 20 + "app:1", "web"])
@pytest.mark.parametrize(
    "reason",
    [
        "exited 12 days ago",
        "unused for 34 days (last container)",
        "dangling, unused for 1000 days (arrived, never used)",
        "shared with an image (build_cache.scope is unused)",
    ],
)
def test_a_line_has_a_hundred_columns_at_most(name: str, reason: str) -> None:
    for text in (
        words.step_line("build_cache", name, 999 * GB, reason),
        words.kept_line("build_cache", 99999, 999 * GB, reason),
    ):
        assert max(len(line) for line in text.split("\n")) <= 100, text
        # What does not fit goes on below itself, and nothing of it is lost.
        assert " ".join(text.split()).endswith(reason)


def test_the_engines_figure_is_marked_where_nothing_was_measured() -> None:
    assert "  ~3.0 GB   why" in words.step_line("image", "a:1", None, "why", 3 * GB)
    assert "   1.0 GB   why" in words.step_line("image", "a:1", GB, "why", 3 * GB)
    assert "        -   why" in words.step_line("image", "a:1", None, "why")


def test_even_a_reason_that_names_something_long_fits() -> None:
    repository = "registry.example.com:5000/" + "team/" * 20 + "app"
    line = words.step_line(
        "tag",
        f"{repository}:1",
        0,
        f"unused for 8 days (created; no later use is known); its image stays as {repository}:2.1",
    )
    kept = words.kept_line("image", 2, GB, f"the newest 2 of {repository}")
    for text in (line, kept):
        assert max(len(part) for part in text.split("\n")) <= 100, text
        assert repository in "".join(text.split())
        assert {part[:55].strip() for part in text.split("\n")[1:]} == {""}


def test_a_plan_is_said_largest_first_then_what_stays_then_what_is_free() -> None:
    steps = [
        Step("container", "c", "small", 10, "exited 2 days ago"),
        Step("image", "i", "unknown", None, "unused"),
        Step("image", "j", "large", GB, "unused"),
    ]
    kept = [
        {"kind": "image", "reason": "used by a container", "count": 1, "bytes": 5},
        {"kind": "volume", "reason": "named", "count": 3, "bytes": 7},
    ]
    first, *lines = words.plan_lines(["images: unused"], steps, kept, "0 B -> 1.0 GB of 2.0 GB (50 %)")
    assert first == "  wished      images: unused"
    assert [line.split()[2] for line in lines[:3]] == ["large", "small", "unknown"]
    assert "volumes" in lines[3]
    assert "image" in lines[4]
    assert lines[5] == "  free        0 B -> 1.0 GB of 2.0 GB (50 %)"
    assert words.plan_lines([], [], [], "") == []


def test_free_space_is_said_before_and_after() -> None:
    assert words.free_words(0, int(13.6 * GB), 50 * GB) == "0 B -> 13.6 GB of 50.0 GB (27 %)"
    for unknown in ((None, 1, 1), (1, None, 1), (1, 1, None), (1, 1, 0)):
        assert words.free_words(*unknown) == ""


# -- the wishes in words ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"images": {"scope": "unused", "older_than": "7d", "keep_latest": 2}}, ["images: unused for 7 days, keep the newest 2 of each repository"]),
        ({"images": {}}, ["images: dangling"]),
        ({"images": {"scope": "dangling", "older_than": "7d", "dangling_older_than": "1h"}}, ["images: dangling for 1 hour"]),
        (
            {"images": {"scope": "all", "dangling_older_than": "0", "keep_local": True, "keep": ["app", "team/*"]}},
            ["images: used by no running container, dangling ones at once, keep what was never pushed or pulled, keep those named app, team/*"],
        ),
        ({"containers": {"older_than": "36h", "volumes": True}}, ["containers: created, exited or dead for 36 hours, their anonymous volumes as well"]),
        ({"containers": {"states": ["exited"]}}, ["containers: exited"]),
        ({"volumes": {"older_than": "90m", "drivers": ["*"]}}, ["volumes: anonymous, unused for 90 minutes, of the drivers *"]),
        ({"volumes": {"scope": "unused", "keep": ["db*"]}}, ["volumes: unused, keep those named db*"]),
        ({"networks": {"keep": ["x\x1b[2J"]}}, ["networks: used by no container, keep those named x?[2J"]),
        ({"networks": {"older_than": "2w"}}, ["networks: used by no container for 14 days"]),
        ({"build_cache": {"scope": "all", "keep_storage": "10GB"}}, ["build cache: unused, also what is shared and the builder's own, keep the 10.0 GB used most recently"]),
        (
            {"networks": {}, "only_below": "15%", "free_target": "20GB", "only_below_inodes": "5%", "free_target_inodes": "1000"},
            [
                "networks: used by no container",
                "when: only if less than 15 % is free or less than 5 % of the inodes are free, until 20.0 GB is free and 1000 of the inodes are free, the cheapest loss first",
            ],
        ),
        ({"networks": {}, "orchestrated": "clean"}, ["networks: used by no container", "always: clean also what kubelet, the ECS agent, Nomad, swarm and buildx look after, and what starts again with the engine"]),
    ],
)
def test_wishes_are_said_in_words(given: dict[str, t.Any], said: list[str]) -> None:
    values = {**{name: option.get("default") for name, option in options.clean_spec().items()}, "keep_labels": [], **given}
    for section in options.SECTIONS:
        if values.get(section) is not None:
            defaults = {name: option.get("default") for name, option in options.clean_spec()[section]["options"].items()}
            values[section] = {**defaults, **values[section]}
    assert words.policy_lines(*options.read_clean(values)) == said


def test_what_always_holds_is_said_too() -> None:
    wishes, marks = options.read_clean({**{name: option.get("default") for name, option in options.clean_spec().items()}, "networks": {"keep": []}})
    assert words.policy_lines(wishes, marks) == ["networks: used by no container", "always: keep what is labelled fleetclean.keep"]
