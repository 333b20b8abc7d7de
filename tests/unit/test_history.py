# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What earlier runs saw: it makes images look younger, spares a walk, and is never in the way."""

from __future__ import annotations

import os
import random
import sqlite3
import tempfile
import typing as t
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import history
from ansible_collections.fleetclean.docker.plugins.module_utils.history import Measured
from worlds import NOW, container, network, world

ENGINE, IMAGE, OTHER = "ENGINE:ID", "sha256:aa", "sha256:bb"


@pytest.fixture()
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "state")


def test_a_use_is_remembered_and_only_ever_gets_later(folder: str) -> None:
    assert history.last_uses(folder, ENGINE) == {}
    assert history.note_uses(folder, ENGINE, {IMAGE: 100.0}, [IMAGE, OTHER])
    assert history.note_uses(folder, ENGINE, {IMAGE: 50.0, OTHER: 70.0}, [IMAGE, OTHER])
    assert history.last_uses(folder, ENGINE) == {IMAGE: 100.0, OTHER: 70.0}
    assert history.note_uses(folder, ENGINE, {IMAGE: 200.0}, [IMAGE, OTHER])
    assert history.last_uses(folder, ENGINE)[IMAGE] == 200.0


def test_images_that_the_engine_has_no_more_are_forgotten(folder: str) -> None:
    history.note_uses(folder, ENGINE, {IMAGE: 1.0, OTHER: 1.0}, [IMAGE, OTHER])
    history.note_uses(folder, ENGINE, {"sha256:never": 1.0}, [OTHER])
    assert history.last_uses(folder, ENGINE) == {OTHER: 1.0}


def test_two_engines_on_a_host_do_not_mix(folder: str) -> None:
    history.note_uses(folder, ENGINE, {IMAGE: 1.0}, [IMAGE])
    history.note_uses(folder, "ANOTHER", {OTHER: 2.0}, [OTHER])
    assert history.last_uses(folder, ENGINE) == {IMAGE: 1.0}
    assert history.last_uses(folder, "ANOTHER") == {OTHER: 2.0}


@pytest.mark.parametrize("content", [b"", b"no database at all", b"SQLite format 3\0" + b"\xff" * 4096], ids=["empty", "other", "torn"])
def test_a_torn_file_is_as_none_and_is_made_anew(folder: str, content: bytes) -> None:
    os.makedirs(folder)
    Path(folder, "history.sqlite").write_bytes(content)
    assert history.last_uses(folder, ENGINE) == {}
    assert history.note_uses(folder, ENGINE, {IMAGE: 1.0}, [IMAGE])
    assert history.last_uses(folder, ENGINE) == {IMAGE: 1.0}


def test_a_file_cut_short_is_as_none_and_is_made_anew(folder: str) -> None:
    images = {f"sha256:{number:064x}": float(number) for number in range(1, 2000)}
    history.note_uses(folder, ENGINE, images, list(images))
    path = Path(folder, "history.sqlite")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert set(history.last_uses(folder, ENGINE)) <= set(images)
    history.note_uses(folder, ENGINE, {IMAGE: 1.0}, [IMAGE])
    assert history.last_uses(folder, ENGINE) == {IMAGE: 1.0}


def test_a_file_of_a_later_release_is_left_alone(folder: str) -> None:
    history.note_uses(folder, ENGINE, {IMAGE: 1.0}, [IMAGE])
    path = Path(folder, "history.sqlite")
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    assert history.last_uses(folder, ENGINE) == {}
    history.note_uses(folder, ENGINE, {IMAGE: 2.0}, [IMAGE])
    assert path.read_bytes() == before


