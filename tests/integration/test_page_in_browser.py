# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet's page in a real browser: in light and dark, on a phone and a desk, on paper and without a script."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from tests import records
from tests.integration.browser import PROGRAM, Browser
from tests.integration.support import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "playbooks/collections"))

PHONE, DESK = 360, 1280
#: The names of the hosts in the order in which they are seen.
NAMES = "Array.from(document.querySelectorAll('#hosts > li:not([hidden]) h3')).map(name => name.textContent)"
#: Elements that stick out of the window, or of the host or card that would cut them off.
CUT_OFF = """
    Array.from(document.querySelectorAll('main *')).filter(element => {
      if (!element.checkVisibility() || element.closest('.unseen')) { return false; }
      const box = element.getBoundingClientRect(), around = element.closest('#hosts > li, .card, main').getBoundingClientRect();
      return box.right > Math.min(around.right, innerWidth) + 1 || box.left < Math.max(around.left, 0) - 1;
    }).map(element => element.tagName + '.' + element.getAttribute('class') + ' ' + element.textContent.slice(0, 60))
"""
#: The least contrast of words against what is behind them, by the formula of WCAG 2.
CONTRAST = """
    (() => {
      const canvas = document.createElement('canvas').getContext('2d');
      const rgb = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); return canvas.getImageData(0, 0, 1, 1).data; };
      const light = colour => { const [r, g, b] = Array.from(rgb(colour)).map(part => (part /= 255) <= .03928 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
      const behind = element => { const colour = getComputedStyle(element).backgroundColor; return rgb(colour)[3] == 255 ? colour : behind(element.parentElement); };
      const contrast = (one, other) => (Math.max(one, other) + .05) / (Math.min(one, other) + .05);
      const texts = Array.from(document.querySelectorAll('main *')).filter(element => element.checkVisibility() && Array.from(element.childNodes).some(node => node.nodeType == 3 && node.data.trim()));
      const bars = Array.from(document.querySelectorAll('.bar rect'));
      return {
        text: Math.min(...texts.map(element => contrast(light(getComputedStyle(element).color), light(behind(element))))),
        bars: Math.min(...bars.map(rect => contrast(light(getComputedStyle(rect).fill), light(behind(rect.closest('.card')))))),
      };
    })()
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not PROGRAM:
        pytest.skip("no chromium on this machine")
    with Browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Path]:
    """One file for each kind of page."""
    from ansible_collections.fleetclean.docker.plugins.plugin_utils import fleet, page

    folder = tmp_path_factory.mktemp("pages")
    wanted: Dict[str, Any] = {
        "report": (records.report_fleet(), "report", False),
        "fast": (records.report_fleet(exact=False), "report", False),
        "clean": (records.clean_fleet(), "clean", False),
        "check": (records.clean_fleet(), "clean", True),
        "hostile": (records.hostile_fleet(), "report", False),
        "hostile-clean": (records.hostile_fleet(), "clean", False),
        "big": (records.big_fleet(1000), "report", False),
    }
    found = {}
    for name, (hosts, table, check) in wanted.items():
        text = page.fleet_page([fleet.host_record(copy.deepcopy(host)) for host in hosts], table, check, made="24 Nov 2026, 22:41 UTC")
        found[name] = folder / f"{name}.html"
        found[name].write_text(text, encoding="utf-8")
    return found


def quiet(browser: Browser, page: Path) -> None:
    """Nothing went wrong, nothing was refused, nothing but the page was asked for, and nobody else's script ran."""
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.run("typeof window.owned") == "undefined"


def open_all(browser: Browser) -> None:
    browser.run("document.getElementById('all').click()")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("name", ["report", "fast", "clean", "check", "hostile", "hostile-clean"])
def test_nothing_sticks_out_and_nothing_complains(browser: Browser, pages: Dict[str, Path], name: str, width: int, dark: bool) -> None:
    browser.open(pages[name], width, dark)
    for _state in ("closed", "open"):
        assert browser.run("innerWidth") == width
        assert browser.run("document.documentElement.scrollWidth") == width
        assert browser.run(CUT_OFF) == []
        open_all(browser)
    quiet(browser, pages[name])


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["report", "clean"])
def test_all_that_is_written_can_be_read(browser: Browser, pages: Dict[str, Path], name: str, dark: bool) -> None:
    browser.open(pages[name], DESK, dark)
    open_all(browser)
    lightness = browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] / 255")
    assert (lightness < 0.2) if dark else (lightness > 0.9)
    contrast = browser.run(CONTRAST)
    assert contrast["text"] >= 4.5
    assert contrast["bars"] >= 3


@pytest.mark.parametrize("name", ["hostile", "hostile-clean"])
def test_hostile_names_are_names(browser: Browser, pages: Dict[str, Path], name: str) -> None:
    browser.open(pages[name])
    open_all(browser)
    words = browser.run("document.body.textContent")
    for evil in records.HOSTILE[:5]:
        assert evil in words
    assert browser.run("document.querySelectorAll('img, iframe, a, object, embed, form, main script, main style, [onerror], [onload], [style]').length") == 0
    assert browser.run("document.scripts.length") == 1
    quiet(browser, pages[name])


def test_the_policy_is_in_force(browser: Browser, pages: Dict[str, Path], tmp_path: Path) -> None:
    """Should markup ever get into the page, a browser would not run it, nor fetch anything: here it got in."""
    broken = tmp_path / "broken.html"
    text = pages["report"].read_text(encoding="utf-8")
    evil = "<script>window.owned=1</script><img src='x.png' onerror='window.owned=1'><p style='color:red'>x</p><iframe src='data:text/html,x'></iframe>"
    broken.write_text(text.replace("<header>", f"<header>{evil}", 1), encoding="utf-8")
    browser.open(broken)
    refused = browser.complaints()
    assert len(refused) >= 4 and all("Content Security Policy" in words for words in refused), refused
    assert browser.run("typeof window.owned") == "undefined"


