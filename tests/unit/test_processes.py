# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is an engine is told by what nobody else has, and what is done to a process is done to no other. The engine is a fake."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import processes
from ansible_collections.fleetclean.docker.plugins.module_utils.processes import Process, Stat, find_engine
from holder import Holder, database
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import attacker

IDENT = hashlib.sha256(b"a container").hexdigest()
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user, and has mounts of its own")

Start = t.Callable[..., Holder]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root."""
    (tmp_path / "root/containers").mkdir(parents=True)
    database(tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def start() -> Iterator[Start]:
    running: list[Holder] = []

    def started(*opened: str, **more: t.Any) -> Holder:
        running.append(Holder(*opened, **more))
        return running[-1]

    yield started
    for holder in running:
        holder.end()


def found(root: Path) -> list[int]:
    return [process.pid for process in find_engine(str(root), f"{root}/containers", f"{root}/volumes").processes]


def why(root: Path) -> str:
    return find_engine(str(root), f"{root}/containers", f"{root}/volumes").why


def one(root: Path) -> Process:
    (process,) = find_engine(str(root), f"{root}/containers", f"{root}/volumes").processes
    return process


# -- what the kernel says --------------------------------------------------------------------------


def test_this_process_is_read_as_it_is() -> None:
    about = processes.look(os.getpid())
    program = os.stat(sys.executable)
    assert about and about.is_running()
    assert about.program == (program.st_dev, program.st_ino)
    ticks = os.sysconf("SC_CLK_TCK")
    with open("/proc/uptime", encoding="ascii") as stream:
        assert 0 < about.started / ticks <= float(stream.read().split()[0])
    assert processes.user_ids(os.getpid()) == (os.getuid(), os.geteuid(), os.geteuid(), os.geteuid())
    assert processes.look(1 << 22) is None and processes.user_ids(1 << 22) == ()


@pytest.mark.parametrize("name", ["dockerd", "a b", ") Z 1 1", "(((", "))))", "x\ny) S 9", "\udcff\x1b[31m", "1 (2) 3"])
def test_a_commands_name_is_never_taken_for_what_follows_it(name: str) -> None:
    rest = " ".join(["S", "7", *(str(number) for number in range(17)), "4711", "0"])
    assert processes.parse_stat(f"12 ({name}) {rest}\n") == Stat("S", 7, 4711)


@given(st.binary(max_size=64), st.sampled_from("RSDZTtXxI"), st.integers(0, 1 << 22), st.integers(0, 1 << 63))
@settings(max_examples=200, database=None, deadline=None)
def test_whatever_a_command_is_called_the_rest_is_read(name: bytes, state: str, parent: int, started: int) -> None:
    line = f"12 ({os.fsdecode(name)}) {state} {parent} " + "0 " * 17 + f"{started} 0\n"
    assert processes.parse_stat(line) == Stat(state, parent, started)


@given(st.text(max_size=200))
@settings(max_examples=200, database=None, deadline=None)
def test_any_text_is_read_or_not_and_nothing_is_raised(text: str) -> None:
    assert processes.parse_stat(text) is None or len(text.split()) >= 20
    assert (processes.parse_flags(text) or 0) >= 0
    assert processes.parse_user_ids(text) == () or len(processes.parse_user_ids(text)) == 4
    assert all(len(ident) == 64 for ident in processes.parse_container_ids(text))


@pytest.mark.parametrize("text", ["", "1", "1 (x)", "1 (x) S", "1 (x) S one" + " 1" * 20, "1 (x) S 1" + " 1" * 17 + " never", "\x00" * 9, "1 (x) S" + " 1" * 18])
def test_what_is_no_line_of_a_process_is_none(text: str) -> None:
    assert processes.parse_stat(text) is None


def test_a_process_with_a_name_of_that_kind_is_read_as_it_is() -> None:
    script = "import ctypes, sys; ctypes.CDLL(None).prctl(15, b'a) Z 1\\n2 ('); print('on', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "on\n"
        assert Path(f"/proc/{process.pid}/comm").read_bytes() == b"a) Z 1\n2 (\n"
        about = processes.look(process.pid)
        assert about and about.is_running() and about.started > 0
        assert processes.user_ids(process.pid) == (os.getuid(),) * 4


@pytest.mark.parametrize(
    ("text", "users"),
    [
        ("Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t0\t0\t0\t0\n", (1, 2, 3, 4)),
        ("Name:\tUid:\\t0\\t0\\t0\\t0\nUid:\t1000\t1000\t1000\t1000\n", (1000,) * 4),
        ("Uid:\t0\n", ()), ("", ()), ("Uid:\t-1\t0\t0\t0\n", ()), (" Uid:\t0\t0\t0\t0\n", ()),
    ],
)
def test_users_are_read_where_the_kernel_writes_them(text: str, users: tuple[int, ...]) -> None:
    assert processes.parse_user_ids(text) == users


@pytest.mark.parametrize(("text", "flags"), [("pos:\t0\nflags:\t02100002\nmnt_id:\t9\n", 0o2100002), ("", None), ("flags:\t9\n", None), ("xflags:\t0\n", None), ("flags:\n", None)])
def test_flags_are_read_where_the_kernel_writes_them(text: str, flags: int | None) -> None:
    assert processes.parse_flags(text) == flags


@pytest.mark.parametrize(
    ("text", "idents"),
    [
        (f"0::/system.slice/docker-{IDENT}.scope\n", [IDENT]),
        (f"2:cpu:/docker/{IDENT}\n1:pids:/docker/{IDENT}\n", [IDENT]),
        (f"0::/docker/{IDENT}/docker/{IDENT[::-1]}\n", [IDENT, IDENT[::-1]]),
        (f"0::/x{IDENT}0\n", []), (f"0::/{IDENT[1:]}\n", []), ("0::/\n", []), ("", []),
    ],
)
def test_containers_are_read_out_of_control_groups(text: str, idents: list[str]) -> None:
    assert processes.parse_container_ids(text) == idents


# -- who is the engine ------------------------------------------------------------------------------


def test_an_engine_is_who_has_the_database_of_its_volumes_open(root: Path, start: Start) -> None:
    assert found(root) == []
    assert why(root) == f"no process that can be seen here is proven to be the engine: none of user {os.geteuid()} has {root}/volumes/metadata.db open for writing"
    engine = start(root=root)
    assert found(root) == [engine.pid]
    engine.end()
    assert found(root) == []


@pytest.mark.parametrize("what", ["read", "another of that name", "a link", "deleted", "another data root's"])
def test_another_file_or_another_way_to_have_it_open_proves_nothing(root: Path, tmp_path: Path, start: Start, what: str) -> None:
    path = root / "volumes/metadata.db"
    if what == "read":
        start(f"read:{path}")
    elif what == "another of that name":
        (root / "volumes/x").mkdir()
        start(f"both:{root}/volumes/x/metadata.db")
    elif what == "another data root's":
        start(root=tmp_path / "other")
    else:
        start(root=root)
        path.rename(tmp_path / "metadata.db")
        if what == "a link":
            path.symlink_to(tmp_path / "metadata.db")
        else:
            path.touch(0o600)
    assert found(root) == []


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_database_that_others_may_write_to_proves_nothing(root: Path, start: Start, mode: int) -> None:
    start(root=root)
    (root / "volumes/metadata.db").chmod(mode)
    assert found(root) == [] and why(root).endswith("is no file that only the engine may write")


def test_what_is_not_there_is_named(root: Path) -> None:
    (root / "volumes/metadata.db").unlink()
    assert why(root) == f"{root}/volumes/metadata.db: {os.strerror(errno.ENOENT)}"


@root_only
@pytest.mark.parametrize("users", [("--reuid=65534",), ("--ruid=65534",), ("--euid=65534",), ("--reuid=65534", "--regid=65534", "--clear-groups")])
def test_a_process_that_is_another_users_in_any_way_is_no_engine(root: Path, start: Start, users: tuple[str, ...]) -> None:
    """It got the open file from root, or is a program that changes its user: then somebody else says what it does."""
    path = root / "volumes/metadata.db"
    start("append:/dev/null", before=("sh", "-c", f'exec 9<>{path}; exec setpriv {" ".join(users)} "$@"', "sh"))
    assert found(root) == []


@root_only
def test_an_engine_without_root_is_that_of_the_data_roots_owner(root: Path, start: Start) -> None:
    for path in (root, root / "containers", root / "volumes", root / "volumes/metadata.db"):
        os.chown(path, 65534, 65534)
    start(root=root)
    assert found(root) == [], "root's process is not this user's engine"
    path = root / "volumes/metadata.db"
    engine = start("append:/dev/null", before=("sh", "-c", f'exec 9<>{path}; exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"', "sh"))
    assert found(root) == [engine.pid]
    assert find_engine(str(root), f"{root}/containers", f"{root}/volumes").user_id == 65534
    os.chown(root, 65533, 65533)
    assert found(root) == [] and "is no file that only the engine may write" in why(root)


@root_only
def test_who_sees_another_data_root_at_its_path_is_no_engine_of_this_one(root: Path, tmp_path: Path, start: Start) -> None:
    path = root / "volumes/metadata.db"
    start("append:/dev/null", before=("sh", "-c", f'exec 9<>{path}; exec unshare --mount sh -c \'mount -t tmpfs none {root} && exec "$@"\' sh "$@"', "sh"))
    assert found(root) == []


def test_a_child_that_has_all_that_the_engine_has_is_not_the_engine(root: Path, start: Start) -> None:
    """Between its making and the program that it becomes."""
    path = root / "volumes/metadata.db"
    engine = start("append:/dev/null", before=("sh", "-c", f'exec 9<>{path}; sleep 60 & exec "$@"', "sh"))
    assert found(root) == [engine.pid]
    for child in Path(f"/proc/{engine.pid}/task/{engine.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)


def test_of_several_programs_none_is_the_engine(root: Path, tmp_path: Path, start: Start) -> None:
    first = start(root=root)
    other = tmp_path / "other"
    shutil.copy("/bin/sleep", other)
    with open(root / "volumes/metadata.db", "r+b") as stream, subprocess.Popen([other, "60"], pass_fds=(stream.fileno(),)) as process:
        try:
            while not (processes.look(process.pid) or Process(0, 0, (0, 0))).program[1] == other.stat().st_ino:
                time.sleep(0.01)
            assert found(root) == []
            assert "several programs have" in why(root) and str(first.pid) in why(root) and str(process.pid) in why(root)
        finally:
            process.kill()


def test_what_runs_in_one_of_the_engines_own_containers_is_not_the_engine(root: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the data root bound into it, as tools have it that look after a host."""
    engine = start(root=root)
    real = processes.read_text
    monkeypatch.setattr(processes, "read_text", lambda path: f"0::/docker/{IDENT}\n" if path == f"/proc/{engine.pid}/cgroup" else real(path))
    assert found(root) == [engine.pid], "an engine may itself run in another one's container"
    (root / "containers" / IDENT).mkdir()
    assert found(root) == []


