# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which logs an engine has open, and how, is seen from its open files. The engine is a fake: a process that holds files, and writes when told."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import processes
from ansible_collections.fleetclean.docker.plugins.module_utils.log_holders import Holders, OpenLog, give_back_deleted, make_append
from ansible_collections.fleetclean.docker.plugins.module_utils.logs import CACHE, JSON_FILE, KINDS, LOCAL
from holder import Holder, database

from tests import attacker

IDENT = hashlib.sha256(b"a container").hexdigest()
OTHER = hashlib.sha256(b"another").hexdigest()
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root has mounts of its own")

@pytest.fixture
def fake() -> Iterator[t.Callable[..., Holder]]:
    running: list[Holder] = []

    def start(*opened: str, **more: t.Any) -> Holder:
        if "root" not in more:
            more["root"] = re.split("/containers/|/plugins/", opened[0].partition(":")[2])[0]
        running.append(Holder(*opened, **more))
        return running[-1]

    yield start
    for engine in running:
        engine.end()


Start = t.Callable[..., Holder]


def log(root: Path, ident: str = IDENT, kind: t.Any = JSON_FILE, content: bytes = b"x" * 50_000) -> Path:
    path = Path(kind.path(str(root / "containers"), ident))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
    return path


def held(root: Path) -> dict[str, OpenLog]:
    found = Holders(str(root)).logs()
    assert len({entry.path for entry in found}) == len(found)
    return {entry.path: entry for entry in found}


def test_how_an_engine_writes_a_log_is_seen_from_its_open_file(tmp_path: Path, fake: Start) -> None:
    appended, rotated, both = log(tmp_path), log(tmp_path, OTHER), log(tmp_path, kind=CACHE)
    engine = fake(f"append:{appended}", f"offset:{rotated}", f"both:{both}", f"read:{appended}")
    found = held(tmp_path)
    assert {path: entry.appends for path, entry in found.items()} == {str(appended): True, str(rotated): False, str(both): True}
    assert {(entry.pid, entry.deleted) for entry in found.values()} == {(engine.pid, False)}
    assert [found[str(path)].descriptor for path in (appended, rotated, both)] == engine.descriptors[:3]
    assert found[str(rotated)].container == OTHER
    about = appended.stat()
    assert (found[str(appended)].bytes, found[str(appended)].inode) == (about.st_blocks * 512, (about.st_dev, about.st_ino))


def test_logs_of_all_kinds_and_renamed_ones_are_seen(tmp_path: Path, fake: Start) -> None:
    paths = [log(tmp_path, kind=kind) for kind in KINDS]
    fake(*(f"append:{path}" for path in paths))
    paths[0].rename(f"{paths[0]}.old")
    assert set(held(tmp_path)) == {f"{paths[0]}.old", *map(str, paths[1:])}


def test_a_data_root_that_is_a_link_is_the_one_that_it_names(tmp_path: Path, fake: Start) -> None:
    path = log(tmp_path / "data")
    (tmp_path / "docker").symlink_to(tmp_path / "data")
    fake(f"append:{path}")
    assert set(held(tmp_path / "docker")) == {str(path)}


def test_logs_of_another_data_root_and_other_files_are_not_this_engines(tmp_path: Path, fake: Start) -> None:
    other = log(tmp_path / "other")
    state = other.parent / "checkpoints"
    state.mkdir()
    (tmp_path / "root/containers").mkdir(parents=True)
    fake(root=tmp_path / "root")
    fake(f"append:{other}", f"append:{state}/state", f"append:{tmp_path}/root/containers.log")
    assert held(tmp_path / "root") == {}
    assert set(held(tmp_path / "other")) == {str(other)}


def test_a_data_root_whose_name_looks_like_a_pattern_is_only_a_name(tmp_path: Path, fake: Start) -> None:
    path = log(tmp_path / "d.c(k)er+[1]")
    fake(f"append:{path}", f"append:{log(tmp_path / 'dockker1')}")
    assert set(held(tmp_path / "d.c(k)er+[1]")) == {str(path)}


def test_a_pipe_and_a_log_that_this_process_has_open_are_no_engines(tmp_path: Path, fake: Start) -> None:
    path = log(tmp_path)
    os.mkfifo(tmp_path / "containers" / IDENT / "pipe")
    fake(f"both:{tmp_path}/containers/{IDENT}/pipe")
    with path.open("ab"):
        assert held(tmp_path) == {}


@root_only
def test_a_process_that_sees_another_folder_there_is_none_of_this_engine(tmp_path: Path, fake: Start) -> None:
    # An engine in a container has a /var/lib/docker of its own.
    path = log(tmp_path / "root")
    database(tmp_path / "root")
    inside = f'mount -t tmpfs none {tmp_path}/root && mkdir -p {path.parent} {tmp_path}/root/volumes && exec "$@"'
    fake(f"append:{path}", before=("unshare", "--mount", "sh", "-c", inside, "sh"))
    assert held(tmp_path / "root") == {}


