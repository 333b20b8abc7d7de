# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What earlier runs saw: it makes images look younger, and is never in the way."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import history

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
