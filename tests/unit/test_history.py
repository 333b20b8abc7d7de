# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What earlier runs saw: it makes images look younger, spares a walk, and is never in the way."""

from __future__ import annotations

import os
import random
import sqlite3
import struct
import tempfile
import types
import typing as t
from contextlib import closing
from functools import lru_cache, partial
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import history, state_file, state_folder, trust
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError
from ansible_collections.fleetclean.docker.plugins.module_utils.history import Measured
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mutations import bounded, mutated
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
    monkeypatch.setattr(state_file, "_PATIENCE", 0.05)
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
    monkeypatch.setattr(state_file, "_ROOM", 1 << 60)
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
    monkeypatch.setattr(state_file, "sqlite3", None)
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
    monkeypatch.setattr(state_file, "_PATIENCE", 0.05)
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
        os.chmod(Path(state, "history.sqlite"), 0o644)  # this makes it for root alone
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
    monkeypatch.setattr(state_file, "_ROOM", 1 << 60)
    assert not history.note_measured(folder, ENGINE, {LAYER: FIGURES})
    assert not os.path.exists(folder)
    monkeypatch.setattr(state_file, "sqlite3", None)
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
        for number, step in enumerate(state_file.MIGRATIONS[:2], 1):
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
    assert history.note(folder, ENGINE, here._replace(networks=()), volumes=False)
    assert history.recall(folder, ENGINE, NOW) == ({}, {}, None)
    assert history.note(folder, ENGINE, here, volumes=False, networks=True)
    assert history.recall(folder, ENGINE, NOW) == ({f"network:{network('n').id}": NOW}, {}, (NOW - 60, NOW))


# -- who may write what is remembered -------------------------------------------------------------


def refusal(folder: Path) -> str:
    with pytest.raises(FleetcleanError) as caught:
        state_folder.check(str(folder))
    assert caught.value.code == "bad_input" and str(caught.value).startswith(f'state_dir: "{folder}" cannot be used: ')
    # Whoever calls without having checked gets nothing either, and changes nothing.
    assert not history.note_uses(str(folder), ENGINE, {IMAGE: 1.0}, [IMAGE])
    assert not history.note_measured(str(folder), ENGINE, {LAYER: FIGURES})
    assert (history.last_uses(str(folder), ENGINE), history.measured(str(folder), ENGINE)) == ({}, {})
    assert state_file.damage(str(folder)) is None
    return str(caught.value).partition("cannot be used: ")[2].partition(". Use")[0]


SOMEBODY = 12345
ALL = 0xFFFFFFFF
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give something away")


@as_root
def test_a_folder_of_somebody_elses_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "home/state"
    assert history.note_uses(str(state), ENGINE, {IMAGE: 1.0}, [IMAGE])
    state_folder.check(str(state))
    for path in (state, state.parent):
        os.chown(path, SOMEBODY, SOMEBODY)
        assert refusal(state) == f"{path} belongs to user {SOMEBODY}"
        os.chown(path, 0, 0)
    assert history.last_uses(str(state), ENGINE) == {IMAGE: 1.0}


@as_root
def test_a_user_has_a_folder_of_his_own_and_one_of_another_user_is_refused() -> None:
    """As an engine without root has it."""
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o755)
        for name, uid in (("mine", SOMEBODY), ("other", SOMEBODY + 1)):
            os.mkdir(f"{top}/{name}", 0o755)
            os.chown(f"{top}/{name}", uid, uid)
        before = os.getresuid()
        os.setresuid(-1, SOMEBODY, 0)
        try:
            state = f"{top}/mine/.local/state"
            state_folder.check(state)
            assert history.note_uses(state, ENGINE, {IMAGE: 1.0}, [IMAGE])
            assert history.last_uses(state, ENGINE) == {IMAGE: 1.0}
            assert refusal(Path(top, "other/state")) == f"{top}/other belongs to user {SOMEBODY + 1}"
            state_folder.check("/var/lib/fleetclean")
        finally:
            os.setresuid(*before)
        assert refusal(Path(state)) == f"{top}/mine belongs to user {SOMEBODY}"


@pytest.mark.parametrize(("mode", "where", "refused"), [
    (0o777, "state", True), (0o770, "state", True), (0o1777, "state", True), (0o755, "state", False), (0o500, "state", False),
    (0o777, "", True), (0o775, "", True), (0o1777, "", False), (0o755, "", False),
])
def test_where_others_may_write_nothing_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, where: str, refused: bool) -> None:
    """In a folder as /tmp nobody can replace what is another's, but make a journal that SQLite takes for its own."""
    monkeypatch.setattr(trust, "pwd", None)
    above = tmp_path / "above"
    state = above / "state"
    state.mkdir(parents=True)
    above.joinpath(where).chmod(mode)
    if refused:
        assert refusal(state) == f"others may write to {above.joinpath(where)}"
        assert not list(state.iterdir())
    else:
        state_folder.check(str(state))
    above.joinpath(where).chmod(0o700)