def test_who_has_an_open_file_open_as_well_is_told_by_the_file_not_by_its_name(tmp_path: Path, fake: Start) -> None:
    path = log(tmp_path)
    engine = fake(f"append:{path}")
    holders = Holders(str(tmp_path))
    with path.open("rb") as stream:
        assert [entry.pid for entry in holders.of(stream.fileno())] == [engine.pid]
    path.rename(f"{path}.1")
    with log(tmp_path).open("rb") as stream:
        assert holders.of(stream.fileno()) == []
    with open(f"{path}.1", "rb") as stream:
        assert [entry.path for entry in holders.of(stream.fileno())] == [f"{path}.1"]


def test_an_engine_that_opens_its_first_log_later_is_found_then(tmp_path: Path, fake: Start) -> None:
    path = log(tmp_path)
    holders = Holders(str(tmp_path))
    engine = fake(f"append:{path}")
    assert holders.logs() == []
    with path.open("rb") as stream:
        assert [entry.pid for entry in holders.of(stream.fileno())] == [engine.pid]
    engine.end()
    with path.open("rb") as stream:
        assert holders.of(stream.fileno()) == []
    again = fake(f"append:{path}")
    holders.look_for_processes()
    assert [entry.pid for entry in holders.logs()] == [again.pid]


# -- made to append ------------------------------------------------------------------------------


def test_an_engine_that_writes_at_an_offset_of_its_own_is_made_to_append(tmp_path: Path, fake: Start) -> None:
    # Trap 19: after a rotation of its own. Without it, what is written after a cut comes behind a hole.
    path = log(tmp_path)
    engine = fake(f"offset:{path}")
    (entry,) = held(tmp_path).values()
    assert make_append(entry)
    assert held(tmp_path)[str(path)].appends
    os.truncate(path, 0)
    engine.tell(engine.descriptors[0], "new")
    assert path.read_bytes() == b"new\n"
    # Who appends already stays so.
    assert make_append(held(tmp_path)[str(path)])


def test_nothing_is_changed_in_a_file_that_the_number_was_given_to_meanwhile(tmp_path: Path, fake: Start) -> None:
    path = log(tmp_path)
    engine = fake(f"offset:{path}")
    (entry,) = held(tmp_path).values()
    assert not make_append(entry._replace(inode=(1, 2)))
    assert not make_append(entry._replace(descriptor=12_345))
    assert not held(tmp_path)[str(path)].appends
    engine.tell(engine.descriptors[0], "close")
    assert not make_append(entry)
    engine.end()
    assert not make_append(entry)