def test_buttons_sort_and_turn_the_order_round(browser: Browser, pages: Dict[str, Path]) -> None:
    hosts = {host["inventory_hostname"]: host["_cleanup_engine"] for host in records.report_fleet()[:8]}
    browser.open(pages["report"])

    def click(by: str) -> List[str]:
        browser.run(f"document.querySelector('button[data-sort][data-says=\"{by}\"]').click()")
        assert browser.run("document.querySelectorAll('[aria-pressed=true]').length") == 1
        assert browser.run("document.querySelector('[aria-pressed=true]').dataset.says") == by
        assert browser.run("document.getElementById('said').textContent").startswith(f"Sorted by {by}, ")
        return list(browser.run(NAMES))

    had = sorted(hosts, key=lambda name: -hosts[name]["totals"]["reclaimable_bytes"])
    assert browser.run(NAMES) == had
    assert click("could be had") == had[::-1]  # it was sorted by this already
    assert click("could be had") == had
    assert click("host") == ["build1", "build2", "cache-0", "ci-runner-17", "db3", "db4.eu-west.example.com", "web1", "web2"]
    assert click("host")[0] == "web2"
    for says, category in (("images", "images"), ("cache", "build_cache"), ("leftovers", "leftovers")):
        wanted = sorted(hosts, key=lambda name: -hosts[name]["usage"][category]["disk_bytes"])
        assert click(says) == wanted
        assert click(says) == wanted[::-1]
    share = {name: engine["filesystems"][0]["used"] / engine["filesystems"][0]["size"] for name, engine in hosts.items()}
    assert share[click("used")[0]] == max(share.values())
    quiet(browser, pages["report"])


def test_a_host_is_found_by_a_part_of_its_name(browser: Browser, pages: Dict[str, Path]) -> None:
    browser.open(pages["report"])
    look_for = "(words => { const find = document.getElementById('find'); find.value = words; find.dispatchEvent(new Event('input')); })"
    browser.run(f"{look_for}('WEB')")
    assert sorted(browser.run(NAMES)) == ["web1", "web2"]
    assert browser.run("document.getElementById('said').textContent") == "2 hosts"
    browser.run(f"{look_for}('')")
    assert len(browser.run(NAMES)) == 8


def test_a_host_opens_by_key_and_all_by_a_button(browser: Browser, pages: Dict[str, Path]) -> None:
    browser.open(pages["report"], PHONE)
    still_closed = "document.querySelectorAll('#hosts details:not([open])').length"
    assert browser.run(still_closed) == 8
    browser.run("document.querySelector('#hosts summary').focus()")
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13)
    assert browser.run(still_closed) == 7
    assert "Largest" in browser.run("document.querySelector('#hosts [open]').innerText")
    open_all(browser)
    assert browser.run(still_closed) == 0
    open_all(browser)
    assert browser.run(still_closed) == 8


def test_without_a_script_all_can_be_read(browser: Browser, pages: Dict[str, Path]) -> None:
    browser.open(pages["report"], PHONE, script=False)
    root = browser.call("DOM.getDocument")["root"]["nodeId"]
    browser.call("DOM.enable")
    buttons = browser.call("DOM.querySelectorAll", nodeId=root, selector="button:not([disabled]):not(.tools *)")["nodeIds"]
    assert buttons == []  # nothing looks as if it could be pressed
    tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    words = " ".join(str(node.get("name", {}).get("value", "")) for node in tree if not node.get("ignored"))
    assert "Find a host" not in words
    for said in ("could be had", "web9", "connection refused", "ci-runner-17", "Disk of build1: images"):
        assert said in words, said


def test_on_paper_it_is_light_and_has_no_tools(browser: Browser, pages: Dict[str, Path]) -> None:
    browser.open(pages["report"], 794, dark=True, paper=True)
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("getComputedStyle(document.querySelector('.tools')).display") == "none"
    assert browser.run(CONTRAST)["text"] >= 4.5
    printed = browser.call("Page.printToPDF", printBackground=False)["data"]
    assert len(printed) > 10_000


def test_headings_and_labels_are_there_for_a_screen_reader(browser: Browser, pages: Dict[str, Path]) -> None:
    browser.open(pages["report"])
    assert browser.run("document.documentElement.lang") == "en"
    assert browser.run("document.querySelectorAll('h1').length") == 1
    levels = browser.run("Array.from(document.querySelectorAll('h1, h2, h3, h4')).map(heading => +heading.tagName[1])")
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:]))
    assert browser.run("Array.from(document.querySelectorAll('svg')).every(bar => bar.getAttribute('role') == 'img' && bar.getAttribute('aria-label'))")
    assert browser.run("Array.from(document.querySelectorAll('input')).every(input => input.labels.length)")


def test_a_thousand_hosts_are_shown_and_sorted_in_a_moment(browser: Browser, pages: Dict[str, Path]) -> None:
    browser.open(pages["big"], PHONE)
    took = browser.run("(() => { const began = performance.now(); document.querySelector('[data-says=images]').click(); document.body.offsetHeight; return performance.now() - began; })()")
    assert took < 5000
    assert len(browser.run(NAMES)) == 1000
    assert browser.run("document.documentElement.scrollWidth") == PHONE
    quiet(browser, pages["big"])