@pytest.mark.parametrize(("members", "group", "own"), [([], "me", True), (["me"], "me", True), (["me", "other"], "me", False), ([], "users", False)])
def test_a_users_own_group_is_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: list[str], group: str, own: bool) -> None:
    found = os.stat_result((0o40770, 0, 0, 1, 1000, 1000, 0, 0, 0, 0))
    monkeypatch.setattr(trust.pwd, "getpwuid", lambda _uid: types.SimpleNamespace(pw_name="me", pw_gid=1000))
    monkeypatch.setattr(trust.grp, "getgrgid", lambda _gid: types.SimpleNamespace(gr_name=group, gr_mem=members))
    folder = str(tmp_path)
    assert trust.others_may_write(found, folder) is not own
    assert trust.others_may_write(os.stat_result((0o40772, *tuple(found)[1:])), folder)
    assert trust.others_may_write(os.stat_result((0o40770, 0, 0, 1, 1000, 1001, 0, 0, 0, 0)), folder)
    assert trust.others_may_write(os.stat_result((0o40770, 0, 0, 1, 0, 1000, 0, 0, 0, 0)), folder), "whoever is in a group of root's"


@pytest.mark.parametrize(("tag", "rights", "refused"), [(2, 7, True), (8, 6, True), (2, 5, False), (4, 7, False)])
def test_who_an_acl_names_is_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: int, rights: int, refused: bool) -> None:
    monkeypatch.setattr(trust, "_is_own_group", lambda _uid, _gid: True)
    state = tmp_path / "state"
    state.mkdir(mode=0o755)
    entries = {(1, ALL): 7, (4, ALL): 7, (tag, ALL if tag == 4 else SOMEBODY): rights, (16, ALL): 7, (32, ALL): 5}
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", kind, may, ident) for (kind, ident), may in sorted(entries.items()))
    try:
        os.setxattr(state, "system.posix_acl_access", acl)
    except OSError as error:
        pytest.skip(f"not here: no ACL on the filesystem of {state} ({error.strerror})")
    assert state.stat().st_mode & 0o777 == 0o775
    if refused:
        assert refusal(state) == f"others may write to {state}"
    else:
        state_folder.check(str(state))


def test_a_link_of_roots_leads_to_the_folder_and_one_of_somebody_elses_is_refused(tmp_path: Path) -> None:
    """/var/lib on another disk is usual."""
    (tmp_path / "disk/lib").mkdir(parents=True)
    (tmp_path / "lib").symlink_to("disk/lib")
    state = tmp_path / "lib/fleetclean"
    state_folder.check(str(state))
    assert history.note_uses(str(state), ENGINE, {IMAGE: 1.0}, [IMAGE])
    assert (tmp_path / "disk/lib/fleetclean/history.sqlite").is_file()
    (tmp_path / "last").symlink_to(state)
    state_folder.check(str(tmp_path / "last"))
    assert history.last_uses(str(tmp_path / "last"), ENGINE) == {IMAGE: 1.0}
    if os.geteuid() == 0:
        os.lchown(tmp_path / "lib", SOMEBODY, SOMEBODY)
        assert refusal(state) == f"{tmp_path}/lib belongs to user {SOMEBODY}"


@pytest.mark.parametrize("name", ["history.sqlite", "history.sqlite-journal", "history.sqlite-wal", "history.sqlite-shm"])
def test_what_is_no_file_of_ours_is_refused_and_not_followed(tmp_path: Path, name: str) -> None:
    state = tmp_path / "state"
    assert history.note_uses(str(state), ENGINE, {IMAGE: 1.0}, [IMAGE])
    other = tmp_path / "other"
    other.write_bytes((state / "history.sqlite").read_bytes())
    path = state / name
    path.unlink(missing_ok=True)
    path.symlink_to(other)
    before = other.read_bytes()
    assert refusal(state) == f"{path} is a link"
    assert other.read_bytes() == before and path.is_symlink()
    path.unlink()
    path.symlink_to(tmp_path / "not there")
    assert refusal(state) == f"{path} is a link" and not (tmp_path / "not there").exists()
    path.unlink()
    path.write_bytes(b"")
    path.chmod(0o666)
    assert refusal(state) == f"others may write to {path}"
    path.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(path, SOMEBODY, SOMEBODY)
        assert refusal(state) == f"{path} belongs to user {SOMEBODY}"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_opened_and_a_warning_says_so(tmp_path: Path, make: t.Callable[[Path], None]) -> None:
    """In a folder that nobody else may write to it is no attack: the run goes on without what earlier ones saw."""
    path = tmp_path / "history.sqlite"
    make(path)
    state_folder.check(str(tmp_path))
    assert "is no file" in str(state_file.damage(str(tmp_path)))
    assert not history.note_uses(str(tmp_path), ENGINE, {IMAGE: 1.0}, [IMAGE])
    assert history.recall(str(tmp_path), ENGINE, 1.0).used == {}


