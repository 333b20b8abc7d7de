# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet's page as text: what stands in it, what cannot get into it. In a browser: tests/integration/test_page_in_browser.py."""

from __future__ import annotations

import base64
import copy
import hashlib
import re
import time
import typing as t
from html.parser import HTMLParser

import pytest
from ansible_collections.fleetclean.docker.plugins.filter.fleet import FilterModule
from ansible_collections.fleetclean.docker.plugins.plugin_utils import fleet, page, page_look

from tests import records

VOID = {"meta", "rect", "input", "br"}
GB = records.GB


class Page(HTMLParser):
    """A page as a browser would take it apart: tags, attributes, texts, and whether all that was opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text = text
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.within: list[str] = []
        self.comments: list[str] = []
        self.feed(text)
        self.close()
        assert self.within == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.within.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.within.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.within and self.within[-1] not in ("style", "script"):
            self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def attributes(self, name: str) -> list[str]:
        return [value or "" for _tag, attributes in self.tags for key, value in attributes.items() if key == name]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.texts).split())


def show(hostvars: t.Sequence[dict[str, t.Any]], table: str = "report", **more: t.Any) -> Page:
    return Page(page.fleet_page([fleet.host_record(copy.deepcopy(host)) for host in hostvars], table, **more))


def names(found: Page) -> list[str]:
    """The hosts with a bar, in the order in which they stand."""
    labels = [label.split(":")[0] for label in found.attributes("aria-label") if label.startswith("Disk of ")]
    return [label[len("Disk of "):] for label in labels if label != "Disk of the fleet"]


def test_the_filter_is_there_by_name() -> None:
    assert FilterModule().filters()["fleet_page"] is page.fleet_page


# -- what a reader finds ---------------------------------------------------------------------------


def test_the_fleets_figures_come_first() -> None:
    engine = records.engine_result(1, size=100 * GB, used=60 * GB)
    engine["totals"]["reclaimable_bytes"] = 25 * GB
    words = show([records.hostvars("a", engine=engine), records.hostvars("b", engine=engine), *records.report_fleet()[-3:]], made="24 Nov 2026").words
    assert "5 hosts · 24 Nov 2026 used 120.0 GB of 200.0 GB, 60 % could be had 50.0 GB 25 % of the disks need a look 2 hosts 1 unreachable, 1 in trouble" in words
    assert "asked 2 hosts 1 without Docker" in words


def test_hosts_that_could_not_be_asked_stand_before_the_others_with_their_reason() -> None:
    words = show(records.report_fleet()).words
    down = words.index("web9 engine does not answer: /var/run/docker.sock: connection refused.")
    lost = words.index("web12 unreachable: ssh: connect to host web12 port 22: No route to host")
    without = words.index("mail no Docker here: /var/run/docker.sock: no such file")
    assert down < without and lost < without
    assert without < words.index("disk by category") < words.index("build1")


def test_hosts_are_sorted_by_what_could_be_had() -> None:
    hosts = records.report_fleet()
    had = {host["inventory_hostname"]: host["_cleanup_engine"]["totals"]["reclaimable_bytes"] for host in hosts[:8]}
    assert names(show(hosts)) == sorted(had, key=lambda name: -had[name])


def test_every_figure_of_a_bar_is_text() -> None:
    hosts = records.report_fleet()
    found = show(hosts)
    for host in hosts[:8]:
        label = next(label for label in found.attributes("aria-label") if label.startswith(f"Disk of {host['inventory_hostname']}:"))
        for category, usage in host["_cleanup_engine"]["usage"].items():
            words = f"{page._words(category)} {page.say_size(usage['disk_bytes'])}"
            assert words in label
            assert page.say_size(usage["disk_bytes"]) in found.words
        assert "used" in label and "could be had" in label


def test_a_bar_is_the_whole_disk() -> None:
    engine = records.engine_result(1, size=100 * GB, used=60 * GB)
    found = show([records.hostvars("a", engine=engine)])
    bar = found.text[found.text.index('id="hosts"'):]
    widths = [int(width) for width in re.findall(r'<rect class="(?!line)[a-z_]+" x="\d+" width="(\d+)"', bar)]
    assert 590 <= sum(widths) <= 600


def test_an_opened_host_shows_its_largest_items_and_ways() -> None:
    engine = records.engine_result(1)
    engine["largest"]["images"][0].update(name="ci/build:417, ci/build:latest", size=999 * GB, disk_bytes=999 * GB, age=34 * 86400, used_by=["web"])
    words = show([records.hostvars("a", engine=engine)]).words
    assert "Largest image ci/build:417, ci/build:latest 999.0 GB used by web, made 34 days ago" in words
    assert "unused images 7 objects" in words and "docker_clean, images: {scope: unused}" in words
    assert "Docker 26.1.5 · overlay2 on ext4 · /var/lib/docker" in words


def test_what_was_not_measured_is_marked() -> None:
    fast, exact = show(records.report_fleet(exact=False)), show(records.report_fleet())
    assert "images ~" in fast.words and "~ is the engine's own figure, not measured on the disk." in fast.words
    assert "~" not in exact.words


def test_where_figures_are_not_the_whole_truth_the_host_says_so() -> None:
    engine = records.engine_result(1)
    engine["unread"] = {"count": 3, "vanished": 0, "examples": [{"path": "/var/lib/docker/x", "error": "Input/output error"}]}
    engine["totals"].update(disk_bytes=100 * GB, unattributed_bytes=3 * GB)
    engine["warnings"] = ["volumes could not be listed"]
    words = show([records.hostvars("a", engine=engine)]).words
    assert "3 files could not be read and are missing here, such as /var/lib/docker/x: Input/output error" in words
    assert "3.0 GB (3 %) below the data root" in words
    assert "volumes could not be listed" in words


def test_other_filesystems_are_told_but_not_those_of_running_containers() -> None:
    engine = records.engine_result(1)
    engine["mounts"] = [{"path": "/var/lib/docker/overlay2/5f/merged", "type": "overlay"}, {"path": "/var/lib/docker/volumes/nfs/_data", "type": "nfs4"}]
    words = show([records.hostvars("a", engine=engine)]).words
    assert "1 other filesystem below the data root is not part of this: /var/lib/docker/volumes/nfs/_data (nfs4)" in words
    assert "merged" not in words


def test_a_host_without_a_known_filesystem_has_its_categories_all_the_same() -> None:
    engine = {**records.engine_result(1), "filesystems": []}
    words = show([records.hostvars("a", engine=engine)]).words
    assert "disk not seen" in words and "could be had" in words


@pytest.mark.parametrize(("check", "title"), [(False, "What came free"), (True, "What would come free")])
def test_a_clean_run_says_what_came_free_and_why(check: bool, title: str) -> None:
    found = show(records.clean_fleet(), "clean", check=check)
    assert found.words.startswith(f"{title} on Docker hosts")
    assert ("would come free" if check else "came free") in found.words
    for words in (
        "image ci/build:417 12.0 GB unused for 34 days (last container)", "container test-4711 1.0 GB exited 12 days ago",
        "log ci-runner 8.0 GB cut from 8.0 GB to 10.0 MB", "12 images 9.0 GB used by a container",
        'image ci/build:9 the engine says "conflict"', "needs a look, see above",
    ):
        assert words in found.words, words
    assert names(found)[-1] == "db3"


@pytest.mark.parametrize("check", [False, True])
def test_whose_readers_are_stale_and_which_logs_stay_for_that_is_said(check: bool) -> None:
    logs = records.log_result()
    (log,) = logs["logs"]
    stays = {**log, "name": "db", "readers": "spared", "method": "none", "reclaimed_bytes": 0, "words": "8.0 GB stay"}
    logs["logs"] = [{**log, "readers": "stale", "words": "docker logs --tail and -f stay silent"}, stays]
    found = show([records.hostvars("build1", engine=records.engine_result(1), logs=logs, clean=records.clean_result(0))], "clean", check=check).words
    assert "log ci-runner 8.0 GB cut from 8.0 GB to 10.0 MB; docker logs --tail and -f are not right until the container is started again" in found
    assert f"docker logs --tail and -f {'would be' if check else 'are'} stale for ci-runner; cured by cleanup_logs_restart:" in found
    assert "of logs stay, since docker logs --tail and -f would be stale: db; ways out:" in found
    assert "log db" not in found, "it did not go"


@pytest.mark.parametrize("table", ["report", "clean"])
def test_a_fleet_that_nobody_could_ask_has_a_page(table: str) -> None:
    assert "need a look 1 host" not in show([], table).words
    assert "connection refused" in show(records.report_fleet()[-3:], table).words


def test_the_wishes_stand_with_what_they_took() -> None:
    found = show(records.clean_fleet(), "clean").words
    assert "What was wished" in found and "unused for 7 days, keep the newest 2 of each repository" in found


def test_many_reasons_can_be_opened() -> None:
    found = show([records.hostvars(f"h{number}", engine=records.DOWN) for number in range(40)])
    assert "28 more hosts" in found.words and "h39" in found.words


# -- what cannot get in ----------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["report", "clean"])
def test_a_name_stays_a_name(table: str) -> None:
    """The tags and attributes of a page are the same whatever things are called, and the names can be read."""
    found = show(records.hostile_fleet(), table)
    tags = {tag for tag, _attributes in found.tags}
    assert tags <= {
        "html", "head", "meta", "title", "style", "body", "main", "header", "h1", "h2", "h3", "h4", "p", "section", "dl", "div", "dt", "dd", "i", "b", "small",
        "ul", "ol", "li", "span", "button", "svg", "rect", "details", "summary", "bdi", "table", "thead", "tbody", "tr", "th", "td", "br", "label", "input",
        "footer", "script",
    }
    assert {name for _tag, attributes in found.tags for name in attributes} <= {
        "lang", "dir", "charset", "http-equiv", "content", "name", "class", "id", "type", "disabled", "data-sort", "data-says", "data-v", "aria-label",
        "aria-pressed", "aria-expanded", "role", "viewbox", "preserveaspectratio", "x", "y", "width", "height", "scope", "for", "placeholder", "autocomplete",
        "spellcheck",
    }
    assert [tag for tag, _attributes in found.tags].count("script") == 1
    assert found.comments == []
    for value in found.attributes("class"):
        assert re.fullmatch(r"[a-z_ ]*", value), value
    for value in found.attributes("data-v"):
        assert re.fullmatch(r"[0-9 ]+", value), value
    for evil in records.HOSTILE[:5]:
        assert evil in found.words, evil
    assert "xx…xx" in found.words


@pytest.mark.parametrize("table", ["report", "clean"])
def test_no_character_moves_a_cursor_or_turns_the_writing_round(table: str) -> None:
    text = page.fleet_page([fleet.host_record(host) for host in records.hostile_fleet()], table, made="\u202e{{ 1 }}")
    assert [char for char in set(text) - {"\n"} if not char.isprintable()] == []
    text.encode()
    assert "evil\ufffdtxt.exe" in text
    assert "صورة אבג" in text  # a name in another script is a name


@pytest.mark.parametrize("table", ["report", "clean"])
def test_a_template_engine_finds_nothing_to_read(table: str) -> None:
    # The page is an argument of ansible.builtin.copy: what looks like a template in it must not be one.
    text = page.fleet_page([fleet.host_record(host) for host in records.hostile_fleet()], table)
    assert not re.search(r"\{\{|\}\}|\{%|%\}|\{#|#\}", text)


def test_the_policy_allows_this_style_and_this_script_and_nothing_else() -> None:
    found = show(records.hostile_fleet())
    policy = next(attributes["content"] or "" for tag, attributes in found.tags if attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag, fixed in (("style", page_look.STYLE), ("script", page_look.SCRIPT)):
        inside = re.findall(f"<{tag}>(.*?)</{tag}>", found.text, re.DOTALL)
        assert inside == [fixed]
        assert f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(fixed.encode()).digest()).decode()}'" in policy
    assert "style" not in {name for _tag, attributes in found.tags for name in attributes}
    assert not re.search(r"https?:|url\(|@import|fetch|XMLHttpRequest|innerHTML|eval", page_look.STYLE + page_look.SCRIPT)


@pytest.mark.parametrize(
    "answer",
    [
        {"filesystems": [{"size": "1", "used": 2, "available": 3}]},
        {"filesystems": {"size": 1}},
        {"filesystems": [{"size": 1, "used": None, "available": 3}]},
        {"usage": {"images": 5}},
        {"usage": [1]},
        {"usage": {"images": {"disk_bytes": 10**40}}},
        {"largest": {"images": [7]}},
        {"largest": {"images": [{"size": [], "name": "x"}]}},
        {"totals": {"reclaimable_bytes": "lots"}},
        {"engine": 7},
        {"unread": {"count": 1, "examples": ["x"]}},
        {"deleted_open": [1]},
        {"deleted_open": {"bytes": "many"}},
        {"deleted_open": {"bytes": GB, "largest": [7]}},
        {"deleted_open": {"bytes": GB, "largest": {"pid": 1}}},
        {"deleted_open": {"bytes": GB, "largest": [{"bytes": GB, "pid": []}]}},
        {"deleted_open": {"bytes": GB}, "reclaimable": {"deleted_logs": 7}},
    ],
)
def test_one_host_that_answers_nonsense_does_not_take_the_report_of_all(answer: dict[str, t.Any]) -> None:
    hosts = [records.hostvars("odd", engine={**records.engine_result(1), **answer}), records.hostvars("fine", engine=records.engine_result(2))]
    found = [fleet.host_record(host) for host in hosts]
    assert (found[0]["status"], found[1]["status"]) == ("trouble", "ok")
    assert fleet.host_trouble(found[0]).startswith("unexpected answer (docker_disk_report.")
    for table in ("report", "clean"):
        assert names(Page(page.fleet_page(found, table))) == ["fine"]
        assert any(line.startswith("fine") for line in fleet.fleet_table(found, table))


def test_odd_entries_in_what_is_only_shown_do_no_harm() -> None:
    engine = {**records.engine_result(1), "reclaimable": {"x": 7, "y": {"bytes": "z"}}, "roots": [1], "mounts": [None], "measured": 3, "warnings": {"a": 1}}
    show([records.hostvars("a", engine=engine)])


# -- size ------------------------------------------------------------------------------------------


def test_a_thousand_hosts_make_a_page_of_a_few_megabytes_in_a_moment() -> None:
    found = [fleet.host_record(host) for host in records.big_fleet(1000)]
    began = time.process_time()
    text = page.fleet_page(found, "report")
    assert time.process_time() - began < 5
    assert len(text.encode()) < 5_000_000
    assert text.count("<details>") == 1000


def test_a_host_with_many_large_names_is_bounded() -> None:
    engine = records.engine_result(1, names=["'" * 4000])
    engine["largest"]["images"] *= 10_000
    clean = records.clean_result(0)
    clean["removed"] *= 10_000
    host = [records.hostvars("h" * 10_000, engine=engine, clean=clean, logs=records.log_result())]
    assert all(len(show(host, table).text) < 150_000 for table in ("report", "clean"))


def test_the_same_records_make_the_same_page() -> None:
    found = [fleet.host_record(host) for host in records.report_fleet()]
    assert page.fleet_page(found, "report") == page.fleet_page(copy.deepcopy(found), "report")
    assert sorted(names(Page(page.fleet_page(found[::-1], "report")))) == sorted(names(Page(page.fleet_page(found, "report"))))