def test_while_another_run_writes_nothing_is_noted(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_PATIENCE", 0.05)
    history.note_uses(folder, ENGINE, {IMAGE: 1.0}, [IMAGE])
    other = sqlite3.connect(Path(folder, "history.sqlite"), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        assert not history.note_uses(folder, ENGINE, {IMAGE: 2.0}, [IMAGE])
        assert history.last_uses(folder, ENGINE) == {}
    finally:
        other.close()
    assert history.last_uses(folder, ENGINE) == {IMAGE: 1.0}


def test_without_room_not_even_a_folder_is_made(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_ROOM", 1 << 60)
    assert not history.note_uses(folder, ENGINE, {IMAGE: 1.0}, [IMAGE])
    assert not os.path.exists(folder)


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not history.note_uses(str(tmp_path / "file" / "state"), ENGINE, {IMAGE: 1.0}, [IMAGE])
    assert history.last_uses(str(tmp_path / "file" / "state"), ENGINE) == {}


def test_an_empty_option_remembers_nothing() -> None:
    assert not history.note_uses("", ENGINE, {IMAGE: 1.0}, [IMAGE])
    assert history.last_uses("", ENGINE) == {}


def test_without_sqlite_nothing_is_remembered(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "sqlite3", None)
    assert not history.note_uses(folder, ENGINE, {IMAGE: 1.0}, [IMAGE])
    assert history.last_uses(folder, ENGINE) == {}


# -- what layers take --------------------------------------------------------------------------------------

LAYER, UPPER = "layer aa", "layer bb"
FIGURES = Measured("12 34.5.6", 4096, 100, 4096, 2)


def test_what_a_layer_takes_is_remembered_and_others_are_forgotten(folder: str) -> None:
    assert history.measured(folder, ENGINE) == {}
    assert history.note_measured(folder, ENGINE, {LAYER: FIGURES, UPPER: FIGURES._replace(disk=0)})
    assert history.measured(folder, ENGINE) == {LAYER: FIGURES, UPPER: FIGURES._replace(disk=0)}
    assert history.note_measured(folder, ENGINE, {LAYER: FIGURES._replace(identity="other")})
    assert history.measured(folder, ENGINE) == {LAYER: FIGURES._replace(identity="other")}
    assert history.note_measured(folder, ENGINE, {})
    assert history.measured(folder, ENGINE) == {}


def test_two_engines_do_not_mix_what_their_layers_take(folder: str) -> None:
    history.note_measured(folder, ENGINE, {LAYER: FIGURES})
    history.note_measured(folder, "ANOTHER", {LAYER: FIGURES._replace(disk=1)})
    history.note_measured(folder, "ANOTHER", {UPPER: FIGURES})
    assert history.measured(folder, ENGINE) == {LAYER: FIGURES}
    assert history.measured(folder, "ANOTHER") == {UPPER: FIGURES}
    assert history.measured(folder, "") == {}
    assert not history.note_measured(folder, "", {LAYER: FIGURES})


def test_uses_and_figures_do_not_touch_each_other(folder: str) -> None:
    history.note_uses(folder, ENGINE, {IMAGE: 1.0}, [IMAGE])
    history.note_measured(folder, ENGINE, {LAYER: FIGURES})
    history.note_uses(folder, ENGINE, {}, [])
    assert history.measured(folder, ENGINE) == {LAYER: FIGURES}
    history.note_uses(folder, ENGINE, {IMAGE: 1.0}, [IMAGE])
    history.note_measured(folder, ENGINE, {})
    assert history.last_uses(folder, ENGINE) == {IMAGE: 1.0}


def edit(folder: str, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(Path(folder, "history.sqlite"))) as connection, connection:
        connection.execute(statement, values)


@pytest.mark.parametrize("column", ["account", "identity", "disk", "apparent", "frees", "inodes", "sum"])
@pytest.mark.parametrize("value", [7, -1, "text", b"\xff", 1.5])
def test_a_figure_that_was_changed_is_not_taken(folder: str, column: str, value: object) -> None:
    # SQLite notices no flipped bit in a row.
    history.note_measured(folder, ENGINE, {LAYER: FIGURES, UPPER: FIGURES})
    edit(folder, f"UPDATE measured SET {column} = ? WHERE account = ?", value, LAYER)
    assert history.measured(folder, ENGINE) == {UPPER: FIGURES}


def test_flipped_bytes_anywhere_give_the_right_figures_or_none(folder: str) -> None:
    layers = {f"layer {number:064x}": Measured(f"{number} {number}.1.2", number * 4096, number, number, 1) for number in range(200)}
    history.note_measured(folder, ENGINE, layers)
    path = Path(folder, "history.sqlite")
    whole = path.read_bytes()
    dice = random.Random(1)
    for _ in range(200):
        torn = bytearray(whole)
        for _ in range(dice.choice((1, 1, 20))):
            torn[dice.randrange(len(torn))] ^= 1 << dice.randrange(8)
        path.write_bytes(torn)
        for account, figures in history.measured(folder, ENGINE).items():
            assert layers[account] == figures
    # Whatever it became, it is made anew.
    path.write_bytes(whole[:100] + b"\xff" * (len(whole) - 100))
    assert history.note_measured(folder, ENGINE, {LAYER: FIGURES})
    assert history.measured(folder, ENGINE) == {LAYER: FIGURES}


@pytest.mark.parametrize("content", [b"", b"no database at all", b"SQLite format 3\0" + b"\xff" * 4096], ids=["empty", "other", "torn"])
def test_of_a_torn_file_no_layer_is_known_and_it_is_made_anew(folder: str, content: bytes) -> None:
    os.makedirs(folder)
    Path(folder, "history.sqlite").write_bytes(content)
    assert history.measured(folder, ENGINE) == {}
    assert history.note_measured(folder, ENGINE, {LAYER: FIGURES})
    assert history.measured(folder, ENGINE) == {LAYER: FIGURES}


def test_a_file_of_the_release_before_is_migrated_and_keeps_what_it_knows(folder: str) -> None:
    os.makedirs(folder)
    edit(
        folder,
        "CREATE TABLE last_use (engine TEXT NOT NULL, object TEXT NOT NULL, used REAL NOT NULL,"
        " PRIMARY KEY (engine, object)) WITHOUT ROWID",
    )
    edit(folder, "INSERT INTO last_use VALUES (?, ?, ?)", ENGINE, IMAGE, 7.0)
    edit(folder, "PRAGMA user_version = 1")
    assert history.measured(folder, ENGINE) == {}
    assert history.last_uses(folder, ENGINE) == {IMAGE: 7.0}
    assert history.note_measured(folder, ENGINE, {LAYER: FIGURES})
    assert history.measured(folder, ENGINE) == {LAYER: FIGURES}
    assert history.last_uses(folder, ENGINE) == {IMAGE: 7.0}


def test_a_file_of_a_later_release_is_neither_read_nor_written_and_nothing_is_said_to_be_noted(folder: str) -> None:
    history.note_measured(folder, ENGINE, {LAYER: FIGURES})
    edit(folder, "PRAGMA user_version = 99")
    before = Path(folder, "history.sqlite").read_bytes()
    assert history.measured(folder, ENGINE) == {}
    assert not history.note_measured(folder, ENGINE, {})
    assert not history.note_uses(folder, ENGINE, {IMAGE: 1.0}, [IMAGE])
    assert Path(folder, "history.sqlite").read_bytes() == before


def test_while_another_run_writes_no_figures_are_noted(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_PATIENCE", 0.05)
    history.note_measured(folder, ENGINE, {LAYER: FIGURES})
    with closing(sqlite3.connect(Path(folder, "history.sqlite"), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert not history.note_measured(folder, ENGINE, {})
        assert history.measured(folder, ENGINE) == {}
    assert history.measured(folder, ENGINE) == {LAYER: FIGURES}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who may not")
def test_what_may_not_be_written_is_read_and_stays() -> None:
    with tempfile.TemporaryDirectory() as state:
        history.note_measured(state, ENGINE, {LAYER: FIGURES})
        os.chmod(state, 0o755)
        before = os.getresuid()
        os.setresuid(-1, 65534, 0)
        try:
            assert history.measured(state, ENGINE) == {LAYER: FIGURES}
            assert not history.note_measured(state, ENGINE, {})
        finally:
            os.setresuid(*before)
        assert history.measured(state, ENGINE) == {LAYER: FIGURES}


def test_figures_too_large_for_the_file_are_not_noted_and_take_nothing_with_them(folder: str) -> None:
    history.note_measured(folder, ENGINE, {LAYER: FIGURES})
    # Two sparse files of 8 EiB, as xfs can have them.
    assert not history.note_measured(folder, ENGINE, {LAYER: FIGURES._replace(apparent=1 << 64)})
    assert history.measured(folder, ENGINE) == {LAYER: FIGURES}


def test_without_a_folder_or_sqlite_or_room_no_figures_are_noted(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not history.note_measured("", ENGINE, {LAYER: FIGURES})
    assert history.measured("", ENGINE) == {}
    monkeypatch.setattr(history, "_ROOM", 1 << 60)
    assert not history.note_measured(folder, ENGINE, {LAYER: FIGURES})
    assert not os.path.exists(folder)
    monkeypatch.setattr(history, "sqlite3", None)
    assert not history.note_measured(folder, ENGINE, {LAYER: FIGURES})
    assert history.measured(folder, ENGINE) == {}


def test_odd_folders_are_found_again(tmp_path: Path) -> None:
    for name in ("a b", "100%", "what?", "#1", "new\nline", "ü", "\udcff", "file:x?mode=rwc"):
        folder = str(tmp_path / name)
        assert history.note_measured(folder, ENGINE, {LAYER: FIGURES})
        assert history.measured(folder, ENGINE) == {LAYER: FIGURES}


# -- what came between two runs --------------------------------------------------------------------


def test_what_the_first_run_saw_came_nobody_knows_when_and_what_a_later_one_saw_first_came_then(tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert history.came_between(folder, "E") == {}
    assert history.note_uses(folder, "E", {}, {"old"}, now=1000.0)
    assert history.came_between(folder, "E") == {}
    assert history.note_uses(folder, "E", {}, {"old", "new"}, now=2000.0)
    assert history.note_uses(folder, "E", {}, {"old", "new", "newer"}, now=3000.0)
    assert history.came_between(folder, "E") == {"new": 2000.0, "newer": 3000.0}
    assert history.came_between(folder, "another") == {}


def test_an_image_that_went_and_came_again_came_when_it_came_again(tmp_path: Path) -> None:
    folder = str(tmp_path)
    for images, now in (({"i"}, 1000.0), (set(), 2000.0), ({"i"}, 3000.0)):
        assert history.note_uses(folder, "E", {}, images, now=now)
    assert history.came_between(folder, "E") == {"i": 3000.0}


def test_a_file_of_an_earlier_release_takes_all_it_has_for_there_before(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "history.sqlite") as connection:
        for number, step in enumerate(history._MIGRATIONS[:2], 1):
            connection.execute(step)
            connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("INSERT INTO last_use VALUES ('E', 'i', 500.0)")
    assert history.recall(str(tmp_path), "E", 2000.0) == ({"i": 500.0}, {}, None)
    assert history.note_uses(str(tmp_path), "E", {}, {"i"}, now=1000.0)
    assert history.recall(str(tmp_path), "E", 2000.0) == ({"i": 500.0}, {}, None)


def test_what_was_noted_while_the_clock_was_wrong_is_not_believed_and_put_right(tmp_path: Path) -> None:
    folder, now = str(tmp_path), 1_700_000_000.0
    assert history.note_uses(folder, "E", {"i": now * 2}, {"i", "j"}, now=now * 2)
    assert history.recall(folder, "E", now) == ({}, {}, None)
    assert history.note_uses(folder, "E", {"i": now - 5}, {"i", "j"}, now=now)
    assert history.recall(folder, "E", now).used == {"i": now - 5}


# -- networks, and since when events were seen without a gap ------------------------------------------


NETWORK = "network:" + "n" * 64


def test_uses_of_networks_are_remembered_and_forgotten_with_them(folder: str) -> None:
    note = partial(history.note_uses, folder, ENGINE)
    assert note({NETWORK: 100.0, IMAGE: 1.0}, [IMAGE], networks=[NETWORK])
    assert note({NETWORK: 200.0}, [IMAGE]), "a run that did not ask for them"
    assert history.last_uses(folder, ENGINE) == {NETWORK: 200.0, IMAGE: 1.0}
    assert note({NETWORK: 300.0, "network:gone": 1.0}, [IMAGE], networks=[])
    assert history.last_uses(folder, ENGINE) == {IMAGE: 1.0}


@pytest.mark.parametrize(
    ("runs", "known"),
    [
        ([(1000.0, 500.0)], (500.0, 1000.0)),
        # The second one's events reach back to the first one's, and not quite.
        ([(1000.0, 500.0), (2000.0, 1000.0)], (500.0, 2000.0)),
        ([(1000.0, 500.0), (2000.0, 700.0)], (500.0, 2000.0)),
        ([(1000.0, 500.0), (2000.0, 300.0)], (300.0, 2000.0)),
        ([(1000.0, 500.0), (2000.0, 1000.5)], (1000.5, 2000.0)),
        ([(1000.0, 500.0), (2000.0, 1900.0), (3000.0, 1900.0)], (1900.0, 3000.0)),
        # A run that was told none, or did not ask, and one whose events are all later than its clock.
        ([(1000.0, 500.0), (2000.0, None)], (500.0, 1000.0)),
        ([(1000.0, 500.0), (2000.0, 2000.1)], (500.0, 1000.0)),
        # Two at once: the one that looked first writes last.
        ([(1001.0, 500.0), (1000.0, 500.0)], (500.0, 1001.0)),
        # What was noted while the clock was wrong.
        ([(9e9, 8e9), (1000.0, 500.0)], (500.0, 1000.0)),
    ],
)
def test_events_that_runs_saw_one_after_the_other_are_one_without_a_gap(folder: str, runs: list[t.Any], known: tuple[float, float]) -> None:
    for now, since in runs:
        assert history.note_uses(folder, ENGINE, {}, [], now=now, since=since)
    assert history.recall(folder, ENGINE, runs[-1][0]).watched == known
    assert history.recall(folder, "ANOTHER", runs[-1][0]).watched is None
    assert history.recall(folder, ENGINE, 1000.0 - 2 * 86400).watched is None, "it is still to come"


def test_a_figure_that_was_spoilt_says_nothing_of_what_was_seen(folder: str) -> None:
    """It could let a network go: unlike all else that is remembered of uses."""
    history.note_uses(folder, ENGINE, {}, [], now=1000.0, since=900.0)
    edit(folder, "UPDATE watched SET since = 1.0")
    assert history.watched(folder, ENGINE) is None
    history.note_uses(folder, ENGINE, {}, [], now=1100.0, since=950.0)
    assert history.watched(folder, ENGINE) == (950.0, 1100.0)


def test_only_a_run_that_asked_for_networks_notes_what_events_it_saw(folder: str) -> None:
    here = world(network("n"), container("c", state="running", networks=("n",)), events_since=NOW - 60)
    assert history.note(folder, ENGINE, replace(here, networks=()), volumes=False)
    assert history.recall(folder, ENGINE, NOW) == ({}, {}, None)
    assert history.note(folder, ENGINE, here, volumes=False, networks=True)
    assert history.recall(folder, ENGINE, NOW) == ({f"network:{network('n').id}": NOW}, {}, (NOW - 60, NOW))