def test_what_is_made_is_for_its_user_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        assert history.note_uses(str(tmp_path / "a/b/state"), ENGINE, {IMAGE: 1.0}, [IMAGE])
    finally:
        os.umask(before)
    for path in ("a", "a/b", "a/b/state"):
        assert (tmp_path / path).stat().st_mode & 0o7777 == 0o700
    database = tmp_path / "a/b/state/history.sqlite"
    assert database.stat().st_mode & 0o7777 == 0o600
    database.chmod(0o644)  # of an earlier release
    assert history.note_uses(str(tmp_path / "a/b/state"), ENGINE, {IMAGE: 2.0}, [IMAGE])
    assert database.stat().st_mode & 0o7777 == 0o600


def test_what_is_not_there_or_cannot_be_used_is_no_refusal(tmp_path: Path) -> None:
    for state in ("", "/", str(tmp_path / "not/there"), str(tmp_path / "x") + "/" + "y" * 300, "/proc/self/fdinfo/state"):
        state_folder.check(state) if state else None
        assert state_file.damage(state) is None
    (tmp_path / "file").write_text("")
    assert refusal(tmp_path / "file/state") == f"{tmp_path}/file is no folder"


def test_what_is_no_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FleetcleanError, match="state_dir: .* cannot be used: embedded null byte") as caught:
        state_folder.check(f"{tmp_path}/a\0b")
    assert caught.value.code == "bad_input"


@as_root
def test_a_folder_that_somebody_made_at_the_last_moment_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder as /tmp anybody may take a name that is free when it is looked at."""
    shared, other = tmp_path / "shared", tmp_path / "other"
    shared.mkdir()
    shared.chmod(0o1777)
    make = os.mkdir

    def mkdir(path: str, *more: t.Any) -> None:
        make(path, 0o755)
        os.chown(path, SOMEBODY, SOMEBODY)
        os.symlink(other, f"{path}/history.sqlite-journal")
        make(path, *more)

    monkeypatch.setattr(state_file.os, "mkdir", mkdir)
    assert not history.note_uses(str(shared / "state"), ENGINE, {IMAGE: 1.0}, [IMAGE])
    assert os.listdir(shared / "state") == ["history.sqlite-journal"] and not other.exists()


# -- a file that is not what it should be ----------------------------------------------------------


WITHOUT_END = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"
HOSTILE = {
    "a view without end": f"CREATE VIEW last_use AS {WITHOUT_END} SELECT 'ENGINE:ID' AS engine, x AS object, x AS used FROM n",
    "a view that only counts": f"CREATE VIEW last_use AS {WITHOUT_END} SELECT 'ENGINE:ID' AS engine, max(x) AS object, 1 AS used FROM n",
    "a view of gigabytes": "CREATE VIEW last_use AS SELECT 'ENGINE:ID' AS engine, hex(zeroblob(900000000)) AS object, 1.0 AS used",
    "a view of constants": "CREATE VIEW last_use AS SELECT 'ENGINE:ID' AS engine, 'x' AS object, 1.0 AS used",
    "a view of another table": "CREATE TABLE t (engine, object, used); CREATE VIEW last_use AS SELECT * FROM t",
    "a trigger": "CREATE TRIGGER x AFTER INSERT ON last_use BEGIN DELETE FROM last_use; END",
    "an index": "CREATE INDEX x ON last_use (object)",
    "a table of another form": "CREATE TABLE last_use (engine, object, used)",
    "a generated column": "CREATE TABLE last_use (engine, object AS (hex(zeroblob(400000000))), used)",
    "a virtual table": "CREATE VIRTUAL TABLE last_use USING fts5(engine, object, used)",
    "one table more": "CREATE TABLE one_more (x)",
    "thousands of tables": ";".join(f"CREATE TABLE t{number} (x)" for number in range(3000)),
}


def hostile(folder: str, what: str) -> None:
    """A file with all the tables there should be, but for what is hostile."""
    assert history.note_uses(folder, ENGINE, {IMAGE: 1.0}, [IMAGE])
    script = HOSTILE[what]
    with closing(sqlite3.connect(Path(folder, "history.sqlite"), isolation_level=None)) as connection:
        if " last_use " in script and " ON last_use" not in script:
            connection.execute("DROP TABLE last_use")
        try:
            connection.executescript(f"BEGIN; {script}; COMMIT")
        except sqlite3.OperationalError as error:
            pytest.skip(f"not here: this SQLite has no such thing ({error})")


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_costs_nothing_is_said_and_made_anew(folder: str, what: str) -> None:
    hostile(folder, what)
    with bounded(2.0, 20 << 20):
        assert history.last_uses(folder, ENGINE) == {}
        assert history.recall(folder, ENGINE, NOW) == ({}, {}, None)
        assert history.measured(folder, ENGINE) == {}
        assert str(state_file.damage(folder)).startswith(f"{folder}/history.sqlite cannot be read (")
        assert history.note_uses(folder, ENGINE, {IMAGE: 1.0}, [IMAGE])
    assert history.last_uses(folder, ENGINE) == {IMAGE: 1.0}
    assert state_file.damage(folder) is None


@pytest.mark.parametrize("what", [what for what in HOSTILE if what not in ("one table more", "an index", "a table of another form")])
def test_the_authorizer_and_the_bounds_hold_by_themselves(folder: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the tables not compared, nothing of theirs would be run."""
    hostile(folder, what)
    monkeypatch.setattr(state_file, "_version", lambda _connection: 4)
    with bounded(2.0, 40 << 20):
        assert history.last_uses(folder, ENGINE) in ({}, {IMAGE: 1.0})
        history.note_uses(folder, ENGINE, {IMAGE: 1.0}, [IMAGE])