def test_a_user_with_mounts_of_his_own_is_no_engine_and_holds_up_nobody(root: Path, start: Start) -> None:
    if not attacker.works():
        pytest.skip("not here: no user namespaces for users")
    attack = attacker.Attacker(f"+{root}/volumes/metadata.db", f"-{root}/containers/{IDENT}/{IDENT}-json.log", f"+{root}/buildkit/cache.db")
    try:
        assert f"{root}/volumes/metadata.db" in dict(attack.sizes()), "the attack itself does not work"
        assert found(root) == []
        engine = start(root=root)
        assert found(root) == [engine.pid]
    finally:
        attack.end()


# -- what is done to a process ------------------------------------------------------------------------


def opened(process: Process, holder: Holder, path: Path, **more: t.Any) -> None:
    about = path.stat()
    with processes.open_file(process, holder.descriptors[0], **{"expected": (about.st_dev, about.st_ino), "owner": about.st_uid, **more}) as descriptor:
        assert os.fstat(descriptor).st_ino == about.st_ino
        os.ftruncate(descriptor, 0)


def test_an_open_file_is_opened_if_it_is_the_one_that_was_seen(root: Path, start: Start) -> None:
    path = root / "log"
    path.write_bytes(b"x" * 5000)
    engine = start(f"append:{path}", root=root)
    process = one(root)
    before = sorted(os.listdir("/proc/self/fd"))
    for more in ({"expected": (1, 2)}, {"owner": os.geteuid() + 1}):
        with pytest.raises(ProcessLookupError):
            opened(process, engine, path, **more)
    for old in (process._replace(started=process.started - 1), process._replace(program=(1, 2)), process._replace(pid=os.getpid())):
        with pytest.raises((ProcessLookupError, FileNotFoundError)):
            opened(old, engine, path)
    assert path.stat().st_size == 5000
    opened(process, engine, path)
    assert path.stat().st_size == 0
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", ["pipe", "device", "terminal"])
def test_what_is_no_plain_file_is_not_even_opened(root: Path, start: Start, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a pipe waits, or wakes somebody up; opening a device does whatever it likes."""
    path = {"pipe": root / "pipe", "device": Path("/dev/null"), "terminal": Path("/dev/ptmx")}[kind]
    if kind == "pipe":
        os.mkfifo(path)
    engine = start(f"both:{path}", root=root)
    process = one(root)
    real, flags = os.open, []

    def noting_open(path: t.Any, wanted: int, *more: t.Any, **options: t.Any) -> int:
        flags.append(wanted)
        return real(path, wanted, *more, **options)

    monkeypatch.setattr(os, "open", noting_open)
    about = os.stat(f"/proc/{engine.pid}/fd/{engine.descriptors[0]}")
    with pytest.raises(ProcessLookupError):
        opened(process, engine, path, expected=(about.st_dev, about.st_ino), owner=about.st_uid)
    assert [flag & os.O_PATH for flag in flags] == [os.O_PATH]


def test_a_signal_reaches_the_process_and_none_that_has_its_number(root: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for kernel in (processes._PIDFD_SEND_SIGNAL, 100_000):  # the second knows no descriptors of processes
        monkeypatch.setattr(processes, "_PIDFD_SEND_SIGNAL", kernel)
        engine = start(root=root)
        process = one(root)
        for old in (process._replace(started=process.started - 1), process._replace(program=(1, 2))):
            with pytest.raises(ProcessLookupError):
                processes.send_signal(old, signal.SIGKILL)
            assert processes.take_descriptor(old, 0) == -1
        assert process.is_running()
        processes.send_signal(process, signal.SIGKILL)
        while process.is_running():
            time.sleep(0.01)
        engine.end()
        with pytest.raises(ProcessLookupError):
            processes.send_signal(process, signal.SIGKILL)


# -- what strangers have without end ------------------------------------------------------------------


def test_of_what_a_process_has_open_no_more_than_a_bound_is_looked_at(root: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = start(*(f"append:{root}/{number}" for number in range(20)))
    assert len(list(processes.descriptors(holder.pid))) == 23
    monkeypatch.setattr(processes, "_MOST_OPEN", 5)
    assert list(processes.descriptors(holder.pid)) == ["0", "1", "2", "3", "4"]
    assert list(processes.descriptors(1 << 22)) == []


def test_what_a_container_has_open_is_not_even_listed(root: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a million files, in each of a thousand processes of root's."""
    (root / "containers" / IDENT).mkdir()
    inside, engine = start("append:/dev/null"), start(root=root)
    real, listed = processes.read_text, []
    monkeypatch.setattr(processes, "read_text", lambda path: f"0::/docker/{IDENT}\n" if path == f"/proc/{inside.pid}/cgroup" else real(path))
    names = processes.descriptors
    monkeypatch.setattr(processes, "descriptors", lambda pid: (listed.append(pid), names(pid))[1])
    assert found(root) == [engine.pid]
    assert engine.pid in listed and inside.pid not in listed
