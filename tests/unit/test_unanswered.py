# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of a host whose engine does not answer: a disk without room, and sockets of users."""

from __future__ import annotations

import json
import os
import socket
import types
import typing as t
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import processes, unanswered

MB = 1024**2
IDS = ["ab" * 32, "cd" * 32]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with two logs, one of them large, and what is no log of the engine's."""
    found = tmp_path / "docker"
    for ident, size in zip(IDS, (2 * MB, 3 * MB)):
        (found / "containers" / ident).mkdir(parents=True)
        (found / "containers" / ident / f"{ident}-json.log").write_bytes(b"x" * size)
    large = tmp_path / "large"
    large.write_bytes(b"x" * 5 * MB)
    linked = "ef" * 32
    (found / "containers" / linked).mkdir()
    (found / "containers" / linked / f"{linked}-json.log").symlink_to(large)
    odd = "$(reboot)"
    (found / "containers" / odd).mkdir()
    (found / "containers" / odd / f"{odd}-json.log").write_bytes(b"x" * 5 * MB)
    (found / "volumes").mkdir()
    (found / "volumes/metadata.db").touch()
    monkeypatch.setattr(unanswered, "_USUAL_ROOT", str(found))
    monkeypatch.setattr(unanswered, "_CONFIGURATION", str(tmp_path / "daemon.json"))
    monkeypatch.setattr(processes, "pids", lambda: [os.getpid()])
    return found


def room(path: str = "/run/docker.sock", is_usual: bool = True) -> str:
    return unanswered.room_words(path, is_usual)


def disk(monkeypatch: pytest.MonkeyPatch, free: int, inodes: int = 9) -> None:
    """With so much free for root, and nothing for anybody else."""
    found = types.SimpleNamespace(f_bavail=0, f_bfree=free // 512, f_frsize=512, f_files=10, f_ffree=inodes)
    monkeypatch.setattr(os, "statvfs", lambda _path: found)


@pytest.mark.parametrize(("free", "said"), [(0, "0 B free"), (20480, "20.0 KB free"), (MB - 512, "1023.5 KB free"), (MB, "")])
def test_a_disk_without_room_is_named_with_the_log_that_can_be_emptied(root: Path, monkeypatch: pytest.MonkeyPatch, free: int, said: str) -> None:
    disk(monkeypatch, free)
    log = f"{root}/containers/{IDS[1]}/{IDS[1]}-json.log"
    assert room() == (said and (
        f"The usual data root {root} has {said}, which keeps an engine from starting: make room there first, such as with: truncate -s 0 {log} "
        "(3.0 MB; while no engine runs nobody writes its logs)."
    ))


def test_without_a_log_worth_it_the_next_step_is_to_make_room(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, 0)
    monkeypatch.setattr(unanswered, "_MIN_LOG_BYTES", 9 * MB)
    assert room() == f"The usual data root {root} has 0 B free, which keeps an engine from starting: make room there first."


def test_a_disk_without_an_inode_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, 9 * MB, inodes=0)
    assert room().startswith(f"The usual data root {root} has no inode free, which keeps an engine from starting: remove files")


@pytest.mark.parametrize(
    ("configuration", "is_used"),
    [({"data-root": "{0}"}, True), ({"graph": "{0}"}, True), ({"data-root": "x"}, False), ({"data-root": 7}, False), ([], False), ("{", False), ("[" * 70000, False)],
    ids=["data-root", "graph", "relative", "number", "list", "torn", "deep"],
)
def test_the_data_root_is_that_of_the_engines_configuration(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, configuration: t.Any, is_used: bool
) -> None:
    other = tmp_path / "other"
    text = configuration if isinstance(configuration, str) else json.dumps(configuration).replace("{0}", str(other))
    (tmp_path / "daemon.json").write_text(text)
    disk(monkeypatch, 0)
    said = room()
    assert said.startswith(f"The data root {other} (of {tmp_path}/daemon.json) has 0 B free" if is_used else f"The usual data root {root} has 0 B free")


def test_no_log_is_named_where_an_engine_may_be_writing_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, 0)
    assert "truncate" in room()
    assert room("/srv/docker.sock", False).endswith("has 0 B free, which keeps an engine from starting: make room there first.")
    database = root / "volumes/metadata.db"
    with database.open():
        assert "truncate" not in room() and "make room there first." in room()
    assert "truncate" in room()
    (root / "metadata.db").touch()
    with (root / "metadata.db").open():
        assert "truncate" in room(), "another file of that name"
    database.unlink()
    assert "truncate" not in room(), "nobody can tell"


def test_no_log_is_named_where_a_process_may_not_be_looked_at(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_folder: t.Any) -> t.Any:
        raise PermissionError(13, "Permission denied")

    disk(monkeypatch, 0)
    monkeypatch.setattr(processes, "names_in", refuse)
    assert "truncate" not in room()


def test_the_usual_data_root_is_no_news_for_a_socket_of_an_engine_without_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, 0)
    assert room("/run/user/1000/docker.sock", False) == ""


def test_no_data_root_is_no_news(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(unanswered, "_USUAL_ROOT", str(tmp_path / "nowhere"))
    monkeypatch.setattr(unanswered, "_CONFIGURATION", str(tmp_path / "none"))
    assert room() == ""


def test_sockets_of_users_are_named_and_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(unanswered, "_ROOTLESS", f"{tmp_path}/[0-9]*/docker.sock")
    monkeypatch.chdir(tmp_path)
    assert unanswered.socket_words() == ""
    for name in ("1", "2", "3", "4", "5", "6"):
        (tmp_path / name).mkdir()
        if name == "1":
            (tmp_path / name / "docker.sock").write_text("a file")
        elif name == "2":
            (tmp_path / name / "docker.sock").symlink_to("../3/docker.sock")
        else:
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(f"{name}/docker.sock")
    me = os.geteuid()
    assert unanswered.socket_words() == (
        f"unix://{tmp_path}/3/docker.sock is a socket of user {me}, unix://{tmp_path}/4/docker.sock is a socket of user {me}, "
        f"unix://{tmp_path}/5/docker.sock is a socket of user {me} (and 1 more); if the engine that you mean listens there, name it in "
        "docker_host and run this as that user (become_user)."
    )