def test_steps_and_memory_end_what_takes_too_long(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    history.note_uses(folder, ENGINE, {IMAGE: 1.0}, [IMAGE])
    monkeypatch.setattr(state_file, "_MOST_STEPS", 1_000_000)
    path = f"{folder}/history.sqlite"
    with bounded(2.0, 60 << 20), closing(state_file.connect(path, "ro")) as connection:
        with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
            connection.execute(f"{WITHOUT_END} SELECT max(x) FROM n")
        with pytest.raises(sqlite3.DatabaseError, match="not authorized|prohibited"):
            connection.execute("ATTACH ':memory:' AS x")
        connection.set_authorizer(lambda *_what: sqlite3.SQLITE_OK)
        with pytest.raises((sqlite3.DataError, MemoryError)):
            connection.execute("SELECT hex(zeroblob(400000000))").fetchall()
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            connection.execute(f"{WITHOUT_END} SELECT max(x) FROM n").fetchall()


@pytest.mark.parametrize("suffix", ["", "-journal", "-wal"])
def test_a_file_of_gigabytes_is_not_read(folder: str, suffix: str) -> None:
    history.note_uses(folder, ENGINE, {IMAGE: 1.0}, [IMAGE])
    os.truncate(os.open(f"{folder}/history.sqlite{suffix}", os.O_WRONLY | os.O_CREAT, 0o600), 1 << 40)
    with bounded(1.0, 5 << 20):
        assert history.last_uses(folder, ENGINE) == {}
        assert "bytes, more than" in str(state_file.damage(folder))
        assert history.note_uses(folder, ENGINE, {IMAGE: 2.0}, [IMAGE])
    assert history.last_uses(folder, ENGINE) == {IMAGE: 2.0}


def test_more_rows_than_ever_were_noted_are_none(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    many = {f"sha256:{number}": 1.0 for number in range(50)}
    history.note_uses(folder, ENGINE, many, list(many))
    monkeypatch.setattr(state_file, "_MOST_ROWS", 40)
    assert history.last_uses(folder, ENGINE) == {}
    assert history.note_uses(folder, ENGINE, {IMAGE: 1.0}, [IMAGE])
    assert history.last_uses(folder, ENGINE) == {IMAGE: 1.0}


@pytest.mark.parametrize("value", ["text", b"\xff", "x" * 5000, None, float("inf"), -float("inf")])
@pytest.mark.parametrize("column", ["object", "used"])
def test_a_row_of_another_kind_says_nothing(folder: str, column: str, value: object) -> None:
    history.note_uses(folder, ENGINE, {IMAGE: 1.0, OTHER: 2.0}, [IMAGE, OTHER])
    if value is None or (column == "object" and value in ("text", float("inf"), -float("inf"))):
        return  # SQLite itself refuses it, or it is a name like another
    edit(folder, f"UPDATE last_use SET {column} = ? WHERE object = ?", value, OTHER)
    assert history.last_uses(folder, ENGINE) == {IMAGE: 1.0}
    assert history.note_uses(folder, ENGINE, {OTHER: 3.0}, [IMAGE, OTHER])
    assert history.last_uses(folder, ENGINE) == {IMAGE: 1.0, OTHER: 3.0}


def test_a_row_that_is_no_text_is_made_anew_and_does_not_stay_for_ever(folder: str) -> None:
    history.note_uses(folder, ENGINE, {IMAGE: 1.0, OTHER: 2.0}, [IMAGE, OTHER])
    edit(folder, "UPDATE last_use SET object = CAST(x'ff' AS TEXT) WHERE object = ?", OTHER)
    assert history.last_uses(folder, ENGINE) == {}
    assert history.note_uses(folder, ENGINE, {OTHER: 3.0}, [IMAGE, OTHER])
    assert history.last_uses(folder, ENGINE) == {OTHER: 3.0}


@pytest.mark.parametrize("values", [("a", "b"), (1.0, "b"), (b"", 1.0), (float("inf"), float("inf")), (1, 1 << 62)])
def test_moments_that_are_none_say_nothing_of_what_was_seen(folder: str, values: tuple[t.Any, t.Any]) -> None:
    history.note_uses(folder, ENGINE, {}, [], now=1000.0, since=900.0)
    edit(folder, "UPDATE watched SET since = ?, until = ?", *values)
    with closing(sqlite3.connect(Path(folder, "history.sqlite"))) as connection:
        kept = connection.execute("SELECT since, until FROM watched").fetchone()
    edit(folder, "UPDATE watched SET sum = ?", history._sum(*kept))
    assert history.recall(folder, ENGINE, NOW).watched is None


def test_a_later_releases_file_is_neither_damaged_nor_read(folder: str) -> None:
    history.note_uses(folder, ENGINE, {IMAGE: 1.0}, [IMAGE])
    edit(folder, "CREATE TABLE one_more (x)")
    edit(folder, "PRAGMA user_version = 99")
    assert state_file.damage(folder) is None and history.last_uses(folder, ENGINE) == {}


# -- any bytes at all ----------------------------------------------------------------------------------


LAYERS = {f"layer {number:064x}": Measured(f"{number} {number}.1.2", number * 4096, number, number, 1) for number in range(60)}
USES = {f"sha256:{number:064x}": float(number) for number in range(1, 60)}


@lru_cache(maxsize=None)
def whole_file() -> bytes:
    with tempfile.TemporaryDirectory() as state:
        assert history.note_uses(state, ENGINE, USES, list(USES), now=1000.0, since=900.0)
        assert history.note_measured(state, ENGINE, LAYERS)
        return Path(state, "history.sqlite").read_bytes()


def read_any(content: bytes) -> None:
    """Whatever the file has, what is read is of the right kind, figures are those that were noted, and a run can note anew."""
    with tempfile.TemporaryDirectory() as state:
        Path(state, "history.sqlite").write_bytes(content)
        os.chmod(Path(state, "history.sqlite"), 0o600)
        for key, moment in history.last_uses(state, ENGINE).items():
            assert isinstance(key, str) and isinstance(moment, float)
        used, came, watched = history.recall(state, ENGINE, NOW)
        assert all(isinstance(value, float) and value <= NOW + 86400 for value in (*used.values(), *came.values()))
        assert watched in (None, (900.0, 1000.0))
        for account, figures in history.measured(state, ENGINE).items():
            assert LAYERS[account] == figures
        says = state_file.damage(state)
        assert says is None or says.startswith(f"{state}/history.sqlite cannot be read")
        if history.note_uses(state, ENGINE, {IMAGE: 7.0}, [IMAGE]):
            assert history.last_uses(state, ENGINE).get(IMAGE, 7.0) == 7.0
        history.note_measured(state, ENGINE, LAYERS)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.deferred(lambda: mutated(whole_file())))
@example(b"")
@example(b"SQLite format 3\0" + b"\xff" * 4096)
def test_any_bytes_are_no_error_and_no_wrong_figure(content: bytes) -> None:
    with bounded(5.0, 40 << 20):
        read_any(content)
