# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What killed runs left in memory goes, and nothing else does."""

from __future__ import annotations

import os
import sys
import time
import typing as t
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import tmp_leftovers

OWN = "ansible_fleetclean.docker.docker_clean_payload_abcdefgh"
LEFT = (
    "ansible_fleetclean.docker.docker_clean_payload_x_1y2z3_", "ansible_docker_disk_report_payload_aaaaaaaa",
    "ansible_fleetclean.docker.docker_log_truncate_payload_bbbbbbbb",
)
OTHERS = (
    "ansible_community.docker.docker_prune_payload_aaaaaaaa", "ansible_docker_clean_payload_aaaa", "ansible_docker_clean_payload_aaaaaaaa.x",
    "docker_clean_payload_aaaaaaaa", "ansible_docker_cleaner_payload_aaaaaaaa",
)


@pytest.fixture()
def shm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as /dev/shm, with this run's own in it."""
    folder = tmp_path / "shm"
    folder.mkdir()
    folder.chmod(0o1777)
    own = make(folder / OWN, "ansible_x_payload.zip")
    monkeypatch.setattr(sys, "path", [f"{own}/ansible_x_payload.zip", *sys.path])
    now = time.time() + 2 * 86400
    monkeypatch.setattr(tmp_leftovers.time, "time", lambda: now)
    return folder


def make(path: Path, *names: str) -> Path:
    path.mkdir(mode=0o700)
    for name in names or ("payload.zip",):
        (path / name).write_text("x")
    return path


def test_folders_of_killed_runs_go_and_nothing_else_does(shm: Path) -> None:
    for name in (*LEFT, *OTHERS):
        make(shm / name)
    copied = make(shm / "ansible-tmp-1700000000.1-123-456", "AnsiballZ_docker_clean.py")
    others = [
        make(shm / "ansible-tmp-1700000000.1-123-457", "AnsiballZ_setup.py"),
        make(shm / "ansible-tmp-1700000000.1-123-458", "AnsiballZ_docker_clean.py", "more"),
        make(shm / "ansible-tmp-1700000000.1-123-459", ".keep"),
    ]
    target = make(shm / "target")
    (shm / "ansible_docker_clean_payload_cccccccc").symlink_to(target)
    (shm / "ansible_docker_clean_payload_dddddddd").write_text("a file")
    (make(shm / "ansible_docker_clean_payload_eeeeeeee")).chmod(0o755)
    tmp_leftovers.sweep()
    gone = {*LEFT, copied.name}
    assert not gone & set(os.listdir(shm))
    assert set(os.listdir(shm)) == {
        OWN, *OTHERS, *(other.name for other in others), "target", *(f"ansible_docker_clean_payload_{letter * 8}" for letter in "cde")
    }
    assert (target / "payload.zip").exists()


def test_folders_of_jobs_go_after_a_week(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that nobody fetched, and an empty folder whose answer was fetched."""
    jobs = [make(shm / ".ansible_async-0123456789abcdef", "j12.34", "j12.34.tmp"), make(shm / ".ansible_async-0123456789abcde0", "j1.2")]
    (jobs[1] / "j1.2").unlink()
    others = [make(shm / ".ansible_async-0123456789abcde1", "j12.34", "more"), make(shm / ".ansible_async-0123", "j12.34"), make(shm / ".ansible_async", "j12.34")]
    tmp_leftovers.sweep()
    assert {path.name for path in (*jobs, *others)} <= set(os.listdir(shm))
    later = time.time() + 8 * 86400
    monkeypatch.setattr(tmp_leftovers.time, "time", lambda: later)
    tmp_leftovers.sweep()
    assert set(os.listdir(shm)) == {OWN, *(path.name for path in others)}


def test_a_folder_of_a_run_that_lives_or_is_young_or_is_somebody_elses_stays(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = make(shm / LEFT[0])
    held = os.open(runs, os.O_RDONLY | os.O_DIRECTORY)
    if os.geteuid() == 0:
        os.chown(make(shm / LEFT[1]), 12345, 12345)
    tmp_leftovers.sweep()
    assert {LEFT[0], *([LEFT[1]] if os.geteuid() == 0 else [])} <= set(os.listdir(shm))
    os.close(held)
    with monkeypatch.context() as patch:
        patch.setattr(tmp_leftovers, "_AGE", 3 * 86400)
        tmp_leftovers.sweep()
    assert LEFT[0] in os.listdir(shm)
    tmp_leftovers.sweep()
    assert LEFT[0] not in os.listdir(shm)


def test_each_run_holds_its_own(shm: Path) -> None:
    tmp_leftovers.sweep()
    own = str(shm / OWN)
    assert any(path == own for path in map(os.readlink, links()))


def links() -> t.Iterator[str]:
    for number in os.listdir("/proc/self/fd"):
        if os.path.lexists(f"/proc/self/fd/{number}"):
            yield f"/proc/self/fd/{number}"


def test_where_others_could_replace_a_folder_nothing_is_removed(shm: Path) -> None:
    make(shm / LEFT[0])
    shm.chmod(0o777)
    tmp_leftovers.sweep()
    assert LEFT[0] in os.listdir(shm)


def test_a_module_that_runs_from_elsewhere_sweeps_nothing(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(shm)])
    make(shm / LEFT[0])
    tmp_leftovers.sweep()
    assert LEFT[0] in os.listdir(shm)