def test_a_kernel_that_gives_no_descriptors_of_others_is_no_error(tmp_path: Path, fake: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    # Before Linux 5.6, and where seccomp forbids it.
    path = log(tmp_path)
    fake(f"offset:{path}")
    (entry,) = held(tmp_path).values()
    before = sorted(os.listdir("/proc/self/fd"))
    for name in ("_PIDFD_OPEN", "_PIDFD_GETFD"):
        with monkeypatch.context() as patch:
            patch.setattr(processes, name, 100_000)
            assert not make_append(entry)
    assert sorted(os.listdir("/proc/self/fd")) == before


# -- deleted logs --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=["json-file", "local", "cache"])
def test_the_space_of_a_deleted_log_that_is_still_open_is_given_back(tmp_path: Path, fake: Start, kind: t.Any) -> None:
    path = log(tmp_path, kind=kind)
    blocks = path.stat().st_blocks * 512
    engine = fake(f"append:{path}")
    path.unlink()
    (entry,) = Holders(str(tmp_path)).logs()
    assert (entry.deleted, entry.path, entry.bytes, entry.container) == (True, str(path), blocks, IDENT)
    assert give_back_deleted(entry) == blocks
    (entry,) = Holders(str(tmp_path)).logs()
    assert entry.bytes == 0
    engine.tell(engine.descriptors[0], "it goes on")


def test_a_folder_that_went_with_its_log_is_no_obstacle(tmp_path: Path, fake: Start) -> None:
    path = log(tmp_path, kind=LOCAL)
    fake(f"append:{path}")
    path.unlink()
    path.parent.rmdir()
    path.parent.parent.rmdir()
    (entry,) = Holders(str(tmp_path)).logs()
    assert entry.deleted
    assert give_back_deleted(entry) > 0


def test_a_descriptor_that_names_a_living_file_meanwhile_is_left_alone(tmp_path: Path, fake: Start) -> None:
    path = log(tmp_path)
    fake(f"append:{path}")
    (entry,) = held(tmp_path).values()
    assert give_back_deleted(entry._replace(deleted=True)) == 0
    path.unlink()
    (entry,) = Holders(str(tmp_path)).logs()
    assert give_back_deleted(entry._replace(inode=(1, 2))) == 0
    assert Holders(str(tmp_path)).logs()[0].bytes > 0


def test_a_descriptor_that_was_closed_is_the_systems_own_error(tmp_path: Path, fake: Start) -> None:
    path = log(tmp_path)
    engine = fake(f"append:{path}")
    path.unlink()
    (entry,) = Holders(str(tmp_path)).logs()
    engine.tell(engine.descriptors[0], "close")
    with pytest.raises(FileNotFoundError):
        give_back_deleted(entry)


def test_logs_that_a_plugin_keeps_below_its_root_file_system_are_no_containers(tmp_path: Path, fake: Start) -> None:
    """Plugins write them where they like, also deleted ones; none of it is a container's."""
    folder = tmp_path / "plugins" / IDENT / "rootfs/containers" / IDENT
    folder.mkdir(parents=True)
    kept, gone = folder / f"{IDENT}-json.log", folder / "container-cached.log"
    for path in (kept, gone):
        path.write_bytes(b"x" * 50_000)
    fake(f"append:{kept}", f"append:{gone}")
    gone.unlink()
    assert held(tmp_path) == {}


def test_another_run_of_ours_that_has_a_log_open_is_not_its_writer(tmp_path: Path, fake: Start) -> None:
    """It waits for the log's lock, or rewrites the file: made to append, it would write all of that behind the end."""
    path = log(tmp_path)
    other = fake(f"both:{path}", f"offset:{path}", root=None)
    assert held(tmp_path) == {}
    engine = fake(f"append:{path}")
    with path.open("rb") as stream:
        assert [entry.pid for entry in Holders(str(tmp_path)).of(stream.fileno())] == [engine.pid] != [other.pid]


# -- users of the host ----------------------------------------------------------------------------


def test_a_user_who_fakes_an_engines_paths_has_nothing_that_counts(tmp_path: Path, fake: Start) -> None:
    """He named the container to be started again, and had root open and empty a file of his choice through ``/proc/PID/fd``."""
    if not attacker.works():
        pytest.skip("not here: no user namespaces for users")
    path = log(tmp_path)
    attack = attacker.Attacker(f"-{path}", f"+{path}", f"-{log(tmp_path, OTHER)}", f"+{tmp_path}/volumes/metadata.db")
    try:
        before = attack.sizes()
        assert f"{path} (deleted)" in dict(before), "the attack itself does not work"
        assert held(tmp_path) == {}
        engine = fake(f"append:{path}")
        (entry,) = held(tmp_path).values()
        assert entry.pid == engine.pid
        # Nor where somebody takes his process for the engine's by mistake.
        him = processes.look(attack.pid)
        assert him is not None
        for number in attack.descriptors:
            about = os.stat(f"/proc/{attack.pid}/fd/{number}")
            wrong = entry._replace(process=him, descriptor=number, deleted=True, inode=(about.st_dev, about.st_ino))
            assert give_back_deleted(wrong) == 0
        assert attack.sizes() == before
    finally:
        attack.end()


@root_only
def test_a_log_of_another_users_or_on_another_device_does_not_count_though_the_engine_has_it_open(tmp_path: Path, fake: Start) -> None:
    path, other = log(tmp_path), log(tmp_path, OTHER)
    os.chown(other, 12345, 12345)
    elsewhere = Path("/dev/shm") / f"fleetclean-{os.getpid()}"
    inside = f'mkdir {elsewhere} && mount --bind {elsewhere} {path.parent} && exec "$@"'
    database(tmp_path)
    try:
        engine = fake(f"append:{path}", f"append:{other}", before=("unshare", "--mount", "--propagation=private", "sh", "-c", inside, "sh"))
        links = [os.readlink(f"/proc/{engine.pid}/fd/{number}") for number in engine.descriptors[:2]]
        assert links == [str(path), str(other)] and elsewhere.joinpath(path.name).exists()
        assert [process.pid for process in Holders(str(tmp_path)).engine.processes] == [engine.pid]
        assert held(tmp_path) == {}
        os.chown(other, 0, 0)
        assert set(held(tmp_path)) == {str(other)}
    finally:
        shutil.rmtree(elsewhere, ignore_errors=True)


def test_logs_of_an_engine_that_ended_are_not_those_of_who_has_its_number(tmp_path: Path, fake: Start) -> None:
    path = log(tmp_path)
    fake(f"offset:{path}")
    holders = Holders(str(tmp_path))
    (entry,) = holders.logs()
    (process,) = holders.engine.processes
    old = process._replace(started=process.started - 1)
    holders.engine = holders.engine._replace(processes=(old,))
    assert holders.logs() == []
    assert not make_append(entry._replace(process=old))
    path.unlink()
    assert give_back_deleted(entry._replace(process=old)) == 0
    holders.look_for_processes()
    (entry,) = holders.logs()
    assert entry.bytes > 0 and not entry.appends
